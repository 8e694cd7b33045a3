//! Every metric of the dataflow that no operator registers by itself: names, labels and help in one place.
//!
//! - Names begin with `logster_`, in base units (seconds, bytes).
//! - Labels are bounded sets: raw topic, reason, platform, prediction, stage, queue, worker. Never an endpoint.
//! - Counters are shared by all workers of the process. Gauges that each worker sets for itself have a
//!   `worker` label: add them up, or take the greatest, when querying.
//!
//! Operators get their small structs from here ([`Metrics::window`]) and update them once per activation.
//! `docs/generated/metrics.md` is made from here.

use std::fmt::Write;

use logster_operators::rules::RulesMetrics;
use logster_operators::score::drift::QUANTITIES;
use logster_operators::window::WindowMetrics;
use logster_schema::{DeadLetterReason, InputTopic, Platform, Prediction, RuleLevel};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

use crate::engine::AllMetrics;

/// The `source` of records that name no raw topic.
pub const NO_TOPIC: &str = "none";

/// Stages whose batches are measured, in the order of the flow: what each hands on in one go.
pub const STAGES: [&str; 5] = ["normalize", "window", "infer", "dedup", "correlate"];

/// A bounded queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Closed windows waiting for their verdict.
    Score,
    /// Outputs waiting for their commit.
    Sink,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 2] = [Self::Score, Self::Sink];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Sink => "sink",
        }
    }
}

/// What a shadow model said of a window, beside the model in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same verdict.
    Agreed,
    /// A detection of the shadow alone.
    Gained,
    /// A detection of the model in use alone.
    Lost,
    /// It refused the window.
    Failed,
    /// It was not asked: too many windows waited.
    Skipped,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Agreed, Self::Gained, Self::Lost, Self::Failed, Self::Skipped];

    /// The label.
    pub const fn name(self) -> &'static str {
        ["agreed", "gained", "lost", "failed", "skipped"][self as usize]
    }
}

/// What is known of the models at work. Clones share the same numbers.
#[derive(Clone)]
pub struct ModelMetrics {
    drift: GaugeVec,
    shadow: IntCounterVec,
    shadow_difference: HistogramVec,
}

impl ModelMetrics {
    /// Population stability index of one of [`QUANTITIES`].
    pub fn drift(&self, platform: Platform, quantity: &'static str) -> prometheus::Gauge {
        self.drift.with_label_values(&[platform.name(), quantity])
    }

    /// Windows by what the shadow said.
    pub fn shadow(&self, platform: Platform, outcome: Outcome) -> IntCounter {
        self.shadow.with_label_values(&[platform.name(), outcome.name()])
    }

    /// How far the shadow's scores are from those of the model in use.
    pub fn shadow_difference(&self, platform: Platform) -> Histogram {
        self.shadow_difference.with_label_values(&[platform.name()])
    }
}

/// The metrics of a process. Clones share the same numbers.
#[derive(Clone)]
pub struct Metrics {
    /// Raw records read, by `source` (raw topic; where a record is refused also the transitions' topic or [`NO_TOPIC`]).
    pub raw_records: IntCounterVec,
    /// Raw records that became events.
    pub normalized: IntCounter,
    /// Raw records refused, by `source` and `reason`.
    pub dead_letters: IntCounterVec,
    /// Events whose time was moved.
    pub clamped: IntCounter,
    /// Activations in which a source read nothing because something downstream was full.
    pub held_back: IntCounter,
    /// Matches of Sigma rules, by `level`.
    pub rule_matches: IntCounterVec,
    /// Seconds spent evaluating rules.
    pub rule_seconds: Counter,
    /// Verdicts, by `platform` and `prediction`.
    pub inferences: IntCounterVec,
    /// Seconds from the closing of a window to its verdict.
    pub inference_seconds: Histogram,
    /// Epochs committed.
    pub commits: IntCounter,
    /// Seconds that a commit took.
    pub commit_seconds: Histogram,
    /// Drift and shadow.
    pub models: ModelMetrics,
    window_events: IntCounter,
    late: IntCounter,
    sampled: IntCounter,
    windows: IntCounter,
    active_endpoints: IntGaugeVec,
    queue_depth: IntGaugeVec,
    watermark_lag: GaugeVec,
    batch_size: HistogramVec,
}

