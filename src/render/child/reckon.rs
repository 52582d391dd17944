//! Jinja's own filters and tests that are about numbers or their order, for numbers as Close wrote them.
//!
//! What only orders or picks values gives them as they were; what calculates, gives what a number of minijinja's comes to.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters, tests};

use super::exact::{calculable, is_container, is_ours, item, plain, whole};
use super::faults::{defined, wrong};
use super::order::{Key, Keys, at_path, listed, pairs};
use super::value::{Number, Pairs, number};

/// Gives an environment the filters and tests.
pub(super) fn add_all(environment: &mut Environment<'_>) {
    environment.add_filter("min", |state: &State, values: Value, kwargs: Kwargs| {
        extreme(state, values, kwargs, Ordering::Less)
    });
    environment.add_filter("max", |state: &State, values: Value, kwargs: Kwargs| {
        extreme(state, values, kwargs, Ordering::Greater)
    });
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
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

/// The keyword arguments of what orders.
struct Asked<'k> {
    attribute: Option<&'k str>,
    has_case: bool,
    reverse: bool,
}

impl Asked<'_> {
    fn of(kwargs: &Kwargs) -> Result<Asked<'_>, Error> {
        Ok(Asked {
            attribute: kwargs.get("attribute")?,
            has_case: kwargs.get::<Option<bool>>("case_sensitive")?.unwrap_or(false),
            reverse: false,
        })
    }

    fn or_reverse(self, kwargs: &Kwargs) -> Result<Self, Error> {
        let reverse = kwargs.get::<Option<bool>>("reverse")?.unwrap_or(false);
        Ok(Asked { reverse, ..self })
    }

    fn keys<'s, 'a, 'b>(&self, state: &'s State<'a, 'b>) -> Keys<'s, 'a, 'b> {
        Keys {
            state,
            has_case: self.has_case,
        }
    }

    /// Puts what has keys in their order; what has the same one stays as it is.
    fn sort<K: Ord, V>(&self, keyed: &mut [(K, V)]) {
        keyed.sort_by(|(a, _), (b, _)| if self.reverse { b.cmp(a) } else { a.cmp(b) });
    }
}

/// The first of those that are below, or above, all others.
fn extreme(state: &State, values: Value, kwargs: Kwargs, wanted: Ordering) -> Result<Value, Error> {
    let Some(all) = listed(&values) else {
        return match wanted {
            Ordering::Less => filters::min(state, values, kwargs),
            _ => filters::max(state, values, kwargs),
        };
    };
    let asked = Asked::of(&kwargs)?;
    let keys = asked.keys(state);
    let mut found = None::<(Key, Value)>;
    for value in all {
        let key = keys.of(&value, asked.attribute, &Value::UNDEFINED)?;
        if found.as_ref().is_none_or(|(before, _)| key.cmp(before) == wanted) {
            found = Some((key, value));
        }
    }
    kwargs.assert_all_used()?;
    Ok(found.map_or(Value::UNDEFINED, |(_, value)| value))
}

fn sort(state: &State, values: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let Some(all) = listed(&values) else {
        return filters::sort(state, values, kwargs);
    };
    let asked = Asked::of(&kwargs)?.or_reverse(&kwargs)?;
    let keys = asked.keys(state);
    keys.pay_for(all.len())?;
    let attributes = asked.attribute.unwrap_or_default().split(',').map(str::trim);
    let attributes: Vec<&str> = attributes.filter(|attribute| !attribute.is_empty()).collect();
    let key = |value: &Value| -> Result<Vec<Key>, Error> {
        if attributes.is_empty() {
            return Ok(vec![keys.of(value, None, &Value::UNDEFINED)?]);
        }
        let of = |attribute: &&str| keys.of(value, Some(attribute), &Value::UNDEFINED);
        attributes.iter().map(of).collect()
    };
    let keyed: Result<Vec<(Vec<Key>, Value)>, Error> = all.into_iter().map(|value| Ok((key(&value)?, value))).collect();
    let mut keyed = keyed?;
    asked.sort(&mut keyed);
    kwargs.assert_all_used()?;
    Ok(keyed.into_iter().map(|(_, value)| value).collect())
}

fn unique(state: &State, values: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let Some(all) = listed(&values) else {
        return filters::unique(state, values, kwargs);
    };
    let asked = Asked::of(&kwargs)?;
    let keys = asked.keys(state);
    keys.pay_for(all.len())?;
    let (mut found, mut met) = (Vec::new(), BTreeSet::new());
    for value in all {
        if met.insert(keys.of(&value, asked.attribute, &Value::UNDEFINED)?) {
            found.push(value);
        }
    }
    kwargs.assert_all_used()?;
    Ok(Value::from(found))
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

/// Of each group the grouper is what its first value has.
fn groupby(state: &State, values: Value, attribute: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    defined(&values, "groupby")?;
    let Some(all) = listed(&values) else {
        return filters::groupby(values, attribute, kwargs);
    };
    let default = kwargs.get::<Option<Value>>("default")?.unwrap_or_default();
    let asked = Asked::of(&kwargs)?;
    let Some(attribute) = attribute.or(asked.attribute) else {
        return filters::groupby(values, attribute, kwargs);
    };
    let keys = asked.keys(state);
    keys.pay_for(all.len())?;
    let key =
        |value: Value| -> Result<(Key, Value), Error> { Ok((keys.of(&value, Some(attribute), &default)?, value)) };
    let keyed: Result<Vec<(Key, Value)>, Error> = all.into_iter().map(key).collect();
    let mut keyed = keyed?;
    asked.sort(&mut keyed);
    kwargs.assert_all_used()?;
    let group = |group: &[(Key, Value)]| {
        let first = group.first().and_then(|(_, value)| at_path(value, attribute));
        let list: Vec<Value> = group.iter().map(|(_, value)| value.clone()).collect();
        Value::from_object(Group {
            grouper: first.unwrap_or_else(|| default.clone()),
            list: Value::from(list),
        })
    };
    let groups = keyed.chunk_by(|(a, _), (b, _)| a == b);
    Ok(groups.map(group).collect())
}

fn dictsort(state: &State, values: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    defined(values, "dictsort")?;
    if values.kind() != ValueKind::Map {
        return filters::dictsort(values, kwargs);
    }
    let by_value = kwargs.get::<Option<&str>>("by")? == Some("value");
    let asked = Asked {
        attribute: None,
        has_case: kwargs.get::<Option<bool>>("case_sensitive")?.unwrap_or(false),
        reverse: false,
    };
    let asked = asked.or_reverse(&kwargs)?;
    let keys = asked.keys(state);
    let pairs = pairs(values)?;
    keys.pay_for(pairs.len())?;
    let key = |(name, value): (Value, Value)| -> Result<(Key, (Value, Value)), Error> {
        let key = keys.of(if by_value { &value } else { &name }, None, &Value::UNDEFINED)?;
        Ok((key, (name, value)))
    };
    let keyed: Result<Vec<_>, Error> = pairs.into_iter().map(key).collect();
    let mut keyed = keyed?;
    asked.sort(&mut keyed);
    kwargs.assert_all_used()?;
    let pair = |(_, (name, value))| Value::from_object(Tuple::from([name, value]));
    Ok(keyed.into_iter().map(pair).collect())
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
