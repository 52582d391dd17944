//! The store in a key-value bucket of NATS JetStream: a stream with one message a key, which its servers replicate.
//!
//! The revision of a value is the stream's sequence of its message, and the servers themselves compare it: a change says which message it
//! expects to replace (`Nats-Expected-Last-Subject-Sequence`), also one that nothing is expected of, for what is still on its way when
//! nobody waits for it any more must not come after what was put later. Each put carries an id: whoever lost the answer reads back whether
//! the value that is there is its own. Reading goes through the stream's leader; what a leader of before says that was not told yet is old,
//! and a change that builds on it is refused.
//!
//! | file | what it does |
//! |---|---|
//! | `key` | keys of any text as subjects |
//! | `bucket` | what the bucket must be, making it and looking at it |
//! | `wire` | what is asked of the servers, and how values travel |

mod bucket;
mod key;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Entry, Expected, Revision, Store, StoreError};
use crate::net::nats::{Session, Way};
use wire::{Found, Trouble};

/// Whoever waits does so no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What did not work is tried again after so long.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the values are.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the servers are reached.
    pub way: Way,
    /// The bucket's name: letters, digits, `-` and `_`.
    pub bucket: String,
    /// On how many servers it has to be.
    pub replicas: usize,
    /// How long whoever asks waits; `None`: as long as is good for a daemon.
    pub patience: Option<Duration>,
}

/// The store in a bucket. Cheap to clone. Nobody is contacted before something is asked.
#[derive(Debug, Clone)]
pub struct JetStreamStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    session: Mutex<Option<Arc<Session>>>,
    /// The number of the server whose turn it is.
    turn: AtomicUsize,
    closed: AtomicBool,
}

impl JetStreamStore {
    /// A handle on the bucket; there may be none yet.
    pub fn new(options: Options) -> JetStreamStore {
        JetStreamStore {
            inner: Arc::new(Inner {
                options,
                session: Mutex::default(),
                turn: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
            }),
        }
    }

    fn until(&self) -> Instant {
        Instant::now() + self.inner.options.patience.unwrap_or(PATIENCE)
    }

    /// Looks at a key's message until there is an answer, or no more time.
    async fn look(&self, key: &str, until: Instant) -> Result<Option<Found>, String> {
        loop {
            match self.inner.find(key, until).await {
                Ok(found) => return Ok(found),
                Err(trouble) => pause(trouble, until).await?,
            }
        }
    }

    /// Asks JetStream's API the same way; what it says is an error is one.
    async fn api(&self, what: &str, question: &Value, until: Instant) -> Result<Value, String> {
        loop {
            match self.inner.api(what, question, until).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => pause(trouble, until).await?,
            }
        }
    }

    fn may_be_asked(&self) -> Result<(), StoreError> {
        if self.inner.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        Ok(())
    }

    /// Puts a value where the key still holds `before`: the revision of its message, 0 where there is none.
    async fn put_over(
        &self,
        key: &str,
        value: &Bytes,
        expected: Expected,
        until: Instant,
    ) -> Result<Revision, StoreError> {
        let id = wire::id().map_err(StoreError::Failing)?;
        let mut before = match expected {
            Expected::Nothing => 0,
            Expected::Revision(revision) => revision.0,
            Expected::Anything => {
                let found = self.look(key, until).await.map_err(StoreError::Failing)?;
                found.map_or(0, |found| found.revision.0)
            }
        };
        loop {
            let why = match self.inner.publish(key, value, before, &id, until).await {
                Ok(Some(revision)) => return Ok(revision),
                // Somebody else was faster, or this one was before its answer was lost.
                Ok(None) => "another change of it is under way".to_owned(),
                Err(Trouble::Refused(why)) => return Err(StoreError::Failing(why)),
                Err(Trouble::Lost(why)) => why,
            };
            if Instant::now() + PAUSE >= until {
                return Err(StoreError::Failing(why));
            }
            let found = self.look(key, until).await.map_err(|_| StoreError::Failing(why))?;
            match found {
                Some(found) if found.id == id => return Ok(found.revision),
                Some(found) if found.revision.0 == before => tokio::time::sleep(PAUSE).await,
                Some(found) if found.is_expected(expected) => before = found.revision.0,
                None if matches!(expected, Expected::Nothing | Expected::Anything) => before = 0,
                Some(_) | None => return Err(StoreError::Conflict(key.to_owned())),
            }
        }
    }
}

/// Waits before it is asked again; an error: it is not, and why.
async fn pause(trouble: Trouble, until: Instant) -> Result<(), String> {
    match trouble {
        Trouble::Lost(_) if Instant::now() + PAUSE < until => {
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
        Trouble::Lost(why) | Trouble::Refused(why) => Err(why),
    }
}

#[async_trait]
impl Store for JetStreamStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.may_be_asked()?;
        let found = self.look(key, self.until()).await.map_err(StoreError::Unreadable)?;
        let entry = |found: Found| {
            let (revision, stored_at) = (found.revision, found.stored_at);
            found.value.map(|value| Entry {
                value,
                revision,
                stored_at,
            })
        };
        Ok(found.and_then(entry))
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.may_be_asked()?;
        let until = self.until();
        self.put_over(key, &value.into(), expected, until).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.may_be_asked()?;
        let until = self.until();
        let conflict = || Err(StoreError::Conflict(key.to_owned()));
        let mut was_asked = false;
        loop {
            let found = self.look(key, until).await.map_err(StoreError::Failing)?;
            let Some(found) = found.filter(|found| found.value.is_some()) else {
                // What was to go has gone: by what was asked before, most likely.
                return match expected {
                    Expected::Revision(_) if !was_asked => conflict(),
                    _ => Ok(()),
                };
            };
            if !found.is_expected(expected) {
                return conflict();
            }
            was_asked = true;
            let why = match self.inner.purge(key, found.revision, until).await {
                Ok(true) => return Ok(()),
                Ok(false) => "another change of it is under way".to_owned(),
                Err(Trouble::Refused(why)) => return Err(StoreError::Failing(why)),
                Err(Trouble::Lost(why)) => why,
            };
            if Instant::now() + PAUSE >= until {
                return Err(StoreError::Failing(why));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.may_be_asked()?;
        let mut keys = Vec::new();
        let mut asked_upto = 0;
        let until = self.until();
        loop {
            let bucket = &self.inner.options.bucket;
            let question = json!({ "subjects_filter": key::all_of(bucket), "offset": asked_upto });
            let info = self.api("STREAM.INFO", &question, until).await;
            let info = info.map_err(StoreError::Unreadable)?;
            let subjects = info["state"]["subjects"].as_object();
            let page = subjects.map_or(0, serde_json::Map::len);
            keys.extend(
                subjects
                    .into_iter()
                    .flatten()
                    .filter_map(|(subject, _)| key::of_subject(bucket, subject))
                    .filter(|key| key.starts_with(prefix)),
            );
            asked_upto += page;
            if page == 0 || info["total"].as_u64().is_none_or(|total| asked_upto as u64 >= total) {
                break;
            }
        }
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn is_damaged(&self) -> bool {
        false
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        self.inner.session.lock().await.take();
    }
}
