//! Workers that were told to stop, and what is left of those that do not in time.

use std::any::Any;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::oneshot;

use super::types::OBEY_WITHIN;
use super::worker::Handle;
use crate::sync::lock;

/// What a worker has for as long as it runs.
#[derive(Debug, Clone)]
pub(super) struct Running(Weak<dyn Any + Send + Sync>);

impl Running {
    pub fn of(worker: &Handle) -> Running {
        Running::as_long_as(&worker.view)
    }

    fn as_long_as<T: Send + Sync + 'static>(what: &Arc<T>) -> Running {
        let what: Weak<T> = Arc::downgrade(what);
        Running(what)
    }

    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// The workers that did not stop in time, whoever told them to.
#[derive(Debug, Clone, Default)]
pub(super) struct LeftBehind(Arc<Mutex<Vec<Running>>>);

impl LeftBehind {
    fn add(&self, worker: Running) {
        let mut all = lock(&self.0);
        all.retain(|worker| !worker.is_over());
        all.push(worker);
    }

    /// Whether what one of them does has not come to its end yet.
    pub fn is_any(&self) -> bool {
        lock(&self.0).iter().any(|worker| !worker.is_over())
    }
}

/// A worker that was told to stop.
pub(super) struct Stopping {
    pub sink: String,
    pub is_told: bool,
    pub stopped: oneshot::Receiver<()>,
    pub worker: Option<Running>,
    pub left_behind: LeftBehind,
}

impl Stopping {
    /// Waits until it has stopped, which it has when nobody is there to answer any more. `false`: it is left behind.
    pub async fn wait(self) -> bool {
        let has_stopped = tokio::time::timeout(OBEY_WITHIN, self.stopped).await.is_ok();
        if !has_stopped {
            tracing::error!(sink = self.sink, "the sink's worker does not stop; it is left behind");
        }
        let is_over = has_stopped && self.is_told;
        if !is_over && let Some(worker) = self.worker {
            self.left_behind.add(worker);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_stop_in_time_is_left_behind_until_it_has() {
        let left_behind = LeftBehind::default();
        let stopping = |is_told: bool, runs: &Arc<()>| {
            let (sender, stopped) = oneshot::channel();
            let stopping = Stopping {
                sink: "a".into(),
                is_told,
                stopped,
                worker: Some(Running::as_long_as(runs)),
                left_behind: left_behind.clone(),
            };
            (sender, stopping)
        };
        let runs = Arc::new(());
        // Nobody is there to answer any more.
        let (sender, ended) = stopping(true, &runs);
        drop(sender);
        assert!(ended.wait().await && !left_behind.is_any());
        let (_sender, silent) = stopping(true, &runs);
        assert!(!silent.wait().await && left_behind.is_any());
        drop(runs);
        assert!(!left_behind.is_any(), "it has ended since");
        // It may never have heard of it.
        let runs = Arc::new(());
        let (sender, deaf) = stopping(false, &runs);
        drop(sender);
        assert!(!deaf.wait().await && left_behind.is_any());
    }
}
