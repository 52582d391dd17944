//! Backups: a whole data directory as one stream of checksummed frames, and back.
//!
//! ```text
//! head ─ state, gaps ─ files: known keys, dead letters, signature keys ─ segments of blocks ─ digest of all
//! ```
//!
//! A backup is taken while the daemon runs. It is consistent because of its order: the positions of the sinks come first, so
//! that no cursor is beyond what the log, looked at later, holds; so do the marks of what is complete at Close. Dead letters are
//! looked at after the positions that have passed them. Whatever was answered 200 before it began is in it.
//!
//! What is not in it: files that sinks wrote, what was set aside as damaged, the configuration.
//!
//! Memory is bounded by one block and the state, reading as well as writing. A stream that does not end with its digest is
//! refused, and leaves nothing behind.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::deliver::{self, Engine};
use crate::event::Seq;
use crate::framefile::{self, Format, FrameError, StreamReader, StreamWriter};
use crate::log::{self, Gap, LocalLog, OpenError, Piece, Restorer};

/// What a backup is.
const FORMAT: Format = Format {
    magic: *b"CLHKBKUP",
    version: 1,
};

const TAG_HEAD: u32 = 1;
const TAG_STATE: u32 = 2;
const TAG_GAPS: u32 = 3;
const TAG_FILE: u32 = 4;
const TAG_DATA: u32 = 5;
const TAG_SEGMENT: u32 = 6;
const TAG_BLOCK: u32 = 7;
const TAG_END: u32 = 8;

/// Bytes of a file in one frame.
const DATA_LEN: usize = 256 << 10;

/// Values of the state at the most: sinks and replays, of which nobody has so many.
const STATE_VALUES_MAX: usize = 100_000;

/// Small files of the data directory that are replaced as a whole, never changed: signature keys and what is known of Close.
const FILES: [&str; 1] = ["signature_key"];

/// Directories of such files, with what is below them.
const DIRECTORIES: [&str; 2] = ["close", "acme"];

/// Why a backup can't be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The data directory's side failed.
    #[error("{0}")]
    Data(String),
    /// Writing the backup failed, or writing what is restored.
    #[error("{what} can't be written: {source}")]
    Write {
        /// Which file, or what.
        what: String,
        /// What the file system said.
        source: io::Error,
    },
    /// The directory can't take a restored log.
    #[error(transparent)]
    Directory(#[from] OpenError),
    /// It is no backup, of a newer version, or damaged.
    #[error("{error}; nothing was restored")]
    Unusable {
        /// What is wrong, and where.
        error: FrameError,
    },
    /// It ends too early.
    #[error("{0} is cut off: its end is missing, so it was not written or copied completely; nothing was restored")]
    CutOff(PathBuf),
    /// Each frame is whole, and together they are not what was written.
    #[error("{path} is not what was written as a backup: {why}; nothing was restored")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What stands at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// closehook's version.
    pub version: String,
    /// When the backup began.
    pub made_at: Timestamp,
    /// Which log it is of.
    pub epoch: String,
    /// The last Seq that was given out when it began.
    pub last: Seq,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When it began.
    pub made_at: Timestamp,
    /// Events.
    pub events: u64,
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// Sinks with a position.
    pub sinks: u64,
    /// Bytes of the backup.
    pub bytes: u64,
    /// Ranges of events (inclusive) that damage has taken from the log, and so from the backup.
    pub damaged: Vec<(Seq, Seq)>,
}

