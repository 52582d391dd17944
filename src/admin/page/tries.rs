//! Trying a filter, rule, template or transform over stored events before it is deployed: checked as it is typed, with each fault at its
//! place, and run, with what matches, why, and what would be sent.

use std::fmt::Write;

use askama::Template;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

use super::event::{SentCell, tree};
use super::jobs::is_part;
use super::query::Query;
use super::said::{Form, Url};
use super::text::{self, in_url};
use super::view::{Failed, Frame, Shown, View, html};
use crate::control::browse::Work;
use crate::control::deployed::{self, Deployed, Of};
use crate::control::sent::Outcome as Made;
use crate::control::tries::{Draft, DraftFault, EVENTS, EVENTS_MAX, Summary, Tried, TriedEvent, Try};
use crate::control::{configured, status};
use crate::event::Seq;
use crate::names;

/// What can be tried: its name in forms, and for people.
const KINDS: [(&str, &str); 4] = [
    ("filter", "Filter"),
    ("rules", "Rule"),
    ("template", "Template"),
    ("transform", "Transform"),
];

/// What a new draft begins with.
const BEGINNING: &str = r#"{
  "type": "field_accessor",
  "field": "action",
  "filter": { "type": "equals", "value": "created" }
}"#;

/// The form.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Typed {
    kind: String,
    text: String,
    sink: String,
    last: String,
    #[serde(alias = "type")]
    types: String,
    lead: String,
    /// A rule in force to begin with, by name.
    rule: String,
    /// What of one that is deployed to begin with: `sink` or `rule`, with its name and the kind.
    of: String,
    name: String,
}

impl Default for Typed {
    fn default() -> Typed {
        Typed {
            kind: KINDS[0].0.to_owned(),
            text: BEGINNING.to_owned(),
            sink: String::new(),
            last: EVENTS.to_string(),
            types: String::new(),
            lead: String::new(),
            rule: String::new(),
            of: String::new(),
            name: String::new(),
        }
    }
}

#[derive(Template)]
#[template(path = "try.html")]
struct TryPage {
    frame: Frame,
    kinds: &'static [(&'static str, &'static str)],
    form: Typed,
    rules: Vec<String>,
    sinks: Vec<String>,
    deployed: Vec<DeployedCell>,
    faults: Faults,
    outcome: Outcome,
}

/// A filter, template or transform in force.
pub struct DeployedCell {
    /// What it is called.
    pub words: String,
    /// Where it can be tried.
    pub href: String,
}

impl DeployedCell {
    /// For people.
    pub fn of(deployed: &Deployed) -> DeployedCell {
        let (of, kind) = (of_word(deployed.of), deployed.kind.word());
        DeployedCell {
            words: format!("the {kind} of {of} {}", deployed.name),
            href: format!("/try?of={of}&name={}&kind={kind}", in_url(&deployed.name)),
        }
    }
}

fn of_word(of: Of) -> &'static str {
    match of {
        Of::Sink => "sink",
        Of::Rule => "rule",
    }
}

/// So many are offered.
const DEPLOYED_MAX: usize = 1000;

/// What is deployed.
pub async fn deployed(view: &View) -> Result<Vec<Deployed>, Failed> {
    let all = view.all(deployed::Show {}, DEPLOYED_MAX).await;
    all.map_err(|error| view.refused(error))
}

/// What is wrong with a draft.
#[derive(Default, Template)]
#[template(path = "faults.html")]
struct Faults {
    is_fine: bool,
    fine: &'static str,
    found: Vec<FaultCell>,
}

struct FaultCell {
    place: String,
    message: String,
    excerpt: Option<String>,
}

/// What came of a run.
#[derive(Default, Template)]
#[template(path = "outcome.html")]
struct Outcome {
    refused: Option<String>,
    has_run: bool,
    says: String,
    is_cut: bool,
    events: Vec<EventCell>,
    toml: String,
}

struct EventCell {
    seq: Seq,
    tone: &'static str,
    word: &'static str,
    type_action: String,
    id: String,
    at: String,
    tree: String,
    /// Nodes of it are left out.
    is_cut: bool,
    sent: Vec<(String, SentCell)>,
}

/// `/try`
pub async fn show(view: View, Url(mut form): Url<Typed>) -> Shown {
    if !form.rule.is_empty() {
        let configured = view
            .one(configured::Show {})
            .await
            .map_err(|error| view.refused(error))?;
        let missing = || view.failed(StatusCode::NOT_FOUND, format!("there is no rule \"{}\"", form.rule));
        form.text = rule_of(&configured.text, &form.rule).ok_or_else(missing)?;
        "rules".clone_into(&mut form.kind);
    }
    if !form.of.is_empty() {
        let all = deployed(&view).await?;
        let is_it =
            |one: &&Deployed| of_word(one.of) == form.of && one.name == form.name && one.kind.word() == form.kind;
        let missing = || {
            let message = format!("the {} \"{}\" has no {}", form.of, form.name, form.kind);
            view.failed(StatusCode::NOT_FOUND, message)
        };
        let found = all.iter().find(is_it).ok_or_else(missing)?;
        form.text.clone_from(&found.text);
        form.sink = found.sinks.first().cloned().unwrap_or_default();
    }
    page(&view, form, Faults::default(), Outcome::default()).await
}

