//! The keeper: a background thread that seals complete segments, gives old ones' disk space back, closes idle databases, and
//! looks once after each start whether every sealed segment is still what was sealed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::journal::{self, BlockRef, OpenSegment};
use super::known::{self, KeyFile};
use super::sealed::{self, Access, Manifest, SealedError, SealedSegment};
use super::shared::{Segment, Shared};
use super::{Request, space};
use crate::event::{Event, Seq};
use crate::framefile::{self, FrameError};
use crate::sync::{lock, read_lock, write_lock};

/// How often the keeper looks around. Each time takes the time of an event or two from the commit loop; at twice a second that
/// is what the slowest of a hundred events on a quiet day are made of.
const ROUND: Duration = Duration::from_secs(2);

/// How often it does while there are segments that it has not checked since the start.
const ROUND_OF_CHECKS: Duration = Duration::from_millis(500);

/// A database that nobody read for so long is closed.
const DATABASE_IDLE: Duration = Duration::from_secs(10);

/// After a failed sealing the next try waits so many rounds.
const ROUNDS_AFTER_FAILURE: u32 = 15;

/// Close retries for 72 hours, its event log goes back 30 days: keys are known at least this long.
const KEYS_KEPT_MIN: SignedDuration = SignedDuration::from_hours(31 * 24);

/// Complete segments that may wait while sealing keeps out of the way: each holds some 10 MB of keys in memory.
const UNSEALED_MAX: usize = 3;

/// Sets of known keys beyond which merging does not wait for a flood to end: each costs every new event a look into memory.
const KEY_SETS_MAX: usize = 24;

/// How often a sealing is looked at.
const WATCH: Duration = Duration::from_millis(20);

/// So many new events between two looks are a flood, 5,000 a second: they need the machine more than the sealing does.
const FLOOD: u64 = 100;

/// A flood is over when it has been missed at so many looks.
const LOOKS_AFTER_FLOOD: u32 = 10;

/// Without `max_size`, the log may take this share of its file system.
const SHARE_OF_FILE_SYSTEM: u64 = 80;

/// Which events are to be erased.
pub(super) type Doomed = dyn Fn(&Event) -> bool + Send;

/// What the keeper is asked to do beside its rounds.
pub(super) enum Errand {
    /// Remove what is before this Seq, as far as whole segments go; gives the oldest Seq kept.
    DropBefore(Seq, tokio::sync::oneshot::Sender<Result<Seq, SealedError>>),
    /// Replace these events by tombstones.
    Erase(Box<Doomed>, tokio::sync::oneshot::Sender<Result<Vec<Seq>, SealedError>>),
}

/// The keeper's own state.
pub(super) struct Keeper {
    pub shared: Arc<Shared>,
    /// To ask the commit loop for a roll.
    pub requests: std::sync::mpsc::SyncSender<Request>,
}

/// Whether a flood of events is coming in, found out by looking at the newest Seq every [`WATCH`].
#[derive(Debug)]
struct Tide {
    head: Seq,
    looks_since_flood: u32,
}

impl Tide {
    /// High until looks say otherwise: it is mostly a flood that completes a segment.
    fn new(head: Seq) -> Tide {
        Tide {
            head,
            looks_since_flood: 0,
        }
    }

    /// One look.
    fn is_high(&mut self, head: Seq) -> bool {
        let before = std::mem::replace(&mut self.head, head);
        self.looks_since_flood = if head.0 - before.0 >= FLOOD {
            0
        } else {
            self.looks_since_flood.saturating_add(1)
        };
        self.looks_since_flood < LOOKS_AFTER_FLOOD
    }
}

/// What a sealing is to do next, as the keeper sees it.
#[derive(Debug, Default)]
struct Wish {
    stop: AtomicBool,
    wait: AtomicBool,
}

impl Wish {
    /// Whether the sealing is still wanted; returns when it may go on.
    fn is_to_go_on(&self) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            if !self.wait.load(Ordering::Relaxed) {
                return true;
            }
            std::thread::sleep(WATCH);
        }
        false
    }
}

