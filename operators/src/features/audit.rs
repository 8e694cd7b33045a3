//! Reads the text of audit records and joins the records of one audit event into one typed fact.
//!
//! The kernel describes one system call in several lines (`SYSCALL`, `EXECVE`, `CWD`, `PATH`..., `SOCKADDR`,
//! `PROCTITLE`) that share a serial. What a graph needs is the fact: who executed what with which arguments,
//! which file was written, where a connection went.
//!
//! - Input: the audit lines of one pane, in the pane's order.
//! - Output: one [`Event`] per serial, in the order in which serials first appear.
//! - State: none; a pane is read on its own.
//! - Ordering: lines of one event may be interleaved with others', out of order or partly lost. The serial comes
//!   with its time (`1795220776.116:627591`), so a counter that rolls over or restarts cannot join strangers.
//! - Failure: none. A line without what it should carry adds nothing, and an event without a `SYSCALL` line is
//!   what its user-space record says, or nothing.
//!
//! Values are `"quoted"` as they are, or bare; the kernel writes text holding quotes, blanks or control bytes as
//! bare hexadecimal, so a bare value of a text field made of hex digits is decoded. What follows 0x1D (auditd's
//! enrichment, in upper case keys) is read like any other pair and only consulted where numbers say nothing.

mod calls;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use logster_schema::{Field, Kind, Observation, TimeMs};
use rustc_hash::FxHashMap;

use calls::{CALLS, call_by_number};
pub use calls::{Call, FileOp, NetOp};

/// Arguments kept of one execution; more are cut, as are bytes beyond [`MAX_ARGUMENT_BYTES`] in all.
const MAX_ARGUMENTS: usize = 128;
/// Bytes kept of one execution's arguments.
const MAX_ARGUMENT_BYTES: usize = 16 * 1024;
/// The `uid` that means "no login user".
const NO_USER: u32 = u32::MAX;

/// One audit record as the normalizer leaves it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// When.
    pub time_ms: TimeMs,
    /// `SYSCALL`, `PATH`, ...
    pub kind: &'a str,
    /// `<epoch.ms>:<serial>`.
    pub serial: &'a str,
    /// What follows `msg=audit(...):`.
    pub text: &'a str,
}

impl<'a> Line<'a> {
    /// The audit line in `observation`, if it is one.
    pub fn of(observation: &'a Observation) -> Option<Self> {
        if observation.activity.kind != Kind::Audit {
            return None;
        }
        let (mut kind, mut serial, mut text) = ("", "", "");
        for (field, value) in observation.activity.fields.iter() {
            match field {
                Field::AuditType => kind = value,
                Field::AuditSerial => serial = value,
                Field::AuditText => text = value,
                _ => {}
            }
        }
        Some(Self { time_ms: observation.time_ms, kind, serial, text })
    }
}

/// The `key=value` pairs of a record's text. Words without `=` are passed over.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a str,
}

