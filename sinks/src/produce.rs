//! Plays captures into the raw topics of a broker.
//!
//! - Input: captures in order of arrival ([`Playback`]).
//! - Output: one record a line, its value the bytes as they stand in the line, keyed and partitioned as the file
//!   source keys and partitions the same line, stamped with the arrival of the capture or by the clock.
//! - State: what the client has not been acknowledged yet, at most 128 MiB: a slow broker slows the reading.
//! - Ordering: lines of a partition in the order of the playback, also after retries (idempotent producer).
//! - Failure: lines without a record are counted by reason. A record that the broker does not take ends the play
//!   with where it was to go; what was acknowledged before stays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use logster_schema::partition::partition_for_key;
use logster_schema::{DeadLetterReason, InputTopic};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::admin::{Admin, MAX_RAW_BYTES};
use crate::capture::{CaptureError, Framing};
use crate::client::{ClientError, KafkaConfig};
use crate::playback::Playback;
use crate::writer::{Deliveries, producer_defaults};

/// What to play, and how.
#[derive(Clone, Debug)]
pub struct ProduceConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// File, directory, or `-`.
    pub input: PathBuf,
    /// Envelopes, or bare messages of one topic.
    pub framing: Framing,
    /// How many times as fast as recorded; `None`: as fast as can be.
    pub speed: Option<f64>,
    /// Where record timestamps come from.
    pub stamps: Stamps,
}

/// Where record timestamps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamps {
    /// The capture's arrival times.
    Capture,
    /// The clock, when a record is sent.
    Clock,
}

/// How far a play has come, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Records sent, by topic.
    pub records: BTreeMap<InputTopic, u64>,
    /// Bytes of their values.
    pub bytes: u64,
    /// Lines that yield no record, by reason.
    pub refused: BTreeMap<DeadLetterReason, u64>,
}

/// Why a play ended early.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The broker cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A topic that the capture names does not exist.
    #[error("topic \"{topic}\" does not exist: create it with `logster topics create`")]
    NoTopic {
        /// The topic.
        topic: &'static str,
    },
    /// The broker did not take every record.
    #[error("{records} of {sent} records were not delivered, first one to {what}")]
    NotDelivered {
        /// How many were not acknowledged.
        records: u64,
        /// How many were handed to the client.
        sent: u64,
        /// Topic and partition of the first one that failed, and why.
        what: String,
    },
}

/// Lines between calls of `progress`.
const PROGRESS_LINES: u64 = 1_000;

/// Plays `config.input`. `key` gives the key of a record whose line has none; `progress` is called now and then.
pub fn produce(
    config: &ProduceConfig,
    key: impl Fn(InputTopic, &[u8]) -> String,
    mut progress: impl FnMut(&Played),
) -> Result<Played, ProduceError> {
    let mut playback = Playback::open(&config.input, config.framing)?;
    let partitions = Admin::new(&config.kafka)?.partitions()?;
    let partitions = InputTopic::ALL.map(|topic| partitions.get(topic.name()).copied());
    let mut settings = config.kafka.client("produce")?;
    settings.set("enable.idempotence", "true").set("message.max.bytes", MAX_RAW_BYTES.to_string());
    producer_defaults(&mut settings);
    let producer: BaseProducer<Deliveries> = BaseProducer::from_config_and_context(&settings, Deliveries::default())
        .map_err(|e| config.kafka.creation_error(e))?;

    let mut played = Played::default();
    let mut lines = 0_u64;
    let mut sent = 0;
    let mut began = None;
    while let Some(line) = playback.next_line()? {
        lines += 1;
        if lines.is_multiple_of(PROGRESS_LINES) {
            progress(&played);
            producer.poll(Duration::ZERO);
            undelivered(&producer, sent, false)?;
        }
        let envelope = match config.framing.parse(&line.line) {
            Ok(envelope) => envelope,
            Err(refused) => {
                *played.refused.entry(refused.reason).or_default() += 1;
                continue;
            }
        };
        if let Some(speed) = config.speed {
            let (first, at) = *began.get_or_insert((line.arrival_ms, Instant::now()));
            let due = at + Duration::from_secs_f64((line.arrival_ms - first) as f64 / 1_000.0 / speed);
            while let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                progress(&played);
                producer.poll(wait.min(Duration::from_millis(500)));
            }
        }
        let topic = envelope.topic.name();
        let partitions = partitions[envelope.topic.number()].ok_or(ProduceError::NoTopic { topic })?;
        let key = envelope.key.map_or_else(|| key(envelope.topic, envelope.value), Into::into);
        let mut record = BaseRecord::to(topic)
            .partition(partition_for_key(key.as_bytes(), partitions))
            .key(key.as_str())
            .payload(envelope.value);
        if config.stamps == Stamps::Capture {
            record = record.timestamp(line.arrival_ms.max(1)); // the client takes 0 for "now"
        }
        loop {
            match producer.send(record) {
                Ok(()) => {
                    sent += 1;
                    *played.records.entry(envelope.topic).or_default() += 1;
                    played.bytes += envelope.value.len() as u64;
                    break;
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    producer.poll(Duration::from_millis(5));
                    undelivered(&producer, sent, false)?;
                    record = again;
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                    *played.refused.entry(DeadLetterReason::TooLarge).or_default() += 1;
                    break;
                }
                Err((error, _)) => {
                    return Err(ProduceError::NotDelivered { records: 1, sent, what: format!("{topic}: {error}") });
                }
            }
        }
    }
    // Every record is acknowledged or given up within the client's delivery time-out.
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(100));
        progress(&played);
    }
    undelivered(&producer, sent, true)?;
    progress(&played);
    Ok(played)
}

