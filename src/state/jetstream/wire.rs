//! What is asked of the servers, and how values travel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Inner, key};
use crate::net::nats::{Session, Unanswered};
use crate::state::{Expected, Revision};

/// One exchange may take so long; after that another server may know more.
const EXCHANGE: Duration = Duration::from_secs(3);

/// What a put is known by when its answer is lost.
const ID: &str = "Closehook-Put";
/// How a value is packed.
const PACKED: &str = "Closehook-Packed";
const ZSTD: &str = "zstd";
/// What the tools of NATS put in a value's place that they remove.
const OPERATION: &str = "KV-Operation";
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";

/// The stream's newest message of the subject is another one than was expected.
const WRONG_LAST: [u64; 2] = [10071, 10164];
const NOT_FOUND: u64 = 10037;
const NO_STREAM: u64 = 10059;

/// Shorter values are not worth it.
const PACKED_FROM: usize = 1024;
const LEVEL: i32 = 3;
/// Unpacked values are no larger: a message has 64 MiB at the most.
const UNPACKED_MAX: usize = 256 << 20;

/// What headers take up, in the same message as the value.
const HEADERS_MAX: usize = 1024;

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nobody has answered; it may have been done or not.
    Lost(String),
    /// It will not be done.
    Refused(String),
}

/// A key's message.
#[derive(Debug)]
pub(super) struct Found {
    pub revision: Revision,
    /// `None`: a tool of NATS has removed it, and its message says so.
    pub value: Option<Bytes>,
    /// Of the put that made it.
    pub id: String,
    /// By the clock of the server that took it.
    pub stored_at: Option<Timestamp>,
}

impl Found {
    pub fn is_expected(&self, expected: Expected) -> bool {
        match expected {
            Expected::Anything => true,
            Expected::Nothing => self.value.is_none(),
            Expected::Revision(revision) => self.revision == revision && self.value.is_some(),
        }
    }
}

/// An id for a put.
pub(super) fn id() -> Result<String, String> {
    let mut random = [0; 12];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    Ok(hex::encode(random))
}

impl Inner {
    /// The connection there is, or a new one.
    pub(super) async fn session(&self, until: Instant) -> Result<Arc<Session>, Trouble> {
        let late = || Trouble::Lost("there is no connection to a server of NATS yet".into());
        let held = tokio::time::timeout_at(until, self.session.lock()).await;
        let mut held = held.map_err(|_| late())?;
        if let Some(session) = held
            .as_ref()
            .filter(|session| session.end().is_none() && !session.is_leaving())
        {
            return Ok(session.clone());
        }
        *held = None;
        let turn = self.turn.load(Ordering::Relaxed);
        match self.options.way.connect(turn, until).await {
            Ok(session) => {
                let session = Arc::new(session);
                *held = Some(session.clone());
                Ok(session)
            }
            Err(why) => {
                self.turn.fetch_add(1, Ordering::Relaxed);
                Err(Trouble::Lost(why))
            }
        }
    }

    /// One exchange. Where no answer comes the connection is cut, so that what is still on its way stays there.
    async fn exchange(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        until: Instant,
    ) -> Result<Message, Trouble> {
        let session = self.session(until).await?;
        session.expect(2 * session.client().max_payload() as u64);
        let within = EXCHANGE.min(until.saturating_duration_since(Instant::now()));
        let place = session.place().to_owned();
        session
            .ask_with(subject, headers, payload, within)
            .await
            .map_err(|unanswered| match unanswered {
                Unanswered::Nobody => Trouble::Lost(format!(
                    "{place}: nobody answers for the bucket {}: is JetStream enabled there, and has the bucket a leader?",
                    self.options.bucket
                )),
                Unanswered::MayNotAsk => Trouble::Refused(format!("{place}: this side may not publish to {subject}")),
                Unanswered::MayNotHear(inbox) => {
                    Trouble::Refused(format!("{place}: this side may not subscribe to {inbox}"))
                }
                Unanswered::Late => {
                    let why = session.end().unwrap_or_else(|| "no answer came in time".into());
                    session.give_up(&why);
                    self.turn.store(session.number() + 1, Ordering::Relaxed);
                    Trouble::Lost(format!("{place}: {why}"))
                }
            })
    }

