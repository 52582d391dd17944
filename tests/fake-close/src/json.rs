//! JSON as text: what is sent and shown must stay byte for byte as it was written, so objects are taken apart into pieces of
//! their text. Only what filters ask about is read into a tree.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Nesting that is read into a tree; what lies deeper reads as null.
const DEPTH_MAX: usize = 256;

/// An entry of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'t> {
    /// The key as written, with its quotes.
    pub key: &'t str,
    /// The key.
    pub name: String,
    /// The value as written.
    pub value: &'t str,
}

struct Entries<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'t> Deserialize<'t> for Entries<'t> {
    fn deserialize<D: Deserializer<'t>>(from: D) -> Result<Entries<'t>, D::Error> {
        struct Reader;

        impl<'t> Visitor<'t> for Reader {
            type Value = Entries<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'t>>(self, mut map: M) -> Result<Entries<'t>, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        from.deserialize_map(Reader)
    }
}

/// The entries of an object in their order, or why the text is none.
pub fn entries(text: &str) -> Result<Vec<Entry<'_>>, String> {
    let Entries(entries) = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(entries
        .into_iter()
        .map(|(key, value)| {
            let (key, value): (&str, &str) = (key.get(), value.get());
            Entry {
                key,
                name: string(key).unwrap_or_else(|| key.to_owned()),
                value,
            }
        })
        .collect())
}

/// The elements of an array.
pub fn elements(text: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
}

/// The value of a key, as written; the last one of several.
pub fn get<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let entries = entries(text).ok()?;
    entries
        .into_iter()
        .rev()
        .find(|entry| entry.name == name)
        .map(|entry| entry.value)
}

/// A string's text.
pub fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

/// The string under a key of an object.
pub fn string_at(text: &str, name: &str) -> Option<String> {
    get(text, name).and_then(string)
}

/// A value, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// By its value: `1`, `1.0` and `10e-1` are the same.
    Number(Decimal),
    /// A string's text.
    Text(String),
    /// In order.
    Array(Vec<Json>),
    /// Sorted by key, each key once: the last one counts.
    Object(Vec<(String, Json)>),
}

/// A number as exact as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    /// Power of ten of the last digit.
    exponent: i64,
}

impl Json {
    /// Reads valid JSON; null where it is none.
    pub fn read(text: &str) -> Json {
        Json::read_within(text.trim(), DEPTH_MAX)
    }

    fn read_within(text: &str, depth: usize) -> Json {
        let Some(below) = depth.checked_sub(1) else {
            return Json::Null;
        };
        match text.as_bytes().first() {
            Some(b'{') => {
                let mut object: Vec<(String, Json)> = Vec::new();
                for entry in entries(text).unwrap_or_default() {
                    object.retain(|(name, _)| *name != entry.name);
                    object.push((entry.name, Json::read_within(entry.value, below)));
                }
                object.sort_by(|one, other| one.0.cmp(&other.0));
                Json::Object(object)
            }
            Some(b'[') => {
                let elements = elements(text).unwrap_or_default();
                Json::Array(
                    elements
                        .into_iter()
                        .map(|element| Json::read_within(element, below))
                        .collect(),
                )
            }
            Some(b'"') => Json::Text(string(text).unwrap_or_else(|| text.to_owned())),
            Some(b't') => Json::Bool(true),
            Some(b'f') => Json::Bool(false),
            Some(b'-' | b'0'..=b'9') => Json::Number(Decimal::read(text)),
            _ => Json::Null,
        }
    }

    /// What is under a key; `None` for everything that has no such key.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

impl Decimal {
    fn read(text: &str) -> Decimal {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let negative = whole.starts_with('-');
        let all = format!("{}{fraction}", whole.trim_start_matches('-'));
        let led = all.trim_start_matches('0');
        let digits = led.trim_end_matches('0');
        if digits.is_empty() {
            return Decimal {
                negative: false,
                digits: String::new(),
                exponent: 0,
            };
        }
        let written: i64 = exponent.trim_start_matches('+').parse().unwrap_or(i64::MAX / 2);
        Decimal {
            negative,
            digits: digits.to_owned(),
            exponent: written - fraction.len() as i64 + (led.len() - digits.len()) as i64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_taken_apart_as_written() {
        let text = "{ \"a\\u0062\" :\t1.0 , \"c\":{\"d\": [1e2,\"\\ud800\"]},\"c\":2}";
        let parts: Vec<(&str, String, &str)> = entries(text)
            .unwrap()
            .into_iter()
            .map(|entry| (entry.key, entry.name, entry.value))
            .collect();
        assert_eq!(
            parts,
            [
                ("\"a\\u0062\"", "ab".to_owned(), "1.0"),
                ("\"c\"", "c".to_owned(), "{\"d\": [1e2,\"\\ud800\"]}"),
                ("\"c\"", "c".to_owned(), "2"),
            ]
        );
        assert_eq!(get(text, "c"), Some("2"), "the last one counts");
        assert!(entries("[1]").is_err() && entries("{").is_err() && entries("{} x").is_err());
    }

    #[test]
    fn numbers_are_compared_by_value_and_exactly() {
        let same = [("1", "1.0"), ("1e2", "100"), ("-0.50", "-5E-1"), ("0", "-0.0e9")];
        for (one, other) in same {
            assert_eq!(Json::read(one), Json::read(other), "{one} {other}");
        }
        let different = [
            ("9007199254740993", "9007199254740992"),
            ("1", "-1"),
            ("1", "\"1\""),
            ("10", "1"),
            ("0.1", "0.01"),
        ];
        for (one, other) in different {
            assert_ne!(Json::read(one), Json::read(other), "{one} {other}");
        }
    }

    #[test]
    fn endless_nesting_ends() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(Json::read(&deep), Json::Array(_)));
    }
}
