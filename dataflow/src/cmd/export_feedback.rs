//! `logster export-feedback`: writes what analysts decided as labelled windows for training.

use std::path::PathBuf;
use std::time::Duration;

use logster_schema::{Alert, OutputTopic};
use logster_sinks::reader::{End, for_each_committed};
use serde::de::DeserializeOwned;

use crate::cli::Overrides;
use crate::config::Config;
use crate::failure::Failure;
use crate::feedback::{Feedback, decided, export_feedback, read_records};
use crate::replay::ReplayConfig;

/// How long a broker may be silent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `logster export-feedback`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file or a directory of captures that hold the raw records of the alerts.
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,
    /// Read alerts and results from a folder, as `logster run --out` writes it.
    #[arg(long, value_name = "DIR", required_unless_present = "kafka", conflicts_with = "kafka")]
    pub outputs: Option<PathBuf>,
    /// Read alerts and results from these brokers: sets kafka.brokers.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// Folder to write: <platform>.arrow and labels.json.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.input(Some(&self.input)).option("--kafka", "kafka.brokers", self.kafka.as_ref());
    }
}

/// Runs it.
///
/// # Errors
/// Alerts or captures that cannot be read; files that cannot be written.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let mut alerts = Vec::new();
    read(args, config, OutputTopic::Alerts, |alert: Alert| alerts.push(alert))?;
    let feedback = Feedback::new(decided(alerts), |see| read(args, config, OutputTopic::Results, see))?;
    let totals = export_feedback(&args.input, &args.out, &feedback, &ReplayConfig::of(config))?;
    println!(
        "wrote {}: {} windows of {} resolved alerts and {} false positives; {} detections were not found again",
        args.out.display(),
        totals.windows,
        totals.resolved,
        totals.false_positives,
        totals.missing
    );
    Ok(())
}

/// Every record of an output topic.
fn read<T: DeserializeOwned>(
    args: &Args,
    config: &Config,
    topic: OutputTopic,
    mut see: impl FnMut(T),
) -> anyhow::Result<()> {
    if let Some(folder) = &args.outputs {
        return read_records(&folder.join(format!("{}.ndjson", topic.name())), see);
    }
    let mut refused = None;
    for_each_committed(&config.kafka_config(), topic.name(), End::Stable, TIMEOUT, |record| {
        match record.value.map(|value| serde_json::from_slice(&value)) {
            Some(Ok(value)) => see(value),
            Some(Err(error)) => refused = Some((record.partition, record.offset, error)),
            None => {}
        }
    })?;
    match refused {
        None => Ok(()),
        Some((partition, offset, error)) => {
            let place = format!("{} [{partition}] at {offset}", topic.name());
            Err(Failure::new("not a record of this topic").at(place).because(error).into())
        }
    }
}
