//! `logster produce`: plays captures into the raw topics of a broker.

use std::path::PathBuf;

use std::time::{Duration, Instant};

use clap::ValueEnum;
use logster_sinks::capture::Framing;
use logster_sinks::produce::{ProduceConfig, Stamps, produce};

use crate::cli::Overrides;
use crate::config::Config;
use crate::config::value::Speed;
use crate::source::routing_key;

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
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let produced = ProduceConfig {
        kafka: config.kafka_config(),
        input: args.input.clone(),
        framing: config.input.topic.map_or(Framing::Envelope, Framing::Bare),
        speed: match config.input.speed {
            Speed::Max => None,
            Speed::Times(times) => Some(times),
        },
        stamps: match args.timestamps {
            Timestamps::Capture => Stamps::Capture,
            Timestamps::Clock => Stamps::Clock,
        },
    };
    let began = Instant::now();
    let mut shown = Instant::now();
    let played = produce(&produced, routing_key, |played| {
        if shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            eprintln!("{} records, {:.1} MB", played.records.values().sum::<u64>(), played.bytes as f64 / 1e6);
        }
    })?;
    for (topic, records) in &played.records {
        println!("{:<26} {records}", topic.name());
    }
    let (records, seconds) = (played.records.values().sum::<u64>(), began.elapsed().as_secs_f64());
    println!("{records} records, {:.1} MB in {seconds:.1} s", played.bytes as f64 / 1e6);
    for (reason, lines) in &played.refused {
        println!("not produced: {lines} lines, {}", reason.name());
    }
    Ok(())
}
