//! Runs the dataflow: loads the models, starts the workers, drives their transactions, waits for the end.
//!
//! The command line, the demo, the backtest and the tests all come here; they differ in the [`Plan`].

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use logster_operators::dedup::{DedupConfig, DedupMetrics};
use logster_operators::features::FEATURE_VERSION;
use logster_operators::infer::{InferConfig, InferMetrics};
use logster_operators::normalize::NormalizeConfig;
use logster_operators::score::{Device, ModelPackage, Runtime, Scorer, ScorerConfig};
use logster_operators::window::WindowConfig;
use logster_schema::{OutputRecord, Platform, SeverityThresholds};
use logster_sinks::epoch::{Epoch, Sink, WriterError};
use logster_sinks::file::FileSink;
use prometheus::Registry;
use timely::dataflow::ProbeHandle;

use crate::checkpoint::Restored;
use crate::commit::shell::Driver;
use crate::config::Config;
use crate::config::value;
use crate::failure::Failure;
use crate::http::{HealthState, Milestone};
use crate::metrics::{Metrics, Queue};
use crate::source::file::{FileConfig, FileReader};
use crate::source::{SourceConfig, SourceMetrics};
use crate::topology::{self, TopologyConfig, TopologyMetrics};

/// How far a partition may run ahead of what is scored, ms of arrival.
const MAX_AHEAD_MS: i64 = 60_000;
/// Raw records of one activation of the source.
const BATCH: usize = 1024;
/// Records waiting to be written above which nothing is polled.
const MAX_PENDING: usize = 50_000;
/// Windows of one worker between closing and verdict.
const WINDOWS_UNDER_WAY: usize = 256;

/// Where a run's workers and processes are.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Workers of this process.
    pub workers: usize,
}

/// Sees every output record of this process once it is committed, in the order of its epoch.
pub type Observer = Arc<Mutex<dyn FnMut(&OutputRecord) + Send>>;

/// What a run is to do.
pub struct Plan {
    /// Who runs it.
    pub cluster: Cluster,
    /// Files to play.
    pub files: FileConfig,
    /// Who watches the outputs.
    pub observer: Option<Observer>,
}

/// The models of a run.
pub struct Models {
    packages: Vec<ModelPackage>,
    scorer: Scorer,
}

impl Models {
    /// Loads and verifies the packages that the configuration names, one a platform.
    ///
    /// # Errors
    /// No runtime, a package that is refused, a device that cannot be had.
    pub fn load(config: &Config, workers: usize) -> anyhow::Result<Self> {
        let library = config.onnx_runtime().ok_or_else(|| {
            Failure::new("ONNX Runtime was not found")
                .at("model.runtime")
                .remedy("run `make setup`, or name libonnxruntime.so with model.runtime or LOGSTER_ONNXRUNTIME")
        })?;
        let runtime = Runtime::load(&library)?;
        let packages = Platform::ALL
            .into_iter()
            .map(|platform| ModelPackage::load(&config.model.packages.join(platform.name()), platform, FEATURE_VERSION))
            .collect::<Result<Vec<_>, _>>()?;
        let scorer = Scorer::new(
            &runtime,
            &packages,
            ScorerConfig {
                threads: if config.model.threads == 0 { workers } else { config.model.threads as usize },
                device: match config.model.device {
                    value::Device::Cpu => Device::Cpu,
                    value::Device::Cuda => Device::Cuda,
                },
                fallback_to_cpu: config.model.fallback == value::Fallback::Cpu,
                max_batch_edges: config.model.max_batch_edges as usize,
                queue: WINDOWS_UNDER_WAY,
            },
        )?;
        Ok(Self { packages, scorer })
    }

    /// Name and version of each platform's model.
    pub fn versions(&self) -> BTreeMap<Platform, String> {
        self.packages.iter().map(|p| (p.platform(), p.model_version())).collect()
    }

    /// The packages.
    pub fn packages(&self) -> &[ModelPackage] {
        &self.packages
    }
}

/// Settings of the dataflow.
pub fn topology_config(config: &Config, models: &Models, checkpointing: bool) -> TopologyConfig {
    let time = config.time_limits();
    let (width_ms, hop_ms) = (config.inference.window.ms(), config.inference.interval.ms());
    TopologyConfig {
        shards: config.cluster.shards,
        source: SourceConfig {
            normalize: NormalizeConfig { time, max_message_bytes: config.input.max_message_bytes.0 as usize },
            batch: BATCH,
            max_ahead_ms: MAX_AHEAD_MS,
            replay_ms: width_ms + time.max_skew_ms,
            max_pending: MAX_PENDING,
        },
        window: WindowConfig {
            width_ms,
            hop_ms,
            max_lateness_ms: time.max_lateness_ms,
            max_events: config.inference.max_events_per_window as usize,
            max_open_backfill: config.input.max_open_backfill_windows as usize,
        },
        infer: InferConfig {
            idle_allowlist: config
                .inference
                .use_idle_allowlist
                .then(|| Arc::new(config.inference.idle_allowlist.iter().cloned().collect())),
            model_versions: models.versions(),
        },
        dedup: DedupConfig {
            min_threshold: config.alerts.min_threshold,
            dedup_window_ms: i64::from(config.alerts.dedup_window_seconds) * 1000,
            // A backfill window closes at most a window after it opened; one interval and lateness on top.
            margin_ms: width_ms + hop_ms + time.max_lateness_ms,
            retention_ms: config.alerts.retention.ms(),
            shards: config.cluster.shards,
            severity: SeverityThresholds {
                high: config.alerts.high_threshold,
                critical: config.alerts.critical_threshold,
            },
            ..DedupConfig::default()
        },
        windows_under_way: WINDOWS_UNDER_WAY,
        checkpointing,
    }
}

