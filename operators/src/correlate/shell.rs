//! The timely operators around [`Spans`] and [`Tenants`], and the collections between them.

use differential_dataflow::algorithms::graphs::propagate::propagate;
use differential_dataflow::{AsCollection, VecCollection};
use prometheus::{IntCounter, IntGaugeVec, Opts, Registry};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Map;
use timely::dataflow::operators::{CapabilitySet, Concatenate, OkErr};

use super::spans::{Admitted, Slot, Span, Spans};
use super::tenants::{Input, Tenants};
use super::{AlertChange, CorrelateConfig, Node, TenantChange, TrackedAlert};

/// The state of the tenants of one shard as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoredTenants {
    /// Which.
    pub shard: u32,
    /// Everything below is in `alerts`.
    pub frontier: u64,
    /// The last state of each alert that was not let go.
    pub alerts: Vec<TrackedAlert>,
}

/// Counters of the operator, shared by the workers of a process.
#[derive(Clone)]
pub struct CorrelateMetrics {
    published: IntCounter,
    lateral: IntCounter,
    overflow: IntCounter,
    held: IntGaugeVec,
}

impl CorrelateMetrics {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            published: IntCounter::new("logster_alert_records_total", "Alert records published.")?,
            lateral: IntCounter::new(
                "logster_lateral_movements_total",
                "Pairs of alerts in which one endpoint was found to have reached the other.",
            )?,
            overflow: IntCounter::new(
                "logster_alerts_uncorrelated_total",
                "Alerts that opened while too many others were live, published without correlation.",
            )?,
            held: IntGaugeVec::new(
                Opts::new("logster_tenant_alerts", "Alerts held for transitions and correlation, by worker."),
                &["worker"],
            )?,
        };
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.lateral.clone()))?;
        registry.register(Box::new(metrics.overflow.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        Ok(metrics)
    }
}

type Spanned<'scope> = VecCollection<'scope, u64, (Slot, Span), isize>;
type Links<'scope> = VecCollection<'scope, u64, (Node, Node), isize>;

/// Pairs of different endpoints whose spans overlap in a slot, in both directions.
fn links(spans: Spanned<'_>) -> Links<'_> {
    let spans = spans.arrange_by_key();
    let overlap = |a: &Span, b: &Span| a.endpoint != b.endpoint && a.from <= b.to && b.from <= a.to;
    spans.clone().join_core(spans, move |_slot, a, b| overlap(a, b).then_some((a.node, b.node))).distinct()
}

/// The least alert id that each linked alert can reach.
fn incidents<'scope>(links: Links<'scope>) -> VecCollection<'scope, u64, (Node, u128), isize> {
    let own = links.clone().map(|(node, _)| (node, node.id)).distinct();
    propagate(links, own)
}

/// The timely operators. Of `restored`, each worker takes the shards that are routed to it.
pub fn correlate<'scope>(
    changes: StreamVec<'scope, u64, AlertChange>,
    config: CorrelateConfig,
    restored: Vec<RestoredTenants>,
    metrics: CorrelateMetrics,
) -> StreamVec<'scope, u64, TenantChange> {
    let scope = changes.scope();
    let (index, peers) = (scope.index(), scope.peers());
    let restored: Vec<_> = restored.into_iter().filter(|tenants| tenants.shard as usize % peers == index).collect();
    let (spans, admitted) = admit(changes, config, restored.clone(), metrics.clone());

    let links = links(spans.as_collection());
    let incidents = incidents(links.clone());

    let alerts = admitted.map(|(time, admitted)| (time, Input::Alert(admitted)));
    let links = links.inner.map(|((from, to), time, diff)| (time, Input::Link(from, to, diff)));
    let incidents = incidents.inner.map(|((node, id), time, diff)| (time, Input::Incident(node, id, diff)));
    publish(scope.concatenate([alerts, links, incidents]), restored, metrics)
}

type SpanChange = ((Slot, Span), u64, isize);

/// [`Spans`], on the workers of the tenants' shards.
fn admit<'scope>(
    changes: StreamVec<'scope, u64, AlertChange>,
    config: CorrelateConfig,
    restored: Vec<RestoredTenants>,
    metrics: CorrelateMetrics,
) -> (StreamVec<'scope, u64, SpanChange>, StreamVec<'scope, u64, (u64, Admitted)>) {
    let by_tenant = Exchange::new(move |c: &AlertChange| u64::from(c.endpoint().tenant_shard(config.shards)));
    changes
        .unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(by_tenant, "admit", move |initial, _info| {
            let mut core = Spans::new(config);
            let mut held = CapabilitySet::from_elem(initial);
            let mut refed: Vec<_> =
                restored.iter().flat_map(|r| core.restore(r.shard, r.frontier, &r.alerts).spans).collect();
            move |(input, frontier), output| {
                for span in refed.drain(..) {
                    output.session(&held.delayed(&span.1)).give(Ok(span));
                }
                input.for_each_time(|time, batches| {
                    for change in batches.flat_map(|batch| batch.drain(..)) {
                        core.on_change(*time.time(), change);
                    }
                    held.insert(time.retain(output.output_index()));
                });
                let out = core.on_frontier(frontier.frontier().as_option().copied());
                metrics.overflow.inc_by(out.overflow);
                for span in out.spans {
                    output.session(&held.delayed(&span.1)).give(Ok(span));
                }
                for (time, admitted) in out.admitted {
                    output.session(&held.delayed(&time)).give(Err(Box::new((time, admitted))));
                }
                held.downgrade(core.hold());
            }
        })
        .ok_err(|out: Result<SpanChange, Box<(u64, Admitted)>>| out.map_err(|admitted| *admitted))
}

/// [`Tenants`], on the workers of the tenants' shards.
fn publish<'scope>(
    inputs: StreamVec<'scope, u64, (u64, Input)>,
    restored: Vec<RestoredTenants>,
    metrics: CorrelateMetrics,
) -> StreamVec<'scope, u64, TenantChange> {
    let worker = inputs.scope().index().to_string();
    let by_tenant = Exchange::new(move |(_, input): &(u64, Input)| u64::from(input.node().shard));
    inputs.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(by_tenant, "correlate", move |initial, _info| {
        drop(initial); // restored alerts come back as inputs of their frontier
        let mut core = Tenants::default();
        for RestoredTenants { shard, alerts, .. } in restored {
            core.restore(shard, alerts);
        }
        let mut held = CapabilitySet::new();
        move |(input, frontier), output| {
            input.for_each_time(|time, batches| {
                for (at, input) in batches.flat_map(|batch| batch.drain(..)) {
                    core.on_input(at, input);
                }
                held.insert(time.retain(output.output_index()));
            });
            let out = core.on_frontier(frontier.frontier().as_option().copied());
            metrics.lateral.inc_by(out.lateral);
            for (time, change) in out.changes {
                metrics.published.inc_by(u64::from(change.published));
                output.session(&held.delayed(&time)).give(change);
            }
            held.downgrade(core.hold());
            metrics.held.with_label_values(&[&worker]).set(core.len() as i64);
        }
    })
}
