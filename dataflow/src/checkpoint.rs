//! What survives a kill: the records of the checkpoint topic, written in the transaction of the outputs
//! they cover, and read back at start.
//!
//! | key | holds |
//! |---|---|
//! | `generation` | which run owns the job, with how many workers, and the shard count fixed at first start |
//! | `topic/<topic>` | [`TopicCheckpoint`]: which topic of that name the partitions' offsets are of |
//! | `partition/<topic>/<n>` | [`PartitionCheckpoint`]: how far the log is published, where a replay starts |
//! | `shard/<n>` | [`ShardCheckpoint`]: results below `frontier` are written; backlog and dedup as of then; outbox |
//! | `tenant/<n>` | [`TenantCheckpoint`]: alerts below `frontier` are written; correlation as of then |
//!
//! Every record is `{"v": FORMAT, ...}`. An unknown `v` is refused: [`CheckpointError::Format`].

use std::collections::BTreeMap;

use logster_operators::correlate::{RestoredTenants, TrackedAlert};
use logster_operators::dedup::{AlertChange, RestoredShard};
use logster_operators::window::{BacklogEntry, RestoredWindows};
use logster_schema::{AlertUpdate, TimeMs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of every record below. Raise it with any change that an older binary would misread.
pub const FORMAT: u32 = 1;

/// The key of the generation record.
pub const GENERATION_KEY: &str = "generation";

/// Why a checkpoint cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Written by another format.
    #[error(
        "checkpoint record \"{key}\" has format {found}, this binary reads {FORMAT}: start the version that wrote \
         it, stop it with SIGTERM and upgrade step by step, or name a new job (checkpoint.job) to start afresh"
    )]
    Format {
        /// Key of the record.
        key: String,
        /// Its format.
        found: u32,
    },
    /// Not what a checkpoint looks like.
    #[error("checkpoint record \"{key}\" cannot be read: {why}; name a new job (checkpoint.job) to start afresh")]
    Unreadable {
        /// Key of the record.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The shard count is fixed at the first start.
    #[error(
        "job has {stored} shards, the configuration says cluster.shards = {configured}: set it back to {stored}, or \
         name a new job (checkpoint.job) to start afresh"
    )]
    Shards {
        /// Of the generation record.
        stored: u32,
        /// Of the configuration.
        configured: u32,
    },
    /// The window sizes are fixed as well: state below the frontier was made with them.
    #[error(
        "job was started with {stored}, the configuration says {configured}: committed windows would not match; \
         set it back, or name a new job (checkpoint.job) to start afresh"
    )]
    Semantics {
        /// What the generation record says.
        stored: String,
        /// What the configuration says.
        configured: String,
    },
}

/// Who owns the job. Its commit is the lock (protocol rule 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Counts the runs.
    pub generation: u64,
    /// Workers of that run: its transactional ids are `<job>-0 .. <job>-<workers - 1>`.
    pub workers: u32,
    /// Fixed at first start.
    pub shards: u32,
    /// Settings that committed results depend on, in words: fixed at first start.
    pub semantics: String,
    /// Version of the run's rule set; `None`: it had no rules.
    #[serde(default)]
    pub ruleset: Option<String>,
}

/// A topic made anew under its old name has another id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCheckpoint {
    /// As the broker says it.
    pub id: String,
}

/// Where a replay of a partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayPoint {
    /// First record to read again.
    pub offset: i64,
    /// Arrival maximum before that record, floors included.
    pub arrival_ms: TimeMs,
}

/// State of one raw partition (protocol rule 7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionCheckpoint {
    /// Offset whose normalized event or dead letter is not written yet.
    pub next: i64,
    /// Arrival maximum before `next`, floors included.
    pub arrival_ms: TimeMs,
    /// Where to read from for the windows that are not written yet.
    pub replay: ReplayPoint,
    /// Records from `replay` on whose arrival a floor raised: offset and that floor.
    pub exceptions: Vec<(i64, TimeMs)>,
    /// The input ended at `next` (`--until-end`), and the watermark went on without this partition: what comes later
    /// must not fall below what is committed.
    #[serde(default)]
    pub ended: bool,
}

/// State of one shard (protocol rule 8).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardCheckpoint {
    /// Results with a timely time below this are written.
    pub frontier: TimeMs,
    /// Open backfill windows at `frontier`.
    pub backlog: Vec<BacklogEntry>,
    /// Dedup state at `frontier`: the last update of each alert, by its id.
    pub alerts: BTreeMap<String, AlertUpdate>,
    /// Alert changes from the tenants' frontier to `frontier`, by timely time.
    pub outbox: Vec<(u64, AlertChange)>,
}

/// State of the tenants that hash to one shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TenantCheckpoint {
    /// Alerts with a timely time below this are written.
    pub frontier: TimeMs,
    /// Correlation state at `frontier`: the last state of each alert, by its id.
    pub alerts: BTreeMap<String, TrackedAlert>,
}

