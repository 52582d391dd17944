//! What all sinks together hold of events that they have read and not delivered: one budget for the process, in which an event counts once
//! however many sinks hold it.
//!
//! Each feed may hold as much as is still free. One sink alone that way comes to half of the budget; the more sinks are behind, the less
//! each has, none can take what another needs, and a new one always finds something. What a feed needs to go on at all it has in any case.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::reading::{detached, is_copied};
use crate::event::{Event, Seq};
use crate::sync::lock;

/// Bytes that are held, at which feeds stop reading ahead.
const BYTES_MAX: usize = 40 << 20;

/// What one feed may hold whatever the others do: some hundred events of the usual size, as many as most sinks take at a time.
const SHARE_MIN: usize = 2 << 20;

/// What the log puts into one block beside a body that fills it.
const BLOCK_BYTES: usize = 256 << 10;

/// What an event costs beside its body.
const OVERHEAD: usize = 512;

/// The budget, and what is held of it. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Bytes.
    held: AtomicUsize,
    events: Mutex<HashMap<Seq, Weak<Inside>>>,
}

/// An event that counts as held for as long as anybody has this.
#[derive(Debug, Clone)]
pub(super) struct Held(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    event: Arc<Event>,
    memory: Memory,
}

impl Held {
    /// The event.
    pub fn event(&self) -> &Arc<Event> {
        &self.0.event
    }

    /// Bytes that are really held for it.
    pub fn weight(&self) -> usize {
        weight(&self.0.event)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let inner = &*self.memory.0;
        inner.held.fetch_sub(weight(&self.event), Ordering::Relaxed);
        let mut events = lock(&inner.events);
        // Somebody may have read it anew in between.
        if events
            .get(&self.event.seq)
            .is_some_and(|known| known.strong_count() == 0)
        {
            events.remove(&self.event.seq);
        }
    }
}

impl Memory {
    /// Takes up an event that was read, on its own: a body in a block of the log keeps all of the block in memory. Where another sink
    /// holds the same, that is what is given.
    pub fn hold(&self, event: &Arc<Event>) -> Held {
        let known = lock(&self.0.events).get(&event.seq).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| is_same(&known.event, event)) {
            return Held(known);
        }
        let event = detached(event.clone());
        self.0.held.fetch_add(weight(&event), Ordering::Relaxed);
        let (seq, memory) = (event.seq, self.clone());
        let inside = Arc::new(Inside { event, memory });
        let before = lock(&self.0.events).insert(seq, Arc::downgrade(&inside));
        drop(before);
        Held(inside)
    }

    /// Bytes that one feed may hold now.
    pub fn share(&self) -> usize {
        let free = BYTES_MAX.saturating_sub(self.0.held.load(Ordering::Relaxed));
        free.max(SHARE_MIN)
    }
}

/// Whether one stands for the other: it may have been erased in the log since it was read.
fn is_same(one: &Event, other: &Event) -> bool {
    one.kind == other.kind && one.received_at == other.received_at && one.held == other.held && one.body == other.body
}

fn weight(event: &Event) -> usize {
    let len = event.body.len();
    OVERHEAD + len + if is_copied(event) { 0 } else { BLOCK_BYTES }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::{Kind, Source};

    fn event(seq: u64, len: usize) -> Arc<Event> {
        let body = vec![b'x'; len];
        let now = Timestamp::UNIX_EPOCH;
        Arc::new(Event::new(
            Seq(seq),
            now,
            Source::Webhook,
            Kind::Quarantined,
            None,
            body.into(),
        ))
    }

    fn held(memory: &Memory) -> usize {
        memory.0.held.load(Ordering::Relaxed)
    }

    #[test]
    fn what_several_sinks_hold_is_there_once_and_counts_once() {
        let memory = Memory::default();
        let first = memory.hold(&event(1, 1000));
        let others: Vec<Held> = (0..9).map(|_| memory.hold(&event(1, 1000))).collect();
        assert!(others.iter().all(|other| Arc::ptr_eq(other.event(), first.event())));
        assert_eq!(held(&memory), first.weight());
        drop(others);
        assert_eq!(held(&memory), first.weight());
        drop(first);
        assert_eq!((held(&memory), lock(&memory.0.events).len()), (0, 0));
    }

    #[test]
    fn nothing_that_was_erased_is_given_to_whoever_reads_after_that() {
        let memory = Memory::default();
        let before = memory.hold(&event(1, 1000));
        let erased = Arc::new(Arc::into_inner(event(1, 1000)).unwrap().erased());
        let after = memory.hold(&erased);
        assert_eq!((after.event().kind, after.event().body.len()), (Kind::Erased, 0));
        let again = memory.hold(&erased);
        assert!(Arc::ptr_eq(again.event(), after.event()));
        drop((before, after, again));
        assert_eq!((held(&memory), lock(&memory.0.events).len()), (0, 0));
    }

    #[test]
    fn however_many_are_behind_each_has_a_share_and_all_of_them_keep_to_the_budget() {
        for sinks in [1, 2, 17, 60] {
            let memory = Memory::default();
            let mut feeds: Vec<(usize, Vec<Held>)> = (0..sinks).map(|_| (0, Vec::new())).collect();
            let mut seq = 0;
            // One after the other fills up, as those do that come one after the other.
            for (bytes, feed) in &mut feeds {
                while *bytes < memory.share() {
                    seq += 1;
                    let one = memory.hold(&event(seq, 60_000));
                    *bytes += one.weight();
                    feed.push(one);
                }
            }
            let least = feeds.iter().map(|(bytes, _)| *bytes).min().unwrap();
            assert!(least >= SHARE_MIN, "{sinks}: {least}");
            let most = BYTES_MAX + sinks * (SHARE_MIN + 100_000);
            assert!(held(&memory) <= most, "{sinks}: {}", held(&memory));
            if sinks == 1 {
                assert!(least >= BYTES_MAX / 2);
            }
        }
    }
}
