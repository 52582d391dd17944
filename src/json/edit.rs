//! JSON texts made out of others: every token that is not meant stays as it was written.

use std::borrow::Cow;

use memchr::memchr3;

use super::{Doc, Kind, WHITE, is_white, string_end, validate};

/// The text of an object with one member set to a value (as JSON text): in its place where it is there, else at the end. All
/// other bytes stay. `None` where the text is no object.
pub fn with_member(text: &str, key: &str, value: &str) -> Option<String> {
    let text = validate(text.as_bytes()).ok()?.trim_matches(WHITE);
    let doc = Doc::new(text);
    if doc.root().kind() != Kind::Object {
        return None;
    }
    if let Some(member) = doc.get(doc.root(), key) {
        let place = doc.place_of(member);
        return Some(format!("{}{value}{}", &text[..place.start], &text[place.end..]));
    }
    let before = text.strip_suffix('}')?;
    let comma = if doc.root().entries().next().is_some() { "," } else { "" };
    let key = serde_json::Value::from(key);
    Some(format!("{before}{comma}{key}:{value}}}"))
}

/// The text on one line: as it is where it is one, else without the white space between tokens. A tab is shown by its number where text
/// is made plain, and between tokens that would be no JSON any more.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    // None of them stands within a token: in a string they are escaped.
    if memchr3(b'\n', b'\r', b'\t', text.as_bytes()).is_some() {
        Cow::Owned(compact(text))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text without the white space between tokens; every token stays as written.
pub fn compact(text: &str) -> String {
    let mut compacted = String::with_capacity(text.len());
    push_compact(&mut compacted, text);
    compacted
}

/// The same, behind what is in `out` already.
pub fn push_compact(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    // What is copied at once: several tokens, up to the next white space.
    let mut start = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'"' {
            at = string_end(bytes, at);
        } else if is_white(byte) {
            out.push_str(text.get(start..at).unwrap_or_default());
            at += 1;
            start = at;
        } else {
            at += 1;
        }
    }
    out.push_str(text.get(start..).unwrap_or_default());
}

/// Writes a text as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.push_str(&serde_json::Value::from(text).to_string());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}
