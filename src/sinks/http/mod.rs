//! `http`: sends the delivery body, byte for byte as Close sent it, or what a template or transform made of it, to a URL.
//!
//! Signed as Standard Webhooks where a `secret` is set. Redirects are not followed, the environment's proxy variables are
//! ignored, and private addresses are refused unless allowed: on the address that was resolved, so a name that changes its
//! mind between check and connection gains nothing; and of a URL that a template makes, whatever it is. A receiver that sends without
//! end holds up nobody ([`crate::net::client`]).
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it, and its keys |
//! | `options` | what the keys mean, and the head of a request as they make it |
//! | `auth` | who this side says it is |
//! | `request` | configured headers, and the signature |
//! | `message` | what a request says of its event beside the event |
//! | `gather` | several events in one request |
//! | `recall` | what is remembered of one batch for the next |
//! | `answer` | what an answer means, and what of it is kept |

mod answer;
mod auth;
pub(super) mod definition;
mod gather;
mod message;
mod options;
mod recall;
mod request;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use secrecy::ExposeSecret;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use self::answer::{Answer, Verdict};
use self::auth::{Credentials, Token};
use self::message::set;
use self::options::{Head, Options};
use self::recall::Recall;
use self::request::{sign, signing_key};
use super::common::secrets::Secrets;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Preview, Sink, SinkKind, Unavailable,
};
use crate::config::{Secret, SinkOptions, Table};
use crate::event::Delivery;
use crate::json;
use crate::net::client::{About, Client, Failure, Request};
use crate::render::{Payload, Template};

