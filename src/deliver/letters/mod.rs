//! Dead letters: deliveries that were given up.
//!
//! A letter is a reference: it says which event, why and when, and the event is read from the log. Only when the log is about to drop
//! the event is it copied, many in one compressed block with one sync ([`Letters::keep_copies`]). So dead letters pin nothing in the log
//! and cost little while it has them.
//!
//! One file of frames per sink, `dead/<sink>`. Adding returns when the letters are durable, and only then may the sink's mark pass
//! their events (invariant I4). What is kept is bounded by the sink's `dead_max`: the oldest go, and that they did is remembered. In
//! memory a letter costs its Seq and its places in the file.
//!
//! | file | what it does |
//! |---|---|
//! | `record` | what a letter and a copy of an event are as bytes |
//! | `index` | which letters there are, and where in the file; memory only |
//! | `given` | letters that go from one sink to another |
//! | `keeper` | what keeps them has to do |
//! | `disk` | the file: read, written, written anew |
//! | `stream` | a journal that several nodes share |
//! | `import` | from the file of an older version into it |
//! | `carry` | from one to the other, where the log goes |
//! | `extent` | how much of the file is durable, for the sink's record |
//! | `damage` | what damage has taken, and by what that is told |
//! | `dir` | the directory of all sinks' files |
//! | `traces` | what they tell of events that are lost |
//! | `names` | what these are called, and what stands beside them |
//!
//! What is asked of the index waits for no disk: it has a lock of its own, which is never held over I/O, and a letter is read without
//! any. Until the file was read ([`Letters::read`]) nobody knows what is in it; then errors are errors, and never "there is none".

mod carry;
mod damage;
mod dir;
mod disk;
mod extent;
mod given;
mod import;
mod index;
mod keeper;
mod names;
mod reader;
mod record;
mod stream;
mod traces;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};

use super::DeadLetter;
use super::seqs::Seqs;
use crate::event::{Event, Seq};
use crate::framefile::{self, FrameError};
use crate::sync::lock;
pub use carry::Carried;
pub(super) use carry::{carry_into, fetch_from};
pub use dir::is_dead_letters;
pub(super) use dir::{asides, event_of, files, is_of, listed, open_all};
use disk::Disk;
pub(super) use extent::Extent;
pub(super) use given::undone;
pub(super) use import::{import, is_imported};
use index::Index;
use keeper::{Keeper, Known, Way};
use reader::Frame;
use record::{TAG_COPIES, TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_FENCE, TAG_LETTER, TAG_REMOVE};
pub(super) use stream::Desk;
use stream::Stream;
pub(super) use traces::Traces;

/// Bytes of bodies in one block, roughly.
const BLOCK_BYTES: usize = 256 << 10;

/// The dead letters of one sink. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Letters {
    shared: Arc<Shared>,
    /// Under which lease this handle writes; 0: under none.
    fence: u64,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Whether other nodes write as well.
    among_nodes: bool,
    /// Of these it could not be noted that they are released.
    unreleased: Mutex<Seqs>,
    /// `None` until the file was read. Never held over I/O.
    index: Known,
    /// Why the file could not be read, the last time that was tried.
    unread: Mutex<Option<String>>,
    /// Letters came from another sink.
    arrived: Notify,
    /// What workers do with them beside themselves, and have not ended.
    busy: watch::Sender<usize>,
    /// Of these the letters are being delivered, or were and have not gone yet, or are still to go by what is durable: no other takes the
    /// place of one of them meanwhile, or it would go with it.
    leaving: Mutex<BTreeSet<Seq>>,
    /// Held while another sink gives letters and lets go of them: one does at a time.
    taking: Mutex<()>,
    /// Bytes that the letters may take up.
    max: AtomicU64,
    /// Of events up to here damage may have taken letters.
    lost_upto: AtomicU64,
    /// By what the damage is told that somebody has seen; `None`: nobody has seen any.
    seen: Mutex<Option<u64>>,
    /// Held while the file is read, written, synced or written anew; taken before the index, and only its holder changes that.
    keeper: Mutex<Box<dyn Keeper>>,
}

/// Something is being done with the letters of a sink.
pub(super) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}

/// Whether what was to be read is gone for good, so that asking again is of no use.
pub(super) fn is_gone(error: &FrameError) -> bool {
    match error {
        FrameError::Damaged { .. } => true,
        FrameError::Io { source, .. } => framefile::is_bad_medium(source),
        FrameError::Alien(_) | FrameError::Newer { .. } | FrameError::Poisoned(_) => false,
    }
}

