//! Known keys, as far as the keeper has to do with them: written before their journal goes, merged, and forgotten when they are old.

use std::io;

use jiff::{SignedDuration, Timestamp};

use super::Keeper;
use crate::event::Seq;
use crate::log::local::fault::{self, SegmentError};
use crate::log::local::known::{self, KeyFile, Table, Unit};
use crate::log::local::reread;
use crate::log::local::shared::{Segment, Shared};
use crate::sync::{read_lock, write_lock};

/// Close retries for 72 hours, its event log goes back 30 days: keys are known at least this long.
const KEYS_KEPT_MIN: SignedDuration = SignedDuration::from_hours(31 * 24);

/// Sets of known keys beyond which merging does not wait for a flood to end: each costs every new event a look into memory.
const KEY_SETS_MAX: usize = 24;

/// Makes the keys of a complete segment durable beside its journal.
pub(super) fn write(shared: &Shared, first: Seq) -> io::Result<()> {
    let known = read_lock(&shared.known);
    let (table, path) = (known.unwritten(first), known.file_path(first));
    drop(known);
    let Some(table) = table else { return Ok(()) };
    known::write_file(&path, &table)?;
    let file = KeyFile::open(&path, first)?;
    // Dropping a large table takes its time: not under the lock that every commit needs.
    let table = write_lock(&shared.known).sealed(first, Some(file));
    drop(table);
    Ok(())
}

/// Keys from before this are old enough to be forgotten.
fn cutoff(shared: &Shared) -> Timestamp {
    let keys_kept = SignedDuration::try_from(shared.options.keys_kept).unwrap_or(SignedDuration::MAX);
    let now = shared.options.now.at_least();
    let cutoff = now.and_then(|now| now.checked_sub(keys_kept.max(KEYS_KEPT_MIN)).ok());
    cutoff.unwrap_or(Timestamp::MIN)
}

/// Whether a set would be forgotten.
pub(super) fn is_over(shared: &Shared, unit: &Unit) -> bool {
    unit.is_over(cutoff(shared), &|first| shared.segment(*first).is_some())
}

/// Forgets keys that are old enough. The keys of what is still kept stay known, however old it is.
pub(super) fn forget_expired(shared: &Shared) -> io::Result<()> {
    let is_kept = |first: &Seq| shared.segment(*first).is_some();
    let expired = read_lock(&shared.known).expired(cutoff(shared), is_kept);
    for keys in expired {
        // Deleting a large file takes its time: not under the lock that every commit needs.
        if write_lock(&shared.known).forget(&keys) {
            keys.remove()?;
        }
    }
    shared.forget_gaps()
}

impl Keeper {
    /// Merges known keys, or saves what can be saved of damaged ones, if there is something to do.
    pub(super) fn merge_keys(&mut self) -> Result<(), SegmentError> {
        // Where it could not be done at once.
        self.end_doubts()?;
        let now = self.shared.options.now.now();
        let known = read_lock(&self.shared.known);
        let (order, dir, sets) = (known.to_merge(now), known.dir().to_owned(), known.sets());
        drop(known);
        let Some(order) = order else { return Ok(()) };
        let order = order.with_reserve(self.shared.options.reserve);
        self.shared.desk.begin("merging known keys".into());
        order.have_room(&dir)?;
        let is_urgent = order.saves() || sets > KEY_SETS_MAX;
        let staged = self.at_leisure("merge", None, is_urgent, |go_on| {
            Ok(order.stage(&dir, &mut || fault::go_on(go_on))?)
        });
        if staged.is_err() {
            known::abandon(&dir)?;
        }
        staged?;
        let Some(named) = known::publish(&dir)? else {
            return Ok(());
        };
        let merged = known::Merged::open(&named)?;
        let inputs = write_lock(&self.shared.known).merged(&order, &merged);
        let Some(inputs) = inputs else {
            // A backup is being taken: it is done again when that has ended.
            return Ok(merged.remove()?);
        };
        for input in inputs {
            if order.saves() {
                input.set_aside()
            } else {
                input.remove()
            }?;
        }
        self.end_doubts()
    }

    /// Where damage took known keys, those of kept segments are read from the events again: until that is done nothing that may be one of them is
    /// stored, and nothing else waits for it.
    fn end_doubts(&mut self) -> Result<(), SegmentError> {
        let doubted = read_lock(&self.shared.known).doubted();
        if doubted.is_empty() {
            return Ok(());
        }
        let mut segments = self.shared.all_segments();
        segments.retain(|(first, _)| doubted.iter().any(|unit| unit.names(*first)));
        for (first, segment) in segments {
            let known = read_lock(&self.shared.known);
            let is_known = known.has_table(first) || known.has_file(first);
            drop(known);
            if is_known {
                continue;
            }
            if self.shared.next_segment_after(first).is_none() {
                // It may still take events, and then a file would not have all of its keys: when the next one has begun.
                return Ok(());
            }
            self.read_again(first, &segment)?;
        }
        write_lock(&self.shared.known).end_doubts(&doubted);
        tracing::info!("the known keys of all events that are kept are whole again");
        Ok(())
    }

    /// Makes the file of the keys of a complete segment from its events.
    fn read_again(&mut self, first: Seq, segment: &Segment) -> Result<(), SegmentError> {
        self.shared.desk.begin(format!(
            "reading known keys from the events of the segment from event {first} on"
        ));
        let read = self.at_leisure("keys", Some(first), true, |go_on| {
            let mut table = Table::default();
            reread::keys_of(segment, &mut table, go_on)?;
            Ok(table)
        });
        // What was dropped meanwhile is not kept.
        if self.shared.segment(first).is_none() {
            return Ok(());
        }
        let table = read?;
        let path = read_lock(&self.shared.known).file_path(first);
        known::write_file(&path, &table)?;
        let file = KeyFile::open(&path, first)?;
        let table = write_lock(&self.shared.known).sealed(first, Some(file));
        drop(table);
        Ok(())
    }
}
