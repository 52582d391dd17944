//! Files that were rotated away: their names, compressing them, and how many stay.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::Rotate;
use crate::framefile;

/// `events.jsonl` becomes `events-20260102T030405Z.jsonl`, with a number where that is taken.
pub(super) fn rotated_name(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = stem_and_extension(path);
    let stamp = now.strftime("%Y%m%dT%H%M%SZ");
    (0..u32::MAX)
        .map(|number| {
            let suffix = if number == 0 {
                String::new()
            } else {
                format!("-{number}")
            };
            path.with_file_name(format!("{stem}-{stamp}{suffix}{extension}"))
        })
        .find(|candidate| !candidate.exists() && !framefile::beside(candidate, ".gz").exists())
        .unwrap_or_else(|| path.to_owned())
}

fn stem_and_extension(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = text(path.extension());
    (
        text(path.file_stem()),
        if extension.is_empty() {
            extension
        } else {
            format!(".{extension}")
        },
    )
}

/// Files that this sink has rotated away, oldest first; of one second, in the order of their numbers.
pub(super) fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (stem, extension) = stem_and_extension(path);
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(&format!("{stem}-")) else {
            continue;
        };
        let rest = rest.strip_suffix(".tmp").unwrap_or(rest);
        let rest = rest.strip_suffix(".gz").unwrap_or(rest);
        let Some(stamp) = rest.strip_suffix(&extension) else {
            continue;
        };
        let (stamp, number) = stamp.split_once('-').unwrap_or((stamp, "0"));
        let Ok(number) = number.parse::<u32>() else { continue };
        let is_stamp = stamp.len() == 16
            && stamp.bytes().enumerate().all(|(index, byte)| match index {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
        if is_stamp {
            found.push((stamp.to_owned(), number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
}

/// One at a time in the whole process: two sinks never share files, but a restart of one may overlap.
static TIDYING: Mutex<()> = Mutex::new(());

/// Compresses what is left to be, and removes what is too much.
pub(super) fn tidy(path: &Path, rotate: &Rotate) -> io::Result<()> {
    let _one_at_a_time = TIDYING.lock().unwrap_or_else(PoisonError::into_inner);
    for file in rotated_files(path)? {
        let name = file.to_string_lossy();
        if name.ends_with(".gz.tmp") {
            std::fs::remove_file(&file)?;
        } else if rotate.compress && !name.ends_with(".gz") {
            compress(&file)?;
        }
    }
    if let Some(keep) = rotate.keep {
        let files = rotated_files(path)?;
        for file in files.iter().take(files.len().saturating_sub(keep)) {
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let temporary = framefile::beside(file, ".gz.tmp");
    let mut source = File::open(file)?;
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&temporary)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            read => encoder.write_all(&buffer[..read])?,
        }
    }
    encoder.finish()?.sync_all()?;
    std::fs::rename(&temporary, framefile::beside(file, ".gz"))?;
    framefile::sync_parent(file)?;
    std::fs::remove_file(file)
}
