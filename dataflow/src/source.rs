//! Reads the raw logs, normalizes them where they are read, and turns arrival into the watermark.
//!
//! - Input: the partitions that are this worker's, through a [`Reader`] (Kafka or files: nothing else differs).
//! - Output: what is to be published (normalized events, dead letters, partition progress) for this worker's
//!   `commit_results`; observations for the shards; analysts' transitions for the shards.
//! - State: a clock a partition.
//! - Ordering: per partition by offset. Timely time is the least watermark of this worker's partitions.
//! - Failure: the reader's errors end the run. Bad records are dead letters.
//! - Back-pressure: polls nothing while too much waits to be written, and no partition whose watermark is more
//!   than `max_ahead_ms` past what the whole cluster has scored.

pub mod file;
pub mod kafka;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use logster_operators::dedup::Transition;
use logster_operators::normalize::{self, NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_schema::topics::TRANSITIONS_TOPIC;
use logster_schema::{
    AlertTransition, DeadLetter, DeadLetterReason, InputTopic, Observation, OutputRecord, OutputTopic, RawTopic, TimeMs,
};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{ProbeHandle, Scope, StreamVec};
use timely::scheduling::SyncActivator;

use crate::checkpoint::PartitionCheckpoint;
use crate::clock::PartitionClock;
use crate::commit::PartitionProgress;

/// Kafka key of a record whose producer gave none.
pub fn routing_key(topic: InputTopic, payload: &[u8]) -> String {
    match topic {
        InputTopic::Raw(topic) => normalize::routing_key(topic, payload),
        // What cannot be read becomes a dead letter, wherever it lies.
        InputTopic::Transitions => serde_json::from_slice(payload)
            .map_or_else(|_| String::new(), |t: AlertTransition| t.endpoint().key().to_owned()),
    }
}

/// A partition assigned to this worker, with what a checkpoint says of it.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// Topic.
    pub topic: InputTopic,
    /// Number.
    pub partition: i32,
    /// Where to go on; `None`: from the start of the log.
    pub checkpoint: Option<PartitionCheckpoint>,
}

impl Assigned {
    /// First offset to read.
    pub fn start_offset(&self) -> i64 {
        self.checkpoint.as_ref().map_or(0, |c| c.replay.offset)
    }
}

/// One record from a reader.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Index into the assigned partitions.
    pub slot: usize,
    /// Offset within the partition.
    pub offset: i64,
    /// Record timestamp.
    pub ts_ms: TimeMs,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Message.
    pub payload: &'a [u8],
    /// Tenant that takes the place of the record's own: captures played as tenants of their own.
    pub tenant: Option<&'a str>,
}

/// What a reader hands over.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record.
    Message(Message<'a>),
    /// A line of a file that yields no record: its bytes and why.
    Refused(Box<DeadLetter>),
}

/// Where a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is, or may be, more to read.
    Reading,
    /// At the end of a live log: a floor of this arrival may be proposed.
    Idle(TimeMs),
    /// Nothing will come in this run: the end of input.
    Finished,
}

