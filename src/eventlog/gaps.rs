//! Which Seqs are gone, and why: a small durable list, so that damage is never silent and never found twice.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Seq;
use crate::framefile;

/// A range of Seqs that can't be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First Seq.
    pub from: Seq,
    /// Last Seq.
    pub to: Seq,
    /// What happened, one sentence.
    pub reason: String,
    /// When it was found.
    pub found_at: Timestamp,
}

/// The list, newest last.
#[derive(Debug)]
pub(super) struct Gaps {
    path: PathBuf,
    list: Vec<Gap>,
}

impl Gaps {
    /// Reads the list; one that can't be read counts as empty (what it told about is found again where it can be).
    pub fn open(dir: &Path) -> Gaps {
        let path = dir.join("gaps.json");
        let list = match std::fs::read(&path).map(|json| serde_json::from_slice(&json)) {
            Ok(Ok(list)) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Ok(Err(error)) => {
                tracing::error!(path = %path.display(), %error, "the list of lost events is damaged and begun anew");
                Vec::new()
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the list of lost events can't be read and is begun anew");
                Vec::new()
            }
        };
        Gaps { path, list }
    }

    /// Every gap.
    pub fn list(&self) -> &[Gap] {
        &self.list
    }

    /// Whether what was stored under this Seq is gone.
    pub fn holds(&self, seq: Seq) -> bool {
        self.list.iter().any(|gap| gap.from <= seq && seq <= gap.to)
    }

    /// Records a gap durably, unless it is on record, and says so in the log.
    pub fn record(&mut self, from: Seq, to: Seq, reason: &str) -> io::Result<()> {
        if self.list.iter().any(|gap| gap.from <= from && to <= gap.to) {
            return Ok(());
        }
        tracing::error!(
            from = from.0,
            to = to.0,
            reason,
            "events {from} to {to} are lost to damage"
        );
        self.list.push(Gap {
            from,
            to,
            reason: reason.to_owned(),
            found_at: Timestamp::now(),
        });
        self.store()
    }

    /// Forgets what retention would have removed by now.
    pub fn forget_before(&mut self, first_kept: Seq) -> io::Result<()> {
        let before = self.list.len();
        self.list.retain(|gap| gap.to >= first_kept);
        if self.list.len() == before {
            Ok(())
        } else {
            self.store()
        }
    }

    fn store(&self) -> io::Result<()> {
        framefile::replace_file(&self.path, &serde_json::to_vec_pretty(&self.list)?)
    }
}
