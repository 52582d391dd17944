//! Taking the log along: its content piece by piece for a backup, and a log made from such pieces.
//!
//! A block is a block, in a journal as in a sealed segment, so what is carried is the blocks as they are, in order, each
//! compared with its checksum on the way out. [`Restorer`] puts them into journals and seals those that were sealed, by the
//! same code that does it in a running log.
//!
//! A restored log is another one than the original, which may have gone on: it gets an epoch of its own, and its next event
//! a Seq beyond any that the original can have given out (decision 9). A marker lies in the directory until all is in place;
//! no log is opened where it lies.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::block::{self, Head};
use super::description::Description;
use super::desk::Suspect;
use super::fault::SegmentError;
use super::gaps::{self, Gaps};
use super::handle::LocalLog;
use super::journal::{self, Journal, OpenSegment};
use super::keeper;
use super::known::{self, Identity, KeyFiles, Table};
use super::lock::take_lock;
use super::read::{self, Encoded, Found};
use super::refused::OpenError;
use super::sealed::{self, SealedSegment};
use super::shared::{Segment, Shared};
use crate::event::{Event, Seq};
use crate::framefile::{self, make_dir};
use crate::log::known_key::KnownKey;
use crate::log::{Gap, ReadError};
use crate::sync::read_lock;

/// Restored logs begin at multiples of this: no log gives out so many Seqs between a backup and its restore.
const JUMP: u64 = 1_000_000_000;

const MARKER: &str = "restore-unfinished";

/// In the root of a file system, and no data of anybody's.
const FILE_SYSTEM_S_OWN: &str = "lost+found";

/// Where files of known keys are, below the data directory.
const KEYS: &str = "keys";

/// A part of a log, in the order in which a [`Restorer`] takes them.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Blocks of this segment follow.
    Segment {
        /// The Seq it begins with.
        first: Seq,
        /// It is complete, and sealed.
        sealed: bool,
    },
    /// Events, as they are kept.
    Block(&'a [u8]),
}

/// What was taken from a log, or put into one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events.
    pub events: u64,
    /// The first Seq; [`Seq::ZERO`] where there is no event.
    pub first: Seq,
    /// The last Seq.
    pub last: Seq,
    /// Ranges (inclusive) that could not be read.
    pub damaged: Vec<(Seq, Seq)>,
    /// Ranges (inclusive) that were dropped before they were read, behind others that were.
    pub expired: Vec<(Seq, Seq)>,
}

impl Taken {
    fn count(&mut self, head: Head) {
        if self.events == 0 {
            self.first = head.first;
        }
        self.events += u64::from(head.count);
        self.last = head.last();
    }
}

impl LocalLog {
    /// Hands every event up to `upto` to `each`, in pieces; events that came later may be among them. What expires meanwhile
    /// is left out; that and what is damaged is named. Blocking.
    pub fn take(&self, upto: Seq, each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> Result<Taken, ReadError> {
        let mut taken = Taken::default();
        let mut next = Seq::ZERO;
        let mut at = None;
        // Asked for one after the other: a segment may be sealed, rewritten or removed meanwhile.
        while let Some((first, segment)) = segment_from(&self.shared, next)
            && first <= upto
        {
            next = first.next();
            // Whole segments were dropped in between.
            if let Some(at) = at {
                taken.expired.extend(self.shared.gaps.unrecorded(at, first.prev()));
            }
            match &segment {
                Segment::Open(open) => take_open(&self.shared, open, upto, &mut taken, each)?,
                Segment::Sealed(sealed) => take_sealed(&self.shared, first, sealed, &mut taken, each)?,
            }
            at = at.max(Some(segment.last().map_or(first, Seq::next)));
        }
        if let Some(at) = at {
            taken.expired.extend(self.shared.gaps.unrecorded(at, upto));
        }
        Ok(taken)
    }

    /// Files that belong to the log beside its events: known keys. Relative to the data directory.
    /// They stay as they are for as long as the answer is kept.
    pub fn key_files(&self) -> io::Result<KeyFiles> {
        // The directories are read without the lock that every commit needs.
        let on_disk = read_lock(&self.shared.known).on_disk();
        on_disk.files()
    }

    /// Every key by which an event is known, with its Seq, in no order; some perhaps twice. Blocking.
    pub fn known_keys(&self, each: &mut dyn FnMut(KnownKey, Seq)) -> io::Result<()> {
        if let Some(why) = self.damaged_keys().into_iter().next() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        known::every(&self.shared.known, &mut |key, seq| {
            if let Some(key) = Identity::read(key) {
                each(key, seq);
            }
        })
    }

    /// Every gap, also those that a restore has left.
    pub fn gaps(&self) -> Vec<Gap> {
        self.shared.gaps.list().to_vec()
    }
}

/// A segment's file of known keys, relative to the data directory; it is there if the segment is sealed and its keys are in no
/// month's database.
pub fn key_file(first: Seq) -> PathBuf {
    Path::new(KEYS).join(format!("{:020}", first.0))
}

fn is_key_file(name: &str) -> bool {
    name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())
}

