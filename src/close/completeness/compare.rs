//! Does the log have what Close's log has? What it lacks is fetched, and the claim moves on.
//!
//! The completeness mark moves only over what was fetched and stored, and stays `overlap` behind Close's clock, because events
//! can become visible out of order. It is where the next comparison begins, so a stop at any point costs nothing. What is
//! younger than that is fetched too after a start, a pause or a deletion; otherwise it is left to come as a delivery, signed.

use super::backfill::{Intake, Wanted};
use super::marks::{AHEAD, Complete, Counts, Covered, FetchedAt, KEPT};
use super::walk::{Walk, Window};
use crate::close::account::{Account, Policy};
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::log::Gap;
use jiff::{SignedDuration, Timestamp};

/// Close retries a delivery for 72 hours, so an event that damage took may be so much older than its neighbours.
const DELIVERY_AGE_MAX: SignedDuration = SignedDuration::from_hours(73);

impl Account {
    /// Compares the log with Close's from the mark on, stores what is missing, and moves the mark. `up_to_now`: also what is so
    /// young that it may still be delivered; that would rather come signed, but where there was a gap nobody should wait for it.
    pub(in crate::close) async fn reconcile(&self, up_to_now: bool) -> Result<(), Error> {
        // Else all that Close still has would be fetched each time, and nothing come of it.
        self.store.check_marks()?;
        let client = self.client_on_time().await?;
        let policy = self.policy();
        let begun = client.now();
        let gaps = self.log.stats().gaps;
        let mut claim = self.start_of_comparison(&policy, &client, &gaps).await?;
        let wanted = Wanted::all(policy.scope.clone());
        let settled = FetchedAt::new(begun, begun, policy.overlap).settled;
        let range = Window {
            from: claim.upto,
            to: if up_to_now {
                begun.saturating_add(AHEAD).unwrap_or(begun)
            } else {
                settled.max(claim.upto)
            },
        };
        let mut counts = Counts::default();
        let mut newest_missed: Option<Timestamp> = None;
        let completes = self.store.marks().withheld.is_some();
        let mut intake = Intake::new(&*self.log, &*client, &wanted, completes);
        let mut walk = Walk::new(&*client, wanted.queries(), range);
        let mut reached = range.from;
        while let Some(batch) = walk.next().await? {
            let added = self.take_in(&mut intake, batch.events, settled).await?;
            counts.add(added.counts);
            newest_missed = newest_missed.max(added.newest_missed);
            let at = FetchedAt::new(begun, client.now(), policy.overlap);
            claim.fetched(reached, batch.done_to, &at);
            reached = batch.done_to;
            let complete = claim.clone();
            self.store
                .change_marks(move |marks| marks.complete = Some(complete))
                .await?;
            self.seen().got_on();
        }
        let damage_seen = gaps.iter().map(|gap| gap.found_at).max();
        self.store
            .change_marks(move |marks| {
                marks.damage_seen = damage_seen.max(marks.damage_seen);
                // Where there was nothing to fetch, other rules are claimed all the same.
                let is_other = |complete: &Complete| complete.scope_id != claim.scope_id;
                if marks.complete.as_ref().is_none_or(is_other) {
                    marks.complete = Some(claim);
                }
                marks.join_job();
            })
            .await?;
        self.tell_counts(counts).await?;
        // From here on by our own clock, as deliveries are.
        let newest_missed = newest_missed.and_then(|at| at.checked_sub(client.clock_offset()).ok());
        self.judge_silence(&policy, newest_missed).await?;
        self.seen().reconciled_at = Some(self.now());
        self.refill_withheld(&client).await
    }

    async fn tell_counts(&self, counts: Counts) -> Result<(), Error> {
        if counts.stored + counts.partial > 0 {
            tracing::info!(
                events = counts.stored,
                without_data = counts.partial,
                "stored events that Close had and the log lacked"
            );
        }
        self.count_withheld().await?;
        if counts.partial > 0 {
            tracing::warn!(
                events = counts.partial,
                "Close withholds the data of events older than an hour from this key: use an administrator's"
            );
        }
        Ok(())
    }

