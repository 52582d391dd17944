//! Another log's events, copied into a stream: each at its own Seq, so that all that is known by Seqs holds as it is.
//!
//! What stands at which place of the stream follows from the other log alone, which nobody changes meanwhile: its events and what is
//! erased where they are there, nothing where there is nothing, and behind them the keys of what has expired there and may come again. So
//! how far a copy is, is the stream's own last sequence; each message says behind which one it has to stand, and one that was stored
//! although its answer was lost is known by its name. While the copy goes on the stream has no identity, and nobody opens it.

mod source;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::JetStreamLog;
use super::api::{self, Info};
use super::append::{Ack, OVERHEAD, TOGETHER, head_len, upload};
use super::check::{self, COPY, EPOCH, ID, MOVED, Seen};
use super::key::{self, Key};
use super::link::Link;
use super::message::{self, APPEND, Prepared, random_text};
use super::settings::Options;
use super::shared::Shared;
use crate::event::{Event, Kind, Seq};
use crate::log::known_key::KnownKey;
use crate::sync::lock;
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

/// Which log is copied: nothing else may go on with what was copied of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its id.
    pub id: String,
    /// Its epoch: Seqs and events stay what they are, so it is the same life.
    pub epoch: String,
    /// The first Seq that is kept (one past the last while there is none).
    pub first: Seq,
    /// The last Seq that was given out.
    pub last: Seq,
}

impl Origin {
    /// Whether it is the same log as it was, or as it is after it has gone on.
    pub fn continues(&self, earlier: &Origin) -> bool {
        (&self.id, &self.epoch) == (&earlier.id, &earlier.epoch)
            && self.first >= earlier.first
            && self.last >= earlier.last
    }
}

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
        let mut info = api::info(&link, &stream, None, until).await.map_err(text)?;
        if info.state.messages == 0 && info.state.last_seq < origin.first.prev().0 {
            api::purge(&link, &stream, &json!({ "seq": origin.first.0 }), until)
                .await
                .map_err(text)?;
            info = api::info(&link, &stream, None, until).await.map_err(text)?;
        }
        // What has expired there since it was copied.
        if info.state.messages > 0 && info.state.first_seq < origin.first.0 {
            api::purge(&link, &stream, &json!({ "seq": origin.first.0 }), until)
                .await
                .map_err(text)?;
            info = api::info(&link, &stream, None, until).await.map_err(text)?;
        }
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

/// Whether a stream that is served holds this log, whichever lives of it: what of one is not in the other is told by what is in them.
fn is_of(info: &Info, origin: &Origin) -> bool {
    check::identity(info).is_some_and(|(id, _)| id == origin.id)
}

/// Whether it may be copied into a stream; true where that begins now.
fn may_begin(stream: &str, info: &Info, origin: &Origin) -> Result<bool, String> {
    if let Some(copy) = check::metadata(info, COPY) {
        let earlier = serde_json::from_slice::<Origin>(copy.as_bytes()).ok();
        // Behind its last event keys of expired ones may stand already, at places that are events' by now.
        let goes_on = |earlier: &Origin| *earlier == *origin || info.state.last_seq <= earlier.last.0;
        if earlier.is_some_and(|earlier| origin.continues(&earlier) && goes_on(&earlier)) {
            return Ok(false);
        }
        return Err(format!(
            "another log is being copied into the stream {stream}, or this one has changed since: remove the streams {stream}, {stream}_parts and {stream}_dead, or name another one (log.jetstream.stream)"
        ));
    }
    let state = &info.state;
    if check::metadata(info, MOVED).is_some() || state.messages > 0 || state.last_seq > 0 {
        return Err(format!(
            "the stream {stream} holds other events, up to {}: a log is copied into one that is empty; name another one (log.jetstream.stream), or remove the streams {stream}, {stream}_parts and {stream}_dead where nobody needs them any more",
            state.last_seq
        ));
    }
    Ok(true)
}

