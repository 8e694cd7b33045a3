//! Reads rules, finds what is wrong with them, and compiles them by class of events.
//!
//! An *error* is a rule that cannot be read or compiled, or an id that two rules share: a run does not start with one.
//! A *warning* is a rule that will not do what its author expects: its log source has no events here, it asks for a
//! field that the events do not have, it has no level, or it is a correlation.

use std::collections::{BTreeMap, BTreeSet};

use logster_schema::RuleLevel;
use rsigma_eval::{CompiledRule, Engine};
use rsigma_parser::{
    Detection, LintWarning, Modifier, Severity as LintSeverity, SigmaCollection, SigmaRule, lint_yaml_str,
    parse_sigma_yaml,
};
use sha2::{Digest, Sha256};

use super::logsource::{self, EventClass};
use super::{Rule, RuleSet};

/// The text of one file of rules.
#[derive(Clone, Debug)]
pub struct Source {
    /// As the user knows it.
    pub name: String,
    /// Content.
    pub text: String,
}

/// Something wrong with the rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// A run does not start with it.
    pub error: bool,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// A rule and where it stands.
struct Placed<'a> {
    file: &'a str,
    line: usize,
    id: String,
    rule: SigmaRule,
}

impl Placed<'_> {
    fn finding(&self, error: bool, what: String, remedy: &str) -> Finding {
        Finding { file: self.file.to_owned(), line: self.line, error, what, remedy: remedy.to_owned() }
    }
}

impl RuleSet {
    /// Compiles the rules of `sources`, in whatever order. With errors among the findings the set lacks rules.
    pub fn load(sources: &[Source]) -> (Self, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut placed = Vec::new();
        let mut filters = Vec::new();
        // The same file twice, a folder and a file in it, or two folders: its rules count once.
        let contents: BTreeMap<[u8; 32], &Source> =
            sources.iter().rev().map(|source| (Sha256::digest(&source.text).into(), source)).collect();
        for source in contents.values() {
            let collection = parse_sigma_yaml(&source.text).unwrap_or_else(|error| {
                let mut failed = SigmaCollection::new();
                failed.errors.push(error.to_string());
                failed
            });
            findings.extend(refusals(source, &collection.errors));
            for correlation in &collection.correlations {
                findings.push(Finding {
                    file: source.name.clone(),
                    line: line_of_title(&source.text, &correlation.title, &mut BTreeSet::new()),
                    error: false,
                    what: format!(
                        "\"{}\" is a correlation: it is not evaluated, the rules it names are",
                        correlation.title
                    ),
                    remedy:
                        "give those rules the level that they deserve alone; alerts of one endpoint are merged anyway"
                            .to_owned(),
                });
            }
            let mut taken = BTreeSet::new();
            for rule in collection.rules {
                placed.push(Placed {
                    file: &source.name,
                    line: line_of_title(&source.text, &rule.title, &mut taken),
                    id: rule.id.clone().unwrap_or_else(|| rule.title.clone()),
                    rule,
                });
            }
            filters.extend(collection.filters.into_iter().map(|filter| (source.name.clone(), filter)));
        }
        placed.sort_by(|a, b| (&a.id, a.file, a.line).cmp(&(&b.id, b.file, b.line)));
        filters.sort_by(|a, b| (&a.1.id, &a.1.title, &a.0).cmp(&(&b.1.id, &b.1.title, &b.0)));
        for pair in placed.windows(2).filter(|pair| pair[0].id == pair[1].id) {
            let other = format!("{}:{}", pair[0].file, pair[0].line);
            let what = format!("\"{}\" has the id {}, which {other} has too", pair[1].rule.title, pair[1].id);
            findings.push(pair[1].finding(true, what, "give one of them a new id, or leave one file out"));
        }

        // All of them in one engine first: compiled once, filtered once.
        let mut all = Engine::new();
        let mut compiled_from = Vec::new();
        let errors = all.add_rules(placed.iter().map(|p| &p.rule));
        for (at, p) in placed.iter().enumerate() {
            match errors.iter().find(|(failed, _)| *failed == at) {
                Some((_, error)) => {
                    let what = format!("\"{}\" cannot be compiled: {error}", p.rule.title);
                    findings.push(p.finding(true, what, "correct the value or the modifier that it names"));
                }
                None => compiled_from.push(p),
            }
        }
        for (file, filter) in &filters {
            if let Err(error) = all.apply_filter(filter) {
                findings.push(Finding {
                    file: file.clone(),
                    line: 1,
                    error: true,
                    what: format!("the filter \"{}\" cannot be compiled: {error}", filter.title),
                    remedy: "correct the value or the modifier that it names".to_owned(),
                });
            }
        }

        let mut by_class: BTreeMap<EventClass, Vec<CompiledRule>> = BTreeMap::new();
        let mut rules = Vec::new();
        for (number, (p, compiled)) in compiled_from.iter().zip(all.rules()).enumerate() {
            for class in logsource::classes(&p.rule.logsource) {
                // All that a match is to say is the rule's number: titles and tags would be copied at every match.
                by_class.entry(class).or_default().push(CompiledRule {
                    title: number.to_string(),
                    id: None,
                    tags: Vec::new(),
                    include_event: false,
                    ..compiled.clone()
                });
            }
            rules.push(Rule {
                id: p.id.clone(),
                title: p.rule.title.clone(),
                level: level(&p.rule).unwrap_or(RuleLevel::Informational),
                techniques: techniques(&p.rule.tags),
            });
        }
        findings.extend(doubts(&placed));
        findings.sort();
        findings.dedup();

        let engine = |rules| {
            let mut engine = Engine::new();
            engine.extend_compiled_rules(rules);
            engine
        };
        let engines = by_class.into_iter().map(|(class, rules)| (class, engine(rules))).collect();
        let mut digest = Sha256::new();
        contents.keys().for_each(|content| digest.update(content));
        let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (Self { rules, engines, digest }, findings)
    }

