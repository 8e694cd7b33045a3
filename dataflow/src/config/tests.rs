//! Every way to get a configuration wrong, with the exact words that it earns.

use super::*;

const NAME: &str = "logster.toml";

fn load(text: &str, env: &[(&str, &str)], set: &[(&str, &str)]) -> Result<Config, Problems> {
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let set: Vec<_> = set
        .iter()
        .map(|(path, value)| Override { option: format!("--set {path}"), path: (*path).into(), value: (*value).into() })
        .collect();
    Config::load(Some(File { name: NAME, text }), &env, &set)
}

/// The problems of a file, one string each, newlines and labels as on the terminal.
fn problems(text: &str) -> String {
    load(text, &[], &[]).unwrap_err().to_string()
}

/// One mistake a row: file, what, where, remedy (empty: none).
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    // Names
    (
        "[inference]\nintervall = \"30s\"\n",
        "unknown setting `inference.intervall`",
        "2:1",
        "did you mean `inference.interval`?",
    ),
    ("[inferense]\nwindow = \"3m\"\n", "unknown section `inferense`", "1:2", "did you mean [inference]?"),
    ("[quux]\nwindow = \"3m\"\n", "unknown section `quux`", "1:2", "`logster config docs` lists every setting"),
    ("window = \"3m\"\n", "unknown setting `window`", "1:1", "did you mean `inference.window`?"),
    ("[alerts]\n\n  window = \"3m\"\n", "unknown setting `alerts.window`", "3:3", "did you mean `inference.window`?"),
    ("[log]\nxyzzy = 1\n", "unknown setting `log.xyzzy`", "2:1", "`logster config docs` lists every setting"),
    (
        "[kafka]\nsecurity = 3\n",
        "`kafka.security` is a section, found the integer 3",
        "2:12",
        "write [kafka.security] on a line of its own and its settings below",
    ),
    (
        "[kafka.security]\nuser = \"x\"\n",
        "unknown setting `kafka.security.user`",
        "2:1",
        "did you mean `kafka.security.username`?",
    ),
    ("[cluster.tls]\nkye = \"x\"\n", "unknown setting `cluster.tls.kye`", "2:1", "did you mean `cluster.tls.key`?"),
    // Types
    (
        "[inference]\nwindow = 180\n",
        "`inference.window` must be a duration such as \"30s\" (ms, s, m, h, d), found the integer 180",
        "2:10",
        "give it a unit: \"180s\" or \"180ms\"",
    ),
    (
        "[inference]\nwindow = \"3 minutes\"\n",
        "`inference.window` must be a duration such as \"30s\" (ms, s, m, h, d), found \"3 minutes\"",
        "2:10",
        "",
    ),
    (
        "[inference]\nuse_idle_allowlist = \"true\"\n",
        "`inference.use_idle_allowlist` must be true or false, found \"true\"",
        "2:22",
        "write true without quotes",
    ),
    (
        "[cluster]\nshards = \"64\"\n",
        "`cluster.shards` must be a whole number, found \"64\"",
        "2:10",
        "write 64 without quotes",
    ),
    ("[cluster]\nshards = -1\n", "`cluster.shards` must be a whole number, found the integer -1", "2:10", ""),
    (
        "[cluster]\nshards = 99999999999999999999\n",
        "`cluster.shards` must be a whole number, found 99999999999999999999",
        "2:10",
        "",
    ),
    ("[alerts]\nmin_threshold = nan\n", "`alerts.min_threshold` must be a number, found the number NaN", "2:17", ""),
    (
        "[kafka]\nbrokers = \"a:9092\"\n",
        "`kafka.brokers` must be a list of strings, found \"a:9092\"",
        "2:11",
        "write [\"a:9092\"]",
    ),
    ("[kafka]\nbrokers = [\"a:9092\", 3]\n", "`kafka.brokers` must be a list of strings, found a list", "2:11", ""),
    ("[kafka]\ngroup_id = 2026-01-01\n", "`kafka.group_id` must be a string, found the time 2026-01-01", "2:12", ""),
    (
        "[input]\nmax_message_bytes = \"1MB\"\n",
        "`input.max_message_bytes` must be a number of bytes such as 65536 or \"64KiB\" (KiB, MiB, GiB), found \"1MB\"",
        "2:21",
        "write it with the unit MiB",
    ),
    (
        "[model]\ndevice = \"CUDA\"\n",
        "`model.device` must be \"cpu\" or \"cuda\", found \"CUDA\"",
        "2:10",
        "did you mean \"cuda\"?",
    ),
    (
        "[input]\ntopic = \"sysmon-log\"\n",
        "`input.topic` must be \"sysmon-logs\", \"linux-auditd-logs\", \"linux-ebpf-process-logs\", \
         \"linux-ebpf-file-logs\" or \"linux-ebpf-network-logs\", found \"sysmon-log\"",
        "2:9",
        "did you mean \"sysmon-logs\"?",
    ),
    (
        "[input]\nspeed = 2\n",
        "`input.speed` must be \"max\", \"1x\" or another multiple such as \"60x\", found the integer 2",
        "2:9",
        "write \"2x\"",
    ),
    (
        "[http]\nbind = \"localhost:9464\"\n",
        "`http.bind` must be an address and port such as \"127.0.0.1:9464\", found \"localhost:9464\"",
        "2:8",
        "write \"127.0.0.1:9464\"",
    ),
    (
        "[log]\nlevel = \"inof\"\n",
        "`log.level` must be a level (error, warn, info, debug, trace, off) or directives such as \
         \"info,rdkafka=warn\", found \"inof\"",
        "2:9",
        "did you mean \"info\"?",
    ),
    // Ranges
    (
        "[checkpoint]\nepoch_ms = 5\n",
        "`checkpoint.epoch_ms` is 5, which is out of range",
        "2:12",
        "choose from 10 to 2000",
    ),
    (
        "[alerts]\nmin_threshold = 70\n",
        "`alerts.min_threshold` is 70.0, which is out of range",
        "2:17",
        "choose from 0.0 to 1.0",
    ),
    (
        "[input]\nmax_lateness = \"2h\"\n",
        "`input.max_lateness` is \"2h\", which is out of range",
        "2:16",
        "choose from \"0s\" to \"1h\"",
    ),
    // Contradictions
    (
        "[inference]\nwindow = \"3m\"\ninterval = \"70s\"\n",
        "`inference.interval` (70s) does not divide `inference.window` (3m)",
        "2:10, logster.toml:3:12",
        "windows lie on a grid of intervals: choose a window that is a multiple of the interval",
    ),
    (
        "[inference]\ninterval = \"5m\"\n",
        "`inference.window` (3m) is less than `inference.interval` (5m)",
        "2:12",
        "what happens between two windows would never be judged: make the window at least as long",
    ),
    (
        "[inference]\nidle_allowlist = [\"cron\", \" \"]\n",
        "`inference.idle_allowlist` has an empty name in it",
        "2:18",
        "take it out: it would let processes without a name pass",
    ),
    (
        "[input]\nmax_backfill = \"5s\"\n",
        "`input.max_backfill` (5s) is less than `input.max_lateness` (10s)",
        "2:16",
        "a live record may be as old as max_lateness: let max_backfill reach at least as far",
    ),
    (
        "[model]\ndevice = \"cuda\"\n",
        "`model.device` is \"cuda\", but `model.runtime` is not set",
        "2:10",
        "the bundled ONNX Runtime has no CUDA provider: set model.runtime to the libonnxruntime.so of a GPU build",
    ),
    (
        "[alerts]\nhigh_threshold = 0.6\n",
        "`alerts.min_threshold` (0.7) is above `alerts.high_threshold` (0.6)",
        "2:18",
        "order them: min_threshold, then high_threshold, then critical_threshold",
    ),
    (
        "[alerts]\nhigh_threshold = 0.97\n",
        "`alerts.high_threshold` (0.97) is above `alerts.critical_threshold` (0.95)",
        "2:18",
        "order them: min_threshold, then high_threshold, then critical_threshold",
    ),
    (
        "[alerts]\nretention = \"2m\"\n",
        "`alerts.retention` (2m) is shorter than `alerts.dedup_window_seconds` (300)",
        "2:13",
        "an alert must be remembered for as long as detections can still join it",
    ),
    ("[kafka]\nbrokers = []\n", "`kafka.brokers` is empty", "2:11", "name at least one broker as \"host:port\""),
    (
        "[kafka]\nbrokers = [\"broker\"]\n",
        "`kafka.brokers` has \"broker\" in it, which is no host and port",
        "2:11",
        "write \"host:9092\"",
    ),
    (
        "[kafka]\nreplication_factor = 0\n",
        "`kafka.replication_factor` is 0",
        "2:22",
        "a partition has at least one copy; three survive the loss of a broker",
    ),
    (
        "[kafka.extra]\n\"fetch.min.bytes\" = 1\n\"group.id\" = \"x\"\n",
        "`kafka.extra` must not set \"group.id\"",
        "3:1",
        "set kafka.group_id instead",
    ),
    (
        "[kafka.extra]\nenable.idempotence = false\n",
        "`kafka.extra` must not set \"enable.idempotence\"",
        "2:8",
        "take it out: exactly-once output depends on it, so Logster decides it",
    ),
    (
        "[kafka.extra]\n\"sasl.oauthbearer.client.secret\" = \"hunter2\"\n",
        "`kafka.extra` must not hold secrets, and \"sasl.oauthbearer.client.secret\" looks like one",
        "2:1",
        "kafka.security has settings for passwords, read from the environment or from files",
    ),
    (
        "[kafka.extra]\nfetch.min.byte = 1\n",
        "`kafka.extra` sets \"fetch.min.byte\": No such configuration property: \"fetch.min.byte\"",
        "2:11",
        "librdkafka's CONFIGURATION.md lists its properties",
    ),
    (
        "[kafka.extra]\n\"socket.keepalive.enable\" = true\n\"fetch.wait.max.ms\" = \"soon\"\n",
        "`kafka.extra` sets \"fetch.wait.max.ms\": Invalid value for configuration property \"fetch.wait.max.ms\"",
        "3:1",
        "librdkafka's CONFIGURATION.md lists its properties",
    ),
    (
        "[checkpoint]\njob = \"a b\"\n",
        "`checkpoint.job` is \"a b\"",
        "2:7",
        "use at most 100 letters, digits, `.`, `_` and `-`: it becomes part of Kafka ids",
    ),
    (
        "[kafka.security]\nusername = \"u\"\n",
        "`kafka.security.username` is set, but `kafka.security.protocol` is \"plaintext\", which has no user",
        "2:12",
        "set the protocol to \"sasl_ssl\", or take it out",
    ),
    (
        "[kafka.security]\npassword = \"hunter2\"\n",
        "`kafka.security.password` is a secret and must not stand here",
        "2:12",
        "set the environment variable LOGSTER_KAFKA_SECURITY_PASSWORD, or kafka.security.password_file",
    ),
    (
        "[kafka.security]\nkey_password = \"hunter2\"\n",
        "`kafka.security.key_password` is a secret and must not stand here",
        "2:16",
        "set the environment variable LOGSTER_KAFKA_SECURITY_KEY_PASSWORD",
    ),
    (
        "[cluster.tls]\nca = \"/dev/null/none\"\n",
        "`cluster.tls` lacks `cluster.tls.cert` and `cluster.tls.key`",
        "2:6",
        "mutual TLS needs ca, cert and key: set all three, or none",
    ),
    (
        "[http]\nbind = \"0.0.0.0:9464\"\n",
        "`http.bind` is 0.0.0.0:9464, which other machines can reach",
        "2:8",
        "bind to 127.0.0.1, or set http.allow_remote = true and guard the port: there is no login",
    ),
];

