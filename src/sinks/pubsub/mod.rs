//! `pubsub`: messages to a topic of Google Cloud Pub/Sub, published together over its REST interface.
//!
//! At least once; the key and what else is known of an event are attributes. The data is the body as Close sent it, or what a template or
//! transform made of it. A message that is refused does not keep the others: the batch is halved until it stands alone.
//!
//! | file | what it does |
//! |---|---|
//! | `account` | the service account, and what it signs |
//! | `definition` | what there is to say of it and its keys |
//! | `answer` | what an answer means |

mod account;
mod answer;
pub(super) mod definition;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::Sha256;
use tokio::time::Instant;

use self::account::{Account, Granted};
use self::answer::Published;
use super::common::lent::{Lends, Lent, Standing, Term};
use super::common::message;
use super::common::reply::Reply;
use super::common::secrets::Secrets;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, Reason, Sink, SinkKind, Unavailable,
};
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::net::http::{Way, why_unanswered};
use crate::render::{Escape, Template};

const ENDPOINT: &str = "https://pubsub.googleapis.com";

/// Messages in a request, as Pub/Sub takes them.
const MESSAGES_MAX: usize = 1000;

/// Bytes of a request; Pub/Sub takes ten million.
const REQUEST_LEN_MAX: usize = 9_500_000;

/// Refusals in a row; what is behind them waits.
const REFUSALS_MAX: usize = 5;

/// While a token is still good and the next can't be had, it is not asked for more often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Bytes of an attribute's name.
const ATTRIBUTE_NAME_LEN_MAX: usize = 256;

