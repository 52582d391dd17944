//! JSON as text: a validating pass, then lazy, exact look-ups in the validated text.
//!
//! Nothing here recurses on input, converts a number to a float, or copies what it does not have to: a delivery is looked
//! at for a handful of fields, and the rest of it is skipped at the speed of `memchr`.

mod doc;
mod edit;
mod indent;
mod scan;
pub mod stream;
mod value;

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;
use serde_json::error::Category;
use serde_json::value::RawValue;

pub use doc::Doc;
pub use edit::{compact, on_one_line, push_compact, push_string, with_member};
pub use indent::indented;
pub use value::{Decimal, Value};

/// Checks that the bytes are UTF-8 and one valid JSON value (any nesting depth, without recursion), and hands back the text.
pub fn validate(bytes: &[u8]) -> Result<&str, InvalidJson> {
    match std::str::from_utf8(bytes) {
        Ok(text) if scan::is_valid(bytes) => Ok(text),
        _ => Err(InvalidJson::why(bytes)),
    }
}

/// The bytes are not one valid JSON value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not valid JSON: {0}")]
pub struct InvalidJson(pub String);

impl InvalidJson {
    /// What is wrong with these bytes, and where, in the words of `serde_json`.
    fn why(bytes: &[u8]) -> InvalidJson {
        let said = serde_json::from_slice::<&RawValue>(bytes).map_err(|error| error.to_string());
        InvalidJson(said.map_or_else(|why| why, |_| "it is not UTF-8".to_owned()))
    }
}

/// Where a text is not what it should be, and in what way. The words of `serde_json` quote what stands there, which may be a secret.
pub fn unfit(error: &serde_json::Error) -> String {
    let way = match error.classify() {
        Category::Io => "it can't be read",
        Category::Syntax => "it is no JSON",
        Category::Data => "it is other JSON than it should be",
        Category::Eof => "it ends too soon",
    };
    match error.line() {
        // It has no lines where it was a text before.
        0 => way.to_owned(),
        line => format!("{way}: line {line}, column {}", error.column()),
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// One value: a slice of a validated text.
///
/// On text that is not valid JSON look-ups answer nonsense, but never panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'a> {
    raw: &'a str,
}

impl<'a> Node<'a> {
    /// What a missing key reads as.
    pub const NULL: Node<'static> = Node { raw: "null" };

    /// The value of a whole text.
    pub fn new(text: &'a str) -> Node<'a> {
        Node {
            raw: text.trim_matches(WHITE),
        }
    }

    /// The value's text, exactly as written.
    pub fn raw(self) -> &'a str {
        self.raw
    }

    /// What it is, by its first character.
    pub fn kind(self) -> Kind {
        match self.raw.as_bytes().first() {
            Some(b'"') => Kind::String,
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// The keys (as written, with their quotes) and values of an object; nothing for anything else.
    pub fn entries(self) -> Entries<'a> {
        Entries(Items::of(self, Kind::Object))
    }

    /// The elements of an array; nothing for anything else.
    pub fn elements(self) -> Elements<'a> {
        Elements(Items::of(self, Kind::Array))
    }

    /// The value under a key; the last one where the key stands twice. `None` on anything but an object.
    pub fn get(self, key: &str) -> Option<Node<'a>> {
        self.entries()
            .filter(|(name, _)| name.is(key))
            .last()
            .map(|(_, value)| value)
    }

    /// The decoded string; `None` on anything else, and on a string with an unpaired surrogate.
    pub fn as_string(self) -> Option<Cow<'a, str>> {
        if self.kind() != Kind::String {
            return None;
        }
        let inner = self.raw.get(1..self.raw.len().saturating_sub(1))?;
        if !inner.contains('\\') {
            return Some(Cow::Borrowed(inner));
        }
        serde_json::from_str::<String>(self.raw).ok().map(Cow::Owned)
    }

    /// Whether it is a string with this text in it. A surrogate without its other half is a character like any other, equal to
    /// nothing that can be asked for.
    pub fn contains(self, part: &str) -> bool {
        match self.as_string() {
            Some(text) => text.contains(part),
            None if self.kind() == Kind::String => memchr::memmem::find(&self.generalized(), part.as_bytes()).is_some(),
            None => false,
        }
    }

    /// The decoded string in UTF-8, with unpaired surrogates as UTF-8 would write them if it could: no part of one looks like
    /// another character.
    fn generalized(self) -> Vec<u8> {
        let inner = self.raw.get(1..self.raw.len().saturating_sub(1)).unwrap_or_default();
        let mut decoded = Vec::with_capacity(inner.len());
        let mut rest = inner;
        while let Some(at) = rest.find('\\') {
            decoded.extend_from_slice(&rest.as_bytes()[..at]);
            // A character may take two escapes. What is left over is half of one.
            let len = |at: usize| {
                if rest.as_bytes().get(at + 1) == Some(&b'u') {
                    6
                } else {
                    2
                }
            };
            let one = len(at);
            let pair = rest[at..].get(..one + len(at + one).min(6)).unwrap_or(&rest[at..]);
            let unescape = |text: &str| serde_json::from_str::<String>(&format!("\"{text}\"")).ok();
            let single = rest.get(at..at + one).unwrap_or(&rest[at..]);
            if let Some(character) = unescape(single) {
                decoded.extend_from_slice(character.as_bytes());
                rest = &rest[at + single.len()..];
            } else if let Some(character) = unescape(pair).filter(|_| pair.len() == 12) {
                decoded.extend_from_slice(character.as_bytes());
                rest = &rest[at + pair.len()..];
            } else {
                let half = single.get(2..).and_then(|hex| u16::from_str_radix(hex, 16).ok());
                let half = half.unwrap_or(0xD800);
                decoded.extend([
                    0xE0 | (half >> 12) as u8,
                    0x80 | (half >> 6 & 0x3F) as u8,
                    0x80 | (half & 0x3F) as u8,
                ]);
                rest = &rest[at + single.len()..];
            }
        }
        decoded.extend_from_slice(rest.as_bytes());
        decoded
    }

    /// Whether it is this string.
    fn is(self, text: &str) -> bool {
        let inner = self
            .raw
            .as_bytes()
            .get(1..self.raw.len().saturating_sub(1))
            .unwrap_or_default();
        if inner == text.as_bytes() {
            // A text with a backslash in it would be written with two.
            return !text.contains('\\') && self.kind() == Kind::String;
        }
        // An escape is longer than what it stands for.
        inner.len() > text.len() && inner.contains(&b'\\') && self.as_string().is_some_and(|decoded| decoded == text)
    }
}

