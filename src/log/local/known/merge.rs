//! Merging: the keys of many segments of a month become one database.
//!
//! Sets of about the same size are merged, four of them into one, so that a key is rewritten as often as the month's keys can be
//! divided by four, and few sets are there at a time; when the month is over all of it becomes one. The steps:
//!
//! 1. the database is made in `keys/merging/`, its manifest last;
//! 2. the directory gets its name, one of its own, as it carries a generation;
//! 3. what was merged is removed.
//!
//! A crash leaves either no manifest, and what is there is thrown away; or a whole one without its name, which it then gets; or
//! sets all of whose segments are in one of a later generation, which then go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::super::space::{self, Left};
use super::disk::{self, is_damage};
use super::identity::hash_of;
use super::month::{Builder, Manifest, Month};
use super::set::Known;
use super::unit::{Content, Unit};
use crate::event::Seq;
use crate::framefile;
use crate::sorted;

/// Where a month is made.
pub(super) const STAGING: &str = "merging";

/// So many sets of about the same size become one.
const ALIKE: usize = 4;

/// Sets that are merged at a time: each needs a page in memory.
const MERGED_MAX: usize = 16;

/// Sets of fewer keys are all about the same size.
const SMALL: u64 = 4096;

/// A month is over when it has been over for so long: a segment may be a day old before its keys come to a file.
const OVER_SINCE: SignedDuration = SignedDuration::from_hours(48);

/// What is to be merged.
#[derive(Debug)]
pub(in crate::log::local) struct Order {
    month: String,
    pub(super) inputs: Vec<Arc<Unit>>,
    /// Some of it is damaged: what can be read is kept, and no segment is said to be whole.
    saves: bool,
    /// What stays free on the disk.
    left: Left,
}

/// The month in which these keys were received.
fn month_of(us: i64) -> String {
    let time = Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m").to_string()
}

/// The size of a set, by powers of four.
fn size_of(count: u64) -> u32 {
    count.max(SMALL).ilog2() / 2
}

/// What should be merged next, if anything.
pub(super) fn plan(units: &[Arc<Unit>], now: Timestamp) -> Option<Order> {
    if let Some(damaged) = units.iter().find(|unit| unit.is_damaged()) {
        return Some(Order::to_save(damaged.clone()));
    }
    let mut months: BTreeMap<String, Vec<&Arc<Unit>>> = BTreeMap::new();
    for unit in units {
        months.entry(month_of(unit.newest_us())).or_default().push(unit);
    }
    let current = month_of(now.checked_sub(OVER_SINCE).unwrap_or(Timestamp::MIN).as_microsecond());
    months.into_iter().find_map(|(month, mut units)| {
        sorted::sort_by_key(&mut units, |unit| unit.count());
        let is_over = month < current && (units.len() > 1 || units.iter().any(|unit| unit.is_file()));
        if !is_over {
            let alike = |units: &[&Arc<Unit>]| size_of(units[0].count()) == size_of(units[units.len() - 1].count());
            let end = (ALIKE..=units.len())
                .rev()
                .find(|end| alike(&units[end - ALIKE..*end]))?;
            let size = size_of(units[end - 1].count());
            units.retain(|unit| size_of(unit.count()) == size);
        }
        units.truncate(MERGED_MAX);
        Some(Order {
            month,
            inputs: units.into_iter().cloned().collect(),
            saves: false,
            left: Left::Reserve(None),
        })
    })
}

impl Order {
    /// To keep what can be read of a damaged set.
    pub(super) fn to_save(unit: Arc<Unit>) -> Order {
        Order {
            month: month_of(unit.newest_us()),
            inputs: vec![unit],
            saves: true,
            left: Left::Little,
        }
    }

    /// The same for a log with this reserve, below which it stores nothing: only what is owed may take of it.
    pub(in crate::log::local) fn with_reserve(self, reserve: Option<u64>) -> Order {
        let left = if self.saves { self.left } else { Left::Reserve(reserve) };
        Order { left, ..self }
    }

    /// Bytes on disk of what is to be merged.
    fn bytes(&self) -> u64 {
        self.inputs.iter().map(|unit| unit.bytes()).sum()
    }

