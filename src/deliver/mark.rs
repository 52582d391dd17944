//! How far a sink is: its mark, one durable record.
//!
//! A record is self-contained: with it and the log everything goes on. It holds the main feed and the replays' feeds (what is
//! finished, what is open), the position of the sink's own data, and the letters that are to be removed because they were delivered.
//! Nobody but the sink's worker changes it while that runs; everybody else reads it. What a receiver keeps of it is `receiver`, and what follows
//! from all of them together is `floor`.

mod receiver;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::ReplaySpec;
use super::fates::Fates;
use super::feed::{Saved, counted_on};
use super::letters::{Extent, Letters};
use super::schedule;
use super::seqs::Seqs;
use super::trail::{Last, Trail};
use crate::event::Seq;
use crate::sinks::Position;

/// Ranges of lost events that are remembered, the newest.
pub(super) const LOST_RANGES_MAX: usize = 64;

/// What is saved for a sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `None` until the sink's start is settled.
    pub main: Option<Saved>,
    pub position: Option<Position>,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub lost: u64,
    #[serde(default)]
    pub replays: BTreeMap<String, ReplayRecord>,
    /// When the sink left the configuration.
    #[serde(default)]
    pub detached_at: Option<Timestamp>,
    /// When this was saved; `None` before the first time.
    #[serde(default)]
    pub saved_at: Option<Timestamp>,
    /// The process that saved it: `schedule::process`; `None` where an older closehook did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_by: Option<String>,
    /// Where the sink began; `None` where an older closehook settled it.
    #[serde(default)]
    pub begin: Option<Seq>,
    /// The newest ranges counted in `lost`.
    #[serde(default)]
    pub lost_ranges: Vec<(Seq, Seq)>,
    /// Dead letters made because the log reached its size limit.
    #[serde(default)]
    pub buried: u64,
    /// Since when it takes nothing; `None` while it works.
    #[serde(default)]
    pub held_since: Option<Timestamp>,
    /// From when on that counts, by the clock of the process that saved this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_counted_from: Option<Timestamp>,
    /// Letters that were delivered: to be removed once this is durable.
    #[serde(default)]
    pub remove: Vec<Seq>,
    /// What other sinks gave up and was tried here in vain so far; the letters' file has the rest.
    #[serde(default, skip_serializing_if = "Saved::is_idle")]
    pub given: Saved,
    /// What became of what is finished.
    #[serde(default)]
    pub fates: Fates,
    /// Transactions that the receiver is known to have committed.
    #[serde(default)]
    pub commits: u64,
    /// The receiver had no mark although it had committed; until somebody has seen to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmarked: Option<Unmarked>,
    /// When its position was found to be lost to damage, and it began anew; until somebody has seen that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_anew: Option<Timestamp>,
    /// Of the lease under which this was saved, where several nodes share the log: it rises with each change of hands.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// The log whose Seqs these are, where several nodes share one; `None` where an older closehook saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<String>,
    /// The log had lost what the sink had seen up to here, and has to go on behind it before anything is delivered; `None` once it is known
    /// that it does. Durable with what the record was taken back to: that fits the log, so nothing else would say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unskipped: Option<Seq>,
    /// The newest event below where the main feed goes on, of a sink whose receiver keeps the mark; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
    /// How much of the file of its dead letters is durable; `None` where there is none, or that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters: Option<Extent>,
    /// Of what the sink is finished with up to here letters were lost to damage, and nobody knows which.
    #[serde(default, skip_serializing_if = "is_zero_seq")]
    pub letters_lost_upto: Seq,
    /// By what the damage is told that this was noted of: the same is not noted again as long as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_doubted: Option<u64>,
    /// Since when letters are known to have been lost to damage; until somebody has seen that. Whoever has found it may have been a command,
    /// of which nobody reads what it says of other sinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_lost: Option<Timestamp>,
    /// By what the damage is told that somebody has seen: it is not said again, however long it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_seen: Option<u64>,
    /// In a receiver's mark: new events that it has got since the record that was durable here. Empty in a record.
    #[serde(default, skip_serializing_if = "Seqs::is_empty")]
    pub delivered: Seqs,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(fence: &u64) -> bool {
    *fence == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero_seq(seq: &Seq) -> bool {
    *seq == Seq::ZERO
}

/// A receiver that keeps the mark had none, and should have had one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unmarked {
    /// When that was seen.
    pub at: Timestamp,
    /// Transactions that it had committed.
    pub commits: u64,
    /// Where the sink goes on.
    pub cursor: Seq,
}