/// A rule of a configuration as it is written there.
fn rule_of(text: &str, name: &str) -> Option<String> {
    let document: DocumentMut = text.parse().ok()?;
    let rules = document.get("rules")?.as_array_of_tables()?;
    let is_it = |rule: &&Table| rule.get("name").and_then(Item::as_str) == Some(name);
    let mut alone = ArrayOfTables::new();
    alone.push(rules.iter().find(is_it)?.clone());
    let mut document = DocumentMut::new();
    document.insert("rules", Item::ArrayOfTables(alone));
    Some(document.to_string().trim_start().to_owned())
}

async fn page(view: &View, form: Typed, faults: Faults, outcome: Outcome) -> Shown {
    let status = view.one(status::Show {}).await.map_err(|error| view.refused(error))?;
    Ok(html(&TryPage {
        frame: view.frame("/try"),
        kinds: &KINDS,
        form,
        rules: status.rules,
        deployed: deployed(view).await?.iter().map(DeployedCell::of).collect(),
        sinks: status.sinks.into_iter().map(|sink| sink.sink.name).collect(),
        faults,
        outcome,
    }))
}

/// Checks what is typed, and runs nothing.
pub async fn check(view: View, Form(form): Form<Typed>) -> Shown {
    let faults = match tried(&view, &form, 0).await {
        Ok((faults, ..)) => Faults::of(&form.text, &faults),
        Err(message) => Faults {
            found: vec![FaultCell {
                place: String::new(),
                message,
                excerpt: None,
            }],
            ..Faults::default()
        },
    };
    Ok(html(&faults))
}

/// Runs it over stored events.
pub async fn run(view: View, headers: HeaderMap, Form(form): Form<Typed>) -> Shown {
    let last = match form.last.trim().parse::<u64>() {
        Ok(last @ 1..=EVENTS_MAX) => Ok(last),
        _ => Err(format!("newest events: write a number from 1 to {EVENTS_MAX}")),
    };
    let tried = match last {
        Ok(last) => tried(&view, &form, last).await,
        Err(message) => Err(message),
    };
    let (faults, outcome) = match tried {
        Ok((faults, events, summary)) => (
            Faults::of(&form.text, &faults),
            Outcome::of(&form.kind, events, summary),
        ),
        Err(message) => (
            Faults::default(),
            Outcome {
                refused: Some(message),
                ..Outcome::default()
            },
        ),
    };
    if is_part(&headers) {
        let has_faults = !faults.found.is_empty();
        return Ok(if has_faults { html(&faults) } else { html(&outcome) });
    }
    page(&view, form, faults, outcome).await
}

/// What is wrong, or what it says to each event, and the end of it.
type Answered = (Vec<DraftFault>, Vec<TriedEvent>, Option<Summary>);

async fn tried(view: &View, form: &Typed, last: u64) -> Result<Answered, String> {
    let (text, sink) = (form.text.replace("\r\n", "\n"), form.sink.clone());
    let query = Query {
        types: form.types.clone(),
        lead: form.lead.clone(),
        ..Query::default()
    };
    let wanted = Try {
        draft: match form.kind.as_str() {
            "rules" => Draft::Rules { text },
            "template" => Draft::Template { text, sink },
            "transform" => Draft::Transform { text, sink },
            "filter" => Draft::Filter { text },
            other => {
                let wrong = format!("there is no kind \"{other}\" of draft");
                return Err(names::unknown(wrong, other, KINDS.iter().map(|(kind, _)| *kind)));
            }
        },
        pick: query.pick()?,
        last: Some(last),
        work: Work::default(),
    };
    let (mut faults, mut events, mut summary) = (Vec::new(), Vec::new(), None);
    for answer in view.all(wanted, EVENTS_MAX as usize + 2).await? {
        match answer {
            Tried::Faults(found) => faults = found,
            Tried::Event(event) => events.push(*event),
            Tried::Done(done) => summary = Some(*done),
        }
    }
    Ok((faults, events, summary))
}

impl Faults {
    fn of(text: &str, faults: &[DraftFault]) -> Faults {
        Faults {
            is_fine: faults.is_empty(),
            fine: "Nothing is wrong with it.",
            found: faults.iter().map(|fault| FaultCell::of(text, fault)).collect(),
        }
    }
}

