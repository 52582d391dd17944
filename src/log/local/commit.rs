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

use super::block::{self, Encoder, Head, Records};
use super::journal::{self, Journal, Newest, OpenSegment};
use super::known::Identity;
use super::options::{SEGMENT_EVENTS_MAX, SEGMENTS_IN_ROOM};
use super::pending::{Answered, Pending, Replies, Undecided};
use super::shared::{Segment, Shared};
use super::space;
use crate::event::{Kind, Seq};
use crate::files;
use crate::framefile::FrameError;
use crate::log::{AppendError, Appended};
use crate::sync::{lock, read_lock, write_lock};
use crate::telemetry;
use crate::telemetry::paced::Paced;

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

/// Events that share one commit; boxed, as they travel through a channel where size counts.
type Group = Vec<Box<Pending>>;

/// A group, sorted.
struct Sorted {
    fresh: Group,
    /// What repeats one of the fresh ones, with its place there.
    repeated: Vec<(Box<Pending>, usize)>,
    answers: Vec<Answered>,
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
    said: Paced,
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
            encoder: journal::encoder()?,
            events: newest.events,
            raw_bytes: newest.raw_bytes,
            began: newest.began,
            is_unsure: false,
            must_roll: false,
            replies,
            doubts,
            last_group: 0,
            said: Paced::default(),
        })
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
        self.encoder = journal::encoder().map_err(|error| failing(&error))?;
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
            if self.said.is_news(&error.to_string()) {
                tracing::warn!(%error, "the journal could not be prepared for what comes");
            }
        }
        requests.recv_timeout(TICK)
    }

    fn tick(&mut self) {
        let trouble = read_lock(&self.shared.trouble).clone();
        if trouble.is_some() {
            self.heal();
        } else if (self.shared.seems_full.load(Ordering::Relaxed) || held_until(&self.shared).is_some())
            && let Err(trouble) = may_store(&self.shared)
        {
            self.shared.set_trouble(Some(trouble));
        }
        self.roll_logged(false);
    }

    /// Looks whether events could be stored again.
    fn heal(&mut self) {
        let healed = self.make_sure().and_then(|()| may_store(&self.shared));
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
        may_store(&self.shared)?;
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

    fn skip_to(&mut self, seq: Seq) -> Result<(), AppendError> {
        if seq <= self.next {
            return Ok(());
        }
        if seq.0 > u64::MAX - SEGMENT_EVENTS_MAX {
            return Err(AppendError::Failing(format!(
                "there are no Seqs left behind event {}: no log has given it out",
                seq.prev()
            )));
        }
        self.make_sure()?;
        self.shared
            .gaps
            .record(
                self.next,
                seq.prev(),
                "sinks had already seen these Seqs, so they can't be given out again",
            )
            .map_err(|source| classify(&self.shared.gaps.failed(source)))?;
        // On record they are never given out. Where no segment can begin there now, one does with the next event.
        self.next = seq;
        drop(self.start_segment());
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
        // Else nobody would know after a crash which Seqs before it were never given out.
        let settled = self.shared.gaps.settle();
        settled.map_err(|source| classify(&self.shared.gaps.failed(source)))?;
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

/// Up to where the log has to go on before anything is stored; `None` where it has.
fn held_until(shared: &Shared) -> Option<Seq> {
    let until = Seq(shared.held_until.load(Ordering::Relaxed));
    (until > *shared.head.borrow()).then_some(until)
}

/// Why no event can be stored now. Asks the disk.
fn may_store(shared: &Shared) -> Result<(), AppendError> {
    check_space(shared)?;
    match held_until(shared) {
        None => Ok(()),
        Some(until) => Err(AppendError::Failing(format!(
            "sinks have seen events up to {until}, which the log has lost, and it could not go on behind them yet: their Seqs must not be given \
             out again"
        ))),
    }
}

/// Why no event can be stored where there is no room for it. Asks the disk.
pub(super) fn check_space(shared: &Shared) -> Result<(), AppendError> {
    let options = &shared.options;
    if shared.left() == 0 {
        return Err(AppendError::Full(format!(
            "the data directory {} is at log.max_size: the event log has grown to {} and known keys to {}, and {} are theirs \
             until old events may go",
            options.dir.display(),
            crate::config::Size(shared.segment_bytes() + shared.reserved_bytes()),
            crate::config::Size(shared.key_bytes()),
            crate::config::Size(shared.room.load(Ordering::Relaxed)),
        )));
    }
    if let Some(why) = lock(&shared.owed).holds_back() {
        return Err(AppendError::Full(why));
    }
    let space = space::of(&options.dir).map_err(|error| failing(&error))?;
    let reserve = options.reserve.unwrap_or_else(|| space::default_reserve(space));
    if space.free < reserve {
        return Err(AppendError::Full(format!(
            "the disk is full: {} of {} are free on the file system of {}, and {} are kept in reserve",
            crate::config::Size(space.free),
            crate::config::Size(space.total),
            options.dir.display(),
            crate::config::Size(reserve),
        )));
    }
    Ok(())
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
    match error {
        FrameError::Io { source, .. } if files::is_full(source) => {
            AppendError::Full(format!("the disk is full: {error}"))
        }
        _ => AppendError::Failing(error.to_string()),
    }
}
