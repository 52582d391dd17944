//! What the delivery engine and a sink owe each other.
//!
//! A sink takes a batch of deliveries and says of each how it went, or that it can take none at all now. Everything else
//! (reading, order, retries, breaker, mark, dead letters) is the engine's. A sink never retries by itself.
//!
//! What keeps the promise is said by [`Commit`]:
//!
//! - `Acknowledge`: what is delivered is delivered; the engine saves its mark afterwards, so that a crash may repeat a little.
//! - `Checkpoint`: what is delivered counts once [`Sink::checkpoint`] has made it durable; the [`Position`] it gives is saved in one
//!   record with the mark, and handed back to [`SinkKind::open`], which takes away what lies beyond it. A receiver that nothing can be
//!   taken away from is told what comes only when it is known here that it may have it: [`Sink::plan`] is saved beside the mark as it
//!   was, before `checkpoint` hands anything over.
//! - `Transaction`: the sink writes [`Batch::mark_after`] in the same transaction as the data, and [`SinkKind::open`] reads it back.
//!   A mark counts its transactions. One that counts more than the engine knows of was committed without an answer, one that counts
//!   less belongs to a receiver that was set back: both win over the engine's own record. So a `deliver` that answers `Ok` has
//!   committed the mark after its outcomes, whatever these are.
//!
//! After an [`Unavailable`] from `checkpoint`, `committed`, or from `deliver` of a sink that is not `Acknowledge`, nothing since the
//! last durable mark is believed: the engine drops the sink, goes back to that mark, and opens it again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::event::{Delivery, Seq};
use crate::render::{Escape, Guard, Template};

/// How one delivery went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; never sent again.
    Delivered,
    /// Nothing of it is wanted: its transform said so, or the sink has no use for it. Never sent, and no failure.
    Skipped,
    /// This event may work later; an attempt is counted.
    Retry {
        /// Why.
        reason: Reason,
        /// The earliest moment the receiver wants it again (`retry-after`), from now.
        after: Option<Duration>,
    },
    /// The sink has taken others of the batch, and can't take this one now, whichever event it is: no attempt is counted, and the whole
    /// sink waits, as with an [`Unavailable`] of which there would have been nothing to tell but that.
    Waits(Unavailable),
    /// It was not come to, for no fault of its own, while others of the batch had their answers: it goes next, and no attempt is counted.
    Untried {
        /// Why.
        reason: Reason,
    },
    /// This event will never work: a dead letter.
    Reject {
        /// Why.
        reason: Reason,
    },
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Outcome {
        Outcome::Reject { reason }
    }
}

impl From<String> for Outcome {
    fn from(text: String) -> Outcome {
        Reason::from(text).into()
    }
}

/// Why an event was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reason {
    /// One sentence for people, and for logs: never holds a secret, a body, or what the receiver said.
    pub text: String,
    /// What the receiver itself said, up to 2 KiB that no terminal minds; `None` where it said nothing. It may quote the event, so it
    /// is kept with the dead letter, and not logged.
    pub answer: Option<String>,
}

impl From<String> for Reason {
    fn from(text: String) -> Reason {
        Reason { text, answer: None }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        text.to_owned().into()
    }
}

impl std::fmt::Display for Reason {
    /// The sentence alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The sink can take nothing now, whichever event it is: no connection, an expired token, 429, a full disk. No event's attempt is
/// counted, and the whole sink waits (decision 33).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{said}")]
pub struct Unavailable {
    /// One sentence for people, with what to do; never holds a secret or a body.
    pub reason: String,
    /// What the receiver itself says of that, as the end of that sentence; empty where it says nothing. It is for logs and status, and
    /// another one each time perhaps: what is told apart by its reason is so without it.
    pub said: String,
    /// The earliest moment to try again (`retry-after`), from now; `None`: the engine's back-off.
    pub after: Option<Duration>,
}

impl Unavailable {
    /// Without a wish for when to come again.
    pub fn new(reason: impl Into<String>) -> Unavailable {
        Unavailable {
            reason: reason.into(),
            said: String::new(),
            after: None,
        }
    }
}

/// What a sink of the kind [`Commit::Checkpoint`] wants remembered with the mark (the file sink's synced length). Opaque to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub serde_json::Value);

/// How far a sink is, as a receiver keeps it: the engine's own text, which only the engine reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The epoch of the log it was made in. One of another epoch never moves a position (decision 35).
    pub epoch: String,
    /// Everything up to here is finished: for people who look at the receiver.
    pub seq: Seq,
    /// The whole mark.
    pub text: String,
}

