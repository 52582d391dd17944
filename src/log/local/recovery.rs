//! Opening the data directory: whatever it holds, the log starts; what is damaged is set aside, named, and stepped over.

mod ending;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::SegmentError;
use super::gaps::{Gaps, Stood};
use super::journal::{self, Journal, Newest, Recovered, last_possible};
use super::known::KnownKeys;
use super::owed::{Aside, Owed, set_segment_aside};
use super::refused::OpenError;
use super::reread;
use super::sealed::{self, Access, Manifest, SealedSegment, swap};
use super::shared::Segment;
use crate::event::Seq;
use crate::files;
use crate::framefile::{self, FrameError, Scan};

/// So often a segment is looked at by somebody who only looks, while whoever owns the directory is at work on it.
const LOOKS_MAX: u32 = 3;

/// What is said of segments that were there once.
const MISSING: &str = "the segment that held them is missing";

/// What was found in the log's directory.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub segments: BTreeMap<Seq, Segment>,
    /// The newest segment, if it can be appended to, with what it holds already.
    pub newest: Option<Newest>,
    /// The Seq of the next event.
    pub next: Seq,
    /// What there was no room for.
    pub owed: Owed,
    /// What is damaged and stays as it is, since somebody only looks: one sentence each.
    pub damage: Vec<String>,
}

impl Inventory {
    /// What comes goes behind what can't be given out again, into a segment of its own.
    fn go_on_at(&mut self, next: Seq) {
        if next > self.next {
            self.next = next;
            self.newest = None;
        }
    }
}

