//! Dead letters that several nodes share: what others write is followed, and letters of a sink that another node drives are tried there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::driving::ANSWER_WITHIN;
use super::engine::Engine;
use super::letters::{self, Letters};
use super::reading::aside;
use super::types::{Mode, RetryProgress};
use crate::event::Seq;
use crate::log;
use crate::node::{self, Lease};
use crate::sync::lock;
use crate::task;

/// How often it is looked what other nodes have written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Letters of a node of an older version are tried to be taken over so often at a start, and then now and then.
const IMPORTS: u32 = 20;

/// Letters that another node is asked to try at a time: an order is one message.
const ORDER_MAX: usize = 2048;

/// Whoever is asked answers within this, whatever has come of it by then: who asks waits longer.
const TELL_WITHIN: Duration = Duration::from_secs(8);

/// How often it is looked how it gets on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// So often nobody may answer.
const SILENT_MAX: u32 = 3;

/// What came of a retry for another node is remembered so long.
const RETRIES_KEPT: Duration = Duration::from_secs(600);

/// An order to try letters, or, said again, to say how that gets on.
#[derive(Debug, Serialize, Deserialize)]
struct RetryOrder {
    /// Tells it from every other one.
    id: String,
    seqs: Vec<Seq>,
}

/// What has come of it so far.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct RetryAnswer {
    delivered: u64,
    failed: u64,
    elsewhere: u64,
    #[serde(default)]
    gone: u64,
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
        let begun = task::begin_blocking(move || {
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
        let data_dir = dir.parent().unwrap_or(dir);
        // Those of a log that was copied from here went with it. What became of them there is newer.
        match letters::is_imported(dir).and_then(|is_imported| Ok(is_imported || log::moved(data_dir)?.is_some())) {
            Ok(false) => {}
            Ok(true) => return true,
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "whether dead letters were taken over from here can't be seen; this is tried again");
                return false;
            }
        }
        // Seqs of another log are other events. Nobody serves such a directory without a word.
        let own = log::identity(data_dir);
        match own {
            Ok(None) => {}
            Ok(Some((id, epoch))) if id == self.inner.log.id() && epoch == self.inner.log.epoch() => {}
            Ok(Some(_)) => return true,
            Err(error) => {
                tracing::error!(dir = %data_dir.display(), %error, "whether a log is kept here can't be seen; this is tried again");
                return false;
            }
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
            let looked = task::begin_blocking(move || {
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
        let taken = aside(move || letters.take_over(fence).map_err(|error| error.to_string())).await;
        if let Err(error) = taken.flatten() {
            tracing::warn!(sink, %error, "the sink's dead letters can't be taken over now; this is tried again");
        }
    }

    /// Has the node that drives a sink try letters, some at a time; how that gets on is known as it says so.
    pub(super) fn retry_afar(&self, sink: &str, seqs: Vec<Seq>) -> Arc<RetryProgress> {
        let progress = Arc::new(RetryProgress::new(seqs.len() as u64));
        let (engine, sink, told) = (self.clone(), sink.to_owned(), progress.clone());
        task::begin(async move {
            for some in seqs.chunks(ORDER_MAX) {
                engine.retry_some_afar(&sink, some.to_vec(), &told).await;
            }
        });
        progress
    }

    async fn retry_some_afar(&self, sink: &str, seqs: Vec<Seq>, told: &RetryProgress) {
        let mut random = [0; 8];
        let id = getrandom::fill(&mut random).map(|()| hex::encode(random));
        let (mut silent, mut known) = (0, RetryAnswer::default());
        let count = seqs.len() as u64;
        let order = id.map(|id| serde_json::json!({ "retry_dead": RetryOrder { id, seqs } }));
        while !known.is_over && silent < SILENT_MAX {
            let asked = match &order {
                Ok(order) => self.ask_for_retry(sink, order).await,
                Err(error) => Err(error.to_string()),
            };
            match asked {
                Ok(answer) => {
                    silent = 0;
                    let new = |now: u64, before: u64| now.saturating_sub(before);
                    let delivered = new(answer.delivered, known.delivered);
                    let failed = new(answer.failed, known.failed);
                    told.count_many(delivered, failed, answer.why.as_deref());
                    known = answer;
                }
                Err(why) => {
                    silent += 1;
                    known.why = Some(why);
                }
            }
        }
        told.leave(known.elsewhere);
        told.pass_gone(known.gone);
        let counted = known.delivered + known.failed + known.elsewhere + known.gone;
        let why = known.why.unwrap_or_else(|| "nobody said what became of it".into());
        told.count_many(0, count.saturating_sub(counted), Some(&why));
    }

    async fn ask_for_retry(&self, sink: &str, order: &Value) -> Result<RetryAnswer, String> {
        let asked = self
            .inner
            .leases
            .ask(&node::of_sink(sink), order.clone(), ANSWER_WITHIN)
            .await;
        serde_json::from_value(asked?).map_err(|error| error.to_string())
    }

    /// Tries letters for another node. Answers in time, and is asked again until it is over.
    pub(super) async fn retry_for_another(&self, sink: &str, order: &Value) -> Result<Value, String> {
        let order: RetryOrder = serde_json::from_value(order.clone()).map_err(|error| error.to_string())?;
        let known = {
            let mut retries = lock(&self.inner.retries);
            retries.retain(|_, (since, _)| since.elapsed() < RETRIES_KEPT);
            retries.get(&order.id).map(|(_, progress)| progress.clone())
        };
        let progress = if let Some(progress) = known {
            progress
        } else {
            let begun = self.retry_here(sink, order.seqs).await;
            let progress = begun.map_err(|error| error.to_string())?;
            lock(&self.inner.retries).insert(order.id, (Instant::now(), progress.clone()));
            progress
        };
        let is_over = || {
            let (total, delivered, failed) = progress.counts();
            delivered + failed >= total
        };
        let until = Instant::now() + TELL_WITHIN;
        while !is_over() && Instant::now() < until {
            tokio::time::sleep(ASK_EVERY).await;
        }
        let is_over = is_over();
        let (_, delivered, failed) = progress.counts();
        let answer = RetryAnswer {
            delivered,
            failed,
            elsewhere: progress.elsewhere(),
            gone: progress.gone(),
            is_over,
            why: progress.why(),
        };
        serde_json::to_value(answer).map_err(|error| error.to_string())
    }
}
