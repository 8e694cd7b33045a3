//! The command line of `logster`: what can be asked, and the way from a question to its command.
//!
//! An option that has a setting (`--input`, `--speed`) is nothing but a shorter way to write `--set`, so each
//! command finds everything in its [`Config`]. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cmd;
use crate::config::{Config, Override};
use crate::failure::{exit_code, report};
use crate::logging;

/// Finds attacks in endpoint logs: raw records in, alerts with their reasons out.
///
/// Without a broker, `logster run --input DIR --until-end` reads files and prints alerts. With one,
/// `logster run --kafka HOST:PORT` reads the raw topics and writes the output topics. `logster demo` shows
/// both ends on a sample capture.
#[derive(Parser, Debug)]
#[command(name = "logster", version, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file (TOML). `logster config default` prints one.
    #[arg(long, global = true, value_name = "FILE", env = "LOGSTER_CONFIG")]
    pub config: Option<PathBuf>,

    /// Set one setting, over file and environment. Can be repeated.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the dataflow: raw records to normalized events, inference results and alerts.
    Run(cmd::run::Args),
    /// Run on the bundled sample capture: a small fleet with one staged intrusion.
    Demo(cmd::demo::Args),
    /// Play captures into the raw topics of a broker.
    Produce(cmd::produce::Args),
    /// Make or verify the topics.
    Topics(cmd::topics::Args),
    /// Play labelled captures and report what was found, missed and falsely raised.
    Backtest(cmd::backtest::Args),
    /// Write the graphs of captures for training.
    ExportWindows(cmd::export_windows::Args),
    /// Write what analysts decided of alerts as labelled windows for training.
    ExportFeedback(cmd::export_feedback::Args),
    /// Check, print or document the configuration.
    Config(cmd::config::Args),
    /// Verify, describe, compare or examine model packages.
    Model(cmd::model::Args),
    /// Check Sigma rules.
    Rules(cmd::rules::Args),
    /// Show what the checkpoints hold.
    State(cmd::state::Args),
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) => Ok((path.trim().to_owned(), value.to_owned())),
        None => Err("write section.key=value".into()),
    }
}

/// Settings that options stand for, in the order in which they were met.
#[derive(Default)]
pub struct Overrides(Vec<Override>);

impl Overrides {
    /// `option`, if it was given, sets `path`.
    pub fn option(&mut self, option: &str, path: &str, value: Option<impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.0.push(Override { option: option.to_owned(), path: path.to_owned(), value: value.to_string() });
        }
        self
    }

    /// Input from files, for commands that have `--input`.
    pub fn input(&mut self, input: Option<&PathBuf>) -> &mut Self {
        self.option("--input", "input.source", input.map(|_| "file"));
        self.option("--input", "input.path", input.map(|path| path.display()))
    }
}

impl Cli {
    /// Every setting of the command line. `--set` comes last, so it wins over an option.
    pub fn overrides(&self) -> Vec<Override> {
        let mut overrides = Overrides::default();
        match &self.command {
            Command::Run(args) => args.overrides(&mut overrides),
            Command::Produce(args) => args.overrides(&mut overrides),
            Command::Topics(args) => args.overrides(&mut overrides),
            Command::Backtest(args) => args.overrides(&mut overrides),
            Command::ExportWindows(args) => args.overrides(&mut overrides),
            Command::ExportFeedback(args) => args.overrides(&mut overrides),
            Command::State(args) => args.overrides(&mut overrides),
            Command::Demo(_) | Command::Config(_) | Command::Model(_) | Command::Rules(_) => {}
        }
        for (path, value) in &self.set {
            overrides.option(&format!("--set {path}"), path, Some(value));
        }
        overrides.0
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // clap exits by itself: 0 for --help and --version, 2 for wrong usage.
    let cli = Cli::parse_from(args);
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", report(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let overrides = cli.overrides();
    // `config default` and `config docs` must work while the configuration is broken.
    if let Command::Config(args) = &cli.command {
        return cmd::config::run(args, cli.config.as_deref(), &overrides);
    }
    let config = Config::of_process(cli.config.as_deref(), &overrides)?;
    logging::start(&config.log);
    match &cli.command {
        Command::Run(args) => cmd::run::run(args, &config),
        Command::Demo(args) => cmd::demo::run(args, &config),
        Command::Produce(args) => cmd::produce::run(args, &config),
        Command::Topics(args) => cmd::topics::run(args, &config),
        Command::Backtest(args) => cmd::backtest::run(args, &config),
        Command::ExportWindows(args) => cmd::export_windows::run(args, &config),
        Command::ExportFeedback(args) => cmd::export_feedback::run(args, &config),
        Command::Model(args) => cmd::model::run(args, &config),
        Command::Rules(args) => cmd::rules::run(args, &config),
        Command::State(args) => cmd::state::run(args, &config),
        Command::Config(_) => unreachable!("answered above"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_settings_and_set_wins() {
        let args =
            ["logster", "run", "--input", "logs", "--speed", "2x", "--set", "input.speed=3x", "--out", "results"];
        let cli = Cli::try_parse_from(args).unwrap();
        let config = Config::load(None, &[], &cli.overrides()).unwrap();
        assert_eq!(config.input.path, Some("logs".into()));
        assert_eq!(config.input.speed, crate::config::value::Speed::Times(3.0));
        assert_eq!(config.output.dir, Some("results".into()));

        let cli = Cli::try_parse_from(["logster", "run", "--speed", "fast"]).unwrap();
        let problems = Config::load(None, &[], &cli.overrides()).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "error: `input.speed` must be \"max\", \"1x\" or another multiple such as \"60x\", found \"fast\"\n  \
             where: --speed\n"
        );
    }

    #[test]
    fn kafka_and_input_exclude_each_other() {
        let args = ["logster", "run", "--kafka", "b:9092", "--input", "logs"];
        assert!(Cli::try_parse_from(args).is_err());
        let cli = Cli::try_parse_from(["logster", "run", "--kafka", "b:9092,c:9092"]).unwrap();
        let config = Config::load(None, &[], &cli.overrides()).unwrap();
        assert_eq!(config.input.source, crate::config::value::InputSource::Kafka);
        assert_eq!(config.kafka.brokers, ["b:9092", "c:9092"]);
    }
}
