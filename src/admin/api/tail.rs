//! What comes, as it comes: over server-sent events, each with its Seq as its id, so that a browser that connects again says where it
//! was (`Last-Event-ID`) and goes on without a hole.
//!
//! Nobody's log is read here without somebody who reads along: the stream pulls, and ends with its reader. Who can't keep up, or could
//! not read so fast, is told what was left out (`skipped`: a range of Seqs) and goes on near the end.

use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use serde::Serialize;
use tokio::time::Instant;

use super::asked::{Asked, Way};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::streams::{Source, streamed};
use crate::control::events::{Line, List};
use crate::control::{Pick, Told};
use crate::event::Seq;

/// Lines a second at the most: more is to be counted, and not to be read.
const PER_SECOND: u32 = 500;

/// Who is so far behind the newest event ...
const BEHIND_MAX: u64 = 2000;

/// ... goes on so far before it.
const GO_ON_AT: u64 = 100;

/// `GET /tail`
pub async fn tail(
    State(state): State<AdminState>,
    way: Way,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, Refused> {
    let pick = asked.pick()?;
    let after = asked.read::<u64>("after", "the Seq of an event")?;
    asked.all_taken()?;
    let last = match headers.get("last-event-id") {
        None => None,
        Some(last) => {
            let seq = last.to_str().ok().and_then(|last| last.parse::<u64>().ok());
            Some(seq.ok_or_else(|| Refused::bad("Last-Event-ID has to be the Seq of an event").at("Last-Event-ID"))?)
        }
    };
    // What the browser has seen counts for more than where the page once began.
    let at = Seq(last.or(after).unwrap_or(state.newest().0).min(state.newest().0));
    let tail = Tail::new(state.clone(), pick, at);
    streamed(&state, &way.viewer, way.standing(), tail)
}

struct Tail {
    state: AdminState,
    pick: Pick,
    /// Everything up to here was sent, left out with notice, or is not meant.
    at: Seq,
    told: Option<Told<Line>>,
    is_begun: bool,
    second: Instant,
    in_second: u32,
}

/// What was left out.
#[derive(Debug, Serialize)]
struct Skipped {
    from: Seq,
    to: Seq,
    /// Seqs in it; not all of them need have been meant.
    count: u64,
}

impl Tail {
    fn new(state: AdminState, pick: Pick, at: Seq) -> Tail {
        Tail {
            state,
            pick,
            at,
            told: None,
            is_begun: false,
            second: Instant::now(),
            in_second: 0,
        }
    }

    fn told(&mut self) -> &mut Told<Line> {
        let (state, pick, from) = (&self.state, &self.pick, self.at.next());
        self.told.get_or_insert_with(|| {
            state.follow(List {
                pick: pick.clone(),
                limit: None,
                last: false,
                follow: true,
                from: Some(from),
            })
        })
    }

    /// Waits until this second is over, where as much was sent in it as may be.
    async fn keep_pace(&mut self) {
        if self.in_second >= PER_SECOND {
            tokio::time::sleep_until(self.second + Duration::from_secs(1)).await;
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.in_second = 0;
        }
        self.in_second += 1;
    }

    /// What is left out from an event on that is too far behind.
    fn skip_from(&mut self, seq: Seq) -> Option<Skipped> {
        let newest = self.state.newest();
        if newest.0.saturating_sub(seq.0) < BEHIND_MAX {
            return None;
        }
        let (from, to) = (self.at.next(), Seq(newest.0 - GO_ON_AT));
        self.told = None;
        self.at = to;
        Some(Skipped {
            from,
            to,
            count: to.0 - from.0 + 1,
        })
    }
}

fn event(name: &str, id: Seq, data: &impl Serialize) -> Event {
    let event = Event::default().id(id.to_string());
    match serde_json::to_string(data) {
        Ok(data) => event.event(name).data(data),
        Err(error) => event.event("failed").data(error.to_string()),
    }
}

impl Source for Tail {
    async fn next(&mut self) -> Option<Event> {
        // At once, so that a browser knows where it is before anything comes.
        if !self.is_begun {
            self.is_begun = true;
            return Some(event("begin", self.at, &serde_json::json!({ "at": self.at })));
        }
        self.keep_pace().await;
        let line = match self.told().next().await? {
            Ok(line) => line,
            Err(refusal) => {
                self.told = None;
                tracing::debug!("a tail of the operator's page ends: {refusal}");
                return None;
            }
        };
        if let Some(skipped) = self.skip_from(line.seq) {
            return Some(event("skipped", self.at, &skipped));
        }
        self.at = line.seq;
        Some(event("event", line.seq, &line))
    }
}