#[test]
fn every_mistake_has_its_words() {
    for (text, what, place, remedy) in MISTAKES {
        let remedy = if remedy.is_empty() { String::new() } else { format!("  remedy: {remedy}\n") };
        let want = format!("error: {what}\n  where: {NAME}:{place}\n{remedy}");
        let got = problems(text);
        // The file of the half-set TLS does not exist either: two complaints.
        assert!(got.starts_with(&want), "for\n{text}\nwanted\n{want}\ngot\n{got}");
        let allowed = if text.contains("/dev/null") { 2 } else { 1 };
        assert_eq!(got.matches("error: ").count(), allowed, "for\n{text}\ngot\n{got}");
        assert!(!got.contains("hunter2"), "{got}");
    }
}

#[test]
fn sasl_needs_all_of_its_parts() {
    assert_eq!(
        problems("[kafka.security]\nprotocol = \"sasl_ssl\"\n"),
        "error: `kafka.security.protocol` is \"sasl_ssl\", but `kafka.security.mechanism` is not set\n  \
         where: logster.toml:2:12\n  remedy: set it to \"SCRAM-SHA-512\", \"SCRAM-SHA-256\" or \"PLAIN\"\n\
         error: `kafka.security.protocol` is \"sasl_ssl\", but `kafka.security.username` is not set\n  \
         where: logster.toml:2:12\n  remedy: name the user\n\
         error: `kafka.security.protocol` is \"sasl_ssl\", but `kafka.security.password` is not set\n  \
         where: logster.toml:2:12\n  remedy: set LOGSTER_KAFKA_SECURITY_PASSWORD, or kafka.security.password_file\n"
    );
}

