//! Sysmon and PowerShell events as Winlogbeat ships them: `winlog.event_data` by event id.
//!
//! - Input: the members of `event_data`, as ranges of the message.
//! - Output: the specified `data` of ids 1, 3, 11 and 4104, the raw object for every other id; and the fields that
//!   the graph uses, of every id.
//! - State: scratch lists, emptied per message.
//!
//! The published record keeps text as it came (HTML entities too). The graph's fields are cleaned, so that one process
//! has one name: entities decoded, GUIDs in lower case, `-` and the all-zero GUID absent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use logster_schema::{Field, Kind, observation::FieldsBuilder, observation::MAX_FIELD_BYTES};

use super::json::{self, Scanner, Type, Value, push_int, push_raw, push_string};
use super::trim;

/// Longest call trace kept for the graph, in bytes: its innermost frames tell, and id 10 is half of all events.
const CALL_TRACE_BYTES: usize = 1024;

/// The event types with specified fields: `(raw name, published name)`.
struct Typed {
    event_type: &'static str,
    fields: &'static [(Field, &'static str)],
    /// Publish ProcessId as an integer.
    process_id: bool,
}

static PROCESS: Typed = Typed {
    event_type: "process",
    fields: &[
        (Field::ProcessGuid, "process_guid"),
        (Field::Image, "image"),
        (Field::CommandLine, "command_line"),
        (Field::User, "user"),
        (Field::ParentProcessGuid, "parent_guid"),
        (Field::ParentImage, "parent_image"),
        (Field::ParentCommandLine, "parent_command_line"),
        (Field::IntegrityLevel, "integrity_level"),
        (Field::CurrentDirectory, "current_directory"),
        (Field::Hashes, "hashes"),
    ],
    process_id: true,
};
static NETWORK: Typed = Typed {
    event_type: "network",
    fields: &[
        (Field::SourceIp, "source_ip"),
        (Field::SourcePort, "source_port"),
        (Field::DestinationIp, "dest_ip"),
        (Field::DestinationPort, "dest_port"),
        (Field::Protocol, "protocol"),
        (Field::ProcessGuid, "process_guid"),
        (Field::Image, "image"),
    ],
    process_id: false,
};
static FILE: Typed = Typed {
    event_type: "file",
    fields: &[
        (Field::TargetFilename, "target_filename"),
        (Field::ProcessGuid, "creator_guid"),
        (Field::Image, "creator_image"),
    ],
    process_id: false,
};
static SCRIPT: Typed = Typed {
    event_type: "script",
    fields: &[
        (Field::ScriptBlockText, "script_block_text"),
        (Field::ScriptBlockId, "script_block_id"),
        (Field::Path, "path"),
    ],
    process_id: false,
};

/// PowerShell's event of a script block.
pub const SCRIPT_BLOCK: u16 = 4104;

fn typed(id: Option<i64>) -> Option<&'static Typed> {
    match id {
        Some(1) => Some(&PROCESS),
        Some(3) => Some(&NETWORK),
        Some(11) => Some(&FILE),
        Some(4104) => Some(&SCRIPT),
        _ => None,
    }
}

/// `event_type` of an event id.
pub fn event_type(id: Option<i64>) -> &'static str {
    typed(id).map_or("process", |typed| typed.event_type)
}

/// What an event of this id is to the graph.
pub fn kind(id: Option<i64>) -> Kind {
    match id {
        Some(id @ (1..=29 | 255 | 4104)) => Kind::Sysmon(id as u16),
        _ => Kind::Opaque,
    }
}

/// The members of one `event_data`.
#[derive(Default)]
pub struct EventData {
    /// The whole value.
    pub raw: Value,
    /// `UtcTime`
    pub utc_time: Value,
    /// The members that are a [`Field`], in their order.
    fields: Vec<(Field, Value)>,
    /// Bit `f` is set when `fields` holds the field of number `f`.
    seen: u128,
    /// Keys of the members that are none.
    others: Vec<Value>,
    /// A key may occur twice.
    duplicates: bool,
}

const _: () = assert!(Field::ALL.len() <= 128, "`seen` has a bit for every field");

