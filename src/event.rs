//! What an event is: its place in the log, its identity, its bytes, and a view of the few fields the daemon itself needs.
//!
//! The bytes are sacred (invariant I5): a [`Event`] carries the delivery body exactly as Close signed it, and everything
//! else here is derived from those bytes. Close may add or drop fields at any time, so only the event's `id` is required;
//! the rest is read if it is there.

pub mod types;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::json::{Doc, Node};
use crate::render::{Payload, Rendered, Template};

/// An event's place in the log. The first event is 1; each next one counts up by one (invariant I3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first event: the position of a reader that has seen nothing.
    pub const ZERO: Seq = Seq(0);

    /// The place right behind this one; the last that can be written has none and stays.
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// The place right before this one; [`Seq::ZERO`] has none and stays.
    #[must_use]
    pub const fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an event came into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Close delivered it, signed.
    Webhook,
    /// Fetched from Close's event log; there are no signed bytes.
    Backfill,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Webhook => "webhook",
            Source::Backfill => "backfill",
        })
    }
}

/// What a log entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A readable delivery: dispatched by rules.
    Event,
    /// Authentic, but not a delivery that can be read: kept byte for byte, delivered nowhere.
    Quarantined,
    /// `data` was withheld by Close; held from dispatch until the full event arrives under a Seq of its own.
    Partial,
    /// Personal data was erased on request; only the Seq remains.
    Erased,
}

/// The two signature headers exactly as they arrived; `None` on backfilled events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureHeaders {
    /// `close-sig-timestamp`, the text as sent.
    pub timestamp: String,
    /// `close-sig-hash`, the text as sent.
    pub hash: String,
}

/// The moment in `date_updated` that tells revisions of one event apart.
///
/// Two texts that name the same instant are the same revision (`.395`, `.395000`, `Z`, `+00:00`, none = UTC); a text that
/// is no date is compared as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Updated {
    /// Nanoseconds since the Unix epoch.
    Instant(i128),
    /// Not a date this daemon can read.
    Text(String),
    /// Neither `date_updated` nor `date_created` is there.
    Missing,
}

impl Updated {
    /// Reads the text of a date as Close writes it (ISO 8601; no offset means UTC).
    pub fn parse(text: &str) -> Updated {
        // A leap second would be folded into the second before it and merge two revisions.
        if text.contains(":60") {
            return Updated::Text(text.to_owned());
        }
        // Close writes no offset here, so that is tried first: a failed try costs more than a good one.
        let without_offset = || {
            let civil = text.parse::<jiff::civil::DateTime>().ok()?;
            jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()
        };
        let time_of_day = text.get(10..).unwrap_or_default();
        let at = if time_of_day.contains(['Z', 'z', '+', '-']) {
            text.parse::<Timestamp>().ok().or_else(without_offset)
        } else {
            without_offset().or_else(|| text.parse::<Timestamp>().ok())
        };
        at.map_or_else(
            || Updated::Text(text.to_owned()),
            |at| Updated::Instant(at.as_nanosecond()),
        )
    }

    /// The moment of a revision, by which those of one object are put in order. `None`: the text names none.
    pub fn moment(text: &str) -> Option<Timestamp> {
        let updated = match Updated::parse(text) {
            // Where nothing is told apart, a leap second may be the second before it.
            Updated::Text(text) if text.contains(":60") => Updated::parse(&text.replace(":60", ":59")),
            updated => updated,
        };
        match updated {
            Updated::Instant(at) => Timestamp::from_nanosecond(at).ok(),
            Updated::Text(_) | Updated::Missing => None,
        }
    }
}

/// What makes an event the same event: its id and the instant of its revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// Close's event-log id; not unique by itself, see [`Updated`].
    pub id: String,
    /// Which revision.
    pub updated: Updated,
}

