//! What is known of how far the log has what Close's log has, as it is kept: the claim, and the backfill under way.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Close keeps its event log so long.
pub(in crate::close) const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far ahead of Close's clock "now" reaches, since that clock is known to the second only.
pub(in crate::close) const AHEAD: SignedDuration = SignedDuration::from_secs(60);

/// How far the log is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// From here on, by Close's clock ...
    pub from: Timestamp,
    /// ... up to here the log has the latest revision of every event in scope.
    pub upto: Timestamp,
    /// Which events were in scope, for people.
    pub scope: String,
    /// Changes whenever the scope does.
    pub scope_id: String,
}

/// What a person asks a backfill for, before Close's clock has filled in what was left open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// `date_updated` at or after; `None`: as far back as Close goes.
    pub since: Option<Timestamp>,
    /// `date_updated` before; `None`: up to now.
    pub until: Option<Timestamp>,
    /// Patterns; empty: every type in scope.
    pub types: Vec<String>,
    /// Only this lead's events.
    pub lead: Option<String>,
}

impl Ask {
    /// The range it means at a time by Close's clock.
    pub(in crate::close) fn at(self, close_now: Timestamp) -> Spec {
        let limit = |moved: Result<Timestamp, jiff::Error>| moved.unwrap_or(close_now);
        Spec {
            since: self.since.unwrap_or(limit(close_now.checked_sub(KEPT))),
            until: self.until.unwrap_or(limit(close_now.checked_add(AHEAD))),
            types: self.types,
            lead: self.lead,
        }
    }
}

/// What a backfill is to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// `date_updated` at or after.
    pub since: Timestamp,
    /// `date_updated` before.
    pub until: Timestamp,
    /// Patterns; empty: every type in scope.
    pub types: Vec<String>,
    /// Only this lead's events.
    pub lead: Option<String>,
}

/// What became of the events of Close's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Fetched.
    pub seen: u64,
    /// Not wanted by any rule, or not asked for.
    pub outside: u64,
    /// In the log already.
    pub known: u64,
    /// New in the log (in a dry run: would be).
    pub stored: u64,
    /// New in the log without their data, and held until it comes; not in `stored`.
    pub partial: u64,
}

impl Counts {
    pub(in crate::close) fn add(&mut self, other: Counts) {
        self.seen += other.seen;
        self.outside += other.outside;
        self.known += other.known;
        self.stored += other.stored;
        self.partial += other.partial;
    }
}

/// A backfill as it is kept, so that it goes on after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillJob {
    /// What was asked for.
    pub spec: Spec,
    /// Everything before this is stored.
    pub done_to: Timestamp,
    /// So far.
    pub counts: Counts,
    /// Where it stands.
    pub state: JobState,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// Why it does not get on just now; `None` while it does.
    pub trouble: Option<String>,
}

/// Where a backfill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Running, or to be gone on with by the daemon.
    Running,
    /// Stopped by a person.
    Interrupted,
    /// Over.
    Done,
}

impl BackfillJob {
    pub(in crate::close) fn new(spec: Spec, now: Timestamp) -> BackfillJob {
        BackfillJob {
            done_to: spec.since,
            spec,
            counts: Counts::default(),
            state: JobState::Running,
            begun_at: now,
            trouble: None,
        }
    }

    /// How much of the range is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        let whole = self.spec.until.duration_since(self.spec.since).as_secs_f64();
        let done = self.done_to.duration_since(self.spec.since).as_secs_f64();
        if whole > 0.0 {
            (done / whole).clamp(0.0, 1.0)
        } else {
            1.0
        }
    }
}
