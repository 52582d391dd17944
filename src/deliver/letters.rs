//! Dead letters: deliveries that were given up.
//!
//! A letter is a reference: it says which event, why and when, and the event is read from the log. Only when the log is about to drop
//! the event is it copied, many in one compressed block with one sync ([`Letters::keep_copies`]). So dead letters pin nothing in the log
//! and cost little while it has them.
//!
//! One file of frames per sink, `dead/<sink>`. Adding returns when the letters are durable, and only then may the sink's mark pass
//! their events (invariant I4). What is kept is bounded by the sink's `dead_max`: the oldest go. In memory a letter costs its Seq and
//! its places in the file.
//!
//! Files of the format before this one, in which each letter has a copy of its event, are rewritten when they are opened for writing.

mod block;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::Deserialize;

use super::DeadLetter;
use crate::event::{Event, Seq, SignatureHeaders, Source};
use crate::framefile::{self, Format, Frame, FrameError, FrameFile, FrameReader};
use crate::sync::lock;
use block::{append_copies, events_in, split_copies};

const FORMAT: Format = Format {
    magic: *b"CLHKDEAD",
    version: 2,
};

/// A letter with a copy of its event: Seq, length of the JSON, JSON, body. Only in files of version 1.
const TAG_WITH_COPY: u32 = 1;
/// Letters that went: their Seqs.
const TAG_REMOVE: u32 = 2;
/// A letter: Seq, JSON.
const TAG_LETTER: u32 = 3;
/// Copies of events: their number, their Seqs, and the block of [`pack`].
const TAG_COPIES: u32 = 4;

/// A file is rewritten when it is larger than this and mostly removed letters.
const COMPACT_LEN: u64 = 1 << 20;

/// Bytes of bodies in one block, roughly.
const BLOCK_BYTES: usize = 256 << 10;

/// The dead letters of one sink. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Letters {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` until the first letter, so that sinks without any leave no file.
    file: Option<FrameFile>,
    /// For letters that are in the file; `None` while there is no file.
    reader: Option<FrameReader>,
    index: BTreeMap<Seq, Place>,
    /// Blocks of copies, by where they are: how many of their events are still dead letters, and their length.
    blocks: BTreeMap<u64, (usize, u64)>,
    /// Bytes of letters and of blocks that still count.
    live_bytes: u64,
}

/// Where a letter is in the file.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    len: u64,
    /// The block with the copy of its event. In a file of version 1 the letter itself.
    copy: Option<u64>,
}

/// A letter of version 1.
#[derive(Debug, Deserialize)]
struct OldRecord {
    letter: DeadLetter,
    received_at: Timestamp,
    source: Source,
    signature: Option<SignatureHeaders>,
}

