//! What files of dead letters are called, and what stands beside them.
//!
//! A sink may be called `a.new` or `a.damaged`, but none begins with a dot: so does what stands beside a file. An older closehook called
//! that `a.new`, `a.tmp`, `a.damaged` and `a.1.damaged`. Which of these is a sink's file and which was left or set aside, what is in it tells.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::is_gone;
use super::record::FORMAT;
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
    set_aside == own || (is_number && dir.join(set_aside).symlink_metadata().is_err())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::letter;
    use super::super::{Letters, asides, listed};

    /// They are called as what an older closehook put beside the file of `a`.
    #[test]
    fn sinks_that_are_called_alike_keep_their_letters() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Letters::open(dir.path(), name, false).unwrap();
        let others = ["a.1.damaged", "a.damaged", "a.new", "a.tmp"];
        for name in others {
            open(name).add(&[letter(1), letter(2)]).unwrap();
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
