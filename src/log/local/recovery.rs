//! Opening the data directory: whatever it holds, the log starts; what is damaged is set aside, named, and stepped over.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::OpenError;
use super::gaps::Gaps;
use super::journal::{self, Journal, OpenSegment, Recovered, last_possible};
use super::known::{self, KnownKeys};
use super::sealed::{self, Access, Manifest, SealedSegment};
use super::shared::Segment;
use crate::event::Seq;
use crate::framefile::{self, FrameError};

/// The data directory's own description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Format of the directory as a whole.
    pub format: u32,
    /// Random; a restored backup gets a new one.
    pub epoch: String,
    pub created_at: Timestamp,
}

const IDENTITY_NAME: &str = "closehook.json";
/// 2: sealed segments have an index and other sizes of sled's, known keys are written small and merged by month.
const DIRECTORY_FORMAT: u32 = 2;

impl Identity {
    /// Reads the description; makes one in a new directory if `create`.
    pub fn open(dir: &Path, create: bool) -> Result<Identity, OpenError> {
        let path = dir.join(IDENTITY_NAME);
        let fail = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        let read = std::fs::read(&path).and_then(|json| Ok(serde_json::from_slice::<Identity>(&json)?));
        match read {
            Ok(identity) if identity.format > DIRECTORY_FORMAT => Err(OpenError::Newer {
                dir: dir.to_owned(),
                found: identity.format,
            }),
            // From now on there may be files in it that an earlier version would take for damaged.
            Ok(identity) if create && identity.format < DIRECTORY_FORMAT => {
                let format = DIRECTORY_FORMAT;
                Identity { format, ..identity }.store(&path)
            }
            Ok(identity) => Ok(identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => Identity::make(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::Missing(dir.to_owned())),
            Err(error) if !is_damage(&error) => Err(fail(error)),
            // Where there is a log it is ours, and it matters more than its description.
            Err(error) if create && dir.join("log").is_dir() => {
                let aside = framefile::beside(&path, ".damaged");
                tracing::error!(
                    %error,
                    aside = %aside.display(),
                    "the data directory's description is damaged; it is set aside and made anew, and files of sinks are only \
                     appended to this time"
                );
                std::fs::rename(&path, aside).map_err(fail)?;
                Identity::make(&path)
            }
            Err(error) => Err(OpenError::Alien {
                path,
                why: error.to_string(),
            }),
        }
    }

    fn make(path: &Path) -> Result<Identity, OpenError> {
        let fail = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| fail(io::Error::other(error.to_string())))?;
        let identity = Identity {
            format: DIRECTORY_FORMAT,
            epoch: hex::encode(random),
            created_at: Timestamp::now(),
        };
        identity.store(path)
    }

    fn store(self, path: &Path) -> Result<Identity, OpenError> {
        let fail = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let json = serde_json::to_vec_pretty(&self).map_err(|error| fail(error.into()))?;
        framefile::replace_file(path, &json).map_err(fail)?;
        Ok(self)
    }
}

/// Whether a file's content is at fault, and not the way to it: what `serde_json` says of a text that is none, and the disk of what
/// it has lost.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) || framefile::is_bad_medium(error)
}

/// What was found in the log's directory.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub segments: BTreeMap<Seq, Segment>,
    /// The newest segment, if it can be appended to, with what it holds already.
    pub newest: Option<Newest>,
    /// The Seq of the next event.
    pub next: Seq,
}

/// The newest segment as the commit loop goes on with it.
#[derive(Debug)]
pub(super) struct Newest {
    pub journal: Journal,
    pub segment: Arc<OpenSegment>,
    pub events: u64,
    pub raw_bytes: u64,
    pub began: Option<Timestamp>,
}

