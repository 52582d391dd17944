//! What a log owes that was opened on a full disk: the facts are in memory, or nothing is stored before they are.

use std::io;
use std::path::{Path, PathBuf};

use super::description::Description;
use super::journal;
use super::known::Unsaved;
use super::sealed::swap;
use crate::event::Seq;
use crate::framefile::{self, Damage};

/// What an open could not write on a full disk: a log on one starts all the same (decision 2). All of it is found again at the next start,
/// and done before anything goes in which it was found.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Parts of journals that are to be set aside.
    pub asides: Vec<Aside>,
    /// Segments of which nothing can be read, which are to be set aside.
    pub segments: Vec<Seq>,
    /// Segments that were dropped, and of which only their names are left: these tell so until it is on record where the log begins.
    pub dropped: Vec<Seq>,
    /// Segments whose known keys are in memory and in no file.
    pub keys: Vec<Seq>,
    /// Damaged sets of known keys of which nothing is in memory.
    pub sets: Vec<Unsaved>,
    /// The data directory's description; `None` where it is written.
    pub description: Option<Description>,
}

impl Owed {
    /// Why nothing may be stored before it is done, one sentence: it could be a repetition, and nobody would know. `None`: something may.
    pub fn holds_back(&self) -> Option<String> {
        let set = self.sets.first()?;
        Some(format!(
            "known keys are damaged, and there was no room on the disk to save what can be read of them ({}): that comes first, as soon as \
             there is room",
            set.why
        ))
    }
}

/// Parts of a journal that are damaged, and where they are to be set aside.
#[derive(Debug, Clone)]
pub(super) struct Aside {
    pub first: Seq,
    pub dir: PathBuf,
    pub to: PathBuf,
    pub damage: Vec<Damage>,
}

impl Aside {
    /// Copies them there.
    pub fn make(&self) -> io::Result<()> {
        journal::set_aside(&self.dir, &self.to, &self.damage)
    }
}

/// Moves a segment of which nothing can be read out of the way, whole.
pub(super) fn set_segment_aside(log_dir: &Path, first: Seq) -> io::Result<()> {
    let aside = swap::aside(log_dir, first);
    crate::framefile::make_dir(&aside)?;
    std::fs::rename(journal::segment_dir(log_dir, first), aside.join("segment"))?;
    framefile::sync_dir(log_dir)
}
