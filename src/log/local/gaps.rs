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
    path: PathBuf,
    list: RwLock<Arc<Vec<Gap>>>,
    changing: Mutex<()>,
    /// Some of the list is not on disk: it was found when there was no room.
    is_owed: AtomicBool,
    /// What there is besides a damaged list is still being found. Until all of it is, nothing takes the damaged list's place: where the start
    /// ends before that, the next one would take what had been found by then for the whole list.
    is_listing: AtomicBool,
    /// When the newest event was received that was seen when the log was opened, in microseconds.
    newest_us: AtomicI64,
    /// Whoever only looks keeps what is found to itself.
    is_owner: bool,
    /// The list was damaged, and is where it was: a sentence.
    damage: Option<String>,
    /// The list was damaged: nobody knows what it told.
    is_incomplete: bool,
}

impl Gaps {
    /// Reads the list. One that is damaged counts as empty (what it told about is found again where it can be); with `repair` it is
    /// set aside, and what is found from now on is stored. One that can't be read now is no empty one.
    pub fn open(dir: &Path, repair: bool) -> io::Result<Gaps> {
        let path = dir.join("gaps.json");
        let mut damage = None;
        let mut is_incomplete = false;
        let read = crate::files::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
        let list = match read {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) if framefile::is_damage(&error) => {
                tracing::error!(path = %path.display(), %error, "the list of lost events is damaged and begun anew");
                is_incomplete = true;
                if repair {
                    set_aside(&path);
                } else {
                    damage = Some(format!(
                        "{}: the list of lost events is damaged: {error}",
                        path.display()
                    ));
                }
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        Ok(Gaps {
            path,
            list: RwLock::new(Arc::new(list)),
            changing: Mutex::new(()),
            // As long as the damaged one is in its place, it is known that something is not known.
            is_owed: AtomicBool::new(repair && is_incomplete),
            is_listing: AtomicBool::new(repair && is_incomplete),
            newest_us: AtomicI64::new(i64::MIN),
            is_owner: repair,
            damage,
            is_incomplete,
        })
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
        let list = self.list();
        outside(from, to, list.iter().map(|gap| (gap.from, gap.to)).collect())
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

    /// Only what is durable is on record: else the next one who asks would rely on it. While it is listed what there is, it is owed instead.
    fn keep(&self, list: Vec<Gap>) -> io::Result<()> {
        if self.is_listing.load(Ordering::Relaxed) {
            self.is_owed.store(true, Ordering::Relaxed);
            *write_lock(&self.list) = Arc::new(list);
            return Ok(());
        }
        if self.is_owner {
            store(&self.path, &list)?;
        }
        self.is_owed.store(false, Ordering::Relaxed);
        *write_lock(&self.list) = Arc::new(list);
        Ok(())
    }
}

/// Gives a damaged list a second name. It goes from its place when the next one takes that. Where that can't be, its bytes are of less use than
/// a log that starts.
fn set_aside(path: &Path) {
    let aside = framefile::beside(path, ".damaged");
    let removed = match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if let Err(error) = removed.and_then(|()| framefile::name_again(path, &aside)) {
        tracing::warn!(%error, aside = %aside.display(), "the damaged list of lost events can't be set aside");
    }
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
            certain_to: None,
        }
    }

    #[test]
    fn what_nobody_knows_the_end_of_is_as_long_as_somebody_has_seen_it() {
        let dir = tempfile::tempdir().unwrap();
        let gaps = Gaps::open(dir.path(), true).unwrap();
        gaps.record_or_owe(Seq(11), Seq(1000), "why", Stood::AtLeastTo(Seq(10)))
            .unwrap();
        let lost = || -> (Vec<(u64, u64)>, u64) {
            let parts = gaps.without_skipped(Seq(11), Seq(1005)).into_iter();
            (
                parts.map(|(from, to)| (from.0, to.0)).collect(),
                gaps.lost()[0].certain(),
            )
        };
        assert_eq!(lost(), (vec![(1001, 1005)], 0));
        let told = gaps.lost()[0].told();
        assert!(told.contains("11") && told.contains("nobody knows how many"), "{told}");
        // Before it, all of it, and behind it.
        for seen in [5, 10, 1000, 2000] {
            gaps.prove(Seq(seen));
            assert_eq!(lost().1, 0, "{seen}");
        }
        for (seen, certain) in [(15, 5), (12, 5), (20, 10)] {
            gaps.prove(Seq(seen));
            assert_eq!(lost(), (vec![(11, 10 + certain), (1001, 1005)], certain), "{seen}");
        }
        assert_eq!(
            Gaps::open(dir.path(), true).unwrap().lost(),
            gaps.lost(),
            "it is durable"
        );
    }

