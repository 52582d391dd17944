//! How long what runs has been running: deliveries, and checkpoints.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A call that runs for so long is what the sink waits for.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// A batch on its way: first what goes out is made of its events, then the sink is asked.
#[derive(Debug, Clone)]
pub(super) struct Call {
    began: Instant,
    asked: Arc<OnceLock<Instant>>,
}

impl Call {
    /// From now on it is the receiver's turn.
    pub fn asks(&self) {
        let _ = self.asked.set(Instant::now());
    }

    /// What it is at, and since when.
    fn stage(&self) -> (&'static str, Instant) {
        match self.asked.get() {
            Some(asked) => ("it waits for the receiver's answer", *asked),
            None => ("its template or transform is at work", self.began),
        }
    }
}

/// The calls that run.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<Call>);

impl Calls {
    pub fn begin(&mut self, now: Instant) -> Call {
        let call = Call {
            began: now,
            asked: Arc::default(),
        };
        self.0.push(call.clone());
        call
    }

    pub fn end(&mut self, ended: &Call) {
        self.0.retain(|call| !Arc::ptr_eq(&call.asked, &ended.asked));
    }

    /// The one that began first.
    pub fn oldest(&self) -> Option<&Call> {
        self.0.first()
    }
}

/// What everything else may have to wait for.
#[derive(Debug, Clone)]
pub(super) enum Activity {
    /// What it is, and since when.
    Own(&'static str, Instant),
    Call(Call),
}

impl Activity {
    /// What it is at this moment, and since when.
    pub fn now(&self) -> (&'static str, Instant) {
        match self {
            Activity::Own(what, began) => (what, *began),
            Activity::Call(call) => call.stage(),
        }
    }

    /// When it is, or was, to be called hanging if it stays as it is.
    pub fn hangs_at(&self) -> Instant {
        self.now().1 + HANGS_AFTER
    }
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
        let oldest = |calls: &Calls| calls.oldest().cloned().map(Activity::Call);
        let hangs_at = |calls: &Calls| oldest(calls).map(|oldest| oldest.hangs_at());
        let says = |calls: &Calls, second| {
            let (what, began) = oldest(calls)?.now();
            hangs(what, began, at(second))
        };
        assert_eq!((hangs_at(&calls), says(&calls, 4)), (Some(at(5)), None));
        assert!(says(&calls, 5).is_some());
        calls.end(&first);
        assert_eq!((hangs_at(&calls), says(&calls, 7)), (Some(at(8)), None));
        let said = says(&calls, 47).unwrap();
        assert!(
            said.starts_with("its template or transform is at work since 2") && said.ends_with(", for 44 s"),
            "{said}"
        );
        // From when the receiver is asked it is its turn, and no older.
        second.asks();
        let asked = oldest(&calls).unwrap().now().1;
        assert!(asked >= began && hangs_at(&calls) == Some(asked + HANGS_AFTER));
        assert!(
            says(&calls, 47)
                .unwrap()
                .starts_with("it waits for the receiver's answer")
        );
        calls.end(&second);
        assert!(calls.oldest().is_none() && says(&calls, 99).is_none());
    }
}