    /// Where the comparison begins (`upto`), and since when its claim holds (`from`).
    async fn start_of_comparison(&self, policy: &Policy, client: &Client, gaps: &[Gap]) -> Result<Complete, Error> {
        let now = client.now();
        let marks = self.store.marks();
        let unseen = gaps
            .iter()
            .filter(|gap| marks.damage_seen.is_none_or(|seen| gap.found_at > seen));
        let mut damage: Option<Timestamp> = None;
        for gap in unseen {
            // Where nothing is left in front of it, or that can't be read, all that Close still has is compared.
            let before = self.log.get(gap.from.prev()).await.ok().flatten();
            let received_at = before.map_or(Timestamp::MIN, |event| event.received_at);
            damage = Some(damage.map_or(received_at, |earlier| earlier.min(received_at)));
        }
        // By Close's clock, as everything here.
        let damage = damage.map(|at| at.checked_add(client.clock_offset()).unwrap_or(at));
        let mut covered = marks.covered(&policy.scope.id());
        if damage.is_some() && covered.is_some() {
            // It vouches for what was in the log then.
            self.store
                .change_marks(|marks| {
                    if let Some(job) = &mut marks.job {
                        job.covered = None;
                    }
                })
                .await?;
            covered = None;
        }
        let start = begin(marks.complete.as_ref(), covered, policy, now, damage);
        if let Some(complete) = &marks.complete
            && complete.upto < start.from
        {
            tracing::error!(
                "what happened at Close from {} to {} can't be fetched any more: its event log goes back 30 days",
                complete.upto,
                start.from
            );
        }
        Ok(start)
    }
}

