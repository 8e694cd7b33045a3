//! `logster export-feedback`: what analysts decided of alerts, as labelled windows for `make train`.
//!
//! - Input: alerts and results as a run wrote them, and the captures of the raw records that they came from.
//! - Output: `<platform>.arrow` with the detections' windows (columns as in [`crate::export`], view `feedback`), and
//!   `labels.json` beside them: windows of resolved alerts are malicious, windows of false positives are benign. One
//!   recording an alert, `feedback-<alert id>`.
//! - An alert names its detections by their inference ids, and the results (`logster-inference-results`) say which windows
//!   those are: so they are found again by replaying the captures, whatever else those hold.
//! - Failure: detections that neither results nor captures hold any more are counted. An alert that nobody decided says nothing.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::path::Path;

use anyhow::Context;
use arrow_ipc::writer::FileWriter;
use logster_operators::graph::PaneGraph;
use logster_operators::window::ClosedWindow;
use logster_schema::{Alert, AlertStatus, InferenceResult, Platform, TimeMs, time};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::export::{BATCH_ROWS, Rows, schema};
use crate::failure::Failure;
use crate::replay::{ReplayConfig, replay};

/// The `view` of such windows: the trainer trains on them and never tests.
const VIEW: &str = "feedback";

/// An alert with the ids of all its detections, over all revisions seen.
#[derive(Clone, Debug)]
pub struct Decided {
    /// Its last revision.
    pub alert: Alert,
    /// Detections.
    pub inference_ids: BTreeSet<String>,
}

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedbackTotals {
    /// Alerts called true.
    pub resolved: u64,
    /// Alerts called false.
    pub false_positives: u64,
    /// Windows written.
    pub windows: u64,
    /// Detections whose window the captures do not hold.
    pub missing: u64,
}

/// The alerts that an analyst closed, by id; `alerts` come in any order.
pub fn decided(alerts: impl IntoIterator<Item = Alert>) -> Vec<Decided> {
    let mut by_id: BTreeMap<String, Decided> = BTreeMap::new();
    for alert in alerts {
        let ids: BTreeSet<String> = alert.inference_ids.iter().cloned().collect();
        match by_id.get_mut(&alert.alert_id) {
            Some(known) => {
                known.inference_ids.extend(ids);
                if alert.revision > known.alert.revision {
                    known.alert = alert;
                }
            }
            None => {
                by_id.insert(alert.alert_id.clone(), Decided { alert, inference_ids: ids });
            }
        }
    }
    by_id.into_values().filter(|d| d.alert.status.is_closed()).collect()
}

/// A window that was a detection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Detection {
    endpoint: String,
    platform: Platform,
    end_ms: TimeMs,
    opened_ms: Option<TimeMs>,
}

/// What was decided of which window.
pub struct Feedback {
    decided: Vec<Decided>,
    /// Windows by the alert, as a number of `decided`, that they are detections of.
    windows: BTreeMap<Detection, usize>,
}

impl Feedback {
    /// Of alerts that were decided and the results that name their windows.
    ///
    /// # Errors
    /// Those of `results`.
    pub fn new(
        decided: Vec<Decided>,
        results: impl FnOnce(&mut dyn FnMut(InferenceResult)) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut of_detection: BTreeMap<&str, usize> = BTreeMap::new();
        for (n, d) in decided.iter().enumerate() {
            of_detection.extend(d.inference_ids.iter().map(|id| (id.as_str(), n)));
        }
        let mut windows = BTreeMap::new();
        results(&mut |r| {
            if let Some(&n) = of_detection.get(r.inference_id.as_str()) {
                let endpoint = r.endpoint().key().to_owned();
                let (platform, end_ms, opened_ms) = (r.platform, r.window_end, r.opened_ms);
                windows.insert(Detection { endpoint, platform, end_ms, opened_ms }, n);
            }
        })?;
        Ok(Self { decided, windows })
    }
}

/// Reads an output topic's records from NDJSON: bare, or as `--out` writes them (`{"key", "value"}`).
///
/// # Errors
/// A file that cannot be read; a line that is no such record.
pub fn read_records<T: DeserializeOwned>(path: &Path, mut see: impl FnMut(T)) -> anyhow::Result<()> {
    let shown = || path.display().to_string();
    let file = File::open(path).map_err(|e| Failure::new("outputs cannot be read").at(shown()).because(e))?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("{} cannot be read", shown()))?;
        let mut value: Value = serde_json::from_str(&line).unwrap_or_default();
        let inner = value.get_mut("value").map(Value::take).unwrap_or(value);
        see(serde_json::from_value(inner).map_err(|e| {
            Failure::new("not a record of this topic").at(format!("{}, line {}", shown(), number + 1)).because(e)
        })?);
    }
    Ok(())
}

