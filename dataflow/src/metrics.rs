//! Every metric of the dataflow, registered once, updated once per activation.
//!
//! - Names begin with `logster_`, in base units (seconds, bytes).
//! - Labels are bounded sets: raw topic, reason, platform, severity, stage, queue, worker. Never an endpoint.
//! - Counters are shared by all workers of the process. Gauges that each worker sets for itself have a
//!   `worker` label; add them up, or take the greatest, when querying.
//!
//! [`Metrics::new`] builds them from a registry; [`Metrics::worker`] gives a worker its handles, with every
//! label resolved, so that an update is one atomic addition. `docs/generated/metrics.md` is made from here.

use std::array;
use std::fmt::Write;

use logster_schema::{DeadLetterReason, Lane, Platform, Prediction, RawTopic, Severity};
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

/// A stage that handles records in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Raw records to events.
    Normalize,
    /// Events to windows and graphs.
    Window,
    /// Graphs to verdicts.
    Score,
    /// Detections to alerts.
    Dedup,
    /// Alerts to incidents.
    Correlate,
    /// Outputs to their topics.
    Sink,
}

impl Stage {
    /// Every stage, in the order of the flow.
    pub const ALL: [Self; 6] = [Self::Normalize, Self::Window, Self::Score, Self::Dedup, Self::Correlate, Self::Sink];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normalize => "normalize",
            Self::Window => "window",
            Self::Score => "score",
            Self::Dedup => "dedup",
            Self::Correlate => "correlate",
            Self::Sink => "sink",
        }
    }
}

/// A bounded queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Raw records read and not yet normalized.
    Input,
    /// Graphs waiting for the model.
    Score,
    /// Outputs waiting for their commit.
    Sink,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 3] = [Self::Input, Self::Score, Self::Sink];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Score => "score",
            Self::Sink => "sink",
        }
    }
}

/// Where raw records and dead letters come from: a raw topic, or a line that names none.
const SOURCES: usize = RawTopic::ALL.len() + 1;
const UNKNOWN: &str = "unknown";

fn source_index(topic: Option<RawTopic>) -> usize {
    topic.map_or(RawTopic::ALL.len(), |topic| topic as usize)
}

fn source_names() -> [&'static str; SOURCES] {
    array::from_fn(|i| RawTopic::ALL.get(i).map_or(UNKNOWN, |topic| topic.name()))
}

/// Refusals of the content itself; the rest concern its size, its nesting or a file's envelope.
const fn is_parse_error(reason: DeadLetterReason) -> bool {
    use DeadLetterReason::{Empty, InvalidEncoding, InvalidJson, MissingContent, NotAnObject, TooDeep};
    matches!(reason, Empty | InvalidEncoding | InvalidJson | TooDeep | NotAnObject | MissingContent)
}

/// All metrics of a process. Clones share the same numbers.
#[derive(Clone)]
pub struct Metrics {
    shared: Shared,
    active_endpoints: IntGaugeVec,
    state_bytes: IntGaugeVec,
    watermark_lag: GaugeVec,
    open_windows: IntGaugeVec,
    queue_depth: IntGaugeVec,
    backpressure: IntGaugeVec,
    dead_letters: IntCounterVec,
    parse_errors: IntCounterVec,
}

/// What workers have in common, labels resolved.
#[derive(Clone)]
struct Shared {
    raw_records: [IntCounter; SOURCES],
    raw_bytes: [IntCounter; SOURCES],
    normalized: [IntCounter; RawTopic::ALL.len()],
    late: IntCounter,
    clamped: IntCounter,
    sampled: IntCounter,
    windows: [[IntCounter; 2]; 2],
    inferences: [[IntCounter; 3]; 2],
    inference_seconds: Histogram,
    batch_size: [Histogram; Stage::ALL.len()],
    alerts: [IntCounter; 3],
    dedup_hits: IntCounter,
    lateral: IntCounter,
    commits: IntCounter,
    commit_seconds: Histogram,
    stalls: IntCounter,
}

/// One worker's handles. Cheap to clone and to move to a thread.
#[derive(Clone)]
pub struct WorkerMetrics {
    shared: Shared,
    dead_letters: [[IntCounter; DeadLetterReason::ALL.len()]; SOURCES],
    parse_errors: [[Option<IntCounter>; DeadLetterReason::ALL.len()]; SOURCES],
    queue_depth: [IntGauge; Queue::ALL.len()],
    /// Endpoints with an open live window.
    pub active_endpoints: IntGauge,
    /// Bytes held by windows and graphs.
    pub state_bytes: IntGauge,
    /// Windows open, live and backfill.
    pub open_windows: IntGauge,
    /// Seconds from the watermark to now.
    pub watermark_lag: Gauge,
    backpressure: IntGauge,
}

struct Builder<'a> {
    registry: &'a Registry,
}

