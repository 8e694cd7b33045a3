//! What an analyst works on: `logster-alerts`, and the decisions that come back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::result::content_id;
use crate::{AlertRule, Endpoint, KeyEdge, OutputRecord, OutputTopic, Peer, Platform, TimeMs};

/// How bad: the higher one of what the highest `attack_prob` and the highest level of a rule say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// At least `alerts.min_threshold` (0.7), or a rule of level medium.
    Medium,
    /// At least `alerts.high_threshold` (0.85), or a rule of level high.
    High,
    /// At least `alerts.critical_threshold` (0.95), or a rule of level critical.
    Critical,
}

/// From which `attack_prob` on an alert is more than MEDIUM. `high` is at most `critical`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeverityThresholds {
    /// `alerts.high_threshold`.
    pub high: f64,
    /// `alerts.critical_threshold`.
    pub critical: f64,
}

impl SeverityThresholds {
    /// HIGH from 0.85, CRITICAL from 0.95 (spec 003).
    pub const DEFAULT: Self = Self { high: 0.85, critical: 0.95 };

    /// The severity of an alert whose strongest detection has `attack_prob`.
    pub fn severity(self, attack_prob: f64) -> Severity {
        if attack_prob >= self.critical {
            Severity::Critical
        } else if attack_prob >= self.high {
            Severity::High
        } else {
            Severity::Medium
        }
    }
}

impl Severity {
    /// With the default thresholds.
    pub fn of(attack_prob: f64) -> Self {
        SeverityThresholds::DEFAULT.severity(attack_prob)
    }

    /// `MEDIUM`, `HIGH` or `CRITICAL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
            Self::Critical => "CRITICAL",
        }
    }
}

/// Where an alert stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertStatus {
    /// Nobody has looked yet.
    Open,
    /// Somebody has seen it.
    Acknowledged,
    /// Somebody works on it.
    Investigating,
    /// Done: it was real.
    Resolved,
    /// Done: it was not.
    FalsePositive,
}

impl AlertStatus {
    /// An analyst has closed it: no more detections are merged into it.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Resolved | Self::FalsePositive)
    }

    /// Whether an analyst may go from here to `to`.
    ///
    /// Open, acknowledged and investigating lead forward or straight to a verdict; a verdict is final but
    /// for its correction into the other one.
    pub const fn may_become(self, to: Self) -> bool {
        use AlertStatus::{Acknowledged, FalsePositive, Investigating, Open, Resolved};
        matches!(
            (self, to),
            (Open, Acknowledged | Investigating | Resolved | FalsePositive)
                | (Acknowledged, Investigating | Resolved | FalsePositive)
                | (Investigating, Resolved | FalsePositive)
                | (Resolved, FalsePositive)
                | (FalsePositive, Resolved)
        )
    }
}

/// One analyst's decision: a record of `logster-alert-transitions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertTransition {
    /// The alert.
    pub alert_id: String,
    /// Its tenant.
    pub tenant_id: String,
    /// Its endpoint.
    pub endpoint_id: String,
    /// New status.
    pub to: AlertStatus,
    /// Who decided.
    pub actor: String,
    /// Why, in the analyst's words.
    #[serde(default)]
    pub note: String,
}

impl AlertTransition {
    /// The endpoint whose alert it is about.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.tenant_id, &self.endpoint_id)
    }
}

/// A transition that was accepted: kept on the alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedTransition {
    /// When it took effect (arrival of the transition record).
    #[serde(with = "crate::time::iso")]
    pub at: TimeMs,
    /// From.
    pub from: AlertStatus,
    /// To.
    pub to: AlertStatus,
    /// Who.
    pub actor: String,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// Another endpoint of the tenant that alerted within the correlation window.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RelatedEndpoint {
    /// Host.
    pub endpoint_id: String,
    /// Its alert.
    pub alert_id: String,
    /// Network events of one reached an address of the other: movement, not coincidence.
    pub lateral_movement: bool,
    /// In words: source, destination, port and time of the contact, or how close in time they fired.
    pub evidence: String,
}

