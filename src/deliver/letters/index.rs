//! Which letters there are, and where in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::damage::Damage;
use super::extent::Extent;
use super::reader::Reader;
use super::record::{
    Giver, TAG_COPIES, TAG_DIVERTED, TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_GIVEN, TAG_LETTER, TAG_RELEASED, TAG_REMOVE,
    TAG_REPLAYED, TAG_WITH_COPY, died_at, dropped_in, replayed_in, seq_of, split_copies,
};
use crate::deliver::seqs::Seqs;
use crate::event::Seq;
use crate::framefile::Frame;

/// Ranges of dropped letters that are remembered, the newest.
pub(super) const DROPPED_MAX: usize = 4096;

/// Ranges of what went to another sink that are remembered of a replay, the newest: more than it gets done before its mark is saved.
const REPLAYED_MAX: usize = 16_384;

/// What is in a file of letters.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub places: BTreeMap<Seq, Place>,
    /// Blocks of copies, by where they are: how many of their events are still dead letters, and their length.
    pub blocks: BTreeMap<u64, (usize, u64)>,
    /// Bytes of letters and of blocks that still count.
    pub live_bytes: u64,
    /// Events whose letter was dropped, so that nothing but this is known of them.
    pub dropped: Seqs,
    /// Up to here it was forgotten which were.
    pub forgotten: Seq,
    /// Events of which a letter of another sink was dropped before it was delivered here. They are not dead for that: the sink may have to
    /// deliver them itself.
    pub dropped_given: Seqs,
    /// Up to here it was forgotten which were.
    pub dropped_given_forgotten: Seq,
    /// Those of the letters that came from other sinks, and are to be delivered: they are no dead letters of this one. With when the
    /// others gave them up.
    pub given: BTreeMap<Seq, Timestamp>,
    /// The same by when that was.
    pub given_since: BTreeSet<(Timestamp, Seq)>,
    /// Of these it is not durable yet that the other sink has let go of them; and which one that is.
    pub withheld: BTreeMap<Seq, Giver>,
    /// Of these it is known that it has. Of those in neither an older closehook did not say so, or there was no time to.
    pub released: BTreeSet<Seq>,
    /// Events whose letter another sink has.
    pub diverted: Seqs,
    /// Up to here it was forgotten which were.
    pub diverted_forgotten: Seq,
    /// By replay, the events of which it is its delivery that went to another sink: its mark may not say so yet.
    pub replayed: BTreeMap<String, Seqs>,
    /// Who has the sink, where several nodes write; see [`TAG_FENCE`](super::record::TAG_FENCE).
    pub fence: u64,
    /// What is damaged; since it was found, whether or not the file was written anew meanwhile.
    pub damage: Option<Damage>,
    /// What is missing of what the sink's record has noted of the file, one sentence.
    pub missing: Option<String>,
    /// How much of the file is durable; `None` where that is not known, and where nodes share the letters.
    pub extent: Option<Extent>,
    /// Of the file that the places are in; `None` while there is none, and so no letter either.
    pub reader: Option<Arc<dyn Reader>>,
}

/// Where a letter is in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub offset: u64,
    pub len: u64,
    /// The block with the copy of its event. In a file of version 1 the letter itself.
    pub copy: Option<u64>,
}

impl Index {
    pub fn has(&self, seq: Seq) -> bool {
        self.places.contains_key(&seq)
    }

    /// Whether there is one that is not for delivery here.
    pub fn has_own(&self, seq: Seq) -> bool {
        self.has(seq) && !self.given.contains_key(&seq)
    }

    /// What was damaged is noted durably, and takes no letter any more. It is said as long as the process runs: somebody may not have seen it.
    pub fn note_healed(&mut self) {
        if self.damage.as_ref().is_some_and(Damage::is_news) {
            return;
        }
        let damage = self.damage.take().map(|damage| damage.words);
        let said: Vec<String> = damage.into_iter().chain(self.missing.take()).collect();
        self.damage = (!said.is_empty()).then(|| Damage::harmless(said.join("; ")));
    }

