//! What the simulated runs share: the log, the broker that commits, the clock. Nothing here runs by itself.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use logster_dataflow::checkpoint::{
    GENERATION_KEY, PartitionCheckpoint, ShardCheckpoint, TenantCheckpoint, decode, encode,
};
use logster_schema::{OutputRecord, OutputTopic, TimeMs};
use logster_sinks::epoch::{Checkpoint, Epoch, Outcome, WriterError};

use crate::mutations::Mutation;

/// A seeded source of chance (splitmix64).
#[derive(Clone)]
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below((to - from + 1) as u64) as i64
    }
}

/// A raw record.
#[derive(Clone, Debug)]
pub struct Raw {
    pub ts_ms: TimeMs,
    pub payload: String,
}

/// Topic and partition.
pub type Place = (String, i32);

/// A transaction that a worker has asked for.
pub struct UnderWay {
    pub epoch: Epoch,
    /// What became of it, and whether the worker has been told.
    pub outcome: Option<Outcome>,
    pub told: bool,
}

/// Worker of a run.
pub type WorkerId = (usize, usize);

#[derive(Default)]
pub struct World {
    pub clock: TimeMs,
    pub logs: BTreeMap<Place, Vec<Raw>>,
    /// The run that may commit under each transactional id, by worker index.
    pub owners: BTreeMap<usize, usize>,
    pub checkpoints: BTreeMap<String, Vec<u8>>,
    /// Committed records in the order of their commits.
    pub outputs: Vec<OutputRecord>,
    pub under_way: BTreeMap<WorkerId, VecDeque<UnderWay>>,
    /// Committed floors: a record at that offset or later arrives no earlier.
    pub floors: BTreeMap<Place, BTreeMap<i64, TimeMs>>,
    /// Runs in the order in which they came to own the job.
    pub locked: Vec<usize>,
    /// Ids that a mutated start fences only later.
    pub fence_later: BTreeMap<WorkerId, bool>,
    pub mutation: Option<Mutation>,
    /// What has happened, as a number: two simulations of one seed agree in it.
    pub trace: u64,
    pub commits: usize,
    pub refused: usize,
    /// With `LOGSTER_SIM_TRACE`: printed as it happens.
    pub verbose: bool,
}

impl World {
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        let mut hasher = DefaultHasher::new();
        (self.trace, &what).hash(&mut hasher);
        self.trace = hasher.finish();
        if self.verbose {
            eprintln!("{:>6} {what}", self.clock);
        }
    }

    pub fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// A run takes a transactional id: what its earlier owner has under way is aborted.
    pub fn fence(&mut self, run: usize, index: usize) {
        self.note(|| format!("run {run} takes id {index}"));
        self.owners.insert(index, run);
    }

    fn fenced(&mut self, (run, index): WorkerId, epoch: u64) -> WriterError {
        self.refused += 1;
        self.note(|| format!("run {run} worker {index} is fenced"));
        WriterError::Fenced { transactional_id: format!("sim-{index}"), epoch: Some(epoch) }
    }

    /// Commits a transaction, whole or not at all.
    pub fn land(&mut self, worker: WorkerId, epoch: Epoch) -> Result<(), WriterError> {
        let (run, index) = worker;
        if self.fence_later.insert(worker, false) == Some(true) {
            self.fence(run, index);
        }
        if self.owners.get(&index) != Some(&run) {
            return Err(self.fenced(worker, epoch.id));
        }
        self.commits += 1;
        self.note(|| {
            let keys: Vec<&str> = epoch.checkpoints.iter().map(|c| c.key.as_str()).collect();
            format!("run {run} worker {index} commits {}: {} records, {keys:?}", epoch.id, epoch.records.len())
        });
        for Checkpoint { key, value } in epoch.checkpoints {
            let mut value = value.expect("no key is removed");
            if key.starts_with("partition/") {
                self.learn_floor(&key, &value);
            }
            if key == GENERATION_KEY {
                self.locked.push(run);
            }
            value = self.mutated(&key, value);
            self.checkpoints.insert(key, value);
        }
        self.outputs.extend(epoch.records);
        Ok(())
    }

    /// Arrival of every record of a partition as it was decided, below `next`, and the maximum there.
    pub fn arrivals(&self, place: &Place, next: i64) -> (Vec<TimeMs>, TimeMs) {
        let floors = self.floors.get(place);
        let floor = |at: i64| floors.and_then(|f| f.range(..=at).map(|(_, floor)| *floor).max());
        let mut max = TimeMs::MIN;
        let arrival = |(offset, raw): (usize, &Raw)| {
            max = max.max(raw.ts_ms).max(floor(offset as i64).unwrap_or(TimeMs::MIN));
            max
        };
        let arrivals = self.logs[place].iter().enumerate().take(next as usize).map(arrival).collect();
        (arrivals, max.max(floor(next).unwrap_or(TimeMs::MIN)))
    }

    fn learn_floor(&mut self, key: &str, value: &[u8]) {
        let place = place_of(key);
        let checkpoint: PartitionCheckpoint = decode(key, value).unwrap();
        if checkpoint.arrival_ms > self.arrivals(&place, checkpoint.next).1 {
            self.note(|| format!("floor {} at {key} {}", checkpoint.arrival_ms, checkpoint.next));
            self.floors.entry(place).or_default().insert(checkpoint.next, checkpoint.arrival_ms);
        }
    }

    /// What a checkpoint holds when a rule is taken out.
    fn mutated(&self, key: &str, value: Vec<u8>) -> Vec<u8> {
        let Some(mutation) = self.mutation else { return value };
        if key.starts_with("partition/") {
            let mut c: PartitionCheckpoint = decode(key, &value).unwrap();
            match mutation {
                Mutation::FloorsUnrecorded => {
                    let logged = |next: i64| {
                        let log = &self.logs[&place_of(key)];
                        log.iter().take(next as usize).map(|raw| raw.ts_ms).max().unwrap_or(TimeMs::MIN)
                    };
                    (c.arrival_ms, c.replay.arrival_ms) = (logged(c.next), logged(c.replay.offset));
                    c.exceptions.clear();
                }
                Mutation::EndsUnrecorded => c.ended = false,
                Mutation::ExceptionsUnrecorded => c.exceptions.clear(),
                Mutation::ReplayFromPublished => {
                    c.replay.offset = c.next;
                    c.replay.arrival_ms = c.arrival_ms;
                    c.exceptions.clear();
                }
                _ => return value,
            }
            return encode(&c);
        }
        if key.starts_with("shard/") {
            let mut c: ShardCheckpoint = decode(key, &value).unwrap();
            match mutation {
                Mutation::DedupNotCarried => c.alerts.clear(),
                Mutation::OutboxNotCarried => c.outbox.clear(),
                Mutation::BacklogNotCarried => c.backlog.clear(),
                _ => return value,
            }
            return encode(&c);
        }
        if key.starts_with("tenant/") && mutation == Mutation::TenantsNotCarried {
            return encode(&TenantCheckpoint::default());
        }
        value
    }

    /// What a start reads.
    pub fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let mut records = self.checkpoints.clone();
        let shards: Vec<String> = records.keys().filter(|key| key.starts_with("shard/")).cloned().collect();
        let mut read = BTreeMap::new();
        for key in shards {
            read.insert(key.clone(), decode::<ShardCheckpoint>(&key, &records[&key]).unwrap());
        }
        let frontiers: Vec<TimeMs> = read.values().map(|s| s.frontier).collect();
        let all = match self.mutation {
            Some(Mutation::LeastFrontier) => frontiers.iter().min(),
            Some(Mutation::GreatestFrontier) => frontiers.iter().max(),
            Some(Mutation::ScoredAgain) => Some(&0),
            _ => None,
        };
        if let Some(frontier) = all {
            for (key, mut shard) in read {
                shard.frontier = *frontier;
                records.insert(key, encode(&shard));
            }
        }
        records
    }
}

