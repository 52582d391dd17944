//! What is known of how far the log has what Close's log has, as it is kept: the claim, and the backfill under way.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::past::Past;
use crate::event::Seq;

/// Close keeps its event log so long.
pub(in crate::close) const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far ahead of Close's clock "now" reaches, since that clock is known to the second only.
pub(in crate::close) const AHEAD: SignedDuration = SignedDuration::from_secs(60);

/// Close surely still has what is this young: its answer may be a little older than the time we know for it.
const SURELY_KEPT: SignedDuration = SignedDuration::from_secs(30 * 86_400 - 60);

/// Close tells its time in whole seconds, so that two looks a moment apart may seem to be in the wrong order.
const TOLD_TO: SignedDuration = SignedDuration::from_secs(2);

/// How far the log is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// From here on, by Close's clock ...
    pub from: Timestamp,
    /// ... up to here the log has the latest revision of every event in scope, some perhaps without their data ([`Withheld`]).
    pub upto: Timestamp,
    /// Which events were in scope, for people.
    pub scope: String,
    /// Changes whenever the scope does.
    pub scope_id: String,
}

impl Complete {
    /// What lies between `from` and `to` was fetched and stored, and `from` is where the claim ends. It is only as good as what
    /// Close still kept then and what is settled.
    pub(in crate::close) fn fetched(&mut self, from: Timestamp, to: Timestamp, at: &FetchedAt) {
        if from < at.kept_from {
            self.from = self.from.max(at.kept_from.min(to));
        }
        self.upto = self.upto.max(to.min(at.settled)).max(self.from);
    }

    /// What was fetched by a backfill of the same events, and reaches to where the claim begins, belongs to it.
    pub(in crate::close) fn join(&mut self, scope_id: &str, covered: Covered) {
        let reaches_to = covered.to.saturating_add(TOLD_TO).unwrap_or(covered.to);
        if self.scope_id == scope_id && covered.from < self.from && reaches_to >= self.from {
            self.from = covered.from;
        }
    }
}

/// What a fetch can vouch for, by the time it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::close) struct FetchedAt {
    /// From here on Close still had everything.
    pub kept_from: Timestamp,
    /// What is older than this has become visible, and is where it stays.
    pub settled: Timestamp,
}

impl FetchedAt {
    /// `begun`: when the first of it was asked for; `answered`: when the last of it was there. By Close's clock.
    pub fn new(begun: Timestamp, answered: Timestamp, overlap: SignedDuration) -> FetchedAt {
        FetchedAt {
            kept_from: answered.saturating_sub(SURELY_KEPT).unwrap_or(Timestamp::MIN),
            settled: begun.saturating_sub(overlap).unwrap_or(Timestamp::MIN),
        }
    }
}

/// A stretch of Close's log that a backfill has fetched without a gap: while Close still kept it, and when it was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// At or after.
    pub from: Timestamp,
    /// Before.
    pub to: Timestamp,
}

impl Covered {
    /// With what lies between `from` and `to`, fetched and stored now. A gap that Close has made by forgetting is not covered, so
    /// that all counts from behind it; what is not settled is left to the next fetch.
    pub(in crate::close) fn with(
        before: Option<Covered>,
        from: Timestamp,
        to: Timestamp,
        at: &FetchedAt,
    ) -> Option<Covered> {
        let piece = Covered {
            from: from.max(at.kept_from),
            to: to.min(at.settled),
        };
        let is_gap = piece.from > from;
        match before {
            // Nothing of what was fetched before is left that what comes could join.
            Some(before) if is_gap && before.to < piece.from => (piece.from < piece.to).then_some(piece),
            _ if piece.from >= piece.to => before,
            Some(before) if before.to < piece.from => Some(before),
            Some(before) => Some(Covered {
                to: before.to.max(piece.to),
                ..before
            }),
            None => Some(piece),
        }
    }
}

/// Events in the log whose data Close withholds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// None is before this Seq.
    pub from: Seq,
    /// How many events there are in the log without their data, and not with it as well.
    pub events: u64,
    /// Of these by type, `object_type.action`; empty where an event has none.
    pub types: BTreeMap<String, u64>,
    /// `date_updated` of the oldest.
    pub oldest: Option<Timestamp>,
    /// `date_updated` of the newest.
    pub newest: Option<Timestamp>,
    /// False: some may have been stored since they were counted.
    pub is_counted: bool,
    /// For which scope they were counted: those that nothing wants are not in the count.
    #[serde(default)]
    pub scope_id: String,
    /// Up to here they were dispatched as they are.
    pub released_to: Seq,
}

