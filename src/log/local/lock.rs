//! The lock on a data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::refused::OpenError;

const NAME: &str = "lock";

/// What a daemon notes behind its process id: it stays, and can be asked.
const SERVES: &str = "serves";

/// Who has a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process; `None` where that can't be read.
    pub pid: Option<u32>,
    /// Whether it is a daemon, and not a command that works without one.
    pub serves: bool,
}

/// Who has the data directory now; `None`: nobody. Writes nothing. An error is not an absence.
pub fn holder(dir: &Path) -> io::Result<Option<Holder>> {
    let mut file = match crate::files::open(&dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Shared: whoever else only looks is not in the way.
    match file.try_lock_shared() {
        Ok(()) => return Ok(None),
        Err(std::fs::TryLockError::WouldBlock) => {}
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    let mut note = String::new();
    file.read_to_string(&mut note)?;
    let mut words = note.split_whitespace();
    Ok(Some(Holder {
        pid: words.next().and_then(|pid| pid.parse().ok()),
        serves: words.next() == Some(SERVES),
    }))
}

/// Notes for whoever finds the directory taken that this process is a daemon. Only for the holder of the lock.
pub fn note_serving(dir: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(dir.join(NAME))?;
    note(&file, &format!("{} {SERVES}", std::process::id()))
}

fn note(mut file: &File, words: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{words}")
}

/// Takes a data directory whose log is elsewhere, as long as the file is kept.
pub fn take_dir(dir: &Path) -> Result<File, OpenError> {
    take_lock(dir)
}

/// Takes the data directory for this process.
pub(super) fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(NAME);
    let fail = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.split_whitespace().next();
            let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
            return Err(OpenError::Locked {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
    }
    // Only for people and commands; the lock itself is the kernel's.
    if let Err(error) = note(&file, &std::process::id().to_string()) {
        tracing::debug!(%error, "the lock file could not be written");
    }
    Ok(file)
}