fn segment_from(shared: &Shared, from: Seq) -> Option<(Seq, Segment)> {
    let segments = read_lock(&shared.segments);
    segments
        .range(from..)
        .next()
        .map(|(first, segment)| (*first, segment.clone()))
}

fn failed(error: impl std::fmt::Display) -> ReadError {
    ReadError(error.to_string())
}

fn take_open(
    shared: &Shared,
    open: &Arc<OpenSegment>,
    upto: Seq,
    taken: &mut Taken,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<(), ReadError> {
    let (first, sealed) = (open.first, false);
    each(Piece::Segment { first, sealed }).map_err(failed)?;
    let mut blocks = open.blocks().into_iter().filter(|block| block.head.first <= upto);
    // While it is open it stays what it is, even if another form of it takes its place.
    let Ok(_open) = open.opened() else {
        let mut at = first;
        return blocks.try_for_each(|block| {
            let (first, last) = (block.head.first, block.head.last());
            take_range(shared, &mut at, first, last, taken, each)
        });
    };
    for block in blocks {
        match open.read(block) {
            Ok(bytes) => {
                each(Piece::Block(&bytes)).map_err(failed)?;
                taken.count(block.head);
            }
            Err(SegmentError::Damaged(_)) => {
                taken.damaged.push((block.head.first, block.head.last()));
                if !shared.options.read_only {
                    let suspect = Suspect::Block(open.clone(), block);
                    shared.desk.have_looked_at(suspect).map_err(ReadError)?;
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn take_sealed(
    shared: &Shared,
    first: Seq,
    segment: &Arc<SealedSegment>,
    taken: &mut Taken,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<(), ReadError> {
    let sealed = true;
    each(Piece::Segment { first, sealed }).map_err(failed)?;
    let mut at = first;
    for pack in &segment.manifest.packs {
        take_range(shared, &mut at, pack.first, pack.last(), taken, each)?;
    }
    Ok(())
}

/// Takes what is there now from `first` to `last`: the keeper may put something else in its place at any time, with the same blocks or
/// fewer. What is before `at` was taken.
fn take_range(
    shared: &Shared,
    at: &mut Seq,
    first: Seq,
    last: Seq,
    taken: &mut Taken,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<(), ReadError> {
    *at = (*at).max(first);
    while *at <= last {
        match read::locate::<Encoded>(shared, *at)? {
            Found::Block(Encoded(bytes)) => {
                let head = Head::parse(&bytes).map_err(failed)?;
                // What was built anew meanwhile may lie in other blocks: a part of this one was handed over already.
                let (head, bytes) = if head.first < *at {
                    let rest = block::rest(&bytes, *at).map_err(failed)?;
                    (Head::parse(&rest).map_err(failed)?, rest)
                } else {
                    (head, bytes)
                };
                each(Piece::Block(&bytes)).map_err(failed)?;
                taken.count(head);
                *at = head.last().next();
            }
            Found::Skip(next) => {
                // What was dropped meanwhile is not damaged.
                let skipped = (*at, next.prev().min(last));
                if shared.segment_for(*at).is_some() {
                    taken.damaged.push(skipped);
                } else {
                    taken.expired.push(skipped);
                }
                *at = next;
            }
            Found::End => break,
        }
    }
    Ok(())
}

/// A log whose restore was cut off is not opened.
pub(super) fn refuse_unfinished(dir: &Path) -> Result<(), OpenError> {
    let marker = dir.join(MARKER);
    match sealed::has(&marker) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Unfinished(dir.to_owned())),
        Err(source) => Err(OpenError::Io { path: marker, source }),
    }
}

/// Makes a log in an empty data directory. Until [`Restorer::finish`] no log can be opened there.
#[derive(Debug)]
pub struct Restorer {
    dir: PathBuf,
    log_dir: PathBuf,
    current: Option<Current>,
    taken: Taken,
    /// Of the log it is a copy of.
    id: Option<String>,
    /// Segments whose keys are in a month's database that came along; looked for when the first segment comes.
    covered: Option<BTreeSet<Seq>>,
    /// A sentence for each set of known keys that came along damaged.
    left_out: Vec<String>,
    _lock: File,
}

#[derive(Debug)]
struct Current {
    journal: Journal,
    first: Seq,
    sealed: bool,
    events: u64,
    /// Keys of a sealed segment whose file did not come along; packs are without them.
    keys: Option<Table>,
}

impl Restorer {
    /// Takes the directory, which is made where it is missing and must be empty otherwise. Blocking, as all of it.
    pub fn new(dir: &Path) -> Result<Restorer, OpenError> {
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        make_dir(dir).map_err(fail)?;
        let names = || -> io::Result<Vec<String>> {
            std::fs::read_dir(dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        let mut found = names().map_err(fail)?;
        found.retain(|name| name != FILE_SYSTEM_S_OWN);
        if found.iter().any(|name| name == MARKER) {
            // Nothing but what a restore has made is beside that, for it begins with nothing. Not where one still works.
            let lock = take_lock(dir)?;
            tracing::warn!(
                "a restore into {} was cut off: what it had made is removed, and this one begins anew",
                dir.display()
            );
            clear(dir).map_err(fail)?;
            drop(lock);
            found.clear();
        }
        if found.iter().any(|name| name == "lock") {
            // Whoever has it is named; nobody having it does not make the directory empty.
            drop(take_lock(dir)?);
        }
        if !found.is_empty() {
            return Err(OpenError::NotEmpty(dir.to_owned()));
        }
        let lock = take_lock(dir)?;
        framefile::replace_file(&dir.join(MARKER), b"").map_err(fail)?;
        let log_dir = dir.join("log");
        make_dir(&log_dir).map_err(fail)?;
        framefile::sync_dir(dir).map_err(fail)?;
        Ok(Restorer {
            dir: dir.to_owned(),
            log_dir,
            current: None,
            taken: Taken::default(),
            id: None,
            covered: None,
            left_out: Vec::new(),
            _lock: lock,
        })
    }

    /// The id of the log that is put here: it is the same log, in another life.
    pub fn keep_id(&mut self, id: String) {
        self.id = Some(id);
    }

    /// Begins the next segment.
    pub fn segment(&mut self, first: Seq, sealed: bool) -> io::Result<()> {
        self.complete()?;
        if first <= self.taken.last {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("segment {first} begins before the end of the one before it"),
            ));
        }
        let (journal, _) = Journal::create(&self.log_dir, first).map_err(io::Error::other)?;
        // All that came before the events is there; whose keys are in none of it is found out from these.
        if self.covered.is_none() {
            self.leave_out_damaged()?;
            self.covered = Some(known::covered(&self.dir.join(KEYS))?);
        }
        let is_covered = self.covered.as_ref().is_some_and(|covered| covered.contains(&first));
        let has_keys = is_covered || self.key_file(first).exists();
        let keys = (sealed && !has_keys).then(Table::default);
        self.current = Some(Current {
            journal,
            first,
            sealed,
            events: 0,
            keys,
        });
        Ok(())
    }

    /// Adds a block to the segment that was begun last.
    pub fn block(&mut self, block: &[u8]) -> io::Result<()> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let head = Head::parse(block).map_err(|error| invalid(error.to_string()))?;
        let current = self
            .current
            .as_mut()
            .filter(|current| head.first >= current.first && head.first > self.taken.last);
        let current = current.ok_or_else(|| invalid(format!("event {} is out of its place", head.first)))?;
        if let Some(keys) = &mut current.keys {
            let each = |event: Event, _| {
                if let Some(identity) = Identity::of(&event) {
                    keys.insert(&identity, event.seq, event.received_at);
                }
            };
            block::for_each(block, each).map_err(|error| invalid(error.to_string()))?;
        }
        current.journal.append(block).map_err(io::Error::other)?;
        current.events += u64::from(head.count);
        self.taken.count(head);
        Ok(())
    }

    fn key_file(&self, first: Seq) -> PathBuf {
        self.dir.join(key_file(first))
    }

    /// What was put into it so far.
    pub fn taken(&self) -> &Taken {
        &self.taken
    }

    /// What was not read where this comes from, though it was there: it could not be, or was dropped before. Without this it counts as lost where
    /// it leaves Seqs out.
    pub fn lacks(&mut self, damaged: &[(Seq, Seq)], expired: &[(Seq, Seq)]) {
        self.taken.damaged.extend_from_slice(damaged);
        self.taken.expired.extend_from_slice(expired);
    }

    /// What this log lacks of the other one, as far as that is not on record there.
    fn record_lacks(&self, gaps: &mut Vec<Gap>) {
        let damaged = ("they could not be read when the backup was made", false);
        let expired = ("they were dropped while the backup was made", true);
        for (ranges, (reason, skipped)) in [(&self.taken.damaged, damaged), (&self.taken.expired, expired)] {
            for (from, to) in ranges {
                for (from, to) in gaps::unrecorded(gaps, *from, *to) {
                    gaps.push(Gap {
                        from,
                        to,
                        reason: reason.into(),
                        found_at: Timestamp::now(),
                        skipped,
                        certain_to: None,
                    });
                }
            }
        }
    }

    /// Makes what was begun durable, and seals it if it was sealed.
    fn complete(&mut self) -> io::Result<()> {
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        current.journal.sync().map_err(io::Error::other)?;
        drop(current.journal);
        let dir = journal::segment_dir(&self.log_dir, current.first);
        if current.events == 0 {
            return std::fs::remove_dir_all(&dir);
        }
        // Reads every event back.
        let (recovered, _) = journal::recover(&dir, current.first, None, true, true).map_err(io::Error::other)?;
        if recovered.events != current.events {
            let why = format!("events of segment {} can't be decoded", current.first);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if !current.sealed {
            return Ok(());
        }
        if let Some(keys) = &current.keys {
            known::write_file(&self.key_file(current.first), keys)?;
        }
        sealed::seal(&recovered.segment, &mut || true).map_err(io::Error::other)?;
        keeper::drop_journal(&recovered.segment)
    }

    /// Known keys that came along damaged are not known here (I2 for what has expired): they are removed, and named.
    fn leave_out_damaged(&mut self) -> io::Result<()> {
        let removed = known::remove_damaged(&self.dir.join(KEYS))?;
        self.left_out.extend(removed);
        Ok(())
    }

    /// Puts the log into force: with an epoch of its own, and a next Seq beyond all that the original can have given out.
    /// `head` is the last Seq it had given out at the time of the backup. Gives the next Seq.
    pub fn finish(&mut self, head: Seq, mut gaps: Vec<Gap>) -> io::Result<Seq> {
        self.complete()?;
        self.leave_out_damaged()?;
        let head = head.max(self.taken.last);
        let next = Seq((head.0 / JUMP + 1) * JUMP + 1);
        Journal::create(&self.log_dir, next).map_err(io::Error::other)?;
        self.record_lacks(&mut gaps);
        gaps.push(Gap {
            from: head.next(),
            to: next.prev(),
            reason: "restored from a backup: the original may have given out these Seqs since".into(),
            found_at: Timestamp::now(),
            skipped: true,
            certain_to: None,
        });
        Gaps::write(&self.dir, sealed::swap::oldest(&self.log_dir)?, &gaps)?;
        Description::make(&self.dir, self.id.take()).map_err(io::Error::other)?;
        framefile::sync_dir(&self.log_dir)?;
        std::fs::remove_file(self.dir.join(MARKER))?;
        framefile::sync_dir(&self.dir)?;
        Ok(next)
    }

    /// Whether a path, relative to the data directory, is that of a file of known keys.
    pub fn is_key_file(path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(KEYS) else {
            return false;
        };
        let mut names = below.iter().map(|name| name.to_string_lossy());
        match (names.next(), names.next()) {
            (Some(name), None) => is_key_file(&name),
            (Some(month), Some(_)) => known::is_month(&month),
            (None, _) => false,
        }
    }

    /// The same path below the directory of known keys; `None` where it is none of theirs.
    pub fn below_keys(path: &Path) -> Option<&Path> {
        path.strip_prefix(KEYS).ok()
    }

    /// A sentence for each set of known keys that came along damaged, and is left out; complete when it is [finished](Restorer::finish).
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Leaves the directory empty, as it was found.
    pub fn abandon(self) -> io::Result<()> {
        clear(&self.dir)
    }
}

/// Removes what a restore has made; the marker last, so that it can be begun anew.
fn clear(dir: &Path) -> io::Result<()> {
    let mut marker_last = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            marker_last.push(entry.path());
        } else if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        } else if entry.file_name() != FILE_SYSTEM_S_OWN {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    marker_last.iter().try_for_each(std::fs::remove_file)
}
