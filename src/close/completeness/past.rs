//! What was claimed, paused and fetched, as stretches of time: part of the marks, so that it lasts as long as they do.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A stretch of time that something was so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// What was so.
    pub kind: PastKind,
    /// From.
    pub from: Timestamp,
    /// To; `None`: it is so still.
    pub to: Option<Timestamp>,
    /// Of what: a scope, or a subscription with the reason.
    pub of: String,
    /// Events that came of it, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// When a backfill ran, in which its events were received; `None` for all else, and where an older closehook has kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<(Timestamp, Timestamp)>,
}

/// What was so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PastKind {
    /// The log was complete, by a claim that another one took over from.
    Claim,
    /// A subscription did not deliver here.
    Pause,
    /// A backfill fetched what lies in it.
    Backfill,
}
