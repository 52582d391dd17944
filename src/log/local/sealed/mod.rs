//! A sealed segment: packs of events in a sled database that never changes again, and a manifest that says what is in it.
//!
//! sled's own durability can't be relied on (its `flush` is not an fsync, its large values lie in files it never syncs, and a
//! damaged or truncated file can open as an empty database, panic, or be "recovered" by throwing data away). So:
//!
//! - [`seal`] builds the database from the journal, closes it, opens it and reads every pack back, comparing checksums, until
//!   that changes no byte of any file any more (the first openings write snapshots), syncs every file
//!   and directory, and only then writes the manifest. The journal is dropped after that. A crash at any step repeats it all.
//! - The manifest names every file with its length and checksum. A database is opened only after its files match; otherwise
//!   a *copy* of it is opened and what can still be read is [saved](salvage), so sled never gets to repair the only copy.
//! - Every pack is compared with the manifest's checksum on every read.
//! - Opening runs under `catch_unwind`.
//!
//! Why the database is built when a segment is complete, and not event by event behind the journal: readers of the newest
//! segment are served from the journal anyway (it must be possible after a crash), sled writes every leaf about twice, so
//! trickling events in would multiply that, and a segment that is complete can choose its packs and sled's segment size to
//! fit. Measured with 75 MB in values of 64 KiB: 2.0 bytes on disk a byte; of 1 MB with a flush after each: 1.6.

pub(super) mod database;
mod index;
mod packs;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::block::Block;
use super::journal::{self, BlockRef, OpenSegment};
use crate::event::{Event, Seq};
use crate::framefile::{self, Format, FrameFile};
use crate::log::Narrow;
use crate::sync::lock;

pub(super) use database::SealedError;
use database::{Database, FileSum, files_below, sum};
use index::Index;
pub(super) use packs::go_on;
use packs::{build, get_pack};

/// The database's directory in the segment's.
const DB_NAME: &str = "sled";

/// The manifest's file name; a segment is sealed when it is there.
const MANIFEST_NAME: &str = "manifest";

/// A second one, written first: without any manifest nothing could be checked, and a whole segment would be lost to one bad
/// byte.
const SECOND_MANIFEST_NAME: &str = "manifest.second";

const MANIFEST: Format = Format {
    magic: *b"CLHKMNFT",
    version: 1,
};

/// A database is opened anew when so much was read from it.
const DATABASE_READ_MAX: usize = 8 << 20;

/// Databases open at a time.
const DATABASES_OPEN_MAX: usize = 2;

/// What is in a sealed segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub first: Seq,
    pub last: Seq,
    pub events: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    pub oldest_us: i64,
    pub newest_us: i64,
    pub packs: Vec<Pack>,
    /// What is where, so that not everything need be read; `None` in segments that were sealed without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
    pub files: Vec<FileSum>,
}

/// One pack: a run of events without a hole.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Pack {
    pub first: Seq,
    pub count: u32,
    pub chunks: u16,
    pub crc: u32,
    pub newest_us: i64,
}

impl Pack {
    /// The last Seq in the pack.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }
}

impl Manifest {
    /// Reads a segment's manifest, or else the second one.
    pub fn load(dir: &Path) -> Result<Manifest, SealedError> {
        Manifest::load_file(&dir.join(MANIFEST_NAME)).or_else(|error| {
            let second = Manifest::load_file(&dir.join(SECOND_MANIFEST_NAME));
            if second.is_ok() {
                tracing::error!(%error, "a segment's manifest is damaged or missing; the second one is used");
            }
            second.map_err(|_| error)
        })
    }

    fn load_file(path: &Path) -> Result<Manifest, SealedError> {
        let mut found = None;
        framefile::scan(path, MANIFEST, |frame| {
            found = serde_json::from_slice(frame.payload).ok();
        })
        .map_err(|error| match error {
            framefile::FrameError::Io { source, .. } => SealedError::Io(source),
            other => SealedError::Damaged(other.to_string()),
        })?;
        found.ok_or_else(|| SealedError::Damaged(format!("{} can't be read", path.display())))
    }

