//! `amqp`: a message for each event to an exchange or queue of RabbitMQ, over AMQP 0-9-1.
//!
//! At least once. A batch is published at once, each message persistent and `mandatory`, and each is waited for: it is delivered when
//! the server has confirmed it and has not sent it back. What was not confirmed when a connection ended is published again with the same
//! message-id.
//!
//! The server closes the whole channel over one message that it does not take, and says nothing of those before it. So a message that
//! is larger than any that it has taken goes alone, and where it was not the size each goes alone until the one is found.
//!
//! A publisher is spoken here, with `amq-protocol` for the frames, and not with the client that is made of it (lapin). That one hands a
//! message that came back to any of the messages that one acknowledgement confirms, logs it with its body, and has a thread
//! for each connection that a server which never answers keeps for ever.
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it and its keys |
//! | `options` | what the keys mean |
//! | `wire` | bytes: TCP, TLS, frames |
//! | `session` | a connection with a channel: signing in, publishing, confirmations |
//! | `message` | an event as a message |
//! | `answer` | what the server says, and what that means |

mod answer;
pub(super) mod definition;
mod message;
mod options;
mod session;
mod wire;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use self::answer::{Over, Place};
use self::message::Message;
use self::options::{Options, parse};
use self::session::{End, Fate, Server, Session};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Opened, Outcome, Preview, Reason, Sink, SinkKind, Unavailable,
};
use crate::event::Delivery;
use crate::render::Template;
use crate::sync::lock;
use crate::task;

/// Refusals in a row; what is behind them waits.
const REFUSALS_MAX: usize = 5;

/// How often connections that have nothing to do are looked after: far below the time after which one is silent for too long.
const TEND_EVERY: Duration = Duration::from_secs(2);

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            // Two connections at a time would mix the order.
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.server("").err()
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.server("").ok()?.1.secrets;
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        message::body(delivery).0.clone()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let message = Message::new(0, delivery, &self.exchange, &self.routing_key)?;
        let beside = message::beside(delivery);
        let properties = [
            ("content-type", Some(beside.content_type.to_owned())),
            ("message-id", Some(message.id)),
            ("timestamp", Some(beside.timestamp.to_string())),
            ("type", beside.kind),
        ];
        let properties = properties.into_iter();
        let properties = properties.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(Preview {
            key: Some(message::routing_key(delivery, &self.routing_key).to_owned()),
            subject: Some(self.exchange.clone()).filter(|exchange| !exchange.is_empty()),
            ..Preview::new(properties.chain(beside.headers), message.body)
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        vec![("routing_key".to_owned(), self.routing_key.clone())]
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let sink: Box<dyn Sink> = Box::new(self.sink(&context)?);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        self.sink(&context)?.probe().await
    }
}

impl Options {
    fn sink(&self, context: &Context) -> Result<Amqp, Unavailable> {
        let (server, place) = self.server(&context.name).map_err(Unavailable::new)?;
        Ok(Amqp {
            server,
            place,
            routing_key: self.routing_key.clone(),
            timeout: context.timeout,
            is_strict: context.is_strict,
            idle: Idle::new(),
            taken_len: AtomicUsize::new(0),
            alone: AtomicUsize::new(0),
        })
    }
}

/// Connections that have nothing to do.
struct Idle(Mutex<Vec<Session>>);

impl Idle {
    /// They are looked after as long as somebody has them.
    fn new() -> Arc<Idle> {
        let idle = Arc::new(Idle(Mutex::default()));
        let weak: Weak<Idle> = Arc::downgrade(&idle);
        task::begin(async move {
            loop {
                tokio::time::sleep(TEND_EVERY).await;
                let Some(idle) = weak.upgrade() else { return };
                lock(&idle.0).retain_mut(Session::tend);
            }
        });
        idle
    }

    /// One that is good now; an error is why the server takes nothing.
    fn take(&self) -> Result<Option<Session>, String> {
        let mut sessions = lock(&self.0);
        sessions.retain_mut(Session::tend);
        match sessions.iter().find_map(Session::blocked) {
            Some(reason) => Err(reason.to_owned()),
            None => Ok(sessions.pop()),
        }
    }