    /// Notes what a frame of the file says; `false`: it is of no kind that is known here.
    pub fn take(&mut self, frame: &Frame<'_>) -> bool {
        let (offset, len) = (frame.offset, frame.payload.len() as u64);
        match frame.tag {
            TAG_LETTER => {
                if let Some(seq) = seq_of(frame.payload) {
                    self.note_letter(seq, offset, len);
                }
            }
            TAG_GIVEN => {
                if let Some(seq) = seq_of(frame.payload) {
                    self.note_given(seq, offset, len, died_at(frame.payload));
                }
            }
            TAG_DIVERTED => dropped_in(frame.payload).for_each(|(from, to)| self.note_diverted(from, to)),
            TAG_WITH_COPY => {
                if let Some(seq) = seq_of(frame.payload) {
                    self.note_letter(seq, offset, len);
                    self.note_copies(offset, 0, &[seq]);
                }
            }
            TAG_REMOVE => {
                for seq in frame.payload.chunks_exact(8).filter_map(seq_of) {
                    self.note_removed(seq);
                }
            }
            TAG_DROPPED => dropped_in(frame.payload).for_each(|(from, to)| self.note_dropped(from, to)),
            TAG_DROPPED_GIVEN => dropped_in(frame.payload).for_each(|(from, to)| self.note_dropped_given(from, to)),
            TAG_RELEASED => dropped_in(frame.payload).for_each(|(from, to)| self.note_released(from, to)),
            TAG_REPLAYED => {
                if let Some((replay, ranges)) = replayed_in(frame.payload) {
                    ranges.for_each(|(from, to)| self.note_replayed(replay, from, to));
                }
            }
            TAG_COPIES => {
                if let Some((seqs, _)) = split_copies(frame.payload) {
                    self.note_copies(offset, len, &seqs);
                }
            }
            _ => return false,
        }
        true
    }

    pub fn note_letter(&mut self, seq: Seq, offset: u64, len: u64) {
        let copy = self.places.get(&seq).and_then(|place| place.copy);
        let replaced = self.places.insert(seq, Place { offset, len, copy });
        self.live_bytes += len;
        self.live_bytes -= replaced.map_or(0, |place| place.len);
        self.dropped.remove(seq);
        self.dropped_given.remove(seq);
        self.diverted.remove(seq);
        self.not_given(seq);
    }

    fn not_given(&mut self, seq: Seq) {
        if let Some(since) = self.given.remove(&seq) {
            self.given_since.remove(&(since, seq));
            self.withheld.remove(&seq);
            self.released.remove(&seq);
        }
    }

    /// The sinks that gave the letters in a range have let go of them.
    pub fn note_released(&mut self, from: Seq, to: Seq) {
        let released: Vec<Seq> = self.given.range(from..=to).map(|(seq, _)| *seq).collect();
        self.withheld.retain(|seq, _| !(from..=to).contains(seq));
        self.released.extend(released);
    }

    /// A letter of another sink is to be delivered here.
    pub fn note_given(&mut self, seq: Seq, offset: u64, len: u64, since: Timestamp) {
        self.note_letter(seq, offset, len);
        self.given.insert(seq, since);
        self.given_since.insert((since, seq));
    }

    /// Another sink has the letters in a range. From Seq 0 on: which it has, up to the other, is not known any more.
    pub fn note_diverted(&mut self, from: Seq, to: Seq) {
        if from == Seq::ZERO {
            self.diverted_forgotten = self.diverted_forgotten.max(to);
            return;
        }
        self.remove_range(from, to);
        self.diverted.insert_range(from, to);
        let forgotten = self.diverted.trim(DROPPED_MAX);
        self.diverted_forgotten = self.diverted_forgotten.max(forgotten.unwrap_or_default());
    }

    /// The letters in a range that another sink has are of a replay's deliveries.
    pub fn note_replayed(&mut self, replay: &str, from: Seq, to: Seq) {
        let seqs = match self.replayed.get_mut(replay) {
            Some(seqs) => seqs,
            None => self.replayed.entry(replay.to_owned()).or_default(),
        };
        seqs.insert_range(from, to);
        seqs.trim(REPLAYED_MAX);
    }

    /// Bytes of what is remembered beside letters and copies, when it is written anew.
    pub fn notes_len(&self) -> u64 {
        let seqs = [&self.dropped, &self.dropped_given, &self.diverted].into_iter();
        let ranges = seqs
            .chain(self.replayed.values())
            .map(|seqs| seqs.ranges().len() as u64);
        ranges.sum::<u64>() * 16
    }

