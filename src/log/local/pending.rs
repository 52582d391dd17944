//! An event on its way into the log: what it is, how it is told whether it is known, and how its answer gets back.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::block::Record;
use super::known::{Answer, Identity, Recalled};
use super::shared::Shared;
use crate::event::{Kind, Seq, View};
use crate::log::{AppendError, Appended, Incoming};
use crate::task;

/// An event that is ready to be queued.
#[derive(Debug)]
pub(super) struct Prepared {
    incoming: Incoming,
    pub identity: Identity,
    /// See [`Pending::full`].
    pub full: Option<Identity>,
    kind: Kind,
    /// See [`Pending::in_order`].
    pub in_order: bool,
    /// See [`Pending::looked_up`].
    pub looked_up: Option<Answer>,
}

impl Prepared {
    /// Works out what it is, where many can do so at a time.
    pub fn new(mut incoming: Incoming) -> Prepared {
        incoming.received_at =
            Timestamp::from_microsecond(incoming.received_at.as_microsecond()).unwrap_or(incoming.received_at);
        // Nothing else is read in the view: it goes at once, while its memory is at hand for the next one.
        let (kind, identity, full) = match incoming.view.take().as_ref().map(View::key) {
            None => (Kind::Quarantined, Identity::of_quarantined(&incoming.body), None),
            Some(key) if incoming.partial => (
                Kind::Partial,
                Identity::of_partial(&key),
                Some(Identity::of_event(&key)),
            ),
            Some(key) => (Kind::Event, Identity::of_event(&key), None),
        };
        Prepared {
            incoming,
            identity,
            full,
            kind,
            in_order: false,
            looked_up: None,
        }
    }

    /// With the way back to whoever waits, and its place in the queue.
    pub fn into_pending(
        self,
        reply: oneshot::Sender<Result<Appended, AppendError>>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Pending {
        Pending {
            incoming: self.incoming,
            identity: self.identity,
            full: self.full,
            kind: self.kind,
            in_order: self.in_order,
            looked_up: self.looked_up,
            reply,
            _permit: permit,
        }
    }
}

/// An event waiting to be stored.
#[derive(Debug)]
pub(super) struct Pending {
    pub incoming: Incoming,
    pub identity: Identity,
    /// Of a partial event: the identity of the full one, which makes it superfluous.
    pub full: Option<Identity>,
    pub kind: Kind,
    /// One of several that get their Seqs in order: it can't be set aside while the disk is asked about it.
    pub in_order: bool,
    /// What the disk said of it before.
    pub looked_up: Option<Answer>,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// Its place in the bounded queue, free again when this is dropped.
    pub _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Pending {
    /// As it is written. What it borrows is dropped by the threads that made it: freeing memory of another thread costs both of
    /// them.
    pub fn record(&self, seq: Seq) -> Record<'_> {
        let incoming = &self.incoming;
        Record {
            seq,
            received_at: incoming.received_at,
            source: incoming.source,
            kind: self.kind,
            held: incoming.held,
            signature: incoming.signature.as_ref(),
            identity: self.identity.as_bytes(),
            body: &incoming.body,
        }
    }

    /// The Seq under which it is known, or `None` if it is new; an error where only the disk tells.
    pub fn judge(&self, shared: &Shared) -> Result<Option<Seq>, Undecided> {
        let units = match shared.recall(&self.identity, self.full.as_ref()) {
            Recalled::Known(seq) => return Ok(Some(seq)),
            Recalled::New => return Ok(None),
            Recalled::Doubtful(units) => units,
        };
        match &self.looked_up {
            Some(Answer { seq: Some(seq), .. }) if !shared.gaps.holds(*seq) => Ok(Some(*seq)),
            // Nothing that may hold it has come since.
            Some(Answer { seq: None, asked })
                if units
                    .iter()
                    .all(|unit| asked.iter().any(|asked| Arc::ptr_eq(asked, unit))) =>
            {
                Ok(None)
            }
            _ => Err(Undecided),
        }
    }

    /// What memory and disk say of it. Blocking.
    pub fn look_up(&self, shared: &Shared) -> Result<Answer, AppendError> {
        let answer = shared.look_up(&self.identity, self.full.as_ref());
        answer.map_err(|error| AppendError::Failing(format!("the known keys can't be read: {error}")))
    }

    /// What it is answered when it is known under this Seq.
    pub fn duplicate_of(&self, seq: Seq) -> Appended {
        match self.kind {
            Kind::Quarantined => Appended::Quarantined { seq, repeated: true },
            _ => Appended::Duplicate(seq),
        }
    }
}

/// Only the disk tells whether an event is known.
pub(super) struct Undecided;

/// An event with its answer.
pub(super) type Answered = (Box<Pending>, Result<Appended, AppendError>);

/// The way back to those who wait. A whole group's answers cross into the runtime as one message and are told to the waiting
/// tasks from inside it: waking each of them from this thread costs a system call or two an event.
#[derive(Debug, Clone)]
pub(super) struct Replies {
    /// Never more than the queue has places. `None` without a runtime.
    to_runtime: Option<tokio::sync::mpsc::UnboundedSender<Vec<Answered>>>,
}

impl Replies {
    /// Answers through the runtime this is called in, if there is one.
    pub fn new() -> Replies {
        let to_runtime = tokio::runtime::Handle::try_current().ok().map(|runtime| {
            let (sender, mut groups) = tokio::sync::mpsc::unbounded_channel::<Vec<Answered>>();
            task::begin_on(&runtime, async move {
                while let Some(answers) = groups.recv().await {
                    Replies::tell(answers);
                }
            });
            sender
        });
        Replies { to_runtime }
    }

    /// Tells each what became of it.
    pub fn send(&self, answers: Vec<Answered>) {
        let Some(to_runtime) = &self.to_runtime else {
            return Replies::tell(answers);
        };
        // A runtime that has ended has nobody left who waits.
        let _ = to_runtime.send(answers);
    }

    fn tell(answers: Vec<Answered>) {
        for (pending, answer) in answers {
            // Whoever has gone is told nothing.
            let _ = pending.reply.send(answer);
        }
    }
}
