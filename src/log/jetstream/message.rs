//! An event as a message: the body byte for byte, everything else in headers.
//!
//! The checksum is ours: what a disk or a server's memory has changed is found when it is read, and read from another replica.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;

use super::key::{Key, escaped};
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source, View};
use crate::log::Incoming;
use crate::net::percent::decoded;

const KEY: &str = "Closehook-Key";
const RECEIVED: &str = "Closehook-Received";
/// Of what was copied from another log: the newest time at which anything came to that up to here.
const CAME: &str = "Closehook-Came";
/// When the server stored it, as a replica says.
const STORED: &str = "Nats-Time-Stamp";
const SOURCE: &str = "Closehook-Source";
const KIND: &str = "Closehook-Kind";
const HELD: &str = "Closehook-Held";
const SIGNED_AT: &str = "Closehook-Signature-Timestamp";
const SIGNATURE: &str = "Closehook-Signature-Hash";
const SUBSCRIPTION: &str = "Closehook-Subscription";
pub(super) const CHECKSUM: &str = "Closehook-Checksum";
pub(super) const APPEND: &str = "Closehook-Append";
const UPLOAD: &str = "Closehook-Upload";
const LENGTH: &str = "Closehook-Length";
const PARTS: &str = "Closehook-Parts";
const ERASED: &str = "Closehook-Erased";
/// Of what stands where damage has taken events: up to which Seq.
const LOST: &str = "Closehook-Lost";
/// Of a piece, or of what says that a Seq is erased: where its event is.
const SUBJECT: &str = "Closehook-Subject";

/// Publish it only if its subject has this as its last Seq.
pub(super) const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";

/// Longer texts are no ids of a subscription and no signatures.
const TEXT_LEN_MAX: usize = 512;

/// An event that is to be stored, with all that is known of it before.
#[derive(Debug)]
pub(super) struct Prepared {
    pub incoming: Incoming,
    pub key: Key,
    /// Of a partial event: the key of the full one, which makes it superfluous.
    pub full: Option<Key>,
    pub kind: Kind,
    subscription: Option<String>,
    /// Tells this append from every other one, those of the same event included.
    pub append: String,
}

impl Prepared {
    pub fn new(mut incoming: Incoming) -> Prepared {
        let view = incoming.view.take();
        let subscription = view.as_ref().and_then(|view| view.subscription_id.clone());
        let (kind, key, full) = match view.as_ref().map(View::key) {
            None => (Kind::Quarantined, Key::of_quarantined(&incoming.body), None),
            Some(key) if incoming.partial => (Kind::Partial, Key::of_partial(&key), Some(Key::of_event(&key))),
            Some(key) => (Kind::Event, Key::of_event(&key), None),
        };
        Prepared {
            incoming,
            key,
            full,
            kind,
            subscription: subscription.filter(|id| id.len() <= TEXT_LEN_MAX),
            append: random_text(),
        }
    }

    /// An event of another log, as it is there.
    pub fn of_stored(event: &Event) -> Prepared {
        let view = event.view();
        let key = match (event.kind, view.map(View::key)) {
            (Kind::Event, Some(key)) => Key::of_event(&key),
            (Kind::Partial, Some(key)) => Key::of_partial(&key),
            _ => Key::of_quarantined(&event.body),
        };
        let subscription = view.and_then(|view| view.subscription_id.clone());
        Prepared {
            key,
            full: None,
            kind: event.kind,
            subscription: subscription.filter(|id| id.len() <= TEXT_LEN_MAX),
            append: random_text(),
            incoming: Incoming {
                body: event.body.clone(),
                received_at: event.received_at,
                source: event.source,
                signature: event.signature.clone(),
                view: None,
                held: event.held,
                partial: event.kind == Kind::Partial,
                ticket: None,
            },
        }
    }

    /// The message's headers, by which it is stored only where its subject has none; `parts` where the body is elsewhere.
    pub fn headers(&self, parts: Option<&Parts>) -> HeaderMap {
        let mut headers = self.own_headers(parts);
        headers.insert(EXPECTED, "0");
        headers
    }

