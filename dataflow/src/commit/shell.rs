//! The timely side of the commit: two operators that feed a [`Committer`] and hold back what it has not
//! committed, and the driver that the worker's loop calls between steps.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use logster_operators::correlate::TenantChange;
use logster_operators::dedup::AlertChange;
use logster_schema::{OutputRecord, TimeMs};
use logster_sinks::epoch::{Epoch, Outcome, Sink, Writer, WriterError};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{Operator, OutputBuilder};
use timely::dataflow::{ProbeHandle, StreamVec};
use timely::scheduling::Activator;

use super::{Committer, Pace};
use crate::source::Published;

/// A record of one shard, on its way to the commit of the worker that owns the shard.
#[derive(Clone, Debug)]
pub struct OfShard<T> {
    /// Shard.
    pub shard: u32,
    /// The record.
    pub record: T,
}

/// What the operators and the driver of one worker share.
pub struct CommitState {
    committer: Committer,
    /// Released and not sent on yet, by time.
    released: Vec<(u64, AlertChange)>,
    /// Committed frontiers; `None`: complete.
    results: Option<u64>,
    alerts: Option<u64>,
    activators: Vec<Activator>,
}

/// Handle to [`CommitState`].
pub type CommitLinks = Rc<RefCell<CommitState>>;

/// Nothing committed yet in this run; what the run before had committed of results and not of alerts is released.
pub fn links(committer: Committer) -> CommitLinks {
    Rc::new(RefCell::new(CommitState {
        released: committer.outbox(),
        committer,
        results: Some(0),
        alerts: Some(0),
        activators: Vec::new(),
    }))
}

impl CommitState {
    /// The pure core.
    pub fn committer(&mut self) -> &mut Committer {
        &mut self.committer
    }
}

fn hold(cap: &mut Option<Capability<u64>>, committed: Option<u64>) {
    match committed {
        Some(f) => cap.iter_mut().for_each(|cap| {
            if f > *cap.time() {
                cap.downgrade(&f);
            }
        }),
        None => *cap = None,
    }
}

/// The timely operator for what the source published and the shards found: alert updates whose results are committed.
/// Its output frontier is the committed one.
pub fn commit_results<'scope>(
    published: StreamVec<'scope, u64, Published>,
    results: StreamVec<'scope, u64, OfShard<OutputRecord>>,
    updates: StreamVec<'scope, u64, OfShard<AlertChange>>,
    links: CommitLinks,
) -> StreamVec<'scope, u64, AlertChange> {
    let scope = results.scope();
    let mut builder = OperatorBuilder::new("commit_results".to_owned(), scope);
    let mut published = builder.new_input(published, Pipeline);
    let mut results = builder.new_input(results, Pipeline);
    let mut updates = builder.new_input(updates, Pipeline);
    let (output, released) = builder.new_output::<Vec<AlertChange>>();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<AlertChange>>>::from(output);
    links.borrow_mut().activators.push(scope.activator_for(builder.operator_info().address));
    builder.build(move |mut capabilities| {
        let mut cap = capabilities.pop();
        move |frontiers| {
            let mut state = links.borrow_mut();
            let committer = &mut state.committer;
            published.for_each(|_, batch| {
                for item in batch.drain(..) {
                    match item {
                        Published::Record(record) => committer.publish(record),
                        Published::Progress(progress) => committer.progress(progress),
                    }
                }
            });
            results.for_each(|time, batch| {
                batch.drain(..).for_each(|r| committer.result(*time.time(), r.shard, r.record));
            });
            updates.for_each(|time, batch| {
                batch.drain(..).for_each(|u| committer.update(*time.time(), u.shard, u.record));
            });
            committer.advance_results(frontiers.iter().filter_map(|f| f.frontier().first().copied()).min());
            let mut output = output.activate();
            for (time, update) in std::mem::take(&mut state.released) {
                let cap = cap.as_ref().expect("held until everything is committed");
                output.session(&cap.delayed(&time)).give(update);
            }
            hold(&mut cap, state.results);
        }
    });
    released
}

/// The timely operator for the alerts of this worker's tenants. Its output frontier is the committed one.
pub fn commit_alerts<'scope>(
    alerts: StreamVec<'scope, u64, TenantChange>,
    links: CommitLinks,
) -> StreamVec<'scope, u64, ()> {
    let scope = alerts.scope();
    alerts.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "commit_alerts", move |cap, info| {
        let mut cap = Some(cap);
        links.borrow_mut().activators.push(scope.activator_for(info.address));
        move |(input, frontier), _output| {
            let mut state = links.borrow_mut();
            input.for_each(|time, batch| {
                batch.drain(..).for_each(|change| state.committer.alert(*time.time(), change));
            });
            state.committer.advance_alerts(frontier.frontier().first().copied());
            hold(&mut cap, state.alerts);
        }
    })
}

