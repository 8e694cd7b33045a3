//! Linux facts: auditd events and eBPF lines to nodes, edges, tokens and ATT&CK findings.
//!
//! Both sources speak of the same machine, and a fleet may run either or both. So both are read into the same few
//! facts (an execution, a file touched, a connection), and the same fact yields the same tokens whoever tells it.
//! What only one of them can tell (arguments, results, users: auditd; files read: eBPF) yields tokens of its own.
//!
//! - Input: one pane's observations, in order.
//! - Output: calls of the [`PaneBuilder`].
//! - State: what the pane has shown so far: the process behind each pid, files written, files run.
//! - Ordering: facts are taken by time, audit before eBPF at the same millisecond.
//! - Failure: none; a line that lacks what it should have adds nothing.
//!
//! What the two sources do not say, and how it is met:
//! - eBPF prints an `EXEC` line for each directory that a look-up tries, with no result: lines of one pid for the
//!   same name within [`SAME_EXEC_MS`] are one execution, of the last path. auditd's `execve` of that time is the
//!   same execution again, and knows more.
//! - An `EXEC` line shows the caller's name, which after a fork is the parent's.
//! - auditd shows each caller's parent by number: the number is looked up among the pane's processes, and what a
//!   pane does not know is joined at the merge.
//!
//! Tokens are `family:text`, masked by [`paths`], [`programs`] and [`words`]. Families:
//! `x` program run, `xd` its directory, `xu` by what user, `xi` users and terminal (auditd), `xf` failed, `xr` run
//! by interpreter, `xw` working directory, `su` gained another user, `al` and `ah` length and entropy of arguments,
//! `a` argument, `ae` program and argument, `f` file operation and place, `fc` with program, `fx` program and
//! extension of what is written, `ff` truncated or appended, `fe` failed, `mm` mode set, `n` network, `nc` with
//! program, `k` socket family, `s` system call and result, `sc` with program, `u` account event, `g` a chain of
//! facts (a file written and then run). Programs that serve the same end bear one name (`ask:user`, `wrap`): one
//! list of commands is no sign. What every program reads to start at all has no tokens.

mod facts;
mod files;
mod paths;
mod programs;
mod relatives;
mod techniques;
mod words;

use std::borrow::Cow;
use std::net::IpAddr;

use logster_schema::{Field, Kind, Observation, TimeMs};
use rustc_hash::FxHashMap;

use self::facts::{Exec, Fact, File, What, base_name, join_executions};
use self::paths::Place;
use self::programs::{Program, Role};
pub use self::relatives::is_idle;
pub(crate) use self::relatives::{context, lineage};
use super::TokenId;
use super::audit::{self, Action, Address, FileOp, Line, NetOp, UserClass};
use crate::graph::{Attribute, NodeId, NodeKind, PaneBuilder, Relation, SetId};

/// Two reports of an execution by the same pid this close are one execution, in milliseconds.
const SAME_EXEC_MS: i64 = 500;
/// Files of one place that a process wrote and that get a node each; further ones share one.
const FILES_EACH: u32 = 24;
/// Bytes of a command line kept for sentences.
const COMMAND_BYTES: usize = 200;

/// Programs that an idle machine runs: the default of `inference.idle_allowlist`.
///
/// A window in which nothing else showed up is benign without asking the model. The list is meant to be short:
/// daemons that do the same whoever attacks, and nothing that runs what it is told (no shell, no interpreter, no
/// `sudo`, no package manager, no web server or database). `sshd` and `cron` are on it: what they start is a
/// process of its own, which is then not on the list. See [`is_idle`]. Compared with a process's label, which is a bare name only
/// for a program in the system's own directories; a `cron` run from elsewhere bears its whole path.
pub const IDLE_ALLOW_LIST: &[&str] = &[
    "agetty",
    "atd",
    "auditd",
    "chronyd",
    "cron",
    "crond",
    "dbus-broker",
    "dbus-daemon",
    "init",
    "irqbalance",
    "ntpd",
    "polkitd",
    "rsyslogd",
    "sshd",
    "sshd-session",
    "systemd",
    "systemd-journald",
    "systemd-logind",
    "systemd-networkd",
    "systemd-resolved",
    "systemd-timesyncd",
    "systemd-udevd",
    "unix_chkpwd",
];

