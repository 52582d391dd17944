//! OAuth with refresh tokens that change at every use: Close gives a new one and revokes the old.
//!
//! Whoever loses the newest token is locked out, so it is on disk, synced and mode 0600, before the access token that came
//! with it is used. The file is shared by the daemon and commands that run without one: a lock beside it lets only one of
//! them refresh at a time, and each reads what the other has written. A refresh that was begun goes on when nobody waits for it
//! any more, and the daemon's stop waits for it: it would throw the only good token away.
//!
//! Where the newest token can't be written it is kept in memory, with what it follows: what is written is tried again until it is, and as
//! soon as somebody else has written a later one that counts instead.
//!
//! Where nodes share the file, what they share it in may be out just when Close has given a new token. So that is left in a file of this
//! node's own first, `oauth.unsaved.json`, with what it follows as well; it goes when the token is shared, or a later one is. Whoever finds
//! it after a restart goes on with it if what is kept is still what it follows.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::answer::{self, HttpAnswer};
use super::error::{Error, rejected};
use crate::close::files::{self, blocking};
use crate::close::shared::{Shared, write_shared};
use crate::config::{self, Secret};
use crate::json::Node;
use crate::sync::lock;
use crate::task;

/// An access token is renewed so long before it expires.
const MARGIN: Duration = Duration::from_secs(60);

/// What an access token is good for where Close does not say.
const LIFE_DEFAULT: Duration = Duration::from_secs(600);

/// A token is waited for so long: longer than it takes where the lock, Close and the other nodes each take as long as they may.
const RENEWED_WITHIN: Duration = Duration::from_secs(240);

/// What can't be written is tried again after this, and doubly so each time ...
const KEPT_AGAIN: Duration = Duration::from_secs(1);

/// ... up to this.
const KEPT_AGAIN_MAX: Duration = Duration::from_secs(60);

/// The tokens as kept on disk.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Chain {
    version: u32,
    /// SHA-256 of the configured token the chain began with: another one in the configuration begins a new chain.
    seed: String,
    refresh_token: String,
    /// The one before, until the newest has been used.
    previous: Option<String>,
}

impl Chain {
    fn place(&self) -> Place {
        Place {
            seed: self.seed.clone(),
            refresh_token: self.refresh_token.clone(),
        }
    }
}

/// Which chain, and where in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    seed: String,
    refresh_token: String,
}

/// A chain that could not be written.
#[derive(Clone)]
struct Newer {
    chain: Chain,
    /// What is kept instead; `None`: nothing.
    follows: Option<Place>,
    /// It is in the file of this node's own.
    is_left: bool,
    why: String,
}

/// A chain that is not shared yet, as it is left on this node's disk.
#[derive(Serialize, Deserialize)]
struct Left {
    version: u32,
    chain: Chain,
    /// See [`Newer::follows`].
    follows: Option<Place>,
}

/// Whether the file of the newest token can be read, and that of one that is not shared yet. Blocking.
pub(in crate::close) fn readable(path: &Path) -> [Result<(), Error>; 2] {
    [
        files::read_json::<Chain>(path).map(drop),
        files::read_json::<Left>(&files::unsaved_path(path)).map(drop),
    ]
}

/// The newest refresh token, while it can't be written. It outlives the client that was given it.
#[derive(Default)]
pub(in crate::close) struct Unsaved {
    newer: Mutex<Option<Newer>>,
    /// Somebody tries to write it again and again.
    is_tried: AtomicBool,
}

impl std::fmt::Debug for Unsaved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsaved").finish_non_exhaustive()
    }
}

impl Unsaved {
    /// Why the newest token can't be written; `None`: it is.
    pub fn why(&self) -> Option<String> {
        lock(&self.newer).as_ref().map(|newer| newer.why.clone())
    }

    /// What counts where this is what is kept: the one in memory goes where it does not follow that.
    fn over(&self, kept: Option<&Chain>) -> Option<Chain> {
        let mut newer = lock(&self.newer);
        let place = kept.map(Chain::place);
        newer.take_if(|newer| newer.follows != place);
        newer.as_ref().map(|newer| newer.chain.clone())
    }
}

