//! Sealing: a complete segment's journal becomes a database, at the lowest priority, and out of the way of a flood.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Keeper, Work, keys};
use crate::event::Seq;
use crate::framefile;
use crate::log::local::fault::{self, SegmentError};
use crate::log::local::journal::{self, OpenSegment};
use crate::log::local::known;
use crate::log::local::owed::set_segment_aside;
use crate::log::local::sealed::{self, Access, SealedSegment};
use crate::log::local::shared::Segment;
use crate::log::local::space::{self, Left};
use crate::sync::{lock, read_lock, write_lock};

/// Complete segments that may wait while sealing keeps out of the way: each holds some 10 MB of keys in memory.
const UNSEALED_MAX: usize = 3;

/// How often a sealing is looked at.
const WATCH: Duration = Duration::from_millis(20);

/// So many new events between two looks are a flood, 5,000 a second: they need the machine more than the sealing does.
const FLOOD: u64 = 100;

/// A flood is over when it has been missed at so many looks.
const LOOKS_AFTER_FLOOD: u32 = 10;

/// A database takes up to this many times what its journal took, and never less than [`SEALED_MIN`].
const SEALED_GROWTH: u64 = 2;

/// The smallest database, roughly.
const SEALED_MIN: u64 = 512 << 10;

/// Whether a flood of events is coming in, found out by looking at the newest Seq every [`WATCH`].
#[derive(Debug)]
struct Tide {
    head: Seq,
    looks_since_flood: u32,
}

impl Tide {
    /// High until looks say otherwise: it is mostly a flood that completes a segment.
    fn new(head: Seq) -> Tide {
        Tide {
            head,
            looks_since_flood: 0,
        }
    }

    /// One look.
    fn is_high(&mut self, head: Seq) -> bool {
        let before = std::mem::replace(&mut self.head, head);
        self.looks_since_flood = if head.0 - before.0 >= FLOOD {
            0
        } else {
            self.looks_since_flood.saturating_add(1)
        };
        self.looks_since_flood < LOOKS_AFTER_FLOOD
    }
}

/// What a sealing is to do next, as the keeper sees it.
#[derive(Debug, Default)]
struct Wish {
    stop: AtomicBool,
    wait: AtomicBool,
}

/// Stops a sealing when its keeper has gone.
struct StopOnDrop<'a>(&'a Wish);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Wish {
    /// Whether the sealing is still wanted; returns when it may go on.
    fn is_to_go_on(&self) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            if !self.wait.load(Ordering::Relaxed) {
                return true;
            }
            std::thread::sleep(WATCH);
        }
        false
    }
}

impl Keeper {
    /// Seals every complete segment there is room for. One that would not fit stays in its journal, from which it can be read
    /// and dropped just as well.
    pub(super) fn seal_all(&mut self) -> Result<(), SegmentError> {
        self.catch_up()?;
        self.write_keys();
        for (first, segment) in self.shared.complete_segments() {
            let Segment::Open(open) = &segment else { continue };
            if self.shared.place_of(&segment).is_none() {
                continue;
            }
            if open.last().is_none() {
                self.drop_segment(first, &segment)?;
                continue;
            }
            let needed = SEALED_MIN.max(open.disk_bytes() * SEALED_GROWTH);
            // What comes in meanwhile needs room, too.
            if needed + needed / 3 > self.shared.left() {
                tracing::debug!(
                    first = first.0,
                    needed,
                    "a segment is not sealed: log.max_size leaves no room for it"
                );
                return Ok(());
            }
            // Its journal can be read just as well, and below the reserve no event would be taken.
            let options = &self.shared.options;
            space::have_room(&options.dir, needed, Left::Reserve(options.reserve))?;
            self.shared.reserved.store(needed, Ordering::Relaxed);
            let sealed = self.seal_what_is_whole(open);
            self.shared.reserved.store(0, Ordering::Relaxed);
            match sealed {
                // Somebody waits for something else.
                Err(_) if !self.deferred.is_empty() => return Ok(()),
                sealed => sealed?,
            }
        }
        Ok(())
    }