impl Letters {
    /// A sink's letters, not read yet; with `read_only` nothing is written, not even to cut off a torn tail.
    pub fn new(dir: &Path, sink: &str, read_only: bool) -> Letters {
        // Sink names are letters, digits, '-', '_' and '.', and do not begin with a dot.
        let path = dir.join(sink);
        Letters::kept_by(Box::new(Disk::new(path.clone(), read_only)), path)
    }

    fn kept_by(keeper: Box<dyn Keeper>, path: PathBuf) -> Letters {
        Letters {
            fence: 0,
            shared: Arc::new(Shared {
                among_nodes: keeper.is_shared(),
                unreleased: Mutex::default(),
                index: Mutex::new(None),
                unread: Mutex::new(None),
                arrived: Notify::new(),
                leaving: Mutex::default(),
                taking: Mutex::new(()),
                busy: watch::Sender::new(0),
                max: AtomicU64::new(u64::MAX),
                lost_upto: AtomicU64::default(),
                seen: Mutex::default(),
                keeper: Mutex::new(keeper),
                path,
            }),
        }
    }

    /// A sink's letters that several nodes share, not read yet.
    pub fn shared(desk: &Arc<Desk>, sink: &str, read_only: bool) -> Letters {
        let keeper = Stream::new(desk, sink, read_only);
        Letters::kept_by(Box::new(keeper), Stream::path(desk, sink))
    }

    /// The same letters, written under a lease: what somebody with a later one has taken over is not changed any more.
    pub fn under(&self, fence: u64) -> Letters {
        Letters { fence, ..self.clone() }
    }

    /// Under which lease this handle writes; 0: under none.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Whoever had the sink before changes nothing of it any more, and all that they have is known here. `false`: somebody with a later
    /// lease has it. Blocking.
    pub fn take_over(&self, fence: u64) -> Result<bool, FrameError> {
        if !self.shared.among_nodes || fence == 0 {
            return Ok(true);
        }
        self.read()?;
        let mut is_ours = true;
        // Under no lease: that somebody has a later one is an answer here, and no error.
        let way = Way {
            step: "fence",
            fence: 0,
            is_lazy: false,
        };
        self.keeper()?.write(&self.shared.index, way, &mut |index| {
            is_ours = index.fence <= fence;
            let note = (TAG_FENCE, fence.to_le_bytes().to_vec());
            Some(note).filter(|_| index.fence < fence).into_iter().collect()
        })?;
        Ok(is_ours)
    }

    /// Under which lease somebody has taken them over last, as far as that is known here.
    pub fn last_fence(&self) -> u64 {
        lock(&self.shared.index).as_ref().map_or(0, |index| index.fence)
    }

    /// A worker begins to do something with them that may outlast it: until this is dropped.
    pub fn busy(&self) -> Busy {
        self.shared.busy.send_modify(|count| *count += 1);
        Busy(self.shared.clone())
    }

    /// Waits until nothing of that is under way.
    pub async fn idle(&self) {
        let mut busy = self.shared.busy.subscribe();
        // It never ends before the count does.
        let _ = busy.wait_for(|count| *count == 0).await;
    }

    /// Whether other nodes write as well.
    pub fn is_shared(&self) -> bool {
        self.shared.among_nodes
    }

    /// The same, read. Blocking.
    #[cfg(test)]
    pub fn open(dir: &Path, sink: &str, read_only: bool) -> Result<Letters, FrameError> {
        let letters = Letters::new(dir, sink, read_only);
        letters.read()?;
        Ok(letters)
    }

