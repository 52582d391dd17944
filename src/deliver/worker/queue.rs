//! Dead letters on their way to be tried once more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::deliver::memory::{Held, Memory};
use crate::deliver::types::Waiter;
use crate::event::Seq;

/// Why a letter is not tried.
pub(super) const ERASED: &str = "its event was erased";

/// Whoever waits for a letter of which only the receiver knows whether it was delivered waits so long for the receiver to say.
const DOUBT_WITHIN: Duration = Duration::from_secs(60);

/// Those that somebody has asked for, until they are settled.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Seq>,
    /// What is being tried, which counts as held for as long.
    running: BTreeMap<Seq, Held>,
    /// What all sinks hold.
    memory: Memory,
    /// Of those that run: their data was erased meanwhile.
    erased: BTreeSet<Seq>,
    /// Delivered, and to be removed when that is durable.
    done: BTreeSet<Seq>,
    /// Delivered, or not: the answer was lost, and the receiver's mark says which when the sink is open again. With what went wrong.
    doubted: BTreeMap<Seq, String>,
    doubted_since: Option<Instant>,
    asked: BTreeMap<Seq, Waiter>,
}

impl Queue {
    /// Nobody has asked for anything; these are delivered, and to be removed.
    pub fn new(done: &[Seq], memory: &Memory) -> Queue {
        Queue {
            memory: memory.clone(),
            done: done.iter().copied().collect(),
            ..Queue::default()
        }
    }

    /// Somebody wants these tried; what is under way already is tried once, and counted by whoever asked first.
    pub fn ask(&mut self, asked: Vec<(Seq, Waiter)>) {
        for (seq, waiter) in asked {
            if self.asked.contains_key(&seq) {
                // Counted once, by whoever asked first.
                waiter.leave();
                continue;
            }
            let is_new = !self.done.contains(&seq);
            self.asked.insert(seq, waiter);
            if is_new && !self.running.contains_key(&seq) && !self.doubted.contains_key(&seq) {
                self.waiting.push_back(seq);
            }
        }
    }

    pub fn next(&mut self) -> Option<Seq> {
        self.waiting.pop_front()
    }

    /// Whether another one may be read to be tried: one may in any case, more of them as far as there is memory.
    pub fn may_load(&self) -> bool {
        let held: usize = self.running.values().map(Held::weight).sum();
        held == 0 || held < self.memory.share()
    }

    /// Whether there is one to be tried now.
    pub fn is_ready(&self) -> bool {
        !self.waiting.is_empty() && self.may_load()
    }

    pub fn started(&mut self, held: Held) {
        self.running.insert(held.event().seq, held);
    }

    /// It was not tried after all, and is the next one.
    pub fn unstarted(&mut self, seq: Seq) {
        if self.running.remove(&seq).is_some() {
            self.waiting.push_front(seq);
        }
    }

    /// Whether it was handed to the sink, and that is not settled yet.
    pub fn was_handed(&self, seq: Seq) -> bool {
        self.running.contains_key(&seq) || self.done.contains(&seq)
    }

    /// Whether it was delivered, and is to be removed.
    pub fn is_done(&self, seq: Seq) -> bool {
        self.done.contains(&seq)
    }

    /// Those that were delivered, and are to be removed.
    pub fn done(&self) -> &BTreeSet<Seq> {
        &self.done
    }

    /// Whether any waits for its turn.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// Whether the data of one that is being tried was erased meanwhile.
    pub fn is_erased(&self, seq: Seq) -> bool {
        self.erased.contains(&seq)
    }

    /// All that were handed to the sink, and of which that is not settled yet.
    pub fn handed(&self) -> impl Iterator<Item = Seq> {
        let running = self.running.keys().chain(&self.done);
        running.chain(self.doubted.keys()).copied()
    }

    /// It is still dead.
    pub fn failed(&mut self, seq: Seq, reason: &str) {
        self.running.remove(&seq);
        self.erased.remove(&seq);
        self.done.remove(&seq);
        self.settle(seq, false, reason);
    }

