//! Dead letters: which there are, one with its event, trying them again, and letting them go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::pick::Pick;
use super::replay::TELL_EVERY;
use super::transfer::Exported;
use crate::deliver::DeadLetter;
use crate::event::{Event, Kind, Seq};
use crate::rules::selection::Selection;

/// Letters that are meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
    /// At most so many.
    pub limit: u64,
}

/// Letters with their events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Event id or Seq.
    pub id: String,
}

/// A letter with its event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// As it is exported; `None` where it is not kept any more.
    #[serde(flatten)]
    pub event: Option<Exported>,
    /// Why and when it was given up.
    pub letter: DeadLetter,
}

/// Delivers letters again; those that succeed are removed.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retry {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
}

/// How a retry gets on; the last one is how it went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// Letters that were meant.
    pub total: u64,
    /// Delivered, and removed.
    pub delivered: u64,
    /// Still dead.
    pub failed: u64,
    /// Why the newest of those is.
    pub reason: Option<String>,
}

/// Removes letters for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drop {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Letters.
    pub dropped: u64,
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, DeadLetter>) -> Result<(), Refusal> {
        let (letters, left) = readable(on, self.sink.as_deref(), &self.pick, self.limit).await?;
        for letter in letters {
            out.say(&letter).await?;
        }
        // What can be read is shown first.
        left.into_iter().next().map_or(Ok(()), Err)
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Shown>) -> Result<(), Refusal> {
        let id = &self.id;
        let mut shown = false;
        for letter in letters(on, self.sink.as_deref(), &Pick::default(), u64::MAX).await? {
            if letter.id != *id && letter.seq.to_string() != *id {
                continue;
            }
            if let Some((letter, event)) = on.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)? {
                shown = true;
                let event = event.as_deref().map(Exported::of);
                out.say(&Shown { event, letter }).await?;
            }
        }
        if shown {
            Ok(())
        } else {
            Err(format!(
                "there is no dead letter {id}: `closehook dead list` shows them"
            ))
        }
    }
}

impl Retry {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Retried>) -> Result<(), Refusal> {
        let mut running = Vec::new();
        for (sink, seqs) in by_sink(on, self.sink.as_deref(), &self.pick).await? {
            running.push(on.engine.dead_retry(&sink, seqs).await.map_err(text)?);
        }
        loop {
            let mut retried = Retried {
                reason: running.iter().find_map(|progress| progress.why()),
                ..Retried::default()
            };
            for (total, delivered, failed) in running.iter().map(|progress| progress.counts()) {
                retried.total += total;
                retried.delivered += delivered;
                retried.failed += failed;
            }
            out.say(&retried).await?;
            if retried.delivered + retried.failed >= retried.total {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

impl Drop {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Dropped>) -> Result<(), Refusal> {
        let mut dropped = 0;
        for (sink, seqs) in by_sink(on, self.sink.as_deref(), &self.pick).await? {
            let engine = on.engine.clone();
            let drop = tokio::task::spawn_blocking(move || engine.dead_drop(&sink, &seqs));
            dropped += drop.await.map_err(text)?.map_err(text)?;
        }
        out.say(&Dropped { dropped }).await
    }
}

/// Dead letters of one sink or all that are meant; a refusal where not all of them can be read.
async fn letters(on: &Facade, sink: Option<&str>, pick: &Pick, limit: u64) -> Result<Vec<DeadLetter>, Refusal> {
    let (letters, left) = readable(on, sink, pick, limit).await?;
    left.into_iter().next().map_or(Ok(letters), Err)
}

/// The same as far as they can be read, with a sentence for each sink whose letters can't be.
pub(super) async fn readable(
    on: &Facade,
    sink: Option<&str>,
    pick: &Pick,
    limit: u64,
) -> Result<(Vec<DeadLetter>, Vec<String>), Refusal> {
    let selection = pick.compile()?;
    let everything = pick.is_empty();
    let most = if everything { limit as usize } else { usize::MAX };
    let (engine, sink) = (on.engine.clone(), sink.map(ToOwned::to_owned));
    let listed = tokio::task::spawn_blocking(move || engine.dead_readable(sink.as_deref(), Seq::ZERO, most));
    let (listed, left) = listed.await.map_err(text)?.map_err(text)?;
    let mut found = Vec::new();
    for letter in listed {
        if found.len() as u64 == limit {
            break;
        }
        let meant = everything || {
            let found = on.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)?;
            match found.and_then(|(_, event)| event) {
                Some(event) if event.kind != Kind::Erased => selection.selects(&event),
                // What the letter says itself is all that is left.
                gone => fits(&selection, &letter, gone.as_deref()),
            }
        };
        if meant {
            found.push(letter);
        }
    }
    Ok((found, left))
}

async fn by_sink(on: &Facade, sink: Option<&str>, pick: &Pick) -> Result<BTreeMap<String, Vec<Seq>>, Refusal> {
    let mut by_sink = BTreeMap::<String, Vec<Seq>>::new();
    for letter in letters(on, sink, pick, u64::MAX).await? {
        by_sink.entry(letter.sink).or_default().push(letter.seq);
    }
    Ok(by_sink)
}

/// Whether a letter whose event is a tombstone, or is not kept any more, is meant.
fn fits(selection: &Selection, letter: &DeadLetter, event: Option<&Event>) -> bool {
    let came = event.map(|event| event.received_at);
    let is_since = |since| came.is_some_and(|came| came >= since);
    let is_before = |until| came.is_some_and(|came| came < until);
    let types = &selection.types;
    selection.filter.is_none()
        && selection.quarantined.is_none()
        && selection.since.is_none_or(is_since)
        && selection.until.is_none_or(is_before)
        && (selection.ids.is_empty() || selection.ids.contains(&letter.id))
        && (selection.lead.is_none() || selection.lead == letter.lead_id)
        && (types.is_empty()
            || types
                .iter()
                .any(|pattern| pattern.matches(letter.event_type.as_deref())))
}
