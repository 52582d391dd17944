//! `nats`: messages to a stream of NATS JetStream, published together, each acknowledged.
//!
//! At least once; `Nats-Msg-Id` is the event's key, by which JetStream drops repeats within the stream's duplicate window. The body is what
//! Close sent, or what a template or transform made of it.
//!
//! | what fails | what happens |
//! |---|---|
//! | no connection, refused credentials, a lost connection | the sink waits; what was acknowledged counts, the rest is published again with the same id |
//! | no acknowledgement in time (a server that stands still, a stream without acknowledgements) | the same, over a new connection |
//! | nobody listens on the subject, no right to publish there | the sink waits; where the event has chosen the subject that event is refused |
//! | a stream that elects its leader | the sink waits, whoever has chosen the subject |
//! | the stream, the account or the server is full | the sink waits |
//! | too large, a subject that can't be one, a header that can't be sent | that event is refused, the others go |
//! | this process is killed between acknowledgement and mark | the messages are published again with the same id |
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it and its keys |
//! | `options` | what a table means |
//! | `message` | an event as a message |
//! | `publish` | one exchange: messages out, answers in |
//! | `answer` | what an answer means |
//! | `listening` | who listens on a subject |

mod answer;
pub(super) mod definition;
mod listening;
mod message;
mod options;
mod publish;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use self::answer::Answer;
use self::listening::{Listening, configuration, greeted, listening};
use self::message::{Making, Message, body, headers_of, shown};
use self::options::Options;
use self::publish::{Broken, Exchange};
use super::common::secrets::Secrets;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Opened, Outcome, Preview, Reason, Sink, SinkKind, Unavailable,
};
use crate::event::Delivery;
use crate::net::nats::Session;
use crate::render::Template;
use crate::sync::lock;

