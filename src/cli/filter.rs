//! `closehook filter`

use std::io::{BufRead, BufReader, Read};

use clap::Args;

use super::pick::text_or_file;
use super::{Failure, Global, Outcome, print_line};
use crate::json::{self, Brackets, Doc, Kind, Node};
use crate::rules::filter::Filter as EventFilter;

/// Like grep for events: print those that match one of Close's webhook filters
#[derive(Debug, Args)]
#[command(
    after_help = "Reads JSON events or deliveries, one per line or as whole (pretty-printed) files; lines of a file sink and of
`events export` work too. Prints the matching ones as they were read, one a line. Exit 0 if any matched, 1 if none did, 2 on a bad filter.

Examples:
  closehook filter '{\"type\":\"field_accessor\",\"field\":\"action\",\"filter\":{\"type\":\"equals\",\"value\":\"created\"}}' events.jsonl
  closehook events export | closehook filter @big-deals.json --count"
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

impl Filter {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let filter = EventFilter::parse(&text_or_file(&self.wanted)?).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            Failure::Usage(format!("the filter is not valid: {}", lines.join("\nclosehook: ")))
        })?;
        let mut matched = 0_u64;
        let mut each = |text: &str| -> Outcome {
            let Some(found) = matches(&filter, text) else {
                return Ok(());
            };
            if found != self.invert {
                matched += 1;
                if self.count {
                    return Ok(());
                }
                // What stands in several lines becomes one, so that the output can be read line by line.
                if text.contains('\n') {
                    print_line(&json::compact(text))?;
                } else {
                    print_line(text)?;
                }
            }
            Ok(())
        };
        let mut skipped = 0;
        if self.files.is_empty() {
            skipped += read(std::io::stdin().lock(), &mut each)?;
        }
        for name in &self.files {
            let file =
                std::fs::File::open(name).map_err(|error| Failure::Usage(format!("{name} can't be read: {error}")))?;
            skipped += read(file, &mut each)?;
        }
        if skipped > 0 {
            eprintln!("closehook: {skipped} line(s) are not JSON and were passed over");
        }
        if self.count {
            print_line(&if global.json {
                serde_json::json!({ "matched": matched }).to_string()
            } else {
                matched.to_string()
            })?;
        }
        if matched == 0 { Err(Failure::Found) } else { Ok(()) }
    }
}

/// Whether the event in a text matches; `None` where there is no object in it.
fn matches(filter: &EventFilter, text: &str) -> Option<bool> {
    let root = Node::new(text);
    if root.kind() != Kind::Object {
        return None;
    }
    if let Some(event) = root.get("event").filter(|event| event.kind() == Kind::Object) {
        return Some(filter.matches(&Doc::of(event)));
    }
    // An exported line holds the delivery as a string.
    if root.get("received_at").is_some() {
        if let Some(body) = root.get("body").and_then(Node::as_string) {
            return matches(filter, json::validate(body.as_bytes()).ok()?);
        }
        if root.get("body_base64").is_some() {
            // Not even text.
            return None;
        }
    }
    Some(filter.matches(&Doc::of(root)))
}

/// Goes through lines, or through values that take several lines; gives how many lines were not JSON.
fn read(source: impl Read, each: &mut dyn FnMut(&str) -> Outcome) -> Result<u64, Failure> {
    /// More than this is not one event any more.
    const VALUE_MAX: usize = 128 << 20;
    let mut reader = BufReader::new(source);
    let mut pending = String::new();
    let mut brackets = Brackets::default();
    let mut line = Vec::new();
    let mut skipped = 0;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Ok(text) = std::str::from_utf8(&line) else {
            skipped += 1;
            continue;
        };
        let text = text.trim_end_matches(['\n', '\r']);
        if pending.is_empty() {
            if text.trim().is_empty() {
                continue;
            }
            if json::validate(text.as_bytes()).is_ok() {
                values(text, each)?;
                continue;
            }
        }
        if pending.is_empty() && !text.trim_start().starts_with(['{', '[']) {
            skipped += 1;
            continue;
        }
        if !pending.is_empty() {
            pending.push('\n');
        }
        pending.push_str(text);
        brackets.feed(text);
        if !brackets.are_closed() && pending.len() <= VALUE_MAX {
            continue;
        }
        if json::validate(pending.as_bytes()).is_ok() {
            values(&pending, each)?;
        } else {
            skipped += pending.lines().count() as u64;
        }
        pending.clear();
        brackets = Brackets::default();
    }
    Ok(skipped + pending.lines().count() as u64)
}

/// The value itself, or each element of a list.
fn values(text: &str, each: &mut dyn FnMut(&str) -> Outcome) -> Outcome {
    let root = Node::new(text);
    if root.kind() != Kind::Array {
        return each(text);
    }
    for element in root.elements() {
        each(element.raw())?;
    }
    Ok(())
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
        let text = "{\"action\":\"created\"}\n{\"event\":{\"action\":\"created\"}}\nnot json\n{\n \"action\":\n \"created\"\n}\n[{\"action\":\"created\"},{\"action\":\"deleted\"}]\n{\"received_at\":\"x\",\"body\":\"{\\\"event\\\":{\\\"action\\\":\\\"created\\\"}}\"}\n{\"received_at\":\"x\",\"body_base64\":\"/w==\",\"action\":\"created\"}\n\n{\"open\":";
        let mut found = Vec::new();
        let skipped = read(text.as_bytes(), &mut |text| {
            found.push(matches(&filter, text));
            Ok(())
        });
        assert_eq!(
            found,
            [
                Some(true),
                Some(true),
                Some(true),
                Some(true),
                Some(false),
                Some(true),
                None
            ]
        );
        assert!(matches!(skipped, Ok(2)));
    }
}
