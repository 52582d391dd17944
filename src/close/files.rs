//! Small files below the data directory: versioned JSON, mode 0600, replaced as a whole and synced, and locks beside them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::api::error::Error;
use crate::framefile;
use crate::json;
use crate::sync::lock;
use crate::task;

/// Format of the files here; a newer one is refused.
pub(super) const VERSION: u32 = 1;

/// Who holds a lock gives it back within this: refreshing a token takes two requests at the most.
const LOCKED_WITHIN: Duration = Duration::from_secs(90);

/// How often it is tried meanwhile.
const LOCK_EVERY: Duration = Duration::from_millis(50);

/// Where the newest OAuth refresh token is kept in a data directory.
pub(super) fn oauth_path(data_dir: &Path) -> PathBuf {
    data_dir.join("close").join("oauth.json")
}

/// Where one is left, beside that file, that is not shared with the other nodes yet.
pub(super) fn unsaved_path(oauth_path: &Path) -> PathBuf {
    oauth_path.with_extension("unsaved.json")
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a file; `None` where there is none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match crate::files::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Local(format!("{} can't be read: {error}", path.display()))),
    };
    parse(path, &text).map(Some)
}

/// Reads what a file holds, or holds elsewhere.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, Error> {
    let damaged = |error: serde_json::Error| {
        Error::Local(format!(
            "{} is damaged ({}): put it back from a backup, or move it away",
            path.display(),
            // What stands there may be a secret.
            json::unfit(&error)
        ))
    };
    let version = serde_json::from_slice::<Versioned>(text).map_err(damaged)?.version;
    if version > VERSION {
        return Err(Error::Newer(format!(
            "{} has format {version}, which this closehook does not know: run the newer version",
            path.display()
        )));
    }
    serde_json::from_slice(text).map_err(damaged)
}

/// Replaces a file, durably, mode 0600, for the data directory's owner.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    replace(path, &text_of(path, value)?)
}

/// A file's content, as [`write_json`] writes it.
pub(super) fn text_of<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, Error> {
    let text = serde_json::to_vec_pretty(value);
    text.map_err(|error| Error::Local(format!("{} can't be written: {error}", path.display())))
}

/// Does what may wait for the disk, on no thread of the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = task::begin_blocking(work).await;
    done.map_err(|error| Error::Local(error.to_string()))?
}

/// Replaces a file's content as [`write_json`] does. Blocking.
pub(super) fn replace(path: &Path, text: &[u8]) -> Result<(), Error> {
    // What another node has changed is copied here by more than one at a time, and each goes by the same file beside it.
    static REPLACING: Mutex<()> = Mutex::new(());
    let _replacing = lock(&REPLACING);
    let fail = |error: &dyn std::fmt::Display| Error::Local(format!("{} can't be written: {error}", path.display()));
    let dir = path.parent().ok_or_else(|| fail(&"it has no directory"))?;
    if !dir.exists() {
        framefile::make_dir(dir).map_err(|error| fail(&error))?;
        framefile::sync_parent(dir).map_err(|error| fail(&error))?;
        leave_to_owner(dir);
    }
    // It is the daemon's from the moment that it has its name: one that is root's could not be read by it, once this was cut off.
    let owner = owner_of(dir).map_err(|error| fail(&error))?;
    framefile::replace_file_as(path, text, 0o600, owner).map_err(|error| fail(&error))
}

/// Removes a file, durably; what is not there is removed. Blocking.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match std::fs::remove_file(path) {
        Ok(()) => framefile::sync_parent(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| Error::Local(format!("{} can't be removed: {error}", path.display())))
}

/// A command run by root must not lock the daemon out of its own files: they belong to whoever owns the directory they are in.
fn leave_to_owner(path: &Path) {
    if let Some(Ok(Some((user, group)))) = path.parent().map(owner_of) {
        // If it fails, the daemon's own error says so better.
        let _ = std::os::unix::fs::lchown(path, Some(user), Some(group));
    }
}

/// Whose what root makes in a directory is to be; `None`: whoever makes it is who has it.
fn owner_of(dir: &Path) -> std::io::Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let dir = std::fs::metadata(dir)?;
    Ok(Some((dir.uid(), dir.gid())))
}

/// Waits for the right to replace a file; given back when the handle is dropped. Whoever has it may be a process that stands still, so
/// it is not waited for for ever, and no longer than `gives_up` lets it.
pub(super) async fn lock_beside(path: &Path, gives_up: impl Fn() -> bool) -> Result<File, Error> {
    let lock_path = path.with_extension("lock");
    let opening = lock_path.clone();
    let file = blocking(move || open_lock(&opening)).await?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(not_locked(&lock_path, &error)),
            Err(TryLockError::WouldBlock) if gives_up() => return Err(Error::Interrupted),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCKED_WITHIN => tokio::time::sleep(LOCK_EVERY).await,
            Err(TryLockError::WouldBlock) => {
                let lock = lock_path.display();
                return Err(Error::Local(format!(
                    "another process holds {lock} and did not give it back within {} s: `fuser {lock}` shows which; it may be a \
                     `closehook check --probe`, or another command, that was stopped in the middle (Ctrl-Z): let it go on, or end it",
                    LOCKED_WITHIN.as_secs()
                )));
            }
        }
    }
}

fn open_lock(lock_path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |error: std::io::Error| not_locked(lock_path, &error);
    if let Some(dir) = lock_path.parent()
        && !dir.exists()
    {
        framefile::make_dir(dir).map_err(fail)?;
        leave_to_owner(dir);
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(lock_path)
        .map_err(fail)?;
    leave_to_owner(lock_path);
    Ok(file)
}

fn not_locked(lock_path: &Path, error: &std::io::Error) -> Error {
    Error::Local(format!("{} can't be locked: {error}", lock_path.display()))
}