impl Unmarked {
    /// What it means and what to do, one sentence.
    pub fn words(&self, sink: &str) -> String {
        format!(
            "the receiver had no mark of this sink, although it had committed {} transactions up to event {}: its database was put back empty, is another one, or lost the mark; new events go there, and what it has lost does not come by itself: `closehook replay --sink {sink}` sends it again, `closehook sinks resume {sink}` says that nothing is missing",
            self.commits, self.cursor
        )
    }
}

/// A replay job as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobRecord {
    pub spec: ReplaySpec,
    pub planned: BTreeMap<String, u64>,
    pub created_at: Timestamp,
    pub running: bool,
    /// Sinks that were forgotten since, with what they had got by then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forgotten: BTreeMap<String, ReplayRecord>,
}

impl JobRecord {
    /// Whether the sink is to get anything of it.
    pub fn is_for(&self, sink: &str) -> bool {
        self.planned.contains_key(sink) && !self.forgotten.contains_key(sink)
    }
}

/// A replay's progress at one sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ReplayRecord {
    pub saved: Saved,
    pub delivered: u64,
    pub dead: u64,
    pub done: bool,
    /// Of which the sink's transform wanted nothing delivered.
    #[serde(default)]
    pub skipped: u64,
    /// Passed undelivered because the log reached its size limit.
    #[serde(default)]
    pub lost: u64,
}

/// Where a sink's record is kept.
pub(super) fn record_key(sink: &str) -> String {
    format!("sink/{sink}")
}

/// What the keys of records begin with.
pub(super) const RECORDS: &str = "sink/";

/// What the keys of replay jobs begin with.
pub(super) const JOBS: &str = "replay/";

impl Record {
    /// If the machine's clock was set back since this was saved, nothing has to wait for it to catch up; and where another process saved
    /// it, what has waited there for long goes on growing old from here. What follows is a record of this process, which does so once.
    pub fn follow_clock(&mut self, now: Timestamp) {
        let saved_at = self.saved_at;
        let is_own = match &self.saved_by {
            Some(by) => by == schedule::process(),
            None => saved_at.is_some_and(|at| (schedule::began()..=now).contains(&at)),
        };
        if !is_own {
            self.feeds_mut().for_each(|saved| saved.count_on(saved_at, now));
            let from = counted_on(self.held_counted_from, saved_at, now);
            self.held_counted_from = self.held_since.and(Some(from));
        }
        let ahead = self.saved_at.map_or(SignedDuration::ZERO, |at| at.duration_since(now));
        if ahead.is_positive() {
            self.feeds_mut().for_each(|saved| saved.set_back(ahead, now));
            // One that is past may have been noted by a clock that was right.
            let back = |at: Timestamp| if at > now { at.checked_sub(ahead).ok() } else { Some(at) };
            self.held_since = self.held_since.and_then(back);
        }
        if !is_own || ahead.is_positive() {
            self.saved_now(now);
        }
    }

    /// What it says of times is by the clock of this process, at this moment.
    pub fn saved_now(&mut self, now: Timestamp) {
        self.saved_at = Some(now);
        self.saved_by = Some(schedule::process().to_owned());
    }

    fn feeds_mut(&mut self) -> impl Iterator<Item = &mut Saved> {
        let replays = self.replays.values_mut().map(|replay| &mut replay.saved);
        replays.chain(&mut self.main).chain([&mut self.given])
    }

    /// From now on it takes nothing, unless it has not done so before.
    pub fn hold(&mut self, now: Timestamp) {
        if self.held_since.is_none() {
            (self.held_since, self.held_counted_from) = (Some(now), Some(now));
        }
    }

    /// It works.
    pub fn release(&mut self) {
        (self.held_since, self.held_counted_from) = (None, None);
    }

    /// The sink begins here.
    pub fn begin_at(&mut self, start: Seq) {
        self.begin = Some(start);
        self.main = Some(Saved {
            next: start,
            open: Vec::new(),
        });
    }

