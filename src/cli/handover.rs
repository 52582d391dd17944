//! The data directory as a command has it that works without a daemon; and how it gives way to a daemon that starts meanwhile, whatever
//! the command is at: what it asks then is asked there.
//!
//! What is under way may end by itself, for so long; then the directory is closed in good order. Whoever waits for an answer that did not
//! come by then hears so, and asks the daemon.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Failure, Outcome, report};
use crate::admin::socket;
use crate::app;
use crate::control::{self, Answer, Deed, Facade, Order, Refusal, Request};
use crate::sync::lock;
use crate::task;

/// What is under way may end by itself within this: less than a daemon that starts waits.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// The same of what can't be asked once more.
const ONCE_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A daemon that has wanted the directory answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// So often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is said in answer to a question.
pub(super) enum Said {
    Answer(Answer),
    /// It ends with this.
    Refusal(Refusal),
    /// It ends here, for a daemon wants the directory: what was answered is not all, and may not be so.
    Cut,
}

/// Answers as they come.
pub(super) type Saying = mpsc::Receiver<Said>;

/// What is under way.
#[derive(Debug, Clone, Copy, Default)]
struct UnderWay {
    all: usize,
    /// Of these, what can't be asked once more.
    once: usize,
}

/// A data directory of this command's own, until a daemon wants it.
pub(super) struct Own {
    /// `None`: it is being closed, or was.
    facade: Mutex<Option<Arc<Facade>>>,
    under_way: watch::Sender<UnderWay>,
    /// A daemon wants it.
    wanted: CancellationToken,
    /// What is answered from here on may not be so.
    closing: CancellationToken,
    /// It is closed.
    gone: CancellationToken,
    is_told: AtomicBool,
}

impl Own {
    /// `wanted`: cancelled when a daemon wants it; `gives_way`: it was taken, and must be closed for whoever wants it.
    pub fn new(facade: Facade, wanted: CancellationToken, gives_way: bool) -> Arc<Own> {
        let own = Arc::new(Own {
            facade: Mutex::new(Some(Arc::new(facade))),
            under_way: watch::Sender::default(),
            wanted,
            closing: CancellationToken::new(),
            gone: CancellationToken::new(),
            is_told: AtomicBool::new(false),
        });
        if gives_way {
            // Whatever the command is at: it may wait for a person, or for what it reads.
            task::begin(own.clone().give_way());
        }
        own
    }

    async fn give_way(self: Arc<Own>) {
        self.wanted.cancelled().await;
        self.end_within(ENDS_WITHIN, |under_way| under_way.all).await;
        self.end_within(ONCE_ENDS_WITHIN, |under_way| under_way.once).await;
        let facade = lock(&self.facade).take();
        self.closing.cancel();
        if let Some(facade) = facade {
            // Whoever still holds it is an answer nobody waits for.
            if let Err(error) = app::close(Facade::clone(&facade)).await {
                tracing::warn!(%error, "the data directory could not be closed in good order");
            }
            self.gone.cancel();
        }
    }

    async fn end_within(&self, patience: Duration, left: impl Fn(&UnderWay) -> usize) {
        let mut under_way = self.under_way.subscribe();
        let ended = under_way.wait_for(|under_way| left(under_way) == 0);
        // What has not ended by then is asked again.
        let _ = tokio::time::timeout(patience, ended).await;
    }

    /// Whether a daemon has it, or is about to.
    pub fn is_given_up(&self) -> bool {
        self.wanted.is_cancelled() || self.closing.is_cancelled()
    }

