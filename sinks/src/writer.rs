//! One Kafka transaction an epoch: outputs and their checkpoint become visible together or not at all.
//!
//! ```text
//! fence ─▶ (barrier, generation record) ─▶ commit, commit, …          fence: ids of a wider, earlier run
//! ```
//!
//! - Input: [`Epoch`]s. Keyed records go to the partition that the Java client would choose among the topic's
//!   partitions as they are when the topic is first written; those without key by a hash of the value, so that
//!   a record goes to the same partition in every run.
//! - Output: committed records; progress of the ordinary consumer group, committed after the transaction, at most
//!   once a second, for lag exporters and people. Nobody reads it back, so its failure is only logged.
//! - State: none but the producer's: an epoch is open only within [`Sink::commit`].
//! - Ordering: epochs as they come; records of an epoch in order within a partition.
//! - Failure: any failed or unknown record or commit ends writing. What is left open, the broker aborts after
//!   `transaction_timeout`, or at once when the id is next fenced.
//!
//! An empty transaction of a fenced producer returns success, so an epoch without records writes one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use logster_schema::partition::{murmur2, partition_for_key};
use logster_schema::topics::CHECKPOINT_TOPIC;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use crate::admin::MAX_OUTPUT_BYTES;
use crate::client::{ANSWER_TIMEOUT, ClientError, KafkaConfig, LinkContext};
use crate::epoch::{Epoch, Sink, SourceOffset, WriterError};

/// Who writes, and how patiently.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// `<job>-<worker>`.
    pub transactional_id: String,
    /// Consumer group that shows the progress of the input; `None`: none.
    pub group: Option<String>,
    /// How long an epoch may take before it is given up; for as long may a dead writer hold back readers.
    pub transaction_timeout: Duration,
    /// Hears what the broker's answers say of its clock.
    pub clock: BrokerClock,
}

/// The broker's clock, as its answers to writes into the checkpoint topic tell it. Clones share it.
///
/// Between two answers it goes on by itself, but not for long: while no broker answers, it stands still. It never
/// runs ahead of the broker that answered last, and steps of this machine's own clock do not touch it.
#[derive(Clone, Debug, Default)]
pub struct BrokerClock(Arc<Mutex<Option<(i64, Instant)>>>);

impl BrokerClock {
    /// How far it goes without an answer.
    const GOES_ON: Duration = Duration::from_secs(1);

    /// A broker has said that it is `ms`.
    pub fn heard(&self, ms: i64) {
        *self.0.lock().expect("no panic while held") = Some((ms, Instant::now()));
    }

    /// Now, ms since 1970; `None` before the first answer.
    pub fn now_ms(&self) -> Option<i64> {
        let heard = *self.0.lock().expect("no panic while held");
        heard.map(|(ms, at)| ms + at.elapsed().min(Self::GOES_ON).as_millis() as i64)
    }
}

/// How often [`TransactionalWriter::fence`] waits for a coordinator, `kafka.timeout` each time.
pub const COORDINATOR_WAITS: u32 = 6;
/// What a commit gets even if writing its records took all the time that the epoch had.
const LEAST_COMMIT: Duration = Duration::from_secs(1);

/// The only holder of a transactional id.
pub struct TransactionalWriter {
    config: WriterConfig,
    producer: BaseProducer<Deliveries>,
    /// Partitions of the topics written so far.
    partitions: BTreeMap<&'static str, u32>,
    progress: Option<Progress>,
    /// Tests break the broker here.
    #[cfg(test)]
    before_commit: Option<Box<dyn FnOnce() + Send>>,
}

