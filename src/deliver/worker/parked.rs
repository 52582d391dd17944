//! Letters that wait until an earlier one for the same event, which is being delivered or was, has gone. Only making them is tried again:
//! what became of the event stands, and the sink is not asked once more.
//!
//! Their events wait in their feeds meanwhile, as if for another try that is put off again and again. When the sink goes back to its
//! durable mark, or the worker ends, the letters are let go, and the events are tried again.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;

use super::Worker;
use super::lanes::{Lane, Reach};
use crate::deliver::schedule;
use crate::deliver::types::DeadLetter;
use crate::event::Seq;

/// After so long it is tried again to make them.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// So long the events are kept from being tried each time: longer than any turn takes in which it is not tried to make the letters.
const HELD_FOR: SignedDuration = SignedDuration::from_secs(60);

/// See the module's head.
#[derive(Default)]
pub(super) struct Parked {
    /// Each with its lane, and whether it is made because the log drops its event. One for each open event of a feed at the most.
    letters: Vec<(Lane, DeadLetter, bool)>,
    again: Option<Instant>,
}

impl Parked {
    /// What is there of an event already stays.
    fn put(&mut self, lane: &Lane, letter: DeadLetter, buried: bool) {
        let is_there = |(of, there, _): &(Lane, DeadLetter, bool)| there.seq == letter.seq && of == lane;
        if !self.letters.iter().any(is_there) {
            self.letters.push((lane.clone(), letter, buried));
        }
    }

    pub fn remove(&mut self, lane: &Lane, seq: Seq) {
        self.letters.retain(|(of, letter, _)| letter.seq != seq || of != lane);
    }

    /// None of these becomes a letter, of the lanes that are reached. Gives those that would have.
    pub fn forget(&mut self, seqs: &BTreeSet<Seq>, reach: Reach) -> Vec<(Lane, Seq)> {
        let goes = |(lane, letter, _): &mut (Lane, DeadLetter, bool)| seqs.contains(&letter.seq) && reach.covers(lane);
        let gone = self.letters.extract_if(.., goes);
        gone.map(|(lane, letter, _)| (lane, letter.seq)).collect()
    }

    /// The feeds begin anew.
    pub fn clear(&mut self) {
        *self = Parked::default();
    }

    /// Those of one lane that are made together; `None`: there are no more.
    fn next(&mut self) -> Option<(Lane, Vec<DeadLetter>, bool)> {
        let (lane, _, buried) = self.letters.first()?;
        let (lane, buried) = (lane.clone(), *buried);
        let together = self.letters.extract_if(.., |(of, _, is)| *of == lane && *is == buried);
        let letters = together.map(|(_, letter, _)| letter).collect();
        Some((lane, letters, buried))
    }
}

impl Worker<'_> {
    /// Of letters that this sink is to keep itself, those for whose events an earlier one is about to go. What is one already, or was given
    /// here, is made anew of itself.
    pub(super) fn waits_for_gone(&self, lane: &Lane, letters: &[DeadLetter]) -> BTreeSet<Seq> {
        if matches!(lane, Lane::Letters | Lane::Given) {
            return BTreeSet::new();
        }
        self.note_leaving();
        self.kit.letters.leaving(letters.iter().map(|letter| letter.seq))
    }

    /// It is tried to make these again in a moment.
    pub(super) fn wait_until_gone(&mut self, lane: &Lane, letters: Vec<DeadLetter>, buried: bool) {
        if letters.is_empty() {
            return;
        }
        let due = schedule::now() + HELD_FOR;
        for letter in letters {
            if self.lanes.ends_erased(lane, letter.seq) {
                continue;
            }
            // What was not read yet is come to again.
            if let Some(feed) = self.lanes.feed(lane).filter(|feed| feed.has(letter.seq)) {
                let why = format!(
                    "{}; its dead letter waits until an earlier one, which is being delivered, has gone",
                    letter.reason
                );
                feed.failed(letter.seq, due, why);
                self.chores.parked.put(lane, letter, buried);
            }
        }
        // The earlier one may be this sink's own, and go with its next checkpoint.
        self.progress.hurry |= self.dead_to(lane).is_none();
        self.chores.parked.again = Some(Instant::now() + AGAIN_AFTER);
    }

    /// Tries again to make letters that wait, when it is time. Before anything is handed out: their events wait for it.
    pub(super) async fn make_parked(&mut self) {
        let Some(again) = self.chores.parked.again else { return };
        if again > self.turn_began || self.chores.runs().is_some() {
            self.wakes.push(again);
            return;
        }
        let mut waiting = std::mem::take(&mut self.chores.parked);
        while let Some((lane, mut letters, buried)) = waiting.next() {
            let feed = self.lanes.feed(&lane);
            letters.retain(|letter| feed.as_ref().is_some_and(|feed| feed.has(letter.seq)));
            if !letters.is_empty() {
                self.make_letters(&lane, letters, buried).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::types::dead_letter;
    use crate::event::{Event, Kind, Source};

    fn letter(seq: u64, reason: &str) -> DeadLetter {
        let (now, body) = (jiff::Timestamp::UNIX_EPOCH, "{}");
        let event = Event::new(Seq(seq), now, Source::Webhook, Kind::Event, None, body.into());
        dead_letter("a", &event, reason.into(), 1, None)
    }

    fn seqs(letters: &[DeadLetter]) -> Vec<u64> {
        letters.iter().map(|letter| letter.seq.0).collect()
    }

    #[test]
    fn letters_that_wait_are_made_once_by_lane_but_for_those_that_were_erased() {
        let (mut parked, replay) = (Parked::default(), Lane::Replay("r".into()));
        parked.put(&Lane::Main, letter(1, "first"), false);
        parked.put(&Lane::Main, letter(1, "second"), true);
        parked.put(&replay, letter(1, "no"), false);
        parked.put(&Lane::Main, letter(2, "no"), true);
        parked.put(&Lane::Given, letter(3, "no"), false);
        parked.put(&Lane::Main, letter(4, "no"), false);
        parked.put(&Lane::Main, letter(5, "no"), false);
        let erased = BTreeSet::from([Seq(3), Seq(4)]);
        assert_eq!(parked.forget(&erased, Reach::Letters), [(Lane::Given, Seq(3))]);
        assert_eq!(parked.forget(&erased, Reach::Everything), [(Lane::Main, Seq(4))]);
        parked.remove(&Lane::Main, Seq(5));
        let (lane, letters, buried) = parked.next().unwrap();
        assert_eq!((lane, seqs(&letters), buried), (Lane::Main, vec![1], false));
        assert_eq!(letters[0].reason, "first");
        let (lane, letters, _) = parked.next().unwrap();
        assert_eq!((lane, seqs(&letters)), (replay, vec![1]));
        let (lane, letters, buried) = parked.next().unwrap();
        assert_eq!((lane, seqs(&letters), buried), (Lane::Main, vec![2], true));
        assert!(parked.next().is_none());
    }
}
