//! JSON as text: a validating pass, then lazy, exact look-ups in the validated text.
//!
//! Nothing here recurses on input, converts a number to a float, or copies what it does not have to: a delivery is looked
//! at for a handful of fields, and the rest of it is skipped at the speed of `memchr`.

mod doc;
mod indent;
mod scan;
mod value;

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;
use serde_json::value::RawValue;

pub use doc::Doc;
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

/// Whether brackets are open in a text that comes in pieces: tells when a value that takes many lines may be whole, without
/// validating all of it again at each line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Brackets {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Brackets {
    /// Takes the next piece.
    pub fn feed(&mut self, piece: &str) {
        for byte in piece.bytes() {
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'"' => self.in_string = !self.in_string,
                b'\\' => self.escaped = self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// Whether every bracket and string so far is closed.
    pub fn are_closed(self) -> bool {
        self.depth == 0 && !self.in_string
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

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_a_surrogate_hides_nothing_beside_it() {
        for (raw, part, found) in [
            (r#""\ud800 jane""#, "jane", true),
            (r#""jane\udc00""#, "jane", true),
            (r#""\ud83d\ude80 \ud83d""#, "🚀", true),
            (r#""\ud83d\n\u00e9""#, "\né", true),
            (r#""\ud83d\ud83d\ude80""#, "🚀", true),
            (r#""\ud800""#, "", true),
            (r#""\ud800\\""#, "\\", true),
            (r#""\ud800""#, "\u{fffd}", false),
            (r#""\ud83d x \ude80""#, "🚀", false),
            (r#""\u00e9""#, "é", true),
            ("1", "1", false),
        ] {
            let node = Node::new(validate(raw.as_bytes()).unwrap());
            assert_eq!(node.contains(part), found, "{raw} {part:?}");
        }
    }

    #[test]
    fn a_member_is_set_and_all_else_stays() {
        let set = |text| with_member(text, "a", "[1]");
        assert_eq!(
            set(r#" { "b" : 1.50 , "a" : {"a":2} } "#).unwrap(),
            r#"{ "b" : 1.50 , "a" : [1] }"#
        );
        assert_eq!(
            set(r#"{"a":1,"a":2}"#).unwrap(),
            r#"{"a":1,"a":[1]}"#,
            "the last one counts"
        );
        assert_eq!(set(r#"{"b":{"a":1} }"#).unwrap(), r#"{"b":{"a":1} ,"a":[1]}"#);
        assert_eq!(set("{ }").unwrap(), r#"{ "a":[1]}"#);
        assert_eq!(set("[]"), None);
    }

    proptest! {
        #[test]
        fn a_string_contains_what_its_decoded_text_contains(text in "[a-c\u{e9}🚀\\\\\n\"]{0,12}", part in "[a-c\u{e9}🚀\\\\\n\"]{0,3}") {
            let plain = serde_json::Value::from(text.as_str()).to_string();
            let escaped: Vec<String> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            let escaped = escaped.concat();
            let halved = format!("\"{escaped}\\udc00\"");
            for raw in [plain, halved] {
                let node = Node::new(validate(raw.as_bytes()).unwrap());
                prop_assert_eq!(node.contains(&part), text.contains(&part));
            }
        }
    }

    #[test]
    fn look_ups_read_what_is_written() {
        let text = r#" {"a" : 1.50, "b":{"c":[1, {"d":"x\"]}"}, []]}, "a":2, "\u0065":"\ud83d\ude80", "z":"\ud800"} "#;
        let root = Node::new(validate(text.as_bytes()).unwrap());
        assert_eq!(root.get("a").unwrap().raw(), "2", "the last duplicate wins");
        assert_eq!(
            root.get("e").unwrap().as_string().unwrap(),
            "🚀",
            "escaped keys are compared decoded"
        );
        assert_eq!(root.get("z").unwrap().as_string(), None);
        let c = root.get("b").unwrap().get("c").unwrap();
        assert_eq!(
            c.elements().map(Node::raw).collect::<Vec<_>>(),
            ["1", r#"{"d":"x\"]}"}"#, "[]"]
        );
        assert_eq!(c.get("x"), None);
        let doc = Doc::new(text);
        for _ in 0..2 {
            assert_eq!(doc.get(doc.root(), "a").unwrap().raw(), "2");
            assert_eq!(doc.get(doc.root(), "missing"), None);
        }
    }

    #[test]
    fn nesting_has_no_limit_and_needs_no_stack() {
        let deep = format!("{{\"event\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        let root = Node::new(validate(deep.as_bytes()).unwrap());
        assert_eq!(root.get("event").unwrap().raw().len(), 400_000);
        assert_eq!(compact(&deep).len(), deep.len());
        assert_eq!(Value::parse(root), None);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            "{",
            "{}x",
            "[1,]",
            "nul",
            "\"\u{1}\"",
            "01",
            "{'a':1}",
            "\"\\x\"",
            "NaN",
            "{\"a\" 1}",
        ] {
            assert!(validate(text.as_bytes()).is_err(), "{text}");
        }
        assert!(validate(b"\"\xff\"").is_err());
        assert!(validate(b"{\"a\":\xff}").is_err());
    }

    #[test]
    fn numbers_compare_by_value() {
        let equal = [
            ("1", "1.0"),
            ("100", "1e2"),
            ("0.1", "1E-1"),
            ("-0", "0.00e7"),
            ("9007199254740993", "9007199254740993.0"),
            ("12.5e-1", "1.25"),
        ];
        for (a, b) in equal {
            assert_eq!(Decimal::parse(a), Decimal::parse(b), "{a} {b}");
        }
        let different = [
            ("9007199254740993", "9007199254740992"),
            ("0.1", "0.10000000000000001"),
            ("1", "-1"),
            ("1e5", "1e6"),
        ];
        for (a, b) in different {
            assert_ne!(Decimal::parse(a), Decimal::parse(b), "{a} {b}");
        }
        let huge = "1e999999999999999999999999999999999999999999";
        assert_eq!(Decimal::parse(huge), Decimal::parse(huge));
    }

    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            "[a-c\\\\\"\u{0}é🚀]{0,4}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[ab\"]{1,2}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// JSON, and what is nearly JSON.
    fn texts() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\"a\"",
            "\"b\":",
            "\"\\u00e9\"",
            "\\ud83d",
            "u12",
            "0",
            "1",
            "-",
            ".",
            "e",
            "+",
            "true",
            "false",
            "null",
            "nul",
            " ",
            "\n",
            "\t",
            "\u{c}",
            "\u{0}",
            "\u{1f}",
            "\u{7f}",
            "é",
            "12345678",
            "abcdefgh",
        ]);
        let noise = prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat());
        let edited = (values(), any::<prop::sample::Index>(), noise.clone(), 0_usize..3).prop_map(
            |(value, at, inserted, dropped)| {
                let text = serde_json::to_string_pretty(&value).unwrap();
                let at = text.floor_char_boundary(at.index(text.len() + 1));
                let rest = text[at..].chars().skip(dropped);
                text[..at].chars().chain(inserted.chars()).chain(rest).collect()
            },
        );
        prop_oneof![noise, edited, values().prop_map(|value| value.to_string())]
    }

    #[test]
    fn every_short_text_is_valid_where_serde_json_takes_it() {
        const TOKENS: [&str; 11] = ["[", "]", "{", "}", ",", "\"a\":", "0", "1", "-", ".", "e"];
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            let longer = |text: &String| TOKENS.map(|token| format!("{text}{token}"));
            texts = texts.iter().flat_map(longer).collect();
            for text in &texts {
                let takes = serde_json::from_str::<&RawValue>(text).is_ok();
                assert_eq!(validate(text.as_bytes()).is_ok(), takes, "{text}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_valid_is_what_serde_json_takes(text in texts()) {
            let takes = serde_json::from_str::<&RawValue>(&text).is_ok();
            prop_assert_eq!(validate(text.as_bytes()).is_ok(), takes);
            prop_assert_eq!(Doc::parse(text.as_bytes()).is_ok(), takes);
        }
    }

    proptest! {
        #[test]
        fn equality_agrees_with_a_full_parse(a in values(), b in values(), pretty in any::<bool>()) {
            let write = |value: &serde_json::Value| {
                if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }.unwrap()
            };
            let (text_a, text_b) = (write(&a), write(&b));
            let parsed = Value::parse(Node::new(&text_a)).unwrap();
            prop_assert!(parsed.equals(Node::new(&text_a)));
            prop_assert_eq!(parsed.equals(Node::new(&text_b)), a == b);
            prop_assert_eq!(compact(&text_a), serde_json::to_string(&a).unwrap());
        }

        #[test]
        fn remembered_places_are_those_a_scan_finds(value in values(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let doc = Doc::new(&text);
            let mut pending = vec![doc.root()];
            while let Some(node) = pending.pop() {
                prop_assert_eq!(&text[doc.place_of(node)], node.raw());
                for key in ["a", "b", "\"", "ab", "a\"", "missing"] {
                    prop_assert_eq!(doc.get(node, key), node.get(key));
                    pending.extend(doc.get(node, key));
                }
                pending.extend(node.elements());
            }
            let parsed = Doc::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(parsed.get(parsed.root(), "a"), doc.get(doc.root(), "a"));
            prop_assert_eq!(Doc::new(&text).descend("a").root(), doc.root().get("a").unwrap_or(Node::NULL));
        }

        #[test]
        fn a_value_is_whole_when_its_brackets_are_closed(value in values(), cut in any::<prop::sample::Index>()) {
            let text = serde_json::to_string_pretty(&serde_json::json!([value])).unwrap();
            let at = text.ceil_char_boundary(cut.index(text.len()));
            let mut brackets = Brackets::default();
            brackets.feed(&text[..at]);
            prop_assert_eq!(brackets.are_closed(), at == 0 || at == text.len());
            brackets.feed(&text[at..]);
            prop_assert!(brackets.are_closed());
        }

        #[test]
        fn strings_end_where_they_end(inner in "[a\\\\\"é]{0,90}", more in "[a\"]{0,9}") {
            let text = format!("{}{more}", serde_json::to_string(&inner).unwrap());
            prop_assert_eq!(string_end(text.as_bytes(), 0), text.len() - more.len());
        }

        #[test]
        fn nothing_panics_on_anything(text in "[\\[\\]{}\",:\\\\a0-9 \n.eE+-]{0,40}", key in "[a\\\\\"]{0,2}") {
            let node = Node::new(&text);
            let _ = (node.get(&key), node.as_string(), node.elements().count(), compact(&text));
            let doc = Doc::new(&text);
            let _ = doc.get(doc.root(), &key).map(|inner| doc.get(inner, &key));
            let _ = Value::parse(node).map(|value| value.equals(node));
            let _ = validate(text.as_bytes());
        }
    }
}
