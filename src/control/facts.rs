//! What the process that answers is, and what its parts in front of the log tell of themselves: as plain facts, so that whoever
//! answers needs to know nothing of HTTP, TLS or how a signature is checked.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::SignatureHeaders;
use crate::telemetry::door::Received;

/// Facts about the process that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether it is the daemon.
    pub running: bool,
    /// Its process id.
    pub pid: u32,
    /// A daemon that has the data directory and can't be asked, by its process id: this is told beside it. `None`: there is none, or
    /// it is the daemon that tells this.
    #[serde(default)]
    pub unreachable: Option<u32>,
    /// What this node is called, where others share the log; `None`: it is alone.
    #[serde(default)]
    pub node: Option<String>,
    /// closehook's version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Where deliveries go; `None` without a daemon, and where this node receives none.
    pub url: Option<String>,
    /// With what the `x-request-id` of its answers begins.
    #[serde(default)]
    pub request_ids: String,
    /// Metrics and health; `None` without a daemon.
    pub admin: Option<String>,
    /// The data directory.
    pub dir: PathBuf,
}

/// The certificate of the public listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Where it is.
    pub file: PathBuf,
    /// For which names it is ordered; none where others see to it.
    #[serde(default)]
    pub domains: Vec<String>,
    /// When it expires; `None`: there is none yet, or it does not say so readably.
    pub not_after: Option<Timestamp>,
    /// When the next one is ordered; `None` where others see to it.
    #[serde(default)]
    pub next_renewal: Option<Timestamp>,
    /// Why the last order failed, or what the files hold now can't be used; `None`: nothing did.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// Whose key signed something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signer {
    /// Its subscription; `None`: it counts for every one.
    pub subscription: Option<String>,
    /// It counts for stored events only.
    pub is_retired: bool,
}

/// The receiving side.
pub trait Receiving: std::fmt::Debug + Send + Sync {
    /// How many keys count for new deliveries.
    fn keys(&self) -> usize;

    /// Whether a key that is or was live signed what is stored.
    fn is_signed(&self, headers: &SignatureHeaders, body: &[u8]) -> bool;

    /// Whose key signed what is stored; `None`: no key that is or was live did.
    fn signed_by(&self, headers: &SignatureHeaders, body: &[u8]) -> Option<Signer>;

    /// Why some keys are not known now, a sentence each: what no known key signed, one of these may have.
    fn unknown_keys(&self) -> Vec<String> {
        Vec::new()
    }

    /// Signs as of now with the first live key, or with that of a subscription; with it, whose key it is. `None`: there is none.
    fn sign(&self, subscription: Option<&str>, body: &[u8]) -> Option<(Option<String>, SignatureHeaders)>;

    /// What came to the public listener lately; `None` without a daemon.
    fn received(&self) -> Option<Received>;

    /// The certificate in force; `None` without TLS and without a daemon.
    fn certificate(&self) -> Option<Certificate>;
}
