//! Spec 004 field by field, hostile input, and agreement with slow oracles: serde_json, the specified regexes.

use logster_schema::Lane;
use serde_json::{Value as Json, json};

use super::*;

/// 2026-03-20T00:00:00Z
const ARRIVAL: TimeMs = 1_773_964_800_000;

fn config() -> NormalizeConfig {
    NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 4 << 20 }
}

fn record(topic: RawTopic, payload: &[u8]) -> RawRecord<'_> {
    RawRecord { topic, partition: 2, offset: 41, arrival_ms: ARRIVAL, key: Some(b"k"), payload }
}

fn outcome(topic: RawTopic, payload: &[u8]) -> Outcome {
    Normalizer::new(config()).normalize(&record(topic, payload))
}

/// The accepted event and its record.
#[track_caller]
fn event(topic: RawTopic, payload: &[u8]) -> (Normalized, Json) {
    match outcome(topic, payload) {
        Outcome::Event(event) => {
            let json = serde_json::from_slice(&event.json).expect("the record is JSON");
            (*event, json)
        }
        Outcome::DeadLetter(letter) => panic!("refused: {letter:?}"),
    }
}

#[track_caller]
fn refused(topic: RawTopic, payload: &[u8]) -> DeadLetter {
    match outcome(topic, payload) {
        Outcome::DeadLetter(letter) => *letter,
        Outcome::Event(event) => panic!("accepted: {}", String::from_utf8_lossy(&event.json)),
    }
}

fn sysmon_event(id: Json, data: Json) -> (Normalized, Json) {
    let message = json!({ "@timestamp": "2026-03-20T00:00:00.000Z", "winlog": {
        "computer_name": "WS5", "event_id": id, "event_data": data } });
    event(RawTopic::Sysmon, message.to_string().as_bytes())
}

fn linux_event(topic: RawTopic, message: &str) -> (Normalized, Json) {
    let message = json!({ "@timestamp": "2026-03-20T00:00:00Z", "host": { "name": "a" }, "message": message });
    event(topic, message.to_string().as_bytes())
}

fn fields(event: &Normalized) -> Vec<(Field, &str)> {
    event.observation.activity.fields.iter().collect()
}

const WINLOGBEAT: &str = r#"{
  "@timestamp": "2026-03-18T19:07:15.560Z",
  "winlog": {
    "computer_name": "DESKTOP-1NNIMRR",
    "provider_name": "Microsoft-Windows-Sysmon",
    "event_id": "3",
    "channel": "Microsoft-Windows-Sysmon/Operational",
    "event_data": {
      "SourceIp": "10.0.0.104",
      "SourcePort": "51775",
      "DestinationIp": "104.208.16.88",
      "DestinationPort": "443",
      "Protocol": "tcp",
      "Image": "C:\\Users\\abdullah\\OneDrive.Sync.Service.exe",
      "ProcessGuid": "{96D8290C-d08c-69b9-2a07-000000000700}",
      "ProcessId": "5940",
      "User": "DESKTOP-1NNIMRR\\abdullah",
      "UtcTime": "2026-03-18 19:07:13.512"
    }
  },
  "agent": { "name": "DESKTOP-1NNIMRR", "type": "winlogbeat", "version": "8.17.0" },
  "host": { "name": "desktop-1nnimrr", "os": { "family": "windows", "name": "Windows 10 Pro" } },
  "event": { "code": "3", "provider": "Microsoft-Windows-Sysmon" }
}"#;

