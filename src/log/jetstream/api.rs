//! What JetStream is asked, and what it says.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::link::{Link, Unanswered};
use super::message::Stored;
use crate::log::{Server, Servers};
use crate::net::nats::Refusal;

/// One try of a question; there are others as long as there is time.
const TRY: Duration = Duration::from_secs(3);

/// Between two tries.
const REST: Duration = Duration::from_millis(100);

/// Why there is no answer, or no good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    Refused(Refusal),
    Unanswered(Unanswered),
    /// The answer is none that JetStream gives.
    Alien,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Unanswered(unanswered) => unanswered.fmt(f),
            Failure::Alien => f.write_str("somebody who is not JetStream answers"),
        }
    }
}

/// What is said of a stream.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Info {
    pub config: Value,
    pub state: State,
    #[serde(default)]
    pub cluster: Option<Peers>,
    /// By the clock of the server that says it.
    #[serde(default)]
    ts: Option<String>,
}

impl Info {
    /// When that was said, by the clock of the server that did.
    pub fn said_at(&self) -> Option<Timestamp> {
        self.ts.as_ref()?.parse().ok()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct State {
    pub messages: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// What damage took, as the leader found it.
    #[serde(default)]
    pub lost: Option<Value>,
    /// Where it was asked for some.
    #[serde(default)]
    pub subjects: Option<BTreeMap<String, u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Peers {
    #[serde(default)]
    pub leader: String,
    #[serde(default)]
    pub replicas: Vec<Peer>,
}

impl Peers {
    /// Servers of which the leader has not heard lately.
    pub fn away(&self) -> Vec<&str> {
        let away = self.replicas.iter().filter(|peer| !peer.is_alive());
        away.map(|peer| peer.name.as_str()).collect()
    }

    /// For people.
    pub fn shown(&self) -> Servers {
        let leader = Some(self.leader.clone()).filter(|name| !name.is_empty());
        let leads = leader.iter().map(|name| (name.clone(), true));
        let follow = self.replicas.iter().map(|peer| (peer.name.clone(), peer.is_alive()));
        let mut servers: Vec<Server> = leads
            .chain(follow)
            .map(|(name, alive)| Server { name, alive })
            .collect();
        servers.sort_by(|one, other| one.name.cmp(&other.name));
        Servers {
            leader,
            servers,
            ..Servers::default()
        }
    }
}

/// A replica that was not heard of for so long is not there.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Peer {
    pub name: String,
    #[serde(default)]
    pub offline: bool,
    /// Nanoseconds since it was heard of.
    #[serde(default)]
    pub active: u64,
}

impl Peer {
    pub fn is_alive(&self) -> bool {
        !self.offline && Duration::from_nanos(self.active) < ALIVE_WITHIN
    }
}

/// Asks JetStream's API until it answers; a leader may have to be found first.
pub(super) async fn ask(link: &Link, what: &str, question: &Value, until: Instant) -> Result<Value, Failure> {
    let text = if question.is_null() {
        String::new()
    } else {
        question.to_string()
    };
    let payload = Bytes::from(text);
    loop {
        let this = until.min(Instant::now() + TRY);
        let failure = match ask_once(link, what, payload.clone(), this).await {
            Err(Failure::Refused(refusal)) if refusal.passes() => Failure::Refused(refusal),
            Err(Failure::Unanswered(why)) if !matches!(why, Unanswered::MayNot(_)) => Failure::Unanswered(why),
            answered => return answered,
        };
        if Instant::now() + REST >= until {
            return Err(failure);
        }
        tokio::time::sleep(REST).await;
    }
}

async fn ask_once(link: &Link, what: &str, payload: Bytes, until: Instant) -> Result<Value, Failure> {
    let subject = format!("$JS.API.{what}");
    let answer = link
        .ask(&subject, HeaderMap::new(), payload, until)
        .await
        .map_err(Failure::Unanswered)?;
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|_| Failure::Alien)?;
    match answer.get("error") {
        None | Some(Value::Null) => Ok(answer),
        Some(error) => Err(Refusal::deserialize(error).map_or(Failure::Alien, Failure::Refused)),
    }
}

/// A stream as its leader knows it. `filter`: how many messages are under which of these subjects is wanted as well.
pub(super) async fn info(link: &Link, stream: &str, filter: Option<&str>, until: Instant) -> Result<Info, Failure> {
    let what = format!("STREAM.INFO.{stream}");
    let Some(filter) = filter else {
        let answer = ask(link, &what, &Value::Null, until).await?;
        return Info::deserialize(answer).map_err(|_| Failure::Alien);
    };
    let mut pages = Pages::default();
    loop {
        let question = json!({ "subjects_filter": filter, "offset": pages.asked });
        if let Some(info) = pages.add(ask(link, &what, &question, until).await?)? {
            return Ok(info);
        }
    }
}

/// What was said of a stream's subjects so far: JetStream gives so many at a time.
#[derive(Debug, Default)]
struct Pages {
    subjects: BTreeMap<String, u64>,
    /// The next page begins behind so many.
    asked: usize,
}

impl Pages {
    /// The next page. Gives what is said of the stream, with the subjects of all pages, once there is no more of them.
    fn add(&mut self, answer: Value) -> Result<Option<Info>, Failure> {
        let total = answer["total"].as_u64();
        let mut info = Info::deserialize(answer).map_err(|_| Failure::Alien)?;
        let page = info.state.subjects.take().unwrap_or_default();
        let is_over = page.is_empty();
        self.asked += page.len();
        self.subjects.extend(page);
        if !is_over && total.is_some_and(|total| (self.asked as u64) < total) {
            return Ok(None);
        }
        info.state.subjects = Some(std::mem::take(&mut self.subjects));
        Ok(Some(info))
    }
}

/// How many subjects of a stream these are, as its leader knows it.
pub(super) async fn count_subjects(link: &Link, stream: &str, filter: &str, until: Instant) -> Result<u64, Failure> {
    // None of them is wanted themselves.
    let question = json!({ "subjects_filter": filter, "offset": 1_u64 << 31 });
    let answer = ask(link, &format!("STREAM.INFO.{stream}"), &question, until).await?;
    answer["total"].as_u64().ok_or(Failure::Alien)
}

/// Removes messages of a stream. `which`: those before `seq`, those of the subjects of `filter`, or both.
pub(super) async fn purge(link: &Link, stream: &str, which: &Value, until: Instant) -> Result<(), Failure> {
    let purged = ask(link, &format!("STREAM.PURGE.{stream}"), which, until).await;
    purged.map(drop)
}

/// Removes one message, and overwrites it on the servers' disks; one that has gone is removed.
pub(super) async fn remove(link: &Link, stream: &str, seq: u64, until: Instant) -> Result<(), Failure> {
    let question = json!({ "seq": seq, "no_erase": false });
    match ask(link, &format!("STREAM.MSG.DELETE.{stream}"), &question, until).await {
        // "sequence not found", or "no message found"; the server has two words for it.
        Err(Failure::Refused(refusal)) if refusal.is_of(&[10043, 10037, 10057]) => {
            let left = message(link, stream, &json!({ "seq": seq }), until).await?;
            if left.is_none() {
                Ok(())
            } else {
                Err(Failure::Refused(refusal))
            }
        }
        other => other.map(drop),
    }
}

/// A message of a stream, by the stream's leader: what is not there is not there. `question`: `seq`, `last_by_subj`, or both `seq` and `next_by_subj`.
pub(super) async fn message(
    link: &Link,
    stream: &str,
    question: &Value,
    until: Instant,
) -> Result<Option<Stored>, Failure> {
    Ok(message_at(link, stream, question, until)
        .await?
        .map(|(message, _)| message))
}

/// The same, with the time at which it was stored.
pub(super) async fn message_at(
    link: &Link,
    stream: &str,
    question: &Value,
    until: Instant,
) -> Result<Option<(Stored, Timestamp)>, Failure> {
    let answer = match ask(link, &format!("STREAM.MSG.GET.{stream}"), question, until).await {
        Ok(answer) => answer,
        Err(Failure::Refused(refusal)) if refusal.is_absence() && refusal.err_code == 10037 => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let found = stored(&answer["message"]).and_then(|found| {
        let at = found.stored_at()?;
        Some((found, at))
    });
    found.map(Some).ok_or(Failure::Alien)
}

fn stored(message: &Value) -> Option<Stored> {
    let bytes = |key: &str| match &message[key] {
        Value::String(text) => STANDARD.decode(text).ok(),
        _ => Some(Vec::new()),
    };
    let (seq, subject) = (message["seq"].as_u64()?, message["subject"].as_str()?);
    let headers = read_headers(&bytes("hdrs")?)?;
    let time = message["time"].as_str().and_then(|time| time.parse().ok());
    Some(Stored::new(seq, subject.to_owned(), headers, bytes("data")?.into()).at(time))
}

/// `NATS/1.0`, and a line for each.
fn read_headers(bytes: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(bytes).ok()?.split("\r\n").skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            headers.append(
                name.parse::<HeaderName>().ok()?,
                value.trim().parse::<HeaderValue>().ok()?,
            );
        }
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_come_page_by_page_and_none_is_left_out() {
        let said = |from: u64, until: u64, total: u64| {
            let subjects: serde_json::Map<String, Value> =
                (from..until).map(|number| (format!("s.{number}"), 1.into())).collect();
            json!({
                "config": {}, "total": total, "offset": from, "limit": 2,
                "state": { "messages": 5, "bytes": 9, "first_seq": 1, "last_seq": 5, "subjects": subjects },
            })
        };
        let mut pages = Pages::default();
        assert!(pages.add(said(0, 2, 5)).unwrap().is_none());
        assert_eq!(pages.asked, 2);
        assert!(pages.add(said(2, 4, 5)).unwrap().is_none());
        assert_eq!(pages.asked, 4);
        let info = pages.add(said(4, 5, 5)).unwrap().unwrap();
        assert_eq!(info.state.subjects.unwrap().len(), 5);
        // Those that went meanwhile come no more.
        let mut pages = Pages::default();
        assert!(pages.add(said(0, 2, 5)).unwrap().is_none());
        assert_eq!(
            pages.add(said(0, 0, 2)).unwrap().unwrap().state.subjects.unwrap().len(),
            2
        );
    }
}
