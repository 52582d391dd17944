//! How long what runs has been running: deliveries, and checkpoints.

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

    /// When the oldest one began.
    pub fn oldest(&self) -> Option<Instant> {
        self.0.first().copied()
    }
}

/// When what began then is, or was, to be called hanging.
pub(super) fn hangs_at(began: Instant) -> Instant {
    began + HANGS_AFTER
}

/// What is waited for that began then, with since when and how long, if that is long.
pub(in crate::deliver) fn hangs(what: &str, began: Instant, now: Instant) -> Option<String> {
    let ran = now.duration_since(began);
    (ran >= HANGS_AFTER).then(|| {
        let since = moved(Timestamp::now(), -signed(ran));
        format!("{what} since {since:.0}, for {} s", ran.as_secs())
    })
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
        let says = |calls: &Calls, second| calls.oldest().and_then(|oldest| hangs("it waits", oldest, at(second)));
        assert_eq!((calls.oldest().map(hangs_at), says(&calls, 4)), (Some(at(5)), None));
        assert!(says(&calls, 5).is_some());
        calls.end(first);
        assert_eq!((calls.oldest().map(hangs_at), says(&calls, 7)), (Some(at(8)), None));
        let said = says(&calls, 47).unwrap();
        assert!(
            said.starts_with("it waits since 2") && said.ends_with(", for 44 s"),
            "{said}"
        );
        calls.end(second);
        assert_eq!((calls.oldest(), says(&calls, 99)), (None, None));
    }
}
