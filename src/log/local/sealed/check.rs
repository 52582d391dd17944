//! Whether a database is still what was sealed, and what is done about it where only its small files are not.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::fault::SegmentError;
use super::database::{FileSum, files_below, sum};
use super::manifest::{Kept, is_gone};
use crate::framefile::{self, is_bad_medium};

/// What is done about a small file that is not what was sealed.
pub(super) const PUT_BACK: &str = "a small file of a sealed segment is damaged; it is put back from the manifest";

/// The same by somebody who has only a copy of it.
pub(super) const READ_FROM_MANIFEST: &str =
    "a small file of a sealed segment is damaged; what the manifest keeps of it is read instead";

/// One file that is not what was sealed.
#[derive(Debug)]
pub(super) struct Fault {
    pub name: String,
    pub why: String,
}

/// Compares a database's files with what was sealed, before it is opened. An error is no fault: nothing is known then.
/// `progress` answers `false` to stop.
pub(super) fn faults(dir: &Path, sums: &[FileSum], progress: &mut dyn FnMut() -> bool) -> io::Result<Vec<Fault>> {
    faults_of(dir, dir, sums, progress)
}

/// The same of a copy, whose faults have the original's name: nobody else can find the copy.
pub(super) fn faults_of(
    copy: &Path,
    original: &Path,
    sums: &[FileSum],
    progress: &mut dyn FnMut() -> bool,
) -> io::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for expected in sums {
        let (path, named) = (copy.join(&expected.name), original.join(&expected.name));
        if let Some(why) = fault(&path, &named, expected, progress)? {
            let name = expected.name.clone();
            faults.push(Fault { name, why });
        }
    }
    Ok(faults)
}

fn fault(
    path: &Path,
    named: &Path,
    expected: &FileSum,
    progress: &mut dyn FnMut() -> bool,
) -> io::Result<Option<String>> {
    let at = named.display();
    let judge = |error: io::Error| {
        if !is_gone(&error) {
            return Err(io::Error::new(error.kind(), format!("{at}: {error}")));
        }
        Ok(Some(if is_bad_medium(&error) {
            format!("{at}: the disk does not give it back ({error})")
        } else if error.kind() == io::ErrorKind::NotFound {
            format!("{at}: it is missing")
        } else {
            format!("{at}: something else is in its place")
        }))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return judge(error),
    };
    match file.metadata() {
        Ok(metadata) if metadata.len() != expected.len => {
            let len = metadata.len();
            return Ok(Some(format!("{at}: it has {len} bytes instead of {}", expected.len)));
        }
        Ok(_) => {}
        Err(error) => return judge(error),
    }
    match sum(file, progress) {
        Ok(crc) if crc == expected.crc => Ok(None),
        Ok(_) => Ok(Some(format!("{at}: its checksum is wrong"))),
        Err(error) => judge(error),
    }
}

/// The first fault as the error it is.
pub(super) fn judged(faults: Vec<Fault>) -> Result<(), SegmentError> {
    match faults.into_iter().next() {
        None => Ok(()),
        Some(fault) => Err(SegmentError::Damaged(fault.why)),
    }
}

/// Puts small files back that are not what was sealed, and says so; gives the faults that remain.
pub(super) fn put_back(dir: &Path, faults: Vec<Fault>, kept: &Kept, said: &str) -> io::Result<Vec<Fault>> {
    let mut remaining = Vec::new();
    for fault in faults {
        let Some(content) = kept.get(&fault.name) else {
            remaining.push(fault);
            continue;
        };
        tracing::error!(fault = fault.why, "{said}");
        match framefile::replace_file(&dir.join(&fault.name), content) {
            Ok(()) => {}
            // The place itself is bad: what is left is saved elsewhere.
            Err(error) if is_gone(&error) => remaining.push(fault),
            Err(error) => return Err(error),
        }
    }
    Ok(remaining)
}

/// Copies into a directory that has none of these files: whoever else may write there may put links in their places.
pub(super) fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    let names = match files_below(from) {
        Ok(names) => names,
        // Nothing is left to be copied.
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names {
        let target = to.join(&name);
        if let Some(parent) = target.parent() {
            framefile::make_dir(parent)?;
        }
        let source = match File::open(from.join(&name)) {
            Ok(source) => source,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let read_at = |piece: &mut [u8], at| source.read_at(piece, at);
        copy_readable(&read_at, &mut framefile::make_file(&target)?)?;
    }
    Ok(())
}

/// Copies what the disk still gives; a piece that it can't read becomes zeros, so that what lies behind keeps its place.
fn copy_readable(read_at: &dyn Fn(&mut [u8], u64) -> io::Result<usize>, target: &mut dyn Write) -> io::Result<()> {
    const PIECE: usize = 1 << 12;
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let mut read = read_at(&mut buffer, at);
        if read.as_ref().is_err_and(is_bad_medium) {
            read = read_at(&mut buffer[..PIECE], at);
        }
        let len = match read {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if is_bad_medium(&error) => {
                buffer[..PIECE].fill(0);
                PIECE
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        target.write_all(&buffer[..len])?;
        at += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn what_a_disk_can_not_read_becomes_zeros_and_the_rest_is_copied() {
        let original: Vec<u8> = (0..700_000_u32).map(|n| n as u8 | 1).collect();
        let bad = 400_000..400_010;
        for errno in [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG] {
            let read_at = |piece: &mut [u8], at: u64| {
                let from = (at as usize).min(original.len());
                let to = (from + piece.len()).min(original.len());
                if from < bad.end && bad.start < to {
                    return Err(io::Error::from(errno));
                }
                piece[..to - from].copy_from_slice(&original[from..to]);
                Ok(to - from)
            };
            let mut copy = Vec::new();
            copy_readable(&read_at, &mut copy).unwrap();
            assert_eq!(copy.len(), original.len());
            let zeros: Vec<usize> = (0..copy.len()).filter(|at| copy[*at] != original[*at]).collect();
            assert_eq!(zeros.len(), 4096, "{errno}");
            assert!(zeros.contains(&400_000) && zeros.contains(&400_009));
        }
    }

    #[test]
    fn a_copy_is_not_written_to_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        for place in [&from, &to] {
            std::fs::create_dir(place).unwrap();
        }
        std::fs::write(from.join("db"), "copied").unwrap();
        let other = dir.path().join("other");
        std::fs::write(&other, "another's").unwrap();
        std::os::unix::fs::symlink(&other, to.join("db")).unwrap();
        let refused = copy_files(&from, &to).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "another's");
    }

    #[test]
    fn what_only_can_not_be_done_now_is_no_fault() {
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::ACCESS,
            Errno::NOMEM,
            Errno::INTR,
            Errno::LOOP,
        ] {
            assert!(!is_gone(&errno.into()), "{errno}");
        }
        for errno in [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG, Errno::NOENT] {
            assert!(is_gone(&errno.into()), "{errno}");
        }
    }
}