    /// Asks; `None`: it is a daemon that is to be asked now.
    pub fn ask(self: &Arc<Own>, request: Request) -> Option<Saying> {
        let facade = lock(&self.facade).clone().filter(|_| !self.is_given_up())?;
        let working = Working::begin(self, &request);
        let (out, said) = mpsc::channel(64);
        task::begin(async move {
            let (sender, mut answers) = mpsc::channel(64);
            let sender = control::Answers::new(sender);
            let answering = task::begin(async move { facade.answer(request, &sender).await });
            let closing = working.own.closing.clone();
            loop {
                let answer = tokio::select! {
                    biased;
                    () = closing.cancelled() => break,
                    answer = answers.recv() => answer,
                };
                let Some(answer) = answer else { break };
                if out.send(Said::Answer(answer)).await.is_err() {
                    return;
                }
            }
            let ended = closing.run_until_cancelled(answering).await;
            let last = match ended {
                None => Some(Said::Cut),
                Some(_) if closing.is_cancelled() => Some(Said::Cut),
                Some(Ok(Err(refusal))) => Some(Said::Refusal(refusal)),
                Some(_) => None,
            };
            if let Some(last) = last {
                let _ = out.send(last).await;
            }
            drop(working);
        });
        Some(said)
    }

    /// Waits until the daemon answers that wanted it, and says so once. An error where it does not.
    pub async fn daemon_answers(&self, dir: &Path, is_json: bool) -> Result<(), Failure> {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let notice = "a daemon is starting: this command gives way to it, and goes on there when it answers; what is counted then is what was left to do";
            report::notice(is_json, notice);
        }
        let answers = async {
            self.gone.cancelled().await;
            while socket::connect(dir).await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let answers = tokio::time::timeout(ANSWERS_WITHIN, answers).await;
        answers.map_err(|_| {
            Failure::Work(format!(
                "a daemon has taken the data directory over and does not answer within {} seconds: what this command was at is done in part at most; run it again",
                ANSWERS_WITHIN.as_secs()
            ))
        })
    }

    /// Lets go of it in good order, or waits until that was done.
    pub async fn close(&self) -> Outcome {
        let facade = lock(&self.facade).take();
        match facade {
            Some(facade) => app::close(Facade::clone(&facade)).await?,
            None => self.gone.cancelled().await,
        }
        Ok(())
    }
}

/// A request is under way until this is dropped.
struct Working {
    own: Arc<Own>,
    once: usize,
}

impl Working {
    fn begin(own: &Arc<Own>, request: &Request) -> Working {
        let once = usize::from(!may_be_asked_again(request));
        own.under_way.send_modify(|under_way| {
            under_way.all += 1;
            under_way.once += once;
        });
        Working { own: own.clone(), once }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.own.under_way.send_modify(|under_way| {
            under_way.all -= 1;
            under_way.once -= self.once;
        });
    }
}

/// Whether what was asked, and may have been done in part, or whole without an answer, comes to the same when it is asked once more.
pub(super) fn may_be_asked_again(request: &Request) -> bool {
    match request {
        Request::Ask(_) => true,
        Request::Order(order) => !matches!(order, Order::ReplayStart(_) | Order::Backfill(_)),
        Request::Deed(deed) => matches!(
            deed,
            Deed::Import(_) | Deed::Erase(_) | Deed::EraseHere(_) | Deed::Backup(_) | Deed::Sign(_) | Deed::SignIn(_)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_something_is_asked_once_and_what_comes_to_the_same_again() {
        for (text, is_again) in [
            (r#"{"query":"status"}"#, true),
            (r#"{"query":"replay-watch","id":"rp_1"}"#, true),
            (r#"{"order":"pause","sink":"a","paused":true}"#, true),
            (r#"{"order":"dead-retry","sink":null,"pick":{}}"#, true),
            (r#"{"order":"dead-drop","sink":null,"pick":{}}"#, true),
            (r#"{"deed":"erase","ids":["ev_1"]}"#, true),
            (r#"{"deed":"import","lines":[],"dispatch":false}"#, true),
            (r#"{"deed":"subscription-apply","rotate":false}"#, false),
            (r#"{"deed":"forget","sink":"a"}"#, false),
        ] {
            let request = Request::read(text).unwrap();
            assert_eq!(may_be_asked_again(&request), is_again, "{text}");
        }
        let start = control::replay::Start {
            spec: Box::default(),
            planned: std::collections::BTreeMap::new(),
        };
        assert!(!may_be_asked_again(&start.into()));
    }
}