impl Keeper {
    /// Runs until nobody can send errands any more.
    pub fn run(self, errands: &Receiver<Errand>) {
        let mut patience = 0_u32;
        let mut unchecked: Vec<Seq> = self.shared.all_segments().iter().map(|(first, _)| *first).collect();
        loop {
            let round = if unchecked.is_empty() { ROUND } else { ROUND_OF_CHECKS };
            match errands.recv_timeout(round) {
                Ok(Errand::DropBefore(seq, reply)) => drop(reply.send(self.drop_before(seq))),
                Ok(Errand::Erase(doomed, reply)) => drop(reply.send(self.erase(&*doomed))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            patience = patience.saturating_sub(1);
            if patience == 0
                && let Err(error) = self.seal_all()
                && !self.closing()
            {
                tracing::warn!(%error, "a segment could not be sealed; it stays in its journal and is tried again");
                patience = ROUNDS_AFTER_FAILURE;
            }
            if let Err(error) = self.retain() {
                tracing::warn!(%error, "old segments could not be removed; this is tried again");
            }
            for (_, segment) in self.shared.all_segments() {
                if let Segment::Sealed(sealed) = segment {
                    sealed.close_idle(DATABASE_IDLE);
                }
            }
            read_lock(&self.shared.known).close_idle(DATABASE_IDLE);
            if patience == 0
                && let Err(error) = self.merge_keys()
                && !self.closing()
            {
                tracing::warn!(%error, "known keys could not be merged; they stay as they are and it is tried again");
                patience = ROUNDS_AFTER_FAILURE;
            }
            if let Some(first) = unchecked.pop() {
                self.check(first);
            }
        }
    }

    fn closing(&self) -> bool {
        self.shared.closing.load(Ordering::Relaxed)
    }

    fn seal_all(&self) -> Result<(), SealedError> {
        let segments = self.shared.all_segments();
        // The newest one is being written.
        let complete = segments.len().saturating_sub(1);
        for (first, segment) in segments.into_iter().take(complete) {
            let Segment::Open(open) = segment else { continue };
            if open.last().is_none() {
                self.drop_segment(first)?;
                continue;
            }
            let free = space::of(&self.shared.options.dir)?.free;
            if free < open.disk_bytes() * 3 {
                return Err(SealedError::Io(std::io::ErrorKind::StorageFull.into()));
            }
            let sealed = self.seal(&open);
            if let Err(SealedError::Damaged(_)) = sealed {
                // Once what is damaged is left out, the next round seals the rest.
                for block in open.blocks() {
                    if let Err(error @ FrameError::Damaged { .. }) = open.read(block) {
                        lose_block(&self.shared, &open, block, &error.to_string())?;
                    }
                }
            }
            sealed?;
        }
        Ok(())
    }

    /// Seals one complete segment and lets readers and keys move over to it.
    ///
    /// The work is a whole core's for seconds, and it has all the time in the world: it runs at the lowest priority and stands
    /// still while a flood of events comes in (measured: at the lowest priority alone it still halves what a flood gets), unless
    /// segments pile up. Its thread takes no lock that others wait for, or they would wait at its priority.
    fn seal(&self, open: &Arc<OpenSegment>) -> Result<(), SealedError> {
        let urgent = self.backlog() > UNSEALED_MAX;
        let known = read_lock(&self.shared.known);
        let (table, keys) = (known.unwritten(open.first), known.file_path(open.first));
        drop(known);
        let (manifest, keys) =
            self.at_leisure("seal", urgent, |go_on| prepare(open, table.as_deref(), &keys, go_on))?;
        tracing::debug!(
            first = manifest.first.0,
            last = manifest.last.0,
            journal_bytes = open.disk_bytes(),
            sealed_bytes = manifest.disk_bytes(),
            received_bytes = manifest.raw_bytes,
            "segment sealed"
        );
        let sealed = Arc::new(SealedSegment::new(open.dir.clone(), manifest, Access::Owner));
        write_lock(&self.shared.segments).insert(open.first, Segment::Sealed(sealed));
        let table = write_lock(&self.shared.known).sealed(open.first, keys);
        drop(table);
        drop_journal(open)?;
        Ok(())
    }

    /// Does long work in a thread of its own, at the lowest priority and not while a flood comes in, unless it is urgent.
    fn at_leisure<T: Send>(
        &self,
        name: &str,
        urgent: bool,
        work: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T, SealedError> + Send,
    ) -> Result<T, SealedError> {
        let wish = Wish {
            wait: AtomicBool::new(!urgent),
            ..Wish::default()
        };
        let keeper = std::thread::current();
        std::thread::scope(|scope| {
            let work = || {
                if !urgent && let Err(error) = rustix::process::nice(19) {
                    tracing::debug!(%error, name, "working at normal priority");
                }
                let done = work(&mut || wish.is_to_go_on());
                keeper.unpark();
                done
            };
            let working = std::thread::Builder::new()
                .name(name.into())
                .spawn_scoped(scope, work)?;
            let mut tide = Tide::new(self.head());
            while !working.is_finished() {
                let flood = tide.is_high(self.head());
                wish.wait.store(!urgent && flood, Ordering::Relaxed);
                if self.closing() || (!urgent && self.backlog() > UNSEALED_MAX) {
                    wish.stop.store(true, Ordering::Relaxed);
                }
                std::thread::park_timeout(WATCH);
            }
            let panicked = |_| SealedError::Damaged(format!("the thread \"{name}\" panicked"));
            working.join().map_err(panicked)?
        })
    }

    /// Merges known keys, or saves what can be saved of damaged ones, if there is something to do.
    fn merge_keys(&self) -> Result<(), SealedError> {
        let known = read_lock(&self.shared.known);
        let (order, dir, sets) = (known.to_merge(Timestamp::now()), known.dir().to_owned(), known.sets());
        drop(known);
        let Some(order) = order else { return Ok(()) };
        self.at_leisure("merge", order.saves() || sets > KEY_SETS_MAX, |go_on| {
            Ok(order.stage(&dir, &mut || sealed::go_on(go_on).map_err(std::io::Error::other))?)
        })?;
        let Some(named) = known::publish(&dir)? else {
            return Ok(());
        };
        let merged = known::Merged::open(&named)?;
        let inputs = write_lock(&self.shared.known).merged(&order, &merged);
        let Some(inputs) = inputs else {
            // A backup is being taken: it is done again when that has ended.
            return Ok(merged.remove()?);
        };
        for input in inputs {
            if order.saves() {
                input.set_aside()
            } else {
                input.remove()
            }?;
        }
        Ok(())
    }

    /// The newest Seq.
    fn head(&self) -> Seq {
        *self.shared.head.borrow()
    }

    /// Complete segments that wait to be sealed.
    fn backlog(&self) -> usize {
        let segments = self.shared.all_segments();
        let unsealed = segments
            .iter()
            .filter(|(_, segment)| matches!(segment, Segment::Open(_)));
        unsealed.count().saturating_sub(1)
    }

    /// Removes what is old enough or over the size limit.
    fn retain(&self) -> Result<(), SealedError> {
        let options = &self.shared.options;
        let retention = SignedDuration::try_from(options.retention).unwrap_or(SignedDuration::MAX);
        let now = Timestamp::now();
        let cutoff = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
        let pins = read_lock(&self.shared.pins).clone();
        let pinned = |last: Seq| pins.as_ref().is_some_and(|pins| last > pins.pinned());
        let mut dropped = false;
        for (first, segment) in self.shared.all_segments() {
            let Segment::Sealed(sealed) = segment else { break };
            if sealed::time(sealed.manifest.newest_us) >= cutoff || pinned(sealed.manifest.last) {
                break;
            }
            tracing::info!(first = first.0, last = sealed.manifest.last.0, "segment expired");
            self.drop_segment(first)?;
            dropped = true;
        }
        let max_size = match options.max_size {
            Some(max_size) => max_size,
            None => space::of(&options.dir)?.total / 100 * SHARE_OF_FILE_SYSTEM,
        };
        while self.shared.disk_bytes() > max_size {
            let oldest = self.shared.all_segments().into_iter().next();
            let Some((first, Segment::Sealed(sealed))) = oldest else {
                // The newest segment alone is over the limit: complete it, so that it can be sealed and go.
                let (reply, _) = tokio::sync::oneshot::channel();
                let _ = self.requests.try_send(Request::Roll(reply));
                break;
            };
            let last = sealed.manifest.last;
            if pinned(last) {
                tracing::error!(
                    first = first.0,
                    last = last.0,
                    "the log is over its size limit and sinks are not done with its oldest events: they become dead letters"
                );
                if !pins.as_ref().is_none_or(|pins| pins.expire(last)) {
                    break;
                }
            }
            tracing::info!(
                first = first.0,
                last = last.0,
                "segment removed: the log is over its size limit"
            );
            self.drop_segment(first)?;
            dropped = true;
        }
        if dropped {
            lock(&self.shared.gaps).forget_before(self.shared.first())?;
        }
        let keys_kept = retention
            .max(KEYS_KEPT_MIN)
            .max(SignedDuration::try_from(options.keys_kept).unwrap_or(SignedDuration::MAX));
        let keys_cutoff = now.checked_sub(keys_kept).unwrap_or(Timestamp::MIN);
        let segments = self.shared.all_segments();
        let is_kept = |first: &Seq| segments.binary_search_by_key(first, |(first, _)| *first).is_ok();
        // The keys of what is still kept stay known, however old it is.
        let expired = read_lock(&self.shared.known).expired(keys_cutoff, is_kept);
        for keys in expired {
            // Deleting a large file takes its time: not under the lock that every commit needs.
            if write_lock(&self.shared.known).forget(&keys) {
                keys.remove()?;
            }
        }
        Ok(())
    }

    /// Removes every complete segment that ends before `seq`; gives the oldest Seq kept.
    fn drop_before(&self, seq: Seq) -> Result<Seq, SealedError> {
        let segments = self.shared.all_segments();
        let complete = segments.len().saturating_sub(1);
        for (first, segment) in segments.into_iter().take(complete) {
            match segment.extent() {
                Some((end, _, _)) if end > seq => break,
                _ => self.drop_segment(first)?,
            }
        }
        lock(&self.shared.gaps).forget_before(self.shared.first())?;
        Ok(self.shared.first())
    }

    /// Takes a segment out of the log and gives its space back. Its name goes first, so that a crash leaves it whole or gone.
    fn drop_segment(&self, first: Seq) -> Result<(), SealedError> {
        write_lock(&self.shared.segments).remove(&first);
        let dir = journal::segment_dir(&self.shared.log_dir, first);
        let doomed = self.shared.log_dir.join(format!("removed-{:020}", first.0));
        std::fs::rename(&dir, &doomed)?;
        framefile::sync_dir(&self.shared.log_dir)?;
        sealed::remove_dir(&doomed)?;
        Ok(())
    }

    /// Rewrites every sealed segment that holds a doomed event, with a tombstone in its place; gives the Seqs.
    fn erase(&self, doomed: &Doomed) -> Result<Vec<Seq>, SealedError> {
        self.seal_all()?;
        let mut erased = Vec::new();
        for (first, segment) in self.shared.all_segments() {
            let Segment::Sealed(sealed) = segment else { continue };
            let before = erased.len();
            for index in 0..sealed.manifest.packs.len() {
                let block = sealed.read(index)?;
                erased.extend(block.events.iter().filter(|event| doomed(event)).map(|event| event.seq));
            }
            if erased.len() == before {
                continue;
            }
            let old = self.shared.log_dir.join(format!("removed-{:020}", first.0));
            let manifest = sealed::rewrite(&sealed, &old, &mut |event| {
                if doomed(&event) { event.erased() } else { event }
            })?;
            // Whatever copies there are of the old bytes must go before this is done.
            sealed::remove_dir(&old)?;
            if let Some(manifest) = manifest {
                let sealed = SealedSegment::new(sealed.dir.clone(), manifest, Access::Owner);
                write_lock(&self.shared.segments).insert(first, Segment::Sealed(Arc::new(sealed)));
            }
            lock(&self.shared.cache).clear();
        }
        Ok(erased)
    }

    fn check(&self, first: Seq) {
        if let Some(Segment::Sealed(sealed)) = self.shared.segment_for(first)
            && let Err(SealedError::Damaged(why)) = sealed.verify()
            && let Err(error) = repair(&self.shared, &sealed, &why)
        {
            tracing::error!(%error, "a damaged segment could not be put right; this is tried again when it is read");
        }
    }
}

/// Writes the sealed form of a segment and the file of its keys, durably; changes nothing that anybody reads.
pub(super) fn prepare(
    open: &OpenSegment,
    table: Option<&known::Table>,
    keys: &Path,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<(Manifest, Option<KeyFile>), SealedError> {
    sealed::go_on(go_on)?;
    if let Some(table) = table {
        known::write_file(keys, table)?;
    }
    let manifest = sealed::seal(open, go_on)?;
    let keys = match KeyFile::open(keys, open.first) {
        // They are in a month's database.
        Err(error) if table.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
        opened => Some(opened?),
    };
    Ok((manifest, keys))
}

/// A block of a journal can't be read back any more: records what was in it, and leaves it out from now on.
pub(super) fn lose_block(shared: &Shared, open: &OpenSegment, block: BlockRef, why: &str) -> std::io::Result<()> {
    lock(&shared.gaps).record(block.head.first, block.head.last(), why)?;
    open.leave_out(block);
    Ok(())
}

/// The sealed form is durable: the journal has done its work.
pub(super) fn drop_journal(open: &OpenSegment) -> std::io::Result<()> {
    std::fs::remove_file(open.dir.join(journal::FILE_NAME))?;
    framefile::sync_dir(&open.dir)
}

/// Sets a damaged segment aside, saves what can be read of it, and records what can't.
pub(super) fn repair(shared: &Shared, damaged: &Arc<SealedSegment>, why: &str) -> Result<(), SealedError> {
    let _one_at_a_time = lock(&shared.repairing);
    let first = damaged.manifest.first;
    let segment_first = read_lock(&shared.segments)
        .iter()
        .find_map(|(key, segment)| match segment {
            Segment::Sealed(current) if Arc::ptr_eq(current, damaged) => Some(*key),
            _ => None,
        });
    // Somebody else has repaired it meanwhile.
    let Some(segment_first) = segment_first else {
        return Ok(());
    };
    let aside = shared
        .options
        .dir
        .join("damaged")
        .join(format!("{:020}-{}", first.0, Timestamp::now().as_second()));
    tracing::error!(
        first = first.0,
        last = damaged.manifest.last.0,
        %why,
        aside = %aside.display(),
        "a sealed segment is damaged; it is set aside and what can be read of it is kept"
    );
    let saved = sealed::salvage(damaged, &aside)?;
    let mut lost = Vec::new();
    let mut expected = damaged.manifest.first;
    if let Some(saved) = &saved {
        for pack in &saved.packs {
            if pack.first > expected {
                lost.push((expected, pack.first.prev()));
            }
            expected = pack.last().next();
        }
    }
    if expected <= damaged.manifest.last {
        lost.push((expected, damaged.manifest.last));
    }
    if let Some(manifest) = saved {
        let sealed = SealedSegment::new(damaged.dir.clone(), manifest, Access::Owner);
        write_lock(&shared.segments).insert(segment_first, Segment::Sealed(Arc::new(sealed)));
    } else {
        std::fs::rename(&damaged.dir, aside.join("segment"))?;
        framefile::sync_dir(&shared.log_dir)?;
        write_lock(&shared.segments).remove(&segment_first);
    }
    let mut gaps = lock(&shared.gaps);
    for (from, to) in lost {
        gaps.record(from, to, why)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_over_when_it_has_been_missed_for_a_while() {
        let mut tide = Tide::new(Seq(7));
        for _ in 1..LOOKS_AFTER_FLOOD {
            assert!(tide.is_high(Seq(7)), "nothing is known yet");
        }
        assert!(!tide.is_high(Seq(7)), "nothing came");
        assert!(!tide.is_high(Seq(7 + FLOOD - 1)), "little came");
        let head = Seq(7 + 2 * FLOOD);
        assert!(tide.is_high(head), "much came");
        for _ in 1..LOOKS_AFTER_FLOOD {
            assert!(tide.is_high(head), "it may only have paused");
        }
        assert!(!tide.is_high(head));
    }

    #[test]
    fn a_sealing_that_waits_hears_that_it_may_go_on_and_that_it_is_not_wanted_any_more() {
        let wish = Wish::default();
        assert!(wish.is_to_go_on());
        for (stop, goes_on) in [(false, true), (true, false)] {
            wish.wait.store(true, Ordering::Relaxed);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| wish.is_to_go_on());
                if stop {
                    wish.stop.store(true, Ordering::Relaxed);
                } else {
                    wish.wait.store(false, Ordering::Relaxed);
                }
                assert_eq!(waiting.join().unwrap(), goes_on);
            });
        }
    }
}
