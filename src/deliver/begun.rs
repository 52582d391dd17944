//! What an engine makes sure of before any of its sinks begins, where nodes share the log: that all marks fit it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Inner};
use super::letters::Letters;
use super::mark::{RECORDS, Record};
use super::setback::{adopt, end_before, seen, skip_past, take_back};
use super::types::{EngineError, Mode, failed};
use crate::event::Seq;
use crate::log::Log;
use crate::state::{Expected, Revision, StoreError, put_json};
use crate::supervise;
use crate::sync::lock;
use crate::task;

/// A mark that does not fit is saved by another node so often at the most, before this one begins.
const SAVED_ELSEWHERE: usize = 12;

/// What the log can't do now is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Asks the log again and again to go on, as long as there is an engine: one that could not begin after all is followed by another.
async fn go_on(log: Arc<dyn Log>, seen: Seq, engine: Weak<Inner>, over: CancellationToken) {
    loop {
        tokio::time::sleep(AGAIN_AFTER).await;
        if engine.strong_count() == 0 {
            break;
        }
        match skip_past(&*log, seen).await {
            Ok(()) => {
                tracing::info!("the log has gone on behind event {seen}: events are received from now on");
                break;
            }
            Err(why) => tracing::warn!(%why, "nothing is received yet; this is tried again"),
        }
    }
    over.cancel();
}

impl Engine {
    /// Has all records together fit the log, as each does that begins, before this node takes anything: where one mark makes the log skip Seqs, another one that has
    /// seen less would seem to be right.
    pub(super) async fn fit_all(&self) -> Result<(), EngineError> {
        if self.inner.mode != Mode::Follow {
            return Ok(());
        }
        let log = &*self.inner.log;
        let (mut ahead, mut unread, mut unskipped) = (Vec::new(), None, None);
        for key in self.record_keys().await? {
            let (mut record, revision) = match self.whole_record(&key).await {
                Ok(Some(whole)) => whole,
                Ok(None) => continue,
                // Whoever drives the sink looks at it: what can't be read keeps nobody from receiving.
                Err(error) => {
                    unread = Some(error);
                    continue;
                }
            };
            let sink = key.trim_start_matches(RECORDS).to_owned();
            if adopt(log, &sink, &mut record) {
                self.save_fitted(&key, &sink, record, revision).await?;
                continue;
            }
            // Another node may be in the middle of that, or have ended in it: such a record fits by now.
            unskipped = unskipped.max(record.unskipped);
            if seen(&record) > *log.head().borrow() {
                ahead.push((key, sink, record, revision));
            }
        }
        let mut most = unskipped.filter(|unskipped| *unskipped > *log.head().borrow());
        // They may have been put back to a later moment than the log.
        let by_letters = self.newest_letters().into_iter().max();
        let by_letters = by_letters.filter(|newest| *newest > *log.head().borrow());
        if ahead.is_empty() && most.is_none() && by_letters.is_none() {
            return Ok(());
        }
        // One that can't be read now may be ahead too, and have seen less: nothing is skipped before it is known.
        if let Some(error) = unread {
            return Err(error);
        }
        if let Some(furthest) = ahead.iter().map(|(_, _, record, _)| seen(record)).max()
            && let Some(end) = end_before(log, furthest).await.map_err(failed)?
        {
            most = most.max(Some(furthest));
            for (key, sink, mut record, revision) in ahead {
                if seen(&record) >= end {
                    take_back(log, &sink, &mut record, end).await.map_err(failed)?;
                    self.save_fitted(&key, &sink, record, revision).await?;
                }
            }
        }
        if let Some(newest) = by_letters
            && end_before(log, newest).await.map_err(failed)?.is_some()
        {
            most = most.max(Some(newest));
        }
        // Not before all of them are durable: what has not been taken back by then would seem to be right. And nothing is received before it is
        // done, here or by another node that begins: an event at a Seq that was given out before would be taken for the one that was there, and
        // a dead letter of that for its own.
        let Some(most) = most else { return Ok(()) };
        log.hold_until_past(most);
        if let Err(why) = skip_past(log, most).await {
            // A log that is full gets room by what sinks are done with: everything but receiving begins.
            tracing::error!(%why, "nothing is received until the log has gone on; that is tried again and again");
            self.go_on_later(most);
        }
        Ok(())
    }

    /// Of each sink that has letters, as far as they are read, the newest event that they tell of. A letter is durable before the mark that
    /// passes its event: another event at its Seq would be taken for dead.
    pub(super) fn newest_letters(&self) -> Vec<Seq> {
        lock(&self.inner.letters).values().map(Letters::newest).collect()
    }

    /// Has the log go on behind what sinks have seen, as soon as it can.
    pub(super) fn go_on_later(&self, seen: Seq) {
        let (log, inner) = (self.inner.log.clone(), Arc::downgrade(&self.inner));
        let over = self.inner.stop.child_token();
        task::begin(async move {
            let go_on = || go_on(log.clone(), seen, inner.clone(), over.clone());
            supervise::run("log-gap", &over, go_on).await;
        });
    }

    /// Saves a record that fits now; one that somebody else has saved meanwhile is made to fit as well.
    async fn save_fitted(
        &self,
        key: &str,
        sink: &str,
        mut record: Record,
        mut revision: Revision,
    ) -> Result<(), EngineError> {
        let log = &*self.inner.log;
        for _ in 0..SAVED_ELSEWHERE {
            let put = put_json(&*self.inner.store, key, &record, Expected::Revision(revision)).await;
            match put {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(failed(error)),
            }
            let Some(again) = self.record(key).await.map_err(EngineError)? else {
                return Ok(());
            };
            (record, revision) = again;
            if !adopt(log, sink, &mut record) {
                let Some(end) = end_before(log, seen(&record)).await.map_err(failed)? else {
                    return Ok(());
                };
                take_back(log, sink, &mut record, end).await.map_err(failed)?;
            }
        }
        Err(EngineError(format!(
            "\"{sink}\": its position does not fit the log, and is saved elsewhere again and again"
        )))
    }
}
