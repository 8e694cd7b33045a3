//! `logster run`: the dataflow itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logster_sinks::capture::Framing;
use prometheus::Registry;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::Overrides;
use crate::cluster::{ClusterConfig, TlsFiles, leave, loopback_hosts, read_hostfile, stopping};
use crate::config::Config;
use crate::config::value::InputSource;
use crate::engine::{self, AllMetrics, Edges, Models, Plan};
use crate::failure::Failure;
use crate::http::{HealthState, Server};
use crate::reload::Reload;
use crate::source::file::FileConfig;
use crate::summary::Summary;

/// How long processes wait for each other at start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop may wait for the transaction under way; with what leaving takes, below the 10 s that are promised.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(50);

/// Arguments of `logster run`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Worker threads of this process.
    #[arg(short = 'w', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// Processes of the cluster.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub processes: u32,
    /// Which of the processes this one is, from 0.
    #[arg(short = 'p', long, default_value_t = 0)]
    pub index: u32,
    /// One `host:port` a line, a line for each process.
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// Take what is there now as the end of input, close every window, and exit.
    #[arg(long)]
    pub until_end: bool,
    /// Read from these brokers: sets input.source and kafka.brokers.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// Read a file, a directory or `-`: sets input.source and input.path.
    #[arg(long, value_name = "PATH", conflicts_with = "kafka")]
    pub input: Option<PathBuf>,
    /// Lines are bare messages of this raw topic: sets input.topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// max, 1x or Nx: sets input.speed.
    #[arg(long)]
    pub speed: Option<String>,
    /// Write the output topics to DIR/<topic>.ndjson: sets output.dir.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides
            .option("--kafka", "input.source", self.kafka.as_ref().map(|_| "kafka"))
            .option("--kafka", "kafka.brokers", self.kafka.as_ref())
            .input(self.input.as_ref())
            .option("--topic", "input.topic", self.topic.as_ref())
            .option("--speed", "input.speed", self.speed.as_ref())
            .option("--out", "output.dir", self.out.as_ref().map(|path| path.display()));
    }

    /// The processes of the run; `None` if this one is alone.
    fn cluster(&self, config: &Config, models: &Models) -> anyhow::Result<Option<ClusterConfig>> {
        if self.processes == 1 {
            return Ok(None);
        }
        let processes = self.processes as usize;
        let tls = match (&config.cluster_tls.ca, &config.cluster_tls.cert, &config.cluster_tls.key) {
            (Some(ca), Some(cert), Some(key)) => {
                Some(TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
            }
            _ => None,
        };
        Ok(Some(ClusterConfig {
            workers: self.workers as usize,
            processes,
            index: self.index as usize,
            hosts: match &self.hostfile {
                Some(path) => read_hostfile(path, processes)?,
                None => loopback_hosts(processes),
            },
            tls,
            insecure: config.cluster.insecure,
            heartbeat: Duration::from_millis(config.cluster.heartbeat.ms() as u64),
            start_timeout: START_TIMEOUT,
            job: config.checkpoint.job.clone(),
            fingerprint: engine::fingerprint(config, models)?,
        }))
    }

    /// What the command line and the configuration must say about each other.
    fn check(&self, config: &Config) -> Result<(), Failure> {
        let workers = self.workers * self.processes;
        if self.index >= self.processes {
            let what = format!("--index {} of {} processes", self.index, self.processes);
            return Err(Failure::usage(what).at("--index").remedy("processes are counted from 0"));
        }
        if workers > config.cluster.shards {
            let what = format!("{workers} workers for {} shards: some would have nothing to do", config.cluster.shards);
            return Err(Failure::usage(what)
                .at("cluster.shards")
                .remedy("fewer workers, or, for a new deployment, more shards"));
        }
        if config.input.source == InputSource::File && config.input.path.is_none() {
            return Err(Failure::usage("there is no input")
                .at("input.path")
                .remedy("name files with --input PATH, or brokers with --kafka HOST:PORT"));
        }
        Ok(())
    }
}

