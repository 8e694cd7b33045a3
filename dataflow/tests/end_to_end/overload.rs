//! More input than a run can take, one endpoint that drowns the others, and hosts that ship what they have kept:
//! `make overload`. Figures are printed; what must hold is asserted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use logster_schema::partition::partition_for_key;
use logster_schema::{OutputTopic, RawTopic, time};
use logster_sinks::client::KafkaConfig;
use logster_sinks::consumer::{Consumer, Start};
use logster_sinks::testkit::{self, Cluster};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::process::{Run, Shape, logster, succeed};

const SOON: Duration = Duration::from_secs(60);

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Hosts that log at a steady rate, until dropped.
struct Fleet {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// `rate` events a second, dealt to `hosts` in turn, each `age_ms` old when it is sent.
    fn start(brokers: &str, hosts: Range<usize>, rate: f64, age_ms: impl Fn(u64) -> i64 + Send + 'static) -> Self {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("linger.ms", "20")
            .set("compression.type", "lz4")
            .create()
            .unwrap();
        let (over, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stop, count) = (Arc::clone(&over), Arc::clone(&sent));
        let play = move || {
            let began = Instant::now();
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * rate) as u64;
                while n < due && !stop.load(Ordering::Relaxed) {
                    let host = hosts.start + (n % hosts.len() as u64) as usize;
                    send(&producer, host, n / hosts.len() as u64, now_ms() - age_ms(n));
                    n += 1;
                }
                count.store(n, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            producer.flush(SOON).unwrap();
        };
        Self { over, sent, thread: Some(std::thread::spawn(play)) }
    }

    /// Stops; how many events it has sent.
    fn stop(mut self) -> u64 {
        self.end();
        self.sent.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
    }
}

/// The `n`th event of a host: programs that start and files that they open, so that every window has a graph.
fn send(producer: &ThreadedProducer<DefaultProducerContext>, host: usize, n: u64, event_ms: i64) {
    let at = time::format(event_ms);
    let (topic, source, what) = match n % 3 {
        0 => (
            RawTopic::EbpfProcess,
            "linux-ebpf-process",
            format!(
                "[EXEC]    pid={}   ppid=812     uid=0     cron             /usr/bin/job{}",
                1000 + n % 500,
                n % 40
            ),
        ),
        _ => (
            RawTopic::EbpfFile,
            "linux-ebpf-file",
            format!("[FILE]    pid={}   job              flags=O_RDONLY   /srv/d{}/f{}", 1000 + n % 500, n % 7, n % 90),
        ),
    };
    let (date, clock) = (&at[..10], &at[11..19]);
    let value = format!(
        "{{\"@timestamp\":\"{at}\",\"host\":{{\"name\":\"h{host}\"}},\"log_source\":\"{source}\",\"message\":\"{date} {clock} {what}\"}}"
    );
    let key = format!("default:h{host}");
    let partition = partition_for_key(key.as_bytes(), RawTopic::PARTITIONS);
    let mut record = BaseRecord::to(topic.name()).partition(partition).key(&key).payload(&value);
    while let Err((error, again)) = producer.send(record) {
        assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
        std::thread::sleep(Duration::from_millis(5));
        record = again;
    }
}

