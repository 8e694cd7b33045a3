//! What a reader of the output topics sees, in a form in which two runs can be compared.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use logster_schema::{Alert, OutputTopic, RuleLevel, RuleMatch};
use logster_sinks::client::KafkaConfig;
use logster_sinks::reader::{End, read_committed};
use serde::Deserialize;
use serde_json::value::RawValue;

const WAIT: Duration = Duration::from_secs(20);

/// Records of one output topic by key, each key's in order; what is written by raw offset (normalized events, dead
/// letters) by key and raw topic, since the topics of one host have no common order. Of a normalized event, its id
/// and a digest.
#[derive(Default)]
pub struct Outputs(BTreeMap<OutputTopic, BTreeMap<String, Vec<String>>>);

impl Outputs {
    /// The files that runs wrote into `dirs`.
    pub fn of_files(dirs: &[&Path]) -> Self {
        #[derive(Deserialize)]
        struct Line<'a> {
            key: Option<String>,
            #[serde(borrow)]
            value: &'a RawValue,
        }
        let mut outputs = Self::default();
        for dir in dirs {
            for topic in OutputTopic::ALL {
                let path = dir.join(format!("{}.ndjson", topic.name()));
                for line in std::fs::read_to_string(path).expect("every topic's file").lines() {
                    let line: Line = serde_json::from_str(line).expect("a JSON line");
                    outputs.file(topic, line.key.as_deref(), line.value.get());
                }
            }
        }
        outputs
    }

    /// What is committed on a broker.
    pub fn of_topics(kafka: &KafkaConfig) -> Self {
        let mut outputs = Self::default();
        for topic in OutputTopic::ALL {
            let mut records = read_committed(kafka, topic.name(), End::Stable, WAIT).expect("the topic can be read");
            records.sort_by_key(|r| (r.partition, r.offset));
            for record in records {
                let key = record.key.map(|key| String::from_utf8(key).expect("keys are UTF-8"));
                let value = String::from_utf8(record.value.expect("outputs have values")).expect("outputs are UTF-8");
                outputs.file(topic, key.as_deref(), &value);
            }
        }
        outputs
    }

    fn file(&mut self, topic: OutputTopic, key: Option<&str>, value: &str) {
        #[derive(Deserialize)]
        struct Raw<'a> {
            #[serde(alias = "topic", borrow)]
            source: Cow<'a, str>,
            event_id: Option<&'a str>,
        }
        let (source, shown) = match topic {
            OutputTopic::Normalized | OutputTopic::DeadLetters => {
                let raw: Raw = serde_json::from_str(value).expect("outputs are JSON");
                let mut digest = DefaultHasher::new();
                value.hash(&mut digest);
                let shown = raw.event_id.map(|id| format!("{id} {:016x}", digest.finish()));
                (raw.source.into_owned(), shown.unwrap_or_else(|| value.to_owned()))
            }
            OutputTopic::Results | OutputTopic::Alerts => (String::new(), value.to_owned()),
        };
        let key = format!("{} {source}", key.unwrap_or("-"));
        self.0.entry(topic).or_default().entry(key).or_default().push(shown);
    }

    /// Records of a topic by key.
    pub fn keys(&self, topic: OutputTopic) -> impl Iterator<Item = (&str, &[String])> {
        self.0.get(&topic).into_iter().flatten().map(|(key, records)| (key.as_str(), records.as_slice()))
    }

    /// Records of a topic.
    pub fn count(&self, topic: OutputTopic) -> usize {
        self.keys(topic).map(|(_, records)| records.len()).sum()
    }

    /// Where another run differs from this one: a line a key.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for topic in OutputTopic::ALL {
            let got: BTreeMap<&str, &[String]> = other.keys(topic).collect();
            let want: BTreeMap<&str, &[String]> = self.keys(topic).collect();
            for (key, records) in &want {
                let other = got.get(key).copied().unwrap_or_default();
                if *records != other {
                    let differ = records.iter().zip(other).position(|(a, b)| a != b);
                    let at = differ.unwrap_or(records.len().min(other.len()));
                    found.push(format!(
                        "{} of key {key} differ at {at} ({} and {} records)\nwant {:?}\ngot  {:?}",
                        topic.name(),
                        records.len(),
                        other.len(),
                        records.get(at),
                        other.get(at)
                    ));
                }
            }
            let unknown = got.keys().filter(|key| !want.contains_key(*key));
            found.extend(unknown.map(|key| format!("{} has a key that it should not: {key}", topic.name())));
        }
        found
    }

    /// Fails, saying where, if another run differs.
    pub fn assert_same(&self, what: &str, other: &Self) {
        let found = self.differences(other);
        assert!(found.is_empty(), "{what}: {}", found.join("\n"));
    }

    /// Alerts that contradict the results: every detection that an alert cites is a committed result of its
    /// endpoint, and the alert's probability is that of a detection merged into it.
    pub fn inconsistent_alerts(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Verdict {
            inference_id: String,
            tenant_id: String,
            endpoint_id: String,
            prediction: String,
            attack_prob: f64,
            #[serde(default)]
            rules: Vec<RuleMatch>,
        }
        let is_detection = |r: &Verdict| {
            r.prediction == "attack" || r.rules.iter().any(|rule| rule.new > 0 && rule.level >= RuleLevel::High)
        };
        let results = self.keys(OutputTopic::Results).flat_map(|(_, records)| records);
        let results: Vec<Verdict> = results.map(|text| serde_json::from_str(text).expect("a result")).collect();
        let by_id: BTreeMap<&str, &Verdict> = results.iter().map(|r| (r.inference_id.as_str(), r)).collect();
        let mut found = Vec::new();
        if by_id.len() != results.len() {
            found.push(format!("{} results have {} ids", results.len(), by_id.len()));
        }
        for text in self.keys(OutputTopic::Alerts).flat_map(|(_, records)| records) {
            let alert: Alert = serde_json::from_str(text).expect("an alert");
            let mut cited = Vec::new();
            for id in &alert.inference_ids {
                match by_id.get(id.as_str()) {
                    Some(r) if is_detection(r) && r.endpoint_id == alert.endpoint_id => cited.push(*r),
                    Some(_) => found.push(format!("alert {} cites {id}, which is no detection of it", alert.alert_id)),
                    None => found.push(format!("alert {} cites {id}, which is not committed", alert.alert_id)),
                }
            }
            // Long alerts cite the latest detections only.
            let all_cited = alert.detection_count as usize == cited.len();
            let same = |r: &&Verdict| {
                (&r.tenant_id, &r.endpoint_id) == (&alert.tenant_id, &alert.endpoint_id)
                    && r.attack_prob == alert.attack_prob
            };
            if !cited.iter().any(same) && (all_cited || !by_id.values().any(same)) {
                found.push(format!("alert {} has probability {} of no detection", alert.alert_id, alert.attack_prob));
            }
        }
        found
    }
}
