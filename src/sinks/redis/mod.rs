//! `redis`: an entry for each event in a stream of Redis or Valkey, exactly once while the server keeps its data.
//!
//! A batch is one run of a script (`script.lua`), which the server does without doing anything else meanwhile: it adds the entries and
//! moves this sink's mark, a hash under `closehook:mark:LOG:SINK`, or does neither. The mark has a fence, which is another one after each
//! commit and after each opening.
//!
//! | what happens | what follows |
//! |---|---|
//! | a commit whose answer was lost, kill -9 of either side | [`SinkKind::open`] reads the mark back, which tells whether it happened |
//! | an old connection, another daemon with the same mark, a server put back while it is connected | the mark's fence is not the one it read: nothing of its batch is added |
//! | a server that has lost data with its mark | the mark counts less, or is missing, and the engine goes by that |
//! | consumers delete entries, or `maxlen` does | nothing: the mark is no entry |
//! | an entry that can't be added | the script takes back what it has done, the event is refused, and the others are tried again |
//! | a key that the event has chosen, of another kind or not allowed | the events for that key are refused |
//! | a node of a cluster that has not the slot | the one that has it is connected to |
//! | anything else (connection, login, rights, memory, disk) | the sink is unavailable, and costs no event an attempt |
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it and its keys |
//! | `url` | where the server is |
//! | `session` | a connection |
//! | `answer` | what an error means |
//! | `entry` | what an event is there |
//! | `script` | what the script is told, and what it says |
//! | `writer` | delivering |

mod answer;
pub(super) mod definition;
mod entry;
mod script;
mod session;
mod url;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustls::ClientConfig;
use sha2::Digest as _;

use self::entry::Entry;
use self::session::{Failed, Login, Session};
use self::url::{At, Place};
use self::writer::{Open, Redis};
use super::common::identity;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Mark, Opened, Outcome, Preview, Reason, Sink, SinkKind,
    Unavailable,
};
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::net::tls::{self, Identity, content};
use crate::net::trust::{self, Name, Trust};
use crate::render::{Escape, Template};

/// What the keys of marks begin with.
const MARKS: &str = "closehook:mark:";

/// Entries that a script adds, at the most: all its texts are values in Lua at a time.
const ENTRIES_MAX: usize = 2000;

/// Nodes of a cluster that send from one to the other.
const MOVES_MAX: usize = 5;

