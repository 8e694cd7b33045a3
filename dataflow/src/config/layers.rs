//! Brings the layers of a configuration together: file, then environment, then command line.
//!
//! Every value keeps its origin, so that each later complaint can say where it stands. Nothing here knows
//! what a setting means, only which settings there are.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem};
use super::value::{Raw, Refusal, Value, nearest};
use super::{SECTIONS, Setting};

/// Prefix of every environment variable that is read.
pub const ENV_PREFIX: &str = "LOGSTER_";

/// A configuration file that has been read from disk.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Path, as it is to be shown.
    pub name: &'a str,
    /// Contents.
    pub text: &'a str,
}

/// A setting given on the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// The option as written, without its value: shown as the origin.
    pub option: String,
    /// `section.key`.
    pub path: String,
    /// Text of the value.
    pub value: String,
}

/// What was found for the settings, and what was wrong with it.
pub(super) struct Values {
    found: BTreeMap<&'static str, (Raw, Origin)>,
    /// Where each property of a table-valued setting stands: `kafka.extra.group.id`.
    properties: BTreeMap<String, Origin>,
    /// Settings whose value was refused: a default stands in for them.
    refused: BTreeSet<&'static str>,
    pub problems: Vec<Problem>,
}

impl Values {
    /// Reads all layers. Lexical mistakes and unknown names become problems.
    pub fn gather(file: Option<File<'_>>, env: &[(String, String)], overrides: &[Override]) -> Self {
        let mut values = Self {
            found: BTreeMap::new(),
            properties: BTreeMap::new(),
            refused: BTreeSet::new(),
            problems: Vec::new(),
        };
        if let Some(file) = file {
            values.read_file(file);
        }
        values.read_environment(env);
        for over in overrides {
            let origin = Origin::CommandLine(over.option.clone());
            match setting(&over.path) {
                Some(known) => values.insert(known, Raw::Text(over.value.clone()), origin),
                None => values.problems.push(unknown_key(&over.path, origin)),
            }
        }
        values
    }

    /// The value of the setting at `path`; `default` where there is none or it is refused.
    pub fn take<T: Value>(&mut self, path: &'static str, default: &str, in_range: impl Fn(&T) -> Option<String>) -> T {
        let Some((raw, origin)) = self.found.get(path) else { return literal(default) };
        let refusal = match T::parse(raw) {
            Ok(value) => match in_range(&value) {
                None => return value,
                Some(range) => Refusal {
                    what: format!("is {}, which is out of range", value.toml().unwrap_or_default()),
                    remedy: Some(format!("choose from {range}")),
                },
            },
            Err(refusal) => refusal,
        };
        self.problems.push(Problem {
            what: format!("`{path}` {}", refusal.what),
            places: vec![origin.clone()],
            remedy: refusal.remedy,
        });
        self.refused.insert(path);
        literal(default)
    }

    /// Where the value of `path` comes from.
    pub fn origin(&self, path: &str) -> Origin {
        let origin = self.found.get(path).map(|(_, origin)| origin).or_else(|| self.properties.get(path));
        origin.cloned().unwrap_or(Origin::Default)
    }

    /// Whether a default stands in for a refused value of `path`.
    pub fn is_refused(&self, path: &str) -> bool {
        self.refused.contains(path)
    }

    fn insert(&mut self, known: &'static Setting, raw: Raw, origin: Origin) {
        if known.secret && !matches!(origin, Origin::Environment(_)) {
            self.refused.insert(known.path);
            let file = setting(&format!("{}_file", known.path)).map_or(String::new(), |s| format!(", or {}", s.path));
            self.problems.push(Problem {
                what: format!("`{}` is a secret and must not stand here", known.path),
                places: vec![origin],
                remedy: Some(format!("set the environment variable {}{file}", known.env())),
            });
            return;
        }
        self.found.insert(known.path, (raw, origin));
    }