    /// Does what there was no room for when the log was opened, before anything goes in which it was found.
    pub(super) fn catch_up(&mut self) -> Result<(), SegmentError> {
        let owed = lock(&self.shared.owed).description.clone();
        if let Some(description) = owed {
            description.put(&self.shared.options.dir)?;
            lock(&self.shared.owed).description = None;
            self.shared.gaps.description_is_written();
        }
        self.shared.gaps.settle()?;
        loop {
            let owed = lock(&self.shared.owed).asides.last().cloned();
            let Some(aside) = owed else { break };
            // What is dropped needs no copy.
            if self.shared.segment(aside.first).is_some() {
                aside.make()?;
            }
            lock(&self.shared.owed).asides.pop();
        }
        // Once what follows it begins they would be thought to have held all in between.
        loop {
            let owed = lock(&self.shared.owed).segments.last().copied();
            let Some(first) = owed else { break };
            set_segment_aside(&self.shared.log_dir, first)?;
            lock(&self.shared.owed).segments.pop();
        }
        loop {
            let owed = lock(&self.shared.owed).keys.last().copied();
            let Some(first) = owed else { break };
            keys::write(&self.shared, first)?;
            lock(&self.shared.owed).keys.pop();
        }
        // Last, as it takes the most room.
        self.save_sets()
    }

    /// Saves what can be read of damaged sets of known keys: as long as that is owed, nothing is stored.
    fn save_sets(&self) -> Result<(), SegmentError> {
        loop {
            let owed = lock(&self.shared.owed).sets.last().cloned();
            let Some(damaged) = owed else { return Ok(()) };
            self.shared
                .desk
                .begin(format!("saving what can be read of {}", damaged.path.display()));
            let dir = read_lock(&self.shared.known).dir().to_owned();
            let saved = known::save(&dir, &damaged.path, &|unit| keys::is_over(&self.shared, unit));
            if let Err(error) = &saved
                && let Some(set) = lock(&self.shared.owed).sets.last_mut()
            {
                set.why = error.to_string();
            }
            if let Some(saved) = saved? {
                write_lock(&self.shared.known).saved(&saved);
            }
            lock(&self.shared.owed).sets.pop();
        }
    }

    /// Writes the keys of complete segments down: they need not stay in memory (some 10 MB a segment) until it is sealed, which a
    /// flood puts off. What can't be written now stays where it is; then the answer is `false`.
    fn write_keys(&self) -> bool {
        for (first, segment) in self.shared.complete_segments() {
            let Segment::Open(open) = segment else { continue };
            // One that holds nothing is dropped.
            if open.last().is_some()
                && let Err(error) = keys::write(&self.shared, first)
            {
                tracing::debug!(%error, first = first.0, "the keys of a complete segment can't be written yet");
                return false;
            }
        }
        true
    }

    /// Seals a segment; what is damaged in its journal is left out.
    fn seal_what_is_whole(&mut self, open: &Arc<OpenSegment>) -> Result<(), SegmentError> {
        match self.seal(open) {
            // Segments have piled up meanwhile: at normal priority this time.
            Err(SegmentError::Io(error))
                if error.kind() == ErrorKind::Interrupted && self.deferred.is_empty() && !self.shared.is_closing() =>
            {
                self.seal(open)
            }
            Err(SegmentError::Damaged(_)) => {
                for block in open.blocks() {
                    self.look_at_block(open, block)?;
                }
                self.seal(open)
            }
            sealed => sealed,
        }
    }

    /// Seals one complete segment and lets readers and keys move over to it.
    ///
    /// The work is a whole core's for seconds, and it has all the time in the world: it runs at the lowest priority and stands
    /// still while a flood of events comes in (measured: at the lowest priority alone it still halves what a flood gets), unless
    /// segments pile up. Its thread takes no lock that others wait for, or they would wait at its priority.
    fn seal(&mut self, open: &Arc<OpenSegment>) -> Result<(), SegmentError> {
        self.shared
            .desk
            .begin(format!("sealing the segment from event {} on", open.first));
        let is_urgent = self.backlog() > UNSEALED_MAX;
        // Only this thread writes the keys of segments: two of them would be in each other's way.
        keys::write(&self.shared, open.first)?;
        let manifest = self.at_leisure("seal", Some(open.first), is_urgent, |go_on| {
            fault::go_on(go_on)?;
            sealed::seal(open, go_on)
        })?;
        tracing::debug!(
            first = manifest.first.0,
            last = manifest.last.0,
            journal_bytes = open.disk_bytes(),
            sealed_bytes = manifest.database_bytes(),
            received_bytes = manifest.raw_bytes,
            "segment sealed"
        );
        let sealed = Arc::new(SealedSegment::new(open.dir.clone(), manifest, Access::Owner));
        write_lock(&self.shared.segments).insert(open.first, Segment::Sealed(sealed));
        drop_journal(open)?;
        Ok(())
    }

