//! Walking Close's event log: a range of time, oldest first, in memory that does not grow with it.
//!
//! Close gives pages of 50, newest first. The range is cut into windows small enough to be held as a whole, each is turned
//! round, and a few are fetched ahead while earlier ones are stored. Windows grow where little happened and shrink where
//! much did; one that can't be made smaller is handed on page by page, newest first, rather than held.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::close::api::client::{Call, Client};
use crate::close::api::error::Error;
use crate::close::api::subscriptions::instant;
use crate::json::{self, Node};

/// Events in a page; Close's maximum.
const PAGE_EVENTS: usize = 50;

/// What one window may hold in memory.
const WINDOW_EVENTS_MAX: usize = 1500;
const WINDOW_BYTES_MAX: usize = 8 << 20;

/// Windows fetched at a time.
const AHEAD: usize = 3;

const WINDOW_FIRST: SignedDuration = SignedDuration::from_hours(1);
const WINDOW_LONGEST: SignedDuration = SignedDuration::from_hours(8 * 24);

/// A window as short as this is not cut any further.
const WINDOW_SHORTEST: SignedDuration = SignedDuration::from_secs(1);

/// Pages without an event, one after the other, before a list is given up on that still has a cursor: at the end Close gives
/// none. It is no end, so nothing counts as complete by it.
const EMPTY_PAGES_MAX: u32 = 100;

/// A window is begun anew so often when its cursor expires.
const RESTARTS_MAX: u32 = 3;

/// A range of time, by `date_updated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::close) struct Window {
    /// At or after.
    pub from: Timestamp,
    /// Before.
    pub to: Timestamp,
}

impl Window {
    fn len(&self) -> SignedDuration {
        self.to.duration_since(self.from)
    }
}

/// A restriction the API can apply. It allows only some combinations: `object_type` with `action`, and both, one or none of
/// them with `lead_id`; `action` never alone (Close's OpenAPI document, "Retrieve a list of events").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::close) struct EventQuery {
    pub type_action: Option<(String, String)>,
    pub lead_id: Option<String>,
}

/// One event of Close's log.
#[derive(Debug, Clone)]
pub(in crate::close) struct Fetched {
    /// Its JSON, byte for byte.
    pub raw: Bytes,
    /// Its `date_updated`; the start of its window where it has none that can be read.
    pub updated: Timestamp,
}

/// Up to 50 events, newest first.
#[derive(Debug, Default)]
pub(in crate::close) struct Page {
    pub events: Vec<Fetched>,
    /// Where the older ones are; `None` at the end.
    pub next: Option<String>,
}

/// Where pages come from.
pub(in crate::close) trait PageSource {
    /// One page of a window; `cursor` is from the page before.
    fn page(
        &self,
        query: &EventQuery,
        window: Window,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<Page, Error>> + Send;
}

impl PageSource for Client {
    async fn page(&self, query: &EventQuery, window: Window, cursor: Option<&str>) -> Result<Page, Error> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            #[serde(borrow)]
            data: Vec<&'a RawValue>,
            #[serde(default)]
            cursor_next: Option<String>,
        }
        let mut call = Call::get("event/").query("_limit", PAGE_EVENTS.to_string());
        if let Some(lead_id) = &query.lead_id {
            call = call.query("lead_id", lead_id);
        }
        if let Some((object_type, action)) = &query.type_action {
            call = call.query("object_type", object_type).query("action", action);
        }
        call = match cursor {
            // With a cursor the other filters are repeated, the dates are not.
            Some(cursor) => call.query("_cursor", cursor),
            None => call
                .query("date_updated__gte", date(window.from))
                .query("date_updated__lt", date(window.to)),
        };
        let answer = self.send(&call).await?;
        let wire: Wire<'_> = serde_json::from_slice(&answer).map_err(|error| Error::Garbled(json::unfit(&error)))?;
        let events = wire.data.iter().map(|raw| {
            let updated = Node::new(raw.get()).get("date_updated").and_then(Node::as_string);
            Fetched {
                raw: answer.slice_ref(raw.get().as_bytes()),
                updated: updated.and_then(|text| instant(&text)).unwrap_or(window.from),
            }
        });
        Ok(Page {
            events: events.collect(),
            next: wire.cursor_next,
        })
    }
}

