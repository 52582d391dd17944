//! All keys that are known, as they are told apart: those of the newest segment in memory, those of complete ones in sets on disk.
//! Nothing here reads or changes the disk but opening, [`KnownKeys::seal`], and what asks how far the log went, which a start does.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::copies::OnDisk;
use super::file::{KeyFile, write_file};
use super::filter::Probe;
use super::identity::{Identity, id_part};
use super::merge::{self, Merged, Order};
use super::opening::{self, Unsaved};
use super::table::Table;
use super::unit::{Content, READ_AGAIN, Unit};
use crate::event::Seq;

/// What memory says of an identity.
#[derive(Debug)]
pub(in crate::log::local) enum Recalled {
    /// It is known under this Seq.
    Known(Seq),
    /// It is not known.
    New,
    /// One of these sets may hold it: only the disk tells.
    Doubtful(Vec<Arc<Unit>>),
}

/// All keys that are known.
#[derive(Debug)]
pub(in crate::log::local) struct KnownKeys {
    pub(super) dir: PathBuf,
    /// Of segments whose keys are in no file yet, by their first Seqs. Shared, so that a complete segment's keys are written without anybody waiting
    /// for it.
    tables: BTreeMap<Seq, Arc<Table>>,
    /// Older ones first.
    pub(super) units: Vec<Arc<Unit>>,
    /// Damaged sets that have given way to what could be read of them, before the rest is read from events again. They are in force for that long:
    /// what they may hold is in doubt.
    doubted: Vec<Arc<Unit>>,
    /// Damaged sets of which nothing is known before there is room to save what can be read of them.
    unsaved: Vec<Unsaved>,
    /// Held by whoever copies or compares the files.
    held: Arc<()>,
}

impl KnownKeys {
    /// Opens what is in `dir`. The owner of the directory finishes or undoes what a crash interrupted, and sets aside under
    /// another name what is damaged; either way that is reported. What can't be read for another reason is an error, and a full disk is none.
    pub fn open(dir: &Path, owner: bool, mut report: impl FnMut(&Path, &io::Error)) -> io::Result<KnownKeys> {
        let found = opening::find(dir, owner, &mut report)?;
        Ok(KnownKeys {
            dir: dir.to_owned(),
            tables: BTreeMap::new(),
            units: found.units,
            doubted: Vec::new(),
            unsaved: found.unsaved,
            held: Arc::default(),
        })
    }

    /// Damaged sets that wait for room on the disk: to be [saved](opening::save) then, and to be waited for before anything is called new.
    pub fn take_unsaved(&mut self) -> Vec<Unsaved> {
        std::mem::take(&mut self.unsaved)
    }

    /// What could be read of one of them is in place.
    pub fn saved(&mut self, saved: &Merged) {
        self.units.insert(0, saved.0.clone());
    }

    /// The table of a segment whose keys are in no file; made empty where there is none.
    pub fn table(&mut self, segment: Seq) -> &mut Table {
        // Only complete segments' tables are ever shared, and those do not change: nothing is copied here.
        Arc::make_mut(self.tables.entry(segment).or_default())
    }

    /// What memory says of an identity. What was stored under a Seq that `is_gone` is not known by it: it may have come again, and
    /// be known by another.
    pub fn recall(&self, identity: &Identity, is_gone: &dyn Fn(Seq) -> bool) -> Recalled {
        let hash = identity.hash;
        // A repetition most likely repeats something recent.
        let mut tables = self.tables.values().rev();
        if let Some(seq) = tables.find_map(|table| table.find(identity, hash, is_gone)) {
            return Recalled::Known(seq);
        }
        let units = self.may_hold(hash);
        if units.is_empty() {
            Recalled::New
        } else {
            Recalled::Doubtful(units)
        }
    }

    /// What memory says of every revision of an event id, and the sets that may hold others.
    pub(super) fn recall_revisions(&self, identity: &Identity) -> (Vec<Seq>, Vec<Arc<Unit>>) {
        let (id_part, hash) = (id_part(identity.as_bytes()), identity.hash);
        let mut found = Vec::new();
        for table in self.tables.values() {
            table.revisions(id_part, hash, &mut found);
        }
        (found, self.may_hold(hash))
    }

