//! Turns closed windows into verdicts: merges the panes, answers what needs no model, has the rest scored.
//!
//! - Input: [`ClosedWindow`]s of this worker's shards.
//! - Output: one [`InferenceResult`] per window, at the window's time.
//! - State: windows whose score is under way; bounded by the [`Credit`] that the window operator draws on.
//! - Ordering: scores come back in any order; each result carries its own time.
//! - Failure: a graph that the runtime rejects gives `error` with the reason. Scores never depend on batch mates.
//!
//! ```text
//! panes ─▶ graph ─┬─ fewer than two nodes ────────────▶ error
//!                 ├─ Linux, only idle daemons ────────▶ benign, by allow-list
//!                 └─ tensors ─▶ Scorer (own threads) ─▶ benign or attack, with explanation
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logster_schema::{Endpoint, InferenceResult, Platform, Prediction, RuleLevel, RuleMatch, TimeMs};
use prometheus::{Histogram, IntCounterVec, IntGauge};
use rustc_hash::FxHashSet;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use crate::features::linux::is_idle;
use crate::graph::{PaneGraph, WindowGraph};
use crate::rules::RuleSet;
use crate::score::{Explain, GraphScore, Job, Scorer};
use crate::window::{ClosedWindow, Credit, Pane};

/// Key edges kept on an attack.
const KEY_EDGES: usize = 8;
/// Rules kept of a window.
const MAX_RULES: usize = 64;
/// Version given where the model was not asked.
const NO_MODEL: &str = "none";

impl Pane for PaneGraph {
    fn seal(platform: Platform, observations: &[logster_schema::Observation]) -> Self {
        PaneGraph::seal(platform, observations)
    }
}

/// Settings of the operator.
#[derive(Clone)]
pub struct InferConfig {
    /// Linux process names that are idle daemons (`inference.idle_allowlist`); `None`: always ask the model.
    pub idle_allowlist: Option<Arc<FxHashSet<String>>>,
    /// From here on a window's verdict is `attack` (`alerts.min_threshold`): calibration makes this score mean few
    /// false alerts, and what lies below it raises none.
    pub attack_from: f64,
    /// Name and version of each platform's model.
    pub model_versions: BTreeMap<Platform, String>,
    /// The rules whose matches the windows carry.
    pub rules: Option<Arc<RuleSet>>,
    /// From this level on a rule makes a window a detection (`rules.min_level`).
    pub rules_from: RuleLevel,
}

/// Sees every window that the model scored, with its `attack_prob`, and must return at once.
pub type Witness = Arc<dyn Fn(&Arc<WindowGraph>, f64) + Send + Sync>;

/// Counters of the operator.
#[derive(Clone)]
pub struct InferMetrics {
    /// Results by platform and prediction.
    pub results: IntCounterVec,
    /// Seconds from a window's closing to its verdict.
    pub seconds: Histogram,
    /// Windows whose score is under way, this worker.
    pub under_way: IntGauge,
    /// Who watches the model: drift and shadow. No result depends on it.
    pub witness: Option<Witness>,
}

/// A verdict that needs no model, or the question that the model is to answer.
enum Asked {
    Answered(Verdict),
    Ask,
}

enum Verdict {
    Idle,
    Unscored(String),
    Scored(GraphScore),
}

/// Whether the model must be asked about a graph.
fn ask(config: &InferConfig, platform: Platform, graph: &WindowGraph) -> Asked {
    if graph.num_nodes() < 2 {
        return Asked::Answered(Verdict::Unscored(format!(
            "the graph has {} of the 2 nodes that a verdict takes",
            graph.num_nodes()
        )));
    }
    if platform == Platform::Linux
        && let Some(idle) = &config.idle_allowlist
        && is_idle(graph, |name| idle.contains(name))
    {
        return Asked::Answered(Verdict::Idle);
    }
    Asked::Ask
}

/// A window with its graph.
struct Pending {
    window: ClosedWindow<PaneGraph>,
    graph: Arc<WindowGraph>,
    closed: Instant,
}

