//! What is done to the file of dead letters: letters made durable, and letters that were delivered removed.
//!
//! A disk may take its time for it, or hang. So it is done beside the worker, one piece after the other, and waited for only so long
//! that what usually takes a moment is done at once. While something is still being done, no further event is handed out: what is not
//! a letter yet must not be delivered meanwhile. Orders and questions are answered all the same.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lanes::{Lane, Reach};
use super::{Done, Worker};
use crate::config::Size;
use crate::deliver::letters::Letters;
use crate::deliver::schedule;
use crate::deliver::types::DeadLetter;
use crate::event::Seq;
use crate::task;
use crate::telemetry;

/// So long the worker itself waits.
const WAIT: Duration = Duration::from_millis(200);

/// So many letters are made, or removed, with one sync.
const TOGETHER_MAX: usize = 512;

/// Something that could not be made durable is tried again after so long.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// That letters can't be stored is said for so long: by then it was tried again, or there are none any more.
const UNSTORED_FOR: Duration = Duration::from_secs(15);

/// The same of something that was done by half.
const HALF_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One piece of work.
pub(super) enum Chore {
    /// Events of a lane become dead letters.
    Make {
        lane: Lane,
        letters: Vec<DeadLetter>,
        /// Because the log drops them.
        buried: bool,
    },
    /// Letters were delivered.
    Remove(Vec<Seq>),
}

impl Chore {
    /// Becomes one with another, which comes right behind it; what can't is given back.
    fn take_in(&mut self, behind: Chore) -> Option<Chore> {
        match (self, behind) {
            (
                Chore::Make { lane, letters, buried },
                Chore::Make {
                    lane: of,
                    letters: more,
                    buried: by,
                },
            ) if *lane == of && *buried == by && letters.len() + more.len() <= TOGETHER_MAX => letters.extend(more),
            (Chore::Remove(seqs), Chore::Remove(more)) if seqs.len() + more.len() <= TOGETHER_MAX => seqs.extend(more),
            (_, behind) => return Some(behind),
        }
        None
    }
}

/// The sink that gets what would become a dead letter.
#[derive(Debug, Clone)]
pub(in crate::deliver) struct DeadTo {
    pub sink: String,
    pub letters: Letters,
}

impl DeadTo {
    /// Gives it letters of a sink whose own these are; see [`crate::deliver::letters`]. Blocking.
    fn take(&self, own: &Letters, letters: &[DeadLetter], replay: Option<&str>) -> Outcome {
        let _alone = self.letters.taking();
        let mut given: Vec<DeadLetter> = letters.iter().map(|letter| letter.given_to(&self.sink)).collect();
        let mut waits = BTreeSet::new();
        let done = self.letters.give(&given, own.fence()).map(|leaving| waits = leaving);
        given.retain(|letter| !waits.contains(&letter.seq));
        let seqs: Vec<Seq> = given.iter().map(|letter| letter.seq).collect();
        // The log may have dropped what is kept here.
        let done = done.and_then(|()| self.letters.take_copies(own, &seqs));
        if let Err(error) = done.and_then(|()| own.divert(&seqs, replay)) {
            // First nothing may say that they were diverted.
            let given_back = own.mend().and_then(|()| self.letters.give_back(&given, own.fence()));
            return Err(Failed {
                why: error.to_string(),
                by_half: given_back.is_err(),
            });
        }
        self.letters.release(&seqs);
        Ok(Did {
            dropped: self.letters.keep_within_max(),
            waits,
        })
    }
}

