//! Fetching messages from whichever replica is near, checked against the leader where something is not there.
//!
//! A replica holds the beginning of what is committed, so what it gives is right as far as it goes; but it may not have all yet. That
//! something is *not* there is therefore only ever said by the leader. What a replica's disk has changed is found by the checksum and read
//! from the others.

use std::time::Duration;

use async_nats::Message;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api;
use super::key;
use super::link::Unanswered;
use super::message::Stored;
use super::shared::Shared;
use crate::event::{Event, Seq};
use crate::log::ReadError;

/// Whoever reads waits so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions to a replica that does not have everything yet.
const REST: Duration = Duration::from_millis(20);

/// One question; there are others as long as there is time.
const TRY: Duration = Duration::from_secs(5);

/// Messages and bytes of one question.
pub(super) const EVENTS_MAX: usize = 1000;
pub(super) const BYTES_MAX: usize = 8 << 20;

/// Of a message beside its body, roughly.
const HEAD_LEN: usize = 1024;

/// Messages that a replica has lost are read from the leader so many at a time.
const LEADERS_MAX: usize = 100;

/// What is damaged is read so often: each time another replica may answer.
const REPLICAS: usize = 6;

pub(super) fn failed(failure: impl std::fmt::Display) -> ReadError {
    ReadError(failure.to_string())
}

/// The messages under events' keys from `from` on, tombstones included, and where to read on.
pub(super) async fn raw(shared: &Shared, from: Seq) -> Result<(Vec<Stored>, Seq), ReadError> {
    let until = Instant::now() + PATIENCE;
    if from > *shared.head.borrow() {
        return Ok((Vec::new(), from));
    }
    let (found, next) = some_or_none_from(shared, from, EVENTS_MAX, BYTES_MAX, until).await?;
    let found = without_holes(shared, from.max(shared.first()), found, until).await?;
    let next = found.last().map_or(next, |last| Seq(last.seq).next());
    Ok((found, next))
}

/// Messages from a Seq on, or for certain none, and where to read on: what the leader has is waited for.
pub(super) async fn some_or_none_from(
    shared: &Shared,
    from: Seq,
    events: usize,
    bytes: usize,
    until: Instant,
) -> Result<(Vec<Stored>, Seq), ReadError> {
    loop {
        let found = some_from(shared, from, events, bytes, until).await?;
        if let Some(last) = found.last().map(|last| Seq(last.seq)) {
            return Ok((found, last.next()));
        }
        if let Some(last) = nothing_from(shared, from, until).await? {
            return Ok((Vec::new(), last.next()));
        }
        // The leader has something, the replica will.
        if Instant::now() + REST >= until {
            return Err(ReadError(
                "a server of the stream is behind the others and does not catch up".into(),
            ));
        }
        tokio::time::sleep(REST).await;
    }
}

/// Messages from a Seq on, as far as a replica has them.
pub(super) async fn some_from(
    shared: &Shared,
    from: Seq,
    events: usize,
    bytes: usize,
    until: Instant,
) -> Result<Vec<Stored>, ReadError> {
    let (reader, stream) = (&shared.reader, shared.stream());
    let fed = shared.feeds.some_from(reader, stream, from, (events, bytes), until);
    if let Some(found) = fed.await {
        return Ok(found);
    }
    let question =
        json!({ "seq": from.0, "batch": events, "max_bytes": bytes, "next_by_subj": key::events(shared.stream()) });
    ask_some(shared, &question, events, bytes, until).await
}

/// What a replica has answered to a question for several messages.
#[derive(Default)]
pub(super) struct Collected {
    pub found: Vec<Stored>,
    /// What was wrong with the last answer.
    pub fault: Option<String>,
}

impl Collected {
    /// Takes an answer; `true`: no other one is waited for.
    pub fn take(&mut self, message: Message) -> bool {
        match message.status.map(|status| status.as_u16()) {
            None => {
                let message = stored(message);
                if message.is_none() {
                    self.fault = Some("somebody who is not JetStream answers".to_owned());
                }
                self.found.extend(message);
                self.fault.is_some()
            }
            // The end of it, or nothing at all.
            Some(204 | 404) => true,
            Some(status) => {
                let why = message.description.unwrap_or_default();
                self.fault = Some(format!("JetStream says {status} {why}"));
                true
            }
        }
    }
}

