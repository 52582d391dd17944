//! "Complete up to T" as a picture: a line of days, with what is claimed on it and what stands against it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::overview::kept_from;
use crate::close::{Chronicle, JobState, Past, PastKind};
use crate::event::Seq;
use crate::log::{Gap, Take};
use crate::sorted;

/// The line of the last days.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Draw {
    /// Back from now, 30 at the most (Close keeps no more); `None`: 30.
    #[serde(default)]
    pub days: Option<u32>,
}

/// A line of days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// It begins.
    pub from: Timestamp,
    /// It ends: now.
    pub to: Timestamp,
    /// Whether there are credentials: without them nothing is ever compared, and nothing claimed.
    pub configured: bool,
    /// What is on it, in order of their beginnings.
    pub stretches: Vec<Stretch>,
    /// Further stretches were left out: there are more than [`STRETCHES_MAX`].
    pub is_cut: bool,
}

/// So many stretches are on a picture.
pub const STRETCHES_MAX: usize = 1000;

/// One stretch of the line, or a point on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// What it is.
    pub kind: What,
    /// From.
    pub from: Timestamp,
    /// To; the same for a point.
    pub to: Timestamp,
    /// It is still going on.
    pub is_open: bool,
    /// The first Seq that it concerns, where that is known: `events list` from there on shows them.
    pub first: Option<Seq>,
    /// The last one.
    pub last: Option<Seq>,
    /// Events it is about, where that is known.
    pub events: Option<u64>,
    /// What it is, one sentence.
    pub text: String,
    /// When a backfill ran: what it stored was received then, whenever it happened.
    #[serde(skip)]
    pub ran: Option<(Timestamp, Timestamp)>,
}

/// What a stretch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The log has every event in scope.
    Complete,
    /// Nothing is claimed: it was not compared, or Close did not keep it long enough.
    Unclaimed,
    /// A subscription was not active.
    Paused,
    /// A backfill fetched it.
    Backfill,
    /// Events are there without their data, which Close withholds.
    Held,
    /// Events were lost from the log by damage.
    Lost,
}

/// Days back at the most: Close keeps its log so long.
pub const DAYS_MAX: u32 = 30;

/// Of so many stretches it is looked up which Seqs lie in them.
const PLACED_MAX: usize = 100;

impl Draw {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Picture>) -> Result<(), Refusal> {
        let to = Timestamp::now();
        let days = i64::from(self.days.unwrap_or(DAYS_MAX).clamp(1, DAYS_MAX));
        let from = to.saturating_sub(SignedDuration::from_hours(24 * days)).map_err(text)?;
        let configured = on.account.is_configured();
        let mut stretches = drawn(&on.account.chronicle(), configured, from, to);
        if let Some(kept) = kept_from(&on.log.stats()) {
            stretches = stretches
                .into_iter()
                .flat_map(|stretch| stretch.left_from(kept))
                .collect();
        }
        for held in stretches.iter_mut().filter(|stretch| stretch.kind == What::Held) {
            held.last = Some(*on.log.head().borrow());
        }
        for gap in on.log.stats().gaps {
            stretches.extend(lost(on, &gap).await?.within(from, to));
        }
        sorted::sort_by_key(&mut stretches, |stretch| (stretch.from, stretch.kind));
        let is_cut = stretches.len() > STRETCHES_MAX;
        stretches.truncate(STRETCHES_MAX);
        for stretch in stretches
            .iter_mut()
            .filter(|stretch| stretch.first.is_none())
            .take(PLACED_MAX)
        {
            stretch.find(on).await?;
        }
        let picture = Picture {
            from,
            to,
            configured,
            stretches,
            is_cut,
        };
        out.say(&picture).await
    }
}

