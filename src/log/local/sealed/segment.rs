//! A sealed segment as readers see it, and how it is made from a journal and from another form of itself.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::super::block::Block;
use super::super::fault::SegmentError;
use super::super::journal::{BlockRef, OpenSegment};
use super::super::scratch::{self, Scratch};
use super::super::space::Left;
use super::check;
use super::database::{self, DB_NAME, Database};
use super::manifest::{self, Manifest};
use super::packs::{build, get_pack};
use crate::event::{Event, Seq};
use crate::log::Narrow;
use crate::sync::lock;

/// A database is opened anew when so much was read from it.
const DATABASE_READ_MAX: usize = 8 << 20;

/// Databases open at a time.
const DATABASES_OPEN_MAX: usize = 2;

/// A sealed segment as readers see it. Its database is opened on demand and closed when idle.
#[derive(Debug)]
pub(in crate::log::local) struct SealedSegment {
    pub dir: PathBuf,
    pub manifest: Manifest,
    /// Bytes on disk.
    pub disk_bytes: u64,
    access: Access,
    database: Mutex<Place>,
}

/// How a database may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log::local) enum Access {
    /// By the process that holds the data directory's lock.
    Owner,
    /// By anybody: a [copy](scratch) is opened, and nothing is written into the original.
    Visitor,
}

/// Where the database is, as far as this process has it.
#[derive(Debug, Default)]
struct Place {
    open: Option<OpenDatabase>,
    /// The files were compared with the manifest since this process started.
    checked: bool,
    /// Another one is in its place, or nothing.
    retired: bool,
}

#[derive(Debug)]
struct OpenDatabase {
    db: Database,
    last_used: Instant,
    /// Bytes read from it.
    read: usize,
    /// Deleted when the database is closed.
    _copy: Option<Scratch>,
}

impl SealedSegment {
    /// A segment whose manifest was loaded.
    pub fn new(dir: PathBuf, manifest: Manifest, access: Access) -> SealedSegment {
        let disk_bytes = manifest.database_bytes() + manifest::bytes_of_manifests(&dir);
        SealedSegment {
            dir,
            manifest,
            disk_bytes,
            access,
            database: Mutex::default(),
        }
    }

    /// One pack, decoded, by its index in the manifest.
    pub fn read(&self, index: usize) -> Result<Block, SegmentError> {
        let bytes = self.read_bytes(index)?;
        Block::decode(&bytes).map_err(|error| SegmentError::Damaged(error.to_string()))
    }

    /// One pack as it is kept, compared with the manifest's checksum, by its index there. That something is damaged is only
    /// suspected then: [`SealedSegment::examine`] tells.
    pub fn read_bytes(&self, index: usize) -> Result<Vec<u8>, SegmentError> {
        let pack = self.manifest.packs[index];
        self.with_database(|db| {
            let bytes = get_pack(db, pack)?;
            let read = bytes.len();
            Ok((bytes, read))
        })
    }

