//! What must hold of each parser of the normalizer, whatever bytes it is given. Each function panics where it does not.
//!
//! The oracles are slow and obvious: serde_json's tree, the regexes of spec 004, the standard library. The fuzz targets
//! (`cargo fuzz run normalize`), the property tests and the test of mutated samples all call these functions.

use std::sync::LazyLock;

use logster_operators::normalize::{
    NormalizeConfig, Normalizer, Outcome, RawRecord, auditd as audit, ebpf as lines,
    encoding::decode,
    json::{Error, Scanner, Type, push_raw, push_string},
    routing_key,
};
use logster_schema::{DeadLetterReason as Reason, Platform, RawTopic, TimeLimits, time};
use regex::Regex;
use serde_json::{Value, json};

/// 2026-03-20T00:00:00Z
const ARRIVAL: i64 = 1_773_964_800_000;

/// One raw record: the first byte chooses the topic, the rest is the message.
pub fn normalize(data: &[u8]) {
    let Some((&choice, payload)) = data.split_first() else { return };
    let topic = RawTopic::ALL[choice as usize % RawTopic::ALL.len()];
    let limits = TimeLimits::default();
    let config = NormalizeConfig { time: limits, max_message_bytes: 1 << 24 };
    let record = RawRecord { topic, partition: 3, offset: 77, arrival_ms: ARRIVAL, key: Some(b"\xffkey"), payload };
    let expected = expected(topic, payload);
    match Normalizer::new(config).normalize(&record) {
        Outcome::DeadLetter(letter) => {
            assert_eq!(Err(letter.reason), expected, "{}", letter.detail);
            assert_eq!(letter.bytes(), payload);
            assert_eq!((&*letter.topic, letter.partition, letter.offset), (topic.name(), 3, 77));
            assert!(!letter.detail.is_empty() && letter.key.is_none());
            serde_json::from_slice::<Value>(&letter.to_output().value).expect("a dead letter is JSON");
        }
        Outcome::Event(event) => {
            let got: Value = serde_json::from_slice(&event.json).expect("an event is JSON");
            assert!(!event.json.contains(&b'\n'), "an event is one line");
            let expected = expected.unwrap_or_else(|reason| panic!("{reason:?}, but accepted: {got}"));
            for name in ["event_id", "tenant_id", "endpoint_id", "platform", "event_type", "timestamp", "source"] {
                assert_eq!(got[name], expected[name], "{name}");
            }
            assert_eq!(got.as_object().map(|o| o.len()), Some(8));
            same_data(&got["data"], &expected["data"]);
            let o = &event.observation;
            assert_eq!(o.endpoint, event.endpoint);
            assert_eq!(event.endpoint.tenant(), expected["tenant_id"]);
            assert_eq!(event.endpoint.host(), expected["endpoint_id"]);
            assert_eq!(routing_key(topic, payload), event.endpoint.key());
            assert_eq!(time::format(event.timestamp_ms), expected["timestamp"]);
            assert_eq!(o.position.event_id(), expected["event_id"]);
            let oldest = ARRIVAL - limits.max_backfill_ms;
            assert!((oldest..=ARRIVAL + limits.max_skew_ms).contains(&o.time_ms));
            for (field, text) in o.activity.fields.iter() {
                assert!(!text.is_empty() && text.len() <= logster_schema::observation::MAX_FIELD_BYTES, "{field:?}");
            }
        }
    }
}

/// As `==`, but the text of a number may be written in another way, and that of a container with other white space.
fn same_data(got: &Value, expected: &Value) {
    let (Some(got_members), Some(members)) = (got.as_object(), expected.as_object()) else {
        panic!("`data` is an object: {got}")
    };
    assert!(got_members.keys().eq(members.keys()), "{got} has other members than {expected}");
    for (name, want) in members {
        match (&got[name], want) {
            (Value::String(got), Value::Object(o)) if o.contains_key(RAW) => {
                let Ok(raw) = serde_json::from_str::<Value>(got) else {
                    // Kept as it came, half a surrogate pair included, which serde_json refuses.
                    assert!(got.to_ascii_lowercase().contains("\\ud"), "raw JSON: {got}");
                    continue;
                };
                let (raw, want) = (raw.to_string(), o[RAW].to_string());
                assert!(raw == want || raw.parse::<f64>().ok() == want.parse::<f64>().ok(), "{raw} for {want}");
            }
            (got, want) => assert_eq!(got, want, "{name}"),
        }
    }
}

