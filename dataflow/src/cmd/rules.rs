//! `logster rules`: what is wrong with Sigma rules.

use clap::Subcommand;
use logster_operators::rules::{Finding, RuleSet};
use logster_schema::RuleLevel;

use crate::config::Config;
use crate::failure::Failure;
use crate::rules::{describe, sources};

/// Arguments of `logster rules`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say what is wrong with rules, where, and what to do. Exit code 1 if a run would not start with them.
    Check {
        /// Files and folders of Sigma rules; without any, those of rules.paths.
        paths: Vec<String>,
    },
}

/// Runs it.
///
/// # Errors
/// Rules that a run would not start with; files that cannot be read.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let Command::Check { paths } = &args.command;
    let paths = if paths.is_empty() { &config.rules.paths } else { paths };
    if paths.is_empty() {
        return Err(Failure::usage("there are no rules to check")
            .at("rules.paths")
            .remedy("name files or folders: logster rules check PATH...")
            .into());
    }
    let sources = sources(paths)?;
    let (set, mut findings) = RuleSet::load(&sources);
    // What stops or changes the evaluation has been said already where the specification complains too.
    for lint in sources.iter().flat_map(RuleSet::lint) {
        if !findings.iter().any(|f| f.file == lint.file && f.line == lint.line) {
            findings.push(lint);
        }
    }
    findings.sort();
    for finding in &findings {
        let Finding { error, remedy, .. } = finding;
        println!("{}: {}\n  remedy: {remedy}", if *error { "error" } else { "warning" }, describe(finding));
    }
    let errors = findings.iter().filter(|f| f.error).count();
    let levels: Vec<String> = RuleLevel::ALL
        .iter()
        .map(|level| (level, set.rules().iter().filter(|rule| rule.level == *level).count()))
        .filter(|(_, n)| *n > 0)
        .map(|(level, n)| format!("{n} {level}"))
        .collect();
    println!(
        "{} rules ({}) in {} files, version {}: {errors} errors, {} warnings",
        set.rules().len(),
        levels.join(", "),
        sources.len(),
        set.version(),
        findings.len() - errors
    );
    match errors {
        0 => Ok(()),
        n => Err(Failure::new(format!("the rules have errors, {n} in all"))
            .remedy("a run does not start with them")
            .into()),
    }
}
