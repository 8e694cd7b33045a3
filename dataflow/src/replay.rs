//! Captures to closed windows, without the dataflow: for commands that look at windows and publish nothing.
//!
//! - Input: captures, played in order of arrival.
//! - Output: the windows that a run over the same captures scores, in order of closing. Analysts' transitions are
//!   passed over.
//! - State: what normalizer and window operator hold.
//! - Failure: records that a run would dead-letter are counted and left out; errors are for files.

use std::path::Path;

use logster_operators::graph::{PaneGraph, WindowGraph};
use logster_operators::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_operators::window::{ClosedWindow, WindowConfig, Windows};
use logster_schema::partition::partition_for_key;
use logster_schema::{InputTopic, RawTopic, TimeMs};
use logster_sinks::capture::{CaptureError, Framing};
use logster_sinks::playback::Playback;

use crate::config::Config;
use crate::source::routing_key;

/// Lines between two advances of the watermark.
const STEP_LINES: u64 = 512;

/// Limits and sizes, as in a run.
#[derive(Clone, Copy, Debug)]
pub struct ReplayConfig {
    /// Limits of messages and times.
    pub normalize: NormalizeConfig,
    /// Sizes of windows.
    pub window: WindowConfig,
}

impl ReplayConfig {
    /// Those of a run with this configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            normalize: NormalizeConfig {
                time: config.time_limits(),
                max_message_bytes: config.input.max_message_bytes.0 as usize,
            },
            window: WindowConfig {
                width_ms: config.inference.window.ms(),
                hop_ms: config.inference.interval.ms(),
                max_lateness_ms: config.input.max_lateness.ms(),
                max_events: config.inference.max_events_per_window as usize,
                max_open_backfill: config.input.max_open_backfill_windows as usize,
            },
        }
    }
}

/// What was replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Raw records of the topics that were wanted, and lines that hold none.
    pub records: u64,
    /// Of these, what a run would dead-letter.
    pub dead_letters: u64,
    /// Windows handed over.
    pub windows: u64,
}

/// Plays what lies below `input`. `tenant`, where given, takes the place of the records' own; records of topics that
/// are not `wanted` are passed over.
///
/// # Errors
/// Captures that cannot be read.
pub fn replay(
    input: &Path,
    tenant: Option<&str>,
    config: &ReplayConfig,
    wanted: impl Fn(RawTopic) -> bool,
    mut emit: impl FnMut(ClosedWindow<PaneGraph>),
) -> Result<Replayed, CaptureError> {
    let mut playback = Playback::open(input, Framing::Envelope)?;
    let mut normalizer = Normalizer::new(config.normalize);
    let mut windows = Windows::<PaneGraph>::new(config.window);
    // As the file source counts them: positions decide the order of what happened at once.
    let mut offsets = [[0i64; RawTopic::PARTITIONS as usize]; InputTopic::ALL.len()];
    let mut done = Replayed::default();
    let mut lines = 0;
    while let Some(played) = playback.next_line()? {
        let arrival_ms = played.arrival_ms;
        lines += 1;
        let Ok(envelope) = Framing::Envelope.parse(&played.line) else {
            done.records += 1;
            done.dead_letters += 1;
            continue;
        };
        let Some(topic) = envelope.topic.raw() else { continue };
        let key = match envelope.key {
            Some(key) => key.into_owned(),
            None => routing_key(envelope.topic, envelope.value),
        };
        let key = match tenant {
            Some(tenant) => format!("{tenant}:{}", key.split_once(':').map_or("", |(_, host)| host)),
            None => key,
        };
        let partition = partition_for_key(key.as_bytes(), envelope.topic.partitions());
        let next = &mut offsets[envelope.topic.number()][partition as usize];
        let offset = std::mem::replace(next, *next + 1);
        if !wanted(topic) {
            continue;
        }
        done.records += 1;
        let record = RawRecord {
            topic,
            partition: partition as i32,
            offset,
            arrival_ms: arrival_ms.max(0),
            key: Some(key.as_bytes()),
            payload: envelope.value,
        };
        match normalizer.normalize_as(&record, tenant) {
            Outcome::DeadLetter(_) => done.dead_letters += 1,
            Outcome::Event(event) => windows.on_event(event.observation, TimeMs::MIN / 2),
        }
        if lines % STEP_LINES == 0 {
            for window in windows.on_frontier(Some(arrival_ms - config.window.max_lateness_ms), usize::MAX) {
                done.windows += 1;
                emit(window);
            }
        }
    }
    for window in windows.on_frontier(None, usize::MAX) {
        done.windows += 1;
        emit(window);
    }
    Ok(done)
}

/// The graph of a window.
pub fn graph_of(window: &ClosedWindow<PaneGraph>) -> WindowGraph {
    let panes: Vec<&PaneGraph> = window.panes.iter().map(|pane| &pane.content).collect();
    WindowGraph::merge(window.platform, window.start_ms, window.end_ms, &panes)
}
