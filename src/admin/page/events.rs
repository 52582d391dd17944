//! Events, newest first: what the search means, and on by a cursor. A search that has to read much says how far it is, and goes on.

use std::fmt::Write;

use askama::Template;
use axum::response::Response;
use serde::Deserialize;

use super::query::Query;
use super::said::Urls;
use super::view::{Failed, Frame, Shown, View, html};
use super::{tail, text, went};
use crate::admin::fields;
use crate::admin::refused::Refused;
use crate::control::browse::{Browse, Browsed, Ended, Lost, Page, Work};
use crate::event::Seq;

#[derive(Template)]
#[template(path = "events.html")]
struct Events {
    frame: Frame,
    query: Query,
    place: Place,
    url: String,
    has_fault: bool,
    fault: Option<String>,
    piece: Piece,
    /// New ones come by themselves.
    is_live: bool,
    /// They could.
    can_follow: bool,
}

/// A page of them, and what goes on behind it.
#[derive(Default, Template)]
#[template(path = "events_piece.html")]
struct Piece {
    rows: String,
    /// Where what comes next of them is to be had; empty: it is not asked for.
    connect: String,
    /// What older events are asked for with, as the start of a URL's query: for a tail that lets go of its last rows.
    older: String,
    losses: Vec<Lost>,
    uncertain: Vec<String>,
    /// Where it goes on, as the end of a URL.
    next: String,
    has_more: bool,
    /// It goes on by itself.
    goes_on: bool,
    said: String,
    more: &'static str,
}

/// Where a search is.
#[derive(Debug, Default)]
struct Place {
    before: Option<u64>,
    /// The first Seq that is meant; a cursor goes no further back.
    from: Option<u64>,
    /// The last one.
    to: Option<u64>,
    /// Not to go on by itself.
    holds: bool,
    /// Events that were read for the pieces before.
    scanned: u64,
    /// Events that these have.
    found: u64,
    /// What comes is wanted too.
    is_live: bool,
    /// It would be, were this not the rest of a page.
    wants_live: bool,
}

/// Milliseconds after which a search shows what it has found so far: the first answer comes soon, and the search goes on behind it.
const FIRST_MILLIS: u64 = 150;

impl Place {
    fn work(&self) -> Work {
        let all = Work::default();
        let millis = if self.scanned == 0 { FIRST_MILLIS } else { all.millis };
        Work { millis, ..all }
    }

    /// What is meant as the end of a URL, without where in it this is.
    fn url(&self, query: &Query) -> String {
        let mut url = query.url();
        for (name, seq) in [("from", self.from), ("to", self.to)] {
            if let Some(seq) = seq {
                let sign = if url.is_empty() { "" } else { "&" };
                let _ = write!(url, "{sign}{name}={seq}");
            }
        }
        url
    }

    /// Only what is before this is looked at.
    fn end(&self) -> Option<Seq> {
        let behind = self.to.map(|to| to.saturating_add(1));
        self.before.into_iter().chain(behind).min().map(Seq)
    }

    /// Nothing is still to come of what is meant.
    fn is_over(&self, query: &Query) -> bool {
        self.before.is_some() || self.to.is_some() || !query.until.is_empty()
    }
}

/// The same as a URL says it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Said {
    before: String,
    from: String,
    to: String,
    hold: String,
    scanned: String,
    found: String,
    live: String,
}

impl Said {
    fn place(&self, query: &Query) -> Result<Place, Refused> {
        fields::choice("live", &self.live, &["on"])?;
        let place = Place {
            before: fields::number("before", &self.before)?,
            from: fields::number("from", &self.from)?,
            to: fields::number("to", &self.to)?,
            holds: !self.hold.is_empty(),
            scanned: fields::number("scanned", &self.scanned)?.unwrap_or_default(),
            found: fields::number("found", &self.found)?.unwrap_or_default(),
            wants_live: self.live == "on",
            is_live: false,
        };
        let is_live = place.wants_live && !place.is_over(query);
        Ok(Place { is_live, ..place })
    }
}

/// `/events`
pub async fn show(view: View, Urls(query, said): Urls<Query, Said>) -> Shown {
    let place = said.place(&query).map_err(|refused| view.wrong(refused))?;
    let (piece, fault) = match piece(&view, &query, &place).await {
        Ok(piece) => (piece, None),
        Err(message) => (Piece::default(), Some(message)),
    };
    Ok(html(&Events {
        frame: view.frame("/events"),
        url: place.url(&query),
        is_live: place.is_live && fault.is_none(),
        can_follow: !place.is_over(&query) && fault.is_none(),
        query,
        place,
        has_fault: fault.is_some(),
        fault,
        piece,
    }))
}

/// The next piece of a search that goes on by itself.
pub async fn more(view: View, Urls(query, said): Urls<Query, Said>) -> Result<Response, Failed> {
    let place = said.place(&query).map_err(|refused| view.wrong(refused))?;
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
        before: place.end(),
        after: place.from.map(|from| Seq(from).prev()),
        limit: Some(PAGE.saturating_sub(place.found).max(1)),
        sinks: true,
        work: place.work(),
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
        let goes_on = page.ended == Ended::Work && !place.holds && page.next.is_some();
        let next = page.next.map(|before| {
            let mut next = place.url(query);
            if !next.is_empty() {
                next.push('&');
            }
            let _ = write!(next, "before={before}");
            // A page that is full begins anew.
            if page.ended == Ended::Work {
                let _ = write!(next, "&scanned={scanned}&found={found}");
                next.push_str(if place.wants_live { "&live=on" } else { "" });
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
            rows: tail::rows(&page.events, &went::of(page)),
            connect: if place.is_live {
                tail::connect(query, page.head)
            } else {
                String::new()
            },
            older: match place.url(query) {
                url if url.is_empty() => url,
                url => format!("{url}&"),
            },
            losses: page.lost.clone(),
            uncertain: page.uncertain.clone(),
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
            went: None,
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
            uncertain: Vec::new(),
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
        assert_eq!(place.work(), Work::default());
        assert!(Place::default().work().millis < 300, "the first answer comes soon");
        let piece = Piece::of(&page(Ended::Work, Some(7), 500), &query, &place);
        assert!(piece.goes_on && piece.has_more);
        assert_eq!(piece.next, "lead=lead_%C3%A4&before=7&scanned=1500&found=3");
        assert!(piece.said.contains("1,500 events looked at") && piece.said.contains("3 found"));
        let held = Place { holds: true, ..place };
        assert!(!Piece::of(&page(Ended::Work, Some(7), 500), &query, &held).goes_on);
        let over = Piece::of(&page(Ended::Beginning, None, 500), &query, &Place::default());
        assert!(!over.goes_on && !over.has_more && over.said.starts_with("Nothing"));
    }
}