#[test]
fn all_mistakes_at_once_in_the_order_of_the_file() {
    let text = "[log]\nlevel = 3\n[inference]\nintervall = \"30s\"\nwindow = 180\n[alerts]\nmin_threshold = 2\n";
    let got = problems(text);
    let places: Vec<&str> = got.lines().filter_map(|line| line.strip_prefix("  where: logster.toml:")).collect();
    assert_eq!(places, ["2:9", "4:1", "5:10", "7:17"], "{got}");
}

#[test]
fn broken_toml_has_a_place_and_hides_nothing_else() {
    let got = problems("[log]\nlevel = \n[inference]\nwindow = 180\n[log]\nformat = \"json\"\n");
    assert!(got.contains("error: not valid TOML: "), "{got}");
    for place in ["2:", "4:10", "5:"] {
        assert!(got.contains(&format!("where: logster.toml:{place}")), "{place}\n{got}");
    }
    // The column counts characters, not bytes.
    let got = problems("[kafka]\ngroup_id = \"ö\" x\n");
    assert!(got.contains("logster.toml:2:16"), "{got}");
}

#[test]
fn a_refused_value_causes_no_further_complaint() {
    // The default interval of 30s does not divide 50s, but nobody asked for it.
    let got = problems("[inference]\nwindow = \"50s\"\ninterval = 25\n");
    assert_eq!(got.matches("error: ").count(), 1, "{got}");
}

