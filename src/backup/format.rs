//! What a backup is made of.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::Seq;
use crate::framefile::{Format, FrameError};
use crate::log::OpenError;

/// What a backup is.
pub(super) const FORMAT: Format = Format {
    magic: *b"CLHKBKUP",
    version: 1,
};

pub(super) const TAG_HEAD: u32 = 1;
pub(super) const TAG_STATE: u32 = 2;
pub(super) const TAG_GAPS: u32 = 3;
pub(super) const TAG_FILE: u32 = 4;
pub(super) const TAG_DATA: u32 = 5;
pub(super) const TAG_SEGMENT: u32 = 6;
pub(super) const TAG_BLOCK: u32 = 7;
pub(super) const TAG_END: u32 = 8;

/// Bytes of a file in one frame.
pub(super) const DATA_LEN: usize = 256 << 10;

/// Values of the state at the most: sinks and replays, of which nobody has so many.
pub(super) const STATE_VALUES_MAX: usize = 100_000;

/// Small files of the data directory that are replaced as a whole, never changed: signature keys and what is known of Close.
pub(super) const FILES: [&str; 1] = ["signature_key"];

/// Directories of such files, with what is below them.
pub(super) const DIRECTORIES: [&str; 2] = ["close", "acme"];

/// Why a backup can't be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The data directory's side failed.
    #[error("{0}")]
    Data(String),
    /// Writing the backup failed, or writing what is restored.
    #[error("{what} can't be written: {source}{}", crate::files::room_advice(source))]
    Write {
        /// Which file, or what.
        what: String,
        /// What the file system said.
        source: io::Error,
    },
    /// The directory can't take a restored log.
    #[error(transparent)]
    Directory(#[from] OpenError),
    /// It is no backup, of a newer version, or damaged.
    #[error("{error}")]
    Unusable {
        /// What is wrong, and where.
        error: FrameError,
    },
    /// It ends too early.
    #[error("{0} is cut off: its end is missing, so it was not written or copied completely")]
    CutOff(PathBuf),
    /// Each frame is whole, and together they are not what was written.
    #[error("{path} is not what was written as a backup: {why}")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What stands at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// closehook's version.
    pub version: String,
    /// When the backup began.
    pub made_at: Timestamp,
    /// Which log it is of; empty in backups from before there were ids, whose id is their epoch.
    #[serde(default)]
    pub id: String,
    /// Which life of that log.
    pub epoch: String,
    /// The last Seq that was given out when it began.
    pub last: Seq,
}

impl Head {
    pub(super) fn log_id(&self) -> &str {
        if self.id.is_empty() { &self.epoch } else { &self.id }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When it began.
    pub made_at: Timestamp,
    /// Events.
    pub events: u64,
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// Sinks with a position.
    pub sinks: u64,
    /// Bytes of the backup.
    pub bytes: u64,
    /// Ranges of events (inclusive) that damage has taken from the log, and so from the backup.
    pub damaged: Vec<(Seq, Seq)>,
    /// Ranges of events (inclusive) that were dropped from the log while the backup was made.
    #[serde(default)]
    pub expired: Vec<(Seq, Seq)>,
    /// Known keys that are damaged, one sentence for each set: they are not in the backup, or not in what was restored.
    #[serde(default)]
    pub damaged_keys: Vec<String>,
    /// Dead letters that damage has taken, one sentence for each sink: they are not in the backup.
    #[serde(default)]
    pub damaged_letters: Vec<String>,
    /// What is damaged or missing and no daemon had put right when the backup was made without one, a sentence for each, and what to do: what a
    /// start would save of it is not in the backup.
    #[serde(default)]
    pub unrepaired: Vec<String>,
}

/// What stands at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub events: u64,
    pub first: Seq,
    pub last: Seq,
    pub damaged: Vec<(Seq, Seq)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expired: Vec<(Seq, Seq)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_letters: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unrepaired: Vec<String>,
    /// SHA-256 of all tags and payloads before it, as hex.
    pub sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Segment {
    pub first: Seq,
    pub sealed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileHead {
    pub path: PathBuf,
}

/// Digest over frames, so that none of them can be missing.
#[derive(Debug, Default)]
pub(super) struct Frames(Sha256);

impl Frames {
    pub fn add(&mut self, tag: u32, parts: &[&[u8]]) {
        self.0.update(tag.to_le_bytes());
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.0.update((len as u64).to_le_bytes());
        for part in parts {
            self.0.update(part);
        }
    }

    pub fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_backup_is_of_the_log_that_had_its_epoch() {
        let head = |id: &str| {
            let text = format!(r#"{{"version":"0.1.0","made_at":"2024-02-15T12:48:23Z",{id}"epoch":"e1","last":7}}"#);
            serde_json::from_str::<Head>(&text).unwrap()
        };
        assert_eq!(head("").log_id(), "e1");
        assert_eq!(head(r#""id":"e0","#).log_id(), "e0");
    }
}
