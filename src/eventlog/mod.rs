//! The event log: append with group commit, known keys, readers, retention, recovery.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::event::{Event, EventKey, Kind, Seq, SignatureHeaders, Source};

/// An authentic body on its way into the log.
#[derive(Debug)]
pub struct Incoming {
    /// The body exactly as received.
    pub body: Bytes,
    /// When, by this machine's clock.
    pub received_at: Timestamp,
    /// How it came.
    pub source: Source,
    /// `None` on backfilled events.
    pub signature: Option<SignatureHeaders>,
}

/// What became of an append; durable when it is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// New: stored under this Seq.
    Stored(Seq),
    /// The same (`id`, `date_updated`) is already stored under this Seq.
    Duplicate(Seq),
    /// Not readable as a delivery: kept under this Seq, dispatched nowhere (also the answer when the same bytes come again).
    Quarantined(Seq),
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
    /// Ranges (inclusive) before `next` that can't be read any more: damaged, or expired.
    pub lost: Vec<(Seq, Seq)>,
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event log can't be read: {0}")]
pub struct ReadError(pub String);

/// The log. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub struct EventLog {}

impl EventLog {
    /// Stores a body unless it is already known. Returns when it is on disk (fdatasync), together with whatever else was
    /// waiting: one group commit.
    pub async fn append(&self, _incoming: Incoming) -> Result<Appended, AppendError> {
        todo!()
    }

    /// Whether an append would be tried now; the reason if not. For `/readyz`.
    pub fn ready(&self) -> Result<(), AppendError> {
        todo!()
    }

    /// The newest stored Seq ([`Seq::ZERO`] while empty); changes after each commit.
    pub fn head(&self) -> watch::Receiver<Seq> {
        todo!()
    }

    /// The oldest Seq still kept (one past the newest while empty).
    pub fn first(&self) -> Seq {
        todo!()
    }

    /// Up to `max_events` events and about `max_bytes` of bodies, from `from` on. Empty at the end of the log. Blocking:
    /// decodes, and may read the disk.
    pub fn read(&self, _from: Seq, _max_events: usize, _max_bytes: usize) -> Result<Batch, ReadError> {
        todo!()
    }

    /// One event. Blocking.
    pub fn get(&self, _seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        todo!()
    }

    /// Every stored revision of an event id, in Seq order. Blocking.
    pub fn find(&self, _id: &str) -> Result<Vec<(EventKey, Seq)>, ReadError> {
        todo!()
    }

    /// The first Seq received at or after `time`, as well as the clock allows. Blocking.
    pub fn seq_at(&self, _time: Timestamp) -> Result<Seq, ReadError> {
        todo!()
    }

    /// Random text made with the data directory; a restored backup gets a new one.
    pub fn epoch(&self) -> &str {
        todo!()
    }
}

const _: Kind = Kind::Event;
