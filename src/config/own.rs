//! Files that closehook lives on: no sink may be pointed at one, whatever name or link leads there. It would append its lines to the
//! log, to a key or to this configuration.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::listed::{Listed, placed};
use super::{Config, Fault};
use crate::files;

/// What closehook keeps in its data directory, but for what it sets aside beside it. Anything else may be there as well: a sink's
/// file is at home in a directory that the daemon may write to.
const IN_DATA_DIR: [&str; 17] = [
    "acme",
    "close",
    "closehook.json",
    "closehook.sock",
    "damaged",
    "dead",
    "gaps",
    "give-way",
    "history",
    "keys",
    "lock",
    "log",
    "lost+found",
    "restore-unfinished",
    "scratch",
    "signature_key",
    "state",
];

/// Keys that name a file of somebody's key or certificate, beside all that end in `_file`.
const FILES: [&str; 4] = ["cert", "key", "ca", "certificate"];

/// A fault for each sink that would write what closehook lives on. `tree` is the configuration as it is written, from `file`.
pub(super) fn faults(config: &Config, listed: &[Listed], tree: &Value, file: Option<&Path>, faults: &mut Vec<Fault>) {
    let mut named = Vec::new();
    named.extend(file.map(|file| (file.to_owned(), "its configuration".to_owned())));
    files_named_in(tree, "", &mut named);
    for (place, sink) in placed(listed, config) {
        let Some(target) = sink.options.writes() else { continue };
        let named = named.iter().find(|(path, _)| is_same(path, &target));
        let what = named
            .map(|(_, what)| what.clone())
            .or_else(|| part_of(&config.log.dir, &target));
        if let Some(what) = what {
            faults.push(Fault {
                place: format!("{place}.path"),
                message: format!(
                    "{} is one of closehook's own files ({what}), which the sink would write into: name another",
                    target.display()
                ),
            });
        }
    }
}

/// Every file that the configuration names to be read, with the key.
fn files_named_in(value: &Value, place: &str, found: &mut Vec<(PathBuf, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let place = format!("{place}{}{name}", if place.is_empty() { "" } else { "." });
                match value {
                    Value::String(text) if name.ends_with("_file") || FILES.contains(&name.as_str()) => {
                        found.push((text.into(), format!("that of {place}")));
                    }
                    value => files_named_in(value, &place, found),
                }
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                files_named_in(value, &format!("{place}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// What of a data directory a path is; `None`: nothing.
fn part_of(dir: &Path, target: &Path) -> Option<String> {
    let real = as_it_is(dir);
    let dir_id = files::id(&real);
    let is_dir = |path: &Path| path == real || dir_id.is_some() && files::id(path) == dir_id;
    let mut below = target;
    while let Some(parent) = below.parent() {
        if is_dir(parent) {
            let name = below.file_name()?.to_str()?;
            // `.tmp`, `.damaged` and the like stand beside what they are of.
            let is_own = |own: &str| {
                name.strip_prefix(own)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let is_own = IN_DATA_DIR.iter().any(|own| is_own(own));
            return is_own.then(|| format!("{name} of its data directory"));
        }
        below = parent;
    }
    // Another name of a file that is in there.
    let found = std::fs::metadata(target).ok().filter(|found| found.nlink() > 1)?;
    let is_in = holds(&real, (found.dev(), found.ino()));
    is_in.then(|| "a second name of one in its data directory".to_owned())
}

/// Whether closehook has a file in its data directory that is this one.
fn holds(dir: &Path, id: (u64, u64)) -> bool {
    let mut pending: Vec<PathBuf> = IN_DATA_DIR.iter().map(|name| dir.join(name)).collect();
    while let Some(path) = pending.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if found.is_dir() {
            let listing = std::fs::read_dir(&path).into_iter().flatten();
            pending.extend(listing.flatten().map(|entry| entry.path()));
        } else if (found.dev(), found.ino()) == id {
            return true;
        }
    }
    false
}

fn is_same(one: &Path, other: &Path) -> bool {
    as_it_is(one) == as_it_is(other) || files::id(one).is_some_and(|id| files::id(other) == Some(id))
}

/// The path with every link in it followed, as far as it exists.
fn as_it_is(path: &Path) -> PathBuf {
    let Ok(path) = std::path::absolute(path) else {
        return path.to_owned();
    };
    let mut behind = Vec::new();
    let mut at = path.as_path();
    loop {
        if let Ok(real) = std::fs::canonicalize(at) {
            return behind.iter().rev().fold(real, |path, name| path.join(name));
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return path;
        };
        behind.push(name.to_owned());
        at = parent;
    }
}
