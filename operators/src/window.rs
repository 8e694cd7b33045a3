//! Keeps each endpoint's last `width` of events and closes a window every `hop`.
//!
//! The width is made of *panes* of one hop each. An event falls into one pane; a pane is sealed once, when
//! the watermark passes its end, and serves the `width / hop` windows that cover it. Every endpoint has a
//! grid of its own, shifted by [`Endpoint::phase_ms`], so that closings spread over the hop.
//!
//! - Input: [`Observation`]s exchanged by shard; the frontier is the watermark.
//! - Output: one [`ClosedWindow`] per key and tick with activity, at its end; backfill windows at their
//!   closing.
//! - State: open panes' observations, sealed panes, open backfill windows; freed when no window needs them.
//! - Ordering: any arrival order ahead of the frontier gives the same output. Panes are sealed from
//!   observations in [`Observation::order`]; backfill is stepped in order of arrival and position.
//! - Failure: none of its own. Live panes are rebuilt by replaying one width plus lateness and skew; what
//!   backfill remembers beyond that is in [`Windows::backlog_snapshot`].
//!
//! # Time
//! Timely times are watermarks: arrival less `max_lateness`. A live window closes at its end. A backfill
//! record of arrival `a` is stepped at `a + 1 - max_lateness`, when every record of that arrival is here, and a
//! backfill window that closes at arrival `c` is emitted at `c - max_lateness`: both are functions of the log.
//!
//! ```text
//! observation ─ live ─────▶ pane ── watermark ≥ end ──▶ sealed ──▶ up to width/hop windows
//!             └ backfill ─▶ queue by arrival ──▶ backlog of the key: opens windows on the same grid, closes
//!                           them when it has moved past, fallen quiet, or they have been open too long or are too many
//! ```

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use logster_schema::{Endpoint, Lane, Observation, Platform, Position, RuleHit, TimeMs};
use prometheus::{IntCounter, IntGauge};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::scheduling::Activator;

/// Sizes of the window operator.
#[derive(Clone, Copy, Debug)]
pub struct WindowConfig {
    /// Length of a window (`inference.window`); a multiple of the hop.
    pub width_ms: i64,
    /// Distance of windows (`inference.interval`).
    pub hop_ms: i64,
    /// `input.max_lateness`: ties arrival to the watermark.
    pub max_lateness_ms: i64,
    /// Events of one window that enter the graph (`inference.max_events_per_window`).
    pub max_events: usize,
    /// Open backfill windows of one key (`input.max_open_backfill_windows`), oldest closed first.
    pub max_open_backfill: usize,
}

impl WindowConfig {
    /// Panes of one window.
    fn panes(&self) -> i64 {
        self.width_ms / self.hop_ms
    }
    /// Events of one pane that enter the graph: an equal share of the window's budget.
    fn pane_budget(&self) -> usize {
        (self.max_events / self.panes() as usize).max(1)
    }
}

/// What a pane becomes when it is complete. The product's is `PaneGraph`; tests use simpler ones.
pub trait Pane: 'static {
    /// Built once from the pane's observations in canonical order.
    fn seal(platform: Platform, observations: &[Observation]) -> Self;
}

/// A rule's matches among the events of a pane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaneMatch {
    /// Number of the rule.
    pub rule: u32,
    /// Events that it matched, those left out of the content included.
    pub count: u64,
    /// Time of the first of them.
    pub first_ms: TimeMs,
    /// Time of the last of them.
    pub last_ms: TimeMs,
    /// What matched in the first.
    pub evidence: String,
}

/// A sealed pane with its counts.
#[derive(Debug)]
pub struct SealedPane<P> {
    /// Content.
    pub content: P,
    /// Rules that matched, by number.
    pub rules: Vec<PaneMatch>,
    /// Events that fell into it.
    pub events: u64,
    /// Of these, events left out of the content because the key was over its budget.
    pub sampled_out: u64,
}

