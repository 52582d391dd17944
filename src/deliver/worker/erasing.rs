//! Data that was erased while a sink had some of it in memory: the order is answered when nothing of it is left that could still go out.
//!
//! What is being delivered may end, and a letter that is being written may be: whoever erases removes that after the answer. But what a
//! sink has gathered goes out minutes later. So it is dropped, with all that was gathered: the sink goes back to its durable mark, and
//! what comes again has a tombstone in the place of the data.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::Worker;
use super::lanes::Reach;
use super::queue::ERASED;
use crate::deliver::feed::Saved;
use crate::event::Seq;

/// An order that is not answered yet.
pub(super) struct Erasing {
    seqs: BTreeSet<Seq>,
    /// Some of it may be among what the sink has gathered.
    is_gathered: bool,
    done: oneshot::Sender<()>,
}

impl Worker<'_> {
    /// These were erased.
    pub(super) fn erase(&mut self, seqs: &[Seq], reach: Reach, done: oneshot::Sender<()>) {
        let seqs: BTreeSet<Seq> = seqs.iter().copied().collect();
        let is_gathered = seqs.iter().any(|seq| self.may_be_gathered(*seq));
        for (lane, seq) in self.chores.forget(&seqs, reach) {
            match self.lanes.feed(&lane) {
                Some(feed) => feed.finished(seq),
                None => self.lanes.letters.failed(seq, ERASED),
            }
            self.progress.dirty = true;
        }
        self.progress.dirty |= self.lanes.erase(&seqs, reach);
        self.erasing.push(Erasing {
            seqs,
            is_gathered,
            done,
        });
        self.end_erasing();
    }

    /// Answers the orders of which nothing is left to be done.
    pub(super) fn end_erasing(&mut self) {
        let gathered = |order: &Erasing| order.is_gathered && order.seqs.iter().any(|seq| self.may_be_gathered(*seq));
        if self.erasing.iter().any(gathered) {
            // The sink is let go between its calls only: what runs would be taken for what comes again.
            if self.running > 0 || self.progress.saving {
                return;
            }
            tracing::info!(
                sink = self.kit.name(),
                "data was erased of which the sink had gathered some: what it gathered is dropped and gathered again"
            );
            self.close_sink("data was erased");
        }
        for order in std::mem::take(&mut self.erasing) {
            if self.chores.makes(&order.seqs) {
                self.erasing.push(Erasing {
                    is_gathered: false,
                    ..order
                });
            } else {
                // Nobody may be waiting any more.
                let _ = order.done.send(());
            }
        }
    }

    /// Whether the sink may hold it without its being secured.
    fn may_be_gathered(&self, seq: Seq) -> bool {
        if self.gather.is_none() || self.sink.is_none() {
            return false;
        }
        let is_durable = |saved: Option<&Saved>| {
            saved.is_some_and(|saved| seq < saved.next && !saved.open.iter().any(|item| item.seq == seq))
        };
        let was_handed = |feed: &crate::deliver::feed::Feed| {
            seq < feed.next() && feed.stage(seq).is_none_or(|(is_in_flight, _)| is_in_flight)
        };
        let of_main = was_handed(&self.lanes.main) && !is_durable(self.durable.main.as_ref());
        let of_replays = self.lanes.replays.iter().any(|replay| {
            let durable = self.durable.replays.get(&*replay.job.id);
            seq >= replay.job.spec.from && was_handed(&replay.feed) && !is_durable(durable.map(|record| &record.saved))
        });
        let of_given = self
            .lanes
            .given
            .stage(seq)
            .is_some_and(|(is_in_flight, _)| is_in_flight);
        of_main || of_replays || of_given || self.lanes.letters.was_handed(seq)
    }
}