/// Reads the verdicts as they are committed: how long after the end of its window each came, by host.
struct Verdicts {
    seen: Arc<Mutex<BTreeMap<usize, Vec<Duration>>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Verdicts {
    fn watch(kafka: &KafkaConfig) -> Self {
        let topic = OutputTopic::Results;
        let start = |partition| Start { topic: topic.name().to_owned(), partition, offset: Some(0) };
        let starts: Vec<Start> = (0..topic.partitions() as i32).map(start).collect();
        let mut consumer = Consumer::assign(kafka, "verdicts", &starts, 1 << 22, || ()).unwrap();
        let (seen, over) = (Arc::<Mutex<BTreeMap<usize, Vec<Duration>>>>::default(), Arc::<AtomicBool>::default());
        let (into, stop) = (Arc::clone(&seen), Arc::clone(&over));
        let watch = move || {
            while !stop.load(Ordering::Relaxed) {
                let read = |message: logster_sinks::consumer::Message<'_>| {
                    let result: serde_json::Value = serde_json::from_slice(message.payload.unwrap()).unwrap();
                    if result["backfill"] == true {
                        return;
                    }
                    let host = result["endpoint_id"].as_str().unwrap().trim_start_matches('h').parse().unwrap();
                    let end = time::parse(result["window_end"].as_str().unwrap()).unwrap();
                    let took = Duration::from_millis((now_ms() - end).max(0) as u64);
                    into.lock().unwrap().entry(host).or_default().push(took);
                };
                consumer.poll(10_000, read).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        Self { seen, over, thread: Some(std::thread::spawn(watch)) }
    }

    /// Median, 99th percentile and greatest of what came since the last call for these hosts.
    fn take(&self, hosts: Range<usize>) -> [Duration; 3] {
        let mut seen = self.seen.lock().unwrap();
        let mut all: Vec<Duration> = std::mem::take(&mut *seen).range(hosts).flat_map(|(_, l)| l.clone()).collect();
        assert!(all.len() > 50, "{} verdicts", all.len());
        all.sort_unstable();
        [all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1]]
    }
}

impl Drop for Verdicts {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets a process run only a part of the time: a machine that is too small for its load.
struct Throttle {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// It runs for one `n`th of the time.
    fn start(pid: u32, n: u32) -> Self {
        let over = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&over);
        let slice = Duration::from_millis(30);
        let throttle = move || {
            while !stop.load(Ordering::Relaxed) {
                testkit::signal(pid, "STOP");
                std::thread::sleep(slice * (n - 1));
                testkit::signal(pid, "CONT");
                std::thread::sleep(slice);
            }
        };
        Self { over, thread: Some(std::thread::spawn(throttle)) }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Processor time that a process has taken so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // User and system time, in ticks of 10 ms.
    after.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Windows of a minute, an interval of ten seconds: so that a minute shows enough of them.
const QUICK: &[&str] = &["--set", "inference.window=60s", "--set", "inference.interval=10s"];

fn start(cluster: &Cluster, dir: &std::path::Path, more: &[&str]) -> Run {
    succeed(logster(&["topics", "create", "--kafka", cluster.brokers()]));
    let args = [&["--kafka", cluster.brokers()], more].concat();
    let mut run = Run::start(dir, "run", Shape { processes: 1, workers: 2 }, &args);
    run.wait_until(SOON, "the first commit", |run| run.is_ready());
    run
}

/// `OVERLOAD_SECONDS` (600) of five times what the run can take: flat memory, lag in the metrics, no error, and when
/// it is over the run catches up.
#[test]
#[ignore = "half an hour: `make overload`"]
fn five_times_what_it_can_take() {
    let seconds: u64 = std::env::var("OVERLOAD_SECONDS").map_or(600, |s| s.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start();
    // It reads a fifth of what comes, so it takes five windows' time until as much is held as a window can hold: with short
    // ones that is in the first half.
    let mut run = start(&cluster, dir.path(), QUICK);
    let pid = run.pid(0);
    let throttle = Throttle::start(pid, 20);
    const HOSTS: Range<usize> = 0..2_000;

    // What it can take: as much as it reads of a flood, once the first windows are closed and scored.
    let flood = Fleet::start(cluster.brokers(), HOSTS, 50_000.0, |_| 0);
    let events = |run: &Run| {
        // Held up as it is, it does not always answer in time.
        let asked = Instant::now();
        loop {
            match run.metric("logster_normalized_events_total") {
                0.0 => assert!(asked.elapsed() < SOON, "no answer"),
                events => return events,
            }
        }
    };
    std::thread::sleep(Duration::from_secs(seconds.clamp(20, 60)));
    let (before, since) = (events(&run), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds.clamp(20, 60)));
    let takes = (events(&run) - before) / since.elapsed().as_secs_f64();
    let mut sent = flood.stop();
    println!("a twentieth of the machine takes {takes:.0} events/s");

    let fleet = Fleet::start(cluster.brokers(), HOSTS, 5.0 * takes, |_| 0);
    let mut samples = Vec::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        assert!(run.look().is_empty(), "{}", run.text(0));
        samples.push((resident_mb(pid), run.metric("logster_watermark_lag_seconds") / 2.0));
        std::thread::sleep(Duration::from_secs(1));
    }
    sent += fleet.stop();
    let half = samples.len() / 2;
    let most = |samples: &[(f64, f64)]| samples.iter().map(|(mb, _)| *mb).fold(0.0, f64::max);
    let (first, second) = (most(&samples[..half]), most(&samples[half..]));
    let lag = |samples: &[(f64, f64)]| samples.iter().map(|(_, lag)| *lag).fold(0.0, f64::max);
    let held_back = run.metric("logster_backpressure_total");
    println!(
        "{seconds} s of {:.0} events/s: {sent} sent, {:.0} read; at most {first:.0} MB in the first half, {second:.0} MB \
         in the second; lag {:.0} s, then {:.0} s; held back {held_back} times",
        5.0 * takes,
        events(&run),
        lag(&samples[..half]),
        lag(&samples[half..]),
    );
    assert!(second < first * 1.15 + 30.0, "{first} MB, then {second} MB");
    assert!(lag(&samples) > 20.0);

