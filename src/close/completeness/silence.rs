//! Whether Close is too quiet: it delivers nothing although there is something.

use jiff::{SignedDuration, Timestamp};

use crate::close::account::{Account, Policy};
use crate::close::api::error::Error;
use crate::close::seen::{Condition, DeliverySilence};
use crate::event::Seq;
use crate::log::{Log, ReadError, Take};

/// Deliveries from whose rhythm the usual pause is taken.
const RHYTHM_EVENTS: u64 = 1024;

/// Events that are read together.
const STEP: Take<'static> = Take {
    events: 512,
    bytes: 4 << 20,
    narrow: None,
};

impl Account {
    pub(in crate::close) async fn judge_silence(
        &self,
        policy: &Policy,
        newest_missed: Option<Timestamp>,
    ) -> Result<(), Error> {
        let mut deliveries = latest_deliveries(&*self.log).await?;
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

/// When the newest events came that Close delivered, in the order of the log.
async fn latest_deliveries(log: &dyn Log) -> Result<Vec<Timestamp>, ReadError> {
    let head = *log.head().borrow();
    let mut from = Seq(head.0.saturating_sub(RHYTHM_EVENTS)).next().max(log.first());
    let mut deliveries = Vec::new();
    // One reading gives as much as the engine likes.
    while from <= head {
        let batch = log.read(from, STEP).await?;
        deliveries.extend(batch.events.iter().filter_map(|event| event.delivered_at()));
        if batch.next <= from {
            break;
        }
        from = batch.next;
    }
    Ok(deliveries)
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

    /// Their rhythm, and the last of them, whatever one reading gives.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_latest_deliveries_are_all_looked_at_however_large_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::config::Config::load(&crate::config::Layers::new(&[], crate::rules::faults)).unwrap();
        let options = crate::log::Options {
            dir: dir.path().to_owned(),
            ..crate::log::Options::from_config(&config)
        };
        let log = crate::log::LocalLog::open(options).unwrap();
        let since = at("2024-03-31T08:00:00Z");
        let came = |id: i64| since + SignedDuration::from_secs(id);
        let text = "x".repeat(20_000);
        let all = (1..=1_100).map(|id| {
            let body = format!(r#"{{"event":{{"id":"ev_{id}","note":"{text}"}}}}"#);
            crate::log::Incoming::new(body.into(), came(id), crate::event::Source::Webhook, None)
        });
        for appended in log.append_in_order(all.collect()).await {
            appended.unwrap();
        }
        let expected: Vec<Timestamp> = (77..=1_100).map(came).collect();
        assert_eq!(latest_deliveries(&log).await.unwrap(), expected);
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
