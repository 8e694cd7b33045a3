//! Takes a job over on Kafka: fences every earlier run, then reads what it left (protocol rules 1 to 5, 10).
//!
//! ```text
//! worker 0                          every other worker
//! fence <job>-0
//! read the generation {g, W'} ────▶ fence <job>-i          worker 0 also fences the ids W..W' of a wider run
//!          ◀── barrier ──▶
//! commit {g + 1, W} with id 0: that commit is the lock
//! read topics, checkpoints, ends ─▶ take them over
//! commit ids of topics and starts of partitions that are new to the job
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use logster_schema::topics::CHECKPOINT_TOPIC;
use logster_schema::{InputTopic, TimeMs};
use logster_sinks::admin::{Admin, Arrival, Described, specified};
use logster_sinks::client::KafkaConfig;
use logster_sinks::epoch::{Checkpoint, Epoch, Sink, WriterError};
use logster_sinks::reader::{ends, last_values};
use logster_sinks::writer::{BrokerClock, TransactionalWriter, WriterConfig};
use serde::{Deserialize, Serialize};
use timely::ExchangeData;
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Input, Inspect, Probe};
use timely::worker::Worker;

use crate::checkpoint::{
    CheckpointError, GENERATION_KEY, Generation, PartitionCheckpoint, ReplayPoint, Restored, TopicCheckpoint, decode,
    encode, partition_key, topic_key,
};
use crate::cluster::{EXIT_FAILED, leave};
use crate::failure::Failure;
use crate::source::Assigned;

/// How long a transaction may take before it is given up, and a dead writer may hold back readers.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the checkpoints may stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a run looks whether its topics are still those it reads.
const WATCH_TOPICS_EVERY: Duration = Duration::from_secs(5);

/// What a job on Kafka is called and how it is reached.
#[derive(Clone)]
pub struct JobConfig {
    /// Broker.
    pub kafka: KafkaConfig,
    /// `checkpoint.job`.
    pub job: String,
    /// `kafka.group_id`.
    pub group: String,
    /// `cluster.shards`.
    pub shards: u32,
    /// Settings that committed results depend on, in words.
    pub semantics: String,
    /// `input.max_lateness`, ms: from a watermark to the arrivals it stands for.
    pub max_lateness_ms: i64,
    /// Whose clock stamps arrivals.
    pub arrival: Arrival,
    /// Take the ends found at start as the end of input.
    pub until_end: bool,
    /// The broker's clock, as this process hears it.
    pub clock: BrokerClock,
    /// Version of the rule set, if there is one: a change is logged.
    pub ruleset: Option<String>,
}

/// What a start needs of the log that the job lives on: Kafka, or a simulated one in the tests.
pub trait JobLog {
    /// Writes as one worker of the job.
    type Writer: Sink;

    /// Takes the transactional id of a worker: whoever held it before can commit nothing any more.
    ///
    /// # Errors
    /// A broker that cannot be reached; another run that took the id at the same moment.
    fn fence(&self, index: usize) -> Result<Self::Writer, WriterError>;

    /// [`fence`](Self::fence) of many at once.
    ///
    /// # Errors
    /// The first.
    fn fence_all(&self, indices: Range<usize>) -> Result<Vec<Self::Writer>, WriterError>;

    /// The last committed value of each of this job's keys.
    ///
    /// # Errors
    /// A broker that cannot be reached, a topic that does not exist.
    fn records(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>>;

    /// Every partition of the input: topic, number, first offset, end.
    ///
    /// # Errors
    /// As [`JobLog::records`].
    fn logs(&self) -> anyhow::Result<Vec<(String, i32, i64, i64)>>;

    /// The id of each topic of the input that exists. A log whose topics cannot be made anew has none.
    ///
    /// # Errors
    /// As [`JobLog::records`].
    fn topic_ids(&self) -> anyhow::Result<BTreeMap<String, String>> {
        Ok(BTreeMap::new())
    }

    /// Version of the run's rule set, if it has one. Kept with the generation, so that a change is seen.
    fn ruleset(&self) -> Option<&str> {
        None
    }

    /// Another worker is waited for.
    fn wait(&self, worker: &mut Worker) {
        worker.step_or_park(None);
    }
}

/// What a worker starts with.
pub struct Taken<W> {
    /// Its writer, alone on its transactional id.
    pub writer: W,
    /// Committed state.
    pub restored: Restored,
    /// Its partitions.
    pub assigned: Vec<Assigned>,
    /// Their ends at the start.
    pub ends: Vec<i64>,
    /// This run's number.
    pub generation: u64,
    /// The topics that the run reads.
    pub topics: BTreeMap<String, Described>,
}

/// A transactional writer whose checkpoint keys are this job's.
pub struct JobWriter {
    writer: TransactionalWriter,
    prefix: String,
}

impl Sink for JobWriter {
    fn commit(&mut self, mut epoch: Epoch) -> Result<(), WriterError> {
        for checkpoint in &mut epoch.checkpoints {
            checkpoint.key.insert_str(0, &self.prefix);
        }
        if epoch.checkpoints.is_empty() {
            // An empty transaction of a fenced writer succeeds: always write something.
            let key = format!("{}alive", self.prefix);
            epoch.checkpoints.push(Checkpoint { key, value: Some(b"{}".to_vec()) });
        }
        self.writer.commit(epoch)
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        self.writer.finish()
    }
}

/// What worker 0 tells the others once the run owns the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shared {
    generation: u64,
    records: Vec<(String, Vec<u8>)>,
    /// Topic, partition, first offset, end.
    logs: Vec<(String, i32, i64, i64)>,
}