/// The credentials of an OAuth app and where its chain stands.
pub(in crate::close) struct OAuthChain {
    client_id: String,
    client_secret: SecretString,
    seed: SecretString,
    path: PathBuf,
    /// Where several nodes share that file.
    shared: Option<Arc<Shared>>,
    access: Mutex<Option<(SecretString, Instant)>>,
    refreshing: tokio::sync::Mutex<()>,
    unsaved: Arc<Unsaved>,
    /// What must end before the process does.
    refreshes: TaskTracker,
}

impl std::fmt::Debug for OAuthChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OAuth")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl OAuthChain {
    /// `seed` is the refresh token in the configuration, `path` the file of the newest one.
    pub fn new(client_id: String, client_secret: SecretString, seed: SecretString, path: PathBuf) -> OAuthChain {
        OAuthChain {
            client_id,
            client_secret,
            seed,
            path,
            shared: None,
            access: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            unsaved: Arc::default(),
            refreshes: TaskTracker::new(),
        }
    }

    /// The same, with its refreshes among those that somebody waits for before the process ends.
    pub fn tracked_by(mut self, refreshes: TaskTracker) -> OAuthChain {
        self.refreshes = refreshes;
        self
    }

    /// The same, where what can't be written is kept here.
    pub fn keeping_in(mut self, unsaved: Arc<Unsaved>) -> OAuthChain {
        self.unsaved = unsaved;
        self
    }

    /// The same where several nodes may share the file.
    pub fn shared_by(mut self, shared: Option<Arc<Shared>>) -> OAuthChain {
        self.shared = shared;
        self
    }

    /// Whether it begins with what the configuration says now; `same` compares secrets.
    pub fn is_for(&self, settings: &config::OAuth, same: impl Fn(&Secret, &SecretString) -> bool) -> bool {
        self.client_id == settings.client_id
            && same(&settings.client_secret, &self.client_secret)
            && same(&settings.refresh_token, &self.seed)
    }

    /// Close did not accept the access token: the next request gets a new one.
    pub fn forget_access(&self) {
        *lock(&self.access) = None;
    }

    /// A token that is good for a request now.
    pub async fn access_token(self: &Arc<Self>, http: &reqwest::Client, url: Url) -> Result<SecretString, Error> {
        if let Some(token) = self.valid() {
            return Ok(token);
        }
        if self.refreshes.is_closed() {
            return Err(Error::Local("closehook is stopping".into()));
        }
        let (chain, http) = (self.clone(), http.clone());
        let (tell, told) = oneshot::channel();
        let refresh = async move {
            let _one_at_a_time = chain.refreshing.lock().await;
            // Nothing is begun for somebody who has gone meanwhile.
            if !tell.is_closed() {
                // Whoever does not hear it finds it kept.
                let _ = tell.send(chain.renew(&http, url).await);
            }
        };
        task::begin(self.refreshes.track_future(refresh));
        let never = |_| Error::Local("the refresh of the OAuth token broke off".into());
        let hangs = |_| {
            Error::Local(format!(
                "the refresh of Close's OAuth token was not over within {} s: the disk of {}, or what nodes share, does not answer",
                RENEWED_WITHIN.as_secs(),
                self.path.display()
            ))
        };
        timeout(RENEWED_WITHIN, told).await.map_err(hangs)?.map_err(never)?
    }

    /// The access token at hand, while it is good.
    fn valid(&self) -> Option<SecretString> {
        lock(&self.access)
            .as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(token, _)| token.clone())
    }

    /// Gets a new access token, unless another request has just done so. Only for who holds the lock.
    async fn renew(self: &Arc<Self>, http: &reqwest::Client, url: Url) -> Result<SecretString, Error> {
        if let Some(token) = self.valid() {
            return Ok(token);
        }
        // Nothing has been asked of Close yet: a stop need not wait for whoever has it.
        let locked = files::lock_beside(&self.path, || self.refreshes.is_closed()).await?;
        let kept = self.kept().await?;
        self.recall(kept.as_ref()).await?;
        let chain = self.chain(kept.as_ref());
        let mut answer = self.refresh(http, &url, &chain.refresh_token).await;
        if let (Err(Error::RefreshRefused(_)), Some(previous)) = (&answer, &chain.previous) {
            // The newest may never have been given out in full; Close then still accepts the one before.
            answer = self.refresh(http, &url, previous).await;
        }
        let tokens = answer?;
        if let Some(refresh_token) = &tokens.refresh {
            let chain = Chain {
                refresh_token: refresh_token.expose_secret().to_owned(),
                previous: Some(chain.refresh_token),
                ..chain
            };
            self.keep(chain, kept.as_ref().map(Chain::place)).await;
        }
        drop(locked);
        let until = Instant::now() + tokens.life.saturating_sub(MARGIN).max(Duration::from_secs(1));
        *lock(&self.access) = Some((tokens.access.clone(), until));
        Ok(tokens.access)
    }

    /// What is kept: what all nodes share, where there are several, since that may be later than this one's file.
    async fn kept(&self) -> Result<Option<Chain>, Error> {
        if let Some(shared) = &self.shared
            && let Some(content) = shared.newest(&self.path).await?
        {
            return files::parse(&self.path, &content).map(Some);
        }
        let path = self.path.clone();
        blocking(move || files::read_json(&path)).await
    }

    /// Where the chain stands where this is kept: in memory, there, or at its beginning in the configuration.
    fn chain(&self, kept: Option<&Chain>) -> Chain {
        let seed = hex::encode(Sha256::digest(self.seed.expose_secret()));
        let newest = self.unsaved.over(kept).or_else(|| kept.cloned());
        newest.filter(|chain| chain.seed == seed).unwrap_or_else(|| Chain {
            version: files::VERSION,
            seed,
            refresh_token: self.seed.expose_secret().to_owned(),
            previous: None,
        })
    }

    /// A token that is not shared yet.
    async fn left(&self) -> Result<Option<Left>, Error> {
        let path = files::unsaved_path(&self.path);
        blocking(move || files::read_json(&path)).await
    }

    /// Takes up what was left, by an earlier process or another one on this node, unless there is a later one by now: whoever has the lock
    /// leaves the newest. For who holds the locks.
    async fn recall(&self, kept: Option<&Chain>) -> Result<(), Error> {
        let left = match self.left().await {
            Ok(left) => left,
            // There is one in memory.
            Err(error) if self.unsaved.why().is_some() => {
                tracing::debug!(%error, "an OAuth refresh token that was left here can't be read");
                None
            }
            Err(error) => return Err(error),
        };
        let Some(Left { chain, follows, .. }) = left else {
            return Ok(());
        };
        if follows != kept.map(Chain::place) {
            self.forget_left().await;
            return Ok(());
        }
        let mut newer = lock(&self.unsaved.newer);
        // What could not be left came after what was, which follows the same and could not be taken away.
        if newer
            .as_ref()
            .is_some_and(|newer| newer.follows == follows && !newer.is_left)
        {
            return Ok(());
        }
        let ended = || "closehook ended before it could be".to_owned();
        let why = newer.take().map_or_else(ended, |newer| newer.why);
        let is_left = true;
        *newer = Some(Newer {
            chain,
            follows,
            is_left,
            why,
        });
        Ok(())
    }

    /// Leaves a new token on this node's disk before it is shared. `true`: it is there.
    async fn leave(&self, chain: &Chain, follows: Option<&Place>) -> bool {
        let path = files::unsaved_path(&self.path);
        let left = Left {
            version: files::VERSION,
            chain: chain.clone(),
            follows: follows.cloned(),
        };
        let written = blocking(move || files::write_json(&path, &left)).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "the new OAuth refresh token is on no disk before it is shared with the other nodes");
            // An older one would be taken for the newest.
            self.forget_left().await;
        }
        written.is_ok()
    }

    /// What was left is shared, or there is a later one. What stays after all is told by what it follows.
    async fn forget_left(&self) {
        let path = files::unsaved_path(&self.path);
        if let Err(error) = blocking(move || files::remove(&path)).await {
            tracing::debug!(%error, "an OAuth refresh token that was left here stays");
        }
    }

    /// Makes the new refresh token durable. Where that fails it is kept in memory, and tried again until it is. For who holds the locks.
    async fn keep(self: &Arc<Self>, chain: Chain, follows: Option<Place>) {
        let is_left = self.shared.is_some() && self.leave(&chain, follows.as_ref()).await;
        let written = write_shared(&self.path, &chain, self.shared.as_deref()).await;
        let newer = written.err().map(|error| {
            if is_left {
                tracing::error!(%error, "the new OAuth refresh token is on this node's disk only: the other nodes can't use Close until it is shared, which is tried again");
            } else {
                tracing::error!(%error, "the new OAuth refresh token can't be written: if closehook stops before it can, the app has to be authorized again");
            }
            let why = error.to_string();
            Newer {
                chain,
                follows,
                is_left,
                why,
            }
        });
        let is_written = newer.is_none();
        *lock(&self.unsaved.newer) = newer;
        if is_written {
            self.forget_left().await;
        } else if !self.unsaved.is_tried.swap(true, Ordering::SeqCst) {
            task::begin(self.clone().keep_later());
        }
    }

    /// Nobody may need another one for an hour, and until it is written it goes with the process.
    async fn keep_later(self: Arc<Self>) {
        loop {
            let mut pause = KEPT_AGAIN;
            while self.unsaved.why().is_some() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(KEPT_AGAIN_MAX);
                if let Err(error) = self.keep_now().await {
                    tracing::debug!(%error, "the OAuth refresh token can't be written yet");
                }
            }
            self.unsaved.is_tried.store(false, Ordering::SeqCst);
            // Another one may have been given in between.
            if self.unsaved.why().is_none() || self.unsaved.is_tried.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Writes the token that could not be written, by this process or one before it, unless there is a later one by now. Only where nodes share
    /// it may an earlier process have left one.
    pub async fn keep_now(&self) -> Result<(), Error> {
        if self.unsaved.why().is_none() && (self.shared.is_none() || self.left().await?.is_none()) {
            return Ok(());
        }
        let _one_at_a_time = self.refreshing.lock().await;
        let _locked = files::lock_beside(&self.path, || false).await?;
        let kept = self.kept().await?;
        self.recall(kept.as_ref()).await?;
        let Some(chain) = self.unsaved.over(kept.as_ref()) else {
            return Ok(());
        };
        let written = write_shared(&self.path, &chain, self.shared.as_deref()).await;
        match &written {
            Ok(()) => {
                *lock(&self.unsaved.newer) = None;
                self.forget_left().await;
                tracing::info!("the OAuth refresh token is written at last");
            }
            Err(error) => {
                if let Some(newer) = &mut *lock(&self.unsaved.newer) {
                    newer.why = error.to_string();
                }
            }
        }
        written
    }

    /// Asks for new tokens, once: a second request with the same token would be refused.
    async fn refresh(&self, http: &reqwest::Client, url: &Url, refresh_token: &str) -> Result<Tokens, Error> {
        let mut form = Url::parse("form:").map_err(|error| Error::Local(error.to_string()))?;
        form.query_pairs_mut().extend_pairs([
            ("grant_type", "refresh_token"),
            ("client_id", &self.client_id),
            ("client_secret", self.client_secret.expose_secret()),
            ("refresh_token", refresh_token),
        ]);
        let request = http
            .post(url.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned());
        let answer = answer::receive(request, url.host_str().unwrap_or_default()).await?;
        answer.granted()?;
        let body = answer::text(&answer.body)?;
        crate::json::validate(&answer.body).map_err(|error| Error::Garbled(error.to_string()))?;
        let node = Node::new(body);
        let token = |name| {
            node.get(name)
                .and_then(Node::as_string)
                .map(|text| SecretString::from(text.into_owned()))
        };
        Ok(Tokens {
            access: token("access_token").ok_or_else(|| Error::Garbled("there is no access_token in it".into()))?,
            refresh: token("refresh_token"),
            life: node
                .get("expires_in")
                .and_then(|life| life.raw().parse().ok())
                .filter(|life| *life > 0)
                .map_or(LIFE_DEFAULT, Duration::from_secs),
        })
    }
}

impl HttpAnswer {
    /// Whether tokens were given. Only Close itself refuses a token: what stands in front of it says nothing of that.
    fn granted(&self) -> Result<(), Error> {
        Err(match self.status.as_u16() {
            200..300 if !self.is_text() => return Ok(()),
            // Not as what is missing at Close: whose the credentials are would count for untold.
            404 => rejected(
                404,
                "there is no /oauth2/token/ there, check [close] base_url".to_owned(),
            ),
            500.. if !self.is_text() || self.body.is_empty() => Error::Server(self.status.as_u16()),
            _ if !self.is_closes() => self.not_close(),
            429 => Error::RateLimited(self.comes_back_in(Timestamp::now())),
            400 | 401 | 403 => Error::RefreshRefused(self.faults()),
            300..400 => self.not_close(),
            status => rejected(status, self.faults()),
        })
    }
}

struct Tokens {
    access: SecretString,
    refresh: Option<SecretString>,
    life: Duration,
}

#[cfg(test)]
mod tests;
