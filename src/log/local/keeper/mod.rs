//! The keeper: the one thread that changes what is stored. It seals complete segments, drops what it is told to drop, erases,
//! looks at what a reader could not read and puts it right, closes idle databases, lets known keys expire, and looks once after
//! each start whether every sealed segment is still what was sealed.
//!
//! It is asked at its [desk](super::desk::Desk). Whatever takes long (sealing, erasing, merging keys, checking and mending what may be damaged, looking
//! through what was set aside) attends to errands in between, so that dropping is never behind it: dropping is what makes room. Its panic is said and counted, and it starts again.

mod erasing;
mod keys;
mod mending;
mod remains;
mod sealing;

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub(super) use sealing::drop_journal;

use super::desk::{Awaited, Errand, Reply};
use super::fault::SegmentError;
use super::journal;
use super::sealed::{Access, Manifest, SealedSegment, swap};
use super::shared::{Segment, Shared};
use crate::event::Seq;
use crate::sync::{lock, write_lock};
use crate::telemetry;
use crate::telemetry::paced::Paced;

/// How often the keeper looks around while there are segments that it has not checked since the start, at the least.
const ROUND_OF_CHECKS: Duration = Duration::from_millis(500);

/// A database that nobody read for so long is closed.
const DATABASE_IDLE: Duration = Duration::from_secs(10);

/// After a failed sealing the next try waits so many rounds.
const ROUNDS_AFTER_FAILURE: u32 = 15;

/// After a panic it rests, so that one that comes at once again does not fill the log.
const REST_AFTER_PANIC: Duration = Duration::from_secs(1);

/// Long work of the keeper's, in the middle of which it serves what can't wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Sealing,
    Erasing,
    Mending,
}

/// The keeper's own state.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    errands: Receiver<Errand>,
    /// Errands that came while something else was at work, and wait for its end.
    deferred: VecDeque<Errand>,
    /// Segments whose work waits while something else is looked at in the middle of it.
    beneath: Vec<Seq>,
    /// Sealed segments that were not checked since the start.
    unchecked: Vec<Seq>,
    /// Rounds without sealing, after a failure.
    rounds_to_wait: u32,
    /// The same for the merging of keys, which is no reason not to seal.
    merging_waits: u32,
    /// What was said of failures: of sealing, of removing keys, of merging them.
    said: Paced,
    said_of_keys: Paced,
    said_of_merging: Paced,
    /// Somebody waits for the round: sealing does not keep out of the way.
    urgent: bool,
    /// Directories that could not be removed at once.
    leftovers: Vec<Seq>,
    /// Segments whose form could not be replaced, and which may have lost their name to that.
    unplaced: Vec<Seq>,
    /// What became a tombstone since the start. Whether everybody who had it in memory has let go of it is not known here.
    erased: BTreeSet<Seq>,
}

impl Keeper {
    /// A keeper that has not begun; its desk is open.
    pub fn new(shared: Arc<Shared>) -> Keeper {
        let sealed = |(first, segment): (Seq, Segment)| matches!(segment, Segment::Sealed(_)).then_some(first);
        let leftovers = std::mem::take(&mut lock(&shared.owed).dropped);
        Keeper {
            errands: shared.desk.open(),
            unchecked: shared.all_segments().into_iter().filter_map(sealed).collect(),
            leftovers,
            shared,
            deferred: VecDeque::new(),
            beneath: Vec::new(),
            rounds_to_wait: 0,
            merging_waits: 0,
            said: Paced::default(),
            said_of_keys: Paced::default(),
            said_of_merging: Paced::default(),
            urgent: false,
            unplaced: Vec::new(),
            erased: BTreeSet::new(),
        }
    }

