//! What comes just now: the newest events, and each that comes while somebody looks.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Extension;
use axum::extract::Query as Url;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use serde::Deserialize;

use super::text;
use super::view::View;
use crate::admin::refused::Refused;
use crate::admin::streams::{Source, streamed};
use crate::control::browse::{Browse, Browsed, Ended, Page};
use crate::control::events::Line;
use crate::event::{Kind, Seq};
use crate::listener::standing::Standing;

/// So many events are there at first.
const ROWS: u64 = 25;

/// Rows of events, newest first.
#[derive(Template)]
#[template(path = "rows.html")]
pub struct Rows<'a> {
    pub lines: &'a [Line],
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
    count: u64,
    before: Seq,
}

/// What is to be said of an event beside its type; `None`: nothing.
pub fn word(line: &Line) -> Option<&'static str> {
    (line.kind != Kind::Event).then(|| text::kind(&line.kind))
}

/// Rows as text.
pub fn rows(lines: &[Line]) -> String {
    Rows { lines }.render().unwrap_or_default()
}

/// The newest events, with what goes on behind the last of them without a hole.
pub async fn newest(view: &View, is_live: bool) -> Result<TailTable, String> {
    let browse = Browse {
        limit: Some(ROWS),
        ..Browse::default()
    };
    let Browsed::Page(page) = view.one(browse).await? else {
        return Err("the daemon looked and did not come to an end: try again".to_owned());
    };
    Ok(TailTable {
        is_live,
        connect: format!("/tail?after={}", page.head),
        rows: rows(&page.events),
    })
}

#[derive(Debug, Deserialize)]
pub struct After {
    #[serde(default)]
    after: u64,
}

/// It is looked so often whether something has come: that costs the same however much comes.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Of what came in that time so many rows are shown, and the rest is counted.
const ROWS_AT_A_TIME: u64 = 20;

/// Where a browser goes on that was cut off: behind the last row it has.
const LAST_EVENT_ID: &str = "last-event-id";

/// `/tail`: rows as they come, for who has everything up to `after`. It ends with the session, and with the daemon.
pub async fn follow(
    view: View,
    Url(After { after }): Url<After>,
    standing: Option<Extension<Arc<Standing>>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let standing = standing.map(|Extension(standing)| standing);
    let (state, viewer) = (view.state.clone(), view.viewer.clone());
    let tail = Tail {
        // What a browser has of another log is no place in this one.
        last: Seq(last.unwrap_or(after)).min(state.newest()),
        view,
    };
    streamed(&state, &viewer, standing.as_ref(), tail)
}

/// Somebody who looks at what comes.
struct Tail {
    view: View,
    /// Everything up to here was shown, or counted.
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
    /// What has come since; `None`: nothing.
    async fn look(&mut self) -> Result<Option<Event>, String> {
        let browse = Browse {
            limit: Some(ROWS_AT_A_TIME),
            ..Browse::default()
        };
        let Browsed::Page(page) = self.view.one(browse).await? else {
            return Ok(None);
        };
        let last = self.last;
        self.last = last.max(page.head);
        Ok(news(&page, last).map(|rows| Event::default().id(self.last.to_string()).data(rows)))
    }
}

/// The rows of what is behind `last`, newest first, and how many lie between it and them; `None`: nothing is.
fn news(page: &Page, last: Seq) -> Option<String> {
    let shown: Vec<Line> = page.events.iter().filter(|line| line.seq > last).cloned().collect();
    let oldest = shown.last()?.seq;
    let skipped = oldest.0 - last.0 - 1;
    let mut text = rows(&shown);
    // Where the page goes back as far, what is not on it is gone from the log.
    let goes_back = page.ended == Ended::Beginning || shown.len() < page.events.len();
    if skipped > 0 && !goes_back {
        let skipped = Skipped {
            count: skipped,
            before: oldest,
        };
        text.push_str(&skipped.render().unwrap_or_default());
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::browse::Looked;
    use crate::event::Source as How;

    fn page(seqs: impl Iterator<Item = u64>, head: u64) -> Page {
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
        Page {
            events: seqs.map(line).collect(),
            looked: Looked {
                to: Seq(1),
                received_at: None,
                scanned: 0,
                bytes: 0,
                found: 0,
            },
            next: None,
            ended: Ended::Full,
            head: Seq(head),
            lost: Vec::new(),
        }
    }

    #[test]
    fn a_tail_has_each_event_or_counts_it() {
        assert_eq!(news(&page((1..=5).rev(), 5), Seq(5)), None);
        let two = news(&page((1..=5).rev(), 5), Seq(3)).unwrap();
        assert!(two.contains("ev_5") && two.contains("ev_4") && !two.contains("ev_3") && !two.contains("skipped"));
        assert!(two.contains("lead.&#60;b&#62;"), "{two}");
        let flood = news(&page((81..=100).rev(), 100), Seq(10)).unwrap();
        assert!(
            flood.contains("70 more events") && flood.contains("before=81"),
            "{flood}"
        );
    }
}