/// As Close writes dates: microseconds, UTC.
pub(super) fn date(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// What a walk hands on.
#[derive(Debug)]
pub(in crate::close) struct WalkBatch {
    /// Oldest first, unless far too many happened within a second.
    pub events: Vec<Fetched>,
    /// Everything in the range before this has been handed on.
    pub done_to: Timestamp,
}

enum Held {
    Whole(Vec<Fetched>),
    TooMany,
}

/// A walk over a range: everything in it, oldest first. An event that is consolidated meanwhile moves towards the end and may
/// come twice or, where the range ends before its new place, not at all; the next walk finds it there.
pub(in crate::close) struct Walk<'s, S> {
    source: &'s S,
    queries: Arc<[EventQuery]>,
    /// Not begun yet: from here ...
    next: Timestamp,
    /// ... to here.
    end: Timestamp,
    step: SignedDuration,
    ahead: FuturesOrdered<BoxFuture<'s, (Window, Result<Held, Error>)>>,
    /// Pieces of a window that was too full, the oldest one last.
    pieces: Vec<Window>,
    paging: Option<Paging>,
}

/// Where a window is that is handed on page by page.
struct Paging {
    window: Window,
    query: usize,
    trail: Trail,
    restarts: u32,
}

/// The way through one list: where it goes on, and whether it gets anywhere. A cursor that comes again, or page after page
/// without an event, is no end of the list; taken for one, it would make incomplete what counts as complete.
#[derive(Debug, Default)]
struct Trail {
    cursor: Option<String>,
    empty_pages: u32,
    pages: u64,
    /// One of the cursors so far, moved on at 1, 2, 4, 8 ... pages: whatever goes round comes by it (Brent's way).
    mark: Option<String>,
}

impl Trail {
    /// Goes on behind this page; `false` at the end of the list.
    fn follow(&mut self, page: &Page) -> Result<bool, Error> {
        let lost = |what: &str| Err(Error::Garbled(format!("its list of events {what}")));
        self.empty_pages = if page.events.is_empty() {
            self.empty_pages + 1
        } else {
            0
        };
        if page.next.is_some() {
            if page.next == self.cursor || page.next == self.mark {
                return lost("leads back to where it has been");
            }
            if self.empty_pages >= EMPTY_PAGES_MAX {
                return lost("goes on and on without an event");
            }
        }
        self.pages += 1;
        if self.pages.is_power_of_two() {
            self.mark.clone_from(&page.next);
        }
        self.cursor.clone_from(&page.next);
        Ok(self.cursor.is_some())
    }
}

impl<'s, S: PageSource + Sync> Walk<'s, S> {
    pub fn new(source: &'s S, queries: Vec<EventQuery>, range: Window) -> Walk<'s, S> {
        Walk {
            source,
            queries: queries.into(),
            next: range.from,
            end: range.to,
            step: WINDOW_FIRST,
            ahead: FuturesOrdered::new(),
            pieces: Vec::new(),
            paging: None,
        }
    }

    /// What comes next; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<WalkBatch>, Error> {
        loop {
            if let Some(paging) = self.paging.take() {
                return self.page(paging).await.map(Some);
            }
            let (window, held, is_piece) = if let Some(window) = self.pieces.pop() {
                (window, hold(self.source, &self.queries, window).await?, true)
            } else {
                self.look_ahead();
                let Some((window, held)) = self.ahead.next().await else {
                    return Ok(None);
                };
                (window, held?, false)
            };
            match held {
                Held::Whole(events) => {
                    if !is_piece && events.len() < WINDOW_EVENTS_MAX / 8 && window.len() >= self.step {
                        self.step = (self.step * 2).min(WINDOW_LONGEST);
                    }
                    return Ok(Some(WalkBatch {
                        events,
                        done_to: window.to,
                    }));
                }
                Held::TooMany if window.len() <= WINDOW_SHORTEST => {
                    self.paging = Some(Paging {
                        window,
                        query: 0,
                        trail: Trail::default(),
                        restarts: 0,
                    });
                }
                Held::TooMany => {
                    if !is_piece {
                        self.step = (window.len() / 4).max(WINDOW_SHORTEST);
                    }
                    let middle = window.from.saturating_add(window.len() / 2).unwrap_or(window.to);
                    self.pieces.push(Window { from: middle, ..window });
                    self.pieces.push(Window { to: middle, ..window });
                }
            }
        }
    }

