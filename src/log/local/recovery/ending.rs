//! What is missing at the end of the log, where no other segment tells of it by the Seqs in between.

use std::io;

use super::{Finder, Inventory, MISSING};
use crate::event::Seq;
use crate::log::LEAP_MAX;
use crate::log::local::refused::OpenError;
use crate::log::local::sealed::swap;

impl Finder<'_> {
    /// What is missing at the end of the log is told by what is on record, whose Seqs must not be given out again, by the keys of its events, and
    /// by a last segment that is complete, which it is not before another one has begun.
    pub(super) fn take_end(
        &self,
        begins: Option<Seq>,
        oldest: Option<Seq>,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let fail = |source| self.failed(source);
        let end = inventory.next;
        let behind = self.gaps.list().iter().map(|gap| gap.to.next()).max();
        let behind = behind.filter(|behind| *behind > end);
        if let Some(behind) = behind {
            // What is on record was recorded at the end of the log: what was before it was there, where it is known where that began.
            if oldest.or(begins).is_some() {
                self.record_missing(end, behind.prev(), MISSING).map_err(fail)?;
            }
            inventory.go_on_at(behind);
        }
        let from = inventory.next;
        let is_all_missing = oldest.is_none() && begins.is_some_and(|begins| !self.gaps.holds(begins));
        match self.known.last_behind(from) {
            Some(reached) if reached.0 - from.0 < LEAP_MAX => {
                self.give_up_known(oldest.or(begins).is_some(), from, reached, inventory)
            }
            Some(reached) => {
                tracing::error!(
                    end = from.prev().0,
                    reached = reached.0,
                    "known keys tell of events that no log has given out: they are damaged, or another log's"
                );
                Ok(())
            }
            // What is on record there may be what was found of it, before the start ended that was to go on behind it.
            None if is_all_missing || (behind.is_none() && self.is_newest_missing().map_err(fail)?) => {
                self.give_up(from, from, None, MISSING, inventory)
            }
            None => Ok(()),
        }
        .map_err(fail)
    }

    /// Keys tell of events from `from` to `reached`, and nothing of their segments is there.
    fn give_up_known(
        &self,
        is_begin_known: bool,
        from: Seq,
        reached: Seq,
        inventory: &mut Inventory,
    ) -> io::Result<()> {
        let why = "their keys are known, and the segments that held them are missing";
        // Keys are written when a segment is complete: another one came after it.
        let after = reached.next();
        if is_begin_known {
            return self.give_up(after, from, Some(reached), why, inventory);
        }
        // They are kept for longer than events: these may have been dropped.
        let begins = self.known.newest_begins().unwrap_or(after);
        self.give_up(after, begins.clamp(from, after), None, why, inventory)
    }

    /// Whether a segment came behind the last one that is there.
    fn is_newest_missing(&self) -> io::Result<bool> {
        let Some(complete) = self.complete else {
            return Ok(false);
        };
        if self.repair {
            return Ok(true);
        }
        // Another one may have begun since they were listed.
        let now = swap::visible(self.log_dir)?;
        Ok(now.last().is_some_and(|(first, _)| *first == complete))
    }
}
