//! The processes of one run: how they find each other, prove who they are, and notice that one is gone.
//!
//! timely connects processes in the clear, to whoever calls, waits for a silent caller for ever, and does not
//! notice a peer that hangs. So the connections are made here and handed to it:
//!
//! ```text
//!  process i                                                    process j < i
//!  timely ══ data ════════[ TLS bridge ]══ TCP ══[ TLS bridge ]════════ timely
//!  watch  ── control ───────[ TLS ]─────── TCP ─────[ TLS ]──────────── watch
//! ```
//!
//! - [`connect`] returns once every process is connected with every other ([`meet`]), and has agreed with it on
//!   version, job, configuration, process and worker counts ([`hello`]).
//! - Both connections of a pair are mutual TLS where configured ([`tls`], [`bridge`]); in the clear they are
//!   refused off the loopback addresses, unless `insecure`.
//! - [`Watch`] ends the process within 5 s of the loss of a peer ([`watch`]); [`exit_on_panic`] and
//!   [`watch_workers`] do so for a panic and for a hung worker ([`exit`]). There is no rejoining: timely has
//!   none, so the supervisor restarts every process.
//!
//! Memory: timely's send queues have no bound, but a peer that stops reading is gone within the 3 s after which
//! it is lost: `docs/cluster.md` has what that costs.

mod bridge;
mod exit;
mod hello;
mod meet;
mod tls;
mod watch;

use std::any::Any;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::{AllocatorBuilder, Hooks};

pub use exit::{EXIT_FAILED, EXIT_LOST, EXIT_PANIC, EXIT_SUPERSEDED, before_exit, exit_on_panic, leave, stopping};
pub use tls::TlsFiles;
pub use watch::{MISSED, Watch, watch_workers};

use bridge::Fabric;
use meet::{Pair, Wire};
use tls::Tls;
use watch::{Control, ReadWrite};

/// Port of process 0 where no hostfile is given; process i has this plus i.
pub const FIRST_PORT: u16 = 2101;

/// Who belongs to the run, and which of them this process is.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Workers of each process; the same in all.
    pub workers: usize,
    /// Processes of the run.
    pub processes: usize,
    /// Which one this is, from 0.
    pub index: usize,
    /// `host:port` of every process, as this one reaches it; its own is what it listens on. See
    /// [`read_hostfile`] and [`loopback_hosts`].
    pub hosts: Vec<String>,
    /// Mutual TLS; all processes or none.
    pub tls: Option<TlsFiles>,
    /// Talk in the clear, to whoever connects, though not all hosts are loopback addresses.
    pub insecure: bool,
    /// Between two heartbeats. A peer that misses [`MISSED`] of them is lost.
    pub heartbeat: Duration,
    /// How long to wait at start for all processes.
    pub start_timeout: Duration,
    /// Name of the deployment.
    pub job: String,
    /// Digest of all settings that the processes must agree on.
    pub fingerprint: String,
}

impl Default for ClusterConfig {
    /// One process with one worker; heartbeats every 500 ms, so that a lost peer is noticed after 3 s.
    fn default() -> Self {
        ClusterConfig {
            workers: 1,
            processes: 1,
            index: 0,
            hosts: loopback_hosts(1),
            tls: None,
            insecure: false,
            heartbeat: Duration::from_millis(500),
            start_timeout: Duration::from_secs(60),
            job: "logster".into(),
            fingerprint: String::new(),
        }
    }
}

impl ClusterConfig {
    /// `process 1 (127.0.0.1:2102)`.
    fn peer(&self, index: usize) -> String {
        format!("process {index} ({})", self.hosts[index])
    }

    /// Whether connections to and from other machines are to be refused.
    fn in_clear_on_loopback_only(&self) -> bool {
        self.tls.is_none() && !self.insecure
    }

    fn check(&self) -> Result<(), ClusterError> {
        let invalid = |what: String| Err(ClusterError::Config(what));
        if self.workers == 0 || self.processes == 0 {
            return invalid("a run has at least one process with one worker".into());
        }
        if self.index >= self.processes {
            let last = self.processes - 1;
            return invalid(format!("there is no process {}: they are counted from 0 to {last}", self.index));
        }
        if self.processes > 1 && self.hosts.len() != self.processes {
            return invalid(format!("{} processes, but {} hosts", self.processes, self.hosts.len()));
        }
        for (what, text) in [("job", &self.job), ("fingerprint", &self.fingerprint)] {
            if text.len() > hello::MAX_TEXT_BYTES || text.chars().any(char::is_control) {
                return invalid(format!("the {what} must be at most {} plain bytes", hello::MAX_TEXT_BYTES));
            }
        }
        if self.processes > 1 && self.in_clear_on_loopback_only() {
            // By the text alone: what a name resolves to is not ours to trust.
            if let Some(host) = self.hosts.iter().find(|host| !is_loopback(host_of(host))) {
                return Err(ClusterError::InClear { host: host.clone() });
            }
        }
        Ok(())
    }
}