    /// What the Sigma specification finds wrong with one file, beyond what stops or changes its evaluation here.
    pub fn lint(source: &Source) -> Vec<Finding> {
        let serious = |w: &LintWarning| matches!(w.severity, LintSeverity::Error | LintSeverity::Warning);
        let warnings = lint_yaml_str(&source.text).into_iter().filter(serious);
        let found = warnings.map(|w| Finding {
            file: source.name.clone(),
            line: w.span.map_or(1, |span| span.start_line as usize + 1),
            error: false,
            what: w.message,
            remedy: w.fix.map_or_else(|| format!("see the Sigma specification ({})", w.rule), |fix| fix.title),
        });
        found.collect()
    }
}

fn level(rule: &SigmaRule) -> Option<RuleLevel> {
    rule.level.and_then(|level| level.as_str().parse().ok())
}

/// `attack.t1059.001` to `T1059.001`.
fn techniques(tags: &[String]) -> Vec<String> {
    let technique = |tag: &String| {
        let id = tag.to_uppercase().strip_prefix("ATTACK.T")?.to_owned();
        let (number, sub) = id.split_once('.').map_or((&*id, None), |(number, sub)| (number, Some(sub)));
        let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
        (digits(number, 4) && sub.is_none_or(|sub| digits(sub, 3))).then(|| format!("T{id}"))
    };
    tags.iter().filter_map(technique).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The line of a rule's title that no earlier rule of the file has.
fn line_of_title(text: &str, title: &str, taken: &mut BTreeSet<usize>) -> usize {
    let is_title = |line: &str| {
        let value = line.strip_prefix("title:").map(|value| value.trim().trim_matches(['\'', '"']));
        // An escaped quote or a comment after the title: its beginning tells.
        value.is_some_and(|value| value == title || !value.is_empty() && title.starts_with(value))
    };
    let line =
        text.lines().enumerate().find(|(at, line)| is_title(line) && !taken.contains(at)).map_or(0, |(at, _)| at);
    taken.insert(line);
    line + 1
}

/// The parser's complaints with their places. It names none itself but for YAML, so each document is read again.
fn refusals(source: &Source, errors: &[String]) -> Vec<Finding> {
    if errors.is_empty() {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let is_end = |line: &&str| line.trim_end() == "---";
    let mut located: Vec<(usize, String)> = Vec::new();
    // Documents that build on each other mean nothing alone.
    if !lines.iter().any(|line| line.starts_with("action:")) {
        let mut start = 0;
        for document in lines.split(is_end) {
            let found = parse_sigma_yaml(&document.join("\n")).map_or_else(|e| vec![e.to_string()], |c| c.errors);
            located.extend(found.into_iter().map(|error| (start + place_in(document, &error), error)));
            start += document.len() + 1;
        }
    }
    if located.is_empty() {
        located = errors.iter().map(|error| (place_in(&lines, error), error.clone())).collect();
    }
    let finding = |(line, error): (usize, String)| Finding {
        file: source.name.clone(),
        line: line + 1,
        // Metadata that the evaluation does not use.
        error: !["invalid status", "'related'", "related[", "invalid sigma-version"]
            .iter()
            .any(|m| error.starts_with(m)),
        remedy: remedy(&error).to_owned(),
        what: error,
    };
    located.into_iter().map(finding).collect()
}

/// The line of a document, from 0, that a message speaks of; its first where that cannot be told.
fn place_in(document: &[&str], message: &str) -> usize {
    if let Some(rest) = message.split("at line ").nth(1)
        && let Ok(line) = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse::<usize>()
    {
        return line.saturating_sub(1);
    }
    let with = |text: &str| document.iter().position(|line| line.contains(text));
    let quoted = message.split('\'').nth(1).filter(|text| !text.is_empty());
    let first = document.iter().position(|line| !line.trim().is_empty() && !line.starts_with('#')).unwrap_or(0);
    match message {
        _ if message.starts_with("Condition") => with("condition:").unwrap_or(first),
        _ if message.starts_with("Missing required field") => first,
        _ => quoted.and_then(with).unwrap_or(first),
    }
}

fn remedy(message: &str) -> &'static str {
    let starts = |text: &str| message.starts_with(text);
    match () {
        () if starts("YAML") => "mind indentation, quotes and colons at this place",
        () if starts("Condition") => {
            "join names of selections with and, or, not, `1 of name*`, `all of them`; aggregations (`| count() ...`) \
             are not evaluated"
        }
        () if starts("Unknown modifier") => {
            "the modifiers are contains, startswith, endswith, all, re, cidr, base64, base64offset, wide, windash, \
             cased, exists, fieldref, expand, gt, gte, lt, lte"
        }
        () if starts("Missing required field") => "add it",
        () if starts("invalid level") => "the levels are informational, low, medium, high, critical",
        () if starts("Document is not") => "a rule begins with `title:`; leave other YAML out of rules.paths",
        () => "correct the rule, or leave its file out of rules.paths",
    }
}

/// What will not do what its author expects.
fn doubts(placed: &[Placed<'_>]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut unmapped: BTreeMap<String, Vec<&Placed<'_>>> = BTreeMap::new();
    let mut unknown: BTreeMap<(String, String), Vec<&Placed<'_>>> = BTreeMap::new();
    for p in placed {
        if level(&p.rule).is_none() {
            let what = format!("\"{}\" has no level: it counts as informational and never alerts", p.rule.title);
            found.push(p.finding(false, what, "add `level:` informational, low, medium, high or critical"));
        }
        if p.rule.id.is_none() {
            let what = format!("\"{}\" has no id: its title stands for it", p.rule.title);
            found.push(p.finding(
                false,
                what,
                "add `id:` with a new UUID, so that it keeps its name when its title changes",
            ));
        }
        let source = logsource::describe(&p.rule.logsource);
        let classes = logsource::classes(&p.rule.logsource);
        if classes.is_empty() {
            unmapped.entry(source).or_default().push(p);
            continue;
        }
        let mut fields = BTreeSet::new();
        p.rule.detection.named.values().for_each(|detection| fields_of(detection, &mut fields));
        for field in fields.into_iter().filter(|f| !classes.iter().any(|class| logsource::has_field(*class, f))) {
            unknown.entry((source.clone(), field.to_owned())).or_default().push(p);
        }
    }
    for (source, rules) in unmapped {
        let what = format!("{} can never match: there are no events of the log source {source}", rules_of(&rules));
        found.push(rules[0].finding(false, what, "leave such rules out; docs/operations.md lists the log sources"));
    }
    for ((source, field), rules) in unknown {
        let what = format!("{}: events of {source} have no field `{field}`", rules_of(&rules));
        found.push(rules[0].finding(false, what, "a condition on it never holds: use another field, or leave it"));
    }
    found
}

fn rules_of(rules: &[&Placed<'_>]) -> String {
    match rules {
        [one] => format!("\"{}\"", one.rule.title),
        [first, rest @ ..] => format!("{} rules (\"{}\" and {} more)", rules.len(), first.rule.title, rest.len()),
        [] => String::new(),
    }
}

/// The fields that a selection names.
fn fields_of<'a>(detection: &'a Detection, fields: &mut BTreeSet<&'a str>) {
    match detection {
        // Whether a field is there is a fair question of one that never is.
        Detection::AllOf(items) => fields.extend(
            items.iter().filter(|i| !i.field.has_modifier(Modifier::Exists)).filter_map(|i| i.field.name.as_deref()),
        ),
        Detection::AnyOf(parts) | Detection::And(parts) => parts.iter().for_each(|part| fields_of(part, fields)),
        Detection::ArrayMatch { field, .. } => drop(fields.insert(field)),
        Detection::Conditional { named, .. } => named.values().for_each(|part| fields_of(part, fields)),
        Detection::Keywords(_) => {}
    }
}