/// The fields of a delivery that the daemon itself uses, found once in its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// `event.id`.
    pub id: String,
    /// `event.date_updated`, else `event.date_created`, else empty: the text as first seen.
    pub date_updated: String,
    /// `event.object_type`, where it is a string.
    pub object_type: Option<String>,
    /// `event.action`, where it is a string.
    pub action: Option<String>,
    /// `event.lead_id`, where it is a string.
    pub lead_id: Option<String>,
    /// `event.object_id`, where it is a string.
    pub object_id: Option<String>,
    /// `subscription_id` of the envelope, where it is a string.
    pub subscription_id: Option<String>,
    /// Where the event object is in the body, in bytes.
    pub object: Range<usize>,
}

/// Why a body can't be read as a delivery. Such a body is quarantined, not refused: a retry would not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The body is not valid JSON (or not UTF-8).
    #[error("the body is not valid JSON")]
    NotJson,
    /// There is no string at `event.id`.
    #[error("the body has no string at event.id")]
    NoId,
}

impl View {
    /// Finds the fields in a delivery body. Never recurses, whatever the nesting; the last of duplicate keys wins.
    pub fn read(body: &[u8]) -> Result<View, Unreadable> {
        let doc = Doc::parse(body).map_err(|_| Unreadable::NotJson)?;
        let root = doc.root();
        let mut object = Node::NULL;
        let mut subscription_id = Node::NULL;
        for (name, value) in doc.entries(root) {
            match name.as_string().as_deref() {
                Some("event") => object = value,
                Some("subscription_id") => subscription_id = value,
                _ => {}
            }
        }
        let [
            mut id,
            mut updated,
            mut created,
            mut object_type,
            mut action,
            mut lead_id,
            mut object_id,
        ] = [Node::NULL; 7];
        for (name, value) in doc.entries(object) {
            match name.as_string().as_deref() {
                Some("id") => id = value,
                Some("date_updated") => updated = value,
                Some("date_created") => created = value,
                Some("object_type") => object_type = value,
                Some("action") => action = value,
                Some("lead_id") => lead_id = value,
                Some("object_id") => object_id = value,
                _ => {}
            }
        }
        let text = |node: Node<'_>| node.as_string().map(Cow::into_owned);
        // The document begins with its first token, the body perhaps with white space.
        let indent = body.len() - body.trim_ascii_start().len();
        Ok(View {
            id: text(id).ok_or(Unreadable::NoId)?,
            date_updated: text(updated).or_else(|| text(created)).unwrap_or_default(),
            object_type: text(object_type),
            action: text(action),
            lead_id: text(lead_id),
            object_id: text(object_id),
            subscription_id: text(subscription_id),
            object: {
                let place = doc.place_of(object);
                place.start + indent..place.end + indent
            },
        })
    }

    /// `subscription_id` of a body, also of one that is no delivery otherwise; `None` where there is none that is a string, or no JSON.
    pub fn subscription_id_in(body: &[u8]) -> Option<String> {
        let doc = Doc::parse(body).ok()?;
        let id = doc.get(doc.root(), "subscription_id")?;
        id.as_string().map(Cow::into_owned)
    }

    /// The identity by which duplicates are known.
    pub fn key(&self) -> EventKey {
        EventKey {
            id: self.id.clone(),
            updated: if self.date_updated.is_empty() {
                Updated::Missing
            } else {
                Updated::parse(&self.date_updated)
            },
        }
    }

    /// `EVENT_ID:DATE_UPDATED`, the key every delivery of this event carries.
    pub fn idempotency_key(&self) -> String {
        format!("{}:{}", self.id, self.date_updated)
    }

    /// `object_type.action`, the text event patterns are matched on; `None` where either is missing.
    pub fn type_action(&self) -> Option<String> {
        Some(format!("{}.{}", self.object_type.as_ref()?, self.action.as_ref()?))
    }
}

