//! A raw record that could not become an event: why, where it stood, and its bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{OutputRecord, OutputTopic, TimeMs};

/// Why a raw record was refused. A bounded set: it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// No bytes (a Kafka tombstone, an empty line).
    Empty,
    /// Neither UTF-8 nor UTF-16 with a byte order mark.
    InvalidEncoding,
    /// Not JSON, or cut short.
    InvalidJson,
    /// JSON nested deeper than the limit.
    TooDeep,
    /// Larger than `input.max_message_bytes`.
    TooLarge,
    /// JSON, but not an object.
    NotAnObject,
    /// Windows: no `winlog` object. Linux: no `message` string.
    MissingContent,
    /// A file's line that is no `{"topic","value"}` envelope.
    InvalidEnvelope,
    /// A file's line that names no raw topic.
    UnknownTopic,
}

impl DeadLetterReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Empty,
        Self::InvalidEncoding,
        Self::InvalidJson,
        Self::TooDeep,
        Self::TooLarge,
        Self::NotAnObject,
        Self::MissingContent,
        Self::InvalidEnvelope,
        Self::UnknownTopic,
    ];

    /// The reason as it stands in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::InvalidEncoding => "invalid_encoding",
            Self::InvalidJson => "invalid_json",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
            Self::NotAnObject => "not_an_object",
            Self::MissingContent => "missing_content",
            Self::InvalidEnvelope => "invalid_envelope",
            Self::UnknownTopic => "unknown_topic",
        }
    }
}

/// A refused raw record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why.
    pub reason: DeadLetterReason,
    /// In words: what was found, where in the record.
    pub detail: String,
    /// Raw topic, or what a file's line named as one.
    pub topic: String,
    /// Partition of the raw record.
    pub partition: i32,
    /// Offset (of a file: line number from 0).
    pub offset: i64,
    /// Arrival.
    #[serde(with = "crate::time::iso")]
    pub arrival: TimeMs,
    /// Key of the raw record, if it had one that is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// Original bytes, where they are UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub payload: Option<String>,
    /// Original bytes in base64, where they are not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub payload_base64: Option<String>,
}

impl DeadLetter {
    /// Attaches the original bytes.
    pub fn with_payload(mut self, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.payload = Some(text.to_owned()),
            Err(_) => self.payload_base64 = Some(STANDARD.encode(bytes)),
        }
        self
    }

    /// The original bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match (&self.payload, &self.payload_base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(b64)) => STANDARD.decode(b64).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }

    /// The record for `logster-dead-letters`.
    pub fn to_output(&self) -> OutputRecord {
        OutputRecord {
            topic: OutputTopic::DeadLetters,
            key: self.key.as_deref().map(Into::into),
            ts_ms: self.arrival,
            value: serde_json::to_vec(self).expect("dead letters serialize"),
        }
    }
}
