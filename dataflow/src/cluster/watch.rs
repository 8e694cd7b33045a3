//! Notices a process that is gone, hangs, or cannot be reached, and ends this one.
//!
//! - Input: the control connection to each peer, and who says whether this process's own workers move.
//! - Output: `error: lost process 1 (host:port): ...` and exit code 3 ([`super::exit`]).
//! - State: when each peer was last heard. One thread a peer, none of them shared with the dataflow, with
//!   TLS or with HTTP: a busy worker does not look like a dead process.
//! - Ordering: none; heartbeats carry no progress.
//! - Failure: a peer that closes the connection is lost at once, a silent one after [`MISSED`] heartbeats. One
//!   that said goodbye is not lost, but this process must end soon after: the dataflow is complete on both
//!   sides or on neither.
//!
//! Frames on a control connection are one byte, except `x`, which carries why the peer leaves:
//! `r` ready, `h` heartbeat, `g` goodbye, `x` length u16 text.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::exit::{EXIT_LOST, leave, leaving};

/// Heartbeats in a row that a peer may miss.
pub const MISSED: u32 = 6;
/// How long this process may go on after a peer has finished.
const AFTER_GOODBYE: Duration = Duration::from_secs(10);
/// How long [`Watch::finished`] waits for peers to take note.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// Longest pause between two looks at anything.
const TICK: Duration = Duration::from_millis(100);
const MAX_REASON_BYTES: usize = 1000;
/// See [`watch_workers`].
const LOOKS: u32 = 5;

pub(super) const READY: u8 = b'r';
const HEARTBEAT: u8 = b'h';
const GOODBYE: u8 = b'g';
const LEAVING: u8 = b'x';

/// A blocking stream, with or without TLS.
pub(super) trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// The control connection to one peer.
pub(super) struct Control {
    pub stream: Box<dyn ReadWrite>,
    /// The socket below `stream`.
    pub socket: TcpStream,
    /// `process 1 (127.0.0.1:2102)`.
    pub peer: String,
}

/// Watches the peers until [`Watch::finished`]; dropping it does not end the watch.
pub struct Watch {
    finished: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(controls: Vec<Control>, heartbeat: Duration) -> io::Result<Watch> {
        let finished = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for control in controls {
            control.socket.set_nonblocking(false)?;
            control.socket.set_read_timeout(Some(TICK.min(heartbeat / 2)))?;
            control.socket.set_write_timeout(Some(heartbeat))?;
            let finished = finished.clone();
            let name = format!("watch {}", control.peer);
            let run = move || {
                if let Err(reason) = Line::new(control, heartbeat, finished).follow() {
                    leave(reason, EXIT_LOST);
                }
            };
            threads.push(thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(Watch { finished, threads })
    }

    /// This process has done its work: says goodbye, so that the peers do not take the end for a loss.
    /// Call it once the workers are joined and everything is committed. Returns within about 2 s.
    pub fn finished(self) {
        self.finished.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().ok();
        }
    }
}

/// One peer's side of the watch.
struct Line {
    control: Control,
    heartbeat: Duration,
    finished: Arc<AtomicBool>,
    heard: Instant,
    said: Instant,
    /// When the peer said that it has finished.
    goodbye: Option<Instant>,
    /// The last frame, as far as it has come.
    partial: Vec<u8>,
}

enum Heard {
    Something,
    Nothing,
    End(String),
}

impl Line {
    fn new(control: Control, heartbeat: Duration, finished: Arc<AtomicBool>) -> Line {
        let now = Instant::now();
        Line { control, heartbeat, finished, heard: now, said: now - heartbeat, goodbye: None, partial: Vec::new() }
    }

