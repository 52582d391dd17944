//! What lies under `damaged/`: bytes that nobody could read, set aside for whoever can. They may hold what is to be erased.

use std::io;
use std::path::Path;

use super::{Keeper, Work};
use crate::event::{Event, Seq};
use crate::framefile::{self, FrameError};
use crate::log::local::block::Block;
use crate::log::local::fault::{self, SegmentError};
use crate::log::local::journal;
use crate::log::local::scratch;
use crate::log::local::sealed::{self, Access, Manifest, SealedSegment, swap};
use crate::log::local::space::Left;

/// What looking through something that was set aside gave.
#[derive(Debug, Default)]
struct Seen {
    /// A doomed event can be read in it.
    is_doomed: bool,
    /// Some of it can't be read, so nobody knows what that holds: what.
    unreadable: Option<String>,
}

impl Keeper {
    /// Removes whatever was set aside with a doomed event in it: all that can be read of it is in the log as well, where it can be
    /// read at all. Gives a sentence for everything of which it can't be said what it holds.
    pub(super) fn erase_remains(&mut self, doomed: &dyn Fn(&Event) -> bool) -> Result<Vec<String>, SegmentError> {
        let dir = self.shared.options.dir.join("damaged");
        let mut left = Vec::new();
        let listing = match std::fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
            Err(error) => return Err(error.into()),
        };
        for entry in listing {
            let path = entry?.path();
            self.shared.desk.begin(format!("looking through {}", path.display()));
            // It is in no segment: whatever is dropped meanwhile, this goes on.
            let seen = look_through(&path, doomed, &mut || self.attend(Seq::ZERO, Work::Erasing))?;
            if seen.is_doomed {
                tracing::warn!(path = %path.display(), "what was set aside here holds events that are erased; it is removed");
                remove(&path)?;
                framefile::sync_dir(&dir)?;
            } else if let Some(what) = seen.unreadable {
                left.push(format!(
                    "{}: {what} can't be read, so it may hold some of it; remove it when nobody needs it any more",
                    path.display()
                ));
            }
        }
        left.sort();
        Ok(left)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        swap::remove_dir(path)
    } else {
        std::fs::remove_file(path)
    }
}

fn look_through(
    path: &Path,
    doomed: &dyn Fn(&Event) -> bool,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Seen, SegmentError> {
    let mut seen = Seen::default();
    let segment = path.join("segment");
    if sealed::has(&segment)? {
        look_through_segment(&segment, doomed, progress, &mut seen)?;
    }
    let names: Vec<String> = if path.is_dir() {
        let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>()?
    } else {
        vec![path.file_name().unwrap_or_default().to_string_lossy().into_owned()]
    };
    for name in names.iter().filter(|name| *name != "segment") {
        if name == journal::FILE_NAME {
            look_through_journal(&path.join(name), doomed, progress, &mut seen)?;
        } else {
            seen.unreadable.get_or_insert(name.clone());
        }
    }
    Ok(seen)
}

fn look_through_segment(
    segment: &Path,
    doomed: &dyn Fn(&Event) -> bool,
    progress: &mut dyn FnMut() -> bool,
    seen: &mut Seen,
) -> Result<(), SegmentError> {
    let journal = segment.join(journal::FILE_NAME);
    let has_journal = sealed::has(&journal)?;
    if has_journal {
        look_through_journal(&journal, doomed, progress, seen)?;
    }
    match Manifest::load(segment) {
        Ok(manifest) => {
            let sealed = SealedSegment::new(segment.to_owned(), manifest, Access::Visitor);
            look_through_sealed(&sealed, doomed, progress, seen)
        }
        Err(SegmentError::Damaged(_)) => {
            if !has_journal || sealed::is_sealed(segment)? {
                seen.unreadable.get_or_insert("what was a segment".into());
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn look_through_journal(
    path: &Path,
    doomed: &dyn Fn(&Event) -> bool,
    progress: &mut dyn FnMut() -> bool,
    seen: &mut Seen,
) -> Result<(), SegmentError> {
    let mut is_strange = false;
    let mut is_wanted = true;
    let mut has_rest = false;
    let scanned = framefile::scan_behind_header(path, journal::FORMAT, |frame| {
        // Where bytes are missing at the beginning, those before a block that has moved there may be what is left of another one.
        has_rest |= 0 < frame.offset && frame.offset < framefile::HEADER_LEN;
        is_wanted = is_wanted && progress();
        if !is_wanted {
            return;
        }
        match Block::decode(frame.payload) {
            Ok(block) => seen.is_doomed |= block.events.iter().any(|event| doomed(event)),
            Err(_) => is_strange = true,
        }
    });
    fault::go_on(&mut || is_wanted)?;
    let scan = match scanned {
        Ok(scan) => scan,
        Err(FrameError::Io { source, .. }) if !framefile::is_bad_medium(&source) => return Err(source.into()),
        Err(_) => {
            seen.unreadable.get_or_insert("the journal".into());
            return Ok(());
        }
    };
    // The header always counts as damage here.
    if has_rest || scan.damage.len() > 1 || scan.torn > 0 || is_strange {
        seen.unreadable.get_or_insert("a part of the journal".into());
    }
    Ok(())
}

fn look_through_sealed(
    damaged: &SealedSegment,
    doomed: &dyn Fn(&Event) -> bool,
    progress: &mut dyn FnMut() -> bool,
    seen: &mut Seen,
) -> Result<(), SegmentError> {
    let copy = scratch::dir(&damaged.dir, damaged.manifest.database_bytes(), Left::ReserveTwice)?;
    let read = sealed::look_through(damaged, copy.path(), progress, &mut |event| {
        seen.is_doomed |= doomed(event);
    })?;
    if read < damaged.manifest.packs.len() {
        let of = damaged.manifest.packs.len();
        seen.unreadable
            .get_or_insert(format!("{} of {of} packs of a segment", of - read));
    }
    Ok(())
}
