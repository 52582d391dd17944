//! Known keys that pass by in a stream: whether a month's, and those of a segment that are in no month's, are what they were, without a place
//! to put them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::is_damage;
use super::file;
use super::month::{self, Manifest};
use super::opening::is_month;
use super::part::Part;

/// No file of a segment's keys is longer. It is kept while it passes by, and judged when it has.
const SEGMENT_LEN_MAX: usize = 512 << 20;

/// Files of known keys, one after the other.
#[derive(Debug, Default)]
pub struct CarriedKeys {
    months: BTreeMap<OsString, BTreeMap<PathBuf, Part>>,
    /// The file that is passing by.
    current: Option<(OsString, PathBuf)>,
    /// The same where it is a segment's: its name, and what has passed of it.
    segment: Option<(String, Vec<u8>)>,
    /// A sentence for each segment's that is not what it was.
    segments: Vec<String>,
    /// A newer closehook has made one.
    newer: Option<io::Error>,
}

impl CarriedKeys {
    /// A file begins; `path` is below the directory of known keys. `None`: it is none of them.
    pub fn file(&mut self, path: Option<&Path>) {
        self.judge_segment();
        self.segment = path.and_then(|path| {
            let name = path.to_str().filter(|name| name.parse::<u64>().is_ok())?;
            Some((name.to_owned(), Vec::new()))
        });
        self.current = path.and_then(|path| {
            let mut names = path.iter();
            let month = names.next().filter(|name| name.to_str().is_some_and(is_month))?;
            Some((month.to_owned(), names.as_path().to_owned()))
        });
        if let Some((month, name)) = &self.current {
            let parts = self.months.entry(month.clone()).or_default();
            parts.insert(name.clone(), Part::default());
        }
    }

    /// More of its content.
    pub fn data(&mut self, bytes: &[u8]) {
        if let Some((_, content)) = &mut self.segment {
            // What is cut off is found to be damaged.
            let room = (SEGMENT_LEN_MAX - content.len()).min(bytes.len());
            content.extend_from_slice(&bytes[..room]);
        }
        let Some((month, name)) = &self.current else { return };
        let part = self.months.get_mut(month).and_then(|parts| parts.get_mut(name));
        if let Some(part) = part {
            part.add(bytes, Manifest::is_one(name));
        }
    }

    /// A segment's file has passed.
    fn judge_segment(&mut self) {
        let Some((name, content)) = self.segment.take() else {
            return;
        };
        match file::check_bytes(&content) {
            Ok(()) => {}
            Err(error) if is_damage(&error) => self.segments.push(format!("known keys {name}: {error}")),
            Err(error) => self.newer = Some(error),
        }
    }

    /// All have passed: a sentence for each month, and each segment's file, that is not what it was; an error where a newer closehook has made
    /// one.
    pub fn damaged(&mut self) -> io::Result<Vec<String>> {
        self.file(None);
        if let Some(error) = self.newer.take() {
            return Err(error);
        }
        let mut found = self.segments.clone();
        for (month, parts) in &self.months {
            match month::judge(parts) {
                Err(error) if is_damage(&error) => {
                    found.push(format!("known keys {}: {error}", month.to_string_lossy()));
                }
                judged => judged?,
            }
        }
        Ok(found)
    }
}
