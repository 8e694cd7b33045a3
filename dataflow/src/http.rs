//! `/metrics` and `/health`, served from a thread of their own.
//!
//! - Liveness: every worker has moved within `http.stall_after`. A process that is not alive should be
//!   restarted.
//! - Readiness: sources assigned, model loaded, first epoch committed. A process that is alive and not ready
//!   should be waited for.
//!
//! Workers only store to an atomic; a slow or silent client costs them nothing.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use tokio::sync::oneshot;

use crate::config::Http;
use crate::failure::Failure;

/// What a process must have done before it counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// Every worker knows its partitions or files.
    SourcesAssigned,
    /// The model packages are loaded and have passed their self-test.
    ModelLoaded,
    /// An epoch has been committed.
    FirstCommit,
}

const MILESTONES: [(Milestone, &str); 3] = [
    (Milestone::SourcesAssigned, "sources are not assigned yet"),
    (Milestone::ModelLoaded, "the model is not loaded yet"),
    (Milestone::FirstCommit, "nothing is committed yet"),
];

/// The health of this process, written by its workers and read by `/health`. Clones share it.
#[derive(Clone)]
pub struct HealthState(Arc<Inner>);

struct Inner {
    started: Instant,
    stall_after: Duration,
    /// One a worker: milliseconds from `started` to its last beat.
    beats: Vec<AtomicU64>,
    reached: [AtomicBool; MILESTONES.len()],
}

/// One worker's pulse.
#[derive(Clone)]
pub struct Heartbeat {
    health: HealthState,
    worker: usize,
}

impl Heartbeat {
    /// The worker moves. Call it in the worker's loop, and park for at most a second or so.
    pub fn beat(&self) {
        let inner = &self.health.0;
        inner.beats[self.worker].store(inner.now_ms(), Ordering::Relaxed);
    }
}

impl Inner {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl HealthState {
    /// The health of a process with `workers` workers that are given until `stall_after` for each step, the
    /// first one included.
    pub fn new(workers: usize, stall_after: Duration) -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            stall_after,
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            reached: std::array::from_fn(|_| AtomicBool::new(false)),
        }))
    }

    /// The pulse of `worker`, counted from 0 within this process.
    pub fn heartbeat(&self, worker: usize) -> Heartbeat {
        assert!(worker < self.0.beats.len(), "worker {worker} of {}", self.0.beats.len());
        Heartbeat { health: self.clone(), worker }
    }

    /// `milestone` is reached.
    pub fn reached(&self, milestone: Milestone) {
        self.0.reached[milestone as usize].store(true, Ordering::Relaxed);
    }

    /// Every worker has moved once: from here on none waits for anybody.
    pub fn has_begun(&self) -> bool {
        self.0.beats.iter().all(|beat| beat.load(Ordering::Relaxed) > 0)
    }

    /// Why this process is not alive; empty when it is.
    pub fn not_live(&self) -> Vec<String> {
        let now = self.0.now_ms();
        let silent = |beat: &AtomicU64| Duration::from_millis(now.saturating_sub(beat.load(Ordering::Relaxed)));
        let silent = self.0.beats.iter().map(silent).enumerate().filter(|(_, silent)| *silent > self.0.stall_after);
        silent
            .map(|(worker, silent)| format!("worker {worker} has not moved for {:.1} s", silent.as_secs_f64()))
            .collect()
    }

    /// Why this process is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let waiting = MILESTONES.iter().filter(|(m, _)| !self.0.reached[*m as usize].load(Ordering::Relaxed));
        self.not_live().into_iter().chain(waiting.map(|(_, reason)| (*reason).to_owned())).collect()
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `http.bind` and answers from a thread of its own.
    ///
    /// # Errors
    /// The address cannot be had; the message names the setting.
    pub fn start(http: &Http, registry: Registry, health: HealthState) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| {
            let remedy = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "stop what listens there, choose another address (port 0 takes a free one), or set http.enabled = false"
                }
                _ => "choose an address of this machine and a port that this user may open",
            };
            Failure::new(format!("cannot listen on {}", http.bind)).because(error).at("http.bind").remedy(remedy)
        };
        // Bound here, not in the thread: a start that fails must fail where the caller sees it.
        let listener = TcpListener::bind(http.bind).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let (stop, stopped) = oneshot::channel();
        let routes = routes(registry, health);
        let thread = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || {
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("bound and non-blocking");
                    // No graceful end: a scraper's idle connection would hold it up.
                    tokio::select! {
                        served = axum::serve(listener, routes).into_future() => {
                            if let Err(error) = served {
                                tracing::error!(%error, "metrics and health are no longer served");
                            }
                        }
                        _ = stopped => {}
                    }
                });
            })
            .map_err(fail)?;
        tracing::info!(%addr, "serving /metrics and /health");
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens: the free port, where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn routes(registry: Registry, health: HealthState) -> Router {
    let of_health = Router::new()
        .route("/health", get(summary))
        .route("/health/live", get(|State(health): State<HealthState>| async move { verdict(&health.not_live()) }))
        .route("/health/ready", get(|State(health): State<HealthState>| async move { verdict(&health.not_ready()) }))
        .with_state(health);
    Router::new().route("/metrics", get(metrics)).with_state(registry).merge(of_health)
}

