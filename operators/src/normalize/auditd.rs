//! Takes the head off an auditd text record: `[node=N ]type=T msg=audit(<epoch.ms>:<serial>): <body>`.
//!
//! - Input: the envelope's `message`, which is published verbatim whatever it holds.
//! - Output: type, serial and body for the graph, which joins the records of one audit event by serial.
//! - Failure: no head of that form: `None`, and the record counts as activity without content.

/// One audit record, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// `SYSCALL`, `PATH`, ...; a number that an older auditd printed is given its name.
    pub kind: &'a str,
    /// `<epoch.ms>:<serial>`: shared by the records of one event.
    pub serial: &'a str,
    /// What follows, the enriched part after 0x1D included.
    pub body: &'a str,
}

/// Splits `message`; `None` if a part of the head is missing.
pub fn parse(message: &str) -> Option<Record<'_>> {
    let message = message.trim_start();
    let head = match message.strip_prefix("node=") {
        Some(rest) => rest.split_once(' ')?.1.trim_start(),
        // As the kernel prints it when no auditd runs.
        None => message.strip_prefix("audit: ").unwrap_or(message),
    };
    let (kind, rest) = head.strip_prefix("type=")?.split_once(' ')?;
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("msg=").unwrap_or(rest).strip_prefix("audit(")?;
    let (serial, body) = rest.split_once(')')?;
    let (time, number) = serial.split_once(':')?;
    let (seconds, millis) = time.split_once('.')?;
    let digits = |s: &str| !s.is_empty() && s.len() <= 20 && s.bytes().all(|b| b.is_ascii_digit());
    if kind.is_empty() || !digits(seconds) || !digits(millis) || !digits(number) {
        return None;
    }
    Some(Record { kind: name(kind), serial, body: body.strip_prefix(':').unwrap_or(body).trim_start() })
}

/// The name of a type that stands as a number (`1327`, `UNKNOWN[1327]`); numbers from the kernel's `audit.h`.
fn name(kind: &str) -> &str {
    let number = kind.strip_prefix("UNKNOWN[").and_then(|k| k.strip_suffix(']')).unwrap_or(kind);
    match number {
        "1300" => "SYSCALL",
        "1302" => "PATH",
        "1306" => "SOCKADDR",
        "1307" => "CWD",
        "1309" => "EXECVE",
        "1327" => "PROCTITLE",
        _ => kind,
    }
}
