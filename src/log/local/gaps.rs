//! Which Seqs are gone, and why: a small durable list, so that damage is never silent and never found twice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use jiff::{SignedDuration, Timestamp};

use crate::event::Seq;
use crate::files;
use crate::framefile::{self, FrameError};
use crate::log::Gap;
use crate::sync::{lock, read_lock, write_lock};

/// The list, newest last. Whoever asks never waits for the disk: only who changes it does.
#[derive(Debug)]
pub(super) struct Gaps {
    path: PathBuf,
    list: RwLock<Arc<Vec<Gap>>>,
    changing: Mutex<()>,
    /// Some of the list is not on disk: it was found when there was no room.
    is_owed: AtomicBool,
    /// When the newest event was received that was seen when the log was opened, in microseconds.
    newest_us: AtomicI64,
}

impl Gaps {
    /// Reads the list. One that is damaged counts as empty (what it told about is found again where it can be); with `repair` it is
    /// set aside. One that can't be read now is no empty one.
    pub fn open(dir: &Path, repair: bool) -> io::Result<Gaps> {
        let path = dir.join("gaps.json");
        let read = crate::files::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
        let list = match read {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) if framefile::is_damage(&error) => {
                tracing::error!(path = %path.display(), %error, "the list of lost events is damaged and begun anew");
                if repair {
                    std::fs::rename(&path, framefile::beside(&path, ".damaged"))?;
                }
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        Ok(Gaps {
            path,
            list: RwLock::new(Arc::new(list)),
            changing: Mutex::new(()),
            is_owed: AtomicBool::new(false),
            newest_us: AtomicI64::new(i64::MIN),
        })
    }

    /// An event was received then: what is found from now on was found later, whatever the clock of a machine says that has just started.
    pub fn found_after(&self, newest_us: i64) {
        self.newest_us.fetch_max(newest_us, Ordering::Relaxed);
    }

    /// Every gap that is on record.
    pub fn list(&self) -> Arc<Vec<Gap>> {
        read_lock(&self.list).clone()
    }

    /// Whether what was stored under this Seq is gone.
    pub fn holds(&self, seq: Seq) -> bool {
        read_lock(&self.list).iter().any(|gap| gap.from <= seq && seq <= gap.to)
    }

    /// What damage took away.
    pub fn lost(&self) -> Vec<Gap> {
        self.list().iter().filter(|gap| !gap.skipped).cloned().collect()
    }

    /// The parts of a range in which there was ever anything.
    pub fn without_skipped(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq)> {
        let mut parts = Vec::new();
        let mut at = from;
        for gap in self.list().iter().filter(|gap| gap.skipped) {
            if gap.to < at || gap.from > to {
                continue;
            }
            if gap.from > at {
                parts.push((at, gap.from.prev()));
            }
            at = gap.to.next();
        }
        if at <= to {
            parts.push((at, to));
        }
        parts
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

    /// Writes a list for a log that is being restored.
    pub fn write(dir: &Path, list: &[Gap]) -> io::Result<()> {
        store(&dir.join("gaps.json"), list)
    }

    /// Records a gap durably, unless it is on record, and says so in the log.
    pub fn record(&self, from: Seq, to: Seq, reason: &str) -> io::Result<()> {
        self.add(from, to, reason, false)
    }

    /// The same while the log is opened, where a full disk is no reason not to: what was found is found again at the next start, as
    /// long as [`Gaps::settle`] comes before whatever would take it away.
    pub fn record_or_owe(&self, from: Seq, to: Seq, reason: &str, skipped: bool) -> io::Result<()> {
        match self.add(from, to, reason, skipped) {
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
                    *write_lock(&self.list) = Arc::new(self.with(from, to, reason, skipped));
                }
                Ok(())
            }
            added => added,
        }
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
            path: self.path.clone(),
            source,
        }
    }

    /// Forgets what is before a Seq, as far as it `is_over`.
    pub fn forget_before(&self, first_kept: Seq, is_over: &dyn Fn(&Gap) -> bool) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let before = self.list();
        let is_kept = |gap: &&Gap| gap.to >= first_kept || !is_over(gap);
        let list: Vec<Gap> = before.iter().filter(is_kept).cloned().collect();
        if list.len() == before.len() {
            return Ok(());
        }
        self.keep(list)
    }

    fn add(&self, from: Seq, to: Seq, reason: &str, skipped: bool) -> io::Result<()> {
        let _changing = lock(&self.changing);
        if self.covers(from, to) {
            // Whoever asks relies on it.
            return if self.is_owed() {
                self.keep(self.list().to_vec())
            } else {
                Ok(())
            };
        }
        if !skipped {
            tracing::error!(
                from = from.0,
                to = to.0,
                reason,
                "events {from} to {to} are lost to damage"
            );
        }
        self.keep(self.with(from, to, reason, skipped))
    }

    fn with(&self, from: Seq, to: Seq, reason: &str, skipped: bool) -> Vec<Gap> {
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
            skipped,
        });
        list
    }

    /// Only what is durable is on record: else the next one who asks would rely on it.
    fn keep(&self, list: Vec<Gap>) -> io::Result<()> {
        store(&self.path, &list)?;
        self.is_owed.store(false, Ordering::Relaxed);
        *write_lock(&self.list) = Arc::new(list);
        Ok(())
    }
}

