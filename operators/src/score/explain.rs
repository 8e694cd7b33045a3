//! Which edges an attack verdict rests on: found by deleting edges and asking the model again.
//!
//! - Input: a window scored as an attack, its panes, and the model.
//! - Output: edges, those that the verdict needs first, each with the share of the probability that it took along.
//! - State: none.
//! - Ordering: a function of graph and model: candidates are tried in a fixed order, ties go to the earlier one.
//! - Failure: where the model refuses a remainder, that candidate is passed over.
//!
//! Neither attention nor the scores of single processes say what a verdict would be without an edge, and a verdict is a
//! maximum over processes: with the worst one gone, the second worst holds it up. So edges are taken one by one. Each round
//! looks at the process that is worst in what is left, tries its edges (and those next to it) each by its deletion
//! ([`Occlusion`]), and takes the one that lowers the probability most. Rounds end when the verdict is gone and nothing lowers
//! it further; the runners-up of the first round follow. At most `ROUNDS * CANDIDATES` graphs are scored for one detection,
//! and none of more than `CORE` nodes: of a larger window only what is nearest to its suspicious processes is looked at, so
//! that a detection costs the same however busy its host is.

use std::cmp::Ordering;

use crate::graph::occlusion::{Occlusion, Remainder, core};
use crate::graph::{Edge, PaneGraph, Relation, WindowGraph};
use crate::score::GraphScore;

/// Edges taken one after the other.
const ROUNDS: usize = 5;
/// Edges tried in a round.
const CANDIDATES: usize = 5;
/// A remainder that scores below this is no attack any more.
const NO_ATTACK: f64 = 0.5;
/// What an edge must then still take along, as a share of the whole score, to be worth a name.
const WORTH: f64 = 0.01;
/// Generations whose starts are tried, the worst process' own included.
const LINE: usize = 4;
/// Edges named at most.
const NAMED: usize = 24;

/// Nodes of the part of a window that is looked at.
const CORE: usize = 48;
/// Nodes that suspicious as this, as a share of the most suspicious, have their surroundings looked at.
const SUSPICIOUS: f32 = 0.5;

/// Ranks the edges that `base`, the score of `graph`, rests on; `model` scores a batch.
pub(super) fn explain(
    graph: &WindowGraph,
    panes: &[&PaneGraph],
    base: &GraphScore,
    mut model: impl FnMut(&[&WindowGraph]) -> Vec<Result<GraphScore, String>>,
) -> Vec<(u32, f64)> {
    if graph.num_nodes() as usize <= CORE {
        return rank(graph, panes, base, model);
    }
    let keep = nearest(graph, &base.node_score);
    let panes = core(graph, panes, &keep);
    let panes: Vec<&PaneGraph> = panes.iter().collect();
    let part = WindowGraph::merge(graph.platform(), graph.start_ms(), graph.end_ms(), &panes);
    let Some(Ok(base)) = model(&[&part]).pop() else { return Vec::new() };
    let between = |e: &Edge| keep[e.src as usize] && keep[e.dst as usize];
    let edges = graph.edges().iter().enumerate().filter(|(_, e)| between(e));
    let whole: Vec<u32> = edges.map(|(at, _)| at as u32).collect();
    rank(&part, &panes, &base, model).into_iter().map(|(edge, weight)| (whole[edge as usize], weight)).collect()
}

/// The [`CORE`] nodes that are nearest to suspicious ones, themselves included. No way leads through a program that starts
/// unrelated things.
fn nearest(graph: &WindowGraph, score: &[f32]) -> Vec<bool> {
    let mut next: Vec<Vec<u32>> = vec![Vec::new(); graph.num_nodes() as usize];
    for edge in graph.edges() {
        next[edge.src as usize].push(edge.dst);
        next[edge.dst as usize].push(edge.src);
    }
    let most = score.iter().copied().fold(0.0, f32::max);
    let mut reached: Vec<u32> = (0..graph.num_nodes()).filter(|at| score[*at as usize] >= SUSPICIOUS * most).collect();
    reached.sort_by(|a, b| score[*b as usize].total_cmp(&score[*a as usize]).then(a.cmp(b)));
    reached.truncate(CORE);
    let mut keep = vec![false; next.len()];
    reached.iter().for_each(|at| keep[*at as usize] = true);
    let mut at = 0;
    while at < reached.len() && reached.len() < CORE {
        let node = reached[at];
        at += 1;
        if graph.node(node).is_hub() && score[node as usize] < SUSPICIOUS * most {
            continue;
        }
        for &neighbour in &next[node as usize] {
            if reached.len() < CORE && !std::mem::replace(&mut keep[neighbour as usize], true) {
                reached.push(neighbour);
            }
        }
    }
    keep
}

