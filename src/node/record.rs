//! What stands in the bucket of nodes, and what is said of a node.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Role;

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It renews its record.
    Alive,
    /// It has stopped in order.
    Left,
    /// It has not renewed its record for so long that another node has declared it dead.
    Dead,
}

/// One node, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// How it is.
    pub state: NodeState,
    /// When this life of it began.
    pub started_at: Timestamp,
    /// The version of its closehook.
    pub version: String,
    /// What it does: `sink/NAME`, `close`.
    pub leases: Vec<String>,
    /// Seconds since it was heard of, where it is alive.
    #[serde(default)]
    pub heard_seconds: f64,
}

/// The role that something leased needs.
pub(super) fn role_for(what: &str) -> Role {
    match what {
        super::CLOSE => Role::Close,
        super::CERTIFICATE => Role::Ingress,
        _ => Role::Deliver,
    }
}

/// `node/NAME`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// Which life of the node this is: random text.
    pub life: String,
    pub state: NodeState,
    pub roles: Vec<Role>,
    pub version: String,
    pub started_at: Timestamp,
    /// Rises with each renewal.
    pub beat: u64,
    /// When that was said of a node which is not alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// `lease/WHAT`. Never removed: its fence has to rise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub node: String,
    /// The life of the node that took it.
    pub life: String,
    pub fence: u64,
    /// Given up.
    pub free: bool,
}

pub(super) const NODES: &str = "node/";
pub(super) const LEASES: &str = "lease/";

pub(super) fn node_key(name: &str) -> String {
    format!("{NODES}{name}")
}

pub(super) fn lease_key(what: &str) -> String {
    format!("{LEASES}{what}")
}
