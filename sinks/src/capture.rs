//! Reads captures: NDJSON files of raw records, plain, `.gz` or `.zst`, a directory of them, or standard input.
//!
//! - Input: one record a line, `{"topic","value"}` with an optional `ts` (arrival, ms) and `key`; or, with
//!   [`Framing::Bare`], each line is itself the message.
//! - Output: [`Line`]s in file order, files in order of their paths; [`Framing::parse`] turns one into an
//!   [`Envelope`] that borrows the message's bytes exactly as they stand in the line.
//! - State: one line, at most [`CaptureReader::MAX_LINE_BYTES`]; what is longer is cut and said to be.
//! - Failure: a line that is no envelope is a [`Refused`] (a dead letter), never an error. Errors are for files
//!   that cannot be opened, read or decompressed.
//!
//! The envelope is scanned, not parsed: the value is found by counting brackets outside strings, whatever its
//! depth and encoding, and judged by whoever normalizes it. So a record is refused for the same reason whether
//! it came from a file or through Kafka.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use logster_schema::{DeadLetterReason, InputTopic, RawTopic, TimeMs, time};
use memchr::{memchr, memchr2};

/// A capture that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Missing, unreadable, or a directory that cannot be listed.
    #[error("could not open \"{}\"", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// Why it could not be.
        #[source]
        source: io::Error,
    },
    /// A directory with nothing to play.
    #[error("no .ndjson or .jsonl file (plain, .gz or .zst) in \"{}\"", path.display())]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// Damaged compression, a failing disk.
    #[error("could not read \"{}\" after line {lines}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Lines read from it before.
        lines: u64,
        /// Why reading failed.
        #[source]
        source: io::Error,
    },
}

/// One line of a capture, without its line end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Index into [`CaptureReader::files`].
    pub file: usize,
    /// Line number within the file, from 0.
    pub line_no: u64,
    /// The bytes, without `\n` or `\r\n` and without a byte order mark at the start of the file.
    pub bytes: &'a [u8],
    /// The line was longer than [`CaptureReader::MAX_LINE_BYTES`], the rest was skipped.
    pub cut: bool,
}

/// Reads the lines of one file, of every capture below a directory, or of standard input.
pub struct CaptureReader {
    files: Vec<PathBuf>,
    /// The file being read; `files.len()` at the end.
    file: usize,
    open: Option<Box<dyn BufRead + Send>>,
    line_no: u64,
    line: Vec<u8>,
}

impl CaptureReader {
    /// Longest line kept, in bytes: far above any broker's message limit, low enough to hold in memory.
    pub const MAX_LINE_BYTES: usize = 64 << 20;
    /// The path that stands for standard input.
    pub const STDIN: &str = "-";

    /// Prepares to read `input`: a file whatever its name, a directory (see [`files`]), or `-`.
    pub fn open(input: &Path) -> Result<Self, CaptureError> {
        Ok(Self { files: files(input)?, file: 0, open: None, line_no: 0, line: Vec::new() })
    }

    /// The files to be read, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The next line; `None` after the last line of the last file.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, CaptureError> {
        loop {
            let Some(path) = self.files.get(self.file) else { return Ok(None) };
            if self.open.is_none() {
                let source = decompressed(path);
                self.open = Some(source.map_err(|source| CaptureError::Open { path: path.clone(), source })?);
                self.line_no = 0;
            }
            let reader = self.open.as_mut().expect("opened above");
            let read = read_line(reader, &mut self.line, Self::MAX_LINE_BYTES);
            match read.map_err(|source| CaptureError::Read { path: path.clone(), lines: self.line_no, source })? {
                None => {
                    self.open = None;
                    self.file += 1;
                }
                Some(cut) => {
                    let line_no = self.line_no;
                    self.line_no += 1;
                    let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
                    let bytes = if line_no == 0 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
                    return Ok(Some(Line { file: self.file, line_no, bytes, cut }));
                }
            }
        }
    }
}

