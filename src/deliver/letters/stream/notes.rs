//! What records say of each other: which of them nothing needs any more, and one that says all that others do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::index::Index;
use super::super::reader::Frame;
use super::super::record::{
    TAG_COPIES, TAG_DIVERTED, TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_GIVEN, TAG_LETTER, TAG_REMOVE, TAG_WHOLE, dropped_in,
    seq_of, split_copies,
};
use crate::deliver::seqs::Seqs;
use crate::event::Seq;
use crate::state::journal::Record;

/// Everything that is known at some place, but for letters and copies themselves: of those it names the ones that there are.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Whole {
    fence: u64,
    letters: Seqs,
    released: Seqs,
    dropped: Vec<(Seq, Seq)>,
    dropped_given: Vec<(Seq, Seq)>,
    diverted: Vec<(Seq, Seq)>,
    replayed: BTreeMap<String, Seqs>,
}

impl Whole {
    pub fn of(index: &Index) -> Whole {
        let seqs = |seqs: &mut dyn Iterator<Item = Seq>| {
            let mut all = Seqs::default();
            all.extend(seqs);
            all
        };
        Whole {
            fence: index.fence,
            letters: seqs(&mut index.places.keys().copied()),
            released: seqs(&mut index.released.iter().copied()),
            dropped: index.dropped_ranges(),
            dropped_given: index.dropped_given_ranges(),
            diverted: index.diverted_ranges(),
            replayed: index.replayed.clone(),
        }
    }

    pub fn apply(self, index: &mut Index) {
        let gone = index.places.keys().filter(|seq| !self.letters.has(**seq));
        for seq in gone.copied().collect::<Vec<_>>() {
            index.note_removed(seq);
        }
        index.fence = index.fence.max(self.fence);
        (index.dropped, index.dropped_given, index.diverted) = Default::default();
        for (from, to) in self.dropped {
            index.note_dropped(from, to);
        }
        for (from, to) in self.dropped_given {
            index.note_dropped_given(from, to);
        }
        for (from, to) in self.diverted {
            index.note_diverted(from, to);
        }
        index.replayed = self.replayed;
        for (from, to) in self.released.ranges() {
            index.note_released(*from, *to);
        }
    }
}

/// Letters, with the places of their records, that a record may be the end of.
pub(super) fn going(index: &Index, tag: u32, payload: &[u8]) -> Vec<(Seq, u64)> {
    let places = |seq: Seq| {
        let place = index.places.get(&seq);
        let of = place.into_iter().flat_map(|place| [Some(place.offset), place.copy]);
        of.flatten().map(move |place| (seq, place)).collect::<Vec<_>>()
    };
    match tag {
        TAG_LETTER | TAG_GIVEN => seq_of(payload).map(places).unwrap_or_default(),
        TAG_REMOVE => payload.chunks_exact(8).filter_map(seq_of).flat_map(places).collect(),
        TAG_DROPPED | TAG_DROPPED_GIVEN | TAG_DIVERTED => {
            let within = |(from, to): (Seq, Seq)| index.places.range(from..=to).map(|(seq, _)| *seq);
            dropped_in(payload).flat_map(within).flat_map(places).collect()
        }
        TAG_COPIES => {
            let of = split_copies(payload).map(|(seqs, _)| seqs).unwrap_or_default();
            of.into_iter().flat_map(places).collect()
        }
        TAG_WHOLE => index.places.keys().copied().flat_map(places).collect(),
        _ => Vec::new(),
    }
}

/// A note says last what became of a letter. That there was one has ended what was noted of its event before; but its own record may be gone.
pub(super) fn forget_before(index: &mut Index, tag: u32, payload: &[u8]) {
    let ranges: Vec<(Seq, Seq)> = match tag {
        TAG_REMOVE => payload
            .chunks_exact(8)
            .filter_map(seq_of)
            .map(|seq| (seq, seq))
            .collect(),
        TAG_DROPPED | TAG_DROPPED_GIVEN | TAG_DIVERTED => dropped_in(payload).collect(),
        _ => return,
    };
    for (from, to) in ranges.into_iter().filter(|(from, _)| *from > Seq::ZERO) {
        for noted in [&mut index.dropped, &mut index.dropped_given, &mut index.diverted] {
            noted.remove_range(from, to);
        }
    }
}

/// Whether a copy is of a letter that has none.
pub(super) fn is_wanted(index: &Index, payload: &[u8]) -> bool {
    let seqs = split_copies(payload).map(|(seqs, _)| seqs).unwrap_or_default();
    let is_bare = |seq: &Seq| index.places.get(seq).is_some_and(|place| place.copy.is_none());
    seqs.iter().any(is_bare)
}

pub(super) fn record((tag, payload): Frame) -> Record {
    let name = match tag {
        TAG_LETTER | TAG_GIVEN => seq_of(&payload).unwrap_or_default().to_string(),
        TAG_COPIES => {
            let seqs = split_copies(&payload).map(|(seqs, _)| seqs).unwrap_or_default();
            format!("{}.copy", seqs.first().copied().unwrap_or_default())
        }
        _ => "note".to_owned(),
    };
    Record {
        name,
        tag,
        payload: payload.into(),
    }
}
