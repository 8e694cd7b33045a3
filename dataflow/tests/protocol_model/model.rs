//! The protocol's states and steps. Times are small integers; see the [crate] docs for what is and is not modelled.

mod check;

use crate::broken::Broken;
use crate::scenario::What::{Close, Event};
use crate::scenario::{Record, Scenario};

/// Most partitions, records of one, endpoint shards, transactional ids, runs, times.
pub const PARTS: usize = 3;
const RECORDS: usize = 3;
const SHARDS: usize = 2;
const IDS: usize = 3;
const RUNS: usize = 3;
const TIMES: usize = 5;

/// Length of a window; one ends at every time.
const WIDTH: i8 = 2;
/// What arrives more than this after its time goes to the backfill; the watermark is arrival less this.
const LATE: i8 = 2;
/// What claims a time further ahead than this of its arrival is clamped.
const SKEW: i8 = 1;
/// A backfill window closes so long after its opening: at most a window, so a replay of one reaches back to it.
const QUIET: i8 = 2;
/// A detection joins an open alert whose last one is at most so far back.
const MERGE: u8 = 2;
const NEVER: i8 = -9;
const NOBODY: u8 = 9;
/// Analysts' transitions, where a scenario has them, are the last partition.
const TRANSITIONS: usize = 2;

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
