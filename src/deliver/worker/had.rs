//! What the sink has had although something else is about to be noted of it: a replay of what it was sent long before may fail, or be
//! skipped, and then what it has had stays delivered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use super::lanes::Lane;
use crate::deliver::finished::{Finished, finished};
use crate::deliver::judges::earlier;
use crate::deliver::types::{DeadLetter, EventState};
use crate::event::{Delivery, Event, Seq};
use crate::sinks::Outcome;

/// The state has so long to say what earlier rules were.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

impl Worker<'_> {
    /// Letters are about to be made of events that come once more: of those that the sink has had this is noted, for it does not follow
    /// any more when there was a letter. Events of the main feed come for the first time.
    pub(super) async fn note_had<'e>(
        &mut self,
        lane: &Lane,
        events: impl Iterator<Item = &'e Arc<Event>>,
        letters: &[DeadLetter],
    ) {
        if !comes_again(lane) {
            return;
        }
        let dead: BTreeSet<Seq> = letters.iter().map(|letter| letter.seq).collect();
        let mut asking = Asking::begin();
        for event in events.filter(|event| dead.contains(&event.seq)) {
            self.note_if_had(event, &mut asking).await;
        }
    }

    /// The same of what a replay sends again and a transform does not want any more, where it would be noted as skipped.
    pub(super) async fn note_had_before_skipping(&mut self, lane: &Lane, batch: &[Delivery], outcomes: &[Outcome]) {
        if !comes_again(lane) {
            return;
        }
        let mut asking = Asking::begin();
        for (delivery, outcome) in batch.iter().zip(outcomes) {
            if *outcome == Outcome::Skipped && self.has_to_be_noted(lane, &delivery.event) {
                self.note_if_had(&delivery.event, &mut asking).await;
            }
        }
    }

    async fn note_if_had(&mut self, event: &Event, asking: &mut Asking) {
        let is_noted = self.record.fates.is_sent(event.seq);
        if !is_noted && self.has_had(event, asking).await {
            self.record.fates.sent([event.seq]);
            self.progress.dirty = true;
        }
    }

    /// Whether what is known says that the sink has had an event. What is not known is not claimed.
    async fn has_had(&mut self, event: &Event, asking: &mut Asking) -> bool {
        let seq = event.seq;
        if !self.is_done_with(seq) {
            return false;
        }
        let rules = match finished(&self.record, &self.kit.letters, seq) {
            Finished::Is(state) => return state == EventState::Delivered,
            Finished::Dead | Finished::Given => return false,
            Finished::JudgedBy { rules, .. } => rules,
        };
        if rules == self.digest {
            return self.rules.route(self.kit.name(), event).is_some();
        }
        if asking.is_over {
            return false;
        }
        let told = self.earlier_wanted(&rules, event).await;
        // Others would each be waited for as long.
        asking.is_over = told.is_none() || self.is_long(asking.began);
        told.unwrap_or_default()
    }

    /// Whether earlier rules wanted an event. What is not there any more wanted none; `None`: that can't be known now.
    pub(super) async fn earlier_wanted(&mut self, digest: &str, event: &Event) -> Option<bool> {
        let is_known = self.earlier.as_ref().is_some_and(|(known, _)| known == digest);
        if !is_known {
            let told = earlier(&*self.kit.store, digest);
            let told = tokio::time::timeout(TOLD_WITHIN, told).await.ok()?.ok()?;
            self.earlier = Some((digest.to_owned(), told.ok()));
        }
        let (_, rules) = self.earlier.as_ref()?;
        Some(rules.as_ref().is_some_and(|rules| rules.wanted(event)))
    }

    /// Whether the main feed is behind it.
    fn is_done_with(&self, seq: Seq) -> bool {
        if self.kit.follow {
            let main = &self.lanes.main;
            return seq < main.next() && main.stage(seq).is_none();
        }
        self.record.has_finished(seq)
    }
}

/// Earlier rules are asked for, until it has taken long or they can't be read.
struct Asking {
    began: Instant,
    is_over: bool,
}

impl Asking {
    fn begin() -> Asking {
        Asking {
            began: Instant::now(),
            is_over: false,
        }
    }
}

fn comes_again(lane: &Lane) -> bool {
    matches!(lane, Lane::Replay(_) | Lane::Given)
}
