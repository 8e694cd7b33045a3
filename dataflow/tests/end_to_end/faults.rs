//! What a run does about single faults of the brokers and their topics, in the order of docs/operations.md.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use logster_schema::{OutputTopic, RawTopic, time};
use logster_sinks::reader::{End, read_committed};
use logster_sinks::testkit::Cluster;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use crate::outputs::Outputs;
use crate::process::{Run, Shape, logster, succeed};

const SOON: Duration = Duration::from_secs(120);

/// A cluster with a job of its own for each test of this file.
struct Bed {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Bed {
    /// Topics are made with the broker's clock.
    fn new() -> Self {
        let cluster = Cluster::start();
        succeed(logster(&["topics", "create", "--kafka", cluster.brokers()]));
        Self { cluster, dir: tempfile::tempdir().unwrap() }
    }

    /// A run that stays up, on the broker's clock.
    fn live(&self, name: &str, shape: Shape) -> Run {
        // A busy machine's broker may need long for its first answer.
        let args = ["--kafka", self.cluster.brokers(), "--set", "kafka.timeout=60s"];
        Run::start(self.dir.path(), name, shape, &args)
    }

    /// A live run that has committed something.
    fn ready(&self, name: &str, shape: Shape) -> Run {
        let mut run = self.live(name, shape);
        run.wait_until(SOON, "the first commit", |run| run.is_ready());
        run
    }

    /// Records of `hosts` in the topic, stamped by the broker; returns how many.
    fn produce(&self, hosts: std::ops::Range<usize>) -> usize {
        let line = |host| {
            let message = "2026-03-17 09:11:59 [FILE]    pid=31715   tar              flags=O_RDONLY   /etc/passwd";
            format!(
                "{{\"topic\":\"linux-ebpf-file-logs\",\"value\":{{\"@timestamp\":\"2026-03-17T09:11:59.507Z\",\
                 \"host\":{{\"name\":\"h{host}\"}},\"log_source\":\"linux-ebpf-file\",\"message\":\"{message}\"}}}}\n"
            )
        };
        let n = hosts.len();
        let path = self.dir.path().join("lines.ndjson");
        std::fs::write(&path, hosts.map(line).collect::<String>()).unwrap();
        let input = path.to_str().unwrap();
        succeed(logster(&["produce", "--kafka", self.cluster.brokers(), "--input", input, "--timestamps", "clock"]));
        n
    }

    /// Waits until that many normalized events are committed; more must not come.
    fn await_normalized(&self, run: &mut Run, want: usize) {
        let topic = OutputTopic::Normalized.name();
        run.wait_until(SOON, "normalized events", |run| {
            assert_eq!(run.look().len(), 0, "{}", run.text(0));
            read_committed(&self.cluster.config(), topic, End::Stable, SOON).unwrap().len() >= want
        });
        assert_eq!(read_committed(&self.cluster.config(), topic, End::Stable, SOON).unwrap().len(), want);
    }

    fn stop(&self, mut run: Run) {
        run.signal_all("TERM");
        let ended = run.end(Duration::from_secs(10));
        assert!(ended.iter().all(|end| end.code == Some(0)), "{ended:?}");
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.cluster.brokers()).create().unwrap()
    }

    /// A start that must be refused: what it said.
    fn refused(&self, name: &str) -> String {
        let mut run = self.live(name, Shape::ONE);
        let ended = run.end(SOON);
        assert_eq!(ended[0].code, Some(1), "{}", run.text(0));
        run.text(0)
    }
}

/// Waits for an answer of the admin client.
fn answer<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

const TOPIC: &str = RawTopic::EbpfFile.name();

#[test]
fn of_two_complete_runs_one_stays_and_the_other_says_why() {
    let bed = Bed::new();
    let mut first = bed.ready("first", Shape { processes: 2, workers: 1 });
    let mut second = bed.ready("second", Shape { processes: 1, workers: 2 });
    let ended = first.end(SOON);
    assert!(ended.iter().any(|end| end.code == Some(4)), "{ended:?}");
    assert!(ended.iter().all(|end| matches!(end.code, Some(3 | 4))), "{ended:?}");
    let said = first.text(0) + &first.text(1);
    assert!(said.contains("another run of job \"logster\" took over (generation 2); this one stays down"), "{said}");
    let n = bed.produce(0..40);
    bed.await_normalized(&mut second, n);
    bed.stop(second);
}

