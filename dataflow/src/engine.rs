//! Runs the dataflow: loads the models, starts the workers, drives their transactions, waits for the end.
//!
//! The command line, the demo, the backtest and the tests all come here; they differ in the [`Plan`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use logster_operators::correlate::{CorrelateConfig, CorrelateMetrics};
use logster_operators::dedup::{DedupConfig, DedupMetrics};
use logster_operators::features::FEATURE_VERSION;
use logster_operators::infer::{InferConfig, InferMetrics, Witness, infer};
use logster_operators::normalize::NormalizeConfig;
use logster_operators::rules::RuleSet;
use logster_operators::score::{Device, ModelPackage, Runtime, Scorer, ScorerConfig};
use logster_operators::window::WindowConfig;
use logster_schema::result::content_id;
use logster_schema::{OutputRecord, Platform, SeverityThresholds};
use logster_sinks::admin::Arrival;
use logster_sinks::epoch::{Epoch, Sink, WriterError};
use logster_sinks::file::FileSink;
use logster_sinks::writer::BrokerClock;
use prometheus::Registry;
use timely::dataflow::ProbeHandle;
use timely::scheduling::SyncActivator;
use timely::worker::Worker;

use crate::checkpoint::Restored;
use crate::cluster::{ClusterConfig, EXIT_SUPERSEDED, connect, exit_on_panic, leave, watch_workers};
use crate::commit::shell::{Driver, WriterThread};
use crate::config::Config;
use crate::config::value;
use crate::failure::{Failure, exit_code, report};
use crate::http::{HealthState, Milestone};
use crate::metrics::{Metrics, Queue, STAGES};
use crate::rules;
use crate::source::file::{FileConfig, FileReader};
use crate::source::kafka::KafkaReader;
use crate::source::{Assigned, NoReader, Reader, SourceConfig, SourceMetrics};
use crate::startup::{self, JobConfig, Taken};
use crate::topology::{self, TopologyConfig, TopologyMetrics};
use crate::watch::{Shadowed, witness};

/// How far a partition may run ahead of what is scored, ms of arrival.
const MAX_AHEAD_MS: i64 = 60_000;
/// Raw records of one activation of the source.
const BATCH: usize = 1024;
/// Records waiting to be written above which nothing is polled.
const MAX_PENDING: usize = 50_000;
/// How long a run that was fenced waits for the generation of whoever did it: a start takes about a second.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(4);
/// How often partitions without new records check in: what a replay needs of them moves on.
const REFRESH: Duration = Duration::from_secs(5);
/// Windows of one worker between closing and verdict.
const WINDOWS_UNDER_WAY: usize = 256;

/// Sees every output record of this process once it is committed, in the order of its epoch.
pub type Observer = Arc<Mutex<dyn FnMut(&OutputRecord) + Send>>;

/// Where a run reads and writes.
#[derive(Clone)]
pub enum Edges {
    /// Captures in; files, if `output.dir` is set, and the observer out.
    Files(FileConfig),
    /// Raw topics in, output topics out, exactly once.
    Kafka(Box<JobConfig>),
}

/// What a run is to do.
pub struct Plan {
    /// Who runs it; `None`: one process of `workers`.
    pub cluster: Option<ClusterConfig>,
    /// Workers of this process.
    pub workers: usize,
    /// Where it reads and writes.
    pub edges: Edges,
    /// Who watches the outputs.
    pub observer: Option<Observer>,
    /// Set from outside: finish the transaction under way, then stop.
    pub stop: Arc<AtomicBool>,
}

/// The models of a run.
pub struct Models {
    packages: Vec<ModelPackage>,
    scorer: Scorer,
    shadow: Option<Box<Models>>,
}

impl Models {
    /// Loads and verifies the packages that the configuration names, one a platform.
    ///
    /// # Errors
    /// No runtime, a package that is refused, a device that cannot be had.
    pub fn load(config: &Config, workers: usize) -> anyhow::Result<Self> {
        let folders = Platform::ALL.map(|platform| (platform, config.model.packages.join(platform.name())));
        let threads = if config.model.threads == 0 { workers } else { config.model.threads as usize };
        let load = |(platform, folder): (Platform, PathBuf)| ModelPackage::load(&folder, platform, FEATURE_VERSION);
        Self::of(config, folders.into_iter().map(load).collect::<Result<_, _>>()?, threads)
    }

