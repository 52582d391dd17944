//! Requests that carry several events and answer for each.
//!
//! A request that is refused for what is in it is halved until the event that it is about is alone: that one is refused, nothing was
//! taken, and so nothing is repeated. Where the service takes nothing although a part of the batch is there already, the rest is tried
//! again by itself. After so many refusals in a row the rest waits: it may not be about the events (decision 21).
//!
//! What has an order keeps it: of one group a request has one entry, and behind one that waits nothing of its group is sent.
//!
//! What was not sent was not tried, whatever it waits for: no attempt of it is counted.

#![cfg_attr(
    not(all(
        feature = "sink-eventbridge",
        feature = "sink-kinesis",
        feature = "sink-sns",
        feature = "sink-sqs"
    )),
    allow(
        dead_code,
        reason = "each of the services needs some of it, and a build may have one of them"
    )
)]

use std::collections::HashSet;
use std::ops::Range;

use async_trait::async_trait;
use serde_json::Value;

use super::super::sift::{Row, Sift};
use super::{Account, Answer, Failed};
use crate::event::Delivery;
use crate::sinks::{Batch, Context, Limits, Opened, Outcome, Sink, Unavailable};

/// A service that takes entries.
#[async_trait]
pub(in crate::sinks) trait Service: Sync {
    /// An event as the service takes it.
    type Entry: Send + Sync;

    /// Makes it; an event of which none can be made is refused.
    fn entry(&self, delivery: &Delivery) -> Result<Self::Entry, Outcome>;

    /// What it counts in a request.
    fn len(entry: &Self::Entry) -> usize;

    /// What it has to stay in order with; `None`: nothing.
    fn group(&self, _: &Self::Entry) -> Option<String> {
        None
    }

    /// Sends a request; an answer for each entry, in order.
    async fn send(&self, entries: &[Self::Entry]) -> Result<Vec<Answer>, Failed>;
}

/// A sink that delivers to such a service.
pub(in crate::sinks) struct Entries<S> {
    service: S,
    /// What goes into one request.
    limits: Limits,
    /// Nothing may go before what waits (`order = "strict"`).
    is_strict: bool,
}

/// Opens one.
pub(in crate::sinks) fn opened<S: Service + Send + 'static>(service: S, limits: Limits, context: &Context) -> Opened {
    let sink: Box<dyn Sink> = Box::new(Entries {
        service,
        limits,
        is_strict: context.is_strict,
    });
    sink.into()
}

#[async_trait]
impl<S: Service + Send + 'static> Sink for Entries<S> {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        deliver(&self.service, self.limits, self.is_strict, batch.deliveries()).await
    }
}

/// What a service says of one entry that it did not take.
pub(in crate::sinks) struct Complaint {
    pub code: String,
    pub message: String,
    /// The service says that it is what was sent.
    pub is_senders: bool,
}

/// Answers of a service that names its entries: by their numbers, as `Id`. It may leave some out.
pub(in crate::sinks) fn by_number(
    account: &Account,
    count: usize,
    taken: impl Iterator<Item = String>,
    failed: impl Iterator<Item = (String, Complaint)>,
) -> Vec<Answer> {
    let nothing = || account.of_entry("no-answer", "", false);
    let mut answers: Vec<Answer> = (0..count).map(|_| nothing()).collect();
    let place = |id: &str| id.parse::<usize>().ok().filter(|place| *place < count);
    for place in taken.filter_map(|id| place(&id)) {
        answers[place] = Answer::Taken;
    }
    for (id, complaint) in failed {
        if let Some(place) = place(&id) {
            answers[place] = account.of_entry(&complaint.code, &complaint.message, complaint.is_senders);
        }
    }
    answers
}