/// `state.json`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::close) struct Marks {
    pub version: u32,
    /// Whose the claims are.
    #[serde(default)]
    pub organization: Option<String>,
    pub complete: Option<Complete>,
    /// Damage found up to then is refilled.
    pub damage_seen: Option<Timestamp>,
    pub job: Option<BackfillJob>,
    /// `None`: no event lacks its data.
    #[serde(default)]
    pub withheld: Option<Withheld>,
    /// What was claimed, paused and fetched in the last month.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
    /// As an older closehook kept it: their first and last Seq.
    #[serde(default, skip_serializing)]
    pub(in crate::close) held: Option<(Seq, Seq)>,
}

impl Marks {
    /// As it is kept now, whichever version has written it.
    pub fn taken_over(mut self) -> Marks {
        if let (None, Some((from, _))) = (&self.withheld, self.held.take()) {
            self.withheld = Some(Withheld {
                from,
                ..Withheld::default()
            });
        }
        self
    }

    /// What was claimed for another organization is no claim for this one.
    pub fn belong_to(&mut self, organization: String) {
        if self.organization.as_ref().is_some_and(|before| *before != organization) {
            (self.complete, self.job) = (None, None);
        }
        self.organization = Some(organization);
    }

    /// What the newest backfill has fetched of a scope, as far as that is without restriction.
    pub fn covered(&self, scope_id: &str) -> Option<Covered> {
        let job = self.job.as_ref()?;
        let is_all = job.spec.types.is_empty() && job.spec.lead.is_none();
        job.covered.filter(|_| is_all && job.scope_id == scope_id)
    }

    /// The claim begins as early as the newest backfill allows.
    pub fn join_job(&mut self) {
        let covered = self
            .complete
            .as_ref()
            .and_then(|complete| self.covered(&complete.scope_id));
        if let (Some(complete), Some(covered)) = (&mut self.complete, covered) {
            let scope_id = complete.scope_id.clone();
            complete.join(&scope_id, covered);
        }
    }

    /// Without their data are some events, at this Seq or behind it.
    pub fn expect_withheld(&mut self, from: Seq) {
        let withheld = self.withheld.get_or_insert_with(|| Withheld {
            from,
            ..Withheld::default()
        });
        withheld.from = withheld.from.min(from);
        withheld.is_counted = false;
    }
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
    /// When it was over; `None`: it is not, or an older closehook has not said.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Why it does not get on just now; `None` while it does.
    pub trouble: Option<String>,
    /// When that was; `None`: it gets on, or an older closehook has not said.
    #[serde(default)]
    pub troubled_at: Option<Timestamp>,
    /// Which events it fetches, for people. Where the rules have come to want others, it begins anew.
    #[serde(default)]
    pub scope: String,
    /// Changes whenever the scope does; empty: an older closehook has begun it.
    #[serde(default)]
    pub scope_id: String,
    /// What it can vouch for.
    #[serde(default)]
    pub covered: Option<Covered>,
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
    pub(in crate::close) fn new(spec: Spec, scope: (String, String), now: Timestamp) -> BackfillJob {
        let (scope, scope_id) = scope;
        BackfillJob {
            scope,
            scope_id,
            covered: None,
            done_to: spec.since,
            spec,
            counts: Counts::default(),
            state: JobState::Running,
            begun_at: now,
            ended_at: None,
            trouble: None,
            troubled_at: None,
        }
    }

    /// Whatever it waited for is over.
    pub(in crate::close) fn gets_on(&mut self) {
        (self.trouble, self.troubled_at) = (None, None);
    }

    /// The rules want other events than it has fetched so far: all of it is to be fetched.
    pub(in crate::close) fn begin_anew(&mut self, scope: (String, String)) {
        (self.scope, self.scope_id) = scope;
        self.done_to = self.spec.since;
        self.covered = None;
        self.counts = Counts::default();
    }

