//! What is lent for a time, tokens and keys: fetched by one at a time, whoever waits, and used while it is good.
//!
//! Who comes while the next one is fetched goes on with the one at hand if that is good still, and else waits, but not for ever. A fetch
//! that failed has failed for all who waited for it; while what is at hand is good it is not tried again at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// How a thing stands that was lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sinks) enum Standing {
    /// The next one need not be fetched yet.
    Fresh,
    /// The next one is due.
    Good,
    /// It is no use any more.
    Over,
}

/// Something that is lent.
pub(in crate::sinks) trait Lends {
    /// How it stands now.
    fn standing(&self) -> Standing;
}

/// Up to when something is used.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::sinks) struct Term {
    /// The next one is fetched from here on; `None`: never.
    pub fresh: Option<Instant>,
    /// `None`: for ever.
    pub good: Option<Instant>,
}

impl Lends for Term {
    fn standing(&self) -> Standing {
        let now = Instant::now();
        let lasts = |until: Option<Instant>| until.is_none_or(|until| now < until);
        match (lasts(self.good), lasts(self.fresh)) {
            (false, _) => Standing::Over,
            (true, false) => Standing::Good,
            (true, true) => Standing::Fresh,
        }
    }
}

/// Whoever lends, and what is at hand of it. `E`: why there is nothing.
pub(in crate::sinks) struct Lent<T, E> {
    kept: std::sync::Mutex<Kept<T>>,
    /// Held while the next one is fetched; how that failed the last time.
    failed: tokio::sync::Mutex<Option<(Instant, E)>>,
    again_after: Duration,
}

struct Kept<T> {
    thing: Option<Arc<T>>,
    /// The next one is not fetched before then, while this one is good.
    not_before: Option<Instant>,
}

impl<T: Lends, E: Clone> Lent<T, E> {
    /// `again_after`: how long after a fetch that failed the next one is tried, while what is at hand is good.
    pub(in crate::sinks) fn new(again_after: Duration) -> Lent<T, E> {
        Lent {
            kept: std::sync::Mutex::new(Kept {
                thing: None,
                not_before: None,
            }),
            failed: tokio::sync::Mutex::new(None),
            again_after,
        }
    }

    /// What is at hand, or what `fetch` gives. `refused`: another one than this. Who waits for others gives up at `until`, with `late`.
    pub(in crate::sinks) async fn get(
        &self,
        refused: Option<&Arc<T>>,
        until: Instant,
        late: impl FnOnce() -> E,
        fetch: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, E> {
        let asked = Instant::now();
        let mut failed = match self.good(refused) {
            Some((thing, true)) => return Ok(thing),
            Some((thing, false)) => match self.failed.try_lock() {
                Ok(failed) => failed,
                // Somebody fetches the next one.
                Err(_) => return Ok(thing),
            },
            None => {
                let turn = tokio::time::timeout_at(until, self.failed.lock()).await;
                turn.map_err(|_| late())?
            }
        };
        let good = match (self.good(refused), &*failed) {
            (Some((thing, true)), _) => return Ok(thing),
            (Some((thing, false)), _) => Some(thing),
            // Who waited while it failed is told what the others were.
            (None, Some((at, why))) if *at >= asked => return Err(why.clone()),
            (None, _) => None,
        };
        match fetch.await {
            Ok(thing) => {
                *failed = None;
                let thing = Arc::new(thing);
                self.kept().thing = Some(thing.clone());
                Ok(thing)
            }
            Err(why) => {
                let now = Instant::now();
                *failed = Some((now, why.clone()));
                self.kept().not_before = now.checked_add(self.again_after);
                good.ok_or(why)
            }
        }
    }

    /// It is no use: another one is fetched the next time.
    #[cfg(feature = "aws")]
    pub(in crate::sinks) fn forget(&self) {
        *self.kept() = Kept {
            thing: None,
            not_before: None,
        };
    }

    /// What is at hand and good, and whether no other is to be fetched now.
    fn good(&self, refused: Option<&Arc<T>>) -> Option<(Arc<T>, bool)> {
        let kept = self.kept();
        let thing = kept.thing.clone()?;
        if refused.is_some_and(|refused| Arc::ptr_eq(refused, &thing)) {
            return None;
        }
        let is_put_off = kept.not_before.is_some_and(|at| Instant::now() < at);
        match thing.standing() {
            Standing::Over => None,
            Standing::Good => Some((thing, is_put_off)),
            Standing::Fresh => Some((thing, true)),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept<T>> {
        lock(&self.kept)
    }
}