/// Commits epochs one after the other while the worker goes on: a [`WriterThread`], or a simulated one in the tests.
pub trait Commits {
    /// Takes an epoch; what becomes of it is the next outcome.
    fn submit(&self, epoch: Epoch);
    /// What became of the oldest epoch not yet told of.
    fn outcome(&self) -> Option<Outcome>;
    /// After the last epoch.
    ///
    /// # Errors
    /// Writing has ended before.
    fn finish(self: Box<Self>) -> Result<(), WriterError>;
}

/// A [`Sink`] on a thread of its own, which wakes the worker's at each outcome.
pub struct WriterThread {
    writer: Writer,
    outcomes: Receiver<Outcome>,
}

impl WriterThread {
    /// Starts it. The worker's thread is the one that calls.
    pub fn spawn(sink: impl Sink + 'static) -> Box<Self> {
        let (sender, outcomes) = crossbeam_channel::unbounded();
        let worker = std::thread::current();
        let writer = Writer::spawn("writer", sink, 1, move |outcome| {
            let _ = sender.send(outcome);
            worker.unpark();
        });
        Box::new(Self { writer, outcomes })
    }
}

impl Commits for WriterThread {
    fn submit(&self, epoch: Epoch) {
        // One epoch at a time is under way, so there is room; if writing has ended, the outcome says why.
        let _ = self.writer.try_send(epoch);
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }

    fn finish(self: Box<Self>) -> Result<(), WriterError> {
        if self.writer.close().is_err() {
            let failed = self.outcomes.try_iter().find_map(|outcome| match outcome {
                Outcome::Failed(error) => Some(error),
                Outcome::Committed(_) => None,
            });
            return Err(failed.unwrap_or(WriterError::Panicked));
        }
        Ok(())
    }
}

/// Drives one worker's transactions. The worker's loop calls [`Driver::poll`] between steps.
pub struct Driver {
    links: CommitLinks,
    writer: Box<dyn Commits>,
    pace: Pace,
    /// Frontier of committed alerts, all workers.
    alerts_everywhere: ProbeHandle<u64>,
    /// Floors that take effect, for the source.
    floors: Rc<RefCell<Vec<(usize, TimeMs)>>>,
    /// Called at every commit with the number of records in it and how long it took.
    on_commit: Box<dyn FnMut(usize, Duration)>,
    under_way: Option<(Instant, usize)>,
}

impl Driver {
    /// A driver at rest.
    pub fn new(
        links: CommitLinks,
        writer: Box<dyn Commits>,
        every: Duration,
        alerts_everywhere: ProbeHandle<u64>,
        floors: Rc<RefCell<Vec<(usize, TimeMs)>>>,
        on_commit: Box<dyn FnMut(usize, Duration)>,
    ) -> Self {
        let pace = Pace::new(every);
        Self { links, writer, pace, alerts_everywhere, floors, on_commit, under_way: None }
    }

    /// Takes a commit in and begins the next transaction when it is time. Says whether all is committed.
    ///
    /// # Errors
    /// Writing has ended: the process must end, too.
    pub fn poll(&mut self) -> Result<bool, WriterError> {
        let mut state = self.links.borrow_mut();
        let state = &mut *state;
        let everywhere = self.alerts_everywhere.with_frontier(|f| f.first().copied()).unwrap_or(u64::MAX);
        state.committer.alerts_committed_everywhere(everywhere);
        while let Some(outcome) = self.writer.outcome() {
            let id = match outcome {
                Outcome::Committed(id) => id,
                Outcome::Failed(error) => return Err(error),
            };
            let Some(released) = state.committer.on_committed(id) else { continue };
            state.released.extend(released.updates);
            (state.results, state.alerts) = (released.results, released.alerts);
            self.floors.borrow_mut().extend(released.floors);
            state.activators.iter().for_each(Activator::activate);
            if let Some((begun, records)) = self.under_way.take() {
                (self.on_commit)(records, begun.elapsed());
            }
        }
        if self.pace.wait().is_none()
            && let Some(epoch) = state.committer.next_epoch()
        {
            self.pace.begin();
            self.under_way = Some((Instant::now(), epoch.records.len()));
            self.writer.submit(epoch);
        }
        Ok(state.committer.is_done())
    }

    /// No transaction is under way.
    pub fn is_at_rest(&self) -> bool {
        self.under_way.is_none()
    }

    /// How long the worker's loop may sleep: until the next transaction may begin.
    pub fn wait(&self) -> Duration {
        self.pace.wait().unwrap_or(Duration::from_millis(50)).max(Duration::from_millis(1))
    }

    /// Finishes the sink, after the last commit.
    ///
    /// # Errors
    /// As [`Driver::poll`].
    pub fn finish(self) -> Result<(), WriterError> {
        self.writer.finish()
    }
}
