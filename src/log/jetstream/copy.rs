//! Another log's events, copied into a stream: each at its own Seq, so that all that is known by Seqs holds as it is.
//!
//! What stands at which place of the stream follows from the other log alone, which nobody changes meanwhile: its events and what is
//! erased where they are there, nothing where there is nothing, and behind them the keys of what has expired there and may come again. So
//! how far a copy is, is the stream's own last sequence; each message says behind which one it has to stand, and one that was stored
//! although its answer was lost is known by its name. While the copy goes on the stream has no identity, and nobody opens it.

mod claim;
mod source;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::JetStreamLog;
use super::api::{self, Info};
use super::append::{Ack, OVERHEAD, TOGETHER, head_len, upload};
use super::check::{self, COPY, EPOCH, ID, Seen};
use super::key::{self, Key};
use super::link::Link;
use super::message::{self, APPEND, Prepared, random_text};
use super::settings::Options;
use super::shared::Shared;
use crate::event::{Event, Kind, Seq};
use crate::log::known_key::KnownKey;
use crate::sync::lock;
use claim::{bind_letters, change, is_of, may_begin};

pub use claim::{Origin, holds, holds_letters, reopen};
pub use source::{CopySource, Found};

/// Servers may take so long to be there again.
const PATIENCE: Duration = Duration::from_secs(120);

/// One try of what is stored.
const TRY: Duration = Duration::from_secs(8);

/// Between two tries.
const REST: Duration = Duration::from_millis(200);

/// Empty places are made one by one: so many, and no more.
const FILL_MAX: u64 = 1_000_000;

/// What a copy says beside what an event says itself takes no more bytes.
const CAME_LEN: usize = 64;

/// What stands at a place.
#[derive(Debug, Clone)]
pub enum Item {
    /// An event, at its Seq.
    Event(Arc<Event>),
    /// An erased one at its Seq, with its key where that is still known.
    Erased(Seq, Timestamp, Option<KnownKey>),
    /// From here on, up to another Seq, damage had taken what was there; and when what is before that had come.
    Lost(Seq, Seq, Timestamp),
    /// At this place: that an event is known by this Seq, which is not kept any more.
    Known(Seq, KnownKey, Seq),
}

impl Item {
    /// Where.
    pub fn place(&self) -> Seq {
        match self {
            Item::Event(event) => event.seq,
            Item::Erased(place, ..) | Item::Lost(place, ..) | Item::Known(place, ..) => *place,
        }
    }
}

/// How it began.
#[derive(Debug)]
pub enum Begun {
    /// The stream holds all of it, and is served.
    Done,
    /// It goes on behind what is there.
    Target(CopyTarget),
}

/// A stream into which a log is copied.
#[derive(Debug)]
pub struct CopyTarget {
    shared: Arc<Shared>,
    /// Nothing was copied into it before.
    pub is_new: bool,
    /// The newest time at which anything of it had come, as far as it is copied.
    came: Mutex<Timestamp>,
}

/// A message that is to stand at a place.
struct Own {
    /// Where the subject follows from; `None`: it is `subject`.
    key: Option<Key>,
    subject: String,
    headers: HeaderMap,
    body: Bytes,
    name: String,
}

/// What became of messages.
enum Put {
    Stored,
    /// There is one under a subject of theirs.
    Taken,
}

/// What an answer says.
enum Said {
    Stored(u64),
    Taken,
    Never(String),
    /// Nothing is known, or it is known that it was not stored.
    Unsure(String),
}

