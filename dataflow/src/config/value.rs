//! The types that settings have, each reading itself from TOML or from the text of a variable.
//!
//! A type that has been read holds a value that makes sense alone: what two settings say about each other
//! is checked in [`super::check`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use logster_schema::RawTopic;

/// A value as found, before it is known what it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// Text of an environment variable or of the command line: its type is what the setting wants.
    Text(String),
    /// A TOML string.
    Str(String),
    /// A TOML integer; those beyond `i64` are `Other`.
    Int(i64),
    /// A TOML float.
    Float(f64),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML array.
    List(Vec<Raw>),
    /// A TOML table.
    Table(BTreeMap<String, Raw>),
    /// A TOML date or an integer that is too large, as written.
    Other(String),
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Str(text) => write!(f, "{}", quoted(text)),
            Self::Int(n) => write!(f, "the integer {n}"),
            Self::Float(x) => write!(f, "the number {x}"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Why a value was refused: the end of the sentence "`section.key` ...", and what to write instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// "must be ..., found ...".
    pub what: String,
    /// What to write.
    pub remedy: Option<String>,
}

/// Something that a setting can be.
pub trait Value: Sized {
    /// Never printed, and refused where others can read it (a file that is passed around, a command line).
    const SECRET: bool = false;

    /// "a duration such as \"30s\"": completes "must be".
    fn kind() -> String;

    /// Reads one value. `None`: not of this type.
    fn read(raw: &Raw) -> Option<Self>;

    /// As it stands in a TOML file; `None` when unset.
    fn toml(&self) -> Option<String>;

    /// The value of a setting that has none.
    fn unset() -> Option<Self> {
        None
    }

    /// What to write instead of `raw`, where that can be guessed.
    fn hint(_raw: &Raw) -> Option<String> {
        None
    }

    /// Reads one value or says why not.
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        Self::read(raw)
            .ok_or_else(|| Refusal { what: format!("must be {}, found {raw}", Self::kind()), remedy: Self::hint(raw) })
    }
}

/// `text` as a TOML string.
pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The name of `names` that is nearest to `name`, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// A length of time in whole milliseconds, written `250ms`, `30s`, `3m`, `24h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(i64);

const UNITS: [(&str, i64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// A span of `ms` milliseconds. Negative becomes 0.
    pub const fn from_ms(ms: i64) -> Self {
        Self(if ms < 0 { 0 } else { ms })
    }

    /// Milliseconds.
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// For timers and time-outs.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days from two on: a day reads better as 24h beside 12h and 36h.
        let fits = |&&(name, unit): &&(&str, i64)| self.0 % unit == 0 && (name != "d" || self.0 >= 2 * unit);
        let (name, unit) = if self.0 == 0 { ("s", 1000) } else { *UNITS.iter().find(fits).expect("ms always fits") };
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl Value for Span {
    fn kind() -> String {
        "a duration such as \"30s\" (ms, s, m, h, d)".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let (Raw::Text(text) | Raw::Str(text)) = raw else { return None };
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
        number.parse::<i64>().ok()?.checked_mul(*ms).map(Self)
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
    fn hint(raw: &Raw) -> Option<String> {
        let number = match raw {
            Raw::Int(n) if *n >= 0 => n.to_string(),
            Raw::Str(text) | Raw::Text(text) if text.parse::<u32>().is_ok() => text.clone(),
            _ => return None,
        };
        Some(format!("give it a unit: \"{number}s\" or \"{number}ms\""))
    }
}

/// A number of bytes, written as an integer or `64KiB`, `1MiB`, `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BYTE_UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Value for Bytes {
    fn kind() -> String {
        "a number of bytes such as 65536 or \"64KiB\" (KiB, MiB, GiB)".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Int(n) => u64::try_from(*n).ok().map(Self),
            Raw::Text(text) | Raw::Str(text) => {
                let text = text.trim();
                let (number, unit) = BYTE_UNITS
                    .iter()
                    .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
                    .unwrap_or((text, 1));
                number.trim_end().parse::<u64>().ok()?.checked_mul(unit).map(Self)
            }
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        Some(if self.to_string().ends_with('B') { quoted(&self.to_string()) } else { self.to_string() })
    }
    fn hint(raw: &Raw) -> Option<String> {
        let (Raw::Text(text) | Raw::Str(text)) = raw else { return None };
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        nearest(unit, BYTE_UNITS.iter().map(|(name, _)| *name)).map(|name| format!("write it with the unit {name}"))
    }
}

/// A password. Prints as `<secret>`; [`Secret::expose`] is the one way to its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the client that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl Value for Secret {
    const SECRET: bool = true;
    fn kind() -> String {
        "a secret".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Text(text) if !text.is_empty() => Some(Self(text.clone())),
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        Some("<secret>".into())
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        Self::read(raw).ok_or_else(|| Refusal { what: "must be a secret, found something else".into(), remedy: None })
    }
}

impl<T: Value> Value for Option<T> {
    const SECRET: bool = T::SECRET;
    fn kind() -> String {
        T::kind()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            // `LOGSTER_INPUT_TOPIC=` takes back what the file says.
            Raw::Text(text) if text.is_empty() => Some(None),
            _ => T::read(raw).map(Some),
        }
    }
    fn toml(&self) -> Option<String> {
        self.as_ref().and_then(T::toml)
    }
    fn unset() -> Option<Self> {
        Some(None)
    }
    fn hint(raw: &Raw) -> Option<String> {
        T::hint(raw)
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Text(text) if text.is_empty() => Ok(None),
            _ => T::parse(raw).map(Some),
        }
    }
}

