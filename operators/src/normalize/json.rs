//! Scans JSON in one pass: checks the grammar, hands out members, skips the rest.
//!
//! - Input: text that is already known to be UTF-8.
//! - Output: [`Value`]s, which are byte ranges of the text; nothing is copied or decoded on the way.
//! - State: a position and a depth. Containers are skipped with a bit per level instead of the call stack, so
//!   nesting cannot exhaust it.
//! - Failure: [`Error`] with the byte where the grammar breaks.
//!
//! A library would parse the same bytes twice: once to find `event_data`, once more to take it apart.

use std::borrow::Cow;

/// Nesting from here on is refused; readers of the output that stop at 128 levels (serde_json) can read what passes.
pub const MAX_DEPTH: u32 = 128;

/// What a [`Value`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// The member is missing.
    #[default]
    Absent,
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number that an `f64` can hold.
    Number,
    /// A string; the range lies inside its quotes.
    String,
    /// An object, braces included.
    Object,
    /// An array, brackets included.
    Array,
}

/// A value by its place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// What it is.
    pub kind: Type,
    /// It is a string with a backslash in it.
    pub escaped: bool,
    /// First byte.
    pub start: u32,
    /// Byte after the last.
    pub end: u32,
}

impl Value {
    /// The value as it stands in `text`; a string without its quotes, still escaped.
    pub fn raw<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..self.end as usize]
    }

    /// The text of a string, or the digits of a number.
    pub fn text<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        match self.kind {
            Type::String if self.escaped => Some(Cow::Owned(unescape(self.raw(text)))),
            Type::String | Type::Number => Some(Cow::Borrowed(self.raw(text))),
            _ => None,
        }
    }
}

/// Why a text is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nested [`MAX_DEPTH`] levels deep.
    TooDeep(usize),
    /// Not JSON: what is wrong, and at which byte.
    Invalid(&'static str, usize),
}

type Result<T> = std::result::Result<T, Error>;

/// Reads a text from front to back.
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    /// An escape so far was half of a surrogate pair (Windows file names may hold one).
    pub lone_surrogate: bool,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `text`, which is shorter than 4 GiB.
    pub fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, depth: 0, lone_surrogate: false }
    }

    /// The text under the scanner.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The first byte of the next value or mark.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&b) = self.bytes.get(self.at) {
            if !matches!(b, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(b);
            }
            self.at += 1;
        }
        None
    }

    fn invalid<T>(&self, what: &'static str) -> Result<T> {
        Err(match self.bytes.get(self.at) {
            Some(_) => Error::Invalid(what, self.at),
            None => Error::Invalid("the text ends too early", self.at),
        })
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &'static str) -> Result<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.invalid(what)
    }

    /// Reads an object and calls `member` for each key; it must consume the value and nothing more.
    #[inline]
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Value) -> Result<()>) -> Result<Value> {
        self.expect(b'{', "an object should begin here")?;
        let start = self.at - 1;
        self.depth += 1;
        if self.depth >= MAX_DEPTH {
            return Err(Error::TooDeep(start));
        }
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                let key = self.key()?;
                member(self, key)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => {
                        self.at += 1;
                        break;
                    }
                    _ => return self.invalid("expected `,` or `}`"),
                }
            }
        }
        self.depth -= 1;
        Ok(self.span(Type::Object, start))
    }

    #[inline]
    fn span(&self, kind: Type, start: usize) -> Value {
        Value { kind, escaped: false, start: start as u32, end: self.at as u32 }
    }

    #[inline]
    fn key(&mut self) -> Result<Value> {
        if self.peek() != Some(b'"') {
            return self.invalid("expected a key in quotes");
        }
        let key = self.string()?;
        self.expect(b':', "expected `:`")?;
        Ok(key)
    }

    /// Reads one value of any type.
    #[inline]
    pub fn value(&mut self) -> Result<Value> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') => self.container(),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Value> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Type::Bool),
            Some(b'f') => self.literal("false", Type::Bool),
            Some(b'n') => self.literal("null", Type::Null),
            _ => self.invalid("expected a value"),
        }
    }

    fn literal(&mut self, word: &'static str, kind: Type) -> Result<Value> {
        let start = self.at;
        if !self.bytes[start..].starts_with(word.as_bytes()) {
            return self.invalid("expected `true`, `false` or `null`");
        }
        self.at += word.len();
        Ok(self.span(kind, start))
    }

    fn digits(&mut self) -> Result<()> {
        let start = self.at;
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.invalid("expected a digit") } else { Ok(()) }
    }

    fn number(&mut self) -> Result<Value> {
        let start = self.at;
        if self.bytes[start] == b'-' {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut exponent = false;
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            exponent = true;
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // Copied verbatim into the output, a number beyond f64 would make that unreadable for strict readers.
        let far = exponent || self.at - start > 300;
        if far && !self.text[start..self.at].parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(Error::Invalid("the number is out of range", start));
        }
        Ok(self.span(Type::Number, start))
    }

    /// Reads a string; the scanner stands on its opening quote.
    #[inline]
    fn string(&mut self) -> Result<Value> {
        let start = self.at + 1;
        let mut escaped = false;
        self.at = start;
        loop {
            self.at = plain_until(self.bytes, self.at);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    let end = self.at as u32 - 1;
                    return Ok(Value { kind: Type::String, escaped, start: start as u32, end });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return self.invalid("control character in a string"),
            }
        }
    }

    #[inline]
    fn escape(&mut self) -> Result<()> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let Some(unit) = hex4(self.bytes, self.at + 2) else {
                    return self.invalid("expected four hexadecimal digits after `\\u`");
                };
                let (_, len) = join_surrogates(self.bytes, self.at, unit);
                self.lone_surrogate |= len == 6 && (0xD800..0xE000).contains(&unit);
                self.at += len;
            }
            _ => {
                self.at = (self.at + 1).min(self.bytes.len());
                return self.invalid("unknown escape");
            }
        }
        Ok(())
    }

    /// Skips an object or array without recursion.
    fn container(&mut self) -> Result<Value> {
        let start = self.at;
        let (mut objects, mut depth) = (0u128, 0u32);
        'value: loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(open @ (b'{' | b'[')) => {
                    depth += 1;
                    if self.depth + depth >= MAX_DEPTH {
                        return Err(Error::TooDeep(self.at));
                    }
                    self.at += 1;
                    objects = objects << 1 | u128::from(open == b'{');
                    // `[` + 2 is `]`, `{` + 2 is `}`.
                    if self.peek() != Some(open + 2) {
                        if open == b'{' {
                            self.key()?;
                        }
                        continue 'value;
                    }
                    self.at += 1;
                    objects >>= 1;
                    depth -= 1;
                }
                _ => {
                    self.scalar()?;
                }
            }
            while depth > 0 {
                let in_object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if in_object {
                            self.key()?;
                        }
                        continue 'value;
                    }
                    Some(b'}') if in_object => {}
                    Some(b']') if !in_object => {}
                    _ => return self.invalid(if in_object { "expected `,` or `}`" } else { "expected `,` or `]`" }),
                }
                self.at += 1;
                objects >>= 1;
                depth -= 1;
            }
            let kind = if self.bytes[start] == b'{' { Type::Object } else { Type::Array };
            return Ok(self.span(kind, start));
        }
    }

    /// Checks that nothing but white space is left.
    pub fn finish(&mut self) -> Result<()> {
        if self.peek().is_some() { self.invalid("text after the end of the value") } else { Ok(()) }
    }
}

