//! Reads the lines of the eBPF tracer: `[EXEC]`, `[FILE]`, `[CONNECT]`, `[ACCEPT]`, `[SOCKET]`.
//!
//! The specified regexes are Python's, so here `\s` covers U+001C to U+001F and `$` also matches before a final
//! newline. What a regex accepts is read with the same result (tests hold the two together), except where it
//! loses part of the line to a process name with a space (`tmux: server`): such a name is read whole. Lines that no
//! regex accepts for that reason, for an empty path or for a line break in the arguments are read too.
//! `\d` is read as ASCII digits; Python's also matches other scripts' digits, which no tracer prints.

/// Longest name that the kernel gives a process (`TASK_COMM_LEN` less the NUL), in bytes.
const COMM_BYTES: usize = 15;

/// `[EXEC]`
#[derive(Debug, PartialEq, Eq)]
pub struct Exec<'a> {
    /// Digits.
    pub pid: &'a str,
    /// Digits.
    pub ppid: &'a str,
    /// Digits.
    pub uid: &'a str,
    /// Name of the process that called exec.
    pub comm: &'a str,
    /// Path and arguments.
    pub args: Option<&'a str>,
}

impl Exec<'_> {
    /// The executed path, where the arguments begin with one.
    pub fn path(&self) -> Option<&str> {
        self.args.filter(|args| args.starts_with('/'))?.split(is_space).next()
    }
}

/// `[FILE]`
#[derive(Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Digits.
    pub pid: &'a str,
    /// Process name.
    pub comm: &'a str,
    /// `O_RDONLY|O_CLOEXEC`; may be empty.
    pub flags: &'a str,
    /// May be empty.
    pub path: &'a str,
}

/// `[CONNECT]`, `[ACCEPT]`
#[derive(Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// `CONNECT` or `ACCEPT`
    pub kind: &'static str,
    /// Digits.
    pub pid: &'a str,
    /// Process name.
    pub comm: &'a str,
    /// Address and port.
    pub dest: Option<(&'a str, &'a str)>,
}

/// `[SOCKET]`
#[derive(Debug, PartialEq, Eq)]
pub struct Socket<'a> {
    /// Digits.
    pub pid: &'a str,
    /// Process name.
    pub comm: &'a str,
    /// `AF_INET`, ...
    pub family: &'a str,
}

/// Python's `\s` on text.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `\s+`
fn spaces(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(is_space);
    (rest.len() < text.len()).then_some(rest)
}

/// `(\S+)`
fn token(text: &str) -> Option<(&str, &str)> {
    let end = text.find(is_space).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `\s+<name>(\d+)`
fn number<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let rest = spaces(text)?.strip_prefix(name)?;
    let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// Where the text after the last fixed part ends, as `(?:\s+(.+))?$` sees it.
enum Tail<'a> {
    /// At the end, or before a final newline.
    End,
    /// `(.+)`
    Text(&'a str),
    /// The regex does not match.
    Lost,
}

/// `text` reaches to the end of the message, of whose last line it may use `last_line` bytes.
fn tail(text: &str, last_line: usize) -> Tail<'_> {
    if matches!(text, "" | "\n") {
        return Tail::End;
    }
    let Some(rest) = spaces(text) else { return Tail::Lost };
    if !rest.is_empty() {
        // `.` takes everything but a newline, so only a final one may follow.
        let line = rest.strip_suffix('\n').unwrap_or(rest);
        return if rest.len() > last_line { Tail::Lost } else { Tail::Text(line) };
    }
    // White space only: `\s+` gives back its last character, if that is no newline and not its only one.
    let blank = text.strip_suffix('\n').unwrap_or(text);
    match blank.char_indices().next_back() {
        Some((at, c)) if at > 0 && c != '\n' => Tail::Text(&blank[at..]),
        _ => Tail::Lost,
    }
}

/// Bytes after the last newline that is not final: found once, so that a message of many tags costs linear time.
fn last_line(message: &str) -> usize {
    let line = message.strip_suffix('\n').unwrap_or(message);
    message.len() - line.rfind('\n').map_or(0, |at| at + 1)
}

/// What stands after each `tag`, from left to right.
fn after<'a>(message: &'a str, tag: &str) -> impl Iterator<Item = &'a str> {
    message.match_indices(tag).map(move |(at, _)| &message[at + tag.len()..])
}

/// Reads `[EXEC] pid=P ppid=Q uid=U COMM [ARGS...]` anywhere in `message`.
pub fn exec(message: &str) -> Option<Exec<'_>> {
    let head = |text| {
        let (pid, text) = number(text, "pid=")?;
        let (ppid, text) = number(text, "ppid=")?;
        let (uid, text) = number(text, "uid=")?;
        let command = spaces(text)?;
        let (comm, rest) = token(command)?;
        Some((Exec { pid, ppid, uid, comm, args: None }, command, rest))
    };
    let last_line = last_line(message);
    let strict =
        after(message, "[EXEC]").filter_map(head).find_map(|(exec, command, rest)| match tail(rest, last_line) {
            Tail::End => Some((exec, command)),
            Tail::Text(args) => Some((Exec { args: Some(args), ..exec }, command)),
            Tail::Lost => None,
        });
    let (exec, command) = strict.or_else(|| {
        let (exec, command, rest) = after(message, "[EXEC]").find_map(head)?;
        let args = Some(rest.trim_matches(is_space)).filter(|args| !args.is_empty());
        Some((Exec { args, ..exec }, command))
    })?;
    match (exec.args, spaced_comm(command)) {
        (Some(args), Some(comm)) if !args.starts_with('/') => {
            Some(Exec { comm, args: Some(command[comm.len()..].trim_matches(is_space)), ..exec })
        }
        _ => Some(exec),
    }
}

