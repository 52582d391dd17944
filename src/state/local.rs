//! The store on this machine's disk: all values in memory, with every change appended to a file that is synced before the change
//! counts.
//!
//! A file begins with the full picture and goes on with changes; when it has grown, a new generation is written and synced.
//! The one before it stays: what damage takes from the newer is then taken from the older. Losing the newest changes (a torn
//! tail, damage) repeats a few deliveries; losing everything would take both generations, and even that is known
//! ([`Store::is_damaged`]) and so not mistaken for a first start: a value says so until what was lost is settled ([`Store::mended`]).

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Entry, Expected, Revision, Store, StoreError};
use crate::framefile::{self, Format, FrameError, FrameFile};
use crate::sorted;
use crate::sync::lock;
use crate::task;
use crate::telemetry;

const FORMAT: Format = Format {
    magic: *b"CLHKSTAT",
    version: 1,
};

const TAG_PUT: u32 = 1;
const TAG_REMOVE: u32 = 2;
/// The full picture is complete; a generation without this mark was not finished.
const TAG_COMPLETE: u32 = 3;

/// A generation is rolled when it is larger than this and than four times its content.
const GENERATION_LEN: u64 = 1 << 20;

/// Changes that come within this are saved by one sync.
const GATHER: Duration = Duration::from_millis(10);

/// Changes that wait to be saved at the most; askers wait beyond.
const QUEUE_MAX: usize = 256;

/// A change that is not durable by then may become so later; whoever waits for it goes on.
const SAVED_WITHIN: Duration = Duration::from_secs(20);

/// How often it is looked whether what waits is saved, at the end.
const CLOSE_LOOK: Duration = Duration::from_millis(2);

/// After a panic the thread that saves rests so long: one that comes at once again must not take the machine.
const REST_AFTER_PANIC: Duration = Duration::from_millis(50);

/// The key under which it stands that damage may have taken values: what is read of a damaged file goes into a whole one.
pub(crate) const DAMAGED: &str = "damaged";

/// Its name, as restarts are counted.
const TASK: &str = "state";

type Values = BTreeMap<String, Vec<u8>>;

/// What is durable.
type Entries = BTreeMap<String, Entry>;

enum Message {
    Change(Change),
    /// Save what came before, and end.
    Close,
}

struct Change {
    key: String,
    value: Option<Vec<u8>>,
    expected: Expected,
    saved: oneshot::Sender<Result<Revision, StoreError>>,
}

/// The store on this machine's disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalStore {
    entries: Arc<Mutex<Entries>>,
    changes: Option<SyncSender<Message>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// There was a whole file when it was opened, or is one since.
    is_begun: bool,
    /// How long whoever waits for a change, or for the end, does so.
    patience: Duration,
    /// Makes the next group of changes panic when it is in the file and not yet seen.
    #[cfg(test)]
    trap: Arc<AtomicBool>,
}

impl LocalStore {
    /// Opens (or makes) `dir`; `read_only` writes nothing.
    pub fn open(dir: &Path, read_only: bool) -> Result<LocalStore, FrameError> {
        LocalStore::open_again(dir, read_only, false)
    }

    /// The same. `was_begun`: there was a whole file once ([`LocalStore::is_begun`]), so that none is damage and no first start.
    pub fn open_again(dir: &Path, read_only: bool, was_begun: bool) -> Result<LocalStore, FrameError> {
        let fail = |source| FrameError::Io {
            path: dir.to_owned(),
            source,
        };
        let generations = generations(dir).map_err(fail)?;
        let Picture {
            mut values,
            complete,
            damaged,
        } = read_generations(dir, &generations)?;
        let is_gone = was_begun && complete.is_none();
        if is_gone {
            tracing::error!(
                dir = %dir.display(),
                "the state is gone: where sinks were is not known any more, nor which were paused, so deliveries repeat"
            );
        }
        if damaged || is_gone {
            values.insert(DAMAGED.to_owned(), b"true".to_vec());
        }
        let revision = |(index, (key, value)): (usize, (&String, &Vec<u8>))| {
            let revision = Revision(index as u64 + 1);
            let value = value.clone().into();
            let entry = Entry {
                value,
                revision,
                stored_at: None,
            };
            (key.clone(), entry)
        };
        let entries: Entries = sorted::map(values.iter().enumerate().map(revision));
        let revisions = entries.len() as u64;
        let mut store = LocalStore {
            entries: Arc::new(Mutex::new(entries)),
            changes: None,
            thread: Arc::default(),
            is_begun: complete.is_some(),
            patience: SAVED_WITHIN,
            #[cfg(test)]
            trap: Arc::default(),
        };
        if read_only {
            return Ok(store);
        }
        framefile::make_dir(dir).map_err(fail)?;
        framefile::sync_parent(dir).map_err(fail)?;
        let next = generations.last().map_or(1, |last| last + 1);
        let file = begin_generation(dir, next, complete, &values)?;
        store.is_begun |= file.is_some();
        let (changes, waiting) = sync_channel(QUEUE_MAX);
        let mut saver = Saver {
            dir: dir.to_owned(),
            generation: if file.is_some() { next } else { next - 1 },
            file,
            entries: store.entries.clone(),
            revisions,
            doubtful: BTreeSet::new(),
            is_told: false,
            is_closing: false,
            #[cfg(test)]
            trap: store.trap.clone(),
        };
        telemetry::supervised(TASK);
        let thread = task::begin_thread(TASK, move || saver.run(&waiting)).map_err(fail)?;
        (store.changes, store.thread) = (Some(changes), Arc::new(Mutex::new(Some(thread))));
        Ok(store)
    }