    fn read_environment(&mut self, env: &[(String, String)]) {
        let names: Vec<(String, &'static Setting)> = SECTIONS
            .iter()
            .flat_map(|section| section.settings)
            // The short name first, so that the regular one wins.
            .flat_map(|s| s.short_env.map(|short| (short.to_owned(), s)).into_iter().chain([(s.env(), s)]))
            .collect();
        for (name, known) in &names {
            if let Some((_, value)) = env.iter().find(|(given, _)| given == name) {
                self.insert(known, Raw::Text(value.clone()), Origin::Environment(name.clone()));
            }
        }
        // Other variables with our prefix are other people's (Kubernetes makes LOGSTER_SERVICE_HOST and its
        // like), unless they are all but a setting's name.
        for (given, _) in env.iter().filter(|(given, _)| given.starts_with(ENV_PREFIX)) {
            let near = names.iter().find(|(name, _)| (1..=2).contains(&strsim::damerau_levenshtein(name, given)));
            if let Some((near, _)) = near
                && !names.iter().any(|(name, _)| name == given)
            {
                self.problems.push(Problem {
                    what: format!("environment variable {given} names no setting"),
                    places: vec![Origin::Environment(given.clone())],
                    remedy: Some(format!("did you mean {near}?")),
                });
            }
        }
    }

    fn read_file(&mut self, file: File<'_>) {
        let (table, errors) = DeTable::parse_recoverable(file.text);
        for error in errors {
            let start = error.span().map_or(0, |span| span.start);
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            self.problems.push(Problem {
                what: format!("not valid TOML: {message}"),
                places: vec![place(file, start)],
                remedy: None,
            });
        }
        self.read_table(file, "", table.get_ref());
    }

    fn read_table(&mut self, file: File<'_>, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            let at_key = place(file, key.span().start);
            let at_value = place(file, value.span().start);
            if let Some(known) = setting(&path) {
                self.place_properties(file, &path, value.get_ref());
                self.insert(known, raw(value.get_ref()), at_value);
            } else if is_section(&path) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.read_table(file, &path, inner),
                    other => self.problems.push(Problem {
                        what: format!("`{path}` is a section, found {}", raw(other)),
                        places: vec![at_value],
                        remedy: Some(format!("write [{path}] on a line of its own and its settings below")),
                    }),
                }
            } else if matches!(value.get_ref(), DeValue::Table(_)) {
                let near = nearest(&path, SECTIONS.iter().map(|section| section.path));
                self.problems.push(Problem {
                    what: format!("unknown section `{path}`"),
                    places: vec![at_key],
                    remedy: Some(match near {
                        Some(near) => format!("did you mean [{near}]?"),
                        None => SEE_DOCS.to_owned(),
                    }),
                });
            } else {
                self.problems.push(unknown_key(&path, at_key));
            }
        }
    }

    fn place_properties(&mut self, file: File<'_>, path: &str, value: &DeValue<'_>) {
        let DeValue::Table(table) = value else { return };
        for (key, value) in table {
            let path = format!("{path}.{}", key.get_ref());
            self.place_properties(file, &path, value.get_ref());
            self.properties.insert(path, place(file, key.span().start));
        }
    }
}

const SEE_DOCS: &str = "`logster config docs` lists every setting";

fn unknown_key(path: &str, origin: Origin) -> Problem {
    let all = || SECTIONS.iter().flat_map(|section| section.settings).map(|setting| setting.path);
    let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
    let siblings = || all().filter(|known| known.rsplit_once('.').is_some_and(|(of, _)| of == section));
    let in_section = nearest(key, siblings().map(|known| &known[section.len() + 1..]));
    let elsewhere = || all().find(|known| known.rsplit_once('.').is_some_and(|(_, name)| name == key));
    let remedy = match in_section {
        Some(near) => format!("did you mean `{section}.{near}`?"),
        None => match elsewhere().or_else(|| nearest(path, all())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => SEE_DOCS.to_owned(),
        },
    };
    Problem { what: format!("unknown setting `{path}`"), places: vec![origin], remedy: Some(remedy) }
}

fn setting(path: &str) -> Option<&'static Setting> {
    SECTIONS.iter().flat_map(|section| section.settings).find(|setting| setting.path == path)
}

/// `path` is a section or leads to one.
fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|s| s.path == path || s.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// Line and column of a byte offset.
fn place(file: File<'_>, offset: usize) -> Origin {
    let before = file.text.get(..offset).unwrap_or(file.text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Origin::File {
        name: file.name.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Str(text.to_string()),
        DeValue::Integer(n) => {
            i64::from_str_radix(n.as_str(), n.radix()).map_or_else(|_| Raw::Other(n.as_str().to_owned()), Raw::Int)
        }
        DeValue::Float(x) => x.as_str().parse().map_or_else(|_| Raw::Other(x.as_str().to_owned()), Raw::Float),
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::Datetime(time) => Raw::Other(format!("the time {time}")),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(table) => {
            Raw::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), raw(value.get_ref()))).collect())
        }
    }
}

/// A default or a bound from the table of settings: TOML, or `none`.
pub(super) fn literal<T: Value>(text: &str) -> T {
    if text == "none" {
        return T::unset().expect("a setting without a default is optional");
    }
    let value = DeValue::parse(text).expect("a default is TOML");
    match T::parse(&raw(value.get_ref())) {
        Ok(value) => value,
        Err(refusal) => panic!("the default {text} {}", refusal.what),
    }
}
