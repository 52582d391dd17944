//! Sinks: how each does, what is wrong with it and what to do, and stopping or resuming it.

use std::collections::BTreeMap;

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::acting::{self, May};
use super::charts::{Chart, Series, as_count, as_span, counts};
use super::letters::GroupCell;
use super::query::Query;
use super::removed::{self, removed};
use super::said::{Form, Named, Urls};
use super::text::{self, in_url};
use super::tile::Tile;
use super::tries::{self, DeployedCell};
use super::trouble::{TroubleCell, is_about};
use super::view::{Failed, Frame, Shown, View, html, to};
use crate::admin::fields;
use crate::control::dead;
use crate::control::deployed::Kind;
use crate::control::groups::Groups;
use crate::control::history;
use crate::control::sinks::{Pause, Shown as Sink};
use crate::control::status::{self, Status, Trouble};
use crate::deliver::{Known, SinkStatus};
use crate::sorted;

/// A sink in a row.
pub struct SinkRow {
    pub name: String,
    pub name_in_url: String,
    pub kind: String,
    pub state: &'static str,
    pub tone: &'static str,
    pub lag_events: String,
    pub lag_seconds: String,
    pub delivered: String,
    /// In the last 15 minutes.
    pub lately: String,
    pub dead: String,
    pub has_dead: bool,
    pub paused: bool,
}

/// All of them.
#[derive(Template)]
#[template(path = "sinks_table.html")]
pub struct SinkTable {
    pub sinks: Vec<SinkRow>,
}

impl SinkRow {
    /// For people.
    pub fn of(shown: &Sink) -> SinkRow {
        let sink = &shown.sink;
        let (state, tone) = if sink.paused {
            ("paused", "warn")
        } else if sink.known == Known::Nothing {
            ("not known now", "warn")
        } else if sink.known == Known::Saved && sink.node.is_some() {
            ("driven elsewhere", "")
        } else if sink.breaker == "open" {
            ("breaker open", "bad")
        } else if sink.breaker == "half-open" {
            ("trying again", "warn")
        } else if sink.needs_person {
            ("needs you", "bad")
        } else if sink.waits_for.is_some() {
            ("waits", "warn")
        } else if sink.waits_by.is_some() {
            ("waits as configured", "")
        } else if sink.lag_events > 0 || sink.in_flight > 0 {
            ("delivering", "accent")
        } else if sink.dead > 0 && sink.delivered == 0 {
            // It is behind with nothing, and nothing has arrived.
            ("nothing delivered", "bad")
        } else {
            ("up to date", "ok")
        };
        SinkRow {
            name: sink.name.clone(),
            name_in_url: in_url(&sink.name),
            kind: sink.kind.clone(),
            state,
            tone,
            lag_events: saved(sink, text::count(&sink.lag_events)),
            lag_seconds: match lag_now(shown) {
                Some(lag) if lag > 0.0 => text::span(&lag),
                Some(_) => "none".to_owned(),
                None => UNKNOWN.to_owned(),
            },
            delivered: now(sink, text::count(&sink.delivered)),
            lately: lately(shown),
            dead: saved(sink, text::count(&sink.dead)),
            has_dead: sink.dead > 0,
            paused: sink.paused,
        }
    }
}

/// Stands where something is not known.
const UNKNOWN: &str = "–";

/// What is known of a sink as long as anything is.
fn saved(sink: &SinkStatus, text: String) -> String {
    if sink.known == Known::Nothing {
        return UNKNOWN.to_owned();
    }
    text
}

/// What is known of a sink only where it is driven.
fn now(sink: &SinkStatus, text: String) -> String {
    if sink.known.is_all() { text } else { UNKNOWN.to_owned() }
}

/// How many seconds it is behind now; `None`: that is not known here.
pub fn lag_now(shown: &Sink) -> Option<f64> {
    let is_known = shown.sink.known.is_all() && !shown.sink.lag_seconds.is_nan();
    is_known.then_some(shown.sink.lag_seconds)
}

