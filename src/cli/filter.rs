//! `closehook filter`

use std::io::{self, BufRead, BufReader};

use clap::Args;

use super::pick::{cant_read, open, text_or_file};
use super::{Failure, Global, Outcome, print_line, report};
use crate::json::stream::{self, Found};
use crate::json::{self, Doc, Kind, Node};
use crate::rules::filter::Filter as EventFilter;

/// Like grep for events: print those that match one of Close's webhook filters
#[derive(Debug, Args)]
#[command(
    after_help = "Reads JSON events or deliveries: one per line, over several lines, in lists, or one right behind the other; also lines of a file
sink and of `events export`, and pages of Close's event log as its API answers them. Prints the matching ones as they were read,
one a line. What is no event is named with its file and line, and passed over. Exit code 0 if any matched, 1 if none did, 2 on a
bad filter or a file that can't be read.

Examples:
  closehook filter @big-deals.json events.jsonl
  closehook events export | closehook filter @big-deals.json --count
  closehook filter '{\"type\":\"field_accessor\",\"field\":\"action\",
    \"filter\":{\"type\":\"equals\",\"value\":\"created\"}}' events.jsonl
  curl -su \"$KEY:\" https://api.close.com/api/v1/event/ |
    closehook filter @big-deals.json"
)]
pub(super) struct Filter {
    /// JSON text, or @FILE
    #[arg(value_name = "FILTER")]
    wanted: String,
    /// Files to read; default: standard input
    files: Vec<String>,
    /// Print how many matched instead
    #[arg(long)]
    count: bool,
    /// Print those that do not match
    #[arg(long)]
    invert: bool,
}

/// So many places that are no events are named; how many there are besides is counted.
const NAMED_MAX: u64 = 5;

impl Filter {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let filter = EventFilter::parse(&text_or_file(&self.wanted)?).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            Failure::Usage(format!("the filter is not valid: {}", lines.join("\nclosehook: ")))
        })?;
        // Before the first of them is read: a mistyped name should not show after hours.
        let mut sources: Vec<(String, Box<dyn BufRead>)> = Vec::new();
        for name in &self.files {
            sources.push(if name == "-" {
                standard_input()
            } else {
                (name.clone(), Box::new(BufReader::new(open(name.as_ref())?)))
            });
        }
        if sources.is_empty() {
            sources.push(standard_input());
        }
        let mut sieve = Sieve {
            filter,
            prints: !self.count,
            invert: self.invert,
            is_json: global.json,
            matched: 0,
            passed_over: 0,
        };
        for (name, source) in sources {
            stream::read(source, |found| sieve.take(&name, found).map_err(Cut::Ended)).map_err(|cut| match cut {
                Cut::Unreadable(error) => cant_read(&name, &error),
                Cut::Ended(failure) => failure,
            })?;
        }
        if sieve.passed_over > NAMED_MAX {
            let more = sieve.passed_over - NAMED_MAX;
            report::notice(global.json, &format!("{more} more like these were passed over"));
        }
        if self.count {
            print_line(&if global.json {
                serde_json::json!({ "matched": sieve.matched }).to_string()
            } else {
                sieve.matched.to_string()
            })?;
        }
        if sieve.matched == 0 {
            Err(Failure::Found)
        } else {
            Ok(())
        }
    }
}

/// Why a source was not read to its end.
enum Cut {
    /// It can't be read.
    Unreadable(io::Error),
    /// What was found in it could not be passed on: that says nothing of the source.
    Ended(Failure),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Cut {
        Cut::Unreadable(error)
    }
}

fn standard_input() -> (String, Box<dyn BufRead>) {
    ("standard input".to_owned(), Box::new(BufReader::new(io::stdin())))
}

/// What lets matching events through.
struct Sieve {
    filter: EventFilter,
    prints: bool,
    invert: bool,
    is_json: bool,
    matched: u64,
    passed_over: u64,
}

