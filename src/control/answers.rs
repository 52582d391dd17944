//! How answers travel: a stream of JSON texts, each of the type that its question has.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use crate::sync::lock;

/// An answer on its way. Text, so that numbers in it stay as they are written.
pub type Answer = Box<RawValue>;

/// Why something was not answered, one sentence; empty where nobody listens any more. That there is no such thing is known, and no
/// refusal, where a question says so: it has no answers then.
pub type Refusal = String;

/// Why what has waited for its turn is not answered.
pub(super) const BUSY: &str = "too much is asked at once, and what was asked before gets on too slowly: ask again, or see whether the disk answers";

/// Any error as a refusal.
pub(super) fn text(error: impl std::fmt::Display) -> Refusal {
    error.to_string()
}

/// Where answers go; a closed one means that nobody listens any more.
#[derive(Debug, Clone)]
pub struct Answers {
    to: Sender<Answer>,
    /// How long it may still be waited for whoever reads them; `None`: as long as somebody listens.
    patience: Option<Arc<Mutex<Duration>>>,
}

impl Answers {
    /// Answers go there.
    pub fn new(to: Sender<Answer>) -> Answers {
        Answers { to, patience: None }
    }

    /// The same for whoever reads them so fast that they do not wait for longer than this in all: what is asked holds a place.
    #[must_use]
    pub(super) fn read_within(self, within: Duration) -> Answers {
        Answers {
            patience: Some(Arc::new(Mutex::new(within))),
            ..self
        }
    }

    /// The same, for answers of one type.
    pub(super) fn of<T>(&self) -> Out<'_, T> {
        Out {
            answers: self,
            of: PhantomData,
        }
    }

    async fn send_made(&self, answer: serde_json::Result<Answer>) -> Result<(), Refusal> {
        self.send(answer.map_err(text)?).await
    }

    async fn send(&self, answer: Answer) -> Result<(), Refusal> {
        let gone = |_| Refusal::new();
        let answer = match self.to.try_send(answer) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(Refusal::new()),
            Err(TrySendError::Full(answer)) => answer,
        };
        let Some(patience) = &self.patience else {
            return self.to.send(answer).await.map_err(gone);
        };
        let (began, left) = (Instant::now(), *lock(patience));
        let sent = tokio::time::timeout(left, self.to.send(answer)).await;
        let mut left = lock(patience);
        *left = left.saturating_sub(began.elapsed());
        match sent {
            Ok(sent) => sent.map_err(gone),
            Err(_) => Err("what was found was not read in time: ask again".to_owned()),
        }
    }
}

/// Where the answers to one question go.
#[derive(Debug)]
pub(super) struct Out<'a, T> {
    answers: &'a Answers,
    of: PhantomData<fn(&T)>,
}

impl<'a, T: Serialize> Out<'a, T> {
    /// Gives an answer, and waits while too many are on their way.
    // The waiting is compiled once, and not for each type of answer.
    pub fn say(&self, answer: &T) -> impl Future<Output = Result<(), Refusal>> + use<'a, T> {
        let answers: &'a Answers = self.answers;
        answers.send_made(to_raw_value(answer))
    }

    /// Gives an answer of the same type as it was given elsewhere.
    pub async fn repeat(&self, answer: Answer) -> Result<(), Refusal> {
        self.answers.send(answer).await
    }

    /// The same where the thread may wait, but only so long: whoever listens may have stopped to read.
    pub fn say_within(&self, answer: &T, within: Duration) -> std::io::Result<()> {
        let sent = self.answers.to.send(to_raw_value(answer)?);
        match Handle::current().block_on(async { tokio::time::timeout(within, sent).await }) {
            Ok(sent) => sent.map_err(|_| std::io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Says how it gets on, which may be dropped.
    pub fn mention(&self, answer: &T) {
        if let Ok(answer) = to_raw_value(answer) {
            let _ = self.answers.to.try_send(answer);
        }
    }

    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.answers.to.is_closed()
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.answers.to.closed().await;
    }

    /// For a thread that answers by itself.
    pub fn detached(&self) -> Answers {
        self.answers.clone()
    }
}

/// It is done, and there is nothing more to say.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Done {
    /// True.
    pub ok: bool,
}

impl Default for Done {
    fn default() -> Done {
        Done { ok: true }
    }
}
