//! Both sources read into the same few facts, and the several reports of one execution into one.

use super::*;

/// Something that a process did.
#[derive(Debug)]
pub(super) struct Fact<'a> {
    pub(super) time_ms: TimeMs,
    pub(super) pid: u32,
    pub(super) ppid: Option<u32>,
    /// Thread name; of an eBPF execution the caller's.
    pub(super) comm: Option<Cow<'a, str>>,
    /// Image; auditd only.
    pub(super) exe: Option<Cow<'a, str>>,
    pub(super) uid: Option<u32>,
    pub(super) euid: Option<u32>,
    pub(super) auid: Option<u32>,
    pub(super) terminal: bool,
    pub(super) what: What<'a>,
}

#[derive(Debug)]
pub(super) enum What<'a> {
    Exec(Exec<'a>),
    File(File<'a>),
    Network {
        op: NetOp,
        address: Option<Address>,
        ok: bool,
    },
    /// eBPF: a socket of this family was made.
    Socket(&'a str),
    Call {
        name: &'a str,
        errno: u16,
    },
    User {
        kind: &'a str,
        op: &'a str,
        ok: bool,
        command: Option<Cow<'a, str>>,
    },
}

#[derive(Debug)]
pub(super) struct Exec<'a> {
    pub(super) path: Cow<'a, str>,
    /// Empty where the source does not tell.
    pub(super) argv: Vec<Cow<'a, str>>,
    pub(super) cwd: Option<Cow<'a, str>>,
    /// `errno` of a failed one.
    pub(super) errno: u16,
    /// eBPF: [`Fact::comm`] is the caller's.
    pub(super) from_ebpf: bool,
}

#[derive(Debug)]
pub(super) struct File<'a> {
    pub(super) op: FileOp,
    pub(super) target: Option<Cow<'a, str>>,
    pub(super) others: Vec<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) mode: Option<u32>,
    pub(super) truncates: bool,
    pub(super) appends: bool,
    pub(super) errno: u16,
}

impl<'a> Fact<'a> {
    pub(super) fn of_audit(event: audit::Event<'a>) -> Option<Self> {
        let audit::Event { time_ms, subject, call, ok, errno, action } = event;
        let what = match action {
            // A look-up tries each directory of PATH: what is not there (ENOENT) was not run.
            Action::Exec { .. } if !ok && errno == 2 => return None,
            Action::Exec { path, argv, cwd } => What::Exec(Exec { path: path?, argv, cwd, errno, from_ebpf: false }),
            Action::File { op, targets, source, mode, truncates } => {
                let mut targets = targets.into_iter().map(|target| target.path);
                let target = targets.next();
                let others = targets.collect();
                What::File(File { op, target, others, source, mode, truncates, appends: false, errno })
            }
            // EINPROGRESS: a connection being made.
            Action::Network { op, address } => What::Network { op, address, ok: ok || errno == 115 },
            Action::Call => What::Call { name: call, errno },
            Action::User { kind, op, command, .. } => What::User { kind, op, ok, command },
        };
        Some(Self {
            time_ms,
            pid: subject.pid,
            ppid: subject.ppid,
            comm: subject.comm,
            exe: subject.exe,
            uid: subject.uid,
            euid: subject.euid,
            auid: subject.auid,
            terminal: subject.terminal,
            what,
        })
    }

