//! A sink that waits until objects have settled, where so many of them have not that there is no room to read on: what is about to go is
//! looked for in the rest of the log first, so that nothing goes whose place something newer has taken.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::time::Instant;

use super::fill::{READ_BYTES, READ_EVENTS};
use super::{Worker, settle_of};
use crate::event::Seq;
use crate::log::Narrow;
use crate::telemetry;

/// So many events are read in vain at the most for what is due at a time; what is not found by then goes. A log that can look up what an
/// object's events are gives few others.
const LOOK_EVENTS: usize = 200_000;

/// What is looked for in the rest of the log.
pub(super) struct Ahead {
    /// By the object, what is due of it.
    due: BTreeMap<String, Seq>,
    narrow: Narrow,
    from: Seq,
    read: usize,
}

impl Worker<'_> {
    /// Whether something is looked for, or was and has not gone yet: until then nothing more is read, so that much is looked for at once.
    pub(super) fn looks_ahead(&self) -> bool {
        self.ahead.is_some() || !self.looked_up.is_empty()
    }

    /// Whether there is more in the log than there is room for, at a sink that waits until objects have settled.
    pub(super) fn is_stuffed(&self) -> bool {
        let main = &self.lanes.main;
        let has_more = main.next() <= *self.head.borrow();
        let settles = self.kit.follow && self.kit.config.settle.is_some();
        settles && has_more && (main.room() == 0 || self.looks_ahead())
    }

    /// Finishes what is due and was superseded further on in the log. `true`: there is more to do at once.
    pub(super) async fn look_ahead(&mut self, now: Timestamp) -> bool {
        let looked = self.looks_ahead();
        let (Some(span), true) = (settle_of(&self.kit.config), self.is_stuffed()) else {
            self.looked_up.clear();
            self.ahead = None;
            return looked;
        };
        if self.record.paused || self.not_before.is_some() {
            return false;
        }
        let main = &self.lanes.main;
        // What has been tried, or finished, waits for nothing here.
        self.looked_up.retain(|seq| main.is_settling(*seq));
        let Some(mut ahead) = self.ahead.take().or_else(|| self.begin_to_look(now)) else {
            return looked && !self.looks_ahead();
        };
        let (head, began) = (*self.head.borrow(), Instant::now());
        let (rules, mut superseded) = (self.rules.clone(), false);
        while ahead.from <= head && !ahead.due.is_empty() && ahead.read < LOOK_EVENTS {
            if self.is_long(began) {
                // Questions are answered in between.
                self.ahead = Some(ahead);
                return true;
            }
            let read = self
                .read(ahead.from, (READ_EVENTS, READ_BYTES), Some(&ahead.narrow))
                .await;
            let Some(batch) = read else {
                self.ahead = Some(ahead);
                return superseded;
            };
            ahead.read += batch.events.len();
            for event in &batch.events {
                let object = event.view().and_then(|view| view.object_id.as_deref());
                let Some((object, seq)) = object.and_then(|object| ahead.due.get_key_value(object)) else {
                    continue;
                };
                if rules.route(self.kit.name(), event).is_none() || self.kit.letters.is_dead(event.seq) {
                    continue;
                }
                // The next one decides: what comes behind it comes behind that.
                let (object, seq) = (object.clone(), *seq);
                ahead.due.remove(&object);
                if self.lanes.main.overtaken(seq, event.received_at, span) {
                    self.supersede(seq);
                    superseded = true;
                } else {
                    self.looked_up.insert(seq);
                }
            }
            if batch.next <= ahead.from {
                break;
            }
            ahead.from = batch.next;
        }
        self.looked_up.extend(ahead.due.into_values());
        superseded
    }

    /// What is due and was not looked for yet.
    fn begin_to_look(&mut self, now: Timestamp) -> Option<Ahead> {
        let due = self.lanes.main.due_objects(now).into_iter();
        let due: BTreeMap<String, Seq> = due.filter(|(_, seq)| !self.looked_up.contains(seq)).collect();
        if due.is_empty() {
            return None;
        }
        let narrow = Narrow {
            objects: due.keys().cloned().collect(),
            ..Narrow::default()
        };
        let from = self.lanes.main.next();
        Some(Ahead {
            due,
            narrow,
            from,
            read: 0,
        })
    }

    /// A newer event has taken this one's place.
    pub(super) fn supersede(&mut self, seq: Seq) {
        self.record.fates.supersede(seq);
        self.kit.superseded.fetch_add(1, Ordering::Relaxed);
        telemetry::superseded(self.kit.name());
        self.progress.dirty = true;
    }

    /// Of what is due that which may go: where there is no room to read on, what was looked for.
    pub(super) fn only_looked_up(&mut self, mut seqs: Vec<Seq>) -> Vec<Seq> {
        if self.is_stuffed() {
            let may_go = |seq: &&Seq| self.looked_up.contains(seq) || !self.lanes.main.is_settling(**seq);
            let count = seqs.iter().take_while(may_go).count();
            if count < seqs.len() {
                // It became due this very moment. What is behind it does not go before it.
                self.wakes.push(Instant::now());
                seqs.truncate(count);
            }
        }
        seqs
    }
}