impl Metrics {
    /// Registers every metric in `registry`.
    ///
    /// # Errors
    /// A name that `registry` has already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let b = Builder { registry };
        let build = b.gauges("logster_build_info", "Always 1; the label says which version runs.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let dead_letters = b.counters(
            "logster_dead_letters_total",
            "Raw records refused and written to logster-dead-letters.",
            &["source", "reason"],
        )?;
        registry.register(Box::new(ParseErrors::of(dead_letters.clone())?))?;
        Ok(Self {
            raw_records: b.counters(
                "logster_raw_records_total",
                "Raw records read. Equals normalized events plus dead letters once a run has come to rest.",
                &["source"],
            )?,
            normalized: b.counter("logster_normalized_events_total", "Raw records that became normalized events.")?,
            dead_letters,
            clamped: b.counter(
                "logster_clamped_events_total",
                "Events whose time lay beyond input.max_skew or input.max_backfill and was moved.",
            )?,
            held_back: b.counter(
                "logster_backpressure_total",
                "Activations in which a source read nothing because something downstream was full.",
            )?,
            rule_matches: b.counters(
                "logster_rule_matches_total",
                "Events that a Sigma rule matched, by the rule's level. Replayed events count again.",
                &["level"],
            )?,
            rule_seconds: b.add(Counter::new(
                "logster_rule_evaluation_seconds_total",
                "Time spent evaluating Sigma rules, all workers together.",
            ))?,
            inferences: b.counters("logster_inferences_total", "Verdicts on windows.", &["platform", "prediction"])?,
            inference_seconds: b.histogram(
                "logster_inference_seconds",
                "Time from the closing of a window to its verdict.",
                exponential_buckets(0.0005, 2.0, 16)?,
            )?,
            commits: b.counter("logster_epoch_commits_total", "Epochs committed: outputs with their checkpoint.")?,
            commit_seconds: b.histogram(
                "logster_epoch_commit_seconds",
                "Time that the commit of an epoch took.",
                exponential_buckets(0.001, 2.0, 14)?,
            )?,
            models: ModelMetrics {
                drift: b.add(GaugeVec::new(
                    Opts::new(
                        "logster_drift_psi",
                        "Population stability index of the latest windows against the benign windows of training \
                         (0.1: look, 0.25: train anew). Only for packages with a reference.",
                    ),
                    &["platform", "quantity"],
                ))?,
                shadow: b.counters(
                    "logster_shadow_windows_total",
                    "Windows that a shadow model (model.shadow) scored too: same verdict, detection gained or lost.",
                    &["platform", "outcome"],
                )?,
                shadow_difference: b.add(HistogramVec::new(
                    HistogramOpts::new(
                        "logster_shadow_score_difference",
                        "Distance of the shadow's attack_prob from that of the model in use.",
                    )
                    .buckets(vec![0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8]),
                    &["platform"],
                ))?,
            },
            window_events: b.counter("logster_window_events_total", "Events that entered windows.")?,
            late: b.counter(
                "logster_late_events_total",
                "Events older than input.max_lateness at their arrival, sent to the backfill.",
            )?,
            sampled: b.counter(
                "logster_sampled_events_total",
                "Events left out of a graph because their endpoint was over inference.max_events_per_window.",
            )?,
            windows: b.counter("logster_windows_total", "Windows with activity that were closed.")?,
            active_endpoints: b.gauges(
                "logster_active_endpoints",
                "Endpoints with an open live window.",
                &["worker"],
            )?,
            queue_depth: b.gauges(
                "logster_queue_depth",
                "Entries waiting in a bounded queue.",
                &["worker", "queue"],
            )?,
            watermark_lag: b.add(GaugeVec::new(
                Opts::new("logster_watermark_lag_seconds", "Seconds from the watermark to now."),
                &["worker"],
            ))?,
            batch_size: b.add(HistogramVec::new(
                HistogramOpts::new("logster_batch_size", "Records that a stage handed on in one go.")
                    .buckets(exponential_buckets(1.0, 4.0, 9)?),
                &["stage"],
            ))?,
        })
    }

    /// What is counted of rules.
    pub fn rules(&self) -> RulesMetrics {
        RulesMetrics {
            matches: RuleLevel::ALL.map(|level| self.rule_matches.with_label_values(&[level.name()])),
            seconds: self.rule_seconds.clone(),
        }
    }

    /// What worker `index` of this process counts of its windows.
    pub fn window(&self, index: usize) -> WindowMetrics {
        WindowMetrics {
            closed: self.windows.clone(),
            events: self.window_events.clone(),
            backfill: self.late.clone(),
            sampled: self.sampled.clone(),
            active: self.active_endpoints.with_label_values(&[index.to_string()]),
        }
    }

    /// Depth of a queue of worker `index`.
    pub fn queue_depth(&self, index: usize, queue: Queue) -> IntGauge {
        self.queue_depth.with_label_values(&[index.to_string().as_str(), queue.name()])
    }

    /// Seconds from the watermark of worker `index` to now.
    pub fn watermark_lag(&self, index: usize) -> prometheus::Gauge {
        self.watermark_lag.with_label_values(&[index.to_string()])
    }

    /// Sizes of the batches that `stage`, one of [`STAGES`], hands on.
    pub fn batch_size(&self, stage: &'static str) -> Histogram {
        debug_assert!(STAGES.contains(&stage), "{stage}");
        self.batch_size.with_label_values(&[stage])
    }

    /// Makes every series whose labels are known beforehand: a counter that is 0 is there from the start, so
    /// that a rate over its first increment is seen.
    pub fn resolve(&self) {
        let topics = InputTopic::ALL.map(InputTopic::name).into_iter().chain([NO_TOPIC]);
        for source in topics {
            self.raw_records.with_label_values(&[source]);
            for reason in DeadLetterReason::ALL {
                self.dead_letters.with_label_values(&[source, reason.name()]);
            }
        }
        for level in RuleLevel::ALL {
            self.rule_matches.with_label_values(&[level.name()]);
        }
        for platform in Platform::ALL {
            for prediction in [Prediction::Benign, Prediction::Attack, Prediction::Error] {
                self.inferences.with_label_values(&[platform.name(), prediction.name()]);
            }
        }
        for stage in STAGES {
            self.batch_size(stage);
        }
    }
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

