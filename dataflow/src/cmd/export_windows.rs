//! `logster export-windows`: writes the graphs of captures for training.

use std::path::PathBuf;

use crate::cli::Overrides;
use crate::config::Config;

/// Arguments of `logster export-windows`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file or a directory of captures.
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,
    /// Directory to write to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Worker threads.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.input(Some(&self.input));
    }
}

/// Runs it.
///
/// # Errors
/// Captures that cannot be read; files that cannot be written.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