    /// It is no dead letter any more.
    pub fn gone(&mut self, seq: Seq) {
        self.running.remove(&seq);
        self.erased.remove(&seq);
        if let Some(waiter) = self.asked.remove(&seq) {
            waiter.pass_gone();
        }
    }

    /// The answer was lost: whether it was delivered is found out when the sink is open again.
    pub fn doubt(&mut self, seq: Seq, reason: &str, now: Instant) {
        self.running.remove(&seq);
        self.erased.remove(&seq);
        self.doubted.insert(seq, reason.to_owned());
        self.doubted_since.get_or_insert(now);
    }

    /// When doubts are given up that last until then.
    pub fn doubts_end(&self) -> Option<Instant> {
        self.doubted_since.map(|since| since + DOUBT_WITHIN)
    }

    /// What is doubted was not delivered, as the receiver says.
    pub fn deny_doubted(&mut self) {
        self.end_doubts(|reason| reason);
    }

    /// The receiver has not said what of the doubted it has, and nobody is kept waiting for that any more. A letter that was delivered goes
    /// all the same when the receiver says so.
    pub fn leave_doubted(&mut self) {
        self.end_doubts(|reason| format!("whether it was delivered is not known yet, the answer was lost: {reason}"));
    }

    fn end_doubts(&mut self, say: impl Fn(String) -> String) {
        self.doubted_since = None;
        for (seq, reason) in std::mem::take(&mut self.doubted) {
            self.failed(seq, &say(reason));
        }
    }

    /// It was delivered; whoever waits hears so when that is durable and it was removed.
    pub fn delivered(&mut self, seq: Seq) {
        self.running.remove(&seq);
        self.erased.remove(&seq);
        self.done.insert(seq);
    }

    /// The data of these was erased: none that waits is tried; what runs may end.
    pub fn erase(&mut self, seqs: &BTreeSet<Seq>) {
        let (erased, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|seq| seqs.contains(seq));
        self.waiting = waiting;
        let erased: VecDeque<Seq> = erased;
        for seq in erased {
            self.settle(seq, false, ERASED);
        }
        self.erased.extend(self.running.keys().filter(|seq| seqs.contains(seq)));
    }

    /// It was removed, or needs no removing.
    pub fn removed(&mut self, seq: Seq) {
        self.done.remove(&seq);
        self.settle(seq, true, "");
    }

    /// These are the delivered ones, as the receiver's mark says: they need no further try, and what else was thought so is not.
    pub fn adopt(&mut self, seqs: &[Seq], reason: &str) {
        let adopted: BTreeSet<Seq> = seqs.iter().copied().collect();
        self.waiting.retain(|seq| !adopted.contains(seq));
        self.doubted.retain(|seq, _| !adopted.contains(seq));
        self.deny_doubted();
        let undone: Vec<Seq> = self.done.difference(&adopted).copied().collect();
        for seq in undone {
            self.failed(seq, reason);
        }
        self.done = adopted;
    }

    /// None of those that wait is tried.
    pub fn fail_waiting(&mut self, reason: &str) {
        for seq in std::mem::take(&mut self.waiting) {
            self.settle(seq, false, reason);
        }
    }

    /// Nothing since the last durable mark is believed: what was delivered since is not.
    pub fn go_back(&mut self, durable: &[Seq], reason: &str) {
        self.fail_waiting(reason);
        let running = std::mem::take(&mut self.running);
        let done: Vec<Seq> = self.done.iter().copied().filter(|seq| !durable.contains(seq)).collect();
        for seq in running.into_keys().chain(done) {
            self.failed(seq, reason);
        }
    }

    fn settle(&mut self, seq: Seq, delivered: bool, reason: &str) {
        if let Some(waiter) = self.asked.remove(&seq) {
            waiter.settle(delivered, reason);
        }
    }
}

#[cfg(test)]
mod tests;
