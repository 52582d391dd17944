//! Which Seqs are gone, and why: a small durable list, so that damage is never silent and never found twice. With it stands where the log
//! begins: what is missing in the middle leaves Seqs out between two segments, and what is missing at the beginning leaves none.

mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use jiff::{SignedDuration, Timestamp};

use self::record::{Found, Record};
use super::refused::OpenError;
use crate::event::Seq;
use crate::files;
use crate::framefile::{self, FrameError};
use crate::log::Gap;
use crate::sync::{lock, read_lock, write_lock};

/// What stood in a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stood {
    /// An event at each of its Seqs.
    All,
    /// Nothing, ever.
    Nothing,
    /// Events up to this Seq for certain (before the gap: at none for certain), and nobody knows whether at those behind it.
    AtLeastTo(Seq),
}

/// The list, newest last. Whoever asks never waits for the disk: only who changes it does.
#[derive(Debug)]
pub(super) struct Gaps {
    dir: PathBuf,
    list: RwLock<Arc<Vec<Gap>>>,
    /// Where the log begins ([`Gaps::begins`]); 0: nobody knows.
    begins: AtomicU64,
    changing: Mutex<()>,
    /// Some of the list is not on disk: it was found when there was no room.
    is_owed: AtomicBool,
    /// What there is besides a damaged list is still being found. Until all of it is, nothing takes the damaged list's place: where the start
    /// ends before that, the next one would take what had been found by then for the whole list.
    is_listing: AtomicBool,
    /// Nothing is written before the data directory's description is: an older closehook would take the directory for one of its own, and not see
    /// the list.
    waits: AtomicBool,
    /// When the newest event was received that was seen when the log was opened, in microseconds.
    newest_us: AtomicI64,
    /// Whoever only looks keeps what is found to itself.
    is_owner: bool,
    /// How many gaps were on record when it was opened.
    recorded: usize,
    /// The list was damaged, and is where it was: a sentence.
    damage: Option<String>,
    /// The list was damaged: nobody knows what it told.
    is_incomplete: bool,
}

impl Gaps {
    /// Reads the list. One that is damaged counts as empty (what it told about is found again where it can be); with `repair` it is
    /// set aside, and what is found from now on is stored. One that can't be read now is no empty one, nor is one that is missing and `was_begun`.
    pub fn open(dir: &Path, repair: bool, was_begun: bool) -> Result<Gaps, OpenError> {
        let mut damage = None;
        let found = match record::read(dir)? {
            Found::Nothing if was_begun => Found::Damaged {
                path: dir.join(record::NAME),
                why: "it is missing".to_owned(),
            },
            found => found,
        };
        let (record, is_incomplete) = match found {
            Found::Whole(record) => (record, false),
            Found::Nothing => (Record::default(), false),
            Found::Damaged { path, why } => {
                tracing::error!(
                    path = %path.display(),
                    why,
                    "the list of lost events is damaged and begun anew: what was on it, and whether events are missing before the first one \
                     that is there, is not known any more"
                );
                if repair {
                    set_aside(&path);
                } else {
                    damage = Some(format!("{}: the list of lost events is damaged: {why}", path.display()));
                }
                (Record::default(), true)
            }
        };
        let recorded = record.gaps.len();
        Ok(Gaps {
            dir: dir.to_owned(),
            list: RwLock::new(Arc::new(record.gaps)),
            begins: AtomicU64::new(record.begins.unwrap_or_default().0),
            changing: Mutex::new(()),
            // As long as the damaged one is in its place, it is known that something is not known.
            is_owed: AtomicBool::new(repair && is_incomplete),
            is_listing: AtomicBool::new(repair && is_incomplete),
            waits: AtomicBool::new(false),
            newest_us: AtomicI64::new(i64::MIN),
            is_owner: repair,
            recorded,
            damage,
            is_incomplete,
        })
    }

