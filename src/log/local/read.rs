//! Reading: finding the block that holds a Seq, wherever it lies, and stepping over what is gone.

use std::sync::Arc;

use jiff::Timestamp;

use super::block::Block;
use super::keeper;
use super::sealed::{SealedError, SealedSegment};
use super::shared::{Segment, Shared};
use super::{Batch, ReadError};
use crate::event::{Event, Seq};
use crate::framefile::FrameError;
use crate::log::Narrow;
use crate::sync::lock;

/// What is at a Seq.
enum Found {
    /// A block that holds it.
    Block(Arc<Block>),
    /// Nothing until there.
    Skip(Seq),
    /// The end of the log.
    End,
}

/// Up to `max_events` events and about `max_bytes` of bodies, from `from` on.
pub(super) fn read(shared: &Shared, from: Seq, max_events: usize, max_bytes: usize) -> Result<Batch, ReadError> {
    let mut batch = Batch {
        next: from.max(Seq(1)),
        ..Batch::default()
    };
    let mut bytes = 0;
    while batch.events.len() < max_events && (bytes < max_bytes || batch.events.is_empty()) {
        match locate(shared, batch.next)? {
            Found::Block(block) => {
                let Some(begin) = block.events.iter().position(|event| event.seq == batch.next) else {
                    return Err(ReadError(format!("event {} is not where it should be", batch.next)));
                };
                for event in &block.events[begin..] {
                    if batch.events.len() >= max_events || (bytes >= max_bytes && !batch.events.is_empty()) {
                        break;
                    }
                    bytes += event.body.len();
                    batch.next = event.seq.next();
                    batch.events.push(event.clone());
                }
            }
            Found::Skip(to) => {
                let gaps = lock(&shared.gaps);
                batch.lost.extend(gaps.without_skipped(batch.next, to.prev()));
                batch.next = to;
            }
            Found::End => break,
        }
    }
    Ok(batch)
}

/// The same, but in segments that have an index only what `narrow` leaves is decoded and given.
pub(super) fn read_narrowed(
    shared: &Shared,
    from: Seq,
    max_events: usize,
    max_bytes: usize,
    narrow: &Narrow,
) -> Result<Batch, ReadError> {
    let mut batch = Batch {
        next: from.max(Seq(1)),
        ..Batch::default()
    };
    let mut bytes = 0;
    let mut looked_up = LookedUp::default();
    while batch.events.len() < max_events && (bytes < max_bytes || batch.events.is_empty()) {
        let wanted = looked_up.next_in(shared, batch.next, narrow)?;
        if let Some((sealed, to)) = &wanted
            && *to > batch.next
        {
            pass_over(shared, sealed, &mut batch, *to);
            continue;
        }
        match locate(shared, batch.next)? {
            Found::Block(block) => {
                let Some(begin) = block.events.iter().position(|event| event.seq == batch.next) else {
                    return Err(ReadError(format!("event {} is not where it should be", batch.next)));
                };
                // Behind a candidate the next one is asked for.
                let end = if wanted.is_some() {
                    begin + 1
                } else {
                    block.events.len()
                };
                for event in &block.events[begin..end] {
                    if batch.events.len() >= max_events || (bytes >= max_bytes && !batch.events.is_empty()) {
                        break;
                    }
                    bytes += event.body.len();
                    batch.next = event.seq.next();
                    batch.events.push(event.clone());
                }
            }
            Found::Skip(to) => {
                let gaps = lock(&shared.gaps);
                batch.lost.extend(gaps.without_skipped(batch.next, to.prev()));
                batch.next = to;
            }
            Found::End => break,
        }
    }
    Ok(batch)
}

/// What the index of the segment that is being read says.
#[derive(Default)]
struct LookedUp(Option<(Arc<SealedSegment>, Option<Vec<Seq>>)>);

impl LookedUp {
    /// The segment that holds `seq`, with the first candidate in it from there on, or else where it ends; `None` where
    /// everything must be looked at.
    fn next_in(
        &mut self,
        shared: &Shared,
        seq: Seq,
        narrow: &Narrow,
    ) -> Result<Option<(Arc<SealedSegment>, Seq)>, ReadError> {
        let Some(Segment::Sealed(sealed)) = shared.segment_for(seq) else {
            return Ok(None);
        };
        if seq > sealed.manifest.last {
            return Ok(None);
        }
        let known = self.0.as_ref().filter(|(known, _)| Arc::ptr_eq(known, &sealed));
        if known.is_none() {
            shared.databases.touch(&sealed);
            let candidates = match sealed.candidates(narrow) {
                Ok(candidates) => candidates,
                // It expired, or was put right, while we looked: reading finds out what is there now.
                Err(_) if !shared.holds(&sealed) => return Ok(None),
                Err(error) => return Err(ReadError(error.to_string())),
            };
            self.0 = Some((sealed.clone(), candidates));
        }
        let candidates = self.0.as_ref().and_then(|(_, candidates)| candidates.as_ref());
        Ok(candidates.map(|candidates| {
            let next = candidates.get(candidates.partition_point(|candidate| *candidate < seq));
            let to = next.copied().unwrap_or(sealed.manifest.last.next());
            (sealed, to)
        }))
    }
}

/// Passes by what need not be read, and says what of it can't be.
fn pass_over(shared: &Shared, sealed: &SealedSegment, batch: &mut Batch, to: Seq) {
    let manifest = &sealed.manifest;
    let gaps = lock(&shared.gaps);
    for pack in &manifest.packs[manifest.pack_at(batch.next)..] {
        if pack.first >= to {
            break;
        }
        if pack.first > batch.next {
            batch.lost.extend(gaps.without_skipped(batch.next, pack.first.prev()));
        }
        batch.next = pack.last().next();
    }
    if batch.next < to {
        batch.lost.extend(gaps.without_skipped(batch.next, to.prev()));
    }
    batch.next = to;
}

