//! Noting the configuration's signature keys, when the daemon begins and with each reload.

use secrecy::SecretString;

use super::account::Account;
use super::api::error::Error;
use super::noted::NotedKey;
use super::store::Keys;

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
