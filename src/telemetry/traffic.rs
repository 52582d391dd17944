//! What came to the public listener within the last hour, for `status`: counted since the start, and remembered once a minute, so that
//! what is older than an hour can be taken off.
//!
//! Counting is one addition; what is remembered is bounded. It is in memory only and begins anew with the process: what is said of
//! an hour says since when it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};

use crate::sync::lock;

/// What is counted: what becomes of authentic deliveries, and why others are refused.
const COUNTED: [&str; 16] = [
    STORED,
    DUPLICATE,
    QUARANTINED,
    "missing",
    "malformed",
    "bad_signature",
    "stale",
    "future",
    "wrong_subscription",
    "too_large",
    "not_found",
    "method",
    "timeout",
    "bad_request",
    "unavailable",
    "turned_away",
];

const STORED: &str = "stored";
const DUPLICATE: &str = "duplicate";
const QUARANTINED: &str = "quarantined";

/// Those in front are of authentic deliveries.
const AUTHENTIC: usize = 3;

/// Looks back so far.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// What is counted is remembered so often.
const EVERY: SignedDuration = SignedDuration::from_mins(1);

/// The counts at one moment.
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    at: Timestamp,
    counts: [u64; COUNTED.len()],
}

/// The newest authentic delivery whose time of signing was too far from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Untimely {
    /// When it came, by our clock.
    pub at: Timestamp,
    /// When it was signed, by Close's.
    pub signed_at: Timestamp,
}

impl Untimely {
    /// How far its time of signing is ahead of our clock, in seconds; negative: behind.
    pub fn offset_seconds(&self) -> i64 {
        self.signed_at.duration_since(self.at).as_secs()
    }
}

/// What came within a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Since then; younger than an hour: since the start.
    pub since: Timestamp,
    /// Whether that is the start of the daemon.
    pub since_start: bool,
    /// New events.
    pub stored: u64,
    /// Deliveries of what was stored already.
    pub duplicates: u64,
    /// Authentic bodies that can't be read as a delivery.
    pub quarantined: u64,
    /// Requests that were refused, by reason; only reasons that there were.
    pub refused: BTreeMap<String, u64>,
}

/// Counts, and remembers.
#[derive(Debug)]
pub struct Counts {
    totals: [AtomicU64; COUNTED.len()],
    /// In microseconds; the minimum: there was none.
    last_delivery_us: AtomicI64,
    untimely: Mutex<Option<Untimely>>,
    /// Oldest first; the first is at least an hour old, or that of the start.
    snapshots: Mutex<VecDeque<Snapshot>>,
}

impl Counts {
    /// Nothing counted.
    pub const fn new() -> Counts {
        Counts {
            totals: [const { AtomicU64::new(0) }; COUNTED.len()],
            last_delivery_us: AtomicI64::new(i64::MIN),
            untimely: Mutex::new(None),
            snapshots: Mutex::new(VecDeque::new()),
        }
    }

    /// One more; what is not among [`COUNTED`] counts nothing.
    pub fn count(&self, what: &str, now: impl FnOnce() -> Timestamp) {
        let Some(index) = COUNTED.iter().position(|known| *known == what) else {
            return;
        };
        self.totals[index].fetch_add(1, Ordering::Relaxed);
        if index < AUTHENTIC {
            self.last_delivery_us
                .fetch_max(now().as_microsecond(), Ordering::Relaxed);
        }
    }

    /// An authentic delivery was refused for its time of signing.
    pub fn untimely(&self, untimely: Untimely) {
        *lock(&self.untimely) = Some(untimely);
    }

    /// The newest of these.
    pub fn last_untimely(&self) -> Option<Untimely> {
        *lock(&self.untimely)
    }