/// Writes the result of a window.
fn result(config: &InferConfig, pending: &Pending, verdict: Verdict) -> InferenceResult {
    let Pending { window, graph, .. } = pending;
    let ClosedWindow { endpoint, platform, start_ms, end_ms, opened_ms, .. } = window;
    let version = match verdict {
        Verdict::Scored(_) => config.model_versions.get(platform).map_or(NO_MODEL, String::as_str),
        _ => NO_MODEL,
    };
    let mut r = InferenceResult {
        inference_id: inference_id(endpoint, *platform, *end_ms, *opened_ms, config),
        tenant_id: endpoint.tenant().to_owned(),
        endpoint_id: endpoint.host().to_owned(),
        platform: *platform,
        timestamp: *end_ms,
        window_start: *start_ms,
        window_end: *end_ms,
        prediction: Prediction::Benign,
        attack_prob: 0.0,
        confidence: 1.0,
        num_events: window.events(),
        num_nodes: graph.num_nodes(),
        num_edges: graph.num_edges(),
        node_counts: graph.node_counts(),
        edge_counts: graph.edge_counts(),
        model_version: version.to_owned(),
        reason: None,
        backfill: opened_ms.is_some(),
        opened_ms: *opened_ms,
        sampled_out: window.sampled_out(),
        key_edges: Vec::new(),
        rules: config.rules.as_ref().map_or_else(Vec::new, |set| matches(set, window)),
        ruleset: config.rules.as_ref().map(|set| set.version().to_owned()),
        ttp_techniques: Vec::new(),
        ttp_evidence: Vec::new(),
        peers: Vec::new(),
        local_addresses: Vec::new(),
    };
    match verdict {
        Verdict::Idle => r.reason = Some("idle_allowlist".to_owned()),
        Verdict::Unscored(why) => {
            (r.prediction, r.confidence, r.reason) = (Prediction::Error, 0.0, Some(why));
        }
        Verdict::Scored(score) => {
            r.attack_prob = score.attack_prob;
            r.confidence = score.attack_prob.max(1.0 - score.attack_prob);
            if score.attack_prob >= config.attack_from {
                r.prediction = Prediction::Attack;
                r.key_edges = graph.key_edges(&score.key_edges, KEY_EDGES);
            }
        }
    }
    if r.prediction == Prediction::Attack || r.raised_by_rule(config.rules_from).is_some() {
        explain(&mut r, graph);
    }
    r
}

/// What the window's rules found, in the order of [`InferenceResult::rules`].
fn matches(set: &RuleSet, window: &ClosedWindow<PaneGraph>) -> Vec<RuleMatch> {
    let mut found: Vec<RuleMatch> = window
        .rules()
        .into_iter()
        .map(|(number, (all, new))| {
            let rule = &set.rules()[number as usize];
            RuleMatch {
                rule_id: rule.id.clone(),
                title: rule.title.clone(),
                level: rule.level,
                techniques: rule.techniques.clone(),
                count: all.count,
                new,
                first_seen: all.first_ms,
                last_seen: all.last_ms,
                evidence: all.evidence,
            }
        })
        .collect();
    // Stable: within, by number, which is by id.
    found.sort_by_key(|m| (m.new == 0, Reverse(m.level)));
    found.truncate(MAX_RULES);
    found
}

/// The id names the model that the platform has, asked or not, and the rule set: a window has one verdict of them.
fn inference_id(
    endpoint: &Endpoint,
    platform: Platform,
    end_ms: TimeMs,
    opened_ms: Option<TimeMs>,
    config: &InferConfig,
) -> String {
    let model = config.model_versions.get(&platform).map_or(NO_MODEL, String::as_str);
    match &config.rules {
        None => InferenceResult::id(endpoint, platform, end_ms, opened_ms, model),
        Some(set) => {
            InferenceResult::id(endpoint, platform, end_ms, opened_ms, &format!("{model} rules {}", set.version()))
        }
    }
}

/// Fills what an analyst reads first: the facts of the window and what its rules say of them.
fn explain(r: &mut InferenceResult, graph: &WindowGraph) {
    let mut techniques: BTreeMap<String, String> = BTreeMap::new();
    for finding in graph.findings() {
        techniques.entry(finding.technique.to_owned()).or_insert(finding.sentence);
    }
    for m in &r.rules {
        for technique in &m.techniques {
            let sentence = || format!("rule \"{}\" matched {}", m.title, m.evidence);
            techniques.entry(technique.clone()).or_insert_with(sentence);
        }
    }
    r.ttp_evidence = techniques.iter().map(|(technique, sentence)| format!("{technique}: {sentence}")).collect();
    r.ttp_techniques = techniques.into_keys().collect();
    r.peers = graph.peers();
    r.local_addresses = graph.local_addresses();
}

