//! Where in the log a time is.
//!
//! Events have two times: that of their receipt, which an import keeps as it was, and that at which they came to the stream, which never
//! falls. What is old enough to go follows from the second, whatever is imported; what somebody asks for, from the first.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::api;
use super::fetch::{BYTES_MAX, EVENTS_MAX, PATIENCE, failed, next_event, next_from, some_from};
use super::message::Stored;
use super::shared::Shared;
use crate::event::Seq;
use crate::log::ReadError;
use crate::sync::read_lock;

/// Nodes' clocks are mostly no further ahead of the servers' than this.
const AHEAD: SignedDuration = SignedDuration::from_secs(5);

/// So long it is looked one by one.
const LOOKED_FOR: Duration = Duration::from_secs(10);

/// The first Seq received at or after a time. What was imported is older than what is before it: so it is searched for where what came
/// then begins, and what follows there is looked at one by one.
pub(super) async fn seq_at(shared: &Shared, time: Timestamp) -> Result<Seq, ReadError> {
    let mut from = came_at(shared, time.checked_sub(AHEAD).unwrap_or(Timestamp::MIN)).await?;
    let end = read_lock(&shared.info).state.last_seq + 1;
    let until = Instant::now() + LOOKED_FOR;
    loop {
        if Instant::now() >= until {
            // A copy of before it was noted when events had come: all of them came when it was made.
            return search(shared, from, Seq(end), |found| {
                found.received_at().is_some_and(|at| at < time)
            })
            .await;
        }
        let until = Instant::now() + PATIENCE;
        let mut some = some_from(shared, from, EVENTS_MAX, BYTES_MAX, until).await?;
        if some.is_empty() {
            some.extend(next_from(shared, from, until).await?);
        }
        let Some(last) = some.last().map(|last| Seq(last.seq)) else {
            return Ok(Seq(end).max(from));
        };
        let is_own = |found: &&Stored| found.erases().is_none_or(|erased| erased == found.seq);
        let is_meant = |found: &&Stored| found.received_at().is_some_and(|at| at >= time);
        if let Some(found) = some.iter().filter(is_own).find(is_meant) {
            return Ok(Seq(found.seq));
        }
        from = last.next();
    }
}

/// The first Seq that came at or after a time.
pub(super) async fn came_at(shared: &Shared, time: Timestamp) -> Result<Seq, ReadError> {
    let until = Instant::now() + PATIENCE;
    let info = api::info(&shared.link, shared.stream(), None, until)
        .await
        .map_err(failed)?;
    let (first, end) = (Seq(info.state.first_seq.max(1)), Seq(info.state.last_seq).next());
    shared.note(info);
    search(shared, first, end, |found| found.came().is_some_and(|at| at < time)).await
}

/// The first Seq that is not older: they are asked in the middle of what is left, again and again.
async fn search(
    shared: &Shared,
    mut low: Seq,
    mut high: Seq,
    is_older: impl Fn(&Stored) -> bool,
) -> Result<Seq, ReadError> {
    let until = Instant::now() + PATIENCE;
    // What is before `low` is older, what is from `high` on is not.
    while low < high {
        let middle = Seq(low.0 + (high.0 - low.0) / 2);
        let found = next_event(shared, middle, high, until).await?;
        match found {
            Some(found) if is_older(&found) => low = Seq(found.seq).next(),
            _ => high = middle,
        }
    }
    Ok(low)
}
