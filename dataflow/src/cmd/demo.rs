//! `logster demo`: the whole path on the bundled sample capture.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logster_sinks::capture::Framing;
use prometheus::Registry;

use crate::config::Config;
use crate::config::value::Speed;
use crate::engine::{self, AllMetrics, Edges, Models, Plan};
use crate::failure::Failure;
use crate::http::HealthState;
use crate::source::file::FileConfig;
use crate::summary::Summary;

/// Arguments of `logster demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Worker threads.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// The sample capture.
    #[arg(long, value_name = "FILE", default_value = "deploy/demo/fleet.ndjson.zst")]
    pub capture: PathBuf,
}

/// Runs it.
///
/// # Errors
/// Those of a run.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    if !args.capture.is_file() {
        return Err(Failure::new("the sample capture is not there")
            .at(args.capture.display().to_string())
            .remedy("run it from the project's root, or name the file with --capture")
            .into());
    }
    println!("A small fleet of Windows and Linux hosts at work, and one intrusion staged by us that moves between two");
    println!("of them. Raw logs come from {}; every alert is printed when it is raised.\n", args.capture.display());
    let workers = args.workers as usize;
    let models = Models::load(config, workers)?;
    for (platform, version) in models.versions() {
        println!("model for {platform}: {version}, digests and self-test verified");
    }
    println!();
    let summary = Summary::new(true);
    let plan = Plan {
        cluster: None,
        workers,
        edges: Edges::Files(FileConfig {
            input: args.capture.clone(),
            framing: Framing::Envelope,
            speed: Speed::Max,
            tenants: None,
        }),
        observer: Some(summary.observer()),
        stop: Arc::default(),
    };
    let began = Instant::now();
    let metrics = AllMetrics::new(&Registry::new())?;
    engine::run(config, plan, models, &metrics, &HealthState::new(workers, Duration::MAX))?;
    println!(
        "\n{summary}\n\n{:.1} s. Next: `logster run --input FILE` on logs of your own.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
