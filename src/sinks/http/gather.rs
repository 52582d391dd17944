//! Several events in one request: how they stand in its body, and which of them it was when the receiver refuses them.
//!
//! | the receiver answers | what becomes of the events |
//! |---|---|
//! | 2xx | delivered |
//! | 4xx about what was sent | each half is sent on its own, down to the event that is refused: one bad event costs itself |
//! | 401, 403, 407, 429, 3xx, 5xx | the sink is unavailable; where some of the batch were delivered before, the rest is tried again later |
//! | 5xx to an event on its own | it is tried again later, and the others go on: it is about that event as likely |
//! | 408, 425, nothing | all are tried again later |
//!
//! Where an event chooses the server, whatever that one does not take is tried again later, and the other servers get theirs. Where
//! every event waits for the one before (`order = "strict"`), what follows one that is to be tried again is not sent.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::answer::Verdict;
use super::message;
use super::options::{Format, Head};
use super::{Http, Said};
use crate::event::Delivery;
use crate::json;
use crate::sinks::{Outcome, Unavailable};

/// After so many events in a row that are refused, or fail, each on its own it is not about the events (decision 21).
const REFUSALS_MAX: usize = 5;

/// An event of a batch.
struct Item<'b> {
    /// Its place in the batch.
    at: usize,
    key: String,
    text: Cow<'b, str>,
}

/// What has become of a batch so far.
struct Sifted {
    outcomes: Vec<Option<Outcome>>,
    delivered: usize,
    /// In a row, each on its own.
    refused: usize,
    /// The same of those over which the receiver failed.
    failed: usize,
}

/// What goes to one place.
struct Place<'b> {
    head: Head,
    items: Vec<Item<'b>>,
}

impl Sifted {
    fn all(&mut self, items: &[Item<'_>], outcome: &Outcome) {
        for item in items {
            self.outcomes[item.at] = Some(outcome.clone());
        }
    }

    fn is_about_no_event(&self) -> bool {
        self.refused >= REFUSALS_MAX || self.failed >= REFUSALS_MAX
    }

    /// An error where it has been so with one event after the other.
    fn goes_on(&self, text: &str, after: Option<Duration>) -> Result<(), Unavailable> {
        if !self.is_about_no_event() {
            return Ok(());
        }
        Err(Unavailable {
            reason: format!("{text}, to one event after the other"),
            after,
        })
    }

    /// One server of many takes no more: the others are still there.
    fn left(&mut self, place: &Place<'_>, why: &Unavailable) {
        for item in &place.items {
            self.outcomes[item.at].get_or_insert_with(|| Outcome::Retry {
                reason: why.reason.clone().into(),
                after: why.after,
            });
        }
        (self.refused, self.failed) = (0, 0);
    }

    /// Whether one that was sent is to be tried again.
    fn has_to_wait(&self) -> bool {
        let mut known = self.outcomes.iter().flatten();
        known.any(|known| matches!(known, Outcome::Retry { .. }))
    }

    /// Nothing more can be sent now. What was delivered stays so; without any of that no attempt is counted.
    fn stopped(self, why: Unavailable) -> Result<Vec<Outcome>, Unavailable> {
        if self.delivered == 0 && !self.is_about_no_event() {
            return Err(why);
        }
        let rest = Outcome::Retry {
            reason: why.reason.into(),
            after: why.after,
        };
        Ok(self.finished(&rest))
    }

    /// `rest`: what becomes of the others.
    fn finished(self, rest: &Outcome) -> Vec<Outcome> {
        let known = self.outcomes.into_iter();
        known.map(|known| known.unwrap_or_else(|| rest.clone())).collect()
    }
}

impl Http {
    /// Delivers a batch: all that goes to one place in one request.
    pub(super) async fn deliver_gathered(
        &self,
        deliveries: &[Delivery],
        format: Format,
    ) -> Result<Vec<Outcome>, Unavailable> {
        let mut sifted = Sifted {
            outcomes: vec![None; deliveries.len()],
            delivered: 0,
            refused: 0,
            failed: 0,
        };
        for place in &self.places(deliveries, format, &mut sifted) {
            if let Err(why) = self.sift(place, format, &mut sifted).await {
                if self.options.has_one_origin || self.is_strict {
                    return sifted.stopped(why);
                }
                sifted.left(place, &why);
            }
            if self.is_strict && sifted.has_to_wait() {
                break;
            }
        }
        // There is none left over unless every event waits for the one before.
        Ok(sifted.finished(&Outcome::Retry {
            reason: "it was not sent: it waits for the event before".into(),
            after: None,
        }))
    }