impl Builder<'_> {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> prometheus::Result<C> {
        let metric = made?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
}

impl Metrics {
    /// Registers every metric in `registry`.
    ///
    /// # Errors
    /// A name that `registry` has already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let b = Builder { registry };
        let sources = source_names();
        let by_source = |vec: IntCounterVec| sources.map(|source| vec.with_label_values(&[source]));
        let platforms = Platform::ALL.map(Platform::name);

        let build = b.gauges("logster_build_info", "Always 1; the label says which version runs.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let normalized =
            b.counters("logster_normalized_events_total", "Raw records that became normalized events.", &["source"])?;
        let windows = b.counters(
            "logster_windows_total",
            "Windows with activity that were closed, by platform and lane (live or backfill).",
            &["platform", "lane"],
        )?;
        let inferences = b.counters(
            "logster_inferences_total",
            "Verdicts on windows, by platform and prediction.",
            &["platform", "prediction"],
        )?;
        let predictions = [Prediction::Benign, Prediction::Attack, Prediction::Error].map(Prediction::name);
        let batch_opts = HistogramOpts::new("logster_batch_size", "Records that one activation of a stage handled.");
        let batch_opts = batch_opts.buckets(exponential_buckets(1.0, 4.0, 9)?);
        let batch_size = b.add(HistogramVec::new(batch_opts, &["stage"]))?;
        let alerts = b.counters("logster_alerts_total", "Alerts raised, by severity at that moment.", &["severity"])?;

        Ok(Self {
            shared: Shared {
                raw_records: by_source(b.counters(
                    "logster_raw_records_total",
                    "Raw records read. Equals normalized events plus dead letters once a run has come to rest.",
                    &["source"],
                )?),
                raw_bytes: by_source(b.counters(
                    "logster_raw_bytes_total",
                    "Bytes of raw records read.",
                    &["source"],
                )?),
                normalized: RawTopic::ALL.map(|topic| normalized.with_label_values(&[topic.name()])),
                late: b.counter(
                    "logster_late_events_total",
                    "Events older than input.max_lateness at their arrival, sent to the backfill.",
                )?,
                clamped: b.counter(
                    "logster_clamped_events_total",
                    "Events whose time lay beyond input.max_skew or input.max_backfill and was moved.",
                )?,
                sampled: b.counter(
                    "logster_sampled_events_total",
                    "Events left out of a graph because their endpoint was over inference.max_events_per_window.",
                )?,
                windows: platforms.map(|p| ["live", "backfill"].map(|lane| windows.with_label_values(&[p, lane]))),
                inferences: platforms.map(|p| predictions.map(|name| inferences.with_label_values(&[p, name]))),
                inference_seconds: b.histogram(
                    "logster_inference_seconds",
                    "Time of one call of the model, for all the graphs of its batch.",
                    exponential_buckets(0.0005, 2.0, 14)?,
                )?,
                batch_size: Stage::ALL.map(|stage| batch_size.with_label_values(&[stage.name()])),
                alerts: [Severity::Medium, Severity::High, Severity::Critical]
                    .map(|severity| alerts.with_label_values(&[severity.name()])),
                dedup_hits: b.counter(
                    "logster_dedup_hits_total",
                    "Detections merged into an open alert instead of raising one.",
                )?,
                lateral: b.counter(
                    "logster_lateral_movements_total",
                    "Links between alerts of two endpoints of which one's network events reached the other.",
                )?,
                commits: b
                    .counter("logster_epoch_commits_total", "Epochs committed: outputs with their checkpoint.")?,
                commit_seconds: b.histogram(
                    "logster_epoch_commit_seconds",
                    "Time from the end of an epoch to its commit.",
                    exponential_buckets(0.001, 2.0, 14)?,
                )?,
                stalls: b.counter(
                    "logster_backpressure_stalls_total",
                    "Times that a source stopped reading because a queue was full.",
                )?,
            },
            active_endpoints: b.gauges(
                "logster_active_endpoints",
                "Endpoints with an open live window.",
                &["worker"],
            )?,
            state_bytes: b.gauges("logster_window_state_bytes", "Bytes held by windows and graphs.", &["worker"])?,
            open_windows: b.gauges("logster_open_windows", "Windows open, live and backfill.", &["worker"])?,
            watermark_lag: b.add(GaugeVec::new(
                Opts::new("logster_watermark_lag_seconds", "Seconds from the input's watermark to now."),
                &["worker"],
            ))?,
            queue_depth: b.gauges(
                "logster_queue_depth",
                "Entries waiting in a bounded queue.",
                &["worker", "queue"],
            )?,
            backpressure: b.gauges(
                "logster_backpressure_active",
                "1 while the source does not read because a queue is full.",
                &["worker"],
            )?,
            dead_letters: b.counters(
                "logster_dead_letters_total",
                "Raw records refused and written to logster-dead-letters, by source and reason.",
                &["source", "reason"],
            )?,
            parse_errors: b.counters(
                "logster_parse_errors_total",
                "Raw records whose content could not be parsed, by source and reason. Dead letters too.",
                &["source", "reason"],
            )?,
        })
    }

