//! Comparisons that know numbers as Close wrote them.
//!
//! A number that would be printed otherwise than it is written (`1.50`, `1e3`) is an object to minijinja, which compares objects with each
//! other only. So the operators of a compiled template are replaced, one by one, by tests of the same meaning, and Jinja's own tests of
//! these names (`is gt`, `select("lt", 5)`) by the same ones. What is no such number is compared as Jinja compares it.

use std::cmp::Ordering;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::value::Number;
use crate::json::Decimal;

/// What is looked up for each template anew.
const NOT_KEPT: u8 = !0;

/// Whether two values stand so to each other.
type Compare = fn(&Value, &Value) -> bool;

/// Each with the names that Jinja has for it; the operator is the first.
const TESTS: [(&[&str], Compare); 6] = [
    (&["==", "eq", "equalto"], |a, b| is(a, b, Ordering::is_eq, || a == b)),
    (&["!=", "ne"], |a, b| !is(a, b, Ordering::is_eq, || a == b)),
    (&["<", "lt", "lessthan"], |a, b| is(a, b, Ordering::is_lt, || a < b)),
    (&["<=", "le"], |a, b| is(a, b, Ordering::is_le, || a <= b)),
    (&[">", "gt", "greaterthan"], |a, b| is(a, b, Ordering::is_gt, || a > b)),
    (&[">=", "ge"], |a, b| is(a, b, Ordering::is_ge, || a >= b)),
];

/// Gives an environment the tests.
pub(super) fn add_all(environment: &mut Environment<'_>) {
    for (names, test) in TESTS {
        for name in names {
            environment.add_test(*name, move |a: &Value, b: &Value| {
                if a.is_undefined() || b.is_undefined() {
                    return Err(Error::from(ErrorKind::UndefinedError));
                }
                Ok(test(a, b))
            });
        }
    }
}

/// Replaces the operators of a compiled template.
pub(super) fn replace(instructions: &mut Instructions<'_>) {
    let mut at = 0;
    while let Some(instruction) = instructions.get_mut(at) {
        let test = match instruction {
            Instruction::Eq => Some("=="),
            Instruction::Ne => Some("!="),
            Instruction::Lt => Some("<"),
            Instruction::Lte => Some("<="),
            Instruction::Gt => Some(">"),
            Instruction::Gte => Some(">="),
            _ => None,
        };
        if let Some(test) = test {
            *instruction = Instruction::PerformTest(test, Some(2), NOT_KEPT);
        }
        at += 1;
    }
}

/// Whether two values stand so to each other, by their decimal values where one is a number that minijinja does not know.
fn is(a: &Value, b: &Value, wanted: fn(Ordering) -> bool, otherwise: impl Fn() -> bool) -> bool {
    let is_ours = |value: &Value| value.downcast_object_ref::<Number>().is_some();
    if !is_ours(a) && !is_ours(b) {
        return otherwise();
    }
    match (text_of(a), text_of(b)) {
        (Some(a), Some(b)) => Decimal::parse(&a).compare(&Decimal::parse(&b)).is_some_and(wanted),
        _ => otherwise(),
    }
}

/// A number as text; `None`: it is none, or none that JSON could have.
fn text_of(value: &Value) -> Option<String> {
    if let Some(number) = value.downcast_object_ref::<Number>() {
        return Some(number.0.clone());
    }
    let text = match value.kind() {
        ValueKind::Bool => u8::from(value.is_true()).to_string(),
        ValueKind::Number => value.to_string(),
        _ => return None,
    };
    (!text.contains(['n', 'N', 'i'])).then_some(text)
}