impl TransactionalWriter {
    /// Takes the transactional id: every earlier holder is fenced, its open transaction aborted. Writes nothing.
    ///
    /// Blocks for about 60 ms, over an open transaction 600 ms, with a cold coordinator a second; while brokers answer
    /// and have no coordinator ready, as after their start, for [`COORDINATOR_WAITS`] times `kafka.timeout` at most.
    pub fn fence(config: WriterConfig) -> Result<Self, WriterError> {
        let mut settings = config.kafka.client(&config.transactional_id)?;
        let timeout_ms = config.transaction_timeout.as_millis().to_string();
        settings
            .set("transactional.id", &config.transactional_id)
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms)
            .set("message.max.bytes", MAX_OUTPUT_BYTES.to_string());
        if !config.kafka.extra.contains_key("socket.timeout.ms") {
            // No answer is waited for until the end of the transaction: it would be too late to ask another broker.
            let answer = ANSWER_TIMEOUT.min(config.transaction_timeout / 2);
            settings.set("socket.timeout.ms", answer.as_millis().to_string());
        }
        // An epoch comes at once and is waited for: lingering for more would only delay it.
        default_setting(&mut settings, "linger.ms", "1");
        producer_defaults(&mut settings);
        let producer = BaseProducer::from_config_and_context(
            &settings,
            Deliveries { clock: config.clock.clone(), ..Deliveries::default() },
        )
        .map_err(|e| config.kafka.creation_error(e))?;
        let progress = config.group.as_deref().map(|group| Progress::new(&config.kafka, group)).transpose()?;
        let writer = Self {
            config,
            producer,
            partitions: BTreeMap::new(),
            progress,
            #[cfg(test)]
            before_commit: None,
        };
        writer.take_id()?;
        Ok(writer)
    }

    fn take_id(&self) -> Result<(), WriterError> {
        let kafka = &self.config.kafka;
        let what = || format!("give us transactional id \"{}\"", self.config.transactional_id);
        for waits in 1.. {
            let error = match self.producer.init_transactions(kafka.timeout) {
                Ok(()) => break,
                Err(error) if self.is_fenced(&error) => return Err(self.fenced(None)),
                Err(error) => error,
            };
            self.producer.poll(Duration::from_millis(20)); // delivers what the client has to say
            // The client has asked again every half second. If brokers answer other questions, they are still looking for
            // the coordinator, or it is still loading.
            let resumable = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !resumable || self.producer.client().fetch_metadata(None, kafka.timeout).is_err() {
                return Err(kafka.request_error(what(), &self.producer.context().link.0, error).into());
            }
            if waits == COORDINATOR_WAITS {
                let (brokers, source) = (kafka.brokers.clone(), error.into());
                return Err(ClientError::Refused { brokers, what: what(), source }.into());
            }
            if waits == 1 {
                let (id, limit) = (&self.config.transactional_id, (kafka.timeout * COORDINATOR_WAITS).as_secs());
                let reason = reason(&error);
                tracing::warn!(id, reason, "no transaction coordinator is ready yet: waiting up to {limit} s for it");
            }
        }
        Ok(())
    }

    /// [`fence`](Self::fence) of many ids at once: each waits for the transaction it interrupts.
    pub fn fence_all(configs: Vec<WriterConfig>) -> Result<Vec<Self>, WriterError> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = configs.into_iter().map(|config| scope.spawn(|| Self::fence(config))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(Err(WriterError::Panicked))).collect()
        })
    }

    fn is_fenced(&self, error: &KafkaError) -> bool {
        const FENCED: [Option<RDKafkaErrorCode>; 3] = [
            Some(RDKafkaErrorCode::Fenced),
            Some(RDKafkaErrorCode::ProducerFenced),
            Some(RDKafkaErrorCode::InvalidProducerEpoch),
        ];
        // Once a fatal error is raised, later calls only say that there was one.
        FENCED.contains(&error.rdkafka_error_code())
            || FENCED.contains(&self.producer.client().fatal_error().map(|(code, _)| code))
    }

    fn fenced(&self, epoch: Option<u64>) -> WriterError {
        WriterError::Fenced { transactional_id: self.config.transactional_id.clone(), epoch }
    }

    fn aborted(&self, epoch: u64, error: &KafkaError) -> WriterError {
        if self.is_fenced(error) {
            return self.fenced(Some(epoch));
        }
        let transactional_id = self.config.transactional_id.clone();
        WriterError::Aborted { transactional_id, epoch, reason: reason(error) }
    }

    /// Partitions of a topic; asked once, so that a key does not move within a run.
    fn partitions(&mut self, topic: &'static str) -> Result<u32, WriterError> {
        if let Some(&partitions) = self.partitions.get(topic) {
            return Ok(partitions);
        }
        let kafka = &self.config.kafka;
        let metadata = self.producer.client().fetch_metadata(Some(topic), kafka.timeout);
        let metadata = metadata.map_err(|e| {
            kafka.request_error(format!("describe topic \"{topic}\""), &self.producer.context().link.0, e)
        })?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len() as u32);
        if partitions == 0 {
            return Err(WriterError::NoTopic { topic: topic.to_owned() });
        }
        self.partitions.insert(topic, partitions);
        Ok(partitions)
    }

    /// Hands one record to the client, waiting while its buffer is full.
    fn produce(
        &mut self,
        epoch: u64,
        deadline: Instant,
        topic: &'static str,
        ts_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), WriterError> {
        let partitions = self.partitions(topic)?;
        let partition = match key {
            Some(key) => partition_for_key(key, partitions),
            None => (murmur2(value.unwrap_or_default()) % partitions) as i32,
        };
        // The client takes 0 for "now", which is no function of the input.
        let ts_ms = ts_ms.map(|ms| ms.max(1));
        let mut record = BaseRecord {
            topic,
            partition: Some(partition),
            payload: value,
            key,
            timestamp: ts_ms,
            headers: None,
            delivery_opaque: (),
        };
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if Instant::now() < deadline =>
                {
                    self.producer.poll(Duration::ZERO);
                    std::thread::sleep(Duration::from_millis(1));
                    record = again;
                }
                Err((error, _)) if self.is_fenced(&error) => return Err(self.fenced(Some(epoch))),
                Err((error, _)) => {
                    let transactional_id = self.config.transactional_id.clone();
                    let what = format!("{topic} partition {partition}: {}", reason(&error));
                    return Err(WriterError::NotWritten { transactional_id, epoch, records: 1, what });
                }
            }
        }
    }
}

