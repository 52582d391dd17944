//! The event log: everything that was received, in order, for as long as it is kept.
//!
//! [`Log`] is what the rest of closehook knows of one: events go in at one end and get a Seq, readers ask for a Seq and what
//! comes behind it, and the only way anything goes is [`Log::drop_before`], on the word of whoever knows what must stay. A log
//! never waits for a sink, and knows none.
//!
//! [`local`] keeps it on this machine's disk, `jetstream` on servers that several machines share.

mod absent;
#[cfg(feature = "engine-jetstream")]
pub mod jetstream;
pub mod known_key;
pub mod local;
#[cfg(test)]
mod tests;
mod types;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

pub use absent::AbsentLog;
pub use local::{
    CarriedKeys, Clock, Holder, KeyFiles, LocalLog, Moved, OpenError, Options, Piece, Placer, Restorer, SCRATCH,
    SEGMENT_EVENTS_MAX, Taken, commit_copy, holder, identity, is_copy_begun, is_state_begun, key_file, moved,
    note_moved, note_serving, note_state_begun, raise_limit, refuse_moved, reopen, shared_upto, space, take_dir,
};
pub use types::{
    AppendError, Appended, Batch, BatchBack, ChangeError, Cut, Doomed, Erased, Gap, Incoming, Narrow, ReadError,
    Server, Servers, Stats, Take, TakeBack, Ticket,
};

use crate::event::{Event, EventKey, Seq};

/// [`Log::leap_max`] where a leap costs nothing.
const LEAP_MAX: u64 = 1 << 32;

