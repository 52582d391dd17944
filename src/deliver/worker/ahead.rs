//! A sink that waits until objects have settled, where so many of them have not that there is no room to read on: what is about to go is
//! looked for in the rest of the log first, so that nothing goes whose place something newer has taken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::fill::{READ_BYTES, READ_EVENTS};
use super::{Worker, settle_of};
use crate::deliver::feed::Next;
use crate::deliver::reading::within;
use crate::event::{Event, Seq};
use crate::log::{Batch, Narrow};
use crate::sorted;
use crate::telemetry;

/// So many events are read in vain at the most for what is due at a time; what is not found by then goes. A log that can look up what an
/// object's events are gives few others.
const LOOK_EVENTS: usize = 200_000;

/// It is tried so many times in a row to read on; what was not found by then goes. A log that can't be read gives nothing to deliver either,
/// so this is for a place in it that can't be read.
const FAILS_MAX: u32 = 20;

/// The log holds events in about the order in which they were received: by so much they may differ.
const ABOUT: SignedDuration = SignedDuration::from_secs(60);

/// What is looked for in the rest of the log.
pub(super) struct Ahead {
    /// By the object, what is due of it.
    due: BTreeMap<String, Seq>,
    narrow: Narrow,
    from: Seq,
    read: usize,
    /// What was received then, or later, supersedes nothing that is due.
    until: Timestamp,
    /// Where in the log that begins, once it was looked up.
    end: Option<Seq>,
    /// How often it could not be read in a row.
    fails: u32,
    /// Of so many it could not be noted that they are older than what goes.
    unnoted: u64,
}

impl Ahead {
    /// How much is read at a time: less, where more could not be read.
    fn piece(&self) -> (usize, usize) {
        let less = |most: usize| (most >> self.fails.min(10)).max(1);
        (less(READ_EVENTS), less(READ_BYTES))
    }

    /// Whether what is still due has nothing in the rest of the log.
    fn is_over(&self, head: Seq) -> bool {
        let end = self.end.unwrap_or(Seq(u64::MAX));
        self.from > head || self.from >= end || self.due.is_empty() || self.read >= LOOK_EVENTS
    }
}

