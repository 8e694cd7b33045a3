//! Faults at seeded moments against real brokers: a reader of the outputs sees nothing of them.
//!
//! The seed gives a plan: before each fault, which split the next restart takes; at which moment of the run it
//! strikes; what it is. Faults are carried out in the order of the plan, whatever the machine's speed; a supervisor
//! starts again at once what has ended. When the input is at its end the outputs are compared with those of an
//! undisturbed run, and the faults that are left strike a new cluster with the same input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logster_schema::OutputTopic;
use logster_sinks::testkit::Cluster;

use crate::outputs::Outputs;
use crate::process::{Run, Shape, listens, prepare};

/// Draws numbers: splitmix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9 of one process; the others notice.
    Kill,
    /// kill -9 of all at once.
    KillAll,
    /// SIGSTOP of one process, SIGCONT later.
    Stop(Duration),
    /// All hang while another run takes the job over, and then wake up.
    Zombie(Duration),
    /// SIGTERM of all.
    Term,
    /// kill -9 of a broker, which is started again later.
    KillBroker(Duration),
    /// SIGSTOP of a broker, SIGCONT later.
    StopBroker(Duration),
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after a start.
    Starting(Duration),
    /// So long after the first commit.
    Running(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// Of the run that starts if the step before has ended one.
    shape: Shape,
    moment: Moment,
    fault: Fault,
    /// Which process or broker, as a number to be taken modulo how many there are.
    which: usize,
}

/// The plan of a seed: every ten faults are of the same kinds, in another order.
fn plan(seed: u64, faults: usize) -> Vec<Step> {
    let mut draw = Draw(seed);
    let mut steps = Vec::new();
    while steps.len() < faults {
        let mut kinds = vec![
            Fault::Kill,
            Fault::Kill,
            Fault::Kill,
            Fault::KillAll,
            Fault::KillAll,
            Fault::Stop(draw.ms(100, 5_000)),
            Fault::Zombie(draw.ms(0, 2_000)),
            Fault::Term,
            Fault::KillBroker(draw.ms(0, 4_000)),
            Fault::StopBroker(draw.ms(200, 6_000)),
        ];
        while !kinds.is_empty() && steps.len() < faults {
            let fault = kinds.swap_remove(draw.below(kinds.len()));
            let shape = match draw.below(3) {
                0 => Shape { processes: 2, workers: 1 + draw.below(2) },
                _ => Shape { processes: 1, workers: 1 + draw.below(4) },
            };
            let moment = match draw.below(4) {
                // A run that hangs before it has the job would wake up as the one that takes it over.
                0 if !matches!(fault, Fault::Zombie(_)) => Moment::Starting(draw.ms(0, 2_000)),
                _ => Moment::Running(draw.ms(0, 2_500)),
            };
            steps.push(Step { shape, moment, fault, which: draw.below(12) });
        }
    }
    steps
}

/// What has happened so far.
#[derive(Default)]
struct Tally {
    faults: BTreeMap<&'static str, usize>,
    /// Starts after the first one of a round.
    restarts: usize,
    /// Runs that woke up and found another in their place.
    superseded: usize,
    /// From the end of a run's first process to the first commit after it; apart, where a broker was away.
    recoveries: Vec<Duration>,
    with_broker_away: Vec<Duration>,
    /// From SIGTERM to the end.
    stops: Vec<Duration>,
    /// Last words of processes that ended by themselves.
    words: BTreeMap<String, usize>,
    /// What no fault explains.
    wrong: Vec<String>,
}

/// One cluster with one input, from the first start to the end of the input.
struct Round<'a> {
    cluster: &'a Cluster,
    brokers: Vec<String>,
    dir: &'a Path,
    lives: usize,
    run: Run,
    tally: &'a mut Tally,
    /// Since when the run is not whole.
    lost: Option<Instant>,
    broker_was_away: bool,
    /// Brokers that come back at a time: number, when, killed (or stopped).
    away: Vec<(u32, Instant, bool)>,
    done: bool,
    /// The process that was killed and whose end was not seen yet.
    killed: Option<usize>,
}