impl<'a> Pairs<'a> {
    /// The pairs of `text`, those inside `msg='...'` included.
    pub fn of(text: &'a str) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Pairs<'a> {
    /// Key and raw value: quotes included, so that [`text`] can tell quoted from hexadecimal.
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.rest.as_bytes();
        let mut start = 0;
        loop {
            start += bytes[start..].iter().position(|b| !matches!(b, b' ' | b'\x1d' | b','))?;
            let equals = start + bytes[start..].iter().position(|b| matches!(b, b'=' | b' ' | b'\x1d'))?;
            let value = equals + 1;
            if bytes[equals] != b'=' {
                start = equals;
                continue;
            }
            if bytes.get(value) == Some(&b'\'') && &bytes[start..equals] == b"msg" {
                start = value + 1;
                continue;
            }
            let end = if bytes.get(value) == Some(&b'"') {
                memchr::memchr(b'"', &bytes[value + 1..]).map_or(bytes.len(), |i| value + i + 2)
            } else {
                memchr::memchr2(b' ', b'\x1d', &bytes[value..]).map_or(bytes.len(), |i| value + i)
            };
            let pair = (&self.rest[start..equals], self.rest[value..end].trim_end_matches('\''));
            self.rest = &self.rest[end..];
            return Some(pair);
        }
    }
}

/// The text of a raw value: without its quotes, or decoded where it is hexadecimal. `None` where it is absent
/// (`(null)`, `(none)`, `?`, empty). Bytes that are not UTF-8 become U+FFFD.
pub fn text(raw: &str) -> Option<Cow<'_, str>> {
    if let Some(quoted) = raw.strip_prefix('"') {
        return Some(quoted.strip_suffix('"').unwrap_or(quoted).into());
    }
    match raw {
        "" | "(null)" | "(none)" | "?" | "<no_memory>" => None,
        _ => match unhex(raw) {
            Some(bytes) => Some(match String::from_utf8(bytes) {
                Ok(s) => s.into(),
                Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned().into(),
            }),
            None => Some(raw.into()),
        },
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    bytes.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// `name` as an absolute path without `.`, `..` and doubled slashes, taken from `cwd` where it is relative.
/// A relative name without an absolute `cwd` stays as it is.
pub fn absolute<'a>(cwd: Option<&str>, name: Cow<'a, str>) -> Cow<'a, str> {
    let relative = !name.starts_with('/');
    // `//`, `/./`, `/../` or a slash at the end; a hidden name takes the long way too.
    let clean = |p: &[u8]| p.len() == 1 || !p.ends_with(b"/") && !p.windows(2).any(|w| w == b"//" || w == b"/.");
    if !relative && clean(name.as_bytes()) {
        return name;
    }
    let base = match cwd.filter(|cwd| cwd.starts_with('/')) {
        Some(cwd) if relative => cwd,
        None if relative => return name,
        _ => "",
    };
    let mut out = String::with_capacity(base.len() + name.len() + 1);
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            part => {
                out.push('/');
                out.push_str(part);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out.into()
}

/// What kind of account a numeric user id is. Ids themselves are a site's own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UserClass {
    /// 0.
    Root,
    /// 1 to 999, or `nobody` (65534).
    Service,
    /// 1000 and above.
    Person,
    /// Unset (4294967295): never logged in.
    Nobody,
}

impl UserClass {
    /// The class of `uid`.
    pub fn of(uid: u32) -> Self {
        match uid {
            0 => Self::Root,
            1..1000 | 65_534 => Self::Service,
            NO_USER => Self::Nobody,
            _ => Self::Person,
        }
    }

    /// One letter, for tokens.
    pub const fn letter(self) -> char {
        match self {
            Self::Root => 'r',
            Self::Service => 's',
            Self::Person => 'u',
            Self::Nobody => 'n',
        }
    }
}

/// Who made a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub ppid: Option<u32>,
    /// Thread name, at most 15 bytes.
    pub comm: Option<Cow<'a, str>>,
    /// Path of the image; after a successful execution the new one (of a script: its interpreter).
    pub exe: Option<Cow<'a, str>>,
    /// Real user.
    pub uid: Option<u32>,
    /// Effective user.
    pub euid: Option<u32>,
    /// Login user.
    pub auid: Option<u32>,
    /// On a terminal of a person: `pts` or `tty`.
    pub terminal: bool,
}

/// Where a socket call went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6 (a v4-mapped address is IPv4) and port.
    Inet(IpAddr, u16),
    /// Path of a unix socket; empty: unnamed.
    Unix(String),
    /// Unix socket in the abstract namespace.
    Abstract,
    /// Another address family.
    Other(u16),
}

