//! The file that is appended to: which one it is, what of it is cut off when it is opened again, and whose it is.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Seq;
use crate::framefile;
use crate::json::Node;
use crate::sinks::Position;
use crate::sinks::common::place;

/// The mode of a file that takes no other one's place; the process's umask takes away from it.
const MODE: u32 = 0o640;

/// The mode while it is not known yet whose the file will be.
const MODE_AT_FIRST: u32 = 0o600;

/// The access list beside the mode, as the kernel keeps it.
const ACCESS_LIST: &str = "system.posix_acl_access";

#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    /// Where it was opened, all links followed.
    path: PathBuf,
    pub(super) id: FileId,
    /// When the first line was written to it, as far as is known.
    pub(super) since: Timestamp,
    /// The file does not end with a line end: the next write begins with one.
    pub(super) broken_line: bool,
    is_new: bool,
}

/// Which file it is, whatever its name. Not the device's number: that can change when the machine starts again. The time of
/// birth tells a file from a later one that was given the same inode.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct FileId {
    pub(super) inode: u64,
    /// `None` where the file system does not keep it.
    pub(super) born: Option<Timestamp>,
}

impl FileId {
    pub(super) fn of(metadata: &std::fs::Metadata) -> FileId {
        FileId {
            inode: metadata.ino(),
            born: metadata.created().ok().and_then(|at| Timestamp::try_from(at).ok()),
        }
    }

    pub(super) fn is(self, other: FileId) -> bool {
        let both_known = self.born.is_some() && other.born.is_some();
        self.inode == other.inode && (self.born == other.born || !both_known)
    }
}

/// What is saved with the cursor.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    id: FileId,
    len: u64,
    since: Timestamp,
    epoch: String,
    /// Where it was; `None` where that is no text, and in what an older closehook saved.
    #[serde(default)]
    path: Option<String>,
}

