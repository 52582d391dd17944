//! Erasing: every segment that holds a doomed event is built anew with a tombstone in its place, and directories are swapped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Keeper, Work};
use crate::event::{Event, Kind, Seq};
use crate::log::local::fault::{self, SegmentError};
use crate::log::local::journal::{self, OpenSegment};
use crate::log::local::scratch;
use crate::log::local::sealed::{self, SealedSegment, swap};
use crate::log::local::shared::Segment;
use crate::log::local::space::{self, Left};
use crate::log::{Doomed, Erased, Narrow};
use crate::sync::{lock, write_lock};

/// A segment in which damage was found is tried again so often.
const TRIES_MAX: u32 = 3;

impl Keeper {
    /// Replaces doomed events by tombstones, in every complete segment and in what was set aside. `narrow` is not needed for that:
    /// `doomed` is asked about each event, whether it can be read as a delivery or not.
    pub(super) fn erase(&mut self, _narrow: &Narrow, doomed: &Doomed) -> Result<Erased, SegmentError> {
        self.catch_up()?;
        let doomed = |event: &Event| event.kind != Kind::Erased && doomed(event);
        let mut erased = Erased {
            before: self.erased.iter().copied().collect(),
            ..Erased::default()
        };
        for (first, _) in self.shared.complete_segments() {
            match self.giving_way(|keeper| keeper.erase_in(first, &doomed, &mut erased.seqs)) {
                Ok(()) => {}
                Err(error) if erased.seqs.is_empty() => return Err(error),
                // What is erased by now has to be forgotten everywhere else as well.
                Err(error) => {
                    erased.left.push(Erased::not_reached(first, &error.to_string()));
                    break;
                }
            }
        }
        match self.erase_remains(&doomed) {
            Ok(left) => erased.left.extend(left),
            Err(error) if erased.seqs.is_empty() => return Err(error),
            Err(error) => erased
                .left
                .push(format!("what was set aside may hold some of it: {error}")),
        }
        // What a command copied before this holds it still.
        erased
            .left
            .extend(scratch::clear(&self.shared.options.dir, &std::env::temp_dir()));
        // A reader may have kept a block that it had read before its segment gave way.
        lock(&self.shared.cache).clear();
        Ok(erased)
    }

    /// The same in the segment that begins with `first`, if it is still there. What became a tombstone is noted, whatever follows.
    fn erase_in(
        &mut self,
        first: Seq,
        doomed: &dyn Fn(&Event) -> bool,
        erased: &mut Vec<Seq>,
    ) -> Result<(), SegmentError> {
        let mut tries = 0;
        loop {
            let Some(segment) = self.shared.segment(first) else {
                return Ok(());
            };
            self.shared
                .desk
                .begin(format!("erasing in the segment from event {first} on"));
            let done = match &segment {
                Segment::Sealed(sealed) => self.erase_sealed(first, sealed, doomed, erased),
                Segment::Open(open) => self.erase_journal(first, open, doomed, erased),
            };
            match done {
                Err(SegmentError::Damaged(_)) if tries < TRIES_MAX => {
                    tries += 1;
                    self.put_right(first, &segment)?;
                }
                done => return done,
            }
        }
    }

    /// What is damaged is left out of a segment, so that the rest can be erased.
    fn put_right(&mut self, first: Seq, segment: &Segment) -> Result<(), SegmentError> {
        match segment {
            Segment::Sealed(sealed) => self.look_at_sealed(first, sealed),
            Segment::Open(open) => open
                .blocks()
                .into_iter()
                .try_for_each(|block| self.look_at_block(open, block)),
        }
    }