/// What stands at the end.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    events: u64,
    first: Seq,
    last: Seq,
    damaged: Vec<(Seq, Seq)>,
    /// SHA-256 of all tags and payloads before it, as hex.
    sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Segment {
    first: Seq,
    sealed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileHead {
    path: PathBuf,
}

/// Digest over frames, so that none of them can be missing.
#[derive(Debug, Default)]
struct Frames(Sha256);

impl Frames {
    fn add(&mut self, tag: u32, parts: &[&[u8]]) {
        self.0.update(tag.to_le_bytes());
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.0.update((len as u64).to_le_bytes());
        for part in parts {
            self.0.update(part);
        }
    }

    fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

struct Output<W: Write> {
    frames: StreamWriter<Counted<W>>,
    digest: Frames,
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Output<W> {
    fn add(&mut self, tag: u32, parts: &[&[u8]]) -> io::Result<()> {
        self.digest.add(tag, parts);
        self.frames.append(tag, parts)
    }

    fn json(&mut self, tag: u32, value: &impl Serialize) -> io::Result<()> {
        self.add(tag, &[&serde_json::to_vec(value)?])
    }

    /// A file of the data directory as it is now; nothing where it is gone.
    fn file_at(&mut self, dir: &Path, path: &Path) -> io::Result<()> {
        match File::open(dir.join(path)) {
            Ok(file) => self.file(path, file, u64::MAX),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A file's content; `len` bounds one that grows.
    fn file(&mut self, path: &Path, content: impl Read, len: u64) -> io::Result<()> {
        self.json(TAG_FILE, &FileHead { path: path.to_owned() })?;
        let mut content = content.take(len);
        let mut piece = Vec::with_capacity(DATA_LEN);
        loop {
            piece.clear();
            content.by_ref().take(DATA_LEN as u64).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(());
            }
            self.add(TAG_DATA, &[&piece])?;
        }
    }
}

/// About how long a backup will be, in bytes: for people who wait.
pub fn estimate(log: &LocalLog) -> u64 {
    // Packs lie in sled with twice their length.
    log.stats().disk_bytes / 2
}

/// Writes a backup of the data directory. Blocking; an error leaves an unfinished backup, which is refused as such.
pub fn write(dir: &Path, log: &LocalLog, engine: &Engine, out: impl Write) -> Result<Summary, BackupError> {
    let data = |error: io::Error| BackupError::Data(error.to_string());
    // The order is what makes it consistent: see the module's head.
    let others = other_files(dir).map_err(data)?;
    let picture = engine.picture().map_err(data)?;
    let last = *log.head().borrow();
    let head = Head {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: Timestamp::now(),
        epoch: log.epoch().to_owned(),
        last,
    };
    let keys = log.key_files().map_err(data)?;
    let sinks = picture.state.iter().filter(|(key, _)| key.starts_with("sink/")).count() as u64;

    let written = |source| BackupError::Write {
        what: "the backup".into(),
        source,
    };
    let out = Counted { inner: out, bytes: 0 };
    let mut out = Output {
        frames: StreamWriter::new(out, FORMAT).map_err(written)?,
        digest: Frames::default(),
    };
    out.json(TAG_HEAD, &head).map_err(written)?;
    for (key, value) in &picture.state {
        let key_len = (key.len() as u32).to_le_bytes();
        out.add(TAG_STATE, &[&key_len, key.as_bytes(), value])
            .map_err(written)?;
    }
    out.json(TAG_GAPS, &log.gaps()).map_err(written)?;
    for path in keys.paths() {
        out.file_at(dir, path).map_err(written)?;
    }
    for (path, content) in &others {
        out.file(path, content.as_slice(), u64::MAX).map_err(written)?;
    }
    for (path, file, len) in picture.dead {
        out.file(&path, file, len).map_err(written)?;
    }
    let mut each = |piece: Piece<'_>| match piece {
        Piece::Segment { first, sealed } => {
            let keys_of_it = log::key_file(first);
            // Sealed since the files of keys were listed: its keys are nowhere else.
            if sealed && !keys.cover(first) {
                out.file_at(dir, &keys_of_it)?;
            }
            out.json(TAG_SEGMENT, &Segment { first, sealed })
        }
        Piece::Block(block) => out.add(TAG_BLOCK, &[block]),
    };
    let taken = log
        .take(last, &mut each)
        .map_err(|error| BackupError::Data(error.to_string()))?;
    let end = End {
        events: taken.events,
        first: taken.first,
        last: taken.last,
        damaged: taken.damaged.clone(),
        sha256: std::mem::take(&mut out.digest).hex(),
    };
    out.json(TAG_END, &end).map_err(written)?;
    let out = out.frames.finish().map_err(written)?;
    Ok(Summary {
        made_at: head.made_at,
        events: taken.events,
        first: taken.first,
        last: taken.last,
        sinks,
        bytes: out.bytes,
        damaged: taken.damaged,
    })
}

/// Small files of the data directory, relative to it, that are neither the log's nor the engine's, with their content.
fn other_files(dir: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    let mut pending: Vec<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    while let Some(directory) = pending.pop() {
        let listing = match std::fs::read_dir(dir.join(&directory)) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in listing {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            // What `replace_file` is about to rename.
            let temporary = name.to_string_lossy().ends_with(".tmp");
            if kind.is_dir() {
                pending.push(directory.join(name));
            } else if kind.is_file() && !temporary {
                paths.push(directory.join(name));
            }
        }
    }
    let mut found = Vec::new();
    for path in paths {
        match std::fs::read(dir.join(&path)) {
            Ok(content) => found.push((path, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether a backup may bring this file: below the data directory, at a place where it makes sense.
fn may_bring(path: &Path) -> bool {
    let plain = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let known = FILES.iter().any(|file| path == Path::new(file))
        || DIRECTORIES
            .iter()
            .any(|directory| path.starts_with(directory) && path != Path::new(directory));
    plain && (known || deliver::is_dead_letters(path) || Restorer::is_key_file(path))
}

/// What is done with a backup's parts, front to back.
trait Taker {
    fn state(&mut self, key: String, value: Vec<u8>) -> Result<(), BackupError>;
    fn gaps(&mut self, gaps: Vec<Gap>);
    fn file(&mut self, path: &Path) -> Result<(), BackupError>;
    fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError>;
    fn segment(&mut self, first: Seq, sealed: bool) -> Result<(), BackupError>;
    fn block(&mut self, block: &[u8]) -> Result<(), BackupError>;
}

/// Reads a backup to its end, checking everything about it that a stream can tell; `name` is what errors call it.
fn read(input: impl Read, name: &Path, taker: &mut dyn Taker) -> Result<(Head, Summary), BackupError> {
    let unusable = |error| BackupError::Unusable { error };
    let wrong = |why: &str| BackupError::Wrong {
        path: name.to_owned(),
        why: why.to_owned(),
    };
    let json_wrong = |_| wrong("a part of it can't be read");
    let mut bytes = 0;
    let input = io::BufReader::with_capacity(1 << 18, input);
    let mut frames = StreamReader::new(input, name, FORMAT).map_err(unusable)?;
    let mut digest = Frames::default();
    let mut head: Option<Head> = None;
    let mut in_file = false;
    let mut sinks = 0;
    loop {
        let Some((tag, payload)) = frames.next_frame().map_err(unusable)? else {
            return Err(BackupError::CutOff(name.to_owned()));
        };
        bytes += framefile::FRAME_OVERHEAD + payload.len() as u64;
        if tag == TAG_END {
            let end: End = serde_json::from_slice(payload).map_err(json_wrong)?;
            if end.sha256 != digest.hex() {
                return Err(wrong("its checksum does not fit its parts"));
            }
            let head = head.ok_or_else(|| wrong("it has no beginning"))?;
            let summary = Summary {
                made_at: head.made_at,
                events: end.events,
                first: end.first,
                last: end.last,
                sinks,
                bytes: bytes + framefile::HEADER_LEN,
                damaged: end.damaged,
            };
            return Ok((head, summary));
        }
        digest.add(tag, &[payload]);
        if head.is_none() && tag != TAG_HEAD {
            return Err(wrong("it has no beginning"));
        }
        in_file = in_file && tag == TAG_DATA || tag == TAG_FILE;
        match tag {
            TAG_HEAD => head = Some(serde_json::from_slice(payload).map_err(json_wrong)?),
            TAG_STATE => {
                let (key, value) = split(payload).ok_or_else(|| wrong("a part of it can't be read"))?;
                sinks += u64::from(key.starts_with("sink/"));
                taker.state(key, value.to_vec())?;
            }
            TAG_GAPS => taker.gaps(serde_json::from_slice(payload).map_err(json_wrong)?),
            TAG_FILE => {
                let file: FileHead = serde_json::from_slice(payload).map_err(json_wrong)?;
                if !may_bring(&file.path) {
                    return Err(wrong("it names a file that no backup holds"));
                }
                taker.file(&file.path)?;
            }
            TAG_DATA if in_file => taker.data(payload)?,
            TAG_SEGMENT => {
                let segment: Segment = serde_json::from_slice(payload).map_err(json_wrong)?;
                taker.segment(segment.first, segment.sealed)?;
            }
            TAG_BLOCK => taker.block(payload)?,
            _ => return Err(wrong("it has a part that this version does not know")),
        }
    }
}

fn split(payload: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = payload.split_first_chunk::<4>()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((String::from_utf8(key.to_vec()).ok()?, value))
}

/// Takes nothing: reading is checking.
struct Check;

impl Taker for Check {
    fn state(&mut self, _: String, _: Vec<u8>) -> Result<(), BackupError> {
        Ok(())
    }

    fn gaps(&mut self, _: Vec<Gap>) {}

    fn file(&mut self, _: &Path) -> Result<(), BackupError> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> Result<(), BackupError> {
        Ok(())
    }

    fn segment(&mut self, _: Seq, _: bool) -> Result<(), BackupError> {
        Ok(())
    }

    fn block(&mut self, _: &[u8]) -> Result<(), BackupError> {
        Ok(())
    }
}

/// Reads a whole backup and says what is in it; writes nothing. Blocking.
pub fn check(input: impl Read, name: &Path) -> Result<Summary, BackupError> {
    read(input, name, &mut Check).map(|(_, summary)| summary)
}

/// Puts parts into a data directory.
struct Restore {
    dir: PathBuf,
    log: Restorer,
    state: Vec<(String, Vec<u8>)>,
    gaps: Vec<Gap>,
    open: Option<(PathBuf, File)>,
}

impl Restore {
    fn run(&mut self, input: impl Read, name: &Path) -> Result<(Summary, Seq), BackupError> {
        let (head, summary) = read(input, name, self)?;
        self.close_file()?;
        let taken = self.log.taken();
        if (taken.events, taken.last) != (summary.events, summary.last) {
            return Err(BackupError::Wrong {
                path: name.to_owned(),
                why: "it holds other events than it says".into(),
            });
        }
        deliver::restore_state(&self.dir, std::mem::take(&mut self.state))
            .map_err(|error| BackupError::Data(error.to_string()))?;
        let next = self
            .log
            .finish(head.last, std::mem::take(&mut self.gaps))
            .map_err(|source| write_error(&self.dir, source))?;
        Ok((summary, next))
    }

    fn close_file(&mut self) -> Result<(), BackupError> {
        let Some((path, file)) = self.open.take() else {
            return Ok(());
        };
        let full = self.dir.join(&path);
        let close = || -> io::Result<()> {
            file.sync_all()?;
            framefile::sync_parent(&full)?;
            if Restorer::is_key_file(&path) {
                Restorer::check_key_file(&full)?;
            }
            Ok(())
        };
        close().map_err(|source| write_error(&full, source))
    }
}

fn write_error(what: &Path, source: io::Error) -> BackupError {
    BackupError::Write {
        what: what.display().to_string(),
        source,
    }
}

impl Taker for Restore {
    fn state(&mut self, key: String, value: Vec<u8>) -> Result<(), BackupError> {
        if self.state.len() >= STATE_VALUES_MAX {
            return Err(BackupError::Data(
                "the backup holds more state than any daemon has".into(),
            ));
        }
        self.state.push((key, value));
        Ok(())
    }

    fn gaps(&mut self, gaps: Vec<Gap>) {
        self.gaps = gaps;
    }

    fn file(&mut self, path: &Path) -> Result<(), BackupError> {
        use std::os::unix::fs::OpenOptionsExt;
        self.close_file()?;
        let full = self.dir.join(path);
        let make = || -> io::Result<File> {
            if let Some(parent) = full.parent() {
                log::make_dir(parent)?;
            }
            // Each directory's name stands in the one above it.
            for parent in path.ancestors().skip(2) {
                framefile::sync_dir(&self.dir.join(parent))?;
            }
            File::options().write(true).create_new(true).mode(0o600).open(&full)
        };
        let file = make().map_err(|source| write_error(&full, source))?;
        self.open = Some((path.to_owned(), file));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        match &mut self.open {
            Some((path, file)) => file.write_all(bytes).map_err(|source| write_error(path, source)),
            None => Ok(()),
        }
    }

    fn segment(&mut self, first: Seq, sealed: bool) -> Result<(), BackupError> {
        self.close_file()?;
        self.log
            .segment(first, sealed)
            .map_err(|source| write_error(&self.dir.join("log"), source))
    }

    fn block(&mut self, block: &[u8]) -> Result<(), BackupError> {
        self.log
            .block(block)
            .map_err(|source| write_error(&self.dir.join("log"), source))
    }
}

/// Restores a backup into an empty (or new) data directory; gives what was restored and the Seq of the next event. Nothing is
/// left behind by an error. Blocking.
pub fn restore(input: impl Read, name: &Path, dir: &Path) -> Result<(Summary, Seq), BackupError> {
    let mut restore = Restore {
        dir: dir.to_owned(),
        log: Restorer::new(dir)?,
        state: Vec::new(),
        gaps: Vec::new(),
        open: None,
    };
    let restored = restore.run(input, name);
    if restored.is_err()
        && let Err(left) = restore.log.abandon()
    {
        tracing::error!(dir = %dir.display(), error = %left, "what was restored so far could not be removed");
    }
    restored
}
