//! Records of topics in a stream of their own: `STREAM_dead.TOPIC.NAME`. See [`crate::state::journal`].
//!
//! The servers themselves compare where a topic ends (`Nats-Expected-Last-Subject-Sequence`, for all subjects of the topic), and what is
//! appended together is one atomic batch. Each append has a name of its own in its messages: whoever lost the answer tries again, is refused
//! if it was stored, and finds its own name there. A record that is too long for one message is several, side by side in its batch.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{self, Failure};
use super::append::{Verdict, judged};
use super::check;
use super::fetch::Collected;
use super::key;
use super::link::{Line, Link, Unanswered};
use super::message::{APPEND, CHECKSUM, EXPECTED, Stored, checksum, random_text};
use super::settings::Options;
use crate::state::journal::{Content, Journal, JournalError, Kept, Page, Record};

/// Whoever waits does so no longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// One try; there are others as long as there is time.
const TRY: Duration = Duration::from_secs(4);

/// Between two tries.
const REST: Duration = Duration::from_millis(50);

/// Messages and bytes of one question, at the most.
const MESSAGES_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;

/// Of a message beside its payload.
const OVERHEAD: usize = 4096;

/// The subjects of which the last Seq is compared.
const EXPECTED_OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

const TAG: &str = "Closehook-Tag";
/// Of the first message of a record: how many it is.
const PARTS: &str = "Closehook-Parts";

/// See the module's head. Nobody is contacted before something is asked.
#[derive(Debug, Clone)]
pub struct StreamJournal {
    link: Arc<Link>,
    stream: String,
}

fn failing(failure: impl std::fmt::Display) -> JournalError {
    JournalError::Failing(failure.to_string())
}

/// What is to be sent of an append.
struct Letter {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl StreamJournal {
    /// The journal of the log that is kept so.
    pub fn new(options: &Options) -> StreamJournal {
        StreamJournal {
            link: Arc::new(check::link(options)),
            stream: key::dead_stream(&options.stream),
        }
    }

    fn all_of(&self, topic: &str) -> String {
        format!("{}.>", key::topic(&self.stream, topic))
    }

    async fn message(&self, question: &Value, until: Instant) -> Result<Option<Stored>, JournalError> {
        let found = api::message(&self.link, &self.stream, question, until).await;
        found.map_err(failing)
    }

    /// Where a topic ends, as the stream's leader knows it.
    async fn end(&self, topic: &str, until: Instant) -> Result<u64, JournalError> {
        let last = self
            .message(&json!({ "last_by_subj": self.all_of(topic) }), until)
            .await?;
        Ok(last.map_or(0, |last| last.seq))
    }

    /// Messages of a topic from a Seq on, as a replica has them.
    async fn some(&self, topic: &str, from: u64, until: Instant) -> Result<Vec<Stored>, JournalError> {
        let question = json!({
            "seq": from, "next_by_subj": self.all_of(topic), "batch": MESSAGES_MAX, "max_bytes": BYTES_MAX,
        });
        let question = Bytes::from(question.to_string());
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let mut collected = Collected::default();
        let line = self.link.line(until).await.map_err(failing)?;
        let may_come = (BYTES_MAX + MESSAGES_MAX * OVERHEAD + line.max_payload()) as u64;
        let this = until.min(Instant::now() + TRY);
        let asked = line
            .ask_many(&subject, question, may_come, this, &mut |message| {
                collected.take(message)
            })
            .await;
        if asked == Err(Unanswered::Nobody) {
            self.link.turn(&line).await;
        }
        let Collected { found, fault } = collected;
        match (asked, fault) {
            (Ok(()), None) => Ok(found),
            // What came is in order and whole as far as it goes.
            (Err(_), _) if !found.is_empty() => Ok(found),
            (Err(why), _) => Err(failing(why)),
            (_, Some(fault)) => Err(failing(fault)),
        }
    }