/// A file that a system call named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Absolute where the record says enough, else as given.
    pub path: Cow<'a, str>,
    /// The call brought it into being.
    pub created: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// An execution.
    Exec {
        /// What was asked for: the script of a `#!`, otherwise the image.
        path: Option<Cow<'a, str>>,
        /// Arguments, the program's name first. Empty where the record is lost.
        argv: Vec<Cow<'a, str>>,
        /// Working directory.
        cwd: Option<Cow<'a, str>>,
    },
    /// A file was touched.
    File {
        /// How.
        op: FileOp,
        /// What: the new name of a rename, at most three files.
        targets: Vec<Target<'a>>,
        /// Old name of a rename or target of a link.
        source: Option<Cow<'a, str>>,
        /// Permission bits asked for by a chmod.
        mode: Option<u32>,
        /// Opened with `O_TRUNC`.
        truncates: bool,
    },
    /// A socket call.
    Network {
        /// Direction.
        op: NetOp,
        /// Other side (of `bind`: own side).
        address: Option<Address>,
    },
    /// Another system call.
    Call,
    /// A record from user space: `USER_AUTH`, `USER_CMD`, `ADD_USER`, `CONFIG_CHANGE`, ...
    User {
        /// Record type.
        kind: &'a str,
        /// `op=`, up to the first blank.
        op: &'a str,
        /// Account.
        account: Option<Cow<'a, str>>,
        /// `cmd=` of a `USER_CMD`.
        command: Option<Cow<'a, str>>,
    },
}

/// One audit event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Time of its first line.
    pub time_ms: TimeMs,
    /// Who.
    pub subject: Subject<'a>,
    /// Name of the system call; of one that is not in our table the enriched name, or empty; empty for
    /// [`Action::User`].
    pub call: &'a str,
    /// It did what was asked: `success=yes`, `res=success`.
    pub ok: bool,
    /// `errno` where it did not, else 0.
    pub errno: u16,
    /// What.
    pub action: Action<'a>,
}

/// Joins the lines of a pane. See the module's header.
pub fn assemble<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Vec<Event<'a>> {
    let mut numbers: FxHashMap<&str, u32> = FxHashMap::default();
    let mut records: Vec<(u32, Line<'a>)> = Vec::new();
    let mut last = ("", 0);
    for line in lines {
        // They say nothing that a fact needs.
        if matches!(line.kind, "EOE" | "BPRM_FCAPS" | "") {
            continue;
        }
        if line.serial != last.0 || records.is_empty() {
            let next = numbers.len() as u32;
            last = (line.serial, *numbers.entry(line.serial).or_insert(next));
        }
        records.push((last.1, line));
    }
    records.sort_by_key(|(number, _)| *number); // stable: lines of one event keep their order
    records.chunk_by(|a, b| a.0 == b.0).filter_map(|event| read_event(event.iter().map(|(_, line)| line))).collect()
}

/// The parts of a `SYSCALL` record that an event needs.
#[derive(Default)]
struct Syscall<'a> {
    arch: &'a str,
    number: &'a str,
    enriched: &'a str,
    success: &'a str,
    exit: &'a str,
    args: [&'a str; 4],
}

struct PathItem<'a> {
    name: Cow<'a, str>,
    created: bool,
    deleted: bool,
}

fn read_event<'a: 'b, 'b>(lines: impl Iterator<Item = &'b Line<'a>> + Clone) -> Option<Event<'a>> {
    let time_ms = lines.clone().next()?.time_ms;
    let Some(line) = lines.clone().find(|line| line.kind == "SYSCALL") else {
        return lines.clone().find_map(|line| read_user(time_ms, line));
    };
    let (syscall, subject) = read_syscall(line.text)?;
    let row = call_by_number(syscall.arch, syscall.number)
        .or_else(|| CALLS.iter().position(|(name, ..)| *name == syscall.enriched));
    let (call, meaning) = row.map_or((syscall.enriched, Call::Other), |row| (CALLS[row].0, CALLS[row].1));
    let ok = syscall.success == "yes";
    let errno = if ok { 0 } else { syscall.exit.strip_prefix('-').map_or(0, |e| e.parse().unwrap_or(0)) };
    let action = match meaning {
        Call::Exec => read_exec(lines, &subject, ok),
        Call::File(op) => read_file(lines, op, call, &syscall),
        Call::Network(op) => Action::Network { op, address: lines.filter_map(read_address).next() },
        Call::Other => Action::Call,
    };
    Some(Event { time_ms, subject, call, ok, errno, action })
}

