//! `logster produce`: plays captures into the raw topics of a broker.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::Overrides;
use crate::config::Config;

/// Arguments of `logster produce`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file, a directory or `-`.
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,
    /// Brokers: sets kafka.brokers.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// Lines are bare messages of this raw topic: sets input.topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// max, 1x or Nx: sets input.speed.
    #[arg(long)]
    pub speed: Option<String>,
    /// Record timestamps: from the capture (for topics with CreateTime) or from the clock.
    #[arg(long, value_enum, default_value_t = Timestamps::Capture)]
    pub timestamps: Timestamps,
}

/// Where record timestamps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Timestamps {
    /// The capture's arrival times.
    Capture,
    /// The clock, at the moment of sending.
    Clock,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides
            .option("--kafka", "kafka.brokers", self.kafka.as_ref())
            .input(Some(&self.input))
            .option("--topic", "input.topic", self.topic.as_ref())
            .option("--speed", "input.speed", self.speed.as_ref());
    }
}

/// Runs it.
///
/// # Errors
/// Input that cannot be read; a broker that refuses.
pub fn run(_args: &Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("not implemented")
}
