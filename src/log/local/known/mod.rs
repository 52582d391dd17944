//! The keys of known events: what makes a second delivery of the same revision a duplicate (invariant I2).
//!
//! Every unsealed segment has a table in memory (`table`), rebuilt from its journal at start. When a segment is sealed its keys
//! go into a file of their own, `keys/<first seq>` (`file`), which outlives the segment: a duplicate is known for as long as Close
//! may send it again, however short the log's retention. The files of a month are merged into databases (`month`, `merge`). Of all
//! these only a filter (about two bytes a key) stays in memory; a filter's "maybe" is confirmed by comparing whole keys on disk,
//! never by hash alone. Nothing on disk is open but for the moment it is read, or a little longer.
//!
//! Keys are found by the hash of the event's id, so the same sets answer "which revisions of this id are there?".
//!
//! What can't be read now is an error. What is proven to be damaged is set aside; what can be read of it is kept.

mod file;
mod filter;
mod identity;
#[cfg(test)]
mod in_log;
mod merge;
mod month;
mod page;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

pub(super) use file::KeyFile;
use filter::Probe;
pub(super) use identity::Identity;
use identity::id_part;
pub(super) use merge::{Order, abandon, publish};
use month::Month;
pub(super) use table::Table;

use super::sealed::database;
use crate::event::{EventKey, Seq, Updated};
use crate::framefile;

/// A set of keys on disk, in pages in the order of hashes.
trait Known {
    /// How many keys.
    fn count(&self) -> u64;

    /// When the newest event was received, in µs.
    fn newest_us(&self) -> i64;

    /// `false`: the key is not in it.
    fn may_hold(&self, probe: &Probe) -> bool;

    /// Hands on every key with this hash, and perhaps others.
    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()>;

    /// How many pages.
    fn pages(&self) -> usize;

    /// Hands on the keys of one page.
    fn page(&self, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()>;
}

/// A set of keys on disk.
#[derive(Debug)]
pub(super) struct Unit {
    content: Content,
    damaged: AtomicBool,
}

#[derive(Debug)]
enum Content {
    File(KeyFile),
    Month(Box<Month>),
}

impl Unit {
    fn new(content: Content) -> Arc<Unit> {
        Arc::new(Unit {
            content,
            damaged: AtomicBool::new(false),
        })
    }

    fn known(&self) -> &dyn Known {
        match &self.content {
            Content::File(file) => file,
            Content::Month(month) => &**month,
        }
    }

    fn may_hold(&self, probe: &Probe) -> bool {
        match &self.content {
            Content::File(file) => file.may_hold(probe),
            Content::Month(month) => month.may_hold(probe),
        }
    }

    /// Hands on every key with this hash, and perhaps others; notes if it is damaged.
    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        self.known().around(hash, each).inspect_err(|error| self.judge(error))
    }

    /// Notes if an error proves damage, so that the keeper puts it right.
    fn judge(&self, error: &io::Error) {
        if is_damage(error) && !self.damaged.swap(true, Ordering::Relaxed) {
            tracing::error!(path = %self.path().display(), %error, "known keys are damaged; what can be read of them is saved");
        }
    }

    fn count(&self) -> u64 {
        self.known().count()
    }

    fn newest_us(&self) -> i64 {
        self.known().newest_us()
    }

    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    fn is_file(&self) -> bool {
        matches!(self.content, Content::File(_))
    }

    fn path(&self) -> &Path {
        match &self.content {
            Content::File(file) => &file.path,
            Content::Month(month) => &month.dir,
        }
    }

    fn bytes(&self) -> u64 {
        match &self.content {
            Content::File(file) => file.bytes,
            Content::Month(month) => month.bytes,
        }
    }

    /// The segments all of whose keys are in it, in order.
    fn segments(&self) -> &[Seq] {
        match &self.content {
            Content::File(file) => std::slice::from_ref(&file.segment),
            Content::Month(month) => &month.manifest.segments,
        }
    }

    /// The segments of which it may lack some keys, in order.
    fn partly(&self) -> &[Seq] {
        match &self.content {
            Content::File(_) => &[],
            Content::Month(month) => &month.manifest.partly,
        }
    }