/// `partition/<topic>/<n>`
fn place_of(key: &str) -> Place {
    let mut parts = key.split('/').skip(1);
    (parts.next().unwrap().to_owned(), parts.next().unwrap().parse().unwrap())
}

/// Committed records by what gives them an order: normalized events and dead letters by their raw partition, results
/// and alerts by their key.
pub fn ordered(outputs: &[OutputRecord]) -> BTreeMap<(OutputTopic, String), Vec<String>> {
    let mut ordered: BTreeMap<(OutputTopic, String), Vec<String>> = BTreeMap::new();
    for record in outputs {
        let value = String::from_utf8(record.value.clone()).expect("outputs are text");
        let json = || serde_json::from_str::<serde_json::Value>(&value).expect("outputs are JSON");
        let group = match record.topic {
            OutputTopic::Normalized => json()["event_id"].as_str().unwrap().rsplit_once(':').unwrap().0.to_owned(),
            OutputTopic::DeadLetters => format!("{}:{}", json()["topic"], json()["partition"]),
            OutputTopic::Results | OutputTopic::Alerts => record.key.as_deref().unwrap_or("-").to_owned(),
        };
        ordered.entry((record.topic, group)).or_default().push(value);
    }
    ordered
}

/// The first difference between what was committed and what an undisturbed run gives.
pub fn difference(got: &[OutputRecord], want: &[OutputRecord]) -> Option<String> {
    let (got, want) = (ordered(got), ordered(want));
    let groups: std::collections::BTreeSet<_> = got.keys().chain(want.keys()).cloned().collect();
    for group in groups {
        let none = Vec::new();
        let (got, want) = (got.get(&group).unwrap_or(&none), want.get(&group).unwrap_or(&none));
        if got == want {
            continue;
        }
        let count = |list: &[String], value: &String| list.iter().filter(|v| *v == value).count();
        let extra = got.iter().find(|v| count(got, v) > count(want, v));
        let missing = want.iter().find(|v| count(want, v) > count(got, v));
        let word = match (extra, missing) {
            (Some(extra), _) if count(want, extra) > 0 => "written twice",
            (Some(_), Some(_)) => "differ",
            (Some(_), None) => "too many",
            (None, Some(_)) => "missing",
            (None, None) => "out of order",
        };
        let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "nothing".into());
        let (topic, key) = (group.0.name(), &group.1);
        let (extra, missing) = (show(extra), show(missing));
        return Some(format!("{topic}: {word} ({key})\n  committed only:   {extra}\n  undisturbed only: {missing}"));
    }
    None
}