/// The files that `input` stands for, ordered by path.
///
/// A directory is searched through and through for `.ndjson` and `.jsonl`, plain, `.gz` or `.zst`;
/// `labels.json` and the like are left alone. A file, a pipe and `-` stand for themselves.
pub fn files(input: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            } else if is_capture(&path) {
                found.push(path);
            }
        }
        Ok(())
    }
    if input == Path::new(CaptureReader::STDIN) {
        return Ok(vec![input.to_owned()]);
    }
    let open = |source| CaptureError::Open { path: input.to_owned(), source };
    if !std::fs::metadata(input).map_err(open)?.is_dir() {
        return Ok(vec![input.to_owned()]);
    }
    let mut found = Vec::new();
    walk(input, &mut found).map_err(open)?;
    if found.is_empty() {
        return Err(CaptureError::Nothing { path: input.to_owned() });
    }
    found.sort();
    Ok(found)
}

fn is_capture(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    !name.starts_with('.') && (name.ends_with(".ndjson") || name.ends_with(".jsonl"))
}

/// Opens and, by its first bytes, decompresses: a pipe has no name to go by, and names lie.
fn decompressed(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    const BUFFER: usize = 256 << 10;
    let raw: Box<dyn Read + Send> = match path.to_str() {
        Some(CaptureReader::STDIN) => Box::new(io::stdin()),
        _ => Box::new(File::open(path)?),
    };
    // A pipe may hand over less than four bytes at first, so the magic is read apart and put back.
    let mut magic = Vec::with_capacity(4);
    let mut raw = BufReader::with_capacity(BUFFER, raw);
    raw.by_ref().take(4).read_to_end(&mut magic)?;
    let zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let whole = io::Cursor::new(magic).chain(raw);
    Ok(if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(27)?; // long-range windows, as `zstd --long=27` writes them
        Box::new(BufReader::with_capacity(BUFFER, decoder))
    } else if gzip {
        Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(whole)))
    } else {
        Box::new(whole)
    })
}

/// Reads up to and without the next `\n`. `None` at the end, else whether the line was cut at `max`.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, max: usize) -> io::Result<Option<bool>> {
    line.clear();
    let (mut any, mut cut) = (false, false);
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if buffer.is_empty() {
            return Ok(any.then_some(cut));
        }
        any = true;
        let end = memchr(b'\n', buffer);
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let kept = part.len().min(max - line.len());
        cut |= kept < part.len();
        line.extend_from_slice(&part[..kept]);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(cut));
        }
    }
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `{"topic","value"}` with optional `ts` and `key`.
    Envelope,
    /// The message itself, of this topic.
    Bare(RawTopic),
}

/// One record as a capture holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Where it belongs.
    pub topic: InputTopic,
    /// The message: the bytes of `value` as they stand in the line.
    pub value: &'a [u8],
    /// Arrival given by the line.
    pub ts_ms: Option<TimeMs>,
    /// Kafka key given by the line.
    pub key: Option<Cow<'a, str>>,
}

impl Envelope<'_> {
    /// Arrival: `ts`, else the value's `@timestamp`, else its `timestamp`.
    pub fn arrival_ms(&self) -> Option<TimeMs> {
        self.ts_ms.or_else(|| value_time(self.value))
    }
}

/// A line that yields no raw record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: DeadLetterReason,
    /// In words.
    pub detail: String,
    /// What the line named as its topic; empty if nothing.
    pub topic: String,
}

impl Framing {
    /// Finds the message in a line.
    pub fn parse<'a>(self, line: &Line<'a>) -> Result<Envelope<'a>, Refused> {
        let refused = |reason, detail: String| Refused { reason, detail, topic: String::new() };
        if line.bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(refused(DeadLetterReason::Empty, "an empty line".into()));
        }
        if line.cut {
            let detail = format!("a line of more than {} bytes", CaptureReader::MAX_LINE_BYTES);
            return Err(refused(DeadLetterReason::TooLarge, detail));
        }
        match self {
            Self::Bare(topic) => {
                Ok(Envelope { topic: InputTopic::Raw(topic), value: line.bytes, ts_ms: None, key: None })
            }
            Self::Envelope => envelope(line.bytes),
        }
    }
}

