//! The timely operator around [`Dedup`]: routing, capabilities, metrics.

use logster_schema::{AlertUpdate, Endpoint, InferenceResult, TimeMs};
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Map;
use timely::dataflow::operators::{CapabilitySet, Concat, OkErr};

use super::{AlertChange, Dedup, DedupConfig, RefusedTransition, Transition};

/// A shard's state as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoredShard {
    /// Which.
    pub shard: u32,
    /// Everything below is in `alerts`.
    pub frontier: u64,
    /// The last [`AlertChange::Updated`] of each alert that is not forgotten.
    pub alerts: Vec<AlertUpdate>,
}

/// Counters of the operator, shared by the workers of a process.
#[derive(Clone)]
pub struct DedupMetrics {
    opened: IntCounterVec,
    merged: IntCounter,
    refused: IntCounterVec,
    held: IntGaugeVec,
}

impl DedupMetrics {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            opened: IntCounterVec::new(
                Opts::new("logster_alerts_opened_total", "Alerts opened, by the severity they opened with."),
                &["severity"],
            )?,
            merged: IntCounter::new("logster_dedup_hits_total", "Detections merged into an open alert.")?,
            refused: IntCounterVec::new(
                Opts::new("logster_transitions_refused_total", "Analysts' transitions refused, by reason."),
                &["reason"],
            )?,
            held: IntGaugeVec::new(
                Opts::new("logster_dedup_alerts", "Alerts held, by worker and whether they take detections."),
                &["worker", "state"],
            )?,
        };
        registry.register(Box::new(metrics.opened.clone()))?;
        registry.register(Box::new(metrics.merged.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        Ok(metrics)
    }
}

/// Streams of the operator, on the workers of the endpoints' shards.
pub struct DedupStreams<'scope> {
    /// Each at its time: both the tenant stage's input and, last of each alert, the shard's checkpoint.
    pub changes: StreamVec<'scope, u64, AlertChange>,
    /// Transitions that changed nothing.
    pub refused: StreamVec<'scope, u64, RefusedTransition>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Input {
    Detection(#[serde(with = "logster_schema::wire")] Box<InferenceResult>),
    Transition(Transition),
}

impl Input {
    fn endpoint(&self) -> Endpoint {
        match self {
            Self::Detection(result) => result.endpoint(),
            Self::Transition(transition) => transition.decision.endpoint(),
        }
    }
}

/// The timely operator. Results come at their time (what their window was emitted at), transitions at or
/// before their arrival. Of `restored`, each worker takes the shards that are routed to it.
pub fn dedup<'scope>(
    results: StreamVec<'scope, u64, InferenceResult>,
    transitions: StreamVec<'scope, u64, Transition>,
    config: DedupConfig,
    restored: Vec<RestoredShard>,
    metrics: DedupMetrics,
) -> DedupStreams<'scope> {
    let scope = results.scope();
    let (index, peers) = (scope.index(), scope.peers());
    let detections = results.flat_map(move |result| {
        let is_detection = config.is_detection(&result);
        is_detection.then(|| Input::Detection(Box::new(result)))
    });
    let by_shard = Exchange::new(move |input: &Input| u64::from(input.endpoint().shard(config.shards)));
    let (changes, refused) = detections
        .concat(transitions.map(Input::Transition))
        .unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(by_shard, "dedup", move |initial, _info| {
            let mut core = Dedup::new(config);
            for RestoredShard { shard, frontier, alerts } in restored {
                if shard as usize % peers == index {
                    core.restore(shard, frontier, alerts);
                }
            }
            let mut held = CapabilitySet::from_elem(initial);
            move |(input, frontier), output| {
                input.for_each_time(|time, batches| {
                    for item in batches.flat_map(|batch| batch.drain(..)) {
                        match item {
                            Input::Detection(result) => core.on_detection(*time.time(), result),
                            Input::Transition(mut transition) => {
                                transition.arrival_ms = transition.arrival_ms.max(*time.time() as TimeMs);
                                core.on_transition(transition);
                            }
                        }
                    }
                    held.insert(time.retain(output.output_index()));
                });
                let frontier = frontier.frontier().as_option().copied();
                let out = core.on_frontier(frontier);
                for severity in &out.opened {
                    metrics.opened.with_label_values(&[severity.name()]).inc();
                }
                metrics.merged.inc_by(out.merged);
                for (_, refused) in &out.refused {
                    metrics.refused.with_label_values(&[refused.reason.name()]).inc();
                }
                // `downgrade` keeps to the times that outputs may still have; an ended input has none.
                for (time, change) in out.changes {
                    output.session(&held.delayed(&time)).give(Ok(change));
                }
                for (time, refused) in out.refused {
                    output.session(&held.delayed(&time)).give(Err(Box::new(refused)));
                }
                held.downgrade(frontier.and_then(|_| core.hold()));
                let (alerts, mergeable) = core.sizes();
                let worker = index.to_string();
                metrics.held.with_label_values(&[&worker, "mergeable"]).set(mergeable as i64);
                metrics.held.with_label_values(&[&worker, "kept"]).set((alerts - mergeable) as i64);
            }
        })
        .ok_err(|out: Result<AlertChange, Box<RefusedTransition>>| out);
    DedupStreams { changes, refused: refused.map(|refused| *refused) }
}
