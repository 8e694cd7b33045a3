//! `logster demo`: the whole path on the bundled sample capture.

use crate::config::Config;

/// Arguments of `logster demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Worker threads.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
}

/// Runs it.
///
/// # Errors
/// Those of a run.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
