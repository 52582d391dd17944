//! `http`: POSTs the delivery body, byte for byte as Close sent it, to a URL.
//!
//! Signed as Standard Webhooks where a `secret` is set. Redirects are not followed, the environment's proxy variables are
//! ignored, and private addresses are refused unless allowed: on the address that was resolved, so a name that changes its
//! mind between check and connection gains nothing.
//!
//! | file | what it does |
//! |---|---|
//! | `request` | the head of a request, and the signature |
//! | `answer` | what an answer means, and what of it is kept |

mod answer;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret;
use sha2::Sha256;
use tokio::sync::mpsc::UnboundedSender;

use self::answer::Answer;
use self::request::{sign, signing_key};
use super::common::identity;
use super::common::secrets::Secrets;
use super::{Batch, Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Sink, SinkKind, Unavailable};
use crate::config::{Secret, SinkOptions, Table};
use crate::event::Delivery;
use crate::net::http::{Way, is_about_the_way, why_unanswered};

#[derive(Debug, Clone)]
struct Options {
    url: Url,
    secret: Option<Secret>,
    forward_signature: bool,
    headers: HeaderMap,
    way: Way,
    fingerprint: Fingerprint,
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let url: Option<String> = table.required("url", "\"https://example.com/hook\"");
    let secret = table.secret("secret");
    let forward_signature = table.or("forward_signature", false);
    let configured: BTreeMap<String, String> = table.or("headers", BTreeMap::new());
    let way = way(table);
    let headers = request::headers(table, &configured);
    let url = match Url::parse(&url?) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => url,
        _ => {
            table.fault("url", "must be a URL like \"https://example.com/hook\"");
            return None;
        }
    };
    if let Some(fault) = way.fault(&url) {
        table.fault("url", fault);
    }
    let names_a_user = !url.username().is_empty() || url.password().is_some();
    if names_a_user && headers.contains_key("authorization") {
        table.fault("headers", "\"authorization\" is in url too: keep one of them");
    }
    // What is in files counts as it is now: a reload has to see that it is another.
    let digest = <Sha256 as sha2::Digest>::digest(format!(
        "{url}\n{:?}\n{forward_signature}\n{configured:?}\n{way:?}\n{:?}",
        secret.as_ref().map(Secret::fingerprint),
        way.files(),
    ));
    Some(Arc::new(Options {
        url,
        secret,
        forward_signature,
        headers,
        way,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

fn way(table: &mut Table<'_>) -> Way {
    let (cert, key) = (table.optional("cert"), table.optional("key"));
    let identity = identity::of(table, cert, key);
    Way {
        allow_private: table.or("allow_private", false),
        proxy: table.optional("proxy"),
        ca: table.optional("ca"),
        identity,
    }
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn client(&self, timeout: Duration) -> Result<Http, String> {
        let secret = self.secret.as_ref().map(Secret::resolve).transpose()?;
        let signing_key = secret
            .as_ref()
            .map(|secret| signing_key(secret.expose_secret()))
            .transpose()?;
        let client = self.way.builder(timeout)?.default_headers(self.headers.clone()).build();
        Ok(Http {
            client: client.map_err(|error| why_unanswered(&error))?,
            url: self.url.clone(),
            forward_signature: self.forward_signature,
            signing_key,
            secrets: self.secrets(secret.as_ref().map(ExposeSecret::expose_secret)),
            answers: None,
        })
    }

    /// The same that an opened one would hide.
    fn present_secrets(&self) -> Secrets {
        let signing = self.secret.as_ref().and_then(|secret| secret.resolve().ok());
        self.secrets(signing.as_ref().map(ExposeSecret::expose_secret))
    }

    /// What is sent and must not be kept of an answer that repeats it.
    fn secrets(&self, signing: Option<&str>) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add_url(&self.url);
        if let Some(proxy) = &self.way.proxy {
            secrets.add_proxy(proxy);
        }
        for (name, value) in &self.headers {
            secrets.add_header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
        }
        if let Some(signing) = signing {
            secrets.add_signing(signing);
        }
        secrets
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 1,
                bytes: usize::MAX,
                wait: Duration::ZERO,
            },
            concurrency: 16,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.client(Duration::from_secs(1)).err()
    }

    fn warning(&self) -> Option<String> {
        let secret = self.secret.as_ref()?.resolve().ok()?;
        request::warning(secret.expose_secret()).map(str::to_owned)
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        delivery.event.body.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.present_secrets();
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let mut http = self.client(context.timeout).map_err(Unavailable::new)?;
        http.answers = context.answers;
        let sink: Box<dyn Sink> = Box::new(http);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        // Nothing is delivered: any answer shows that the receiver is there.
        let http = self.client(context.timeout).map_err(Unavailable::new)?;
        match http.client.head(self.url.clone()).send().await {
            Ok(response) => Ok(format!("the receiver answers ({} to HEAD)", response.status())),
            Err(error) => Err(Unavailable::new(http.why_unanswered(&error))),
        }
    }
}

struct Http {
    client: reqwest::Client,
    url: Url,
    forward_signature: bool,
    signing_key: Option<Vec<u8>>,
    secrets: Secrets,
    answers: Option<UnboundedSender<String>>,
}

impl Http {
    fn request(&self, delivery: &Delivery, now: Timestamp) -> reqwest::RequestBuilder {
        let event = &delivery.event;
        let key = request::key(event);
        let id = key.replace('.', "_");
        let timestamp = now.as_second().to_string();
        let mut request = self
            .client
            .post(self.url.clone())
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("idempotency-key", key)
            .header("closehook-seq", event.seq.0)
            .header("closehook-attempt", delivery.attempt);
        if let Some(signing_key) = &self.signing_key {
            request = request.header("webhook-signature", sign(signing_key, &id, &timestamp, &event.body));
        }
        if self.forward_signature
            && let Some(signature) = &event.signature
        {
            request = request
                .header("close-sig-timestamp", &signature.timestamp)
                .header("close-sig-hash", &signature.hash);
        }
        request.body(event.body.clone())
    }

    /// An error of HTTP/2 holds what the receiver says of it.
    fn why_unanswered(&self, error: &reqwest::Error) -> String {
        self.secrets.hidden_in(&why_unanswered(error))
    }

    async fn send(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        match self.request(delivery, Timestamp::now()).send().await {
            Ok(response) => {
                if let Some(answers) = &self.answers {
                    // Whoever watched may have gone.
                    let _ = answers.send(response.status().to_string());
                }
                Answer::read(response, &self.secrets).await.outcome(&self.secrets)
            }
            // That is not about this event.
            Err(error) if is_about_the_way(&error) => Err(Unavailable::new(self.why_unanswered(&error))),
            Err(error) => Ok(Outcome::Retry {
                reason: self.why_unanswered(&error).into(),
                after: None,
            }),
        }
    }
}

#[async_trait]
impl Sink for Http {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(batch.deliveries().len());
        for delivery in batch.deliveries() {
            outcomes.push(self.send(delivery).await?);
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
