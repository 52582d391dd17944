//! Reading from the newest event back. What the index of a sealed segment, or the times of its packs, rule out is stepped over; the
//! rest is read a block at a time.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::block::Block;
use super::fault::SegmentError;
use super::read::{Found, locate};
use super::sealed::SealedSegment;
use super::shared::{Segment, Shared};
use crate::event::{Event, Seq};
use crate::log::{BatchBack, ReadError, TakeBack};
use crate::sync::read_lock;

/// A reader on its way back.
struct Way<'a> {
    shared: &'a Shared,
    take: &'a TakeBack<'a>,
    until: Instant,
    batch: BatchBack,
    /// What was read, wanted or not.
    events: usize,
    bytes: usize,
}

/// A run of events that lies together, and when the oldest and newest of them were received, as far as that is known.
struct Run {
    first: Seq,
    last: Seq,
    oldest_us: i64,
    newest_us: i64,
}

/// Events before `before`, newest first.
pub(super) fn read_back(shared: &Shared, before: Seq, take: &TakeBack<'_>) -> Result<BatchBack, ReadError> {
    let mut way = Way {
        shared,
        take,
        until: Instant::now() + take.within,
        batch: BatchBack {
            reached: before.min(shared.head.borrow().next()),
            ..BatchBack::default()
        },
        events: 0,
        bytes: 0,
    };
    while way.batch.reached > take.from && !way.is_full() {
        let Some((first, segment)) = segment_before(shared, way.batch.reached) else {
            // What was there has expired.
            way.batch.reached = take.from;
            break;
        };
        way.through(first, &segment)?;
        // What takes long need not be gone on with, once something was done.
        if Instant::now() >= way.until {
            break;
        }
    }
    Ok(way.batch)
}

/// The last segment that begins before `seq`.
fn segment_before(shared: &Shared, seq: Seq) -> Option<(Seq, Segment)> {
    let segments = read_lock(&shared.segments);
    let (first, segment) = segments.range(..seq).next_back()?;
    Some((*first, segment.clone()))
}