    /// What the message itself says.
    pub fn own_headers(&self, parts: Option<&Parts>) -> HeaderMap {
        let incoming = &self.incoming;
        let mut headers = HeaderMap::new();
        headers.insert(KEY, self.key.text());
        headers.insert(RECEIVED, incoming.received_at.as_microsecond().to_string());
        headers.insert(SOURCE, incoming.source.to_string());
        headers.insert(KIND, name_of(self.kind));
        headers.insert(CHECKSUM, checksum(&incoming.body));
        headers.insert(APPEND, self.append.as_str());
        if incoming.held {
            headers.insert(HELD, "1");
        }
        if let Some(signature) = &incoming.signature {
            headers.insert(SIGNED_AT, escaped(&signature.timestamp));
            headers.insert(SIGNATURE, escaped(&signature.hash));
        }
        if let Some(subscription) = &self.subscription {
            headers.insert(SUBSCRIPTION, escaped(subscription));
        }
        if let Some(parts) = parts {
            let seqs: Vec<String> = parts.seqs.iter().map(u64::to_string).collect();
            headers.insert(UPLOAD, parts.upload.as_str());
            headers.insert(LENGTH, parts.len.to_string());
            headers.insert(PARTS, seqs.join(","));
        }
        headers
    }
}

/// The headers of what takes an erased event's place under its key.
pub(super) fn tombstone(key: &str, seq: u64, received_at: Timestamp) -> HeaderMap {
    let mut headers = known(key, seq, received_at);
    headers.insert(EXPECTED, "0");
    headers
}

/// What says that a key is known by a Seq whose event is not there (any more).
pub(super) fn known(key: &str, seq: u64, received_at: Timestamp) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(KEY, key);
    headers.insert(KIND, name_of(Kind::Erased));
    headers.insert(ERASED, seq.to_string());
    headers.insert(RECEIVED, received_at.as_microsecond().to_string());
    headers
}

/// What says that events from its own Seq on were lost to damage, before they came here. `at`: when what was before them came.
pub(super) fn lost(upto: u64, at: Timestamp) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(LOST, upto.to_string());
    headers.insert(RECEIVED, at.as_microsecond().to_string());
    headers
}

/// Says of a copied message up to when what is before it, and itself, had come.
pub(super) fn note_came(headers: &mut HeaderMap, at: Timestamp) {
    headers.insert(CAME, at.as_microsecond().to_string());
}

/// The headers of what says that a Seq is erased.
pub(super) fn erasure(subject: &str, key: &str, seq: u64, received_at: Timestamp) -> HeaderMap {
    let mut headers = tombstone(key, seq, received_at);
    headers.insert(SUBJECT, subject);
    headers
}

/// The headers of a piece of a body.
pub(super) fn part(subject: &str, key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED, "0");
    headers.insert(KEY, key);
    headers.insert(SUBJECT, subject);
    headers
}

/// Where a body is that was too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    pub upload: String,
    pub len: usize,
    /// Of its pieces in their stream, in order.
    pub seqs: Vec<u64>,
}

/// What is kept at one Seq.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub seq: u64,
    pub subject: String,
    headers: HeaderMap,
    pub payload: Bytes,
    /// When the server stored it, where that is not in the headers.
    time: Option<Timestamp>,
}

impl Stored {
    pub fn new(seq: u64, subject: String, headers: HeaderMap, payload: Bytes) -> Stored {
        Stored {
            seq,
            subject,
            headers,
            payload,
            time: None,
        }
    }

