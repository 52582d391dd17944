//! `closehook rules`

mod cases;
mod compare;
mod explain;
mod test;

use clap::Subcommand;
use jiff::Timestamp;

use super::{Global, Outcome};
use crate::event::{Event, Kind, Seq, Source, Unreadable, View};
use crate::json::{self, Node};
use crate::rules::Explanation;

/// Look at rules, and test them
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  closehook rules explain --event delivery.json
  closehook rules test")]
pub(super) enum Rules {
    Explain(explain::Explain),
    Test(test::Test),
}

impl Rules {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        match self {
            Rules::Explain(command) => command.run(global).await,
            Rules::Test(command) => command.run(global).await,
        }
    }
}

/// An event out of a delivery, an event, or a line of `events export`: the first of a log, received then. An error is one sentence.
pub(in crate::cli) fn read_event(text: &str, received_at: Timestamp) -> Result<Event, String> {
    // Not through serde_json's Value: deliveries may nest deeper than it likes.
    let text = json::validate(text.as_bytes()).map_err(|error| format!("the event is {error}"))?;
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
        Err(Unreadable::NoId) => with_id(&body).ok_or_else(|| Unreadable::NoId.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    Ok(Event::new(
        Seq(1),
        received_at,
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

/// Why a rule matches an event or does not.
fn why(explanation: &Explanation) -> String {
    match (&explanation.decided_by, explanation.event_matched) {
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
    }
}
