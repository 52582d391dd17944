//! Who waits for Close's rate limit: one budget serves everybody, and that somebody waits for it says nothing of the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// A wait for the rate limit of this length is worth a word.
pub(in crate::close) const WORTH_A_WORD: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Whose request it is that waits.
    static WHOSE: Patience;
}

/// How some work that makes one request after another stands to the rate limit.
#[derive(Debug, Clone, Default)]
pub(in crate::close) struct Patience(Arc<Mutex<Waits>>);

#[derive(Debug, Default)]
struct Waits {
    /// So many of its requests wait now for long, since Close lets none go.
    now: usize,
    /// When one went at last that had waited long.
    let_go_at: Option<Instant>,
}

impl Patience {
    /// Does the work; what its requests wait for is known here.
    pub async fn of<T>(&self, work: impl Future<Output = T>) -> T {
        WHOSE.scope(self.clone(), work).await
    }

    /// Whether it waits for long now, until Close lets it go on.
    pub fn waits(&self) -> bool {
        lock(&self.0).now > 0
    }

    /// When a request of its went at last that had waited long, the newest of them.
    pub fn let_go_at(&self) -> Option<Instant> {
        lock(&self.0).let_go_at
    }
}

/// A request's wait for the rate limit; over when this is dropped.
#[derive(Default)]
pub(super) struct Wait {
    waited: Duration,
    /// Whose it is, once it is long.
    of: Option<Patience>,
}

impl Wait {
    /// It goes on for so long. Whether that is the first time that it is worth a word.
    pub fn goes_on(&mut self, wait: Duration) -> bool {
        let is_news = wait >= WORTH_A_WORD && self.waited < WORTH_A_WORD;
        self.waited += wait;
        if wait >= WORTH_A_WORD && self.of.is_none() {
            self.of = WHOSE.try_with(Patience::clone).ok();
            if let Some(of) = &self.of {
                lock(&of.0).now += 1;
            }
        }
        is_news
    }

    /// The request goes. How long it has waited.
    pub fn ends(self) -> Duration {
        if let Some(of) = &self.of {
            lock(&of.0).let_go_at = Some(Instant::now());
        }
        self.waited
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(of) = &self.of {
            lock(&of.0).now -= 1;
        }
    }
}
