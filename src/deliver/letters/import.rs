//! Letters that an older closehook kept on this machine although several nodes share the log: they go to where all nodes know them.
//!
//! Some at a time: they are durable there before they go here. What ends it in between is made good by the next start. The file goes when
//! it is empty.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::{Desk, Letters, is_gone, listed, names};
use crate::deliver::DeadLetter;
use crate::event::{Event, Seq};
use crate::framefile::FrameError;

/// Letters that go together, and bytes of the events that go with them.
const TOGETHER: usize = 256;
const BYTES: usize = 1 << 20;

/// What became of the letters of a file.
#[derive(Debug, Default)]
struct Moved {
    count: u64,
    /// They stay where they are.
    unreadable: usize,
}

/// Whether nothing is left to be taken over. Blocking.
pub(in crate::deliver) fn is_imported(dir: &Path) -> std::io::Result<bool> {
    Ok(listed(dir)?.is_empty())
}

/// Takes over all that is there; gives how many letters these were. Blocking.
pub(in crate::deliver) fn import(dir: &Path, desk: &Arc<Desk>) -> Result<u64, String> {
    let mut count = 0;
    for (sink, path) in listed(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let (own, all) = (Letters::new(dir, &sink, false), Letters::shared(desk, &sink, false));
        let read = own.read().and_then(|()| all.read());
        // No record is of this file, and it is set aside in the end.
        own.damage_is_noted(own.damage_mark());
        let moved = read.and_then(|()| move_all(&own, &all));
        let moved = moved.map_err(|error| format!("dead letters of sink \"{sink}\": {error}"))?;
        count += moved.count;
        // What was damaged stays where a person finds it.
        if own.trouble().is_some() || moved.unreadable > 0 {
            let aside = names::free_aside(&path);
            std::fs::rename(&path, &aside).map_err(|error| format!("{}: {error}", path.display()))?;
            tracing::error!(
                sink,
                unreadable = moved.unreadable,
                "dead letters of before can't be read: what is left of them is in {}",
                aside.display()
            );
        } else {
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(count)
}

fn move_all(own: &Letters, all: &Letters) -> Result<Moved, FrameError> {
    all.take_notes(own)?;
    let mut moved = Moved::default();
    let mut from = Seq::ZERO;
    loop {
        let mut seqs = own.all_seqs(from, TOGETHER);
        if seqs.is_empty() {
            return Ok(moved);
        }
        let (mut letters, mut given, mut copies, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let (mut taken, mut unreadable) = (0, BTreeSet::new());
        for seq in &seqs {
            let letter: Option<DeadLetter> = match own.get(*seq) {
                Err(error) if !is_gone(&error) => return Err(error),
                got => got.ok().flatten(),
            };
            let copy: Option<Arc<Event>> = match own.copy(*seq) {
                Err(error) if !is_gone(&error) => return Err(error),
                got => got.ok().flatten(),
            };
            if letter.is_none() {
                unreadable.insert(*seq);
            }
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
        from = seqs.last().map_or(from, |last| last.next());
        seqs.retain(|seq| !unreadable.contains(seq));
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
        moved.count += own.remove(&seqs)?;
        moved.unreadable += unreadable.len();
    }
}
