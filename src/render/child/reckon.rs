//! Jinja's own filters and tests that are about numbers or their order, for numbers as Close wrote them.
//!
//! What only orders or picks values gives them as they were; what calculates, gives what a number of minijinja's comes to.

use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters, tests};

use super::exact::{calculable, exact, is_container, is_ours, item, plain, seen, whole};
use super::faults::{defined, wrong};
use super::value::{Number, Pairs, number};

/// Gives an environment the filters and tests.
pub(super) fn add_all(environment: &mut Environment<'_>) {
    environment.add_filter("min", |state: &State, values: Value, kwargs: Kwargs| {
        filters::min(state, ordered(values), kwargs).map(|value| seen(&value))
    });
    environment.add_filter("max", |state: &State, values: Value, kwargs: Kwargs| {
        filters::max(state, ordered(values), kwargs).map(|value| seen(&value))
    });
    environment.add_filter("sort", |state: &State, values: Value, kwargs: Kwargs| {
        filters::sort(state, ordered(values), kwargs).and_then(|sorted| all_seen(&sorted))
    });
    environment.add_filter("unique", |state: &State, values: Value, kwargs: Kwargs| {
        filters::unique(state, ordered(values), kwargs).and_then(|unique| all_seen(&unique))
    });
    environment.add_filter("groupby", groupby);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("sum", sum);
    environment.add_filter("abs", abs);
    environment.add_filter(
        "round",
        |value: &Value, precision: Option<i32>, method: Option<&str>, kwargs: Kwargs| {
            filters::round(calculable(value)?, precision, method, kwargs)
        },
    );
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("format", format);

    environment.add_test("number", |value: &Value| is_ours(value) || tests::is_number(value));
    for name in ["integer", "int"] {
        environment.add_test(name, |value: &Value| match written_as_integer(value) {
            Some(is_integer) => is_integer,
            None => tests::is_integer(value),
        });
    }
    environment.add_test("float", |value: &Value| match written_as_integer(value) {
        Some(is_integer) => !is_integer,
        None => tests::is_float(value),
    });
    environment.add_test("odd", |value: &Value| is_odd(value) == Some(true));
    environment.add_test("even", |value: &Value| is_odd(value) == Some(false));
    environment.add_test("divisibleby", |value: &Value, other: &Value| {
        let (value, other) = (calculable(value)?, calculable(other)?);
        let is_zero = matches!(other.kind(), ValueKind::Number | ValueKind::Bool) && !other.is_true();
        if is_zero && tests::is_number(&value) {
            return Err(wrong("nothing is divisible by zero"));
        }
        Ok(tests::is_divisibleby(&value, &other))
    });
}

/// Whether a number of ours is written as an integer is; `None`: it is none.
fn written_as_integer(value: &Value) -> Option<bool> {
    let written = value.downcast_object_ref::<Number>()?;
    Some(!written.0.contains(['.', 'e', 'E']))
}

/// Values that are to be ordered, such that numbers among them, or in them, are by what they are worth.
fn ordered(values: Value) -> Value {
    let is_list = matches!(values.kind(), ValueKind::Seq | ValueKind::Iterable);
    let matters = |value: Value| is_ours(&value) || is_container(&value);
    let any_matters = || values.try_iter().is_ok_and(|mut all| all.any(matters));
    if is_list && any_matters() {
        exact(&values)
    } else {
        values
    }
}

fn all_seen(values: &Value) -> Result<Value, Error> {
    let all: Vec<Value> = values.try_iter()?.map(|value| seen(&value)).collect();
    Ok(Value::from(all))
}

/// A group: its values, and what they have in common. It is a pair, or has names.
#[derive(Debug)]
struct Group {
    grouper: Value,
    list: Value,
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_usize(), key.as_str()) {
            (Some(0), None) | (None, Some("grouper")) => Some(self.grouper.clone()),
            (Some(1), None) | (None, Some("list")) => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

fn groupby(values: Value, attribute: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    defined(&values, "groupby")?;
    let groups = filters::groupby(ordered(values), attribute, kwargs)?;
    let part = |group: &Value, index: usize| group.get_item(&Value::from(index));
    let group = |group: Value| -> Result<Value, Error> {
        Ok(Value::from_object(Group {
            grouper: seen(&part(&group, 0)?),
            list: all_seen(&part(&group, 1)?)?,
        }))
    };
    let groups: Result<Vec<Value>, Error> = groups.try_iter()?.map(group).collect();
    groups.map(Value::from)
}

fn dictsort(values: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    defined(values, "dictsort")?;
    if values.kind() != ValueKind::Map {
        return filters::dictsort(values, kwargs);
    }
    let pairs = filters::dictsort(&exact(values), kwargs)?;
    let pair = |pair: Value| -> Result<Value, Error> {
        let (key, value) = (pair.get_item(&Value::from(0))?, pair.get_item(&Value::from(1))?);
        Ok(Value::from_object(Tuple::from([key, seen(&value)])))
    };
    let pairs: Result<Vec<Value>, Error> = pairs.try_iter()?.map(pair).collect();
    pairs.map(Value::from)
}

fn sum(
    state: &State,
    values: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named = || kwargs.get::<Option<Value>>("start").ok().flatten();
    let begin = start.clone().or_else(named);
    if begin.is_some_and(|begin| is_container(&begin)) {
        // Lists, which become one.
        return filters::sum(state, values, attribute, start, kwargs);
    }
    let values = if is_container(&values) { plain(&values) } else { values };
    let start = start.or_else(named).map(|start| calculable(&start)).transpose()?;
    let sum = filters::sum(state, values, attribute, start, kwargs)?;
    if f64::try_from(sum.clone()).is_ok_and(f64::is_infinite) {
        return Err(wrong("it is too large to be calculated with"));
    }
    Ok(sum)
}

/// A sign is taken away, whatever is behind it.
fn abs(value: &Value) -> Result<Value, Error> {
    match value.downcast_object_ref::<Number>() {
        Some(written) => Ok(number(written.0.strip_prefix('-').unwrap_or(&written.0))),
        None => filters::abs(value.clone()),
    }
}

/// The digits before the point are all there, as far as there are integers.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let Some(written) = value.downcast_object_ref::<Number>() else {
        return filters::int(state, value, default, base, kwargs);
    };
    whole(&written.0)
        .map(|(whole, _)| number(&whole))
        .ok_or_else(|| wrong("it is too large to be calculated with"))
}