fn read_syscall(text_of_record: &str) -> Option<(Syscall<'_>, Subject<'_>)> {
    let mut s = Syscall::default();
    let mut pid = None;
    let mut subject =
        Subject { pid: 0, ppid: None, comm: None, exe: None, uid: None, euid: None, auid: None, terminal: false };
    for (key, value) in Pairs::of(text_of_record) {
        match key {
            "arch" => s.arch = value,
            "syscall" => s.number = value,
            "success" => s.success = value,
            "exit" => s.exit = value,
            "a0" => s.args[0] = value,
            "a1" => s.args[1] = value,
            "a2" => s.args[2] = value,
            "a3" => s.args[3] = value,
            "pid" => pid = value.parse().ok(),
            "ppid" => subject.ppid = value.parse().ok(),
            "uid" => subject.uid = user(value),
            "euid" => subject.euid = user(value),
            "auid" => subject.auid = user(value),
            "tty" => subject.terminal = value.starts_with("pts") || value.starts_with("tty"),
            "comm" => subject.comm = text(value),
            "exe" => subject.exe = text(value).map(without_deleted),
            "SYSCALL" => s.enriched = value,
            _ => {}
        }
    }
    subject.pid = pid?;
    Some((s, subject))
}

fn user(value: &str) -> Option<u32> {
    if value == "-1" { Some(NO_USER) } else { value.parse().ok() }
}

/// The kernel marks an image whose file is gone: `/usr/bin/x (deleted)`.
fn without_deleted(exe: Cow<'_, str>) -> Cow<'_, str> {
    match exe.strip_suffix(" (deleted)").map(str::len) {
        None => exe,
        Some(len) => match exe {
            Cow::Borrowed(s) => s[..len].into(),
            Cow::Owned(mut s) => {
                s.truncate(len);
                s.into()
            }
        },
    }
}

fn read_exec<'a: 'b, 'b>(lines: impl Iterator<Item = &'b Line<'a>>, subject: &Subject<'a>, ok: bool) -> Action<'a> {
    let (mut path, mut cwd, mut title) = (None, None, None);
    let mut pieces: Vec<(usize, &'a str)> = Vec::new();
    for line in lines {
        match line.kind {
            // Item 0 is what was asked for, later ones the interpreter and the dynamic loader.
            "PATH" if path.is_none() && line.text.trim_start().starts_with("item=0 ") => {
                path = Pairs::of(line.text).find(|(key, _)| *key == "name").and_then(|(_, value)| text(value));
            }
            "CWD" => cwd = Pairs::of(line.text).find(|(key, _)| *key == "cwd").and_then(|(_, value)| text(value)),
            "EXECVE" => pieces.extend(argument_pieces(line.text)),
            "PROCTITLE" if ok => title = Pairs::of(line.text).find(|(key, _)| *key == "proctitle").map(|(_, v)| v),
            _ => {}
        }
    }
    let mut argv = arguments(pieces);
    if let Some(title) = title.filter(|_| argv.is_empty()).and_then(text) {
        argv = title.split('\0').take(MAX_ARGUMENTS).map(|arg| arg.to_owned().into()).collect();
    }
    let path = path.or_else(|| subject.exe.clone().filter(|_| ok));
    let path = path.map(|path| absolute(cwd.as_deref(), path));
    Action::Exec { path, argv, cwd }
}