    fn generation(&self) -> u32 {
        match &self.content {
            Content::File(_) => 0,
            Content::Month(month) => month.manifest.generation,
        }
    }

    /// Where what can be saved is read from, if not from itself.
    fn to_be_saved(&self, saves: bool) -> Option<Month> {
        match &self.content {
            Content::Month(month) if saves => Some(month.to_be_saved()),
            _ => None,
        }
    }

    /// Closes its database if nobody used it for `idle`.
    fn close_idle(&self, idle: Duration) {
        if let Content::Month(month) = &self.content {
            month.close_idle(idle);
        }
    }

    /// Removes it from the disk.
    pub fn remove(&self) -> io::Result<()> {
        self.close_idle(Duration::ZERO);
        if self.is_file() {
            return remove(self.path());
        }
        remove_named(self.path())
    }

    /// Moves it out of the way.
    pub fn set_aside(&self) -> io::Result<()> {
        self.close_idle(Duration::ZERO);
        set_aside(self.path())
    }
}

/// All keys that are known.
#[derive(Debug)]
pub(super) struct KnownKeys {
    dir: PathBuf,
    /// Of unsealed segments, by their first Seqs. Shared, so that a complete segment's keys are written without anybody waiting
    /// for it.
    tables: BTreeMap<Seq, Arc<Table>>,
    /// Older ones first.
    units: Vec<Arc<Unit>>,
    /// Held by whoever copies or compares the files.
    held: Arc<()>,
}

/// The files of known keys, which stay as they are for as long as this is there.
#[derive(Debug)]
pub struct KeyFiles {
    paths: Vec<PathBuf>,
    segments: BTreeSet<Seq>,
    _held: Arc<()>,
}

impl KeyFiles {
    /// Where they are, relative to the data directory.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether all keys of a sealed segment are in them.
    pub fn cover(&self, segment: Seq) -> bool {
        self.segments.contains(&segment)
    }
}

