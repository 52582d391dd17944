//! Close's webhook-filter language: parse, evaluate, explain.
//!
//! A filter is a JSON tree evaluated against the event object. Where Close's documentation is silent: a missing key reads as
//! null, as does any accessor on something that is no object; equality is deep, without coercion, numbers by exact decimal
//! value; `and` of nothing matches, `or` of nothing does not.

mod explain;
mod parse;

use std::fmt;

use crate::config::Fault;
use crate::json::{self, Doc, Kind, Node, Value};
pub use explain::{Clock, Trace};
use parse::Parser;

/// Filters nest at most this deep.
pub const DEPTH_MAX: usize = 64;

const TYPES: [&str; 10] = [
    "equals",
    "not_equals",
    "is_null",
    "non_null",
    "contains",
    "and",
    "or",
    "not",
    "field_accessor",
    "any_array_value",
];

/// A valid filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Test);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equals(Literal),
    NotEquals(Literal),
    IsNull,
    NonNull,
    Contains(Literal),
    And(Vec<Test>),
    Or(Vec<Test>),
    Not(Box<Test>),
    Field(String, Box<Test>),
    AnyElement(Box<Test>),
}

/// A value and the text it was given as.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Literal {
    value: Value,
    text: String,
}

impl Filter {
    /// Parses a filter from JSON text. Every fault is reported, with its place relative to the filter
    /// (`filters[0].filter.type`; empty for the filter as a whole).
    pub fn parse(text: &str) -> Result<Filter, Vec<Fault>> {
        let mut faults = Vec::new();
        match json::validate(text.as_bytes()) {
            Ok(text) => {
                let mut parser = Parser { faults: &mut faults };
                if let Some(test) = parser.test(Node::new(text), "", 1)
                    && parser.faults.is_empty()
                {
                    return Ok(Filter(test));
                }
            }
            Err(error) => faults.push(Fault {
                place: String::new(),
                message: error.to_string(),
            }),
        }
        Err(faults)
    }

    /// Whether the filter matches the event object at the root of `doc`.
    pub fn matches(&self, doc: &Doc<'_>) -> bool {
        self.0.matches(doc, doc.root())
    }

    /// Whether Close is sure to read the filter as it is read here: equality and `contains` with strings, below field
    /// accessors, joined by `and` and `or`. Everything else could match differently there, where the documentation is silent.
    pub fn is_unambiguous(&self) -> bool {
        self.0.is_unambiguous()
    }

    /// The filter that matches whatever one of these does.
    pub fn any_of(filters: Vec<Filter>) -> Filter {
        let mut alternatives: Vec<Test> = Vec::new();
        for Filter(test) in filters {
            if !alternatives.contains(&test) {
                alternatives.push(test);
            }
        }
        match alternatives.len() {
            1 => Filter(alternatives.remove(0)),
            _ => Filter(Test::Or(alternatives)),
        }
    }

    /// The same with its reasons.
    pub fn explain(&self, doc: &Doc<'_>) -> Trace {
        self.explain_by(doc, &mut Clock::default())
    }

    /// The same within a time: where the clock has stopped, nothing that is said counts.
    pub fn explain_by(&self, doc: &Doc<'_>, clock: &mut Clock) -> Trace {
        self.0.explain(doc, doc.root(), "", clock)
    }
}