fn own(key: Option<Key>, subject: String, mut headers: HeaderMap, body: Bytes) -> Own {
    let name = random_text();
    headers.insert(APPEND, name.as_str());
    Own {
        key,
        subject,
        headers,
        body,
        name,
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Has the stream begin where the log does; as it is then.
async fn begun_where(link: &Link, stream: &str, first: Seq, until: Instant) -> Result<Info, String> {
    let info = api::info(link, stream, None, until).await.map_err(text)?;
    let state = &info.state;
    let is_before = if state.messages == 0 {
        state.last_seq < first.prev().0
    } else {
        // What has expired there since it was copied.
        state.first_seq < first.0
    };
    if !is_before {
        return Ok(info);
    }
    api::purge(link, stream, &json!({ "seq": first.0 }), until)
        .await
        .map_err(text)?;
    api::info(link, stream, None, until).await.map_err(text)
}

impl CopyTarget {
    /// Makes the streams that are missing, or goes on with what an earlier try has left. A stream that holds anything else is refused. An
    /// error is one sentence or more.
    pub async fn begin(options: Options, origin: &Origin) -> Result<Begun, String> {
        let announcements = key::head(&options.stream);
        let link = Link::new(options.way.clone(), announcements.clone(), mpsc::channel(1).0);
        let mark = serde_json::to_string(origin).map_err(text)?;
        let made = check::make(&link, &options, &json!({ COPY: mark })).await;
        let made = made.map_err(text)?;
        let Seen { found, main, letters } = check::look_whoever_serves(&link, &options).await.map_err(text)?;
        let faults: Vec<String> = found.faults.into_iter().chain(found.unseen).collect();
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
        for warning in &found.warnings {
            tracing::warn!("{warning}");
        }
        let stream = options.stream.clone();
        let info = main.ok_or_else(|| format!("there is no stream {stream}"))?;
        if is_of(&info, origin) {
            link.close().await;
            return Ok(Begun::Done);
        }
        let is_new = may_begin(&stream, &info, origin)? || made.contains(&stream);
        let until = Instant::now() + PATIENCE;
        if let Some(letters) = letters {
            bind_letters(&link, letters, &origin.id, until).await?;
        }
        if check::metadata(&info, COPY).as_deref() != Some(&mark) {
            change(&link, info, until, |metadata| {
                metadata.clear();
                metadata.insert(COPY.into(), mark.into());
            })
            .await?;
        }
        let info = begun_where(&link, &stream, origin.first, until).await?;
        let reader = Link::new(options.way.clone(), announcements, mpsc::channel(1).0);
        let identity = (origin.id.clone(), origin.epoch.clone());
        let shared = Arc::new(Shared::new(options, link, reader, info, identity));
        // Every place has a message while the copy goes on.
        let last = shared.head.borrow().0;
        let last = match last {
            0 => None,
            last => api::message(&shared.link, &stream, &json!({ "seq": last }), until)
                .await
                .map_err(text)?,
        };
        let came = last.and_then(|last| last.copied_came()).unwrap_or(Timestamp::MIN);
        Ok(Begun::Target(CopyTarget {
            shared,
            is_new,
            came: Mutex::new(came),
        }))
    }

    /// Notes up to when what is copied had come; `at`: when this one did.
    fn stamp(&self, at: Option<Timestamp>, headers: &mut HeaderMap) {
        let mut came = lock(&self.came);
        *came = at.map_or(*came, |at| at.max(*came));
        message::note_came(headers, *came);
    }

    /// The first place at which nothing is yet.
    pub fn next(&self) -> Seq {
        self.shared.head.borrow().next()
    }

    /// What was copied so far, to be read.
    pub fn log(&self) -> JetStreamLog {
        JetStreamLog {
            shared: self.shared.clone(),
        }
    }

    /// Stores these durably, in order; what is there already is passed over.
    pub async fn put(&self, items: &[Item]) -> Result<(), String> {
        let (mut together, mut bytes) = (Vec::new(), 0);
        for item in items {
            let next = self.next().0 + together.len() as u64;
            let place = item.place().0;
            if place < next {
                continue;
            }
            let own = self.message(item).await?;
            let is_full = together.len() >= TOGETHER.0 || bytes + own.body.len() > TOGETHER.1;
            if place > next || is_full {
                self.store(&std::mem::take(&mut together)).await?;
                bytes = 0;
                self.fill(Seq(place)).await?;
            }
            bytes += own.body.len();
            together.push(own);
        }
        self.store(&together).await
    }

    /// Leaves everything empty up to this place, which is not.
    pub async fn fill(&self, before: Seq) -> Result<(), String> {
        let count = before.0.saturating_sub(self.next().0);
        if count > FILL_MAX {
            return Err(format!(
                "there is nothing from event {} to {}, as in a log that was restored from a backup, and a stream can't leave so much out: copy it when what is before that has expired (log.retention)",
                self.next(),
                before.prev()
            ));
        }
        while self.next() < before {
            let to = before.0.min(self.next().0 + TOGETHER.0 as u64);
            let empty = |place| {
                let subject = key::filler(self.shared.stream(), place);
                let mut headers = message::part("", "");
                self.stamp(None, &mut headers);
                own(None, subject, headers, Bytes::new())
            };
            let empties: Vec<Own> = (self.next().0..to).map(empty).collect();
            self.store(&empties).await?;
        }
        Ok(())
    }

    async fn message(&self, item: &Item) -> Result<Own, String> {
        let stream = self.shared.stream();
        match item {
            Item::Event(event) => self.event(event).await,
            Item::Erased(seq, at, Some(key)) => {
                let key = Key::of_known(key);
                let mut headers = message::known(&key.text(), seq.0, *at);
                self.stamp(Some(*at), &mut headers);
                Ok(own(Some(key), String::new(), headers, Bytes::new()))
            }
            Item::Erased(seq, at, None) => {
                let mut headers = message::known("", seq.0, *at);
                self.stamp(Some(*at), &mut headers);
                Ok(own(None, key::erasure(stream, seq.0), headers, Bytes::new()))
            }
            Item::Lost(from, to, at) => {
                let mut headers = message::lost(to.0, *at);
                self.stamp(Some(*at), &mut headers);
                Ok(own(None, key::lost(stream, from.0), headers, Bytes::new()))
            }
            Item::Known(_, key, seq) => {
                let key = Key::of_known(key);
                let mut headers = message::known(&key.text(), seq.0, Timestamp::now());
                self.stamp(None, &mut headers);
                Ok(own(Some(key), String::new(), headers, Bytes::new()))
            }
        }
    }

    async fn event(&self, event: &Event) -> Result<Own, String> {
        debug_assert_ne!(event.kind, Kind::Erased, "of an erased one there is another item");
        let until = Instant::now() + PATIENCE;
        let line = self.shared.link.line(until).await.map_err(text)?;
        let room = line.max_payload().saturating_sub(OVERHEAD);
        let prepared = Prepared::of_stored(event);
        let headers = prepared.own_headers(None);
        let is_long = event.body.len() + head_len(&headers) + CAME_LEN > room;
        let (mut headers, body) = if is_long {
            let parts = upload(&self.shared, &prepared, room, until).await.map_err(text)?;
            (prepared.own_headers(Some(&parts)), Bytes::new())
        } else {
            (headers, event.body.clone())
        };
        self.stamp(Some(event.received_at), &mut headers);
        Ok(Own {
            key: Some(prepared.key),
            subject: String::new(),
            headers,
            body,
            name: prepared.append,
        })
    }

    /// Stores these at the next places.
    async fn store(&self, messages: &[Own]) -> Result<(), String> {
        if messages.is_empty() {
            return Ok(());
        }
        if let Put::Stored = self.publish(messages, 0).await? {
            return Ok(());
        }
        // Two have one hash, or one key: what damage took once and came again.
        for message in messages {
            let mut salt = 0;
            while let Put::Taken = self.publish(std::slice::from_ref(message), salt).await? {
                if message.key.is_none() {
                    return Err(format!("there is something under {} already", message.subject));
                }
                salt += 1;
            }
        }
        Ok(())
    }

    async fn publish(&self, messages: &[Own], salt: u32) -> Result<Put, String> {
        let (shared, until) = (&self.shared, Instant::now() + PATIENCE);
        let last = shared.head.borrow().0 + messages.len() as u64;
        let newest = messages.last().map(|own| own.name.as_str()).unwrap_or_default();
        loop {
            let why = match self.publish_once(messages, salt, until.min(Instant::now() + TRY)).await {
                Said::Stored(seq) if seq == last => {
                    shared.saw(Seq(seq));
                    return Ok(Put::Stored);
                }
                Said::Stored(seq) => return Err(alien(seq)),
                Said::Taken => return Ok(Put::Taken),
                Said::Never(why) => return Err(why),
                Said::Unsure(why) => why,
            };
            let info = api::info(&shared.link, shared.stream(), None, until).await;
            let there = info.map_err(text)?.state.last_seq;
            if there > last {
                return Err(alien(there));
            }
            if there == last {
                let question = json!({ "seq": last });
                let met = api::message(&shared.link, shared.stream(), &question, until).await;
                if met.map_err(text)?.is_some_and(|met| met.append() == newest) {
                    shared.saw(Seq(last));
                    return Ok(Put::Stored);
                }
                return Err(alien(there));
            }
            if Instant::now() + REST >= until {
                return Err(why);
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// One message, or all of them in one batch, behind what is there.
    async fn publish_once(&self, messages: &[Own], salt: u32, until: Instant) -> Said {
        let line = match self.shared.link.line(until).await {
            Ok(line) => line,
            Err(why) => return Said::Unsure(why.to_string()),
        };
        let (batch, count) = (random_text(), messages.len());
        for (index, own) in messages.iter().enumerate() {
            let subject = match &own.key {
                Some(key) => key.subject(self.shared.stream(), salt),
                None => own.subject.clone(),
            };
            let mut headers = own.headers.clone();
            if index == 0 {
                headers.insert("Nats-Expected-Last-Sequence", self.shared.head.borrow().0.to_string());
            }
            if count > 1 {
                headers.insert("Nats-Batch-Id", batch.as_str());
                headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            }
            if index + 1 < count {
                if let Err(why) = line.tell(&subject, headers, own.body.clone()).await {
                    return Said::Unsure(why.to_string());
                }
                continue;
            }
            if count > 1 {
                headers.insert("Nats-Batch-Commit", "1");
            }
            return match line.ask(&subject, headers, own.body.clone(), until).await {
                Ok(answer) => judged(&answer, count > 1),
                Err(why) => Said::Unsure(why.to_string()),
            };
        }
        Said::Unsure("there is nothing to store".into())
    }

    /// Takes away what held empty places; gives how many messages are left.
    pub async fn clear(&self) -> Result<u64, String> {
        let (shared, until) = (&self.shared, Instant::now() + PATIENCE);
        let which = json!({ "filter": key::fillers(shared.stream()) });
        api::purge(&shared.link, shared.stream(), &which, until)
            .await
            .map_err(text)?;
        let info = api::info(&shared.link, shared.stream(), None, until).await;
        Ok(info.map_err(text)?.state.messages)
    }

    /// It is whole: from now on it is the log.
    pub async fn finish(self) -> Result<(), String> {
        let (shared, until) = (&self.shared, Instant::now() + PATIENCE);
        let info = api::info(&shared.link, shared.stream(), None, until).await;
        let (id, epoch) = (shared.id.clone(), shared.epoch.clone());
        change(&shared.link, info.map_err(text)?, until, |metadata| {
            metadata.remove(COPY);
            metadata.insert(ID.into(), id.into());
            metadata.insert(EPOCH.into(), epoch.into());
        })
        .await?;
        shared.link.close().await;
        shared.reader.close().await;
        Ok(())
    }
}

fn alien(seq: u64) -> String {
    format!("somebody else stores events in the stream (event {seq}): stop every closehook that uses it")
}

fn judged(answer: &Message, is_batch: bool) -> Said {
    let Ok(ack) = serde_json::from_slice::<Ack>(&answer.payload) else {
        return Said::Unsure("somebody who is not JetStream answers on the stream's subject".into());
    };
    let Some(refusal) = ack.error else {
        return if ack.stream.is_empty() || ack.seq == 0 {
            Said::Unsure("the answer says no sequence".into())
        } else {
            Said::Stored(ack.seq)
        };
    };
    // It is not behind what is there, or an earlier try is on its way.
    if refusal.is_of(&[10071, 10164]) {
        return Said::Unsure(refusal.to_string());
    }
    if refusal.is_of(&[10077]) && refusal.description.contains("per subject") {
        return Said::Taken;
    }
    if refusal.is_of(&[10077, 10047, 10023, 10002, 10028]) {
        return Said::Never(format!("{refusal}: make room, or raise the limit"));
    }
    match (refusal.code, is_batch) {
        (400, true) => Said::Taken,
        (400, false) if !refusal.is_of(&[10003]) => Said::Never(refusal.to_string()),
        _ => Said::Unsure(refusal.to_string()),
    }
}
