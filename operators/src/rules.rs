//! Evaluates the user's Sigma rules on every event, where it was read.
//!
//! - Input: observations as the normalizer leaves them, before the exchange by shard.
//! - Output: the same, each with the rules that match it ([`Observation::rules`]). From there on a match follows
//!   its event: into the pane of its time, from the sealed pane into the verdict, with the verdict into dedup. There
//!   is no second path to a commit, so what holds of the model's detections (exactly once, recovery, replay, any
//!   number of workers) holds of matches.
//! - State: none. Rules that count or relate several events (Sigma correlations) are not evaluated.
//! - Ordering: none; each event stands alone, and is evaluated once although six windows see it.
//! - Failure: none at run time; a rule that cannot be read is found by [`RuleSet::load`], before the run starts.
//!
//! Cost: without rules the operator is not built. With them, an event meets only the rules of its log source
//! ([`logsource`]), and of these only those that its values make possible (rsigma's candidate index).
//!
//! Every event is evaluated, also one that the endpoint's budget later keeps out of its graph: flooding an endpoint
//! does not hide a match.

mod event;
mod load;
mod logsource;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use logster_schema::{Observation, RuleHit, RuleLevel};
use prometheus::{Counter, IntCounter};
use rsigma_eval::{Engine, EvaluationResult, Event};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use event::View;
pub use load::{Finding, Source};
use logsource::EventClass;

/// Longest [`RuleHit::evidence`], in bytes.
const EVIDENCE_BYTES: usize = 400;
/// Longest value in it, in bytes.
const VALUE_BYTES: usize = 160;

/// What a result says of a rule that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its id; its title, where it has none. No other rule of the set has it.
    pub id: String,
    /// Title.
    pub title: String,
    /// Level.
    pub level: RuleLevel,
    /// ATT&CK techniques of its tags, sorted.
    pub techniques: Vec<String>,
}

/// The rules of a run, compiled. The same files give the same set, wherever they lie and in whatever order.
pub struct RuleSet {
    /// By id: their number is their place.
    rules: Vec<Rule>,
    /// The rules of each class of events that has any.
    engines: BTreeMap<EventClass, Engine>,
    digest: String,
}

impl RuleSet {
    /// The rules by number.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// SHA-256 over the contents of its files, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The start of the digest: names the set in results and alerts.
    pub fn version(&self) -> &str {
        &self.digest[..12]
    }

    /// The rules that match an event, by number, each once.
    pub fn evaluate(&self, o: &Observation) -> Vec<RuleHit> {
        let mut hits: Vec<RuleHit> = Vec::new();
        for class in logsource::classes_of(&o.activity) {
            let Some(engine) = self.engines.get(&class) else { continue };
            let view = View::of(class, o);
            for matched in engine.evaluate(&view) {
                // The compiled rule's title is its number (`load`).
                let Ok(rule) = matched.header.rule_title.parse() else { continue };
                if let Err(at) = hits.binary_search_by_key(&rule, |hit| hit.rule) {
                    hits.insert(at, RuleHit { rule, evidence: evidence(&matched, &view) });
                }
            }
        }
        hits
    }
}

/// Which program, and which fields matched with what.
fn evidence(matched: &EvaluationResult, view: &View<'_>) -> String {
    let mut parts: BTreeSet<String> = BTreeSet::new();
    for m in matched.as_detection().map_or(&[][..], |body| &body.matched_fields) {
        let value = match &m.value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        parts.insert(format!("{}: {}", m.field, &value[..value.floor_char_boundary(VALUE_BYTES)]));
    }
    let mut text = String::new();
    let program = ["Image", "SourceImage"].into_iter().find_map(|field| Some((field, view.get_field(field)?)));
    let program = program.and_then(|(field, value)| Some(format!("{field}: {}", value.as_str()?)));
    for part in program.clone().into_iter().chain(parts.into_iter().filter(|p| Some(p) != program.as_ref())) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&part);
    }
    text.truncate(text.floor_char_boundary(EVIDENCE_BYTES));
    text
}

/// Counters of the operator.
#[derive(Clone)]
pub struct RulesMetrics {
    /// Matches by level, in the order of [`RuleLevel::ALL`].
    pub matches: [IntCounter; RuleLevel::ALL.len()],
    /// Seconds spent evaluating.
    pub seconds: Counter,
}

/// The timely operator. `None`: nothing is added to the dataflow.
pub fn rules<'scope>(
    observations: StreamVec<'scope, u64, Observation>,
    set: Option<Arc<RuleSet>>,
    metrics: RulesMetrics,
) -> StreamVec<'scope, u64, Observation> {
    let Some(set) = set else { return observations };
    observations.unary::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "rules", move |_cap, _info| {
        move |input, output| {
            input.for_each(|time, batch| {
                let began = Instant::now();
                for o in batch.iter_mut() {
                    let hits = set.evaluate(o);
                    for hit in &hits {
                        metrics.matches[set.rules[hit.rule as usize].level as usize].inc();
                    }
                    o.rules = (!hits.is_empty()).then(|| Box::new(hits));
                }
                metrics.seconds.inc_by(began.elapsed().as_secs_f64());
                output.session(&time).give_container(batch);
            });
        }
    })
}
