//! Dead letters: deliveries that were given up.
//!
//! A letter is a reference: it says which event, why and when, and the event is read from the log. Only when the log is about to drop
//! the event is it copied, many in one compressed block with one sync ([`Letters::keep_copies`]). So dead letters pin nothing in the log
//! and cost little while it has them.
//!
//! One file of frames per sink, `dead/<sink>`. Adding returns when the letters are durable, and only then may the sink's mark pass
//! their events (invariant I4). What is kept is bounded by the sink's `dead_max`: the oldest go, and that they did is remembered. In
//! memory a letter costs its Seq and its places in the file.
//!
//! | file | what it does |
//! |---|---|
//! | `record` | what a letter and a copy of an event are as bytes |
//! | `index` | which letters there are, and where in the file; memory only |
//! | `given` | letters that go from one sink to another |
//! | `disk` | the file: read, written, written anew |
//! | `dir` | the directory of all sinks' files |
//!
//! What is asked of the index waits for no disk: it has a lock of its own, which is never held over I/O, and a letter is read without
//! any. Until the file was read ([`Letters::read`]) nobody knows what is in it; then errors are errors, and never "there is none".

mod dir;
mod disk;
mod given;
mod index;
mod record;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::DeadLetter;
use super::seqs::Seqs;
use crate::event::{Event, Seq};
use crate::framefile::{self, FrameError};
use crate::sync::lock;
pub use dir::is_dead_letters;
pub(super) use dir::{asides, event_of, files, listed, open_all};
use disk::Disk;
pub(super) use given::undone;
use index::Index;
use record::{TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_LETTER, TAG_REMOVE};

/// Bytes of bodies in one block, roughly.
const BLOCK_BYTES: usize = 256 << 10;

/// The dead letters of one sink. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Letters {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// `None` until the file was read. Never held over I/O.
    index: Mutex<Option<Index>>,
    /// Why the file could not be read, the last time that was tried.
    unread: Mutex<Option<String>>,
    /// Letters came from another sink.
    arrived: Notify,
    /// Held while another sink gives letters and lets go of them: one does at a time.
    taking: Mutex<()>,
    /// Bytes that the letters may take up.
    max: AtomicU64,
    /// Held while the file is read, written, synced or written anew; taken before the index, and only its holder changes that.
    disk: Mutex<Disk>,
}

/// Whether what was to be read is gone for good, so that asking again is of no use.
pub(super) fn is_gone(error: &FrameError) -> bool {
    match error {
        FrameError::Damaged { .. } => true,
        FrameError::Io { source, .. } => framefile::is_bad_medium(source),
        FrameError::Alien(_) | FrameError::Newer { .. } | FrameError::Poisoned(_) => false,
    }
}

impl Letters {
    /// A sink's letters, not read yet; with `read_only` nothing is written, not even to cut off a torn tail.
    pub fn new(dir: &Path, sink: &str, read_only: bool) -> Letters {
        // Sink names are letters, digits, '-', '_' and '.', and do not begin with a dot.
        let path = dir.join(sink);
        Letters {
            shared: Arc::new(Shared {
                index: Mutex::new(None),
                unread: Mutex::new(None),
                arrived: Notify::new(),
                taking: Mutex::new(()),
                max: AtomicU64::new(u64::MAX),
                disk: Mutex::new(Disk::new(path.clone(), read_only)),
                path,
            }),
        }
    }

    /// The same, read. Blocking.
    #[cfg(test)]
    pub fn open(dir: &Path, sink: &str, read_only: bool) -> Result<Letters, FrameError> {
        let letters = Letters::new(dir, sink, read_only);
        letters.read()?;
        Ok(letters)
    }

