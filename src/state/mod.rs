//! What must survive a restart beside the events: marks, jobs, small values by key.
//!
//! [`Store`] is what the rest of closehook knows of it: a value that [`Store::get`] gives is durable, each change of a key gives it a
//! new revision, and a change can be made to depend on the revision that was read, so that two who change one key can't undo each
//! other. [`local`] keeps it on this machine's disk, `jetstream` in a bucket that several machines share, where `sealed` encrypts secrets.
//! [`journal`] is for what is more than small values.

#[cfg(feature = "engine-jetstream")]
pub mod jetstream;
pub mod journal;
pub mod local;
#[cfg(feature = "engine-jetstream")]
pub mod sealed;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "engine-jetstream")]
pub use jetstream::JetStreamStore;
pub use local::LocalStore;
#[cfg(feature = "engine-jetstream")]
pub use sealed::{SealedStore, is_of_another_secret};

/// Which change of a key made its value. Only equal or not equal means something; 0 is never given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A value as it is stored, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes.
    pub value: Bytes,
    /// Which change made it.
    pub revision: Revision,
    /// When that was, by the clock of the servers that keep it; `None`: this machine does, or they do not say.
    pub stored_at: Option<Timestamp>,
}

impl Entry {
    /// Reads it as JSON; an error is one sentence.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(&self.value).map_err(|error| format!("it is not what it should be: {error}"))
    }
}

/// What a key must hold for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it holds.
    Anything,
    /// Nothing.
    Nothing,
    /// The value of this revision.
    Revision(Revision),
}

/// Why a value was not read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has changed the key: nothing was done.
    #[error("somebody else has changed \"{0}\"")]
    Conflict(String),
    /// It could not be made durable, and may be either; worth another try.
    #[error("the state can't be saved: {0}")]
    Failing(String),
    /// It could not be read; worth another try.
    #[error("the state can't be read: {0}")]
    Unreadable(String),
    /// It is closed, or open for reading only.
    #[error("the state is closed")]
    Closed,
}

/// Small values by key. All handles of one are the same store.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// A value as it is durable; `None` where there is none. An error is not an absence.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Changes a value if the key holds what is expected; returns its revision when that is durable.
    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError>;

    /// Removes a value if the key holds what is expected; returns when that is durable. What is not there is removed.
    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError>;

    /// The keys with this beginning, in order.
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// All values as they are durable, in order of their keys; for a backup.
    async fn all(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let mut all = Vec::new();
        for key in self.keys("").await? {
            all.extend(self.get(&key).await?.map(|entry| (key, entry.value)));
        }
        Ok(all)
    }

    /// Whether damage may have taken values: what is not there may have been.
    fn is_damaged(&self) -> bool;

    /// Everything that may have been there has a value again: what is not there from now on is new. Durable when it returns; until then it
    /// is damaged, however often it is opened.
    async fn mended(&self) -> Result<(), StoreError>;

    /// Saves what waits, and lets go.
    async fn close(&self);
}

/// Puts a value as JSON.
pub async fn put_json<T: Serialize + Sync>(
    store: &dyn Store,
    key: &str,
    value: &T,
    expected: Expected,
) -> Result<Revision, StoreError> {
    let value = serde_json::to_vec(value).map_err(|error| StoreError::Failing(error.to_string()))?;
    store.put(key, value, expected).await
}
