//! The order of values of all sorts: one for all filters that sort, group and pick, whatever else is in a list.
//!
//! minijinja orders a number of ours behind everything it knows, and takes what lacks an attribute for equal to whatever it is compared with,
//! which is no order. So lists in which there may be either are ordered by keys made here: nothing, then `none`, then numbers by what they
//! are worth, texts, lists, objects by their sorted keys, and what else there may be.

use std::cmp::Ordering;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::exact::{is_container, is_ours, item, text_of};
use super::faults::wrong;
use crate::json::Decimal;

/// Deeper nests nothing that is ordered: no event does.
const DEPTH_MAX: usize = 300;

/// What a value is ordered by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Undefined,
    Nothing,
    Number(Worth),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Key>),
    /// Behind lists, of which it is none to Jinja.
    Tuple(Vec<Key>),
    Object(Vec<(Key, Key)>),
    Other(String),
}

/// What a number is worth.
#[derive(Debug, Clone)]
pub(super) enum Worth {
    Small(i64),
    Exact(Box<Decimal>),
    /// No number of JSON: below all of these, or above, or none at all.
    Beyond(i8),
}

impl Worth {
    fn read(text: &str) -> Worth {
        match text.parse() {
            Ok(small) => Worth::Small(small),
            Err(_) => Worth::Exact(Box::new(Decimal::parse(text))),
        }
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Worth) -> Ordering {
        let decimal = |small: &i64| Decimal::parse(&small.to_string());
        match (self, other) {
            (Worth::Small(a), Worth::Small(b)) => a.cmp(b),
            (Worth::Small(a), Worth::Exact(b)) => decimal(a).compare(b),
            (Worth::Exact(a), Worth::Small(b)) => a.compare(&decimal(b)),
            (Worth::Exact(a), Worth::Exact(b)) => a.compare(b),
            (Worth::Beyond(a), Worth::Beyond(b)) => a.cmp(b),
            (Worth::Beyond(a), _) => a.cmp(&0),
            (_, Worth::Beyond(b)) => 0_i8.cmp(b),
        }
    }
}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Worth) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Worth {
    fn eq(&self, other: &Worth) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Worth {}

/// Makes keys, and pays for them with what the template has left.
pub(super) struct Keys<'s, 'a, 'b> {
    pub state: &'s State<'a, 'b>,
    pub has_case: bool,
}

impl Keys<'_, '_, '_> {
    /// Of a value, or of what it has under an attribute; without one there it is `default`.
    pub fn of(&self, value: &Value, attribute: Option<&str>, default: &Value) -> Result<Key, Error> {
        let found = attribute.map(|path| at_path(value, path).unwrap_or_else(|| default.clone()));
        let found = found.as_ref().unwrap_or(value);
        // Texts in lists are as they are.
        match found.as_str() {
            Some(text) if !self.has_case => {
                self.state.consume_fuel(1 + text.len() as u64 / 64)?;
                Ok(Key::Text(text.to_ascii_lowercase()))
            }
            _ => self.exact(found, DEPTH_MAX),
        }
    }

    fn exact(&self, value: &Value, depth: usize) -> Result<Key, Error> {
        self.state.consume_fuel(1)?;
        let deeper = || {
            depth
                .checked_sub(1)
                .ok_or_else(|| wrong("it is nested too deep to be ordered"))
        };
        if let Some(text) = text_of(value) {
            return Ok(Key::Number(Worth::read(&text)));
        }
        Ok(match value.kind() {
            ValueKind::Undefined => Key::Undefined,
            ValueKind::None => Key::Nothing,
            ValueKind::Number | ValueKind::Bool => Key::Number(Worth::Beyond(match f64::try_from(value.clone()) {
                Ok(number) if number < 0.0 => -1,
                Ok(number) if number > 0.0 => 1,
                _ => 2,
            })),
            ValueKind::String => Key::Text(value.as_str().unwrap_or_default().to_owned()),
            ValueKind::Bytes => Key::Bytes(value.as_bytes().unwrap_or_default().to_vec()),
            ValueKind::Seq | ValueKind::Iterable => {
                let depth = deeper()?;
                let keys: Result<Vec<Key>, Error> = value.try_iter()?.map(|one| self.exact(&one, depth)).collect();
                if value.is_tuple() {
                    Key::Tuple(keys?)
                } else {
                    Key::List(keys?)
                }
            }
            ValueKind::Map => {
                let depth = deeper()?;
                let pair = |(name, value): (Value, Value)| -> Result<(Key, Key), Error> {
                    Ok((self.exact(&name, depth)?, self.exact(&value, depth)?))
                };
                let pairs: Result<Vec<(Key, Key)>, Error> = pairs(value)?.into_iter().map(pair).collect();
                let mut pairs = pairs?;
                pairs.sort();
                Key::Object(pairs)
            }
            _ => Key::Other(value.to_string()),
        })
    }

    /// Pays for so many to be brought into their order.
    pub fn pay_for(&self, count: usize) -> Result<(), Error> {
        let each = u64::from(usize::BITS - count.leading_zeros());
        self.state.consume_fuel((count as u64).saturating_mul(each))
    }
}

/// Names and values of an object. Not name by name: each would be looked for from the beginning.
pub(super) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    if let Some(object) = value.as_object()
        && let Some(pairs) = object.try_iter_pairs()
    {
        return Ok(pairs.collect());
    }
    let names = value.try_iter()?;
    Ok(names
        .map(|name| {
            let of = item(value, &name).unwrap_or(Value::UNDEFINED);
            (name, of)
        })
        .collect())
}

/// What is at the end of a path of names and numbers; `None`: nothing.
pub(super) fn at_path(value: &Value, path: &str) -> Option<Value> {
    let mut at = value.clone();
    for part in path.split('.') {
        let by_number = part
            .parse::<usize>()
            .ok()
            .and_then(|number| item(&at, &Value::from(number)));
        at = match by_number {
            Some(found) => found,
            None => at.get_attr(part).ok().filter(|found| !found.is_undefined())?,
        };
    }
    Some(at)
}

/// The values of a list (of an object its names) that minijinja can't order by itself; `None`: it can, or it is none.
pub(super) fn listed(values: &Value) -> Option<Vec<Value>> {
    if !is_container(values) {
        return None;
    }
    let all: Vec<Value> = values.try_iter().ok()?.collect();
    let matters = |value: &Value| is_ours(value) || is_container(value);
    all.iter().any(matters).then_some(all)
}
