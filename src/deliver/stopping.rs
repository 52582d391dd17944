//! Stopping workers, and what is left of those that do not stop in time.

use std::any::Any;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::engine::Engine;
use super::types::OBEY_WITHIN;
use super::worker::{Command, Handle};
use crate::node;
use crate::sync::lock;
use crate::task;

/// How often it is looked whether a worker that was left behind has come to its end after all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    is_told: bool,
    stopped: oneshot::Receiver<()>,
    worker: Option<Running>,
    left_behind: LeftBehind,
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

impl Engine {
    /// Tells a worker to stop; when this returns it judges no further event.
    pub(super) async fn tell_to_stop(&self, sink: &str) -> Stopping {
        let handle = self.workers().by_sink.get(sink).cloned();
        let worker = handle.as_ref().map(Running::of);
        let (quiet, is_quiet) = oneshot::channel();
        let (stopped, has_stopped) = oneshot::channel();
        let told = async {
            if let Some(handle) = handle
                && handle.commands.send(Command::Stop { quiet, stopped }).await.is_ok()
            {
                let _ = is_quiet.await;
            }
        };
        let is_told = tokio::time::timeout(OBEY_WITHIN, told).await.is_ok();
        if !is_told {
            tracing::error!(sink, "the sink's worker does not hear that it is to stop");
        }
        Stopping {
            sink: sink.to_owned(),
            is_told,
            stopped: has_stopped,
            worker,
            left_behind: self.inner.left_behind.clone(),
        }
    }

    /// Nothing is done here any more for a sink that was removed: a node that has it in its configuration still may go on with it.
    pub(super) async fn part_with(&self, sink: &str) {
        lock(&self.inner.parting).remove(sink);
        let sinks = lock(&self.inner.sinks).clone();
        self.want(&sinks);
        self.inner.leases.give_up(&node::of_sink(sink)).await;
    }

    /// The same when the worker that was left behind has come to its end. Whoever began before could break an order.
    pub(super) fn part_later(&self, sink: String, worker: Running) {
        let (stop, inner) = (self.inner.stop.clone(), Arc::downgrade(&self.inner));
        task::begin(async move {
            while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
                if !worker.is_over() {
                    continue;
                }
                let Some(inner) = inner.upgrade() else { return };
                let engine = Engine { inner };
                let _changing = engine.inner.changing.lock().await;
                // A reload may have brought it back.
                if lock(&engine.inner.parting).contains(&sink) {
                    engine.part_with(&sink).await;
                }
                return;
            }
        });
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
