//! Who did what, and how it ended.

use askama::Template;
use jiff::Timestamp;

use super::events::in_url;
use super::text;
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
    /// Where to send what undoes it, and what.
    undo: Option<(String, bool)>,
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
        let order: serde_json::Value = serde_json::from_str(act.order.get()).unwrap_or_default();
        let (outcome, tone, error) = match &act.ended {
            None => ("runs", "accent", None),
            Some(ended) if ended.error.is_some() => ("failed", "bad", ended.error.clone()),
            Some(_) => ("done", "ok", None),
        };
        let is_done = outcome == "done";
        let paused = order["paused"].as_bool();
        let undo = match (order["order"].as_str(), order["sink"].as_str(), paused) {
            (Some("pause"), Some(sink), Some(paused)) if is_done => {
                Some((format!("/sinks/{}/pause", in_url(sink)), !paused))
            }
            _ => None,
        };
        ActRow {
            at: act.at,
            who: act.who.clone(),
            what: words(&order),
            order: text::brief(act.order.get()),
            outcome,
            tone,
            error,
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
        assert_eq!(ActRow::of(&act).undo, Some(("/sinks/a%2Fb/pause".to_owned(), false)));
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
