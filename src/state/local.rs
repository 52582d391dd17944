//! What must survive a restart beside the events: cursors, retries, positions, jobs. Small values by key, in memory, with every
//! change appended to a file that is synced before the change counts as saved.
//!
//! A file begins with the full picture and goes on with changes; when it has grown, a new generation is written and synced.
//! The one before it stays: what damage takes from the newer is then taken from the older. Losing the newest changes (a torn
//! tail, damage) repeats a few deliveries; losing everything would take both generations, and even that is known
//! ([`State::is_damaged`]) and so not mistaken for a first start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::framefile::{self, Format, FrameError, FrameFile};

const FORMAT: Format = Format {
    magic: *b"CLHKSTAT",
    version: 1,
};

const TAG_PUT: u32 = 1;
const TAG_REMOVE: u32 = 2;
/// The full picture is complete; a generation without this mark was not finished.
const TAG_COMPLETE: u32 = 3;

/// A generation is rolled when it is larger than this and than four times its content.
const GENERATION_LEN: u64 = 4 << 20;

/// Changes that come within this are saved by one sync.
const GATHER: Duration = Duration::from_millis(10);

/// Changes that wait to be saved at the most; askers wait beyond.
const QUEUE_MAX: usize = 256;

type Values = BTreeMap<String, Vec<u8>>;

enum Message {
    Change(Change),
    /// Save what came before, and end.
    Close,
}

struct Change {
    key: String,
    value: Option<Vec<u8>>,
    saved: oneshot::Sender<Result<(), String>>,
}

/// The values. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct State {
    values: Arc<Mutex<Values>>,
    changes: Option<SyncSender<Message>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    damaged: Arc<AtomicBool>,
}

impl State {
    /// Opens (or makes) `dir`; `read_only` writes nothing.
    pub fn open(dir: &Path, read_only: bool) -> Result<State, FrameError> {
        let fail = |source| FrameError::Io {
            path: dir.to_owned(),
            source,
        };
        let mut generations = Vec::new();
        match std::fs::read_dir(dir) {
            Ok(listing) => {
                for entry in listing {
                    let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
                    generations.extend(name.parse::<u64>());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        generations.sort_unstable();
        let Picture {
            values,
            complete,
            damaged,
        } = read_generations(dir, &generations)?;
        let values = Arc::new(Mutex::new(values));
        if read_only {
            return Ok(State {
                values,
                changes: None,
                thread: Arc::default(),
                damaged: Arc::new(damaged.into()),
            });
        }
        framefile::make_dir(dir).map_err(fail)?;
        framefile::sync_parent(dir).map_err(fail)?;
        let next = generations.last().map_or(1, |last| last + 1);
        // Nothing is appended to a file that an earlier process left: whatever its end looks like stays there.
        let written = write_generation(dir, next, &values.lock().unwrap_or_else(PoisonError::into_inner));
        let file = match written {
            Ok(file) => {
                remove_older(dir, complete.unwrap_or(next));
                Some(file)
            }
            // Nothing was changed yet. The first change tries again.
            Err(error @ FrameError::Io { .. }) => {
                tracing::error!(%error, "positions can't be saved now; until they can, sinks that keep one wait");
                None
            }
            Err(error) => return Err(error),
        };
        let (changes, waiting) = sync_channel(QUEUE_MAX);
        let mut saver = Saver {
            dir: dir.to_owned(),
            generation: if file.is_some() { next } else { next - 1 },
            file,
            values: values.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("state".into())
            .spawn(move || saver.run(&waiting))
            .map_err(fail)?;
        Ok(State {
            values,
            changes: Some(changes),
            thread: Arc::new(Mutex::new(Some(thread))),
            damaged: Arc::new(damaged.into()),
        })
    }

    /// Whether some of it was damaged when it was opened: a value that is not there may have been.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Everything that may have been there has a value again: what is not there from now on is new.
    pub fn mended(&self) {
        self.damaged.store(false, Ordering::Relaxed);
    }

    /// A value as last put, saved or not.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.get(key)?;
        match serde_json::from_slice(value) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(key, %error, "a state value can't be read");
                None
            }
        }
    }

    /// The keys with this beginning.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// All values as last put, saved or not.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Changes a value; returns when that is durable.
    pub async fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), String> {
        let value = serde_json::to_vec(value).map_err(|error| error.to_string())?;
        self.change(key, Some(value)).await
    }

    /// Removes a value; returns when that is durable.
    pub async fn remove(&self, key: &str) -> Result<(), String> {
        self.change(key, None).await
    }

