//! "Complete up to T" as a picture: a line of days, with what is claimed on it and what stands against it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Seq;

/// The line of the last days.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Draw {
    /// Back from now, 30 at the most (Close keeps no more); `None`: 30.
    #[serde(default)]
    pub days: Option<u32>,
}

/// A line of days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// It begins.
    pub from: Timestamp,
    /// It ends: now.
    pub to: Timestamp,
    /// Whether there are credentials: without them nothing is ever compared, and nothing claimed.
    pub configured: bool,
    /// What is on it, in order of their beginnings.
    pub stretches: Vec<Stretch>,
    /// Further stretches were left out: there are more than [`STRETCHES_MAX`].
    pub is_cut: bool,
}

/// So many stretches are on a picture.
pub const STRETCHES_MAX: usize = 1000;

/// One stretch of the line, or a point on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// What it is.
    pub kind: What,
    /// From.
    pub from: Timestamp,
    /// To; the same for a point.
    pub to: Timestamp,
    /// It is still going on.
    pub is_open: bool,
    /// The first Seq that it concerns, where that is known: `events list` from there on shows them.
    pub first: Option<Seq>,
    /// The last one.
    pub last: Option<Seq>,
    /// Events it is about, where that is known.
    pub events: Option<u64>,
    /// What it is, one sentence.
    pub text: String,
}

/// What a stretch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The log has every event in scope.
    Complete,
    /// Nothing is claimed: it was not compared, or Close did not keep it long enough.
    Unclaimed,
    /// A subscription was not active.
    Paused,
    /// A backfill fetched it.
    Backfill,
    /// Events are there without their data, which Close withholds.
    Held,
    /// Events were lost from the log by damage.
    Lost,
}
