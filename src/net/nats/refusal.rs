//! An error as JetStream says it.

use serde::Deserialize;

use crate::plain;

/// So much of what it says goes into a sentence.
const SAID_LEN_MAX: usize = 200;

/// An error as JetStream says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// What HTTP would call it.
    #[serde(default)]
    pub code: u16,
    /// Which one it is (`errors.json` of nats-server).
    #[serde(default)]
    pub err_code: u64,
    /// The server's words, in which there may be anything.
    #[serde(default)]
    pub description: String,
}

impl Refusal {
    /// Whether what is asked about is not there.
    #[cfg(feature = "engine-jetstream")]
    pub fn is_absence(&self) -> bool {
        self.code == 404
    }

    /// Whether it may be over in a moment: there is no leader, or too much is asked.
    #[cfg(feature = "engine-jetstream")]
    pub fn passes(&self) -> bool {
        matches!(self.code, 503 | 408 | 429) || self.is_of(&[10008, 10009, 10005])
    }

    /// Whether it is one of these, by `err_code`.
    #[cfg(feature = "engine-jetstream")]
    pub fn is_of(&self, codes: &[u64]) -> bool {
        codes.contains(&self.err_code)
    }

    /// A sentence of its own, with other words instead of the server's: where these may hold a secret.
    pub fn saying(&self, description: &str) -> String {
        let said: String = plain::line(description).chars().take(SAID_LEN_MAX).collect();
        format!("JetStream says \"{said}\" ({})", self.err_code)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.saying(&self.description))
    }
}
