//! Which events are meant, as it travels.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rules::selection::{Selection, Written};

/// Which events are meant; empty, every one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pick {
    /// Event ids.
    pub ids: Vec<String>,
    /// Patterns.
    pub types: Vec<String>,
    /// A lead.
    pub lead: Option<String>,
    /// A filter as JSON text.
    pub filter: Option<String>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Only (or no) quarantined ones.
    pub quarantined: Option<bool>,
    /// Only (or no) events whose data Close withholds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<bool>,
}

impl Pick {
    /// Whether nothing is restricted.
    pub fn is_empty(&self) -> bool {
        *self == Pick::default()
    }

    /// Checks and compiles it. An error is one sentence.
    pub fn compile(&self) -> Result<Selection, String> {
        let written = Written {
            ids: &self.ids,
            types: &self.types,
            lead: self.lead.as_deref(),
            filter: self.filter.as_deref(),
            since: self.since,
            until: self.until,
            quarantined: self.quarantined,
            partial: self.partial,
        };
        written.compile()
    }
}