    /// Whether a whole file was there when it was opened, or made then.
    pub fn is_begun(&self) -> bool {
        self.is_begun
    }

    async fn change(&self, key: &str, value: Option<Vec<u8>>, expected: Expected) -> Result<Revision, StoreError> {
        let changes = self.changes.as_ref().ok_or(StoreError::Closed)?;
        let (saved, answer) = oneshot::channel();
        let mut message = Message::Change(Change {
            key: key.to_owned(),
            value,
            expected,
            saved,
        });
        let until = tokio::time::Instant::now() + self.patience;
        let failing = || StoreError::Failing("the disk does not answer".into());
        // The queue is short and emptied by a thread that only writes a few bytes, unless the disk hangs.
        loop {
            message = match changes.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(message)) => message,
                Err(TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
            };
            if tokio::time::Instant::now() >= until {
                return Err(failing());
            }
            tokio::time::sleep(GATHER).await;
        }
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(saved)) => saved,
            Ok(Err(_)) if lock(&self.thread).is_none() => Err(StoreError::Closed),
            Ok(Err(_)) => Err(StoreError::Failing(
                "it was given up half way; whether it is saved is not known".into(),
            )),
            Err(_) => Err(failing()),
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(lock(&self.entries).get(key).cloned())
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.change(key, Some(value), expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.change(key, None, expected).await.map(drop)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let entries = lock(&self.entries);
        Ok(entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }

    fn is_damaged(&self) -> bool {
        lock(&self.entries).contains_key(DAMAGED)
    }

    async fn all(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let entries = lock(&self.entries);
        let all = entries.iter().map(|(key, entry)| (key.clone(), entry.value.clone()));
        Ok(all.collect())
    }

    async fn mended(&self) -> Result<(), StoreError> {
        if self.is_damaged() {
            self.remove(DAMAGED, Expected::Anything).await?;
        }
        Ok(())
    }

    async fn close(&self) {
        let thread = lock(&self.thread).take();
        let (Some(changes), Some(thread)) = (&self.changes, thread) else {
            return;
        };
        let until = tokio::time::Instant::now() + self.patience;
        let mut told = false;
        while !thread.is_finished() {
            told = told || !matches!(changes.try_send(Message::Close), Err(TrySendError::Full(_)));
            if tokio::time::Instant::now() >= until {
                // It ends with this process at the latest.
                tracing::error!(
                    "the newest positions could not be saved: the disk does not answer; some deliveries may repeat"
                );
                return;
            }
            tokio::time::sleep(CLOSE_LOOK).await;
        }
    }
}

/// Makes `dir` with these values. Blocking.
pub(crate) fn write(dir: &Path, values: Vec<(String, Vec<u8>)>) -> Result<(), FrameError> {
    let fail = |source| FrameError::Io {
        path: dir.to_owned(),
        source,
    };
    framefile::make_dir(dir).map_err(fail)?;
    framefile::sync_parent(dir).map_err(fail)?;
    write_generation(dir, 1, &sorted::map(values)).map(drop)
}

fn path_of(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{generation:020}"))
}

/// What all generations together say.
#[derive(Debug, Default)]
struct Picture {
    values: Values,
    /// The newest generation that was finished.
    complete: Option<u64>,
    /// It, or a newer one, is damaged.
    damaged: bool,
}