    /// What is known of the log where the main feed goes on.
    pub fn trail(&self) -> Trail {
        Trail::at(self.main.as_ref().map(|main| main.next), self.last.as_ref())
    }

    /// Everything up to here is finished; `None` while the start is not settled.
    pub fn cursor(&self) -> Option<Seq> {
        Some(unfinished(self.main.as_ref()?).prev())
    }

    /// The newest event before where the main feed goes on.
    pub fn passed(&self) -> Seq {
        self.main.as_ref().map_or(Seq::ZERO, |main| main.next.prev())
    }

    /// Compares the letters, which were read, with what was noted of them. Where damage has taken some it may be that of any event before
    /// where the main feed goes on; what comes behind is delivered if it has no letter. `true`: that is news, and has to be saved. Blocking.
    pub fn compare_letters(&mut self, letters: &Letters) -> bool {
        let noted = self.letters.filter(|_| !letters.is_shared());
        let is_cut = noted.is_some_and(|noted| letters.lacks(noted));
        let upto = self.passed();
        let is_damaged = self.doubt_letters(letters, upto);
        if is_cut {
            // What is saved next says how much there is now.
            self.lose_letters(upto);
        }
        is_cut || is_damaged
    }

    /// Notes damage that was found where the letters are, once: of what comes before here some letter may be lost. `true`: that is news.
    pub fn doubt_letters(&mut self, letters: &Letters, upto: Seq) -> bool {
        let mark = letters.damage_mark();
        let is_news = if letters.is_shared() {
            // Places rise: a node that has not read as far finds an earlier one, which was noted as well.
            mark > self.letters_doubted
        } else {
            mark.is_some() && mark != self.letters_doubted
        };
        if !is_news {
            return false;
        }
        self.letters_doubted = mark;
        self.lose_letters(upto);
        true
    }

    fn lose_letters(&mut self, upto: Seq) {
        // A sink that has read nothing yet may have had letters all the same, from others.
        self.letters_lost_upto = self.letters_lost_upto.max(upto).max(Seq(1));
        self.letters_lost.get_or_insert_with(Timestamp::now);
    }

    /// The newest durable record, with what people have ordered since: a part of what is to be saved, which waits for nothing.
    pub fn with_orders_of(&self, now: &Record) -> Record {
        Record {
            paused: now.paused,
            unmarked: now.unmarked.clone(),
            begun_anew: now.begun_anew,
            letters_lost: now.letters_lost,
            letters_seen: now.letters_seen,
            ..self.clone()
        }
    }

    /// Whether what people have ordered is in both the same.
    pub fn has_orders_of(&self, now: &Record) -> bool {
        let orders = |record: &Record| {
            (
                record.paused,
                record.begun_anew,
                record.letters_lost,
                record.letters_seen,
            )
        };
        orders(self) == orders(now) && self.unmarked == now.unmarked
    }

    /// Whether the sink is finished with an event.
    pub fn has_finished(&self, seq: Seq) -> bool {
        let main = self.main.as_ref().filter(|main| seq < main.next);
        main.is_some_and(|main| main.open.iter().all(|item| item.seq != seq))
    }

    /// Events were gone before the sink had them; what is known to be lost is counted once.
    pub fn count_lost(&mut self, from: Seq, to: Seq) {
        if self
            .lost_ranges
            .iter()
            .any(|(first, last)| *first <= from && to <= *last)
        {
            return;
        }
        self.lost += to.0 - from.0 + 1;
        match self.lost_ranges.last_mut() {
            Some((_, last)) if last.next() == from => *last = to,
            _ => self.lost_ranges.push((from, to)),
        }
        if self.lost_ranges.len() > LOST_RANGES_MAX {
            let (_, upto) = self.lost_ranges.remove(0);
            self.fates.forget(Some(upto));
        }
    }

    /// Whether the event is known to have been lost for the sink.
    pub fn has_lost(&self, seq: Seq) -> bool {
        self.lost_ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }
}

/// The first event that is not finished.
pub(super) fn unfinished(saved: &Saved) -> Seq {
    saved.open.first().map_or(saved.next, |item| item.seq)
}

#[cfg(test)]
pub(in crate::deliver) mod tests;