    /// The Seqs of the events that `narrow` leaves, perhaps with some others; `None` where only reading everything tells.
    pub fn candidates(&self, narrow: &Narrow) -> Result<Option<Vec<Seq>>, SegmentError> {
        let Some(index) = &self.manifest.index else {
            return Ok(None);
        };
        match self.with_database(|db| index.look_up(db, narrow)) {
            Ok(candidates) => Ok(candidates),
            Err(SegmentError::Damaged(why)) => {
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
        work: impl FnOnce(&Database) -> Result<(T, usize), SegmentError>,
    ) -> Result<T, SegmentError> {
        let mut place = lock(&self.database);
        if place.retired {
            return Err(SegmentError::Retired);
        }
        if place.open.is_none() {
            let opened = self.open(place.checked)?;
            place.checked = true;
            place.open = Some(opened);
        }
        let Some(open) = place.open.as_mut() else {
            return Err(SegmentError::Retired);
        };
        open.last_used = Instant::now();
        let (result, read) = work(&open.db)?;
        open.read += read;
        // The database's cache keeps whatever was read, its limit notwithstanding: only a closed database forgets.
        if open.read > DATABASE_READ_MAX {
            place.open = None;
        }
        Ok(result)
    }

    fn open(&self, checked: bool) -> Result<OpenDatabase, SegmentError> {
        let original = self.dir.join(DB_NAME);
        let (path, copy) = match self.access {
            Access::Owner => {
                // One that is not there would be made, empty.
                if !checked || !manifest::has(&original.join("db"))? {
                    check::judged(check::faults(&original, &self.manifest.files, &mut || true)?)?;
                }
                (original, None)
            }
            Access::Visitor => {
                let copy = self.copy(&original)?;
                (copy.path().to_owned(), Some(copy))
            }
        };
        let db = Database::open(&path).map_err(|error| match (error, &copy) {
            (SegmentError::Damaged(why), Some(copy)) => {
                SegmentError::Damaged(copy.as_of(&self.dir.join(DB_NAME), &why))
            }
            (error, _) => error,
        })?;
        Ok(OpenDatabase {
            db,
            last_used: Instant::now(),
            read: 0,
            _copy: copy,
        })
    }

    /// A copy in which the small files are whole.
    fn copy(&self, original: &Path) -> Result<Scratch, SegmentError> {
        let copy = scratch::copy(original, self.manifest.database_bytes(), Left::ReserveTwice, |to| {
            check::copy_files(original, to)
        })?;
        let faults = check::faults_of(copy.path(), original, &self.manifest.files, &mut || true)?;
        let kept = if faults.is_empty() {
            manifest::Kept::new()
        } else {
            self.manifest.kept(&self.dir)
        };
        let said = check::READ_FROM_MANIFEST;
        check::judged(check::put_back(copy.path(), faults, &kept, said)?)?;
        Ok(copy)
    }

    /// Closes the database if nobody used it for `idle`; `false` where somebody is using it.
    pub fn close_idle(&self, idle: Duration) -> bool {
        let Ok(mut place) = self.database.try_lock() else {
            return false;
        };
        if place.open.as_ref().is_some_and(|open| open.last_used.elapsed() >= idle) {
            place.open = None;
        }
        place.open.is_none()
    }

    /// Whether its database is open.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        lock(&self.database).open.is_some()
    }

    /// Whether the files are what was sealed; small ones that are not are put back. Only this proves damage. For the keeper, who is
    /// asked all the while whether it is still wanted.
    pub fn examine(&self, progress: &mut dyn FnMut() -> bool) -> Result<(), SegmentError> {
        let mut place = lock(&self.database);
        if place.retired {
            return Err(SegmentError::Retired);
        }
        place.open = None;
        place.checked = false;
        let dir = self.dir.join(DB_NAME);
        let faults = check::faults(&dir, &self.manifest.files, progress)?;
        if !faults.is_empty() {
            let kept = self.manifest.kept(&self.dir);
            check::judged(check::put_back(&dir, faults, &kept, check::PUT_BACK)?)?;
            check::judged(check::faults(&dir, &self.manifest.files, progress)?)?;
        }
        place.checked = true;
        Ok(())
    }

    /// Whether the original's files are what was sealed, but for small ones that the manifest keeps. Changes nothing.
    pub fn is_whole(&self) -> Result<(), SegmentError> {
        let faults = check::faults(&self.dir.join(DB_NAME), &self.manifest.files, &mut || true)?;
        let kept = self.manifest.kept(&self.dir);
        let serious = faults.into_iter().filter(|fault| !kept.contains_key(&fault.name));
        check::judged(serious.collect())
    }

    /// Writes both manifests anew where one of them is damaged, or where an older closehook wrote them without the small files. For the
    /// keeper, and for a segment that was found whole.
    pub fn mend_manifests(&self) -> Result<(), SegmentError> {
        let faults = Manifest::faults(&self.dir)?;
        if faults.is_empty() && self.manifest.keeps_small_files(&self.dir) {
            return Ok(());
        }
        for fault in &faults {
            tracing::error!(
                first = self.manifest.first.0,
                last = self.manifest.last.0,
                fault,
                "one of the two manifests of a sealed segment is damaged; the other one is whole, and is written in its place"
            );
        }
        let _nobody_else = lock(&self.database);
        self.manifest.store(&self.dir)
    }

    /// From now on whoever still holds it is told to look again. Waits for the one who is reading. For the keeper.
    pub fn retire(&self) {
        let mut place = lock(&self.database);
        place.retired = true;
        if place.open.take().is_some() && self.access == Access::Owner {
            // The database's threads let go a moment later; what they should still do to the files is of no more use.
            let _ = database::wait_until_closed(&self.dir.join(DB_NAME));
        }
    }

    /// Whether something else is to take its place, or has.
    pub fn is_retired(&self) -> bool {
        lock(&self.database).retired
    }

    /// It is in force again: what was to take its place has not.
    pub fn reinstate(&self) {
        lock(&self.database).retired = false;
    }

    /// Compares the manifests, every file and every pack with what was sealed, whatever was checked before; gives a sentence for each fault. All
    /// of that is of the originals, whose faults a copy may be without; packs are read where the files are whole but for what the manifest
    /// keeps.
    pub fn verify(&self) -> Result<Vec<String>, SegmentError> {
        let mut found = Manifest::faults(&self.dir)?;
        let faults = {
            let mut place = lock(&self.database);
            if place.retired {
                return Err(SegmentError::Retired);
            }
            place.open = None;
            place.checked = false;
            let faults = check::faults(&self.dir.join(DB_NAME), &self.manifest.files, &mut || true)?;
            place.checked = faults.is_empty();
            faults
        };
        // The owner never opens an original that is not what was sealed; for readers the keeper puts it right first.
        let is_readable = faults.is_empty()
            || self.access == Access::Visitor && {
                let kept = self.manifest.kept(&self.dir);
                faults.iter().all(|fault| kept.contains_key(&fault.name))
            };
        found.extend(faults.into_iter().map(|fault| fault.why));
        if is_readable {
            for index in 0..self.manifest.packs.len() {
                if let Err(error) = self.read(index) {
                    found.push(told(error)?);
                    break;
                }
            }
        }
        self.close_idle(Duration::ZERO);
        Ok(found)
    }
}

/// The segments whose databases may be open, those read last at the end: bounded, since each takes memory.
#[derive(Debug, Default)]
pub(in crate::log::local) struct OpenDatabases(Mutex<VecDeque<Weak<SealedSegment>>>);

impl OpenDatabases {
    /// This one is about to be read: those read longest ago are closed if too many would be open.
    pub fn touch(&self, segment: &Arc<SealedSegment>) {
        let mut recent = lock(&self.0);
        recent.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(segment)));
        recent.push_back(Arc::downgrade(segment));
        let mut surplus = recent.len().saturating_sub(DATABASES_OPEN_MAX);
        recent.retain(|known| {
            // One that is being read right now is closed the next time.
            let closed = surplus > 0 && known.upgrade().is_none_or(|oldest| oldest.close_idle(Duration::ZERO));
            surplus -= usize::from(closed);
            !closed
        });
    }
}

