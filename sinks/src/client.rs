//! How to reach Kafka, and what every client of ours has in common.
//!
//! - Input: [`KafkaConfig`], as the `[kafka]` table of the configuration says it.
//! - Output: librdkafka configurations for the clients of this crate.
//! - Failure: [`ClientError`] names the setting to look at. Passwords and keys are never printed, logged or
//!   put into an error.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::writer::default_setting;

/// A password or key. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How to reach Kafka.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas (`kafka.brokers`).
    pub brokers: String,
    /// How to prove who we are, and that the broker is who it should be (`kafka.security`).
    pub security: Security,
    /// Any other librdkafka setting (`kafka.extra`), except those that our guarantees rest on.
    pub extra: BTreeMap<String, String>,
    /// How long to wait for an answer to a request at start.
    pub timeout: Duration,
}

impl KafkaConfig {
    /// An unprotected broker, as in tests and on a loopback address.
    pub fn plain(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            security: Security::default(),
            extra: BTreeMap::new(),
            timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for KafkaConfig {
    /// Without the values of `extra`: any of them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("security", &self.security)
            .field("extra", &self.extra.keys())
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Encryption and authentication.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// With or without TLS and SASL.
    pub protocol: Protocol,
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub sasl_mechanism: Option<String>,
    /// SASL user.
    pub username: Option<String>,
    /// SASL password.
    pub password: Option<Secret>,
    /// File that holds the SASL password; a final line end is not part of it.
    pub password_file: Option<PathBuf>,
    /// Certificates that brokers' ones must chain to, PEM.
    pub ssl_ca: Option<PathBuf>,
    /// Our certificate, PEM.
    pub ssl_certificate: Option<PathBuf>,
    /// Our private key, PEM.
    pub ssl_key: Option<PathBuf>,
    /// Passphrase of the private key.
    pub ssl_key_password: Option<Secret>,
}

/// `kafka.security.protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS; with a certificate of ours, mutual.
    Ssl,
    /// SASL in the clear.
    SaslPlaintext,
    /// SASL within TLS.
    SaslSsl,
}

impl Protocol {
    /// As Kafka spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
        }
    }
}

/// Kafka cannot be reached, or not as configured.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A setting that librdkafka refuses, or that is not the user's to make.
    #[error("setting \"{setting}\": {reason}")]
    Setting {
        /// Where it stands in our configuration.
        setting: String,
        /// What is wrong with it; never its value.
        reason: String,
    },
    /// The password file cannot be read.
    #[error("could not read the file that kafka.security.password_file names (\"{}\")", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No broker answered.
    #[error("no answer from Kafka at {brokers} within {} s ({reason}): see {setting}", waited.as_secs_f32())]
    Unreachable {
        /// Where we tried.
        brokers: String,
        /// How long.
        waited: Duration,
        /// What the client last said about its connections.
        reason: String,
        /// The setting to look at first.
        setting: &'static str,
    },
    /// Records of a topic stay invisible: somebody's transaction does not end.
    #[error(
        "an open transaction holds back \"{topic}\" partition {partition} for more than {} s: \
         kafka-transactions.sh find-hanging names it", waited.as_secs_f32()
    )]
    HeldBack {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// How long we waited.
        waited: Duration,
    },
    /// A broker answered with an error.
    #[error("Kafka at {brokers} refused to {what}")]
    Refused {
        /// Where we asked.
        brokers: String,
        /// What we asked for.
        what: String,
        /// What it said.
        #[source]
        source: Box<KafkaError>,
    },
}

/// How long a broker may take for an answer before its client asks another one (`kafka.extra."socket.timeout.ms"`).
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// librdkafka settings that exactly-once, replay or this crate's own threads rest on.
const OURS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "message.send.max.retries",
    "metadata.broker.list",
    "request.required.acks",
    "retries",
    "transaction.timeout.ms",
    "transactional.id",
];