    /// There was no room for the data directory's description, which comes first.
    pub fn wait_for_description(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// It is written.
    pub fn description_is_written(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }

    /// An event was received then: what is found from now on was found later, whatever the clock of a machine says that has just started.
    pub fn found_after(&self, newest_us: i64) {
        self.newest_us.fetch_max(newest_us, Ordering::Relaxed);
    }

    /// A sentence where the list itself is damaged.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Whether Seqs may have been on record when the log was opened of which nobody knows that any more.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Every gap that is on record.
    pub fn list(&self) -> Arc<Vec<Gap>> {
        read_lock(&self.list).clone()
    }

    /// What whoever only looks has found, and nobody has written down yet.
    pub fn only_seen(&self) -> Vec<Gap> {
        let seen = self.list();
        let new = seen.iter().skip(self.recorded).filter(|gap| !gap.skipped);
        if self.is_owner {
            Vec::new()
        } else {
            new.cloned().collect()
        }
    }

    /// Whether what was stored under this Seq is gone.
    pub fn holds(&self, seq: Seq) -> bool {
        read_lock(&self.list).iter().any(|gap| gap.from <= seq && seq <= gap.to)
    }

    /// What damage took away.
    pub fn lost(&self) -> Vec<Gap> {
        self.list().iter().filter(|gap| !gap.skipped).cloned().collect()
    }

    /// The parts of a range in which there was something for certain.
    pub fn without_skipped(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq)> {
        let list = self.list();
        let uncertain = list.iter().filter_map(|gap| match gap.certain_to {
            _ if gap.skipped => Some((gap.from, gap.to)),
            Some(certain) => Some((certain.next().max(gap.from), gap.to)),
            None => None,
        });
        outside(from, to, uncertain.collect())
    }

    /// The parts of a range of which nothing is on record.
    pub fn unrecorded(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq)> {
        unrecorded(&self.list(), from, to)
    }

    /// Whether the whole range is on record, be it in parts.
    pub fn covers(&self, from: Seq, to: Seq) -> bool {
        let list = self.list();
        let mut at = from;
        while let Some(gap) = list.iter().find(|gap| gap.from <= at && at <= gap.to) {
            if gap.to >= to {
                return true;
            }
            at = gap.to.next();
        }
        false
    }

    /// Writes a list for a log that is being made, which begins there.
    pub fn write(dir: &Path, begins: Option<Seq>, list: &[Gap]) -> io::Result<()> {
        let gaps = list.to_vec();
        record::write(dir, &Record { begins, gaps })
    }

    /// Where the log begins: what is missing from there on, and is not on record, was there. `None`: nobody knows.
    pub fn begins(&self) -> Option<Seq> {
        known(Seq(self.begins.load(Ordering::Relaxed)))
    }

    /// The same as it is on disk now, for whoever only looks, which has to ask when it has seen which segments there are: what is dropped is before
    /// it by then.
    pub fn begins_now(&self) -> Result<Option<Seq>, OpenError> {
        match record::read(&self.dir)? {
            Found::Whole(record) => Ok(record.begins),
            Found::Nothing | Found::Damaged { .. } => Ok(None),
        }
    }

    /// From now on the log begins with the segment that begins there: what was before is on record, or goes on purpose, and not before this is
    /// durable.
    pub fn begin_at(&self, first: Seq) -> io::Result<()> {
        let _changing = lock(&self.changing);
        if self.begins() == Some(first) && !self.is_owed() {
            return Ok(());
        }
        self.keep_from(first, self.list().to_vec())
    }

    /// The same where a full disk is no reason not to: what goes makes room.
    pub fn begin_at_or_owe(&self, first: Seq) -> io::Result<()> {
        match self.begin_at(first) {
            Err(error) if files::is_full(&error) => {
                tracing::warn!(
                    %error,
                    first = first.0,
                    "there is no room to write down where the log begins; it is written down when there is"
                );
                let _changing = lock(&self.changing);
                self.is_owed.store(true, Ordering::Relaxed);
                self.begins.store(first.0, Ordering::Relaxed);
                Ok(())
            }
            begun => begun,
        }
    }

    /// Records a gap durably, unless it is on record, and says so in the log.
    pub fn record(&self, from: Seq, to: Seq, reason: &str) -> io::Result<()> {
        self.add(from, to, reason, Stood::All)
    }

    /// The same while the log is opened, where a full disk is no reason not to: what was found is found again at the next start, as
    /// long as [`Gaps::settle`] comes before whatever would take it away.
    pub fn record_or_owe(&self, from: Seq, to: Seq, reason: &str, stood: Stood) -> io::Result<()> {
        match self.add(from, to, reason, stood) {
            Err(error) if files::is_full(&error) => {
                tracing::warn!(
                    %error,
                    from = from.0,
                    to = to.0,
                    "there is no room to record what is missing; it is recorded when there is"
                );
                let _changing = lock(&self.changing);
                self.is_owed.store(true, Ordering::Relaxed);
                if !self.covers(from, to) {
                    *write_lock(&self.list) = Arc::new(self.with(from, to, reason, stood));
                }
                Ok(())
            }
            added => added,
        }
    }

    /// Somebody has seen what stood there, which tells something of a gap that nobody knows the end of. Who has passed the whole of it has not seen
    /// what was in it. What can't be written down now is known all the same, and is written down before anything is stored in a new segment: whoever
    /// has seen it goes on, and would not tell it again.
    pub fn prove(&self, seen: Seq) {
        let tells = |gap: &Gap| {
            let is_news = gap.certain_to.is_some_and(|certain| certain < seen);
            is_news && gap.from <= seen && seen < gap.to
        };
        let _changing = lock(&self.changing);
        let mut list = self.list().to_vec();
        let mut is_changed = false;
        for gap in &mut list {
            if !tells(gap) {
                continue;
            }
            gap.certain_to = Some(seen);
            is_changed = true;
            tracing::error!(
                from = gap.from.0,
                to = gap.to.0,
                reason = gap.reason,
                "{} are lost to damage, as sinks have seen them",
                gap.told()
            );
        }
        if !is_changed {
            return;
        }
        if let Err(error) = self.keep(list.clone()) {
            tracing::warn!(%error, "it can't be written down how much of what is lost sinks have seen; this is tried again");
            self.is_owed.store(true, Ordering::Relaxed);
            *write_lock(&self.list) = Arc::new(list);
        }
    }

    /// All that is missing was found: from now on what is found is written down, and so is what was found until now.
    pub fn settle_listed(&self) -> io::Result<()> {
        self.is_listing.store(false, Ordering::Relaxed);
        self.settle()
    }

    /// Writes down what there was no room for.
    pub fn settle(&self) -> io::Result<()> {
        if !self.is_owed() {
            return Ok(());
        }
        let _changing = lock(&self.changing);
        self.keep(self.list().to_vec())
    }

    /// Whether some of it is not on disk.
    pub fn is_owed(&self) -> bool {
        self.is_owed.load(Ordering::Relaxed)
    }

    /// An error of [`Gaps::settle`], with the file's name.
    pub fn failed(&self, source: io::Error) -> FrameError {
        FrameError::Io {
            path: self.dir.join(record::NAME),
            source,
        }
    }

    /// Forgets what is before a Seq, as far as it `is_over`. What is forgotten is not missed either: the log begins behind it.
    pub fn forget_before(&self, first_kept: Seq, is_over: &dyn Fn(&Gap) -> bool) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let before = self.list();
        let (over, list): (Vec<Gap>, Vec<Gap>) = before
            .iter()
            .cloned()
            .partition(|gap| gap.to < first_kept && is_over(gap));
        let Some(behind) = over.iter().map(|gap| gap.to.next()).max() else {
            return Ok(());
        };
        match self.begins() {
            Some(begins) => self.keep_from(begins.max(behind), list),
            None => self.keep(list),
        }
    }

