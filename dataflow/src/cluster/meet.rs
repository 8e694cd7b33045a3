//! Brings the processes of a run together: everybody connected with everybody, or an error that says who lacks.
//!
//! - Input: the configuration. Process i calls every j < i and is called by every k > i, twice each: for data
//!   and for control.
//! - Output: both connections to each peer, once every process has said that it has all of its own.
//! - State: a slot a peer, filled in any order. The listener stays for the whole run, to tell a process that
//!   was started twice why it is not let in.
//! - Ordering: none needed. A peer that died while others were still awaited makes room for its successor.
//! - Failure: every step has a time-out; strangers, silence and garbage are refused, logged, and hold up
//!   nobody. A caller that is refused for good ends; the listener goes on waiting for a better one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsStream;
use tracing::{info, warn};

use super::hello::{self, Answer, Hello, Kind};
use super::tls::{self, Tls};
use super::watch::READY;
use super::{ClusterConfig, ClusterError};

/// For a connection to come about, and again for TLS and the hello on it.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts to reach a peer.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// Between two messages about who is awaited.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Strangers that are listened to at once; others wait in the kernel.
const MAX_CALLERS: usize = 128;

/// A connection that has passed the hello.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Both connections to one peer.
pub(super) struct Pair {
    pub data: Wire,
    pub control: Wire,
}

/// What is known of one peer.
#[derive(Default)]
struct Slot {
    incarnation: u64,
    data: Option<Wire>,
    control: Option<Wire>,
    /// Both connections are in use.
    taken: bool,
    /// What last went wrong with it.
    trouble: Option<String>,
}

impl Slot {
    fn full(&self) -> bool {
        self.taken || (self.data.is_some() && self.control.is_some())
    }
}

struct Meeting {
    config: ClusterConfig,
    tls: Option<Tls>,
    /// This process's hello; `to` is itself.
    mine: Hello,
    slots: Mutex<BTreeMap<usize, Slot>>,
    /// Trouble with callers that did not say who they are.
    strangers: Mutex<Option<String>>,
    changed: Notify,
}

/// Connects with every peer; index order, `None` for this process.
pub(super) async fn meet(config: &ClusterConfig, tls: Option<Tls>) -> Result<Vec<Option<Pair>>, ClusterError> {
    let deadline = Instant::now() + config.start_timeout;
    let listener = listen(config, deadline).await?;
    let incarnation = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let mine = Hello {
        kind: Kind::Control,
        incarnation,
        from: config.index as u32,
        to: config.index as u32,
        processes: config.processes as u32,
        workers: config.workers as u32,
        job: config.job.clone(),
        fingerprint: config.fingerprint.clone(),
    };
    let peers = (0..config.processes).filter(|i| *i != config.index);
    let meeting = Arc::new(Meeting {
        config: config.clone(),
        tls,
        mine,
        slots: Mutex::new(peers.map(|i| (i, Slot::default())).collect()),
        strangers: Mutex::new(None),
        changed: Notify::new(),
    });

    tokio::spawn(answer_callers(meeting.clone(), listener));
    let mut calls = JoinSet::new();
    for peer in 0..config.index {
        calls.spawn(call_until_met(meeting.clone(), peer));
    }
    let mut report = tokio::time::interval_at(Instant::now() + REPORT_EVERY, REPORT_EVERY);
    loop {
        for peer in meeting.forget_gone() {
            if peer < config.index {
                calls.spawn(call_until_met(meeting.clone(), peer));
            }
        }
        if meeting.complete() {
            break;
        }
        tokio::select! {
            Some(call) = calls.join_next() => call.expect("calls do not panic and are not cancelled")?,
            () = meeting.changed.notified() => {}
            _ = report.tick() => warn!("still waiting for {}", meeting.awaited()),
            () = tokio::time::sleep_until(deadline) => {
                let seconds = config.start_timeout.as_secs_f64();
                return Err(ClusterError::Awaited { seconds, whom: meeting.awaited() });
            }
        }
    }
    let mut pairs = meeting.take();
    info!("connected with all peers, waiting until they are so too");
    all_ready(config, &mut pairs, deadline.max(Instant::now() + STEP_LIMIT)).await?;
    info!(processes = config.processes, tls = meeting.tls.is_some(), "all processes of the run are connected");
    Ok(pairs)
}

/// Binds the configured address and no other.
async fn listen(config: &ClusterConfig, deadline: Instant) -> Result<TcpListener, ClusterError> {
    let address = &config.hosts[config.index];
    let cannot = |source| ClusterError::Listen { address: address.clone(), source };
    loop {
        // A name of one's own may take a while to appear in the DNS (Kubernetes).
        let resolved = match tokio::net::lookup_host(address).await {
            Ok(addresses) => addresses.collect::<Vec<SocketAddr>>(),
            Err(error) if Instant::now() > deadline => return Err(cannot(error)),
            Err(_) => Vec::new(),
        };
        if !resolved.is_empty() {
            let listener = TcpListener::bind(&resolved[..]).await.map_err(cannot)?;
            let bound = listener.local_addr().map_err(cannot)?;
            if config.in_clear_on_loopback_only() && !bound.ip().is_loopback() {
                return Err(ClusterError::InClear { host: format!("{address} ({bound})") });
            }
            return Ok(listener);
        }
        sleep(RETRY_EVERY).await;
    }
}