/// A window with at least one event, complete.
#[derive(Debug)]
pub struct ClosedWindow<P> {
    /// Whose.
    pub endpoint: Endpoint,
    /// Which platform's.
    pub platform: Platform,
    /// Start, inclusive.
    pub start_ms: TimeMs,
    /// End, exclusive.
    pub end_ms: TimeMs,
    /// Timely time to emit at: the end, or for backfill the closing less lateness.
    pub emit_ms: TimeMs,
    /// Backfill: arrival time at which it opened.
    pub opened_ms: Option<TimeMs>,
    /// Its panes with events, in time order.
    pub panes: Vec<Arc<SealedPane<P>>>,
    /// The last of `panes` is that of the window's last hop. Each pane is so in exactly one window.
    pub fresh: bool,
}

impl<P> ClosedWindow<P> {
    /// Events of the window, sampled ones included.
    pub fn events(&self) -> u64 {
        self.panes.iter().map(|p| p.events).sum()
    }
    /// Events left out of the graph.
    pub fn sampled_out(&self) -> u64 {
        self.panes.iter().map(|p| p.sampled_out).sum()
    }
    /// Rules that matched in the window, by number, and how many of the matches are in its last hop.
    pub fn rules(&self) -> BTreeMap<u32, (PaneMatch, u64)> {
        let mut found: BTreeMap<u32, (PaneMatch, u64)> = BTreeMap::new();
        for (at, pane) in self.panes.iter().enumerate() {
            let fresh = self.fresh && at + 1 == self.panes.len();
            for matched in &pane.rules {
                let new = if fresh { matched.count } else { 0 };
                match found.entry(matched.rule) {
                    Entry::Vacant(entry) => drop(entry.insert((matched.clone(), new))),
                    Entry::Occupied(mut entry) => {
                        // Panes come in time order: the first one's evidence stays.
                        let (all, new_ones) = entry.get_mut();
                        all.count += matched.count;
                        all.last_ms = matched.last_ms;
                        *new_ones += new;
                    }
                }
            }
        }
        found
    }
}

/// One endpoint on one platform: the key of windows.
type Key = (Endpoint, Platform);

/// Observations of a pane that may still grow: all of them up to the budget, then the ones whose positions
/// hash lowest. A set of the log alone: arrival order does not show.
#[derive(Debug, Default)]
struct OpenPane {
    events: u64,
    kept: Vec<Observation>,
    /// By rule: its matches, and where the first of them stands in canonical order. Of all events, kept or not.
    rules: BTreeMap<u32, (PaneMatch, (TimeMs, Position))>,
}

impl OpenPane {
    fn push(&mut self, mut observation: Observation, budget: usize) {
        self.events += 1;
        if let Some(hits) = observation.rules.take() {
            self.matched(observation.order(), *hits);
        }
        self.kept.push(observation);
        // Amortized: cut only when twice over.
        if self.kept.len() >= budget.saturating_mul(2).max(64) {
            self.cut(budget);
        }
    }

    fn matched(&mut self, order: (TimeMs, Position), hits: Vec<RuleHit>) {
        let (time, _) = order;
        for RuleHit { rule, evidence } in hits {
            let new = PaneMatch { rule, count: 1, first_ms: time, last_ms: time, evidence };
            match self.rules.entry(rule) {
                Entry::Vacant(entry) => drop(entry.insert((new, order))),
                Entry::Occupied(mut entry) => {
                    let (all, first) = entry.get_mut();
                    let (count, last_ms) = (all.count + 1, all.last_ms.max(time));
                    if order < *first {
                        (*all, *first) = (new, order);
                    }
                    (all.count, all.last_ms) = (count, last_ms);
                }
            }
        }
    }

    fn cut(&mut self, budget: usize) {
        if self.kept.len() > budget {
            self.kept.select_nth_unstable_by_key(budget, |o| (position_hash(&o.position), o.position));
            self.kept.truncate(budget);
        }
    }

