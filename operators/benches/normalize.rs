//! Normalization against the mere validation of the same bytes, in one run: `cargo bench -p logster-operators`.
//!
//! Reads the captures under `LOGSTER_CORPUS`, 64 MB a platform (`-- windows` or `-- linux`: only that one). Prints
//! events/s and MB/s (payload bytes, 10^6) of libraries that validate and of the normalizer, and what share of the
//! fastest validation's speed the normalizer reaches. serde_json skips strings without looking at their encoding, which
//! is not yet validation: it runs once as it is and once behind a UTF-8 check. The best of seven interleaved rounds
//! each, so that neighbours disturb all alike; time is the thread's on its core.

mod support;

use std::path::PathBuf;

use logster_operators::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_schema::{RawTopic, TimeLimits};
use serde::de::IgnoredAny;
use support::{messages, on_cpu};

const BYTES_A_PLATFORM: usize = 64_000_000;
const ROUNDS: usize = 7;

/// Goes over all messages; returns how many are accepted.
type Run = fn(&[(RawTopic, Vec<u8>)]) -> usize;

fn main() {
    let Some(root) = std::env::var_os("LOGSTER_CORPUS").map(PathBuf::from) else {
        println!("skipped: LOGSTER_CORPUS is not set");
        return;
    };
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    for platform in ["windows", "linux"].into_iter().filter(|p| wanted.as_ref().is_none_or(|w| w == p)) {
        let messages = load(root.join(platform));
        let bytes: usize = messages.iter().map(|(_, payload)| payload.len()).sum();
        let runs: [(&str, Run); 4] = [
            ("serde_json skips", skip),
            ("sonic-rs validates", sonic),
            ("serde_json validates", serde),
            ("normalize", normalize),
        ];
        let mut best = [f64::INFINITY; 4];
        for _ in 0..ROUNDS {
            for (best, (name, run)) in best.iter_mut().zip(runs) {
                let start = on_cpu();
                assert_eq!(run(&messages), messages.len(), "{name}: every message is accepted");
                *best = best.min(on_cpu() - start);
            }
        }
        println!("{platform}: {} events of {} bytes on average", messages.len(), bytes / messages.len());
        for (best, (name, _)) in best.iter().zip(runs) {
            let (events, mb) = (messages.len() as f64 / best, bytes as f64 / best / 1e6);
            println!("  {name:<22}{events:>12.0} events/s {mb:>8.0} MB/s");
        }
        let [skips, sonic, serde, normalize] = best;
        println!("  normalize runs at {:.2} of the fastest validation", sonic.min(serde) / normalize);
        println!("  normalize runs at {:.2} of serde_json skipping, encoding unchecked", skips / normalize);
    }
}

fn sonic(messages: &[(RawTopic, Vec<u8>)]) -> usize {
    messages.iter().filter(|(_, payload)| sonic_rs::from_slice::<sonic_rs::LazyValue>(payload).is_ok()).count()
}

fn skip(messages: &[(RawTopic, Vec<u8>)]) -> usize {
    messages.iter().filter(|(_, payload)| serde_json::from_slice::<IgnoredAny>(payload).is_ok()).count()
}

fn serde(messages: &[(RawTopic, Vec<u8>)]) -> usize {
    let valid =
        |payload| simdutf8::basic::from_utf8(payload).is_ok_and(|s| serde_json::from_str::<IgnoredAny>(s).is_ok());
    messages.iter().filter(|(_, payload)| valid(payload)).count()
}

fn normalize(messages: &[(RawTopic, Vec<u8>)]) -> usize {
    let config = NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 1 << 20 };
    let mut normalizer = Normalizer::new(config);
    let record = |offset: usize, topic, payload| RawRecord {
        topic,
        partition: 0,
        offset: offset as i64,
        arrival_ms: 1_600_000_000_000,
        key: None,
        payload,
    };
    let accepted = messages.iter().enumerate().filter(|(i, (topic, payload))| {
        matches!(std::hint::black_box(normalizer.normalize(&record(*i, *topic, payload))), Outcome::Event(_))
    });
    accepted.count()
}

/// An equal share of every capture in the folder.
fn load(folder: PathBuf) -> Vec<(RawTopic, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "zst"));
    files.sort();
    let share = BYTES_A_PLATFORM / files.len();
    let mut loaded = Vec::new();
    for path in files {
        let mut bytes = 0;
        messages(&path, |topic, _, payload| {
            bytes += payload.len();
            loaded.push((topic, payload.to_vec()));
            bytes <= share
        });
    }
    loaded
}
