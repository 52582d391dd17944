//! Opening the directory of known keys: what a crash interrupted is finished or undone, what is damaged is set aside, and what can be
//! read of it is kept.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, entries, is_damage};
use super::file::KeyFile;
use super::merge::{self, Merged, Order};
use super::month::{self, Month};
use super::unit::{Content, Unit};
use crate::event::Seq;
use crate::files;
use crate::framefile;
use crate::sorted;

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Older sets first.
    pub units: Vec<Arc<Unit>>,
    /// Damaged ones of which there is no room to save what can be read, or which are not this process's to save.
    pub unsaved: Vec<Unsaved>,
}

/// A damaged set that waits until what can be read of it is saved.
#[derive(Debug, Clone)]
pub(in crate::log::local) struct Unsaved {
    /// Where it is.
    pub path: PathBuf,
    /// Why it is not saved yet, with its name.
    pub why: String,
}

impl Unsaved {
    /// One that whoever owns the directory has to save.
    fn seen(path: &Path, why: &str) -> Unsaved {
        Unsaved {
            path: path.to_owned(),
            why: format!("{}: {why}", path.display()),
        }
    }
}

/// What is in `dir`. See [`super::KnownKeys::open`].
pub(super) fn find(dir: &Path, owner: bool, report: &mut dyn FnMut(&Path, &io::Error)) -> io::Result<Found> {
    if owner && dir.exists() {
        merge::publish(dir)?;
        merge::abandon(dir)?;
    }
    let mut found = Found::default();
    for path in entries(dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if disk::unsaved(name).is_some() {
            if owner {
                found.put_right(dir, &path)?;
            } else {
                found
                    .unsaved
                    .push(Unsaved::seen(&path, "they wait for room on the disk"));
            }
            continue;
        }
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
        if let Ok(Content::Month(month)) = &opened
            && owner
        {
            month.mend_manifests();
        }
        match opened {
            Ok(content) => found.units.push(Unit::new(content)),
            Err(error) if is_damage(&error) => {
                report(&path, &error);
                if owner {
                    found.put_right(dir, &path)?;
                } else {
                    found.unsaved.push(Unsaved::seen(&path, &error.to_string()));
                }
            }
            Err(error) => return Err(at(&path, &error)),
        }
    }
    for merged in merge::left_over(&found.units) {
        found.units.retain(|unit| !Arc::ptr_eq(unit, &merged));
        if owner {
            merged.remove()?;
        }
    }
    sorted::sort_by_key(&mut found.units, |unit| unit.newest_us());
    Ok(found)
}

impl Found {
    /// Saves what can be read of a damaged set; where there is no room for that now, the set waits.
    fn put_right(&mut self, keys_dir: &Path, damaged: &Path) -> io::Result<()> {
        // What is old goes later, by a clock that somebody vouches for.
        match save(keys_dir, damaged, &|_| false) {
            Ok(merged) => self.units.extend(merged.map(|merged| merged.0)),
            Err(error) if files::is_full(&error) => {
                tracing::warn!(
                    %error,
                    "there is no room to save what can be read of damaged known keys: that is done when there is, and nothing is stored before"
                );
                let why = error.to_string();
                let kept = disk::keep_to_save(damaged)?;
                self.unsaved.extend(kept.map(|path| Unsaved { path, why }));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Merges what can be read of a set that can't be opened as it is into another one, and sets it aside; `None` where its damage leaves
/// nothing, or nothing that is not over. What can't be read or written now is an error.
pub(in crate::log::local) fn save(
    keys_dir: &Path,
    damaged: &Path,
    is_over: &dyn Fn(&Unit) -> bool,
) -> io::Result<Option<Merged>> {
    let save = || {
        let name = damaged.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = disk::unsaved(name).unwrap_or(name);
        let content = match name.parse::<u64>() {
            Ok(segment) => Content::File(KeyFile::of_what_is_left(damaged, Seq(segment))?),
            Err(_) => Content::Month(Box::new(Month::without_index(damaged)?)),
        };
        let unit = Unit::new(content);
        if is_over(&unit) {
            return Ok(None);
        }
        let order = Order::to_save(unit);
        order.have_room(keys_dir)?;
        let staged = order.stage(keys_dir, &mut || Ok(()));
        if staged.is_err() {
            merge::abandon(keys_dir)?;
        }
        staged?;
        merge::publish(keys_dir)?.map(|named| Merged::open(&named)).transpose()
    };
    let saved = match save() {
        Ok(merged) => merged,
        Err(error) if is_damage(&error) => {
            tracing::error!(%error, path = %damaged.display(), "nothing could be saved of damaged known keys");
            None
        }
        Err(error) => return Err(at(damaged, &error)),
    };
    disk::set_aside(damaged)?;
    Ok(saved)
}

/// Removes the sets in a directory that is being made of another one's which are damaged; gives a sentence for each. What is theirs and of
/// events that are there is made anew of these.
pub(in crate::log::local) fn remove_damaged(dir: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut remove = |path: &Path, why: &str| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        removed.push(format!("known keys {name}: {why}"));
        disk::remove(path)
    };
    let mut damaged = Vec::new();
    let found = find(dir, false, &mut |path, error| {
        damaged.push((path.to_owned(), error.to_string()));
    })?;
    for (path, why) in damaged {
        remove(&path, &why)?;
    }
    for unit in found.units {
        match unit.check() {
            Err(error) if is_damage(&error) => remove(unit.path(), &error.to_string())?,
            Err(error) => return Err(at(unit.path(), &error)),
            Ok(()) => {}
        }
    }
    if !removed.is_empty() {
        framefile::sync_dir(dir)?;
    }
    Ok(removed)
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
