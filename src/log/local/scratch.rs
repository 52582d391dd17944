//! Copies of databases, for whoever reads a log that another process has, or one that may be damaged: sled writes into what it opens. They
//! hold events, so that nobody else may read them, and what a process that was cut off has left goes with the next one, with the next start
//! of the daemon, and with the next erasure.
//!
//! They are in `scratch/` of the data directory that the original is in. There an erasure reaches them whoever made them: the daemon may
//! have a `/tmp` of its own (systemd's `PrivateTmp`), or be in a container. Where this user may not write there, or where a copy would take of
//! the room that the log keeps free, they are in the directory for temporary files.
//!
//! Whoever has a copy holds a lock on its directory. What nobody holds was left.

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use tempfile::{Builder, TempDir};

use super::{description, space};
use crate::framefile;

/// Where they are, below a data directory. What is in it counts for no limit on that: looking at events must not make any go.
pub const DIR: &str = "scratch";

const PREFIX: &str = "closehook-";

/// Somebody else may just be clearing what was left, and take a new one for that: so often another one is made.
const TRIES_MAX: u32 = 8;

/// What is in the directory for temporary files is cleared once, by the first copy that is made there.
static CLEARED: Once = Once::new();

/// A directory that nobody else may look into, and which goes when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    /// `None` while it is dropped.
    dir: Option<TempDir>,
    path: PathBuf,
    /// What it is in, and which goes with the last one; `None`: that is others' as well.
    own_place: Option<PathBuf>,
    /// Given back when the directory is gone.
    _held: File,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where there is no room for a copy may not be where the log is: it is named.
    pub fn named(&self, error: io::Error) -> io::Error {
        named(&self.path, self.own_place.is_none(), error)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.dir.take());
        // Where others are in it, it stays.
        if let Some(place) = &self.own_place {
            let _ = std::fs::remove_dir(place);
        }
    }
}

/// Makes one for a copy of so many bytes of what is at `original`.
pub(super) fn dir(original: &Path, bytes: u64) -> io::Result<Scratch> {
    // What keeps it from being there is no fault: it may be somebody else's directory, and one on a medium that nobody writes.
    if let Some(data_dir) = room_beside(original, bytes)
        && let Ok(made) = make_in_data_dir(data_dir)
    {
        return Ok(made);
    }
    let into = std::env::temp_dir();
    CLEARED.call_once(|| drop(clear_temporary(&into)));
    make(&into).map_err(|error| named(&into, true, error))
}

/// The data directory that something is in, where there is room for a copy: the log's own reserve stays free, and as much again.
fn room_beside(original: &Path, bytes: u64) -> Option<&Path> {
    let data_dir = original.ancestors().find(|dir| description::is_in(dir))?;
    let space = space::of(data_dir).ok()?;
    let reserve = space::default_reserve(space);
    (space.free >= bytes.saturating_add(2 * reserve)).then_some(data_dir)
}

fn make_in_data_dir(data_dir: &Path) -> io::Result<Scratch> {
    let into = data_dir.join(DIR);
    framefile::make_dir(&into)?;
    // A command run by root follows no link that somebody has put there.
    if !std::fs::symlink_metadata(&into)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    leave_to_owner(data_dir, &into)?;
    clear_in_data_dir(data_dir);
    let mut made = make(&into)?;
    made.own_place = Some(into);
    leave_to_owner(data_dir, &made.path)?;
    Ok(made)
}

/// A command run by root must leave nothing that the daemon can't remove.
fn leave_to_owner(data_dir: &Path, made: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(data_dir)?;
    std::os::unix::fs::lchown(made, Some(owner.uid()), Some(owner.gid()))
}

fn make(into: &Path) -> io::Result<Scratch> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    for _ in 0..TRIES_MAX {
        let dir = Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(into)?;
        if let Some(held) = hold(dir.path())? {
            return Ok(Scratch {
                path: dir.path().to_owned(),
                dir: Some(dir),
                own_place: None,
                _held: held,
            });
        }
    }
    let why = format!("others remove again and again what is made in {}", into.display());
    Err(io::Error::other(why))
}