    /// Where it goes on: before the end of what it fetched last, since more may have become visible there.
    pub(in crate::close) fn resumes_at(&self) -> Timestamp {
        match self.covered {
            Some(covered) => self.done_to.min(covered.to).max(self.spec.since),
            None => self.spec.since,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    /// Asked for and answered on this day, with an overlap of one.
    fn on(day: i64) -> FetchedAt {
        FetchedAt {
            kept_from: at(day - 30),
            settled: at(day - 1),
        }
    }

    fn covered(from: i64, to: i64) -> Covered {
        Covered {
            from: at(from),
            to: at(to),
        }
    }

    #[test]
    fn events_without_their_data_are_counted_again_from_the_first_of_them_on() {
        let mut marks = Marks::default();
        for (expected, from) in [(9, 9), (12, 9), (4, 4)] {
            marks.expect_withheld(Seq(expected));
            let withheld = marks.withheld.as_mut().unwrap();
            assert_eq!((withheld.from, withheld.is_counted), (Seq(from), false));
            withheld.is_counted = true;
        }
    }

    #[test]
    fn a_backfill_vouches_for_what_close_still_had_and_what_was_settled() {
        let with = |before: Option<(i64, i64)>, from: i64, to: i64, day: i64| {
            let before = before.map(|(from, to)| covered(from, to));
            Covered::with(before, at(from), at(to), &on(day))
        };
        // From the 70th day to now, in three pieces, on the 100th.
        assert_eq!(with(None, 70, 80, 100), Some(covered(70, 80)));
        assert_eq!(with(Some((70, 80)), 80, 95, 100), Some(covered(70, 95)));
        assert_eq!(with(Some((70, 95)), 95, 101, 100), Some(covered(70, 99)));
        // The rest, later: from before the end of what was settled.
        assert_eq!(with(Some((70, 99)), 99, 101, 102), Some(covered(70, 101)));
        assert_eq!(
            with(Some((70, 99)), 100, 101, 102),
            Some(covered(70, 99)),
            "not over a gap"
        );
        // It was interrupted on the 80th day's events and goes on on the 115th.
        assert_eq!(with(Some((70, 80)), 80, 90, 115), Some(covered(85, 90)));
        assert_eq!(with(Some((70, 80)), 80, 84, 115), None, "all of that is gone");
        assert_eq!(with(Some((70, 86)), 80, 90, 115), Some(covered(70, 90)), "no gap");
        assert_eq!(with(None, 10, 20, 100), None);
    }

    #[test]
    fn a_claim_begins_where_close_still_had_everything() {
        let claim = |from: i64, upto: i64| Complete {
            from: at(from),
            upto: at(upto),
            scope: "*".into(),
            scope_id: "1".into(),
        };
        let mut usual = claim(80, 98);
        usual.fetched(at(98), at(101), &on(100));
        assert_eq!(usual, claim(80, 99));
        let mut late = claim(60, 70);
        late.fetched(at(70), at(75), &on(103));
        assert_eq!(late, claim(73, 75));
        late.fetched(at(75), at(90), &on(108));
        assert_eq!(late, claim(78, 90), "what is asked for when it is gone is not claimed");
        let mut lost = claim(60, 70);
        lost.fetched(at(70), at(72), &on(110));
        assert_eq!(lost, claim(72, 72), "nothing of it was left");
    }

    #[test]
    fn a_claim_is_joined_only_by_the_same_events_without_a_gap() {
        let claim = Complete {
            from: at(80),
            upto: at(99),
            scope: "*".into(),
            scope_id: "1".into(),
        };
        let joined = |scope: &str, from: i64, to: i64| {
            let mut claim = claim.clone();
            claim.join(
                scope,
                Covered {
                    from: at(from),
                    to: at(to),
                },
            );
            claim.from
        };
        assert_eq!(joined("1", 70, 80), at(70));
        assert_eq!(joined("2", 70, 80), at(80), "other events");
        assert_eq!(joined("1", 70, 79), at(80), "a gap");
        assert_eq!(joined("1", 85, 99), at(80), "nothing new");
    }

    #[test]
    fn what_an_older_version_kept_is_taken_over() {
        let text = r#"{"version":1,"complete":null,"damage_seen":null,"job":{"spec":{"since":"2024-02-01T00:00:00Z",
            "until":"2024-02-20T00:00:00Z","types":[],"lead":null},"done_to":"2024-02-10T00:00:00Z","counts":{"seen":1,"outside":0,
            "known":0,"stored":1,"partial":0},"state":"interrupted","begun_at":"2024-02-20T00:00:00Z","trouble":null},"held":[3,9]}"#;
        let marks = serde_json::from_str::<Marks>(text).unwrap().taken_over();
        let withheld = marks.withheld.clone().unwrap();
        assert_eq!((withheld.from, withheld.is_counted), (Seq(3), false));
        assert_eq!(
            marks.job.as_ref().unwrap().resumes_at(),
            "2024-02-01T00:00:00Z".parse().unwrap()
        );
        assert_eq!(marks.covered(""), None, "what it vouches for is not known");
        let mut marks = marks;
        marks.belong_to("orga_1".into());
        assert!(marks.job.is_some());
        marks.belong_to("orga_2".into());
        assert!(marks.job.is_none());
    }
}
