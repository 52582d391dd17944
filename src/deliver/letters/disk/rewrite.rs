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
use crate::framefile::{self, FrameError, FrameFile, HEADER_LEN};
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
            self.rewrite(index, Unnoted::Stays, &|| ())
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
            self.rewrite(index, Unnoted::Goes, turn)?;
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
        let shows_news = lock(index).as_ref().is_some_and(|index| self.shows_news(index));
        if self.is_old
            && !shows_news
            && let Err(error) = self.rewrite(index, Unnoted::Stays, &|| ())
        {
            tracing::warn!(%error, "a file of dead letters of an older format can't be written anew; this is tried again");
        }
    }

    /// Writes what is left into a new file, which takes the old one's place when it is complete. Where that fails everything stays as
    /// it is; once the new file has its name, nothing goes into the old one any more. `turn` is called for each letter that is read.
    pub(super) fn rewrite(&mut self, index: &Known, unnoted: Unnoted, turn: &dyn Fn()) -> Result<(), FrameError> {
        let Some(old) = &self.file else { return Ok(()) };
        let Some(known) = lock(index).clone() else {
            return Ok(());
        };
        if unnoted == Unnoted::Stays && self.shows_news(&known) {
            return Err(self.unnoted());
        }
        let unnamed = names::unnamed(&self.path);
        let read = |offset| {
            turn();
            old.read(offset)
        };
        let built = self.build(&unnamed, &known, &read);
        let named = built.and_then(|(file, mut fresh, gone)| {
            let found = self.newly_damaged(&known, &fresh, &gone);
            if let (Some(found), Unnoted::Stays) = (&found, unnoted) {
                return Ok(Err(found.clone()));
            }
            fresh.damage = found.or(fresh.damage);
            std::fs::rename(&unnamed, &self.path).map_err(|source| self.io(source))?;
            Ok(Ok((file, fresh)))
        });
        if !matches!(named, Ok(Ok(_))) {
            // What is in it may be meant to be gone; the next one of its name replaces it anyway.
            let _ = std::fs::remove_file(&unnamed);
        }
        let (file, mut fresh) = match named? {
            Ok(named) => named,
            Err(found) => {
                self.is_damaged = true;
                if let Some(index) = &mut *lock(index) {
                    index.damage = Some(found);
                }
                return Err(self.unnoted());
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

    /// What was found to be damaged only now that it was read, at these places, as the next start would find it; `None` where that is nothing,
    /// or the sink's record says so already.
    pub(super) fn newly_damaged(&self, known: &Index, fresh: &Index, gone: &[u64]) -> Option<Damage> {
        if gone.is_empty() {
            return None;
        }
        let scan = framefile::scan(&self.path, FORMAT, |_| ());
        let mut ranges = scan.map(|scan| scan.damage).unwrap_or_default();
        let is_within = |at: u64| move |range: &framefile::Damage| (range.from..range.to).contains(&at);
        let others = gone.iter().filter(|at| !ranges.iter().any(is_within(**at)));
        let others: Vec<_> = others.map(|at| framefile::Damage { from: *at, to: *at }).collect();
        ranges.extend(others);
        let words = format!(
            "{} record(s) of {} are damaged; the {} letter(s) that can be read are kept",
            gone.len(),
            self.path.display(),
            fresh.places.len()
        );
        let found = Damage::in_file(words, self.identity(), &ranges);
        let is_noted = |known: &Damage| known.is_noted && known.mark == found.mark;
        let is_told = known.damage.as_ref().is_some_and(is_noted);
        (!is_told).then_some(found)
    }

    fn unnoted(&self) -> FrameError {
        let why = "some of it is damaged, and stays until the sink's record says so";
        self.io(io::Error::other(why))
    }

    /// The new file, whole and synced, what is in it, and where the old one had what can't be read any more.
    pub(super) fn build(
        &self,
        unnamed: &Path,
        known: &Index,
        read: Read<'_>,
    ) -> Result<(FrameFile, Index, Vec<u64>), FrameError> {
        let mut file = FrameFile::create(unnamed, FORMAT)?;
        let (mut fresh, gone) = copy_live(&self.path, &mut file, known, read)?;
        file.sync()?;
        let file = file.named(&self.path);
        self.may("reader").map_err(|source| self.io(source))?;
        let reader = file.reader().map_err(|source| self.io(source))?;
        fresh.reader = Some(Arc::new(reader));
        Ok((file, fresh, gone))
    }
}

/// What becomes of a file that shows damage of which the sink's record says nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unnoted {
    /// Nothing takes its place: a crash would have nobody know.
    Stays,
    /// It goes with what was erased. As long as the process runs the damage is known.
    Goes,
}

/// Copies what still counts. What is damaged is said and left out, so that one letter never keeps the others from being written; where that
/// was is given.
pub(in crate::deliver::letters) fn copy_live(
    path: &Path,
    file: &mut FrameFile,
    known: &Index,
    read: Read<'_>,
) -> Result<(Index, Vec<u64>), FrameError> {
    let unreadable = |seq: Seq| {
        tracing::error!(file = %path.display(), seq = seq.0, "a dead letter is damaged and can't be read any more");
    };
    let mut gone = Vec::new();
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
            gone.push(place.offset);
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
    gone.extend(copy_blocks(file, &mut fresh, blocks, read, &unreadable)?);
    let withheld = known.withheld.iter().filter(|(seq, _)| fresh.given.contains_key(seq));
    fresh.withheld = withheld.map(|(seq, giver)| (*seq, giver.clone())).collect();
    Ok((fresh, gone))
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

/// Gives where blocks were that can't be read any more.
fn copy_blocks(
    file: &mut FrameFile,
    fresh: &mut Index,
    blocks: Blocks,
    read: Read<'_>,
    unreadable: &dyn Fn(Seq),
) -> Result<Vec<u64>, FrameError> {
    let mut gone = Vec::new();
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
            Err(error) if is_gone(&error) => {
                seqs.into_iter().for_each(unreadable);
                gone.push(at);
            }
            Err(error) => return Err(error),
        }
        if bytes >= BLOCK_BYTES {
            write(&mut events)?;
            bytes = 0;
        }
    }
    if !events.is_empty() {
        write(&mut events)?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::Letters;
    use super::super::super::tests::letter;
    use super::*;
    use crate::framefile::Format;

    fn opened(dir: &Path) -> Letters {
        Letters::open(dir, "a", false).unwrap()
    }

    fn filled(dir: &Path, upto: u64) -> Letters {
        let letters = opened(dir);
        letters.add(&(1..=upto).map(letter).collect::<Vec<_>>()).unwrap();
        letters
    }

    fn seqs(letters: &Letters) -> Vec<Seq> {
        letters.seqs(Seq(1), 99)
    }

    fn is_news(letters: &Letters) -> bool {
        letters.index(|index| index.damage.as_ref().is_some_and(Damage::is_news))
    }

    /// A bit so far from the end is another one.
    fn flip(file: &Path, from_end: usize) {
        let mut bytes = std::fs::read(file).unwrap();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }

    #[test]
    fn what_is_found_damaged_as_a_file_is_made_smaller_stays_in_it_until_that_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let letters = filled(dir.path(), 400);
        flip(&file, 3000);
        let len = || std::fs::metadata(&file).unwrap().len();
        letters.remove(&(1..=390).map(Seq).collect::<Vec<_>>()).unwrap();
        assert!(len() > COMPACT_LEN && is_news(&letters));
        assert!(letters.is_damaged() && letters.trouble().is_some());
        letters.remove(&[Seq(391)]).unwrap();
        assert!(len() > COMPACT_LEN);
        let mark = letters.damage_mark();
        let start = Letters::open(dir.path(), "a", true).unwrap();
        assert_eq!(start.damage_mark(), mark, "the next start finds the same");
        letters.damage_is_noted(mark);
        letters.remove(&[Seq(392)]).unwrap();
        assert!(len() < COMPACT_LEN);
        assert_eq!(letters.damage_mark(), mark, "it is noted once");
        assert_eq!(seqs(&letters), (393..=399).map(Seq).collect::<Vec<_>>());
    }

    /// With three letters, of which the second is damaged.
    fn make_old(path: &Path) {
        let old = Format { version: 2, ..FORMAT };
        let mut file = FrameFile::create(path, old).unwrap();
        for seq in 1..=3_u64 {
            let json = serde_json::to_vec(&letter(seq)).unwrap();
            file.append(TAG_LETTER, &[&seq.to_le_bytes(), &json]).unwrap();
        }
        file.sync().unwrap();
        drop(file);
        flip(path, 8000);
    }

    #[test]
    fn a_damaged_file_of_an_older_format_stays_as_it_is_until_that_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        make_old(&path);
        let letters = opened(dir.path());
        letters.add(&[letter(4)]).unwrap_err();
        assert_eq!(record::version_of(&path).unwrap(), 2);
        letters.damage_is_noted(letters.damage_mark());
        letters.add(&[letter(4)]).unwrap();
        assert_eq!(record::version_of(&path).unwrap(), FORMAT.version);
        assert_eq!(seqs(&letters), [1, 3, 4].map(Seq));
    }

    #[test]
    fn a_damaged_file_of_an_older_format_does_not_keep_what_is_erased() {
        let dir = tempfile::tempdir().unwrap();
        make_old(&dir.path().join("a"));
        let letters = opened(dir.path());
        letters.remove(&[Seq(1)]).unwrap_err();
        assert_eq!(letters.erase(&[Seq(1)], &|| ()).unwrap(), 1);
        assert!(is_news(&letters) && seqs(&letters) == [Seq(3)]);
    }

    #[test]
    fn what_is_found_damaged_as_something_is_erased_is_still_to_be_noted() {
        let dir = tempfile::tempdir().unwrap();
        let letters = filled(dir.path(), 3);
        flip(&dir.path().join("a"), 3000);
        letters.scrub(&|| ()).unwrap();
        assert_eq!(seqs(&letters), [1, 2].map(Seq));
        assert!(is_news(&letters) && letters.trouble().is_some());
        assert_eq!(
            opened(dir.path()).damage_mark(),
            None,
            "the file shows nothing any more"
        );
    }

    #[test]
    fn a_damaged_file_in_which_more_was_damaged_since_is_not_healed_before_that_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        drop(filled(dir.path(), 3));
        flip(&file, 8000);
        let letters = opened(dir.path());
        let first = letters.damage_mark();
        letters.damage_is_noted(first);
        flip(&file, 3000);
        letters.heal(&|| ()).unwrap_err();
        let second = letters.damage_mark();
        assert!(second.is_some() && second != first && is_news(&letters));
        letters.damage_is_noted(second);
        letters.heal(&|| ()).unwrap();
        for letters in [letters, opened(dir.path())] {
            assert_eq!((letters.damage_mark(), seqs(&letters)), (None, vec![Seq(1)]));
        }
    }
}
