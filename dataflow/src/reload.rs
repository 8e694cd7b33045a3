//! New models without a restart: SIGHUP reads the packages again.
//!
//! - Input: SIGHUP, the folders that the configuration names.
//! - Output: the models to go on with. The run comes to rest between two transactions, and the next one, in the same
//!   process, takes the job over as any start does: windows below a shard's committed frontier keep the verdict that they
//!   have, those above it get the new model's. That frontier is in the checkpoints, so which model judged a window is a
//!   matter of record, and exactly-once is that of a restart.
//! - Packages are verified, loaded and self-tested before anything stops; a package that is refused changes nothing.
//! - A cluster's processes cannot change models one by one: there, SIGHUP to any process whose packages have changed ends
//!   the cluster, the supervisor starts it again, and a process with other packages than its peers is not let in.
//! - Captures are not played twice, so a run over files keeps its models.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::SIGHUP;

use crate::cluster::{EXIT_LOST, leave};
use crate::config::Config;
use crate::engine::Models;
use crate::failure::report;

/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(100);

/// What SIGHUP asks for.
pub struct Reload {
    asked: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Reload {
    /// Takes SIGHUP over. `ended`: the run is to end, whatever its models.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub fn on_hangup(ended: Arc<AtomicBool>) -> std::io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGHUP, asked.clone())?;
        Ok(Self { asked, ended })
    }

    /// Calls `run` with a flag that stops it, and again with new models for as long as SIGHUP brings any.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn run(
        &self,
        config: &Config,
        workers: usize,
        in_cluster: bool,
        mut models: Models,
        mut run: impl FnMut(Models, Arc<AtomicBool>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let stop = Arc::new(AtomicBool::new(false));
            let over = AtomicBool::new(false);
            let next = Mutex::new(None);
            let digests = models.digests();
            let ended = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        if self.ended.load(Ordering::Relaxed) {
                            stop.store(true, Ordering::Relaxed);
                            return;
                        }
                        if self.asked.swap(false, Ordering::Relaxed)
                            && let Some(loaded) = reloaded(config, workers, &digests)
                        {
                            if in_cluster {
                                leave("the model packages have changed".to_owned(), EXIT_LOST);
                            }
                            *next.lock().unwrap_or_else(|e| e.into_inner()) = Some(loaded);
                            stop.store(true, Ordering::Relaxed);
                            return;
                        }
                        std::thread::sleep(TICK);
                    }
                });
                let ended = run(models, stop.clone());
                over.store(true, Ordering::Relaxed);
                ended
            });
            ended?;
            match next.into_inner().unwrap_or_else(|e| e.into_inner()) {
                Some(loaded) if !self.ended.load(Ordering::Relaxed) => models = loaded,
                _ => return Ok(()),
            }
            tracing::info!(models = ?models.versions(), "new models take over at the committed frontiers");
        }
    }
}

/// The packages as they lie there now, unless they are those in use or are refused.
fn reloaded(config: &Config, workers: usize, in_use: &std::collections::BTreeMap<String, String>) -> Option<Models> {
    match Models::load(config, workers).and_then(|models| models.with_shadow(config)) {
        Ok(models) if models.digests() == *in_use => {
            tracing::info!("SIGHUP: the model packages are those in use");
            None
        }
        Ok(models) => Some(models),
        Err(error) => {
            tracing::error!("SIGHUP: the models in use stay: {}", report(&error).trim_end());
            None
        }
    }
}