    /// Runs until the desk is closed, whatever happens in between.
    pub fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.go_rounds())).is_err() {
            let doing = self.shared.desk.says();
            let reason = format!("the keeper of the log panicked, which is a defect; it was doing this: {doing}");
            telemetry::restarted("keeper", &reason, REST_AFTER_PANIC);
            self.put_in_order();
            let rested = Instant::now();
            while rested.elapsed() < REST_AFTER_PANIC.min(self.shared.options.round) && !self.shared.is_closing() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// After a panic: what was between two forms is what is on disk now.
    fn put_in_order(&mut self) {
        self.urgent = false;
        self.beneath.clear();
        self.shared.reserved.store(0, Ordering::Relaxed);
        self.shared.desk.begin(String::new());
        for (first, segment) in self.shared.all_segments() {
            if !segment.is_retired() {
                continue;
            }
            match self.form_on_disk(first, &segment) {
                Ok(form) => drop(write_lock(&self.shared.segments).insert(first, form)),
                Err(error) => {
                    tracing::error!(%error, first = first.0, "a segment is not read until the next start");
                }
            }
        }
    }

    /// What is on disk of a segment that was to give way to another form of it.
    fn form_on_disk(&self, first: Seq, before: &Segment) -> Result<Segment, SegmentError> {
        swap::finish_new(&self.shared.log_dir, first)?;
        match before {
            Segment::Sealed(sealed) => {
                let manifest = Manifest::load(&sealed.dir)?;
                let sealed = SealedSegment::new(sealed.dir.clone(), manifest, Access::Owner);
                Ok(Segment::Sealed(Arc::new(sealed)))
            }
            Segment::Open(open) => {
                let limit = self.shared.next_segment_after(first);
                let recovered = journal::recover(&open.dir, first, limit, false, true);
                let (recovered, _) = recovered.map_err(journal::of_frame)?;
                Ok(Segment::Open(Arc::new(recovered.segment)))
            }
        }
    }

    fn go_rounds(&mut self) {
        let mut due = Instant::now() + self.pause();
        loop {
            self.shared.desk.begin(String::new());
            let errand = match self.deferred.pop_front() {
                Some(errand) => Ok(errand),
                None => self.errands.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match errand {
                Ok(errand) => self.serve(errand),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= due {
                self.round();
                due = Instant::now() + self.pause();
            }
        }
    }

    fn pause(&self) -> Duration {
        let round = self.shared.options.round;
        if self.unchecked.is_empty() {
            round
        } else {
            round.min(ROUND_OF_CHECKS)
        }
    }

    fn serve(&mut self, errand: Errand) {
        match errand {
            Errand::DropBefore(seq, awaited, reply) => self.drop_if_awaited(seq, &awaited, reply),
            Errand::Erase(narrow, doomed, reply) => {
                let erased = self.erase(&narrow, &*doomed).map_err(|error| error.to_string());
                reply(erased);
            }
            Errand::Suspect(suspect, reply) => reply(self.look_at(&suspect).map_err(|error| error.to_string())),
            Errand::Round(reply) => {
                self.urgent = true;
                self.round();
                self.urgent = false;
                reply(());
            }
        }
    }

    /// Looks around once.
    fn round(&mut self) {
        self.rounds_to_wait = if self.urgent {
            0
        } else {
            self.rounds_to_wait.saturating_sub(1)
        };
        if self.rounds_to_wait == 0
            && let Err(error) = self.seal_all()
            && !self.shared.is_closing()
        {
            if self.said.is_news(&error.to_string()) {
                tracing::warn!(%error, "a segment could not be sealed; it stays in its journal and is tried again");
            }
            self.rounds_to_wait = ROUNDS_AFTER_FAILURE;
        }
        if let Err(error) = keys::forget_expired(&self.shared)
            && self.said_of_keys.is_news(&error.to_string())
        {
            tracing::warn!(%error, "old keys could not be removed; this is tried again");
        }
        let log_dir = &self.shared.log_dir;
        self.unplaced.retain(|first| swap::put_back(log_dir, *first).is_err());
        let leftovers = std::mem::take(&mut self.leftovers).into_iter();
        self.leftovers = leftovers.filter(|first| self.give_back(*first).is_err()).collect();
        for (_, segment) in self.shared.all_segments() {
            if let Segment::Sealed(sealed) = segment {
                sealed.close_idle(DATABASE_IDLE);
            }
        }
        self.shared.close_idle_keys(DATABASE_IDLE);
        self.merging_waits = if self.urgent {
            0
        } else {
            self.merging_waits.saturating_sub(1)
        };
        if self.merging_waits == 0
            && let Err(error) = self.merge_keys()
            && self.deferred.is_empty()
            && !self.shared.is_closing()
        {
            // A flood may have its segments sealed first.
            if !error.is_giving_way() && self.said_of_merging.is_news(&error.to_string()) {
                tracing::warn!(%error, "known keys could not be merged; they stay as they are and it is tried again");
            }
            self.merging_waits = ROUNDS_AFTER_FAILURE;
        }
        if let Some(first) = self.unchecked.pop() {
            self.check(first);
        }
    }

    fn drop_if_awaited(&mut self, seq: Seq, awaited: &Awaited, reply: Reply<Result<Seq, String>>) {
        if awaited.strong_count() > 0 {
            reply(self.drop_before(seq).map_err(|error| error.to_string()));
        }
    }

    /// Serves what can't wait while the segment that begins with `at` is worked on; `false` when that work is to stop.
    fn attend(&mut self, at: Seq, work: Work) -> bool {
        self.shared.desk.turn();
        let mut go_on = !self.shared.is_closing();
        while let Ok(errand) = self.errands.try_recv() {
            match errand {
                Errand::DropBefore(seq, awaited, reply) if !self.is_worked_on_before(at, seq) => {
                    let doing = self.shared.desk.doing();
                    self.drop_if_awaited(seq, &awaited, reply);
                    self.shared.desk.begin(doing);
                }
                Errand::DropBefore(..) => self.deferred.push_front(errand),
                // Not one within another: they are looked at one after the other.
                Errand::Suspect(suspect, reply) if work != Work::Mending && self.place_of(&suspect) != Some(at) => {
                    let doing = self.shared.desk.doing();
                    self.beneath.push(at);
                    let looked = self.look_at(&suspect);
                    self.beneath.pop();
                    self.shared.desk.begin(doing);
                    if looked.is_err() && self.is_to_drop() {
                        self.deferred.push_back(Errand::Suspect(suspect, reply));
                    } else {
                        reply(looked.map_err(|error| error.to_string()));
                    }
                }
                Errand::Erase(..) | Errand::Round(_) | Errand::Suspect(..) => {
                    // A sealing is soon begun anew; what somebody waits for comes first.
                    go_on &= work != Work::Sealing;
                    self.deferred.push_back(errand);
                }
            }
        }
        // What was deferred in the middle of something else may concern this.
        go_on && !self.is_to_drop()
    }

    /// Whether a segment that is being worked on is before `seq`: the one at hand, or one whose work waits for that.
    fn is_worked_on_before(&self, at: Seq, seq: Seq) -> bool {
        let mut worked_on = self.beneath.iter().copied().chain([at]);
        worked_on.any(|at| self.ends_before(at, seq))
    }

    /// Does long work, which [attends](Keeper::attend) to errands; where it has stopped to let something be dropped, that is done and
    /// the work begins anew. In the middle of other work that is for the other one to do, once it has stopped, too.
    fn giving_way<T>(
        &mut self,
        mut work: impl FnMut(&mut Keeper) -> Result<T, SegmentError>,
    ) -> Result<T, SegmentError> {
        loop {
            match work(self) {
                Err(error) if self.is_to_drop() && self.beneath.is_empty() => {
                    tracing::debug!(%error, "long work lets something be dropped first");
                    self.serve_drops();
                }
                done => return done,
            }
        }
    }

    fn is_to_drop(&self) -> bool {
        matches!(self.deferred.front(), Some(Errand::DropBefore(..)))
    }

    fn serve_drops(&mut self) {
        while self.is_to_drop()
            && let Some(errand) = self.deferred.pop_front()
        {
            self.serve(errand);
        }
    }

    /// Whether the whole segment that begins with `first` is before `seq`.
    fn ends_before(&self, first: Seq, seq: Seq) -> bool {
        let segment = self.shared.segment(first);
        segment
            .and_then(|segment| segment.extent())
            .is_some_and(|(end, _)| end <= seq)
    }

    /// Removes every complete segment that ends before `seq`; gives the oldest Seq kept.
    fn drop_before(&mut self, seq: Seq) -> Result<Seq, SegmentError> {
        let is_over = |segment: &Segment| segment.extent().is_none_or(|(end, _)| end <= seq);
        let complete = self.shared.complete_segments().into_iter();
        let over: Vec<(Seq, Segment)> = complete.take_while(|(_, segment)| is_over(segment)).collect();
        if let Some((last, _)) = over.last() {
            self.begin_behind(*last)?;
        }
        let dropped = over
            .iter()
            .try_for_each(|(first, segment)| self.drop_segment(*first, segment));
        if dropped.is_err() {
            self.begin_at_oldest()?;
        }
        dropped?;
        self.shared.note_passed(seq);
        self.shared.forget_gaps()?;
        Ok(self.shared.first())
    }

    /// The log begins behind the segment that begins with `first`, which is to go: nobody is to miss it.
    fn begin_behind(&self, first: Seq) -> Result<(), SegmentError> {
        if let Some(next) = self.shared.next_segment_after(first) {
            self.shared.gaps.begin_at_or_owe(next)?;
        }
        Ok(())
    }

    /// What could not be dropped is to be missed all the same, when it is gone.
    fn begin_at_oldest(&self) -> Result<(), SegmentError> {
        if let Some((oldest, _)) = self.shared.all_segments().first() {
            self.shared.gaps.begin_at_or_owe(*oldest)?;
        }
        Ok(())
    }

    /// Gives back what a segment takes up that was dropped. Its name goes when it is on record that it is not missing: where there was no room
    /// for that, there is some when the rest is gone.
    fn give_back(&self, first: Seq) -> std::io::Result<()> {
        let log_dir = &self.shared.log_dir;
        if self.shared.gaps.is_owed() {
            swap::empty_dropped(log_dir, first)?;
            self.shared.gaps.settle()?;
        }
        swap::finish_old(log_dir, first, swap::Old::Removed).map(drop)
    }

    /// Takes a segment out of the log and gives its space back. Its name goes first, so that a crash leaves it whole or gone; its
    /// keys stay.
    fn drop_segment(&mut self, first: Seq, segment: &Segment) -> Result<(), SegmentError> {
        self.shared
            .desk
            .begin(format!("dropping the segment from event {first} on"));
        // Where it is not one of several, for which that was done.
        if self.shared.gaps.begins() == Some(first) {
            self.begin_behind(first)?;
        }
        let mut owes_keys = false;
        match segment {
            Segment::Open(open) if open.last().is_none() => {}
            Segment::Open(_) => keys::write(&self.shared, first)?,
            // In memory alone where the disk was full when they were made anew of its events: then there is room when those are gone.
            Segment::Sealed(_) => owes_keys = keys::write(&self.shared, first).is_err(),
        }
        write_lock(&self.shared.segments).remove(&first);
        if let Segment::Sealed(sealed) = segment {
            sealed.retire();
        }
        let log_dir = &self.shared.log_dir;
        match swap::take_away(log_dir, first, swap::Old::Removed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                if let Segment::Sealed(sealed) = segment {
                    sealed.reinstate();
                }
                write_lock(&self.shared.segments).insert(first, segment.clone());
                return Err(error.into());
            }
            _ => {}
        }
        if let Err(error) = self.give_back(first) {
            tracing::warn!(%error, first = first.0, "a segment is gone, and its space can't be given back yet");
            self.leftovers.push(first);
        }
        if owes_keys {
            keys::write(&self.shared, first)?;
        }
        Ok(())
    }
}
