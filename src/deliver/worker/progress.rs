//! Checkpoints, saving the mark, and going back to it.
//!
//! A checkpoint that is due stops dispatch and lets what runs come to its end, however busy the sink is; what lies beyond the last
//! one is bounded in time, events and bytes. Saving is a task of its own; at most one runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::securing::{Secured, Securing, Trouble};
use super::{Done, Worker};
use crate::deliver::mark::{Record, record_key};
use crate::deliver::schedule;
use crate::deliver::seqs::Seqs;
use crate::event::Seq;
use crate::sinks::{Commit, Gather, Sink};
use crate::state::{Expected, StoreError};
use crate::task;

/// Progress is saved at most this often, and at the latest after so long.
pub(super) const SAVE_EVERY: Duration = Duration::from_millis(200);

/// Progress is saved at the latest after so many deliveries, and after so many bytes of bodies. A checkpoint stands in the way of
/// deliveries: with half of this a busy file sink spends a quarter of its time on them.
const SAVE_AFTER: usize = 16_384;
const SAVE_AFTER_BYTES: usize = 16 << 20;

/// A receiver's mark names so many deliveries at the most. A save begins long before.
const NAMES_MAX: u64 = 16_384;
const SAVE_AFTER_NAMES: u64 = NAMES_MAX / 4;

const UNSAVED: &str = "progress can't be saved";

/// The last save of a worker that stops has so long.
const LAST_SAVE_WITHIN: Duration = Duration::from_secs(5);

/// What is not saved yet, and what of it is on its way.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(super) struct Progress {
    pub saving: bool,
    /// Nothing is delivered before the mark is saved: the sink has moved.
    pub settle: bool,
    /// The record in memory was saved by this worker since it began or went back. Before that a change that was given up may still be
    /// on its way: it becomes durable before what is saved next, or that is refused.
    pub fenced: bool,
    /// There is something to save.
    pub dirty: bool,
    pub unsaved: usize,
    pub unsaved_bytes: usize,
    pub saved_at: Instant,
    /// When the first delivery that is not saved yet came back; `None`: there is none.
    pub unsaved_since: Option<Instant>,
    /// What a sink that gathers got may not wait any longer.
    pub hurry: bool,
    /// Deliveries that a sink which secures what it has at checkpoints has taken since the newest save began, and those of a save that
    /// runs: they count when they are durable.
    fresh: u64,
    securing: u64,
    /// Since when there are any.
    pub unsecured_since: Option<Timestamp>,
    /// The sink can gather no more: nothing more is handed to it before that is secured.
    pub full: bool,
    /// When the save that runs, or the newest one, began; and whether it has to wait for the sink.
    pub began: (Instant, bool),
    /// New events that a receiver which keeps the mark has got since the newest save began: its marks name them, so that it is known
    /// of each, whatever becomes of it here while the receiver can't be asked.
    pub unsaved_deliveries: Seqs,
    /// The same since the durable mark, of a save that runs.
    pub saving_deliveries: Seqs,
    /// Letters that are to go by what is being saved, or by a save of which it is not known whether it is durable.
    pub removing: BTreeSet<Seq>,
}

impl Progress {
    pub fn new() -> Progress {
        Progress {
            saving: false,
            settle: false,
            fenced: false,
            dirty: true,
            unsaved: 0,
            unsaved_bytes: 0,
            saved_at: Instant::now(),
            unsaved_since: None,
            hurry: false,
            full: false,
            fresh: 0,
            securing: 0,
            unsecured_since: None,
            began: (Instant::now(), false),
            unsaved_deliveries: Seqs::default(),
            saving_deliveries: Seqs::default(),
            removing: BTreeSet::new(),
        }
    }

    /// What a receiver's mark has to name as delivered.
    pub fn delivered(&self) -> Seqs {
        let mut all = self.saving_deliveries.clone();
        all.extend(self.unsaved_deliveries.iter());
        all
    }