    /// The models of these packages, scoring on `threads`.
    ///
    /// # Errors
    /// No runtime, a device that cannot be had, a package that fails its self-test.
    pub fn of(config: &Config, packages: Vec<ModelPackage>, threads: usize) -> anyhow::Result<Self> {
        let library = config.onnx_runtime().ok_or_else(|| {
            Failure::new("ONNX Runtime was not found")
                .at("model.runtime")
                .remedy("run `make setup`, or name libonnxruntime.so with model.runtime or LOGSTER_ONNXRUNTIME")
        })?;
        let runtime = Runtime::load(&library)?;
        let scorer = Scorer::new(
            &runtime,
            &packages,
            ScorerConfig {
                threads,
                device: match config.model.device {
                    value::Device::Cpu => Device::Cpu,
                    value::Device::Cuda => Device::Cuda,
                },
                fallback_to_cpu: config.model.fallback == value::Fallback::Cpu,
                max_batch_edges: config.model.max_batch_edges as usize,
                queue: WINDOWS_UNDER_WAY,
            },
        )?;
        Ok(Self { packages, scorer, shadow: None })
    }

    /// Adds the shadow that the configuration names, if any, on a thread of its own.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn with_shadow(mut self, config: &Config) -> anyhow::Result<Self> {
        if let Some(folder) = &config.model.shadow {
            let folders = Platform::ALL.map(|platform| (platform, folder.join(platform.name())));
            let there: Vec<_> = folders.into_iter().filter(|(_, folder)| folder.is_dir()).collect();
            if there.is_empty() {
                return Err(Failure::new("the shadow has no packages")
                    .at(format!("model.shadow = {}", folder.display()))
                    .remedy("name a directory with a folder `windows` or `linux` that holds a package")
                    .into());
            }
            let load = |(platform, folder): (Platform, PathBuf)| ModelPackage::load(&folder, platform, FEATURE_VERSION);
            let packages = there.into_iter().map(load).collect::<Result<_, _>>()?;
            self.shadow = Some(Box::new(Self::of(config, packages, 1)?));
        }
        Ok(self)
    }

    /// What tells one set of packages from another: the digests of their manifests, by platform, the shadow's too.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let own = self.packages.iter().map(|p| (p.platform().name().to_owned(), p.digest().to_owned()));
        let shadow = self.shadow.iter().flat_map(|s| s.digests()).map(|(p, digest)| (format!("shadow {p}"), digest));
        own.chain(shadow).collect()
    }

    /// Name and version of each platform's model.
    pub fn versions(&self) -> BTreeMap<Platform, String> {
        self.packages.iter().map(|p| (p.platform(), p.model_version())).collect()
    }

    /// What scores with them.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// The packages.
    pub fn packages(&self) -> &[ModelPackage] {
        &self.packages
    }
}

/// Settings of the dataflow.
pub fn topology_config(
    config: &Config,
    models: &Models,
    rules: Option<Arc<RuleSet>>,
    checkpointing: bool,
) -> TopologyConfig {
    let time = config.time_limits();
    let (width_ms, hop_ms) = (config.inference.window.ms(), config.inference.interval.ms());
    TopologyConfig {
        shards: config.cluster.shards,
        source: SourceConfig {
            normalize: NormalizeConfig { time, max_message_bytes: config.input.max_message_bytes.0 as usize },
            batch: BATCH,
            checkpointing,
            max_ahead_ms: MAX_AHEAD_MS,
            replay_ms: width_ms + time.max_skew_ms,
            max_pending: MAX_PENDING,
            refresh: REFRESH,
        },
        rules: rules.clone(),
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
            attack_from: config.alerts.min_threshold,
            model_versions: models.versions(),
            rules,
            rules_from: rules::min_level(config),
        },
        dedup: DedupConfig {
            min_threshold: config.alerts.min_threshold,
            rules_from: rules::min_level(config),
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
        correlate: CorrelateConfig {
            correlation_window_ms: i64::from(config.alerts.correlation_window_seconds) * 1000,
            active_ms: i64::from(config.alerts.dedup_window_seconds) * 1000 + width_ms + hop_ms + time.max_lateness_ms,
            reach_back_ms: time.max_backfill_ms + width_ms + time.max_lateness_ms,
            shards: config.cluster.shards,
            ..CorrelateConfig::default()
        },
        windows_under_way: WINDOWS_UNDER_WAY,
        checkpointing,
    }
}