    /// What an append sends, and how many messages each record is.
    fn letters(&self, topic: &str, records: &[Record], end: u64, room: usize) -> (Vec<Letter>, Vec<u32>) {
        let (mut letters, mut lens) = (Vec::new(), Vec::new());
        let append = random_text();
        for record in records {
            let subject = format!("{}.{}", key::topic(&self.stream, topic), record.name);
            let mut parts = Vec::new();
            let mut rest = record.payload.clone();
            while parts.is_empty() || !rest.is_empty() {
                parts.push(rest.split_to(rest.len().min(room)));
            }
            lens.push(parts.len() as u32);
            for (number, payload) in parts.iter().enumerate() {
                let mut headers = HeaderMap::new();
                headers.insert(TAG, record.tag.to_string());
                headers.insert(APPEND, append.as_str());
                headers.insert(CHECKSUM, checksum(payload));
                let of = if number == 0 { parts.len() } else { 0 };
                headers.insert(PARTS, of.to_string());
                if letters.is_empty() {
                    headers.insert(EXPECTED, end.to_string());
                    headers.insert(EXPECTED_OF, self.all_of(topic));
                }
                letters.push(Letter {
                    subject: subject.clone(),
                    headers,
                    payload: payload.clone(),
                });
            }
        }
        (letters, lens)
    }

    /// Sends them in one batch; the Seq of the first.
    async fn send(line: &Arc<Line>, letters: &[Letter], until: Instant) -> Result<Verdict, Unanswered> {
        let this = until.min(Instant::now() + TRY);
        if let [only] = letters {
            let asked = line.ask(&only.subject, only.headers.clone(), only.payload.clone(), this);
            return Ok(judged(&asked.await?));
        }
        let batch = random_text();
        for (index, letter) in letters.iter().enumerate() {
            let mut headers = letter.headers.clone();
            headers.insert("Nats-Batch-Id", batch.as_str());
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            if index + 1 < letters.len() {
                line.tell(&letter.subject, headers, letter.payload.clone()).await?;
                continue;
            }
            headers.insert("Nats-Batch-Commit", "1");
            let answer = line.ask(&letter.subject, headers, letter.payload.clone(), this).await?;
            return Ok(match judged(&answer) {
                Verdict::Stored(last) => Verdict::Stored((last + 1).saturating_sub(letters.len() as u64)),
                other => other,
            });
        }
        Ok(Verdict::Later("there is nothing to send".into()))
    }

    /// Where an append is that was refused because the topic has gone on: it may be this very one.
    async fn own(
        &self,
        topic: &str,
        letters: &[Letter],
        end: u64,
        until: Instant,
    ) -> Result<Option<u64>, JournalError> {
        let question = json!({ "seq": end + 1, "next_by_subj": self.all_of(topic) });
        let next = self.message(&question, until).await?;
        let own = letters.first().and_then(|letter| letter.headers.get(APPEND));
        Ok(next
            .filter(|next| own.is_some_and(|own| own.as_str() == next.header(APPEND).unwrap_or_default()))
            .map(|next| next.seq))
    }