/// Answers whoever calls, for as long as the run lasts.
async fn answer_callers(meeting: Arc<Meeting>, listener: TcpListener) {
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let permit = callers.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a caller that hung up at once.
                warn!(%error, "cannot accept a connection");
                sleep(RETRY_EVERY).await;
                continue;
            }
        };
        let meeting = meeting.clone();
        tokio::spawn(async move {
            let refused = match timeout(STEP_LIMIT, meeting.receive(stream)).await {
                Ok(result) => result.err().map(|e| e.to_string()),
                Err(_) => Some(format!("it said nothing for {} s", STEP_LIMIT.as_secs())),
            };
            if let Some(reason) = refused {
                warn!("refused a connection from {from}: {reason}");
                *locked(&meeting.strangers) = Some(format!("refused {from}: {reason}"));
            }
            drop(permit);
        });
    }
}

/// Calls `peer` until it lets us in, or refuses for good.
async fn call_until_met(meeting: Arc<Meeting>, peer: usize) -> Result<(), ClusterError> {
    let host = meeting.config.peer(peer);
    'again: loop {
        let mut wires = Vec::new();
        for kind in [Kind::Data, Kind::Control] {
            match meeting.call(peer, kind).await {
                Ok((wire, Answer::Welcome)) => wires.push(wire),
                Ok((_, Answer::Refused(reason))) => return Err(ClusterError::Refused { peer: host, reason }),
                Err(error) if tls::is_certificate_error(&error) => {
                    return Err(ClusterError::Certificate { peer: host, reason: error.to_string() });
                }
                Ok((_, Answer::Busy(reason))) => {
                    meeting.trouble(peer, reason);
                    sleep(RETRY_EVERY).await;
                    continue 'again;
                }
                Err(error) => {
                    meeting.trouble(peer, error.to_string());
                    sleep(RETRY_EVERY).await;
                    continue 'again;
                }
            }
        }
        let mut slots = locked(&meeting.slots);
        let slot = slots.entry(peer).or_default();
        slot.control = wires.pop();
        slot.data = wires.pop();
        return Ok(());
    }
}

/// Tells all peers that this process has all its connections, and hears it from them.
async fn all_ready(config: &ClusterConfig, pairs: &mut [Option<Pair>], deadline: Instant) -> Result<(), ClusterError> {
    let lost = |peer: usize, reason: String| ClusterError::LostAtStart { peer: config.peer(peer), reason };
    for (peer, pair) in pairs.iter_mut().enumerate() {
        let Some(pair) = pair else { continue };
        pair.control.write(&[READY]).await.map_err(|e| lost(peer, e.to_string()))?;
    }
    for (peer, pair) in pairs.iter_mut().enumerate() {
        let Some(pair) = pair else { continue };
        match timeout_at(deadline, pair.control.read_byte()).await {
            Ok(Ok(READY)) => {}
            Ok(Ok(other)) => return Err(lost(peer, format!("unknown message {other:#04x}"))),
            Ok(Err(error)) => return Err(lost(peer, error.to_string())),
            Err(_) => return Err(lost(peer, "it does not get ready: it is waiting for another process".into())),
        }
    }
    Ok(())
}

impl Meeting {
    /// One caller: who is it, and is there room for it?
    async fn receive(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if self.config.in_clear_on_loopback_only() && !stream.peer_addr()?.ip().is_loopback() {
            return Err(io::Error::other("in the clear, and not from this machine"));
        }
        let mut wire = match &self.tls {
            None => Wire::Plain(stream),
            Some(tls) => Wire::Tls(Box::new(tls.accept(stream).await?)),
        };
        let theirs = wire.receive().await?;
        let reply = match theirs.disagreement(&self.mine) {
            Some(reason) => Answer::Refused(reason),
            None => self.make_room(&theirs),
        };
        wire.answer(&reply).await?;
        match reply {
            Answer::Welcome => {
                let mut slots = locked(&self.slots);
                let slot = slots.entry(theirs.from as usize).or_default();
                if slot.incarnation == theirs.incarnation && !slot.taken {
                    match theirs.kind {
                        Kind::Data => slot.data = Some(wire),
                        Kind::Control => slot.control = Some(wire),
                    }
                    slot.trouble = None;
                }
                drop(slots);
                self.changed.notify_one();
                Ok(())
            }
            // Not every quarter of a second into the log.
            Answer::Busy(_) => Ok(()),
            Answer::Refused(reason) => {
                self.trouble(theirs.from as usize, reason.clone());
                Err(io::Error::other(reason))
            }
        }
    }

