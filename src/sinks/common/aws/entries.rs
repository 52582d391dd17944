//! Requests that carry several events and answer for each.
//!
//! A request that is refused for what is in it is halved until the event that it is about is alone: that one is refused, nothing was
//! taken, and so nothing is repeated. Where the service takes nothing although a part of the batch is there already, the rest is tried
//! again by itself.

use async_trait::async_trait;

use super::{Failed, Refusal};
use crate::event::Delivery;
use crate::sinks::{Limits, Outcome, Reason, Unavailable};

/// A service that takes entries.
#[async_trait]
pub(in crate::sinks) trait Service: Sync {
    /// An event as the service takes it.
    type Entry: Send + Sync;

    /// Makes it; an event of which none can be made is refused.
    fn entry(&self, delivery: &Delivery) -> Result<Self::Entry, Outcome>;

    /// What it counts in a request.
    fn len(entry: &Self::Entry) -> usize;

    /// Sends a request; an outcome for each entry, in order.
    async fn send(&self, entries: &[Self::Entry]) -> Result<Vec<Outcome>, Failed>;
}

/// Delivers a batch in as few requests as the service takes it.
pub(in crate::sinks) async fn deliver<S: Service>(
    service: &S,
    limits: Limits,
    deliveries: &[Delivery],
) -> Result<Vec<Outcome>, Unavailable> {
    let mut outcomes = Vec::with_capacity(deliveries.len());
    let (mut entries, mut places) = (Vec::new(), Vec::new());
    for (index, delivery) in deliveries.iter().enumerate() {
        match service.entry(delivery) {
            Ok(entry) => {
                entries.push(entry);
                places.push(index);
                outcomes.push(None);
            }
            Err(outcome) => outcomes.push(Some(outcome)),
        }
    }
    // The next one last.
    let mut ranges = requests::<S>(&entries, limits);
    ranges.reverse();
    let mut any = false;
    while let Some(range) = ranges.pop() {
        match service.send(&entries[range.clone()]).await {
            Ok(sent) => {
                any = true;
                for (place, outcome) in places[range].iter().zip(sent) {
                    outcomes[*place] = Some(outcome);
                }
            }
            Err(Failed::Content(refusal)) if range.len() == 1 => {
                any = true;
                outcomes[places[range.start]] = Some(refusal.reject());
            }
            Err(Failed::Content(_)) => {
                let middle = range.start + range.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
            Err(Failed::Sink(unavailable)) if !any => return Err(unavailable),
            Err(Failed::Sink(unavailable)) => {
                let late = Outcome::Retry {
                    reason: Reason::from(unavailable.reason),
                    after: unavailable.after,
                };
                return Ok(outcomes
                    .into_iter()
                    .map(|outcome| outcome.unwrap_or_else(|| late.clone()))
                    .collect());
            }
        }
    }
    let missing = || Outcome::Retry {
        reason: "the service gave no answer for the event".into(),
        after: None,
    };
    all_or_some(
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(missing))
            .collect(),
    )
}

/// Which entries go into which request.
fn requests<S: Service>(entries: &[S::Entry], limits: Limits) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let len = S::len(entry);
        if index > start && (index - start >= limits.events || bytes + len > limits.bytes) {
            ranges.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += len;
    }
    if start < entries.len() {
        ranges.push(start..entries.len());
    }
    ranges
}

/// A service that takes none of several now is the sink's trouble.
fn all_or_some(outcomes: Vec<Outcome>) -> Result<Vec<Outcome>, Unavailable> {
    let is_late = |outcome: &Outcome| matches!(outcome, Outcome::Retry { .. });
    match outcomes.first() {
        Some(Outcome::Retry { reason, after }) if outcomes.iter().all(is_late) => Err(Unavailable {
            reason: reason.text.clone(),
            after: *after,
        }),
        _ => Ok(outcomes),
    }
}

/// What one entry's error means.
pub(in crate::sinks) fn refused(refusal: Refusal, is_its_fault: bool) -> Outcome {
    if is_its_fault {
        refusal.reject()
    } else {
        refusal.retry()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::super::line::tests::delivery;
    use super::*;

    /// Takes numbers; knows which are bad, and how many requests it answers before it is gone.
    struct Numbers {
        bad: Vec<u64>,
        left: Mutex<usize>,
        got: Mutex<Vec<u64>>,
    }

    #[async_trait]
    impl Service for Numbers {
        type Entry = u64;

        fn entry(&self, delivery: &Delivery) -> Result<u64, Outcome> {
            match delivery.event.seq.0 {
                0 => Err(Outcome::Reject { reason: "none".into() }),
                seq => Ok(seq),
            }
        }

        fn len(_: &u64) -> usize {
            10
        }

        async fn send(&self, entries: &[u64]) -> Result<Vec<Outcome>, Failed> {
            let mut left = self.left.lock().unwrap();
            if *left == 0 {
                return Err(Failed::Sink(Unavailable::new("gone")));
            }
            *left -= 1;
            if entries.iter().any(|entry| self.bad.contains(entry)) {
                return Err(Failed::Content(Refusal {
                    code: "Bad".into(),
                    answer: None,
                }));
            }
            self.got.lock().unwrap().extend(entries);
            Ok(vec![Outcome::Delivered; entries.len()])
        }
    }

    async fn deliver_to(service: &Numbers, seqs: &[u64], bytes: usize) -> Result<Vec<Outcome>, Unavailable> {
        let deliveries: Vec<Delivery> = seqs.iter().map(|seq| delivery(*seq, "{}")).collect();
        let limits = Limits {
            events: 10,
            bytes,
            wait: Duration::ZERO,
        };
        deliver(service, limits, &deliveries).await
    }

    fn service(bad: &[u64], left: usize) -> Numbers {
        Numbers {
            bad: bad.to_vec(),
            left: Mutex::new(left),
            got: Mutex::default(),
        }
    }

    #[tokio::test]
    async fn one_bad_event_is_refused_alone_and_nothing_is_sent_twice() {
        let service = service(&[4, 9], 99);
        let outcomes = deliver_to(&service, &[1, 2, 3, 4, 0, 5, 6, 7, 8, 9], 1000)
            .await
            .unwrap();
        let refused: Vec<usize> = (0..10).filter(|index| outcomes[*index] != Outcome::Delivered).collect();
        assert_eq!(refused, [3, 4, 9]);
        assert_eq!(*service.got.lock().unwrap(), [1, 2, 3, 5, 6, 7, 8]);
    }

    #[tokio::test]
    async fn what_is_too_much_for_one_request_goes_in_several_in_order() {
        let service = service(&[], 99);
        deliver_to(&service, &[1, 2, 3, 4, 5], 20).await.unwrap();
        assert_eq!(*service.left.lock().unwrap(), 96);
        assert_eq!(*service.got.lock().unwrap(), [1, 2, 3, 4, 5]);
        // One that is too large by itself is the service's to refuse.
        deliver_to(&service, &[6], 5).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_there_when_the_service_goes_is_not_sent_again() {
        assert!(deliver_to(&service(&[], 0), &[1, 2], 1000).await.is_err());
        let service = service(&[], 1);
        let outcomes = deliver_to(&service, &[1, 2, 3], 20).await.unwrap();
        assert_eq!(outcomes[..2], [Outcome::Delivered, Outcome::Delivered]);
        assert!(matches!(outcomes[2], Outcome::Retry { .. }));
    }
}
