//! Epochs, and the thread that commits them one after the other.
//!
//! - Input: [`Epoch`]s through a bounded queue: a full queue is back-pressure on the dataflow.
//! - Output: exactly one [`Outcome`] an epoch, in order, called on the writer's thread: `Committed` until the end
//!   or until one `Failed`. What may only happen after a commit waits for it.
//! - State: the queue.
//! - Failure: the first error is final. Nothing is written afterwards, whatever is still queued or sent.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use logster_schema::OutputRecord;

use crate::client::ClientError;

/// What becomes visible at once: outputs, and the checkpoint of what they are the outputs of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Rising number, for outcomes and error messages.
    pub id: u64,
    /// Records for the output topics.
    pub records: Vec<OutputRecord>,
    /// Records for the checkpoint topic.
    pub checkpoints: Vec<Checkpoint>,
    /// How far the input has been read, for the ordinary consumer group: shown to people, never read back.
    pub source_offsets: Vec<SourceOffset>,
}

/// A key of the compacted checkpoint topic, and its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Key.
    pub key: String,
    /// Value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

/// Progress in one partition of an input topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOffset {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset of the next record to be read.
    pub next: i64,
}

/// Where epochs go: a Kafka transaction, files.
pub trait Sink: Send {
    /// Makes the epoch visible as a whole. After an error it is never called again.
    fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError>;

    /// After the last epoch.
    fn finish(&mut self) -> Result<(), WriterError>;
}

/// Why writing ended. The process must exit: what the last epoch left behind is for the next start to find out.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The broker cannot be reached, or not as configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Another process has taken the transactional id: the epoch is not written.
    #[error("transactional id \"{transactional_id}\" was taken over by another run{}", at(epoch))]
    Fenced {
        /// Ours, until then.
        transactional_id: String,
        /// The epoch that was not written; `None` at start.
        epoch: Option<u64>,
    },
    /// A record was not accepted, or not in time: the epoch is not written.
    #[error("epoch {epoch} of \"{transactional_id}\" was not written: {records} of its records failed, first {what}")]
    NotWritten {
        /// Whose epoch.
        transactional_id: String,
        /// The epoch.
        epoch: u64,
        /// How many records were not acknowledged.
        records: u64,
        /// The first failure: topic, partition and what Kafka said.
        what: String,
    },
    /// The transaction was aborted: the epoch is not written.
    #[error("epoch {epoch} of \"{transactional_id}\" was not committed: {reason}")]
    Aborted {
        /// Whose epoch.
        transactional_id: String,
        /// The epoch.
        epoch: u64,
        /// What Kafka said.
        reason: String,
    },
    /// The commit was asked for and not answered: the epoch may or may not be written.
    #[error("it is unknown whether epoch {epoch} of \"{transactional_id}\" was committed: {reason}")]
    Unknown {
        /// Whose epoch.
        transactional_id: String,
        /// The epoch.
        epoch: u64,
        /// What the client said.
        reason: String,
    },
    /// A topic that is to be written does not exist.
    #[error("topic \"{topic}\" does not exist: create it with `logster topics create`")]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// A file could not be written.
    #[error("could not write \"{}\"", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The writer's thread panicked; its message is on standard error.
    #[error("the writer's thread panicked")]
    Panicked,
}

fn at(epoch: &Option<u64>) -> String {
    epoch.map_or_else(|| " while starting".to_owned(), |epoch| format!(" in epoch {epoch}"))
}

/// What became of an epoch.
#[derive(Debug)]
pub enum Outcome {
    /// The epoch of that id is visible.
    Committed(u64),
    /// Writing has ended. Comes once, and nothing after it.
    Failed(WriterError),
}

/// An epoch that was not taken.
#[derive(Debug)]
pub enum Refusal {
    /// The queue is full: try again after the next [`Outcome`].
    Full(Epoch),
    /// Writing has ended; the [`Outcome::Failed`] said why.
    Ended(Epoch),
}

/// Writing ended early; the [`Outcome::Failed`] said why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("writing ended with an error, which was reported before")]
pub struct Ended;

/// A [`Sink`] on a thread of its own.
pub struct Writer {
    epochs: Sender<Epoch>,
    thread: JoinHandle<Result<(), Ended>>,
}

impl Writer {
    /// Starts the thread. `queue` epochs wait at most; `outcome` must not block.
    pub fn spawn(
        name: &str,
        sink: impl Sink + 'static,
        queue: usize,
        outcome: impl FnMut(Outcome) + Send + 'static,
    ) -> Self {
        let (epochs, queued) = crossbeam_channel::bounded(queue);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(sink, &queued, outcome))
            .expect("the system has a thread left");
        Self { epochs, thread }
    }

    /// Queues an epoch if there is room.
    pub fn try_send(&self, epoch: Epoch) -> Result<(), Refusal> {
        self.epochs.try_send(epoch).map_err(|refused| match refused {
            TrySendError::Full(epoch) => Refusal::Full(epoch),
            TrySendError::Disconnected(epoch) => Refusal::Ended(epoch),
        })
    }

    /// Epochs waiting.
    pub fn queued(&self) -> usize {
        self.epochs.len()
    }

    /// Commits what is queued, finishes the sink, ends the thread.
    pub fn close(self) -> Result<(), Ended> {
        drop(self.epochs);
        self.thread.join().unwrap_or(Err(Ended))
    }
}