impl KnownKeys {
    /// Opens what is in `dir`. The owner of the directory finishes or undoes what a crash interrupted, and sets aside under
    /// another name what is damaged; either way that is reported. What can't be read for another reason is an error.
    pub fn open(dir: &Path, owner: bool, mut report: impl FnMut(&Path, &io::Error)) -> io::Result<KnownKeys> {
        if owner && dir.exists() {
            merge::publish(dir)?;
            abandon(dir)?;
        }
        let mut units = Vec::new();
        for path in entries(dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let opened = if let Ok(segment) = name.parse::<u64>() {
                KeyFile::open(&path, Seq(segment)).map(Content::File)
            } else if is_month(name) {
                Month::open(&path, !owner).map(Box::new).map(Content::Month)
            } else {
                if owner && name.starts_with("removed-") {
                    remove(&path)?;
                }
                continue;
            };
            match opened {
                Ok(content) => units.push(Unit::new(content)),
                Err(error) if is_damage(&error) => {
                    report(&path, &error);
                    if owner {
                        if is_month(name) {
                            units.extend(saved(dir, &path)?);
                        }
                        set_aside(&path)?;
                    }
                }
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        for merged in merge::left_over(&units) {
            units.retain(|unit| !Arc::ptr_eq(unit, &merged));
            if owner {
                merged.remove()?;
            }
        }
        units.sort_by_key(|unit| unit.newest_us());
        Ok(KnownKeys {
            dir: dir.to_owned(),
            tables: BTreeMap::new(),
            units,
            held: Arc::default(),
        })
    }

    /// The table of an unsealed segment; made empty where there is none.
    pub fn table(&mut self, segment: Seq) -> &mut Table {
        // Only complete segments' tables are ever shared, and those do not change: nothing is copied here.
        Arc::make_mut(self.tables.entry(segment).or_default())
    }

    /// The Seq under which this identity is known.
    pub fn find(&self, identity: &Identity) -> io::Result<Option<Seq>> {
        let hash = identity.hash;
        // A repetition most likely repeats something recent.
        if let Some(seq) = self.tables.values().rev().find_map(|table| table.find(identity, hash)) {
            return Ok(Some(seq));
        }
        // Twice only where damage took the first one: the newer one counts.
        let mut newest = None;
        let probe = Probe::new(hash);
        for unit in self.units.iter().filter(|unit| unit.may_hold(&probe)) {
            unit.around(hash, &mut |key, seq| {
                if key == identity.as_bytes() {
                    newest = newest.max(Some(seq));
                }
            })?;
        }
        Ok(newest)
    }

    /// The Seqs of every known revision of an event id, in order.
    pub fn revisions(&self, id: &str) -> io::Result<Vec<Seq>> {
        let identity = Identity::of_event(&EventKey {
            id: id.to_owned(),
            updated: Updated::Missing,
        });
        let (id_part, hash) = (id_part(identity.as_bytes()), identity.hash);
        let mut found = Vec::new();
        let probe = Probe::new(hash);
        for table in self.tables.values() {
            table.revisions(id_part, hash, &mut found);
        }
        for unit in self.units.iter().filter(|unit| unit.may_hold(&probe)) {
            unit.around(hash, &mut |key, seq| {
                if key.starts_with(id_part) {
                    found.push(seq);
                }
            })?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The keys of a complete segment that are in no file yet.
    pub fn unwritten(&self, segment: Seq) -> Option<Arc<Table>> {
        self.tables.get(&segment).filter(|_| !self.has_file(segment)).cloned()
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

    /// Whether all keys of a sealed segment are on disk.
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
        let old = |unit: &&Arc<Unit>| {
            let mut segments = unit.segments().iter().chain(unit.partly());
            unit.newest_us() < cutoff.as_microsecond() && !segments.any(&is_kept)
        };
        self.units.iter().filter(old).cloned().collect()
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
            let named = unit.segments().iter().chain(unit.partly());
            // One that names none may hold any.
            named.min().copied().unwrap_or(Seq::ZERO)
        };
        let units = self.units.iter().map(of_unit);
        units.chain(self.tables.keys().copied()).min()
    }

    /// How many sets are looked through for an unknown key.
    pub fn sets(&self) -> usize {
        self.units.len()
    }

    /// The directory they are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A merge is in place: what was merged gives way to it, and is the caller's to remove. `None` where somebody is copying the
    /// files; then the merged one is.
    #[must_use]
    pub fn merged(&mut self, order: &Order, merged: &Merged) -> Option<Vec<Arc<Unit>>> {
        if self.is_held() {
            return None;
        }
        self.units
            .retain(|unit| !order.inputs.iter().any(|input| Arc::ptr_eq(input, unit)));
        self.units.insert(0, merged.0.clone());
        Some(order.inputs.clone())
    }

    /// The files as they are now, to be copied; they stay for as long as the answer is there.
    pub fn files(&self) -> io::Result<KeyFiles> {
        let mut paths = Vec::new();
        let dir = PathBuf::from(self.dir.file_name().unwrap_or_default());
        for unit in &self.units {
            let name = dir.join(unit.path().file_name().unwrap_or_default());
            if unit.is_file() {
                paths.push(name);
            } else {
                let below = database::files_below(unit.path())?;
                paths.extend(below.into_iter().map(|file| name.join(file)));
            }
        }
        paths.sort();
        Ok(KeyFiles {
            paths,
            segments: self.units.iter().flat_map(|unit| unit.segments()).copied().collect(),
            _held: self.held.clone(),
        })
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    /// Closes databases that nobody used for `idle`.
    pub fn close_idle(&self, idle: Duration) {
        for unit in &self.units {
            unit.close_idle(idle);
        }
    }

    /// What is on disk, to be read while nobody waits for it; it stays for as long as this is there.
    pub fn on_disk(&self) -> OnDisk {
        OnDisk {
            units: self.units.clone(),
            _held: self.held.clone(),
        }
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.units.iter().map(|unit| unit.bytes()).sum()
    }
}

/// Sets of known keys, which stay where they are for as long as this is there.
#[derive(Debug)]
pub(super) struct OnDisk {
    units: Vec<Arc<Unit>>,
    _held: Arc<()>,
}

impl OnDisk {
    /// Compares everything with its checksums; gives a sentence for each fault.
    pub fn verify(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for unit in &self.units {
            for number in 0..unit.known().pages() {
                if let Err(error) = unit.known().page(number, &mut |_, _| ()) {
                    faults.push(format!("known keys {}: {error}", unit.path().display()));
                    break;
                }
            }
        }
        faults
    }
}

/// A merged set that has its name, to be taken up by [`KnownKeys::merged`].
#[derive(Debug)]
pub(super) struct Merged(Arc<Unit>);

impl Merged {
    /// Opens it. One that can't be opened goes again: what was merged is still there, and nobody would take the two for the same.
    pub fn open(dir: &Path) -> io::Result<Merged> {
        match Month::open(dir, false) {
            Ok(month) => Ok(Merged(Unit::new(Content::Month(Box::new(month))))),
            Err(error) => {
                remove_named(dir)?;
                Err(error)
            }
        }
    }

    /// Removes it again.
    pub fn remove(&self) -> io::Result<()> {
        self.0.remove()
    }
}

/// Checks a file of known keys from outside, all of it.
pub(super) fn check_file(path: &Path, segment: Seq) -> io::Result<()> {
    let file = KeyFile::open(path, segment)?;
    (0..file.pages()).try_for_each(|number| file.page(number, &mut |_, _| ()))
}

/// What can be read of a month's database whose index is damaged, merged into another one; nothing where its damage leaves
/// nothing. What can't be read or written now is an error.
fn saved(keys_dir: &Path, damaged: &Path) -> io::Result<Option<Arc<Unit>>> {
    let save = || {
        let unit = Unit::new(Content::Month(Box::new(Month::without_index(damaged)?)));
        Order::to_save(unit).stage(keys_dir, &mut || Ok(()))?;
        publish(keys_dir)?.map(|named| Merged::open(&named)).transpose()
    };
    match save() {
        Ok(merged) => Ok(merged.map(|merged| merged.0)),
        Err(error) if is_damage(&error) => {
            tracing::error!(%error, path = %damaged.display(), "nothing could be saved of damaged known keys");
            Ok(None)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", damaged.display()))),
    }
}

/// Writes a segment's key file durably.
pub(super) fn write_file(path: &Path, table: &Table) -> io::Result<()> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        crate::framefile::make_dir(dir)?;
        framefile::sync_parent(dir)?;
    }
    framefile::replace_file(path, &file::encode(table)?)
}

/// Whether this is the name of a month's directory: `2024-02-…`.
pub(super) fn is_month(name: &str) -> bool {
    let shape: String = name
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .take(8)
        .collect();
    let rest = name.get(8..).unwrap_or_default();
    shape == "0000-00-" && !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// The segments whose keys are all in the months' databases below `dir`.
pub(super) fn covered(dir: &Path) -> io::Result<BTreeSet<Seq>> {
    let mut segments = BTreeSet::new();
    for path in entries(dir)? {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_month) {
            segments.extend(month::Manifest::load(&path)?.segments);
        }
    }
    Ok(segments)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(listing) => listing.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// An error that proves that what is there is not what was written.
fn damage(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether an error proves damage, and is no matter of the moment.
fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || framefile::is_bad_medium(error)
}

fn beside(path: &Path, before: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{before}{name}"))
}

/// Gives a damaged file or directory a name under which nobody takes it for keys.
fn set_aside(path: &Path) -> io::Result<()> {
    let mut aside = framefile::beside(path, ".damaged");
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = framefile::beside(path, &format!(".damaged-{number}"));
    }
    std::fs::rename(path, aside)
}

/// Removes a month's directory. Its name goes first, so that a crash leaves it whole or gone.
fn remove_named(dir: &Path) -> io::Result<()> {
    let doomed = beside(dir, "removed-");
    remove(&doomed)?;
    std::fs::rename(dir, &doomed)?;
    remove(&doomed)
}

/// Removes a file or a directory, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