fn float(state: &State, value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let value = calculable(value)?;
    filters::float(state, &value, default, kwargs)
}

/// Whether a whole number is odd; `None`: it is not whole, or no number.
fn is_odd(value: &Value) -> Option<bool> {
    let Some(written) = value.downcast_object_ref::<Number>() else {
        let (odd, even) = (tests::is_odd(value.clone()), tests::is_even(value.clone()));
        return (odd || even).then_some(odd);
    };
    let (whole, _) = whole(&written.0).filter(|(_, is_all)| *is_all)?;
    let last = whole.bytes().next_back()?;
    Some(last % 2 == 1)
}

/// What a conversion makes of its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Text, which is as it was written.
    Text,
    Integer,
    Number,
}

/// Numbers become such as the conversions know that take numbers; as texts they stay as they are.
fn format(state: &mut State, template: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let conversions = template.as_str().map(conversions).unwrap_or_default();
    let all_named = conversions.iter().filter_map(|(place, _)| match place {
        Place::Named(name) => Some(*name),
        Place::At(_) => None,
    });
    let fit = |value: Value, place: &Place<'_>| {
        let mut wanted = conversions
            .iter()
            .filter(|(of, _)| of == place)
            .map(|(_, wanted)| *wanted);
        let Some(written) = value.downcast_object_ref::<Number>() else {
            return Ok(value);
        };
        let integer = || {
            whole(&written.0)
                .filter(|(_, is_all)| *is_all)
                .map(|(whole, _)| number(&whole))
        };
        match wanted.find(|wanted| *wanted != Wanted::Text) {
            None => Ok(value),
            Some(Wanted::Integer) => integer().map_or_else(|| calculable(&value), Ok),
            Some(_) => calculable(&value),
        }
    };
    let mut fitting = Vec::new();
    for (index, value) in arguments.into_values().into_iter().enumerate() {
        if value.kind() == ValueKind::Map && all_named.clone().next().is_some() {
            let found = all_named
                .clone()
                .filter_map(|name| Some((name, item(&value, &Value::from(name))?)));
            let pairs = found.map(|(name, value)| Ok((name.to_owned(), fit(value, &Place::Named(name))?)));
            let pairs: Result<Vec<(String, Value)>, Error> = pairs.collect();
            fitting.push(Value::from_object(Pairs(pairs?)));
        } else {
            fitting.push(fit(value, &Place::At(index))?);
        }
    }
    filters::format(
        state,
        template,
        Rest(fitting.into_iter().map(ValueOrKwargs::from).collect()),
    )
}

/// Which argument a conversion takes.
#[derive(Debug, PartialEq, Eq)]
enum Place<'t> {
    At(usize),
    Named(&'t str),
}

/// The arguments that a format asks for, and as what.
fn conversions(text: &str) -> Vec<(Place<'_>, Wanted)> {
    let mut found = Vec::new();
    let mut next = 0;
    let mut take = || {
        next += 1;
        Place::At(next - 1)
    };
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once('%') {
        rest = behind;
        let mut name = None;
        if let Some((inner, behind)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            (name, rest) = (Some(inner), behind);
        }
        let is_of_it = |c: char| matches!(c, '#' | '-' | '+' | ' ' | '.' | 'h' | 'l' | 'L') || c.is_ascii_digit();
        loop {
            let mut letters = rest.chars();
            let Some(letter) = letters.next() else { return found };
            rest = letters.as_str();
            let wanted = match letter {
                // A width, or a precision.
                '*' => {
                    found.push((take(), Wanted::Integer));
                    continue;
                }
                '%' => break,
                letter if is_of_it(letter) => continue,
                's' | 'r' | 'a' => Wanted::Text,
                'd' | 'i' | 'u' | 'o' | 'x' | 'X' | 'c' => Wanted::Integer,
                _ => Wanted::Number,
            };
            found.push((name.map_or_else(&mut take, Place::Named), wanted));
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests_of_it {
    use super::*;

    #[test]
    fn what_a_format_asks_for_is_known() {
        use Place::{At, Named};
        use Wanted::{Integer, Number, Text};
        assert_eq!(
            conversions("%s %% %5.2f %*.*d %-10s %c %"),
            [
                (At(0), Text),
                (At(1), Number),
                (At(2), Integer),
                (At(3), Integer),
                (At(4), Integer),
                (At(5), Text),
                (At(6), Integer)
            ]
        );
        assert_eq!(
            conversions("%(a)s %(b)05d"),
            [(Named("a"), Text), (Named("b"), Integer)]
        );
        assert!(conversions("no 100%").is_empty());
    }
}
