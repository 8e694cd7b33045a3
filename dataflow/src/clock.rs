//! One partition's arrival clock: makes arrival monotone, keeps floors, knows where a replay starts.
//!
//! - Input: offsets with record timestamps, in order; floors proposed at the idle end of the log.
//! - Output: each record's arrival, and whether its event is to be published or was already.
//! - State: running maximum, floors not yet forgotten, a sparse index of replay points.
//! - Failure: [`PartitionClock::resume`] decides every replayed record as the run before did
//!   (protocol rules 7 and 9): running maximum from the replay point, raised where a floor had raised it.

use std::collections::VecDeque;

use logster_schema::TimeMs;

use crate::checkpoint::{PartitionCheckpoint, ReplayPoint};

/// Distance of replay points in arrival time.
const INDEX_EVERY_MS: i64 = 1_000;

/// What the clock decides about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Arrival, monotone within the partition.
    pub arrival_ms: TimeMs,
    /// False for a record that is only replayed: its event or dead letter is written.
    pub publish: bool,
}

/// The clock of one partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionClock {
    /// Offset after the last admitted record.
    next: i64,
    /// Running maximum over admitted records and committed floors; `None` before the first.
    max_ms: Option<TimeMs>,
    /// The last committed floor raised `max_ms` and no record has been admitted since.
    raised: bool,
    /// Below this offset records are replayed.
    published: i64,
    /// Arrival maximum that holds from `published` on. [`TimeMs::MIN`] in a checkpoint: none yet.
    resume_ms: Option<TimeMs>,
    /// Records that a floor raised, oldest first.
    exceptions: VecDeque<(i64, TimeMs)>,
    /// Replay points, oldest first.
    index: VecDeque<ReplayPoint>,
}

impl PartitionClock {
    /// A partition read from its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a checkpoint over; reading starts at `checkpoint.replay.offset`.
    pub fn resume(checkpoint: &PartitionCheckpoint) -> Self {
        Self {
            next: checkpoint.replay.offset,
            max_ms: Some(checkpoint.replay.arrival_ms).filter(|ms| *ms != TimeMs::MIN),
            raised: false,
            published: checkpoint.next,
            resume_ms: Some(checkpoint.arrival_ms).filter(|ms| *ms != TimeMs::MIN),
            exceptions: checkpoint.exceptions.iter().copied().collect(),
            index: VecDeque::from([checkpoint.replay]),
        }
    }

    /// Decides one record. Offsets grow but may have gaps (transaction markers, compaction).
    pub fn admit(&mut self, offset: i64, record_ms: TimeMs) -> Admitted {
        let replayed = offset < self.published;
        let mut before = self.max_ms.unwrap_or(TimeMs::MIN);
        if replayed {
            let floor = self.exceptions.iter().find(|(at, _)| *at == offset);
            before = before.max(floor.map_or(TimeMs::MIN, |(_, floor)| *floor));
        } else {
            if let Some(resumed) = self.resume_ms.take() {
                // A floor committed after the last published record raises this one.
                self.raised |= resumed > before;
                before = before.max(resumed);
            }
            if self.raised {
                self.exceptions.push_back((offset, before));
                self.raised = false;
            }
        }
        if self.index.back().is_none_or(|last| before >= last.arrival_ms.saturating_add(INDEX_EVERY_MS)) {
            self.index.push_back(ReplayPoint { offset, arrival_ms: before });
        }
        let arrival_ms = before.max(record_ms);
        self.max_ms = Some(arrival_ms);
        self.next = offset + 1;
        Admitted { arrival_ms, publish: !replayed }
    }

    /// Whether records are still being read again.
    pub fn is_replaying(&self) -> bool {
        self.next < self.published
    }

    /// Takes a floor whose transaction is committed: later records arrive no earlier. Only at the end of the
    /// log, with everything before it published.
    pub fn raise(&mut self, floor_ms: TimeMs) {
        self.settle();
        if self.max_ms.is_none_or(|max| floor_ms > max) {
            self.max_ms = Some(floor_ms);
            self.raised = true;
            // Nothing lies between the log's end and the next record: a replay may start there, once what came before
            // is needed no more. Without this an idle partition would be needed from its last record on for ever,
            // and retention, deleting that one, would seem to have deleted too much.
            let offset = self.next_offset();
            self.index.pop_back_if(|last| last.offset == offset);
            self.index.push_back(ReplayPoint { offset, arrival_ms: floor_ms });
        }
    }

