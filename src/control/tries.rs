//! Trying what is not deployed: a filter, a rule, a template or a transform is checked, and run over stored events. Nothing is changed,
//! and nothing is sent.

use serde::{Deserialize, Serialize};

use super::browse::Work;
use super::events::Line;
use super::pick::Pick;
use super::sent::Sent;
use super::whole::Node;

/// Checks a draft, and runs it over the newest stored events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Try {
    /// What is tried.
    pub draft: Draft,
    /// Over which events; empty: all.
    #[serde(default)]
    pub pick: Pick,
    /// The newest so many of them, [`EVENTS_MAX`] at the most; `None`: [`EVENTS`]; 0: it is only checked.
    #[serde(default)]
    pub last: Option<u64>,
    /// How much may be looked at for it.
    #[serde(default)]
    pub work: Work,
}

/// Events that a draft is run over where nothing else is said.
pub const EVENTS: u64 = 50;

/// Events that a draft is run over at the most.
pub const EVENTS_MAX: u64 = 1000;

/// Longest draft, in bytes.
pub const DRAFT_MAX: usize = 256 << 10;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Draft {
    /// A filter of Close's language.
    Filter {
        /// JSON text.
        text: String,
    },
    /// Rules as they stand in the configuration: one `[[rules]]` table, or several. They are tried alone, with the sinks of now.
    Rules {
        /// TOML text.
        text: String,
    },
    /// A template for what a sink is sent.
    Template {
        /// The template.
        text: String,
        /// The sink, one of those configured.
        sink: String,
    },
    /// A transform for what a sink is sent.
    Transform {
        /// The function.
        text: String,
        /// The sink, one of those configured.
        sink: String,
    },
}

/// How a try gets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tried {
    /// It is wrong, for all of this, and was not run. There is no other answer.
    Faults(Vec<DraftFault>),
    /// What it says to one event, newest first.
    Event(Box<TriedEvent>),
    /// At the end.
    Done(Box<Summary>),
}

/// One thing that is wrong with a draft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftFault {
    /// Where in its structure (`filters[0].type`, `rules[0].sinks[1]`); empty for the whole.
    pub path: String,
    /// Line in the draft's text, from 1; `None` where that is not known.
    pub line: Option<usize>,
    /// Column in that line, in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong, one sentence.
    pub message: String,
}

/// A draft and one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedEvent {
    /// The event.
    #[serde(flatten)]
    pub line: Line,
    /// Whether it is matched: by the filter, by one of the rules; always true for templates and transforms.
    pub matched: bool,
    /// Why: a tree for the filter, or one for each rule; none for templates and transforms.
    pub why: Vec<Node>,
    /// What would be sent, by sink; empty for a filter, and for what is not matched.
    pub sent: Vec<SentTo>,
}

/// What one sink would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentTo {
    /// The sink.
    pub sink: String,
    /// What it would be sent.
    #[serde(flatten)]
    pub sent: Sent,
}

/// What a try has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Events it was run over.
    pub events: u64,
    /// Of these matched.
    pub matched: u64,
    /// Payloads that would be sent.
    pub sent: u64,
    /// Payloads of which a transform wants nothing.
    pub skipped: u64,
    /// Payloads that can't be made.
    pub failed: u64,
    /// Not run over as many events as was asked for: as much was looked at, made or waited for as is allowed.
    pub is_cut: bool,
    /// The draft as TOML, to be copied into the configuration.
    pub toml: String,
}
