//! The database of a sealed segment: all that knows sled.
//!
//! sled's own durability can't be relied on: its `flush` is not an fsync, its large values lie in files it never syncs, and a damaged
//! or truncated file can open as an empty database, panic, or be "recovered" by throwing data away. See [`super`] for what
//! follows.
//!
//! Why the database is built when a segment is complete, and not event by event behind the journal: readers of the newest
//! segment are served from the journal anyway (it must be possible after a crash), sled writes every leaf about twice, so
//! trickling events in would multiply that, and a segment that is complete can choose its packs and sled's segment size to
//! fit. Measured with 75 MB in values of 64 KiB: 2.0 bytes on disk a byte; of 1 MB with a flush after each: 1.6.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::fault::SegmentError;
use crate::framefile;

/// Its directory in the segment's.
pub(in crate::log::local) const DB_NAME: &str = "sled";

/// sled's segments. A leaf of more than a quarter of one becomes a file of its own, of just its length, which is what keeps
/// databases small: measured with 33 MB of packs in pieces of 60 KiB, 1.27 bytes on disk a byte; with segments of 1 MiB and
/// pieces of 240 KiB 1.47; of 8 MiB and 512 KiB 3.1. What sled never syncs (those files) sealing does.
const SEGMENT_SIZE: usize = 256 << 10;

/// The same where values are a few kilobytes: of 250,000 keys at 26 bytes there are 35 bytes a key on disk; with segments of 16, 64
/// and 256 KiB 41, 39 and 50.
const SEGMENT_SIZE_SMALL: usize = 32 << 10;

/// Those with which databases were ever made.
pub(super) const SEGMENT_SIZES: [usize; 4] = [SEGMENT_SIZE, 512 << 10, 1 << 20, 8 << 20];

/// No value is longer: one alone in its leaf must stay below a quarter of a segment, or it is written twice more.
pub(in crate::log::local) const VALUE_LEN_MAX: usize = 60 << 10;

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

/// Reads everything back, as often as it takes until that changes no byte of any file any more; gives the files then. The first
/// openings of a database write a snapshot each, and a large one needs more of them than a small one.
pub(in crate::log::local) fn settle(
    path: &Path,
    read_all: &mut dyn FnMut(&Database) -> Result<(), SegmentError>,
) -> Result<Vec<FileSum>, SegmentError> {
    let mut before = Vec::new();
    for _ in 0..SETTLING_MAX {
        let db = Database::open(path)?;
        read_all(&db)?;
        drop(db);
        wait_until_closed(path)?;
        let sums = sum_and_sync(path)?;
        if sums == before {
            return Ok(sums);
        }
        before = sums;
    }
    Err(SegmentError::Io(io::Error::other(
        "sled goes on changing what it only reads",
    )))
}

/// A tree of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log::local) enum Tree {
    /// Of a sealed segment: the events.
    Packs,
    /// Of a sealed segment: where which event ids are.
    Ids,
    /// Of a sealed segment: where which leads are.
    Leads,
    /// Of a sealed segment: where which objects are.
    Objects,
    /// Of a sealed segment: where which types are.
    Types,
    /// Of a month of known keys: the keys.
    Keys,
}

impl Tree {
    /// Its name in the database; `None` for the one that every database has.
    fn name(self) -> Option<&'static str> {
        match self {
            Tree::Packs => None,
            Tree::Ids => Some("ids"),
            Tree::Leads => Some("leads"),
            Tree::Objects => Some("objects"),
            Tree::Types => Some("types"),
            Tree::Keys => Some("keys"),
        }
    }
}

/// A handle on a database; closed when dropped.
#[derive(Debug)]
pub(in crate::log::local) struct Database(sled::Db);

impl Database {
    /// Opens a database, or makes one where there is none.
    pub fn open(path: &Path) -> Result<Database, SegmentError> {
        open_db(path, SEGMENT_SIZE).map(Database)
    }

    /// Makes one for values of a few kilobytes each.
    pub fn of_small_values(path: &Path) -> Result<Database, SegmentError> {
        open_db(path, SEGMENT_SIZE_SMALL).map(Database)
    }

    /// Makes an empty one with segments of this size, and closes it.
    pub fn make(path: &Path, segment_size: usize) -> Result<(), SegmentError> {
        let config = sled::Config::new().path(path).segment_size(segment_size);
        config.flush_every_ms(None).open().map(drop).map_err(sled_error)
    }

    /// Puts a value of at most [`VALUE_LEN_MAX`] bytes under a key.
    pub fn put(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), SegmentError> {
        debug_assert!(value.len() <= VALUE_LEN_MAX, "a value of {} bytes", value.len());
        let put = match tree.name() {
            None => self.0.insert(key, value),
            Some(name) => self.0.open_tree(name).and_then(|tree| tree.insert(key, value)),
        };
        put.map(drop).map_err(sled_error)
    }

    /// The value under a key, in a tree that was made when the database was.
    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, SegmentError> {
        let get = || match tree.name() {
            None => self.0.get(key),
            Some(name) => self.0.open_tree(name)?.get(key),
        };
        // sled panics on some kinds of damage.
        let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(get))
            .map_err(|_| SegmentError::Damaged("sled gave up on it".into()))?;
        value.map(|value| value.map(|value| value.to_vec())).map_err(sled_error)
    }

    /// Hands what was put to the kernel.
    pub fn flush(&self) -> Result<(), SegmentError> {
        self.0.flush().map(drop).map_err(sled_error)
    }
}

