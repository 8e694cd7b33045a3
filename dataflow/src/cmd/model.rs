//! `logster model`: verifies or describes the model packages.

use clap::Subcommand;

use crate::config::Config;

/// Arguments of `logster model`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check digests, feature version and permissions, load each package and run its self-test.
    Verify,
    /// Print what each package's manifest says.
    Info,
}

/// Runs it.
///
/// # Errors
/// A package that is missing, altered or not understood.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
