//! Seqs that are passed over: somebody has seen what stood there, and the stream has lost it.
//!
//! JetStream gives out the next sequence and no other. A purge moves the beginning of a stream, and with it the next sequence where nothing
//! is left; but it takes along what another node has stored and acknowledged since it was looked, and can't be told not to. So every Seq that
//! is passed over gets a message that says nothing, which goes again: whatever comes in between has a Seq of its own, and stays.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::append::{TOGETHER, Verdict, judged, publish_own};
use super::message::{part, random_text};
use super::shared::{Shared, left_until};
use super::{api, key};
use crate::event::Seq;
use crate::log::AppendError;

/// What is not done by then goes on when it is asked for again, from where it has come to: millions of Seqs take minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is left of it at the end has so long to be taken away. With [`PATIENCE`] it is less than whoever asks for it waits.
const CLEARED_WITHIN: Duration = Duration::from_secs(10);

/// One try of a batch.
const TRY: Duration = Duration::from_secs(8);

/// So many messages that say nothing are there at a time, at the most, besides those of one batch.
const THERE_MAX: u64 = 16_384;

/// Has the stream go on behind a Seq, whoever else stores something meanwhile.
pub(super) async fn skip_past(shared: &Shared, seen: Seq) -> Result<(), AppendError> {
    skip_until(shared, seen, Instant::now() + PATIENCE).await
}

pub(super) async fn skip_until(shared: &Shared, seen: Seq, until: Instant) -> Result<(), AppendError> {
    let info = api::info(&shared.link, shared.stream(), None, until).await;
    let info = info.map_err(|failure| AppendError::Failing(failure.to_string()))?;
    let last = Seq(info.state.last_seq);
    shared.note(info);
    if last >= seen {
        return Ok(());
    }
    use_up(shared, last, seen, until).await
}

/// Uses up what comes behind `last`, where the stream ended when it was looked, up to `seen`.
pub(super) async fn use_up(shared: &Shared, mut last: Seq, seen: Seq, until: Instant) -> Result<(), AppendError> {
    let (name, begin) = (random_text(), last);
    let (mut number, mut there, mut together) = (0, 0, TOGETHER.0 as u64);
    let mut used_up = Ok(());
    while last < seen {
        if Instant::now() >= until {
            used_up = Err(AppendError::Failing(left_until(begin, last, seen)));
            break;
        }
        let count = (seen.0 - last.0).min(together);
        match fill(shared, &name, (number, count), until).await {
            Ok(seq) => last = Seq(seq),
            // What says nothing takes up what is missing, it may be.
            Err(AppendError::Full(_)) if there > 0 => {
                take_away(shared, until).await;
                there = 0;
                continue;
            }
            // There is none for so many, whatever is taken away.
            Err(AppendError::Full(_)) if count > 1 => {
                together = count / 2;
                continue;
            }
            Err(error) => {
                let left = left_until(begin, last, seen);
                used_up = Err(match error {
                    AppendError::Full(why) => AppendError::Full(format!("{left}: {why}")),
                    AppendError::Failing(why) => AppendError::Failing(format!("{left}: {why}")),
                    error => error,
                });
                break;
            }
        }
        shared.saw(last);
        number += count;
        there += count;
        if there >= THERE_MAX {
            take_away(shared, until).await;
            there = 0;
        }
    }
    take_away(shared, Instant::now() + CLEARED_WITHIN).await;
    used_up
}

/// Stores messages that say nothing, from a number on, so many or one; gives the Seq of the last. Where there is no room for so many, none is
/// stored.
async fn fill(shared: &Shared, name: &str, (number, count): (u64, u64), until: Instant) -> Result<u64, AppendError> {
    if count > 1 {
        match fill_together(shared, name, number, count, until).await {
            Some(Verdict::Stored(seq)) => return Ok(seq),
            Some(Verdict::Full(why)) => return Err(AppendError::Full(why)),
            _ => {}
        }
    }
    // Under a subject of its own: of the batch it is not known what became of it.
    let subject = format!("{}.one", subject(shared, name, number));
    let put = publish_own(shared, &subject, &part("", ""), until).await?;
    Ok(put.0)
}

/// The same in one batch; `None` where nobody knows what came of it.
async fn fill_together(shared: &Shared, name: &str, number: u64, count: u64, until: Instant) -> Option<Verdict> {
    let line = shared.link.line(until).await.ok()?;
    let batch = random_text();
    for place in 1..=count {
        let mut headers = part("", "");
        headers.insert("Nats-Batch-Id", batch.as_str());
        headers.insert("Nats-Batch-Sequence", place.to_string());
        let subject = subject(shared, name, number + place - 1);
        if place < count {
            line.tell(&subject, headers, Bytes::new()).await.ok()?;
            continue;
        }
        headers.insert("Nats-Batch-Commit", "1");
        let until = until.min(Instant::now() + TRY);
        let answer = line.ask(&subject, headers, Bytes::new(), until).await.ok()?;
        return Some(judged(&answer));
    }
    None
}

fn subject(shared: &Shared, name: &str, number: u64) -> String {
    format!("{}.er.skipped.{name}.{number}", shared.stream())
}

/// Takes away all that says nothing, whoever has left it: the Seqs stay used up. What stays after all harms nobody, and goes the next time, or as
/// everything does that is old.
pub(super) async fn take_away(shared: &Shared, until: Instant) {
    let which = json!({ "filter": key::fillers(shared.stream()) });
    let purged = api::purge(&shared.link, shared.stream(), &which, until).await;
    if let Err(failure) = purged {
        tracing::warn!(%failure, "what holds the places of lost events in the stream can't be taken away now");
    }
}