impl Sink for TransactionalWriter {
    fn commit(&mut self, epoch: Epoch) -> Result<(), WriterError> {
        let id = epoch.id;
        let timeout = self.config.transaction_timeout;
        let deadline = Instant::now() + timeout;
        self.producer.context().begin();
        self.producer.begin_transaction().map_err(|e| self.aborted(id, &e))?;
        for record in &epoch.records {
            let key = record.key.as_deref().map(str::as_bytes);
            self.produce(id, deadline, record.topic.name(), Some(record.ts_ms), key, Some(&record.value))?;
        }
        for checkpoint in &epoch.checkpoints {
            let value = checkpoint.value.as_deref();
            self.produce(id, deadline, CHECKPOINT_TOPIC, None, Some(checkpoint.key.as_bytes()), value)?;
        }
        let mut produced = (epoch.records.len() + epoch.checkpoints.len()) as u64;
        if produced == 0 {
            let key = format!("alive/{}", self.config.transactional_id);
            let value = id.to_string();
            self.produce(id, deadline, CHECKPOINT_TOPIC, None, Some(key.as_bytes()), Some(value.as_bytes()))?;
            produced = 1;
        }

        // Not the client's own flush: it says "all is well" also after a delivery that timed out, and waits 100 ms
        // at a time, which would be the least that an epoch takes. What counts are acknowledgements.
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(Duration::ZERO);
            // Not a poll with a time: the binding spins through its last millisecond.
            std::thread::sleep(Duration::from_micros(500));
        }
        let delivered = std::mem::take(&mut *self.producer.context().state());
        if delivered.acknowledged < produced {
            let unanswered = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
            let (place, error) = delivered.first_failure.unwrap_or(("somewhere".into(), unanswered));
            if self.is_fenced(&error) {
                return Err(self.fenced(Some(id)));
            }
            let what = format!("{place}: {}", reason(&error));
            let transactional_id = self.config.transactional_id.clone();
            let records = produced - delivered.acknowledged;
            return Err(WriterError::NotWritten { transactional_id, epoch: id, records, what });
        }

        #[cfg(test)]
        if let Some(act) = self.before_commit.take() {
            act();
        }
        // Whatever is left, so that an epoch takes no longer than it may; a moment for a commit that is nearly there.
        let left = deadline.saturating_duration_since(Instant::now()).max(LEAST_COMMIT);
        match self.producer.commit_transaction(left) {
            Ok(()) => {}
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                return Err(self.aborted(id, &KafkaError::Transaction(error)));
            }
            Err(error) if self.is_fenced(&error) => return Err(self.fenced(Some(id))),
            Err(error) => {
                let transactional_id = self.config.transactional_id.clone();
                return Err(WriterError::Unknown { transactional_id, epoch: id, reason: reason(&error) });
            }
        }
        if let Some(progress) = &mut self.progress {
            progress.note(epoch.source_offsets);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriterError> {
        if let Some(progress) = &mut self.progress {
            progress.commit(CommitMode::Sync);
        }
        Ok(())
    }
}

