//! Reading one table of the configuration: every key is taken by name and type, every fault is collected with its place, and
//! what nobody took is unknown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::definition::{Key, Presence};
use super::{Fault, Listen, Order, Partial, Rate, Secret, Size, Span, Start};
use crate::names;
use crate::render::{Escape, Program, Template, Transform};

/// A table being read. Ask for every key it may have, then [`Table::finish`].
///
/// Where its keys are defined ([`Table::define`]), those are the ones it may have: to ask for another one, or to give one another
/// default, is a mistake in the program that shows in every test.
#[derive(Debug)]
pub struct Table<'f> {
    place: String,
    values: Map<String, Value>,
    asked: Vec<String>,
    defined: Vec<&'static [Key]>,
    has_program: bool,
    faults: &'f mut Vec<Fault>,
}

impl<'f> Table<'f> {
    /// `value` should be a table; anything else is a fault, and reads as an empty one.
    pub fn new(place: impl Into<String>, value: Value, faults: &'f mut Vec<Fault>) -> Table<'f> {
        let place = place.into();
        let values = match value {
            Value::Object(values) => values,
            Value::Null => Map::new(),
            other => {
                faults.push(Fault {
                    place: place.clone(),
                    message: format!("must be a table, not {}", kind(&other)),
                });
                Map::new()
            }
        };
        Table {
            place,
            values,
            asked: Vec::new(),
            defined: Vec::new(),
            has_program: false,
            faults,
        }
    }

    /// Says that the table may have these keys, and others that are defined for it.
    pub fn define(&mut self, keys: &'static [Key]) {
        self.defined.push(keys);
    }

    /// What is defined of a key.
    fn definition(&self, key: &str) -> Option<&'static Key> {
        let mut keys = self.defined.iter().copied().flatten();
        keys.find(|defined| defined.is_called(key))
    }

    /// Whether a default is the one that people are told of.
    fn is_told<T: FromValue + PartialEq>(&self, key: &str, default: &T) -> bool {
        match self.definition(key).map(|key| key.presence) {
            Some(Presence::Default(text)) => {
                let told = value_of(text).and_then(|value| T::from_value(value).ok());
                told.is_some_and(|told| told == *default)
            }
            Some(Presence::Required(_)) => false,
            Some(Presence::Optional(_) | Presence::Table) | None => true,
        }
    }

