//! Scores window graphs with the platform's model, batched, on threads of its own.
//!
//! - Input: [`Job`]s: a ticket of the caller's choice and a window's graph.
//! - Output: one [`Scored`] per job accepted, in any order, on the [`ScoreClient`] that submitted it; after each batch
//!   the client's wake-up is called, so that a timely operator can be activated.
//! - State: none. A score depends on the graph and the package alone: not on batch mates, not on the thread.
//! - Ordering: free. The caller keeps what must be in order (capabilities, tickets).
//! - Failure: at start, every reason to refuse a package or a device is a [`ScoreError`]. Later, a graph that the
//!   runtime rejects comes back as `Err` with the reason, and its batch mates are scored without it.
//!
//! ```text
//! client.try_submit ─▶ bounded queue ─▶ thread 0..n: one job, then what is queued up to max_batch_edges
//!                                          └▶ one session per platform ─▶ client.try_recv, wake
//! ```
//!
//! Nothing waits for a batch to fill: a short queue gives small batches, a long one gives large ones. Jobs in flight
//! of one client, results not yet taken included, never exceed the queue bound: a slow model slows its caller.
//!
//! Each session has one intra-op thread: ONNX Runtime's ScatterND(add) on a CPU races with more.

pub mod drift;
mod explain;
mod package;
mod session;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use logster_schema::Platform;

use crate::graph::{PaneGraph, WindowGraph};
use crate::window::SealedPane;

pub use package::{ModelManifest, ModelPackage, PackageError};
pub use session::{Device, Runtime, SessionError};

use session::ModelSession;

/// Why scoring cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// A package was refused.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The runtime, the device or the model failed its start-up checks.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// What the model says of one graph.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphScore {
    /// Calibrated probability of an attack, rounded to six decimals.
    pub attack_prob: f64,
    /// Attention on each edge, along it and against it, in the order of [`WindowGraph::edges`].
    pub edge_attn: Vec<(f32, f32)>,
    /// How suspicious each node is, 0 to 1; 0 for nodes that are neither process nor script.
    pub node_score: Vec<f32>,
    /// Where an explanation was asked for: edges that the verdict rests on, heaviest first, with the share of
    /// `attack_prob` that went when each was deleted after those before it.
    pub key_edges: Vec<(u32, f64)>,
}

/// A graph to score.
#[derive(Clone, Debug)]
pub struct Job {
    /// Comes back with the score.
    pub ticket: u64,
    /// The graph; its platform chooses the model.
    pub graph: Arc<WindowGraph>,
    /// What an explanation takes; `None`: only the score is wanted.
    pub explain: Option<Explain>,
}

/// When and from what a score is explained.
#[derive(Clone, Debug)]
pub struct Explain {
    /// From this `attack_prob` on.
    pub from: f64,
    /// The panes that the graph was merged from.
    pub panes: Vec<Arc<SealedPane<PaneGraph>>>,
}

/// A job's answer.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The job's.
    pub ticket: u64,
    /// The score, or why the runtime refused the graph.
    pub result: Result<GraphScore, String>,
}

/// The client's queue is full; the job comes back. Take results, or wait to be woken, and try again.
#[derive(Debug)]
pub struct Full(pub Job);

/// Settings of a [`Scorer`].
#[derive(Clone, Debug)]
pub struct ScorerConfig {
    /// Threads that score, 1 and up; each holds one session per package.
    pub threads: usize,
    /// Where the model runs.
    pub device: Device,
    /// Use the CPU where `device` cannot be had, instead of refusing to start.
    pub fallback_to_cpu: bool,
    /// Edges of one batch, unless a single graph has more. 8,192 fits a CPU's cache; a GPU likes 262,144.
    pub max_batch_edges: usize,
    /// Jobs queued over all clients, and in flight per client.
    pub queue: usize,
}

impl Default for ScorerConfig {
    fn default() -> Self {
        Self { threads: 1, device: Device::Cpu, fallback_to_cpu: false, max_batch_edges: 8192, queue: 256 }
    }
}

/// Where a client's answers go.
struct Mailbox {
    results: Sender<Scored>,
    wake: Mutex<Box<dyn Fn() + Send>>,
}

struct Task {
    job: Job,
    mailbox: Arc<Mailbox>,
}

/// The pool of scoring threads. They end when the scorer and all its clients are gone.
pub struct Scorer {
    tasks: Sender<Task>,
    config: ScorerConfig,
}

impl Scorer {
    /// Loads every package into every thread, runs the packages' self-tests and starts the threads.
    pub fn new(runtime: &Runtime, packages: &[ModelPackage], config: ScorerConfig) -> Result<Self, ScoreError> {
        let (tasks, queue) = bounded(config.queue.max(1));
        for n in 0..config.threads.max(1) {
            let sessions = packages
                .iter()
                .map(|p| Ok((p.platform(), ModelSession::open(runtime, p, config.device, config.fallback_to_cpu)?)))
                .collect::<Result<Vec<_>, SessionError>>()?;
            let (queue, limit) = (queue.clone(), config.max_batch_edges);
            std::thread::Builder::new()
                .name(format!("score-{n}"))
                .spawn(move || serve(&queue, sessions, limit))
                .map_err(SessionError::Thread)?;
        }
        Ok(Self { tasks, config })
    }

