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

use std::collections::VecDeque;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::block::{Block, Encoder};
use super::journal::{self, BlockRef, OpenSegment};
use crate::event::{Event, Seq};
use crate::framefile::{self, Format, FrameFile};
use crate::sync::lock;

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

/// A pack is closed when it holds this much before compression: large enough to compress well, small enough that reading
/// one event out of it takes about a millisecond.
const PACK_LEN: usize = 1 << 20;

/// zstd level of packs: they are written once, in the background.
const PACK_LEVEL: i32 = 3;

/// sled keeps no value above this (a larger pack is split).
const CHUNK_LEN: usize = 512 << 10;

/// A database is opened anew when so much was read from it.
const DATABASE_READ_MAX: usize = 8 << 20;

/// Databases open at a time.
const DATABASES_OPEN_MAX: usize = 2;

/// A database that was read so often without coming to rest never will.
const SETTLING_MAX: u32 = 12;

/// How long opening waits for another handle on the same database to be closed.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

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

/// One file of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileSum {
    /// Relative to the database's directory.
    pub name: String,
    pub len: u64,
    pub crc: u32,
}

/// Why a sealed segment (or a part of it) can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealedError {
    /// The file system said no; worth another try.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is there is not what was sealed.
    #[error("{0}")]
    Damaged(String),
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
    database: Mutex<Database>,
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
struct Database {
    open: Option<OpenDatabase>,
    /// The files were compared with the manifest since this process started.
    checked: bool,
}

#[derive(Debug)]
struct OpenDatabase {
    db: sled::Db,
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
        let bytes = get_pack(&open.db, pack)?;
        open.read += bytes.len();
        // sled's cache keeps whatever was read, its limit notwithstanding: only a closed database forgets.
        if open.read > DATABASE_READ_MAX {
            database.open = None;
        }
        Ok(bytes)
    }

    fn open(&self) -> Result<OpenDatabase, SealedError> {
        let original = self.dir.join(DB_NAME);
        let copy = match self.access {
            Access::Owner => None,
            Access::Visitor => Some(copy_to_temporary(&original)?),
        };
        let path = copy.as_ref().map_or(original, |copy| copy.path().to_owned());
        let db = open_db(&path, self.manifest.disk_bytes())?;
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
    let expected_bytes: u64 = blocks.iter().map(|block| u64::from(block.head.raw_len) / 4).sum();
    let mut blocks = blocks.into_iter();
    let next = || -> Result<Option<Block>, SealedError> {
        let Some(block) = blocks.next() else { return Ok(None) };
        read_block(segment, block).map(Some)
    };
    build(&segment.dir, expected_bytes, next, progress)
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
        let db = open_db(copy.path(), segment.manifest.disk_bytes());
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
        build(&staging, segment.manifest.disk_bytes(), next, &mut || true)
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

/// Builds a database out of blocks in `dir`, checks it, syncs it and writes its manifest. `progress` answers `false` to stop.
fn build(
    dir: &Path,
    expected_bytes: u64,
    mut next: impl FnMut() -> Result<Option<Block>, SealedError>,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Manifest, SealedError> {
    let path = dir.join(DB_NAME);
    remove_dir(&path)?;
    let mut manifest = Manifest {
        first: Seq::ZERO,
        last: Seq::ZERO,
        events: 0,
        raw_bytes: 0,
        oldest_us: i64::MAX,
        newest_us: i64::MIN,
        packs: Vec::new(),
        files: Vec::new(),
    };
    let mut encoder = Encoder::new(PACK_LEVEL)?;
    let db = open_db(&path, expected_bytes)?;
    while let Some(block) = next()? {
        for event in &block.events {
            let follows = event.seq == manifest.last.next() || manifest.events == 0;
            if encoder.raw_len() >= PACK_LEN || (!follows && !encoder.is_empty()) {
                put_pack(&db, &mut encoder, &mut manifest)?;
            }
            if manifest.events == 0 {
                manifest.first = event.seq;
            }
            manifest.last = event.seq;
            manifest.events += 1;
            let received_us = event.received_at.as_microsecond();
            manifest.oldest_us = manifest.oldest_us.min(received_us);
            manifest.newest_us = manifest.newest_us.max(received_us);
            // Identities are in the key file; the records of a pack need none.
            encoder.push(event, &[]);
        }
        go_on(progress)?;
    }
    put_pack(&db, &mut encoder, &mut manifest)?;
    drop(db);
    manifest.files = settle(&path, expected_bytes, &manifest.packs, progress)?;
    framefile::sync_dir(dir)?;
    manifest.store(dir)?;
    Ok(manifest)
}

/// Whether the work is still wanted; an error that is worth another try if not.
pub(super) fn go_on(progress: &mut dyn FnMut() -> bool) -> Result<(), SealedError> {
    if progress() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the log is closing").into())
}

/// Reads everything back, as often as it takes until that changes no byte of any file any more; gives the files then. The first
/// openings of a database write a snapshot each, and a large one needs more of them than a small one.
fn settle(
    path: &Path,
    expected_bytes: u64,
    packs: &[Pack],
    progress: &mut dyn FnMut() -> bool,
) -> Result<Vec<FileSum>, SealedError> {
    let mut before = Vec::new();
    for _ in 0..SETTLING_MAX {
        let db = open_db(path, expected_bytes)?;
        for pack in packs {
            get_pack(&db, *pack)?;
            go_on(progress)?;
        }
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

fn put_pack(db: &sled::Db, encoder: &mut Encoder, manifest: &mut Manifest) -> Result<(), SealedError> {
    manifest.raw_bytes += encoder.raw_len() as u64;
    let bytes = encoder.finish()?;
    if bytes.is_empty() {
        return Ok(());
    }
    let head = super::block::Head::parse(bytes).map_err(|error| SealedError::Damaged(error.to_string()))?;
    let mut chunks = 0_u16;
    for chunk in bytes.chunks(CHUNK_LEN) {
        db.insert(chunk_key(head.first, chunks), chunk).map_err(sled_error)?;
        chunks += 1;
    }
    // Without it sled rewrites a leaf's whole content again and again.
    db.flush().map_err(sled_error)?;
    manifest.packs.push(Pack {
        first: head.first,
        count: head.count,
        chunks,
        crc: crc32c::crc32c(bytes),
        newest_us: head.newest_us,
    });
    Ok(())
}

fn get_pack(db: &sled::Db, pack: Pack) -> Result<Vec<u8>, SealedError> {
    let damaged = |why: &str| SealedError::Damaged(format!("events {} to {}: {why}", pack.first, pack.last()));
    let mut bytes = Vec::new();
    for chunk in 0..pack.chunks {
        // sled panics on some kinds of damage.
        let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| db.get(chunk_key(pack.first, chunk))))
            .map_err(|_| damaged("sled gave up on them"))?;
        match value {
            Ok(Some(value)) => bytes.extend_from_slice(&value),
            Ok(None) => return Err(damaged("they are not in the database")),
            Err(error) => return Err(damaged(&error.to_string())),
        }
    }
    if crc32c::crc32c(&bytes) != pack.crc {
        return Err(damaged("their checksum is wrong"));
    }
    Ok(bytes)
}

fn chunk_key(first: Seq, chunk: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&first.0.to_be_bytes());
    key[8..].copy_from_slice(&chunk.to_be_bytes());
    key
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
fn wait_until_closed(path: &Path) -> Result<(), SealedError> {
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
fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
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

fn sum(mut file: File) -> io::Result<u32> {
    let mut buffer = vec![0; 1 << 18];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            read => crc = crc32c::crc32c_append(crc, &buffer[..read]),
        }
    }
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
mod tests {
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