    drop(throttle);
    let took = run.wait_until(Duration::from_secs(seconds * 4 + 300), "the live end", |run| {
        assert!(run.look().is_empty(), "{}", run.text(0));
        std::thread::sleep(Duration::from_millis(500));
        events(run) >= sent as f64 && run.metric("logster_watermark_lag_seconds") / 2.0 < 15.0
    });
    println!("at full speed it caught up in {:.0} s", took.as_secs_f64());
    assert_eq!(events(&run), sent as f64);
    run.signal_all("TERM");
    assert_eq!(run.end(SOON)[0].code, Some(0), "{}", run.text(0));
}

const INTERVAL: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

fn shown([median, p99, worst]: [Duration; 3]) -> String {
    format!("median {:.1} s, p99 {:.1} s, worst {:.1} s", median.as_secs_f64(), p99.as_secs_f64(), worst.as_secs_f64())
}

/// One endpoint that sends nine tenths of all traffic does not delay the others' windows by more than an interval;
/// nor do hosts that ship hours of what they have kept.
#[test]
#[ignore = "six minutes: `make overload`"]
fn loud_and_late_hosts_delay_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start();
    let run = start(&cluster, dir.path(), QUICK);
    let verdicts = Verdicts::watch(&cluster.config());
    const QUIET: Range<usize> = 0..100;
    let quiet = Fleet::start(cluster.brokers(), QUIET, 200.0, |_| 0);
    std::thread::sleep(MINUTE + INTERVAL);
    verdicts.seen.lock().unwrap().clear();
    std::thread::sleep(MINUTE / 2);
    let alone = verdicts.take(QUIET);
    println!("window end to committed verdict, 100 hosts: {}", shown(alone));

    let loud = Fleet::start(cluster.brokers(), 1_000..1_001, 1_800.0, |_| 0);
    std::thread::sleep(MINUTE);
    let beside = verdicts.take(QUIET);
    println!("beside one host with 90% of all events ({}): {}", loud.stop(), shown(beside));
    assert!(beside[2] < alone[2] + INTERVAL);

    // 20 hosts come back after three hours, and ship them within a minute: 360 windows a second. Then as many others, who
    // have logged an event a second each.
    const HOURS: i64 = 3 * 3_600_000;
    for (hosts, rate) in [(2_000..2_020, 1_000.0), (3_000..3_020, 3_600.0)] {
        let step = HOURS / (60 * rate as i64);
        let (before, busy) = (run.metric("logster_windows_total"), cpu_seconds(run.pid(0)));
        let late = Fleet::start(cluster.brokers(), hosts, rate, move |n| (HOURS - n as i64 * step).max(0));
        std::thread::sleep(MINUTE);
        let windows = (run.metric("logster_windows_total") - before) / MINUTE.as_secs_f64();
        let cores = (cpu_seconds(run.pid(0)) - busy) / MINUTE.as_secs_f64();
        let beside = verdicts.take(QUIET);
        println!(
            "beside 20 hosts with three hours of backlog ({} events, {windows:.0} windows/s, {cores:.2} cores): {}",
            late.stop(),
            shown(beside)
        );
        assert!(beside[2] < alone[2] + INTERVAL);
        std::thread::sleep(INTERVAL);
    }
    assert!(run.metric("logster_late_events_total") > 200_000.0);
    drop(quiet);
}
