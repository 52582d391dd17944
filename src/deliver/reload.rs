//! How workers begin, change with the configuration, and stop.
//!
//! A worker that is told to stop (`stopping`) says at once that it judges no further event, and then lets what runs come to its end. So new rules are
//! in force as soon as all have heard, and a sink that takes its time to stop holds up its own successor and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;

use super::engine::{Engine, KEPT, usable};
use super::judges;
use super::letters::Letters;
use super::mark::{RECORDS, Record, record_key};
use super::reading::aside;
use super::rendering::Rendering;
use super::stopping::{Running, Stopping};
use super::types::{EngineError, Mode, OBEY_WITHIN, SinkChanges};
use super::worker::{self, Command, DeadTo, Handle, Kit};
use crate::config::SinkConfig;
use crate::node::{self, Lease};
use crate::render::Guard;
use crate::rules::RuleSet;
use crate::state::{Expected, put_json};
use crate::sync::lock;
use crate::task;

/// That a sink was removed is tried to be noted again after so long.
const DETACH_EVERY: Duration = Duration::from_secs(2);

impl Engine {
    pub(super) async fn start_worker(&self, config: &SinkConfig) {
        if !self.inner.mode.drives() {
            let record = self.record(&record_key(&config.name)).await;
            let letters = self.letters_of(&config.name);
            let handle = match record {
                Ok(record) if self.inner.log.absent().is_none() => {
                    let record = record.map(|(record, _)| record);
                    let record = record.filter(|record| !is_too_long_gone(record, self.inner.clock.at_least()));
                    let record = record.unwrap_or_default();
                    let oldest = worker::oldest_of(&record, &*self.inner.log).await;
                    worker::look(config, record, letters, &*self.inner.log, oldest)
                }
                // An error is not an absence.
                _ => worker::afar(config, worker::unseen(config), letters),
            };
            self.workers().by_sink.insert(config.name.clone(), handle);
            return;
        }
        if self.shares_sinks() {
            // It begins when its lease is here; one that ran with an earlier configuration has stopped.
            let letters = self.letters_of(&config.name);
            {
                let by_sink = &mut self.workers().by_sink;
                if let Some(handle) = by_sink.get_mut(&config.name) {
                    let view = lock(&handle.view).left();
                    *handle = worker::afar(config, view, letters);
                }
            }
            return self.look_from_afar(config).await;
        }
        let kit = self.prepare(config).await;
        self.launch(kit);
    }

    /// Everything a worker needs, its start settled and saved as far as that can be done now; nothing is read or delivered yet.
    pub(super) async fn prepare(&self, config: &SinkConfig) -> Kit {
        let lease = self.inner.leases.lease(&node::of_sink(&config.name));
        let follow = self.inner.mode == Mode::Follow;
        let mut found = self.find_record(config).await;
        let mut changed = found.record.detached_at.take().is_some();
        if found.record.main.is_none() && follow && !self.shares_sinks() {
            match self.settle(config, found.is_damaged).await {
                Ok(start) => {
                    found.record.begin_at(start);
                    found.record.begun_anew = found.is_damaged.then(Timestamp::now);
                    changed = true;
                }
                // The worker asks again until it is known; until then nothing is dropped from the log.
                Err(error) => tracing::warn!(sink = config.name, %error, "where the sink begins can't be found now"),
            }
        }
        if changed {
            self.note_start(config, &found).await;
        }
        let record = found.record.clone();
        let fence = lease.as_ref().map_or(0, Lease::fence);
        let letters = self.letters_of(&config.name).under(fence);
        if self.inner.mode.drives() {
            self.take_letters_over(&config.name, &letters, fence).await;
            self.end_removals(config, &letters).await;
            self.end_diversions(Some(&config.name)).await;
        }
        letters.set_max(config.dead_max.0);
        // Until its worker has begun: no position is none of 0.
        let log = &*self.inner.log;
        let view = if found.is_unreadable {
            worker::unseen(config)
        } else {
            worker::saved_view(config, record.clone(), &letters, log)
        };
        let dead_to = config.dead_to.as_ref().map(|sink| DeadTo {
            sink: sink.clone(),
            letters: self.letters_of(sink),
        });
        Kit {
            config: config.clone(),
            log: self.inner.log.clone(),
            rules: self.inner.rules.clone(),
            store: self.inner.store.clone(),
            lease: lease.unwrap_or_else(Lease::over),
            letters,
            bury: self.inner.bury.subscribe(),
            view: Arc::new(Mutex::new(view)),
            initial: record,
            jobs: self.inner.jobs.clone(),
            follow,
            delivered: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            diverted: AtomicU64::new(0),
            dead_to,
            rendering: Rendering::new(config, Guard::new(self.inner.names.clone())),
            memory: self.inner.memory.clone(),
            outset: self.inner.outset.clone(),
            clock: self.inner.clock.clone(),
        }
    }

