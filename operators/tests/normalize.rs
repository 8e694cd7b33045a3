//! The normalizer's parsers under arbitrary, structured and mutated input: the invariants are those of the fuzz targets.

#[path = "../fuzz/src/lib.rs"]
mod invariants;

use invariants::{auditd, ebpf, encoding, json, normalize};
use proptest::prelude::*;

/// Any of `tokens`, up to `max` of them in a row.
fn soup(tokens: &'static [&'static str], max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(tokens), 0..max).prop_map(|tokens| tokens.concat())
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\"a\"",
    "\"b\":",
    "\"\\\\\"",
    "\\\\",
    "\\\"",
    "\\u0041",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "\\u00",
    "\\n",
    "\\x",
    "\\",
    " ",
    "\n",
    "\t",
    "0",
    "-",
    "-1",
    "1.5",
    "1e9",
    "1e999",
    "01",
    "2.",
    "true",
    "null",
    "nul",
    "NaN",
    "é",
    "\u{1F600}",
    "\u{1}",
    "sixteen or more characters",
    "fifteen in here",
];

/// Strings in escapes of every kind, which reach over the scanner's chunks at every offset.
const STRING: &[&str] = &[
    "\\\\",
    "\\\"",
    "\\/",
    "\\b",
    "\\f",
    "\\n",
    "\\r",
    "\\t",
    "\\u0000",
    "\\u00e9",
    "\\uD83D\\uDE00",
    "\\ud83d",
    "\\ude00",
    "C:",
    "a",
    "bc",
    "def",
    "Windows",
    "é",
    "\u{1F600}",
    "&lt;",
    "a long piece of plain text",
];

const EBPF: &[&str] = &[
    "[EXEC]",
    "[FILE]",
    "[FILE!]",
    "[CONNECT]",
    "[ACCEPT]",
    "[SOCKET]",
    "pid=1",
    "ppid=2",
    "uid=0",
    "uid=",
    "flags=O_RDONLY",
    "flags=",
    "->",
    "10.0.0.1:80",
    "[::]:22",
    ":",
    "x:1y",
    "AF_INET",
    "bash",
    "tmux: server",
    "tmux:",
    "/usr/bin/ls",
    "-la",
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\x1c",
    "\u{85}",
    "\u{a0}",
    "\u{3000}",
    "٣",
    "é",
    "/",
    "1",
    "    ",
];

const AUDIT: &[&str] = &[
    "node=a",
    "audit: ",
    "type=",
    "SYSCALL",
    "UNKNOWN[1327]",
    "1300",
    " ",
    " ",
    "msg=",
    "audit(",
    "1773953890",
    ".204",
    ":",
    "50364",
    ")",
    "): ",
    "a0=\"x\"",
    "\x1d",
    "\n",
    "é",
    "99999999999999999999999",
];

/// An eBPF line of the right shape, with any white space between its parts.
fn ebpf_line() -> impl Strategy<Value = String> {
    let space = || prop::sample::select(&[" ", "  ", "             ", "\t", "\n", "\x1f", "\u{a0}", ""][..]);
    let comm =
        prop::sample::select(&["bash", "tmux: server", "a flags=b", "a -> b", "rdk:broker-1", "kworker/0:1", "é"][..]);
    let rest = prop_oneof![
        prop::sample::select(&["/usr/bin/ls -la", "-c x", "", " ", "-> 10.0.0.1:80", "-> [::]:22", "AF_UNIX"][..])
            .prop_map(str::to_owned),
        soup(EBPF, 6),
    ];
    let shape = prop::sample::select(
        &[
            "[EXEC]_pid=12_ppid=3_uid=0_C_R_",
            "[FILE]_pid=12_C_flags=O_RDWR_R_",
            "[FILE!]_pid=1_C_flags=_R_",
            "[CONNECT]_pid=12_C_R_",
            "x [ACCEPT]_pid=12_C_->_R_",
            "[SOCKET]_pid=12_C_R_",
        ][..],
    );
    (shape, comm, rest, prop::collection::vec(space(), 8)).prop_map(|(shape, comm, rest, spaces)| {
        let mut spaces = spaces.into_iter();
        shape
            .replace('C', "\u{1}")
            .replace('R', "\u{2}")
            .replace("\u{1}ONNE\u{1}T", "CONNECT")
            .replace("A\u{1}\u{1}EPT", "ACCEPT")
            .replace("SO\u{1}KET", "SOCKET")
            .replace("EXE\u{1}", "EXEC")
            .replace("O_\u{2}DW\u{2}", "O_RDWR")
            .split('_')
            .map(|part| format!("{part}{}", spaces.next().unwrap_or(" ")))
            .collect::<String>()
            .replace('\u{1}', comm)
            .replace('\u{2}', &rest)
    })
}

