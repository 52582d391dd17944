//! Who did what, and how it ended.

use askama::Template;
use jiff::Timestamp;

use super::text::{self, in_url};
use super::view::{Frame, Shown, View, html};
use crate::admin::acts::Act;

#[derive(Template)]
#[template(path = "acts.html")]
struct Acts {
    frame: Frame,
    acts: Vec<ActRow>,
}

struct ActRow {
    at: Timestamp,
    who: String,
    what: String,
    order: String,
    outcome: &'static str,
    tone: &'static str,
    error: Option<String>,
    /// Where it is shown what came of what was only begun.
    see: Option<&'static str>,
    /// What undoes it.
    undo: Option<Undo>,
}

/// A form that undoes an act: where it goes, and the one field that it says.
#[derive(Debug, PartialEq, Eq)]
struct Undo {
    action: String,
    field: &'static str,
    value: bool,
}

/// What undoes an order; `None`: what it has done stays done (what is dropped is gone, what is sent is sent).
fn undo(order: &serde_json::Value) -> Option<Undo> {
    let text = |key: &str| order[key].as_str();
    let (action, field) = match text("order")? {
        "pause" => (format!("/sinks/{}/pause", in_url(text("sink")?)), "paused"),
        "replay-set" => (format!("/replays/{}", in_url(text("id")?)), "running"),
        "backfill-set" => ("/close/backfill/set".to_owned(), "running"),
        _ => return None,
    };
    let value = !order[field].as_bool()?;
    Some(Undo { action, field, value })
}

/// `/acts`
pub async fn show(view: View) -> Shown {
    let acts = view.state.acts().last().iter().map(ActRow::of).collect();
    Ok(html(&Acts {
        frame: view.frame("/acts"),
        acts,
    }))
}

impl ActRow {
    fn of(act: &Act) -> ActRow {
        let order: serde_json::Value = serde_json::from_slice(act.order.get().as_bytes()).unwrap_or_default();
        let (outcome, tone, error) = match &act.ended {
            None => ("runs", "accent", None),
            Some(ended) if ended.error.is_some() => ("failed", "bad", ended.error.clone()),
            Some(_) => ("done", "ok", None),
        };
        let undo = if outcome == "done" { undo(&order) } else { None };
        ActRow {
            at: act.at,
            who: act.who.clone(),
            what: words(&order),
            order: text::brief(act.order.get()),
            outcome,
            tone,
            error,
            see: match order["order"].as_str() {
                Some("backfill" | "backfill-set") => Some("/close#backfill"),
                Some("replay-start") => Some("/replays"),
                _ => None,
            },
            undo,
        }
    }
}

/// An order, for people.
fn words(order: &serde_json::Value) -> String {
    let name = |key: &str| order[key].as_str().unwrap_or("every sink").to_owned();
    match order["order"].as_str().unwrap_or_default() {
        "pause" if order["paused"] == true => format!("Paused {}", name("sink")),
        "pause" => format!("Resumed {}", name("sink")),
        "replay-start" => "Began a replay".to_owned(),
        "replay-set" if order["running"] == true => format!("Went on with replay {}", name("id")),
        "replay-set" => format!("Interrupted replay {}", name("id")),
        "dead-retry" => format!("Retried dead letters of {}", name("sink")),
        "dead-drop" => format!("Dropped dead letters of {}", name("sink")),
        "backfill-plan" => "Counted a backfill".to_owned(),
        "backfill" => "Began a backfill".to_owned(),
        "backfill-set" if order["running"] == true => "Went on with the backfill".to_owned(),
        "backfill-set" => "Stopped the backfill".to_owned(),
        "subscription-resume" => format!("Resumed subscription {}", name("id")),
        "reload" => "Reloaded the configuration".to_owned(),
        "" => "An order too long to be kept".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_has_words_and_a_pause_can_be_undone() {
        let order = serde_json::json!({"order": "pause", "sink": "a/b", "paused": true});
        assert_eq!(words(&order), "Paused a/b");
        let act = Act {
            number: 1,
            at: Timestamp::UNIX_EPOCH,
            who: "on-call".into(),
            order: serde_json::value::to_raw_value(&order).unwrap(),
            ended: Some(crate::admin::acts::Ended {
                at: Timestamp::UNIX_EPOCH,
                error: None,
            }),
        };
        let wanted = Undo {
            action: "/sinks/a%2Fb/pause".to_owned(),
            field: "paused",
            value: false,
        };
        assert_eq!(ActRow::of(&act).undo, Some(wanted));
        let set =
            |order: &str, running: bool| words(&serde_json::json!({"order": order, "id": "r1", "running": running}));
        assert_eq!(set("replay-set", true), "Went on with replay r1");
        assert_eq!(set("replay-set", false), "Interrupted replay r1");
        assert_eq!(set("backfill-set", true), "Went on with the backfill");
        assert_eq!(set("backfill-set", false), "Stopped the backfill");
        let undone = |order| undo(&order).map(|undo| (undo.action, undo.field, undo.value));
        assert_eq!(
            undone(serde_json::json!({"order": "replay-set", "id": "r1", "running": false})),
            Some(("/replays/r1".to_owned(), "running", true))
        );
        assert_eq!(
            undone(serde_json::json!({"order": "backfill-set", "running": true})),
            Some(("/close/backfill/set".to_owned(), "running", false))
        );
        for done in ["dead-drop", "dead-retry", "replay-start", "reload", "backfill"] {
            assert_eq!(undone(serde_json::json!({"order": done, "sink": "a", "id": "x"})), None);
        }
        let failed = Act {
            ended: Some(crate::admin::acts::Ended {
                at: Timestamp::UNIX_EPOCH,
                error: Some("there is no sink".into()),
            }),
            ..act
        };
        assert_eq!(ActRow::of(&failed).undo, None);
    }
}
