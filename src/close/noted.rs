//! The configuration's signature keys, noted beside those that were made here: once one has left the configuration, what it has signed
//! can still be checked. None of them counts for receiving.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::api::error::Error;
use super::store::Keys;
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
    fn new((id, text): &(Option<String>, SecretString), now: Timestamp) -> NotedKey {
        NotedKey {
            id: id.clone(),
            signature_key: text.expose_secret().trim().to_ascii_lowercase(),
            noted_at: now,
        }
    }

    fn is_same(&self, other: &NotedKey) -> bool {
        self.id == other.id && self.signature_key == other.signature_key
    }

    /// For the verifier.
    pub fn key(&self) -> Result<Key, String> {
        Key::from_hex(self.id.clone(), &self.signature_key)
    }
}

impl Keys {
    /// Those that are not noted yet.
    fn lacks(&self, keys: &[NotedKey]) -> Vec<NotedKey> {
        let is_new = |key: &&NotedKey| !self.configured.iter().any(|noted| noted.is_same(key));
        keys.iter().filter(is_new).cloned().collect()
    }
}

impl Account {
    /// Notes the keys that the configuration has now, so that what they sign can be checked when it has them no more.
    pub async fn note_keys(&self, keys: &[(Option<String>, SecretString)]) -> Result<(), Error> {
        let now = self.now();
        let keys: Vec<NotedKey> = keys.iter().map(|key| NotedKey::new(key, now)).collect();
        let mut noted = self.note_in_file(&keys).await;
        if noted.is_err() {
            // Another node may have noted its own at this moment.
            self.catch_up().await?;
            noted = self.note_in_file(&keys).await;
        }
        noted?;
        self.refresh_verifier()
    }

    async fn note_in_file(&self, keys: &[NotedKey]) -> Result<(), Error> {
        self.store.check()?;
        let new = self.store.keys().lacks(keys);
        if new.is_empty() {
            return Ok(());
        }
        let note = move |keys: &mut Keys| {
            let new = keys.lacks(&new);
            keys.configured.extend(new);
        };
        self.store.change_keys(note).await
    }
}
