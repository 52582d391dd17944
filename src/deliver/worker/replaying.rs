//! A replay's progress at one sink.

use std::sync::Arc;

use crate::config::Order;
use crate::deliver::feed::{Feed, Saved};
use crate::deliver::letters::Letters;
use crate::deliver::mark::ReplayRecord;
use crate::deliver::memory::Memory;
use crate::deliver::replay::Job;
use crate::event::Seq;

/// A replay's progress.
#[derive(Debug)]
pub(super) struct Replaying {
    pub job: Arc<Job>,
    pub feed: Feed,
    pub delivered: u64,
    pub dead: u64,
    pub skipped: u64,
    pub lost: u64,
    /// Those of `lost` that lie behind what is not finished: they are met again when that is gone back to.
    lost_ahead: Vec<(Seq, Seq)>,
    pub done: bool,
    /// The rule that it goes by is there no more, or not for this sink: it waits.
    pub unruled: bool,
    /// The log has something here, and this node has not heard of it yet.
    unheard: Option<Seq>,
}

impl Replaying {
    pub fn new(job: Arc<Job>, record: &ReplayRecord, order: Order, memory: &Memory) -> Replaying {
        Replaying {
            job,
            feed: Feed::restore(&record.saved, order).within(memory),
            delivered: record.delivered,
            dead: record.dead,
            skipped: record.skipped,
            lost: record.lost,
            lost_ahead: Vec::new(),
            done: record.done,
            unruled: false,
            unheard: None,
        }
    }

    /// What another sink has got of its deliveries is finished, which its mark may not have said yet.
    pub fn pass_diverted(&mut self, letters: &Letters) {
        for seq in letters.diverted_by(&self.job.id, self.feed.open_seqs()) {
            self.feed.finished(seq);
            self.dead += 1;
        }
    }

    /// Events of a range that has just been read are gone.
    pub fn has_lost(&mut self, from: Seq, to: Seq) {
        let upto = self.feed.next_saved();
        self.lost_ahead.retain(|(first, _)| *first >= upto);
        let to = to.min(self.job.spec.to);
        if from <= to {
            self.lost += to.0 - from.0 + 1;
            self.lost_ahead.push((from, to));
        }
    }

    /// Whether there is something to be read for it, where this node has heard of the log up to `head`, and the main feed goes on at
    /// `main`. What is released goes behind that: whether an event is its own is known when it has passed it.
    pub fn wants_more(&self, head: Seq, main: Seq) -> bool {
        let is_heard = self.unheard.is_none_or(|unheard| unheard <= head);
        let next = self.feed.next();
        let is_behind = !self.job.spec.releases || next < main;
        let has_room = next <= self.job.spec.to && self.feed.room() > 0;
        self.goes() && has_room && is_heard && is_behind
    }

    /// Whether it has anything to do, as far as nothing stops it.
    pub fn goes(&self) -> bool {
        self.job.is_running() && !self.done && !self.unruled
    }

    /// Whether it is gone, and all that was under way of it has come to its end.
    pub fn is_over(&self) -> bool {
        self.job.is_gone() && self.feed.in_flight() == 0 && self.feed.parked_len() == 0
    }

    /// Nothing is read for it before this node has heard of what the log has here.
    pub fn waits_until_heard(&mut self, of: Seq) {
        self.unheard = Some(of);
    }

    /// As it is kept.
    pub fn record(&self) -> ReplayRecord {
        let saved = self.feed.save();
        let ahead = self.lost_ahead.iter().filter(|(first, _)| *first >= saved.next);
        let ahead: u64 = ahead.map(|(first, last)| last.0 - first.0 + 1).sum();
        ReplayRecord {
            saved,
            delivered: self.delivered,
            dead: self.dead,
            skipped: self.skipped,
            done: self.done,
            lost: self.lost - ahead,
        }
    }
}

/// A replay that was not begun yet.
pub(super) fn fresh(job: &Job) -> ReplayRecord {
    ReplayRecord {
        saved: Saved {
            next: job.spec.from,
            open: Vec::new(),
        },
        ..ReplayRecord::default()
    }
}