    /// At the end of the log: the checkpoint's maximum holds although no record came to show it.
    pub fn settle(&mut self) {
        if !self.is_replaying()
            && let Some(resumed) = self.resume_ms.take()
            && self.max_ms.is_none_or(|max| resumed > max)
        {
            self.max_ms = Some(resumed);
            self.raised = true;
        }
    }

    /// Greatest arrival so far, floors included.
    pub fn arrival_max(&self) -> Option<TimeMs> {
        self.max_ms
    }

    /// Offset after the last admitted record.
    pub fn next_offset(&self) -> i64 {
        self.next.max(self.published)
    }

    /// The checkpoint, given the arrival from which records are still needed. Forgets what lies before it.
    pub fn checkpoint(&mut self, needed_from_ms: TimeMs) -> PartitionCheckpoint {
        while self.index.len() > 1 && self.index[1].arrival_ms < needed_from_ms {
            self.index.pop_front();
        }
        let next = self.next_offset();
        let arrival_ms = self.max_ms.unwrap_or(TimeMs::MIN).max(self.resume_ms.unwrap_or(TimeMs::MIN));
        let replay = self.index.front().copied().unwrap_or(ReplayPoint { offset: next, arrival_ms });
        while self.exceptions.front().is_some_and(|(offset, _)| *offset < replay.offset) {
            self.exceptions.pop_front();
        }
        let exceptions = self.exceptions.iter().copied().collect();
        PartitionCheckpoint { next, arrival_ms, replay, exceptions, ended: false }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Record(TimeMs),
        Floor(TimeMs),
        /// Stop, and resume from a checkpoint that needs the last `n` ms of arrival.
        Restart(TimeMs),
    }

    #[test]
    fn an_idle_partition_needs_no_record_that_is_older_than_what_is_needed() {
        let mut clock = PartitionClock::new();
        clock.admit(0, 1_000);
        clock.admit(1, 2_000);
        clock.raise(10_000);
        assert_eq!(clock.checkpoint(5_000).replay.offset, 1, "between the records and the floor");
        clock.raise(20_000);
        let checkpoint = clock.checkpoint(15_000);
        assert_eq!((checkpoint.next, checkpoint.replay.offset), (2, 1), "the floor may still lift a needed record");
        let checkpoint = clock.checkpoint(20_001);
        assert_eq!(checkpoint.replay, ReplayPoint { offset: 2, arrival_ms: 20_000 });
        let mut resumed = PartitionClock::resume(&checkpoint);
        assert_eq!(resumed.admit(2, 3_000), Admitted { arrival_ms: 20_000, publish: true });
    }

    proptest! {
        /// However often a run stops, every record gets the arrival that an undisturbed run gave it, and is
        /// published exactly once.
        #[test]
        fn restarts_do_not_show(steps in prop::collection::vec(prop_oneof![
            4 => (0..20_000i64).prop_map(Step::Record),
            1 => (0..30_000i64).prop_map(Step::Floor),
            1 => (0..10_000i64).prop_map(Step::Restart),
        ], 0..80)) {
            let mut undisturbed = PartitionClock::new();
            let mut clock = PartitionClock::new();
            let mut log = Vec::new();
            let mut arrivals = Vec::new();
            let mut published = Vec::new();
            let mut need = TimeMs::MIN;
            for step in steps {
                match step {
                    Step::Record(ms) => {
                        let offset = log.len() as i64;
                        log.push(ms);
                        arrivals.push(undisturbed.admit(offset, ms).arrival_ms);
                        let got = clock.admit(offset, ms);
                        prop_assert_eq!(got, Admitted { arrival_ms: arrivals[offset as usize], publish: true });
                        published.push(offset);
                    }
                    Step::Floor(ms) => {
                        undisturbed.raise(ms);
                        clock.raise(ms);
                    }
                    Step::Restart(back) => {
                        // What is needed never goes back: committed frontiers grow.
                        need = need.max(clock.arrival_max().unwrap_or(0) - back);
                        let checkpoint = clock.checkpoint(need);
                        prop_assert_eq!(checkpoint.next, log.len() as i64);
                        clock = PartitionClock::resume(&checkpoint);
                        let replay = checkpoint.replay.offset as usize;
                        // Nothing needed lies before the replay point.
                        prop_assert!(arrivals[..replay].iter().all(|a| *a < need));
                        for offset in replay..log.len() {
                            let got = clock.admit(offset as i64, log[offset]);
                            prop_assert_eq!(got, Admitted { arrival_ms: arrivals[offset], publish: false });
                        }
                        clock.settle();
                        prop_assert_eq!(clock.arrival_max(), undisturbed.arrival_max());
                    }
                }
            }
            prop_assert_eq!(published, (0..log.len() as i64).collect::<Vec<_>>());
        }
    }
}