/// Why the processes of a run did not come together.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ClusterError {
    #[error("cluster: {0}")]
    Config(String),
    #[error("cannot read the hostfile {path}: {reason}")]
    Hostfile { path: PathBuf, reason: String },
    #[error(
        "processes would talk in the clear beyond this machine ({host}): set cluster.tls.ca, cert and key \
         (docs/cluster.md shows how to make them), or cluster.insecure = true where the network itself is private"
    )]
    InClear { host: String },
    #[error("cannot use {path} for TLS: {reason}")]
    TlsFile { path: PathBuf, reason: String },
    #[error("the key {path} can be read or changed by others (mode {mode:03o}): chmod 600 {path}")]
    KeyReadable { path: PathBuf, mode: u32 },
    #[error(
        "cannot listen on {address}: is this process running already, or is its index or the hostfile of another \
         machine?"
    )]
    Listen { address: String, source: io::Error },
    #[error("not all processes came within {seconds} s; missing: {whom}")]
    Awaited { seconds: f64, whom: String },
    #[error("{peer} refuses this process: {reason}")]
    Refused { peer: String, reason: String },
    #[error("{peer} and this process do not accept each other's certificate: {reason} (docs/cluster.md)")]
    Certificate { peer: String, reason: String },
    #[error("{peer} was lost at start: {reason}")]
    LostAtStart { peer: String, reason: String },
    #[error("cluster connections")]
    Io(#[from] io::Error),
}

/// The hosts of `processes` processes on this machine: ports [`FIRST_PORT`] and up.
pub fn loopback_hosts(processes: usize) -> Vec<String> {
    (0..processes).map(|i| format!("127.0.0.1:{}", usize::from(FIRST_PORT) + i)).collect()
}

/// The first `processes` hosts of a file with one `host:port` a line; `#` starts a comment.
///
/// More lines are allowed: a run may be narrower than the last one.
pub fn read_hostfile(path: &Path, processes: usize) -> Result<Vec<String>, ClusterError> {
    let bad = |reason: String| ClusterError::Hostfile { path: path.into(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let mut hosts: Vec<String> = Vec::new();
    for (line, host) in (1..).zip(text.lines()) {
        let host = host.split('#').next().unwrap_or_default().trim();
        if host.is_empty() {
            continue;
        }
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).filter(|p| *p > 0);
        let name = host_of(host);
        let plain = match host.starts_with('[') {
            true => name.parse::<Ipv6Addr>().is_ok(),
            false => !name.contains([':', '[', ']', ' ', '\t', '/']),
        };
        if port.is_none() || name.is_empty() || !plain {
            return Err(bad(format!("line {line}: \"{host}\" is not host:port (IPv6 as [::1]:2101)")));
        }
        if hosts.iter().any(|h| h == host) {
            return Err(bad(format!("line {line}: {host} is there twice")));
        }
        hosts.push(host.to_owned());
    }
    if hosts.len() < processes {
        return Err(bad(format!("{} hosts for {processes} processes", hosts.len())));
    }
    hosts.truncate(processes);
    Ok(hosts)
}

/// `host` of `host:port`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Connects the processes of the run; of one process, its threads.
///
/// Feed the first two to [`timely::execute::execute_from`]. In a run of several processes, call
/// [`exit_on_panic`] before, and [`Watch::finished`] once the workers are joined (and their guards dropped) and
/// everything is committed. Blocks, for at most the `start_timeout` and a few seconds; not for async code.
#[allow(clippy::type_complexity, reason = "what timely::execute::execute_from takes")]
pub fn connect(
    config: &ClusterConfig,
) -> Result<(Vec<AllocatorBuilder>, Box<dyn Any + Send>, Option<Watch>), ClusterError> {
    config.check()?;
    if config.processes == 1 {
        let local = match config.workers {
            1 => timely::CommunicationConfig::Thread,
            workers => timely::CommunicationConfig::Process(workers),
        };
        let (builders, others) = local.try_build().map_err(ClusterError::Config)?;
        return Ok((builders, others, None));
    }

    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let mut fabric = Fabric::new()?;
    let pairs = fabric.runtime.block_on(meet::meet(config, tls))?;

    let (mut plain, mut bridged) = (Vec::new(), Vec::new());
    let mut controls = Vec::new();
    for (peer, pair) in pairs.into_iter().enumerate() {
        let (mut tcp, mut unix) = (None, None);
        if let Some(Pair { data, control }) = pair {
            controls.push(control.into_control(config.peer(peer))?);
            match data {
                Wire::Plain(stream) => tcp = Some(stream.into_std()?),
                Wire::Tls(stream) => unix = Some(fabric.bridge(*stream)?),
            }
        }
        plain.push(tcp);
        bridged.push(unix);
    }
    let watch = Watch::start(controls, config.heartbeat)?;
    let (builders, comms) = match config.tls {
        None => start_timely(config, plain)?,
        Some(_) => start_timely(config, bridged)?,
    };
    Ok((builders, Box::new(Guard { comms: Some(comms), fabric: Some(fabric) }), Some(watch)))
}

fn start_timely<S: Stream + 'static>(
    config: &ClusterConfig,
    sockets: Vec<Option<S>>,
) -> io::Result<(Vec<AllocatorBuilder>, CommsGuard)> {
    let hooks = Hooks::default();
    let local = ProcessBuilder::new_typed_vector(config.workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(local, sockets, config.index, config.workers, hooks)?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), guard))
}