/// Marks, in what is expected, a value that is published as the text of its JSON.
const RAW: &str = "as raw text";

/// The event of a message, from serde_json's tree of it.
fn expected(topic: RawTopic, payload: &[u8]) -> Result<Value, Reason> {
    let text = slow_decode(payload).ok_or(Reason::InvalidEncoding)?;
    if text.trim_matches([' ', '\t', '\n', '\r', '\x0c']).is_empty() {
        return Err(Reason::Empty);
    }
    let tree = tree(&text)?;
    let Some(message) = tree.as_object() else { return Err(Reason::NotAnObject) };
    let at = |path: &[&str]| path.iter().fold(&tree, |value, name| value.get(name).unwrap_or(&Value::Null));

    let windows = topic.platform() == Platform::Windows;
    if windows && !at(&["winlog"]).is_object() || !windows && !at(&["message"]).is_string() {
        return Err(Reason::MissingContent);
    }
    let label = |value: &Value| {
        let text = scalar(value)?;
        let text = text.trim();
        Some(text[..text.floor_char_boundary(255)].to_owned()).filter(|text| !text.is_empty())
    };
    let hosts: &[&[&str]] = if windows {
        &[&["agent", "hostname"], &["host", "name"], &["host"], &["computer_name"], &["winlog", "computer_name"]]
    } else {
        &[&["host", "name"], &["host"], &["hostname"]]
    };
    let host = hosts.iter().find_map(|path| label(at(path))).unwrap_or("unknown".to_owned());
    let tenant = label(at(&["_tenant_id"])).unwrap_or("default".to_owned());
    let times =
        [if windows { at(&["winlog", "event_data", "UtcTime"]) } else { at(&["timestamp"]) }, at(&["@timestamp"])];
    let stated = times.into_iter().find_map(|value| {
        let text = scalar(value)?;
        let number = || time::from_epoch(text.trim().parse().ok()?);
        let ms = if value.is_number() { number() } else { time::parse(&text).or_else(number) };
        ms.filter(|&ms| ms < time::parse("9999-01-01T00:00:00Z").unwrap())
    });
    let (event_type, data) = match topic {
        RawTopic::Sysmon => sysmon_data(at),
        RawTopic::Auditd => ("syscall", json!({ "message": message["message"] })),
        _ => ebpf_data(topic, at(&["message"]).as_str().unwrap_or_default()),
    };
    Ok(json!({
        "event_id": format!("{}:3:77", topic.name()), "tenant_id": tenant.replace(':', "_"),
        "endpoint_id": host.to_lowercase(), "platform": topic.platform().name(), "event_type": event_type,
        "timestamp": time::format(stated.unwrap_or(ARRIVAL)), "source": topic.name(), "data": data,
    }))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn sysmon_data<'a>(at: impl Fn(&[&str]) -> &'a Value) -> (&'static str, Value) {
    let integer = |value: &Value| match value {
        Value::Number(n) => n.as_i64().or_else(|| whole(n.as_f64()?)),
        Value::String(s) => s.trim().parse().ok().or_else(|| whole(s.trim().parse().ok()?)),
        _ => None,
    };
    let raw_id = at(&["winlog", "event_id"]);
    let id = integer(raw_id).or_else(|| integer(at(&["event", "code"])));
    let event_data = at(&["winlog", "event_data"]);
    let (event_type, names): (_, &[(&str, &str)]) = match id {
        Some(1) => (
            "process",
            &[
                ("ProcessGuid", "process_guid"),
                ("ProcessId", "process_id"),
                ("Image", "image"),
                ("CommandLine", "command_line"),
                ("User", "user"),
                ("ParentProcessGuid", "parent_guid"),
                ("ParentImage", "parent_image"),
                ("ParentCommandLine", "parent_command_line"),
                ("IntegrityLevel", "integrity_level"),
                ("CurrentDirectory", "current_directory"),
                ("Hashes", "hashes"),
            ],
        ),
        Some(3) => (
            "network",
            &[
                ("SourceIp", "source_ip"),
                ("SourcePort", "source_port"),
                ("DestinationIp", "dest_ip"),
                ("DestinationPort", "dest_port"),
                ("Protocol", "protocol"),
                ("ProcessGuid", "process_guid"),
                ("Image", "image"),
            ],
        ),
        Some(11) => (
            "file",
            &[("TargetFilename", "target_filename"), ("ProcessGuid", "creator_guid"), ("Image", "creator_image")],
        ),
        Some(4104) => (
            "script",
            &[("ScriptBlockText", "script_block_text"), ("ScriptBlockId", "script_block_id"), ("Path", "path")],
        ),
        _ => {
            let id = id.map_or_else(|| if raw_id.is_string() { raw_id.clone() } else { Value::Null }, Value::from);
            let data = if event_data.is_null() { json!({}) } else { event_data.clone() };
            return ("process", json!({ "sysmon_event_id": id, "event_data": data }));
        }
    };
    let mut data = json!({});
    for (raw, published) in names {
        let value = &event_data[raw];
        match value {
            Value::Null => {}
            _ if *published == "process_id" => {
                if let Some(pid) = integer(value) {
                    data[published] = pid.into();
                }
            }
            Value::String(s) if matches!(s.trim(), "" | "-") => {}
            Value::String(s) => data[published] = s.clone().into(),
            other => data[published] = json!({ RAW: other }),
        }
    }
    (event_type, data)
}

fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

/// From the parsers' results, which [`ebpf`] holds to the regexes.
fn ebpf_data(topic: RawTopic, message: &str) -> (&'static str, Value) {
    let mut data = json!({});
    let mut put = |name: &str, value: String| data[name] = value.into();
    let (event_type, pid) = match topic {
        RawTopic::EbpfProcess => {
            let Some(exec) = lines::exec(message) else { return ("process", json!({ "message": message })) };
            put("command_line", exec.args.unwrap_or(exec.comm).to_owned());
            put("image", exec.path().map_or(format!("/usr/bin/{}", exec.comm), str::to_owned));
            put("parent_image", format!("/usr/bin/ppid:{}", exec.ppid));
            put("user", format!("uid:{}", exec.uid));
            put("integrity_level", if exec.uid.trim_matches('0').is_empty() { "root" } else { "user" }.to_owned());
            ("process", exec.pid)
        }
        RawTopic::EbpfFile => {
            let Some(file) = lines::file(message) else { return ("file", json!({ "message": message })) };
            put("creator_image", format!("/usr/bin/{}", file.comm));
            if !file.flags.is_empty() {
                put("flags", file.flags.to_owned());
            }
            if !file.path.is_empty() {
                put("target_filename", file.path.to_owned());
            }
            ("file", file.pid)
        }
        _ => match (lines::connect(message), lines::socket(message)) {
            (Some(connect), _) => {
                put("connection_type", connect.kind.to_owned());
                put("image", format!("/usr/bin/{}", connect.comm));
                if let Some((ip, port)) = connect.dest {
                    put("dest_ip", ip.to_owned());
                    put("dest_port", port.to_owned());
                }
                ("network", connect.pid)
            }
            (None, Some(socket)) => {
                put("image", format!("/usr/bin/{}", socket.comm));
                put("socket_type", socket.family.to_owned());
                ("network", socket.pid)
            }
            (None, None) => return ("network", json!({ "message": message })),
        },
    };
    if let Ok(pid) = pid.parse::<i64>() {
        data["process_id"] = pid.into();
    }
    (event_type, data)
}

