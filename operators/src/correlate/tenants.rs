//! The alerts of the tenants as they are published: what dedup says, with related endpoints and incident.
//!
//! - Input: admitted alert changes, and changes of the links and incidents that the collections found, each
//!   at its time.
//! - Output: at each time one [`TenantChange`] per alert whose record or state changed.
//! - State: per alert its last published record with the facts behind it, its links and its incident.
//! - Ordering: everything of a time is applied at once, when the frontier has passed it.
//! - Failure: none of its own; a checkpoint has the alerts, the collections give links and incidents back.
//!
//! A record is published if it differs from the last one, so a restart, which computes every link and incident
//! again, publishes nothing; and a revision counts the records of an alert, nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use logster_schema::{Alert, AlertUpdate, RelatedEndpoint, TimeMs};
use serde::{Deserialize, Serialize};

use super::contact::{Contact, Reach};
use super::spans::Admitted;
use super::{MAX_RELATED, Node, TenantChange, TrackedAlert};
use crate::enrich::enrich;

/// One change, on its way to its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Of an alert.
    Alert(Admitted),
    /// A link from the first to the second appeared (1) or went away (-1).
    Link(Node, Node, isize),
    /// The first's incident became the second's id (1), or is that no longer (-1).
    Incident(Node, u128, isize),
}

impl Input {
    /// The alert it is about.
    pub fn node(&self) -> Node {
        match self {
            Self::Alert(Admitted::Updated(node, ..) | Admitted::Forgotten(node) | Admitted::Gone(node)) => *node,
            Self::Link(node, ..) | Self::Incident(node, ..) => *node,
        }
    }
}

/// What [`Tenants::on_frontier`] yields.
#[derive(Debug, Default)]
pub struct TenantsOutput {
    /// Times ascending; at most one published change per alert and time.
    pub changes: Vec<(u64, TenantChange)>,
    /// Links in which a first contact was found.
    pub lateral: u64,
}

struct Entry {
    tracked: TrackedAlert,
    reach: Reach,
    /// With the earliest contact between the two, as far as either tells.
    links: BTreeMap<Node, Option<Contact>>,
    incident: Option<u128>,
}

/// The core.
#[derive(Default)]
pub struct Tenants {
    pending: BTreeMap<u64, Vec<Input>>,
    alerts: BTreeMap<Node, Entry>,
}

impl Tenants {
    /// Takes a change. Its time lies at or ahead of the frontier.
    pub fn on_input(&mut self, time: u64, input: Input) {
        self.pending.entry(time).or_default().push(input);
    }

    /// Earliest time at which a later `on_frontier` may emit.
    pub fn hold(&self) -> Option<u64> {
        self.pending.first_key_value().map(|(time, _)| *time)
    }

    /// Puts back a shard's alerts. Their links and incidents follow from the collections.
    pub fn restore(&mut self, shard: u32, alerts: Vec<TrackedAlert>) {
        for tracked in alerts {
            let node = Node::of(shard, &tracked.update.alert.alert_id);
            let reach = Reach::of(&tracked.update);
            self.alerts.insert(node, Entry { tracked, reach, links: BTreeMap::new(), incident: None });
        }
    }

    /// Alerts held.
    pub fn len(&self) -> usize {
        self.alerts.len()
    }

