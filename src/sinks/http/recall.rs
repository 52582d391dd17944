//! What a sink that gathers remembers of one batch for the next: that the receiver was away, and which events it fell over.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::{Delivery, Seq};
use crate::sinks::Outcome;

/// So many events go alone at the most; the oldest of more do so no longer.
const LONE_MAX: usize = 64;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Recall {
    /// When the time ends, or has ended, for which the receiver wanted nothing: it has answered a batch so, and has taken none since.
    away: Option<Instant>,
    /// It fell over each of these when that came alone: in a batch they would hold up the others.
    lone: BTreeSet<Seq>,
}

/// What was known when a batch began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    away: Option<Instant>,
    /// The receiver was away and has had the time that it asked for: if it is so once more it may be about an event.
    pub(super) searches: bool,
}

impl Recall {
    pub(super) fn before(&self, now: Instant) -> Before {
        Before {
            away: self.away,
            searches: self.away.is_some_and(|until| until <= now),
        }
    }

    pub(super) fn goes_alone(&self, seq: Seq) -> bool {
        self.lone.contains(&seq)
    }

    /// What the receiver has said of several events at a time: how long it is away, or that it has taken them. What was under way before
    /// it said that it is away shows nothing of whether it still is.
    pub(super) fn told(&mut self, before: Before, away: Option<Duration>, took_several: bool, now: Instant) {
        match away {
            Some(after) if before.away.is_none() || before.searches => {
                self.away = Some(now.checked_add(after).unwrap_or(now));
            }
            None if took_several && self.away == before.away => self.away = None,
            _ => {}
        }
    }

    /// What has become of a batch. `fell`: the places of those that came alone and over which the receiver fell.
    pub(super) fn judged(&mut self, deliveries: &[Delivery], outcomes: &[Outcome], fell: &[usize]) {
        for (delivery, outcome) in deliveries.iter().zip(outcomes) {
            if matches!(outcome, Outcome::Delivered | Outcome::Reject { .. }) {
                self.lone.remove(&delivery.event.seq);
            }
        }
        let fell = fell.iter().filter_map(|at| deliveries.get(*at));
        self.lone.extend(fell.map(|delivery| delivery.event.seq));
        while self.lone.len() > LONE_MAX {
            self.lone.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_away_until_a_batch_that_began_after_that_is_taken() {
        let (now, wait) = (Instant::now(), Duration::from_secs(7));
        let mut recall = Recall::default();
        let first = recall.before(now);
        assert!(!first.searches);
        recall.told(first, Some(wait), false, now);
        // It began when nothing was known of that.
        recall.told(first, None, true, now);
        assert!(!recall.before(now).searches && recall.before(now + wait).searches);
        // One that comes too early makes the time no longer.
        recall.told(recall.before(now), Some(wait), false, now + wait / 2);
        let second = recall.before(now + wait);
        assert!(second.searches);
        recall.told(second, Some(wait), true, now + wait);
        assert!(!recall.before(now + wait).searches && recall.before(now + wait * 2).searches);
        recall.told(recall.before(now + wait * 2), None, true, now + wait * 2);
        assert!(!recall.before(now + wait * 9).searches);
        // Longer than time is.
        recall.told(recall.before(now), Some(Duration::MAX), false, now);
        assert!(recall.before(now).searches);
    }
}
