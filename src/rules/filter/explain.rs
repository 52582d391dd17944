//! Why a filter matches an event or does not, node by node.

use std::time::Instant;

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

/// How long it may take to explain something.
#[derive(Debug, Default)]
pub struct Clock {
    until: Option<Instant>,
    /// It has taken longer: what was said is not all, and nothing of it counts.
    pub is_over: bool,
}

impl Clock {
    /// One that stops then.
    pub fn until(until: Instant) -> Clock {
        Clock {
            until: Some(until),
            is_over: false,
        }
    }

    fn has_stopped(&mut self) -> bool {
        self.is_over = self.is_over || self.until.is_some_and(|until| Instant::now() >= until);
        self.is_over
    }
}

impl Test {
    /// What each node answers. That of a node with others below it follows from theirs, so that each is asked once.
    pub(super) fn explain<'a>(&self, doc: &Doc<'a>, node: Node<'a>, place: &str, clock: &mut Clock) -> Trace {
        let inside = |name: &str| {
            if place.is_empty() {
                name.to_owned()
            } else {
                format!("{place}.{name}")
            }
        };
        let mut children: Vec<Trace> = Vec::new();
        let matched = match self {
            Test::And(tests) | Test::Or(tests) => {
                for (index, test) in tests.iter().enumerate() {
                    if clock.has_stopped() {
                        break;
                    }
                    children.push(test.explain(doc, node, &inside(&format!("filters[{index}]")), clock));
                }
                match self {
                    Test::And(_) => children.iter().all(|child| child.matched),
                    _ => children.iter().any(|child| child.matched),
                }
            }
            Test::Not(test) => {
                children.push(test.explain(doc, node, &inside("filter"), clock));
                !children[0].matched
            }
            Test::Field(field, test) => {
                let value = doc.get(node, field).unwrap_or(Node::NULL);
                children.push(test.explain(doc, value, &inside("filter"), clock));
                children[0].matched
            }
            Test::AnyElement(test) => {
                // The element that matched tells most; without one, the first.
                let decisive = node.elements().find(|element| test.judge(doc, *element, clock));
                let shown = decisive.or_else(|| node.elements().next());
                let shown = shown.map(|element| test.explain(doc, element, &inside("filter"), clock));
                children.extend(shown);
                decisive.is_some()
            }
            _ => self.matches(doc, node),
        };
        Trace {
            place: place.to_owned(),
            test: self.brief(),
            saw: brief(node.raw()),
            matched,
            children,
        }
    }

    /// Whether it matches; of nothing that counts once the clock has stopped.
    fn judge<'a>(&self, doc: &Doc<'a>, node: Node<'a>, clock: &mut Clock) -> bool {
        if clock.has_stopped() {
            // Whoever goes through others goes no further.
            return true;
        }
        match self {
            Test::And(tests) => tests.iter().all(|test| test.judge(doc, node, clock)),
            Test::Or(tests) => tests.iter().any(|test| test.judge(doc, node, clock)),
            Test::Not(test) => !test.judge(doc, node, clock),
            Test::Field(field, test) => test.judge(doc, doc.get(node, field).unwrap_or(Node::NULL), clock),
            Test::AnyElement(test) => node.elements().any(|element| test.judge(doc, element, clock)),
            _ => self.matches(doc, node),
        }
    }

    /// The test without its children, for people.
    fn brief(&self) -> String {
        match self {
            Test::Equals(literal) | Test::NotEquals(literal) | Test::Contains(literal) => {
                format!("{} {}", self.kind(), brief(&literal.text))
            }
            Test::Field(field, _) => format!("field_accessor {}", start(field, FIELD_LEN_MAX)),
            _ => self.kind().to_owned(),
        }
    }
}

/// So many characters of a field's name are shown.
const FIELD_LEN_MAX: usize = 200;

/// A value short enough for a line. Of a long one no more than its beginning is looked at: it is the whole event at most nodes.
fn brief(text: &str) -> String {
    const LEN_MAX: usize = 60;
    const LOOKED_AT_MAX: usize = 2048;
    if text.len() <= LOOKED_AT_MAX {
        return start(&json::compact(text), LEN_MAX);
    }
    let end = (0..=LOOKED_AT_MAX).rev().find(|end| text.is_char_boundary(*end));
    let compact = json::compact(&text[..end.unwrap_or_default()]);
    let start: String = compact.chars().take(LEN_MAX).collect();
    format!("{start}…")
}

fn start(text: &str, len_max: usize) -> String {
    match text.char_indices().nth(len_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
