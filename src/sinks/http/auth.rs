//! Who this side says it is: a token, a user with a password, or a token that an OAuth 2 server gives for a client's id and secret.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::config::{Secret, Table};
use crate::names;
use crate::net::client::{Client, Request, basic};
use crate::net::percent::encoded;
use crate::sinks::Unavailable;
use crate::sinks::common::lent::{Lends, Lent, Standing, Term};
use crate::sinks::common::secrets::Secrets;

/// A token is fetched again so long before it expires, or a fifth of its life if that is less.
const AHEAD: Duration = Duration::from_secs(60);

/// While a token is still good and the next can't be had, it is not asked for more often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// `auth`, and the keys that go with it.
#[derive(Debug, Clone)]
pub(super) enum Auth {
    None,
    Bearer(Secret),
    Basic { username: String, password: Secret },
    OAuth2(Box<OAuth2>),
}

/// `auth = "oauth2"`: client credentials (RFC 6749, 4.4).
#[derive(Debug, Clone)]
pub(super) struct OAuth2 {
    pub token_url: Url,
    client_id: String,
    client_secret: Secret,
    scope: Option<String>,
    audience: Option<String>,
}

impl Auth {
    /// All its keys are read, whatever `auth` is: one that goes with another is a fault.
    pub(super) fn parse(table: &mut Table<'_>) -> Auth {
        let given: Vec<&str> = KEYS
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| is_given(table, key))
            .collect();
        let auth: Option<String> = table.optional("auth");
        let token = table.secret("token");
        let username: Option<String> = table.optional("username");
        let password = table.secret("password");
        let token_url: Option<String> = table.optional("token_url");
        let client_id: Option<String> = table.optional("client_id");
        let client_secret = table.secret("client_secret");
        let scope = table.optional("scope");
        let audience = table.optional("audience");
        let kind = auth.as_deref().unwrap_or_default();
        if auth.is_some() && !KINDS.contains(&kind) {
            table.fault("auth", names::unknown("there is no such way", kind, KINDS));
            return Auth::None;
        }
        for (key, of) in KEYS.iter().filter(|(key, of)| given.contains(key) && *of != kind) {
            table.fault(key, format!("goes with auth = \"{of}\""));
        }
        let mut missing = |key: &str, example: &str| {
            if !given.contains(&key) {
                table.fault(
                    key,
                    format!("is missing: auth = \"{kind}\" needs it, for example {example}"),
                );
            }
        };
        match kind {
            "bearer" => missing("token", "token_file = \"credential:token\""),
            "basic" => {
                missing("username", "username = \"closehook\"");
                missing("password", "password_file = \"credential:password\"");
            }
            "oauth2" => {
                missing("token_url", "token_url = \"https://login.example.com/oauth/token\"");
                missing("client_id", "client_id = \"closehook\"");
                missing("client_secret", "client_secret_file = \"credential:client_secret\"");
            }
            _ => {}
        }
        if username.as_ref().is_some_and(|name| name.contains(':')) {
            table.fault("username", "can't have a colon: Basic ends it there");
        }
        let token_url = token_url.and_then(|text| token_server(table, &text));
        match (kind, token, username, password, token_url, client_id, client_secret) {
            ("bearer", Some(token), ..) => Auth::Bearer(token),
            ("basic", _, Some(username), Some(password), ..) => Auth::Basic { username, password },
            ("oauth2", _, _, _, Some(token_url), Some(client_id), Some(client_secret)) => {
                Auth::OAuth2(Box::new(OAuth2 {
                    token_url,
                    client_id,
                    client_secret,
                    scope,
                    audience,
                }))
            }
            _ => Auth::None,
        }
    }

    /// Equal exactly if it is the same; without the secrets.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Auth::None => String::new(),
            Auth::Bearer(token) => format!("bearer {}", token.fingerprint()),
            Auth::Basic { username, password } => format!("basic {username:?} {}", password.fingerprint()),
            Auth::OAuth2(oauth) => {
                let OAuth2 {
                    token_url,
                    client_id,
                    client_secret,
                    scope,
                    audience,
                } = &**oauth;
                let secret = client_secret.fingerprint();
                format!("oauth2 {token_url} {client_id:?} {secret} {scope:?} {audience:?}")
            }
        }
    }

    /// Resolves its secrets; contacts nobody. `secrets` are the sink's others.
    pub(super) fn resolve(&self, client: &Client, mut secrets: Secrets) -> Result<Credentials, String> {
        let fixed = |value: HeaderValue, secrets: Secrets, hint: &'static str| Credentials::Fixed {
            token: Arc::new(Token {
                header: Some(value),
                secrets: Arc::new(secrets),
                term: Term::default(),
            }),
            hint,
        };
        match self {
            Auth::None => Ok(Credentials::Fixed {
                token: Arc::new(Token::nothing(secrets)),
                hint: "",
            }),
            Auth::Bearer(token) => {
                let token = token.resolve()?;
                let header = bearer(token.expose_secret()).ok_or("the token has characters that can't be sent")?;
                secrets.add(token.expose_secret());
                Ok(fixed(header, secrets, ": look at token"))
            }
            Auth::Basic { username, password } => {
                let password = password.resolve()?;
                secrets.add_user(username, password.expose_secret());
                let header = basic(username, password.expose_secret());
                Ok(fixed(header, secrets, ": look at username and password"))
            }
            Auth::OAuth2(oauth) => {
                let secret = oauth.client_secret.resolve()?;
                secrets.add_url(&oauth.token_url);
                secrets.add_user(&oauth.client_id, secret.expose_secret());
                secrets.add_user(&encoded(&oauth.client_id), &encoded(secret.expose_secret()));
                Ok(Credentials::Fetched(Box::new(Tokens {
                    client: client.clone(),
                    oauth: (**oauth).clone(),
                    secret,
                    secrets,
                    lent: Lent::new(ASK_AGAIN_AFTER),
                    in_body: AtomicBool::new(false),
                })))
            }
        }
    }
}