/// Reads this worker's partitions without blocking.
pub trait Reader {
    /// Hands up to `max` items over. `ready` says which slots may be read now; records of others wait.
    /// Returns how many were handed over.
    fn poll(
        &mut self,
        max: usize,
        ready: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(Item<'_>),
    ) -> anyhow::Result<usize>;

    /// Where a slot stands after the last poll.
    fn standing(&mut self, slot: usize) -> Standing;

    /// Arrival that every later record of every slot reaches, where the reader knows: files have one clock.
    fn common_clock(&self) -> Option<TimeMs> {
        None
    }
}

impl Reader for Box<dyn Reader> {
    fn poll(
        &mut self,
        max: usize,
        ready: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(Item<'_>),
    ) -> anyhow::Result<usize> {
        (**self).poll(max, ready, take)
    }
    fn standing(&mut self, slot: usize) -> Standing {
        (**self).standing(slot)
    }
    fn common_clock(&self) -> Option<TimeMs> {
        (**self).common_clock()
    }
}

/// A reader at its end: stands in while the run is ended for an input that could not be opened.
pub struct NoReader;

impl Reader for NoReader {
    fn poll(&mut self, _: usize, _: &dyn Fn(usize) -> bool, _: &mut dyn FnMut(Item<'_>)) -> anyhow::Result<usize> {
        Ok(0)
    }
    fn standing(&mut self, _: usize) -> Standing {
        Standing::Reading
    }
}

/// One thing that the source has for the commit.
#[derive(Clone, Debug)]
pub enum Published {
    /// A normalized event or a dead letter.
    Record(OutputRecord),
    /// How far a partition has come with the records before this.
    Progress(PartitionProgress),
}

/// Settings of the source.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Limits of messages and times.
    pub normalize: NormalizeConfig,
    /// Records of one activation.
    pub batch: usize,
    /// Whether a later run goes on from here: then the end of a partition counts once it is committed.
    pub checkpointing: bool,
    /// How far a partition may run ahead of what is scored, ms of arrival.
    pub max_ahead_ms: i64,
    /// Arrival back from the committed frontier that windows from it on may need: width plus skew. Open backfill windows
    /// need no more: they close at most a width after they opened.
    pub replay_ms: i64,
    /// Records waiting to be written above which nothing is polled.
    pub max_pending: usize,
    /// How often the progress of partitions without new records is published, by the wall clock: no result depends on
    /// it, only how far back a replay starts.
    pub refresh: Duration,
}

/// What the source looks at while it runs.
pub struct SourceLinks {
    /// Frontier of scored windows, all workers.
    pub scored: ProbeHandle<u64>,
    /// Frontier of committed results, all workers.
    pub results_committed: ProbeHandle<u64>,
    /// Records of this worker waiting to be written.
    pub pending: Rc<dyn Fn() -> usize>,
    /// Floors whose transaction is committed, by slot: set by `commit_results`.
    pub committed_floors: Rc<RefCell<Vec<(usize, TimeMs)>>>,
    /// Why the source cannot go on; the worker's loop looks at it.
    pub failed: Rc<RefCell<Option<anyhow::Error>>>,
    /// Counters.
    pub metrics: SourceMetrics,
}

/// Counters of the source, this worker.
#[derive(Clone)]
pub struct SourceMetrics {
    /// Raw records in, by topic.
    pub raw: prometheus::IntCounterVec,
    /// Normalized events out.
    pub normalized: prometheus::IntCounter,
    /// Dead letters out, by topic and reason.
    pub dead_letters: prometheus::IntCounterVec,
    /// Records whose time was clamped.
    pub clamped: prometheus::IntCounter,
    /// Activations that polled nothing for back-pressure.
    pub held_back: prometheus::IntCounter,
}

/// Streams of the source.
pub struct SourceStreams<'scope> {
    /// For `commit_results` of this worker.
    pub published: StreamVec<'scope, u64, Published>,
    /// For the shards.
    pub observations: StreamVec<'scope, u64, Observation>,
    /// For the shards.
    pub transitions: StreamVec<'scope, u64, Transition>,
}

struct Slot {
    assigned: Assigned,
    clock: PartitionClock,
    /// Records were admitted since progress was last published.
    dirty: bool,
    /// A floor is proposed and not committed yet: nothing is read meanwhile (protocol rule 9).
    held: bool,
    /// That the input may end here is committed, if it has to be: the watermark need not wait for this partition.
    may_end: bool,
}

/// The floor that stands for the end of input: no record of this run comes after it.
const ENDED: TimeMs = TimeMs::MAX;

type Build<T> = CapacityContainerBuilder<Vec<T>>;

/// The timely operator. `reader` gets the operator's activator, to wake it when records arrive.
pub fn source<'scope, R: Reader + 'static>(
    scope: Scope<'scope, u64>,
    assigned: Vec<Assigned>,
    reader: impl FnOnce(SyncActivator, &[Assigned]) -> R,
    config: SourceConfig,
    links: SourceLinks,
) -> SourceStreams<'scope> {
    let mut builder = OperatorBuilder::new("source".to_owned(), scope);
    let info = builder.operator_info();
    let (published_out, published) = builder.new_output::<Vec<Published>>();
    let (observations_out, observations) = builder.new_output::<Vec<Observation>>();
    let (transitions_out, transitions) = builder.new_output::<Vec<Transition>>();
    let mut published_out = OutputBuilder::<_, Build<Published>>::from(published_out);
    let mut observations_out = OutputBuilder::<_, Build<Observation>>::from(observations_out);
    let mut transitions_out = OutputBuilder::<_, Build<Transition>>::from(transitions_out);

