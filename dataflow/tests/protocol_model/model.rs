//! The protocol's states and steps. Times are small integers; see the [crate] docs for what is and is not modelled.

/// Most partitions, records of one, endpoint shards, transactional ids, runs, times.
const PARTS: usize = 3;
const RECORDS: usize = 3;
const SHARDS: usize = 2;
const IDS: usize = 3;
const RUNS: usize = 3;
const TIMES: usize = 5;

/// Length of a window; one ends at every time.
const WIDTH: i8 = 2;
/// What arrives more than this after its time goes to the backfill; the watermark is arrival less this.
pub const LATE: i8 = 2;
/// What claims a time further ahead than this of its arrival is clamped.
pub const SKEW: i8 = 1;
/// A backfill window closes so long after its opening: at most a window, so a replay of one reaches back to it.
const QUIET: i8 = 2;
/// A detection joins an open alert whose last one is at most so far back.
const MERGE: u8 = 2;
const NEVER: i8 = -9;
const NOBODY: u8 = 9;
/// Analysts' transitions, where a scenario has them, are the last partition.
const TRANSITIONS: usize = 2;

/// A raw record: arrival by its broker, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Record(pub i8, pub What);

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// An event of a shard's endpoint, with its own time.
    Event(usize, i8),
    /// An analyst closes the alert of shard 0.
    Close,
}

use What::{Close, Event};

/// What the search begins with.
pub struct Scenario {
    pub name: &'static str,
    logs: Vec<Vec<Record>>,
    /// Records there from the beginning; the others appear at any time.
    visible: [u8; PARTS],
    /// Widths that each run may have.
    widths: Vec<Vec<u8>>,
    /// Values that a floor may take.
    floors: Vec<i8>,
    /// Last time.
    last: u8,
    /// Whether a run decides the scores of shard 0's windows anew.
    coins: bool,
    /// A partition that is not there at first.
    appears: Option<usize>,
}

impl Scenario {
    /// Each looks at some rules closely and at the others in passing.
    pub fn all() -> Vec<Self> {
        let base = || Self {
            name: "",
            logs: vec![vec![Record(0, Event(0, 0))]],
            visible: [1, 0, 0],
            widths: vec![vec![2], vec![1, 3]],
            floors: vec![3],
            last: 1,
            coins: false,
            appears: None,
        };
        vec![
            // Three runs of any width, little data.
            Self { name: "start", widths: vec![vec![1, 2]; 3], last: 0, ..base() },
            // Records that come late: below a floor, then late enough for the backfill, then from the future.
            Self {
                name: "floors",
                logs: vec![vec![Record(0, Event(0, 0)), Record(1, Event(0, 1))], vec![Record(0, Event(1, 0))]],
                visible: [1, 0, 0],
                floors: vec![3, 5],
                last: 2,
                ..base()
            },
            Self {
                name: "skew",
                logs: vec![vec![Record(0, Event(0, 3)), Record(5, Event(0, 5))], vec![]],
                visible: [2, 0, 0],
                floors: vec![4, 6],
                last: 3,
                ..base()
            },
            Self {
                name: "backlog",
                logs: vec![
                    vec![Record(3, Event(0, 0)), Record(4, Event(0, 0)), Record(5, Event(0, 0))],
                    vec![Record(1, Event(1, 1))],
                ],
                visible: [3, 1, 0],
                widths: vec![vec![1], vec![2]],
                floors: vec![5, 7],
                last: 4,
                ..base()
            },
            // Scores that differ, an alert that is fed, closed and opened again, and the tenant behind it.
            Self {
                name: "alerts",
                logs: vec![vec![Record(0, Event(0, 0))], vec![Record(1, Event(1, 1))], vec![Record(2, Close)]],
                visible: [1, 1, 0],
                floors: vec![5],
                last: 2,
                coins: true,
                ..base()
            },
            Self {
                name: "partition",
                logs: vec![vec![Record(1, Event(0, 1))], vec![Record(0, Event(0, 0)), Record(1, Event(0, 1))]],
                visible: [1, 0, 0],
                widths: vec![vec![1, 2], vec![1, 2]],
                floors: vec![5],
                last: 2,
                appears: Some(1),
                ..base()
            },
        ]
    }