/// One entry of the log, as readers see it. Cheap to share: readers hold `Arc<Event>`.
#[derive(Debug)]
pub struct Event {
    /// Its place in the log.
    pub seq: Seq,
    /// When it was received, by this machine's clock.
    pub received_at: Timestamp,
    /// How it came here.
    pub source: Source,
    /// What it is.
    pub kind: Kind,
    /// The signature headers; `None` on backfilled and erased events.
    pub signature: Option<SignatureHeaders>,
    /// The delivery body, byte for byte.
    pub body: Bytes,
    /// Kept without being dispatched: it was imported from another log.
    pub held: bool,
    view: OnceLock<Option<View>>,
}

impl Event {
    /// An entry as read back from storage or made at the commit.
    pub fn new(
        seq: Seq,
        received_at: Timestamp,
        source: Source,
        kind: Kind,
        signature: Option<SignatureHeaders>,
        body: Bytes,
    ) -> Event {
        Event {
            seq,
            received_at,
            source,
            kind,
            signature,
            body,
            held: false,
            view: OnceLock::new(),
        }
    }

    /// The same entry with its fields as they were read before: they need not be read again.
    #[must_use]
    pub fn with_view(mut self, view: View) -> Event {
        self.view = OnceLock::from(Some(view));
        self
    }

    /// A copy with a body of its own: one that was read from a log's block holds all of the block in memory.
    #[must_use]
    pub fn detached(&self) -> Event {
        Event {
            seq: self.seq,
            received_at: self.received_at,
            source: self.source,
            kind: self.kind,
            signature: self.signature.clone(),
            body: Bytes::copy_from_slice(&self.body),
            held: self.held,
            view: self.view.clone(),
        }
    }

    /// The fields of the body; `None` on quarantined and erased entries. Parsed once, on first use.
    pub fn view(&self) -> Option<&View> {
        self.view
            .get_or_init(|| match self.kind {
                Kind::Event | Kind::Partial => View::read(&self.body).ok(),
                Kind::Quarantined | Kind::Erased => None,
            })
            .as_ref()
    }

    /// What is left of it when its data is erased: its place and when it came.
    #[must_use]
    pub fn erased(self) -> Event {
        let mut tombstone = Event::new(
            self.seq,
            self.received_at,
            self.source,
            Kind::Erased,
            None,
            Bytes::new(),
        );
        tombstone.held = self.held;
        tombstone
    }

    /// The event object inside the body; `null` where there is none.
    pub fn object(&self) -> Node<'_> {
        // Only what was read as a delivery is valid JSON.
        let text = self.view().and_then(|view| self.body.get(view.object.clone()));
        text.and_then(|text| std::str::from_utf8(text).ok())
            .map_or(Node::NULL, Node::new)
    }

    /// When Close delivered it; `None`: it was fetched, or taken from another log, where it may have been delivered long ago.
    pub fn delivered_at(&self) -> Option<Timestamp> {
        (self.source == Source::Webhook && !self.held).then_some(self.received_at)
    }

    /// Whether rules and sinks see it in any case; for partial events see `RuleSet::dispatches`.
    pub fn is_dispatched(&self) -> bool {
        self.kind == Kind::Event && !self.held
    }
}

/// Why an event is on its way to a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is new for the sink.
    Live,
    /// A replay of this id sends it again.
    Replay(Arc<str>),
    /// It was a dead letter, and somebody wants it tried again.
    Letter,
    /// It would have become a dead letter of another sink, which sends these here.
    Diverted(Arc<Dead>),
}

/// Where and why a delivery was given up that goes to another sink instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// The sink that does not have it.
    pub sink: String,
    /// Why, one sentence.
    pub reason: String,
    /// Attempts made there.
    pub attempts: u32,
}

impl Dead {
    /// As JSON, for what is delivered.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "null".into())
    }
}

/// An event on its way to a sink.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Why it is sent.
    pub origin: Origin,
    /// The event.
    pub event: Arc<Event>,
    /// The names of the rules that sent it here; empty where no rules are configured.
    pub rules: Arc<[Arc<str>]>,
    /// Counts from 1.
    pub attempt: u32,
    /// What templates and transforms made of it; `None` where the sink and its rules have none: the event goes out as it came.
    pub rendered: Option<Arc<Rendered>>,
}

