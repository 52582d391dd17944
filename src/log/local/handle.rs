//! The handle on a log: what its clones ask of the threads behind it, and what they read themselves.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot, watch};

use super::commit::Request;
use super::desk::Errand;
use super::fault::SegmentError;
use super::known::{self, Answer, Identity, Recalled, Unsaved};
use super::pending::Prepared;
use super::read;
use super::sealed;
use super::shared::{Segment, Shared};
use crate::event::{Event, EventKey, Seq};
use crate::log::{AppendError, Appended, Batch, ChangeError, Doomed, Erased, Incoming, Narrow, ReadError, Stats};
use crate::sync::{lock, read_lock};
use crate::task;

/// Events waiting to be committed at the most; more wait in front of the queue, within the ingress' own limits.
pub(super) const QUEUE_MAX: usize = 4096;

/// Of those, events about which the disk is asked: were it not to answer, the others must not wait for their places.
pub(super) const DOUBTS_MAX: usize = QUEUE_MAX / 2;

/// An append that has not ended by then is not waited for any more. It may still end well: then the sender's next try is a duplicate.
const APPEND_PATIENCE: Duration = Duration::from_secs(60);

/// A thread that has not ended by then is left behind when the log is closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// A segment that gives way to another form has done so by then, or never will.
const BETWEEN_FORMS: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// The log. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub struct LocalLog {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Option<Arc<Writer>>,
}

/// The threads behind a log that can be written.
#[derive(Debug)]
pub(super) struct Writer {
    pub requests: SyncSender<Request>,
    pub places: Arc<Semaphore>,
    pub threads: Mutex<Option<Threads>>,
    /// To close the keeper's desk with it.
    pub desk_of: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Threads {
    pub commit: JoinHandle<()>,
    pub keeper: JoinHandle<()>,
    pub lookup: JoinHandle<()>,
    /// Held until the threads have ended.
    pub lock: File,
}

impl LocalLog {
    /// Stores a body unless it is already known. Returns when it is on disk (fdatasync), together with whatever else was
    /// waiting: one group commit. Waits while the queue is full. A caller that stops waiting does not stop the append.
    pub async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        let appended = async { self.answered(self.submit(Prepared::new(incoming)).await?).await };
        match tokio::time::timeout(APPEND_PATIENCE, appended).await {
            Ok(appended) => appended,
            Err(_) => Err(self.overdue()),
        }
    }

    /// The answer to what was queued.
    async fn answered<T>(&self, answer: oneshot::Receiver<Result<T, AppendError>>) -> Result<T, AppendError> {
        match answer.await {
            Ok(answer) => answer,
            Err(_) if self.shared.is_closing() => Err(AppendError::Closed),
            Err(_) => Err(AppendError::Failing(
                "the thread that stores events gave up on it".into(),
            )),
        }
    }

    /// What is said when storing takes too long.
    fn overdue(&self) -> AppendError {
        AppendError::Failing(format!(
            "the disk has not answered for {} s",
            self.since_turned().max(APPEND_PATIENCE).as_secs()
        ))
    }

