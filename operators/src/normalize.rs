//! Turns one raw record into a normalized event and an observation, or into a dead letter.
//!
//! ```text
//! bytes ─▶ encoding ─▶ json: one scan, members by name ─▶ host, tenant, time ─▶ by topic ┬ sysmon ┬▶ JSON record
//!                                                                                        ├ auditd ┤
//!            any step may refuse ─▶ dead letter with reason and original bytes           └ ebpf ──┴▶ observation
//! ```
//!
//! - Input: [`RawRecord`]s of the five raw topics, untrusted.
//! - Output: exactly one [`Outcome`] each. Published text is copied from the message, still escaped.
//! - State: scratch buffers and a cache of endpoints; neither decides a result.
//! - Ordering: none; each record stands alone.
//! - Failure: every input yields an outcome. Refused are: empty, too large, neither UTF-8 nor UTF-16, not JSON,
//!   nested 128 deep, no object, no `winlog` object or `message` string. Everything else is an event, if need be one
//!   of host `unknown` at its arrival time.
//!
//! A message that repeats a key means its last occurrence. Text that is shared with the graph is bounded
//! ([`logster_schema::observation::MAX_FIELD_BYTES`]); published text is not.

pub mod auditd;
pub mod ebpf;
pub mod encoding;
pub mod json;
pub mod sysmon;

use std::borrow::Cow;

use logster_schema::observation::FieldsBuilder;
use logster_schema::{
    Activity, DeadLetter, DeadLetterReason, Endpoint, Field, Fields, Kind, Observation, Platform, Position, RawTopic,
    TimeLimits, TimeMs, time,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use json::{Scanner, Type, Value, push_int, push_raw, push_string};

/// One record of a raw topic, untrusted.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Topic.
    pub topic: RawTopic,
    /// Partition.
    pub partition: i32,
    /// Offset (of a file: line number from 0 within its partition).
    pub offset: i64,
    /// Arrival, already monotonic within the partition.
    pub arrival_ms: TimeMs,
    /// Record key, if any.
    pub key: Option<&'a [u8]>,
    /// The message.
    pub payload: &'a [u8],
}

/// What became of a raw record.
#[derive(Debug)]
pub enum Outcome {
    /// Accepted.
    Event(Box<Normalized>),
    /// Refused.
    DeadLetter(Box<DeadLetter>),
}

/// An accepted record.
#[derive(Debug)]
pub struct Normalized {
    /// Key of the output record.
    pub endpoint: Endpoint,
    /// Published `timestamp`, as the spec resolves it: also the output record's time.
    pub timestamp_ms: TimeMs,
    /// The `NormalizedEvent` as JSON: `event_id`, `tenant_id`, `endpoint_id`, `platform`, `event_type`,
    /// `timestamp`, `source`, `data`.
    pub json: Vec<u8>,
    /// The time was clamped (see [`TimeLimits::window_time`]).
    pub clamped: bool,
    /// What the graph needs of it.
    pub observation: Observation,
}

/// Limits of a message.
#[derive(Clone, Copy, Debug)]
pub struct NormalizeConfig {
    /// Lateness, skew and backfill.
    pub time: TimeLimits,
    /// Larger messages are dead letters (`input.max_message_bytes`).
    pub max_message_bytes: usize,
}

/// Endpoints remembered at a time: enough that an interval's hosts mostly stay, small enough for a core's cache.
const ENDPOINT_SLOTS: usize = 8192;
/// Longest host name and tenant in bytes (DNS allows 253): a forged one must not become a key of a megabyte.
const MAX_NAME_BYTES: usize = 255;
/// 9999-01-01: the year that stands for "never" in many systems is no event time.
const YEAR_9999_MS: TimeMs = 253_370_764_800_000;
/// What a record holds beside its endpoint and the content of its message, at most for the usual offsets.
const HEAD_BYTES: usize = 280;
const DEFAULT_TENANT: &str = "default";
const UNKNOWN_HOST: &str = "unknown";

/// The operator's core. Keeps scratch buffers and an interner of endpoints; no state that decides a result.
pub struct Normalizer {
    config: NormalizeConfig,
    endpoints: EndpointCache,
    event_data: sysmon::EventData,
    fields: FieldsBuilder,
    scratch: Vec<u8>,
}

