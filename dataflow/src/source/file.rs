//! Captures as a source: a file, a directory or standard input, played in order of arrival.
//!
//! Files stand in for the input topics, analysts' transitions included: every line goes to the partition that its key
//! would have in a topic of [`InputTopic::partitions`], with the offset that it would have there. So ids, clocks and results
//! are those of the same capture produced into Kafka.
//!
//! Each worker reads the input itself on a thread of its own and keeps the partitions that are its own; a
//! pipe can be read once, so the first worker has all of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use logster_schema::partition::partition_for_key;
use logster_schema::{DeadLetter, InputTopic, RawTopic, TimeMs};
use logster_sinks::capture::{CaptureError, CaptureReader, Framing};
use logster_sinks::playback::Playback;
use timely::scheduling::SyncActivator;

use crate::config::value::Speed;

use super::{Assigned, Item, Message, Reader, Standing, routing_key};

/// What to play.
#[derive(Clone, Debug)]
pub struct FileConfig {
    /// File, directory, or `-`.
    pub input: PathBuf,
    /// Envelopes, or bare messages of one topic.
    pub framing: Framing,
    /// How fast.
    pub speed: Speed,
    /// Backtest: tenant of each file's records, in the order of the playback's files.
    pub tenants: Option<Arc<Vec<String>>>,
}

impl FileConfig {
    /// The partitions of worker `index` of `peers`.
    pub fn assign(&self, index: usize, peers: usize) -> Vec<Assigned> {
        let all = InputTopic::ALL
            .into_iter()
            .flat_map(|topic| (0..topic.partitions() as i32).map(move |partition| (topic, partition)));
        let one_reader = self.input == std::path::Path::new(CaptureReader::STDIN);
        all.enumerate()
            .filter(|(n, _)| if one_reader { index == 0 } else { n % peers == index })
            .map(|(_, (topic, partition))| Assigned { topic, partition, checkpoint: None })
            .collect()
    }
}

const MAX_PARTITIONS: usize = RawTopic::PARTITIONS as usize;
const _: () = assert!(InputTopic::Transitions.partitions() <= RawTopic::PARTITIONS);
/// This worker's slot of each topic's partitions.
type Slots = [[Option<usize>; MAX_PARTITIONS]; InputTopic::ALL.len()];

/// Lines per batch, batches under way: bounds what is read ahead.
const BATCH_LINES: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
const BATCHES: usize = 8;

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Stored>,
    refused: Vec<DeadLetter>,
    /// Every later line arrives at this or later.
    clock: Option<TimeMs>,
    /// The input ended with this batch, or could not be read on.
    end: Option<Result<(), String>>,
}

struct Stored {
    slot: usize,
    offset: i64,
    ts_ms: TimeMs,
    key_bytes: usize,
    end: usize,
    tenant: Option<usize>,
}