/// What events and notes of erasures are stored under. Without it nobody stores anything, not even a node that stood still when it was
/// looked who runs.
fn subjects(stream: &str, takes_events: bool) -> Value {
    if takes_events {
        json!([key::events(stream), key::erasures(stream)])
    } else {
        json!([format!("{stream}.moved")])
    }
}

/// Changes what stands in a stream's metadata.
async fn change(
    link: &Link,
    info: Info,
    until: Instant,
    edit: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> Result<(), String> {
    let mut config = info.config;
    let metadata = edited(&mut config, edit);
    let name = config["name"].as_str().unwrap_or_default();
    config["subjects"] = subjects(name, !metadata.contains_key(MOVED));
    update(link, &config, until).await
}

fn edited(
    config: &mut Value,
    edit: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> serde_json::Map<String, Value> {
    let mut metadata = config["metadata"].as_object().cloned().unwrap_or_default();
    metadata.retain(|name, _| !name.starts_with("_nats."));
    edit(&mut metadata);
    config["metadata"] = Value::Object(metadata.clone());
    metadata
}

async fn update(link: &Link, config: &Value, until: Instant) -> Result<(), String> {
    let name = config["name"].as_str().unwrap_or_default();
    api::ask(link, &format!("STREAM.UPDATE.{name}"), config, until)
        .await
        .map(drop)
        .map_err(text)
}

/// The stream of dead letters is the log's that is copied. One that another log has used is refused.
async fn bind_letters(link: &Link, letters: Info, id: &str, until: Instant) -> Result<(), String> {
    let of = check::metadata(&letters, ID);
    if of.as_deref() == Some(id) {
        return Ok(());
    }
    let mut config = letters.config;
    if of.is_some() && letters.state.messages > 0 {
        return Err(format!(
            "the stream {} holds dead letters of another log: remove it where nobody needs them any more, or name another stream (log.jetstream.stream)",
            config["name"].as_str().unwrap_or_default()
        ));
    }
    edited(&mut config, |metadata| drop(metadata.insert(ID.into(), id.into())));
    update(link, &config, until).await
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

/// Whether the stream holds all of a log, and is served; an error says why the log can't be copied into it.
pub async fn holds(options: &Options, origin: &Origin) -> Result<bool, String> {
    let link = Link::new(options.way.clone(), key::head(&options.stream), mpsc::channel(1).0);
    let info = api::info(&link, &options.stream, None, Instant::now() + PATIENCE).await;
    link.close().await;
    match info {
        Ok(info) if is_of(&info, origin) => Ok(true),
        Ok(info) => may_begin(&options.stream, &info, origin).map(|_| false),
        Err(api::Failure::Refused(refusal)) if refusal.is_absence() => Ok(false),
        Err(failure) => Err(failure.to_string()),
    }
}

/// Whether there are dead letters on the servers, of whatever log.
pub async fn holds_letters(options: &Options) -> Result<bool, String> {
    let link = check::link(options);
    let stream = key::dead_stream(&options.stream);
    let info = api::info(&link, &stream, None, Instant::now() + PATIENCE).await;
    link.close().await;
    match info {
        Ok(info) => Ok(info.state.messages > 0),
        Err(api::Failure::Refused(refusal)) if refusal.is_absence() => Ok(false),
        Err(failure) => Err(failure.to_string()),
    }
}

/// Has a stream served again whose log was copied to somewhere else: as another life of it.
pub async fn reopen(options: &Options) -> Result<(), String> {
    let link = Link::new(options.way.clone(), key::head(&options.stream), mpsc::channel(1).0);
    let until = Instant::now() + PATIENCE;
    let reopened = async {
        let info = api::info(&link, &options.stream, None, until).await.map_err(text)?;
        if check::metadata(&info, MOVED).is_none() {
            return Err(format!(
                "the log of the stream {} was not copied to anywhere: it is served as it is",
                options.stream
            ));
        }
        change(&link, info, until, |metadata| {
            metadata.remove(MOVED);
            metadata.insert(EPOCH.into(), random_text().into());
        })
        .await
    };
    let reopened = reopened.await;
    link.close().await;
    reopened
}
