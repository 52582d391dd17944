//! One event: what it is, why it goes where, what became of it at each sink, and what each would be sent.

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::letter::{self, LetterPage};
use super::said::Named;
use super::text::{self, Cut, in_url};
use super::view::{Failed, Frame, Shown, View, html};
use crate::control::dead::Shown as Letter;
use crate::control::sent::{Outcome, Sent};
use crate::control::sinks::{self, Shown as Sink};
use crate::control::whole::{AtSink, Found, Node, Verdict, Whole};
use crate::deliver::EventState;
use crate::event::{Kind, Seq};
use crate::json;

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    frame: Frame,
    title: String,
    verdict: &'static str,
    verdict_tone: &'static str,
    word: Option<&'static str>,
    can_go: bool,
    revisions: Vec<Seq>,
    sinks: Vec<SinkCell>,
    routes: Vec<RouteCell>,
    body: Cut,
    no_body: &'static str,
    found: Found,
}

struct SinkCell {
    name: String,
    kind: String,
    state: &'static str,
    tone: &'static str,
    because: String,
    /// Where it can be retried; `None`: there is no dead letter, or nobody who may.
    retry: Option<String>,
    reason: String,
    answer: Option<String>,
    sent: Option<SentCell>,
}

struct RouteCell {
    rule: String,
    matched: bool,
    to: String,
    tree: String,
}

/// What a sink would be sent.
#[derive(Template)]
#[template(path = "sent.html")]
pub struct SentCell {
    summary: String,
    reason: String,
    said: Option<String>,
    lines: Vec<(String, String)>,
    row: Option<String>,
    body: Option<Cut>,
}

/// One node of why, with those below it.
#[derive(Template)]
#[template(path = "node.html")]
struct Tree<'a> {
    node: &'a Node,
}

/// A tree as markup.
pub fn tree(node: &Node) -> String {
    Tree { node }.render().unwrap_or_default()
}

/// What a node asks, in plain words.
pub fn asks(node: &Node) -> String {
    let rest = || node.text.split_once(' ').map_or("", |(_, rest)| rest);
    match node.kind.as_str() {
        "and" => "all of".to_owned(),
        "or" => "at least one of".to_owned(),
        "not" => "not".to_owned(),
        "field_accessor" => format!("in {}", rest()),
        "any_array_value" => "any element of the list".to_owned(),
        "not_equals" => format!("is not {}", rest()),
        "equals" => format!("is {}", rest()),
        "is_null" => "is null, or not there".to_owned(),
        "non_null" => "is there, and not null".to_owned(),
        "events" => format!("an event of {}", node.text),
        _ => node.text.clone(),
    }
}

/// The value that it was asked of, where that says more than the nodes below it; empty: it does not.
pub fn saw(node: &Node) -> &str {
    if node.children.is_empty() { &node.saw } else { "" }
}

/// `/events/{id}`, by id or Seq
pub async fn show(view: View, Named(id): Named) -> Shown {
    let found = match of(&view, &id, true).await? {
        Kept::Log(found) => *found,
        Kept::Letters(letters) => {
            let page = LetterPage::of(view.frame("/events"), letters);
            return page.map(|page| html(&page)).ok_or_else(|| missing(&view));
        }
    };
    // Why something waits is known of its sink; without that the rest is shown all the same.
    let sinks = view.all(sinks::List {}, SINKS_MAX).await.unwrap_or_default();
    Ok(html(&EventPage::of(view.frame("/events"), found, &sinks)))
}

/// Where an event is.
enum Kept {
    Log(Box<Found>),
    /// The log keeps it no more, or can't be read: so far it is a dead letter, or several.
    Letters(Vec<Letter>),
}