    /// The keys that were asked for.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> &[String] {
        &self.asked
    }

    /// Where a key of this table is.
    pub fn place(&self, key: &str) -> String {
        if self.place.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.place)
        }
    }

    /// Records a fault at a key.
    pub fn fault(&mut self, key: &str, message: impl Into<String>) {
        let place = if key.is_empty() {
            self.place.clone()
        } else {
            self.place(key)
        };
        self.faults.push(Fault {
            place,
            message: message.into(),
        });
    }

    /// The raw value of a key.
    pub fn raw(&mut self, key: &str) -> Option<Value> {
        debug_assert!(
            self.defined.is_empty() || self.definition(key).is_some(),
            "{} is not among the keys that are defined",
            self.place(key)
        );
        self.asked.push(key.to_owned());
        self.values.remove(key)
    }

    /// The value of an optional key.
    pub fn optional<T: FromValue>(&mut self, key: &str) -> Option<T> {
        let value = self.raw(key)?;
        match T::from_value(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    /// The value of a key that has a default.
    pub fn or<T: FromValue + PartialEq>(&mut self, key: &str, default: T) -> T {
        debug_assert!(
            self.is_told(key, &default),
            "{} has another default where it is defined",
            self.place(key)
        );
        self.optional(key).unwrap_or(default)
    }

    /// The value of a key that has a default and limits (inclusive).
    pub fn within<T: FromValue + PartialOrd + Copy + std::fmt::Display>(
        &mut self,
        key: &str,
        default: T,
        min: T,
        max: T,
    ) -> T {
        let value = self.or(key, default);
        if value < min || value > max {
            self.fault(key, format!("must be between {min} and {max}, not {value}"));
        }
        value
    }

    /// The value of a key that must be there, in a table whose keys are not defined.
    pub fn required<T: FromValue>(&mut self, key: &str, example: &str) -> Option<T> {
        debug_assert!(
            self.defined.is_empty(),
            "{} has its example where it is defined: ask with needed",
            self.place(key)
        );
        if !self.values.contains_key(key) {
            self.asked.push(key.to_owned());
            self.fault(key, format!("is missing: set it, for example {key} = {example}"));
            return None;
        }
        self.optional(key)
    }

    /// A template, if the key is there; a fault in it says where it is.
    pub fn template(&mut self, key: &str, escape: Escape) -> Option<Template> {
        let source: String = self.optional(key)?;
        match Template::parse(&source, escape) {
            Ok(template) => Some(template),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    /// The value of a key that must be there; its definition has the example.
    pub fn needed<T: FromValue>(&mut self, key: &str) -> Option<T> {
        let is_there = self.has(key);
        let value = self.optional(key);
        if !is_there {
            self.report_missing(key);
        }
        value
    }

    /// A secret that must be there: `key`, `key_file` or `key_env`; its definition has the example.
    pub fn needed_secret(&mut self, key: &str) -> Option<Secret> {
        let is_there = ["", "_file", "_env"].iter().any(|way| self.has(&format!("{key}{way}")));
        let secret = self.secret(key);
        if !is_there {
            self.report_missing(key);
        }
        secret
    }

    /// Says that a key is missing, with the example of its definition.
    pub fn report_missing(&mut self, key: &str) {
        let example = self.definition(key).map(Key::line);
        let example = example.map_or_else(String::new, |line| format!(", for example {line}"));
        self.fault(key, format!("is missing: set it{example}"));
    }

    /// `template` or `transform`, whichever is given: what is delivered instead of an event.
    pub fn program(&mut self) -> Option<Program> {
        self.has_program = self.has("template") || self.has("transform");
        let is_double = self.has("template") && self.has("transform");
        let template = self.template("template", Escape::None).map(Program::Template);
        let source: Option<String> = self.optional("transform");
        let transform = source.and_then(|source| {
            Transform::parse(&source)
                .map(Program::Transform)
                .map_err(|message| self.fault("transform", message))
                .ok()
        });
        if is_double {
            self.fault("transform", "stands beside template: keep one of them");
        }
        transform.or(template)
    }

    /// Whether there was a `template` or `transform` when [`Table::program`] read them.
    pub fn has_program(&self) -> bool {
        self.has_program
    }

    /// A secret: `key`, `key_file` or `key_env`.
    pub fn secret(&mut self, key: &str) -> Option<Secret> {
        let inline: Option<String> = self.optional(key);
        let file: Option<String> = self.optional(&format!("{key}_file"));
        let env: Option<String> = self.optional(&format!("{key}_env"));
        let mut found = [
            inline.map(|text| Secret::Inline(SecretString::from(text))),
            file.map(|text| Secret::from_file_key(&text)),
            env.map(Secret::Env),
        ]
        .into_iter()
        .flatten();
        let secret = found.next();
        let is_double = found.next().is_some();
        if let Some(fault) = secret.as_ref().and_then(Secret::fault) {
            self.fault(key, fault);
        }
        if is_double {
            self.fault(
                key,
                format!("is given more than once: keep one of {key}, {key}_file and {key}_env"),
            );
        }
        secret
    }

    /// A table inside this one (empty where it is missing), read by `read`.
    pub fn table<T>(&mut self, key: &str, read: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let value = self.raw(key).unwrap_or(Value::Null);
        let place = self.place(key);
        let keys = self.definition(key).map(|key| key.inner);
        let mut inner = Table::new(place, value, self.faults);
        if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
            inner.define(keys);
        }
        let read = read(&mut inner);
        inner.finish();
        read
    }

    /// Whether a key is given.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The tables of a list (`[[key]]`), each with its place.
    pub fn list(&mut self, key: &str) -> Vec<(String, Value)> {
        let place = self.place(key);
        match self.raw(key) {
            None => Vec::new(),
            Some(Value::Array(values)) => values
                .into_iter()
                .enumerate()
                .map(|(index, value)| (format!("{place}[{index}]"), value))
                .collect(),
            Some(other) => {
                self.fault(
                    key,
                    format!("must be a list of tables ([[{place}]]), not {}", kind(&other)),
                );
                Vec::new()
            }
        }
    }

    /// The faults so far, for a reader of a part.
    pub fn faults(&mut self) -> &mut Vec<Fault> {
        self.faults
    }

    /// Reports every key that there is not: that nobody asked for or, where keys are defined, that is not among them.
    pub fn finish(mut self) {
        self.report_unknown();
    }

    /// The same, where something may follow.
    pub fn report_unknown(&mut self) {
        let mut left = std::mem::take(&mut self.values);
        left.retain(|key, _| self.definition(key).is_none());
        let defined: Vec<String> = self.defined.iter().copied().flatten().flat_map(Key::names).collect();
        for key in left.keys() {
            let known = if self.defined.is_empty() { &self.asked } else { &defined };
            let fault = names::unknown("there is no such key", key, known.iter().map(String::as_str));
            self.fault(key, fault);
        }
    }
}

/// The value that TOML text stands for.
fn value_of(text: &str) -> Option<Value> {
    let document: toml_edit::DocumentMut = format!("it = {text}").parse().ok()?;
    let json = super::text::json_of(document.get("it")?).ok()?;
    serde_json::from_slice(json.as_bytes()).ok()
}

/// Something a value of the configuration can be.
pub trait FromValue: Sized {
    /// Converts, or says in one sentence what was expected.
    fn from_value(value: Value) -> Result<Self, String>;
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<String, String> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(format!("must be a string, not {}", kind(&other))),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Result<bool, String> {
        let truth = match &value {
            // From the environment, which has nothing but text.
            Value::String(text) => text.parse().ok(),
            other => other.as_bool(),
        };
        truth.ok_or_else(|| format!("must be true or false, not {}", kind(&value)))
    }
}

impl FromValue for u64 {
    fn from_value(value: Value) -> Result<u64, String> {
        let number = match &value {
            // From the environment, which has nothing but text.
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        number.ok_or_else(|| "must be a whole number that is not negative".into())
    }
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Result<u32, String> {
        u64::from_value(value)?.try_into().map_err(|_| "is too large".into())
    }
}

impl FromValue for usize {
    fn from_value(value: Value) -> Result<usize, String> {
        u64::from_value(value)?.try_into().map_err(|_| "is too large".into())
    }
}

macro_rules! from_text {
    ($($type:ty => $expected:literal),* $(,)?) => {$(
        impl FromValue for $type {
            fn from_value(value: Value) -> Result<$type, String> {
                match value {
                    Value::String(text) => text.parse::<$type>().map_err(|error| error.to_string()),
                    other => Err(format!(concat!("must be ", $expected, ", not {}"), kind(&other))),
                }
            }
        }
    )*};
}

from_text! {
    Span => "a duration with its unit in quotes, like \"30s\"",
    Size => "a size with its unit in quotes, like \"4 MiB\"",
    Rate => "a rate in quotes, like \"50/s\"",
}

impl FromValue for Listen {
    fn from_value(value: Value) -> Result<Listen, String> {
        String::from_value(value)?.parse()
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: Value) -> Result<SocketAddr, String> {
        let text = String::from_value(value)?;
        text.parse()
            .map_err(|_| format!("\"{text}\" is no address and port, like \"127.0.0.1:8480\" or \"[::]:443\""))
    }
}

impl FromValue for PathBuf {
    fn from_value(value: Value) -> Result<PathBuf, String> {
        let text = String::from_value(value)?;
        if text.is_empty() {
            Err("can't be empty: it is the path of a file or directory".into())
        } else {
            Ok(text.into())
        }
    }
}

impl FromValue for Vec<String> {
    fn from_value(value: Value) -> Result<Vec<String>, String> {
        match value {
            Value::Array(values) => values
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Ok(text),
                    other => Err(format!("must be a list of strings, but {} is in it", kind(&other))),
                })
                .collect(),
            other => Err(format!("must be a list of strings, not {}", kind(&other))),
        }
    }
}

impl FromValue for BTreeMap<String, String> {
    fn from_value(value: Value) -> Result<BTreeMap<String, String>, String> {
        match value {
            Value::Object(values) => values
                .into_iter()
                .map(|(key, value)| Ok((key, String::from_value(value)?)))
                .collect(),
            other => Err(format!("must be a table of strings, not {}", kind(&other))),
        }
    }
}

impl FromValue for Start {
    fn from_value(value: Value) -> Result<Start, String> {
        let text = String::from_value(value)?;
        match text.as_str() {
            "now" => Ok(Start::Now),
            "beginning" => Ok(Start::Beginning),
            other => super::time::argument(other).map(Start::At).map_err(|_| {
                format!("\"{other}\" is not \"now\", \"beginning\" or a time like \"2024-02-15\" or \"7d\"")
            }),
        }
    }
}

impl FromValue for Order {
    fn from_value(value: Value) -> Result<Order, String> {
        let text = String::from_value(value)?;
        match text.as_str() {
            "none" => Ok(Order::None),
            "lead" => Ok(Order::Lead),
            "strict" => Ok(Order::Strict),
            other => Err(format!("\"{other}\" is not \"none\", \"lead\" or \"strict\"")),
        }
    }
}

impl FromValue for Partial {
    fn from_value(value: Value) -> Result<Partial, String> {
        let text = String::from_value(value)?;
        match text.as_str() {
            "hold" => Ok(Partial::Hold),
            "dispatch" => Ok(Partial::Dispatch),
            other => Err(format!("\"{other}\" is not \"hold\" or \"dispatch\"")),
        }
    }
}
