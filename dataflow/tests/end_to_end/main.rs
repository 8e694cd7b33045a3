//! The whole path through the real binary: any split into workers and processes, files or a real broker, gives
//! the same records; and so does a run that is killed again and again.

mod chaos;
mod faults;
mod feedback;
mod live;
mod models;
mod outputs;
mod overload;
mod process;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use logster_schema::topics::TRANSITIONS_TOPIC;
use logster_schema::{Alert, AlertStatus, InputTopic, OutputTopic};
use logster_sinks::client::KafkaConfig;
use logster_sinks::reader::{End, read_committed};
use logster_sinks::testkit::Cluster;
use serde_json::Value;

use crate::outputs::Outputs;
use crate::process::{free_port, kafka_run, logster, prepare, succeed};

/// Recordings of the corpus that a second or two play.
const SHORT: &[&str] = &[
    "windows/otrf-empire_uac_shellapi_fodhelper",
    "windows/otrf-covenant_psremoting_command",
    "windows/otrf-empire_launcher_vbs",
    "linux/lin-d07-cron_beacon",
];
/// Those and larger ones.
const LONG: &[&str] = &[
    "windows/otrf-empire_uac_shellapi_fodhelper",
    "windows/otrf-covenant_psremoting_command",
    "windows/otrf-empire_launcher_vbs",
    "windows/otrf-covenant_dcom_iertutil_dll_hijack",
    "windows/otrf-empire_dcom_shellwindows_stager",
    "linux/lin-d04-suid_privesc_nc_fifo",
    "linux/lin-d07-cron_beacon",
    "linux/lin-d13-cmdi_python_b64_dropper",
];

