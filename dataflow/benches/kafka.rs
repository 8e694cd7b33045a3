//! The binary that ships between two ends of a real broker: `cargo bench -p logster-dataflow --bench kafka -- DIR`.
//!
//! - Throughput: the captures under DIR lie in the raw topics; `run --until-end` takes them to the output topics,
//!   exactly once. Start-up (models, fencing, the job's lock) is told apart from the rest.
//! - Latency: a fleet made of copies of the demo's hosts sends at a steady rate, with the present as its time. For each
//!   record that a `read_committed` consumer gets of the alerts, the time since its window could close: the window's
//!   end and `input.max_lateness`, by the clock. The margin that idle partitions are given is in it.
//!
//! Needs LOGSTER_KAFKA_CLUSTER and LOGSTER_ONNXRUNTIME (`make bench` sets both).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use logster_schema::{Alert, OutputTopic, TimeMs};
use logster_sinks::consumer::{Consumer, Start};
use logster_sinks::testkit::Cluster;

/// `input.max_lateness`, its default.
const LATENESS_MS: TimeMs = 10_000;
/// The demo's capture, from before its attack to its end: this long, played so much faster.
const SLICE_MS: std::ops::Range<TimeMs> = 140_000..620_000;
const FASTER: TimeMs = 8;
/// Copies of the fleet, each this much later than the one before.
const COPIES: TimeMs = 12;
const STAGGER_MS: TimeMs = 2_500;

fn main() {
    if std::env::var_os("LOGSTER_KAFKA_CLUSTER").is_none() {
        println!("skipped: LOGSTER_KAFKA_CLUSTER is not set");
        return;
    }
    match std::env::args().skip(1).find(|arg| !arg.starts_with("--")) {
        Some(dir) => throughput(Path::new(&dir)),
        None => println!("throughput skipped: no captures named"),
    }
    latency();
}

fn logster(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(args).args(["--kafka", cluster.brokers()]).stdin(Stdio::null());
    command
}

