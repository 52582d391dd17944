//! The manifest of a sealed segment: what is in it, how long each file is and what its checksum is.
//!
//! The small files of the database (its configuration and snapshots) are kept in it verbatim: it can't do without them, and
//! a byte in them must not cost what lies in the large one. It is there twice, since without any manifest nothing could be
//! checked.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::fault::SegmentError;
use super::super::journal;
use super::database::{DB_NAME, FileSum};
use super::index::Index;
use crate::event::Seq;
use crate::framefile::{self, Format, FrameError, FrameFile};

/// The manifest's file name; a segment is sealed when it is there.
const MANIFEST_NAME: &str = "manifest";

/// The second one, written first.
const SECOND_MANIFEST_NAME: &str = "manifest.second";

const MANIFEST: Format = Format {
    magic: *b"CLHKMNFT",
    version: 2,
};

/// The frame of the manifest itself.
const TAG_MANIFEST: u32 = 0;

/// A frame with a file: the length of its name, its name, its content.
const TAG_FILE: u32 = 1;

/// Files up to this size are kept in the manifest. Snapshots have some bytes a page.
const KEPT_MAX: u64 = 4 << 20;

/// What is in a sealed segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::log::local) struct Manifest {
    pub first: Seq,
    pub last: Seq,
    pub events: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    pub oldest_us: i64,
    pub newest_us: i64,
    pub packs: Vec<Pack>,
    /// What is where, so that not everything need be read; `None` in segments that were sealed without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
    pub files: Vec<FileSum>,
}

/// One pack: a run of events without a hole.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(in crate::log::local) struct Pack {
    pub first: Seq,
    pub count: u32,
    pub chunks: u16,
    pub crc: u32,
    pub newest_us: i64,
}

impl Pack {
    /// The last Seq in the pack.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }
}

/// Contents of small files, by their names.
pub(super) type Kept = BTreeMap<String, Vec<u8>>;

impl Manifest {
    /// Reads a segment's manifest, or else the second one. [`SegmentError::Damaged`] only where neither is there or whole.
    pub fn load(dir: &Path) -> Result<Manifest, SegmentError> {
        let first = load_file(&dir.join(MANIFEST_NAME));
        let error = match first {
            Ok(loaded) => return Ok(loaded.manifest),
            Err(SegmentError::Damaged(why)) => why,
            Err(error) => return Err(error),
        };
        match load_file(&dir.join(SECOND_MANIFEST_NAME)) {
            Ok(loaded) => {
                tracing::error!(
                    error,
                    "a segment's manifest is damaged or missing; the second one is used"
                );
                Ok(loaded.manifest)
            }
            Err(SegmentError::Damaged(_)) => Err(SegmentError::Damaged(error)),
            Err(error) => Err(error),
        }
    }

    /// A sentence for each of the two on disk that is not whole: as long as the other one is, nothing is lost to that.
    pub fn faults(dir: &Path) -> Result<Vec<String>, SegmentError> {
        let mut faults = Vec::new();
        for name in [MANIFEST_NAME, SECOND_MANIFEST_NAME] {
            match load_file(&dir.join(name)) {
                Ok(loaded) => faults.extend(loaded.fault),
                Err(SegmentError::Damaged(why)) => faults.push(why),
                Err(error) => return Err(error),
            }
        }
        Ok(faults)
    }

    /// The small files that either manifest keeps; those that are whole.
    pub(super) fn kept(&self, dir: &Path) -> Kept {
        let mut kept = Kept::new();
        for name in [SECOND_MANIFEST_NAME, MANIFEST_NAME] {
            if let Ok(loaded) = load_file(&dir.join(name)) {
                kept.extend(loaded.kept);
            }
        }
        kept.retain(|name, content| {
            let expected = self.files.iter().find(|file| file.name == *name);
            expected.is_some_and(|file| file.len == content.len() as u64 && file.crc == crc32c::crc32c(content))
        });
        kept
    }

    /// Writes both, durably.
    pub fn store(&self, dir: &Path) -> Result<(), SegmentError> {
        let json = serde_json::to_vec(self).map_err(io::Error::from)?;
        let kept = self.small_files(&dir.join(DB_NAME))?;
        let unnamed = dir.join("manifest.new");
        let write = || -> Result<(), FrameError> {
            let mut file = FrameFile::create(&unnamed, MANIFEST)?;
            file.append(TAG_MANIFEST, &[&json])?;
            for (name, content) in &kept {
                file.append(TAG_FILE, &[&[name.len() as u8], name.as_bytes(), content])?;
            }
            file.sync()
        };
        for name in [SECOND_MANIFEST_NAME, MANIFEST_NAME] {
            write().map_err(|error| SegmentError::Io(io::Error::other(error.to_string())))?;
            std::fs::rename(&unnamed, dir.join(name))?;
            framefile::sync_dir(dir)?;
        }
        Ok(())
    }