#[test]
fn the_winlogbeat_sample() {
    let (event, json) = event(RawTopic::Sysmon, WINLOGBEAT.as_bytes());
    assert_eq!(
        json,
        json!({
            "event_id": "sysmon-logs:2:41", "tenant_id": "default", "endpoint_id": "desktop-1nnimrr",
            "platform": "windows", "event_type": "network", "timestamp": "2026-03-18T19:07:13.512Z",
            "source": "sysmon-logs",
            "data": {
                "source_ip": "10.0.0.104", "source_port": "51775", "dest_ip": "104.208.16.88", "dest_port": "443",
                "protocol": "tcp", "process_guid": "{96D8290C-d08c-69b9-2a07-000000000700}",
                "image": "C:\\Users\\abdullah\\OneDrive.Sync.Service.exe",
            },
        })
    );
    assert_eq!(event.endpoint.key(), "default:desktop-1nnimrr");
    let o = &event.observation;
    assert_eq!((o.activity.kind, o.lane, event.clamped), (Kind::Sysmon(3), Lane::Backfill, true));
    assert_eq!(event.timestamp_ms, 1_773_860_833_512);
    assert_eq!(json["event_id"], o.position.event_id());
    assert_eq!(
        fields(&event),
        [
            (Field::SourceIp, "10.0.0.104"),
            (Field::SourcePort, "51775"),
            (Field::DestinationIp, "104.208.16.88"),
            (Field::DestinationPort, "443"),
            (Field::Protocol, "tcp"),
            (Field::Image, r"C:\Users\abdullah\OneDrive.Sync.Service.exe"),
            (Field::ProcessGuid, "{96d8290c-d08c-69b9-2a07-000000000700}"),
            (Field::ProcessId, "5940"),
            (Field::User, r"DESKTOP-1NNIMRR\abdullah"),
        ]
    );
    assert_eq!(routing_key(RawTopic::Sysmon, WINLOGBEAT.as_bytes()), "default:desktop-1nnimrr");
}

#[test]
fn typed_sysmon_events() {
    let all = json!({
        "ProcessGuid": "{a}", "ProcessId": 5940, "Image": "i", "CommandLine": "c &lt;x&gt;", "User": "-",
        "ParentProcessGuid": "{00000000-0000-0000-0000-000000000000}", "ParentImage": "pi",
        "ParentCommandLine": null, "IntegrityLevel": "High", "CurrentDirectory": "d", "Hashes": "h",
        "TargetFilename": "t", "ScriptBlockText": "s", "ScriptBlockId": 7, "Path": "p", "Signed": true, "Other": "o",
    });
    let (e, json) = sysmon_event(json!(1), all.clone());
    assert_eq!(json["event_type"], "process");
    assert_eq!(
        json["data"],
        json!({
            "process_guid": "{a}", "process_id": 5940, "image": "i", "command_line": "c &lt;x&gt;",
            "parent_guid": "{00000000-0000-0000-0000-000000000000}", "parent_image": "pi",
            "integrity_level": "High", "current_directory": "d", "hashes": "h",
        })
    );
    let f = &e.observation.activity.fields;
    assert_eq!(f.get(Field::CommandLine), Some("c <x>"));
    assert_eq!((f.get(Field::User), f.get(Field::ParentProcessGuid)), (None, None));
    assert_eq!((f.get(Field::Signed), f.get(Field::ProcessId)), (Some("true"), Some("5940")));

    let (_, json) = sysmon_event(json!("11"), all.clone());
    assert_eq!(json["event_type"], "file");
    assert_eq!(json["data"], json!({ "target_filename": "t", "creator_guid": "{a}", "creator_image": "i" }));
    let (_, json) = sysmon_event(json!("4104"), all.clone());
    assert_eq!(json["event_type"], "script");
    assert_eq!(json["data"], json!({ "script_block_text": "s", "script_block_id": "7", "path": "p" }));
    let (_, json) = sysmon_event(json!(10), all.clone());
    assert_eq!(json["event_type"], "process");
    assert_eq!(json["data"], json!({ "sysmon_event_id": 10, "event_data": all }));
}

