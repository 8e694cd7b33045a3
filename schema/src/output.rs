//! One record on its way to an output topic.

use serde::{Deserialize, Serialize};

use crate::{OutputTopic, TimeMs};

/// Key, time and value of an output record. The value is finished JSON: sinks never look inside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Where it goes.
    pub topic: OutputTopic,
    /// `tenant:endpoint`; for dead letters the raw record's key, if it had one.
    pub key: Option<Box<str>>,
    /// Record timestamp, in event time (never a wall clock).
    pub ts_ms: TimeMs,
    /// UTF-8 JSON.
    pub value: Vec<u8>,
}
