//! `slack`: a message for each event, over an incoming webhook or as an app (`chat.postMessage`).
//!
//! Without a template the message is a sentence that says what has happened, with a link to the lead. What comes from the event is
//! escaped: it pings nobody and makes no link, but for those that Slack itself makes of bare addresses, without a preview. At least once: Slack knows no key by which it could tell a repeat; each message carries
//! it in its metadata (app) and in the head of the request.
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it and its keys |
//! | `answer` | what an answer means |

mod answer;
pub(super) mod definition;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::Sha256;
use tokio::sync::mpsc::UnboundedSender;

use self::answer::{Said, Sent};
use super::common::secrets::Secrets;
use super::common::{identity, message, sentence};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Preview, Reason, Sink, SinkKind,
    Unavailable,
};
use crate::config::{Secret, SinkOptions, Table};
use crate::event::Delivery;
use crate::net::client::{Client, Request};
use crate::net::http::Way;
use crate::net::reply::Reply;
use crate::plain;
use crate::render::{Escape, Payload, Template};

/// What Slack takes for a channel, about.
const MESSAGES_A_SECOND: f64 = 1.0;

/// Slack's API.
const API_URL: &str = "https://slack.com/api/";

/// What a body is.
const JSON: &str = "application/json; charset=utf-8";

/// A message's own words that a transform may set.
const PAYLOAD_KEYS: [&str; 3] = ["text", "blocks", "attachments"];

#[derive(Debug)]
struct Options {
    to: To,
    text: Option<Template>,
    blocks: Option<Template>,
    way: Way,
    fingerprint: Fingerprint,
}

