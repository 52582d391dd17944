//! How much of a file of letters is durable, as the sink's record notes it. A file that is gone, or that was cut off, does not show by itself
//! that there were letters in it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// A file, and how long it is at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct Extent {
    ino: u64,
    /// When it was made, in nanoseconds, as files that are written anew get numbers again that others had; 0: not every file system knows.
    made: u64,
    len: u64,
}

impl Extent {
    /// Of the file with this name, of which so much is durable; `None`: it can't be looked at. Blocking.
    pub fn of(path: &Path, len: u64) -> Option<Extent> {
        let metadata = std::fs::metadata(path).ok()?;
        let made = metadata
            .created()
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let made = made.and_then(|made| u64::try_from(made.as_nanos()).ok());
        Some(Extent {
            ino: metadata.ino(),
            made: made.unwrap_or_default(),
            len,
        })
    }

    /// The file's number, and when it was made.
    pub fn file(self) -> (u64, u64) {
        (self.ino, self.made)
    }

    /// Whether it is known to be of the same file.
    pub fn is_of(&self, other: Extent) -> bool {
        self.made > 0 && self.file() == other.file()
    }

    /// How many bytes of it are missing now. Of another file, as after one was written anew or restored, nothing is known.
    pub fn lacks(&self, now: Extent) -> u64 {
        if self.is_of(now) {
            self.len.saturating_sub(now.len)
        } else {
            0
        }
    }
}