/// Whether it was done; `false`: there is no room for it.
fn unless_full(done: io::Result<()>, what: &str, first: Seq) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if files::is_full(&error) => {
            tracing::warn!(%error, first = first.0, "there is no room for {what}; this is done when there is");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Goes through the directories, oldest first. With `repair`, torn tails are cut, half-done work is finished or undone and
/// damage is set aside; without, nothing is written.
pub(super) fn take_inventory(
    dir: &Path,
    known: &mut KnownKeys,
    gaps: &Gaps,
    repair: bool,
) -> Result<Inventory, OpenError> {
    let log_dir = dir.join("log");
    let fail = |source| OpenError::Io {
        path: log_dir.clone(),
        source,
    };
    let mut dropped = Vec::new();
    if repair {
        crate::framefile::make_dir(&log_dir).map_err(fail)?;
        framefile::sync_dir(dir).map_err(fail)?;
        // The names of what was dropped may be all that tells of it: they stay until that is on record.
        if let Some(behind) = swap::behind_dropped(&log_dir).map_err(fail)?
            && gaps.begins().is_some_and(|begins| begins < behind)
        {
            gaps.begin_at_or_owe(behind).map_err(fail)?;
        }
        dropped = swap::recover(&log_dir, gaps.is_owed()).map_err(fail)?;
    }
    let dirs = swap::visible(&log_dir).map_err(fail)?;
    let begins = if repair {
        gaps.begins()
    } else {
        // In this order: what somebody drops meanwhile shows by its name until it is on record.
        let behind = swap::behind_dropped(&log_dir).map_err(fail)?.unwrap_or_default();
        gaps.begins_now()?.map(|begins| begins.max(behind))
    };
    let mut inventory = take_listed(&log_dir, &dirs, begins, known, gaps, repair)?;
    inventory.owed.dropped = dropped;
    // What its place says from now on is all that was found.
    if gaps.is_incomplete()
        && unless_full(gaps.settle_listed(), "the list of what is lost", inventory.next).map_err(fail)?
    {
        // They waited for the list.
        while let Some(first) = inventory.owed.segments.last().copied() {
            if !unless_full(set_segment_aside(&log_dir, first), "setting a segment aside", first).map_err(fail)? {
                break;
            }
            inventory.owed.segments.pop();
        }
    }
    Ok(inventory)
}

/// The same of the directories that were listed a moment ago. `begins`: where the log is to begin, as far as that is known.
pub(super) fn take_listed(
    log_dir: &Path,
    dirs: &[(Seq, PathBuf)],
    begins: Option<Seq>,
    known: &mut KnownKeys,
    gaps: &Gaps,
    repair: bool,
) -> Result<Inventory, OpenError> {
    let mut inventory = Inventory {
        next: Seq(1),
        ..Inventory::default()
    };
    if let Some(newest_us) = known.newest_us() {
        gaps.found_after(newest_us);
    }
    let mut finder = Finder {
        log_dir,
        known,
        gaps,
        repair,
        complete: None,
    };
    let oldest = dirs.first().map(|(first, _)| *first);
    finder.take_beginning(begins, oldest, &mut inventory)?;
    for (index, (first, dir)) in dirs.iter().enumerate() {
        let limit = dirs.get(index + 1).map(|(first, _)| *first);
        finder.take(*first, dir, limit, &mut inventory)?;
    }
    finder.take_end(begins, oldest, &mut inventory)?;
    Ok(inventory)
}

/// Whether the process ended between making a segment's directory and giving its journal its name: nothing was ever in it.
fn was_only_begun(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if entry?.file_name() != "journal.tmp" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A segment of which nothing can be read.
struct Unreadable {
    why: String,
    /// It went as far as that at the least.
    reached: Option<Seq>,
}

struct Finder<'a> {
    log_dir: &'a Path,
    known: &'a mut KnownKeys,
    gaps: &'a Gaps,
    repair: bool,
    /// The last segment that was taken, where it is complete: another one was begun before it was.
    complete: Option<Seq>,
}

impl Finder<'_> {
    fn failed(&self, source: io::Error) -> OpenError {
        OpenError::Io {
            path: self.log_dir.to_owned(),
            source,
        }
    }

    /// Segments that are missing at the beginning leave no Seqs out between two others: where the log `begins` is on record.
    fn take_beginning(
        &self,
        begins: Option<Seq>,
        oldest: Option<Seq>,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let Some(begins) = begins else { return Ok(()) };
        match oldest {
            Some(oldest) if begins < oldest => self
                .record_missing(begins, oldest.prev(), MISSING)
                .map_err(|source| self.failed(source)),
            Some(_) => Ok(()),
            // All of it is missing.
            None => {
                inventory.next = inventory.next.max(begins);
                Ok(())
            }
        }
    }

    fn take(&mut self, first: Seq, dir: &Path, limit: Option<Seq>, inventory: &mut Inventory) -> Result<(), OpenError> {
        inventory.newest = None;
        self.complete = None;
        // Directories missing between two others, or at a jump, tell by the Seqs they leave out.
        if first > inventory.next && !inventory.segments.is_empty() {
            let recorded = self.record_missing(inventory.next, first.prev(), MISSING);
            recorded.map_err(|source| OpenError::Io {
                path: dir.to_owned(),
                source,
            })?;
        }
        inventory.next = inventory.next.max(first);
        let mut place = dir.to_owned();
        let mut looks = 1;
        loop {
            let looked = self.look_at(first, &place, limit, inventory);
            if !self.repair && !matches!(looked, Ok(None)) {
                let Some(now) = self.place_now(first, inventory)? else {
                    return Ok(());
                };
                if looks < LOOKS_MAX {
                    place = now;
                    looks += 1;
                    continue;
                }
            }
            return match looked? {
                None => Ok(()),
                Some(unreadable) => self.lose(first, limit, &unreadable, &place, inventory),
            };
        }
    }

    /// Where a segment is that somebody who only looks could not read; `None`: retention has dropped it since it was listed, and what is older
    /// with it.
    fn place_now(&self, first: Seq, inventory: &mut Inventory) -> Result<Option<PathBuf>, OpenError> {
        let now = swap::visible(self.log_dir).map_err(|source| OpenError::Io {
            path: self.log_dir.to_owned(),
            source,
        })?;
        let mut now: BTreeMap<Seq, PathBuf> = now.into_iter().collect();
        let place = now.remove(&first);
        if place.is_none() {
            inventory.segments.retain(|first, _| now.contains_key(first));
        }
        Ok(place)
    }

    /// Takes what can be read of a segment; gives why nothing can.
    fn look_at(
        &mut self,
        first: Seq,
        dir: &Path,
        limit: Option<Seq>,
        inventory: &mut Inventory,
    ) -> Result<Option<Unreadable>, OpenError> {
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        if self.repair {
            swap::finish_old_rewrite(dir).map_err(fail)?;
        }
        let has_journal = sealed::has(&dir.join(journal::FILE_NAME)).map_err(fail)?;
        if sealed::is_sealed(dir).map_err(fail)? {
            match Manifest::load(dir) {
                Ok(manifest) => return self.take_sealed(first, dir, manifest, inventory).map(|()| None),
                // Only what is proven damaged is given up.
                Err(SegmentError::Newer(why)) => return Err(OpenError::Unreadable(why)),
                Err(SegmentError::Io(source)) => return Err(fail(source)),
                Err(error) if has_journal => {
                    tracing::warn!(%error, "the segment is sealed again from its journal");
                    let told = error.to_string();
                    if !self.repair && !inventory.damage.contains(&told) {
                        inventory.damage.push(told);
                    }
                }
                Err(error) => {
                    return Ok(Some(Unreadable {
                        why: error.to_string(),
                        reached: self.reached(first, limit),
                    }));
                }
            }
        }
        let reached = self.reached(first, limit);
        if !has_journal {
            if limit.is_none() && reached.is_none() && was_only_begun(dir).map_err(fail)? {
                return Ok(None);
            }
            let why = "neither a journal nor a manifest is in the segment";
            let why = format!("{}: {why}", dir.display());
            return Ok(Some(Unreadable { why, reached }));
        }
        let with_keys = !self.known.has_file(first);
        match journal::recover(dir, first, limit, self.repair, with_keys) {
            Ok((recovered, journal)) => {
                let taken = self.take_open(first, limit, reached, recovered, journal, inventory);
                taken.map(|()| None)
            }
            Err(error @ FrameError::Newer { .. }) => Err(OpenError::Unreadable(error.to_string())),
            Err(FrameError::Io { path, source }) if !framefile::is_bad_medium(&source) => {
                Err(OpenError::Io { path, source })
            }
            Err(error) => Ok(Some(Unreadable {
                why: error.to_string(),
                reached,
            })),
        }
    }

    /// What the known keys of the segment at the end of the log tell of how far it went; `None` where they tell nothing.
    fn reached(&self, first: Seq, limit: Option<Seq>) -> Option<Seq> {
        if limit.is_some() {
            return None;
        }
        self.known.last_in(first, last_possible(first, None))
    }

    fn take_sealed(
        &mut self,
        first: Seq,
        dir: &Path,
        manifest: Manifest,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let dir = dir.to_owned();
        self.gaps.found_after(manifest.newest_us);
        if self.repair {
            // Sealed and verified, but the process ended before the journal was dropped.
            match std::fs::remove_file(dir.join(journal::FILE_NAME)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OpenError::Io { path: dir, source });
                }
                _ => {}
            }
        }
        inventory.next = inventory.next.max(manifest.last.next());
        let access = if self.repair { Access::Owner } else { Access::Visitor };
        let sealed = SealedSegment::new(dir, manifest, access);
        if self.repair && !self.known.has_file(first) {
            self.rebuild_keys(first, &sealed, &mut inventory.owed)?;
        }
        inventory.segments.insert(first, Segment::Sealed(Arc::new(sealed)));
        self.complete = Some(first);
        Ok(())
    }

    /// The keys of a segment are in its events, too: a file of them that is gone is made again.
    fn rebuild_keys(&mut self, first: Seq, sealed: &SealedSegment, owed: &mut Owed) -> Result<(), OpenError> {
        tracing::warn!(
            first = first.0,
            last = sealed.manifest.last.0,
            "the known keys of a segment are missing; they are read from its events again, which tell nothing of those that were erased or \
             have expired: a redelivery of such an event would be stored again"
        );
        let read = reread::keys_of_sealed(sealed, self.known.table(first), &mut || true);
        read.map_err(|error| match error {
            SegmentError::Io(source) => OpenError::Io {
                path: sealed.dir.clone(),
                source,
            },
            error => OpenError::Unreadable(error.to_string()),
        })?;
        sealed.close_idle(std::time::Duration::ZERO);
        let is_written = unless_full(self.known.seal(first), "the known keys of a segment", first);
        let is_written = is_written.map_err(|source| OpenError::Io {
            path: self.known.file_path(first),
            source,
        })?;
        if !is_written {
            owed.keys.push(first);
        }
        Ok(())
    }

    fn take_open(
        &mut self,
        first: Seq,
        limit: Option<Seq>,
        reached: Option<Seq>,
        recovered: Recovered,
        journal: Option<Journal>,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let Recovered {
            segment,
            keys,
            events,
            raw_bytes,
            scan,
            lost,
            unknown,
        } = recovered;
        let dir = segment.dir.clone();
        let fail = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        if let Some(newest_us) = segment.blocks().iter().map(|block| block.head.newest_us).max() {
            self.gaps.found_after(newest_us);
        }
        self.take_scan(first, &dir, &scan, inventory).map_err(fail)?;
        for (from, to) in lost {
            self.record_gap(from, to, "their bytes in the journal are damaged")
                .map_err(fail)?;
        }
        inventory.next = segment.last().map_or(first, Seq::next).max(inventory.next);
        if unknown > 0 && limit.is_none() {
            let why = "their bytes in the journal can't be read";
            self.give_up(first, inventory.next, reached, why, inventory)
                .map_err(fail)?;
        } else if let Some(reached) = reached.filter(|reached| *reached >= inventory.next) {
            let why = "their keys are known, and the journal ends before them";
            self.record_gap(inventory.next, reached, why).map_err(fail)?;
            inventory.next = reached.next();
        }
        // They are written when a segment is complete, and it stays so.
        let keys_are_on_disk = self.known.has_file(first);
        if keys_are_on_disk {
            // It held something.
            inventory.next = inventory.next.max(first.next());
            self.complete = Some(first);
        } else {
            *self.known.table(first) = keys;
        }
        let segment = Arc::new(segment);
        inventory.segments.insert(first, Segment::Open(segment.clone()));
        // A journal with damage in the middle is complete as it is, and so is one whose keys are on disk: what comes goes into a new one.
        if let Some(journal) = journal
            && scan.damage.is_empty()
            && !keys_are_on_disk
        {
            let began = segment.blocks().first().map(|block| sealed::time(block.head.oldest_us));
            inventory.newest = Some(Newest {
                journal,
                segment,
                events,
                raw_bytes,
                began,
            });
        }
        Ok(())
    }

    /// A segment of which nothing can be read is moved out of the way, whole.
    fn lose(
        &mut self,
        first: Seq,
        limit: Option<Seq>,
        unreadable: &Unreadable,
        dir: &Path,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let Unreadable { why, reached } = unreadable;
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        // The record of its Seqs comes before the move.
        if let Some(limit) = limit {
            inventory.next = inventory.next.max(limit);
            self.record_missing(first, limit.prev(), why).map_err(fail)?;
        } else {
            self.give_up(first, first, *reached, why, inventory).map_err(fail)?;
        }
        if !self.repair {
            return Ok(());
        }
        // Where it can't be recorded it stays where it is, and is found again.
        let is_away = !self.gaps.is_owed()
            && unless_full(set_segment_aside(self.log_dir, first), "setting a segment aside", first).map_err(fail)?;
        if !is_away {
            inventory.owed.segments.push(first);
        }
        Ok(())
    }

    /// What was cut off of a journal, and what is damaged: said, and kept beside it.
    fn take_scan(&self, first: Seq, dir: &Path, scan: &Scan, inventory: &mut Inventory) -> io::Result<()> {
        if scan.torn > 0 {
            tracing::info!(
                bytes = scan.torn,
                journal = %dir.display(),
                "cut off the unfinished last write; nobody was told that it was stored"
            );
        }
        if !self.repair {
            let path = dir.join(journal::FILE_NAME);
            let told = scan.damage.iter().map(|damage| format!("{}: {damage}", path.display()));
            inventory.damage.extend(told);
        } else if !scan.damage.is_empty() {
            let aside = Aside {
                first,
                dir: dir.to_owned(),
                to: swap::aside(self.log_dir, first),
                damage: scan.damage.clone(),
            };
            if !unless_full(aside.make(), "a copy of what is damaged of a journal", first)? {
                inventory.owed.asides.push(aside);
            }
        }
        Ok(())
    }

    /// Nobody can read what is at the end of the log, in a segment that begins with `first`, from `from` on. How many events that were, its bytes
    /// do not tell: what is there may be no more of what was written than what is missing. What is known from elsewhere is lost for certain; and
    /// no Seq that the segment could have held is given out again.
    fn give_up(
        &self,
        first: Seq,
        from: Seq,
        reached: Option<Seq>,
        why: &str,
        inventory: &mut Inventory,
    ) -> io::Result<()> {
        let end = last_possible(first, None).max(from);
        let certain = reached.filter(|reached| *reached >= from).unwrap_or(from.prev());
        self.gaps.record_or_owe(from, end, why, Stood::AtLeastTo(certain))?;
        inventory.go_on_at(end.next());
        Ok(())
    }

    /// Records that segments are gone which held a range: all of it but what is on record, which says already what stood there, or that nothing
    /// did. Where that record was lost itself, only what keys prove is certain.
    fn record_missing(&self, from: Seq, to: Seq, why: &str) -> io::Result<()> {
        for (from, to) in self.gaps.unrecorded(from, to) {
            let stood = if self.gaps.is_incomplete() {
                let certain = self.known.last_in(from, to).unwrap_or(from.prev());
                if certain == to {
                    Stood::All
                } else {
                    Stood::AtLeastTo(certain)
                }
            } else {
                Stood::All
            };
            self.gaps.record_or_owe(from, to, why, stood)?;
        }
        Ok(())
    }

    fn record_gap(&self, from: Seq, to: Seq, reason: &str) -> io::Result<()> {
        self.gaps.record_or_owe(from, to, reason, Stood::All)
    }
}