/// Answers of a service that has a list with one for each entry, in their order. `is_senders`: its complaints are about what was sent.
pub(in crate::sinks) fn in_order(
    account: &Account,
    count: usize,
    list: Option<&Value>,
    is_senders: bool,
) -> Result<Vec<Answer>, Failed> {
    let answers = list.and_then(Value::as_array).filter(|answers| answers.len() == count);
    let Some(answers) = answers else {
        return Err(Failed::Sink(Unavailable::new(
            "the service does not answer for each entry: is endpoint the right one?",
        )));
    };
    let of_entry = |answer: &Value| {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("ErrorCode") {
            "" => Answer::Taken,
            code => account.of_entry(code, text("ErrorMessage"), is_senders),
        }
    };
    Ok(answers.iter().map(of_entry).collect())
}

/// What became of a batch so far.
struct Fared {
    outcomes: Vec<Option<Outcome>>,
    /// Whether the service has any of it.
    any: bool,
    /// Whether all that it put off was put off by what it says of itself.
    only_gone: bool,
    /// How many it was asked for and did not take.
    put_off: usize,
    row: Row,
    /// Groups of which something waits.
    held: HashSet<String>,
}

impl Fared {
    fn note(&mut self, place: usize, group: Option<&String>, answer: Answer) {
        let outcome = match answer {
            Answer::Taken => {
                self.any = true;
                self.row.ended();
                Outcome::Delivered
            }
            Answer::Refused(refusal) if self.row.another() => refusal.reject(),
            Answer::Gone(refusal) => refusal.retry(),
            Answer::Refused(refusal) | Answer::Late(refusal) => {
                self.only_gone = false;
                refusal.retry()
            }
        };
        if matches!(outcome, Outcome::Retry { .. }) {
            self.put_off += 1;
            self.held.extend(group.cloned());
        }
        self.outcomes[place] = Some(outcome);
    }

    /// What is left is not sent.
    fn stopped(self, late: &Outcome) -> Vec<Outcome> {
        let outcomes = self.outcomes.into_iter();
        outcomes
            .map(|outcome| outcome.unwrap_or_else(|| late.clone()))
            .collect()
    }
}

fn untried(reason: &str) -> Outcome {
    Outcome::Untried { reason: reason.into() }
}

/// The entries of a batch, which of its events each is of, and what has become of the others already.
fn begun<S: Service>(service: &S, deliveries: &[Delivery]) -> (Vec<S::Entry>, Vec<usize>, Fared) {
    let mut fared = Fared {
        outcomes: Vec::with_capacity(deliveries.len()),
        any: false,
        only_gone: true,
        put_off: 0,
        row: Row::default(),
        held: HashSet::new(),
    };
    let (mut entries, mut places) = (Vec::new(), Vec::new());
    for (index, delivery) in deliveries.iter().enumerate() {
        match service.entry(delivery) {
            Ok(entry) => {
                entries.push(entry);
                places.push(index);
                fared.outcomes.push(None);
            }
            Err(outcome) => fared.outcomes.push(Some(outcome)),
        }
    }
    (entries, places, fared)
}

