//! Reads a topic from its beginning to its end, committed records only: checkpoints at start, outputs in tests.
//!
//! - Input: every partition of a topic, up to what is its [`End`] when reading starts.
//! - Output: [`Record`]s, per partition in order of offset; or [`last_values`], the last value of each key.
//! - State: what it returns, in memory: meant for the checkpoint topic, which compaction keeps small.
//! - Failure: [`ClientError`], also when the end did not become stable, or no record came, for the time-out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::{ClientError, KafkaConfig, LinkContext, watermarks};

/// A committed record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Partition.
    pub partition: i32,
    /// Offset; control records of transactions leave gaps.
    pub offset: i64,
    /// Timestamp in ms.
    pub ts_ms: i64,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value; `None`: a tombstone.
    pub value: Option<Vec<u8>>,
}

/// Which end of a topic is read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last stable offset: what open transactions hold back is left out, whoever's they are.
    Stable,
    /// The last record written: waits until every transaction before it has ended. A commit that was answered may
    /// need some milliseconds until readers see it; and another job's open transaction hides our newest records.
    Written,
}

/// Every committed record of a topic up to its present end, partition by partition.
///
/// `timeout` bounds the wait for the end to become stable, and for the next record.
pub fn read_committed(
    config: &KafkaConfig,
    topic: &str,
    end: End,
    timeout: Duration,
) -> Result<Vec<Record>, ClientError> {
    let mut records = Vec::new();
    for_each_committed(config, topic, end, timeout, |record| records.push(record))?;
    records.sort_unstable();
    Ok(records)
}

/// First offset and end of each partition.
pub fn ends(config: &KafkaConfig, partitions: &[(String, i32)]) -> Result<Vec<(i64, i64)>, ClientError> {
    let consumer: BaseConsumer<LinkContext> =
        BaseConsumer::from_config_and_context(&config.client("watermarks")?, LinkContext::default())
            .map_err(|e| config.creation_error(e))?;
    let found = partitions.iter().map(|(topic, partition)| {
        let found = watermarks(&consumer, topic, *partition, config.timeout);
        found.map_err(|e| config.request_error("tell the ends of its logs", &consumer.context().0, e))
    });
    found.collect()
}

/// The last committed value of each key up to [`End::Written`]; keys whose last record is a tombstone are left out.
pub fn last_values(
    config: &KafkaConfig,
    topic: &str,
    timeout: Duration,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ClientError> {
    let mut last = BTreeMap::new();
    for_each_committed(config, topic, End::Written, timeout, |record| {
        let Some(key) = record.key else { return };
        match record.value {
            Some(value) => last.insert(key, value),
            None => last.remove(&key),
        };
    })?;
    Ok(last)
}

/// Hands over every committed record of a topic up to its present end, each partition's in order of offset.
///
/// `timeout` as for [`read_committed`].
pub fn for_each_committed(
    config: &KafkaConfig,
    topic: &str,
    end: End,
    timeout: Duration,
    mut f: impl FnMut(Record),
) -> Result<(), ClientError> {
    let mut settings = config.client("reader")?;
    settings
        .set("group.id", "logster-reader") // needed for assignment; never joined, nothing is committed
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true");
    // A consumer's isolation decides what it takes for the end.
    let mut consumer = |isolation: &str| {
        settings.set("isolation.level", isolation);
        BaseConsumer::<LinkContext>::from_config_and_context(&settings, LinkContext::default())
            .map_err(|e| config.creation_error(e))
    };
    let uncommitted = consumer("read_uncommitted")?;
    let consumer = consumer("read_committed")?;
    let failed = |error| {
        let what = format!("read topic \"{topic}\"");
        config.request_error(what, &consumer.context().0, error)
    };

    let metadata = consumer.fetch_metadata(Some(topic), config.timeout).map_err(failed)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len()) as i32;
    if partitions == 0 {
        return Err(failed(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)));
    }
    // Partitions that still have something before their end.
    let mut open = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    let asked = Instant::now();
    for partition in 0..partitions {
        let (_, written) = watermarks(&uncommitted, topic, partition, config.timeout).map_err(failed)?;
        let (first, end) = loop {
            let (first, stable) = watermarks(&consumer, topic, partition, config.timeout).map_err(failed)?;
            if end == End::Stable || stable >= written {
                break (first, stable);
            }
            if asked.elapsed() >= timeout {
                return Err(ClientError::HeldBack { topic: topic.to_owned(), partition, waited: timeout });
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if first < end {
            open.insert(partition, end);
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
        }
    }
    consumer.assign(&list).map_err(failed)?;
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(20)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let (partition, offset) = (message.partition(), message.offset());
                let Some(&end) = open.get(&partition) else { continue };
                if offset < end {
                    f(Record {
                        partition,
                        offset,
                        ts_ms: message.timestamp().to_millis().unwrap_or(-1),
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                    });
                }
                // Beyond the end that was found: written meanwhile, and not what was asked for.
                if offset + 1 >= end {
                    open.remove(&partition);
                }
            }
            // Partitions mostly end with control records, which are never handed over.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            // Brokers come and go; librdkafka reconnects until we give up.
            Some(Err(error)) if heard.elapsed() >= timeout => return Err(failed(error)),
            None if heard.elapsed() >= timeout => {
                return Err(failed(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
            }
            Some(Err(_)) | None => {}
        }
    }
    Ok(())
}