#[test]
fn the_linux_samples() {
    let audit = r#"{"@timestamp":"2026-03-20T01:58:10.344285+05:00","host":{"name":"agent-linux-01"},"log_source":"audit",
        "message":"type=PATH msg=audit(1773953890.204:50364): item=0 name=\"/run/systemd/ask-password-block/\" inode=5375 cap_frootid=0\u001dOUID=\"root\" OGID=\"root\""}"#;
    let (e, json) = event(RawTopic::Auditd, audit.as_bytes());
    assert_eq!(json["event_type"], "syscall");
    assert_eq!(json["platform"], "linux");
    assert_eq!(json["endpoint_id"], "agent-linux-01");
    assert_eq!(json["timestamp"], "2026-03-19T20:58:10.344Z");
    assert_eq!(json["data"], json!({ "message": serde_json::from_str::<Json>(audit).unwrap()["message"] }));
    assert_eq!(e.observation.activity.kind, Kind::Audit);
    assert_eq!(
        fields(&e),
        [
            (Field::AuditType, "PATH"),
            (Field::AuditSerial, "1773953890.204:50364"),
            (
                Field::AuditText,
                r#"item=0 name="/run/systemd/ask-password-block/" inode=5375 cap_frootid=0 OUID="root" OGID="root""#
            ),
        ]
    );

    let (e, json) = linux_event(
        RawTopic::EbpfProcess,
        "2026-03-20 02:24:50 [EXEC]    pid=35747   ppid=33785   uid=1000  bash             /usr/bin/ls -la",
    );
    assert_eq!(json["event_type"], "process");
    assert_eq!(
        json["data"],
        json!({ "process_id": 35747, "parent_image": "/usr/bin/ppid:33785", "user": "uid:1000",
            "integrity_level": "user", "image": "/usr/bin/ls", "command_line": "/usr/bin/ls -la" })
    );
    assert_eq!(
        (e.observation.activity.kind, fields(&e)),
        (
            Kind::EbpfExec,
            vec![
                (Field::ProcessId, "35747"),
                (Field::Ppid, "33785"),
                (Field::Uid, "1000"),
                (Field::Comm, "bash"),
                (Field::Args, "/usr/bin/ls -la")
            ]
        )
    );
    let (_, json) = linux_event(RawTopic::EbpfProcess, "[EXEC] pid=1 ppid=0 uid=0 init");
    assert_eq!(
        json["data"],
        json!({ "process_id": 1, "parent_image": "/usr/bin/ppid:0", "user": "uid:0", "integrity_level": "root",
            "image": "/usr/bin/init", "command_line": "init" })
    );

    let (e, json) = linux_event(
        RawTopic::EbpfFile,
        "2026-03-20 02:24:27 [FILE]    pid=23256   snapd            flags=O_RDONLY   /var/lib/snapd/active",
    );
    assert_eq!(json["event_type"], "file");
    assert_eq!(
        json["data"],
        json!({ "process_id": 23256, "creator_image": "/usr/bin/snapd", "flags": "O_RDONLY",
            "target_filename": "/var/lib/snapd/active" })
    );
    assert_eq!(e.observation.activity.fields.get(Field::Path), Some("/var/lib/snapd/active"));

    let (e, json) = linux_event(
        RawTopic::EbpfNetwork,
        "2026-03-20 02:24:31 [CONNECT]  pid=35113   rdk:broker-1     -> 10.0.0.106:29092",
    );
    assert_eq!(json["event_type"], "network");
    assert_eq!(
        json["data"],
        json!({ "connection_type": "CONNECT", "process_id": 35113, "image": "/usr/bin/rdk:broker-1",
            "dest_ip": "10.0.0.106", "dest_port": "29092" })
    );
    assert_eq!(e.observation.activity.fields.get(Field::DestinationPort), Some("29092"));

    let (e, json) = linux_event(RawTopic::EbpfNetwork, "[SOCKET]   pid=11370   sshd             AF_UNIX");
    assert_eq!(json["data"], json!({ "process_id": 11370, "image": "/usr/bin/sshd", "socket_type": "AF_UNIX" }));
    assert_eq!(e.observation.activity.kind, Kind::EbpfSocket);

    for topic in [RawTopic::EbpfProcess, RawTopic::EbpfFile, RawTopic::EbpfNetwork] {
        let (e, json) = linux_event(topic, "something else\n");
        assert_eq!(json["data"], json!({ "message": "something else\n" }));
        assert_eq!((e.observation.activity.kind, fields(&e).len()), (Kind::Opaque, 0));
    }
}

