//! Whole processes over real TCP: they meet, exchange, and notice each other's end.
//!
//! Each process is this test binary again, told by environment variables to play one process of a run
//! ([`peer_process`]). Every test has loopback addresses of its own, so ports are always free.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logster_dataflow::cluster::{ClusterConfig, TlsFiles, before_exit, connect, exit_on_panic, watch_workers};
use logster_dataflow::http::HealthState;
use logster_sinks::testkit;
use timely::dataflow::operators::{Exchange, Input, Inspect, Probe};

/// Numbers that each worker sends round.
const NUMBERS: u64 = 100_000;
const WORKERS: usize = 2;
/// Within which a loss must end the others.
const NOTICED: Duration = Duration::from_secs(5);

/// Not a test by itself: one process of a run, when [`Peer::spawn`] asks for it.
#[test]
fn peer_process() {
    let Ok(mode) = std::env::var("PEER_MODE") else { return };
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    exit_on_panic();
    before_exit(|reason| eprintln!("hook: {reason}"));
    let tls = std::env::var("PEER_TLS").ok().map(|prefix| TlsFiles {
        ca: format!("{prefix}-ca.pem").into(),
        cert: format!("{prefix}.pem").into(),
        key: format!("{prefix}.key").into(),
    });
    let hosts: Vec<String> = var("PEER_HOSTS").split(',').map(String::from).collect();
    let config = ClusterConfig {
        workers: WORKERS,
        processes: hosts.len(),
        index: var("PEER_INDEX").parse().unwrap(),
        hosts,
        tls,
        insecure: var("PEER_INSECURE") == "true",
        start_timeout: Duration::from_secs(var("PEER_START").parse().unwrap_or(30)),
        fingerprint: var("PEER_FINGERPRINT"),
        ..ClusterConfig::default()
    };
    let (builders, others, watch) = match connect(&config) {
        Ok(connected) => connected,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(2);
        }
    };
    println!("connected");
    let health = HealthState::new(WORKERS, Duration::from_secs(2));
    let looked_at = health.clone();
    watch_workers(move || Some(looked_at.not_live())).unwrap();
    let index = config.index;
    let guards = timely::execute::execute_from(builders, others, timely::WorkerConfig::default(), move |worker| {
        let local = worker.index() % WORKERS;
        let (mut count, mut sum) = (0u64, 0u64);
        let (send, received) = std::sync::mpsc::channel();
        let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, numbers) = scope.new_input::<Vec<u64>>();
            let (probe, _) = numbers.exchange(|n| *n).inspect(move |n| send.send(*n).unwrap()).probe();
            (input, probe)
        });
        let heartbeat = health.heartbeat(local);
        let turn = || heartbeat.beat();
        match mode.as_str() {
            "exchange" => {
                for n in 0..NUMBERS {
                    input.send(n);
                }
                input.close();
                while !probe.done() {
                    turn();
                    worker.step_or_park(Some(Duration::from_millis(100)));
                    received.try_iter().for_each(|n| (count, sum) = (count + 1, sum + n));
                }
            }
            // Until something ends it; process 1 may misbehave on purpose.
            _ => {
                let start = Instant::now();
                loop {
                    turn();
                    worker.step_or_park(Some(Duration::from_millis(20)));
                    received.try_iter().for_each(drop);
                    input.send(worker.index() as u64);
                    let misbehave = index == 1 && local == 1 && start.elapsed() > Duration::from_secs(1);
                    match mode.as_str() {
                        "panic" if misbehave => panic!("a broken invariant"),
                        "hang" if misbehave => thread::sleep(Duration::from_secs(60)),
                        _ => {}
                    }
                }
            }
        }
        (count, sum)
    })
    .unwrap();
    let results: Vec<(u64, u64)> = guards.join().into_iter().map(Result::unwrap).collect();
    watch.unwrap().finished();
    let (count, sum) = results.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("received {count} {sum}");
}

