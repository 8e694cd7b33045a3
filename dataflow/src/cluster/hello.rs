//! The first words on every connection between two processes: who calls, and whether they belong together.
//!
//! The caller sends a [`Hello`], the listener answers with one [`Answer`]. Both are bounded, so a stranger
//! costs a kilobyte at most; who sends too slowly meets the time-out of the caller of these functions.
//!
//! ```text
//! hello:  "LOGSTER\n"  version u16  kind u8  incarnation u64  from u32  to u32  processes u32  workers u32
//!         job (u8 length, text)  fingerprint (u8 length, text)
//! answer: status u8 (0 welcome, 1 busy, 2 refused)  reason (u16 length, text)
//! ```
//! Numbers are big-endian. The version comes before all that may change with it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: [u8; 8] = *b"LOGSTER\n";
/// Raise it when anything between processes changes: this exchange, or what the dataflow encodes.
const VERSION: u16 = 1;
/// Longest job name and fingerprint, in bytes.
pub const MAX_TEXT_BYTES: usize = 255;
const MAX_REASON_BYTES: usize = 1000;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// timely's own messages.
    Data,
    /// Heartbeats and farewells.
    Control,
}

/// What a caller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub kind: Kind,
    /// Differs between two starts of the same process, so that their connections are never mixed.
    pub incarnation: u64,
    /// The caller's index.
    pub from: u32,
    /// Whom the caller means to reach.
    pub to: u32,
    pub processes: u32,
    /// Per process.
    pub workers: u32,
    pub job: String,
    pub fingerprint: String,
}

/// What the listener says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Welcome,
    /// Not now; ask again.
    Busy(String),
    /// Never with this configuration.
    Refused(String),
}

impl Hello {
    /// Why the process `mine` (its own hello) and the caller do not belong together.
    pub fn disagreement(&self, mine: &Hello) -> Option<String> {
        let (from, me) = (self.from, mine.from);
        if self.to != me {
            return Some(format!(
                "this is process {me}, but process {from} looks for process {} here: give all the same hostfile",
                self.to
            ));
        }
        let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            Some(format!("process {from} has {what} {theirs}, process {me} has {ours}: start all processes alike"))
        };
        if self.job != mine.job {
            return differs("job", &self.job, &mine.job);
        }
        if self.processes != mine.processes {
            return differs("process count", &self.processes, &mine.processes);
        }
        if self.workers != mine.workers {
            return differs("workers per process", &self.workers, &mine.workers);
        }
        if self.fingerprint != mine.fingerprint {
            return differs("a configuration with fingerprint", &self.fingerprint, &mine.fingerprint);
        }
        // Connections go from the greater index to the smaller one.
        if from <= me || from >= self.processes {
            return Some(format!("process {from} has no business calling process {me}"));
        }
        None
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.push(match self.kind {
            Kind::Data => 0,
            Kind::Control => 1,
        });
        bytes.extend(self.incarnation.to_be_bytes());
        for number in [self.from, self.to, self.processes, self.workers] {
            bytes.extend(number.to_be_bytes());
        }
        for text in [&self.job, &self.fingerprint] {
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Hello> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).await?;
        if magic != MAGIC {
            // What a TLS handshake opens with.
            let hint =
                if magic.starts_with(&[0x16, 3]) { ": it speaks TLS, this process has no cluster.tls" } else { "" };
            return Err(malformed(format!("not a logster process{hint}")));
        }
        let version = stream.read_u16().await?;
        if version != VERSION {
            return Err(malformed(format!("it speaks version {version} between processes, this one {VERSION}")));
        }
        Ok(Hello {
            kind: match stream.read_u8().await? {
                0 => Kind::Data,
                1 => Kind::Control,
                other => return Err(malformed(format!("unknown kind of connection {other}"))),
            },
            incarnation: stream.read_u64().await?,
            from: stream.read_u32().await?,
            to: stream.read_u32().await?,
            processes: stream.read_u32().await?,
            workers: stream.read_u32().await?,
            job: read_text(stream).await?,
            fingerprint: read_text(stream).await?,
        })
    }
}

