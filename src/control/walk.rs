//! Going through the log: from the front, on to what is still to come, or back from the end.

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::looked::{LOST_MAX, Lost};
use crate::event::{Event, Seq};
use crate::log::{Gap, Narrow, Take};
use crate::rules::selection::Selection;

/// Bytes of events that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// Events that are looked at in one go, from the end of the log on.
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
    /// Without so many of the first.
    pub skip: u64,
    /// Not after this one.
    pub to: Option<Seq>,
}

/// What could not be read on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// The first few ranges.
    pub unread: Vec<Lost>,
    /// How many there are beside them.
    pub unread_more: u64,
    /// Gaps on the way of which nobody knows how many events they held: what is certain of them is among the ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncertain: Vec<Gap>,
}

/// The gaps of which nobody knows how many events they held.
pub(super) fn uncertain(on: &Facade) -> Vec<Gap> {
    let mut gaps = on.log.stats().gaps;
    gaps.retain(|gap| gap.last_certain() < gap.to);
    gaps
}

/// Whether some of a gap is among the places from the first to before the second.
pub(super) fn meets(gap: &Gap, first: Seq, upto: Seq) -> bool {
    gap.to >= first && gap.from < upto
}

impl Unread {
    /// Whether everything could be read.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.unread_more == 0 && self.uncertain.is_empty()
    }

    /// Adds what a reading that begins where the last one ended says of what is before a place.
    fn add(&mut self, lost: &[(Seq, Seq)], upto: Seq) {
        for (from, to) in lost.iter().filter(|(from, _)| *from < upto) {
            let is_full = self.unread.len() == LOST_MAX;
            match self.unread.last_mut() {
                Some(newest) if self.unread_more == 0 && newest.to.next() >= *from => newest.to = newest.to.max(*to),
                _ if is_full => self.unread_more += 1,
                _ => self.unread.push(Lost { from: *from, to: *to }),
            }
        }
    }

    /// Adds those of some gaps that are among the places from the first to before the second.
    fn pass(&mut self, gaps: &[Gap], first: Seq, upto: Seq) {
        for gap in gaps.iter().filter(|gap| meets(gap, first, upto)) {
            if !self.uncertain.contains(gap) {
                self.uncertain.push(gap.clone());
            }
        }
    }

    /// Without what is not among the places from the first to before the second.
    pub(super) fn keep(&mut self, first: Seq, upto: Seq) {
        self.unread.retain(|lost| lost.to >= first && lost.from < upto);
        self.uncertain.retain(|gap| meets(gap, first, upto));
    }
}

/// What of that is missing among what was asked for; `None`: nothing.
pub(super) async fn missing(on: &Facade, selection: &Selection, mut unread: Unread) -> Result<Option<Unread>, Refusal> {
    if unread.is_empty() {
        return Ok(None);
    }
    // What was not asked for is not missing, nor is what has expired meanwhile.
    let upto = match selection.until {
        Some(until) => on.log.seq_at(until).await.map_err(text)?,
        None => on.log.head().borrow().next(),
    };
    let gaps = std::mem::take(&mut unread.uncertain);
    unread.keep(on.log.first(), upto);
    // One that is on record has not expired, also where nothing is left before it.
    unread.pass(&gaps, Seq::ZERO, upto);
    Ok((!unread.is_empty()).then_some(unread))
}

/// Says what `render` makes of each event that is meant, in Seq order. Gives what of the range can't be read.
pub(super) async fn walk<T: Serialize>(
    on: &Facade,
    selection: &Selection,
    range: Range,
    render: impl Fn(&Event) -> Option<T>,
    out: &Out<'_, T>,
) -> Result<Unread, Refusal> {
    walk_on(on, selection, range, render, out, |_| None).await
}

/// The same of what may have no end: whenever it has come to the newest event it says what `tell` makes of what can't be read of what came
/// before.
pub(super) async fn walk_on<T: Serialize>(
    on: &Facade,
    selection: &Selection,
    range: Range,
    render: impl Fn(&Event) -> Option<T>,
    out: &Out<'_, T>,
    tell: impl Fn(Unread) -> Option<T>,
) -> Result<Unread, Refusal> {
    let mut head = on.log.head();
    let newest = *head.borrow();
    let (mut next, mut passed) = beginning(on, selection, range, newest).await?;
    let narrow = selection.narrow();
    let mut left = range.limit.unwrap_or(u64::MAX);
    let mut skip = range.skip;
    let mut begins = Seq::ZERO;
    let mut unread = Unread::default();
    let gaps = uncertain(on);
    if left == 0 {
        return Ok(unread);
    }
    let is_behind = |seq: Seq| range.to.is_some_and(|to| seq > to);
    loop {
        let batch = read(on, next, 512, Some(&narrow)).await?;
        for event in batch.events.iter().filter(|event| selection.selects(event)) {
            let Some(rendered) = render(event) else { continue };
            if skip > 0 {
                skip -= 1;
                // The ones that are meant begin behind it.
                begins = event.seq.next();
                continue;
            }
            if !is_behind(event.seq) {
                left -= 1;
                out.say(&rendered).await?;
                if left > 0 {
                    continue;
                }
            }
            unread.add(&batch.lost, event.seq);
            unread.pass(&gaps, passed, event.seq);
            unread.keep(begins, Seq(u64::MAX));
            return Ok(unread);
        }
        unread.add(&batch.lost, batch.next);
        unread.pass(&gaps, passed, batch.next);
        passed = batch.next;
        if batch.next != next && !is_behind(batch.next) {
            next = batch.next;
            continue;
        }
        if !range.follow {
            unread.keep(begins, Seq(u64::MAX));
            return Ok(unread);
        }
        let before = missing(on, selection, std::mem::take(&mut unread)).await?;
        if let Some(said) = before.and_then(&tell) {
            out.say(&said).await?;
        }
        tokio::select! {
            changed = head.changed() => changed.map_err(text)?,
            () = out.closed() => return Ok(unread),
        }
    }
}

