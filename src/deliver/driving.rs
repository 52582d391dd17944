//! Driving the sinks of which this node has the lease, where several nodes share the log.
//!
//! A worker runs here exactly as long as the lease of its sink is here. Of the other sinks it is seen what is saved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use serde_json::Value;

use super::Engine;
use super::mark::record_key;
use super::types::{EngineError, Known, Mode};
use super::worker;
use crate::config::SinkConfig;
use crate::node::{self, Order, Want};
use crate::supervise;
use crate::sync::lock;
use crate::task::{self, Task};

/// Another node has so long to carry out an order.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How often it is looked whether other nodes ask for something.
const ORDERS_EVERY: Duration = Duration::from_millis(500);

/// Who answers an order; `None`: it is for the engine.
type Answering = dyn Fn(&Order) -> Option<BoxFuture<'static, Result<Value, String>>> + Send + Sync;

/// Who answers what the engine does not.
#[derive(Clone)]
pub struct Referral(Arc<Answering>);

impl Referral {
    /// `answer` says what comes of an order that is meant for it.
    pub fn new(
        answer: impl Fn(&Order) -> Option<BoxFuture<'static, Result<Value, String>>> + Send + Sync + 'static,
    ) -> Referral {
        Referral(Arc::new(answer))
    }
}

impl std::fmt::Debug for Referral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Referral")
    }
}

