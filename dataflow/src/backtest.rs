//! Judges a run over labelled captures: scenarios detected, false alerts, window scores.
//!
//! Pure: labels, results and alerts in, a [`Report`] out. The same input gives the same report.
//!
//! - A window is *malicious* if it overlaps an attack interval of its host, *benign* if, cut to the recording, it
//!   lies wholly in benign intervals of its host, otherwise *ambiguous* and left out.
//! - A scenario (a recording with attacked hosts) is *detected* if an alert of an attacked host has a detection
//!   whose window overlaps an attack interval.
//! - An alert is *false* if all of its detections lie in benign windows.

use std::collections::{BTreeMap, BTreeSet};

use logster_schema::{InferenceResult, Platform, Prediction, RuleLevel, TimeMs, time};
use serde::{Deserialize, Serialize};

/// One recording as `labels.json` describes it. Fields that the judgement does not need are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Label {
    /// Name of the recording and of its file.
    pub id: String,
    /// What is left out together in cross-validation.
    #[serde(default)]
    pub family: String,
    /// Start of the recording.
    #[serde(with = "logster_schema::time::iso")]
    pub start: TimeMs,
    /// End of the recording.
    #[serde(with = "logster_schema::time::iso")]
    pub end: TimeMs,
    /// Attacked hosts.
    #[serde(default)]
    pub hosts: Vec<AttackedHost>,
    /// Ordinary work.
    #[serde(default)]
    pub benign_intervals: Vec<BenignInterval>,
}

/// A host under attack.
#[derive(Clone, Debug, Deserialize)]
pub struct AttackedHost {
    /// Host name.
    pub host: String,
    /// Start and end of each attack, ISO 8601.
    #[serde(default)]
    pub attack_intervals: Vec<(String, String)>,
}

/// Ordinary work on a host.
#[derive(Clone, Debug, Deserialize)]
pub struct BenignInterval {
    /// Host name.
    pub host: String,
    /// Start and end, ISO 8601.
    pub interval: (String, String),
}

/// Intervals of one host, merged, in ms.
type Intervals = BTreeMap<String, Vec<(TimeMs, TimeMs)>>;

/// What a window counts as in which a rule raised a detection: above every probability.
const RULE_SCORE: f64 = 2.0;

/// Ends that lie this close are the same: labels are cut at events.
const TOLERANCE_MS: i64 = 1_000;

/// A recording ready to be judged by.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Name; the tenant that it is played as.
    pub id: String,
    /// Family.
    pub family: String,
    /// Platform of its records.
    pub platform: Platform,
    start: TimeMs,
    end: TimeMs,
    attacks: Intervals,
    benign: Intervals,
}

impl Recording {
    /// Reads the label's times. Errors name the time that cannot be read.
    pub fn new(label: &Label, platform: Platform) -> anyhow::Result<Self> {
        let read = |text: &String| {
            time::parse(text)
                .ok_or_else(|| anyhow::anyhow!("labels of \"{}\": \"{text}\" is no ISO 8601 time", label.id))
        };
        let mut attacks = Intervals::new();
        for host in &label.hosts {
            let intervals = attacks.entry(host.host.to_lowercase()).or_default();
            for (from, to) in &host.attack_intervals {
                intervals.push((read(from)?, read(to)?));
            }
        }
        let mut benign = Intervals::new();
        for b in &label.benign_intervals {
            let interval = (read(&b.interval.0)?, read(&b.interval.1)?);
            benign.entry(b.host.to_lowercase()).or_default().push(interval);
        }
        attacks.values_mut().chain(benign.values_mut()).for_each(merge);
        let (start, end) = (label.start, label.end);
        Ok(Self { id: label.id.clone(), family: label.family.clone(), platform, start, end, attacks, benign })
    }

    /// Whether somebody is attacked in it.
    pub fn is_scenario(&self) -> bool {
        self.attacks.values().any(|intervals| !intervals.is_empty())
    }

    fn overlaps_attack(&self, host: &str, start: TimeMs, end: TimeMs) -> bool {
        self.attacks.get(host).is_some_and(|i| i.iter().any(|(from, to)| *from < end && start <= *to))
    }

    fn in_benign(&self, host: &str, start: TimeMs, end: TimeMs) -> bool {
        let (start, end) = (start.max(self.start), end.min(self.end));
        let covers = |(from, to): &(TimeMs, TimeMs)| from - TOLERANCE_MS <= start && end <= to + TOLERANCE_MS;
        self.benign.get(host).is_some_and(|i| i.iter().any(covers))
    }