/// How a kind of sink secures what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Each answer stands for itself.
    Acknowledge,
    /// What was delivered is durable after the next checkpoint. Driven one call at a time.
    Checkpoint,
    /// The receiver keeps the mark with the data. Driven one call at a time.
    Transaction,
}

/// How much goes into one [`Sink::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Events at the most.
    pub events: usize,
    /// Bytes of bodies, roughly: no further event joins a batch that has so many.
    pub bytes: usize,
    /// How long a batch that is not full waits for more, counted from when its first event came. While a wait is long the engine keeps
    /// no bodies: it reads them again.
    pub wait: Duration,
}

/// How a kind of sink wants to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drive {
    /// What goes into one call.
    pub batch: Limits,
    /// Calls at a time; the default of `concurrency`. 1 unless `commit` is `Acknowledge`.
    pub concurrency: usize,
    /// What its answers mean.
    pub commit: Commit,
}

/// How much a sink of the kind [`Commit::Checkpoint`] gathers before it is told to make it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// Events at the most, roughly: a call that begins below it is not cut.
    pub events: usize,
    /// Bytes of their bodies, as roughly.
    pub bytes: usize,
    /// How long the first of them waits at the most.
    pub wait: Duration,
}

/// Equal fingerprints are equal sinks: a reload reopens only what changed. Holds secrets; shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint(pub String);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprint")
    }
}

/// What a sink is told when it is opened.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The sink's name.
    pub name: String,
    /// How long one delivery may take, and so each exchange with the receiver.
    pub timeout: Duration,
    /// Which log this is; with the name it tells a receiver whose mark is whose.
    pub log_id: String,
    /// Its epoch; a position or mark of another one must not be used to take anything away.
    pub epoch: String,
    /// The position saved with the mark; `None` on the first start.
    pub position: Option<Position>,
    /// Hears what the receiver answered to each delivery, one line each (`204 No Content`), where somebody watches and the kind of
    /// sink has answers; `None`: nobody does.
    pub answers: Option<tokio::sync::mpsc::UnboundedSender<String>>,
    /// Renders templates over several events, for a sink that makes one message of them; `None`: nothing is delivered here.
    pub renderer: Option<Guard>,
    /// Nothing may go before an event that waits (`order = "strict"`): a sink that answers for each event of a batch has to stop there.
    pub is_strict: bool,
    /// The oldest event that the log has and its newest, so that a sink knows what can't come again; `None`: that is not known.
    pub kept: Option<(Seq, Seq)>,
}

/// An opened sink.
pub struct Opened {
    /// To deliver to.
    pub sink: Box<dyn Sink>,
    /// The mark that the receiver keeps, for [`Commit::Transaction`]; `None` where there is none yet, and for the other kinds.
    pub mark: Option<Mark>,
    /// Where it stands after opening, for [`Commit::Checkpoint`]; saved before the first delivery. `None` for the other kinds.
    pub position: Option<Position>,
}

/// Deliveries that travel together.
pub struct Batch<'a> {
    deliveries: &'a [Delivery],
    mark_after: &'a (dyn Fn(&[Outcome]) -> Mark + Send + Sync),
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seqs: BTreeSet<u64> = self.deliveries.iter().map(|delivery| delivery.event.seq.0).collect();
        f.debug_tuple("Batch").field(&seqs).finish()
    }
}