impl KafkaConfig {
    /// What all clients share. `role` ends up in broker logs as part of the client id.
    pub(crate) fn client(&self, role: &str) -> Result<ClientConfig, ClientError> {
        let mut client = ClientConfig::new();
        for (key, value) in &self.extra {
            if OURS.contains(&key.as_str()) {
                return Err(ClientError::Setting {
                    setting: format!("kafka.extra.\"{key}\""),
                    reason: "Logster sets this itself, as what it guarantees depends on it".into(),
                });
            }
            client.set(key, value);
        }
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("logster-{role}"))
            .set("allow.auto.create.topics", "false")
            // A broker that is back is found within a second, not after the default of ten.
            .set("reconnect.backoff.max.ms", "1000")
            .set("log.connection.close", "false");
        // A broker that hangs keeps its connections: only requests that time out send a client to the next leader.
        default_setting(&mut client, "socket.timeout.ms", &ANSWER_TIMEOUT.as_millis().to_string());
        let s = &self.security;
        client.set("security.protocol", s.protocol.name());
        let password = match (&s.password, &s.password_file) {
            (Some(password), _) => Some(password.0.clone()),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ClientError::PasswordFile { path: path.clone(), source })?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (None, None) => None,
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        for (key, value) in [
            ("sasl.mechanism", s.sasl_mechanism.clone()),
            ("sasl.username", s.username.clone()),
            ("sasl.password", password),
            ("ssl.ca.location", path(&s.ssl_ca)),
            ("ssl.certificate.location", path(&s.ssl_certificate)),
            ("ssl.key.location", path(&s.ssl_key)),
            ("ssl.key.password", s.ssl_key_password.as_ref().map(|secret| secret.0.clone())),
        ] {
            if let Some(value) = value {
                client.set(key, value);
            }
        }
        Ok(client)
    }

    /// Names the setting behind an error of client creation, without its value.
    pub(crate) fn creation_error(&self, error: KafkaError) -> ClientError {
        match error {
            KafkaError::ClientConfig(_, reason, key, value) => {
                let setting = match key.as_str() {
                    _ if self.extra.contains_key(&key) => format!("kafka.extra.\"{key}\""),
                    "bootstrap.servers" => "kafka.brokers".into(),
                    _ => format!("kafka.security (librdkafka's {key})"),
                };
                let reason = if value.is_empty() { reason } else { reason.replace(&value, "…") };
                ClientError::Setting { setting, reason }
            }
            // Everything else that creation checks has to do with keys, certificates and mechanisms.
            KafkaError::ClientCreation(reason) => ClientError::Setting { setting: "kafka.security".into(), reason },
            error => ClientError::Refused {
                brokers: self.brokers.clone(),
                what: "create a client".into(),
                source: error.into(),
            },
        }
    }

    /// Turns the error of a request into "nobody answered" or "it said no".
    pub(crate) fn request_error(&self, what: impl Into<String>, link: &Link, error: KafkaError) -> ClientError {
        let unanswered = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::OperationTimedOut
                    | RDKafkaErrorCode::MessageTimedOut
                    | RDKafkaErrorCode::RequestTimedOut
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SSL
            )
        );
        if !unanswered {
            return ClientError::Refused { brokers: self.brokers.clone(), what: what.into(), source: error.into() };
        }
        let (setting, reason) = match link.last_error() {
            // Broken handshakes mostly come as plain transport failures, told by their words only.
            Some((code, reason))
                if code == RDKafkaErrorCode::Authentication
                    || ["SSL", "SASL", "security.protocol"].iter().any(|word| reason.contains(word)) =>
            {
                ("kafka.security", reason)
            }
            Some((_, reason)) => ("kafka.brokers", reason),
            None => ("kafka.brokers", error.to_string()),
        };
        ClientError::Unreachable { brokers: self.brokers.clone(), waited: self.timeout, reason, setting }
    }
}

/// What a client says about its connections: counted, kept for error messages, logged.
#[derive(Default)]
pub(crate) struct Link {
    errors: AtomicU64,
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Link {
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().expect("no panic while held").clone()
    }