/// The job on Kafka that the configuration describes.
pub fn job_config(config: &Config, until_end: bool) -> JobConfig {
    let (i, a) = (&config.inference, &config.alerts);
    JobConfig {
        kafka: config.kafka_config(),
        job: config.checkpoint.job.clone(),
        group: config.kafka.group_id.clone(),
        shards: config.cluster.shards,
        semantics: format!(
            "inference.window={}ms inference.interval={}ms input.max_lateness={}ms input.max_skew={}ms \
             input.max_backfill={}ms alerts.dedup_window_seconds={} alerts.correlation_window_seconds={}",
            i.window.ms(),
            i.interval.ms(),
            config.input.max_lateness.ms(),
            config.input.max_skew.ms(),
            config.input.max_backfill.ms(),
            a.dedup_window_seconds,
            a.correlation_window_seconds
        ),
        max_lateness_ms: config.input.max_lateness.ms(),
        arrival: match config.input.arrival {
            value::Arrival::Append => Arrival::Append,
            value::Arrival::Create => Arrival::Create,
        },
        until_end,
        clock: BrokerClock::default(),
        ruleset: None,
    }
}

/// What the processes of a run must agree on, as a digest: settings and rules that results or routing depend on.
///
/// # Errors
/// Rules that a run does not start with.
pub fn fingerprint(config: &Config, models: &Models) -> anyhow::Result<String> {
    let rules = rules::load(config)?;
    let job = job_config(config, false);
    let model = models.digests();
    let text = format!(
        "{} shards={} {} max_events={} min_threshold={} retention={} backfill_windows={} allowlist={:?} \
         models={model:?} rules={:?} from {}",
        env!("CARGO_PKG_VERSION"),
        job.shards,
        job.semantics,
        config.inference.max_events_per_window,
        config.alerts.min_threshold,
        config.alerts.retention.ms(),
        config.input.max_open_backfill_windows,
        config.inference.use_idle_allowlist.then_some(&config.inference.idle_allowlist),
        rules.as_ref().map(|rules| rules.digest()),
        rules::min_level(config),
    );
    Ok(content_id(&[&text]))
}

/// All counters of a process.
#[derive(Clone)]
pub struct AllMetrics {
    /// Those declared in one place.
    pub metrics: Metrics,
    dedup: DedupMetrics,
    correlate: CorrelateMetrics,
}

impl AllMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name that the registry has already.
    pub fn new(registry: &Registry) -> anyhow::Result<Self> {
        let metrics = Metrics::new(registry)?;
        metrics.resolve();
        Ok(Self { metrics, dedup: DedupMetrics::new(registry)?, correlate: CorrelateMetrics::new(registry)? })
    }

    /// Those of one worker.
    pub fn worker(&self, index: usize) -> TopologyMetrics {
        let m = &self.metrics;
        TopologyMetrics {
            source: SourceMetrics {
                raw: m.raw_records.clone(),
                normalized: m.normalized.clone(),
                dead_letters: m.dead_letters.clone(),
                clamped: m.clamped.clone(),
                held_back: m.held_back.clone(),
            },
            rules: m.rules(),
            window: m.window(index),
            infer: InferMetrics {
                results: m.inferences.clone(),
                seconds: m.inference_seconds.clone(),
                under_way: m.queue_depth(index, Queue::Score),
                witness: None,
            },
            dedup: self.dedup.clone(),
            correlate: self.correlate.clone(),
            batches: STAGES.map(|stage| m.batch_size(stage)),
        }
    }
}

/// Where a worker's epochs go, and who watches.
struct Output {
    to: Box<dyn Sink>,
    observer: Option<Observer>,
}

