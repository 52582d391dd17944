//! Letters that can't be made yet, because an earlier one for the same event, which is being delivered or was, has not gone. Only making
//! them is tried again: what became of their events stands, and the sink is not asked once more.
//!
//! The events stay open in their feeds, which keep what the letters are made of, in the mark as well: whoever goes on from it makes them.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;

use super::Worker;
use super::lanes::Lane;
use crate::deliver::feed::Parked;
use crate::deliver::schedule;
use crate::deliver::types::{DeadLetter, dead_letter};
use crate::event::Seq;

/// After so long it is tried again to make them.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

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

    /// It is tried to make these again in a moment. What was not read yet is come to again.
    pub(super) fn park(&mut self, lane: &Lane, letters: Vec<DeadLetter>, buried: bool) {
        if letters.is_empty() {
            return;
        }
        let due = schedule::now() + SignedDuration::try_from(AGAIN_AFTER).unwrap_or_default();
        for letter in letters {
            if !self.lanes.ends_erased(lane, letter.seq)
                && let Some(feed) = self.lanes.feed(lane)
            {
                feed.park(letter, buried, due);
            }
        }
        // The earlier one may be this sink's own, and go with its next checkpoint.
        self.progress.hurry |= self.dead_to(lane).is_none();
        self.make_parked_at = Some(Instant::now() + AGAIN_AFTER);
    }

    /// Makes what letters can be made by now, when it is time.
    pub(super) async fn make_parked(&mut self) {
        let lanes = self.lanes.with_parked(self.kit.follow);
        if lanes.is_empty() {
            self.make_parked_at = None;
            return;
        }
        let at = *self.make_parked_at.get_or_insert(self.turn_began);
        if at > self.turn_began || self.chores.runs().is_some() || self.not_before.is_some() {
            self.wakes.push(at);
            return;
        }
        for lane in lanes {
            for buried in [false, true] {
                let letters = self.parked_letters(&lane, buried).await;
                if !letters.is_empty() {
                    self.make_letters(&lane, letters, buried).await;
                }
            }
        }
        let again = Instant::now() + AGAIN_AFTER;
        self.make_parked_at = Some(again);
        self.wakes.push(again);
    }

    /// Those of a lane that were given up because the log drops them, or for what the sink said.
    async fn parked_letters(&mut self, lane: &Lane, buried: bool) -> Vec<DeadLetter> {
        let parked = self.lanes.feed(lane).map(|feed| feed.parked()).unwrap_or_default();
        let (mut letters, began) = (Vec::new(), Instant::now());
        for (seq, parked, made) in parked.into_iter().filter(|(_, parked, _)| parked.buried == buried) {
            let letter = match made {
                Some(letter) => Some(letter),
                None if self.is_long(began) => break,
                None => match self.letter_again(lane, seq, &parked).await {
                    Ok(letter) => letter,
                    Err(()) => break,
                },
            };
            letters.extend(letter);
        }
        letters
    }

    /// The letter of an event that was given up before this worker began. `Ok(None)`: there is none to be made, or not now. `Err`: the
    /// event can't be read now, and that was noted.
    async fn letter_again(&mut self, lane: &Lane, seq: Seq, parked: &Parked) -> Result<Option<DeadLetter>, ()> {
        if let Lane::Replay(id) = lane
            && self.lanes.replay(id).is_none_or(|replay| !replay.goes())
        {
            // Whether it is for this sink is not known.
            return Ok(None);
        }
        let loaded = self.load_again(lane, seq).await?;
        let Some(feed) = self.lanes.feed(lane) else {
            return Ok(None);
        };
        let tries = feed.tries(seq).cloned().unwrap_or_default();
        let Some((event, _)) = loaded else {
            feed.finished(seq);
            self.progress.dirty = true;
            return Ok(None);
        };
        let given_up = self.lanes.given_up.get(&seq).filter(|_| *lane == Lane::Given);
        let dead = given_up.map(|dead| (**dead).clone());
        let (name, reason) = (self.kit.name(), tries.reason.into());
        Ok(Some(DeadLetter {
            dead,
            replay: lane.replay().map(ToString::to_string),
            died_at: parked.died_at,
            ..dead_letter(name, &event, reason, tries.attempts, tries.first_attempt)
        }))
    }

    /// Why it does nothing where that is all it has to do; one sentence.
    pub(super) fn waits_with_parked(&self) -> Option<String> {
        let parked = self.lanes.parked_len();
        (parked > 0 && self.lanes.in_flight() == 0 && self.lanes.retrying() <= parked).then(|| {
            format!(
                "the dead letters of {parked} event(s) wait until earlier ones, which are being delivered, have gone"
            )
        })
    }
}
