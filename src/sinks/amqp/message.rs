//! An event as a message: its properties, its headers and its body.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame};
use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::{AMQPMethod, AMQPProperties, Publish};
use amq_protocol::types::{AMQPValue, FieldTable, LongString, MAX_SHORT_STRING_LENGTH, ShortString};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::super::common::message::{attributes, key};
use super::wire::encoded;
use crate::event::{Delivery, View};
use crate::render::{Payload, Template};
use crate::sinks::Reason;

/// The one channel of a session.
pub(super) const CHANNEL: u16 = 1;

/// Written to disk.
const PERSISTENT: u8 = 2;

/// Class `basic`.
const BASIC: u16 = 60;

/// `~` and a SHA-256 in hex.
const DIGEST_LEN: usize = 65;

/// A message, ready to be sent.
#[derive(Debug)]
pub(super) struct Message {
    /// Which of the batch it is.
    pub(super) index: usize,
    /// `message-id`
    pub(super) id: String,
    /// The frames before its body.
    pub(super) head: Vec<u8>,
    /// The frame with its properties has this length.
    pub(super) properties_len: usize,
    pub(super) body: Bytes,
}

/// What stands beside a body, as people are told of it.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) content_type: &'static str,
    pub(super) id: String,
    pub(super) kind: Option<String>,
    /// In seconds.
    pub(super) timestamp: u64,
    /// `closehook-*`, and behind them what a transform says, which wins.
    pub(super) headers: Vec<(String, String)>,
}

/// The body: the bytes as they came, or what was made of the event; and what kind of text it is.
pub(super) fn body(delivery: &Delivery) -> (&Bytes, &'static str) {
    match delivery.payload() {
        None => (&delivery.event.body, "application/json"),
        Some(Payload::Json(bytes)) => (bytes, "application/json"),
        Some(Payload::Text(bytes)) => (bytes, "text/plain; charset=utf-8"),
    }
}

/// Where it goes: what a transform says, else what the sink's key says.
pub(super) fn routing_key<'d>(delivery: &'d Delivery, template: &'d Template) -> &'d str {
    let made = delivery
        .rendered
        .as_deref()
        .and_then(|rendered| rendered.key.as_deref());
    made.unwrap_or_else(|| delivery.text("routing_key", template))
}

/// Whether the event has chosen it.
pub(super) fn routing_key_varies(delivery: &Delivery, template: &Template) -> bool {
    !template.is_constant()
        || delivery
            .rendered
            .as_deref()
            .is_some_and(|rendered| rendered.key.is_some())
}

/// What stands beside its body.
pub(super) fn beside(delivery: &Delivery) -> Beside {
    let event = &delivery.event;
    let made = delivery.rendered.as_deref().map(|rendered| &rendered.headers);
    let is_made = |own: &str| made.is_some_and(|made| made.keys().any(|name| name.eq_ignore_ascii_case(own)));
    let own = attributes(delivery).into_iter().filter(|(name, _)| !is_made(name));
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let made = made.into_iter().flatten();
    let made = made.map(|(name, value)| (name.clone(), value.clone()));
    Beside {
        content_type: body(delivery).1,
        id: short(&key(event)),
        kind: event.view().and_then(View::type_action).map(|kind| short(&kind)),
        timestamp: u64::try_from(event.received_at.as_second()).unwrap_or_default(),
        headers: own.chain(made).collect(),
    }
}

/// A text that fits where 255 bytes do: of what is longer the end is replaced by a digest of all.
fn short(text: &str) -> String {
    if text.len() <= MAX_SHORT_STRING_LENGTH {
        return text.to_owned();
    }
    let mut end = MAX_SHORT_STRING_LENGTH - DIGEST_LEN;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{}", &text[..end], hex::encode(Sha256::digest(text)))
}

/// Whether a header may be called so: RabbitMQ sends a message on to wherever CC and BCC say, and takes no text there.
fn is_header(name: &str) -> bool {
    (1..=MAX_SHORT_STRING_LENGTH).contains(&name.len())
        && !name.chars().any(char::is_control)
        && !matches!(name, "CC" | "BCC")
}

impl Message {
    /// A message for an exchange, or why there is none.
    pub(super) fn new(
        index: usize,
        delivery: &Delivery,
        exchange: &str,
        template: &Template,
    ) -> Result<Message, Reason> {
        let beside = beside(delivery);
        let mut headers = FieldTable::default();
        for (name, value) in beside.headers {
            let name = ShortString::try_new(name.as_str()).ok().filter(|_| is_header(&name)).ok_or_else(|| {
                let shown: String = crate::plain::line(&name).chars().take(MAX_SHORT_STRING_LENGTH).collect();
                format!("no header may be called {shown}: neither CC nor BCC, and it may have up to {MAX_SHORT_STRING_LENGTH} bytes")
            })?;
            headers.insert(name, AMQPValue::LongString(LongString::from(value)));
        }
        let fits = |what: &str, text: &str| {
            ShortString::try_new(text).map_err(|_| {
                let why = format!(
                    "its {what} has {} bytes, and AMQP takes {MAX_SHORT_STRING_LENGTH}",
                    text.len()
                );
                Reason::from(why)
            })
        };
        let mut properties = AMQPProperties::default()
            .with_content_type(beside.content_type.into())
            .with_headers(headers)
            .with_delivery_mode(PERSISTENT)
            .with_message_id(fits("message id", &beside.id)?)
            .with_timestamp(beside.timestamp)
            .with_app_id("closehook".into());
        if let Some(kind) = &beside.kind {
            properties = properties.with_type(fits("type", kind)?);
        }
        let (body, _) = body(delivery);
        let publish = AMQPMethod::Publish(Publish {
            exchange: fits("exchange", exchange)?,
            routing_key: fits("routing key", routing_key(delivery, template))?,
            mandatory: true,
            immediate: false,
        });
        let mut head = encoded(&AMQPFrame::Method(CHANNEL, AMQPClass::Basic(publish)))?;
        let properties = encoded(&AMQPFrame::Header(
            CHANNEL,
            AMQPContentHeader {
                class_id: BASIC,
                body_size: body.len() as u64,
                properties,
            },
        ))?;
        head.extend_from_slice(&properties);
        Ok(Message {
            index,
            id: beside.id,
            head,
            properties_len: properties.len(),
            body: body.clone(),
        })
    }
}