/// The numbers of the files in a directory, in order.
fn generations(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut generations = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(listing) => {
            for entry in listing {
                let name = entry?.file_name().to_string_lossy().into_owned();
                generations.extend(name.parse::<u64>());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    generations.sort_unstable();
    Ok(generations)
}

/// Begins a file with all there is: nothing is appended to one that an earlier process left, so that whatever its end looks like
/// stays there. `None` where it can't be written now: nothing was changed yet, and the first change tries again.
fn begin_generation(
    dir: &Path,
    number: u64,
    complete: Option<u64>,
    values: &Values,
) -> Result<Option<FrameFile>, FrameError> {
    match write_generation(dir, number, values) {
        Ok(file) => {
            remove_older(dir, complete.unwrap_or(number));
            Ok(Some(file))
        }
        Err(error @ FrameError::Io { .. }) => {
            tracing::error!(%error, "positions can't be saved now; until they can, sinks that keep one wait");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads the generations, oldest first: each one that is whole replaces what came before it, a damaged one only adds what can
/// be read of it.
fn read_generations(dir: &Path, generations: &[u64]) -> Result<Picture, FrameError> {
    let mut picture = Picture::default();
    for generation in generations {
        let path = path_of(dir, *generation);
        let Content {
            changes,
            complete,
            damaged,
        } = read_generation(&path)?;
        if damaged {
            tracing::error!(
                file = %path.display(),
                "a state file is damaged; what can't be read of it is taken from the one before it, so deliveries may repeat"
            );
        } else if complete {
            picture.values.clear();
        } else {
            // It was never finished, and nobody was told that anything in it is saved.
            continue;
        }
        for (key, value) in changes {
            match value {
                Some(value) => drop(picture.values.insert(key, value)),
                None => drop(picture.values.remove(&key)),
            }
        }
        picture.damaged = damaged;
        picture.complete = Some(*generation);
    }
    Ok(picture)
}

/// What can be read of a state file.
#[derive(Debug, Default)]
struct Content {
    changes: Vec<(String, Option<Vec<u8>>)>,
    /// The full picture is in it.
    complete: bool,
    /// There may be more in it.
    damaged: bool,
}

impl Content {
    fn take(&mut self, frame: &framefile::Frame<'_>) {
        let changes = &mut self.changes;
        match frame.tag {
            TAG_COMPLETE => self.complete = true,
            TAG_PUT => changes.extend(split(frame.payload).map(|(key, value)| (key, Some(value.to_vec())))),
            TAG_REMOVE => changes.extend(split(frame.payload).map(|(key, _)| (key, None))),
            _ => {}
        }
    }
}

/// Reads one file. Its name says what it is, so that a damaged header alone costs nothing.
fn read_generation(path: &Path) -> Result<Content, FrameError> {
    let mut content = Content::default();
    let is_damage = |error: &FrameError| match error {
        FrameError::Alien(_) | FrameError::Damaged { .. } => true,
        FrameError::Io { source, .. } => framefile::is_bad_medium(source),
        FrameError::Newer { .. } | FrameError::Poisoned(_) => false,
    };
    match framefile::scan(path, FORMAT, |frame| content.take(&frame)) {
        Ok(scan) => content.damaged = !scan.damage.is_empty(),
        Err(error) if is_damage(&error) => {
            content = Content::default();
            let mut has_moved = false;
            let scanned = framefile::scan_behind_header(path, FORMAT, |frame| {
                has_moved |= frame.offset < framefile::HEADER_LEN;
                content.take(&frame);
            });
            content.damaged = match scanned {
                // What has moved there need not be the first change: nobody knows how many are missing before it.
                Ok(scan) => has_moved || scan.damage.len() > 1 || !content.complete,
                Err(error) if is_damage(&error) => true,
                Err(error) => return Err(error),
            };
            if !content.damaged {
                tracing::error!(file = %path.display(), "the header of a state file is damaged; what is behind it is read all the same");
            }
        }
        Err(error) => return Err(error),
    }
    Ok(content)
}

fn split(payload: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = payload.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
    Some((String::from_utf8(key.to_vec()).ok()?, value))
}

fn append(file: &mut FrameFile, key: &str, value: Option<&[u8]>) -> Result<(), FrameError> {
    let tag = if value.is_some() { TAG_PUT } else { TAG_REMOVE };
    let len = (key.len() as u16).to_le_bytes();
    file.append(tag, &[&len, key.as_bytes(), value.unwrap_or_default()])
        .map(drop)
}

fn write_generation(dir: &Path, generation: u64, values: &Values) -> Result<FrameFile, FrameError> {
    let mut file = FrameFile::create(&path_of(dir, generation), FORMAT)?;
    for (key, value) in values {
        append(&mut file, key, Some(value))?;
    }
    file.append(TAG_COMPLETE, &[])?;
    file.sync()?;
    Ok(file)
}

/// Removes the generations before this one.
fn remove_older(dir: &Path, generation: u64) {
    let Ok(listing) = std::fs::read_dir(dir) else { return };
    for entry in listing.flatten() {
        let older = entry
            .file_name()
            .to_string_lossy()
            .parse::<u64>()
            .is_ok_and(|found| found < generation);
        if older {
            // One that stays is only a little space.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

struct Saver {
    dir: PathBuf,
    /// The newest one that is whole, whether or not it can still be written to.
    generation: u64,
    /// `None` until the first one of this process could be written.
    file: Option<FrameFile>,
    entries: Arc<Mutex<Entries>>,
    /// The newest revision given.
    revisions: u64,
    /// Keys whose newest change failed: the file may hold it, and it must not become durable with what is saved next.
    doubtful: BTreeSet<String>,
    /// That nothing can be saved is said once, until something is.
    is_told: bool,
    /// It was told to end.
    is_closing: bool,
    #[cfg(test)]
    trap: Arc<AtomicBool>,
}

impl Saver {
    /// Runs until it is told to end or until nobody can ask any more, whatever happens in between.
    fn run(&mut self, waiting: &Receiver<Message>) {
        while catch_unwind(AssertUnwindSafe(|| self.go_on(waiting))).is_err() {
            telemetry::restarted(
                TASK,
                "the thread that saves positions panicked, which is a defect; it starts again with a new file",
                REST_AFTER_PANIC,
            );
            // Whatever it was at may be in the file, half or whole, and nobody was told that it is saved: what counts is what is
            // seen, and the next change begins a file with all of that.
            self.file = None;
            std::thread::sleep(REST_AFTER_PANIC);
        }
    }

    fn go_on(&mut self, waiting: &Receiver<Message>) {
        while !self.is_closing {
            let Ok(Message::Change(first)) = waiting.recv() else {
                return;
            };
            let mut group = vec![first];
            let until = Instant::now() + GATHER;
            loop {
                match waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Message::Change(change)) => group.push(change),
                    Ok(Message::Close) => {
                        self.is_closing = true;
                        break;
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if group.len() >= QUEUE_MAX {
                    break;
                }
            }
            self.save_group(group);
        }
    }

    /// Makes a group of changes durable, and only then lets them be seen.
    fn save_group(&mut self, group: Vec<Change>) {
        let mut after = lock(&self.entries).clone();
        let mut answers = Vec::with_capacity(group.len());
        let mut changes: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        for change in group {
            let held = after.get(&change.key).map(|entry| entry.revision);
            let meets = match change.expected {
                Expected::Anything => true,
                Expected::Nothing => held.is_none(),
                Expected::Revision(revision) => held == Some(revision),
            };
            if !meets {
                // Nobody may be waiting any more.
                let _ = change.saved.send(Err(StoreError::Conflict(change.key)));
                continue;
            }
            self.revisions += 1;
            let revision = Revision(self.revisions);
            match &change.value {
                Some(value) => {
                    let entry = Entry {
                        value: value.clone().into(),
                        revision,
                        stored_at: None,
                    };
                    drop(after.insert(change.key.clone(), entry));
                }
                None => drop(after.remove(&change.key)),
            }
            changes.push((change.key, change.value));
            answers.push((change.saved, revision));
        }
        if changes.is_empty() {
            return;
        }
        let saved = self.save(&changes, &after).map_err(|error| error.to_string());
        #[cfg(test)]
        assert!(!self.trap.swap(false, Ordering::SeqCst), "as told");
        match &saved {
            Ok(()) => {
                self.doubtful.clear();
                *lock(&self.entries) = after;
                if std::mem::take(&mut self.is_told) {
                    tracing::info!("positions are saved again");
                }
            }
            Err(error) => {
                self.doubtful.extend(changes.into_iter().map(|(key, _)| key));
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::warn!(%error, "positions can't be saved now; if closehook is killed before they can, deliveries repeat");
                }
            }
        }
        for (answer, revision) in answers {
            let _ = answer.send(saved.clone().map(|()| revision).map_err(StoreError::Failing));
        }
    }

    fn save(&mut self, changes: &[(String, Option<Vec<u8>>)], after: &Entries) -> Result<(), FrameError> {
        let content: u64 = after.values().map(|entry| entry.value.len() as u64 + 64).sum();
        let usable = self
            .file
            .as_mut()
            .filter(|file| !file.is_poisoned() && file.len() <= GENERATION_LEN.max(4 * content));
        if let Some(file) = usable {
            for key in &self.doubtful {
                append(file, key, after.get(key).map(|entry| &*entry.value))?;
            }
            for (key, value) in changes {
                append(file, key, value.as_deref())?;
            }
            return file.sync();
        }
        let values = after.iter().map(|(key, entry)| (key.clone(), entry.value.to_vec()));
        self.file = Some(write_generation(&self.dir, self.generation + 1, &sorted::map(values))?);
        remove_older(&self.dir, self.generation);
        self.generation += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
