//! The log on this machine's disk.
//!
//! ```text
//! append ──► commit loop ──► journal (fdatasync: this is what 200 means)
//!                               │ segment complete: by size, by age
//!                               ▼
//!                keeper ──► sled database, verified and synced ──► journal dropped
//!                               │ expired, over the size limit
//!                               ▼
//!                           directory removed
//! ```
//!
//! The log is a row of segments, `log/<first seq>/`. The newest has a journal (`journal`), complete ones are sealed into
//! packs in a sled database (`sealed`). Readers do not care which: they ask for a Seq. The keys of known events
//! (`known`) outlive the segments. Whatever a crash or a power cut leaves is put in order when the log is opened
//! (`recovery`); what damage takes away is written down (`gaps`) and stepped over.
//!
//! Owned directories below the data directory: `log/`, `keys/`, `damaged/`; files: `lock`, `closehook.json`, `gaps.json`.

mod block;
mod commit;
mod engine;
pub(super) mod gaps;
mod journal;
mod keeper;
mod known;
mod read;
mod recovery;
mod sealed;
mod shared;
pub mod space;

#[cfg(test)]
mod tests;
mod transfer;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot, watch};

pub use transfer::{Piece, Restorer, Taken, key_file};

use super::{AppendError, Appended, Batch, Incoming, ReadError, Stats};
use crate::event::{Event, EventKey, Kind, Seq, View};
use crate::framefile;
use crate::sync::{lock, read_lock, write_lock};
use commit::{Committer, Pending, Replies, Request};
use gaps::Gaps;
use journal::Journal;
use keeper::{Errand, Keeper};
use known::{Identity, KnownKeys};
use recovery::{Inventory, Newest};
use shared::{Segment, Shared};

/// Events waiting to be committed at the most; more wait in front of the queue, within the ingress' own limits.
const QUEUE_MAX: usize = 4096;

/// Memory for decoded blocks that readers share.
const CACHE_BYTES: usize = 24 << 20;

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; made if it is missing.
    pub dir: PathBuf,
    /// How long events are kept.
    pub retention: Duration,
    /// Hard cap on disk in bytes; `None`: 80 % of the file system.
    pub max_size: Option<u64>,
    /// A segment is complete when it has received so many bytes.
    pub segment_size: u64,
    /// A segment is complete when it is this old.
    pub segment_age: Duration,
    /// Bytes kept free on the file system; `None`: see [`space::default_reserve`].
    pub reserve: Option<u64>,
    /// Keys are known at least this long (and never less than `retention` or 31 days).
    pub keys_kept: Duration,
    /// Memory for decoded blocks.
    pub cache_bytes: usize,
    /// Take no lock, write nothing, start no threads.
    pub read_only: bool,
}

impl Options {
    /// What the configuration says.
    pub fn from_config(config: &crate::config::Config) -> Options {
        let log = &config.log;
        // A segment goes only as a whole, so it must be small and young against the limits it is to keep.
        let segment_size = log
            .max_size
            .map_or(log.segment_size.0, |max| log.segment_size.0.min(max.0 / 10));
        Options {
            dir: log.dir.clone(),
            retention: log.retention.0,
            max_size: log.max_size.map(|size| size.0),
            segment_size: segment_size.max(1 << 16),
            segment_age: log.segment_age.0.min(log.retention.0 / 10),
            reserve: log.reserve.map(|size| size.0),
            keys_kept: config.server.signature_tolerance.0,
            cache_bytes: CACHE_BYTES,
            read_only: false,
        }
    }
}

/// Why the data directory can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system said no.
    #[error("{path}: {source}; {}", advice(source))]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the data directory {dir} is in use by another closehook{holder}: stop it, or give this one its own log.dir"
    )]
    Locked {
        /// Which directory.
        dir: PathBuf,
        /// ` (process 123)`, where known.
        holder: String,
    },
    /// There is none.
    #[error("{0} is not a closehook data directory: check log.dir, or start `closehook serve` once to make it")]
    Missing(PathBuf),
    /// Something else is in its place.
    #[error("{path} is not closehook's: {why}")]
    Alien {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a newer version.
    #[error("the data directory {dir} has format {found}, which this closehook does not know: run the newer version")]
    Newer {
        /// Which directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// What is in it is not complete.
    #[error("{0} holds a restore that was cut off: remove what is in it and run `closehook restore` again")]
    Unfinished(PathBuf),
    /// There is something in it already.
    #[error(
        "{0} is not empty, and a backup is restored into an empty directory: choose another one with --dir, or move away what is in it"
    )]
    NotEmpty(PathBuf),
    /// A file of a newer version in an otherwise known directory.
    #[error("{0}")]
    Unreadable(String),
}

/// What to do about it.
fn advice(error: &std::io::Error) -> &'static str {
    if framefile::is_bad_medium(error) {
        "the disk does not give it back: look into the kernel's log (dmesg), and restore a backup on another disk if it stays so"
    } else {
        "check that the directory exists and belongs to the user closehook runs as"
    }
}

