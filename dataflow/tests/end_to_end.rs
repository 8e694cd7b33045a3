//! The whole path through the real binary: any split into workers and processes, files or a real broker, gives
//! the same records; and so does a run that is killed again and again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logster_schema::topics::TRANSITIONS_TOPIC;
use logster_schema::{Alert, AlertStatus, InputTopic, OutputTopic};
use logster_sinks::client::KafkaConfig;
use logster_sinks::reader::{End, read_committed};
use logster_sinks::testkit::Cluster;

/// Records of one output topic by key, each key's in order; what is written by raw offset (normalized events, dead
/// letters) by key and raw topic, since the topics of one host have no common order.
type Outputs = BTreeMap<OutputTopic, BTreeMap<String, Vec<String>>>;

fn logster(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(args).args(["--set", "http.enabled=false", "--set", "log.level=warn"]);
    command.stdin(Stdio::null());
    command
}

fn succeed(mut command: Command) {
    let output = command.output().expect("logster starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn file(outputs: &mut Outputs, topic: OutputTopic, key: Option<&str>, value: &[u8]) {
    let value = String::from_utf8(value.to_vec()).expect("outputs are UTF-8");
    let source = match topic {
        OutputTopic::Normalized | OutputTopic::DeadLetters => {
            let parsed: serde_json::Value = serde_json::from_str(&value).expect("outputs are JSON");
            parsed["source"].as_str().or(parsed["topic"].as_str()).unwrap_or_default().to_owned()
        }
        OutputTopic::Results | OutputTopic::Alerts => String::new(),
    };
    let key = format!("{} {source}", key.unwrap_or("-"));
    outputs.entry(topic).or_default().entry(key).or_default().push(value);
}

fn files(dirs: &[&Path]) -> Outputs {
    let mut outputs = Outputs::new();
    for dir in dirs {
        for topic in OutputTopic::ALL {
            let text =
                std::fs::read_to_string(dir.join(format!("{}.ndjson", topic.name()))).expect("every topic's file");
            for line in text.lines() {
                let record: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
                let raw: BTreeMap<&str, &serde_json::value::RawValue> = serde_json::from_str(line).expect("an object");
                file(&mut outputs, topic, record["key"].as_str(), raw["value"].get().as_bytes());
            }
        }
    }
    outputs
}

fn topics(kafka: &KafkaConfig) -> Outputs {
    let mut outputs = Outputs::new();
    for topic in OutputTopic::ALL {
        let mut records =
            read_committed(kafka, topic.name(), End::Stable, Duration::from_secs(20)).expect("the topic can be read");
        records.sort_by_key(|r| (r.partition, r.offset));
        for record in records {
            let key = record.key.map(|key| String::from_utf8(key).expect("keys are UTF-8"));
            file(&mut outputs, topic, key.as_deref(), &record.value.expect("outputs have values"));
        }
    }
    outputs
}

/// Says where two runs differ, briefly.
fn assert_same(what: &str, want: &Outputs, got: &Outputs) {
    for topic in OutputTopic::ALL {
        let none = BTreeMap::new();
        let (want, got) = (want.get(&topic).unwrap_or(&none), got.get(&topic).unwrap_or(&none));
        let count = |o: &BTreeMap<String, Vec<String>>| o.values().map(Vec::len).sum::<usize>();
        for (key, records) in want {
            let other = got.get(key).map_or(&[][..], Vec::as_slice);
            if records != other {
                let at = records.iter().zip(other).position(|(a, b)| a != b).unwrap_or(records.len().min(other.len()));
                panic!(
                    "{what}: {} of key {key} differ at {at} ({} and {} records)\nwant {:?}\ngot  {:?}",
                    topic.name(),
                    records.len(),
                    other.len(),
                    records.get(at),
                    other.get(at)
                );
            }
        }
        assert_eq!(count(want), count(got), "{what}: {} has keys that it should not", topic.name());
    }
}

/// Captures to play: some of the corpus where it is there, else the demo's.
fn captures() -> Vec<PathBuf> {
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst"));
    let Some(corpus) = std::env::var_os("LOGSTER_CORPUS").map(PathBuf::from).filter(|c| c.join("windows").is_dir())
    else {
        eprintln!("LOGSTER_CORPUS is not there: playing the demo's capture");
        return vec![demo];
    };
    [
        "windows/otrf-empire_uac_shellapi_fodhelper.ndjson.zst",
        "windows/otrf-covenant_psremoting_command.ndjson.zst",
        "windows/otrf-empire_launcher_vbs.ndjson.zst",
        "linux/lin-d07-cron_beacon.ndjson.zst",
    ]
    .map(|name| corpus.join(name))
    .into_iter()
    .filter(|path| path.is_file())
    .collect()
}

/// What shippers, and whoever forges their records, may send: [`HOSTILE_REFUSED`] of these become dead letters, the
/// others events.
fn hostile() -> Vec<u8> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "A".repeat(1 << 20);
    let values: [(&str, Vec<u8>); 14] = [
        // Refused: no host's, no text, no JSON, too deep, too large, no time that exists.
        ("sysmon-logs", br#"{"@timestamp":"2020-09-04T07:28:20Z"}"#.to_vec()),
        ("linux-auditd-logs", b"[1,2,3]".to_vec()),
        ("linux-auditd-logs", br#"{"message":7,"host":"h"}"#.to_vec()),
        ("sysmon-logs", deep.clone().into_bytes()),
        ("linux-auditd-logs", format!(r#"{{"message":"x","host":"h","deep":{deep}}}"#).into_bytes()),
        ("linux-ebpf-file-logs", b"{\"message\":\"\xff\xfe\x80\",\"host\":\"h\"}".to_vec()),
        (
            "linux-ebpf-process-logs",
            br#"{"message":"[EXEC] pid=1 ppid=1 uid=0 x","timestamp":NaN,"host":"h"}"#.to_vec(),
        ),
        ("linux-auditd-logs", format!(r#"{{"message":"{long}{long}","host":"large"}}"#).into_bytes()),
        // Taken.
        ("linux-auditd-logs", format!(r#"{{"message":"{}","host":"large"}}"#, &long[..long.len() / 2]).into_bytes()),
        ("linux-auditd-logs", br#"{"message":"x","host":"old","@timestamp":"0001-01-01T00:00:00Z"}"#.to_vec()),
        ("linux-auditd-logs", br#"{"message":"x","host":"new","@timestamp":"9999-12-31T23:59:59Z"}"#.to_vec()),
        ("linux-auditd-logs", br#"{"message":"x","host":"negative","timestamp":-1e300}"#.to_vec()),
        ("linux-ebpf-network-logs", br#"{"message":"[CONNECT] pid=4 x -> [::1]:0","host":""}"#.to_vec()),
        (
            "linux-ebpf-process-logs",
            br#"{"message":"","message":"[EXEC] pid=4 ppid=1 uid=0 tmux: server","host":null}"#.to_vec(),
        ),
    ];
    let mut lines = Vec::new();
    for (n, (topic, value)) in values.into_iter().enumerate() {
        lines.extend(format!(r#"{{"topic":"{topic}","ts":{},"value":"#, 1_599_204_500_000 + n).bytes());
        lines.extend(value);
        lines.extend(b"}\n");
    }
    lines
}

/// Dead letters of [`hostile`].
const HOSTILE_REFUSED: usize = 8;

/// A directory with the captures and one of nothing but bad lines.
fn input(dir: &Path) -> PathBuf {
    let input = dir.join("in");
    std::fs::create_dir_all(&input).unwrap();
    for capture in captures() {
        std::os::unix::fs::symlink(&capture, input.join(capture.file_name().unwrap())).unwrap();
    }
    std::fs::write(input.join("hostile.ndjson"), hostile()).unwrap();
    input
}

fn run_files(input: &Path, out: &Path, extra: &[&str]) -> Outputs {
    let mut command = logster(&["run", "--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    command.args(extra);
    succeed(command);
    files(&[out])
}

#[test]
fn any_split_and_either_edge_give_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let input = input(dir.path());
    decide(&input, &run_files(&input, &dir.path().join("undecided"), &["-w", "1"]));
    let one = run_files(&input, &dir.path().join("1x1"), &["-w", "1"]);
    assert_decided(&one);
    let count = |topic| one.get(&topic).map_or(0, |keys| keys.values().map(Vec::len).sum::<usize>());
    assert!(count(OutputTopic::Normalized) > 1000 && count(OutputTopic::Results) > 20);
    assert!(count(OutputTopic::Alerts) > 0, "the captures hold attacks");
    assert_eq!(count(OutputTopic::DeadLetters), HOSTILE_REFUSED + 1, "and one of the decisions");
    assert_same("1x4", &one, &run_files(&input, &dir.path().join("1x4"), &["-w", "4"]));

    // Two processes over TCP.
    let outs = [dir.path().join("2x2-0"), dir.path().join("2x2-1")];
    let ports = [free_port(), free_port()];
    let hosts = dir.path().join("hosts.txt");
    std::fs::write(&hosts, format!("127.0.0.1:{}\n127.0.0.1:{}\n", ports[0], ports[1])).unwrap();
    let processes: Vec<Child> = outs
        .iter()
        .enumerate()
        .map(|(index, out)| {
            let mut command = logster(&["run", "--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()]);
            command.args(["-w", "2", "-n", "2", "-p", &index.to_string(), "--hostfile", hosts.to_str().unwrap()]);
            command.stderr(Stdio::piped()).spawn().expect("logster starts")
        })
        .collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_same("2x2", &one, &files(&[&outs[0], &outs[1]]));

    // Through a real broker.
    let cluster = Cluster::start();
    let brokers = cluster.brokers();
    prepare(brokers, &input);
    succeed(kafka_run(brokers, 2));
    assert_same("kafka", &one, &topics(&KafkaConfig::plain(brokers)));

    // Raw in = normalized + dead letters; of the four decisions one is a dead letter.
    let raw: usize = InputTopic::ALL
        .iter()
        .map(|t| {
            read_committed(&KafkaConfig::plain(brokers), t.name(), End::Stable, Duration::from_secs(20)).unwrap().len()
        })
        .sum();
    assert_eq!(raw - 3, count(OutputTopic::Normalized) + count(OutputTopic::DeadLetters));
}

/// Ten thousand endpoints that nobody has seen before, within a second: all answered, in bounded memory.
#[test]
fn ten_thousand_hosts_a_second() {
    const HOSTS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        let ts = 1_599_204_500_000 + n as u64 / 10;
        let message = format!("[EXEC] pid={n} ppid=1 uid=0 sh");
        format!(r#"{{"topic":"linux-ebpf-process-logs","ts":{ts},"value":{{"message":"{message}","host":"h-{n}"}}}}"#)
    };
    let (input, out) = (dir.path().join("flood.ndjson"), dir.path().join("out"));
    std::fs::write(&input, (0..HOSTS).map(|n| line(n) + "\n").collect::<String>()).unwrap();
    let mut child = logster(&["run", "--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .spawn()
        .expect("logster starts");
    let mut peak_kb = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_kb = peak_kb.max(peak.unwrap_or(0_u64));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    let outputs = files(&[&out]);
    assert_eq!(outputs[&OutputTopic::Normalized].len(), HOSTS);
    let results = &outputs[&OutputTopic::Results];
    assert_eq!(results.len(), HOSTS);
    assert!(results.values().all(|of_host| of_host.len() == 6), "a record lies in six windows");
    assert!((10_000..1_000_000).contains(&peak_kb), "{peak_kb} kB");
}

/// Puts an analyst's decisions beside the captures, as the raw topics' neighbour would hold them: the first alert is
/// acknowledged and then called a false positive, somebody asks for what is not allowed, and a line is no decision.
fn decide(input: &Path, undecided: &Outputs) {
    let alerts = undecided[&OutputTopic::Alerts].values().flatten();
    let alert = alerts.map(|text| serde_json::from_str::<Alert>(text).unwrap()).min_by_key(|a| a.created_at).unwrap();
    let transition = |seconds: i64, to: &str| {
        let Alert { alert_id, tenant_id, endpoint_id, created_at, .. } = &alert;
        serde_json::json!({"topic": TRANSITIONS_TOPIC, "ts": created_at + seconds * 1_000, "value": {
            "alert_id": alert_id, "tenant_id": tenant_id, "endpoint_id": endpoint_id, "to": to, "actor": "ada"}})
        .to_string()
    };
    let refused =
        format!(r#"{{"topic":"{TRANSITIONS_TOPIC}","ts":{},"value":{{"to":"open"}}}}"#, alert.created_at + 31_000);
    let lines =
        [transition(30, "acknowledged"), refused, transition(32, "open"), transition(33, "false_positive")].join("\n");
    std::fs::write(input.join("decisions.ndjson"), lines + "\n").unwrap();
}

/// The first alert ends as its analyst said, with every step kept.
fn assert_decided(outputs: &Outputs) {
    let alerts = outputs[&OutputTopic::Alerts].values().flatten();
    let alerts = alerts.map(|text| serde_json::from_str::<Alert>(text).unwrap());
    let last = alerts.filter(|a| !a.transitions.is_empty()).max_by_key(|a| a.revision).expect("a decided alert");
    assert_eq!(last.status, AlertStatus::FalsePositive);
    let steps: Vec<_> = last.transitions.iter().map(|t| (t.from, t.to, t.actor.as_str())).collect();
    let want = [
        (AlertStatus::Open, AlertStatus::Acknowledged, "ada"),
        (AlertStatus::Acknowledged, AlertStatus::FalsePositive, "ada"),
    ];
    assert_eq!(steps, want);
}

/// kill -9 at seeded moments, each time with another number of workers: a reader sees nothing of it.
#[test]
fn killed_again_and_again_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let input = input(dir.path());
    let undisturbed = run_files(&input, &dir.path().join("whole"), &["-w", "1"]);
    let cluster = Cluster::start();
    let brokers = cluster.brokers();
    prepare(brokers, &input);
    let mut seed = 0x5eed_u64;
    let mut kills = 0;
    for workers in [2, 1, 3, 2, 4, 1, 2, 3] {
        let mut process = kafka_run(brokers, workers).stderr(Stdio::null()).spawn().expect("logster starts");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let until = Instant::now() + Duration::from_millis(300 + (seed >> 33) % 2_500);
        let mut ended = false;
        while Instant::now() < until && !ended {
            ended = process.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(10));
        }
        if !ended {
            kills += 1;
            process.kill().unwrap();
        }
        process.wait().unwrap();
    }
    succeed(kafka_run(brokers, 2));
    assert!(kills >= 2, "the runs ended before they could be killed");
    eprintln!("{kills} kills");
    assert_same("after kills", &undisturbed, &topics(&KafkaConfig::plain(brokers)));
}

/// `--until-end` ends an input, not the job: what is produced later is judged by a later run.
#[test]
fn a_second_run_goes_on_where_the_first_ended() {
    let first = captures().remove(0);
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst"));
    if first == demo {
        eprintln!("needs a capture older than the demo's: skipped without the corpus");
        return;
    }
    let cluster = Cluster::start();
    let brokers = cluster.brokers();
    prepare(brokers, &first);
    succeed(kafka_run(brokers, 2));
    let results = |outputs: &Outputs| outputs.get(&OutputTopic::Results).map_or(0, BTreeMap::len);
    let before = topics(&KafkaConfig::plain(brokers));
    assert!(results(&before) > 0);
    succeed(logster(&["produce", "--kafka", brokers, "--input", demo.to_str().unwrap()]));
    succeed(kafka_run(brokers, 1));
    let after = topics(&KafkaConfig::plain(brokers));
    assert_eq!(results(&after), results(&before) + 9, "the demo's nine hosts have results now");
    assert!(after[&OutputTopic::Alerts].keys().any(|key| key.starts_with("default:fin-ws-014")));
}

fn prepare(brokers: &str, input: &Path) {
    succeed(logster(&["topics", "create", "--kafka", brokers, "--set", "input.arrival=create"]));
    succeed(logster(&["produce", "--kafka", brokers, "--input", input.to_str().unwrap()]));
}

fn kafka_run(brokers: &str, workers: u32) -> Command {
    let mut command = logster(&["run", "--kafka", brokers, "--until-end", "--set", "input.arrival=create"]);
    command.args(["-w", &workers.to_string()]);
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
