//! The real binary as processes: one-off commands, and runs of several processes that tests disturb.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logster_sinks::testkit;

/// With rules, so that whatever is shown of the model's detections is shown of theirs.
const RULES: [&str; 2] = ["--set", "rules.paths=deploy/rules"];

/// `logster ARGS`, quiet but for warnings.
pub fn logster(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(args).args(["--set", "http.enabled=false", "--set", "log.level=warn"]);
    command.args(RULES).stdin(Stdio::null());
    command
}

/// Runs it to its end, which must be a good one.
pub fn succeed(mut command: Command) {
    let output = command.output().expect("logster starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the topics and plays `input` into them.
pub fn prepare(brokers: &str, input: &Path) {
    succeed(logster(&["topics", "create", "--kafka", brokers, "--set", "input.arrival=create"]));
    succeed(logster(&["produce", "--kafka", brokers, "--input", input.to_str().unwrap()]));
}

/// Plays what is in the topics to its end.
pub fn kafka_run(brokers: &str, workers: u32) -> Command {
    let mut command = logster(&["run", "--kafka", brokers, "--until-end", "--set", "input.arrival=create"]);
    command.args(["-w", &workers.to_string()]);
    command
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether something listens there.
pub fn listens(address: &str) -> bool {
    let address = address.parse().expect("an address and a port");
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// How a run is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub processes: usize,
    /// Of each process.
    pub workers: usize,
}

impl Shape {
    /// One process with one worker.
    pub const ONE: Self = Self { processes: 1, workers: 1 };
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The first line of what it said last, from `error:` on.
    pub said: String,
}

struct Member {
    child: Child,
    spawned: Instant,
    ended: Option<Ended>,
}

/// The processes of one run. Dropping it kills them.
pub struct Run {
    pub shape: Shape,
    args: Vec<String>,
    hostfile: PathBuf,
    log: PathBuf,
    http: u16,
    members: Vec<Member>,
}

impl Run {
    /// Starts `logster run ARGS` in that shape. Logs and the hostfile go to `dir`, under `name`.
    pub fn start(dir: &Path, name: &str, shape: Shape, args: &[&str]) -> Self {
        let hostfile = dir.join(format!("{name}.hosts"));
        let hosts: Vec<String> = (0..shape.processes).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
        std::fs::write(&hostfile, hosts.concat()).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let log = dir.join(format!("{name}.log"));
        let mut run = Self { shape, args, hostfile, log, http: free_port(), members: Vec::new() };
        for index in 0..shape.processes {
            let member = run.spawn(index);
            run.members.push(member);
        }
        run
    }

    fn log(&self, index: usize) -> PathBuf {
        self.log.with_extension(format!("{index}.log"))
    }

    fn spawn(&self, index: usize) -> Member {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).arg("run").args(&self.args);
        command.args(["-w", &self.shape.workers.to_string(), "-n", &self.shape.processes.to_string()]);
        command.args(["-p", &index.to_string(), "--set", "log.level=warn"]).args(RULES);
        if self.shape.processes > 1 {
            command.arg("--hostfile").arg(&self.hostfile);
        }
        if index == 0 {
            command.args(["--set", &format!("http.bind=127.0.0.1:{}", self.http)]);
        } else {
            command.args(["--set", "http.enabled=false"]);
        }
        let log = File::options().create(true).append(true).open(self.log(index)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Member { child: command.spawn().expect("logster starts"), spawned: Instant::now(), ended: None }
    }

    /// Takes in which processes have ended since the last look.
    pub fn look(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        for index in 0..self.members.len() {
            if self.members[index].ended.is_none()
                && let Some(status) = self.members[index].child.try_wait().unwrap()
            {
                let text = self.text(index);
                let said = text.rfind("\nerror: ").map_or(&*text, |at| &text[at + 1..]).lines().take(2);
                let end = Ended { code: status.code(), said: said.collect::<Vec<_>>().join(" ") };
                self.members[index].ended = Some(end.clone());
                ended.push(end);
            }
        }
        ended
    }

    /// How each process has ended, as far as they have.
    pub fn ended(&self) -> impl Iterator<Item = Option<&Ended>> {
        self.members.iter().map(|member| member.ended.as_ref())
    }

    /// All have ended well: as asked, or at the end of the input.
    pub fn is_done(&self) -> bool {
        self.ended().all(|end| end.is_some_and(|end| end.code == Some(0)))
    }

    /// Starts those again that have ended.
    pub fn restart(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].ended.is_some() {
                self.members[index] = self.spawn(index);
            }
        }
    }

    /// What process `index` has said, all its lives together.
    pub fn text(&self, index: usize) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log(index)).unwrap()).into_owned()
    }

    /// When the first process was started last.
    pub fn started(&self) -> Instant {
        self.members[0].spawned
    }

    /// Of process `index`.
    pub fn pid(&self, index: usize) -> u32 {
        self.members[index].child.id()
    }

    /// Sends `signal` (as `KILL`) to process `index`, if it is there.
    pub fn signal(&self, index: usize, signal: &str) {
        let member = &self.members[index];
        if member.ended.is_none() {
            // A process that ends just now is no failure.
            testkit::signal(member.child.id(), signal);
        }
    }

    /// Process `index` has come so far that SIGTERM does not simply kill it.
    pub fn handles_term(&self, index: usize) -> bool {
        const TERM: u32 = 15;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid(index))).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> (TERM - 1) & 1 == 1)
    }

    /// The same to all of its processes.
    pub fn signal_all(&self, signal: &str) {
        (0..self.members.len()).for_each(|index| self.signal(index, signal));
    }

    /// The body of `GET PATH`, if process 0 answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let address = format!("127.0.0.1:{}", self.http).parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// Process 0 has committed something.
    pub fn is_ready(&self) -> bool {
        self.get("/health/ready").is_some_and(|(status, _)| status == 200)
    }

    /// The sum of a metric's series in process 0; 0 while it does not answer.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap_or_default();
        let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
        values.filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    /// Waits for `what` to hold.
    pub fn wait_until(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&mut Self) -> bool) -> Duration {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < limit, "waited {limit:?} for {what}; the run said:\n{}", self.text(0));
            std::thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
    }

    /// Waits until every process has ended, and says how each did.
    pub fn end(&mut self, limit: Duration) -> Vec<Ended> {
        self.wait_until(limit, "the end of the run", |run| {
            run.look();
            run.ended().all(|end| end.is_some())
        });
        self.ended().flatten().cloned().collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}
