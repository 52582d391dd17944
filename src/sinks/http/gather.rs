//! Several events in one request: how they stand in its body, and which of them it was when the receiver refuses them.
//!
//! | the receiver answers | what becomes of the events |
//! |---|---|
//! | 2xx | delivered |
//! | 4xx about what was sent | each half is sent on its own, down to the event that is refused: one bad event costs itself |
//! | 401, 403, 407, 429, 3xx, 5xx | the sink is unavailable; where some of the batch were delivered before, the rest is tried again later |
//! | 408, 425, nothing | all are tried again later |

use std::borrow::Cow;

use bytes::Bytes;

use super::answer::Verdict;
use super::message;
use super::options::{Format, Head};
use super::{Http, Said};
use crate::event::Delivery;
use crate::json;
use crate::sinks::{Outcome, Unavailable};

/// After so many events in a row that are refused each on its own, and none that was taken, it is not about the events (decision 21).
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
}

impl Sifted {
    fn all(&mut self, items: &[Item<'_>], outcome: &Outcome) {
        for item in items {
            self.outcomes[item.at] = Some(outcome.clone());
        }
    }

    fn is_about_no_event(&self) -> bool {
        self.delivered == 0 && self.refused >= REFUSALS_MAX
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
        };
        let mut places: Vec<(Head, Vec<Item<'_>>)> = Vec::new();
        for (at, delivery) in deliveries.iter().enumerate() {
            let head = self.head(delivery);
            match head.and_then(|head| Ok((head, text(delivery, format)?))) {
                Err(reason) => sifted.outcomes[at] = Some(Outcome::Reject { reason: reason.into() }),
                Ok((head, text)) => {
                    let key = message::key(&delivery.event);
                    let item = Item { at, key, text };
                    match places.iter_mut().find(|(known, _)| *known == head) {
                        Some((_, items)) => items.push(item),
                        None => places.push((head, vec![item])),
                    }
                }
            }
        }
        for (head, items) in &places {
            if let Err(why) = self.sift(head, items, format, &mut sifted).await {
                return sifted.stopped(why);
            }
        }
        // There is none left over.
        Ok(sifted.finished(&Outcome::Retry {
            reason: "it was not sent".into(),
            after: None,
        }))
    }

    /// Sends events, and each half of those that are refused together. An error: nothing more can be sent now.
    async fn sift(
        &self,
        head: &Head,
        items: &[Item<'_>],
        format: Format,
        sifted: &mut Sifted,
    ) -> Result<(), Unavailable> {
        let mut open = vec![items];
        while let Some(items) = open.pop() {
            match self.send_all(head, items, format).await {
                Verdict::Taken => {
                    sifted.delivered += items.len();
                    sifted.refused = 0;
                    sifted.all(items, &Outcome::Delivered);
                }
                Verdict::Refused(reason) if items.len() == 1 => {
                    sifted.refused += 1;
                    let text = reason.text.clone();
                    sifted.all(items, &Outcome::Reject { reason });
                    if sifted.is_about_no_event() {
                        return Err(Unavailable::new(format!("{text}, to one event after the other")));
                    }
                }
                Verdict::Refused(_) => {
                    let (first, second) = items.split_at(items.len() / 2);
                    open.extend([second, first]);
                }
                Verdict::Later(reason, after) => sifted.all(items, &Outcome::Retry { reason, after }),
                Verdict::Unavailable(why) => return Err(why),
                Verdict::Failed(reason, after) => {
                    return Err(Unavailable {
                        reason: reason.text,
                        after,
                    });
                }
                Verdict::Elsewhere(reason) => return Err(Unavailable::new(reason.text)),
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
