//! Spec 004 field by field, hostile input, and agreement with slow oracles: serde_json, the specified regexes.

use logster_schema::Lane;
use serde_json::{Value as Json, json};

use super::*;

/// 2026-03-20T00:00:00Z
const ARRIVAL: TimeMs = 1_773_964_800_000;

fn config() -> NormalizeConfig {
    NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 32 << 20 }
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

/// Whose script block it is stands outside `event_data`, and what is published does not change for it.
#[test]
fn a_script_blocks_writer() {
    let message = json!({ "@timestamp": "2026-03-20T00:00:00.000Z", "winlog": {
        "computer_name": "WS5", "event_id": "4104", "process": { "pid": 4242, "thread": { "id": 1 } },
        "event_data": { "ScriptBlockText": "ls", "ScriptBlockId": "i" } } });
    let (event, json) = event(RawTopic::Sysmon, message.to_string().as_bytes());
    assert!(fields(&event).contains(&(Field::ProcessId, "4242")));
    assert_eq!(json["data"], json!({ "script_block_text": "ls", "script_block_id": "i" }));
    // Of other events the writer is Sysmon itself.
    let message = message.to_string().replace("4104", "7");
    assert!(!fields(&self::event(RawTopic::Sysmon, message.as_bytes()).0).iter().any(|(f, _)| *f == Field::ProcessId));
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
    corpus(500, |path, topic, payload| {
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

#[test]
fn hosts_are_looked_up_in_order() {
    let key = |topic, message: &str| event(topic, message.as_bytes()).0.endpoint.key().to_owned();
    let windows =
        |members: &str, winlog: &str| key(RawTopic::Sysmon, &format!(r#"{{{members}"winlog":{{{winlog}}}}}"#));
    let all = r#""agent":{"hostname":"A"},"host":{"name":"B"},"computer_name":"C","#;
    assert_eq!(windows(all, r#""computer_name":"D""#), "default:a");
    assert_eq!(windows(&all.replace("hostname", "name"), r#""computer_name":"D""#), "default:b");
    assert_eq!(windows(r#""agent":{"hostname":" "},"host":[],"computer_name":" C.Corp\t","#, ""), "default:c.corp");
    assert_eq!(windows(r#""agent":7,"host":{"name":null},"#, r#""computer_name":"D""#), "default:d");
    assert_eq!(windows("", ""), "default:unknown");
    // The last occurrence of a key counts, with nothing left of the one before.
    assert_eq!(windows(r#""host":{"name":"B"},"host":{"os":1},"computer_name":"C","#, ""), "default:c");
    let twice = r#"{"winlog":{"event_id":1,"computer_name":"x","event_data":{"Image":"i"}},"winlog":{}}"#;
    let (e, json) = event(RawTopic::Sysmon, twice.as_bytes());
    assert_eq!((e.endpoint.host(), &json["data"]), ("unknown", &json!({ "sysmon_event_id": null, "event_data": {} })));

    let linux = |members: &str| key(RawTopic::Auditd, &format!(r#"{{{members}"message":""}}"#));
    assert_eq!(linux(r#""host":{"name":"B"},"hostname":"C","#), "default:b");
    assert_eq!(linux(r#""host":"Web-1","hostname":"C","#), "default:web-1");
    assert_eq!(linux(r#""host":{},"hostname":"\u0043","#), "default:c");
    assert_eq!(linux(r#""host":"","hostname":10,"#), "default:10");
    assert_eq!(linux(r#""agent":{"hostname":"A"},"computer_name":"D","#), "default:unknown");
    assert_eq!(linux(r#""host":"ÄB","_tenant_id":"Acme","#), "Acme:äb");
    assert_eq!(linux(r#""_tenant_id":"a:b","#), "a_b:unknown");
    for none in [r#""""#, "null", "{}", "[1]", r#"" ""#] {
        assert_eq!(linux(&format!(r#""_tenant_id":{none},"#)), "default:unknown");
    }
    let long = "é".repeat(200);
    assert_eq!(linux(&format!(r#""host":"{long}","#)), format!("default:{}", "é".repeat(127)));
}

#[test]
fn times_fall_back_in_order() {
    let linux = |members: &str| {
        let (e, json) = event(RawTopic::Auditd, format!(r#"{{{members}"message":""}}"#).as_bytes());
        assert_eq!(json["timestamp"], time::format(e.timestamp_ms));
        (e.timestamp_ms - ARRIVAL, e.observation.time_ms - ARRIVAL, e.observation.lane, e.clamped)
    };
    let live = |ms| (ms, ms, Lane::Live, false);
    let at = r#""@timestamp":"2026-03-19T23:59:59Z","#;
    assert_eq!(linux(""), live(0));
    assert_eq!(linux(at), live(-1000));
    assert_eq!(linux(&format!(r#"{at}"timestamp":1773964802.5,"#)), live(2500));
    assert_eq!(linux(&format!(r#"{at}"timestamp":"1773964802500","#)), live(2500));
    assert_eq!(linux(&format!(r#"{at}"timestamp":"2026-03-20T05:00:02.5+05:00","#)), live(2500));
    for none in
        ["-1", "null", "[]", "1e300", r#""NaN""#, r#""inf""#, r#""-""#, r#""9999-12-31T23:59:59Z""#, "253370764800000"]
    {
        assert_eq!(linux(&format!(r#"{at}"timestamp":{none},"#)), live(-1000), "{none}");
    }
    assert_eq!(linux(r#""timestamp":"2026-03-19T23:00:00Z","#), (-3_600_000, -3_600_000, Lane::Backfill, false));
    assert_eq!(linux(r#""timestamp":"2026-03-20T01:00:00Z","#), (3_600_000, 10_000, Lane::Live, true));

    // UtcTime is published; windows go by it only while it keeps to the record's own time.
    let windows = |utc: &str| {
        let message = format!(
            r#"{{"@timestamp":"2026-03-20T00:00:00Z","winlog":{{"event_id":22,"event_data":{{"UtcTime":{utc}}}}}}}"#
        );
        let (e, _) = event(RawTopic::Sysmon, message.as_bytes());
        (e.timestamp_ms - ARRIVAL, e.observation.time_ms - ARRIVAL)
    };
    assert_eq!(windows(r#""2026-03-19 23:59:58.000""#), (-2000, -2000));
    assert_eq!(windows(r#""2026-03-09 00:00:00.000""#), (-11 * 86_400_000, 0));
    assert_eq!(windows(r#""-""#), (0, 0));

    for arrival_ms in [i64::MIN, -1, i64::MAX] {
        let payload = br#"{"message":"","timestamp":1}"#;
        let record = RawRecord { arrival_ms, ..record(RawTopic::Auditd, payload) };
        let Outcome::Event(event) = Normalizer::new(config()).normalize(&record) else { panic!("refused") };
        assert_eq!(event.timestamp_ms, 1000);
    }
}

#[test]
fn sysmon_ids_come_in_every_shape() {
    let id = |id: &str, code: &str| {
        let message = format!(r#"{{"winlog":{{"event_id":{id}}},"event":{{"code":{code}}}}}"#);
        let (e, json) = event(RawTopic::Sysmon, message.as_bytes());
        (json["data"]["sysmon_event_id"].clone(), e.observation.activity.kind)
    };
    assert_eq!(id("7", "1"), (json!(7), Kind::Sysmon(7)));
    assert_eq!(id("\" 22 \"", "1"), (json!(22), Kind::Sysmon(22)));
    assert_eq!(id("10.0", "1"), (json!(10), Kind::Sysmon(10)));
    assert_eq!(id("null", "\"5\""), (json!(5), Kind::Sysmon(5)));
    assert_eq!(id("\"x\"", "12"), (json!(12), Kind::Sysmon(12)));
    assert_eq!(id("\"x\"", "\"y\""), (json!("x"), Kind::Opaque));
    assert_eq!(id("{}", "[]"), (Json::Null, Kind::Opaque));
    assert_eq!(id("4624", "1"), (json!(4624), Kind::Opaque));
    assert_eq!(id("-1", "1"), (json!(-1), Kind::Opaque));
    assert_eq!(id("65537", "1"), (json!(65537), Kind::Opaque));
}

#[test]
fn event_data_is_published_as_it_came_and_cleaned_for_the_graph() {
    let publish = |data: &str| {
        let message = format!(r#"{{"winlog":{{"event_id":10,"event_data":{data}}}}}"#);
        let (e, _) = event(RawTopic::Sysmon, message.as_bytes());
        let json = String::from_utf8(e.json.clone()).unwrap();
        let data = json.split_once(r#""event_data":"#).unwrap().1.strip_suffix("}}").unwrap().to_owned();
        (data, e.observation.activity.fields)
    };
    assert_eq!(publish(r#"{ "b" : 1.50,"a":"\u0041\/" }"#).0, r#"{ "b" : 1.50,"a":"\u0041\/" }"#);
    assert_eq!(publish("{\"a\":\r\n1}").0, r#"{"a":  1}"#, "one line");
    assert_eq!(publish(r#"{"a":"\ud800x\ud83d\ude00\\ud800"}"#).0, r#"{"a":"\ufffdx\ud83d\ude00\\ud800"}"#);
    assert_eq!(publish("null").0, "{}");
    assert_eq!(publish("[1]").0, "[1]");
    // A key that repeats is published once, whether we know it, and however it is written.
    assert_eq!(publish(r#"{"Image":1,"x":2,"Image":"i","x":[3]}"#).0, r#"{"Image":"i","x":[3]}"#);
    assert_eq!(publish(r#"{"x":2,"\u0078":3,"UtcTime":1,"UtcTime":2}"#).0, r#"{"\u0078":3,"UtcTime":2}"#);
    let many: String = (0..40).map(|i| format!("\"k{}\":{i},", i % 39)).collect();
    assert_eq!(publish(&format!("{{{many}\"z\":0}}")).0.matches("\"k0\"").count(), 1);

    let get = |data: &str, field| publish(data).1.get(field).map(str::to_owned);
    assert_eq!(get(r#"{"SourceProcessGUID":"{AB}"}"#, Field::SourceProcessGuid).as_deref(), Some("{ab}"));
    assert_eq!(get(r#"{"SourceProcessGuid":"{Ab}"}"#, Field::SourceProcessGuid).as_deref(), Some("{ab}"));
    assert_eq!(get(r#"{"Hash":"MD5=1"}"#, Field::Hashes).as_deref(), Some("MD5=1"));
    assert_eq!(get(r#"{"Image":"a","Image":"b"}"#, Field::Image).as_deref(), Some("b"));
    assert_eq!(get(r#"{"\u0049mage":"b"}"#, Field::Image).as_deref(), Some("b"));
    assert_eq!(get(r#"{"ParentImage":"-"}"#, Field::ParentImage), None);
    assert_eq!(get(r#"{"ParentImage":"\u002d "}"#, Field::ParentImage), None);
    assert_eq!(get(r#"{"Comm":"x"}"#, Field::Comm), None, "a field of Linux");
    for (raw, clean) in [
        ("&lt;unknown process&gt;", "<unknown process>"),
        ("a &amp;&amp; b &amp;lt;", "a && b &lt;"),
        ("&#39;&#x41;&quot;&apos;", "'A\\\"'"),
        ("&", "&"),
        ("&nbsp;&#xFFFFFFF;&;&lt", "&nbsp;&#xFFFFFFF;&;&lt"),
        (r"C:\\Windows\\\\x\t\u00e9", "C:\\\\Windows\\\\\\\\x\\té"),
    ] {
        let want: String = serde_json::from_str(&format!("\"{clean}\"")).unwrap();
        assert_eq!(get(&format!(r#"{{"CommandLine":"{raw}"}}"#), Field::CommandLine), Some(want), "{raw}");
    }
    for field in Field::ALL.iter().take(Field::RuleName as usize + 1) {
        assert_eq!(get(&format!(r#"{{"{}":"v"}}"#, field.name()), *field).as_deref(), Some("v"), "{field:?}");
    }
    let long = "x".repeat(1 << 20);
    assert_eq!(get(&format!(r#"{{"CallTrace":"{long}"}}"#), Field::CallTrace).map(|s| s.len()), Some(1024));
    let (published, fields) = publish(&format!(r#"{{"CommandLine":"{long}\\"}}"#));
    assert_eq!(fields.get(Field::CommandLine).map(str::len), Some(logster_schema::observation::MAX_FIELD_BYTES));
    assert!(published.len() > 1 << 20, "published text is not cut");
}

#[test]
fn audit_heads_in_every_shape() {
    let parse = |message| {
        let (e, json) = linux_event(RawTopic::Auditd, message);
        assert_eq!(json["data"], json!({ "message": message }), "verbatim");
        let f = &e.observation.activity.fields;
        let text = |field| f.get(field).unwrap_or_default().to_owned();
        (e.observation.activity.kind, text(Field::AuditType), text(Field::AuditSerial), text(Field::AuditText))
    };
    let ok = |kind: &str, body: &str| (Kind::Audit, kind.to_owned(), "1.2:3".to_owned(), body.to_owned());
    assert_eq!(parse("node=web-1 type=CWD msg=audit(1.2:3): cwd=\"/\""), ok("CWD", "cwd=\"/\""));
    assert_eq!(parse("type=UNKNOWN[1327] msg=audit(1.2:3): proctitle=00"), ok("PROCTITLE", "proctitle=00"));
    assert_eq!(parse("type=UNKNOWN[1329] msg=audit(1.2:3): x"), ok("UNKNOWN[1329]", "x"));
    assert_eq!(parse("audit: type=1309 audit(1.2:3): argc=1"), ok("EXECVE", "argc=1"));
    assert_eq!(parse("type=EOE msg=audit(1.2:3): "), ok("EOE", ""));
    assert_eq!(parse("type=X msg=audit(1.2:3): a=1\x1dA=\"x\"\n"), ok("X", "a=1 A=\"x\"\n"));
    for none in [
        "",
        "type=",
        "type=X",
        "type=X msg=audit(",
        "type=X msg=audit(1:3): a",
        "type=X msg=audit(1.2:x): a",
        "msg=audit(1.2:3):",
    ] {
        assert_eq!(parse(none), (Kind::Opaque, String::new(), String::new(), String::new()), "{none}");
    }
}

/// One normalizer for many hosts, tenants and refusals gives what a fresh one gives for each record.
#[test]
fn nothing_is_remembered() {
    let mut shared = Normalizer::new(config());
    let mut accepted = 0;
    for i in 0..3 * ENDPOINT_SLOTS {
        let host = i * 7919 % 20_000;
        let message = match i % 5 {
            0 => format!(
                r#"{{"host":"h{host}","message":"type=X msg=audit(1.2:{i}): \"{i}\"","_tenant_id":"t{}"}}"#,
                i % 3
            ),
            1 => format!(
                r#"{{"host":"H{host}","message":"[FILE] pid={i} a\tb flags=R /{i}","winlog":{{"event_id":1}}}}"#
            ),
            2 => format!(
                r#"{{"host":"h{host}","message":{{}},"winlog":{{"event_id":{i},"event_data":{{"Image":"{i}\\"}}}}}}"#
            ),
            3 => format!(r#"{{"host":"h{host}","message":"{i}"#),
            _ => format!(r#"{{"host":"h{host}","message":"[CONNECT] pid={i} x -> [::]:{i}"}}"#),
        };
        let record = RawRecord { offset: i as i64, ..record(RawTopic::ALL[i / 5 % 5], message.as_bytes()) };
        match (shared.normalize(&record), Normalizer::new(config()).normalize(&record)) {
            (Outcome::Event(a), Outcome::Event(b)) => {
                accepted += 1;
                assert_eq!((a.json, a.observation, a.endpoint), (b.json, b.observation, b.endpoint));
            }
            (Outcome::DeadLetter(a), Outcome::DeadLetter(b)) => assert_eq!(a, b),
            other => panic!("{other:?}"),
        }
    }
    assert!(accepted > ENDPOINT_SLOTS);
}

/// A megabyte of what would make a careless parser quadratic, or overflow its stack.
#[test]
fn hostile_megabytes_take_linear_time() {
    let start = std::time::Instant::now();
    let fill = |unit: &str| unit.repeat((1 << 20) / unit.len());
    for message in [
        fill("[EXEC] pid=1 ppid=1 uid=1 a b "),
        fill("[EXEC] pid=1 ppid=1 uid=1 a b ") + "\nx",
        fill("[EXEC] "),
        fill("[FILE] pid=1 a b ") + "\n.",
        fill("[FILE] pid=1 a flags=b c\n") + ".",
        fill(" flags="),
        "[FILE] pid=1 ".to_owned() + &fill(" flags="),
        "[CONNECT] pid=1 a".to_owned() + &fill(" ->"),
        "[CONNECT] pid=1 a -> ".to_owned() + &fill(":x"),
        "[SOCKET] pid=1 a ".to_owned() + &fill(" b"),
        fill("[SOCKET] pid=1 "),
        fill("/ "),
        "[EXEC] pid=1 ppid=1 uid=1 a: ".to_owned() + &fill("/"),
        fill(" \n"),
        fill("type=audit("),
        fill("\x1d"),
        fill("\\\""),
        fill("&lt;"),
    ] {
        for topic in RawTopic::ALL {
            let text = serde_json::to_string(&message).unwrap();
            let payload = format!(
                r#"{{"message":{text},"winlog":{{"event_id":3,"event_data":{{"Image":{text}}}}},"host":{text}}}"#
            );
            event(topic, payload.as_bytes());
        }
    }
    for payload in
        [fill("{\"a\":"), fill("[{"), fill("\"\\ud800"), fill("{\"winlog\":{\"event_data\":"), fill("9"), fill("-")]
    {
        refused(RawTopic::Sysmon, payload.as_bytes());
    }
    let keys: String = (0..50_000).map(|i| format!("\"k{i}\":0,")).collect();
    event(RawTopic::Sysmon, format!(r#"{{"winlog":{{"event_data":{{{keys}"z":0}}}}}}"#).as_bytes());
    let nested = format!(r#"{{"winlog":{}{}}}"#, "{\"event_data\":".repeat(126) + "1", "}".repeat(126));
    event(RawTopic::Sysmon, nested.as_bytes());
    assert!(start.elapsed().as_secs() < 30, "took {:?}", start.elapsed());
}