    fn seal<P: Pane>(mut self, platform: Platform, budget: usize) -> SealedPane<P> {
        self.cut(budget);
        self.kept.sort_unstable_by_key(Observation::order);
        SealedPane {
            content: P::seal(platform, &self.kept),
            rules: self.rules.into_values().map(|(matched, _)| matched).collect(),
            events: self.events,
            sampled_out: self.events - self.kept.len() as u64,
        }
    }
}

/// Spreads positions evenly (splitmix64's finalizer), so that sampling takes no pattern of the log.
fn position_hash(p: &Position) -> u64 {
    let mut x = (p.offset as u64) ^ ((p.partition as u64) << 48) ^ ((p.topic as u64) << 60);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Debug)]
enum PaneState<P> {
    Open(OpenPane),
    Sealed(Arc<SealedPane<P>>),
}

/// Live panes of one key, by pane number (`(time - phase) / hop`, rounded down).
#[derive(Debug)]
struct LiveKey<P> {
    panes: BTreeMap<i64, PaneState<P>>,
    /// End of the next window to close; in the schedule under this time.
    next_end: TimeMs,
}

/// What a key's backfill remembers beyond the replay: part of the shard's checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// Latest event time of the backlog so far.
    max_time_ms: TimeMs,
    /// Latest arrival of the backlog so far.
    last_arrival_ms: TimeMs,
    /// Open windows: end to opening (arrival time).
    open: BTreeMap<TimeMs, TimeMs>,
}

impl Backlog {
    /// Nothing is open: there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// A key's backlog in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacklogEntry {
    /// Whose.
    pub endpoint: Endpoint,
    /// Which platform's.
    pub platform: Platform,
    /// What it remembers.
    pub backlog: Backlog,
}

#[derive(Debug, Default)]
struct BackfillKey {
    backlog: Backlog,
    /// Events by pane number, in order of arrival and position.
    panes: BTreeMap<i64, Vec<Observation>>,
    /// Time under which the key stands in the timers; `None` when nothing is open.
    timer: Option<TimeMs>,
}

/// The operator's core.
pub struct Windows<P> {
    config: WindowConfig,
    live: FxHashMap<Key, LiveKey<P>>,
    /// Next closing of each live key.
    schedule: BTreeSet<(TimeMs, Endpoint, Platform)>,
    /// Backfill records not yet stepped, in the order in which they will be.
    queue: BTreeMap<(TimeMs, Position), Observation>,
    backfill: FxHashMap<Key, BackfillKey>,
    /// Next quiet or deadline closing of each backfill key, by arrival time.
    timers: BTreeSet<(TimeMs, Endpoint, Platform)>,
    /// Closed windows not yet handed out, in order.
    ready: VecDeque<ClosedWindow<P>>,
    /// Keys whose backlog changed since the last snapshot.
    touched: BTreeSet<(Endpoint, Platform)>,
    /// Time of the last such change.
    touched_at: TimeMs,
}

