//! An event as a message: its subject, its headers, its body.

use std::borrow::Cow;
use std::iter::Enumerate;
use std::slice;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::super::common::message::{self as common, legal};
use crate::event::Delivery;
use crate::plain;
use crate::render::Template;
use crate::sinks::Reason;

/// By which JetStream knows a repeat.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The one of JetStream's headers that a transform may set: how long a message is kept.
const TIME_TO_LIVE: &str = "nats-ttl";

/// Bytes of a subject: with a subject for the answer it has to fit the server's line (`max_control_line`, 4096).
const SUBJECT_LEN_MAX: usize = 2048;

/// Bytes of a header's name.
const NAME_LEN_MAX: usize = 256;

/// Bytes of a header's value, of all that a transform may set.
const VALUE_LEN_MAX: usize = 16 << 10;

/// What stands around headers, and around each.
const HEADERS_OVERHEAD: usize = 12;
const HEADER_OVERHEAD: usize = 4;

/// A message that is to be published.
pub(super) struct Message {
    /// Its place in the batch.
    pub index: usize,
    pub subject: String,
    /// The event has chosen the subject.
    pub subject_varies: bool,
    /// Until it is published.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// As the server counts it.
    pub len: usize,
}

impl Message {
    /// Makes it, or says why there is none.
    pub fn of(index: usize, delivery: &Delivery, template: &Template) -> Result<Message, Reason> {
        let (subject, subject_varies) = subject(delivery, template);
        if let Some(fault) = subject_fault(subject) {
            return Err(Reason {
                text: format!("the subject that is made for it can't be one: {fault}"),
                answer: Some(shown(subject)),
            });
        }
        let mut headers = HeaderMap::new();
        let mut len = HEADERS_OVERHEAD;
        for (name, value) in headers_of(delivery)? {
            len += name.len() + value.len() + HEADER_OVERHEAD;
            if value.contains(['\r', '\n']) {
                return Err(no_header(&name));
            }
            let name = match name {
                Cow::Borrowed(name) => HeaderName::from_static(name),
                Cow::Owned(name) => name.parse().map_err(|_| no_header(&name))?,
            };
            headers.insert(name, HeaderValue::from(value));
        }
        let body = body(delivery).clone();
        Ok(Message {
            index,
            subject: subject.to_owned(),
            subject_varies,
            len: len + body.len(),
            headers,
            body,
        })
    }
}

/// Makes the messages of a batch, each when it is about to be published: the server works on the first meanwhile.
pub(super) struct Making<'b> {
    deliveries: Enumerate<slice::Iter<'b, Delivery>>,
    subject: &'b Template,
    /// The next one, where it was looked whether there is any.
    ahead: Option<Message>,
    /// Those of which none can be made, by their place in the batch.
    pub refused: Vec<(usize, Reason)>,
}

impl<'b> Making<'b> {
    pub fn new(deliveries: &'b [Delivery], subject: &'b Template) -> Making<'b> {
        Making {
            deliveries: deliveries.iter().enumerate(),
            subject,
            ahead: None,
            refused: Vec::new(),
        }
    }

    /// Whether there is another one.
    pub fn has_more(&mut self) -> bool {
        self.ahead = self.next();
        self.ahead.is_some()
    }
}

impl Iterator for Making<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        if let Some(ahead) = self.ahead.take() {
            return Some(ahead);
        }
        loop {
            let (index, delivery) = self.deliveries.next()?;
            match Message::of(index, delivery, self.subject) {
                Ok(message) => return Some(message),
                Err(reason) => self.refused.push((index, reason)),
            }
        }
    }
}

/// A text that may be anything, as people see it.
pub(super) fn shown(text: &str) -> String {
    plain::line(text).chars().take(NAME_LEN_MAX).collect()
}

/// The subject, and whether the event has chosen it.
pub(super) fn subject<'d>(delivery: &'d Delivery, template: &'d Template) -> (&'d str, bool) {
    let made = delivery
        .rendered
        .as_deref()
        .and_then(|rendered| rendered.subject.as_deref());
    match made {
        Some(made) => (made, true),
        None => (delivery.text("subject", template), !template.is_constant()),
    }
}

/// What keeps a text from being a subject that a message may be published to; the end of a sentence that does not hold it.
///
/// What is filled in comes from others: neither may it end the line of the protocol, nor be an order to JetStream.
pub(super) fn subject_fault(text: &str) -> Option<&'static str> {
    let is_strange = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > SUBJECT_LEN_MAX {
        return Some("it is longer than 2048 bytes");
    }
    if text.contains(is_strange) {
        return Some("it has spaces or control characters in it");
    }
    if text.split('.').any(str::is_empty) {
        return Some("nothing stands between two dots, or before or behind one");
    }
    if text.split('.').any(|token| matches!(token, "*" | ">")) {
        return Some("it has a wildcard (* or >) in it");
    }
    let first = text.split('.').next().unwrap_or_default();
    if matches!(first, "$JS" | "$SYS" | "_INBOX") {
        return Some("it begins with $JS, $SYS or _INBOX, which are the server's own");
    }
    None
}

/// What stands beside the body, `Nats-Msg-Id` among it. What a transform says wins.
pub(super) fn headers_of(delivery: &Delivery) -> Result<Vec<(Cow<'static, str>, String)>, Reason> {
    let own = common::attributes(delivery).into_iter();
    let mut headers: Vec<(Cow<'static, str>, String)> = own.map(|(name, value)| (name.into(), legal(value))).collect();
    headers.push((MESSAGE_ID.into(), legal(common::key(&delivery.event))));
    let made = delivery.rendered.iter().flat_map(|rendered| &rendered.headers);
    for (name, value) in made {
        let lower = name.to_ascii_lowercase();
        let is_name = (1..=NAME_LEN_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_name || value.len() > VALUE_LEN_MAX {
            return Err(no_header(name));
        }
        if lower.starts_with("nats-") && lower != TIME_TO_LIVE {
            let reason = format!("its transform sets the header {name}, which is JetStream's or the sink's own");
            return Err(reason.into());
        }
        headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
        // JetStream knows it by just these letters.
        let name = if lower == TIME_TO_LIVE { "Nats-TTL" } else { name };
        headers.push((name.to_owned().into(), common::value(value)));
    }
    Ok(headers)
}

fn no_header(name: &str) -> Reason {
    let text = format!(
        "no header may be called {}, or be longer than {VALUE_LEN_MAX} bytes: of a transform's headers letters, digits, -, _ and . are taken",
        shown(name)
    );
    text.into()
}

/// What was made of the event, else what Close sent, byte for byte.
pub(super) fn body(delivery: &Delivery) -> &Bytes {
    delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes())
}
