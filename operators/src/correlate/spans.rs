//! Turns alert changes into the collection that correlation joins: when each alert fired, cut into slots.
//!
//! - Input: alert changes at their time, on the worker of their tenant's shard.
//! - Output: changes of the [`Span`] collection, and the alert changes themselves for [`super::tenants`],
//!   told apart by what may be correlated and which alerts can be let go.
//! - State: one [`Known`] per alert; let go of in whole runs.
//! - Ordering: changes wait for the frontier and are taken by time; a time has one change an alert.
//! - Failure: none of its own; rebuilt from the alerts of a tenant checkpoint.
//!
//! Two alerts are close if their activity, from first to last window end, is at most the correlation window
//! apart. With that window added to the end of each, close means that the extended intervals overlap: they
//! share an instant, and so a *slot* of time in which their parts overlap. Joining by (tenant, slot) therefore
//! finds every close pair and compares nothing that is far apart.
//!
//! **Letting go.** An alert leaves the collection for being a false positive, or together with all it may ever
//! have been joined with: a *run* of overlapping intervals of a tenant, once dedup has forgotten all of them
//! and no later window can reach back to them. So expiry never takes a published link apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logster_schema::{AlertStatus, AlertUpdate, TimeMs};
use serde::{Deserialize, Serialize};

use super::{CorrelateConfig, Node, TrackedAlert};
use crate::dedup::AlertChange;

/// Slots per correlation window: an alert that fires once is in one slot or two.
const SLOT_WINDOWS: i64 = 10;

/// Where spans meet: tenant and slot of time.
pub type Slot = (Arc<str>, i64);

/// The part of an alert's extended interval that lies in one slot; both ends belong to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The alert.
    pub node: Node,
    /// Hash of its endpoint: an endpoint is not related to itself.
    pub endpoint: u64,
    /// First instant, ms.
    pub from: TimeMs,
    /// Last instant, ms.
    pub to: TimeMs,
}

/// What goes on to the tenants' state, at its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Admitted {
    /// The alert after a change; whether it is in the collection.
    Updated(Node, #[serde(with = "logster_schema::wire")] Box<AlertUpdate>, bool),
    /// Dedup has forgotten it: no transition can reach it any more.
    Forgotten(Node),
    /// Its run is over: nothing can be linked with it any more.
    Gone(Node),
}

/// Changes at one time.
#[derive(Debug, Default, PartialEq)]
pub struct SpansOutput {
    /// Of the collection.
    pub spans: Vec<((Slot, Span), u64, isize)>,
    /// For the tenants' state.
    pub admitted: Vec<(u64, Admitted)>,
    /// Alerts that opened while too many others were live: published, not correlated.
    pub overflow: u64,
}

/// What is known of an alert that dedup holds, or that is in the collection.
#[derive(Debug)]
struct Known {
    endpoint: u64,
    from: TimeMs,
    /// Last instant of the extended interval.
    to: TimeMs,
    last_detection: TimeMs,
    correlated: bool,
    false_positive: bool,
    forgotten: bool,
}

#[derive(Default)]
struct Shard {
    restored_to: u64,
    tenants: BTreeMap<Arc<str>, BTreeMap<Node, Known>>,
    correlated: usize,
}

/// The core.
pub struct Spans {
    config: CorrelateConfig,
    pending: BTreeMap<u64, Vec<AlertChange>>,
    shards: BTreeMap<u32, Shard>,
}

impl Spans {
    /// No alerts.
    pub fn new(config: CorrelateConfig) -> Self {
        Self { config, pending: BTreeMap::new(), shards: BTreeMap::new() }
    }

    /// Takes a change. Its time lies at or ahead of the frontier, or below what its shard was restored to.
    pub fn on_change(&mut self, time: u64, change: AlertChange) {
        let shard = change.endpoint().tenant_shard(self.config.shards);
        if self.shards.get(&shard).is_none_or(|shard| time >= shard.restored_to) {
            self.pending.entry(time).or_default().push(change);
        }
    }

