//! Looking after it: are the subscriptions there and active (`health`), and does the log have what Close's log has?
//!
//! Two loops run beside the daemon and never in its way. One looks at the subscriptions and compares the logs; the other
//! carries out the backfill a person has asked for. Whatever fails at Close is said once, and tried again later.
//!
//! The completeness mark moves only over what was fetched and stored, and stays `overlap` behind Close's clock, because events
//! can become visible out of order. It is where the next comparison begins, so a stop at any point costs nothing. What is
//! younger than that is fetched too after a start, a pause or a deletion; otherwise it is left to come as a delivery, signed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_retry::strategy::jitter;
use tokio_util::sync::CancellationToken;

use super::account::{Account, Condition, Policy, Silence};
use super::backfill::{self, AHEAD, Counts, KEPT, Wanted};
use super::client::Client;
use super::error::Error;
use super::store::{Complete, Rotation};
use super::walk::{Walk, Window};
use crate::event::{Event, Seq, Source};
use crate::log::{Gap, Take};

/// After a failure it is tried again within this, or at the next regular time if that is sooner.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Deliveries from whose rhythm the usual pause is taken.
const RHYTHM_EVENTS: u64 = 1024;

/// Close retries a delivery for 72 hours, so an event that damage took may be so much older than its neighbours.
const DELIVERY_AGE_MAX: SignedDuration = SignedDuration::from_hours(73);

/// Comparisons out of turn, at the most.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Looks after Close's side until `stop`.
pub async fn supervise(account: Arc<Account>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = account.configured() => {}
    }
    tokio::join!(look_after(&account, &stop), run_jobs(&account, &stop));
}

async fn look_after(account: &Account, stop: &CancellationToken) {
    let mut check_at = Instant::now();
    let mut reconcile_at = Instant::now();
    let mut looked_at: Option<Instant> = None;
    // After a start there may be a gap right up to now; while all is well, what is young comes by itself.
    let mut up_to_now = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(check_at.min(reconcile_at)) => {}
            () = account.reconcile_now.notified() => {
                // Whatever asks for it again and again does not get it more often than this.
                reconcile_at = looked_at.map_or_else(Instant::now, |before| before + ASKED_EVERY);
                up_to_now = true;
                continue;
            }
        }
        let policy = account.policy();
        let now = Instant::now();
        looked_at = Some(now);
        let work = async {
            // Always first: it tells the time at Close, by which the comparison goes.
            let checked = account.check().await;
            // Whoever may not see or change subscriptions may still read the event log.
            let is_there = checked.as_ref().err().is_none_or(|error| !error.is_transient());
            let compared = if reconcile_at <= now && is_there {
                account.reconcile(up_to_now).await.map(|()| true)
            } else {
                Ok(false)
            };
            (checked, compared)
        };
        let (checked, compared) = tokio::select! {
            () = stop.cancelled() => return,
            result = work => result,
        };
        let now = Instant::now();
        let has_compared = compared == Ok(true);
        let is_well = account.note(checked.and(compared.map(drop)));
        check_at = now
            + if is_well {
                policy.health_every
            } else {
                policy.health_every.min(jitter(RETRY_AFTER).max(RETRY_AFTER / 4))
            };
        if has_compared {
            reconcile_at = now + policy.reconcile_every;
            up_to_now = false;
        } else if !is_well {
            reconcile_at = reconcile_at.max(check_at);
        }
    }
}

async fn run_jobs(account: &Account, stop: &CancellationToken) {
    account.is_supervised.store(true, Ordering::Relaxed);
    loop {
        let changed = account.job_changed.notified();
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = account.run_job() => result,
        };
        let again = match result {
            Ok(()) | Err(Error::Interrupted) => None,
            Err(error) => {
                account.note_job(&error).await;
                Some(jitter(RETRY_AFTER).max(RETRY_AFTER / 4))
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = async { tokio::time::sleep(again.unwrap_or_default()).await }, if again.is_some() => {}
        }
    }
}

impl Account {
    /// Says how it went where that is news. Whether it went well.
    fn note(&self, result: Result<(), Error>) -> bool {
        let trouble = result.err();
        let before = std::mem::replace(&mut self.seen().trouble, trouble.clone());
        match (&before, &trouble) {
            (before, Some(trouble)) if before.as_ref().is_none_or(|before| !before.is_like(trouble)) => {
                tracing::warn!("{trouble}; receiving and delivering go on, and it is tried again later");
            }
            (Some(_), None) => tracing::info!("Close's side is in order again"),
            _ => {}
        }
        trouble.is_none()
    }

