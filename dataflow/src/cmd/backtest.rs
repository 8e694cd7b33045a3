//! `logster backtest`: plays labelled captures and reports what was found, missed and falsely raised.

use std::path::PathBuf;

use crate::cli::Overrides;
use crate::config::Config;

/// Arguments of `logster backtest`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of labelled captures: `labels.json` beside the recordings, or one folder down.
    #[arg(long, value_name = "DIR")]
    pub input: PathBuf,
    /// Where the report goes (JSON). Same input, same report, but for `timing`.
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
    /// Write the output topics to DIR/<topic>.ndjson as well: sets output.dir.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Worker threads.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.input(Some(&self.input)).option("--out", "output.dir", self.out.as_ref().map(|path| path.display()));
    }
}

/// Runs it.
///
/// # Errors
/// Captures or labels that cannot be read; a report that cannot be written.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