/// Runs it.
///
/// # Errors
/// Options that contradict each other or the configuration.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    args.check(config)?;
    let workers = args.workers as usize;
    let health = HealthState::new(workers, Duration::from_millis(config.http.stall_after.ms() as u64));
    let ended = stop_on_signal(health.clone())?;
    let registry = Registry::new();
    let metrics = AllMetrics::new(&registry)?;
    let _server = config.http.enabled.then(|| Server::start(&config.http, registry, health.clone())).transpose()?;
    let models = Models::load(config, workers)?.with_shadow(config)?;
    let (edges, summary) = match config.input.source {
        InputSource::File => {
            let files = FileConfig {
                input: config.input.path.clone().expect("checked"),
                framing: config.input.topic.map_or(Framing::Envelope, Framing::Bare),
                speed: config.input.speed,
                tenants: None,
            };
            (Edges::Files(files), Some(Summary::new(config.output.dir.is_none())))
        }
        InputSource::Kafka => (Edges::Kafka(Box::new(engine::job_config(config, args.until_end))), None),
    };
    let observer = summary.as_ref().map(Summary::observer);
    let cluster = args.cluster(config, &models)?;
    let in_cluster = cluster.is_some();
    let run = |models: Models, stop| {
        let (cluster, edges, observer) = (cluster.clone(), edges.clone(), observer.clone());
        engine::run(config, Plan { cluster, workers, edges, observer, stop }, models, &metrics, &health)
    };
    match config.input.source {
        InputSource::File => run(models, ended)?,
        InputSource::Kafka => Reload::on_hangup(ended)?.run(config, workers, in_cluster, models, run)?,
    }
    if let Some(summary) = summary {
        eprintln!("{summary}");
    }
    Ok(())
}

/// A flag that SIGTERM and SIGINT set; the second signal ends the process at once.
///
/// Workers look at the flag between two transactions. Before they have begun nothing is under way, and a start may wait
/// long for brokers and peers: it ends at once. What is under way for too long is left to be aborted, as after kill -9.
fn stop_on_signal(health: HealthState) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let asked = stop.clone();
    let watch = move || {
        while !asked.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
        stopping();
        if !health.has_begun() {
            leave("stopped while starting".to_owned(), 0);
        }
        std::thread::sleep(STOP_LIMIT);
        leave(format!("stopped: a transaction did not end within {} s, it will be aborted", STOP_LIMIT.as_secs()), 0);
    };
    std::thread::Builder::new().name("stop".to_owned()).spawn(watch)?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};
    use crate::config::Config;
    use crate::failure::{exit_code, report};

    #[test]
    fn contradictions_are_usage_errors() {
        for (args, place) in [
            (vec!["--input", "x", "-n", "2", "-p", "2"], "--index"),
            (vec!["--input", "x", "-n", "2"], ""),
            (vec!["--input", "x", "-w", "65"], "cluster.shards"),
            (vec![], "input.path"),
            (vec!["--input", "x", "-w", "64"], ""),
            (vec!["--kafka", "b:1"], ""),
            (vec!["--input", "x", "-n", "2", "--hostfile", "h", "--set", "cluster.insecure=true"], ""),
        ] {
            let cli = Cli::try_parse_from(["logster", "run"].iter().chain(&args)).unwrap();
            let config = Config::load(None, &[], &cli.overrides()).unwrap();
            let Command::Run(run) = &cli.command else { unreachable!() };
            match run.check(&config) {
                Ok(()) => assert_eq!(place, "", "{args:?}"),
                Err(failure) => {
                    let error = failure.into();
                    assert!(report(&error).contains(&format!("  where: {place}\n")), "{args:?}: {}", report(&error));
                    assert_eq!(exit_code(&error), 2);
                }
            }
        }
    }
}