fn store(path: &Path, list: &[Gap]) -> io::Result<()> {
    framefile::replace_file(path, &serde_json::to_vec_pretty(list)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64, skipped: bool) -> Gap {
        Gap {
            from: Seq(from),
            to: Seq(to),
            reason: "why".into(),
            found_at: Timestamp::UNIX_EPOCH,
            skipped,
        }
    }

    #[test]
    fn a_gap_that_could_not_be_stored_is_not_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let (place, away) = (dir.path().join("data"), dir.path().join("away"));
        std::fs::create_dir(&place).unwrap();
        Gaps::write(&place, &[gap(1, 2, false)]).unwrap();
        let gaps = Gaps::open(&place, true).unwrap();
        std::fs::rename(&place, &away).unwrap();
        for _ in 0..2 {
            assert!(gaps.record(Seq(5), Seq(9), "why").is_err(), "each time anew");
            assert!(gaps.add(Seq(10), Seq(19), "why", true).is_err());
            assert!(gaps.forget_before(Seq(3), &|_| true).is_err());
            assert_eq!(*gaps.list(), [gap(1, 2, false)]);
        }
        std::fs::rename(&away, &place).unwrap();
        gaps.record(Seq(5), Seq(9), "why").unwrap();
        gaps.add(Seq(10), Seq(19), "why", true).unwrap();
        gaps.forget_before(Seq(3), &|_| true).unwrap();
        let stored = Gaps::open(&place, true).unwrap();
        assert_eq!((gaps.list().len(), stored.list()), (2, gaps.list()));
    }

    #[test]
    fn a_gap_is_found_later_than_those_before_it_and_than_what_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let gaps = Gaps::open(dir.path(), true).unwrap();
        // The clock is behind both.
        let newest = Timestamp::now() + SignedDuration::from_hours(24 * 400);
        gaps.found_after(newest.as_microsecond());
        for seq in [1, 5, 9] {
            gaps.record(Seq(seq), Seq(seq), "why").unwrap();
        }
        let found: Vec<Timestamp> = gaps.list().iter().map(|gap| gap.found_at).collect();
        assert!(found[0].as_microsecond() >= newest.as_microsecond(), "{found:?}");
        assert!(found[0] < found[1] && found[1] < found[2], "{found:?}");
    }

    #[test]
    fn what_was_never_given_out_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        Gaps::write(dir.path(), &[gap(5, 9, false), gap(10, 19, true), gap(30, 39, true)]).unwrap();
        let gaps = Gaps::open(dir.path(), true).unwrap();
        assert_eq!(gaps.lost(), [gap(5, 9, false)]);
        let parts = |from, to| {
            let parts = gaps.without_skipped(Seq(from), Seq(to)).into_iter();
            parts.map(|(from, to)| (from.0, to.0)).collect::<Vec<_>>()
        };
        assert_eq!(parts(1, 9), [(1, 9)]);
        assert_eq!(parts(5, 19), [(5, 9)]);
        assert_eq!(parts(10, 19), []);
        assert_eq!(parts(15, 35), [(20, 29)]);
        assert_eq!(parts(1, 50), [(1, 9), (20, 29), (40, 50)]);
        // On record in two parts is on record.
        gaps.record(Seq(6), Seq(19), "again").unwrap();
        assert_eq!(gaps.list().len(), 3);
        gaps.record(Seq(6), Seq(20), "more").unwrap();
        assert_eq!(gaps.list().len(), 4);
    }
}
