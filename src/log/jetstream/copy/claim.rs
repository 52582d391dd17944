//! Whose a stream is: which log its configuration says that it holds, that is being copied into it, or that has gone from it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::api::{self, Info};
use super::super::check::{self, COPY, EPOCH, ID, MOVED};
use super::super::key;
use super::super::link::Link;
use super::super::message::random_text;
use super::super::settings::Options;
use super::{PATIENCE, text};
use crate::event::Seq;

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

/// Whether the stream holds all of a log, and is served; an error says why the log can't be copied into it.
pub async fn holds(options: &Options, origin: &Origin) -> Result<bool, String> {
    let link = check::link(options);
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
    let link = check::link(options);
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

/// Whether a stream that is served holds this log, whichever lives of it: what of one is not in the other is told by what is in them.
pub(super) fn is_of(info: &Info, origin: &Origin) -> bool {
    check::identity(info).is_some_and(|(id, _)| id == origin.id)
}

/// Whether it may be copied into a stream; true where that begins now.
pub(super) fn may_begin(stream: &str, info: &Info, origin: &Origin) -> Result<bool, String> {
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

/// The stream of dead letters is the log's that is copied. One that another log has used is refused.
pub(super) async fn bind_letters(link: &Link, letters: Info, id: &str, until: Instant) -> Result<(), String> {
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

/// Changes what stands in a stream's metadata.
pub(super) async fn change(
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

/// What events and notes of erasures are stored under. Without it nobody stores anything, not even a node that stood still when it was
/// looked who runs.
fn subjects(stream: &str, takes_events: bool) -> Value {
    if takes_events {
        json!([key::events(stream), key::erasures(stream)])
    } else {
        json!([format!("{stream}.moved")])
    }
}
