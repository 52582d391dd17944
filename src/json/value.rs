//! Values that texts are compared with.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::{Kind, Node};

/// A parsed value whose numbers are exact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, by its decimal value.
    Number(Decimal),
    /// A decoded string.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object; of duplicate keys the last one.
    Object(BTreeMap<String, Value>),
}

/// Values are parsed from configuration, where such nesting is a mistake.
const VALUE_DEPTH_MAX: usize = 128;

impl Value {
    /// Parses a value. `None` where it nests deeper than 128 or a string has an unpaired surrogate.
    pub fn parse(node: Node<'_>) -> Option<Value> {
        Value::parse_within(node, VALUE_DEPTH_MAX)
    }

    fn parse_within(node: Node<'_>, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        Some(match node.kind() {
            Kind::Null => Value::Null,
            Kind::Bool => Value::Bool(node.raw == "true"),
            Kind::Number => Value::Number(Decimal::parse(node.raw)),
            Kind::String => Value::String(node.as_string()?.into_owned()),
            Kind::Array => Value::Array(
                node.elements()
                    .map(|e| Value::parse_within(e, depth))
                    .collect::<Option<_>>()?,
            ),
            Kind::Object => Value::Object(
                node.entries()
                    .map(|(key, value)| Some((key.as_string()?.into_owned(), Value::parse_within(value, depth)?)))
                    .collect::<Option<_>>()?,
            ),
        })
    }

    /// Deep equality with a value in a text, without building anything from the text that does not have to be.
    pub fn equals(&self, node: Node<'_>) -> bool {
        match self {
            Value::Null => node.kind() == Kind::Null,
            Value::Bool(value) => node.kind() == Kind::Bool && (node.raw == "true") == *value,
            Value::Number(number) => node.kind() == Kind::Number && *number == Decimal::parse(node.raw),
            Value::String(text) => node.kind() == Kind::String && node.is(text),
            Value::Array(values) => {
                if node.kind() != Kind::Array {
                    return false;
                }
                let mut elements = node.elements();
                values
                    .iter()
                    .all(|value| elements.next().is_some_and(|element| value.equals(element)))
                    && elements.next().is_none()
            }
            Value::Object(fields) => {
                if node.kind() != Kind::Object {
                    return false;
                }
                let mut seen = BTreeMap::new();
                for (key, value) in node.entries() {
                    let Some(key) = key.as_string() else { return false };
                    seen.insert(key, value);
                }
                seen.len() == fields.len()
                    && fields
                        .iter()
                        .all(|(key, value)| seen.get(key.as_str()).is_some_and(|node| value.equals(*node)))
            }
        }
    }
}

/// A number by its exact decimal value: `1`, `1.0` and `10e-1` are equal, `0.1` is exactly a tenth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Without leading and trailing zeros; empty is zero.
    digits: String,
    /// The value is `0.DIGITS` times ten to this; the text itself where it does not fit.
    exponent: Result<i128, String>,
}

impl Decimal {
    /// Reads a JSON number.
    pub fn parse(text: &str) -> Decimal {
        let (negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent_text) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all: String = [whole, fraction].concat();
        let without_leading = all.trim_start_matches('0');
        let digits = without_leading.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Decimal {
                negative: false,
                digits,
                exponent: Ok(0),
            };
        }
        let point = whole.len() as i128 - (all.len() - without_leading.len()) as i128;
        let exponent = exponent_text
            .parse::<i128>()
            .ok()
            .and_then(|exponent| exponent.checked_add(point))
            .ok_or_else(|| text.to_owned());
        Decimal {
            negative,
            digits,
            exponent,
        }
    }

    /// Its whole part as an integer is written, and whether that is all of it; `None` where it has more than `max` digits.
    pub fn whole(&self, max: usize) -> Option<(String, bool)> {
        let exponent = *self.exponent.as_ref().ok()?;
        let Ok(len) = usize::try_from(exponent.max(0)) else {
            return None;
        };
        if len > max {
            return None;
        }
        let (whole, rest) = self.digits.split_at(len.min(self.digits.len()));
        if whole.is_empty() {
            return Some(("0".to_owned(), rest.is_empty()));
        }
        let sign = if self.negative { "-" } else { "" };
        Some((format!("{sign}{whole:0<len$}"), rest.is_empty()))
    }

    /// How it stands to another; `None` where the exponent of one is beyond all measure, and they are not the same.
    pub fn compare(&self, other: &Decimal) -> Option<Ordering> {
        let sign = |decimal: &Decimal| match (decimal.digits.is_empty(), decimal.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let by_sign = sign(self).cmp(&sign(other));
        if by_sign.is_ne() || self == other {
            return Some(by_sign);
        }
        let (Ok(own), Ok(others)) = (&self.exponent, &other.exponent) else {
            return None;
        };
        let by_size = own.cmp(others).then_with(|| self.digits.cmp(&other.digits));
        Some(if self.negative { by_size.reverse() } else { by_size })
    }
}