/// Adds one pane's observations, sorted by [`Observation::order`], to `pane`.
pub(crate) fn build(pane: &mut PaneBuilder, observations: &[Observation]) {
    let events = audit::assemble(observations.iter().filter_map(Line::of));
    let mut facts: Vec<Fact<'_>> = Vec::with_capacity(observations.len());
    let mut events = events.into_iter().filter_map(Fact::of_audit).peekable();
    for observation in observations {
        if let Some(fact) = Fact::of_ebpf(observation) {
            while let Some(event) = events.next_if(|event| event.time_ms <= fact.time_ms) {
                facts.push(event);
            }
            facts.push(fact);
        }
    }
    facts.extend(events);
    let facts = join_executions(facts);
    let mut images = FxHashMap::default();
    for fact in &facts {
        if let Some(exe) = fact.exe.as_deref().filter(|_| !matches!(fact.what, What::Exec(_))) {
            images.entry(fact.pid).or_insert(exe);
        }
    }
    let mut builder = Builder::new(pane, images);
    for fact in &facts {
        builder.add(fact);
    }
    builder.finish();
}

/// Number of an interned program.
type ProgramNo = u16;

/// The process behind a pid.
#[derive(Clone, Copy, Debug)]
struct Process {
    node: NodeId,
    program: ProgramNo,
    /// The program is known, not just assumed.
    named: bool,
    /// Its execution was seen in this pane.
    started: bool,
    /// Program of the process that started it, where the pane shows it.
    parent: Option<ProgramNo>,
    /// Whose image the process still had when it made the calls that eBPF reports a moment late: its parent's, or
    /// its own before the execution.
    before: Option<(NodeId, ProgramNo)>,
    /// When it was executed.
    since_ms: TimeMs,
    uid: Option<u32>,
}

/// Who wrote a file in this pane, and when.
#[derive(Clone, Copy, Debug)]
struct Written {
    by: ProgramNo,
    pid: u32,
    time_ms: TimeMs,
}

/// What the pane knows of a path.
#[derive(Debug)]
struct PathState {
    place: u16,
    node: Option<NodeId>,
    written: Option<Written>,
    ran: bool,
}

/// What a set of tokens is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SetKey {
    File(FileOp, ProgramNo, u16),
    Failed(FileOp, u16, bool),
    Network(NetOp, ProgramNo, &'static str, &'static str, bool),
}

struct Builder<'p, 'f> {
    pane: &'p mut PaneBuilder,
    /// Image of each pid that was running before its first execution in this pane.
    images: FxHashMap<u32, &'f str>,
    processes: FxHashMap<u32, Process>,
    programs: Vec<(Program, String)>,
    /// By listed name and token: a thread's name and a path tell of the same program.
    program_numbers: FxHashMap<(Option<&'static str>, String), ProgramNo>,
    programs_at: FxHashMap<Box<str>, ProgramNo>,
    programs_called: FxHashMap<Box<str>, ProgramNo>,
    places: Vec<Place>,
    place_numbers: FxHashMap<Place, u16>,
    paths: Vec<PathState>,
    path_numbers: FxHashMap<Box<str>, u32>,
    sets: FxHashMap<SetKey, SetId>,
    /// Files written by a process in a place.
    files_of: FxHashMap<(NodeId, u16), u32>,
    tally: techniques::Tally,
    now: TimeMs,
}

impl<'p, 'f> Builder<'p, 'f> {
    fn new(pane: &'p mut PaneBuilder, images: FxHashMap<u32, &'f str>) -> Self {
        Self {
            pane,
            images,
            processes: FxHashMap::default(),
            programs: Vec::new(),
            program_numbers: FxHashMap::default(),
            programs_at: FxHashMap::default(),
            programs_called: FxHashMap::default(),
            places: Vec::new(),
            place_numbers: FxHashMap::default(),
            paths: Vec::new(),
            path_numbers: FxHashMap::default(),
            sets: FxHashMap::default(),
            files_of: FxHashMap::default(),
            tally: techniques::Tally::default(),
            now: 0,
        }
    }