/// Replays the captures below `input` and writes the windows of the decided alerts into the folder `out`.
///
/// # Errors
/// Captures that cannot be read; files that cannot be written.
pub fn export_feedback(
    input: &Path,
    out: &Path,
    feedback: &Feedback,
    config: &ReplayConfig,
) -> anyhow::Result<FeedbackTotals> {
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let decided = &feedback.decided;
    let mut found: Vec<Vec<(TimeMs, TimeMs)>> = vec![Vec::new(); decided.len()];
    let mut files: BTreeMap<Platform, (Rows, FileWriter<BufWriter<File>>)> = BTreeMap::new();
    let mut failed: Option<anyhow::Error> = None;
    let mut write = |window: &ClosedWindow<PaneGraph>, n: usize| -> anyhow::Result<()> {
        let (rows, writer) = match files.entry(window.platform) {
            Entry::Occupied(file) => file.into_mut(),
            Entry::Vacant(none) => {
                let path = out.join(format!("{}.arrow", window.platform.name()));
                let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
                none.insert((Rows::default(), FileWriter::try_new(BufWriter::new(file), &schema())?))
            }
        };
        rows.push(&recording(&decided[n].alert), VIEW, window);
        if rows.count == BATCH_ROWS {
            writer.write(&rows.finish())?;
        }
        Ok(())
    };
    replay(
        input,
        None,
        config,
        |_| true,
        |window| {
            if failed.is_some() {
                return;
            }
            let detection = Detection {
                endpoint: window.endpoint.key().to_owned(),
                platform: window.platform,
                end_ms: window.end_ms,
                opened_ms: window.opened_ms,
            };
            if let Some(&n) = feedback.windows.get(&detection) {
                found[n].push((window.start_ms, window.end_ms));
                failed = write(&window, n).err();
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    for (rows, mut writer) in files.into_values() {
        let mut rows = rows;
        if rows.count > 0 {
            writer.write(&rows.finish())?;
        }
        writer.finish()?;
    }
    let labelled = decided.iter().zip(&found).filter(|(_, windows)| !windows.is_empty());
    let labels: Vec<Value> = labelled.map(|(d, windows)| label(&d.alert, windows)).collect();
    let path = out.join("labels.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&labels).expect("labels serialize"))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    let with = |status| decided.iter().filter(|d| d.alert.status == status).count() as u64;
    let windows: u64 = found.iter().map(|w| w.len() as u64).sum();
    Ok(FeedbackTotals {
        resolved: with(AlertStatus::Resolved),
        false_positives: with(AlertStatus::FalsePositive),
        windows,
        missing: decided.iter().map(|d| d.inference_ids.len() as u64).sum::<u64>() - windows,
    })
}

/// The recording that an alert's windows are one of.
fn recording(alert: &Alert) -> String {
    format!("feedback-{}", alert.alert_id)
}

/// The alert's entry of `labels.json`.
fn label(alert: &Alert, windows: &[(TimeMs, TimeMs)]) -> Value {
    let start = windows.iter().map(|(start, _)| *start).min().unwrap_or(alert.first_seen);
    let end = windows.iter().map(|(_, end)| *end).max().unwrap_or(alert.last_seen);
    let interval = |(start, end): &(TimeMs, TimeMs)| json!([time::format(*start), time::format(*end)]);
    let decision = alert.transitions.last();
    let malicious = alert.status == AlertStatus::Resolved;
    let hosts = match malicious {
        true => json!([{
            "host": alert.endpoint_id,
            "attack_intervals": windows.iter().map(interval).collect::<Vec<_>>(),
        }]),
        false => json!([]),
    };
    let benign = match malicious {
        true => json!([]),
        false => json!([{"host": alert.endpoint_id, "kind": "false_positive", "interval": interval(&(start, end))}]),
    };
    json!({
        "id": recording(alert),
        "family": "feedback",
        "title": alert.reason,
        "techniques": alert.ttp_techniques,
        "start": time::format(start),
        "end": time::format(end),
        "hosts": hosts,
        "benign_intervals": benign,
        "verdict": alert.status,
        "actor": decision.map(|d| d.actor.as_str()),
        "note": decision.map(|d| d.note.as_str()),
    })
}