    fn class(&self, host: &str, start: TimeMs, end: TimeMs) -> Class {
        if self.overlaps_attack(host, start, end) {
            Class::Malicious
        } else if self.in_benign(host, start, end) {
            Class::Benign
        } else {
            Class::Ambiguous
        }
    }

    fn benign_hours(&self) -> f64 {
        let ms: i64 = self.benign.values().flatten().map(|(from, to)| to - from).sum();
        ms as f64 / 3_600_000.0
    }

    fn first_attack(&self) -> Option<TimeMs> {
        self.attacks.values().flatten().map(|(from, _)| *from).min()
    }
}

fn merge(intervals: &mut Vec<(TimeMs, TimeMs)>) {
    intervals.sort_unstable();
    let mut merged: Vec<(TimeMs, TimeMs)> = Vec::new();
    for (from, to) in intervals.drain(..) {
        match merged.last_mut() {
            Some(last) if from <= last.1 + TOLERANCE_MS => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    *intervals = merged;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Malicious,
    Benign,
    Ambiguous,
}

/// What the judgement needs of an inference result.
#[derive(Clone, Debug)]
pub struct ScoredWindow {
    /// Id.
    pub inference_id: String,
    /// Tenant: the recording.
    pub recording: String,
    /// Host.
    pub host: String,
    /// Start.
    pub start_ms: TimeMs,
    /// End.
    pub end_ms: TimeMs,
    /// 0 where not scored.
    pub attack_prob: f64,
    /// Counted by verdict.
    pub prediction: Prediction,
    /// Highest level of the rules that matched in its last interval.
    pub rule: Option<RuleLevel>,
}

impl From<&InferenceResult> for ScoredWindow {
    fn from(r: &InferenceResult) -> Self {
        Self {
            inference_id: r.inference_id.clone(),
            recording: r.tenant_id.clone(),
            host: r.endpoint_id.clone(),
            start_ms: r.window_start,
            end_ms: r.window_end,
            attack_prob: r.attack_prob,
            prediction: r.prediction,
            rule: r.raised_by_rule(RuleLevel::Informational),
        }
    }
}

/// What the judgement needs of an alert: its detections, over all its revisions.
#[derive(Clone, Debug, Default)]
pub struct JudgedAlert {
    /// Tenant: the recording.
    pub recording: String,
    /// Host.
    pub host: String,
    /// Ids of all detections that were ever merged.
    pub detections: BTreeSet<String>,
}

/// Everything a run gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Results.
    pub windows: Vec<ScoredWindow>,
    /// Alerts by id.
    pub alerts: BTreeMap<String, JudgedAlert>,
    /// Normalized events by recording.
    pub normalized: BTreeMap<String, u64>,
    /// Dead letters by recording; those of no recording under "".
    pub dead_letters: BTreeMap<String, u64>,
}

/// The figures, over all recordings or those of one platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the report's, explained in docs/operations.md")]
pub struct Totals {
    pub events: u64,
    pub normalized: u64,
    pub dead_letters: u64,
    pub scenarios: u64,
    pub detected: u64,
    pub benign_endpoint_hours: f64,
    pub false_alerts: u64,
    pub windows_malicious: u64,
    pub windows_benign: u64,
    pub roc_auc: Option<f64>,
    pub pr_auc: Option<f64>,
    pub median_seconds_to_detect: Option<f64>,
    pub confusion: Confusion,
    pub curve: Vec<CurvePoint>,
    /// The same with the rules that raise alerts beside the model; a threshold above 1 is rules alone.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub curve_with_rules: Vec<CurvePoint>,
}

/// Windows by class and by whether they reached the alert threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the usual names")]
pub struct Confusion {
    pub true_positive: u64,
    pub false_negative: u64,
    pub false_positive: u64,
    pub true_negative: u64,
}

/// One threshold of the curve of scenarios detected against false alerts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// `attack_prob` from which a window counts; [`RULE_SCORE`] is more than any.
    pub threshold: f64,
    /// Scenarios detected.
    pub detected: u64,
    /// False alerts, merged per host over the dedup window.
    pub false_alerts: u64,
}

