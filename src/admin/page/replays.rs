//! Replays: counted first, then confirmed, then watched; interrupted and gone on with.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use askama::Template;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::acting::{self, May};
use super::jobs::{JobPage, JobPart, is_part};
use super::query::Query;
use super::said::{Form, Named, Urls};
use super::text::{self, in_url};
use super::view::{Frame, Shown, View, html, to};
use crate::admin::fields;
use crate::control::replay::{Counted, List, Plan, Planned, Set, Start};
use crate::control::sinks;
use crate::deliver::{ReplaySpec, ReplayStatus};
use crate::event::Seq;

/// So long a count may take: it reads the log.
const COUNT_PATIENCE: Duration = Duration::from_secs(300);

/// So many replays are shown.
const REPLAYS_MAX: usize = 1000;

/// What a form says of a replay beside which events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Aim {
    from: String,
    to: String,
    sink: String,
    rate: String,
}

#[derive(Template)]
#[template(path = "replay.html")]
struct Replay {
    frame: Frame,
    query: Query,
    aim: Aim,
    sinks: Vec<String>,
    fault: Option<String>,
    counted: Count,
}

#[derive(Default, Template)]
#[template(path = "replay_count.html")]
struct Count {
    url: String,
    waits: bool,
    may_act: bool,
    fault: Option<String>,
    says: String,
    planned: BTreeMap<String, u64>,
    plan: String,
    button: String,
}

fn number(name: &str, text: &str) -> Result<Option<u64>, String> {
    let text = text.trim();
    let wrong = |_| format!("{name}: \"{text}\" is no number");
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some).map_err(wrong)
    }
}

fn spec(query: &Query, aim: &Aim) -> Result<ReplaySpec, String> {
    let pick = query.pick()?;
    if pick.partial.is_some() || pick.quarantined == Some(true) {
        return Err(
            "what is quarantined is never delivered, and what lacks its data goes out by itself when it may: leave these out".to_owned(),
        );
    }
    let from = number("from Seq", &aim.from)?.unwrap_or(1);
    let to = number("to Seq", &aim.to)?.unwrap_or(u64::MAX);
    let rate = match aim.rate.trim() {
        "" => None,
        text => match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate.is_finite() => Some(rate),
            _ => return Err(format!("deliveries a second: \"{text}\" is no number above 0")),
        },
    };
    Ok(ReplaySpec {
        since: pick.since,
        until: pick.until,
        ids: pick.ids,
        types: pick.types,
        lead: pick.lead,
        filter: pick.filter,
        sinks: if aim.sink.is_empty() {
            Vec::new()
        } else {
            vec![aim.sink.clone()]
        },
        rate,
        only_partials: false,
        releases: false,
        ..ReplaySpec::of_partials(Seq(from), Seq(to))
    })
}

/// `/replay`: which events, and what would go where. Nothing is counted before somebody has said which.
pub async fn plan(view: View, RawQuery(raw): RawQuery, Urls(query, aim): Urls<Query, Aim>) -> Shown {
    let sinks = view
        .all(sinks::List {}, 10_000)
        .await
        .map_err(|error| view.refused(error))?;
    let url = raw.unwrap_or_default();
    Ok(html(&Replay {
        frame: view.frame("/replays"),
        fault: spec(&query, &aim).err(),
        counted: Count {
            waits: !url.is_empty(),
            url,
            says: "Say which events, and count.".to_owned(),
            ..Count::default()
        },
        query,
        aim,
        sinks: sinks.into_iter().map(|sink| sink.sink.name).collect(),
    }))
}

/// What would go where.
pub async fn count(view: View, Urls(query, aim): Urls<Query, Aim>, headers: HeaderMap) -> Shown {
    let count = match counted(&view, &query, &aim).await {
        Ok(counted) => Count::of(&counted, view.frame("").may_act),
        Err(message) => Count {
            fault: Some(message),
            ..Count::default()
        },
    };
    if is_part(&headers) {
        return Ok(html(&count));
    }
    let part = count.render().unwrap_or_default();
    Ok(html(&JobPage {
        frame: view.frame("/replays"),
        title: "Replay".to_owned(),
        back: "/replay".to_owned(),
        part: JobPart {
            title: String::new(),
            place: String::new(),
            runs: false,
            failed: false,
            says: query.words(),
            fraction: None,
            more: Vec::new(),
            after: part,
        },
    }))
}

async fn counted(view: &View, query: &Query, aim: &Aim) -> Result<Counted, String> {
    let plan = Plan {
        spec: Box::new(spec(query, aim)?),
    };
    let planning = tokio::time::timeout(COUNT_PATIENCE, view.state.ask(plan).last());
    let slow = |_| "counting takes too long here: restrict it, or use `closehook replay`".to_owned();
    match planning.await.map_err(slow)?? {
        Planned::Done(counted) => Ok(*counted),
        Planned::Progress { .. } => Err("counting did not come to an end: try again".to_owned()),
    }
}

impl Count {
    fn of(counted: &Counted, may_act: bool) -> Count {
        let whole: u64 = counted.planned.values().sum();
        let many = if whole == 1 {
            "1 delivery".to_owned()
        } else {
            format!("{} deliveries", text::count(&whole))
        };
        Count {
            says: if whole == 0 {
                "Nothing would be sent: no event is meant, or no rule sends one anywhere.".to_owned()
            } else {
                format!("{many} would be sent.")
            },
            planned: if whole == 0 {
                BTreeMap::new()
            } else {
                counted.planned.clone()
            },
            plan: serde_json::to_string(counted).unwrap_or_default(),
            button: format!("Send {many}"),
            may_act,
            ..Count::default()
        }
    }
}

