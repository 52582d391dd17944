//! Dead letters, as people ask for them, and as the log drops their events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::{Engine, failed};
use super::letters::Letters;
use super::types::{DeadLetter, EngineError, Mode, RetryProgress};
use super::worker::Command;
use crate::event::{Event, Kind, Seq};
use crate::framefile::FrameError;
use crate::log::Log;
use crate::sync::lock;

/// Where dead letters are, below the data directory.
pub(super) const DEAD: &str = "dead";

/// Events that are copied with one sync, and bytes of their bodies, roughly.
const COPY_EVENTS: usize = 1024;
const COPY_BYTES: usize = 4 << 20;

/// Whether a path, relative to the data directory, is that of a file of dead letters.
pub fn is_dead_letters(path: &Path) -> bool {
    path.parent() == Some(Path::new(DEAD))
}

/// The files of dead letters: their sinks and paths.
fn listed(dir: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_aside = [".damaged", ".new", ".tmp"].iter().any(|end| name.ends_with(end));
        if !is_aside && entry.file_type()?.is_file() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// The letters of every sink that has any. Blocking.
pub(super) fn open_all(dir: &Path, read_only: bool) -> Result<BTreeMap<String, Letters>, FrameError> {
    let fail = |source| FrameError::Io {
        path: dir.to_owned(),
        source,
    };
    let mut letters = BTreeMap::new();
    for (sink, _) in listed(dir).map_err(fail)? {
        let opened = Letters::open(dir, &sink, read_only)?;
        letters.insert(sink, opened);
    }
    Ok(letters)
}

/// The files themselves: below the data directory, open, and how long each is. Blocking.
pub(super) fn files(dir: &Path) -> std::io::Result<Vec<(PathBuf, std::fs::File, u64)>> {
    let mut files = Vec::new();
    for (sink, path) in listed(dir)? {
        let file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        files.push((Path::new(DEAD).join(sink), file, len));
    }
    Ok(files)
}

/// The event of a letter: the log's, and where that has dropped it, its copy. An error is not an absence.
pub(super) async fn event_of(letters: &Letters, log: &dyn Log, seq: Seq) -> Result<Option<Arc<Event>>, String> {
    if let Some(event) = log.get(seq).await.map_err(|error| error.to_string())? {
        return Ok(Some(event));
    }
    let letters = letters.clone();
    let copy = tokio::task::spawn_blocking(move || letters.copy(seq)).await;
    match copy.map_err(|error| error.to_string())? {
        Ok(copy) => Ok(copy),
        Err(FrameError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

impl Engine {
    /// A sink's letters, which it may have none of yet.
    pub(super) fn letters_of(&self, sink: &str) -> Result<Letters, EngineError> {
        let mut letters = lock(&self.inner.letters);
        if let Some(found) = letters.get(sink) {
            return Ok(found.clone());
        }
        let look = self.inner.mode == Mode::Look;
        let opened = Letters::open(&self.inner.dead_dir, sink, look).map_err(failed)?;
        letters.insert(sink.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Whether there is a file of dead letters for the name.
    pub(super) fn has_letters(&self, sink: &str) -> bool {
        lock(&self.inner.letters).contains_key(sink)
    }

    /// Removes the letters of a removed sink with their file; gives how many there were.
    pub(super) async fn forget_letters(&self, sink: &str) -> Result<u64, EngineError> {
        let letters = lock(&self.inner.letters).get(sink).cloned();
        let Some(letters) = letters else { return Ok(0) };
        let forgotten = tokio::task::spawn_blocking(move || letters.destroy()).await;
        let dropped = forgotten.map_err(failed)?.map_err(failed)?;
        lock(&self.inner.letters).remove(sink);
        Ok(dropped)
    }

    /// The letters of one sink, or of all, removed ones included.
    fn letters(&self, sink: Option<&str>) -> Result<Vec<(String, Letters)>, EngineError> {
        let all = lock(&self.inner.letters).clone();
        match sink {
            None => Ok(all.into_iter().collect()),
            Some(sink) => match all.get(sink) {
                Some(letters) => Ok(vec![(sink.to_owned(), letters.clone())]),
                // It has none, or its name is wrong.
                None => self.worker(sink).map(|_| Vec::new()),
            },
        }
    }

    /// Dead letters of one sink or of all, from a Seq on; at most `max` of each. Blocking.
    pub fn dead_list(&self, sink: Option<&str>, from: Seq, max: usize) -> Result<Vec<DeadLetter>, EngineError> {
        let mut found = Vec::new();
        for (sink, letters) in self.letters(sink)? {
            for seq in letters.seqs(from, max) {
                match letters.get(seq) {
                    Ok(letter) => found.extend(letter),
                    Err(error @ FrameError::Damaged { .. }) => {
                        tracing::error!(sink, %error, "a dead letter can't be read any more");
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(found)
    }

    /// How many dead letters there are, of one sink or of all.
    pub fn dead_count(&self, sink: Option<&str>) -> Result<u64, EngineError> {
        let letters = self.letters(sink)?;
        Ok(letters.iter().map(|(_, letters)| letters.len() as u64).sum())
    }

    /// One dead letter with its event; without it where that is not kept any more.
    pub async fn dead_get(
        &self,
        sink: &str,
        seq: Seq,
    ) -> Result<Option<(DeadLetter, Option<Arc<Event>>)>, EngineError> {
        let Some((_, letters)) = self.letters(Some(sink))?.pop() else {
            return Ok(None);
        };
        let reading = letters.clone();
        let letter = tokio::task::spawn_blocking(move || reading.get(seq)).await;
        let Some(letter) = letter.map_err(failed)?.map_err(failed)? else {
            return Ok(None);
        };
        let event = event_of(&letters, &*self.inner.log, seq).await.map_err(EngineError)?;
        Ok(Some((letter, event)))
    }

    /// Delivers dead letters again, once each; those that are delivered are removed. What can't be tried now ends as still dead, with
    /// the reason.
    pub async fn dead_retry(&self, sink: &str, seqs: Vec<Seq>) -> Result<Arc<RetryProgress>, EngineError> {
        let handle = self.worker(sink)?;
        if lock(&handle.view).status.paused {
            return Err(EngineError(format!(
                "\"{sink}\" is paused: `closehook sinks resume {sink}` first"
            )));
        }
        let progress = Arc::new(RetryProgress::new(seqs.len() as u64));
        self.order(sink, Command::RetryDead(seqs, progress.clone())).await?;
        Ok(progress)
    }

    /// Removes dead letters for good, with one sync; gives how many there were. Blocking.
    pub fn dead_drop(&self, sink: &str, seqs: &[Seq]) -> Result<u64, EngineError> {
        let mut dropped = 0;
        for (_, letters) in self.letters(Some(sink))? {
            dropped += letters.remove(seqs).map_err(failed)?;
        }
        Ok(dropped)
    }

    /// Copies the event of every dead letter before `before`, of all sinks, removed ones included, so that the log can drop it.
    /// Returns when the copies are durable. An error says why the log must not drop anything now.
    pub async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        for (sink, letters) in self.letters(None).map_err(|error| error.to_string())? {
            let mut from = Seq::ZERO;
            loop {
                let bare = letters.without_copy(from, before, COPY_EVENTS);
                let Some(last) = bare.last() else { break };
                from = last.next();
                self.copy_events(&letters, &bare)
                    .await
                    .map_err(|error| format!("dead letters of sink \"{sink}\" can't be copied: {error}"))?;
            }
            let max = self.worker(&sink).map(|worker| worker.config.dead_max);
            if let Ok(max) = max {
                let letters = letters.clone();
                let dropped = tokio::task::spawn_blocking(move || letters.remove(&letters.beyond(max.0))).await;
                let dropped = dropped.map_err(|error| error.to_string())?;
                let dropped = dropped.map_err(|error| error.to_string())?;
                if dropped > 0 {
                    crate::telemetry::letters_dropped(&sink, dropped, max);
                }
            }
        }
        Ok(())
    }

    /// Reads these events and keeps copies of them. What the log does not have any more has none.
    async fn copy_events(&self, letters: &Letters, seqs: &[Seq]) -> Result<(), String> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        for seq in seqs {
            let event = self.inner.log.get(*seq).await.map_err(|error| error.to_string())?;
            // Of an erased one nothing is kept.
            let Some(event) = event.filter(|event| event.kind != Kind::Erased) else {
                continue;
            };
            bytes += event.body.len();
            events.push(event);
            if bytes >= COPY_BYTES {
                keep(letters, std::mem::take(&mut events)).await?;
                bytes = 0;
            }
        }
        keep(letters, events).await
    }
}

async fn keep(letters: &Letters, events: Vec<Arc<Event>>) -> Result<(), String> {
    if events.is_empty() {
        return Ok(());
    }
    let letters = letters.clone();
    let kept = tokio::task::spawn_blocking(move || letters.keep_copies(&events)).await;
    kept.map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}
