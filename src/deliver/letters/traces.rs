//! What letters tell of events that the log has lost.

use super::Letters;
use super::index::Index;
use crate::event::Seq;

impl Letters {
    /// The newest event of which something is kept here, or is known to have been: its Seq was given out, whatever the log says. None while
    /// they were not read.
    pub fn newest(&self) -> Seq {
        self.index(|index| newest(index))
    }
}

fn newest(index: &Index) -> Seq {
    let noted = [&index.dropped, &index.dropped_given, &index.diverted].into_iter();
    let noted = noted.filter_map(|seqs| seqs.ranges().last()).map(|(_, to)| *to);
    let forgotten = [index.forgotten, index.dropped_given_forgotten, index.diverted_forgotten];
    let kept = index.places.last_key_value().map(|(seq, _)| *seq);
    noted.chain(forgotten).chain(kept).max().unwrap_or_default()
}
