//! The dataflow without its model: `cargo bench -p logster-operators --bench pipeline -- CAPTURE.ndjson.zst...`.
//!
//! One timely worker normalizes the captures' messages, routes them by key, keeps the sliding windows and builds
//! every window's graph, with the operators that ship: what the peers in `deploy/bench.sh` do in Python. The messages
//! are in memory as a broker would hand them over, ordered by arrival. Prints events/s and MB/s of the thread's own
//! time on its core, so that neighbours count little; the best of five rounds. Then the bytes that a whole window
//! holds an event: open panes hold observations, sealed ones graphs. With `--rules=FOLDER` the Sigma rules in it are
//! evaluated as well, in rounds of their own.

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use logster_operators::graph::{PaneGraph, WindowGraph};
use logster_operators::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_operators::rules::{RuleSet, RulesMetrics, Source, rules};
use logster_operators::window::{Credit, RestoredWindows, WindowConfig, WindowLinks, WindowMetrics, window};
use logster_schema::{Observation, RawTopic, RuleLevel, TimeLimits, TimeMs};
use prometheus::{Counter, IntCounter, IntGauge};
use support::{messages, on_cpu};
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::{Operator, source};

/// As in the binary that ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const SHARDS: u32 = 64;
/// Records of one activation, as in the source that ships.
const BATCH: usize = 1024;

struct Message {
    topic: RawTopic,
    arrival_ms: TimeMs,
    payload: Vec<u8>,
}

/// What a round has found.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Found {
    events: u64,
    windows: u64,
    nodes: u64,
    edges: u64,
    matches: u64,
}

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if files.is_empty() {
        println!("skipped: no captures named");
        return;
    }
    let messages = Arc::new(load(&files));
    let bytes: usize = messages.iter().map(|m| m.payload.len()).sum();
    let (best, found) = best_of(&messages, None);
    println!("{} messages: {found:?}", messages.len());
    println!(
        "normalize, key, window, graph: {:.0} events/s, {:.1} MB/s",
        messages.len() as f64 / best,
        bytes as f64 / 1e6 / best
    );
    if let Some(folder) = std::env::args().find_map(|arg| arg.strip_prefix("--rules=").map(str::to_owned)) {
        let set = Arc::new(read_rules(&folder));
        let (with, found) = best_of(&messages, Some(&set));
        println!(
            "with {} rules: {:.0} events/s; the rules alone {:.0} events/s; {} matches",
            set.rules().len(),
            messages.len() as f64 / with,
            messages.len() as f64 / (with - best),
            found.matches
        );
    }
    let (open, sealed) = held(&messages);
    // Of a window and the lateness that keeps its last panes open, the open share.
    let share = (30.0 + 10.0) / (180.0 + 10.0);
    println!(
        "held: {open:.0} bytes an event in open panes, {sealed:.0} in sealed ones, {:.0} over a window at a steady rate",
        share * open + (1.0 - share) * sealed
    );
}

/// Seconds of the fastest round, and what every round found.
fn best_of(messages: &Arc<Vec<Message>>, set: Option<&Arc<RuleSet>>) -> (f64, Found) {
    let (mut best, first) = round(messages, set.cloned());
    for _ in 1..ROUNDS {
        let (seconds, found) = round(messages, set.cloned());
        assert_eq!(found, first, "rounds differ");
        best = best.min(seconds);
    }
    (best, first)
}

/// The rules of the .yml files in a folder.
fn read_rules(folder: &str) -> RuleSet {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of rules") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "yml") {
            let text = std::fs::read_to_string(&path).expect("a rule");
            sources.push(Source { name: path.display().to_string(), text });
        }
    }
    let (set, findings) = RuleSet::load(&sources);
    assert!(findings.iter().all(|f| !f.error), "{findings:#?}");
    set
}

