//! How the list is kept: as one frame, with a checksum, in a file that is replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::event::Seq;
use crate::framefile::{self, Format, FrameError, StreamWriter};
use crate::log::Gap;
use crate::log::local::refused::OpenError;

/// The file, in the data directory.
pub(super) const NAME: &str = "gaps";

/// As older versions kept the list: JSON without a checksum, and without where the log begins. It is read once.
pub(super) const OLD_NAME: &str = "gaps.json";

const FORMAT: Format = Format {
    magic: *b"CLHKGAPS",
    version: 1,
};

const TAG: u32 = 0;

/// What is on record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where the log begins: what is missing from here on and is no gap was there. `None`: nobody knows, as in a data directory from before that
    /// was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<Seq>,
    /// Newest last.
    pub gaps: Vec<Gap>,
}

/// What a data directory holds of it.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole one.
    Whole(Record),
    /// None at all.
    Nothing,
    /// One of which nothing can be believed.
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads what is on record. What can't be read now is an error, and so is what a newer version has written.
pub(super) fn read(dir: &Path) -> Result<Found, OpenError> {
    read_around(dir, || {})
}

/// `between`: what happens after one was looked for under the new name.
fn read_around(dir: &Path, between: impl FnOnce()) -> Result<Found, OpenError> {
    if let Some(found) = read_new(dir)? {
        return Ok(found);
    }
    between();
    match read_old(dir)? {
        // The first start after an upgrade may just have put the new one in its place.
        Found::Nothing => Ok(read_new(dir)?.unwrap_or(Found::Nothing)),
        found => Ok(found),
    }
}

/// `None`: there is none.
fn read_new(dir: &Path) -> Result<Option<Found>, OpenError> {
    let path = dir.join(NAME);
    let mut lists = Vec::new();
    let scanned = framefile::scan(&path, FORMAT, |frame| lists.push((frame.tag, frame.payload.to_vec())));
    let why = match scanned {
        Ok(scan) if scan.damage.is_empty() && scan.torn == 0 => match lists.as_slice() {
            [(TAG, json)] => match serde_json::from_slice(json) {
                Ok(record) => return Ok(Some(Found::Whole(record))),
                Err(error) => error.to_string(),
            },
            _ => "it holds no list".to_owned(),
        },
        Ok(_) => "its checksum is wrong".to_owned(),
        Err(FrameError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(FrameError::Io { path, source }) if !framefile::is_damage(&source) => {
            return Err(OpenError::Io { path, source });
        }
        Err(FrameError::Io { source, .. }) => source.to_string(),
        Err(error @ FrameError::Newer { .. }) => return Err(OpenError::Unreadable(error.to_string())),
        Err(_) => "it does not begin as such a list does".to_owned(),
    };
    Ok(Some(Found::Damaged { path, why }))
}

fn read_old(dir: &Path) -> Result<Found, OpenError> {
    let path = dir.join(OLD_NAME);
    let read = crate::files::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
    match read {
        Ok(gaps) => Ok(Found::Whole(Record { begins: None, gaps })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) if framefile::is_damage(&error) => Ok(Found::Damaged {
            path,
            why: error.to_string(),
        }),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// Writes it durably. An old one goes then: nobody reads it any more.
pub(super) fn write(dir: &Path, record: &Record) -> io::Result<()> {
    let mut frames = StreamWriter::new(Vec::new(), FORMAT)?;
    frames.append(TAG, &[&serde_json::to_vec(record)?])?;
    framefile::replace_file(&dir.join(NAME), &frames.finish()?)?;
    match std::fs::remove_file(dir.join(OLD_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "{OLD_NAME} of an older closehook can't be removed; it is of no use any more");
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins_at(seq: u64) -> Record {
        Record {
            begins: Some(Seq(seq)),
            gaps: Vec::new(),
        }
    }

    fn is_damaged(dir: &Path) -> bool {
        matches!(read(dir), Ok(Found::Damaged { path, .. }) if path == dir.join(NAME))
    }

    fn whole(dir: &Path) -> Record {
        match read(dir) {
            Ok(Found::Whole(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_bit_of_it_changes_unnoticed_and_no_part_is_taken_for_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &begins_at(1_234_567)).unwrap();
        let path = dir.path().join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                std::fs::write(&path, &changed).unwrap();
                // What is in reserve, behind the header's version, counts as well.
                assert!(is_damaged(dir.path()), "bit {bit} of byte {at}");
            }
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(is_damaged(dir.path()), "{at} bytes of it");
        }
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(whole(dir.path()), begins_at(1_234_567));
    }

    #[test]
    fn one_of_a_newer_version_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let newer = Format {
            version: FORMAT.version + 1,
            ..FORMAT
        };
        let mut frames = StreamWriter::new(Vec::new(), newer).unwrap();
        frames.append(TAG, &[b"[]"]).unwrap();
        let bytes = frames.finish().unwrap();
        std::fs::write(dir.path().join(NAME), &bytes).unwrap();
        let refused = read(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("newer version"), "{refused}");
        assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), bytes);
    }

    #[test]
    fn an_old_list_is_read_once_and_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"[{"from": 5, "to": 9, "reason": "why", "found_at": "2024-02-15T12:48:23Z"}]"#;
        std::fs::write(dir.path().join(OLD_NAME), old).unwrap();
        let record = whole(dir.path());
        assert_eq!((record.begins, record.gaps.len(), record.gaps[0].to), (None, 1, Seq(9)));
        write(dir.path(), &record).unwrap();
        assert!(!dir.path().join(OLD_NAME).exists());
        assert_eq!(whole(dir.path()), record);
        // As when a daemon does so while somebody looks.
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        std::fs::write(dir.path().join(OLD_NAME), old).unwrap();
        match read_around(dir.path(), || write(dir.path(), &record).unwrap()) {
            Ok(Found::Whole(found)) => assert_eq!(found, record),
            other => panic!("{other:?}"),
        }
        // As after a crash in between.
        std::fs::write(dir.path().join(OLD_NAME), "[]").unwrap();
        assert_eq!(whole(dir.path()), record);
    }
}