fn succeed(mut command: Command) {
    let output = command.output().expect("logster starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Starts a run and waits until it owns the job.
fn run(cluster: &Cluster, args: &[&str]) -> Child {
    let mut command = logster(cluster, &["run"]);
    command.args(args).args(["--set", "http.enabled=false", "--set", "log.level=info"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("logster starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut seen = String::new();
    loop {
        let Some(Ok(line)) = log.next() else { panic!("the run has ended: {:?}\n{seen}", child.wait()) };
        seen += &format!("{line}\n");
        if line.contains("took the job over") {
            // What it says later is of no interest, but must be taken.
            std::thread::spawn(move || log.for_each(drop));
            return child;
        }
    }
}

fn throughput(dir: &Path) {
    let cluster = Cluster::start();
    succeed(logster(&cluster, &["topics", "create", "--set", "input.arrival=create"]));
    let began = Instant::now();
    succeed(logster(&cluster, &["produce", "--input", dir.to_str().expect("UTF-8")]));
    let produced = began.elapsed().as_secs_f64();
    for round in 1..=3 {
        let began = Instant::now();
        let job = format!("checkpoint.job=bench-{round}");
        let mut child = run(&cluster, &["--until-end", "--set", "input.arrival=create", "--set", &job]);
        let start = began.elapsed().as_secs_f64();
        let status = child.wait().expect("a status");
        assert!(status.success(), "{status}");
        let took = began.elapsed().as_secs_f64() - start;
        // Each round writes the same events once more.
        let events = count(&cluster, OutputTopic::Normalized) / round;
        println!(
            "round {round}: {events} events: start {start:.1} s, then {took:.2} s: {:.0} events/s ({:.0} with the start); produce {:.0} /s",
            events as f64 / took,
            events as f64 / (start + took),
            events as f64 / produced,
        );
    }
}

fn count(cluster: &Cluster, topic: OutputTopic) -> usize {
    use logster_sinks::reader::{End, read_committed};
    read_committed(&cluster.config(), topic.name(), End::Stable, Duration::from_secs(60)).expect("the topic").len()
}

fn latency() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().expect("a directory");
    succeed(logster(&cluster, &["topics", "create"]));
    let mut child = run(&cluster, &[]);
    let starts: Vec<Start> = (0..OutputTopic::Alerts.partitions() as i32)
        .map(|partition| Start { topic: OutputTopic::Alerts.name().to_owned(), partition, offset: Some(0) })
        .collect();
    let mut consumer = Consumer::assign(&cluster.config(), "bench", &starts, 1 << 20, || {}).expect("a consumer");
    // Floors of the idle partitions take effect first.
    std::thread::sleep(Duration::from_secs(3));
    let (records, seconds) = fleet(&dir.path().join("fleet.ndjson"), now_ms() + 1_500);
    let capture = dir.path().to_str().expect("UTF-8").to_owned();
    let mut producing = logster(&cluster, &["produce", "--input", &capture, "--speed", "1x", "--timestamps", "clock"]);
    let mut producing = producing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("logster starts");
    let until = Instant::now() + Duration::from_secs(seconds + 60);
    let mut latencies: Vec<f64> = Vec::new();
    while Instant::now() < until {
        consumer
            .poll(1_000, |m| {
                let alert: Alert = serde_json::from_slice(m.payload.unwrap_or_default()).expect("an alert");
                latencies.push((now_ms() - alert.updated_at - LATENESS_MS) as f64 / 1e3);
            })
            .expect("the alerts can be read");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(producing.wait().expect("a status").success(), "produce failed");
    // Windows above the stop stay open.
    child.kill().expect("it runs");
    let _ = child.wait();
    latencies.sort_by(f64::total_cmp);
    assert!(latencies.len() >= 100, "only {} alerts", latencies.len());
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "window close to committed alert at {:.0} events/s: {} alert records, p50 {:.2} s, p99 {:.2} s, worst {:.2} s",
        records as f64 / seconds as f64,
        latencies.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn now_ms() -> TimeMs {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as TimeMs
}

/// Writes copies of the demo's fleet whose time begins at `begin_ms`; returns records, and seconds they take.
fn fleet(path: &Path, begin_ms: TimeMs) -> (usize, u64) {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst");
    let demo = zstd::decode_all(std::fs::File::open(demo).expect("the demo's capture")).expect("zstd");
    let demo = String::from_utf8(demo).expect("UTF-8");
    let stamp = |line: &str| {
        let at = line.find("\"@timestamp\":\"").expect("a time") + 14;
        logster_schema::time::parse(&line[at..at + 24]).expect("a time")
    };
    let first = stamp(demo.lines().next().expect("a line"));
    let slice = |line: &&str| SLICE_MS.contains(&(stamp(line) - first));
    let mut lines: Vec<(TimeMs, String)> = Vec::new();
    for line in demo.lines().filter(slice) {
        for copy in 0..COPIES {
            let time = begin_ms + (stamp(line) - first - SLICE_MS.start) / FASTER + copy * STAGGER_MS;
            lines.push((time, moved(line, time, copy)));
        }
    }
    lines.sort();
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a file"));
    lines.iter().for_each(|(_, line)| writeln!(file, "{line}").expect("written"));
    file.flush().expect("written");
    (lines.len(), ((lines[lines.len() - 1].0 - begin_ms) / 1_000) as u64)
}

/// The line as another host's at another time.
fn moved(line: &str, time: TimeMs, copy: TimeMs) -> String {
    let iso = logster_schema::time::format(time);
    let mut line = line.to_owned();
    let mut put = |before: &str, len: usize, text: &str| {
        if let Some(at) = line.find(before).map(|at| at + before.len()) {
            line.replace_range(at..at + len, text);
        }
    };
    put("\"@timestamp\":\"", 24, &iso);
    put("\"UtcTime\":\"", 23, &iso[..23].replace('T', " "));
    put("audit(", 14, &format!("{}.{:03}", time / 1_000, time % 1_000));
    for host in ["fin-ws-014", "fs-01", "backup-01", "build-01", "db-01", "dc-01", "eng-ws-021", "hr-ws-007", "web-01"]
    {
        let new = format!("{host}-{copy}");
        line = line.replace(host, &new).replace(&host.to_uppercase(), &new.to_uppercase());
    }
    line
}
