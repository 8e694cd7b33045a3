//! What settings say about each other, and whether the files they name can be used.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::Settings;
use super::layers::Values;
use super::problem::{Origin, Problem};
use super::value::{Device, Secret};

/// Appends every contradiction to the problems of `values` and reads the password file into `settings`.
pub(super) fn check(settings: &mut Settings, values: &mut Values) {
    input(settings, values);
    inference(settings, values);
    model(settings, values);
    rules(settings, values);
    alerts(settings, values);
    kafka(settings, values);
    security(settings, values);
    cluster(settings, values);
    http(settings, values);
}

impl Values {
    /// Unless `holds`, a problem with the settings `paths` together. Silent where one of them has been
    /// refused already: a default stands in for it, and the complaint would mislead.
    fn require(&mut self, paths: &[&str], holds: bool, what: impl Into<String>, remedy: impl Into<String>) {
        if holds || paths.iter().any(|path| self.is_refused(path)) {
            return;
        }
        let mut places: Vec<Origin> =
            paths.iter().map(|path| self.origin(path)).filter(|origin| *origin != Origin::Default).collect();
        places.sort();
        self.problems.push(Problem { what: what.into(), places, remedy: Some(remedy.into()) });
    }
}

fn input(settings: &Settings, values: &mut Values) {
    let input = &settings.input;
    values.require(
        &["input.max_backfill", "input.max_lateness"],
        input.max_backfill >= input.max_lateness,
        format!(
            "`input.max_backfill` ({}) is less than `input.max_lateness` ({})",
            input.max_backfill, input.max_lateness
        ),
        "a live record may be as old as max_lateness: let max_backfill reach at least as far",
    );
}

fn inference(settings: &Settings, values: &mut Values) {
    let inference = &settings.inference;
    let (window, interval) = (inference.window, inference.interval);
    let both = ["inference.window", "inference.interval"];
    values.require(
        &both,
        window >= interval,
        format!("`inference.window` ({window}) is less than `inference.interval` ({interval})"),
        "what happens between two windows would never be judged: make the window at least as long",
    );
    values.require(
        &both,
        window < interval || window.ms() % interval.ms() == 0,
        format!("`inference.interval` ({interval}) does not divide `inference.window` ({window})"),
        "windows lie on a grid of intervals: choose a window that is a multiple of the interval",
    );
    let nameless = inference.idle_allowlist.iter().any(|name| name.trim().is_empty());
    values.require(
        &["inference.idle_allowlist"],
        !nameless,
        "`inference.idle_allowlist` has an empty name in it",
        "take it out: it would let processes without a name pass",
    );
}

fn model(settings: &Settings, values: &mut Values) {
    let model = &settings.model;
    values.require(
        &["model.device", "model.runtime"],
        model.device != Device::Cuda || model.runtime.is_some(),
        "`model.device` is \"cuda\", but `model.runtime` is not set",
        "the bundled ONNX Runtime has no CUDA provider: set model.runtime to the libonnxruntime.so of a GPU build",
    );
}

fn rules(settings: &Settings, values: &mut Values) {
    let missing: Vec<&String> = settings.rules.paths.iter().filter(|path| !Path::new(path).exists()).collect();
    if let Some(first) = missing.first() {
        values.require(
            &["rules.paths"],
            false,
            format!("`rules.paths` names \"{first}\", which is not there"),
            "name files or folders of Sigma rules; relative paths begin at the working directory",
        );
    }
}

fn alerts(settings: &Settings, values: &mut Values) {
    let alerts = &settings.alerts;
    let order = [
        ("alerts.min_threshold", alerts.min_threshold, "alerts.high_threshold", alerts.high_threshold),
        ("alerts.high_threshold", alerts.high_threshold, "alerts.critical_threshold", alerts.critical_threshold),
    ];
    for (low, low_value, high, high_value) in order {
        values.require(
            &[low, high],
            low_value <= high_value,
            format!("`{low}` ({low_value}) is above `{high}` ({high_value})"),
            "order them: min_threshold, then high_threshold, then critical_threshold",
        );
    }
    for (key, seconds) in [
        ("alerts.dedup_window_seconds", alerts.dedup_window_seconds),
        ("alerts.correlation_window_seconds", alerts.correlation_window_seconds),
    ] {
        values.require(
            &["alerts.retention", key],
            alerts.retention.ms() >= i64::from(seconds) * 1000,
            format!("`alerts.retention` ({}) is shorter than `{key}` ({seconds})", alerts.retention),
            "an alert must be remembered for as long as detections can still join it",
        );
    }
}

