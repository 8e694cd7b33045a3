//! One run's workers: production's start, dataflow and driver over the simulated [`World`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use logster_dataflow::checkpoint::{GENERATION_KEY, PartitionCheckpoint, ReplayPoint, encode};
use logster_dataflow::commit::shell::{Commits, Driver};
use logster_dataflow::engine::AllMetrics;
use logster_dataflow::source::{Assigned, Item, Message, Reader, SourceConfig, Standing};
use logster_dataflow::startup::{JobLog, Taken, successor, take_over};
use logster_dataflow::topology::{self, TopologyConfig};
use logster_operators::correlate::CorrelateConfig;
use logster_operators::dedup::DedupConfig;
use logster_operators::infer::InferConfig;
use logster_operators::normalize::NormalizeConfig;
use logster_operators::window::{ClosedWindow, Credit, Pane, WindowConfig};
use logster_schema::result::content_id;
use logster_schema::time::TimeLimits;
use logster_schema::topics::TRANSITIONS_TOPIC;
use logster_schema::{InferenceResult, Observation, Platform, Prediction, RuleLevel, TimeMs};
use logster_sinks::epoch::{Epoch, Outcome, Sink, WriterError};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::worker::Worker;

use crate::mutations::Mutation;
use crate::turns::Seat;
use crate::world::{Chance, Place, Raw, UnderWay, World};

pub const WIDTH_MS: i64 = 2_000;
pub const HOP_MS: i64 = 500;
pub const LATENESS_MS: i64 = 400;
pub const SKEW_MS: i64 = 300;
pub const BACKFILL_MS: i64 = 10_000;
const SHARDS: u32 = 4;
/// An idle partition's floor stays this far behind the clock.
const IDLE_MARGIN_MS: i64 = 300;
const IDLE_STEP_MS: i64 = 100;

static METRICS: LazyLock<AllMetrics> =
    LazyLock::new(|| AllMetrics::new(&prometheus::Registry::new()).expect("a fresh registry"));

/// What decides scores that the log does not: the number of the run, or for the undisturbed run the committed ones.
#[derive(Clone)]
pub enum Scores {
    /// The same window always has the same score.
    Reproducible,
    /// Scores differ from run to run.
    OfRun(usize),
    /// What is committed is the truth.
    Committed(Arc<BTreeMap<String, f64>>),
}

/// Turns for which a fenced run waits for the generation of whoever did it.
const SUCCESSOR_TURNS: usize = 30;
/// How a run ends that is not started again.
pub const SUPERSEDED: &str = "another run owns the job";

/// One worker of one run.
#[derive(Clone)]
pub struct Job {
    pub world: Arc<Mutex<World>>,
    pub seat: Seat,
    pub run: usize,
    pub worker: usize,
    pub chance: Chance,
    pub scores: Scores,
    /// The logs end where they end when the run begins.
    pub until_end: bool,
}

fn config(mutation: Option<Mutation>, refresh: Duration) -> TopologyConfig {
    let time = TimeLimits { max_lateness_ms: LATENESS_MS, max_skew_ms: SKEW_MS, max_backfill_ms: BACKFILL_MS };
    TopologyConfig {
        shards: SHARDS,
        rules: None,
        source: SourceConfig {
            normalize: NormalizeConfig { time, max_message_bytes: 1 << 16 },
            batch: 6,
            checkpointing: true,
            max_ahead_ms: 3_000,
            replay_ms: if mutation == Some(Mutation::ReplayWithoutWindow) { 0 } else { WIDTH_MS + SKEW_MS },
            max_pending: 200,
            refresh,
        },
        window: WindowConfig {
            width_ms: WIDTH_MS,
            hop_ms: HOP_MS,
            max_lateness_ms: LATENESS_MS,
            max_events: 1_000,
            max_open_backfill: 6,
        },
        infer: InferConfig {
            idle_allowlist: None,
            attack_from: 0.7,
            model_versions: BTreeMap::new(),
            rules: None,
            rules_from: RuleLevel::High,
        },
        dedup: DedupConfig {
            dedup_window_ms: 1_500,
            margin_ms: WIDTH_MS + HOP_MS + LATENESS_MS,
            retention_ms: 8_000,
            shards: SHARDS,
            ..DedupConfig::default()
        },
        correlate: CorrelateConfig {
            correlation_window_ms: 800,
            active_ms: 1_500 + WIDTH_MS + HOP_MS + LATENESS_MS,
            reach_back_ms: BACKFILL_MS + WIDTH_MS + LATENESS_MS,
            shards: SHARDS,
            ..CorrelateConfig::default()
        },
        windows_under_way: 4,
        checkpointing: true,
    }
}