    /// Nobody can read or write the file while this is held.
    #[cfg(test)]
    pub fn hold(&self) -> impl Drop + '_ {
        lock(&self.shared.disk)
    }

    /// The disk fails at this step from now on, or at none.
    #[cfg(test)]
    pub fn fail_at(&self, step: Option<&'static str>) {
        lock(&self.shared.disk).fails_at = step;
    }

    /// Reads the file, unless that was done before. Where it can't be read it may be later. Blocking.
    pub fn read(&self) -> Result<(), FrameError> {
        self.disk().map(drop)
    }

    /// Adds letters durably (replacing those with the same Seq; a copy of the event stays). Blocking.
    pub fn add(&self, letters: &[DeadLetter]) -> Result<(), FrameError> {
        let mut disk = self.disk()?;
        let added = self.append_all(&mut disk, TAG_LETTER, letters.iter())?;
        self.index(|index| {
            for (seq, offset, len) in added {
                index.note_letter(seq, offset, len);
            }
        });
        Ok(())
    }

    /// Appends letters with one sync; where they are and how long. Where not all of them could be, none is in the file when something is
    /// written next.
    fn append_all<'l>(
        &self,
        disk: &mut Disk,
        tag: u32,
        letters: impl Iterator<Item = &'l DeadLetter>,
    ) -> Result<Vec<(Seq, u64, u64)>, FrameError> {
        disk.writer(&self.shared.index)?;
        let mut added = Vec::new();
        let append = |disk: &mut Disk| {
            for letter in letters {
                let json = serde_json::to_vec(letter).unwrap_or_default();
                let file = disk.writer(&self.shared.index)?;
                let offset = file.append(tag, &[&letter.seq.0.to_le_bytes(), &json])?;
                added.push((letter.seq, offset, json.len() as u64 + 8));
            }
            disk.may("add").map_err(|source| disk.io(source))?;
            disk.writer(&self.shared.index)?.sync()
        };
        let appended = append(disk);
        disk.is_unsure |= appended.is_err() && !added.is_empty();
        appended.map(|()| added)
    }

    /// Has nothing in the file but what is known of it. Blocking.
    pub fn mend(&self) -> Result<(), FrameError> {
        let mut disk = lock(&self.shared.disk);
        if disk.is_doubtful() {
            disk.writer(&self.shared.index)?;
        }
        Ok(())
    }

    /// Adds letters as [`Letters::add`] does, and drops the oldest beyond so many bytes; gives how many these were. The new ones are
    /// no less durable where that can't be done now: it is tried again with the next ones.
    pub fn add_within(&self, letters: &[DeadLetter], max_bytes: u64) -> Result<u64, FrameError> {
        self.add(letters)?;
        Ok(self.keep_within(max_bytes))
    }

    fn keep_within(&self, max_bytes: u64) -> u64 {
        let dropped = self.drop_for_good(&self.beyond(max_bytes));
        dropped.unwrap_or_else(|error| {
            tracing::warn!(%error, "the oldest dead letters, beyond what the sink may have, can't be dropped; this is tried again");
            0
        })
    }

    /// Removes letters whose events were delivered (or erased) durably, with one sync; gives how many there were. Blocking.
    pub fn remove(&self, seqs: &[Seq]) -> Result<u64, FrameError> {
        let removed = |present: &[Seq]| {
            let bytes = present.iter().flat_map(|seq| seq.0.to_le_bytes()).collect();
            vec![(TAG_REMOVE, bytes)]
        };
        self.let_go(seqs, removed, |index, present| {
            for seq in present {
                index.note_removed(*seq);
            }
        })
    }

    /// Removes letters whose events will never be delivered, and remembers that. Durable, with one sync; gives how many there were.
    /// Blocking.
    pub fn drop_for_good(&self, seqs: &[Seq]) -> Result<u64, FrameError> {
        let frames = |present: &[Seq]| {
            let (given, own): (Vec<Seq>, Vec<Seq>) = present.iter().partition(|seq| self.is_given(**seq));
            let parts = [(TAG_DROPPED, own), (TAG_DROPPED_GIVEN, given)].into_iter();
            let frame = |(tag, seqs): (u32, Vec<Seq>)| {
                let mut dropped = Seqs::default();
                dropped.extend(seqs);
                (tag, record::dropped_payload(dropped.ranges()))
            };
            parts.filter(|(_, seqs)| !seqs.is_empty()).map(frame).collect()
        };
        self.let_go(seqs, frames, |index, present| {
            for seq in present {
                if index.has_own(*seq) {
                    index.note_dropped(*seq, *seq);
                } else {
                    index.note_dropped_given(*seq, *seq);
                }
            }
        })
    }

    fn let_go(
        &self,
        seqs: &[Seq],
        frames: impl FnOnce(&[Seq]) -> Vec<(u32, Vec<u8>)>,
        note: impl FnOnce(&mut Index, &[Seq]),
    ) -> Result<u64, FrameError> {
        let mut disk = self.disk()?;
        let present: Vec<Seq> = self.index(|index| seqs.iter().copied().filter(|seq| index.has(*seq)).collect());
        if present.is_empty() {
            return Ok(0);
        }
        let frames = frames(&present);
        disk.may("remove").map_err(|source| disk.io(source))?;
        let file = disk.writer(&self.shared.index)?;
        for (tag, bytes) in frames {
            file.append(tag, &[&bytes])?;
        }
        file.sync()?;
        let gone = self.index(|index| {
            let before = index.places.len();
            note(index, &present);
            before - index.places.len()
        });
        // They are gone, whether or not their space can be given back now.
        if let Err(error) = disk.compact(&self.shared.index) {
            tracing::warn!(%error, "a file of dead letters could not be made smaller; this is tried again");
        }
        Ok(gone as u64)
    }

    /// Writes the file anew, so that nothing is in it of letters and copies that went. An error: some of that may still be there.
    /// Blocking.
    pub fn scrub(&self) -> Result<(), FrameError> {
        self.disk()?.scrub(&self.shared.index)
    }

    /// The oldest letters that have to go so that the rest is at most so large.
    pub fn beyond(&self, max_bytes: u64) -> Vec<Seq> {
        self.index(|index| index.beyond(max_bytes))
    }

    /// Bytes of the letters and copies that there are.
    pub fn live_bytes(&self) -> u64 {
        self.index(|index| index.live_bytes)
    }

    /// How many there are, without those that are to be delivered for another sink.
    pub fn len(&self) -> usize {
        self.index(|index| index.places.len() - index.given.len())
    }

    /// Whether there is a dead letter of this sink for the event.
    pub fn has(&self, seq: Seq) -> bool {
        self.index(|index| index.has_own(seq))
    }

    /// Whether the event is dead: there is a letter for it, or there was one that was dropped, or another sink has it.
    pub fn is_dead(&self, seq: Seq) -> bool {
        self.index(|index| index.has_own(seq) || index.dropped.has(seq) || index.diverted.has(seq))
    }

    /// Whether the letter of the event was dropped, and that is all that is known of it.
    pub fn was_dropped(&self, seq: Seq) -> bool {
        self.index(|index| index.dropped.has(seq))
    }

    /// Whether another sink gave the event up to this one, and that was dropped before it was delivered.
    pub fn was_given_and_dropped(&self, seq: Seq) -> bool {
        self.index(|index| index.dropped_given.has(seq))
    }

    /// Up to here it was forgotten of which events that is so.
    pub fn dropped_given_forgotten_upto(&self) -> Seq {
        self.index(|index| index.dropped_given_forgotten)
    }

    /// Up to here it was forgotten which letters were dropped.
    pub fn forgotten_upto(&self) -> Seq {
        self.index(|index| index.forgotten)
    }

    /// What is wrong with the file, one sentence; `None` where nothing is.
    pub fn trouble(&self) -> Option<String> {
        let damage = self.index(|index| index.damage.clone());
        damage.or_else(|| lock(&self.shared.unread).clone())
    }

    /// The Seqs from `from` on, at most `max`; without those that are to be delivered for another sink.
    pub fn seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| {
            let seqs = index.places.range(from..).map(|(seq, _)| *seq);
            seqs.filter(|seq| !index.given.contains_key(seq)).take(max).collect()
        })
    }

    /// The same with these.
    pub fn all_seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| index.places.range(from..).map(|(seq, _)| *seq).take(max).collect())
    }

    /// The Seqs before `before` of which there is no copy, at most `max`.
    pub fn without_copy(&self, from: Seq, before: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| {
            let bare = index
                .places
                .range(from.min(before)..before)
                .filter(|(_, place)| place.copy.is_none());
            bare.map(|(seq, _)| *seq).take(max).collect()
        })
    }

    /// One letter; `None` where there is none. Blocking.
    pub fn get(&self, seq: Seq) -> Result<Option<DeadLetter>, FrameError> {
        let found = self.found(|index| index.places.get(&seq).map(|place| place.offset))?;
        let Some((tag, payload)) = found else { return Ok(None) };
        Ok(record::letter_in(tag, &payload))
    }

    /// The copy of a letter's event; `None` where there is none. Blocking.
    pub fn copy(&self, seq: Seq) -> Result<Option<Arc<Event>>, FrameError> {
        let found = self.found(|index| index.places.get(&seq).and_then(|place| place.copy))?;
        let Some((tag, payload)) = found else { return Ok(None) };
        let mut events = record::events_in(tag, &payload).into_iter();
        Ok(events.find(|event| event.seq == seq).map(Arc::new))
    }

    /// Keeps copies of events durably, with one sync; of those that are no letters nothing is kept. Blocking.
    pub fn keep_copies(&self, events: &[Arc<Event>]) -> Result<(), FrameError> {
        let mut disk = self.disk()?;
        let wanted: Vec<&Event> = self.index(|index| {
            events
                .iter()
                .map(Arc::as_ref)
                .filter(|event| index.has(event.seq))
                .collect()
        });
        let mut kept = Vec::new();
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |event: &&&Event| {
                let fits = bytes < BLOCK_BYTES;
                bytes += event.body.len();
                fits
            };
            let count = rest.iter().take_while(fits).count();
            let (block, after) = rest.split_at(count);
            rest = after;
            let (offset, len) = record::append_copies(disk.writer(&self.shared.index)?, block)?;
            kept.push((offset, len, block.iter().map(|event| event.seq).collect::<Vec<_>>()));
        }
        if kept.is_empty() {
            return Ok(());
        }
        disk.writer(&self.shared.index)?.sync()?;
        self.index(|index| {
            for (offset, len, seqs) in kept {
                index.note_copies(offset, len, &seqs);
            }
        });
        Ok(())
    }

    /// The file, once it was read.
    fn disk(&self) -> Result<MutexGuard<'_, Disk>, FrameError> {
        let mut disk = lock(&self.shared.disk);
        if lock(&self.shared.index).is_none() {
            let read = disk.read();
            *lock(&self.shared.unread) = read.as_ref().err().map(|error| format!("they can't be read: {error}"));
            *lock(&self.shared.index) = Some(read?);
            disk.renew(&self.shared.index);
        }
        Ok(disk)
    }

    /// Asks or changes the index. While the file was not read there is nothing in it, and nobody's change to it is believed.
    fn index<T>(&self, ask: impl FnOnce(&mut Index) -> T) -> T {
        match &mut *lock(&self.shared.index) {
            Some(index) => ask(index),
            None => ask(&mut Index::default()),
        }
    }

    /// The frame that the index names. It is read without any lock: what is written anew meanwhile leaves the old file as it was.
    fn found(&self, place: impl FnOnce(&Index) -> Option<u64>) -> Result<Option<(u32, Vec<u8>)>, FrameError> {
        let (offset, reader) = {
            let index = lock(&self.shared.index);
            let unread = || FrameError::Io {
                path: self.shared.path.clone(),
                source: std::io::Error::other("the dead letters were not read yet"),
            };
            let index = index.as_ref().ok_or_else(unread)?;
            let Some(offset) = place(index) else { return Ok(None) };
            (offset, index.reader.clone().ok_or_else(unread)?)
        };
        reader.read(offset).map(Some)
    }
}

/// Where copies are, and of which letters.
type Blocks = BTreeMap<u64, Vec<Seq>>;