/// An error if a delivery failed, or at the end of the play, if one is missing.
fn undelivered(producer: &BaseProducer<Deliveries>, sent: u64, at_end: bool) -> Result<(), ProduceError> {
    let state = producer.context().state();
    let missing = sent - state.acknowledged;
    match &state.first_failure {
        Some((place, error)) => {
            Err(ProduceError::NotDelivered { records: missing, sent, what: format!("{place}: {error}") })
        }
        None if at_end && missing > 0 => {
            Err(ProduceError::NotDelivered { records: missing, sent, what: "nobody knows where".into() })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use logster_schema::RawTopic;

    use super::*;
    use crate::admin::{Arrival, specified};
    use crate::reader::{End, read_committed};
    use crate::testkit::Cluster;

    const WAIT: Duration = Duration::from_secs(20);

    fn config(cluster: &Cluster, dir: &std::path::Path, stamps: Stamps) -> ProduceConfig {
        let (kafka, input) = (cluster.config(), dir.to_owned());
        ProduceConfig { kafka, input, framing: Framing::Envelope, speed: None, stamps }
    }

    #[test]
    fn a_capture_arrives_verbatim_in_order_where_java_would_put_it() {
        let cluster = Cluster::start();
        let admin = Admin::new(&cluster.config()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let value = |host: u32, n: u32| format!("{{ \"host\": {host},  \"n\":{n}}}");
        let mut lines = String::new();
        for n in 0..4_000 {
            let (topic, host) = (RawTopic::ALL[(n % 2) as usize].name(), n % 13);
            lines += &format!("{{\"topic\":\"{topic}\",\"ts\":{},\"value\":{}}}\n", 1_000 + n, value(host, n));
        }
        // No record: an empty line, garbage, an unknown topic. A key of its own.
        lines += "\nnot json\n{\"topic\":\"sysmon-log\",\"value\":{}}\n";
        lines += "{\"topic\":\"sysmon-logs\",\"value\":[],\"key\":\"foobar\",\"ts\":9000}\n";
        std::fs::write(dir.path().join("a.ndjson"), lines).unwrap();
        let host = |_: InputTopic, value: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(value).unwrap();
            format!("t:{}", value["host"])
        };

        let config = config(&cluster, dir.path(), Stamps::Capture);
        let error = produce(&config, host, |_| ()).unwrap_err();
        assert!(matches!(error, ProduceError::NoTopic { topic: "sysmon-logs" }), "{error:?}");
        admin.create(&specified(Arrival::Create), None).unwrap();
        let mut called = 0;
        let played = produce(&config, host, |_| called += 1).unwrap();
        assert!(called >= 4);
        assert_eq!(
            played.records,
            BTreeMap::from([(InputTopic::Raw(RawTopic::Sysmon), 2_001), (InputTopic::Raw(RawTopic::Auditd), 2_000)])
        );
        let one_each = [DeadLetterReason::Empty, DeadLetterReason::InvalidEnvelope, DeadLetterReason::UnknownTopic];
        assert_eq!(played.refused, BTreeMap::from(one_each.map(|reason| (reason, 1))));

        for (first, topic) in [(0, RawTopic::Sysmon), (1, RawTopic::Auditd)] {
            let mut got = read_committed(&cluster.config(), topic.name(), End::Written, WAIT).unwrap();
            if topic == RawTopic::Sysmon {
                let keyed = got.iter().position(|r| r.key.as_deref() == Some(b"foobar")).unwrap();
                let keyed = got.remove(keyed);
                // Kafka's murmur2 vector of this key, positive, modulo 6.
                assert_eq!(keyed.partition, (-790_332_482_i32 & 0x7fff_ffff) % 6);
                assert_eq!((keyed.ts_ms, keyed.value.as_deref()), (9_000, Some(&b"[]"[..])));
            }
            for host in 0..13 {
                let key = format!("t:{host}");
                let of_host: Vec<_> = got.iter().filter(|r| r.key.as_deref() == Some(key.as_bytes())).collect();
                let want: Vec<_> = (first..4_000).step_by(2).filter(|n| n % 13 == host).collect();
                assert_eq!(of_host.len(), want.len());
                for (record, n) in of_host.into_iter().zip(want) {
                    assert_eq!(record.partition, partition_for_key(key.as_bytes(), 6));
                    assert_eq!(
                        (record.ts_ms, record.value.as_deref()),
                        (1_000 + i64::from(n), Some(value(host, n).as_bytes()))
                    );
                }
            }
        }
    }

    #[test]
    fn speed_and_clock() {
        let cluster = Cluster::shared();
        Admin::new(&cluster.config()).unwrap().create(&specified(Arrival::Create), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let line = |ts: u32| format!("{{\"topic\":\"linux-ebpf-file-logs\",\"ts\":{ts},\"value\":{{}}}}\n");
        std::fs::write(dir.path().join("a.ndjson"), [0, 1_000, 5_000].map(line).concat()).unwrap();
        let mut config = config(&cluster, dir.path(), Stamps::Clock);
        config.speed = Some(10.0);
        let began = Instant::now();
        produce(&config, |_, _| "t:h".into(), |_| ()).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(500));
        let got = read_committed(&cluster.config(), "linux-ebpf-file-logs", End::Written, WAIT).unwrap();
        assert_eq!(got.len(), 3);
        let apart: Vec<_> = got.windows(2).map(|pair| pair[1].ts_ms - pair[0].ts_ms).collect();
        assert!(got[0].ts_ms > 1_700_000_000_000, "the clock's");
        assert!(apart[0] >= 90 && apart[1] >= 390, "{apart:?}");
    }
}
