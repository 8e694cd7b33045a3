//! Finds the text in the bytes of a message: UTF-8 or UTF-16, with or without a byte order mark.
//!
//! Strict: bytes that are neither are a dead letter, since a guess would publish text that nobody wrote. (Half a
//! surrogate pair *inside JSON escapes* is another matter: Windows file names may hold one; see the `json` module.)

use std::borrow::Cow;

/// The text of `bytes` without its byte order mark, or what is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => utf8(rest),
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        // Without a mark, but no UTF-8 JSON begins like this.
        [b'{', 0, ..] => utf16(bytes, u16::from_le_bytes),
        [0, b'{', ..] => utf16(bytes, u16::from_be_bytes),
        _ => utf8(bytes),
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    // The basic flavour is the fast one, the other knows where it broke.
    match simdutf8::basic::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(_) => {
            let at = simdutf8::compat::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
            Err(format!("invalid UTF-8 after byte {at}"))
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'_, str>, String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("UTF-16 with an odd number of bytes".to_owned());
    }
    char::decode_utf16(pairs.iter().map(|&pair| unit(pair)))
        .collect::<Result<String, _>>()
        .map(Cow::Owned)
        .map_err(|e| format!("UTF-16 with half a surrogate pair (0x{:04x})", e.unpaired_surrogate()))
}