    /// Earliest time at which a later `on_frontier` may emit.
    pub fn hold(&self) -> Option<u64> {
        self.pending.first_key_value().map(|(time, _)| *time)
    }

    /// Puts back the alerts of a shard; yields the collection's content at `frontier`.
    pub fn restore(&mut self, number: u32, frontier: u64, alerts: &[TrackedAlert]) -> SpansOutput {
        let mut out = SpansOutput::default();
        let mut shard = Shard { restored_to: frontier, ..Shard::default() };
        for TrackedAlert { update, correlated, forgotten } in alerts {
            let node = Node::of(number, &update.alert.alert_id);
            let mut known = self.known(update, *correlated);
            known.forgotten = *forgotten;
            shard.correlated += usize::from(*correlated);
            let tenant: Arc<str> = update.alert.tenant_id.as_str().into();
            emit(&mut out, frontier, None, Some((&tenant, node, &known)), self.config.correlation_window_ms);
            shard.tenants.entry(tenant).or_default().insert(node, known);
        }
        self.shards.insert(number, shard);
        out
    }

    /// Takes every change below the frontier, in order of time; `None`: input complete.
    pub fn on_frontier(&mut self, frontier: Option<u64>) -> SpansOutput {
        let mut out = SpansOutput::default();
        while let Some(entry) = self.pending.first_entry().filter(|e| frontier.is_none_or(|f| *e.key() < f)) {
            let (time, mut changes) = entry.remove_entry();
            let order = |change: &AlertChange| matches!(change, AlertChange::Forgotten { .. });
            changes.sort_by(|a, b| (a.alert_id(), order(a)).cmp(&(b.alert_id(), order(b))));
            let mut forgetting: BTreeSet<(u32, Arc<str>)> = BTreeSet::new();
            for change in changes {
                let endpoint = change.endpoint();
                let number = endpoint.tenant_shard(self.config.shards);
                let tenant: Arc<str> = endpoint.tenant().into();
                match change {
                    AlertChange::Updated(update) => self.update(time, number, tenant, update, &mut out),
                    AlertChange::Forgotten { alert_id, .. } => {
                        let node = Node::of(number, &alert_id);
                        let Some(alerts) = self.shards.get_mut(&number).and_then(|s| s.tenants.get_mut(&tenant)) else {
                            continue;
                        };
                        match alerts.get_mut(&node) {
                            Some(known) if known.correlated => {
                                known.forgotten = true;
                                out.admitted.push((time, Admitted::Forgotten(node)));
                                forgetting.insert((number, tenant));
                            }
                            Some(_) => {
                                alerts.remove(&node);
                                out.admitted.push((time, Admitted::Gone(node)));
                            }
                            None => {}
                        }
                    }
                }
            }
            for (number, tenant) in forgetting {
                self.let_go(time, number, &tenant, &mut out);
            }
        }
        out
    }

    fn known(&self, update: &AlertUpdate, correlated: bool) -> Known {
        Known {
            endpoint: update.endpoint().hash64(),
            from: update.active_from,
            to: update.alert.last_seen + self.config.correlation_window_ms,
            last_detection: update.last_detection,
            correlated,
            false_positive: update.alert.status == AlertStatus::FalsePositive,
            forgotten: false,
        }
    }

