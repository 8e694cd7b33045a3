//! Takes turns: many threads, of which one runs at a time, the one that it is told to. Whatever the machine does,
//! the order of what happens is the caller's.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// Told to end at once.
    Stopped,
    /// Ended, and how: `None` is well.
    Ended(Option<String>),
}

/// A place that one thread takes its turns at.
#[derive(Clone)]
pub struct Seat(Arc<(Mutex<State>, Condvar)>);

/// Unwinds a thread that is told to end.
struct Stop;

impl Seat {
    pub fn new() -> Self {
        Self(Arc::new((Mutex::new(State::Waiting), Condvar::new())))
    }

    fn set(&self, state: State) {
        *self.0.0.lock().unwrap() = state;
        self.0.1.notify_all();
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> State {
        let state = self.0.0.lock().unwrap();
        self.0.1.wait_while(state, |state| !until(state)).unwrap().clone()
    }

    /// The thread's whole life: from its first turn to its end.
    pub fn live(&self, life: impl FnOnce() -> anyhow::Result<()>) {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.take_turn();
            life()
        }));
        let how = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) if panic.is::<Stop>() => Some("stopped".into()),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Some(format!("PANIC: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
            }
        };
        self.set(State::Ended(how));
    }

    fn take_turn(&self) {
        if self.wait(|s| matches!(s, State::Running | State::Stopped)) == State::Stopped {
            resume_unwind(Box::new(Stop));
        }
    }

    /// Called by the thread: its turn is over; returns when the next one begins.
    pub fn next_turn(&self) {
        self.set(State::Waiting);
        self.take_turn();
    }

    /// Called from outside: gives a turn and waits for its end. `Some` once the thread has ended, with the reason.
    pub fn turn(&self) -> Option<Option<String>> {
        if let State::Ended(how) = &*self.0.0.lock().unwrap() {
            return Some(how.clone());
        }
        self.set(State::Running);
        match self.wait(|s| matches!(s, State::Waiting | State::Ended(_))) {
            State::Ended(how) => Some(how),
            _ => None,
        }
    }

    /// Called from outside: ends the thread and waits until it has.
    pub fn stop(&self) {
        let mut state = self.0.0.lock().unwrap();
        if !matches!(*state, State::Ended(_)) {
            *state = State::Stopped;
            drop(state);
            self.0.1.notify_all();
            self.wait(|s| matches!(s, State::Ended(_)));
        }
    }
}