impl Normalizer {
    /// A normalizer with these limits.
    pub fn new(config: NormalizeConfig) -> Self {
        Self {
            config,
            endpoints: EndpointCache { slots: (0..ENDPOINT_SLOTS).map(|_| None).collect() },
            event_data: sysmon::EventData::default(),
            fields: Fields::builder(),
            scratch: Vec::new(),
        }
    }

    /// Normalizes one record.
    pub fn normalize(&mut self, record: &RawRecord<'_>) -> Outcome {
        self.normalize_as(record, None)
    }

    /// Normalizes one record; `tenant`, where given, takes the place of the record's own.
    pub fn normalize_as(&mut self, record: &RawRecord<'_>, tenant: Option<&str>) -> Outcome {
        match self.accept(record, tenant) {
            Ok(event) => Outcome::Event(Box::new(event)),
            Err(Refusal(reason, detail)) => {
                let letter = DeadLetter {
                    reason,
                    detail,
                    topic: record.topic.name().to_owned(),
                    partition: record.partition,
                    offset: record.offset,
                    arrival: record.arrival_ms,
                    key: record.key.and_then(|key| str::from_utf8(key).ok()).map(str::to_owned),
                    payload: None,
                    payload_base64: None,
                };
                Outcome::DeadLetter(Box::new(letter.with_payload(record.payload)))
            }
        }
    }

    fn accept(&mut self, record: &RawRecord<'_>, tenant: Option<&str>) -> Result<Normalized, Refusal> {
        // UTF-16 grows by half when it becomes UTF-8.
        let limit = self.config.max_message_bytes.min(json::MAX_BYTES / 2);
        if record.payload.len() > limit {
            let detail = format!("{} bytes, the limit is {limit}", record.payload.len());
            return Err(Refusal(DeadLetterReason::TooLarge, detail));
        }
        let text = decode(record.payload)?;
        let text = &*text;
        let envelope = Envelope::read(text, Some(&mut self.event_data))?;
        let windows = record.topic == RawTopic::Sysmon;
        if windows && envelope.winlog.kind() != Type::Object {
            return Err(Refusal(DeadLetterReason::MissingContent, "no `winlog` object".to_owned()));
        }
        if !windows && envelope.message.kind() != Type::String {
            return Err(Refusal(DeadLetterReason::MissingContent, "no `message` string".to_owned()));
        }

        // A source may hand over any number; the sums of `window_time` must stay in range.
        let arrival_ms = record.arrival_ms.clamp(time::MIN_TIME_MS, time::MAX_TIME_MS);
        let recorded = event_time(text, envelope.recorded);
        let (published, own) = if windows {
            let utc = event_time(text, self.event_data.utc_time);
            (utc.or(recorded), self.config.time.record_time(utc, recorded))
        } else {
            let stated = event_time(text, envelope.timestamp).or(recorded);
            (stated, stated)
        };
        let timestamp_ms = published.unwrap_or(arrival_ms);
        let window = self.config.time.window_time(own, arrival_ms);
        let tenant = tenant.map_or_else(|| envelope.tenant(text), Cow::Borrowed);
        let interned = self.endpoints.get(&tenant, &envelope.host(text, record.topic.platform()));
        let position = Position { topic: record.topic, partition: record.partition, offset: record.offset };

        let id = if windows { envelope.event_id(text) } else { None };
        // Data is published about as it came, so this is nearly always room enough, and seldom much too much.
        let content = if windows { self.event_data.raw } else { envelope.message };
        let mut out = Vec::with_capacity(HEAD_BYTES + interned.json.len() + content.bytes());
        write_head(&mut out, position, &interned.json, event_type(record.topic, id), timestamp_ms);
        let kind = if windows {
            self.event_data.write(&mut out, text, id, envelope.event_id, envelope.lone_surrogate);
            let kind = sysmon::kind(id);
            if kind != Kind::Opaque {
                self.event_data.push_fields(&mut self.fields, text, &mut self.scratch);
                if kind == Kind::Sysmon(sysmon::SCRIPT_BLOCK)
                    && let Some(pid) = sysmon::integer(text, envelope.winlog_pid)
                {
                    self.fields.push(Field::ProcessId, &pid.to_string());
                }
            }
            kind
        } else {
            let message = envelope.message;
            let unescaped =
                if message.escaped() { message.unescape(text, &mut self.scratch) } else { message.raw(text) };
            let kind = match record.topic {
                RawTopic::EbpfProcess => exec(&mut out, &mut self.fields, unescaped),
                RawTopic::EbpfFile => file(&mut out, &mut self.fields, unescaped),
                RawTopic::EbpfNetwork => network(&mut out, &mut self.fields, unescaped),
                RawTopic::Auditd | RawTopic::Sysmon => None,
            };
            kind.unwrap_or_else(|| {
                out.extend_from_slice(b"{\"message\":\"");
                push_raw(&mut out, message.raw(text), envelope.lone_surrogate);
                out.extend_from_slice(b"\"}");
                match record.topic {
                    RawTopic::Auditd => audit(&mut self.fields, unescaped),
                    _ => Kind::Opaque,
                }
            })
        };
        out.push(b'}');
        Ok(Normalized {
            endpoint: interned.endpoint.clone(),
            timestamp_ms,
            json: out,
            clamped: window.clamped,
            observation: Observation {
                endpoint: interned.endpoint.clone(),
                platform: record.topic.platform(),
                time_ms: window.time_ms,
                arrival_ms,
                lane: window.lane,
                position,
                activity: Activity { kind, fields: self.fields.finish() },
                rules: None,
            },
        })
    }
}

