//! The lookup thread: asks the disk about events that may be known, so that the commit loop need not. What is known it answers; what is
//! not goes back to the commit loop, which alone decides, with what was looked up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use super::commit::Request;
use super::pending::{Pending, Replies};
use super::shared::Shared;
use crate::log::AppendError;
use crate::telemetry;

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
        while let Ok(pending) = self.doubts.recv() {
            if catch_unwind(AssertUnwindSafe(|| self.look_up(pending))).is_err() {
                let reason =
                    "the thread that looks up known keys panicked, which is a defect; it goes on with the next event";
                telemetry::restarted("lookup", reason, Duration::ZERO);
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