    /// Gives the slot to the caller unless another start of the same process holds it and lives.
    fn make_room(&self, theirs: &Hello) -> Answer {
        let peer = theirs.from as usize;
        let mut slots = locked(&self.slots);
        let slot = slots.entry(peer).or_default();
        let free = slot.incarnation == 0;
        let same = slot.incarnation == theirs.incarnation;
        if slot.taken || (!free && !same && !slot.is_dead()) {
            return Answer::Busy(format!("process {peer} is connected already: is it running twice?"));
        }
        if !same {
            *slot = Slot { incarnation: theirs.incarnation, ..Slot::default() };
        }
        Answer::Welcome
    }

    /// One attempt to reach `peer`.
    async fn call(&self, peer: usize, kind: Kind) -> io::Result<(Wire, Answer)> {
        let address = &self.config.hosts[peer];
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let stream = timeout(STEP_LIMIT, TcpStream::connect(address)).await.map_err(late)??;
        stream.set_nodelay(true)?;
        if self.config.in_clear_on_loopback_only() && !stream.peer_addr()?.ip().is_loopback() {
            return Err(io::Error::other("not on this machine, and cluster.tls is not set"));
        }
        let talk = async {
            let mut wire = match &self.tls {
                None => Wire::Plain(stream),
                Some(tls) => Wire::Tls(Box::new(tls.connect(super::host_of(address), stream).await?)),
            };
            let hello = Hello { kind, to: peer as u32, ..self.mine.clone() };
            let answer = wire.introduce(&hello).await?;
            Ok((wire, answer))
        };
        timeout(STEP_LIMIT, talk).await.map_err(late)?
    }

    fn trouble(&self, peer: usize, reason: String) {
        if let Some(slot) = locked(&self.slots).get_mut(&peer)
            && !slot.full()
        {
            slot.trouble = Some(reason);
        }
    }

    /// Makes room for the successors of peers that have gone since they connected; their indexes.
    fn forget_gone(&self) -> Vec<usize> {
        let mut slots = locked(&self.slots);
        let gone = slots.iter_mut().filter(|(_, slot)| slot.full() && slot.is_dead());
        gone.map(|(peer, slot)| {
            *slot = Slot { trouble: Some("it was connected and has gone".into()), ..Slot::default() };
            *peer
        })
        .collect()
    }

    fn complete(&self) -> bool {
        locked(&self.slots).values().all(Slot::full)
    }

    fn take(&self) -> Vec<Option<Pair>> {
        let mut slots = locked(&self.slots);
        let mut pairs: Vec<Option<Pair>> = (0..self.config.processes).map(|_| None).collect();
        for (peer, slot) in slots.iter_mut() {
            slot.taken = true;
            if let (Some(data), Some(control)) = (slot.data.take(), slot.control.take()) {
                pairs[*peer] = Some(Pair { data, control });
            }
        }
        pairs
    }

    /// `process 1 (127.0.0.1:2102; Connection refused), ...`
    fn awaited(&self) -> String {
        let slots = locked(&self.slots);
        let mut whom: Vec<String> = Vec::new();
        for (peer, slot) in slots.iter().filter(|(_, slot)| !slot.full()) {
            let trouble = slot.trouble.as_ref().map(|t| format!("; {t}")).unwrap_or_default();
            whom.push(format!("process {peer} ({}{trouble})", self.config.hosts[*peer]));
        }
        let mut text = whom.join(", ");
        if let Some(stranger) = &*locked(&self.strangers) {
            text += &format!("; {stranger}");
        }
        text
    }
}

impl Slot {
    /// Whether the process that holds the slot has gone: an end or an error is what it leaves behind.
    fn is_dead(&self) -> bool {
        let gone = |wire: &Wire| {
            let mut byte = [0];
            // Nobody else reads from a connection in a slot, so nobody's waker is lost.
            let mut context = Context::from_waker(Waker::noop());
            match wire.socket().poll_peek(&mut context, &mut ReadBuf::new(&mut byte)) {
                Poll::Pending => false,
                Poll::Ready(seen) => seen.unwrap_or(0) == 0,
            }
        };
        self.data.iter().chain(&self.control).any(gone)
    }
}

impl Wire {
    fn socket(&self) -> &TcpStream {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => stream.get_ref().0,
        }
    }

    async fn receive(&mut self) -> io::Result<Hello> {
        match self {
            Wire::Plain(stream) => hello::receive(stream).await,
            Wire::Tls(stream) => hello::receive(stream).await,
        }
    }

    async fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => hello::answer(stream, answer).await,
            Wire::Tls(stream) => hello::answer(stream, answer).await,
        }
    }

    async fn introduce(&mut self, hello: &Hello) -> io::Result<Answer> {
        match self {
            Wire::Plain(stream) => hello::introduce(stream, hello).await,
            Wire::Tls(stream) => hello::introduce(stream, hello).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.write_all(bytes).await,
            Wire::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    async fn read_byte(&mut self) -> io::Result<u8> {
        match self {
            Wire::Plain(stream) => stream.read_u8().await,
            Wire::Tls(stream) => stream.read_u8().await,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
