//! A log made of another engine's events, each at its own Seq.
//!
//! Segments are made one after the other, by the code that does it in a running log, and each is sealed and durable before it is noted in
//! the marker that lies in the directory until all is in place. No log is opened where that lies; whoever makes the copy again goes on behind
//! the last segment that is noted. A place at which nothing is reads as erased, and a long row of them is between two segments.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::block::Encoder;
use super::description::{self, Description};
use super::gaps::Gaps;
use super::journal::{self, Journal};
use super::keeper;
use super::known::{self, Identity, Table};
use super::refused::OpenError;
use super::sealed;
use super::transfer::key_file;
use crate::event::{Event, Kind, Seq, Source};
use crate::log::Gap;
use crate::log::known_key::KnownKey;
use crate::{files, framefile};

const MARKER: &str = "copy-unfinished";

/// What there is of a log, beside its marker.
const PARTS: [&str; 7] = [
    "log",
    "keys",
    "state",
    "closehook.json",
    "gaps",
    "gaps.json",
    "copied.json",
];

/// Events and bytes of a segment, roughly; bytes of a block.
const SEGMENT: (u64, u64) = (50_000, 64 << 20);
const BLOCK: usize = 1 << 20;

/// A longer row of places without an event is no part of a segment.
const ROW_MAX: u64 = 256;

/// As compressed as a segment's blocks are.
const LEVEL: i32 = 3;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Which log is copied.
    origin: String,
    /// Up to here everything is in place.
    done: Seq,
    gaps: Vec<Gap>,
}

/// A segment that is being made.
#[derive(Debug)]
struct Making {
    first: Seq,
    journal: Journal,
    keys: Table,
    events: u64,
    bytes: u64,
}

/// See the module's head. Only for the holder of the directory; blocking, as all of it.
#[derive(Debug)]
pub struct Placer {
    dir: PathBuf,
    marker: Marker,
    making: Option<Making>,
    encoder: Encoder,
    next: Seq,
    newest: Timestamp,
    /// Keys of what is not there, by Seq, that are in no segment yet.
    keys: BTreeMap<Seq, KnownKey>,
}

/// A log whose copy was cut off is not opened.
pub(super) fn refuse_unfinished(dir: &Path) -> Result<(), OpenError> {
    let marker = dir.join(MARKER);
    match sealed::has(&marker) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::UnfinishedCopy(dir.to_owned())),
        Err(source) => Err(OpenError::Io { path: marker, source }),
    }
}

