//! Rules as a person tries them before they stand in a file: every fault has its line and column, and nothing is read from files, for
//! whoever tries them need not be who may read these.

use std::path::Path;

use serde_json::Value;
use toml_edit::{Document, Item};

use super::load::read_rule;
use super::table::Table;
use super::text;
use super::{Fault, RuleConfig};

/// A fault, and its line and column in the text, from 1; `None` where that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The fault.
    pub fault: Fault,
    /// Line and column.
    pub position: Option<(usize, usize)>,
}

/// Rules that were read, with what tells where in their text something is.
#[derive(Debug)]
pub struct DraftRules {
    /// The rules.
    pub rules: Vec<RuleConfig>,
    /// What is wrong with them as they are written; more may be wrong with what they say.
    pub faults: Vec<Fault>,
    text: String,
}

impl DraftRules {
    /// A fault with its place in the text.
    pub fn place(&self, fault: Fault) -> Placed {
        place(&self.text, fault)
    }
}

/// Reads `[[rules]]`; checks their templates and transforms. Blocks for as long as that takes. An error is all that is wrong with a text of
/// which no rule can be read.
pub fn rules_of_text(text: &str) -> Result<DraftRules, Vec<Placed>> {
    match read(text) {
        Ok((rules, faults)) => Ok(DraftRules {
            rules,
            faults,
            text: text.to_owned(),
        }),
        Err(faults) => Err(faults.into_iter().map(|fault| place(text, fault)).collect()),
    }
}

/// Stands for the file there is not.
const NAME: &str = "draft";

fn read(toml: &str) -> Result<(Vec<RuleConfig>, Vec<Fault>), Vec<Fault>> {
    let name = Path::new(NAME);
    let document = text::parse(name, toml).map_err(|fault| vec![fault])?;
    let mut faults = files_named_in(document.as_item());
    if !faults.is_empty() {
        return Err(faults);
    }
    let with_text = text::with_filters_as_text(name, toml, &mut faults)?;
    let document = text::parse(name, &with_text).map_err(|fault| vec![fault])?;
    let json = text::json_of(document.as_item());
    let tree =
        json.and_then(|json| serde_json::from_slice::<Value>(json.as_bytes()).map_err(|error| error.to_string()));
    let tree = tree.map_err(|message| {
        vec![Fault {
            place: String::new(),
            message,
        }]
    })?;
    let mut root = Table::new("", tree, &mut faults);
    let listed = root.list("rules");
    if listed.is_empty() {
        root.fault("", "there is no rule: begin one with [[rules]]");
    }
    let rules = listed
        .into_iter()
        .map(|(place, value)| read_rule(place, value, root.faults()));
    let rules: Vec<RuleConfig> = rules.collect();
    root.finish();
    if rules.is_empty() {
        Err(faults)
    } else {
        Ok((rules, faults))
    }
}

/// A fault for each `@file`.
fn files_named_in(root: &Item) -> Vec<Fault> {
    let mut faults = Vec::new();
    for index in 0_usize.. {
        let Some(rule) = root.get("rules").and_then(|rules| rules.get(index)) else {
            break;
        };
        for key in ["filter", "template", "transform"] {
            let text = rule.get(key).and_then(Item::as_str).unwrap_or_default();
            if text.trim_start().starts_with('@') {
                faults.push(Fault {
                    place: format!("rules[{index}].{key}"),
                    message: "names a file, and none is read here: write its content instead".into(),
                });
            }
        }
    }
    faults
}

fn place(text: &str, fault: Fault) -> Placed {
    // What is not TOML says itself where: `draft:2:5`.
    if let Some(position) = fault.place.strip_prefix(NAME) {
        let mut numbers = position.split(':').filter_map(|number| number.parse().ok());
        return Placed {
            position: numbers.next().zip(numbers.next()),
            fault: Fault {
                place: String::new(),
                ..fault
            },
        };
    }
    let position = offset_of(text, &fault.place).map(|offset| line_and_column(text, offset));
    Placed { fault, position }
}

