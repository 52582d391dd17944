//! Going through the log: from the front, on to what is still to come, or back from the end.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use super::Facade;
use super::answers::{Out, Refusal, text};
use crate::event::{Event, Seq};
use crate::log::{Narrow, Take};
use crate::rules::selection::Selection;

/// Bytes of events that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// Events that are read at a time from the end of the log.
const STEP: u64 = 1024;

/// How much of the log is walked through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    /// At most so many events.
    pub limit: Option<u64>,
    /// Also those to come.
    pub follow: bool,
    /// Not before this one.
    pub from: Option<Seq>,
}

/// Says what `render` makes of each event that is meant, in Seq order.
pub(super) async fn walk<T: Serialize>(
    on: &Facade,
    selection: &Selection,
    range: Range,
    render: impl Fn(&Event) -> Option<T>,
    out: &Out<'_, T>,
) -> Result<(), Refusal> {
    let mut head = on.log.head();
    let mut next = if range.follow && range.from.is_none() && selection.since.is_none() {
        head.borrow().next()
    } else {
        first_of(on, selection, range.from).await?
    };
    let narrow = selection.narrow();
    let mut left = range.limit.unwrap_or(u64::MAX);
    loop {
        let batch = read(on, next, 512, Some(&narrow)).await?;
        for event in batch.events.iter().filter(|event| selection.selects(event)) {
            let Some(rendered) = render(event) else { continue };
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            out.say(&rendered).await?;
        }
        if batch.next != next {
            next = batch.next;
            continue;
        }
        if !range.follow || left == 0 {
            return Ok(());
        }
        tokio::select! {
            changed = head.changed() => changed.map_err(text)?,
            () = out.closed() => return Ok(()),
        }
    }
}

/// Reads what may be among what is meant; whoever asks still looks at each event.
pub(super) async fn read(
    on: &Facade,
    from: Seq,
    max: usize,
    narrow: Option<&Narrow>,
) -> Result<crate::log::Batch, Refusal> {
    let take = Take {
        events: max,
        bytes: READ_BYTES,
        narrow,
    };
    on.log.read(from, take).await.map_err(text)
}

async fn first_of(on: &Facade, selection: &Selection, from: Option<Seq>) -> Result<Seq, Refusal> {
    let first = on.log.first().max(from.unwrap_or_default());
    let Some(since) = selection.since else { return Ok(first) };
    Ok(on.log.seq_at(since).await.map_err(text)?.max(first))
}

/// The newest events that are meant, in Seq order: found from the end, so that a long log costs nothing.
pub(super) async fn newest(on: &Facade, selection: &Selection, limit: u64) -> Result<VecDeque<Arc<Event>>, Refusal> {
    let narrow = selection.narrow();
    let first = first_of(on, selection, None).await?;
    let mut found = VecDeque::new();
    let mut upper = on.log.head().borrow().next();
    let mut step = STEP;
    while (found.len() as u64) < limit {
        // A restored log leaves out Seqs by the million.
        upper = on.log.last_before(upper).unwrap_or_default().next();
        if upper <= first {
            break;
        }
        let lower = Seq(upper.0.saturating_sub(step)).max(first);
        // No more of them than are still wanted, however many there are.
        let wanted = limit - found.len() as u64;
        let mut chunk = VecDeque::new();
        let mut next = lower;
        while next < upper {
            let most = (upper.0 - next.0).min(STEP) as usize;
            let batch = read(on, next, most, Some(&narrow)).await?;
            if batch.next == next {
                break;
            }
            next = batch.next;
            let is_meant = |event: &Arc<Event>| event.seq < upper && selection.selects(event);
            for event in batch.events.into_iter().filter(is_meant) {
                if chunk.len() as u64 == wanted {
                    chunk.pop_front();
                }
                chunk.push_back(event);
            }
        }
        for event in chunk.into_iter().rev() {
            found.push_front(event);
        }
        upper = lower;
        if !narrow.is_empty() {
            // What is rare is looked up, and each look goes through to the end of the log: there must not be many.
            step = step.saturating_mul(4);
        }
    }
    Ok(found)
}
