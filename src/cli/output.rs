//! Files that commands write where a person says: each takes its name only when it is complete and on disk, replaces nothing
//! unasked, and leaves nothing behind where it fails.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Failure, Outcome};
use crate::{files, framefile};

/// Whose file it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It holds personal data or keys: readable by who made it only (0600).
    Private,
    /// For everybody, as the umask says.
    Public,
}

/// How the name of a file ends that is being written; before that stand so many random letters.
const PARTIAL: &str = ".partial";
const RANDOM_LEN: usize = 6;

/// A file that is being written, under a name of its own until [`NewFile::finish`]; gone if that never comes.
#[derive(Debug)]
pub(super) struct NewFile {
    name: PathBuf,
    unnamed: NamedTempFile,
    force: bool,
}

impl NewFile {
    /// Begins a file beside its place; `force`: also where there is one of that name already.
    pub fn begin(name: &Path, mode: Mode, force: bool) -> Result<NewFile, Failure> {
        refuse_to_overwrite(name, force)?;
        let parent = parent_of(name);
        remove_left(name, parent);
        let mut prefix = name.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        // Without this it gets mode 0600.
        if mode == Mode::Public {
            builder.permissions(Permissions::from_mode(0o666));
        }
        builder.prefix(&prefix).suffix(PARTIAL).rand_bytes(RANDOM_LEN);
        let unnamed = loop {
            let begun = builder.tempfile_in(parent).map_err(|error| cant(name, &error))?;
            // By this others see that somebody still writes it. Where there are no locks, it goes without.
            let _ = begun.as_file().try_lock();
            // Before that it may have looked as if nobody did.
            if begun.path().exists() {
                break begun;
            }
        };
        Ok(NewFile {
            name: name.to_owned(),
            unnamed,
            force,
        })
    }

    /// To write to; what is written through it has to be flushed before [`NewFile::finish`].
    pub fn writer(&mut self) -> BufWriter<&mut std::fs::File> {
        BufWriter::new(self.unnamed.as_file_mut())
    }

    /// Puts what was written on disk, and opens it once more to be read.
    pub fn read_back(&self) -> Result<std::fs::File, Failure> {
        let synced = self.unnamed.as_file().sync_all();
        synced
            .and_then(|()| self.unnamed.reopen())
            .map_err(|error| cant(&self.name, &error))
    }

    /// Gives it its name, durably.
    pub fn finish(self) -> Outcome {
        let NewFile { name, unnamed, force } = self;
        unnamed.as_file().sync_all().map_err(|error| cant(&name, &error))?;
        let named = if force {
            unnamed.persist(&name)
        } else {
            unnamed.persist_noclobber(&name)
        };
        match named {
            Ok(_) => {}
            // Somebody else made it meanwhile.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&name)),
            Err(error) => return Err(cant(&name, &error.error)),
        }
        framefile::sync_parent(&name).map_err(|error| cant(&name, &error))
    }
}

/// Removes what runs that were killed have left beside a file that they did not come to name: that of one that still runs is locked.
fn remove_left(name: &Path, parent: &Path) {
    let Some(name) = name.file_name().and_then(|name| name.to_str()) else {
        return;
    };
    let is_left = |entry: &str| {
        let random = entry
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('.')?.strip_suffix(PARTIAL));
        random
            .is_some_and(|random| random.len() == RANDOM_LEN && random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    };
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(is_left) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let is_left = std::fs::File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if is_left && std::fs::remove_file(&path).is_ok() {
            tracing::warn!(
                "an earlier run was killed and had left {}: it is removed",
                path.display()
            );
        }
    }
}

/// Writes a whole file.
pub(super) fn write(name: &Path, content: &[u8], mode: Mode, force: bool) -> Outcome {
    let mut file = NewFile::begin(name, mode, force)?;
    let mut out = file.writer();
    let written = out.write_all(content).and_then(|()| out.flush());
    drop(out);
    written.map_err(|error| cant(name, &error))?;
    file.finish()
}

/// Refuses what is there already: before long work, and without `force`. What is no regular file is refused in any case: it would
/// be replaced by one, and a device or a pipe is written to over standard output.
pub(super) fn refuse_to_overwrite(name: &Path, force: bool) -> Outcome {
    match std::fs::metadata(name) {
        Ok(metadata) if metadata.is_dir() => Err(Failure::Work(format!(
            "{} is a directory: name a file in it",
            name.display()
        ))),
        Ok(metadata) if !metadata.is_file() => Err(Failure::Work(format!(
            "{} is no regular file: say - and redirect standard output to it",
            name.display()
        ))),
        _ if force || name.symlink_metadata().is_err() => Ok(()),
        _ => Err(exists(name)),
    }
}

