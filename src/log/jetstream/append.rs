//! Storing: one message an event, as many at a time as there are senders, each tried again until the servers have said what became of it.
//!
//! A message is stored only where its subject has none. The server's refusal names the Seq of the one that is there, so whatever became of
//! an earlier try whose answer was lost, the next one finds out. Each append has a name of its own in its message: one that meets itself was
//! stored, one that meets another is a duplicate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::api::{self, Failure};
use super::fetch;
use super::key;
use super::known::{look_up, meet};
use super::link::Unanswered;
use super::message::{Parts, Prepared, Stored, part, random_text};
use super::shared::Shared;
use crate::event::{Kind, Seq};
use crate::log::{AppendError, Appended, Incoming};
use crate::net::nats::Refusal;
use crate::telemetry;

/// An append that has not ended by then is not waited for any more. It may still end well: then the sender's next try is a duplicate.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// One try of a message; it is safe to try again.
const TRY: Duration = Duration::from_secs(4);

/// The first rest between two tries, and the longest.
const RESTS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// So often a stream may have no leader for this side before another server is asked.
const NOBODY_MAX: u32 = 6;

/// What else there is in a message beside its body, and the server's own headers, at the most.
pub(super) const OVERHEAD: usize = 1024;

/// Messages and bytes that are stored together, at the most.
pub(super) const TOGETHER: (usize, usize) = (256, 4 << 20);

/// Questions at a time whether what comes together is known.
const QUESTIONS: usize = 32;

/// Where a message is.
enum Put {
    Stored(u64),
    /// There was one under its subject.
    Known(u64),
}

/// What an acknowledgement means.
pub(super) enum Verdict {
    Stored(u64),
    /// There is one under its subject, at this Seq if that was said.
    Known(Option<u64>),
    Full(String),
    /// It will never be taken.
    Never(String),
    Later(String),
}

#[derive(Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub stream: String,
    #[serde(default)]
    pub seq: u64,
    #[serde(default)]
    pub error: Option<Refusal>,
}

/// The one place that decides what an acknowledgement means.
pub(super) fn judged(message: &Message) -> Verdict {
    const ALIEN: &str = "somebody who is not JetStream answers on the stream's subject: see who subscribes to it";
    let refusal = match serde_json::from_slice::<Ack>(&message.payload) {
        Ok(Ack {
            error: Some(refusal), ..
        }) => refusal,
        Ok(Ack {
            error: None,
            stream,
            seq,
        }) if !stream.is_empty() && seq > 0 => return Verdict::Stored(seq),
        _ => return Verdict::Later(ALIEN.into()),
    };
    if refusal.is_of(&[10071]) {
        let seq = refusal.description.rsplit(' ').next().and_then(|seq| seq.parse().ok());
        return Verdict::Known(seq.filter(|seq| *seq > 0));
    }
    // One with this subject is on its way through the servers, or was there before.
    if refusal.is_of(&[10164]) || refusal.is_of(&[10077]) && refusal.description.contains("per subject") {
        return Verdict::Known(None);
    }
    let why = refusal.to_string();
    if refusal.is_of(&[10077]) {
        return Verdict::Full(format!("{why}: make room, or raise max_bytes of the stream"));
    }
    if refusal.is_of(&[10047, 10023, 10002, 10028]) {
        return Verdict::Full(format!("{why}: the servers have no room left for JetStream"));
    }
    if refusal.code == 400 && !refusal.is_of(&[10003]) {
        return Verdict::Never(why);
    }
    Verdict::Later(why)
}

fn failing(failure: &Failure) -> AppendError {
    AppendError::Failing(failure.to_string())
}

/// Rests between tries that grow.
struct Rests(Duration);

impl Rests {
    fn new() -> Rests {
        Rests(RESTS.0)
    }

    /// `false`: there is no time for another try.
    async fn rest(&mut self, until: Instant) -> bool {
        if Instant::now() + self.0 >= until {
            return false;
        }
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RESTS.1);
        true
    }
}