/// Requests at a time: with one event each, and with many.
const CONCURRENCY: usize = 16;
const CONCURRENCY_OF_BATCHES: usize = 4;

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    Some(Arc::new(Options::parse(table)?))
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn client(&self, timeout: Duration) -> Result<Http, String> {
        let secret = self.secret.as_ref().map(Secret::resolve).transpose()?;
        let signing_key = secret
            .as_ref()
            .map(|secret| signing_key(secret.expose_secret()))
            .transpose()?;
        let client = Client::new(&self.way, timeout)?;
        let secrets = self.secrets(secret.as_ref().map(ExposeSecret::expose_secret));
        Ok(Http {
            credentials: self.auth.resolve(&client, secrets)?,
            client,
            head: self.constant_head(),
            signing_key,
            options: self.clone(),
            timeout,
            answers: None,
            is_strict: false,
            recall: Mutex::default(),
        })
    }

    /// The same that an opened one would hide.
    fn present_secrets(&self) -> Secrets {
        let signing = self.secret.as_ref().and_then(|secret| secret.resolve().ok());
        self.secrets(signing.as_ref().map(ExposeSecret::expose_secret))
    }

    /// What is sent and must not be kept of an answer that repeats it. Of templates: what they say themselves.
    fn secrets(&self, signing: Option<&str>) -> Secrets {
        let mut secrets = Secrets::default();
        if let Ok(url) = Url::parse(&options::literal(self.url.source())) {
            secrets.add_url(&url);
        }
        if let Some(proxy) = &self.way.proxy {
            secrets.add_proxy(proxy);
        }
        for header in &self.headers {
            secrets.add_header(header.name.as_str(), &options::literal(header.template.source()));
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
        let one = Limits {
            events: 1,
            bytes: usize::MAX,
            wait: Duration::ZERO,
        };
        Drive {
            batch: self.gather.map_or(one, |gather| gather.limits),
            concurrency: if self.gather.is_some() {
                CONCURRENCY_OF_BATCHES
            } else {
                CONCURRENCY
            },
            commit: Commit::Acknowledge,
        }
    }

    fn splits(&self) -> bool {
        true
    }

    fn fault(&self) -> Option<String> {
        self.client(Duration::from_secs(1)).err()
    }

    fn warning(&self) -> Option<String> {
        let secret = self.secret.as_ref()?.resolve().ok()?;
        request::warning(secret.expose_secret()).map(str::to_owned)
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        delivery
            .payload()
            .map_or_else(|| delivery.event.body.clone(), |payload| payload.bytes().clone())
    }

    /// All but who sends it, and when.
    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let head = self.head(delivery)?;
        let request = match self.gather {
            Some(gather) => unsigned(head, gather::alone(delivery, gather.format)?),
            None => self.request(head, delivery),
        };
        let secrets = self.present_secrets();
        let shown = |text: &[u8]| secrets.hidden_in(&String::from_utf8_lossy(text));
        let headers = request.headers.iter();
        let target = shown(request.url.as_str().as_bytes());
        Ok(Preview {
            subject: Some(format!("{} {target}", request.method)),
            ..Preview::new(
                headers.map(|(name, value)| (name.as_str(), shown(value.as_bytes()))),
                request.body,
            )
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        Options::templates(self)
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
        http.is_strict = context.is_strict;
        let sink: Box<dyn Sink> = Box::new(http);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        // Nothing is delivered: any answer shows that the receiver is there.
        let http = self.client(context.timeout).map_err(Unavailable::new)?;
        let token = http.credentials.token(Instant::now() + context.timeout, None).await?;
        let Some(head) = &http.head else {
            return Ok("where it sends to depends on the event: nobody was contacted".into());
        };
        let request = Request {
            method: Method::HEAD,
            url: head.url.clone(),
            headers: with_token(head.headers.clone(), &token),
            body: Bytes::new(),
        };
        match http.client.send(&request).await {
            Ok(answer) => Ok(format!("the receiver answers ({} to HEAD)", answer.status())),
            Err(failure) => Err(Unavailable::new(token.secrets.hidden_in(&failure.reason))),
        }
    }
}

fn with_token(mut headers: HeaderMap, token: &Token) -> HeaderMap {
    if let Some(value) = token.header() {
        headers.insert(AUTHORIZATION, value.clone());
    }
    headers
}

struct Http {
    client: Client,
    /// `None`: it depends on the event.
    head: Option<Head>,
    signing_key: Option<Vec<u8>>,
    credentials: Credentials,
    options: Options,
    timeout: Duration,
    answers: Option<UnboundedSender<String>>,
    /// Every event waits for the one before.
    is_strict: bool,
    recall: Mutex<Recall>,
}

impl Options {
    /// The request for one event, as yet unsigned.
    fn request(&self, head: Head, delivery: &Delivery) -> Request {
        let mut request = unsigned(head, Said::of(delivery));
        message::describe(&mut request.headers, delivery);
        // Close has signed its own bytes, not what was made of them.
        if self.forward_signature
            && delivery.payload().is_none()
            && let Some(signature) = &delivery.event.signature
        {
            set(&mut request.headers, "close-sig-timestamp", &signature.timestamp);
            set(&mut request.headers, "close-sig-hash", &signature.hash);
        }
        request
    }
}

/// What a request carries, and what it is known by.
struct Said {
    /// In visible ASCII, without dots (decision 24).
    webhook_id: String,
    /// In visible ASCII.
    key: String,
    body: Bytes,
    /// Unless the configuration says it.
    content_type: &'static str,
}

impl Said {
    fn of(delivery: &Delivery) -> Said {
        let key = message::legal(message::key(&delivery.event));
        let (body, content_type) = match delivery.payload() {
            None => (&delivery.event.body, "application/json"),
            Some(Payload::Json(json)) => (json, "application/json"),
            Some(Payload::Text(text)) if json::validate(text).is_ok() => (text, "application/json"),
            Some(Payload::Text(text)) => (text, "text/plain; charset=utf-8"),
        };
        Said {
            webhook_id: key.replace('.', "_"),
            key,
            body: body.clone(),
            content_type,
        }
    }
}

/// The request, as yet unsigned.
fn unsigned(head: Head, said: Said) -> Request {
    let Head {
        method,
        url,
        mut headers,
    } = head;
    headers
        .entry(CONTENT_TYPE)
        .or_insert(HeaderValue::from_static(said.content_type));
    set(&mut headers, "webhook-id", &said.webhook_id);
    set(&mut headers, "idempotency-key", &said.key);
    Request {
        method,
        url,
        headers,
        body: said.body,
    }
}

impl Http {
    fn head(&self, delivery: &Delivery) -> Result<Head, String> {
        let adds_headers = delivery.rendered.as_ref().is_some_and(|made| !made.headers.is_empty());
        match &self.head {
            Some(head) if !adds_headers => Ok(head.clone()),
            _ => self.options.head(delivery),
        }
    }

    /// Says when it is sent, and signs it.
    fn sign(&self, request: &mut Request) {
        let timestamp = Timestamp::now().as_second().to_string();
        set(&mut request.headers, "webhook-timestamp", &timestamp);
        if let Some(key) = &self.signing_key {
            let id = request.headers.get("webhook-id").and_then(|id| id.to_str().ok());
            let signature = sign(key, id.unwrap_or_default(), &timestamp, &request.body);
            set(&mut request.headers, "webhook-signature", &signature);
        }
    }

    async fn send(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        let head = match self.head(delivery) {
            Ok(head) => head,
            Err(reason) => return Ok(reason.into()),
        };
        let mut request = self.options.request(head, delivery);
        self.sign(&mut request);
        self.ask(request).await.outcome()
    }

    /// Sends a request, once more with another token where that may be what was wrong; all within one time limit.
    async fn ask(&self, request: Request) -> Verdict {
        let until = Instant::now() + self.timeout;
        if !self.options.has_one_origin
            && let Some(refusal) = self.client.leads_within(&request.url, until).await
        {
            return Verdict::Later(refusal.into(), None);
        }
        let headers = request.headers.clone();
        let mut request = request;
        let mut refused: Option<Arc<Token>> = None;
        loop {
            let token = match self.credentials.token(until, refused.as_ref()).await {
                Ok(token) => token,
                Err(unavailable) => return Verdict::Unavailable(unavailable),
            };
            request.headers = with_token(headers.clone(), &token);
            let answer = match self.client.send_by(&request, until).await {
                Ok(answer) => answer,
                Err(failure) => return self.unanswered(&failure, &token.secrets),
            };
            if let Some(answers) = &self.answers {
                // Whoever watched may have gone.
                let _ = answers.send(answer.status().to_string());
            }
            let status = answer.status();
            let answer = Answer::read(answer, &token.secrets).await;
            if status == StatusCode::UNAUTHORIZED && refused.is_none() && self.credentials.can_change() {
                refused = Some(token);
                continue;
            }
            let verdict = answer.verdict(&token.secrets, self.credentials.hint(), &request.body);
            return if self.options.has_one_origin {
                verdict
            } else {
                verdict.of_a_stranger()
            };
        }
    }

    /// An error of HTTP/2 holds what the receiver says of it.
    fn unanswered(&self, failure: &Failure, secrets: &Secrets) -> Verdict {
        let reason = secrets.hidden_in(&failure.reason);
        // Where the event says whose server it is, the way there is about the event.
        match failure.about {
            About::Way if self.options.has_one_origin => Verdict::Unavailable(Unavailable::new(reason)),
            About::Request => Verdict::Refused(reason.into()),
            About::Way | About::Answer => Verdict::Later(reason.into(), None),
        }
    }
}

#[async_trait]
impl Sink for Http {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        if let Some(gather) = &self.options.gather {
            return self.deliver_gathered(batch.deliveries(), gather.format).await;
        }
        let mut outcomes = Vec::with_capacity(batch.deliveries().len());
        for delivery in batch.deliveries() {
            outcomes.push(self.send(delivery).await?);
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