/// All counters of a process.
#[derive(Clone)]
pub struct AllMetrics {
    /// Those declared in one place.
    pub metrics: Metrics,
    dedup: DedupMetrics,
}

impl AllMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name that the registry has already.
    pub fn new(registry: &Registry) -> anyhow::Result<Self> {
        let metrics = Metrics::new(registry)?;
        metrics.resolve();
        Ok(Self { metrics, dedup: DedupMetrics::new(registry)? })
    }

    fn worker(&self, index: usize) -> TopologyMetrics {
        let m = &self.metrics;
        TopologyMetrics {
            source: SourceMetrics {
                raw: m.raw_records.clone(),
                normalized: m.normalized.clone(),
                dead_letters: m.dead_letters.clone(),
                clamped: m.clamped.clone(),
                held_back: m.held_back.clone(),
            },
            window: m.window(index),
            infer: InferMetrics {
                results: m.inferences.clone(),
                seconds: m.inference_seconds.clone(),
                under_way: m.queue_depth(index, Queue::Score),
            },
            dedup: self.dedup.clone(),
        }
    }
}

/// Writes to files, if there are any, and shows the observer what is written.
#[derive(Clone)]
struct Embedded {
    files: Option<FileSink>,
    observer: Option<Observer>,
}

impl Sink for Embedded {
    fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError> {
        if let Some(observer) = &self.observer {
            let mut observe = observer.lock().map_err(|_| WriterError::Panicked)?;
            epoch.records.iter().for_each(|record| observe(record));
        }
        match &mut self.files {
            Some(files) => files.commit(epoch),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        self.files.as_mut().map_or(Ok(()), Sink::finish)
    }
}

/// Runs to the end of input.
///
/// # Errors
/// An input that cannot be read, an output that cannot be written.
pub fn run(
    config: &Config,
    plan: Plan,
    models: Models,
    metrics: &AllMetrics,
    health: &HealthState,
) -> anyhow::Result<()> {
    health.reached(Milestone::ModelLoaded);
    let files = config.output.dir.as_deref().map(create_output).transpose()?;
    let topology_config = topology_config(config, &models, false);
    let scorer = Arc::new(models.scorer);
    let sink = Embedded { files, observer: plan.observer };
    let every = Duration::from_millis(u64::from(config.checkpoint.epoch_ms));
    let shared = (plan.files, metrics.clone(), health.clone(), sink);
    let guards = timely::execute(timely::Config::process(plan.cluster.workers), move |worker| {
        let (files, metrics, health, sink) = shared.clone();
        let (index, peers) = (worker.index(), worker.peers());
        let assigned = files.assign(index, peers);
        let failed = Rc::default();
        let reader_failed: Rc<std::cell::RefCell<Option<anyhow::Error>>> = Rc::clone(&failed);
        let built = worker.dataflow::<u64, _, _>(|scope| {
            topology::build(
                scope,
                &topology_config,
                &Arc::new(Restored::default()),
                assigned,
                |wake, assigned| match FileReader::start(&files, assigned, index == 0, wake) {
                    Ok(reader) => reader,
                    Err(error) => {
                        *reader_failed.borrow_mut() = Some(error.into());
                        FileReader::ended()
                    }
                },
                &scorer,
                metrics.worker(index),
                Rc::clone(&failed),
            )
        });
        health.reached(Milestone::SourcesAssigned);
        let commit_metrics = metrics.metrics.clone();
        let committed = health.clone();
        let mut driver = Driver::new(
            built.commits,
            sink,
            every,
            built.alerts_committed.clone(),
            built.floors,
            Box::new(move |_, took| {
                commit_metrics.commits.inc();
                commit_metrics.commit_seconds.observe(took.as_secs_f64());
                committed.reached(Milestone::FirstCommit);
            }),
        );
        let heartbeat = health.heartbeat(index);
        let lag = metrics.metrics.watermark_lag(index);
        loop {
            worker.step_or_park(Some(driver.wait()));
            heartbeat.beat();
            if let Some(seconds) = watermark_lag(&built.scored) {
                lag.set(seconds);
            }
            if let Some(error) = failed.borrow_mut().take() {
                return Err(error);
            }
            if driver.poll()? && built.alerts_committed.done() {
                break;
            }
        }
        driver.finish().context("the outputs could not be completed")
    })
    .map_err(|what| Failure::new(format!("the workers could not be started: {what}")))?;
    for result in guards.join() {
        result.map_err(|panic| Failure::new(format!("a worker panicked: {panic}")))??;
    }
    Ok(())
}

/// Seconds from the watermark to now, while there is one.
fn watermark_lag(scored: &ProbeHandle<u64>) -> Option<f64> {
    let watermark = scored.with_frontier(|f| f.first().copied()).filter(|ms| *ms > 0)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some((now.as_secs_f64() - watermark as f64 / 1000.0).max(0.0))
}

fn create_output(dir: &Path) -> anyhow::Result<FileSink> {
    Ok(FileSink::create(dir).map_err(|error| {
        Failure::new("the output directory cannot be written").at(dir.display().to_string()).because(error)
    })?)
}