/// What Close's side knows, between two times.
fn drawn(known: &Chronicle, configured: bool, from: Timestamp, to: Timestamp) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = known.past.iter().map(|past| of_past(past, to)).collect();
    if let Some(claim) = &known.claim {
        stretches.push(Stretch {
            is_open: true,
            ..Stretch::new(
                What::Complete,
                claim.from,
                claim.upto,
                format!("complete for {}", claim.scope),
            )
        });
    }
    if let Some(job) = &known.job {
        let (is_open, end, how) = match job.state {
            JobState::Running => (true, job.spec.until, "a backfill is fetching it"),
            _ => (false, job.done_to, "a backfill has fetched it and was stopped"),
        };
        stretches.push(Stretch {
            is_open,
            events: Some(job.counts.stored + job.counts.partial),
            ran: Some((job.begun_at, to)),
            ..Stretch::new(What::Backfill, job.spec.since, end, how.to_owned())
        });
    }
    if let Some((held, first)) = &known.held {
        stretches.push(Stretch {
            is_open: true,
            first: Some(*first),
            events: held.is_counted.then_some(held.events),
            ..Stretch::new(
                What::Held,
                held.oldest.unwrap_or(from),
                held.newest.unwrap_or(to),
                "events without their data, which Close withholds from this key".to_owned(),
            )
        });
    }
    let mut stretches: Vec<Stretch> = stretches
        .into_iter()
        .filter_map(|stretch| stretch.within(from, to))
        .collect();
    let unclaimed = unclaimed(&stretches, configured, from, to);
    stretches.extend(unclaimed);
    stretches
}

fn of_past(past: &Past, now: Timestamp) -> Stretch {
    let (kind, text) = match past.kind {
        PastKind::Claim => (What::Complete, format!("was complete for {}", past.of)),
        PastKind::Pause => (What::Paused, past.of.clone()),
        PastKind::Backfill => (What::Backfill, format!("a backfill has fetched {}", past.of)),
    };
    Stretch {
        is_open: past.to.is_none(),
        events: past.events,
        ran: past.ran,
        ..Stretch::new(kind, past.from, past.to.unwrap_or(now), text)
    }
}

/// What no claim is for.
fn unclaimed(stretches: &[Stretch], configured: bool, from: Timestamp, to: Timestamp) -> Vec<Stretch> {
    let mut claims: Vec<(Timestamp, Timestamp)> = stretches
        .iter()
        .filter(|stretch| stretch.kind == What::Complete)
        .map(|claim| (claim.from, claim.to))
        .collect();
    claims.sort_unstable();
    claims.push((to, to));
    let is_any = claims.len() > 1;
    let (mut at, mut gaps) = (from, Vec::new());
    for (begins, ends) in claims {
        if begins > at {
            let is_last = begins == to;
            let why = match (configured, is_last && is_any) {
                (false, _) => "nothing is compared with Close's log: there are no credentials",
                (true, true) => "not compared with Close's log yet",
                (true, false) => "nothing is claimed: it was not compared while Close kept it",
            };
            gaps.push(Stretch {
                is_open: is_last,
                ..Stretch::new(What::Unclaimed, at, begins, why.to_owned())
            });
        }
        at = at.max(ends);
    }
    gaps
}

/// What damage took, at the time when its neighbours came; where they are gone as well, when it was found.
async fn lost(on: &Facade, gap: &Gap) -> Result<Stretch, Refusal> {
    let before = match on.log.last_before(gap.from) {
        Some(seq) => on.log.get(seq).await.map_err(text)?,
        None => None,
    };
    let one = Take {
        events: 1,
        bytes: 1,
        narrow: None,
    };
    let behind = on.log.read(gap.to.next(), one).await.map_err(text)?.events.pop();
    let time = |event: &std::sync::Arc<crate::event::Event>| event.received_at;
    let times = (before.as_ref().map(time), behind.as_ref().map(time));
    // Where nothing else is there, all that is known is when it was found.
    let from = times.0.or(times.1).unwrap_or(gap.found_at);
    Ok(Stretch {
        first: Some(gap.from),
        last: Some(gap.to),
        events: gap.certain_to.is_none().then(|| gap.certain()),
        ..Stretch::new(What::Lost, from, times.1.unwrap_or(from).max(from), gap.reason.clone())
    })
}

impl Stretch {
    fn new(kind: What, from: Timestamp, to: Timestamp, text: String) -> Stretch {
        Stretch {
            kind,
            from,
            to,
            is_open: false,
            first: None,
            last: None,
            events: None,
            text,
            ran: None,
        }
    }

    /// The part of it that is between two times, if any is.
    fn within(mut self, from: Timestamp, to: Timestamp) -> Option<Stretch> {
        if self.to < from || self.from > to {
            return None;
        }
        self.from = self.from.max(from);
        self.to = self.to.min(to).max(self.from);
        Some(self)
    }

