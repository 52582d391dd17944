//! One sink's progress through one range of the log: what is read, what is open, what may go next. Pure: no clock, no disk.
//!
//! Everything below `next` that is not *open* is finished (delivered, dead, lost, or not for this sink), so `next` and the
//! open events are all there is to save. The cursor, the low-water mark below which everything is finished, follows from
//! them and can't pass an event that is neither delivered nor dead (invariant I4).

mod parked;
mod saved;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::memory::{Held as InMemory, Memory};
use super::schedule::Ages;
use crate::config::Order;
use crate::event::{Event, Seq};
use crate::sorted;
use parked::Letter;
pub(super) use parked::{Parked, why_parked};
pub(super) use saved::{Saved, SavedItem, Tries, counted_on};
use settle::Span;
pub(super) use settle::{Held, Next};

/// Open events at the most: read, held back, being delivered or waiting for another try. Beyond, reading stops (I6).
const OPEN_MAX: usize = 2048;

/// Bytes of the bodies of open events in memory, roughly, however much is free.
const BYTES_MAX: usize = 16 << 20;

/// Names of the rules that sent an event.
pub(super) type Rules = Arc<[Arc<str>]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ready,
    InFlight,
    Waiting(Timestamp),
    /// Given up; making its letter is tried again then.
    Parked(Timestamp),
}

#[derive(Debug)]
struct Item {
    stage: Stage,
    /// `None` while it waits for another try, and after a restart: it is read again when it is due.
    loaded: Option<(InMemory, Rules)>,
    lead: Option<String>,
    received_at: Option<Timestamp>,
    tries: Tries,
    /// Until it is tried first, where the sink waits for objects to settle.
    held: Option<Held>,
    /// Its data was erased while it was being delivered: it is not tried again.
    erased: bool,
    /// `None` unless it is parked.
    letter: Option<Box<Letter>>,
}

impl Item {
    fn save(&self, seq: Seq) -> SavedItem {
        SavedItem {
            seq,
            tries: self.tries.clone(),
            due: match self.stage {
                Stage::Waiting(due) | Stage::Parked(due) => Some(due),
                Stage::Ready | Stage::InFlight => None,
            },
            lead: self.lead.clone(),
            received_at: self.received_at,
            held: self.held.clone(),
            parked: self.letter.as_ref().map(|letter| letter.parked.clone()),
        }
    }