    /// The handles of worker `index` of this process.
    pub fn worker(&self, index: usize) -> WorkerMetrics {
        let worker = index.to_string();
        let worker = [worker.as_str()];
        let sources = source_names();
        let reasons = DeadLetterReason::ALL;
        WorkerMetrics {
            shared: self.shared.clone(),
            dead_letters: sources
                .map(|source| reasons.map(|reason| self.dead_letters.with_label_values(&[source, reason.name()]))),
            parse_errors: sources.map(|source| {
                reasons.map(|reason| {
                    is_parse_error(reason).then(|| self.parse_errors.with_label_values(&[source, reason.name()]))
                })
            }),
            queue_depth: Queue::ALL.map(|queue| self.queue_depth.with_label_values(&[worker[0], queue.name()])),
            active_endpoints: self.active_endpoints.with_label_values(&worker),
            state_bytes: self.state_bytes.with_label_values(&worker),
            open_windows: self.open_windows.with_label_values(&worker),
            watermark_lag: self.watermark_lag.with_label_values(&worker),
            backpressure: self.backpressure.with_label_values(&worker),
        }
    }
}

impl WorkerMetrics {
    /// `records` raw records of `bytes` bytes were read. `None`: a file's line that names no raw topic.
    pub fn raw(&self, topic: Option<RawTopic>, records: u64, bytes: u64) {
        self.shared.raw_records[source_index(topic)].inc_by(records);
        self.shared.raw_bytes[source_index(topic)].inc_by(bytes);
    }

    /// `events` raw records of `topic` became events.
    pub fn normalized(&self, topic: RawTopic, events: u64) {
        self.shared.normalized[topic as usize].inc_by(events);
    }

    /// A raw record was refused.
    pub fn dead_letter(&self, topic: Option<RawTopic>, reason: DeadLetterReason) {
        let index = reason as usize;
        self.dead_letters[source_index(topic)][index].inc();
        if let Some(parse_errors) = &self.parse_errors[source_index(topic)][index] {
            parse_errors.inc();
        }
    }

    /// `events` went to the backfill.
    pub fn late(&self, events: u64) {
        self.shared.late.inc_by(events);
    }

    /// The times of `events` were clamped.
    pub fn clamped(&self, events: u64) {
        self.shared.clamped.inc_by(events);
    }

    /// `events` were left out of a graph for their endpoint's budget.
    pub fn sampled(&self, events: u64) {
        self.shared.sampled.inc_by(events);
    }

    /// `windows` were closed.
    pub fn windows(&self, platform: Platform, lane: Lane, windows: u64) {
        self.shared.windows[platform as usize][lane as usize].inc_by(windows);
    }

    /// A window was judged.
    pub fn inference(&self, platform: Platform, prediction: Prediction) {
        self.shared.inferences[platform as usize][prediction as usize].inc();
    }

    /// The model was called once and took that long.
    pub fn inference_seconds(&self, seconds: f64) {
        self.shared.inference_seconds.observe(seconds);
    }

    /// One activation of `stage` handled `records`.
    pub fn batch(&self, stage: Stage, records: usize) {
        self.shared.batch_size[stage as usize].observe(records as f64);
    }

    /// An alert was raised.
    pub fn alert(&self, severity: Severity) {
        self.shared.alerts[severity as usize].inc();
    }

    /// A detection was merged.
    pub fn dedup_hit(&self) {
        self.shared.dedup_hits.inc();
    }

    /// Movement between two endpoints was found.
    pub fn lateral_movement(&self) {
        self.shared.lateral.inc();
    }

    /// An epoch was committed and took that long.
    pub fn commit(&self, seconds: f64) {
        self.shared.commits.inc();
        self.shared.commit_seconds.observe(seconds);
    }

    /// `entries` wait in `queue`.
    pub fn queue_depth(&self, queue: Queue, entries: usize) {
        self.queue_depth[queue as usize].set(entries as i64);
    }

    /// The source stopped (`true`) or resumed reading. Call it on every activation: a change counts.
    pub fn backpressure(&self, active: bool) {
        if active && self.backpressure.get() == 0 {
            self.shared.stalls.inc();
        }
        self.backpressure.set(i64::from(active));
    }
}