/// Properties that have settings of their own, and those that exactly-once output depends on.
const DECIDED: [(&str, &str); 29] = [
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("group.id", "kafka.group_id"),
    ("security.protocol", "kafka.security.protocol"),
    ("sasl.mechanism", "kafka.security.mechanism"),
    ("sasl.mechanisms", "kafka.security.mechanism"),
    ("sasl.username", "kafka.security.username"),
    ("sasl.password", "kafka.security.password_file"),
    ("ssl.ca.location", "kafka.security.ca_file"),
    ("ssl.certificate.location", "kafka.security.certificate_file"),
    ("ssl.key.location", "kafka.security.key_file"),
    ("ssl.key.password", "kafka.security.key_password"),
    ("transactional.id", "checkpoint.job"),
    ("isolation.level", ""),
    ("enable.auto.commit", ""),
    ("enable.auto.offset.store", ""),
    ("enable.idempotence", ""),
    ("acks", ""),
    ("request.required.acks", ""),
    ("allow.auto.create.topics", ""),
    ("auto.offset.reset", ""),
    ("enable.gapless.guarantee", ""),
    ("enable.partition.eof", ""),
    ("max.in.flight", ""),
    ("max.in.flight.requests.per.connection", ""),
    ("message.max.bytes", "input.max_message_bytes"),
    ("message.send.max.retries", ""),
    ("retries", ""),
    ("transaction.timeout.ms", "checkpoint.epoch_ms"),
];

fn kafka(settings: &Settings, values: &mut Values) {
    let kafka = &settings.kafka;
    values.require(
        &["kafka.brokers"],
        !kafka.brokers.is_empty(),
        "`kafka.brokers` is empty",
        "name at least one broker as \"host:port\"",
    );
    for broker in &kafka.brokers {
        let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        values.require(
            &["kafka.brokers"],
            matches!(port, Some(Ok(port)) if port > 0),
            format!("`kafka.brokers` has \"{broker}\" in it, which is no host and port"),
            "write \"host:9092\"",
        );
    }
    values.require(
        &["kafka.replication_factor"],
        kafka.replication_factor != Some(0),
        "`kafka.replication_factor` is 0",
        "a partition has at least one copy; three survive the loss of a broker",
    );
    for (name, value) in &kafka.extra {
        let place = format!("kafka.extra.{name}");
        let place = if values.origin(&place) == Origin::Default { "kafka.extra" } else { place.as_str() };
        let secret = ["password", "secret"].iter().any(|word| name.contains(word));
        match DECIDED.iter().find(|(decided, _)| decided == name) {
            Some((_, "")) => values.require(
                &[place],
                false,
                format!("`kafka.extra` must not set \"{name}\""),
                "take it out: exactly-once output depends on it, so Logster decides it",
            ),
            Some((_, setting)) => values.require(
                &[place],
                false,
                format!("`kafka.extra` must not set \"{name}\""),
                format!("set {setting} instead"),
            ),
            None if secret => values.require(
                &[place],
                false,
                format!("`kafka.extra` must not hold secrets, and \"{name}\" looks like one"),
                "kafka.security has settings for passwords, read from the environment or from files",
            ),
            // librdkafka judges names and values without a connection.
            None => {
                if let Err(KafkaError::ClientConfig(_, reason, ..)) =
                    ClientConfig::new().set(name, value).create_native_config()
                {
                    values.require(
                        &[place],
                        false,
                        format!("`kafka.extra` sets \"{name}\": {reason}"),
                        "librdkafka's CONFIGURATION.md lists its properties",
                    );
                }
            }
        }
    }
    let job = &settings.checkpoint.job;
    values.require(
        &["checkpoint.job"],
        job.len() <= 100 && job.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
        format!("`checkpoint.job` is \"{job}\""),
        "use at most 100 letters, digits, `.`, `_` and `-`: it becomes part of Kafka ids",
    );
}

