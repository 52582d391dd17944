//! The filters that templates have beside Jinja's own.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::exact::{text_of, whole};
use super::faults::{defined, wrong};
use super::named::{KnownNames, named};
use super::value::push_json;
use crate::json;

/// Gives an environment the filters of the contract.
pub(super) fn add_all(environment: &mut Environment<'_>, names: &Arc<KnownNames>) {
    let names = names.clone();
    environment.add_filter("named", move |state: &State, value: &Value| named(state, value, &names));
    environment.add_filter("lead_url", lead_url);
    environment.add_filter("money", money);
    environment.add_filter("was", was);
    environment.add_filter("ago", |value: &Value| ago(value, Timestamp::now()));
    environment.add_filter("tojson", |value: &Value, indent: Option<Value>, named: Kwargs| {
        tojson(value, indent.as_ref(), &named)
    });
}

/// JSON; `indent`, whatever it says, gives it lines.
fn tojson(value: &Value, indent: Option<&Value>, named: &Kwargs) -> Result<String, Error> {
    let mut text = String::new();
    push_json(&mut text, value, 0)?;
    let lines = match indent {
        Some(indent) => indent.is_true(),
        None => named
            .get::<Option<Value>>("indent")?
            .is_some_and(|indent| indent.is_true()),
    };
    named.assert_all_used()?;
    Ok(if lines { json::indented(&text) } else { text })
}

/// The page of a lead in Close; of its id, or of whatever has a `lead_id`.
fn lead_url(value: &Value) -> Result<String, Error> {
    defined(value, "lead_url")?;
    let id = if value.kind() == ValueKind::Map {
        value.get_attr("lead_id")?
    } else {
        value.clone()
    };
    let id = id.as_str().filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| wrong("lead_url wants the id of a lead"))?;
    let mut url = "https://app.close.com/lead/".to_owned();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(byte.into());
        } else {
            // Writing to a String can't fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url.push('/');
    Ok(url)
}

/// Whole cents as an amount, exactly, with its currency if one is given: `123456|money("USD")` is `1,234.56 USD`.
fn money(value: &Value, currency: Option<Value>) -> Result<String, Error> {
    defined(value, "money")?;
    let written = text_of(value).filter(|_| value.kind() != ValueKind::Bool);
    let is_all = |(whole, is_all): (String, bool)| is_all.then_some(whole);
    let written = written.and_then(|written| whole(&written)).and_then(is_all);
    let text = written.unwrap_or_else(|| value.to_string());
    let (sign, digits) = text
        .strip_prefix('-')
        .map_or(("", text.as_str()), |digits| ("-", digits));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("money wants a whole number of cents"));
    }
    let digits = format!("{:0>3}", digits.trim_start_matches('0'));
    let (whole, cents) = digits.split_at(digits.len() - 2);
    let mut amount = sign.to_owned();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            amount.push(',');
        }
        amount.push(digit);
    }
    amount.push('.');
    amount.push_str(cents);
    match currency {
        Some(currency) if currency.is_undefined() => Err(Error::new(
            ErrorKind::UndefinedError,
            "money was given an undefined currency",
        )),
        Some(currency) if !currency.is_none() => Ok(format!("{amount} {currency}")),
        _ => Ok(amount),
    }
}

/// What a field was before: `"status_label"|was`. A dot leads into an object, where there is no field of the whole name.
fn was(state: &State, name: &str) -> Value {
    let before = state.lookup("previous_data").unwrap_or_default();
    let found = |value: &Value, key: &str| value.get_attr(key).ok().filter(|value| !value.is_undefined());
    if let Some(whole) = found(&before, name) {
        return whole;
    }
    let step = |value: Option<Value>, key: &str| found(&value?, key);
    name.split('.').fold(Some(before), step).unwrap_or(Value::UNDEFINED)
}

/// How long ago a date is, in words.
fn ago(value: &Value, now: Timestamp) -> Result<String, Error> {
    defined(value, "ago")?;
    let text = value.as_str().unwrap_or_default();
    let at = moment(text).ok_or_else(|| wrong("ago wants a date like 2024-02-15T10:00:00"))?;
    let seconds = now.as_second() - at.as_second();
    let (past, distance) = (seconds >= 0, seconds.unsigned_abs());
    let units = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
    ];
    let Some((length, unit)) = units.into_iter().find(|(length, _)| distance >= *length) else {
        return Ok("just now".to_owned());
    };
    let count = distance / length;
    let plural = if count == 1 { "" } else { "s" };
    Ok(if past {
        format!("{count} {unit}{plural} ago")
    } else {
        format!("in {count} {unit}{plural}")
    })
}

/// A date as Close writes it: without an offset it is UTC's, without a time the day's beginning.
fn moment(text: &str) -> Option<Timestamp> {
    let utc = |civil: jiff::civil::DateTime| jiff::tz::TimeZone::UTC.to_timestamp(civil).ok();
    text.parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<jiff::civil::DateTime>().ok().and_then(utc))
        .or_else(|| Some(text.parse::<jiff::civil::Date>().ok()?.at(0, 0, 0, 0)).and_then(utc))
}