/// serde_json's tree; half a surrogate pair, which it refuses, becomes U+FFFD first.
fn tree(text: &str) -> Result<Value, Reason> {
    let units: Vec<char> = text.chars().collect();
    let unit = |at: usize| {
        let escape = units.get(at..at + 6).filter(|e| e[0] == '\\' && e[1] == 'u')?;
        escape[2..].iter().try_fold(0, |n, c| Some(n << 4 | c.to_digit(16)?))
    };
    let (mut whole, mut at) = (String::new(), 0);
    while at < units.len() {
        let taken = match (unit(at), unit(at + 6)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xE000), _) => {
                whole.push_str("\\ufffd");
                at += 6;
                continue;
            }
            _ if units[at] == '\\' => 2,
            _ => 1,
        };
        whole.extend(&units[at..(at + taken).min(units.len())]);
        at += taken;
    }
    serde_json::from_str(&whole).map_err(|error| {
        if error.to_string().contains("recursion limit") { Reason::TooDeep } else { Reason::InvalidJson }
    })
}

/// The JSON scanner against serde_json.
pub fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut scanner = Scanner::new(text);
    let got = scanner.value().and_then(|value| scanner.finish().map(|()| value));
    let want = tree(text);
    match (got, &want) {
        (Err(_), Err(reason)) => match scanner.error() {
            Error::TooDeep(at) => assert!(*reason == Reason::TooDeep && at < text.len()),
            Error::Invalid(what, at) => assert!(*reason == Reason::InvalidJson && at <= text.len(), "{what}"),
        },
        (Ok(value), Ok(tree)) => {
            let lone = scanner.lone_surrogate;
            let mut copy = Vec::new();
            if let (Type::String, Value::String(want)) = (value.kind(), tree) {
                assert_eq!(value.name(text), *want);
                push_string(&mut copy, want);
                assert_eq!(serde_json::from_slice::<String>(&copy).as_ref().ok(), Some(want));
                copy.clear();
                copy.push(b'"');
                push_raw(&mut copy, value.raw(text), lone);
                copy.push(b'"');
            } else {
                push_raw(&mut copy, value.raw(text), lone);
            }
            assert_eq!(serde_json::from_slice::<Value>(&copy).as_ref().ok(), Some(tree));
        }
        _ => panic!("scanner: {got:?} {:?}, serde_json: {want:?}", scanner.error()),
    }
}

/// Encodings against the standard library.
pub fn encoding(data: &[u8]) {
    assert_eq!(decode(data).ok().map(|text| text.into_owned()), slow_decode(data));
}

fn slow_decode(data: &[u8]) -> Option<String> {
    let utf16 = |bytes: &[u8], swap: bool| {
        let units: Vec<u16> =
            bytes.chunks(2).map(|c| Some(u16::from_le_bytes([c[0], *c.get(1)?]))).collect::<Option<_>>()?;
        let units: Vec<u16> = units.into_iter().map(|u| if swap { u.swap_bytes() } else { u }).collect();
        String::from_utf16(&units).ok()
    };
    match data {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, false),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, true),
        [b'{', 0, ..] => utf16(data, false),
        [0, b'{', ..] => utf16(data, true),
        _ => String::from_utf8(data.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(data).to_vec()).ok(),
    }
}

/// The head of an audit record against a regex.
pub fn auditd(data: &[u8]) {
    static HEAD: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(concat!(
            r"^\s*(?:node=[^ ]* \s*|audit: )?type=([^ ]+) \s*(?:msg=)?audit\(([0-9]{1,20}\.[0-9]{1,20}:[0-9]{1,20})\)",
            r":?\s*((?s).*)$"
        ))
        .unwrap()
    });
    let text = String::from_utf8_lossy(data);
    match (audit::parse(&text), HEAD.captures(&text)) {
        (Some(record), Some(c)) => {
            assert_eq!((record.serial, record.body), (c.get(2).unwrap().as_str(), c.get(3).unwrap().as_str()));
            assert!(record.kind == &c[1] || c[1].bytes().any(|b| b.is_ascii_digit()));
        }
        (None, None) => {}
        other => panic!("{text:?}: {other:?}"),
    }
}