impl Round<'_> {
    fn start(dir: &Path, lives: usize, shape: Shape, brokers: &str) -> Run {
        let args = ["--kafka", brokers, "--until-end", "--set", "input.arrival=create"];
        Run::start(dir, &format!("run-{lives}"), shape, &args)
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.faults.entry(what).or_default() += 1;
    }

    /// Brings back the brokers whose time has come.
    fn brokers_back(&mut self) {
        let now = Instant::now();
        let (due, away) = std::mem::take(&mut self.away).into_iter().partition(|(_, at, _)| *at <= now);
        self.away = away;
        for (number, _, killed) in due as Vec<(u32, Instant, bool)> {
            if killed {
                self.cluster.launch_broker(number);
            } else {
                self.cluster.resume_broker(number);
            }
        }
    }

    /// Starts again what has ended, for so long as `going` holds or until the input is at its end.
    fn supervise(&mut self, limit: Duration, mut going: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !self.done && going(self) {
            self.brokers_back();
            for end in self.run.look() {
                self.lost.get_or_insert_with(Instant::now);
                match end.code {
                    Some(0) => {}
                    None if self.killed.is_some() => {}
                    Some(1 | 3) => {
                        let words: String = end.said.chars().filter(|c| !c.is_ascii_digit()).take(160).collect();
                        *self.tally.words.entry(words).or_default() += 1;
                    }
                    code => self.tally.wrong.push(format!("ended with {code:?}: {}", end.said)),
                }
            }
            assert!(self.tally.wrong.is_empty(), "{}\n(logs: {})", self.tally.wrong.join("\n"), self.dir.display());
            self.killed = self.killed.filter(|index| self.run.ended().nth(*index).flatten().is_none());
            self.done = self.run.is_done();
            let partly = self.run.ended().any(|end| end.is_some_and(|end| end.code != Some(0)));
            if partly {
                self.tally.restarts += self.run.ended().filter(Option::is_some).count();
                self.run.restart();
            }
            self.note_recovery();
            if began.elapsed() > limit {
                let last = self.run.text(0);
                panic!(
                    "nothing moves for {limit:?}; the run's last words:\n{}",
                    &last[last.len().saturating_sub(3000)..]
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn note_recovery(&mut self) {
        self.broker_was_away |= !self.away.is_empty();
        if let Some(lost) = self.lost
            && self.run.started() >= lost
            && self.run.is_ready()
        {
            let list = match self.broker_was_away {
                true => &mut self.tally.with_broker_away,
                false => &mut self.tally.recoveries,
            };
            list.push(lost.elapsed());
            self.lost = None;
            self.broker_was_away = !self.away.is_empty();
        }
    }

    /// Waits until all of the run has ended, as after `signal` to one or all of it, and starts the next one.
    fn succeed(&mut self, signal: &str, shape: Shape) {
        // Of a run with nothing else wrong SIGTERM leaves no failure behind.
        let well = signal == "TERM" && self.lost.is_none() && self.away.is_empty();
        self.lost.get_or_insert_with(Instant::now);
        let (began, limit) = (Instant::now(), Duration::from_secs(30));
        while self.run.ended().any(|end| end.is_none()) {
            for end in self.run.look() {
                if !matches!(end.code, None | Some(0)) && (well || !matches!(end.code, Some(1 | 3))) {
                    self.tally.wrong.push(format!("ended with {:?} after SIG{signal}: {}", end.code, end.said));
                }
            }
            self.brokers_back();
            if began.elapsed() > limit {
                self.tally.wrong.push(format!("still there {limit:?} after SIG{signal}: {}", self.run.text(0)));
                self.run.signal_all("KILL");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if signal == "TERM" {
            self.tally.stops.push(began.elapsed());
            if began.elapsed() > Duration::from_secs(10) {
                self.tally.wrong.push(format!("it took {:.1?} to end after SIGTERM", began.elapsed()));
            }
        }
        self.next_life(shape);
    }

    fn next_life(&mut self, shape: Shape) {
        self.lives += 1;
        self.killed = None;
        self.tally.restarts += 1;
        self.run = Self::start(self.dir, self.lives, shape, self.cluster.brokers());
    }

    fn wait_for(&mut self, moment: Moment) {
        let limit = Duration::from_secs(180);
        match moment {
            // What was killed last must have been started again, or there is nothing to strike.
            Moment::Starting(after) => {
                self.supervise(limit, |round| round.killed.is_some() || round.run.started().elapsed() < after);
            }
            Moment::Running(after) => {
                self.supervise(limit, |round| !round.run.is_ready());
                let since = Instant::now();
                self.supervise(limit, |_| since.elapsed() < after);
            }
        }
    }

    /// Waits for the step's moment and strikes; the shape of a restart is `next`. Says whether there was still
    /// something to strike.
    fn strike(&mut self, step: Step, next: Shape) -> bool {
        self.wait_for(step.moment);
        if matches!(step.fault, Fault::KillBroker(_) | Fault::StopBroker(_)) {
            let limit = Duration::from_secs(120);
            self.supervise(limit, |round| {
                !round.away.is_empty() || round.brokers.iter().any(|address| !listens(address))
            });
        }
        if self.done {
            return false;
        }
        let process = step.which % self.run.shape.processes;
        let broker = 1 + (step.which % self.brokers.len()) as u32;
        match step.fault {
            Fault::Kill => {
                self.count("kill -9 of a process");
                let met = self.run.is_ready();
                self.run.signal(process, "KILL");
                if next == self.run.shape {
                    // Its supervisor restarts it alone; the others follow by themselves.
                    self.killed = Some(process);
                } else {
                    if !met {
                        // The others may still wait for it to come, and it will not.
                        self.run.signal_all("KILL");
                    }
                    self.succeed("KILL", next);
                }
            }
            Fault::KillAll => {
                self.count("kill -9 of all processes");
                self.run.signal_all("KILL");
                self.succeed("KILL", next);
            }
            Fault::Term => {
                self.count("SIGTERM");
                self.run.signal_all("TERM");
                self.succeed("TERM", next);
            }
            Fault::Stop(pause) => {
                self.count("SIGSTOP of a process");
                self.run.signal(process, "STOP");
                let since = Instant::now();
                self.supervise(pause * 4, |_| since.elapsed() < pause);
                self.run.signal(process, "CONT");
            }
            Fault::Zombie(pause) => {
                self.count("SIGSTOP of a run, another takes over");
                self.run.signal_all("STOP");
                self.lost.get_or_insert_with(Instant::now);
                self.lives += 1;
                self.tally.restarts += 1;
                let fresh = Self::start(self.dir, self.lives, next, self.cluster.brokers());
                let mut zombie = std::mem::replace(&mut self.run, fresh);
                self.wait_for(Moment::Running(pause));
                zombie.signal_all("CONT");
                for end in zombie.end(Duration::from_secs(60)) {
                    match end.code {
                        Some(4) => self.tally.superseded += 1,
                        // A broker that was away, a peer that was first, or the end of input at that very moment.
                        Some(0 | 1 | 3) => {}
                        code => self.tally.wrong.push(format!("a zombie ended with {code:?}: {}", end.said)),
                    }
                }
            }
            Fault::KillBroker(down) => {
                self.count("kill -9 of a broker");
                self.cluster.kill_broker(broker);
                self.away.push((broker, Instant::now() + down, true));
            }
            Fault::StopBroker(pause) => {
                self.count("SIGSTOP of a broker");
                self.cluster.pause_broker(broker);
                self.away.push((broker, Instant::now() + pause, false));
            }
        }
        true
    }
}

/// What to do to whom.
pub struct Chaos {
    pub seed: u64,
    pub faults: usize,
    pub brokers: u32,
    pub input: PathBuf,
}

impl Chaos {
    /// Carries it out, prints what happened, and fails if a reader could tell.
    pub fn run(&self, want: &Outputs) {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{}", self.seed, self.brokers));
        let _ = std::fs::remove_dir_all(&dir);
        let began = Instant::now();
        let plan = plan(self.seed, self.faults);
        let mut tally = Tally::default();
        let (mut next, mut rounds) = (0, 0);
        let mut records = BTreeMap::new();
        let mut differences = Vec::new();
        while next < plan.len() {
            rounds += 1;
            let dir = dir.join(rounds.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let cluster = Cluster::start_with(self.brokers, &[]);
            prepare(cluster.brokers(), &self.input);
            let mut round = Round {
                cluster: &cluster,
                brokers: cluster.brokers().split(',').map(str::to_owned).collect(),
                dir: &dir,
                lives: 0,
                run: Round::start(&dir, 0, plan[next].shape, cluster.brokers()),
                tally: &mut tally,
                lost: None,
                broker_was_away: false,
                away: Vec::new(),
                done: false,
                killed: None,
            };
            while next < plan.len() {
                let shape = plan.get(next + 1).map_or(Shape { processes: 1, workers: 2 }, |step| step.shape);
                if !round.strike(plan[next], shape) {
                    break;
                }
                next += 1;
            }
            round.supervise(Duration::from_secs(600), |_| true);
            round.away.iter_mut().for_each(|(_, at, _)| *at = Instant::now());
            round.brokers_back();
            drop(round);
            let got = Outputs::of_topics(&cluster.config());
            for topic in OutputTopic::ALL {
                *records.entry(topic.name()).or_insert(0) += got.count(topic);
            }
            differences.extend(want.differences(&got));
            differences.extend(got.inconsistent_alerts());
        }

        let struck: usize = tally.faults.values().sum();
        println!(
            "chaos: seed {}, {} brokers, {struck} faults in {rounds} rounds, {} restarts, {:.0} s",
            self.seed,
            self.brokers,
            tally.restarts,
            began.elapsed().as_secs_f64()
        );
        tally.faults.iter().for_each(|(what, n)| println!("  {n:>4} {what}"));
        println!("  {:>4} processes that another run had taken over from", tally.superseded);
        for (what, mut list) in [
            ("first commit after a loss", tally.recoveries),
            ("the same with a broker away", tally.with_broker_away),
            ("end after SIGTERM", tally.stops),
        ] {
            list.sort_unstable();
            if let (Some(worst), Some(median)) = (list.last(), list.get(list.len() / 2)) {
                let (n, median, worst) = (list.len(), median.as_secs_f64(), worst.as_secs_f64());
                println!("  {what}: {n} times, median {median:.1} s, worst {worst:.1} s");
            }
        }
        records.iter().for_each(|(topic, n)| println!("  {n:>8} {topic}"));
        tally.words.iter().for_each(|(words, n)| println!("  {n:>4} times: {words}"));
        println!("  differences: {}", differences.len());
        assert!(differences.is_empty(), "seed {}:\n{}", self.seed, differences.join("\n"));
        assert!(tally.wrong.is_empty(), "seed {}:\n{}", self.seed, tally.wrong.join("\n"));
        assert_eq!(struck, self.faults);
    }
}

/// `make chaos`: `CHAOS_FAULTS` (100) against each number of brokers in `CHAOS_BROKERS` (1,3), from `CHAOS_SEED`.
#[test]
#[ignore = "minutes: run it with `make chaos`"]
fn chaos() {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seed, faults) = (var("CHAOS_SEED", "1").parse().unwrap(), var("CHAOS_FAULTS", "100").parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let input = crate::input(dir.path(), crate::LONG);
    let want = crate::run_files(&input, &dir.path().join("undisturbed"), &["-w", "1"]);
    for brokers in var("CHAOS_BROKERS", "1,3").split(',') {
        Chaos { seed, faults, brokers: brokers.parse().unwrap(), input: input.clone() }.run(&want);
    }
}

/// The same, short: a fault of each kind.
#[test]
fn killed_again_and_again_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let input = crate::input(dir.path(), crate::SHORT);
    let want = crate::run_files(&input, &dir.path().join("undisturbed"), &["-w", "1"]);
    Chaos { seed: 5, faults: 10, brokers: 1, input }.run(&want);
}