/// [`explain`] of a window small enough.
fn rank(
    graph: &WindowGraph,
    panes: &[&PaneGraph],
    base: &GraphScore,
    mut model: impl FnMut(&[&WindowGraph]) -> Vec<Result<GraphScore, String>>,
) -> Vec<(u32, f64)> {
    let window = Occlusion::new(graph, panes);
    let mut taken: Vec<(u32, f64)> = Vec::new();
    let mut runners_up: Vec<(u32, f64)> = Vec::new();
    let mut left = Left {
        attack_prob: base.attack_prob,
        node_score: base.node_score.clone(),
        edges: vec![true; graph.edges().len()],
    };
    for round in 0..ROUNDS {
        let Some(worst) = left.worst() else { break };
        let candidates = candidates(graph, &left, &base.edge_attn, worst);
        let tried: Vec<Remainder> = candidates
            .iter()
            .map(|edge| window.without(&taken.iter().map(|(e, _)| *e).chain([*edge]).collect::<Vec<_>>()))
            .collect();
        let scores = model(&tried.iter().map(|r| &r.graph).collect::<Vec<_>>());
        let mut outcomes: Vec<(u32, Left)> = candidates
            .into_iter()
            .zip(tried)
            .zip(scores)
            .filter_map(|((edge, rest), score)| Some((edge, Left::of(graph, rest, &score.ok()?))))
            .collect();
        // Stable: among equals the earlier candidate.
        outcomes.sort_by(|(_, a), (_, b)| a.threat(worst).total_cmp(&b.threat(worst)));
        let drop = |l: &Left| ((left.attack_prob - l.attack_prob) / base.attack_prob).clamp(0.0, 1.0);
        if round == 0 {
            runners_up = outcomes.iter().map(|(edge, l)| (*edge, drop(l))).collect();
        }
        let Some((edge, best)) = outcomes.into_iter().next() else { break };
        if left.attack_prob < NO_ATTACK && drop(&best) < WORTH {
            break;
        }
        taken.push((edge, drop(&best)));
        left = best;
    }
    runners_up.retain(|(edge, _)| !taken.iter().any(|(t, _)| t == edge));
    taken.extend(runners_up);
    taken.truncate(NAMED);
    taken
}

/// What is left of a window, by the numbers of the whole.
struct Left {
    attack_prob: f64,
    /// 0 for nodes that are gone.
    node_score: Vec<f32>,
    edges: Vec<bool>,
}

impl Left {
    fn of(graph: &WindowGraph, rest: Remainder, score: &GraphScore) -> Self {
        let mut node_score = vec![0.0; graph.num_nodes() as usize];
        for (node, score) in rest.nodes.iter().zip(&score.node_score) {
            node_score[*node as usize] = *score;
        }
        Self { attack_prob: score.attack_prob, node_score, edges: rest.edges }
    }

    /// The most suspicious node; the first of several.
    fn worst(&self) -> Option<u32> {
        let greater = |a: &f32, b: &f32| a.total_cmp(b);
        let most = self.node_score.iter().copied().max_by(greater)?;
        self.node_score.iter().position(|s| s.total_cmp(&most) == Ordering::Equal).map(|at| at as u32)
    }

    /// What a candidate is judged by: the probability, and where a second process holds it up, how bad `worst` still is.
    fn threat(&self, worst: u32) -> f64 {
        self.attack_prob + 0.1 * f64::from(self.node_score[worst as usize])
    }
}

/// The edges to try: the starts of the worst node and of what it descends from, up to a program that starts unrelated
/// things; then its other edges; then those of other suspicious nodes.
fn candidates(graph: &WindowGraph, left: &Left, attention: &[(f32, f32)], worst: u32) -> Vec<u32> {
    let mut line = vec![worst];
    while line.len() < LINE
        && let Some(start) =
            graph.edges().iter().find(|e| e.relation == Relation::Spawned && line.last() == Some(&e.dst))
        && !graph.node(start.src).is_hub()
        && !line.contains(&start.src)
    {
        line.push(start.src);
    }
    let weight = |at: usize, e: &Edge| {
        let near = match () {
            () if e.relation == Relation::Spawned && line.contains(&e.dst) => 2.0,
            () if e.src == worst || e.dst == worst => 1.0,
            () => 0.0,
        };
        let other = if e.src == worst { e.dst } else { e.src };
        let signs = graph.node(other).tokens().filter(|t| t.is_tree()).count().min(10) as f32 / 20.0;
        let (forward, reverse) = attention.get(at).copied().unwrap_or_default();
        let attention = forward.max(0.0) + reverse.max(0.0);
        near * 4.0 + left.node_score[e.src as usize].max(left.node_score[e.dst as usize]) + signs + attention / 4.0
    };
    let edges = graph.edges().iter().enumerate().filter(|(at, _)| left.edges[*at]);
    let mut ranked: Vec<(f32, u32)> = edges.map(|(at, e)| (weight(at, e), at as u32)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.truncate(CANDIDATES);
    ranked.into_iter().map(|(_, at)| at).collect()
}
