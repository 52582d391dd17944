//! Files that commands write where a person says: each takes its name only when it is complete and on disk, replaces nothing
//! unasked, and leaves nothing behind where it fails.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Failure, Outcome};
use crate::framefile;

/// Whose file it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It holds personal data or keys: readable by who made it only (0600).
    Private,
    /// For everybody, as the umask says.
    Public,
}

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
        let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut prefix = name.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        // Without this it gets mode 0600.
        if mode == Mode::Public {
            builder.permissions(Permissions::from_mode(0o666));
        }
        let unnamed = builder
            .prefix(&prefix)
            .suffix(".partial")
            .tempfile_in(parent.unwrap_or(Path::new(".")))
            .map_err(|error| cant(name, &error))?;
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

fn exists(name: &Path) -> Failure {
    Failure::Work(format!(
        "{} exists already: name another file, or overwrite it with --force",
        name.display()
    ))
}

/// What is said of a file that can't be written.
pub(super) fn cant(name: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Work(format!("{} can't be written: {error}", name.display()))
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
