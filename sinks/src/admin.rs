//! Makes and verifies the topics.
//!
//! - Input: [`specified`] topics with the partition counts and settings of spec 002 and DESIGN section 3.
//! - Output: what was created, and every [`Difference`] between what should be and what is, in words.
//! - Failure: a topic that is missing at start is an error with the remedy and, for a mistyped one, the nearest
//!   name; it is never created silently. Existing topics are never changed: partitions of a keyed topic cannot
//!   be without moving keys, and settings belong to whoever made them.

mod describe;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use logster_schema::topics::{CHECKPOINT_TOPIC, TRANSITIONS_PARTITIONS, TRANSITIONS_TOPIC};
use logster_schema::{OutputTopic, RawTopic};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

pub use self::describe::Described;
use crate::client::{ClientError, KafkaConfig, LinkContext, block_on};

/// Largest record of a raw topic, in bytes: ten times Kafka's default, as shippers join lines.
pub const MAX_RAW_BYTES: u32 = 10 << 20;
/// Largest record of a topic that Logster writes, in bytes: control characters of a raw record grow six-fold
/// when they are escaped in a dead letter, and a record that cannot be written would stop the run for good.
pub const MAX_OUTPUT_BYTES: u32 = 64 << 20;

/// Whose clock a raw record's timestamp is (`input.arrival`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrival {
    /// The broker's: live topics.
    #[default]
    Append,
    /// A trusted producer's: captures that are played, and tests.
    Create,
}

/// A topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name.
    pub name: String,
    /// Partitions.
    pub partitions: u32,
    /// Settings it is created with.
    pub settings: Vec<(&'static str, String)>,
    /// Which of the settings a run relies on: others may differ.
    pub required: Vec<&'static str>,
}

/// Every topic that a run reads or writes.
pub fn specified(arrival: Arrival) -> Vec<TopicSpec> {
    // Played captures carry old times: by age, the broker would delete them while they are played.
    let kept: &[(&'static str, String)] = match arrival {
        Arrival::Append => &[],
        Arrival::Create => {
            &[("retention.ms", "-1".to_owned()), ("message.timestamp.after.max.ms", i64::MAX.to_string())]
        }
    };
    let stamp = match arrival {
        Arrival::Append => "LogAppendTime",
        Arrival::Create => "CreateTime",
    };
    let input = |name: &str, partitions| TopicSpec {
        name: name.to_owned(),
        partitions,
        settings: [
            &[("message.timestamp.type", stamp.to_owned()), ("max.message.bytes", MAX_RAW_BYTES.to_string())],
            kept,
        ]
        .concat(),
        required: vec!["message.timestamp.type"],
    };
    let output = |topic: OutputTopic| TopicSpec {
        name: topic.name().to_owned(),
        partitions: topic.partitions(),
        // Outputs carry event times, whatever the broker's default is.
        settings: [
            &[("message.timestamp.type", "CreateTime".to_owned()), ("max.message.bytes", MAX_OUTPUT_BYTES.to_string())],
            kept,
        ]
        .concat(),
        required: vec!["message.timestamp.type"],
    };
    // One partition: 70 records an epoch, read to the end at every start. Small segments, so that compaction,
    // which leaves the newest segment alone, keeps that read short.
    let checkpoints = TopicSpec {
        name: CHECKPOINT_TOPIC.to_owned(),
        partitions: 1,
        settings: vec![
            ("cleanup.policy", "compact".to_owned()),
            ("max.message.bytes", MAX_OUTPUT_BYTES.to_string()),
            ("segment.bytes", (16 << 20).to_string()),
            ("min.cleanable.dirty.ratio", "0.1".to_owned()),
            // The answers to our writes tell the broker's clock, which floors of idle partitions follow.
            ("message.timestamp.type", "LogAppendTime".to_owned()),
        ],
        required: vec!["cleanup.policy", "message.timestamp.type"],
    };
    let mut all: Vec<_> = RawTopic::ALL.iter().map(|topic| input(topic.name(), RawTopic::PARTITIONS)).collect();
    all.push(input(TRANSITIONS_TOPIC, TRANSITIONS_PARTITIONS));
    all.extend(OutputTopic::ALL.map(output));
    all.push(checkpoints);
    all
}

/// What a broker says about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTopic {
    /// Partitions.
    pub partitions: u32,
    /// Settings, defaults included.
    pub settings: BTreeMap<String, String>,
}