/// Where a comparison begins (`upto`) and since when its claim holds (`from`). `damage`: when the last event before the
/// oldest damage not refilled yet was received. `covered`: what a backfill of the same events can vouch for.
fn begin(
    complete: Option<&Complete>,
    covered: Option<Covered>,
    policy: &Policy,
    now: Timestamp,
    damage: Option<Timestamp>,
) -> Complete {
    let before = |at: Timestamp, span: SignedDuration| at.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let oldest = before(now, KEPT);
    let scope_id = policy.scope.id();
    // A log that was never compared claims nothing about earlier times: a backfill can extend that.
    let first = before(now, policy.overlap);
    // A mark from the future is one that a clock set wrongly has left: how far things were compared nobody knows, so that all
    // since its beginning is compared again.
    let (mut from, mut upto) = match complete {
        None => covered
            .filter(|covered| covered.to <= first)
            .map_or((first, first), |covered| (covered.from, covered.to)),
        Some(complete) if complete.upto <= now => (complete.from, complete.upto),
        Some(complete) => (complete.from.min(first), complete.from.min(first)),
    };
    if complete.is_some_and(|complete| complete.scope_id != scope_id) {
        // For what came into scope the claim begins only now.
        from = upto;
    }
    if let Some(damage) = damage {
        upto = upto.min(before(damage, DELIVERY_AGE_MAX)).max(from.min(upto));
    }
    if upto < oldest {
        upto = oldest;
        from = from.max(oldest);
    }
    Complete {
        from,
        upto,
        scope: policy.scope.describe(),
        scope_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::subscriptions::scope::Scope;
    use crate::config::RuleConfig;
    use crate::rules::RuleSet;

    fn policy(patterns: &[&str]) -> Policy {
        let rule = RuleConfig {
            program: None,
            name: "r".into(),
            events: patterns.iter().map(ToString::to_string).collect(),
            filter: None,
            sinks: Vec::new(),
        };
        Policy::for_tests(Scope::of(&RuleSet::compile(&[rule], &[]).unwrap(), true))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn complete(policy: &Policy, from: &str, upto: &str) -> Complete {
        Complete {
            from: at(from),
            upto: at(upto),
            scope: policy.scope.describe(),
            scope_id: policy.scope.id(),
        }
    }

    #[test]
    fn a_comparison_begins_where_the_last_one_was_sure() {
        let policy = policy(&["lead.*"]);
        let now = at("2024-03-31T12:00:00Z");
        let begun = |complete: Option<&Complete>, damage: Option<&str>| {
            let start = begin(complete, None, &policy, now, damage.map(at));
            (start.from.to_string(), start.upto.to_string())
        };
        let pair = |from: &str, upto: &str| (from.to_owned(), upto.to_owned());
        assert_eq!(
            begun(None, None),
            pair("2024-03-31T11:50:00Z", "2024-03-31T11:50:00Z"),
            "the first one claims nothing"
        );
        let usual = complete(&policy, "2024-03-20T00:00:00Z", "2024-03-31T11:35:00Z");
        assert_eq!(
            begun(Some(&usual), None),
            pair("2024-03-20T00:00:00Z", "2024-03-31T11:35:00Z")
        );
        let long_down = complete(&policy, "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z");
        assert_eq!(
            begun(Some(&long_down), None),
            pair("2024-03-01T12:00:00Z", "2024-03-01T12:00:00Z"),
            "30 days back"
        );
        let from_the_future = complete(&policy, "2024-03-20T00:00:00Z", "2025-01-01T00:00:00Z");
        assert_eq!(
            begun(Some(&from_the_future), None),
            pair("2024-03-20T00:00:00Z", "2024-03-20T00:00:00Z"),
            "a mark from the future is not believed"
        );
        let all_future = complete(&policy, "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z");
        assert_eq!(
            begun(Some(&all_future), None),
            pair("2024-03-31T11:50:00Z", "2024-03-31T11:50:00Z")
        );
        assert_eq!(
            begun(Some(&usual), Some("2024-03-30T01:00:00Z")),
            pair("2024-03-20T00:00:00Z", "2024-03-27T00:00:00Z"),
            "damage is gone back to, and what may have been retried into it"
        );
        assert_eq!(
            begun(Some(&usual), Some("2024-03-20T01:00:00Z")).1,
            "2024-03-20T00:00:00Z",
            "not behind the claim"
        );
    }

    #[test]
    fn the_first_comparison_goes_on_where_a_backfill_ended() {
        let policy = policy(&["lead.*"]);
        let now = at("2024-03-31T12:00:00Z");
        let begun = |from: &str, to: &str| {
            let covered = Covered {
                from: at(from),
                to: at(to),
            };
            let start = begin(None, Some(covered), &policy, now, None);
            (start.from.to_string(), start.upto.to_string())
        };
        let pair = |from: &str, upto: &str| (from.to_owned(), upto.to_owned());
        let (from, to) = ("2024-03-10T00:00:00Z", "2024-03-30T00:00:00Z");
        assert_eq!(begun(from, to), pair(from, to));
        let long_ago = begun("2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z");
        assert_eq!(long_ago, pair("2024-03-01T12:00:00Z", "2024-03-01T12:00:00Z"));
        let just_now = begun(from, "2024-03-31T11:55:00Z");
        assert_eq!(
            just_now,
            pair("2024-03-31T11:50:00Z", "2024-03-31T11:50:00Z"),
            "it is joined at the end"
        );
    }

    #[test]
    fn a_wider_scope_claims_nothing_about_the_past() {
        let narrow = policy(&["lead.created"]);
        let before = complete(&narrow, "2024-03-20T00:00:00Z", "2024-03-31T11:35:00Z");
        let start = begin(
            Some(&before),
            None,
            &policy(&["lead.*"]),
            at("2024-03-31T12:00:00Z"),
            None,
        );
        assert_eq!((start.from, start.upto), (before.upto, before.upto));
        assert_eq!(start.scope, "lead.*");
    }
}