/// `host:port` of each of `processes`, on loopback addresses that no other test uses.
fn hosts(processes: usize) -> Vec<String> {
    static TESTS: AtomicUsize = AtomicUsize::new(1);
    let (pid, test) = (std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
    let ip = format!("127.{}.{}.{test}", 1 + (pid >> 8) % 254, pid & 255);
    (0..processes).map(|i| format!("{ip}:{}", 2101 + i)).collect()
}

/// One process of a run, killed when dropped.
struct Peer {
    child: Child,
    output: PathBuf,
}

impl Peer {
    fn spawn(dir: &Path, mode: &str, hosts: &[String], index: usize, more: &[(&str, &str)]) -> Peer {
        static SPAWNED: AtomicUsize = AtomicUsize::new(0);
        let output = dir.join(format!("output-{}", SPAWNED.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&output).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer_process", "--nocapture"])
            .env("PEER_MODE", mode)
            .env("PEER_HOSTS", hosts.join(","))
            .env("PEER_INDEX", index.to_string())
            .envs(more.iter().copied())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Peer { child, output }
    }

    /// All processes of a run.
    fn spawn_all(dir: &Path, mode: &str, hosts: &[String], more: &[(&str, &str)]) -> Vec<Peer> {
        (0..hosts.len()).map(|i| Peer::spawn(dir, mode, hosts, i, more)).collect()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until the process has printed `text`.
    fn says(&self, text: &str) {
        let until = Instant::now() + Duration::from_secs(40);
        while !self.text().contains(text) {
            assert!(Instant::now() < until, "waiting for \"{text}\" in:\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) {
        assert!(testkit::signal(self.child.id(), signal));
    }

    /// Exit code and output; fails if the process goes on for more than `limit`.
    fn ends_within(&mut self, limit: Duration) -> (Option<i32>, String) {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.text());
            }
            assert!(Instant::now() < until, "still running after {limit:?}:\n{}", self.text());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An authority named `name`, and a certificate of it for the host of each of `hosts`.
fn certificates(dir: &Path, name: &str, hosts: &[String]) -> String {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let prefix = dir.join(name).display().to_string();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(format!("{prefix}-ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let names: Vec<String> = hosts.iter().map(|h| h.rsplit_once(':').unwrap().0.to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    std::fs::write(format!("{prefix}.pem"), cert.pem()).unwrap();
    let path = format!("{prefix}.key");
    std::fs::write(&path, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    prefix
}

/// The processes `peers` together received every number once from every worker.
fn all_received(peers: &mut [Peer]) {
    let workers = (peers.len() * WORKERS) as u64;
    let (mut count, mut sum) = (0, 0);
    for peer in peers {
        let (code, text) = peer.ends_within(Duration::from_secs(60));
        assert_eq!(code, Some(0), "{text}");
        assert!(!text.contains("lost"), "{text}");
        let line = text.lines().find_map(|l| l.strip_prefix("received ")).unwrap();
        let (c, s) = line.split_once(' ').unwrap();
        count += c.parse::<u64>().unwrap();
        sum += s.parse::<u64>().unwrap();
    }
    assert_eq!((count, sum), (workers * NUMBERS, workers * NUMBERS * (NUMBERS - 1) / 2));
}

#[test]
fn processes_exchange_in_the_clear_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    all_received(&mut Peer::spawn_all(dir.path(), "exchange", &hosts(3), &[]));
}

#[test]
fn processes_exchange_over_mutual_tls() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let tls = certificates(dir.path(), "a", &hosts);
    let mut peers = Peer::spawn_all(dir.path(), "exchange", &hosts, &[("PEER_TLS", &tls)]);
    all_received(&mut peers);
    assert!(peers[0].text().contains("tls=true"));
}

/// What `end` does to process 1 of two, process 0 notices in time, says who, and exits with code 3.
fn loss_is_noticed(tls: bool, end: fn(&Peer), want: &str) {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let prefix = certificates(dir.path(), "a", &hosts);
    let more = if tls { vec![("PEER_TLS", prefix.as_str())] } else { vec![] };
    let mut peers = Peer::spawn_all(dir.path(), "forever", &hosts, &more);
    peers.iter().for_each(|p| p.says("connected"));
    thread::sleep(Duration::from_millis(500));
    end(&peers[1]);
    let (code, text) = peers[0].ends_within(NOTICED);
    assert_eq!(code, Some(3), "{text}");
    let want = format!("error: lost process 1 ({}): {want}", hosts[1]);
    assert!(text.contains(&want) && text.contains("so that the supervisor restarts the cluster"), "{want}\n{text}");
    assert!(text.contains(&format!("hook: lost process 1 ({})", hosts[1])), "{text}");
}

#[test]
fn a_killed_process_is_noticed() {
    loss_is_noticed(false, |peer| peer.signal("KILL"), "");
}

#[test]
fn a_killed_process_is_noticed_over_tls() {
    loss_is_noticed(true, |peer| peer.signal("KILL"), "");
}

#[test]
fn a_stopped_process_is_noticed() {
    loss_is_noticed(false, |peer| peer.signal("STOP"), "no heartbeat for 3.0 s");
}

#[test]
fn a_stopped_process_is_noticed_over_tls() {
    loss_is_noticed(true, |peer| peer.signal("STOP"), "no heartbeat for 3.0 s");
}

#[test]
fn of_three_both_others_name_the_one_that_hangs() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(3));
    let mut peers = Peer::spawn_all(dir.path(), "forever", &hosts, &[]);
    peers.iter().for_each(|p| p.says("connected"));
    peers[1].signal("STOP");
    for i in [0, 2] {
        let (code, text) = peers[i].ends_within(NOTICED);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(&format!("lost process 1 ({}): no heartbeat", hosts[1])), "{text}");
    }
    // When it wakes up, it finds itself alone.
    peers[1].signal("CONT");
    let (code, text) = peers[1].ends_within(NOTICED);
    assert_eq!(code, Some(3), "{text}");
}

#[test]
fn a_dropped_link_is_noticed_on_both_sides() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let through = vec![port.local_addr().unwrap().to_string(), hosts[1].clone()];
    let cut = Arc::new(AtomicBool::new(false));
    let (target, is_cut) = (hosts[0].clone(), cut.clone());
    thread::spawn(move || {
        // Connections stay open after the cut, but nothing passes any more.
        for caller in port.incoming() {
            let (caller, Ok(callee)) = (caller.unwrap(), TcpStream::connect(&target)) else { continue };
            for (mut from, mut to) in [(caller.try_clone().unwrap(), callee.try_clone().unwrap()), (callee, caller)] {
                let is_cut = is_cut.clone();
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        if is_cut.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_secs(60));
                        }
                        to.write_all(&buffer[..read]).unwrap();
                    }
                });
            }
        }
    });
    let mut peers =
        [Peer::spawn(dir.path(), "forever", &hosts, 0, &[]), Peer::spawn(dir.path(), "forever", &through, 1, &[])];
    peers.iter().for_each(|p| p.says("connected"));
    cut.store(true, Ordering::Relaxed);
    for (i, other) in [(0, 1), (1, 0)] {
        let (code, text) = peers[i].ends_within(NOTICED);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(&format!("error: lost process {other} (")), "{text}");
    }
}