/// One way in which a topic is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It does not exist.
    Missing {
        /// The topic.
        topic: String,
        /// A topic of the broker with nearly that name.
        nearest: Option<String>,
    },
    /// Another number of partitions. The run works, with other parallelism.
    Partitions {
        /// The topic.
        topic: String,
        /// As specified.
        want: u32,
        /// As found.
        have: u32,
    },
    /// A setting that results rest on has another value.
    Setting {
        /// The topic.
        topic: String,
        /// The setting.
        setting: &'static str,
        /// As specified.
        want: String,
        /// As found.
        have: String,
    },
}

impl Difference {
    /// Whether a run must refuse to start.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Partitions { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { topic, nearest } => {
                write!(f, "topic \"{topic}\" does not exist")?;
                if let Some(nearest) = nearest {
                    write!(f, " (did you mean \"{nearest}\"?)")?;
                }
                write!(f, ": create it with `logster topics create`")
            }
            Self::Partitions { topic, want, have } => {
                write!(f, "topic \"{topic}\" has {have} partitions, specified are {want}; it is used as it is")
            }
            Self::Setting { topic, setting, want, have } => write!(
                f,
                "topic \"{topic}\" has {setting}={have}, needed is {want}: change it with \
                 `kafka-configs.sh --alter --topic {topic} --add-config {setting}={want}`"
            ),
        }
    }
}

/// Compares what should be with what is. `found` holds every topic of the broker.
pub fn differences(specs: &[TopicSpec], found: &BTreeMap<String, FoundTopic>) -> Vec<Difference> {
    let mut all = Vec::new();
    for spec in specs {
        let topic = spec.name.clone();
        let Some(have) = found.get(&topic) else {
            all.push(Difference::Missing { nearest: nearest(&topic, specs, found), topic });
            continue;
        };
        if have.partitions != spec.partitions {
            all.push(Difference::Partitions { topic: topic.clone(), want: spec.partitions, have: have.partitions });
        }
        for &setting in &spec.required {
            let want = spec.settings.iter().find(|(name, _)| *name == setting).map_or("", |(_, value)| value);
            let have = have.settings.get(setting).map_or("", String::as_str);
            if have != want {
                let (want, have) = (want.to_owned(), have.to_owned());
                all.push(Difference::Setting { topic: topic.clone(), setting, want, have });
            }
        }
    }
    all
}

/// The topic that was probably meant: near in spelling and not one of ours by itself.
fn nearest(name: &str, specs: &[TopicSpec], found: &BTreeMap<String, FoundTopic>) -> Option<String> {
    found
        .keys()
        .filter(|other| specs.iter().all(|spec| spec.name != **other))
        .map(|other| (strsim::damerau_levenshtein(name, other), other))
        .filter(|(distance, _)| *distance <= name.len() / 4)
        .min()
        .map(|(_, other)| other.clone())
}

/// What [`Admin::create`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Topics that did not exist.
    pub created: Vec<String>,
    /// What differs in those that did.
    pub differences: Vec<Difference>,
}

/// A connection for looking at topics and making them.
pub struct Admin {
    config: KafkaConfig,
    client: AdminClient<LinkContext>,
    /// For metadata: unlike the admin client, a consumer tells why it has no connection.
    consumer: BaseConsumer<LinkContext>,
}

impl Admin {
    /// Makes the client. The first request finds out whether a broker is there.
    pub fn new(config: &KafkaConfig) -> Result<Self, ClientError> {
        let settings = config.client("admin")?;
        let link = LinkContext::default();
        let consumer = BaseConsumer::from_config_and_context(&settings, link.clone());
        let client = AdminClient::from_config_and_context(&settings, link);
        Ok(Self {
            config: config.clone(),
            client: client.map_err(|e| config.creation_error(e))?,
            consumer: consumer.map_err(|e| config.creation_error(e))?,
        })
    }

    fn error(&self, what: impl Into<String>, error: KafkaError) -> ClientError {
        // Delivers what the client has to say. Not zero: then a log line would end the loop.
        while self.consumer.poll(Duration::from_millis(20)).is_some() {}
        self.config.request_error(what, &self.consumer.context().0, error)
    }

