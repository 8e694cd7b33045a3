//! Records per second into one broker: without transactions, and with a transaction an epoch.
//!
//! Both produce the same keyed records of about 1 KB into the 12 partitions of normalized events, in the same run,
//! taking turns. Run it with `make bench`, or alone with `LOGSTER_KAFKA_CLUSTER=$PWD/deploy/kafka/cluster.sh
//! cargo bench -p logster-sinks --bench writer`; a larger broker with LOGSTER_KAFKA_JVM="-XX:+UseG1GC -Xmx1g".

use std::time::{Duration, Instant};

use logster_schema::partition::partition_for_key;
use logster_schema::{OutputRecord, OutputTopic};
use logster_sinks::admin::{Admin, Arrival, specified};
use logster_sinks::epoch::{Checkpoint, Epoch, Sink};
use logster_sinks::testkit::Cluster;
use logster_sinks::writer::{BrokerClock, TransactionalWriter, WriterConfig};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const RECORDS: usize = 60_000;
const ROUNDS: usize = 3;
/// A worker's share of partitions and shards.
const CHECKPOINTS: usize = 70;

/// JSON that compresses about as events do: fixed names, varying values.
fn records() -> Vec<OutputRecord> {
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 20
    };
    let one = |n: usize| {
        let mut value = format!("{{\"event_type\":\"process\",\"sequence\":{n}");
        while value.len() < 1_000 {
            value +=
                &format!(",\"image\":\"C:\\\\Windows\\\\System32\\\\{:x}.exe\",\"pid\":{}", next(), next() % 65_536);
        }
        value.push('}');
        OutputRecord {
            topic: OutputTopic::Normalized,
            key: Some(format!("default:host-{}", next() % 1_000).into()),
            ts_ms: 1_773_860_833_000 + n as i64,
            value: value.into_bytes(),
        }
    };
    (0..RECORDS).map(one).collect()
}

fn plain(brokers: &str, records: &[OutputRecord]) -> Duration {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .create()
        .expect("a producer");
    producer.client().fetch_metadata(Some(OutputTopic::Normalized.name()), Duration::from_secs(10)).expect("a broker");
    let began = Instant::now();
    for (n, record) in records.iter().enumerate() {
        let key = record.key.as_deref().expect("all have one").as_bytes();
        let mut one = BaseRecord::to(record.topic.name())
            .key(key)
            .payload(record.value.as_slice())
            .partition(partition_for_key(key, 12))
            .timestamp(record.ts_ms);
        while let Err((_, again)) = producer.send(one) {
            producer.poll(Duration::from_millis(5));
            one = again;
        }
        if n % 1_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(60)).expect("all delivered");
    began.elapsed()
}

/// Time of the whole, and of each epoch.
fn transactional(writer: &mut TransactionalWriter, records: &[OutputRecord], size: usize) -> (Duration, Vec<Duration>) {
    let epoch = |(id, records): (usize, &[OutputRecord])| {
        let checkpoint = |n| Checkpoint { key: format!("bench/{n}"), value: Some(vec![b'x'; 200]) };
        let checkpoints = (0..CHECKPOINTS).map(checkpoint).collect();
        Epoch { id: id as u64, records: records.to_vec(), checkpoints, source_offsets: Vec::new() }
    };
    let epochs: Vec<_> = records.chunks(size).enumerate().map(epoch).collect();
    let began = Instant::now();
    let mut each = Vec::new();
    for epoch in epochs {
        let began = Instant::now();
        writer.commit(epoch).expect("committed");
        each.push(began.elapsed());
    }
    (began.elapsed(), each)
}

fn main() {
    let cluster = Cluster::start();
    Admin::new(&cluster.config()).expect("a client").create(&specified(Arrival::Create), None).expect("topics");
    let mut writer = TransactionalWriter::fence(WriterConfig {
        kafka: cluster.config(),
        transactional_id: "bench-0".into(),
        group: None,
        transaction_timeout: Duration::from_secs(10),
        clock: BrokerClock::default(),
    })
    .expect("a writer");
    let records = records();
    let bytes: usize = records.iter().map(|record| record.value.len()).sum();
    println!("{RECORDS} records of {} bytes, {CHECKPOINTS} checkpoints an epoch", bytes / RECORDS);
    // The first of each warms up the broker.
    plain(cluster.brokers(), &records);
    transactional(&mut writer, &records, 5_000);
    let rate = |took: Duration| {
        let seconds = took.as_secs_f64();
        format!("{:>8.0} msg/s {:>6.1} MB/s", RECORDS as f64 / seconds, bytes as f64 / 1e6 / seconds)
    };
    for round in 1..=ROUNDS {
        let without = plain(cluster.brokers(), &records);
        println!("round {round}: without transactions   {}", rate(without));
        for size in [2_000, 20_000] {
            let (with, mut each) = transactional(&mut writer, &records, size);
            each.sort();
            println!(
                "round {round}: epochs of {size:>6} records {}  ratio {:.2}  epoch p50 {:?} worst {:?}",
                rate(with),
                without.as_secs_f64() / with.as_secs_f64(),
                each[each.len() / 2],
                each[each.len() - 1],
            );
        }
        let (_, mut each) = transactional(&mut writer, &records[..100], 1);
        each.sort();
        println!("round {round}: epochs of      1 record  p50 {:?} worst {:?}", each[50], each[99]);
    }
}
