//! `kafka`: a record for each event in a topic of Apache Kafka.
//!
//! The producer is idempotent and waits for all replicas that are in sync. The key and what else is known of an event are headers; the
//! value is the body as Close sent it, or what a template or transform made of it. With `exactly_once` the records of a batch and the
//! mark are one transaction.
//!
//! | what happens | what follows |
//! |---|---|
//! | a connection is cut, an answer is lost | the same records go again with the same numbers: a broker takes them once |
//! | that does not help before the time is over | the sink is unavailable; what is sent then is another producer's, and may be a repeat |
//! | with `exactly_once` | whatever is not known to be committed is settled by opening again, which ends a transaction that is open |
//! | another daemon with the same log and sink opens it | what is open of this one is undone, and it is told so |
//! | one record is refused (too large) | it is found by halves and refused, the others stay |
//! | no topic, no right, full disk, too few replicas, no broker | the sink is unavailable, and costs no event an attempt |
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it and its keys |
//! | `options` | what a table of the configuration means |
//! | `scram` | proves that both sides know a password |
//! | `connection` | one connection to a broker |
//! | `cluster` | who leads what |
//! | `answer` | what a code means |
//! | `record` | what is made of events |
//! | `lane` | the records of one partition, and what becomes of each |
//! | `pause` | how long it is waited between two tries |
//! | `producer` | numbers, sends, and sends again |
//! | `transaction` | what is committed together |
//! | `mark` | the mark in its topic |

mod answer;
mod cluster;
mod connection;
pub(super) mod definition;
mod lane;
mod mark;
mod options;
mod pause;
mod producer;
mod record;
mod scram;
mod transaction;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use self::cluster::Cluster;
use self::connection::{Address, Way};
use self::lane::Fate;
use self::producer::Producer;
use self::record::Parcel;
use super::common::message;
use super::{Batch, Mark, Outcome, Reason, Sink, Unavailable};
use crate::event::Delivery;
use crate::render::Template;
use crate::sync::lock;

/// Of the time for a call, what it may take itself: whoever gives up first says best why.
const SHARE: f64 = 0.9;

fn data(delivery: &Delivery) -> &Bytes {
    delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes())
}

/// The key of an event's record: a transform's, the configured one, or the lead; an empty one is none.
fn key_of(delivery: &Delivery, template: Option<&Template>) -> Option<String> {
    let made = delivery.rendered.as_deref().and_then(|rendered| rendered.key.clone());
    let configured = || template.map(|template| delivery.text("key", template).to_owned());
    let lead = || delivery.event.view().and_then(|view| view.lead_id.clone());
    let key = match (made, template) {
        (Some(made), _) => Some(made),
        (None, Some(_)) => configured(),
        (None, None) => lead(),
    };
    key.filter(|key| !key.is_empty())
}

/// The topic of an event's record, and whether the event has chosen it.
fn topic_of<'d>(delivery: &'d Delivery, template: &'d Template) -> (&'d str, bool) {
    let made = delivery
        .rendered
        .as_deref()
        .and_then(|rendered| rendered.subject.as_deref());
    match made {
        Some(topic) => (topic, true),
        None => (delivery.text("topic", template), !template.is_constant()),
    }
}

/// A batch as records, each with the place of its delivery, and what is known of the others already.
struct Packed {
    parcels: Vec<Parcel>,
    places: Vec<usize>,
    outcomes: Vec<Outcome>,
}

/// What makes records.
struct Packing {
    topic: Template,
    key: Option<Template>,
}

impl Packing {
    fn pack(&self, deliveries: &[Delivery]) -> Packed {
        let mut packed = Packed {
            parcels: Vec::with_capacity(deliveries.len()),
            places: Vec::with_capacity(deliveries.len()),
            outcomes: vec![Outcome::Delivered; deliveries.len()],
        };
        for (place, delivery) in deliveries.iter().enumerate() {
            match self.parcel(delivery) {
                Ok(parcel) => {
                    packed.parcels.push(parcel);
                    packed.places.push(place);
                }
                Err(reason) => packed.outcomes[place] = Outcome::Reject { reason },
            }
        }
        packed
    }

    /// A record, or why there is none.
    fn parcel(&self, delivery: &Delivery) -> Result<Parcel, Reason> {
        let (topic, topic_varies) = topic_of(delivery, &self.topic);
        if !record::is_topic(topic) {
            return Err("topic is no topic's name for this event".into());
        }
        let rendered = delivery.rendered.as_deref();
        let own = message::attributes(delivery).into_iter();
        let own = own.map(|(name, value)| (StrBytes::from_static_str(name), Bytes::from(value)));
        let made = rendered.iter().flat_map(|rendered| &rendered.headers);
        let made = made.map(|(name, value)| (StrBytes::from_string(name.clone()), Bytes::from(value.clone())));
        Ok(Parcel {
            topic: topic.to_owned(),
            topic_varies,
            key: key_of(delivery, self.key.as_ref()).map(Bytes::from),
            value: data(delivery).clone(),
            headers: own.chain(made).collect(),
        })
    }
}