const WHITE: [char; 4] = [' ', '\n', '\r', '\t'];

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// Walks over the values between an outer pair of brackets.
#[derive(Debug, Clone)]
struct Items<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Items<'a> {
    fn of(node: Node<'a>, kind: Kind) -> Items<'a> {
        Items {
            text: if node.kind() == kind { node.raw } else { "" },
            at: 1,
        }
    }

    /// The next value, if the closing bracket does not come first; what separates values is stepped over.
    fn next(&mut self) -> Option<Node<'a>> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b']' | b'}' => return None,
                b',' | b':' => self.at += 1,
                white if is_white(white) => self.at += 1,
                _ => {
                    let end = value_end(bytes, self.at);
                    let raw = self.text.get(self.at..end)?;
                    self.at = end;
                    return Some(Node { raw });
                }
            }
        }
        None
    }
}

/// See [`Node::entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a>(Items<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = (Node<'a>, Node<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.0.next()?, self.0.next()?))
    }
}

/// See [`Node::elements`].
#[derive(Debug, Clone)]
pub struct Elements<'a>(Items<'a>);

impl<'a> Iterator for Elements<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// Where the value that begins at `at` ends. Counts brackets instead of recursing.
fn value_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b',' | b':' if depth > 0 => {
                at += 1;
                continue;
            }
            white if is_white(white) => {
                at += 1;
                continue;
            }
            _ => {
                while bytes
                    .get(at)
                    .is_some_and(|b| !matches!(b, b',' | b'}' | b']' | b':') && !is_white(*b))
                {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Behind the closing quote of the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    // Most strings are short: eight bytes at a time beats calling `memchr`, which wins on prose.
    let prose = at + 64;
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let found = first_special(u64::from_le_bytes(*word));
        at += found;
        if found == 8 {
            if at >= prose {
                break;
            }
        } else if bytes[at] == b'"' {
            return at + 1;
        } else {
            at += 2;
        }
    }
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// Which of eight bytes, first one lowest, is the first one that means something in a string: a quote, a backslash, or a control
/// character, which must not be there. 8 if none is.
fn first_special(word: u64) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // Each marks what it looks for in the highest bit of its byte, and perhaps bytes above the lowest one found, which do not
    // matter here.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & (ONES << 7);
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let marks = equal(b'"') | equal(b'\\') | below(word, 0x20);
    (marks.trailing_zeros() / 8) as usize
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw)
    }
}

#[cfg(test)]
mod tests;
