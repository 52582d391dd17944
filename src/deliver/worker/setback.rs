//! A receiver's mark and a log that was set back: what the mark says it has had may have been other events than the log has there now.
//!
//! | the receiver's mark | it is seen | what counts |
//! |---|---|---|
//! | has seen more than the log has | at once | ours; the log goes on behind what the receiver has seen |
//! | the log has given out its Seqs once more | by the event below it, which is another one now, or none | ours |
//! | one of those, and the receiver was set back too | the same | its own, as far back as when it was made |
//!
//! So an earlier mark passes nothing that came since, however much that is, and whenever the receiver is asked. What is taken over instead is
//! durable here before anything is delivered, and the next transaction puts it in the place of the receiver's mark. What comes again is told
//! by its key. A mark in which no event is named, as closehook wrote them before, is believed unless it has seen more than the log.

use super::Worker;
use crate::deliver::mark::Record;
use crate::deliver::reading::within;
use crate::deliver::setback::{came_since, is_possible};
use crate::event::{Kind, Seq};
use crate::sinks::Unavailable;

impl Worker<'_> {
    /// The record settled with a mark, and with a log that may have been set back since that was made. Where nodes share the log, this one
    /// may only not have heard yet of what others have delivered.
    pub(super) async fn settled_with_log(
        &self,
        ours: &Record,
        theirs: &Record,
        settled: Record,
    ) -> Result<Record, Unavailable> {
        let seen = |record: &Record| record.main.as_ref().map(|main| main.next.prev());
        let (Some(seen), Some(_)) = (seen(theirs), &ours.main) else {
            return Ok(settled);
        };
        let end = self.end_if_before(seen).await?;
        if end.is_none() && !self.is_of_other_events(theirs).await? {
            return Ok(settled);
        }
        let head = end.map_or_else(|| *self.kit.log.head().borrow(), Seq::prev);
        tracing::error!(
            sink = self.kit.name(),
            head = head.0,
            receiver = seen.0,
            "the receiver has got events that the log has not, which was set back: some events may repeat, and those that only the receiver has are not here"
        );
        if end.is_some() && is_possible(&*self.kit.log, head, seen) {
            self.skip_past(seen).await?;
        } else if end.is_some() {
            let sink = self.kit.name();
            tracing::error!(
                sink,
                "the receiver says that it has got event {seen}, which this log can't have given out"
            );
        }
        if theirs.commits >= ours.commits {
            // Letters and replays that it speaks of may be of other events as well.
            return Ok(Record {
                commits: theirs.commits,
                ..ours.clone()
            });
        }
        let since = came_since(&*self.kit.log, theirs).await;
        let since =
            since.map_err(|error| Unavailable::new(format!("the log does not say what has come since: {error}")))?;
        let mut settled = settled;
        if let Some(main) = &mut settled.main {
            main.next = main.next.min(since);
            main.open.retain(|item| item.seq < since);
        }
        Ok(settled)
    }

    /// Where the log ends, if it ends before it comes to this Seq.
    async fn end_if_before(&self, seen: Seq) -> Result<Option<Seq>, Unavailable> {
        if seen <= *self.kit.log.head().borrow() {
            return Ok(None);
        }
        let end = self.log_end().await;
        let end = end.map_err(|error| Unavailable::new(format!("the log does not say how far it is: {error}")))?;
        Ok(Some(end).filter(|end| seen >= *end))
    }

    /// Whether the log has another event at the place that a mark speaks of, or none.
    async fn is_of_other_events(&self, theirs: &Record) -> Result<bool, Unavailable> {
        let log = &self.kit.log;
        let Some(last) = theirs.last.as_ref().filter(|last| last.seq >= log.first()) else {
            return Ok(false);
        };
        let found = within(log.get(last.seq)).await;
        let found = found.map_err(|error| {
            Unavailable::new(format!(
                "the log does not say whether it is the one that the receiver was fed from: {error}"
            ))
        })?;
        Ok(match found {
            Some(event) => event.kind != Kind::Erased && !last.is(&event),
            // It was never given out, or damage took it: better some again than one never.
            None => last.seq <= *log.head().borrow(),
        })
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), Unavailable> {
        let skipped = tokio::time::timeout(self.limit(), self.kit.log.skip_past(seen)).await;
        let trouble = match skipped {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".into(),
        };
        let reason = format!("the log can't go on behind what the receiver has got: {trouble}");
        Err(Unavailable::new(reason))
    }
}