    fn add(&mut self, fact: &Fact<'_>) {
        self.now = fact.time_ms;
        self.pane.at(fact.time_ms);
        match &fact.what {
            What::Exec(exec) if exec.errno == 0 => self.exec(fact, exec),
            What::Exec(exec) => {
                let process = self.process_of(fact);
                let program = self.program_at(&exec.path);
                let token = format!("xf:{}|{}", self.token_of(program), errno_class(exec.errno));
                self.pane.token(process.node, &token);
            }
            What::File(file) => {
                let process = self.process_of(fact);
                self.file(&process, fact, file);
            }
            What::Network { op, address, ok } => {
                let process = self.process_of(fact);
                self.network(&process, *op, address.as_ref(), *ok);
            }
            What::Socket(family) => {
                let process = self.process_of(fact);
                let family = if family.starts_with("AF_") && family.len() <= 16 { family } else { "AF" };
                self.pane.token(process.node, &format!("k:{family}"));
                let token = format!("kc:{}|{family}", self.token_of(process.program));
                self.pane.token(process.node, &token);
            }
            What::Call { name, errno } => {
                let process = self.process_of(fact);
                self.call(&process, name, *errno);
            }
            What::User { kind, op, ok, command } => self.user(fact, kind, op, *ok, command.as_deref()),
        }
    }

    // Programs, places, paths: each text is classified once.

    fn program_at(&mut self, path: &str) -> ProgramNo {
        if let Some(&number) = self.programs_at.get(path) {
            return number;
        }
        let number = self.program(Program::at(path));
        self.programs_at.insert(path.into(), number);
        number
    }

    fn program_called(&mut self, comm: &str) -> ProgramNo {
        if let Some(&number) = self.programs_called.get(comm) {
            return number;
        }
        let number = self.program(Program::called(comm));
        self.programs_called.insert(comm.into(), number);
        number
    }

    fn program(&mut self, program: Program) -> ProgramNo {
        let next = self.programs.len() as ProgramNo;
        let token = program.token();
        let number = *self.program_numbers.entry((program.name, token.clone())).or_insert(next);
        if number == next {
            self.programs.push((program, token));
        }
        number
    }

    fn token_of(&self, program: ProgramNo) -> &str {
        &self.programs[usize::from(program)].1
    }

    fn role_of(&self, program: ProgramNo) -> Role {
        self.programs[usize::from(program)].0.role
    }

    fn path(&mut self, path: &str) -> u32 {
        if let Some(&number) = self.path_numbers.get(path) {
            return number;
        }
        let place = Place::of(path);
        let next = self.places.len() as u16;
        let place = *self.place_numbers.entry(place).or_insert(next);
        if place == next {
            self.places.push(Place::of(path));
        }
        let number = self.paths.len() as u32;
        self.paths.push(PathState { place, node: None, written: None, ran: false });
        self.path_numbers.insert(path.into(), number);
        number
    }

    fn place_of(&self, path: u32) -> Place {
        self.places[usize::from(self.paths[path as usize].place)]
    }

    fn file_node(&mut self, path: u32, text: &str) -> NodeId {
        if let Some(node) = self.paths[path as usize].node {
            return node;
        }
        let place = self.place_of(path);
        let node = self.pane.node(NodeKind::File, text, text);
        self.pane.token(node, &format!("p:{}", place.token()));
        self.pane.token(node, &format!("px:{}", place.extension));
        self.paths[path as usize].node = Some(node);
        node
    }

    // Processes.