/// The arguments in the text of an `EXECVE` record: their number, and the raw value of the whole or of a piece.
pub fn argument_pieces(text: &str) -> impl Iterator<Item = (usize, &str)> {
    Pairs::of(text).filter_map(|(key, value)| {
        let index = key.strip_prefix('a')?.split('[').next()?.parse().ok()?;
        Some((index, value))
    })
}

/// Joins `aN` and the pieces `aN[i]` of long arguments, in the order of their number.
pub fn arguments<'a>(mut pieces: Vec<(usize, &'a str)>) -> Vec<Cow<'a, str>> {
    pieces.sort_by_key(|(index, _)| *index); // stable: pieces of one argument come in order
    let mut argv = Vec::new();
    let mut room = MAX_ARGUMENT_BYTES;
    for argument in pieces.chunk_by(|a, b| a.0 == b.0).take(MAX_ARGUMENTS) {
        let value = match argument {
            [(_, whole)] => text(whole).unwrap_or_default(),
            pieces => {
                // A character may be cut between two pieces: join bytes, not texts.
                let mut bytes = Vec::new();
                for (_, piece) in pieces {
                    match unhex(piece) {
                        Some(decoded) if !piece.starts_with('"') => bytes.extend(decoded),
                        _ => bytes.extend_from_slice(text(piece).unwrap_or_default().as_bytes()),
                    }
                }
                String::from_utf8_lossy(&bytes).into_owned().into()
            }
        };
        if value.len() > room {
            break;
        }
        room -= value.len();
        argv.push(value);
    }
    argv
}

/// Linux open flags, the same numbers on all three architectures.
const O_ACCMODE: u32 = 3;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const AT_FDCWD: u32 = -100_i32 as u32;

fn read_file<'a: 'b, 'b>(
    lines: impl Iterator<Item = &'b Line<'a>>,
    op: FileOp,
    call: &str,
    syscall: &Syscall<'a>,
) -> Action<'a> {
    let argument = |i: usize| u64::from_str_radix(syscall.args[i], 16).ok().map(|v| v as u32);
    let (mut op, mut mode, mut truncates) = (op, None, false);
    match call {
        "open" | "openat" => {
            let flags = argument(if call == "open" { 1 } else { 2 }).unwrap_or(0);
            truncates = flags & O_TRUNC != 0;
            op = open_op(flags & O_ACCMODE != 0 || truncates, flags & O_CREAT != 0);
        }
        "chmod" | "fchmod" => mode = argument(1).map(|m| m & 0o7777),
        "fchmodat" | "fchmodat2" => mode = argument(2).map(|m| m & 0o7777),
        _ => {}
    }
    // Relative to a directory we know only if that is the working directory.
    let from_cwd = match call {
        "symlinkat" => argument(1) == Some(AT_FDCWD),
        "renameat" | "renameat2" | "linkat" => argument(0) == Some(AT_FDCWD) && argument(2) == Some(AT_FDCWD),
        "openat" | "openat2" | "unlinkat" | "fchmodat" | "fchmodat2" | "fchownat" | "mkdirat" | "utimensat" => {
            argument(0) == Some(AT_FDCWD)
        }
        _ => true,
    };
    let (mut cwd, mut items) = (None, Vec::new());
    for line in lines {
        match line.kind {
            "CWD" => cwd = Pairs::of(line.text).find(|(key, _)| *key == "cwd").and_then(|(_, value)| text(value)),
            "PATH" => items.extend(read_path(line.text)),
            _ => {}
        }
    }
    let cwd = cwd.filter(|_| from_cwd);
    let resolve = |name: Cow<'a, str>| absolute(cwd.as_deref(), name);
    let (mut source, mut targets) = (None, Vec::new());
    match op {
        FileOp::Rename | FileOp::Link => {
            // Old name: what vanished, or what is linked to. New name: what appeared last.
            for item in items {
                if item.created {
                    targets = vec![Target { path: resolve(item.name), created: true }];
                } else if source.is_none() && (item.deleted || op == FileOp::Link) {
                    source = Some(resolve(item.name));
                }
            }
        }
        _ => {
            let named = items.into_iter().take(3);
            targets.extend(named.map(|item| Target { path: resolve(item.name), created: item.created }));
        }
    }
    Action::File { op, targets, source, mode, truncates }
}