impl<'a> Batch<'a> {
    /// A batch, and how its outcomes move the mark.
    pub fn new(deliveries: &'a [Delivery], mark_after: &'a (dyn Fn(&[Outcome]) -> Mark + Send + Sync)) -> Batch<'a> {
        Batch { deliveries, mark_after }
    }

    /// In Seq order, as far as their lane goes.
    pub fn deliveries(&self) -> &'a [Delivery] {
        self.deliveries
    }

    /// The mark that holds once these outcomes (one for each delivery) are committed. Only delivered events are passed by it:
    /// skipped ones count as such, and rejected ones have to become dead letters first, so they come again if the process ends in between.
    pub fn mark_after(&self, outcomes: &[Outcome]) -> Mark {
        (self.mark_after)(outcomes)
    }
}

/// Hides secrets in what was said back.
pub type Hider = Box<dyn Fn(&str) -> String + Send + Sync>;

/// A configured sink, as the registry parsed it: knows how to open it.
#[async_trait]
pub trait SinkKind: std::fmt::Debug + Send + Sync + 'static {
    /// How it wants to be driven.
    fn drive(&self) -> Drive;

    /// What is done to values in a template that makes this sink's payload (`template` of the sink or of a rule).
    fn escape(&self) -> Escape {
        Escape::None
    }

    /// Events a second at the most where the configuration sets no `rate`: what the receiver itself allows. `None`: as many as come.
    fn rate(&self) -> Option<f64> {
        None
    }

    /// Whether what goes in one call may as well go in several, however long it was gathered: then one event shows whether the sink works
    /// again. By itself what is gathered for long is one message, and so is what shows that.
    fn splits(&self) -> bool {
        false
    }

    /// How much it gathers between two checkpoints, for [`Commit::Checkpoint`]; `None`: as little as costs little. Until then the mark
    /// stays behind all of it, so what a sink gathers comes again after a crash. A dead letter that is tried again does not wait.
    fn gathers(&self) -> Option<Gather> {
        None
    }

    /// Something two sinks must not share (a file's path, a table); two sinks with the same value are a configuration error.
    fn exclusive(&self) -> Option<String> {
        None
    }

    /// The file it writes, every link followed, where it writes one on this machine: it must be none that closehook lives on.
    fn writes(&self) -> Option<PathBuf> {
        None
    }

    /// What on this machine keeps it from ever working as it is configured (a secret that can't be read, a path that is no
    /// regular file), one sentence: a fault of `check` and of a reload; at a start the sink waits until it is gone. Contacts nobody,
    /// writes nothing.
    fn fault(&self) -> Option<String> {
        None
    }

    /// What works and is hardly meant, one sentence: a warning of `check` and of each start.
    fn warning(&self) -> Option<String> {
        None
    }

    /// What its promise does not hold for where a template or transform makes what it delivers, one sentence: a warning too.
    fn warning_of_programs(&self) -> Option<String> {
        None
    }

    /// What the receiver is given for a delivery: for `rules test`. Contacts nobody. By itself what was made of it, else the event object,
    /// as Close wrote it. Only asked of what [`SinkKind::preview`] does not refuse.
    fn payload(&self, delivery: &Delivery) -> Bytes {
        if let Some(payload) = delivery.payload() {
            return payload.bytes().clone();
        }
        Bytes::copy_from_slice(delivery.event.object().raw().as_bytes())
    }

    /// What the sink of this name would send for a delivery, for `render`, with nothing of the moment in it; an error is what would
    /// become of it instead, whatever the receiver says. Contacts nobody. By itself the payload alone. A sink that sends anything beside
    /// it shows that too, but for secrets, and makes it as [`Sink::deliver`] does.
    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        Ok(Preview {
            body: Some(self.payload(delivery)),
            ..Preview::default()
        })
    }

    /// What a sink that makes one message of several deliveries has rendered over them, by the names of its keys: for `render`.
    /// `None`: it makes a message of each.
    fn gathered<'a>(
        &'a self,
        _sink: &'a str,
        _renderer: &'a Guard,
        _deliveries: &'a [Delivery],
    ) -> Option<BoxFuture<'a, Result<BTreeMap<String, String>, Outcome>>> {
        None
    }

    /// Its keys that are templates, each under the name by which [`Delivery::text`] gives what was made of it (`subject`,
    /// `headers.x-team`). Those that are constant may be among them.
    fn templates(&self) -> Vec<(String, Template)> {
        Vec::new()
    }

    /// What hides the secrets it is configured with now, for what was said back and kept when they were none yet, or by a closehook
    /// that hid none; `None`: nothing that is said back is kept of it. May read files.
    fn hider(&self) -> Option<Hider> {
        None
    }

    /// What a reload compares: equal as long as configuration, and the files that it names, are.
    fn fingerprint(&self) -> Fingerprint;

    /// Opens it: contacts the receiver where it has to. The engine tries again when it can't be opened.
    async fn open(&self, context: Context) -> Result<Opened, Unavailable>;

    /// Looks whether it could be opened and delivered to, for `check --probe`. Delivers and writes nothing. One sentence.
    async fn probe(&self, context: Context) -> Result<String, Unavailable>;
}