/// A plan as it was shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sent {
    plan: String,
}

/// Begins one as it was planned.
pub async fn start(view: View, may: May, Form(Sent { plan }): Form<Sent>) -> Shown {
    let actor = acting::actor(&view, may)?;
    let counted: Counted =
        serde_json::from_slice(plan.as_bytes()).map_err(|_| view.bad("that is no plan: count again"))?;
    let order = Start {
        spec: Box::new(counted.spec),
        planned: counted.planned,
    };
    let begun = acting::last(&view.state, &actor, order).await;
    let begun = begun.map_err(|error| view.refused(error))?;
    Ok(to(&format!("/replays/{}", in_url(&begun.id))))
}

#[derive(Template)]
#[template(path = "replays.html")]
struct Replays {
    frame: Frame,
    replays: Vec<ReplayStatus>,
}

/// The tone of a state.
pub fn tone(state: &str) -> &'static str {
    match state {
        "running" => "accent",
        "done" => "ok",
        "incomplete" => "bad",
        _ => "warn",
    }
}

/// What was planned over all sinks.
pub fn planned(replay: &ReplayStatus) -> String {
    text::count(&replay.planned.values().sum::<u64>())
}

/// `/replays`
pub async fn list(view: View) -> Shown {
    let mut replays = view
        .all(List {}, REPLAYS_MAX)
        .await
        .map_err(|error| view.refused(error))?;
    replays.reverse();
    Ok(html(&Replays {
        frame: view.frame("/replays"),
        replays,
    }))
}

#[derive(Template)]
#[template(path = "replay_set.html")]
struct SetForm<'a> {
    action: &'a str,
    runs: bool,
}

/// `/replays/{id}`
pub async fn show(view: View, Named(id): Named, headers: HeaderMap) -> Shown {
    let replays = view
        .all(List {}, REPLAYS_MAX)
        .await
        .map_err(|error| view.refused(error))?;
    let replay = replays.into_iter().find(|replay| replay.id == id);
    let missing = || view.failed(StatusCode::NOT_FOUND, format!("there is no replay {id}"));
    let replay = replay.ok_or_else(missing)?;
    let part = part_of(&replay, view.frame("").may_act);
    if is_part(&headers) {
        return Ok(html(&part));
    }
    Ok(html(&JobPage {
        frame: view.frame("/replays"),
        title: format!("Replay {id}"),
        back: "/replays".to_owned(),
        part,
    }))
}

fn part_of(replay: &ReplayStatus, may_act: bool) -> JobPart {
    let whole: u64 = replay.planned.values().sum();
    let finished = replay.delivered + replay.dead + replay.skipped + replay.lost;
    let runs = replay.state == "running";
    let mut says = format!(
        "{}: {} of {} delivered",
        replay.state,
        text::count(&replay.delivered),
        text::count(&whole)
    );
    for (count, word) in [
        (replay.dead, "dead letters"),
        (replay.skipped, "skipped"),
        (replay.lost, "lost"),
    ] {
        if count > 0 {
            let _ = write!(says, ", {} {word}", text::count(&count));
        }
    }
    let place = format!("/replays/{}", in_url(&replay.id));
    let form = SetForm { action: &place, runs };
    let after = if may_act && (runs || replay.state == "interrupted") {
        form.render().unwrap_or_default()
    } else {
        String::new()
    };
    let more = replay.waits_for.iter().map(|waits| format!("It waits: {waits}"));
    JobPart {
        title: "Replay".to_owned(),
        runs,
        failed: replay.state == "incomplete" || replay.dead > 0,
        says,
        fraction: Some(finished.min(whole) as f64 / whole.max(1) as f64),
        more: more.chain(replay.because.clone()).collect(),
        after,
        place,
    }
}

/// Whether it goes on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Way {
    running: String,
}

/// Interrupts it, or goes on with it.
pub async fn set(view: View, may: May, Named(id): Named, Form(way): Form<Way>) -> Shown {
    let order = Set {
        id: id.clone(),
        running: fields::flag("running", &way.running).map_err(|refused| view.wrong(refused))?,
    };
    acting::order(&view, may, order).await?;
    Ok(to(&format!("/replays/{}", in_url(&id))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_says_which_events_go_where() {
        let aim = Aim {
            from: "7".into(),
            sink: "audit".into(),
            rate: "2.5".into(),
            ..Aim::default()
        };
        let spec = spec(
            &Query {
                lead: "lead_1".into(),
                ..Query::default()
            },
            &aim,
        )
        .unwrap();
        assert_eq!((spec.from, spec.to), (Seq(7), Seq(u64::MAX)));
        assert_eq!(
            (spec.sinks, spec.rate, spec.lead),
            (vec!["audit".to_owned()], Some(2.5), Some("lead_1".to_owned()))
        );
        assert!(!spec.only_partials);
        for (from, rate) in [("x", ""), ("-1", ""), ("", "0"), ("", "NaN"), ("", "fast")] {
            let aim = Aim {
                from: from.into(),
                rate: rate.into(),
                ..Aim::default()
            };
            assert!(super::spec(&Query::default(), &aim).is_err(), "{from} {rate}");
        }
        for (name, value) in [("quarantined", "only"), ("partial", "only"), ("partial", "without")] {
            let query: Query = serde_json::from_value(serde_json::json!({ name: value })).unwrap();
            let refused = super::spec(&query, &Aim::default()).is_err();
            assert!(refused, "more would be sent than {name} {value} shows");
        }
    }
}