#[derive(Debug)]
struct Options {
    place: Place,
    username: Option<String>,
    password: Option<Secret>,
    stream: Template,
    maxlen: Option<u64>,
    batch: Limits,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let url: Option<String> = table.needed("url");
    let username: Option<String> = table.optional("username");
    let password = table.secret("password");
    let has_stream = table.has("stream");
    let stream = table.template("stream", Escape::None);
    if !has_stream {
        table.report_missing("stream");
    }
    let maxlen: Option<u64> = table.optional("maxlen");
    let batch = table.table("batch", |table| Limits {
        events: table.within("events", 500, 1, ENTRIES_MAX),
        bytes: table.within("bytes", Size(2 << 20), Size(1), Size(64 << 20)).0 as usize,
        wait: table.or("wait", Span(Duration::ZERO)).0,
    });
    let [ca, cert, key] = ["ca", "cert", "key"].map(|key| table.optional::<PathBuf>(key));
    let paths = [&ca, &cert, &key];
    // What is in files counts as it is now: a reload has to see that it is another.
    let digest = sha2::Sha256::digest(format!(
        "{url:?}\n{username:?}\n{:?}\n{stream:?}\n{maxlen:?}\n{batch:?}\n{paths:?}\n{:?}",
        password.as_ref().map(Secret::fingerprint),
        paths
            .into_iter()
            .flatten()
            .map(|path| content(path))
            .collect::<Vec<_>>(),
    ));
    if maxlen == Some(0) {
        table.fault("maxlen", "must be at least 1: each entry would go as soon as it comes");
    }
    if let Some(stream) = stream.as_ref().filter(|stream| stream.is_constant()) {
        check_stream(table, stream.source());
    }
    let place = Place::parse(&url?).map_err(|error| table.fault("url", error)).ok();
    if let Some(place) = &place {
        check_login(table, place, username.as_deref(), password.is_some());
        if !matches!(place.at, At::Host { tls: true, .. }) {
            for (key, path) in [("ca", &ca), ("cert", &cert), ("key", &key)] {
                if path.is_some() {
                    table.fault(key, "is for a server with TLS: write rediss:// in url, or leave it out");
                }
            }
        }
    }
    let identity = identity::of(table, cert, key);
    let place = place?;
    Some(Arc::new(Options {
        username: username.or_else(|| place.username.clone()),
        place,
        password,
        stream: stream?,
        maxlen,
        batch,
        ca,
        identity,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

fn check_stream(table: &mut Table<'_>, name: &str) {
    if name.is_empty() {
        table.fault("stream", "is empty: name the stream's key");
    } else if name.starts_with(MARKS) {
        table.fault(
            "stream",
            format!("begins with {MARKS}, which marks do: choose another name"),
        );
    }
}

/// What is said of the login in `url` and beside it.
fn check_login(table: &mut Table<'_>, place: &Place, username: Option<&str>, has_password: bool) {
    if username.is_some() && place.username.is_some() {
        table.fault("username", "is in url too: keep one of them");
    }
    if has_password && place.password.is_some() {
        table.fault("password", "is in url too: keep one of them (better not that in url)");
    }
    let has_username = username.is_some() || place.username.is_some();
    if has_username && !has_password && place.password.is_none() {
        table.fault(
            "password",
            "is missing: set password_file, password_env or password beside the user",
        );
    }
}

/// The part of keys that says in which slot of a cluster they are, if it is the same whatever the event is: the first one in braces, as
/// in `{close}:{{ object_type }}`.
fn slot(stream: &Template) -> Option<&str> {
    let source = stream.source();
    let ends = ["{{", "{%", "{#"].into_iter().filter_map(|mark| source.find(mark));
    let constant = if stream.is_constant() {
        source
    } else {
        &source[..ends.min().unwrap_or(source.len())]
    };
    let (_, rest) = constant.split_once('{')?;
    let (slot, _) = rest.split_once('}')?;
    Some(slot).filter(|slot| !slot.is_empty())
}

/// Where the mark of a sink of a log is.
fn mark_key(stream: &Template, context: &Context) -> String {
    let slot = slot(stream).map(|slot| format!("{{{slot}}}:")).unwrap_or_default();
    format!("{MARKS}{slot}{}:{}", context.log_id, context.name)
}

impl Options {
    fn login(&self) -> Result<Login, String> {
        let own = self.password.as_ref().map(Secret::resolve).transpose()?;
        Ok(Login {
            username: self.username.clone(),
            password: own.or_else(|| self.place.password.clone()),
        })
    }

    /// Whom to trust. Reads files.
    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let trust = match self.place.at {
            At::Host { tls: true, .. } => Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?,
            // It is used for nothing.
            _ => Trust::Anybody,
        };
        Ok(Arc::new(tls::client_config_with(trust, self.identity.as_ref())?))
    }

    fn open(&self) -> Result<Open, String> {
        Ok(Open::new(self.place.clone(), self.login()?, self.tls()?))
    }

    /// The mark, and the stream if it is the same for every event.
    fn keys<'k>(&'k self, mark_key: &'k str) -> Vec<&'k str> {
        let stream = Some(self.stream.source()).filter(|_| self.stream.is_constant());
        std::iter::once(mark_key).chain(stream).collect()
    }
}

/// What a call may take: less than the engine waits, as whoever gives up first says best why.
fn patience(timeout: Duration) -> Duration {
    timeout.mul_f64(0.9)
}

fn silent(patience: Duration) -> Unavailable {
    Unavailable::new(format!(
        "the server did not answer within {:.1} s: does it run, and is the way to it open?",
        patience.as_secs_f64()
    ))
}

/// Keys that all events have in common are no streams, or no mark.
fn taken(keys: &[&str], others: &[(usize, String)]) -> Unavailable {
    let (key, kind) = others.first().map_or(("", ""), |(number, kind)| {
        (keys.get(*number).copied().unwrap_or_default(), kind.as_str())
    });
    let key = crate::plain::line(key);
    Unavailable::new(format!(
        "the key {key} holds a {kind} there, which is something else: rename that, or set another stream"
    ))
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            concurrency: 1,
            commit: Commit::Transaction,
        }
    }

    fn fault(&self) -> Option<String> {
        self.open().err()
    }

    fn templates(&self) -> Vec<(String, Template)> {
        vec![("stream".to_owned(), self.stream.clone())]
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        entry::body(delivery).clone()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let entry = Entry::of(delivery, &self.stream)?;
        Ok(Preview {
            subject: Some(entry.stream.to_owned()),
            ..Preview::new(entry.fields, entry.body.clone())
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let patience = patience(context.timeout);
        let opening = async {
            let mut open = self.open().map_err(Unavailable::new)?;
            let mark_key = mark_key(&self.stream, &context);
            let keys = self.keys(&mark_key);
            let mark = open.claim(&keys).await?;
            Ok((Redis::new(open, mark_key, self, &context.name, patience), mark))
        };
        let opened = tokio::time::timeout(patience, opening).await;
        let (sink, mark) = opened.map_err(|_| silent(patience))??;
        Ok(Opened {
            sink: Box::new(sink),
            mark,
            position: None,
        })
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let patience = patience(context.timeout);
        let looking = async {
            let mut open = self.open().map_err(Unavailable::new)?;
            let mark_key = mark_key(&self.stream, &context);
            let is_there = open.look(&self.keys(&mark_key)).await?;
            let seen = match (self.stream.is_constant(), is_there) {
                (true, true) => format!("the stream {} is there and can be written", self.stream.source()),
                (true, false) => format!(
                    "the server answers; the first event makes the stream {}",
                    self.stream.source()
                ),
                (false, _) => {
                    "the server can be written; its streams depend on the event and were not looked at".into()
                }
            };
            Ok(seen + &open.warnings().await)
        };
        let seen = tokio::time::timeout(patience, looking).await;
        seen.map_err(|_| silent(patience))?
    }
}

#[cfg(test)]
mod tests;