/// What would be sent for a delivery, for people: `closehook render`. No secret is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Headers, attributes, fields or variables.
    pub headers: BTreeMap<String, String>,
    /// The body; `None` where there is none beside a row.
    pub body: Option<Bytes>,
    /// The row's columns, as a JSON object.
    pub row: Option<String>,
    /// The routing or partition key, or the group.
    pub key: Option<String>,
    /// The subject or topic, or wherever else it goes.
    pub subject: Option<String>,
}

impl Preview {
    /// Of what has a body and something beside it.
    pub fn new<N: Into<String>>(headers: impl IntoIterator<Item = (N, String)>, body: Bytes) -> Preview {
        let headers = headers.into_iter();
        Preview {
            headers: headers.map(|(name, value)| (name.into(), value)).collect(),
            body: Some(body),
            ..Preview::default()
        }
    }
}

/// An opened sink.
///
/// One call of [`Sink::deliver`] at a time per unit of the sink's `concurrency`. [`Sink::checkpoint`] and [`Sink::committed`] are
/// never called while a delivery runs, and no call overlaps another of a sink that is not [`Commit::Acknowledge`].
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Delivers each event of the batch; one outcome for each, in order. Has a deadline: a call that overstays is dropped, and a
    /// sink that is not `Acknowledge` is opened anew. So whatever blocks (a pipe, a dead mount) must not keep this from being dropped,
    /// and what a dropped call still does later must be harmless to the sink that is opened next.
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable>;

    /// What [`Sink::checkpoint`] is about to hand over, for a receiver from which nothing can be taken back: saved with the mark as it
    /// was before, and given to [`SinkKind::open`] after a crash in between. Called right before each `checkpoint`; contacts nobody.
    async fn plan(&self) -> Result<Option<Position>, Unavailable> {
        Ok(None)
    }

    /// Makes everything delivered so far durable and says what to remember with the mark. Called before a mark is saved.
    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        Ok(None)
    }

    /// How many exchanges with the receiver [`Sink::checkpoint`] is, one after the other, at the most: the engine gives each its time.
    fn exchanges(&self) -> u32 {
        1
    }

    /// Whether what it gathered has to be handed over now, however little of [`SinkKind::gathers`] that is. Asked after a delivery.
    fn is_full(&self) -> bool {
        false
    }

    /// Mark and position are durable now. The sink may move on (rotate, reopen); the position it returns is made durable before
    /// the next delivery.
    async fn committed(&self) -> Result<Option<Position>, Unavailable> {
        Ok(None)
    }
}

impl std::fmt::Debug for dyn Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("mark", &self.mark)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// All that a sink of the kind [`Commit::Acknowledge`] gives.
impl From<Box<dyn Sink>> for Opened {
    fn from(sink: Box<dyn Sink>) -> Opened {
        Opened {
            sink,
            mark: None,
            position: None,
        }
    }
}