fn security(settings: &mut Settings, values: &mut Values) {
    let security = &mut settings.kafka_security;
    let protocol = security.protocol.name();
    let (sasl, tls) = (protocol.starts_with("sasl"), protocol.ends_with("ssl"));
    if let Some(path) = &security.password_file {
        let key = "kafka.security.password_file";
        values.require(
            &[key, "kafka.security.password"],
            security.password.is_none(),
            "`kafka.security.password` and `kafka.security.password_file` are both set",
            "keep one of them",
        );
        if private_file(path, key, values) {
            match std::fs::read_to_string(path) {
                Ok(text) if !text.trim_end_matches(['\r', '\n']).is_empty() => {
                    security.password = Some(Secret::new(text.trim_end_matches(['\r', '\n'])));
                }
                Ok(_) => values.require(
                    &[key],
                    false,
                    format!("`{key}`: {} is empty", path.display()),
                    "write the password into it",
                ),
                // Not the error itself where it could quote the contents; an io::Error does not.
                Err(error) => values.require(
                    &[key],
                    false,
                    format!("`{key}`: cannot read {}: {error}", path.display()),
                    "store it as UTF-8 text",
                ),
            }
        }
    }
    let needs = [
        ("mechanism", security.mechanism.is_some(), "set it to \"SCRAM-SHA-512\", \"SCRAM-SHA-256\" or \"PLAIN\""),
        ("username", security.username.is_some(), "name the user"),
        (
            "password",
            security.password.is_some() || security.password_file.is_some(),
            "set LOGSTER_KAFKA_SECURITY_PASSWORD, or kafka.security.password_file",
        ),
    ];
    for (key, set, remedy) in needs {
        let path = format!("kafka.security.{key}");
        let both = ["kafka.security.protocol", path.as_str()];
        values.require(
            &both,
            !sasl || set,
            format!("`kafka.security.protocol` is \"{protocol}\", but `{path}` is not set"),
            remedy,
        );
        values.require(
            &both,
            sasl || !set,
            format!("`{path}` is set, but `kafka.security.protocol` is \"{protocol}\", which has no user"),
            "set the protocol to \"sasl_ssl\", or take it out",
        );
    }
    for (key, file) in [
        ("ca_file", &security.ca_file),
        ("certificate_file", &security.certificate_file),
        ("key_file", &security.key_file),
    ] {
        let Some(file) = file else { continue };
        let path = format!("kafka.security.{key}");
        values.require(
            &["kafka.security.protocol", &path],
            tls,
            format!("`{path}` is set, but `kafka.security.protocol` is \"{protocol}\", which has no TLS"),
            "set the protocol to \"ssl\" or \"sasl_ssl\", or take the file out",
        );
        if key == "key_file" {
            private_file(file, &path, values)
        } else {
            readable_file(file, &path, values)
        };
    }
    values.require(
        &["kafka.security.certificate_file", "kafka.security.key_file"],
        security.certificate_file.is_some() == security.key_file.is_some(),
        "of `kafka.security.certificate_file` and `kafka.security.key_file` only one is set",
        "a client proves itself with both: set the other one too, or neither",
    );
}

fn cluster(settings: &Settings, values: &mut Values) {
    let tls = &settings.cluster_tls;
    let files = [("cluster.tls.ca", &tls.ca), ("cluster.tls.cert", &tls.cert), ("cluster.tls.key", &tls.key)];
    let paths = files.map(|(path, _)| path);
    let set = files.iter().filter(|(_, file)| file.is_some()).count();
    let missing: Vec<String> =
        files.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| format!("`{path}`")).collect();
    values.require(
        &paths,
        set == 0 || set == files.len(),
        format!("`cluster.tls` lacks {}", missing.join(" and ")),
        "mutual TLS needs ca, cert and key: set all three, or none",
    );
    values.require(
        &["cluster.insecure", "cluster.tls.ca"],
        !(settings.cluster.insecure && set > 0),
        "`cluster.insecure` is true, but `cluster.tls` is set",
        "keep one of them: with cluster.tls the wire is secure",
    );
    for (path, file) in files {
        let Some(file) = file else { continue };
        if path == "cluster.tls.key" {
            private_file(file, path, values)
        } else {
            readable_file(file, path, values)
        };
    }
}

fn http(settings: &Settings, values: &mut Values) {
    let http = &settings.http;
    values.require(
        &["http.bind", "http.allow_remote"],
        http.bind.ip().is_loopback() || http.allow_remote || !http.enabled,
        format!("`http.bind` is {}, which other machines can reach", http.bind),
        "bind to 127.0.0.1, or set http.allow_remote = true and guard the port: there is no login",
    );
}

/// `file` is there and can be opened; else a problem.
fn readable_file(file: &Path, path: &str, values: &mut Values) -> bool {
    let opened = std::fs::File::open(file).and_then(|f| f.metadata());
    let remedy = "name a file that this user can read (relative names start at the working directory)";
    match opened {
        Ok(meta) if meta.is_file() => return true,
        Ok(_) => values.require(&[path], false, format!("`{path}`: {} is no file", file.display()), remedy),
        Err(error) => {
            values.require(&[path], false, format!("`{path}`: cannot read {}: {error}", file.display()), remedy);
        }
    }
    false
}

/// As [`readable_file`], and neither readable by others nor writable by group or others.
fn private_file(file: &Path, path: &str, values: &mut Values) -> bool {
    if !readable_file(file, path, values) {
        return false;
    }
    let mode = std::fs::metadata(file).map_or(0, |meta| meta.mode() & 0o777);
    let private = mode & 0o027 == 0;
    values.require(
        &[path],
        private,
        format!("`{path}`: {} holds a secret, but its mode is {mode:03o}", file.display()),
        format!("chmod 600 {} (in Kubernetes: defaultMode: 0440 with an fsGroup)", file.display()),
    );
    private
}