    fn look_ahead(&mut self) {
        while self.ahead.len() < AHEAD && self.next < self.end {
            let to = self.next.saturating_add(self.step).unwrap_or(self.end).min(self.end);
            let window = Window { from: self.next, to };
            self.next = to;
            let (source, queries) = (self.source, self.queries.clone());
            self.ahead
                .push_back(async move { (window, hold(source, &queries, window).await) }.boxed());
        }
    }

    /// One page of far too many events within a moment: no order, but no limit either.
    async fn page(&mut self, mut paging: Paging) -> Result<WalkBatch, Error> {
        let window = paging.window;
        let Some(query) = self.queries.get(paging.query) else {
            return Ok(WalkBatch {
                events: Vec::new(),
                done_to: window.to,
            });
        };
        let mut page = match self.source.page(query, window, paging.trail.cursor.as_deref()).await {
            Err(Error::CursorExpired) if paging.restarts < RESTARTS_MAX => {
                paging.restarts += 1;
                paging.trail = Trail::default();
                self.paging = Some(paging);
                return Ok(WalkBatch {
                    events: Vec::new(),
                    done_to: window.from,
                });
            }
            page => page?,
        };
        let is_past = page.events.last().is_some_and(|oldest| oldest.updated < window.from);
        let goes_on = !is_past && paging.trail.follow(&page)?;
        page.events.retain(|event| event.updated >= window.from);
        page.events.reverse();
        if !goes_on {
            paging.query += 1;
            paging.trail = Trail::default();
        }
        self.paging = Some(paging);
        Ok(WalkBatch {
            events: page.events,
            done_to: window.from,
        })
    }
}

/// A whole window, oldest first, unless that is too much.
async fn hold<S: PageSource + Sync>(source: &S, queries: &[EventQuery], window: Window) -> Result<Held, Error> {
    let mut restarts = 0;
    loop {
        match try_hold(source, queries, window).await {
            Err(Error::CursorExpired) if restarts < RESTARTS_MAX => restarts += 1,
            other => return other,
        }
    }
}

async fn try_hold<S: PageSource + Sync>(source: &S, queries: &[EventQuery], window: Window) -> Result<Held, Error> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    for query in queries {
        let mut trail = Trail::default();
        loop {
            let page = source.page(query, window, trail.cursor.as_deref()).await?;
            bytes += page.events.iter().map(|event| event.raw.len()).sum::<usize>();
            // Behind the cursor there may be more than the window.
            let is_past = page.events.last().is_some_and(|oldest| oldest.updated < window.from);
            let goes_on = !is_past && trail.follow(&page)?;
            events.extend(page.events.into_iter().filter(|event| event.updated >= window.from));
            if events.len() > WINDOW_EVENTS_MAX || bytes > WINDOW_BYTES_MAX {
                return Ok(Held::TooMany);
            }
            if !goes_on {
                break;
            }
        }
    }
    // Newest first becomes oldest first; those of the same instant keep Close's order.
    events.reverse();
    events.sort_by_key(|event| event.updated);
    Ok(Held::Whole(events))
}

