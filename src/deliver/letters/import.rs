//! Letters that an older closehook kept on this machine although several nodes share the log: they go to where all nodes know them.
//!
//! Some at a time: they are durable there before they go here. What ends it in between is made good by the next start. The file goes when
//! it is empty.

use std::path::Path;
use std::sync::Arc;

use super::{Desk, Letters, is_gone, listed, names};
use crate::deliver::DeadLetter;
use crate::event::{Event, Seq};
use crate::framefile::FrameError;

/// Letters that go together, and bytes of the events that go with them.
const TOGETHER: usize = 256;
const BYTES: usize = 1 << 20;

/// Whether nothing is left to be taken over. Blocking.
pub(in crate::deliver) fn is_imported(dir: &Path) -> std::io::Result<bool> {
    Ok(listed(dir)?.is_empty())
}

/// Takes over all that is there; gives how many letters these were. Blocking.
pub(in crate::deliver) fn import(dir: &Path, desk: &Arc<Desk>) -> Result<u64, String> {
    let mut count = 0;
    for (sink, path) in listed(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let (own, all) = (Letters::new(dir, &sink, false), Letters::shared(desk, &sink, false));
        let moved = own.read().and_then(|()| all.read()).and_then(|()| move_all(&own, &all));
        count += moved.map_err(|error| format!("dead letters of sink \"{sink}\": {error}"))?;
        // What was damaged stays where a person finds it.
        if own.trouble().is_some() {
            let aside = names::free_aside(&path);
            std::fs::rename(&path, aside).map_err(|error| format!("{}: {error}", path.display()))?;
        } else {
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(count)
}

fn move_all(own: &Letters, all: &Letters) -> Result<u64, FrameError> {
    all.take_notes(own)?;
    let mut count = 0;
    loop {
        let mut seqs = own.all_seqs(Seq::ZERO, TOGETHER);
        if seqs.is_empty() {
            return Ok(count);
        }
        let (mut letters, mut given, mut copies, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut taken = 0;
        for seq in &seqs {
            let letter: Option<DeadLetter> = match own.get(*seq) {
                Err(error) if !is_gone(&error) => return Err(error),
                got => got.ok().flatten(),
            };
            let copy: Option<Arc<Event>> = match own.copy(*seq) {
                Err(error) if !is_gone(&error) => return Err(error),
                got => got.ok().flatten(),
            };
            bytes += copy.as_ref().map_or(0, |copy| copy.body.len());
            copies.extend(copy);
            let place = if own.is_given(*seq) { &mut given } else { &mut letters };
            place.extend(letter);
            taken += 1;
            if bytes >= BYTES {
                break;
            }
        }
        seqs.truncate(taken);
        // What another node knows of the event by now is newer.
        letters.retain(|letter| !all.has(letter.seq));
        all.add(&letters)?;
        all.give(&given, 0)?;
        all.keep_copies(&copies)?;
        let released = given
            .iter()
            .map(|letter| letter.seq)
            .filter(|seq| own.is_released(*seq));
        all.release(&released.collect::<Vec<_>>());
        count += own.remove(&seqs)?;
    }
}
