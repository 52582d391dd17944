//! What Close has answered to requests that are made again: an answer that refuses is an answer, and whoever waits hears of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::sync::lock;

/// What Close answered to a request that is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setback {
    /// What it answered, or what came in place of an answer: a sentence without its end.
    pub said: String,
    /// When the request is made again.
    pub again_at: Timestamp,
}

/// Those of requests that are under way. All handles of one are the same.
#[derive(Debug, Clone, Default)]
pub struct Setbacks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By request, the newest last.
    now: Mutex<Vec<(u64, Setback)>>,
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
        lock(&self.0.now).last().map(|(_, setback)| setback.clone())
    }
}

/// A request that is made until it succeeds or is given up; over when this is dropped.
pub(super) struct Trying {
    of: Setbacks,
    request: u64,
}

impl Trying {
    /// It is made again.
    pub fn goes_on(&self, setback: Setback) {
        let mut now = lock(&self.of.0.now);
        now.retain(|(request, _)| *request != self.request);
        now.push((self.request, setback));
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        lock(&self.of.0.now).retain(|(request, _)| *request != self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_to_a_request_is_known_until_it_is_over() {
        let setbacks = Setbacks::default();
        let setback = |said: &str| Setback {
            said: said.to_owned(),
            again_at: Timestamp::UNIX_EPOCH,
        };
        let (one, two) = (setbacks.begin(), setbacks.begin());
        assert_eq!(setbacks.newest(), None);
        one.goes_on(setback("429"));
        two.goes_on(setback("500"));
        assert_eq!(setbacks.newest(), Some(setback("500")));
        one.goes_on(setback("502"));
        assert_eq!(setbacks.newest(), Some(setback("502")));
        drop(one);
        assert_eq!(setbacks.newest(), Some(setback("500")), "of the other one");
        drop(two);
        assert_eq!(setbacks.newest(), None);
    }
}
