//! The dataflow of one worker: reads like the diagram in `ARCHITECTURE.md`, one line an operator.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use logster_operators::correlate::{CorrelateConfig, CorrelateMetrics, correlate};
use logster_operators::dedup::{DedupConfig, DedupMetrics, dedup};
use logster_operators::infer::{InferConfig, InferMetrics};
use logster_operators::rules::{RuleSet, RulesMetrics, rules};
use logster_operators::window::{
    BacklogEntry, BacklogReport, ClosedWindow, Credit, Pane, WindowConfig, WindowLinks, WindowMetrics, window,
};
use logster_schema::InferenceResult;
use prometheus::Histogram;
use timely::dataflow::operators::vec::Map;
use timely::dataflow::operators::{Inspect, Probe};
use timely::dataflow::{ProbeHandle, Scope, StreamVec};
use timely::scheduling::SyncActivator;

use crate::checkpoint::Restored;
use crate::commit::shell::{CommitLinks, OfShard, commit_alerts, commit_results, links};
use crate::commit::{BacklogChange, BacklogLog, Committer, EPOCH_MS};
use crate::metrics::STAGES;
use crate::source::{Assigned, Reader, SourceConfig, SourceLinks, SourceMetrics, source};

/// Settings of every operator.
#[derive(Clone)]
pub struct TopologyConfig {
    /// Parts of the key space.
    pub shards: u32,
    /// Source.
    pub source: SourceConfig,
    /// Rules, if there are any.
    pub rules: Option<Arc<RuleSet>>,
    /// Windows.
    pub window: WindowConfig,
    /// Verdicts.
    pub infer: InferConfig,
    /// Dedup.
    pub dedup: DedupConfig,
    /// Correlation.
    pub correlate: CorrelateConfig,
    /// Windows of one worker between closing and verdict.
    pub windows_under_way: usize,
    /// Whether epochs carry checkpoints.
    pub checkpointing: bool,
}

/// Counters of every operator of one worker.
#[derive(Clone)]
pub struct TopologyMetrics {
    /// Source.
    pub source: SourceMetrics,
    /// Rules.
    pub rules: RulesMetrics,
    /// Windows.
    pub window: WindowMetrics,
    /// Verdicts.
    pub infer: InferMetrics,
    /// Dedup.
    pub dedup: DedupMetrics,
    /// Correlation.
    pub correlate: CorrelateMetrics,
    /// Records that each of [`crate::metrics::STAGES`] hands on in one go.
    pub batches: [Histogram; STAGES.len()],
}

/// What the worker's loop holds of its dataflow.
pub struct Built {
    /// For the driver of the transactions.
    pub commits: CommitLinks,
    /// Floors whose transaction is committed: from the driver to the source.
    pub floors: Rc<RefCell<Vec<(usize, i64)>>>,
    /// Frontier of committed alerts, all workers: the run is over when it is empty.
    pub alerts_committed: ProbeHandle<u64>,
    /// Frontier of scored windows, all workers: the watermark.
    pub scored: ProbeHandle<u64>,
}

/// Builds the dataflow. `judge` turns closed windows into verdicts: the model, or what a test has in its place.
#[allow(clippy::too_many_arguments, reason = "one call, from the engine, of what only the engine has")]
pub fn build<'scope, R: Reader + 'static, P: Pane>(
    scope: Scope<'scope, u64>,
    config: &TopologyConfig,
    restored: &Restored,
    assigned: Vec<Assigned>,
    reader: impl FnOnce(SyncActivator, &[Assigned]) -> R,
    judge: impl FnOnce(StreamVec<'scope, u64, ClosedWindow<P>>, Rc<Credit>) -> StreamVec<'scope, u64, InferenceResult>,
    metrics: TopologyMetrics,
    failed: Rc<RefCell<Option<anyhow::Error>>>,
) -> Built {
    let shards = config.shards;
    let (index, peers) = (scope.index() as u32, scope.peers() as u32);
    let mine = |shard: &u32| *shard % peers == index;
    let (scored, results_committed, alerts_committed) = (ProbeHandle::new(), ProbeHandle::new(), ProbeHandle::new());
    let floors = Rc::new(RefCell::new(Vec::new()));
    let states: BacklogLog = Rc::new(RefCell::new(VecDeque::new()));
    let credit = Credit::new(config.windows_under_way);
    let commits = links(Committer::new(
        config.checkpointing,
        restored.shards.iter().filter(|(shard, _)| mine(shard)).map(|(shard, c)| (*shard, c.clone())).collect(),
        restored.tenants.iter().filter(|(shard, _)| mine(shard)).map(|(shard, c)| (*shard, c.clone())).collect(),
        states.clone(),
    ));
    let source_links = SourceLinks {
        scored: scored.clone(),
        results_committed: results_committed.clone(),
        pending: Rc::new({
            let commits = commits.clone();
            move || commits.borrow_mut().committer().pending()
        }),
        committed_floors: floors.clone(),
        failed,
        metrics: metrics.source,
    };
    let window_links = WindowLinks {
        credit: credit.clone(),
        backlogs: config.checkpointing.then(|| BacklogReport {
            epoch_ms: EPOCH_MS as i64,
            report: Rc::new(move |boundary, entries| {
                let mut by_shard: BTreeMap<u32, Vec<BacklogEntry>> = BTreeMap::new();
                entries.into_iter().for_each(|e| by_shard.entry(e.endpoint.shard(shards)).or_default().push(e));
                let changes =
                    by_shard.into_iter().map(|(shard, e)| (boundary as u64, BacklogChange { shard, entries: e }));
                states.borrow_mut().extend(changes);
            }),
        }),
        restored: Rc::new(restored.windows(shards)),
        metrics: metrics.window,
    };

    let [normalized, closed, judged, changed, raised_batches] =
        metrics.batches.map(|histogram| move |records: usize| histogram.observe(records as f64));

    let raw = source(scope, assigned, reader, config.source.clone(), source_links);
    let observations = raw.observations.inspect_batch(move |_, b| normalized(b.len()));
    let observations = rules(observations, config.rules.clone(), metrics.rules);
    let windows = window::<P>(observations, config.window, shards, window_links);
    let windows = windows.inspect_batch(move |_, b| closed(b.len()));
    let results = judge(windows, credit).probe_with(&scored);
    let results = results.inspect_batch(move |_, b| judged(b.len()));
    let alerts = dedup(results.clone(), raw.transitions, config.dedup, restored.dedup(), metrics.dedup);
    let verdicts = results.map(move |r| OfShard { shard: r.endpoint().shard(shards), record: r.to_output() });
    let changes = alerts
        .changes
        .inspect_batch(move |_, b| changed(b.len()))
        .map(move |c| OfShard { shard: c.endpoint().shard(shards), record: c });
    let released = commit_results(raw.published, verdicts, changes, commits.clone()).probe_with(&results_committed);
    let raised = correlate(released, config.correlate, restored.correlation(), metrics.correlate);
    let raised = raised.inspect_batch(move |_, b| raised_batches(b.len()));
    commit_alerts(raised, commits.clone()).probe_with(&alerts_committed);

    Built { commits, floors, alerts_committed, scored }
}
