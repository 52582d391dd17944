//! What is delivered instead of an event: templates and transforms, within limits.
//!
//! A sink or a rule may have a `template` or a `transform`, and some keys of sinks are templates (`subject`, `headers.x-team`).
//! The engine renders them between reading and delivering, so that every sink has them and none runs a program itself: a sink names
//! its templates in [`crate::sinks::SinkKind::templates`], and finds what was made of them at the delivery
//! ([`crate::event::Delivery::text`], [`crate::event::Delivery::payload`]). Without any the original bytes go out.

mod template;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use template::{Escape, Template};

/// What templates and transforms made of one event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// What is delivered instead of the event; `None`: the event itself is.
    pub payload: Option<Payload>,
    /// Headers (attributes, fields) beside those of the sink, from a transform; these win over the sink's own.
    pub headers: BTreeMap<String, String>,
    /// The routing key, partition key or group, from a transform; wins over the sink's own key.
    pub key: Option<String>,
    /// The subject or topic, from a transform; wins over the sink's own key.
    pub subject: Option<String>,
    /// The sink's keys that are templates, by the name that [`crate::sinks::SinkKind::templates`] gives them.
    pub texts: BTreeMap<String, String>,
}

/// What is delivered instead of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The text of a template, or the string that a transform returned.
    Text(Bytes),
    /// The object or array that a transform returned, as JSON text.
    Json(Bytes),
}

impl Payload {
    /// The bytes to send, whichever it is.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Text(bytes) | Payload::Json(bytes) => bytes,
        }
    }
}