impl Sieve {
    fn take(&mut self, name: &str, found: Found<'_>) -> Outcome {
        match found {
            Found::Fault { line, why } => {
                self.pass_over(name, line, &format!("not valid JSON: {why}"));
                Ok(())
            }
            Found::Value { text, line } => self.value(name, line, Node::new(text)),
        }
    }

    /// An event, or events in a list or a page.
    fn value(&mut self, name: &str, line: u64, value: Node<'_>) -> Outcome {
        let page = page(value);
        let list = if value.kind() == Kind::Array { Some(value) } else { page };
        if let Some(list) = list {
            return list.elements().try_for_each(|element| self.value(name, line, element));
        }
        let Some(found) = matches(&self.filter, value) else {
            let what = if value.kind() == Kind::Object {
                "its body is no JSON"
            } else {
                "no event, for it is no object"
            };
            self.pass_over(name, line, what);
            return Ok(());
        };
        if found == self.invert {
            return Ok(());
        }
        self.matched += 1;
        if !self.prints {
            return Ok(());
        }
        // What stands in several lines becomes one, so that the output can be read line by line.
        print_line(&json::on_one_line(value.raw()))
    }

    fn pass_over(&mut self, name: &str, line: u64, why: &str) {
        self.passed_over += 1;
        if self.passed_over <= NAMED_MAX {
            report::notice(self.is_json, &format!("{name}:{line}: {why} (passed over)"));
        }
    }
}

/// The events of a page of Close's event log, `{"data":[...],"cursor_next":...}`; `None`: it is none.
fn page(value: Node<'_>) -> Option<Node<'_>> {
    let is_page = ["cursor_next", "cursor_previous", "has_more"]
        .iter()
        .any(|key| value.get(key).is_some());
    value
        .get("data")
        .filter(|data| is_page && data.kind() == Kind::Array && value.get("object_type").is_none())
}

/// Whether the event in a value matches; `None` where there is no event in it.
fn matches(filter: &EventFilter, root: Node<'_>) -> Option<bool> {
    if root.kind() != Kind::Object {
        return None;
    }
    if let Some(event) = root.get("event").filter(|event| event.kind() == Kind::Object) {
        return Some(filter.matches(&Doc::of(event)));
    }
    // An exported line holds the delivery as a string.
    if root.get("received_at").is_some() {
        if let Some(body) = root.get("body").and_then(Node::as_string) {
            return matches(filter, Node::new(json::validate(body.as_bytes()).ok()?));
        }
        if root.get("body_base64").is_some() {
            // Not even text.
            return None;
        }
    }
    Some(filter.matches(&Doc::of(root)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_in_every_form() {
        let filter = EventFilter::parse(
            r#"{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"created"}}"#,
        )
        .unwrap();
        let is = |text: &str| matches(&filter, Node::new(text));
        assert_eq!(is(r#"{"action":"created"}"#), Some(true));
        assert_eq!(is(r#"{"event":{"action":"created"}}"#), Some(true));
        assert_eq!(is(r#"{"event":{"action":"deleted"}}"#), Some(false));
        let exported = r#"{"received_at":"x","body":"{\"event\":{\"action\":\"created\"}}"}"#;
        assert_eq!(is(exported), Some(true));
        assert_eq!(
            is(r#"{"received_at":"x","body_base64":"/w==","action":"created"}"#),
            None
        );
        assert_eq!(is("7"), None);
    }

    #[test]
    fn a_page_is_told_from_an_event_that_has_data() {
        let is_page = |text: &str| page(Node::new(text)).is_some();
        assert!(is_page(r#"{"data":[],"cursor_next":null,"cursor_previous":null}"#));
        assert!(!is_page(r#"{"object_type":"lead","data":[],"cursor_next":"x"}"#));
        assert!(!is_page(r#"{"data":{"cursor_next":"x"},"cursor_next":"x"}"#));
        assert!(!is_page(r#"{"data":[]}"#));
    }
}