/// Where messages go.
#[derive(Debug)]
enum To {
    Webhook(Secret),
    Channel {
        token: Secret,
        channel: Template,
        api_url: Url,
    },
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let webhook_url = table.secret("webhook_url");
    let token = table.secret("token");
    let channel = table.template("channel", Escape::None);
    let api_url: String = table.or("api_url", API_URL.to_owned());
    let text = table.template("text", Escape::Slack);
    let blocks = table.template("blocks", Escape::Slack);
    let way = Way {
        allow_private: table.or("allow_private", false),
        proxy: table.optional("proxy"),
        ca: table.optional("ca"),
        identity: identity::read(table),
    };
    let digest = <Sha256 as sha2::Digest>::digest(format!(
        "{:?}\n{:?}\n{channel:?}\n{api_url}\n{text:?}\n{blocks:?}\n{way:?}\n{:?}",
        webhook_url.as_ref().map(Secret::fingerprint),
        token.as_ref().map(Secret::fingerprint),
        way.files(),
    ));
    let to = to(table, webhook_url, token, channel, &api_url)?;
    if let To::Channel { api_url, .. } = &to
        && let Some(fault) = way.fault(api_url)
    {
        table.fault("api_url", fault);
    }
    Some(Arc::new(Options {
        to,
        text,
        blocks,
        way,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

/// Where messages go, from the keys that say so.
fn to(
    table: &mut Table<'_>,
    webhook_url: Option<Secret>,
    token: Option<Secret>,
    channel: Option<Template>,
    api_url: &str,
) -> Option<To> {
    match (webhook_url, token, channel) {
        (Some(_), Some(_), _) => {
            table.fault("token", "is given beside webhook_url: keep one of them");
            None
        }
        (Some(_), None, Some(_)) => {
            table.fault(
                "channel",
                "goes with token: a webhook has a channel of its own, leave it out",
            );
            None
        }
        (Some(url), None, None) => Some(To::Webhook(url)),
        (None, Some(token), Some(channel)) => {
            if channel.source().trim().is_empty() {
                table.fault(
                    "channel",
                    "can't be empty: it is a channel's id or name, like \"C0123456789\" or \"#sales\"",
                );
            }
            match Url::parse(&format!("{}/", api_url.trim_end_matches('/'))) {
                Ok(api_url) if matches!(api_url.scheme(), "http" | "https") => Some(To::Channel {
                    token,
                    channel,
                    api_url,
                }),
                _ => {
                    table.fault("api_url", "must be a URL like \"https://slack.com/api/\"");
                    None
                }
            }
        }
        (None, Some(_), None) => {
            table.fault("channel", "is missing: set it, for example channel = \"#sales\"");
            None
        }
        (None, None, _) => {
            table.fault(
                "webhook_url",
                "is missing: set it, for example webhook_url_file = \"/etc/closehook/slack-webhook\", or token and channel",
            );
            None
        }
    }
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn client(&self, timeout: Duration) -> Result<Slack, String> {
        let mut secrets = Secrets::default();
        if let Some(proxy) = &self.way.proxy {
            secrets.add_proxy(proxy);
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        let (url, marks) = match &self.to {
            To::Webhook(secret) => {
                let secret = secret.resolve()?;
                let url = webhook_url(secret.expose_secret())?;
                if let Some(fault) = self.way.fault(&url) {
                    return Err(format!("webhook_url: {fault}"));
                }
                secrets.add_url(&url);
                (url, false)
            }
            To::Channel { token, api_url, .. } => {
                let token = token.resolve()?;
                let token = token.expose_secret().trim();
                secrets.add(token);
                secrets.add_url(api_url);
                let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| "token has characters that no token has")?;
                bearer.set_sensitive(true);
                headers.insert(reqwest::header::AUTHORIZATION, bearer);
                (api_url.clone(), is_app(token))
            }
        };
        Ok(Slack {
            client: Client::new(&self.way, timeout)?,
            url,
            headers,
            form: self.form(marks),
            secrets,
            answers: None,
        })
    }

    fn channel(&self) -> Option<&Template> {
        match &self.to {
            To::Webhook(_) => None,
            To::Channel { channel, .. } => Some(channel),
        }
    }

    fn form(&self, marks: bool) -> Form {
        Form {
            channel: self.channel().cloned(),
            marks,
            text: self.text.clone(),
            blocks: self.blocks.clone(),
        }
    }
}

/// Only apps may mark messages.
fn is_app(token: &str) -> bool {
    token.trim().starts_with("xoxb-")
}

/// What a request says of its event in its head.
fn said_of(delivery: &Delivery) -> impl Iterator<Item = (&'static str, String)> {
    let key = ("idempotency-key", message::key(&delivery.event));
    let all = message::attributes(delivery).into_iter().chain([key]);
    all.map(|(name, value)| (name, message::legal(value)))
}

/// The URL of a webhook. An error holds nothing of it.
fn webhook_url(text: &str) -> Result<Url, String> {
    match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("webhook_url must be a URL like \"https://hooks.slack.com/services/T.../B.../...\"".into()),
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
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn escape(&self) -> Escape {
        Escape::Slack
    }

    fn rate(&self) -> Option<f64> {
        Some(MESSAGES_A_SECOND)
    }

    fn fault(&self) -> Option<String> {
        self.client(Duration::from_secs(1)).err()
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.client(Duration::from_secs(1)).ok()?.secrets;
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    /// Without the metadata, which is the event's own each time.
    fn payload(&self, delivery: &Delivery) -> Bytes {
        let body = self.form(false).body(delivery).unwrap_or_default();
        Value::Object(body).to_string().into()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let marks = match &self.to {
            To::Webhook(_) => false,
            To::Channel { token, .. } => token.resolve().is_ok_and(|token| is_app(token.expose_secret())),
        };
        let body = self.form(marks).body(delivery)?;
        let headers = std::iter::once(("content-type", JSON.to_owned())).chain(said_of(delivery));
        Ok(Preview::new(headers, Value::Object(body).to_string().into()))
    }

    fn templates(&self) -> Vec<(String, Template)> {
        let named = [
            ("text", self.text.as_ref()),
            ("blocks", self.blocks.as_ref()),
            ("channel", self.channel()),
        ];
        named
            .into_iter()
            .filter_map(|(name, template)| Some((name.to_owned(), template?.clone())))
            .collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let mut slack = self.client(context.timeout).map_err(Unavailable::new)?;
        slack.answers = context.answers;
        let sink: Box<dyn Sink> = Box::new(slack);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        self.client(context.timeout).map_err(Unavailable::new)?.probe().await
    }
}

struct Slack {
    client: Client,
    /// The webhook's, or the API's.
    url: Url,
    /// What every request has.
    headers: HeaderMap,
    form: Form,
    secrets: Secrets,
    answers: Option<UnboundedSender<String>>,
}

/// What makes messages.
struct Form {
    /// `None` for a webhook.
    channel: Option<Template>,
    /// Whether messages carry metadata.
    marks: bool,
    text: Option<Template>,
    blocks: Option<Template>,
}

/// What is said of an event.
fn message_of(
    text: Option<&Template>,
    blocks: Option<&Template>,
    delivery: &Delivery,
) -> Result<Map<String, Value>, Reason> {
    let mut message = Map::new();
    match (delivery.payload(), text, blocks) {
        // A rule's own words win over the sink's.
        (Some(payload), _, _) => with_payload(&mut message, payload),
        (None, text, blocks) => {
            let said = text.map_or_else(|| default_text(delivery), |text| delivery.text("text", text).to_owned());
            message.insert("text".into(), said.into());
            if let Some(blocks) = blocks {
                message.insert("blocks".into(), parsed_blocks(delivery.text("blocks", blocks))?);
            }
        }
    }
    // A link in a text is no reason to fetch what is there.
    message.insert("unfurl_links".into(), false.into());
    message.insert("unfurl_media".into(), false.into());
    Ok(message)
}

/// What a template or a transform made: the text, or an object with the parts of a message. An object without these is a text of the
/// event's, and no markup.
fn with_payload(message: &mut Map<String, Value>, payload: &Payload) {
    let bytes = payload.bytes();
    if let Payload::Json(bytes) = payload
        && let Ok(Value::Object(object)) = serde_json::from_slice(bytes)
        && PAYLOAD_KEYS.iter().any(|key| object.contains_key(*key))
    {
        message.extend(
            object
                .into_iter()
                .filter(|(key, _)| PAYLOAD_KEYS.contains(&key.as_str())),
        );
        return;
    }
    let text = String::from_utf8_lossy(bytes);
    let text = match payload {
        Payload::Text(_) => text.into_owned(),
        Payload::Json(_) => escaped(&text),
    };
    message.insert("text".into(), text.into());
}

/// A list of blocks, or the object that Slack's Block Kit Builder gives.
fn parsed_blocks(text: &str) -> Result<Value, Reason> {
    match serde_json::from_slice(text.as_bytes()) {
        Ok(Value::Array(blocks)) => Ok(Value::Array(blocks)),
        Ok(Value::Object(mut object)) if object.get("blocks").is_some_and(Value::is_array) => {
            Ok(object.remove("blocks").unwrap_or_default())
        }
        Ok(_) => Err("blocks is no list of blocks for this event".into()),
        Err(error) => Err(format!(
            "blocks is not JSON for this event, line {} column {}: fill in values with the filter tojson",
            error.line(),
            error.column()
        )
        .into()),
    }
}

/// The sentence, a link to the lead, and why another sink gave it up.
fn default_text(delivery: &Delivery) -> String {
    let said = escaped(&sentence::of(&delivery.event));
    let said = match sentence::lead_link(&delivery.event) {
        Some(link) => format!("{said} (<{link}|open in Close>)"),
        None => said,
    };
    match sentence::given_up(delivery) {
        Some(why) => format!("{said}\n{}", escaped(&why)),
        None => said,
    }
}

/// As Slack wants text that is not markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Form {
    /// The whole body, or why there is none.
    fn body(&self, delivery: &Delivery) -> Result<Map<String, Value>, Reason> {
        let mut body = message_of(self.text.as_ref(), self.blocks.as_ref(), delivery)?;
        let is_empty = |key: &str| {
            body.get(key)
                .is_none_or(|part| part.as_str().is_some_and(|text| text.trim().is_empty()))
        };
        if PAYLOAD_KEYS.iter().all(|key| is_empty(key)) {
            return Err("the message is empty for this event: there is no text".into());
        }
        if let Some(channel) = &self.channel {
            let channel = delivery.text("channel", channel).trim();
            if channel.is_empty() {
                return Err("channel is empty for this event".into());
            }
            body.insert("channel".into(), channel.into());
        }
        if self.marks {
            let attributes = message::attributes(delivery).into_iter();
            let marks: Map<String, Value> = attributes
                .map(|(name, value)| {
                    (
                        name.trim_start_matches("closehook-").replace('-', "_"),
                        message::legal(value).into(),
                    )
                })
                .collect();
            body.insert(
                "metadata".into(),
                json!({ "event_type": "closehook_event", "event_payload": marks }),
            );
        }
        Ok(body)
    }
}

impl Slack {
    fn sent(&self) -> Sent {
        let channel = self.form.channel.as_ref();
        Sent {
            by_method: channel.is_some(),
            channel_varies: channel.is_some_and(|channel| !channel.is_constant()),
        }
    }

    async fn send(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        let body = match self.form.body(delivery) {
            Ok(body) => Value::Object(body).to_string(),
            Err(reason) => return Ok(reason.into()),
        };
        let mut request = self.post("chat.postMessage", body);
        for (name, value) in said_of(delivery) {
            if let Ok(value) = HeaderValue::try_from(value) {
                request.headers.insert(name, value);
            }
        }
        let reply = self.ask(&request).await?;
        if let Some(answers) = &self.answers {
            // Whoever watched may have gone.
            let _ = answers.send(reply.status.to_string());
        }
        answer::outcome(&reply, self.sent(), &self.secrets)
    }

    /// A request to a method of the API, or to the webhook.
    fn post(&self, method: &str, body: impl Into<Bytes>) -> Request {
        let url = match &self.form.channel {
            None => self.url.clone(),
            Some(_) => self.url.join(method).unwrap_or_else(|_| self.url.clone()),
        };
        Request {
            method: Method::POST,
            url,
            headers: self.headers.clone(),
            body: body.into(),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, Unavailable> {
        let answered = self.client.exchange(request).await;
        answered.map_err(|failure| Unavailable::new(self.secrets.hidden_in(&failure.reason)))
    }

    /// Posts nothing: a webhook refuses a message without a text, and `auth.test` only says who asks.
    async fn probe(&self) -> Result<String, Unavailable> {
        let reply = self.ask(&self.post("auth.test", "{}")).await?;
        let outcome = answer::outcome(&reply, self.sent(), &self.secrets)?;
        if let Outcome::Retry { reason, after } = outcome {
            return Err(Unavailable {
                after,
                ..Unavailable::new(reason.text)
            });
        }
        let is_webhook = self.form.channel.is_none();
        if let Outcome::Reject { reason } = outcome {
            return if is_webhook {
                Ok("the webhook is there".into())
            } else {
                Err(Unavailable::new(reason.text))
            };
        }
        if is_webhook {
            return Ok("the webhook answers".into());
        }
        let said: Option<Said> = serde_json::from_slice(&reply.body).ok();
        let scopes = reply
            .headers
            .get("x-oauth-scopes")
            .and_then(|scopes| scopes.to_str().ok());
        if scopes.is_some_and(|scopes| !scopes.split(',').any(|scope| scope.trim() == "chat:write")) {
            return Err(Unavailable::new(
                "the token lacks the scope chat:write: add it to the app's bot scopes and install the app again",
            ));
        }
        let (user, team) = said.map(|said| (said.user, said.team)).unwrap_or_default();
        let (user, team) = (plain::line(&user), plain::line(&team));
        Ok(format!("Slack knows the token, as {user} in {team}"))
    }
}

#[async_trait]
impl Sink for Slack {
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
