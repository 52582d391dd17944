//! The configuration's signature keys, noted beside those that were made here: once one has left the configuration, what it has signed
//! can still be checked. None of them counts for receiving.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::ingress::verify::Key;

/// A key that the configuration has, or had.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct NotedKey {
    /// Its subscription; `None`: it counted for every one.
    id: Option<String>,
    /// Hex.
    signature_key: String,
    /// When it was first seen there.
    noted_at: Timestamp,
}

impl std::fmt::Debug for NotedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl NotedKey {
    pub fn new((id, text): &(Option<String>, SecretString), now: Timestamp) -> NotedKey {
        NotedKey {
            id: id.clone(),
            signature_key: text.expose_secret().trim().to_ascii_lowercase(),
            noted_at: now,
        }
    }

    pub fn is_same(&self, other: &NotedKey) -> bool {
        self.id == other.id && self.signature_key == other.signature_key
    }

    /// For the verifier.
    pub fn key(&self) -> Result<Key, String> {
        Key::from_hex(self.id.clone(), &self.signature_key)
    }
}