/// SIGTERM ends a run well and in time wherever it is: it loads models, waits for a broker or a peer, takes the job over,
/// works, waits for a commit that is not answered.
#[test]
fn sigterm_ends_a_run_well_at_any_moment() {
    let bed = Bed::new();
    let end = |mut run: Run, what: &str| {
        let since = Instant::now();
        run.signal_all("TERM");
        let ended = run.end(Duration::from_secs(10));
        assert!(ended.iter().all(|end| end.code == Some(0)), "{what}: {ended:?}");
        println!("SIGTERM to a run {what}: ended after {:.1} s", since.elapsed().as_secs_f64());
    };
    let begun = |name: &str, shape: Shape| {
        let mut run = bed.live(name, shape);
        run.wait_until(SOON, "its signal handlers", |run| (0..shape.processes).all(|n| run.handles_term(n)));
        run
    };
    for (n, delay_ms) in [0, 300, 1_000].into_iter().enumerate() {
        let run = begun(&format!("run-{n}"), Shape { processes: 1 + n % 2, workers: 2 });
        std::thread::sleep(Duration::from_millis(delay_ms));
        end(run, &format!("{delay_ms} ms old"));
    }
    let run = bed.ready("working", Shape { processes: 2, workers: 1 });
    end(run, "at work");
    let run = bed.ready("committing", Shape { processes: 1, workers: 2 });
    bed.cluster.pause_broker(1);
    std::thread::sleep(Duration::from_millis(500));
    end(run, "whose broker hangs");
    let run = begun("waiting", Shape { processes: 2, workers: 1 });
    std::thread::sleep(Duration::from_secs(2));
    end(run, "that waits for a broker");
    bed.cluster.resume_broker(1);
    let mut run = bed.ready("last", Shape::ONE);
    let n = bed.produce(0..40);
    bed.await_normalized(&mut run, n);
    bed.stop(run);
}

#[test]
fn a_topic_made_anew_is_refused_even_if_it_has_outgrown_the_checkpoint() {
    let bed = Bed::new();
    let mut run = bed.ready("first", Shape::ONE);
    let n = bed.produce(0..40);
    bed.await_normalized(&mut run, n);
    // While it is read.
    answer(bed.admin().delete_topics(&[TOPIC], &AdminOptions::new())).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    succeed(logster(&["topics", "create", "--kafka", bed.cluster.brokers()]));
    bed.produce(0..120);
    let ended = run.end(SOON);
    assert_eq!(ended[0].code, Some(1), "{}", run.text(0));
    assert!(["does not exist any more", "is gone", "deleted and made anew"].iter().any(|w| run.text(0).contains(w)));
    // And at the next start.
    let said = bed.refused("second");
    assert!(said.contains("a topic was deleted and made anew: its id is"), "{said}");
    assert!(said.contains(TOPIC) && said.contains("name a new job (checkpoint.job)"), "{said}");
    let job = ["--kafka", bed.cluster.brokers(), "--until-end", "--set", "checkpoint.job=fresh"];
    let mut fresh = Run::start(bed.dir.path(), "fresh", Shape::ONE, &job);
    assert_eq!(fresh.end(SOON)[0].code, Some(0), "{}", fresh.text(0));
    // And what the first run has read of the new log before it noticed.
    assert!(Outputs::of_topics(&bed.cluster.config()).count(OutputTopic::Normalized) >= n + 120);
}

#[test]
fn a_log_cut_below_the_checkpoint_is_refused() {
    let bed = Bed::new();
    let mut run = bed.ready("first", Shape::ONE);
    let n = bed.produce(0..40);
    bed.await_normalized(&mut run, n);
    bed.stop(run);
    bed.produce(40..80);
    let mut list = TopicPartitionList::new();
    (0..RawTopic::PARTITIONS as i32).for_each(|n| list.add_partition_offset(TOPIC, n, Offset::End).unwrap());
    answer(bed.admin().delete_records(&list, &AdminOptions::new())).unwrap();
    let said = bed.refused("second");
    assert!(said.contains("the log begins at offset") && said.contains("retention has deleted records"), "{said}");
    assert!(said.contains("name a new job (checkpoint.job)"), "{said}");
}

