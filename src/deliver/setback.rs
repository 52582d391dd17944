//! Marks that do not fit the log which nodes share: those of another log, and those that have seen more than the log has.
//!
//! Both come about when streams are put back or made anew one by one: a mark is nothing but a Seq, and would pass what comes at it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::engine::Engine;
use super::mark::Record;
use super::reading::within;
use super::types::{EngineError, Mode, failed};
use crate::event::Seq;
use crate::log::{Log, ReadError};
use crate::state::{Expected, Revision, Store, StoreError, put_json};

/// A server that has just become the log's first may not know all of it yet. So often it is asked, and so long is waited in between.
const ASKED: u32 = 12;
const REST: Duration = Duration::from_millis(250);

/// Nodes' clocks are no further apart, and no mark is saved later, than this.
const APART: SignedDuration = SignedDuration::from_mins(10);

/// In the state that nodes share: that it is the one that a log began with.
const BEGUN: &str = "begun";

/// Notes in the state that nodes share that it is the one that a log began with: a sink that has no record there has never had one.
pub async fn note_begun(store: &dyn Store, log_id: &str) -> Result<(), StoreError> {
    let log = serde_json::json!({ "log": log_id });
    match put_json(store, BEGUN, &log, Expected::Nothing).await {
        Ok(_) | Err(StoreError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// One past the newest that the log has, as its servers say.
pub(super) async fn end_of(log: &dyn Log) -> Result<Seq, ReadError> {
    let asked = within(log.seq_at(Timestamp::MAX)).await?;
    Ok(asked.max(log.head().borrow().next()))
}

/// What a mark has seen.
fn seen(record: &Record) -> Seq {
    record.main.as_ref().map_or(Seq::ZERO, |main| main.next.prev())
}

/// Where the log ends, if it ends before this Seq for good.
async fn end_before(log: &dyn Log, seen: Seq) -> Result<Option<Seq>, ReadError> {
    for round in 0..ASKED {
        if seen <= *log.head().borrow() {
            return Ok(None);
        }
        let end = end_of(log).await?;
        if seen < end {
            return Ok(None);
        }
        if round + 1 == ASKED {
            return Ok(Some(end));
        }
        tokio::time::sleep(REST).await;
    }
    Ok(None)
}

/// Makes a mark of another log one of this. `true`: it was one.
fn adopt(log: &dyn Log, sink: &str, record: &mut Record) -> bool {
    let is_other = record.log_id.as_deref().is_some_and(|id| id != log.id());
    if is_other {
        tracing::error!(
            sink,
            "the sink's position is of another log than the one that is here now: it begins at the oldest event kept"
        );
        let main = record.main.is_some().then(|| log.first());
        *record = Record {
            paused: record.paused,
            position: record.position.take(),
            detached_at: record.detached_at,
            fence: record.fence,
            ..Record::default()
        };
        if let Some(first) = main {
            record.begin_at(first);
        }
    }
    is_other
}

/// Takes a mark back that has seen more than the log has: to what came after it was saved. What it had seen by then, the log has lost; of
/// what has come since, it had seen nothing, whatever its Seq.
async fn take_back(log: &dyn Log, sink: &str, record: &mut Record, end: Seq) -> Result<(), ReadError> {
    let since = record.saved_at.and_then(|at| at.checked_sub(APART).ok());
    let new = match since {
        Some(since) => within(log.seq_at(since)).await?,
        None => log.first(),
    };
    let seen = seen(record);
    tracing::error!(
        sink,
        head = end.prev().0,
        seen = seen.0,
        "the sink has seen more than the log has, which was set back: what came since may repeat, and what the log has lost is not here"
    );
    let Some(main) = &mut record.main else { return Ok(()) };
    if new < end {
        main.next = main.next.min(new);
        let next = main.next;
        main.open.retain(|item| item.seq < next);
    }
    Ok(())
}

/// Seqs up to there are not given out again. `false`: they are, and a mark behind the end has to wait there for what comes.
async fn skip_past(log: &dyn Log, seen: Seq, end: Seq) -> bool {
    match log.skip_past(seen).await {
        Ok(()) => true,
        Err(error) => {
            let (head, seen) = (end.prev().0, seen.0);
            tracing::error!(head, seen, %error, "sinks have seen events that the log has lost, and their Seqs are given out again");
            false
        }
    }
}

fn wait_at(record: &mut Record, end: Seq) {
    if let Some(main) = &mut record.main {
        main.next = main.next.min(end);
    }
}

/// Has the record of a sink that begins fit the log; an error says why that can't be known now. `true`: it was changed.
pub(super) async fn fit(log: &dyn Log, sink: &str, record: &mut Record) -> Result<bool, String> {
    let text = |error: ReadError| format!("the log does not say how far it is: {error}");
    let mut is_changed = adopt(log, sink, record);
    let seen = seen(record);
    if let Some(end) = end_before(log, seen).await.map_err(text)? {
        take_back(log, sink, record, end).await.map_err(text)?;
        if !skip_past(log, seen, end).await {
            wait_at(record, end);
        }
        is_changed = true;
    }
    if record.log_id.is_none() {
        record.log_id = Some(log.id().to_owned());
        is_changed = true;
    }
    Ok(is_changed)
}

impl Engine {
    /// The same for all records together, before this node takes anything: where one mark makes the log skip Seqs, another one that has
    /// seen less would seem to be right.
    pub(super) async fn fit_all(&self) -> Result<(), EngineError> {
        if self.inner.mode != Mode::Follow {
            return Ok(());
        }
        let log = &*self.inner.log;
        let mut ahead = Vec::new();
        for key in self.record_keys().await? {
            // What can't be read is looked at by whoever drives the sink.
            let Ok(Some((mut record, revision))) = self.record(&key).await else {
                continue;
            };
            let sink = key.trim_start_matches(super::mark::RECORDS).to_owned();
            if adopt(log, &sink, &mut record) {
                record.log_id = Some(log.id().to_owned());
                self.put_fitted(&key, &record, revision).await?;
            } else if seen(&record) > *log.head().borrow() {
                ahead.push((key, sink, record, revision));
            }
        }
        let Some(most) = ahead.iter().map(|(_, _, record, _)| seen(record)).max() else {
            return Ok(());
        };
        let Some(end) = end_before(log, most).await.map_err(failed)? else {
            return Ok(());
        };
        let mut back = Vec::new();
        for (key, sink, mut record, revision) in ahead {
            if seen(&record) >= end {
                take_back(log, &sink, &mut record, end).await.map_err(failed)?;
                back.push((key, record, revision));
            }
        }
        let skipped = skip_past(log, most, end).await;
        for (key, mut record, revision) in back {
            if !skipped {
                wait_at(&mut record, end);
            }
            self.put_fitted(&key, &record, revision).await?;
        }
        Ok(())
    }

    async fn put_fitted(&self, key: &str, record: &Record, revision: Revision) -> Result<(), EngineError> {
        let put = put_json(&*self.inner.store, key, record, Expected::Revision(revision)).await;
        match put {
            // Another node drives it, and has just looked by itself.
            Ok(_) | Err(StoreError::Conflict(_)) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Engine {
    /// Finds out whether what nodes keep together beside the log was lost, and made anew empty. A log that has given out Seqs had a node, and
    /// that has said so there when it began.
    pub(super) async fn look_whether_state_is_lost(&self) -> Result<(), EngineError> {
        if !self.shares_sinks() || self.has_begun().await? {
            return Ok(());
        }
        for key in self.record_keys().await? {
            // A closehook from before that was noted has saved it, or whoever was alone with the log.
            if let Ok(Some((Record { log_id: None, .. }, _))) = self.record(&key).await {
                return Ok(());
            }
        }
        let has_given_out = end_of(&*self.inner.log).await.map_err(failed)? > Seq(1);
        self.inner.lost_state.store(has_given_out, Ordering::Relaxed);
        Ok(())
    }

    async fn has_begun(&self) -> Result<bool, EngineError> {
        let noted = self.inner.store.get(BEGUN).await.map_err(failed)?;
        Ok(noted.is_some())
    }

    /// Where every sink begins has been noted: one without a record is new from now on.
    pub(super) async fn note_state(&self) -> Result<(), EngineError> {
        if !self.shares_sinks() {
            return Ok(());
        }
        if !self.has_begun().await? {
            let noted = note_begun(&*self.inner.store, self.inner.log.id()).await;
            noted.map_err(failed)?;
        }
        self.inner.lost_state.store(false, Ordering::Relaxed);
        Ok(())
    }
}
