//! The event log: everything that was received, in order, for as long as it is kept.
//!
//! [`Log`] is what the rest of closehook knows of one: events go in at one end and get a Seq, readers ask for a Seq and what
//! comes behind it, and the only way anything goes is [`Log::drop_before`], on the word of whoever knows what must stay. A log
//! never waits for a sink, and knows none.
//!
//! [`local`] keeps it on this machine's disk.

pub mod local;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

pub use local::gaps::Gap;
pub use local::{
    Clock, KeyFiles, LocalLog, OpenError, Options, Piece, Restorer, Taken, key_file, make_dir, raise_limit, space,
};

use crate::event::{Event, EventKey, Seq, SignatureHeaders, Source, View};

/// An authentic body on its way into the log.
#[derive(Debug)]
pub struct Incoming {
    /// The body exactly as received.
    pub body: Bytes,
    /// When, by this machine's clock; kept to the microsecond.
    pub received_at: Timestamp,
    /// How it came.
    pub source: Source,
    /// `None` on backfilled events.
    pub signature: Option<SignatureHeaders>,
    /// What was read in the body; `None` where it is no delivery, which puts it into quarantine.
    pub view: Option<View>,
    /// Store it without ever dispatching it.
    pub held: bool,
    /// Close withholds its data. It is a duplicate where the full event or this same part of it is stored already; the full
    /// event that comes later is none of it and gets a Seq of its own.
    pub partial: bool,
    /// Dropped when the append has ended, even if nobody waits for it any more: for whoever counts the body's memory.
    pub ticket: Option<Box<dyn Ticket>>,
}

impl Incoming {
    /// A body to be stored and dispatched; reads what is in it.
    pub fn new(body: Bytes, received_at: Timestamp, source: Source, signature: Option<SignatureHeaders>) -> Incoming {
        Incoming {
            view: View::read(&body).ok(),
            body,
            received_at,
            source,
            signature,
            held: false,
            partial: false,
            ticket: None,
        }
    }
}

/// What may travel with an append until it has ended.
pub trait Ticket: std::fmt::Debug + Send + Sync {}

/// What became of an append; durable when it is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// New: stored under this Seq.
    Stored(Seq),
    /// The same (`id`, `date_updated`) is already stored under this Seq.
    Duplicate(Seq),
    /// Not readable as a delivery: kept, dispatched nowhere.
    Quarantined {
        /// Where.
        seq: Seq,
        /// The same bytes were kept already.
        repeated: bool,
    },
}

/// Why nothing could be stored now. All of them are worth a retry by the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Free space fell below the reserve.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Writing or syncing the journal failed.
    #[error("the event log can't be written: {0}")]
    Failing(String),
    /// More is waiting to be committed than is allowed.
    #[error("too much is waiting to be committed")]
    Overloaded,
    /// The log is closing.
    #[error("shutting down")]
    Closed,
}

/// What a reader got.
#[derive(Debug, Default)]
pub struct Batch {
    /// In Seq order; none missing except those named in `lost`.
    pub events: Vec<Arc<Event>>,
    /// Where to read on.
    pub next: Seq,
    /// Ranges (inclusive) before `next` that can't be read any more: damaged, or expired. What was never given out is not.
    pub lost: Vec<(Seq, Seq)>,
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event log can't be read: {0}")]
pub struct ReadError(pub String);

/// The log in numbers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Oldest Seq kept.
    pub first: Seq,
    /// Newest Seq.
    pub last: Seq,
    /// Events kept.
    pub events: u64,
    /// Bytes of events before compression.
    pub received_bytes: u64,
    /// Bytes on disk, keys included.
    pub disk_bytes: u64,
    /// Segments, the newest included.
    pub segments: usize,
    /// Segments that are not sealed yet, the newest included.
    pub unsealed: usize,
    /// When the oldest event kept was received.
    pub oldest_at: Option<Timestamp>,
    /// What damage took away.
    pub gaps: Vec<Gap>,
}