impl Letters {
    /// Opens a sink's letters; with `read_only` nothing is written, not even to cut off a torn tail.
    pub fn open(dir: &Path, sink: &str, read_only: bool) -> Result<Letters, FrameError> {
        // Sink names are letters, digits, '-', '_' and '.', and do not begin with a dot.
        let mut inner = Inner::empty(dir.join(sink));
        if inner.path.exists() {
            let path = inner.path.clone();
            match inner.load(read_only) {
                Ok(()) => {}
                // The sink goes on without them: what it has to deliver matters more than what it had to give up.
                Err(FrameError::Alien(_)) => {
                    let aside = framefile::beside(&path, ".damaged");
                    tracing::error!(
                        sink,
                        aside = %aside.display(),
                        "the file of dead letters is damaged at its beginning; it is set aside and its letters are not shown"
                    );
                    if !read_only {
                        std::fs::rename(&path, &aside).map_err(|source| FrameError::Io { path, source })?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Letters {
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// Adds letters durably (replacing those with the same Seq; a copy of the event stays). Blocking.
    pub fn add(&self, letters: &[DeadLetter]) -> Result<(), FrameError> {
        let mut inner = self.lock();
        let mut added = Vec::with_capacity(letters.len());
        for letter in letters {
            let json = serde_json::to_vec(letter).unwrap_or_default();
            let offset = inner
                .file()?
                .append(TAG_LETTER, &[&letter.seq.0.to_le_bytes(), &json])?;
            added.push((letter.seq, offset, json.len() as u64 + 8));
        }
        inner.file()?.sync()?;
        for (seq, offset, len) in added {
            inner.note_letter(seq, offset, len);
        }
        Ok(())
    }

    /// Removes letters durably, with one sync; gives how many there were. Blocking.
    pub fn remove(&self, seqs: &[Seq]) -> Result<u64, FrameError> {
        let mut inner = self.lock();
        let present: Vec<Seq> = seqs
            .iter()
            .copied()
            .filter(|seq| inner.index.contains_key(seq))
            .collect();
        if present.is_empty() {
            return Ok(0);
        }
        let bytes: Vec<u8> = present.iter().flat_map(|seq| seq.0.to_le_bytes()).collect();
        inner.file()?.append(TAG_REMOVE, &[&bytes])?;
        inner.file()?.sync()?;
        let removed = present.iter().filter(|seq| inner.note_removed(**seq)).count();
        // They are removed, whether or not their space can be given back now.
        if let Err(error) = inner.compact() {
            tracing::warn!(%error, "a file of dead letters could not be made smaller; this is tried again");
        }
        Ok(removed as u64)
    }

    /// Removes all of them with their file, and one that was set aside as damaged; gives how many there were. Blocking.
    pub fn destroy(&self) -> Result<u64, FrameError> {
        let mut inner = self.lock();
        let path = inner.path.clone();
        for path in [framefile::beside(&path, ".damaged"), path.clone()] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FrameError::Io { path, source });
                }
                _ => {}
            }
        }
        let count = inner.index.len() as u64;
        *inner = Inner::empty(path.clone());
        match framefile::sync_parent(&path) {
            // There never was a letter of any sink.
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(count),
            synced => synced.map(|()| count).map_err(|source| FrameError::Io { path, source }),
        }
    }

    /// The oldest letters that have to go so that the rest is at most so large.
    pub fn beyond(&self, max_bytes: u64) -> Vec<Seq> {
        let inner = self.lock();
        let mut left = inner.live_bytes;
        let mut blocks: BTreeMap<u64, usize> = BTreeMap::new();
        let mut seqs = Vec::new();
        for (seq, place) in &inner.index {
            if left <= max_bytes {
                break;
            }
            left -= place.len;
            if let Some((block, (live, len))) = place.copy.and_then(|at| Some((at, *inner.blocks.get(&at)?))) {
                let gone = blocks.entry(block).or_default();
                *gone += 1;
                if *gone == live {
                    left -= len;
                }
            }
            seqs.push(*seq);
        }
        seqs
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().index.len()
    }

    /// Whether there is a letter for the event.
    pub fn has(&self, seq: Seq) -> bool {
        self.lock().index.contains_key(&seq)
    }

    /// The Seqs from `from` on, at most `max`.
    pub fn seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.lock().index.range(from..).take(max).map(|(seq, _)| *seq).collect()
    }

    /// The Seqs before `before` of which there is no copy, at most `max`.
    pub fn without_copy(&self, from: Seq, before: Seq, max: usize) -> Vec<Seq> {
        let inner = self.lock();
        let bare = inner
            .index
            .range(from.min(before)..before)
            .filter(|(_, place)| place.copy.is_none());
        bare.map(|(seq, _)| *seq).take(max).collect()
    }

    /// One letter; `None` where there is none. Blocking.
    pub fn get(&self, seq: Seq) -> Result<Option<DeadLetter>, FrameError> {
        let inner = self.lock();
        let (Some(place), Some(reader)) = (inner.index.get(&seq), &inner.reader) else {
            return Ok(None);
        };
        let (tag, payload) = reader.read(place.offset)?;
        Ok(letter_in(tag, &payload))
    }

    /// The copy of a letter's event; `None` where there is none. Blocking.
    pub fn copy(&self, seq: Seq) -> Result<Option<Arc<Event>>, FrameError> {
        let inner = self.lock();
        let at = inner.index.get(&seq).and_then(|place| place.copy);
        let (Some(at), Some(reader)) = (at, &inner.reader) else {
            return Ok(None);
        };
        let (tag, payload) = reader.read(at)?;
        let mut events = events_in(tag, &payload).into_iter();
        Ok(events.find(|event| event.seq == seq).map(Arc::new))
    }

    /// Keeps copies of events durably, with one sync; of those that are no letters nothing is kept. Blocking.
    pub fn keep_copies(&self, events: &[Arc<Event>]) -> Result<(), FrameError> {
        let mut inner = self.lock();
        let mut kept = Vec::new();
        let mut rest: &[Arc<Event>] = events;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |event: &&Arc<Event>| {
                let fits = bytes < BLOCK_BYTES;
                bytes += event.body.len();
                fits
            };
            let count = rest.iter().take_while(fits).count();
            let (block, after) = rest.split_at(count);
            rest = after;
            let block: Vec<&Event> = block
                .iter()
                .map(Arc::as_ref)
                .filter(|event| inner.index.contains_key(&event.seq))
                .collect();
            if !block.is_empty() {
                let (offset, len) = append_copies(inner.file()?, &block)?;
                kept.push((offset, len, block.iter().map(|event| event.seq).collect::<Vec<_>>()));
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        inner.file()?.sync()?;
        for (offset, len, seqs) in kept {
            inner.note_copies(offset, len, &seqs);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// Without a letter.
    fn empty(path: PathBuf) -> Inner {
        Inner {
            path,
            file: None,
            reader: None,
            index: BTreeMap::new(),
            blocks: BTreeMap::new(),
            live_bytes: 0,
        }
    }

    fn load(&mut self, read_only: bool) -> Result<(), FrameError> {
        let path = self.path.clone();
        let each = |frame: Frame<'_>| {
            let (offset, len) = (frame.offset, frame.payload.len() as u64);
            match frame.tag {
                TAG_LETTER => {
                    if let Some(seq) = seq_of(frame.payload) {
                        self.note_letter(seq, offset, len);
                    }
                }
                TAG_WITH_COPY => {
                    if let Some(seq) = seq_of(frame.payload) {
                        self.note_letter(seq, offset, len);
                        self.note_copies(offset, 0, &[seq]);
                    }
                }
                TAG_REMOVE => {
                    for seq in frame.payload.chunks_exact(8).filter_map(seq_of) {
                        self.note_removed(seq);
                    }
                }
                TAG_COPIES => {
                    if let Some((seqs, _)) = split_copies(frame.payload) {
                        self.note_copies(offset, len, &seqs);
                    }
                }
                _ => {}
            }
        };
        let (file, scan) = if read_only {
            (None, framefile::scan(&path, FORMAT, each)?)
        } else {
            let (file, scan) = FrameFile::open(&path, FORMAT, each)?;
            (Some(file), scan)
        };
        if !scan.damage.is_empty() {
            tracing::error!(file = %path.display(), "some dead letters are damaged and can't be read any more");
        }
        self.file = file;
        self.reader = Some(FrameReader::open(&path)?);
        if !read_only && version_of(&path)? < FORMAT.version {
            self.rewrite()?;
        }
        Ok(())
    }

    fn note_letter(&mut self, seq: Seq, offset: u64, len: u64) {
        let copy = self.index.get(&seq).and_then(|place| place.copy);
        let replaced = self.index.insert(seq, Place { offset, len, copy });
        self.live_bytes += len;
        self.live_bytes -= replaced.map_or(0, |place| place.len);
    }

    /// Whether there was one.
    fn note_removed(&mut self, seq: Seq) -> bool {
        let Some(place) = self.index.remove(&seq) else {
            return false;
        };
        self.live_bytes -= place.len;
        self.let_go(place.copy);
        true
    }

    fn note_copies(&mut self, offset: u64, len: u64, seqs: &[Seq]) {
        let mut live = 0;
        let mut replaced = Vec::new();
        for seq in seqs {
            if let Some(place) = self.index.get_mut(seq) {
                replaced.push(place.copy.replace(offset));
                live += 1;
            }
        }
        if live > 0 {
            self.blocks.insert(offset, (live, len));
            self.live_bytes += len;
        }
        for old in replaced {
            self.let_go(old);
        }
    }

    /// One event less needs this block.
    fn let_go(&mut self, block: Option<u64>) {
        let Some(at) = block else { return };
        let Some((live, len)) = self.blocks.get_mut(&at) else {
            return;
        };
        *live -= 1;
        if *live == 0 {
            self.live_bytes -= *len;
            self.blocks.remove(&at);
        }
    }

    fn file(&mut self) -> Result<&mut FrameFile, FrameError> {
        if self.file.as_ref().is_some_and(FrameFile::is_poisoned) {
            self.rewrite()?;
        }
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                let fail = |source| FrameError::Io {
                    path: dir.to_owned(),
                    source,
                };
                framefile::make_dir(dir).map_err(fail)?;
            }
            self.file = Some(FrameFile::create(&self.path, FORMAT)?);
            self.reader = Some(FrameReader::open(&self.path)?);
        }
        self.file
            .as_mut()
            .ok_or_else(|| FrameError::Poisoned(self.path.clone()))
    }

    fn compact(&mut self) -> Result<(), FrameError> {
        let len = self.file.as_ref().map_or(0, FrameFile::len);
        if len > COMPACT_LEN && len > 4 * self.live_bytes {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    /// Writes what is left into a new file, which takes the old one's place when it is complete. Until then, and where that fails,
    /// everything stays as it is.
    fn rewrite(&mut self) -> Result<(), FrameError> {
        let Some(old) = &self.file else { return Ok(()) };
        let unnamed = framefile::beside(&self.path, ".new");
        let mut file = FrameFile::create(&unnamed, FORMAT)?;
        let unreadable = |seq: Seq| {
            tracing::error!(file = %self.path.display(), seq = seq.0, "a dead letter is damaged and can't be read any more");
        };
        let mut blocks: BTreeMap<u64, Vec<Seq>> = BTreeMap::new();
        for (seq, place) in &self.index {
            match old.read(place.offset) {
                Ok((tag, payload)) => {
                    let Some(letter) = letter_in(tag, &payload) else {
                        unreadable(*seq);
                        continue;
                    };
                    let json = serde_json::to_vec(&letter).unwrap_or_default();
                    file.append(TAG_LETTER, &[&seq.0.to_le_bytes(), &json])?;
                    if let Some(at) = place.copy {
                        blocks.entry(at).or_default().push(*seq);
                    }
                }
                Err(FrameError::Damaged { .. }) => unreadable(*seq),
                Err(error) => return Err(error),
            }
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (at, seqs) in blocks {
            match old.read(at) {
                Ok((tag, payload)) => {
                    let copies = events_in(tag, &payload).into_iter();
                    for event in copies.filter(|event| seqs.contains(&event.seq)) {
                        bytes += event.body.len();
                        events.push(event);
                    }
                }
                Err(FrameError::Damaged { .. }) => seqs.into_iter().for_each(unreadable),
                Err(error) => return Err(error),
            }
            if bytes >= BLOCK_BYTES {
                append_copies(&mut file, &events.iter().collect::<Vec<_>>())?;
                events.clear();
                bytes = 0;
            }
        }
        if !events.is_empty() {
            append_copies(&mut file, &events.iter().collect::<Vec<_>>())?;
        }
        file.sync()?;
        drop(file);
        let fail = |source| FrameError::Io {
            path: self.path.clone(),
            source,
        };
        std::fs::rename(&unnamed, &self.path).map_err(fail)?;
        framefile::sync_parent(&self.path).map_err(fail)?;
        *self = Inner::empty(self.path.clone());
        self.load(false)
    }
}

/// The format version in a file's header.
fn version_of(path: &Path) -> Result<u32, FrameError> {
    use std::os::unix::fs::FileExt;
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let mut version = [0; 4];
    let file = std::fs::File::open(path).map_err(fail)?;
    file.read_exact_at(&mut version, FORMAT.magic.len() as u64)
        .map_err(fail)?;
    Ok(u32::from_le_bytes(version))
}

fn letter_in(tag: u32, payload: &[u8]) -> Option<DeadLetter> {
    match tag {
        TAG_LETTER => serde_json::from_slice(payload.get(8..)?).ok(),
        TAG_WITH_COPY => old_record(payload).map(|(record, _)| record.letter),
        _ => None,
    }
}

fn old_record(payload: &[u8]) -> Option<(OldRecord, &[u8])> {
    let rest = payload.get(8..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (json, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((serde_json::from_slice(json).ok()?, body))
}

fn seq_of(payload: &[u8]) -> Option<Seq> {
    payload.first_chunk::<8>().map(|bytes| Seq(u64::from_le_bytes(*bytes)))
}
