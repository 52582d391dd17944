//! What comes just now: the newest events, and each that comes while somebody looks.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Extension;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use serde::Deserialize;

use super::query::Query;
use super::said::Urls;
use super::text;
use super::view::View;
use super::went::{self, WentCell};
use crate::admin::fields;
use crate::admin::refused::Refused;
use crate::admin::streams::{Source, streamed};
use crate::control::Pick;
use crate::control::browse::{Browse, Browsed, Ended, Page};
use crate::control::events::Line;
use crate::event::{Kind, Seq};
use crate::listener::standing::Standing;

/// So many events are there at first.
const ROWS: u64 = 25;

/// Rows of events, newest first.
#[derive(Template)]
#[template(path = "rows.html")]
struct Rows<'a> {
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    line: &'a Line,
    /// Where it went.
    went: &'a [WentCell],
}

/// The table of the newest.
#[derive(Template)]
#[template(path = "tail.html")]
pub struct TailTable {
    is_live: bool,
    connect: String,
    rows: String,
}

/// More came than anybody can read.
#[derive(Template)]
#[template(path = "skipped.html")]
struct Skipped {
    says: String,
    query: String,
    before: Seq,
}

/// What is to be said of an event beside its type; `None`: nothing.
pub fn word(line: &Line) -> Option<&'static str> {
    (line.kind != Kind::Event).then(|| text::kind(&line.kind))
}

/// Rows as text, with where each went.
pub fn rows(lines: &[Line], went: &[Vec<WentCell>]) -> String {
    let rows = lines.iter().enumerate().map(|(index, line)| Row {
        line,
        went: went.get(index).map_or(&[], Vec::as_slice),
    });
    let rows = Rows { rows: rows.collect() };
    rows.render().unwrap_or_default()
}

/// The newest events, with what goes on behind the last of them without a hole.
pub async fn newest(view: &View, is_live: bool) -> Result<TailTable, String> {
    let browse = Browse {
        limit: Some(ROWS),
        sinks: true,
        ..Browse::default()
    };
    let Browsed::Page(page) = view.one(browse).await? else {
        return Err("the daemon looked and did not come to an end: try again".to_owned());
    };
    Ok(TailTable {
        is_live,
        connect: connect(&Query::default(), page.head),
        rows: rows(&page.events, &went::of(&page)),
    })
}

/// Where it goes on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct After {
    after: String,
}

/// Where what comes next of these is to be had, behind this one.
pub fn connect(query: &Query, after: Seq) -> String {
    let url = query.url();
    let sign = if url.is_empty() { "" } else { "&" };
    format!("/tail?{url}{sign}after={after}")
}

/// It is looked so often whether something has come: that costs the same however much comes.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Of what came in that time so many rows are shown, and the rest is counted.
const ROWS_AT_A_TIME: u64 = 20;

/// Where a browser goes on that was cut off: behind the last row it has.
const LAST_EVENT_ID: &str = "last-event-id";

/// `/tail`: rows of what is meant as they come, for who has everything up to `after`. It ends with the session, and with the daemon.
pub async fn follow(
    view: View,
    Urls(After { after }, query): Urls<After, Query>,
    standing: Option<Extension<Arc<Standing>>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let after = fields::number("after", &after)?.unwrap_or_default();
    let pick = query.pick().map_err(Refused::bad)?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let standing = standing.map(|Extension(standing)| standing);
    let (state, viewer) = (view.state.clone(), view.viewer.clone());
    let tail = Tail {
        // What a browser has of another log is no place in this one.
        last: Seq(last.unwrap_or(after)).min(state.newest()),
        pick,
        query: query.url(),
        view,
    };
    streamed(&state, &viewer, standing.as_ref(), tail)
}

/// Somebody who looks at what comes.
struct Tail {
    view: View,
    /// What is meant.
    pick: Pick,
    /// The same as the end of a URL.
    query: String,
    /// Everything up to here was shown, counted, or is not meant.
    last: Seq,
}