    /// Stores several, which share group commits and get their Seqs in this order.
    pub async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        let overdue = |_| Err(self.overdue());
        let mut prepared: Vec<Prepared> = together.into_iter().map(Prepared::new).collect();
        if let Err(error) = self.look_up_in_order(&mut prepared).await {
            return prepared.iter().map(|_| Err(error.clone())).collect();
        }
        let mut answers = Vec::with_capacity(prepared.len());
        for prepared in prepared {
            let submitted = tokio::time::timeout(APPEND_PATIENCE, self.submit(prepared)).await;
            answers.push(submitted.unwrap_or_else(overdue));
        }
        let mut appended = Vec::with_capacity(answers.len());
        for answer in answers {
            appended.push(match answer {
                Ok(answer) => {
                    let answered = tokio::time::timeout(APPEND_PATIENCE, self.answered(answer)).await;
                    answered.unwrap_or_else(|_| Err(self.overdue()))
                }
                Err(error) => Err(error),
            });
        }
        appended
    }

    /// What may be known is asked for before it is queued: none of those in order can be set aside later.
    async fn look_up_in_order(&self, prepared: &mut [Prepared]) -> Result<(), AppendError> {
        let mut doubtful = Vec::new();
        for (index, prepared) in prepared.iter_mut().enumerate() {
            prepared.in_order = true;
            let (identity, full) = (&prepared.identity, prepared.full.as_ref());
            if matches!(self.shared.recall(identity, full), Recalled::Doubtful(_)) {
                doubtful.push((index, identity.clone(), full.cloned()));
            }
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let look_up = task::begin_blocking(move || {
            let answers = doubtful
                .into_iter()
                .map(|(index, identity, full)| Ok((index, shared.look_up(&identity, full.as_ref())?)));
            answers.collect::<io::Result<Vec<(usize, Answer)>>>()
        });
        let unreadable = |why: String| AppendError::Failing(format!("the known keys can't be read: {why}"));
        let answers = tokio::time::timeout(APPEND_PATIENCE, look_up)
            .await
            .map_err(|_| self.overdue())?
            .map_err(|error| unreadable(error.to_string()))?
            .map_err(|error| unreadable(error.to_string()))?;
        for (index, answer) in answers {
            prepared[index].looked_up = Some(answer);
        }
        Ok(())
    }

    /// Queues a body to be committed behind those before it.
    async fn submit(
        &self,
        prepared: Prepared,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        let writer = self.writer.as_ref().ok_or(AppendError::Closed)?;
        let permit = writer
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let pending = prepared.into_pending(reply, permit);
        writer
            .requests
            .try_send(Request::Append(Box::new(pending)))
            .map_err(|_| AppendError::Closed)?;
        Ok(answer)
    }

    /// Whether an append would be tried now; the reason if not. For `/readyz`.
    pub fn ready(&self) -> Result<(), AppendError> {
        match (&self.writer, &*read_lock(&self.shared.trouble)) {
            (None, _) => Err(AppendError::Closed),
            (Some(writer), _) if writer.places.is_closed() => Err(AppendError::Closed),
            (Some(_), Some(trouble)) => Err(trouble.clone()),
            (Some(_), None) => Ok(()),
        }
    }

    /// How long ago the commit loop last turned; it does at least twice a second, whatever the disk says. For the watchdog.
    pub fn since_turned(&self) -> Duration {
        self.shared.since_turned()
    }

    /// The newest stored Seq ([`Seq::ZERO`] while empty); changes after each commit.
    pub fn head(&self) -> watch::Receiver<Seq> {
        self.shared.head.subscribe()
    }

    /// The oldest Seq still kept (one past the newest while empty).
    pub fn first(&self) -> Seq {
        self.shared.first()
    }

    /// Up to `max_events` events and about `max_bytes` of bodies, from `from` on. Empty at the end of the log. Blocking:
    /// decodes, and may read the disk.
    pub fn read(&self, from: Seq, max_events: usize, max_bytes: usize) -> Result<Batch, ReadError> {
        read::read(&self.shared, from, max_events, max_bytes)
    }

    /// One event; `None` where there is none (any more). Blocking.
    pub fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        read::get(&self.shared, seq)
    }

    /// The Seqs of every known revision of an event id, in order; some may have expired. Blocking.
    pub fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError> {
        known::revisions(&self.shared.known, id).map_err(|error| ReadError(error.to_string()))
    }

    /// The Seq under which this revision of an event is stored, complete; `None` where an append would store it. Blocking.
    pub fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        let answer = self.shared.look_up(&Identity::of_event(key), None);
        answer
            .map(|answer| answer.seq)
            .map_err(|error| ReadError(error.to_string()))
    }

    /// The first Seq received at or after `time`, as well as the clock allows; one past the newest if there is none.
    /// Blocking.
    pub fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        read::seq_at(&self.shared, time)
    }

    /// The newest Seq before `seq` that is kept, or may be; `None` where nothing is. Steps over what was never given out.
    pub fn last_before(&self, seq: Seq) -> Option<Seq> {
        let segments = read_lock(&self.shared.segments);
        let mut before = segments.range(..seq).rev();
        before.find_map(|(_, segment)| segment.last().map(|last| last.min(seq.prev())))
    }

    /// Random text made with the data directory; a restored backup gets a new one.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    /// Makes sure that Seqs up to `seen` are never given out again: a sink has seen them, although damage took them from
    /// the log.
    pub async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        if self.writer.is_none() {
            return self.lack_up_to(seen);
        }
        self.ask(|reply| Request::SkipTo(seen.next(), reply)).await
    }

    /// Who only looks keeps to itself what is missing at the end, and reads on to there as whoever writes the log will have it.
    fn lack_up_to(&self, seen: Seq) -> Result<(), AppendError> {
        let head = *self.shared.head.borrow();
        if seen <= head {
            return Ok(());
        }
        let why = "sinks have seen them, and the log ends before them";
        let noted = self.shared.gaps.record(head.next(), seen, why);
        noted.map_err(|error| AppendError::Failing(error.to_string()))?;
        self.shared.head.send_replace(seen);
        Ok(())
    }

    /// Completes the newest segment, so that it can be sealed.
    pub async fn roll(&self) -> Result<(), AppendError> {
        self.ask(Request::Roll).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), AppendError>>) -> Request,
    ) -> Result<(), AppendError> {
        let writer = self.writer.as_ref().ok_or(AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        writer
            .requests
            .try_send(request(reply))
            .map_err(|_| AppendError::Overloaded)?;
        match tokio::time::timeout(APPEND_PATIENCE, self.answered(answer)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.overdue()),
        }
    }

    /// Erases events: each one that `doomed` says yes to, whether it can be read as a delivery or not, is replaced by a tombstone,
    /// in the log and in every copy the log has made of it. Its Seq stays taken and its key stays known, so it is not stored
    /// again. Rewrites whole segments; readers need not wait.
    pub async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        self.roll().await.map_err(|error| ChangeError(error.to_string()))?;
        let erased = self.shared.desk.have_done(|reply| Errand::Erase(narrow, doomed, reply));
        erased.await.and_then(|erased| erased).map_err(ChangeError)
    }

    /// Has the keeper look around at once and seal whatever can be sealed; returns when it has.
    pub async fn go_round(&self) -> Result<(), ChangeError> {
        self.shared.desk.have_done(Errand::Round).await.map_err(ChangeError)
    }

    /// The log in numbers.
    pub fn stats(&self) -> Stats {
        let segments = self.shared.all_segments();
        let (mut events, mut received_bytes, mut unsealed) = (0, 0, 0);
        let mut oldest_us = None;
        for (_, segment) in &segments {
            let segment_oldest = match segment {
                Segment::Sealed(sealed) => {
                    events += sealed.manifest.events;
                    received_bytes += sealed.manifest.raw_bytes;
                    Some(sealed.manifest.oldest_us)
                }
                Segment::Open(open) => {
                    unsealed += 1;
                    let blocks = open.blocks();
                    events += blocks.iter().map(|block| u64::from(block.head.count)).sum::<u64>();
                    received_bytes += blocks.iter().map(|block| u64::from(block.head.raw_len)).sum::<u64>();
                    blocks.first().map(|block| block.head.oldest_us)
                }
            };
            oldest_us = oldest_us.or(segment_oldest);
        }
        Stats {
            first: self.first(),
            last: *self.shared.head.borrow(),
            events,
            received_bytes,
            disk_bytes: self.shared.segment_bytes() + self.shared.reserved_bytes() + self.shared.key_bytes(),
            segments: segments.len(),
            unsealed,
            oldest_at: oldest_us.map(sealed::time),
            gaps: self.shared.gaps.lost(),
            keys_doubted: read_lock(&self.shared.known).in_doubt().map(str::to_owned),
        }
    }

    /// Compares everything on disk with its checksums, segment by segment; `progress` hears how many of how many are done.
    /// Gives one sentence for each fault. Blocking.
    pub fn verify(&self, progress: &mut dyn FnMut(usize, usize)) -> Vec<String> {
        let segments = self.shared.all_segments();
        let mut faults = self.shared.damage.clone();
        for (index, (first, _)) in segments.iter().enumerate() {
            let patience = Instant::now() + BETWEEN_FORMS;
            while let Some(segment) = self.shared.segment(*first) {
                let Ok(found) = verify_segment(&segment) else {
                    if Instant::now() > patience {
                        faults.push(format!("segment {first}: it can't be read until the next start"));
                        break;
                    }
                    // It is between two forms.
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                // One that has gone, or been replaced meanwhile, is not a fault; what is in its place is looked at.
                if found.is_empty() || self.shared.place_of(&segment).is_some() {
                    faults.extend(found.into_iter().map(|fault| format!("segment {first}: {fault}")));
                    break;
                }
            }
            progress(index + 1, segments.len());
        }
        let known = read_lock(&self.shared.known).on_disk();
        faults.extend(known.verify());
        faults.extend(self.damaged_keys());
        faults
    }

    /// What somebody who only looks has found damaged or missing, and whoever writes the log has not put right yet: one sentence each. `None`:
    /// it is this one that writes it.
    pub fn unrepaired(&self) -> Option<Vec<String>> {
        if !self.shared.options.read_only {
            return None;
        }
        let missing = self.shared.gaps.only_seen();
        let missing = missing
            .iter()
            .map(|gap| format!("{} can't be read: {}", gap.told(), gap.reason));
        Some(self.shared.damage.iter().cloned().chain(missing).collect())
    }

    /// A sentence for each damaged set of known keys of which nothing is known now: what can be read of it is still to be saved.
    pub fn damaged_keys(&self) -> Vec<String> {
        let owed = lock(&self.shared.owed);
        let told = |set: &Unsaved| {
            format!(
                "known keys are damaged, and what can be read of them is not saved: {}",
                set.why
            )
        };
        owed.sets.iter().map(told).collect()
    }

    /// Stops taking events, answers those that wait, ends the threads and gives the data directory's lock back. Blocking.
    pub fn close(&self) {
        let Some(writer) = &self.writer else { return };
        writer.places.close();
        let Some(threads) = lock(&writer.threads).take() else {
            return;
        };
        // The queue has room, unless the commit loop is gone already.
        let _ = writer.requests.try_send(Request::Close);
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.desk.close();
        let until = Instant::now() + CLOSE_PATIENCE;
        let ended = [threads.commit, threads.keeper, threads.lookup].map(|thread| join(thread, until));
        if ended.contains(&false) {
            // Whoever opens the directory next must not meet a thread of this log: the lock stays until the process ends.
            std::mem::forget(threads.lock);
        }
        for (_, segment) in self.shared.all_segments() {
            if let Segment::Sealed(sealed) = segment {
                sealed.close_idle(Duration::ZERO);
            }
        }
        self.shared.close_idle_keys(Duration::ZERO);
    }
}

/// A sentence for each fault; an error where something else takes its place.
fn verify_segment(segment: &Segment) -> Result<Vec<String>, SegmentError> {
    match segment {
        Segment::Sealed(sealed) => match sealed.verify() {
            Err(error) if !matches!(error, SegmentError::Retired) => Ok(vec![error.to_string()]),
            verified => verified,
        },
        Segment::Open(open) => {
            let mut faults = Vec::new();
            let _open = open.opened();
            for block in open.blocks() {
                match open.read(block) {
                    Ok(_) => {}
                    Err(error @ SegmentError::Retired) => return Err(error),
                    Err(error) => faults.push(error.to_string()),
                }
            }
            Ok(faults)
        }
    }
}

/// Waits for a thread to end; `false` where it has not by then.
fn join(thread: JoinHandle<()>, until: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() > until {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            tracing::error!(
                name,
                "a thread of the event log does not end: the disk does not answer it; it is left behind"
            );
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if thread.join().is_err() {
        tracing::error!("a thread of the event log had panicked");
    }
    true
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Not joined: a dropped log ends in its own time. Those who care call `close`.
        if lock(&self.threads).take().is_some() {
            let _ = self.requests.try_send(Request::Close);
            self.desk_of.desk.close();
        }
    }
}
