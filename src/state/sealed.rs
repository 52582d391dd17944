//! Secrets in a store that others can read: every value is encrypted, and bound to its key.
//!
//! The cipher's key is made of a secret that all nodes are configured with: PBKDF2, since a person may have chosen it, with the name of
//! what is shared as salt. Each value is sealed with `ChaCha20-Poly1305` under a random nonce, and its key is authenticated with it, so that no
//! value can be put in another's place. That an older value is put back can't be seen: who can write to the store can set it back.

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;

use super::{Entry, Expected, Revision, Store, StoreError};

/// What the keys begin with in the store below.
const PREFIX: &str = "sealed/";

/// How a value is sealed: the first byte.
const VERSION: u8 = 1;

/// As OWASP advises for this function.
const ROUNDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(599_999);

/// A secret that is shorter says little.
const SECRET_LEN_MIN: usize = 16;

/// What is said of a value that can't be opened.
const STRANGE: &str = "was encrypted with another secret (log.jetstream.secret), or is damaged";

/// Whether a sentence says that something was sealed with another secret.
pub fn is_of_another_secret(why: &str) -> bool {
    why.contains(STRANGE)
}

/// Encrypts what goes into another store, and decrypts what comes out of it.
pub struct SealedStore {
    store: Arc<dyn Store>,
    key: Arc<LessSafeKey>,
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedStore")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl SealedStore {
    /// Seals with a secret; `of` names what is shared. Takes a while, by purpose. An error is one sentence that shows nothing of it.
    pub fn new(store: Arc<dyn Store>, secret: &str, of: &str) -> Result<SealedStore, String> {
        SealedStore::with_rounds(store, secret, of, ROUNDS)
    }

    fn with_rounds(store: Arc<dyn Store>, secret: &str, of: &str, rounds: NonZeroU32) -> Result<SealedStore, String> {
        let secret = secret.trim();
        if secret.len() < SECRET_LEN_MIN {
            return Err(format!(
                "it is too short: at least {SECRET_LEN_MIN} characters, best random ones (openssl rand -hex 32)"
            ));
        }
        let mut bytes = [0; 32];
        let salt = format!("closehook sealed {VERSION} {of}");
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            salt.as_bytes(),
            secret.as_bytes(),
            &mut bytes,
        );
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| "no key can be made of it".to_owned())?;
        Ok(SealedStore {
            store,
            key: Arc::new(LessSafeKey::new(key)),
        })
    }

    /// Seals with the same secret what goes into another store.
    #[must_use]
    pub fn over(&self, store: Arc<dyn Store>) -> SealedStore {
        SealedStore {
            store,
            key: self.key.clone(),
        }
    }

    fn seal(&self, key: &str, mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let failing = |why: &str| StoreError::Failing(format!("\"{key}\" can't be encrypted: {why}"));
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| failing(&error.to_string()))?;
        let aad = Aad::from(key.as_bytes());
        let sealed = self
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut value);
        sealed.map_err(|_| failing("it is too long"))?;
        Ok([&[VERSION], &nonce[..], &value].concat())
    }

    fn open(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let unreadable = |why: &str| StoreError::Unreadable(format!("\"{key}\" {why}"));
        let strange = STRANGE;
        let (version, rest) = sealed.split_first().ok_or_else(|| unreadable(strange))?;
        if *version != VERSION {
            return Err(unreadable("was encrypted by a newer closehook: run that"));
        }
        let (nonce, value) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or_else(|| unreadable(strange))?;
        let mut value = value.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(key.as_bytes()), &mut value);
        let len = opened.map_err(|_| unreadable(strange))?.len();
        value.truncate(len);
        Ok(value)
    }
}

fn below(key: &str) -> String {
    format!("{PREFIX}{key}")
}

#[async_trait]
impl Store for SealedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.store.get(&below(key)).await?;
        let open = |entry: Entry| {
            let value = self.open(key, &entry.value)?.into();
            Ok(Entry { value, ..entry })
        };
        entry.map(open).transpose()
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        let sealed = self.seal(key, value)?;
        self.store.put(&below(key), sealed, expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.store.remove(&below(key), expected).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let keys = self.store.keys(&below(prefix)).await?;
        let own = keys.iter().filter_map(|key| key.strip_prefix(PREFIX));
        Ok(own.map(str::to_owned).collect())
    }

    fn is_damaged(&self) -> bool {
        self.store.is_damaged()
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::LocalStore;

    const SECRET: &str = "hunter2hunter2hunter2";
    const FEW: NonZeroU32 = NonZeroU32::MIN;

    fn sealed(store: &LocalStore, secret: &str, of: &str) -> SealedStore {
        SealedStore::with_rounds(Arc::new(store.clone()), secret, of, FEW).unwrap()
    }

    async fn read(store: &SealedStore, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(store.get(key).await?.map(|entry| entry.value.to_vec()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_value_comes_back_to_whoever_has_the_secret_and_is_read_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let below = LocalStore::open(dir.path(), false).unwrap();
        let store = sealed(&below, SECRET, "closehook");
        let first = store
            .put("close/keys.json", b"the key".to_vec(), Expected::Nothing)
            .await
            .unwrap();
        assert_eq!(read(&store, "close/keys.json").await, Ok(Some(b"the key".to_vec())));
        assert_eq!(
            read(&sealed(&below, SECRET, "closehook"), "close/keys.json").await,
            Ok(Some(b"the key".to_vec()))
        );
        assert_eq!(store.keys("close/").await.unwrap(), ["close/keys.json"]);
        let conflict = store.put("close/keys.json", b"other".to_vec(), Expected::Nothing).await;
        assert!(matches!(conflict, Err(StoreError::Conflict(_))));
        let lying = below.get("sealed/close/keys.json").await.unwrap().unwrap().value;
        assert!(!lying.windows(7).any(|part| part == b"the key"));
        store
            .put("close/keys.json", b"the key".to_vec(), Expected::Revision(first))
            .await
            .unwrap();
        let again = below.get("sealed/close/keys.json").await.unwrap().unwrap().value;
        assert_ne!(lying, again, "each time under a nonce of its own");
        for other in [
            sealed(&below, "another secret, as long", "closehook"),
            sealed(&below, SECRET, "other"),
        ] {
            let error = read(&other, "close/keys.json").await.unwrap_err().to_string();
            assert!(
                error.contains("another secret") && !error.contains("the key"),
                "{error}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_value_that_was_changed_or_put_in_anothers_place_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let below = LocalStore::open(dir.path(), false).unwrap();
        let store = sealed(&below, SECRET, "closehook");
        store.put("a", b"of a".to_vec(), Expected::Nothing).await.unwrap();
        let lying = below.get("sealed/a").await.unwrap().unwrap().value;
        below.put("sealed/b", lying.to_vec(), Expected::Nothing).await.unwrap();
        assert!(read(&store, "b").await.is_err(), "it was a's");
        for at in 0..lying.len() {
            let mut changed = lying.to_vec();
            changed[at] ^= 1;
            below.put("sealed/a", changed, Expected::Anything).await.unwrap();
            assert!(read(&store, "a").await.is_err(), "byte {at}");
            below
                .put("sealed/a", lying[..at].to_vec(), Expected::Anything)
                .await
                .unwrap();
            assert!(read(&store, "a").await.is_err(), "{at} bytes");
        }
        assert!(SealedStore::new(Arc::new(below), "short", "closehook").is_err());
    }
}