const KINDS: [&str; 3] = ["bearer", "basic", "oauth2"];

const KEYS: [(&str, &str); 8] = [
    ("token", "bearer"),
    ("username", "basic"),
    ("password", "basic"),
    ("token_url", "oauth2"),
    ("client_id", "oauth2"),
    ("client_secret", "oauth2"),
    ("scope", "oauth2"),
    ("audience", "oauth2"),
];

fn is_given(table: &Table<'_>, key: &str) -> bool {
    ["", "_file", "_env"]
        .iter()
        .any(|end| table.has(&format!("{key}{end}")))
}

fn token_server(table: &mut Table<'_>, text: &str) -> Option<Url> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Some(url),
        _ => {
            table.fault(
                "token_url",
                "must be a URL like \"https://login.example.com/oauth/token\"",
            );
            None
        }
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What is sent as `authorization`, and where it comes from.
pub(super) enum Credentials {
    Fixed {
        token: Arc<Token>,
        /// What to look at when it is refused.
        hint: &'static str,
    },
    Fetched(Box<Tokens>),
}

/// One that is sent.
pub(super) struct Token {
    header: Option<HeaderValue>,
    /// What must not be kept of an answer to it: all of the sink's secrets.
    pub secrets: Arc<Secrets>,
    term: Term,
}

impl Lends for Token {
    fn standing(&self) -> Standing {
        self.term.standing()
    }
}

impl Token {
    fn nothing(secrets: Secrets) -> Token {
        Token {
            header: None,
            secrets: Arc::new(secrets),
            term: Term::default(),
        }
    }

    /// The header's value, if there is one.
    pub(super) fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }
}

impl Credentials {
    /// What to send. `refused`: another one than this.
    pub(super) async fn token(&self, until: Instant, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, Unavailable> {
        match self {
            Credentials::Fixed { token, .. } => Ok(token.clone()),
            Credentials::Fetched(tokens) => tokens.token(until, refused).await,
        }
    }

    /// Whether there could be another one.
    pub(super) fn can_change(&self) -> bool {
        matches!(self, Credentials::Fetched(_))
    }

    /// The end of the sentence that says that it was refused.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Credentials::Fixed { hint, .. } => hint,
            Credentials::Fetched(_) => {
                ", also with a new token: look at scope and audience, and at what the receiver lets this client do"
            }
        }
    }
}

/// Tokens of an OAuth 2 server. One request for one at a time, whoever waits.
pub(super) struct Tokens {
    client: Client,
    oauth: OAuth2,
    secret: SecretString,
    /// Without the token's own.
    secrets: Secrets,
    lent: Lent<Token, Unavailable>,
    /// The server takes id and secret in the body, not as `Basic`. Written by who fetches a token.
    in_body: AtomicBool,
}

