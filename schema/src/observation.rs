//! What one raw record contributes to its endpoint's graph: a kind and a compact list of fields.
//!
//! The normalizer writes it once; panes hold it until they are sealed; the graph builder reads it.
//! All text lives in one allocation, so an event held costs its text and little more.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{Endpoint, Lane, Platform, Position, RuleHit, TimeMs};

/// The record format and what it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Sysmon or PowerShell event of this id (4104 is a script block).
    Sysmon(u16),
    /// One auditd text record; join by [`Field::AuditSerial`].
    Audit,
    /// eBPF `[EXEC]`.
    EbpfExec,
    /// eBPF `[FILE]`.
    EbpfFile,
    /// eBPF `[CONNECT]` or `[ACCEPT]` ([`Field::ConnectionType`]).
    EbpfConnect,
    /// eBPF `[SOCKET]`.
    EbpfSocket,
    /// A record without typed content: counts as activity, adds no node.
    Opaque,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A named field of an observation. Sysmon's names where Sysmon has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the names are the documentation: Sysmon's schema, auditd's and the eBPF lines' fields")]
        pub enum Field { $($(#[$doc])* $name),+ }
        impl Field {
            /// Every field, in order of its number.
            pub const ALL: &'static [Field] = &[$(Field::$name),+];
            /// The field's name.
            pub const fn name(self) -> &'static str { match self { $(Field::$name => stringify!($name)),+ } }
        }
    };
}

fields! {
    // Windows: Sysmon 1 to 29 and PowerShell 4104
    ProcessGuid, ProcessId, Image, CommandLine, User, ParentProcessGuid, ParentProcessId, ParentImage,
    ParentCommandLine, IntegrityLevel, CurrentDirectory, Hashes, OriginalFileName, Company, Description,
    Product, LogonId, TerminalSessionId, ImageLoaded, Signed, Signature, SignatureStatus, TargetFilename,
    Contents, SourceIp, SourcePort, DestinationIp, DestinationPort, DestinationHostname, Protocol, Initiated,
    SourceProcessGuid, SourceProcessId, SourceImage, TargetProcessGuid, TargetProcessId, TargetImage,
    GrantedAccess, CallTrace, StartAddress, StartModule, StartFunction, TargetObject, EventType, Details,
    NewName, PipeName, QueryName, QueryResults, QueryStatus, Operation, Consumer, Filter, Destination, Type,
    Name, Query, ScriptBlockText, ScriptBlockId, MessageNumber, MessageTotal, Path, Device, IsExecutable,
    Archived, State, SourceUser, TargetUser, RuleName,
    // Linux: eBPF lines (ProcessId, Path, DestinationIp, DestinationPort are shared with the above)
    Ppid, Uid, Comm, Args, Flags, ConnectionType, SocketType,
    /// Record type of an audit line: `SYSCALL`, `PATH`, `EXECVE`, ...
    AuditType,
    /// `<epoch.ms>:<serial>` of an audit line: the same for all records of one audit event.
    AuditSerial,
    /// The audit line after `msg=audit(...):`, enriched part included, 0x1D replaced by a space.
    AuditText,
}

/// Longest text kept of one field, in bytes; the rest is cut at a character boundary.
pub const MAX_FIELD_BYTES: usize = 16 * 1024;

/// Fields of one observation: `[field, length, text]...`, in one allocation.
///
/// Field and length are ASCII characters, the length three of seven bits each, least first: so the whole is text, and
/// a field is cut out of it without being validated again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fields(Box<str>);

/// Characters before each text.
const HEADER: usize = 4;
const _: () = assert!(Field::ALL.len() <= 128 && MAX_FIELD_BYTES < 1 << 21);

/// The first field of `rest`, its text, and what follows; `None` if it is cut short or unknown.
fn first(rest: &str) -> Option<(Field, &str, &str)> {
    let &[tag, a, b, c] = rest.as_bytes().first_chunk::<HEADER>()?;
    let field = *Field::ALL.get(tag as usize)?;
    let end = HEADER + (usize::from(a) | usize::from(b) << 7 | usize::from(c) << 14);
    Some((field, rest.get(HEADER..end)?, &rest[end..]))
}

impl Fields {
    /// Starts an empty list.
    pub fn builder() -> FieldsBuilder {
        FieldsBuilder::default()
    }

    /// The text of `field`, if present.
    pub fn get(&self, field: Field) -> Option<&str> {
        self.iter().find(|(f, _)| *f == field).map(|(_, text)| text)
    }

    /// All fields in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (Field, &str)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (field, text, tail) = first(rest)?;
            rest = tail;
            Some((field, text))
        })
    }

    /// Bytes held.
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?.into_boxed_str();
        let mut rest = &*text;
        while !rest.is_empty() {
            rest = first(rest).ok_or_else(|| D::Error::custom("fields malformed"))?.2;
        }
        Ok(Self(text))
    }
}

