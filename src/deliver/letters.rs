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

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::DeadLetter;
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};
use crate::framefile::{self, Format, Frame, FrameError, FrameFile, FrameReader};
use crate::sync::lock;

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

/// What a block of copies is compressed with; bodies of up to 64 MiB are in one.
const ZSTD_LEVEL: i32 = 3;
const BLOCK_LEN_MAX: usize = 128 << 20;

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

/// What is kept of an event beside its body.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    seq: Seq,
    received_at: Timestamp,
    source: Source,
    kind: Kind,
    signature: Option<SignatureHeaders>,
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

fn append_copies(file: &mut FrameFile, events: &[&Event]) -> Result<(u64, u64), FrameError> {
    let count = (events.len() as u32).to_le_bytes();
    let seqs: Vec<u8> = events.iter().flat_map(|event| event.seq.0.to_le_bytes()).collect();
    let block = pack(events).map_err(|source| FrameError::Io {
        path: file.path().to_owned(),
        source,
    })?;
    let offset = file.append(TAG_COPIES, &[&count, &seqs, &block])?;
    Ok((offset, (count.len() + seqs.len() + block.len()) as u64))
}

/// Events in one compressed block: for each the length of its head, the head as JSON, the length of the body, the body.
fn pack(events: &[&Event]) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    for event in events {
        let head = Head {
            seq: event.seq,
            received_at: event.received_at,
            source: event.source,
            kind: event.kind,
            signature: event.signature.clone(),
        };
        let head = serde_json::to_vec(&head)?;
        raw.extend((head.len() as u32).to_le_bytes());
        raw.extend(head);
        raw.extend((event.body.len() as u32).to_le_bytes());
        raw.extend(&event.body[..]);
    }
    zstd::bulk::compress(&raw, ZSTD_LEVEL)
}

/// What a whole block holds; nothing where it is not what it should be.
fn unpack(block: &[u8]) -> Option<Vec<Event>> {
    let mut raw = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(block).ok()?;
    let limit = BLOCK_LEN_MAX as u64;
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut decoder, limit), &mut raw).ok()?;
    let mut rest = raw.as_slice();
    let mut part = || {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = after;
        Some(part)
    };
    let mut events = Vec::new();
    while let Some(head) = part() {
        let head: Head = serde_json::from_slice(head).ok()?;
        let body = part()?.to_vec().into();
        events.push(Event::new(
            head.seq,
            head.received_at,
            head.source,
            head.kind,
            head.signature,
            body,
        ));
    }
    Some(events)
}

/// The Seqs in front of a block, and the block.
fn split_copies(payload: &[u8]) -> Option<(Vec<Seq>, &[u8])> {
    let (count, rest) = payload.split_first_chunk::<4>()?;
    let (seqs, block) = rest.split_at_checked(u32::from_le_bytes(*count) as usize * 8)?;
    Some((seqs.chunks_exact(8).filter_map(seq_of).collect(), block))
}

