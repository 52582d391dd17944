//! When what other sinks gave up goes: it waits for a batch to fill as new events do, so that a sink which gathers makes no message of
//! each.

use jiff::Timestamp;

use super::attempt::gathering;
use super::lanes::LOOKED_AT_MAX;
use super::{Worker, instant};

impl Worker<'_> {
    /// Whether there is any that may go now.
    pub(super) fn given_may_go(&mut self, now: Timestamp) -> bool {
        self.kit.follow && !self.lanes.given.deliverable(now, 1).is_empty() && !self.given_waits_for_more(now)
    }

    /// Until the first of a batch that is not full has waited so long, since it was given up or, where the machine's clock was set back
    /// since, from when it was first seen here.
    fn given_waits_for_more(&mut self, now: Timestamp) -> bool {
        let limits = self.drive.batch;
        if limits.wait.is_zero() {
            return false;
        }
        let dropped = *self.bury.borrow();
        let given = &mut self.lanes.given;
        let ready = given.deliverable(now, limits.events);
        // With so many looked at, the batch is as full as it gets.
        let is_full = ready.len() >= limits.events || given.open_len() >= LOOKED_AT_MAX;
        // What the log is about to drop would have to be copied.
        let is_urgent = ready.iter().any(|seq| *seq <= dropped);
        if is_full || is_urgent {
            self.gathering_given = None;
            return false;
        }
        let came = given.came_first(&ready);
        self.gathering_given = gathering(self.gathering_given, came, limits.wait, now);
        self.wakes.extend(self.gathering_given.map(|(_, until)| instant(until)));
        self.gathering_given.is_some()
    }
}
