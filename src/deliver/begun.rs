//! What an engine makes sure of before any of its sinks begins, where nodes share the log and the state beside it: that all marks fit the
//! log, and that the state is the one which the log began with.

use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::mark::{RECORDS, Record};
use super::reading::end_of;
use super::setback::{adopt, end_before, seen, skip_past, take_back, wait_at};
use super::types::{EngineError, Mode, failed};
use crate::event::Seq;
use crate::state::{Expected, Revision, Store, StoreError, put_json};

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

impl Engine {
    /// Has all records together fit the log, as each does that begins, before this node takes anything: where one mark makes the log skip Seqs, another one that has
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
            let sink = key.trim_start_matches(RECORDS).to_owned();
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
