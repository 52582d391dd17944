//! The one client of an account: made when it is first needed, and anew when the credentials have changed.
//!
//! Secrets are read from files, on a disk that may hang. That is done on a thread of its own, by one at a time, and waited for only so long;
//! whoever only wants to know what the client knows waits for none of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::timeout;

use super::api::client::{Auth, Client};
use super::api::error::Error;
use super::api::oauth::OAuthChain;
use super::seams::Seams;
use super::store::CloseStore;
use crate::config::{self, Credentials};
use crate::sync::{OneAtATime, lock};

/// The secrets are read within this, or the disk does not answer.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(30);

/// Where the client is, if there is one.
#[derive(Debug, Default)]
pub(super) struct Connection {
    client: Mutex<Option<Arc<Client>>>,
    reading: OneAtATime,
}

impl Connection {
    /// The client there is; `None`: none was needed yet with the credentials of now.
    pub fn client(&self) -> Option<Arc<Client>> {
        lock(&self.client).clone()
    }

    /// The client there is, made by the settings of now if there is none.
    pub async fn open(
        &self,
        settings: &ArcSwap<config::Close>,
        store: &Arc<CloseStore>,
        seams: &Seams,
    ) -> Result<Arc<Client>, Error> {
        loop {
            if let Some(client) = self.client() {
                return Ok(client);
            }
            let of = settings.load_full();
            let (read, store, seams) = (of.clone(), store.clone(), seams.clone());
            let made = self.read(move || connect(&read, &store, seams)).await??;
            // A reload looks at what is here once it has changed the settings: what was made by older ones must not come after that.
            self.keep(made, || Arc::ptr_eq(&of, &settings.load_full()));
        }
    }

    fn keep(&self, made: Client, is_of_now: impl FnOnce() -> bool) {
        let mut client = lock(&self.client);
        if client.is_none() && is_of_now() {
            *client = Some(Arc::new(made));
        }
    }

    /// The settings have changed to these: a client that is for others goes. Whether one did.
    pub async fn renew(&self, settings: Arc<config::Close>) -> bool {
        let Some(known) = self.client() else { return false };
        let asked = known.clone();
        // Credentials that can't be read now are not told from changed ones.
        let is_same = self.read(move || asked.is_for(&settings)).await.unwrap_or(false);
        if !is_same {
            lock(&self.client).take_if(|client| Arc::ptr_eq(client, &known));
        }
        !is_same
    }

    async fn read<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        match timeout(READ_WITHIN, self.reading.run(work)).await {
            Ok(read) => read.map_err(|panicked| Error::Local(panicked.to_string())),
            Err(_) => Err(Error::Credential(format!(
                "the secrets were not read within {} s: the disk that they are on does not answer",
                READ_WITHIN.as_secs()
            ))),
        }
    }

    /// As if it had been made.
    #[cfg(test)]
    pub fn set(&self, client: Arc<Client>) {
        *lock(&self.client) = Some(client);
    }

    /// As if a disk did not give the secrets, until this is dropped.
    #[cfg(test)]
    pub async fn hang(&self) -> std::sync::mpsc::Sender<()> {
        let (go_on, hangs) = std::sync::mpsc::channel();
        let reading = self.reading.clone();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let hang = move || {
                let _ = begun.send(());
                let _ = hangs.recv();
            };
            let _ = reading.run(hang).await;
        });
        let _ = has_begun.await;
        go_on
    }
}

/// Resolves the credentials; contacts nobody. Blocking.
pub(super) fn connect(settings: &config::Close, store: &CloseStore, seams: Seams) -> Result<Client, Error> {
    let auth = match settings.credentials.as_ref().ok_or(Error::NotConfigured)? {
        Credentials::ApiKey(secret) => Auth::ApiKey(secret.resolve().map_err(Error::Credential)?),
        Credentials::OAuth(oauth) => {
            let chain = OAuthChain::new(
                oauth.client_id.clone(),
                oauth.client_secret.resolve().map_err(Error::Credential)?,
                oauth.refresh_token.resolve().map_err(Error::Credential)?,
                store.oauth_path(),
            );
            Auth::OAuth(Arc::new(
                chain
                    .shared_by(store.shared())
                    .tracked_by(store.refreshes().clone())
                    .keeping_in(store.unsaved().clone()),
            ))
        }
    };
    Client::new(settings.base_url.clone(), auth, seams)
}
