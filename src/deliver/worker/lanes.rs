//! Where a sink's deliveries come from: the main feed, dead letters that are tried again, replays. Pure but for the letters' index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::super::feed::Feed;
use super::super::letters::Letters;
use super::super::mark::{Record, ReplayRecord};
use super::super::memory::Memory;
use super::super::replay::Job;
use super::queue::{ERASED, Queue};
use super::replaying::{Replaying, fresh};
use crate::config::Order;
use crate::event::{Dead, Origin, Seq};
use crate::sorted;

/// Of what other sinks gave up so many are looked at, at the most.
pub(super) const LOOKED_AT_MAX: usize = 1024;

/// Which of the sources an event came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lane {
    Main,
    Replay(Arc<str>),
    Letters,
    /// What other sinks gave up.
    Given,
}

impl Lane {
    pub fn origin(&self) -> Origin {
        match self {
            Lane::Main => Origin::Live,
            Lane::Replay(id) => Origin::Replay(id.clone()),
            // What is known of where it was given up is put in for each.
            Lane::Letters | Lane::Given => Origin::Letter,
        }
    }

    /// The replay whose it is.
    pub fn replay(&self) -> Option<&Arc<str>> {
        match self {
            Lane::Replay(id) => Some(id),
            Lane::Main | Lane::Letters | Lane::Given => None,
        }
    }
}

/// Of which lanes erased data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) enum Reach {
    /// Of all: nothing is kept of it anywhere.
    Everything,
    /// Of letters alone, this sink's and those of others: the log still has it, and new events and replays go on.
    Letters,
}

