//! Makes outputs visible, an epoch at a time, together with the checkpoint that covers them.
//!
//! Two operators of each worker share one [`Committer`]: `commit_results` takes what the source published and
//! what the shards found, `commit_alerts` takes what the tenants raise. Timely time is cut into epochs of
//! [`EPOCH_MS`]; a transaction covers all that is complete when it begins.
//!
//! - Input: published records with their partition's progress (as they come); results and alert updates of
//!   this worker's shards; alerts of its tenants; state changes, each tagged with the epoch it is complete at.
//! - Output: alert updates, released when the transaction of their results is committed (protocol rule 11).
//! - State: what is not committed yet; the last committed state of each dirty shard.
//! - Ordering: within a partition by offset, within a key by time; of one time by what the records say, whatever
//!   order they come in.
//! - Failure: none handled here. The writer reports a failed commit and the process ends (rule 6).

pub mod shell;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use logster_operators::correlate::TenantChange;
use logster_operators::dedup::AlertChange;
use logster_operators::window::BacklogEntry;
use logster_schema::{OutputRecord, TimeMs};
use logster_sinks::epoch::{Checkpoint, Epoch, SourceOffset};

use crate::checkpoint::{self, PartitionCheckpoint, ShardCheckpoint, TenantCheckpoint};

/// Length of an epoch in timely time, ms: state is snapshotted at its multiples, so that every stage's
/// snapshot is of the same time.
pub const EPOCH_MS: u64 = 250;

/// Alert updates waiting for the tenant stage before results stop advancing (protocol rule 12).
const MAX_OUTBOX: usize = 20_000;

/// The epoch boundary at or below `frontier`.
pub fn boundary(frontier: u64) -> u64 {
    frontier - frontier % EPOCH_MS
}

/// Progress of one partition, published with its records.
#[derive(Clone, Debug)]
pub struct PartitionProgress {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// State after the records that came before it in the stream.
    pub checkpoint: PartitionCheckpoint,
    /// A floor in it that takes effect once it is committed: the source's slot, and the arrival.
    pub floor: Option<(usize, TimeMs)>,
}

/// Open backfill windows of one shard's keys as of an epoch boundary; an empty backlog removes the key.
#[derive(Clone, Debug)]
pub struct BacklogChange {
    /// Shard.
    pub shard: u32,
    /// Keys whose backlog changed.
    pub entries: Vec<BacklogEntry>,
}

/// Changes of backlogs on their way to the checkpoint, each with its boundary, oldest first.
pub type BacklogLog = Rc<RefCell<VecDeque<(u64, BacklogChange)>>>;

/// What a commit sets free.
#[derive(Debug)]
pub struct Released {
    /// Alert updates whose results are committed, by time.
    pub updates: Vec<(u64, AlertChange)>,
    /// Floors that take effect now: the source's slot, and the arrival.
    pub floors: Vec<(usize, TimeMs)>,
    /// Results below this are committed; `None`: all of them.
    pub results: Option<u64>,
    /// Alerts below this are committed; `None`: all of them.
    pub alerts: Option<u64>,
}

/// A frontier: `None` is complete.
type Frontier = Option<u64>;

fn below(time: u64, frontier: Frontier) -> bool {
    frontier.is_none_or(|f| time < f)
}

fn later(a: Frontier, b: Frontier) -> bool {
    match (a, b) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    }
}

/// The transaction under way: what its commit sets free.
struct InFlight {
    id: u64,
    updates: Vec<(u64, AlertChange)>,
    floors: Vec<(usize, TimeMs)>,
}

