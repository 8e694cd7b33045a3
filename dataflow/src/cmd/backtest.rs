//! `logster backtest`: plays labelled captures and reports what was found, missed and falsely raised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use logster_schema::{Alert, DeadLetter, InferenceResult, OutputRecord, OutputTopic, Platform};
use logster_sinks::capture::{self, CaptureReader, Framing};
use prometheus::Registry;

use crate::backtest::{JudgedAlert, Label, ModelId, Outcome, Recording, Report, ScoredWindow, Timing, judge};
use crate::cli::Overrides;
use crate::config::Config;
use crate::config::value::Speed;
use crate::engine::{self, AllMetrics, Edges, Models, Observer, Plan};
use crate::failure::Failure;
use crate::http::HealthState;
use crate::rules::min_level;
use crate::source::file::FileConfig;

/// Arguments of `logster backtest`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of labelled captures: `labels.json` beside the recordings, or one folder down.
    #[arg(long, value_name = "DIR")]
    pub input: PathBuf,
    /// Where the report goes (JSON). Same input, same report, but for `timing`.
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
    /// Write the output topics to DIR/<topic>.ndjson as well: sets output.dir.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Worker threads.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.input(Some(&self.input)).option("--out", "output.dir", self.out.as_ref().map(|path| path.display()));
    }
}

/// Runs it.
///
/// # Errors
/// Captures or labels that cannot be read; a report that cannot be written.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let labels = read_labels(&args.input)?;
    let files = capture::files(&args.input).map_err(anyhow::Error::new)?;
    let mut recordings = Vec::new();
    let mut tenants = Vec::new();
    for path in &files {
        let id = recording_id(path);
        let label = labels.get(&id).ok_or_else(|| {
            Failure::new(format!("no label describes \"{id}\""))
                .at(path.display().to_string())
                .remedy("add an entry with this id to labels.json, or move the capture elsewhere")
        })?;
        recordings.push(Recording::new(label, platform_of(path)?)?);
        tenants.push(id);
    }
    let workers = args.workers as usize;
    let metrics = AllMetrics::new(&Registry::new())?;
    let models = Models::load(config, workers)?;
    let ids = models
        .packages()
        .iter()
        .map(|p| (p.platform(), ModelId { version: p.model_version(), digest: p.digest().to_owned() }))
        .collect();
    let collected = Arc::new(Mutex::new(Collected::default()));
    let observer: Observer = Arc::new(Mutex::new({
        let collected = collected.clone();
        move |record: &OutputRecord| collected.lock().expect("no panic while it is held").see(record)
    }));
    let plan = Plan {
        cluster: None,
        workers,
        edges: Edges::Files(FileConfig {
            input: args.input.clone(),
            framing: Framing::Envelope,
            speed: Speed::Max,
            tenants: Some(Arc::new(tenants)),
        }),
        observer: Some(observer),
        stop: Arc::default(),
    };
    let began = Instant::now();
    engine::run(config, plan, models, &metrics, &HealthState::new(workers, Duration::MAX))?;
    let seconds = began.elapsed().as_secs_f64();

    let collected = std::mem::take(&mut *collected.lock().expect("no panic while it is held"));
    let threshold = config.alerts.min_threshold;
    let dedup_ms = i64::from(config.alerts.dedup_window_seconds) * 1000;
    let rules_from = (!config.rules.paths.is_empty()).then(|| min_level(config));
    let (totals, platforms, scenarios) = judge(&recordings, &collected.outcome, threshold, dedup_ms, rules_from);
    let timing = Timing {
        seconds,
        events_per_second: totals.events as f64 / seconds,
        bytes_per_second: collected.bytes as f64 / seconds,
    };
    let report = Report { totals, platforms, scenarios, models: ids, threshold, ruleset: collected.ruleset, timing };
    let json = serde_json::to_vec_pretty(&report).expect("reports serialize");
    std::fs::write(&args.report, json)
        .map_err(|e| Failure::new("the report cannot be written").at(args.report.display().to_string()).because(e))?;
    println!("{report}");
    Ok(())
}

/// What the judgement and the timing need of the outputs.
#[derive(Default)]
struct Collected {
    outcome: Outcome,
    bytes: u64,
    ruleset: Option<String>,
}

impl Collected {
    fn see(&mut self, record: &OutputRecord) {
        let tenant = || record.key.as_deref().and_then(|k| k.split_once(':')).map_or("", |(t, _)| t).to_owned();
        match record.topic {
            OutputTopic::Normalized => {
                self.bytes += record.value.len() as u64;
                *self.outcome.normalized.entry(tenant()).or_default() += 1;
            }
            OutputTopic::DeadLetters => {
                let letter: DeadLetter = serde_json::from_slice(&record.value).expect("dead letters are ours");
                self.bytes += letter.bytes().len() as u64;
                *self.outcome.dead_letters.entry(tenant()).or_default() += 1;
            }
            OutputTopic::Results => {
                let r: InferenceResult = serde_json::from_slice(&record.value).expect("results are ours");
                self.outcome.windows.push(ScoredWindow::from(&r));
                self.ruleset = r.ruleset;
            }
            OutputTopic::Alerts => {
                let alert: Alert = serde_json::from_slice(&record.value).expect("alerts are ours");
                let judged = self.outcome.alerts.entry(alert.alert_id).or_insert_with(|| JudgedAlert {
                    recording: alert.tenant_id,
                    host: alert.endpoint_id,
                    ..JudgedAlert::default()
                });
                judged.detections.extend(alert.inference_ids);
            }
        }
    }
}

/// `<id>.ndjson.zst` and the like.
fn recording_id(path: &Path) -> String {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.split(".ndjson").next().and_then(|n| n.split(".jsonl").next()).unwrap_or(name).to_owned()
}

/// Platform of a capture: that of its first record.
fn platform_of(path: &Path) -> anyhow::Result<Platform> {
    let mut reader = CaptureReader::open(path)?;
    while let Some(line) = reader.next_line()? {
        if let Some(topic) = Framing::Envelope.parse(&line).ok().and_then(|envelope| envelope.topic.raw()) {
            return Ok(topic.platform());
        }
    }
    Ok(Platform::Windows)
}

/// Every `labels.json` in the directory or one folder down, by recording.
fn read_labels(input: &Path) -> anyhow::Result<BTreeMap<String, Label>> {
    let mut places = vec![input.join("labels.json")];
    if input.is_file() {
        places = vec![input.with_file_name("labels.json")];
    } else {
        let mut below: Vec<PathBuf> = std::fs::read_dir(input)
            .map_err(|e| Failure::new("the captures cannot be read").at(input.display().to_string()).because(e))?
            .filter_map(|entry| Some(entry.ok()?.path().join("labels.json")))
            .collect();
        below.sort();
        places.extend(below);
    }
    let mut labels = BTreeMap::new();
    let mut found = false;
    for place in places.iter().filter(|p| p.is_file()) {
        found = true;
        let text = std::fs::read(place).with_context(|| format!("{} cannot be read", place.display()))?;
        let list: Vec<Label> = serde_json::from_slice(&text)
            .map_err(|e| Failure::new("labels cannot be read").at(place.display().to_string()).because(e))?;
        labels.extend(list.into_iter().map(|label| (label.id.clone(), label)));
    }
    if !found {
        return Err(Failure::new("there is no labels.json")
            .at(input.display().to_string())
            .remedy("put labels.json beside the recordings, or one folder down")
            .into());
    }
    Ok(labels)
}