/// What a user may override through `kafka.extra`, for every producer of ours.
pub(crate) fn producer_defaults(settings: &mut ClientConfig) {
    default_setting(settings, "compression.type", "lz4"); // the fastest
    default_setting(settings, "queue.buffering.max.kbytes", "131072"); // an epoch of a fast broker, with room
}

pub(crate) fn default_setting(settings: &mut ClientConfig, key: &str, value: &str) {
    if settings.get(key).is_none() {
        settings.set(key, value);
    }
}

/// librdkafka's own words where it has some.
fn reason(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(error) => error.string(),
        error => error.to_string(),
    }
}

/// Counts acknowledgements of the epoch in progress.
#[derive(Default)]
pub(crate) struct Deliveries {
    pub(crate) link: LinkContext,
    clock: BrokerClock,
    state: Mutex<Delivered>,
}

/// What became of the records of an epoch, or of a play.
#[derive(Default)]
pub(crate) struct Delivered {
    pub(crate) acknowledged: u64,
    /// Topic and partition, and why.
    pub(crate) first_failure: Option<(String, KafkaError)>,
}

impl Deliveries {
    pub(crate) fn state(&self) -> MutexGuard<'_, Delivered> {
        self.state.lock().expect("no panic while held")
    }

    fn begin(&self) {
        *self.state() = Delivered::default();
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.link.log(level, facility, line);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut state = self.state();
        match result {
            Ok(record) => {
                state.acknowledged += 1;
                if let Timestamp::LogAppendTime(ms) = record.timestamp() {
                    self.clock.heard(ms);
                }
            }
            Err((error, record)) if state.first_failure.is_none() => {
                let place = format!("{} partition {}", record.topic(), record.partition());
                state.first_failure = Some((place, error.clone()));
            }
            Err(_) => {}
        }
    }
}

/// Offsets of the ordinary consumer group.
struct Progress {
    consumer: BaseConsumer<LinkContext>,
    offsets: BTreeMap<(String, i32), i64>,
    committed: Instant,
}

impl Progress {
    /// People look once in a while; the group coordinator has other work.
    const EVERY: Duration = Duration::from_secs(1);

    fn new(kafka: &KafkaConfig, group: &str) -> Result<Self, WriterError> {
        let mut settings = kafka.client("progress")?;
        settings.set("group.id", group).set("enable.auto.commit", "false");
        let consumer = BaseConsumer::from_config_and_context(&settings, LinkContext::default());
        let consumer = consumer.map_err(|e| kafka.creation_error(e))?;
        Ok(Self { consumer, offsets: BTreeMap::new(), committed: Instant::now() })
    }

    fn note(&mut self, offsets: Vec<SourceOffset>) {
        self.offsets.extend(offsets.into_iter().map(|at| ((at.topic, at.partition), at.next)));
        if self.committed.elapsed() >= Self::EVERY {
            self.commit(CommitMode::Async);
        }
    }