impl Sink for Output {
    fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError> {
        let seen = self.observer.as_ref().map(|_| epoch.records.clone());
        self.to.commit(epoch)?;
        if let (Some(observer), Some(records)) = (&self.observer, seen) {
            let mut observe = observer.lock().map_err(|_| WriterError::Panicked)?;
            for record in &records {
                observe(record);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        self.to.finish()
    }
}

/// Outputs that nobody keeps: the observer has them.
struct Nowhere;

impl Sink for Nowhere {
    fn commit(&mut self, _: Epoch) -> Result<(), WriterError> {
        Ok(())
    }
    fn finish(&mut self) -> Result<(), WriterError> {
        Ok(())
    }
}

/// What every worker of a process has in common.
struct Common {
    /// Workers of this process.
    workers: usize,
    edges: Edges,
    topology: TopologyConfig,
    scorer: Scorer,
    files: Option<FileSink>,
    observer: Option<Observer>,
    stop: Arc<AtomicBool>,
    every: Duration,
    metrics: AllMetrics,
    witness: Option<Witness>,
    health: HealthState,
}

/// Runs to the end of input, or until it is told to stop.
///
/// # Errors
/// An input that cannot be read, an output that cannot be written, a job that cannot be taken over.
pub fn run(
    config: &Config,
    plan: Plan,
    models: Models,
    metrics: &AllMetrics,
    health: &HealthState,
) -> anyhow::Result<()> {
    health.reached(Milestone::ModelLoaded);
    let rules = rules::load(config)?;
    let mut edges = plan.edges;
    if let Edges::Kafka(job) = &mut edges {
        job.ruleset = rules.as_ref().map(|rules| rules.version().to_owned());
    }
    let (files, checkpointing) = match &edges {
        Edges::Files(_) => (config.output.dir.as_deref().map(create_output).transpose()?, false),
        Edges::Kafka(job) => {
            job.check_topics()?;
            (None, true)
        }
    };
    let topology = topology_config(config, &models, rules, checkpointing);
    let mut models = models;
    let shadow = models.shadow.take().map(|shadow| *shadow);
    let watched = Shadowed { active: &models, shadow };
    let witness = witness(watched, config.alerts.min_threshold, &metrics.metrics.models)
        .map_err(|e| Failure::new("the shadow's thread cannot be started").because(e))?;
    let common = Arc::new(Common {
        workers: plan.workers,
        topology,
        witness,
        edges,
        scorer: models.scorer,
        files,
        observer: plan.observer,
        stop: plan.stop,
        every: Duration::from_millis(u64::from(config.checkpoint.epoch_ms)),
        metrics: metrics.clone(),
        health: health.clone(),
    });
    let alone = plan.cluster.is_none() && plan.workers == 1;
    if !alone {
        // A worker that panics would leave the others waiting for ever.
        exit_on_panic();
    }
    let (builders, others, watch) = match &plan.cluster {
        Some(cluster) => connect(cluster)?,
        None => {
            let local = timely::CommunicationConfig::Process(plan.workers);
            let (builders, others) = local.try_build().map_err(Failure::new)?;
            (builders, others, None)
        }
    };
    let work = move |worker: &mut Worker| {
        let ended = work(worker, &common);
        if let Err(error) = &ended {
            if !alone {
                // The other workers wait for this one, and would for ever.
                leave(report(error).trim_start_matches("error: ").trim_end().to_owned(), exit_code(error).into());
            }
            // Timely goes on stepping what is installed, and this dataflow would never come to its end.
            worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
        }
        ended
    };
    let guards = timely::execute::execute_from(builders, others, timely::WorkerConfig::default(), work)
        .map_err(|what| Failure::new(format!("the workers could not be started: {what}")))?;
    let over = Arc::new(AtomicBool::new(false));
    watch_workers({
        let (over, health) = (over.clone(), health.clone());
        // A start may wait long for a broker; what is watched is the work.
        move || (!over.load(Ordering::Relaxed)).then(|| if health.has_begun() { health.not_live() } else { vec![] })
    })?;
    let ended = guards.join();
    over.store(true, Ordering::Relaxed);
    for result in ended {
        result.map_err(|panic| Failure::new(format!("a worker panicked: {panic}")))??;
    }
    if let Some(watch) = watch {
        watch.finished();
    }
    Ok(())
}

/// One worker, from start to end.
fn work(worker: &mut Worker, common: &Common) -> anyhow::Result<()> {
    let (index, peers) = (worker.index(), worker.peers());
    let (assigned, restored, writer, ends, generation): (_, _, Box<dyn Sink>, _, _) = match &common.edges {
        Edges::Files(files) => {
            let sink: Box<dyn Sink> = match &common.files {
                Some(files) => Box::new(files.clone()),
                None => Box::new(Nowhere),
            };
            (files.assign(index, peers), Restored::default(), sink, None, 0)
        }
        Edges::Kafka(job) => {
            let taken = startup::take_over(worker, job.as_ref(), job.shards, &job.semantics, job.max_lateness_ms)?;
            let Taken { mut writer, restored, assigned, ends, generation, topics } = taken;
            if index == 0 && !job.until_end {
                job.watch_topics(topics)?;
            }
            if job.clock.now_ms().is_none() {
                // Floors follow the broker's clock: a first answer of it. An epoch without records writes one.
                writer.commit(Epoch::default())?;
            }
            (assigned, restored, Box::new(writer), job.until_end.then_some(ends), generation)
        }
    };
    let failed: Rc<RefCell<Option<anyhow::Error>>> = Rc::default();
    let open = |wake: SyncActivator, assigned: &[Assigned]| -> Box<dyn Reader> {
        let opened: anyhow::Result<Box<dyn Reader>> = match &common.edges {
            Edges::Files(files) => FileReader::start(files, assigned, index == 0, wake)
                .map(|reader| Box::new(reader) as Box<dyn Reader>)
                .map_err(Into::into),
            Edges::Kafka(job) => {
                let clock = (job.arrival == Arrival::Append).then(|| job.clock.clone());
                KafkaReader::start(&job.kafka, &job.group, assigned, ends, clock, wake)
                    .map(|reader| Box::new(reader) as Box<dyn Reader>)
                    .map_err(Into::into)
            }
        };
        opened.unwrap_or_else(|error| {
            *failed.borrow_mut() = Some(error);
            Box::new(NoReader)
        })
    };
    let mut counters = common.metrics.worker(index);
    counters.infer.witness = common.witness.clone();
    let (asked, answered) = (common.topology.infer.clone(), counters.infer.clone());
    let built = worker.dataflow::<u64, _, _>(|scope| {
        topology::build(
            scope,
            &common.topology,
            &restored,
            assigned,
            open,
            |windows, credit| infer(windows, asked, &common.scorer, credit, answered),
            counters,
            Rc::clone(&failed),
        )
    });
    common.health.reached(Milestone::SourcesAssigned);
    let (metrics, health) = (common.metrics.metrics.clone(), common.health.clone());
    let mut driver = Driver::new(
        built.commits.clone(),
        WriterThread::spawn(Output { to: writer, observer: common.observer.clone() }),
        common.every,
        built.alerts_committed.clone(),
        built.floors,
        Box::new(move |_, took| {
            metrics.commits.inc();
            metrics.commit_seconds.observe(took.as_secs_f64());
            health.reached(Milestone::FirstCommit);
        }),
    );
    let heartbeat = common.health.heartbeat(index % common.workers);
    let lag = common.metrics.metrics.watermark_lag(index);
    let waiting = common.metrics.metrics.queue_depth(index, Queue::Sink);
    let commits = built.commits.clone();
    loop {
        worker.step_or_park(Some(driver.wait()));
        heartbeat.beat();
        waiting.set(commits.borrow_mut().committer().pending() as i64);
        if let Some(seconds) = watermark_lag(&built.scored) {
            lag.set(seconds);
        }
        if let Some(error) = failed.borrow_mut().take() {
            return Err(error);
        }
        let done = driver.poll().map_err(|error| fenced(common, generation, error))?;
        if done && built.alerts_committed.done() {
            break;
        }
        if common.stop.load(Ordering::Relaxed) && driver.is_at_rest() {
            // What is not committed is read again at the next start.
            tracing::info!(worker = index, "stopped between two transactions");
            driver.finish()?;
            worker.drop_dataflow(worker.installed_dataflows().into_iter().max().expect("one is installed"));
            return Ok(());
        }
    }
    driver.finish().context("the outputs could not be completed")
}

/// Says more of a fenced writer, and whether the run is to stay down: only if another owns the job now (protocol
/// rule 5). One that fenced this run and died before it had the job leaves nobody else to go on.
fn fenced(common: &Common, generation: u64, error: WriterError) -> anyhow::Error {
    let Edges::Kafka(job) = &common.edges else { return error.into() };
    if !matches!(error, WriterError::Fenced { .. }) {
        return error.into();
    }
    // Fencing comes first in a start, its generation a moment later.
    let until = Instant::now() + SUCCESSOR_WAIT;
    let owner = loop {
        match startup::successor(job.as_ref(), generation) {
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(250)),
            owner => break owner,
        }
    };
    match owner {
        Some(owner) => Failure::new(format!(
            "another run of job \"{}\" took over (generation {owner}); this one stays down",
            job.job
        ))
        .because(error)
        .code(EXIT_SUPERSEDED as u8)
        .remedy("two runs of one job must not be started; give a second deployment its own checkpoint.job"),
        None => Failure::new(format!("another run began to take job \"{}\" over and has not come to own it", job.job))
            .because(error),
    }
    .into()
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