/// Where a walk begins to read, and from where on what was lost counts.
async fn beginning(on: &Facade, selection: &Selection, range: Range, head: Seq) -> Result<(Seq, Seq), Refusal> {
    let next = if range.follow && range.from.is_none() && selection.since.is_none() {
        head.next()
    } else {
        first_of(on, selection, range.from).await?
    };
    // Whoever begins with the oldest event kept begins with what was lost in front of it.
    let passed = if range.follow || selection.since.is_some() {
        next
    } else {
        range.from.unwrap_or_default()
    };
    Ok((next, passed))
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

pub(super) async fn first_of(on: &Facade, selection: &Selection, from: Option<Seq>) -> Result<Seq, Refusal> {
    let first = on.log.first().max(from.unwrap_or_default());
    let Some(since) = selection.since else { return Ok(first) };
    Ok(on.log.seq_at(since).await.map_err(text)?.max(first))
}

/// Where the newest events that are meant are in the log: as places, not as the events, of which each would keep the block in memory
/// that it was read in, however many are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    /// They are behind this place, or at it ...
    from: Seq,
    /// ... except so many from there on ...
    skip: u64,
    /// ... up to here.
    to: Seq,
}

impl Tail {
    /// The range that is exactly these.
    pub fn range(self) -> Range {
        Range {
            from: Some(self.from),
            skip: self.skip,
            to: Some(self.to),
            ..Range::default()
        }
    }
}

/// Finds the newest events that are meant, from the end, so that a long log costs nothing.
pub(super) async fn tail(on: &Facade, selection: &Selection, limit: u64) -> Result<Tail, Refusal> {
    let narrow = selection.narrow();
    let first = first_of(on, selection, None).await?;
    let head = *on.log.head().borrow();
    let (mut upper, mut step, mut wanted) = (head.next(), STEP, limit);
    let mut tail = Tail {
        from: upper,
        skip: 0,
        to: head,
    };
    while wanted > 0 {
        // A restored log leaves out Seqs by the million.
        upper = on.log.last_before(upper).unwrap_or_default().next();
        if upper <= first {
            break;
        }
        let lower = Seq(upper.0.saturating_sub(step)).max(first);
        let mut found = 0;
        visit(on, &narrow, lower, upper, |event| {
            found += u64::from(selection.selects(event));
        })
        .await?;
        tail.from = lower;
        tail.skip = found.saturating_sub(wanted);
        wanted = wanted.saturating_sub(found);
        upper = lower;
        if !narrow.is_empty() {
            // What is rare is looked up, and each look goes through to the end of the log: there must not be many.
            step = step.saturating_mul(4);
        }
    }
    if wanted > 0 && selection.since.is_none() {
        // All there is.
        tail.from = Seq::ZERO;
    }
    Ok(tail)
}

/// Shows `see` the newest events, at least so many if there are, in Seq order.
pub(super) async fn look_back(on: &Facade, least: u64, see: impl FnMut(&Event)) -> Result<(), Refusal> {
    let tail = tail(on, &Selection::default(), least).await?;
    let from = tail.from.max(on.log.first());
    visit(on, &Narrow::default(), from, tail.to.next(), see).await
}

/// Shows `see` what may be meant between two places, the second one not included; no more than a batch is in memory.
async fn visit(
    on: &Facade,
    narrow: &Narrow,
    from: Seq,
    upper: Seq,
    mut see: impl FnMut(&Event),
) -> Result<(), Refusal> {
    let mut next = from;
    while next < upper {
        let most = (upper.0 - next.0).min(STEP) as usize;
        let batch = read(on, next, most, Some(narrow)).await?;
        if batch.next == next {
            break;
        }
        next = batch.next;
        let before = batch.events.iter().filter(|event| event.seq < upper);
        before.for_each(|event| see(event));
    }
    Ok(())
}