/// Whether a log is being copied into a directory: what is there beside it is an earlier try's.
pub fn is_begun(dir: &Path) -> io::Result<bool> {
    sealed::has(&dir.join(MARKER))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Placer {
    /// Begins in a data directory without a log, or goes on where an earlier try stopped. `origin`: which log it is, as text; `first`: where
    /// it begins; `keys`: of what is not there any more.
    pub fn begin(dir: &Path, origin: &str, first: Seq, mut keys: BTreeMap<Seq, KnownKey>) -> Result<Placer, OpenError> {
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let path = dir.join(MARKER);
        let found = match files::read(&path) {
            Ok(text) => serde_json::from_slice::<Marker>(&text).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        let is_there = PARTS.iter().find(|part| dir.join(part).symlink_metadata().is_ok());
        let marker = match (found, is_there) {
            (Some(marker), _) if marker.origin == origin => marker,
            (None, None) => Marker {
                origin: origin.to_owned(),
                done: first.prev(),
                gaps: Vec::new(),
            },
            (_, part) => {
                return Err(OpenError::Unreadable(format!(
                    "{} holds another log ({}): move {}, dead away together, or choose another log.dir",
                    dir.display(),
                    part.unwrap_or(&MARKER),
                    PARTS.join(", ")
                )));
            }
        };
        let done = marker.done;
        // What is before that is in a segment already.
        if done >= first {
            keys = keys.split_off(&done.next());
        }
        let placer = Placer {
            dir: dir.to_owned(),
            marker,
            making: None,
            encoder: Encoder::new(LEVEL).map_err(fail)?,
            next: done.next(),
            newest: Timestamp::UNIX_EPOCH,
            keys,
        };
        placer.prepare().map_err(fail)?;
        Ok(placer)
    }

    /// What was begun behind the last whole segment goes.
    fn prepare(&self) -> io::Result<()> {
        self.note()?;
        let log_dir = self.log_dir();
        framefile::make_dir(&log_dir)?;
        for entry in std::fs::read_dir(&log_dir)? {
            let path = entry?.path();
            let first = path.file_name().and_then(|name| name.to_str()?.parse().ok()).map(Seq);
            if first.is_none_or(|first| first > self.marker.done) {
                remove(&path)?;
                if let Some(first) = first {
                    remove(&self.dir.join(key_file(first)))?;
                }
            }
        }
        for part in ["state", "closehook.json", "gaps", "gaps.json"] {
            remove(&self.dir.join(part))?;
        }
        framefile::sync_dir(&log_dir)?;
        framefile::sync_dir(&self.dir)
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn note(&self) -> io::Result<()> {
        framefile::replace_file(&self.dir.join(MARKER), &serde_json::to_vec(&self.marker)?)
    }

    /// The first Seq that is not in place.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Adds an event; what is between it and the one before is not there.
    pub fn add(&mut self, event: &Event) -> io::Result<()> {
        if event.seq < self.next {
            return Ok(());
        }
        let row = event.seq.0 - self.next.0;
        let is_full = |making: &Making| making.events >= SEGMENT.0 || making.bytes >= SEGMENT.1;
        if row > ROW_MAX || self.making.as_ref().is_none_or(is_full) {
            self.complete()?;
            if row > ROW_MAX {
                self.leave_out(event.seq);
            }
            self.begin_segment(self.next)?;
        }
        while self.next < event.seq {
            self.add_erased()?;
        }
        self.newest = event.received_at;
        let identity = Identity::of(event);
        self.push(event, identity.as_ref())
    }

    /// What is not there, at the next place.
    fn add_erased(&mut self) -> io::Result<()> {
        let (seq, kind) = (self.next, Kind::Erased);
        let identity = self.keys.remove(&seq).map(|key| Identity::of_known(&key));
        let erased = Event::new(seq, self.newest, Source::Webhook, kind, None, bytes::Bytes::new());
        self.push(&erased, identity.as_ref())
    }

    fn push(&mut self, event: &Event, identity: Option<&Identity>) -> io::Result<()> {
        let Some(making) = &mut self.making else {
            return Err(io::Error::other("no segment was begun"));
        };
        if let Some(identity) = identity {
            making.keys.insert(identity, event.seq, event.received_at);
        }
        making.events += 1;
        making.bytes += event.body.len() as u64;
        self.encoder
            .push(event, identity.map(Identity::as_bytes).unwrap_or_default());
        self.next = event.seq.next();
        if self.encoder.raw_len() >= BLOCK {
            making
                .journal
                .append(self.encoder.finish()?)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Nothing is before this place.
    fn leave_out(&mut self, before: Seq) {
        self.marker.gaps.push(Gap {
            from: self.next,
            to: before.prev(),
            reason: "there was nothing in the log of which this one is a copy".into(),
            found_at: Timestamp::now(),
            skipped: true,
            certain_to: None,
        });
        self.next = before;
    }

    fn begin_segment(&mut self, first: Seq) -> io::Result<()> {
        let (journal, _) = Journal::create(&self.log_dir(), first).map_err(io::Error::other)?;
        let mut keys = Table::default();
        let rest = self.keys.split_off(&first);
        // Known for as long as this segment's own are.
        for (seq, key) in std::mem::replace(&mut self.keys, rest) {
            keys.insert(&Identity::of_known(&key), seq, Timestamp::now());
        }
        self.making = Some(Making {
            first,
            journal,
            keys,
            events: 0,
            bytes: 0,
        });
        Ok(())
    }

    /// Seals what was begun, and notes that it is in place.
    fn complete(&mut self) -> io::Result<()> {
        let Some(mut making) = self.making.take() else {
            return Ok(());
        };
        if !self.encoder.is_empty() {
            making
                .journal
                .append(self.encoder.finish()?)
                .map_err(io::Error::other)?;
        }
        making.journal.sync().map_err(io::Error::other)?;
        drop(making.journal);
        let dir = journal::segment_dir(&self.log_dir(), making.first);
        let (recovered, _) = journal::recover(&dir, making.first, None, true, true).map_err(io::Error::other)?;
        if recovered.events != making.events {
            let why = format!("events of segment {} can't be decoded", making.first);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        known::write_file(&self.dir.join(key_file(making.first)), &making.keys)?;
        sealed::seal(&recovered.segment, &mut || true).map_err(io::Error::other)?;
        keeper::drop_journal(&recovered.segment)?;
        framefile::sync_dir(&self.log_dir())?;
        self.marker.done = self.next.prev();
        self.note()
    }

    /// All events are there, and `last` is the last Seq that was given out. From now on it can be looked at
    /// ([`super::LocalLog::open_unfinished`]).
    pub fn finish(&mut self, last: Seq, id: &str, epoch: &str) -> io::Result<()> {
        // Keys have to be in a segment, and a segment has to hold something.
        let is_wanted = |placer: &Placer| !placer.keys.is_empty() || last.0 - placer.next.0 < ROW_MAX;
        while self.next <= last && is_wanted(self) {
            if self.making.is_none() {
                self.begin_segment(self.next)?;
            }
            self.add_erased()?;
        }
        self.complete()?;
        if self.next <= last {
            self.leave_out(last.next());
        }
        Journal::create(&self.log_dir(), last.next()).map_err(io::Error::other)?;
        Gaps::write(&self.dir, sealed::swap::oldest(&self.log_dir())?, &self.marker.gaps)?;
        Description::make_as(&self.dir, id, epoch, last).map_err(io::Error::other)?;
        framefile::sync_dir(&self.log_dir())
    }
}

/// Puts a log into force that was made here.
pub fn commit(dir: &Path) -> io::Result<()> {
    description::note_state_beside(dir)?;
    remove(&dir.join(MARKER))?;
    framefile::sync_dir(dir)
}