    fn add(&self, from: Seq, to: Seq, reason: &str, stood: Stood) -> io::Result<()> {
        let _changing = lock(&self.changing);
        if self.covers(from, to) {
            // Whoever asks relies on it.
            return if self.is_owed() {
                self.keep(self.list().to_vec())
            } else {
                Ok(())
            };
        }
        let list = self.with(from, to, reason, stood);
        if let Some(gap) = list.last().filter(|gap| !gap.skipped) {
            let told = gap.told();
            if self.is_owner {
                tracing::error!(from = from.0, to = to.0, reason, "{told} are lost to damage");
            } else {
                tracing::warn!(reason, "{told} can't be read");
            }
        }
        self.keep(list)
    }

    fn with(&self, from: Seq, to: Seq, reason: &str, stood: Stood) -> Vec<Gap> {
        let mut list = self.list().to_vec();
        let newest = Timestamp::from_microsecond(self.newest_us.load(Ordering::Relaxed)).unwrap_or(Timestamp::MIN);
        // Who has seen those before tells by the time that this one is new.
        let later = |gap: &Gap| gap.found_at.checked_add(SignedDuration::from_micros(1)).ok();
        let later = list.iter().filter_map(later).max().unwrap_or(Timestamp::MIN);
        list.push(Gap {
            from,
            to,
            reason: reason.to_owned(),
            found_at: Timestamp::now().max(newest).max(later),
            skipped: stood == Stood::Nothing,
            certain_to: match stood {
                Stood::AtLeastTo(seq) => Some(seq),
                Stood::All | Stood::Nothing => None,
            },
        });
        list
    }