    /// An error where there is hardly room for it on the disk: a database takes somewhat more than a file of the same keys, and more where
    /// they are few. Whether there is shows while it is [made](Order::stage).
    pub(in crate::log::local) fn have_room(&self, keys_dir: &Path) -> io::Result<()> {
        space::have_room(keys_dir, self.bytes() / 4 * 5 + (1 << 20), self.left)
    }

    /// Whether what was merged is damaged, and to be set aside.
    pub(in crate::log::local) fn saves(&self) -> bool {
        self.saves
    }

    /// Step 1: makes the database. `go_on` ends it with an error, and so does a disk with less free than is to be left.
    pub(in crate::log::local) fn stage(
        &self,
        keys_dir: &Path,
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let go_on: &mut dyn FnMut() -> io::Result<()> = &mut || {
            space::have_room(keys_dir, 0, self.left)?;
            go_on()
        };
        let staging = keys_dir.join(STAGING);
        disk::remove(&staging)?;
        crate::framefile::make_dir(&staging)?;
        let mut segments: BTreeSet<Seq> = self.inputs.iter().flat_map(|unit| unit.segments()).copied().collect();
        let mut partly: BTreeSet<Seq> = self.inputs.iter().flat_map(|unit| unit.partly()).copied().collect();
        let generation = self
            .inputs
            .iter()
            .map(|unit| unit.generation())
            .max()
            .unwrap_or_default()
            + 1;
        let edge = |seq: Option<&Seq>| seq.copied().unwrap_or_default().0;
        let name = format!(
            "{}-{:020}-{:020}-{generation}",
            self.month,
            edge(segments.first()),
            edge(segments.last())
        );
        if self.saves {
            partly.append(&mut segments);
        }
        let manifest = Manifest {
            name,
            month: self.month.clone(),
            generation,
            segments: segments.into_iter().collect(),
            partly: partly.into_iter().collect(),
            count: 0,
            newest_us: 0,
            pages: 0,
            files: Vec::new(),
        };
        let keys = self.inputs.iter().map(|unit| unit.count()).sum();
        let newest_us = self
            .inputs
            .iter()
            .map(|unit| unit.newest_us())
            .max()
            .unwrap_or_default();
        let mut builder = Builder::new(&staging, keys, newest_us)?;
        let damaged = self.merge(&mut builder, go_on)?;
        if damaged > 0 {
            tracing::error!(
                pages = damaged,
                "known keys were damaged beyond repair: repetitions of some events that have expired would be stored again; those \
                 of events that are kept are read from the events, before anything is stored that may repeat one"
            );
        }
        builder.finish(manifest, go_on)
    }

    /// Hands every key on, once, in the order of hashes; gives how many pages were left out because they are damaged.
    fn merge(&self, builder: &mut Builder, go_on: &mut dyn FnMut() -> io::Result<()>) -> io::Result<usize> {
        let savers: Vec<Option<Month>> = self.inputs.iter().map(|unit| unit.to_be_saved(self.saves)).collect();
        let sources = self.inputs.iter().zip(&savers);
        let mut sources: Vec<Source<'_>> = sources
            .map(|(unit, saver)| Source {
                unit,
                keys: saver.as_ref().map_or(unit.known(), |saver| saver),
                page: 0,
                damaged: 0,
                tolerant: self.saves,
            })
            .collect();
        // The keys of one page of each set, the one with the least hash on top.
        let mut heap: BinaryHeap<Reverse<Next>> = BinaryHeap::new();
        let mut left = vec![0_usize; sources.len()];
        let refill = |index: usize, sources: &mut [Source<'_>], heap: &mut BinaryHeap<_>| -> io::Result<usize> {
            let keys = sources[index].next_page()?;
            let count = keys.len();
            heap.extend(
                keys.into_iter()
                    .map(|(hash, key, seq)| Reverse((hash, key, seq, index))),
            );
            Ok(count)
        };
        for (index, left) in left.iter_mut().enumerate() {
            *left = refill(index, &mut sources, &mut heap)?;
        }
        let mut last: Option<(u64, Vec<u8>, Seq)> = None;
        while let Some(Reverse((hash, key, seq, index))) = heap.pop() {
            left[index] -= 1;
            if left[index] == 0 {
                go_on()?;
                left[index] = refill(index, &mut sources, &mut heap)?;
            }
            let key = (hash, key, seq);
            if last.as_ref() != Some(&key) {
                builder.push(key.0, &key.1, key.2)?;
                last = Some(key);
            }
        }
        Ok(sources.iter().map(|source| source.damaged).sum())
    }
}

