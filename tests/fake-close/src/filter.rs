//! Webhook filters as Close documents them, read and answered here on their own: closehook's filters are compared with these,
//! so they share nothing.

use std::fmt;

use super::json::{self, Entry, Json};

/// Filters within filters, at most.
const DEPTH_MAX: usize = 64;

/// A filter. Two are equal where they ask the same, however they are written.
#[derive(Debug, Clone)]
pub struct Filter {
    /// As it was given, which is how it is shown.
    text: String,
    test: Test,
}

/// What a filter asks of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equals(Json),
    NotEquals(Json),
    IsNull,
    NonNull,
    Contains(Json),
    And(Vec<Test>),
    Or(Vec<Test>),
    Not(Box<Test>),
    Field(String, Box<Test>),
    AnyElement(Box<Test>),
}

impl Filter {
    /// Reads one. The error says what is wrong with the first part that is.
    pub fn parse(text: &str) -> Result<Filter, String> {
        Ok(Filter {
            text: text.to_owned(),
            test: Test::parse(text, 1)?,
        })
    }

    /// Whether an event passes.
    pub fn passes(&self, event: &Json) -> bool {
        self.test.holds(event)
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.test == other.test
    }
}

impl Eq for Filter {}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Test {
    fn parse(text: &str, depth: usize) -> Result<Test, String> {
        if depth > DEPTH_MAX {
            return Err(format!("filters are nested at most {DEPTH_MAX} deep"));
        }
        let entries = json::entries(text).map_err(|_| "a filter is an object with a type".to_owned())?;
        let value = |name: &str| {
            entries
                .iter()
                .rev()
                .find(|entry| entry.name == name)
                .map(|entry| entry.value)
        };
        let kind = value("type")
            .and_then(json::string)
            .ok_or("a filter has a type, which is a string")?;
        let need = |name: &str| value(name).ok_or_else(|| format!("a filter of type {kind} needs {name}"));
        let inner = || Ok::<_, String>(Box::new(Test::parse(need("filter")?, depth + 1)?));
        let several = || {
            let listed = json::elements(need("filters")?).ok_or("filters is a list")?;
            listed
                .into_iter()
                .map(|one| Test::parse(one, depth + 1))
                .collect::<Result<Vec<_>, _>>()
        };
        let (asks, keys): (Test, &[&str]) = match kind.as_str() {
            "equals" => (Test::Equals(Json::read(need("value")?)), &["value"]),
            "not_equals" => (Test::NotEquals(Json::read(need("value")?)), &["value"]),
            "contains" => (Test::Contains(Json::read(need("value")?)), &["value"]),
            "is_null" => (Test::IsNull, &[]),
            "non_null" => (Test::NonNull, &[]),
            "and" => (Test::And(several()?), &["filters"]),
            "or" => (Test::Or(several()?), &["filters"]),
            "not" => (Test::Not(inner()?), &["filter"]),
            "any_array_value" => (Test::AnyElement(inner()?), &["filter"]),
            "field_accessor" => {
                let field = json::string(need("field")?).ok_or("field is a string")?;
                (Test::Field(field, inner()?), &["field", "filter"])
            }
            unknown => return Err(format!("{unknown} is no type of filter")),
        };
        let is_known = |entry: &&Entry<'_>| entry.name == "type" || keys.contains(&entry.name.as_str());
        match entries.iter().find(|entry| !is_known(entry)) {
            Some(surplus) => Err(format!("a filter of type {kind} has no {}", surplus.key)),
            None => Ok(asks),
        }
    }

    fn holds(&self, value: &Json) -> bool {
        match self {
            Test::Equals(wanted) => value == wanted,
            Test::NotEquals(unwanted) => value != unwanted,
            Test::IsNull => *value == Json::Null,
            Test::NonNull => *value != Json::Null,
            Test::Contains(wanted) => match (value, wanted) {
                (Json::Array(elements), wanted) => elements.contains(wanted),
                (Json::Text(text), Json::Text(part)) => text.contains(part.as_str()),
                _ => false,
            },
            Test::And(tests) => tests.iter().all(|test| test.holds(value)),
            Test::Or(tests) => tests.iter().any(|test| test.holds(value)),
            Test::Not(test) => !test.holds(value),
            Test::Field(field, test) => test.holds(value.get(field).unwrap_or(&Json::Null)),
            Test::AnyElement(test) => match value {
                Json::Array(elements) => elements.iter().any(|element| test.holds(element)),
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that closehook's filters are held against too. Read as text, so that numbers stay as written.
    #[test]
    fn filters_are_read_and_answered_as_the_vectors_say() {
        let vectors = include_str!("../../fixtures/close/filter-vectors.json");
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/close/examples");
        let cases = |name| json::elements(json::get(vectors, name).unwrap()).unwrap();
        let matches = cases("matches");
        assert!(matches.len() > 1000);
        for case in matches {
            let text = |name| json::string_at(case, name).unwrap();
            let body = std::fs::read_to_string(format!("{examples}/{}.json", text("event"))).unwrap();
            let event = Json::read(json::get(&body, "event").unwrap());
            let filter = Filter::parse(json::get(case, "filter").unwrap()).unwrap();
            let expected = json::get(case, "matches").unwrap() == "true";
            assert_eq!(filter.passes(&event), expected, "{case}");
        }
        for case in cases("reject") {
            assert!(Filter::parse(json::get(case, "filter").unwrap()).is_err(), "{case}");
        }
        for case in cases("accept") {
            assert!(Filter::parse(json::get(case, "filter").unwrap()).is_ok(), "{case}");
        }
    }
}