/// `tenant:endpoint` of a raw message: what a producer keys it by, and a file source partitions it by.
///
/// Resolved as [`Normalizer::normalize`] resolves it; `default:unknown` for what that refuses as no JSON object.
pub fn routing_key(topic: RawTopic, payload: &[u8]) -> String {
    let key = |payload| {
        let text = decode(payload)?;
        let envelope = Envelope::read(&text, None)?;
        let (tenant, host) = (envelope.tenant(&text), envelope.host(&text, topic.platform()));
        Ok::<_, Refusal>(new_endpoint(&tenant, &host).key().to_owned())
    };
    let fits = payload.len() <= json::MAX_BYTES / 2;
    key(if fits { payload } else { b"" }).unwrap_or_else(|_| format!("{DEFAULT_TENANT}:{UNKNOWN_HOST}"))
}

/// Why a record is refused: the reason, and in words what was found.
struct Refusal(DeadLetterReason, String);

impl From<json::Error> for Refusal {
    fn from(error: json::Error) -> Self {
        match error {
            json::Error::TooDeep(at) => {
                Self(DeadLetterReason::TooDeep, format!("nested {} levels deep at byte {at}", json::MAX_DEPTH))
            }
            json::Error::Invalid(what, at) => Self(DeadLetterReason::InvalidJson, format!("{what}, at byte {at}")),
        }
    }
}

fn decode(payload: &[u8]) -> Result<Cow<'_, str>, Refusal> {
    let text = encoding::decode(payload).map_err(|detail| Refusal(DeadLetterReason::InvalidEncoding, detail))?;
    if text.bytes().all(|b| b.is_ascii_whitespace()) {
        return Err(Refusal(DeadLetterReason::Empty, "no text".to_owned()));
    }
    Ok(text)
}

/// The members of a message that the spec names, for both platforms.
#[derive(Clone, Copy, Default)]
struct Envelope {
    /// `@timestamp`
    recorded: Value,
    timestamp: Value,
    message: Value,
    tenant: Value,
    /// `host`, where it is a string.
    host: Value,
    /// `host.name`
    host_name: Value,
    hostname: Value,
    /// `agent.hostname`
    agent_hostname: Value,
    computer_name: Value,
    winlog: Value,
    /// `winlog.computer_name`
    winlog_computer_name: Value,
    /// `winlog.event_id`
    event_id: Value,
    /// `event.code`
    event_code: Value,
    /// `winlog.process.pid`: who wrote the event. Of a script block this is its host, which `event_data` leaves out.
    winlog_pid: Value,
    /// Some escape in the message is half of a surrogate pair.
    lone_surrogate: bool,
}

impl Envelope {
    /// Scans a whole message. `event_data` is taken apart only where it is asked for.
    fn read(text: &str, mut event_data: Option<&mut sysmon::EventData>) -> Result<Self, Refusal> {
        let mut e = Self::default();
        if let Some(data) = &mut event_data {
            data.clear();
        }
        let mut scanner = Scanner::new(text);
        let object = scanner.peek() == Some(b'{');
        let read = if object { e.members(&mut scanner, event_data) } else { scanner.value().map(drop) };
        if read.and_then(|()| scanner.finish()).is_err() {
            return Err(scanner.error().into());
        }
        if !object {
            return Err(Refusal(DeadLetterReason::NotAnObject, "the message is JSON, but no object".to_owned()));
        }
        e.lone_surrogate = scanner.lone_surrogate;
        Ok(e)
    }