impl fmt::Display for Filter {
    /// The filter as compact JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        write!(f, r#"{{"type":"{kind}""#)?;
        match self {
            Test::Equals(literal) | Test::NotEquals(literal) | Test::Contains(literal) => {
                write!(f, r#","value":{}"#, literal.text)?;
            }
            Test::IsNull | Test::NonNull => {}
            Test::And(tests) | Test::Or(tests) => {
                f.write_str(r#","filters":["#)?;
                for (index, test) in tests.iter().enumerate() {
                    write!(f, "{}{test}", if index == 0 { "" } else { "," })?;
                }
                f.write_str("]")?;
            }
            Test::Not(test) | Test::AnyElement(test) => write!(f, r#","filter":{test}"#)?,
            Test::Field(field, test) => {
                write!(
                    f,
                    r#","field":{},"filter":{test}"#,
                    serde_json::Value::from(field.as_str())
                )?;
            }
        }
        f.write_str("}")
    }
}

impl Test {
    fn kind(&self) -> &'static str {
        match self {
            Test::Equals(_) => "equals",
            Test::NotEquals(_) => "not_equals",
            Test::IsNull => "is_null",
            Test::NonNull => "non_null",
            Test::Contains(_) => "contains",
            Test::And(_) => "and",
            Test::Or(_) => "or",
            Test::Not(_) => "not",
            Test::Field(..) => "field_accessor",
            Test::AnyElement(_) => "any_array_value",
        }
    }

    fn is_unambiguous(&self) -> bool {
        match self {
            Test::Equals(literal) | Test::Contains(literal) => {
                matches!(&literal.value, Value::String(text) if !text.is_empty())
            }
            Test::And(tests) | Test::Or(tests) => !tests.is_empty() && tests.iter().all(Test::is_unambiguous),
            Test::Field(_, test) => test.is_unambiguous(),
            Test::NotEquals(_) | Test::IsNull | Test::NonNull | Test::Not(_) | Test::AnyElement(_) => false,
        }
    }

    fn matches<'a>(&self, doc: &Doc<'a>, node: Node<'a>) -> bool {
        match self {
            Test::Equals(literal) => literal.value.equals(node),
            Test::NotEquals(literal) => !literal.value.equals(node),
            Test::IsNull => node.kind() == Kind::Null,
            Test::NonNull => node.kind() != Kind::Null,
            Test::Contains(literal) => contains(&literal.value, node),
            Test::And(tests) => tests.iter().all(|test| test.matches(doc, node)),
            Test::Or(tests) => tests.iter().any(|test| test.matches(doc, node)),
            Test::Not(test) => !test.matches(doc, node),
            Test::Field(field, test) => test.matches(doc, doc.get(node, field).unwrap_or(Node::NULL)),
            Test::AnyElement(test) => node.elements().any(|element| test.matches(doc, element)),
        }
    }
}