/// Looks for an event in the log, and then among dead letters. That there is none is said only where both could be read.
async fn of(view: &View, id: &str, send: bool) -> Result<Kept, Failed> {
    let whole = Whole {
        id: id.to_owned(),
        send,
    };
    let failing = match view.all(whole, 1).await.map(|found| found.into_iter().next()) {
        Ok(Some(found)) => return Ok(Kept::Log(Box::new(found))),
        Ok(None) => None,
        Err(failing) => Some(failing),
    };
    let letters = letter::of(view, id).await;
    match (letters, failing) {
        (Ok(letters), _) if !letters.is_empty() => Ok(Kept::Letters(letters)),
        (_, Some(failing)) | (Err(failing), None) => Err(view.unreadable(failing)),
        (Ok(_), None) => Err(missing(view)),
    }
}

fn missing(view: &View) -> Failed {
    view.failed(
        StatusCode::NOT_FOUND,
        "there is no such event in the log, nor a dead letter of it",
    )
}

/// Of so many sinks it is said why something waits.
const SINKS_MAX: usize = 10_000;

/// Why an event waits at a sink.
fn waits(sink: &Sink) -> String {
    let sink = &sink.sink;
    if sink.paused {
        return "The sink is paused: nothing is delivered there until somebody resumes it.".to_owned();
    }
    let why = sink.waits_for.as_ref().or(sink.waits_by.as_ref());
    match (why, sink.lag_events) {
        (Some(why), _) => why.clone(),
        (None, 0 | 1) => String::new(),
        (None, behind) => format!("The sink is {} behind.", text::counted(&behind, "event")),
    }
}

/// Its bytes, which no browser takes for anything else than text.
pub async fn raw(view: View, Named(id): Named) -> Shown {
    let event = match of(&view, &id, false).await? {
        Kept::Log(found) => found.event,
        Kept::Letters(letters) => {
            let kept = letters.into_iter().find_map(|letter| letter.event);
            kept.ok_or_else(|| missing(&view))?
        }
    };
    let bytes = event.bytes().unwrap_or_default();
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, bytes).into_response())
}

impl EventPage {
    fn of(frame: Frame, mut found: Found, all: &[Sink]) -> EventPage {
        let (verdict, verdict_tone) = verdict(found.signature.verdict);
        let title = text::brief(found.type_action.as_deref().unwrap_or("An event without a type"));
        let body = match (found.event.body.take(), found.event.body_base64.take()) {
            (Some(body), _) => text::cut(&text::pretty(&body)),
            (None, Some(encoded)) => text::cut(&encoded),
            (None, None) => text::cut(""),
        };
        let id = found.id.clone().filter(|_| frame.may_act);
        let sinks = found.sinks.iter_mut();
        let sinks = sinks.map(|at| SinkCell::of(at, all, id.as_deref())).collect();
        let routes = found.routes.iter().map(|route| RouteCell {
            rule: route.rule.clone(),
            matched: route.matched,
            to: if route.sinks.is_empty() {
                "no sink".to_owned()
            } else {
                route.sinks.join(", ")
            },
            tree: tree(&route.why),
        });
        let no_body = match found.kind {
            Kind::Erased => "It was erased on request.",
            _ => "It is empty.",
        };
        EventPage {
            frame,
            title,
            verdict,
            verdict_tone,
            word: (found.kind != Kind::Event).then(|| text::kind(&found.kind)),
            can_go: matches!(found.kind, Kind::Event | Kind::Partial),
            revisions: found.revisions.clone(),
            routes: routes.collect(),
            sinks,
            body,
            no_body,
            found,
        }
    }
}

fn verdict(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Valid => ("signed", "ok"),
        Verdict::Invalid => ("signature does not fit", "bad"),
        Verdict::Unchecked => ("can't be checked now", "warn"),
        Verdict::Unsigned => ("fetched, not signed", ""),
        Verdict::Missing => ("no signature", "bad"),
        Verdict::Erased => ("erased", "warn"),
    }
}

