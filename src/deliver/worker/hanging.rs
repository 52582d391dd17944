//! How long the deliveries that run have been running.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A call that runs for so long is what the sink waits for.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// When each of the calls that run began.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<Instant>);

impl Calls {
    pub fn begin(&mut self, now: Instant) -> Instant {
        self.0.push(now);
        now
    }

    pub fn end(&mut self, began: Instant) {
        if let Some(at) = self.0.iter().position(|other| *other == began) {
            self.0.remove(at);
        }
    }

    /// When the oldest one is, or was, to be called hanging.
    pub fn hangs_at(&self) -> Option<Instant> {
        self.0.first().map(|began| *began + HANGS_AFTER)
    }

    /// Since when the oldest one runs, by the machine's clock, if that is long.
    pub fn hangs_since(&self, now: Instant) -> Option<Timestamp> {
        let ran = now.duration_since(*self.0.first()?);
        (ran >= HANGS_AFTER).then(|| moved(Timestamp::now(), -signed(ran)))
    }
}

/// A moment of [`schedule::now`](crate::deliver::schedule::now)'s clock as the machine's clock will show it, if it is some time from now.
pub(super) fn shown(at: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let wait = at.duration_since(now);
    (wait >= signed(HANGS_AFTER)).then(|| moved(Timestamp::now(), wait))
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

fn moved(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_call_that_runs_counts_once_it_is_old() {
        let mut calls = Calls::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let first = calls.begin(at(0));
        let second = calls.begin(at(3));
        assert_eq!((calls.hangs_at(), calls.hangs_since(at(4))), (Some(at(5)), None));
        assert!(calls.hangs_since(at(5)).is_some());
        calls.end(first);
        assert_eq!((calls.hangs_at(), calls.hangs_since(at(7))), (Some(at(8)), None));
        calls.end(second);
        assert_eq!((calls.hangs_at(), calls.hangs_since(at(99))), (None, None));
    }
}
