//! `logster state`: shows what the checkpoints hold.

use clap::Subcommand;

use crate::cli::Overrides;
use crate::config::Config;

/// Arguments of `logster state`.
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
    /// Print the generation, every partition's position and every shard's frontier.
    Show,
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
/// A broker that cannot be reached; checkpoints that cannot be read.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
