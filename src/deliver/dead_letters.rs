//! Dead letters: deliveries that were given up, each with a copy of its event, so that they pin nothing in the log.
//!
//! One file of frames per sink, `dead/<sink>`. Adding returns when the letter is durable, and only then may the sink's cursor
//! pass the event (invariant I4). In memory a letter costs its Seq and its place in the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::DeadLetter;
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};
use crate::framefile::{self, Format, Frame, FrameError, FrameFile, FrameReader};

const FORMAT: Format = Format {
    magic: *b"CLHKDEAD",
    version: 1,
};
const TAG_ADD: u32 = 1;
const TAG_REMOVE: u32 = 2;

/// A file is rewritten when it is larger than this and mostly removed letters.
const COMPACT_LEN: u64 = 1 << 20;

/// The dead letters of one sink. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` until the first letter, so that sinks without any leave no file.
    file: Option<FrameFile>,
    /// For letters that are in the file; `None` while there is no file.
    reader: Option<FrameReader>,
    /// Where each letter is, and its length.
    index: BTreeMap<Seq, (u64, u64)>,
    live_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    letter: DeadLetter,
    received_at: Timestamp,
    source: Source,
    signature: Option<SignatureHeaders>,
}

impl DeadLetters {
    /// Opens a sink's letters; with `read_only` nothing is written, not even to cut off a torn tail.
    pub fn open(dir: &Path, sink: &str, read_only: bool) -> Result<DeadLetters, FrameError> {
        // Sink names are letters, digits, '-', '_' and '.', and do not begin with a dot.
        let path = dir.join(sink);
        let mut index = BTreeMap::new();
        let each = |frame: Frame<'_>| {
            let Some(seq) = seq_of(frame.payload) else { return };
            match frame.tag {
                TAG_ADD => drop(index.insert(seq, (frame.offset, frame.payload.len() as u64))),
                TAG_REMOVE => drop(index.remove(&seq)),
                _ => {}
            }
        };
        let (mut file, mut reader) = (None, None);
        if path.exists() {
            let opened = if read_only {
                framefile::scan(&path, FORMAT, each).map(|scan| (None, scan))
            } else {
                FrameFile::open(&path, FORMAT, each).map(|(opened, scan)| (Some(opened), scan))
            };
            match opened {
                Ok((opened, scan)) => {
                    if !scan.damage.is_empty() {
                        tracing::error!(sink, file = %path.display(), "some dead letters are damaged and can't be read any more");
                    }
                    file = opened;
                    reader = Some(FrameReader::open(&path)?);
                }
                // The sink goes on without them: what it has to deliver matters more than what it had to give up.
                Err(FrameError::Alien(_)) => {
                    let aside = framefile::beside(&path, ".damaged");
                    tracing::error!(
                        sink,
                        aside = %aside.display(),
                        "the file of dead letters is damaged at its beginning; it is set aside and its letters are not shown"
                    );
                    if !read_only {
                        std::fs::rename(&path, &aside).map_err(|source| FrameError::Io {
                            path: path.clone(),
                            source,
                        })?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let live_bytes = index.values().map(|(_, len)| len).sum();
        Ok(DeadLetters {
            inner: Arc::new(Mutex::new(Inner {
                path,
                file,
                reader,
                index,
                live_bytes,
            })),
        })
    }

    /// Adds letters durably (replacing those with the same Seq). Blocking.
    pub fn add(&self, letters: &[(DeadLetter, Arc<Event>)]) -> Result<(), FrameError> {
        let mut inner = self.lock();
        let mut added = Vec::with_capacity(letters.len());
        for (letter, event) in letters {
            let record = Record {
                letter: letter.clone(),
                received_at: event.received_at,
                source: event.source,
                signature: event.signature.clone(),
            };
            let json = serde_json::to_vec(&record).unwrap_or_default();
            let parts: [&[u8]; 4] = [
                &letter.seq.0.to_le_bytes(),
                &(json.len() as u32).to_le_bytes(),
                &json,
                &event.body,
            ];
            let offset = inner.file()?.append(TAG_ADD, &parts)?;
            added.push((
                letter.seq,
                offset,
                parts.iter().map(|part| part.len() as u64).sum::<u64>(),
            ));
        }
        inner.file()?.sync()?;
        for (seq, offset, len) in added {
            let replaced = inner.index.insert(seq, (offset, len));
            inner.live_bytes += len;
            inner.live_bytes -= replaced.map_or(0, |(_, len)| len);
        }
        Ok(())
    }

    /// Removes letters durably. Blocking.
    pub fn remove(&self, seqs: &[Seq]) -> Result<(), FrameError> {
        let mut inner = self.lock();
        let present: Vec<Seq> = seqs
            .iter()
            .copied()
            .filter(|seq| inner.index.contains_key(seq))
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        for seq in &present {
            inner.file()?.append(TAG_REMOVE, &[&seq.0.to_le_bytes()])?;
        }
        inner.file()?.sync()?;
        for seq in &present {
            let removed = inner.index.remove(seq);
            inner.live_bytes -= removed.map_or(0, |(_, len)| len);
        }
        // They are removed, whether or not their space can be given back now.
        if let Err(error) = inner.compact() {
            tracing::warn!(%error, "a file of dead letters could not be made smaller; this is tried again");
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().index.len()
    }

    /// The Seqs from `from` on, at most `max`.
    pub fn seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.lock().index.range(from..).take(max).map(|(seq, _)| *seq).collect()
    }

    /// One letter with its event; `None` where there is none. Blocking.
    pub fn get(&self, seq: Seq) -> Result<Option<(DeadLetter, Arc<Event>)>, FrameError> {
        let inner = self.lock();
        let (Some((offset, _)), Some(reader)) = (inner.index.get(&seq), &inner.reader) else {
            return Ok(None);
        };
        let (_, payload) = reader.read(*offset)?;
        Ok(decode(&payload))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
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
                crate::framefile::make_dir(dir).map_err(fail)?;
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

    /// Writes the letters that are left into a new file, which takes the old one's place when it is complete. Until then, and
    /// where that fails, everything stays as it is.
    fn rewrite(&mut self) -> Result<(), FrameError> {
        let Some(old) = &self.file else { return Ok(()) };
        let unnamed = framefile::beside(&self.path, ".new");
        let mut file = FrameFile::create(&unnamed, FORMAT)?;
        let mut index = BTreeMap::new();
        for (seq, (offset, len)) in &self.index {
            match old.read(*offset) {
                Ok((tag, payload)) => drop(index.insert(*seq, (file.append(tag, &[&payload])?, *len))),
                Err(FrameError::Damaged { .. }) => {
                    tracing::error!(file = %self.path.display(), seq = seq.0, "a dead letter is damaged and can't be read any more");
                }
                Err(error) => return Err(error),
            }
        }
        file.sync()?;
        drop(file);
        let fail = |source| FrameError::Io {
            path: self.path.clone(),
            source,
        };
        std::fs::rename(&unnamed, &self.path).map_err(fail)?;
        crate::framefile::sync_parent(&self.path).map_err(fail)?;
        self.live_bytes = index.values().map(|(_, len)| len).sum();
        self.index = index;
        self.reader = Some(FrameReader::open(&self.path)?);
        self.file = Some(FrameFile::open(&self.path, FORMAT, |_| ())?.0);
        Ok(())
    }
}

fn seq_of(payload: &[u8]) -> Option<Seq> {
    payload.first_chunk::<8>().map(|bytes| Seq(u64::from_le_bytes(*bytes)))
}

fn decode(payload: &[u8]) -> Option<(DeadLetter, Arc<Event>)> {
    let rest = payload.get(8..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (json, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let record: Record = serde_json::from_slice(json).ok()?;
    let event = Event::new(
        record.letter.seq,
        record.received_at,
        record.source,
        Kind::Event,
        record.signature,
        body.to_vec().into(),
    );
    Some((record.letter, Arc::new(event)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(seq: u64) -> (DeadLetter, Arc<Event>) {
        let body = format!(r#"{{"event":{{"id":"ev_{seq}","pad":"{}"}}}}"#, "x".repeat(5000));
        let event = Event::new(
            Seq(seq),
            Timestamp::UNIX_EPOCH,
            Source::Webhook,
            Kind::Event,
            None,
            body.into(),
        );
        let letter = DeadLetter {
            sink: "a".into(),
            seq: Seq(seq),
            id: format!("ev_{seq}"),
            event_type: None,
            lead_id: None,
            reason: "no".into(),
            attempts: 1,
            first_attempt: None,
            died_at: Timestamp::UNIX_EPOCH,
        };
        (letter, Arc::new(event))
    }

    #[test]
    fn letters_stay_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dead");
        let letters = DeadLetters::open(&dir, "a", false).unwrap();
        assert!(!dir.exists());
        for seq in 1..=400 {
            letters.add(&[letter(seq)]).unwrap();
        }
        for seq in 1..=390 {
            letters.remove(&[Seq(seq)]).unwrap();
        }
        assert!(
            std::fs::metadata(dir.join("a")).unwrap().len() < COMPACT_LEN,
            "removed letters give their space back"
        );
        let reopened = DeadLetters::open(&dir, "a", false).unwrap();
        for letters in [letters, reopened] {
            assert_eq!(
                (letters.len(), letters.seqs(Seq(395), 2)),
                (10, vec![Seq(395), Seq(396)])
            );
            let (found, event) = letters.get(Seq(391)).unwrap().unwrap();
            let (expected, original) = letter(391);
            assert_eq!((found, &event.body), (expected, &original.body));
            assert!(letters.get(Seq(1)).unwrap().is_none());
        }
    }

    /// A directory in the place of the new file makes every rewrite fail, as a full disk would.
    #[test]
    fn letters_survive_a_rewrite_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(dir.path(), "a", false).unwrap();
        letters.add(&(1..=400).map(letter).collect::<Vec<_>>()).unwrap();
        std::fs::create_dir(dir.path().join("a.new.tmp")).unwrap();
        let removed: Vec<Seq> = (1..=390).map(Seq).collect();
        letters.remove(&removed).unwrap();
        letters.add(&[letter(401)]).unwrap();
        let reopened = DeadLetters::open(dir.path(), "a", false).unwrap();
        for letters in [letters, reopened] {
            assert_eq!(letters.len(), 11);
            assert!(letters.get(Seq(391)).unwrap().is_some() && letters.get(Seq(401)).unwrap().is_some());
        }
    }

    #[test]
    fn a_damaged_file_costs_what_is_damaged_and_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let letters = DeadLetters::open(dir.path(), "a", false).unwrap();
        letters.add(&[letter(1), letter(2), letter(3)]).unwrap();
        drop(letters);
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.len() / 2;
        bytes[second] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let letters = DeadLetters::open(dir.path(), "a", false).unwrap();
        assert_eq!(letters.seqs(Seq(1), 9), [Seq(1), Seq(3)]);
        drop(letters);
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(DeadLetters::open(dir.path(), "a", true).unwrap().len(), 0);
        let letters = DeadLetters::open(dir.path(), "a", false).unwrap();
        letters.add(&[letter(4)]).unwrap();
        assert_eq!(letters.seqs(Seq(1), 9), [Seq(4)]);
        assert!(dir.path().join("a.damaged").exists());
    }
}
