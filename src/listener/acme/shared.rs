//! What nodes behind one name share of a certificate: the account's key, the certificate with its own, and what a directory that looks is to
//! be shown, whichever of them it reaches. In a store that keeps secrets.
//!
//! One node orders, under a lease; the others take up what it has got. What a directory is to be shown stands in the store before the
//! directory looks, and a node that is looked at reads it there then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::node::{CERTIFICATE, Leases};
use crate::state::{Expected, Revision, Store, StoreError};
use crate::sync::lock;

/// What a directory is to be shown: by name, what proves it.
pub(super) type Proofs = BTreeMap<String, String>;

const PROOFS: &str = "acme/proofs";

/// However many ask for a proof, it is looked for no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The store has so long to say what is to be shown.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Shared {
    store: Arc<dyn Store>,
    leases: Arc<dyn Leases>,
    /// What the certificate in force is a copy of.
    copied: Mutex<Option<Revision>>,
    /// Has been had here, and the others can't have it yet.
    unshared: Mutex<Option<Vec<u8>>>,
    /// When the proofs were looked for last.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

fn name(file: &std::path::Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!("acme/{name}")
}

fn text(error: &StoreError) -> String {
    error.to_string()
}

impl Shared {
    pub fn new(store: Arc<dyn Store>, leases: Arc<dyn Leases>) -> Shared {
        Shared {
            store,
            leases,
            copied: Mutex::default(),
            unshared: Mutex::default(),
            looked: tokio::sync::Mutex::default(),
        }
    }

    /// Whether it is this node that orders.
    pub fn may_order(&self) -> bool {
        self.leases.lease(CERTIFICATE).is_some()
    }

    /// What others have got since the last look. `own`: what this node has from before anything was shared.
    pub async fn news(
        &self,
        file: &std::path::Path,
        own: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Option<(Vec<u8>, Revision)>, String> {
        let key = name(file);
        let copied = *lock(&self.copied);
        let mut unshared = lock(&self.unshared).clone();
        let found = self.store.get(&key).await.map_err(|error| text(&error))?;
        if found.is_none() && unshared.is_none() {
            unshared = own();
        }
        let found_revision = found.as_ref().map(|entry| entry.revision);
        if let Some(pem) = unshared
            && found_revision == copied
        {
            let expected = copied.map_or(Expected::Nothing, Expected::Revision);
            match self.store.put(&key, pem, expected).await {
                Ok(revision) => {
                    *lock(&self.copied) = Some(revision);
                    *lock(&self.unshared) = None;
                    return Ok(None);
                }
                // Another node's is there: the next look shows it.
                Err(StoreError::Conflict(_)) => return Ok(None),
                Err(error) => return Err(text(&error)),
            }
        }
        // Another node has got one as well: that counts for all.
        *lock(&self.unshared) = None;
        Ok(found
            .filter(|entry| Some(entry.revision) != copied)
            .map(|entry| (entry.value.to_vec(), entry.revision)))
    }

    /// It is in force here.
    pub fn took(&self, revision: Revision) {
        *lock(&self.copied) = Some(revision);
    }

    /// This node has got one, which the next look gives to the others.
    pub fn has_got(&self, pem: Vec<u8>) {
        *lock(&self.unshared) = Some(pem);
    }

    /// The account's key; `None`: there is none yet.
    pub async fn account(&self, file: &std::path::Path) -> Result<Option<Vec<u8>>, String> {
        let found = self.store.get(&name(file)).await.map_err(|error| text(&error))?;
        Ok(found.map(|entry| entry.value.to_vec()))
    }

    /// Gives a key to all, unless there is one: gives the one that is there then.
    pub async fn share_account(&self, file: &std::path::Path, key: Vec<u8>) -> Result<Vec<u8>, String> {
        match self.store.put(&name(file), key.clone(), Expected::Nothing).await {
            Ok(_) => Ok(key),
            Err(StoreError::Conflict(_)) => self
                .account(file)
                .await?
                .ok_or_else(|| "the account's key has just gone from what the nodes share".into()),
            Err(error) => Err(text(&error)),
        }
    }

    /// Every node shows these from now on to whoever looks.
    pub async fn show(&self, proofs: &Proofs) -> Result<(), String> {
        let value = serde_json::to_vec(proofs).map_err(|error| error.to_string())?;
        let put = self.store.put(PROOFS, value, Expected::Anything).await;
        put.map(drop).map_err(|error| text(&error))
    }

    /// Somebody looks, and came before this was called: the proofs as they are, unless they were looked for since and are in force by then.
    /// However many come, each gets what was there when it came.
    pub async fn proofs(&self, came: Instant, take: impl FnOnce(Proofs)) {
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|looked| looked > came) {
            return;
        }
        if let Some(before) = *looked {
            tokio::time::sleep_until(before + LOOK_EVERY).await;
        }
        let began = Instant::now();
        let found = tokio::time::timeout(LOOK_WITHIN, self.store.get(PROOFS)).await;
        match found {
            Ok(Ok(Some(entry))) => match entry.json() {
                Ok(proofs) => take(proofs),
                Err(error) => tracing::warn!(error, "what a directory is to be shown can't be read"),
            },
            Ok(Ok(None)) => take(Proofs::new()),
            Ok(Err(error)) => tracing::warn!(%error, "what a directory is to be shown can't be looked up"),
            Err(_) => tracing::warn!("what a directory is to be shown could not be looked up in time"),
        }
        *looked = Some(began);
    }
}