fn events_in(tag: u32, payload: &[u8]) -> Vec<Event> {
    match tag {
        TAG_COPIES => split_copies(payload)
            .and_then(|(_, block)| unpack(block))
            .unwrap_or_default(),
        TAG_WITH_COPY => old_record(payload)
            .map(|(record, body)| {
                Event::new(
                    record.letter.seq,
                    record.received_at,
                    record.source,
                    Kind::Event,
                    record.signature,
                    body.to_vec().into(),
                )
            })
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(seq: u64) -> DeadLetter {
        DeadLetter {
            sink: "a".into(),
            seq: Seq(seq),
            id: format!("ev_{seq}"),
            event_type: None,
            lead_id: None,
            reason: "n".repeat(5000),
            attempts: 1,
            first_attempt: None,
            died_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn event(seq: u64) -> Arc<Event> {
        let body = format!(r#"{{"event":{{"id":"ev_{seq}","pad":"{}"}}}}"#, "x".repeat(5000));
        let at = Timestamp::UNIX_EPOCH;
        Arc::new(Event::new(
            Seq(seq),
            at,
            Source::Webhook,
            Kind::Event,
            None,
            body.into(),
        ))
    }

    fn letters(seqs: std::ops::RangeInclusive<u64>) -> Vec<DeadLetter> {
        seqs.map(letter).collect()
    }

    #[test]
    fn letters_stay_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dead");
        let store = Letters::open(&dir, "a", false).unwrap();
        assert!(!dir.exists());
        store.add(&letters(1..=400)).unwrap();
        let events: Vec<_> = (380..=400).map(event).collect();
        store.keep_copies(&events).unwrap();
        for seq in 1..=390 {
            assert_eq!(store.remove(&[Seq(seq), Seq(1000)]).unwrap(), 1);
        }
        let len = std::fs::metadata(dir.join("a")).unwrap().len();
        assert!(len < COMPACT_LEN, "removed letters give their space back: {len}");
        let reopened = Letters::open(&dir, "a", false).unwrap();
        for store in [store, reopened] {
            assert_eq!((store.len(), store.seqs(Seq(395), 2)), (10, vec![Seq(395), Seq(396)]));
            assert_eq!(store.get(Seq(391)).unwrap(), Some(letter(391)));
            assert_eq!(store.copy(Seq(391)).unwrap().unwrap().body, event(391).body);
            assert!(store.get(Seq(1)).unwrap().is_none() && store.copy(Seq(381)).unwrap().is_none());
        }
    }

    #[test]
    fn a_reference_costs_no_body_and_copies_are_compressed_and_stay_when_the_letter_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        let short = |seq| DeadLetter {
            reason: "no".into(),
            ..letter(seq)
        };
        store.add(&(1..=1000).map(short).collect::<Vec<_>>()).unwrap();
        let len = || std::fs::metadata(dir.path().join("a")).unwrap().len();
        let referring = len();
        assert!(referring < 300_000, "{referring}");
        assert_eq!(store.without_copy(Seq::ZERO, Seq(501), 9999).len(), 500);
        store.keep_copies(&(1..=500).map(event).collect::<Vec<_>>()).unwrap();
        assert!(
            len() - referring < 500 * 5000 / 10,
            "{} bytes of copies",
            len() - referring
        );
        assert_eq!(store.without_copy(Seq::ZERO, Seq(9999), 1), [Seq(501)]);
        let again = DeadLetter {
            attempts: 7,
            ..short(3)
        };
        store.add(std::slice::from_ref(&again)).unwrap();
        let reopened = Letters::open(dir.path(), "a", true).unwrap();
        for store in [store, reopened] {
            assert_eq!(store.get(Seq(3)).unwrap().as_ref(), Some(&again));
            assert_eq!(store.copy(Seq(3)).unwrap().unwrap().body, event(3).body);
            assert!(store.copy(Seq(501)).unwrap().is_none());
        }
    }

    /// G7: however many are removed, it is one frame with one sync.
    #[test]
    fn thousands_are_removed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        let short = |seq| DeadLetter {
            reason: "no".into(),
            ..letter(seq)
        };
        store.add(&(1..=3000).map(short).collect::<Vec<_>>()).unwrap();
        let seqs: Vec<Seq> = (1..=2999).map(Seq).collect();
        assert_eq!(store.remove(&seqs).unwrap(), 2999);
        let mut frames = BTreeMap::<u32, u32>::new();
        framefile::scan(&dir.path().join("a"), FORMAT, |frame| {
            *frames.entry(frame.tag).or_default() += 1;
        })
        .unwrap();
        assert_eq!(frames, [(TAG_LETTER, 3000), (TAG_REMOVE, 1)].into());
        assert_eq!(
            Letters::open(dir.path(), "a", true).unwrap().seqs(Seq(1), 9),
            [Seq(3000)]
        );
    }

    #[test]
    fn forgotten_letters_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dead");
        let store = Letters::open(&dir, "a", false).unwrap();
        assert_eq!(store.destroy().unwrap(), 0, "there never was one");
        store.add(&letters(1..=3)).unwrap();
        std::fs::write(dir.join("a.damaged"), "x").unwrap();
        assert_eq!((store.destroy().unwrap(), store.len()), (3, 0));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        store.add(&letters(7..=7)).unwrap();
        assert_eq!(Letters::open(&dir, "a", true).unwrap().seqs(Seq(1), 9), [Seq(7)]);
    }

    #[test]
    fn the_oldest_go_first_when_it_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&letters(1..=100)).unwrap();
        store.keep_copies(&(1..=100).map(event).collect::<Vec<_>>()).unwrap();
        let all = store.lock().live_bytes;
        assert!(store.beyond(all).is_empty());
        let gone = store.beyond(all / 2);
        assert_eq!(gone.first(), Some(&Seq(1)));
        assert!((45..=55).contains(&gone.len()), "{}", gone.len());
        store.remove(&gone).unwrap();
        assert!(store.lock().live_bytes <= all / 2);
        assert_eq!(store.beyond(0).len(), store.len());
        let rest = store.beyond(0);
        store.remove(&rest).unwrap();
        let inner = store.lock();
        assert_eq!((inner.live_bytes, inner.blocks.len()), (0, 0));
    }

    /// A directory in the place of the new file makes every rewrite fail, as a full disk would.
    #[test]
    fn letters_survive_a_rewrite_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&letters(1..=400)).unwrap();
        std::fs::create_dir(dir.path().join("a.new.tmp")).unwrap();
        let removed: Vec<Seq> = (1..=390).map(Seq).collect();
        store.remove(&removed).unwrap();
        store.add(&letters(401..=401)).unwrap();
        let reopened = Letters::open(dir.path(), "a", false).unwrap();
        for store in [store, reopened] {
            assert_eq!(store.len(), 11);
            assert!(store.get(Seq(391)).unwrap().is_some() && store.get(Seq(401)).unwrap().is_some());
        }
    }

    #[test]
    fn a_damaged_file_costs_what_is_damaged_and_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&letters(1..=3)).unwrap();
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.len() / 2;
        bytes[second] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        assert_eq!(store.seqs(Seq(1), 9), [Seq(1), Seq(3)]);
        drop(store);
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Letters::open(dir.path(), "a", true).unwrap().len(), 0);
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&letters(4..=4)).unwrap();
        assert_eq!(store.seqs(Seq(1), 9), [Seq(4)]);
        assert!(dir.path().join("a.damaged").exists());
    }

    #[test]
    fn a_file_of_the_version_before_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let old = Format { version: 1, ..FORMAT };
        let mut file = FrameFile::create(&path, old).unwrap();
        for seq in 1..=3 {
            let record = serde_json::json!({
                "letter": letter(seq), "received_at": Timestamp::UNIX_EPOCH, "source": "webhook", "signature": null,
            });
            let json = serde_json::to_vec(&record).unwrap();
            let parts: [&[u8]; 4] = [
                &seq.to_le_bytes(),
                &(json.len() as u32).to_le_bytes(),
                &json,
                &event(seq).body,
            ];
            file.append(TAG_WITH_COPY, &parts).unwrap();
        }
        file.append(TAG_REMOVE, &[&2_u64.to_le_bytes()]).unwrap();
        file.sync().unwrap();
        drop(file);
        for read_only in [true, false, false] {
            let store = Letters::open(dir.path(), "a", read_only).unwrap();
            assert_eq!(store.seqs(Seq(0), 9), [Seq(1), Seq(3)]);
            assert_eq!(store.get(Seq(3)).unwrap(), Some(letter(3)));
            assert_eq!(store.copy(Seq(3)).unwrap().unwrap().body, event(3).body);
            assert!(store.without_copy(Seq::ZERO, Seq(9), 9).is_empty());
            let expected = if read_only { 1 } else { 2 };
            assert_eq!(version_of(&path).unwrap(), expected);
        }
    }
}