    /// Until both sides have finished (`Ok`) or something is wrong.
    fn follow(mut self) -> Result<(), String> {
        loop {
            if let Some(reason) = leaving() {
                self.say_leaving(reason);
                return Ok(());
            }
            if self.finished.load(Ordering::Acquire) {
                self.part();
                return Ok(());
            }
            let peer = &self.control.peer;
            if let Some(at) = self.goodbye {
                if at.elapsed() > AFTER_GOODBYE {
                    let seconds = AFTER_GOODBYE.as_secs();
                    return Err(format!("{peer} ended {seconds} s ago, and this process has not"));
                }
                // Nothing more is said, and nothing more is expected.
                thread::sleep(TICK);
                continue;
            }
            if self.said.elapsed() >= self.heartbeat {
                self.said = Instant::now();
                let sent = self.control.stream.write_all(&[HEARTBEAT]).and_then(|()| self.control.stream.flush());
                // A peer that left may have said why: read that first.
                if let Err(error) = sent
                    && !is_pause(&error)
                {
                    match self.listen()? {
                        Heard::Something => continue,
                        Heard::Nothing | Heard::End(_) => return Err(format!("lost {}: {error}", self.control.peer)),
                    }
                }
            }
            // Taken before listening: after a pause of this very process, what the peer said meanwhile counts.
            let silent = self.heard.elapsed();
            match self.listen()? {
                Heard::Something => self.heard = Instant::now(),
                Heard::Nothing if silent > self.heartbeat * MISSED => {
                    let seconds = (self.heartbeat * MISSED).as_secs_f64();
                    return Err(format!("lost {}: no heartbeat for {seconds:.1} s", self.control.peer));
                }
                Heard::Nothing => {}
                Heard::End(how) => return Err(format!("lost {}: {how}", self.control.peer)),
            }
        }
    }

    /// Reads for at most a tick. `Err`: the peer leaves, and says why.
    fn listen(&mut self) -> Result<Heard, String> {
        let mut bytes = [0; 256];
        let read = match self.control.stream.read(&mut bytes) {
            Ok(0) => return Ok(Heard::End("it closed the connection".into())),
            Ok(read) => read,
            Err(error) if is_pause(&error) => return Ok(Heard::Nothing),
            // TLS wants a farewell that a killed process has no time for.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Heard::End("it closed the connection".into()));
            }
            Err(error) => return Ok(Heard::End(format!("the connection broke: {error}"))),
        };
        self.partial.extend(&bytes[..read]);
        loop {
            match self.partial.first() {
                None => return Ok(Heard::Something),
                Some(&(HEARTBEAT | READY)) => drop(self.partial.drain(..1)),
                Some(&GOODBYE) => {
                    self.goodbye = Some(Instant::now());
                    self.control.socket.shutdown(Shutdown::Write).ok();
                    return Ok(Heard::Something);
                }
                Some(&LEAVING) => {
                    let Some((head, text)) = self.partial.split_first_chunk::<3>() else {
                        return Ok(Heard::Something);
                    };
                    let length = usize::from(u16::from_be_bytes([head[1], head[2]])).min(MAX_REASON_BYTES);
                    let Some(text) = text.get(..length) else { return Ok(Heard::Something) };
                    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
                    return Err(format!("{} left: {text}", self.control.peer));
                }
                Some(other) => return Ok(Heard::End(format!("it sent an unknown message ({other:#04x})"))),
            }
        }
    }

    /// Goodbye, and until the peer has read it: a socket closed with unread input in it would take back
    /// what was just written.
    fn part(&mut self) {
        let stream = &mut self.control.stream;
        if self.goodbye.is_none() {
            stream.write_all(&[GOODBYE]).and_then(|()| stream.flush()).ok();
            self.control.socket.shutdown(Shutdown::Write).ok();
        }
        let until = Instant::now() + GOODBYE_LIMIT;
        while Instant::now() < until && !matches!(self.listen(), Ok(Heard::End(_)) | Err(_)) {}
    }