/// One recording's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the report's")]
pub struct Row {
    pub id: String,
    pub family: String,
    pub platform: Platform,
    /// `None` where nobody is attacked.
    pub detected: Option<bool>,
    pub seconds_to_detect: Option<f64>,
    pub false_alerts: u64,
    pub benign_endpoint_hours: f64,
    /// Highest score of a malicious window.
    pub best_malicious: Option<f64>,
    /// Highest score of a benign window.
    pub worst_benign: Option<f64>,
}

/// Version and digest of a model package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelId {
    /// Name and version.
    pub version: String,
    /// SHA-256 of its manifest, which names the digests of all its files.
    pub digest: String,
}

/// How fast it went: the only part that differs between two runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Wall time.
    pub seconds: f64,
    /// Raw records per second.
    pub events_per_second: f64,
    /// Bytes of messages per second.
    pub bytes_per_second: f64,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Over everything.
    pub totals: Totals,
    /// By platform.
    pub platforms: BTreeMap<Platform, Totals>,
    /// By recording.
    pub scenarios: Vec<Row>,
    /// By platform.
    pub models: BTreeMap<Platform, ModelId>,
    /// Alert threshold of the run.
    pub threshold: f64,
    /// Version of the rule set, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ruleset: Option<String>,
    /// Wall time and speed.
    pub timing: Timing,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
        writeln!(
            f,
            "{:<10} {:>9} {:>10} {:>9} {:>7} {:>9} {:>9} {:>9} {:>8} {:>8} {:>10}",
            "", "events", "dead", "detected", "false", "benign h", "mal. win", "ben. win", "ROC", "PR", "median s"
        )?;
        let platforms = self.platforms.iter().map(|(p, t)| (p.name(), t));
        for (name, t) in platforms.chain([("all", &self.totals)]) {
            writeln!(
                f,
                "{:<10} {:>9} {:>10} {:>9} {:>7} {:>9.2} {:>9} {:>9} {:>8} {:>8} {:>10}",
                name,
                t.events,
                t.dead_letters,
                format!("{}/{}", t.detected, t.scenarios),
                t.false_alerts,
                t.benign_endpoint_hours,
                t.windows_malicious,
                t.windows_benign,
                show(t.roc_auc),
                show(t.pr_auc),
                t.median_seconds_to_detect.map_or("-".to_owned(), |s| format!("{s:.0}"))
            )?;
        }
        for (platform, t) in &self.platforms {
            for (with, curve) in [("", &t.curve), (" with rules", &t.curve_with_rules)] {
                let at = |k: u64| curve.iter().filter(|p| p.false_alerts <= k).map(|p| p.detected).max().unwrap_or(0);
                if !curve.is_empty() {
                    let at = [0, 1, 2, 4].map(at);
                    writeln!(
                        f,
                        "{platform}{with}: detected at 0/1/2/4 false alerts {}/{}/{}/{}",
                        at[0], at[1], at[2], at[3]
                    )?;
                }
            }
            if let Some(p) = t.curve_with_rules.first().filter(|p| p.threshold >= RULE_SCORE) {
                writeln!(f, "{platform} rules alone: {} detected at {} false alerts", p.detected, p.false_alerts)?;
            }
        }
        let missed: Vec<&str> =
            self.scenarios.iter().filter(|r| r.detected == Some(false)).map(|r| r.id.as_str()).collect();
        if !missed.is_empty() {
            writeln!(f, "missed: {}", missed.join(", "))?;
        }
        for (platform, model) in &self.models {
            writeln!(f, "model: {platform} {} ({})", model.version, &model.digest[..model.digest.len().min(12)])?;
        }
        write!(
            f,
            "{:.1} s, {:.0} events/s, {:.1} MB/s",
            self.timing.seconds,
            self.timing.events_per_second,
            self.timing.bytes_per_second / 1e6
        )
    }
}