    /// Whether marks name so much that a save has to come first.
    pub fn names_enough(&self) -> bool {
        self.saving_deliveries.len() + self.unsaved_deliveries.len() >= NAMES_MAX
    }

    /// An event became a dead letter after all (of a replay).
    pub fn is_dead(&mut self, seq: Seq) {
        self.unsaved_deliveries.remove(seq);
        self.saving_deliveries.remove(seq);
    }

    /// What takes its time where a save runs, and since when.
    pub fn runs(&self) -> Option<(&'static str, Instant)> {
        let (began, with_sink) = self.began;
        let what = if with_sink {
            "its checkpoint is waiting"
        } else {
            "saving its position is waiting"
        };
        self.saving.then_some((what, began))
    }

    fn nothing_unsaved(&mut self) {
        self.unsaved = 0;
        self.unsaved_bytes = 0;
        self.unsaved_since = None;
        self.hurry = false;
        self.full = false;
    }

    /// Deliveries came back.
    pub fn unsaved(&mut self, events: usize, bytes: usize) {
        self.dirty = true;
        self.unsaved += events;
        self.unsaved_bytes += bytes;
        self.unsaved_since.get_or_insert_with(Instant::now);
    }

    /// One was taken that is not durable yet.
    pub fn takes(&mut self, count: u64) {
        self.fresh += count;
        self.unsecured_since.get_or_insert_with(Timestamp::now);
    }

    /// How many were taken and are not durable.
    pub fn unsecured(&self) -> u64 {
        self.fresh + self.securing
    }

    /// What a save took along is durable: gives how many that are.
    fn secures(&mut self) -> u64 {
        if self.fresh == 0 {
            self.unsecured_since = None;
        }
        std::mem::take(&mut self.securing)
    }

    /// When to save what there is, at the latest.
    pub fn due_at(&self, gather: Option<Gather>) -> Instant {
        match (gather, self.unsaved_since) {
            (Some(gather), Some(since)) if !self.hurry && !self.settle => since + gather.wait,
            _ => self.saved_at + SAVE_EVERY,
        }
    }

    /// Whether so much is not saved that it has to be.
    fn is_much(&self, gather: Option<Gather>) -> bool {
        let (events, bytes) = gather.map_or((SAVE_AFTER, SAVE_AFTER_BYTES), |gather| (gather.events, gather.bytes));
        self.full
            || self.unsaved >= events
            || self.unsaved_bytes >= bytes
            || self.unsaved_deliveries.len() >= SAVE_AFTER_NAMES
    }

    /// A save of everything begins.
    fn begins(&mut self) {
        self.dirty = false;
        self.nothing_unsaved();
        self.securing += std::mem::take(&mut self.fresh);
        self.saving_deliveries = self.delivered();
        self.unsaved_deliveries = Seqs::default();
    }
}

