//! A real Kafka cluster for a test: started in a directory of its own on free ports, gone when dropped.
//!
//! Everything here panics on failure: it is test code. The script that does the work is found through
//! `LOGSTER_KAFKA_CLUSTER` (`make test` sets it); `make setup` brings the broker.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

use crate::client::KafkaConfig;

/// A running cluster. Dropping it kills the brokers.
pub struct Cluster {
    script: PathBuf,
    dir: tempfile::TempDir,
    brokers: String,
}

impl Cluster {
    /// One broker with the kit's settings.
    pub fn start() -> Self {
        Self::start_with(1, &[])
    }

    /// `brokers` is 1 or 3; `settings` are broker settings, each `KEY=VALUE`.
    pub fn start_with(brokers: u32, settings: &[&str]) -> Self {
        let script = std::env::var_os("LOGSTER_KAFKA_CLUSTER").unwrap_or_else(|| {
            panic!(
                "LOGSTER_KAFKA_CLUSTER is not set: it is the absolute path of deploy/kafka/cluster.sh. \
                 Run the tests with `make test`, or `make setup` once and set it by hand"
            )
        });
        let mut cluster = Self {
            script: script.into(),
            dir: tempfile::tempdir().expect("a temporary directory"),
            brokers: String::new(),
        };
        let mut args = vec!["--brokers".to_owned(), brokers.to_string()];
        // However this process ends, the brokers end with it.
        args.extend(["--owner".to_owned(), std::process::id().to_string()]);
        args.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
        cluster.brokers = cluster.script(&["start"], &args);
        cluster
    }

    /// One broker for all tests of this process that run at the same time. Tests keep apart by their keys.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        // A test that failed to start it must not fail the others with a poisoned lock.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// `host:port`, comma separated.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// How clients reach it.
    pub fn config(&self) -> KafkaConfig {
        KafkaConfig::plain(&self.brokers)
    }

    /// kill -9 of broker `n`, counted from 1.
    pub fn kill_broker(&self, n: u32) {
        self.script(&["kill-broker", &n.to_string()], &[]);
    }

    /// Starts broker `n` again and waits until it takes clients.
    pub fn start_broker(&self, n: u32) {
        self.script(&["start-broker", &n.to_string()], &[]);
    }

    /// Starts broker `n` again and returns at once.
    pub fn launch_broker(&self, n: u32) {
        self.script(&["start-broker", &n.to_string(), "--no-wait"], &[]);
    }

    /// Broker `n` hangs (SIGSTOP), its connections stay open.
    pub fn pause_broker(&self, n: u32) {
        self.script(&["stop-broker", &n.to_string()], &[]);
    }

    /// Broker `n` goes on (SIGCONT).
    pub fn resume_broker(&self, n: u32) {
        self.script(&["cont-broker", &n.to_string()], &[]);
    }

    fn script(&self, command: &[&str], args: &[String]) -> String {
        let output = Command::new(&self.script)
            .args(command)
            .arg("--dir")
            .arg(self.dir.path().join("kafka"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("could not run {}: {e}", self.script.display()));
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "kafka cluster, {command:?}: {}", said(&output.stderr));
        said(&output.stdout)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Not `script`: a second panic while a test fails would abort the process.
        let _ = Command::new(&self.script)
            .args(["stop", "--now", "--dir"])
            .arg(self.dir.path().join("kafka"))
            .stdin(Stdio::null())
            .output();
    }
}

/// Sends `signal` (as `KILL`) to a process; says whether it was there. The shell's own `kill`: small machines have no
/// program of that name.
///
/// # Panics
/// There is no shell.
pub fn signal(pid: u32, signal: &str) -> bool {
    let kill = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\" 2>/dev/null", signal, &pid.to_string()]).status();
    kill.expect("a shell starts").success()
}
