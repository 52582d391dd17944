//! Events, newest first: what the search means, and on by a cursor. A search that has to read much says how far it is, and goes on.

use std::fmt::Write;

use askama::Template;
use axum::extract::Query as Url;
use axum::response::Response;
use serde::Deserialize;

use super::query::Query;
use super::view::{Failed, Frame, Shown, View, html};
use super::{tail, text};
use crate::control::browse::{Browse, Browsed, Ended, Lost, Page};
use crate::event::Seq;
use crate::net::percent;

#[derive(Template)]
#[template(path = "events.html")]
struct Events {
    frame: Frame,
    query: Query,
    url: String,
    has_fault: bool,
    fault: Option<String>,
    piece: Piece,
}

/// A page of them, and what goes on behind it.
#[derive(Default, Template)]
#[template(path = "events_piece.html")]
struct Piece {
    rows: String,
    losses: Vec<Lost>,
    /// Where it goes on, as the end of a URL.
    next: String,
    has_more: bool,
    /// It goes on by itself.
    goes_on: bool,
    said: String,
    more: &'static str,
}

/// Where a search is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Place {
    before: Option<u64>,
    /// Not to go on by itself.
    hold: String,
    /// Events that were read for the pieces before.
    scanned: u64,
    /// Events that these have.
    found: u64,
}

/// A text as a part of a URL.
pub fn in_url(text: &str) -> String {
    percent::encoded(text)
}

/// `/events`
pub async fn show(view: View, Url(query): Url<Query>, Url(place): Url<Place>) -> Shown {
    let (piece, fault) = match piece(&view, &query, &place).await {
        Ok(piece) => (piece, None),
        Err(message) => (Piece::default(), Some(message)),
    };
    Ok(html(&Events {
        frame: view.frame("/events"),
        url: query.url(),
        query,
        has_fault: fault.is_some(),
        fault,
        piece,
    }))
}

/// The next piece of a search that goes on by itself.
pub async fn more(view: View, Url(query): Url<Query>, Url(place): Url<Place>) -> Result<Response, Failed> {
    let piece = piece(&view, &query, &place)
        .await
        .map_err(|message| view.bad(message))?;
    Ok(html(&piece))
}

/// A page is this long.
const PAGE: u64 = 50;

async fn piece(view: &View, query: &Query, place: &Place) -> Result<Piece, String> {
    let browse = Browse {
        pick: query.pick()?,
        before: place.before.map(Seq),
        limit: Some(PAGE.saturating_sub(place.found).max(1)),
        ..Browse::default()
    };
    match view.one(browse).await? {
        Browsed::Page(page) => Ok(Piece::of(&page, query, place)),
        Browsed::Progress(_) => Err("the daemon looked and did not come to an end: try again".to_owned()),
    }
}

impl Piece {
    fn of(page: &Page, query: &Query, place: &Place) -> Piece {
        let scanned = place.scanned + page.looked.scanned;
        let found = place.found + page.events.len() as u64;
        let goes_on = page.ended == Ended::Work && place.hold.is_empty() && page.next.is_some();
        let next = page.next.map(|before| {
            let mut next = query.url();
            if !next.is_empty() {
                next.push('&');
            }
            let _ = write!(next, "before={before}");
            // A page that is full begins anew.
            if page.ended == Ended::Work {
                let _ = write!(next, "&scanned={scanned}&found={found}");
            }
            next
        });
        let back_to = page
            .looked
            .received_at
            .map(|at| format!(", back to {}", text::when(&at)));
        let back_to = back_to.unwrap_or_default();
        let said = match page.ended {
            Ended::Full => format!("{} on this page", text::counted(&found, "event")),
            Ended::Work => format!(
                "{} looked at{back_to}; {} found",
                text::counted(&scanned, "event"),
                text::count(&found)
            ),
            Ended::Beginning if found == 0 => "Nothing in the log is like that.".to_owned(),
            Ended::Beginning => format!("{}: that is all", text::counted(&found, "event")),
        };
        Piece {
            rows: tail::rows(&page.events),
            losses: page.lost.clone(),
            has_more: next.is_some(),
            next: next.unwrap_or_default(),
            goes_on,
            said,
            more: if page.ended == Ended::Work {
                "Look further back"
            } else {
                "Older events"
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::browse::Looked;

    fn page(ended: Ended, next: Option<u64>, scanned: u64) -> Page {
        Page {
            events: Vec::new(),
            looked: Looked {
                to: Seq(7),
                received_at: None,
                scanned,
                bytes: 0,
                found: 0,
            },
            next: next.map(Seq),
            ended,
            head: Seq(100),
            lost: Vec::new(),
        }
    }

    #[test]
    fn a_search_that_reads_much_goes_on_and_says_how_far_it_is() {
        let query = Query {
            lead: "lead_ä".into(),
            ..Query::default()
        };
        let place = Place {
            scanned: 1000,
            found: 3,
            ..Place::default()
        };
        let piece = Piece::of(&page(Ended::Work, Some(7), 500), &query, &place);
        assert!(piece.goes_on && piece.has_more);
        assert_eq!(piece.next, "lead=lead_%C3%A4&before=7&scanned=1500&found=3");
        assert!(piece.said.contains("1,500 events looked at") && piece.said.contains("3 found"));
        let held = Place {
            hold: "1".into(),
            ..place
        };
        assert!(!Piece::of(&page(Ended::Work, Some(7), 500), &query, &held).goes_on);
        let over = Piece::of(&page(Ended::Beginning, None, 500), &query, &Place::default());
        assert!(!over.goes_on && !over.has_more && over.said.starts_with("Nothing"));
    }
}