impl Source for Tail {
    /// The next rows; `None`: it is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            // Where nothing comes this costs a look at one number.
            if self.view.state.newest() > self.last {
                match self.look().await {
                    Ok(Some(event)) => return Some(event),
                    Ok(None) => {}
                    // The browser asks again, and is told why where that is shown.
                    Err(error) => {
                        tracing::debug!(error, "a live tail has ended");
                        return None;
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Tail {
    /// What has come since; `None`: nothing. Where nothing of it is meant the browser is told how far it was looked, so that it goes on
    /// from there when it is cut off.
    async fn look(&mut self) -> Result<Option<Event>, String> {
        let browse = Browse {
            pick: self.pick.clone(),
            after: Some(self.last),
            limit: Some(ROWS_AT_A_TIME),
            ..Browse::default()
        };
        let Browsed::Page(page) = self.view.one(browse).await? else {
            return Ok(None);
        };
        let last = self.last;
        self.last = last.max(page.head);
        if self.last == last {
            return Ok(None);
        }
        let event = Event::default().id(self.last.to_string());
        Ok(Some(match self.news(&page, last, self.view.state.oldest()) {
            Some(rows) => event.data(rows),
            None => event,
        }))
    }

    fn news(&self, page: &Page, last: Seq, oldest: Seq) -> Option<String> {
        let mut text = news(page, last, &self.query).unwrap_or_default();
        // Below the rows, which are the newest first.
        text.push_str(&gone(last, oldest).unwrap_or_default());
        (!text.is_empty()).then_some(text)
    }
}

/// What came behind `last` and is not kept any more; `None`: all that came is.
fn gone(last: Seq, oldest: Seq) -> Option<String> {
    if last == Seq::ZERO || oldest <= last.next() {
        return None;
    }
    let (from, to) = (last.next(), oldest.prev());
    Some(format!(
        "<tr class=\"skipped\"><td colspan=\"6\">Events {from} to {to} came meanwhile, and the log keeps them no more</td></tr>"
    ))
}

/// The rows of what is behind `last`, newest first, and what lies between it and them and was not looked at; `None`: nothing is.
fn news(page: &Page, last: Seq, query: &str) -> Option<String> {
    let mut text = rows(&page.events, &went::just_came(page.events.len()));
    let skipped = page.looked.to.0.saturating_sub(last.0 + 1);
    if page.ended != Ended::Beginning && skipped > 0 {
        let count = text::counted(&skipped, "more event");
        let row = Skipped {
            // Of what was not looked at nobody knows whether it is meant.
            says: if query.is_empty() {
                count
            } else {
                format!("Up to {count}")
            },
            query: if query.is_empty() {
                String::new()
            } else {
                format!("{query}&")
            },
            before: page.looked.to,
        };
        text.push_str(&row.render().unwrap_or_default());
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::browse::Looked;
    use crate::event::Source as How;

    fn page(seqs: impl Iterator<Item = u64>, head: u64, ended: Ended) -> Page {
        let line = |seq| Line {
            seq: Seq(seq),
            received_at: jiff::Timestamp::UNIX_EPOCH,
            source: How::Webhook,
            kind: Kind::Event,
            type_action: Some("lead.<b>".to_owned()),
            id: Some(format!("ev_{seq}")),
            date_updated: None,
            lead_id: None,
        };
        let events: Vec<Line> = seqs.map(line).collect();
        Page {
            looked: Looked {
                to: events.last().map_or(Seq(head), |line| line.seq),
                received_at: None,
                scanned: 0,
                bytes: 0,
                found: 0,
            },
            events,
            went: None,
            next: None,
            ended,
            head: Seq(head),
            lost: Vec::new(),
            uncertain: Vec::new(),
        }
    }

    #[test]
    fn a_tail_has_each_event_or_counts_it() {
        assert_eq!(news(&page(0..0, 5, Ended::Beginning), Seq(5), ""), None);
        let two = news(&page((4..=5).rev(), 5, Ended::Beginning), Seq(3), "").unwrap();
        assert!(two.contains("ev_5") && two.contains("ev_4") && !two.contains("skipped"));
        assert!(two.contains("lead.&#60;b&#62;"), "{two}");
        let flood = news(&page((81..=100).rev(), 100, Ended::Full), Seq(10), "").unwrap();
        assert!(
            flood.contains("70 more events") && flood.contains("before=81"),
            "{flood}"
        );
        assert_eq!(gone(Seq(5), Seq(6)), None);
        assert_eq!(gone(Seq(0), Seq(6)), None, "nobody has seen anything yet");
        assert!(gone(Seq(5), Seq(9)).unwrap().contains("Events 6 to 8"));
        // Behind a filter the next one may be far; nothing in between is a skip, and what was not looked at is one.
        let rare = news(
            &page(std::iter::once(90), 100, Ended::Beginning),
            Seq(10),
            "lead=lead_1",
        )
        .unwrap();
        assert!(rare.contains("ev_90") && !rare.contains("skipped"), "{rare}");
        let mut much = page(0..0, 1_000_000, Ended::Work);
        much.looked.to = Seq(800_001);
        let much = news(&much, Seq(10), "lead=lead_1").unwrap();
        assert!(
            much.contains("Up to 799,990 more events") && much.contains("lead=lead_1&#38;before=800001"),
            "{much}"
        );
    }
}