/// Everything a start takes over.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Ids of topics by name.
    pub topics: BTreeMap<String, String>,
    /// Partitions by topic name and number.
    pub partitions: BTreeMap<(String, i32), PartitionCheckpoint>,
    /// Shards by number.
    pub shards: BTreeMap<u32, ShardCheckpoint>,
    /// Tenant shards by number.
    pub tenants: BTreeMap<u32, TenantCheckpoint>,
}

/// Key of a topic's record.
pub fn topic_key(topic: &str) -> String {
    format!("topic/{topic}")
}

/// Key of a partition's record.
pub fn partition_key(topic: &str, partition: i32) -> String {
    format!("partition/{topic}/{partition}")
}

/// Key of a shard's record.
pub fn shard_key(shard: u32) -> String {
    format!("shard/{shard}")
}

/// Key of a tenant shard's record.
pub fn tenant_key(shard: u32) -> String {
    format!("tenant/{shard}")
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    record: &'a T,
}

/// A record's bytes.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { v: FORMAT, record }).expect("checkpoints serialize")
}

/// A record from its bytes.
pub fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, CheckpointError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let unreadable = |e: serde_json::Error| CheckpointError::Unreadable { key: key.to_owned(), why: e.to_string() };
    let Version { v } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if v != FORMAT {
        return Err(CheckpointError::Format { key: key.to_owned(), found: v });
    }
    serde_json::from_slice(bytes).map_err(unreadable)
}

impl Restored {
    /// Reads the last record of every key but the generation's.
    pub fn from_records(records: &BTreeMap<String, Vec<u8>>) -> Result<Self, CheckpointError> {
        let mut restored = Self::default();
        for (key, bytes) in records {
            let unknown = || CheckpointError::Unreadable { key: key.clone(), why: "no such kind of record".to_owned() };
            let parts: Vec<&str> = key.split('/').collect();
            match parts[..] {
                [GENERATION_KEY] => {}
                ["topic", topic] => {
                    let TopicCheckpoint { id } = decode(key, bytes)?;
                    restored.topics.insert(topic.to_owned(), id);
                }
                ["partition", topic, n] => {
                    let n = n.parse().map_err(|_| unknown())?;
                    restored.partitions.insert((topic.to_owned(), n), decode(key, bytes)?);
                }
                ["shard", n] => {
                    restored.shards.insert(n.parse().map_err(|_| unknown())?, decode(key, bytes)?);
                }
                ["tenant", n] => {
                    restored.tenants.insert(n.parse().map_err(|_| unknown())?, decode(key, bytes)?);
                }
                _ => return Err(unknown()),
            }
        }
        Ok(restored)
    }

    /// What the window operator takes over.
    pub fn windows(&self, shards: u32) -> RestoredWindows {
        let frontier = |shard| self.shards.get(&shard).map_or(TimeMs::MIN / 2, |s| s.frontier);
        RestoredWindows {
            committed: (0..shards).map(frontier).collect(),
            backlogs: self.shards.values().flat_map(|shard| shard.backlog.clone()).collect(),
        }
    }

    /// What dedup takes over.
    pub fn dedup(&self) -> Vec<RestoredShard> {
        let restored = |(number, shard): (&u32, &ShardCheckpoint)| RestoredShard {
            shard: *number,
            frontier: shard.frontier.max(0) as u64,
            alerts: shard.alerts.values().cloned().collect(),
        };
        self.shards.iter().map(restored).collect()
    }

    /// What correlation takes over.
    pub fn correlation(&self) -> Vec<RestoredTenants> {
        let restored = |(number, tenants): (&u32, &TenantCheckpoint)| RestoredTenants {
            shard: *number,
            frontier: tenants.frontier.max(0) as u64,
            alerts: tenants.alerts.values().cloned().collect(),
        };
        self.tenants.iter().map(restored).collect()
    }

    /// Greatest committed frontier, of results or alerts: a partition that has no checkpoint starts above it (rule 10).
    pub fn greatest_frontier(&self) -> Option<TimeMs> {
        let shards = self.shards.values().map(|shard| shard.frontier);
        shards.chain(self.tenants.values().map(|tenants| tenants.frontier)).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let p = PartitionCheckpoint {
            next: 7,
            arrival_ms: 9,
            replay: ReplayPoint { offset: 3, arrival_ms: 5 },
            exceptions: vec![(4, 6)],
            ended: true,
        };
        let key = partition_key("sysmon-logs", 2);
        let mut records = BTreeMap::from([(key.clone(), encode(&p))]);
        let restored = Restored::from_records(&records).unwrap();
        assert_eq!(restored.partitions[&("sysmon-logs".to_owned(), 2)], p);

        records.insert(key.clone(), br#"{"v":99}"#.to_vec());
        let error = Restored::from_records(&records).unwrap_err().to_string();
        assert!(error.contains("format 99") && error.contains("checkpoint.job"), "{error}");
        records.insert(key, b"not json".to_vec());
        assert!(matches!(Restored::from_records(&records), Err(CheckpointError::Unreadable { .. })));
        records.clear();
        records.insert("shards/1".into(), encode(&p));
        assert!(Restored::from_records(&records).is_err());
    }
}