/// `docs/generated/metrics.md`.
pub fn reference() -> String {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).expect("names are unique");
    let _resolved = metrics.worker(0);
    let mut out = String::from(
        "# Metrics\n\nMade from the code: `LOGSTER_BLESS=1 cargo test --release -p logster-dataflow generated`.\n\n\
         Served at `/metrics` (`http.bind`). Gauges with a `worker` label are one worker's part.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for family in registry.gather() {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let mut labels: Vec<(&str, Vec<&str>)> = Vec::new();
        for label in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
            match labels.iter_mut().find(|(name, _)| *name == label.name()) {
                Some((_, values)) if values.contains(&label.value()) => {}
                Some((_, values)) => values.push(label.value()),
                None => labels.push((label.name(), vec![label.value()])),
            }
        }
        let labels: Vec<String> = labels
            .into_iter()
            .map(|(name, values)| match name {
                "worker" | "version" => format!("`{name}`"),
                _ => format!("`{name}`: {}", values.join(", ")),
            })
            .collect();
        let _ = writeln!(out, "| `{}` | {kind} | {} | {} |", family.name(), labels.join("; "), family.help());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::TextEncoder;

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn each_update_reaches_its_own_series() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let (a, b) = (metrics.worker(0), metrics.worker(1));
        a.raw(Some(RawTopic::EbpfNetwork), 3, 700);
        b.raw(Some(RawTopic::EbpfNetwork), 2, 300);
        a.raw(None, 1, 9);
        b.normalized(RawTopic::Sysmon, 4);
        a.dead_letter(Some(RawTopic::Auditd), DeadLetterReason::InvalidJson);
        a.dead_letter(Some(RawTopic::Auditd), DeadLetterReason::TooLarge);
        a.dead_letter(None, DeadLetterReason::UnknownTopic);
        a.late(5);
        a.clamped(6);
        a.sampled(7);
        a.windows(Platform::Linux, Lane::Backfill, 8);
        b.inference(Platform::Windows, Prediction::Error);
        b.inference_seconds(0.25);
        b.batch(Stage::Sink, 64);
        b.alert(Severity::Critical);
        b.dedup_hit();
        b.lateral_movement();
        b.commit(0.004);
        a.queue_depth(Queue::Score, 11);
        b.queue_depth(Queue::Score, 12);
        b.active_endpoints.set(13);
        for active in [true, true, false, true] {
            b.backpressure(active);
        }
        let text = text(&registry);
        for line in [
            "logster_raw_records_total{source=\"linux-ebpf-network-logs\"} 5",
            "logster_raw_bytes_total{source=\"linux-ebpf-network-logs\"} 1000",
            "logster_raw_records_total{source=\"unknown\"} 1",
            "logster_normalized_events_total{source=\"sysmon-logs\"} 4",
            "logster_dead_letters_total{reason=\"invalid_json\",source=\"linux-auditd-logs\"} 1",
            "logster_dead_letters_total{reason=\"too_large\",source=\"linux-auditd-logs\"} 1",
            "logster_dead_letters_total{reason=\"unknown_topic\",source=\"unknown\"} 1",
            "logster_parse_errors_total{reason=\"invalid_json\",source=\"linux-auditd-logs\"} 1",
            "logster_late_events_total 5",
            "logster_clamped_events_total 6",
            "logster_sampled_events_total 7",
            "logster_windows_total{lane=\"backfill\",platform=\"linux\"} 8",
            "logster_inferences_total{platform=\"windows\",prediction=\"error\"} 1",
            "logster_inference_seconds_count 1",
            "logster_batch_size_sum{stage=\"sink\"} 64",
            "logster_alerts_total{severity=\"CRITICAL\"} 1",
            "logster_dedup_hits_total 1",
            "logster_lateral_movements_total 1",
            "logster_epoch_commits_total 1",
            "logster_epoch_commit_seconds_sum 0.004",
            "logster_queue_depth{queue=\"score\",worker=\"0\"} 11",
            "logster_queue_depth{queue=\"score\",worker=\"1\"} 12",
            "logster_active_endpoints{worker=\"1\"} 13",
            "logster_backpressure_active{worker=\"1\"} 1",
            "logster_backpressure_stalls_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "missing: {line}\n{text}");
        }
        assert!(!text.contains("logster_parse_errors_total{reason=\"too_large\""), "size is no parse error");
    }

    /// The arrays are indexed by discriminant: each enum's `ALL` must be in that order.
    #[test]
    fn discriminants_follow_the_tables() {
        assert!(DeadLetterReason::ALL.iter().enumerate().all(|(i, reason)| *reason as usize == i));
        assert!(RawTopic::ALL.iter().enumerate().all(|(i, topic)| *topic as usize == i));
        assert!(Platform::ALL.iter().enumerate().all(|(i, platform)| *platform as usize == i));
        assert!(Stage::ALL.iter().enumerate().all(|(i, stage)| *stage as usize == i));
        assert!(Queue::ALL.iter().enumerate().all(|(i, queue)| *queue as usize == i));
    }

    #[test]
    fn a_second_registration_is_refused() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err());
    }
}