/// Time left at the pace so far; `None` before there is one.
pub(in crate::close) fn eta(elapsed: Duration, fraction: f64) -> Option<Duration> {
    (fraction > 0.001).then(|| Duration::try_from_secs_f64(elapsed.as_secs_f64() * (1.0 - fraction) / fraction).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Close's event log, in memory: times in seconds, oldest first.
    struct EventLog {
        seconds: Vec<i64>,
        body_len: usize,
        requests: Mutex<u64>,
        /// The requests whose cursors have expired.
        expired: Vec<u64>,
        /// Gives a cursor even where there is nothing behind it.
        endless: bool,
        /// After so many pages the cursor leads back to the first of them.
        goes_round: Option<usize>,
        largest: Mutex<usize>,
    }

    impl EventLog {
        fn new(mut seconds: Vec<i64>) -> EventLog {
            seconds.sort_unstable();
            EventLog {
                seconds,
                body_len: 10,
                requests: Mutex::default(),
                expired: Vec::new(),
                endless: false,
                goes_round: None,
                largest: Mutex::default(),
            }
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    impl PageSource for EventLog {
        async fn page(&self, query: &EventQuery, window: Window, cursor: Option<&str>) -> Result<Page, Error> {
            let mut requests = self.requests.lock().unwrap();
            *requests += 1;
            if cursor.is_some() && self.expired.contains(&requests) {
                return Err(Error::CursorExpired);
            }
            // A restricted query sees every other event.
            let parity = query.lead_id.as_ref().map(|lead| usize::from(lead == "odd"));
            let mut matching: Vec<(usize, i64)> = self
                .seconds
                .iter()
                .copied()
                .enumerate()
                .filter(|(index, _)| parity.is_none_or(|parity| index % 2 == parity))
                .collect();
            matching.reverse();
            // As Close's, the cursor does not know the lower bound.
            let start = match cursor {
                Some(cursor) => cursor.parse().unwrap(),
                None => matching
                    .iter()
                    .position(|(_, second)| at(*second) < window.to)
                    .unwrap_or(matching.len()),
            };
            let page: Vec<_> = matching.iter().skip(start).take(PAGE_EVENTS).collect();
            let more = self.endless || start + page.len() < matching.len();
            Ok(Page {
                events: page
                    .iter()
                    .map(|(index, second)| Fetched {
                        raw: format!("{index:0width$}", width = self.body_len).into(),
                        updated: at(*second),
                    })
                    .collect(),
                next: more.then(|| {
                    let next = start + page.len().max(1);
                    let round = self.goes_round.map_or(usize::MAX, |pages| pages * PAGE_EVENTS);
                    (if next > round { next % round + PAGE_EVENTS } else { next }).to_string()
                }),
            })
        }
    }

    async fn walked(log: &EventLog, queries: &[EventQuery], from: i64, to: i64) -> Vec<usize> {
        let mut found = Vec::new();
        let mut done = at(from);
        let mut walk = Walk::new(
            log,
            queries.to_vec(),
            Window {
                from: at(from),
                to: at(to),
            },
        );
        while let Some(batch) = walk.next().await.unwrap() {
            assert!(batch.done_to >= done);
            assert!(
                batch.events.iter().all(|event| event.updated >= done),
                "nothing comes after its time is done"
            );
            done = batch.done_to;
            let mut largest = log.largest.lock().unwrap();
            *largest = (*largest).max(batch.events.len());
            found.extend(
                batch
                    .events
                    .iter()
                    .map(|event| std::str::from_utf8(&event.raw).unwrap().parse::<usize>().unwrap()),
            );
        }
        assert_eq!(done, at(to), "all of the range is done");
        found
    }

    fn expected(log: &EventLog, from: i64, to: i64) -> Vec<usize> {
        (0..log.seconds.len())
            .filter(|index| (from..to).contains(&log.seconds[*index]))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_event_of_the_range_comes_once_oldest_first(
            seconds in prop::collection::vec(0_i64..200_000, 0..400),
            burst in (0_i64..200_000, 0_usize..3000),
            from in 0_i64..100_000, len in 0_i64..150_000,
            expired in prop::collection::vec(0_u64..100, 0..RESTARTS_MAX as usize),
        ) {
            let mut seconds = seconds;
            seconds.extend(std::iter::repeat_n(burst.0, burst.1));
            let mut log = EventLog::new(seconds);
            log.expired = expired;
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(walked(&log, &[EventQuery::default()], from, from + len));
            let mut sorted = found.clone();
            sorted.sort_unstable();
            // An expired cursor in the middle of a burst may repeat pages; the log drops repetitions.
            sorted.dedup();
            prop_assert_eq!(&sorted, &expected(&log, from, from + len));
            prop_assert!(*log.largest.lock().unwrap() <= WINDOW_EVENTS_MAX);
            if burst.1 < WINDOW_EVENTS_MAX / 2 {
                prop_assert_eq!(found, sorted, "oldest first");
            }
        }
    }

    /// Which of its pages lead where: the walk's end, and how far it counts as done.
    async fn led(log: &EventLog, from: i64, to: i64) -> (Result<(), Error>, Timestamp) {
        let range = Window {
            from: at(from),
            to: at(to),
        };
        let mut walk = Walk::new(log, vec![EventQuery::default()], range);
        let mut done = at(from);
        loop {
            match walk.next().await {
                Ok(Some(batch)) => done = batch.done_to,
                Ok(None) => return (Ok(()), done),
                Err(error) => return (Err(error), done),
            }
        }
    }

    #[tokio::test]
    async fn a_list_that_never_ends_is_no_complete_one() {
        // Quiet, and with far too many in a second.
        for seconds in [vec![9000], vec![9000; 2000]] {
            let mut log = EventLog::new(seconds);
            log.endless = true;
            let (end, done) = led(&log, 0, 20_000).await;
            assert!(matches!(end, Err(Error::Garbled(_))), "{end:?}");
            assert!(done <= at(9000), "what is behind it is not done: {done}");
        }
    }

    #[tokio::test]
    async fn a_cursor_that_leads_back_is_no_end() {
        for round in [1, 2, 7] {
            let mut log = EventLog::new((0..1000).collect());
            log.goes_round = Some(round);
            let (end, done) = led(&log, 0, 20_000).await;
            assert!(matches!(end, Err(Error::Garbled(_))), "{round}: {end:?}");
            assert!(done <= at(1000), "{done}");
        }
    }

    #[tokio::test]
    async fn several_queries_come_together_in_order() {
        let log = EventLog::new((0..300).map(|n| n * 60).collect());
        let lead = |text: &str| EventQuery {
            lead_id: Some(text.into()),
            ..EventQuery::default()
        };
        assert_eq!(
            walked(&log, &[lead("odd"), lead("even")], 0, 20_000).await,
            expected(&log, 0, 20_000)
        );
    }

    #[tokio::test]
    async fn a_quiet_month_costs_few_requests_and_a_busy_one_little_more_than_its_pages() {
        let month = 30 * 86_400;
        let log = EventLog::new(vec![1000]);
        walked(&log, &[EventQuery::default()], 0, month).await;
        assert!(*log.requests.lock().unwrap() < 25, "{:?}", log.requests);
        let log = EventLog::new((0..month).step_by(26).collect());
        walked(&log, &[EventQuery::default()], 0, month).await;
        let pages = log.seconds.len() as u64 / 50;
        // A last page of each window is not full.
        assert!(
            *log.requests.lock().unwrap() < pages * 5 / 4,
            "{:?} for {pages} pages",
            log.requests
        );
    }

    #[tokio::test]
    async fn large_events_make_small_windows() {
        let mut log = EventLog::new((0..2000).collect());
        log.body_len = 60_000;
        let found = walked(&log, &[EventQuery::default()], 0, 2000).await;
        assert_eq!(found.len(), 2000);
        assert!(*log.largest.lock().unwrap() <= WINDOW_BYTES_MAX / 60_000 + PAGE_EVENTS);
    }

    #[test]
    fn the_time_left_follows_the_pace() {
        assert_eq!(eta(Duration::from_secs(10), 0.25), Some(Duration::from_secs(30)));
        assert_eq!(eta(Duration::from_secs(10), 0.0), None);
    }
}
