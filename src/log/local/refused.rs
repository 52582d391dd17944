//! Why a data directory is not opened, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::{files, framefile};

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
    /// There is a log, and not what says which one it is.
    #[error(
        "{path} is missing, which says which log is in this directory: put it back from a copy of the directory, or start `closehook serve`, \
         which makes it anew; no event is lost then, but the log counts as another one: that it was copied to or from other servers is not \
         known any more, and files of sinks are only appended to the first time"
    )]
    DescriptionMissing {
        /// Which file.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{path} is not closehook's: {why}")]
    Alien {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What it should say of the log beside it can't be made out.
    #[error(
        "{path} is damaged: {why}; `closehook serve` sets it aside and makes it anew, and nothing of the log is lost"
    )]
    DescriptionDamaged {
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
    #[error(
        "{0} holds a restore that was cut off: run `closehook restore` again, it begins anew, or remove what is in it"
    )]
    Unfinished(PathBuf),
    /// The log in it is not all there yet.
    #[error(
        "{0} holds a copy of a log that was cut off: run `closehook log copy --to local` again, it goes on where it was"
    )]
    UnfinishedCopy(PathBuf),
    /// Its log goes on somewhere else.
    #[error(
        "the log in {dir} was copied to {to}, and goes on there: set log.engine to that, or run `closehook log reopen` to have it served here again"
    )]
    Moved {
        /// Which directory.
        dir: PathBuf,
        /// Where it went.
        to: String,
    },
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
fn advice(error: &io::Error) -> &'static str {
    if framefile::is_bad_medium(error) {
        "the disk does not give it back: look into the kernel's log (dmesg), and restore a backup on another disk if it stays so"
    } else if error.kind() == io::ErrorKind::InvalidInput {
        "somebody has put it there: move it away, and put back what was there from a backup"
    } else if files::is_full(error) {
        "make room on that file system, or choose another place"
    } else if is_limit(error) {
        "raise the limit of open files (LimitNOFILE= of the unit, or ulimit -n): the log opens more of them the more it holds"
    } else {
        "check that the directory exists and belongs to the user closehook runs as"
    }
}

/// Whether there are too many open files: nothing is known of the file then.
fn is_limit(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}