#[test]
fn the_later_layer_wins() {
    let text = "[inference]\nwindow = \"4m\"\ninterval = \"60s\"\n[log]\nformat = \"json\"\n";
    let env = [("LOGSTER_INFERENCE_WINDOW", "6m"), ("LOGSTER_LOG", "debug"), ("LOGSTER_ONNXRUNTIME", "/o.so")];
    let config = load(text, &env, &[("inference.interval", "2m")]).unwrap();
    assert_eq!(config.inference.window.ms(), 360_000);
    assert_eq!(config.inference.interval.ms(), 120_000);
    assert_eq!(config.onnx_runtime(), Some("/o.so".into()));
    let shown: Vec<String> =
        config.effective().into_iter().map(|(path, value, origin)| format!("{path} = {value} ({origin})")).collect();
    assert_eq!(
        shown,
        [
            "inference.window = \"6m\" (environment variable LOGSTER_INFERENCE_WINDOW)",
            "inference.interval = \"2m\" (--set inference.interval)",
            "model.runtime = \"/o.so\" (environment variable LOGSTER_ONNXRUNTIME)",
            "log.format = \"json\" (logster.toml:5:10)",
            "log.level = \"debug\" (environment variable LOGSTER_LOG)",
        ]
    );
}

#[test]
fn the_environment_reaches_every_type() {
    let env = [
        ("LOGSTER_KAFKA_BROKERS", "a:1, b:2"),
        ("LOGSTER_KAFKA_EXTRA", "fetch.min.bytes=7"),
        ("LOGSTER_INFERENCE_USE_IDLE_ALLOWLIST", "false"),
        ("LOGSTER_ALERTS_MIN_THRESHOLD", "0.5"),
        ("LOGSTER_CLUSTER_SHARDS", "128"),
        ("LOGSTER_INPUT_SOURCE", "kafka"),
        ("LOGSTER_INPUT_MAX_MESSAGE_BYTES", "2MiB"),
        ("LOGSTER_HTTP_BIND", "127.0.0.1:0"),
        ("LOGSTER_KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
        ("LOGSTER_KAFKA_SECURITY_MECHANISM", "SCRAM-SHA-512"),
        ("LOGSTER_KAFKA_SECURITY_USERNAME", "u"),
        ("LOGSTER_KAFKA_SECURITY_PASSWORD", "hunter2"),
        ("LOGSTER_LOG", "warn"),
        ("LOGSTER_LOG_LEVEL", "debug"),
        // Other people's: Kubernetes makes such names for services.
        ("LOGSTER_KAFKA_SERVICE_HOST", "10.0.0.1"),
        ("LOGSTER_HTTP_PORT", "tcp://10.0.0.1:80"),
    ];
    let config = load("", &env, &[]).unwrap();
    assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
    assert_eq!(config.kafka.extra["fetch.min.bytes"], "7");
    assert!(!config.inference.use_idle_allowlist);
    assert_eq!(config.alerts.min_threshold, 0.5);
    assert_eq!(config.cluster.shards, 128);
    assert_eq!(config.input.max_message_bytes.0, 2 << 20);
    assert_eq!(config.log.level.toml().unwrap(), "\"debug\"", "the full name wins over the short one");
    let kafka = config.kafka_config();
    assert_eq!((kafka.brokers.as_str(), kafka.security.protocol.name()), ("a:1,b:2", "SASL_SSL"));
    assert_eq!(kafka.security.password.as_ref().unwrap().0, "hunter2");
    assert_eq!(kafka.security.sasl_mechanism.as_deref(), Some("SCRAM-SHA-512"));
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!format!("{:?}", config.effective()).contains("hunter2"));

    let got = load("", &[("LOGSTER_INFERENCE_WINDO", "3m")], &[]).unwrap_err().to_string();
    assert_eq!(
        got,
        "error: environment variable LOGSTER_INFERENCE_WINDO names no setting\n  \
         where: environment variable LOGSTER_INFERENCE_WINDO\n  remedy: did you mean LOGSTER_INFERENCE_WINDOW?\n"
    );
    let got = load("", &[("LOGSTER_CLUSTER_SHARDS", "many")], &[]).unwrap_err().to_string();
    assert_eq!(
        got,
        "error: `cluster.shards` must be a whole number, found \"many\"\n  \
         where: environment variable LOGSTER_CLUSTER_SHARDS\n"
    );
    let got = load("", &[], &[("kafka.security.password", "hunter2"), ("input.sauce", "x")]).unwrap_err().to_string();
    assert_eq!(
        got,
        "error: unknown setting `input.sauce`\n  where: --set input.sauce\n  remedy: did you mean `input.source`?\n\
         error: `kafka.security.password` is a secret and must not stand here\n  \
         where: --set kafka.security.password\n  \
         remedy: set the environment variable LOGSTER_KAFKA_SECURITY_PASSWORD, or kafka.security.password_file\n"
    );
}

