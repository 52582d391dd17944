//! How a segment's directory gives way to another one, or goes: whole, so that a crash leaves the one or the other.
//!
//! | step | `X` | `new-X` | `removed-X` or `damaged-X` | after a crash here |
//! |---|---|---|---|---|
//! | being built | whole | partly there | | `new-X` is removed |
//! | built, synced, compared | whole | whole | | `new-X` is removed |
//! | the old one has lost its name | | whole | whole | `new-X` becomes `X` |
//! | the new one has it | whole | | whole | `removed-X` is removed, `damaged-X` is set aside |
//!
//! A segment that is dropped has no `new-X`: when it has lost its name it is gone. So as long as `X` is missing for want of a name alone, which
//! is so where the new one could not take it and the old one could not take it back, `new-X` stays, and nothing is built in its place: whoever
//! comes next [gives the name back](put_back) first.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::super::journal;
use super::manifest::has;
use crate::event::Seq;
use crate::files;
use crate::framefile;
use crate::framefile::make_dir;

/// What becomes of the directory that gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log::local) enum Old {
    /// It is removed.
    Removed,
    /// It is set aside under `damaged/`.
    Damaged,
}

const NEW: &str = "new-";
const REMOVED: &str = "removed-";
const DAMAGED: &str = "damaged-";

impl Old {
    fn prefix(self) -> &'static str {
        match self {
            Old::Removed => REMOVED,
            Old::Damaged => DAMAGED,
        }
    }
}

fn named(log_dir: &Path, prefix: &str, first: Seq) -> PathBuf {
    log_dir.join(format!("{prefix}{:020}", first.0))
}

/// Which segment's directory has this name.
fn first_in(name: &str, prefix: &str) -> Option<Seq> {
    name.strip_prefix(prefix)?.parse().ok().map(Seq)
}

/// Gives a segment of the log its name back, where it has lost it to a swap that could neither be finished nor undone.
pub(in crate::log::local) fn put_back(log_dir: &Path, first: Seq) -> io::Result<()> {
    let place = journal::segment_dir(log_dir, first);
    if has(&place)? || !has(&named(log_dir, NEW, first))? {
        return Ok(());
    }
    for prefix in [REMOVED, DAMAGED] {
        let aside = named(log_dir, prefix, first);
        if has(&aside)? {
            std::fs::rename(&aside, &place)?;
            return framefile::sync_dir(log_dir);
        }
    }
    Ok(())
}

/// A fresh directory in which the segment's next form is built.
pub(in crate::log::local) fn begin(log_dir: &Path, first: Seq) -> io::Result<PathBuf> {
    put_back(log_dir, first)?;
    let staging = named(log_dir, NEW, first);
    remove_dir(&staging)?;
    make_dir(&staging)?;
    Ok(staging)
}

/// Puts the new form, which is durable, into the place of the old one. Durable only after [`finish_old`].
pub(in crate::log::local) fn swap(log_dir: &Path, first: Seq, old: Old) -> io::Result<()> {
    let (place, staging) = (journal::segment_dir(log_dir, first), named(log_dir, NEW, first));
    let aside = named(log_dir, old.prefix(), first);
    if !has(&place)? {
        return Err(io::ErrorKind::NotFound.into());
    }
    // What an earlier swap left must not take the name back in the place of this one.
    for left in [Old::Removed, Old::Damaged] {
        if has(&named(log_dir, left.prefix(), first))? {
            finish_old(log_dir, first, left)?;
        }
    }
    std::fs::rename(&place, &aside)?;
    if let Err(error) = std::fs::rename(&staging, &place) {
        std::fs::rename(&aside, &place)?;
        return Err(error);
    }
    Ok(())
}

/// Takes a segment's name from it; from then on it is not in the log any more. An error: it has its name. Durable only after
/// [`finish_old`].
pub(in crate::log::local) fn take_away(log_dir: &Path, first: Seq, old: Old) -> io::Result<()> {
    put_back(log_dir, first)?;
    // Else it would take the name again.
    remove_dir(&named(log_dir, NEW, first))?;
    let aside = named(log_dir, old.prefix(), first);
    remove_dir(&aside)?;
    std::fs::rename(journal::segment_dir(log_dir, first), aside)
}

/// Makes the swap last, and does with the old directory what is to be done; gives the place where it was set aside.
pub(in crate::log::local) fn finish_old(log_dir: &Path, first: Seq, old: Old) -> io::Result<Option<PathBuf>> {
    framefile::sync_dir(log_dir)?;
    let dir = named(log_dir, old.prefix(), first);
    match old {
        Old::Removed => remove_dir(&dir).map(|()| None),
        Old::Damaged => {
            let aside = aside(log_dir, first);
            make_dir(&aside)?;
            std::fs::rename(&dir, aside.join("segment"))?;
            framefile::sync_dir(&aside)?;
            framefile::sync_dir(log_dir)?;
            Ok(Some(aside))
        }
    }
}