    /// Those in doubt come last.
    fn may_hold(&self, hash: u64) -> Vec<Arc<Unit>> {
        let probe = Probe::new(hash);
        self.in_force().filter(|unit| unit.may_hold(&probe)).cloned().collect()
    }

    fn in_force(&self) -> impl Iterator<Item = &Arc<Unit>> {
        self.units.iter().chain(&self.doubted)
    }

    /// All keys: those in memory, and those on disk.
    pub(super) fn everything(&self) -> (Vec<Arc<Table>>, Vec<Arc<Unit>>) {
        (
            self.tables.values().cloned().collect(),
            self.in_force().cloned().collect(),
        )
    }

    /// Whether a set is in force.
    pub(super) fn holds(&self, unit: &Arc<Unit>) -> bool {
        self.in_force().any(|known| Arc::ptr_eq(known, unit))
    }

    /// The keys of a complete segment that are in no file yet.
    pub fn unwritten(&self, segment: Seq) -> Option<Arc<Table>> {
        self.tables.get(&segment).filter(|_| !self.has_file(segment)).cloned()
    }

    /// Whether the keys of a segment are in memory.
    pub fn has_table(&self, segment: Seq) -> bool {
        self.tables.contains_key(&segment)
    }

    /// Sets in doubt: the keys of kept segments that they name are to be read from the events.
    pub fn doubted(&self) -> Vec<Arc<Unit>> {
        self.doubted.clone()
    }