    /// When the last authentic delivery came; `None`: none has since the start.
    pub fn last_delivery(&self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.last_delivery_us.load(Ordering::Relaxed)).ok()
    }

    /// To be called now and then, at the start first: remembers the counts, and forgets what is older than needed.
    pub fn tick(&self, now: Timestamp) {
        let mut snapshots = lock(&self.snapshots);
        let is_due = snapshots
            .back()
            .is_none_or(|last| now.duration_since(last.at) >= EVERY || now < last.at);
        if !is_due {
            return;
        }
        // A clock that was put back: what it says of the past is no longer so.
        while snapshots.len() > 1 && snapshots.back().is_some_and(|last| last.at > now) {
            snapshots.pop_back();
        }
        let counts = self.totals.each_ref().map(|total| total.load(Ordering::Relaxed));
        snapshots.push_back(Snapshot { at: now, counts });
        while snapshots.get(1).is_some_and(|next| now.duration_since(next.at) >= HOUR) || snapshots.len() > LEN_MAX {
            snapshots.pop_front();
        }
    }

    /// What came within the last hour, or since the start; `None` before the first tick.
    pub fn last_hour(&self, now: Timestamp) -> Option<Traffic> {
        let snapshots = lock(&self.snapshots);
        let is_old_enough = |snapshot: &&Snapshot| now.duration_since(snapshot.at) >= HOUR;
        let since = snapshots.iter().rev().find(is_old_enough);
        let (since, since_start) = match since {
            Some(since) => (since, false),
            None => (snapshots.front()?, true),
        };
        let counted = |index: usize| {
            let total = self.totals[index].load(Ordering::Relaxed);
            total.saturating_sub(since.counts[index])
        };
        let refused = (AUTHENTIC..COUNTED.len()).map(|index| (COUNTED[index].to_owned(), counted(index)));
        Some(Traffic {
            since: since.at,
            since_start,
            stored: counted(0),
            duplicates: counted(1),
            quarantined: counted(2),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
        })
    }
}

impl Default for Counts {
    fn default() -> Counts {
        Counts::new()
    }
}

/// One a minute for an hour, the one before, and one that is just being made.
const LEN_MAX: usize = 62;

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(minute: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap()
    }

    #[test]
    fn an_hour_ago_is_forgotten_and_what_is_remembered_is_bounded() {
        let counts = Counts::new();
        assert_eq!(counts.last_hour(minute(0)), None);
        counts.tick(minute(0));
        for now in 0..300 {
            counts.count("stored", || minute(now));
            counts.count("stale", || minute(now));
            counts.count("unheard of", || minute(now));
            // Looked at far more often than remembered.
            for second in 0..60 {
                counts.tick(minute(now) + SignedDuration::from_secs(second));
            }
            let traffic = counts.last_hour(minute(now)).unwrap();
            // What came in the minute that is an hour ago is off, but for that of the start.
            let expected = if now <= 60 { now + 1 } else { 60 };
            assert_eq!(traffic.stored as i64, expected, "{now}");
            assert_eq!(traffic.refused, BTreeMap::from([("stale".to_owned(), traffic.stored)]));
            assert_eq!(traffic.since_start, now < 60, "{now}");
            assert_eq!(traffic.duplicates + traffic.quarantined, 0);
            assert!(minute(now).duration_since(traffic.since) <= HOUR + EVERY);
            assert!(lock(&counts.snapshots).len() <= LEN_MAX);
        }
        assert_eq!(counts.last_delivery(), Some(minute(299)));
    }

    #[test]
    fn only_authentic_deliveries_are_the_last_one() {
        let counts = Counts::new();
        assert_eq!(counts.last_delivery(), None);
        for refused in ["missing", "bad_signature", "stale", "unavailable"] {
            counts.count(refused, || minute(9));
        }
        assert_eq!(counts.last_delivery(), None);
        counts.count("quarantined", || minute(2));
        counts.count("duplicate", || minute(1));
        assert_eq!(counts.last_delivery(), Some(minute(2)));
    }

    #[test]
    fn a_clock_that_is_put_back_leaves_counts_that_can_be_true() {
        let counts = Counts::new();
        for now in 0..90 {
            counts.count("stored", || minute(now));
            counts.tick(minute(now));
        }
        for now in 10..20 {
            counts.tick(minute(now));
            let traffic = counts.last_hour(minute(now)).unwrap();
            assert!(traffic.stored <= 90, "{traffic:?}");
            assert!(lock(&counts.snapshots).len() <= LEN_MAX);
        }
    }

    #[test]
    fn the_offset_has_close_s_clock_in_front() {
        let (ours, theirs) = (minute(0), minute(20));
        let untimely = Untimely {
            at: ours,
            signed_at: theirs,
        };
        assert_eq!(untimely.offset_seconds(), 1200);
    }
}
