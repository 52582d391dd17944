//! What files of dead letters are called, and what stands beside them.
//!
//! A sink may be called `a.new` or `a.damaged`, but none begins with a dot: so does what stands beside a file. An older closehook called
//! that `a.new`, `a.tmp`, `a.damaged` and `a.1.damaged`. Which of these is a sink's file and which was left or set aside, what is in it tells:
//! a letter names its sink.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::is_gone;
use super::record::{self, FORMAT};
use crate::framefile::{self, FrameError, HEADER_LEN};

const NEW: &str = ".new";
const DAMAGED: &str = ".damaged";

/// What an older closehook made a file under, with no more than a header in it.
const TEMPORARY: &str = ".tmp";

/// A path beside a file of letters that is that of no sink.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(end);
    path.with_file_name(name)
}

/// Where a file is made that is to take the name of this one.
pub(super) fn unnamed(path: &Path) -> PathBuf {
    beside(path, NEW)
}

/// Where this file is set aside: what was set aside before stays.
pub(super) fn free_aside(path: &Path) -> PathBuf {
    let mut aside = beside(path, DAMAGED);
    let mut number = 0;
    while aside.symlink_metadata().is_ok() {
        number += 1;
        aside = beside(path, &format!("{DAMAGED}~{number}"));
    }
    aside
}

