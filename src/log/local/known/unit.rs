//! A set of keys on disk as the log has it: a segment's file or a month's database, and whether it was found damaged.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::disk::{is_damage, remove, remove_named, set_aside};
use super::file::{KeyFile, check_file};
use super::filter::Probe;
use super::month::Month;
use super::set::Known;
use crate::event::Seq;

/// What is said while there are sets in doubt.
pub(super) const READ_AGAIN: &str =
    "known keys were damaged, and those of events that are kept are being read from the events again";

/// See the module's head.
#[derive(Debug)]
pub(in crate::log::local) struct Unit {
    content: Content,
    pub(super) damaged: AtomicBool,
    /// What could be read of it is in another set; what could not is to be read from events that are kept.
    doubted: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Content {
    File(KeyFile),
    Month(Box<Month>),
}

impl Unit {
    pub(super) fn new(content: Content) -> Arc<Unit> {
        Arc::new(Unit {
            content,
            damaged: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
        })
    }

    pub(super) fn known(&self) -> &dyn Known {
        match &self.content {
            Content::File(file) => file,
            Content::Month(month) => &**month,
        }
    }

    /// Asked for every new event, so without a detour.
    pub(super) fn may_hold(&self, probe: &Probe) -> bool {
        match &self.content {
            Content::File(file) => file.may_hold(probe),
            Content::Month(month) => month.may_hold(probe),
        }
    }

    /// From now on nobody is told what is in it: it may lack what nobody has read again yet.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::SeqCst)
    }

    /// An error where it is in doubt: what it may hold is neither known nor new.
    pub(super) fn certain(&self) -> io::Result<()> {
        if !self.is_doubted() {
            return Ok(());
        }
        Err(io::Error::other(READ_AGAIN))
    }

    /// Hands on every key with this hash, and perhaps others. Reads the disk.
    pub(super) fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        self.certain()?;
        self.known().around(hash, each)?;
        // Once it is in doubt, another file may have come to its place, and been read for it.
        self.certain()
    }

    /// Whether any key of the segment that begins with `first` may be in it, or have been.
    pub fn names(&self, first: Seq) -> bool {
        self.segments().contains(&first) || self.partly().contains(&first)
    }

    /// Notes if an error proves damage, so that the keeper puts it right.
    pub(super) fn judge(&self, error: &io::Error) {
        if is_damage(error) && !self.damaged.swap(true, Ordering::Relaxed) {
            tracing::error!(path = %self.path().display(), %error, "known keys are damaged; what can be read of them is saved");
        }
    }

    /// A sentence for each part of it that is damaged and is there twice.
    pub(super) fn damaged_twins(&self) -> io::Result<Vec<String>> {
        match &self.content {
            Content::File(_) => Ok(Vec::new()),
            Content::Month(month) => month.damaged_manifests(),
        }
    }

    /// Compares all of it with its checksums, as it is on disk now.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.content {
            Content::File(file) => check_file(&file.path, file.segment),
            Content::Month(month) => month.check(),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.known().count()
    }

    pub(super) fn newest_us(&self) -> i64 {
        self.known().newest_us()
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.content, Content::File(_))
    }

    pub(super) fn path(&self) -> &Path {
        match &self.content {
            Content::File(file) => &file.path,
            Content::Month(month) => &month.dir,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.content {
            Content::File(file) => file.bytes,
            Content::Month(month) => month.bytes,
        }
    }

    /// The segments all of whose keys are in it, in order.
    pub(super) fn segments(&self) -> &[Seq] {
        match &self.content {
            Content::File(file) => std::slice::from_ref(&file.segment),
            Content::Month(month) => &month.manifest.segments,
        }
    }

    /// The segments of which it may lack some keys, in order.
    pub(super) fn partly(&self) -> &[Seq] {
        match &self.content {
            Content::File(_) => &[],
            Content::Month(month) => &month.manifest.partly,
        }
    }

    /// All segments that it names: those of which it has all keys, and the others.
    pub(super) fn named(&self) -> impl Iterator<Item = &Seq> {
        self.segments().iter().chain(self.partly())
    }

    pub(super) fn generation(&self) -> u32 {
        match &self.content {
            Content::File(_) => 0,
            Content::Month(month) => month.manifest.generation,
        }
    }

    /// Whether its keys were all received before `cutoff`, and none of its segments is kept any more.
    pub fn is_over(&self, cutoff: Timestamp, is_kept: &dyn Fn(&Seq) -> bool) -> bool {
        self.newest_us() < cutoff.as_microsecond() && !self.named().any(is_kept)
    }

    /// Where what can be saved is read from, if not from itself.
    pub(super) fn to_be_saved(&self, saves: bool) -> Option<Month> {
        match &self.content {
            Content::Month(month) if saves => Some(month.to_be_saved()),
            _ => None,
        }
    }

    /// Closes its database if nobody used it for `idle`.
    pub fn close_idle(&self, idle: Duration) {
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
