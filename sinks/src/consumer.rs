//! Reads raw topics: statically assigned partitions, polled from a dataflow worker without blocking.
//!
//! - Input: partitions and the offset to start each at. Committed records only.
//! - Output: [`Message`]s, lent for the call; within a partition in order of offset, partitions taking turns.
//! - State: what librdkafka has fetched ahead, over all partitions about `buffer_bytes`, and with answers under way
//!   up to twice that. A paused partition keeps what it has and fetches no more than its share; nothing is
//!   fetched twice.
//! - Ordering: each partition by itself; align them with [`Consumer::pause`].
//! - Failure: brokers that come and go are waited for, logged and counted ([`Consumer::broker_errors`]). An offset
//!   that the broker does not have, or a partition that is gone, is a [`ReadError`]: skipping to another offset
//!   would lose or repeat records silently, so a person decides.
//!
//! Each partition has a queue of its own: so the end of a partition is known by topic, which librdkafka's Rust
//! binding does not say otherwise, and pausing costs nothing.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use crate::admin::Arrival;
use crate::client::{ClientError, KafkaConfig, LinkContext, is_temporary, watermarks};

/// A partition and where to begin in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset of the first record wanted; `None`: the first that the broker has.
    pub offset: Option<i64>,
}

/// A record, lent by the client's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Which of the assigned partitions, by position in the list given to [`Consumer::assign`].
    pub part: usize,
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Timestamp in ms; -1 if there is none (message formats older than Kafka 0.10).
    pub ts_ms: i64,
    /// Whose clock it is.
    pub stamp: Arrival,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None`: a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// Reading cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The broker does not have the offset: retention has deleted it, or the topic was made anew.
    #[error(
        "offset {offset} of \"{topic}\" partition {partition} is gone: the broker has {}",
        kept.map_or("none".to_owned(), |(first, end)| format!("{first} to {end} (exclusive)"))
    )]
    OffsetGone {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// The next offset wanted.
        offset: i64,
        /// First offset and end of the partition, if the broker still says.
        kept: Option<(i64, i64)>,
    },
    /// The topic or partition does not exist any more.
    #[error("\"{topic}\" partition {partition} does not exist any more")]
    PartitionGone {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
    },
    /// The broker refuses, or the client cannot go on.
    #[error("could not read \"{topic}\" partition {partition}")]
    Refused {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// What it said.
        #[source]
        source: Box<KafkaError>,
    },
}

struct Part {
    topic: String,
    partition: i32,
    /// Offset of the next record, as far as we know.
    next: i64,
    paused: bool,
    at_end: bool,
    queue: PartitionQueue<LinkContext>,
}

/// A reader of assigned partitions.
pub struct Consumer {
    config: KafkaConfig,
    parts: Vec<Part>,
    /// Whose turn it is.
    turn: usize,
    consumer: Arc<BaseConsumer<LinkContext>>,
}

impl Consumer {
    /// Records taken from a partition before the next one has its turn.
    const SLICE: usize = 64;

    /// Starts fetching. `group` is never joined and nothing is committed here (see [`crate::writer`]).
    ///
    /// `wake` is called from the client's threads when an empty partition has something again; after a
    /// [`poll`](Self::poll) that returned its maximum nobody calls, so poll again.
    pub fn assign(
        config: &KafkaConfig,
        group: &str,
        starts: &[Start],
        buffer_bytes: usize,
        wake: impl Fn() + Send + Sync + Clone + 'static,
    ) -> Result<Self, ClientError> {
        let share_kb = (buffer_bytes / starts.len().max(1) / 1024).max(64);
        let mut settings = config.client("consumer")?;
        settings
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            // With a queue for each partition this counts for each, too.
            .set("queued.max.messages.kbytes", share_kb.to_string())
            // Bounds what small records cost beside their bytes (about 300 bytes each).
            .set("queued.min.messages", "4096")
            // What comes beyond a share is one answer, and that is compressed: logs grow ten-fold when unpacked.
            // A third of the share is as fast as the default of 1 MiB and half as large.
            .set("fetch.message.max.bytes", (share_kb * 1024 / 3).clamp(64 << 10, 1 << 20).to_string())
            // A full queue is looked at again after this, not after the default of a second.
            .set("fetch.queue.backoff.ms", "1")
            // One request a broker is under way. While it waits for partitions at their end, a partition that was left
            // out of it, its queue full then, gets nothing: with the default of 500 ms a run that catches up with some
            // partitions idle took three times as long.
            .set("fetch.wait.max.ms", "20");
        let consumer: BaseConsumer<LinkContext> =
            BaseConsumer::from_config_and_context(&settings, LinkContext::default())
                .map_err(|e| config.creation_error(e))?;
        let consumer = Arc::new(consumer);
        let refused = |error| config.request_error("assign partitions", &consumer.context().0, error);
        let mut list = TopicPartitionList::new();
        let mut parts = Vec::new();
        for start in starts {
            let offset = match start.offset {
                Some(offset) => offset,
                None => watermarks(&consumer, &start.topic, start.partition, config.timeout).map_err(refused)?.0,
            };
            list.add_partition_offset(&start.topic, start.partition, Offset::Offset(offset)).map_err(refused)?;
            // Before they are assigned: afterwards the first records may have gone to the common queue.
            let mut queue = consumer
                .split_partition_queue(&start.topic, start.partition)
                .ok_or_else(|| refused(KafkaError::Subscription(format!("no such partition: {start:?}"))))?;
            queue.set_nonempty_callback(wake.clone());
            parts.push(Part {
                topic: start.topic.clone(),
                partition: start.partition,
                next: offset,
                paused: false,
                at_end: false,
                queue,
            });
        }
        consumer.assign(&list).map_err(refused)?;
        Ok(Self { config: config.clone(), parts, turn: 0, consumer })
    }

    /// Calls `f` for each of up to `max` records that are there, without waiting. Returns how many there were.
    ///
    /// Call it at least every few seconds, also when everything is paused: it serves the client's events.
    pub fn poll(&mut self, max: usize, mut f: impl FnMut(Message<'_>)) -> Result<usize, ReadError> {
        // Errors of connections come here, and were counted and logged by the context.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        let (mut taken, mut idle) = (0, 0);
        while taken < max && idle < self.parts.len() {
            let part = self.turn;
            self.turn = (part + 1) % self.parts.len();
            let got = self.take(part, (max - taken).min(Self::SLICE), &mut f)?;
            taken += got;
            idle = if got == 0 { idle + 1 } else { 0 };
        }
        Ok(taken)
    }

    fn take(&mut self, index: usize, max: usize, f: &mut impl FnMut(Message<'_>)) -> Result<usize, ReadError> {
        let part = &mut self.parts[index];
        let mut got = 0;
        while got < max && !part.paused {
            let message = match part.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    part.at_end = true;
                    continue;
                }
                Some(Err(error)) => {
                    self.judge(index, error)?;
                    break;
                }
            };
            let (ts_ms, stamp) = match message.timestamp() {
                Timestamp::LogAppendTime(ms) => (ms, Arrival::Append),
                Timestamp::CreateTime(ms) => (ms, Arrival::Create),
                Timestamp::NotAvailable => (-1, Arrival::Create),
            };
            part.at_end = false;
            part.next = message.offset() + 1;
            got += 1;
            f(Message {
                part: index,
                topic: &part.topic,
                partition: part.partition,
                offset: message.offset(),
                ts_ms,
                stamp,
                key: message.key(),
                payload: message.payload(),
            });
        }
        Ok(got)
    }

    /// Whether an error of a partition ends reading; if not, the client deals with it.
    fn judge(&self, index: usize, error: KafkaError) -> Result<(), ReadError> {
        use RDKafkaErrorCode as Code;
        let Part { topic, partition, next, .. } = &self.parts[index];
        let (topic, partition, offset) = (topic.clone(), *partition, *next);
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation) => {
                let kept = self.consumer.fetch_watermarks(&topic, partition, self.config.timeout).ok();
                Err(ReadError::OffsetGone { topic, partition, offset, kept })
            }
            Some(
                Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopicId,
            ) => Err(ReadError::PartitionGone { topic, partition }),
            Some(code) if is_temporary(code) => {
                tracing::warn!(topic, partition, %error, "reading waits for the broker");
                Ok(())
            }
            _ => Err(ReadError::Refused { topic, partition, source: error.into() }),
        }
    }

    /// Leaves a partition alone until [`resume`](Self::resume): its queue fills up to its share and waits.
    pub fn pause(&mut self, part: usize) {
        self.parts[part].paused = true;
    }

    /// Polls it again. What was fetched meanwhile wakes nobody: poll.
    pub fn resume(&mut self, part: usize) {
        self.parts[part].paused = false;
    }

    /// The broker said that the partition has no more, and nothing came since.
    pub fn at_end(&self, part: usize) -> bool {
        self.parts[part].at_end
    }

    /// Offset after the last record handed over; the start before the first.
    pub fn next(&self, part: usize) -> i64 {
        self.parts[part].next
    }

    /// The present end of every partition, in the order of assignment. Asks the broker and waits for the answer.
    ///
    /// A partition is read to that end when [`next`](Self::next) has reached it, or when it is
    /// [`at_end`](Self::at_end): the last offsets may be control records of transactions.
    pub fn end_offsets(&self) -> Result<Vec<i64>, ClientError> {
        let timeout = self.config.timeout;
        let ends = self.parts.iter().map(|part| watermarks(&self.consumer, &part.topic, part.partition, timeout));
        ends.map(|found| {
            let (_, end) =
                found.map_err(|e| self.config.request_error("tell end offsets", &self.consumer.context().0, e))?;
            Ok(end)
        })
        .collect()
    }

    /// Errors of connections to brokers so far, for a metric.
    pub fn broker_errors(&self) -> u64 {
        self.consumer.context().0.errors()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;
    use crate::admin::{Admin, TopicSpec};
    use crate::client::block_on;
    use crate::testkit::Cluster;

    const WAIT: Duration = Duration::from_secs(20);

    fn topic(cluster: &Cluster, name: &str) {
        let spec = TopicSpec { name: name.into(), partitions: 2, settings: Vec::new(), required: Vec::new() };
        Admin::new(&cluster.config()).unwrap().create(&[spec], None).unwrap();
    }

    fn produce(cluster: &Cluster, topic: &str, partition: i32, values: std::ops::Range<i64>) {
        let settings = cluster.config().client("test").unwrap();
        let producer: BaseProducer<_> =
            BaseProducer::from_config_and_context(&settings, crate::writer::Deliveries::default()).unwrap();
        for n in values.clone() {
            let value = format!("{n:0200}");
            let record = BaseRecord::to(topic).partition(partition).key("k").payload(&value).timestamp(1 + n);
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(WAIT).unwrap();
        assert_eq!(producer.context().state().acknowledged as i64, values.end - values.start);
    }

    fn admin(cluster: &Cluster) -> AdminClient<LinkContext> {
        let settings = cluster.config().client("test").unwrap();
        AdminClient::from_config_and_context(&settings, LinkContext::default()).unwrap()
    }

    fn starts(topic: &str, offsets: &[i64]) -> Vec<Start> {
        let start = |(partition, &offset)| Start { topic: topic.into(), partition, offset: Some(offset) };
        (0..).zip(offsets).map(start).collect()
    }

    /// Polls until `done` or the time is up; returns values by part.
    fn read(
        consumer: &mut Consumer,
        max: usize,
        mut done: impl FnMut(&Consumer, &[Vec<i64>]) -> bool,
    ) -> Result<Vec<Vec<i64>>, ReadError> {
        let mut got = vec![Vec::new(); consumer.parts.len()];
        let deadline = Instant::now() + WAIT;
        while !done(consumer, &got) {
            assert!(Instant::now() < deadline, "got {:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
            let polled = consumer.poll(max, |m| {
                let value: i64 = std::str::from_utf8(m.payload.unwrap()).unwrap().parse().unwrap();
                assert_eq!((m.ts_ms - 1, m.stamp, m.offset, m.key), (value, Arrival::Create, value, Some(&b"k"[..])));
                got[m.part].push(value);
            })?;
            assert!(polled <= max);
            if polled == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(got)
    }

    fn all_at_end(consumer: &Consumer, _: &[Vec<i64>]) -> bool {
        (0..consumer.parts.len()).all(|part| consumer.at_end(part))
    }

    #[test]
    fn reads_from_offsets_to_the_end_in_order_and_wakes_for_more() {
        let cluster = Cluster::shared();
        topic(&cluster, "read");
        produce(&cluster, "read", 0, 0..3_000);
        produce(&cluster, "read", 1, 0..500);
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let wake = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let mut consumer =
            Consumer::assign(&cluster.config(), "g", &starts("read", &[1_000, 0]), 1 << 20, wake).unwrap();
        assert_eq!(consumer.end_offsets().unwrap(), [3_000, 500]);
        // A paused partition stays where it is, the other goes on to its end.
        consumer.pause(0);
        let got = read(&mut consumer, 10, |c, _| c.at_end(1)).unwrap();
        assert_eq!((got[0].len(), consumer.next(0), consumer.at_end(0)), (0, 1_000, false));
        assert_eq!(got[1], Vec::from_iter(0..500));
        consumer.resume(0);
        let got = read(&mut consumer, 1_000, all_at_end).unwrap();
        assert_eq!(got[0], Vec::from_iter(1_000..3_000));
        assert_eq!((consumer.next(0), consumer.next(1)), (3_000, 500));

        let before = wakes.load(Ordering::Relaxed);
        assert!(before > 0);
        produce(&cluster, "read", 1, 500..501);
        let deadline = Instant::now() + WAIT;
        while wakes.load(Ordering::Relaxed) == before {
            assert!(Instant::now() < deadline, "nobody woke us");
            std::thread::sleep(Duration::from_millis(1));
        }
        let got = read(&mut consumer, 10, |_, got| !got[1].is_empty()).unwrap();
        assert_eq!(got[1], [500]);
    }

    #[test]
    fn partitions_take_turns() {
        let cluster = Cluster::shared();
        topic(&cluster, "turns");
        produce(&cluster, "turns", 0, 0..2_000);
        produce(&cluster, "turns", 1, 0..2_000);
        let mut consumer = Consumer::assign(&cluster.config(), "g", &starts("turns", &[0, 0]), 8 << 20, || ()).unwrap();
        // Until both have something fetched: whichever is first waits for the other.
        let first = read(&mut consumer, 1, |_, got| got.iter().any(|part| !part.is_empty())).unwrap();
        let (early, late) = if first[0].is_empty() { (1, 0) } else { (0, 1) };
        consumer.pause(early);
        read(&mut consumer, 1, |_, got| !got[late].is_empty()).unwrap();
        consumer.resume(early);
        let got = read(&mut consumer, 4 * Consumer::SLICE, |_, got| got.iter().any(|part| !part.is_empty())).unwrap();
        assert_eq!((got[0].len(), got[1].len()), (2 * Consumer::SLICE, 2 * Consumer::SLICE));
    }

    #[test]
    fn an_offset_that_is_gone_is_an_error_that_says_what_is_left() {
        let cluster = Cluster::shared();
        topic(&cluster, "gone");
        produce(&cluster, "gone", 0, 0..100);
        let mut cut = TopicPartitionList::new();
        cut.add_partition_offset("gone", 0, Offset::Offset(40)).unwrap();
        block_on(admin(&cluster).delete_records(&cut, &AdminOptions::new())).unwrap();
        // Deleted by retention; beyond the end, as after a topic was made anew.
        for offset in [39, 101] {
            let start = starts("gone", &[offset]);
            let mut consumer = Consumer::assign(&cluster.config(), "g", &start, 1 << 20, || ()).unwrap();
            let error = read(&mut consumer, 10, |_, _| false).unwrap_err();
            let want = format!("offset {offset} of \"gone\" partition 0 is gone: the broker has 40 to 100 (exclusive)");
            assert_eq!(error.to_string(), want);
        }
        for offset in [40, 100] {
            let mut start = starts("gone", &[offset]);
            if offset == 40 {
                start[0].offset = None; // the first there is
            }
            let mut consumer = Consumer::assign(&cluster.config(), "g", &start, 1 << 20, || ()).unwrap();
            assert_eq!(read(&mut consumer, 1_000, all_at_end).unwrap(), [Vec::from_iter(offset..100)]);
        }
    }

    #[test]
    fn a_topic_that_is_deleted_while_it_is_read_is_an_error() {
        let cluster = Cluster::shared();
        topic(&cluster, "deleted");
        produce(&cluster, "deleted", 0, 0..10);
        let mut config = cluster.config();
        config.extra.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
        config.extra.insert("topic.metadata.propagation.max.ms".into(), "1000".into());
        let mut consumer = Consumer::assign(&config, "g", &starts("deleted", &[0]), 1 << 20, || ()).unwrap();
        read(&mut consumer, 100, all_at_end).unwrap();
        block_on(admin(&cluster).delete_topics(&["deleted"], &AdminOptions::new())).unwrap();
        let error = read(&mut consumer, 100, |_, _| false).unwrap_err();
        assert!(matches!(error, ReadError::PartitionGone { .. }), "{error:?}");
    }

    #[test]
    fn an_outage_is_waited_out_and_counted() {
        let cluster = Cluster::start();
        topic(&cluster, "outage");
        produce(&cluster, "outage", 0, 0..10);
        let mut consumer = Consumer::assign(&cluster.config(), "g", &starts("outage", &[0]), 1 << 20, || ()).unwrap();
        read(&mut consumer, 100, all_at_end).unwrap();
        assert_eq!(consumer.broker_errors(), 0);
        cluster.kill_broker(1);
        read(&mut consumer, 100, |consumer, _| consumer.broker_errors() > 0).unwrap();
        cluster.start_broker(1);
        produce(&cluster, "outage", 0, 10..20);
        let got = read(&mut consumer, 100, |_, got| got[0].len() == 10).unwrap();
        assert_eq!(got[0], Vec::from_iter(10..20));
    }
}