impl EventData {
    /// Forgets the last message.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.others.clear();
        (self.raw, self.utc_time, self.seen, self.duplicates) = Default::default();
    }

    /// Reads the value at `scanner`, replacing what was read before.
    pub fn read(&mut self, scanner: &mut Scanner<'_>) -> json::Result<()> {
        self.clear();
        self.raw = if scanner.peek() == Some(b'{') {
            scanner.object(|scanner, key| {
                let value = scanner.value()?;
                self.member(scanner.text(), key, value);
                Ok(())
            })?
        } else {
            scanner.value()?
        };
        Ok(())
    }

    #[inline]
    fn member(&mut self, text: &str, key: Value, value: Value) {
        match slot(key.name(text).as_bytes()) {
            Some(Slot::Field(field)) => {
                let bit = 1 << field as u8;
                if self.seen & bit == 0 {
                    self.seen |= bit;
                    self.fields.push((field, value));
                } else {
                    // The last one wins, as in Python's parser.
                    self.duplicates = true;
                    self.fields.retain(|(f, _)| *f != field);
                    self.fields.push((field, value));
                }
            }
            Some(Slot::UtcTime) => {
                self.duplicates |= self.utc_time.kind() != Type::Absent;
                self.utc_time = value;
            }
            None => {
                // Comparing with each is quick for the few that occur; beyond that, look closer when publishing.
                let raw = key.raw(text);
                self.duplicates |=
                    key.escaped() || self.others.len() >= 32 || self.others.iter().any(|other| other.raw(text) == raw);
                if self.others.len() < 32 {
                    self.others.push(key);
                }
            }
        }
    }

    fn get(&self, text: &str, field: Field) -> Option<Value> {
        if self.seen & (1 << field as u8) == 0 {
            return None;
        }
        let (_, value) = self.fields.iter().find(|(f, _)| *f == field)?;
        (!is_absent(text, *value)).then_some(*value)
    }

    /// Appends the published `data`.
    pub fn write(&self, out: &mut Vec<u8>, text: &str, id: Option<i64>, raw_id: Value, lone_surrogate: bool) {
        let Some(typed) = typed(id) else {
            out.extend_from_slice(b"{\"sysmon_event_id\":");
            match (id, raw_id.kind()) {
                (Some(id), _) => push_int(out, id),
                (None, Type::String) => push_quoted(out, text, raw_id, lone_surrogate),
                (None, _) => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(b",\"event_data\":");
            match self.raw.kind() {
                Type::Absent | Type::Null => out.extend_from_slice(b"{}"),
                Type::String => push_quoted(out, text, self.raw, lone_surrogate),
                _ if self.duplicates => write_deduplicated(out, text, self.raw, lone_surrogate),
                _ => push_raw(out, self.raw.raw(text), lone_surrogate),
            }
            out.push(b'}');
            return;
        };
        out.push(b'{');
        let start = out.len();
        let name = |out: &mut Vec<u8>, name: &str| {
            out.extend_from_slice(if out.len() == start { b"\"" } else { b",\"" });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
        };
        for &(field, published) in typed.fields {
            if let Some(value) = self.get(text, field) {
                name(out, published);
                match value.kind() {
                    Type::String => push_quoted(out, text, value, lone_surrogate),
                    _ => push_string(out, value.raw(text)),
                }
            }
        }
        let pid = if typed.process_id { self.get(text, Field::ProcessId) } else { None };
        if let Some(pid) = pid.and_then(|value| integer(text, value)) {
            name(out, "process_id");
            push_int(out, pid);
        }
        out.push(b'}');
    }

    /// Adds the cleaned fields to `builder`; `scratch` holds text while it is decoded.
    pub fn push_fields(&self, builder: &mut FieldsBuilder, text: &str, scratch: &mut Vec<u8>) {
        let entities = memchr::memchr(b'&', self.raw.raw(text).as_bytes()).is_some();
        for &(field, value) in &self.fields {
            let limit = if field == Field::CallTrace { CALL_TRACE_BYTES } else { MAX_FIELD_BYTES };
            let decoded;
            let mut clean = match value.kind() {
                Type::Absent | Type::Null => continue,
                Type::String if value.escaped() => value.unescape(text, scratch),
                _ => value.raw(text),
            };
            if entities && clean.contains('&') {
                decoded = decode_entities(clean);
                clean = &decoded;
            }
            clean = trim(&clean[..clean.floor_char_boundary(limit)]);
            match field {
                _ if clean == "-" => {}
                Field::ProcessGuid | Field::ParentProcessGuid | Field::SourceProcessGuid | Field::TargetProcessGuid => {
                    if clean.bytes().any(|b| !matches!(b, b'0' | b'-' | b'{' | b'}')) {
                        // Hexadecimal digits: Unicode has no say.
                        let mut guid = [0; 64];
                        match guid.get_mut(..clean.len()) {
                            Some(lower) if clean.is_ascii() => {
                                lower.copy_from_slice(clean.as_bytes());
                                lower.make_ascii_lowercase();
                                builder.push(field, str::from_utf8(lower).unwrap_or(clean));
                            }
                            _ => {
                                builder.push(field, &clean.to_ascii_lowercase());
                            }
                        }
                    }
                }
                _ => {
                    builder.push(field, clean);
                }
            }
        }
    }
}

/// `null`, an empty string and Sysmon's `-` mean that there is no value.
fn is_absent(text: &str, value: Value) -> bool {
    match value.kind() {
        Type::Absent | Type::Null => true,
        Type::String => value.text(text).is_none_or(|t| matches!(t.trim(), "" | "-")),
        _ => false,
    }
}