/// Goes through the directories, oldest first. With `repair`, torn tails are cut, half-done work is finished or undone and
/// damage is set aside; without, nothing is written.
pub(super) fn take_inventory(
    dir: &Path,
    known: &mut KnownKeys,
    gaps: &mut Gaps,
    repair: bool,
) -> Result<Inventory, OpenError> {
    let log_dir = dir.join("log");
    let fail = |source| OpenError::Io {
        path: log_dir.clone(),
        source,
    };
    if repair {
        super::make_dir(&log_dir).map_err(fail)?;
        framefile::sync_dir(dir).map_err(fail)?;
    }
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(&log_dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(first) = name.parse::<u64>() {
            firsts.push(Seq(first));
        } else if repair && name.starts_with("removed-") {
            sealed::remove_dir(&entry.path()).map_err(fail)?;
        }
    }
    firsts.sort_unstable();
    let mut inventory = Inventory {
        next: Seq(1),
        ..Inventory::default()
    };
    let mut finder = Finder {
        dir,
        log_dir: &log_dir,
        known,
        gaps,
        repair,
    };
    for (index, first) in firsts.iter().enumerate() {
        let limit = firsts.get(index + 1).copied();
        finder.take(*first, limit, &mut inventory)?;
    }
    // What was lost at the end of the log left nothing else behind, and its Seqs must not be given out again.
    let lost = gaps.list().iter().map(|gap| gap.to.next()).max();
    inventory.next = inventory.next.max(lost.unwrap_or_default());
    Ok(inventory)
}