    /// Every topic of the broker and its number of partitions.
    pub fn partitions(&self) -> Result<BTreeMap<String, u32>, ClientError> {
        let metadata = self.consumer.fetch_metadata(None, self.config.timeout);
        let metadata = metadata.map_err(|e| self.error("list its topics", e))?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(topics.map(|topic| (topic.name().to_owned(), topic.partitions().len() as u32)).collect())
    }

    /// Id and partitions of those of `topics` that exist.
    pub fn describe(&self, topics: &[&str]) -> Result<BTreeMap<String, Described>, ClientError> {
        describe::describe(self.client.inner(), topics, self.config.timeout)
            .map_err(|error| self.error("describe topics", error))
    }

    fn found(&self, specs: &[TopicSpec]) -> Result<BTreeMap<String, FoundTopic>, ClientError> {
        let partitions = self.partitions()?;
        let ours: Vec<_> = specs.iter().filter(|spec| partitions.contains_key(&spec.name)).collect();
        let resources: Vec<_> = ours.iter().map(|spec| ResourceSpecifier::Topic(&spec.name)).collect();
        let mut found: BTreeMap<_, _> = partitions
            .into_iter()
            .map(|(name, partitions)| (name, FoundTopic { partitions, settings: BTreeMap::new() }))
            .collect();
        if resources.is_empty() {
            return Ok(found);
        }
        let described = block_on(self.client.describe_configs(&resources, &self.options()));
        let described = described.map_err(|e| self.error("describe topics", e))?;
        for (spec, resource) in ours.into_iter().zip(described) {
            let resource = resource
                .map_err(|code| self.error(format!("describe topic \"{}\"", spec.name), KafkaError::AdminOp(code)))?;
            let settings = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect();
            found.get_mut(&spec.name).expect("filtered by it").settings = settings;
        }
        Ok(found)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.config.timeout)).operation_timeout(Some(self.config.timeout))
    }

    /// Compares the broker's topics with `specs`.
    pub fn check(&self, specs: &[TopicSpec]) -> Result<Vec<Difference>, ClientError> {
        Ok(differences(specs, &self.found(specs)?))
    }

    /// Creates those of `specs` that do not exist; `replication` of `None` is the broker's default.
    ///
    /// Of several callers at once each topic is created by one.
    pub fn create(&self, specs: &[TopicSpec], replication: Option<u16>) -> Result<Created, ClientError> {
        let before = self.found(specs)?;
        let missing: Vec<_> = specs.iter().filter(|spec| !before.contains_key(&spec.name)).collect();
        let replication = replication.map_or(-1, i32::from);
        let new: Vec<_> = missing
            .iter()
            .map(|spec| {
                let new = NewTopic::new(&spec.name, spec.partitions as i32, TopicReplication::Fixed(replication));
                spec.settings.iter().fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        let mut created = Vec::new();
        if !new.is_empty() {
            let results = block_on(self.client.create_topics(&new, &self.options()));
            for result in results.map_err(|e| self.error("create topics", e))? {
                match result {
                    Ok(name) => created.push(name),
                    Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                    Err((name, code)) => {
                        return Err(self.error(format!("create topic \"{name}\""), KafkaError::AdminOp(code)));
                    }
                }
            }
        }
        // The controller has them; brokers learn of them a moment later, and clients ask brokers.
        let deadline = Instant::now() + self.config.timeout;
        while !created.is_empty() {
            let known = self.partitions()?;
            if created.iter().all(|name| known.contains_key(name)) {
                break;
            }
            if Instant::now() > deadline {
                return Err(self.error("show new topics", KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let existing: Vec<_> = specs.iter().filter(|spec| before.contains_key(&spec.name)).cloned().collect();
        Ok(Created { created, differences: differences(&existing, &before) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    fn found(specs: &[TopicSpec]) -> BTreeMap<String, FoundTopic> {
        let topic = |spec: &TopicSpec| FoundTopic {
            partitions: spec.partitions,
            settings: spec.settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        };
        specs.iter().map(|spec| (spec.name.clone(), topic(spec))).collect()
    }

    #[test]
    fn partition_counts_are_the_specified_ones() {
        let counts: Vec<_> = specified(Arrival::Append).into_iter().map(|spec| (spec.name, spec.partitions)).collect();
        let want = [
            ("sysmon-logs", 6),
            ("linux-auditd-logs", 6),
            ("linux-ebpf-process-logs", 6),
            ("linux-ebpf-file-logs", 6),
            ("linux-ebpf-network-logs", 6),
            ("logster-alert-transitions", 3),
            ("normalized-endpoint-events", 12),
            ("logster-inference-results", 6),
            ("logster-alerts", 3),
            ("logster-dead-letters", 3),
            ("logster-checkpoints", 1),
        ];
        assert_eq!(counts, want.map(|(name, n)| (name.to_owned(), n)));
    }

    #[test]
    fn differences_are_told_in_words() {
        let specs = specified(Arrival::Append);
        let mut topics = found(&specs);
        assert_eq!(differences(&specs, &topics), []);

        let moved = topics.remove("sysmon-logs").unwrap();
        topics.insert("sysmon-log".into(), moved);
        topics.remove("logster-alerts").unwrap();
        topics.get_mut("logster-inference-results").unwrap().partitions = 8;
        let stamp = topics.get_mut("linux-auditd-logs").unwrap();
        stamp.settings.insert("message.timestamp.type".into(), "CreateTime".into());
        topics.get_mut("logster-checkpoints").unwrap().settings.insert("cleanup.policy".into(), "delete".into());

        let all = differences(&specs, &topics);
        let said: Vec<_> = all.iter().map(|d| (d.is_fatal(), d.to_string())).collect();
        let want = [
            (
                true,
                "topic \"sysmon-logs\" does not exist (did you mean \"sysmon-log\"?): create it with `logster topics create`",
            ),
            (
                true,
                "topic \"linux-auditd-logs\" has message.timestamp.type=CreateTime, needed is LogAppendTime: change it \
                 with `kafka-configs.sh --alter --topic linux-auditd-logs --add-config \
                 message.timestamp.type=LogAppendTime`",
            ),
            (false, "topic \"logster-inference-results\" has 8 partitions, specified are 6; it is used as it is"),
            (true, "topic \"logster-alerts\" does not exist: create it with `logster topics create`"),
            (
                true,
                "topic \"logster-checkpoints\" has cleanup.policy=delete, needed is compact: change it with \
                 `kafka-configs.sh --alter --topic logster-checkpoints --add-config cleanup.policy=compact`",
            ),
        ];
        assert_eq!(said, want.map(|(fatal, text)| (fatal, text.to_owned())));
    }

    #[test]
    fn nobody_listening_is_said_with_address_and_setting() {
        let mut config = KafkaConfig::plain("127.0.0.1:1");
        config.timeout = Duration::from_millis(500);
        let error = Admin::new(&config).unwrap().partitions().unwrap_err().to_string();
        for part in ["127.0.0.1:1", "0.5 s", "kafka.brokers", "refused"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn topics_are_created_once_and_checked_on_a_broker() {
        let cluster = testkit::Cluster::start();
        let admin = Admin::new(&cluster.config()).unwrap();
        let specs = specified(Arrival::Append);
        assert_eq!(admin.check(&specs).unwrap().len(), specs.len());

        // One exists already, with other partitions.
        let mut other = specs[0].clone();
        other.partitions = 2;
        assert_eq!(admin.create(&[other], None).unwrap().created, ["sysmon-logs"]);
        let done = admin.create(&specs, Some(1)).unwrap();
        assert_eq!(done.created.len(), specs.len() - 1);
        let differs = [Difference::Partitions { topic: "sysmon-logs".into(), want: 6, have: 2 }];
        assert_eq!(done.differences, differs);
        assert_eq!(admin.create(&specs, None).unwrap().created, [""; 0]);
        assert_eq!(admin.check(&specs).unwrap(), differs);

        // Made for live input, they are refused for replays: five raw topics and the transitions.
        let replay = admin.check(&specified(Arrival::Create)).unwrap();
        assert_eq!(replay.iter().filter(|d| d.is_fatal()).count(), 6);

        let too_many = admin.create(&[TopicSpec { name: "a".into(), ..specs[0].clone() }], Some(3));
        assert!(matches!(too_many, Err(ClientError::Refused { .. })), "{too_many:?}");
    }
}