/// A whole number, from a number or from a string.
pub fn integer(text: &str, value: Value) -> Option<i64> {
    let digits = value.text(text)?;
    let digits = digits.trim();
    digits.parse().ok().or_else(|| {
        // 5940.0, as some shippers write it.
        let float: f64 = digits.parse().ok()?;
        (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
    })
}

fn push_quoted(out: &mut Vec<u8>, text: &str, value: Value, lone_surrogate: bool) {
    out.push(b'"');
    push_raw(out, value.raw(text), lone_surrogate);
    out.push(b'"');
}

/// Appends an object with the last of each key's members: some readers (Elasticsearch) refuse a key that repeats.
fn write_deduplicated(out: &mut Vec<u8>, text: &str, object: Value, lone_surrogate: bool) {
    let raw = object.raw(text);
    let mut members: Vec<(Value, Value)> = Vec::new();
    let scanned = Scanner::new(raw).object(|scanner, key| {
        members.push((key, scanner.value()?));
        Ok(())
    });
    debug_assert!(scanned.is_ok(), "the range was scanned before");
    let name = |key: Value| key.text(raw).unwrap_or(Cow::Borrowed(""));
    let last: BTreeMap<Cow<'_, str>, usize> = members.iter().enumerate().map(|(i, (key, _))| (name(*key), i)).collect();
    let start = out.len();
    for (i, (key, value)) in members.iter().enumerate() {
        if last.get(&key.name(raw)) == Some(&i) {
            out.push(if out.len() == start { b'{' } else { b',' });
            push_quoted(out, raw, *key, lone_surrogate);
            out.push(b':');
            match value.kind() {
                Type::String => push_quoted(out, raw, *value, lone_surrogate),
                _ => push_raw(out, value.raw(raw), lone_surrogate),
            }
        }
    }
    out.push(b'}');
}

/// Decodes the entities that Windows' event XML leaves behind.
fn decode_entities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'&', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = rest.bytes().take(10).position(|b| b == b';').map(|end| &rest[1..end]);
        match entity.and_then(|name| Some((entity_char(name)?, name.len() + 2))) {
            Some((c, len)) => {
                out.push(c);
                rest = &rest[len..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn entity_char(name: &str) -> Option<char> {
    match name {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            code.ok().and_then(char::from_u32)
        }
    }
}

/// What a key of `event_data` means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Field(Field),
    UtcTime,
}

/// A key in the form in which it is compared: its length, its first and last eight bytes in lower case, and its name
/// for what lies between. Names have only letters, so setting bit 5 makes either case the same and nothing else.
#[derive(Clone, Copy)]
struct Key {
    head: u64,
    tail: u64,
    name: &'static str,
    slot: Slot,
}

const SLOTS: usize = 256;

/// An open-addressed hash table of keys, made at compile time.
static KEYS: [Option<Key>; SLOTS] = {
    let mut table = [None; SLOTS];
    let mut field = 0;
    // Up to `RuleName`; the fields after it are those of Linux.
    while field <= Field::RuleName as usize {
        let field_of = Field::ALL[field];
        insert(&mut table, field_of.name(), Slot::Field(field_of));
        field += 1;
    }
    // Id 15 writes `Hash` where the others write `Hashes`.
    insert(&mut table, "Hash", Slot::Field(Field::Hashes));
    insert(&mut table, "UtcTime", Slot::UtcTime);
    table
};

const fn insert(table: &mut [Option<Key>; SLOTS], name: &'static str, slot: Slot) {
    let (head, tail) = ends(name.as_bytes());
    let mut at = key_hash(head, tail);
    while table[at].is_some() {
        at = (at + 1) % SLOTS;
    }
    table[at] = Some(Key { head, tail, name, slot });
}

/// The first and the last eight bytes of a key in lower case; they overlap in one of less than sixteen.
#[inline]
const fn ends(key: &[u8]) -> (u64, u64) {
    const LOWER: u64 = 0x2020_2020_2020_2020;
    match (key.first_chunk(), key.last_chunk()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head) | LOWER, u64::from_le_bytes(*tail) | LOWER),
        _ => match (key.first_chunk(), key.last_chunk()) {
            (Some(head), Some(tail)) => {
                ((u32::from_le_bytes(*head) as u64) << 32 | u32::from_le_bytes(*tail) as u64 | LOWER, key.len() as u64)
            }
            _ => {
                let (mut head, mut i) = (0, 0);
                while i < key.len() {
                    head = head << 8 | (key[i] | 0x20) as u64;
                    i += 1;
                }
                (head, key.len() as u64)
            }
        },
    }
}

#[inline]
const fn key_hash(head: u64, tail: u64) -> usize {
    let mixed = head.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ tail.wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    (mixed >> 56) as usize % SLOTS
}

/// The slot of `key` in any case: Sysmon itself writes both `SourceProcessGuid` and `SourceProcessGUID`.
#[inline]
fn slot(key: &[u8]) -> Option<Slot> {
    let (head, tail) = ends(key);
    let mut at = key_hash(head, tail);
    while let Some(known) = &KEYS[at] {
        let same_ends = known.head == head && known.tail == tail && known.name.len() == key.len();
        if same_ends && (key.len() <= 16 || known.name.as_bytes().eq_ignore_ascii_case(key)) {
            return Some(known.slot);
        }
        at = (at + 1) % SLOTS;
    }
    None
}