    /// Does long work in a thread of its own, at the lowest priority and not while a flood comes in, unless it is urgent. `at` is
    /// the segment that is worked on.
    pub(super) fn at_leisure<T: Send>(
        &mut self,
        name: &str,
        at: Option<Seq>,
        is_urgent: bool,
        work: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T, SegmentError> + Send,
    ) -> Result<T, SegmentError> {
        let urgent = self.urgent || is_urgent;
        let wish = Wish {
            wait: AtomicBool::new(!urgent),
            ..Wish::default()
        };
        let keeper = std::thread::current();
        std::thread::scope(|scope| {
            let work = || {
                if !urgent && let Err(error) = rustix::process::nice(19) {
                    tracing::debug!(%error, name, "working at normal priority");
                }
                let done = work(&mut || wish.is_to_go_on());
                keeper.unpark();
                done
            };
            // Whatever happens here, the other thread must not wait for ever.
            let _stop = StopOnDrop(&wish);
            let working = std::thread::Builder::new()
                .name(name.into())
                .spawn_scoped(scope, work)?;
            let mut tide = Tide::new(self.head());
            // What could not be written is tried again in the next round, and not at each look.
            let mut can_write = true;
            while !working.is_finished() {
                let flood = tide.is_high(self.head());
                wish.wait.store(!urgent && flood, Ordering::Relaxed);
                can_write = can_write && self.write_keys();
                if !self.attend(at.unwrap_or_default(), Work::Sealing) || (!urgent && self.backlog() > UNSEALED_MAX) {
                    wish.stop.store(true, Ordering::Relaxed);
                }
                std::thread::park_timeout(WATCH);
            }
            let panicked = |_| SegmentError::Io(std::io::Error::other(format!("the thread \"{name}\" panicked")));
            working.join().map_err(panicked)?
        })
    }

    /// The newest Seq.
    fn head(&self) -> Seq {
        *self.shared.head.borrow()
    }

    /// Complete segments that wait to be sealed.
    fn backlog(&self) -> usize {
        let segments = self.shared.complete_segments();
        let unsealed = segments
            .iter()
            .filter(|(_, segment)| matches!(segment, Segment::Open(_)));
        unsealed.count()
    }
}

/// The sealed form is durable: the journal has done its work.
pub(in crate::log::local) fn drop_journal(open: &OpenSegment) -> std::io::Result<()> {
    std::fs::remove_file(open.dir.join(journal::FILE_NAME))?;
    framefile::sync_dir(&open.dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_over_when_it_has_been_missed_for_a_while() {
        let mut tide = Tide::new(Seq(7));
        for _ in 1..LOOKS_AFTER_FLOOD {
            assert!(tide.is_high(Seq(7)), "nothing is known yet");
        }
        assert!(!tide.is_high(Seq(7)), "nothing came");
        assert!(!tide.is_high(Seq(7 + FLOOD - 1)), "little came");
        let head = Seq(7 + 2 * FLOOD);
        assert!(tide.is_high(head), "much came");
        for _ in 1..LOOKS_AFTER_FLOOD {
            assert!(tide.is_high(head), "it may only have paused");
        }
        assert!(!tide.is_high(head));
    }

    #[test]
    fn a_sealing_that_waits_hears_that_it_may_go_on_and_that_it_is_not_wanted_any_more() {
        let wish = Wish::default();
        assert!(wish.is_to_go_on());
        for (stop, goes_on) in [(false, true), (true, false)] {
            wish.wait.store(true, Ordering::Relaxed);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| wish.is_to_go_on());
                if stop {
                    wish.stop.store(true, Ordering::Relaxed);
                } else {
                    wish.wait.store(false, Ordering::Relaxed);
                }
                assert_eq!(waiting.join().unwrap(), goes_on);
            });
        }
    }
}