/// Judges an outcome. `threshold`, `dedup_ms` and `rules_from` (`None`: no rules) are those of the run.
pub fn judge(
    recordings: &[Recording],
    outcome: &Outcome,
    threshold: f64,
    dedup_ms: i64,
    rules_from: Option<RuleLevel>,
) -> (Totals, BTreeMap<Platform, Totals>, Vec<Row>) {
    let by_id: BTreeMap<&str, &Recording> = recordings.iter().map(|r| (r.id.as_str(), r)).collect();
    let mut judged: Vec<Judged<'_>> = outcome
        .windows
        .iter()
        .filter_map(|window| {
            let recording = *by_id.get(window.recording.as_str())?;
            let class = recording.class(&window.host, window.start_ms, window.end_ms);
            Some(Judged { window, recording, class })
        })
        .collect();
    judged.sort_by(|a, b| a.order().cmp(&b.order()));
    let by_inference: BTreeMap<&str, &Judged<'_>> =
        judged.iter().map(|j| (j.window.inference_id.as_str(), j)).collect();

    let mut rows: Vec<Row> = recordings
        .iter()
        .map(|recording| {
            let mut first: Option<TimeMs> = None;
            let mut false_alerts = 0;
            for alert in outcome.alerts.values().filter(|a| a.recording == recording.id) {
                let detections: Vec<_> =
                    alert.detections.iter().filter_map(|id| by_inference.get(id.as_str())).collect();
                false_alerts +=
                    u64::from(!detections.is_empty() && detections.iter().all(|j| j.class == Class::Benign));
                let hits = detections.iter().filter(|j| j.class == Class::Malicious).map(|j| j.window.end_ms);
                first = first.into_iter().chain(hits).min();
            }
            let best = |class| {
                let scores = judged.iter().filter(|j| j.class == class && j.window.recording == recording.id);
                scores.map(|j| j.window.attack_prob).max_by(f64::total_cmp)
            };
            let seconds = first.zip(recording.first_attack()).map(|(hit, from)| (hit - from).max(0) as f64 / 1000.0);
            Row {
                id: recording.id.clone(),
                family: recording.family.clone(),
                platform: recording.platform,
                detected: recording.is_scenario().then_some(first.is_some()),
                seconds_to_detect: seconds,
                false_alerts,
                benign_endpoint_hours: round(recording.benign_hours()),
                best_malicious: best(Class::Malicious),
                worst_benign: best(Class::Benign),
            }
        })
        .collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));

    let total = |platform: Option<Platform>| {
        let of = |p: Platform| platform.is_none_or(|wanted| wanted == p);
        let rows: Vec<&Row> = rows.iter().filter(|r| of(r.platform)).collect();
        let judged: Vec<&Judged<'_>> = judged.iter().filter(|j| of(j.recording.platform)).collect();
        let count = |counts: &BTreeMap<String, u64>| -> u64 {
            let known = |id: &str| by_id.get(id).map_or(platform.is_none(), |r| of(r.platform));
            counts.iter().filter(|(id, _)| known(id)).map(|(_, n)| n).sum()
        };
        let (normalized, dead_letters) = (count(&outcome.normalized), count(&outcome.dead_letters));
        let mut seconds: Vec<f64> = rows.iter().filter_map(|r| r.seconds_to_detect).collect();
        seconds.sort_by(f64::total_cmp);
        let mut scores: Vec<(f64, bool)> = judged
            .iter()
            .filter(|j| j.class != Class::Ambiguous)
            .map(|j| (j.window.attack_prob, j.class == Class::Malicious))
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let cell = |class, hit| {
            judged.iter().filter(|j| j.class == class && (j.window.attack_prob >= threshold) == hit).count() as u64
        };
        let confusion = Confusion {
            true_positive: cell(Class::Malicious, true),
            false_negative: cell(Class::Malicious, false),
            false_positive: cell(Class::Benign, true),
            true_negative: cell(Class::Benign, false),
        };
        Totals {
            events: normalized + dead_letters,
            normalized,
            dead_letters,
            scenarios: rows.iter().filter(|r| r.detected.is_some()).count() as u64,
            detected: rows.iter().filter(|r| r.detected == Some(true)).count() as u64,
            benign_endpoint_hours: round(rows.iter().map(|r| r.benign_endpoint_hours).sum()),
            false_alerts: rows.iter().map(|r| r.false_alerts).sum(),
            windows_malicious: confusion.true_positive + confusion.false_negative,
            windows_benign: confusion.false_positive + confusion.true_negative,
            roc_auc: roc_auc(&scores).map(round),
            pr_auc: pr_auc(&scores).map(round),
            median_seconds_to_detect: median(&seconds),
            confusion,
            curve: curve(&judged, dedup_ms, |w| w.attack_prob),
            curve_with_rules: rules_from.map_or_else(Vec::new, |from| {
                curve(&judged, dedup_ms, |w| if w.rule >= Some(from) { RULE_SCORE } else { w.attack_prob })
            }),
        }
    };
    let platforms = Platform::ALL
        .into_iter()
        .filter(|p| recordings.iter().any(|r| r.platform == *p))
        .map(|p| (p, total(Some(p))))
        .collect();
    (total(None), platforms, rows)
}

