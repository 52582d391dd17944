//! `pubsub`: messages to a topic of Google Cloud Pub/Sub, published together over its REST interface.
//!
//! At least once; the key and what else is known of an event are attributes. The data is the body as Close sent it, or what a template or
//! transform made of it. A message that is refused does not keep the others: the batch is halved until it stands alone.
//!
//! | file | what it does |
//! |---|---|
//! | `account` | the service account, and what it signs |
//! | `token` | what that is exchanged for |
//! | `definition` | what there is to say of it and its keys |
//! | `answer` | what an answer means |

mod account;
mod answer;
pub(super) mod definition;
mod token;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::Sha256;

use self::account::Account;
use self::answer::Published;
use self::token::{Token, Tokens};
use super::common::secrets::Secrets;
use super::common::sift::{Row, Sift};
use super::common::{identity, message};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, Reason, Sink, SinkKind, Unavailable,
};
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::net::client::{Client, Request};
use crate::net::http::Way;
use crate::net::reply::Reply;
use crate::render::{Escape, Template};

const ENDPOINT: &str = "https://pubsub.googleapis.com";

/// Messages in a request, as Pub/Sub takes them.
const MESSAGES_MAX: usize = 1000;

/// Bytes of a request; Pub/Sub takes ten million.
const REQUEST_LEN_MAX: usize = 9_500_000;

/// Bytes of an attribute's name.
const ATTRIBUTE_NAME_LEN_MAX: usize = 256;

/// Bytes of an attribute's value.
const ATTRIBUTE_LEN_MAX: usize = 1024;

/// Attributes of a message.
const ATTRIBUTES_MAX: usize = 100;

/// Characters of a project's or a topic's name.
const NAME_LEN_MAX: usize = 255;

/// What a message needs beside data and attributes, generously.
const MESSAGE_OVERHEAD: usize = 128;

/// Requests at a time where nothing has an order.
const CONCURRENCY: usize = 4;