    fn keep(&self, list: Vec<Gap>) -> io::Result<()> {
        self.keep_from(Seq(self.begins.load(Ordering::Relaxed)), list)
    }

    /// Only what is durable is on record: else the next one who asks would rely on it. While it is listed what there is, it is owed instead.
    fn keep_from(&self, begins: Seq, gaps: Vec<Gap>) -> io::Result<()> {
        let is_listing = self.is_listing.load(Ordering::Relaxed);
        let record = Record {
            begins: known(begins),
            gaps,
        };
        if self.is_owner && !is_listing {
            if self.waits.load(Ordering::Relaxed) {
                let why = "there was no room for the data directory's description, which comes first";
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            record::write(&self.dir, &record)?;
        }
        self.is_owed.store(is_listing, Ordering::Relaxed);
        self.begins.store(begins.0, Ordering::Relaxed);
        *write_lock(&self.list) = Arc::new(record.gaps);
        Ok(())
    }
}

/// No segment begins at 0.
fn known(begins: Seq) -> Option<Seq> {
    (begins > Seq::ZERO).then_some(begins)
}

/// Gives a damaged list a second name. It goes from its place when the next one takes that. Where that can't be, its bytes are of less use than
/// a log that starts.
fn set_aside(path: &Path) {
    // One that is missing has no bytes, and an earlier one may have some.
    if path.symlink_metadata().is_err() {
        return;
    }
    let aside = framefile::beside(path, ".damaged");
    let removed = match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if let Err(error) = removed.and_then(|()| framefile::name_again(path, &aside)) {
        tracing::warn!(%error, aside = %aside.display(), "the damaged list of lost events can't be set aside");
    }
}

/// The parts of a range of which nothing is on a list.
pub(super) fn unrecorded(list: &[Gap], from: Seq, to: Seq) -> Vec<(Seq, Seq)> {
    outside(from, to, list.iter().map(|gap| (gap.from, gap.to)).collect())
}

/// The parts of a range that are in none of these others, in order.
fn outside(from: Seq, to: Seq, mut others: Vec<(Seq, Seq)>) -> Vec<(Seq, Seq)> {
    // A list is in the order in which it was found.
    others.sort_unstable();
    let mut parts = Vec::new();
    let mut at = from;
    for (begin, end) in others {
        if begin > end || end < at || begin > to {
            continue;
        }
        if begin > at {
            parts.push((at, begin.prev()));
        }
        at = end.next();
    }
    if at <= to {
        parts.push((at, to));
    }
    parts
}