/// The pure core: what is pending, what an epoch takes of it, what a commit releases.
pub struct Committer {
    checkpointing: bool,
    published: Vec<OutputRecord>,
    progress: BTreeMap<(String, i32), PartitionCheckpoint>,
    floors: Vec<(usize, TimeMs)>,
    results: BTreeMap<u64, Vec<(u32, OutputRecord)>>,
    updates: BTreeMap<u64, Vec<(u32, AlertChange)>>,
    alerts: BTreeMap<u64, Vec<TenantChange>>,
    results_frontier: Frontier,
    alerts_frontier: Frontier,
    /// Frontiers of the last epoch submitted.
    submitted: (Frontier, Frontier),
    in_flight: Option<InFlight>,
    next_id: u64,
    /// Checkpoint image of this worker's shards.
    images: BTreeMap<u32, ShardCheckpoint>,
    tenants: BTreeMap<u32, TenantCheckpoint>,
    outbox: BTreeMap<u64, Vec<(u32, AlertChange)>>,
    /// Latest time seen of anything: where a completed input ends.
    latest: u64,
    /// All workers' alerts below this are committed: prunes the outbox.
    alerts_everywhere: u64,
    states: BacklogLog,
}

impl Committer {
    /// Nothing pending. `images` and `tenants` are the committed state of this worker's shards.
    pub fn new(
        checkpointing: bool,
        images: BTreeMap<u32, ShardCheckpoint>,
        tenants: BTreeMap<u32, TenantCheckpoint>,
        states: BacklogLog,
    ) -> Self {
        // What the tenants had not committed when the run before ended is theirs to take again.
        let mut outbox: BTreeMap<u64, Vec<(u32, AlertChange)>> = BTreeMap::new();
        for (shard, image) in &images {
            for (time, change) in &image.outbox {
                outbox.entry(*time).or_default().push((*shard, change.clone()));
            }
        }
        Self {
            checkpointing,
            published: Vec::new(),
            progress: BTreeMap::new(),
            floors: Vec::new(),
            results: BTreeMap::new(),
            updates: BTreeMap::new(),
            alerts: BTreeMap::new(),
            results_frontier: Some(0),
            alerts_frontier: Some(0),
            submitted: (Some(0), Some(0)),
            in_flight: None,
            next_id: 1,
            images,
            tenants,
            outbox,
            latest: 0,
            alerts_everywhere: 0,
            states,
        }
    }

    /// Alert changes that the tenants have not committed, by time: a new run releases them again.
    pub fn outbox(&self) -> Vec<(u64, AlertChange)> {
        let changes = |(time, changes): (&u64, &Vec<(u32, AlertChange)>)| {
            changes.iter().map(|(_, change)| (*time, change.clone())).collect::<Vec<_>>()
        };
        self.outbox.iter().flat_map(changes).collect()
    }

    /// A normalized event or dead letter: written by offset, without waiting for the watermark.
    pub fn publish(&mut self, record: OutputRecord) {
        self.published.push(record);
    }

    /// How far a partition is published, floors included.
    pub fn progress(&mut self, progress: PartitionProgress) {
        self.progress.insert((progress.topic, progress.partition), progress.checkpoint);
        self.floors.extend(progress.floor);
    }

    /// A result of one of this worker's shards.
    pub fn result(&mut self, time: u64, shard: u32, record: OutputRecord) {
        self.latest = self.latest.max(time);
        self.results.entry(time).or_default().push((shard, record));
    }

    /// An alert update of one of this worker's shards.
    pub fn update(&mut self, time: u64, shard: u32, update: AlertChange) {
        self.latest = self.latest.max(time);
        self.updates.entry(time).or_default().push((shard, update));
    }

    /// A change of an alert of one of this worker's tenants.
    pub fn alert(&mut self, time: u64, change: TenantChange) {
        self.latest = self.latest.max(time);
        self.alerts.entry(time).or_default().push(change);
    }

    /// Results and updates below this are all here.
    pub fn advance_results(&mut self, frontier: Frontier) {
        self.latest = self.latest.max(frontier.unwrap_or(0));
        self.results_frontier = frontier;
    }

    /// Alerts below this are all here.
    pub fn advance_alerts(&mut self, frontier: Frontier) {
        self.alerts_frontier = frontier;
    }

    /// All workers' alerts below this are committed.
    pub fn alerts_committed_everywhere(&mut self, frontier: u64) {
        self.alerts_everywhere = self.alerts_everywhere.max(frontier);
    }