    /// What goes where; where the order is strict, in runs of those that follow each other.
    fn places<'b>(&self, deliveries: &'b [Delivery], format: Format, sifted: &mut Sifted) -> Vec<Place<'b>> {
        let mut places: Vec<Place<'b>> = Vec::new();
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        for (at, delivery) in deliveries.iter().enumerate() {
            let head = self.head(delivery);
            let (head, text) = match head.and_then(|head| Ok((head, text(delivery, format)?))) {
                Ok(made) => made,
                Err(reason) => {
                    sifted.outcomes[at] = Some(Outcome::Reject { reason: reason.into() });
                    continue;
                }
            };
            let key = message::key(&delivery.event);
            let item = Item { at, key, text };
            let place = head.place();
            let found = known.get(&place).copied();
            if let Some(found) = found.filter(|found| !self.is_strict || found + 1 == places.len()) {
                places[found].items.push(item);
            } else {
                known.insert(place, places.len());
                let items = vec![item];
                places.push(Place { head, items });
            }
        }
        places
    }

    /// Sends events, and each half of those that are refused together. An error: nothing more can be sent now.
    async fn sift(&self, place: &Place<'_>, format: Format, sifted: &mut Sifted) -> Result<(), Unavailable> {
        let mut open = vec![&place.items[..]];
        while let Some(items) = open.pop() {
            match self.send_all(&place.head, items, format).await {
                Verdict::Taken => {
                    sifted.delivered += items.len();
                    (sifted.refused, sifted.failed) = (0, 0);
                    sifted.all(items, &Outcome::Delivered);
                }
                Verdict::Refused(reason) if items.len() == 1 => {
                    sifted.refused += 1;
                    let text = reason.text.clone();
                    sifted.all(items, &Outcome::Reject { reason });
                    sifted.goes_on(&text, None)?;
                }
                Verdict::Refused(_) => {
                    let (first, second) = items.split_at(items.len() / 2);
                    open.extend([second, first]);
                }
                Verdict::Later(reason, after) => sifted.all(items, &Outcome::Retry { reason, after }),
                Verdict::Unavailable(why) => return Err(why),
                Verdict::Failed(reason, after) if items.len() == 1 => {
                    sifted.failed += 1;
                    let text = reason.text.clone();
                    sifted.all(items, &Outcome::Retry { reason, after });
                    sifted.goes_on(&text, after)?;
                }
                Verdict::Failed(reason, after) => {
                    return Err(Unavailable {
                        reason: reason.text,
                        after,
                    });
                }
            }
            if self.is_strict && sifted.has_to_wait() {
                break;
            }
        }
        Ok(())
    }

    async fn send_all(&self, head: &Head, items: &[Item<'_>], format: Format) -> Verdict {
        let id = message::batch_id(items.iter().map(|item| item.key.as_str()));
        let said = Said {
            webhook_id: id.clone(),
            key: id,
            body: body(items, format),
            content_type: match format {
                Format::JsonArray => "application/json",
                Format::Jsonl => "application/x-ndjson",
            },
        };
        self.ask(self.request(head.clone(), said)).await
    }
}

/// An event, or what is delivered instead, as it stands in a batch. An error is one sentence.
fn text(delivery: &Delivery, format: Format) -> Result<Cow<'_, str>, String> {
    const NO_JSON: &str = "what the template makes is no JSON, which a batch is made of";
    let bytes: &Bytes = delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes());
    let text = json::validate(bytes).map_err(|_| NO_JSON)?;
    Ok(match format {
        Format::JsonArray => text.trim().into(),
        // A line is one only without line ends in it.
        Format::Jsonl => json::compact(text).into(),
    })
}

fn body(items: &[Item<'_>], format: Format) -> Bytes {
    let len: usize = items.iter().map(|item| item.text.len() + 1).sum();
    let mut body = String::with_capacity(len + 1);
    let (begin, between, end) = match format {
        Format::JsonArray => ("[", ",", "]"),
        Format::Jsonl => ("", "\n", "\n"),
    };
    body += begin;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            body += between;
        }
        body += &item.text;
    }
    body += end;
    body.into()
}