/// Where in TOML text the value at a place begins, or the innermost one around it that is there.
fn offset_of(text: &str, place: &str) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let mut item = document.as_item();
    let mut offset = None;
    for step in steps(place) {
        let next = match step {
            Step::Key(key) => item.get(key),
            Step::Index(index) => item.get(index),
        };
        let Some(next) = next else { break };
        item = next;
        offset = item.span().map(|span| span.start).or(offset);
    }
    offset
}

/// One step of a place like `rules[1].filter.filters[0].type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// Into a table or an object.
    Key(&'a str),
    /// Into a list.
    Index(usize),
}

/// The steps of a place.
pub(crate) fn steps(place: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for part in place.split('.').filter(|part| !part.is_empty()) {
        let (key, indexes) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !key.is_empty() {
            steps.push(Step::Key(key));
        }
        let indexes = indexes.split(['[', ']']).filter_map(|index| index.parse().ok());
        steps.extend(indexes.map(Step::Index));
    }
    steps
}

/// Line and column, in characters, of a byte of a text, from 1.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(String, Option<(usize, usize)>)> {
        let faults = match rules_of_text(text) {
            Ok(draft) => draft.faults.iter().map(|fault| draft.place(fault.clone())).collect(),
            Err(faults) => faults,
        };
        let faults = faults.into_iter();
        faults.map(|placed| (placed.fault.place, placed.position)).collect()
    }

    #[test]
    fn rules_are_read_as_they_are_in_a_file() {
        let text = "[[rules]]\nname = \"won\"\nevents = [\"opportunity.*\"]\nsinks = [\"crm\"]\n\
            filter = { type = \"equals\", value = 12345678901234567890.0 }\n\n[[rules]]\nname = \"b\"\nsinks = []\n";
        let draft = rules_of_text(text).unwrap();
        assert_eq!(draft.rules.len(), 2);
        assert_eq!(
            draft.rules[0].filter.as_deref(),
            Some(r#"{"type":"equals","value":12345678901234567890.0}"#),
            "with all its digits"
        );
        let fault = Fault {
            place: "rules[1].sinks[0]".into(),
            message: String::new(),
        };
        assert_eq!(
            draft.place(fault).position,
            Some((9, 9)),
            "as near as there is something"
        );
    }

    #[test]
    fn each_fault_has_its_line_and_column() {
        assert_eq!(faults("[[rules]]\nname = "), [(String::new(), Some((2, 8)))]);
        assert_eq!(faults(""), [(String::new(), None)]);
        let text = "# é\n[[rules]]\nname = \"a\"\nfliter = 1\nsinks = [\"a\", 2]\n";
        let found = faults(text);
        assert!(found.contains(&("rules[0].fliter".into(), Some((4, 10)))), "{found:?}");
        let draft = rules_of_text(text).unwrap();
        assert_eq!(draft.rules.len(), 1, "what it says can be looked at all the same");
    }

    /// A page is open to whoever may look: the daemon's files are not.
    #[test]
    fn no_file_is_read() {
        for (key, value) in [
            ("filter", "@/etc/passwd"),
            ("filter", " @x"),
            ("transform", "@/etc/passwd"),
            ("template", "@x"),
        ] {
            let text = format!("[[rules]]\nname = \"a\"\nsinks = []\n{key} = \"{value}\"\n");
            let found = rules_of_text(&text).unwrap_err();
            assert!(found[0].fault.message.contains("none is read here"), "{found:?}");
            assert_eq!(found[0].position.map(|(line, _)| line), Some(4));
        }
        let inline = "rules = [{ name = \"a\", sinks = [], filter = \"@/etc/passwd\" }]";
        assert!(
            rules_of_text(inline).unwrap_err()[0]
                .fault
                .message
                .contains("none is read here")
        );
    }

    #[test]
    fn a_place_has_its_steps() {
        let expected = [
            Step::Key("rules"),
            Step::Index(1),
            Step::Key("filter"),
            Step::Key("type"),
        ];
        assert_eq!(steps("rules[1].filter.type"), expected);
        assert_eq!(steps(""), []);
        assert_eq!(line_and_column("aé\nb", 4), (2, 1));
    }
}
