//! Deterministic simulation: production's source, operators, checkpoints, commits and start over a simulated log,
//! clock and broker; thousands of seeded stories of crashes, zombies and late answers a minute.
//!
//! A story: records appear on partitions, some late, from the future, from a backlog, twice or unreadable; analysts
//! decide about alerts; partitions are added; runs of one to three workers start, are left alone in the middle of
//! anything, go on later as zombies, run at the same time by mistake; transactions are committed late, answered late
//! or never. Then all is quiet, the last run catches up, and what is committed must be what an undisturbed run of one
//! worker gives for the same log: the same records, in order per raw partition (events, dead letters) or per key
//! (results, alerts).
//!
//! The log as the undisturbed run sees it has each record's arrival as committed floors decided it; where a story's
//! scores differ from run to run, the undisturbed run takes the committed ones: what is committed is the truth.
//!
//! **Production code**: `startup::take_over` whole, `topology::build` with source, normalizer, windows, dedup, both
//! commit operators, correlation and enrichment, on timely workers of their own threads; `commit::shell::Driver`.
//! **Simulated**: the log ([`run`]'s reader in the place of `KafkaReader`), the transactional producer ([`world`]), the
//! clock, the model (verdicts name the records of their window; its operator is a stand-in for `infer`), the engine's
//! loop of a dozen lines, and the supervisor. Threads take turns ([`turns`]), so a seed replays to the letter.
//! **Not here**: Kafka's own faults, retention, the cluster's sockets (workers share a process), memory bounds.
//!
//! [`mutations`] takes each rule of the protocol out of the simulated surroundings, and the stories must tell.
//!
//! ```text
//! LOGSTER_SIM_SEEDS=20000 cargo test --release -p logster-dataflow --test simulation -- --nocapture
//! LOGSTER_SIM_SEED=17 LOGSTER_SIM_TRACE=1 LOGSTER_SIM_SEEDS=1 cargo test ... nothing_is_lost -- --nocapture
//! ```

mod mutations;
mod run;
mod schedule;
mod turns;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mutations::Mutation;
use schedule::{ENDING, Told, play};

/// Stories of a plain test run.
const SEEDS: u64 = 300;
/// Stories of a plain test run in which inputs end and go on.
const ENDING_SEEDS: u64 = 100;
/// Seeds tried on a mutation before it counts as not found.
const PATIENCE: u64 = 4_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

/// Plays seeds on two threads until `each` says that it is enough.
fn play_all(seeds: std::ops::Range<u64>, mutation: Option<Mutation>, each: impl Fn(u64, Told) -> bool + Sync) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || each(seed, play(seed, mutation)) {
                        next.store(seeds.end, Ordering::Relaxed);
                        break;
                    }
                }
            });
        }
    });
}

#[test]
fn nothing_is_lost_or_doubled() {
    let (first, count) = (setting("LOGSTER_SIM_SEED", 0), setting("LOGSTER_SIM_SEEDS", SEEDS));
    let started = Instant::now();
    let sum = Mutex::new(Told::default());
    let wrong = Mutex::new(Vec::new());
    let ending = if first == 0 { ENDING..ENDING + ENDING_SEEDS.max(count / 4) } else { 0..0 };
    for seeds in [first..first + count, ending] {
        play_all(seeds, None, |seed, told| {
            sum.lock().unwrap().add(&told);
            if let Some(what) = told.wrong {
                wrong.lock().unwrap().push(format!("seed {seed}: {what}"));
            }
            wrong.lock().unwrap().len() > 4
        });
    }
    let took = started.elapsed();
    println!("{count} stories, and others of inputs that end, in {took:.1?}: {}", sum.into_inner().unwrap());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_seed_replays_to_the_letter() {
    for seed in 0..10 {
        let (one, two) = (play(seed, None), play(seed, None));
        assert_eq!((one.trace, one.commits, one.outputs), (two.trace, two.commits, two.outputs), "seed {seed}");
    }
}

/// The table of `docs/protocol.md`. A story that told before is tried first; `LOGSTER_SIM_SEARCH=1` counts them all.
#[test]
fn every_rule_that_is_taken_out_is_found() {
    let search = setting("LOGSTER_SIM_SEARCH", 0) == 1;
    let mut unfound = Vec::new();
    println!("| rule | taken out | story | what went wrong |\n|---|---|---|---|");
    for (mutation, rule, known, what) in Mutation::ALL {
        let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
        let tell = |seed, told: Told| {
            let mut found = found.lock().unwrap();
            if let Some(wrong) = told.wrong
                && found.as_ref().is_none_or(|(earlier, _)| seed < *earlier)
            {
                *found = Some((seed, wrong));
            }
            found.is_some()
        };
        if search || !tell(known, play(known, Some(mutation))) {
            let from = if known >= ENDING { ENDING } else { 0 };
            play_all(from..from + PATIENCE, Some(mutation), tell);
        }
        match found.into_inner().unwrap() {
            Some((seed, wrong)) => {
                println!("| {rule} | {what} | {seed} | {} |", wrong.lines().next().unwrap_or_default());
            }
            None => unfound.push(what),
        }
    }
    assert!(unfound.is_empty(), "not found in {PATIENCE} stories each: {unfound:?}");
}