impl JobConfig {
    fn writer(&self, index: usize) -> WriterConfig {
        WriterConfig {
            kafka: self.kafka.clone(),
            transactional_id: format!("{}-{index}", self.job),
            group: Some(self.group.clone()),
            transaction_timeout: TRANSACTION_TIMEOUT,
            clock: self.clock.clone(),
        }
    }

    fn prefix(&self) -> String {
        format!("{}/", self.job)
    }

    /// The job's generation record, if it ever ran.
    ///
    /// # Errors
    /// As [`JobConfig::records`]; another format.
    pub fn generation(&self) -> anyhow::Result<Option<Generation>> {
        generation(self)
    }

    fn topics(&self) -> anyhow::Result<BTreeMap<String, Described>> {
        Ok(Admin::new(&self.kafka)?.describe(&InputTopic::ALL.map(InputTopic::name))?)
    }

    /// Looks at the topics while the run goes on, and ends the process when they are others than those it reads: a
    /// partition was added, a topic was made anew. The start after that takes the one in and refuses the other.
    ///
    /// # Errors
    /// A configuration that makes no client; a thread that cannot be started.
    pub fn watch_topics(&self, read: BTreeMap<String, Described>) -> anyhow::Result<()> {
        let admin = Admin::new(&self.kafka)?;
        let watch = move || {
            loop {
                std::thread::sleep(WATCH_TOPICS_EVERY);
                // While no broker answers there is nothing to compare.
                let Ok(now) = admin.describe(&InputTopic::ALL.map(InputTopic::name)) else { continue };
                for (topic, was) in &read {
                    let Some(is) = now.get(topic).filter(|is| *is != was) else { continue };
                    let what = match is.id == was.id {
                        false => format!("was deleted and made anew while it was read: its id is {}", is.id),
                        true => format!("has {} partitions now, {} are read", is.partitions, was.partitions),
                    };
                    leave(format!("topic \"{topic}\" {what}"), EXIT_FAILED);
                }
            }
        };
        std::thread::Builder::new().name("topics".to_owned()).spawn(watch)?;
        Ok(())
    }

    /// Refuses topics that a run could not rely on.
    ///
    /// # Errors
    /// Topics that are missing, or whose settings would change results.
    pub fn check_topics(&self) -> anyhow::Result<()> {
        let differences = Admin::new(&self.kafka)?.check(&specified(self.arrival))?;
        let (fatal, harmless): (Vec<_>, Vec<_>) = differences.into_iter().partition(|d| d.is_fatal());
        for difference in harmless {
            tracing::warn!(%difference, "topic differs from the specification");
        }
        if fatal.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = fatal.iter().map(ToString::to_string).collect();
        Err(Failure::new(format!("the topics are not as a run needs them: {}", list.join("; ")))
            .remedy("`logster topics create` makes what is missing; `logster topics check` explains the rest")
            .into())
    }
}

impl JobLog for JobConfig {
    type Writer = JobWriter;

    fn ruleset(&self) -> Option<&str> {
        self.ruleset.as_deref()
    }

    fn fence(&self, index: usize) -> Result<JobWriter, WriterError> {
        Ok(JobWriter { writer: TransactionalWriter::fence(self.writer(index))?, prefix: self.prefix() })
    }

    fn fence_all(&self, indices: Range<usize>) -> Result<Vec<JobWriter>, WriterError> {
        let writers = TransactionalWriter::fence_all(indices.map(|index| self.writer(index)).collect())?;
        Ok(writers.into_iter().map(|writer| JobWriter { writer, prefix: self.prefix() }).collect())
    }

    /// Without the job's name.
    fn records(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let prefix = self.prefix();
        let values = last_values(&self.kafka, CHECKPOINT_TOPIC, READ_TIMEOUT)?;
        let mine = values.into_iter().filter_map(|(key, value)| {
            let key = String::from_utf8(key).ok()?;
            let key = key.strip_prefix(&prefix)?.to_owned();
            (key != "alive").then_some((key, value))
        });
        Ok(mine.collect())
    }