impl Worker<'_> {
    /// Whether something is looked for, or was and is about to go: until then nothing more is read, so that much is looked for at once.
    /// What waits behind another try is not waited for.
    pub(super) fn looks_ahead(&self) -> bool {
        self.ahead.is_some() || self.looked_up.iter().any(|seq| self.lanes.main.goes_soon(*seq))
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
            self.crammed = false;
            return looked;
        };
        if self.record.paused || self.not_before.is_some() {
            return false;
        }
        if self.is_crammed() {
            // What can't go takes no memory meanwhile.
            self.lanes.main.unload();
            return self.main_room() > 0;
        }
        self.crammed = false;
        let main = &self.lanes.main;
        // What has been tried, or finished, waits for nothing here.
        self.looked_up.retain(|seq| main.is_settling(*seq));
        let Some(mut ahead) = self.ahead.take().or_else(|| self.begin_to_look(now, span)) else {
            return looked && !self.looks_ahead();
        };
        let (head, began) = (*self.head.borrow(), Instant::now());
        let mut superseded = false;
        while !ahead.is_over(head) {
            if self.is_long(began) {
                // Questions are answered in between.
                self.ahead = Some(ahead);
                return true;
            }
            let Some(batch) = self.read_ahead(&mut ahead).await else {
                ahead.fails += 1;
                if ahead.fails < FAILS_MAX {
                    self.ahead = Some(ahead);
                    return superseded;
                }
                break;
            };
            ahead.fails = 0;
            ahead.read += batch.events.len();
            superseded |= self.find_superseded(&mut ahead, &batch.events, span);
            if self.crammed {
                // It is looked anew when some of what was noted is read; until then nothing keeps reading up.
                self.looked_up.clear();
                return true;
            }
            if batch.next <= ahead.from {
                break;
            }
            ahead.from = batch.next;
        }
        if ahead.unnoted > 0 {
            tracing::warn!(
                sink = self.kit.name(),
                events = ahead.unnoted,
                "more objects wait to settle than are kept: older revisions of what goes now stand in the log behind it, and may go after it"
            );
        }
        self.looked_up.extend(ahead.due.into_values());
        superseded
    }

    /// Whether nothing more goes by a look ahead before some of what is noted there is read.
    fn is_crammed(&self) -> bool {
        self.crammed && self.record.fates.has_many_outdated() && !self.lanes.main.is_brimful()
    }

    /// How many more events the main feed may read.
    pub(super) fn main_room(&self) -> usize {
        if self.is_crammed() {
            self.lanes.main.room_crammed()
        } else {
            self.lanes.main.room()
        }
    }

    /// The next piece of the log in which is looked. `None`: it can't be read now, and that was noted.
    async fn read_ahead(&mut self, ahead: &mut Ahead) -> Option<Batch> {
        if ahead.end.is_none() {
            match within(self.kit.log.seq_at(ahead.until)).await {
                Ok(end) => ahead.end = Some(end),
                Err(error) => {
                    self.stumble(&error.to_string());
                    return None;
                }
            }
        }
        self.read(ahead.from, ahead.piece(), Some(&ahead.narrow)).await
    }

    /// Finishes what is due and has an event here that supersedes it. `true`: there was any.
    fn find_superseded(&mut self, ahead: &mut Ahead, events: &[Arc<Event>], span: SignedDuration) -> bool {
        let mut superseded = false;
        for event in events {
            let object = event.view().and_then(|view| view.object_id.as_deref());
            let Some((object, seq)) = object.and_then(|object| ahead.due.get_key_value(object)) else {
                continue;
            };
            if self.rules.route(self.kit.name(), event).is_none() || self.kit.letters.is_dead(event.seq) {
                continue;
            }
            let (object, seq) = (object.clone(), *seq);
            let next = self.lanes.main.overtaken(seq, event, span);
            if next == Next::Older {
                // When it is read, what supersedes it may have gone. What is behind it may be newer than both.
                if self.record.fates.outdate(event) {
                    self.progress.dirty = true;
                } else if self.lanes.main.is_brimful() {
                    // Otherwise nothing would go any more.
                    ahead.unnoted += 1;
                } else {
                    self.crammed = true;
                    return superseded;
                }
                continue;
            }
            // This one decides: what comes behind it comes behind that.
            ahead.due.remove(&object);
            if next == Next::Newer {
                self.supersede(seq);
                superseded = true;
            } else {
                self.looked_up.insert(seq);
            }
        }
        superseded
    }

    /// What is due and was not looked for yet.
    fn begin_to_look(&mut self, now: Timestamp, span: SignedDuration) -> Option<Ahead> {
        let due = self.lanes.main.due_objects(now).into_iter();
        let due: BTreeMap<String, Seq> = sorted::map(due.filter(|(_, seq)| !self.looked_up.contains(seq)));
        let main = &self.lanes.main;
        let until = main.settled_by(due.values().copied(), span)?;
        let narrow = Narrow {
            objects: due.keys().cloned().collect(),
            ..Narrow::default()
        };
        Some(Ahead {
            due,
            narrow,
            from: main.next(),
            read: 0,
            until: until.checked_add(ABOUT).unwrap_or(Timestamp::MAX),
            end: None,
            fails: 0,
            unnoted: 0,
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
                // It became due this very moment, or waits until something is read. What is behind it does not go before it.
                if !self.is_crammed() {
                    self.wakes.push(Instant::now());
                }
                seqs.truncate(count);
            }
        }
        seqs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_look_ends_where_nothing_supersedes_any_more_and_reads_less_where_more_could_not_be_read() {
        let mut ahead = Ahead {
            due: BTreeMap::from([("o_1".to_owned(), Seq(1))]),
            narrow: Narrow::default(),
            from: Seq(10),
            read: 0,
            until: Timestamp::UNIX_EPOCH,
            end: None,
            fails: 0,
            unnoted: 0,
        };
        assert!(!ahead.is_over(Seq(1000)) && ahead.is_over(Seq(9)));
        assert_eq!(ahead.piece(), (READ_EVENTS, READ_BYTES));
        ahead.end = Some(Seq(20));
        assert!(!ahead.is_over(Seq(1000)));
        ahead.from = Seq(20);
        assert!(ahead.is_over(Seq(1000)), "however much the log has behind that");
        ahead.fails = 2;
        assert_eq!(ahead.piece(), (READ_EVENTS / 4, READ_BYTES / 4));
        ahead.fails = FAILS_MAX;
        assert!(ahead.piece().0 == 1 && ahead.piece().1 > 0);
    }
}