#[test]
fn process_names_with_spaces_lose_nothing() {
    let (_, json) = linux_event(
        RawTopic::EbpfFile,
        "2026-11-21 00:21:02 [FILE]    pid=5671    tmux: server     flags=O_RDONLY|O_DIRECTORY /proc/1623/fd",
    );
    assert_eq!(
        json["data"],
        json!({ "process_id": 5671, "creator_image": "/usr/bin/tmux: server", "flags": "O_RDONLY|O_DIRECTORY",
            "target_filename": "/proc/1623/fd" })
    );
    let (_, json) = linux_event(RawTopic::EbpfNetwork, "[ACCEPT] pid=1 tmux: server     -> [::]:22");
    assert_eq!(
        json["data"],
        json!({ "connection_type": "ACCEPT", "process_id": 1, "image": "/usr/bin/tmux: server", "dest_ip": "[::]",
            "dest_port": "22" })
    );
    let (e, json) = linux_event(RawTopic::EbpfNetwork, "[SOCKET]   pid=11370   tmux: server     AF_UNIX");
    assert_eq!(json["data"]["socket_type"], "AF_UNIX");
    assert_eq!(e.observation.activity.fields.get(Field::Comm), Some("tmux: server"));
    for line in ["tmux: server     /usr/bin/sh -c a", "tmux: server /usr/bin/sh -c a"] {
        let exec = format!("[EXEC] pid=1 ppid=2 uid=3 {line}");
        let (e, json) = linux_event(RawTopic::EbpfProcess, &exec);
        assert_eq!(
            (&json["data"]["image"], &json["data"]["command_line"]),
            (&json!("/usr/bin/sh"), &json!("/usr/bin/sh -c a"))
        );
        assert_eq!(e.observation.activity.fields.get(Field::Comm), Some("tmux: server"));
    }
    // A name that forges the field which follows it: the true one stands last, or within reach of a name.
    let forged = ebpf::file("[FILE] pid=1 a b flags=c d   flags=O_RDWR /etc/shadow").unwrap();
    assert_eq!((forged.comm, forged.flags, forged.path), ("a b flags=c d", "O_RDWR", "/etc/shadow"));
    let forged = ebpf::connect("[CONNECT] pid=1 a b -> 1.1:1 -> 10.9.8.7:4444").unwrap();
    assert_eq!((forged.comm, forged.dest), ("a b -> 1.1:1", Some(("10.9.8.7", "4444"))));
}

#[test]
fn empty_paths_and_line_breaks_lose_nothing() {
    let file = ebpf::file("[FILE] pid=7 cat flags=O_RDONLY ").unwrap();
    assert_eq!((file.comm, file.flags, file.path), ("cat", "O_RDONLY", ""));
    let file = ebpf::file("[FILE!] pid=7 cat flags=O_RDONLY /tmp/a\nb").unwrap();
    assert_eq!(file.path, "/tmp/a\nb");
    let exec = ebpf::exec("[EXEC] pid=1 ppid=2 uid=3 sh /bin/sh -c 'a\nb'").unwrap();
    assert_eq!((exec.comm, exec.args), ("sh", Some("/bin/sh -c 'a\nb'")));
    assert_eq!(ebpf::exec("[EXEC] pid=1 ppid=2 uid=3 sh ").unwrap().args, None);
    assert_eq!(ebpf::connect("[CONNECT] pid=1 sshd -> [::]:22").unwrap().dest, Some(("[::]", "22")));
}