    /// Letters of which the mark says that they were delivered go, and it says so no more, before any sink begins: one that is given to
    /// this sink from then on, of another delivery, would be taken for one of those.
    pub(super) async fn end_removals(&self, config: &SinkConfig, letters: &Letters) {
        let mut found = self.find_record(config).await;
        let delivered = std::mem::take(&mut found.record.remove);
        if delivered.is_empty() {
            return;
        }
        // While they are there no other letter is made for the same events.
        letters.set_leaving(delivered.iter().copied().collect());
        let letters = letters.clone();
        let remove = move || letters.read().and_then(|()| letters.remove(&delivered));
        let removed = aside(move || remove().map_err(|error| error.to_string())).await;
        match removed.flatten() {
            Ok(_) => drop(self.note_start(config, &found).await),
            Err(error) => {
                let sink = &config.name;
                tracing::warn!(sink, %error, "dead letters that were delivered can't be removed now; this is tried again");
            }
        }
    }

    /// The first half of a reload.
    #[cfg(test)]
    pub(super) async fn stop_and_prepare(&self, sink: &str, config: &SinkConfig) -> Kit {
        self.tell_to_stop(sink).await.wait().await;
        self.prepare(config).await
    }

    /// Begins a worker, unless the engine stops. It is known from the moment it runs: what it may have read is asked for then.
    pub(super) fn launch(&self, kit: Kit) {
        let mut workers = self.workers();
        if !workers.over {
            let name = kit.config.name.clone();
            workers.by_sink.insert(name, worker::start(kit));
        }
    }

