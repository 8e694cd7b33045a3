//! `logster config`: check, print or document the configuration.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::{Config, Override, document};

/// Arguments of `logster config`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Read the configuration as a run would and print every mistake, or what is not at its default.
    Check {
        /// The file to check; without it, what --config names.
        file: Option<PathBuf>,
    },
    /// Print a file with every setting, documented and commented out at its default.
    Default,
    /// Print the reference of all settings in Markdown.
    Docs,
}

/// Runs it.
///
/// # Errors
/// Mistakes in the configuration; standard output that is closed.
pub fn run(args: &Args, config: Option<&Path>, overrides: &[Override]) -> anyhow::Result<()> {
    let text = match &args.command {
        Command::Check { file } => check(file.as_deref().or(config), overrides)?,
        Command::Default => document::default_file(),
        Command::Docs => document::reference(),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn check(file: Option<&Path>, overrides: &[Override]) -> anyhow::Result<String> {
    let config = Config::of_process(file, overrides)?;
    let mut text = match file {
        Some(file) => format!("{}: ok\n", file.display()),
        None => "no file: ok\n".to_owned(),
    };
    for (path, value, origin) in config.effective() {
        text.push_str(&format!("  {path} = {value}  ({origin})\n"));
    }
    Ok(text)
}
