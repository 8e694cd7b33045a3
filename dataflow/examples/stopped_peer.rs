//! What a peer that stops reading costs in memory before it is lost: two processes, one of them stopped.
//!
//! `cargo run --release -p logster-dataflow --example stopped_peer [-- RATE]`
//!
//! Process 0 sends 600-byte records to process 1 as fast as timely takes them, or RATE a second. After 2 s
//! process 1 gets SIGSTOP. Prints the resident memory of process 0 every 250 ms until it gives up.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use logster_dataflow::cluster::{ClusterConfig, before_exit, connect, exit_on_panic};
use timely::dataflow::operators::{Exchange, Input, Probe};

const RECORD_BYTES: usize = 600;
const BATCH: u64 = 500;

static SENT: AtomicU64 = AtomicU64::new(0);

fn main() {
    let rate = std::env::args().nth(1).map_or(u64::MAX, |rate| rate.parse().expect("RATE is records a second"));
    match std::env::var("PEER").as_deref() {
        Ok(index) => peer(index.parse().expect("an index"), rate),
        Err(_) => supervise(rate),
    }
}

fn supervise(rate: u64) {
    let itself = std::env::current_exe().expect("this program");
    let start = |index: &str| {
        let args = (rate < u64::MAX).then(|| rate.to_string());
        Command::new(&itself).args(args).env("PEER", index).spawn().expect("starts")
    };
    let (mut first, mut second) = (start("0"), start("1"));
    std::thread::sleep(Duration::from_secs(2));
    let stopped = Instant::now();
    assert!(logster_sinks::testkit::signal(second.id(), "STOP"));
    while first.try_wait().expect("waits").is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", first.id())).unwrap_or_default();
        if let Some(resident) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")) {
            println!("{:5.2} s after the stop: resident {}", stopped.elapsed().as_secs_f64(), resident.trim());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    println!("process 0 ended {:.2} s after the stop", stopped.elapsed().as_secs_f64());
    second.kill().expect("kill");
    second.wait().expect("waits");
}

fn peer(index: usize, rate: u64) {
    exit_on_panic();
    let hosts = vec!["127.0.77.1:2101".into(), "127.0.77.1:2102".into()];
    let config = ClusterConfig { processes: 2, index, hosts, ..ClusterConfig::default() };
    let (builders, others, _watch) = connect(&config).expect("connects");
    let guards = timely::execute::execute_from(builders, others, timely::WorkerConfig::default(), move |worker| {
        let (mut input, _probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, records) = scope.new_input::<Vec<(u64, String)>>();
            (input, records.exchange(|(to, _)| *to).probe().0)
        });
        let start = Instant::now();
        if index == 0 {
            before_exit(move |_| {
                let sent = SENT.load(Ordering::Relaxed) as f64;
                println!("sent {:.0} records of {RECORD_BYTES} bytes a second", sent / start.elapsed().as_secs_f64());
            });
        }
        loop {
            worker.step_or_park(Some(Duration::from_millis(1)));
            let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
            if index == 0 && SENT.load(Ordering::Relaxed) < due {
                (0..BATCH).for_each(|_| input.send((1, "x".repeat(RECORD_BYTES))));
                SENT.fetch_add(BATCH, Ordering::Relaxed);
                input.flush();
            }
        }
    });
    let _: Vec<Result<(), String>> = guards.expect("starts").join();
}
