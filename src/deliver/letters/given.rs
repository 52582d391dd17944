//! Letters that go from one sink to another (`dead_to`).
//!
//! What would become a dead letter of the first sink is *given* to the second: it stands in the second one's file, marked as to be
//! delivered. Three steps, each durable before the next: it stands in the second's file, withheld ([`Letters::give`]); the first's file
//! says that it was diverted ([`Letters::divert`]), and from then on the first is done with the event, as with a dead letter; and then the
//! second may deliver it ([`Letters::release`]). A crash after the first step is made good before any sink begins
//! ([`undone`]): so the first never sends on twice what the second may have delivered and removed already.
//!
//! Where the second step fails, the first is taken back: the first sink still has the event, and tries it again. Where that fails too, it
//! does not deliver it any more, and the steps alone are tried again.
//!
//! Between the first step and the last the letter is its giver's: the sink that gives it, under its lease ([`Giver`]). Another sink that has
//! a letter for the same event waits; whoever takes the giver's sink over claims it first ([`Letters::claim`]); and only the giver takes
//! it back. So nobody takes away what somebody else has just relied on.
//!
//! What the first sink has kept of an event goes along with its letter ([`Letters::take_copies`]): the log may not have it any more.
//!
//! For one event a sink has one letter. What two sinks give it before it has begun with it is delivered once, with what the first of them
//! said; a dead letter of its own for the event is tried again with it. While it is being delivered, and until it has gone, no other is
//! given for the event: that would be taken for the delivered one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use jiff::Timestamp;

use super::index::Index;
use super::keeper::Way;
use super::record::{self, Giver, TAG_DIVERTED, TAG_GIVEN, TAG_RELEASED, TAG_REMOVE, TAG_REPLAYED};
use super::{Letters, is_gone};
use crate::deliver::DeadLetter;
use crate::deliver::seqs::Seqs;
use crate::event::Seq;
use crate::framefile::FrameError;
use crate::sorted;
use crate::sync::lock;

