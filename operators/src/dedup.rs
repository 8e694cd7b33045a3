//! Merges an endpoint's detections into alerts and applies analysts' decisions to them.
//!
//! - Input: inference results at their time (a window's end; a backfill window's closing arrival) and
//!   transitions at their arrival, both exchanged by the endpoint's shard. Results below the threshold and
//!   those not scored are left out before the exchange, unless a rule of `rules.min_level` matched.
//! - Output: at each time one [`AlertChange`] per alert that changed: the whole alert, or that it is now
//!   forgotten; and the transitions that were refused.
//! - State: one [`AlertUpdate`] per alert, per shard, which is also the last one sent: a checkpoint of the
//!   output is a checkpoint of the state. Bounded per alert ([`MAX_INFERENCE_IDS`] and its neighbours) and
//!   per shard (`max_alerts_per_shard`).
//! - Ordering: inputs wait for the frontier and are taken by (time, detections before transitions, endpoint,
//!   platform, inference id or position), so any arrival order gives the same output.
//! - Failure: none of its own; a restored shard ignores inputs below the frontier of its checkpoint.
//!
//! ```text
//!              detection                          transition
//!                  │                                  │ legal?  no ─▶ refused
//!   open alert of the same endpoint and               ▼
//!   platform within the dedup window? ── no ─▶ new    status, history
//!                  │ yes: the nearest                 closed: out of `mergeable`
//!                  ▼
//!                merge           kept, and open to transitions, for `retention` after its last change
//! ```
//!
//! **Live and backfill detections of one endpoint share its alerts.** Their distance to an alert is measured
//! in event time and symmetrically: from the detection's window end to the span from the alert's first to its
//! last window end, 0 inside. The nearest alert wins. As a backlog's windows may lie hours back, an alert
//! takes detections for `dedup_window + margin` of *processing* time after its last one; the margin is how far
//! apart two neighbouring windows of a backlog may be closed. For live windows the rule is the plain one,
//! because there both times are the same.

use std::collections::{BTreeMap, BTreeSet};

use logster_schema::{
    Alert, AlertRule, AlertStatus, AlertTransition, AlertUpdate, AppliedTransition, Endpoint, InferenceResult,
    Platform, Prediction, RuleLevel, RuleMatch, Severity, SeverityThresholds, TimeMs,
};
use serde::{Deserialize, Serialize};

use crate::correlate::contact::{merge_addresses, merge_peers};

mod shell;
#[cfg(test)]
pub(crate) mod tests;

pub use shell::{DedupMetrics, DedupStreams, RestoredShard, dedup};

/// Inference ids kept of an alert, newest last.
pub const MAX_INFERENCE_IDS: usize = 100;
/// Transitions that an alert may take: an analyst may change a verdict, a loop may not.
pub const MAX_TRANSITIONS: usize = 100;
/// Peers kept of an alert, see [`merge_peers`].
pub const MAX_PEERS: usize = 256;
/// Own addresses kept of an alert.
pub const MAX_LOCAL_ADDRESSES: usize = 32;
/// Rules kept of an alert.
pub const MAX_RULES: usize = 64;
/// Techniques kept of an alert.
pub const MAX_TECHNIQUES: usize = 64;

/// Settings of the operator, `alerts.*`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DedupConfig {
    /// Results below are no detections (`alerts.min_threshold`), unless a rule matched.
    pub min_threshold: f64,
    /// Rules below this level raise no detection (`rules.min_level`).
    pub rules_from: RuleLevel,
    /// How far apart two detections of one alert may be, in ms of event time (`alerts.dedup_window_seconds`).
    pub dedup_window_ms: i64,
    /// How much later a backlog's next window may close, in ms of arrival time.
    pub margin_ms: i64,
    /// How long after its last change an alert takes transitions, in ms (`alerts.retention`).
    pub retention_ms: i64,
    /// Shards of the key space.
    pub shards: u32,
    /// From which probability on an alert is HIGH or CRITICAL.
    pub severity: SeverityThresholds,
    /// Above it, the alerts of a shard that changed longest ago are forgotten early.
    pub max_alerts_per_shard: usize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self {
            min_threshold: 0.7,
            rules_from: RuleLevel::High,
            dedup_window_ms: 300_000,
            // A backfill window closes at most a window after it opened; one interval and lateness on top.
            margin_ms: 220_000,
            retention_ms: 7 * 24 * 3_600_000,
            shards: 64,
            severity: SeverityThresholds::DEFAULT,
            max_alerts_per_shard: 1024,
        }
    }
}