#[derive(Debug)]
struct Options {
    topic: Template,
    ordering_key: Option<Template>,
    credentials: Option<Secret>,
    endpoint: Url,
    way: Way,
    batch: Limits,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let has_topic = table.has("topic");
    let topic = table.template("topic", Escape::None);
    if !has_topic {
        table.report_missing("topic");
    }
    let ordering_key = table.template("ordering_key", Escape::None);
    let credentials = table.secret("credentials");
    let endpoint: Option<String> = table.optional("endpoint");
    let ca: Option<PathBuf> = table.optional("ca");
    let way = Way {
        // The configuration names the endpoint.
        allow_private: true,
        proxy: table.optional("proxy"),
        ca,
        identity: identity::read(table),
    };
    let batch = table.table("batch", |table| Limits {
        events: table.within("events", 500, 1, MESSAGES_MAX),
        bytes: table.within("bytes", Size(3 << 20), Size(1), Size(5 << 20)).0 as usize,
        wait: table.or("wait", Span(Duration::ZERO)).0,
    });
    let digest = <Sha256 as sha2::Digest>::digest(format!(
        "{topic:?}\n{ordering_key:?}\n{:?}\n{endpoint:?}\n{way:?}\n{batch:?}\n{:?}",
        credentials.as_ref().map(Secret::fingerprint),
        way.files(),
    ));
    if credentials.is_none() && endpoint.is_none() {
        table.fault(
            "credentials",
            "is missing: set it, for example credentials_file = \"/etc/closehook/pubsub.json\" (only an emulator at endpoint needs none)",
        );
    }
    let topic = topic?;
    if topic.is_constant() && full_name(topic.source(), Some("project")).is_none() {
        table.fault(
            "topic",
            "must be a name like \"projects/acme/topics/close\", or \"close\" in the service account's own project",
        );
    }
    let endpoint = match Url::parse(endpoint.as_deref().unwrap_or(ENDPOINT)) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            table.fault(
                "endpoint",
                "must be a URL like \"https://europe-west1-pubsub.googleapis.com\"",
            );
            return None;
        }
    };
    Some(Arc::new(Options {
        topic,
        ordering_key,
        credentials,
        endpoint,
        way,
        batch,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

/// `projects/P/topics/T`, of a name that may be just `T`. `None`: it is none, and nothing that may stand in a path.
fn full_name(text: &str, project: Option<&str>) -> Option<String> {
    let is_name = |text: &str| {
        let mut bytes = text.bytes();
        text.len() <= NAME_LEN_MAX
            && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+%:".contains(&byte))
    };
    let parts: Vec<&str> = text.trim().split('/').collect();
    let (project, topic) = match parts[..] {
        ["projects", project, "topics", topic] => (project, topic),
        [topic] => (project?, topic),
        _ => return None,
    };
    (is_name(project) && is_name(topic)).then(|| format!("projects/{project}/topics/{topic}"))
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn client(&self, timeout: Duration) -> Result<PubSub, String> {
        let account = self.account()?;
        let project = account.as_ref().and_then(|account| account.project.clone());
        if self.topic.is_constant() && full_name(self.topic.source(), project.as_deref()).is_none() {
            return Err(
                "topic has no project, and the service account names none: write projects/PROJECT/topics/TOPIC".into(),
            );
        }
        let client = Client::new(&self.way, timeout)?;
        let mut secrets = Secrets::default();
        secrets.add_url(&self.endpoint);
        if let Some(proxy) = &self.way.proxy {
            secrets.add_proxy(proxy);
        }
        Ok(PubSub {
            tokens: Tokens::new(client.clone(), account, secrets, timeout),
            client,
            form: self.form(project),
            endpoint: self.endpoint.as_str().trim_end_matches('/').to_owned(),
            is_strict: false,
        })
    }

    fn account(&self) -> Result<Option<Account>, String> {
        let account = self.credentials.as_ref().map(|secret| {
            let text = secret.resolve()?;
            Account::parse(text.expose_secret())
        });
        account.transpose()
    }

    fn form(&self, project: Option<String>) -> Form {
        Form {
            topic: self.topic.clone(),
            ordering_key: self.ordering_key.clone(),
            project,
        }
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            concurrency: if self.ordering_key.is_some() { 1 } else { CONCURRENCY },
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.client(Duration::from_secs(1)).err()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        data(delivery).clone()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        // Whoever looks may not be one who may read the key.
        let project = self.account().map_or_else(
            |_| Some("PROJECT".to_owned()),
            |account| account.and_then(|account| account.project),
        );
        let message = self.form(project).message(0, delivery)?;
        let sent: Value = serde_json::from_slice(message.json.as_bytes()).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let attributes = sent["attributes"].as_object().into_iter().flatten();
        let attributes = attributes.filter_map(|(name, value)| Some((name.clone(), text(value)?)));
        Ok(Preview {
            key: text(&sent["orderingKey"]),
            subject: Some(message.topic),
            ..Preview::new(attributes, self.payload(delivery))
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        let ordering_key = self
            .ordering_key
            .iter()
            .map(|template| ("ordering_key".to_owned(), template.clone()));
        std::iter::once(("topic".to_owned(), self.topic.clone()))
            .chain(ordering_key)
            .collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let client = self.client(context.timeout).map_err(Unavailable::new)?;
        let sink: Box<dyn Sink> = Box::new(PubSub {
            is_strict: context.is_strict,
            ..client
        });
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let client = self.client(context.timeout).map_err(Unavailable::new)?;
        client.probe().await
    }
}

fn data(delivery: &Delivery) -> &Bytes {
    delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes())
}

struct PubSub {
    client: Client,
    form: Form,
    endpoint: String,
    tokens: Tokens,
    /// No event goes before one that waits.
    is_strict: bool,
}

/// What makes messages.
struct Form {
    topic: Template,
    ordering_key: Option<Template>,
    project: Option<String>,
}

/// A message on its way, as JSON text.
struct Ready {
    index: usize,
    topic: String,
    /// The event has chosen the topic.
    topic_varies: bool,
    json: String,
}

/// What became of a batch so far.
struct Fared {
    outcomes: Vec<Outcome>,
    row: Row,
}

impl Fared {
    fn taken(&mut self, message: &Ready) {
        self.row.ended();
        self.outcomes[message.index] = Outcome::Delivered;
    }

    fn refused(&mut self, message: &Ready, reason: Reason) {
        self.outcomes[message.index] = if self.row.another() {
            Outcome::Reject { reason }
        } else {
            Outcome::Retry { reason, after: None }
        };
    }
}

/// Whether an attribute may be called so.
fn is_attribute(name: &str) -> bool {
    (1..=ATTRIBUTE_NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with("goog")
        && !name.chars().any(char::is_control)
}

impl Form {
    /// A message, or why there is none.
    fn message(&self, index: usize, delivery: &Delivery) -> Result<Ready, Reason> {
        let rendered = delivery.rendered.as_deref();
        let topic = rendered.and_then(|rendered| rendered.subject.as_deref());
        let topic_varies = topic.is_some() || !self.topic.is_constant();
        let topic = topic.unwrap_or_else(|| delivery.text("topic", &self.topic));
        let topic = full_name(topic, self.project.as_deref()).ok_or("topic is no topic's name for this event")?;
        let mut attributes = Map::new();
        for (name, value) in message::attributes(delivery) {
            let end = value
                .char_indices()
                .map(|(at, c)| at + c.len_utf8())
                .take_while(|end| *end <= ATTRIBUTE_LEN_MAX)
                .last();
            attributes.insert(name.to_owned(), value[..end.unwrap_or_default()].into());
        }
        for (name, value) in message::made(delivery)? {
            if !is_attribute(name) || value.len() > ATTRIBUTE_LEN_MAX {
                let shown: String = crate::plain::line(name).chars().take(ATTRIBUTE_NAME_LEN_MAX).collect();
                return Err(
                    format!("no attribute may be called {shown}, or be longer than {ATTRIBUTE_LEN_MAX} bytes").into(),
                );
            }
            attributes.insert(name.clone(), value.as_str().into());
        }
        if attributes.len() > ATTRIBUTES_MAX {
            let reason = format!(
                "it has {} attributes, and Pub/Sub takes {ATTRIBUTES_MAX}",
                attributes.len()
            );
            return Err(reason.into());
        }
        let mut message = json!({ "data": STANDARD.encode(data(delivery)), "attributes": attributes });
        let key = rendered.and_then(|rendered| rendered.key.as_deref());
        if key.is_some_and(|key| !key.is_empty()) && self.ordering_key.is_none() {
            return Err(
                "its transform sets a key, and several requests at a time would mix the order: set ordering_key in the sink, too".into(),
            );
        }
        let key = key.or_else(|| Some(delivery.text("ordering_key", self.ordering_key.as_ref()?)));
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            message["orderingKey"] = key.into();
        }
        let json = message.to_string();
        if json.len() + MESSAGE_OVERHEAD > REQUEST_LEN_MAX {
            return Err("the message is larger than Pub/Sub takes (10 MB)".into());
        }
        Ok(Ready {
            index,
            topic,
            topic_varies,
            json,
        })
    }
}

impl PubSub {
    /// Publishes each request, or parts of it where some of its messages are refused.
    async fn publish(
        &self,
        ready: &[Ready],
        requests: Vec<Range<usize>>,
        fared: &mut Fared,
    ) -> Result<(), Unavailable> {
        let mut sift = Sift::new(requests);
        while let Some(range) = sift.next() {
            let part = &ready[range.clone()];
            let Some(first) = part.first() else { continue };
            let bodies: Vec<&str> = part.iter().map(|message| message.json.as_str()).collect();
            let body = format!("{{\"messages\":[{}]}}", bodies.join(","));
            let path = format!("{}:publish", first.topic);
            match self.ask(&path, Some(body), first.topic_varies).await?.1 {
                Published::Taken => {
                    for message in part {
                        fared.taken(message);
                    }
                    continue;
                }
                Published::Refused(reason) => match sift.refused(&range) {
                    Some(alone) => fared.refused(&ready[alone], reason),
                    None => continue,
                },
                Published::NoTopic(reason) => {
                    for message in part {
                        fared.refused(message, reason.clone());
                    }
                }
                Published::NotKnown(unavailable) => return Err(unavailable),
            }
            if fared.row.is_over() {
                if self.is_strict {
                    return Ok(());
                }
                // Each of another topic's has its try.
                sift.leave(&range);
            }
        }
        Ok(())
    }

    /// Asks, and once more with a new token where the one at hand is not good any more. POST where there is a body.
    async fn ask(
        &self,
        path: &str,
        body: Option<String>,
        topic_varies: bool,
    ) -> Result<(Reply, Published), Unavailable> {
        let url = Url::parse(&format!("{}/v1/{path}", self.endpoint));
        let mut request = Request {
            method: if body.is_some() { Method::POST } else { Method::GET },
            url: url.map_err(|_| Unavailable::new("the topic has no URL: see topic and endpoint"))?,
            headers: HeaderMap::new(),
            body: body.map(Bytes::from).unwrap_or_default(),
        };
        if !request.body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            request.headers.insert(CONTENT_TYPE, json);
        }
        let mut refused: Option<Arc<Token>> = None;
        loop {
            let token = self.tokens.token(refused.as_ref()).await?;
            if let Some(value) = token.header() {
                request.headers.insert(AUTHORIZATION, value.clone());
            }
            let reply = self.client.exchange(&request).await;
            let reply = reply.map_err(|failure| Unavailable::new(token.secrets.hidden_in(&failure.reason)))?;
            match answer::published(&reply, topic_varies, &token.secrets)? {
                Published::NotKnown(_) if refused.is_none() && self.tokens.are_wanted() => refused = Some(token),
                published => return Ok((reply, published)),
            }
        }
    }

    /// Publishes nothing.
    async fn probe(&self) -> Result<String, Unavailable> {
        let Form { topic, project, .. } = &self.form;
        if !topic.is_constant() {
            self.tokens.token(None).await?;
            return Ok("the service account is known; its topics depend on the event and were not looked at".into());
        }
        let topic = full_name(topic.source(), project.as_deref()).unwrap_or_default();
        let (path, body) = if self.tokens.are_wanted() {
            let asked = json!({ "permissions": ["pubsub.topics.publish"] });
            (format!("{topic}:testIamPermissions"), Some(asked.to_string()))
        } else {
            (topic.clone(), None)
        };
        let (reply, published) = self.ask(&path, body, false).await?;
        match published {
            Published::Taken => {}
            Published::Refused(reason) | Published::NoTopic(reason) => return Err(Unavailable::new(reason.text)),
            Published::NotKnown(unavailable) => return Err(unavailable),
        }
        if let Some(lacks) = reply.lacks() {
            return Err(Unavailable::new(lacks));
        }
        let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let may = said["permissions"].as_array().is_some_and(|list| !list.is_empty());
        if self.tokens.are_wanted() && !may {
            return Err(Unavailable::new(
                "the service account may not publish there: give it the role Pub/Sub Publisher on the topic",
            ));
        }
        Ok(format!("{topic} is there"))
    }
}

/// Which messages go together: those of one topic that follow each other, and as many as fit one request.
fn requests(ready: &[Ready]) -> Vec<Range<usize>> {
    let mut requests = Vec::new();
    let mut start = 0;
    while let Some(first) = ready.get(start) {
        let mut bytes = 0;
        let fits = |message: &&Ready| {
            bytes += message.json.len() + 1;
            message.topic == first.topic && bytes + MESSAGE_OVERHEAD <= REQUEST_LEN_MAX
        };
        let end = start + ready[start..].iter().take_while(fits).count().max(1);
        requests.push(start..end);
        start = end;
    }
    requests
}

/// Nothing more can be published now. What was stays so, and the rest waits for the service.
fn stopped(mut outcomes: Vec<Outcome>, why: Unavailable) -> Result<Vec<Outcome>, Unavailable> {
    if !outcomes.contains(&Outcome::Delivered) {
        return Err(why);
    }
    for outcome in &mut outcomes {
        if matches!(outcome, Outcome::Retry { .. } | Outcome::Untried { .. }) {
            *outcome = Outcome::Waits(why.clone());
        }
    }
    Ok(outcomes)
}

#[async_trait]
impl Sink for PubSub {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let waiting = Outcome::Untried {
            reason: "it was not published".into(),
        };
        let mut fared = Fared {
            outcomes: vec![waiting; batch.deliveries().len()],
            row: Row::default(),
        };
        let mut ready: Vec<Ready> = Vec::with_capacity(fared.outcomes.len());
        for (index, delivery) in batch.deliveries().iter().enumerate() {
            match self.form.message(index, delivery) {
                Ok(message) => ready.push(message),
                Err(reason) => fared.outcomes[index] = Outcome::Reject { reason },
            }
        }
        // Messages of one topic go together, each topic's in their order; where the order is strict, those that follow each other.
        if !self.is_strict {
            ready.sort_by(|one, other| one.topic.cmp(&other.topic).then(one.index.cmp(&other.index)));
        }
        match self.publish(&ready, requests(&ready), &mut fared).await {
            Ok(()) => Ok(fared.outcomes),
            Err(unavailable) => stopped(fared.outcomes, unavailable),
        }
    }
}

#[cfg(test)]
mod tests;