/// Python's `\s`, `\S` and `$`, in this crate's syntax.
fn python(pattern: &str) -> Regex {
    let pattern = pattern.replace(r"\s", r"[\s\x1c-\x1f]").replace(r"\S", r"[^\s\x1c-\x1f]").replace(r"\d", "[0-9]");
    Regex::new(&pattern.replace('$', r"\n?\z")).unwrap()
}

/// The eBPF lines against the regexes of spec 004: what those accept is read the same, but for names with spaces.
pub fn ebpf(data: &[u8]) {
    static EXEC: LazyLock<Regex> =
        LazyLock::new(|| python(r"\[EXEC\]\s+pid=(\d+)\s+ppid=(\d+)\s+uid=(\d+)\s+(\S+)(?:\s+(.+))?$"));
    static FILE: LazyLock<Regex> = LazyLock::new(|| python(r"\[FILE!?\]\s+pid=(\d+)\s+(\S+)\s+flags=(\S+)\s+(.+)$"));
    static CONNECT: LazyLock<Regex> =
        LazyLock::new(|| python(r"\[(CONNECT|ACCEPT)\]\s+pid=(\d+)\s+(\S+)(?:\s+->\s+(\S+):(\d+))?"));
    static SOCKET: LazyLock<Regex> = LazyLock::new(|| python(r"\[SOCKET\]\s+pid=(\d+)\s+(\S+)\s+(\S+)"));
    let text = String::from_utf8_lossy(data);
    let group = |c: &regex::Captures<'_>, n| c.get(n).map(|m| &text[m.range()]);
    let spaced = |comm: &str| comm.contains(char::is_whitespace) || comm.contains(|c| ('\x1c'..='\x1f').contains(&c));

    let exec = lines::exec(&text);
    if let Some(c) = EXEC.captures(&text) {
        let exec = exec.expect("the regex accepts it");
        assert_eq!((Some(exec.pid), Some(exec.ppid), Some(exec.uid)), (group(&c, 1), group(&c, 2), group(&c, 3)));
        if spaced(exec.comm) {
            assert!(exec.comm.starts_with(&c[4]) && exec.path().is_some() && !c[5].starts_with('/'), "{text:?}");
        } else {
            assert_eq!((Some(exec.comm), exec.args), (group(&c, 4), group(&c, 5)), "{text:?}");
        }
    }
    let file = lines::file(&text);
    if let Some(c) = FILE.captures(&text) {
        let file = file.expect("the regex accepts it");
        let want = (group(&c, 1), group(&c, 2), group(&c, 3), group(&c, 4));
        assert_eq!((Some(file.pid), Some(file.comm), Some(file.flags), Some(file.path)), want, "{text:?}");
    }
    match (lines::connect(&text), CONNECT.captures(&text)) {
        (Some(connect), Some(c)) => {
            assert_eq!((connect.kind, connect.pid), (&c[1], &c[2]));
            let dest = group(&c, 4).zip(group(&c, 5));
            if spaced(connect.comm) {
                assert!(connect.comm.starts_with(&c[3]) && dest.is_none() && connect.dest.is_some(), "{text:?}");
            } else {
                assert_eq!((connect.comm, connect.dest), (&c[3], dest), "{text:?}");
            }
        }
        (None, None) => {}
        other => panic!("{text:?}: {other:?}"),
    }
    match (lines::socket(&text), SOCKET.captures(&text)) {
        (Some(socket), Some(c)) => {
            assert_eq!(socket.pid, &c[1]);
            if spaced(socket.comm) {
                assert!(socket.comm.starts_with(&c[2]) && socket.family.starts_with("AF_") && !c[3].starts_with("AF_"));
            } else {
                assert_eq!((socket.comm, socket.family), (&c[2], &c[3]), "{text:?}");
            }
        }
        (None, None) => {}
        other => panic!("{text:?}: {other:?}"),
    }
}