    async fn note_job(&self, error: &Error) {
        let trouble = error.to_string();
        let before = self.job().and_then(|job| job.trouble);
        if before.as_ref() != Some(&trouble) {
            tracing::warn!("the backfill can't go on: {trouble}; it is tried again later");
        }
        let noted = self
            .store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.trouble = Some(trouble);
                }
            })
            .await;
        if let Err(error) = noted {
            tracing::debug!(%error, "the backfill's trouble can't be noted");
        }
    }

    /// Whether the new subscription of a rotation has delivered an event, be it one that the old one had delivered before.
    pub(super) async fn has_delivered(&self, rotation: &Rotation) -> Result<bool, Error> {
        if self.heard().has(&rotation.new) {
            return Ok(true);
        }
        let mut next = self.seen().searched_to.max(rotation.from);
        let is_from_new = |event: &Arc<Event>| {
            event
                .view()
                .is_some_and(|view| view.subscription_id.as_ref() == Some(&rotation.new))
        };
        let take = Take {
            events: 512,
            bytes: 4 << 20,
            narrow: None,
        };
        let delivered = loop {
            let batch = self.log.read(next, take).await?;
            if batch.events.iter().any(is_from_new) {
                break true;
            }
            if batch.next == next {
                break false;
            }
            next = batch.next;
        };
        self.seen().searched_to = next;
        Ok(delivered)
    }

    /// Compares the log with Close's from the mark on, stores what is missing, and moves the mark. `up_to_now`: also what is so
    /// young that it may still be delivered; that would rather come signed, but where there was a gap nobody should wait for it.
    pub(super) async fn reconcile(&self, up_to_now: bool) -> Result<(), Error> {
        let client = self.client()?;
        let policy = self.policy();
        let now = client.now();
        let gaps = self.log.stats().gaps;
        let start = self.start_of_comparison(&policy, &client, &gaps).await?;
        let wanted = Wanted::all(policy.scope.clone());
        let settled = now.saturating_sub(policy.overlap).unwrap_or(now);
        let range = Window {
            from: start.upto,
            to: if up_to_now {
                now.saturating_add(AHEAD).unwrap_or(now)
            } else {
                settled.max(start.upto)
            },
        };
        let mut counts = Counts::default();
        let mut newest_missed: Option<Timestamp> = None;
        let mut walk = Walk::new(&*client, wanted.queries(), range);
        while let Some(batch) = walk.next().await? {
            let added = backfill::store(&*self.log, &wanted, batch.events, client.now(), settled).await?;
            self.count_parts(added.parts).await?;
            counts.add(added.counts);
            newest_missed = newest_missed.max(added.newest_missed);
            let complete = Complete {
                upto: batch.done_to.min(settled).max(start.upto),
                ..start.clone()
            };
            self.store
                .change_marks(move |marks| marks.complete = Some(complete))
                .await?;
        }
        let damage_seen = gaps.iter().map(|gap| gap.found_at).max();
        self.store
            .change_marks(move |marks| marks.damage_seen = damage_seen.max(marks.damage_seen))
            .await?;
        if counts.stored + counts.partial > 0 {
            tracing::info!(
                events = counts.stored,
                without_data = counts.partial,
                "stored events that Close had and the log lacked"
            );
        }
        if counts.partial > 0 {
            tracing::warn!(
                events = counts.partial,
                "Close withholds the data of events older than an hour from this key: use an administrator's"
            );
        }
        // From here on by our own clock, as deliveries are.
        let newest_missed = newest_missed.and_then(|at| at.checked_sub(client.clock_offset()).ok());
        self.judge_silence(&policy, newest_missed).await?;
        self.seen().reconciled_at = Some(Timestamp::now());
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
        let start = begin(marks.complete.as_ref(), policy, now, damage);
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

    async fn judge_silence(&self, policy: &Policy, newest_missed: Option<Timestamp>) -> Result<(), Error> {
        let head = *self.log.head().borrow();
        let from = Seq(head.0.saturating_sub(RHYTHM_EVENTS)).next().max(self.log.first());
        let take = Take {
            events: RHYTHM_EVENTS as usize,
            bytes: 16 << 20,
            narrow: None,
        };
        let events = self.log.read(from, take).await?.events;
        let deliveries: Vec<Timestamp> = events
            .iter()
            .filter(|event| event.source == Source::Webhook)
            .map(|event| event.received_at)
            .collect();
        let is_subscribed = self.seen().found.iter().any(|found| found.state == Condition::Active);
        let before = self.seen().silence;
        let facts = SilenceFacts {
            now: Timestamp::now(),
            started_at: self.started_at,
            deliveries: &deliveries,
            newest_missed,
            grace: policy.overlap,
        };
        let silence = is_subscribed.then(|| silence(&facts, before)).flatten();
        match (before, silence) {
            (None, Some(silence)) => tracing::warn!(
                last_delivery = silence.last_delivery.map(tracing::field::display),
                newest_event = %silence.newest_event,
                "Close delivers nothing although its event log has newer events: they are fetched; check that Close can reach {}",
                policy.url.as_deref().unwrap_or("the public URL")
            ),
            (Some(_), None) => tracing::info!("Close delivers again"),
            _ => {}
        }
        self.seen().silence = silence;
        Ok(())
    }
}

