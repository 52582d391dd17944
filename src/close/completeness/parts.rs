//! What is known in memory of the events whose data is withheld: it is found out anew after a start.

use std::time::{Duration, Instant};

use crate::event::Seq;

/// After so long they are counted again, since a delivery may have completed one.
const COUNT_EVERY: Duration = Duration::from_secs(3600);

/// What is known of the count, in memory.
#[derive(Debug, Default)]
pub(in crate::close) struct HoldState {
    /// Something was stored that may complete a part.
    pub is_stale: bool,
    /// For which scope they were counted, and when.
    counted: Option<(String, Instant)>,
    /// A key that is shown the data has fetched all that could be fetched.
    pub is_refilled: bool,
}

impl HoldState {
    pub fn is_due(&self, scope_id: &str) -> bool {
        let is_old = |(scope, at): &(String, Instant)| scope != scope_id || at.elapsed() > COUNT_EVERY;
        self.is_stale || self.counted.as_ref().is_none_or(is_old)
    }

    pub fn counted(&mut self, scope_id: String) {
        self.counted = Some((scope_id, Instant::now()));
    }
}

/// Where parts are in the log, as far as that was looked at: each time only what is new is.
#[derive(Debug, Default)]
pub(in crate::close) struct Parts {
    pub searched_from: Seq,
    pub searched_to: Seq,
    pub seqs: Vec<Seq>,
}
