//! How a process ends when it cannot go on: one message, one code, in bounded time.
//!
//! A timely worker cannot go on without its peers, and a panic in one thread leaves the others waiting
//! for ever, so everything that is wrong ends the whole process; the supervisor restarts the cluster
//! (docs/cluster.md lists the codes). The reason is kept here for the watch's threads, which tell it to
//! the other processes: theirs then name the first cause and not its echo.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

/// Exit code after a failure: of a broker, an input, an output.
pub const EXIT_FAILED: i32 = 1;
/// Exit code after the loss of a peer or a hung worker.
pub const EXIT_LOST: i32 = 3;
/// Exit code of a run that another one has taken over from: not to be restarted.
pub const EXIT_SUPERSEDED: i32 = 4;
/// Exit code after a panic.
pub const EXIT_PANIC: i32 = 101;

/// For the other threads of the watch to tell the peers.
const FAREWELL: Duration = Duration::from_millis(300);
/// What the hook gets, at most.
const HOOK_LIMIT: Duration = Duration::from_millis(700);
/// For the watch to say which peer was lost, where timely's own threads noticed first.
const WATCH_FIRST: Duration = Duration::from_secs(1);

type Hook = Box<dyn FnOnce(&str) + Send>;

static LEAVING: OnceLock<String> = OnceLock::new();
static STOPPING: AtomicBool = AtomicBool::new(false);
static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// Sets what runs, with the reason, before the process ends for a lost peer, a hung worker or a panic:
/// to flush logs. It gets 0.7 s on a thread of its own.
pub fn before_exit(hook: impl FnOnce(&str) + Send + 'static) {
    *HOOK.lock().unwrap_or_else(|e| e.into_inner()) = Some(Box::new(hook));
}

/// Why this process is about to end, if it is.
pub(super) fn leaving() -> Option<&'static str> {
    LEAVING.get().map(String::as_str)
}

/// This process was asked to stop. Its peers probably were as well: that they go is no failure any more.
pub fn stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Ends the process with `code`, having said why on standard error, to the hook and to the peers.
///
/// For what no thread can return from: a worker that gives up would leave the others waiting for it. Of
/// several threads that call this, the first one's reason counts. Takes half a second, 1 s at most.
pub fn leave(reason: String, code: i32) -> ! {
    match code {
        EXIT_LOST if STOPPING.load(Ordering::Relaxed) => end(format!("stopped as asked: {reason}"), "", 0),
        0 | EXIT_SUPERSEDED => end(reason, "", code),
        _ => end(reason, "; exiting so that the supervisor restarts the cluster", code),
    }
}

fn end(reason: String, next: &str, code: i32) -> ! {
    if LEAVING.set(reason.clone()).is_err() {
        // Another thread is at it.
        loop {
            thread::park();
        }
    }
    let word = if code == 0 { "" } else { "error: " };
    eprintln!("{word}{reason}{next}");
    if let Some(hook) = HOOK.lock().unwrap_or_else(|e| e.into_inner()).take() {
        let (done, wait) = mpsc::channel();
        named("cluster-exit", move || {
            hook(&reason);
            done.send(()).ok();
        });
        wait.recv_timeout(HOOK_LIMIT).ok();
    }
    thread::sleep(FAREWELL);
    // Not the usual exit: other threads may be deep in a C library, whose destructors would hang or crash.
    signal_hook::low_level::exit(code);
}

/// From here on a panic in any thread ends the process with code 101.
///
/// The usual panic message is printed first. Where timely's sending and receiving threads panic because the
/// other end is gone, the watch may speak first: it knows more. Such an end has code 3.
pub fn exit_on_panic() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let text = info.payload_as_str().unwrap_or("panic").to_owned();
        if let Some(peer) = remote_of(name) {
            thread::sleep(WATCH_FIRST);
            leave(format!("lost process {peer}: its data connection broke: {text}"), EXIT_LOST)
        } else if text.contains("MergeQueue poisoned") {
            // A worker that met the end of one of the threads above.
            thread::sleep(WATCH_FIRST);
            leave(format!("lost a peer: {text} in {name}"), EXIT_LOST)
        } else {
            usual(info);
            leave(format!("panic in thread {name}: {text}"), EXIT_PANIC)
        }
    }));
}

/// Index of the process that a thread of timely's network code talks to.
fn remote_of(thread: &str) -> Option<usize> {
    let rest = thread.strip_prefix("timely:send-").or_else(|| thread.strip_prefix("timely:recv-"))?;
    rest.parse().ok()
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) {
    // Without a thread left there is nothing to wait for either.
    thread::Builder::new().name(name.into()).spawn(run).ok();
}
