//! Several events in one request: how they stand in its body, and which of them it was when the receiver refuses them.
//!
//! | the receiver answers | what becomes of the events |
//! |---|---|
//! | 2xx | delivered |
//! | 4xx about what was sent | each half is sent on its own, down to the event that is refused: one bad event costs itself |
//! | 401, 403, 407, 429, 3xx | the sink is unavailable; where some of the batch were delivered before, the rest is tried again later |
//! | 502, 503, 504, or another 5xx that says when to come again | the sink is unavailable, as with 429: more requests are what it asks not to get |
//! | the same to the next batch as well, after the time that it asked for | as far as it takes the first event alone, as another 5xx: it may be about one of them |
//! | another 5xx | each half is sent on its own: the event alone over which it fails is tried again later; where it takes none, the sink is unavailable |
//! | 5xx to an event that came alone | it is tried again later, and the others go on: it is about that event as likely |
//! | 408, 425, nothing | all are tried again later |
//!
//! An event over which the receiver fell when it came alone goes alone from then on, behind the others, so that it holds up none of them.
//! Where an event chooses the server, whatever that one does not take is tried again later, and the other servers get theirs. Where
//! every event waits for the one before (`order = "strict"`), what follows one that is to be tried again is not sent.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::answer::Verdict;
use super::message;
use super::options::{Format, Head};
use super::{Http, Said, unsigned};
use crate::event::Delivery;
use crate::json;
use crate::sinks::common::sift::{Row, Sift};
use crate::sinks::{Outcome, Unavailable};
use crate::sync::lock;

/// An event of a batch.
struct Item<'b> {
    /// Its place in the batch.
    at: usize,
    key: String,
    text: Cow<'b, str>,
    /// The receiver fell over it before.
    is_lone: bool,
}

impl<'b> Item<'b> {
    fn of(at: usize, delivery: &Delivery, text: Cow<'b, str>) -> Item<'b> {
        Item {
            at,
            key: message::key(&delivery.event),
            text,
            is_lone: false,
        }
    }
}

/// What has become of a batch so far.
struct Fared {
    outcomes: Vec<Option<Outcome>>,
    delivered: usize,
    /// Each on its own.
    refused: Row,
    /// The same of those over which the receiver failed.
    failed: Row,
    /// What it said when it failed over several, where it is found out over which: as long as it takes none that is about no event.
    fell: Option<Unavailable>,
    /// No event goes before one that failed.
    is_strict: bool,
    /// The receiver was away for longer than it said, so that it may be about one of these.
    searches: bool,
    /// What it said last of several, if that was that it is away: for how long.
    away: Option<Duration>,
    took_several: bool,
    /// Those over which it fell when they came alone.
    fell_alone: Vec<usize>,
}

/// What goes to one place.
struct Place<'b> {
    head: Head,
    items: Vec<Item<'b>>,
}

/// The events of a batch, those of a place one behind the other; and where those of each place are.
struct Placed<'b> {
    items: Vec<Item<'b>>,
    heads: Vec<(Head, Range<usize>)>,
}