    /// The process of `pid`; where it was running already, `program` is what is known of it.
    fn process(&mut self, pid: u32, image: Option<&str>, comm: Option<&str>) -> Process {
        if let Some(process) = self.processes.get(&pid)
            && (process.named || (image.is_none() && comm.is_none()))
        {
            return *process;
        }
        let image = self.images.get(&pid).copied().or(image);
        let program = match (image, comm) {
            (Some(image), _) => self.program_at(image),
            (None, Some(comm)) => self.program_called(comm),
            (None, None) if pid == 1 => self.program_called("init"),
            (None, None) => self.program(UNKNOWN),
        };
        let node = self.pane.process_by_pid(pid);
        let named = image.is_some() || comm.is_some() || pid == 1;
        let process =
            Process { node, program, named, started: false, parent: None, before: None, since_ms: 0, uid: None };
        if named {
            self.describe(&process, image.map_or_else(|| comm.unwrap_or("init").into(), label));
        }
        self.processes.insert(pid, process);
        process
    }

    fn process_of(&mut self, fact: &Fact<'_>) -> Process {
        let known = self.processes.get(&fact.pid).copied().filter(|process| process.named);
        let mut process = known.unwrap_or_else(|| self.process(fact.pid, fact.exe.as_deref(), fact.comm.as_deref()));
        if process.uid.is_none()
            && let Some(uid) = fact.uid
        {
            process.uid = Some(uid);
            self.processes.insert(fact.pid, process);
            self.user_attribute(process.node, fact);
        }
        if let (Some((node, program)), Some(comm), None) = (process.before, fact.comm.as_deref(), &fact.exe)
            && self.now - process.since_ms <= SAME_EXEC_MS
            && program != process.program
            && program == self.program_called(comm)
        {
            return Process { node, program, ..process };
        }
        // A fork that never executes anything (a subshell) belongs to its parent.
        if known.is_none()
            && let Some(parent) = fact.ppid.and_then(|ppid| self.processes.get(&ppid).copied())
            && parent.program == process.program
            && !self.programs[usize::from(parent.program)].0.is_hub()
        {
            self.pane.edge(parent.node, process.node, Relation::Spawned);
        }
        process
    }

    /// Label and tokens of what a process is.
    fn describe(&mut self, process: &Process, label: Cow<'_, str>) {
        self.pane.label(process.node, &label);
        let (program, token) = &self.programs[usize::from(process.program)];
        if program.is_hub() {
            self.pane.hub(process.node);
        }
        self.pane.attribute(process.node, Attribute::Program, token);
        self.pane.token(process.node, &format!("img:{token}"));
    }

    fn user_attribute(&mut self, node: NodeId, fact: &Fact<'_>) {
        let text = match (fact.uid, fact.euid) {
            (None, _) => return,
            (Some(0), _) => "root".to_owned(),
            (Some(uid), Some(0)) => format!("uid {uid} as root"),
            (Some(uid), Some(euid)) if uid != euid => format!("uid {uid} as {euid}"),
            (Some(uid), _) => format!("uid {uid}"),
        };
        self.pane.attribute(node, Attribute::Integrity, &text);
    }