impl SinkCell {
    /// `id`: the event's, where whoever looks may act.
    fn of(at: &mut AtSink, all: &[Sink], id: Option<&str>) -> SinkCell {
        let because = if !at.rules.is_empty() {
            let rules = if at.rules.len() == 1 { "rule" } else { "rules" };
            format!("by {rules} {}", at.rules.join(", "))
        } else if at.routed {
            "every event goes there".to_owned()
        } else {
            "no rule sends it there now".to_owned()
        };
        let (state, tone) = state(&at.state);
        let (reason, answer) = match &at.state {
            EventState::Retrying { attempts, due, reason } => {
                let times = text::counted(&u64::from(*attempts), "attempt");
                (
                    format!("{times}, the next {} at {}: {reason}", text::ago(due), text::when(due)),
                    None,
                )
            }
            EventState::Dead { reason, answer } => (reason.clone(), answer.clone()),
            EventState::Unknown { reason } => (reason.clone(), None),
            EventState::Waiting => {
                let sink = all.iter().find(|sink| sink.sink.name == at.sink);
                (sink.map(waits).unwrap_or_default(), None)
            }
            _ => (String::new(), None),
        };
        SinkCell {
            retry: id
                .filter(|_| matches!(at.state, EventState::Dead { .. }))
                .map(|id| format!("/sinks/{}/letters?act=retry&id={}", in_url(&at.sink), in_url(id))),
            name: at.sink.clone(),
            kind: at.kind.clone(),
            state,
            tone,
            because,
            reason,
            answer,
            sent: at.sent.take().map(SentCell::of),
        }
    }
}

/// The tone of what became of an event at a sink.
pub fn tone(word: &str) -> &'static str {
    match word {
        "delivered" => "ok",
        "in-flight" => "accent",
        "dead" | "lost" => "bad",
        "retrying" | "diverted" | "held" | "unknown" => "warn",
        _ => "",
    }
}

/// What became of an event at a sink: the word, and its tone.
fn state(state: &EventState) -> (&'static str, &'static str) {
    let words = match state {
        EventState::NotRouted => "not routed",
        EventState::InFlight => "in flight",
        EventState::Unknown { .. } => "not known",
        other => other.word(),
    };
    (words, tone(state.word()))
}

impl SentCell {
    /// For people.
    pub fn of(sent: Sent) -> SentCell {
        let size = sent
            .body_bytes
            .map(|bytes| format!(", {}", text::size(&bytes)))
            .unwrap_or_default();
        let by = sent
            .rule
            .as_ref()
            .map(|rule| format!(" by rule {rule}"))
            .unwrap_or_default();
        let summary = match sent.outcome {
            Outcome::Sent => format!("What it would be sent now{by}{size}"),
            Outcome::Skipped if sent.reason.is_some() => format!("Nothing would be sent now{by}"),
            Outcome::Skipped => format!("Nothing would be sent now: its transform wants nothing delivered{by}"),
            Outcome::Failed => format!("Nothing can be made of it now{by}"),
            Outcome::Unavailable => "Nothing can be made of any event now".to_owned(),
        };
        let mut lines: Vec<(String, String)> = sent.headers.into_iter().collect();
        lines.extend(sent.key.map(|key| ("key".to_owned(), key)));
        lines.extend(sent.subject.map(|subject| ("subject".to_owned(), subject)));
        let body = sent.body.map(|body| text::pretty(&body)).or(sent.body_base64);
        SentCell {
            summary,
            reason: sent.reason.unwrap_or_default(),
            said: sent.said,
            lines: lines
                .into_iter()
                .map(|(name, value)| (name, text::brief(&value)))
                .collect(),
            row: sent.row.map(|row| text::cut(&json::indented(row.get())).text),
            body: body.map(|body| text::cut(&body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_nested_and_marks_what_decided() {
        let leaf = |matched, deciding| Node {
            kind: "equals".into(),
            text: "equals \"<won>\"".into(),
            place: String::new(),
            saw: "\"\u{202e}lost\"".into(),
            matched,
            deciding,
            children: Vec::new(),
        };
        let root = Node {
            kind: "and".into(),
            text: "and".into(),
            children: vec![leaf(true, false), leaf(false, true)],
            ..leaf(false, false)
        };
        let shown = tree(&root);
        assert_eq!(shown.matches("<li").count(), 3);
        assert_eq!(shown.matches("this decided").count(), 1);
        assert!(shown.contains("&#60;won&#62;") && shown.contains(r"\u202e"), "{shown}");
    }
}