    /// Records waiting to be written: back-pressure looks at it.
    pub fn pending(&self) -> usize {
        self.published.len() + self.results.len() + self.alerts.len()
    }

    /// Whether everything that will ever come is committed.
    pub fn is_done(&self) -> bool {
        self.in_flight.is_none()
            && self.submitted == (None, None)
            && self.published.is_empty()
            && self.progress.is_empty()
    }

    /// The next transaction, if something is to be written and none is under way.
    pub fn next_epoch(&mut self) -> Option<Epoch> {
        if self.in_flight.is_some() {
            return None;
        }
        let aligned = |frontier: Frontier| frontier.map(boundary);
        let mut results_to = aligned(self.results_frontier);
        if self.outbox.values().map(Vec::len).sum::<usize>() > MAX_OUTBOX {
            results_to = self.submitted.0;
        }
        let alerts_to = aligned(self.alerts_frontier);
        let advances = later(results_to, self.submitted.0) || later(alerts_to, self.submitted.1);
        if !advances && self.published.is_empty() && self.progress.is_empty() {
            return None;
        }
        let mut epoch = Epoch { id: self.next_id, records: std::mem::take(&mut self.published), ..Epoch::default() };
        self.next_id += 1;

        for ((topic, partition), checkpoint) in std::mem::take(&mut self.progress) {
            if self.checkpointing {
                let key = checkpoint::partition_key(&topic, partition);
                epoch.checkpoints.push(Checkpoint { key, value: Some(checkpoint::encode(&checkpoint)) });
            }
            epoch.source_offsets.push(SourceOffset { topic, partition, next: checkpoint.next });
        }

        let mut dirty = BTreeSet::new();
        let mut dirty_tenants = BTreeSet::new();
        // Scores come back in any order, and several backfill windows of an endpoint may close at one time.
        for mut results in take_below(&mut self.results, results_to) {
            results.sort_by(|(_, a), (_, b)| (&a.key, a.ts_ms, &a.value).cmp(&(&b.key, b.ts_ms, &b.value)));
            for (shard, record) in results {
                dirty.insert(shard);
                epoch.records.push(record);
            }
        }
        let mut released = Vec::new();
        while let Some(entry) = self.updates.first_entry().filter(|e| below(*e.key(), results_to)) {
            let (time, updates) = entry.remove_entry();
            for (shard, update) in updates {
                dirty.insert(shard);
                let alerts = &mut self.images.entry(shard).or_default().alerts;
                match &update {
                    AlertChange::Updated(update) => alerts.insert(update.alert.alert_id.clone(), *update.clone()),
                    AlertChange::Forgotten { alert_id, .. } => alerts.remove(alert_id),
                };
                released.push((time, update.clone()));
                self.outbox.entry(time).or_default().push((shard, update));
            }
        }
        let changes = take_below(&mut self.alerts, alerts_to).flat_map(|mut changes| {
            changes.sort_by(|a, b| a.alert_id.cmp(&b.alert_id));
            changes
        });
        for change in changes {
            let TenantChange { shard, alert_id, state, published } = change;
            dirty_tenants.insert(shard);
            epoch.records.extend(state.as_ref().filter(|_| published).map(|s| s.update.alert.to_output()));
            let image = &mut self.tenants.entry(shard).or_default().alerts;
            match state {
                Some(state) => image.insert(alert_id, *state),
                None => image.remove(&alert_id),
            };
        }
        self.apply_states(results_to, &mut dirty);
        let kept = self.outbox.split_off(&self.alerts_everywhere);
        dirty.extend(std::mem::replace(&mut self.outbox, kept).into_values().flatten().map(|(shard, _)| shard));

        if self.checkpointing {
            // A completed input ends above all that was seen: a later run goes on from there.
            let end = boundary(self.latest) + EPOCH_MS;
            let frontier = |f: Frontier| f.unwrap_or(end) as TimeMs;
            for shard in dirty {
                let image = self.images.entry(shard).or_default();
                image.frontier = frontier(results_to);
                image.outbox = self
                    .outbox
                    .iter()
                    .flat_map(|(time, updates)| updates.iter().map(move |(s, u)| (*time, *s, u)))
                    .filter(|(_, s, _)| *s == shard)
                    .map(|(time, _, change)| (time, change.clone()))
                    .collect();
                let key = checkpoint::shard_key(shard);
                epoch.checkpoints.push(Checkpoint { key, value: Some(checkpoint::encode(image)) });
            }
            for shard in dirty_tenants {
                let image = self.tenants.entry(shard).or_default();
                image.frontier = frontier(alerts_to);
                let key = checkpoint::tenant_key(shard);
                epoch.checkpoints.push(Checkpoint { key, value: Some(checkpoint::encode(image)) });
            }
        }
        self.submitted = (results_to, alerts_to);
        let floors = std::mem::take(&mut self.floors);
        self.in_flight = Some(InFlight { id: epoch.id, updates: released, floors });
        Some(epoch)
    }