fn envelope(line: &[u8]) -> Result<Envelope<'_>, Refused> {
    let (mut topic, mut value, mut ts, mut key) = (None, None, None, None);
    let whole = members(line, |name, token| {
        match name {
            b"topic" => topic = Some(token),
            b"value" => value = Some(token),
            b"ts" => ts = Some(token),
            b"key" => key = Some(token),
            _ => {}
        }
        true
    });
    let topic = topic.and_then(string).unwrap_or_default();
    let refused = |reason, detail: String| Refused { reason, detail, topic: topic.clone().into_owned() };
    let invalid = |detail: &str| refused(DeadLetterReason::InvalidEnvelope, detail.into());
    if whole.is_none() {
        return Err(invalid("not a JSON object, or cut short"));
    }
    if topic.is_empty() {
        return Err(invalid("no \"topic\" string"));
    }
    let value = value.ok_or_else(|| invalid("no \"value\""))?;
    let ts_ms = match ts {
        None | Some(b"null") => None,
        Some(token) => Some(number(token).and_then(in_range).ok_or_else(|| invalid("\"ts\" is no time in ms"))?),
    };
    let key = match key {
        None | Some(b"null") => None,
        Some(token) => Some(string(token).ok_or_else(|| invalid("\"key\" is no string"))?),
    };
    match InputTopic::from_name(&topic) {
        Some(topic) => Ok(Envelope { topic, value, ts_ms, key }),
        None => Err(refused(DeadLetterReason::UnknownTopic, format!("\"{topic}\" is no input topic"))),
    }
}

/// The time a message says it was recorded at: `@timestamp`, else `timestamp` (ISO 8601, or seconds since 1970).
pub fn value_time(value: &[u8]) -> Option<TimeMs> {
    let read = |token| match string(token) {
        Some(text) => time::parse(&text).or_else(|| time::from_epoch(text.trim().parse().ok()?)),
        None => time::from_epoch(number(token)?),
    };
    let (mut at, mut plain) = (None, None);
    // A message that is cut short further on still says its time first.
    let _ = members(value, |name, token| {
        match name {
            b"@timestamp" => at = read(token),
            b"timestamp" => plain = read(token),
            _ => {}
        }
        at.is_none() // mostly the first member: the rest need not be looked at
    });
    at.or(plain)
}

fn in_range(ms: f64) -> Option<TimeMs> {
    (time::MIN_TIME_MS as f64..=time::MAX_TIME_MS as f64).contains(&ms).then_some(ms as TimeMs)
}

fn number(token: &[u8]) -> Option<f64> {
    // Rust also reads "inf" and "nan"; JSON has neither.
    let first = *token.first()?;
    if first != b'-' && !first.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(token).ok()?.parse().ok().filter(|n: &f64| n.is_finite())
}

/// The content of a string token, unescaped.
fn string(token: &[u8]) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice(token).ok().map(Cow::Owned)
}

/// Calls `f(name, token)` for each member of the object that `json` is, until it returns false; names are raw,
/// without quotes.
///
/// Not a validator: tokens are found by quotes and brackets only. `None` if this is no object, does not end,
/// or is followed by anything but white space.
fn members<'a>(json: &'a [u8], mut f: impl FnMut(&'a [u8], &'a [u8]) -> bool) -> Option<()> {
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_space(json, at + 1);
    if json.get(at) != Some(&b'}') {
        loop {
            let name_end = token_end(json, at)?;
            let name = json[at..name_end].strip_prefix(b"\"")?.strip_suffix(b"\"")?;
            at = skip_space(json, name_end);
            if json.get(at) != Some(&b':') {
                return None;
            }
            at = skip_space(json, at + 1);
            let value_end = token_end(json, at)?;
            if !f(name, &json[at..value_end]) {
                return Some(());
            }
            at = skip_space(json, value_end);
            match json.get(at)? {
                b',' => at = skip_space(json, at + 1),
                b'}' => break,
                _ => return None,
            }
        }
    }
    (skip_space(json, at + 1) == json.len()).then_some(())
}

