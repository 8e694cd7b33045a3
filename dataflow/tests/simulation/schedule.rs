//! One seeded story: a producer, runs that start, crash and linger, a broker that answers late or not at all; then
//! quiet, and the comparison with an undisturbed run of the same log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use logster_schema::topics::TRANSITIONS_TOPIC;
use logster_schema::{Alert, AlertStatus, AlertTransition, OutputRecord, OutputTopic, RawTopic, TimeMs, time};
use logster_sinks::epoch::{Epoch, Outcome, WriterError};
use timely::CommunicationConfig;
use timely::communication::{WorkerGuards, initialize_from};

use crate::mutations::Mutation;
use crate::run::{
    BACKFILL_MS, HOP_MS, Job, LATENESS_MS, SKEW_MS, SUPERSEDED, Scores, WIDTH_MS, committed_scores, work,
};
use crate::turns::Seat;
use crate::world::{Chance, Place, Raw, UnderWay, World, difference};

/// What came of a seed.
#[derive(Debug, Default)]
pub struct Told {
    /// What was wrong, if anything.
    pub wrong: Option<String>,
    pub runs: usize,
    pub records: usize,
    pub commits: usize,
    pub refused: usize,
    /// Committed results and alerts.
    pub outputs: usize,
    pub floors: usize,
    pub backfill: usize,
    pub trace: u64,
}

impl Told {
    /// Takes another story's counts in.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.records += other.records;
        self.commits += other.commits;
        self.refused += other.refused;
        self.outputs += other.outputs;
        self.floors += other.floors;
        self.backfill += other.backfill;
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, records, commits, refused, outputs, floors, backfill, .. } = self;
        write!(
            f,
            "{runs} runs, {records} raw records, {commits} commits, {refused} of zombies refused, {floors} floors, \
             {outputs} results and alerts, {backfill} of them backfill"
        )
    }
}

/// A run: its workers, each on a thread that takes turns.
struct Run {
    seats: Vec<Seat>,
    /// A worker has ended: as a process does, the run goes with it.
    ended: Option<String>,
    guards: Option<WorkerGuards<()>>,
}

impl Run {
    fn start(
        world: &Arc<Mutex<World>>,
        run: usize,
        workers: usize,
        chance: &mut Chance,
        scores: Scores,
        until_end: bool,
    ) -> Self {
        world.lock().unwrap().note(|| format!("run {run} starts with {workers} workers, until the end: {until_end}"));
        let seats: Vec<Seat> = (0..workers).map(|_| Seat::new()).collect();
        let jobs: Vec<Job> = seats
            .iter()
            .enumerate()
            .map(|(worker, seat)| Job {
                world: world.clone(),
                seat: seat.clone(),
                run,
                worker,
                chance: Chance(chance.next()),
                scores: scores.clone(),
                until_end,
            })
            .collect();
        Self::spawn(seats, jobs)
    }

    fn spawn(seats: Vec<Seat>, jobs: Vec<Job>) -> Self {
        let (builders, others) = CommunicationConfig::Process(jobs.len()).try_build().expect("threads only");
        let guards = initialize_from(builders, others, move |allocator| {
            let job = jobs[allocator.index()].clone();
            let seat = job.seat.clone();
            seat.live(|| work(allocator, job));
        });
        Self { seats, ended: None, guards: Some(guards.expect("the system has threads left")) }
    }