impl DedupConfig {
    /// Whether the result of a window raises or feeds an alert.
    pub fn is_detection(&self, result: &InferenceResult) -> bool {
        self.by_model(result) || result.raised_by_rule(self.rules_from).is_some()
    }

    fn by_model(&self, result: &InferenceResult) -> bool {
        result.prediction != Prediction::Error && result.attack_prob >= self.min_threshold
    }

    /// How bad a detection is: what the model says, or what the rules that raised it say, if that is worse.
    fn severity_of(&self, result: &InferenceResult) -> Severity {
        let model = self.by_model(result).then(|| self.severity.severity(result.attack_prob));
        let rule = result.raised_by_rule(self.rules_from).and_then(RuleLevel::severity);
        model.max(rule).unwrap_or(Severity::Medium)
    }
}

/// An analyst's decision, when it takes effect, and where it stands in the transitions topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Arrival, floors included: its time.
    pub arrival_ms: TimeMs,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// What was decided.
    pub decision: AlertTransition,
}

/// A change of one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AlertChange {
    /// Opened, fed, or its status changed: the whole alert.
    Updated(#[serde(with = "logster_schema::wire")] Box<AlertUpdate>),
    /// Its retention has passed: it takes no transition any more.
    Forgotten {
        /// Tenant.
        tenant_id: String,
        /// Host.
        endpoint_id: String,
        /// The alert.
        alert_id: String,
    },
}

impl AlertChange {
    /// The alert.
    pub fn alert_id(&self) -> &str {
        match self {
            Self::Updated(update) => &update.alert.alert_id,
            Self::Forgotten { alert_id, .. } => alert_id,
        }
    }

    /// The endpoint it is about.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Updated(update) => update.endpoint(),
            Self::Forgotten { tenant_id, endpoint_id, .. } => Endpoint::new(tenant_id, endpoint_id),
        }
    }
}

/// Why a transition was refused. A bounded set: it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such alert of this tenant and endpoint, or its retention has passed.
    UnknownAlert,
    /// Its status does not lead there.
    IllegalTransition,
    /// It has taken [`MAX_TRANSITIONS`].
    TooManyTransitions,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::UnknownAlert, Self::IllegalTransition, Self::TooManyTransitions];

    /// The reason as it stands in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownAlert => "unknown_alert",
            Self::IllegalTransition => "illegal_transition",
            Self::TooManyTransitions => "too_many_transitions",
        }
    }
}

/// A transition that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTransition {
    /// Why.
    pub reason: Refusal,
    /// Status of the alert, if there is such an alert.
    pub status: Option<AlertStatus>,
    /// The transition.
    pub transition: Transition,
}

/// What a call of [`Dedup::on_frontier`] yields, each with its time, times ascending.
#[derive(Debug, Default, PartialEq)]
pub struct DedupOutput {
    /// At most one change per alert and time.
    pub changes: Vec<(u64, AlertChange)>,
    /// In the order of their processing.
    pub refused: Vec<(u64, RefusedTransition)>,
    /// Detections that went into an alert.
    pub merged: u64,
    /// Severities of the alerts that detections opened.
    pub opened: Vec<Severity>,
}

/// The order of inputs of the same time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Detection(Endpoint, Platform, String),
    Transition(i32, i64),
}

#[derive(Debug)]
enum Input {
    Detection(Box<InferenceResult>),
    Transition(Transition),
}

/// The operator's core.
pub struct Dedup {
    config: DedupConfig,
    pending: BTreeMap<(u64, Order), Input>,
    shards: BTreeMap<u32, Shard>,
}

#[derive(Default)]
struct Shard {
    /// Inputs below are in the state already.
    restored_to: u64,
    alerts: BTreeMap<String, AlertUpdate>,
    /// By last change: which to forget next.
    by_change: BTreeSet<(TimeMs, String)>,
    /// Open alerts that may take detections.
    mergeable: BTreeMap<(Endpoint, Platform), BTreeSet<String>>,
    /// By last detection: which to take out of `mergeable` next.
    by_detection: BTreeSet<(TimeMs, String)>,
}

impl Dedup {
    /// A core without alerts.
    pub fn new(config: DedupConfig) -> Self {
        Self { config, pending: BTreeMap::new(), shards: BTreeMap::new() }
    }