/// A log of events. All handles of one are the same log.
#[async_trait]
pub trait Log: std::fmt::Debug + Send + Sync + 'static {
    /// Stores a body unless it is already known. Returns when it is durable, together with whatever else was waiting. Waits
    /// while the queue is full. A caller that stops waiting does not stop the append.
    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError>;

    /// Stores several, which get their Seqs in this order.
    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>>;

    /// Whether an append would be tried now; the reason if not. For `/readyz`.
    fn ready(&self) -> Result<(), AppendError>;

    /// Why nothing of it can be used before its servers are there; `None`: it was opened.
    fn absent(&self) -> Option<String> {
        None
    }

    /// What was read ahead is given to nobody: some of it was erased.
    fn forget_read_ahead(&self) {}

    /// How long ago the loop that stores last turned; it does at least twice a second, whatever the disk says. For the watchdog.
    fn since_turned(&self) -> Duration;

    /// The newest stored Seq ([`Seq::ZERO`] while empty); changes after each commit.
    fn head(&self) -> watch::Receiver<Seq>;

    /// The oldest Seq still kept (one past the newest while empty).
    fn first(&self) -> Seq;

    /// The newest Seq before `seq` that is kept, or may be; `None` where nothing is. Steps over what was never given out.
    fn last_before(&self, seq: Seq) -> Option<Seq>;

    /// How many places there are in a range, both ends included, but for those that were never given out.
    fn places(&self, from: Seq, to: Seq) -> u64 {
        (to.0 + 1).saturating_sub(from.0)
    }

    /// Which log this is: random text made with it, the same for all its life, restored backups included.
    fn id(&self) -> &str;

    /// Which life of the log this is: random text; a restored backup gets a new one.
    fn epoch(&self) -> &str;

    /// Events from `from` on. Empty at the end of the log.
    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError>;

    /// Events before `before`, newest first. What may be there and is not in the answer is before its `reached`.
    async fn read_back(&self, before: Seq, take: TakeBack<'_>) -> Result<BatchBack, ReadError> {
        back_by_steps(self, before, take).await
    }

    /// One event; `None` where there is none (any more). An error is not an absence.
    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError>;

    /// The Seqs of every known revision of an event id, in order; some may have expired.
    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError>;

    /// The Seq under which this revision of an event is stored, complete; `None` where an append would store it.
    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError>;

    /// The Seq under which this event of another log is known, whatever it is known by; `None` where an append would store it.
    async fn find_same(&self, event: &Event) -> Result<Option<Seq>, ReadError> {
        match event.view() {
            Some(view) => self.find_revision(&view.key()).await,
            None => Ok(None),
        }
    }

    /// The first Seq received at or after `time`, as well as the clock allows; one past the newest if there is none.
    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError>;

    /// Where the log can be cut, oldest first. The segment that is being written is behind them all.
    fn cuts(&self) -> Vec<Cut>;

    /// Drops what is before `seq`, as far as the cuts allow; returns when it is gone. Gives the oldest Seq kept.
    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError>;

    /// Bytes on disk: of events, and of the keys by which they are known. Cheap.
    fn disk_bytes(&self) -> (u64, u64);

    /// Bytes that may be being written beside those: another form of what is there, in whose place it soon is. It takes up the log's room for
    /// that long, and is no reason for an event to go.
    fn reserved_bytes(&self) -> u64 {
        0
    }

    /// Bytes that the log may take up, keys included; beyond, appends are refused as full until there is room again. Set by whoever knows
    /// what else there is, and changes it when that grows.
    fn set_room(&self, bytes: u64);

    /// Nothing is stored until the log has gone on behind `seen`, which [`Log::skip_past`] may have to be asked for again and again.
    fn hold_until_past(&self, _seen: Seq) {}

    /// No more Seqs than so many are lost at the end of a log: what claims to know of one that is further behind is damaged, or of another log. To
    /// go on behind that would use up what there is of Seqs, or never come to an end.
    fn leap_max(&self) -> u64 {
        LEAP_MAX
    }

    /// A sink has seen what stood up to `seen`, before anybody has passed what was lost since: that may be more than the log knows of it.
    async fn note_seen(&self, _seen: Seq) {}

    /// Makes sure that Seqs up to `seen` are never given out again: a sink has seen them, although damage took them from the
    /// log. One that is only looked at tells of them as lost.
    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError>;

    /// Erases events: each doomed one is replaced by a tombstone, in the log and in every copy the log has made of it. Its Seq
    /// stays taken and its key stays known, so it is not stored again. `doomed` is asked about every event that `narrow` leaves, and
    /// about what can't be read as a delivery; a log may ask it about others as well.
    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError>;

    /// The log in numbers.
    fn stats(&self) -> Stats;

    /// The servers that keep it; `None`: this machine does.
    fn servers(&self) -> Option<Servers> {
        None
    }

    /// Compares everything stored with its checksums; `progress` hears how many parts of how many are done. Gives one sentence
    /// for each fault.
    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String>;

    /// Stops taking events, answers those that wait, and lets go.
    async fn close(&self);

    /// The log as it is kept on this machine, for what only works on files (a backup); `None` for another engine.
    fn local(&self) -> Option<&LocalLog> {
        None
    }
}

/// Places that a log which only reads forwards goes back at a time.
const STEP_BACK: u64 = 64;

/// Goes back by reading a few places forwards, for a log that has no better way.
async fn back_by_steps<L: Log + ?Sized>(log: &L, before: Seq, take: TakeBack<'_>) -> Result<BatchBack, ReadError> {
    let upper = log.last_before(before).unwrap_or_default().next();
    let from = take.from.max(log.first());
    if upper <= from {
        return Ok(BatchBack {
            reached: take.from.min(before),
            ..BatchBack::default()
        });
    }
    let step = STEP_BACK.min(take.events as u64).max(1);
    let lower = Seq(upper.0.saturating_sub(step)).max(from);
    let mut back = BatchBack {
        reached: lower,
        ..BatchBack::default()
    };
    let mut next = lower;
    while next < upper {
        let step = Take {
            events: (upper.0 - next.0) as usize,
            bytes: take.bytes,
            narrow: take.narrow,
        };
        let batch = log.read(next, step).await?;
        if batch.next == next {
            break;
        }
        next = batch.next;
        back.events
            .extend(batch.events.into_iter().filter(|event| event.seq < upper));
        let before_upper = batch.lost.into_iter().filter(|(from, _)| *from < upper);
        back.lost
            .extend(before_upper.map(|(from, to)| (from, to.min(upper.prev()))));
    }
    back.events.reverse();
    back.lost.reverse();
    Ok(back)
}
