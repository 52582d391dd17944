//! How answers travel: a stream of JSON texts, each of the type that its question has.

use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

/// An answer on its way. Text, so that numbers in it stay as they are written.
pub type Answer = Box<RawValue>;

/// Why something was not answered, one sentence; empty where nobody listens any more.
pub type Refusal = String;

/// Any error as a refusal.
pub(super) fn text(error: impl std::fmt::Display) -> Refusal {
    error.to_string()
}

/// Where answers go; a closed one means that nobody listens any more.
#[derive(Debug, Clone)]
pub struct Answers(Sender<Answer>);

impl Answers {
    /// Answers go there.
    pub fn new(to: Sender<Answer>) -> Answers {
        Answers(to)
    }

    /// The same, for answers of one type.
    pub(super) fn of<T>(&self) -> Out<'_, T> {
        Out {
            to: &self.0,
            of: PhantomData,
        }
    }
}

/// Where the answers to one question go.
#[derive(Debug)]
pub(super) struct Out<'a, T> {
    to: &'a Sender<Answer>,
    of: PhantomData<fn(&T)>,
}

impl<T: Serialize> Out<'_, T> {
    /// Gives an answer, and waits while too many are on their way.
    pub async fn say(&self, answer: &T) -> Result<(), Refusal> {
        let answer = to_raw_value(answer).map_err(text)?;
        self.to.send(answer).await.map_err(|_| Refusal::new())
    }

    /// Gives an answer of the same type as it was given elsewhere.
    pub async fn repeat(&self, answer: Answer) -> Result<(), Refusal> {
        self.to.send(answer).await.map_err(|_| Refusal::new())
    }

    /// The same where the thread may wait, but only so long: whoever listens may have stopped to read.
    pub fn say_within(&self, answer: &T, within: Duration) -> std::io::Result<()> {
        let sent = self.to.send(to_raw_value(answer)?);
        match Handle::current().block_on(async { tokio::time::timeout(within, sent).await }) {
            Ok(sent) => sent.map_err(|_| std::io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Says how it gets on, which may be dropped.
    pub fn mention(&self, answer: &T) {
        if let Ok(answer) = to_raw_value(answer) {
            let _ = self.to.try_send(answer);
        }
    }

    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.to.closed().await;
    }

    /// For a thread that answers by itself.
    pub fn detached(&self) -> Answers {
        Answers(self.to.clone())
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
