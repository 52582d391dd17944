//! Why a filter matches an event or does not, node by node.

use serde::Serialize;

use super::Test;
use crate::json::{self, Doc, Node};

/// One node of a filter with its answer for one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Where the node is in the filter; empty for the whole.
    pub place: String,
    /// What it asks.
    pub test: String,
    /// The value it was asked of, shortened.
    pub saw: String,
    /// Its answer.
    pub matched: bool,
    /// The nodes below it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Trace>,
}

impl Trace {
    /// The node that decided: the innermost one whose other answer would have changed the whole.
    pub fn deciding(&self) -> &Trace {
        let decisive = match self.test.as_str() {
            "and" => self.children.iter().find(|child| !child.matched),
            "or" => self.children.iter().find(|child| child.matched),
            _ => self.children.first(),
        };
        decisive.map_or(self, Trace::deciding)
    }
}

impl Test {
    pub(super) fn explain<'a>(&self, doc: &Doc<'a>, node: Node<'a>, place: &str) -> Trace {
        let matched = self.matches(doc, node);
        let inside = |name: &str| {
            if place.is_empty() {
                name.to_owned()
            } else {
                format!("{place}.{name}")
            }
        };
        let children: Vec<Trace> = match self {
            Test::And(tests) | Test::Or(tests) => tests
                .iter()
                .enumerate()
                .map(|(index, test)| test.explain(doc, node, &inside(&format!("filters[{index}]"))))
                .collect(),
            Test::Not(test) => vec![test.explain(doc, node, &inside("filter"))],
            Test::Field(field, test) => {
                vec![test.explain(doc, doc.get(node, field).unwrap_or(Node::NULL), &inside("filter"))]
            }
            Test::AnyElement(test) => {
                // The element that matched tells most; without one, the first.
                let decisive = node.elements().find(|element| test.matches(doc, *element));
                let shown = decisive.or_else(|| node.elements().next());
                shown
                    .map(|element| test.explain(doc, element, &inside("filter")))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        };
        Trace {
            place: place.to_owned(),
            test: self.brief(),
            saw: brief(node.raw()),
            matched,
            children,
        }
    }

    /// The test without its children, for people.
    fn brief(&self) -> String {
        match self {
            Test::Equals(literal) | Test::NotEquals(literal) | Test::Contains(literal) => {
                format!("{} {}", self.kind(), brief(&literal.text))
            }
            Test::Field(field, _) => format!("field_accessor {field}"),
            _ => self.kind().to_owned(),
        }
    }
}

/// A value short enough for a line.
fn brief(text: &str) -> String {
    const LEN_MAX: usize = 60;
    let compact = json::compact(text);
    if compact.chars().count() <= LEN_MAX {
        return compact;
    }
    let start: String = compact.chars().take(LEN_MAX).collect();
    format!("{start}…")
}
