//! One event whole: what came, whether it is signed, which rule says what of it and why, what became of it at each sink and what each
//! would be sent now.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::sent::Sent;
use super::transfer::Exported;
use crate::deliver::EventState;
use crate::event::{Kind, Seq};

/// One event: by its id every revision, newest first, or by its Seq.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whole {
    /// Event id or Seq.
    pub id: String,
    /// Also what each sink would be sent now.
    #[serde(default)]
    pub send: bool,
}

/// So many revisions are shown; all of them are named.
pub const REVISIONS_MAX: usize = 20;

/// An event with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// As it is exported: Seq, when and how it came, headers, body.
    #[serde(flatten)]
    pub event: Exported,
    /// Whether it can be read, is whole, is still there.
    pub kind: Kind,
    /// Stored without ever being dispatched: an import that was not to deliver anything.
    pub held: bool,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// `object_type.action`; `None` where it names none.
    #[serde(rename = "type")]
    pub type_action: Option<String>,
    /// Its id; `None` where it can't be read.
    pub id: Option<String>,
    /// The text of its `date_updated`.
    pub date_updated: Option<String>,
    /// Its lead.
    pub lead_id: Option<String>,
    /// Its object.
    pub object_id: Option<String>,
    /// The subscription it came by.
    pub subscription_id: Option<String>,
    /// What can be said about its signature now.
    pub signature: Signature,
    /// The Seqs of all its revisions, in order.
    pub revisions: Vec<Seq>,
    /// What each rule says to it, in the file's order. Without any rules every event goes to every sink.
    pub routes: Vec<Route>,
    /// What became of it at each sink, in order of name.
    pub sinks: Vec<AtSink>,
    /// The replays of the last 7 days that take it in, oldest first.
    pub replays: Vec<Touched>,
}

/// What can be said about a signature now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// In a word.
    pub verdict: Verdict,
    /// In a sentence.
    pub text: String,
    /// When it was signed, as its header says; `None` where that says no time.
    pub signed_at: Option<Timestamp>,
    /// Whose key it is: the id of its subscription; `None` where a key is known without one, or none is.
    pub key: Option<String>,
    /// The key counts for stored events only: it was replaced.
    pub is_retired: bool,
}

/// Whether an event is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A known key signed exactly these bytes.
    Valid,
    /// No known key did.
    Invalid,
    /// It was fetched from Close's event log, which signs nothing.
    Unsigned,
    /// It was delivered, and has none.
    Missing,
    /// Its bytes were erased.
    Erased,
}

/// What one rule says to the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The rule.
    pub rule: String,
    /// Whether it sends the event to its sinks.
    pub matched: bool,
    /// Its sinks.
    pub sinks: Vec<String>,
    /// Why.
    pub why: Node,
}

/// One node of what a rule asks, with its answer for this event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `rule`, `dispatch` (whether the event goes anywhere at all), `events` (the rule's patterns), or what a filter has: `and`, `or`,
    /// `not`, `field_accessor`, `any_array_value`, `equals`, `not_equals`, `contains`, `is_null`, `non_null`.
    pub kind: String,
    /// What it asks, for people.
    pub text: String,
    /// Where it is in the rule (`filter.filters[0]`); empty for the whole.
    pub place: String,
    /// The value it was asked of, shortened.
    pub saw: String,
    /// Its answer.
    pub matched: bool,
    /// This one decided: its other answer would have changed the whole. One node of a tree at the most.
    pub deciding: bool,
    /// Those below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

/// An event at one sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtSink {
    /// The sink.
    pub sink: String,
    /// Its type.
    pub kind: String,
    /// What became of it.
    #[serde(flatten)]
    pub state: EventState,
    /// The rules of now that send it there; empty where none does, or there are no rules.
    pub rules: Vec<String>,
    /// Whether the rules of now send it there.
    pub routed: bool,
    /// What the sink would be sent now, whether or not a rule sends it there; `None` where that was not asked, or there is nothing that
    /// could be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
}

/// A replay that takes an event in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its id.
    pub id: String,
    /// `running`, `interrupted`, `done` or `incomplete`.
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The sinks it sends this event to, as the rules are now.
    pub sinks: Vec<String>,
}