    /// Brings the backlogs' image up to the frontier that an epoch covers.
    fn apply_states(&mut self, results_to: Frontier, dirty: &mut BTreeSet<u32>) {
        let mut states = self.states.borrow_mut();
        while let Some((_, change)) = states.pop_front_if(|(at, _)| results_to.is_none_or(|f| *at <= f)) {
            let BacklogChange { shard, entries } = change;
            dirty.insert(shard);
            let image = &mut self.images.entry(shard).or_default().backlog;
            for entry in entries {
                image.retain(|e| (&e.endpoint, e.platform) != (&entry.endpoint, entry.platform));
                if !entry.backlog.is_empty() {
                    image.push(entry);
                }
            }
        }
    }

    /// The writer has committed up to `id`: what it sets free, if that is the epoch under way.
    pub fn on_committed(&mut self, id: u64) -> Option<Released> {
        let InFlight { updates, floors, .. } = self.in_flight.take_if(|in_flight| id >= in_flight.id)?;
        Some(Released { updates, floors, results: self.submitted.0, alerts: self.submitted.1 })
    }
}

fn take_below<T>(pending: &mut BTreeMap<u64, Vec<T>>, frontier: Frontier) -> impl Iterator<Item = Vec<T>> + use<T> {
    let rest = match frontier {
        Some(f) => pending.split_off(&f),
        None => BTreeMap::new(),
    };
    std::mem::replace(pending, rest).into_values()
}

