//! Whether Close is too quiet: it delivers nothing although there is something.

use jiff::{SignedDuration, Timestamp};

use crate::close::account::{Account, Policy};
use crate::close::api::error::Error;
use crate::close::seen::{Condition, DeliverySilence};
use crate::event::Seq;
use crate::log::Take;

/// Deliveries from whose rhythm the usual pause is taken.
const RHYTHM_EVENTS: u64 = 1024;

impl Account {
    pub(in crate::close) async fn judge_silence(
        &self,
        policy: &Policy,
        newest_missed: Option<Timestamp>,
    ) -> Result<(), Error> {
        let head = *self.log.head().borrow();
        let from = Seq(head.0.saturating_sub(RHYTHM_EVENTS)).next().max(self.log.first());
        let take = Take {
            events: RHYTHM_EVENTS as usize,
            bytes: 16 << 20,
            narrow: None,
        };
        let events = self.log.read(from, take).await?.events;
        let mut deliveries: Vec<Timestamp> = events.iter().filter_map(|event| event.delivered_at()).collect();
        // An import that is dispatched keeps its times of receipt.
        deliveries.sort_unstable();
        let is_subscribed = self.seen().found.iter().any(|found| found.state == Condition::Active);
        let before = self.seen().silence;
        let facts = SilenceFacts {
            now: self.now(),
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
fn silence(facts: &SilenceFacts<'_>, before: Option<DeliverySilence>) -> Option<DeliverySilence> {
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
        (Some(before), missed) => Some(DeliverySilence {
            newest_event: missed.unwrap_or(before.newest_event),
            ..before
        }),
        (None, Some(newest_event)) if facts.now.duration_since(listened_from) > usual => Some(DeliverySilence {
            last_delivery,
            newest_event,
        }),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
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
            Some(DeliverySilence {
                last_delivery: Some(deliveries[2]),
                newest_event: at(newest)
            })
        );
        assert_eq!(judge("2024-03-31T12:15:00Z", old, None, silent), silent, "it lasts");
        let before_that = DeliverySilence {
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
