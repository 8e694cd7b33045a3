//! A job on the broker's clock while its brokers are lost, one after the other and all at once.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use logster_schema::{OutputTopic, RawTopic, time};
use logster_sinks::client::KafkaConfig;
use logster_sinks::consumer::{Consumer, Start};
use logster_sinks::reader::{End, read_committed};
use logster_sinks::testkit::Cluster;
use serde_json::value::RawValue;

use crate::outputs::Outputs;
use crate::process::{Run, Shape, logster, succeed};

const WAIT: Duration = Duration::from_secs(60);

/// The demo's capture from minute `from` to minute `to`, as if it were recorded from now on.
fn as_of_now(dir: &Path, from: i64, to: i64) -> PathBuf {
    /// 2026-03-17T09:00:00Z, where the capture begins.
    const BEGINS: i64 = 1_773_738_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let shift = now + 2 - BEGINS - from * 60;
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst");
    let text = zstd::decode_all(std::fs::File::open(demo).unwrap()).unwrap();
    let path = dir.join("live.ndjson");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for line in std::str::from_utf8(&text).unwrap().lines() {
        let minute: i64 = line[line.find("T09:").unwrap() + 4..][..2].parse().unwrap();
        if !(from..to).contains(&minute) {
            continue;
        }
        let mut moved = String::with_capacity(line.len());
        let mut rest = line;
        // Times are written as dates, and as seconds in audit records.
        while let Some(at) = [rest.find("2026-03-17"), rest.find("audit(17737")].into_iter().flatten().min() {
            moved.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(seconds) = rest.strip_prefix("audit(") {
                let seconds: i64 = seconds[..10].parse().unwrap();
                moved.push_str(&format!("audit({}", seconds + shift));
                rest = &rest[16..];
            } else {
                let (minute, second): (i64, i64) = (rest[14..16].parse().unwrap(), rest[17..19].parse().unwrap());
                let shifted = time::format((BEGINS + minute * 60 + second + shift) * 1000);
                moved.push_str(&format!("{}{}{}", &shifted[..10], &rest[10..11], &shifted[11..19]));
                rest = &rest[19..];
            }
        }
        writeln!(out, "{moved}{rest}").unwrap();
    }
    path
}

/// What the same records give when they are played from a file with the arrivals that the broker gave them.
pub fn replayed(kafka: &KafkaConfig, dir: &Path, extra: &[&str]) -> (usize, Outputs) {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        topic: &'a str,
        ts: i64,
        key: &'a str,
        value: &'a RawValue,
    }
    let mut records = Vec::new();
    for topic in RawTopic::ALL {
        let read = read_committed(kafka, topic.name(), End::Stable, WAIT).unwrap();
        records.extend(read.into_iter().map(|record| (record.ts_ms, topic.name(), record)));
    }
    records.sort_by(|a, b| (a.0, a.1, a.2.partition, a.2.offset).cmp(&(b.0, b.1, b.2.partition, b.2.offset)));
    let path = dir.join("replay.ndjson");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for (ts, topic, record) in &records {
        let key = std::str::from_utf8(record.key.as_deref().unwrap()).unwrap();
        let value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
        serde_json::to_writer(&mut out, &Line { topic, ts: *ts, key, value }).unwrap();
        writeln!(out).unwrap();
    }
    out.flush().unwrap();
    (records.len(), crate::run_files(&path, &dir.join("replay"), extra))
}

