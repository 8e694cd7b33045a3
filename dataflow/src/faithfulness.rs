//! `logster model faithfulness`: are the edges that an alert names those that the verdict rests on?
//!
//! - Input: captures, one recording a file, and the models.
//! - Output: per platform, over every window scored as an attack, the score before, after the five edges named first are
//!   deleted, and after five others drawn at random are ([`Occlusion`] says what hangs on an edge and goes with it).
//! - Windows of fewer than ten edges are left out: five at random would be half of them.
//! - Ordering: draws are a function of the window, so the same captures give the same figures.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use logster_operators::graph::occlusion::Occlusion;
use logster_operators::graph::{PaneGraph, WindowGraph};
use logster_operators::score::Explain;
use logster_operators::window::ClosedWindow;
use logster_schema::Platform;
use logster_schema::result::content_id;
use logster_sinks::capture;

use crate::engine::Models;
use crate::export::recording_name;
use crate::replay::{ReplayConfig, graph_of, replay};

/// Edges deleted.
const EDGES: usize = 5;
/// Draws of random edges for one window.
const DRAWS: usize = 4;
/// Edges that a window must have.
const LEAST_EDGES: usize = 2 * EDGES;
/// Windows scored at a time.
const BATCH: usize = 64;

/// Sums over the attack windows of one platform.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faithfulness {
    /// Attack windows measured.
    pub windows: u64,
    /// Attack windows with too few edges.
    pub left_out: u64,
    before: f64,
    named: f64,
    random: f64,
    named_stays: u64,
    random_stays: f64,
}

impl Faithfulness {
    /// Mean score of the windows as they are, without the edges named first, without random ones.
    pub fn means(&self) -> [f64; 3] {
        [self.before, self.named, self.random].map(|sum| sum / self.windows.max(1) as f64)
    }

    /// Share of windows that still are attacks without the edges named first, and without random ones.
    pub fn still_attacks(&self) -> [f64; 2] {
        [self.named_stays as f64, self.random_stays].map(|sum| sum / self.windows.max(1) as f64)
    }
}

impl std::fmt::Display for Faithfulness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([before, named, random], [named_stays, random_stays]) = (self.means(), self.still_attacks());
        write!(
            f,
            "{} attack windows ({} of fewer than {LEAST_EDGES} edges left out): mean attack_prob {before:.3}; without \
             the five edges named first {named:.3} ({:.1} % still attacks); without five at random {random:.3} ({:.1} %)",
            self.windows,
            self.left_out,
            100.0 * named_stays,
            100.0 * random_stays
        )
    }
}

/// Measures every recording below `input`.
///
/// # Errors
/// Captures that cannot be read.
pub fn measure(
    input: &Path,
    models: &Models,
    config: &ReplayConfig,
    threshold: f64,
) -> anyhow::Result<BTreeMap<Platform, Faithfulness>> {
    let mut totals = BTreeMap::new();
    for path in capture::files(input)? {
        let mut batch = Vec::new();
        replay(
            &path,
            Some(&recording_name(&path)),
            config,
            |_| true,
            |window| {
                let graph = Arc::new(graph_of(&window));
                if graph.num_nodes() >= 2 {
                    batch.push((window, graph));
                }
                if batch.len() == BATCH {
                    judge(&mut batch, models, threshold, &mut totals);
                }
            },
        )?;
        judge(&mut batch, models, threshold, &mut totals);
    }
    Ok(totals)
}

fn judge(
    batch: &mut Vec<(ClosedWindow<PaneGraph>, Arc<WindowGraph>)>,
    models: &Models,
    threshold: f64,
    totals: &mut BTreeMap<Platform, Faithfulness>,
) {
    let jobs = batch
        .iter()
        .map(|(window, graph)| (graph.clone(), Some(Explain { from: threshold, panes: window.panes.clone() })));
    let scores = models.scorer().score_all(jobs);
    for ((window, graph), score) in batch.drain(..).zip(scores) {
        let Some(score) = score.ok().filter(|s| s.attack_prob >= threshold) else { continue };
        let total = totals.entry(window.platform).or_default();
        if graph.edges().len() < LEAST_EDGES {
            total.left_out += 1;
            continue;
        }
        let panes: Vec<&PaneGraph> = window.panes.iter().map(|pane| &pane.content).collect();
        let occlusion = Occlusion::new(&graph, &panes);
        let named: Vec<u32> = score.key_edges.iter().take(EDGES).map(|(edge, _)| *edge).collect();
        let seed = content_id(&[window.endpoint.key(), &window.end_ms.to_string()]);
        let draws = draws(u64::from_str_radix(&seed[..16], 16).expect("hex"), graph.edges().len() as u32);
        let remainders = std::iter::once(named).chain(draws).map(|edges| Arc::new(occlusion.without(&edges).graph));
        let after: Vec<f64> = models
            .scorer()
            .score_all(remainders.map(|graph| (graph, None)))
            .into_iter()
            // A graph that is gone is no attack.
            .map(|score| score.map_or(0.0, |s| s.attack_prob))
            .collect();
        total.windows += 1;
        total.before += score.attack_prob;
        total.named += after[0];
        total.named_stays += u64::from(after[0] >= threshold);
        total.random += after[1..].iter().sum::<f64>() / DRAWS as f64;
        total.random_stays += after[1..].iter().filter(|p| **p >= threshold).count() as f64 / DRAWS as f64;
    }
}

/// Sets of different edges, below `edges`.
fn draws(seed: u64, edges: u32) -> Vec<Vec<u32>> {
    let mut state = seed | 1;
    let mut below = |n: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as u32 % n
    };
    (0..DRAWS)
        .map(|_| {
            let mut drawn = Vec::new();
            while drawn.len() < EDGES {
                let edge = below(edges);
                if !drawn.contains(&edge) {
                    drawn.push(edge);
                }
            }
            drawn
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_different_edges_and_repeat() {
        let sets = draws(7, 10);
        assert_eq!(sets, draws(7, 10));
        for set in sets {
            let distinct: std::collections::BTreeSet<_> = set.iter().collect();
            assert!(distinct.len() == EDGES && set.iter().all(|e| *e < 10), "{set:?}");
        }
    }
}