/// Where what is damaged of a segment is set aside.
pub(in crate::log::local) fn aside(log_dir: &Path, first: Seq) -> PathBuf {
    let data_dir = log_dir.parent().unwrap_or(log_dir);
    let now = Timestamp::now().as_second();
    let dir = data_dir.join("damaged");
    // Twice in a second is possible, and nothing is overwritten.
    let mut aside = dir.join(format!("{:020}-{now}", first.0));
    let mut again = 1;
    while aside.join("segment").exists() {
        again += 1;
        aside = dir.join(format!("{:020}-{now}-{again}", first.0));
    }
    aside
}

/// Finishes or undoes what a crash interrupted; see the table above. With `keep_names` segments that were dropped keep the name that tells of it,
/// and nothing else: those.
pub(in crate::log::local) fn recover(log_dir: &Path, keep_names: bool) -> io::Result<Vec<Seq>> {
    let mut kept = Vec::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(log_dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    // What is new first: whether it is needed shows before the old ones are gone.
    names.sort();
    for prefix in [NEW, REMOVED, DAMAGED] {
        for name in &names {
            let Some(first) = first_in(name, prefix) else {
                continue;
            };
            match prefix {
                NEW => finish_new(log_dir, first)?,
                // It was dropped, where nothing has its place.
                REMOVED if keep_names && !has(&journal::segment_dir(log_dir, first))? => {
                    empty_dropped(log_dir, first)?;
                    kept.push(first);
                }
                REMOVED => drop(finish_old(log_dir, first, Old::Removed)?),
                _ => match finish_old(log_dir, first, Old::Damaged) {
                    Err(error) if files::is_full(&error) => {
                        tracing::warn!(%error, first = first.0, "there is no room to set a damaged segment aside; the next start does");
                    }
                    done => drop(done?),
                },
            }
        }
    }
    Ok(kept)
}

/// What is being built is needed only where the old one has lost its name.
pub(in crate::log::local) fn finish_new(log_dir: &Path, first: Seq) -> io::Result<()> {
    let (place, staging) = (journal::segment_dir(log_dir, first), named(log_dir, NEW, first));
    let mut gave_way = false;
    for prefix in [REMOVED, DAMAGED] {
        gave_way |= has(&named(log_dir, prefix, first))?;
    }
    if gave_way && !has(&place)? && has(&staging)? {
        std::fs::rename(&staging, &place)?;
        return framefile::sync_dir(log_dir);
    }
    remove_dir(&staging)
}

/// Where a segment's directory is for somebody who only looks: in the middle of a swap it has another name.
pub(in crate::log::local) fn visible(log_dir: &Path) -> io::Result<Vec<(Seq, PathBuf)>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(log_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(first) = name.parse::<u64>() {
            found.insert(Seq(first), entry.path());
        } else if let Some(first) = first_in(&name, NEW)
            && (has(&named(log_dir, REMOVED, first))? || has(&named(log_dir, DAMAGED, first))?)
        {
            found.entry(first).or_insert(entry.path());
        }
    }
    Ok(found.into_iter().collect())
}

/// Where the oldest segment begins that is there.
pub(in crate::log::local) fn oldest(log_dir: &Path) -> io::Result<Option<Seq>> {
    Ok(visible(log_dir)?.into_iter().next().map(|(first, _)| first))
}

/// The first segment that was there behind what was dropped, as far as names of that tell which are not gone yet; `None`: they tell nothing.
pub(in crate::log::local) fn behind_dropped(log_dir: &Path) -> io::Result<Option<Seq>> {
    let mut dropped = None;
    for entry in std::fs::read_dir(log_dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(first) = first_in(&name, REMOVED) else {
            continue;
        };
        // Else something has taken its place, or is about to.
        if !has(&journal::segment_dir(log_dir, first))? && !has(&named(log_dir, NEW, first))? {
            dropped = dropped.max(Some(first));
        }
    }
    let Some(dropped) = dropped else { return Ok(None) };
    let kept = visible(log_dir)?;
    Ok(kept.into_iter().map(|(first, _)| first).find(|first| *first > dropped))
}

