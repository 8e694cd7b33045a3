//! Turns one raw record into a normalized event and an observation, or into a dead letter.

use logster_schema::{DeadLetter, Endpoint, Observation, RawTopic, TimeLimits, TimeMs};

/// One record of a raw topic, untrusted.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Topic.
    pub topic: RawTopic,
    /// Partition.
    pub partition: i32,
    /// Offset (of a file: line number from 0 within its partition).
    pub offset: i64,
    /// Arrival, already monotonic within the partition.
    pub arrival_ms: TimeMs,
    /// Record key, if any.
    pub key: Option<&'a [u8]>,
    /// The message.
    pub payload: &'a [u8],
}

/// What became of a raw record.
#[derive(Debug)]
pub enum Outcome {
    /// Accepted.
    Event(Box<Normalized>),
    /// Refused.
    DeadLetter(Box<DeadLetter>),
}

/// An accepted record.
#[derive(Debug)]
pub struct Normalized {
    /// Key of the output record.
    pub endpoint: Endpoint,
    /// Published `timestamp`, as the spec resolves it: also the output record's time.
    pub timestamp_ms: TimeMs,
    /// The `NormalizedEvent` as JSON: `event_id`, `tenant_id`, `endpoint_id`, `platform`, `event_type`,
    /// `timestamp`, `source`, `data`.
    pub json: Vec<u8>,
    /// The time was clamped (see [`TimeLimits::window_time`]).
    pub clamped: bool,
    /// What the graph needs of it.
    pub observation: Observation,
}

/// Limits of a message.
#[derive(Clone, Copy, Debug)]
pub struct NormalizeConfig {
    /// Lateness, skew and backfill.
    pub time: TimeLimits,
    /// Larger messages are dead letters (`input.max_message_bytes`).
    pub max_message_bytes: usize,
}

/// The operator's core. Keeps scratch buffers and an interner of endpoints; no state that decides a result.
pub struct Normalizer {
    #[allow(dead_code)]
    config: NormalizeConfig,
}

impl Normalizer {
    /// A normalizer with these limits.
    pub fn new(config: NormalizeConfig) -> Self {
        Self { config }
    }

    /// Normalizes one record.
    pub fn normalize(&mut self, _record: &RawRecord<'_>) -> Outcome {
        unimplemented!("lands with the parsers")
    }
}
