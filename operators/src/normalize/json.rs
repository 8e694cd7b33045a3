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

use wide::u8x16;

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

const TYPES: [Type; 8] =
    [Type::Absent, Type::Null, Type::Bool, Type::Number, Type::String, Type::Object, Type::Array, Type::Absent];

/// Longest text that can be scanned, in bytes.
pub const MAX_BYTES: usize = (1 << OFFSET_BITS) - 1;
const OFFSET_BITS: u32 = 30;

/// A value by its place in the text.
///
/// One word (start, end, type, escaped), so that it travels in a register: as a struct of its parts it made the
/// scanner wait for memory, half of its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value(u64);

impl Value {
    #[inline]
    fn new(kind: Type, escaped: bool, start: usize, end: usize) -> Self {
        let offsets = start as u64 | (end as u64) << OFFSET_BITS;
        Self(offsets | (kind as u64) << (2 * OFFSET_BITS) | u64::from(escaped) << 63)
    }

    /// What it is.
    #[inline]
    pub fn kind(self) -> Type {
        TYPES[(self.0 >> (2 * OFFSET_BITS) & 7) as usize]
    }

    /// It is a string with a backslash in it.
    #[inline]
    pub fn escaped(self) -> bool {
        self.0 >> 63 != 0
    }

    #[inline]
    fn start(self) -> usize {
        self.0 as usize & MAX_BYTES
    }

    #[inline]
    fn end(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize & MAX_BYTES
    }

    /// Bytes of the text that it takes.
    #[inline]
    pub fn bytes(self) -> usize {
        self.end() - self.start()
    }

    /// The value as it stands in `text`; a string without its quotes, still escaped.
    #[inline]
    pub fn raw(self, text: &str) -> &str {
        &text[self.start()..self.end()]
    }

