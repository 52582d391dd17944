//! What damage has taken of letters: said as long as the process runs, and counted once.
//!
//! What was counted is told by a mark, which the sink's record has. A file that is damaged stays so, and is found so at each start, until it is
//! written anew; which it is as soon as the record has the mark durably, and not before: a crash would lose what shows the damage.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::extent::Extent;
use super::{Letters, names};
use crate::framefile::{self, FrameError};
use crate::sync::lock;

/// Damage that was found where letters are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// One sentence.
    pub words: String,
    /// The same each time that this is found, and another one of any other damage. `None`: it is said, and took no letter.
    pub mark: Option<u64>,
    /// The sink's record has the mark durably: what shows the damage may go.
    pub is_noted: bool,
}

impl Damage {
    /// What is told by its words, and by the file that it is of: its number and when it was made.
    pub fn said(words: String, (ino, made): (u64, u64)) -> Damage {
        let mark = mark_of(&format!("{ino} {made} {words}"));
        Damage::marked(words, mark)
    }

    /// Ranges of bytes of a file, which goes by its number and when it was made.
    pub fn in_file(words: String, (ino, made): (u64, u64), ranges: &[framefile::Damage]) -> Damage {
        let ranges: Vec<String> = ranges
            .iter()
            .map(|range| format!("{}-{}", range.from, range.to))
            .collect();
        let mark = mark_of(&format!("{ino} {made} {}", ranges.join(" ")));
        Damage::marked(words, mark)
    }

    /// What was found by this mark.
    pub fn marked(words: String, mark: u64) -> Damage {
        Damage {
            words,
            mark: Some(mark),
            is_noted: false,
        }
    }

    /// What took no letter.
    pub fn harmless(words: String) -> Damage {
        Damage {
            words,
            mark: None,
            is_noted: false,
        }
    }

    /// Whether it may have taken letters of which the sink's record says nothing yet.
    pub fn is_news(&self) -> bool {
        self.mark.is_some() && !self.is_noted
    }
}

/// What is damaged of a file. Of what is missing at its beginning there are no bytes.
pub(super) fn told(file: &Path, ranges: &[framefile::Damage]) -> String {
    let file = file.display();
    let is_missing = |range: &&framefile::Damage| range.from == range.to;
    let missing = ranges.iter().find(is_missing);
    let missing = missing.map(|missing| format!("{file}: {missing}"));
    let bad: Vec<_> = ranges.iter().filter(|range| range.from != range.to).collect();
    let bytes: u64 = bad.iter().map(|range| range.to - range.from).sum();
    let bad = (!bad.is_empty()).then(|| format!("{bytes} bytes of {file} are damaged, in {} place(s)", bad.len()));
    let told: Vec<String> = missing.into_iter().chain(bad).collect();
    told.join("; ")
}