/// One record of `logster-alerts`: the whole alert after a change. The last record of an id is its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Function of its first detection.
    pub alert_id: String,
    /// Counts the changes published, from 1: the higher one is the newer.
    pub revision: u64,
    /// Tenant.
    pub tenant_id: String,
    /// Host, lower-cased.
    pub endpoint_id: String,
    /// Platform.
    pub platform: Platform,
    /// Life cycle.
    pub status: AlertStatus,
    /// From the highest `attack_prob` and the highest level of a rule that raised a detection.
    pub severity: Severity,
    /// Highest of the merged detections; below the threshold where only rules raised the alert.
    pub attack_prob: f64,
    /// Start of the first detection's window.
    #[serde(with = "crate::time::iso")]
    pub first_seen: TimeMs,
    /// End of the last detection's window.
    #[serde(with = "crate::time::iso")]
    pub last_seen: TimeMs,
    /// End of the first detection's window: when the alert was raised, in event time.
    #[serde(with = "crate::time::iso")]
    pub created_at: TimeMs,
    /// Event time of this change.
    #[serde(with = "crate::time::iso")]
    pub updated_at: TimeMs,
    /// Detections merged.
    pub detection_count: u64,
    /// The merged detections' inference ids, newest last; at most 100 are kept.
    pub inference_ids: Vec<String>,
    /// Why, in one sentence.
    pub reason: String,
    /// The edges that mattered in the strongest detection.
    pub key_edges: Vec<KeyEdge>,
    /// Sigma rules that matched in the windows of all merged detections, by id. At most 64.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rules: Vec<AlertRule>,
    /// Version of the rule set of the newest detection. Absent where no rules are configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ruleset: Option<String>,
    /// ATT&CK techniques of all merged detections, sorted.
    pub ttp_techniques: Vec<String>,
    /// One sentence a technique.
    pub ttp_explanation: String,
    /// Alerts of other endpoints within the correlation window, sorted.
    pub related_endpoints: Vec<RelatedEndpoint>,
    /// Smallest alert id of the connected component; absent while the alert stands alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub incident_id: Option<String>,
    /// Every transition taken.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub transitions: Vec<AppliedTransition>,
    /// All detections come from backfill windows.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub backfill: bool,
    /// Model that gave the strongest detection.
    pub model_version: String,
}

/// An alert after a detection or a transition, and the facts that correlation needs: what dedup keeps
/// of an alert, sends to the tenant stage, and what a checkpoint holds of it. The last one of an id is its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertUpdate {
    /// The alert as far as its endpoint knows it: the tenant stage sets `revision`, `related_endpoints`,
    /// `incident_id`, and the sentences `reason` and `ttp_explanation`, which are empty here.
    pub alert: Alert,
    /// Smallest window end of its detections: `active_from..=alert.last_seen` is when it fired.
    pub active_from: TimeMs,
    /// Time at which its last detection was processed (a window's end, or a backfill's closing arrival).
    pub last_detection: TimeMs,
    /// By technique: the sentence of its first detection.
    pub ttp_evidence: BTreeMap<String, String>,
    /// Addresses that it had contact with, by remote address and port.
    pub peers: Vec<Peer>,
    /// Its own addresses, sorted.
    pub local_addresses: Vec<String>,
}

impl AlertUpdate {
    /// The endpoint it is about.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.alert.tenant_id, &self.alert.endpoint_id)
    }
}

impl Alert {
    /// The id of the alert that `inference_id` opens.
    pub fn id(inference_id: &str) -> String {
        content_id(&["alert", inference_id])
    }

    /// The record for `logster-alerts`.
    pub fn to_output(&self) -> OutputRecord {
        OutputRecord {
            topic: OutputTopic::Alerts,
            key: Some(format!("{}:{}", self.tenant_id, self.endpoint_id).into()),
            ts_ms: self.updated_at,
            value: serde_json::to_vec(self).expect("alerts serialize"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_inclusive() {
        let severities =
            |t: SeverityThresholds| [0.7, 0.8499, 0.85, 0.91, 0.9499, 0.95, 1.0].map(|p| t.severity(p).name());
        let want = ["MEDIUM", "MEDIUM", "HIGH", "HIGH", "HIGH", "CRITICAL", "CRITICAL"];
        assert_eq!(severities(SeverityThresholds::DEFAULT), want);
        let want = ["MEDIUM", "MEDIUM", "MEDIUM", "CRITICAL", "CRITICAL", "CRITICAL", "CRITICAL"];
        assert_eq!(severities(SeverityThresholds { high: 0.9, critical: 0.9 }), want);
    }
}