/// Stores one, however often that has to be tried. `known`: the head before anything of it was sent.
pub(super) async fn store(
    shared: &Shared,
    prepared: &Prepared,
    known: Seq,
    until: Instant,
) -> Result<Appended, AppendError> {
    let began = std::time::Instant::now();
    if let Some(full) = &prepared.full
        && let Some(seq) = find(shared, full, until).await?
    {
        return Ok(Appended::Duplicate(seq));
    }
    let parts = upload_if_long(shared, prepared, until).await?;
    let parts = match parts {
        Uploaded::Known(seq) => return Ok(duplicate(prepared, seq)),
        Uploaded::Short => None,
        Uploaded::Parts(parts) => Some(parts),
    };
    let body = if parts.is_some() {
        Bytes::new()
    } else {
        prepared.incoming.body.clone()
    };
    let headers = prepared.headers(parts.as_ref());
    let mut salt = 0;
    loop {
        let subject = prepared.key.subject(shared.stream(), salt);
        let seq = match publish(shared, &subject, &headers, &body, until).await? {
            Put::Stored(seq) => {
                shared.comes_after(seq, known)?;
                shared.saw(Seq(seq));
                telemetry::committed(1, prepared.incoming.body.len(), began.elapsed());
                return Ok(stored(prepared, Seq(seq)));
            }
            Put::Known(seq) => seq,
        };
        let question = json!({ "seq": seq });
        let met = api::message(&shared.link, shared.stream(), &question, until).await;
        match met.map_err(|failure| failing(&failure))? {
            Some(met) if met.append() == prepared.append => {
                shared.comes_after(seq, known)?;
                shared.saw(Seq(seq));
                return Ok(stored(prepared, Seq(seq)));
            }
            // Another event with the same hash.
            Some(met) if met.key() != prepared.key.text() => salt += 1,
            Some(met) if gives_way(shared, &met, until).await? => {}
            Some(met) => return Ok(duplicate(prepared, met.known_as())),
            // It has gone meanwhile.
            None => {}
        }
    }
}

fn stored(prepared: &Prepared, seq: Seq) -> Appended {
    match prepared.kind {
        Kind::Quarantined => Appended::Quarantined { seq, repeated: false },
        _ => Appended::Stored(seq),
    }
}

fn duplicate(prepared: &Prepared, seq: Seq) -> Appended {
    match prepared.kind {
        Kind::Quarantined => Appended::Quarantined { seq, repeated: true },
        _ => Appended::Duplicate(seq),
    }
}

/// The Seq under which a key is known.
pub(super) async fn find(shared: &Shared, key: &key::Key, until: Instant) -> Result<Option<Seq>, AppendError> {
    look_up(shared, key, until).await.map_err(|failure| failing(&failure))
}

/// Takes away what is known and can't be read on any server any more, so that the same event, which has come again, takes its place. `true`:
/// it has gone. What may have lost a piece is read; of the others those that somebody could not read.
async fn gives_way(shared: &Shared, met: &Stored, until: Instant) -> Result<bool, AppendError> {
    let parts = met.parts();
    if met.erases().is_some() || (parts.is_none() && !shared.is_damaged(met.seq)) {
        return Ok(false);
    }
    let read = fetch::event_of(shared, met, until).await;
    let Err(why) = read.map_err(|error| AppendError::Failing(error.to_string()))? else {
        return Ok(false);
    };
    tracing::error!(
        seq = met.seq,
        why,
        "an event that no server can give any more has come again: it gets a new Seq, and what is left of it goes"
    );
    let pieces = parts.map(|parts| parts.seqs).unwrap_or_default();
    let parts_stream = key::parts_stream(shared.stream());
    let at = pieces.iter().map(|seq| (parts_stream.as_str(), *seq));
    for (stream, seq) in at.chain([(shared.stream(), met.seq)]) {
        let removed = api::remove(&shared.link, stream, seq, until).await;
        removed.map_err(|failure| failing(&failure))?;
    }
    Ok(true)
}

/// Publishes where there is nothing yet, until it is known that there is.
async fn publish(
    shared: &Shared,
    subject: &str,
    headers: &HeaderMap,
    body: &Bytes,
    until: Instant,
) -> Result<Put, AppendError> {
    let (mut rests, mut nobody) = (Rests::new(), 0);
    loop {
        if shared.is_closing() {
            return Err(AppendError::Closed);
        }
        let why = match try_once(shared, subject, headers, body, until, &mut nobody).await {
            Verdict::Stored(seq) => {
                shared.set_trouble(None);
                return Ok(Put::Stored(seq));
            }
            Verdict::Known(Some(seq)) => return Ok(Put::Known(seq)),
            Verdict::Known(None) => {
                let question = json!({ "last_by_subj": subject });
                let stream = if subject.starts_with(&format!("{}.", shared.stream())) {
                    shared.stream().to_owned()
                } else {
                    key::parts_stream(shared.stream())
                };
                match api::message(&shared.link, &stream, &question, until).await {
                    Ok(Some(met)) => return Ok(Put::Known(met.seq)),
                    // It was on its way only.
                    Ok(None) => "another with the same key is being stored".to_owned(),
                    Err(failure) => failure.to_string(),
                }
            }
            Verdict::Full(why) => {
                shared.set_trouble(Some(AppendError::Full(why.clone())));
                return Err(AppendError::Full(why));
            }
            Verdict::Never(why) => return Err(AppendError::Failing(why)),
            Verdict::Later(why) => {
                shared.set_trouble(Some(AppendError::Failing(why.clone())));
                why
            }
        };
        if !rests.rest(until).await {
            return Err(AppendError::Failing(why));
        }
    }
}