    fn put(&self, session: Session) {
        lock(&self.0).push(session);
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        lock(&self.0).drain(..).for_each(Session::close);
    }
}

struct Amqp {
    server: Server,
    place: Place,
    routing_key: Template,
    timeout: Duration,
    /// Nothing goes before an event that waits: each message is waited for before the next.
    is_strict: bool,
    idle: Arc<Idle>,
    /// The largest body that the server has taken.
    taken_len: AtomicUsize,
    /// So many of the next messages go alone: the server did not take one of several.
    alone: AtomicUsize,
}

/// What became of a batch so far.
struct Fared {
    outcomes: Vec<Outcome>,
    /// In a row.
    refusals: usize,
}

impl Fared {
    fn taken(&mut self, index: usize) {
        self.refusals = 0;
        self.outcomes[index] = Outcome::Delivered;
    }

    /// After so many in a row it may not be about the messages (decision 21): they wait.
    fn refused(&mut self, index: usize, reason: Reason) {
        self.outcomes[index] = if self.refusals < REFUSALS_MAX {
            Outcome::Reject { reason }
        } else {
            Outcome::Retry { reason, after: None }
        };
        self.refusals += 1;
    }

    /// Nothing more can be published now. What was stays so, and the rest waits for the server.
    fn stopped(mut self, why: &Unavailable) -> Result<Vec<Outcome>, Unavailable> {
        let is_settled = |outcome: &Outcome| matches!(outcome, Outcome::Delivered | Outcome::Reject { .. });
        if !self.outcomes.iter().any(is_settled) {
            return Err(why.clone());
        }
        for outcome in &mut self.outcomes {
            if matches!(outcome, Outcome::Retry { .. } | Outcome::Untried { .. }) {
                *outcome = Outcome::Waits(why.clone());
            }
        }
        Ok(self.outcomes)
    }
}

