//! `closehook rules`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::connect::{Access, Connection};
use super::{Failure, Global, Outcome, print_line};
use crate::control::events;
use crate::event::{Event, Kind, Seq, Source, Unreadable, View};
use crate::json::{self, Node};
use crate::plain;
use crate::rules::RuleSet;
use crate::rules::filter::Trace;

/// Look at rules
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  closehook rules explain --event delivery.json")]
pub(super) enum Rules {
    Explain(Explain),
}

/// Show for each rule whether it matches an event, and which node of its filter decided
#[derive(Debug, Args)]
#[command(
    after_help = "The rules are those of the configuration file, so that a change can be tried before it is reloaded.

Examples:
  closehook rules explain --event delivery.json
  closehook events export --limit 1 | closehook rules explain --event -
  closehook rules explain --id ev_2sYKRjcrA79yKxi3S4Crd7"
)]
pub(super) struct Explain {
    /// A delivery or an event as JSON; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "id", conflicts_with = "id")]
    event: Option<PathBuf>,
    /// An event of the log, by its id or Seq
    #[arg(long, value_name = "EVENT_ID")]
    id: Option<String>,
    /// Show every node of every filter
    #[arg(long)]
    full: bool,
}

impl Rules {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let Rules::Explain(command) = self;
        let config = global.load()?;
        let text = match (&command.event, &command.id) {
            (Some(path), _) if path.as_os_str() == "-" => std::io::read_to_string(std::io::stdin())?,
            (Some(path), _) => std::fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("{} can't be read: {error}", path.display())))?,
            (None, Some(id)) => {
                let connection = Connection::open(global, Access::Read).await?;
                let shown = connection.ask_one(events::Show { id: id.clone() }).await?;
                // As it is: it is read here, not shown.
                shown.event.body.unwrap_or_default()
            }
            (None, None) => String::new(),
        };
        let event = parse(&text)?;
        let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
        let rules = RuleSet::compile(&config.rules, &sinks).map_err(Failure::Faults)?;
        let explanations = rules.explain(&event);
        let routed: Vec<&str> = sinks
            .iter()
            .copied()
            .filter(|sink| rules.route(sink, &event).is_some())
            .collect();
        if global.json {
            return print_line(&json!({ "rules": explanations, "sinks": routed }).to_string());
        }
        let type_action = event
            .view()
            .and_then(View::type_action)
            .unwrap_or_else(|| "(no type)".into());
        // What stands in an event must not look like another line of ours.
        let id = event.view().map(|view| view.id.as_str()).unwrap_or_default();
        print_line(&plain::line(&format!("{type_action} {id}")))?;
        if explanations.is_empty() {
            print_line("no rules: every event goes to every sink")?;
        }
        for explanation in &explanations {
            let verdict = if explanation.matched {
                "matches"
            } else {
                "does not match"
            };
            let why = match (&explanation.decided_by, explanation.event_matched) {
                (_, false) => "none of its event patterns fits".to_owned(),
                (None, true) => "its events fit and it has no filter".to_owned(),
                (Some(node), true) => {
                    let place = if node.place.is_empty() {
                        "filter".to_owned()
                    } else {
                        format!("filter.{}", node.place)
                    };
                    format!("decided by {place} ({}), which saw {}", node.test, node.saw)
                }
            };
            let why = plain::line(&why);
            print_line(&format!("rule \"{}\" {verdict}: {why}", explanation.rule))?;
            if command.full
                && let Some(filter) = &explanation.filter
            {
                print_trace(filter, 1)?;
            }
        }
        print_line(&format!(
            "goes to: {}",
            if routed.is_empty() {
                "no sink".to_owned()
            } else {
                routed.join(", ")
            }
        ))
    }
}

fn print_trace(trace: &Trace, depth: usize) -> Outcome {
    let mark = if trace.matched { "yes" } else { "no " };
    let saw = plain::line(&trace.saw);
    print_line(&format!("{}{mark} {} <- {saw}", "  ".repeat(depth), trace.test))?;
    trace
        .children
        .iter()
        .try_for_each(|child| print_trace(child, depth + 1))
}

/// A delivery, an event, or a line of `events export`.
fn parse(text: &str) -> Result<Event, Failure> {
    // Not through serde_json's Value: deliveries may nest deeper than it likes.
    let text = json::validate(text.as_bytes()).map_err(|error| Failure::Usage(format!("the event is {error}")))?;
    let root = Node::new(text);
    let is_delivery = root
        .get("event")
        .is_some_and(|event| event.kind() == json::Kind::Object);
    let body = match root.get("body").and_then(Node::as_string) {
        Some(body) if !is_delivery => body.into_owned(),
        _ if is_delivery => text.to_owned(),
        _ => format!("{{\"event\":{}}}", root.raw()),
    };
    let body = match View::read(body.as_bytes()) {
        Ok(_) => body,
        // Somebody's sketch of an event: rules need no id.
        Err(Unreadable::NoId) => with_id(&body).ok_or_else(|| Failure::Usage(Unreadable::NoId.to_string()))?,
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    Ok(Event::new(
        Seq(1),
        Timestamp::now(),
        Source::Webhook,
        Kind::Event,
        None,
        body.into(),
    ))
}

/// The delivery with an id, which is empty.
fn with_id(body: &str) -> Option<String> {
    let event = Node::new(body).get("event")?.raw();
    json::with_member(body, "event", &json::with_member(event, "id", "\"\"")?)
}
