//! Values as they are compared and as they are calculated with, where numbers are involved that minijinja does not know.
//!
//! A [`Number`] prints as Close wrote it, and is an object to minijinja, which orders it behind every other number. So where it matters
//! minijinja is given a view of its values: in an exact one every number, however deep, is compared by its decimal value, and in a plain
//! one every number is one that can be calculated with. Views never stay: what comes out of them is what went in.

use std::fmt;
use std::sync::Arc;

use minijinja::Error;
use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Value, ValueKind};

use super::faults::wrong;
use super::value::{Json, Number};
use crate::json::Decimal;

/// Digits of a number that is written out.
const DIGITS_MAX: usize = 400;

/// A value looked at in one of two ways.
struct View {
    of: Value,
    /// What it is worth, if it is a number and the view is exact.
    worth: Option<Decimal>,
    look: fn(&Value) -> Value,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.of)
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match self.of.kind() {
            ValueKind::Map => ObjectRepr::Map,
            ValueKind::Seq => ObjectRepr::Seq,
            ValueKind::Iterable => ObjectRepr::Iterable,
            _ => ObjectRepr::Plain,
        }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        item(&self.of, key).map(|value| (self.look)(&value))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let Ok(values) = self.of.try_iter() else {
            return Enumerator::NonEnumerable;
        };
        // The keys of a map are its own.
        Enumerator::Values(if self.of.kind() == ValueKind::Map {
            values.collect()
        } else {
            values.map(|value| (self.look)(&value)).collect()
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.of.len()
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        let other = other.downcast_ref::<View>()?;
        if let (Some(own), Some(others)) = (&self.worth, &other.worth) {
            return Some(own.compare(others));
        }
        let (own, others) = (
            self.of.downcast_object_ref::<Json>()?,
            other.of.downcast_object_ref::<Json>()?,
        );
        own.reads_as(others).then_some(std::cmp::Ordering::Equal)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.of)
    }
}

/// What is in a value under a key.
pub(super) fn item(of: &Value, key: &Value) -> Option<Value> {
    of.get_item(key).ok().filter(|item| !item.is_undefined())
}

/// Whether it is a number that minijinja does not know.
pub(super) fn is_ours(value: &Value) -> bool {
    let is_seen = || {
        value
            .downcast_object_ref::<View>()
            .is_some_and(|view| view.worth.is_some())
    };
    value.downcast_object_ref::<Number>().is_some() || is_seen()
}

/// Whether there may be numbers in it.
pub(super) fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable)
}

/// A number as text; `None`: it is none, or none that JSON could have.
pub(super) fn text_of(value: &Value) -> Option<String> {
    if let Some(number) = value.downcast_object_ref::<Number>() {
        return Some(number.0.clone());
    }
    if let Some(view) = value.downcast_object_ref::<View>() {
        return text_of(&view.of);
    }
    let text = match value.kind() {
        ValueKind::Bool => u8::from(value.is_true()).to_string(),
        ValueKind::Number => value.to_string(),
        _ => return None,
    };
    (!text.contains(['n', 'N', 'i'])).then_some(text)
}

/// The value with every number in it compared by what it is worth.
pub(super) fn exact(value: &Value) -> Value {
    let worth = text_of(value).map(|text| Decimal::parse(&text));
    if worth.is_none() && !is_container(value) {
        return value.clone();
    }
    Value::from_object(View {
        of: value.clone(),
        worth,
        look: exact,
    })
}

/// The value with every number in it one to calculate with; one that is too large for that is infinite.
pub(super) fn plain(value: &Value) -> Value {
    if let Some(number) = value.downcast_object_ref::<Number>() {
        return native(&number.0);
    }
    if !is_container(value) {
        return value.clone();
    }
    Value::from_object(View {
        of: value.clone(),
        worth: None,
        look: plain,
    })
}

/// The number to calculate with in place of one that minijinja does not know; any other value is itself.
pub(super) fn calculable(value: &Value) -> Result<Value, Error> {
    let Some(number) = value.downcast_object_ref::<Number>() else {
        return Ok(value.clone());
    };
    let native = native(&number.0);
    if f64::try_from(native.clone()).is_ok_and(f64::is_infinite) {
        return Err(wrong("it is too large to be calculated with"));
    }
    Ok(native)
}

/// What is written without a point and an exponent is an integer, as far as there are any.
fn native(text: &str) -> Value {
    if !text.contains(['.', 'e', 'E']) {
        if let Ok(whole) = text.parse::<i128>() {
            return Value::from(whole);
        }
        if let Ok(whole) = text.parse::<u128>() {
            return Value::from(whole);
        }
    }
    Value::from(text.parse::<f64>().unwrap_or(f64::NAN))
}

/// The whole part of a number as an integer is written, and whether that is all of it.
pub(super) fn whole(text: &str) -> Option<(String, bool)> {
    Decimal::parse(text).whole(DIGITS_MAX)
}

/// Two values as they are to be compared with each other, where they are not as minijinja does it itself.
pub(super) fn comparable(a: &Value, b: &Value) -> Option<(Value, Value)> {
    let has_ours = is_ours(a) || is_ours(b);
    let are_numbers = || text_of(a).is_some() && text_of(b).is_some();
    let are_containers = || is_container(a) && is_container(b) && a.is_tuple() == b.is_tuple();
    ((has_ours && are_numbers()) || are_containers()).then(|| (exact(a), exact(b)))
}

/// The same of what may be in something, and of that.
pub(super) fn findable(needle: &Value, place: &Value) -> Option<(Value, Value)> {
    match place.kind() {
        ValueKind::Map if is_ours(needle) && item(place, needle).is_none() => Some((plain(needle), place.clone())),
        ValueKind::Seq | ValueKind::Iterable if text_of(needle).is_some() || is_container(needle) => {
            Some((exact(needle), exact(place)))
        }
        _ => None,
    }
}
