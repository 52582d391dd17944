//! The file of one sink's letters, written anew: what still counts goes into a new file, which takes the old one's name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::damage::Damage;
use super::super::index::Index;
use super::super::keeper::Known;
use super::super::record::{
    self, FORMAT, TAG_DIVERTED, TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_GIVEN, TAG_LETTER, TAG_RELEASED, TAG_REPLAYED,
};
use super::super::{BLOCK_BYTES, Blocks, is_gone, names};
use super::{COMPACT_LEN, Disk};
use crate::deliver::seqs::Seqs;
use crate::event::{Event, Seq};
use crate::framefile::{FrameError, FrameFile, HEADER_LEN};
use crate::sync::lock;

/// Reads a frame of the file that is written anew.
pub(in crate::deliver::letters) type Read<'a> = &'a dyn Fn(u64) -> Result<(u32, Vec<u8>), FrameError>;

impl Disk {
    pub(super) fn compact(&mut self, index: &Known) -> Result<(), FrameError> {
        // What shows damage stays until the sink's record says what it may have taken.
        if lock(index).as_ref().is_some_and(|index| self.shows_news(index)) {
            return Ok(());
        }
        let len = self.file.as_ref().map_or(0, FrameFile::len);
        let needed = |index: &Index| index.live_bytes + index.notes_len();
        let live = lock(index).as_ref().map_or(0, needed);
        if len > COMPACT_LEN && len > 2 * live {
            self.rewrite(index, &|| ())
        } else {
            Ok(())
        }
    }

    /// Whether the file alone shows damage.
    fn shows_news(&self, known: &Index) -> bool {
        self.is_damaged && known.damage.as_ref().is_some_and(Damage::is_news)
    }