impl Way<'_> {
    fn is_full(&self) -> bool {
        self.events >= self.take.events.max(1) || (self.bytes >= self.take.bytes && self.events > 0)
    }

    /// Whether nothing received between these times is wanted.
    fn rules_out(&self, oldest_us: i64, newest_us: i64) -> bool {
        let us = |time: Timestamp| time.as_microsecond();
        self.take.since.is_some_and(|since| newest_us < us(since))
            || self.take.until.is_some_and(|until| oldest_us >= us(until))
    }

    /// Goes back through a segment that begins at `first`, or as far as it may.
    fn through(&mut self, first: Seq, segment: &Segment) -> Result<(), ReadError> {
        let floor = first.max(self.take.from);
        match segment {
            Segment::Sealed(sealed) => {
                let manifest = &sealed.manifest;
                if self.rules_out(manifest.oldest_us, manifest.newest_us) {
                    self.step_over(sealed, floor);
                    return Ok(());
                }
                if let Some(candidates) = self.candidates(sealed)? {
                    return self.through_candidates(sealed, &candidates, floor);
                }
            }
            Segment::Open(_) => {}
        }
        while self.batch.reached > floor && !self.is_full() {
            match run_before(segment, self.batch.reached) {
                Some(run) if run.last >= self.take.from => self.through_run(&run, floor)?,
                // Nothing is left in it.
                _ => self.lost(floor, self.batch.reached.prev(), floor),
            }
            if Instant::now() >= self.until {
                break;
            }
        }
        Ok(())
    }

    /// The Seqs that the segment's index leaves; `None`: everything must be looked at.
    fn candidates(&self, sealed: &Arc<SealedSegment>) -> Result<Option<Vec<Seq>>, ReadError> {
        let Some(narrow) = self.take.narrow else {
            return Ok(None);
        };
        self.shared.databases.touch(sealed);
        match sealed.candidates(narrow) {
            Ok(candidates) => Ok(candidates),
            // It was dropped or replaced while we looked: reading finds out what is there now.
            Err(SegmentError::Retired | SegmentError::Damaged(_)) => Ok(None),
            Err(error) => Err(ReadError(error.to_string())),
        }
    }

    fn through_candidates(&mut self, sealed: &SealedSegment, candidates: &[Seq], floor: Seq) -> Result<(), ReadError> {
        let end = candidates.partition_point(|seq| *seq < self.batch.reached);
        for seq in candidates[..end].iter().rev().copied().take_while(|seq| *seq >= floor) {
            self.step_over(sealed, seq.next());
            if let Found::Block(block) = locate::<Arc<Block>>(self.shared, seq)?
                && let Some(event) = block.get(seq)
            {
                // Few of a block are wanted, perhaps: they must not keep all of it in memory.
                self.give(Arc::new(event.detached()));
            }
            self.batch.reached = seq;
            if self.is_full() || Instant::now() >= self.until {
                return Ok(());
            }
        }
        self.step_over(sealed, floor);
        Ok(())
    }

    /// Goes back to `to` over what need not be read, and says what of it can't be.
    fn step_over(&mut self, sealed: &SealedSegment, to: Seq) {
        let manifest = &sealed.manifest;
        while self.batch.reached > to {
            let end = manifest.packs.partition_point(|pack| pack.first < self.batch.reached);
            let Some(pack) = end.checked_sub(1).and_then(|at| manifest.packs.get(at)) else {
                return self.lost(to, self.batch.reached.prev(), to);
            };
            if pack.last().next() < self.batch.reached {
                let from = pack.last().next().max(to);
                self.lost(from, self.batch.reached.prev(), from);
            } else {
                self.batch.reached = pack.first.max(to);
            }
        }
    }

    /// Goes back through a run, or over it.
    fn through_run(&mut self, run: &Run, floor: Seq) -> Result<(), ReadError> {
        if run.last.next() < self.batch.reached {
            self.lost(run.last.next(), self.batch.reached.prev(), run.last.next());
        }
        if self.rules_out(run.oldest_us, run.newest_us) {
            self.batch.reached = run.first.max(floor);
            return Ok(());
        }
        let Found::Block(block) = locate::<Arc<Block>>(self.shared, run.last)? else {
            let from = run.first.max(floor);
            self.lost(from, run.last, from);
            return Ok(());
        };
        // It may be a smaller block than the one looked for, from before the segment was sealed.
        let before = self.batch.reached;
        for event in block.events.iter().rev().filter(|event| event.seq < before) {
            if event.seq < floor || self.is_full() {
                break;
            }
            self.batch.reached = event.seq;
            self.give(event.clone());
        }
        if self.batch.reached == before {
            return Err(ReadError(format!("event {} is not where it should be", run.last)));
        }
        Ok(())
    }

    fn give(&mut self, event: Arc<Event>) {
        self.events += 1;
        self.bytes += event.body.len();
        self.batch.events.push(event);
    }

    /// Nothing can be read in a range; on to `reached`.
    fn lost(&mut self, from: Seq, to: Seq, reached: Seq) {
        let lost = self.shared.gaps.without_skipped(from, to);
        self.batch.lost.extend(lost.into_iter().rev());
        self.batch.reached = reached;
    }
}

/// The last run of a segment that begins before `seq`, as far as it is before it.
fn run_before(segment: &Segment, seq: Seq) -> Option<Run> {
    match segment {
        Segment::Open(open) => {
            let head = open.block_before(seq)?.head;
            Some(Run {
                first: head.first,
                last: head.last().min(seq.prev()),
                oldest_us: head.oldest_us,
                newest_us: head.newest_us,
            })
        }
        Segment::Sealed(sealed) => {
            let packs = &sealed.manifest.packs;
            let pack = packs[..packs.partition_point(|pack| pack.first < seq)].last()?;
            Some(Run {
                first: pack.first,
                last: pack.last().min(seq.prev()),
                // A pack does not say.
                oldest_us: i64::MIN,
                newest_us: pack.newest_us,
            })
        }
    }
}