    fn members(
        &mut self,
        scanner: &mut Scanner<'_>,
        mut event_data: Option<&mut sysmon::EventData>,
    ) -> json::Result<()> {
        let (text, e) = (scanner.text(), self);
        // A member that occurs twice: all that its first occurrence said is forgotten.
        scanner.object(|s, key| {
            match &*key.name(text) {
                "@timestamp" => e.recorded = s.value()?,
                "timestamp" => e.timestamp = s.value()?,
                "message" => e.message = s.value()?,
                "_tenant_id" => e.tenant = s.value()?,
                "hostname" => e.hostname = s.value()?,
                "computer_name" => e.computer_name = s.value()?,
                "host" => {
                    e.host_name = Value::default();
                    e.host = members(s, |s, key| {
                        match key {
                            "name" => e.host_name = s.value()?,
                            _ => drop(s.value()?),
                        }
                        Ok(())
                    })?;
                }
                "agent" => {
                    e.agent_hostname = Value::default();
                    members(s, |s, key| {
                        match key {
                            "hostname" => e.agent_hostname = s.value()?,
                            _ => drop(s.value()?),
                        }
                        Ok(())
                    })?;
                }
                "event" => {
                    e.event_code = Value::default();
                    members(s, |s, key| {
                        match key {
                            "code" => e.event_code = s.value()?,
                            _ => drop(s.value()?),
                        }
                        Ok(())
                    })?;
                }
                "winlog" => {
                    (e.event_id, e.winlog_computer_name, e.winlog_pid) = Default::default();
                    if let Some(data) = &mut event_data {
                        data.clear();
                    }
                    e.winlog = members(s, |s, key| {
                        match (key, &mut event_data) {
                            ("event_data", Some(data)) => data.read(s)?,
                            ("event_id", _) => e.event_id = s.value()?,
                            ("computer_name", _) => e.winlog_computer_name = s.value()?,
                            ("process", _) => {
                                e.winlog_pid = Value::default();
                                members(s, |s, key| {
                                    match key {
                                        "pid" => e.winlog_pid = s.value()?,
                                        _ => drop(s.value()?),
                                    }
                                    Ok(())
                                })?;
                            }
                            _ => drop(s.value()?),
                        }
                        Ok(())
                    })?;
                }
                _ => drop(s.value()?),
            }
            Ok(())
        })?;
        Ok(())
    }

    fn tenant<'a>(&self, text: &'a str) -> Cow<'a, str> {
        label(text, self.tenant).unwrap_or(Cow::Borrowed(DEFAULT_TENANT))
    }

    /// The host as written, in any case.
    fn host<'a>(&self, text: &'a str, platform: Platform) -> Cow<'a, str> {
        let windows = [self.agent_hostname, self.host_name, self.host, self.computer_name, self.winlog_computer_name];
        let linux = [self.host_name, self.host, self.hostname];
        let candidates = match platform {
            Platform::Windows => &windows[..],
            Platform::Linux => &linux[..],
        };
        candidates.iter().find_map(|&value| label(text, value)).unwrap_or(Cow::Borrowed(UNKNOWN_HOST))
    }

    fn event_id(&self, text: &str) -> Option<i64> {
        sysmon::integer(text, self.event_id).or_else(|| sysmon::integer(text, self.event_code))
    }
}

/// Reads the members of an object, or skips what is none.
#[inline]
fn members<'a>(
    scanner: &mut Scanner<'a>,
    mut member: impl FnMut(&mut Scanner<'a>, &str) -> json::Result<()>,
) -> json::Result<Value> {
    if scanner.peek() != Some(b'{') {
        return scanner.value();
    }
    scanner.object(|s, key| {
        let text = s.text();
        member(s, &key.name(text))
    })
}