/// Whether a file in the directory is one of a sink's letters; an error is none of what it is.
pub(super) fn is_of_sink(path: &Path, name: &str) -> io::Result<bool> {
    if name.starts_with('.') {
        return Ok(false);
    }
    let is = if name.ends_with(DAMAGED) {
        // Only where it can't be told for a file of letters, a file was set aside.
        match framefile::has_header(path, FORMAT) {
            Ok(has_header) => Ok(has_header),
            Err(error) if is_gone(&error) => Ok(false),
            Err(FrameError::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    } else if name.ends_with(NEW) {
        match left_of_rewrite(path) {
            Ok(left) => Ok(left == Left::No),
            Err(FrameError::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    } else if name.ends_with(TEMPORARY) {
        path.symlink_metadata().map(|metadata| metadata.len() > HEADER_LEN)
    } else {
        Ok(true)
    };
    match is {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        is => is,
    }
}

/// What a file that is called `a.new` is to the sink `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: it is that of a sink which is called so.
    No,
    /// There is nothing in it, whosever it is.
    Empty,
    /// An older closehook was stopped while it wrote the letters of `a` anew: these are there as well, and all of it is theirs.
    Letters,
}

/// What of a file that is called `a.new` was left by a rewrite of the letters of `a`. In doubt it is the sink's that is called so.
pub(super) fn left_of_rewrite(path: &Path) -> Result<Left, FrameError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(own) = name.strip_suffix(NEW).filter(|own| !own.is_empty()) else {
        return Ok(Left::No);
    };
    // What the sink's own file does not have may be nowhere else.
    if path.with_file_name(own).symlink_metadata().is_err() {
        return Ok(Left::No);
    }
    let (mut frames, mut own_letters, mut others) = (0, 0, 0);
    let scanned = framefile::scan(path, FORMAT, |frame| {
        frames += 1;
        match record::letter_in(frame.tag, frame.payload) {
            // Nobody gives to itself: what `a` has given is in the file of whom it was given to.
            Some(letter) if letter.sink == own && frame.tag != record::TAG_GIVEN => own_letters += 1,
            Some(_) => others += 1,
            None => {}
        }
    });
    match scanned {
        Ok(scan) if frames == 0 && scan.damage.is_empty() => Ok(Left::Empty),
        Ok(_) if own_letters > 0 && others == 0 => Ok(Left::Letters),
        Err(FrameError::Alien(_)) if path.symlink_metadata().is_ok_and(|file| file.len() == 0) => Ok(Left::Empty),
        Ok(_) | Err(FrameError::Newer { .. } | FrameError::Alien(_)) => Ok(Left::No),
        Err(error) if is_gone(&error) => Ok(Left::No),
        Err(error) => Err(error),
    }
}

/// What an older closehook left of a rewrite of this file; all of it stands in it as well.
pub(super) fn left_beside(path: &Path) -> Result<Option<PathBuf>, FrameError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let left = path.with_file_name(format!("{name}{NEW}"));
    match left_of_rewrite(&left) {
        Ok(what) => Ok((what == Left::Letters).then_some(left)),
        Err(FrameError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where what an older closehook left of a rewrite is put by, so that the sink which is called so can have its file: beside the letters
/// that it was made of, and goes with them.
pub(super) fn put_by(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    free_aside(&path.with_file_name(name.strip_suffix(NEW).unwrap_or(name)))
}

/// Whether a file in the directory was set aside.
pub(super) fn is_aside(path: &Path, name: &str) -> io::Result<bool> {
    if name.starts_with('.') {
        return Ok(aside_end(name).is_some());
    }
    Ok(name.ends_with(DAMAGED) && !is_of_sink(path, name)?)
}

/// What comes before the end that makes a name one of what is set aside; `None`: it is none.
fn aside_end(name: &str) -> Option<&str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.rsplit_once('~') {
        Some((rest, number)) if is_number(number) => rest.strip_suffix(DAMAGED),
        _ => name.strip_suffix(DAMAGED),
    }
}

/// Everything that stands beside a file of letters and is of it, by whatever closehook.
pub(super) fn all_beside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(own)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let listing = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_own = match name.strip_prefix('.') {
            Some(hidden) => {
                let is_new = hidden
                    .strip_prefix(own)
                    .is_some_and(|end| end == NEW || end == ".new.tmp");
                is_new || aside_end(hidden) == Some(own)
            }
            None if name.strip_suffix(NEW) == Some(own) => {
                let left = left_of_rewrite(&entry.path()).map_err(io::Error::other)?;
                left == Left::Letters
            }
            None => is_old_aside_of(dir, own, &name) && is_aside(&entry.path(), &name)?,
        };
        if is_own {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether an older closehook may have set this file aside under such a name. The first aside of a sink `a.1` was called as the second one of
/// `a`: where there is that sink it is not taken for that.
fn is_old_aside_of(dir: &Path, own: &str, name: &str) -> bool {
    let Some(set_aside) = name.strip_suffix(DAMAGED) else {
        return false;
    };
    let number = set_aside.strip_prefix(own).and_then(|rest| rest.strip_prefix('.'));
    let is_number = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    let is_missing = || {
        let found = dir.join(set_aside).symlink_metadata();
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    set_aside == own || (is_number && is_missing())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::letter;
    use super::super::{Letters, asides, listed};
    use super::left_beside;
    use crate::deliver::DeadLetter;
    use crate::event::Seq;

    fn of(sink: &str, seq: u64) -> DeadLetter {
        DeadLetter {
            sink: sink.into(),
            ..letter(seq)
        }
    }

    /// They are called as what an older closehook put beside the file of `a`.
    #[test]
    fn sinks_that_are_called_alike_keep_their_letters() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Letters::open(dir.path(), name, false).unwrap();
        let others = ["a.1.damaged", "a.damaged", "a.new", "a.tmp"];
        for name in others {
            open(name).add(&[of(name, 1), of(name, 2)]).unwrap();
        }
        let a = open("a");
        a.add(&[letter(1), letter(2)]).unwrap();
        a.remove(&[letter(1).seq]).unwrap();
        a.scrub(&|| ()).unwrap();
        drop(a);
        for _ in 0..2 {
            std::fs::write(dir.path().join("a"), "something else").unwrap();
            open("a").add(&[letter(3)]).unwrap();
        }
        for name in others {
            assert_eq!(open(name).len(), 2, "{name}");
        }
        let found = listed(dir.path()).unwrap().into_iter().map(|(name, _)| name);
        let all: BTreeSet<String> = others.into_iter().chain(["a"]).map(str::to_owned).collect();
        assert_eq!(found.collect::<BTreeSet<_>>(), all);
        assert_eq!(asides(dir.path()).unwrap().len(), 2);
        assert_eq!(open("a").forget().unwrap(), 1);
        for name in others {
            assert_eq!(open(name).len(), 2, "{name}");
        }
        assert!(asides(dir.path()).unwrap().is_empty(), "nothing is left of it");
    }

    /// It wrote what was left of a file into a new one, and was stopped before that took the old one's place.
    #[test]
    fn what_an_older_closehook_left_of_a_rewrite_is_no_sinks_file_and_goes_with_its_sink() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Letters::open(dir.path(), name, false).unwrap();
        let names = || -> Vec<String> {
            let mut names: Vec<String> = listed(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
            names.sort();
            names
        };
        open("a").add(&[of("a", 1), of("a", 2)]).unwrap();
        let left = std::fs::read(dir.path().join("a")).unwrap();
        // A sink that is called so, and what is nowhere else.
        open("b").add(&[of("b", 1)]).unwrap();
        open("b.new").add(&[of("b.new", 1)]).unwrap();
        std::fs::write(dir.path().join("c.new"), &left).unwrap();
        for len in [left.len(), left.len() - 3, crate::framefile::HEADER_LEN as usize, 0] {
            std::fs::write(dir.path().join("a.new"), &left[..len]).unwrap();
            assert_eq!(names(), ["a", "b", "b.new", "c.new"], "{len} bytes");
        }
        // A sink that is called so has none of them, and keeps what it gets.
        std::fs::write(dir.path().join("a.new"), &left).unwrap();
        let called_so = open("a.new");
        assert_eq!(called_so.len(), 0);
        called_so.add(&[of("a.new", 7)]).unwrap();
        assert_eq!(names(), ["a", "a.new", "b", "b.new", "c.new"]);
        assert_eq!(open("a").forget().unwrap(), 2);
        assert_eq!(open("a.new").seqs(Seq(1), 9), [Seq(7)]);
        assert!(asides(dir.path()).unwrap().is_empty(), "nothing is left of it");

        // And without one.
        open("a").add(&[of("a", 1)]).unwrap();
        open("a.new").forget().unwrap();
        std::fs::write(dir.path().join("a.new"), &left).unwrap();
        open("a").forget().unwrap();
        assert_eq!(names(), ["b", "b.new", "c.new"]);
        assert!(!dir.path().join("a.new").exists());
    }

    /// Whoever is erased is in it as well.
    #[test]
    fn what_an_older_closehook_left_of_a_rewrite_is_found_beside_its_file_and_no_sinks_own_is() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Letters::open(dir.path(), name, false).unwrap();
        let [a, a_new, b] = ["a", "a.new", "b"].map(|name| dir.path().join(name));
        open("a").add(&[of("a", 1)]).unwrap();
        open("b").add(&[of("b", 1)]).unwrap();
        open("b.new").add(&[of("b.new", 1)]).unwrap();
        assert_eq!(left_beside(&a).unwrap(), None);
        assert_eq!(left_beside(&b).unwrap(), None);
        std::fs::copy(&a, &a_new).unwrap();
        assert_eq!(left_beside(&a).unwrap(), Some(a_new));
    }

    #[test]
    fn what_an_older_closehook_set_aside_is_no_sinks_file_and_goes_with_its_sink() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Letters::open(dir.path(), name, false).unwrap();
        open("a").add(&[letter(1)]).unwrap();
        open("b.2").add(&[letter(1)]).unwrap();
        for name in ["a.damaged", "a.1.damaged", "a.2.damaged", "b.2.damaged", "a.tmp"] {
            std::fs::write(dir.path().join(name), "something else").unwrap();
        }
        let found = listed(dir.path()).unwrap().into_iter().map(|(name, _)| name);
        let all = ["a", "b.2"].map(str::to_owned);
        assert_eq!(found.collect::<BTreeSet<_>>(), all.into());
        assert_eq!(asides(dir.path()).unwrap().len(), 4);
        open("b").forget().unwrap();
        open("a").forget().unwrap();
        let left = asides(dir.path()).unwrap();
        assert!(left.len() == 1 && left[0].ends_with("b.2.damaged"), "{left:?}");
    }
}