impl<P: Pane> Windows<P> {
    /// No windows yet. Panics if the hop does not divide the width: the configuration checks it first.
    pub fn new(config: WindowConfig) -> Self {
        assert!(config.hop_ms > 0 && config.width_ms % config.hop_ms == 0, "hop divides width");
        Self {
            config,
            live: FxHashMap::default(),
            schedule: BTreeSet::new(),
            queue: BTreeMap::new(),
            backfill: FxHashMap::default(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            touched: BTreeSet::new(),
            touched_at: TimeMs::MIN,
        }
    }

    /// Takes a record in.
    ///
    /// `committed` is the shard's committed frontier at start: windows below it are written, so what only
    /// they need is dropped and backfill below it was stepped already.
    pub fn on_event(&mut self, o: Observation, committed: TimeMs) {
        match o.lane {
            Lane::Live => self.insert_live(o, committed),
            Lane::Backfill if o.arrival_ms + 1 - self.config.max_lateness_ms < committed => self.rejoin_backfill(o),
            Lane::Backfill => {
                self.queue.insert((o.arrival_ms, o.position), o);
            }
        }
    }

    fn pane_of(&self, endpoint: &Endpoint, time_ms: TimeMs) -> i64 {
        (time_ms - endpoint.phase_ms(self.config.hop_ms)).div_euclid(self.config.hop_ms)
    }

    fn pane_end(&self, endpoint: &Endpoint, pane: i64) -> TimeMs {
        (pane + 1) * self.config.hop_ms + endpoint.phase_ms(self.config.hop_ms)
    }

    fn insert_live(&mut self, o: Observation, committed: TimeMs) {
        let pane = self.pane_of(&o.endpoint, o.time_ms);
        let end = self.pane_end(&o.endpoint, pane);
        // First window of the pane that is not written yet; windows end on the grid, `end + k * hop`.
        let missing = (committed - end).max(0);
        let first = end + (missing + self.config.hop_ms - 1) / self.config.hop_ms * self.config.hop_ms;
        if first > end + self.config.width_ms - self.config.hop_ms {
            return;
        }
        let key = (o.endpoint.clone(), o.platform);
        let budget = self.config.pane_budget();
        let live = self.live.entry(key.clone()).or_insert_with(|| {
            self.schedule.insert((first, key.0.clone(), key.1));
            LiveKey { panes: BTreeMap::new(), next_end: first }
        });
        if first < live.next_end {
            self.schedule.remove(&(live.next_end, key.0.clone(), key.1));
            live.next_end = first;
            self.schedule.insert((first, key.0, key.1));
        }
        match live.panes.entry(pane).or_insert_with(|| PaneState::Open(OpenPane::default())) {
            PaneState::Open(open) => open.push(o, budget),
            PaneState::Sealed(_) => unreachable!("live events are never behind the frontier that sealed their pane"),
        }
    }

    /// Closes every window that no later event can reach, at most `fuel` of them; `None`: input complete.
    ///
    /// Returns fewer than `fuel` when nothing is left to close at this frontier.
    pub fn on_frontier(&mut self, frontier: Option<TimeMs>, fuel: usize) -> Vec<ClosedWindow<P>> {
        let mut closed = Vec::new();
        while closed.len() < fuel {
            if let Some(window) = self.ready.pop_front() {
                closed.push(window);
                continue;
            }
            let stepped = self.step_backfill(frontier);
            let due = self.schedule.first().filter(|(end, ..)| frontier.is_none_or(|f| f >= *end)).cloned();
            if let Some((end, endpoint, platform)) = due {
                let window = self.close_live(end, endpoint, platform);
                closed.push(window);
            } else if !stepped && self.ready.is_empty() {
                break;
            }
        }
        closed
    }

    /// Earliest time a later `on_frontier` may emit at.
    pub fn hold(&self) -> Option<TimeMs> {
        let late = self.config.max_lateness_ms;
        [
            self.schedule.first().map(|(end, ..)| *end),
            self.queue.first_key_value().map(|((arrival, _), _)| arrival + 1 - late),
            self.timers.first().map(|(at, ..)| at - late),
            self.ready.iter().map(|w| w.emit_ms).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether `on_frontier(frontier, ..)` has more to give: the shell re-activates itself.
    pub fn is_due(&self, frontier: Option<TimeMs>) -> bool {
        !self.ready.is_empty()
            || self.schedule.first().is_some_and(|(end, ..)| frontier.is_none_or(|f| f >= *end))
            || self.next_arrival().is_some_and(|at| self.arrival_complete(frontier, at))
    }

    /// Keys with live windows open.
    pub fn active_keys(&self) -> usize {
        self.live.len()
    }

    fn close_live(&mut self, end: TimeMs, endpoint: Endpoint, platform: Platform) -> ClosedWindow<P> {
        let hop = self.config.hop_ms;
        let pane = self.pane_of(&endpoint, end) - 1;
        let budget = self.config.pane_budget();
        let panes_per_window = self.config.panes();
        let entry = (end, endpoint.clone(), platform);
        self.schedule.remove(&entry);
        let key = (endpoint, platform);
        let live = self.live.get_mut(&key).expect("a scheduled key is live");
        // After a recovery several panes may wait: the first window to close seals all that it covers.
        for state in live.panes.range_mut(..=pane).map(|(_, s)| s) {
            if let PaneState::Open(open) = state {
                *state = PaneState::Sealed(Arc::new(std::mem::take(open).seal(platform, budget)));
            }
        }
        let fresh = live.panes.contains_key(&pane);
        let panes = live
            .panes
            .range(pane - panes_per_window + 1..=pane)
            .map(|(_, state)| match state {
                PaneState::Sealed(sealed) => Arc::clone(sealed),
                PaneState::Open(_) => unreachable!("sealed just above"),
            })
            .collect();
        // What the next window no longer covers is free.
        live.panes = live.panes.split_off(&(pane - panes_per_window + 2));
        match live.panes.first_key_value() {
            None => {
                self.live.remove(&key);
            }
            Some((&first, _)) => {
                // The next tick, or the first one that has activity again.
                live.next_end = if first <= pane + 1 { end + hop } else { (first + 1) * hop + key.0.phase_ms(hop) };
                self.schedule.insert((live.next_end, key.0.clone(), platform));
            }
        }
        ClosedWindow {
            endpoint: key.0,
            platform,
            start_ms: end - self.config.width_ms,
            end_ms: end,
            emit_ms: end,
            opened_ms: None,
            panes,
            fresh,
        }
    }

    // ---- backfill ----

    /// Arrival of the next thing to happen in the backfill: a record to step or a timer.
    fn next_arrival(&self) -> Option<TimeMs> {
        let record = self.queue.first_key_value().map(|((at, _), _)| at + 1);
        let timer = self.timers.first().map(|(at, ..)| *at);
        record.into_iter().chain(timer).min()
    }

    /// Whether all records that arrived before `at` are here.
    fn arrival_complete(&self, frontier: Option<TimeMs>, at: TimeMs) -> bool {
        frontier.is_none_or(|f| at <= f + self.config.max_lateness_ms)
    }

    /// Steps one record or fires one timer, if the frontier allows. Timers go before records of their time.
    fn step_backfill(&mut self, frontier: Option<TimeMs>) -> bool {
        let record_at = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer_at = self.timers.first().map(|(at, ..)| *at);
        match (record_at, timer_at) {
            (r, Some(t)) if r.is_none_or(|r| t <= r) && self.arrival_complete(frontier, t) => {
                let (at, endpoint, platform) = self.timers.first().cloned().expect("peeked");
                self.fire((endpoint, platform), at);
                true
            }
            (Some(r), _) if self.arrival_complete(frontier, r + 1) => {
                let (_, o) = self.queue.pop_first().expect("peeked");
                self.step_record(o);
                true
            }
            _ => false,
        }
    }

    fn step_record(&mut self, o: Observation) {
        let at = o.arrival_ms;
        let config = self.config;
        let key = (o.endpoint.clone(), o.platform);
        let pane = self.pane_of(&o.endpoint, o.time_ms);
        let first_end = self.pane_end(&o.endpoint, pane);
        let entry = self.backfill.entry(key.clone()).or_default();
        entry.backlog.max_time_ms = entry.backlog.max_time_ms.max(o.time_ms);
        entry.backlog.last_arrival_ms = at;
        for k in 0..config.panes() {
            entry.backlog.open.entry(first_end + k * config.hop_ms).or_insert(at);
        }
        entry.panes.entry(pane).or_default().push(o);
        self.touched_at = at + 1 - config.max_lateness_ms;
        self.rearm(&key);
    }

    /// A timer of the key: closes what is due at arrival time `at`.
    fn fire(&mut self, key: Key, at: TimeMs) {
        self.touched_at = at - self.config.max_lateness_ms;
        let backlog = &self.backfill[&key].backlog;
        let due: Vec<TimeMs> = backlog
            .open
            .iter()
            .filter(|(end, opened)| self.due(backlog, **end, **opened) <= at)
            .map(|(e, _)| *e)
            .collect();
        for end in due {
            self.close_backfill(&key, end, at);
        }
        let open = &self.backfill[&key].backlog.open;
        let excess = open.len().saturating_sub(self.config.max_open_backfill);
        for end in open.keys().take(excess).copied().collect::<Vec<_>>() {
            self.close_backfill(&key, end, at);
        }
        self.rearm(&key);
    }

    /// Arrival time at which an open backfill window closes, as things stand: one hop after its opening once
    /// the backlog has moved past it (so that a shuffled backlog cannot open and close it with every
    /// record), one width after its opening at the latest, or when the backlog has been quiet for one hop.
    fn due(&self, backlog: &Backlog, end: TimeMs, opened: TimeMs) -> TimeMs {
        let WindowConfig { width_ms, hop_ms, max_lateness_ms, .. } = self.config;
        let passed = backlog.max_time_ms - max_lateness_ms >= end;
        (opened + if passed { hop_ms } else { width_ms }).min(backlog.last_arrival_ms + hop_ms)
    }

    /// Sets the key's timer to its next closing; forgets a key without open windows. Nothing closes before the last
    /// arrival has passed: a window that closed and opened again at one arrival would be two windows of one id.
    fn rearm(&mut self, key: &Key) {
        let Some(entry) = self.backfill.get(key) else { return };
        let due = entry.backlog.open.iter().map(|(end, opened)| self.due(&entry.backlog, *end, *opened)).min();
        let too_many = entry.backlog.open.len() > self.config.max_open_backfill;
        let passed = entry.backlog.last_arrival_ms + 1;
        let next = due.map(|at| if too_many { passed } else { at.max(passed) });
        let entry = self.backfill.get_mut(key).expect("present above");
        if entry.timer != next {
            if let Some(old) = entry.timer {
                self.timers.remove(&(old, key.0.clone(), key.1));
            }
            if let Some(new) = next {
                self.timers.insert((new, key.0.clone(), key.1));
            }
            entry.timer = next;
        }
        if next.is_none() {
            self.backfill.remove(key);
        }
        self.touched.insert(key.clone());
    }

    fn close_backfill(&mut self, key: &Key, end: TimeMs, at: TimeMs) {
        let (hop, width) = (self.config.hop_ms, self.config.width_ms);
        let panes_per_window = self.config.panes();
        let budget = self.config.pane_budget();
        let last = self.pane_of(&key.0, end) - 1;
        let entry = self.backfill.get_mut(key).expect("an open backfill window has a key");
        let opened = entry.backlog.open.remove(&end).expect("closed once");
        let mut fresh = false;
        let panes = entry
            .panes
            .range(last - panes_per_window + 1..=last)
            .filter_map(|(number, events)| {
                let mut pane = OpenPane::default();
                for o in events.iter().filter(|o| o.arrival_ms >= opened) {
                    pane.push(o.clone(), budget);
                }
                fresh |= *number == last && pane.events > 0;
                (pane.events > 0).then(|| Arc::new(pane.seal(key.1, budget)))
            })
            .collect();
        // Panes that no open window covers are free.
        let open = &entry.backlog.open;
        let phase = key.0.phase_ms(hop);
        entry.panes.retain(|pane, _| {
            let first = (pane + 1) * hop + phase;
            open.range(first..first + width).next().is_some()
        });
        self.ready.push_back(ClosedWindow {
            endpoint: key.0.clone(),
            platform: key.1,
            start_ms: end - width,
            end_ms: end,
            emit_ms: at - self.config.max_lateness_ms,
            opened_ms: Some(opened),
            panes,
            fresh,
        });
    }

    /// A record that the checkpoint's backlog has stepped already: only open windows take it again.
    fn rejoin_backfill(&mut self, o: Observation) {
        let pane = self.pane_of(&o.endpoint, o.time_ms);
        let first = self.pane_end(&o.endpoint, pane);
        if let Some(entry) = self.backfill.get_mut(&(o.endpoint.clone(), o.platform)) {
            let wanted = entry
                .backlog
                .open
                .range(first..first + self.config.width_ms)
                .any(|(_, opened)| o.arrival_ms >= *opened);
            if wanted {
                let events = entry.panes.entry(pane).or_default();
                let at = events.partition_point(|e| (e.arrival_ms, e.position) < (o.arrival_ms, o.position));
                events.insert(at, o);
            }
        }
    }

    /// Time of the last change that no snapshot has yet.
    pub fn changed_at(&self) -> Option<TimeMs> {
        (!self.touched.is_empty()).then_some(self.touched_at)
    }

    /// Backlogs that changed since the last call, empty ones included: the shard's checkpoint takes them.
    pub fn backlog_snapshot(&mut self) -> Vec<BacklogEntry> {
        std::mem::take(&mut self.touched)
            .into_iter()
            .map(|(endpoint, platform)| {
                let backlog =
                    self.backfill.get(&(endpoint.clone(), platform)).map(|e| e.backlog.clone()).unwrap_or_default();
                BacklogEntry { endpoint, platform, backlog }
            })
            .collect()
    }

    /// Takes a checkpoint's backlog over, before any event.
    pub fn restore_backlog(&mut self, entry: BacklogEntry) {
        let key = (entry.endpoint, entry.platform);
        self.backfill.insert(key.clone(), BackfillKey { backlog: entry.backlog, ..BackfillKey::default() });
        self.rearm(&key);
        self.touched.remove(&key);
    }
}

// ---- shell ----

/// What the shell shares with the stage behind it and with the checkpoint.
#[derive(Clone)]
pub struct WindowLinks {
    /// Windows handed on and not yet answered: the shell closes no more than `limit`.
    pub credit: Rc<Credit>,
    /// Takes the backlogs that changed below an epoch boundary; `None` where nothing is checkpointed.
    pub backlogs: Option<BacklogReport>,
    /// Committed frontier of each shard at start, and backlogs to take over.
    pub restored: Rc<RestoredWindows>,
    /// Counters.
    pub metrics: WindowMetrics,
}

/// Where backlogs are reported for the checkpoint.
#[derive(Clone)]
pub struct BacklogReport {
    /// Length of an epoch: boundaries are its multiples.
    pub epoch_ms: TimeMs,
    /// Called with a boundary and the backlogs as of all that lies below it.
    pub report: Rc<dyn Fn(TimeMs, Vec<BacklogEntry>)>,
}

/// What a run takes over from checkpoints.
#[derive(Default)]
pub struct RestoredWindows {
    /// Committed frontier by shard; empty: nothing committed.
    pub committed: Vec<TimeMs>,
    /// Backlogs of every shard.
    pub backlogs: Vec<BacklogEntry>,
}

impl RestoredWindows {
    /// Committed frontier of an endpoint's shard.
    pub fn committed(&self, endpoint: &Endpoint) -> TimeMs {
        match self.committed.len() {
            0 => TimeMs::MIN / 2,
            shards => self.committed[endpoint.shard(shards as u32) as usize],
        }
    }
}

/// Bounds the windows between two stages of one worker.
pub struct Credit {
    limit: usize,
    used: Cell<usize>,
    waker: RefCell<Option<Activator>>,
}

impl Credit {
    /// At most `limit` windows on their way.
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { limit, used: Cell::new(0), waker: RefCell::new(None) })
    }
    /// `n` windows are answered: the closing stage may go on.
    pub fn give_back(&self, n: usize) {
        self.used.set(self.used.get() - n);
        if n > 0
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.activate();
        }
    }
}