/// Dead letters whose content could not be parsed, as a metric of its own: the same numbers, counted once.
struct ParseErrors {
    dead_letters: IntCounterVec,
    desc: Desc,
}

impl ParseErrors {
    const NAME: &'static str = "logster_parse_errors_total";
    const HELP: &'static str = "Raw records whose content could not be parsed: those of the dead letters.";

    fn of(dead_letters: IntCounterVec) -> prometheus::Result<Self> {
        let labels = vec!["source".to_owned(), "reason".to_owned()];
        let desc = Desc::new(Self::NAME.into(), Self::HELP.into(), labels, Default::default())?;
        Ok(Self { dead_letters, desc })
    }
}

impl Collector for ParseErrors {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.dead_letters.collect();
        for family in &mut families {
            family.set_name(Self::NAME.into());
            family.set_help(Self::HELP.into());
            let kept = family.take_metric().into_iter();
            let kept = kept.filter(|m| m.get_label().iter().any(|l| l.name() == "reason" && is_parse_error(l.value())));
            family.set_metric(kept.collect());
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

/// The content itself was at fault; not its size, nor a file's envelope.
fn is_parse_error(reason: &str) -> bool {
    use DeadLetterReason::{Empty, InvalidEncoding, InvalidJson, MissingContent, NotAnObject, TooDeep};
    [Empty, InvalidEncoding, InvalidJson, TooDeep, NotAnObject, MissingContent].iter().any(|r| r.name() == reason)
}

/// `docs/generated/metrics.md`.
pub fn reference() -> String {
    let registry = Registry::new();
    // With what the operators register themselves.
    let metrics = AllMetrics::new(&registry).expect("names are unique").metrics;
    metrics.window(0);
    metrics.watermark_lag(0);
    for platform in Platform::ALL {
        QUANTITIES.iter().for_each(|quantity| drop(metrics.models.drift(platform, quantity)));
        Outcome::ALL.iter().for_each(|outcome| drop(metrics.models.shadow(platform, *outcome)));
        metrics.models.shadow_difference(platform);
    }
    for queue in Queue::ALL {
        metrics.queue_depth(0, queue);
    }
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

    fn lines(registry: &Registry) -> Vec<String> {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_update_reaches_its_own_series() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let (a, b) = (metrics.window(0), metrics.window(1));
        a.events.inc_by(2);
        b.events.inc_by(3);
        a.backfill.inc_by(5);
        b.sampled.inc_by(7);
        b.closed.inc_by(8);
        a.active.set(13);
        b.active.set(14);
        metrics.queue_depth(0, Queue::Score).set(11);
        metrics.queue_depth(1, Queue::Sink).set(12);
        metrics.watermark_lag(1).set(10.5);
        metrics.batch_size("infer").observe(64.0);
        let lines = lines(&registry);
        for line in [
            "logster_window_events_total 5",
            "logster_late_events_total 5",
            "logster_sampled_events_total 7",
            "logster_windows_total 8",
            "logster_active_endpoints{worker=\"0\"} 13",
            "logster_active_endpoints{worker=\"1\"} 14",
            "logster_queue_depth{queue=\"score\",worker=\"0\"} 11",
            "logster_queue_depth{queue=\"sink\",worker=\"1\"} 12",
            "logster_watermark_lag_seconds{worker=\"1\"} 10.5",
            "logster_batch_size_sum{stage=\"infer\"} 64",
            concat!("logster_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(lines.iter().any(|l| l == line), "missing: {line}\n{lines:#?}");
        }
    }

    #[test]
    fn parse_errors_are_the_dead_letters_whose_content_was_at_fault() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        for reason in DeadLetterReason::ALL {
            metrics.dead_letters.with_label_values(&["sysmon-logs", reason.name()]).inc_by(3);
        }
        let counted: Vec<String> =
            lines(&registry).into_iter().filter(|line| line.starts_with("logster_parse_errors_total")).collect();
        let want = ["empty", "invalid_encoding", "invalid_json", "missing_content", "not_an_object", "too_deep"]
            .map(|r| format!("logster_parse_errors_total{{reason=\"{r}\",source=\"sysmon-logs\"}} 3"));
        assert_eq!(counted, want);
    }

    #[test]
    fn known_series_are_there_from_the_start() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap().resolve();
        let lines = lines(&registry);
        for line in [
            "logster_raw_records_total{source=\"none\"} 0",
            "logster_dead_letters_total{reason=\"too_large\",source=\"linux-auditd-logs\"} 0",
            "logster_inferences_total{platform=\"linux\",prediction=\"attack\"} 0",
        ] {
            assert!(lines.iter().any(|l| l == line), "missing: {line}");
        }
    }

    #[test]
    fn a_second_registration_is_refused() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err());
    }
}