/// A host or tenant: trimmed, cut, and absent when empty.
fn label(text: &str, value: Value) -> Option<Cow<'_, str>> {
    fn cut(s: &str) -> &str {
        let s = trim(s);
        &s[..s.floor_char_boundary(MAX_NAME_BYTES)]
    }
    let label = match value.text(text)? {
        Cow::Borrowed(s) => Cow::Borrowed(cut(s)),
        Cow::Owned(s) => Cow::Owned(cut(&s).to_owned()),
    };
    (!label.is_empty()).then_some(label)
}

/// [`str::trim`], which asks Unicode about every character; text that begins and ends in ASCII print needs none.
fn trim(text: &str) -> &str {
    if matches!(text.as_bytes(), [b'!'..=b'~', .., b'!'..=b'~']) { text } else { text.trim() }
}

fn new_endpoint(tenant: &str, host: &str) -> Endpoint {
    Endpoint::new(tenant, &host.to_lowercase())
}

/// A time as a shipper may write it: ISO 8601, or seconds or milliseconds since 1970 as a number or in a string.
fn event_time(text: &str, value: Value) -> Option<TimeMs> {
    let written = value.text(text)?;
    let ms = match value.kind() {
        Type::String => time::parse(&written).or_else(|| time::from_epoch(written.trim().parse().ok()?)),
        _ => time::from_epoch(written.parse().ok()?),
    };
    ms.filter(|&ms| ms < YEAR_9999_MS)
}

fn event_type(topic: RawTopic, id: Option<i64>) -> &'static str {
    match topic {
        RawTopic::Sysmon => sysmon::event_type(id),
        RawTopic::Auditd => "syscall",
        RawTopic::EbpfProcess => "process",
        RawTopic::EbpfFile => "file",
        RawTopic::EbpfNetwork => "network",
    }
}

/// Everything before the value of `data`.
fn write_head(out: &mut Vec<u8>, position: Position, endpoint: &[u8], event_type: &str, timestamp_ms: TimeMs) {
    macro_rules! fixed {
        ($topic:literal, $platform:literal) => {
            (
                concat!("{\"event_id\":\"", $topic, ":").as_bytes(),
                concat!(",\"platform\":\"", $platform, "\",\"event_type\":\"").as_bytes(),
                concat!("\",\"source\":\"", $topic, "\",\"data\":").as_bytes(),
            )
        };
    }
    let (before_id, before_type, before_data) = match position.topic {
        RawTopic::Sysmon => fixed!("sysmon-logs", "windows"),
        RawTopic::Auditd => fixed!("linux-auditd-logs", "linux"),
        RawTopic::EbpfProcess => fixed!("linux-ebpf-process-logs", "linux"),
        RawTopic::EbpfFile => fixed!("linux-ebpf-file-logs", "linux"),
        RawTopic::EbpfNetwork => fixed!("linux-ebpf-network-logs", "linux"),
    };
    out.extend_from_slice(before_id);
    push_int(out, position.partition.into());
    out.push(b':');
    push_int(out, position.offset);
    out.extend_from_slice(b"\",");
    out.extend_from_slice(endpoint);
    out.extend_from_slice(before_type);
    out.extend_from_slice(event_type.as_bytes());
    out.extend_from_slice(b"\",\"timestamp\":\"");
    out.extend_from_slice(&time::format_bytes(timestamp_ms));
    out.extend_from_slice(before_data);
}

/// Writes one flat object of strings and numbers.
struct Data<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Data<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(if self.first { b"\"" } else { b",\"" });
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.first = false;
    }

    fn string(&mut self, name: &str, value: &str) {
        self.name(name);
        push_string(self.out, value);
    }

    /// A pid of digits; one that no integer type of a reader holds is left out.
    fn pid(&mut self, digits: &str) {
        if let Ok(pid) = digits.parse() {
            self.name("process_id");
            push_int(self.out, pid);
        }
    }

    fn finish(self) {
        self.out.push(b'}');
    }
}

/// Where the spec supposes a program of which only the process name is known.
fn usr_bin(comm: &str) -> String {
    format!("/usr/bin/{comm}")
}