/// What retention must not drop, and how to be let go. Implemented by the delivery engine.
pub trait Pins: std::fmt::Debug + Send + Sync {
    /// Every sink is durably done with everything up to here.
    fn pinned(&self) -> Seq;

    /// The size limit is hit: makes every unfinished delivery up to `upto` a dead letter. `true` when that is durable.
    fn expire(&self, upto: Seq) -> bool;
}

/// The log. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub struct LocalLog {
    shared: Arc<Shared>,
    writer: Option<Arc<Writer>>,
}

/// The threads behind a log that can be written.
#[derive(Debug)]
struct Writer {
    requests: SyncSender<Request>,
    places: Arc<Semaphore>,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    commit: JoinHandle<()>,
    keeper: JoinHandle<()>,
    errands: SyncSender<Errand>,
    /// Held until the threads have ended.
    _lock: File,
}

impl LocalLog {
    /// Opens the data directory, putting in order whatever the last stop left. Blocking; reads the newest journal.
    pub fn open(options: Options) -> Result<LocalLog, OpenError> {
        if options.read_only {
            return LocalLog::open_read_only(options);
        }
        let dir = options.dir.clone();
        let fail = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        make_dir(&dir).map_err(fail)?;
        let lock_file = take_lock(&dir)?;
        transfer::refuse_unfinished(&dir)?;
        let identity = recovery::Identity::open(&dir, true)?;
        let mut known = KnownKeys::open(&dir.join("keys"), |path, error| {
            tracing::error!(path = %path.display(), %error, "a file of known keys is damaged and set aside: repetitions of its events that have expired would be stored again");
            let _ = std::fs::rename(path, framefile::beside(path, ".damaged"));
        })
        .map_err(fail)?;
        let mut gaps = Gaps::open(&dir);
        let Inventory { segments, newest, next } = recovery::take_inventory(&dir, &mut known, &mut gaps, true)?;
        let shared = Arc::new(Shared::new(options, identity.epoch, known, gaps));
        *write_lock(&shared.segments) = segments;
        shared.head.send_replace(next.prev());
        let newest = match newest {
            Some(newest) => newest,
            None => begin_segment(&shared, next)?,
        };
        shared.journal_len.store(newest.journal.len(), Ordering::Relaxed);

        // The queue has room for every place there is, and for the few requests that need none.
        let (requests, waiting) = sync_channel(QUEUE_MAX + 16);
        let committer = Committer {
            shared: shared.clone(),
            journal: newest.journal.with_room(shared.options.segment_size),
            segment: newest.segment,
            next,
            encoder: Committer::encoder().map_err(fail)?,
            events: newest.events,
            raw_bytes: newest.raw_bytes,
            began: newest.began,
            must_roll: false,
            replies: Replies::new(),
            last_group: 0,
        };
        let (errands, waiting_errands) = sync_channel(4);
        let keeper = Keeper {
            shared: shared.clone(),
            requests: requests.clone(),
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(fail)
        };
        let commit = spawn("commit", Box::new(move || committer.run(&waiting)))?;
        let keeper = spawn("keeper", Box::new(move || keeper.run(&waiting_errands)))?;
        let threads = Threads {
            commit,
            keeper,
            errands,
            _lock: lock_file,
        };
        let writer = Writer {
            requests,
            places: Arc::new(Semaphore::new(QUEUE_MAX)),
            threads: Mutex::new(Some(threads)),
        };
        Ok(LocalLog {
            shared,
            writer: Some(Arc::new(writer)),
        })
    }

    fn open_read_only(options: Options) -> Result<LocalLog, OpenError> {
        let dir = options.dir.clone();
        let fail = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        transfer::refuse_unfinished(&dir)?;
        let identity = recovery::Identity::open(&dir, false)?;
        let mut known = KnownKeys::open(&dir.join("keys"), |path, error| {
            tracing::warn!(path = %path.display(), %error, "a file of known keys is damaged");
        })
        .map_err(fail)?;
        let mut gaps = Gaps::open(&dir);
        let Inventory { segments, next, .. } = recovery::take_inventory(&dir, &mut known, &mut gaps, false)?;
        let shared = Arc::new(Shared::new(options, identity.epoch, known, gaps));
        *write_lock(&shared.segments) = segments;
        shared.head.send_replace(next.prev());
        Ok(LocalLog { shared, writer: None })
    }

