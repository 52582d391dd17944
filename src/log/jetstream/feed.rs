//! Readers that go on where they were: each has a consumer of its own, which the server keeps at its place.
//!
//! Asked for a range directly, a server looks up each message by itself; a consumer streams them, ten times as fast. It is only ever a faster
//! way: it lives in the memory of one server, acknowledges nothing, and is forgotten when it is not used. Whatever is odd about one (it is
//! gone, it is late, it leaves something out) ends it, and the range is asked for directly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use super::api;
use super::key;
use super::link::{Line, Link};
use super::message::{Stored, random_text};
use crate::event::Seq;
use crate::sync::lock;

/// Readers that are kept at their places.
const FEEDS_MAX: usize = 64;

/// The server forgets one that was not used for so long.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// One that does not answer within this is late.
const WITHIN: Duration = Duration::from_secs(2);

/// For fewer events than this no consumer is made.
const EVENTS_MIN: usize = 16;

/// Readers between two reads.
#[derive(Debug, Default)]
pub(super) struct Feeds(Mutex<Vec<Feed>>, AtomicU64);

impl Feeds {
    /// Messages from a Seq on, as far as there are any; `None`: they have to be asked for directly.
    pub async fn some_from(
        &self,
        reader: &Link,
        stream: &str,
        from: Seq,
        (events, bytes): (usize, usize),
        until: Instant,
    ) -> Option<Vec<Stored>> {
        if events < EVENTS_MIN {
            return None;
        }
        let until = until.min(Instant::now() + 2 * WITHIN);
        let cleared = self.1.load(Ordering::SeqCst);
        let mut feed = match self.take(from) {
            Some(feed) => feed,
            None => Feed::open(reader, stream, from, until).await?,
        };
        let found = tokio::time::timeout_at(until, feed.read(stream, events, bytes)).await;
        let found = found.ok().flatten().filter(|found| !found.is_empty())?;
        // What was erased meanwhile may be among it, and among what was asked for ahead.
        self.put(feed, cleared).then_some(found)
    }

    /// The one that goes on at this Seq.
    fn take(&self, from: Seq) -> Option<Feed> {
        let mut feeds = lock(&self.0);
        feeds.retain(|feed| feed.used.elapsed() < IDLE_MAX / 2 && feed.line.is_open());
        let at = feeds.iter().position(|feed| feed.next == from)?;
        Some(feeds.swap_remove(at))
    }

    /// `false`: all were let go of since then.
    fn put(&self, feed: Feed, cleared: u64) -> bool {
        let mut feeds = lock(&self.0);
        if self.1.load(Ordering::SeqCst) != cleared {
            return false;
        }
        if feeds.len() >= FEEDS_MAX
            && let Some((oldest, _)) = feeds.iter().enumerate().min_by_key(|(_, feed)| feed.used)
        {
            feeds.swap_remove(oldest);
        }
        feeds.push(feed);
        true
    }

    /// Lets go of all, and of what is being read.
    pub fn clear(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        lock(&self.0).clear();
    }
}

struct Feed {
    line: Arc<Line>,
    answers: Subscriber,
    inbox: String,
    /// Questions so far.
    asked: u64,
    /// Messages that may still come for the last one.
    outstanding: usize,
    consumer: String,
    /// The first Seq that was not given yet.
    next: Seq,
    /// Messages that the consumer has given: it counts them.
    given: u64,
    used: Instant,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Feed").field(&self.next).finish()
    }
}

impl Feed {
    async fn open(reader: &Link, stream: &str, from: Seq, until: Instant) -> Option<Feed> {
        let line = reader.line(until).await.ok()?;
        let (inbox, answers) = line.listen_apart().await?;
        let consumer = random_text();
        let question = json!({
            "stream_name": stream,
            "config": {
                "name": consumer, "deliver_policy": "by_start_sequence", "opt_start_seq": from.0, "ack_policy": "none",
                "filter_subject": key::events(stream), "num_replicas": 1, "mem_storage": true,
                "inactive_threshold": IDLE_MAX.as_nanos() as u64,
            },
        });
        let subject = format!("CONSUMER.CREATE.{stream}.{consumer}");
        let answer = api::ask(reader, &subject, &question, until).await;
        if let Err(error) = &answer {
            tracing::debug!(%error, "no consumer can be made: what is read is asked for directly");
        }
        answer.ok()?;
        Some(Feed {
            line,
            answers,
            inbox,
            asked: 0,
            outstanding: 0,
            consumer,
            next: from,
            given: 0,
            used: Instant::now(),
        })
    }

    /// Asks for what comes next.
    async fn ask(&mut self, stream: &str, events: usize, bytes: usize) -> Option<()> {
        let question = json!({ "batch": events, "max_bytes": bytes.max(1), "no_wait": true }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{}", self.consumer);
        self.asked += 1;
        self.outstanding = events;
        let inbox = self.inbox_now();
        let asked = self.line.ask_apart(&subject, &inbox, question.into(), bytes as u64);
        asked.await.ok()
    }

    /// Where the last question is answered.
    fn inbox_now(&self) -> String {
        format!("{}.{}", self.inbox, self.asked)
    }

    /// What there is from here on. Where there was as much as was asked for, the next is asked for ahead.
    async fn read(&mut self, stream: &str, events: usize, bytes: usize) -> Option<Vec<Stored>> {
        let (mut found, mut len, mut has_asked) = (Vec::new(), 0, false);
        while found.len() < events && (len < bytes || found.is_empty()) {
            if self.outstanding == 0 {
                if has_asked {
                    break;
                }
                has_asked = true;
                self.ask(stream, events - found.len(), bytes).await?;
            }
            let answer = tokio::time::timeout(WITHIN, self.answers.next()).await.ok()??;
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // The end of an earlier one.
                Some(_) if answer.subject.as_str() != self.inbox_now() => continue,
                // There are no more, or the next one is too long for what is left.
                Some(404 | 408 | 409) => {
                    self.outstanding = 0;
                    continue;
                }
                Some(_) => return None,
            }
            let (seq, number, stored_at) = place(&answer)?;
            if number != self.given + 1 || seq < self.next.0 {
                return None;
            }
            self.outstanding = self.outstanding.saturating_sub(1);
            (self.given, self.next) = (number, Seq(seq).next());
            let subject = answer.subject.to_string();
            len += answer.payload.len();
            let stored = Stored::new(seq, subject, answer.headers?, answer.payload);
            found.push(stored.at(stored_at));
        }
        if found.len() == events && self.outstanding == 0 {
            self.ask(stream, events, bytes).await?;
        }
        self.used = Instant::now();
        Some(found)
    }
}

/// The Seq of what a consumer gives, its number there, and when the server stored it: `$JS.ACK.STREAM.CONSUMER.TRIES.SEQ.NUMBER.TIME.PENDING`, with a domain and an account
/// behind the second word where there are any.
fn place(message: &Message) -> Option<(u64, u64, Option<Timestamp>)> {
    let reply = message.reply.as_ref()?;
    let words: Vec<&str> = reply.split('.').collect();
    let at = match words.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    let time = words[at + 2]
        .parse()
        .ok()
        .and_then(|time| Timestamp::from_nanosecond(time).ok());
    Some((words[at].parse().ok()?, words[at + 1].parse().ok()?, time))
}