    /// The same, stored at a time that is not in the headers.
    pub fn at(self, time: Option<Timestamp>) -> Stored {
        Stored { time, ..self }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// The whole key; empty where it is none of ours.
    pub fn key(&self) -> &str {
        self.header(KEY).unwrap_or_default()
    }

    /// Which append made it.
    pub fn append(&self) -> &str {
        self.header(APPEND).unwrap_or_default()
    }

    /// Which Seq it says is erased.
    pub fn erases(&self) -> Option<u64> {
        self.header(ERASED)?.parse().ok()
    }

    /// Up to which Seq it says that events are lost.
    pub fn lost_upto(&self) -> Option<Seq> {
        self.header(LOST)?.parse().ok().map(Seq)
    }

    /// Where the event is that this belongs to.
    pub fn belongs_to(&self) -> &str {
        self.header(SUBJECT).unwrap_or_default()
    }

    /// The Seq under which its event is known: a tombstone's is that of what it replaces.
    pub fn known_as(&self) -> Seq {
        Seq(self.erases().unwrap_or(self.seq))
    }

    pub fn received_at(&self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.header(RECEIVED)?.parse().ok()?).ok()
    }

    /// What a copy says of when this, and all before it, had come.
    pub fn copied_came(&self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.header(CAME)?.parse().ok()?).ok()
    }

    /// When it came to the log. Unlike the time of receipt, which an import keeps as it was, this never falls from one Seq to the next; and no
    /// event was received later, but for clocks that differ.
    pub fn came(&self) -> Option<Timestamp> {
        self.copied_came()
            .or_else(|| self.stored_at())
            .or_else(|| self.received_at())
    }

    /// When the server stored it, where it said so.
    pub fn stored_at(&self) -> Option<Timestamp> {
        self.time.or_else(|| self.header(STORED)?.parse().ok())
    }

    /// Where its body is, if not in it.
    pub fn parts(&self) -> Option<Parts> {
        let seqs = self.header(PARTS)?.split(',').map(str::parse);
        Some(Parts {
            upload: self.header(UPLOAD)?.to_owned(),
            len: self.header(LENGTH)?.parse().ok()?,
            seqs: seqs.collect::<Result<_, _>>().ok()?,
        })
    }

    /// The event, with this body. An error says in one sentence why it is not what was stored.
    pub fn event(&self, body: Bytes) -> Result<Event, &'static str> {
        const ALIEN: &str = "its headers are not closehook's";
        let received_at = self.received_at().ok_or(ALIEN)?;
        if self.erases().is_some() {
            let event = Event::new(
                self.known_as(),
                received_at,
                Source::Webhook,
                Kind::Erased,
                None,
                Bytes::new(),
            );
            return Ok(event);
        }
        let source = match self.header(SOURCE) {
            Some("webhook") => Source::Webhook,
            Some("backfill") => Source::Backfill,
            _ => return Err(ALIEN),
        };
        let kind = match self.header(KIND) {
            Some("event") => Kind::Event,
            Some("partial") => Kind::Partial,
            Some("quarantined") => Kind::Quarantined,
            _ => return Err(ALIEN),
        };
        if self.header(CHECKSUM) != Some(checksum(&body).as_str()) {
            return Err("its body is not what was stored: the checksum differs");
        }
        let signature = self.header(SIGNED_AT).zip(self.header(SIGNATURE));
        let signature = signature.map(|(timestamp, hash)| SignatureHeaders {
            timestamp: decoded(timestamp),
            hash: decoded(hash),
        });
        let mut event = Event::new(Seq(self.seq), received_at, source, kind, signature, body);
        event.held = self.header(HELD).is_some();
        Ok(event)
    }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Event => "event",
        Kind::Partial => "partial",
        Kind::Quarantined => "quarantined",
        Kind::Erased => "erased",
    }
}

pub(super) fn checksum(body: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(body))
}

/// Text that nobody else has.
pub(super) fn random_text() -> String {
    let mut bytes = [0; 16];
    // Without it nothing in this process could be told apart; what runs on counts instead.
    if getrandom::fill(&mut bytes).is_err() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = Timestamp::now().as_nanosecond().unsigned_abs() as u64;
        bytes[..8].copy_from_slice(&now.to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
    }
    hex::encode(bytes)
}
