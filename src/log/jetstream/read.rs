//! Reading: ranges, single events, and all of some ids, with what of them is lost.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::api;
use super::fetch::{BYTES_MAX, EVENTS_MAX, PATIENCE, direct, event_of, failed, some_or_none_from, without_holes};
use super::key;
use super::known::revisions;
use super::message::Stored;
use super::shared::Shared;
use crate::event::{Event, Seq};
use crate::log::{Batch, Narrow, ReadError, Take};

/// Events from `from` on.
pub(super) async fn read(shared: &Shared, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
    let until = Instant::now() + PATIENCE;
    let from = from.max(Seq(1));
    if from > *shared.head.borrow() {
        return Ok(Batch {
            next: from,
            ..Batch::default()
        });
    }
    if let Some(narrow) = take.narrow.filter(|narrow| !narrow.ids.is_empty()) {
        return read_ids(shared, from, take, narrow, until).await;
    }
    let (events, bytes) = (take.events.clamp(1, EVENTS_MAX), take.bytes.clamp(1, BYTES_MAX));
    let (found, next) = some_or_none_from(shared, from, events, bytes, until).await?;
    let Some(first) = found.first().map(|first| Seq(first.seq)) else {
        return Ok(Batch {
            lost: expired(shared, from, next, until).await?,
            next,
            events: Vec::new(),
        });
    };
    let mut batch = Batch::default();
    if first > from {
        let info = api::info(&shared.link, shared.stream(), None, until)
            .await
            .map_err(failed)?;
        shared.note(info);
        batch.lost = expired(shared, from, first, until).await?;
    }
    let found = without_holes(shared, from.max(shared.first()), found, until).await?;
    batch.next = found.last().map_or(from, |last| Seq(last.seq).next());
    take_events(shared, found, bytes, until, &mut batch).await?;
    Ok(batch)
}

/// Adds the events of what was found, as far as they fit.
async fn take_events(
    shared: &Shared,
    found: Vec<Stored>,
    bytes: usize,
    until: Instant,
    batch: &mut Batch,
) -> Result<(), ReadError> {
    let mut held = 0;
    for stored in found {
        if stored.erases().is_some() {
            continue;
        }
        if let Some(upto) = stored.lost_upto() {
            batch.lost.push((Seq(stored.seq), upto));
            continue;
        }
        // Of a long body the message says only where it is.
        let coming = stored.parts().map_or(0, |parts| parts.len);
        if !batch.events.is_empty() && (held >= bytes || held + coming > bytes) {
            batch.next = Seq(stored.seq);
            break;
        }
        match event_of(shared, &stored, until).await? {
            Ok(event) => {
                held += event.body.len();
                batch.events.push(Arc::new(event));
            }
            Err(why) => {
                say_damaged(shared, stored.seq, &why);
                batch.lost.push((Seq(stored.seq), Seq(stored.seq)));
            }
        }
    }
    Ok(())
}

/// What of these Seqs (the last not included) has left the log by its age. What was erased has not.
async fn expired(shared: &Shared, from: Seq, before: Seq, until: Instant) -> Result<Vec<(Seq, Seq)>, ReadError> {
    let began = crate::sync::read_lock(&shared.info).config["first_seq"].as_u64();
    let (from, last) = (from.max(Seq(began.unwrap_or(1))), shared.first().min(before).prev());
    if from > last {
        return Ok(Vec::new());
    }
    let notes = key::erasures(shared.stream());
    let info = api::info(&shared.link, shared.stream(), Some(&notes), until)
        .await
        .map_err(failed)?;
    let subjects = info.state.subjects.unwrap_or_default();
    let seq_of = |subject: &String| subject.rsplit('.').next()?.parse().ok().map(Seq);
    let erased: std::collections::BTreeSet<Seq> = subjects.keys().filter_map(seq_of).collect();
    let (mut ranges, mut at) = (Vec::new(), from);
    for gone in erased.range(from..=last) {
        if at < *gone {
            ranges.push((at, gone.prev()));
        }
        at = gone.next();
    }
    if at <= last {
        ranges.push((at, last));
    }
    Ok(ranges)
}

fn say_damaged(shared: &Shared, seq: u64, why: &str) {
    shared.note_damage(seq);
    if crate::sync::lock(&shared.said).is_news(&format!("{seq} {why}")) {
        tracing::error!(seq, why, "an event can't be read on any server: it is lost");
    }
}

/// What is at a Seq.
pub(super) async fn get(shared: &Shared, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
    let until = Instant::now() + PATIENCE;
    if seq == Seq::ZERO {
        return Ok(None);
    }
    // Also where it is newer than all that was heard of: what names it may have come another way.
    let near = direct(shared, shared.stream(), seq.0, until).await?;
    let found = match near {
        Some(found) => Some(found),
        None => api::message(&shared.link, shared.stream(), &json!({ "seq": seq.0 }), until)
            .await
            .map_err(failed)?,
    };
    let Some(found) = found else {
        return erased(shared, seq, until).await;
    };
    if found.lost_upto().is_some() {
        return Ok(None);
    }
    if let Some(erased) = found.erases() {
        // It stands for another one, unless it was copied to where that was.
        let own = (erased == seq.0).then(|| found.event(Bytes::new()).ok()).flatten();
        return Ok(own.map(Arc::new));
    }
    match event_of(shared, &found, until).await? {
        Ok(event) => Ok(Some(Arc::new(event))),
        Err(why) => {
            say_damaged(shared, seq.0, &why);
            Ok(None)
        }
    }
}

/// The tombstone of a Seq, if it was erased.
async fn erased(shared: &Shared, seq: Seq, until: Instant) -> Result<Option<Arc<Event>>, ReadError> {
    let question = json!({ "last_by_subj": key::erasure(shared.stream(), seq.0) });
    let found = api::message(&shared.link, shared.stream(), &question, until)
        .await
        .map_err(failed)?;
    Ok(found.and_then(|found| found.event(Bytes::new()).ok()).map(Arc::new))
}

/// The events of these ids from a Seq on.
async fn read_ids(
    shared: &Shared,
    from: Seq,
    take: Take<'_>,
    narrow: &Narrow,
    until: Instant,
) -> Result<Batch, ReadError> {
    let head = *shared.head.borrow();
    let mut found = Vec::new();
    for id in &narrow.ids {
        found.extend(revisions(shared, id, until).await?);
    }
    found.retain(|stored| stored.erases().is_none() && Seq(stored.seq) >= from && Seq(stored.seq) <= head);
    found.sort_unstable_by_key(|stored| stored.seq);
    let mut batch = Batch {
        lost: expired(shared, from, head.next(), until).await?,
        next: head.next(),
        events: Vec::new(),
    };
    let mut bytes = 0;
    for stored in found {
        if !batch.events.is_empty() && (batch.events.len() >= take.events || bytes >= take.bytes) {
            batch.next = Seq(stored.seq);
            break;
        }
        match event_of(shared, &stored, until).await? {
            Ok(event) => {
                bytes += event.body.len();
                batch.events.push(Arc::new(event));
            }
            Err(why) => {
                say_damaged(shared, stored.seq, &why);
                batch.lost.push((Seq(stored.seq), Seq(stored.seq)));
            }
        }
    }
    let next = batch.next;
    batch.lost.retain(|(from, _)| *from < next);
    Ok(batch)
}