    #[test]
    fn who_only_looks_knows_what_it_has_found_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("gaps.json"), "[{").unwrap();
        let gaps = Gaps::open(dir.path(), false).unwrap();
        gaps.record(Seq(5), Seq(9), "why").unwrap();
        assert_eq!((gaps.lost().len(), gaps.holds(Seq(7))), (1, true));
        assert!(gaps.damage().is_some_and(|why| why.contains("gaps.json")));
        assert_eq!(std::fs::read_to_string(dir.path().join("gaps.json")).unwrap(), "[{");
    }

    /// Else nobody would know after a crash that something is not known.
    #[test]
    fn a_damaged_list_is_in_its_place_until_the_next_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("gaps.json"), dir.path().join("gaps.json.damaged"));
        std::fs::write(&path, "[{").unwrap();
        for _ in 0..2 {
            let gaps = Gaps::open(dir.path(), true).unwrap();
            assert!(gaps.is_incomplete() && gaps.is_owed());
            assert_eq!(std::fs::read_to_string(&aside).unwrap(), "[{");
        }
        Gaps::open(dir.path(), true).unwrap().settle_listed().unwrap();
        assert!(!Gaps::open(dir.path(), true).unwrap().is_incomplete());
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "[{");
    }

    /// A start that ends in between is followed by another one, which has to know that the list tells not all.
    #[test]
    fn a_damaged_list_gives_way_to_all_that_is_found_and_not_to_the_first_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gaps.json");
        std::fs::write(&path, "[{").unwrap();
        let find = |gaps: &Gaps| {
            gaps.record_or_owe(Seq(5), Seq(9), "why", Stood::All).unwrap();
            gaps.record(Seq(6), Seq(8), "again").unwrap();
            gaps.record(Seq(20), Seq(29), "why").unwrap();
            gaps.prove(Seq(7));
            assert!(gaps.is_owed() && gaps.holds(Seq(7)) && gaps.holds(Seq(25)));
        };
        for _ in 0..2 {
            let gaps = Gaps::open(dir.path(), true).unwrap();
            find(&gaps);
            assert!(gaps.is_incomplete());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
        }
        let gaps = Gaps::open(dir.path(), true).unwrap();
        find(&gaps);
        gaps.settle_listed().unwrap();
        assert!(!gaps.is_owed());
        let again = Gaps::open(dir.path(), true).unwrap();
        assert_eq!((again.list(), again.is_incomplete()), (gaps.list(), false));
        assert_eq!(again.list().len(), 2);
    }

    #[test]
    fn a_damaged_list_that_can_not_be_set_aside_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("gaps.json"), dir.path().join("gaps.json.damaged"));
        std::fs::write(&path, "[{").unwrap();
        std::fs::create_dir(&aside).unwrap();
        let gaps = Gaps::open(dir.path(), true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
        gaps.settle_listed().unwrap();
        assert!(!Gaps::open(dir.path(), true).unwrap().is_incomplete());
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
            assert!(gaps.add(Seq(10), Seq(19), "why", Stood::Nothing).is_err());
            assert!(gaps.forget_before(Seq(3), &|_| true).is_err());
            assert_eq!(*gaps.list(), [gap(1, 2, false)]);
        }
        std::fs::rename(&away, &place).unwrap();
        gaps.record(Seq(5), Seq(9), "why").unwrap();
        gaps.add(Seq(10), Seq(19), "why", Stood::Nothing).unwrap();
        gaps.forget_before(Seq(3), &|_| true).unwrap();
        let stored = Gaps::open(&place, true).unwrap();
        assert_eq!((gaps.list().len(), stored.list()), (2, gaps.list()));
    }

    /// Who has seen it goes on, and tells it only once.
    #[test]
    fn what_was_proven_and_could_not_be_stored_is_known_and_stored_later() {
        let dir = tempfile::tempdir().unwrap();
        let (place, away) = (dir.path().join("data"), dir.path().join("away"));
        std::fs::create_dir(&place).unwrap();
        let gaps = Gaps::open(&place, true).unwrap();
        let uncertain = Stood::AtLeastTo(Seq(10));
        gaps.record_or_owe(Seq(11), Seq(1000), "why", uncertain).unwrap();
        std::fs::rename(&place, &away).unwrap();
        gaps.prove(Seq(15));
        assert_eq!((gaps.lost()[0].certain(), gaps.is_owed()), (5, true));
        assert!(gaps.settle().is_err());
        std::fs::rename(&away, &place).unwrap();
        gaps.settle().unwrap();
        assert!(!gaps.is_owed());
        assert_eq!(Gaps::open(&place, true).unwrap().lost()[0].certain(), 5);
    }

    #[test]
    fn what_is_on_record_is_left_out_in_whatever_order_it_was_found() {
        let dir = tempfile::tempdir().unwrap();
        Gaps::write(dir.path(), &[gap(30, 39, true), gap(10, 19, false), gap(12, 14, true)]).unwrap();
        let gaps = Gaps::open(dir.path(), true).unwrap();
        let plain = |parts: Vec<(Seq, Seq)>| -> Vec<(u64, u64)> {
            parts.into_iter().map(|(from, to)| (from.0, to.0)).collect()
        };
        assert_eq!(plain(gaps.unrecorded(Seq(1), Seq(50))), [(1, 9), (20, 29), (40, 50)]);
        assert_eq!(plain(gaps.unrecorded(Seq(12), Seq(16))), []);
        assert_eq!(
            plain(gaps.without_skipped(Seq(1), Seq(50))),
            [(1, 11), (15, 29), (40, 50)]
        );
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