/// A pane that remembers which records it was made of.
pub struct Seen(Vec<String>);

impl Pane for Seen {
    fn seal(_: Platform, observations: &[Observation]) -> Self {
        let name =
            |o: &Observation| format!("{}:{}:{}", o.position.topic.name(), o.position.partition, o.position.offset);
        Self(observations.iter().map(name).collect())
    }
}

/// In the place of the model: the verdict names every record of the window, and one in three windows is an attack.
fn verdict(window: &ClosedWindow<Seen>, scores: &Scores) -> InferenceResult {
    let records: Vec<String> = window.panes.iter().flat_map(|p| p.content.0.clone()).collect();
    let (endpoint, platform) = (&window.endpoint, window.platform);
    let inference_id = InferenceResult::id(endpoint, platform, window.end_ms, window.opened_ms, "sim");
    let drawn = |salt: &str| {
        let digits = content_id(&[&inference_id, &records.join(" "), salt]);
        if u8::from_str_radix(&digits[..2], 16).unwrap() < 86 { 0.9 } else { 0.1 }
    };
    let attack_prob = match scores {
        Scores::Reproducible => drawn(""),
        Scores::OfRun(run) => drawn(&run.to_string()),
        Scores::Committed(known) => known.get(&inference_id).copied().unwrap_or(0.1),
    };
    InferenceResult {
        tenant_id: endpoint.tenant().to_owned(),
        endpoint_id: endpoint.host().to_owned(),
        platform,
        timestamp: window.end_ms,
        window_start: window.start_ms,
        window_end: window.end_ms,
        prediction: if attack_prob < 0.7 { Prediction::Benign } else { Prediction::Attack },
        attack_prob,
        confidence: 0.9,
        num_events: window.events(),
        num_nodes: 0,
        num_edges: 0,
        node_counts: BTreeMap::new(),
        edge_counts: BTreeMap::new(),
        model_version: "sim".to_owned(),
        reason: Some(records.join(" ")),
        backfill: window.opened_ms.is_some(),
        opened_ms: window.opened_ms,
        sampled_out: 0,
        rules: Vec::new(),
        ruleset: None,
        key_edges: Vec::new(),
        ttp_techniques: Vec::new(),
        ttp_evidence: Vec::new(),
        peers: Vec::new(),
        local_addresses: Vec::new(),
        inference_id,
    }
}

/// The shape of `infer`: verdicts come late and in any order, each at its window's time.
fn judge(
    windows: StreamVec<'_, u64, ClosedWindow<Seen>>,
    credit: Rc<Credit>,
    scores: Scores,
    mut chance: Chance,
) -> StreamVec<'_, u64, InferenceResult> {
    let scope = windows.scope();
    windows.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "score", move |initial, info| {
        let activator = scope.activator_for(info.address);
        let mut held = Some(initial);
        let mut under_way: Vec<ClosedWindow<Seen>> = Vec::new();
        move |(input, frontier), output| {
            input.for_each(|_, batch| under_way.append(batch));
            let before = under_way.len();
            for n in (0..before).rev() {
                if !chance.one_in(3) {
                    let window = under_way.swap_remove(n);
                    let cap = held.as_ref().expect("held while a window is under way");
                    let time = window.emit_ms.max(0) as u64;
                    output.session(&cap.delayed(&time)).give(verdict(&window, &scores));
                }
            }
            credit.give_back(before - under_way.len());
            if !under_way.is_empty() {
                activator.activate();
            }
            let earliest = under_way.iter().map(|w| w.emit_ms.max(0) as u64).min();
            match earliest.into_iter().chain(frontier.frontier().first().copied()).min() {
                Some(until) => held.iter_mut().for_each(|cap| cap.downgrade(&until)),
                None => held = None,
            }
        }
    })
}

/// Reads the simulated partitions as [`logster_dataflow::source::kafka::KafkaReader`] reads those of a broker.
struct SimReader {
    job: Job,
    slots: Vec<SimSlot>,
    /// Floors proposed and taken to be committed, where that rule is taken out.
    early: Rc<RefCell<Vec<(usize, TimeMs)>>>,
}

struct SimSlot {
    place: Place,
    next: usize,
    /// What has been delivered so far: later records are on their way.
    delivered: usize,
    /// Where the input ends, if it does.
    end: Option<usize>,
    proposed: TimeMs,
}