/// Any JSON value, small.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(
            &[
                "null",
                "true",
                "0",
                "-1",
                "1773953890.204",
                "1773953890204",
                "3",
                "4104",
                "1e400",
                "\"\"",
                "\"-\"",
                "\" x \"",
                "\"3\"",
                "\"11\"",
                "\"5940\"",
                "\"0x10\"",
                "\"2026-03-18 19:07:13.512\"",
                "\"9999-12-31T23:59:59Z\"",
                "\"1969-01-01T00:00:00Z\"",
                "\"A:B\"",
                "\"WS5.Corp.LOCAL\"",
                "\"{00000000-0000-0000-0000-000000000000}\"",
                "\"&lt;unknown process&gt;\"",
                "\"\\ud800\"",
                "\"type=CWD msg=audit(1.2:3): cwd=\\\"/\\\"\""
            ][..]
        )
        .prop_map(str::to_owned),
        soup(STRING, 12).prop_map(|s| format!("\"{s}\"")),
        soup(EBPF, 20).prop_map(|s| serde_json::to_string(&s).unwrap()),
        ebpf_line().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            object(&["name", "hostname", "code", "event_id", "Image"], inner),
        ]
    })
}

/// An object of some of `keys`, any of them more than once.
fn object(keys: &'static [&'static str], value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    prop::collection::vec((prop::sample::select(keys), value), 0..8).prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", members.join(",\n"))
    })
}

