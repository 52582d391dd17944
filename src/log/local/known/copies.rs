//! Known keys to be copied or compared: while that lasts, no set gives way.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::sealed::database;
use super::unit::Unit;
use crate::event::Seq;

/// The files of known keys, which stay as they are for as long as this is there.
#[derive(Debug)]
pub struct KeyFiles {
    paths: Vec<PathBuf>,
    segments: BTreeSet<Seq>,
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
            for number in 0..unit.known().pages() {
                if let Err(error) = unit.known().page(number, &mut |_, _| ()) {
                    faults.push(format!("known keys {}: {error}", unit.path().display()));
                    break;
                }
            }
        }
        faults
    }

    /// The files, to be copied; they stay as they are for as long as the answer is there.
    pub fn files(self) -> io::Result<KeyFiles> {
        let mut paths = Vec::new();
        for unit in &self.units {
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
            segments: self.units.iter().flat_map(|unit| unit.segments()).copied().collect(),
            _held: self.held,
        })
    }
}
