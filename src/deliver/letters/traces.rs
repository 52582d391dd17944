//! What letters tell of events that the log, or damage, has lost.

use std::sync::atomic::Ordering;

use super::Letters;
use super::index::Index;
use crate::event::Seq;

impl Letters {
    /// The newest event of which something is kept here, or is known to have been: its Seq was given out, whatever the log says. None while
    /// they were not read.
    pub fn newest(&self) -> Seq {
        self.index(|index| newest(index))
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

fn newest(index: &Index) -> Seq {
    let noted = [&index.dropped, &index.dropped_given, &index.diverted].into_iter();
    let noted = noted.filter_map(|seqs| seqs.ranges().last()).map(|(_, to)| *to);
    let forgotten = [index.forgotten, index.dropped_given_forgotten, index.diverted_forgotten];
    let kept = index.places.last_key_value().map(|(seq, _)| *seq);
    noted.chain(forgotten).chain(kept).max().unwrap_or_default()
}