    /// Whether a rule shows in this scenario at all: others would only be searched for nothing.
    pub fn tells(&self, broken: Broken) -> bool {
        use Broken::*;
        match broken {
            GenerationBeforeFence | SurplusNotFenced | NoBarrier | NoLock | ReadBeforeFenced | FencedStaysDown => {
                self.name == "start"
            }
            TransitionsNeverIdle | ReleasedEarly | DedupNotCarried | OutboxPrunedEarly | TenantAhead
            | TenantNotCarried => self.name == "alerts",
            OpeningsNotCarried => self.name == "backlog",
            NewWithoutFloor | NewFloorIsFrontier | ListedBeforeFenced => self.name == "partition",
            ReplayWithoutSkew | ReplayUncommitted | FloorBeforeEnd | NewUncommitted => self.name == "skew",
            _ => self.name == "floors",
        }
    }
}

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    GenerationBeforeFence,
    SurplusNotFenced,
    NoBarrier,
    NoLock,
    ReadBeforeFenced,
    ListedBeforeFenced,
    FencedStaysDown,
    UnknownWrittenAgain,
    TwoTransactions,
    FloorsUnrecorded,
    ExceptionsUnrecorded,
    ReplayWithoutWindow,
    ReplayWithoutSkew,
    ReplayUncommitted,
    LeastFrontier,
    GreatestFrontier,
    DedupNotCarried,
    OpeningsNotCarried,
    TenantNotCarried,
    FloorBeforeCommit,
    FloorBeforeEnd,
    TransitionsNeverIdle,
    NewWithoutFloor,
    NewFloorIsFrontier,
    NewUncommitted,
    ReleasedEarly,
    TenantAhead,
    OutboxPrunedEarly,
    ScoredAgain,
}

impl Broken {
    /// Each, with the number of its rule and what is done instead.
    pub const ALL: [(Self, u8, &str); 29] = [
        (Self::GenerationBeforeFence, 1, "the generation is read before id 0 is fenced"),
        (Self::SurplusNotFenced, 2, "ids of an earlier, wider run are not fenced"),
        (Self::NoBarrier, 3, "the lock is committed while ids are still to be fenced"),
        (Self::NoLock, 3, "no generation is committed before the checkpoints are read"),
        (Self::ReadBeforeFenced, 4, "checkpoints are read before anything is fenced"),
        (Self::ListedBeforeFenced, 4, "partitions are listed before anything is fenced"),
        (Self::FencedStaysDown, 5, "a fenced run stays down whoever owns the job"),
        (Self::UnknownWrittenAgain, 6, "a commit without answer is written again"),
        (Self::TwoTransactions, 7, "outputs in one transaction, their checkpoint in the next"),
        (Self::FloorsUnrecorded, 7, "checkpoints hold record times only, no floors"),
        (Self::ExceptionsUnrecorded, 7, "checkpoints do not say which records a floor raised"),
        (Self::ReplayWithoutWindow, 7, "a replay starts at the committed frontier, not a window before it"),
        (Self::ReplayWithoutSkew, 7, "a replay reaches back a window, but not the skew"),
        (Self::ReplayUncommitted, 7, "a replay starts a window before the watermark, committed or not"),
        (Self::LeastFrontier, 8, "every shard goes on from the least frontier"),
        (Self::GreatestFrontier, 8, "every shard goes on from the greatest frontier"),
        (Self::DedupNotCarried, 8, "checkpoints hold no dedup state"),
        (Self::OpeningsNotCarried, 8, "checkpoints hold no open backfill windows"),
        (Self::TenantNotCarried, 8, "checkpoints hold no tenant state"),
        (Self::FloorBeforeCommit, 9, "a floor takes effect before it is committed"),
        (Self::FloorBeforeEnd, 9, "a floor is committed with records before it still to be written"),
        (Self::TransitionsNeverIdle, 9, "the transitions topic has no floors"),
        (Self::NewWithoutFloor, 10, "a new partition starts without floor"),
        (Self::NewFloorIsFrontier, 10, "a new partition's floor is the frontier, not the arrival it stands for"),
        (Self::NewUncommitted, 10, "a new partition's floor is used and not committed"),
        (Self::ReleasedEarly, 11, "the tenants take updates whose results are not committed"),
        (Self::TenantAhead, 12, "the tenants go ahead of the least shard"),
        (Self::OutboxPrunedEarly, 12, "the outbox is pruned before the tenants have committed"),
        (Self::ScoredAgain, 13, "what is below the committed frontier is scored and written again"),
    ];
}