    /// Takes a window's result; kept only if it is a detection. Its `time` lies at or ahead of the frontier.
    pub fn on_detection(&mut self, time: u64, result: Box<InferenceResult>) {
        let endpoint = result.endpoint();
        if self.config.is_detection(&result) && self.is_new(time, &endpoint) {
            let order = Order::Detection(endpoint, result.platform, result.inference_id.clone());
            self.pending.insert((time, order), Input::Detection(result));
        }
    }

    /// Takes an analyst's decision. Its arrival lies at or ahead of the frontier.
    pub fn on_transition(&mut self, transition: Transition) {
        let time = transition.arrival_ms.max(0) as u64;
        let AlertTransition { tenant_id, endpoint_id, .. } = &transition.decision;
        if self.is_new(time, &Endpoint::new(tenant_id, endpoint_id)) {
            let order = Order::Transition(transition.partition, transition.offset);
            self.pending.insert((time, order), Input::Transition(transition));
        }
    }

    fn is_new(&self, time: u64, endpoint: &Endpoint) -> bool {
        let shard = self.shards.get(&endpoint.shard(self.config.shards));
        shard.is_none_or(|shard| time >= shard.restored_to)
    }

    /// Processes everything below the frontier, in order; `None`: input complete.
    pub fn on_frontier(&mut self, frontier: Option<u64>) -> DedupOutput {
        let mut out = DedupOutput::default();
        // Past the last input there is no time at which to forget.
        let end = frontier.or(self.pending.last_key_value().map(|((time, _), _)| time + 1)).unwrap_or(0);
        while let Some(time) = self.next_time().filter(|time| *time < end) {
            for shard in self.shards.values_mut() {
                while shard.next_expiry(self.config.retention_ms).is_some_and(|expiry| expiry <= time) {
                    out.changes.extend(shard.forget_oldest().map(|change| (time, change)));
                }
            }
            let mut touched: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
            while let Some(first) = self.pending.first_entry().filter(|first| first.key().0 == time) {
                match first.remove() {
                    Input::Detection(result) => self.detect(time, &result, &mut out, &mut touched),
                    Input::Transition(transition) => self.decide(time, transition, &mut out, &mut touched),
                }
            }
            for (number, ids) in touched {
                let shard = self.shards.get_mut(&number).expect("touched, so it is there");
                for id in ids {
                    out.changes.push((time, AlertChange::Updated(Box::new(shard.alerts[&id].clone()))));
                }
                while shard.alerts.len() > self.config.max_alerts_per_shard {
                    out.changes.extend(shard.forget_oldest().map(|change| (time, change)));
                }
            }
        }
        for shard in self.shards.values_mut() {
            shard.close_to_detections(end as TimeMs, &self.config);
        }
        out
    }

    /// Earliest time at which a later `on_frontier` may emit.
    pub fn hold(&self) -> Option<u64> {
        self.next_time()
    }

    fn next_time(&self) -> Option<u64> {
        let input = self.pending.first_key_value().map(|((time, _), _)| *time);
        let retention = self.config.retention_ms;
        let expiry = self.shards.values().filter_map(|shard| shard.next_expiry(retention)).min();
        input.into_iter().chain(expiry).min()
    }

    /// The state of a shard at the frontier: what [`Dedup::restore`] takes back. Sorted by alert id.
    pub fn snapshot(&self, shard: u32) -> Vec<AlertUpdate> {
        self.shards.get(&shard).map_or(Vec::new(), |shard| shard.alerts.values().cloned().collect())
    }

    /// Puts back a shard's state at `frontier`. Inputs of the shard below it are ignored from here on.
    pub fn restore(&mut self, shard: u32, frontier: u64, alerts: Vec<AlertUpdate>) {
        let mut restored = Shard { restored_to: frontier, ..Shard::default() };
        for update in alerts {
            restored.put(update);
        }
        restored.close_to_detections(frontier as TimeMs, &self.config);
        self.shards.insert(shard, restored);
    }