    /// Reads the files that are kept verbatim; each must be what was summed.
    fn small_files(&self, database: &Path) -> Result<Kept, SegmentError> {
        let mut kept = Kept::new();
        for file in self.files.iter().filter(|file| is_small(file)) {
            let content = std::fs::read(database.join(&file.name))?;
            if crc32c::crc32c(&content) != file.crc {
                return Err(SegmentError::Damaged(format!(
                    "{} has changed while it was kept",
                    file.name
                )));
            }
            kept.insert(file.name.clone(), content);
        }
        Ok(kept)
    }

    /// Whether the manifests on disk keep what they should: an older closehook wrote them without the small files.
    pub(super) fn keeps_small_files(&self, dir: &Path) -> bool {
        let kept = self.kept(dir);
        self.files
            .iter()
            .filter(|file| is_small(file))
            .all(|file| kept.contains_key(&file.name))
    }

    /// Bytes of the database.
    pub fn database_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// The pack that holds `seq`, else the first one behind it: its index.
    pub fn pack_at(&self, seq: Seq) -> usize {
        self.packs.partition_point(|pack| pack.last() < seq)
    }

    /// What stood in another form of this segment, and does not in this one.
    pub fn lost_of(this: Option<&Manifest>, before: &Manifest) -> Vec<(Seq, Seq)> {
        let mut lost: Vec<(Seq, Seq)> = Vec::new();
        for pack in &before.packs {
            let here = this.and_then(|this| this.packs.get(this.pack_at(pack.first)));
            if here.is_some_and(|here| here.first <= pack.first) {
                continue;
            }
            match lost.last_mut() {
                Some((_, to)) if to.next() == pack.first => *to = pack.last(),
                _ => lost.push((pack.first, pack.last())),
            }
        }
        lost
    }
}

fn is_small(file: &FileSum) -> bool {
    let is_data = file.name == "db" || file.name.contains('/');
    !is_data && file.len <= KEPT_MAX && u8::try_from(file.name.len()).is_ok()
}

/// Bytes that both manifests of a segment take up.
pub(super) fn bytes_of_manifests(dir: &Path) -> u64 {
    let len = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |metadata| metadata.len());
    len(MANIFEST_NAME) + len(SECOND_MANIFEST_NAME)
}

/// A manifest as it is on disk.
struct Loaded {
    manifest: Manifest,
    kept: Kept,
    /// What is wrong with the rest of it.
    fault: Option<String>,
}

fn load_file(path: &Path) -> Result<Loaded, SegmentError> {
    let mut found = None;
    let mut kept = Kept::new();
    let scanned = framefile::scan(path, MANIFEST, |frame| match frame.tag {
        TAG_MANIFEST => found = serde_json::from_slice(frame.payload).ok(),
        TAG_FILE => {
            let Some((len, rest)) = frame.payload.split_first() else {
                return;
            };
            let Some((name, content)) = rest.split_at_checked(usize::from(*len)) else {
                return;
            };
            if let Ok(name) = std::str::from_utf8(name) {
                kept.insert(name.to_owned(), content.to_vec());
            }
        }
        _ => {}
    });
    let scan = scanned.map_err(|error| match error {
        FrameError::Io { source, .. } if !is_gone(&source) => {
            SegmentError::Io(io::Error::new(source.kind(), format!("{}: {source}", path.display())))
        }
        error @ FrameError::Newer { .. } => SegmentError::Newer(error.to_string()),
        other => SegmentError::Damaged(other.to_string()),
    })?;
    let manifest = found.ok_or_else(|| SegmentError::Damaged(format!("{} can't be read", path.display())))?;
    let is_whole = scan.damage.is_empty() && scan.torn == 0;
    Ok(Loaded {
        manifest,
        kept,
        fault: (!is_whole).then(|| format!("{}: a part of it is damaged", path.display())),
    })
}

/// Whether an error says that the file is not there any more, or not given back by the disk.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory) || framefile::is_bad_medium(error)
}

/// Whether a segment's directory holds a sealed one. The second manifest counts where there is no journal to seal it from.
pub(in crate::log::local) fn is_sealed(dir: &Path) -> io::Result<bool> {
    let has = |name: &str| has(&dir.join(name));
    Ok(has(MANIFEST_NAME)? || (has(SECOND_MANIFEST_NAME)? && !has(journal::FILE_NAME)?))
}

/// Whether there is something under this name; an error is no answer.
pub(in crate::log::local) fn has(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}