impl Reach {
    pub(super) fn covers(self, lane: &Lane) -> bool {
        self == Reach::Everything || matches!(lane, Lane::Letters | Lane::Given)
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Lanes {
    pub main: Feed,
    pub letters: Queue,
    /// Of what other sinks gave up, as much as is looked at; the letters' file has the rest, and says what is done.
    pub given: Feed,
    /// Why they did, of those that were read.
    pub given_up: BTreeMap<Seq, Arc<Dead>>,
    pub replays: Vec<Replaying>,
    /// The newest batch was of new events.
    main_went: bool,
    /// Which of the others went last; `None` before the first time.
    went: Option<Lane>,
    /// What all feeds hold.
    memory: Memory,
}

impl Lanes {
    /// Goes on where a record says. What became a dead letter after it was saved is finished, and so is what went to another sink of a
    /// replay: its own dead letters say nothing of which delivery they are.
    pub fn restore(record: &Record, jobs: &[Arc<Job>], order: Order, letters: &Letters, memory: &Memory) -> Lanes {
        let saved = record.main.clone().unwrap_or_default();
        let mut main = Feed::restore(&saved, order).within(memory);
        for seq in main.open_seqs() {
            if letters.is_dead(seq) {
                main.finished(seq);
            }
        }
        // A job this sink has no record of was begun right before the last stop: it begins again.
        let replay = |job: &Arc<Job>| {
            let saved = record.replays.get(&*job.id).cloned();
            let saved = saved.unwrap_or_else(|| fresh(job));
            let mut replay = Replaying::new(job.clone(), &saved, order, memory);
            replay.pass_diverted(letters);
            replay
        };
        let mut tried = record.given.clone();
        tried
            .open
            .retain(|item| letters.is_given(item.seq) && !record.remove.contains(&item.seq));
        Lanes {
            main,
            letters: Queue::new(&record.remove, memory),
            given: Feed::restore(&tried, Order::None).within(memory),
            given_up: BTreeMap::new(),
            replays: jobs.iter().map(replay).collect(),
            main_went: false,
            went: None,
            memory: memory.clone(),
        }
    }

    /// Begins a replay unless it is there already, or gone by now.
    pub fn begin(&mut self, job: &Arc<Job>, order: Order) {
        if !job.is_gone() && !self.replays.iter().any(|replay| replay.job.id == job.id) {
            self.replays
                .push(Replaying::new(job.clone(), &fresh(job), order, &self.memory));
        }
    }

    /// All lanes, in the order in which they may go now: new events and the others take turns, and the others among themselves, so that
    /// none waits for ever behind one that is always busy.
    pub fn turns(&self) -> Vec<Lane> {
        let mut others = vec![Lane::Letters, Lane::Given];
        others.extend(self.replays.iter().map(|replay| Lane::Replay(replay.job.id.clone())));
        let went = self.went.as_ref();
        let last = others.iter().position(|lane| Some(lane) == went);
        others.rotate_left(last.map_or(0, |last| last + 1));
        let main = if self.main_went { others.len() } else { 0 };
        others.insert(main, Lane::Main);
        others
    }

    /// A batch of this lane goes.
    pub fn goes(&mut self, lane: &Lane) {
        self.main_went = *lane == Lane::Main;
        if !self.main_went {
            self.went = Some(lane.clone());
        }
    }

    /// The feed of a lane; letters have none.
    pub fn feed(&mut self, lane: &Lane) -> Option<&mut Feed> {
        match lane {
            Lane::Main => Some(&mut self.main),
            Lane::Replay(id) => self.replay(id).map(|replay| &mut replay.feed),
            Lane::Given => Some(&mut self.given),
            Lane::Letters => None,
        }
    }

    /// How a delivery of a lane came about.
    pub fn origin(&self, lane: &Lane, seq: Seq) -> Origin {
        let given_up = self.given_up.get(&seq).filter(|_| *lane == Lane::Given);
        given_up.map_or_else(|| lane.origin(), |dead| Origin::Diverted(dead.clone()))
    }

    /// Looks at more of what other sinks gave up, where there is any.
    pub fn take_given(&mut self, letters: &Letters) {
        let open = self.given.open_len();
        if open >= LOOKED_AT_MAX / 2 || letters.given_len() <= open {
            return;
        }
        let (given, done) = (&self.given, self.letters.done());
        let more = letters.given(LOOKED_AT_MAX - open, |seq| given.has(seq) || done.contains(&seq));
        for (seq, since) in more {
            self.given.admit(seq, since);
        }
        let given = &self.given;
        self.given_up.retain(|seq, _| given.has(*seq));
    }

    /// Those of which the letter is being delivered, or was and has not gone yet; or is to go on to another sink.
    pub fn leaving(&self) -> BTreeSet<Seq> {
        let is_in_flight = |seq: Seq| self.given.stage(seq).is_some_and(|(is_in_flight, _)| is_in_flight);
        let is_leaving = |seq: &Seq| is_in_flight(*seq) || self.given.is_parked(*seq);
        let given = self.given.open_seqs().into_iter().filter(is_leaving);
        given.chain(self.letters.handed()).collect()
    }

    pub fn replay(&mut self, id: &str) -> Option<&mut Replaying> {
        self.replays.iter_mut().find(|replay| &*replay.job.id == id)
    }

    /// The data of these was erased: what waits is not tried, what is being delivered may end. Gives whether any was open.
    pub fn erase(&mut self, seqs: &BTreeSet<Seq>, reach: Reach) -> bool {
        self.letters.erase(seqs);
        self.given.erase(seqs);
        if reach == Reach::Letters {
            return false;
        }
        let replays = self.replays.iter_mut().map(|replay| replay.feed.erase(seqs));
        replays.fold(self.main.erase(seqs), |any, erased| any | erased)
    }

    /// A delivery failed. `true`: its data was erased meanwhile, and that is its end.
    pub fn ends_erased(&mut self, lane: &Lane, seq: Seq) -> bool {
        if *lane == Lane::Letters {
            let is_erased = self.letters.is_erased(seq);
            if is_erased {
                self.letters.failed(seq, ERASED);
            }
            return is_erased;
        }
        let feed = self.feed(lane).filter(|feed| feed.is_erased(seq));
        feed.map(|feed| feed.finished(seq)).is_some()
    }

    /// What the lanes add to a record.
    pub fn save(&self, record: &Record, with_main: bool) -> Record {
        let main = (with_main || record.main.is_some()).then(|| self.main.save());
        Record {
            main,
            replays: self.replay_records(),
            given: self.given.save_tried(),
            remove: self.letters.done().iter().copied().collect(),
            ..record.clone()
        }
    }

    /// The same as people see it: with everything that is known to be lost.
    pub fn replays_shown(&self) -> BTreeMap<String, ReplayRecord> {
        let mut records = self.replay_records();
        for replay in &self.replays {
            if let Some(record) = records.get_mut(&*replay.job.id) {
                record.lost = replay.lost;
            }
        }
        records
    }

    pub fn replay_records(&self) -> BTreeMap<String, ReplayRecord> {
        let replays = self.replays.iter();
        sorted::map(replays.map(|replay| (replay.job.id.to_string(), replay.record())))
    }

    /// Whether there are replays that may be let go of.
    pub fn may_drop_replays(&self) -> bool {
        self.replays.iter().any(|replay| replay.done || replay.is_over())
    }

    /// Lets go of replays that have come to their end and are not known any more.
    pub fn keep_replays(&mut self, is_known: impl Fn(&str) -> bool) {
        self.replays.retain(|replay| {
            let has_ended = replay.done || replay.unruled || replay.is_over();
            !has_ended || is_known(&replay.job.id)
        });
    }

    /// Marks replays that have come to their end; `true` if any has.
    pub fn finish_replays(&mut self) -> bool {
        let mut any = false;
        for replay in &mut self.replays {
            if !replay.done && replay.feed.next() > replay.job.spec.to && replay.feed.is_idle() {
                replay.done = true;
                any = true;
            }
        }
        any
    }

    /// Whether anything but new events, and what other sinks gave up, may be delivered now.
    pub fn others_ready(&mut self, now: Timestamp) -> bool {
        self.letters.is_ready()
            || self
                .replays
                .iter_mut()
                .any(|replay| replay.goes() && !replay.feed.deliverable(now, 1).is_empty())
    }

    /// Whether there is or will be something to deliver that is known already.
    pub fn any_work(&self) -> bool {
        !self.main.is_idle() || self.letters.has_waiting() || self.replays.iter().any(Replaying::goes)
    }

    /// When the next event is due that waits for another try.
    pub fn next_due(&self, with_main: bool) -> Option<Timestamp> {
        let main = self.main.next_due().filter(|_| with_main);
        let running = self.replays.iter().filter(|replay| replay.goes());
        let replays = running.filter_map(|replay| replay.feed.next_due());
        let given = self.given.next_due().filter(|_| with_main);
        replays.chain(main).chain(given).min()
    }

    pub fn in_flight(&self) -> usize {
        let replays = self.replays.iter().map(|replay| replay.feed.in_flight());
        self.main.in_flight() + self.given.in_flight() + replays.sum::<usize>() + self.letters.in_flight()
    }

    /// The lanes with events that were given up and have no letter yet.
    pub fn with_parked(&self, with_main: bool) -> Vec<Lane> {
        let own = [(Lane::Main, &self.main), (Lane::Given, &self.given)].into_iter();
        let own = own.filter(|_| with_main);
        let replays = self.replays.iter();
        let replays = replays.map(|replay| (Lane::Replay(replay.job.id.clone()), &replay.feed));
        let all = own.chain(replays).filter(|(_, feed)| feed.parked_len() > 0);
        all.map(|(lane, _)| lane).collect()
    }

    /// How many these are.
    pub fn parked_len(&self) -> usize {
        let replays = self.replays.iter().map(|replay| replay.feed.parked_len());
        self.main.parked_len() + self.given.parked_len() + replays.sum::<usize>()
    }

    pub fn retrying(&self) -> usize {
        let replays = self.replays.iter().map(|replay| replay.feed.retrying());
        self.main.retrying() + self.given.retrying() + replays.sum::<usize>()
    }

    /// Whether one more body of a lane may be read again.
    pub fn may_load(&self, lane: &Lane) -> bool {
        match lane {
            Lane::Main => self.main.may_load(),
            Lane::Replay(id) => {
                let mut replays = self.replays.iter();
                replays
                    .find(|replay| replay.job.id == *id)
                    .is_none_or(|replay| replay.feed.may_load())
            }
            Lane::Given => self.given.may_load(),
            Lane::Letters => self.letters.may_load(),
        }
    }
}

#[cfg(test)]
mod tests;
