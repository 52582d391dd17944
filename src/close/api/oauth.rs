//! OAuth with refresh tokens that change at every use: Close gives a new one and revokes the old.
//!
//! Whoever loses the newest token is locked out, so it is on disk, synced and mode 0600, before the access token that came
//! with it is used. The file is shared by the daemon and commands that run without one: a lock beside it lets only one of
//! them refresh at a time, and each reads what the other has written. A refresh that was begun goes on when nobody waits for it
//! any more, and the daemon's stop waits for it: it would throw the only good token away.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::answer::{self, HttpAnswer};
use super::error::{Error, rejected};
use crate::close::files::{self, blocking};
use crate::close::shared::{Shared, write_shared};
use crate::config::{self, Secret};
use crate::json::Node;

/// An access token is renewed so long before it expires.
const MARGIN: Duration = Duration::from_secs(60);

/// What an access token is good for where Close does not say.
const LIFE_DEFAULT: Duration = Duration::from_secs(600);

/// The tokens as kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Chain {
    version: u32,
    /// SHA-256 of the configured token the chain began with: another one in the configuration begins a new chain.
    seed: String,
    refresh_token: String,
    /// The one before, until the newest has been used.
    previous: Option<String>,
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
    /// A newer refresh token than the disk has, while writing it fails.
    unsaved: Mutex<Option<SecretString>>,
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
            unsaved: Mutex::default(),
            refreshes: TaskTracker::new(),
        }
    }

    /// The same, with its refreshes among those that somebody waits for before the process ends.
    pub fn tracked_by(mut self, refreshes: TaskTracker) -> OAuthChain {
        self.refreshes = refreshes;
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
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        self.refreshes.spawn(async move {
            let _one_at_a_time = chain.refreshing.lock().await;
            // Nothing is begun for somebody who has gone meanwhile.
            if !tell.is_closed() {
                // Whoever does not hear it finds it kept.
                let _ = tell.send(chain.renew(&http, url).await);
            }
        });
        let never = |_| Error::Local("the refresh of the OAuth token broke off".into());
        told.await.map_err(never)?
    }

    /// The access token at hand, while it is good.
    fn valid(&self) -> Option<SecretString> {
        let access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        access
            .as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(token, _)| token.clone())
    }

    /// Gets a new access token, unless another request has just done so. Only for who holds the lock.
    async fn renew(&self, http: &reqwest::Client, url: Url) -> Result<SecretString, Error> {
        if let Some(token) = self.valid() {
            return Ok(token);
        }
        let path = self.path.clone();
        let lock = blocking(move || files::lock_beside(&path)).await?;
        if let Some(shared) = &self.shared {
            // Another node may have refreshed it since.
            for (name, revision) in shared.look().await? {
                if name == "oauth.json" {
                    shared.note(&name, revision);
                }
            }
        }
        let chain = self.chain().await?;
        let mut answer = self.refresh(http, &url, &chain.refresh_token).await;
        if let (Err(Error::RefreshRefused(_)), Some(previous)) = (&answer, &chain.previous) {
            // The newest may never have been given out in full; Close then still accepts the one before.
            answer = self.refresh(http, &url, previous).await;
        }
        let tokens = answer?;
        if let Some(refresh_token) = &tokens.refresh {
            self.keep(&chain, refresh_token).await;
        }
        drop(lock);
        let until = Instant::now() + tokens.life.saturating_sub(MARGIN).max(Duration::from_secs(1));
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Some((tokens.access.clone(), until));
        Ok(tokens.access)
    }

    /// Where the chain stands: in memory, on disk, or at its beginning in the configuration.
    async fn chain(&self) -> Result<Chain, Error> {
        let seed = hex::encode(Sha256::digest(self.seed.expose_secret()));
        let path = self.path.clone();
        let on_disk: Option<Chain> = blocking(move || files::read_json(&path)).await?;
        let mut chain = on_disk.filter(|chain| chain.seed == seed).unwrap_or_else(|| Chain {
            version: files::VERSION,
            seed,
            refresh_token: self.seed.expose_secret().to_owned(),
            previous: None,
        });
        if let Some(unsaved) = &*self.unsaved.lock().unwrap_or_else(PoisonError::into_inner) {
            unsaved.expose_secret().clone_into(&mut chain.refresh_token);
        }
        Ok(chain)
    }

    /// Makes the new refresh token durable. Where that fails it is kept in memory, and written at the next refresh.
    async fn keep(&self, before: &Chain, refresh_token: &SecretString) {
        let chain = Chain {
            version: files::VERSION,
            seed: before.seed.clone(),
            refresh_token: refresh_token.expose_secret().to_owned(),
            previous: Some(before.refresh_token.clone()),
        };
        let written = write_shared(&self.path, &chain, self.shared.as_deref()).await;
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => *unsaved = None,
            Err(error) => {
                tracing::error!(%error, "the new OAuth refresh token can't be written: if closehook stops before it can, the app has to be authorized again");
                *unsaved = Some(refresh_token.clone());
            }
        }
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
            429 => Error::RateLimited(self.comes_back_in(Timestamp::now())),
            // Not as what is missing at Close: whose the credentials are would count for untold.
            404 => rejected(
                404,
                "there is no /oauth2/token/ there, check [close] base_url".to_owned(),
            ),
            500.. if !self.is_text() || self.body.is_empty() => Error::Server(self.status.as_u16()),
            _ if self.is_text() => self.not_close(),
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
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// The refresh token that a request brings.
    async fn asked_with(stream: &mut TcpStream) -> String {
        let mut said = String::new();
        let mut piece = [0; 1024];
        while !said.contains("refresh_token=") {
            let len = stream.read(&mut piece).await.unwrap();
            assert!(len > 0, "{said}");
            said += std::str::from_utf8(&piece[..len]).unwrap();
        }
        let value = said.rsplit("refresh_token=").next().unwrap();
        value.split('&').next().unwrap().to_owned()
    }

    /// Answers one request for each of these bodies, and gives the tokens they came with; fails where one does not come.
    async fn answers(listener: TcpListener, bodies: &[(u16, &str)]) -> Vec<String> {
        let mut tokens = Vec::new();
        for (status, body) in bodies {
            let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
            let (mut stream, _) = accepted.unwrap().unwrap();
            tokens.push(asked_with(&mut stream).await);
            let answer = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        tokens
    }

    #[test]
    fn only_close_itself_refuses_a_refresh_token() {
        let judged = |status: u16, kind: &'static str, body: &'static str| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert("content-type", kind.parse().unwrap());
            headers.insert("retry-after", "7".parse().unwrap());
            let answer = HttpAnswer {
                status: reqwest::StatusCode::from_u16(status).unwrap(),
                headers,
                body: body.into(),
            };
            answer.granted()
        };
        let (json, html) = ("application/json", "text/html");
        assert_eq!(judged(200, json, "{}"), Ok(()));
        let refused = judged(400, json, r#"{"error":"invalid_grant"}"#);
        assert_eq!(refused, Err(Error::RefreshRefused("invalid_grant".into())));
        for status in [200, 302, 400, 401, 403, 502] {
            let page = judged(status, html, "<html>Attention required");
            assert!(matches!(page, Err(Error::NotClose { .. })), "{status}: {page:?}");
        }
        assert_eq!(
            judged(429, html, "slow down"),
            Err(Error::RateLimited(Duration::from_secs(7)))
        );
        assert_eq!(judged(503, json, "{}"), Err(Error::Server(503)));
        let missing = judged(404, html, "<html>");
        assert!(
            matches!(missing, Err(Error::Rejected { status: 404, .. })),
            "{missing:?}"
        );
    }

    #[tokio::test]
    async fn where_the_newest_refresh_token_is_refused_the_one_before_is_tried() {
        crate::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("oauth.json");
        let seed = "first";
        let chain = |refresh_token: &str, previous: Option<&str>| Chain {
            version: files::VERSION,
            seed: hex::encode(Sha256::digest(seed)),
            refresh_token: refresh_token.to_owned(),
            previous: previous.map(str::to_owned),
        };
        files::write_json(&path, &chain("newest", Some("before"))).unwrap();
        let oauth = || {
            let chain = OAuthChain::new("id".into(), "secret".into(), seed.into(), path.clone());
            Arc::new(chain)
        };
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/oauth2/token/", listener.local_addr().unwrap())).unwrap();
        let refused = (400, r#"{"error":"invalid_grant"}"#);
        let given = (200, r#"{"access_token":"a","refresh_token":"next","expires_in":3600}"#);
        let (asking, all) = (oauth(), [refused, given]);
        let (tokens, access) = tokio::join!(answers(listener, &all), asking.access_token(&http, url));
        assert_eq!(tokens, ["newest", "before"]);
        assert_eq!(access.unwrap().expose_secret(), "a");
        let kept: Chain = files::read_json(&path).unwrap().unwrap();
        assert_eq!((kept.refresh_token.as_str(), kept.previous.is_some()), ("next", true));

        // Where that is refused as well, it is said; and where there is none before, only one is tried.
        for (previous, expected) in [(Some("before"), vec!["newest", "before"]), (None, vec!["newest"])] {
            files::write_json(&path, &chain("newest", previous)).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
            let all = vec![refused; expected.len()];
            let asking = oauth();
            let (tokens, access) = tokio::join!(answers(listener, &all), asking.access_token(&http, url));
            assert_eq!(tokens, expected);
            assert!(matches!(access, Err(Error::RefreshRefused(_))));
        }
    }
}