/// Makes the sealed form of a complete segment beside its journal, and returns its manifest when everything is durable. The
/// journal is left alone.
pub(in crate::log::local) fn seal(
    segment: &OpenSegment,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Manifest, SegmentError> {
    let _open = segment.opened()?;
    let mut blocks = segment.blocks().into_iter();
    let next = || -> Result<Option<Block>, SegmentError> {
        let Some(block) = blocks.next() else { return Ok(None) };
        read_block(segment, block).map(Some)
    };
    build(&segment.dir, next, progress)
}

/// A block of a journal, decoded.
pub(in crate::log::local) fn read_block(segment: &OpenSegment, block: BlockRef) -> Result<Block, SegmentError> {
    let bytes = segment.read(block)?;
    Block::decode(&bytes).map_err(|error| SegmentError::Damaged(error.to_string()))
}

/// Builds a sealed segment anew in `staging`, through `change`, which must keep every Seq.
pub(in crate::log::local) fn rewrite(
    segment: &SealedSegment,
    staging: &Path,
    change: &mut dyn FnMut(Event) -> Event,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Manifest, SegmentError> {
    let mut packs = 0..segment.manifest.packs.len();
    let next = || -> Result<Option<Block>, SegmentError> {
        let Some(index) = packs.next() else { return Ok(None) };
        let events = segment.read(index)?.events.into_iter().filter_map(Arc::into_inner);
        let events = events.map(|event| Arc::new(change(event))).collect();
        Ok(Some(Block { events }))
    };
    build(staging, next, progress)
}

/// What is wrong, in a sentence; an error where something else takes the segment's place.
fn told(error: SegmentError) -> Result<String, SegmentError> {
    match error {
        SegmentError::Retired => Err(SegmentError::Retired),
        error => Ok(error.to_string()),
    }
}

/// A time of receipt as the manifest keeps it.
pub(in crate::log::local) fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}
