//! Where the keeper is asked for what only it may do, and where it says what it is at.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::journal::{BlockRef, OpenSegment};
use super::sealed::SealedSegment;
use crate::event::Seq;
use crate::log::{Doomed, Erased, Narrow};
use crate::sync::lock;

/// Errands that may wait at a time.
const ERRANDS_MAX: usize = 64;

/// A reader waits so long for what it suspects to be looked at.
pub(super) const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Whoever wants something changed waits as long as the keeper gets on, and gives up when it has not for this long.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Called with the answer; dropped without one where the keeper gave up on it.
pub(super) type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// Gone when nobody waits for the answer any more.
pub(super) type Awaited = Weak<()>;

/// What the keeper is asked to do beside its rounds.
pub(super) enum Errand {
    /// Remove what is before this Seq, as far as whole segments go; gives the oldest Seq kept. Not where nobody waits for it any more: somebody
    /// else may have begun who needs it.
    DropBefore(Seq, Awaited, Reply<Result<Seq, String>>),
    /// Replace these events by tombstones.
    Erase(Narrow, Arc<Doomed>, Reply<Result<Erased, String>>),
    /// Look at what could not be read, and put it right where it is damaged: look again after that.
    Suspect(Suspect, Reply<Result<(), String>>),
    /// Go round at once, and seal whatever can be sealed.
    Round(Reply<()>),
}

/// What a reader could not read.
#[derive(Debug, Clone)]
pub(super) enum Suspect {
    /// A pack of this form of a sealed segment, and why.
    Sealed(Arc<SealedSegment>, String),
    /// A block of this journal.
    Block(Arc<OpenSegment>, BlockRef),
}

/// The way to the keeper. Closed for a log that is only read, and while it is closing.
#[derive(Debug)]
pub(super) struct Desk {
    errands: Mutex<Option<SyncSender<Errand>>>,
    /// What the keeper is at, and when it last got on.
    doing: Mutex<(String, Instant)>,
    #[cfg(test)]
    watcher: Watcher,
}

#[cfg(test)]
type Watch = Box<dyn FnMut(&str) + Send>;

/// Whoever is called at each turn.
#[cfg(test)]
#[derive(Default)]
struct Watcher {
    each: Mutex<Option<Watch>>,
    /// Errands so far.
    asked: std::sync::atomic::AtomicUsize,
}

#[cfg(test)]
impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            errands: Mutex::new(None),
            doing: Mutex::new((String::new(), Instant::now())),
            #[cfg(test)]
            watcher: Watcher::default(),
        }
    }
}

impl Desk {
    /// Opens it, for the keeper that takes errands at the other end.
    pub fn open(&self) -> Receiver<Errand> {
        let (sender, errands) = sync_channel(ERRANDS_MAX);
        *lock(&self.errands) = Some(sender);
        errands
    }

    /// Takes no more errands; the keeper ends when it has done those that wait.
    pub fn close(&self) {
        *lock(&self.errands) = None;
    }

    /// The keeper begins something.
    pub fn begin(&self, what: String) {
        *lock(&self.doing) = (what, Instant::now());
    }

    /// The keeper gets on.
    pub fn turn(&self) {
        lock(&self.doing).1 = Instant::now();
        #[cfg(test)]
        self.watched();
    }

    /// Has a test called at each turn, with what the keeper is at, in the keeper's thread.
    #[cfg(test)]
    pub fn watch(&self, each: impl FnMut(&str) + Send + 'static) {
        *lock(&self.watcher.each) = Some(Box::new(each));
    }

    /// How many errands there were.
    #[cfg(test)]
    pub fn asked(&self) -> usize {
        self.watcher.asked.load(std::sync::atomic::Ordering::SeqCst)
    }

    #[cfg(test)]
    fn watched(&self) {
        let doing = self.doing();
        if let Some(watcher) = &mut *lock(&self.watcher.each) {
            watcher(&doing);
        }
    }

    /// What the keeper is at.
    pub fn doing(&self) -> String {
        lock(&self.doing).0.clone()
    }

    /// What the keeper is at, for whoever waits for it.
    pub fn says(&self) -> String {
        let doing = lock(&self.doing);
        if doing.0.is_empty() {
            return "the keeper of the log does not come to it".into();
        }
        let seconds = doing.1.elapsed().as_secs();
        format!("the keeper of the log is {}, and last got on {seconds} s ago", doing.0)
    }

    fn stands_still(&self) -> bool {
        lock(&self.doing).1.elapsed() > STANDSTILL
    }

    fn send(&self, errand: Errand) -> Result<(), String> {
        let errands = lock(&self.errands);
        let Some(errands) = errands.as_ref() else {
            return Err("the log is closed".into());
        };
        #[cfg(test)]
        self.watcher.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        errands.try_send(errand).map_err(|error| match error {
            TrySendError::Full(_) => format!("too much is waiting to be done to it: {}", self.says()),
            TrySendError::Disconnected(_) => "the log is closed".into(),
        })
    }

    /// Has something looked at. Blocking, for at most [`READ_PATIENCE`].
    pub fn have_looked_at(&self, suspect: Suspect) -> Result<(), String> {
        let (sender, answer) = sync_channel(1);
        let reply = Box::new(move |answer| drop(sender.try_send(answer)));
        self.send(Errand::Suspect(suspect, reply))?;
        match answer.recv_timeout(READ_PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(self.says()),
            Err(RecvTimeoutError::Disconnected) => Err("the keeper of the log gave up on it".into()),
        }
    }

    /// Has what is before a Seq removed. Whoever stops waiting has it left there, unless that has begun.
    pub async fn have_dropped(&self, before: Seq) -> Result<Seq, String> {
        let waits = Arc::new(());
        let awaited = Arc::downgrade(&waits);
        let dropped = self.have_done(|reply| Errand::DropBefore(before, awaited, reply)).await;
        drop(waits);
        dropped?
    }

    /// Has something done, and waits for it as long as the keeper gets on.
    pub async fn have_done<T: Send + 'static>(&self, errand: impl FnOnce(Reply<T>) -> Errand) -> Result<T, String> {
        let (sender, mut answer) = tokio::sync::oneshot::channel();
        let reply = Box::new(move |answer| drop(sender.send(answer)));
        self.send(errand(reply))?;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), &mut answer).await {
                Ok(answered) => return answered.map_err(|_| "the keeper of the log gave up on it".into()),
                Err(_) if self.stands_still() => return Err(self.says()),
                Err(_) => {}
            }
        }
    }
}
