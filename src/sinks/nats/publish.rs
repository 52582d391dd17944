//! Publishing messages together, and hearing their acknowledgements.
//!
//! Each exchange has subjects for answers of its own: what still comes for one that was given up is nobody's.

use async_nats::{PublishErrorKind, Subscriber};
use futures::{FutureExt, StreamExt};
use tokio::sync::MutexGuard;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::super::common::secrets::Secrets;
use super::answer::{Answer, judged};
use super::message::Message;
use crate::net::nats::{Notice, Session};
use crate::sinks::Reason;

/// What came of an exchange.
pub(super) struct Exchange<'a> {
    session: &'a Session,
    secrets: &'a Secrets,
    /// What was published, or was to be.
    pub messages: Vec<Message>,
    /// One for each of them, as far as they came.
    pub answers: Vec<Option<Answer>>,
    missing: usize,
}

/// Why an exchange is not whole.
pub(super) enum Broken {
    /// The session is over; why.
    Ended(String),
    /// The user may not hear answers there.
    Deaf(String),
    /// Not all answers came in time.
    Late,
}

impl<'a> Exchange<'a> {
    pub fn new(session: &'a Session, secrets: &'a Secrets) -> Exchange<'a> {
        Exchange {
            session,
            secrets,
            messages: Vec::new(),
            answers: Vec::new(),
            missing: 0,
        }
    }

    /// Publishes all as they are made, in their order, and waits for the answers until then. All of them are in `messages` then, and what
    /// came is in `answers`, whatever else happens. `turn` ends when the last of them is on its way, or none goes any more.
    pub async fn run(
        &mut self,
        making: &mut (dyn Iterator<Item = Message> + Send),
        turn: Option<MutexGuard<'_, ()>>,
        until: Instant,
    ) -> Result<(), Broken> {
        let result = self.publish(making, turn, until).await;
        for message in making {
            self.take(message);
        }
        if self.missing == 0 { Ok(()) } else { result }
    }

    async fn publish(
        &mut self,
        making: &mut (dyn Iterator<Item = Message> + Send),
        turn: Option<MutexGuard<'_, ()>>,
        until: Instant,
    ) -> Result<(), Broken> {
        let session = self.session;
        let inbox = session.client().new_inbox();
        let beginning = format!("{inbox}.");
        let subscribing = session.client().subscribe(format!("{inbox}.*"));
        let mut acks = tokio::select! {
            acks = subscribing => acks.map_err(|_| Broken::Ended(ended(session)))?,
            why = session.ended() => return Err(Broken::Ended(why)),
            () = tokio::time::sleep_until(until) => return Err(Broken::Late),
        };
        let result = tokio::select! {
            biased;
            result = self.exchange(making, turn, &mut acks, &beginning) => result,
            why = session.ended() => Err(Broken::Ended(why)),
            () = tokio::time::sleep_until(until) => Err(Broken::Late),
        };
        // What has come already counts.
        while let Some(Some(ack)) = acks.next().now_or_never() {
            self.note(&ack, &beginning);
        }
        result
    }

    /// One more message; its number.
    fn take(&mut self, message: Message) -> usize {
        self.messages.push(message);
        self.answers.push(None);
        self.missing += 1;
        self.answers.len() - 1
    }

    async fn exchange(
        &mut self,
        making: &mut (dyn Iterator<Item = Message> + Send),
        turn: Option<MutexGuard<'_, ()>>,
        acks: &mut Subscriber,
        beginning: &str,
    ) -> Result<(), Broken> {
        let mut notices = self.session.notices();
        let client = self.session.client();
        let len_max = client.max_payload();
        for mut message in making {
            let (subject, headers, body) = (
                message.subject.clone(),
                std::mem::take(&mut message.headers),
                message.body.clone(),
            );
            let len = message.len;
            let number = self.take(message);
            if len > len_max {
                let reason = format!("with its headers it has {len} bytes, and the server takes {len_max}");
                self.answer(number, Answer::Refused(reason.into()));
                continue;
            }
            let published =
                client.publish_with_reply_and_headers(subject, format!("{beginning}{number}"), headers, body);
            match published.await.map_err(|error| error.kind()) {
                Ok(()) => {}
                Err(PublishErrorKind::Send) => return Err(Broken::Ended(ended(self.session))),
                Err(kind) => self.answer(number, Answer::Refused(Reason::from(kind.to_string()))),
            }
        }
        drop(turn);
        while self.missing > 0 {
            tokio::select! {
                ack = acks.next() => match ack {
                    Some(ack) => self.note(&ack, beginning),
                    None => return Err(Broken::Ended(ended(self.session))),
                },
                notice = notices.recv() => match notice {
                    Ok(Notice::MayNotPublish(subject)) => self.denied(&subject),
                    Ok(Notice::MayNotListen(subject)) if subject.starts_with(beginning) => {
                        return Err(Broken::Deaf(subject));
                    }
                    Ok(Notice::MayNotListen(_)) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Broken::Ended(ended(self.session))),
                },
            }
        }
        Ok(())
    }

    fn note(&mut self, ack: &async_nats::Message, beginning: &str) {
        let number = ack
            .subject
            .strip_prefix(beginning)
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            self.answer(number, judged(ack, self.secrets));
        }
    }

    /// The first answer is the one.
    fn answer(&mut self, number: usize, answer: Answer) {
        if let Some(place) = self.answers.get_mut(number)
            && place.is_none()
        {
            *place = Some(answer);
            self.missing -= 1;
        }
    }

    fn denied(&mut self, subject: &str) {
        for number in 0..self.messages.len() {
            if self.messages[number].subject == subject {
                self.answer(number, Answer::MayNot);
            }
        }
    }
}

fn ended(session: &Session) -> String {
    session
        .end()
        .unwrap_or_else(|| "the connection to the server was lost".into())
}