/// Counters of the window operator.
#[derive(Clone)]
pub struct WindowMetrics {
    /// Windows closed.
    pub closed: IntCounter,
    /// Events in.
    pub events: IntCounter,
    /// Events that went to the backfill.
    pub backfill: IntCounter,
    /// Events left out of graphs.
    pub sampled: IntCounter,
    /// Keys with live windows open, this worker.
    pub active: IntGauge,
}

/// The timely operator: closes windows as the frontier passes, as far as credit goes.
pub fn window<'scope, P: Pane>(
    events: StreamVec<'scope, u64, Observation>,
    config: WindowConfig,
    shards: u32,
    links: WindowLinks,
) -> StreamVec<'scope, u64, ClosedWindow<P>> {
    let scope = events.scope();
    let by_shard = Exchange::new(move |o: &Observation| u64::from(o.endpoint.shard(shards)));
    events.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(by_shard, "window", move |initial, info| {
        let activator = scope.activator_for(info.address.clone());
        *links.credit.waker.borrow_mut() = Some(scope.activator_for(info.address));
        let (index, peers) = (scope.index() as u64, scope.peers() as u64);
        let mut core = Windows::<P>::new(config);
        for entry in &links.restored.backlogs {
            if u64::from(entry.endpoint.shard(shards)) % peers == index {
                core.restore_backlog(entry.clone());
            }
        }
        // Held at the earliest time that may still be emitted at, never past the frontier.
        let mut held = Some(initial);
        let mut reported_active = 0;
        move |(input, frontier), output| {
            let metrics = &links.metrics;
            input.for_each(|_, batch| {
                for o in batch.drain(..) {
                    metrics.events.inc();
                    metrics.backfill.inc_by(u64::from(o.lane == Lane::Backfill));
                    let committed = links.restored.committed(&o.endpoint);
                    core.on_event(o, committed);
                }
            });
            let frontier = frontier.frontier().as_option().map(|f| *f as TimeMs);
            let fuel = links.credit.limit - links.credit.used.get().min(links.credit.limit);
            let mut closed = Vec::new();
            let exhausted = loop {
                // With a checkpoint to report to, go from epoch boundary to epoch boundary: to the one after what
                // happens next, but not past the one after what has changed.
                let next = core.hold().into_iter().chain(core.changed_at()).min();
                let boundary =
                    links.backlogs.as_ref().zip(next).map(|(r, at)| (at.div_euclid(r.epoch_ms) + 1) * r.epoch_ms);
                let until = boundary.map(|b| b - 1).into_iter().chain(frontier).min();
                closed.extend(core.on_frontier(until, fuel - closed.len()));
                if core.is_due(until) {
                    break true;
                }
                if until == frontier {
                    break false;
                }
                if let (Some(links), Some(boundary)) = (&links.backlogs, boundary) {
                    let changed = core.backlog_snapshot();
                    if !changed.is_empty() {
                        (links.report)(boundary, changed);
                    }
                }
            };
            links.credit.used.set(links.credit.used.get() + closed.len());
            metrics.closed.inc_by(closed.len() as u64);
            for window in closed {
                metrics.sampled.inc_by(window.panes.last().map_or(0, |p| p.sampled_out));
                let cap = held.as_ref().expect("held while something is open");
                output.session(&cap.delayed(&(window.emit_ms.max(0) as u64))).give(window);
            }
            let active = core.active_keys() as i64;
            metrics.active.add(active - reported_active);
            reported_active = active;
            if exhausted && links.credit.used.get() < links.credit.limit {
                activator.activate();
            }
            match core.hold().into_iter().chain(frontier).min() {
                Some(until) => held.iter_mut().for_each(|cap| cap.downgrade(&(until.max(0) as u64))),
                None => held = None,
            }
        }
    })
}