/// Where a comparison begins (`upto`) and since when its claim holds (`from`). `damage`: when the last event before the
/// oldest damage not refilled yet was received.
fn begin(complete: Option<&Complete>, policy: &Policy, now: Timestamp, damage: Option<Timestamp>) -> Complete {
    let before = |at: Timestamp, span: SignedDuration| at.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let oldest = before(now, KEPT);
    let scope_id = policy.scope.id();
    // A log that was never compared claims nothing about earlier times: a backfill can extend that.
    let first = before(now, policy.overlap);
    // A mark from the future is one that a clock set wrongly has left: how far things were compared nobody knows, so that all
    // since its beginning is compared again.
    let (mut from, mut upto) = match complete {
        None => (first, first),
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

/// What is needed to judge whether Close is too quiet.
#[derive(Debug)]
struct SilenceFacts<'f> {
    now: Timestamp,
    /// While nobody listened nothing could come.
    started_at: Timestamp,
    /// When the latest deliveries came, in order.
    deliveries: &'f [Timestamp],
    /// `date_updated` of the newest event that had to be fetched although it should have been delivered by now.
    newest_missed: Option<Timestamp>,
    /// No pause up to this is unusual.
    grace: SignedDuration,
}

/// Whether Close is silent: nothing came for longer than it ever did lately, and there was something to come. It ends with
/// the next delivery.
fn silence(facts: &SilenceFacts<'_>, before: Option<Silence>) -> Option<Silence> {
    let last_delivery = facts.deliveries.last().copied();
    if let Some(before) = before
        && last_delivery > before.last_delivery
    {
        return None;
    }
    let usual = facts
        .deliveries
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]))
        .max()
        .unwrap_or_default()
        .max(facts.grace);
    let listened_from = last_delivery.unwrap_or(Timestamp::MIN).max(facts.started_at);
    let missed = facts.newest_missed.filter(|missed| *missed > listened_from);
    match (before, missed) {
        (Some(before), missed) => Some(Silence {
            newest_event: missed.unwrap_or(before.newest_event),
            ..before
        }),
        (None, Some(newest_event)) if facts.now.duration_since(listened_from) > usual => Some(Silence {
            last_delivery,
            newest_event,
        }),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::plan::Scope;
    use crate::config::RuleConfig;
    use crate::rules::RuleSet;

    fn policy(patterns: &[&str]) -> Policy {
        let rule = RuleConfig {
            name: "r".into(),
            events: patterns.iter().map(ToString::to_string).collect(),
            filter: None,
            sinks: Vec::new(),
        };
        Policy {
            scope: Scope::of(&RuleSet::compile(&[rule], &[]).unwrap(), true),
            url: Some("https://here/".into()),
            configured: Vec::new(),
            auto_resume: true,
            health_every: Duration::from_secs(300),
            reconcile_every: Duration::from_secs(900),
            overlap: SignedDuration::from_mins(10),
        }
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
            let start = begin(complete, &policy, now, damage.map(at));
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
    fn a_wider_scope_claims_nothing_about_the_past() {
        let narrow = policy(&["lead.created"]);
        let before = complete(&narrow, "2024-03-20T00:00:00Z", "2024-03-31T11:35:00Z");
        let start = begin(Some(&before), &policy(&["lead.*"]), at("2024-03-31T12:00:00Z"), None);
        assert_eq!((start.from, start.upto), (before.upto, before.upto));
        assert_eq!(start.scope, "lead.*");
    }

    #[test]
    fn silence_is_a_long_pause_with_something_to_say() {
        let deliveries = [
            at("2024-03-31T08:00:00Z"),
            at("2024-03-31T09:00:00Z"),
            at("2024-03-31T09:10:00Z"),
        ];
        let judge = |now: &str, started_at: &str, missed: Option<&str>, before| {
            let facts = SilenceFacts {
                now: at(now),
                started_at: at(started_at),
                deliveries: &deliveries,
                newest_missed: missed.map(at),
                grace: SignedDuration::from_mins(10),
            };
            silence(&facts, before)
        };
        let old = "2024-03-01T00:00:00Z";
        let newest = "2024-03-31T10:00:00Z";
        let missed = Some(newest);
        assert_eq!(
            judge("2024-03-31T10:05:00Z", old, missed, None),
            None,
            "an hour's pause is usual"
        );
        assert_eq!(
            judge("2024-03-31T12:00:00Z", old, None, None),
            None,
            "there was nothing to deliver"
        );
        assert_eq!(
            judge("2024-03-31T12:00:00Z", old, Some("2024-03-31T09:05:00Z"), None),
            None,
            "only something older"
        );
        assert_eq!(
            judge("2024-03-31T12:00:00Z", "2024-03-31T11:55:00Z", missed, None),
            None,
            "nobody listened"
        );
        let silent = judge("2024-03-31T12:00:00Z", old, missed, None);
        assert_eq!(
            silent,
            Some(Silence {
                last_delivery: Some(deliveries[2]),
                newest_event: at(newest)
            })
        );
        assert_eq!(judge("2024-03-31T12:15:00Z", old, None, silent), silent, "it lasts");
        let before_that = Silence {
            last_delivery: Some(deliveries[1]),
            newest_event: deliveries[1],
        };
        assert_eq!(
            judge("2024-03-31T12:15:00Z", old, None, Some(before_that)),
            None,
            "a delivery ends it"
        );
    }
}