    /// No alerts held.
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty()
    }

    /// Applies everything below the frontier, time by time; `None`: input complete.
    pub fn on_frontier(&mut self, frontier: Option<u64>) -> TenantsOutput {
        let mut out = TenantsOutput::default();
        while let Some(entry) = self.pending.first_entry().filter(|e| frontier.is_none_or(|f| *e.key() < f)) {
            let (time, inputs) = entry.remove_entry();
            self.apply(time, inputs, &mut out);
        }
        out
    }

    fn apply(&mut self, time: u64, inputs: Vec<Input>, out: &mut TenantsOutput) {
        let mut fresh: BTreeMap<Node, Alert> = BTreeMap::new();
        let (mut forgotten, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let mut links: BTreeMap<(Node, Node), isize> = BTreeMap::new();
        let mut incidents: BTreeMap<(Node, u128), isize> = BTreeMap::new();
        // Whose record may differ, and whose contacts.
        let mut dirty: BTreeSet<Node> = BTreeSet::new();
        let mut contacts: BTreeSet<(Node, Node)> = BTreeSet::new();
        for input in inputs {
            match input {
                Input::Alert(Admitted::Updated(node, update, correlated)) => {
                    dirty.insert(node);
                    if self.update(node, &update, correlated) {
                        let linked = self.alerts[&node].links.keys();
                        contacts.extend(linked.flat_map(|other| [(node, *other), (*other, node)]));
                    }
                    fresh.insert(node, update.alert);
                }
                Input::Alert(Admitted::Forgotten(node)) => _ = forgotten.insert(node),
                Input::Alert(Admitted::Gone(node)) => _ = gone.insert(node),
                Input::Link(from, to, diff) => *links.entry((from, to)).or_default() += diff,
                Input::Incident(node, id, diff) => *incidents.entry((node, id)).or_default() += diff,
            }
        }
        // What goes, goes with all it was linked with: its record stays as it was last published.
        for ((from, to), diff) in links {
            let Some(entry) = self.alerts.get_mut(&from).filter(|_| diff != 0 && !gone.contains(&from)) else {
                continue;
            };
            dirty.insert(from);
            if diff > 0 {
                entry.links.insert(to, None);
                contacts.insert((from, to));
            } else {
                entry.links.remove(&to);
            }
        }
        for ((node, id), diff) in incidents {
            let Some(entry) = self.alerts.get_mut(&node).filter(|_| diff != 0 && !gone.contains(&node)) else {
                continue;
            };
            dirty.insert(node);
            if diff > 0 {
                entry.incident = Some(id);
            } else if entry.incident == Some(id) {
                entry.incident = None;
            }
        }
        for (from, to) in contacts {
            let (Some(a), Some(b)) = (self.alerts.get(&from), self.alerts.get(&to)) else { continue };
            let Some(before) = a.links.get(&to) else { continue };
            let found = a.reach.contact(&b.reach);
            if *before != found {
                out.lateral += u64::from(before.is_none() && from < to);
                self.alerts.get_mut(&from).and_then(|entry| entry.links.insert(to, found));
                dirty.insert(from);
            }
        }
        for node in &dirty {
            let published = self.publish(time, *node, fresh.remove(node), forgotten.remove(node));
            out.changes.extend(published.map(|change| (time, change)));
        }
        for node in forgotten.iter().filter(|node| !gone.contains(*node)) {
            let change = self.publish(time, *node, None, true);
            out.changes.extend(change.map(|change| (time, change)));
        }
        for node in gone {
            if let Some(entry) = self.alerts.remove(&node) {
                let alert_id = entry.tracked.update.alert.alert_id;
                out.changes.push((time, TenantChange { shard: node.shard, alert_id, state: None, published: false }));
            }
        }
    }

    /// Enters an alert's facts, and says whether they may change its contacts. Its record stays as published.
    fn update(&mut self, node: Node, update: &AlertUpdate, correlated: bool) -> bool {
        let Some(entry) = self.alerts.get_mut(&node) else {
            let tracked = TrackedAlert { update: Box::new(update.clone()), correlated, forgotten: false };
            let reach = Reach::of(update);
            self.alerts.insert(node, Entry { tracked, reach, links: BTreeMap::new(), incident: None });
            return true;
        };
        let known = &mut entry.tracked.update;
        let same = known.peers == update.peers && known.local_addresses == update.local_addresses;
        let published = std::mem::replace(&mut known.alert, update.alert.clone());
        **known = AlertUpdate { alert: published, ..update.clone() };
        if !same {
            entry.reach = Reach::of(update);
        }
        !same
    }

    /// The alert's record from what is known now, if it differs from the last one, or if its state does.
    fn publish(&mut self, time: u64, node: Node, fresh: Option<Alert>, forgotten: bool) -> Option<TenantChange> {
        let entry = self.alerts.get(&node)?;
        let last = &entry.tracked.update.alert;
        let mut next = fresh.unwrap_or_else(|| last.clone());
        next.revision = last.revision;
        next.updated_at = last.updated_at;
        next.related_endpoints = self.related(entry);
        next.incident_id = entry.incident.map(Node::alert_id);
        enrich(&mut next, &entry.tracked.update.ttp_evidence);
        let published = next.revision == 0 || next != *last;
        if published {
            next.revision += 1;
            next.updated_at = time as TimeMs;
        }
        let tracked = &mut self.alerts.get_mut(&node)?.tracked;
        tracked.update.alert = next;
        tracked.forgotten |= forgotten;
        let alert_id = tracked.update.alert.alert_id.clone();
        let state = || Some(Box::new(tracked.clone()));
        (published || forgotten).then(|| TenantChange { shard: node.shard, alert_id, state: state(), published })
    }

    /// The alerts that one is linked with: those with a contact first, then the earliest.
    fn related(&self, entry: &Entry) -> Vec<RelatedEndpoint> {
        let me = &entry.tracked.update.alert;
        let others = entry.links.iter().filter_map(|(node, contact)| {
            let other = &self.alerts.get(node)?.tracked.update.alert;
            Some((Reverse(contact.is_some()), other.created_at, &other.alert_id, &other.endpoint_id, contact))
        });
        let mut others: Vec<_> = others.collect();
        others.sort_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)));
        others.truncate(MAX_RELATED);
        let mut related: Vec<RelatedEndpoint> = others
            .into_iter()
            .map(|(_, created_at, alert_id, endpoint_id, contact)| RelatedEndpoint {
                endpoint_id: endpoint_id.clone(),
                alert_id: alert_id.clone(),
                lateral_movement: contact.is_some(),
                evidence: contact.as_ref().map_or_else(|| apart(me.created_at, created_at), |c| c.sentence.clone()),
            })
            .collect();
        related.sort();
        related
    }
}

/// How the opening of another alert lies to that of this one.
fn apart(mine: TimeMs, other: TimeMs) -> String {
    match (other - mine) / 1000 {
        0 => "alerted at the same time".to_owned(),
        s if s > 0 => format!("alerted {s} s later"),
        s => format!("alerted {} s earlier", -s),
    }
}
