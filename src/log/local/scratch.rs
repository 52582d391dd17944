//! Copies of databases beside the log, for whoever reads a log that another process has, or one that may be damaged: sled writes into what it
//! opens. They hold events, so that nobody else may read them, and what a process that was cut off has left goes with the next one, and with
//! the next erasure.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Once;

use tempfile::{Builder, TempDir};

const PREFIX: &str = "closehook-";

/// A directory that nobody else may look into, and which goes when it is dropped.
pub(super) fn dir() -> io::Result<TempDir> {
    static CLEARED: Once = Once::new();
    let (into, pid) = (std::env::temp_dir(), std::process::id());
    CLEARED.call_once(|| drop(clear_left(&into)));
    let made = Builder::new()
        .prefix(&format!("{PREFIX}{pid}-"))
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(&into);
    made.map_err(|error| named(&into, error))
}

/// Where there is no room for a copy is not where the log is: it is named.
pub(super) fn named(into: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return error;
    }
    let text = format!(
        "{error}: there is no room for a copy of a part of it in {} (TMPDIR)",
        into.display()
    );
    io::Error::new(error.kind(), text)
}

/// Removes what processes have left that are there no more, for an erasure: gives a sentence for each copy that can't be removed and may
/// hold some of it. What a process has that runs goes with it, and may be another log's.
pub(super) fn clear() -> Vec<String> {
    clear_left(&std::env::temp_dir())
}

/// Removes what processes of this user have left that are there no more; names what can't be removed.
fn clear_left(into: &Path) -> Vec<String> {
    let entries = match std::fs::read_dir(into) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("{} can't be looked at for copies: {error}", into.display())],
    };
    let mut left = Vec::new();
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        let is_own = || {
            let metadata = entry.metadata();
            metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own)
        };
        let at = entry.path();
        if let Some(pid) = pid
            && !Path::new("/proc").join(pid.to_string()).exists()
            && is_own()
            && let Err(error) = std::fs::remove_dir_all(&at)
            // Another one may have removed it meanwhile.
            && at.exists()
        {
            left.push(format!(
                "{}: a copy of a part of a log that a command has left, which can't be removed: {error}",
                at.display()
            ));
        }
    }
    left.sort();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_for_nobody_else_and_what_a_dead_process_left_goes() {
        let copy = dir().unwrap();
        let mode = std::fs::metadata(copy.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);

        let into = tempfile::tempdir().unwrap();
        // No process has this number: they end far below.
        let (dead, own) = (
            format!("{PREFIX}4294967295-a"),
            format!("{PREFIX}{}-a", std::process::id()),
        );
        for name in [dead.as_str(), own.as_str(), "closehook-old", "else-4294967295-a"] {
            std::fs::create_dir(into.path().join(name)).unwrap();
        }
        assert_eq!(clear_left(into.path()), [""; 0]);
        let mut left: Vec<_> = std::fs::read_dir(into.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [own, "closehook-old".to_owned(), "else-4294967295-a".to_owned()]);
    }
}