impl<'b> Placed<'b> {
    fn of(places: Vec<Place<'b>>) -> Placed<'b> {
        let (mut items, mut heads) = (Vec::new(), Vec::with_capacity(places.len()));
        for place in places {
            let start = items.len();
            items.extend(place.items);
            heads.push((place.head, start..items.len()));
        }
        Placed { items, heads }
    }

    /// What goes together. `searches`: the first goes before the others, which shows by one request whether the receiver takes anything.
    fn requests(&self, searches: bool) -> Vec<Range<usize>> {
        let mut requests: Vec<Range<usize>> = self.heads.iter().map(|(_, place)| place.clone()).collect();
        if searches && let Some(first) = requests.first().cloned().filter(|first| first.len() > 1) {
            requests[0] = first.start + 1..first.end;
            requests.insert(0, first.start..first.start + 1);
        }
        requests
    }

    /// Where some of them go.
    fn head(&self, range: &Range<usize>) -> Option<&Head> {
        let place = self.heads.partition_point(|(_, place)| place.end <= range.start);
        self.heads.get(place).map(|(head, _)| head)
    }
}

impl Fared {
    fn all(&mut self, items: &[Item<'_>], outcome: &Outcome) {
        for item in items {
            self.outcomes[item.at] = Some(outcome.clone());
        }
    }

    fn is_about_no_event(&self) -> bool {
        self.refused.is_over() || self.failed.is_over()
    }

    /// An error where it has been so with one event after the other.
    fn goes_on(&self, text: &str, after: Option<Duration>) -> Result<(), Unavailable> {
        if !self.is_about_no_event() {
            return Ok(());
        }
        let reason = format!("{text}, to one event after the other");
        Err(Unavailable {
            after,
            ..Unavailable::new(reason)
        })
    }

    /// Whether more is sent although the receiver says of these that it is away. Of an event alone that may be about itself, as long as it
    /// is not so with one more before any is taken; of several only where it has been so before and took another one meanwhile.
    fn goes_on_without(&self, items: &[Item<'_>]) -> bool {
        match items {
            [alone] => {
                let may_be_it = self.delivered > 0 || self.fell_alone.is_empty();
                self.outcomes.len() == 1 || alone.is_lone || self.searches && may_be_it
            }
            _ => self.searches && self.delivered > 0,
        }
    }

    /// Notes what the receiver said of events that went together. `halve` has the halves of these sent next, or says which one it is that
    /// stands alone. An error: nothing more can be sent now.
    fn judge(
        &mut self,
        items: &[Item<'_>],
        verdict: Verdict,
        halve: impl FnOnce() -> Option<usize>,
    ) -> Result<(), Unavailable> {
        if items.len() > 1
            && let Verdict::Away(_, after) = &verdict
        {
            self.away = Some(after.unwrap_or_default());
        }
        match verdict {
            Verdict::Taken => {
                self.delivered += items.len();
                self.took_several |= items.len() > 1;
                self.refused.ended();
                self.failed.ended();
                self.all(items, &Outcome::Delivered);
            }
            Verdict::Refused(reason) => {
                if halve().is_some() {
                    self.refused.another();
                    let text = reason.text.clone();
                    self.all(items, &Outcome::Reject { reason });
                    self.goes_on(&text, None)?;
                }
            }
            Verdict::Later(reason, after) => self.all(items, &Outcome::Retry { reason, after }),
            Verdict::Unavailable(why) => return Err(why),
            Verdict::Away(reason, after) if !self.goes_on_without(items) => {
                return Err(Unavailable {
                    after,
                    ..Unavailable::new(reason.text)
                });
            }
            Verdict::Failed(reason, after) | Verdict::Away(reason, after) if items.len() == 1 => {
                self.failed.another();
                self.fell_alone.extend(items.iter().map(|item| item.at));
                let text = reason.text.clone();
                self.all(items, &Outcome::Retry { reason, after });
                self.goes_on(&text, after)?;
            }
            Verdict::Failed(reason, after) | Verdict::Away(reason, after) => {
                let why = Unavailable {
                    after,
                    ..Unavailable::new(reason.text)
                };
                if self.is_strict {
                    return Err(why);
                }
                self.fell = Some(why);
                halve();
            }
        }
        Ok(())
    }

    /// One server of many takes no more: the others are still there.
    fn left(&mut self, items: &[Item<'_>], why: &Unavailable) {
        for item in items {
            self.outcomes[item.at].get_or_insert_with(|| Outcome::Retry {
                reason: why.reason.clone().into(),
                after: why.after,
            });
        }
        self.refused.ended();
        self.failed.ended();
    }

    /// Whether one that was sent is to be tried again.
    fn has_to_wait(&self) -> bool {
        let mut known = self.outcomes.iter().flatten();
        known.any(|known| matches!(known, Outcome::Retry { .. }))
    }

    /// It fell over several, and was found to take none of them, nor to refuse one.
    fn about_the_receiver(&mut self) -> Option<Unavailable> {
        let is_said = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Delivered | Outcome::Reject { .. }));
        let fell = self.fell.take();
        fell.filter(|_| !self.outcomes.iter().any(is_said))
    }

    /// All was sent, or what waits for one that failed was not.
    fn ended(mut self) -> Result<Vec<Outcome>, Unavailable> {
        if let Some(why) = self.about_the_receiver() {
            return Err(why);
        }
        // There is none left over unless every event waits for the one before.
        Ok(self.finished(&Outcome::Untried {
            reason: "it was not sent: it waits for the event before".into(),
        }))
    }

    /// Nothing more can be sent now. What was delivered stays so, and the rest waits for the receiver, unless that has failed one event after
    /// the other: then these have failed with them.
    fn stopped(self, why: Unavailable) -> Result<Vec<Outcome>, Unavailable> {
        let was_found_out = self.refused.is_over() || self.failed.is_over() && self.fell.is_none();
        if self.delivered == 0 && !was_found_out {
            return Err(why);
        }
        let rest = if was_found_out {
            Outcome::Retry {
                reason: why.reason.into(),
                after: why.after,
            }
        } else {
            Outcome::Waits(why)
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
        let before = lock(&self.recall).before(Instant::now());
        let mut fared = Fared {
            outcomes: vec![None; deliveries.len()],
            delivered: 0,
            refused: Row::default(),
            failed: Row::default(),
            fell: None,
            is_strict: self.is_strict,
            searches: before.searches && !self.is_strict,
            away: None,
            took_several: false,
            fell_alone: Vec::new(),
        };
        let placed = Placed::of(self.places(deliveries, format, &mut fared));
        let sent = self.send_placed(&placed, format, &mut fared).await;
        lock(&self.recall).told(before, fared.away, fared.took_several, Instant::now());
        let fell_alone = std::mem::take(&mut fared.fell_alone);
        let outcomes = match sent {
            Err(why) => fared.stopped(why)?,
            Ok(()) => fared.ended()?,
        };
        lock(&self.recall).judged(deliveries, &outcomes, &fell_alone);
        Ok(outcomes)
    }

    /// Sends one request after the other, as long as that makes sense. An error: nothing more can be sent now.
    async fn send_placed(&self, placed: &Placed<'_>, format: Format, fared: &mut Fared) -> Result<(), Unavailable> {
        let mut sift = Sift::new(placed.requests(fared.searches));
        while let Some(range) = sift.next() {
            let Some(head) = placed.head(&range) else { continue };
            let items = &placed.items[range.clone()];
            let verdict = self.send_all(head, items, format).await;
            if let Err(why) = fared.judge(items, verdict, || sift.refused(&range)) {
                if self.options.has_one_origin || self.is_strict {
                    return Err(why);
                }
                fared.left(&placed.items[sift.leave(&range)], &why);
            }
            if self.is_strict && fared.has_to_wait() {
                break;
            }
        }
        Ok(())
    }

    /// What goes where; where the order is strict, in runs of those that follow each other. What goes alone comes last unless that is so.
    fn places<'b>(&self, deliveries: &'b [Delivery], format: Format, fared: &mut Fared) -> Vec<Place<'b>> {
        let (mut places, mut lone): (Vec<Place<'b>>, Vec<Place<'b>>) = (Vec::new(), Vec::new());
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        for (at, delivery) in deliveries.iter().enumerate() {
            let head = self.head(delivery);
            let (head, text) = match head.and_then(|head| Ok((head, text(delivery, format)?))) {
                Ok(made) => made,
                Err(reason) => {
                    fared.outcomes[at] = Some(Outcome::Reject { reason: reason.into() });
                    continue;
                }
            };
            let mut item = Item::of(at, delivery, text);
            if lock(&self.recall).goes_alone(delivery.event.seq) {
                item.is_lone = true;
                let items = vec![item];
                let into = if self.is_strict { &mut places } else { &mut lone };
                into.push(Place { head, items });
                continue;
            }
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
        places.extend(lone);
        places
    }

    async fn send_all(&self, head: &Head, items: &[Item<'_>], format: Format) -> Verdict {
        let mut request = unsigned(head.clone(), said(items, format));
        self.sign(&mut request);
        self.ask(request).await
    }
}

fn said(items: &[Item<'_>], format: Format) -> Said {
    let id = message::batch_id(items.iter().map(|item| item.key.as_str()));
    Said {
        webhook_id: id.clone(),
        key: id,
        body: body(items, format),
        content_type: match format {
            Format::JsonArray => "application/json",
            Format::Jsonl => "application/x-ndjson",
        },
    }
}

/// A batch of one event. An error is one sentence.
pub(super) fn alone(delivery: &Delivery, format: Format) -> Result<Said, String> {
    let item = Item::of(0, delivery, text(delivery, format)?);
    Ok(said(&[item], format))
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