    /// Alerts held, and of these how many may still take detections.
    pub fn sizes(&self) -> (usize, usize) {
        let sizes = self.shards.values().map(|shard| (shard.alerts.len(), shard.by_detection.len()));
        sizes.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn detect(
        &mut self,
        time: u64,
        result: &InferenceResult,
        out: &mut DedupOutput,
        touched: &mut BTreeMap<u32, BTreeSet<String>>,
    ) {
        let endpoint = result.endpoint();
        let number = endpoint.shard(self.config.shards);
        let shard = self.shards.entry(number).or_default();
        shard.close_to_detections(time as TimeMs, &self.config);
        let DedupConfig { dedup_window_ms: window, .. } = self.config;
        let open = shard.mergeable.get(&(endpoint, result.platform)).into_iter().flatten();
        let nearest = open.map(|id| (distance(&shard.alerts[id], result.window_end), id)).min();
        let update = match nearest.filter(|(distance, _)| *distance <= window) {
            Some((_, id)) => {
                let id = id.clone();
                let mut update = shard.take(&id);
                absorb(&mut update, result, time as TimeMs, &self.config);
                out.merged += 1;
                update
            }
            // Opened before, and closed since: a repetition must not wipe what the analyst said.
            None if shard.alerts.contains_key(&Alert::id(&result.inference_id)) => return,
            None => {
                let update = open_alert(result, time as TimeMs, &self.config);
                out.opened.push(update.alert.severity);
                update
            }
        };
        touched.entry(number).or_default().insert(update.alert.alert_id.clone());
        shard.put(update);
    }

    fn decide(
        &mut self,
        time: u64,
        transition: Transition,
        out: &mut DedupOutput,
        touched: &mut BTreeMap<u32, BTreeSet<String>>,
    ) {
        let AlertTransition { tenant_id, endpoint_id, alert_id, to, actor, note } = &transition.decision;
        let number = Endpoint::new(tenant_id, endpoint_id).shard(self.config.shards);
        let found = self.shards.get_mut(&number).filter(|shard| {
            let owner = shard.alerts.get(alert_id).map(|update| &update.alert);
            owner.is_some_and(|alert| alert.tenant_id == *tenant_id && alert.endpoint_id == *endpoint_id)
        });
        let Some(shard) = found else {
            out.refused.push((time, RefusedTransition { reason: Refusal::UnknownAlert, status: None, transition }));
            return;
        };
        let from = shard.alerts[alert_id].alert.status;
        let reason = if !from.may_become(*to) {
            Some(Refusal::IllegalTransition)
        } else if shard.alerts[alert_id].alert.transitions.len() >= MAX_TRANSITIONS {
            Some(Refusal::TooManyTransitions)
        } else {
            None
        };
        if let Some(reason) = reason {
            out.refused.push((time, RefusedTransition { reason, status: Some(from), transition }));
            return;
        }
        let mut update = shard.take(alert_id);
        let at = time as TimeMs;
        let applied = AppliedTransition { at, from, to: *to, actor: actor.clone(), note: note.clone() };
        update.alert.transitions.push(applied);
        update.alert.status = *to;
        update.alert.updated_at = at;
        touched.entry(number).or_default().insert(alert_id.clone());
        shard.put(update);
    }
}

impl Shard {
    /// Removes an alert from every index.
    fn take(&mut self, id: &str) -> AlertUpdate {
        let update = self.alerts.remove(id).expect("ids come from the indexes");
        self.by_change.remove(&(update.alert.updated_at, id.to_owned()));
        self.unmerge(&update);
        update
    }

    /// Enters an alert into the indexes. An open one may take detections until it is found to be too old.
    fn put(&mut self, update: AlertUpdate) {
        let id = &update.alert.alert_id;
        self.by_change.insert((update.alert.updated_at, id.clone()));
        if !update.alert.status.is_closed() {
            self.by_detection.insert((update.last_detection, id.clone()));
            self.mergeable.entry((update.endpoint(), update.alert.platform)).or_default().insert(id.clone());
        }
        self.alerts.insert(id.clone(), update);
    }

    fn unmerge(&mut self, update: &AlertUpdate) {
        self.by_detection.remove(&(update.last_detection, update.alert.alert_id.clone()));
        let key = (update.endpoint(), update.alert.platform);
        if let Some(ids) = self.mergeable.get_mut(&key) {
            ids.remove(&update.alert.alert_id);
            if ids.is_empty() {
                self.mergeable.remove(&key);
            }
        }
    }

    /// Takes what is too old for a detection at `now` out of `mergeable`.
    fn close_to_detections(&mut self, now: TimeMs, config: &DedupConfig) {
        while let Some((last, id)) = self.by_detection.first() {
            if last + config.dedup_window_ms + config.margin_ms >= now {
                break;
            }
            let update = self.alerts[id].clone();
            self.unmerge(&update);
        }
    }

    /// When the next alert's retention has passed.
    fn next_expiry(&self, retention_ms: i64) -> Option<u64> {
        let (changed, _) = self.by_change.first()?;
        Some(((changed + retention_ms + 1).max(0) as u64).max(self.restored_to))
    }