    fn commit(&mut self, mode: CommitMode) {
        self.committed = Instant::now();
        let mut list = TopicPartitionList::new();
        for ((topic, partition), next) in std::mem::take(&mut self.offsets) {
            list.add_partition_offset(&topic, partition, Offset::Offset(next)).expect("offsets are not negative");
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, mode)
        {
            tracing::warn!(%error, "could not show progress in the consumer group");
        }
        self.consumer.poll(Duration::ZERO); // serves callbacks
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logster_schema::{OutputRecord, OutputTopic};

    use super::*;
    use crate::admin::{Admin, Arrival, specified};
    use crate::epoch::Checkpoint;
    use crate::reader::{End, Record, last_values, read_committed};
    use crate::testkit::Cluster;

    const WAIT: Duration = Duration::from_secs(20);

    /// Tests share a broker: each has a transactional id and keys of its own.
    fn writer(cluster: &Cluster, id: &str) -> TransactionalWriter {
        TransactionalWriter::fence(config(cluster, id)).unwrap()
    }

    fn config(cluster: &Cluster, id: &str) -> WriterConfig {
        Admin::new(&cluster.config()).unwrap().create(&specified(Arrival::Create), None).unwrap();
        let transaction_timeout = Duration::from_secs(5);
        WriterConfig {
            kafka: cluster.config(),
            transactional_id: id.into(),
            group: None,
            transaction_timeout,
            clock: BrokerClock::default(),
        }
    }

    fn record(topic: OutputTopic, key: &str, n: u32) -> OutputRecord {
        OutputRecord { topic, key: Some(key.into()), ts_ms: 1_000 + i64::from(n), value: n.to_string().into_bytes() }
    }

    fn epoch(id: u64, records: Vec<OutputRecord>) -> Epoch {
        let checkpoints = vec![Checkpoint { key: format!("test/{id}"), value: Some(b"{}".to_vec()) }];
        Epoch { id, records, checkpoints, source_offsets: Vec::new() }
    }

    /// Committed records of a key: partition, timestamp, value.
    fn committed(cluster: &Cluster, topic: OutputTopic, key: &str) -> Vec<(i32, i64, String)> {
        let records = read_committed(&cluster.config(), topic.name(), End::Written, WAIT).unwrap();
        records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()))
            .map(|record| (record.partition, record.ts_ms, String::from_utf8(record.value.unwrap()).unwrap()))
            .collect()
    }

    #[test]
    fn the_brokers_clock_is_heard_and_stands_still_without_answers() {
        let cluster = Cluster::shared();
        let config = config(&cluster, "clock-0");
        let clock = config.clock.clone();
        let mut writer = TransactionalWriter::fence(config).unwrap();
        assert_eq!(clock.now_ms(), None, "nothing is written yet");
        writer.commit(epoch(1, Vec::new())).unwrap();
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let heard = clock.now_ms().unwrap();
        assert!((here - 10_000..=here).contains(&heard), "{heard} at {here}");
        std::thread::sleep(BrokerClock::GOES_ON);
        let still = clock.now_ms().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(clock.now_ms(), Some(still));
        // A broker whose clock was set back is believed: floors that are committed stay.
        clock.heard(5_000);
        assert!((5_000..6_000).contains(&clock.now_ms().unwrap()));
    }

    #[test]
    fn a_coordinator_that_is_not_ready_is_waited_for_but_not_for_ever() {
        let impatient = |cluster: &Cluster, timeout| {
            let mut config = config(cluster, "cold-0");
            config.kafka.timeout = timeout;
            config
        };
        // Of a broker that has just started, the first question takes a second, on a busy machine several.
        let cluster = Cluster::start();
        let config = impatient(&cluster, Duration::from_millis(900));
        TransactionalWriter::fence(config).unwrap().commit(epoch(1, Vec::new())).unwrap();
        // One that can never have the topic of its transactions.
        let cluster = Cluster::start_with(1, &["transaction.state.log.replication.factor=3"]);
        let (asked, timeout) = (Instant::now(), Duration::from_millis(400));
        let error = TransactionalWriter::fence(impatient(&cluster, timeout)).map(|_| ()).unwrap_err();
        assert!(matches!(&error, WriterError::Client(ClientError::Refused { .. })), "{error:?}");
        assert!(error.to_string().ends_with("refused to give us transactional id \"cold-0\""), "{error}");
        assert!(asked.elapsed() > timeout * COORDINATOR_WAITS, "{:?}", asked.elapsed());
    }

    #[test]
    fn an_epoch_is_committed_where_java_would_put_it() {
        let cluster = Cluster::shared();
        let mut writer = writer(&cluster, "placed-0");
        // Kafka's own murmur2 vectors, positive, modulo 12.
        let keys = [("21", -973_932_308_i32), ("foobar", -790_332_482), ("abc", 479_470_107)];
        let mut records = Vec::new();
        for n in 0..1_000 {
            records.extend(keys.map(|(key, _)| record(OutputTopic::Normalized, key, n)));
        }
        writer.commit(epoch(1, records)).unwrap();
        for (key, hash) in keys {
            let partition = (hash & 0x7fff_ffff) % 12;
            let want: Vec<_> = (0..1_000).map(|n: u32| (partition, 1_000 + i64::from(n), n.to_string())).collect();
            assert_eq!(committed(&cluster, OutputTopic::Normalized, key), want, "{key}");
        }
        // Without a key: the same partition for the same value.
        let mut letter = record(OutputTopic::DeadLetters, "", 7_777);
        (letter.key, letter.ts_ms) = (None, 0);
        writer.commit(epoch(2, vec![letter.clone(), letter])).unwrap();
        let letters = read_committed(&cluster.config(), OutputTopic::DeadLetters.name(), End::Written, WAIT).unwrap();
        let places: Vec<_> =
            letters.iter().filter(|r| r.value.as_deref() == Some(b"7777")).map(|r| (r.partition, r.ts_ms)).collect();
        assert_eq!(places.len(), 2);
        assert_eq!(places[0], places[1]);
        assert_eq!(places[0].1, 1, "0 would be the clock's");
    }

    #[test]
    fn checkpoints_are_read_back_and_empty_epochs_write_one_record() {
        let cluster = Cluster::shared();
        let mut writer = writer(&cluster, "checkpointed-0");
        let set = |key: &str, value: Option<&str>| Checkpoint { key: key.into(), value: value.map(|v| v.into()) };
        let commit = |writer: &mut TransactionalWriter, id, checkpoints| {
            writer.commit(Epoch { id, checkpoints, ..Epoch::default() }).unwrap();
            last_values(&cluster.config(), CHECKPOINT_TOPIC, WAIT).unwrap()
        };
        let read = commit(&mut writer, 1, vec![set("a", Some("1")), set("b", Some("1"))]);
        assert_eq!((read[&b"a"[..]].as_slice(), read[&b"b"[..]].as_slice()), (&b"1"[..], &b"1"[..]));
        let read = commit(&mut writer, 2, vec![set("a", Some("2")), set("b", None), set("a", Some("3"))]);
        assert_eq!((read[&b"a"[..]].as_slice(), read.get(&b"b"[..])), (&b"3"[..], None));
        let read = commit(&mut writer, 3, Vec::new());
        assert_eq!(read[&b"alive/checkpointed-0"[..]], b"3");
    }

    #[test]
    fn what_is_not_committed_is_not_seen_and_a_new_run_aborts_it() {
        let cluster = Cluster::shared();
        let key = "aborted:host";
        let mut old = writer(&cluster, "aborted-0");
        old.commit(epoch(1, vec![record(OutputTopic::Results, key, 1)])).unwrap();
        // Killed between produce and commit: the records are on the broker.
        old.producer.context().begin();
        old.producer.begin_transaction().unwrap();
        old.produce(2, Instant::now() + WAIT, "logster-inference-results", None, Some(key.as_bytes()), Some(b"2"))
            .unwrap();
        old.producer.flush(WAIT).unwrap();
        assert_eq!(old.producer.context().state().acknowledged, 1);
        let read = |end, timeout| read_committed(&cluster.config(), "logster-inference-results", end, timeout);
        let ours = |records: Vec<Record>| records.iter().filter(|r| r.key.as_deref() == Some(key.as_bytes())).count();
        assert_eq!(ours(read(End::Stable, WAIT).unwrap()), 1);
        let waits = read(End::Written, Duration::from_millis(300)).unwrap_err();
        assert!(waits.to_string().contains("logster-inference-results"), "{waits}");
        let mut new = writer(&cluster, "aborted-0");
        new.commit(epoch(2, vec![record(OutputTopic::Results, key, 3)])).unwrap();
        let values: Vec<_> = committed(&cluster, OutputTopic::Results, key).into_iter().map(|(_, _, v)| v).collect();
        assert_eq!(values, ["1", "3"]);
    }

    #[test]
    fn the_older_of_two_holders_is_fenced_with_or_without_records() {
        let cluster = Cluster::shared();
        let key = "fenced:host";
        let ids = ["fenced-0", "fenced-1"];
        let mut old: Vec<_> = ids.map(|id| writer(&cluster, id)).into();
        for writer in &mut old {
            writer.commit(epoch(1, vec![record(OutputTopic::Alerts, key, 1)])).unwrap();
        }
        let new = TransactionalWriter::fence_all(ids.map(|id| config(&cluster, id)).into()).unwrap();
        let with = old[0].commit(epoch(2, vec![record(OutputTopic::Alerts, key, 2)])).unwrap_err();
        let empty = old[1].commit(Epoch { id: 2, ..Epoch::default() }).unwrap_err();
        for (error, id) in [(with, "fenced-0"), (empty, "fenced-1")] {
            match error {
                WriterError::Fenced { transactional_id, epoch: Some(2) } => assert_eq!(transactional_id, id),
                error => panic!("{error:?}"),
            }
        }
        for mut writer in new {
            writer.commit(epoch(3, vec![record(OutputTopic::Alerts, key, 3)])).unwrap();
        }
        let mut values: Vec<_> = committed(&cluster, OutputTopic::Alerts, key).into_iter().map(|(_, _, v)| v).collect();
        values.sort();
        assert_eq!(values, ["1", "1", "3", "3"]);
    }

    #[test]
    fn a_record_that_is_too_large_fails_its_epoch_as_a_whole() {
        let cluster = Cluster::shared();
        let key = "large:host";
        let mut writer = writer(&cluster, "large-0");
        let sized = |bytes| OutputRecord { value: vec![b'1'; bytes], ..record(OutputTopic::Results, key, 0) };
        writer.commit(epoch(1, vec![sized(60 << 20)])).unwrap();
        let error = writer.commit(epoch(2, vec![sized(1), sized(65 << 20)])).unwrap_err();
        match &error {
            WriterError::NotWritten { what, .. } => assert!(what.contains("logster-inference-results"), "{what}"),
            error => panic!("{error:?}"),
        }
        assert_eq!(committed(&cluster, OutputTopic::Results, key).len(), 1);
    }

    #[test]
    fn progress_shows_in_the_consumer_group() {
        let cluster = Cluster::shared();
        let mut config = config(&cluster, "progress-0");
        config.group = Some("logster-test".into());
        let mut writer = TransactionalWriter::fence(config).unwrap();
        let offset = |partition, next| SourceOffset { topic: "sysmon-logs".into(), partition, next };
        for next in 1..=3 {
            writer
                .commit(Epoch { source_offsets: vec![offset(0, next), offset(1, 10 * next)], ..epoch(1, Vec::new()) })
                .unwrap();
        }
        writer.finish().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range("sysmon-logs", 0, 2);
        let found = writer.progress.unwrap().consumer.committed_offsets(list, WAIT).unwrap();
        let found: Vec<_> = found.elements().iter().map(|at| at.offset()).collect();
        assert_eq!(found, [Offset::Offset(3), Offset::Offset(30), Offset::Invalid]);
    }

    #[test]
    fn a_broker_that_dies_or_hangs_ends_writing_and_the_next_run_goes_on() {
        let cluster = Arc::new(Cluster::start());
        let key = "outage:host";

        // Not all topics are there yet.
        let specs: Vec<_> = specified(Arrival::Create).into_iter().filter(|s| s.name == CHECKPOINT_TOPIC).collect();
        Admin::new(&cluster.config()).unwrap().create(&specs, None).unwrap();
        let (kafka, transaction_timeout) = (cluster.config(), Duration::from_secs(1));
        let (transactional_id, clock) = ("outage-0".into(), BrokerClock::default());
        let config_0 = WriterConfig { kafka, transactional_id, group: None, transaction_timeout, clock };
        let mut writer = TransactionalWriter::fence(config_0).unwrap();
        let error = writer.commit(epoch(0, vec![record(OutputTopic::Alerts, key, 1)])).unwrap_err().to_string();
        assert_eq!(error, "topic \"logster-alerts\" does not exist: create it with `logster topics create`");
        drop(writer);

        let fence = || {
            let mut config = config(&cluster, "outage-0");
            config.transaction_timeout = Duration::from_secs(3);
            TransactionalWriter::fence(config).unwrap()
        };
        let mut writer = fence();
        writer.commit(epoch(1, vec![record(OutputTopic::Alerts, key, 1)])).unwrap();
        // Killed at once, a lone broker now and then came back with this topic, just made, empty.
        std::thread::sleep(Duration::from_secs(3));
        cluster.kill_broker(1);
        let error = writer.commit(epoch(2, vec![record(OutputTopic::Alerts, key, 2)])).unwrap_err();
        assert!(matches!(error, WriterError::NotWritten { epoch: 2, .. }), "{error:?}");
        drop(writer);
        cluster.start_broker(1);

        // Hangs after the records are acknowledged, before the commit is.
        let mut writer = fence();
        let theirs = cluster.clone();
        writer.before_commit = Some(Box::new(move || theirs.pause_broker(1)));
        let error = writer.commit(epoch(3, vec![record(OutputTopic::Alerts, key, 3)])).unwrap_err();
        assert!(matches!(error, WriterError::Unknown { epoch: 3, .. }), "{error:?}");
        drop(writer);
        cluster.resume_broker(1);

        let mut writer = fence();
        let before: Vec<_> = committed(&cluster, OutputTopic::Alerts, key).into_iter().map(|(_, _, v)| v).collect();
        assert!(before == ["1"] || before == ["1", "3"], "{before:?}");
        writer.commit(epoch(4, vec![record(OutputTopic::Alerts, key, 4)])).unwrap();
        assert_eq!(committed(&cluster, OutputTopic::Alerts, key).len(), before.len() + 1);
    }
}
