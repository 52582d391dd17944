//! An event as a template sees it: values that look at the event's own text, so that only what is asked for is made, and every number
//! and every part that is printed stands there as Close wrote it.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use minijinja::value::{DynObject, Enumerator, Object, ObjectExt, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::json::{self, Kind, Node};
use crate::net::percent;

/// Deeper nests nothing that a template makes JSON of: each level takes a piece of the stack.
const DEPTH_MAX: usize = 128;

/// An object or array of a JSON text.
pub(super) struct Json {
    text: Arc<str>,
    at: Range<usize>,
    /// Of an object: where its keys and values are, found with the first question.
    fields: OnceLock<Vec<Field>>,
}

struct Field {
    name: Range<u32>,
    value: Range<u32>,
}

impl Json {
    pub fn new(text: &str) -> Json {
        let text: Arc<str> = text.into();
        let at = 0..text.len();
        Json {
            text,
            at,
            fields: OnceLock::new(),
        }
    }

    /// Whether it is the same part of the same text.
    pub fn is(&self, other: &Json) -> bool {
        Arc::ptr_eq(&self.text, &other.text) && self.at == other.at
    }

    /// Whether it is written the same.
    pub fn reads_as(&self, other: &Json) -> bool {
        self.node().raw() == other.node().raw()
    }

    fn node(&self) -> Node<'_> {
        Node::new(self.text.get(self.at.clone()).unwrap_or_default())
    }

    fn place(&self, node: Node<'_>) -> Range<usize> {
        let start = node.raw().as_ptr().addr().wrapping_sub(self.text.as_ptr().addr());
        start..start + node.raw().len()
    }

    fn part(&self, place: &Range<u32>) -> Node<'_> {
        Node::new(
            self.text
                .get(place.start as usize..place.end as usize)
                .unwrap_or_default(),
        )
    }

    fn fields(&self) -> &[Field] {
        let narrow = |place: Range<usize>| place.start as u32..place.end as u32;
        self.fields.get_or_init(|| {
            let entries = self.node().entries();
            let field = |(name, value)| Field {
                name: narrow(self.place(name)),
                value: narrow(self.place(value)),
            };
            entries.map(field).collect()
        })
    }

    /// The value of a part of this text.
    fn value(&self, node: Node<'_>) -> Value {
        match node.kind() {
            Kind::Null => Value::from(()),
            Kind::Bool => Value::from(node.raw() == "true"),
            Kind::Number => number(node.raw()),
            Kind::String => Value::from(string(node)),
            Kind::Object | Kind::Array => Value::from_object(Json {
                text: self.text.clone(),
                at: self.place(node),
                fields: OnceLock::new(),
            }),
        }
    }

    /// The value under a key; the last one where the key stands twice.
    pub fn get(&self, key: &str) -> Option<Value> {
        let is_it = |field: &&Field| self.part(&field.name).as_string().is_some_and(|name| name == key);
        let field = self.fields().iter().rev().find(is_it)?;
        Some(self.value(self.part(&field.value)))
    }

    /// Keys and values, each key once: where it stands for the last time, however it is spelled.
    pub fn entries(&self) -> impl Iterator<Item = (String, Value)> {
        let fields = self.fields();
        let names: Vec<String> = fields.iter().map(|field| string(self.part(&field.name))).collect();
        let mut seen = HashSet::with_capacity(names.len());
        let mut are_last: Vec<bool> = names.iter().rev().map(|name| seen.insert(name.as_str())).collect();
        are_last.reverse();
        let entries = names.into_iter().zip(fields).zip(are_last);
        entries
            .filter(|(_, is_last)| *is_last)
            .map(|((name, field), _)| (name, self.value(self.part(&field.value))))
    }

    fn compact(&self) -> String {
        json::compact(self.node().raw())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.compact())
    }
}