impl Worker<'_> {
    /// The mark as it is now, not yet durable.
    pub(super) fn snapshot(&self) -> Record {
        let record = self.lanes.save(&self.record, self.kit.follow);
        let next = record.main.as_ref().map(|main| main.next);
        let mut record = Record {
            last: next.and_then(|next| self.trail.below(next)),
            // Letters are durable before what passes their events.
            letters: self.kit.letters.extent(),
            ..record
        };
        // A receiver's mark is as old as its transaction, however long nothing was saved here.
        record.saved_now(schedule::now());
        record
    }

    /// Notes what was found to be damaged of the letters since the sink began: those that nodes share are read as they come, and a file is
    /// when it is written anew.
    pub(super) fn doubt_letters(&mut self) {
        let letters = &self.kit.letters;
        let upto = self.lanes.main.next().prev();
        if self.record.doubt_letters(letters, upto) {
            letters.note_lost_upto(self.record.letters_lost_upto);
            self.progress.dirty = true;
        }
    }

    /// Whether progress has to be saved before more is made.
    pub(super) fn save_is_due(&self) -> bool {
        self.progress.dirty
            && (self.progress.settle
                || self.progress.is_much(self.gather)
                || self.progress.due_at(self.gather) <= Instant::now())
    }

    pub(super) fn save_if_due(&mut self) {
        self.doubt_letters();
        if self.lanes.finish_replays() {
            self.progress.dirty = true;
            self.progress.hurry = true;
        }
        if self.progress.saving || self.opening || self.not_before.is_some() {
            return;
        }
        if !self.pausing.is_empty() && self.drive.commit == Commit::Checkpoint && self.sink.is_some() {
            // What is durable stays what it is, but for what was ordered: nothing has to be waited for.
            let ordered = self.durable.with_orders_of(&self.record);
            let securing = self.securing(ordered, None);
            return self.save(Securing {
                whole: false,
                ..securing
            });
        }
        if !self.save_is_due() && self.pausing.is_empty() {
            return;
        }
        if self.lanes.may_drop_replays() {
            let jobs = self.kit.jobs.lock();
            self.lanes.keep_replays(|id| jobs.contains_key(id));
        }
        let record = self.snapshot();
        match (self.drive.commit, self.sink.clone()) {
            (Commit::Checkpoint, Some(sink)) => {
                if self.running == 0 {
                    self.all_in(record, Some(sink));
                }
            }
            _ => self.all_in(record, None),
        }
    }

    /// Saves everything that there is.
    fn all_in(&mut self, record: Record, sink: Option<Arc<dyn Sink>>) {
        self.progress.begins();
        self.save(self.securing(record, sink));
    }

    fn save(&mut self, securing: Securing) {
        self.progress.saving = true;
        self.progress.began = (Instant::now(), securing.sink.is_some());
        self.progress.removing.extend(&securing.record.remove);
        let secured = async move { Done::Secured(Box::new(securing.run().await)) };
        task::begin_among(&mut self.tasks, secured);
    }

    pub(super) fn securing(&self, record: Record, sink: Option<Arc<dyn Sink>>) -> Securing {
        Securing {
            store: self.kit.store.clone(),
            key: record_key(self.kit.name()),
            before: self.durable.with_orders_of(&record),
            record,
            expected: self.revision.map_or(Expected::Nothing, Expected::Revision),
            is_shared: self.kit.lease.fence() > 0,
            sink,
            limit: self.limit(),
            exchange: self.kit.config.timeout.0,
            name: self.kit.name().to_owned(),
            whole: true,
            taken: false,
        }
    }

    /// A save came back.
    pub(super) async fn secured(&mut self, secured: Secured) {
        self.progress.saving = false;
        // A pause that was saved puts off no checkpoint.
        if secured.whole {
            self.progress.saved_at = Instant::now();
        }
        if let Some((record, revision)) = secured.saved {
            if secured.taken {
                self.record.position.clone_from(&record.position);
                self.progress.saving_deliveries = Seqs::default();
                let secured = self.progress.secures();
                self.count_delivered(secured);
                // Also where nothing is left to deliver.
                if self
                    .last_error
                    .as_ref()
                    .is_some_and(|(why, _)| why.starts_with(UNSAVED))
                {
                    self.last_error = None;
                }
            }
            self.revision = Some(revision);
            self.progress.fenced = true;
            self.progress.removing.clear();
            let mut gone = record.remove.clone();
            // What has gone meanwhile may have another letter by now.
            gone.retain(|seq| self.lanes.letters.is_done(*seq));
            self.durable = record;
            self.kit.see(&self.durable);
            let (durable, known) = (&self.durable.replays, &self.lanes.replays);
            let is_known = |id: &str| known.iter().any(|replay| &*replay.job.id == id);
            let is_done = |id: &str| durable.get(id).is_some_and(|record| record.done);
            self.kit.letters.keep_replays(|id| is_known(id) && !is_done(id));
            if !gone.is_empty() {
                self.remove_letters(&gone).await;
            }
            self.kit.letters.damage_is_noted(self.durable.letters_doubted);
            self.kit.letters.damage_is_seen(self.durable.letters_seen);
            if self.durable.has_orders_of(&self.record) {
                self.pausing.drain(..).for_each(|done| drop(done.send(Ok(()))));
            }
        }
        match secured.trouble {
            None => self.progress.settle &= !secured.whole,
            Some(Trouble::Sink(unavailable)) => {
                self.unavailable(&unavailable);
                self.close_sink(&unavailable.reason);
            }
            Some(Trouble::Store { error, moved }) => {
                self.progress.dirty = true;
                self.progress.settle |= moved;
                self.outdated = matches!(error, StoreError::Conflict(_));
                let what = format!("{UNSAVED}: {error}");
                self.stumble(&what);
                self.pausing
                    .drain(..)
                    .for_each(|done| drop(done.send(Err(what.clone()))));
            }
        }
    }

    /// Lets go of a sink of which it is not known what it has. A sink that keeps data until a checkpoint goes back to the last
    /// durable mark at once; one that keeps the mark itself is asked when it is opened again.
    pub(super) fn close_sink(&mut self, reason: &str) {
        self.sink = None;
        self.progress.settle = false;
        if self.drive.commit == Commit::Checkpoint {
            self.go_back(reason);
        }
    }

    /// Nothing since the last durable mark is believed.
    fn go_back(&mut self, reason: &str) {
        self.lanes.letters.go_back(&self.durable.remove, reason);
        let asked = std::mem::take(&mut self.lanes.letters);
        let mut durable = self.durable.with_orders_of(&self.record);
        durable.follow_clock(schedule::now());
        self.record = Record {
            held_since: self.record.held_since,
            held_counted_from: self.record.held_counted_from,
            ..durable
        };
        self.lanes = self.kit.lanes(&self.record);
        self.settle_anew(schedule::now());
        // Whoever waits for a letter whose removal is durable still does.
        self.lanes.letters = asked;
        self.note_rules();
        self.progress.fenced = false;
        self.progress.dirty = true;
        self.progress.nothing_unsaved();
        (self.progress.fresh, self.progress.securing) = (0, 0);
        self.progress.unsecured_since = None;
    }

    /// Whether the sink's data may be cut back to the position in the record. Only to one that is surely durable: if not, it is
    /// saved first.
    pub(super) fn may_cut(&mut self) -> bool {
        if self.drive.commit != Commit::Checkpoint || self.progress.fenced {
            return true;
        }
        self.progress.settle = true;
        self.progress.dirty = true;
        false
    }

    /// What did not come to its end when the worker stopped is not believed.
    pub(super) fn left_behind(&mut self) {
        self.progress.saving = false;
        self.running = 0;
        self.calls = super::Calls::default();
        if self.drive.commit == Commit::Checkpoint {
            self.close_sink("the sink's worker stopped");
        }
    }

    /// Saves what there is to save when the worker stops, waiting only so long.
    pub(super) async fn last_save(&mut self) {
        let sink = self.sink.clone().filter(|_| self.drive.commit == Commit::Checkpoint);
        if self.progress.dirty || !self.pausing.is_empty() {
            let securing = self.securing(self.snapshot(), sink);
            match tokio::time::timeout(LAST_SAVE_WITHIN, securing.run()).await {
                Ok(secured) => self.secured(secured).await,
                Err(_) => self.close_sink("the sink's worker stopped"),
            }
        }
        // Letters that were delivered, and are named in the mark that was just saved, are removed in `secured`.
        if self.progress.dirty && self.sink.is_none() && self.drive.commit == Commit::Checkpoint {
            let securing = self.securing(self.snapshot(), None);
            if let Ok(secured) = tokio::time::timeout(LAST_SAVE_WITHIN, securing.run()).await {
                self.secured(secured).await;
            }
        }
        self.sink = None;
    }
}