/// The recordings where the corpus is there, else the demo's.
fn captures(names: &[&str]) -> Vec<PathBuf> {
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst"));
    let Some(corpus) = std::env::var_os("LOGSTER_CORPUS").map(PathBuf::from).filter(|c| c.join("windows").is_dir())
    else {
        eprintln!("LOGSTER_CORPUS is not there: playing the demo's capture");
        return vec![demo];
    };
    let paths = names.iter().map(|name| corpus.join(format!("{name}.ndjson.zst")));
    paths.filter(|path| path.is_file()).collect()
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
fn input(dir: &Path, names: &[&str]) -> PathBuf {
    let input = dir.join("in");
    std::fs::create_dir_all(&input).unwrap();
    for capture in captures(names) {
        std::os::unix::fs::symlink(&capture, input.join(capture.file_name().unwrap())).unwrap();
    }
    std::fs::write(input.join("hostile.ndjson"), hostile()).unwrap();
    input
}

fn run_files(input: &Path, out: &Path, extra: &[&str]) -> Outputs {
    let mut command = logster(&["run", "--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    command.args(extra);
    succeed(command);
    Outputs::of_files(&[out])
}

#[test]
fn any_split_and_either_edge_give_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let input = input(dir.path(), SHORT);
    decide(&input, &run_files(&input, &dir.path().join("undecided"), &["-w", "1"]));
    let one = run_files(&input, &dir.path().join("1x1"), &["-w", "1"]);
    assert_decided(&one);
    let count = |topic| one.count(topic);
    assert!(count(OutputTopic::Normalized) > 1000 && count(OutputTopic::Results) > 20);
    assert!(count(OutputTopic::Alerts) > 0, "the captures hold attacks");
    assert_eq!(count(OutputTopic::DeadLetters), HOSTILE_REFUSED + 1, "and one of the decisions");
    assert_rules_found_once(&one);
    one.assert_same("1x4", &run_files(&input, &dir.path().join("1x4"), &["-w", "4"]));

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
    one.assert_same("2x2", &Outputs::of_files(&[&outs[0], &outs[1]]));

    // Through a real broker.
    let cluster = Cluster::start();
    let brokers = cluster.brokers();
    prepare(brokers, &input);
    succeed(kafka_run(brokers, 2));
    one.assert_same("kafka", &Outputs::of_topics(&KafkaConfig::plain(brokers)));

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
    let outputs = Outputs::of_files(&[&out]);
    assert_eq!(outputs.keys(OutputTopic::Normalized).count(), HOSTS);
    assert_eq!(outputs.keys(OutputTopic::Results).count(), HOSTS);
    assert!(outputs.keys(OutputTopic::Results).all(|(_, of_host)| of_host.len() == 6), "a record lies in six windows");
    assert!((10_000..1_000_000).contains(&peak_kb), "{peak_kb} kB");
}

/// Puts an analyst's decisions beside the captures, as the raw topics' neighbour would hold them: the first alert is
/// acknowledged and then called a false positive, somebody asks for what is not allowed, and a line is no decision.
fn decide(input: &Path, undecided: &Outputs) {
    let alerts = undecided.keys(OutputTopic::Alerts).flat_map(|(_, records)| records);
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
    let alerts = outputs.keys(OutputTopic::Alerts).flat_map(|(_, records)| records);
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

/// Each match is new in one window, and an alert names the rule that raised it.
fn assert_rules_found_once(outputs: &Outputs) {
    let parse = |topic| {
        let texts: Vec<&String> = outputs.keys(topic).flat_map(|(_, records)| records).collect();
        texts.into_iter().map(|text| serde_json::from_str::<Value>(text).unwrap()).collect::<Vec<_>>()
    };
    let (mut new, mut shown) = (0, 0);
    for result in parse(OutputTopic::Results) {
        assert!(result["ruleset"].is_string());
        for rule in result["rules"].as_array().into_iter().flatten() {
            shown += rule["count"].as_u64().unwrap();
            new += rule["new"].as_u64().unwrap_or(0);
        }
    }
    assert!(new > 0, "the captures hold what the rules look for");
    assert_eq!(shown, new * 6, "an event is in six windows, and new in one");
    let named = |alert: &Value| {
        let high = alert["rules"].as_array().is_some_and(|rules| rules.iter().any(|rule| rule["level"] == "high"));
        high && alert["reason"].as_str().unwrap().contains(": rule \"")
    };
    assert!(parse(OutputTopic::Alerts).iter().any(named));
}

/// A partition that was empty, or at its end, when `--until-end` closed all windows may get older records later: they
/// are judged by a later run, in the backfill.
#[test]
fn what_is_produced_after_the_end_of_the_input_is_judged_however_old_it_is() {
    const BEGIN: i64 = 1_773_738_000_000;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start();
    let path = dir.path().join("in.ndjson");
    let lines = |hosts: std::ops::Range<usize>, from_ms: i64| {
        let line = |n: usize, host: usize| {
            let ts = from_ms + n as i64 * 1_000;
            let at = logster_schema::time::format(ts);
            format!(
                "{{\"topic\":\"linux-ebpf-file-logs\",\"ts\":{ts},\"value\":{{\"@timestamp\":\"{at}\",\"host\":{{\"name\":\
                 \"h{host}\"}},\"log_source\":\"linux-ebpf-file\",\"message\":\"{} {} [FILE]    pid=7   tar              \
                 flags=O_RDONLY   /etc/passwd\"}}}}\n",
                &at[..10],
                &at[11..19]
            )
        };
        (0..60).flat_map(|n| hosts.clone().map(move |host| line(n, host))).collect::<String>()
    };
    let play = |lines: String, workers: u32| {
        std::fs::write(&path, lines).unwrap();
        let produced = ["produce", "--kafka", cluster.brokers(), "--input", path.to_str().unwrap()];
        succeed(logster(&produced));
        succeed(kafka_run(cluster.brokers(), workers));
        let outputs = Outputs::of_topics(&KafkaConfig::plain(cluster.brokers()));
        let results = outputs.keys(OutputTopic::Results).flat_map(|(_, records)| records);
        let results = results.map(|text| serde_json::from_str::<Value>(text).unwrap());
        let windows = results.map(|r| {
            let host: usize = r["endpoint_id"].as_str().unwrap()[1..].parse().unwrap();
            (host, r["backfill"] == true, r["num_events"].as_u64().unwrap())
        });
        (outputs.count(OutputTopic::Normalized), windows.collect::<Vec<_>>())
    };
    succeed(logster(&["topics", "create", "--kafka", cluster.brokers(), "--set", "input.arrival=create"]));
    let first = play(lines(0..1, BEGIN), 2);
    // The first host's partition again, and others that were empty.
    let second = play(lines(0..20, BEGIN - 3_600_000), 1);
    assert_eq!((first.0, second.0), (60, 60 + 20 * 60));
    let live: Vec<_> = second.1.iter().filter(|(_, backfill, _)| !backfill).cloned().collect();
    assert_eq!(live, first.1, "what was judged stays");
    for host in 0..20 {
        let shown =
            |of: &[(usize, bool, u64)]| of.iter().filter(|(h, b, _)| *h == host && *b).map(|(.., n)| n).sum::<u64>();
        assert_eq!(shown(&second.1), 60 * 6, "each record of host {host} lies in six windows");
    }
}

/// `--until-end` ends an input, not the job: what is produced later is judged by a later run.
#[test]
fn a_second_run_goes_on_where_the_first_ended() {
    let first = captures(SHORT).remove(0);
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst"));
    if first == demo {
        eprintln!("needs a capture older than the demo's: skipped without the corpus");
        return;
    }
    let cluster = Cluster::start();
    let brokers = cluster.brokers();
    prepare(brokers, &first);
    succeed(kafka_run(brokers, 2));
    let results = |outputs: &Outputs| outputs.keys(OutputTopic::Results).count();
    let before = Outputs::of_topics(&KafkaConfig::plain(brokers));
    assert!(results(&before) > 0);
    succeed(logster(&["produce", "--kafka", brokers, "--input", demo.to_str().unwrap()]));
    succeed(kafka_run(brokers, 1));
    let after = Outputs::of_topics(&KafkaConfig::plain(brokers));
    assert_eq!(results(&after), results(&before) + 9, "the demo's nine hosts have results now");
    assert!(after.keys(OutputTopic::Alerts).any(|(key, _)| key.starts_with("default:fin-ws-014")));
}