    /// Forgets the alert that changed longest ago.
    fn forget_oldest(&mut self) -> Option<AlertChange> {
        let (_, id) = self.by_change.first()?.clone();
        let Alert { tenant_id, endpoint_id, alert_id, .. } = self.take(&id).alert;
        Some(AlertChange::Forgotten { tenant_id, endpoint_id, alert_id })
    }
}

/// From a window end to the span of an alert's window ends, in ms of event time.
fn distance(update: &AlertUpdate, window_end: TimeMs) -> i64 {
    (update.active_from - window_end).max(window_end - update.alert.last_seen).max(0)
}

fn open_alert(result: &InferenceResult, time: TimeMs, config: &DedupConfig) -> AlertUpdate {
    let alert = Alert {
        alert_id: Alert::id(&result.inference_id),
        revision: 0,
        tenant_id: result.tenant_id.clone(),
        endpoint_id: result.endpoint_id.clone(),
        platform: result.platform,
        status: AlertStatus::Open,
        severity: Severity::Medium,
        attack_prob: f64::NEG_INFINITY,
        first_seen: result.window_start,
        last_seen: result.window_end,
        created_at: result.window_end,
        updated_at: time,
        detection_count: 0,
        inference_ids: Vec::new(),
        reason: String::new(),
        key_edges: Vec::new(),
        rules: Vec::new(),
        ruleset: None,
        ttp_techniques: Vec::new(),
        ttp_explanation: String::new(),
        related_endpoints: Vec::new(),
        incident_id: None,
        transitions: Vec::new(),
        backfill: true,
        model_version: String::new(),
    };
    let mut update = AlertUpdate {
        alert,
        active_from: result.window_end,
        last_detection: time,
        ttp_evidence: BTreeMap::new(),
        peers: Vec::new(),
        local_addresses: Vec::new(),
    };
    absorb(&mut update, result, time, config);
    update
}

/// Merges a detection into its alert. The worst one gives the severity, the one with the highest `attack_prob` edges
/// and model.
fn absorb(update: &mut AlertUpdate, result: &InferenceResult, time: TimeMs, config: &DedupConfig) {
    let alert = &mut update.alert;
    if result.attack_prob > alert.attack_prob {
        alert.attack_prob = result.attack_prob;
        alert.key_edges = result.key_edges.clone();
        alert.model_version = result.model_version.clone();
    }
    alert.severity = alert.severity.max(config.severity_of(result));
    merge_rules(&mut alert.rules, &result.rules);
    alert.ruleset.clone_from(&result.ruleset);
    alert.first_seen = alert.first_seen.min(result.window_start);
    alert.last_seen = alert.last_seen.max(result.window_end);
    alert.updated_at = time;
    alert.detection_count += 1;
    alert.inference_ids.push(result.inference_id.clone());
    if alert.inference_ids.len() > MAX_INFERENCE_IDS {
        alert.inference_ids.remove(0);
    }
    alert.backfill &= result.backfill;
    let sentences = result.ttp_evidence.iter().map(String::as_str).chain(std::iter::repeat(""));
    for (technique, sentence) in result.ttp_techniques.iter().zip(sentences) {
        if let Err(at) = alert.ttp_techniques.binary_search(technique)
            && alert.ttp_techniques.len() < MAX_TECHNIQUES
        {
            alert.ttp_techniques.insert(at, technique.clone());
            update.ttp_evidence.insert(technique.clone(), sentence.to_owned());
        }
    }
    update.active_from = update.active_from.min(result.window_end);
    update.last_detection = time;
    merge_peers(&mut update.peers, &result.peers, MAX_PEERS);
    merge_addresses(&mut update.local_addresses, &result.local_addresses, MAX_LOCAL_ADDRESSES);
}

/// Adds what rules found in a detection's window. Windows overlap, so first and last matter, not how often.
fn merge_rules(rules: &mut Vec<AlertRule>, matches: &[RuleMatch]) {
    for m in matches {
        match rules.binary_search_by(|rule| rule.rule_id.cmp(&m.rule_id)) {
            Ok(at) => {
                let rule = &mut rules[at];
                let last_seen = rule.last_seen.max(m.last_seen);
                if m.first_seen < rule.first_seen {
                    *rule = AlertRule::from(m);
                }
                rule.last_seen = last_seen;
            }
            Err(at) if rules.len() < MAX_RULES => rules.insert(at, AlertRule::from(m)),
            Err(_) => {}
        }
    }
}
