//! What a run prints for a person: each alert as it is raised, and a table at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use logster_schema::{Alert, InferenceResult, OutputRecord, OutputTopic, time};

use crate::engine::Observer;

#[derive(Default)]
struct Counts {
    print: bool,
    normalized: u64,
    dead_letters: u64,
    results: BTreeMap<&'static str, u64>,
    endpoints: BTreeSet<String>,
    /// Last revision of each alert.
    alerts: BTreeMap<String, Alert>,
}

/// Counts the outputs of a run and keeps the last state of its alerts. Clones share the numbers.
#[derive(Clone)]
pub struct Summary(Arc<Mutex<Counts>>);

impl Summary {
    /// Nothing yet. `print`: each alert goes to standard output when it is raised.
    pub fn new(print: bool) -> Self {
        Self(Arc::new(Mutex::new(Counts { print, ..Counts::default() })))
    }

    /// Shows it every record of a run.
    pub fn observer(&self) -> Observer {
        let counts = self.0.clone();
        Arc::new(Mutex::new(move |record: &OutputRecord| {
            counts.lock().expect("no panic while it is held").see(record);
        }))
    }

    /// The alerts in the order in which they were raised.
    pub fn alerts(&self) -> Vec<Alert> {
        let counts = self.0.lock().expect("no panic while it is held");
        let mut alerts: Vec<Alert> = counts.alerts.values().cloned().collect();
        alerts.sort_by(|a, b| (a.created_at, &a.alert_id).cmp(&(b.created_at, &b.alert_id)));
        alerts
    }
}

impl Counts {
    fn see(&mut self, record: &OutputRecord) {
        match record.topic {
            OutputTopic::Normalized => self.normalized += 1,
            OutputTopic::DeadLetters => self.dead_letters += 1,
            OutputTopic::Results => {
                let r: InferenceResult = serde_json::from_slice(&record.value).expect("results are ours");
                *self.results.entry(r.prediction.name()).or_default() += 1;
                self.endpoints.insert(r.endpoint().key().to_owned());
            }
            OutputTopic::Alerts => {
                let alert: Alert = serde_json::from_slice(&record.value).expect("alerts are ours");
                if self.print && !self.alerts.contains_key(&alert.alert_id) {
                    println!("{}", raised(&alert));
                }
                self.alerts.insert(alert.alert_id.clone(), alert);
            }
        }
    }
}

/// The lines that announce an alert. Text from logs is printed with its control characters escaped.
fn raised(alert: &Alert) -> String {
    let mut text = format!(
        "{} ALERT {} {} ({}) attack_prob {:.3}",
        time::format(alert.created_at),
        alert.severity.name(),
        clean(&alert.endpoint_id),
        alert.platform,
        alert.attack_prob
    );
    if !alert.reason.is_empty() {
        text.push_str(&format!("\n    why: {}", clean(&alert.reason)));
    }
    for edge in alert.key_edges.iter().take(3) {
        text.push_str(&format!("\n    - {}", clean(&edge.sentence)));
    }
    for rule in &alert.rules {
        text.push_str(&format!("\n    rule: {} ({}): {}", clean(&rule.title), rule.level, clean(&rule.evidence)));
    }
    if !alert.ttp_techniques.is_empty() {
        text.push_str(&format!("\n    ATT&CK: {}", alert.ttp_techniques.join(" ")));
    }
    for related in &alert.related_endpoints {
        text.push_str(&format!("\n    related: {}: {}", clean(&related.endpoint_id), clean(&related.evidence)));
    }
    text
}

/// A terminal must not be steered by a log line.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(400).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alerts = self.alerts();
        let counts = self.0.lock().map_err(|_| fmt::Error)?;
        let verdicts: Vec<String> = counts.results.iter().map(|(name, n)| format!("{n} {name}")).collect();
        writeln!(f, "raw records  {}", counts.normalized + counts.dead_letters)?;
        writeln!(f, "  normalized {}", counts.normalized)?;
        writeln!(f, "  dead       {}", counts.dead_letters)?;
        writeln!(f, "endpoints    {}", counts.endpoints.len())?;
        writeln!(f, "windows      {} ({})", counts.results.values().sum::<u64>(), verdicts.join(", "))?;
        write!(f, "alerts       {}", alerts.len())?;
        if !alerts.is_empty() {
            let head = ["raised", "severity", "endpoint", "prob", "count", "related", "techniques"];
            let [raised, severity, endpoint, prob, count, related, techniques] = head;
            write!(
                f,
                "\n\n{raised:<24} {severity:<9} {endpoint:<28} {prob:>5} {count:>5}  {related:<24} {techniques}"
            )?;
        }
        for a in &alerts {
            let related: Vec<String> = a.related_endpoints.iter().map(|r| clean(&r.endpoint_id)).collect();
            write!(
                f,
                "\n{:<24} {:<9} {:<28} {:>5.2} {:>5}  {:<24} {}",
                time::format(a.created_at),
                a.severity.name(),
                clean(&a.endpoint_id),
                a.attack_prob,
                a.detection_count,
                related.join(","),
                a.ttp_techniques.join(" ")
            )?;
        }
        Ok(())
    }
}
