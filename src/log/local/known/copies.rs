//! Known keys to be copied or compared: while that lasts, no set gives way.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::sealed::database;
use super::disk::is_damage;
use super::unit::Unit;
use crate::event::Seq;

/// The files of known keys, which stay as they are for as long as this is there.
#[derive(Debug)]
pub struct KeyFiles {
    paths: Vec<PathBuf>,
    segments: BTreeSet<Seq>,
    /// Those whose keys are in what is left out.
    left_out: BTreeSet<Seq>,
    damaged: Vec<String>,
    _held: Arc<()>,
}

impl KeyFiles {
    /// Where they are, relative to the data directory.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether all keys of a sealed segment are in them.
    pub fn cover(&self, segment: Seq) -> bool {
        self.segments.contains(&segment)
    }

    /// Whether keys of a segment are not in them because they are damaged.
    pub fn leave_out(&self, segment: Seq) -> bool {
        self.left_out.contains(&segment)
    }

    /// A sentence for each set that is left out because it is damaged.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }
}

/// Sets of known keys, which stay where they are for as long as this is there.
#[derive(Debug)]
pub(in crate::log::local) struct OnDisk {
    /// Where they are, relative to the data directory.
    dir: PathBuf,
    units: Vec<Arc<Unit>>,
    held: Arc<()>,
}

impl OnDisk {
    /// `dir`: where they are, relative to the data directory; `held`: what says that nothing may give way.
    pub(super) fn new(dir: PathBuf, units: Vec<Arc<Unit>>, held: Arc<()>) -> OnDisk {
        OnDisk { dir, units, held }
    }

    /// Compares everything with its checksums; gives a sentence for each fault.
    pub fn verify(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for unit in &self.units {
            match unit.damaged_twins() {
                Ok(damaged) => faults.extend(damaged),
                Err(error) => faults.push(format!("known keys {}: {error}", unit.path().display())),
            }
            for number in 0..unit.known().pages() {
                if let Err(error) = unit.known().page(number, &mut |_, _| ()) {
                    faults.push(format!("known keys {}: {error}", unit.path().display()));
                    break;
                }
            }
        }
        faults
    }

    /// The files, to be copied; they stay as they are for as long as the answer is there. All of them are read: what is damaged is of no
    /// use elsewhere.
    pub fn files(self) -> io::Result<KeyFiles> {
        let (mut paths, mut damaged) = (Vec::new(), Vec::new());
        let (mut segments, mut left_out) = (BTreeSet::new(), BTreeSet::new());
        for unit in &self.units {
            if let Err(error) = unit.check() {
                if !is_damage(&error) && error.kind() != io::ErrorKind::NotFound {
                    return Err(error);
                }
                unit.judge(&error);
                damaged.push(format!("known keys are damaged: {}: {error}", unit.path().display()));
                left_out.extend(unit.segments().iter().copied());
                continue;
            }
            segments.extend(unit.segments().iter().copied());
            let name = self.dir.join(unit.path().file_name().unwrap_or_default());
            if unit.is_file() {
                paths.push(name);
            } else {
                let below = database::files_below(unit.path())?;
                paths.extend(below.into_iter().map(|file| name.join(file)));
            }
        }
        paths.sort();
        Ok(KeyFiles {
            paths,
            segments,
            left_out,
            damaged,
            _held: self.held,
        })
    }
}
