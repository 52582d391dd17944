//! What was claimed, paused and fetched in the last month, as it is kept beside what holds now: for the line of days on which people see
//! how complete the log is.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::account::Account;
use super::completeness::marks::{BackfillJob, Complete, JobState, Marks};
use super::completeness::past::{Past, PastKind};
use super::seen::{Condition, FoundSubscription};
use super::status::Held;
use crate::event::Seq;

/// Stretches are kept so long after their end: as long as Close keeps its log, and a little more.
const KEPT: SignedDuration = SignedDuration::from_hours(31 * 24);

/// So many stretches are kept; beyond, the oldest go.
const PAST_MAX: usize = 300;

/// All that is known for a line of days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chronicle {
    /// What is claimed now.
    pub claim: Option<Complete>,
    /// What was.
    pub past: Vec<Past>,
    /// The newest backfill, unless it is over.
    pub job: Option<BackfillJob>,
    /// Events that lack their data, and the Seq that none of them is before.
    pub held: Option<(Held, Seq)>,
}

impl Marks {
    /// Keeps of what was before what is no more.
    pub(super) fn remember(&mut self, before: &Marks, now: Timestamp) {
        if before.organization.is_some() && before.organization != self.organization {
            // It was another one's.
            self.past.clear();
            return;
        }
        if let Some(claim) = &before.complete {
            let goes_on = |next: &Complete| next.scope_id == claim.scope_id && next.from <= claim.upto;
            if !self.complete.as_ref().is_some_and(goes_on) && claim.from < claim.upto {
                self.past.push(Past {
                    kind: PastKind::Claim,
                    from: claim.from,
                    to: Some(claim.upto),
                    of: claim.scope.clone(),
                    events: None,
                    ran: None,
                });
            }
        }
        self.remember_job(before, now);
        let oldest = now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        self.past.retain(|past| past.to.is_none_or(|to| to >= oldest));
        let surplus = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..surplus);
    }

    fn remember_job(&mut self, before: &Marks, now: Timestamp) {
        let Some(job) = before.job.as_ref().filter(|job| job.state != JobState::Done) else {
            return;
        };
        let same = self.job.as_ref().filter(|next| next.begun_at == job.begun_at);
        let (ended, to) = match same {
            Some(job) if job.state == JobState::Done => (job, job.spec.until),
            Some(_) => return,
            // Another one was begun instead.
            None => (job, job.done_to),
        };
        if ended.spec.since < to {
            let past = Past {
                kind: PastKind::Backfill,
                from: ended.spec.since,
                to: Some(to),
                of: ended.scope.clone(),
                events: Some(ended.counts.stored + ended.counts.partial),
                ran: Some((ended.begun_at, now)),
            };
            self.past.push(past);
        }
    }

    /// Subscriptions that do not deliver here now, each with why; since when at the earliest, and the time of this look. What was
    /// paused and is not among them has ended.
    pub(super) fn note_pauses(&mut self, paused: &[(String, String)], since: Timestamp, now: Timestamp) {
        let is_open = |past: &Past| past.kind == PastKind::Pause && past.to.is_none();
        let open: BTreeSet<String> = self
            .past
            .iter()
            .filter(|past| is_open(past))
            .map(|past| past.of.clone())
            .collect();
        let named: BTreeSet<String> = paused.iter().map(|(id, why)| format!("{id}: {why}")).collect();
        for past in self.past.iter_mut().filter(|past| is_open(past)) {
            if !named.contains(&past.of) {
                past.to = Some(now);
            }
        }
        let new = named.difference(&open).map(|of| Past {
            kind: PastKind::Pause,
            from: since,
            to: None,
            of: of.clone(),
            events: None,
            ran: None,
        });
        self.past.extend(new);
    }

    /// The pauses that go on, as they were noted.
    pub(super) fn open_pauses(&self) -> BTreeSet<String> {
        let open = self
            .past
            .iter()
            .filter(|past| past.kind == PastKind::Pause && past.to.is_none());
        open.map(|past| past.of.clone()).collect()
    }
}

/// Those of some subscriptions that do not deliver here, each with why.
pub(super) fn paused_among(found: &[FoundSubscription]) -> Vec<(String, String)> {
    let why = |one: &FoundSubscription| {
        let why = match one.state {
            // One that is being replaced, or was, has a successor that delivers.
            Condition::Active | Condition::BeingReplaced | Condition::Gone | Condition::Keyless => return None,
            Condition::Paused => match &one.pause_reason {
                Some(reason) => format!("Close has paused it ({reason})"),
                None => "Close has paused it".to_owned(),
            },
            Condition::PausedByHand => "it was paused through closehook".to_owned(),
            Condition::PausedBySomebody => "somebody has paused it at Close".to_owned(),
            Condition::Missing => "Close does not have it".to_owned(),
            Condition::Elsewhere => "it delivers elsewhere".to_owned(),
        };
        Some((one.id.clone(), why))
    };
    found.iter().filter_map(why).collect()
}