/// Opens a database, whatever sled makes of it.
fn open_db(path: &Path, segment_size: usize) -> Result<sled::Db, SegmentError> {
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
    let config = sled::Config::new()
        .path(path)
        .segment_size(segment_size_of(path).unwrap_or(segment_size))
        .cache_capacity(8 << 20)
        .mode(sled::Mode::LowSpace)
        // Never flush by itself: concurrent flushes can deadlock, and nothing here depends on a flush.
        .flush_every_ms(None);
    let patience = Instant::now();
    loop {
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()));
        match opened {
            Ok(Ok(db)) => return Ok(db),
            // A handle that was just dropped is closed by sled's own threads a moment later.
            Ok(Err(sled::Error::Io(error))) if is_locked(&error) && patience.elapsed() < OPEN_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(Err(error)) => return Err(sled_error(error)),
            Err(_) => {
                return Err(SegmentError::Damaged(format!(
                    "{}: sled panicked on it",
                    path.display()
                )));
            }
        }
    }
}

/// The segment size a database was made with, which sled insists on: earlier versions made them with 512 KiB and 8 MiB.
fn segment_size_of(path: &Path) -> Option<usize> {
    let conf = std::fs::read(path.join("conf")).ok()?;
    let size = conf
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"segment_size: "))?;
    let size: usize = std::str::from_utf8(size).ok()?.trim().parse().ok()?;
    // Anything else sled takes for a mistake in the program.
    (size.is_power_of_two() && (256..=16 << 20).contains(&size)).then_some(size)
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

/// What the file system says is an error of the moment, except where the medium itself is bad or the file is not what it was.
fn sled_error(error: sled::Error) -> SegmentError {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error {
        sled::Error::Io(error)
            if !framefile::is_bad_medium(&error)
                && !matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) =>
        {
            SegmentError::Io(error)
        }
        other => SegmentError::Damaged(other.to_string()),
    }
}

/// Waits until sled's threads have let go of the database's files, so that nothing is written after they are summed.
pub(super) fn wait_until_closed(path: &Path) -> Result<(), SegmentError> {
    let file = File::open(path.join("db"))?;
    let patience = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if patience.elapsed() < OPEN_PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(SegmentError::Io(error.into())),
        }
    }
}

/// Every file below a directory, relative to it, in order.
pub(in crate::log::local) fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
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
            crc: sum(file, &mut || true)?,
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

/// The checksum of a file. `progress` answers `false` to stop.
pub(in crate::log::local) fn sum(mut file: File, progress: &mut dyn FnMut() -> bool) -> io::Result<u32> {
    let mut buffer = vec![0; 1 << 18];
    let mut crc = 0;
    loop {
        if !progress() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it is not wanted any more"));
        }
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            read => crc = crc32c::crc32c_append(crc, &buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_made_with_other_segment_sizes_are_opened_and_stay_as_they_are() {
        for segment_size in [512 << 10, 1 << 20, 8 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("sled");
            let old = sled::Config::new()
                .path(&path)
                .segment_size(segment_size)
                .open()
                .unwrap();
            old.insert(b"key", vec![7; 100_000]).unwrap();
            old.flush().unwrap();
            drop(old);
            wait_until_closed(&path).unwrap();
            let settled = settle(&path, &mut |db| {
                assert_eq!(db.get(Tree::Packs, b"key")?, Some(vec![7; 100_000]));
                Ok(())
            });
            assert_eq!(segment_size_of(&path), Some(segment_size));
            let db = Database::open(&path).unwrap();
            assert_eq!(db.get(Tree::Packs, b"key").unwrap(), Some(vec![7; 100_000]));
            drop(db);
            wait_until_closed(&path).unwrap();
            assert_eq!(sum_and_sync(&path).unwrap(), settled.unwrap());
        }
    }

    #[test]
    fn what_the_file_system_says_of_the_moment_is_no_damage() {
        use rustix::io::Errno;
        for (errno, is_damage) in [
            (Errno::MFILE, false),
            (Errno::ACCESS, false),
            (Errno::NOSPC, false),
            (Errno::IO, true),
        ] {
            let error = sled_error(sled::Error::Io(errno.into()));
            assert_eq!(matches!(error, SegmentError::Damaged(_)), is_damage, "{errno:?}");
        }
    }

    #[test]
    fn a_database_takes_little_more_than_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        let mut random = fastrand::Rng::with_seed(1);
        let db = Database::open(&path).unwrap();
        let mut put = 0;
        // As packs are put: in pieces, the last of them shorter.
        for pack in 0..60_u64 {
            let len = random.usize(150_000..240_000);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            for (piece, value) in (0_u64..).zip(bytes.chunks(VALUE_LEN_MAX)) {
                db.put(Tree::Packs, &(pack << 8 | piece).to_be_bytes(), value).unwrap();
            }
            db.flush().unwrap();
            put += len as u64;
        }
        drop(db);
        let files = settle(&path, &mut |_| Ok(())).unwrap();
        let on_disk: u64 = files.iter().map(|file| file.len).sum();
        assert!(on_disk < put / 100 * 145, "{on_disk} for {put}");
    }
}