/// What it was delivered in the last 15 minutes, where that is known here.
fn lately(shown: &Sink) -> String {
    shown
        .delivered_15m
        .as_ref()
        .map_or_else(|| UNKNOWN.to_owned(), text::count)
}

#[derive(Template)]
#[template(path = "sinks.html")]
struct Sinks {
    frame: Frame,
    table: SinkTable,
    removed: Vec<RemovedRow>,
    trouble: Option<String>,
    stranded: BTreeMap<String, u64>,
}

/// A sink that is configured no more.
struct RemovedRow {
    name: String,
    in_url: String,
    /// Where it may have letters.
    letters: Option<u64>,
    /// What is wrong with these.
    trouble: Option<String>,
}

impl RemovedRow {
    /// Those whose positions are kept, and those that have letters, or have lost some to damage.
    fn all(
        positions: Vec<String>,
        letters: Vec<dead::OfRemoved>,
        mut damaged: BTreeMap<String, String>,
    ) -> Vec<RemovedRow> {
        let names = positions.into_iter().chain(damaged.keys().cloned());
        let mut all: BTreeMap<String, Option<u64>> = sorted::map(names.map(|name| (name, None)));
        all.extend(letters.into_iter().map(|one| (one.sink, Some(one.letters))));
        let row = |(name, letters): (String, Option<u64>)| RemovedRow {
            in_url: in_url(&name),
            letters,
            trouble: damaged.remove(&name),
            name,
        };
        all.into_iter().map(row).collect()
    }
}

/// `/sinks`
pub async fn list(view: View) -> Shown {
    let status = view.one(status::Show {}).await.map_err(|error| view.refused(error))?;
    let sinks = status.sinks.iter().map(SinkRow::of).collect();
    let (letters, trouble) = match removed::all(&view).await {
        Ok(letters) => (letters, None),
        Err(message) => (Vec::new(), Some(message)),
    };
    let unread = status.removed_sinks_unread;
    let unread = unread.map(|why| format!("Which sinks were removed can't be read now: {why}"));
    Ok(html(&Sinks {
        frame: view.frame("/sinks"),
        table: SinkTable { sinks },
        removed: RemovedRow::all(status.removed_sinks, letters, status.removed_sinks_damaged),
        trouble: trouble.or(unread),
        stranded: status.stranded,
    }))
}

#[derive(Template)]
#[template(path = "sink.html")]
struct SinkPage {
    frame: Frame,
    name: String,
    in_url: String,
    done: Option<&'static str>,
    undo_to: bool,
    /// `None`: it is configured no more, and its letters are all there is of it.
    part: Option<Part>,
    dead_trouble: Option<String>,
    query: Query,
    url: String,
    fault: Option<String>,
    groups: Vec<GroupCell>,
    letters_in_all: u64,
    /// What makes something for it, to be tried with a change.
    made_by: Vec<DeployedCell>,
}