struct Judged<'a> {
    window: &'a ScoredWindow,
    recording: &'a Recording,
    class: Class,
}

impl Judged<'_> {
    fn order(&self) -> (&str, &str, TimeMs, &str) {
        let w = self.window;
        (&w.recording, &w.host, w.end_ms, &w.inference_id)
    }
}

/// Six decimals: the same digits on every machine.
fn round(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

fn median(sorted: &[f64]) -> Option<f64> {
    let n = sorted.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(sorted[n / 2]),
        _ => Some(round((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0)),
    }
}

/// Area under the ROC curve, ties counted half. `scores` descend. `None` where one class is missing.
fn roc_auc(scores: &[(f64, bool)]) -> Option<f64> {
    let positives = scores.iter().filter(|(_, y)| *y).count() as f64;
    let negatives = scores.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (mut above, mut area) = (0.0, 0.0);
    for group in scores.chunk_by(|a, b| a.0 == b.0) {
        let p = group.iter().filter(|(_, y)| *y).count() as f64;
        let n = group.len() as f64 - p;
        area += n * (above + p / 2.0);
        above += p;
    }
    Some(area / (positives * negatives))
}

/// Average precision. `scores` descend. `None` where nothing is positive.
fn pr_auc(scores: &[(f64, bool)]) -> Option<f64> {
    let positives = scores.iter().filter(|(_, y)| *y).count() as f64;
    if positives == 0.0 {
        return None;
    }
    let (mut seen, mut hits, mut area) = (0.0, 0.0, 0.0);
    for group in scores.chunk_by(|a, b| a.0 == b.0) {
        let p = group.iter().filter(|(_, y)| *y).count() as f64;
        seen += group.len() as f64;
        hits += p;
        area += p / positives * hits / seen;
    }
    Some(area)
}

/// Scenarios detected and false alerts at every score that occurs; at most the points up to 100 false alerts.
fn curve(judged: &[&Judged<'_>], dedup_ms: i64, score: impl Fn(&ScoredWindow) -> f64) -> Vec<CurvePoint> {
    let mut best: BTreeMap<&str, f64> = BTreeMap::new();
    for j in judged.iter().filter(|j| j.class == Class::Malicious) {
        let best = best.entry(&j.window.recording).or_insert(0.0);
        *best = best.max(score(j.window));
    }
    let mut thresholds: Vec<f64> = judged.iter().map(|j| score(j.window)).filter(|p| *p > 0.0).collect();
    thresholds.sort_by(|a, b| b.total_cmp(a));
    thresholds.dedup();
    let mut points: Vec<CurvePoint> = Vec::new();
    for threshold in thresholds {
        let point = CurvePoint {
            threshold,
            detected: best.values().filter(|p| **p >= threshold).count() as u64,
            false_alerts: false_alerts(judged, dedup_ms, |w| score(w) >= threshold),
        };
        match points.last_mut() {
            Some(last)
                if last.threshold != RULE_SCORE
                    && (last.detected, last.false_alerts) == (point.detected, point.false_alerts) =>
            {
                *last = point;
            }
            _ => points.push(point),
        }
        if point.false_alerts > 100 {
            break;
        }
    }
    points
}

/// Groups of detections of one host, no further apart than the dedup window, that are benign throughout.
fn false_alerts(judged: &[&Judged<'_>], dedup_ms: i64, detects: impl Fn(&ScoredWindow) -> bool) -> u64 {
    let mut count = 0;
    let mut group: Option<(&Judged<'_>, bool)> = None;
    for j in judged.iter().filter(|j| detects(j.window)) {
        let benign = j.class == Class::Benign;
        group = match group {
            Some((last, all))
                if (&last.window.recording, &last.window.host) == (&j.window.recording, &j.window.host)
                    && j.window.end_ms - last.window.end_ms <= dedup_ms =>
            {
                Some((j, all && benign))
            }
            Some((_, all)) => {
                count += u64::from(all);
                Some((j, benign))
            }
            None => Some((j, benign)),
        };
    }
    count + u64::from(group.is_some_and(|(_, all)| all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(id: &str, attacks: &[(i64, i64)], benign: &[(i64, i64)]) -> Recording {
        let of = |i: &[(i64, i64)]| Intervals::from([("h".to_owned(), i.to_vec())]);
        let (mut attacks, mut benign) = (of(attacks), of(benign));
        attacks.values_mut().chain(benign.values_mut()).for_each(merge);
        let (id, family) = (id.to_owned(), String::new());
        Recording { id, family, platform: Platform::Linux, start: 0, end: 600_000, attacks, benign }
    }

    fn window(recording: &str, end_s: i64, attack_prob: f64) -> ScoredWindow {
        ScoredWindow {
            inference_id: format!("{recording}-{end_s}"),
            recording: recording.to_owned(),
            host: "h".to_owned(),
            start_ms: (end_s - 180) * 1000,
            end_ms: end_s * 1000,
            attack_prob,
            prediction: Prediction::Benign,
            rule: None,
        }
    }

    #[test]
    fn judges_by_the_definitions() {
        let recordings = [
            recording("a", &[(300_000, 320_000)], &[(0, 290_000)]),
            recording("b", &[], &[(0, 300_000), (300_500, 600_000)]),
        ];
        let windows = vec![
            window("a", 60, 0.9),  // benign, cut to the recording
            window("a", 295, 0.2), // ambiguous: reaches past the benign interval
            window("a", 330, 0.8), // malicious
            window("a", 510, 0.1), // ambiguous
            window("b", 400, 0.6), // benign: the two intervals are one
            window("b", 600, 0.1), // benign
        ];
        let alert = |recording: &str, ids: &[&str]| JudgedAlert {
            recording: recording.to_owned(),
            host: "h".to_owned(),
            detections: ids.iter().map(|s| (*s).to_owned()).collect(),
        };
        let alerts =
            BTreeMap::from([("1".to_owned(), alert("a", &["a-60"])), ("2".to_owned(), alert("a", &["a-330"]))]);
        let normalized = BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 3)]);
        let outcome = Outcome { windows, alerts, normalized, dead_letters: BTreeMap::from([(String::new(), 2)]) };
        let (totals, platforms, rows) = judge(&recordings, &outcome, 0.7, 300_000, None);
        assert_eq!((totals.scenarios, totals.detected, totals.false_alerts), (1, 1, 1));
        assert_eq!((totals.windows_malicious, totals.windows_benign), (1, 3));
        assert_eq!((totals.events, totals.normalized, totals.dead_letters), (12, 10, 2));
        assert_eq!(platforms[&Platform::Linux].events, 10, "a line of no recording has no platform");
        assert_eq!(totals.roc_auc, Some(round(2.0 / 3.0)));
        assert_eq!(
            totals.confusion,
            Confusion { true_positive: 1, false_negative: 0, false_positive: 1, true_negative: 2 }
        );
        assert_eq!(totals.median_seconds_to_detect, Some(30.0));
        assert_eq!(rows[1].detected, None);
        let at = |t: f64| totals.curve.iter().find(|p| p.threshold == t).map(|p| (p.detected, p.false_alerts));
        assert_eq!(at(0.9), Some((0, 1)));
        // At 0.8 the benign and the malicious window of "a" lie within the dedup window: one alert, not false.
        assert_eq!(at(0.8), Some((1, 0)));
    }

    #[test]
    fn rules_stand_above_every_probability() {
        let recordings = [recording("a", &[(300_000, 320_000)], &[(0, 290_000)])];
        let rule = |level, window: ScoredWindow| ScoredWindow { rule: Some(level), ..window };
        let windows = vec![
            rule(RuleLevel::Medium, window("a", 20, 0.2)), // benign, below the level that raises alerts
            rule(RuleLevel::Critical, window("a", 330, 0.0)), // malicious
        ];
        let outcome = Outcome { windows, ..Outcome::default() };
        let curve = |from| judge(&recordings, &outcome, 0.7, 300_000, from).0.curve_with_rules;
        let points =
            |from| curve(Some(from)).iter().map(|p| (p.threshold, p.detected, p.false_alerts)).collect::<Vec<_>>();
        assert_eq!(points(RuleLevel::High), [(RULE_SCORE, 1, 0), (0.2, 1, 1)]);
        assert_eq!(points(RuleLevel::Medium), [(RULE_SCORE, 1, 1)]);
        assert_eq!(curve(None), []);
    }

    #[test]
    fn areas() {
        let scores = [(0.9, true), (0.8, false), (0.8, true), (0.1, false)];
        assert_eq!(roc_auc(&scores), Some(0.875));
        assert_eq!(roc_auc(&scores[..1]), None);
        let pr = pr_auc(&scores).unwrap();
        assert!((pr - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12, "{pr}");
    }
}