async fn ask_some(
    shared: &Shared,
    question: &Value,
    events: usize,
    bytes: usize,
    until: Instant,
) -> Result<Vec<Stored>, ReadError> {
    let subject = format!("$JS.API.DIRECT.GET.{}", shared.stream());
    loop {
        let this = until.min(Instant::now() + TRY);
        let mut collected = Collected::default();
        let asked = match shared.reader.line(this).await {
            Ok(line) => {
                let may_come = (bytes + events * HEAD_LEN + line.max_payload()) as u64;
                let asked = line
                    .ask_many(&subject, question.to_string().into(), may_come, this, &mut |message| {
                        collected.take(message)
                    })
                    .await;
                if asked == Err(Unanswered::Nobody) {
                    shared.reader.turn(&line).await;
                }
                asked
            }
            Err(why) => Err(why),
        };
        let Collected { found, fault } = collected;
        match (asked, fault) {
            (Ok(()), None) => return Ok(found),
            (Ok(()), Some(fault)) => return Err(ReadError(fault)),
            // What came is in order and whole as far as it goes.
            (Err(_), _) if !found.is_empty() => return Ok(found),
            (Err(why), _) if Instant::now() + REST >= until => return Err(failed(why)),
            (Err(_), _) => tokio::time::sleep(REST).await,
        }
    }
}

/// A message as a replica gives it.
fn stored(message: Message) -> Option<Stored> {
    let headers = message.headers?;
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let (seq, subject) = (text("Nats-Sequence")?.parse().ok()?, text("Nats-Subject")?);
    Some(Stored::new(seq, subject, headers, message.payload))
}

/// The first message of an event at this Seq or behind it; `None`: there is none.
pub(super) async fn next_from(shared: &Shared, from: Seq, until: Instant) -> Result<Option<Stored>, ReadError> {
    let near = some_from(shared, from, 1, 1, until).await?;
    if let Some(found) = near.into_iter().next() {
        return Ok(Some(found));
    }
    let question = json!({ "seq": from.0.max(1), "next_by_subj": key::events(shared.stream()) });
    api::message(&shared.link, shared.stream(), &question, until)
        .await
        .map_err(failed)
}

/// The first event at this Seq or behind it, and before another; not what stands there for an event of another Seq, which was erased and is
/// older.
pub(super) async fn next_event(
    shared: &Shared,
    from: Seq,
    before: Seq,
    until: Instant,
) -> Result<Option<Stored>, ReadError> {
    let mut some = Vec::from_iter(next_from(shared, from, until).await?);
    while let Some(last) = some.last().map(|last| Seq(last.seq)) {
        let is_own = |found: &Stored| found.erases().is_none_or(|erased| erased == found.seq);
        if let Some(own) = some.into_iter().find(is_own) {
            return Ok(Some(own).filter(|own| Seq(own.seq) < before));
        }
        if last.next() >= before {
            break;
        }
        some = some_from(shared, last.next(), EVENTS_MAX, BYTES_MAX, until).await?;
        if some.is_empty() {
            some.extend(next_from(shared, last.next(), until).await?);
        }
    }
    Ok(None)
}

