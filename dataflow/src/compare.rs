//! `logster model compare`: two packages of one platform on the same windows.
//!
//! - Input: captures, and the two models.
//! - Output: a [`Comparison`]: how far they agree, what the second finds and the first does not, and the reverse.
//! - Windows that no model is asked about (fewer than two nodes) are left out; the idle list is not consulted.

use std::path::Path;
use std::sync::Arc;

use logster_operators::features::graph_features;
use logster_operators::graph::WindowGraph;
use logster_operators::score::drift::Distribution;
use logster_schema::{Platform, TimeMs, time};

use crate::engine::Models;
use crate::replay::{ReplayConfig, graph_of, replay};

/// Windows scored at a time: bounds memory.
const BATCH: usize = 256;
/// Windows kept of either kind of disagreement.
const KEPT: usize = 1000;

/// A window on which the verdicts differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Differing {
    /// `tenant:endpoint`.
    pub endpoint: String,
    /// End of the window.
    pub end_ms: TimeMs,
    /// Score of the first model.
    pub a: f64,
    /// Score of the second.
    pub b: f64,
}

/// How two models compare.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Windows that both scored.
    pub windows: u64,
    /// Windows that one of them refused.
    pub refused: u64,
    /// Detections of the first.
    pub detections_a: u64,
    /// Detections of the second.
    pub detections_b: u64,
    /// Detections of the second alone: their number, and the first of them.
    pub gained: (u64, Vec<Differing>),
    /// Detections of the first alone.
    pub lost: (u64, Vec<Differing>),
    /// |b - a|, ascending.
    pub differences: Vec<f64>,
    scores_a: Distribution,
    scores_b: Distribution,
}

impl Comparison {
    /// Counts one window.
    pub fn add(&mut self, endpoint: &str, end_ms: TimeMs, graph: &WindowGraph, a: f64, b: f64, threshold: f64) {
        let (is_a, is_b) = (a >= threshold, b >= threshold);
        self.windows += 1;
        self.detections_a += u64::from(is_a);
        self.detections_b += u64::from(is_b);
        let side = match (is_a, is_b) {
            (false, true) => Some(&mut self.gained),
            (true, false) => Some(&mut self.lost),
            _ => None,
        };
        if let Some((count, kept)) = side {
            *count += 1;
            if kept.len() < KEPT {
                kept.push(Differing { endpoint: endpoint.to_owned(), end_ms, a, b });
            }
        }
        self.differences.push((b - a).abs());
        let features = graph_features(graph);
        self.scores_a.add(a, &features);
        self.scores_b.add(b, &features);
    }

    /// Share of windows with the same verdict.
    pub fn agreement(&self) -> f64 {
        1.0 - (self.gained.0 + self.lost.0) as f64 / self.windows.max(1) as f64
    }

    /// Population stability index of the second's scores against the first's.
    pub fn psi(&self) -> Option<f64> {
        self.scores_b.psi(&self.scores_a).first().map(|(_, psi)| *psi)
    }

    /// The difference that a share `q` of all windows stays within.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.differences.len().checked_sub(1)?;
        self.differences.get((last as f64 * q).round() as usize).copied()
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
        writeln!(f, "windows             {} ({} refused by a model)", self.windows, self.refused)?;
        writeln!(f, "same verdict        {:.2} %", 100.0 * self.agreement())?;
        writeln!(f, "detections          {} and {}", self.detections_a, self.detections_b)?;
        writeln!(
            f,
            "score difference    median {}, 95 % {}, greatest {}",
            show(self.quantile(0.5)),
            show(self.quantile(0.95)),
            show(self.quantile(1.0))
        )?;
        writeln!(f, "score stability     {} (below 0.1: alike)", show(self.psi()))?;
        for (what, (count, kept)) in [("gained", &self.gained), ("lost", &self.lost)] {
            writeln!(f, "detections {what:<8} {count}")?;
            for d in kept.iter().take(20) {
                writeln!(f, "  {} {:<40} {:.3} -> {:.3}", time::format(d.end_ms), d.endpoint, d.a, d.b)?;
            }
            if *count > 20 {
                writeln!(f, "  and {} more", count - 20)?;
            }
        }
        Ok(())
    }
}

/// Scores the windows of `platform` below `input` with both models.
///
/// # Errors
/// Captures that cannot be read.
pub fn compare(
    input: &Path,
    platform: Platform,
    a: &Models,
    b: &Models,
    config: &ReplayConfig,
    threshold: f64,
) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    let mut batch: Vec<(String, TimeMs, Arc<WindowGraph>)> = Vec::new();
    let mut judge = |batch: &mut Vec<(String, TimeMs, Arc<WindowGraph>)>| {
        let graphs = || batch.iter().map(|(_, _, graph)| (graph.clone(), None));
        let (by_a, by_b) = (a.scorer().score_all(graphs()), b.scorer().score_all(graphs()));
        for ((endpoint, end_ms, graph), scores) in batch.drain(..).zip(by_a.into_iter().zip(by_b)) {
            match scores {
                (Ok(a), Ok(b)) => {
                    comparison.add(&endpoint, end_ms, &graph, a.attack_prob, b.attack_prob, threshold);
                }
                _ => comparison.refused += 1,
            }
        }
    };
    replay(
        input,
        None,
        config,
        |topic| topic.platform() == platform,
        |window| {
            let graph = graph_of(&window);
            if graph.num_nodes() >= 2 {
                batch.push((window.endpoint.key().to_owned(), window.end_ms, Arc::new(graph)));
            }
            if batch.len() == BATCH {
                judge(&mut batch);
            }
        },
    )?;
    judge(&mut batch);
    comparison.differences.sort_by(f64::total_cmp);
    Ok(comparison)
}
