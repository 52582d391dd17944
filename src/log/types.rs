//! What goes into a log and comes out of it, whichever engine keeps it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventPattern, Seq, SignatureHeaders, Source, View};

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

impl Appended {
    /// Whether it was not there before.
    pub fn is_new(self) -> bool {
        matches!(
            self,
            Appended::Stored(_) | Appended::Quarantined { repeated: false, .. }
        )
    }
}

/// Why nothing could be stored now. All of them are worth a retry by the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no room: free space fell below the reserve, or the data directory is at its limit. One sentence says which.
    #[error("{0}")]
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

/// A range of Seqs that can't be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First Seq.
    pub from: Seq,
    /// Last Seq.
    pub to: Seq,
    /// What happened, one sentence.
    pub reason: String,
    /// When it was found.
    pub found_at: Timestamp,
    /// Nothing ever stood there: a restored log leaves out Seqs that the original may have given out since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Something stood there up to this one for certain (one before `from`: nowhere for certain); nobody knows whether anything did behind it.
    /// `None`: up to the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certain_to: Option<Seq>,
}

impl Gap {
    /// The last Seq at which something stood for certain.
    pub fn last_certain(&self) -> Seq {
        self.certain_to.unwrap_or(self.to)
    }

    /// How many events are gone for certain.
    pub fn certain(&self) -> u64 {
        (self.last_certain().0 + 1).saturating_sub(self.from.0)
    }

    /// Which events are gone, for people: what nobody knows is no number.
    pub fn told(&self) -> String {
        let Gap { from, to, .. } = self;
        match self.certain_to {
            None => format!("events {from} to {to}"),
            Some(certain) if certain < *from => {
                format!("events from {from} on, nobody knows how many (up to {to} at the most),")
            }
            Some(certain) => {
                format!("events {from} to {certain}, and nobody knows how many behind them (up to {to} at the most),")
            }
        }
    }
}

/// The log in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Why of some events it is not known whether they are here already, so that they are refused; `None`: it is known of each.
    #[serde(default)]
    pub keys_doubted: Option<String>,
}

/// The servers that keep a log together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// The stream's name there.
    pub stream: String,
    /// On how many servers each event is to be.
    pub replicas: usize,
    /// The one that leads; `None`: there is none that is known.
    pub leader: Option<String>,
    /// Those that have a replica, as their leader saw them last, in order of name; none before it was asked.
    pub servers: Vec<Server>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Whether it was heard of lately.
    pub alive: bool,
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

/// How much a reader takes at a time on its way back, and of what.
#[derive(Debug, Clone, Copy)]
pub struct TakeBack<'a> {
    /// It goes back to this one at most.
    pub from: Seq,
    /// Events that are read at the most, wanted or not.
    pub events: usize,
    /// Bytes of their bodies, roughly: no further event is read once there are so many. One is always read.
    pub bytes: usize,
    /// How long it may take, roughly: what is stepped over without being read costs time as well.
    pub within: Duration,
    /// As with [`Take::narrow`].
    pub narrow: Option<&'a Narrow>,
    /// Only what was received at or after is wanted; a log may give others as well.
    pub since: Option<Timestamp>,
    /// Only what was received before is wanted; a log may give others as well.
    pub until: Option<Timestamp>,
}

/// What a reader on its way back got.
#[derive(Debug, Default)]
pub struct BatchBack {
    /// Newest first; none that is wanted is missing between `reached` and where it began, except those named in `lost`.
    pub events: Vec<Arc<Event>>,
    /// Everything from here on was looked at: the next one goes back from here.
    pub reached: Seq,
    /// Ranges (inclusive), newest first, that can't be read any more. What was never given out is not among them, nor what expired.
    pub lost: Vec<(Seq, Seq)>,
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
    /// `object_type.action` matches one of these patterns ([`crate::event::EventPattern`] as text).
    pub types: Vec<String>,
}

impl Narrow {
    /// Whether it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.leads.is_empty() && self.objects.is_empty() && self.types.is_empty()
    }

    /// Whether it leaves an event: what every log has to give of those it is asked for.
    pub fn leaves(&self, event: &Event) -> bool {
        let view = event.view();
        let fits = |set: &BTreeSet<String>, value: Option<&str>| {
            set.is_empty() || value.is_some_and(|value| set.contains(value))
        };
        let object = || view.and_then(|_| event.object().get("object_id")?.as_string());
        let is_of_type = || {
            let type_action = view.and_then(View::type_action);
            let matches =
                |text: &String| EventPattern::parse(text).is_ok_and(|pattern| pattern.matches(type_action.as_deref()));
            self.types.iter().any(matches)
        };
        fits(&self.ids, view.map(|view| view.id.as_str()))
            && fits(&self.leads, view.and_then(|view| view.lead_id.as_deref()))
            && (self.objects.is_empty() || fits(&self.objects, object().as_deref()))
            && (self.types.is_empty() || is_of_type())
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// The Seqs that are tombstones now.
    pub seqs: Vec<Seq>,
    /// Those that were made tombstones since the process began: whoever read them before may still have them in memory.
    pub before: Vec<Seq>,
    /// What may hold some of it and was left: a sentence for each, with its place and the reason.
    pub left: Vec<String>,
}

impl Erased {
    /// What is said where an erasure did not come to its end.
    pub(crate) fn not_reached(from: Seq, why: &str) -> String {
        format!("events from {from} on may hold some of it, for it came no further ({why}): run it again")
    }
}

/// Which events are to be erased.
pub type Doomed = dyn Fn(&Event) -> bool + Send + Sync;
