//! What letters tell of events that the log, or damage, has lost.

use std::sync::atomic::Ordering;

use super::Letters;
use super::index::Index;
use crate::event::Seq;

/// Of which events something is kept, or is known to have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) struct Traces {
    /// The newest that the log can have given out.
    pub newest: Seq,
    /// The newest that it can't have given out; `None`: there is none.
    pub beyond: Option<Seq>,
}

impl Letters {
    /// The newest event of which something is kept here, or is known to have been: its Seq was given out, whatever the log says. None while
    /// they were not read. `upto`: what is behind it the log can't have given out. Blocking.
    pub fn newest(&self, upto: Seq) -> Traces {
        let noted = self.index(|index| noted(index));
        let beyond = noted.iter().copied().chain(self.last_upto(Seq(u64::MAX)));
        let known = noted.iter().copied().filter(|seq| *seq <= upto);
        Traces {
            newest: known.chain(self.last_confirmed(upto)).max().unwrap_or_default(),
            beyond: beyond.filter(|seq| *seq > upto).max(),
        }
    }

    /// The newest event up to there that has a letter, and of which that letter says so itself.
    fn last_confirmed(&self, upto: Seq) -> Option<Seq> {
        let mut last = self.last_upto(upto)?;
        loop {
            let is_other = match self.get(last) {
                Ok(letter) => letter.is_none_or(|letter| letter.seq != last),
                // Nobody knows what it says.
                Err(_) => false,
            };
            if !is_other {
                return Some(last);
            }
            let before = self.last_upto(last.prev())?;
            // As if there were one at the very beginning, where no event is.
            if before == last {
                return None;
            }
            last = before;
        }
    }

    fn last_upto(&self, upto: Seq) -> Option<Seq> {
        self.index(|index| index.places.range(..=upto).next_back().map(|(seq, _)| *seq))
    }

    /// Of the events up to here damage may have taken letters, as the sink's record says.
    pub fn note_lost_upto(&self, upto: Seq) {
        self.shared.lost_upto.fetch_max(upto.0, Ordering::Relaxed);
    }

    /// Whether damage may have taken a letter that one of these sinks gave to this one: an event that is known to have gone here, or one that
    /// this sink was finished with by then, and of which nobody knows it.
    pub fn may_have_lost_given(&self, seq: Seq, givers: &[Letters]) -> bool {
        let lost_upto = Seq(self.shared.lost_upto.load(Ordering::Relaxed));
        if givers.is_empty() || (lost_upto == Seq::ZERO && !self.is_damaged()) {
            return false;
        }
        seq <= lost_upto || givers.iter().any(|giver| giver.was_diverted(seq))
    }
}

/// What is noted of events that have no letter any more: both ends of each range.
fn noted(index: &Index) -> Vec<Seq> {
    let noted = [&index.dropped, &index.dropped_given, &index.diverted].into_iter();
    let ends = noted.flat_map(|seqs| seqs.ranges().iter().flat_map(|(from, to)| [*from, *to]));
    let forgotten = [index.forgotten, index.dropped_given_forgotten, index.diverted_forgotten];
    ends.chain(forgotten).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::{TAG_LETTER, letter_payload};
    use super::super::tests::letter;
    use super::*;

    /// As with the file of another log, or a bit that was another one in memory.
    #[test]
    fn what_no_log_can_have_given_out_hides_nothing_of_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::open(dir.path(), "a", false).unwrap();
        let newest = |upto| {
            let Traces { newest, beyond } = letters.newest(Seq(upto));
            (newest.0, beyond.map(|seq| seq.0))
        };
        assert_eq!(newest(100), (0, None));
        letters.add(&[letter(7), letter(9), letter(1 << 50)]).unwrap();
        assert_eq!(newest(100), (9, Some(1 << 50)));
        assert_eq!(newest(8), (7, Some(1 << 50)));
        assert_eq!(newest(1 << 60), (1 << 50, None));
        letters.divert(&[Seq(12), Seq(1 << 61)], None).unwrap();
        assert_eq!(newest(100), (12, Some(1 << 61)));
    }

    #[test]
    fn a_letter_that_says_to_be_of_another_event_is_no_trace_of_either() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::open(dir.path(), "a", false).unwrap();
        letters.add(&[letter(7)]).unwrap();
        for other in [8_u64, 0] {
            let mut payload = letter_payload(&letter(70));
            payload[..8].copy_from_slice(&other.to_le_bytes());
            letters
                .write("add", &mut |_| vec![(TAG_LETTER, payload.clone())])
                .unwrap();
        }
        assert_eq!(letters.newest(Seq(100)).newest, Seq(7));
        letters.remove(&[Seq(7)]).unwrap();
        assert_eq!(letters.newest(Seq(100)).newest, Seq::ZERO);
    }
}
