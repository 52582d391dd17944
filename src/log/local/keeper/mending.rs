//! Damage: only the keeper judges it, from what the files say, and only it puts it right.

use std::sync::Arc;

use super::{Keeper, Work};
use crate::event::Seq;
use crate::log::local::desk::Suspect;
use crate::log::local::fault::SegmentError;
use crate::log::local::journal::{BlockRef, OpenSegment};
use crate::log::local::sealed::{self, Access, Manifest, SealedSegment, swap};
use crate::log::local::shared::Segment;
use crate::log::local::space::{self, Left};
use crate::sync::write_lock;

impl Keeper {
    /// Where the segment of a suspect begins, if it is still what readers are given.
    pub(super) fn place_of(&self, suspect: &Suspect) -> Option<Seq> {
        self.shared.place_of(&match suspect {
            Suspect::Sealed(sealed, _) => Segment::Sealed(sealed.clone()),
            Suspect::Block(open, _) => Segment::Open(open.clone()),
        })
    }

    /// Looks at what a reader could not read, and puts it right where it is damaged.
    pub(super) fn look_at(&mut self, suspect: &Suspect) -> Result<(), SegmentError> {
        // Somebody else was here before.
        let Some(first) = self.place_of(suspect) else {
            return Ok(());
        };
        match suspect {
            Suspect::Sealed(sealed, why) => {
                tracing::debug!(first = first.0, why, "a reader suspects damage");
                self.look_at_sealed(first, sealed)
            }
            Suspect::Block(open, block) => self.look_at_block(open, *block),
        }
    }

    /// Looks whether a sealed segment is still what was sealed.
    pub(super) fn check(&mut self, first: Seq) {
        let Some(Segment::Sealed(sealed)) = self.shared.segment(first) else {
            return;
        };
        match self.look_at_sealed(first, &sealed) {
            Ok(()) => {}
            // Something else comes first, or the log is being closed.
            Err(SegmentError::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => return,
            Err(error) => {
                tracing::error!(%error, first = first.0, "a segment could not be checked; this is tried again when it is read");
                return;
            }
        }
        if self.shared.place_of(&Segment::Sealed(sealed.clone())).is_some()
            && let Err(error) = sealed.mend_manifests()
        {
            tracing::warn!(%error, first = first.0, "the manifest of a segment could not be brought up to date");
        }
    }

    /// Looks whether a sealed segment is damaged, and mends it. One that is dropped in the middle of that needs neither.
    pub(super) fn look_at_sealed(&mut self, first: Seq, sealed: &Arc<SealedSegment>) -> Result<(), SegmentError> {
        self.giving_way(|keeper| {
            keeper
                .shared
                .desk
                .begin(format!("checking the segment from event {first} on"));
            // What has only lost its name is not damaged.
            swap::put_back(&keeper.shared.log_dir, first)?;
            match sealed.examine(&mut || keeper.attend(first, Work::Mending)) {
                Err(SegmentError::Damaged(why)) => keeper.mend(first, sealed, &why),
                Err(SegmentError::Retired) => Ok(()),
                examined => examined,
            }
        })
    }

    /// A block of a journal that can't be read back any more is left out from now on, and its events are on record as lost.
    pub(super) fn look_at_block(&mut self, open: &OpenSegment, block: BlockRef) -> Result<(), SegmentError> {
        swap::put_back(&self.shared.log_dir, open.first)?;
        match sealed::read_block(open, block) {
            Err(SegmentError::Damaged(why)) => {
                self.shared.gaps.record(block.head.first, block.head.last(), &why)?;
                open.leave_out(block);
                Ok(())
            }
            read => read.map(drop),
        }
    }

    /// Sets a damaged segment aside, saves what can be read of it, and records what can't.
    fn mend(&mut self, first: Seq, damaged: &Arc<SealedSegment>, why: &str) -> Result<(), SegmentError> {
        self.shared
            .desk
            .begin(format!("saving what can be read of the segment from event {first} on"));
        tracing::error!(
            first = damaged.manifest.first.0,
            last = damaged.manifest.last.0,
            why,
            "a sealed segment is damaged; it is set aside and what can be read of it is kept"
        );
        let log_dir = self.shared.log_dir.clone();
        // A copy of it and what is built anew, at the least.
        space::have_room(&self.shared.options.dir, damaged.disk_bytes * 2, Left::Little)?;
        let staging = swap::begin(&log_dir, first)?;
        let saved = self.with_reserve(damaged.disk_bytes, |keeper| {
            sealed::salvage(damaged, &staging, &mut || keeper.attend(first, Work::Mending))
        });
        let saved = match saved {
            Ok(saved) => saved,
            Err(error) => {
                swap::remove_dir(&staging)?;
                return Err(error);
            }
        };
        // On record before the damaged one goes: were it lost in between, nobody would know what it held.
        for (from, to) in Manifest::lost_of(saved.as_ref(), &damaged.manifest) {
            self.shared.gaps.record(from, to, why)?;
        }
        self.replace(first, damaged, saved, swap::Old::Damaged)?;
        if let Some(aside) = swap::finish_old(&self.shared.log_dir, first, swap::Old::Damaged)? {
            tracing::error!(aside = %aside.display(), "the damaged segment is there for whoever can read more of it");
        }
        Ok(())
    }

    /// Lets the new form of a sealed segment, which is durable, take the place of the old one; `None`: nothing takes it. Not
    /// durable before [`swap::finish_old`].
    pub(super) fn replace(
        &mut self,
        first: Seq,
        before: &Arc<SealedSegment>,
        new: Option<Manifest>,
        old: swap::Old,
    ) -> Result<(), SegmentError> {
        before.retire();
        let log_dir = &self.shared.log_dir;
        let swapped = match new {
            Some(_) => swap::swap(log_dir, first, old),
            None => swap::take_away(log_dir, first, old),
        };
        if let Err(error) = swapped {
            self.unplaced.push(first);
            before.reinstate();
            return Err(error.into());
        }
        let mut segments = write_lock(&self.shared.segments);
        match new {
            Some(manifest) => {
                let sealed = SealedSegment::new(before.dir.clone(), manifest, Access::Owner);
                segments.insert(first, Segment::Sealed(Arc::new(sealed)));
            }
            None => drop(segments.remove(&first)),
        }
        Ok(())
    }
}
