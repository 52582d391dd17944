//! Operators and tests that know numbers as Close wrote them.
//!
//! A number that would be printed otherwise than it is written (`1.50`, `1e3`) is an object to minijinja, which compares objects with each
//! other only, and calculates with none. So the operators of a compiled template are replaced, one by one: those that compare two values by
//! tests of the same meaning, which Jinja's own tests of these names (`is gt`, `select("lt", 5)`) are replaced by too; and in front of the
//! others their operands are made such as minijinja knows. That takes some instructions, which stand behind the template's own, and jump back.
//! What is no such number is compared and calculated with as Jinja does it.

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use super::exact::{calculable, comparable, findable, is_ours, item};

/// What is looked up for each template anew.
const NOT_KEPT: u8 = !0;

/// Filters that no template can name.
const CALCULABLE: &str = "$calculable";
const CHAINED: &str = "$chained";
const FINDABLE: &str = "$findable";
const KEY: &str = "$key";

/// Whether two values stand so to each other.
type Compare = fn(&Value, &Value) -> bool;

/// Each with the names that Jinja has for it; the operator is the first.
const TESTS: [(&[&str], Compare); 6] = [
    (&["==", "eq", "equalto"], |a, b| a == b),
    (&["!=", "ne"], |a, b| a != b),
    (&["<", "lt", "lessthan"], |a, b| a < b),
    (&["<=", "le"], |a, b| a <= b),
    (&[">", "gt", "greaterthan"], |a, b| a > b),
    (&[">=", "ge"], |a, b| a >= b),
];

/// Gives an environment the tests, and what is done to operands.
pub(super) fn add_all(environment: &mut Environment<'_>) {
    for (names, test) in TESTS {
        for name in names {
            environment.add_test(*name, move |a: &Value, b: &Value| {
                if a.is_undefined() || b.is_undefined() {
                    return Err(Error::from(ErrorKind::UndefinedError));
                }
                Ok(match comparable(a, b) {
                    Some((a, b)) => test(&a, &b),
                    None => test(a, b),
                })
            });
        }
    }
    environment.add_test(
        "in",
        |state: &minijinja::State<'_, '_>, a: &Value, b: &Value| match findable(a, b) {
            Some((a, b)) => minijinja::tests::is_in(state, &a, &b),
            None => minijinja::tests::is_in(state, a, b),
        },
    );
    environment.add_filter(CALCULABLE, calculable);
    // Of what they give the first comes to lie on top.
    let both = |(a, b): (Value, Value)| Value::from(vec![b, a]);
    environment.add_filter(CHAINED, move |a: &Value, b: &Value| {
        let views = comparable(a, b).or_else(|| findable(a, b));
        both(views.unwrap_or_else(|| (a.clone(), b.clone())))
    });
    environment.add_filter(FINDABLE, move |a: &Value, b: &Value| {
        both(findable(a, b).unwrap_or_else(|| (a.clone(), b.clone())))
    });
    environment.add_filter(KEY, move |of: &Value, key: &Value| -> Result<Value, Error> {
        let is_known = !is_ours(key) || item(of, key).is_some();
        let key = if is_known { key.clone() } else { calculable(key)? };
        Ok(both((of.clone(), key)))
    });
}

/// Replaces the operators of a compiled template.
pub(super) fn replace(instructions: &mut Instructions<'_>) {
    let mut len = 0;
    while instructions.get(len).is_some() {
        len += 1;
    }
    let mut has_more = false;
    for at in 0..len {
        let Some(instruction) = instructions.get(at).cloned() else {
            return;
        };
        if let Some(test) = test_of(&instruction) {
            put(instructions, at, Instruction::PerformTest(test, Some(2), NOT_KEPT));
            continue;
        }
        // To a key that the template says itself there is nothing to be done.
        let has_known_key = at > 0 && matches!(instructions.get(at - 1), Some(Instruction::LoadConst(_)));
        if has_known_key && matches!(instruction, Instruction::GetItem) {
            continue;
        }
        let Some(before) = before(&instruction) else {
            continue;
        };
        if !has_more {
            // The template's own end here.
            instructions.add(Instruction::Return);
            has_more = true;
        }
        let (line, span) = (instructions.get_line(at), instructions.get_span(at));
        let mut first = None;
        for instruction in before.into_iter().chain([instruction, Instruction::Jump(at + 1)]) {
            let line = line.and_then(|line| u16::try_from(line).ok());
            let index = match (span, line) {
                (Some(span), _) => instructions.add_with_span(instruction, span),
                (None, Some(line)) => instructions.add_with_line(instruction, line),
                (None, None) => instructions.add(instruction),
            };
            first.get_or_insert(index);
        }
        if let Some(first) = first {
            put(instructions, at, Instruction::Jump(first));
        }
    }
}

fn put<'s>(instructions: &mut Instructions<'s>, at: u32, instruction: Instruction<'s>) {
    if let Some(place) = instructions.get_mut(at) {
        *place = instruction;
    }
}

/// The test that is an operator.
fn test_of(instruction: &Instruction<'_>) -> Option<&'static str> {
    Some(match instruction {
        Instruction::Eq => "==",
        Instruction::Ne => "!=",
        Instruction::Lt => "<",
        Instruction::Lte => "<=",
        Instruction::Gt => ">",
        Instruction::Gte => ">=",
        _ => return None,
    })
}

/// What is done to the operands of an operator before it.
fn before<'s>(instruction: &Instruction<'_>) -> Option<Vec<Instruction<'s>>> {
    let both = |filter| {
        vec![
            Instruction::ApplyFilter(filter, Some(2), NOT_KEPT),
            Instruction::UnpackList(2),
        ]
    };
    let one = || Instruction::ApplyFilter(CALCULABLE, Some(1), NOT_KEPT);
    Some(match instruction {
        Instruction::Add
        | Instruction::Sub
        | Instruction::Mul
        | Instruction::Div
        | Instruction::IntDiv
        | Instruction::Rem
        | Instruction::Pow => vec![one(), Instruction::Swap, one(), Instruction::Swap],
        Instruction::Neg => vec![one()],
        Instruction::In => both(FINDABLE),
        // One of several comparisons in a chain, whichever it is.
        Instruction::CompareAndPreserve(_) => both(CHAINED),
        Instruction::GetItem => both(KEY),
        _ => return None,
    })
}