    fn say_leaving(&mut self, reason: &str) {
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        let mut frame = vec![LEAVING];
        frame.extend((reason.len() as u16).to_be_bytes());
        frame.extend(reason.as_bytes());
        // As far as it goes: the peer notices either way.
        let stream = &mut self.control.stream;
        stream.write_all(&frame).and_then(|()| stream.flush()).ok();
        self.control.socket.shutdown(Shutdown::Write).ok();
        let until = Instant::now() + TICK;
        while Instant::now() < until && matches!(self.listen(), Ok(Heard::Something | Heard::Nothing)) {}
    }
}

/// The time-out of a read or write, or a signal: nothing is wrong.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Ends the process (code 3) when `hung` names hung workers in several looks in a row; the peers are told.
///
/// `hung` is what says whether the process counts as alive, [`crate::http::HealthState::not_live`], or `None` once
/// the workers have ended. One look is not enough, as after a pause of the whole machine every worker seems to hang
/// until it has run again.
pub fn watch_workers(hung: impl Fn() -> Option<Vec<String>> + Send + 'static) -> io::Result<()> {
    let run = move || {
        let mut looks = 0;
        loop {
            thread::sleep(TICK);
            let Some(names) = hung() else { return };
            looks = if names.is_empty() { 0 } else { looks + 1 };
            if looks == LOOKS {
                leave(names.join(", "), EXIT_LOST);
            }
        }
    };
    thread::Builder::new().name("watch workers".into()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const HEARTBEAT_EVERY: Duration = Duration::from_millis(50);

    /// A watched line, and the peer's end of it.
    fn line() -> (Line, TcpStream, Arc<AtomicBool>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let control =
            Control { stream: Box::new(ours.try_clone().unwrap()), socket: ours, peer: "process 1 (h:1)".into() };
        let finished = Arc::new(AtomicBool::new(false));
        (Line::new(control, HEARTBEAT_EVERY, finished.clone()), theirs, finished)
    }

    #[test]
    fn silence_is_noticed_in_time() {
        let (line, _theirs, _) = line();
        let start = Instant::now();
        assert_eq!(line.follow().unwrap_err(), "lost process 1 (h:1): no heartbeat for 0.3 s");
        let took = start.elapsed();
        assert!(took >= HEARTBEAT_EVERY * MISSED && took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_closed_connection_is_a_loss_and_garbage_too() {
        let (line, theirs, _) = line();
        drop(theirs);
        assert!(line.follow().unwrap_err().starts_with("lost process 1 (h:1): "));
        let (line, mut theirs, _) = self::line();
        theirs.write_all(b"h?").unwrap();
        assert!(line.follow().unwrap_err().contains("unknown message (0x3f)"));
    }

    #[test]
    fn a_peer_that_leaves_says_why_even_in_pieces() {
        let (line, mut theirs, _) = line();
        let peer = thread::spawn(move || {
            for piece in [&b"hhx\0"[..], b"\x04be", b"ca"] {
                theirs.write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(30));
            }
            theirs
        });
        assert_eq!(line.follow().unwrap_err(), "process 1 (h:1) left: beca");
        peer.join().unwrap();
    }

    #[test]
    fn two_lines_that_finish_part_in_peace() {
        let (line, theirs, finished) = line();
        theirs.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let control =
            Control { stream: Box::new(theirs.try_clone().unwrap()), socket: theirs, peer: "process 0".into() };
        let done = Arc::new(AtomicBool::new(false));
        let other = Line::new(control, HEARTBEAT_EVERY, done.clone());
        let (a, b) = (thread::spawn(|| line.follow()), thread::spawn(|| other.follow()));
        thread::sleep(HEARTBEAT_EVERY * (MISSED + 2)); // heartbeats keep it alive
        assert!(!a.is_finished() && !b.is_finished());
        finished.store(true, Ordering::Release);
        assert_eq!(a.join().unwrap(), Ok(()));
        thread::sleep(HEARTBEAT_EVERY * (MISSED + 2)); // and after the goodbye none are missed
        assert!(!b.is_finished());
        done.store(true, Ordering::Release);
        assert_eq!(b.join().unwrap(), Ok(()));
    }
}