    fn erase_sealed(
        &mut self,
        first: Seq,
        sealed: &Arc<SealedSegment>,
        doomed: &dyn Fn(&Event) -> bool,
        erased: &mut Vec<Seq>,
    ) -> Result<(), SegmentError> {
        let mut seqs = Vec::new();
        self.shared.databases.touch(sealed);
        for index in 0..sealed.manifest.packs.len() {
            fault::go_on(&mut || self.attend(first, Work::Erasing))?;
            let events = sealed.read(index)?.events;
            seqs.extend(events.iter().filter(|event| doomed(event)).map(|event| event.seq));
        }
        if seqs.is_empty() {
            sealed.close_idle(std::time::Duration::ZERO);
            return Ok(());
        }
        self.have_room_for(sealed.disk_bytes)?;
        let staging = swap::begin(&self.shared.log_dir, first)?;
        let mut change = |event: Event| if doomed(&event) { event.erased() } else { event };
        let built = self.with_reserve(sealed.disk_bytes, |keeper| {
            sealed::rewrite(sealed, &staging, &mut change, &mut || {
                keeper.attend(first, Work::Erasing)
            })
        });
        let manifest = Self::or_undone(&staging, built)?;
        self.replace(first, sealed, Some(manifest), swap::Old::Removed)?;
        self.are_tombstones(seqs, erased);
        self.finish_erasure(first)
    }

    /// A journal keeps the identities of its events beside them, so that they stay known.
    fn erase_journal(
        &mut self,
        first: Seq,
        open: &Arc<OpenSegment>,
        doomed: &dyn Fn(&Event) -> bool,
        erased: &mut Vec<Seq>,
    ) -> Result<(), SegmentError> {
        let mut seqs = Vec::new();
        let _open = open.opened()?;
        for block in open.blocks() {
            fault::go_on(&mut || self.attend(first, Work::Erasing))?;
            let events = sealed::read_block(open, block)?.events;
            seqs.extend(events.iter().filter(|event| doomed(event)).map(|event| event.seq));
        }
        if seqs.is_empty() {
            return Ok(());
        }
        self.have_room_for(open.disk_bytes())?;
        let staging = swap::begin(&self.shared.log_dir, first)?;
        let built = self.with_reserve(open.disk_bytes(), |keeper| {
            journal::rewrite(open, &staging, doomed, &mut || keeper.attend(first, Work::Erasing))
        });
        let rewritten = Self::or_undone(&staging, built)?;
        open.retire();
        if let Err(error) = swap::swap(&self.shared.log_dir, first, swap::Old::Removed) {
            self.unplaced.push(first);
            open.reinstate();
            return Err(error.into());
        }
        write_lock(&self.shared.segments).insert(first, Segment::Open(Arc::new(rewritten)));
        self.are_tombstones(seqs, erased);
        self.finish_erasure(first)
    }

    fn are_tombstones(&mut self, seqs: Vec<Seq>, erased: &mut Vec<Seq>) {
        self.erased.extend(&seqs);
        erased.extend(seqs);
    }

    /// The bytes of the old form must go before this is done, and no reader may have kept them.
    fn finish_erasure(&mut self, first: Seq) -> Result<(), SegmentError> {
        lock(&self.shared.cache).clear();
        if let Err(error) = swap::finish_old(&self.shared.log_dir, first, swap::Old::Removed) {
            self.leftovers.push(first);
            return Err(error.into());
        }
        Ok(())
    }

    /// An error where there is no room for a segment's new form beside the old one: then nothing of it is begun. It may go below the
    /// log's reserve, as somebody waits for it, but never fill the disk.
    fn have_room_for(&self, bytes: u64) -> Result<(), SegmentError> {
        Ok(space::have_room(&self.shared.options.dir, bytes, Left::Little)?)
    }

    /// Counts bytes that are being written as taken up.
    pub(super) fn with_reserve<T>(&mut self, bytes: u64, work: impl FnOnce(&mut Keeper) -> T) -> T {
        self.shared.reserved.fetch_add(bytes, Ordering::Relaxed);
        let done = work(self);
        self.shared.reserved.fetch_sub(bytes, Ordering::Relaxed);
        done
    }

    fn or_undone<T>(staging: &std::path::Path, built: Result<T, SegmentError>) -> Result<T, SegmentError> {
        if built.is_err()
            && let Err(error) = swap::remove_dir(staging)
        {
            tracing::warn!(%error, staging = %staging.display(), "what was not finished could not be removed yet");
        }
        built
    }
}