/// Refuses a place in the data directory, whatever links lead there: what is in it is closehook's own.
pub(super) fn refuse_in_data_dir(name: &Path, dir: &Path) -> Outcome {
    if !is_below(parent_of(name), dir) {
        return Ok(());
    }
    Err(Failure::Work(format!(
        "{} is in the data directory {}, where closehook keeps the event log, known keys, positions and dead letters: what else is there counts \
         towards log.max_size, and may be removed or taken for a part of them; name a place outside of it",
        name.display(),
        dir.display()
    )))
}

fn parent_of(name: &Path) -> &Path {
    let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Whether a directory is another one, or anywhere below it. What is not there is in none.
fn is_below(place: &Path, dir: &Path) -> bool {
    let Ok(place) = std::fs::canonicalize(place) else {
        return false;
    };
    let of_dir = files::id(dir);
    of_dir.is_some() && place.ancestors().any(|above| files::id(above) == of_dir)
}

fn exists(name: &Path) -> Failure {
    Failure::Work(format!(
        "{} exists already: name another file, or overwrite it with --force",
        name.display()
    ))
}

/// What is said of a file that can't be written.
pub(super) fn cant(name: &Path, error: &io::Error) -> Failure {
    let advice = files::room_advice(error);
    Failure::Work(format!("{} can't be written: {error}{advice}", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn said(outcome: Outcome) -> String {
        match outcome {
            Err(Failure::Work(text)) => text,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("out.jsonl");
        let mut begun = NewFile::begin(&name, Mode::Private, false).unwrap();
        begun.writer().write_all(b"half").unwrap();
        assert_eq!(listing(dir.path()).len(), 1, "it is being written");
        assert!(!name.exists());
        drop(begun);
        assert_eq!(listing(dir.path()), [""; 0]);

        write(&name, b"one", Mode::Private, false).unwrap();
        assert_eq!(std::fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(said(write(&name, b"two", Mode::Private, false)).contains("--force"));
        assert_eq!(std::fs::read(&name).unwrap(), b"one");
        write(&name, b"two", Mode::Private, true).unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"two");
        assert_eq!(listing(dir.path()), ["out.jsonl"]);
    }

    #[test]
    fn nothing_is_put_into_the_data_directory_whatever_leads_there() {
        let dir = tempfile::tempdir().unwrap();
        let (data, beside) = (dir.path().join("data"), dir.path().join("beside"));
        let (inner, link) = (data.join("log"), dir.path().join("link"));
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        for name in [
            data.join("all.jsonl"),
            inner.join("00000000000000000001"),
            link.join("all.jsonl"),
            beside.join("../data/all.jsonl"),
        ] {
            let said = said(refuse_in_data_dir(&name, &data));
            assert!(
                said.contains("is in the data directory") && said.contains("outside"),
                "{said}"
            );
        }
        // Named by another way itself.
        let also = dir.path().join("also");
        std::os::unix::fs::symlink(&data, &also).unwrap();
        assert!(refuse_in_data_dir(&data.join("all.jsonl"), &also).is_err());
        for name in [
            beside.join("all.jsonl"),
            dir.path().join("data.jsonl"),
            beside.join("none/all.jsonl"),
        ] {
            refuse_in_data_dir(&name, &data).unwrap();
        }
        refuse_in_data_dir(&data.join("all.jsonl"), &dir.path().join("none")).unwrap();
    }

    #[test]
    fn what_somebody_else_made_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("out");
        let begun = NewFile::begin(&name, Mode::Private, false).unwrap();
        std::fs::write(&name, "theirs").unwrap();
        assert!(said(begun.finish()).contains("exists already"));
        assert_eq!(std::fs::read(&name).unwrap(), b"theirs");
        assert_eq!(listing(dir.path()), ["out"]);
    }

    #[test]
    fn what_is_no_file_is_never_replaced_and_no_link_is_written_through() {
        let dir = tempfile::tempdir().unwrap();
        assert!(said(write(dir.path(), b"", Mode::Private, true)).contains("is a directory"));
        assert!(said(write(Path::new("/dev/null"), b"", Mode::Private, true)).contains("no regular file"));
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(said(write(&link, b"new", Mode::Private, false)).contains("exists already"));
        write(&link, b"new", Mode::Private, true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"kept");
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert!(said(write(&dir.path().join("dangling"), b"new", Mode::Private, false)).contains("exists already"));
    }
}