/// Whether the process ended between making a segment's directory and giving its journal its name: nothing was ever in it.
fn was_only_begun(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if entry?.file_name() != "journal.tmp" {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Finder<'a> {
    dir: &'a Path,
    log_dir: &'a Path,
    known: &'a mut KnownKeys,
    gaps: &'a mut Gaps,
    repair: bool,
}

impl Finder<'_> {
    fn take(&mut self, first: Seq, limit: Option<Seq>, inventory: &mut Inventory) -> Result<(), OpenError> {
        let dir = journal::segment_dir(self.log_dir, first);
        let fail = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        inventory.newest = None;
        // Directories missing between two others, or at a jump, tell by the Seqs they leave out.
        if first > inventory.next && !inventory.segments.is_empty() {
            self.record_gap(inventory.next, first.prev(), "the segment that held them is missing")
                .map_err(fail)?;
        }
        inventory.next = inventory.next.max(first);
        if self.repair {
            Self::tidy(&dir).map_err(fail)?;
        }
        if sealed::is_sealed(&dir) {
            match Manifest::load(&dir) {
                Ok(manifest) => return self.take_sealed(first, dir, manifest, inventory),
                Err(error) if dir.join(journal::FILE_NAME).exists() => {
                    tracing::warn!(%error, "the segment is sealed again from its journal");
                }
                Err(error) => {
                    let last = last_possible(first, limit);
                    return self.lose(first, last, &dir, &error.to_string(), inventory);
                }
            }
        }
        if !dir.join(journal::FILE_NAME).exists() {
            if limit.is_none() && was_only_begun(&dir).map_err(fail)? {
                return Ok(());
            }
            let last = last_possible(first, limit);
            return self.lose(
                first,
                last,
                &dir,
                "neither a journal nor a manifest is in the segment",
                inventory,
            );
        }
        match journal::recover(&dir, first, limit, self.repair) {
            Ok((recovered, journal)) => self.take_open(first, recovered, journal, inventory),
            Err(error @ FrameError::Newer { .. }) => Err(OpenError::Unreadable(error.to_string())),
            Err(FrameError::Io { path, source }) if !framefile::is_bad_medium(&source) => {
                Err(OpenError::Io { path, source })
            }
            Err(error) => {
                let last = last_possible(first, limit);
                self.lose(first, last, &dir, &error.to_string(), inventory)
            }
        }
    }

    fn take_sealed(
        &mut self,
        first: Seq,
        dir: PathBuf,
        manifest: Manifest,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        if self.repair {
            // Sealed and verified, but the process ended before the journal was dropped.
            match std::fs::remove_file(dir.join(journal::FILE_NAME)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OpenError::Io { path: dir, source });
                }
                _ => {}
            }
        }
        inventory.next = inventory.next.max(manifest.last.next());
        let access = if self.repair { Access::Owner } else { Access::Visitor };
        let sealed = SealedSegment::new(dir, manifest, access);
        if self.repair && !self.known.has_file(first) {
            self.rebuild_keys(first, &sealed)?;
        }
        inventory.segments.insert(first, Segment::Sealed(Arc::new(sealed)));
        Ok(())
    }

    /// The keys of a segment are in its events, too: a file of them that is gone is made again.
    fn rebuild_keys(&mut self, first: Seq, sealed: &SealedSegment) -> Result<(), OpenError> {
        tracing::warn!(
            first = first.0,
            last = sealed.manifest.last.0,
            "the known keys of a segment are missing; they are read from its events again"
        );
        let table = self.known.table(first);
        for index in 0..sealed.manifest.packs.len() {
            // What is damaged is found, named and set aside when it is read for somebody.
            let Ok(block) = sealed.read(index) else { continue };
            for event in &block.events {
                if let Some(identity) = known::Identity::of(event) {
                    table.insert(&identity, event.seq, event.received_at);
                }
            }
        }
        sealed.close_idle(std::time::Duration::ZERO);
        self.known.seal(first).map_err(|source| OpenError::Io {
            path: self.known.file_path(first),
            source,
        })
    }

    fn take_open(
        &mut self,
        first: Seq,
        recovered: Recovered,
        journal: Option<Journal>,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let Recovered {
            segment,
            keys,
            events,
            raw_bytes,
            scan,
            lost,
        } = recovered;
        let dir = segment.dir.clone();
        let fail = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        if scan.torn > 0 {
            tracing::info!(
                bytes = scan.torn,
                journal = %dir.display(),
                "cut off the unfinished last write; nobody was told that it was stored"
            );
        }
        if self.repair && !scan.damage.is_empty() {
            journal::set_aside(&dir, &self.aside(first), &scan.damage).map_err(fail)?;
        }
        for (from, to) in lost {
            self.record_gap(from, to, "their bytes in the journal are damaged")
                .map_err(fail)?;
        }
        inventory.next = segment.last().map_or(first, Seq::next).max(inventory.next);
        *self.known.table(first) = keys;
        let segment = Arc::new(segment);
        inventory.segments.insert(first, Segment::Open(segment.clone()));
        // A journal with damage in the middle is complete as it is: what comes goes into a new one.
        if let Some(journal) = journal
            && scan.damage.is_empty()
        {
            let began = segment.blocks().first().map(|block| sealed::time(block.head.oldest_us));
            inventory.newest = Some(Newest {
                journal,
                segment,
                events,
                raw_bytes,
                began,
            });
        }
        Ok(())
    }

    /// Finishes or undoes what a crash interrupted.
    fn tidy(dir: &Path) -> io::Result<()> {
        sealed::finish_rewrite(dir).map_err(|error| io::Error::other(error.to_string()))?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("copy-") {
                sealed::remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }

    /// A segment of which nothing can be read is moved out of the way, whole.
    fn lose(
        &mut self,
        first: Seq,
        last: Seq,
        dir: &Path,
        why: &str,
        inventory: &mut Inventory,
    ) -> Result<(), OpenError> {
        let fail = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        // How many events it held is not known where it was the newest; its Seqs must not be given out again, so the record of
        // them comes before the move.
        inventory.next = inventory.next.max(last.next());
        self.record_gap(first, last, why).map_err(fail)?;
        if self.repair {
            let aside = self.aside(first);
            super::make_dir(&aside).map_err(fail)?;
            std::fs::rename(dir, aside.join("segment")).map_err(fail)?;
            framefile::sync_dir(self.log_dir).map_err(fail)?;
        }
        Ok(())
    }

    fn aside(&self, first: Seq) -> PathBuf {
        self.dir
            .join("damaged")
            .join(format!("{:020}-{}", first.0, Timestamp::now().as_second()))
    }

    fn record_gap(&mut self, from: Seq, to: Seq, reason: &str) -> io::Result<()> {
        if self.repair {
            self.gaps.record(from, to, reason)
        } else {
            tracing::warn!(reason, "events {from} to {to} can't be read");
            Ok(())
        }
    }
}