    /// Writes the file anew where anything is in it; whatever went is in no file any more when this returns.
    pub(super) fn write_anew(&mut self, index: &Known, turn: &dyn Fn()) -> Result<(), FrameError> {
        if self.file.as_ref().is_some_and(|file| file.len() > HEADER_LEN) {
            self.writer(index)?;
            self.rewrite(index, turn)?;
        }
        if let Some(left) = names::left_beside(&self.path)? {
            std::fs::remove_file(&left).map_err(|source| self.io(source))?;
        }
        match std::fs::remove_file(names::unnamed(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Ok(()),
        }
    }

    /// Writes a file of an older format anew. Where that fails it can still be read, and it is tried again before anything is added.
    pub(super) fn renew(&mut self, index: &Known) {
        if self.is_old
            && let Err(error) = self.rewrite(index, &|| ())
        {
            tracing::warn!(%error, "a file of dead letters of an older format can't be written anew; this is tried again");
        }
    }

    /// Writes what is left into a new file, which takes the old one's place when it is complete. Where that fails everything stays as
    /// it is; once the new file has its name, nothing goes into the old one any more. `turn` is called for each letter that is read.
    pub(super) fn rewrite(&mut self, index: &Known, turn: &dyn Fn()) -> Result<(), FrameError> {
        let Some(old) = &self.file else { return Ok(()) };
        let Some(known) = lock(index).clone() else {
            return Ok(());
        };
        let unnamed = names::unnamed(&self.path);
        let read = |offset| {
            turn();
            old.read(offset)
        };
        let built = self.build(&unnamed, &known, &read);
        let named = built.and_then(|built| {
            std::fs::rename(&unnamed, &self.path).map_err(|source| self.io(source))?;
            Ok(built)
        });
        let (file, mut fresh) = match named {
            Ok(named) => named,
            Err(error) => {
                // What is in it may be meant to be gone; the next one of its name replaces it anyway.
                let _ = std::fs::remove_file(&unnamed);
                return Err(error);
            }
        };
        self.file = Some(file);
        self.is_old = false;
        self.is_unsure = false;
        self.is_damaged = false;
        self.is_name_new = true;
        fresh.extent = self.extent();
        *lock(index) = Some(fresh);
        self.sync_name()
    }

    /// The new file, whole and synced, and what is in it.
    pub(super) fn build(
        &self,
        unnamed: &Path,
        known: &Index,
        read: Read<'_>,
    ) -> Result<(FrameFile, Index), FrameError> {
        let mut file = FrameFile::create(unnamed, FORMAT)?;
        let mut fresh = copy_live(&self.path, &mut file, known, read)?;
        file.sync()?;
        let file = file.named(&self.path);
        self.may("reader").map_err(|source| self.io(source))?;
        let reader = file.reader().map_err(|source| self.io(source))?;
        fresh.reader = Some(Arc::new(reader));
        Ok((file, fresh))
    }
}

/// Copies what still counts. What is damaged is said and left out, so that one letter never keeps the others from being written.
pub(in crate::deliver::letters) fn copy_live(
    path: &Path,
    file: &mut FrameFile,
    known: &Index,
    read: Read<'_>,
) -> Result<Index, FrameError> {
    let unreadable = |seq: Seq| {
        tracing::error!(file = %path.display(), seq = seq.0, "a dead letter is damaged and can't be read any more");
    };
    let mut fresh = Index {
        damage: known.damage.clone(),
        missing: known.missing.clone(),
        ..Index::default()
    };
    copy_ended(file, known, &mut fresh)?;
    let mut blocks = Blocks::new();
    for (seq, place) in &known.places {
        let letter = match read(place.offset) {
            Ok((tag, payload)) => record::letter_in(tag, &payload),
            Err(error) if is_gone(&error) => None,
            Err(error) => return Err(error),
        };
        let Some(letter) = letter else {
            unreadable(*seq);
            continue;
        };
        let json = serde_json::to_vec(&letter).unwrap_or_default();
        let is_given = known.given.contains_key(seq);
        let tag = if is_given { TAG_GIVEN } else { TAG_LETTER };
        let offset = file.append(tag, &[&seq.0.to_le_bytes(), &json])?;
        if is_given {
            fresh.note_given(*seq, offset, json.len() as u64 + 8, letter.died_at);
        } else {
            fresh.note_letter(*seq, offset, json.len() as u64 + 8);
        }
        if let Some(at) = place.copy {
            blocks.entry(at).or_default().push(*seq);
        }
    }
    copy_released(file, known, &mut fresh)?;
    copy_blocks(file, &mut fresh, blocks, read, &unreadable)?;
    let withheld = known.withheld.iter().filter(|(seq, _)| fresh.given.contains_key(seq));
    fresh.withheld = withheld.map(|(seq, giver)| (*seq, giver.clone())).collect();
    Ok(fresh)
}

/// What came to an end and has no letter any more.
fn copy_ended(file: &mut FrameFile, known: &Index, fresh: &mut Index) -> Result<(), FrameError> {
    type Note = fn(&mut Index, Seq, Seq);
    let kinds: [(_, _, Note); 3] = [
        (TAG_DROPPED, known.dropped_ranges(), Index::note_dropped),
        (
            TAG_DROPPED_GIVEN,
            known.dropped_given_ranges(),
            Index::note_dropped_given,
        ),
        (TAG_DIVERTED, known.diverted_ranges(), Index::note_diverted),
    ];
    for (tag, ranges, note) in kinds {
        if ranges.is_empty() {
            continue;
        }
        file.append(tag, &[&record::dropped_payload(&ranges)])?;
        for (from, to) in ranges {
            note(fresh, from, to);
        }
    }
    for (replay, seqs) in &known.replayed {
        file.append(TAG_REPLAYED, &[&record::replayed_payload(replay, seqs.ranges())])?;
    }
    fresh.replayed.clone_from(&known.replayed);
    Ok(())
}

/// Which of the given letters that were copied may go out.
fn copy_released(file: &mut FrameFile, known: &Index, fresh: &mut Index) -> Result<(), FrameError> {
    let is_there = |seq: &Seq| fresh.given.contains_key(seq);
    let mut released = Seqs::default();
    released.extend(known.released.iter().copied().filter(is_there));
    if released.is_empty() {
        return Ok(());
    }
    file.append(TAG_RELEASED, &[&record::dropped_payload(released.ranges())])?;
    for (from, to) in released.ranges() {
        fresh.note_released(*from, *to);
    }
    Ok(())
}

fn copy_blocks(
    file: &mut FrameFile,
    fresh: &mut Index,
    blocks: Blocks,
    read: Read<'_>,
    unreadable: &dyn Fn(Seq),
) -> Result<(), FrameError> {
    let mut write = |events: &mut Vec<Event>| {
        let block: Vec<&Event> = events.iter().collect();
        let (offset, len) = record::append_copies(file, &block)?;
        let seqs: Vec<Seq> = block.iter().map(|event| event.seq).collect();
        fresh.note_copies(offset, len, &seqs);
        events.clear();
        Ok::<(), FrameError>(())
    };
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (at, seqs) in blocks {
        match read(at) {
            Ok((tag, payload)) => {
                let copies = record::events_in(tag, &payload).into_iter();
                for event in copies.filter(|event| seqs.contains(&event.seq)) {
                    bytes += event.body.len();
                    events.push(event);
                }
            }
            Err(error) if is_gone(&error) => seqs.into_iter().for_each(unreadable),
            Err(error) => return Err(error),
        }
        if bytes >= BLOCK_BYTES {
            write(&mut events)?;
            bytes = 0;
        }
    }
    if events.is_empty() { Ok(()) } else { write(&mut events) }
}
