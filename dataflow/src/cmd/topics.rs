//! `logster topics`: makes or verifies the topics.

use clap::Subcommand;
use logster_sinks::admin::{Admin, specified};

use crate::cli::Overrides;
use crate::config::Config;
use crate::engine;
use crate::failure::Failure;

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
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let job = engine::job_config(config, false);
    let specs = specified(job.arrival);
    let admin = Admin::new(&job.kafka)?;
    let differences = match args.command {
        Command::Create => {
            let made = admin.create(&specs, config.kafka.replication_factor)?;
            made.created.iter().for_each(|topic| println!("created {topic}"));
            println!("{} created, {} were there", made.created.len(), specs.len() - made.created.len());
            made.differences
        }
        Command::Check => admin.check(&specs)?,
    };
    let fatal = differences.iter().filter(|d| d.is_fatal()).count();
    for difference in &differences {
        println!("{} {difference}", if difference.is_fatal() { "error:" } else { "note:" });
    }
    if fatal > 0 {
        return Err(Failure::new(format!("{fatal} of {} topics are not as specified", specs.len()))
            .at(job.kafka.brokers)
            .remedy("`logster topics create` makes what is missing; what exists is never changed by it")
            .into());
    }
    if matches!(args.command, Command::Check) {
        println!("{} topics are as specified", specs.len());
    }
    Ok(())
}