/// Dropped by timely after its workers: first its network threads end, then the bridges below them.
struct Guard {
    comms: Option<CommsGuard>,
    fabric: Option<Fabric>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.comms.take());
        if let Some(fabric) = self.fabric.take() {
            fabric.drain();
        }
    }
}

impl Wire {
    /// Out of tokio, for a thread of its own.
    fn into_control(self, peer: String) -> io::Result<Control> {
        use tokio_rustls::TlsStream;
        use tokio_rustls::rustls::StreamOwned;
        let (socket, stream): (_, Box<dyn ReadWrite>) = match self {
            Wire::Plain(stream) => {
                let socket = stream.into_std()?;
                (socket.try_clone()?, Box::new(socket))
            }
            Wire::Tls(stream) => match *stream {
                TlsStream::Client(stream) => {
                    let (stream, session) = stream.into_inner();
                    let socket = stream.into_std()?;
                    (socket.try_clone()?, Box::new(StreamOwned::new(session, socket)))
                }
                TlsStream::Server(stream) => {
                    let (stream, session) = stream.into_inner();
                    let socket = stream.into_std()?;
                    (socket.try_clone()?, Box::new(StreamOwned::new(session, socket)))
                }
            },
        };
        Ok(Control { stream, socket, peer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostfile(text: &str, processes: usize) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, text).unwrap();
        read_hostfile(&path, processes).map_err(|e| e.to_string())
    }

    #[test]
    fn hostfiles() {
        let text = "# ours\n a:1 \n\n[::1]:2 # b\nc.example:65535\n";
        assert_eq!(hostfile(text, 2).unwrap(), ["a:1", "[::1]:2"]);
        assert_eq!(hostfile(text, 3).unwrap()[2], "c.example:65535");
        for (text, want) in [
            (text, "3 hosts for 4 processes"),
            ("a", "line 1: \"a\" is not host:port"),
            ("a:0", "is not host:port"),
            ("a:65536", "is not host:port"),
            (":1", "is not host:port"),
            ("::1:1:2101", "is not host:port"),
            ("a:1\nb:2\na:1", "line 3: a:1 is there twice"),
        ] {
            let got = hostfile(text, 4).unwrap_err();
            assert!(got.contains(want), "{text:?}: {got}");
        }
        assert_eq!(loopback_hosts(2), ["127.0.0.1:2101", "127.0.0.1:2102"]);
    }

    #[test]
    fn in_the_clear_only_on_loopback_or_by_will() {
        let config = |hosts: [&str; 2], insecure| ClusterConfig {
            processes: 2,
            hosts: hosts.map(String::from).to_vec(),
            insecure,
            ..ClusterConfig::default()
        };
        for hosts in [["127.0.0.1:1", "127.8.9.1:2"], ["localhost:1", "[::1]:2"]] {
            config(hosts, false).check().unwrap();
        }
        for hosts in [["127.0.0.1:1", "10.0.0.1:2"], ["a:1", "localhost:2"], ["0.0.0.0:1", "127.0.0.1:2"]] {
            let error = config(hosts, false).check().unwrap_err().to_string();
            assert!(error.contains("in the clear") && error.contains("cluster.insecure = true"), "{error}");
            config(hosts, true).check().unwrap();
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let two = ClusterConfig { processes: 2, hosts: loopback_hosts(2), ..ClusterConfig::default() };
        for (config, want) in [
            (ClusterConfig { index: 2, ..two.clone() }, "no process 2"),
            (ClusterConfig { hosts: loopback_hosts(3), ..two.clone() }, "2 processes, but 3 hosts"),
            (ClusterConfig { workers: 0, ..two.clone() }, "at least one"),
            (ClusterConfig { job: "x".repeat(256), ..two }, "the job must be"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn one_process_needs_no_socket() {
        for workers in [1, 3] {
            let config = ClusterConfig { workers, ..ClusterConfig::default() };
            let (builders, _others, watch) = connect(&config).unwrap();
            assert_eq!(builders.len(), workers);
            assert!(watch.is_none());
        }
    }
}