impl Reader for SimReader {
    fn poll(
        &mut self,
        max: usize,
        ready: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(Item<'_>),
    ) -> anyhow::Result<usize> {
        let world = Arc::clone(&self.job.world);
        let world = world.lock().unwrap();
        let (mut taken, first) = (0, self.job.chance.below(self.slots.len().max(1) as u64) as usize);
        for n in 0..self.slots.len() {
            let slot = (first + n) % self.slots.len();
            let SimSlot { place, next, delivered, end, .. } = &mut self.slots[slot];
            let log = &world.logs[place];
            if self.job.until_end || !self.job.chance.one_in(3) {
                *delivered = end.unwrap_or(log.len());
            }
            while taken < max && *next < *delivered && ready(slot) {
                let Raw { ts_ms, payload } = &log[*next];
                let message = Message {
                    slot,
                    offset: *next as i64,
                    ts_ms: *ts_ms,
                    key: None,
                    payload: payload.as_bytes(),
                    tenant: None,
                };
                take(Item::Message(message));
                *next += 1;
                taken += 1;
            }
        }
        Ok(taken)
    }

    fn standing(&mut self, slot: usize) -> Standing {
        let world = self.job.world.lock().unwrap();
        let SimSlot { place, next, delivered, proposed, end } = &mut self.slots[slot];
        if *next < *delivered {
            return Standing::Reading;
        }
        if let Some(end) = end {
            return if next >= end { Standing::Finished } else { Standing::Reading };
        }
        if world.is(Mutation::TransitionsNeverIdle) && place.0 == TRANSITIONS_TOPIC {
            return Standing::Reading;
        }
        let floor = world.clock - IDLE_MARGIN_MS;
        if floor >= proposed.saturating_add(IDLE_STEP_MS) {
            *proposed = floor;
        }
        if world.is(Mutation::FloorsBeforeCommit) {
            self.early.borrow_mut().push((slot, *proposed));
        }
        Standing::Idle(*proposed)
    }
}

/// Transactions that the schedule commits when it comes to them.
struct SimCommits(Job);

impl Commits for SimCommits {
    fn submit(&self, epoch: Epoch) {
        let Job { run, worker, .. } = self.0;
        let mut world = self.0.world.lock().unwrap();
        let outcome = world.is(Mutation::ReleasedBeforeCommit).then(|| Outcome::Committed(epoch.id));
        let told = outcome.is_some();
        world.under_way.entry((run, worker)).or_default().push_back(UnderWay { epoch, outcome, told });
    }

    fn outcome(&self) -> Option<Outcome> {
        let Job { run, worker, .. } = self.0;
        let mut world = self.0.world.lock().unwrap();
        if world.is(Mutation::ReleasedBeforeCommit) {
            // Told at once; what then becomes of it shows later.
            let queue = world.under_way.entry((run, worker)).or_default();
            return queue.iter_mut().find_map(|u| u.outcome.take());
        }
        let queue = world.under_way.entry((run, worker)).or_default();
        if queue.front().is_some_and(|u| u.told) { queue.pop_front()?.outcome } else { None }
    }

    fn finish(self: Box<Self>) -> Result<(), WriterError> {
        Ok(())
    }
}

/// Commits while a start waits for it.
struct SimSink(Job);

impl Sink for SimSink {
    fn commit(&mut self, mut epoch: Epoch) -> Result<(), WriterError> {
        let Job { world, seat, run, worker, .. } = &self.0;
        seat.next_turn();
        let mut locked = world.lock().unwrap();
        if locked.is(Mutation::NewPartitionUncommitted) {
            epoch.checkpoints.retain(|c| !c.key.starts_with("partition/"));
        }
        let unchecked = locked.is(Mutation::LockUnchecked);
        let landed = locked.land((*run, *worker), epoch);
        drop(locked);
        seat.next_turn();
        if unchecked { Ok(()) } else { landed }
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        Ok(())
    }
}

/// The log that a run starts on.
struct SimLog {
    job: Job,
    /// Where checkpoints are read too early: what they were when the run began.
    before: BTreeMap<String, Vec<u8>>,
    reads: RefCell<usize>,
}

impl SimLog {
    fn new(job: Job) -> Self {
        let before = job.world.lock().unwrap().records();
        Self { job, before, reads: RefCell::new(0) }
    }
}

impl JobLog for SimLog {
    type Writer = SimSink;

    fn fence(&self, index: usize) -> Result<SimSink, WriterError> {
        self.job.seat.next_turn();
        let mut world = self.job.world.lock().unwrap();
        let sink = SimSink(Job { worker: index, ..self.job.clone() });
        if world.is(Mutation::NoBarrier) && index > 0 {
            world.fence_later.insert((self.job.run, index), true);
        } else {
            world.fence(self.job.run, index);
        }
        Ok(sink)
    }

    fn fence_all(&self, indices: Range<usize>) -> Result<Vec<SimSink>, WriterError> {
        let skip = self.job.world.lock().unwrap().is(Mutation::SurplusNotFenced);
        indices.filter(|_| !skip).map(|index| self.fence(index)).collect()
    }