    /// Appends until it is known what became of it; the Seq of the first message.
    async fn put(&self, topic: &str, letters: &[Letter], end: u64, until: Instant) -> Result<u64, JournalError> {
        // Something was sent of which it is not known what came of it.
        let mut is_unsure = false;
        loop {
            let why = match self.link.line(until).await {
                Err(why) => why.to_string(),
                Ok(line) => match StreamJournal::send(&line, letters, until).await {
                    Ok(Verdict::Stored(seq)) => return Ok(seq),
                    Ok(Verdict::Known(_)) => match self.own(topic, letters, end, until).await {
                        Ok(Some(seq)) => return Ok(seq),
                        Ok(None) if self.end(topic, until).await.is_ok_and(|now| now != end) => {
                            return Err(JournalError::Behind);
                        }
                        // Another one is on its way only.
                        Ok(None) => "another one is just being stored".to_owned(),
                        Err(why) => {
                            is_unsure = true;
                            why.to_string()
                        }
                    },
                    Ok(Verdict::Full(why)) if !is_unsure => return Err(JournalError::Full(why)),
                    Ok(Verdict::Never(why)) if !is_unsure => return Err(JournalError::Failing(why)),
                    Ok(Verdict::Full(why) | Verdict::Never(why) | Verdict::Later(why)) => why,
                    Err(why) => {
                        is_unsure = true;
                        if why == Unanswered::Nobody {
                            self.link.turn(&line).await;
                        }
                        why.to_string()
                    }
                },
            };
            if Instant::now() + REST >= until {
                return Err(if is_unsure {
                    JournalError::Unsure(why)
                } else {
                    JournalError::Failing(why)
                });
            }
            tokio::time::sleep(REST).await;
        }
    }
}

/// How many messages the record is that begins with one; `Some(0)`: none does, it is a later part.
fn parts_of(message: &Stored) -> Option<u32> {
    message.header(PARTS).and_then(|len| len.parse().ok())
}

/// A record that begins with a message, of which these are the ones behind it, as far as they are known; `None`: those end too early to
/// tell.
fn kept(first: &Stored, behind: &[Stored]) -> Option<Kept> {
    let kept = |len: u32, tag: Option<u32>, content: Content| Kept {
        place: first.seq,
        len,
        tag: tag.unwrap_or_default(),
        content,
    };
    let (len, tag) = (parts_of(first), first.header(TAG).and_then(|tag| tag.parse().ok()));
    if len == Some(0) {
        // Parts are removed from the first on.
        return Some(kept(1, tag, Content::Rest));
    }
    let wanted = len.unwrap_or(1) as usize - 1;
    let is_part = |(place, part): &(u64, &Stored)| {
        part.seq == *place && part.subject == first.subject && parts_of(part) == Some(0)
    };
    let parts = (first.seq + 1..).zip(behind).take(wanted).take_while(is_part);
    let all: Vec<&Stored> = std::iter::once(first).chain(parts.map(|(_, part)| part)).collect();
    if all.len() <= wanted && all.len() > behind.len() {
        return None;
    }
    let is_whole = len.is_some() && tag.is_some() && all.len() > wanted;
    let is_whole = is_whole
        && all
            .iter()
            .all(|part| part.header(CHECKSUM) == Some(checksum(&part.payload).as_str()));
    let content = if is_whole {
        let mut payload = BytesMut::new();
        for part in &all {
            payload.extend_from_slice(&part.payload);
        }
        Content::Whole(payload.freeze())
    } else {
        Content::Damaged
    };
    Some(kept(all.len() as u32, tag, content))
}

#[async_trait]
impl Journal for StreamJournal {
    fn name(&self) -> String {
        format!("the stream {}", self.stream)
    }

    async fn read(&self, topic: &str, behind: u64) -> Result<Page, JournalError> {
        let until = Instant::now() + PATIENCE;
        let end = self.end(topic, until).await?;
        let mut page = Page {
            records: Vec::new(),
            end,
        };
        while page.records.is_empty() && behind < end {
            let found = self.some(topic, behind + 1, until).await?;
            let mut at = 0;
            while let Some(first) = found.get(at) {
                let Some(record) = kept(first, &found[at + 1..]) else {
                    break;
                };
                at += record.len as usize;
                page.records.push(record);
            }
            // A record that is longer than one answer.
            if page.records.is_empty()
                && let Some(first) = found.first()
            {
                page.records.extend(self.get(topic, first.seq).await?);
            }
            if page.records.is_empty() {
                // The leader has something, the replica will.
                if Instant::now() + REST >= until {
                    return Err(failing("a server is behind the others and does not catch up"));
                }
                tokio::time::sleep(REST).await;
            }
        }
        Ok(page)
    }

    async fn get(&self, topic: &str, place: u64) -> Result<Option<Kept>, JournalError> {
        let until = Instant::now() + PATIENCE;
        let Some(first) = self.message(&json!({ "seq": place }), until).await? else {
            return Ok(None);
        };
        let begins = format!("{}.", key::topic(&self.stream, topic));
        if !first.subject.starts_with(&begins) {
            return Ok(None);
        }
        let len = u64::from(parts_of(&first).unwrap_or(1));
        let mut behind = Vec::new();
        for seq in place + 1..place + len.max(1) {
            match self.message(&json!({ "seq": seq }), until).await? {
                Some(part) => behind.push(part),
                // It is just being removed, from its first part on; or a part was lost.
                None if self.message(&json!({ "seq": place }), until).await?.is_none() => return Ok(None),
                None => {
                    return Ok(Some(Kept {
                        place,
                        len: (seq - place) as u32,
                        tag: 0,
                        content: Content::Damaged,
                    }));
                }
            }
        }
        Ok(kept(&first, &behind))
    }

