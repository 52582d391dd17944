//! A set of Seqs, as ranges: short where they lie side by side, as what a sink gets mostly does.

use serde::{Deserialize, Serialize};

use crate::event::Seq;

/// See the module's head. Ranges are in order, don't touch, and name their first and last Seq.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Seqs(Vec<(Seq, Seq)>);

impl Seqs {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many Seqs there are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to.0 - from.0 + 1).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = Seq> {
        self.0.iter().flat_map(|(from, to)| (from.0..=to.0).map(Seq))
    }

    pub fn has(&self, seq: Seq) -> bool {
        let at = self.0.partition_point(|(_, to)| *to < seq);
        self.0.get(at).is_some_and(|(from, _)| *from <= seq)
    }

    /// The ranges, by first and last Seq.
    pub fn ranges(&self) -> &[(Seq, Seq)] {
        &self.0
    }

    /// Forgets the lowest ranges beyond so many; gives the highest Seq that was forgotten.
    pub fn trim(&mut self, ranges_max: usize) -> Option<Seq> {
        let beyond = self.0.len().saturating_sub(ranges_max);
        self.0.drain(..beyond).next_back().map(|(_, to)| to)
    }

    /// Puts all of a range in.
    pub fn insert_range(&mut self, from: Seq, to: Seq) {
        // Those that touch it or overlap with it become one with it.
        let first = self.0.partition_point(|(_, end)| end.next() < from);
        let behind = self.0.partition_point(|(start, _)| *start <= to.next());
        let touched = &self.0[first..behind.max(first)];
        let from = touched.first().map_or(from, |(start, _)| (*start).min(from));
        let to = touched.last().map_or(to, |(_, end)| (*end).max(to));
        self.0.splice(first..behind.max(first), [(from, to)]);
    }

    pub fn insert(&mut self, seq: Seq) {
        // The first range that does not end before the one right before `seq`.
        let at = self.0.partition_point(|(_, to)| to.next() < seq);
        match self.0.get_mut(at) {
            Some((from, to)) if *from <= seq && seq <= *to => return,
            Some((_, to)) if to.next() == seq => *to = seq,
            Some((from, _)) if seq.next() == *from => *from = seq,
            _ => self.0.insert(at, (seq, seq)),
        }
        if let (Some((_, to)), Some((from, end))) = (self.0.get(at).copied(), self.0.get(at + 1).copied())
            && to.next() == from
        {
            self.0[at].1 = end;
            self.0.remove(at + 1);
        }
    }

    /// Takes all of a range out.
    pub fn remove_range(&mut self, from: Seq, to: Seq) {
        for (start, end) in std::mem::take(&mut self.0) {
            if end < from || start > to {
                self.0.push((start, end));
                continue;
            }
            if start < from {
                self.0.push((start, from.prev()));
            }
            if end > to {
                self.0.push((to.next(), end));
            }
        }
    }

    pub fn remove(&mut self, seq: Seq) {
        let at = self.0.partition_point(|(_, to)| *to < seq);
        let Some((from, to)) = self.0.get(at).copied().filter(|(from, _)| *from <= seq) else {
            return;
        };
        let rest = [(from, seq.prev()), (seq.next(), to)];
        let rest = rest.into_iter().filter(|(from, to)| from <= to);
        self.0.splice(at..=at, rest);
    }
}

impl Extend<Seq> for Seqs {
    fn extend<T: IntoIterator<Item = Seq>>(&mut self, seqs: T) {
        seqs.into_iter().for_each(|seq| self.insert(seq));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is put in and taken out, it is the set of what is in, in as few ranges as can be.
        #[test]
        fn it_is_a_set(changes in prop::collection::vec((any::<bool>(), 1_u64..24), 0..80)) {
            let (mut seqs, mut set) = (Seqs::default(), BTreeSet::new());
            for (is_in, seq) in changes {
                if is_in {
                    seqs.insert(Seq(seq));
                    set.insert(Seq(seq));
                } else {
                    seqs.remove(Seq(seq));
                    set.remove(&Seq(seq));
                }
                prop_assert!(seqs.iter().eq(set.iter().copied()), "{seqs:?} instead of {set:?}");
                prop_assert_eq!(seqs.len(), set.len() as u64);
                prop_assert!(seqs.0.windows(2).all(|pair| pair[0].1.next() < pair[1].0), "{seqs:?} can be shorter");
                prop_assert_eq!(seqs.is_empty(), set.is_empty());
                prop_assert!((0..26).all(|seq| seqs.has(Seq(seq)) == set.contains(&Seq(seq))), "{seqs:?}");
            }
        }

        #[test]
        fn ranges_are_taken_out_as_one_by_one(all in prop::collection::vec(1_u64..40, 0..30), from in 1_u64..40, more in 0_u64..9) {
            let mut whole = Seqs::default();
            whole.extend(all.into_iter().map(Seq));
            let mut single = whole.clone();
            whole.remove_range(Seq(from), Seq(from + more));
            (from..=from + more).for_each(|seq| single.remove(Seq(seq)));
            prop_assert_eq!(whole, single);
        }

        #[test]
        fn ranges_are_put_in_as_one_by_one(ranges in prop::collection::vec((1_u64..40, 0_u64..9), 0..20)) {
            let (mut whole, mut single) = (Seqs::default(), Seqs::default());
            for (from, more) in ranges {
                whole.insert_range(Seq(from), Seq(from + more));
                single.extend((from..=from + more).map(Seq));
                prop_assert_eq!(&whole, &single);
            }
            let before: Vec<Seq> = whole.iter().collect();
            let forgotten = whole.trim(2);
            prop_assert!(whole.ranges().len() <= 2);
            let left = before.into_iter().filter(|seq| forgotten.is_none_or(|upto| *seq > upto));
            prop_assert!(whole.iter().eq(left));
        }
    }
}