/// So much of a line is shown beside a fault, in characters on either side.
const AROUND: usize = 40;

impl FaultCell {
    fn of(text: &str, fault: &DraftFault) -> FaultCell {
        let place = match (fault.line, fault.column) {
            (Some(line), Some(column)) => format!("Line {line}, column {column}"),
            (Some(line), None) => format!("Line {line}"),
            _ => String::new(),
        };
        let place = match (place.is_empty(), fault.path.is_empty()) {
            (true, _) => fault.path.clone(),
            (false, true) => place,
            (false, false) => format!("{place}, {}", fault.path),
        };
        let line = fault.line.and_then(|line| text.lines().nth(line.checked_sub(1)?));
        let excerpt = line.map(|line| match fault.column {
            Some(column) => pointed_at(line, column),
            None => line.chars().take(2 * AROUND).collect(),
        });
        FaultCell {
            place,
            message: fault.message.clone(),
            excerpt,
        }
    }
}

/// The part of a line around a column, and below it what points there.
fn pointed_at(line: &str, column: usize) -> String {
    let at = column.saturating_sub(1);
    let from = at.saturating_sub(AROUND);
    // What is shown as an escape would move what points: such a line is pointed at by its number alone.
    let part: String = line
        .chars()
        .skip(from)
        .take(2 * AROUND)
        .map(|c| if c == '\t' { ' ' } else { c })
        .collect();
    format!("{part}\n{}^", " ".repeat(at - from))
}

impl Outcome {
    fn of(kind: &str, events: Vec<TriedEvent>, summary: Option<Summary>) -> Outcome {
        let Some(summary) = summary else {
            return Outcome::default();
        };
        let over = text::counted(&summary.events, "event");
        let mut says = match kind {
            "filter" | "rules" => format!("{} of {over} match", text::count(&summary.matched)),
            _ => format!("Run over {over}"),
        };
        for (count, word) in [
            (summary.sent, "would be sent"),
            (summary.skipped, "skipped"),
            (summary.failed, "can't be made"),
        ] {
            if count > 0 {
                let _ = write!(says, ", {} {word}", text::count(&count));
            }
        }
        Outcome {
            refused: None,
            has_run: true,
            says,
            is_cut: summary.is_cut,
            events: events.into_iter().map(|event| EventCell::of(kind, event)).collect(),
            toml: summary.toml,
        }
    }
}

impl EventCell {
    fn of(kind: &str, event: TriedEvent) -> EventCell {
        // A template or transform matches everything: what came of it is what one wants to know.
        let made = event.sent.first().map(|to| to.sent.outcome);
        let (word, tone) = match (kind, made) {
            ("template" | "transform", Some(Made::Sent)) => ("sent", "ok"),
            ("template" | "transform", Some(Made::Skipped)) => ("skipped", ""),
            ("template" | "transform", Some(Made::Failed | Made::Unavailable)) => ("can't be made", "bad"),
            _ if event.matched => ("matches", "ok"),
            _ => ("does not", ""),
        };
        EventCell {
            seq: event.line.seq,
            tone,
            word,
            type_action: text::brief(event.line.type_action.as_deref().unwrap_or("no type")),
            id: text::brief(event.line.id.as_deref().unwrap_or_default()),
            at: text::when(&event.line.received_at),
            tree: event.why.iter().map(tree).collect(),
            is_cut: event.why_is_cut,
            sent: event
                .sent
                .into_iter()
                .map(|to| (to.sink, SentCell::of(to.sent)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_taken_out_of_a_configuration_as_it_is_written_there() {
        let text = "[server]\nlisten = \"x\"\n\n# The first.\n[[rules]]\nname = \"a\"\n\n[[rules]]\nname = \"b\"\nfilter = '{\"n\": 1.50}'\n";
        assert_eq!(
            rule_of(text, "b").unwrap(),
            "[[rules]]\nname = \"b\"\nfilter = '{\"n\": 1.50}'\n"
        );
        assert_eq!(rule_of(text, "c"), None);
        assert_eq!(rule_of("[[", "c"), None);
    }

    #[test]
    fn a_fault_is_shown_at_its_place() {
        let fault = DraftFault {
            path: "filter.type".into(),
            line: Some(2),
            column: Some(11),
            message: "there is no \"equls\"".into(),
        };
        let cell = FaultCell::of("{\n  \"type\": \"equls\"\n}", &fault);
        assert_eq!(cell.place, "Line 2, column 11, filter.type");
        assert_eq!(cell.excerpt.unwrap(), "  \"type\": \"equls\"\n          ^");
        let long = pointed_at(&"x".repeat(1_000_000), 500_000);
        assert_eq!(long.len(), 80 + 1 + 40 + 1);
        let gone = FaultCell::of("", &DraftFault { line: Some(9), ..fault });
        assert!(gone.excerpt.is_none());
    }
}
