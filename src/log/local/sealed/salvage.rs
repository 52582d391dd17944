//! Saving what can still be read of a damaged database, out of copies: the database never gets to repair the only one.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::super::fault::{SegmentError, go_on};
use super::carve::Ore;
use super::check;
use super::database::{DB_NAME, Database, SEGMENT_SIZES};
use super::manifest::{Manifest, Pack};
use super::packs::{build, get_pack};
use super::segment::SealedSegment;
use super::swap::remove_dir;
use crate::event::Event;
use crate::framefile::is_bad_medium;
use crate::log::local::block::Block;

/// A database's own description.
const CONF: &str = "conf";

/// The copy that is not opened.
const ORE: &str = "copy-untouched";

/// The file with the data.
const DATA: &str = "db";

/// Builds a segment in `staging` out of what can be read of a damaged one; `None` where that is nothing.
pub(in crate::log::local) fn salvage(
    damaged: &SealedSegment,
    staging: &Path,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Option<Manifest>, SegmentError> {
    let mut copies = Copies::new(damaged, staging);
    let mut kept = false;
    let mut packs = damaged.manifest.packs.iter();
    let progress = RefCell::new(progress);
    let next = || -> Result<Option<Block>, SegmentError> {
        for pack in packs.by_ref() {
            go_on(&mut **progress.borrow_mut())?;
            if let Some(block) = copies.read(*pack)? {
                kept = true;
                return Ok(Some(block));
            }
        }
        Ok(None)
    };
    let built = build(staging, next, &mut || (progress.borrow_mut())());
    copies.remove()?;
    // What could not be tried is no proof that there is nothing.
    let built = built?;
    Ok(kept.then_some(built))
}

/// Hands every event that can be read of a damaged segment to `each`; gives how many packs can be read. `scratch` is for copies.
pub(in crate::log::local) fn look_through(
    damaged: &SealedSegment,
    scratch: &Path,
    progress: &mut dyn FnMut() -> bool,
    each: &mut dyn FnMut(&Event),
) -> Result<usize, SegmentError> {
    let mut copies = Copies::new(damaged, scratch);
    let mut read = 0;
    for pack in &damaged.manifest.packs {
        go_on(progress)?;
        if let Some(block) = copies.read(*pack)? {
            block.events.iter().for_each(|event| each(event));
            read += 1;
        }
    }
    copies.remove()?;
    Ok(read)
}

/// Copies of a damaged database, the next one made when those before it don't give a pack.
struct Copies<'a> {
    damaged: &'a SealedSegment,
    staging: &'a Path,
    open: Vec<Database>,
    made: usize,
    /// The first copy lacks a small file, or can't be opened: what only has the data may give more.
    is_poor: bool,
    /// Where packs may lie in the bytes, past what reads them.
    ore: Option<Ore>,
}

impl<'a> Copies<'a> {
    fn new(damaged: &'a SealedSegment, staging: &'a Path) -> Copies<'a> {
        Copies {
            damaged,
            staging,
            open: Vec::new(),
            made: 0,
            is_poor: false,
            ore: None,
        }
    }

    /// One pack, out of whichever copy gives it.
    fn read(&mut self, pack: Pack) -> Result<Option<Block>, SegmentError> {
        let mut tried = 0;
        loop {
            while let Some(db) = self.open.get(tried) {
                tried += 1;
                match get_pack(db, pack).map(|bytes| Block::decode(&bytes)) {
                    Ok(Ok(block)) => return Ok(Some(block)),
                    Ok(Err(_)) | Err(SegmentError::Damaged(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if !self.make()? {
                break;
            }
        }
        // The database gives up in the same way when it may not open a file; looking past it fails then, and nothing is known.
        if self.ore.is_none() {
            let place = self.copy(ORE)?;
            self.ore = Some(Ore::find(&place, &self.damaged.manifest.packs)?);
        }
        let Some(ore) = &self.ore else { return Ok(None) };
        let found = ore.pack(pack)?;
        Ok(found.and_then(|bytes| Block::decode(&bytes).ok()))
    }

    /// A fresh copy.
    fn copy(&self, name: &str) -> Result<PathBuf, SegmentError> {
        let place = self.staging.join(name);
        crate::framefile::make_dir(&place)?;
        check::copy_files(&self.damaged.dir.join(DB_NAME), &place)?;
        Ok(place)
    }

    fn places(&self) -> Vec<PathBuf> {
        (0..self.made)
            .map(|number| self.staging.join(format!("copy-{number}")))
            .collect()
    }

    /// Opens the next copy, if there is one that is worth it.
    fn make(&mut self) -> Result<bool, SegmentError> {
        // As it is, and then with nothing but the data.
        let bare = match self.made.checked_sub(1) {
            None => None,
            Some(number) if self.is_poor && number < SEGMENT_SIZES.len() => Some(SEGMENT_SIZES[number]),
            Some(_) => return Ok(false),
        };
        let place = self.copy(&format!("copy-{}", self.made))?;
        self.made += 1;
        let manifest = &self.damaged.manifest;
        let original = self.damaged.dir.join(DB_NAME);
        let faults = check::faults_of(&place, &original, &manifest.files, &mut || true)?;
        let kept = manifest.kept(&self.damaged.dir);
        let faults = check::put_back(&place, faults, &kept, check::READ_FROM_MANIFEST)?;
        self.is_poor |= faults.iter().any(|fault| fault.name != DATA);
        if let Some(size) = bare {
            strip(&place, size)?;
        }
        match Database::open(&place) {
            Ok(db) => self.open.push(db),
            Err(SegmentError::Io(error)) if !is_bad_medium(&error) => return Err(error.into()),
            Err(_) => self.is_poor = true,
        }
        Ok(true)
    }

    fn remove(self) -> Result<(), SegmentError> {
        let mut places = self.places();
        places.push(self.staging.join(ORE));
        drop(self.open);
        for place in places {
            // The database's threads may still be writing into it.
            let _ = super::database::wait_until_closed(&place);
            remove_dir(&place)?;
        }
        Ok(())
    }
}

/// Leaves a database only its data: the snapshots go, and its description is that of a new one.
fn strip(place: &Path, segment_size: usize) -> Result<(), SegmentError> {
    for entry in std::fs::read_dir(place)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") {
            std::fs::remove_file(&path)?;
        }
    }
    let fresh = place.with_extension("fresh");
    Database::make(&fresh, segment_size)?;
    let _ = super::database::wait_until_closed(&fresh);
    std::fs::copy(fresh.join(CONF), place.join(CONF))?;
    remove_dir(&fresh)?;
    Ok(())
}
