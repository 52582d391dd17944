//! A build that knows no other nodes; `check` says so where the configuration has any.

#![allow(clippy::unused_async, reason = "as where there are other nodes")]

use std::sync::Arc;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use super::patience::Why;
use crate::close::{self, Account};
use crate::config::Config;
use crate::log::Log;
use crate::node::{Leases, SharedLeases};
use crate::state::Store;
use crate::state::journal::Journal;

const NONE: &str = "this closehook is built without JetStream (engine-jetstream)";

/// There are none.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// Marks and jobs.
    pub state: Arc<dyn Store>,
    /// Who does what.
    pub leases: SharedLeases,
    /// Dead letters.
    pub letters: Arc<dyn Journal>,
    /// What is known of Close's side.
    pub close: Arc<close::Shared>,
    /// What only nodes may read.
    pub sealed: Arc<dyn Store>,
}

impl Nodes {
    /// Nobody.
    pub fn others(&self) -> Arc<dyn Leases> {
        Arc::new(self.leases.clone())
    }
}

pub(super) fn are_several(_config: &Config) -> bool {
    false
}

/// Where the log is, for people.
pub(super) fn place(config: &Config) -> String {
    config.log.dir.display().to_string()
}

/// It is the only one.
pub(super) fn receives(_config: &Config) -> bool {
    true
}

/// None can be made.
pub async fn create(_config: &Config) -> anyhow::Result<Vec<String>> {
    bail!(NONE)
}

/// There are none.
pub async fn faults(_config: &Config) -> anyhow::Result<Vec<String>> {
    bail!(NONE)
}

pub(super) async fn build(_config: &Config) -> anyhow::Result<Nodes> {
    bail!(NONE)
}

/// Nothing is shared.
pub(super) fn stays_wrong(_why: &str) -> bool {
    false
}

pub(super) async fn open_log(_config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    bail!(NONE)
}

pub(super) async fn open_log_patiently(_config: &Config, _why: &Why) -> anyhow::Result<Arc<dyn Log>> {
    bail!(NONE)
}

pub(super) async fn look_after_close(account: Arc<Account>, _leases: SharedLeases, stop: CancellationToken) {
    close::supervise(account, stop).await;
}
