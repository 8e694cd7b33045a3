//! Watches the models of a run: how far live windows have drifted from training, and what a shadow model would say.
//!
//! - Input: every window that the model in use scored, with its score ([`Witness`]).
//! - Output: metrics. No result depends on any of this.
//! - State: a [`Distribution`] a platform; windows that wait for the shadow, bounded: what does not fit is counted and
//!   passed over, so that a slow shadow delays nothing.
//! - Failure: a window that the shadow refuses is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use logster_operators::features::graph_features;
use logster_operators::graph::WindowGraph;
use logster_operators::infer::Witness;
use logster_operators::score::drift::Distribution;
use logster_schema::Platform;

use crate::engine::Models;
use crate::metrics::{ModelMetrics, Outcome};

/// Windows that may wait for the shadow.
const WAITING: usize = 1024;
/// Windows that the shadow scores at a time.
const BATCH: usize = 64;
/// Windows between two computations of the drift.
const EVERY: u64 = 64;
/// Windows below which a distribution says nothing yet.
const LEAST_WINDOWS: u64 = 256;

/// Watches `models`, and has the shadow that comes with them score beside them from `threshold` on.
///
/// # Errors
/// The shadow's thread cannot be started.
pub fn witness(mut models: Shadowed<'_>, threshold: f64, metrics: &ModelMetrics) -> std::io::Result<Option<Witness>> {
    let references: BTreeMap<Platform, Distribution> = models
        .active
        .packages()
        .iter()
        .filter_map(|p| Some((p.platform(), p.manifest().reference.as_ref()?.0.clone())))
        .collect();
    let live: BTreeMap<Platform, Mutex<Distribution>> =
        references.keys().map(|platform| (*platform, Mutex::default())).collect();
    let shadow = models.shadow.take().map(|shadow| Shadow::start(shadow, threshold, metrics.clone())).transpose()?;
    if live.is_empty() && shadow.is_none() {
        return Ok(None);
    }
    let metrics = metrics.clone();
    Ok(Some(Arc::new(move |graph: &Arc<WindowGraph>, attack_prob: f64| {
        let platform = graph.platform();
        if let (Some(live), Some(reference)) = (live.get(&platform), references.get(&platform)) {
            let mut live = live.lock().unwrap_or_else(|e| e.into_inner());
            live.add(attack_prob, &graph_features(graph));
            if live.windows() >= LEAST_WINDOWS && live.windows() % EVERY == 0 {
                for (quantity, psi) in live.psi(reference) {
                    metrics.drift(platform, quantity).set(psi);
                }
            }
        }
        if let Some(shadow) = &shadow {
            shadow.offer(graph, attack_prob, &metrics);
        }
    })))
}

/// The models in use, and those beside them.
pub struct Shadowed<'a> {
    /// In use.
    pub active: &'a Models,
    /// Scores beside them.
    pub shadow: Option<Models>,
}

/// A way to the thread that asks the shadow.
struct Shadow {
    platforms: Vec<Platform>,
    windows: Sender<(Arc<WindowGraph>, f64)>,
}

impl Shadow {
    fn start(models: Models, threshold: f64, metrics: ModelMetrics) -> std::io::Result<Self> {
        let platforms = models.packages().iter().map(|p| p.platform()).collect();
        let (windows, waiting) = bounded(WAITING);
        let serve = move || serve(&waiting, &models, threshold, &metrics);
        std::thread::Builder::new().name("shadow".to_owned()).spawn(serve)?;
        Ok(Self { platforms, windows })
    }

    fn offer(&self, graph: &Arc<WindowGraph>, attack_prob: f64, metrics: &ModelMetrics) {
        let platform = graph.platform();
        if self.platforms.contains(&platform) && self.windows.try_send((graph.clone(), attack_prob)).is_err() {
            metrics.shadow(platform, Outcome::Skipped).inc();
        }
    }
}

/// The shadow's thread; ends when nobody can offer windows any more.
fn serve(waiting: &Receiver<(Arc<WindowGraph>, f64)>, models: &Models, threshold: f64, metrics: &ModelMetrics) {
    while let Ok(first) = waiting.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(waiting.try_iter().take(BATCH - 1)).collect();
        let scores = models.scorer().score_all(batch.iter().map(|(graph, _)| (graph.clone(), None)));
        for ((graph, active), score) in batch.iter().zip(scores) {
            let platform = graph.platform();
            let outcome = match &score {
                Err(_) => Outcome::Failed,
                Ok(score) => {
                    metrics.shadow_difference(platform).observe((score.attack_prob - active).abs());
                    match (*active >= threshold, score.attack_prob >= threshold) {
                        (false, true) => Outcome::Gained,
                        (true, false) => Outcome::Lost,
                        _ => Outcome::Agreed,
                    }
                }
            };
            metrics.shadow(platform, outcome).inc();
        }
    }
}