/// Every message of the captures named by `LOGSTER_CORPUS`, at most `per_file` of each; none, said so, where absent.
fn corpus(per_file: usize, mut each: impl FnMut(&str, RawTopic, &str)) {
    use std::io::BufRead;
    let Some(root) = std::env::var_os("LOGSTER_CORPUS").map(std::path::PathBuf::from) else {
        eprintln!("skipped: LOGSTER_CORPUS is not set");
        return;
    };
    let list = |folder: &str| std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten().map(|e| e.path());
    for path in list("windows").chain(list("linux")).filter(|p| p.extension().is_some_and(|e| e == "zst")) {
        let mut decoder = zstd::Decoder::new(std::fs::File::open(&path).unwrap()).unwrap();
        decoder.window_log_max(27).unwrap();
        for line in std::io::BufReader::new(decoder).lines().take(per_file) {
            let line = line.unwrap();
            #[derive(serde::Deserialize)]
            struct Line<'a> {
                topic: &'a str,
                #[serde(borrow)]
                value: &'a serde_json::value::RawValue,
            }
            let line: Line = serde_json::from_str(&line).unwrap();
            each(&path.display().to_string(), RawTopic::from_name(line.topic).unwrap(), line.value.get());
        }
    }
    for path in list("fixtures").filter(|p| p.extension().is_some_and(|e| e == "log")) {
        let bytes = std::fs::read(&path).unwrap();
        for line in String::from_utf8_lossy(&bytes).lines() {
            let message = json!({ "host": "h", "message": line }).to_string();
            each(&path.display().to_string(), RawTopic::Auditd, &message);
        }
    }
}

#[test]
fn every_captured_message_is_typed() {
    let mut normalizer = Normalizer::new(config());
    let mut opaque = std::collections::BTreeMap::new();
    corpus(3000, |path, topic, payload| {
        let raw: Json = serde_json::from_str(payload).unwrap();
        let Outcome::Event(event) = normalizer.normalize(&record(topic, payload.as_bytes())) else {
            panic!("{path}: refused {payload}")
        };
        let json: Json = serde_json::from_slice(&event.json).unwrap();
        if topic == RawTopic::Auditd {
            assert_eq!(json["data"]["message"], raw["message"]);
        }
        if !json["data"]["sysmon_event_id"].is_null() {
            assert_eq!(json["data"]["event_data"], raw["winlog"]["event_data"], "{path}: {payload}");
        }
        assert_eq!(routing_key(topic, payload.as_bytes()), event.endpoint.key());
        if event.observation.activity.kind == Kind::Opaque {
            *opaque.entry((topic.name(), raw["message"].to_string())).or_insert(0) += 1;
        }
    });
    // One fixture has no serial.
    opaque.remove(&(RawTopic::Auditd.name(), r#""type=UNKNOWN[1329] msg=?""#.to_owned()));
    assert_eq!(opaque, Default::default(), "messages that no parser took apart");
}

#[test]
fn refusals_say_why_and_keep_the_record() {
    use DeadLetterReason::*;
    let deep = format!("{{\"winlog\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (payload, reason) in [
        (&b""[..], Empty),
        (b" \n", Empty),
        (b"\xEF\xBB\xBF", Empty),
        (b"{\"a\":\"\xff\"}", InvalidEncoding),
        (b"\xFF\xFE{", InvalidEncoding),
        (b"{\"a\":1", InvalidJson),
        (b"{\"a\":NaN}", InvalidJson),
        (b"{\"a\":1e999}", InvalidJson),
        (b"{} {}", InvalidJson),
        (b"[1,2]", NotAnObject),
        (b"null", NotAnObject),
        (b"{}", MissingContent),
        (b"{\"winlog\":[],\"message\":1}", MissingContent),
        (deep.as_bytes(), TooDeep),
    ] {
        for topic in RawTopic::ALL {
            let letter = refused(topic, payload);
            assert_eq!(letter.reason, reason, "{letter:?}");
            assert_eq!(letter.bytes(), payload);
            assert_eq!((&*letter.topic, letter.partition, letter.offset), (topic.name(), 2, 41));
            assert_eq!((letter.arrival, letter.key.as_deref()), (ARRIVAL, Some("k")));
            assert!(!letter.detail.is_empty());
            assert_eq!(routing_key(topic, payload), "default:unknown");
        }
    }
    let mut small = Normalizer::new(NormalizeConfig { max_message_bytes: 1, ..config() });
    let Outcome::DeadLetter(letter) = small.normalize(&record(RawTopic::Sysmon, b"{}")) else { panic!("accepted") };
    assert_eq!((letter.reason, &*letter.detail), (TooLarge, "2 bytes, the limit is 1"));
}
