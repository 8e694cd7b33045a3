//! Configuration: one TOML file, environment variables over it, the command line over both.
//!
//! Every setting is declared once, in the table below: name, type, default, range, documentation. From the
//! table come parsing, validation, `LOGSTER_<SECTION>_<KEY>`, the commented default file and the reference
//! (`docs/generated/`). To add a setting, add its line there, then make the documents again with
//!
//! ```text
//! LOGSTER_BLESS=1 cargo test --release -p logster-dataflow generated
//! ```
//!
//! [`Config`] can only be had from [`Config::load`], so whoever holds one holds a valid one. What a value
//! says alone is judged by its type ([`value`]), what two settings say about each other in `check.rs`.
//! All mistakes are reported at once, each with file, line, column and key.

mod check;
pub mod document;
mod layers;
mod problem;
#[cfg(test)]
mod tests;
pub mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use logster_schema::{RawTopic, TimeLimits};
use logster_sinks::client::{self, KafkaConfig};

pub use layers::{ENV_PREFIX, File, Override};
pub use problem::{Origin, Problem, Problems};
use value::{
    AlertingLevel, Arrival, Bytes, Device, Fallback, InputSource, LogFilter, LogFormat, Mechanism, Properties,
    Protocol, Secret, Span, Speed, Value,
};

/// One setting, as the table declares it.
pub struct Setting {
    /// `section.key`.
    pub path: &'static str,
    /// Documentation, one entry a line of the table.
    pub doc: &'static [&'static str],
    /// Default in TOML; `None` when the setting is unset by default.
    pub default: fn() -> Option<String>,
    /// Smallest and greatest value, in TOML.
    pub range: Option<(&'static str, &'static str)>,
    /// "a duration such as ...": what it must be.
    pub kind: fn() -> String,
    /// Comes from the environment or a file of its own, and is never printed.
    pub secret: bool,
    /// A shorter environment variable that means the same.
    pub short_env: Option<&'static str>,
}

impl Setting {
    /// Its environment variable: `LOGSTER_<SECTION>_<KEY>`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "_").to_uppercase())
    }

    /// Its name within the section.
    pub fn key(&self) -> &'static str {
        self.path.rsplit('.').next().expect("split gives at least one part")
    }
}

/// One section of the file, as the table declares it.
pub struct Section {
    /// Name in the file, `kafka.security`.
    pub path: &'static str,
    /// Documentation.
    pub doc: &'static [&'static str],
    /// Its settings, in the order of the table.
    pub settings: &'static [Setting],
}

macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        [$path:literal] $field:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $ty:ty = $default:tt $(in $low:literal ..= $high:literal)? $(or $short:literal)?;
            )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $key: $ty,)+
            }
        )+

        /// Every section. Fields are documented in `docs/generated/config.md` as well.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $($(#[doc = $section_doc])+ pub $field: $Section,)+
        }

        impl Settings {
            fn read(values: &mut layers::Values) -> Self {
                Self {
                    $($field: $Section {
                        $($key: values.take(
                            concat!($path, ".", stringify!($key)),
                            stringify!($default),
                            |_value: &$ty| {
                                $(if *_value < layers::literal(stringify!($low)) || *_value > layers::literal(stringify!($high)) {
                                    return Some(concat!(stringify!($low), " to ", stringify!($high)).to_owned());
                                })?
                                None
                            },
                        ),)+
                    },)+
                }
            }

            /// Every setting's value in TOML, `None` where unset, in the order of the table.
            fn rendered(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$($((concat!($path, ".", stringify!($key)), self.$field.$key.toml()),)+)+]
            }
        }

        /// The table: every section with its settings.
        pub static SECTIONS: &[Section] = &[$(Section {
            path: $path,
            doc: &[$($section_doc),+],
            settings: &[$(Setting {
                path: concat!($path, ".", stringify!($key)),
                doc: &[$($doc),+],
                default: || layers::literal::<$ty>(stringify!($default)).toml(),
                range: settings!(@range $($low, $high)?),
                kind: <$ty as Value>::kind,
                secret: <$ty as Value>::SECRET,
                short_env: settings!(@short $($short)?),
            },)+],
        },)+];
    };
    (@range) => { None };
    (@range $low:literal, $high:literal) => { Some((stringify!($low), stringify!($high))) };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
}