/// Makes dead letters of a sink's own, but for those that wait, and drops the oldest beyond what it may have. Blocking.
fn add(own: &Letters, letters: &[DeadLetter], waits: BTreeSet<Seq>, max: u64) -> Outcome {
    let made = letters.iter().filter(|letter| !waits.contains(&letter.seq));
    let made: Vec<DeadLetter> = made.cloned().collect();
    let dropped = own.add_within(&made, max).map_err(|error| Failed {
        why: error.to_string(),
        // What may stand in the file all the same would be a letter after a restart.
        by_half: own.mend().is_err(),
    })?;
    Ok(Did { dropped, waits })
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Did {
    /// Letters that were dropped beyond what the sink may keep.
    dropped: u64,
    /// No letters were made for these: an earlier one is being delivered, or was and has not gone yet.
    waits: BTreeSet<Seq>,
}

/// How one went.
pub(super) type Outcome = Result<Did, Failed>;

/// Why one failed.
#[derive(Debug)]
pub(super) struct Failed {
    why: String,
    /// Another sink has them, and this one could not let go of them; or they may stand in this one's file, although they could not be added:
    /// only this is tried again, nothing of it is delivered here.
    by_half: bool,
}

impl Failed {
    #[expect(clippy::needless_pass_by_value, reason = "as map_err has it")]
    fn wholly(why: impl ToString) -> Failed {
        Failed {
            why: why.to_string(),
            by_half: false,
        }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Chores {
    pub(super) running: Option<(Chore, Instant)>,
    pub(super) waiting: VecDeque<Chore>,
    /// The first that waits was done by half: when it is tried again, and since when that is so.
    again: Option<(Instant, Instant)>,
    /// Why the newest letters could not be stored; `None`: they could.
    unstored: Option<(String, Instant)>,
}

impl Chores {
    /// What is being done, and since when.
    pub fn runs(&self) -> Option<(&'static str, Instant)> {
        let running = self.running.as_ref().map(|(_, began)| *began);
        let began = running.or(self.again.map(|(_, since)| since))?;
        Some(("its dead letters are being written", began))
    }

    /// Why letters can't be stored, while they can't.
    pub fn trouble(&self) -> Option<String> {
        let unstored = self.unstored.as_ref();
        let unstored = unstored.filter(|(_, at)| at.elapsed() < UNSTORED_FOR);
        unstored.map(|(why, _)| why.clone())
    }

    /// What is done next: with it what waits behind it and is alike, for both cost as much as one.
    fn next(&mut self) -> Option<Chore> {
        let mut next = self.waiting.pop_front()?;
        while let Some(behind) = self.waiting.pop_front() {
            if let Some(other) = next.take_in(behind) {
                self.waiting.push_front(other);
                break;
            }
        }
        Some(next)
    }

    /// When what was done by half is tried again.
    pub fn again_at(&self) -> Option<Instant> {
        self.again.map(|(at, _)| at)
    }

    /// Of what still waits, none of these becomes a letter, of the lanes that are reached. Gives those that would have.
    pub fn forget(&mut self, seqs: &BTreeSet<Seq>, reach: Reach) -> Vec<(Lane, Seq)> {
        let mut forgotten = Vec::new();
        self.waiting.retain_mut(|chore| {
            let Chore::Make { lane, letters, .. } = chore else {
                return true;
            };
            letters.retain(|letter| {
                let goes = seqs.contains(&letter.seq) && reach.covers(lane);
                forgotten.extend(goes.then(|| (lane.clone(), letter.seq)));
                !goes
            });
            !letters.is_empty()
        });
        forgotten
    }

    /// Whether any of these is being made a letter.
    pub fn makes(&self, seqs: &BTreeSet<Seq>) -> bool {
        let made = match &self.running {
            Some((Chore::Make { letters, .. }, _)) => &**letters,
            _ => &[],
        };
        made.iter().any(|letter| seqs.contains(&letter.seq))
    }
}

impl Worker<'_> {
    /// Makes dead letters durable and only then lets the feed pass their events. `true`: it is done; else it failed, or is still being
    /// done.
    pub(super) async fn make_letters(&mut self, lane: &Lane, letters: Vec<DeadLetter>, buried: bool) -> bool {
        let lane = lane.clone();
        self.take_up(Chore::Make { lane, letters, buried }).await
    }

    /// Removes letters that were delivered, durably. Where that fails it is tried again after the next save.
    pub(super) async fn remove_letters(&mut self, seqs: &[Seq]) {
        self.take_up(Chore::Remove(seqs.to_vec())).await;
    }

    async fn take_up(&mut self, chore: Chore) -> bool {
        if self.chores.runs().is_some() {
            self.chores.waiting.push_back(chore);
            return false;
        }
        self.do_now(chore).await
    }

    async fn do_now(&mut self, chore: Chore) -> bool {
        let began = Instant::now();
        let (done, mut outcome) = oneshot::channel();
        let (store, max) = (self.kit.letters.clone(), self.kit.config.dead_max.0);
        let work: Box<dyn FnOnce() -> Outcome + Send> = match &chore {
            Chore::Make { lane, letters, .. } => {
                let (to, letters) = (self.dead_to(lane).cloned(), letters.clone());
                let replay = lane.replay().cloned();
                let waits = self.waits_for_gone(lane, &letters);
                Box::new(move || match to {
                    Some(to) => to.take(&store, &letters, replay.as_deref()),
                    None => add(&store, &letters, waits, max),
                })
            }
            Chore::Remove(seqs) => {
                let seqs = seqs.clone();
                Box::new(move || store.remove(&seqs).map(|_| Did::default()).map_err(Failed::wholly))
            }
        };
        // It may outlast this worker: the next one begins when it has ended.
        let busy = self.kit.letters.busy();
        task::begin_blocking(move || {
            let outcome = work();
            drop(busy);
            // Nobody may be waiting any more.
            drop(done.send(outcome));
        });
        let lost = |_| Err(Failed::wholly("the thread that did it has ended"));
        // Where each takes its time, what comes meanwhile is made in one piece with it.
        let wait = if self.kit.letters.is_shared() {
            Duration::ZERO
        } else {
            WAIT
        };
        if let Ok(outcome) = tokio::time::timeout(wait, &mut outcome).await {
            return self.conclude(chore, outcome.unwrap_or_else(lost));
        }
        self.chores.running = Some((chore, began));
        let ended = async move { Done::Chore(outcome.await.unwrap_or_else(lost)) };
        task::begin_among(&mut self.tasks, ended);
        false
    }

    /// What took long has come to its end; what waited for that is done now.
    pub(super) async fn chore_ended(&mut self, outcome: Outcome) {
        if let Some((chore, _)) = self.chores.running.take() {
            self.conclude(chore, outcome);
        }
        self.do_waiting().await;
    }

    /// Tries again what was done by half, when it is time.
    pub(super) async fn try_chores_again(&mut self) {
        if self.chores.again_at().is_some_and(|at| at <= self.turn_began) {
            let since = self.chores.again.take().map(|(_, since)| since);
            self.do_waiting().await;
            // It is one wait, however often it is tried.
            if let (Some((_, began)), Some(since)) = (&mut self.chores.again, since) {
                *began = since;
            }
        }
    }

    async fn do_waiting(&mut self) {
        while self.chores.runs().is_none()
            && let Some(next) = self.chores.next()
        {
            self.do_now(next).await;
        }
    }

    fn conclude(&mut self, chore: Chore, outcome: Outcome) -> bool {
        self.progress.dirty = true;
        if let Chore::Make { .. } = &chore {
            let why = outcome.as_ref().err().map(|failed| &failed.why);
            let said = |why| (format!("a dead letter could not be stored: {why}"), Instant::now());
            self.chores.unstored = why.map(said);
        }
        match (chore, outcome) {
            (Chore::Remove(seqs), Ok(_)) => {
                for seq in seqs {
                    self.lanes.letters.removed(seq);
                }
                true
            }
            (Chore::Remove(_), Err(Failed { why, .. })) => {
                self.stumble(&format!("dead letters that were delivered can't be removed: {why}"));
                false
            }
            (Chore::Make { lane, letters, buried }, Ok(Did { dropped, waits })) => {
                if dropped > 0 {
                    let to = self.dead_to(&lane).map(|to| (to.sink.as_str(), Size(to.letters.max())));
                    let (sink, max) = to.unwrap_or((self.kit.name(), self.kit.config.dead_max));
                    telemetry::letters_dropped(sink, dropped, max);
                }
                let (waiting, letters): (Vec<DeadLetter>, Vec<DeadLetter>) =
                    letters.into_iter().partition(|letter| waits.contains(&letter.seq));
                self.are_dead(&lane, &letters);
                if buried {
                    self.count_buried(letters.len() as u64);
                }
                let is_done = waiting.is_empty();
                self.park(&lane, waiting, buried);
                is_done
            }
            (chore, Err(Failed { why, by_half: true })) => {
                self.chores.waiting.push_front(chore);
                let now = Instant::now();
                self.chores.again = Some((now + HALF_AGAIN_AFTER, now));
                self.stumble(&format!("a dead letter could not be stored: {why}"));
                false
            }
            (Chore::Make { lane, letters, buried }, Err(Failed { why, .. })) => {
                let later = schedule::now() + AGAIN_AFTER;
                for letter in letters {
                    if self.lanes.ends_erased(&lane, letter.seq) {
                        continue;
                    }
                    match self.lanes.feed(&lane) {
                        Some(feed) if feed.is_parked(letter.seq) => feed.park(letter, buried, later),
                        Some(feed) => feed.failed(letter.seq, later, "its dead letter could not be stored".into()),
                        None => self.lanes.letters.failed(letter.seq, &letter.reason),
                    }
                }
                self.stumble(&format!("a dead letter could not be stored: {why}"));
                false
            }
        }
    }

    /// Where what a lane gives up goes, if it does not become a dead letter. What is one already stays one.
    pub(super) fn dead_to(&self, lane: &Lane) -> Option<&DeadTo> {
        self.kit.dead_to.as_ref().filter(|_| *lane != Lane::Letters)
    }

    /// Events have durably become dead letters.
    fn are_dead(&mut self, lane: &Lane, letters: &[DeadLetter]) {
        if *lane == Lane::Letters {
            for letter in letters {
                self.lanes.letters.failed(letter.seq, &letter.reason);
            }
            return;
        }
        if let Some(first) = letters.first() {
            let (name, count) = (self.kit.name(), letters.len() as u64);
            match self.dead_to(lane) {
                Some(to) => {
                    self.kit.diverted.fetch_add(count, Ordering::Relaxed);
                    telemetry::diverted(name, &to.sink, count, first.seq, &first.reason);
                }
                None => telemetry::dead(name, count, first.seq, &first.reason),
            }
        }
        for letter in letters {
            if *lane != Lane::Given {
                self.progress.is_dead(letter.seq);
            }
            if let Some(feed) = self.lanes.feed(lane) {
                feed.finished(letter.seq);
            }
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.dead += letters.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(lane: Lane, seqs: std::ops::Range<u64>, buried: bool) -> Chore {
        let letter = |seq| {
            let (at, kind) = (jiff::Timestamp::UNIX_EPOCH, crate::event::Kind::Event);
            let source = crate::event::Source::Webhook;
            let event = crate::event::Event::new(Seq(seq), at, source, kind, None, "{}".into());
            crate::deliver::types::dead_letter("a", &event, "no".into(), 1, None)
        };
        Chore::Make {
            lane,
            letters: seqs.map(letter).collect(),
            buried,
        }
    }

    fn shown(chore: &Chore) -> (usize, Option<u64>) {
        match chore {
            Chore::Make { letters, .. } => (letters.len(), letters.last().map(|letter| letter.seq.0)),
            Chore::Remove(seqs) => (seqs.len(), seqs.last().map(|seq| seq.0)),
        }
    }

    #[test]
    fn what_waits_and_is_alike_is_done_at_once_and_in_its_order() {
        let mut chores = Chores::default();
        chores.waiting.extend([
            make(Lane::Main, 1..4, false),
            make(Lane::Main, 4..6, false),
            make(Lane::Main, 6..7, true),
            make(Lane::Given, 7..8, true),
            Chore::Remove(vec![Seq(1)]),
            Chore::Remove(vec![Seq(2), Seq(3)]),
            make(Lane::Main, 8..500, false),
            make(Lane::Main, 500..600, false),
        ]);
        let done: Vec<(usize, Option<u64>)> = std::iter::from_fn(|| chores.next().as_ref().map(shown)).collect();
        let expected = [(5, 5), (1, 6), (1, 7), (3, 3), (492, 499), (100, 599)];
        assert_eq!(done, expected.map(|(count, last)| (count, Some(last))));
    }
}
