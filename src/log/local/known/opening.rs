//! Opening the directory of known keys: what a crash interrupted is finished or undone, what is damaged is set aside, and what can be
//! read of it is kept.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{self, entries, is_damage};
use super::file::KeyFile;
use super::merge::{self, Merged, Order};
use super::month::{self, Month};
use super::set::Known;
use super::unit::{Content, Unit};
use crate::event::Seq;

/// What is in `dir`, older sets first. See [`super::KnownKeys::open`].
pub(super) fn units(dir: &Path, owner: bool, report: &mut dyn FnMut(&Path, &io::Error)) -> io::Result<Vec<Arc<Unit>>> {
    if owner && dir.exists() {
        merge::publish(dir)?;
        merge::abandon(dir)?;
    }
    let mut units = Vec::new();
    for path in entries(dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let opened = if let Ok(segment) = name.parse::<u64>() {
            KeyFile::open(&path, Seq(segment)).map(Content::File)
        } else if is_month(name) {
            Month::open(&path, !owner).map(Box::new).map(Content::Month)
        } else {
            if owner && name.starts_with(disk::REMOVED) {
                disk::remove(&path)?;
            }
            continue;
        };
        match opened {
            Ok(content) => units.push(Unit::new(content)),
            Err(error) if is_damage(&error) => {
                report(&path, &error);
                if owner {
                    units.extend(saved(dir, &path)?);
                    disk::set_aside(&path)?;
                }
            }
            Err(error) => return Err(at(&path, &error)),
        }
    }
    for merged in merge::left_over(&units) {
        units.retain(|unit| !Arc::ptr_eq(unit, &merged));
        if owner {
            merged.remove()?;
        }
    }
    units.sort_by_key(|unit| unit.newest_us());
    Ok(units)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What can be read of a set that can't be opened as it is, merged into another one; nothing where its damage leaves nothing. What
/// can't be read or written now is an error.
fn saved(keys_dir: &Path, damaged: &Path) -> io::Result<Option<Arc<Unit>>> {
    let save = || {
        let name = damaged.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let content = match name.parse::<u64>() {
            Ok(segment) => Content::File(KeyFile::of_what_is_left(damaged, Seq(segment))?),
            Err(_) => Content::Month(Box::new(Month::without_index(damaged)?)),
        };
        Order::to_save(Unit::new(content)).stage(keys_dir, &mut || Ok(()))?;
        merge::publish(keys_dir)?.map(|named| Merged::open(&named)).transpose()
    };
    match save() {
        Ok(merged) => Ok(merged.map(|merged| merged.0)),
        Err(error) if is_damage(&error) => {
            tracing::error!(%error, path = %damaged.display(), "nothing could be saved of damaged known keys");
            Ok(None)
        }
        Err(error) => Err(at(damaged, &error)),
    }
}

/// Checks a file of known keys from outside, all of it.
pub(in crate::log::local) fn check_file(path: &Path, segment: Seq) -> io::Result<()> {
    let file = KeyFile::open(path, segment)?;
    (0..file.pages()).try_for_each(|number| file.page(number, &mut |_, _| ()))
}

/// Whether this is the name of a month's directory: `2024-02-…`.
pub(in crate::log::local) fn is_month(name: &str) -> bool {
    let shape: String = name
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .take(8)
        .collect();
    let rest = name.get(8..).unwrap_or_default();
    shape == "0000-00-" && !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// The segments whose keys are all in the months' databases below `dir`.
pub(in crate::log::local) fn covered(dir: &Path) -> io::Result<BTreeSet<Seq>> {
    let mut segments = BTreeSet::new();
    for path in entries(dir)? {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_month) {
            segments.extend(month::Manifest::load(&path)?.segments);
        }
    }
    Ok(segments)
}
