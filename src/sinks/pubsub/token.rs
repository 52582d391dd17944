//! Tokens: what a service account's assertion is exchanged for, kept while they are good.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::time::Instant;

use super::account::{Account, Granted};
use crate::net::client::{Client, Request};
use crate::net::reply::Reply;
use crate::plain;
use crate::sinks::Unavailable;
use crate::sinks::common::lent::{Lends, Lent, Standing, Term};
use crate::sinks::common::secrets::Secrets;

/// While a token is still good and the next can't be had, it is not asked for more often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A token, and what is hidden of it.
pub(super) struct Token {
    /// `None`: nobody asks who this is.
    value: Option<HeaderValue>,
    pub secrets: Secrets,
    term: Term,
}

impl Token {
    /// What a request has as `authorization`.
    pub fn header(&self) -> Option<&HeaderValue> {
        self.value.as_ref()
    }
}

impl Lends for Token {
    fn standing(&self) -> Standing {
        self.term.standing()
    }
}

/// Tokens of one account.
pub(super) struct Tokens {
    client: Client,
    /// `None`: an emulator, which asks nobody who he is.
    account: Option<Account>,
    lent: Lent<Token, Unavailable>,
    timeout: Duration,
    /// What is hidden whatever the token.
    secrets: Secrets,
    none: Arc<Token>,
}

impl Tokens {
    pub fn new(client: Client, account: Option<Account>, secrets: Secrets, timeout: Duration) -> Tokens {
        Tokens {
            client,
            account,
            lent: Lent::new(ASK_AGAIN_AFTER),
            timeout,
            none: Arc::new(Token {
                value: None,
                secrets: secrets.clone(),
                term: Term::default(),
            }),
            secrets,
        }
    }

    /// Whether anybody asks who this is.
    pub fn are_wanted(&self) -> bool {
        self.account.is_some()
    }

    /// The token of now, or a new one; `refused`: another one than this. One is fetched at a time, whoever waits.
    pub async fn token(&self, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, Unavailable> {
        let Some(account) = &self.account else {
            return Ok(self.none.clone());
        };
        let late = || Unavailable::new("no token came in time");
        let until = Instant::now() + self.timeout;
        self.lent.get(refused, until, late, self.fetch(account)).await
    }

    async fn fetch(&self, account: &Account) -> Result<Token, Unavailable> {
        let asked = Instant::now();
        let assertion = account.assertion(Timestamp::now()).map_err(Unavailable::new)?;
        let mut secrets = self.secrets.clone();
        secrets.add(&assertion);
        // Of base64url and dots there is nothing to encode.
        let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let request = Request {
            method: Method::POST,
            url: account.token_url.clone(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
            body: form.into(),
        };
        let reply = self.client.exchange(&request).await;
        let reply = reply.map_err(|failure| no_token(&secrets.hidden_in(&failure.reason)))?;
        if !reply.status.is_success() {
            return Err(refused(&reply, &secrets));
        }
        if let Some(lacks) = reply.lacks() {
            return Err(no_token(&secrets.hidden_in(lacks)));
        }
        let Some(granted) = serde_json::from_slice::<Granted>(&reply.body).ok() else {
            return Err(refused(&reply, &secrets));
        };
        let mut value = HeaderValue::try_from(format!("Bearer {}", granted.access_token))
            .map_err(|_| no_token("it has characters that can't be sent"))?;
        value.set_sensitive(true);
        secrets.add(&granted.access_token);
        let until = asked.checked_add(granted.used_for());
        Ok(Token {
            term: Term {
                fresh: until,
                good: until.and_then(|until| until.checked_add(granted.good_beyond())),
            },
            value: Some(value),
            secrets,
        })
    }
}

fn no_token(why: &str) -> Unavailable {
    Unavailable::new(format!("no token from Google: {why}"))
}

/// Why there is no token.
fn refused(reply: &Reply, secrets: &Secrets) -> Unavailable {
    let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    let said = [text("error"), text("error_description")].join(" ");
    let said: String = plain::line(secrets.hidden_in(said.trim()).trim())
        .chars()
        .take(200)
        .collect();
    let said = if said.is_empty() {
        said
    } else {
        format!(", it said \"{said}\"")
    };
    let what_to_do = if reply.status.is_client_error() && reply.status.as_u16() != 429 {
        ": is the key in credentials still one of the account's, and is this machine's clock right?"
    } else {
        ""
    };
    Unavailable {
        after: reply.after(),
        ..Unavailable::new(format!(
            "Google answered {} to the service account{said}{what_to_do}",
            reply.status
        ))
    }
}