impl Tokens {
    async fn token(&self, until: Instant, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, Unavailable> {
        let late = || Unavailable::new("no token from token_url: it did not answer in time");
        self.lent.get(refused, until, late, self.fetch(until)).await
    }

    /// Servers differ in where they look for id and secret (RFC 6749, 2.3.1): what one refuses is tried the other way.
    async fn fetch(&self, until: Instant) -> Result<Token, Unavailable> {
        let in_body = self.in_body.load(Ordering::Relaxed);
        let first = self.ask(in_body, until).await;
        match first {
            Err(Refused {
                unavailable,
                may_be_the_way: true,
            }) => match self.ask(!in_body, until).await {
                Ok(token) => {
                    self.in_body.store(!in_body, Ordering::Relaxed);
                    Ok(token)
                }
                Err(_) => Err(unavailable),
            },
            Err(Refused { unavailable, .. }) => Err(unavailable),
            Ok(token) => Ok(token),
        }
    }

    fn request(&self, in_body: bool) -> Request {
        let (id, secret) = (&self.oauth.client_id, self.secret.expose_secret());
        let mut pairs = vec![("grant_type", "client_credentials")];
        pairs.extend(self.oauth.scope.iter().map(|scope| ("scope", scope.as_str())));
        pairs.extend(
            self.oauth
                .audience
                .iter()
                .map(|audience| ("audience", audience.as_str())),
        );
        let mut headers = HeaderMap::new();
        if in_body {
            pairs.extend([("client_id", id.as_str()), ("client_secret", secret)]);
        } else {
            headers.insert(reqwest::header::AUTHORIZATION, basic(&encoded(id), &encoded(secret)));
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        Request {
            method: Method::POST,
            url: self.oauth.token_url.clone(),
            headers,
            body: Bytes::from(pairs.join("&")),
        }
    }

    async fn ask(&self, in_body: bool, until: Instant) -> Result<Token, Refused> {
        let why =
            |text: String| Unavailable::new(format!("no token from token_url: {}", self.secrets.hidden_in(&text)));
        let asked = Instant::now();
        let reply = self.client.exchange_by(&self.request(in_body), until).await;
        let reply = reply.map_err(|failure| Refused::from(why(failure.reason)))?;
        let said: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if !reply.status.is_success() {
            return Err(refused(reply.status, &said, reply.after(), &why));
        }
        if let Some(lacks) = reply.lacks() {
            return Err(Refused::from(why(lacks.to_owned())));
        }
        let token = said["access_token"].as_str().filter(|token| !token.trim().is_empty());
        let Some((token, header)) = token.and_then(|token| Some((token, bearer(token)?))) else {
            return Err(Refused::from(why(
                "it answered without an access_token: is it the right URL?".into(),
            )));
        };
        let mut secrets = self.secrets.clone();
        secrets.add(token);
        let life = life(&said["expires_in"]);
        let at = |life: Duration| asked.checked_add(life);
        Ok(Token {
            header: Some(header),
            secrets: Arc::new(secrets),
            term: Term {
                fresh: life.and_then(|life| at(life.saturating_sub(AHEAD.min(life / 5)))),
                good: life.and_then(at),
            },
        })
    }
}

/// Why there is no token.
struct Refused {
    unavailable: Unavailable,
    /// Perhaps it was only the way in which id and secret were said.
    may_be_the_way: bool,
}

impl From<Unavailable> for Refused {
    fn from(unavailable: Unavailable) -> Refused {
        Refused {
            unavailable,
            may_be_the_way: false,
        }
    }
}

fn refused(
    status: StatusCode,
    said: &serde_json::Value,
    after: Option<Duration>,
    why: &dyn Fn(String) -> Unavailable,
) -> Refused {
    // RFC 6749, 5.2: a word. What else stands there may be anything.
    let is_word = |word: &&str| word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let code = said["error"].as_str().filter(is_word);
    let code_said = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let advice = match code {
        Some("invalid_scope") => ": look at scope",
        Some("invalid_target" | "access_denied") => ": look at audience and scope",
        Some("unauthorized_client" | "unsupported_grant_type") => ": the client may not use client credentials there",
        _ if status == StatusCode::NOT_FOUND || status.is_redirection() => ": look at token_url",
        _ if status.is_client_error() => ": look at client_id and client_secret",
        _ => "",
    };
    let unavailable = Unavailable {
        after,
        ..why(format!("it answered {status}{code_said}{advice}"))
    };
    Refused {
        unavailable,
        may_be_the_way: matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED)
            && matches!(code, None | Some("invalid_client" | "invalid_request")),
    }
}

/// How long a token lives: a number of seconds, which some write as text, and others as 0 where they do not say it. What it does not say
/// is found out by a 401.
fn life(expires_in: &serde_json::Value) -> Option<Duration> {
    let seconds = expires_in
        .as_f64()
        .or_else(|| expires_in.as_str()?.trim().parse().ok())?;
    let life = Duration::try_from_secs_f64(seconds).ok();
    life.filter(|life| !life.is_zero())
}