    /// Nothing was done with it yet.
    fn is_untouched(&self) -> bool {
        self.stage == Stage::Ready && self.tries == Tries::default() && !self.erased && self.held.is_none()
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Feed {
    order: Order,
    next: Seq,
    open: BTreeMap<Seq, Item>,
    ready: BTreeSet<Seq>,
    waiting: BTreeSet<(Timestamp, Seq)>,
    parked: BTreeSet<Seq>,
    in_flight: usize,
    /// Nothing behind this was tried or finished, only read.
    touched: Seq,
    bytes: usize,
    /// Of all feeds.
    memory: Memory,
    leads: HashMap<String, BTreeSet<Seq>>,
    /// The newest event of each object that waits until it has settled.
    objects: HashMap<String, Seq>,
    /// Objects whose newest event so far was superseded by one that was not read yet.
    heirs: HashMap<String, Span>,
}

impl Feed {
    /// Goes on where it was saved; what was in flight then is delivered again.
    pub fn restore(saved: &Saved, order: Order) -> Feed {
        let mut feed = Feed {
            order,
            next: saved.next,
            open: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            parked: BTreeSet::new(),
            in_flight: 0,
            touched: saved.next.prev(),
            bytes: 0,
            memory: Memory::default(),
            leads: HashMap::new(),
            objects: HashMap::new(),
            heirs: HashMap::new(),
        };
        for item in &saved.open {
            feed.insert(
                item.seq,
                Item {
                    stage: match (item.due, &item.parked) {
                        (due, Some(_)) => Stage::Parked(due.unwrap_or_default()),
                        (Some(due), None) => Stage::Waiting(due),
                        (None, None) => Stage::Ready,
                    },
                    loaded: None,
                    // An older closehook kept them whole.
                    lead: item.lead.as_deref().map(kept),
                    received_at: item.received_at,
                    tries: item.tries.clone(),
                    held: item.held.as_ref().map(Held::kept),
                    erased: false,
                    letter: item.parked.clone().map(|parked| Box::new(parked.into())),
                },
            );
        }
        feed
    }

    /// The same with what it holds counted in `memory`, together with what others do. For one that holds nothing yet.
    pub fn within(self, memory: &Memory) -> Feed {
        Feed {
            memory: memory.clone(),
            ..self
        }
    }

    /// What has to be saved to go on from here. What was read ahead and never tried is left out: it is read again. A mark is written
    /// with every transaction of some sinks, and would mostly consist of it.
    pub fn save(&self) -> Saved {
        let next = self.next_saved();
        let open = self.open.range(..next).map(|(seq, item)| item.save(*seq));
        Saved {
            next,
            open: open.collect(),
        }
    }

    /// The same of a feed whose events were admitted: those that were tried. Others are admitted again.
    pub fn save_tried(&self) -> Saved {
        let was_tried = |item: &Item| item.tries.attempts > 0 || item.letter.is_some();
        let tried = self.open.iter().filter(|(_, item)| was_tried(item));
        Saved {
            next: Seq::ZERO,
            open: tried.map(|(seq, item)| item.save(*seq)).collect(),
        }
    }

    /// Where a restored feed reads on: what is read ahead, and nothing has happened to, is read again.
    pub fn next_saved(&self) -> Seq {
        let ahead = self.open.iter().rev();
        let ahead = ahead.take_while(|(seq, item)| **seq > self.touched && item.is_untouched());
        ahead.last().map_or(self.next, |(seq, _)| *seq)
    }

    /// The first Seq that was not read yet.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Everything up to here is finished.
    pub fn cursor(&self) -> Seq {
        self.open.keys().next().copied().unwrap_or(self.next).prev()
    }

    /// How many more events may be offered now.
    pub fn room(&self) -> usize {
        if self.has_memory() {
            OPEN_MAX.saturating_sub(self.open.len())
        } else {
            0
        }
    }

    /// Bytes of bodies that it may still take up.
    pub fn room_bytes(&self) -> usize {
        self.memory.share().min(BYTES_MAX).saturating_sub(self.bytes)
    }

    /// Everything below `next` was read; what was for this sink was offered.
    pub fn passed(&mut self, next: Seq) {
        debug_assert!(next >= self.next, "a feed only goes forward");
        self.next = next;
    }

    /// An event for this sink; in Seq order.
    pub fn offer(&mut self, event: &Arc<Event>, rules: Rules) {
        debug_assert!(event.seq >= self.next, "I4: events are offered in order and once");
        self.next = event.seq.next();
        let held = self.memory.hold(event);
        let event = held.event();
        let lead = self.lead_of(event);
        let received_at = Some(event.received_at);
        let seq = event.seq;
        let item = Item {
            stage: Stage::Ready,
            loaded: Some((held, rules)),
            lead,
            received_at,
            tries: Tries::default(),
            held: None,
            erased: false,
            letter: None,
        };
        self.insert(seq, item);
    }

    fn lead_of(&self, event: &Event) -> Option<String> {
        match self.order {
            Order::Lead => event.view().and_then(|view| view.lead_id.as_deref()).map(kept),
            Order::None | Order::Strict => None,
        }
    }

    /// An event that is read when it is to go, and that came then; in any order.
    pub fn admit(&mut self, seq: Seq, came: Timestamp) {
        let item = Item {
            stage: Stage::Ready,
            loaded: None,
            lead: None,
            received_at: Some(came),
            tries: Tries::default(),
            held: None,
            erased: false,
            letter: None,
        };
        if !self.has(seq) {
            self.insert(seq, item);
        }
    }

    /// Whether it is open.
    pub fn has(&self, seq: Seq) -> bool {
        self.open.contains_key(&seq)
    }

    fn insert(&mut self, seq: Seq, item: Item) {
        match item.stage {
            Stage::Ready => drop(self.ready.insert(seq)),
            Stage::Waiting(due) => drop(self.waiting.insert((due, seq))),
            Stage::Parked(_) => drop(self.parked.insert(seq)),
            Stage::InFlight => self.in_flight += 1,
        }
        if let Some(lead) = &item.lead {
            self.leads.entry(lead.clone()).or_default().insert(seq);
        }
        if let Some(held) = &item.held {
            self.objects.insert(held.object.clone(), seq);
        }
        self.bytes += weight(&item);
        self.open.insert(seq, item);
    }

    /// Up to `max` events that may be delivered now, in Seq order.
    pub fn deliverable(&mut self, now: Timestamp, max: usize) -> Vec<Seq> {
        while let Some((due, seq)) = self.waiting.first().copied().filter(|(due, _)| *due <= now) {
            self.waiting.remove(&(due, seq));
            self.ready.insert(seq);
            if let Some(item) = self.open.get_mut(&seq) {
                item.stage = Stage::Ready;
            }
        }
        match self.order {
            Order::None => self.ready.iter().take(max).copied().collect(),
            Order::Strict => self
                .open
                .iter()
                .take_while(|(_, item)| item.stage == Stage::Ready)
                .map(|(seq, _)| *seq)
                .take(max)
                .collect(),
            Order::Lead => self
                .ready
                .iter()
                .filter(|seq| self.leads_its_lead(**seq))
                .take(max)
                .copied()
                .collect(),
        }
    }

    /// The same, those that were tried least first: what goes while it is not known whether the sink takes anything. One over which it falls
    /// is no more than one of these then, however soon that is due again. In strict order there is none to be chosen.
    pub fn least_tried(&mut self, now: Timestamp, max: usize) -> Vec<Seq> {
        if self.order == Order::Strict {
            return self.deliverable(now, max);
        }
        let mut all = self.deliverable(now, usize::MAX);
        sorted::sort_by_key(&mut all, |seq| self.tries(*seq).map_or(0, |tries| tries.attempts));
        all.truncate(max);
        all
    }

    fn leads_its_lead(&self, seq: Seq) -> bool {
        let lead = self.open.get(&seq).and_then(|item| item.lead.as_ref());
        lead.and_then(|lead| self.leads.get(lead))
            .and_then(BTreeSet::first)
            .is_none_or(|first| *first == seq)
    }

    /// The event and its rules, if they are in memory.
    pub fn loaded(&self, seq: Seq) -> Option<(Arc<Event>, Rules)> {
        let (held, rules) = self.open.get(&seq)?.loaded.as_ref()?;
        Some((held.event().clone(), rules.clone()))
    }

    /// When the first of these came, as far as it is known.
    pub fn came_first(&self, seqs: &[Seq]) -> Option<Timestamp> {
        seqs.iter().filter_map(|seq| self.open.get(seq)?.received_at).min()
    }

    /// Lets the bodies go of what may be delivered: it is read again then.
    pub fn unload(&mut self) {
        for seq in &self.ready {
            if let Some(item) = self.open.get_mut(seq) {
                self.bytes -= weight(item);
                item.loaded = None;
            }
        }
    }

    /// The event was read again. Gives it as it is held.
    pub fn load(&mut self, event: &Arc<Event>, rules: Rules) -> Arc<Event> {
        let held = self.memory.hold(event);
        let event = held.event().clone();
        if let Some(item) = self.open.get_mut(&event.seq) {
            self.bytes -= weight(item);
            item.received_at.get_or_insert(event.received_at);
            item.loaded = Some((held, rules));
            self.bytes += weight(item);
        }
        event
    }

    /// What waits in memory is judged once more; what is not wanted any more is finished, and these are its Seqs.
    pub fn judge_again(&mut self, route: impl Fn(&Event) -> Option<Rules>) -> Vec<Seq> {
        let mut unwanted = Vec::new();
        for (seq, item) in self.open.iter_mut().filter(|(_, item)| item.stage == Stage::Ready) {
            let Some((held, rules)) = &mut item.loaded else {
                continue;
            };
            match route(held.event()) {
                Some(names) => *rules = names,
                None => unwanted.push(*seq),
            }
        }
        for seq in &unwanted {
            self.finished(*seq);
        }
        unwanted
    }

    /// A try begins; gives its number, counted from 1.
    pub fn started(&mut self, seq: Seq, now: Timestamp) -> u32 {
        let Some(item) = self.open.get_mut(&seq) else { return 1 };
        self.touched = self.touched.max(seq);
        self.ready.remove(&seq);
        item.stage = Stage::InFlight;
        self.in_flight += 1;
        item.tries.attempts = item.tries.attempts.saturating_add(1);
        item.tries.first_attempt.get_or_insert(now);
        item.tries.counted_from.get_or_insert(now);
        let (attempts, held) = (item.tries.attempts, item.held.take());
        self.let_go(seq, held);
        attempts
    }

    /// Whether it may go now, as far as it is about itself.
    pub fn is_ready(&self, seq: Seq) -> bool {
        self.ready.contains(&seq)
    }

    /// A try that began said nothing about the event: it does not count, and the event may go again.
    pub fn unstarted(&mut self, seq: Seq) {
        let Some(item) = self.open.get_mut(&seq) else { return };
        if item.stage != Stage::InFlight {
            return;
        }
        self.in_flight -= 1;
        item.stage = Stage::Ready;
        item.tries.attempts = item.tries.attempts.saturating_sub(1);
        if item.tries.attempts == 0 {
            item.tries.first_attempt = None;
            item.tries.counted_from = None;
        }
        self.ready.insert(seq);
    }

    /// Up to `max` events, none of them being delivered or given up, whose first try, or first held-up dispatch (`held_since`, or when they might
    /// go, which is `apart` after they came), was `max_age` ago; and when the next one will be so old. Tries and `held_since`, from when on
    /// that counts, are told by the clock of `ages`, which nobody sets; events by the machine's, which shows `wall` at this moment and may
    /// have been set since.
    pub fn overdue(
        &self,
        held_since: Option<Timestamp>,
        max_age: SignedDuration,
        apart: SignedDuration,
        (ages, wall): (Ages, Timestamp),
        max: usize,
    ) -> (Vec<Seq>, Option<Timestamp>) {
        let now = ages.now();
        let ahead = now.duration_since(wall).saturating_add(apart);
        let came = |item: &Item| item.received_at.and_then(|at| at.checked_add(ahead).ok());
        let (mut found, mut next) = (Vec::new(), None);
        for (seq, item) in &self.open {
            let tries = &item.tries;
            let begun = tries.first_attempt.map(|first| ages.counted(first, tries.counted_from));
            let held = held_since.map(|since| came(item).map_or(since, |at| at.max(since)));
            let Some(first) = begun.into_iter().chain(held).min() else {
                continue;
            };
            let end = first.checked_add(max_age).unwrap_or(Timestamp::MAX);
            if matches!(item.stage, Stage::InFlight | Stage::Parked(_)) {
                continue;
            }
            if end <= now && found.len() < max {
                found.push(*seq);
            } else {
                next = Some(next.map_or(end, |next: Timestamp| next.min(end)));
            }
        }
        (found, next)
    }

    /// Bytes of bodies that it holds.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a body may be read again: one in any case, where nothing of it is under way that would make room.
    pub fn may_load(&self) -> bool {
        self.has_memory() || self.in_flight == 0
    }

    /// Whether one more body may be read ahead.
    pub fn has_memory(&self) -> bool {
        self.room_bytes() > 0
    }

    /// The tries of an open event; `None` when it is finished.
    pub fn tries(&self, seq: Seq) -> Option<&Tries> {
        self.open.get(&seq).map(|item| &item.tries)
    }

    /// The event is finished: delivered, dead, lost, or not for this sink any more.
    pub fn finished(&mut self, seq: Seq) {
        let Some(mut item) = self.open.remove(&seq) else { return };
        self.let_go(seq, item.held.take());
        self.touched = self.touched.max(seq);
        self.bytes -= weight(&item);
        self.leaves(seq, item.stage);
        if let Some(lead) = item.lead
            && let Some(seqs) = self.leads.get_mut(&lead)
        {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.leads.remove(&lead);
            }
        }
    }

    /// An open event is in this stage no more.
    fn leaves(&mut self, seq: Seq, stage: Stage) {
        match stage {
            Stage::Ready => drop(self.ready.remove(&seq)),
            Stage::Waiting(due) => drop(self.waiting.remove(&(due, seq))),
            Stage::Parked(_) => drop(self.parked.remove(&seq)),
            Stage::InFlight => self.in_flight -= 1,
        }
    }

    /// The data of these was erased: nothing of it stays here. What is being delivered may end; the rest is finished. Gives whether any
    /// was open.
    pub fn erase(&mut self, seqs: &BTreeSet<Seq>) -> bool {
        let open: Vec<Seq> = seqs.iter().copied().filter(|seq| self.open.contains_key(seq)).collect();
        for seq in &open {
            match self.open.get_mut(seq) {
                Some(item) if item.stage == Stage::InFlight => {
                    self.bytes -= weight(item);
                    item.loaded = None;
                    item.erased = true;
                }
                _ => self.finished(*seq),
            }
        }
        !open.is_empty()
    }

    /// Whether the event's data was erased while it was being delivered.
    pub fn is_erased(&self, seq: Seq) -> bool {
        self.open.get(&seq).is_some_and(|item| item.erased)
    }

    /// A try failed; the next one is due then. The body is let go meanwhile.
    pub fn failed(&mut self, seq: Seq, due: Timestamp, reason: String) {
        let Some(item) = self.open.get_mut(&seq) else { return };
        self.bytes -= weight(item);
        item.loaded = None;
        item.tries.reason = reason;
        item.letter = None;
        let before = std::mem::replace(&mut item.stage, Stage::Waiting(due));
        self.leaves(seq, before);
        self.waiting.insert((due, seq));
    }

    /// When the next waiting event is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Deliveries running.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Events waiting for another try.
    pub fn retrying(&self) -> usize {
        self.open
            .values()
            .filter(|item| item.tries.attempts > 0 && item.stage != Stage::InFlight)
            .count()
    }

    /// How many events are open.
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The oldest open Seqs up to and with `upto` that are not being delivered, nor given up, at most `max`.
    pub fn idle_upto(&self, upto: Seq, max: usize) -> Vec<Seq> {
        let idle = self
            .open
            .range(..=upto)
            .filter(|(_, item)| !matches!(item.stage, Stage::InFlight | Stage::Parked(_)));
        idle.map(|(seq, _)| *seq).take(max).collect()
    }

    /// The open Seqs.
    pub fn open_seqs(&self) -> Vec<Seq> {
        self.open.keys().copied().collect()
    }

    /// When the oldest open event was received, where that is known.
    pub fn oldest_open(&self) -> Option<Timestamp> {
        self.open.values().next().and_then(|item| item.received_at)
    }

    /// What is going on with an open event: whether it is being delivered, and when it is due.
    pub fn stage(&self, seq: Seq) -> Option<(bool, Option<Timestamp>)> {
        self.open.get(&seq).map(|item| match item.stage {
            Stage::InFlight => (true, None),
            Stage::Waiting(due) | Stage::Parked(due) => (false, Some(due)),
            Stage::Ready => (false, None),
        })
    }
}

/// An id is kept up to this length; Close's have some 40.
const ID_MAX: usize = 71;

/// An id of an object or a lead as it is kept, in memory and in each mark: a longer one stands as its digest.
fn kept(id: &str) -> String {
    if id.len() <= ID_MAX {
        return id.to_owned();
    }
    format!("sha256:{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(id)))
}

/// Whether it is kept as it is.
fn is_whole(kept: &str) -> bool {
    !kept.starts_with("sha256:")
}

/// Bytes that are really held for an item.
fn weight(item: &Item) -> usize {
    item.loaded.as_ref().map_or(0, |(held, _)| held.weight())
}

#[cfg(test)]
mod tests;