fn run(mut sink: impl Sink, queued: &Receiver<Epoch>, outcome: impl FnMut(Outcome)) -> Result<(), Ended> {
    let mut report = Report { outcome, settled: false };
    let written = (|| {
        for epoch in queued {
            let id = epoch.id;
            sink.commit(epoch)?;
            (report.outcome)(Outcome::Committed(id));
        }
        sink.finish()
    })();
    report.settled = true;
    written.map_err(|error| {
        tracing::error!(%error, "writing ended");
        (report.outcome)(Outcome::Failed(error));
        Ended
    })
}

/// Reports a panic of the sink, too: without it the dataflow would wait for ever.
struct Report<F: FnMut(Outcome)> {
    outcome: F,
    settled: bool,
}

impl<F: FnMut(Outcome)> Drop for Report<F> {
    fn drop(&mut self) {
        if !self.settled {
            (self.outcome)(Outcome::Failed(WriterError::Panicked));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Fails or panics at a given epoch.
    struct Scripted {
        written: Arc<Mutex<Vec<u64>>>,
        fail_at: u64,
        panic_at: u64,
        go: Receiver<()>,
    }

    impl Sink for Scripted {
        fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError> {
            let _ = self.go.recv();
            assert_ne!(epoch.id, self.panic_at, "scripted");
            if epoch.id == self.fail_at {
                return Err(WriterError::Fenced { transactional_id: "t-0".into(), epoch: Some(epoch.id) });
            }
            self.written.lock().unwrap().push(epoch.id);
            Ok(())
        }
        fn finish(&mut self) -> Result<(), WriterError> {
            self.written.lock().unwrap().push(u64::MAX);
            Ok(())
        }
    }

    fn epoch(id: u64) -> Epoch {
        Epoch { id, ..Epoch::default() }
    }

    /// Sends 0..4 through a queue of two; returns written ids, outcomes and how it closed.
    fn play(fail_at: u64, panic_at: u64) -> (Vec<u64>, Vec<String>, Result<(), Ended>) {
        let written = Arc::new(Mutex::new(Vec::new()));
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let (go, wait) = crossbeam_channel::unbounded();
        let sink = Scripted { written: written.clone(), fail_at, panic_at, go: wait };
        let theirs = outcomes.clone();
        let writer = Writer::spawn("writer", sink, 2, move |o| {
            theirs.lock().unwrap().push(match o {
                Outcome::Committed(id) => id.to_string(),
                Outcome::Failed(e) => e.to_string(),
            });
        });
        // Held back, the queue fills: two waiting and at most one taken.
        let mut sent = 0;
        while writer.try_send(epoch(sent)).is_ok() {
            sent += 1;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!((sent, writer.queued()), (3, 2));
        assert!(matches!(writer.try_send(epoch(3)), Err(Refusal::Full(epoch)) if epoch.id == 3));
        drop(go);
        loop {
            match writer.try_send(epoch(3)) {
                Ok(()) | Err(Refusal::Ended(_)) => break,
                Err(Refusal::Full(_)) => std::thread::yield_now(),
            }
        }
        let closed = writer.close();
        let outcomes = outcomes.lock().unwrap().clone();
        let written = written.lock().unwrap().clone();
        (written, outcomes, closed)
    }

    #[test]
    fn epochs_commit_in_order_then_the_sink_finishes() {
        let (written, outcomes, closed) = play(99, 99);
        assert_eq!(written, [0, 1, 2, 3, u64::MAX]);
        assert_eq!(outcomes, ["0", "1", "2", "3"]);
        assert_eq!(closed, Ok(()));
    }

    #[test]
    fn the_first_failure_is_reported_once_and_nothing_is_written_after() {
        let (written, outcomes, closed) = play(1, 99);
        assert_eq!(written, [0]);
        assert_eq!(outcomes, ["0", "transactional id \"t-0\" was taken over by another run in epoch 1"]);
        assert_eq!(closed, Err(Ended));
    }

    #[test]
    fn a_panic_is_reported_like_a_failure() {
        let (written, outcomes, closed) = play(99, 2);
        assert_eq!(written, [0, 1]);
        assert_eq!(outcomes, ["0", "1", "the writer's thread panicked"]);
        assert_eq!(closed, Err(Ended));
    }
}
