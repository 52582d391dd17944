//! The commit loop: one thread that turns whatever is waiting into one block, writes it once, syncs it once, and answers
//! everybody. What it answers `Stored` is durable (invariant I1); what it has seen before it answers `Duplicate` (I2).
//!
//! It decides by memory alone. An event of which memory can't say whether it is known goes to the thread that asks the disk
//! (`lookup`), and comes back with what that said; so no disk but the journal's ever holds up what is new. Only where several
//! events get their Seqs in order, and keys have moved between asking and deciding, does it ask the disk itself.
//!
//! After a failure nothing is assumed: a failed write is cut off again, after a failed sync the whole file is abandoned for a
//! new segment, and either way the senders are told to come again. It never gives up: each group, and each idle tick, tries
//! anew, so a disk that has room again heals by itself.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::block::{self, Encoder, Head, Record, Records};
use super::journal::{Journal, OpenSegment};
use super::known::{Answer, Identity, Recalled};
use super::options::SEGMENTS_IN_ROOM;
use super::recovery::Newest;
use super::shared::{Segment, Shared};
use super::{AppendError, Appended, Incoming, space};
use crate::event::{Kind, Seq, View};
use crate::framefile::FrameError;
use crate::sync::{lock, read_lock, write_lock};
use crate::telemetry;

/// Events in one group commit at the most.
const GROUP_EVENTS_MAX: usize = 1024;

/// Bytes of bodies in one group commit, roughly: no further event joins a group that has this much.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// After a commit of so many events the next ones are on their way at this moment.
const CROWD: usize = 4;

/// How often the loop turns when nothing arrives.
const TICK: Duration = Duration::from_millis(500);

/// After a panic the loop rests, but not so long that the watchdog takes it for dead.
const REST_AFTER_PANIC: Duration = Duration::from_millis(50);

/// zstd level of journal blocks: on the way to the 200, speed is all.
const JOURNAL_LEVEL: i32 = 1;

/// Events in one segment at the most: bounds the memory that the keys of an unsealed segment take (about 60 bytes each).
pub(super) const SEGMENT_EVENTS_MAX: u64 = 250_000;