    fn exec(&mut self, fact: &Fact<'_>, exec: &Exec<'_>) {
        // A process that runs one program after another (`env`, `nohup`) is its own parent.
        let before = self.processes.get(&fact.pid).copied();
        let parent = match (before.filter(|process| process.started), fact.ppid) {
            (Some(process), _) => Some(process),
            (None, Some(ppid)) => {
                let caller = fact.comm.as_deref().filter(|_| exec.from_ebpf);
                Some(self.process(ppid, None, caller))
            }
            (None, None) => None,
        };
        let program = self.program_at(&exec.path);
        let node = self.pane.process_started(fact.pid);
        let process = Process {
            node,
            program,
            named: true,
            started: true,
            parent: parent.map(|parent| parent.program),
            before: before.filter(|before| before.named).or(parent).map(|before| (before.node, before.program)),
            since_ms: self.now,
            uid: fact.uid,
        };
        self.processes.insert(fact.pid, process);
        self.describe(&process, label(&exec.path));
        self.user_attribute(node, fact);
        if let Some(parent) = parent {
            self.pane.edge(parent.node, node, Relation::Spawned);
        }
        let name = self.token_of(program).to_owned();
        let path = self.path(&exec.path);
        let place = self.place_of(path);
        self.pane.token(node, &format!("x:{name}"));
        self.pane.token(node, &format!("xd:{}", place.token()));
        if let Some(uid) = fact.uid {
            self.pane.token(node, &format!("xu:{}|{name}", UserClass::of(uid).letter()));
        }
        if let (Some(uid), Some(euid), Some(auid)) = (fact.uid, fact.euid, fact.auid) {
            let [u, e, a] = [uid, euid, auid].map(|id| UserClass::of(id).letter());
            let terminal = if fact.terminal { 't' } else { '-' };
            self.pane.token(node, &format!("xi:{u}{e}{a}{terminal}"));
            if uid != euid {
                self.pane.token(node, &format!("su:{name}"));
            }
        }
        if let Some(exe) = fact.exe.as_deref() {
            let interpreter = self.program_at(exe);
            if interpreter != program {
                let token = format!("xr:{name}={}", self.token_of(interpreter));
                self.pane.token(node, &token);
            }
        }
        if let Some(cwd) = exec.cwd.as_deref() {
            self.pane.token(node, &format!("xw:{name}|{}", Place::of(cwd).token()));
        }
        let words = self.arguments(node, &name, &exec.argv);
        self.image(&process, fact, exec, path);
        self.files_named(&process, fact, exec, &name);
        self.chain(&process, parent.as_ref(), exec);
        self.exec_findings(&process, parent.as_ref(), fact, exec, &words);
    }

