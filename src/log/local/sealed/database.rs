//! The database of a sealed segment: all that knows sled.
//!
//! See [`super`] for why sled is used the way it is.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::framefile;

/// A database that was read so often without coming to rest never will.
const SETTLING_MAX: u32 = 12;

/// How long opening waits for another handle on the same database to be closed.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// One file of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::log::local) struct FileSum {
    /// Relative to the database's directory.
    pub name: String,
    pub len: u64,
    pub crc: u32,
}

/// Why a sealed segment (or a part of it) can't be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::log::local) enum SealedError {
    /// The file system said no; worth another try.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is there is not what was sealed.
    #[error("{0}")]
    Damaged(String),
    /// It was rewritten or removed, and something else is in its place: worth another look.
    #[error("it was replaced meanwhile")]
    Retired,
    /// A newer closehook wrote it.
    #[error("{0}")]
    Newer(String),
}

/// Reads everything back, as often as it takes until that changes no byte of any file any more; gives the files then. The first
/// openings of a database write a snapshot each, and a large one needs more of them than a small one.
pub(in crate::log::local) fn settle(
    path: &Path,
    expected_bytes: u64,
    read_all: &mut dyn FnMut(&Database) -> Result<(), SealedError>,
) -> Result<Vec<FileSum>, SealedError> {
    let mut before = Vec::new();
    for _ in 0..SETTLING_MAX {
        let db = Database::open(path, expected_bytes)?;
        read_all(&db)?;
        drop(db);
        wait_until_closed(path)?;
        let sums = sum_and_sync(path)?;
        if sums == before {
            return Ok(sums);
        }
        before = sums;
    }
    Err(SealedError::Io(io::Error::other(
        "sled goes on changing what it only reads",
    )))
}

/// A handle on a database; closed when dropped.
#[derive(Debug)]
pub(in crate::log::local) struct Database(sled::Db);

impl Database {
    /// Opens a database, or makes one where there is none. `expected_bytes` is how large it is or will become.
    pub fn open(path: &Path, expected_bytes: u64) -> Result<Database, SealedError> {
        open_db(path, expected_bytes).map(Database)
    }

    /// Puts a value under a key.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), SealedError> {
        self.0.insert(key, value).map(drop).map_err(sled_error)
    }

    /// The value under a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SealedError> {
        // sled panics on some kinds of damage.
        let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.get(key)))
            .map_err(|_| SealedError::Damaged("sled gave up on them".into()))?;
        value.map(|value| value.map(|value| value.to_vec())).map_err(sled_error)
    }

    /// Hands what was put to the kernel.
    pub fn flush(&self) -> Result<(), SealedError> {
        self.0.flush().map(drop).map_err(sled_error)
    }
}

/// Opens a database, whatever sled makes of it.
fn open_db(path: &Path, expected_bytes: u64) -> Result<sled::Db, SealedError> {
    // A process that was killed while opening leaves this, and every later open fails on it.
    if let Ok(listing) = std::fs::read_dir(path) {
        for entry in listing.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    let config = |segment_size| {
        sled::Config::new()
            .path(path)
            .segment_size(segment_size)
            .cache_capacity(8 << 20)
            .mode(sled::Mode::LowSpace)
            // Never flush by itself: concurrent flushes can deadlock, and nothing here depends on a flush.
            .flush_every_ms(None)
    };
    let mut segment_sizes = [512 << 10, 8 << 20];
    if expected_bytes >= 8 << 20 {
        segment_sizes.reverse();
    }
    let patience = Instant::now();
    let mut config = config(segment_sizes[0]);
    loop {
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()));
        match opened {
            Ok(Ok(db)) => return Ok(db),
            // A handle that was just dropped is closed by sled's own threads a moment later.
            Ok(Err(sled::Error::Io(error))) if is_locked(&error) && patience.elapsed() < OPEN_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            // It was made when another size was expected, and sled insists on the one it was made with.
            Ok(Err(sled::Error::Unsupported(_))) if config.segment_size == segment_sizes[0] => {
                config = config.segment_size(segment_sizes[1]);
            }
            Ok(Err(error)) => return Err(sled_error(error)),
            Err(_) => return Err(SealedError::Damaged(format!("{}: sled panicked on it", path.display()))),
        }
    }
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

fn sled_error(error: sled::Error) -> SealedError {
    match error {
        sled::Error::Io(error) => SealedError::Io(error),
        other => SealedError::Damaged(other.to_string()),
    }
}

/// Waits until sled's threads have let go of the database's files, so that nothing is written after they are summed.
pub(super) fn wait_until_closed(path: &Path) -> Result<(), SealedError> {
    let file = File::open(path.join("db"))?;
    let patience = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if patience.elapsed() < OPEN_PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(SealedError::Io(error.into())),
        }
    }
}

/// Every file below a directory, relative to it, in order.
pub(super) fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in std::fs::read_dir(dir.join(&relative))? {
            let entry = entry?;
            let name = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(name);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sum_and_sync(dir: &Path) -> io::Result<Vec<FileSum>> {
    let mut sums = Vec::new();
    for name in files_below(dir)? {
        let path = dir.join(&name);
        let file = File::open(&path)?;
        // sled leaves modes to the umask.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.sync_all()?;
        sums.push(FileSum {
            name: name.to_string_lossy().into_owned(),
            len: file.metadata()?.len(),
            crc: sum(file)?,
        });
        framefile::sync_parent(&path)?;
    }
    let private_dir = |dir: &Path| {
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        framefile::sync_dir(dir)
    };
    private_dir(dir)?;
    if let Ok(listing) = std::fs::read_dir(dir) {
        for entry in listing.flatten().filter(|entry| entry.path().is_dir()) {
            private_dir(&entry.path())?;
        }
    }
    Ok(sums)
}

pub(super) fn sum(mut file: File) -> io::Result<u32> {
    let mut buffer = vec![0; 1 << 18];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            read => crc = crc32c::crc32c_append(crc, &buffer[..read]),
        }
    }
}