/// Delivers a batch in as few requests as the service takes it.
async fn deliver<S: Service>(
    service: &S,
    limits: Limits,
    is_strict: bool,
    deliveries: &[Delivery],
) -> Result<Vec<Outcome>, Unavailable> {
    let (entries, places, mut fared) = begun(service, deliveries);
    let group = |entry: &S::Entry| {
        if is_strict {
            Some(String::new())
        } else {
            service.group(entry)
        }
    };
    let groups: Vec<Option<String>> = entries.iter().map(group).collect();
    let mut sift = Sift::new(requests::<S>(&entries, &groups, limits));
    while let Some(range) = sift.next() {
        let held = |index: &usize| groups[*index].as_ref().is_some_and(|group| fared.held.contains(group));
        if let Some(index) = range.clone().find(held) {
            fared.outcomes[places[index]] = Some(untried("it waits behind another event of its group"));
            sift.without(&range, index);
            continue;
        }
        if fared.row.is_over() {
            return Ok(fared.stopped(&untried(
                "it was not sent: the service refuses one event after the other",
            )));
        }
        match service.send(&entries[range.clone()]).await {
            Ok(answers) => {
                for (index, answer) in range.zip(answers) {
                    fared.note(places[index], groups[index].as_ref(), answer);
                }
            }
            Err(Failed::Content(refusal)) => {
                if let Some(index) = sift.refused(&range) {
                    fared.note(places[index], groups[index].as_ref(), Answer::Refused(refusal));
                }
            }
            Err(Failed::Sink(unavailable)) if !fared.any => return Err(unavailable),
            Err(Failed::Sink(unavailable)) => {
                return Ok(fared.stopped(&Outcome::Waits(unavailable)));
            }
        }
    }
    let is_the_sinks = fared.put_off > 1 || fared.only_gone;
    // It was sent, so that is a try: one that always fares so must not go next for ever.
    let outcomes = fared.stopped(&Outcome::Retry {
        reason: "the service gave no answer for the event".into(),
        after: None,
    });
    all_or_some(outcomes, is_the_sinks)
}

/// Which entries go into which request.
fn requests<S: Service>(entries: &[S::Entry], groups: &[Option<String>], limits: Limits) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    let mut within: HashSet<&str> = HashSet::new();
    for (index, (entry, group)) in entries.iter().zip(groups).enumerate() {
        let len = S::len(entry);
        // One of a group that is put off must not be overtaken by the next.
        let is_known = group.as_deref().is_some_and(|group| within.contains(group));
        if index > start && (is_known || index - start >= limits.events || bytes + len > limits.bytes) {
            ranges.push(start..index);
            (start, bytes) = (index, 0);
            within.clear();
        }
        bytes += len;
        within.extend(group.as_deref());
    }
    if start < entries.len() {
        ranges.push(start..entries.len());
    }
    ranges
}

