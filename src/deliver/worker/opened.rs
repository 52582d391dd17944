//! A sink that was opened: where it stands, and where the worker goes on.

use jiff::Timestamp;

use super::Worker;
use crate::deliver::mark::{Record, Unmarked};
use crate::deliver::schedule;
use crate::deliver::seqs::Seqs;
use crate::sinks::{Commit, Mark, Opened, Unavailable};

impl Worker<'_> {
    /// An opening came back.
    pub(super) async fn opened(&mut self, opened: Result<Opened, Unavailable>) {
        self.opening = false;
        let settled = match opened {
            Ok(opened) => self.settle_with(&opened).await.map(|()| opened),
            Err(unavailable) => Err(unavailable),
        };
        match settled {
            Ok(opened) => {
                self.unanswered.clear();
                self.breaker.opened(schedule::now());
                if std::mem::take(&mut self.failed_to_open) {
                    self.works_again();
                }
                self.sink = Some(opened.sink.into());
            }
            Err(unavailable) => {
                self.failed_to_open = true;
                self.unavailable(&unavailable);
            }
        }
    }

    /// Takes over where the sink stands.
    async fn settle_with(&mut self, opened: &Opened) -> Result<(), Unavailable> {
        match self.drive.commit {
            Commit::Acknowledge => Ok(()),
            Commit::Checkpoint => {
                self.record.position.clone_from(&opened.position);
                self.progress.settle = true;
                self.progress.dirty = true;
                Ok(())
            }
            Commit::Transaction => self.settle_with_mark(opened.mark.as_ref()).await,
        }
    }

    /// The same where the receiver keeps the mark.
    async fn settle_with_mark(&mut self, mark: Option<&Mark>) -> Result<(), Unavailable> {
        let epoch = self.kit.log.epoch();
        if mark.is_some_and(|mark| self.record.is_behind(mark, epoch)) {
            // What is durable says who goes on.
            self.outdated = true;
            return Err(Unavailable::new("another node has delivered to it since"));
        }
        if mark.is_none() && self.record.commits > 0 {
            self.is_unmarked();
        }
        let ours = self.snapshot();
        let settled = ours
            .settled_with(mark, epoch, |seq| self.kit.letters.has(seq))
            .map_err(Unavailable::new)?;
        if settled.commits == ours.commits {
            // Nothing was committed without an answer.
            self.lanes.letters.deny_doubted();
            return Ok(());
        }
        let theirs = mark.and_then(Record::of_mark).unwrap_or_default();
        let settled = self.settled_with_log(&ours, &theirs, settled).await?;
        self.tell_of_taken_over(&ours, &settled);
        let mut asked = std::mem::take(&mut self.lanes.letters);
        asked.adopt(&settled.remove, "the receiver was set back");
        self.lanes = self.kit.lanes(&settled);
        self.trail = settled.trail();
        self.settle_anew(schedule::now());
        self.lanes.letters = asked;
        self.record = settled;
        self.note_rules();
        self.progress.unsaved_deliveries = Seqs::default();
        self.progress.saving_deliveries = Seqs::default();
        self.progress.settle = true;
        self.progress.dirty = true;
        Ok(())
    }

    fn tell_of_taken_over(&self, ours: &Record, settled: &Record) {
        tracing::info!(
            sink = self.kit.name(),
            ours = ours.commits,
            theirs = settled.commits,
            "the receiver's mark differs from ours, and is taken over"
        );
        if ours.begun_anew.is_some() && settled.begun_anew.is_none() {
            tracing::warn!(
                sink = self.kit.name(),
                "its position was lost to damage of the state, and the receiver kept it: nothing repeats; if the sink was paused it is no more"
            );
        }
    }

    /// A receiver that keeps the mark has lost it, and perhaps everything. Our record is the only one left, so it counts; going back to
    /// the beginning would bring back what a consumer has taken away. But somebody has to know.
    fn is_unmarked(&mut self) {
        let unmarked = Unmarked {
            at: Timestamp::now(),
            commits: self.record.commits,
            cursor: self.lanes.main.cursor(),
        };
        let name = self.kit.name();
        tracing::error!(sink = name, "{}", unmarked.words(name));
        self.record.unmarked = Some(unmarked);
        self.progress.dirty = true;
    }
}
