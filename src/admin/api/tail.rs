//! What comes, as it comes: over server-sent events, each with its Seq as its id, so that a browser that connects again says where it
//! was (`Last-Event-ID`) and goes on without a hole.
//!
//! Nobody's log is read here without somebody who reads along: the stream pulls, and ends with its reader. It is looked a piece at a
//! time, from where the reader is on, each piece with a limit on its work and in its turn among all questions; where nothing of that is
//! meant, how far it was looked is told (`looked`), and the id moves on with it. Who can't keep up with what is meant is told what was
//! left out (`skipped`: a range of Seqs) and goes on near the end; and so is who was away until the log kept no more what comes next.

use std::collections::VecDeque;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::asked::{Asked, Way};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::streams::{Source, streamed};
use crate::control::Pick;
use crate::control::ahead::Ahead;
use crate::control::events::Line;
use crate::event::Seq;

/// Lines a second at the most: more is to be counted, and not to be read.
const PER_SECOND: u32 = 500;

/// Who is behind the newest event by so many of those that are meant ...
const BEHIND_MAX: u64 = 2000;

/// ... goes on so many before it.
const GO_ON_AT: u64 = 100;

/// What comes is looked at so often at the most.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far it was looked is told so often at the most, where nothing else is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// `GET /tail`
pub async fn tail(
    State(state): State<AdminState>,
    way: Way,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, Refused> {
    let pick = asked.pick()?;
    let after = asked.read::<u64>("after", "the Seq of an event")?;
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
    /// Everything up to here was sent, left out with notice, or is not meant; what waits is not among it.
    at: Seq,
    /// Everything up to here was looked at.
    looked: Seq,
    /// What was found and is still to be sent.
    waiting: VecDeque<Line>,
    /// What comes behind them is left out up to here.
    skips_to: Option<Seq>,
    is_begun: bool,
    looked_at: Option<Instant>,
    told_at: Instant,
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
        let now = Instant::now();
        Tail {
            state,
            pick,
            at,
            looked: at,
            waiting: VecDeque::new(),
            skips_to: None,
            is_begun: false,
            looked_at: None,
            told_at: now,
            second: now,
            in_second: 0,
        }
    }

    /// How many more may be sent in this second.
    fn left_in_second(&mut self) -> u32 {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.in_second = 0;
        }
        PER_SECOND.saturating_sub(self.in_second)
    }

    /// The next line that was found, if any is left.
    fn take(&mut self) -> Option<Event> {
        let line = self.waiting.pop_front()?;
        self.in_second += 1;
        self.told_at = Instant::now();
        self.at = line.seq;
        Some(event("event", line.seq, &line))
    }

    /// How far it was looked, where that is not told yet and it is time to; the id goes on with it.
    fn tell(&mut self) -> Option<Event> {
        if self.looked <= self.at || self.told_at.elapsed() < TELL_EVERY {
            return None;
        }
        self.told_at = Instant::now();
        self.at = self.looked;
        let far = json!({ "at": self.at, "newest": self.state.newest() });
        Some(event("looked", self.at, &far))
    }

    /// What is left out behind what was sent, if anything is.
    fn skip(&mut self) -> Option<Event> {
        let to = self.skips_to.take()?;
        let from = self.looked.next();
        (self.at, self.looked) = (to, to);
        self.told_at = Instant::now();
        let skipped = Skipped {
            from,
            to,
            count: to.0 - from.0 + 1,
        };
        Some(event("skipped", to, &skipped))
    }

    /// Up to where the log keeps nothing any more of what would come next; `None`: it keeps that.
    fn gone(&self) -> Option<Seq> {
        let gone = self.state.oldest().prev();
        (gone > self.looked).then_some(gone)
    }

    /// Waits until there is something to look at, or how far it was looked is to be told.
    async fn wait(&mut self) {
        let mut head = self.state.head();
        let looked = self.looked;
        let comes = async {
            // A log that is closed has nothing more: the stream ends with the daemon.
            if head.wait_for(|head| *head > looked).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if looked > self.at {
            let tell_at = self.told_at + TELL_EVERY;
            let _ = tokio::time::timeout_at(tell_at, comes).await;
        } else {
            comes.await;
        }
        if let Some(at) = self.looked_at {
            tokio::time::sleep_until(at + LOOK_EVERY).await;
        }
    }

    /// Looks at the next piece.
    async fn look(&mut self, most: u32) -> Result<(), String> {
        self.looked_at = Some(Instant::now());
        let ahead = Ahead {
            pick: self.pick.clone(),
            after: self.looked,
            limit: u64::from(most),
        };
        let found = self.state.ask(ahead).last().await?;
        let before = self.looked;
        self.looked = found.looked.max(before);
        self.waiting = found.events.into();
        if self.waiting.len() as u64 >= u64::from(most) {
            self.skips_to = too_fast(before, self.looked, u64::from(most), self.state.newest());
        }
        Ok(())
    }
}

/// Where one goes on who has found so many between two places, and would find more than anybody can read from there to the newest event if
/// they lay as close; `None`: right behind.
fn too_fast(before: Seq, looked: Seq, found: u64, newest: Seq) -> Option<Seq> {
    let span = u128::from(looked.0.saturating_sub(before.0));
    let behind = u128::from(newest.0.saturating_sub(looked.0));
    if span == 0 || behind * u128::from(found) < u128::from(BEHIND_MAX) * span {
        return None;
    }
    let left = u128::from(GO_ON_AT) * span / u128::from(found.max(1));
    let to = newest.0.saturating_sub(u64::try_from(left).unwrap_or(u64::MAX));
    (to > looked.0).then_some(Seq(to))
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
            return Some(event("begin", self.at, &json!({ "at": self.at })));
        }
        loop {
            if let Some(event) = self.take().or_else(|| self.skip()) {
                return Some(event);
            }
            if let Some(event) = self.tell() {
                return Some(event);
            }
            self.skips_to = self.gone();
            if self.skips_to.is_some() {
                continue;
            }
            if self.state.newest() <= self.looked {
                self.wait().await;
                continue;
            }
            let most = self.left_in_second();
            if most == 0 {
                tokio::time::sleep_until(self.second + Duration::from_secs(1)).await;
                continue;
            }
            let before = self.looked;
            if let Err(refusal) = self.look(most).await {
                tracing::debug!("a tail of the operator's page ends: {refusal}");
                return None;
            }
            if self.looked == before {
                // What is there can't be read yet.
                tokio::time::sleep(TELL_EVERY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_too_fast_is_left_out() {
        let at =
            |before, looked, found, newest| too_fast(Seq(before), Seq(looked), found, Seq(newest)).map(|seq| seq.0);
        // Everything is meant.
        assert_eq!(at(0, 500, 500, 2499), None);
        assert_eq!(at(0, 500, 500, 2500), Some(2400));
        // Few are: however far it is to the newest, they can be read.
        assert_eq!(at(0, 500_000, 500, 2_000_000), None);
        assert_eq!(at(0, 500_000, 500, 2_500_000), Some(2_400_000));
        assert_eq!(at(9, 9, 0, 1_000_000), None);
    }
}
