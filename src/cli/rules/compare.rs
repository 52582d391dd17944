//! Whether a payload is what a case expects, and where it first is not. Numbers are compared by their exact value, objects whatever
//! the order of their keys, and a key with null is as good as none: TOML, in which cases are written, has no null.

use crate::json::{self, Kind, Node, Value};

/// What a case says of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// This text, byte for byte.
    Text(String),
    /// JSON that says the same as this.
    Json(String),
}

/// So much of a text is shown at the most.
const SHOWN_MAX: usize = 160;

impl Expected {
    /// Where the payload differs; `None`: it does not.
    pub fn difference(&self, payload: &[u8], is_without_id: bool) -> Option<String> {
        match self {
            Expected::Text(text) if text.as_bytes() == payload => None,
            Expected::Text(text) => {
                let got = String::from_utf8_lossy(payload);
                Some(format!("is {}, expected {}", shown(&got), shown(text)))
            }
            Expected::Json(text) => match json::validate(payload) {
                Ok(got) => difference(Node::new(text), Node::new(got), "", is_without_id),
                Err(error) => Some(format!("is {error}")),
            },
        }
    }
}

/// The first place at which two values say something else.
fn difference(expected: Node<'_>, got: Node<'_>, place: &str, is_without_id: bool) -> Option<String> {
    if expected.raw() == got.raw() || Value::parse(expected).is_some_and(|value| value.equals(got)) {
        return None;
    }
    let at = if place.is_empty() {
        String::new()
    } else {
        format!("at {place} ")
    };
    let within = |key: &str| {
        let dot = if place.is_empty() { "" } else { "." };
        format!("{place}{dot}{key}")
    };
    match (expected.kind(), got.kind()) {
        (Kind::Object, Kind::Object) => {
            let name = |key: Node<'_>| key.as_string().unwrap_or_default().into_owned();
            for (key, value) in expected.entries() {
                let key = name(key);
                match got.get(&key) {
                    None => return Some(format!("{at}lacks \"{key}\"")),
                    Some(other) => {
                        if let Some(found) = difference(value, other, &within(&key), is_without_id) {
                            return Some(found);
                        }
                    }
                }
            }
            // TOML has no null: what is null is as good as missing.
            let is_there = |(key, value): (Node<'_>, Node<'_>)| {
                let (key, is_null) = (name(key), value.kind() == Kind::Null);
                // Nobody has written it.
                let is_filled_in = is_without_id && key == "id" && value.raw() == "\"\"";
                (!is_null && !is_filled_in).then_some(key)
            };
            let more = got
                .entries()
                .filter_map(is_there)
                .find(|key| expected.get(key).is_none())?;
            Some(format!("{at}has \"{more}\", which is not expected"))
        }
        (Kind::Array, Kind::Array) => {
            let (wanted, found) = (expected.elements().count(), got.elements().count());
            let mut pairs = expected.elements().zip(got.elements()).enumerate();
            let inner = pairs
                .find_map(|(index, (one, other))| difference(one, other, &format!("{place}[{index}]"), is_without_id));
            inner.or_else(|| (found != wanted).then(|| format!("{at}has {found} elements, expected {wanted}")))
        }
        _ => Some(format!(
            "{at}is {}, expected {}",
            shown(got.raw()),
            shown(expected.raw())
        )),
    }
}

/// As much of a text as is worth showing, on one line.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(expected: &str, got: &str) -> Option<String> {
        Expected::Json(expected.into()).difference(got.as_bytes(), false)
    }

    #[test]
    fn what_says_the_same_is_the_same() {
        assert_eq!(
            json(r#"{"a":1.0,"b":[true,null]}"#, r#" { "b" : [true, null], "a": 1 } "#),
            None
        );
        assert_eq!(json(r#"{"a":[{}]}"#, r#"{"a":[{"b":null}],"c":null}"#), None);
        assert_eq!(
            json("{\"n\":12345678901234567890}", "{\"n\":12345678901234567890}"),
            None
        );
    }

    #[test]
    fn an_id_that_nobody_wrote_need_not_be_expected() {
        let difference = |expected: &str, got: &str| Expected::Json(expected.into()).difference(got.as_bytes(), true);
        for expected in [r#"{"event":{"a":1}}"#, r#"{"event":{"a":1,"id":""}}"#] {
            assert_eq!(difference(expected, r#"{"event":{"a":1,"id":""}}"#), None, "{expected}");
        }
        assert!(difference(r#"{"event":{}}"#, r#"{"event":{"id":"ev_1"}}"#).is_some());
        assert!(json(r#"{"event":{}}"#, r#"{"event":{"id":""}}"#).is_some());
    }

    #[test]
    fn the_first_difference_is_named_with_its_place() {
        for (expected, got, said) in [
            (
                r#"{"a":{"b":[1,2]}}"#,
                r#"{"a":{"b":[1,3]}}"#,
                "at a.b[1] is 3, expected 2",
            ),
            (r#"{"a":1}"#, "{}", "lacks \"a\""),
            (
                r#"{"a":{}}"#,
                r#"{"a":{"x":1}}"#,
                "at a has \"x\", which is not expected",
            ),
            ("[1]", "[1,2]", "has 2 elements, expected 1"),
            (
                "{\"n\":12345678901234567890}",
                "{\"n\":12345678901234567891}",
                "at n is 12345678901234567891, expected 12345678901234567890",
            ),
            ("{}", "nonsense", "is not valid JSON"),
        ] {
            let found = json(expected, got).unwrap();
            assert!(found.contains(said), "{found}");
        }
        let text = Expected::Text("one".into());
        assert_eq!(text.difference(b"one", false), None);
        assert_eq!(text.difference(b"one\n", false).unwrap(), "is one\n, expected one");
    }
}