    fn turn(&mut self, worker: usize) {
        if let Some(how) = self.seats[worker].turn() {
            self.ended = self.ended.take().or(Some(how.unwrap_or("complete".into())));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.seats.iter().for_each(Seat::stop);
        drop(self.guards.take());
    }
}

const TENANTS: [&str; 2] = ["t0", "t1"];
const HOSTS: u64 = 3;

struct Story {
    world: Arc<Mutex<World>>,
    chance: Chance,
    runs: Vec<Run>,
    /// Runs that the supervisor believes to be alive.
    current: Vec<usize>,
    /// Runs that the supervisor is about to start again.
    waiting: usize,
    reproducible: bool,
    restless: bool,
    /// Some runs take what is there for the end of their input.
    ending: bool,
    /// A partition was added that the runs so far do not know.
    unknown_partition: bool,
    records: usize,
}

/// From this seed on, runs may take what is there for the end of their input, and others go on later.
pub const ENDING: u64 = 1 << 32;

/// Plays the story of a seed.
pub fn play(seed: u64, mutation: Option<Mutation>) -> Told {
    let mut chance = Chance(seed);
    let verbose = std::env::var_os("LOGSTER_SIM_TRACE").is_some();
    let mut world = World { clock: 1_000_000, mutation, verbose, ..World::default() };
    for (topic, partitions) in [(RawTopic::Auditd.name(), 2), (RawTopic::EbpfProcess.name(), 1), (TRANSITIONS_TOPIC, 1)]
    {
        for partition in 0..partitions {
            world.logs.insert((topic.to_owned(), partition), Vec::new());
        }
    }
    let (reproducible, restless) = (chance.one_in(2), chance.one_in(2));
    let world = Arc::new(Mutex::new(world));
    let mut story = Story {
        world,
        chance,
        runs: Vec::new(),
        current: Vec::new(),
        waiting: 0,
        reproducible,
        restless,
        ending: seed >= ENDING,
        unknown_partition: false,
        records: 0,
    };
    story.start();
    let turns = story.chance.between(50, 250);
    for _ in 0..turns {
        story.act();
        if let Some(wrong) = story.panicked() {
            return story.told(Some(wrong));
        }
    }
    let wrong = story.settle();
    story.told(wrong)
}

impl Story {
    fn lock(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn told(&self, wrong: Option<String>) -> Told {
        let world = self.lock();
        let of = |topics: &[OutputTopic]| world.outputs.iter().filter(|r| topics.contains(&r.topic)).count();
        let is_backfill = |r: &&OutputRecord| {
            r.topic == OutputTopic::Results && String::from_utf8_lossy(&r.value).contains("\"backfill\":true")
        };
        Told {
            wrong,
            runs: self.runs.len(),
            records: self.records,
            commits: world.commits,
            refused: world.refused,
            outputs: of(&[OutputTopic::Results, OutputTopic::Alerts]),
            floors: world.floors.values().map(BTreeMap::len).sum(),
            backfill: world.outputs.iter().filter(is_backfill).count(),
            trace: world.trace,
        }
    }

    fn panicked(&self) -> Option<String> {
        let panics = |run: &Run| run.ended.clone().filter(|how| how.starts_with("PANIC"));
        self.runs.iter().find_map(panics)
    }

    fn scores(&self, run: usize) -> Scores {
        if self.reproducible { Scores::Reproducible } else { Scores::OfRun(run) }
    }

    fn start(&mut self) {
        let run = self.runs.len();
        let workers = 1 + self.chance.below(3) as usize;
        let scores = self.scores(run);
        let until_end = self.ending && !self.chance.one_in(3);
        self.runs.push(Run::start(&self.world, run, workers, &mut self.chance, scores, until_end));
        self.current.push(run);
    }

    /// One thing happens.
    fn act(&mut self) {
        // Half the stories are long lives with a crash now and then, the others are about starts and zombies.
        let weights: [u64; 8] = if self.restless { [12, 38, 16, 18, 3, 5, 5, 3] } else { [18, 50, 4, 24, 1, 1, 1, 1] };
        let mut drawn = self.chance.below(weights.iter().sum());
        let which = weights.iter().position(|weight| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        match which.expect("below their sum") {
            0 => self.produce(),
            1 => self.step_current(),
            2 => self.step_any(),
            3 => self.commit(),
            4 => self.lose_answer(),
            5 => {
                // The supervisor starts anew: what ran goes on unseen, or not at all.
                self.current.clear();
                self.waiting = 0;
                self.start();
            }
            // A second one by mistake, or the end of that.
            6 if self.current.len() > 1 => self.stop_by_hand(),
            6 => self.start(),
            _ => self.add_partition(),
        }
    }

    /// The supervisor: what has ended is started again, but for what says that another run owns the job.
    fn supervise(&mut self) {
        let ended = |run: &usize| self.runs[*run].ended.clone();
        self.waiting += self.current.iter().filter_map(ended).filter(|how| how != SUPERSEDED).count();
        self.current.retain(|run| self.runs[*run].ended.is_none());
        // It waits a random while, or two runs that fence each other's start would do so for ever.
        for _ in 0..self.waiting {
            if self.chance.one_in(6) {
                self.waiting -= 1;
                self.start();
            }
        }
        if self.current.is_empty() && self.waiting == 0 {
            // Those that it knew have left to whoever owns the job: that one goes on, or is started again.
            let owner = *self.lock().locked.last().expect("somebody owns the job");
            match &self.runs[owner].ended {
                None => self.current.push(owner),
                Some(how) if how != SUPERSEDED => self.waiting += 1,
                Some(_) => {}
            }
        }
    }

    /// Of those that run at the same time by mistake, one that is still starting is stopped for good.
    fn stop_by_hand(&mut self) {
        let starting: Vec<usize> =
            self.current.iter().copied().filter(|run| !self.lock().locked.contains(run)).collect();
        if let Some(&run) = starting.first() {
            self.lock().note(|| format!("run {run} is stopped by hand"));
            self.current.retain(|other| *other != run);
            self.runs[run].ended = Some("stopped by hand".to_owned());
        }
    }

    fn step_current(&mut self) {
        self.supervise();
        if self.current.is_empty() {
            return;
        }
        let run = self.current[self.chance.below(self.current.len() as u64) as usize];
        // Mostly all of its workers, as they do run at the same time.
        if self.chance.one_in(4) {
            let worker = self.chance.below(self.runs[run].seats.len() as u64) as usize;
            self.runs[run].turn(worker);
        } else {
            for worker in 0..self.runs[run].seats.len() {
                self.runs[run].turn(worker);
            }
        }
    }

    /// Whoever is left of any run: what a crash left behind never gets here again, what only seemed to crash does.
    fn step_any(&mut self) {
        let run = self.chance.below(self.runs.len() as u64) as usize;
        let worker = self.chance.below(self.runs[run].seats.len() as u64) as usize;
        if self.runs[run].ended.is_none() {
            self.runs[run].turn(worker);
        }
    }

    /// A transaction under way is decided; its worker hears of it now, or later.
    fn commit(&mut self) {
        let waiting: Vec<_> = self.lock().under_way.iter().filter(|(_, q)| !q.is_empty()).map(|(w, _)| *w).collect();
        if waiting.is_empty() {
            return;
        }
        let only = waiting[self.chance.below(waiting.len() as u64) as usize];
        let all = self.chance.one_in(2);
        for worker in waiting.into_iter().filter(|worker| all || *worker == only) {
            let told = !self.chance.one_in(4);
            self.decide(worker, told);
        }
    }

    fn decide(&mut self, worker: (usize, usize), told: bool) {
        let mut world = self.lock();
        let early = world.is(Mutation::ReleasedBeforeCommit);
        let Some(at) = world.under_way.get(&worker).and_then(|q| q.iter().position(|u| early || u.outcome.is_none()))
        else {
            // Decided before: now the worker hears of it.
            world.under_way.entry(worker).or_default().iter_mut().for_each(|u| u.told = true);
            return;
        };
        let epoch = world.under_way[&worker][at].epoch.clone();
        let id = epoch.id;
        if early {
            world.under_way.get_mut(&worker).unwrap().remove(at);
            if let Err(error) = world.land(worker, epoch) {
                let failed = UnderWay { epoch: Epoch::default(), outcome: Some(Outcome::Failed(error)), told: true };
                world.under_way.get_mut(&worker).unwrap().push_back(failed);
            }
            return;
        }
        if world.is(Mutation::TwoTransactions) && !epoch.records.is_empty() && !epoch.checkpoints.is_empty() {
            let outputs = Epoch { checkpoints: Vec::new(), ..epoch.clone() };
            if world.land(worker, outputs).is_ok() {
                world.under_way.get_mut(&worker).unwrap()[at].epoch.records.clear();
                return;
            }
        }
        let outcome = match world.land(worker, epoch) {
            Ok(()) => Outcome::Committed(id),
            Err(error) => Outcome::Failed(error),
        };
        let decided = &mut world.under_way.get_mut(&worker).unwrap()[at];
        (decided.outcome, decided.told) = (Some(outcome), told);
    }

    /// The answer to a commit is lost, the commit may be too: the worker must end.
    fn lose_answer(&mut self) {
        let open = |q: &std::collections::VecDeque<UnderWay>| q.iter().any(|u| u.outcome.is_none());
        let waiting: Vec<_> = self.lock().under_way.iter().filter(|(_, q)| open(q)).map(|(w, _)| *w).collect();
        if waiting.is_empty() {
            return;
        }
        let worker = waiting[self.chance.below(waiting.len() as u64) as usize];
        let lands = self.chance.one_in(2);
        let mut world = self.lock();
        let queue = world.under_way.get_mut(&worker).unwrap();
        let at = queue.iter().position(|u| u.outcome.is_none()).unwrap();
        let epoch = queue[at].epoch.clone();
        let id = epoch.id;
        if lands {
            let _ = world.land(worker, epoch);
        }
        world.note(|| format!("run {} worker {} hears nothing of {id}", worker.0, worker.1));
        if world.is(Mutation::UnknownWrittenAgain) {
            return; // it stays under way, and is committed again
        }
        let reason = "no answer".to_owned();
        let unknown = WriterError::Unknown { transactional_id: "sim".into(), epoch: id, reason };
        let decided = &mut world.under_way.get_mut(&worker).unwrap()[at];
        (decided.outcome, decided.told) = (Some(Outcome::Failed(unknown)), true);
    }

    fn add_partition(&mut self) {
        let mut world = self.lock();
        let topic = RawTopic::Auditd.name().to_owned();
        let partition = world.logs.keys().filter(|(t, _)| *t == topic).count() as i32;
        if partition < 4 {
            world.note(|| format!("partition {partition} is added"));
            world.logs.insert((topic, partition), Vec::new());
            drop(world);
            self.unknown_partition = true;
        }
    }

    /// Time passes; records arrive.
    fn produce(&mut self) {
        let passed = self.chance.between(50, 400);
        self.lock().clock += passed;
        for _ in 0..self.chance.below(4) {
            if self.chance.one_in(12) { self.decide_alert() } else { self.log_record() }
        }
        if self.chance.one_in(25) {
            // A host that was offline sends its backlog.
            let (tenant, host) = self.host();
            let back = self.chance.between(LATENESS_MS, BACKFILL_MS);
            let clock = self.lock().clock;
            for _ in 0..self.chance.between(2, 8) {
                let at = clock - self.chance.between(0, back);
                self.append(tenant, host, at);
            }
        }
    }

    fn host(&mut self) -> (&'static str, u64) {
        (TENANTS[self.chance.below(2) as usize], self.chance.below(HOSTS))
    }

    fn log_record(&mut self) {
        let (tenant, host) = self.host();
        let clock = self.lock().clock;
        let at = match self.chance.below(12) {
            0 => clock + self.chance.between(0, 2 * SKEW_MS),
            1 => clock - self.chance.between(LATENESS_MS, 3_000),
            _ => clock - self.chance.between(0, LATENESS_MS),
        };
        self.append(tenant, host, at);
    }

    /// A record of that time on a partition of chance; the broker stamps it, some brokers late.
    fn append(&mut self, tenant: &str, host: u64, at: TimeMs) {
        let stamp = match self.chance.below(6) {
            0 => -self.chance.between(0, 1_500),
            _ => -self.chance.between(0, 100),
        };
        let one_in_forty = self.chance.one_in(40);
        let twice = self.chance.one_in(15);
        let places: Vec<Place> =
            self.lock().logs.keys().filter(|(topic, _)| topic != TRANSITIONS_TOPIC).cloned().collect();
        let place = places[self.chance.below(places.len() as u64) as usize].clone();
        let stamped = time::format(at);
        let payload = match one_in_forty {
            true => "{".to_owned(),
            false => format!(r#"{{"host":"h{host}","_tenant_id":"{tenant}","timestamp":"{stamped}","message":"m"}}"#),
        };
        let mut world = self.lock();
        let raw = Raw { ts_ms: world.clock + stamp, payload };
        let log = world.logs.get_mut(&place).unwrap();
        // A producer that retries writes a record twice.
        for _ in 0..1 + usize::from(twice) {
            log.push(raw.clone());
        }
        drop(world);
        self.records += 1 + usize::from(twice);
    }

    /// An analyst decides about an alert that has been published.
    fn decide_alert(&mut self) {
        let draw = self.chance.next();
        let to =
            [AlertStatus::Acknowledged, AlertStatus::Resolved, AlertStatus::FalsePositive][(draw >> 32) as usize % 3];
        let mut world = self.lock();
        let alerts: Vec<&OutputRecord> = world.outputs.iter().filter(|r| r.topic == OutputTopic::Alerts).collect();
        if alerts.is_empty() {
            return;
        }
        let alert: Alert = serde_json::from_slice(&alerts[draw as usize % alerts.len()].value).expect("an alert");
        let decision = AlertTransition {
            alert_id: alert.alert_id,
            tenant_id: alert.tenant_id,
            endpoint_id: alert.endpoint_id,
            to,
            actor: "a".into(),
            note: String::new(),
        };
        let raw = Raw { ts_ms: world.clock, payload: serde_json::to_string(&decision).expect("serializes") };
        world.note(|| format!("decision {raw:?}"));
        world.logs.get_mut(&(TRANSITIONS_TOPIC.to_owned(), 0)).unwrap().push(raw);
        drop(world);
        self.records += 1;
    }

    /// Quiet: one run goes on, the clock does, and everything must come out. Says what is wrong.
    fn settle(&mut self) -> Option<String> {
        // Closed windows may end after the clock: what comes then waits until it has caught up.
        let ahead = if self.ending { 2 * WIDTH_MS } else { 0 };
        self.ending = false;
        // Whether what is there goes on or a new run begins.
        if self.chance.one_in(2) || self.unknown_partition {
            self.current.clear();
            self.start();
        }
        self.lock().note(|| "quiet".to_owned());
        let until = self.lock().clock + WIDTH_MS + HOP_MS + 3 * (LATENESS_MS + SKEW_MS) + WIDTH_MS + ahead;
        let mut wrong = None;
        for round in 0..240 {
            let mut world = self.lock();
            world.clock += if world.clock < until { 150 } else { 5 };
            let over = world.clock >= until;
            drop(world);
            if over && round % 20 == 19 {
                wrong = self.wrong();
                wrong.as_ref()?;
            }
            self.supervise();
            if self.current.is_empty() && self.waiting == 0 {
                return Some("nobody is alive, and nobody is started again".to_owned());
            }
            for run in self.current.clone() {
                for worker in 0..self.runs[run].seats.len() {
                    self.runs[run].turn(worker);
                    self.decide((run, worker), true);
                    if !self.lock().is(Mutation::ReleasedBeforeCommit) {
                        self.decide((run, worker), true);
                    }
                }
            }
            if let Some(wrong) = self.panicked() {
                return Some(wrong);
            }
        }
        wrong
    }

    fn wrong(&self) -> Option<String> {
        let want = undisturbed(&self.lock());
        match want {
            Ok(want) => difference(&self.lock().outputs, &want),
            Err(error) => Some(format!("the undisturbed run failed: {error}")),
        }
    }
}

/// What one run gives that is never disturbed and reads the same log: each record with the arrival that committed
/// floors gave it. Where scores are not reproducible, it takes the committed ones.
fn undisturbed(disturbed: &World) -> Result<Vec<OutputRecord>, String> {
    let mut world = World { clock: disturbed.clock, ..World::default() };
    for (place, log) in &disturbed.logs {
        let (arrivals, _) = disturbed.arrivals(place, log.len() as i64);
        let lifted = log.iter().zip(arrivals).map(|(raw, ts_ms)| Raw { ts_ms, payload: raw.payload.clone() });
        world.logs.insert(place.clone(), lifted.collect());
    }
    let scores = Scores::Committed(Arc::new(committed_scores(disturbed)));
    let world = Arc::new(Mutex::new(world));
    let seat = Seat::new();
    let job =
        Job { world: world.clone(), seat: seat.clone(), run: 0, worker: 0, chance: Chance(1), scores, until_end: true };
    let mut run = Run::spawn(vec![seat], vec![job]);
    for _ in 0..20_000 {
        run.turn(0);
        if let Some(how) = &run.ended {
            let outputs = std::mem::take(&mut world.lock().unwrap().outputs);
            return if how == "complete" { Ok(outputs) } else { Err(how.clone()) };
        }
        let mut world = world.lock().unwrap();
        let next = world.under_way.get(&(0, 0)).and_then(|q| q.front()).map(|u| u.epoch.clone());
        if let Some(epoch) = next {
            let id = epoch.id;
            world.land((0, 0), epoch).map_err(|e| e.to_string())?;
            let decided = world.under_way.get_mut(&(0, 0)).unwrap().front_mut().unwrap();
            (decided.outcome, decided.told) = (Some(Outcome::Committed(id)), true);
        }
    }
    Err("it does not come to its end".into())
}