impl Packed {
    /// What became of each delivery, and what is wrong with the system, if something is.
    fn fared(mut self, fates: Vec<Fate>) -> (Vec<Outcome>, Option<String>) {
        let mut trouble = None;
        for (place, fate) in std::iter::zip(self.places, fates) {
            self.outcomes[place] = match fate {
                Fate::Taken => Outcome::Delivered,
                Fate::Refused(reason) => Outcome::Reject { reason },
                Fate::Behind(reason) => Outcome::Retry { reason, after: None },
                Fate::Untried(why) => Outcome::Untried { reason: why.into() },
                Fate::Waits(why) => {
                    trouble.get_or_insert_with(|| why.clone());
                    Outcome::Waits(Unavailable::new(why))
                }
            };
        }
        (self.outcomes, trouble)
    }
}

/// What each producer of a sink needs.
struct Ways {
    way: Arc<Way>,
    bootstrap: Arc<[Address]>,
    packing: Packing,
    timeout: Duration,
}

impl Ways {
    fn cluster(&self) -> Cluster {
        Cluster::new(self.way.clone(), self.bootstrap.clone())
    }

    /// When a call that begins now has to have ended.
    fn until(&self) -> Instant {
        Instant::now() + self.timeout.mul_f64(SHARE)
    }
}

/// An opened sink that acknowledges each record: a producer for each call that is under way, for a producer's numbers have one order.
struct Kafka {
    ways: Ways,
    idle: Mutex<Vec<Producer>>,
    /// Nothing may go before an event that waits.
    is_strict: bool,
}

#[async_trait]
impl Sink for Kafka {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let until = self.ways.until();
        let packed = self.ways.packing.pack(batch.deliveries());
        let idle = lock(&self.idle).pop();
        let mut producer = idle.unwrap_or_else(|| Producer::new(self.ways.cluster(), None, self.is_strict));
        let fates = producer.send(&packed.parcels, until).await;
        // Dropped meanwhile it is gone, with its connections and its numbers.
        lock(&self.idle).push(producer);
        let (outcomes, trouble) = packed.fared(fates);
        match trouble {
            // Without anything delivered no attempt is counted.
            Some(why) if !outcomes.contains(&Outcome::Delivered) => Err(Unavailable::new(why)),
            _ => Ok(outcomes),
        }
    }
}

/// An opened sink that commits records and mark together.
struct ExactlyOnce {
    ways: Ways,
    place: mark::Place,
    /// `None` once a call has failed or was dropped: what that left behind is settled by opening again.
    writer: Mutex<Option<Writer>>,
    /// Nothing may go before an event that waits.
    is_strict: bool,
}

/// Who writes, and how many marks it has written.
struct Writer {
    producer: Producer,
    marks: u64,
}

impl ExactlyOnce {
    /// Sends records and the mark that holds if all goes well; another one where it does not. Then commits.
    async fn write(&self, writer: &mut Writer, batch: &Batch<'_>) -> Result<Vec<Outcome>, String> {
        let until = self.ways.until();
        let mut packed = self.ways.packing.pack(batch.deliveries());
        let hoped = packed.outcomes.clone();
        // In strict order nothing goes behind what waits, and the mark goes in any case.
        let goes_along = !self.is_strict;
        if goes_along {
            let mark = self.next_mark(writer, &batch.mark_after(&hoped))?;
            packed.parcels.push(mark);
        }
        let mut fates = writer.producer.send(&packed.parcels, until).await;
        if goes_along {
            settled(fates.pop())?;
        }
        let (outcomes, trouble) = packed.fared(fates);
        if let Some(why) = trouble {
            return Err(why);
        }
        if outcomes != hoped || !goes_along {
            // The last one counts.
            let mark = self.next_mark(writer, &batch.mark_after(&outcomes))?;
            settled(writer.producer.send(&[mark], until).await.pop())?;
        }
        writer.producer.commit(until).await?;
        Ok(outcomes)
    }

    fn next_mark(&self, writer: &mut Writer, mark: &Mark) -> Result<Parcel, String> {
        writer.marks += 1;
        self.place.parcel(mark, writer.marks)
    }
}

/// Whether the mark was taken.
fn settled(fate: Option<Fate>) -> Result<(), String> {
    match fate {
        Some(Fate::Taken) => Ok(()),
        Some(Fate::Refused(reason) | Fate::Behind(reason)) => Err(format!("the mark is refused: {reason}")),
        Some(Fate::Waits(why) | Fate::Untried(why)) => Err(why),
        None => Err("the mark was not sent".into()),
    }
}

#[async_trait]
impl Sink for ExactlyOnce {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let writer = lock(&self.writer).take();
        let mut writer = writer.ok_or_else(|| Unavailable::new("the last transaction has to be settled first"))?;
        let outcomes = self.write(&mut writer, batch).await.map_err(Unavailable::new)?;
        *lock(&self.writer) = Some(writer);
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