/// The timely operator.
pub fn infer<'scope>(
    windows: StreamVec<'scope, u64, ClosedWindow<PaneGraph>>,
    config: InferConfig,
    scorer: &Scorer,
    credit: Rc<Credit>,
    metrics: InferMetrics,
) -> StreamVec<'scope, u64, InferenceResult> {
    let scope = windows.scope();
    windows.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "score", move |initial, info| {
        let wake = scope.worker().sync_activator_for(info.address.to_vec());
        let client = scorer.client(Box::new(move || {
            let _ = wake.activate();
        }));
        let activator = scope.activator_for(info.address);
        let mut held = Some(initial);
        // Windows whose score is under way by ticket; their times, earliest first; jobs not taken yet.
        let mut under_way: BTreeMap<u64, (u64, Pending)> = BTreeMap::new();
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        let mut jobs: VecDeque<Job> = VecDeque::new();
        let mut tickets = 0..;
        move |(input, frontier), output| {
            let mut answered = Vec::new();
            input.for_each(|_, batch| {
                for window in batch.drain(..) {
                    let time = window.emit_ms.max(0) as u64;
                    let panes: Vec<&PaneGraph> = window.panes.iter().map(|p| &p.content).collect();
                    let graph = WindowGraph::merge(window.platform, window.start_ms, window.end_ms, &panes);
                    let graph = Arc::new(graph);
                    let platform = window.platform;
                    let pending = Pending { window, graph, closed: Instant::now() };
                    match ask(&config, platform, &pending.graph) {
                        Asked::Answered(verdict) => answered.push((time, pending, verdict)),
                        Asked::Ask => {
                            let ticket = tickets.next().expect("64 bits of tickets");
                            let explain = Explain { from: config.attack_from, panes: pending.window.panes.clone() };
                            jobs.push_back(Job { ticket, graph: pending.graph.clone(), explain: Some(explain) });
                            *times.entry(time).or_default() += 1;
                            under_way.insert(ticket, (time, pending));
                        }
                    }
                }
            });
            loop {
                while let Some(job) = jobs.pop_front() {
                    if let Err(full) = client.try_submit(job) {
                        jobs.push_front(full.0);
                        break;
                    }
                }
                let before = answered.len();
                while let Some(scored) = client.try_recv() {
                    let (time, pending) = under_way.remove(&scored.ticket).expect("answered once");
                    let left = times.get_mut(&time).expect("counted when asked");
                    *left -= 1;
                    if *left == 0 {
                        times.remove(&time);
                    }
                    let verdict = match scored.result {
                        Ok(score) => Verdict::Scored(score),
                        Err(why) => Verdict::Unscored(why),
                    };
                    answered.push((time, pending, verdict));
                }
                if answered.len() == before || jobs.is_empty() {
                    break;
                }
            }
            credit.give_back(answered.len());
            for (time, pending, verdict) in answered {
                if let (Some(witness), Verdict::Scored(score)) = (&metrics.witness, &verdict) {
                    witness(&pending.graph, score.attack_prob);
                }
                let r = result(&config, &pending, verdict);
                metrics.results.with_label_values(&[r.platform.name(), r.prediction.name()]).inc();
                metrics.seconds.observe(pending.closed.elapsed().as_secs_f64());
                let cap = held.as_ref().expect("held while a window is under way");
                output.session(&cap.delayed(&time)).give(r);
            }
            metrics.under_way.set(under_way.len() as i64);
            if !jobs.is_empty() {
                // Another worker's windows fill the queue: nobody will wake this one.
                activator.activate_after(Duration::from_millis(5));
            }
            let earliest = times.first_key_value().map(|(time, _)| *time);
            match earliest.into_iter().chain(frontier.frontier().first().copied()).min() {
                Some(until) => held.iter_mut().for_each(|cap| cap.downgrade(&until)),
                None => held = None,
            }
        }
    })
}