#[test]
fn a_partition_added_to_a_running_job_is_taken_in_by_a_restart() {
    let bed = Bed::new();
    let mut run = bed.ready("run", Shape { processes: 1, workers: 2 });
    let n = bed.produce(0..40);
    bed.await_normalized(&mut run, n);
    let more = RawTopic::PARTITIONS as usize + 3;
    answer(bed.admin().create_partitions([&NewPartitions::new(TOPIC, more)], &AdminOptions::new())).unwrap();
    let ended = run.end(Duration::from_secs(20));
    assert_eq!(ended[0].code, Some(1), "{}", run.text(0));
    let want = format!("topic \"{TOPIC}\" has {more} partitions now, 6 are read; exiting so that the supervisor");
    assert!(run.text(0).contains(&want), "{}", run.text(0));
    let m = bed.produce(100..200);
    run.restart();
    run.wait_until(SOON, "the first commit", |run| run.is_ready());
    bed.await_normalized(&mut run, n + m);
    bed.stop(run);
    let by_partition = |p: i32| {
        read_committed(&bed.cluster.config(), TOPIC, End::Stable, SOON).unwrap().iter().any(|r| r.partition == p)
    };
    assert!((6..more as i32).any(by_partition), "records went to the new partitions");
}

/// Whether this machine lets us mount; says so if not.
fn mount(size: &str, at: &Path) -> bool {
    std::fs::create_dir_all(at).unwrap();
    let options = format!("size={size}");
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
    let mounted = mounted.is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: it needs a small file system, and mount refused (root only)");
    }
    mounted
}

/// Unmounts when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_under_the_outputs_ends_the_run_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    if !mount("256k", &out) {
        return;
    }
    let _mounted = Mounted(&out);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst");
    let output = logster(&["run", "--input", demo, "--out", out.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.contains("normalized-endpoint-events.ndjson"), "{said}");
}

#[test]
#[ignore = "a minute: part of `make chaos`"]
fn a_full_disk_under_the_broker_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    if !mount("300m", &disk) {
        return;
    }
    let _mounted = Mounted(&disk);
    let input = crate::input(dir.path(), crate::SHORT);
    let want = crate::run_files(&input, &dir.path().join("undisturbed"), &["-w", "1"]);
    let data = format!("log.dirs={}", disk.join("data").display());
    let cluster = Cluster::start_with(1, &[&data]);
    crate::prepare(cluster.brokers(), &input);
    let filler = disk.join("filler");
    let args = ["--kafka", cluster.brokers(), "--until-end", "--set", "input.arrival=create"];
    let mut run = Run::start(dir.path(), "run", Shape::ONE, &args);
    run.wait_until(SOON, "the first commit", |run| run.is_ready());
    // As a log of something else would.
    let zeros = vec![0; 1 << 20];
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&zeros).is_ok() {}
    let ended = run.end(Duration::from_secs(60));
    assert_eq!(ended[0].code, Some(1), "{}", run.text(0));
    println!("disk full: {}", ended[0].said);
    drop(file);
    std::fs::remove_file(filler).unwrap();
    // A broker whose only disk has failed ends by itself.
    if crate::process::listens(cluster.brokers()) {
        cluster.kill_broker(1);
    }
    cluster.start_broker(1);
    run.restart();
    assert_eq!(run.end(Duration::from_secs(120))[0].code, Some(0), "{}", run.text(0));
    want.assert_same("after a full disk", &Outputs::of_topics(&cluster.config()));
}