impl Delivery {
    /// Where it was given up before, if it comes from there.
    pub fn dead(&self) -> Option<&Dead> {
        match &self.origin {
            Origin::Diverted(dead) => Some(dead),
            Origin::Live | Origin::Replay(_) | Origin::Letter => None,
        }
    }
}

impl Delivery {
    /// What a key of the sink (`subject`, `headers.x-team`) says for this event: the text itself where it is no template.
    pub fn text<'a>(&'a self, key: &str, template: &'a Template) -> &'a str {
        let made = self.rendered.as_deref().and_then(|rendered| rendered.texts.get(key));
        made.map_or(template.source(), String::as_str)
    }

    /// What is delivered instead of the event, if anything is.
    pub fn payload(&self) -> Option<&Payload> {
        self.rendered.as_deref()?.payload.as_ref()
    }
}

/// A pattern over `object_type.action`, in which `*` stands for any text, dots included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPattern(String);

impl EventPattern {
    /// Parses a pattern. An error says what is wrong with it.
    pub fn parse(text: &str) -> Result<EventPattern, String> {
        if text.is_empty() {
            return Err("an event pattern can't be empty: write \"*\" for all events".into());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("an event pattern has no spaces: \"{text}\""));
        }
        if !text.contains('.') && !text.contains('*') {
            return Err(format!(
                "\"{text}\" names no action: write \"{text}.*\" or \"{text}.created\""
            ));
        }
        Ok(EventPattern(text.to_owned()))
    }

    /// Whether it stands for all events, also those without a type.
    pub fn is_all(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    /// The one type it names, if it has no `*`.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// Whether it matches; `None` is an event without a readable type.
    pub fn matches(&self, type_action: Option<&str>) -> bool {
        match type_action {
            None => self.is_all(),
            Some(text) => glob(self.0.as_bytes(), text.as_bytes()),
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `*` matches any text; linear in practice, without recursion.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            p = star + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_object_is_found_whatever_white_space_is_around_the_body() {
        let body = r#"{"event" : {"id":"ev_1","n":[1, {"id":2}]}, "subscription_id":"whsub_1"}"#;
        for (before, after) in [("", ""), (" \n\r\t", ""), ("", "\n"), ("\n\n ", " \n")] {
            let event = Event::new(
                Seq(1),
                Timestamp::UNIX_EPOCH,
                Source::Webhook,
                Kind::Event,
                None,
                format!("{before}{body}{after}").into(),
            );
            assert_eq!(event.object().raw(), r#"{"id":"ev_1","n":[1, {"id":2}]}"#);
            assert_eq!(event.view().map(|view| view.id.as_str()), Some("ev_1"));
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let yes = [
            ("*", "lead.updated"),
            ("activity.*", "activity.email.sent"),
            ("*.created", "a.b.created"),
            ("a*b*c", "aXbYbZc"),
            ("lead.updated", "lead.updated"),
            ("**", ""),
        ];
        let no = [
            ("activity.*", "activityx.sent"),
            ("*.created", "a.created2"),
            ("lead.updated", "lead.updated2"),
            ("a*b", "a"),
        ];
        for (pattern, text) in yes {
            assert!(
                EventPattern::parse(pattern).unwrap().matches(Some(text)),
                "{pattern} {text}"
            );
        }
        for (pattern, text) in no {
            assert!(
                !EventPattern::parse(pattern).unwrap().matches(Some(text)),
                "{pattern} {text}"
            );
        }
        assert!(EventPattern::parse("*").unwrap().matches(None));
        assert!(!EventPattern::parse("*.*").unwrap().matches(None));
        for bad in ["", "a b", "lead"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_a_recursive_reading(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            fn reference(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|skip| reference(rest, &text[skip..])),
                    Some((byte, rest)) => text.first() == Some(byte) && reference(rest, &text[1..]),
                }
            }
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), reference(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