/// Bytes of an attribute's value.
const ATTRIBUTE_LEN_MAX: usize = 1024;

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
        identity: None,
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
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
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
        let account = self.credentials.as_ref().map(|secret| {
            let text = secret.resolve()?;
            Account::parse(text.expose_secret())
        });
        let account = account.transpose()?;
        let project = account.as_ref().and_then(|account| account.project.clone());
        if self.topic.is_constant() && full_name(self.topic.source(), project.as_deref()).is_none() {
            return Err(
                "topic has no project, and the service account names none: write projects/PROJECT/topics/TOPIC".into(),
            );
        }
        let client = self
            .way
            .builder(timeout)?
            .build()
            .map_err(|error| why_unanswered(&error))?;
        let mut base = Secrets::default();
        base.add_url(&self.endpoint);
        Ok(PubSub {
            client,
            topic: self.topic.clone(),
            ordering_key: self.ordering_key.clone(),
            endpoint: self.endpoint.as_str().trim_end_matches('/').to_owned(),
            account,
            project,
            tokens: Lent::new(ASK_AGAIN_AFTER),
            timeout,
            no_token: Arc::new(Token {
                text: None,
                secrets: base,
                term: Term::default(),
            }),
        })
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

    fn preview(&self, delivery: &Delivery) -> Preview {
        let rendered = delivery.rendered.as_deref();
        let attributes = message::attributes(delivery).into_iter();
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        let made = rendered.iter().flat_map(|rendered| rendered.headers.clone());
        let key = self
            .ordering_key
            .as_ref()
            .map(|key| delivery.text("ordering_key", key).to_owned());
        let topic = delivery.text("topic", &self.topic).to_owned();
        Preview {
            headers: attributes.chain(made).collect(),
            body: Some(self.payload(delivery)),
            key: rendered.and_then(|rendered| rendered.key.clone()).or(key),
            subject: Some(rendered.and_then(|rendered| rendered.subject.clone()).unwrap_or(topic)),
            row: None,
        }
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
        let sink: Box<dyn Sink> = Box::new(self.client(context.timeout).map_err(Unavailable::new)?);
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

/// A token, and what is hidden of it.
struct Token {
    text: Option<String>,
    secrets: Secrets,
    term: Term,
}

impl Lends for Token {
    fn standing(&self) -> Standing {
        self.term.standing()
    }
}

struct PubSub {
    client: reqwest::Client,
    topic: Template,
    ordering_key: Option<Template>,
    endpoint: String,
    /// `None`: an emulator, which asks nobody who he is.
    account: Option<Account>,
    project: Option<String>,
    tokens: Lent<Token, Unavailable>,
    timeout: Duration,
    no_token: Arc<Token>,
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
    /// In a row.
    refusals: usize,
}

impl Fared {
    fn taken(&mut self, message: &Ready) {
        self.refusals = 0;
        self.outcomes[message.index] = Outcome::Delivered;
    }

    /// After so many in a row it may not be about the messages (decision 21): they wait.
    fn refused(&mut self, message: &Ready, reason: Reason) {
        self.outcomes[message.index] = if self.refusals < REFUSALS_MAX {
            Outcome::Reject { reason }
        } else {
            Outcome::Retry { reason, after: None }
        };
        self.refusals += 1;
    }
}

/// Whether an attribute may be called so.
fn is_attribute(name: &str) -> bool {
    (1..=ATTRIBUTE_NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with("goog")
        && !name.chars().any(char::is_control)
}

impl PubSub {
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
        for (name, value) in rendered.iter().flat_map(|rendered| &rendered.headers) {
            if !is_attribute(name) || value.len() > ATTRIBUTE_LEN_MAX {
                let shown: String = crate::plain::line(name).chars().take(ATTRIBUTE_NAME_LEN_MAX).collect();
                return Err(
                    format!("no attribute may be called {shown}, or be longer than {ATTRIBUTE_LEN_MAX} bytes").into(),
                );
            }
            attributes.insert(name.clone(), value.as_str().into());
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

    /// Publishes messages of one topic that fit one request, or parts of them where some are refused.
    async fn publish(&self, messages: &[Ready], fared: &mut Fared) -> Result<(), Unavailable> {
        let mut parts = vec![messages];
        let before = fared.refusals;
        while let Some(part) = parts.pop() {
            let Some(first) = part.first() else { continue };
            if fared.refusals >= REFUSALS_MAX && fared.refusals > before {
                // Each of another topic's has its try.
                return Ok(());
            }
            let bodies: Vec<&str> = part.iter().map(|message| message.json.as_str()).collect();
            let body = format!("{{\"messages\":[{}]}}", bodies.join(","));
            let path = format!("{}:publish", first.topic);
            match self.ask(&path, Some(body), first.topic_varies).await?.1 {
                Published::Taken => part.iter().for_each(|message| fared.taken(message)),
                Published::Refused(reason) if part.len() == 1 => fared.refused(first, reason),
                Published::Refused(_) => {
                    let (one, other) = part.split_at(part.len() / 2);
                    // The earlier ones go first.
                    parts.extend([other, one]);
                }
                Published::NoTopic(reason) => {
                    for message in part {
                        fared.refused(message, reason.clone());
                    }
                }
                Published::NotKnown(unavailable) => return Err(unavailable),
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
        let mut refused: Option<Arc<Token>> = None;
        loop {
            let token = self.token(refused.as_ref()).await?;
            let url = format!("{}/v1/{path}", self.endpoint);
            let mut request = match &body {
                Some(body) => self
                    .client
                    .post(url)
                    .header(CONTENT_TYPE, "application/json")
                    .body(body.clone()),
                None => self.client.get(url),
            };
            if let Some(text) = &token.text {
                request = request.bearer_auth(text);
            }
            let reply = self.answered(request, &token.secrets).await?;
            match answer::published(&reply, topic_varies, &token.secrets)? {
                Published::NotKnown(_) if refused.is_none() && self.account.is_some() => refused = Some(token),
                published => return Ok((reply, published)),
            }
        }
    }

    async fn answered(&self, request: reqwest::RequestBuilder, secrets: &Secrets) -> Result<Reply, Unavailable> {
        let answered = async { Reply::read(request.send().await?).await };
        answered
            .await
            .map_err(|error| Unavailable::new(secrets.hidden_in(&why_unanswered(&error))))
    }

    /// The token of now, or a new one; `refused`: another one than this. One is fetched at a time, whoever waits.
    async fn token(&self, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, Unavailable> {
        let Some(account) = &self.account else {
            return Ok(self.no_token.clone());
        };
        let late = || Unavailable::new("no token came in time");
        let until = Instant::now() + self.timeout;
        self.tokens.get(refused, until, late, self.fetch(account)).await
    }

    async fn fetch(&self, account: &Account) -> Result<Token, Unavailable> {
        let asked = Instant::now();
        let assertion = account.assertion(Timestamp::now()).map_err(Unavailable::new)?;
        let mut secrets = Secrets::default();
        secrets.add(&assertion);
        // Of base64url and dots there is nothing to encode.
        let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
        let request = self.client.post(account.token_url.clone());
        let request = request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        let reply = self.answered(request, &secrets).await?;
        let granted = serde_json::from_slice::<Granted>(&reply.body).ok();
        match granted.filter(|_| reply.status.is_success()) {
            Some(granted) => {
                secrets.add(&granted.access_token);
                let until = asked.checked_add(granted.used_for());
                Ok(Token {
                    term: Term {
                        fresh: until,
                        good: until.and_then(|until| until.checked_add(granted.good_beyond())),
                    },
                    text: Some(granted.access_token),
                    secrets,
                })
            }
            None => Err(refused(&reply, &secrets)),
        }
    }

    /// Publishes nothing.
    async fn probe(&self) -> Result<String, Unavailable> {
        if !self.topic.is_constant() {
            self.token(None).await?;
            return Ok("the service account is known; its topics depend on the event and were not looked at".into());
        }
        let topic = full_name(self.topic.source(), self.project.as_deref()).unwrap_or_default();
        let (path, body) = match &self.account {
            Some(_) => (
                format!("{topic}:testIamPermissions"),
                Some(json!({ "permissions": ["pubsub.topics.publish"] }).to_string()),
            ),
            None => (topic.clone(), None),
        };
        let (reply, published) = self.ask(&path, body, false).await?;
        match published {
            Published::Taken => {}
            Published::Refused(reason) | Published::NoTopic(reason) => return Err(Unavailable::new(reason.text)),
            Published::NotKnown(unavailable) => return Err(unavailable),
        }
        let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let may = said["permissions"].as_array().is_some_and(|list| !list.is_empty());
        if self.account.is_some() && !may {
            return Err(Unavailable::new(
                "the service account may not publish there: give it the role Pub/Sub Publisher on the topic",
            ));
        }
        Ok(format!("{topic} is there"))
    }
}

/// Why there is no token.
fn refused(reply: &Reply, secrets: &Secrets) -> Unavailable {
    let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    let said = [text("error"), text("error_description")].join(" ");
    let said: String = crate::plain::line(secrets.hidden_in(said.trim()).trim())
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
        reason: format!(
            "Google answered {} to the service account{said}{what_to_do}",
            reply.status
        ),
        after: reply.after(),
    }
}

/// Nothing more can be published now. What was stays so, and the rest is tried again; without any of that no attempt is counted.
fn stopped(mut outcomes: Vec<Outcome>, why: Unavailable) -> Result<Vec<Outcome>, Unavailable> {
    if !outcomes.contains(&Outcome::Delivered) {
        return Err(why);
    }
    for outcome in &mut outcomes {
        if let Outcome::Retry { reason, after } = outcome {
            *reason = why.reason.clone().into();
            *after = why.after;
        }
    }
    Ok(outcomes)
}

#[async_trait]
impl Sink for PubSub {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let waiting = Outcome::Retry {
            reason: "it was not published".into(),
            after: None,
        };
        let mut fared = Fared {
            outcomes: vec![waiting; batch.deliveries().len()],
            refusals: 0,
        };
        let mut ready: Vec<Ready> = Vec::with_capacity(fared.outcomes.len());
        for (index, delivery) in batch.deliveries().iter().enumerate() {
            match self.message(index, delivery) {
                Ok(message) => ready.push(message),
                Err(reason) => fared.outcomes[index] = Outcome::Reject { reason },
            }
        }
        // Messages of one topic go together, each topic's in their order.
        ready.sort_by(|one, other| one.topic.cmp(&other.topic).then(one.index.cmp(&other.index)));
        let mut rest = &ready[..];
        while let Some(first) = rest.first() {
            let mut bytes = 0;
            let fits = |message: &&Ready| {
                bytes += message.json.len() + 1;
                message.topic == first.topic && bytes + MESSAGE_OVERHEAD <= REQUEST_LEN_MAX
            };
            let len = rest.iter().take_while(fits).count().max(1);
            let (these, later) = rest.split_at(len);
            if let Err(unavailable) = self.publish(these, &mut fared).await {
                return stopped(fared.outcomes, unavailable);
            }
            rest = later;
        }
        Ok(fared.outcomes)
    }
}

#[cfg(test)]
mod tests;