impl Value for bool {
    fn kind() -> String {
        "true or false".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Bool(b) => Some(*b),
            Raw::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn hint(raw: &Raw) -> Option<String> {
        match raw {
            Raw::Str(text) if text.parse::<bool>().is_ok() => Some(format!("write {text} without quotes")),
            _ => None,
        }
    }
}

macro_rules! integers {
    ($($ty:ty),+) => {$(
        impl Value for $ty {
            fn kind() -> String {
                "a whole number".into()
            }
            fn read(raw: &Raw) -> Option<Self> {
                match raw {
                    Raw::Int(n) => <$ty>::try_from(*n).ok(),
                    Raw::Text(text) => text.trim().parse().ok(),
                    _ => None,
                }
            }
            fn toml(&self) -> Option<String> {
                Some(self.to_string())
            }
            fn hint(raw: &Raw) -> Option<String> {
                match raw {
                    Raw::Str(text) if text.parse::<$ty>().is_ok() => Some(format!("write {text} without quotes")),
                    _ => None,
                }
            }
        }
    )+};
}
integers!(u16, u32, u64);

impl Value for f64 {
    fn kind() -> String {
        "a number".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let x = match raw {
            Raw::Float(x) => *x,
            Raw::Int(n) => *n as f64,
            Raw::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        x.is_finite().then_some(x)
    }
    fn toml(&self) -> Option<String> {
        Some(toml::Value::from(*self).to_string())
    }
}

impl Value for String {
    fn kind() -> String {
        "a string".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Text(text) | Raw::Str(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for PathBuf {
    fn kind() -> String {
        "a path".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        String::read(raw).map(Self::from)
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

impl Value for SocketAddr {
    fn kind() -> String {
        "an address and port such as \"127.0.0.1:9464\"".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        String::read(raw)?.parse().ok()
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
    fn hint(raw: &Raw) -> Option<String> {
        let (Raw::Text(text) | Raw::Str(text)) = raw else { return None };
        let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
        port.parse::<u16>().ok().map(|port| format!("write \"127.0.0.1:{port}\""))
    }
}

impl Value for Vec<String> {
    fn kind() -> String {
        "a list of strings".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::List(items) => items
                .iter()
                .map(|item| match item {
                    Raw::Str(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            Raw::Text(text) => {
                Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        let items: Vec<String> = self.iter().map(|item| quoted(item)).collect();
        Some(format!("[{}]", items.join(", ")))
    }
    fn hint(raw: &Raw) -> Option<String> {
        match raw {
            Raw::Str(text) => Some(format!("write [{}]", quoted(text))),
            _ => None,
        }
    }
}

/// Properties handed on to a client as they are, sorted by name.
pub type Properties = BTreeMap<String, String>;

impl Value for Properties {
    fn kind() -> String {
        "a table of strings, numbers and booleans".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Table(entries) => {
                let mut properties = Self::new();
                for (name, value) in entries {
                    let text = match value {
                        Raw::Str(text) => text.clone(),
                        Raw::Int(n) => n.to_string(),
                        Raw::Float(x) => x.to_string(),
                        Raw::Bool(b) => b.to_string(),
                        // `fetch.min.bytes = 1` without quotes is three tables deep.
                        Raw::Table(_) => {
                            let inner = Self::read(value)?;
                            properties.extend(inner.into_iter().map(|(rest, text)| (format!("{name}.{rest}"), text)));
                            continue;
                        }
                        _ => return None,
                    };
                    properties.insert(name.clone(), text);
                }
                Some(properties)
            }
            Raw::Text(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| part.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())))
                .collect(),
            _ => None,
        }
    }
    fn toml(&self) -> Option<String> {
        let items: Vec<String> =
            self.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
        Some(format!("{{{}}}", if items.is_empty() { String::new() } else { format!(" {} ", items.join(", ")) }))
    }
}

/// How fast recorded input is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as the machine allows.
    Max,
    /// That many times as fast as it was recorded.
    Times(f64),
}

impl Value for Speed {
    fn kind() -> String {
        "\"max\", \"1x\" or another multiple such as \"60x\"".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let text = String::read(raw)?;
        if text == "max" {
            return Some(Self::Max);
        }
        let times: f64 = text.strip_suffix('x')?.parse().ok()?;
        (times.is_finite() && times > 0.0).then_some(Self::Times(times))
    }
    fn toml(&self) -> Option<String> {
        Some(match self {
            Self::Max => quoted("max"),
            Self::Times(times) => quoted(&format!("{times}x")),
        })
    }
    fn hint(raw: &Raw) -> Option<String> {
        f64::read(raw).map(|times| format!("write \"{times}x\""))
    }
}

/// A filter of log lines: a level, or directives such as `info,rdkafka=warn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// For the subscriber.
    pub fn env_filter(&self) -> tracing_subscriber::EnvFilter {
        tracing_subscriber::EnvFilter::builder().parse(&self.0).expect("checked when it was read")
    }
}

impl Value for LogFilter {
    fn kind() -> String {
        "a level (error, warn, info, debug, trace, off) or directives such as \"info,rdkafka=warn\"".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let text = String::read(raw)?;
        // A bare word that is no level would be read as a module's name: `inof` would silence everything.
        let levels = ["error", "warn", "info", "debug", "trace", "off"];
        let bare_ok = |part: &str| part.contains(['=', '[']) || levels.contains(&part.to_ascii_lowercase().as_str());
        let valid = text.split(',').map(str::trim).all(bare_ok)
            && tracing_subscriber::EnvFilter::builder().parse(&text).is_ok();
        valid.then_some(Self(text))
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
    fn hint(raw: &Raw) -> Option<String> {
        let text = String::read(raw)?;
        nearest(&text, ["error", "warn", "info", "debug", "trace", "off"])
            .map(|name| format!("did you mean \"{name}\"?"))
    }
}

impl Value for RawTopic {
    fn kind() -> String {
        one_of(&Self::ALL.map(Self::name))
    }
    fn read(raw: &Raw) -> Option<Self> {
        Self::from_name(&String::read(raw)?)
    }
    fn toml(&self) -> Option<String> {
        Some(quoted(self.name()))
    }
    fn hint(raw: &Raw) -> Option<String> {
        did_you_mean(raw, &Self::ALL.map(Self::name))
    }
}

/// `"a", "b" or "c"`.
fn one_of(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

fn did_you_mean(raw: &Raw, names: &[&str]) -> Option<String> {
    let text = String::read(raw)?;
    nearest(&text, names.iter().copied()).map(|name| format!("did you mean {}?", quoted(name)))
}

/// Declares a setting that is one of a few names.
macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $ty:ident { $($(#[doc = $vdoc:literal])+ $variant:ident = $name:literal,)+ })+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $ty { $($(#[doc = $vdoc])+ $variant,)+ }

        impl $ty {
            /// As it is written in the configuration.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl Value for $ty {
            fn kind() -> String {
                one_of(&[$($name),+])
            }
            fn read(raw: &Raw) -> Option<Self> {
                match String::read(raw)?.as_str() { $($name => Some(Self::$variant),)+ _ => None }
            }
            fn toml(&self) -> Option<String> {
                Some(quoted(self.name()))
            }
            fn hint(raw: &Raw) -> Option<String> {
                did_you_mean(raw, &[$($name),+])
            }
        }
    )+};
}

choices! {
    /// Where raw records come from.
    InputSource {
        /// Files, a directory or standard input.
        File = "file",
        /// The five raw topics of a broker.
        Kafka = "kafka",
    }
    /// Whose clock stamps raw records.
    Arrival {
        /// The broker's, when it appends (`LogAppendTime`).
        Append = "append",
        /// A trusted producer's, taken from a capture (`CreateTime`).
        Create = "create",
    }
    /// What scores.
    Device {
        /// The processor.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
    }
    /// From which level on a rule raises alerts.
    AlertingLevel {
        /// Medium and above.
        Medium = "medium",
        /// High and above.
        High = "high",
        /// Critical alone.
        Critical = "critical",
    }
    /// What happens when the device cannot be had.
    Fallback {
        /// The run refuses to start.
        None = "none",
        /// The run scores on the processor, and says so.
        Cpu = "cpu",
    }
    /// How a broker is spoken to.
    Protocol {
        /// In the clear, to anyone.
        Plaintext = "plaintext",
        /// TLS.
        Ssl = "ssl",
        /// User and password, in the clear.
        SaslPlaintext = "sasl_plaintext",
        /// User and password within TLS.
        SaslSsl = "sasl_ssl",
    }
    /// How a user proves who they are.
    Mechanism {
        /// The password itself.
        Plain = "PLAIN",
        /// Salted challenge and response, SHA-256.
        ScramSha256 = "SCRAM-SHA-256",
        /// Salted challenge and response, SHA-512.
        ScramSha512 = "SCRAM-SHA-512",
    }
    /// Shape of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: Value>(s: &str) -> Option<T> {
        T::read(&Raw::Text(s.into()))
    }

    #[test]
    fn spans_read_and_print() {
        for (written, ms, printed) in [
            ("250ms", 250, "250ms"),
            ("30s", 30_000, "30s"),
            ("180s", 180_000, "3m"),
            ("1d", 86_400_000, "24h"),
            ("7d", 604_800_000, "7d"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text(written).unwrap();
            assert_eq!((span.ms(), span.to_string().as_str()), (ms, printed), "{written}");
        }
        for bad in ["", "30", "-30s", "3 minutes", "s", "1.5s", "9223372036854775807d", "30S"] {
            assert_eq!(text::<Span>(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_read_and_print() {
        for (written, bytes, printed) in [("65536", 65_536, "64KiB"), ("1088KiB", 1_114_112, "1088KiB"), ("7", 7, "7")]
        {
            let b: Bytes = text(written).unwrap();
            assert_eq!((b.0, b.to_string().as_str()), (bytes, printed));
        }
        for bad in ["", "1MB", "-1", "1.5MiB", "99999999999999999999"] {
            assert_eq!(text::<Bytes>(bad), None, "{bad}");
        }
    }

    #[test]
    fn small_types() {
        assert_eq!(text::<Speed>("2.5x"), Some(Speed::Times(2.5)));
        for bad in ["0x", "-1x", "infx", "NaNx", "fast"] {
            assert_eq!(text::<Speed>(bad), None, "{bad}");
        }
        assert_eq!(text::<f64>("NaN"), None);
        assert_eq!(text::<Vec<String>>("a, b,,c"), Some(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(text::<Properties>("a.b=1, c=d=e").unwrap()["c"], "d=e");
        assert!(text::<LogFilter>("info,rdkafka=warn").is_some());
        assert!(text::<LogFilter>("inof").is_none());
        assert_eq!(text::<Option<String>>(""), Some(None));
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "<secret>");
    }
}