/// One thing that happens, in the words of the story.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "its fields are printed")]
pub enum Step {
    RecordAppears { partition: usize, offset: u8 },
    PartitionAppears { partition: usize },
    RunStarts { run: usize, workers: u8, scores: u8 },
    Fences { run: usize, id: usize },
    ReadsGeneration { run: usize, workers_before: u8 },
    CommitsGeneration { run: usize, generation: u8 },
    LockRefused { run: usize },
    ReadsCheckpoints { run: usize },
    CommitsNewPartitions { run: usize },
    CommitsEvent { run: usize, partition: usize, offset: u8, arrival: i8 },
    CommitsFloor { run: usize, partition: usize, floor: i8 },
    UsesFloor { run: usize, partition: usize, floor: i8 },
    CommitsTime { run: usize, shard: usize, time: u8, answered: bool },
    CommitsOnlyOutputs { run: usize, shard: usize, time: u8 },
    CommitsCheckpoint { run: usize, shard: usize },
    CommitsIncidents { run: usize, time: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    known: bool,
    /// Offset not written yet.
    next: u8,
    /// Arrival maximum there, floors included.
    arrival: i8,
    /// First record of a replay, and the maximum before it.
    replay: u8,
    before: i8,
    /// Floors that raised records.
    raised: [i8; RECORDS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shard {
    frontier: u8,
    open: bool,
    alert: u8,
    count: u8,
    last: u8,
    /// Arrival that opened the open backfill window.
    opening: i8,
    outbox: [u8; TIMES],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Checkpoints {
    parts: [Part; PARTS],
    shards: [Shard; SHARDS],
    tenant: u8,
    incidents: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    No,
    Starting,
    Admitting,
    Running,
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    phase: Phase,
    workers: u8,
    fenced: u8,
    /// Workers of the run before; `NOBODY`: not read yet.
    workers_before: u8,
    generation: u8,
    scores: u8,
    memory: Checkpoints,
    /// Shards whose outputs are written and whose checkpoint is not.
    half: u8,
    /// The appearing partition is not known to this run.
    blind: bool,
}

/// One time of one shard as committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Written {
    live: u16,
    backfill: u16,
    attack: bool,
    update: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Outputs {
    /// Arrival with which a record's event was written.
    events: [[i8; RECORDS]; PARTS],
    shards: [[Written; TIMES]; SHARDS],
    frontiers: [u8; SHARDS],
    incidents: [[u8; 3]; TIMES],
    tenant: u8,
}

/// All there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    visible: [u8; PARTS],
    exists: [bool; PARTS],
    owners: [u8; IDS],
    generation: u8,
    workers: u8,
    committed: Checkpoints,
    outputs: Outputs,
    runs: [Run; RUNS],
}

impl State {
    pub fn new(scenario: &Scenario) -> Self {
        let part = Part { known: false, next: 0, arrival: 0, replay: 0, before: 0, raised: [NEVER; RECORDS] };
        let shard = Shard { frontier: 0, open: false, alert: 0, count: 0, last: 0, opening: NEVER, outbox: [0; TIMES] };
        let nothing = Checkpoints { parts: [part; PARTS], shards: [shard; SHARDS], tenant: 0, incidents: 0 };
        let run = Run {
            phase: Phase::No,
            workers: 0,
            fenced: 0,
            workers_before: NOBODY,
            generation: 0,
            scores: 0,
            memory: nothing,
            half: 0,
            blind: false,
        };
        let outputs = Outputs {
            events: [[NEVER; RECORDS]; PARTS],
            shards: [[Written::default(); TIMES]; SHARDS],
            frontiers: [0; SHARDS],
            incidents: [[0; 3]; TIMES],
            tenant: 0,
        };
        let exists = |p: usize| p < scenario.logs.len() && scenario.appears != Some(p);
        Self {
            visible: scenario.visible,
            exists: std::array::from_fn(exists),
            owners: [NOBODY; IDS],
            generation: 0,
            workers: 0,
            committed: nothing,
            outputs,
            runs: [run; RUNS],
        }
    }
}

/// The protocol over a scenario.
pub struct Model<'a> {
    pub scenario: &'a Scenario,
    pub broken: Option<Broken>,
}

/// A step and what it leads to, or why it must not happen.
type Steps = Vec<(Step, Result<State, String>)>;

const fn bit(partition: usize, offset: usize) -> u16 {
    1 << (partition * RECORDS + offset)
}

impl Model<'_> {
    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn records(&self, partition: usize) -> &[Record] {
        self.scenario.logs.get(partition).map_or(&[], Vec::as_slice)
    }

    /// Everything that may happen next.
    pub fn steps(&self, state: &State, steps: &mut Steps) {
        for partition in 0..PARTS {
            let offset = state.visible[partition];
            if state.exists[partition] && (offset as usize) < self.records(partition).len() {
                let mut next = *state;
                next.visible[partition] += 1;
                steps.push((Step::RecordAppears { partition, offset }, Ok(next)));
            }
        }
        if let Some(partition) = self.scenario.appears.filter(|p| !state.exists[*p]) {
            let mut next = *state;
            next.exists[partition] = true;
            steps.push((Step::PartitionAppears { partition }, Ok(next)));
        }
        if let Some(run) = (0..self.scenario.widths.len()).find(|run| state.runs[*run].phase == Phase::No) {
            for &workers in &self.scenario.widths[run] {
                for scores in 0..if self.scenario.coins { 2 } else { 1 } {
                    let mut next = *state;
                    let started = &mut next.runs[run];
                    (started.phase, started.workers, started.scores) = (Phase::Starting, workers, scores);
                    if self.is(Broken::GenerationBeforeFence) {
                        started.workers_before = state.workers;
                    }
                    if self.is(Broken::ReadBeforeFenced) {
                        started.memory = state.committed;
                    }
                    started.blind =
                        self.is(Broken::ListedBeforeFenced) && self.scenario.appears.is_some_and(|p| !state.exists[p]);
                    steps.push((Step::RunStarts { run, workers, scores }, Ok(next)));
                }
            }
        }
        for run in 0..self.scenario.widths.len() {
            match state.runs[run].phase {
                Phase::No | Phase::Refused => {}
                Phase::Starting => self.starting(state, run, steps),
                Phase::Admitting => self.admitting(state, run, steps),
                Phase::Running => self.running(state, run, steps),
            }
        }
    }

    /// Rules 1 to 4.
    fn starting(&self, state: &State, run: usize, steps: &mut Steps) {
        let me = &state.runs[run];
        let fence = |id: usize| {
            let mut next = *state;
            next.runs[run].fenced |= 1 << id;
            next.owners[id] = run as u8;
            (Step::Fences { run, id }, Ok(next))
        };
        if me.fenced & 1 == 0 {
            steps.push(fence(0));
            return;
        }
        if me.workers_before == NOBODY {
            let mut next = *state;
            next.runs[run].workers_before = state.workers;
            steps.push((Step::ReadsGeneration { run, workers_before: state.workers }, Ok(next)));
            return;
        }
        let width = match self.is(Broken::SurplusNotFenced) {
            true => me.workers,
            false => me.workers.max(me.workers_before),
        } as usize;
        let open: Vec<usize> = (1..width).filter(|id| me.fenced >> id & 1 == 0).collect();
        if me.generation == 0 {
            steps.extend(open.iter().map(|id| fence(*id)));
            if !open.is_empty() && !self.is(Broken::NoBarrier) {
                return;
            }
            let mut next = *state;
            if self.is(Broken::NoLock) || state.owners[0] == run as u8 {
                next.generation += 1;
                next.runs[run].generation = next.generation;
                if !self.is(Broken::NoLock) {
                    next.workers = me.workers;
                }
                steps.push((Step::CommitsGeneration { run, generation: next.generation }, Ok(next)));
            } else {
                next.runs[run].phase = Phase::Refused;
                steps.push((Step::LockRefused { run }, Ok(next)));
            }
            return;
        }
        let mut next = *state;
        let started = &mut next.runs[run];
        if !self.is(Broken::ReadBeforeFenced) {
            started.memory = state.committed;
        }
        self.restore(&mut started.memory);
        started.phase = Phase::Admitting;
        steps.push((Step::ReadsCheckpoints { run }, Ok(next)));
    }

    /// What a run takes over, with rules taken out.
    fn restore(&self, memory: &mut Checkpoints) {
        let frontiers = memory.shards.map(|shard| shard.frontier);
        for shard in &mut memory.shards {
            match self.broken {
                Some(Broken::LeastFrontier) => shard.frontier = frontiers.into_iter().min().unwrap(),
                Some(Broken::GreatestFrontier) => shard.frontier = frontiers.into_iter().max().unwrap(),
                Some(Broken::ScoredAgain) => shard.frontier = 0,
                Some(Broken::DedupNotCarried) => shard.open = false,
                Some(Broken::OpeningsNotCarried) => shard.opening = NEVER,
                _ => {}
            }
        }
        if self.is(Broken::TenantNotCarried) {
            memory.incidents = 0;
        }
        if self.is(Broken::FloorsUnrecorded) {
            for (n, part) in memory.parts.iter_mut().enumerate() {
                let logged = |next: u8| self.records(n)[..next as usize].iter().map(|r| r.0).max().unwrap_or(0);
                (part.arrival, part.before, part.raised) = (logged(part.next), logged(part.replay), [NEVER; RECORDS]);
            }
        }
        if self.is(Broken::ExceptionsUnrecorded) {
            memory.parts.iter_mut().for_each(|part| part.raised = [NEVER; RECORDS]);
        }
    }

    /// Rule 10.
    fn admitting(&self, state: &State, run: usize, steps: &mut Steps) {
        let me = &state.runs[run];
        let mut next = *state;
        let started = &mut next.runs[run];
        started.phase = Phase::Running;
        // The frontier is a watermark, a floor an arrival.
        let frontier = me.memory.shards.iter().map(|s| s.frontier).chain([me.memory.tenant]).max().unwrap() as i8;
        let floor = match self.broken {
            _ if frontier == 0 => 0,
            Some(Broken::NewFloorIsFrontier) => frontier,
            _ => frontier + LATE,
        };
        let mut admitted = false;
        for n in 0..PARTS {
            let part = &mut started.memory.parts[n];
            if state.exists[n] && !part.known && !(started.blind && self.scenario.appears == Some(n)) {
                part.known = true;
                if floor > 0 && !self.is(Broken::NewWithoutFloor) {
                    (part.arrival, part.before) = (floor, floor);
                }
                admitted = true;
                if !self.is(Broken::NewUncommitted) {
                    next.committed.parts[n] = *part;
                }
            }
        }
        if !admitted || state.owners[0] == run as u8 {
            steps.push((Step::CommitsNewPartitions { run }, Ok(next)));
        }
    }

    /// The run that may commit as that worker is this one.
    fn owns(&self, state: &State, run: usize, partition_or_shard: usize) -> bool {
        let me = &state.runs[run];
        let worker = partition_or_shard % me.workers as usize;
        if self.is(Broken::NoBarrier) && me.fenced >> worker & 1 == 0 {
            return false;
        }
        state.owners[worker] == run as u8
    }

    fn reads(&self, state: &State, run: usize, partition: usize) -> bool {
        let me = &state.runs[run];
        let listed = !(me.blind && self.scenario.appears == Some(partition));
        state.exists[partition] && listed && me.memory.parts[partition].known
    }

    /// Arrival of each record from the replay on as this run decides it, and the maximum at the end.
    fn arrivals(&self, state: &State, part: &Part, partition: usize) -> ([i8; RECORDS], i8) {
        let mut arrivals = [NEVER; RECORDS];
        let mut max = part.before;
        for offset in part.replay..state.visible[partition] {
            let n = offset as usize;
            let floor = if offset < part.next { part.raised[n] } else { part.arrival };
            max = max.max(floor).max(self.records(partition)[n].0);
            arrivals[n] = max;
        }
        let settled = state.visible[partition] >= part.next;
        (arrivals, if settled { max.max(part.arrival) } else { max })
    }

    fn watermark(&self, state: &State, run: usize) -> i8 {
        let read = (0..PARTS).filter(|n| self.reads(state, run, *n));
        let mark = |n: usize| self.arrivals(state, &state.runs[run].memory.parts[n], n).1 - LATE;
        read.map(mark).min().unwrap_or(NEVER)
    }

    /// The bits of an endpoint's records among the decided arrivals: live in a window, or backfill of some arrivals.
    fn bits(&self, shard: usize, arrivals: &[[i8; RECORDS]; PARTS], keep: impl Fn(i8, i8, bool) -> bool) -> u16 {
        let mut bits = 0;
        for (p, decided) in arrivals.iter().enumerate() {
            for (o, record) in self.records(p).iter().enumerate() {
                if let (Event(of, own), arrival) = (record.1, decided[o])
                    && of == shard
                    && arrival != NEVER
                {
                    let time = own.min(arrival + SKEW);
                    if keep(time, arrival, time >= arrival - LATE) {
                        bits |= bit(p, o);
                    }
                }
            }
        }
        bits
    }

    /// What happens to a shard at a time, given the records that it has.
    fn step_shard(
        &self,
        before: &Shard,
        shard: usize,
        arrivals: &[[i8; RECORDS]; PARTS],
        attack: bool,
    ) -> (Shard, Written) {
        let time = before.frontier as i8;
        let mut after = *before;
        after.frontier += 1;
        let live = self.bits(shard, arrivals, |t, _, live| live && (time - WIDTH..time).contains(&t));
        let mut backfill = 0;
        let opening = before.opening;
        if opening != NEVER && opening + QUIET - LATE == time {
            backfill = self.bits(shard, arrivals, |_, a, live| !live && (opening..opening + QUIET).contains(&a));
            after.opening = NEVER;
        }
        if after.opening == NEVER && self.bits(shard, arrivals, |_, a, live| !live && a - LATE == time) != 0 {
            after.opening = time + LATE;
        }
        let closes = shard == 0 && self.closes_at(&arrivals[TRANSITIONS], time);
        let mut written = Written { live, backfill, attack, update: 0 };
        written.update = dedup(&mut after, &written, closes, time as u8);
        after.outbox[time as usize] = written.update;
        (after, written)
    }

    fn closes_at(&self, arrivals: &[i8; RECORDS], time: i8) -> bool {
        let records = self.records(TRANSITIONS).iter().zip(arrivals);
        records.into_iter().any(|(record, arrival)| matches!(record.1, Close) && *arrival == time)
    }

    fn attack(&self, run: &Run, shard: usize, time: u8) -> bool {
        !self.scenario.coins || shard != 0 || time != 1 || run.scores == 1
    }

    fn all_arrivals(&self, state: &State, run: usize) -> [[i8; RECORDS]; PARTS] {
        std::array::from_fn(|n| match self.reads(state, run, n) {
            true => self.arrivals(state, &state.runs[run].memory.parts[n], n).0,
            false => [NEVER; RECORDS],
        })
    }

    fn running(&self, state: &State, run: usize, steps: &mut Steps) {
        if self.is(Broken::NoBarrier) {
            let me = &state.runs[run];
            for id in (1..me.workers.max(me.workers_before) as usize).filter(|id| me.fenced >> id & 1 == 0) {
                let mut next = *state;
                next.runs[run].fenced |= 1 << id;
                next.owners[id] = run as u8;
                steps.push((Step::Fences { run, id }, Ok(next)));
            }
        }
        for partition in (0..PARTS).filter(|n| self.reads(state, run, *n)) {
            self.publish(state, run, partition, steps);
            self.floor(state, run, partition, steps);
        }
        for shard in 0..SHARDS {
            self.commit_time(state, run, shard, steps);
        }
        self.correlate(state, run, steps);
    }

    /// Rule 7: an event by its offset.
    fn publish(&self, state: &State, run: usize, partition: usize, steps: &mut Steps) {
        let part = state.runs[run].memory.parts[partition];
        if !self.owns(state, run, partition) || part.next >= state.visible[partition] {
            return;
        }
        let (arrivals, _) = self.arrivals(state, &part, partition);
        let (offset, arrival) = (part.next, arrivals[part.next as usize]);
        let last = if offset > part.replay { arrivals[offset as usize - 1] } else { part.before };
        let mut next = *state;
        let mine = &mut next.runs[run].memory.parts[partition];
        mine.next += 1;
        if part.arrival > last {
            mine.raised[offset as usize] = part.arrival;
        }
        mine.arrival = arrival;
        let step = Step::CommitsEvent { run, partition, offset, arrival };
        let written = &mut next.outputs.events[partition];
        let count = written.iter().filter(|a| **a != NEVER).count();
        if count != offset as usize {
            let word = if count > offset as usize { "TWICE" } else { "GAP" };
            steps.push((step, Err(format!("{word}: event {offset} of partition {partition}"))));
            return;
        }
        written[offset as usize] = arrival;
        self.commit_part(&mut next, run, partition);
        steps.push((step, Ok(next)));
    }

    /// Rule 9: a floor at the end of the log.
    fn floor(&self, state: &State, run: usize, partition: usize, steps: &mut Steps) {
        let part = state.runs[run].memory.parts[partition];
        let written = part.next == state.visible[partition] || self.is(Broken::FloorBeforeEnd);
        let never = partition == TRANSITIONS && self.is(Broken::TransitionsNeverIdle);
        let mark = self.arrivals(state, &part, partition).1;
        let Some(&floor) = self.scenario.floors.iter().find(|f| **f > mark) else { return };
        if !written || never {
            return;
        }
        let mut next = *state;
        next.runs[run].memory.parts[partition].arrival = floor;
        if self.is(Broken::FloorBeforeCommit) {
            steps.push((Step::UsesFloor { run, partition, floor }, Ok(next)));
        } else if self.owns(state, run, partition) {
            self.commit_part(&mut next, run, partition);
            steps.push((Step::CommitsFloor { run, partition, floor }, Ok(next)));
        }
    }

    /// Forgets what no replay needs, and commits.
    fn commit_part(&self, state: &mut State, run: usize, partition: usize) {
        let memory = &state.runs[run].memory;
        let mut part = memory.parts[partition];
        let frontier = match self.is(Broken::ReplayUncommitted) {
            true => self.watermark(state, run),
            false => memory.shards.iter().map(|s| s.frontier).min().unwrap() as i8,
        };
        let reach = match self.broken {
            Some(Broken::ReplayWithoutWindow) => 0,
            Some(Broken::ReplayWithoutSkew) => WIDTH,
            _ => WIDTH + SKEW,
        };
        let (arrivals, _) = self.arrivals(state, &part, partition);
        while part.replay < part.next {
            let arrival = arrivals[part.replay as usize];
            if arrival + reach >= frontier {
                break;
            }
            part.raised[part.replay as usize] = NEVER;
            part.before = arrival;
            part.replay += 1;
        }
        state.runs[run].memory.parts[partition] = part;
        state.committed.parts[partition] = part;
    }

    /// Rules 7, 8 and 13: the next time of a shard, with its checkpoint.
    fn commit_time(&self, state: &State, run: usize, shard: usize, steps: &mut Steps) {
        let me = &state.runs[run];
        let before = me.memory.shards[shard];
        if !self.owns(state, run, shard) {
            return;
        }
        if me.half >> shard & 1 == 1 {
            let mut next = *state;
            next.runs[run].half &= !(1 << shard);
            next.committed.shards[shard] = before;
            steps.push((Step::CommitsCheckpoint { run, shard }, Ok(next)));
            return;
        }
        let time = before.frontier;
        if time > self.scenario.last || self.watermark(state, run) <= time as i8 {
            return;
        }
        let arrivals = self.all_arrivals(state, run);
        let (mut after, written) = self.step_shard(&before, shard, &arrivals, self.attack(me, shard, time));
        // The outbox keeps what the tenants have not committed.
        let kept = if self.is(Broken::OutboxPrunedEarly) { time } else { me.memory.tenant };
        after.outbox[..kept as usize].fill(0);
        let mut next = *state;
        let step = Step::CommitsTime { run, shard, time, answered: true };
        let at = next.outputs.frontiers[shard];
        if at != time {
            let word = if at > time { "TWICE" } else { "GAP" };
            steps.push((step, Err(format!("{word}: time {time} of shard {shard}"))));
            return;
        }
        next.outputs.shards[shard][time as usize] = written;
        next.outputs.frontiers[shard] += 1;
        if self.is(Broken::TwoTransactions) {
            next.runs[run].memory.shards[shard] = after;
            next.runs[run].half |= 1 << shard;
            steps.push((Step::CommitsOnlyOutputs { run, shard, time }, Ok(next)));
            return;
        }
        next.committed.shards[shard] = after;
        if self.is(Broken::UnknownWrittenAgain) {
            steps.push((Step::CommitsTime { run, shard, time, answered: false }, Ok(next)));
        }
        next.runs[run].memory.shards[shard] = after;
        steps.push((step, Ok(next)));
    }

    /// Rules 11 and 12: the tenants' next time.
    fn correlate(&self, state: &State, run: usize, steps: &mut Steps) {
        let me = &state.runs[run];
        let time = me.memory.tenant;
        if time > self.scenario.last || !self.owns(state, run, SHARDS) {
            return;
        }
        let mut shards = me.memory.shards;
        if self.is(Broken::ReleasedEarly) && self.watermark(state, run) > time as i8 {
            let arrivals = self.all_arrivals(state, run);
            for (n, shard) in shards.iter_mut().enumerate() {
                while shard.frontier <= time {
                    *shard = self.step_shard(shard, n, &arrivals, self.attack(me, n, shard.frontier)).0;
                }
            }
        }
        let complete = shards.iter().filter(|shard| shard.frontier > time).count();
        if complete < if self.is(Broken::TenantAhead) { 1 } else { SHARDS } {
            return;
        }
        let updates = shards.map(|shard| shard.outbox[time as usize]);
        let incidents = me.memory.incidents + updates.iter().filter(|u| **u != 0).count() as u8;
        let mut next = *state;
        let memory = &mut next.runs[run].memory;
        (memory.tenant, memory.incidents) = (time + 1, incidents);
        (next.committed.tenant, next.committed.incidents) = (time + 1, incidents);
        let step = Step::CommitsIncidents { run, time };
        if next.outputs.tenant != time {
            let word = if next.outputs.tenant > time { "TWICE" } else { "GAP" };
            steps.push((step, Err(format!("{word}: time {time} of the tenants"))));
            return;
        }
        next.outputs.incidents[time as usize] = [updates[0], updates[1], incidents];
        next.outputs.tenant += 1;
        steps.push((step, Ok(next)));
    }

    /// What must hold in every state.
    pub fn check(&self, state: &State) -> Result<(), String> {
        self.check_mutex(state)?;
        let out = &state.outputs;
        // Backfill windows follow from all records of an endpoint: they can be told when all are written.
        let all_written =
            (0..PARTS).all(|p| self.records(p).iter().enumerate().all(|(o, _)| out.events[p][o] != NEVER));
        for shard in 0..SHARDS {
            let mut want = State::new(self.scenario).committed.shards[shard];
            let mut transitions_known = true;
            for time in 0..out.frontiers[shard] {
                let written = out.shards[shard][time as usize];
                let known = self.bits(shard, &out.events, |_, _, _| true);
                let (mut should, content) = self.step_shard(&want, shard, &out.events, written.attack);
                if written.live & known != content.live {
                    let (has, fits) = (written.live, content.live);
                    return Err(format!(
                        "CONTENT: window {time} of shard {shard} holds {has:b}, committed events {fits:b}"
                    ));
                }
                if all_written && written.backfill != content.backfill {
                    let (has, fits) = (written.backfill, content.backfill);
                    return Err(format!(
                        "CONTENT: backfill {time} of shard {shard} holds {has:b}, committed events {fits:b}"
                    ));
                }
                // Alerts follow from what is written, whatever that is.
                let unknown = (0..self.records(TRANSITIONS).len()).any(|o| out.events[TRANSITIONS][o] == NEVER);
                transitions_known &= shard != 0 || !unknown;
                let closes = shard == 0 && self.closes_at(&out.events[TRANSITIONS], time as i8);
                let mut alert = want;
                let update = dedup(&mut alert, &written, closes, time);
                if transitions_known && update != written.update {
                    return Err(format!(
                        "ALERT: {:x} at {time} of shard {shard}, results give {update:x}",
                        written.update
                    ));
                }
                (should.open, should.alert, should.count, should.last) =
                    (alert.open, alert.alert, alert.count, alert.last);
                want = should;
            }
        }
        let mut count = 0;
        for time in 0..out.tenant.min(out.frontiers[0]).min(out.frontiers[1]) as usize {
            let updates = [0, 1].map(|shard| out.shards[shard][time].update);
            count += updates.iter().filter(|u| **u != 0).count() as u8;
            let want = [updates[0], updates[1], count];
            if out.incidents[time] != want {
                return Err(format!("INCIDENT: {:x?} at {time}, alerts give {want:x?}", out.incidents[time]));
            }
        }
        Ok(())
    }

    fn check_mutex(&self, state: &State) -> Result<(), String> {
        let runs = state.runs.iter().enumerate().filter(|(_, run)| matches!(run.phase, Phase::Running));
        for (new, run) in runs.clone() {
            for (old, older) in runs.clone().filter(|(_, older)| older.generation < run.generation) {
                let alive = (0..older.workers as usize).find(|worker| self.owns(state, old, *worker));
                if let Some(worker) = alive {
                    return Err(format!("MUTEX: run {old} may commit as worker {worker} after run {new} has read"));
                }
            }
        }
        Ok(())
    }

    /// What must hold where nothing more can happen.
    pub fn check_end(&self, state: &State) -> Result<(), String> {
        let runs = || state.runs.iter().enumerate();
        let alive = |n: usize, run: &Run| {
            run.phase == Phase::Running && (0..run.workers as usize).all(|worker| self.owns(state, n, worker))
        };
        if runs().filter(|(n, run)| alive(*n, run)).count() > 1 {
            return Err("TWO ALIVE".to_owned());
        }
        if let Some((one, _)) = runs().find(|(n, run)| alive(*n, run)) {
            let all = self.scenario.last + 1;
            let out = &state.outputs;
            // A partition that appeared later is the next run's.
            let events = |p: usize| {
                !self.reads(state, one, p) || !self.records(p).iter().zip(out.events[p]).any(|(_, a)| a == NEVER)
            };
            let complete = (0..PARTS).all(events) && out.frontiers == [all; SHARDS] && out.tenant == all;
            return if complete { Ok(()) } else { Err("STUCK: one is alive, not everything is written".to_owned()) };
        }
        // Nobody lives. Who was fenced is started again, unless another owns the job; and so is a start that failed.
        let again = |run: &Run| match run.phase {
            Phase::No => false,
            _ if self.is(Broken::FencedStaysDown) => false,
            _ => run.generation == 0 || run.generation == state.generation,
        };
        if runs().any(|(_, run)| again(run)) {
            Ok(())
        } else {
            Err("NOBODY is alive, and nobody is restarted".to_owned())
        }
    }
}

/// A detection feeds the open alert or opens one; a transition closes it. What the alert then is: 0 for no change.
fn dedup(shard: &mut Shard, written: &Written, closes: bool, time: u8) -> u8 {
    let detected = written.live != 0 && written.attack || written.backfill != 0;
    if detected {
        if shard.open && time - shard.last <= MERGE {
            shard.count += 1;
        } else {
            (shard.open, shard.alert, shard.count) = (true, time + 1, 1);
        }
        shard.last = time;
    }
    let closed = closes && shard.open;
    let update = if detected || closed { shard.alert << 4 | shard.count } else { 0 };
    if closed {
        shard.open = false;
        return update | 0x80;
    }
    update
}
