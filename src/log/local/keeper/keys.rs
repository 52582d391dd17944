//! Known keys, as far as the keeper has to do with them: written before their journal goes, merged, and forgotten when they are old.

use std::io;

use jiff::{SignedDuration, Timestamp};

use super::Keeper;
use crate::event::Seq;
use crate::log::local::fault::{self, SegmentError};
use crate::log::local::known::{self, KeyFile, Unit};
use crate::log::local::shared::Shared;
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
            Ok(order.stage(&dir, &mut || fault::go_on(go_on).map_err(io::Error::other))?)
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
        Ok(())
    }
}