/// Gives back what a dropped segment takes up, and leaves it its name: that tells that it was dropped.
pub(in crate::log::local) fn empty_dropped(log_dir: &Path, first: Seq) -> io::Result<()> {
    let dir = named(log_dir, REMOVED, first);
    if !has(&dir)? {
        return Ok(());
    }
    framefile::sync_dir(log_dir)?;
    for entry in std::fs::read_dir(&dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dir(&entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory and what is in it, if it is there.
pub(in crate::log::local) fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Finishes a rewrite that an older closehook began within the segment's own directory. Does nothing where there is none, or
/// where it is not finished.
pub(in crate::log::local) fn finish_old_rewrite(dir: &Path) -> io::Result<()> {
    let staging = dir.join("rewrite");
    if has(&staging)? {
        let original = dir.join(super::database::DB_NAME);
        let complete = has(&staging.join("manifest"))?;
        if complete && !has(&original)? {
            std::fs::rename(staging.join(super::database::DB_NAME), &original)?;
            framefile::sync_dir(dir)?;
        }
        if complete && !has(&staging.join(super::database::DB_NAME))? {
            for name in ["manifest.second", "manifest"] {
                if has(&staging.join(name))? {
                    std::fs::rename(staging.join(name), dir.join(name))?;
                    framefile::sync_dir(dir)?;
                }
            }
        }
        remove_dir(&staging)?;
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("copy-") {
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment directory with a word in it.
    fn put(log_dir: &Path, name: &str, word: &str) {
        make_dir(&log_dir.join(name)).unwrap();
        std::fs::write(log_dir.join(name).join("word"), word).unwrap();
    }

    fn word(log_dir: &Path) -> Option<String> {
        std::fs::read_to_string(journal::segment_dir(log_dir, Seq(7)).join("word")).ok()
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_old_form_or_the_new_one() {
        let name = |prefix: &str| format!("{prefix}{:020}", 7);
        for old in [Old::Removed, Old::Damaged] {
            for (steps, left) in [(0, "old"), (1, "new"), (2, "new")] {
                let dir = tempfile::tempdir().unwrap();
                let log_dir = dir.path().join("log");
                put(&log_dir, &name(""), "old");
                put(&log_dir, &name(NEW), "new");
                if steps > 0 {
                    std::fs::rename(log_dir.join(name("")), log_dir.join(name(old.prefix()))).unwrap();
                    let seen = visible(&log_dir).unwrap();
                    assert_eq!(seen.len(), 1, "who only looks sees it all the time");
                }
                if steps > 1 {
                    std::fs::rename(log_dir.join(name(NEW)), log_dir.join(name(""))).unwrap();
                }
                recover(&log_dir, false).unwrap();
                assert_eq!(word(&log_dir).as_deref(), Some(left), "{old:?} {steps}");
                let names: Vec<_> = std::fs::read_dir(&log_dir).unwrap().collect();
                assert_eq!(names.len(), 1, "nothing is left over");
                let set_aside = dir.path().join("damaged").exists();
                assert_eq!(set_aside, old == Old::Damaged && steps > 0, "what is damaged is kept");
            }
        }
    }

    #[test]
    fn a_segment_that_could_neither_give_way_nor_stay_is_found_again() {
        let name = |prefix: &str| format!("{prefix}{:020}", 7);
        for old in [Old::Removed, Old::Damaged] {
            let dir = tempfile::tempdir().unwrap();
            let log_dir = dir.path().join("log");
            let left = || {
                put(&log_dir, &name(old.prefix()), "old");
                put(&log_dir, &name(NEW), "new");
            };
            left();
            // Who wants to build it anew, without a start in between, has the old one to build it of.
            begin(&log_dir, Seq(7)).unwrap();
            assert_eq!(word(&log_dir).as_deref(), Some("old"));
            std::fs::remove_dir_all(&log_dir).unwrap();
            left();
            assert!(
                swap(&log_dir, Seq(7), old).is_err(),
                "the old one would go, and be the only one"
            );
            recover(&log_dir, false).unwrap();
            assert_eq!(word(&log_dir).as_deref(), Some("new"));
            std::fs::remove_dir_all(&log_dir).unwrap();
            left();
            take_away(&log_dir, Seq(7), Old::Removed).unwrap();
            recover(&log_dir, false).unwrap();
            assert_eq!(word(&log_dir), None, "what is dropped is gone all the same");
        }
    }

    #[test]
    fn what_was_dropped_tells_so_by_its_name_until_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        for first in [7, 11, 21] {
            put(&log_dir, &format!("{first:020}"), "old");
        }
        assert_eq!(behind_dropped(&log_dir).unwrap(), None);
        for (first, behind) in [(7, 11), (11, 21)] {
            take_away(&log_dir, Seq(first), Old::Removed).unwrap();
            empty_dropped(&log_dir, Seq(first)).unwrap();
            assert_eq!(behind_dropped(&log_dir).unwrap(), Some(Seq(behind)));
            let left = std::fs::read_dir(named(&log_dir, REMOVED, Seq(first))).unwrap();
            assert_eq!(left.count(), 0, "its bytes are given back");
        }
        // One that gives way to another form is not dropped.
        put(&log_dir, &format!("{NEW}{:020}", 11), "new");
        assert_eq!(behind_dropped(&log_dir).unwrap(), Some(Seq(11)), "by the other one");
        std::fs::remove_dir_all(log_dir.join(format!("{NEW}{:020}", 11))).unwrap();
        for _ in 0..2 {
            assert_eq!(recover(&log_dir, true).unwrap(), [Seq(7), Seq(11)]);
            assert_eq!(
                behind_dropped(&log_dir).unwrap(),
                Some(Seq(21)),
                "it is not written down yet"
            );
        }
        recover(&log_dir, false).unwrap();
        assert_eq!(behind_dropped(&log_dir).unwrap(), None);
    }

    #[test]
    fn what_is_dropped_is_whole_or_gone_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        put(&log_dir, &format!("{:020}", 7), "old");
        put(&log_dir, &format!("{NEW}{:020}", 7), "new");
        take_away(&log_dir, Seq(7), Old::Removed).unwrap();
        recover(&log_dir, false).unwrap();
        assert_eq!(std::fs::read_dir(&log_dir).unwrap().count(), 0);
    }
}