    fn logs(&self) -> anyhow::Result<Vec<(String, i32, i64, i64)>> {
        let topics = self.topics()?;
        let wanted: Vec<(String, i32)> = InputTopic::ALL
            .map(InputTopic::name)
            .into_iter()
            .flat_map(|topic| {
                let count = topics.get(topic).map_or(0, |found| found.partitions) as i32;
                (0..count).map(move |partition| (topic.to_owned(), partition))
            })
            .collect();
        let offsets = ends(&self.kafka, &wanted)?;
        Ok(wanted.into_iter().zip(offsets).map(|((t, p), (start, end))| (t, p, start, end)).collect())
    }

    fn topic_ids(&self) -> anyhow::Result<BTreeMap<String, String>> {
        Ok(self.topics()?.into_iter().map(|(name, found)| (name, found.id)).collect())
    }
}

fn generation(log: &impl JobLog) -> anyhow::Result<Option<Generation>> {
    let records = log.records()?;
    Ok(records.get(GENERATION_KEY).map(|bytes| decode(GENERATION_KEY, bytes)).transpose()?)
}

/// The generation that owns the job, if that is a later one than `mine`. `None` also if it cannot be found out: then
/// a restart will.
pub fn successor(log: &impl JobLog, mine: u64) -> Option<u64> {
    generation(log).ok().flatten().map(|owner| owner.generation).filter(|owner| *owner > mine)
}

/// Takes the job over. Every worker of the run calls it; all return together.
///
/// # Errors
/// A broker that cannot be reached, a checkpoint that this binary or configuration does not fit, a run that
/// took the job over meanwhile.
pub fn take_over<L: JobLog>(
    worker: &mut Worker,
    log: &L,
    shards: u32,
    semantics: &str,
    max_lateness_ms: i64,
) -> anyhow::Result<Taken<L::Writer>> {
    let (index, peers) = (worker.index(), worker.peers());
    let first = index == 0;

    let mut writer = first.then(|| log.fence(0)).transpose()?;
    let before = if first { Some(generation(log)?) } else { None };
    let before = all_gather(worker, log, before).into_iter().next().expect("worker 0 has sent it");
    if let Some(before) = &before {
        if before.shards != shards {
            return Err(CheckpointError::Shards { stored: before.shards, configured: shards }.into());
        }
        if before.semantics != semantics {
            let (stored, configured) = (before.semantics.clone(), semantics.to_owned());
            return Err(CheckpointError::Semantics { stored, configured }.into());
        }
    }
    if first {
        let wider = before.as_ref().map_or(0, |g| g.workers as usize);
        drop(log.fence_all(peers..wider)?);
    } else {
        writer = Some(log.fence(index)?);
    }
    let mut writer = writer.expect("fenced");
    all_gather(worker, log, Some(()));

    let shared = if first {
        let generation = Generation {
            generation: before.as_ref().map_or(0, |g| g.generation) + 1,
            workers: peers as u32,
            shards,
            semantics: semantics.to_owned(),
            ruleset: log.ruleset().map(str::to_owned),
        };
        if let Some(before) = before.as_ref().filter(|before| before.ruleset != generation.ruleset) {
            let name = |ruleset: &Option<String>| ruleset.clone().unwrap_or_else(|| "none".to_owned());
            let (from, to) = (name(&before.ruleset), name(&generation.ruleset));
            tracing::info!(%from, %to, "another rule set than the run before");
        }
        let lock = Checkpoint { key: GENERATION_KEY.into(), value: Some(encode(&generation)) };
        writer.commit(Epoch { checkpoints: vec![lock], ..Epoch::default() })?;
        let (logs, records) = (log.logs()?, log.records()?.into_iter().collect());
        let shared = Shared { generation: generation.generation, records, logs };
        Some(admit(shared, &log.topic_ids()?, max_lateness_ms, &mut writer)?)
    } else {
        None
    };
    let shared = all_gather(worker, log, shared).into_iter().next().expect("worker 0 has sent it");

    let restored = Restored::from_records(&shared.records.into_iter().collect())?;
    let mut topics = BTreeMap::<String, Described>::new();
    for (topic, ..) in &shared.logs {
        let id = || restored.topics.get(topic).cloned().unwrap_or_default();
        topics.entry(topic.clone()).or_insert_with(|| Described { id: id(), partitions: 0 }).partitions += 1;
    }
    let mine = shared.logs.into_iter().enumerate().filter(|(n, _)| n % peers == index);
    let mut assigned = Vec::new();
    let mut ends = Vec::new();
    for (_, (topic, partition, start, end)) in mine {
        let input = InputTopic::from_name(&topic).expect("worker 0 has listed input topics");
        let checkpoint = restored.partitions[&(topic.clone(), partition)].clone();
        check_range(&topic, partition, &checkpoint, start, end)?;
        assigned.push(Assigned { topic: input, partition, checkpoint: Some(checkpoint) });
        ends.push(end);
    }
    tracing::info!(
        worker = index,
        generation = shared.generation,
        partitions = assigned.len(),
        shards = restored.shards.len(),
        "took the job over"
    );
    Ok(Taken { writer, restored, assigned, ends, generation: shared.generation, topics })
}

