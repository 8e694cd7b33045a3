//! Names, partition counts and settings of every topic (spec 002, "Message topology").

use serde::{Deserialize, Serialize};

use crate::Platform;

/// One of the five topics that raw, untrusted records arrive on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum RawTopic {
    /// Winlogbeat JSON: Sysmon and PowerShell script blocks.
    Sysmon = 0,
    /// JSON envelope around one auditd text record.
    Auditd = 1,
    /// JSON envelope around one `[EXEC]` line.
    EbpfProcess = 2,
    /// JSON envelope around one `[FILE]` line.
    EbpfFile = 3,
    /// JSON envelope around one `[CONNECT]`, `[ACCEPT]` or `[SOCKET]` line.
    EbpfNetwork = 4,
}

impl RawTopic {
    /// Every raw topic, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Sysmon, Self::Auditd, Self::EbpfProcess, Self::EbpfFile, Self::EbpfNetwork];
    /// Partitions of each raw topic (spec 002).
    pub const PARTITIONS: u32 = 6;

    /// The specified topic name, also the `source` of a normalized event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sysmon => "sysmon-logs",
            Self::Auditd => "linux-auditd-logs",
            Self::EbpfProcess => "linux-ebpf-process-logs",
            Self::EbpfFile => "linux-ebpf-file-logs",
            Self::EbpfNetwork => "linux-ebpf-network-logs",
        }
    }

    /// The topic of that name, if it is a raw topic.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// The platform whose endpoints ship to this topic.
    pub const fn platform(self) -> Platform {
        match self {
            Self::Sysmon => Platform::Windows,
            _ => Platform::Linux,
        }
    }
}

/// A topic that the dataflow reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InputTopic {
    /// Raw records.
    Raw(RawTopic),
    /// Analysts' decisions on alerts.
    Transitions,
}

impl InputTopic {
    /// Every input topic, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Raw(RawTopic::Sysmon),
        Self::Raw(RawTopic::Auditd),
        Self::Raw(RawTopic::EbpfProcess),
        Self::Raw(RawTopic::EbpfFile),
        Self::Raw(RawTopic::EbpfNetwork),
        Self::Transitions,
    ];

    /// Position in [`InputTopic::ALL`].
    pub const fn number(self) -> usize {
        match self {
            Self::Raw(topic) => topic as usize,
            Self::Transitions => RawTopic::ALL.len(),
        }
    }

    /// Topic name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw(topic) => topic.name(),
            Self::Transitions => TRANSITIONS_TOPIC,
        }
    }

    /// The topic of that name, if it is an input topic.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Partitions that `logster topics create` gives the topic, and files have.
    pub const fn partitions(self) -> u32 {
        match self {
            Self::Raw(_) => RawTopic::PARTITIONS,
            Self::Transitions => TRANSITIONS_PARTITIONS,
        }
    }

    /// The raw topic, if it is one.
    pub const fn raw(self) -> Option<RawTopic> {
        match self {
            Self::Raw(topic) => Some(topic),
            Self::Transitions => None,
        }
    }
}

/// A topic that the dataflow writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputTopic {
    /// One record per accepted raw record.
    Normalized,
    /// One record per window with activity.
    Results,
    /// One record per change of an alert.
    Alerts,
    /// One record per raw record that could not be normalized.
    DeadLetters,
}

impl OutputTopic {
    /// Every output topic.
    pub const ALL: [Self; 4] = [Self::Normalized, Self::Results, Self::Alerts, Self::DeadLetters];

    /// The specified topic name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normalized => "normalized-endpoint-events",
            Self::Results => "logster-inference-results",
            Self::Alerts => "logster-alerts",
            Self::DeadLetters => "logster-dead-letters",
        }
    }

    /// Partitions that `logster topics create` gives the topic (spec 002; dead letters are ours).
    pub const fn partitions(self) -> u32 {
        match self {
            Self::Normalized => 12,
            Self::Results => 6,
            Self::Alerts | Self::DeadLetters => 3,
        }
    }
}

/// Analysts' decisions on alerts, read back by the dataflow. Keyed by `tenant:endpoint`.
pub const TRANSITIONS_TOPIC: &str = "logster-alert-transitions";
/// Partitions of [`TRANSITIONS_TOPIC`].
pub const TRANSITIONS_PARTITIONS: u32 = 3;
/// Compacted topic of checkpoints and the generation record (DESIGN section 4).
pub const CHECKPOINT_TOPIC: &str = "logster-checkpoints";

/// Where a raw record stands in its log: the content that its event id is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Raw topic.
    pub topic: RawTopic,
    /// Partition, from 0.
    pub partition: i32,
    /// Offset within the partition, from 0.
    pub offset: i64,
}

impl Position {
    /// The id of the event that this record yields: `<topic>:<partition>:<offset>`.
    pub fn event_id(&self) -> String {
        format!("{}:{}:{}", self.topic.name(), self.partition, self.offset)
    }
}