    /// Forgets the positions of sinks that left the configuration longer ago than they are kept, but for some: one that is put back after
    /// that begins as a new one. What replays have still to send there is never sent.
    pub(super) async fn forget_detached(&self, now: Timestamp, but: &BTreeSet<String>) {
        if !self.inner.mode.drives() {
            return;
        }
        let keys = self.record_keys().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "removed sinks can't be looked at now; this is tried again");
            Vec::new()
        });
        for key in keys {
            let name = key.trim_start_matches(RECORDS);
            let Ok(Some((record, revision))) = self.record(&key).await else {
                continue;
            };
            if !is_too_long_gone(&record, Some(now)) || but.contains(name) {
                continue;
            }
            if let Err(error) = self.part_for_good(name).await {
                tracing::warn!(sink = name, %error, "a removed sink can't be forgotten now; this is tried again");
                continue;
            }
            self.inner.outset.forget(name);
            match self.inner.store.remove(&key, Expected::Revision(revision)).await {
                Ok(()) => tracing::info!(
                    sink = name,
                    "the sink was removed more than 7 days ago: its position is forgotten"
                ),
                Err(error) => {
                    tracing::warn!(sink = name, %error, "a removed sink can't be forgotten now; this is tried again");
                }
            }
        }
    }

    /// Sinks that are no longer configured keep their position for a week from now on.
    /// `false`: of one of them that could not be noted, so that it keeps the log for now.
    pub(super) async fn detach_missing(&self, sinks: &[SinkConfig]) -> Result<bool, EngineError> {
        let mut is_done = true;
        if self.inner.mode != Mode::Follow {
            return Ok(is_done);
        }
        let now = Timestamp::now();
        for key in self.record_keys().await? {
            let name = key.trim_start_matches(RECORDS);
            if sinks.iter().any(|sink| sink.name == name) {
                continue;
            }
            let (mut record, revision) = match self.record(&key).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(
                        sink = name,
                        error,
                        "a removed sink's position can't be read now; this is tried again"
                    );
                    is_done = false;
                    continue;
                }
            };
            if record.detached_at.is_some() {
                continue;
            }
            record.detached_at = Some(now);
            let expected = Expected::Revision(revision);
            if let Err(error) = put_json(&*self.inner.store, &key, &record, expected).await {
                tracing::warn!(sink = name, %error, "that a sink was removed could not be noted; this is tried again, and it keeps the log until then");
                is_done = false;
            }
        }
        Ok(is_done)
    }

    /// What is to be done of removed sinks while everything else goes on, again and again until that is done: it is compared what damage has
    /// taken of their letters, and noted that they were removed where that is not `is_noted`, until which the log is kept for them.
    pub(super) fn detach_later(&self, mut is_noted: bool) {
        if self.inner.mode != Mode::Follow {
            return;
        }
        let (stop, inner) = (self.inner.stop.clone(), Arc::downgrade(&self.inner));
        task::begin(async move {
            let mut is_compared = false;
            while let Some(inner) = inner.upgrade() {
                let engine = Engine { inner };
                let work = async {
                    is_noted = is_noted || engine.detach_again().await;
                    is_compared = is_compared || engine.compare_removed().await;
                };
                let ended = stop.run_until_cancelled(work).await;
                if ended.is_none() || (is_noted && is_compared) {
                    return;
                }
                drop(engine);
                let rested = stop.run_until_cancelled(tokio::time::sleep(DETACH_EVERY)).await;
                if rested.is_none() {
                    return;
                }
            }
        });
    }

    async fn detach_again(&self) -> bool {
        // A reload may be about to bring one back.
        let _changing = self.inner.changing.lock().await;
        let sinks = lock(&self.inner.sinks).clone();
        matches!(self.detach_missing(&sinks).await, Ok(true))
    }

    /// Takes over new rules and sinks: what is unchanged goes on undisturbed, what changed goes on from its position, what
    /// is gone keeps its position for a week. If a sink can't be used as it is configured, nothing changes.
    pub async fn reload(&self, rules: Arc<RuleSet>, sinks: &[SinkConfig]) -> Result<SinkChanges, EngineError> {
        let _changing = self.inner.changing.lock().await;
        let current: BTreeMap<String, Handle> = self.workers().by_sink.clone();
        let changed = sinks.iter().filter(|sink| is_changed(&current, sink));
        let changed: Vec<&SinkConfig> = changed.collect();
        usable(changed.iter().copied())?;
        // Else what is new would be taken for something that was lost.
        self.note_mended().await;
        if let Some(now) = self.inner.clock.at_least() {
            self.forget_detached(now, &current.keys().cloned().collect()).await;
        }
        lock(&self.inner.configured).extend(sinks.iter().map(|sink| sink.name.clone()));
        let names = sinks.iter().map(|sink| sink.name.as_str());
        judges::keep_rules(&*self.inner.store, &rules, names).await;
        let became = changes(&current, sinks);
        let removed = &became.removed;
        let removing = join_all(removed.iter().map(|name| self.tell_to_stop(name)));
        let changing = join_all(changed.iter().map(|sink| self.tell_to_stop(&sink.name)));
        let (removing, changing) = tokio::join!(removing, changing);
        // Between the last event that a removed sink has judged and the first of a new one: neither may judge one by rules that do not
        // know it, and pass it.
        self.inner.rules.store(rules);
        self.note_starts(sinks).await;
        self.keep_until_parted(sinks, removed);
        self.want(sinks);
        let renew = changing.into_iter().zip(&changed).map(async |(stopping, sink)| {
            stopping.wait().await;
            self.start_worker(sink).await;
        });
        let remove = removing.into_iter().map(|stopping| self.remove_worker(stopping));
        tokio::join!(join_all(renew), join_all(remove));
        // What is removed keeps its position a little longer.
        let is_noted = self.detach_missing(sinks).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "removed sinks could not be noted; this is tried again");
            false
        });
        self.detach_later(is_noted);
        *lock(&self.inner.configured) = sinks.iter().map(|sink| sink.name.clone()).collect();
        for handle in self.workers().by_sink.values() {
            // One that has so much to do comes to it by itself.
            let _ = handle.commands.try_send(Command::Rules);
        }
        self.tell_stranded();
        Ok(became)
    }

    /// Lets go of a sink that was removed, when its worker has stopped, or does not.
    async fn remove_worker(&self, stopping: Stopping) {
        let name = stopping.sink.clone();
        let has_stopped = stopping.wait().await;
        let gone = self.workers().by_sink.remove(&name);
        self.inner.outset.forget(&name);
        if has_stopped {
            self.part_with(&name).await;
        } else if let Some(handle) = &gone {
            self.part_later(name.clone(), Running::of(handle));
        }
        if let Some(handle) = gone {
            let replays = lock(&handle.view).replays.clone();
            lock(&self.inner.parted).insert(name.clone(), replays);
        }
        tracing::info!(sink = name, "sink removed; its position is kept for 7 days");
    }

    /// What a reload waits for: the sinks that are coming to an end, and what they still do.
    pub fn stopping(&self) -> Option<String> {
        let workers = self.workers();
        let views = workers.by_sink.iter().filter_map(|(name, handle)| {
            let view = lock(&handle.view);
            let doing = view.doing()?;
            Some(format!("sink \"{name}\" has still to end what it does ({doing})"))
        });
        let stopping: Vec<String> = views.collect();
        (!stopping.is_empty()).then(|| stopping.join("; "))
    }

    /// What could not be added to the files of letters does not count after the next start.
    async fn mend_letters(&self) {
        let all = lock(&self.inner.letters).clone();
        let mend = move || {
            for (sink, letters) in all.iter().filter(|(_, letters)| !letters.is_shared()) {
                if let Err(error) = letters.mend() {
                    tracing::error!(sink, %error, "dead letters that could not be stored may be there after the next start, and be delivered as well");
                }
            }
        };
        if tokio::time::timeout(OBEY_WITHIN, task::begin_blocking(mend))
            .await
            .is_err()
        {
            tracing::error!("the dead letters could not be put in order: the disk does not answer");
        }
    }

    /// Lets running deliveries come to their end, saves every position, and stops. No worker is begun any more, by whatever is under way.
    /// `false`: some worker was left behind, now or before.
    pub async fn shutdown(&self) -> bool {
        self.inner.stop.cancel();
        let names: Vec<String> = {
            let mut workers = self.workers();
            workers.over = true;
            workers.by_sink.keys().cloned().collect()
        };
        let stop = async |name: &String| self.tell_to_stop(name).await.wait().await;
        let stopped = join_all(names.iter().map(stop)).await;
        self.workers().by_sink.clear();
        self.mend_letters().await;
        self.inner.store.close().await;
        // One of before may still be at it: nobody looks for that any more.
        stopped.into_iter().all(|has_stopped| has_stopped) && !self.inner.left_behind.is_any()
    }
}

