//! Known keys, as far as the keeper has to do with them: written before their journal goes, and forgotten when they are old.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::event::Seq;
use crate::log::local::known::{self, KeyFile};
use crate::log::local::shared::Shared;
use crate::sync::{read_lock, write_lock};

/// Close retries for 72 hours, its event log goes back 30 days: keys are known at least this long.
const KEYS_KEPT_MIN: SignedDuration = SignedDuration::from_hours(31 * 24);

/// Makes the keys of a complete segment durable beside its journal.
pub(super) fn write(shared: &Arc<Shared>, first: Seq) -> std::io::Result<()> {
    let known = read_lock(&shared.known);
    let (table, path) = (known.unwritten(first), known.file_path(first));
    drop(known);
    let Some(table) = table else { return Ok(()) };
    known::write_file(&path, &table.encode())?;
    let file = KeyFile::open(&path)?;
    // Dropping a large table takes its time: not under the lock that every commit needs.
    let table = write_lock(&shared.known).sealed(first, file);
    drop(table);
    Ok(())
}

/// Forgets keys that are old enough. The keys of what is still kept stay known, however old it is.
pub(super) fn forget_expired(shared: &Shared) -> std::io::Result<()> {
    let keys_kept = SignedDuration::try_from(shared.options.keys_kept).unwrap_or(SignedDuration::MAX);
    let cutoff = shared.options.now.now().checked_sub(keys_kept.max(KEYS_KEPT_MIN));
    let expired = read_lock(&shared.known).expired(cutoff.unwrap_or(Timestamp::MIN));
    for segment in expired.into_iter().filter(|first| shared.segment(*first).is_none()) {
        // Deleting a large file takes its time: not under the lock that every commit needs.
        let path = write_lock(&shared.known).forget(segment);
        path.map_or(Ok(()), std::fs::remove_file)?;
    }
    Ok(())
}