    /// Nobody can read or write the file while this is held.
    #[cfg(test)]
    pub fn hold(&self) -> impl Drop + '_ {
        lock(&self.shared.keeper)
    }

    /// The disk fails at this step from now on, or at none.
    #[cfg(test)]
    pub fn fail_at(&self, step: Option<&'static str>) {
        lock(&self.shared.keeper).fail_at(step);
    }

    /// Reads what is kept, unless that was done before; and what other nodes have written since. Where it can't be read it may be later.
    /// Blocking.
    pub fn read(&self) -> Result<(), FrameError> {
        let mut keeper = self.keeper()?;
        if !self.shared.among_nodes {
            return Ok(());
        }
        let ready = || self.index(|index| index.released.len());
        let before = ready();
        let read = keeper.read(&self.shared.index);
        drop(keeper);
        let trouble = read.as_ref().err().map(|error| format!("they can't be read: {error}"));
        *lock(&self.shared.unread) = trouble;
        if ready() > before {
            self.shared.arrived.notify_one();
        }
        read?;
        let unreleased = std::mem::take(&mut *lock(&self.shared.unreleased));
        if !unreleased.is_empty() {
            self.release(&unreleased.iter().collect::<Vec<_>>());
        }
        Ok(())
    }

    /// The letters of these events are being delivered, or were and have not gone yet; those of no others.
    pub fn set_leaving(&self, seqs: BTreeSet<Seq>) {
        *lock(&self.shared.leaving) = seqs;
    }

    /// Those of which a letter is about to go.
    pub fn leaving(&self, seqs: impl IntoIterator<Item = Seq>) -> BTreeSet<Seq> {
        let leaving = lock(&self.shared.leaving);
        seqs.into_iter().filter(|seq| leaving.contains(seq)).collect()
    }

    /// Adds letters durably (replacing those with the same Seq; a copy of the event stays). Blocking.
    pub fn add(&self, letters: &[DeadLetter]) -> Result<(), FrameError> {
        let frame = |letter: &DeadLetter| (TAG_LETTER, record::letter_payload(letter));
        self.write("add", &mut |_| letters.iter().map(frame).collect())
    }

    /// Writes what is decided by what is there, durably; see [`Keeper::write`].
    fn write(&self, step: &'static str, decide: &mut dyn FnMut(&Index) -> Vec<Frame>) -> Result<(), FrameError> {
        let way = Way {
            step,
            fence: self.fence,
            is_lazy: false,
        };
        self.keeper()?.write(&self.shared.index, way, decide)
    }

    /// Has nothing in the file but what is known of it. Blocking.
    pub fn mend(&self) -> Result<(), FrameError> {
        lock(&self.shared.keeper).mend(&self.shared.index)
    }

    /// Adds letters as [`Letters::add`] does, and drops the oldest beyond so many bytes; gives how many these were. The new ones are
    /// no less durable where that can't be done now: it is tried again with the next ones.
    pub fn add_within(&self, letters: &[DeadLetter], max_bytes: u64) -> Result<u64, FrameError> {
        self.add(letters)?;
        Ok(self.keep_within(max_bytes))
    }

    fn keep_within(&self, max_bytes: u64) -> u64 {
        let dropped = self.drop_for_good(&self.beyond(max_bytes));
        dropped.unwrap_or_else(|error| {
            tracing::warn!(%error, "the oldest dead letters, beyond what the sink may have, can't be dropped; this is tried again");
            0
        })
    }

    /// Removes letters whose events were delivered (or erased) durably, with one sync; gives how many there were. Blocking.
    pub fn remove(&self, seqs: &[Seq]) -> Result<u64, FrameError> {
        self.let_go(seqs, |_, present| {
            let bytes = present.iter().flat_map(|seq| seq.0.to_le_bytes()).collect();
            vec![(TAG_REMOVE, bytes)]
        })
    }

    /// Removes letters whose events were erased; gives how many there were. What shows damage, and stays as it is until that is noted, does
    /// not keep them. Blocking; `turn` is called as it gets on.
    pub fn erase(&self, seqs: &[Seq], turn: &dyn Fn()) -> Result<u64, FrameError> {
        self.although_damaged(|| self.remove(seqs), turn)
    }

    /// The same of letters whose events were not erased with them: that they went is remembered, as by [`Letters::drop_for_good`]. Blocking.
    pub fn erase_alone(&self, seqs: &[Seq], turn: &dyn Fn()) -> Result<u64, FrameError> {
        self.although_damaged(|| self.drop_for_good(seqs), turn)
    }

    fn although_damaged(
        &self,
        let_go: impl Fn() -> Result<u64, FrameError>,
        turn: &dyn Fn(),
    ) -> Result<u64, FrameError> {
        let gone = let_go();
        if gone.is_ok() || self.is_shared() || self.damage_mark().is_none() {
            return gone;
        }
        self.scrub(turn)?;
        let_go()
    }

    /// Removes letters whose events will never be delivered, and remembers that. Durable, with one sync; gives how many there were.
    /// Blocking.
    pub fn drop_for_good(&self, seqs: &[Seq]) -> Result<u64, FrameError> {
        self.let_go(seqs, |index, present| {
            let (own, given): (Vec<Seq>, Vec<Seq>) = present.iter().partition(|seq| index.has_own(**seq));
            let parts = [(TAG_DROPPED, own), (TAG_DROPPED_GIVEN, given)].into_iter();
            let frame = |(tag, seqs): (u32, Vec<Seq>)| {
                let mut dropped = Seqs::default();
                dropped.extend(seqs);
                (tag, record::dropped_payload(dropped.ranges()))
            };
            parts.filter(|(_, seqs)| !seqs.is_empty()).map(frame).collect()
        })
    }

    fn let_go(&self, seqs: &[Seq], frames: impl Fn(&Index, &[Seq]) -> Vec<Frame>) -> Result<u64, FrameError> {
        let seqs: BTreeSet<Seq> = seqs.iter().copied().collect();
        let mut gone = 0;
        self.write("remove", &mut |index| {
            let present: Vec<Seq> = seqs.iter().copied().filter(|seq| index.has(*seq)).collect();
            gone = present.len() as u64;
            if present.is_empty() {
                return Vec::new();
            }
            frames(index, &present)
        })?;
        if gone > 0 {
            self.tidy();
        }
        Ok(gone)
    }

    /// What went is gone, whether or not its space can be given back now.
    fn tidy(&self) {
        if let Err(error) = lock(&self.shared.keeper).tidy(&self.shared.index) {
            tracing::warn!(%error, "what keeps dead letters could not be made smaller; this is tried again");
        }
    }

    /// Removes all of them, and leaves nothing; gives how many there were. Blocking.
    pub fn forget(&self) -> Result<u64, FrameError> {
        // Nothing is left that damage could be noted of.
        self.damage_is_noted(self.damage_mark());
        let gone = self.remove(&self.all_seqs(Seq::ZERO, usize::MAX))?;
        self.keeper()?.remove_all(&self.shared.index)?;
        Ok(gone)
    }

    /// Writes the file anew, so that nothing is in it of letters and copies that went. An error: some of that may still be there.
    /// Blocking; `turn` is called as it gets on.
    pub fn scrub(&self, turn: &dyn Fn()) -> Result<(), FrameError> {
        self.keeper()?.scrub(&self.shared.index, turn)
    }

    /// The oldest letters that have to go so that the rest is at most so large.
    pub fn beyond(&self, max_bytes: u64) -> Vec<Seq> {
        self.index(|index| index.beyond(max_bytes))
    }

    /// Bytes of the letters and copies that there are.
    pub fn live_bytes(&self) -> u64 {
        self.index(|index| index.live_bytes)
    }

    /// How many there are, without those that are to be delivered for another sink.
    pub fn len(&self) -> usize {
        self.index(|index| index.places.len() - index.given.len())
    }

    /// How many were dropped, those included that were to be delivered for another sink; of more than is remembered the newest.
    pub fn dropped_len(&self) -> u64 {
        self.index(|index| index.dropped.len() + index.dropped_given.len())
    }

    /// Whether there is a dead letter of this sink for the event.
    pub fn has(&self, seq: Seq) -> bool {
        self.index(|index| index.has_own(seq))
    }

    /// Whether the event is dead: there is a letter for it, or there was one that was dropped, or another sink has it.
    pub fn is_dead(&self, seq: Seq) -> bool {
        self.index(|index| index.has_own(seq) || index.dropped.has(seq) || index.diverted.has(seq))
    }

    /// Whether the letter of the event was dropped, and that is all that is known of it.
    pub fn was_dropped(&self, seq: Seq) -> bool {
        self.index(|index| index.dropped.has(seq))
    }

    /// Whether another sink gave the event up to this one, and that was dropped before it was delivered.
    pub fn was_given_and_dropped(&self, seq: Seq) -> bool {
        self.index(|index| index.dropped_given.has(seq))
    }

    /// Up to here it was forgotten of which events that is so.
    pub fn dropped_given_forgotten_upto(&self) -> Seq {
        self.index(|index| index.dropped_given_forgotten)
    }

    /// Up to here it was forgotten which letters were dropped.
    pub fn forgotten_upto(&self) -> Seq {
        self.index(|index| index.forgotten)
    }

    /// The Seqs from `from` on, at most `max`; without those that are to be delivered for another sink.
    pub fn seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| {
            let seqs = index.places.range(from..).map(|(seq, _)| *seq);
            seqs.filter(|seq| !index.given.contains_key(seq)).take(max).collect()
        })
    }

    /// The same with these.
    pub fn all_seqs(&self, from: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| index.places.range(from..).map(|(seq, _)| *seq).take(max).collect())
    }

    /// The Seqs before `before` of which there is no copy, at most `max`.
    pub fn without_copy(&self, from: Seq, before: Seq, max: usize) -> Vec<Seq> {
        self.index(|index| {
            let bare = index
                .places
                .range(from.min(before)..before)
                .filter(|(_, place)| place.copy.is_none());
            bare.map(|(seq, _)| *seq).take(max).collect()
        })
    }

    /// One letter; `None` where there is none. Blocking.
    pub fn get(&self, seq: Seq) -> Result<Option<DeadLetter>, FrameError> {
        let found = self.found(|index| index.places.get(&seq).map(|place| place.offset))?;
        let Some((tag, payload)) = found else { return Ok(None) };
        Ok(record::letter_in(tag, &payload))
    }

    /// The copy of a letter's event; `None` where there is none. Blocking.
    pub fn copy(&self, seq: Seq) -> Result<Option<Arc<Event>>, FrameError> {
        let found = self.found(|index| index.places.get(&seq).and_then(|place| place.copy))?;
        let Some((tag, payload)) = found else { return Ok(None) };
        let mut events = record::events_in(tag, &payload).into_iter();
        Ok(events.find(|event| event.seq == seq).map(Arc::new))
    }

    /// Keeps copies of events durably, with one sync; of those that are no letters nothing is kept. Blocking.
    pub fn keep_copies(&self, events: &[Arc<Event>]) -> Result<(), FrameError> {
        let block_bytes = lock(&self.shared.keeper).block_bytes();
        let wanted = |index: &Index| -> Vec<&Event> {
            let all = events.iter().map(Arc::as_ref);
            all.filter(|event| index.has(event.seq)).collect()
        };
        let pack = |of: &[&Event]| {
            blocks(of, block_bytes).map_err(|source| FrameError::Io {
                path: self.shared.path.clone(),
                source,
            })
        };
        // Packing takes its time, and nobody who asks for an event waits for it. What is a letter no more when it is written is
        // packed out again.
        let mut of = self.index(|index| wanted(index));
        let mut packed = pack(&of);
        let kept = self.write("copy", &mut |index| {
            let now = wanted(index);
            if !now.iter().map(|event| event.seq).eq(of.iter().map(|event| event.seq)) {
                packed = pack(&now);
                of = now;
            }
            packed.as_ref().map_or_else(|_| Vec::new(), Clone::clone)
        });
        packed.and(kept)
    }

    /// What keeps the letters, once they were read.
    fn keeper(&self) -> Result<MutexGuard<'_, Box<dyn Keeper>>, FrameError> {
        let mut keeper = lock(&self.shared.keeper);
        if lock(&self.shared.index).is_none() {
            let read = keeper.read(&self.shared.index);
            *lock(&self.shared.unread) = read.as_ref().err().map(|error| format!("they can't be read: {error}"));
            read?;
        }
        Ok(keeper)
    }

    /// As if a disk hung: nobody gets at what keeps the letters as long as this is held.
    #[cfg(test)]
    pub(in crate::deliver) fn hang(&self) -> impl Sized {
        lock(&self.shared.keeper)
    }

    /// Asks or changes the index. While the file was not read there is nothing in it, and nobody's change to it is believed.
    fn index<T>(&self, ask: impl FnOnce(&mut Index) -> T) -> T {
        match &mut *lock(&self.shared.index) {
            Some(index) => ask(index),
            None => ask(&mut Index::default()),
        }
    }

    /// The frame that the index names. It is read without any lock: what is written anew meanwhile leaves the old file as it was.
    fn found(&self, place: impl Fn(&Index) -> Option<u64>) -> Result<Option<(u32, Vec<u8>)>, FrameError> {
        let found = self.found_at(&place);
        match found {
            Err(error) if self.shared.among_nodes && is_gone(&error) => {
                // Another node may have let it go.
                self.read()?;
                self.found_at(&place)
            }
            found => found,
        }
    }

    fn found_at(&self, place: impl Fn(&Index) -> Option<u64>) -> Result<Option<(u32, Vec<u8>)>, FrameError> {
        let (offset, reader) = {
            let index = lock(&self.shared.index);
            let unread = || FrameError::Io {
                path: self.shared.path.clone(),
                source: std::io::Error::other("the dead letters were not read yet"),
            };
            let index = index.as_ref().ok_or_else(unread)?;
            let Some(offset) = place(index) else { return Ok(None) };
            (offset, index.reader.clone().ok_or_else(unread)?)
        };
        reader.read(offset).map(Some)
    }
}

/// Frames with copies of events, in blocks of about so many bytes of bodies.
fn blocks(events: &[&Event], block_bytes: usize) -> std::io::Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |event: &&&Event| {
            let fits = bytes < block_bytes;
            bytes += event.body.len();
            fits
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (block, after) = rest.split_at(count);
        rest = after;
        frames.push((TAG_COPIES, record::copies_payload(block)?));
    }
    Ok(frames)
}

/// Where copies are, and of which letters.
type Blocks = BTreeMap<u64, Vec<Seq>>;