    /// Asks JetStream's API about the bucket's stream.
    pub(super) async fn api(&self, what: &str, question: &Value, until: Instant) -> Result<Value, Trouble> {
        let answer = self.api_answer(what, question, until).await?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(self.trouble(error)),
        }
    }

    /// The same; an error that the API says is an answer.
    pub(super) async fn api_answer(&self, what: &str, question: &Value, until: Instant) -> Result<Value, Trouble> {
        let subject = format!("$JS.API.{what}.KV_{}", self.options.bucket);
        let answer = self
            .exchange(&subject, HeaderMap::new(), question.to_string().into(), until)
            .await?;
        parsed(&answer.payload)
    }

    pub(super) fn trouble(&self, error: &Value) -> Trouble {
        let said = error["description"].as_str().unwrap_or_default();
        let bucket = &self.options.bucket;
        match (error["err_code"].as_u64(), error["code"].as_u64()) {
            (Some(NO_STREAM), _) => Trouble::Refused(format!(
                "there is no bucket {bucket}: `closehook check --create` makes it"
            )),
            // Its leader is being elected, or a server is just starting.
            (_, Some(503 | 408 | 429)) => Trouble::Lost(format!("the bucket {bucket} can't be used now: {said}")),
            _ => Trouble::Refused(format!("the bucket {bucket}: the server says \"{said}\"")),
        }
    }

    /// A key's message, as the stream's leader has it.
    pub(super) async fn find(&self, key: &str, until: Instant) -> Result<Option<Found>, Trouble> {
        let question = json!({ "last_by_subj": key::subject(&self.options.bucket, key) });
        let answer = self.api_answer("STREAM.MSG.GET", &question, until).await?;
        if let Some(error) = answer.get("error") {
            return match error["err_code"].as_u64() {
                Some(NOT_FOUND) => Ok(None),
                _ => Err(self.trouble(error)),
            };
        }
        found(&answer["message"])
            .map(Some)
            .map_err(|why| Trouble::Refused(format!("\"{key}\" in the bucket {}: {why}", self.options.bucket)))
    }

    /// Publishes a value in the place of the message `before`. `None`: another one is there.
    pub(super) async fn publish(
        &self,
        key: &str,
        value: &Bytes,
        before: u64,
        id: &str,
        until: Instant,
    ) -> Result<Option<Revision>, Trouble> {
        let session = self.session(until).await?;
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, before.to_string());
        headers.insert(ID, id);
        let payload = pack(value, &mut headers);
        let room = session.client().max_payload().saturating_sub(HEADERS_MAX);
        if payload.len() > room {
            return Err(Trouble::Refused(format!(
                "\"{key}\" is {} bytes (packed), and a message may have {room}: raise max_payload of the NATS servers",
                payload.len()
            )));
        }
        let subject = key::subject(&self.options.bucket, key);
        let answer = parsed(&self.exchange(&subject, headers, payload, until).await?.payload)?;
        if let Some(error) = answer.get("error") {
            let is_conflict = error["err_code"]
                .as_u64()
                .is_some_and(|code| WRONG_LAST.contains(&code));
            return if is_conflict {
                Ok(None)
            } else {
                Err(self.trouble(error))
            };
        }
        let stored = answer["seq"].as_u64().filter(|seq| *seq > 0);
        let strange = || Trouble::Lost("the answer to a put says no sequence".into());
        stored.map(|seq| Some(Revision(seq))).ok_or_else(strange)
    }

    /// Takes a key's message away if it is this one still. `false`: it is not there.
    pub(super) async fn purge(&self, key: &str, revision: Revision, until: Instant) -> Result<bool, Trouble> {
        // What came in its place has a higher sequence, and stays.
        let question = json!({ "filter": key::subject(&self.options.bucket, key), "seq": revision.0 + 1 });
        let answer = self.api("STREAM.PURGE", &question, until).await?;
        Ok(answer["purged"].as_u64().is_some_and(|purged| purged > 0))
    }
}