/// Whether a sink left the configuration so long ago that its position is not kept any more. `now`: at the least, where that is known.
pub(super) fn is_too_long_gone(record: &Record, now: Option<Timestamp>) -> bool {
    let gone_at = record.detached_at.zip(now);
    gone_at.is_some_and(|(at, now)| now.duration_since(at) > KEPT)
}

/// Whether a sink is new, or has to begin anew to be as it is configured now.
fn is_changed(current: &BTreeMap<String, Handle>, sink: &SinkConfig) -> bool {
    current.get(&sink.name).is_none_or(|old| !same(&old.config, sink))
}

/// What becomes of the sinks that there are, and of these.
fn changes(current: &BTreeMap<String, Handle>, sinks: &[SinkConfig]) -> SinkChanges {
    let names = |wanted: &dyn Fn(&SinkConfig) -> bool| -> Vec<String> {
        let sinks = sinks.iter().filter(|sink| wanted(sink));
        sinks.map(|sink| sink.name.clone()).collect()
    };
    let is_removed = |name: &&String| !sinks.iter().any(|sink| sink.name == **name);
    SinkChanges {
        added: names(&|sink| !current.contains_key(&sink.name)),
        removed: current.keys().filter(is_removed).cloned().collect(),
        changed: names(&|sink| is_changed(current, sink) && current.contains_key(&sink.name)),
        unchanged: names(&|sink| !is_changed(current, sink)),
    }
}

/// Whether a sink's configuration means the same sink, driven the same way.
fn same(old: &SinkConfig, new: &SinkConfig) -> bool {
    let driving = |config: &SinkConfig| {
        (
            config.kind.clone(),
            config.concurrency,
            config.rate,
            config.timeout,
            config.retry,
            config.order,
            config.breaker,
            config.dead_max,
            config.delay,
            config.settle,
            config.dead_to.clone(),
            config.program.clone(),
        )
    };
    driving(old) == driving(new) && old.options.fingerprint() == new.options.fingerprint()
}
