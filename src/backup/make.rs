//! Making a backup of a running data directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::format::{
    BackupError, DATA_LEN, DIRECTORIES, End, FILES, FORMAT, FileHead, Frames, Head, Segment, Summary, TAG_BLOCK,
    TAG_DATA, TAG_END, TAG_FILE, TAG_GAPS, TAG_HEAD, TAG_SEGMENT, TAG_STATE,
};
use crate::deliver::{Engine, Picture};
use crate::event::Seq;
use crate::framefile::StreamWriter;
use crate::log::{self, KeyFiles, LocalLog, Log as _, Piece, Taken};

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

    /// All that comes before the events.
    fn beside_the_events(
        &mut self,
        head: &Head,
        dir: &Path,
        log: &LocalLog,
        keys: &KeyFiles,
        others: &[(PathBuf, Vec<u8>)],
        picture: Picture,
    ) -> io::Result<()> {
        self.json(TAG_HEAD, head)?;
        for (key, value) in &picture.state {
            let key_len = (key.len() as u32).to_le_bytes();
            self.add(TAG_STATE, &[&key_len, key.as_bytes(), value])?;
        }
        self.json(TAG_GAPS, &log.gaps())?;
        for path in keys.paths() {
            self.file_at(dir, path)?;
        }
        for (path, content) in others {
            self.file(path, content.as_slice(), u64::MAX)?;
        }
        for (path, file, len) in picture.dead {
            self.file(&path, file, len)?;
        }
        Ok(())
    }

    /// The events up to a Seq, segment by segment.
    fn events(&mut self, dir: &Path, log: &LocalLog, keys: &KeyFiles, upto: Seq) -> Result<Taken, BackupError> {
        let mut each = |piece: Piece<'_>| match piece {
            Piece::Segment { first, sealed } => {
                let keys_of_it = log::key_file(first);
                // Sealed since the files of keys were listed: its keys are nowhere else.
                if sealed && !keys.cover(first) && !keys.leave_out(first) {
                    self.file_at(dir, &keys_of_it)?;
                }
                self.json(TAG_SEGMENT, &Segment { first, sealed })
            }
            Piece::Block(block) => self.add(TAG_BLOCK, &[block]),
        };
        let taken = log.take(upto, &mut each);
        taken.map_err(|error| BackupError::Data(error.to_string()))
    }
}

/// About how long a backup will be, in bytes: for people who wait.
pub fn estimate(log: &LocalLog) -> u64 {
    // Packs lie in databases with twice their length.
    log.stats().disk_bytes / 2
}

/// Writes a backup of the data directory. Blocking, on a thread of the runtime's for that; an error leaves an unfinished backup, which is refused as such.
pub fn write(dir: &Path, log: &LocalLog, engine: &Engine, out: impl Write) -> Result<Summary, BackupError> {
    let data = |error: io::Error| BackupError::Data(error.to_string());
    let written = |source| BackupError::Write {
        what: "the backup".into(),
        source,
    };
    // The order is what makes it consistent: see the module's head.
    let others = other_files(dir).map_err(data)?;
    let mut picture = tokio::runtime::Handle::current()
        .block_on(engine.picture())
        .map_err(data)?;
    let damaged_letters = std::mem::take(&mut picture.damaged);
    let last = *log.head().borrow();
    let head = Head {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: Timestamp::now(),
        id: log.id().to_owned(),
        epoch: log.epoch().to_owned(),
        last,
    };
    // Before they are listed: what is saved in between is there.
    let mut damaged_keys = log.damaged_keys();
    let keys = log.key_files().map_err(data)?;
    damaged_keys.extend_from_slice(keys.damaged());
    let sinks = picture.state.iter().filter(|(key, _)| key.starts_with("sink/")).count() as u64;

    let out = Counted { inner: out, bytes: 0 };
    let mut out = Output {
        frames: StreamWriter::new(out, FORMAT).map_err(written)?,
        digest: Frames::default(),
    };
    out.beside_the_events(&head, dir, log, &keys, &others, picture)
        .map_err(written)?;
    let taken = out.events(dir, log, &keys, last)?;
    let unrepaired = unrepaired(log, !taken.damaged.is_empty() || !damaged_keys.is_empty());
    let end = End {
        events: taken.events,
        first: taken.first,
        last: taken.last,
        damaged: taken.damaged.clone(),
        expired: taken.expired.clone(),
        damaged_keys: damaged_keys.clone(),
        damaged_letters: damaged_letters.clone(),
        unrepaired: unrepaired.clone(),
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
        expired: taken.expired,
        damaged_keys,
        damaged_letters,
        unrepaired,
    })
}

/// What a start would put right, where nobody has: a backup that is made without a daemon leaves everything as it is. `lacks_some`: what was read
/// for the backup is damaged.
fn unrepaired(log: &LocalLog, lacks_some: bool) -> Vec<String> {
    let Some(mut found) = log.unrepaired() else {
        return Vec::new();
    };
    if lacks_some || !found.is_empty() {
        let advice = "no daemon has put right yet what is damaged, and what it would save of that is not in the backup: start `closehook serve` \
                      once, and back up again";
        found.push(advice.into());
    }
    found
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
        match crate::files::read(&dir.join(&path)) {
            Ok(content) => found.push((path, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
