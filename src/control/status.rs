//! Is it well, and what to do: everything on one screen. How it is found out is in `overview`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::facts::{Certificate, Facts};
use super::sinks::Shown;
use crate::close::CloseStatus;
use crate::log::{Servers, Stats};
use crate::node::NodeStatus;
use crate::retention::Standing;
use crate::telemetry::door::Received;

/// Is it well?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {}

/// How everything does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Nothing asks for anybody's attention.
    #[serde(default)]
    pub well: bool,
    /// What does, the most urgent first.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// The process that answers.
    pub daemon: Facts,
    /// Whether events can be stored.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// How many keys count for new deliveries.
    pub keys: usize,
    /// When the last authentic delivery came; `None`: none that is known.
    #[serde(default)]
    pub last_delivery_at: Option<Timestamp>,
    /// What came to the public listener lately; `None` without a daemon.
    #[serde(default)]
    pub received: Option<Received>,
    /// Close's clock minus ours, as its API last said; `None` where that was not asked.
    #[serde(default)]
    pub clock_offset_seconds: Option<i64>,
    /// The certificate in force; `None` without TLS.
    pub certificate: Option<Certificate>,
    /// The log in numbers.
    pub log: Stats,
    /// The servers that keep the log; `None`: this machine does.
    #[serde(default)]
    pub stream: Option<Servers>,
    /// How full the data directory may get; `None` without a daemon.
    pub retention: Option<Standing>,
    /// The file system it is on; `None` where that can't be found out.
    #[serde(default)]
    pub disk: Option<Disk>,
    /// Every sink, in order of name.
    pub sinks: Vec<Shown>,
    /// The nodes that share the log, in order of name; none where this one is alone.
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
    /// Sinks that are configured no more, whose position is still kept.
    pub removed_sinks: Vec<String>,
    /// Why those can't be read now: there may be some; `None` where they can.
    #[serde(default)]
    pub removed_sinks_unread: Option<String>,
    /// By sink that is not configured, what is wrong with its dead letters.
    #[serde(default)]
    pub removed_sinks_damaged: BTreeMap<String, String>,
    /// By sink that is not configured, how many events other sinks gave up for it and it has not had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stranded: BTreeMap<String, u64>,
    /// The rules in force.
    pub rules: Vec<String>,
    /// Close's side.
    pub close: CloseStatus,
}

/// One thing that asks for attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong, one sentence.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub remedy: String,
    /// Where one thing does it, that thing: for whoever has buttons and links instead of commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// The one thing that does something about a trouble.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Next {
    /// Let a sink's deliveries go on.
    ResumeSink {
        /// Which.
        of: String,
    },
    /// Retry a sink's dead letters, or drop them.
    DeadLetters {
        /// Which.
        of: String,
    },
    /// Look at the bodies that can't be read.
    Quarantined,
    /// Make a paused subscription active again.
    ResumeSubscription {
        /// Which.
        of: String,
    },
    /// Fetch what Close still has.
    Backfill,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What may still be written.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}