/// Takes the lock on a directory; `None` where somebody else has it, or has removed it.
fn hold(dir: &Path) -> io::Result<Option<File>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::DIRECTORY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(dir);
    let held = match opened {
        Ok(held) => held,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // It may have been removed in between, and the lock is on what is no more.
    let is_it = |found: &Metadata, held: &Metadata| (found.dev(), found.ino()) == (held.dev(), held.ino());
    match std::fs::symlink_metadata(dir) {
        Ok(found) => Ok(is_it(&found, &held.metadata()?).then_some(held)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where there is no room for a copy may not be where the log is: it is named.
fn named(into: &Path, is_temporary: bool, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return error;
    }
    let which = if is_temporary { " (TMPDIR)" } else { "" };
    let text = format!(
        "{error}: there is no room for a copy of a part of it in {}{which}",
        into.display()
    );
    io::Error::new(error.kind(), text)
}

/// Removes what processes have left that are there no more, for an erasure: gives a sentence for each copy that can't be removed and may
/// hold some of it. What a process has that runs goes with it.
pub(super) fn clear(data_dir: &Path) -> Vec<String> {
    let mut left = clear_in_data_dir(data_dir);
    left.extend(clear_temporary(&std::env::temp_dir()));
    left
}

/// The same in a data directory alone, for a start.
pub(super) fn clear_in_data_dir(data_dir: &Path) -> Vec<String> {
    clear_left(&data_dir.join(DIR), &Metadata::is_dir)
}

/// The same in the directory for temporary files, of this user's.
fn clear_temporary(into: &Path) -> Vec<String> {
    let own = rustix::process::geteuid().as_raw();
    clear_left(into, &|found| found.is_dir() && found.uid() == own)
}

/// Removes what nobody holds of those that `are_ours`; names what can't be removed.
fn clear_left(into: &Path, are_ours: &dyn Fn(&Metadata) -> bool) -> Vec<String> {
    let entries = match std::fs::read_dir(into) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("{} can't be looked at for copies: {error}", into.display())],
    };
    let mut left = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = || entry.metadata().is_ok_and(|found| are_ours(&found));
        if !name.to_str().is_some_and(is_of_copy) || !is_ours() {
            continue;
        }
        let at = entry.path();
        let removed = match hold(&at) {
            Ok(Some(_held)) => std::fs::remove_dir_all(&at),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            // Another one may have removed it meanwhile.
            Err(error) if !matches!(at.try_exists(), Ok(false)) => left.push(format!(
                "{}: a copy of a part of a log that a command has left, which can't be removed: {error}",
                at.display()
            )),
            _ => {}
        }
    }
    left.sort();
    left
}

/// Whether a copy is called so: other things of closehook's have the same beginning.
fn is_of_copy(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_is_for_nobody_else_and_what_nobody_holds_goes() {
        let into = tempfile::tempdir().unwrap();
        let copy = make(into.path()).unwrap();
        let mode = std::fs::metadata(copy.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let held = copy.path().file_name().unwrap().to_str().unwrap().to_owned();
        for name in [
            "closehook-4294967295-a",
            "closehook-old",
            "closehook-listen-a",
            "else-4294967295-a",
        ] {
            std::fs::create_dir(into.path().join(name)).unwrap();
        }
        assert_eq!(clear_temporary(into.path()), [""; 0]);
        let mut stay = vec![
            held,
            "closehook-old".into(),
            "closehook-listen-a".into(),
            "else-4294967295-a".into(),
        ];
        stay.sort();
        assert_eq!(names(into.path()), stay);
        let at = copy.path().to_owned();
        drop(copy);
        assert!(!at.exists());
    }

    #[test]
    fn a_copy_is_in_the_data_directory_that_the_original_is_in() {
        let data_dir = tempfile::tempdir().unwrap();
        let original = data_dir.path().join("log").join("1").join("sled");
        std::fs::create_dir_all(&original).unwrap();
        let temporary = std::env::temp_dir();
        let copy = dir(&original, 1).unwrap();
        assert_eq!(
            copy.path().parent(),
            Some(temporary.as_path()),
            "nobody's data directory"
        );
        description::Description::open(data_dir.path(), true).unwrap();
        let into = data_dir.path().join(DIR);
        let copy = dir(&original, 1).unwrap();
        assert_eq!(copy.path().parent(), Some(into.as_path()));
        std::fs::write(copy.path().join("db"), "x").unwrap();
        drop(copy);
        assert!(!into.exists(), "nothing is left of it");
        let copy = dir(&original, u64::MAX).unwrap();
        assert_eq!(copy.path().parent(), Some(temporary.as_path()), "there is no room");

        // Nothing goes where a link leads.
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &into).unwrap();
        let copy = dir(&original, 1).unwrap();
        assert_eq!(copy.path().parent(), Some(temporary.as_path()));
        assert!(names(elsewhere.path()).is_empty());
    }

    #[test]
    fn what_was_left_in_a_data_directory_goes_and_what_is_held_stays() {
        let data_dir = tempfile::tempdir().unwrap();
        description::Description::open(data_dir.path(), true).unwrap();
        let copy = dir(data_dir.path(), 1).unwrap();
        let left = data_dir.path().join(DIR).join("closehook-1-left");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("db"), "jane@example.com").unwrap();
        assert_eq!(clear_in_data_dir(data_dir.path()), [""; 0]);
        assert!(copy.path().exists() && !left.exists());
    }
}
