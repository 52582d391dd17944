//! Reading: finding the block that holds a Seq, wherever it lies, and stepping over what is gone. Reading changes nothing: what
//! looks damaged is for the keeper to judge.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::block::Block;
use super::desk::Suspect;
use super::fault::SegmentError;
use super::journal::{self, OpenSegment};
use super::sealed::{self, Access, Manifest, SealedSegment};
use super::shared::{Segment, Shared};
use crate::event::{Event, Seq};
use crate::log::{Batch, Narrow, ReadError};
use crate::sync::{lock, write_lock};

/// How long a segment that is being replaced is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Replacing takes the time of two renames.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What the keeper has found whole so often, and still can't be read, is an error.
const ASKED_MAX: u32 = 3;

/// What is at a Seq.
pub(super) enum Found<F> {
    /// A block that holds it.
    Block(F),
    /// Nothing until there.
    Skip(Seq),
    /// The end of the log.
    End,
}

/// A block as it is wanted.
pub(super) trait Form: Sized {
    /// Out of the cache, by the Seq the block begins with, if it holds `seq`.
    fn cached(shared: &Shared, first: Seq, seq: Seq) -> Option<Self>;

    /// Out of its bytes; `age` is the cache's before they were read.
    fn of(shared: &Shared, bytes: Vec<u8>, age: u64) -> Result<Self, SegmentError>;
}

impl Form for Arc<Block> {
    fn cached(shared: &Shared, first: Seq, seq: Seq) -> Option<Arc<Block>> {
        shared.cached(first, seq)
    }

    fn of(shared: &Shared, bytes: Vec<u8>, age: u64) -> Result<Arc<Block>, SegmentError> {
        let block = Block::decode(&bytes).map_err(|error| SegmentError::Damaged(error.to_string()))?;
        let block = Arc::new(block);
        if let Some(first) = block.events.first() {
            lock(&shared.cache).put_unless_forgotten(first.seq, block.clone(), age);
        }
        Ok(block)
    }
}

/// A block as it is kept.
pub(super) struct Encoded(pub Vec<u8>);

impl Form for Encoded {
    fn cached(_: &Shared, _: Seq, _: Seq) -> Option<Encoded> {
        None
    }

    fn of(_: &Shared, bytes: Vec<u8>, _: u64) -> Result<Encoded, SegmentError> {
        Ok(Encoded(bytes))
    }
}

