//! What Close has answered to requests that are made again: an answer that refuses is an answer, and whoever waits hears of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::sync::lock;

/// What Close answered to a request that is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setback {
    /// What it answered, or what came in place of an answer: a sentence without its end.
    pub said: String,
    /// When the request is made again; `None`: it is being made again.
    #[serde(default)]
    pub again_at: Option<Timestamp>,
}

/// What was answered to one request.
#[derive(Debug)]
struct Told {
    request: u64,
    said: String,
    /// When the request is made again ...
    again_at: Timestamp,
    /// ... and the same by a clock that nobody sets; `None`: beyond what that can tell.
    due: Option<Instant>,
}

/// Those of requests that are under way. All handles of one are the same.
#[derive(Debug, Clone, Default)]
pub struct Setbacks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The newest last.
    now: Mutex<Vec<Told>>,
    requests: AtomicU64,
}

impl Setbacks {
    /// A request begins.
    pub(super) fn begin(&self) -> Trying {
        Trying {
            of: self.clone(),
            request: self.0.requests.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The newest of those that are under way; `None`: none of them was answered otherwise than it should be, as far as they are.
    pub fn newest(&self) -> Option<Setback> {
        let told = lock(&self.0.now);
        let newest = told.last()?;
        let is_due = newest.due.is_some_and(|due| due <= Instant::now());
        Some(Setback {
            said: newest.said.clone(),
            again_at: (!is_due).then_some(newest.again_at),
        })
    }
}

/// A request that is made until it succeeds or is given up; over when this is dropped.
pub(super) struct Trying {
    of: Setbacks,
    request: u64,
}

impl Trying {
    /// It is made again `after` so long, which is at `again_at`.
    pub fn goes_on(&self, said: String, again_at: Timestamp, after: Duration) {
        let mut now = lock(&self.of.0.now);
        now.retain(|told| told.request != self.request);
        now.push(Told {
            request: self.request,
            said,
            again_at,
            due: Instant::now().checked_add(after),
        });
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        lock(&self.of.0.now).retain(|told| told.request != self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;
    const AFTER: Duration = Duration::from_secs(4);

    fn said(setbacks: &Setbacks) -> Option<String> {
        setbacks.newest().map(|setback| setback.said)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_to_a_request_is_known_until_it_is_over() {
        let setbacks = Setbacks::default();
        let (one, two) = (setbacks.begin(), setbacks.begin());
        assert_eq!(said(&setbacks), None);
        one.goes_on("429".to_owned(), AT, AFTER);
        two.goes_on("500".to_owned(), AT, AFTER);
        assert_eq!(said(&setbacks).as_deref(), Some("500"));
        one.goes_on("502".to_owned(), AT, AFTER);
        assert_eq!(said(&setbacks).as_deref(), Some("502"));
        drop(one);
        assert_eq!(said(&setbacks).as_deref(), Some("500"), "of the other one");
        drop(two);
        assert_eq!(said(&setbacks), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_being_made_again_is_not_told_as_one_of_later() {
        let setbacks = Setbacks::default();
        let trying = setbacks.begin();
        let again_at = || setbacks.newest().unwrap().again_at;
        trying.goes_on("500".to_owned(), AT, AFTER);
        assert_eq!(again_at(), Some(AT), "whatever the machine's clock says");
        tokio::time::advance(AFTER).await;
        assert_eq!(again_at(), None);
        trying.goes_on("500".to_owned(), AT, AFTER);
        assert_eq!(again_at(), Some(AT));
        trying.goes_on("429".to_owned(), AT, Duration::MAX);
        assert_eq!(again_at(), Some(AT));
    }
}