/// Subjects of a batch of which it is asked who listens.
const ASKED_MAX: usize = 16;

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            // While one is waited for the next one is published.
            concurrency: 2,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.way().map_or_else(Some, |way| way.fault())
    }

    fn warning(&self) -> Option<String> {
        let is_readable = self.way().is_ok_and(|way| way.is_readable());
        let text = "whoever can read the network can read its password or token: say tls:// in servers";
        is_readable.then(|| text.to_owned())
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        body(delivery).clone()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let message = Message::of(0, delivery, &self.subject)?;
        Ok(Preview {
            subject: Some(message.subject),
            ..Preview::new(headers_of(delivery)?, message.body)
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        vec![("subject".to_owned(), self.subject.clone())]
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.secrets();
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let sink: Box<dyn Sink> = Box::new(Nats::new(self, &context));
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        Nats::new(self, &context).probe().await
    }
}

struct Nats {
    options: Options,
    /// How long a call may take: whoever gives up first says best why.
    patience: Duration,
    is_strict: bool,
    /// Whoever publishes has it, so that messages of calls at the same time come one call after the other, as these began.
    turn: Mutex<()>,
    trouble: std::sync::Mutex<Trouble>,
    link: Mutex<Option<Arc<Link>>>,
    /// The server that is tried first.
    first: AtomicUsize,
    /// JetStream has acknowledged something.
    is_known: AtomicBool,
    /// It has answered a question.
    has_api: AtomicBool,
}

/// What kept calls from publishing, last: whoever waited for them meanwhile does not try the same.
#[derive(Debug, Default, Clone)]
struct Trouble {
    count: u64,
    why: String,
}

/// A session, and what is hidden in what the server says in it.
struct Link {
    session: Session,
    secrets: Secrets,
}

/// What becomes of a message that is not delivered.
enum Fate {
    Refused(Reason),
    /// It waits; the sink does.
    Waits(String),
    /// It waits, for what its event has chosen.
    WaitsAlone(String),
}

impl Nats {
    fn new(options: &Options, context: &Context) -> Nats {
        Nats {
            options: options.clone(),
            patience: context.timeout.mul_f64(0.9),
            is_strict: context.is_strict,
            turn: Mutex::new(()),
            trouble: std::sync::Mutex::default(),
            link: Mutex::new(None),
            first: AtomicUsize::new(0),
            is_known: AtomicBool::new(false),
            has_api: AtomicBool::new(false),
        }
    }

    /// The session at hand, or a new one. Whoever waits for others that connect waits no longer than until then.
    async fn link(&self, until: Instant) -> Result<Arc<Link>, Unavailable> {
        let late = || Unavailable::new("no connection to the server came about in time");
        let mut kept = timeout_at(until, self.link.lock()).await.map_err(|_| late())?;
        let usable = kept.take().filter(|link| link.session.end().is_none());
        // One that is about to stop takes nobody new, and still works.
        let leaving = match usable {
            Some(link) if !link.session.is_leaving() => {
                *kept = Some(link.clone());
                return Ok(link);
            }
            leaving => leaving,
        };
        let until = match leaving {
            Some(_) => until.min(Instant::now() + self.patience / 3),
            None => until,
        };
        let link = match (self.connect(until).await, leaving) {
            (Ok(link), _) | (Err(_), Some(link)) => link,
            (Err(why), None) => return Err(why),
        };
        *kept = Some(link.clone());
        Ok(link)
    }

    async fn connect(&self, until: Instant) -> Result<Arc<Link>, Unavailable> {
        let way = self.options.way().map_err(Unavailable::new)?;
        let secrets = self.options.secrets();
        let connected = way.connect(self.first.load(Ordering::Relaxed), until).await;
        let session = connected.map_err(|why| {
            let why = secrets.hidden_in(&why);
            Unavailable::new(format!("the server can't be reached: {why}"))
        })?;
        self.first.store(session.number(), Ordering::Relaxed);
        match greeted(&session, until).await {
            Ok(answers) => drop(self.has_api.fetch_or(answers, Ordering::Relaxed)),
            Err(subject) => return Err(Unavailable::new(deaf(&subject))),
        }
        Ok(Arc::new(Link { session, secrets }))
    }

    /// Notes what keeps this call from publishing.
    fn is_troubled(&self, why: &str) {
        let mut trouble = lock(&self.trouble);
        trouble.count += 1;
        why.clone_into(&mut trouble.why);
    }

    /// Publishes messages together as they are made, and gives them with what became of each and what stopped it. `turn` is over when all
    /// are on their way.
    async fn publish(
        &self,
        link: &Link,
        making: &mut (dyn Iterator<Item = Message> + Send),
        turn: Option<MutexGuard<'_, ()>>,
        until: Instant,
    ) -> (Vec<Message>, Vec<Option<Answer>>, Option<String>) {
        let mut exchange = Exchange::new(&link.session, &link.secrets);
        let result = exchange.run(making, turn, until).await;
        let (messages, answers) = (exchange.messages, exchange.answers);
        let why = match result {
            Ok(()) => return (messages, answers, None),
            Err(Broken::Ended(why)) => why,
            Err(Broken::Deaf(subject)) => deaf(&subject),
            Err(Broken::Late) => LATE.to_owned(),
        };
        // Nothing more is asked over it; the next server has its turn.
        link.session.give_up(&why);
        self.first.store(link.session.number() + 1, Ordering::Relaxed);
        let why = link.secrets.hidden_in(&why);
        self.is_troubled(&why);
        (messages, answers, Some(why))
    }

    /// What becomes of a message to whose subject nobody listens.
    fn unheard(&self, message: &Message, listening: &Listening) -> Fate {
        let subject = shown(&message.subject);
        let varies = message.subject_varies;
        // It works, and nobody answers questions: it is that of another domain or account, which has streams of its own for this one.
        let is_elsewhere = self.is_known.load(Ordering::Relaxed) && !self.has_api.load(Ordering::Relaxed);
        match listening {
            Listening::Stream(name) => Fate::Waits(format!("the stream {} has no leader now", shown(name))),
            Listening::Nobody if varies => Fate::Refused(Reason {
                text: "no stream takes messages on the subject that the event has chosen".into(),
                answer: Some(subject),
            }),
            Listening::NoJetStream if !(varies && is_elsewhere) => Fate::Waits(
                "JetStream does not answer there: turn it on in the server, and for this account".into(),
            ),
            Listening::MayNotAsk | Listening::NoJetStream if varies => Fate::WaitsAlone(
                "nobody listens on the subject that the event has chosen, and whether a stream should can't be asked: allow the user to publish \
                 to $JS.API.STREAM.NAMES"
                    .into(),
            ),
            Listening::NotAsked => {
                Fate::WaitsAlone("nobody listens on the subject that the event has chosen, like many others".into())
            }
            Listening::Unknown if varies => {
                Fate::Waits("nobody listens on the subject that the event has chosen, and JetStream gives no answer now".into())
            }
            Listening::Unknown => Fate::Waits(format!(
                "nobody takes messages on {subject} now, and JetStream gives no answer: has the cluster a leader?"
            )),
            _ => Fate::Waits(format!(
                "no stream takes messages on {subject}: make one (nats stream add), or see subject"
            )),
        }
    }

    /// What becomes of those that were not taken.
    async fn fates(
        &self,
        session: &Session,
        messages: &[Message],
        answers: Vec<Option<Answer>>,
        stopped: Option<&str>,
        until: Instant,
    ) -> Vec<Option<Fate>> {
        let mut asked: HashMap<&str, Listening> = HashMap::new();
        let mut fates = Vec::with_capacity(messages.len());
        for (message, answer) in messages.iter().zip(answers) {
            fates.push(match answer {
                Some(Answer::Taken) => {
                    self.is_known.store(true, Ordering::Relaxed);
                    None
                }
                Some(Answer::Refused(reason)) => Some(Fate::Refused(reason)),
                Some(Answer::Stopped(why)) => Some(Fate::Waits(why)),
                Some(Answer::MayNot) if message.subject_varies => Some(Fate::Refused(Reason {
                    text: "the user may not publish to the subject that the event has chosen".into(),
                    answer: Some(shown(&message.subject)),
                })),
                Some(Answer::MayNot) => Some(Fate::Waits(format!(
                    "the user may not publish to {}: allow it in the server's permissions",
                    shown(&message.subject)
                ))),
                Some(Answer::Nobody) => {
                    let known = asked.get(message.subject.as_str()).cloned();
                    let listening = match known {
                        Some(known) => known,
                        None if asked.len() < ASKED_MAX => listening(session, &message.subject, until).await,
                        None => Listening::NotAsked,
                    };
                    asked.insert(&message.subject, listening.clone());
                    Some(self.unheard(message, &listening))
                }
                None => Some(Fate::Waits(stopped.unwrap_or("it was not published").to_owned())),
            });
        }
        fates
    }

    /// Publishes nothing.
    async fn probe(&self) -> Result<String, Unavailable> {
        let until = Instant::now() + self.patience;
        let link = self.link(until).await?;
        let session = &link.session;
        let place = session.place();
        if !self.options.subject.is_constant() {
            return match listening(session, "closehook.probe", until).await {
                Listening::NoJetStream => Err(Unavailable::new(
                    "JetStream does not answer there: turn it on in the server, and for this account",
                )),
                _ => Ok(format!(
                    "connected to {place}; its subjects depend on the event and were not looked at"
                )),
            };
        }
        let subject = self.options.subject.source();
        let stream = match listening(session, subject, until).await {
            Listening::Stream(name) => name,
            Listening::MayNotAsk => {
                return Ok(format!(
                    "connected to {place}; which stream takes {subject} can't be seen: the user may not publish to $JS.API.STREAM.NAMES"
                ));
            }
            Listening::Unknown | Listening::NotAsked => {
                return Err(Unavailable::new("JetStream gives no answer: has the cluster a leader?"));
            }
            Listening::NoJetStream => {
                return Err(Unavailable::new(
                    "JetStream does not answer there: turn it on in the server, and for this account",
                ));
            }
            Listening::Nobody => {
                return Err(Unavailable::new(format!(
                    "no stream takes messages on {subject}: make one (nats stream add), or see subject"
                )));
            }
        };
        let Some(config) = configuration(session, &stream, until).await else {
            return Ok(format!("the stream {} takes {subject}", shown(&stream)));
        };
        let stream = shown(&stream);
        if config.no_ack {
            let why = format!("the stream {stream} acknowledges nothing (no_ack): turn that off");
            return Err(Unavailable::new(why));
        }
        if config.sealed {
            return Err(Unavailable::new(format!("the stream {stream} is sealed")));
        }
        let window = Duration::from_nanos(config.duplicate_window).as_secs();
        Ok(format!(
            "the stream {stream} takes {subject}, and knows a repeat for {window} s"
        ))
    }
}

const LATE: &str = "the server did not acknowledge in time: is it overloaded, does the stream acknowledge (no_ack), and is it a stream that \
     listens on the subject?";

/// What is said of a user who may not hear.
fn deaf(subject: &str) -> String {
    let beginning = subject.rsplit_once('.').map_or(subject, |(beginning, _)| beginning);
    let beginning = beginning.split('.').next().unwrap_or_default();
    format!("the user may not subscribe to {beginning}.>, where acknowledgements come: allow it, or set inbox_prefix")
}

/// What the fates come to. Where nothing was delivered and the sink has to wait, no event has tried.
fn outcomes(places: &mut [Outcome], fates: Vec<(usize, Option<Fate>)>) -> Option<Unavailable> {
    let mut waits = None;
    let mut any = false;
    for (index, fate) in fates {
        let later = |reason: String| Outcome::Retry {
            reason: reason.into(),
            after: None,
        };
        places[index] = match fate {
            None => {
                any = true;
                Outcome::Delivered
            }
            Some(Fate::Refused(reason)) => Outcome::Reject { reason },
            Some(Fate::WaitsAlone(why)) => later(why),
            Some(Fate::Waits(why)) => {
                waits.get_or_insert_with(|| why.clone());
                Outcome::Waits(Unavailable::new(why))
            }
        };
    }
    waits.filter(|_| !any).map(Unavailable::new)
}

#[async_trait]
impl Sink for Nats {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let before = lock(&self.trouble).count;
        let mut turn = Some(self.turn.lock().await);
        let trouble = lock(&self.trouble).clone();
        if trouble.count != before {
            return Err(Unavailable::new(trouble.why));
        }
        let until = Instant::now() + self.patience;
        let waiting = Outcome::Untried {
            reason: "it waits behind another event".into(),
        };
        let mut places = vec![waiting; batch.deliveries().len()];
        let mut fates = Vec::with_capacity(places.len());
        let mut making = Making::new(batch.deliveries(), &self.options.subject);
        if making.has_more() {
            let linked = self.link(until).await;
            let link = linked.inspect_err(|unavailable| self.is_troubled(&unavailable.reason))?;
            // Nothing may go before one that waits: then they go one by one, and those of another call after all of these.
            let together = if self.is_strict { 1 } else { usize::MAX };
            let _whole_turn = if self.is_strict { turn.take() } else { None };
            while making.has_more() {
                let mut part = making.by_ref().take(together);
                let (messages, answers, stopped) = self.publish(&link, &mut part, turn.take(), until).await;
                let part_fates = self
                    .fates(&link.session, &messages, answers, stopped.as_deref(), until)
                    .await;
                fates.extend(messages.iter().map(|message| message.index).zip(part_fates));
                let has_to_wait = |fate: &Option<Fate>| matches!(fate, Some(Fate::Waits(_) | Fate::WaitsAlone(_)));
                if fates.last().is_some_and(|(_, fate)| has_to_wait(fate)) && self.is_strict {
                    break;
                }
            }
        }
        for (index, reason) in making.refused {
            places[index] = Outcome::Reject { reason };
        }
        match outcomes(&mut places, fates) {
            Some(unavailable) => Err(unavailable),
            None => Ok(places),
        }
    }
}

#[cfg(test)]
mod tests;