/// One event; `None` where there is none (any more).
pub(super) fn get(shared: &Shared, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
    match locate(shared, seq)? {
        Found::Block(block) => Ok(block.get(seq).cloned()),
        Found::Skip(_) | Found::End => Ok(None),
    }
}

/// The first Seq received at or after `time`; one past the newest if there is none.
pub(super) fn seq_at(shared: &Shared, time: Timestamp) -> Result<Seq, ReadError> {
    let wanted_us = time.as_microsecond();
    for (_, segment) in shared.all_segments() {
        let candidates: Vec<(Seq, Seq)> = match &segment {
            Segment::Open(open) => {
                let new_enough = open
                    .blocks()
                    .into_iter()
                    .filter(|block| block.head.newest_us >= wanted_us);
                new_enough.map(|block| (block.head.first, block.head.last())).collect()
            }
            Segment::Sealed(sealed) => {
                let new_enough = sealed.manifest.packs.iter().filter(|pack| pack.newest_us >= wanted_us);
                new_enough.map(|pack| (pack.first, pack.last())).collect()
            }
        };
        for (first, last) in candidates {
            if let Some(seq) = first_since(shared, first, last, time)? {
                return Ok(seq);
            }
        }
    }
    Ok(shared.head.borrow().next())
}

fn first_since(shared: &Shared, first: Seq, last: Seq, time: Timestamp) -> Result<Option<Seq>, ReadError> {
    let mut at = first;
    while at <= last {
        match locate(shared, at)? {
            // It may be a smaller block than the one looked for, from before the segment was sealed.
            Found::Block(block) => {
                if let Some(event) = block
                    .events
                    .iter()
                    .find(|event| event.seq >= at && event.received_at >= time)
                {
                    return Ok(Some(event.seq));
                }
                at = block.events.last().map_or(last, |event| event.seq).next();
            }
            Found::Skip(to) => at = to,
            Found::End => break,
        }
    }
    Ok(None)
}

fn locate(shared: &Shared, seq: Seq) -> Result<Found, ReadError> {
    if seq > *shared.head.borrow() {
        return Ok(Found::End);
    }
    let Some(segment) = shared.segment_for(seq) else {
        return Ok(skip_segment(shared, seq));
    };
    match segment {
        Segment::Open(open) => {
            let Some(block) = open.block_at(seq) else {
                return Ok(skip_segment(shared, seq));
            };
            if block.head.first > seq {
                return Ok(Found::Skip(block.head.first));
            }
            if let Some(cached) = shared.cached(block.head.first, seq) {
                return Ok(Found::Block(cached));
            }
            let bytes = match open.read(block) {
                Ok(bytes) => bytes,
                // It may have been sealed, and its journal dropped, since we looked.
                Err(_) if matches!(shared.segment_for(seq), Some(Segment::Sealed(_))) => return locate(shared, seq),
                Err(error @ FrameError::Damaged { .. }) => {
                    let (first, last) = (block.head.first, block.head.last());
                    if shared.options.read_only {
                        tracing::warn!(%error, "events {first} to {last} can't be read");
                    } else {
                        keeper::lose_block(shared, &open, block, &error.to_string())
                            .map_err(|error| ReadError(error.to_string()))?;
                    }
                    return Ok(Found::Skip(last.next()));
                }
                Err(error) => return Err(ReadError(error.to_string())),
            };
            let block = Block::decode(&bytes).map_err(|error| ReadError(error.to_string()))?;
            Ok(keep(shared, block))
        }
        Segment::Sealed(sealed) => locate_sealed(shared, &sealed, seq),
    }
}

fn locate_sealed(shared: &Shared, sealed: &Arc<SealedSegment>, seq: Seq) -> Result<Found, ReadError> {
    let index = sealed.manifest.pack_at(seq);
    let Some(pack) = sealed.manifest.packs.get(index) else {
        return Ok(skip_segment(shared, seq));
    };
    if pack.first > seq {
        return Ok(Found::Skip(pack.first));
    }
    if let Some(cached) = shared.cached(pack.first, seq) {
        return Ok(Found::Block(cached));
    }
    shared.databases.touch(sealed);
    let read = sealed.read(index);
    if read.is_err() && !shared.holds(sealed) {
        // It expired, or was put right, while we read.
        return locate(shared, seq);
    }
    match read {
        Ok(block) => Ok(keep(shared, block)),
        Err(SealedError::Io(error)) => Err(ReadError(error.to_string())),
        Err(SealedError::Damaged(why)) if shared.options.read_only => {
            tracing::warn!(%why, "events {} to {} can't be read", pack.first, pack.last());
            Ok(Found::Skip(pack.last().next()))
        }
        Err(SealedError::Damaged(why)) => {
            keeper::repair(shared, sealed, &why).map_err(|error| ReadError(error.to_string()))?;
            // What was saved is in place now, and what was not is left out of it.
            locate(shared, seq)
        }
    }
}

/// Nothing is left in this segment at or behind `seq`: on to the next one.
fn skip_segment(shared: &Shared, seq: Seq) -> Found {
    let next = shared.next_segment_after(seq);
    match next {
        Some(next) if next <= *shared.head.borrow() => Found::Skip(next),
        _ => Found::Skip(shared.head.borrow().next()),
    }
}

fn keep(shared: &Shared, block: Block) -> Found {
    let block = Arc::new(block);
    if let Some(first) = block.events.first() {
        lock(&shared.cache).put(first.seq, block.clone());
    }
    Found::Block(block)
}
