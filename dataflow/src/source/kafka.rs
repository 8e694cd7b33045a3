//! Raw topics as a source: this worker's partitions, through one client.

use logster_schema::TimeMs;
use logster_sinks::client::{ClientError, KafkaConfig};
use logster_sinks::consumer::{Consumer, Start};
use logster_sinks::writer::BrokerClock;
use timely::scheduling::SyncActivator;

use super::{Assigned, Item, Message, Reader, Standing};

/// Fetched ahead by one worker, in bytes.
const BUFFER_BYTES: usize = 64 << 20;
/// An idle partition's floor stays this far behind the clock: a record on its way to the broker is not lifted, and
/// neither are those of a broker whose clock is that much behind. It is part of every alert's latency.
const IDLE_MARGIN_MS: i64 = 500;
/// How much an idle floor must gain before it is proposed again.
const IDLE_STEP_MS: i64 = 200;

/// Reads partitions of a broker.
pub struct KafkaReader {
    consumer: Consumer,
    /// `--until-end`: the ends found at start, by slot.
    ends: Option<Vec<i64>>,
    proposed: Vec<TimeMs>,
    /// What floors follow: only where the broker's clock stamps arrivals.
    clock: Option<BrokerClock>,
}

impl KafkaReader {
    /// Starts fetching. `ends`: take these offsets as the end of input. `clock`: with `input.arrival = "append"`.
    ///
    /// # Errors
    /// A broker that cannot be reached.
    pub fn start(
        config: &KafkaConfig,
        group: &str,
        assigned: &[Assigned],
        ends: Option<Vec<i64>>,
        clock: Option<BrokerClock>,
        wake: SyncActivator,
    ) -> Result<Self, ClientError> {
        let start = |a: &Assigned| Start {
            topic: a.topic.name().to_owned(),
            partition: a.partition,
            offset: Some(a.start_offset()),
        };
        let starts: Vec<Start> = assigned.iter().map(start).collect();
        let wake = std::sync::Arc::new(std::sync::Mutex::new(wake));
        let wake = move || {
            if let Ok(wake) = wake.lock() {
                // A worker that has ended needs no waking.
                let _ = wake.activate();
            }
        };
        let consumer = Consumer::assign(config, group, &starts, BUFFER_BYTES, wake)?;
        Ok(Self { consumer, ends, proposed: vec![TimeMs::MIN; assigned.len()], clock })
    }

    fn is_finished(&self, slot: usize) -> bool {
        // The last offsets may be control records of transactions: then only the broker knows the end.
        self.ends.as_ref().is_some_and(|ends| self.consumer.next(slot) >= ends[slot] || self.consumer.at_end(slot))
    }
}

impl Reader for KafkaReader {
    fn poll(
        &mut self,
        max: usize,
        ready: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(Item<'_>),
    ) -> anyhow::Result<usize> {
        for slot in 0..self.proposed.len() {
            if ready(slot) && !self.is_finished(slot) {
                self.consumer.resume(slot);
            } else {
                self.consumer.pause(slot);
            }
        }
        let ends = self.ends.as_deref();
        let taken = self.consumer.poll(max, |m| {
            // What came after the start of the run is not part of it.
            if ends.is_none_or(|ends| m.offset < ends[m.part]) {
                take(Item::Message(Message {
                    slot: m.part,
                    offset: m.offset,
                    ts_ms: m.ts_ms,
                    key: m.key,
                    payload: m.payload.unwrap_or_default(),
                    tenant: None,
                }));
            }
        })?;
        Ok(taken)
    }

    fn standing(&mut self, slot: usize) -> Standing {
        if self.ends.is_some() {
            return if self.is_finished(slot) { Standing::Finished } else { Standing::Reading };
        }
        if let Some(now) = self.clock.as_ref().and_then(BrokerClock::now_ms)
            && self.consumer.at_end(slot)
        {
            let floor = now - IDLE_MARGIN_MS;
            if floor >= self.proposed[slot].saturating_add(IDLE_STEP_MS) {
                self.proposed[slot] = floor;
            }
            return Standing::Idle(self.proposed[slot]);
        }
        Standing::Reading
    }
}