#[test]
fn a_panic_in_one_worker_ends_all_and_is_named() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let mut peers = Peer::spawn_all(dir.path(), "panic", &hosts, &[]);
    peers.iter().for_each(|p| p.says("connected"));
    let (code, text) = peers[1].ends_within(NOTICED);
    assert_eq!(code, Some(101), "{text}");
    assert!(text.contains("a broken invariant") && text.contains("cluster.rs:"), "{text}");
    let (code, text) = peers[0].ends_within(NOTICED);
    assert_eq!(code, Some(3), "{text}");
    let want = format!("process 1 ({}) left: panic in thread timely:work-1: a broken invariant", hosts[1]);
    assert!(text.contains(&want), "{text}");
}

#[test]
fn a_hung_worker_ends_all_and_is_named() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let mut peers = Peer::spawn_all(dir.path(), "hang", &hosts, &[]);
    peers.iter().for_each(|p| p.says("connected"));
    for peer in peers.iter_mut().rev() {
        let (code, text) = peer.ends_within(NOTICED);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("worker 1 has not moved for 2."), "{text}");
    }
}

#[test]
fn silence_and_garbage_hold_up_nobody() {
    for tls in [false, true] {
        let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
        let prefix = certificates(dir.path(), "a", &hosts);
        let more = if tls { vec![("PEER_TLS", prefix.as_str())] } else { vec![] };
        let first = Peer::spawn(dir.path(), "exchange", &hosts, 0, &more);
        let connect = || {
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                match TcpStream::connect(&hosts[0]) {
                    Ok(stream) => return stream,
                    Err(error) => assert!(Instant::now() < until, "{error}"),
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        let silent: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
        let hello = b"LOGSTER\n\0\x01\0cut short";
        let garbage: [&[u8]; 5] =
            [b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0xff; 100], hello, &[0x16, 3, 1, 2, 0, 1, 0, 0]];
        let garbage: Vec<TcpStream> = garbage
            .iter()
            .map(|bytes| {
                let mut stream = connect();
                stream.write_all(bytes).unwrap();
                stream
            })
            .collect();
        drop(connect());
        first.says("refused a connection from");
        let second = Peer::spawn(dir.path(), "exchange", &hosts, 1, &more);
        all_received(&mut [first, second]);
        drop((silent, garbage));
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let (a, b) = (certificates(dir.path(), "a", &hosts), certificates(dir.path(), "b", &hosts));
    // b's certificate, but a's authority as its own: process 0 alone must refuse it.
    let c = dir.path().join("c").display().to_string();
    for (from, to) in [(&a, "-ca.pem"), (&b, ".pem"), (&b, ".key")] {
        std::fs::copy(format!("{from}{to}"), format!("{c}{to}")).unwrap();
    }
    let start = ("PEER_START", "8");
    let mut first = Peer::spawn(dir.path(), "exchange", &hosts, 0, &[("PEER_TLS", &a), start]);
    for other in [&b, &c] {
        let mut second = Peer::spawn(dir.path(), "exchange", &hosts, 1, &[("PEER_TLS", other), start]);
        let (code, text) = second.ends_within(NOTICED);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(&format!("error: process 0 ({}) and this process do not accept", hosts[0])), "{text}");
    }
    let (code, text) = first.ends_within(Duration::from_secs(20));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains(&format!("missing: process 1 ({})", hosts[1])) && text.contains("refused a connection"));
}

