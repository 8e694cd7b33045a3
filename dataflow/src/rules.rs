//! Finds the files that `rules.paths` names and loads the rules in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use logster_operators::rules::{Finding, RuleSet, Source};
use logster_schema::RuleLevel;
use tracing::{info, warn};

use crate::config::Config;
use crate::config::value::AlertingLevel;
use crate::failure::Failure;

/// Errors that a refusal shows; `logster rules check` shows all.
const SHOWN: usize = 20;

/// From which level on a rule raises alerts.
pub fn min_level(config: &Config) -> RuleLevel {
    match config.rules.min_level {
        AlertingLevel::Medium => RuleLevel::Medium,
        AlertingLevel::High => RuleLevel::High,
        AlertingLevel::Critical => RuleLevel::Critical,
    }
}

/// The rules of a run; `None` where `rules.paths` is empty. Says in the log what they are and what is doubtful.
///
/// # Errors
/// A file that cannot be read; rules that cannot be, all of them.
pub fn load(config: &Config) -> anyhow::Result<Option<Arc<RuleSet>>> {
    if config.rules.paths.is_empty() {
        return Ok(None);
    }
    let (set, findings) = RuleSet::load(&sources(&config.rules.paths)?);
    let errors: Vec<String> = findings.iter().filter(|f| f.error).map(describe).collect();
    if !errors.is_empty() {
        let shown = errors.iter().take(SHOWN).fold(String::new(), |text, error| text + "\n  " + error);
        return Err(Failure::usage(format!("the rules have errors, {} in all:{shown}", errors.len()))
            .at("rules.paths")
            .remedy("`logster rules check` shows all that is wrong with them, and what to do")
            .into());
    }
    findings.iter().for_each(|finding| warn!("{}", describe(finding)));
    info!(rules = set.rules().len(), version = set.version(), "rules loaded");
    Ok(Some(Arc::new(set)))
}

/// `FILE:LINE: what is wrong`
pub fn describe(finding: &Finding) -> String {
    format!("{}:{}: {}", finding.file, finding.line, finding.what)
}

/// The texts of all rule files at or below `paths`.
///
/// # Errors
/// A path that is not there; a file that cannot be read or is not UTF-8; no rule file at all.
pub fn sources(paths: &[String]) -> anyhow::Result<Vec<Source>> {
    let mut files = Vec::new();
    for path in paths {
        gather(Path::new(path), true, &mut files)?;
    }
    if files.is_empty() {
        return Err(Failure::usage("there is no rule file").at(paths.join(", ")).remedy("rules are .yml files").into());
    }
    files.sort();
    files.dedup();
    let read = |file: &PathBuf| {
        let name = file.display().to_string();
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Source { name, text }),
            Err(error) => Err(Failure::usage("a rule file cannot be read").at(name).because(error).into()),
        }
    };
    files.iter().map(read).collect()
}

/// `named`: by the user, so whatever its name says, it is a rule file.
fn gather(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let failed = |error| Failure::usage("rules cannot be read").at(path.display().to_string()).because(error);
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            gather(&entry.map_err(failed)?.path(), false, files)?;
        }
    } else if named || path.extension().is_some_and(|e| e == "yml" || e == "yaml") {
        files.push(path.to_owned());
    }
    Ok(())
}
