//! What is known in memory of the events whose data is withheld: it is found out anew after a start.

use std::time::{Duration, Instant};

use crate::event::Seq;

/// After so long they are counted again, since a delivery may have completed one.
const COUNT_EVERY: Duration = Duration::from_secs(3600);

/// What is known of the count, in memory.
#[derive(Debug)]
pub(in crate::close) struct HoldState {
    /// Something was stored that may complete a part.
    pub is_stale: bool,
    /// For which scope they were counted, and when.
    counted: Option<(String, Instant)>,
    /// How often there was a reason to fetch what lacks its data: some was stored, or there are other credentials.
    reasons: u64,
    /// Up to which of these a key that is shown the data has fetched all that could be fetched.
    refilled_to: u64,
}

/// A fetching of what lacks its data, while it is under way.
#[derive(Debug)]
pub(in crate::close) struct Refill {
    /// Reasons there were when it began, and those it met with on its way: what lacks its data then is none that it could bring.
    met: u64,
}

impl Refill {
    /// It has itself stored what lacks its data.
    pub fn meet(&mut self) {
        self.met += 1;
    }
}

impl Default for HoldState {
    fn default() -> HoldState {
        HoldState {
            is_stale: false,
            counted: None,
            // What a start finds is a reason.
            reasons: 1,
            refilled_to: 0,
        }
    }
}

impl HoldState {
    /// There is a reason to fetch what lacks its data.
    pub fn call_for_refill(&mut self) {
        self.reasons += 1;
    }

    /// Begins a fetching; `None`: it would bring nothing that the last one could not.
    pub fn refill(&self) -> Option<Refill> {
        (self.refilled_to < self.reasons).then_some(Refill { met: self.reasons })
    }

    /// It is done. What others have had a reason for meanwhile is none of what it has brought, and is still to be done.
    pub fn refilled(&mut self, refill: &Refill) {
        if refill.met == self.reasons {
            self.refilled_to = self.reasons;
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_store_without_its_data_during_a_refill_is_a_reason_for_another_one() {
        let mut state = HoldState::default();
        let mut refill = state.refill().expect("after a start");
        // A backfill with another key, and the refill itself.
        state.call_for_refill();
        state.call_for_refill();
        refill.meet();
        state.refilled(&refill);
        let mut refill = state.refill().expect("the backfill's are still to be fetched");
        // Nobody else: what it can't bring is not asked for again and again.
        state.call_for_refill();
        refill.meet();
        state.refilled(&refill);
        assert!(state.refill().is_none());
        // Other credentials, also where they come while one is under way.
        state.call_for_refill();
        let refill = state.refill().unwrap();
        state.call_for_refill();
        state.refilled(&refill);
        assert!(state.refill().is_some());
    }
}