    fn store(&self, dir: &Path) -> Result<(), SealedError> {
        let json = serde_json::to_vec(self).map_err(io::Error::from)?;
        let unnamed = dir.join("manifest.new");
        let write = || -> Result<(), framefile::FrameError> {
            let mut file = FrameFile::create(&unnamed, MANIFEST)?;
            file.append(0, &[&json])?;
            file.sync()
        };
        for name in [SECOND_MANIFEST_NAME, MANIFEST_NAME] {
            write().map_err(|error| SealedError::Io(io::Error::other(error.to_string())))?;
            std::fs::rename(&unnamed, dir.join(name))?;
            framefile::sync_dir(dir)?;
        }
        Ok(())
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// The pack that holds `seq`, else the first one behind it: its index.
    pub fn pack_at(&self, seq: Seq) -> usize {
        self.packs.partition_point(|pack| pack.last() < seq)
    }
}

/// Whether a segment's directory holds a sealed one. The second manifest counts where there is no journal to seal it from.
pub(super) fn is_sealed(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).exists();
    has(MANIFEST_NAME) || (has(SECOND_MANIFEST_NAME) && !has(journal::FILE_NAME))
}

/// A sealed segment as readers see it. Its database is opened on demand and closed when idle.
#[derive(Debug)]
pub(super) struct SealedSegment {
    pub dir: PathBuf,
    pub manifest: Manifest,
    access: Access,
    database: Mutex<Handle>,
}

/// How a database may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// By the process that holds the data directory's lock.
    Owner,
    /// By anybody: a copy in a temporary directory is opened, and nothing is written beside the original.
    Visitor,
}

#[derive(Debug, Default)]
struct Handle {
    open: Option<OpenDatabase>,
    /// The files were compared with the manifest since this process started.
    checked: bool,
}

#[derive(Debug)]
struct OpenDatabase {
    db: Database,
    last_used: Instant,
    /// Bytes read from it.
    read: usize,
    /// Deleted when the database is closed.
    _copy: Option<tempfile::TempDir>,
}

impl SealedSegment {
    /// A segment whose manifest was loaded.
    pub fn new(dir: PathBuf, manifest: Manifest, access: Access) -> SealedSegment {
        SealedSegment {
            dir,
            manifest,
            access,
            database: Mutex::default(),
        }
    }

    /// One pack, decoded, by its index in the manifest.
    pub fn read(&self, index: usize) -> Result<Block, SealedError> {
        let bytes = self.read_bytes(index)?;
        Block::decode(&bytes).map_err(|error| SealedError::Damaged(error.to_string()))
    }

    /// One pack as it is kept, compared with the manifest's checksum, by its index there.
    pub fn read_bytes(&self, index: usize) -> Result<Vec<u8>, SealedError> {
        let pack = self.manifest.packs[index];
        self.with_database(|db| {
            let bytes = get_pack(db, pack)?;
            let read = bytes.len();
            Ok((bytes, read))
        })
    }

    /// The Seqs of the events that `narrow` leaves, perhaps with some others; `None` where only reading everything tells.
    pub fn candidates(&self, narrow: &Narrow) -> Result<Option<Vec<Seq>>, SealedError> {
        let Some(index) = &self.manifest.index else {
            return Ok(None);
        };
        match self.with_database(|db| index.look_up(db, narrow)) {
            Ok(candidates) => Ok(candidates),
            Err(SealedError::Damaged(why)) => {
                tracing::warn!(
                    first = self.manifest.first.0,
                    last = self.manifest.last.0,
                    %why,
                    "the index of a sealed segment can't be believed; the segment is read whole instead"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the database, opened, to `work`, which says how many bytes it has read.
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<(T, usize), SealedError>,
    ) -> Result<T, SealedError> {
        let mut database = lock(&self.database);
        if database.open.is_none() {
            if !database.checked {
                check_files(&self.dir.join(DB_NAME), &self.manifest.files)?;
                database.checked = true;
            }
            database.open = Some(self.open()?);
        }
        let Some(open) = database.open.as_mut() else {
            return Err(SealedError::Damaged("not open".into()));
        };
        open.last_used = Instant::now();
        let (result, read) = work(&open.db)?;
        open.read += read;
        // sled's cache keeps whatever was read, its limit notwithstanding: only a closed database forgets.
        if open.read > DATABASE_READ_MAX {
            database.open = None;
        }
        Ok(result)
    }

    fn open(&self) -> Result<OpenDatabase, SealedError> {
        let original = self.dir.join(DB_NAME);
        let copy = match self.access {
            Access::Owner => None,
            Access::Visitor => Some(copy_to_temporary(&original)?),
        };
        let path = copy.as_ref().map_or(original, |copy| copy.path().to_owned());
        let db = Database::open(&path)?;
        Ok(OpenDatabase {
            db,
            last_used: Instant::now(),
            read: 0,
            _copy: copy,
        })
    }

    /// Closes the database if nobody used it for `idle`.
    pub fn close_idle(&self, idle: Duration) {
        // Whoever holds the lock is using it.
        if let Ok(mut database) = self.database.try_lock()
            && database
                .open
                .as_ref()
                .is_some_and(|open| open.last_used.elapsed() >= idle)
        {
            database.open = None;
        }
    }

    /// Compares every file and every pack with the manifest, whatever was checked before.
    pub fn verify(&self) -> Result<(), SealedError> {
        {
            let mut database = lock(&self.database);
            database.open = None;
            database.checked = false;
        }
        for index in 0..self.manifest.packs.len() {
            self.read(index)?;
        }
        self.close_idle(Duration::ZERO);
        Ok(())
    }
}

/// The segments whose databases may be open, those read last at the end: bounded, since each takes memory.
#[derive(Debug, Default)]
pub(super) struct OpenDatabases(Mutex<VecDeque<Weak<SealedSegment>>>);

impl OpenDatabases {
    /// This one is about to be read: the one read longest ago is closed if too many would be open.
    pub fn touch(&self, segment: &Arc<SealedSegment>) {
        let mut recent = lock(&self.0);
        recent.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(segment)));
        recent.push_back(Arc::downgrade(segment));
        if recent.len() > DATABASES_OPEN_MAX
            && let Some(oldest) = recent.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.close_idle(Duration::ZERO);
        }
    }
}