impl Object for Json {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.node().kind() == Kind::Array {
            ObjectRepr::Seq
        } else {
            ObjectRepr::Map
        }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match self.node().kind() {
            Kind::Array => self.node().elements().nth(key.as_usize()?).map(|node| self.value(node)),
            _ => self.get(key.as_str()?),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if self.node().kind() == Kind::Array {
            // Not by number: each would be looked for from the beginning.
            self.mapped_enumerator(|this| Box::new(this.node().elements().map(|node| this.value(node))))
        } else {
            self.mapped_key_value_enumerator(|this| {
                Box::new(this.entries().map(|(name, value)| (Value::from(name), value)))
            })
        }
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(match self.node().kind() {
            Kind::Array => self.node().elements().count(),
            _ => self.entries().count(),
        })
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.node().elements().next().is_some() || self.node().entries().next().is_some()
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        let other = other.downcast_ref::<Json>()?;
        (self.node().raw() == other.node().raw()).then_some(std::cmp::Ordering::Equal)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.compact())
    }
}

/// A number that would be printed otherwise than it is written.
#[derive(Debug)]
pub(super) struct Number(pub String);

impl Object for Number {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        let other = other.downcast_ref::<Number>()?;
        Some(json::Decimal::parse(&self.0).compare(&json::Decimal::parse(&other.0)))
    }

    /// Nothing is not true, however it is written.
    fn is_true(self: &Arc<Self>) -> bool {
        let digits = self.0.split(['e', 'E']).next().unwrap_or_default();
        digits.bytes().any(|byte| matches!(byte, b'1'..=b'9'))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number: one to calculate with where that prints the same, else its text.
pub(super) fn number(text: &str) -> Value {
    let native = if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        text.parse::<f64>().ok().map(Value::from)
    } else if text.len() < 19 {
        text.parse::<i64>().ok().map(Value::from)
    } else {
        text.parse::<i128>().ok().map(Value::from)
    };
    native
        .filter(|native| native.to_string() == text)
        .unwrap_or_else(|| Value::from_object(Number(text.to_owned())))
}

/// The decoded string; half a character, which no text can hold, becomes U+FFFD.
fn string(node: Node<'_>) -> String {
    if let Some(text) = node.as_string() {
        return text.into_owned();
    }
    let mut mended = String::with_capacity(node.raw().len());
    let mut rest = node.raw();
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        let is_escape = |text: &str, from: &str, to: &str| {
            let hex = text.strip_prefix("\\u").and_then(|hex| hex.get(..4));
            hex.is_some_and(|hex| {
                let hex = hex.to_ascii_uppercase();
                *from <= *hex && *hex <= *to
            })
        };
        let tail = &rest[at..];
        let len = if is_escape(tail, "D800", "DBFF") && tail.get(6..).is_some_and(|low| is_escape(low, "DC00", "DFFF"))
        {
            12
        } else if is_escape(tail, "D800", "DFFF") {
            mended.push_str("\\ufffd");
            rest = tail.get(6..).unwrap_or_default();
            continue;
        } else {
            2
        };
        mended.push_str(tail.get(..len).unwrap_or(tail));
        rest = tail.get(len..).unwrap_or_default();
    }
    mended.push_str(rest);
    serde_json::from_slice(mended.as_bytes()).unwrap_or_default()
}

/// What a template's variables are: the event's fields, the event itself, and what is known of its journey.
#[derive(Debug)]
pub(super) struct Scope {
    pub event: Arc<Json>,
    pub meta: Value,
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "event" => Some(Value::from_dyn_object(self.event.clone())),
            "meta" => Some(self.meta.clone()),
            field => self.event.get(field),
        }
    }
}

/// An object in the order in which it was made.
#[derive(Debug)]
pub(super) struct Pairs(pub Vec<(String, Value)>);

