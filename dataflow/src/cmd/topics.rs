//! `logster topics`: makes or verifies the topics.

use clap::Subcommand;

use crate::cli::Overrides;
use crate::config::Config;

/// Arguments of `logster topics`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Brokers: sets kafka.brokers.
    #[arg(long, global = true, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make the topics that are missing, with the specified partitions and settings.
    Create,
    /// Verify that every topic is there as specified.
    Check,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.option("--kafka", "kafka.brokers", self.kafka.as_ref());
    }
}

/// Runs it.
///
/// # Errors
/// A broker that cannot be reached; topics that are not as specified.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
