//! What looking back through the log may cost, and how far it came.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Seq;

/// How much may be looked at for one page; whichever comes first ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// Events.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Milliseconds.
    pub millis: u64,
}

impl Default for Work {
    fn default() -> Work {
        Work {
            events: 200_000,
            bytes: 512 << 20,
            millis: 2000,
        }
    }
}

/// How far it was looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Everything from here on, up to where the page begins.
    pub to: Seq,
    /// When the oldest event that was read was received; `None`: none was.
    pub received_at: Option<Timestamp>,
    /// Events that were read.
    pub scanned: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// How many of them are meant.
    pub found: u64,
}

/// So many ranges are named.
pub const LOST_MAX: usize = 50;

/// A range of Seqs that can't be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// First.
    pub from: Seq,
    /// Last.
    pub to: Seq,
}

/// Why a page ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It is full.
    Full,
    /// As much was looked at as was allowed.
    Work,
    /// Nothing older can be meant.
    Beginning,
}