impl Account {
    /// Keeps what a look at the subscriptions has found of pauses, before and after those that could be ended were. That it can't be
    /// kept is no reason to do less.
    pub(super) async fn keep_pauses(&self, before: Vec<(String, String)>, found: &[FoundSubscription]) {
        let after = paused_among(found);
        let text = |(id, why): &(String, String)| format!("{id}: {why}");
        let is_as_noted = |paused: &[(String, String)]| {
            paused.iter().map(text).collect::<BTreeSet<_>>() == self.store.marks().open_pauses()
        };
        if is_as_noted(&before) && is_as_noted(&after) {
            return;
        }
        let now = self.now();
        // It may have begun right after the last look.
        let since = self.seen().checked_at.unwrap_or(now).min(now);
        let noted = self.store.change_marks(move |marks| {
            marks.note_pauses(&before, since, now);
            marks.note_pauses(&after, since, now);
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "that subscriptions are paused, or are no more, can't be noted: the line of days will lack it");
        }
    }

    /// What is known for a line of days.
    pub fn chronicle(&self) -> Chronicle {
        let marks = self.store.marks();
        let held = self.held(&marks);
        let from = marks.withheld.as_ref().map(|withheld| withheld.from);
        Chronicle {
            claim: marks.complete,
            past: marks.past,
            job: marks.job.filter(|job| job.state != JobState::Done),
            held: held.zip(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::completeness::marks::Ask;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    fn claim(scope: &str, from: i64, upto: i64) -> Marks {
        Marks {
            complete: Some(Complete {
                from: at(from),
                upto: at(upto),
                scope: format!("of {scope}"),
                scope_id: scope.into(),
            }),
            ..Marks::default()
        }
    }

    /// What is kept when one state follows another.
    fn kept(before: &Marks, now: Marks) -> Vec<(PastKind, Timestamp, Option<Timestamp>)> {
        let mut now = now;
        now.remember(before, at(100));
        now.past.iter().map(|past| (past.kind, past.from, past.to)).collect()
    }

    #[test]
    fn a_claim_that_ends_is_kept_and_one_that_goes_on_is_not() {
        let before = claim("1", 80, 90);
        assert_eq!(kept(&before, claim("1", 80, 95)), []);
        assert_eq!(kept(&before, claim("1", 70, 95)), []);
        let ended = [(PastKind::Claim, at(80), Some(at(90)))];
        assert_eq!(
            kept(&before, claim("1", 93, 95)),
            ended,
            "Close kept no more of what lies between"
        );
        assert_eq!(kept(&before, claim("2", 80, 95)), ended);
        assert_eq!(kept(&before, Marks::default()), ended);
        assert_eq!(kept(&claim("1", 50, 60), Marks::default()), [], "a month later");
        let mut other = Marks {
            organization: Some("orga_2".into()),
            ..Marks::default()
        };
        other.remember(
            &Marks {
                organization: Some("orga_1".into()),
                ..before
            },
            at(100),
        );
        assert_eq!(other.past, []);
    }

    #[test]
    fn a_backfill_is_kept_when_it_ends_or_gives_way() {
        let ask = Ask {
            since: Some(at(80)),
            until: Some(at(99)),
            types: Vec::new(),
            lead: None,
        };
        let job = BackfillJob::new(ask.at(at(100)), ("all".into(), "1".into()), at(100));
        let with = |job: BackfillJob| Marks {
            job: Some(job),
            ..Marks::default()
        };
        let half = BackfillJob {
            done_to: at(90),
            ..job.clone()
        };
        let done = BackfillJob {
            state: JobState::Done,
            done_to: at(99),
            ..job.clone()
        };
        let next = BackfillJob {
            begun_at: at(101),
            ..job.clone()
        };
        let kept = |before: &BackfillJob, now: &BackfillJob| kept(&with(before.clone()), with(now.clone()));
        assert_eq!(kept(&job, &half), []);
        assert_eq!(kept(&half, &done), [(PastKind::Backfill, at(80), Some(at(99)))]);
        assert_eq!(kept(&done, &next), [], "it was kept when it ended");
        assert_eq!(kept(&half, &next), [(PastKind::Backfill, at(80), Some(at(90)))]);
        assert_eq!(kept(&job, &next), [], "it had fetched nothing");
    }

    #[test]
    fn a_pause_is_open_until_a_look_finds_it_ended() {
        let pause = |id: &str| (id.to_owned(), "Close has paused it".to_owned());
        let mut marks = Marks::default();
        marks.note_pauses(&[pause("a")], at(1), at(2));
        marks.note_pauses(&[pause("a"), pause("b")], at(2), at(3));
        assert_eq!(marks.open_pauses().len(), 2);
        marks.note_pauses(&[pause("b")], at(3), at(4));
        let past: Vec<_> = marks
            .past
            .iter()
            .map(|past| (&past.of[..1], past.from, past.to))
            .collect();
        assert_eq!(past, [("a", at(1), Some(at(4))), ("b", at(2), None)]);
        // It is there again: another one.
        marks.note_pauses(&[pause("a"), pause("b")], at(5), at(6));
        assert_eq!(marks.past.len(), 3);
        for day in 0..1000 {
            marks.note_pauses(&[pause(&day.to_string())], at(99), at(99));
        }
        marks.remember(&Marks::default(), at(100));
        assert_eq!(marks.past.len(), PAST_MAX);
    }
}