/// How much a reader takes at a time, and of what.
#[derive(Debug, Clone, Copy)]
pub struct Take<'a> {
    /// Events at the most.
    pub events: usize,
    /// Bytes of their bodies, roughly: no further event is taken once there are so many. One event is always taken.
    pub bytes: usize,
    /// `None`: every event. Else only events that this leaves are wanted. A log may give others as well, so that the reader looks
    /// at each all the same; what it leaves out it has looked at.
    pub narrow: Option<&'a Narrow>,
}

/// What a log can look up instead of reading everything. Empty sets mean "no restriction"; an event must pass all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrow {
    /// `event.id` is one of these.
    pub ids: BTreeSet<String>,
    /// `event.lead_id` is one of these.
    pub leads: BTreeSet<String>,
    /// `event.object_id` is one of these.
    pub objects: BTreeSet<String>,
    /// `object_type.action` matches one of these patterns ([`crate::rules::selection::EventPattern`] as text).
    pub types: Vec<String>,
}

impl Narrow {
    /// Whether it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.leads.is_empty() && self.objects.is_empty() && self.types.is_empty()
    }
}

/// A place at which the log can be cut: everything before it can go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// What is before this Seq goes.
    pub before: Seq,
    /// When the newest event before it was received.
    pub newest: Timestamp,
    /// Bytes on disk that the cuts up to and with this one free, together.
    pub frees: u64,
}

/// Why nothing was dropped or erased now; worth another try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event log can't be changed: {0}")]
pub struct ChangeError(pub String);

/// What an erasure did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Erased {
    /// The Seqs that are tombstones now.
    pub seqs: Vec<Seq>,
    /// What may hold some of it and was left: a sentence for each, with its place and the reason.
    pub left: Vec<String>,
}

/// Which events are to be erased.
pub type Doomed = dyn Fn(&Event) -> bool + Send + Sync;

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

    /// How long ago the loop that stores last turned; it does at least twice a second, whatever the disk says. For the watchdog.
    fn since_turned(&self) -> Duration;

    /// The newest stored Seq ([`Seq::ZERO`] while empty); changes after each commit.
    fn head(&self) -> watch::Receiver<Seq>;

    /// The oldest Seq still kept (one past the newest while empty).
    fn first(&self) -> Seq;

    /// The newest Seq before `seq` that is kept, or may be; `None` where nothing is. Steps over what was never given out.
    fn last_before(&self, seq: Seq) -> Option<Seq>;

    /// Which log this is: random text made with it, the same for all its life, restored backups included.
    fn id(&self) -> &str;

    /// Which life of the log this is: random text; a restored backup gets a new one.
    fn epoch(&self) -> &str;

    /// Events from `from` on. Empty at the end of the log.
    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError>;

    /// One event; `None` where there is none (any more). An error is not an absence.
    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError>;

    /// The Seqs of every known revision of an event id, in order; some may have expired.
    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError>;

    /// The Seq under which this revision of an event is stored, complete; `None` where an append would store it.
    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError>;

    /// The first Seq received at or after `time`, as well as the clock allows; one past the newest if there is none.
    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError>;

    /// Where the log can be cut, oldest first. The segment that is being written is behind them all.
    fn cuts(&self) -> Vec<Cut>;

    /// Drops what is before `seq`, as far as the cuts allow; returns when it is gone. Gives the oldest Seq kept.
    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError>;

    /// Bytes on disk: of events, and of the keys by which they are known. Cheap.
    fn disk_bytes(&self) -> (u64, u64);

    /// Bytes that the log may take up, keys included; beyond, appends are refused as full until there is room again. Set by whoever knows
    /// what else there is, and changes it when that grows.
    fn set_room(&self, bytes: u64);

    /// Makes sure that Seqs up to `seen` are never given out again: a sink has seen them, although damage took them from the
    /// log.
    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError>;

    /// Erases events: each doomed one is replaced by a tombstone, in the log and in every copy the log has made of it. Its Seq
    /// stays taken and its key stays known, so it is not stored again. `doomed` is asked about every event that `narrow` leaves, and
    /// about what can't be read as a delivery; a log may ask it about others as well.
    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError>;

    /// The log in numbers.
    fn stats(&self) -> Stats;

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