fn parsed(payload: &[u8]) -> Result<Value, Trouble> {
    serde_json::from_slice(payload).map_err(|_| Trouble::Lost("the server's answer can't be read".into()))
}

fn pack(value: &Bytes, headers: &mut HeaderMap) -> Bytes {
    if value.len() < PACKED_FROM {
        return value.clone();
    }
    match zstd::bulk::compress(value, LEVEL) {
        Ok(packed) if packed.len() < value.len() => {
            headers.insert(PACKED, ZSTD);
            packed.into()
        }
        _ => value.clone(),
    }
}

/// What the API says of a message.
fn found(message: &Value) -> Result<Found, String> {
    let decoded = |key: &str| {
        let text = message[key].as_str().unwrap_or_default();
        STANDARD.decode(text).map_err(|_| format!("its {key} can't be read"))
    };
    let seq = message["seq"].as_u64().ok_or("it has no sequence")?;
    let head = String::from_utf8(decoded("hdrs")?).map_err(|_| "its headers can't be read")?;
    let header = |wanted: &str| {
        let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| *name == wanted).map(|(_, value)| value.trim())
    };
    let data = decoded("data")?;
    let value = match (header(OPERATION), header(PACKED)) {
        (Some(_), _) => None,
        (None, None) => Some(data),
        (None, Some(ZSTD)) => Some(unpack(&data)?),
        (None, Some(other)) => return Err(format!("it is packed as {other}, which only a newer closehook knows")),
    };
    Ok(Found {
        revision: Revision(seq),
        value: value.map(Bytes::from),
        id: header(ID).unwrap_or_default().to_owned(),
        stored_at: message["time"].as_str().and_then(|time| time.parse().ok()),
    })
}

fn unpack(data: &[u8]) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let damaged = |_| "it is damaged".to_owned();
    let mut value = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(data).map_err(damaged)?;
    let read = decoder
        .take(UNPACKED_MAX as u64 + 1)
        .read_to_end(&mut value)
        .map_err(damaged)?;
    if read > UNPACKED_MAX {
        return Err("it is larger than anything closehook puts there".into());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &HeaderMap, data: &[u8]) -> Value {
        let mut head = "NATS/1.0\r\n".to_owned();
        for (name, values) in headers.iter() {
            for value in values {
                head = format!("{head}{name}: {}\r\n", value.as_str());
            }
        }
        json!({ "seq": 7, "hdrs": STANDARD.encode(head + "\r\n"), "data": STANDARD.encode(data) })
    }

    #[test]
    fn a_large_value_travels_packed_and_comes_back() {
        for len in [0, 1, PACKED_FROM - 1, PACKED_FROM, 300_000] {
            let value = Bytes::from(vec![b'x'; len]);
            let mut headers = HeaderMap::new();
            headers.insert(ID, "abc");
            let packed = pack(&value, &mut headers);
            assert!(len < PACKED_FROM || packed.len() < len / 10);
            let found = found(&message(&headers, &packed)).unwrap();
            assert_eq!(
                (found.value, found.id.as_str(), found.revision),
                (Some(value), "abc", Revision(7))
            );
        }
    }

    #[test]
    fn what_a_tool_has_removed_is_nothing_and_what_cant_be_read_is_an_error() {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, "DEL");
        assert_eq!(found(&message(&headers, b"")).unwrap().value, None);
        let mut headers = HeaderMap::new();
        headers.insert(PACKED, "lz9");
        assert!(found(&message(&headers, b"x")).unwrap_err().contains("newer"));
        headers.insert(PACKED, ZSTD);
        assert!(found(&message(&headers, b"x")).unwrap_err().contains("damaged"));
        assert!(found(&json!({ "seq": 1, "hdrs": "?" })).is_err());
    }
}