#[test]
fn a_process_without_certificate_is_refused() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let tls = certificates(dir.path(), "a", &hosts);
    let start = ("PEER_START", "4");
    let mut first = Peer::spawn(dir.path(), "exchange", &hosts, 0, &[("PEER_TLS", &tls), start]);
    let mut second = Peer::spawn(dir.path(), "exchange", &hosts, 1, &[start]);
    for peer in [&mut first, &mut second] {
        let (code, text) = peer.ends_within(Duration::from_secs(20));
        assert_eq!(code, Some(2), "{text}");
        assert!(!text.contains("connected\n"), "{text}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let tls = certificates(dir.path(), "a", &hosts);
    std::fs::set_permissions(format!("{tls}.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = Peer::spawn(dir.path(), "exchange", &hosts, 0, &[("PEER_TLS", &tls)]).ends_within(NOTICED);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("can be read or changed by others (mode 644): chmod 600"), "{text}");
}

#[test]
fn processes_that_disagree_do_not_start() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let mut first = Peer::spawn(dir.path(), "exchange", &hosts, 0, &[("PEER_FINGERPRINT", "one"), ("PEER_START", "8")]);
    let mut second = Peer::spawn(dir.path(), "exchange", &hosts, 1, &[("PEER_FINGERPRINT", "two")]);
    let (code, text) = second.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("has a configuration with fingerprint two, process 0 has one"), "{text}");
    // A process of a wider run.
    let wider = [hosts.clone(), self::hosts(1)].concat();
    let mut third = Peer::spawn(dir.path(), "exchange", &wider, 1, &[("PEER_FINGERPRINT", "one")]);
    let (code, text) = third.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("has process count 3, process 0 has 2"), "{text}");
    let (code, text) = first.ends_within(Duration::from_secs(20));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("missing: process 1") && text.contains("process count 3"), "{text}");
}

#[test]
fn a_process_started_twice_says_so_and_disturbs_nobody() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let mut peers = Peer::spawn_all(dir.path(), "forever", &hosts, &[]);
    peers.iter().for_each(|p| p.says("connected"));
    // The same index on the same machine, and on another one.
    let (code, text) = Peer::spawn(dir.path(), "forever", &hosts, 1, &[]).ends_within(NOTICED);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("is this process running already"), "{text}");
    let elsewhere = vec![hosts[0].clone(), self::hosts(2)[1].clone()];
    let mut twin = Peer::spawn(dir.path(), "forever", &elsewhere, 1, &[("PEER_START", "2")]);
    let (code, text) = twin.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("process 1 is connected already: is it running twice?"), "{text}");
    for peer in &mut peers {
        assert!(peer.child.try_wait().unwrap().is_none(), "{}", peer.text());
    }
}

/// Whoever called whom: `dies` is connected with `stays`, and gone before process 2 makes the run complete.
fn may_come_again(stays: usize, dies: usize) {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(3));
    let start = |index| Peer::spawn(dir.path(), "exchange", &hosts, index, &[]);
    let (first, lost) = (start(stays), start(dies));
    first.says(&format!("still waiting for process 2 ({}", hosts[2]));
    lost.signal("KILL");
    drop(lost);
    let last = start(2);
    last.says(&format!("process {dies} ({}", hosts[dies]));
    all_received(&mut [first, last, start(dies)]);
}

#[test]
fn a_caller_that_dies_while_others_are_awaited_may_come_again() {
    may_come_again(0, 1);
}

#[test]
fn a_called_process_that_dies_while_others_are_awaited_may_come_again() {
    may_come_again(1, 0);
}
