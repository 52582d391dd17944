//! What the log had just below a place at which a sink goes on. A mark is nothing but a Seq; with this it says of which events it speaks, so
//! that it is known when the log has others there: it was set back, and has given out the same Seqs once more. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::feed::Rules;
use crate::event::{Event, Seq};

/// So much of a digest tells events apart.
const DIGEST_BYTES: usize = 12;

/// An event by which it is told whether a log is the one that a mark speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    pub seq: Seq,
    key: String,
}

impl Last {
    pub fn of(event: &Event) -> Last {
        let mut digest = Sha256::new();
        match event.view() {
            Some(view) => digest.update(view.idempotency_key()),
            None => digest.update(&event.body),
        }
        Last {
            seq: event.seq,
            key: hex::encode(&digest.finalize()[..DIGEST_BYTES]),
        }
    }

    /// What tells it from others.
    pub fn into_key(self) -> String {
        self.key
    }

    /// Whether the event at its Seq is that one.
    pub fn is(&self, event: &Event) -> bool {
        *self == Last::of(event)
    }
}

/// By the places at which the main feed may go on, the newest event below.
#[derive(Debug, Default)]
pub(super) struct Trail {
    by_next: BTreeMap<Seq, Option<Last>>,
}

impl Trail {
    /// Where a sink goes on, with the newest event below as its record has it.
    pub fn at(next: Option<Seq>, last: Option<&Last>) -> Trail {
        let mut trail = Trail::default();
        if let Some(next) = next {
            // The record may have been taken back since that was noted.
            let last = last.filter(|last| last.seq < next).cloned();
            trail.by_next.insert(next, last);
        }
        trail
    }

    /// This was read, and it is read on at `next`. What is wanted may wait, and is where it is gone on then.
    pub fn read(&mut self, from: Seq, events: &[(Arc<Event>, Option<Rules>)], next: Seq) {
        let first = self.below(from);
        let mut before: Option<&Event> = None;
        for (event, wanted) in events {
            if wanted.is_some() {
                let last = before.map(Last::of).or_else(|| first.clone());
                self.by_next.insert(event.seq, last);
            }
            before = Some(event);
        }
        self.by_next.insert(next, before.map(Last::of).or(first));
    }

    /// The newest event below a place; `None`: that is not known.
    pub fn below(&self, next: Seq) -> Option<Last> {
        self.by_next.get(&next)?.clone()
    }

    /// It is gone on nowhere before this place any more.
    pub fn forget_before(&mut self, next: Seq) {
        self.by_next = self.by_next.split_off(&next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, Source};

    fn event(seq: u64, id: &str) -> Arc<Event> {
        let (now, body) = (jiff::Timestamp::UNIX_EPOCH, format!(r#"{{"event":{{"id":"{id}"}}}}"#));
        Arc::new(Event::new(
            Seq(seq),
            now,
            Source::Webhook,
            Kind::Event,
            None,
            body.into(),
        ))
    }

    #[test]
    fn it_is_known_what_the_log_had_below_each_place_at_which_a_sink_may_go_on() {
        let last = Last::of(&event(4, "ev_4"));
        let mut trail = Trail::at(Some(Seq(5)), Some(&last));
        assert_eq!(trail.below(Seq(5)).as_ref(), Some(&last));
        let read = |seq: u64, wanted: bool| (event(seq, &format!("ev_{seq}")), wanted.then(Rules::default));
        trail.read(Seq(5), &[read(6, true), read(7, false), read(9, true)], Seq(12));
        trail.read(Seq(12), &[], Seq(15));
        let below = |next: u64| trail.below(Seq(next)).map(|last| last.seq.0);
        assert_eq!(
            [5, 6, 7, 9, 12, 15].map(below),
            [Some(4), Some(4), None, Some(7), Some(9), Some(9)]
        );
        let last = trail.below(Seq(15)).unwrap();
        assert!(last.is(&event(9, "ev_9")) && !last.is(&event(9, "ev_109")) && !last.is(&event(8, "ev_9")));
        trail.forget_before(Seq(12));
        assert_eq!((trail.below(Seq(9)), trail.by_next.len()), (None, 2));
        let back = Trail::at(Some(Seq(3)), Some(&last));
        assert_eq!(back.below(Seq(3)), None, "taken back");
    }
}