fn skip_space(json: &[u8], at: usize) -> usize {
    at + json[at..].iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// End of the value that starts at `at`: a string, a bracketed value of any depth, or a bare word.
fn token_end(json: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match *json.get(at)? {
            b'"' => at = string_end(json, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            _ if depth > 0 => at += 1,
            _ => {
                let word = json[at..].iter().take_while(|b| !b.is_ascii_whitespace() && !b",}]:\"".contains(b)).count();
                return (word > 0).then_some(at + word);
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// End of the string that starts at `at`, past its closing quote.
fn string_end(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += memchr2(b'"', b'\\', json.get(at..)?)?;
        if json[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<Envelope<'_>, DeadLetterReason> {
        let line = Line { file: 0, line_no: 0, bytes: line.as_bytes(), cut: false };
        Framing::Envelope.parse(&line).map_err(|refused| refused.reason)
    }

    #[test]
    fn envelopes_borrow_the_value_verbatim() {
        let got = parse(r#" { "value" : {"a": "}\"]", "b":[1,{}]} ,"topic":"sysmon-logs" } "#).unwrap();
        assert_eq!(got.value, br#"{"a": "}\"]", "b":[1,{}]}"#);
        assert_eq!((got.topic, got.ts_ms, got.key), (InputTopic::Raw(RawTopic::Sysmon), None, None));
        let got =
            parse(r#"{"topic":"sysmon-logs","value":null,"ts":1773860833512,"key":"a\u003ab","more":[1]}"#).unwrap();
        assert_eq!((got.value, got.ts_ms, got.key.as_deref()), (&b"null"[..], Some(1_773_860_833_512), Some("a:b")));
        let deep = format!(r#"{{"topic":"sysmon-logs","value":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(parse(&deep).unwrap().value.len(), 200_000);
    }

    #[test]
    fn what_is_no_envelope_is_refused_with_the_reason() {
        use DeadLetterReason::{Empty, InvalidEnvelope, UnknownTopic};
        for (line, want) in [
            ("", Empty),
            ("  \t", Empty),
            ("hello", InvalidEnvelope),
            ("[]", InvalidEnvelope),
            ("{}", InvalidEnvelope),
            (r#"{"topic":"sysmon-logs"}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{"a":1}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{"a":"1}}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{}} {}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},"ts":"now"}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},"ts":-1}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},"ts":1e300}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},"ts":NaN}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-logs","value":{},"key":7}"#, InvalidEnvelope),
            (r#"{"topic":7,"value":{}}"#, InvalidEnvelope),
            (r#"{"topic":"sysmon-log","value":{}}"#, UnknownTopic),
            (r#"{"topic":"logster-alerts","value":{}}"#, UnknownTopic),
            ("{\"topic\":\"sysmon-logs\",\"value\":\"\\", InvalidEnvelope),
        ] {
            assert_eq!(parse(line), Err(want), "{line}");
        }
    }

    #[test]
    fn arrival_is_ts_then_the_values_own_time() {
        let arrival = |rest: &str| parse(&format!(r#"{{"topic":"sysmon-logs",{rest}}}"#)).unwrap().arrival_ms();
        let at = r#""@timestamp":"2026-03-18T19:07:13.512Z""#;
        assert_eq!(arrival(&format!(r#""ts":5,"value":{{{at}}}"#)), Some(5));
        assert_eq!(arrival(&format!(r#""value":{{"timestamp":9,{at}}}"#)), Some(1_773_860_833_512));
        assert_eq!(arrival(r#""value":{"@timestamp":"-","timestamp":1773953890.204}"#), Some(1_773_953_890_204));
        assert_eq!(arrival(r#""value":{"timestamp":"1773953890.204"}"#), Some(1_773_953_890_204));
        assert_eq!(arrival(r#""value":{"a":{"timestamp":1}}"#), None);
        assert_eq!(value_time(br#"{"timestamp":12,"a":"#), Some(12_000));
        assert_eq!(value_time(b"no object"), None);
    }

    #[test]
    fn files_directories_and_compression() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        write("b.ndjson", b"\xef\xbb\xbfb0\r\n\nb2");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"c0\n").unwrap();
        write("c.jsonl.gz", &gz.finish().unwrap());
        let mut zstd = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        zstd.window_log(27).unwrap();
        zstd.long_distance_matching(true).unwrap();
        zstd.write_all(b"a0\na1\n").unwrap();
        let packed = zstd.finish().unwrap();
        write("a/one.ndjson.zst", &packed);
        write("a/zero.ndjson", b"");
        write("labels.json", b"[]");
        write(".hidden.ndjson", b"x");

        let read = |path: &Path| -> Result<Vec<(String, u64, String)>, CaptureError> {
            let mut reader = CaptureReader::open(path)?;
            let names: Vec<String> =
                reader.files().iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
            let mut lines = Vec::new();
            while let Some(line) = reader.next_line()? {
                lines.push((names[line.file].clone(), line.line_no, String::from_utf8_lossy(line.bytes).into_owned()));
            }
            Ok(lines)
        };
        let line = |file: &str, no, text: &str| (file.to_owned(), no, text.to_owned());
        assert_eq!(
            read(dir.path()).unwrap(),
            [
                line("one.ndjson.zst", 0, "a0"),
                line("one.ndjson.zst", 1, "a1"),
                line("b.ndjson", 0, "b0"),
                line("b.ndjson", 1, ""),
                line("b.ndjson", 2, "b2"),
                line("c.jsonl.gz", 0, "c0"),
            ]
        );
        assert_eq!(read(&dir.path().join("labels.json")).unwrap(), [line("labels.json", 0, "[]")]);
        write("a/cut.ndjson.zst", &packed[..packed.len() - 4]);
        assert!(matches!(read(&dir.path().join("a/cut.ndjson.zst")), Err(CaptureError::Read { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(CaptureError::Open { .. })));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(matches!(read(&dir.path().join("empty")), Err(CaptureError::Nothing { .. })));
    }

    #[test]
    fn long_lines_are_cut_and_the_next_one_is_whole() {
        let mut from: &[u8] = b"abcdefgh\nij\n";
        let mut line = Vec::new();
        assert_eq!(read_line(&mut from, &mut line, 5).unwrap(), Some(true));
        assert_eq!(line, b"abcde");
        assert_eq!(read_line(&mut from, &mut line, 5).unwrap(), Some(false));
        assert_eq!(line, b"ij");
        assert_eq!(read_line(&mut from, &mut line, 5).unwrap(), None);
        let cut = Line { file: 0, line_no: 0, bytes: b"abcde", cut: true };
        assert_eq!(Framing::Bare(RawTopic::Auditd).parse(&cut).unwrap_err().reason, DeadLetterReason::TooLarge);
    }

    /// Any JSON value, printed with or without white space.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
            r#"[\{\}\[\]",:\\ ]{0,6}"#.prop_map(Into::into),
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        });
        (value, any::<bool>()).prop_map(|(v, pretty)| if pretty { format!("{v:#}") } else { v.to_string() })
    }

    proptest! {
        #[test]
        fn agrees_with_a_json_parser(value in json(), key in any::<Option<String>>(), ts in 0..time::MAX_TIME_MS) {
            let key_json = serde_json::to_string(&key).unwrap();
            let line = format!(r#"{{"key":{key_json},"value":{value},"topic":"sysmon-logs","ts":{ts}}}"#);
            let got = parse(&line).unwrap();
            prop_assert_eq!(got.value, value.as_bytes());
            prop_assert_eq!(got.key.as_deref(), key.as_deref());
            prop_assert_eq!(got.ts_ms, Some(ts));
            // Cut anywhere, it is no envelope.
            for end in 0..line.len() {
                if line.is_char_boundary(end) {
                    prop_assert!(parse(&line[..end]).is_err(), "{}", &line[..end]);
                }
            }
        }

        #[test]
        fn any_bytes_give_an_answer(
            junk in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\ "#.to_vec())], 0..60)
        ) {
            let mut line = br#"{"topic":"sysmon-logs","value":"#.to_vec();
            line.extend(&junk);
            for bytes in [&line[..], &junk] {
                let _ = Framing::Envelope.parse(&Line { file: 0, line_no: 0, bytes, cut: false });
                let _ = value_time(bytes);
            }
        }
    }
}