    async fn change(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), String> {
        let changes = self.changes.clone().ok_or("the state is open for reading only")?;
        let (saved, answer) = oneshot::channel();
        let change = Change {
            key: key.to_owned(),
            value,
            saved,
        };
        // The queue is short and emptied by a thread that only writes a few bytes.
        tokio::task::spawn_blocking(move || changes.send(Message::Change(change)))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|_| "the state is closed".to_owned())?;
        answer.await.map_err(|_| "the state is closed".to_owned())?
    }

    /// Saves what waits and ends the thread. Blocking.
    pub fn close(&self) {
        if let Some(changes) = &self.changes {
            let _ = changes.send(Message::Close);
        }
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
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
    write_generation(dir, 1, &values.into_iter().collect()).map(drop)
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

/// Reads the generations, oldest first: each one that is whole replaces what came before it, a damaged one only adds what can
/// be read of it.
fn read_generations(dir: &Path, generations: &[u64]) -> Result<Picture, FrameError> {
    let mut picture = Picture::default();
    for generation in generations {
        let path = path_of(dir, *generation);
        let mut changes = Vec::new();
        let mut complete = false;
        let scanned = framefile::scan(&path, FORMAT, |frame| match frame.tag {
            TAG_COMPLETE => complete = true,
            TAG_PUT => {
                changes.extend(split(frame.payload).map(|(key, value)| (key, Some(value.to_vec()))));
            }
            TAG_REMOVE => changes.extend(split(frame.payload).map(|(key, _)| (key, None))),
            _ => {}
        });
        let damaged = match scanned {
            Ok(scan) => !scan.damage.is_empty(),
            Err(FrameError::Alien(_) | FrameError::Damaged { .. }) => true,
            Err(error) => return Err(error),
        };
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
    values: Arc<Mutex<Values>>,
}

impl Saver {
    fn run(&mut self, waiting: &Receiver<Message>) {
        let mut closing = false;
        while !closing {
            let Ok(Message::Change(first)) = waiting.recv() else {
                return;
            };
            let mut group = vec![first];
            let until = Instant::now() + GATHER;
            loop {
                match waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Message::Change(change)) => group.push(change),
                    Ok(Message::Close) => {
                        closing = true;
                        break;
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if group.len() >= QUEUE_MAX {
                    break;
                }
            }
            {
                let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
                for change in &group {
                    match &change.value {
                        Some(value) => drop(values.insert(change.key.clone(), value.clone())),
                        None => drop(values.remove(&change.key)),
                    }
                }
            }
            let saved = self.save(&group).map_err(|error| error.to_string());
            if let Err(error) = &saved {
                tracing::warn!(%error, "positions can't be saved now; if closehook is killed before they can, deliveries repeat");
            }
            for change in group {
                let _ = change.saved.send(saved.clone());
            }
        }
    }

    fn save(&mut self, group: &[Change]) -> Result<(), FrameError> {
        let content: u64 = {
            let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
            values.values().map(|value| value.len() as u64 + 64).sum()
        };
        let usable = self
            .file
            .as_mut()
            .filter(|file| !file.is_poisoned() && file.len() <= GENERATION_LEN.max(4 * content));
        if let Some(file) = usable {
            for change in group {
                append(file, &change.key, change.value.as_deref())?;
            }
            return file.sync();
        }
        // The picture in memory holds the group already.
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.file = Some(write_generation(&self.dir, self.generation + 1, &values)?);
        remove_older(&self.dir, self.generation);
        self.generation += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let state = State::open(&dir, false).unwrap();
        let big = "x".repeat(100_000);
        for round in 0..100_u32 {
            state.put("sink/a", &(round, &big)).await.unwrap();
        }
        state.put("sink/b", &1).await.unwrap();
        state.remove("sink/b").await.unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "older generations go");
        state.close();
        let state = State::open(&dir, true).unwrap();
        assert_eq!(state.get::<(u32, String)>("sink/a").unwrap().0, 99);
        assert_eq!(state.keys("sink/"), ["sink/a"]);
        assert!(state.put("sink/a", &0).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_generation_that_was_not_finished_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), false).unwrap();
        state.put("a", &1).await.unwrap();
        state.close();
        let mut newer = FrameFile::create(&path_of(dir.path(), 9), FORMAT).unwrap();
        append(&mut newer, "a", Some(b"2")).unwrap();
        newer.sync().unwrap();
        // And one whose header is nonsense.
        std::fs::write(path_of(dir.path(), 10), b"nonsense").unwrap();
        let state = State::open(dir.path(), false).unwrap();
        assert_eq!(state.get::<u32>("a"), Some(1));
        state.close();
        let state = State::open(dir.path(), false).unwrap();
        assert_eq!(state.get::<u32>("a"), Some(1));
        state.close();
    }

    /// Whichever byte is damaged, everything that was saved before the newest generation began is still there.
    #[tokio::test(flavor = "multi_thread")]
    async fn damage_anywhere_costs_the_newest_changes_at_most() {
        let original = tempfile::tempdir().unwrap();
        for round in 0..3_u32 {
            let state = State::open(original.path(), false).unwrap();
            assert!(!state.is_damaged());
            for key in ["sink/a", "sink/b", "sink/c"] {
                state.put(key, &round).await.unwrap();
            }
            state.close();
        }
        let names: Vec<_> = std::fs::read_dir(original.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2);
        let newest = names.iter().max().unwrap();
        let bytes = std::fs::read(original.path().join(newest)).unwrap();
        for at in 0..bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            for name in &names {
                std::fs::copy(original.path().join(name), dir.path().join(name)).unwrap();
            }
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x40;
            std::fs::write(dir.path().join(newest), flipped).unwrap();
            let state = State::open(dir.path(), true).unwrap();
            for key in ["sink/a", "sink/b", "sink/c"] {
                let value = state.get::<u32>(key);
                assert!(value.is_some_and(|value| value >= 1), "byte {at}: {key} is {value:?}");
            }
        }
        // Both of them: nothing is left, and that is known.
        for name in &names {
            std::fs::write(original.path().join(name), b"nonsense").unwrap();
        }
        let state = State::open(original.path(), false).unwrap();
        assert!(state.is_damaged() && state.keys("").is_empty());
        state.close();
        let state = State::open(original.path(), false).unwrap();
        assert!(!state.is_damaged(), "it is whole from now on");
        state.close();
    }
}