    /// What is left of it where the log has nothing from before this any more: what was claimed of that is claimed no longer.
    fn left_from(self, kept: Timestamp) -> Vec<Stretch> {
        if self.kind != What::Complete || self.from >= kept {
            return vec![self];
        }
        let gone = Stretch {
            kind: What::Unclaimed,
            to: self.to.min(kept),
            is_open: false,
            text: "it was complete, and has left the log since".to_owned(),
            ..self.clone()
        };
        let left = (self.to > kept).then_some(Stretch { from: kept, ..self });
        std::iter::once(gone).chain(left).collect()
    }

    /// Looks up which events were received in it.
    async fn find(&mut self, on: &Facade) -> Result<(), Refusal> {
        let (from, to) = match (self.kind, self.ran) {
            (_, Some(ran)) => ran,
            // An older closehook has kept what it was for, and not when.
            (What::Backfill, None) => return Ok(()),
            _ => (self.from, self.to),
        };
        let first = on.log.seq_at(from).await.map_err(text)?;
        let last = on.log.seq_at(to).await.map_err(text)?.prev();
        if first <= last {
            (self.first, self.last) = (Some(first), Some(last));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::Complete;
    use crate::log::Stats;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    fn past(kind: PastKind, from: i64, to: Option<i64>) -> Past {
        Past {
            kind,
            from: at(from),
            to: to.map(at),
            of: "it".into(),
            events: None,
            ran: None,
        }
    }

    fn lines(known: &Chronicle, configured: bool) -> Vec<(What, i64, i64, bool)> {
        let mut drawn = drawn(known, configured, at(70), at(100));
        drawn.sort_by_key(|stretch| (stretch.from, stretch.kind));
        let day = |time: Timestamp| time.as_second() / 86_400;
        let line = |one: &Stretch| (one.kind, day(one.from), day(one.to), one.is_open);
        drawn.iter().map(line).collect()
    }

    #[test]
    fn what_no_claim_is_for_is_said() {
        let nothing = Chronicle {
            claim: None,
            past: Vec::new(),
            job: None,
            held: None,
        };
        for configured in [false, true] {
            assert_eq!(lines(&nothing, configured), [(What::Unclaimed, 70, 100, true)]);
        }
        let known = Chronicle {
            claim: Some(Complete {
                from: at(90),
                upto: at(99),
                scope: "all".into(),
                scope_id: "1".into(),
            }),
            past: vec![
                past(PastKind::Claim, 60, Some(75)),
                past(PastKind::Claim, 74, Some(80)),
                past(PastKind::Pause, 82, Some(84)),
                past(PastKind::Pause, 98, None),
                past(PastKind::Backfill, 50, Some(69)),
            ],
            ..nothing
        };
        assert_eq!(
            lines(&known, true),
            [
                (What::Complete, 70, 75, false),
                (What::Complete, 74, 80, false),
                (What::Unclaimed, 80, 90, false),
                (What::Paused, 82, 84, false),
                (What::Complete, 90, 99, true),
                (What::Paused, 98, 100, true),
                (What::Unclaimed, 99, 100, true),
            ]
        );
    }

    #[test]
    fn what_has_left_the_log_is_not_complete() {
        let kept = |from: i64, to: i64| {
            let claim = Stretch::new(What::Complete, at(from), at(to), String::new());
            let left = claim.left_from(at(80)).into_iter();
            left.map(|one| (one.kind, one.from, one.to)).collect::<Vec<_>>()
        };
        assert_eq!(kept(80, 90), [(What::Complete, at(80), at(90))]);
        assert_eq!(kept(60, 75), [(What::Unclaimed, at(60), at(75))]);
        assert_eq!(
            kept(70, 90),
            [(What::Unclaimed, at(70), at(80)), (What::Complete, at(80), at(90))]
        );
        let pause = Stretch::new(What::Paused, at(60), at(90), String::new());
        assert_eq!(pause.clone().left_from(at(80)), [pause]);
    }

    #[test]
    fn a_log_that_has_dropped_nothing_keeps_all_it_ever_had() {
        let stats = |first: u64| Stats {
            first: Seq(first),
            last: Seq(9),
            events: 10 - first,
            received_bytes: 1,
            disk_bytes: 1,
            segments: 1,
            unsealed: 1,
            oldest_at: Some(at(80)),
            gaps: Vec::new(),
            keys_doubted: None,
        };
        assert_eq!((kept_from(&stats(1)), kept_from(&stats(2))), (None, Some(at(80))));
    }
}
