//! `logster state`: shows what the checkpoints hold.

use clap::Subcommand;
use logster_schema::{TimeMs, time};
use logster_sinks::reader::ends;

use crate::checkpoint::{GENERATION_KEY, Generation, Restored, decode};
use crate::cli::Overrides;
use crate::config::Config;
use crate::engine;
use crate::startup::JobLog;

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
    /// Print the generation, each partition with its lag, and each shard that holds something.
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
/// A broker that cannot be reached, checkpoints of another format.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let Command::Show = args.command;
    let job = engine::job_config(config, false);
    let records = job.records()?;
    let Some(bytes) = records.get(GENERATION_KEY) else {
        println!("job \"{}\" has never run on {}", job.job, job.kafka.brokers);
        return Ok(());
    };
    let owner: Generation = decode(GENERATION_KEY, bytes)?;
    let restored = Restored::from_records(&records)?;
    println!("job        {}", job.job);
    println!("generation {} ({} workers, {} shards)", owner.generation, owner.workers, owner.shards);
    println!("settings   {}", owner.semantics);

    println!("\n{:<28} {:>4} {:>10} {:>10} {:>8}  arrival", "partition", "", "published", "replay", "lag");
    let logs: Vec<(String, i32)> = restored.partitions.keys().cloned().collect();
    let found = ends(&job.kafka, &logs)?;
    for (((topic, partition), c), (_, end)) in restored.partitions.iter().zip(found) {
        let lag = (end - c.next).max(0);
        println!("{topic:<28} {partition:>4} {:>10} {:>10} {lag:>8}  {}", c.next, c.replay.offset, shown(c.arrival_ms));
    }
    println!("\n{:<10} {:>24} {:>7} {:>7} {:>9}", "shard", "results before", "alerts", "outbox", "backfill");
    for (number, s) in &restored.shards {
        let backfill: usize = s.backlog.len();
        println!("{number:<10} {:>24} {:>7} {:>7} {backfill:>9}", shown(s.frontier), s.alerts.len(), s.outbox.len());
    }
    println!("\n{:<10} {:>24} {:>7}", "tenants", "alerts before", "alerts");
    for (number, t) in &restored.tenants {
        println!("{number:<10} {:>24} {:>7}", shown(t.frontier), t.alerts.len());
    }
    Ok(())
}

/// A time, or the ends of time in words.
fn shown(ms: TimeMs) -> String {
    match ms {
        TimeMs::MIN..0 => "nothing yet".to_owned(),
        time::MIN_TIME_MS..=time::MAX_TIME_MS => time::format(ms),
        _ => "the end".to_owned(),
    }
}