    fn remove_range(&mut self, from: Seq, to: Seq) {
        let gone: Vec<Seq> = self.places.range(from..=to).map(|(seq, _)| *seq).collect();
        for seq in gone {
            self.note_removed(seq);
        }
    }

    /// The letters in a range were dropped. From Seq 0 on: which were, up to the other, is not known any more.
    pub fn note_dropped(&mut self, from: Seq, to: Seq) {
        if from == Seq::ZERO {
            self.forgotten = self.forgotten.max(to);
            return;
        }
        self.remove_range(from, to);
        self.dropped.insert_range(from, to);
        let forgotten = self.dropped.trim(DROPPED_MAX);
        self.forgotten = self.forgotten.max(forgotten.unwrap_or_default());
    }

    /// The same of letters of other sinks.
    pub fn note_dropped_given(&mut self, from: Seq, to: Seq) {
        if from == Seq::ZERO {
            self.dropped_given_forgotten = self.dropped_given_forgotten.max(to);
            return;
        }
        self.remove_range(from, to);
        self.dropped_given.insert_range(from, to);
        let forgotten = self.dropped_given.trim(DROPPED_MAX);
        self.dropped_given_forgotten = self.dropped_given_forgotten.max(forgotten.unwrap_or_default());
    }

    /// What of it has to be written into a new file, so that it is known there.
    pub fn dropped_ranges(&self) -> Vec<(Seq, Seq)> {
        ranges(self.forgotten, &self.dropped)
    }

    /// The same of letters of other sinks.
    pub fn dropped_given_ranges(&self) -> Vec<(Seq, Seq)> {
        ranges(self.dropped_given_forgotten, &self.dropped_given)
    }

    /// The same of what other sinks have.
    pub fn diverted_ranges(&self) -> Vec<(Seq, Seq)> {
        ranges(self.diverted_forgotten, &self.diverted)
    }

    /// Whether there was one.
    pub fn note_removed(&mut self, seq: Seq) -> bool {
        let Some(place) = self.places.remove(&seq) else {
            return false;
        };
        self.not_given(seq);
        self.live_bytes -= place.len;
        self.let_go(place.copy);
        true
    }

    pub fn note_copies(&mut self, offset: u64, len: u64, seqs: &[Seq]) {
        let mut live = 0;
        let mut replaced = Vec::new();
        for seq in seqs {
            if let Some(place) = self.places.get_mut(seq) {
                replaced.push(place.copy.replace(offset));
                live += 1;
            }
        }
        if live > 0 {
            self.blocks.insert(offset, (live, len));
            self.live_bytes += len;
        }
        for old in replaced {
            self.let_go(old);
        }
    }

    /// One event less needs this block.
    fn let_go(&mut self, block: Option<u64>) {
        let Some(at) = block else { return };
        let Some((live, len)) = self.blocks.get_mut(&at) else {
            return;
        };
        *live -= 1;
        if *live == 0 {
            self.live_bytes -= *len;
            self.blocks.remove(&at);
        }
    }

    /// The oldest letters that have to go so that the rest is at most so large.
    pub fn beyond(&self, max_bytes: u64) -> Vec<Seq> {
        let mut left = self.live_bytes;
        let mut blocks: BTreeMap<u64, usize> = BTreeMap::new();
        let mut seqs = Vec::new();
        for (seq, place) in &self.places {
            if left <= max_bytes {
                break;
            }
            left -= place.len;
            if let Some((block, (live, len))) = place.copy.and_then(|at| Some((at, *self.blocks.get(&at)?))) {
                let gone = blocks.entry(block).or_default();
                *gone += 1;
                if *gone == live {
                    left -= len;
                }
            }
            seqs.push(*seq);
        }
        seqs
    }
}

fn ranges(forgotten: Seq, seqs: &Seqs) -> Vec<(Seq, Seq)> {
    let forgotten = (forgotten > Seq::ZERO).then_some((Seq::ZERO, forgotten));
    forgotten.into_iter().chain(seqs.ranges().iter().copied()).collect()
}