    pub(super) fn of_ebpf(observation: &'a Observation) -> Option<Self> {
        let kind = observation.activity.kind;
        if !matches!(kind, Kind::EbpfExec | Kind::EbpfFile | Kind::EbpfConnect | Kind::EbpfSocket) {
            return None;
        }
        let (mut pid, mut ppid, mut uid, mut comm) = (None, None, None, None);
        let (mut path, mut flags, mut args, mut address, mut port) = ("", "", "", "", "");
        let (mut direction, mut family) = ("", "");
        for (field, value) in observation.activity.fields.iter() {
            match field {
                Field::ProcessId => pid = value.parse().ok(),
                Field::Ppid => ppid = value.parse().ok(),
                Field::Uid => uid = value.parse().ok(),
                Field::Comm => comm = Some(value),
                Field::Path => path = value,
                Field::Flags => flags = value,
                Field::Args => args = value,
                Field::DestinationIp => address = value,
                Field::DestinationPort => port = value,
                Field::ConnectionType => direction = value,
                Field::SocketType => family = value,
                _ => {}
            }
        }
        let what = match kind {
            Kind::EbpfExec => {
                // The path, or the path and its arguments.
                let mut words = args.split_ascii_whitespace().map(Cow::Borrowed);
                let path = words.next()?;
                let rest: Vec<_> = words.collect();
                let argv = if rest.is_empty() { rest } else { std::iter::once(path.clone()).chain(rest).collect() };
                What::Exec(Exec { path: audit::absolute(None, path), argv, cwd: None, errno: 0, from_ebpf: true })
            }
            Kind::EbpfFile => {
                let has = |flag: &str| flags.split('|').any(|f| f == flag);
                let op = if flags == "O_RDONLY" {
                    FileOp::Read // four lines of five
                } else if has("O_DIRECTORY") {
                    FileOp::List
                } else {
                    audit::open_op(has("O_WRONLY") || has("O_RDWR") || has("O_TRUNC"), has("O_CREAT"))
                };
                let target = Some(path).filter(|p| !p.is_empty()).map(|p| audit::absolute(None, p.into()));
                What::File(File {
                    op,
                    target,
                    others: Vec::new(),
                    source: None,
                    mode: None,
                    truncates: op != FileOp::Read && has("O_TRUNC"),
                    appends: op != FileOp::Read && has("O_APPEND"),
                    errno: 0,
                })
            }
            Kind::EbpfConnect => What::Network {
                op: if direction.eq_ignore_ascii_case("accept") { NetOp::Accept } else { NetOp::Connect },
                address: address
                    .parse::<IpAddr>()
                    .ok()
                    .map(|ip| Address::Inet(ip.to_canonical(), port.parse().unwrap_or(0))),
                ok: true,
            },
            _ => What::Socket(family),
        };
        Some(Self {
            time_ms: observation.time_ms,
            pid: pid?,
            ppid,
            comm: comm.map(Cow::Borrowed),
            exe: None,
            uid,
            euid: None,
            auid: None,
            terminal: false,
            what,
        })
    }
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Makes one fact of the several reports of one execution; see the module's header.
pub(super) fn join_executions(mut facts: Vec<Fact<'_>>) -> Vec<Fact<'_>> {
    // For each pid its latest execution, by place in `facts`.
    let mut latest: FxHashMap<u32, usize> = FxHashMap::default();
    let mut dropped = vec![false; facts.len()];
    for at in 0..facts.len() {
        let What::Exec(exec) = &facts[at].what else { continue };
        if exec.errno != 0 {
            continue;
        }
        let pid = facts[at].pid;
        let same = latest.get(&pid).copied().filter(|&before| {
            let What::Exec(earlier) = &facts[before].what else { return false };
            facts[at].time_ms - facts[before].time_ms <= SAME_EXEC_MS
                && (exec.from_ebpf || earlier.from_ebpf)
                && base_name(&earlier.path) == base_name(&exec.path)
        });
        let Some(before) = same else {
            latest.insert(pid, at);
            continue;
        };
        dropped[at] = true;
        let earlier_is_audit = matches!(&facts[before].what, What::Exec(e) if !e.from_ebpf);
        if earlier_is_audit {
            continue; // it knows all that the line says
        }
        let (head, tail) = facts.split_at_mut(at);
        let (earlier, later) = (&mut head[before], &mut tail[0]);
        let time_ms = earlier.time_ms;
        std::mem::swap(earlier, later);
        earlier.time_ms = time_ms;
        if matches!(&earlier.what, What::Exec(e) if e.from_ebpf) {
            // Still eBPF: the first line's caller is the one that was forked.
            std::mem::swap(&mut earlier.comm, &mut later.comm);
        }
    }
    let mut dropped = dropped.into_iter();
    facts.retain(|_| !dropped.next().unwrap_or(false));
    facts
}
