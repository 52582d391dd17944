//! Which of several entries it was: a receiver that takes entries together says of none which one it does not take.
//!
//! What is refused together is halved, and each half sent by itself, down to the entry that is refused alone. So one bad entry among n
//! costs at most two requests for each time that n can be halved, nothing that was taken is sent again, and all go in their order. After
//! so many refusals in a row, each of one entry alone, it may not be about the entries (decision 21): the sink then leaves the rest.

use std::ops::Range;

/// Refusals in a row; what is behind them waits.
pub(in crate::sinks) const REFUSALS_MAX: usize = 5;

/// Refusals in a row, each of one entry.
#[derive(Debug, Default)]
pub(in crate::sinks) struct Row(usize);

impl Row {
    /// One was taken: those before were about themselves.
    pub(in crate::sinks) fn ended(&mut self) {
        self.0 = 0;
    }

    /// One more. Whether it may still be about the entry; else that waits, as does what is behind it.
    pub(in crate::sinks) fn another(&mut self) -> bool {
        self.0 += 1;
        self.0 <= REFUSALS_MAX
    }

    /// Whether there were so many that it may be about none of them.
    pub(in crate::sinks) fn is_over(&self) -> bool {
        self.0 >= REFUSALS_MAX
    }
}

/// What of a batch is still to be sent.
#[derive(Debug)]
pub(in crate::sinks) struct Sift {
    /// What went together at first.
    requests: Vec<Range<usize>>,
    /// The next one last.
    open: Vec<Range<usize>>,
}

impl Sift {
    /// `requests`: which entries go together, by their numbers, in order and without gaps.
    pub(in crate::sinks) fn new(requests: Vec<Range<usize>>) -> Sift {
        let open = requests.iter().rev().cloned().collect();
        Sift { requests, open }
    }

    /// What is sent next; `None`: there is nothing left.
    pub(in crate::sinks) fn next(&mut self) -> Option<Range<usize>> {
        while let Some(range) = self.open.pop() {
            if !range.is_empty() {
                return Some(range);
            }
        }
        None
    }

    /// What was sent together is refused for something in it: the entry that stood alone; else its halves are next.
    pub(in crate::sinks) fn refused(&mut self, range: &Range<usize>) -> Option<usize> {
        if range.len() == 1 {
            return Some(range.start);
        }
        let middle = range.start + range.len() / 2;
        self.open.extend([middle..range.end, range.start..middle]);
        None
    }

    /// One of what would be sent next is not: what is before it goes first, and then what is behind it.
    #[cfg(feature = "aws-messages")]
    pub(in crate::sinks) fn without(&mut self, range: &Range<usize>, index: usize) {
        self.open.extend([index + 1..range.end, range.start..index]);
    }

    /// Nothing more is sent of the request that this is of. All of that request.
    pub(in crate::sinks) fn leave(&mut self, range: &Range<usize>) -> Range<usize> {
        let index = self.requests.partition_point(|request| request.end <= range.start);
        let request = self.requests.get(index).cloned().unwrap_or_default();
        self.open.retain(|open| open.start >= request.end);
        request
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What became of each entry, how often it was taken, and what was asked.
    struct Told {
        refused: Vec<usize>,
        taken: Vec<usize>,
        asked: Vec<Range<usize>>,
    }

    /// A sink as all of them go on: until there is nothing left, or so many were refused in a row.
    fn sifted(requests: Vec<Range<usize>>, bad: &BTreeSet<usize>) -> Told {
        let mut told = Told {
            refused: Vec::new(),
            taken: Vec::new(),
            asked: Vec::new(),
        };
        let (mut sift, mut row) = (Sift::new(requests), Row::default());
        while let Some(range) = sift.next() {
            told.asked.push(range.clone());
            if bad.range(range.clone()).next().is_none() {
                told.taken.extend(range);
                row.ended();
            } else if let Some(index) = sift.refused(&range) {
                assert!(row.another(), "nothing is asked when it is over");
                told.refused.push(index);
                if row.is_over() {
                    break;
                }
            }
        }
        told
    }

    /// Requests of these lengths, one behind the other.
    fn requests(lens: &[usize]) -> Vec<Range<usize>> {
        let mut start = 0;
        lens.iter()
            .map(|len| {
                start += len;
                start - len..start
            })
            .collect()
    }

    /// How often a request of so many can be halved until one stands alone.
    fn halvings(len: usize) -> usize {
        len.next_power_of_two().trailing_zeros() as usize
    }

    proptest! {
        #[test]
        fn each_entry_is_judged_once_and_in_order_and_a_bad_one_costs_few_requests(
            lens in proptest::collection::vec(0_usize..300, 0..6),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let count: usize = lens.iter().sum();
            let bad: BTreeSet<usize> = picks.iter().filter(|_| count > 0).map(|pick| pick.index(count)).collect();
            let told = sifted(requests(&lens), &bad);
            let most: usize = lens.iter().copied().max().unwrap_or_default();
            let cost = 2 * halvings(most) * bad.len() + lens.len();
            prop_assert!(told.asked.len() <= cost, "{} requests, at most {cost}", told.asked.len());
            let (mut judged, mut taken) = (told.taken.clone(), told.taken.clone());
            judged.extend(&told.refused);
            judged.sort_unstable();
            taken.sort_unstable();
            prop_assert_eq!(&taken, &told.taken, "in order");
            // All, or all up to the last of five bad ones in a row.
            prop_assert_eq!(&judged, &(0..judged.len()).collect::<Vec<_>>());
            let refused: Vec<usize> = bad.iter().copied().take_while(|bad| *bad < judged.len()).collect();
            prop_assert_eq!(&told.refused, &refused);
            if judged.len() < count {
                let last = judged.len() - REFUSALS_MAX..judged.len();
                prop_assert!(last.clone().all(|index| bad.contains(&index)), "{last:?} of {bad:?}");
            }
        }

        #[test]
        fn who_refuses_everything_is_left_after_five(len in 5_usize..2000) {
            let told = sifted(requests(&[len]), &(0..len).collect());
            prop_assert_eq!(told.refused, (0..REFUSALS_MAX).collect::<Vec<_>>());
            prop_assert!(told.asked.len() <= halvings(len) + 2 * REFUSALS_MAX, "{:?}", told.asked);
        }

        #[test]
        fn what_is_left_of_a_request_leaves_the_others(
            lens in proptest::collection::vec(1_usize..50, 1..6),
            pick in any::<prop::sample::Index>(),
            deep in 0_usize..5,
        ) {
            let all = requests(&lens);
            let left = all[pick.index(all.len())].clone();
            let mut sift = Sift::new(all.clone());
            let (mut sent, mut halved) = (Vec::new(), 0);
            while let Some(range) = sift.next() {
                if !left.contains(&range.start) {
                    sent.push(range);
                } else if halved == deep || sift.refused(&range).is_some() {
                    prop_assert_eq!(sift.leave(&range), left.clone());
                } else {
                    halved += 1;
                }
            }
            let others: Vec<_> = all.into_iter().filter(|request| *request != left).collect();
            prop_assert_eq!(sent, others);
        }
    }

    #[test]
    fn a_row_ends_with_what_is_taken() {
        let mut row = Row::default();
        for _ in 0..REFUSALS_MAX {
            assert!(!row.is_over() && row.another());
        }
        assert!(row.is_over() && !row.another());
        row.ended();
        assert!(!row.is_over() && row.another());
    }
}
