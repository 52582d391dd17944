//! How the engine parts with workers: it tells them to stop, and gives a removed sink to other nodes when nothing is on its way from here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::engine::Engine;
use super::stopping::{Running, Stopping};
use super::types::OBEY_WITHIN;
use super::worker::Command;
use crate::config::SinkConfig;
use crate::node;
use crate::sync::lock;
use crate::task;

/// How often it is looked whether a worker that was left behind has come to its end after all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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

    /// What is removed stays this node's for as long as a delivery may be on its way from here: what it does not want it gives up.
    pub(super) fn keep_until_parted(&self, sinks: &[SinkConfig], removed: &[String]) {
        let is_here = |name: &&String| self.inner.leases.lease(&node::of_sink(name)).is_some();
        let held: Vec<String> = removed.iter().filter(is_here).cloned().collect();
        let mut parting = lock(&self.inner.parting);
        parting.retain(|name| !sinks.iter().any(|sink| sink.name == *name));
        parting.extend(held);
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