/// A process name with a space in it at the start of `command`, if a path follows: either the name ends a padded
/// column of 16, or it has the `daemon: role` form.
fn spaced_comm(command: &str) -> Option<&str> {
    let column = command.get(..COMM_BYTES + 1).filter(|_| command[COMM_BYTES + 1..].starts_with(" /"));
    if let Some(name) = column.filter(|c| c.ends_with(' ')).map(|c| c.trim_end_matches(' '))
        && name.contains(' ')
    {
        return Some(name);
    }
    let (first, _) = token(command)?;
    let path = command.match_indices('/').map(|(at, _)| at).find(|&at| command[..at].ends_with(is_space))?;
    let name = command[..path].trim_end_matches(is_space);
    (first.ends_with(':') && name.len() > first.len() && name.len() <= COMM_BYTES).then_some(name)
}

/// Reads `[FILE] pid=P COMM flags=F PATH` or `[FILE!] ...` anywhere in `message`.
pub fn file(message: &str) -> Option<File<'_>> {
    let starts = || {
        after(message, "[FILE")
            .filter_map(|text| text.strip_prefix('!').unwrap_or(text).strip_prefix(']'))
            .filter_map(|text| number(text, "pid="))
            .filter_map(|(pid, text)| Some((pid, spaces(text)?)))
    };
    let last_line = last_line(message);
    let strict = starts().find_map(|(pid, text)| {
        let (comm, text) = token(text)?;
        let (flags, text) = token(spaces(text)?.strip_prefix("flags=")?)?;
        match tail(text, last_line) {
            Tail::Text(path) => Some(File { pid, comm, flags, path }),
            Tail::End | Tail::Lost => None,
        }
    });
    strict.or_else(|| {
        let (pid, text) = starts().next()?;
        let mut flags_at = text.match_indices("flags=").filter(|&(at, _)| text[..at].ends_with(is_space));
        let first = flags_at.next()?;
        // A name may hold ` flags=` to hide the true ones: it is short, the path need not be.
        let (at, tag) =
            flags_at.take_while(|&(at, _)| comm_before(text, at).len() <= COMM_BYTES).last().unwrap_or(first);
        let rest = &text[at + tag.len()..];
        let (flags, path) = token(rest).unwrap_or(("", rest));
        Some(File { pid, comm: comm_before(text, at), flags, path: path.trim_matches(is_space) })
    })
}

/// The name that ends before `at`.
fn comm_before(text: &str, at: usize) -> &str {
    text[..at].trim_end_matches(is_space)
}

/// Reads `[CONNECT] pid=P COMM -> ADDR:PORT` or `[ACCEPT] ...` anywhere in `message`.
pub fn connect(message: &str) -> Option<Connect<'_>> {
    let (kind, pid, text) = message.match_indices('[').find_map(|(at, _)| {
        let tagged = &message[at..];
        let (kind, text) = match tagged.strip_prefix("[CONNECT]") {
            Some(text) => ("CONNECT", text),
            None => ("ACCEPT", tagged.strip_prefix("[ACCEPT]")?),
        };
        let (pid, text) = number(text, "pid=")?;
        let text = spaces(text)?;
        (!text.is_empty()).then_some((kind, pid, text))
    })?;
    let (comm, rest) = token(text)?;
    let arrow = |text| destination(spaces(spaces(text)?.strip_prefix("->")?)?);
    if let Some(dest) = arrow(rest) {
        return Some(Connect { kind, pid, comm, dest: Some(dest) });
    }
    // The name has spaces, perhaps an arrow too: the destination stands last.
    let spaced = rest.rmatch_indices("->").find_map(|(at, tag)| {
        let dest = destination(spaces(&rest[at + tag.len()..])?)?;
        let before = &rest[..at];
        before.ends_with(is_space).then(|| (before.trim_end_matches(is_space).len(), dest))
    });
    Some(match spaced {
        Some((len, dest)) => Connect { kind, pid, comm: &text[..comm.len() + len], dest: Some(dest) },
        None => Connect { kind, pid, comm, dest: None },
    })
}

/// `(\S+):(\d+)` at the start of `text`: the address is as long as it can be.
fn destination(text: &str) -> Option<(&str, &str)> {
    let (word, _) = token(text)?;
    word.rmatch_indices(':').find_map(|(at, _)| {
        let port = &word[at + 1..];
        let end = port.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(port.len());
        (at > 0 && end > 0).then(|| (&word[..at], &port[..end]))
    })
}

/// Reads `[SOCKET] pid=P COMM FAMILY` anywhere in `message`.
pub fn socket(message: &str) -> Option<Socket<'_>> {
    after(message, "[SOCKET]").find_map(|text| {
        let (pid, text) = number(text, "pid=")?;
        let text = spaces(text)?;
        let (comm, rest) = token(text)?;
        let (family, rest) = token(spaces(rest)?)?;
        if !family.starts_with("AF_")
            && let Some(last) = rest.split(is_space).rfind(|word| !word.is_empty())
            && last.starts_with("AF_")
        {
            let at = text.rfind(last)?;
            return Some(Socket { pid, comm: comm_before(text, at), family: last });
        }
        Some(Socket { pid, comm, family })
    })
}