/// A key with its hash in front, and which set it is from.
type Next = (u64, Vec<u8>, Seq, usize);

/// A set of keys, read page by page.
struct Source<'a> {
    unit: &'a Unit,
    keys: &'a dyn Known,
    page: usize,
    damaged: usize,
    tolerant: bool,
}

impl Source<'_> {
    /// The keys of the next page that has any; none at the end.
    fn next_page(&mut self) -> io::Result<Vec<(u64, Vec<u8>, Seq)>> {
        while self.page < self.keys.pages() {
            let mut found = Vec::new();
            let read = self
                .keys
                .page(self.page, &mut |key, seq| found.push((hash_of(key), key.to_vec(), seq)));
            self.page += 1;
            match read {
                Ok(()) if found.is_empty() => {}
                Ok(()) => return Ok(found),
                Err(error) if self.tolerant && is_damage(&error) => self.damaged += 1,
                Err(error) => {
                    self.unit.judge(&error);
                    return Err(error);
                }
            }
        }
        Ok(Vec::new())
    }
}

/// A merged set that has its name, to be taken up by [`super::KnownKeys::merged`].
#[derive(Debug)]
pub(in crate::log::local) struct Merged(pub(super) Arc<Unit>);

impl Merged {
    /// Opens it. One that can't be opened goes again: what was merged is still there, and nobody would take the two for the same.
    pub fn open(dir: &Path) -> io::Result<Merged> {
        match Month::open(dir, false) {
            Ok(month) => Ok(Merged(Unit::new(Content::Month(Box::new(month))))),
            Err(error) => {
                disk::remove_named(dir)?;
                Err(error)
            }
        }
    }

    /// Removes it again.
    pub fn remove(&self) -> io::Result<()> {
        self.0.remove()
    }
}

/// Throws away what was made, or begun.
pub(in crate::log::local) fn abandon(keys_dir: &Path) -> io::Result<()> {
    disk::remove(&keys_dir.join(STAGING))
}

/// Step 2: gives what was made its name. `None` where it is not whole.
pub(in crate::log::local) fn publish(keys_dir: &Path) -> io::Result<Option<PathBuf>> {
    let staging = keys_dir.join(STAGING);
    let manifest = match Manifest::load(&staging) {
        Ok(manifest) => manifest,
        Err(error) if is_damage(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut named = keys_dir.join(&manifest.name);
    // What could be saved of a damaged set may be there already, if a crash came before that was set aside.
    let mut number = 0;
    while named.exists() {
        number += 1;
        named = keys_dir.join(format!("{}-{number}", manifest.name));
    }
    std::fs::rename(&staging, &named)?;
    framefile::sync_dir(keys_dir)?;
    Ok(Some(named))
}

/// The sets that a crash has left although they were merged: all their segments are in one of a later generation.
pub(super) fn left_over(units: &[Arc<Unit>]) -> Vec<Arc<Unit>> {
    let is_merged = |unit: &&Arc<Unit>| {
        let segments = unit.segments();
        let holds_all = |other: &Arc<Unit>| {
            other.generation() > unit.generation()
                && segments
                    .iter()
                    .all(|segment| other.segments().binary_search(segment).is_ok())
        };
        !segments.is_empty() && units.iter().any(holds_all)
    };
    units.iter().filter(is_merged).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_alike_whose_sizes_are_within_a_power_of_four() {
        assert_eq!(size_of(0), size_of(4 * SMALL - 1));
        for power in 0..20 {
            let least = SMALL << (2 * power);
            assert_eq!(size_of(4 * least - 1), size_of(least));
            assert_eq!(size_of(4 * least), size_of(least) + 1);
        }
    }
}
