//! The delivery engine: one worker per sink, each reading the log at its own durable cursor.

mod dead_letters;
mod schedule;
mod state;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::SinkConfig;
use crate::event::Seq;
use crate::eventlog::EventLog;
use crate::rules::RuleSet;

/// What the engine needs to start.
#[derive(Debug)]
pub struct Options {
    /// Where events come from.
    pub log: EventLog,
    /// The data directory; the engine owns `state/` and `dead/` in it.
    pub dir: std::path::PathBuf,
    /// What goes where.
    pub rules: Arc<RuleSet>,
    /// The sinks.
    pub sinks: Vec<SinkConfig>,
    /// `false`: workers follow no new events and only carry out replays and retries of dead letters (a command without a
    /// daemon).
    pub follow: bool,
}

/// Why the engine can't do what was asked; one sentence for the person asking.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// One sink, for people and for `/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Everything up to here is delivered, dead or not for this sink.
    pub cursor: Seq,
    /// Events of the log behind the cursor that are not looked at yet.
    pub lag_events: u64,
    /// Age in seconds of the oldest event that is not finished; 0 when there is none.
    pub lag_seconds: f64,
    /// Deliveries running now.
    pub in_flight: usize,
    /// Events waiting for another try.
    pub retrying: usize,
    /// Dead letters.
    pub dead: u64,
    /// Events that were damaged or expired before this sink had them.
    pub lost: u64,
    /// Delivered since the daemon started.
    pub delivered: u64,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// Stopped by a person.
    pub paused: bool,
    /// The newest failure, if any since the last success.
    pub last_error: Option<String>,
    /// When it was.
    pub last_error_at: Option<Timestamp>,
}

/// What became of one event at one sink, for `events show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum EventState {
    /// Before the sink's start, or no rule sends it there.
    NotRouted,
    /// Not looked at yet.
    Waiting,
    /// Being delivered now.
    InFlight,
    /// Failed so far.
    Retrying {
        /// Attempts made.
        attempts: u32,
        /// When the next one is due.
        due: Timestamp,
        /// Why the last one failed.
        reason: String,
    },
    /// Delivered.
    Delivered,
    /// A dead letter.
    Dead {
        /// Why.
        reason: String,
    },
}

/// Which stored events a replay sends, and where. Empty lists mean "no restriction".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplaySpec {
    /// First Seq.
    pub from: Seq,
    /// Last Seq; fixed when the replay is made.
    pub to: Seq,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Event ids.
    pub ids: Vec<String>,
    /// Event patterns.
    pub types: Vec<String>,
    /// A lead.
    pub lead: Option<String>,
    /// A filter, as JSON text.
    pub filter: Option<String>,
    /// Only what this rule matches, and only to its sinks.
    pub rule: Option<String>,
    /// Only to these sinks (then whether or not a rule sends the event there); empty: wherever the rules send it.
    pub sinks: Vec<String>,
    /// Deliveries a second over all sinks.
    pub rate: Option<f64>,
    /// At most so many events.
    pub limit: Option<u64>,
}

/// A dead letter, without its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The sink that does not have it.
    pub sink: String,
    /// Its place in the log.
    pub seq: Seq,
    /// The event's id.
    pub id: String,
    /// `object_type.action`, where known.
    pub event_type: Option<String>,
    /// Its lead, if any.
    pub lead_id: Option<String>,
    /// Why it was given up.
    pub reason: String,
    /// Attempts made.
    pub attempts: u32,
    /// When the first attempt was made; `None` if there was none.
    pub first_attempt: Option<Timestamp>,
    /// When it was given up.
    pub died_at: Timestamp,
}

/// A replay job: counts as they stand now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// Its id, for `replay --resume`.
    pub id: String,
    /// What was asked for.
    pub spec: ReplaySpec,
    /// `running`, `interrupted`, `done`.
    pub state: String,
    /// Deliveries planned, per sink.
    pub planned: std::collections::BTreeMap<String, u64>,
    /// Deliveries finished well, over all sinks.
    pub delivered: u64,
    /// Deliveries that became dead letters, over all sinks.
    pub dead: u64,
    /// When it was made.
    pub created_at: Timestamp,
}