async fn try_once(
    shared: &Shared,
    subject: &str,
    headers: &HeaderMap,
    body: &Bytes,
    until: Instant,
    nobody: &mut u32,
) -> Verdict {
    let this = until.min(Instant::now() + TRY);
    let line = match shared.link.line(this).await {
        Ok(line) => line,
        Err(why) => return Verdict::Later(why.to_string()),
    };
    match line.ask(subject, headers.clone(), body.clone(), this).await {
        Ok(answer) => judged(&answer),
        Err(why) => {
            *nobody = if why == Unanswered::Nobody { *nobody + 1 } else { 0 };
            if *nobody >= NOBODY_MAX {
                // It may be this server alone that does not see the leader.
                *nobody = 0;
                shared.link.turn(&line).await;
            }
            Verdict::Later(why.to_string())
        }
    }
}

/// Publishes a message of the log's own where there is nothing yet; gives the Seq of what is there then, and whether it is this one.
pub(super) async fn publish_own(
    shared: &Shared,
    subject: &str,
    headers: &HeaderMap,
    until: Instant,
) -> Result<(u64, bool), AppendError> {
    Ok(match publish(shared, subject, headers, &Bytes::new(), until).await? {
        Put::Stored(seq) => (seq, true),
        Put::Known(seq) => (seq, false),
    })
}

enum Uploaded {
    /// The body fits into one message.
    Short,
    Parts(Parts),
    /// The event is known already: nothing was uploaded.
    Known(Seq),
}

/// The pieces of a body that is too long come first; nobody sees them before the message that names them.
async fn upload_if_long(shared: &Shared, prepared: &Prepared, until: Instant) -> Result<Uploaded, AppendError> {
    let body = &prepared.incoming.body;
    let headers = prepared.headers(None);
    let line = shared.link.line(until).await;
    let line = line.map_err(|why| failing(&Failure::Unanswered(why)))?;
    let room = line.max_payload().saturating_sub(OVERHEAD);
    if body.len() + head_len(&headers) <= room {
        return Ok(Uploaded::Short);
    }
    let met = meet(shared, &prepared.key, until).await;
    if let Some(met) = met.map_err(|failure| failing(&failure))?
        && !gives_way(shared, &met, until).await?
    {
        return Ok(Uploaded::Known(met.known_as()));
    }
    upload(shared, prepared, room, until).await.map(Uploaded::Parts)
}

/// Bytes that headers take up in a message.
pub(super) fn head_len(headers: &HeaderMap) -> usize {
    let line_len = |(name, values): (&HeaderName, &Vec<HeaderValue>)| {
        let values: usize = values.iter().map(|value| value.as_str().len()).sum();
        name.to_string().len() + values + ": \r\n".len()
    };
    headers.iter().map(line_len).sum()
}

/// Stores a body in pieces of this length.
pub(super) async fn upload(
    shared: &Shared,
    prepared: &Prepared,
    room: usize,
    until: Instant,
) -> Result<Parts, AppendError> {
    let body = &prepared.incoming.body;
    let upload = random_text();
    let part_headers = part(&prepared.key.subject(shared.stream(), 0), &prepared.key.text());
    let mut seqs = Vec::new();
    let mut left = body.clone();
    while !left.is_empty() {
        let piece = left.split_to(left.len().min(room.max(OVERHEAD)));
        let subject = key::part(shared.stream(), &upload, seqs.len());
        let (Put::Stored(seq) | Put::Known(seq)) = publish(shared, &subject, &part_headers, &piece, until).await?;
        seqs.push(seq);
    }
    Ok(Parts {
        upload,
        len: body.len(),
        seqs,
    })
}

/// Stores several in their order: together where none of them is known, else one behind the other. Where one can't be stored those behind it
/// are not tried.
pub(super) async fn store_in_order(
    shared: &Arc<Shared>,
    together: Vec<Incoming>,
) -> Vec<Result<Appended, AppendError>> {
    let prepared: Vec<Prepared> = together.into_iter().map(Prepared::new).collect();
    let mut answers: Vec<Result<Appended, AppendError>> = Vec::with_capacity(prepared.len());
    let mut rest = prepared.as_slice();
    while !rest.is_empty() {
        let (mut count, mut bytes) = (0, 0);
        while count < rest.len().min(TOGETHER.0)
            && (count == 0 || bytes + rest[count].incoming.body.len() <= TOGETHER.1)
        {
            bytes += rest[count].incoming.body.len();
            count += 1;
        }
        let (chunk, behind) = rest.split_at(count);
        match answers.last() {
            Some(Err(why)) => {
                let why = why.clone();
                answers.extend(chunk.iter().map(|_| Err(why.clone())));
            }
            _ => answers.extend(store_chunk(shared, chunk).await),
        }
        rest = behind;
    }
    answers
}