    fn arguments(&mut self, node: NodeId, name: &str, argv: &[Cow<'_, str>]) -> std::collections::BTreeSet<String> {
        let Some((_, arguments)) = argv.split_first() else { return Default::default() };
        let length: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
        self.pane.token(node, &format!("al:{}", length.checked_ilog2().map_or(0, |bits| bits + 1).min(12)));
        let mut command = String::new();
        for argument in argv {
            if command.len() < COMMAND_BYTES {
                command.push_str(&argument[..argument.floor_char_boundary(COMMAND_BYTES)]);
                command.push(' ');
            }
        }
        self.pane.attribute(node, Attribute::Command, command.trim_end());
        if length > 40 {
            let bytes: Vec<u8> = arguments.iter().flat_map(|argument| argument.bytes()).take(4096).collect();
            self.pane.token(node, &format!("ah:{}", words::entropy_bits(&bytes)));
        }
        let words = words::words(arguments.iter().map(|argument| argument.as_ref()));
        for word in &words {
            self.pane.token(node, &format!("a:{word}"));
            self.pane.token(node, &format!("ae:{name}|{word}"));
        }
        words
    }

    /// The image or script as a file, where it is more than one of the system's programs.
    fn image(&mut self, process: &Process, fact: &Fact<'_>, exec: &Exec<'_>, path: u32) {
        let state = &mut self.paths[path as usize];
        state.ran = true;
        let written = state.written;
        if written.is_some() || !self.place_of(path).is_system_bin() {
            let file = self.file_node(path, &exec.path);
            self.pane.edge(process.node, file, Relation::Executed);
        }
        if let Some(written) = written {
            let by = self.role_of(written.by).name();
            self.pane.flag(process.node, "g:dropexec");
            self.pane.flag(process.node, &format!("g:dropexec|{by}"));
            if written.pid != fact.pid {
                self.pane.flag(process.node, &format!("g:dropexec2|{by}"));
            }
            self.dropped(process, &exec.path, &written);
        }
    }

    /// Files among the arguments: a script that an interpreter runs, a file written a moment ago.
    fn files_named(&mut self, process: &Process, fact: &Fact<'_>, exec: &Exec<'_>, name: &str) {
        let role = self.role_of(process.program);
        let runs_scripts = matches!(role, Role::Shell | Role::Interpreter);
        let mut inline = false;
        for argument in exec.argv.iter().skip(1).take(6) {
            if inline {
                // `sh -c '...'`: the script is the argument.
                let text = argument.trim();
                let script = self.pane.node(NodeKind::Script, text, text);
                self.pane.edge(process.node, script, Relation::Executed);
                self.pane.token(script, &format!("lang:{name}"));
                break;
            }
            if argument.starts_with('-') {
                inline =
                    runs_scripts && matches!(argument.as_ref(), "-c" | "-lc" | "-ic" | "-e" | "-r" | "-ec" | "-xc");
                continue;
            }
            let path = audit::absolute(exec.cwd.as_deref(), argument.as_ref().into());
            if !path.starts_with('/') {
                continue;
            }
            let number = match self.path_numbers.get(path.as_ref()) {
                Some(&number) => number,
                None if runs_scripts && exec.cwd.is_some() => self.path(&path),
                None => continue,
            };
            if let Some(written) = self.paths[number as usize].written
                && written.pid != fact.pid
            {
                let by = self.role_of(written.by).name();
                self.pane.flag(process.node, &format!("g:dropuse|{name}|{by}"));
                if runs_scripts {
                    self.dropped(process, &path, &written);
                }
            }
            if runs_scripts {
                self.paths[number as usize].ran = true;
                let file = self.file_node(number, &path);
                self.pane.edge(process.node, file, Relation::Executed);
                break;
            }
        }
    }

    /// What follows from who started whom.
    fn chain(&mut self, process: &Process, parent: Option<&Process>, exec: &Exec<'_>) {
        let role = self.role_of(process.program);
        if let Some(parent) = parent {
            let by = self.role_of(parent.program);
            let above = parent.parent.map(|program| self.role_of(program));
            if matches!(by, Role::Server | Role::Interpreter) && role == Role::Shell {
                self.pane.flag(process.node, &format!("g:{}>shell", by.name()));
            }
            if above == Some(Role::Server) && by == Role::Shell && role != Role::Shell {
                self.pane.flag(process.node, "g:server>shell>command");
            }
        }
        if role == Role::Discovery {
            let token = format!("dc:{}", self.token_of(process.program));
            self.pane.token(process.node, &token);
        }
        if role == Role::Shell && techniques::interactive(exec) {
            self.pane.flag(process.node, "g:interactive");
        }
    }

    // Network, system calls, accounts.

    fn network(&mut self, process: &Process, op: NetOp, address: Option<&Address>, ok: bool) {
        let (class, port) = match address {
            Some(Address::Inet(ip, port)) => (paths::address_class(*ip), paths::port_class(*port)),
            Some(Address::Unix(path)) if !ok || path.is_empty() => return,
            Some(Address::Unix(path)) => ("unix", Place::of(path).area),
            Some(Address::Abstract) => ("unix", "abstract"),
            // Netlink and its like: chatter of libraries.
            Some(Address::Other(_)) => return,
            None => ("-", "-"),
        };
        // The far side's port of an accepted connection is chance.
        let port = if op == NetOp::Accept && class != "unix" { "-" } else { port };
        let set = self.set(SetKey::Network(op, process.program, class, port, ok), |builder| {
            let (program, op) = (builder.token_of(process.program), op.name());
            let fail = if ok { "" } else { "!" };
            vec![format!("n:{fail}{op}|{class}|{port}"), format!("nc:{fail}{program}|{op}|{class}|{port}")]
        });
        self.pane.apply(process.node, set);
        let Some(Address::Inet(ip, number)) = address else { return };
        if ip.is_unspecified() || op == NetOp::Bind {
            if op == NetOp::Bind && !ip.is_unspecified() && !ip.is_loopback() {
                self.pane.local_address(&ip.to_string());
            }
            return;
        }
        let (identity, label) = match op {
            NetOp::Accept => (format!("from {ip}"), ip.to_string()),
            _ if *number == 0 => return, // a library asking for a route, not a connection
            _ if ip.is_ipv6() => (format!("[{ip}]:{number}"), format!("[{ip}]:{number}")),
            _ => (format!("{ip}:{number}"), format!("{ip}:{number}")),
        };
        let node = self.pane.node(NodeKind::Network, &identity, &label);
        self.pane.token(node, &format!("n:{}|{class}|{port}", op.name()));
        self.pane.edge(process.node, node, Relation::ConnectedTo);
        if !ip.is_loopback() {
            self.pane.peer(None, &ip.to_string(), *number);
        }
        self.network_findings(process, op, *ip, *number);
    }

    fn call(&mut self, process: &Process, name: &str, errno: u16) {
        if name.is_empty() || name.len() > 24 {
            return;
        }
        let result = errno_class(errno);
        self.pane.token(process.node, &format!("s:{name}|{result}"));
        let token = format!("sc:{}|{name}|{result}", self.token_of(process.program));
        self.pane.token(process.node, &token);
        let node = self.pane.node(NodeKind::Syscall, name, name);
        self.pane.token(node, &format!("s:{name}|{result}"));
        self.pane.edge(process.node, node, Relation::Performed);
        self.call_findings(process, name, errno);
    }

    fn user(&mut self, fact: &Fact<'_>, kind: &str, op: &str, ok: bool, command: Option<&str>) {
        if fact.pid == 0 || kind.len() > 24 {
            return;
        }
        let process = self.process(fact.pid, fact.exe.as_deref(), fact.comm.as_deref());
        let by = fact.exe.as_deref().map_or(process.program, |exe| self.program_at(exe));
        // How one logs in, and whether at the first try, is left out: a password, mistyped, is no attack.
        let login = matches!(
            kind,
            "USER_AUTH"
                | "USER_LOGIN"
                | "USER_ACCT"
                | "USER_ERR"
                | "USER_START"
                | "USER_END"
                | "LOGIN"
                | "USER_LOGOUT"
                | "CRED_ACQ"
                | "CRED_DISP"
                | "CRED_REFR"
        );
        if login {
            let token = format!("ue:session|{}", self.token_of(by));
            self.pane.token(process.node, &token);
            self.user_findings(&process, kind, ok, command);
            return;
        }
        let result = if ok { "" } else { "!" };
        let op = if op.len() <= 24 && op.bytes().all(|b| b.is_ascii_alphabetic() || b == b':' || b == b'_' || b == b'-')
        {
            op
        } else {
            "other"
        };
        self.pane.token(process.node, &format!("u:{result}{kind}|{op}"));
        let token = format!("ue:{result}{kind}|{}", self.token_of(by));
        self.pane.token(process.node, &token);
        self.user_findings(&process, kind, ok, command);
    }

    fn finish(mut self) {
        self.tally_findings();
    }
}

/// A process of which nothing is known but its number.
const UNKNOWN: Program = Program { name: None, role: Role::Other, place: None };

/// A program's name where it lies in the system's own directories, else its path.
fn label(path: &str) -> Cow<'_, str> {
    if Place::of(path).is_system_bin() { base_name(path).into() } else { path.into() }
}

/// What permission bits allow that matters.
fn mode_class(mode: u32) -> &'static str {
    match mode {
        m if m & 0o6000 != 0 => "setid",
        m if m & 0o111 != 0 => "x",
        m if m & 0o002 != 0 => "world",
        _ => "-",
    }
}

/// Result of a call, for tokens: `ok`, refused, absent, or another error.
fn errno_class(errno: u16) -> &'static str {
    match errno {
        0 => "ok",
        1 | 13 => "refused",
        2 => "absent",
        _ => "error",
    }
}

#[cfg(test)]
mod tests;
