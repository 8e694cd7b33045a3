//! What the benches on captures share: reading them, and time on the core.

use std::io::BufRead;
use std::path::Path;

use logster_schema::{RawTopic, TimeMs};

/// Calls `f` with the topic, the time and the bytes of each message of a capture, until it says that it has enough.
pub fn messages(path: &Path, mut f: impl FnMut(RawTopic, TimeMs, &[u8]) -> bool) {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        topic: &'a str,
        #[serde(borrow)]
        value: &'a serde_json::value::RawValue,
    }
    #[derive(serde::Deserialize)]
    struct Stamped<'a> {
        #[serde(rename = "@timestamp")]
        timestamp: &'a str,
    }
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path).expect("file")).expect("zstd");
    decoder.window_log_max(27).expect("window");
    for line in std::io::BufReader::new(decoder).lines() {
        let line = line.expect("line");
        let line: Line = serde_json::from_str(&line).expect("envelope");
        let stamp: Stamped = serde_json::from_str(line.value.get()).expect("@timestamp");
        let time = logster_schema::time::parse(stamp.timestamp).expect("a time");
        if !f(RawTopic::from_name(line.topic).expect("topic"), time, line.value.get().as_bytes()) {
            return;
        }
    }
}

/// Seconds that this thread has run, as Linux counts them.
pub fn on_cpu() -> f64 {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    schedule.split_ascii_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}
