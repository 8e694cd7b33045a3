//! Sigma rules that matched: how bad a rule says it is, and what a result and an alert say of a match.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Severity, TimeMs};

/// The level that a Sigma rule gives itself, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleLevel {
    /// Context. Also that of a rule that states no level.
    Informational,
    /// Seldom worth a look by itself.
    Low,
    /// Worth a look.
    Medium,
    /// Worth an alert.
    High,
    /// Worth an alert at any hour.
    Critical,
}

impl RuleLevel {
    /// Every level, least first.
    pub const ALL: [Self; 5] = [Self::Informational, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// As a rule writes it: the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// The severity of an alert that a rule of this level raises; `None`: it raises none, whatever is set.
    pub const fn severity(self) -> Option<Severity> {
        match self {
            Self::Informational | Self::Low => None,
            Self::Medium => Some(Severity::Medium),
            Self::High => Some(Severity::High),
            Self::Critical => Some(Severity::Critical),
        }
    }
}

impl fmt::Display for RuleLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RuleLevel {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|level| level.name() == text).ok_or(())
    }
}

/// That one rule matched one record. Travels with the record's observation to its pane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleHit {
    /// Number of the rule in the run's rule set: the same in every process of the run.
    pub rule: u32,
    /// The fields that matched, in words: `CommandLine: powershell -enc ...`. At most 400 bytes.
    pub evidence: String,
}

/// A rule's matches within one window: part of an inference result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMatch {
    /// The rule's id; its title, where it has none.
    pub rule_id: String,
    /// The rule's title.
    pub title: String,
    /// The rule's level.
    pub level: RuleLevel,
    /// ATT&CK techniques that the rule's tags name, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub techniques: Vec<String>,
    /// Events of the window that matched.
    pub count: u64,
    /// Of these, events of the window's last interval. Every event is in the last interval of exactly one window,
    /// so this is what raises and feeds alerts, and what adds up to the number of matches.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub new: u64,
    /// Time of the first match within the window.
    #[serde(with = "crate::time::iso")]
    pub first_seen: TimeMs,
    /// Time of the last match within the window.
    #[serde(with = "crate::time::iso")]
    pub last_seen: TimeMs,
    /// The fields that matched in the first one, in words.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub evidence: String,
}

/// A rule that matched in some detection of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertRule {
    /// The rule's id; its title, where it has none.
    pub rule_id: String,
    /// The rule's title.
    pub title: String,
    /// The rule's level.
    pub level: RuleLevel,
    /// ATT&CK techniques that the rule's tags name, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub techniques: Vec<String>,
    /// Earliest match in the windows of the alert's detections.
    #[serde(with = "crate::time::iso")]
    pub first_seen: TimeMs,
    /// Latest match in the windows of the alert's detections.
    #[serde(with = "crate::time::iso")]
    pub last_seen: TimeMs,
    /// The fields that matched in the earliest one, in words.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub evidence: String,
}

impl From<&RuleMatch> for AlertRule {
    fn from(m: &RuleMatch) -> Self {
        Self {
            rule_id: m.rule_id.clone(),
            title: m.title.clone(),
            level: m.level,
            techniques: m.techniques.clone(),
            first_seen: m.first_seen,
            last_seen: m.last_seen,
            evidence: m.evidence.clone(),
        }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