fn exec(out: &mut Vec<u8>, fields: &mut FieldsBuilder, message: &str) -> Option<Kind> {
    let exec = ebpf::exec(message)?;
    let ebpf::Exec { pid, ppid, uid, comm, args } = exec;
    let root = uid.bytes().all(|b| b == b'0');
    let mut data = Data::new(out);
    data.pid(pid);
    data.string("image", &exec.path().map_or_else(|| usr_bin(comm), str::to_owned));
    data.string("command_line", args.unwrap_or(comm));
    data.string("user", &format!("uid:{uid}"));
    data.string("parent_image", &format!("/usr/bin/ppid:{ppid}"));
    data.string("integrity_level", if root { "root" } else { "user" });
    data.finish();
    fields.push(Field::ProcessId, pid).push(Field::Ppid, ppid).push(Field::Uid, uid).push(Field::Comm, comm);
    fields.push(Field::Args, args.unwrap_or_default());
    Some(Kind::EbpfExec)
}

fn file(out: &mut Vec<u8>, fields: &mut FieldsBuilder, message: &str) -> Option<Kind> {
    let ebpf::File { pid, comm, flags, path } = ebpf::file(message)?;
    let mut data = Data::new(out);
    data.pid(pid);
    data.string("creator_image", &usr_bin(comm));
    if !flags.is_empty() {
        data.string("flags", flags);
    }
    if !path.is_empty() {
        data.string("target_filename", path);
    }
    data.finish();
    fields.push(Field::ProcessId, pid).push(Field::Comm, comm).push(Field::Flags, flags);
    fields.push(Field::Path, path.trim());
    Some(Kind::EbpfFile)
}

fn network(out: &mut Vec<u8>, fields: &mut FieldsBuilder, message: &str) -> Option<Kind> {
    if let Some(ebpf::Connect { kind, pid, comm, dest }) = ebpf::connect(message) {
        let mut data = Data::new(out);
        data.string("connection_type", kind);
        data.pid(pid);
        data.string("image", &usr_bin(comm));
        if let Some((ip, port)) = dest {
            data.string("dest_ip", ip);
            data.string("dest_port", port);
        }
        data.finish();
        fields.push(Field::ProcessId, pid).push(Field::Comm, comm).push(Field::ConnectionType, kind);
        if let Some((ip, port)) = dest {
            // Sysmon writes IPv6 addresses without brackets: one spelling for the graph.
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
            fields.push(Field::DestinationIp, bare).push(Field::DestinationPort, port);
        }
        return Some(Kind::EbpfConnect);
    }
    let ebpf::Socket { pid, comm, family } = ebpf::socket(message)?;
    let mut data = Data::new(out);
    data.pid(pid);
    data.string("image", &usr_bin(comm));
    data.string("socket_type", family);
    data.finish();
    fields.push(Field::ProcessId, pid).push(Field::Comm, comm).push(Field::SocketType, family);
    Some(Kind::EbpfSocket)
}

fn audit(fields: &mut FieldsBuilder, message: &str) -> Kind {
    let Some(auditd::Record { kind, serial, body }) = auditd::parse(message) else { return Kind::Opaque };
    fields.push(Field::AuditType, kind).push(Field::AuditSerial, serial);
    if memchr::memchr(0x1D, body.as_bytes()).is_some() {
        fields.push(Field::AuditText, &body.replace('\x1d', " "));
    } else {
        fields.push(Field::AuditText, body);
    }
    Kind::Audit
}

/// Endpoints met lately, by what the message says: one entry a slot, the latest wins.
struct EndpointCache {
    slots: Vec<Option<Box<Interned>>>,
}

struct Interned {
    tenant: Box<str>,
    host: Box<str>,
    endpoint: Endpoint,
    /// `"tenant_id":...,"endpoint_id":...`
    json: Vec<u8>,
}

impl EndpointCache {
    fn get(&mut self, tenant: &str, host: &str) -> &Interned {
        let hash = xxh3_64_with_seed(host.as_bytes(), xxh3_64(tenant.as_bytes()));
        let slot = &mut self.slots[hash as usize % ENDPOINT_SLOTS];
        if slot.as_ref().is_some_and(|known| *known.tenant != *tenant || *known.host != *host) {
            *slot = None;
        }
        slot.get_or_insert_with(|| {
            let endpoint = new_endpoint(tenant, host);
            let mut json = b"\"tenant_id\":".to_vec();
            push_string(&mut json, endpoint.tenant());
            json.extend_from_slice(b",\"endpoint_id\":");
            push_string(&mut json, endpoint.host());
            Box::new(Interned { tenant: tenant.into(), host: host.into(), endpoint, json })
        })
    }
}

#[cfg(test)]
mod tests;