/// Makes the sealed form of a complete segment beside its journal, and returns its manifest when everything is durable. The
/// journal is left alone.
pub(super) fn seal(segment: &OpenSegment, progress: &mut dyn FnMut() -> bool) -> Result<Manifest, SealedError> {
    let blocks = segment.blocks();
    let mut blocks = blocks.into_iter();
    let next = || -> Result<Option<Block>, SealedError> {
        let Some(block) = blocks.next() else { return Ok(None) };
        read_block(segment, block).map(Some)
    };
    build(&segment.dir, next, progress)
}

fn read_block(segment: &OpenSegment, block: BlockRef) -> Result<Block, SealedError> {
    let bytes = segment
        .read(block)
        .map_err(|error| SealedError::Damaged(error.to_string()))?;
    Block::decode(&bytes).map_err(|error| SealedError::Damaged(error.to_string()))
}

/// What could be saved of a damaged segment: the manifest of what is left, in place; the damaged database is under `aside`.
/// `None` when nothing could be read.
pub(super) fn salvage(damaged: &SealedSegment, aside: &Path) -> Result<Option<Manifest>, SealedError> {
    rewrite(damaged, aside, &mut |event| event)
}

/// Rewrites a sealed segment through `change` (which must keep every Seq), leaving out packs that can't be read. The old
/// database goes to `aside`.
pub(super) fn rewrite(
    segment: &SealedSegment,
    aside: &Path,
    change: &mut dyn FnMut(Event) -> Event,
) -> Result<Option<Manifest>, SealedError> {
    let original = segment.dir.join(DB_NAME);
    lock(&segment.database).open = None;
    let copy = copy_to_temporary_beside(&original, &segment.dir)?;
    let staging = segment.dir.join("rewrite");
    remove_dir(&staging)?;
    super::make_dir(&staging)?;
    let mut kept = false;
    let manifest = {
        // Where even a copy can't be opened, everything in it is lost.
        let db = Database::open(copy.path());
        let mut packs = segment.manifest.packs.iter();
        let next = || -> Result<Option<Block>, SealedError> {
            let Ok(db) = &db else { return Ok(None) };
            for pack in packs.by_ref() {
                let Ok(bytes) = get_pack(db, *pack) else { continue };
                let Ok(block) = Block::decode(&bytes) else { continue };
                kept = true;
                let events = block.events.into_iter().filter_map(Arc::into_inner);
                return Ok(Some(Block {
                    events: events.map(|event| Arc::new(change(event))).collect(),
                }));
            }
            Ok(None)
        };
        build(&staging, next, &mut || true)
    };
    super::make_dir(aside)?;
    if !kept {
        remove_dir(&staging)?;
        return Ok(None);
    }
    let manifest = manifest?;
    // Without its manifest the directory is not a sealed segment, so a crash between these steps must leave one that can be
    // put right: recovery finishes a move that has begun (see `finish_rewrite`).
    std::fs::rename(&original, aside.join(DB_NAME))?;
    framefile::sync_dir(aside)?;
    finish_rewrite(&segment.dir)?;
    Ok(Some(manifest))
}

