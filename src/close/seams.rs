//! Where a test takes hold of Close's side: its clock, and every step that changes something on disk or at Close.
//!
//! In the product the clock is the machine's, and nothing is at the steps: no option, variable or file of the product reaches
//! them.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::age::Age;

/// Tells the time.
pub type TimeSource = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Is told of a step, `before` and `after` it, and lets it go on when it returns. One that never returns is a process that was
/// killed there.
pub type StepHook = Arc<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// What a test may replace.
#[derive(Clone)]
pub struct Seams {
    /// This machine's clock.
    pub clock: TimeSource,
    /// Is told of the time when Close says it.
    pub age: Arc<Age>,
    /// What is at each step; `None`: nothing.
    pub step: Option<StepHook>,
}

impl Default for Seams {
    fn default() -> Seams {
        Seams {
            clock: Arc::new(Timestamp::now),
            age: Arc::default(),
            step: None,
        }
    }
}

impl std::fmt::Debug for Seams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seams").finish_non_exhaustive()
    }
}

impl Seams {
    /// The time by this machine's clock.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// A step is about to be taken, or was.
    pub(super) async fn step(&self, what: impl FnOnce() -> String) {
        if let Some(hook) = &self.step {
            hook(what()).await;
        }
    }
}