/// Refuses a log that does not hold what the checkpoint counts on.
fn check_range(topic: &str, partition: i32, c: &PartitionCheckpoint, start: i64, end: i64) -> anyhow::Result<()> {
    let place = format!("topic {topic}, partition {partition}");
    if c.replay.offset < start {
        return Err(Failure::new(format!(
            "the log begins at offset {start}, the checkpoint needs it from {}: retention has deleted records that \
             were not processed to their end",
            c.replay.offset
        ))
        .at(place)
        .remedy(
            "results would lack these records. To accept that, name a new job (checkpoint.job), which starts afresh; \
             and give the raw topics a longer retention",
        )
        .into());
    }
    if c.next > end {
        let why = format!("its log ends at offset {end}, {} records of it are published", c.next);
        return Err(made_anew(&why, place).into());
    }
    Ok(())
}

fn made_anew(why: &str, place: impl Into<String>) -> Failure {
    Failure::new(format!("a topic was deleted and made anew: {why}"))
        .at(place)
        .remedy("name a new job (checkpoint.job): offsets of the new log would be taken for those of the old")
}

/// Writes down what is new to the job: topics with their ids, and partitions (rule 10): they start above everything
/// that is written and are known before their first record is read. Also at the first start of all: results of one
/// worker may be committed before another has committed anything of the partitions that they are made of. A partition
/// whose input has ended is new in the same sense: the watermark did not wait for what comes now. Refuses
/// topics that are others than those it has read, whatever their offsets say.
fn admit(
    mut shared: Shared,
    ids: &BTreeMap<String, String>,
    max_lateness_ms: i64,
    writer: &mut impl Sink,
) -> anyhow::Result<Shared> {
    let restored = Restored::from_records(&shared.records.iter().cloned().collect())?;
    let mut new = Vec::new();
    for (topic, id) in ids {
        match restored.topics.get(topic) {
            None => new.push((topic_key(topic), encode(&TopicCheckpoint { id: id.clone() }))),
            Some(known) if known == id => {}
            Some(known) => {
                let why = format!("its id is {id}, the checkpoint is of {known}");
                return Err(made_anew(&why, format!("topic {topic}")).into());
            }
        }
    }
    // Frontiers are watermarks, floors are arrivals.
    let floor = restored.greatest_frontier().map_or(TimeMs::MIN, |frontier| frontier + max_lateness_ms);
    for (topic, partition, start, _) in &shared.logs {
        let checkpoint = match restored.partitions.get(&(topic.clone(), *partition)) {
            // A log whose oldest records are gone before the first run begins where it begins.
            None => PartitionCheckpoint {
                next: *start,
                arrival_ms: floor,
                replay: ReplayPoint { offset: *start, arrival_ms: floor },
                exceptions: Vec::new(),
                ended: false,
            },
            Some(known) if known.ended => {
                PartitionCheckpoint { arrival_ms: known.arrival_ms.max(floor), ended: false, ..known.clone() }
            }
            Some(_) => continue,
        };
        new.push((partition_key(topic, *partition), encode(&checkpoint)));
    }
    if !new.is_empty() {
        let checkpoints = new.iter().map(|(key, value)| Checkpoint { key: key.clone(), value: Some(value.clone()) });
        writer.commit(Epoch { checkpoints: checkpoints.collect(), ..Epoch::default() })?;
        shared.records.extend(new);
    }
    Ok(shared)
}

/// Gives every worker what all workers put in, in order of workers; returns when all have.
fn all_gather<T: ExchangeData + Clone>(worker: &mut Worker, log: &impl JobLog, mine: Option<T>) -> Vec<T> {
    let gathered = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&gathered);
    let index = worker.index();
    let probe = ProbeHandle::new();
    let mut input = worker.dataflow::<u64, _, _>(|scope| {
        let (input, stream) = scope.new_input::<Vec<(usize, T)>>();
        stream.broadcast().inspect(move |value| into.borrow_mut().push(value.clone())).probe_with(&probe);
        input
    });
    if let Some(value) = mine {
        input.send((index, value));
    }
    input.close();
    while !probe.done() {
        log.wait(worker);
    }
    let mut gathered = std::mem::take(&mut *gathered.borrow_mut());
    gathered.sort_by_key(|(from, _)| *from);
    gathered.into_iter().map(|(_, value)| value).collect()
}