fn mark_of(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest[..8].iter().fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

impl Letters {
    /// What is wrong with what keeps them, one sentence; `None` where nothing is.
    pub fn trouble(&self) -> Option<String> {
        let seen = *lock(&self.shared.seen);
        let is_seen = |damage: &&Damage| self.is_covered(damage.mark, seen);
        let found = self.index(|index| {
            let damage = index.damage.as_ref().filter(|damage| !is_seen(damage));
            let damage = damage.map(|damage| damage.words.clone());
            let found: Vec<String> = damage.into_iter().chain(index.missing.clone()).collect();
            found.join("; ")
        });
        Some(found).filter(|found| !found.is_empty()).or_else(|| self.unread())
    }

    /// Whether damage with this mark is among what goes by the other one. Places of what nodes share rise: the last one goes for all before it.
    fn is_covered(&self, mark: Option<u64>, by: Option<u64>) -> bool {
        mark.is_some() && if self.is_shared() { mark <= by } else { mark == by }
    }

    /// Somebody has seen the damage that is told by this, as the sink's record says: it is said no more. What is shared with other nodes
    /// stays damaged, and each of them would find it for ever.
    pub fn damage_is_seen(&self, mark: Option<u64>) {
        *lock(&self.shared.seen) = mark;
    }

    /// Why they can't be read now, one sentence; `None` where they can.
    pub fn unread(&self) -> Option<String> {
        lock(&self.shared.unread).clone()
    }

    /// How much of the file is durable; `None` where there is none, or that is not known.
    pub fn extent(&self) -> Option<Extent> {
        self.index(|index| index.extent)
    }

    /// Whether damage has taken letters.
    pub fn is_damaged(&self) -> bool {
        self.damage_mark().is_some() || self.index(|index| index.missing.is_some())
    }

    /// By what the damage is told that was found where they are kept; `None` where there is none that took any.
    pub fn damage_mark(&self) -> Option<u64> {
        self.index(|index| index.damage.as_ref().and_then(|damage| damage.mark))
    }

    /// Whether something is missing of what was noted of the file: that was taken by damage. Blocking.
    pub fn lacks(&self, noted: Extent) -> bool {
        if self.missing(noted).is_none() {
            return false;
        }
        // Whoever writes it may have gone on since it was looked at.
        if let Err(error) = lock(&self.shared.keeper).look_again(&self.shared.index) {
            tracing::warn!(%error, "dead letters can't be looked at again");
        }
        let Some(missing) = self.missing(noted) else {
            return false;
        };
        self.index(|index| {
            if index.missing.as_ref() != Some(&missing) {
                tracing::error!(damage = missing, "dead letters are lost to damage");
                index.missing = Some(missing);
            }
        });
        true
    }

    /// What is missing, one sentence. Blocking.
    fn missing(&self, noted: Extent) -> Option<String> {
        let (extent, is_said) = self.index(|index| (index.extent, index.damage.is_some()));
        // What set it aside, or left something of it out, says so itself, unless the process ended before that was noted.
        if !is_said && !extent.is_some_and(|now| now.is_of(noted)) {
            let file = self.shared.path.display();
            match self.aside_of(noted) {
                Ok(Some(aside)) => return Some(self.words_of_aside(&aside)),
                Ok(None) => {}
                Err(error) => {
                    return Some(format!(
                        "whether {file} was damaged and set aside can't be seen: {error}"
                    ));
                }
            }
        }
        self.missing_of_file(noted)
    }

    /// Where the file is that was noted, if it was set aside.
    fn aside_of(&self, noted: Extent) -> std::io::Result<Option<PathBuf>> {
        let mut beside = names::all_beside(&self.shared.path)?.into_iter();
        Ok(beside.find(|path| Extent::of(path, 0).is_some_and(|aside| aside.is_of(noted))))
    }

    fn words_of_aside(&self, aside: &Path) -> String {
        format!(
            "{} was damaged, and is set aside as {}; the {} letter(s) that could be read are kept",
            self.shared.path.display(),
            aside.display(),
            self.index(|index| index.places.len())
        )
    }

    /// What is missing at the end of the file, or all of it.
    fn missing_of_file(&self, noted: Extent) -> Option<String> {
        let file = self.shared.path.display();
        self.index(|index| {
            if index.reader.is_none() {
                // One that was set aside says so itself.
                let is_gone = index.damage.is_none();
                return is_gone.then(|| format!("{file} is gone, with the letters that were in it"));
            }
            let lacking = index.extent.map_or(0, |now| noted.lacks(now));
            let kept = index.places.len();
            (lacking > 0).then(|| {
                format!("{lacking} bytes are missing at the end of {file}; the {kept} letter(s) before that are kept")
            })
        })
    }

    /// The sink's record has the mark of this damage durably.
    pub fn damage_is_noted(&self, mark: Option<u64>) {
        self.index(|index| {
            if let Some(damage) = &mut index.damage {
                damage.is_noted |= mark == damage.mark;
            }
        });
    }

    /// Has no damage any more: what that may have taken is noted durably, or it is refused. Blocking; `turn` is called as it gets on.
    pub fn heal(&self, turn: &dyn Fn()) -> Result<(), FrameError> {
        self.keeper()?.heal(&self.shared.index, turn)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::disk::{COMPACT_LEN, Disk};
    use super::super::tests::letter;
    use super::*;
    use crate::event::Seq;

    fn opened(dir: &Path, read_only: bool) -> Letters {
        Letters::open(dir, "a", read_only).unwrap()
    }

    fn add(letters: &Letters, seqs: std::ops::RangeInclusive<u64>) {
        letters.add(&seqs.map(letter).collect::<Vec<_>>()).unwrap();
    }

    /// A bit in the middle is another one.
    fn flip(file: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }

    #[test]
    fn the_same_damage_has_the_same_mark_until_the_file_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        add(&opened(dir.path(), false), 1..=3);
        flip(&dir.path().join("a"));
        let letters = opened(dir.path(), false);
        let mark = letters.damage_mark();
        add(&letters, 4..=4);
        drop(letters);
        let letters = opened(dir.path(), false);
        assert!(mark.is_some() && letters.damage_mark() == mark);
        letters.heal(&|| ()).unwrap_err();
        letters.damage_is_noted(mark);
        let turns = std::cell::Cell::new(0);
        letters.heal(&|| turns.set(turns.get() + 1)).unwrap();
        assert!(turns.get() >= 3, "however many there are, it is seen to get on");
        assert!(letters.trouble().is_some(), "it is said as long as the process runs");
        let again = opened(dir.path(), false);
        assert_eq!(again.trouble(), None);
        for letters in [letters, again] {
            assert_eq!((letters.is_damaged(), letters.damage_mark()), (false, None));
            assert_eq!(letters.seqs(Seq(1), 9), [1, 3, 4].map(Seq));
        }
    }

    /// Else a crash would have nobody know that there were more letters.
    #[test]
    fn a_file_that_shows_damage_is_not_made_smaller_before_that_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        add(&opened(dir.path(), false), 1..=400);
        flip(&file);
        let letters = opened(dir.path(), false);
        let len = || std::fs::metadata(&file).unwrap().len();
        letters.remove(&(1..=390).map(Seq).collect::<Vec<_>>()).unwrap();
        assert!(len() > COMPACT_LEN);
        letters.damage_is_noted(Some(0));
        letters.remove(&[Seq(391)]).unwrap();
        assert!(len() > COMPACT_LEN, "that was another damage");
        letters.damage_is_noted(letters.damage_mark());
        letters.remove(&[Seq(392)]).unwrap();
        assert!(len() < COMPACT_LEN);
        assert!(letters.trouble().is_some(), "it is said as long as the process runs");
    }

    /// Else everything that was delivered before it would be in doubt for good, although there is each letter.
    #[test]
    fn a_damaged_header_alone_is_said_and_takes_no_letter() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        add(&opened(dir.path(), false), 1..=3);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        for read_only in [true, false] {
            let letters = opened(dir.path(), read_only);
            assert!(letters.trouble().is_some(), "looked at only: {read_only}");
            assert_eq!(
                (letters.damage_mark(), letters.is_damaged(), letters.len()),
                (None, false, 3)
            );
        }
        // One letter is damaged as well.
        std::fs::write(&file, &bytes).unwrap();
        flip(&file);
        for read_only in [true, false] {
            let letters = opened(dir.path(), read_only);
            assert!(letters.damage_mark().is_some() && letters.is_damaged());
            assert_eq!(letters.len(), 2);
        }
    }

    #[test]
    fn the_next_file_that_is_damaged_in_the_same_way_has_another_mark() {
        let dir = tempfile::tempdir().unwrap();
        let mark_after = |round: u32| {
            add(&opened(dir.path(), false), 1..=3);
            std::fs::write(dir.path().join("a"), "").unwrap();
            let letters = opened(dir.path(), false);
            // Somebody has looked at it.
            let kept = dir.path().join(format!(".kept-{round}"));
            std::fs::rename(dir.path().join(".a.damaged"), kept).unwrap();
            letters.damage_mark().unwrap()
        };
        assert_ne!(mark_after(1), mark_after(2));
    }

    /// A new file with what could be read took its place, and a crash came before the sink's record had the mark.
    #[test]
    fn a_file_that_was_set_aside_before_that_was_noted_is_known_by_what_was_noted_of_it() {
        let dir = tempfile::tempdir().unwrap();
        if std::fs::metadata(dir.path()).unwrap().created().is_err() {
            return;
        }
        let file = dir.path().join("a");
        let letters = opened(dir.path(), false);
        add(&letters, 1..=3);
        let noted = letters.extent().unwrap();
        drop(letters);
        let mut bytes = std::fs::read(&file).unwrap();
        // There is something else in the place of the first letter.
        bytes[..100].fill(7);
        std::fs::write(&file, bytes).unwrap();
        let salvaged = Disk::new(file.clone(), false);
        let salvaged = Letters::kept_by(Box::new(salvaged), file);
        // Its header can't be put back.
        salvaged.fail_at(Some("medium"));
        salvaged.read().unwrap();
        assert!(
            salvaged.damage_mark().is_some() && !salvaged.lacks(noted),
            "that is said"
        );
        assert_eq!(salvaged.seqs(Seq(1), 9), [2, 3].map(Seq));
        drop(salvaged);
        for read_only in [true, false] {
            let letters = opened(dir.path(), read_only);
            assert_eq!(letters.damage_mark(), None);
            assert!(letters.lacks(noted), "looked at only: {read_only}");
            assert!(letters.trouble().unwrap().contains(".a.damaged"));
            assert!(!letters.lacks(letters.extent().unwrap()), "it is noted once");
        }
    }

    #[test]
    fn who_only_looks_sees_what_was_cut_off_and_not_what_came_since() {
        let dir = tempfile::tempdir().unwrap();
        if std::fs::metadata(dir.path()).unwrap().created().is_err() {
            return;
        }
        let letters = opened(dir.path(), false);
        add(&letters, 1..=3);
        let look = opened(dir.path(), true);
        add(&letters, 4..=4);
        let noted = letters.extent().unwrap();
        assert!(!look.lacks(noted), "it was written to meanwhile");
        assert_eq!((look.len(), look.trouble()), (4, None));
        drop(letters);
        let file = std::fs::File::options().write(true).open(dir.path().join("a")).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        let look = opened(dir.path(), true);
        assert!(look.lacks(noted));
        assert!(look.trouble().unwrap().contains("bytes are missing"));
        assert_eq!(look.seqs(Seq(1), 9), [Seq(1)]);
    }
}
