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
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use logster_schema::partition::{murmur2, partition_for_key};
use logster_schema::topics::CHECKPOINT_TOPIC;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use crate::admin::MAX_OUTPUT_BYTES;
use crate::client::{KafkaConfig, LinkContext};
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
}

/// The only holder of a transactional id.
pub struct TransactionalWriter {
    config: WriterConfig,
    producer: BaseProducer<Deliveries>,
    /// Partitions of the topics written so far.
    partitions: BTreeMap<&'static str, u32>,
    progress: Option<Progress>,
}

impl TransactionalWriter {
    /// Takes the transactional id: every earlier holder is fenced, its open transaction aborted. Writes nothing.
    ///
    /// Blocks for about 60 ms, over an open transaction 600 ms, with a cold coordinator a second.
    pub fn fence(config: WriterConfig) -> Result<Self, WriterError> {
        let mut settings = config.kafka.client(&config.transactional_id)?;
        let timeout_ms = config.transaction_timeout.as_millis().to_string();
        settings
            .set("transactional.id", &config.transactional_id)
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms)
            .set("message.max.bytes", MAX_OUTPUT_BYTES.to_string());
        producer_defaults(&mut settings);
        let producer = BaseProducer::from_config_and_context(&settings, Deliveries::default())
            .map_err(|e| config.kafka.creation_error(e))?;
        let progress = config.group.as_deref().map(|group| Progress::new(&config.kafka, group)).transpose()?;
        let writer = Self { config, producer, partitions: BTreeMap::new(), progress };
        match writer.producer.init_transactions(writer.config.kafka.timeout) {
            Ok(()) => Ok(writer),
            Err(error) if writer.is_fenced(&error) => Err(writer.fenced(None)),
            Err(error) => {
                writer.producer.poll(Duration::from_millis(20)); // delivers what the client has to say
                let what = format!("give us transactional id \"{}\"", writer.config.transactional_id);
                Err(writer.config.kafka.request_error(what, &writer.producer.context().link.0, error).into())
            }
        }
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
                    self.producer.poll(Duration::from_millis(5));
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

        // Flush says "all is well" also after a delivery that timed out: what counts are acknowledgements.
        let flushed = self.producer.flush(deadline.saturating_duration_since(Instant::now()));
        let delivered = std::mem::take(&mut *self.producer.context().state());
        if delivered.acknowledged < produced {
            let error = delivered.first_failure.map(|(place, error)| (place, error));
            let what = match (&error, &flushed) {
                (Some((_, error)), _) | (None, Err(error)) if self.is_fenced(error) => {
                    return Err(self.fenced(Some(id)));
                }
                (Some((place, error)), _) => format!("{place}: {}", reason(error)),
                (None, Err(error)) => format!("without an answer within {timeout:?}: {}", reason(error)),
                (None, Ok(())) => "without any report".to_owned(),
            };
            let transactional_id = self.config.transactional_id.clone();
            let records = produced - delivered.acknowledged;
            return Err(WriterError::NotWritten { transactional_id, epoch: id, records, what });
        }

        match self.producer.commit_transaction(timeout) {
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
    // lz4: the fastest; 128 MiB: twice what an epoch holds at the speed of a fast broker.
    for (key, value) in [("compression.type", "lz4"), ("queue.buffering.max.kbytes", "131072")] {
        if settings.get(key).is_none() {
            settings.set(key, value);
        }
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
            Ok(_) => state.acknowledged += 1,
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