    /// Scores everything there is and waits for it: for commands, which have nothing else to do.
    pub fn score_all(
        &self,
        graphs: impl IntoIterator<Item = (Arc<WindowGraph>, Option<Explain>)>,
    ) -> Vec<Result<GraphScore, String>> {
        let (woken, wakes) = bounded(1);
        let client = self.client(Box::new(move || {
            let _ = woken.try_send(());
        }));
        let mut scores = Vec::new();
        let mut answered = 0;
        let mut wait = |scores: &mut Vec<Option<_>>, until: &dyn Fn(usize, usize) -> bool| {
            loop {
                while let Some(scored) = client.try_recv() {
                    scores[scored.ticket as usize] = Some(scored.result);
                    answered += 1;
                }
                if until(answered, client.in_flight()) {
                    return;
                }
                let _ = wakes.recv();
            }
        };
        for (ticket, (graph, explain)) in graphs.into_iter().enumerate() {
            scores.push(None);
            let mut job = Job { ticket: ticket as u64, graph, explain };
            while let Err(Full(back)) = client.try_submit(job) {
                wait(&mut scores, &|_, in_flight| in_flight < client.capacity);
                job = back;
            }
        }
        let all = scores.len();
        wait(&mut scores, &|answered, _| answered == all);
        scores.into_iter().map(|score| score.expect("each was answered")).collect()
    }

    /// A way in and out for one operator. `wake` is called from scoring threads after results were delivered.
    pub fn client(&self, wake: Box<dyn Fn() + Send>) -> ScoreClient {
        let capacity = self.config.queue.max(1);
        let (results, inbox) = bounded(capacity);
        ScoreClient {
            tasks: self.tasks.clone(),
            mailbox: Arc::new(Mailbox { results, wake: Mutex::new(wake) }),
            inbox,
            in_flight: AtomicUsize::new(0),
            capacity,
        }
    }
}

/// One operator's end of the [`Scorer`].
pub struct ScoreClient {
    tasks: Sender<Task>,
    mailbox: Arc<Mailbox>,
    inbox: Receiver<Scored>,
    in_flight: AtomicUsize,
    capacity: usize,
}

impl ScoreClient {
    /// Queues a graph. Never blocks.
    ///
    /// # Panics
    /// When every scoring thread has died, which takes a panic in one: nothing would answer any more.
    pub fn try_submit(&self, job: Job) -> Result<(), Full> {
        if self.in_flight.load(Ordering::Relaxed) >= self.capacity {
            return Err(Full(job));
        }
        match self.tasks.try_send(Task { job, mailbox: self.mailbox.clone() }) {
            Ok(()) => {
                self.in_flight.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(TrySendError::Full(task)) => Err(Full(task.job)),
            Err(TrySendError::Disconnected(_)) => panic!("all scoring threads have died"),
        }
    }

    /// The next answer, if one is ready. Never blocks.
    pub fn try_recv(&self) -> Option<Scored> {
        match self.inbox.try_recv() {
            Ok(scored) => {
                self.in_flight.fetch_sub(1, Ordering::Relaxed);
                Some(scored)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Jobs accepted whose answers were not taken yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// A scoring thread: batches what is queued, scores it platform by platform.
fn serve(queue: &Receiver<Task>, mut sessions: Vec<(Platform, ModelSession)>, max_batch_edges: usize) {
    let mut carried: Option<Task> = None;
    loop {
        let Some(first) = carried.take().or_else(|| queue.recv().ok()) else { return };
        let mut edges = first.job.graph.num_edges() as usize;
        let mut batch = vec![first];
        while let Ok(task) = queue.try_recv() {
            edges += task.job.graph.num_edges() as usize;
            if edges > max_batch_edges {
                carried = Some(task);
                break;
            }
            batch.push(task);
        }
        for (platform, session) in &mut sessions {
            let mine: Vec<&Task> = batch.iter().filter(|t| t.job.graph.platform() == *platform).collect();
            if mine.is_empty() {
                continue;
            }
            let graphs: Vec<&WindowGraph> = mine.iter().map(|t| &*t.job.graph).collect();
            let scores = session.score(&graphs);
            let mut attacks = Vec::new();
            for (task, result) in mine.into_iter().zip(scores) {
                match (&task.job.explain, result) {
                    // Its batch mates do not wait for it.
                    (Some(explain), Ok(score)) if score.attack_prob >= explain.from => {
                        attacks.push((task, explain, score));
                    }
                    (_, result) => task.answer(result),
                }
            }
            for (task, explain, mut score) in attacks {
                let panes: Vec<&PaneGraph> = explain.panes.iter().map(|pane| &pane.content).collect();
                score.key_edges = explain::explain(&task.job.graph, &panes, &score, |graphs| session.score(graphs));
                task.answer(Ok(score));
            }
        }
        batch.retain(|t| sessions.iter().all(|(p, _)| *p != t.job.graph.platform()));
        for task in batch {
            let reason = format!("no model package for {} was loaded", task.job.graph.platform());
            task.answer(Err(reason));
        }
    }
}

impl Task {
    fn answer(&self, result: Result<GraphScore, String>) {
        // A client that is gone wants no answer; one that is there has room, by its bound on jobs in flight.
        if self.mailbox.results.try_send(Scored { ticket: self.job.ticket, result }).is_ok() {
            (self.mailbox.wake.lock().unwrap_or_else(|e| e.into_inner()))();
        }
    }
}

#[cfg(test)]
mod tests;
