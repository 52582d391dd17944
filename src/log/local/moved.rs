//! The note in a data directory that its log was copied to somewhere else and goes on there, so that nobody serves both.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::description::Description;
use super::refused::OpenError;
use crate::event::Seq;
use crate::{files, framefile};

const NAME: &str = "copied.json";

/// Where a log went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// For people.
    pub to: String,
    /// When.
    pub at: Timestamp,
}

/// Where the log of a data directory went; `None`: nowhere. An error is not an absence.
pub fn moved(dir: &Path) -> io::Result<Option<Moved>> {
    match files::read(&dir.join(NAME)) {
        // Whatever it says: somebody has noted it.
        Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|_| Moved {
            to: "somewhere else".into(),
            at: Timestamp::UNIX_EPOCH,
        }))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Id and epoch of the log in a data directory, both empty where they can't be read; `None`: there is none. An error is not an absence.
pub fn identity(dir: &Path) -> io::Result<Option<(String, String)>> {
    match Description::open(dir, false) {
        Ok(description) => Ok(Some((description.id, description.epoch))),
        Err(OpenError::Missing(_)) if !dir.join("log").try_exists()? => Ok(None),
        Err(OpenError::Io { source, .. }) => Err(source),
        // Whatever is wrong with it: something is there.
        Err(_) => Ok(Some((String::new(), String::new()))),
    }
}

/// Refuses a directory whose log went to somewhere else.
pub fn refuse_moved(dir: &Path) -> Result<(), OpenError> {
    match moved(dir) {
        Ok(None) => Ok(()),
        Ok(Some(moved)) => Err(OpenError::Moved {
            dir: dir.to_owned(),
            to: moved.to,
        }),
        Err(source) => Err(OpenError::Io {
            path: dir.join(NAME),
            source,
        }),
    }
}

/// Up to where the other engine, from or to which the log of a data directory was copied, holds what is here; `None`: that is not known.
pub fn shared_upto(dir: &Path) -> Result<Option<Seq>, OpenError> {
    Ok(Description::open(dir, false)?.shared_upto)
}

/// Notes where the log went, which ends at a Seq, durably. Only for the holder of the directory.
pub fn note_moved(dir: &Path, to: &str, last: Seq) -> Result<(), OpenError> {
    Description::open(dir, false)?.note_shared(dir, Some(last))?;
    let note = dir.join(NAME);
    write_note(&note, to).map_err(|source| OpenError::Io { path: note, source })
}

fn write_note(note: &Path, to: &str) -> io::Result<()> {
    let moved = Moved {
        to: to.to_owned(),
        at: Timestamp::now(),
    };
    framefile::replace_file(note, &serde_json::to_vec_pretty(&moved)?)
}

/// The log may be served here again: as another life of it, since the other one may have gone on. Only for the holder of the directory.
pub fn reopen(dir: &Path) -> Result<(), OpenError> {
    let before = Description::open(dir, false)?;
    // In one step: what comes here from now on is not there.
    Description::make_another(dir, before)?;
    let note = dir.join(NAME);
    let remove = || {
        std::fs::remove_file(&note)?;
        framefile::sync_dir(dir)
    };
    remove().map_err(|source| OpenError::Io {
        path: note.clone(),
        source,
    })
}