/// What of a sink changes.
#[derive(Template)]
#[template(path = "sink_part.html")]
struct Part {
    row: SinkRow,
    may_act: bool,
    troubles: Vec<TroubleCell>,
    waits: Option<String>,
    tiles: Vec<Tile>,
    last_error: Option<(String, String)>,
    charts: Vec<Chart>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Done {
    done: String,
}

/// So many groups are shown.
const GROUPS_MAX: usize = 500;

/// `/sinks/{sink}`
pub async fn show(view: View, Named(name): Named, Urls(query, done): Urls<Query, Done>) -> Shown {
    let (part, dead_trouble) = match find(&view, &name).await {
        Ok((status, sink)) => (Some(part_of(&view, &status, &sink).await?), sink.sink.dead_trouble),
        Err(missing) => match removed(&view, &name).await? {
            Some(_) => (None, None),
            None => return Err(missing),
        },
    };
    let (groups, fault) = match letters(&view, &name, &query).await {
        Ok(groups) => (groups, None),
        Err(message) => (Vec::new(), Some(message)),
    };
    let mut made_by = tries::deployed(&view).await?;
    made_by.retain(|one| one.kind != Kind::Filter && one.sinks.contains(&name));
    Ok(html(&SinkPage {
        frame: view.frame("/sinks"),
        in_url: in_url(&name),
        done: match done.done.as_str() {
            "paused" => Some("It is paused: nothing is delivered there until somebody resumes it."),
            "resumed" => Some("It goes on."),
            _ => None,
        },
        undo_to: done.done == "resumed",
        part,
        dead_trouble,
        url: query.url(),
        query,
        fault,
        made_by: made_by.iter().map(DeployedCell::of).collect(),
        letters_in_all: groups.iter().map(|group| group.count).sum(),
        groups,
        name,
    }))
}

/// What of it changes, for a page that looks again.
pub async fn part(view: View, Named(name): Named) -> Result<Response, Failed> {
    let (status, sink) = find(&view, &name).await?;
    Ok(html(&part_of(&view, &status, &sink).await?))
}

async fn find(view: &View, name: &str) -> Result<(Status, Sink), Failed> {
    let status = view.one(status::Show {}).await.map_err(|error| view.refused(error))?;
    let sink = status.sinks.iter().find(|sink| sink.sink.name == name).cloned();
    let missing = || view.failed(StatusCode::NOT_FOUND, format!("there is no sink \"{name}\""));
    let sink = sink.ok_or_else(missing)?;
    Ok((status, sink))
}

async fn letters(view: &View, name: &str, query: &Query) -> Result<Vec<GroupCell>, String> {
    let groups = Groups {
        sink: Some(name.to_owned()),
        pick: query.pick()?,
    };
    let groups = view.all(groups, GROUPS_MAX).await?;
    Ok(groups.into_iter().map(GroupCell::of).collect())
}

async fn part_of(view: &View, status: &Status, shown: &Sink) -> Result<Part, Failed> {
    let history = history::Show {
        hours: Some(24),
        step_minutes: Some(15),
    };
    let history = view.one(history).await.map_err(|error| view.refused(error))?;
    let sink = &shown.sink;
    let is_about_it = |trouble: &&Trouble| is_about(trouble, &sink.name);
    let at = sink.last_error_at.as_ref().map(|at| format!(", {}", text::ago(at)));
    Ok(Part {
        row: SinkRow::of(shown),
        may_act: view.frame("").may_act,
        troubles: status
            .troubles
            .iter()
            .filter(is_about_it)
            .map(TroubleCell::of_sink)
            .collect(),
        // That it is paused is among the troubles, and beside the button.
        waits: sink
            .waits_for
            .clone()
            .or_else(|| sink.waits_by.clone())
            .filter(|_| !sink.paused),
        tiles: tiles(shown),
        last_error: sink.last_error.clone().map(|error| (error, at.unwrap_or_default())),
        charts: charts(&history, shown),
    })
}

fn tiles(shown: &Sink) -> Vec<Tile> {
    let sink = &shown.sink;
    let oldest = match lag_now(shown) {
        Some(lag) if lag > 0.0 => format!("the oldest is {} old", text::span(&lag)),
        _ => String::new(),
    };
    let mut tiles = vec![
        Tile::new(
            "Everything up to",
            saved(sink, sink.cursor.to_string()),
            "is finished there",
        ),
        Tile::new("Behind", saved(sink, text::count(&sink.lag_events)), oldest),
        Tile::new(
            "Delivered",
            now(sink, text::count(&sink.delivered)),
            "since it was opened",
        ),
        Tile::new("Rate", lately(shown), "delivered in the last 15 minutes"),
        Tile::new("In flight", now(sink, text::count(&(sink.in_flight as u64))), ""),
        Tile::new("Retrying", saved(sink, text::count(&(sink.retrying as u64))), "").toned(if sink.retrying > 0 {
            "warn"
        } else {
            ""
        }),
        Tile::new("Dead letters", saved(sink, text::count(&sink.dead)), "").toned(if sink.dead > 0 {
            "bad"
        } else {
            ""
        }),
        breaker(sink),
    ];
    let more = [
        ("Held", shown.held, "for data that Close withholds"),
        ("Lost", sink.lost, "damaged or expired before"),
        ("Buried", sink.buried, "as the log was full"),
        ("Dropped", sink.dropped, "dead letters, for good"),
        ("Skipped", sink.skipped, "by its transform"),
        ("Superseded", sink.superseded, "by newer ones"),
        ("Diverted", sink.diverted, "to its dead_to"),
    ];
    let more = more.into_iter().filter(|(_, count, _)| *count > 0);
    tiles.extend(more.map(|(name, count, about)| Tile::new(name, text::count(&count), about)));
    tiles
}

fn breaker(sink: &SinkStatus) -> Tile {
    if !sink.known.is_all() {
        return Tile::new("Breaker", UNKNOWN, "known where it is driven");
    }
    Tile::new("Breaker", sink.breaker.clone(), "").toned(if sink.breaker == "closed" { "" } else { "bad" })
}

fn charts(history: &history::Charts, shown: &Sink) -> Vec<Chart> {
    let Some(sink) = history.sinks.get(&shown.sink.name) else {
        return Vec::new();
    };
    let counted =
        |title: &str, values: &[Option<u64>], tone| Series::of(history, title, counts(values), tone, as_count);
    let behind = (shown.sink.known != Known::Nothing).then_some(shown.sink.lag_events as f64);
    let lag = Series::of(history, "Lag", sink.lag_seconds.clone(), "lag", as_span);
    vec![
        counted("Delivered", &sink.delivered, "ok").draw(),
        counted("Given up", &sink.dead, "bad").draw(),
        lag.at_most(lag_now(shown)).draw(),
        counted("Events behind", &sink.lag_events, "lag").at_most(behind).draw(),
    ]
}

/// Which way.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Way {
    paused: String,
}

