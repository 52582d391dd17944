//! Files that were moved away: their names, how many of them stay, and compressing them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use jiff::Timestamp;

use super::open::resemble;
use crate::config::{Size, Span};
use crate::framefile;
use crate::sinks::common::place;
use crate::sync::lock;

/// `rotate = { size, age, keep, compress }`
#[derive(Debug, Clone)]
pub(super) struct Rotate {
    pub(super) size: Option<Size>,
    pub(super) age: Option<Span>,
    pub(super) keep: Option<usize>,
    pub(super) compress: bool,
}

/// One file that was moved away: what there is of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rotated {
    pub(super) plain: Option<PathBuf>,
    /// Beside a plain one: it was complete, but the plain one is still to go.
    pub(super) compressed: Option<PathBuf>,
    unfinished: Option<PathBuf>,
}

/// What could not be done to a file; the others were done all the same.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) path: PathBuf,
    /// "removed" or "compressed".
    pub(super) what: &'static str,
    pub(super) error: io::Error,
}

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
pub(super) fn rotated_files(path: &Path) -> io::Result<Vec<Rotated>> {
    let (stem, extension) = stem_and_extension(path);
    let prefix = format!("{stem}-");
    let mut found: BTreeMap<(String, u32), Rotated> = BTreeMap::new();
    for entry in std::fs::read_dir(place::directory_of(path))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What is no file, links among them, was not made here.
        let Some(rest) = name.strip_prefix(&prefix).filter(|_| is_file(&entry)) else {
            continue;
        };
        let (rest, is_unfinished) = cut_end(rest, ".gz.tmp");
        let (rest, is_compressed) = cut_end(rest, ".gz");
        let Some(stamp) = rest.strip_suffix(&extension) else {
            continue;
        };
        let (stamp, number) = stamp.split_once('-').unwrap_or((stamp, "0"));
        let Ok(number) = number.parse::<u32>() else { continue };
        if !is_stamp(stamp) {
            continue;
        }
        let rotated = found.entry((stamp.to_owned(), number)).or_default();
        let place = if is_unfinished {
            &mut rotated.unfinished
        } else if is_compressed {
            &mut rotated.compressed
        } else {
            &mut rotated.plain
        };
        *place = Some(entry.path());
    }
    Ok(found.into_values().collect())
}

fn is_file(entry: &std::fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

fn cut_end<'t>(text: &'t str, end: &str) -> (&'t str, bool) {
    text.strip_suffix(end).map_or((text, false), |text| (text, true))
}

fn is_stamp(text: &str) -> bool {
    text.len() == 16
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}

/// One at a time in the whole process: two sinks never share files, but a restart of one may overlap.
static TIDYING: Mutex<()> = Mutex::new(());

/// Finishes what rotation began. Removing comes first: it makes room, and compressing needs some.
pub(super) fn tidy(path: &Path, rotate: &Rotate) -> Vec<Trouble> {
    let _one_at_a_time = lock(&TIDYING);
    let mut troubles = Vec::new();
    let mut files = match rotated_files(path) {
        Ok(files) => files,
        Err(error) => {
            return vec![Trouble {
                path: place::directory_of(path).to_owned(),
                what: "looked through",
                error,
            }];
        }
    };
    for rotated in &mut files {
        remove(rotated.unfinished.take(), &mut troubles);
    }
    // What was nothing but unfinished is no file to keep.
    files.retain(|rotated| rotated.plain.is_some() || rotated.compressed.is_some());
    let too_many = rotate.keep.map_or(0, |keep| files.len().saturating_sub(keep));
    for rotated in files.drain(..too_many) {
        remove(rotated.plain, &mut troubles);
        remove(rotated.compressed, &mut troubles);
    }
    if rotate.compress {
        for path in files.into_iter().filter_map(|rotated| rotated.plain) {
            if let Err(error) = compress(&path) {
                troubles.push(Trouble {
                    path,
                    what: "compressed",
                    error,
                });
            }
        }
    }
    troubles
}

fn remove(path: Option<PathBuf>, troubles: &mut Vec<Trouble>) {
    let Some(path) = path else { return };
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => troubles.push(Trouble {
            path,
            what: "removed",
            error,
        }),
    }
}

fn compress(file: &Path) -> io::Result<()> {
    let temporary = framefile::beside(file, ".gz.tmp");
    let done =
        compress_into(file, &temporary).and_then(|()| std::fs::rename(&temporary, framefile::beside(file, ".gz")));
    if done.is_err() {
        // It takes room that may be what is lacking.
        let _ = std::fs::remove_file(&temporary);
    }
    done?;
    framefile::sync_parent(file)?;
    std::fs::remove_file(file)
}

fn compress_into(file: &Path, temporary: &Path) -> io::Result<()> {
    let mut source = File::open(file)?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    resemble(&target, &source, temporary);
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            read => encoder.write_all(&buffer[..read])?,
        }
    }
    let target = encoder.finish()?;
    // What is in it is as old as it was; only for people who look.
    if let Ok(modified) = source.metadata().and_then(|metadata| metadata.modified()) {
        let _ = target.set_modified(modified);
    }
    target.sync_all()
}
