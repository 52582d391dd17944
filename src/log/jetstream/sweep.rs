//! What leaves the stream: all before a Seq, and pieces of bodies that belong to nothing (any more).

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use super::api::{self, Failure};
use super::cuts;
use super::key;
use super::message::Stored;
use super::shared::Shared;
use super::times;
use crate::event::Seq;
use crate::log::ChangeError;

const PATIENCE: Duration = Duration::from_secs(60);

/// How much there is is asked of who answers within this.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// Pieces that are younger may still get the message that names them: no append takes half as long.
const YOUNG: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// Pieces that are looked at in one round.
const ROUND: usize = 1000;

fn failed(failure: impl std::fmt::Display) -> ChangeError {
    ChangeError(failure.to_string())
}

/// Drops what is before `seq`, but nothing within the keys' window; the oldest Seq kept.
pub(super) async fn drop_before(shared: &Shared, seq: Seq) -> Result<Seq, ChangeError> {
    let until = Instant::now() + PATIENCE;
    let now = shared.now();
    let window = jiff::SignedDuration::try_from(shared.options.keys_kept).unwrap_or(jiff::SignedDuration::MAX);
    let young = now.checked_sub(window).unwrap_or(Timestamp::MIN);
    let upto = seq.min(times::came_at(shared, young).await.map_err(failed)?);
    if upto > shared.first() {
        api::purge(&shared.link, shared.stream(), &json!({ "seq": upto.0 }), until)
            .await
            .map_err(failed)?;
    }
    let info = api::info(&shared.link, shared.stream(), None, until)
        .await
        .map_err(failed)?;
    shared.note(info);
    cuts::find(shared).await;
    drop_parts(shared, until).await.map_err(failed)?;
    look_at_parts(shared).await;
    Ok(shared.first())
}

/// Looks how much pieces of long bodies take up.
pub(super) async fn look_at_parts(shared: &Shared) {
    let parts = key::parts_stream(shared.stream());
    // It stays what it was where it can't be seen now.
    if let Ok(info) = api::info(&shared.link, &parts, None, Instant::now() + LOOK_WITHIN).await {
        shared.note_parts(info.state.bytes);
    }
}

/// Pieces are older than the event they are of, by the time of an append at the most.
async fn drop_parts(shared: &Shared, until: Instant) -> Result<(), Failure> {
    let oldest = json!({ "seq": shared.first().0, "next_by_subj": key::events(shared.stream()) });
    let oldest = api::message_at(&shared.link, shared.stream(), &oldest, until).await?;
    let Some(before) = oldest.and_then(|(_, at)| at.checked_sub(YOUNG).ok()) else {
        return Ok(());
    };
    let stream = key::parts_stream(shared.stream());
    let mut from = 1;
    let mut gone = 0;
    loop {
        let question = json!({ "seq": from, "next_by_subj": format!("{stream}.>") });
        match api::message_at(&shared.link, &stream, &question, until).await? {
            Some((piece, at)) if at < before => {
                gone = piece.seq;
                from = piece.seq + 1;
            }
            _ => break,
        }
    }
    if gone > 0 {
        api::purge(&shared.link, &stream, &json!({ "seq": gone + 1 }), until).await?;
    }
    Ok(())
}

/// Looks through the pieces, each once.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    seen: u64,
}

impl Sweeper {
    /// Removes pieces whose event was never stored, or was stored by another append. What fails is tried again in the next round.
    pub async fn sweep(&mut self, shared: &Shared) {
        for _ in 0..ROUND {
            match self.next(shared).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::debug!(%error, "pieces of bodies could not be looked at");
                    return;
                }
            }
        }
    }

    async fn next(&mut self, shared: &Shared) -> Result<bool, Failure> {
        let until = Instant::now() + PATIENCE;
        let stream = key::parts_stream(shared.stream());
        let question = json!({ "seq": self.seen + 1, "next_by_subj": format!("{stream}.>") });
        let Some((piece, at)) = api::message_at(&shared.link, &stream, &question, until).await? else {
            return Ok(false);
        };
        let is_old = at.checked_add(YOUNG).is_ok_and(|ripe| ripe < shared.now());
        if !is_old {
            return Ok(false);
        }
        if !is_named(shared, &piece, until).await? {
            api::remove(&shared.link, &stream, piece.seq, until).await?;
        }
        self.seen = piece.seq;
        Ok(true)
    }
}

/// Whether the event that a piece belongs to has it.
async fn is_named(shared: &Shared, piece: &Stored, until: Instant) -> Result<bool, Failure> {
    let question = json!({ "last_by_subj": piece.belongs_to() });
    let event = api::message(&shared.link, shared.stream(), &question, until).await?;
    Ok(event.is_some_and(|event| {
        // One of another key with the same hash says nothing of this one.
        event.key() != piece.key() || event.parts().is_some_and(|parts| parts.seqs.contains(&piece.seq))
    }))
}