/// Decides when the next transaction begins: not sooner than one epoch after the last one, by the wall
/// clock. It only groups what is written; no result depends on it.
#[derive(Debug)]
pub struct Pace {
    every: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// One transaction every so often at most.
    pub fn new(every: Duration) -> Self {
        Self { every, last: None }
    }
    /// `None`: now; otherwise how long to wait.
    pub fn wait(&self) -> Option<Duration> {
        let elapsed = self.last?.elapsed();
        (elapsed < self.every).then(|| self.every - elapsed)
    }
    /// A transaction begins.
    pub fn begin(&mut self) {
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use logster_schema::OutputTopic;

    use super::*;

    fn record(n: i64) -> OutputRecord {
        OutputRecord { topic: OutputTopic::Results, key: None, ts_ms: n, value: Vec::new() }
    }

    fn forgotten(id: &str) -> AlertChange {
        AlertChange::Forgotten { tenant_id: "t".into(), endpoint_id: "h".into(), alert_id: id.into() }
    }

    fn times(epoch: &Epoch) -> Vec<i64> {
        epoch.records.iter().map(|r| r.ts_ms).collect()
    }

    #[test]
    fn an_epoch_takes_what_is_complete_and_releases_after_the_commit() {
        let mut c = Committer::new(true, BTreeMap::new(), BTreeMap::new(), Rc::default());
        assert!(c.next_epoch().is_none(), "nothing to write");
        c.result(100, 1, record(100));
        c.result(600, 1, record(600));
        c.update(100, 1, forgotten("a"));
        let state = |state| TenantChange { shard: 2, alert_id: "x".into(), state, published: false };
        c.alert(300, state(None));
        c.advance_results(Some(700));
        let epoch = c.next_epoch().unwrap();
        assert_eq!(times(&epoch), [100], "600 is not below the boundary 500");
        let shard: ShardCheckpoint = checkpoint::decode("", epoch.checkpoints[0].value.as_ref().unwrap()).unwrap();
        assert_eq!((shard.frontier, shard.outbox.len()), (500, 1));
        assert_eq!(epoch.checkpoints.len(), 1, "the tenants have not come so far");
        assert!(c.next_epoch().is_none(), "one at a time");
        assert!(c.on_committed(0).is_none());
        let released = c.on_committed(1).unwrap();
        assert_eq!((released.updates, released.results), (vec![(100, forgotten("a"))], Some(500)));

        // The tenants have it: the outbox is pruned in the next epoch.
        c.alerts_committed_everywhere(101);
        c.advance_results(None);
        c.advance_alerts(None);
        let epoch = c.next_epoch().unwrap();
        assert_eq!(times(&epoch), [600]);
        let shard: ShardCheckpoint = checkpoint::decode("", epoch.checkpoints[0].value.as_ref().unwrap()).unwrap();
        assert_eq!(shard.outbox.len(), 0);
        let tenant: TenantCheckpoint = checkpoint::decode("", epoch.checkpoints[1].value.as_ref().unwrap()).unwrap();
        assert_eq!((tenant.frontier, tenant.alerts.len()), (750, 0), "above the latest time seen, 700");
        assert!(!c.is_done());
        c.on_committed(2).unwrap();
        assert!(c.is_done());
    }

    #[test]
    fn results_of_one_time_are_written_in_the_same_order_however_they_come() {
        let written = |times: [i64; 3]| {
            let mut c = Committer::new(true, BTreeMap::new(), BTreeMap::new(), Rc::default());
            times.into_iter().for_each(|n| c.result(100, 1, record(n)));
            c.advance_results(Some(1_000));
            c.next_epoch().unwrap().records.into_iter().map(|r| r.ts_ms).collect::<Vec<_>>()
        };
        assert_eq!(written([1, 2, 3]), written([3, 1, 2]));
    }

    #[test]
    fn a_restored_outbox_is_released_again_and_kept_until_the_tenants_have_it() {
        let image = ShardCheckpoint { frontier: 500, outbox: vec![(100, forgotten("a"))], ..Default::default() };
        let mut c = Committer::new(true, BTreeMap::from([(1, image)]), BTreeMap::new(), Rc::default());
        assert_eq!(c.outbox(), [(100, forgotten("a"))]);
        c.result(600, 1, record(600));
        c.advance_results(Some(1_000));
        let outbox_of = |epoch: &Epoch| {
            let shard: ShardCheckpoint = checkpoint::decode("", epoch.checkpoints[0].value.as_ref().unwrap()).unwrap();
            shard.outbox.len()
        };
        assert_eq!(outbox_of(&c.next_epoch().unwrap()), 1);
        c.on_committed(1).unwrap();
        c.alerts_committed_everywhere(101);
        c.advance_results(Some(1_250));
        assert_eq!(outbox_of(&c.next_epoch().unwrap()), 0);
    }

    #[test]
    fn publishing_does_not_wait_for_the_watermark() {
        let mut c = Committer::new(true, BTreeMap::new(), BTreeMap::new(), Rc::default());
        let replay = checkpoint::ReplayPoint { offset: 0, arrival_ms: 0 };
        let checkpoint = PartitionCheckpoint { next: 5, arrival_ms: 9, replay, exceptions: vec![], ended: false };
        c.publish(record(1));
        c.progress(PartitionProgress { topic: "t".into(), partition: 3, checkpoint, floor: Some((7, 9)) });
        let epoch = c.next_epoch().unwrap();
        assert_eq!(times(&epoch), [1]);
        assert_eq!(c.on_committed(1).unwrap().floors, [(7, 9)]);
        assert_eq!(epoch.source_offsets, [SourceOffset { topic: "t".into(), partition: 3, next: 5 }]);
        assert_eq!(epoch.checkpoints[0].key, "partition/t/3");
    }
}