/// What the commit loop is asked.
pub(super) enum Request {
    /// Store this.
    Append(Box<Pending>),
    /// Leave out Seqs: the next event gets this one or a later one.
    SkipTo(Seq, oneshot::Sender<Result<(), AppendError>>),
    /// Complete the current segment now, if it holds anything.
    Roll(oneshot::Sender<Result<(), AppendError>>),
    /// Stop.
    Close,
}

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
    fn record(&self, seq: Seq) -> Record<'_> {
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
    fn judge(&self, shared: &Shared) -> Result<Option<Seq>, Undecided> {
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
struct Undecided;

/// Events that share one commit; boxed, as they travel through a channel where size counts.
type Group = Vec<Box<Pending>>;

/// An event with its answer.
pub(super) type Answered = (Box<Pending>, Result<Appended, AppendError>);

/// A group, sorted.
struct Sorted {
    fresh: Group,
    /// What repeats one of the fresh ones, with its place there.
    repeated: Vec<(Box<Pending>, usize)>,
    answers: Vec<Answered>,
}

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
            runtime.spawn(async move {
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

/// The commit loop's own state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    segment: Arc<OpenSegment>,
    next: Seq,
    encoder: Encoder,
    /// Events and bytes before compression in the current segment.
    events: u64,
    raw_bytes: u64,
    /// When the current segment got its first event.
    began: Option<Timestamp>,
    /// The loop panicked: what it was at may be half done.
    is_unsure: bool,
    /// A new segment was begun and could not be finished. Its directory may be on disk, and recovery takes what the old
    /// journal holds from there on for leftovers, so nothing more goes into the old one.
    must_roll: bool,
    replies: Replies,
    /// Where the disk is asked about events that may be known.
    doubts: SyncSender<Box<Pending>>,
    /// Events in the last commit.
    last_group: usize,
}

impl Committer {
    /// A loop that goes on where the log ends.
    pub fn new(
        shared: Arc<Shared>,
        newest: Newest,
        replies: Replies,
        doubts: SyncSender<Box<Pending>>,
    ) -> io::Result<Committer> {
        let next = shared.head.borrow().next();
        Ok(Committer {
            next,
            shared,
            journal: newest.journal,
            segment: newest.segment,
            encoder: Committer::encoder()?,
            events: newest.events,
            raw_bytes: newest.raw_bytes,
            began: newest.began,
            is_unsure: false,
            must_roll: false,
            replies,
            doubts,
            last_group: 0,
        })
    }

    /// The encoder of journal blocks.
    pub fn encoder() -> io::Result<Encoder> {
        Encoder::new(JOURNAL_LEVEL)
    }

    /// Runs until told to stop or until nobody can ask any more, whatever happens in between.
    pub fn run(mut self, requests: &Receiver<Request>) {
        while catch_unwind(AssertUnwindSafe(|| self.go_on(requests))).is_err() {
            telemetry::restarted(
                "commit",
                "the thread that stores events panicked, which is a defect; it starts again with a new segment",
                REST_AFTER_PANIC,
            );
            self.is_unsure = true;
            self.must_roll = true;
            // One that comes at once again must not take the machine.
            std::thread::sleep(REST_AFTER_PANIC);
        }
    }

    fn go_on(&mut self, requests: &Receiver<Request>) {
        let mut group = Vec::new();
        loop {
            self.shared.turned();
            let mut request = match self.next_request(requests) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) if self.shared.is_closing() => None,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => None,
            };
            if request.is_none() {
                self.journal.trim(&self.segment);
                return;
            }
            let mut bytes = 0;
            let mut other = None;
            while let Some(current) = request {
                match current {
                    Request::Append(pending) => {
                        bytes += pending.incoming.body.len();
                        group.push(pending);
                    }
                    not_append => {
                        other = Some(not_append);
                        break;
                    }
                }
                let full = group.len() >= GROUP_EVENTS_MAX || bytes >= GROUP_BYTES_MAX;
                request = if full { None } else { requests.try_recv().ok() };
            }
            self.last_group = group.len();
            if !group.is_empty() {
                self.commit(std::mem::take(&mut group));
            }
            match other {
                None | Some(Request::Append(_)) => {}
                Some(Request::SkipTo(seq, reply)) => drop(reply.send(self.skip_to(seq))),
                Some(Request::Roll(reply)) => drop(reply.send(self.roll_if(true))),
                Some(Request::Close) => {
                    self.journal.trim(&self.segment);
                    return;
                }
            }
            self.roll_logged(false);
        }
    }

    /// Makes sure after a panic of what the log holds: what got into the journal durably is stored, though nobody was told so; its
    /// keys must be known, and its Seqs never be given out again. Everything else goes into a new segment.
    fn make_sure(&mut self) -> Result<(), AppendError> {
        if !self.is_unsure {
            return Ok(());
        }
        self.encoder = Committer::encoder().map_err(|error| failing(&error))?;
        for block in self.segment.blocks() {
            if block.head.last() < self.next {
                continue;
            }
            let bytes = self.segment.read(block);
            let bytes = bytes.map_err(|error| AppendError::Failing(error.to_string()))?;
            let mut known = write_lock(&self.shared.known);
            let table = known.table(self.segment.first);
            block::for_each(&bytes, |event, identity| {
                table.insert(&identity, event.seq, event.received_at);
            })
            .map_err(|error| AppendError::Failing(error.to_string()))?;
            self.next = block.head.last().next();
        }
        self.is_unsure = false;
        if self.next.prev() > *self.shared.head.borrow() {
            self.shared.head.send_replace(self.next.prev());
        }
        Ok(())
    }

    /// Waits for what to do next. On a quiet day there is time before it to make room for what comes.
    fn next_request(&mut self, requests: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        if let Ok(request) = requests.try_recv() {
            return Ok(request);
        }
        if self.last_group < CROWD
            && self.shared.left() > 0
            && let Err(error) = self.journal.top_up(&self.segment)
        {
            // The next commit begins a new segment.
            tracing::warn!(%error, "the journal could not be prepared for what comes");
        }
        requests.recv_timeout(TICK)
    }

    fn tick(&mut self) {
        let trouble = read_lock(&self.shared.trouble).clone();
        if trouble.is_some() {
            self.heal();
        }
        self.roll_logged(false);
    }

    /// Looks whether events could be stored again.
    fn heal(&mut self) {
        let healed = self.make_sure().and_then(|()| self.check_space());
        let healed = healed.and_then(|()| if self.must_roll() { self.start_segment() } else { Ok(()) });
        if healed.is_ok() {
            self.shared.set_trouble(None);
        }
    }

    fn commit(&mut self, group: Group) {
        let started = Instant::now();
        if let Err(trouble) = self.make_sure() {
            self.shared.set_trouble(Some(trouble.clone()));
            let refused = group.into_iter().map(|pending| (pending, Err(trouble.clone())));
            return self.replies.send(refused.collect());
        }
        let Sorted {
            fresh,
            repeated,
            mut answers,
        } = self.sort(group);
        if fresh.is_empty() {
            self.replies.send(answers);
            return;
        }
        let bytes: usize = fresh.iter().map(|pending| pending.incoming.body.len()).sum();
        match self.store(&fresh, bytes) {
            Ok(first) => {
                self.shared.set_trouble(None);
                telemetry::committed(fresh.len(), bytes, started.elapsed());
                for (pending, place) in repeated {
                    let answer = pending.duplicate_of(Seq(first.0 + place as u64));
                    answers.push((pending, Ok(answer)));
                }
                for (index, pending) in fresh.into_iter().enumerate() {
                    let seq = Seq(first.0 + index as u64);
                    let answer = match pending.kind {
                        Kind::Quarantined => Appended::Quarantined { seq, repeated: false },
                        _ => Appended::Stored(seq),
                    };
                    answers.push((pending, Ok(answer)));
                }
            }
            Err(trouble) => {
                self.shared.set_trouble(Some(trouble.clone()));
                let refused = fresh
                    .into_iter()
                    .chain(repeated.into_iter().map(|(pending, _)| pending));
                answers.extend(refused.map(|pending| (pending, Err(trouble.clone()))));
            }
        }
        self.replies.send(answers);
    }

    /// Tells what is new in a group from what is known.
    fn sort(&self, group: Group) -> Sorted {
        let mut sorted = Sorted {
            fresh: Vec::with_capacity(group.len()),
            repeated: Vec::new(),
            answers: Vec::with_capacity(group.len()),
        };
        let mut places: HashMap<Identity, usize> = HashMap::with_capacity(group.len());
        for pending in group {
            let in_group = places.get(&pending.identity);
            let in_group = in_group.or_else(|| places.get(pending.full.as_ref()?));
            if let Some(place) = in_group {
                sorted.repeated.push((pending, *place));
                continue;
            }
            let judged = match pending.judge(&self.shared) {
                Err(Undecided) if pending.in_order => pending.look_up(&self.shared).map(|answer| answer.seq),
                Err(Undecided) => {
                    sorted.answers.extend(self.set_aside(pending));
                    continue;
                }
                Ok(judged) => Ok(judged),
            };
            match judged {
                Ok(Some(seq)) => {
                    let answer = pending.duplicate_of(seq);
                    sorted.answers.push((pending, Ok(answer)));
                }
                Ok(None) => {
                    places.insert(pending.identity.clone(), sorted.fresh.len());
                    sorted.fresh.push(pending);
                }
                Err(error) => sorted.answers.push((pending, Err(error))),
            }
        }
        sorted
    }

    /// Has the disk asked about an event, which comes back when it has answered; gives it back with an answer where too many wait for
    /// that already.
    fn set_aside(&self, pending: Box<Pending>) -> Option<Answered> {
        let (pending, error) = match self.doubts.try_send(pending) {
            Ok(()) => return None,
            Err(TrySendError::Full(pending)) => (pending, AppendError::Overloaded),
            Err(TrySendError::Disconnected(pending)) => (pending, AppendError::Closed),
        };
        Some((pending, Err(error)))
    }

    /// Writes one block durably and shows it to readers; gives the Seq of its first event.
    fn store(&mut self, fresh: &[Box<Pending>], body_bytes: usize) -> Result<Seq, AppendError> {
        self.check_space()?;
        if self.must_roll() {
            self.start_segment()?;
        }
        self.journal
            .make_room(self.shared.options.segment_size, self.shared.left());
        let first = self.next;
        self.encoder.reserve(fresh.len(), body_bytes);
        for (seq, pending) in seqs_from(first).zip(fresh) {
            self.encoder.push_record(&pending.record(seq));
        }
        let raw_len = self.encoder.raw_len() as u64;
        let (bytes, records) = self.encoder.finish_with_records().map_err(|error| failing(&error))?;
        let head = Head::parse(bytes).map_err(|error| AppendError::Failing(error.to_string()))?;
        let offset = self.journal.append(bytes).map_err(|error| classify(&error))?;

        // Durable from here on. Readers may see the events a moment before their keys are known, but only this thread decides
        // what is a duplicate.
        self.journal
            .commit(&self.segment, offset, head)
            .map_err(|error| classify(&error))?;
        self.began.get_or_insert_with(|| self.shared.options.now.now());
        {
            let mut known = write_lock(&self.shared.known);
            let table = known.table(self.segment.first);
            for (seq, pending) in seqs_from(first).zip(fresh) {
                table.insert(&pending.identity, seq, pending.incoming.received_at);
            }
        }
        lock(&self.shared.cache).put_records(first, Records::new(head, records));
        self.next = head.last().next();
        self.events += u64::from(head.count);
        self.raw_bytes += raw_len;
        self.shared.head.send_replace(head.last());
        Ok(first)
    }

    fn check_space(&self) -> Result<(), AppendError> {
        let options = &self.shared.options;
        if self.shared.left() == 0 {
            return Err(AppendError::Full(format!(
                "the data directory {} is at log.max_size: the event log has grown to {} and known keys to {}, and {} are theirs \
                 until old events may go",
                options.dir.display(),
                crate::config::Size(self.shared.segment_bytes()),
                crate::config::Size(self.shared.key_bytes()),
                crate::config::Size(self.shared.room.load(Ordering::Relaxed)),
            )));
        }
        let space = space::of(&options.dir).map_err(|error| failing(&error))?;
        let reserve = options.reserve.unwrap_or_else(|| space::default_reserve(space));
        if space.free < reserve {
            return Err(AppendError::Full(format!(
                "{} of {} are free on the file system of {}, and {} are kept in reserve",
                crate::config::Size(space.free),
                crate::config::Size(space.total),
                options.dir.display(),
                crate::config::Size(reserve),
            )));
        }
        Ok(())
    }

    fn skip_to(&mut self, seq: Seq) -> Result<(), AppendError> {
        if seq <= self.next {
            return Ok(());
        }
        self.make_sure()?;
        let lost_from = self.next;
        self.next = seq;
        self.shared
            .gaps
            .record(
                lost_from,
                seq.prev(),
                "sinks had already seen these Seqs, so they can't be given out again",
            )
            .map_err(|error| failing(&error))?;
        self.start_segment()?;
        self.shared.head.send_replace(seq.prev());
        Ok(())
    }

    /// Begins a new segment when the current one is complete.
    fn roll_if(&mut self, at_once: bool) -> Result<(), AppendError> {
        self.make_sure()?;
        let options = &self.shared.options;
        // A beginning that far in the future is a clock that was set back.
        let age = self.began.map_or(Duration::ZERO, |began| {
            options.now.now().duration_since(began).unsigned_abs()
        });
        let part = self.shared.room.load(Ordering::Relaxed) / SEGMENTS_IN_ROOM;
        let complete = at_once
            || self.journal.len() >= part
            || self.raw_bytes >= options.segment_size
            || self.events >= SEGMENT_EVENTS_MAX
            || age >= options.segment_age;
        if self.events > 0 && complete {
            self.start_segment()
        } else {
            Ok(())
        }
    }

    fn roll_logged(&mut self, at_once: bool) {
        if let Err(error) = self.roll_if(at_once) {
            // The current segment goes on growing; the next turn tries again.
            tracing::debug!(%error, "a new segment can't be begun yet");
        }
    }

    fn must_roll(&self) -> bool {
        self.must_roll || self.journal.is_poisoned()
    }

    fn start_segment(&mut self) -> Result<(), AppendError> {
        self.must_roll = true;
        let (journal, segment) = Journal::create(&self.shared.log_dir, self.next).map_err(|error| classify(&error))?;
        self.must_roll = false;
        self.journal.trim(&self.segment);
        self.journal = journal;
        self.segment = Arc::new(segment);
        (self.events, self.raw_bytes, self.began) = (0, 0, None);
        write_lock(&self.shared.segments).insert(self.next, Segment::Open(self.segment.clone()));
        Ok(())
    }
}

/// A Seq and those behind it.
fn seqs_from(first: Seq) -> impl Iterator<Item = Seq> {
    (first.0..).map(Seq)
}

fn failing(error: &io::Error) -> AppendError {
    AppendError::Failing(error.to_string())
}

/// Whether what went wrong is a full disk.
pub(super) fn classify(error: &FrameError) -> AppendError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        FrameError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            AppendError::Full(error.to_string())
        }
        _ => AppendError::Failing(error.to_string()),
    }
}