impl Letters {
    /// What the letters may take up from now on.
    pub fn set_max(&self, bytes: u64) {
        self.shared.max.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that the letters may take up.
    pub fn max(&self) -> u64 {
        self.shared.max.load(Ordering::Relaxed)
    }

    /// Adds letters durably that are to be delivered here, once they are released, under a lease of the sink that gives them; what was
    /// given before stays as it is. An error, and none is added, where somebody else is just giving one for the same event. Gives those
    /// that are not added, for the letter that is there for the same event is being delivered, or was: it is about to go. Blocking.
    pub fn give(&self, letters: &[DeadLetter], fence: u64) -> Result<BTreeSet<Seq>, FrameError> {
        let (mut other, mut leaving) = (None, BTreeSet::new());
        self.write("add", &mut |index| {
            leaving = self.leaving(letters.iter().map(|letter| letter.seq));
            let letters = letters.iter().filter(|letter| !leaving.contains(&letter.seq));
            let letters: Vec<&DeadLetter> = letters.collect();
            other = letters.iter().find_map(|letter| {
                let giver = index.withheld.get(&letter.seq)?;
                (*giver != Giver::of(letter, fence)).then(|| giver.sink.clone())
            });
            let new = letters.iter().filter(|letter| !index.given.contains_key(&letter.seq));
            let new = new.filter(|_| other.is_none());
            new.map(|letter| (TAG_GIVEN, record::given_payload(letter, fence)))
                .collect()
        })?;
        match other {
            None => Ok(leaving),
            Some(other) => Err(FrameError::Io {
                path: self.shared.path.clone(),
                source: std::io::Error::other(format!("the sink \"{other}\" is just giving it one for the same event")),
            }),
        }
    }

    /// Letters that a sink has given and not released are those of a later lease of it from now on, durably: who had an earlier one does
    /// not take them back any more. Gives those that are there: not taken back before. Blocking.
    pub fn claim(&self, letters: &[DeadLetter], fence: u64) -> Result<Vec<Seq>, FrameError> {
        let mut ours = Vec::new();
        self.write("add", &mut |index| {
            let is_there = |letter: &&DeadLetter| {
                let (giver, ours) = (index.withheld.get(&letter.seq), Giver::of(letter, fence));
                let is_ours = giver.is_none_or(|giver| giver.sink == ours.sink && giver.fence <= ours.fence);
                is_ours && index.given.contains_key(&letter.seq)
            };
            let there: Vec<&DeadLetter> = letters.iter().filter(is_there).collect();
            ours = there.iter().map(|letter| letter.seq).collect();
            let earlier = there.into_iter().filter(|letter| {
                let giver = index.withheld.get(&letter.seq);
                giver.is_some_and(|giver| giver.fence < fence)
            });
            earlier
                .map(|letter| (TAG_GIVEN, record::given_payload(letter, fence)))
                .collect()
        })?;
        Ok(ours)
    }

    /// Keeps durably what another sink has kept of the events of letters that both have. What is damaged there stays behind. Blocking.
    pub fn take_copies(&self, other: &Letters, seqs: &[Seq]) -> Result<(), FrameError> {
        let mut left: BTreeSet<Seq> = seqs.iter().copied().collect();
        left.retain(|seq| self.is_bare(*seq));
        while let Some(first) = left.pop_first() {
            let block = match other.found(|index| index.places.get(&first)?.copy) {
                Ok(block) => block,
                Err(error) if is_gone(&error) => {
                    tracing::error!(seq = first.0, %error, "what was kept of a dead letter's event is damaged");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some((tag, payload)) = block else { continue };
            // Others of them lie in the same block.
            let events = record::events_in(tag, &payload).into_iter();
            let wanted = events.filter(|event| event.seq == first || left.remove(&event.seq));
            self.keep_copies(&wanted.map(Arc::new).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Only one sink gives letters, and lets go of them, while this is held.
    pub fn taking(&self) -> MutexGuard<'_, ()> {
        lock(&self.shared.taking)
    }

    /// What was given of these, under this lease, and not released is given back, durably: the sink that gave it still has it. Blocking.
    pub fn give_back(&self, letters: &[DeadLetter], fence: u64) -> Result<(), FrameError> {
        self.mend()?;
        let givers = letters.iter().map(|letter| (letter.seq, Giver::of(letter, fence)));
        let givers: BTreeMap<Seq, Giver> = sorted::map(givers);
        let seqs: Vec<Seq> = givers.keys().copied().collect();
        self.let_go(&seqs, |index, present| {
            let own = present
                .iter()
                .filter(|seq| index.withheld.contains_key(seq) && index.withheld.get(seq) == givers.get(seq));
            let bytes: Vec<u8> = own.flat_map(|seq| seq.0.to_le_bytes()).collect();
            Some((TAG_REMOVE, bytes))
                .filter(|(_, bytes)| !bytes.is_empty())
                .into_iter()
                .collect()
        })
        .map(drop)
    }

    /// Whether nothing is kept here of the event of a letter.
    fn is_bare(&self, seq: Seq) -> bool {
        self.index(|index| index.places.get(&seq).is_some_and(|place| place.copy.is_none()))
    }

    /// Drops the oldest beyond what this sink may have; gives how many these were. Blocking.
    pub fn keep_within_max(&self) -> u64 {
        self.keep_within(self.max())
    }

    /// Notes durably that another sink has the letters of these events; what there was of them here goes. `replay`: they are of its
    /// deliveries, and that is noted as well. Blocking.
    pub fn divert(&self, seqs: &[Seq], replay: Option<&str>) -> Result<(), FrameError> {
        let mut ranges = Seqs::default();
        ranges.extend(seqs.iter().copied());
        if ranges.is_empty() {
            return Ok(());
        }
        self.write("divert", &mut |_| {
            let diverted = (TAG_DIVERTED, record::dropped_payload(ranges.ranges()));
            let replayed = replay.map(|replay| (TAG_REPLAYED, record::replayed_payload(replay, ranges.ranges())));
            std::iter::once(diverted).chain(replayed).collect()
        })?;
        self.tidy();
        Ok(())
    }

    /// These may be delivered: the sink that gave them has let go of them. That is noted, and not synced: where it is not known after a
    /// crash, the giver is asked. Blocking.
    pub fn release(&self, seqs: &[Seq]) {
        if let Err(error) = self.note_released(seqs) {
            tracing::debug!(%error, "that letters were released can't be noted now");
        }
        self.shared.arrived.notify_one();
    }

    fn note_released(&self, seqs: &[Seq]) -> Result<(), FrameError> {
        let way = Way {
            step: "release",
            fence: 0,
            is_lazy: true,
        };
        let mut decide = |index: &Index| {
            let mut released = Seqs::default();
            released.extend(seqs.iter().copied().filter(|seq| index.given.contains_key(seq)));
            let note = (TAG_RELEASED, record::dropped_payload(released.ranges()));
            Some(note).filter(|_| !released.is_empty()).into_iter().collect()
        };
        let noted = self
            .keeper()
            .and_then(|mut keeper| keeper.write(&self.shared.index, way, &mut decide));
        noted.inspect_err(|_| {
            if self.is_shared() {
                // Others know it only when it is noted.
                return lock(&self.shared.unreleased).extend(seqs.iter().copied());
            }
            // Whether or not that could be noted.
            self.index(|index| {
                for seq in seqs {
                    index.note_released(*seq, *seq);
                }
            });
        })
    }

    /// Waits until letters have come that may be delivered. One waits at a time.
    pub async fn arrived(&self) {
        self.shared.arrived.notified().await;
    }

    /// Those that may be delivered, but for some, with when they were given up; at most `max`.
    pub fn given(&self, max: usize, but: impl Fn(Seq) -> bool) -> Vec<(Seq, Timestamp)> {
        self.index(|index| {
            let given = index.given.iter().map(|(seq, since)| (*seq, *since));
            let ready = given.filter(|(seq, _)| !index.withheld.contains_key(seq) && !but(*seq));
            ready.take(max).collect()
        })
    }

    /// When the first of them was given up, by the machine's clock of then.
    pub fn given_since(&self) -> Option<Timestamp> {
        let first = self.index(|index| index.given_since.first().copied());
        first.map(|(since, _)| since).filter(|since| *since < Timestamp::MAX)
    }

    /// How many are to be delivered.
    pub fn given_len(&self) -> usize {
        self.index(|index| index.given.len())
    }

    /// How many of them are of events before this place.
    pub fn given_before(&self, place: Seq) -> usize {
        self.index(|index| {
            let (mut before, mut behind) = (index.given.range(..place), index.given.range(place..));
            // Either side may be long: the shorter one tells.
            let mut count = 0;
            loop {
                if before.next().is_none() {
                    return count;
                }
                if behind.next().is_none() {
                    return index.given.len() - count;
                }
                count += 1;
            }
        })
    }

    /// Whether one is to be delivered for the event.
    pub fn is_given(&self, seq: Seq) -> bool {
        self.index(|index| index.given.contains_key(&seq))
    }

    /// Whether another sink has got the letter of the event.
    pub fn was_diverted(&self, seq: Seq) -> bool {
        self.index(|index| index.diverted.has(seq))
    }

    /// Of these, the deliveries of this replay that another sink has got the letters of.
    pub fn diverted_by(&self, replay: &str, mut seqs: Vec<Seq>) -> Vec<Seq> {
        self.index(|index| {
            let diverted = index.replayed.get(replay);
            seqs.retain(|seq| diverted.is_some_and(|diverted| diverted.has(*seq)));
        });
        seqs
    }

    /// Whether another sink has got the letter of this replay's delivery.
    pub fn was_diverted_by(&self, replay: &str, seq: Seq) -> bool {
        !self.diverted_by(replay, vec![seq]).is_empty()
    }

    /// What went to other sinks of any other replay needs to be known no more.
    pub fn keep_replays(&self, goes_on: impl Fn(&str) -> bool) {
        self.index(|index| index.replayed.retain(|replay, _| goes_on(replay)));
    }

    /// Up to here it was forgotten which letters other sinks have got.
    pub fn diverted_forgotten_upto(&self) -> Seq {
        self.index(|index| index.diverted_forgotten)
    }
}

/// The letters that a sink was given and of which it is not known that they were let go of, by the sink that gave them and the replay that
/// had sent them: a crash came in between perhaps. What the other has noted so is among them, what it has a dead letter of its own for is
/// not: that is newer. `withheld`: only those that were given since this process began. Blocking.
pub(in crate::deliver) fn undone(
    name: &str,
    letters: &Letters,
    all: &BTreeMap<String, Letters>,
    withheld: bool,
) -> BTreeMap<(String, Option<String>), Vec<DeadLetter>> {
    let unsure: Vec<Seq> = letters.index(|index| {
        let given = index.given.keys().filter(|seq| !index.released.contains(seq));
        given
            .filter(|seq| !withheld || index.withheld.contains_key(seq))
            .copied()
            .collect()
    });
    let mut undone: BTreeMap<(String, Option<String>), Vec<DeadLetter>> = BTreeMap::new();
    for seq in unsure {
        let letter = letters.get(seq).unwrap_or_else(|error| {
            let is_damaged = is_gone(&error);
            tracing::error!(sink = name, seq = seq.0, is_damaged, %error, "what another sink has given up can't be read");
            None
        });
        if let Some(letter) = letter
            && let Some(dead) = &letter.dead
            && !all.get(&dead.sink).is_some_and(|giver| giver.has(seq))
        {
            let from = (dead.sink.clone(), letter.replay.clone());
            undone.entry(from).or_default().push(letter);
        }
    }
    undone
}