/// Listener's side, first half.
pub async fn receive<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<Hello> {
    match Hello::read(stream).await {
        // Said to the caller as well: it may be a process of another version.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            answer(stream, &Answer::Refused(error.to_string())).await.ok();
            Err(error)
        }
        other => other,
    }
}

/// Listener's side, second half.
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: &Answer) -> io::Result<()> {
    let (status, reason) = match answer {
        Answer::Welcome => (0, ""),
        Answer::Busy(reason) => (1, reason.as_str()),
        Answer::Refused(reason) => (2, reason.as_str()),
    };
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
    let mut bytes = vec![status];
    bytes.extend((reason.len() as u16).to_be_bytes());
    bytes.extend(reason.as_bytes());
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Caller's side.
pub async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> io::Result<Answer> {
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    let status = stream.read_u8().await?;
    let length = stream.read_u16().await? as usize;
    if status > 2 || length > MAX_REASON_BYTES {
        return Err(malformed("not a logster process, or only one side has cluster.tls".into()));
    }
    let mut reason = vec![0; length];
    stream.read_exact(&mut reason).await?;
    // Into our log and error message: no control characters from outside.
    let reason: String =
        String::from_utf8_lossy(&reason).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Ok(match status {
        0 => Answer::Welcome,
        1 => Answer::Busy(reason),
        _ => Answer::Refused(reason),
    })
}

async fn read_text<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut bytes = vec![0; stream.read_u8().await? as usize];
    stream.read_exact(&mut bytes).await?;
    let text = String::from_utf8(bytes).map_err(|_| malformed("a text in its hello is not UTF-8".into()))?;
    match text.chars().any(char::is_control) {
        true => Err(malformed("a text in its hello has control characters".into())),
        false => Ok(text),
    }
}

fn malformed(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(from: u32, to: u32) -> Hello {
        Hello {
            kind: Kind::Data,
            incarnation: 7,
            from,
            to,
            processes: 3,
            workers: 2,
            job: "j".into(),
            fingerprint: "f".into(),
        }
    }

    fn read(bytes: &[u8]) -> io::Result<Hello> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Hello::read(&mut &bytes[..]))
    }

    #[test]
    fn disagreements_name_both_sides() {
        let mine = hello(0, 0);
        assert_eq!(hello(1, 0).disagreement(&mine), None);
        type Change = fn(&mut Hello);
        let cases: [(Change, &str); 7] = [
            (|h| h.to = 2, "this is process 0, but process 1 looks for process 2"),
            (|h| h.job = "k".into(), "has job k, process 0 has j"),
            (|h| h.processes = 4, "has process count 4, process 0 has 3"),
            (|h| h.workers = 1, "has workers per process 1, process 0 has 2"),
            (|h| h.fingerprint = "g".into(), "has a configuration with fingerprint g, process 0 has f"),
            (|h| h.from = 0, "process 0 has no business"),
            (|h| h.from = 3, "process 3 has no business"),
        ];
        for (change, want) in cases {
            let mut theirs = hello(1, 0);
            change(&mut theirs);
            let got = theirs.disagreement(&mine).unwrap();
            assert!(got.contains(want), "{got}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(job in "[^\\p{Cc}]{0,60}", control: bool, incarnation: u64, from: u32) {
            let kind = if control { Kind::Control } else { Kind::Data };
            let sent = Hello { job, kind, incarnation, ..hello(from, 0) };
            prop_assert_eq!(read(&sent.encode()).unwrap(), sent);
        }

        #[test]
        fn garbage_and_cut_hellos_are_errors(bytes: Vec<u8>, cut in 0usize..45) {
            prop_assert!(read(&bytes).is_err());
            prop_assert!(read(&hello(1, 0).encode()[..cut.min(hello(1, 0).encode().len() - 1)]).is_err());
        }
    }
}