    fn note(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        // The end of a partition comes along the same way and is none.
        if code == RDKafkaErrorCode::PartitionEOF {
            return;
        }
        self.errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, reason, "kafka connection");
        let mut last = self.last.lock().expect("no panic while held");
        // "All brokers are down" says less than the error of the last one that went.
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((code, reason.to_owned()));
        }
    }
}

/// The context of clients that need no callbacks of their own; others forward to it.
#[derive(Clone, Default)]
pub(crate) struct LinkContext(pub(crate) Arc<Link>);

impl ClientContext for LinkContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // What matters comes again as an error, with a code; lines are for those who look closer.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, line, "librdkafka")
            }
            _ => tracing::debug!(facility, line, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for LinkContext {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(%error, "could not show progress in the consumer group");
        }
    }
}

/// Waits for a future of rdkafka's admin client, which has a thread of its own to complete it.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Errors that outages, restarts and changes of leadership bring: the client goes on by itself.
pub(crate) fn is_temporary(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::BrokerNotAvailable
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::KafkaStorageError
            | Code::OffsetNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
    )
}

/// First offset and end of a partition; waits out changes of leadership, as just after a topic is created.
pub(crate) fn watermarks(
    consumer: &BaseConsumer<LinkContext>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<(i64, i64), KafkaError> {
    let asked = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, timeout) {
            Err(error) if error.rdkafka_error_code().is_some_and(is_temporary) && asked.elapsed() + RETRY < timeout => {
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

/// Between questions that have no answer yet.
const RETRY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use rdkafka::config::FromClientConfig;
    use rdkafka::consumer::DefaultConsumerContext;

    use super::*;

    fn creation_error(config: &KafkaConfig) -> String {
        let client = match config.client("test") {
            Ok(client) => client,
            Err(error) => return error.to_string(),
        };
        match BaseConsumer::<DefaultConsumerContext>::from_config(&client) {
            Ok(_) => "none".into(),
            Err(error) => config.creation_error(error).to_string(),
        }
    }

    #[test]
    fn settings_pass_through_and_errors_name_them_without_values() {
        let with = |key: &str, value: &str| {
            let mut config = KafkaConfig::plain("127.0.0.1:1");
            config.extra.insert(key.into(), value.into());
            creation_error(&config)
        };
        assert_eq!(with("socket.keepalive.enable", "true"), "none");
        let unknown = with("no.such.setting", "hunter2");
        assert!(unknown.contains(r#"kafka.extra."no.such.setting""#) && !unknown.contains("hunter2"), "{unknown}");
        let invalid = with("socket.timeout.ms", "hunter2");
        assert!(invalid.contains("socket.timeout.ms") && !invalid.contains("hunter2"), "{invalid}");
        let ours = with("enable.idempotence", "false");
        assert!(ours.contains("Logster sets this itself"), "{ours}");
    }

    #[test]
    fn security_is_passed_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let mut config = KafkaConfig::plain("127.0.0.1:1");
        config.security = Security {
            protocol: Protocol::SaslPlaintext,
            sasl_mechanism: Some("PLAIN".into()),
            username: Some("logster".into()),
            password_file: Some(file.clone()),
            ssl_key_password: Some(Secret("hunter2".into())),
            ..Security::default()
        };
        config.extra.insert("ssl.keystore.password".into(), "hunter2".into());
        let client = config.client("test").unwrap();
        assert_eq!(client.get("sasl.password"), Some("hunter2"));
        assert_eq!(client.get("security.protocol"), Some("SASL_PLAINTEXT"));
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");

        std::fs::remove_file(&file).unwrap();
        assert!(creation_error(&config).contains("kafka.security.password_file"));
        config.security.password = Some(Secret("hunter2".into()));
        config.security.sasl_mechanism = Some("NONSENSE".into());
        let error = creation_error(&config);
        assert!(error.contains("kafka.security") && !error.contains("hunter2"), "{error}");
    }

    /// A broker that speaks TLS with client certificates, and asks for a password within it.
    #[test]
    fn tls_and_passwords_work_and_what_is_wrong_is_named() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

        use crate::admin::{Admin, Arrival, specified};
        use crate::epoch::{Epoch, Sink};
        use crate::testkit::Cluster;
        use crate::writer::{TransactionalWriter, WriterConfig};

        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // Of its own: a certificate whose issuer has its name is taken for self-signed.
        ca.distinguished_name.push(DnType::CommonName, "test authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let ca_file = write("ca.pem", &ca.pem());
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
            (key.serialize_pem(), certificate.pem())
        };
        let (key, certificate) = issue("127.0.0.1");
        let keystore = write("broker.pem", &(key + &certificate));
        let (key, certificate) = issue("logster");
        let (key, certificate) = (write("key.pem", &key), write("certificate.pem", &certificate));
        let password = write("password", "hunter2\n");
        let cluster = Cluster::start_with(
            1,
            &[
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_SSL",
                "sasl.enabled.mechanisms=PLAIN",
                "sasl.mechanism.inter.broker.protocol=PLAIN",
                "listener.name.plaintext.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required username=\"broker\" \
                 password=\"secret\" user_broker=\"secret\" user_logster=\"hunter2\";",
                "listener.name.plaintext.ssl.client.auth=required",
                "ssl.keystore.type=PEM",
                &format!("ssl.keystore.location={}", keystore.display()),
                "ssl.truststore.type=PEM",
                &format!("ssl.truststore.location={}", ca_file.display()),
            ],
        );
        let mut kafka = cluster.config();
        kafka.security = Security {
            protocol: Protocol::SaslSsl,
            sasl_mechanism: Some("PLAIN".into()),
            username: Some("logster".into()),
            password_file: Some(password),
            ssl_ca: Some(ca_file),
            ssl_certificate: Some(certificate),
            ssl_key: Some(key),
            ..Security::default()
        };
        Admin::new(&kafka).unwrap().create(&specified(Arrival::Append), None).unwrap();
        let (transactional_id, transaction_timeout) = ("secured-0".into(), Duration::from_secs(10));
        let clock = crate::writer::BrokerClock::default();
        let config = WriterConfig { kafka: kafka.clone(), transactional_id, group: None, transaction_timeout, clock };
        TransactionalWriter::fence(config).unwrap().commit(Epoch::default()).unwrap();

        kafka.timeout = Duration::from_secs(2);
        let refused = |change: &dyn Fn(&mut Security)| {
            let mut kafka = kafka.clone();
            change(&mut kafka.security);
            let error = Admin::new(&kafka).and_then(|admin| admin.partitions()).unwrap_err();
            assert!(matches!(error, ClientError::Unreachable { setting: "kafka.security", .. }), "{error}");
            error.to_string()
        };
        let error = refused(&|security| security.password = Some(Secret("hunter3".into())));
        assert!(error.contains("Authentication failed") && !error.contains("hunter"), "{error}");
        let error = refused(&|security| security.ssl_ca = None);
        assert!(error.contains("certificate verify failed"), "{error}");
        let error = refused(&|security| (security.ssl_certificate, security.ssl_key) = (None, None));
        assert!(error.contains("SSL"), "{error}");
    }

    #[test]
    fn futures_complete_from_another_thread() {
        let (done, waited) = futures_channel();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            done();
        });
        block_on(waited);
        thread.join().unwrap();
    }

    /// A future and what completes it.
    fn futures_channel() -> (impl FnOnce() + Send, impl Future<Output = ()>) {
        let shared = Arc::new(Mutex::new((false, None::<Waker>)));
        let theirs = shared.clone();
        let done = move || {
            let mut state = theirs.lock().unwrap();
            state.0 = true;
            state.1.take().unwrap().wake();
        };
        let future = std::future::poll_fn(move |cx| {
            let mut state = shared.lock().unwrap();
            state.1 = Some(cx.waker().clone());
            if state.0 { Poll::Ready(()) } else { Poll::Pending }
        });
        (done, future)
    }
}
