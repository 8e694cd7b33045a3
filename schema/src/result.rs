//! The verdict on one window: `logster-inference-results`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{Endpoint, OutputRecord, OutputTopic, Platform, RuleLevel, RuleMatch, TimeMs};

/// What the model found the window to be. What rules found is in [`InferenceResult::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// `attack_prob` below `alerts.min_threshold`, or the Linux idle allow-list.
    Benign,
    /// `attack_prob` of `alerts.min_threshold` and above.
    Attack,
    /// Not scored: the graph has fewer than two nodes. See `reason`.
    Error,
}

impl Prediction {
    /// `benign`, `attack` or `error`: the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Benign => "benign",
            Self::Attack => "attack",
            Self::Error => "error",
        }
    }
}

/// An edge of the window's graph that weighed in the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyEdge {
    /// In words: "powershell.exe (High) wrote C:\...\a.dll 3 times".
    pub sentence: String,
    /// Source node's name.
    pub source: String,
    /// Target node's name.
    pub target: String,
    /// `spawned`, `wrote`, `executed`, `connected-to` or `performed`.
    pub relation: String,
    /// First time within the window.
    #[serde(with = "crate::time::iso")]
    pub first_seen: TimeMs,
    /// Last time within the window.
    #[serde(with = "crate::time::iso")]
    pub last_seen: TimeMs,
    /// Times seen.
    pub count: u32,
    /// Share of the verdict, 0 to 1.
    pub weight: f32,
}

/// An address that a window's network events reached or were reached from: evidence for correlation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// This endpoint's own address, where the log line names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub local: Option<String>,
    /// The other side: address or name, as logged.
    pub remote: String,
    /// Remote port.
    pub port: u16,
    /// First time within the window.
    #[serde(with = "crate::time::iso")]
    pub first_seen: TimeMs,
}

/// One record of `logster-inference-results`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceResult {
    /// Function of tenant, endpoint, platform, window end, opening (backfill), model and rule set.
    pub inference_id: String,
    /// Tenant.
    pub tenant_id: String,
    /// Host, lower-cased.
    pub endpoint_id: String,
    /// Platform.
    pub platform: Platform,
    /// Window end: the time of the verdict.
    #[serde(with = "crate::time::iso")]
    pub timestamp: TimeMs,
    /// Start of the window, inclusive.
    #[serde(with = "crate::time::iso")]
    pub window_start: TimeMs,
    /// End of the window, exclusive.
    #[serde(with = "crate::time::iso")]
    pub window_end: TimeMs,
    /// Verdict.
    pub prediction: Prediction,
    /// Calibrated probability of an attack, 0 to 1. 0 where not scored.
    pub attack_prob: f64,
    /// Probability of the likelier class, 0 to 1. 0 for `error`.
    pub confidence: f64,
    /// Events of the window, sampled ones included.
    pub num_events: u64,
    /// Nodes of the graph.
    pub num_nodes: u32,
    /// Edges of the graph.
    pub num_edges: u32,
    /// Nodes by type.
    pub node_counts: BTreeMap<String, u32>,
    /// Edges by type.
    pub edge_counts: BTreeMap<String, u32>,
    /// Model name and version, `none` where the model was not asked.
    pub model_version: String,
    /// Why the model was not asked: `idle_allowlist`, or what is wrong with the graph.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// A backfill window: its events arrived late.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub backfill: bool,
    /// Arrival time at which the backfill window opened; part of its id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub opened_ms: Option<TimeMs>,
    /// Events left out of the graph because the endpoint was over its budget.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub sampled_out: u64,
    /// On attacks: the edges that mattered most, heaviest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub key_edges: Vec<KeyEdge>,
    /// Sigma rules that matched in the window: those with new matches first, then by level, highest first. At
    /// most 64. A window in whose last interval a rule of `rules.min_level` and above matched is a detection,
    /// whatever the model says.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rules: Vec<RuleMatch>,
    /// Version of the rule set: the start of the digest of its rules. Absent where no rules are configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ruleset: Option<String>,
    /// On detections: ATT&CK techniques seen in the window's facts or named by its rules, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ttp_techniques: Vec<String>,
    /// On detections: one sentence a technique.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ttp_evidence: Vec<String>,
    /// On detections: addresses reached, for correlation. At most 64, earliest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub peers: Vec<Peer>,
    /// On detections: addresses of this endpoint seen in the window. At most 16, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub local_addresses: Vec<String>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl InferenceResult {
    /// The id of a window's verdict. `model_version` names everything that judges: the rule set too, if there is one.
    pub fn id(
        endpoint: &Endpoint,
        platform: Platform,
        window_end: TimeMs,
        opened_ms: Option<TimeMs>,
        model_version: &str,
    ) -> String {
        let opened = opened_ms.map_or(String::new(), |ms| ms.to_string());
        content_id(&["inference", endpoint.key(), platform.name(), &window_end.to_string(), &opened, model_version])
    }

    /// The highest level at which rules make this window a detection: `from` or above, matched in the window's last
    /// interval, so that one match is one detection although six windows show it.
    pub fn raised_by_rule(&self, from: RuleLevel) -> Option<RuleLevel> {
        let raising = |m: &&RuleMatch| m.new > 0 && m.level >= from && m.level.severity().is_some();
        self.rules.iter().filter(raising).map(|m| m.level).max()
    }

    /// The endpoint it is about.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.tenant_id, &self.endpoint_id)
    }

    /// The record for `logster-inference-results`.
    pub fn to_output(&self) -> OutputRecord {
        OutputRecord {
            topic: OutputTopic::Results,
            key: Some(format!("{}:{}", self.tenant_id, self.endpoint_id).into()),
            ts_ms: self.window_end,
            value: serde_json::to_vec(self).expect("results serialize"),
        }
    }
}

/// 32 hex digits from the parts: the only way ids are made.
pub fn content_id(parts: &[&str]) -> String {
    format!("{:032x}", xxh3_128(parts.join("\u{1f}").as_bytes()))
}