impl OpenFile {
    /// Opens the file at a path that is no link, or makes it: `like` the one whose place it takes, if there was one.
    pub(super) fn create(path: &Path, like: Option<&File>) -> io::Result<OpenFile> {
        std::fs::create_dir_all(place::directory_of(path))?;
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(if like.is_some() { MODE_AT_FIRST } else { MODE })
            .open(path)?;
        if is_new && rustix::process::geteuid().is_root() {
            // What a command run by root makes must not lock the daemon out.
            let owner = std::fs::metadata(place::directory_of(path))?;
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        if is_new && let Some(like) = like {
            resemble(&file, like, path);
        }
        let metadata = file.metadata()?;
        framefile::sync_parent(path)?;
        let mut last = [b'\n'];
        if metadata.len() > 0 {
            file.read_exact_at(&mut last, metadata.len() - 1)?;
        }
        Ok(OpenFile {
            file,
            path: path.to_owned(),
            id: FileId::of(&metadata),
            since: Timestamp::now(),
            broken_line: last != [b'\n'],
            is_new,
        })
    }

    /// Opens it, and cuts off what a saved position does not cover.
    pub(super) fn resume(
        path: &Path,
        position: Option<&Position>,
        epoch: &str,
        kept: Option<(Seq, Seq)>,
    ) -> io::Result<OpenFile> {
        let saved: Option<Saved> = position.and_then(|position| serde_json::from_value(position.0.clone()).ok());
        let mut open = OpenFile::create(path, None)?;
        let Some(saved) = saved.filter(|saved| saved.epoch == epoch) else {
            return Ok(open);
        };
        if saved.id.is(open.id) {
            open.since = saved.since;
            tell_what_is_missing(&open.file, path, saved.len)?;
            if cut_off(&mut open.file, path, saved.len, kept)? {
                open.broken_line = false;
            }
        } else if let Some(moved) = find(path, &saved)? {
            // Moved away by a rotation that did not come to its end, or by somebody else, and written to since.
            let mut file = OpenOptions::new().read(true).write(true).open(&moved)?;
            cut_off(&mut file, &moved, saved.len, kept)?;
            if open.is_new {
                resemble(&open.file, &file, path);
            }
        }
        Ok(open)
    }

    /// Where it stands now.
    pub(super) fn position(&self, epoch: &str) -> io::Result<Position> {
        let saved = Saved {
            id: self.id,
            len: self.file.metadata()?.len(),
            since: self.since,
            epoch: epoch.to_owned(),
            path: self.path.to_str().map(str::to_owned),
        };
        Ok(Position(serde_json::to_value(saved)?))
    }
}

/// Gives a new file the owner, the group, the mode and the access list of another one. What can't be given is said, and then nobody
/// else gets what was the group's.
pub(super) fn resemble(new: &File, old: &File, path: &Path) {
    if let Err(error) = take_over(new, old) {
        tracing::warn!(
            path = %path.display(),
            %error,
            "a new file could not be given owner, group and mode of the one before it: whoever read that may not read this one"
        );
    }
}

fn take_over(new: &File, old: &File) -> io::Result<()> {
    let (was, is) = (old.metadata()?, new.metadata()?);
    let owner = (was.uid() != is.uid() && rustix::process::geteuid().is_root()).then(|| was.uid());
    let group = (was.gid() != is.gid()).then(|| was.gid());
    let mut given = Ok(());
    if owner.is_some() || group.is_some() {
        given = std::os::unix::fs::fchown(new, owner, group);
    }
    let for_group = if given.is_ok() { 0o777 } else { 0o707 };
    new.set_permissions(Permissions::from_mode(was.mode() & for_group))?;
    given?;
    // Most files have none, and some file systems know of none.
    let mut list = vec![0; 64 << 10];
    if let Ok(len) = rustix::fs::fgetxattr(old, ACCESS_LIST, &mut list) {
        rustix::fs::fsetxattr(new, ACCESS_LIST, &list[..len], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// The file that a position was saved for: where it was then, or in the directory of `path`.
fn find(path: &Path, saved: &Saved) -> io::Result<Option<PathBuf>> {
    let is_it = |metadata: std::fs::Metadata| metadata.is_file() && FileId::of(&metadata).is(saved.id);
    if let Some(before) = &saved.path
        && std::fs::symlink_metadata(before).is_ok_and(is_it)
    {
        return Ok(Some(before.into()));
    }
    for entry in std::fs::read_dir(place::directory_of(path))? {
        let entry = entry?;
        if is_it(entry.metadata()?) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A file that is shorter than it was when its length was saved has lost lines, and not by this sink. They do not come again, so
/// somebody has to hear of it; what is new goes on behind what is there.
pub(super) fn tell_what_is_missing(file: &File, path: &Path, saved: u64) -> io::Result<u64> {
    let missing = saved.saturating_sub(file.metadata()?.len());
    if missing > 0 {
        tracing::error!(
            path = %path.display(),
            bytes = missing,
            "the file is shorter than when it was last secured: somebody has cut it, or it was damaged, and the lines that are gone are not written again"
        );
    }
    Ok(missing)
}

/// Cuts off what is behind `len`, if it is surely ours and comes again; `true` if anything was.
fn cut_off(file: &mut File, path: &Path, len: u64, kept: Option<(Seq, Seq)>) -> io::Result<bool> {
    let surplus = file.metadata()?.len().saturating_sub(len);
    if surplus == 0 {
        return Ok(false);
    }
    match judge(file, len, kept)? {
        Surplus::Ours => {}
        Surplus::NotOurs => {
            tracing::warn!(
                path = %path.display(),
                "what was written last is not surely ours (somebody else's, or made by a template): nothing is cut off, and the newest events may \
                 stand in it twice"
            );
            return Ok(false);
        }
        Surplus::Gone(seq) => {
            tracing::error!(
                path = %path.display(),
                seq = seq.0,
                "what was written last is of events that the log does not have (was the data directory put back from a copy?): nothing is cut \
                 off, for it would not come again; the newest events may stand in it twice, and their Seqs be given to others"
            );
            return Ok(false);
        }
    }
    tracing::debug!(path = %path.display(), bytes = surplus, "cut off lines that were not saved yet; they come again");
    file.set_len(len)?;
    file.sync_all()?;
    Ok(true)
}

/// What is behind the place up to which a file was secured.
enum Surplus {
    /// Lines as this sink writes them; the last one may be torn.
    Ours,
    NotOurs,
    /// This event is among them, and the log does not have it.
    Gone(Seq),
}

fn judge(file: &mut File, from: u64, kept: Option<(Seq, Seq)>) -> io::Result<Surplus> {
    // What is written between two checkpoints; more than this is not ours to judge.
    const SURPLUS_MAX: u64 = 1 << 30;
    if from > 0 {
        let mut before = [0];
        file.read_exact_at(&mut before, from - 1)?;
        if before != [b'\n'] {
            return Ok(Surplus::NotOurs);
        }
    }
    if file.metadata()?.len() - from > SURPLUS_MAX {
        return Ok(Surplus::NotOurs);
    }
    file.seek(SeekFrom::Start(from))?;
    let mut reader = io::BufReader::new(file);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = io::BufRead::read_until(&mut reader, b'\n', &mut text)?;
        if read == 0 {
            return Ok(Surplus::Ours);
        }
        // A power cut leaves zeros where the length was on disk and the data was not.
        if text.contains(&0) {
            continue;
        }
        let start: &[u8] = br#"{"seq":"#;
        if text.last() != Some(&b'\n') {
            let is_torn = text.starts_with(start) || start.starts_with(&text);
            return Ok(if is_torn { Surplus::Ours } else { Surplus::NotOurs });
        }
        let Ok(line) = crate::json::validate(&text) else {
            return Ok(Surplus::NotOurs);
        };
        let node = Node::new(line);
        let keys = ["seq", "received_at", "source", "rules", "event"];
        let seq = node.get("seq").and_then(|seq| seq.raw().parse().ok().map(Seq));
        let Some(seq) = seq.filter(|_| keys.iter().all(|key| node.get(key).is_some())) else {
            return Ok(Surplus::NotOurs);
        };
        if kept.is_some_and(|(first, head)| seq < first || seq > head) {
            return Ok(Surplus::Gone(seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_before_the_checkpoint_does_not_make_what_is_behind_it_too_much_to_judge() {
        let mut file = tempfile::tempfile().unwrap();
        let from = 700 << 20;
        // Everything else in it is a hole, which takes no room.
        file.write_all_at(b"\n", from - 1).unwrap();
        assert!(matches!(judge(&mut file, from, None), Ok(Surplus::Ours)));
        file.set_len(from + (1 << 30) + 1).unwrap();
        assert!(matches!(judge(&mut file, from, None), Ok(Surplus::NotOurs)));
    }
}
