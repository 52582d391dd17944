//! The lookup thread: asks the disk about events that may be known, so that the commit loop need not. What is known it answers; what is
//! not goes back to the commit loop, which alone decides, with what was looked up.
//!
//! It also looks whether there is room, for days on which nothing arrives: a disk that hangs may keep it, and not the commit loop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::commit::{self, Request};
use super::pending::{Pending, Replies};
use super::shared::Shared;
use crate::log::AppendError;
use crate::telemetry;

/// So often it is looked whether there is room.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Its own state.
pub(super) struct Lookup {
    pub shared: Arc<Shared>,
    /// Events to be looked up.
    pub doubts: Receiver<Box<Pending>>,
    /// The way back to the commit loop. It has room: each event keeps its place in the queue.
    pub requests: SyncSender<Request>,
    pub replies: Replies,
}

impl Lookup {
    /// Runs until the commit loop has ended, whatever happens in between.
    pub fn run(self) {
        let mut due = Instant::now() + LOOK_EVERY;
        loop {
            let pending = match self.doubts.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(pending) => Some(pending),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let work = || {
                if let Some(pending) = pending {
                    self.look_up(pending);
                }
                if Instant::now() >= due {
                    let is_full = commit::check_space(&self.shared).is_err();
                    self.shared.seems_full.store(is_full, Ordering::Relaxed);
                }
            };
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                let reason =
                    "the thread that looks up known keys panicked, which is a defect; it goes on with the next event";
                telemetry::restarted("lookup", reason, Duration::ZERO);
            }
            if Instant::now() >= due {
                due = Instant::now() + LOOK_EVERY;
            }
        }
    }

    fn look_up(&self, mut pending: Box<Pending>) {
        if self.shared.is_closing() {
            return self.replies.send(vec![(pending, Err(AppendError::Closed))]);
        }
        match pending.look_up(&self.shared) {
            Ok(answer) => {
                if let Some(seq) = answer.seq {
                    let duplicate = pending.duplicate_of(seq);
                    return self.replies.send(vec![(pending, Ok(duplicate))]);
                }
                pending.looked_up = Some(answer);
                // Where the commit loop is gone, so is whoever waits.
                drop(self.requests.try_send(Request::Append(pending)));
            }
            Err(error) => self.replies.send(vec![(pending, Err(error))]),
        }
    }
}
