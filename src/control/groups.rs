//! Dead letters by what is wrong: one group for each sink and reason, whatever ids and numbers of single events a reason names.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::pick::Pick;
use crate::deliver::DeadLetter;

/// Dead letters grouped by reason, the largest group first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Groups {
    /// Only of this sink.
    #[serde(default)]
    pub sink: Option<String>,
    /// Whose events are these.
    #[serde(default)]
    pub pick: Pick,
}

/// Letters of one sink that were given up for the same reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The sink.
    pub sink: String,
    /// The reason, with `…` where single events differ: what `retry` and `drop` take as `group`.
    pub group: String,
    /// How many.
    pub count: u64,
    /// When the first of them was given up.
    pub first: Timestamp,
    /// When the last of them was.
    pub last: Timestamp,
    /// How many by type, `object_type.action`; those without one, and rare ones beyond [`TYPES_MAX`], under the empty text.
    pub types: BTreeMap<String, u64>,
    /// The newest of them: with its own reason, and what the receiver answered.
    pub example: DeadLetter,
}

/// So many types of a group are told apart.
pub const TYPES_MAX: usize = 50;

/// So many groups are told apart; the letters of further ones are in one group of each sink, [`OTHERS`].
pub const GROUPS_MAX: usize = 500;

/// What the group of all further reasons is called. It can't be retried or dropped by this name.
pub const OTHERS: &str = "…";

/// How many letters are meant, before something is done to them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Count {
    /// Only of this sink.
    #[serde(default)]
    pub sink: Option<String>,
    /// Whose events are these.
    #[serde(default)]
    pub pick: Pick,
    /// Only of this group.
    #[serde(default)]
    pub group: Option<String>,
}

/// How many letters are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Altogether.
    pub letters: u64,
    /// By sink.
    pub sinks: BTreeMap<String, u64>,
}