    /// Why some keys are neither known nor new, one sentence; `None`: none is.
    pub fn in_doubt(&self) -> Option<&'static str> {
        if !self.doubted.is_empty() {
            return Some(READ_AGAIN);
        }
        let is_damaged = self.units.iter().any(|unit| unit.is_damaged());
        is_damaged.then_some("known keys are damaged, and what can be read of them has still to be saved")
    }

    /// All keys of kept segments that these sets lack are known again.
    pub fn end_doubts(&mut self, over: &[Arc<Unit>]) {
        self.doubted
            .retain(|unit| !over.iter().any(|over| Arc::ptr_eq(over, unit)));
    }

    /// The segments whose keys are in memory, in order.
    #[cfg(test)]
    pub fn in_memory(&self) -> Vec<Seq> {
        self.tables.keys().copied().collect()
    }

    /// Where a segment's key file is.
    pub fn file_path(&self, segment: Seq) -> PathBuf {
        self.dir.join(format!("{:020}", segment.0))
    }

    /// The segment's keys are durable, in this file unless in a month's database: its table gives way, and is handed back, since
    /// dropping it takes time.
    #[must_use]
    pub fn sealed(&mut self, segment: Seq, file: Option<KeyFile>) -> Option<Arc<Table>> {
        if let Some(file) = file
            && !self.has_file(segment)
        {
            self.units.push(Unit::new(Content::File(file)));
        }
        self.tables.remove(&segment)
    }

    /// Writes a segment's keys and lets its table give way to the file.
    pub fn seal(&mut self, segment: Seq) -> io::Result<()> {
        let path = self.file_path(segment);
        let file = match self.unwritten(segment) {
            Some(table) => {
                write_file(&path, &table)?;
                Some(KeyFile::open(&path, segment)?)
            }
            None => None,
        };
        drop(self.sealed(segment, file));
        Ok(())
    }

    /// Whether all keys of a complete segment are on disk.
    pub fn has_file(&self, segment: Seq) -> bool {
        self.units
            .iter()
            .any(|unit| unit.segments().binary_search(&segment).is_ok())
    }

    /// The sets whose keys were all received before `cutoff`, and of segments that are not kept any more.
    pub fn expired(&self, cutoff: Timestamp, is_kept: impl Fn(&Seq) -> bool) -> Vec<Arc<Unit>> {
        if self.is_held() {
            return Vec::new();
        }
        let is_over = |unit: &&Arc<Unit>| unit.is_over(cutoff, &is_kept);
        self.units.iter().filter(is_over).cloned().collect()
    }

    /// Forgets a set of keys; its files are the caller's to remove. `false` where somebody is copying them.
    #[must_use]
    pub fn forget(&mut self, unit: &Arc<Unit>) -> bool {
        if self.is_held() {
            return false;
        }
        self.units.retain(|known| !Arc::ptr_eq(known, unit));
        true
    }

    /// What should be merged next, if anything.
    pub fn to_merge(&self, now: Timestamp) -> Option<Order> {
        if self.is_held() {
            return None;
        }
        merge::plan(&self.units, now)
    }

    /// The first segment of which any key may be known.
    pub fn oldest_segment(&self) -> Option<Seq> {
        let of_unit = |unit: &Arc<Unit>| {
            // One that names none may hold any.
            unit.named().min().copied().unwrap_or(Seq::ZERO)
        };
        let units = self.units.iter().map(of_unit);
        units.chain(self.tables.keys().copied()).min()
    }

    /// The last Seq between these of which a key of the segment that begins with the first is on disk, as far as that can be read.
    pub fn last_in(&self, first: Seq, last: Seq) -> Option<Seq> {
        self.last_of(|unit| unit.names(first), first..=last)
    }

    /// The last Seq from `from` on of which a key is on disk in a set that names a segment from there on, as far as that can be read. Sets that
    /// name none are not read.
    pub fn last_behind(&self, from: Seq) -> Option<Seq> {
        self.last_of(|unit| unit.named().any(|first| *first >= from), from..)
    }

    /// The last Seq within a range of which a key is on disk in one of the sets that `has_some`, as far as that can be read.
    fn last_of(&self, has_some: impl Fn(&Unit) -> bool, range: impl RangeBounds<Seq>) -> Option<Seq> {
        let mut found = None;
        for unit in self.units.iter().filter(|unit| has_some(unit)) {
            for number in 0..unit.known().pages() {
                // What can't be read tells nothing; it is named when somebody asks for it.
                let _ = unit.known().page(number, &mut |_, seq| {
                    if range.contains(&seq) {
                        found = found.max(Some(seq));
                    }
                });
            }
        }
        found
    }

    /// The first segment that the newest set on disk names; `None`: it names none.
    pub fn newest_begins(&self) -> Option<Seq> {
        let newest = self.units.iter().max_by_key(|unit| unit.newest_us())?;
        newest.named().min().copied()
    }

    /// When the newest event was received whose key is on disk, in microseconds.
    pub fn newest_us(&self) -> Option<i64> {
        self.units.iter().map(|unit| unit.newest_us()).max()
    }

    /// How many sets are looked through for an unknown key.
    pub fn sets(&self) -> usize {
        self.units.len()
    }

    /// The directory they are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A merge is in place: what was merged gives way to it, and is the caller's to remove; what was damaged of it is in doubt until
    /// [its end](KnownKeys::end_doubts). `None` where somebody is copying the files; then the merged one is.
    #[must_use]
    pub fn merged(&mut self, order: &Order, merged: &Merged) -> Option<Vec<Arc<Unit>>> {
        if self.is_held() {
            return None;
        }
        self.units
            .retain(|unit| !order.inputs.iter().any(|input| Arc::ptr_eq(input, unit)));
        self.units.insert(0, merged.0.clone());
        if order.saves() {
            order.inputs.iter().for_each(|input| input.doubt());
            self.doubted.extend(order.inputs.iter().cloned());
        }
        Some(order.inputs.clone())
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    /// What is on disk as it is now; it may give way at any time.
    pub fn units(&self) -> Vec<Arc<Unit>> {
        self.units.clone()
    }

    /// What is on disk, to be read while nobody waits for it; it stays for as long as this is there.
    pub fn on_disk(&self) -> OnDisk {
        let below = PathBuf::from(self.dir.file_name().unwrap_or_default());
        OnDisk::new(below, self.units.clone(), self.held.clone())
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.units.iter().map(|unit| unit.bytes()).sum()
    }
}