/// Plays everything through a dataflow; seconds on the core, and what came out.
fn round(messages: &Arc<Vec<Message>>, set: Option<Arc<RuleSet>>) -> (f64, Found) {
    let messages = messages.clone();
    let start = on_cpu();
    let found = timely::execute_directly(move |worker| {
        let found = Rc::new(RefCell::new(Found::default()));
        let into = found.clone();
        worker.dataflow::<u64, _, _>(|scope| {
            let observations = source(scope, "messages", move |cap, info| {
                let activator = scope.activator_for(info.address);
                let limits = TimeLimits::default();
                let mut normalizer = Normalizer::new(NormalizeConfig { time: limits, max_message_bytes: 1 << 20 });
                let (mut cap, mut next) = (Some(cap), 0);
                move |output| {
                    let Some(held) = &mut cap else { return };
                    let batch = &messages[next..messages.len().min(next + BATCH)];
                    let mut session = output.session(&held);
                    for (n, m) in batch.iter().enumerate() {
                        let record = RawRecord {
                            topic: m.topic,
                            partition: 0,
                            offset: (next + n) as i64,
                            arrival_ms: m.arrival_ms,
                            key: None,
                            payload: &m.payload,
                        };
                        if let Outcome::Event(event) = normalizer.normalize(&record) {
                            session.give(event.observation);
                        }
                    }
                    drop(session);
                    next += batch.len();
                    match messages.get(next) {
                        Some(m) => {
                            let mark = (m.arrival_ms - limits.max_lateness_ms).max(0) as u64;
                            if mark > *held.time() {
                                held.downgrade(&mark);
                            }
                            activator.activate();
                        }
                        None => cap = None,
                    }
                }
            });
            let count = |name| IntCounter::new(name, name).expect("a name");
            let metrics = RulesMetrics {
                matches: RuleLevel::ALL.map(|level| count(level.name())),
                seconds: Counter::new("seconds", "seconds").expect("a name"),
            };
            let observations = rules(observations, set, metrics);
            let credit = Credit::new(256);
            let links = WindowLinks {
                credit: credit.clone(),
                backlogs: None,
                restored: Rc::new(RestoredWindows::default()),
                metrics: WindowMetrics {
                    closed: count("closed"),
                    events: count("events"),
                    backfill: count("backfill"),
                    sampled: count("sampled"),
                    active: IntGauge::new("active", "active").expect("a name"),
                },
            };
            let config = WindowConfig {
                width_ms: 180_000,
                hop_ms: 30_000,
                max_lateness_ms: TimeLimits::default().max_lateness_ms,
                max_events: 100_000,
                max_open_backfill: 60,
            };
            window::<PaneGraph>(observations, config, SHARDS, links).sink(Pipeline, "graphs", move |(input, _)| {
                input.for_each(|_, batch| {
                    credit.give_back(batch.len());
                    for window in batch.drain(..) {
                        let panes: Vec<&PaneGraph> = window.panes.iter().map(|p| &p.content).collect();
                        let graph = WindowGraph::merge(window.platform, window.start_ms, window.end_ms, &panes);
                        let mut found = into.borrow_mut();
                        found.events += window.events();
                        found.windows += 1;
                        found.nodes += u64::from(graph.num_nodes());
                        found.edges += u64::from(graph.num_edges());
                        found.matches += window.rules().values().map(|(_, new)| new).sum::<u64>();
                    }
                });
            });
        });
        while worker.step() {}
        found.take()
    });
    (on_cpu() - start, found)
}

/// Bytes an event of observations, and of the sealed panes of 30 s that they make, all endpoints in one.
fn held(messages: &[Message]) -> (f64, f64) {
    let mut normalizer = Normalizer::new(NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 1 << 20 });
    let (mut events, mut open, mut sealed) = (0_usize, 0_usize, 0_usize);
    let mut panes: std::collections::BTreeMap<_, Vec<Observation>> = std::collections::BTreeMap::new();
    for (n, m) in messages.iter().enumerate() {
        let record = RawRecord {
            topic: m.topic,
            partition: 0,
            offset: n as i64,
            arrival_ms: m.arrival_ms,
            key: None,
            payload: &m.payload,
        };
        if let Outcome::Event(event) = normalizer.normalize(&record) {
            let o = event.observation;
            events += 1;
            // One allocation for the fields, with what the allocator adds.
            open += size_of::<Observation>() + o.activity.fields.len_bytes() + 16;
            panes.entry((o.endpoint.clone(), o.platform, o.time_ms.div_euclid(30_000))).or_default().push(o);
        }
    }
    for ((_, platform, _), mut observations) in panes {
        observations.sort_by_key(Observation::order);
        sealed += PaneGraph::seal(platform, &observations).heap_bytes() + size_of::<PaneGraph>();
    }
    (open as f64 / events as f64, sealed as f64 / events as f64)
}

fn load(files: &[String]) -> Vec<Message> {
    let mut loaded = Vec::new();
    for path in files {
        let mut arrival_ms = 0;
        messages(path.as_ref(), |topic, time, payload| {
            arrival_ms = arrival_ms.max(time);
            loaded.push(Message { topic, arrival_ms, payload: payload.to_vec() });
            true
        });
    }
    loaded.sort_by_key(|m| m.arrival_ms);
    loaded
}