/// Passes bytes on to a broker and back, each piece so much later: late, but as many a second as before.
fn slow_link(port: u16, broker: String, delay_ms: &'static AtomicU64) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            let (caller, Ok(callee)) = (caller.unwrap(), TcpStream::connect(&broker)) else { continue };
            for (mut from, mut to) in [(caller.try_clone().unwrap(), callee.try_clone().unwrap()), (callee, caller)] {
                let (put, take) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(1 << 12);
                std::thread::spawn(move || {
                    let mut buffer = [0; 1 << 16];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
                        if put.send((due, buffer[..read].to_vec())).is_err() {
                            break;
                        }
                    }
                });
                std::thread::spawn(move || {
                    for (due, piece) in take {
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        if to.write_all(&piece).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
}

/// A broker that answers slowly delays; one that does not answer for longer than a transaction may take ends the run,
/// and nothing shows.
#[test]
#[ignore = "a minute: part of `make chaos`"]
fn a_slow_broker_delays_and_nothing_else() {
    static DELAY_MS: AtomicU64 = AtomicU64::new(0);
    let dir = tempfile::tempdir().unwrap();
    let input = crate::input(dir.path(), crate::SHORT);
    let want = crate::run_files(&input, &dir.path().join("undisturbed"), &["-w", "1"]);
    let port = crate::process::free_port();
    let cluster = Cluster::start_with(1, &[&format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}")]);
    slow_link(port, cluster.brokers().to_owned(), &DELAY_MS);
    let through = format!("127.0.0.1:{port}");
    crate::prepare(&through, &input);
    let args = ["--kafka", &through, "--until-end", "--set", "input.arrival=create"];
    DELAY_MS.store(100, Ordering::Relaxed);
    let mut run = Run::start(dir.path(), "run", Shape { processes: 1, workers: 2 }, &args);
    run.wait_until(SOON, "the first commits", |run| run.metric("logster_epoch_commits_total") > 3.0);
    let slow = run.metric("logster_epoch_commit_seconds_sum") / run.metric("logster_epoch_commit_seconds_count");
    println!("every packet 100 ms late: commits take {slow:.2} s on average");
    assert!(run.look().is_empty() && slow > 0.2, "{slow} {}", run.text(0));
    DELAY_MS.store(30_000, Ordering::Relaxed);
    let ended = run.end(SOON);
    assert_eq!(ended[0].code, Some(1), "{}", run.text(0));
    println!("every packet 30 s late: {}", ended[0].said);
    DELAY_MS.store(0, Ordering::Relaxed);
    run.restart();
    assert_eq!(run.end(Duration::from_secs(120))[0].code, Some(0), "{}", run.text(0));
    want.assert_same("after a slow broker", &Outputs::of_topics(&cluster.config()));
}

/// The clock that stamps arrivals steps an hour ahead, and back: every record is still published and every window
/// judged, those of the hour in the backfill, since they arrive "late".
#[test]
fn a_step_of_the_brokers_clock_moves_windows_to_the_backfill() {
    const HOUR: i64 = 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst");
    let text = zstd::decode_all(std::fs::File::open(demo).unwrap()).unwrap();
    let (mut plain, mut stepped) = (String::new(), String::new());
    for line in std::str::from_utf8(&text).unwrap().lines() {
        let at = line.find("\"@timestamp\":\"").unwrap() + 14;
        let ts = time::parse(&line[at..at + 24]).unwrap();
        let minute: u32 = line[at + 14..at + 16].parse().unwrap();
        let step = if (4..8).contains(&minute) { HOUR } else { 0 };
        for (text, ts) in [(&mut plain, ts), (&mut stepped, ts + step)] {
            text.push_str(&format!("{{\"ts\":{ts},{}\n", &line[1..]));
        }
    }
    let play = |name: &str, text: String| {
        let input = dir.path().join(format!("{name}.ndjson"));
        std::fs::write(&input, text).unwrap();
        crate::run_files(&input, &dir.path().join(name), &["-w", "2"])
    };
    let (plain, stepped) = (play("plain", plain), play("stepped", stepped));
    let topic = OutputTopic::Normalized;
    assert_eq!((stepped.count(topic), stepped.count(OutputTopic::DeadLetters)), (plain.count(topic), 0));
    let windows = |outputs: &Outputs| {
        let all = outputs.keys(OutputTopic::Results).flat_map(|(_, records)| records);
        let parsed = all.map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
        parsed
            .map(|r| {
                let window = format!("{} {}", r["endpoint_id"], r["window_end"]);
                (window, r["backfill"] == true)
            })
            .collect::<BTreeMap<_, _>>()
    };
    let (plain, stepped) = (windows(&plain), windows(&stepped));
    let missing: Vec<_> = plain.keys().filter(|window| !stepped.contains_key(*window)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(plain.values().all(|backfill| !backfill) && stepped.values().any(|backfill| *backfill));
}
