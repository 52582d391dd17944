//! From JSON to a filter, with every fault in it and its place.

use std::borrow::Cow;

use super::{DEPTH_MAX, Literal, TYPES, Test};
use crate::config::Fault;
use crate::json::{self, Kind, Node, Value};
use crate::names;

pub(super) struct Parser<'f> {
    pub faults: &'f mut Vec<Fault>,
}

impl Parser<'_> {
    fn fault(&mut self, place: &str, message: impl Into<String>) {
        self.faults.push(Fault {
            place: place.to_owned(),
            message: message.into(),
        });
    }

    pub fn test(&mut self, node: Node<'_>, place: &str, depth: usize) -> Option<Test> {
        if depth > DEPTH_MAX {
            self.fault(place, format!("filters nest at most {DEPTH_MAX} deep"));
            return None;
        }
        let inside = |name: &str| inside(place, name);
        if node.kind() != Kind::Object {
            self.fault(place, r#"a filter is an object like {"type":"equals","value":1}"#);
            return None;
        }
        let (kind, wanted) = self.kind(node, place)?;
        let found = self.values(&kind, wanted, node, place);
        match (&*kind, found.as_slice()) {
            ("is_null", _) => Some(Test::IsNull),
            ("non_null", _) => Some(Test::NonNull),
            ("equals", [value]) => self.literal(*value, &inside("value")).map(Test::Equals),
            ("not_equals", [value]) => self.literal(*value, &inside("value")).map(Test::NotEquals),
            ("contains", [value]) => self.literal(*value, &inside("value")).map(Test::Contains),
            ("and", [filters]) => self.tests(*filters, &inside("filters"), depth).map(Test::And),
            ("or", [filters]) => self.tests(*filters, &inside("filters"), depth).map(Test::Or),
            ("not", [filter]) => self
                .test(*filter, &inside("filter"), depth + 1)
                .map(|t| Test::Not(Box::new(t))),
            ("any_array_value", [filter]) => self
                .test(*filter, &inside("filter"), depth + 1)
                .map(|t| Test::AnyElement(Box::new(t))),
            ("field_accessor", [field, filter]) => {
                let name = field.as_string();
                if name.is_none() {
                    self.fault(&inside("field"), "must be a string: the name of one key");
                }
                let test = self.test(*filter, &inside("filter"), depth + 1)?;
                Some(Test::Field(name?.into_owned(), Box::new(test)))
            }
            _ => None,
        }
    }

    /// What kind of test it is, and which keys such a test has.
    fn kind<'n>(&mut self, node: Node<'n>, place: &str) -> Option<(Cow<'n, str>, &'static [&'static str])> {
        let Some(kind_node) = node.get("type") else {
            self.fault(
                place,
                format!("the filter has no \"type\": one of {}", TYPES.join(", ")),
            );
            return None;
        };
        let Some(kind) = kind_node.as_string() else {
            self.fault(
                &inside(place, "type"),
                format!("must be a string: one of {}", TYPES.join(", ")),
            );
            return None;
        };
        let wanted: &[&str] = match &*kind {
            "equals" | "not_equals" | "contains" => &["type", "value"],
            "is_null" | "non_null" => &["type"],
            "and" | "or" => &["type", "filters"],
            "not" | "any_array_value" => &["type", "filter"],
            "field_accessor" => &["type", "field", "filter"],
            unknown => {
                let fault = names::unknown(format!("there is no filter type \"{unknown}\""), unknown, TYPES);
                self.fault(&inside(place, "type"), fault);
                return None;
            }
        };
        Some((kind, wanted))
    }

    /// The values of the keys such a test has, without `type`; fewer where some are missing.
    fn values<'n>(&mut self, kind: &str, wanted: &[&str], node: Node<'n>, place: &str) -> Vec<Node<'n>> {
        for (key, _) in node.entries() {
            let key = key.as_string().unwrap_or_default();
            if !wanted.contains(&&*key) {
                let missing = wanted.iter().copied().filter(|name| node.get(name).is_none());
                let fault = names::unknown(format!("\"{kind}\" has no key \"{key}\""), &key, missing);
                self.fault(&inside(place, &key), fault);
            }
        }
        let mut found = Vec::new();
        for name in &wanted[1..] {
            match node.get(name) {
                Some(value) => found.push(value),
                None => self.fault(place, format!("\"{kind}\" needs the key \"{name}\"")),
            }
        }
        found
    }

    fn tests(&mut self, node: Node<'_>, place: &str, depth: usize) -> Option<Vec<Test>> {
        if node.kind() != Kind::Array {
            self.fault(place, "must be a list of filters");
            return None;
        }
        // Every one is parsed, so that every fault is found.
        let parsed: Vec<Option<Test>> = node
            .elements()
            .enumerate()
            .map(|(index, element)| self.test(element, &format!("{place}[{index}]"), depth + 1))
            .collect();
        parsed.into_iter().collect()
    }

    fn literal(&mut self, node: Node<'_>, place: &str) -> Option<Literal> {
        let value = Value::parse(node);
        if value.is_none() {
            self.fault(
                place,
                "the value nests too deep, or a string in it is not valid Unicode",
            );
        }
        Some(Literal {
            value: value?,
            text: json::compact(node.raw()),
        })
    }
}

fn inside(place: &str, name: &str) -> String {
    if place.is_empty() {
        name.to_owned()
    } else {
        format!("{place}.{name}")
    }
}
