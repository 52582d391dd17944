//! What the leader says of the stream that its servers have lost, and since when that is known.

use std::collections::BTreeMap;
use std::sync::Mutex;

use jiff::Timestamp;

use super::api::State;
use crate::event::Seq;
use crate::log::Gap;
use crate::sync::lock;

/// When so many lost messages were first seen. Servers that lead by turns may have lost different ones.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<BTreeMap<usize, Timestamp>>);

impl Losses {
    /// The damage, if there is any: the same is found once, however often it is asked for, or all that is there is compared with Close again
    /// each time.
    pub fn gap(&self, state: &State, first: Seq) -> Option<Gap> {
        let lost = state.lost.as_ref()?["msgs"].as_array()?.len();
        if lost == 0 {
            return None;
        }
        let found_at = *lock(&self.0).entry(lost).or_insert_with(Timestamp::now);
        Some(Gap {
            from: first,
            to: Seq(state.last_seq),
            reason: format!("a server says that it has lost {lost} messages"),
            found_at,
            skipped: false,
            certain_to: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_server_has_lost_is_found_once_and_anew_when_it_is_more() {
        let losses = Losses::default();
        let found = |lost: &[u64]| {
            let state = State {
                lost: Some(json!({ "msgs": lost })),
                last_seq: 9,
                ..State::default()
            };
            losses.gap(&state, Seq(1)).map(|gap| gap.found_at)
        };
        assert_eq!(found(&[]), None);
        let before = Timestamp::now();
        let first = found(&[3, 4]);
        assert!(first >= Some(before));
        // The clock moves on.
        while Timestamp::now() <= first.unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(found(&[3, 4]), first);
        let more = found(&[3, 4, 5]);
        assert!(more > first, "{more:?}");
        assert_eq!((found(&[3, 4]), found(&[3, 4, 5])), (first, more));
    }
}