/// A service that takes none of several now is the sink's trouble. One alone may be what it stumbles over, unless it says that it is not.
fn all_or_some(outcomes: Vec<Outcome>, is_the_sinks: bool) -> Result<Vec<Outcome>, Unavailable> {
    let is_late = |outcome: &Outcome| matches!(outcome, Outcome::Retry { .. } | Outcome::Untried { .. });
    let why = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Retry { reason, after } => Some(Unavailable {
            after: *after,
            ..Unavailable::new(reason.text.clone())
        }),
        _ => None,
    });
    match why {
        Some(why) if is_the_sinks && outcomes.iter().all(is_late) => Err(why),
        _ => Ok(outcomes),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::super::line::tests::delivery;
    use super::super::ask::Refusal;
    use super::*;

    /// Takes numbers; knows which are bad, and how many requests it answers before it is gone.
    #[derive(Default)]
    struct Numbers {
        bad: Vec<u64>,
        late: Vec<u64>,
        gone: Vec<u64>,
        refused: Vec<u64>,
        /// What makes its groups.
        modulo: Option<u64>,
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

        fn group(&self, entry: &u64) -> Option<String> {
            self.modulo.map(|modulo| (entry % modulo).to_string())
        }

        async fn send(&self, entries: &[u64]) -> Result<Vec<Answer>, Failed> {
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
            let refusal = || Refusal {
                code: "Odd".into(),
                answer: None,
            };
            let answer = |entry: &u64| match entry {
                entry if self.late.contains(entry) => Answer::Late(refusal()),
                entry if self.gone.contains(entry) => Answer::Gone(refusal()),
                entry if self.refused.contains(entry) => Answer::Refused(refusal()),
                entry => {
                    self.got.lock().unwrap().push(*entry);
                    Answer::Taken
                }
            };
            Ok(entries.iter().map(answer).collect())
        }
    }

    async fn deliver_to(service: &Numbers, seqs: &[u64], bytes: usize) -> Result<Vec<Outcome>, Unavailable> {
        let deliveries: Vec<Delivery> = seqs.iter().map(|seq| delivery(*seq, "{}")).collect();
        let limits = Limits {
            events: 10,
            bytes,
            wait: Duration::ZERO,
        };
        deliver(service, limits, false, &deliveries).await
    }

    /// `d`elivered, `w`aits for the service, is tried again (`r`), was not tried (`-`) or is refused (`x`); `u`: the sink is unavailable.
    fn told(outcomes: Result<Vec<Outcome>, Unavailable>) -> String {
        let Ok(outcomes) = outcomes else { return "u".into() };
        outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Delivered | Outcome::Skipped => 'd',
                Outcome::Retry { .. } => 'r',
                Outcome::Untried { .. } => '-',
                Outcome::Waits(_) => 'w',
                Outcome::Reject { .. } => 'x',
            })
            .collect()
    }

    fn service(bad: &[u64], left: usize) -> Numbers {
        Numbers {
            bad: bad.to_vec(),
            left: Mutex::new(left),
            ..Numbers::default()
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
        assert_eq!(outcomes[2], Outcome::Waits(Unavailable::new("gone")));
    }

    #[tokio::test]
    async fn after_five_refusals_in_a_row_the_rest_is_not_sent() {
        let all: Vec<u64> = (1..=10).collect();
        let alone = service(&all, 999);
        assert_eq!(told(deliver_to(&alone, &all, 1000).await), "xxxxx-----");
        let by_entry = Numbers {
            refused: all.clone(),
            ..service(&[], 99)
        };
        assert_eq!(told(deliver_to(&by_entry, &all, 1000).await), "xxxxxrrrrr");
        let some = service(&[1, 2, 3, 4, 6, 7, 8, 9], 999);
        assert_eq!(told(deliver_to(&some, &all, 1000).await), "xxxxdxxxxd");
    }

    #[tokio::test]
    async fn what_was_only_refused_does_not_make_a_service_that_is_gone_one_that_works() {
        // The whole, 1 alone; then it is gone.
        let service = service(&[1], 2);
        assert_eq!(told(deliver_to(&service, &[1, 2], 1000).await), "u");
    }

    #[tokio::test]
    async fn one_event_that_is_put_off_alone_does_not_hold_the_sink() {
        let service = Numbers {
            late: vec![1, 2],
            gone: vec![3, 4],
            ..service(&[], 99)
        };
        assert_eq!(told(deliver_to(&service, &[1], 1000).await), "r");
        assert_eq!(told(deliver_to(&service, &[1, 2], 1000).await), "u");
        assert_eq!(told(deliver_to(&service, &[3], 1000).await), "u");
        assert_eq!(told(deliver_to(&service, &[3, 5], 1000).await), "rd");
    }

    #[tokio::test]
    async fn nothing_of_a_group_goes_before_what_waits() {
        let service = Numbers {
            modulo: Some(2),
            late: vec![3],
            ..service(&[2], 99)
        };
        assert_eq!(told(deliver_to(&service, &[1, 2, 3, 4, 5, 6], 1000).await), "dxrd-d");
        assert_eq!(*service.got.lock().unwrap(), [1, 4, 6]);
        let strict = Numbers {
            late: vec![3],
            ..self::service(&[], 99)
        };
        let deliveries: Vec<Delivery> = (1..=5).map(|seq| delivery(seq, "{}")).collect();
        let limits = Limits {
            events: 10,
            bytes: 1000,
            wait: Duration::ZERO,
        };
        assert_eq!(told(deliver(&strict, limits, true, &deliveries).await), "ddr--");
        assert_eq!(*strict.got.lock().unwrap(), [1, 2]);
        // What says of itself that it is gone is the sink's trouble, also where only the first was asked about.
        let gone = Numbers {
            gone: vec![1],
            ..self::service(&[], 99)
        };
        assert_eq!(told(deliver(&gone, limits, true, &deliveries).await), "u");
    }
}