/// Reads the normalized events as they are committed, and remembers when.
struct Watcher {
    seen: Arc<Mutex<Vec<Instant>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(kafka: &KafkaConfig) -> Self {
        let topic = OutputTopic::Normalized;
        let start = |partition| Start { topic: topic.name().to_owned(), partition, offset: Some(0) };
        let starts: Vec<Start> = (0..topic.partitions() as i32).map(start).collect();
        let mut consumer = Consumer::assign(kafka, "watcher", &starts, 1 << 20, || ()).unwrap();
        let (seen, over) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::<AtomicBool>::default());
        let (into, stop) = (Arc::clone(&seen), Arc::clone(&over));
        let watch = move || {
            while !stop.load(Ordering::Relaxed) {
                if consumer.poll(10_000, |_| ()).unwrap() > 0 {
                    into.lock().unwrap().push(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        Self { seen, over, thread: Some(std::thread::spawn(watch)) }
    }

    /// The longest time without a new record between two moments.
    fn pause(&self, from: Instant, to: Instant) -> Duration {
        let seen = self.seen.lock().unwrap();
        let mut moments = vec![from];
        moments.extend(seen.iter().filter(|at| (from..to).contains(*at)));
        moments.push(to);
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A process that ends with the test.
struct Playing(Child);

impl Drop for Playing {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// A run under a supervisor.
struct Supervised {
    run: Run,
    restarts: usize,
    words: BTreeMap<String, usize>,
}

impl Supervised {
    /// For so long, whatever ends is started again at once.
    fn go_on(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            for end in self.run.look() {
                assert!(matches!(end.code, None | Some(1 | 3)), "{end:?}");
                *self.words.entry(end.said).or_default() += 1;
                self.restarts += 1;
            }
            self.run.restart();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&Run) -> bool) -> Duration {
        let began = Instant::now();
        while !holds(&self.run) {
            assert!(began.elapsed() < limit, "waited {limit:?} for {what}:\n{}", self.run.text(0));
            self.go_on(Duration::from_millis(50));
        }
        began.elapsed()
    }
}

/// Losing any one of three brokers loses nothing and pauses output for less than 30 s; losing all of them and
/// getting them back needs no hand. What is committed in the end is what the raw topics give without faults.
#[test]
#[ignore = "five minutes: part of `make chaos`"]
fn brokers_lost_one_by_one_and_all_at_once() {
    const PAUSE: Duration = Duration::from_secs(30);
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(3, &[]);
    let kafka = cluster.config();
    succeed(logster(&["topics", "create", "--kafka", cluster.brokers()]));
    let start = |name, shape| Run::start(dir.path(), name, shape, &["--kafka", cluster.brokers()]);
    let run = start("run", Shape { processes: 2, workers: 1 });
    let mut live = Supervised { run, restarts: 0, words: BTreeMap::new() };
    live.wait(WAIT, "the first commit", Run::is_ready);

    let input = as_of_now(dir.path(), 2, 7);
    let mut play = logster(&["produce", "--kafka", cluster.brokers(), "--input", input.to_str().unwrap()]);
    play.args(["--speed", "1x", "--timestamps", "clock"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut play = Playing(play.spawn().unwrap());
    let watcher = Watcher::start(&kafka);
    live.wait(WAIT, "records", |_| !watcher.seen.lock().unwrap().is_empty());
    live.go_on(Duration::from_secs(5));

    let second = Duration::from_secs(1);
    for broker in [1, 2, 3] {
        let lost = Instant::now();
        cluster.kill_broker(broker);
        live.go_on(15 * second);
        cluster.launch_broker(broker);
        live.go_on(15 * second);
        let pause = watcher.pause(lost, Instant::now());
        println!("broker {broker} of 3 killed: output paused for {:.1} s", pause.as_secs_f64());
        assert!(pause < PAUSE, "{pause:?}");
    }
    for broker in [1, 2, 3] {
        let lost = Instant::now();
        cluster.pause_broker(broker);
        live.go_on(25 * second);
        cluster.resume_broker(broker);
        live.go_on(10 * second);
        let pause = watcher.pause(lost, Instant::now());
        println!("broker {broker} of 3 hung for 25 s: output paused for {:.1} s", pause.as_secs_f64());
        assert!(pause < PAUSE, "{pause:?}");
    }
    let lost = Instant::now();
    (1..=3).for_each(|broker| cluster.kill_broker(broker));
    live.go_on(10 * second);
    (1..=3).for_each(|broker| cluster.launch_broker(broker));
    let back = Instant::now();
    live.go_on(second);
    let took = live.wait(3 * WAIT, "output after all brokers came back", |_| {
        watcher.seen.lock().unwrap().last().is_some_and(|at| *at > back)
    });
    let pause = watcher.pause(lost, Instant::now()).as_secs_f64();
    println!(
        "all brokers lost for 10 s: output paused for {pause:.1} s, {:.1} s of it after",
        took.as_secs_f64() + 1.0
    );

    // A worker's process, in the middle of it, and another split.
    let killed = Instant::now();
    live.run.signal_all("KILL");
    live.go_on(Duration::from_millis(100));
    let caught_up = |run: &Run| run.is_ready() && run.metric("logster_watermark_lag_seconds") < 2.0 * 15.0;
    live.wait(WAIT, "the live end", caught_up);
    println!("kill -9 of all processes: at the live end again after {:.1} s", killed.elapsed().as_secs_f64());
    live.run.signal_all("TERM");
    assert!(live.run.end(WAIT).iter().all(|end| end.code == Some(0)));
    live.run = start("wider", Shape { processes: 1, workers: 3 });

    let played = live.wait(6 * WAIT, "the end of the capture", |_| play.0.try_wait().unwrap().is_some());
    assert!(play.0.wait().unwrap().success(), "{played:?}");
    live.go_on(5 * second);
    live.run.signal_all("TERM");
    assert!(live.run.end(WAIT).iter().all(|end| end.code == Some(0)));
    println!("{} restarts: {:#?}", live.restarts, live.words);
    succeed(logster(&["run", "--kafka", cluster.brokers(), "--until-end"]));

    let got = Outputs::of_topics(&kafka);
    let (raw, want) = replayed(&kafka, dir.path(), &[]);
    println!(
        "{raw} raw records, {} results, {} alerts",
        got.count(OutputTopic::Results),
        got.count(OutputTopic::Alerts)
    );
    assert_eq!(raw, got.count(OutputTopic::Normalized) + got.count(OutputTopic::DeadLetters));
    assert_eq!(got.inconsistent_alerts(), [""; 0]);
    want.assert_same("replayed without faults", &got);
}
