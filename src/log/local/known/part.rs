//! What is kept of a file that passes by, by which it is judged when it has.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::damage;

/// What the head of an index is judged by.
const BEGIN_LEN: usize = 64;

/// No manifest is longer: what names itself so need not be one.
const MANIFEST_LEN_MAX: usize = 16 << 20;

/// What is kept of a file.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// How it begins; all of it where it is a manifest.
    pub begin: Vec<u8>,
    pub len: u64,
    pub crc: u32,
    /// The same without what comes before what a head's own checksum is of.
    pub crc_of_head: u32,
}

impl Part {
    /// More of its content. `is_kept`: all of it, as of a manifest.
    pub fn add(&mut self, bytes: &[u8], is_kept: bool) {
        let kept = if is_kept { MANIFEST_LEN_MAX } else { BEGIN_LEN };
        let room = kept.saturating_sub(self.begin.len()).min(bytes.len());
        self.begin.extend_from_slice(&bytes[..room]);
        let before = 16_u64.saturating_sub(self.len).min(bytes.len() as u64) as usize;
        self.crc_of_head = crc32c::crc32c_append(self.crc_of_head, &bytes[before..]);
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.len += bytes.len() as u64;
    }
}

/// The part of this name.
pub(super) fn part<'a>(parts: &'a BTreeMap<PathBuf, Part>, name: &Path) -> io::Result<&'a Part> {
    let missing = || damage(&format!("{}: it is missing", name.display()));
    parts.get(name).ok_or_else(missing)
}