#[test]
fn a_password_file_must_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let text = format!(
        "[kafka.security]\nprotocol = \"sasl_ssl\"\nmechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"{}\"\n",
        file.display()
    );
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    for public in [0o644, 0o620, 0o602] {
        mode(public);
        let path = file.display();
        assert_eq!(
            problems(&text),
            format!(
                "error: `kafka.security.password_file`: {path} holds a secret, but its mode is {public:03o}\n  \
                 where: logster.toml:5:17\n  \
                 remedy: chmod 600 {path} (in Kubernetes: defaultMode: 0440 with an fsGroup)\n"
            )
        );
    }
    for private in [0o600, 0o440] {
        mode(private);
        let config = load(&text, &[], &[]).unwrap();
        assert_eq!(config.kafka_security.password.as_ref().unwrap().expose(), "hunter2");
        assert!(!format!("{:?}", config.effective()).contains("hunter2"));
    }
    let got = load(&text, &[("LOGSTER_KAFKA_SECURITY_PASSWORD", "other")], &[]).unwrap_err().to_string();
    assert!(got.contains("are both set"), "{got}");
    std::fs::write(&file, "\n").unwrap();
    assert!(problems(&text).contains("is empty"));
    std::fs::remove_file(&file).unwrap();
    assert!(problems(&text).contains("No such file"));
}