impl Object for Pairs {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let found = self.0.iter().rev().find(|(name, _)| name == key)?;
        Some(found.1.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_key_value_enumerator(|this| {
            Box::new(this.0.iter().map(|(name, value)| (Value::from(name), value.clone())))
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let value = Value::from_dyn_object(self.clone());
        push_json(&mut text, &value, 0).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

/// Any value as JSON; what is the event's own stays as Close wrote it.
pub(super) fn push_json(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    let wrong = |text: String| Error::new(ErrorKind::BadSerialization, text);
    if depth > DEPTH_MAX {
        return Err(wrong("it is nested too deep to become JSON".into()));
    }
    if let Some(json) = value.downcast_object_ref::<Json>() {
        if depth == 0 {
            // Memory that grows by doubling takes three times as much.
            out.reserve_exact(json.node().raw().len());
        }
        json::push_compact(out, json.node().raw());
        return Ok(());
    }
    if let Some(number) = value.downcast_object_ref::<Number>() {
        out.push_str(&number.0);
        return Ok(());
    }
    match value.kind() {
        ValueKind::Undefined => return Err(Error::new(ErrorKind::UndefinedError, "an undefined value is no JSON")),
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let text = value.to_string();
            if text.contains(['n', 'N', 'i']) {
                return Err(wrong(format!("{text} is no number of JSON")));
            }
            out.push_str(&text);
        }
        ValueKind::String => json::push_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, element) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_json(out, &element, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                json::push_string(out, &key.to_string());
                out.push(':');
                push_json(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        other => return Err(wrong(format!("a value of the kind {other} is no JSON"))),
    }
    Ok(())
}

/// Writes through what is meant for a text with markup.
pub(super) struct Escaped<'a, 'o> {
    pub out: &'a mut minijinja::Output<'o>,
    /// Quotes too, as HTML wants it; Slack shows them as they are.
    pub quotes: bool,
}

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            self.out.write_str(&rest[..at])?;
            let character = &rest[at..=at];
            self.out.write_str(match character {
                "&" => "&amp;",
                "<" => "&lt;",
                ">" => "&gt;",
                "\"" if self.quotes => "&quot;",
                "'" if self.quotes => "&#x27;",
                other => other,
            })?;
            rest = &rest[at + 1..];
        }
        self.out.write_str(rest)
    }
}

/// Writes text as a part of a URL.
pub(super) struct Encoded<'a, 'o>(pub &'a mut minijinja::Output<'o>);

impl fmt::Write for Encoded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&percent::encoded(text))
    }
}

/// Writes a value as it is printed.
pub(super) fn print(out: &mut impl fmt::Write, value: &Value) -> Result<(), Error> {
    let printed = match value.as_str() {
        Some(text) => out.write_str(text),
        None => write!(out, "{value}"),
    };
    printed.map_err(|_| Error::new(ErrorKind::WriteFailure, "the value can't be printed"))
}

impl Scope {
    pub fn of(event: &str, meta: &str) -> Scope {
        Scope {
            event: Arc::new(Json::new(event)),
            meta: Value::from_object(Json::new(meta)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_that_stands_twice_the_last_one_counts() {
        let many = (0..600).fold(String::new(), |many, index| many + &format!("\"k{index}\":0,"));
        for others in ["", &many] {
            let json = Json::new(&format!(r#"{{"a":1,{others}"b":2,"\u0061":3,"b":4}}"#));
            let of = |wanted: &str| {
                let entries = json.entries().filter(|(name, _)| name == wanted);
                entries.map(|(_, value)| value.to_string()).collect::<Vec<_>>()
            };
            assert_eq!((of("a"), of("b")), (vec!["3".to_owned()], vec!["4".to_owned()]));
            assert_eq!(json.get("a").unwrap().to_string(), "3");
        }
        let pairs = [("x", 1), ("x", 2)].map(|(name, value)| (name.to_owned(), Value::from(value)));
        let pairs = Arc::new(Pairs(pairs.to_vec()));
        assert_eq!(pairs.get_value(&Value::from("x")), Some(Value::from(2)));
    }
}