/// The first byte from `at` on that a string cannot simply contain: a quote, a backslash or a control character.
#[inline]
fn plain_until(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let x = u64::from_le_bytes(*chunk);
        // The classic zero-byte test; a false mark can only stand above the first true one.
        let zero = |y: u64| y.wrapping_sub(ONES) & !y;
        let control = x.wrapping_sub(ONES * 0x20) & !x;
        let hit = (zero(x ^ (ONES * u64::from(b'"'))) | zero(x ^ (ONES * u64::from(b'\\'))) | control) & HIGH;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|&b| b != b'"' && b != b'\\' && b >= 0x20) {
        at += 1;
    }
    at
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |n, &b| Some(n << 4 | char::from(b).to_digit(16)?))
}

/// The character that begins with the escape `unit` at `at`, and the bytes it takes: 12 for a pair, else 6.
fn join_surrogates(bytes: &[u8], at: usize, unit: u32) -> (char, usize) {
    if (0xD800..0xDC00).contains(&unit)
        && bytes.get(at + 6..at + 8) == Some(b"\\u")
        && let Some(low @ 0xDC00..0xE000) = hex4(bytes, at + 8)
    {
        let joined = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
        return (char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

/// Decodes a string that the scanner has accepted; half a surrogate pair becomes U+FFFD.
pub fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    unescape_into(raw, usize::MAX, &mut out);
    out
}

/// As [`unescape`], but appends to `out` and may stop once `out` holds `limit` bytes.
pub fn unescape_into(raw: &str, limit: usize, out: &mut String) {
    let bytes = raw.as_bytes();
    let mut at = 0;
    while out.len() < limit {
        let plain = memchr::memchr(b'\\', &bytes[at..]).map_or(bytes.len(), |n| at + n);
        out.push_str(&raw[at..plain]);
        at = plain;
        let Some(&code) = bytes.get(at + 1) else { return };
        let (c, len) = match code {
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => join_surrogates(bytes, at, hex4(bytes, at + 2).unwrap_or(0xFFFD)),
            other => (char::from(other), 2),
        };
        out.push(c);
        at += len;
    }
}

/// Appends `text` with quotes and escapes.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut copied = 0;
    let bytes = text.as_bytes();
    loop {
        let at = plain_until(bytes, copied);
        out.extend_from_slice(&bytes[copied..at]);
        let Some(&b) = bytes.get(at) else { break };
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[(b >> 4) as usize], HEX[(b & 15) as usize]]);
            }
        }
        copied = at + 1;
    }
    out.push(b'"');
}

/// Appends scanned JSON as it stands, on one line; if `lone_surrogate`, halves of pairs become U+FFFD.
pub fn push_raw(out: &mut Vec<u8>, raw: &str, lone_surrogate: bool) {
    let start = out.len();
    out.extend_from_slice(raw.as_bytes());
    let copy = &mut out[start..];
    // Outside strings only: inside them the scanner has refused control characters.
    while let Some(at) = memchr::memchr2(b'\n', b'\r', copy) {
        copy[at] = b' ';
    }
    if lone_surrogate {
        let mut at = 0;
        while let Some(next) = memchr::memchr(b'\\', &copy[at..]) {
            at += next;
            let unit = if copy.get(at + 1) == Some(&b'u') { hex4(copy, at + 2) } else { None };
            at += match unit {
                None => 2,
                Some(unit) => {
                    let (c, len) = join_surrogates(copy, at, unit);
                    if c == char::REPLACEMENT_CHARACTER {
                        copy[at + 2..at + 6].copy_from_slice(b"fffd");
                    }
                    len
                }
            };
        }
    }
}

/// Appends a whole number.
pub fn push_int(out: &mut Vec<u8>, n: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = n.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if n < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}