fn contains(value: &Value, node: Node<'_>) -> bool {
    match (node.kind(), value) {
        (Kind::Array, value) => node.elements().any(|element| value.equals(element)),
        (Kind::String, Value::String(part)) => node.contains(part),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    fn vectors() -> Json {
        serde_json::from_str(include_str!("../../../tests/fixtures/close/filter-vectors.json")).unwrap()
    }

    fn example(name: &str) -> String {
        let path = format!(
            "{}/tests/fixtures/close/examples/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_vector_matches_as_pinned() {
        let vectors = vectors();
        let cases = vectors["matches"].as_array().unwrap();
        assert!(cases.len() > 1000);
        for case in cases {
            let filter = Filter::parse(&case["filter"].to_string()).unwrap();
            let body = example(case["event"].as_str().unwrap());
            let event = Node::new(&body).get("event").unwrap();
            let doc = Doc::of(event);
            assert_eq!(filter.matches(&doc), case["matches"].as_bool().unwrap(), "{case}");
            assert_eq!(filter.explain(&doc).matched, case["matches"].as_bool().unwrap());
            assert_eq!(
                Filter::parse(&filter.to_string()).unwrap(),
                filter,
                "what is printed means the same"
            );
        }
    }

    #[test]
    fn bad_filters_are_refused_and_good_ones_accepted() {
        let vectors = vectors();
        for case in vectors["reject"].as_array().unwrap() {
            assert!(Filter::parse(&case["filter"].to_string()).is_err(), "{}", case["name"]);
        }
        for case in vectors["accept"].as_array().unwrap() {
            assert!(Filter::parse(&case["filter"].to_string()).is_ok(), "{}", case["name"]);
        }
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        let text = r#"{"type":"and","filters":[{"type":"equal","value":1},{"type":"not","filter":{"type":"is_null","value":2}},
            {"type":"field_accessor","field":3,"filter":{"type":"contains"}}]}"#;
        let faults: Vec<String> = Filter::parse(text)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            faults,
            [
                "filters[0].type: there is no filter type \"equal\": did you mean \"equals\"?",
                "filters[1].filter.value: \"is_null\" has no key \"value\"",
                "filters[2].field: must be a string: the name of one key",
                "filters[2].filter: \"contains\" needs the key \"value\"",
            ]
        );
        assert!(Filter::parse("{").unwrap_err()[0].message.contains("not valid JSON"));
    }

    #[test]
    fn the_deciding_node_is_the_one_that_matters() {
        let filter = Filter::parse(
            r#"{"type":"and","filters":[
                {"type":"field_accessor","field":"action","filter":{"type":"equals","value":"created"}},
                {"type":"field_accessor","field":"data","filter":{"type":"field_accessor","field":"n","filter":{"type":"equals","value":1.0}}}]}"#,
        )
        .unwrap();
        let explained = filter.explain(&Doc::new(r#"{"action":"created","data":{"n":2}}"#));
        let deciding = explained.deciding();
        assert_eq!(
            (deciding.place.as_str(), deciding.saw.as_str()),
            ("filters[1].filter.filter", "2")
        );
        assert!(!explained.matched);
    }

    /// A filter around another one, so many times.
    fn nested(times: usize, around: impl Fn(&str) -> String) -> String {
        (0..times).fold(r#"{"type":"is_null"}"#.to_owned(), |inner, _| around(&inner))
    }

    #[test]
    fn filters_nest_as_deep_as_they_may_whatever_they_are_made_of() {
        let kinds: [fn(&str) -> String; 5] = [
            |inner| format!(r#"{{"type":"not","filter":{inner}}}"#),
            |inner| format!(r#"{{"type":"any_array_value","filter":{inner}}}"#),
            |inner| format!(r#"{{"type":"field_accessor","field":"a","filter":{inner}}}"#),
            |inner| format!(r#"{{"type":"and","filters":[{inner}]}}"#),
            |inner| format!(r#"{{"type":"or","filters":[{inner}]}}"#),
        ];
        for around in kinds {
            let kind = around("");
            assert!(Filter::parse(&nested(DEPTH_MAX - 1, around)).is_ok(), "{kind}");
            let faults = Filter::parse(&nested(DEPTH_MAX, around)).unwrap_err();
            assert!(faults[0].message.contains("at most 64 deep"), "{kind}: {faults:?}");
        }
    }

    #[test]
    fn only_what_close_is_sure_to_read_alike_is_unambiguous() {
        let is = |text: &str| Filter::parse(text).unwrap().is_unambiguous();
        let text = r#"{"type":"equals","value":"won"}"#;
        let number = r#"{"type":"equals","value":1}"#;
        assert!(is(text) && is(r#"{"type":"contains","value":"won"}"#));
        assert!(!is(number) && !is(r#"{"type":"equals","value":""}"#) && !is(r#"{"type":"contains","value":null}"#));
        for join in ["and", "or"] {
            let of = |tests: &str| is(&format!(r#"{{"type":"{join}","filters":[{tests}]}}"#));
            assert!(of(text) && of(&format!("{text},{text}")), "{join}");
            assert!(!of("") && !of(&format!("{text},{number}")), "{join}");
        }
        let below = |test: &str| is(&format!(r#"{{"type":"field_accessor","field":"a","filter":{test}}}"#));
        assert!(below(text) && !below(number));
        for other in [
            r#"{"type":"not_equals","value":"won"}"#.to_owned(),
            r#"{"type":"is_null"}"#.to_owned(),
            r#"{"type":"non_null"}"#.to_owned(),
            format!(r#"{{"type":"not","filter":{text}}}"#),
            format!(r#"{{"type":"any_array_value","filter":{text}}}"#),
        ] {
            assert!(!is(&other), "{other}");
        }
    }

    #[test]
    fn any_of_some_filters_matches_what_one_of_them_does() {
        let filter = |value: u32| Filter::parse(&format!(r#"{{"type":"equals","value":{value}}}"#)).unwrap();
        assert_eq!(Filter::any_of(vec![filter(1)]), filter(1));
        assert_eq!(Filter::any_of(vec![filter(1), filter(1)]), filter(1), "said once");
        let both = Filter::any_of(vec![filter(1), filter(2), filter(1)]);
        let wanted = r#"{"type":"or","filters":[{"type":"equals","value":1},{"type":"equals","value":2}]}"#;
        assert_eq!(both.to_string(), wanted);
        let none = Filter::any_of(Vec::new());
        assert!(!none.matches(&Doc::new("1")), "nothing is in none of them");
    }

    #[test]
    fn each_kind_of_test_is_told_with_what_decided_it() {
        let told = |filter: &str, doc: &str| {
            let trace = Filter::parse(filter).unwrap().explain(&Doc::new(doc));
            let deciding = trace.deciding();
            format!(
                "{} {} {} {}",
                deciding.place, deciding.test, deciding.saw, deciding.matched
            )
        };
        let either = r#"{"type":"or","filters":[{"type":"is_null"},{"type":"contains","value":"b"}]}"#;
        assert_eq!(told(either, r#""abc""#), r#"filters[1] contains "b" "abc" true"#);
        assert_eq!(told(either, "1"), r" or 1 false", "no single one decided");
        let both = r#"{"type":"and","filters":[{"type":"non_null"},{"type":"not_equals","value":2}]}"#;
        assert_eq!(told(both, "2"), "filters[1] not_equals 2 2 false");
        assert_eq!(told(both, "3"), " and 3 true");
        let not = r#"{"type":"not","filter":{"type":"is_null"}}"#;
        assert_eq!(told(not, "null"), "filter is_null null true");
        let any = r#"{"type":"any_array_value","filter":{"type":"equals","value":2}}"#;
        assert_eq!(told(any, "[1,2,3]"), "filter equals 2 2 true");
        assert_eq!(told(any, "[1,3]"), "filter equals 2 1 false");
        assert_eq!(told(any, "[]"), " any_array_value [] false");
        let field = r#"{"type":"not","filter":{"type":"field_accessor","field":"a","filter":{"type":"is_null"}}}"#;
        assert_eq!(told(field, "{}"), "filter.filter is_null null true");
        let trace = Filter::parse(field).unwrap().explain(&Doc::new("{}"));
        assert_eq!(trace.children[0].test, "field_accessor a");
        // What is long is cut, and what just fits is not.
        let saw = |len: usize| {
            let text = format!("\"{}\"", "é".repeat(len - 2));
            Filter::parse(r#"{"type":"is_null"}"#)
                .unwrap()
                .explain(&Doc::new(&text))
                .saw
        };
        assert_eq!(saw(60), format!("\"{}\"", "é".repeat(58)));
        assert_eq!(saw(61), format!("\"{}…", "é".repeat(59)));
    }

    #[test]
    fn what_is_no_filter_is_told_what_it_should_be() {
        let fault = |text: &str| {
            let faults = Filter::parse(text).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            faults[0].to_string()
        };
        assert!(fault("3").starts_with("a filter is an object like"));
        assert!(fault("{}").starts_with("the filter has no \"type\": one of equals, not_equals"));
        assert!(fault(r#"{"type":1}"#).starts_with("type: must be a string: one of equals"));
        assert_eq!(
            fault(r#"{"type":"and","filters":{}}"#),
            "filters: must be a list of filters"
        );
        assert_eq!(
            fault(r#"{"type":"or","filters":[{"type":"not","filter":1}]}"#),
            r#"filters[0].filter: a filter is an object like {"type":"equals","value":1}"#
        );
        assert_eq!(
            fault(r#"{"type":"equals","value":"\ud800"}"#),
            "value: the value nests too deep, or a string in it is not valid Unicode"
        );
        assert_eq!(
            fault(r#"{"type":"field_accessor","fild":"a","filter":{"type":"is_null"},"field":"b"}"#),
            "fild: \"field_accessor\" has no key \"fild\""
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[\\[\\]{}\",:a-z0-9 ]{0,60}") {
            let _ = Filter::parse(&text);
        }
    }
}