    fn update(&mut self, time: u64, number: u32, tenant: Arc<str>, update: Box<AlertUpdate>, out: &mut SpansOutput) {
        let node = Node::of(number, &update.alert.alert_id);
        let config = self.config;
        let shard = self.shards.entry(number).or_default();
        let alerts = shard.tenants.entry(Arc::clone(&tenant)).or_default();
        let correlated = match alerts.get(&node) {
            Some(known) => known.correlated,
            None => {
                let live = |k: &&Known| k.correlated && k.last_detection + config.active_ms >= time as TimeMs;
                let room = shard.correlated < config.max_correlated_per_shard
                    && alerts.values().filter(live).count() < config.max_live_per_tenant;
                shard.correlated += usize::from(room);
                out.overflow += u64::from(!room);
                room
            }
        };
        let new = self.known(&update, correlated);
        let alerts = self.shards.get_mut(&number).and_then(|s| s.tenants.get_mut(&tenant)).expect("entered above");
        let before = alerts.get(&node).map(|old| (&tenant, node, old));
        emit(out, time, before, Some((&tenant, node, &new)), config.correlation_window_ms);
        alerts.insert(node, new);
        out.admitted.push((time, Admitted::Updated(node, update, correlated)));
    }

    /// Lets go of the tenant's runs that are over.
    fn let_go(&mut self, time: u64, number: u32, tenant: &Arc<str>, out: &mut SpansOutput) {
        let Some(shard) = self.shards.get_mut(&number) else { return };
        let Some(alerts) = shard.tenants.get_mut(tenant) else { return };
        let correlated = alerts.iter().filter(|(_, known)| known.correlated);
        let mut by_time: Vec<(TimeMs, TimeMs, Node)> = correlated.map(|(node, k)| (k.from, k.to, *node)).collect();
        by_time.sort_unstable();
        let mut runs: Vec<(TimeMs, Vec<Node>)> = Vec::new();
        for (from, to, node) in by_time {
            match runs.last_mut() {
                Some((end, run)) if from <= *end => {
                    *end = to.max(*end);
                    run.push(node);
                }
                _ => runs.push((to, vec![node])),
            }
        }
        for (end, run) in runs {
            let beyond_reach = end < time as TimeMs - self.config.reach_back_ms;
            if !beyond_reach || run.iter().any(|node| !alerts[node].forgotten) {
                continue;
            }
            for node in run {
                let known = alerts.remove(&node).expect("taken from the same map");
                emit(out, time, Some((tenant, node, &known)), None, self.config.correlation_window_ms);
                shard.correlated -= 1;
                out.admitted.push((time, Admitted::Gone(node)));
            }
        }
        if alerts.is_empty() {
            shard.tenants.remove(tenant);
        }
    }

    /// Alerts held, and of these how many are correlated.
    pub fn sizes(&self) -> (usize, usize) {
        let held = |shard: &Shard| shard.tenants.values().map(BTreeMap::len).sum::<usize>();
        self.shards.values().fold((0, 0), |(all, some), shard| (all + held(shard), some + shard.correlated))
    }
}

type Entry<'a> = (&'a Arc<str>, Node, &'a Known);

/// Writes the difference between the spans of an alert before and after.
fn emit(out: &mut SpansOutput, time: u64, before: Option<Entry<'_>>, after: Option<Entry<'_>>, window_ms: i64) {
    let before: BTreeSet<(Slot, Span)> = before.into_iter().flat_map(|entry| spans(entry, window_ms)).collect();
    let after: BTreeSet<(Slot, Span)> = after.into_iter().flat_map(|entry| spans(entry, window_ms)).collect();
    out.spans.extend(before.difference(&after).map(|span| (span.clone(), time, -1)));
    out.spans.extend(after.difference(&before).map(|span| (span.clone(), time, 1)));
}

/// An alert's extended interval, slot by slot; nothing if it is not to be correlated.
fn spans<'a>((tenant, node, known): Entry<'a>, window_ms: i64) -> impl Iterator<Item = (Slot, Span)> + 'a {
    let width = (window_ms * SLOT_WINDOWS).max(1);
    let counts = known.correlated && !known.false_positive;
    let slots = counts.then(|| known.from.div_euclid(width)..=known.to.div_euclid(width));
    slots.into_iter().flatten().map(move |slot| {
        let (first, last) = (slot * width, (slot + 1) * width - 1);
        let (from, to) = (known.from.max(first), known.to.min(last));
        ((Arc::clone(tenant), slot), Span { node, endpoint: known.endpoint, from, to })
    })
}