    async fn append(&self, topic: &str, records: &[Record], end: u64) -> Result<Vec<(u64, u32)>, JournalError> {
        let until = Instant::now() + PATIENCE;
        let room = self.link.line(until).await.map_err(failing)?.max_payload();
        let room = room.saturating_sub(OVERHEAD).max(OVERHEAD);
        let (letters, lens) = self.letters(topic, records, end, room);
        let mut place = self.put(topic, &letters, end, until).await?;
        let each = |len: u32| {
            let this = (place, len);
            place += u64::from(len);
            this
        };
        Ok(lens.into_iter().map(each).collect())
    }

    async fn remove(&self, place: u64, len: u32) -> Result<(), JournalError> {
        let until = Instant::now() + PATIENCE;
        for seq in place..place + u64::from(len) {
            api::remove(&self.link, &self.stream, seq, until)
                .await
                .map_err(failing)?;
        }
        Ok(())
    }

    async fn forget(&self, topic: &str) -> Result<(), JournalError> {
        let until = Instant::now() + PATIENCE;
        let which = json!({ "filter": self.all_of(topic) });
        let purged = api::purge(&self.link, &self.stream, &which, until).await;
        purged.map_err(failing)
    }

    async fn topics(&self) -> Result<Vec<String>, JournalError> {
        let until = Instant::now() + PATIENCE;
        let notes = format!("{}.*.note", self.stream);
        let info = api::info(&self.link, &self.stream, Some(&notes), until).await;
        let info = match info {
            Ok(info) => info,
            Err(Failure::Refused(refusal)) if refusal.is_absence() => {
                return Err(JournalError::Failing(format!(
                    "there is no stream {}: make it with `closehook check --create`",
                    self.stream
                )));
            }
            Err(failure) => return Err(failing(failure)),
        };
        let subjects = info.state.subjects.unwrap_or_default();
        let topics = subjects
            .keys()
            .filter_map(|subject| key::topic_of(&self.stream, subject));
        Ok(topics.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of a topic: the first of so many, or a later part.
    fn message(seq: u64, parts: u32, text: &str) -> Stored {
        let mut headers = HeaderMap::new();
        headers.insert(TAG, "3");
        headers.insert(PARTS, parts.to_string());
        headers.insert(CHECKSUM, checksum(text.as_bytes()));
        Stored::new(seq, "s_dead.topic.7".into(), headers, Bytes::from(text.to_owned()))
    }

    fn is(len: u32, content: Content) -> Kept {
        Kept {
            place: 5,
            len,
            tag: 3,
            content,
        }
    }

    #[test]
    fn a_record_is_what_its_parts_say_side_by_side() {
        let whole = |text: &'static str| Content::Whole(Bytes::from(text));
        let first = message(5, 3, "a");
        let (second, third, next) = (message(6, 0, "b"), message(7, 0, "c"), message(8, 1, "z"));
        let all = [second.clone(), third.clone(), next.clone()];
        assert_eq!(kept(&first, &all), Some(is(3, whole("abc"))));
        assert_eq!(kept(&message(5, 1, "a"), &all[2..]), Some(is(1, whole("a"))));
        assert_eq!(kept(&first, &all[..1]), None, "the rest may come");
        assert_eq!(kept(&first, &[]), None);
        // What lies behind a part that was lost is another record's.
        assert_eq!(
            kept(&first, &[second.clone(), next.clone()]),
            Some(is(2, Content::Damaged))
        );
        assert_eq!(
            kept(&first, &[third.clone(), next.clone()]),
            Some(is(1, Content::Damaged))
        );
        assert_eq!(
            kept(&first, &[message(6, 2, "b"), third]),
            Some(is(1, Content::Damaged))
        );
        let mut changed = second;
        changed.payload = Bytes::from("B");
        assert_eq!(
            kept(&first, &[changed, message(7, 0, "c")]),
            Some(is(3, Content::Damaged))
        );
    }

    #[test]
    fn what_an_interrupted_removal_has_left_is_no_damage() {
        assert_eq!(
            kept(&message(5, 0, "b"), &[message(6, 0, "c")]),
            Some(is(1, Content::Rest))
        );
    }
}
