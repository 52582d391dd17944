//! What is reached over HTTP has of the daemon: questions, and orders. Deeds it can't even say.
//!
//! [`Window`] takes what becomes an [`Ask`] or an [`Order`], and there is no way from it to the [`Facade`]: that a [`super::Deed`] is
//! unreachable is checked by the compiler, not by a list that somebody has to keep.
//!
//! ```compile_fail
//! # use closehook::control::{Window, sign::Sign};
//! fn sign(window: &Window, sign: Sign) {
//!     window.order(sign);
//! }
//! ```
//!
//! ```compile_fail
//! # use closehook::control::{Window, backup::Backup};
//! fn back_up(window: &Window, backup: Backup) {
//!     window.ask(backup);
//! }
//! ```
//!
//! ```compile_fail
//! # use closehook::control::{Window, erase::Erase};
//! fn erase(window: &Window, erase: Erase) {
//!     window.order(erase);
//! }
//! ```
//!
//! ```compile_fail
//! # use closehook::control::{Window, transfer::Import};
//! fn import(window: &Window, import: Import) {
//!     window.order(import);
//! }
//! ```
//!
//! What changes something is no question either, so that who may only look can't be given it by mistake:
//!
//! ```compile_fail
//! # use closehook::control::{Window, sinks::Pause};
//! fn pause(window: &Window, pause: Pause) {
//!     window.ask(pause);
//! }
//! ```
//!
//! These are refused for that and for nothing else, as an order that is one shows:
//!
//! ```
//! # use closehook::control::{Window, sinks::Pause};
//! fn pause(window: &Window, pause: Pause) {
//!     window.order(pause);
//! }
//! ```

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::answers::{BUSY, text};
use super::{Answer, Answers, Ask, Facade, Order, Question, Refusal};
use crate::event::Seq;
use crate::task::{self, Task};

/// Answers on their way at the most; a slow reader slows the reading of the log.
const ANSWERS_MAX: usize = 64;

/// Questions that are answered at a time; more wait. Who only follows what is new ([`Window::follow`]) takes no place.
const PLACES: usize = 16;

/// Tries of drafts among them: each may take as long as its program is allowed to, and others would wait behind them.
const TRIES: usize = 2;

/// A question waits so long in all for its turn and its place: those before it may be where nothing gets on, on a disk that does not answer.
const PLACE_WITHIN: Duration = Duration::from_secs(60);

/// Answers may wait so long in all for whoever reads them while their question has a place: others wait for that.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// The daemon, for whoever may ask it and give it orders.
#[derive(Debug, Clone)]
pub struct Window {
    facade: Arc<Facade>,
    places: Arc<Semaphore>,
    tries: Arc<Semaphore>,
    place_within: Duration,
    read_within: Duration,
}

/// The answers to one question, as they come. What is not waited for any more is not looked for any longer, unless it was an order:
/// that is carried out to its end.
#[derive(Debug)]
pub struct Told<T> {
    texts: Texts,
    of: PhantomData<fn() -> T>,
}

/// The same as they are sent. What is for all of them is compiled here once, and not for each type of answer.
#[derive(Debug)]
struct Texts {
    coming: mpsc::Receiver<Answer>,
    answering: Option<Task<Result<(), Refusal>>>,
    is_order: bool,
}

impl Window {
    /// On this daemon.
    pub fn new(facade: Arc<Facade>) -> Window {
        Window {
            facade,
            places: Arc::new(Semaphore::new(PLACES)),
            tries: Arc::new(Semaphore::new(TRIES)),
            place_within: PLACE_WITHIN,
            read_within: READ_WITHIN,
        }
    }

    /// The same for whoever reads within this.
    #[cfg(test)]
    pub(super) fn read_within(self, read_within: Duration) -> Window {
        Window { read_within, ..self }
    }

    /// The same for whoever waits for a place no longer than this.
    #[cfg(test)]
    pub(super) fn place_within(self, place_within: Duration) -> Window {
        Window { place_within, ..self }
    }

    /// Asks what changes nothing.
    pub fn ask<Q: Question + Into<Ask>>(&self, question: Q) -> Told<Q::Answer> {
        Told::of(self.ask_any(question.into()))
    }

    fn ask_any(&self, ask: Ask) -> Texts {
        let (out, coming) = mpsc::channel(ANSWERS_MAX);
        let (facade, places) = (self.facade.clone(), self.places.clone());
        let tries = matches!(ask, Ask::Try(_)).then(|| self.tries.clone());
        let (place_within, read_within) = (self.place_within, self.read_within);
        let answering = task::begin(async move {
            let until = Instant::now() + place_within;
            // First its turn, and then a place: what waits for its turn takes none.
            let _turn = match &tries {
                Some(tries) => Some(place(tries, until).await?),
                None => None,
            };
            let _place = place(&places, until).await?;
            facade.ask(ask, &Answers::new(out).read_within(read_within)).await
        });
        Texts::new(coming, answering, false)
    }

    /// Asks for what is to come, which goes on until the answers are dropped. How many do is for the caller to limit.
    pub fn follow<Q: Question + Into<Ask>>(&self, question: Q) -> Told<Q::Answer> {
        Told::of(self.follow_any(question.into()))
    }

    fn follow_any(&self, ask: Ask) -> Texts {
        let (out, coming) = mpsc::channel(ANSWERS_MAX);
        let facade = self.facade.clone();
        let answering = task::begin(async move { facade.ask(ask, &Answers::new(out)).await });
        Texts::new(coming, answering, false)
    }