    fn records(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        self.job.seat.next_turn();
        let world = self.job.world.lock().unwrap();
        let first = *self.reads.borrow() == 0;
        *self.reads.borrow_mut() += 1;
        let early = match world.mutation {
            Some(Mutation::IdZeroNotFirst) => first,
            Some(Mutation::ReadBeforeFenced) => !first,
            _ => false,
        };
        let mut records = if early { self.before.clone() } else { world.records() };
        if world.is(Mutation::NoGeneration) {
            records.remove(GENERATION_KEY);
        }
        if world.is(Mutation::NewPartitionWithoutFloor) && !first && records.keys().any(|k| k.starts_with("partition/"))
        {
            // As if it were known: from its start, without floor.
            for (topic, partition) in world.logs.keys() {
                let replay = ReplayPoint { offset: 0, arrival_ms: TimeMs::MIN };
                let exceptions = Vec::new();
                let fresh = PartitionCheckpoint { next: 0, arrival_ms: TimeMs::MIN, replay, exceptions, ended: false };
                records.entry(format!("partition/{topic}/{partition}")).or_insert_with(|| encode(&fresh));
            }
        }
        Ok(records)
    }

    fn logs(&self) -> anyhow::Result<Vec<(String, i32, i64, i64)>> {
        self.job.seat.next_turn();
        let world = self.job.world.lock().unwrap();
        Ok(world.logs.iter().map(|((topic, n), log)| (topic.clone(), *n, 0, log.len() as i64)).collect())
    }

    fn wait(&self, worker: &mut Worker) {
        self.job.seat.next_turn();
        worker.step();
    }
}

/// A worker from start to end: the counterpart of the engine's loop, a turn a step.
pub fn work(allocator: Allocator, job: Job) -> anyhow::Result<()> {
    // Without a clock every timer of the dataflow is due at once.
    let mut worker = Worker::new(WorkerConfig::default(), allocator, None);
    let log = SimLog::new(job.clone());
    let Taken { restored, assigned, generation, ends, .. } =
        take_over(&mut worker, &log, SHARDS, "simulated", LATENESS_MS)?;
    let mutation = job.world.lock().unwrap().mutation;
    let failed: Rc<RefCell<Option<anyhow::Error>>> = Rc::default();
    let early = Rc::new(RefCell::new(Vec::new()));
    let open = |_, assigned: &[Assigned]| {
        let slot = |(a, end): (&Assigned, &i64)| {
            let next = a.start_offset() as usize;
            let end = job.until_end.then_some(*end as usize);
            let place = (a.topic.name().to_owned(), a.partition);
            SimSlot { place, next, delivered: next, end, proposed: TimeMs::MIN }
        };
        SimReader { job: job.clone(), slots: assigned.iter().zip(&ends).map(slot).collect(), early: early.clone() }
    };
    let (scores, mut chance) = (job.scores.clone(), job.chance.clone());
    let refresh = if chance.one_in(4) { Duration::ZERO } else { Duration::MAX };
    let built = worker.dataflow::<u64, _, _>(|scope| {
        topology::build(
            scope,
            &config(mutation, refresh),
            &restored,
            assigned,
            open,
            |windows, credit| judge(windows, credit, scores, chance),
            METRICS.worker(0),
            Rc::clone(&failed),
        )
    });
    let commits = Box::new(SimCommits(job.clone()));
    let alerts_committed = built.alerts_committed.clone();
    let floors = built.floors.clone();
    let mut driver = Driver::new(
        built.commits,
        commits,
        Duration::ZERO,
        alerts_committed.clone(),
        floors.clone(),
        Box::new(|_, _| {}),
    );
    loop {
        job.seat.next_turn();
        worker.step();
        floors.borrow_mut().append(&mut early.borrow_mut());
        let done = match driver.poll() {
            // As the engine does: whoever fenced us may not have come to own the job yet.
            Err(error @ WriterError::Fenced { .. }) => {
                for _ in 0..SUCCESSOR_TURNS {
                    if mutation == Some(Mutation::FencedStaysDown) || successor(&log, generation).is_some() {
                        anyhow::bail!(SUPERSEDED);
                    }
                }
                return Err(error.into());
            }
            polled => polled?,
        };
        if done && alerts_committed.done() {
            return Ok(());
        }
    }
}

/// The scores of committed results.
pub fn committed_scores(world: &World) -> BTreeMap<String, f64> {
    let results = world.outputs.iter().filter(|r| r.topic == logster_schema::OutputTopic::Results);
    let score = |value: &[u8]| {
        let r: InferenceResult = serde_json::from_slice(value).expect("a result");
        (r.inference_id, r.attack_prob)
    };
    results.map(|r| score(&r.value)).collect()
}