    let mut reader = reader(scope.worker().sync_activator_for(info.address.to_vec()), &assigned);
    let activator = scope.activator_for(info.address);
    let mut slots: Vec<Slot> = assigned
        .into_iter()
        .map(|assigned| {
            let clock = assigned.checkpoint.as_ref().map_or_else(PartitionClock::new, PartitionClock::resume);
            Slot { assigned, clock, dirty: false, held: false, may_end: !config.checkpointing }
        })
        .collect();
    let late = config.normalize.time.max_lateness_ms;

    builder.build(move |capabilities| {
        let mut caps: Option<Vec<Capability<u64>>> = Some(capabilities);
        let mut normalizer = Normalizer::new(config.normalize);
        let mut last_progress = Instant::now();
        move |_| {
            let Some(held) = &mut caps else { return };
            let mut published_out = published_out.activate();
            let mut observations_out = observations_out.activate();
            let mut transitions_out = transitions_out.activate();
            let mut published = published_out.session(&held[0]);
            let mut observations = observations_out.session(&held[1]);
            let mut transitions = transitions_out.session(&held[2]);

            for (slot, floor) in links.committed_floors.borrow_mut().drain(..) {
                match floor {
                    ENDED => slots[slot].may_end = true,
                    floor => slots[slot].clock.raise(floor),
                }
                slots[slot].held = false;
            }

            // How far a partition may go: `None` when everything is scored to the end.
            let limit = links.scored.with_frontier(|f| f.first().map(|f| *f as TimeMs + config.max_ahead_ms + late));
            let mut taken = 0;
            if (links.pending)() < config.max_pending {
                let common = reader.common_clock();
                let open: Vec<bool> = slots
                    .iter()
                    .map(|slot| {
                        let mark = slot.clock.arrival_max().max(common);
                        !slot.held && limit.is_none_or(|limit| mark.is_none_or(|mark| mark <= limit))
                    })
                    .collect();
                let ready = |slot: usize| open[slot];
                let mut take = |item: Item<'_>| match item {
                    Item::Refused(letter) => {
                        links.metrics.raw.with_label_values(&["none"]).inc();
                        links.metrics.dead_letters.with_label_values(&["none", letter.reason.name()]).inc();
                        published.give(Published::Record(letter.to_output()));
                    }
                    Item::Message(m) => {
                        let slot = &mut slots[m.slot];
                        let admitted = slot.clock.admit(m.offset, m.ts_ms);
                        slot.dirty |= admitted.publish;
                        let raw = RawRecord {
                            topic: RawTopic::Sysmon,
                            partition: slot.assigned.partition,
                            offset: m.offset,
                            arrival_ms: admitted.arrival_ms,
                            key: m.key,
                            payload: m.payload,
                        };
                        let topic = slot.assigned.topic.name();
                        // A transition counts only where it becomes a dead letter: raw in = normalized + dead letters.
                        let count = || links.metrics.raw.with_label_values(&[topic]).inc();
                        if admitted.publish && slot.assigned.topic.raw().is_some() {
                            count();
                        }
                        let dead = |letter: DeadLetter| {
                            links.metrics.dead_letters.with_label_values(&[topic, letter.reason.name()]).inc();
                            Published::Record(letter.to_output())
                        };
                        match slot.assigned.topic {
                            InputTopic::Raw(topic) => {
                                match normalizer.normalize_as(&RawRecord { topic, ..raw }, m.tenant) {
                                    Outcome::Event(event) => {
                                        if admitted.publish {
                                            links.metrics.normalized.inc();
                                            links.metrics.clamped.inc_by(u64::from(event.clamped));
                                            published.give(Published::Record(OutputRecord {
                                                topic: OutputTopic::Normalized,
                                                key: Some(event.endpoint.key().into()),
                                                ts_ms: event.timestamp_ms,
                                                value: event.json,
                                            }));
                                        }
                                        observations.give(event.observation);
                                    }
                                    Outcome::DeadLetter(letter) if admitted.publish => published.give(dead(*letter)),
                                    Outcome::DeadLetter(_) => {}
                                }
                            }
                            InputTopic::Transitions => match serde_json::from_slice(m.payload) {
                                Ok(decision) => transitions.give(Transition {
                                    arrival_ms: admitted.arrival_ms,
                                    partition: raw.partition,
                                    offset: raw.offset,
                                    decision,
                                }),
                                Err(e) if admitted.publish => {
                                    count();
                                    published.give(dead(refused_transition(&raw, &e.to_string())));
                                }
                                Err(_) => {}
                            },
                        }
                    }
                };
                match reader.poll(config.batch, &ready, &mut take) {
                    Ok(n) => taken = n,
                    // Capabilities stay, so nothing moves on: the worker's loop sees the error and ends the run.
                    Err(error) => *links.failed.borrow_mut() = Some(error),
                }
            } else {
                links.metrics.held_back.inc();
            }

            // Progress and floors.
            let committed = links.results_committed.with_frontier(|f| f.first().map(|f| *f as TimeMs));
            let need = committed.unwrap_or(TimeMs::MAX / 2) - config.replay_ms;
            let refresh = last_progress.elapsed() > config.refresh;
            for (n, slot) in slots.iter_mut().enumerate() {
                let idle = match reader.standing(n) {
                    Standing::Idle(floor) if !slot.held && !slot.clock.is_replaying() => Some(floor),
                    Standing::Finished if !slot.held && !slot.may_end => Some(ENDED),
                    _ => None,
                };
                // While a floor waits for its commit, its checkpoint is the last word.
                if !slot.held && (slot.dirty || refresh || idle.is_some()) {
                    let mut checkpoint = slot.clock.checkpoint(need);
                    let mut floor = None;
                    checkpoint.ended = config.checkpointing && slot.may_end;
                    if let Some(at) = idle.filter(|at| *at > checkpoint.arrival_ms) {
                        match at {
                            ENDED => checkpoint.ended = true,
                            at => checkpoint.arrival_ms = at,
                        }
                        floor = Some((n, at));
                        slot.held = true;
                    }
                    if slot.dirty || refresh || floor.is_some() {
                        let (topic, partition) = (slot.assigned.topic.name().to_owned(), slot.assigned.partition);
                        published.give(Published::Progress(PartitionProgress { topic, partition, checkpoint, floor }));
                    }
                    slot.dirty = false;
                }
            }
            if refresh {
                last_progress = Instant::now();
            }
            drop((published, observations, transitions));

            // The watermark of this worker: its least partition.
            let common = reader.common_clock();
            let mut is_over = |n: &usize| reader.standing(*n) == Standing::Finished && slots[*n].may_end;
            let open: Vec<usize> = (0..slots.len()).filter(|n| !is_over(n)).collect();
            if open.is_empty() {
                caps = None;
                return;
            }
            let mark = |n: &usize| slots[*n].clock.arrival_max().max(common).unwrap_or(TimeMs::MIN / 2);
            let watermark = open.iter().map(mark).min().expect("not empty") - late;
            for cap in held.iter_mut() {
                if watermark > *cap.time() as TimeMs {
                    cap.downgrade(&(watermark as u64));
                }
            }
            if taken > 0 {
                activator.activate();
            } else {
                activator.activate_after(Duration::from_millis(5));
            }
        }
    });
    SourceStreams { published, observations, transitions }
}

fn refused_transition(raw: &RawRecord<'_>, why: &str) -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::MissingContent,
        detail: format!("no alert transition: {why}"),
        topic: TRANSITIONS_TOPIC.to_owned(),
        partition: raw.partition,
        offset: raw.offset,
        arrival: raw.arrival_ms,
        key: raw.key.and_then(|k| std::str::from_utf8(k).ok()).map(str::to_owned),
        payload: None,
        payload_base64: None,
    }
    .with_payload(raw.payload)
}