settings! {
    /// Where raw records come from and how their times are read.
    ["input"] input: Input {
        /// Where raw records come from: files on this machine or the five raw topics of a broker.
        source: InputSource = "file";
        /// A file, a directory that is read in the order of file names, or `-` for standard input.
        /// NDJSON, plain, .gz or .zst: lines of `{"topic","value"}`, or bare messages with `input.topic`.
        path: Option<PathBuf> = none;
        /// The raw topic of lines that are bare messages, without an envelope.
        topic: Option<RawTopic> = none;
        /// How fast files are played: as fast as possible, or in the rhythm of their arrival times.
        speed: Speed = "max";
        /// Whose clock stamps raw records in Kafka. `append` is the broker's (topics with LogAppendTime, what
        /// `logster topics create` makes). `create` trusts the producer's, for replays of captures only.
        arrival: Arrival = "append";
        /// How long after its event time a record may arrive and still count as live; later ones are
        /// backfill. Results wait this long for stragglers.
        max_lateness: Span = "10s" in "0s"..="1h";
        /// How far ahead of its arrival an event time may lie. Beyond that it is clamped, marked and counted.
        max_skew: Span = "10s" in "0s"..="1h";
        /// How far behind its arrival an event time may lie. Beyond that it is clamped, marked and counted.
        max_backfill: Span = "24h" in "0s"..="30d";
        /// Backfill windows that one endpoint may have open at once; then the oldest is closed first.
        max_open_backfill_windows: u32 = 64 in 1..=10000;
        /// A larger message is a dead letter. The default is 1 MiB and a margin for what shippers wrap around it.
        max_message_bytes: Bytes = "1088KiB" in "1KiB"..="64MiB";
    }

    /// The broker. Used when `input.source` is "kafka" and by `logster produce` and `logster topics`.
    ["kafka"] kafka: Kafka {
        /// Brokers to ask for the cluster's layout, as `host:port`.
        brokers: Vec<String> = ["localhost:9092"];
        /// Consumer group that offsets are committed to. For other tools to see the lag: recovery reads
        /// the checkpoints instead.
        group_id: String = "logster";
        /// Copies of each partition that `logster topics create` asks for. Unset: what the broker is set to.
        replication_factor: Option<u16> = none;
        /// How long a broker may take to answer a request when a run starts.
        timeout: Span = "10s" in "100ms"..="10m";
        /// Further librdkafka properties, handed on as they are to every client. Those that Logster decides
        /// itself are refused.
        extra: Properties = {};
    }

    /// How the broker is spoken to. Without TLS, whoever reaches the broker can feed and read everything.
    ["kafka.security"] kafka_security: KafkaSecurity {
        /// Encryption and proof of identity.
        protocol: Protocol = "plaintext";
        /// SASL mechanism, with the sasl protocols.
        mechanism: Option<Mechanism> = none;
        /// SASL user.
        username: Option<String> = none;
        /// SASL password. From the environment only; never in this file.
        password: Option<Secret> = none;
        /// File with the SASL password, readable by its owner (and group) only. A final newline is cut off.
        password_file: Option<PathBuf> = none;
        /// Certificates of the authorities that may vouch for the broker (PEM). Unset: the system's.
        ca_file: Option<PathBuf> = none;
        /// This client's certificate (PEM), where the broker asks for one.
        certificate_file: Option<PathBuf> = none;
        /// Key of that certificate (PEM), readable by its owner (and group) only.
        key_file: Option<PathBuf> = none;
        /// Password of that key. From the environment only; never in this file.
        key_password: Option<Secret> = none;
    }

    /// Where results go when they do not go to Kafka.
    ["output"] output: Output {
        /// Directory for `<topic>.ndjson`, one `{"key","ts","value"}` a line. Unset: a run on files keeps
        /// its results in memory and prints the alerts.
        dir: Option<PathBuf> = none;
    }

    /// Windows and the graphs made of them.
    ["inference"] inference: Inference {
        /// Length of a window of one endpoint's activity.
        window: Span = "3m" in "1s"..="1h";
        /// How often an active endpoint's window is closed and judged. Must divide the window.
        interval: Span = "30s" in "1s"..="1h";
        /// Linux: a window all of whose processes are on the list is benign without asking the model.
        use_idle_allowlist: bool = true;
        /// Names of daemons that idle systems run: bare for programs in the system's own directories, whole
        /// paths for others. Name nothing that runs what it is told.
        idle_allowlist: Vec<String> = [
            "agetty", "atd", "auditd", "chronyd", "cron", "crond", "dbus-broker", "dbus-daemon", "init", "irqbalance",
            "ntpd", "polkitd", "rsyslogd", "sshd", "sshd-session", "systemd", "systemd-journald", "systemd-logind",
            "systemd-networkd", "systemd-resolved", "systemd-timesyncd", "systemd-udevd", "unix_chkpwd"
        ];
        /// Budget: events of one endpoint that go into one window's graph. Above it they are sampled,
        /// deterministically, counted and flagged on the result; they are still normalized and published.
        max_events_per_window: u32 = 300000 in 100..=10000000;
    }

    /// The models and the machine they run on.
    ["model"] model: Model {
        /// Directory of the model packages, one folder a platform.
        packages: PathBuf = "models/packages";
        /// Directory of packages that score beside those in use, laid out like `packages`; a platform may be missing.
        /// Their verdicts are compared in `logster_shadow_*` metrics and published nowhere.
        shadow: Option<PathBuf> = none;
        /// What scores.
        device: Device = "cpu";
        /// What happens when the device cannot be had: refuse to start, or score on the processor.
        fallback: Fallback = "none";
        /// ONNX Runtime's shared library. Unset: .tools/onnxruntime/ below the working directory, then the
        /// directory of the `logster` binary.
        runtime: Option<PathBuf> = none or "LOGSTER_ONNXRUNTIME";
        /// Scoring threads of this process; 0 takes one a worker.
        threads: u32 = 0 in 0..=1024;
        /// Edges that one call of the model takes at most. 2,000 to 8,000 suit a processor's caches; a GPU
        /// wants 100,000 and more.
        max_batch_edges: u32 = 8192 in 1..=262144;
    }

    /// Sigma rules, evaluated on every event beside the model. `logster rules check` says what is wrong with them.
    ["rules"] rules: Rules {
        /// Files and folders of Sigma rules (.yml, .yaml; folders with all that is below). Empty: none.
        paths: Vec<String> = [];
        /// A match of a rule of this level and above is a detection, alone too: medium, high and critical rules raise
        /// alerts of that severity. Matches of lower levels are shown with the window.
        min_level: AlertingLevel = "high";
    }

    /// From detections to alerts.
    ["alerts"] alerts: Alerts {
        /// An `attack_prob` below this raises no alert; from here on its severity is MEDIUM.
        min_threshold: f64 = 0.7 in 0.0..=1.0;
        /// From here on an alert is HIGH.
        high_threshold: f64 = 0.85 in 0.0..=1.0;
        /// From here on an alert is CRITICAL.
        critical_threshold: f64 = 0.95 in 0.0..=1.0;
        /// Detections of one endpoint merge into its open alert while they follow each other within this.
        dedup_window_seconds: u32 = 300 in 1..=86400;
        /// Alerts of one tenant within this of each other are related.
        correlation_window_seconds: u32 = 60 in 1..=86400;
        /// How long after its last change an alert still takes analysts' decisions. Its state is dropped then.
        retention: Span = "7d" in "1m"..="90d";
    }

    /// Exactly-once output.
    ["checkpoint"] checkpoint: Checkpoint {
        /// Name of this deployment: prefix of its transactional ids. Two that share brokers need two names.
        job: String = "logster";
        /// Milliseconds between commits. Outputs become visible this often, all or nothing.
        epoch_ms: u32 = 250 in 10..=2000;
    }

    /// Several processes. How many there are, and which one this is, is said on the command line.
    ["cluster"] cluster: Cluster {
        /// Parts that keyed state is split into. Fixed for the life of a deployment; at least one a worker.
        shards: u32 = 64 in 1..=4096;
        /// A peer from which nothing is heard for six of these is lost, and the run ends.
        heartbeat: Span = "500ms" in "50ms"..="1m";
        /// Let processes talk without TLS, to whoever connects. For a single machine or a private wire.
        insecure: bool = false;
    }

    /// Mutual TLS between processes. All three, or none.
    ["cluster.tls"] cluster_tls: ClusterTls {
        /// Certificate of the authority that vouches for the peers (PEM).
        ca: Option<PathBuf> = none;
        /// This process's certificate (PEM).
        cert: Option<PathBuf> = none;
        /// Key of that certificate (PEM), readable by its owner (and group) only.
        key: Option<PathBuf> = none;
    }

    /// Metrics and health.
    ["http"] http: Http {
        /// Serve /metrics and /health.
        enabled: bool = true;
        /// Address to listen on; port 0 takes a free one.
        bind: SocketAddr = "127.0.0.1:9464";
        /// Allow an address that other machines reach. There is no login: put a proxy or a firewall before it.
        allow_remote: bool = false;
        /// A worker that has not moved for this long makes the process count as dead (/health/live).
        stall_after: Span = "30s" in "1s"..="1h";
    }

    /// Log lines, on standard error.
    ["log"] log: Log {
        /// Shape of the lines.
        format: LogFormat = "text";
        /// A level, or directives for single modules.
        level: LogFilter = "info" or "LOGSTER_LOG";
    }
}