async fn store_chunk(shared: &Shared, chunk: &[Prepared]) -> Vec<Result<Appended, AppendError>> {
    let (known, until) = (*shared.head.borrow(), Instant::now() + PATIENCE);
    if chunk.len() > 1
        && let Some(answers) = store_together(shared, chunk, until).await
    {
        return answers;
    }
    let mut answers: Vec<Result<Appended, AppendError>> = Vec::with_capacity(chunk.len());
    for prepared in chunk {
        let answer = match answers.last() {
            Some(Err(why)) => Err(why.clone()),
            _ => store(shared, prepared, known, Instant::now() + PATIENCE).await,
        };
        answers.push(answer);
    }
    answers
}

/// All that are new in one batch, which is stored wholly or not at all; `None`: they have to be stored one by one.
async fn store_together(
    shared: &Shared,
    chunk: &[Prepared],
    until: Instant,
) -> Option<Vec<Result<Appended, AppendError>>> {
    let max = shared.link.line(until).await.ok()?.max_payload();
    if chunk
        .iter()
        .any(|prepared| prepared.full.is_some() || prepared.incoming.body.len() + 8 * OVERHEAD > max)
        || shared.has_damage()
    {
        return None;
    }
    let mut lookups = Vec::with_capacity(chunk.len());
    for prepared in chunk {
        lookups.push(look_up(shared, &prepared.key, until));
    }
    let known: Vec<Result<Option<Seq>, Failure>> = futures::stream::iter(lookups).buffered(QUESTIONS).collect().await;
    let mut places: HashMap<String, u64> = HashMap::new();
    let mut fresh: Vec<&Prepared> = Vec::new();
    // What each is: known, or the place among the fresh ones and whether it is the first of its key.
    let mut kinds = Vec::with_capacity(chunk.len());
    for (prepared, known) in chunk.iter().zip(known) {
        if let Some(seq) = known.ok()? {
            kinds.push(Err(seq));
            continue;
        }
        let next = places.len() as u64;
        let place = *places.entry(prepared.key.text()).or_insert(next);
        if place == next {
            fresh.push(prepared);
        }
        kinds.push(Ok((place, place == next)));
    }
    let first = if fresh.is_empty() {
        0
    } else {
        publish_batch(shared, &fresh, until).await?
    };
    let answer = |(prepared, kind): (&Prepared, Result<(u64, bool), Seq>)| {
        Ok(match kind {
            Err(seq) => duplicate(prepared, seq),
            Ok((place, true)) => stored(prepared, Seq(first + place)),
            Ok((place, false)) => duplicate(prepared, Seq(first + place)),
        })
    };
    Some(chunk.iter().zip(kinds).map(answer).collect())
}

/// The Seq of the first; `None` where nothing, or nobody knows what, came of it.
async fn publish_batch(shared: &Shared, fresh: &[&Prepared], until: Instant) -> Option<u64> {
    let began = std::time::Instant::now();
    let line = shared.link.line(until).await.ok()?;
    let (batch, last) = (random_text(), fresh.len());
    let known = *shared.head.borrow();
    for (index, prepared) in fresh.iter().enumerate() {
        let mut headers = prepared.headers(None);
        headers.insert("Nats-Batch-Id", batch.as_str());
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
        let subject = prepared.key.subject(shared.stream(), 0);
        let body = prepared.incoming.body.clone();
        if index + 1 < last {
            line.tell(&subject, headers, body).await.ok()?;
            continue;
        }
        headers.insert("Nats-Batch-Commit", "1");
        let answer = line
            .ask(&subject, headers, body, until.min(Instant::now() + 2 * TRY))
            .await
            .ok()?;
        let Verdict::Stored(seq) = judged(&answer) else {
            return None;
        };
        // Where it is not, whoever stores them one by one says why.
        shared.comes_after((seq + 1).saturating_sub(last as u64), known).ok()?;
        shared.saw(Seq(seq));
        let bytes = fresh.iter().map(|prepared| prepared.incoming.body.len()).sum();
        telemetry::committed(last, bytes, began.elapsed());
        return (seq + 1).checked_sub(last as u64);
    }
    None
}