    /// Decodes a string, with `out` for room, whose content is lost; half a surrogate pair becomes U+FFFD.
    pub fn unescape<'a>(self, text: &str, out: &'a mut Vec<u8>) -> &'a str {
        let (bytes, end) = (text.as_bytes(), self.end());
        // Decoding never lengthens; whole chunks are stored, so there must be room for one more.
        let room = self.bytes() + 16;
        if out.len() < room {
            out.resize(room, 0);
        }
        let (mut at, mut len) = (self.start(), 0);
        while at < end {
            // Chunks may reach beyond the string: its closing quote is a hit. Only the end of a message has none.
            let chunk = bytes[at..].first_chunk().copied().unwrap_or_else(|| {
                let mut padded = [b'"'; 16];
                padded[..bytes.len() - at].copy_from_slice(&bytes[at..]);
                padded
            });
            let (word, mut hits, mut from) = (u128::from_le_bytes(chunk), special(&chunk), 0);
            loop {
                let n = hits.trailing_zeros().min(16);
                out[len..len + 16].copy_from_slice(&(word >> (8 * from)).to_le_bytes());
                len += (n - from) as usize;
                // Of what `special` finds, the scanner has let only backslashes pass.
                if n == 16 || at + n as usize >= end {
                    at += n as usize;
                    break;
                }
                match chunk.get(n as usize + 1) {
                    Some(&same @ (b'\\' | b'"')) if n < 14 => {
                        out[len] = same;
                        len += 1;
                        hits &= !(3 << n);
                        from = n + 2;
                    }
                    _ => {
                        at += n as usize;
                        let (c, taken) = escaped_char(bytes, at);
                        len += c.encode_utf8(&mut out[len..]).len();
                        at += taken;
                        break;
                    }
                }
            }
        }
        str::from_utf8(&out[..len]).expect("UTF-8 with some escapes replaced by characters")
    }

    /// The text of a key or a string.
    #[inline(always)]
    pub fn name<'a>(self, text: &'a str) -> Cow<'a, str> {
        if self.escaped() { Cow::Owned(self.unescaped(text)) } else { Cow::Borrowed(self.raw(text)) }
    }

    #[cold]
    fn unescaped(self, text: &str) -> String {
        self.unescape(text, &mut Vec::new()).to_owned()
    }

    /// The text of a string, or the digits of a number.
    #[inline]
    pub fn text<'a>(self, text: &'a str) -> Option<Cow<'a, str>> {
        match self.kind() {
            // Only strings have escapes.
            Type::String | Type::Number => Some(self.name(text)),
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

/// The scanner stopped: [`Scanner::error`] has the rest. Small, so that results travel in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// What the scanner's steps return.
pub type Result<T> = std::result::Result<T, Stopped>;

/// Reads a text from front to back.
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    error: Error,
    /// An escape so far was half of a surrogate pair (Windows file names may hold one).
    pub lone_surrogate: bool,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `text`, which has at most [`MAX_BYTES`].
    pub fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, depth: 0, error: Error::Invalid("", 0), lone_surrogate: false }
    }

    /// The text under the scanner.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Why the scanner stopped, if it did.
    pub fn error(&self) -> Error {
        self.error
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

    #[cold]
    fn invalid<T>(&mut self, what: &'static str, at: usize) -> Result<T> {
        let cut = at >= self.bytes.len();
        self.stop(Error::Invalid(if cut { "the text ends too early" } else { what }, at))
    }

    #[cold]
    fn stop<T>(&mut self, error: Error) -> Result<T> {
        self.error = error;
        Err(Stopped)
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &'static str) -> Result<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.invalid(what, self.at)
    }

    /// Reads an object and calls `member` for each key; it must consume the value and nothing more.
    #[inline]
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Value) -> Result<()>) -> Result<Value> {
        self.expect(b'{', "an object should begin here")?;
        let start = self.at - 1;
        self.depth += 1;
        if self.depth >= MAX_DEPTH {
            return self.stop(Error::TooDeep(start));
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
                    _ => return self.invalid("expected `,` or `}`", self.at),
                }
            }
        }
        self.depth -= 1;
        Ok(self.span(Type::Object, start))
    }

    #[inline]
    fn span(&self, kind: Type, start: usize) -> Value {
        Value::new(kind, false, start, self.at)
    }

    #[inline]
    fn key(&mut self) -> Result<Value> {
        if self.peek() != Some(b'"') {
            return self.invalid("expected a key in quotes", self.at);
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
            _ => self.invalid("expected a value", self.at),
        }
    }

    fn literal(&mut self, word: &'static str, kind: Type) -> Result<Value> {
        let start = self.at;
        if !self.bytes[start..].starts_with(word.as_bytes()) {
            return self.invalid("expected `true`, `false` or `null`", self.at);
        }
        self.at += word.len();
        Ok(self.span(kind, start))
    }

    fn digits(&mut self) -> Result<()> {
        let start = self.at;
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.invalid("expected a digit", self.at) } else { Ok(()) }
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
            return self.stop(Error::Invalid("the number is out of range", start));
        }
        Ok(self.span(Type::Number, start))
    }

    /// Reads a string; the scanner stands on its opening quote.
    #[inline]
    fn string(&mut self) -> Result<Value> {
        let start = self.at + 1;
        let mut escaped = false;
        let mut at = start;
        let end = 'chunks: loop {
            let Some(chunk) = self.bytes.get(at..).and_then(|rest| rest.first_chunk()) else {
                // The last few bytes of the message.
                at = plain_until(self.bytes, at);
                match self.bytes.get(at) {
                    Some(b'"') => break at,
                    Some(b'\\') => {
                        escaped = true;
                        at = self.escape(at)?;
                        continue;
                    }
                    _ => return self.invalid("control character in a string", at),
                }
            };
            let mut hits = special(chunk);
            while hits != 0 {
                let n = hits.trailing_zeros() as usize;
                match chunk[n] {
                    b'"' => break 'chunks at + n,
                    b'\\' => {
                        escaped = true;
                        // A path is full of these: no second look at the chunk.
                        if let Some(b'\\' | b'"') = chunk.get(n + 1) {
                            hits &= !(3 << n);
                            continue;
                        }
                        at = self.escape(at + n)?;
                        continue 'chunks;
                    }
                    _ => return self.invalid("control character in a string", at + n),
                }
            }
            at += 16;
        };
        self.at = end + 1;
        Ok(Value::new(Type::String, escaped, start, end))
    }

    /// Checks the escape at `at`; returns where the string goes on.
    fn escape(&mut self, at: usize) -> Result<usize> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => {
                let Some(unit) = hex4(self.bytes, at + 2) else {
                    return self.invalid("expected four hexadecimal digits after `\\u`", at);
                };
                let (_, len) = join_surrogates(self.bytes, at, unit);
                self.lone_surrogate |= len == 6 && (0xD800..0xE000).contains(&unit);
                Ok(at + len)
            }
            _ => self.invalid("unknown escape", at + 1),
        }
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
                        return self.stop(Error::TooDeep(self.at));
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
                    _ if in_object => return self.invalid("expected `,` or `}`", self.at),
                    _ => return self.invalid("expected `,` or `]`", self.at),
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
        if self.peek().is_some() { self.invalid("text after the end of the value", self.at) } else { Ok(()) }
    }
}

/// A bit for each byte that a string cannot simply contain: quotes, backslashes, control characters.
#[inline]
fn special(chunk: &[u8; 16]) -> u32 {
    let x = u8x16::new(*chunk);
    let control = x.min(u8x16::splat(0x1F)).simd_eq(x);
    (control | x.simd_eq(u8x16::splat(b'"')) | x.simd_eq(u8x16::splat(b'\\'))).to_bitmask()
}

/// The first special byte from `at` on.
#[inline]
fn plain_until(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let hits = special(chunk);
        if hits != 0 {
            return at + hits.trailing_zeros() as usize;
        }
        at += 16;
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

/// What the escape at `at` stands for, and the bytes it takes.
fn escaped_char(bytes: &[u8], at: usize) -> (char, usize) {
    match bytes.get(at + 1) {
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(b'u') => join_surrogates(bytes, at, hex4(bytes, at + 2).unwrap_or(0xFFFD)),
        Some(&other) => (char::from(other), 2),
        None => (char::REPLACEMENT_CHARACTER, 2),
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
