//! What outlives a kill, and the kill itself: the receivers with the rows they hold, their moods, and the gate at which everything
//! stands still once the process is "dead".

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use closehook::event::{Origin, Seq};
use closehook::sinks::{Commit, Mark};

/// Whoever passes it is alive. After the countdown nothing behind it ever happens: the process was killed there.
#[derive(Debug)]
pub struct Gate {
    left: AtomicI64,
    passed: AtomicU64,
    closed: tokio::sync::watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            left: AtomicI64::new(i64::MAX),
            passed: AtomicU64::new(0),
            closed: tokio::sync::watch::Sender::new(false),
        }
    }
}

impl Gate {
    /// The process dies at the `steps`-th passing from now.
    pub fn arm(&self, steps: i64) {
        self.left.store(steps, Ordering::SeqCst);
    }

    /// The process is dead at once.
    pub fn close(&self) {
        self.left.store(0, Ordering::SeqCst);
        self.closed.send_replace(true);
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub async fn wait_until_closed(&self) {
        // The sender lives as long as the gate.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Passes, or never returns.
    pub async fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            self.close();
        }
        if self.is_closed() {
            std::future::pending::<()>().await;
        }
        self.passed.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a receiver does with the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Takes everything.
    Well,
    /// Wants every event again.
    Retry,
    /// Refuses every event for good.
    Reject,
    /// Takes the events with an even Seq and refuses the others.
    Picky,
    /// Can't take anything now.
    Unavailable,
    /// Takes everything, and the answer is lost.
    LostAnswer,
    /// Takes everything, in its own time.
    Slow,
    /// The sink panics.
    Panic,
    /// The next sync fails, and what was written since the last one is gone, though later syncs succeed.
    BadSync,
}

/// One delivery as a receiver has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub seq: Seq,
    pub origin: Origin,
    /// Its bytes never reached the disk.
    pub torn: bool,
}

/// What one sink delivers to.
#[derive(Debug)]
pub struct Receiver {
    pub commit: Commit,
    pub rows: Vec<Row>,
    /// Rows that a sync has covered, of a receiver that is checkpointed.
    pub synced: usize,
    pub mark: Option<Mark>,
    pub moods: VecDeque<Mood>,
    /// Which opening of it may write: an older one is fenced off.
    pub opening: u64,
    /// When the oldest row came that no sync has covered.
    pub unsynced_since: Option<Instant>,
    /// Calls since the last sync that began when it was due, and the most there ever were.
    late: u32,
    pub latest: u32,
}

/// From here on a checkpoint is due, and nothing else begins.
const SYNC_DUE: Duration = Duration::from_millis(200);

impl Receiver {
    pub fn new(commit: Commit) -> Receiver {
        Receiver {
            commit,
            rows: Vec::new(),
            synced: 0,
            mark: None,
            moods: VecDeque::new(),
            opening: 0,
            unsynced_since: None,
            late: 0,
            latest: 0,
        }
    }

    /// A call to take something begins.
    pub fn begins(&mut self) {
        if self.unsynced_since.get_or_insert_with(Instant::now).elapsed() > SYNC_DUE {
            self.late += 1;
            self.latest = self.latest.max(self.late);
        }
    }

    /// Nothing is unsynced.
    pub fn is_synced(&mut self) {
        self.synced = self.rows.len();
        self.unsynced_since = None;
        self.late = 0;
    }

    pub fn mood(&mut self) -> Mood {
        self.moods.pop_front().unwrap_or(Mood::Well)
    }
}

/// All receivers, by sink.
#[derive(Debug, Default)]
pub struct World {
    receivers: Mutex<BTreeMap<String, Receiver>>,
}

impl World {
    pub fn with(receivers: impl IntoIterator<Item = (&'static str, Commit)>) -> Arc<World> {
        let receivers = receivers
            .into_iter()
            .map(|(name, commit)| (name.to_owned(), Receiver::new(commit)))
            .collect();
        Arc::new(World {
            receivers: Mutex::new(receivers),
        })
    }

    pub fn all(&self) -> MutexGuard<'_, BTreeMap<String, Receiver>> {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at, or changes, one receiver.
    pub fn at<T>(&self, sink: &str, work: impl FnOnce(&mut Receiver) -> T) -> T {
        work(self.all().get_mut(sink).unwrap())
    }
}