/// One message, by whichever replica answers; `None`: it does not have it (yet).
pub(super) async fn direct(
    shared: &Shared,
    stream: &str,
    seq: u64,
    until: Instant,
) -> Result<Option<Stored>, ReadError> {
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    let question = Bytes::from(json!({ "seq": seq }).to_string());
    loop {
        let this = until.min(Instant::now() + TRY);
        let answer = match shared.reader.line(this).await {
            Ok(line) => {
                // One answer may be as long as a message.
                let mut found = None;
                let mut take = |message: Message| {
                    found = Some(message);
                    true
                };
                let may_come = line.max_payload() as u64;
                let asked = line
                    .ask_many(&subject, question.clone(), may_come, this, &mut take)
                    .await;
                if asked == Err(Unanswered::Nobody) {
                    shared.reader.turn(&line).await;
                }
                asked.map(|()| found)
            }
            Err(why) => Err(why),
        };
        match answer {
            Ok(Some(message)) if message.status.is_none() => return Ok(stored(message)),
            Ok(_) => return Ok(None),
            Err(why) if Instant::now() + REST >= until => return Err(failed(why)),
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

/// What a replica leaves out is there or not as the leader has it: its disk may have lost some in the middle. Behind what it has lost, what
/// it gave is left for the next time.
pub(super) async fn without_holes(
    shared: &Shared,
    from: Seq,
    mut found: Vec<Stored>,
    until: Instant,
) -> Result<Vec<Stored>, ReadError> {
    let mut at = from.0;
    for index in 0..found.len() {
        let (begin, end) = (at, found[index].seq);
        at = end + 1;
        if begin >= end || shared.is_known_hole(begin, end) {
            continue;
        }
        let mut missing = from_leader(shared, begin, end, until).await?;
        if missing.is_empty() {
            shared.note_hole(begin, end);
            continue;
        }
        if crate::sync::lock(&shared.said).is_news("a hole") {
            let seq = missing[0].seq;
            tracing::error!(
                seq,
                "a server of the stream has lost events that the others have: they are read from those. Look at its disk"
            );
        }
        found.truncate(index);
        found.append(&mut missing);
        break;
    }
    Ok(found)
}

/// The messages of events between two Seqs, the second not included, as the leader has them; some of them.
async fn from_leader(shared: &Shared, begin: u64, end: u64, until: Instant) -> Result<Vec<Stored>, ReadError> {
    let (mut found, mut at) = (Vec::new(), begin);
    while at < end && found.len() < LEADERS_MAX {
        let question = json!({ "seq": at, "next_by_subj": key::events(shared.stream()) });
        let next = api::message(&shared.link, shared.stream(), &question, until)
            .await
            .map_err(failed)?;
        let Some(next) = next.filter(|next| next.seq < end) else {
            break;
        };
        at = next.seq + 1;
        found.push(next);
    }
    Ok(found)
}

/// Asks the leader whether there is anything from a Seq on; if not, the last Seq that was given out.
async fn nothing_from(shared: &Shared, from: Seq, until: Instant) -> Result<Option<Seq>, ReadError> {
    // Asked first: what comes later is behind it.
    let info = api::info(&shared.link, shared.stream(), None, until)
        .await
        .map_err(failed)?;
    let last = Seq(info.state.last_seq);
    shared.note(info);
    let question = json!({ "seq": from.0, "next_by_subj": key::events(shared.stream()) });
    let next = api::message(&shared.link, shared.stream(), &question, until)
        .await
        .map_err(failed)?;
    Ok(next
        .is_none_or(|next| Seq(next.seq) > last)
        .then(|| last.max(from.prev())))
}

/// The event of a message, or why it can't be had: damaged on all replicas.
pub(super) async fn event_of(
    shared: &Shared,
    message: &Stored,
    until: Instant,
) -> Result<Result<Event, String>, ReadError> {
    let mut why = match body_of(shared, message, until).await? {
        Ok(body) => match message.event(body) {
            Ok(event) => return Ok(Ok(event)),
            Err(why) => why.to_owned(),
        },
        Err(why) => why,
    };
    for _ in 0..REPLICAS {
        let question = json!({ "seq": message.seq });
        let again = api::message(&shared.link, shared.stream(), &question, until)
            .await
            .map_err(failed)?;
        let near = direct(shared, shared.stream(), message.seq, until).await?;
        for copy in [again, near].into_iter().flatten() {
            match body_of(shared, &copy, until).await? {
                Ok(body) => match copy.event(body) {
                    Ok(event) => return Ok(Ok(event)),
                    Err(other) => why = other.to_owned(),
                },
                Err(other) => why = other,
            }
        }
    }
    Ok(Err(why))
}

/// The body of a message, put together where it is in pieces.
async fn body_of(shared: &Shared, message: &Stored, until: Instant) -> Result<Result<Bytes, String>, ReadError> {
    let Some(parts) = message.parts() else {
        // What was received together must not be held in memory together.
        return Ok(Ok(Bytes::copy_from_slice(&message.payload)));
    };
    let stream = key::parts_stream(shared.stream());
    let mut body = BytesMut::new();
    for seq in &parts.seqs {
        let near = direct(shared, &stream, *seq, until).await?;
        let piece = match near {
            Some(piece) => Some(piece),
            None => api::message(&shared.link, &stream, &json!({ "seq": seq }), until)
                .await
                .map_err(failed)?,
        };
        match piece {
            Some(piece) => body.extend_from_slice(&piece.payload),
            None => return Ok(Err("a piece of its body is gone".into())),
        }
        if body.len() > parts.len {
            return Ok(Err("its pieces are longer than its body".into()));
        }
    }
    Ok(Ok(body.freeze()))
}
