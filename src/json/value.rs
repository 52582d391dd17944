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
    /// The value is `0.DIGITS` times ten to this.
    exponent: Exponent,
}

/// A whole number of whatever size; those that are no small ones are beyond all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exponent {
    Small(i128),
    /// Digits without leading zeros.
    Huge {
        negative: bool,
        digits: String,
    },
}

/// Digits that are added at a time.
const PIECE: usize = 18;

impl Exponent {
    /// What is written, and `more` of far fewer than [`PIECE`] digits.
    fn read(text: &str, more: i128) -> Exponent {
        if let Some(small) = text.parse::<i128>().ok().and_then(|small| small.checked_add(more)) {
            return Exponent::Small(small);
        }
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let unsigned = unsigned.trim_start_matches('0');
        // It is longer than that, or it were a small one.
        let (high, low) = unsigned.split_at(unsigned.len().saturating_sub(PIECE));
        let one = 10_i128.pow(PIECE as u32);
        let sum = low.parse::<i128>().unwrap_or_default() + if negative { -more } else { more };
        let high = carried(high, sum.div_euclid(one));
        let digits = format!("{high}{:0PIECE$}", sum.rem_euclid(one));
        let digits = digits.trim_start_matches('0').to_owned();
        let sign = if negative { "-" } else { "" };
        match format!("{sign}{digits}").parse() {
            Ok(small) => Exponent::Small(small),
            Err(_) => Exponent::Huge { negative, digits },
        }
    }

    fn compare(&self, other: &Exponent) -> Ordering {
        match (self, other) {
            (Exponent::Small(own), Exponent::Small(others)) => own.cmp(others),
            (Exponent::Small(_), Exponent::Huge { negative, .. }) if *negative => Ordering::Greater,
            (Exponent::Small(_), Exponent::Huge { .. }) => Ordering::Less,
            (Exponent::Huge { .. }, Exponent::Small(_)) => other.compare(self).reverse(),
            (
                Exponent::Huge { negative, digits },
                Exponent::Huge {
                    negative: other_negative,
                    digits: other_digits,
                },
            ) => {
                let by_size = || {
                    digits
                        .len()
                        .cmp(&other_digits.len())
                        .then_with(|| digits.cmp(other_digits))
                };
                match (negative, other_negative) {
                    (false, false) => by_size(),
                    (true, true) => by_size().reverse(),
                    (false, true) => Ordering::Greater,
                    (true, false) => Ordering::Less,
                }
            }
        }
    }
}

/// Digits, of which the number is large, and one more or one less.
fn carried(digits: &str, carry: i128) -> String {
    let (from, to) = match carry {
        0 => return digits.to_owned(),
        1.. => ('9', '0'),
        _ => ('0', '9'),
    };
    let kept = digits.trim_end_matches(from);
    let turned = to.to_string().repeat(digits.len() - kept.len());
    let (rest, last) = kept.split_at(kept.len().saturating_sub(1));
    let last: i128 = last.parse().unwrap_or_default();
    format!("{rest}{}{turned}", last + carry.signum())
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
                exponent: Exponent::Small(0),
            };
        }
        let point = whole.len() as i128 - (all.len() - without_leading.len()) as i128;
        let exponent = Exponent::read(exponent_text, point);
        Decimal {
            negative,
            digits,
            exponent,
        }
    }

    /// Its whole part as an integer is written, and whether that is all of it; `None` where it has more than `max` digits.
    pub fn whole(&self, max: usize) -> Option<(String, bool)> {
        let exponent = match self.exponent {
            Exponent::Small(exponent) => exponent,
            Exponent::Huge { negative: true, .. } => 0,
            Exponent::Huge { .. } => return None,
        };
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

    /// How it stands to another.
    pub fn compare(&self, other: &Decimal) -> Ordering {
        let sign = |decimal: &Decimal| match (decimal.digits.is_empty(), decimal.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let by_sign = sign(self).cmp(&sign(other));
        if by_sign.is_ne() || self == other {
            return by_sign;
        }
        let by_size = self.exponent.compare(&other.exponent);
        let by_size = by_size.then_with(|| self.digits.cmp(&other.digits));
        if self.negative { by_size.reverse() } else { by_size }
    }
}