/// Collects fields; reuse one and call [`FieldsBuilder::finish`] per record.
#[derive(Default)]
pub struct FieldsBuilder(String);

impl FieldsBuilder {
    /// Adds `text` unless it is empty; cut at [`MAX_FIELD_BYTES`].
    pub fn push(&mut self, field: Field, text: &str) -> &mut Self {
        if !text.is_empty() {
            let text = &text[..text.floor_char_boundary(MAX_FIELD_BYTES)];
            let n = text.len();
            let header = [field as u8, (n & 127) as u8, (n >> 7 & 127) as u8, (n >> 14) as u8];
            self.0.extend(header.map(char::from));
            self.0.push_str(text);
        }
        self
    }

    /// The list so far; the builder is empty again and keeps its buffer.
    pub fn finish(&mut self) -> Fields {
        let fields = Fields(self.0.as_str().into());
        self.0.clear();
        fields
    }
}

/// Kind and fields: the part of an observation that the graph is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// What happened, by format.
    pub kind: Kind,
    /// With what.
    pub fields: Fields,
}

/// One normalized event as the window operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Whose.
    pub endpoint: Endpoint,
    /// Which model's.
    pub platform: Platform,
    /// Time for windows (see [`crate::TimeLimits::window_time`]).
    pub time_ms: TimeMs,
    /// Arrival, monotonic within the partition.
    pub arrival_ms: TimeMs,
    /// Live or backfill.
    pub lane: Lane,
    /// Where the raw record stands: orders observations of the same time, for good.
    pub position: Position,
    /// Content.
    pub activity: Activity,
    /// Sigma rules that match it, set by the `rules` operator; absent for nearly every record. The box keeps a
    /// record without any as small as it was.
    #[allow(clippy::box_collection, reason = "8 bytes in the record instead of 24, and hardly ever filled")]
    pub rules: Option<Box<Vec<RuleHit>>>,
}

impl Observation {
    /// The canonical order in which a pane is read: replays and any worker count agree on it.
    pub fn order(&self) -> (TimeMs, Position) {
        (self.time_ms, self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip_and_cut() {
        let mut b = Fields::builder();
        b.push(Field::Image, r"C:\a.exe").push(Field::User, "").push(Field::CommandLine, &"é".repeat(MAX_FIELD_BYTES));
        let f = b.finish();
        assert_eq!(f.get(Field::Image), Some(r"C:\a.exe"));
        assert_eq!(f.get(Field::User), None);
        assert_eq!(f.get(Field::CommandLine).unwrap().len(), MAX_FIELD_BYTES);
        let back: Fields = serde_json::from_str(&serde_json::to_string(&f).unwrap()).unwrap();
        assert_eq!(back, f);
        for bad in ["\"\u{7f}\0\0\0\"", "\"\0\u{1}\0\0\"", "\"\0\"", "\"\0\u{1}\0\0é\""] {
            let json = serde_json::to_string(bad.trim_matches('"')).unwrap();
            assert!(serde_json::from_str::<Fields>(&json).is_err(), "{bad:?}");
        }
        assert_eq!(b.finish(), Fields::default());
    }
}
