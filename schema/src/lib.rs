//! The vocabulary of Logster: topics, keys, times, events, results, alerts. No I/O, no clocks.
//!
//! Start with [`topics`] for what flows in and out, [`endpoint`] for the key of everything,
//! [`observation`] for what one raw record contributes to a graph, [`result`] and [`alert`] for what
//! comes out at the other end.

pub mod alert;
pub mod dead_letter;
pub mod endpoint;
pub mod observation;
pub mod output;
pub mod partition;
pub mod result;
pub mod rules;
pub mod time;
pub mod topics;
pub mod wire;

pub use alert::{
    Alert, AlertStatus, AlertTransition, AlertUpdate, AppliedTransition, RelatedEndpoint, Severity, SeverityThresholds,
};
pub use dead_letter::{DeadLetter, DeadLetterReason};
pub use endpoint::{Endpoint, Platform};
pub use observation::{Activity, Field, Fields, Kind, Observation};
pub use output::OutputRecord;
pub use result::{InferenceResult, KeyEdge, Peer, Prediction};
pub use rules::{AlertRule, RuleHit, RuleLevel, RuleMatch};
pub use time::{Lane, TimeLimits, TimeMs, WindowTime};
pub use topics::{InputTopic, OutputTopic, Position, RawTopic};