/// Moves a finished rewrite into its place. Does nothing where there is none, or where it is not finished.
pub(super) fn finish_rewrite(dir: &Path) -> Result<(), SealedError> {
    let staging = dir.join("rewrite");
    if !staging.exists() {
        return Ok(());
    }
    let original = dir.join(DB_NAME);
    if staging.join(MANIFEST_NAME).exists() && !original.exists() {
        std::fs::rename(staging.join(DB_NAME), &original)?;
        framefile::sync_dir(dir)?;
    }
    if staging.join(MANIFEST_NAME).exists() && !staging.join(DB_NAME).exists() {
        if staging.join(SECOND_MANIFEST_NAME).exists() {
            std::fs::rename(staging.join(SECOND_MANIFEST_NAME), dir.join(SECOND_MANIFEST_NAME))?;
            framefile::sync_dir(dir)?;
        }
        std::fs::rename(staging.join(MANIFEST_NAME), dir.join(MANIFEST_NAME))?;
        framefile::sync_dir(dir)?;
    }
    remove_dir(&staging)?;
    Ok(())
}

/// Compares a database's files with what was sealed, before sled sees them.
fn check_files(dir: &Path, sums: &[FileSum]) -> Result<(), SealedError> {
    for expected in sums {
        let path = dir.join(&expected.name);
        let damaged = |why: String| SealedError::Damaged(format!("{}: {why}", path.display()));
        let judge = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => damaged("it is missing".into()),
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                damaged("something else is in its place".into())
            }
            _ if is_bad_sector(&error) => damaged("the disk can't read it".into()),
            _ => error.into(),
        };
        let file = File::open(&path).map_err(judge)?;
        let len = file.metadata()?.len();
        if len != expected.len {
            return Err(damaged(format!("it has {len} bytes instead of {}", expected.len)));
        }
        if sum(file).map_err(judge)? != expected.crc {
            return Err(damaged("its checksum is wrong".into()));
        }
    }
    Ok(())
}

/// What the kernel answers when the disk itself can't read.
fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn copy_to_temporary(dir: &Path) -> io::Result<tempfile::TempDir> {
    let copy = tempfile::Builder::new().prefix("closehook-").tempdir()?;
    copy_files(dir, copy.path())?;
    Ok(copy)
}

fn copy_to_temporary_beside(dir: &Path, beside: &Path) -> io::Result<tempfile::TempDir> {
    let copy = tempfile::Builder::new().prefix("copy-").tempdir_in(beside)?;
    if dir.is_dir() {
        copy_files(dir, copy.path())?;
    }
    Ok(copy)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for name in files_below(from)? {
        let target = to.join(&name);
        if let Some(parent) = target.parent() {
            super::make_dir(parent)?;
        }
        let source = File::open(from.join(&name))?;
        let read_at = |piece: &mut [u8], at| source.read_at(piece, at);
        copy_readable(&read_at, &mut File::create(target)?)?;
    }
    Ok(())
}

/// Copies what the disk still gives; a piece that it can't read becomes zeros, so that what lies behind keeps its place.
fn copy_readable(read_at: &dyn Fn(&mut [u8], u64) -> io::Result<usize>, target: &mut dyn Write) -> io::Result<()> {
    const PIECE: usize = 1 << 12;
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let mut read = read_at(&mut buffer, at);
        if read.as_ref().is_err_and(is_bad_sector) {
            read = read_at(&mut buffer[..PIECE], at);
        }
        let len = match read {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if is_bad_sector(&error) => {
                buffer[..PIECE].fill(0);
                PIECE
            }
            Err(error) => return Err(error),
        };
        target.write_all(&buffer[..len])?;
        at += len as u64;
    }
}

/// Removes a directory and what is in it, if it is there.
pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A time of receipt as the manifest keeps it.
pub(super) fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod copying {
    use super::*;

    #[test]
    fn what_a_disk_can_not_read_becomes_zeros_and_the_rest_is_copied() {
        let original: Vec<u8> = (0..700_000_u32).map(|n| n as u8 | 1).collect();
        let bad = 400_000..400_010;
        let read_at = |piece: &mut [u8], at: u64| {
            let from = (at as usize).min(original.len());
            let to = (from + piece.len()).min(original.len());
            if from < bad.end && bad.start < to {
                return Err(io::Error::from(rustix::io::Errno::IO));
            }
            piece[..to - from].copy_from_slice(&original[from..to]);
            Ok(to - from)
        };
        let mut copy = Vec::new();
        copy_readable(&read_at, &mut copy).unwrap();
        assert_eq!(copy.len(), original.len());
        let zeros: Vec<usize> = (0..copy.len()).filter(|at| copy[*at] != original[*at]).collect();
        assert_eq!(zeros.len(), 4096);
        assert!(zeros.contains(&400_000) && zeros.contains(&400_009));
    }
}