/// Reads captures.
pub struct FileReader {
    batches: Receiver<Batch>,
    current: Batch,
    next: usize,
    start: usize,
    clock: Option<TimeMs>,
    finished: bool,
    tenants: Option<Arc<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl FileReader {
    /// Opens the input and starts reading. `report_refused`: exactly one worker reports lines without a record.
    pub fn start(
        config: &FileConfig,
        assigned: &[Assigned],
        report_refused: bool,
        wake: SyncActivator,
    ) -> Result<Self, CaptureError> {
        let playback = Playback::open(&config.input, config.framing)?;
        let mut slots = Slots::default();
        for (slot, assigned) in assigned.iter().enumerate() {
            slots[assigned.topic.number()][assigned.partition as usize] = Some(slot);
        }
        let (sender, batches) = bounded(BATCHES);
        let stop = Arc::new(AtomicBool::new(false));
        let feed = Feed { playback, config: config.clone(), slots, report_refused, sender, wake, stop: stop.clone() };
        std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || feed.run())
            .map_err(|source| CaptureError::Open { path: config.input.clone(), source })?;
        Ok(Self {
            batches,
            current: Batch::default(),
            next: 0,
            start: 0,
            clock: None,
            finished: false,
            tenants: config.tenants.clone(),
            stop,
        })
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Reader for FileReader {
    fn poll(
        &mut self,
        max: usize,
        ready: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(Item<'_>),
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        // One clock: what holds for one slot holds for all.
        while taken < max && !self.finished && ready(0) {
            if self.next == self.current.lines.len() {
                self.clock = self.clock.max(self.current.clock);
                match self.current.end.take() {
                    Some(Ok(())) => self.finished = true,
                    Some(Err(why)) => anyhow::bail!(why),
                    None => match self.batches.try_recv() {
                        Ok(batch) => {
                            (self.current, self.next, self.start) = (batch, 0, 0);
                            for letter in self.current.refused.drain(..) {
                                taken += 1;
                                take(Item::Refused(Box::new(letter)));
                            }
                        }
                        Err(_) => break,
                    },
                }
                continue;
            }
            let line = &self.current.lines[self.next];
            let (key, payload) = self.current.bytes[self.start..line.end].split_at(line.key_bytes);
            take(Item::Message(Message {
                slot: line.slot,
                offset: line.offset,
                ts_ms: line.ts_ms,
                key: Some(key),
                payload,
                tenant: line.tenant.and_then(|n| self.tenants.as_ref().map(|t| t[n].as_str())),
            }));
            self.clock = self.clock.max(Some(line.ts_ms));
            self.start = line.end;
            self.next += 1;
            taken += 1;
        }
        Ok(taken)
    }

    fn standing(&mut self, _slot: usize) -> Standing {
        if self.finished { Standing::Finished } else { Standing::Reading }
    }

    fn common_clock(&self) -> Option<TimeMs> {
        self.clock
    }
}

/// The reading thread.
struct Feed {
    playback: Playback,
    config: FileConfig,
    slots: Slots,
    report_refused: bool,
    sender: Sender<Batch>,
    wake: SyncActivator,
    stop: Arc<AtomicBool>,
}

impl Feed {
    fn run(mut self) {
        let end = self.play().map_err(|e| {
            let source = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{e}{source}")
        });
        self.send(Batch { end: Some(end), ..Batch::default() });
    }

    fn send(&mut self, batch: Batch) -> bool {
        let sent = self.sender.send(batch).is_ok();
        let _ = self.wake.activate();
        sent && !self.stop.load(Ordering::Relaxed)
    }

    fn play(&mut self) -> Result<(), CaptureError> {
        let mut offsets = [[0i64; MAX_PARTITIONS]; InputTopic::ALL.len()];
        let names: Vec<String> = self.playback.files().iter().map(|path| path.display().to_string()).collect();
        let mut batch = Batch::default();
        let mut began: Option<(TimeMs, Instant)> = None;
        let mut seen = 0;
        loop {
            // The borrow of the line ends before the batch is sent.
            let wait = {
                let Some(played) = self.playback.next_line()? else { break };
                let (line, arrival) = (played.line, played.arrival_ms);
                batch.clock = Some(arrival);
                seen += 1;
                match self.config.framing.parse(&line) {
                    Ok(envelope) => {
                        let mut key = match envelope.key {
                            Some(key) => key.into_owned(),
                            None => routing_key(envelope.topic, envelope.value),
                        };
                        let tenant = self.config.tenants.as_ref().map(|_| line.file);
                        if let (Some(tenants), Some(n)) = (&self.config.tenants, tenant) {
                            let host = key.split_once(':').map_or("", |(_, host)| host);
                            key = format!("{}:{host}", tenants[n]);
                        }
                        let partition = partition_for_key(key.as_bytes(), envelope.topic.partitions()) as usize;
                        let offset = &mut offsets[envelope.topic.number()][partition];
                        if let Some(slot) = self.slots[envelope.topic.number()][partition] {
                            batch.bytes.extend_from_slice(key.as_bytes());
                            batch.bytes.extend_from_slice(envelope.value);
                            batch.lines.push(Stored {
                                slot,
                                offset: *offset,
                                ts_ms: arrival,
                                key_bytes: key.len(),
                                end: batch.bytes.len(),
                                tenant,
                            });
                        }
                        *offset += 1;
                    }
                    Err(refused) if self.report_refused => {
                        let file = &names[line.file];
                        batch.refused.push(
                            DeadLetter {
                                reason: refused.reason,
                                detail: format!("{file}, line {}: {}", line.line_no + 1, refused.detail),
                                topic: refused.topic,
                                partition: -1,
                                offset: line.line_no as i64,
                                arrival,
                                key: None,
                                payload: None,
                                payload_base64: None,
                            }
                            .with_payload(line.bytes),
                        );
                    }
                    Err(_) => {}
                }
                match self.config.speed {
                    Speed::Max => None,
                    Speed::Times(times) => {
                        let (first, at) = *began.get_or_insert((arrival, Instant::now()));
                        let due = Duration::from_secs_f64((arrival - first) as f64 / 1000.0 / times);
                        due.checked_sub(at.elapsed()).filter(|wait| *wait > Duration::from_millis(1))
                    }
                }
            };
            if wait.is_some() || seen >= BATCH_LINES || batch.bytes.len() >= BATCH_BYTES {
                seen = 0;
                if !self.send(std::mem::take(&mut batch)) {
                    return Ok(());
                }
            }
            if let Some(wait) = wait {
                std::thread::sleep(wait);
            }
        }
        self.send(batch);
        Ok(())
    }
}