/// What opening a file means.
pub fn open_op(writes: bool, creates: bool) -> FileOp {
    match (writes, creates) {
        (_, true) => FileOp::Create,
        (true, false) => FileOp::Write,
        (false, false) => FileOp::Read,
    }
}

fn read_path(text_of_record: &str) -> Option<PathItem<'_>> {
    let name = Pairs::of(text_of_record).find(|(key, _)| *key == "name").and_then(|(_, value)| text(value));
    // Eight pairs on. The name cannot hold this: with a blank in it, it would be hexadecimal.
    let after = |key: &str| memchr::memmem::find(text_of_record.as_bytes(), key.as_bytes()).map(|at| at + key.len());
    let kind = after(" nametype=").or_else(|| after(" objtype=")).map_or("", |at| &text_of_record[at..]);
    let kind = kind.split([' ', '\x1d']).next().unwrap_or_default();
    let item = PathItem { name: name?, created: kind == "CREATE", deleted: kind == "DELETE" };
    (kind != "PARENT" && !item.name.is_empty()).then_some(item)
}

fn read_address(line: &Line<'_>) -> Option<Address> {
    if line.kind != "SOCKADDR" {
        return None;
    }
    let (_, hex) = Pairs::of(line.text).find(|(key, _)| *key == "saddr")?;
    address(&unhex(hex)?)
}

/// Reads a `struct sockaddr` (the family in little-endian order). `None` where it is cut short.
pub fn address(bytes: &[u8]) -> Option<Address> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let inet = |ip: IpAddr, port: [u8; 2]| Some(Address::Inet(ip.to_canonical(), u16::from_be_bytes(port)));
    match u16::from_le_bytes(*family) {
        1 => match rest {
            [] => Some(Address::Unix(String::new())),
            [0, name @ ..] if name.iter().any(|b| *b != 0) => Some(Address::Abstract),
            path => {
                let end = memchr::memchr(0, path).unwrap_or(path.len());
                Some(Address::Unix(String::from_utf8_lossy(&path[..end]).into_owned()))
            }
        },
        2 => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            inet(Ipv4Addr::from(*rest.first_chunk::<4>()?).into(), *port)
        }
        10 => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            inet(Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?).into(), *port)
        }
        other => Some(Address::Other(other)),
    }
}

fn read_user<'a>(time_ms: TimeMs, line: &Line<'a>) -> Option<Event<'a>> {
    if matches!(line.kind, "PATH" | "CWD" | "EXECVE" | "SOCKADDR" | "PROCTITLE") {
        return None; // the SYSCALL record that gives it a subject is lost
    }
    let mut subject =
        Subject { pid: 0, ppid: None, comm: None, exe: None, uid: None, euid: None, auid: None, terminal: false };
    let (mut op, mut account, mut command, mut ok) = ("", None, None, false);
    for (key, value) in Pairs::of(line.text) {
        match key {
            "pid" => subject.pid = value.parse().unwrap_or(0),
            "uid" => subject.uid = user(value),
            "auid" => subject.auid = user(value),
            "op" | "operation" => op = value.trim_matches('"'),
            "acct" => account = text(value),
            "cmd" => command = text(value),
            "comm" => subject.comm = text(value),
            "exe" => subject.exe = text(value).map(without_deleted),
            "terminal" | "tty" => {
                subject.terminal = value.contains("pts") || value.starts_with("tty") || value.starts_with("/dev/tty");
            }
            "res" => ok = matches!(value, "success" | "1" | "yes"),
            _ => {}
        }
    }
    let action = Action::User { kind: line.kind, op, account, command };
    Some(Event { time_ms, subject, call: "", ok, errno: 0, action })
}
