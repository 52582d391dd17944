//! What every durable file needs beside its bytes: names that last, content that is replaced whole, and what an error means.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Syncs the directory a path is in, so that the path itself survives a power cut.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Syncs a directory: the names in it survive a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory that only its owner may look into (mode 0700), and those above it that are missing.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes a file (mode 0600), open for reading and writing: a new one, so that it is nobody else's, and no link to anywhere.
pub fn make_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// The path with something added to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces a small file so that after a crash either the old or the new content is there, never a mixture (mode 0600).
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o600, None).map(drop)
}

/// The same for a file that others read: with these permission bits and, where it is given, this owner (user and group), from
/// the moment it can be seen under its name.
pub fn replace_file_as(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    replace_with(path, content, mode, owner).map(drop)
}

/// The same; gives the file, open for reading and writing.
pub(super) fn replace_with(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<File> {
    let temporary = beside(path, ".tmp");
    // What a crash left goes first.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = make_file(&temporary)?;
    let filled = fill(&file, content, mode, owner);
    if let Err(error) = filled.and_then(|()| std::fs::rename(&temporary, path)) {
        // On a full disk it would take up what is left. That it can't be removed is of less weight than the error.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_parent(path)?;
    Ok(file)
}

/// Makes the content, and who may read it, durable.
fn fill(file: &File, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    file.write_all_at(content, 0)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    if mode != 0o600 {
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    file.sync_all()
}

/// Whether a read failed because what holds the bytes does not give them back, or gives back others than were written: asking
/// again, or as somebody else, is of no use.
pub fn is_bad_medium(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // ENODATA is what drives say of a bad sector, EBADMSG and EUCLEAN what file systems say of a bad checksum.
    const BAD: [Errno; 4] = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::UCLEAN];
    Errno::from_io_error(error).is_some_and(|errno| BAD.contains(&errno))
}

/// Whether a small file's content is at fault, and not the way to it: what `serde_json` says of a text that is none, and the medium of
/// what it has lost.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) || is_bad_medium(error)
}