    /// Stores a body unless it is already known. Returns when it is on disk (fdatasync), together with whatever else was
    /// waiting: one group commit. Waits while the queue is full. A caller that stops waiting does not stop the append.
    pub async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        let answer = self.submit(incoming).await?;
        answer.await.map_err(|_| AppendError::Closed)?
    }

    /// Stores several, which share group commits and get their Seqs in this order.
    pub async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        let mut answers = Vec::with_capacity(together.len());
        for incoming in together {
            answers.push(self.submit(incoming).await);
        }
        let mut appended = Vec::with_capacity(answers.len());
        for answer in answers {
            appended.push(match answer {
                Ok(answer) => answer.await.unwrap_or(Err(AppendError::Closed)),
                Err(error) => Err(error),
            });
        }
        appended
    }

    /// Queues a body to be committed behind those before it.
    async fn submit(
        &self,
        mut incoming: Incoming,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        let writer = self.writer.as_ref().ok_or(AppendError::Closed)?;
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
        let permit = writer
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            incoming,
            identity,
            full,
            kind,
            reply,
            _permit: permit,
        };
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
        read_lock(&self.shared.known)
            .revisions(id)
            .map_err(|error| ReadError(error.to_string()))
    }

    /// The Seq under which this revision of an event is stored, complete; `None` where an append would store it. Blocking.
    pub fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        let known = read_lock(&self.shared.known);
        self.shared
            .known_seq(&known, &Identity::of_event(key), None)
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

    /// Tells retention what it must not drop.
    pub fn set_pins(&self, pins: Arc<dyn Pins>) {
        *write_lock(&self.shared.pins) = Some(pins);
    }

    /// Makes sure that Seqs up to `seen` are never given out again: a sink has seen them, although damage took them from
    /// the log.
    pub async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        self.ask(|reply| Request::SkipTo(seen.next(), reply)).await
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
        answer.await.map_err(|_| AppendError::Closed)?
    }

    /// Erases events: each doomed one is replaced by a tombstone, in the log and in every copy the log has made of it. Its
    /// Seq stays taken and its key stays known, so it is not stored again. Gives the Seqs. Rewrites whole segments.
    pub async fn erase(&self, doomed: impl Fn(&Event) -> bool + Send + 'static) -> Result<Vec<Seq>, AppendError> {
        self.roll().await?;
        let writer = self.writer.as_ref().ok_or(AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let errand = Errand::Erase(Box::new(doomed), reply);
        let sent = lock(&writer.threads)
            .as_ref()
            .map(|threads| threads.errands.try_send(errand));
        sent.ok_or(AppendError::Closed)?.map_err(|_| AppendError::Overloaded)?;
        let erased = answer.await.map_err(|_| AppendError::Closed)?;
        erased.map_err(|error| AppendError::Failing(error.to_string()))
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
            disk_bytes: self.shared.disk_bytes(),
            segments: segments.len(),
            unsealed,
            oldest_at: oldest_us.map(sealed::time),
            gaps: lock(&self.shared.gaps).lost(),
        }
    }

    /// Compares everything on disk with its checksums, segment by segment; `progress` hears how many of how many are done.
    /// Gives one sentence for each fault. Blocking.
    pub fn verify(&self, progress: &mut dyn FnMut(usize, usize)) -> Vec<String> {
        let segments = self.shared.all_segments();
        let mut faults = Vec::new();
        for (index, (first, segment)) in segments.iter().enumerate() {
            match segment {
                Segment::Sealed(sealed) => {
                    if let Err(error) = sealed.verify() {
                        // One that has expired or was put right meanwhile is not a fault.
                        if self.shared.holds(sealed) {
                            faults.push(format!("segment {first}: {error}"));
                        }
                    }
                }
                Segment::Open(open) => {
                    for block in open.blocks() {
                        if let Err(error) = open.read(block) {
                            faults.push(format!("segment {first}: {error}"));
                        }
                    }
                }
            }
            progress(index + 1, segments.len());
        }
        faults
    }

    /// Stops taking events, answers those that wait, ends the threads and gives the data directory's lock back. Blocking.
    pub fn close(&self) {
        let Some(writer) = &self.writer else { return };
        writer.places.close();
        let Some(threads) = lock(&writer.threads).take() else {
            return;
        };
        // The queue has room, unless the commit loop is gone already.
        let _ = writer.requests.send(Request::Close);
        self.shared.closing.store(true, Ordering::Relaxed);
        drop(threads.errands);
        for thread in [threads.commit, threads.keeper] {
            if thread.join().is_err() {
                tracing::error!("a thread of the event log had panicked");
            }
        }
        for (_, segment) in self.shared.all_segments() {
            if let Segment::Sealed(sealed) = segment {
                sealed.close_idle(Duration::ZERO);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Not joined: a dropped log ends in its own time. Those who care call `close`.
        if let Some(threads) = lock(&self.threads).take() {
            let _ = self.requests.try_send(Request::Close);
            drop(threads.errands);
        }
    }
}

fn begin_segment(shared: &Shared, next: Seq) -> Result<Newest, OpenError> {
    let (journal, segment) =
        Journal::create(&shared.log_dir, next).map_err(|error| OpenError::Unreadable(error.to_string()))?;
    let segment = Arc::new(segment);
    write_lock(&shared.segments).insert(next, Segment::Open(segment.clone()));
    Ok(Newest {
        journal,
        segment,
        events: 0,
        raw_bytes: 0,
        began: None,
    })
}

/// Makes a data directory (mode 0700), and those above it.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Takes the data directory for this process.
fn take_lock(dir: &Path) -> Result<File, OpenError> {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("lock");
    let fail = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() {
                String::new()
            } else {
                format!(" (process {holder})")
            };
            return Err(OpenError::Locked {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
    }
    // Only for the message above; the lock itself is the kernel's.
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the lock file could not be written");
    }
    Ok(file)
}