/// Stops or resumes it.
pub async fn pause(view: View, may: May, Named(name): Named, Form(way): Form<Way>) -> Shown {
    let paused = fields::flag("paused", &way.paused).map_err(|refused| view.wrong(refused))?;
    let order = Pause {
        sink: name.clone(),
        paused,
    };
    acting::order(&view, may, order).await?;
    let done = if paused { "paused" } else { "resumed" };
    Ok(to(&format!("/sinks/{}?done={done}", in_url(&name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_a_sink_is_no_number() {
        let sink = |known: &str, node: Option<&str>| -> Sink {
            let status = serde_json::json!({ "name": "crm", "kind": "http", "known": known, "cursor": null, "lag_events": null,
                "lag_seconds": null, "late_seconds": null, "in_flight": null, "retrying": null, "dead": null, "lost": null, "delivered": 0,
                "breaker": null, "paused": false, "last_error": null, "last_error_at": null, "node": node });
            serde_json::from_value(status).unwrap()
        };
        let nothing = sink("nothing", None);
        let row = SinkRow::of(&nothing);
        assert_eq!(row.state, "not known now");
        for said in [
            &row.lag_events,
            &row.lag_seconds,
            &row.delivered,
            &row.lately,
            &row.dead,
        ] {
            assert_eq!(said, UNKNOWN);
        }
        for tile in tiles(&nothing) {
            assert_eq!(tile.value, UNKNOWN, "{}", tile.name);
        }
        // Everything was given up: that nothing is left to send is not well.
        let mut given_up = sink("saved", None);
        given_up.sink.known = Known::Now;
        given_up.sink.dead = 3;
        assert_eq!(SinkRow::of(&given_up).state, "nothing delivered");
        // What was saved is known, and what goes on elsewhere is not.
        let saved = sink("saved", Some("b"));
        let row = SinkRow::of(&saved);
        assert_eq!(
            (row.state, row.dead.as_str(), row.lag_seconds.as_str()),
            ("driven elsewhere", "0", UNKNOWN)
        );
        let value = |name| tiles(&saved).into_iter().find(|tile| tile.name == name).unwrap().value;
        assert_eq!(
            (
                value("Behind").as_str(),
                value("In flight").as_str(),
                value("Delivered").as_str()
            ),
            ("0", UNKNOWN, UNKNOWN)
        );
    }
}
