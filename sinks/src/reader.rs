//! Reads a topic from its beginning to its end, committed records only: checkpoints at start, outputs in tests.
//!
//! - Input: every partition of a topic, up to the last stable offset when reading starts: what an open transaction
//!   holds back is not waited for. Whoever needs it fences its writer first.
//! - Output: [`Record`]s, per partition in order of offset; or [`last_values`], the last value of each key.
//! - State: what it returns, in memory: meant for the checkpoint topic, which compaction keeps small.
//! - Failure: [`ClientError`], also when no record came for the time-out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::{ClientError, KafkaConfig, LinkContext};

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

/// Every committed record of a topic up to its present end, partition by partition.
///
/// `timeout` bounds the wait for the next record, not the whole.
pub fn read_committed_to_end(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<Vec<Record>, ClientError> {
    let mut records = Vec::new();
    for_each_committed(config, topic, timeout, |record| records.push(record))?;
    records.sort_unstable();
    Ok(records)
}

/// The last committed value of each key; keys whose last record is a tombstone are left out.
pub fn last_values(
    config: &KafkaConfig,
    topic: &str,
    timeout: Duration,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ClientError> {
    let mut last = BTreeMap::new();
    for_each_committed(config, topic, timeout, |record| {
        let Some(key) = record.key else { return };
        match record.value {
            Some(value) => last.insert(key, value),
            None => last.remove(&key),
        };
    })?;
    Ok(last)
}

fn for_each_committed(
    config: &KafkaConfig,
    topic: &str,
    timeout: Duration,
    mut f: impl FnMut(Record),
) -> Result<(), ClientError> {
    let mut settings = config.client("reader")?;
    settings
        .set("group.id", "logster-reader") // needed for assignment; never joined, nothing is committed
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer<LinkContext> = BaseConsumer::from_config_and_context(&settings, LinkContext::default())
        .map_err(|e| config.creation_error(e))?;
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
    for partition in 0..partitions {
        let (first, end) = consumer.fetch_watermarks(topic, partition, config.timeout).map_err(failed)?;
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