fn message() -> impl Strategy<Value = String> {
    let event_data = object(
        &[
            "UtcTime",
            "ProcessGuid",
            "ProcessId",
            "Image",
            "CommandLine",
            "ParentProcessGuid",
            "SourceIp",
            "TargetFilename",
            "ScriptBlockText",
            "Path",
            "CallTrace",
            "Other",
            "Oth\\u0065r",
            "\\u0049mage",
            "Hash",
        ],
        any_json(),
    );
    let winlog = prop_oneof![
        4 => (any_json(), event_data, any_json()).prop_map(|(id, data, name)|
            format!("{{\"event_id\":{id},\"event_data\":{data},\"computer_name\":{name}}}")),
        1 => object(&["event_id", "event_data", "computer_name"], any_json()),
        1 => any_json(),
    ];
    let member = prop_oneof![
        3 => winlog.prop_map(|v| format!("\"winlog\":{v}")),
        5 => (prop::sample::select(&["@timestamp", "timestamp", "message", "_tenant_id", "host", "hostname", "agent",
            "computer_name", "event", "m\\u0065ssage", "x"][..]), any_json()).prop_map(|(k, v)| format!("\"{k}\" : {v}")),
    ];
    prop::collection::vec(member, 0..8).prop_map(|members| format!("{{{}}}", members.join(",\n")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for parser in [normalize, json, encoding, auditd, ebpf] {
            parser(&bytes);
        }
    }

    #[test]
    fn json_of_any_tokens(text in soup(JSON, 24)) {
        json(text.as_bytes());
    }

    #[test]
    fn strings_of_any_escapes(text in soup(STRING, 40), tail in "[ ]{0,20}") {
        json(format!("\"{text}\"{tail}").as_bytes());
    }

    #[test]
    fn messages_of_the_right_keys(topic: u8, message in message()) {
        json(message.as_bytes());
        normalize(&[&[topic], message.as_bytes()].concat());
    }

    #[test]
    fn messages_in_any_encoding(topic: u8, message in message(), kind in 0..6) {
        let utf16 = |to: fn(u16) -> [u8; 2]| message.encode_utf16().flat_map(to).collect::<Vec<u8>>();
        let bytes = match kind {
            0 => [b"\xEF\xBB\xBF", message.as_bytes()].concat(),
            1 => [&b"\xFF\xFE"[..], &utf16(u16::to_le_bytes)].concat(),
            2 => [&b"\xFE\xFF"[..], &utf16(u16::to_be_bytes)].concat(),
            3 => utf16(u16::to_le_bytes),
            4 => utf16(u16::to_be_bytes),
            _ => [&b"\xFF\xFE"[..], &utf16(u16::to_le_bytes), b"x"].concat(),
        };
        encoding(&bytes);
        normalize(&[&[topic], &bytes[..]].concat());
    }

    #[test]
    fn ebpf_of_any_tokens(text in soup(EBPF, 30)) {
        ebpf(text.as_bytes());
    }

    #[test]
    fn ebpf_lines(text in ebpf_line()) {
        ebpf(text.as_bytes());
    }

    #[test]
    fn audit_of_any_tokens(text in soup(AUDIT, 14)) {
        auditd(text.as_bytes());
    }

    #[test]
    fn audit_heads(node in "(node=[a-z.]{1,9} )?", kind in "[A-Z_]{3,9}", text in soup(AUDIT, 5)) {
        auditd(format!("{node}type={kind} msg=audit(1773953890.204:50364): {text}").as_bytes());
    }
}

/// What the fuzz targets would try first: samples with bytes changed, cut, repeated and spliced. Seeded, so a failure
/// comes again.
#[test]
fn mutated_samples() {
    let samples: &[&[u8]] = &[
        br#"0{"@timestamp":"2026-03-18T19:07:15.560Z","winlog":{"computer_name":"D-1","event_id":"1","event_data":{"Image":"C:\\Users\\a b\\x.exe","ProcessGuid":"{96d8290c-d08c-69b9-2a07-000000000700}","ProcessId":"5940","User":"-","UtcTime":"2026-03-18 19:07:13.512","CommandLine":"&lt;a&gt; \"q\""}},"agent":{"name":"D-1"},"host":{"name":"d-1"},"event":{"code":"1"}}"#,
        br#"5{"@timestamp":"2020-06-10T02:50:54.631Z","winlog":{"event_id":13,"event_data":{"TargetObject":"HKU\\S-1-5-21","Details":"Binary Data","EventType":"SetValue"}},"_tenant_id":"a:b"}"#,
        br#"1{"@timestamp":"2026-03-20T01:58:10.344285+05:00","host":{"name":"agent-linux-01"},"message":"type=PATH msg=audit(1773953890.204:50364): item=0 name=\"/run\" inode=5375\u001dOUID=\"root\""}"#,
        br#"2{"timestamp":1773953890.204,"host":"a","message":"2026-03-20 02:24:50 [EXEC]    pid=35747   ppid=33785   uid=1000  bash             /usr/bin/ls"}"#,
        br#"3{"timestamp":"1773953890","hostname":"a","message":"2026-03-20 02:24:27 [FILE]    pid=23256   tmux: server     flags=O_RDONLY   /var/lib"}"#,
        br#"4{"host":{"name":"h"},"message":"2026-03-20 02:24:31 [CONNECT]  pid=35113   rdk:broker-1     -> 10.0.0.106:29092"}"#,
        br#"4{"host":{"name":"h"},"message":"2026-03-20 02:24:31 [SOCKET]   pid=11370   sshd             AF_UNIX"}"#,
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n.max(1) as u64) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = samples[below(samples.len())].to_vec();
        for _ in 0..1 + below(3) {
            let at = below(bytes.len());
            match below(6) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] = below(256) as u8,
                2 if !bytes.is_empty() => bytes[at] = b"\"\\{}[]:, \n-0u"[below(13)],
                3 => drop(bytes.drain(at..(at + below(9)).min(bytes.len()))),
                4 => bytes.splice(at..at, bytes[at..(at + below(40)).min(bytes.len())].to_vec()).for_each(drop),
                _ => {
                    let other = samples[below(samples.len())];
                    let from = below(other.len());
                    bytes.splice(at..at, other[from..(from + below(40)).min(other.len())].iter().copied());
                }
            }
        }
        normalize(&bytes);
        for parser in [json, encoding] {
            parser(bytes.get(1..).unwrap_or_default());
        }
        let message = bytes.windows(11).position(|w| w == b"\"message\":\"").map_or(0, |at| at + 11);
        for parser in [auditd, ebpf] {
            parser(&bytes[message..]);
        }
    }
}
