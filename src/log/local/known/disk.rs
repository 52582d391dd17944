//! What known keys need of the disk: what is damage there, and how files and directories of theirs come and go.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::framefile;

/// An error that proves that what is there is not what was written.
pub(super) fn damage(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether an error proves damage, and is no matter of the moment.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || framefile::is_bad_medium(error)
}

/// What is in a directory; nothing where there is none.
pub(super) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(listing) => listing.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Gives a damaged file or directory a name under which nobody takes it for keys.
pub(super) fn set_aside(path: &Path) -> io::Result<()> {
    let mut aside = framefile::beside(path, ".damaged");
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = framefile::beside(path, &format!(".damaged-{number}"));
    }
    std::fs::rename(path, aside)
}

/// How the name of a damaged set ends of which there was no room yet to save what can be read.
const UNSAVED: &str = ".unsaved";

/// What such a set was called before; `None`: it is none.
pub(super) fn unsaved(name: &str) -> Option<&str> {
    name.strip_suffix(UNSAVED)
}

/// Gives a damaged set a name under which nobody takes it for keys, and it is found again at the next start; `None` where one of this name
/// waits already: then it is set aside.
pub(super) fn keep_to_save(path: &Path) -> io::Result<Option<PathBuf>> {
    if path.to_str().and_then(unsaved).is_some() {
        return Ok(Some(path.to_owned()));
    }
    let kept = framefile::beside(path, UNSAVED);
    if kept.try_exists()? {
        return set_aside(path).map(|()| None);
    }
    std::fs::rename(path, &kept)?;
    Ok(Some(kept))
}

/// Removes a month's directory. Its name goes first, so that a crash leaves it whole or gone.
pub(super) fn remove_named(dir: &Path) -> io::Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let doomed = dir.with_file_name(format!("{REMOVED}{name}"));
    remove(&doomed)?;
    std::fs::rename(dir, &doomed)?;
    remove(&doomed)
}

/// What a directory is called while it is removed.
pub(super) const REMOVED: &str = "removed-";

/// Removes a file or a directory, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A number of four bytes.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A number of eight bytes.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// Reads so many bytes. A file that ends too early is not what it was.
pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damage("it is too short"),
        _ => error,
    })
}