/// Up to `max_events` events and about `max_bytes` of bodies, from `from` on.
pub(super) fn read(shared: &Shared, from: Seq, max_events: usize, max_bytes: usize) -> Result<Batch, ReadError> {
    let mut batch = Batch {
        next: from.max(Seq(1)),
        ..Batch::default()
    };
    let mut bytes = 0;
    while batch.events.len() < max_events && (bytes < max_bytes || batch.events.is_empty()) {
        match locate::<Arc<Block>>(shared, batch.next)? {
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
                let gaps = &shared.gaps;
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
        match locate::<Arc<Block>>(shared, batch.next)? {
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
                    // Few of a block are wanted, perhaps: they must not keep all of it in memory.
                    batch.events.push(Arc::new(event.detached()));
                }
            }
            Found::Skip(to) => {
                let gaps = &shared.gaps;
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
                // It was dropped or replaced while we looked: reading finds out what is there now.
                Err(SegmentError::Retired | SegmentError::Damaged(_)) => return Ok(None),
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
    let gaps = &shared.gaps;
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
    match locate::<Arc<Block>>(shared, seq)? {
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
        match locate::<Arc<Block>>(shared, at)? {
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

/// What one look at a Seq gave.
enum Look<F> {
    /// That.
    Found(Found<F>),
    /// Something else is there meanwhile.
    Changed,
    /// It can't be read: the keeper is to look at it.
    Suspect(Suspect),
}

/// Finds what is at a Seq. What can't be read is looked at by the keeper first; a reader changes nothing by itself.
pub(super) fn locate<F: Form>(shared: &Shared, seq: Seq) -> Result<Found<F>, ReadError> {
    let until = Instant::now() + PATIENCE;
    let mut asked = 0;
    loop {
        let suspect = match look(shared, seq)? {
            Look::Found(found) => return Ok(found),
            Look::Changed if Instant::now() > until => {
                return Err(ReadError(format!(
                    "the segment of event {seq} goes on changing: {}",
                    shared.desk.says()
                )));
            }
            // The keeper is between two names.
            Look::Changed => {
                std::thread::sleep(BETWEEN_LOOKS);
                continue;
            }
            Look::Suspect(suspect) => suspect,
        };
        let why = match &suspect {
            Suspect::Sealed(_, why) => why.clone(),
            Suspect::Block(_, block) => format!("the journal can't be read at byte {}", block.offset),
        };
        if shared.options.read_only {
            match visit(shared, &suspect)? {
                Visit::Changed if asked < ASKED_MAX => asked += 1,
                Visit::Changed | Visit::Whole => {
                    return Err(ReadError(format!("event {seq}: {why}, although nothing is damaged")));
                }
                Visit::Damaged(from, to) => {
                    tracing::warn!(why, "events {from} to {to} can't be read");
                    return Ok(Found::Skip(to.next()));
                }
            }
            continue;
        }
        if asked >= ASKED_MAX {
            // Proven whole, and it can't be read all the same: that is no absence.
            return Err(ReadError(format!("event {seq}: {why}, although nothing is damaged")));
        }
        asked += 1;
        let looked_at = shared.desk.have_looked_at(suspect);
        looked_at.map_err(|says| ReadError(format!("event {seq}: {why}; {says}")))?;
    }
}

fn look<F: Form>(shared: &Shared, seq: Seq) -> Result<Look<F>, ReadError> {
    if seq > *shared.head.borrow() {
        return Ok(Look::Found(Found::End));
    }
    let age = lock(&shared.cache).age();
    match shared.segment_for(seq) {
        None => Ok(Look::Found(skip_segment(shared, seq))),
        Some(Segment::Open(open)) => look_in_journal(shared, &open, seq, age),
        Some(Segment::Sealed(sealed)) => look_in_sealed(shared, &sealed, seq, age),
    }
}

fn look_in_journal<F: Form>(
    shared: &Shared,
    open: &Arc<OpenSegment>,
    seq: Seq,
    age: u64,
) -> Result<Look<F>, ReadError> {
    let Some(block) = open.block_at(seq) else {
        return Ok(Look::Found(skip_segment(shared, seq)));
    };
    if block.head.first > seq {
        return Ok(Look::Found(Found::Skip(block.head.first)));
    }
    if let Some(cached) = F::cached(shared, block.head.first, seq) {
        return Ok(Look::Found(Found::Block(cached)));
    }
    match open.read(block).and_then(|bytes| F::of(shared, bytes, age)) {
        Ok(block) => Ok(Look::Found(Found::Block(block))),
        Err(SegmentError::Retired) => Ok(Look::Changed),
        // Sealed, erased in or dropped since.
        Err(SegmentError::Damaged(_)) if shared.place_of(&Segment::Open(open.clone())).is_none() => Ok(Look::Changed),
        Err(SegmentError::Damaged(_)) => Ok(Look::Suspect(Suspect::Block(open.clone(), block))),
        Err(error) => Err(ReadError(error.to_string())),
    }
}

fn look_in_sealed<F: Form>(
    shared: &Shared,
    sealed: &Arc<SealedSegment>,
    seq: Seq,
    age: u64,
) -> Result<Look<F>, ReadError> {
    let index = sealed.manifest.pack_at(seq);
    let Some(pack) = sealed.manifest.packs.get(index) else {
        return Ok(Look::Found(skip_segment(shared, seq)));
    };
    if pack.first > seq {
        return Ok(Look::Found(Found::Skip(pack.first)));
    }
    if let Some(cached) = F::cached(shared, pack.first, seq) {
        return Ok(Look::Found(Found::Block(cached)));
    }
    shared.databases.touch(sealed);
    let read = sealed.read_bytes(index);
    match read.and_then(|bytes| F::of(shared, bytes, age)) {
        Ok(block) => Ok(Look::Found(Found::Block(block))),
        Err(SegmentError::Retired) => Ok(Look::Changed),
        Err(SegmentError::Damaged(why)) => Ok(Look::Suspect(Suspect::Sealed(sealed.clone(), why))),
        Err(error) => Err(ReadError(error.to_string())),
    }
}

/// What somebody who only looks at the data directory finds where something can't be read.
enum Visit {
    /// Another form of the segment is there now, or it is gone.
    Changed,
    /// It is what was sealed.
    Whole,
    /// These can't be read.
    Damaged(Seq, Seq),
}

/// There is no keeper to be asked: whoever owns the directory may have replaced the segment since it was opened here.
fn visit(shared: &Shared, suspect: &Suspect) -> Result<Visit, ReadError> {
    let failed = |error: SegmentError| ReadError(error.to_string());
    let suspected = match suspect {
        Suspect::Block(open, _) => Segment::Open(open.clone()),
        Suspect::Sealed(sealed, _) => Segment::Sealed(sealed.clone()),
    };
    let Some(first) = shared.place_of(&suspected) else {
        return Ok(Visit::Changed);
    };
    let place = journal::segment_dir(&shared.log_dir, first);
    let Some(now) = visited(shared, first, &place, &suspected).map_err(failed)? else {
        return match suspect {
            Suspect::Block(_, block) => Ok(Visit::Damaged(block.head.first, block.head.last())),
            Suspect::Sealed(sealed, _) => match sealed.is_whole() {
                Ok(()) => Ok(Visit::Whole),
                Err(SegmentError::Damaged(_)) => Ok(Visit::Damaged(sealed.manifest.first, sealed.manifest.last)),
                Err(error) => Err(failed(error)),
            },
        };
    };
    let mut segments = write_lock(&shared.segments);
    match now {
        Now::Gone => drop(segments.remove(&first)),
        Now::Form(segment) => drop(segments.insert(first, segment)),
    }
    Ok(Visit::Changed)
}

/// What is in a segment's place now.
enum Now {
    Gone,
    Form(Segment),
}

/// What is in the place of a segment that can't be read; `None` where that is still the same.
fn visited(shared: &Shared, first: Seq, place: &Path, before: &Segment) -> Result<Option<Now>, SegmentError> {
    if !sealed::has(place)? {
        return Ok(Some(Now::Gone));
    }
    if !sealed::is_sealed(place)? && matches!(before, Segment::Open(_)) {
        return visited_journal(shared, first, place, before);
    }
    match Manifest::load(place) {
        Ok(manifest) => {
            let is_same = matches!(before, Segment::Sealed(before)
                if before.dir == place && before.manifest.files == manifest.files);
            let sealed = || SealedSegment::new(place.to_owned(), manifest, Access::Visitor);
            Ok((!is_same).then(|| Now::Form(Segment::Sealed(Arc::new(sealed())))))
        }
        Err(SegmentError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same where a journal is in the place of a journal: its blocks are elsewhere if something was erased in it.
fn visited_journal(shared: &Shared, first: Seq, place: &Path, before: &Segment) -> Result<Option<Now>, SegmentError> {
    let Segment::Open(before) = before else { return Ok(None) };
    let limit = shared.next_segment_after(first);
    match journal::recover(place, first, limit, false, true) {
        Ok((recovered, _)) => {
            let places = |open: &OpenSegment| -> Vec<u64> { open.blocks().iter().map(|block| block.offset).collect() };
            let now = places(&recovered.segment);
            // Damage takes some away, and moves none.
            let is_same = now.iter().all(|offset| places(before).contains(offset));
            Ok((!is_same).then(|| Now::Form(Segment::Open(Arc::new(recovered.segment)))))
        }
        Err(error) => match journal::of_frame(error) {
            SegmentError::Damaged(_) => Ok(None),
            error => Err(error),
        },
    }
}

/// Nothing is left in this segment at or behind `seq`: on to the next one.
fn skip_segment<F>(shared: &Shared, seq: Seq) -> Found<F> {
    let next = shared.next_segment_after(seq);
    match next {
        Some(next) if next <= *shared.head.borrow() => Found::Skip(next),
        _ => Found::Skip(shared.head.borrow().next()),
    }
}
