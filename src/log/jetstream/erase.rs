//! Erasing: an event's message is removed and overwritten, and something without its data takes its place under its key, so that it is not
//! stored again.
//!
//! In this order, so that whatever ends it in between is finished later: a note says which Seq is to go and under which key it is; the
//! message and its pieces are removed; the tombstone is published. The note stays: by it the Seq is known as erased. Where a node stores the
//! event again in between, that one goes as well.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::api::{self, remove};
use super::append::publish_own;
use super::key;
use super::message::{self, Stored};
use super::read;
use super::shared::Shared;
use crate::event::{Event, Seq};
use crate::log::{ChangeError, Doomed, Erased, Narrow, Take};
use crate::sync::lock;

/// One event is erased within this.
const PATIENCE: Duration = Duration::from_secs(30);

fn failed(failure: impl std::fmt::Display) -> ChangeError {
    ChangeError(failure.to_string())
}

/// Erases all that is doomed.
pub(super) async fn erase(shared: &Shared, narrow: &Narrow, doomed: &Arc<Doomed>) -> Result<Erased, ChangeError> {
    let mut erased = Erased {
        before: lock(&shared.erased).iter().copied().collect(),
        ..Erased::default()
    };
    let head = *shared.head.borrow();
    let mut from = shared.first();
    while from <= head {
        if shared.is_closing() {
            return so_far(erased, from, ChangeError("shutting down".into()));
        }
        let take = Take {
            events: 1000,
            bytes: 4 << 20,
            narrow: Some(narrow),
        };
        let batch = match read::read(shared, from, take).await {
            Ok(batch) => batch,
            Err(error) => return so_far(erased, from, failed(error)),
        };
        for (first, last) in &batch.lost {
            if *first >= shared.first() {
                erased
                    .left
                    .push(format!("events {first} to {last} can't be read and may be among them"));
            }
        }
        for event in batch.events.iter().filter(|event| doomed(event)) {
            match erase_one(shared, event).await {
                Ok(true) => {
                    lock(&shared.erased).insert(event.seq);
                    erased.seqs.push(event.seq);
                }
                Ok(false) => {}
                Err(error) => return so_far(erased, event.seq, error),
            }
        }
        if batch.next <= from {
            break;
        }
        from = batch.next;
    }
    Ok(erased)
}

/// What was erased has to be forgotten everywhere else as well, although the rest was not reached.
fn so_far(mut erased: Erased, from: Seq, error: ChangeError) -> Result<Erased, ChangeError> {
    if erased.seqs.is_empty() {
        return Err(error);
    }
    erased.left.push(Erased::not_reached(from, &error.0));
    Ok(erased)
}

/// Whether there was something to erase.
async fn erase_one(shared: &Shared, event: &Event) -> Result<bool, ChangeError> {
    let until = Instant::now() + PATIENCE;
    let question = json!({ "seq": event.seq.0 });
    let found = api::message(&shared.link, shared.stream(), &question, until)
        .await
        .map_err(failed)?;
    let Some(found) = found else { return Ok(false) };
    replace(shared, &found, until).await?;
    Ok(true)
}

async fn replace(shared: &Shared, found: &Stored, until: Instant) -> Result<(), ChangeError> {
    let received_at = found.received_at().unwrap_or_default();
    let note = message::erasure(&found.subject, found.key(), found.seq, received_at);
    let place = key::erasure(shared.stream(), found.seq);
    publish_own(shared, &place, &note, until).await.map_err(failed)?;
    finish(shared, found, until).await
}

/// All that comes behind the note.
async fn finish(shared: &Shared, found: &Stored, until: Instant) -> Result<(), ChangeError> {
    let received_at = found.received_at().unwrap_or_default();
    let tombstone = message::tombstone(found.key(), found.erases().unwrap_or(found.seq), received_at);
    let mut goes = found.clone();
    loop {
        let parts_stream = key::parts_stream(shared.stream());
        for seq in goes.parts().map(|parts| parts.seqs).unwrap_or_default() {
            remove(&shared.link, &parts_stream, seq, until).await.map_err(failed)?;
        }
        remove(&shared.link, shared.stream(), goes.seq, until)
            .await
            .map_err(failed)?;
        let (seq, is_ours) = publish_own(shared, &found.subject, &tombstone, until)
            .await
            .map_err(failed)?;
        if is_ours {
            shared.saw(Seq(seq));
            return Ok(());
        }
        let question = json!({ "seq": seq });
        match api::message(&shared.link, shared.stream(), &question, until)
            .await
            .map_err(failed)?
        {
            Some(met) if met.erases().is_some() => return Ok(()),
            // Another node has stored it again meanwhile.
            Some(met) => goes = met,
            None => {}
        }
    }
}

/// Finishes what a node began that did not live to its end. Looks at each note until what it says is done, and then no more.
#[derive(Debug)]
pub(super) struct Finisher {
    /// What the notes before this say is done.
    from: u64,
}

impl Default for Finisher {
    fn default() -> Finisher {
        Finisher { from: 1 }
    }
}

impl Finisher {
    /// Up to the newest note. An error: those from there on are looked at the next time.
    pub async fn finish(&mut self, shared: &Shared) -> Result<(), ChangeError> {
        loop {
            let until = Instant::now() + PATIENCE;
            let question = json!({ "seq": self.from, "next_by_subj": key::erasures(shared.stream()) });
            let note = api::message(&shared.link, shared.stream(), &question, until)
                .await
                .map_err(failed)?;
            let Some(note) = note else { return Ok(()) };
            carry_out(shared, &note, until).await?;
            self.from = note.seq + 1;
        }
    }
}

async fn carry_out(shared: &Shared, note: &Stored, until: Instant) -> Result<(), ChangeError> {
    // One of its own Seq was copied to where the event was.
    let Some(seq) = note.erases().filter(|seq| *seq != note.seq) else {
        return Ok(());
    };
    let left = api::message(&shared.link, shared.stream(), &json!({ "seq": seq }), until)
        .await
        .map_err(failed)?;
    if let Some(found) = left {
        return finish(shared, &found, until).await;
    }
    let question = json!({ "last_by_subj": note.belongs_to() });
    loop {
        let under = api::message(&shared.link, shared.stream(), &question, until)
            .await
            .map_err(failed)?;
        match under {
            None => {
                let tombstone = message::tombstone(note.key(), seq, note.received_at().unwrap_or_default());
                let put = publish_own(shared, note.belongs_to(), &tombstone, until).await;
                let (_, is_ours) = put.map_err(failed)?;
                if is_ours {
                    return Ok(());
                }
            }
            // Its key was free for a moment, in which it came again.
            Some(found) if found.erases().is_none() && found.key() == note.key() && found.seq > note.seq => {
                return replace(shared, &found, until).await;
            }
            Some(_) => return Ok(()),
        }
    }
}