#[test]
fn a_missing_or_foreign_file_is_one_clear_problem() {
    let missing = Config::of_process(Some(Path::new("/nowhere/logster.toml")), &[]).unwrap_err().to_string();
    assert_eq!(
        missing,
        "error: cannot read the configuration file /nowhere/logster.toml: No such file or directory (os error 2)\n  \
         remedy: `logster config default` prints one\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin1.toml");
    std::fs::write(&file, b"[log]\n# caf\xe9\n").unwrap();
    let got = Config::of_process(Some(&file), &[]).unwrap_err().to_string();
    assert_eq!(got, format!("error: not UTF-8\n  where: {}:2:1\n  remedy: save the file as UTF-8\n", file.display()));
}

/// Uncommenting every line of the default file changes nothing.
#[test]
fn the_default_file_says_the_defaults() {
    let commented = document::default_file();
    assert!(load(&commented, &[], &[]).unwrap().effective().is_empty());
    let live: String = commented
        .lines()
        // A list goes on in lines that are further in than a comment.
        .filter(|line| line.starts_with("#  ") || !line.starts_with("# ") && !line.ends_with(" ="))
        .map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line)))
        .collect();
    let config = load(&live, &[], &[]).unwrap_or_else(|problems| panic!("{problems}\n{live}"));
    assert_eq!(*config, *Config::default());
    let set = SECTIONS.iter().flat_map(|section| section.settings).filter(|s| (s.default)().is_some());
    for setting in set {
        assert_ne!(config.origins[setting.path], Origin::Default, "{} is missing", setting.path);
    }
}

#[test]
fn the_newest_library_of_a_directory_is_taken() {
    let config = load("[model]\nruntime = \"/opt/libonnxruntime.so\"\n", &[], &[]).unwrap();
    assert_eq!(config.onnx_runtime(), Some("/opt/libonnxruntime.so".into()));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(onnx_runtime_in(dir.path()), None);
    for name in ["libonnxruntime.so.1.31.1", "libonnxruntime.so.1.30.0", "libonnxruntime_providers_cuda.so", "logster"]
    {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert_eq!(onnx_runtime_in(dir.path()), Some(dir.path().join("libonnxruntime.so.1.31.1")));
    assert_eq!(onnx_runtime_in(&dir.path().join("none")), None);
}

/// Checked-in documents are what the code says. `LOGSTER_BLESS=1` makes them again.
#[test]
fn generated_documents_are_current() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated");
    let bless = std::env::var_os("LOGSTER_BLESS").is_some();
    for (name, text) in [
        ("logster.toml", document::default_file()),
        ("config.md", document::reference()),
        ("metrics.md", crate::metrics::reference()),
    ] {
        let path = dir.join(name);
        if bless {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).is_ok_and(|checked_in| checked_in == text),
            "docs/generated/{name} is stale: run LOGSTER_BLESS=1 cargo test --release -p logster-dataflow generated"
        );
    }
}

#[test]
fn the_idle_list_is_the_one_that_the_features_were_checked_with() {
    let config = Config::load(None, &[], &[]).unwrap();
    assert_eq!(config.inference.idle_allowlist, logster_operators::features::linux::IDLE_ALLOW_LIST);
}