/// A valid configuration. Reads like [`Settings`]: `config.inference.window.ms()`.
#[derive(Clone, Debug)]
pub struct Config {
    settings: Settings,
    origins: BTreeMap<&'static str, Origin>,
}

impl Deref for Config {
    type Target = Settings;
    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::load(None, &[], &[]).expect("the defaults are valid")
    }
}

impl Config {
    /// Puts the layers together and checks them. Touches the disk only for the files that settings name.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn load(file: Option<File<'_>>, env: &[(String, String)], overrides: &[Override]) -> Result<Self, Problems> {
        let mut values = layers::Values::gather(file, env, overrides);
        let mut settings = Settings::read(&mut values);
        check::check(&mut settings, &mut values);
        let all = SECTIONS.iter().flat_map(|section| section.settings);
        let origins = all.map(|setting| (setting.path, values.origin(setting.path))).collect();
        let mut problems = values.problems;
        problems.sort_by(|a, b| a.places.cmp(&b.places));
        if problems.is_empty() { Ok(Self { settings, origins }) } else { Err(Problems(problems)) }
    }

    /// The configuration of this process: `file` if there is one, this process's environment, `overrides`.
    ///
    /// # Errors
    /// Every mistake found, a file that cannot be read included.
    pub fn of_process(file: Option<&Path>, overrides: &[Override]) -> Result<Self, Problems> {
        let env: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let Some(path) = file else { return Self::load(None, &env, overrides) };
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| {
            let what = format!("cannot read the configuration file {name}: {error}");
            Problems(vec![Problem {
                what,
                places: Vec::new(),
                remedy: Some("`logster config default` prints one".into()),
            }])
        })?;
        // Never lossy: a replaced byte would be reported far from where it stands.
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            let places = vec![Origin::File { name: name.clone(), line, column: 1 }];
            let remedy = Some("save the file as UTF-8".into());
            Problems(vec![Problem { what: "not UTF-8".into(), places, remedy }])
        })?;
        Self::load(Some(File { name: &name, text: &text }), &env, overrides)
    }

    /// Settings that somebody has set to something else than the default: path, value, origin. Secrets hidden.
    pub fn effective(&self) -> Vec<(&'static str, String, &Origin)> {
        let defaults = SECTIONS.iter().flat_map(|section| section.settings).map(|setting| (setting.default)());
        let rendered = self.settings.rendered().into_iter().zip(defaults);
        rendered
            .filter_map(|((path, value), default)| {
                let origin = &self.origins[path];
                let shown = value.clone().unwrap_or_else(|| "(unset)".into());
                (*origin != Origin::Default && value != default).then_some((path, shown, origin))
            })
            .collect()
    }

    /// Time rules of the input.
    pub fn time_limits(&self) -> TimeLimits {
        TimeLimits {
            max_lateness_ms: self.input.max_lateness.ms(),
            max_skew_ms: self.input.max_skew.ms(),
            max_backfill_ms: self.input.max_backfill.ms(),
        }
    }

    /// How to reach the broker, for every client. Holds secrets.
    pub fn kafka_config(&self) -> KafkaConfig {
        let security = &self.kafka_security;
        let secret = |secret: &Option<Secret>| secret.as_ref().map(|secret| client::Secret(secret.expose().to_owned()));
        KafkaConfig {
            brokers: self.kafka.brokers.join(","),
            security: client::Security {
                protocol: match security.protocol {
                    Protocol::Plaintext => client::Protocol::Plaintext,
                    Protocol::Ssl => client::Protocol::Ssl,
                    Protocol::SaslPlaintext => client::Protocol::SaslPlaintext,
                    Protocol::SaslSsl => client::Protocol::SaslSsl,
                },
                sasl_mechanism: security.mechanism.map(|mechanism| mechanism.name().to_owned()),
                username: security.username.clone(),
                // Of either source: the file has been read by now.
                password: secret(&security.password),
                password_file: None,
                ssl_ca: security.ca_file.clone(),
                ssl_certificate: security.certificate_file.clone(),
                ssl_key: security.key_file.clone(),
                ssl_key_password: secret(&security.key_password),
            },
            extra: self.kafka.extra.clone(),
            timeout: self.kafka.timeout.duration(),
        }
    }

    /// ONNX Runtime's shared library: `model.runtime`, else the places where set-up puts it.
    ///
    /// `None` when there is none; the caller says what to do about it.
    pub fn onnx_runtime(&self) -> Option<PathBuf> {
        if let Some(path) = &self.model.runtime {
            return Some(path.clone());
        }
        let beside_binary = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let places = [Some(PathBuf::from(".tools/onnxruntime")), beside_binary];
        places.into_iter().flatten().find_map(|dir| onnx_runtime_in(&dir))
    }
}

fn onnx_runtime_in(dir: &Path) -> Option<PathBuf> {
    let is_library = |path: &PathBuf| path.file_name()?.to_str()?.starts_with("libonnxruntime.so").then_some(());
    let paths = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    // The greatest name is the newest of several versions, whatever order the directory has.
    paths.filter(|path| is_library(path).is_some()).max()
}