/// How often it is looked what is saved of the sinks that other nodes drive.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Engine {
    /// Whether other nodes drive sinks as well.
    pub(super) fn shares_sinks(&self) -> bool {
        self.inner.mode == Mode::Follow && self.inner.leases.are_shared()
    }

    /// These are the sinks from now on.
    pub(super) fn want(&self, sinks: &[SinkConfig]) {
        if self.inner.mode != Mode::Follow {
            return;
        }
        let want = |sink: &SinkConfig| Want {
            what: node::of_sink(&sink.name),
            node: sink.node.clone(),
        };
        let parting = lock(&self.inner.parting).clone();
        let parting = parting.iter().map(|sink| Want {
            what: node::of_sink(sink),
            node: None,
        });
        let others = [Want {
            what: node::CLOSE.to_owned(),
            node: None,
        }];
        self.inner
            .leases
            .want(sinks.iter().map(want).chain(parting).chain(others).collect());
        *lock(&self.inner.sinks) = sinks.to_vec();
    }

    /// Begins and stops workers as leases come and go, until the engine stops.
    pub(super) fn drive_what_is_leased(&self) {
        let engine = self.clone();
        task::begin(async move {
            let stop = engine.inner.stop.clone();
            supervise::run("leases", &stop, || engine.clone().follow_leases()).await;
        });
        // Whoever asks has no patience for sinks that begin or end.
        let engine = self.clone();
        task::begin(async move {
            let stop = engine.inner.stop.clone();
            supervise::run("orders", &stop, || engine.clone().follow_orders()).await;
        });
        if self.inner.desk.is_some() {
            let engine = self.clone();
            task::begin(async move {
                let stop = engine.inner.stop.clone();
                supervise::run("letters", &stop, || engine.clone().follow_letters()).await;
            });
        }
    }

    async fn follow_orders(self) {
        loop {
            self.obey_other_nodes().await;
            tokio::time::sleep(ORDERS_EVERY).await;
        }
    }

    /// Orders of other nodes that are about no sink, or about more than a sink, are referred there.
    pub fn refer(&self, others: Referral) {
        *lock(&self.inner.referral) = Some(others);
    }

    async fn follow_leases(self) {
        let mut changes = self.inner.leases.changes();
        let mut letting_go = BTreeMap::new();
        // What this node runs under a lease that it had before something went wrong here is looked at again.
        loop {
            changes.borrow_and_update();
            self.settle_workers(&mut letting_go).await;
            let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
        }
    }

    /// Has a worker run for each sink whose lease is here, and for no other. `letting_go`: what is on its way to that, each by itself:
    /// none waits until another one's delivery has come to its end.
    async fn settle_workers(&self, letting_go: &mut BTreeMap<String, Task<()>>) {
        {
            // A reload stops and begins workers by itself.
            let _changing = self.inner.changing.lock().await;
            let sinks = lock(&self.inner.sinks).clone();
            letting_go.retain(|_, task| !task.is_finished());
            for sink in sinks.iter().filter(|sink| self.runs_in_vain(&sink.name)) {
                let go = || task::begin(self.clone().let_worker_go(sink.name.clone()));
                letting_go.entry(sink.name.clone()).or_insert_with(go);
            }
            let settle = join_all(sinks.iter().map(|sink| self.settle_worker(sink)));
            tokio::join!(self.note_what_is_missing(&sinks), settle);
        }
        self.follow_jobs().await;
    }

    async fn settle_worker(&self, sink: &SinkConfig) {
        let is_here = self.inner.leases.lease(&node::of_sink(&sink.name)).is_some();
        match (is_here, self.runs(&sink.name)) {
            (true, false) => {
                // Without a record it would begin with what comes from now on, whatever it has not had yet.
                if !self.note_new(sink).await {
                    self.inner.outset.miss();
                    return self.look_from_afar(sink).await;
                }
                let kit = self.prepare(sink).await;
                self.launch(kit);
            }
            (false, false) => self.look_from_afar(sink).await,
            _ => {}
        }
    }

    /// Carries out what other nodes were asked about sinks that are driven here, beside everything else.
    async fn obey_other_nodes(&self) {
        for order in self.inner.leases.orders().await {
            let engine = self.clone();
            task::begin(async move {
                let referral = lock(&engine.inner.referral).clone();
                let referred = referral.and_then(|referral| (referral.0)(&order));
                let result = match referred {
                    Some(answering) => answering.await,
                    None => engine.obey_other_node(&order.what, &order.order).await,
                };
                engine.inner.leases.answer(&order.id, result).await;
            });
        }
    }

    pub(super) async fn obey_other_node(&self, what: &str, order: &Value) -> Result<Value, String> {
        let sink = node::sink_of(what).ok_or("this node knows no such order")?;
        if let Some(retry) = order.get("retry_dead") {
            return self.retry_for_another(sink, retry).await;
        }
        let Some(paused) = order["pause"].as_bool() else {
            return Err("this node knows no such order: is its closehook older?".into());
        };
        let paused = self.pause_here(sink, paused).await;
        paused.map(|()| Value::Null).map_err(|error| error.to_string())
    }

    /// Has the node that drives a sink pause or resume it; `None`: it is this one.
    pub(super) async fn pause_elsewhere(&self, sink: &str, paused: bool) -> Option<Result<(), EngineError>> {
        if !self.is_afar(sink) {
            return None;
        }
        let order = serde_json::json!({ "pause": paused });
        let asked = self.inner.leases.ask(&node::of_sink(sink), order, ANSWER_WITHIN).await;
        Some(asked.map(drop).map_err(|why| EngineError(format!("\"{sink}\": {why}"))))
    }

    /// Whether another node drives the sink, or none.
    pub(super) fn is_afar(&self, sink: &str) -> bool {
        let among_others = self.shares_sinks() || self.inner.mode == Mode::Outside;
        among_others && self.worker(sink).is_ok_and(|worker| worker.lease.is_none())
    }

    /// Whether there is a worker of this sink.
    fn runs(&self, sink: &str) -> bool {
        let workers = self.workers();
        workers.by_sink.get(sink).is_some_and(|handle| handle.lease.is_some())
    }

    /// Whether there is one whose lease is over.
    fn runs_in_vain(&self, sink: &str) -> bool {
        let workers = self.workers();
        let lease = workers.by_sink.get(sink).and_then(|handle| handle.lease.as_ref());
        lease.is_some_and(|lease| !lease.holds())
    }

    /// Stops a worker whose lease is over, and begins the sink anew if its lease has come back meanwhile.
    async fn let_worker_go(self, sink: String) {
        let stop = self.inner.stop.clone();
        // An engine that stops tells all workers by itself.
        let _ = stop.run_until_cancelled(self.let_go_and_settle(&sink)).await;
    }

    async fn let_go_and_settle(&self, name: &str) {
        let Ok(worker) = self.worker(name) else { return };
        tracing::warn!(sink = name, "this node has the sink no longer: its worker stops");
        self.tell_to_stop(name).await.wait().await;
        let _changing = self.inner.changing.lock().await;
        let letters = self.letters_of(name);
        {
            // After a reload there may be another one, or none any more.
            let by_sink = &mut self.workers().by_sink;
            if by_sink
                .get(name)
                .is_some_and(|now| now.commands.same_channel(&worker.commands))
            {
                // It stays in sight: what is saved of it may take its time to be read, or not be readable at all.
                let view = lock(&worker.view).left();
                by_sink.insert(name.to_owned(), worker::afar(&worker.config, view, letters));
            }
        }
        let what = node::of_sink(name);
        if self.inner.leases.lease(&what).is_none() {
            // It may be here all the same, where another node was seen to have the mark: it is taken anew.
            self.inner.leases.give_up(&what).await;
        }
        let sinks = lock(&self.inner.sinks).clone();
        if let Some(sink) = sinks.iter().find(|sink| sink.name == name) {
            self.settle_worker(sink).await;
        }
    }

    /// Shows what is saved of a sink that no worker here drives.
    pub(super) async fn look_from_afar(&self, sink: &SinkConfig) {
        let record = self.record(&record_key(&sink.name)).await;
        let letters = self.letters_of(&sink.name);
        // Of this node's sinks some may give it letters.
        letters.set_max(sink.dead_max.0);
        let view = match record {
            Ok(record) => {
                let record = record.map(|(record, _)| record);
                match &record {
                    Some(record) => self.inner.outset.see(&sink.name, record),
                    None => self.inner.outset.miss(),
                }
                let record = record.unwrap_or_default();
                let mut view = worker::saved_view(sink, record, &letters, &*self.inner.log);
                view.status.known = Known::Saved;
                if self.inner.leases.holder(&node::of_sink(&sink.name)).is_none() {
                    view.idle(worker::UNDRIVEN);
                }
                view
            }
            Err(error) => {
                let seen = self.workers().by_sink.get(&sink.name).cloned();
                // What was seen before is not wrong, only old.
                let seen = seen.map(|handle| lock(&handle.view).left());
                let mut view = seen.unwrap_or_else(|| worker::unseen(sink));
                view.idle(&format!(
                    "{}, and what is saved of it can't be read: {error}",
                    worker::UNDRIVEN
                ));
                view
            }
        };
        let mut workers = self.workers();
        if workers.over {
            return;
        }
        match workers.by_sink.get(&sink.name) {
            Some(handle) if handle.lease.is_some() => {}
            Some(handle) => *lock(&handle.view) = view,
            None => {
                let handle = worker::afar(sink, view, letters);
                workers.by_sink.insert(sink.name.clone(), handle);
            }
        }
    }

    /// The sinks that this node drives now.
    pub fn driven(&self) -> BTreeSet<String> {
        let workers = self.workers();
        let driven = workers
            .by_sink
            .iter()
            .filter(|(_, handle)| handle.lease.as_ref().is_some_and(crate::node::Lease::holds));
        driven.map(|(name, _)| name.clone()).collect()
    }
}
