//! Events at which a sink says that it takes nothing.
//!
//! That is about no event, so the same one is tried until it goes. Where it is about this one after all (a receiver that falls over it,
//! say), it would hold up the whole sink. So after a few probes with it another gets its turn. Once that one is delivered, the sink
//! works: the first is tried again as if nothing had been, for after an outage it is no worse than the others. If the sink takes
//! nothing with it again and then another once more, it was about this one, which has failed then as any other may.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::Worker;
use super::lanes::Lane;
use crate::config::Order;
use crate::deliver::feed::Feed;
use crate::deliver::schedule;
use crate::event::Seq;
use crate::sinks::Commit;
use crate::telemetry;

/// So often in a row one is a probe.
const PROBES: u32 = 3;

/// With so many of them it is the sink: it begins again with the first.
const SUSPECTS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// The newest probe, and how often it was.
    last: Option<(Seq, u32)>,
    /// Those that others go before, with what was said.
    found: BTreeMap<Seq, String>,
    /// Those that were among them when another was delivered, and are open still.
    known: BTreeSet<Seq>,
}

impl Suspects {
    /// It was tried on its own, and the sink took nothing.
    fn add(&mut self, seq: Seq, reason: &str) {
        let times = match self.last {
            Some((last, times)) if last == seq => times + 1,
            _ => 1,
        };
        self.last = Some((seq, times));
        if times >= PROBES {
            if self.found.len() >= SUSPECTS_MAX {
                self.found.clear();
            }
            self.found.insert(seq, reason.to_owned());
            self.last = None;
        }
    }

    /// Another was delivered: none needs to wait any longer. Gives those with which that is so not for the first time.
    fn released(&mut self, feed: &Feed) -> Vec<(Seq, String)> {
        let found = std::mem::take(&mut self.found);
        self.known.retain(|seq| feed.has(*seq));
        let again = found.into_iter().filter(|(seq, _)| !self.known.insert(*seq));
        again.collect()
    }

    /// What may go now, as a feed gives it: the others first.
    pub(super) fn deliverable(
        &mut self,
        feed: &mut Feed,
        most: usize,
        take: impl Fn(&mut Feed, usize) -> Vec<Seq>,
    ) -> Vec<Seq> {
        if self.found.is_empty() {
            return take(feed, most);
        }
        let mut others = take(feed, most.saturating_add(self.found.len()));
        others.retain(|seq| !self.found.contains_key(seq));
        others.truncate(most);
        if others.is_empty() {
            self.found.clear();
            return take(feed, most);
        }
        others
    }
}

impl Worker<'_> {
    /// The sink took nothing when it was handed this one alone.
    pub(super) fn suspect(&mut self, lane: &Lane, seq: Seq, reason: &str) {
        // In strict order no other may go before it; where a call is not one exchange, each ends the connection anyway.
        if *lane == Lane::Main && self.kit.config.order != Order::Strict && self.drive.commit == Commit::Acknowledge {
            self.suspects.add(seq, reason);
        }
    }

    /// Another was delivered meanwhile. With which it was about them again and again, each has failed once.
    pub(super) fn suspects_failed(&mut self, now: Timestamp) {
        let retry = self.kit.config.retry;
        for (seq, reason) in self.suspects.released(&self.lanes.main) {
            let feed = &mut self.lanes.main;
            if !feed.is_ready(seq) {
                continue;
            }
            let attempt = feed.started(seq, now);
            let delay = SignedDuration::try_from(schedule::delay(&retry, attempt, None)).ok();
            let due = delay.and_then(|delay| now.checked_add(delay).ok());
            feed.failed(seq, due.unwrap_or(now), reason);
            telemetry::retried(self.kit.name());
            self.progress.dirty = true;
        }
    }
}
