//! Where a sink begins of which the state that nodes share has no record: it is new, or the state was lost.
//!
//! The state says in `begun` that it is the one which the log began with. As long as it says so, a sink without a record has never had one.
//! Where it does not, the state was made anew: each sink goes on from where this node has last seen it, or else with the oldest event
//! kept, and only when all of them have a record again is that noted anew.

use std::sync::atomic::Ordering;

use futures::future::join_all;
use jiff::Timestamp;

use super::engine::Engine;
use super::mark::{Record, record_key};
use super::reading::{end_of, within};
use super::reload::is_too_long_gone;
use super::types::{EngineError, Mode, failed};
use super::worker::Command;
use crate::config::{SinkConfig, Start};
use crate::event::Seq;
use crate::node;
use crate::state::{Expected, Revision, Store, StoreError, put_json};
use crate::sync::lock;

/// What is to be dispatched is not stored before it is known where sinks begin.
const UNSETTLED: &str = "where the sink begins can't be saved, and what is stored now would never go there";

/// In the state that nodes share: that it is the one that a log began with.
const BEGUN: &str = "begun";

/// Notes in the state that nodes share that it is the one that a log began with: a sink that has no record there has never had one.
pub async fn note_begun(store: &dyn Store, log_id: &str) -> Result<(), StoreError> {
    let log = serde_json::json!({ "log": log_id });
    match put_json(store, BEGUN, &log, Expected::Nothing).await {
        Ok(_) | Err(StoreError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A sink's record as it is found when the sink begins.
pub(super) struct Found {
    pub record: Record,
    pub revision: Option<Revision>,
    /// What was there was damaged, or may have been.
    pub is_damaged: bool,
    /// It can't be read now: the worker reads it, again and again.
    pub is_unreadable: bool,
    /// It is there, and the sink left the configuration so long ago that nothing goes on from it.
    pub is_too_old: bool,
}

impl Found {
    /// It says where the sink is.
    fn is_whole(&self) -> bool {
        self.revision.is_some() && !self.is_too_old && self.record.main.is_some()
    }
}

impl Engine {
    /// Finds out whether the state was lost, and made anew empty. A log that has given out Seqs had a node, and that has said so there when
    /// it began.
    pub(super) async fn look_whether_state_is_lost(&self) -> Result<(), EngineError> {
        if !self.shares_sinks() || self.has_begun().await? {
            return Ok(());
        }
        for key in self.record_keys().await? {
            // A closehook from before that was noted has saved it, or whoever was alone with the log.
            // One that can't be read may be no such one: then sinks without a record begin with the oldest event, which loses nothing.
            if let Ok(Some((Record { log_id: None, .. }, _))) = self.record(&key).await {
                return Ok(());
            }
        }
        let has_given_out = end_of(&*self.inner.log).await.map_err(failed)? > Seq(1);
        self.inner.outset.was_lost.store(has_given_out, Ordering::Relaxed);
        Ok(())
    }

    async fn has_begun(&self) -> Result<bool, EngineError> {
        let noted = self.inner.store.get(BEGUN).await.map_err(failed)?;
        if noted.is_some() {
            self.inner.outset.noted.store(true, Ordering::Relaxed);
        }
        Ok(noted.is_some())
    }

    /// Whether a sink that has no record may have had one: the state was lost before this node began, or has been since.
    pub(super) async fn may_state_be_lost(&self) -> Result<bool, EngineError> {
        let outset = &self.inner.outset;
        if outset.was_lost() {
            return Ok(true);
        }
        Ok(outset.noted.load(Ordering::Relaxed) && !self.has_begun().await?)
    }

    /// Notes where new sinks begin, and where those do whose record is gone. What comes from now on is theirs, however long it takes until a
    /// node has the lease; of several nodes the first to know a sink settles it. What can't be noted now is tried again.
    pub(super) async fn note_starts(&self, sinks: &[SinkConfig]) {
        if !self.shares_sinks() {
            return;
        }
        let noted = join_all(sinks.iter().map(|sink| self.note_new(sink))).await;
        let done = if noted.contains(&false) {
            Err(EngineError("not every sink has a position".into()))
        } else {
            self.note_state().await
        };
        if let Err(error) = done {
            self.inner.outset.miss();
            tracing::warn!(%error, "where sinks begin can't be noted now; this is tried again");
        }
    }

    /// Settles durably where those sinks begin that were never seen before, which a command does before it stores what is to be dispatched:
    /// one that begins "now" would else do so when a daemon starts, behind all of that. Those that were seen keep their positions.
    pub async fn settle_starts(&self) -> Result<(), EngineError> {
        let sinks = lock(&self.inner.sinks).clone();
        match self.inner.mode {
            // They have all begun.
            Mode::Follow | Mode::Look => Ok(()),
            Mode::Jobs => {
                let _changing = self.inner.changing.lock().await;
                for sink in &sinks {
                    self.settle_start(sink).await?;
                }
                Ok(())
            }
            Mode::Outside => self.settle_shared_starts(&sinks).await,
        }
    }

    /// The same of one, of whose record nobody but its worker here knows.
    async fn settle_start(&self, config: &SinkConfig) -> Result<(), EngineError> {
        // Where damage may have taken a position, the sink begins with the oldest event kept.
        let is_known = |found: &Found| found.record.main.is_some() || found.is_damaged;
        if is_known(&self.find_record(config).await) {
            return Ok(());
        }
        // It saves a record that says nothing of it.
        self.tell_to_stop(&config.name).await.wait().await;
        let settled = async {
            let mut found = self.find_record(config).await;
            if is_known(&found) {
                return Ok(true);
            }
            found.record.begin_at(self.settle(config, false).await?);
            Ok::<bool, EngineError>(self.note_start(config, &found).await)
        };
        let settled = settled.await;
        self.start_worker(config).await;
        if settled? {
            return Ok(());
        }
        Err(EngineError(format!("sink \"{}\": {UNSETTLED}", config.name)))
    }

    /// The same where several nodes share the log. Where none has ever noted that this is the state which the log began with, the first one
    /// that does has sinks begin with the oldest event kept.
    async fn settle_shared_starts(&self, sinks: &[SinkConfig]) -> Result<(), EngineError> {
        let has_given_out = end_of(&*self.inner.log).await.map_err(failed)? > Seq(1);
        if has_given_out && !self.has_begun().await? {
            return Ok(());
        }
        for sink in sinks {
            if !self.note_new(sink).await {
                return Err(EngineError(format!("sink \"{}\": {UNSETTLED}", sink.name)));
            }
        }
        self.note_state().await
    }

    /// Every sink has a record: one without is new from now on.
    async fn note_state(&self) -> Result<(), EngineError> {
        if !self.has_begun().await? {
            let noted = note_begun(&*self.inner.store, self.inner.log.id()).await;
            noted.map_err(failed)?;
            self.inner.outset.noted.store(true, Ordering::Relaxed);
        }
        self.inner.outset.was_lost.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Looks again at what could not be noted when the engine began, and at what was lost since.
    pub(super) async fn note_what_is_missing(&self, sinks: &[SinkConfig]) {
        let is_missing = self.inner.outset.is_missing.swap(false, Ordering::Relaxed);
        match self.has_begun().await {
            Ok(true) if !is_missing => {}
            Ok(_) => self.note_starts(sinks).await,
            Err(_) if is_missing => self.inner.outset.miss(),
            // It is looked again in a moment.
            Err(_) => {}
        }
    }

    /// Notes that whatever damage took of the state is settled, as soon as it is: when every sink has a durable position. Until then one
    /// without is not taken for new, also after the next start.
    pub(super) async fn note_mended(&self) {
        let store = &self.inner.store;
        if self.inner.mode != Mode::Follow || !store.is_damaged() {
            return;
        }
        let configured = lock(&self.inner.configured).clone();
        for sink in configured {
            if !matches!(self.record(&record_key(&sink)).await, Ok(Some((record, _))) if record.main.is_some()) {
                tracing::debug!(sink, "where the sink goes on after damage is not saved yet");
                return;
            }
        }
        if let Err(error) = store.mended().await {
            tracing::warn!(%error, "that every sink has a position again can't be noted now; this is tried again");
        }
    }

    /// Whether another node drives the sink, as far as this one knows: it knows better where the sink is.
    pub(super) fn is_driven_elsewhere(&self, sink: &str) -> bool {
        let what = node::of_sink(sink);
        self.inner.leases.lease(&what).is_none() && self.inner.leases.holder(&what).is_some()
    }

    /// A sink's record as it is saved.
    pub(super) async fn find_record(&self, config: &SinkConfig) -> Found {
        let mut found = Found {
            record: Record::default(),
            revision: None,
            is_damaged: self.inner.store.is_damaged() || self.inner.outset.was_lost(),
            is_unreadable: false,
            is_too_old: false,
        };
        match self.inner.store.get(&record_key(&config.name)).await {
            Ok(None) => {}
            Ok(Some(entry)) => match entry.json() {
                Ok(record) => {
                    found.revision = Some(entry.revision);
                    // Where it could not be forgotten in time it is all the same not gone on from.
                    let (surely, perhaps) = (self.inner.clock.at_least(), self.inner.clock.now());
                    found.is_too_old = is_too_long_gone(&record, surely);
                    if !found.is_too_old {
                        if is_too_long_gone(&record, Some(perhaps)) {
                            // As at most starts, before Close has told the time: going on loses nothing.
                            tracing::warn!(
                                sink = config.name,
                                left = record.detached_at.map(tracing::field::display),
                                "the sink left the configuration more than 7 days ago, by the clock here alone: it goes on where it was, and is not begun anew"
                            );
                        }
                        found.record = record;
                    }
                }
                Err(error) => {
                    tracing::error!(sink = config.name, error, "the sink's position is damaged");
                    found.is_damaged = true;
                }
            },
            // An error is not an absence: what is there stays, and the worker reads it, again and again.
            Err(error) => {
                tracing::error!(sink = config.name, %error, "the sink's position can't be read now; this is tried again");
                found.is_unreadable = true;
            }
        }
        found
    }

    /// Settles where a sink begins that no node knew before, or whose record is gone. Whether it has one now: where it is not known to, this
    /// has to be tried again before anybody drives it.
    pub(super) async fn note_new(&self, config: &SinkConfig) -> bool {
        let mut found = self.find_record(config).await;
        if found.is_unreadable {
            return false;
        }
        if found.is_whole() {
            if found.record.detached_at.take().is_some() {
                // It is configured again. Who would drive it may be down for longer than it would be kept.
                self.note_start(config, &found).await;
            }
            return true;
        }
        match self.begin_anew(config, &mut found).await {
            Ok(false) => true,
            Ok(true) => self.note_start(config, &found).await,
            Err(why) => {
                tracing::warn!(
                    sink = config.name,
                    why,
                    "where the sink begins can't be found now; this is tried again"
                );
                false
            }
        }
    }

    /// Settles where a sink begins whose record says nothing of it; `false`: it says something, which nobody can read.
    async fn begin_anew(&self, config: &SinkConfig, found: &mut Found) -> Result<bool, String> {
        let name = &config.name;
        let is_gone = found.revision.is_none();
        let is_lost = is_gone && self.may_state_be_lost().await.map_err(|error| error.to_string())?;
        if is_gone && found.is_damaged && !is_lost {
            return Ok(false);
        }
        if is_gone
            && let Ok(worker) = self.worker(name)
            && worker.lease.is_some()
        {
            // It knows what it has delivered since it was saved last. One that has so much to do saves it by itself.
            let _ = worker.commands.try_send(Command::Save);
            return Err("it is gone, and the sink's worker saves it anew".into());
        }
        if is_lost && self.is_driven_elsewhere(name) {
            return Err("it was lost, and the node that drives the sink knows best where it is".into());
        }
        if found.is_too_old {
            self.part_for_good(name).await.map_err(|error| error.to_string())?;
        }
        let outset = &self.inner.outset;
        if is_gone && let Some(seen) = outset.seen(name) {
            if is_lost {
                tracing::error!(
                    sink = name,
                    "the sink's position is gone from the state: it goes on from where this node last saw it"
                );
            }
            found.record = seen;
            return Ok(true);
        }
        let start = self.settle(config, is_lost).await.map_err(|error| error.to_string())?;
        found.record.begin_at(start);
        found.record.log_id = Some(self.inner.log.id().to_owned());
        found.record.begun_anew = is_lost.then(Timestamp::now);
        if is_gone {
            // Where it can't be saved now, it must not begin later for that.
            outset.see(name, &found.record);
        }
        Ok(true)
    }

    /// Whether there is a record now.
    pub(super) async fn note_start(&self, config: &SinkConfig, found: &Found) -> bool {
        if found.is_unreadable {
            return false;
        }
        let expected = match found.revision {
            Some(revision) => Expected::Revision(revision),
            None if found.is_damaged && !self.shares_sinks() => Expected::Anything,
            None => Expected::Nothing,
        };
        let put = put_json(&*self.inner.store, &record_key(&config.name), &found.record, expected).await;
        match put {
            Ok(_) => true,
            // Another node has just noted it.
            Err(StoreError::Conflict(_)) if self.inner.leases.are_shared() => true,
            // A full disk, say: receiving matters more, and the worker saves its record again and again.
            Err(error) => {
                tracing::warn!(sink = config.name, %error, "the sink's position can't be saved now; this is tried again");
                false
            }
        }
    }

    /// Where a sink begins, settled once and for all: a later start must not mean a later "now".
    pub(super) async fn settle(&self, config: &SinkConfig, is_damaged: bool) -> Result<Seq, EngineError> {
        let log = &self.inner.log;
        // Its position may be what damage took: everything again is better than something never.
        if is_damaged {
            tracing::error!(
                sink = config.name,
                "the sink's position is lost to damage: it begins at the oldest event kept, and deliveries repeat"
            );
            return Ok(log.first());
        }
        match config.start {
            Start::Now => Ok(log.head().borrow().next()),
            Start::Beginning => Ok(log.first()),
            Start::At(time) => within(log.seq_at(time)).await.map_err(failed),
        }
    }
}