async fn metrics(State(registry): State<Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// 200 while alive; the body tells whether it is ready too, and why not.
async fn summary(State(health): State<HealthState>) -> Response {
    let (not_live, not_ready) = (health.not_live(), health.not_ready());
    let (live, ready) = (not_live.is_empty(), not_ready.is_empty());
    let status = match (live, ready) {
        (false, _) => "stalled",
        (true, false) => "starting",
        (true, true) => "ok",
    };
    let body = json!({ "status": status, "live": live, "ready": ready, "reasons": not_ready });
    (code(live), Json(body)).into_response()
}

fn verdict(reasons: &[String]) -> Response {
    (code(reasons.is_empty()), Json(json!({ "ok": reasons.is_empty(), "reasons": reasons }))).into_response()
}

fn code(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use serde_json::Value;

    use super::*;
    use crate::config::{Config, Override};
    use crate::metrics::Metrics;

    fn http(bind: &str) -> Http {
        let bind = Override { option: "--set".into(), path: "http.bind".into(), value: bind.into() };
        Config::load(None, &[], &[bind]).unwrap().http.clone()
    }

    /// Status, headers and body of a GET.
    fn request(addr: SocketAddr, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: logster\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    fn json_of(addr: SocketAddr, path: &str) -> (u16, Value) {
        let (status, _, body) = request(addr, path);
        (status, serde_json::from_str(&body).unwrap())
    }

    #[test]
    fn from_starting_to_ready() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap().clamped.inc_by(3);
        let health = HealthState::new(2, Duration::from_secs(60));
        let server = Server::start(&http("127.0.0.1:0"), registry, health.clone()).unwrap();

        let (status, head, body) = request(server.addr(), "/metrics");
        assert_eq!(status, 200);
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("\nlogster_clamped_events_total 3\n"), "{body}");

        let (status, body) = json_of(server.addr(), "/health");
        assert_eq!((status, &body["status"], &body["ready"]), (200, &json!("starting"), &json!(false)));
        let reasons =
            json!(["sources are not assigned yet", "the model is not loaded yet", "nothing is committed yet"]);
        assert_eq!(body["reasons"], reasons);
        assert_eq!(json_of(server.addr(), "/health/live").0, 200);
        assert_eq!(json_of(server.addr(), "/health/ready"), (503, json!({ "ok": false, "reasons": reasons })));

        for milestone in [Milestone::SourcesAssigned, Milestone::ModelLoaded, Milestone::FirstCommit] {
            assert_eq!(json_of(server.addr(), "/health/ready").0, 503);
            health.reached(milestone);
        }
        assert_eq!(json_of(server.addr(), "/health/ready"), (200, json!({ "ok": true, "reasons": [] })));
        assert_eq!(json_of(server.addr(), "/health").1["status"], "ok");
        assert_eq!(request(server.addr(), "/elsewhere").0, 404);
    }

    #[test]
    fn one_stalled_worker_is_not_live_and_recovers() {
        let health = HealthState::new(2, Duration::from_secs(1));
        let server = Server::start(&http("127.0.0.1:0"), Registry::new(), health.clone()).unwrap();
        let (first, second) = (health.heartbeat(0), health.heartbeat(1));
        std::thread::sleep(Duration::from_millis(1200));
        first.beat();
        let not_live = health.not_live();
        assert!(not_live.len() == 1 && not_live[0].starts_with("worker 1 has not moved for "), "{not_live:?}");
        assert_eq!(json_of(server.addr(), "/health/live").0, 503);
        let (status, body) = json_of(server.addr(), "/health");
        assert_eq!((status, &body["status"], &body["live"]), (503, &json!("stalled"), &json!(false)));
        first.beat();
        second.beat();
        assert_eq!(health.not_live(), Vec::<String>::new());
    }

    #[test]
    fn a_taken_port_names_the_setting_and_a_dropped_server_frees_it() {
        let health = HealthState::new(1, Duration::from_secs(60));
        let server = Server::start(&http("127.0.0.1:0"), Registry::new(), health.clone()).unwrap();
        let addr = server.addr();
        let again = http(&addr.to_string());
        // A connection that says nothing must not hold up the end.
        let _silent = TcpStream::connect(addr).unwrap();
        let Err(failure) = Server::start(&again, Registry::new(), health) else { panic!("two servers on {addr}") };
        let report = crate::failure::report(&failure.into());
        assert_eq!(
            report,
            format!(
                "error: cannot listen on {addr}\n  cause: Address already in use (os error 98)\n  where: http.bind\n  \
                 remedy: stop what listens there, choose another address (port 0 takes a free one), or set \
                 http.enabled = false\n"
            )
        );
        drop(server);
        assert!(TcpStream::connect(addr).is_err(), "still listening after drop");
    }
}