impl Amqp {
    /// By when a call has to know. Who gives up before the engine does says best why.
    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.mul_f64(0.9)
    }

    async fn session(&self, until: Instant) -> Result<Session, Unavailable> {
        match self.idle.take() {
            Err(reason) => Err(answer::blocked(&reason)),
            Ok(Some(session)) => Ok(session),
            Ok(None) => Session::open(&self.server, until)
                .await
                .map_err(|end| self.place.unavailable(&end)),
        }
    }

    /// How many of these go together.
    fn together(&self, messages: &[Message]) -> usize {
        let taken = self.taken_len.load(Ordering::Relaxed);
        if self.is_strict || self.alone.load(Ordering::Relaxed) > 0 {
            return 1;
        }
        let len = messages
            .iter()
            .take_while(|message| message.body.len() <= taken)
            .count();
        len.max(1)
    }

    /// Publishes all of them, as far as the server lets.
    async fn publish_all(
        &self,
        session: &mut Session,
        deliveries: &[Delivery],
        messages: &[Message],
        fared: &mut Fared,
        until: Instant,
    ) -> Result<(), Failed> {
        let mut rest = messages;
        while !rest.is_empty() {
            let (these, later) = rest.split_at(self.together(rest));
            rest = later;
            let alone = these.len() == 1;
            let (fates, ended) = session.publish(these, until).await;
            let noted = self.note(these, &fates, deliveries, fared);
            match ended {
                Ok(()) => {}
                Err(End::Channel(closed)) => {
                    let varies = these.iter().any(|message| self.varies(&deliveries[message.index]));
                    match self.place.over(&closed, varies, alone) {
                        Over::Message(reason) => fared.refused(these[0].index, reason),
                        Over::OneOf(unavailable) => {
                            self.alone.store(messages.len(), Ordering::Relaxed);
                            return Err(Failed::Now(unavailable));
                        }
                        Over::Everything(unavailable) => return Err(Failed::Now(unavailable)),
                    }
                }
                Err(end @ End::Blocked(_)) => return Err(Failed::Now(self.place.unavailable(&end))),
                Err(end) => return Err(Failed::Gone(self.place.unavailable(&end))),
            }
            noted.map_err(Failed::Now)?;
            let less = |left: usize| left.checked_sub(these.len());
            let _ = self.alone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            if fared.refusals > REFUSALS_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    fn varies(&self, delivery: &Delivery) -> bool {
        message::routing_key_varies(delivery, &self.routing_key)
    }

    /// Writes down what became of messages; an error is why no more should go.
    fn note(
        &self,
        messages: &[Message],
        fates: &[Option<Fate>],
        deliveries: &[Delivery],
        fared: &mut Fared,
    ) -> Result<(), Unavailable> {
        let mut stop = None;
        for (message, fate) in messages.iter().zip(fates) {
            let Some(fate) = fate else { continue };
            let delivery = &deliveries[message.index];
            if *fate != Fate::Refused {
                self.taken_len.fetch_max(message.body.len(), Ordering::Relaxed);
            }
            match fate {
                Fate::Taken => fared.taken(message.index),
                Fate::Returned if self.varies(delivery) => {
                    fared.refused(message.index, self.place.unroutable_for_event());
                }
                Fate::Returned => {
                    stop.get_or_insert_with(|| {
                        self.place.unroutable(message::routing_key(delivery, &self.routing_key))
                    });
                }
                Fate::Refused => stop = Some(self.place.full()),
            }
        }
        match stop {
            None => Ok(()),
            Some(unavailable) => {
                // One is enough to find out when that is over.
                self.alone.fetch_max(1, Ordering::Relaxed);
                Err(unavailable)
            }
        }
    }

    /// Publishes nothing.
    async fn probe(&self) -> Result<String, Unavailable> {
        let until = self.deadline();
        let of = |end: End| self.place.unavailable(&end);
        let mut session = self.session(until).await?;
        let (exchange, key) = (self.place.exchange.as_str(), &self.routing_key);
        let found = if !exchange.is_empty() {
            session.look_for_exchange(exchange, until).await.map_err(of)?;
            format!(
                "exchange \"{exchange}\" is there; whether a queue is bound to it and whether the user may write was not looked at"
            )
        } else if key.is_constant() {
            session.look_for_queue(key.source(), until).await.map_err(of)?;
            format!("queue \"{}\" is there", key.source())
        } else {
            "the server lets the user in; its queues depend on the event and were not looked at".to_owned()
        };
        session.close();
        Ok(found)
    }
}

/// Why not all could be published.
enum Failed {
    /// The session is good.
    Now(Unavailable),
    /// The session is not.
    Gone(Unavailable),
}

#[async_trait]
impl Sink for Amqp {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let until = self.deadline();
        let deliveries = batch.deliveries();
        let waiting = Outcome::Untried {
            reason: "it was not published".into(),
        };
        let mut fared = Fared {
            outcomes: vec![waiting; deliveries.len()],
            refusals: 0,
        };
        let mut session = self.session(until).await?;
        let mut messages = Vec::with_capacity(deliveries.len());
        for (index, delivery) in deliveries.iter().enumerate() {
            match Message::new(index, delivery, &self.place.exchange, &self.routing_key) {
                Ok(message) if message.properties_len <= session.frame_len_max() => messages.push(message),
                Ok(_) => {
                    let reason = "its headers are longer than the server takes (its frame_max)".into();
                    fared.outcomes[index] = Outcome::Reject { reason };
                }
                Err(reason) => fared.outcomes[index] = Outcome::Reject { reason },
            }
        }
        let published = self
            .publish_all(&mut session, deliveries, &messages, &mut fared, until)
            .await;
        match published {
            Ok(()) => {
                self.idle.put(session);
                Ok(fared.outcomes)
            }
            Err(Failed::Now(unavailable)) => {
                self.idle.put(session);
                fared.stopped(&unavailable)
            }
            Err(Failed::Gone(unavailable)) => fared.stopped(&unavailable),
        }
    }
}

#[cfg(test)]
mod tests;