    /// The newest event's place in the log.
    pub fn newest(&self) -> Seq {
        *self.facade.log.head().borrow()
    }

    /// The oldest event's place in the log; one past the newest while it keeps none.
    pub fn oldest(&self) -> Seq {
        self.facade.log.first()
    }

    /// The newest event's place, as it moves.
    pub fn head(&self) -> watch::Receiver<Seq> {
        self.facade.log.head()
    }

    /// Orders what somebody who may act may order. Who that is, is for the caller to know.
    pub fn order<Q: Question + Into<Order>>(&self, order: Q) -> Told<Q::Answer> {
        Told::of(self.order_any(order.into()))
    }

    fn order_any(&self, order: Order) -> Texts {
        let (out, coming) = mpsc::channel(ANSWERS_MAX);
        let facade = self.facade.clone();
        let answering = task::begin(async move { facade.order(order, &Answers::new(out)).await });
        Texts::new(coming, answering, true)
    }
}

async fn place(places: &Semaphore, until: Instant) -> Result<SemaphorePermit<'_>, Refusal> {
    match timeout_at(until, places.acquire()).await {
        Ok(place) => place.map_err(text),
        Err(_) => Err(BUSY.to_owned()),
    }
}

/// Is told how it went: its last answer, or what it was refused for.
type Ended = Box<dyn FnOnce(Result<Option<&Answer>, &str>) + Send>;

impl Texts {
    fn new(coming: mpsc::Receiver<Answer>, answering: Task<Result<(), Refusal>>, is_order: bool) -> Texts {
        Texts {
            coming,
            answering: Some(answering),
            is_order,
        }
    }

    fn and_then(mut self, ended: Ended) -> Texts {
        let (out, coming) = mpsc::channel(ANSWERS_MAX);
        let is_order = self.is_order;
        let answering = task::begin(async move {
            let (mut went, mut last) = (Ok(()), None);
            while let Some(answer) = self.next().await {
                match answer {
                    Ok(answer) => {
                        last = Some(answer.clone());
                        // Nobody may wait for it any more: it goes on all the same.
                        drop(out.send(answer).await);
                    }
                    Err(refusal) => went = Err(refusal),
                }
            }
            ended(match &went {
                Ok(()) => Ok(last.as_ref()),
                Err(refusal) => Err(refusal.as_str()),
            });
            went
        });
        Texts::new(coming, answering, is_order)
    }

    async fn next(&mut self) -> Option<Result<Answer, Refusal>> {
        if let Some(answer) = self.coming.recv().await {
            return Some(Ok(answer));
        }
        let answering = self.answering.take()?;
        match answering.await {
            Ok(Ok(())) => None,
            Ok(Err(refusal)) => Some(Err(refusal)),
            Err(_) => Some(Err("the daemon has a defect here: its log says where".to_owned())),
        }
    }

    async fn all(mut self, most: usize) -> Result<Vec<Answer>, Refusal> {
        let mut all = Vec::new();
        while all.len() < most
            && let Some(answer) = self.next().await
        {
            all.push(answer?);
        }
        Ok(all)
    }

    async fn last(mut self) -> Result<Answer, Refusal> {
        let mut last = None;
        while let Some(answer) = self.next().await {
            last = Some(answer?);
        }
        last.ok_or_else(|| "the daemon has no answer to this".to_owned())
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        if let Some(answering) = self.answering.take()
            && !self.is_order
        {
            answering.abort();
        }
    }
}

impl<T: Send + 'static> Told<T> {
    fn of(texts: Texts) -> Told<T> {
        Told { texts, of: PhantomData }
    }

    /// The same answers, for who gets them from here on: `ended` is told how it went, by the last answer or what it was refused for, whether
    /// or not anybody waits for that.
    #[must_use]
    pub fn and_then(self, ended: impl FnOnce(Result<Option<&Answer>, &str>) + Send + 'static) -> Told<T> {
        Told::of(self.texts.and_then(Box::new(ended)))
    }

    /// The same answers for who takes them as they are sent, of whatever type.
    pub fn as_sent(self) -> Told<Answer> {
        Told::of(self.texts)
    }

    /// The next answer as it is sent; `None` at the end.
    pub async fn next_text(&mut self) -> Option<Result<Answer, Refusal>> {
        self.texts.next().await
    }

    /// Whether nothing more is answered.
    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.texts.answering.as_ref().is_none_or(Task::is_finished)
    }

    /// Every answer as it is sent, so many at the most.
    pub async fn texts(self, most: usize) -> Result<Vec<Answer>, Refusal> {
        self.texts.all(most).await
    }

    /// The last answer as it is sent: the others say how it got on.
    pub async fn last_text(self) -> Result<Answer, Refusal> {
        self.texts.last().await
    }
}

impl<T: DeserializeOwned + Send + 'static> Told<T> {
    /// The next answer; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<T, Refusal>> {
        Some(self.next_text().await?.and_then(|answer| read(&answer)))
    }

    /// Every answer, so many at the most.
    pub async fn all(self, most: usize) -> Result<Vec<T>, Refusal> {
        let texts = self.texts(most).await?;
        texts.iter().map(read).collect()
    }

    /// The last answer: the others say how it got on.
    pub async fn last(self) -> Result<T, Refusal> {
        read(&self.last_text().await?)
    }
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Refusal> {
    serde_json::from_slice(answer.get().as_bytes()).map_err(text)
}
