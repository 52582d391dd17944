//! Dead letters that several nodes share: what others write is followed, and letters of a sink that another node drives are tried there.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::driving::ANSWER_WITHIN;
use super::engine::Engine;
use super::letters::{self, Letters};
use super::types::{EngineError, Mode, RetryProgress};
use crate::event::Seq;
use crate::node::{self, Lease};
use crate::sync::lock;

/// How often it is looked what other nodes have written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Letters of a node of an older version are tried to be taken over so often at a start, and then now and then.
const IMPORTS: u32 = 20;

/// Letters that another node is asked to try at a time: an order is one message.
const ORDER_MAX: usize = 2048;

/// Whoever is asked answers within this, whatever has come of it by then: who asks waits longer.
const TELL_WITHIN: Duration = Duration::from_secs(8);

/// So long it is not said that nobody answers.
const SILENT_MAX: u32 = 3;

/// An order to try letters.
#[derive(Debug, Serialize, Deserialize)]
struct RetryOrder {
    seqs: Vec<Seq>,
}

/// What has come of it.
#[derive(Debug, Serialize, Deserialize)]
struct RetryAnswer {
    delivered: u64,
    elsewhere: u64,
    /// Of these nothing is known yet, or they are still dead.
    left: Vec<Seq>,
    is_over: bool,
    why: Option<String>,
}

impl Engine {
    /// Finds the letters that nodes share; letters that this machine has kept alone go there. Where that can't be done now it is later.
    pub(super) async fn begin_sharing_letters(&self) {
        if self.inner.desk.is_none() {
            return;
        }
        let engine = self.clone();
        let begun = tokio::task::spawn_blocking(move || {
            if let Err(error) = engine.find_letters() {
                tracing::error!(%error, "this is tried again");
            }
            engine.import_patiently();
            let all = lock(&engine.inner.letters).clone();
            for (sink, letters) in all {
                if let Err(error) = letters.read() {
                    tracing::error!(sink, %error, "the sink's dead letters can't be read; it waits for them");
                }
            }
        });
        if let Err(error) = begun.await {
            tracing::error!(%error, "what looked for dead letters has ended");
        }
    }

    /// Blocking.
    fn import_patiently(&self) {
        for round in 1..=IMPORTS {
            if self.import_letters() {
                return;
            }
            if round < IMPORTS {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Takes over what an older closehook kept on this machine; whether nothing is left. Blocking.
    fn import_letters(&self) -> bool {
        let Some(desk) = self.inner.desk.as_ref().filter(|_| self.inner.mode == Mode::Follow) else {
            return true;
        };
        let dir = &self.inner.dead_dir;
        if letters::is_imported(dir).is_ok_and(|is| is) {
            return true;
        }
        match letters::import(dir, desk) {
            Ok(count) => {
                tracing::warn!(
                    count,
                    dir = %dir.display(),
                    "dead letters that were kept on this machine are in the stream now, where all nodes know them"
                );
                true
            }
            Err(error) => {
                tracing::error!(
                    dir = %dir.display(),
                    error,
                    "dead letters are kept on this machine alone, and can't be taken over into the stream now; this is tried again"
                );
                false
            }
        }
    }

    /// Knows what other nodes write, until the engine stops.
    pub(super) async fn follow_letters(self) {
        let mut round = 0_u64;
        loop {
            let engine = self.clone();
            let is_long = round % 10 == 9;
            let looked = tokio::task::spawn_blocking(move || {
                if is_long {
                    // What can't be looked at now is with the next round.
                    let _ = engine.find_letters();
                    engine.import_letters();
                }
                let all = lock(&engine.inner.letters).clone();
                for letters in all.values() {
                    // What is wrong is shown with the sink.
                    let _ = letters.read();
                }
            });
            let _ = looked.await;
            round += 1;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The lease under which this node has a sink; 0: none.
    pub(super) fn fence_of(&self, sink: &str) -> u64 {
        let lease = self.inner.leases.lease(&node::of_sink(sink));
        lease.as_ref().map_or(0, Lease::fence)
    }

    /// Before a sink begins here: see [`Letters::take_over`]. The worker does it as well, as often as it has to.
    pub(super) async fn take_letters_over(&self, sink: &str, letters: &Letters, fence: u64) {
        let letters = letters.clone();
        let taken = tokio::task::spawn_blocking(move || letters.take_over(fence)).await;
        if let Ok(Err(error)) = taken {
            tracing::warn!(sink, %error, "the sink's dead letters can't be taken over now; this is tried again");
        }
    }

    /// Has the node that drives a sink try letters, some at a time; how that gets on is known as it says so.
    pub(super) fn retry_afar(&self, sink: &str, seqs: Vec<Seq>) -> Arc<RetryProgress> {
        let progress = Arc::new(RetryProgress::new(seqs.len() as u64));
        let (engine, sink, told) = (self.clone(), sink.to_owned(), progress.clone());
        tokio::spawn(async move {
            for some in seqs.chunks(ORDER_MAX) {
                engine.retry_some_afar(&sink, some.to_vec(), &told).await;
            }
        });
        progress
    }

    async fn retry_some_afar(&self, sink: &str, mut left: Vec<Seq>, told: &RetryProgress) {
        let mut silent = 0;
        let mut why = String::new();
        while !left.is_empty() && silent < SILENT_MAX {
            let answer = self.ask_for_retry(sink, &left).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    silent += 1;
                    why = error;
                    continue;
                }
            };
            silent = 0;
            // Who asks again asks for what is still being tried as well.
            let of_now = left.len() as u64;
            let gone = of_now.saturating_sub(answer.left.len() as u64);
            told.count_many(answer.delivered.min(gone), answer.elsewhere);
            why = answer.why.unwrap_or_default();
            left = answer.left;
            if answer.is_over {
                break;
            }
        }
        for _ in left {
            told.count(false, &why);
        }
    }

    async fn ask_for_retry(&self, sink: &str, seqs: &[Seq]) -> Result<RetryAnswer, String> {
        let order = serde_json::json!({ "retry_dead": RetryOrder { seqs: seqs.to_vec() } });
        let asked = self.inner.leases.ask(&node::of_sink(sink), order, ANSWER_WITHIN).await;
        serde_json::from_value(asked?).map_err(|error| error.to_string())
    }

    /// Tries letters for another node. Answers in time, and may be asked again for what is left: what is being tried is waited for then.
    pub(super) async fn retry_for_another(&self, sink: &str, order: &Value) -> Result<Value, String> {
        let order: RetryOrder = serde_json::from_value(order.clone()).map_err(|error| error.to_string())?;
        let text = |error: EngineError| error.to_string();
        let letters = self.read_letters_of(sink).await.map_err(text)?;
        let (there, gone): (Vec<Seq>, Vec<Seq>) = order.seqs.into_iter().partition(|seq| letters.has(*seq));
        let progress = self.dead_retry(sink, there.clone()).await.map_err(text)?;
        let until = tokio::time::Instant::now() + TELL_WITHIN;
        let is_over = || {
            let (total, delivered, failed) = progress.counts();
            delivered + failed >= total && progress.elsewhere() == 0
        };
        while !is_over() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // A letter is delivered when it has gone, and not before.
        let left: Vec<Seq> = there.iter().copied().filter(|seq| letters.has(*seq)).collect();
        let answer = RetryAnswer {
            delivered: (there.len() - left.len()) as u64 + gone.len() as u64,
            elsewhere: 0,
            left,
            is_over: is_over(),
            why: progress.why(),
        };
        serde_json::to_value(answer).map_err(|error| error.to_string())
    }
}
