//! The directory of all letters' files, and a letter's event wherever it is kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Letters, is_gone, names};
use crate::deliver::reading::{aside, detached, within};
use crate::deliver::types::DEAD;
use crate::event::{Event, Kind, Seq};
use crate::log::Log;
use crate::sorted;

/// Whether a path, relative to the data directory, is that of a file of dead letters.
pub fn is_dead_letters(path: &Path) -> bool {
    path.parent() == Some(Path::new(DEAD))
}

/// The files of dead letters: their sinks and paths.
pub(in crate::deliver) fn listed(dir: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in entries(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && names::is_of_sink(&entry.path(), &name)? {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Files of dead letters that were damaged and set aside.
pub(in crate::deliver) fn asides(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in entries(dir)? {
        let entry = entry?;
        if names::is_aside(&entry.path(), &entry.file_name().to_string_lossy())? {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What is in the directory; nothing where there is none.
fn entries(dir: &Path) -> std::io::Result<impl Iterator<Item = std::io::Result<std::fs::DirEntry>>> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => Some(listing),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(listing.into_iter().flatten())
}

/// The letters of every sink that has any, read as far as that is possible: what can't be read now keeps nobody from starting, and its
/// own sink waits for it. Blocking.
pub(in crate::deliver) fn open_all(dir: &Path, read_only: bool) -> BTreeMap<String, Letters> {
    let found = match listed(dir) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "the dead letters can't be looked at; this is tried again");
            Vec::new()
        }
    };
    let open = |(sink, _): (String, PathBuf)| {
        let letters = Letters::new(dir, &sink, read_only);
        if let Err(error) = letters.read() {
            tracing::error!(sink, %error, "the sink's dead letters can't be read; it waits for them");
        }
        (sink, letters)
    };
    sorted::map(found.into_iter().map(open))
}

/// The files of these sinks themselves, in this order: below the data directory, open, and how long each is. One after the other, so that
/// what goes from one to another meanwhile is in one of them where who gives comes first. Blocking.
pub(in crate::deliver) fn files(dir: &Path, sinks: &[String]) -> std::io::Result<Vec<(PathBuf, std::fs::File, u64)>> {
    let mut files = Vec::new();
    for sink in sinks {
        let file = match std::fs::File::open(dir.join(sink)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        files.push((Path::new(DEAD).join(sink), file, len));
    }
    Ok(files)
}

/// Whether an event at a letter's Seq is the letter's, which has this id, as far as both say what they are of. Where the log has lost that one
/// its Seq may have been given out again.
pub(in crate::deliver) fn is_of(event: &Event, id: &str) -> bool {
    match event.kind {
        // Nothing is left of it that would tell.
        Kind::Erased => true,
        _ if id.is_empty() => true,
        Kind::Quarantined => false,
        Kind::Event | Kind::Partial => event.view().is_none_or(|view| view.id == id),
    }
}

/// The event of a letter with this id: the log's, and where that has dropped it, or has another one there, its copy. An error is not an
/// absence.
pub(in crate::deliver) async fn event_of(
    letters: &Letters,
    log: &dyn Log,
    seq: Seq,
    id: &str,
) -> Result<Option<Arc<Event>>, String> {
    let event = within(log.get(seq)).await.map_err(|error| error.to_string())?;
    if let Some(event) = event.filter(|event| is_of(event, id)) {
        return Ok(Some(detached(event)));
    }
    let letters = letters.clone();
    match aside(move || letters.copy(seq)).await? {
        Ok(copy) => Ok(copy.filter(|copy| is_of(copy, id))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
