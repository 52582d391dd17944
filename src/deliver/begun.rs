//! What an engine makes sure of before any of its sinks begins: that no Seq is given out again which was before, and, where nodes share the
//! log, that all marks fit it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Inner};
use super::letters::Traces;
use super::mark::{RECORDS, Record};
use super::reading::aside;
use super::setback::{adopt, end_before, is_possible, seen, skip_past, take_back};
use super::types::{EngineError, Mode, failed};
use crate::event::Seq;
use crate::log::{Log, SEGMENT_EVENTS_MAX};
use crate::state::{Expected, Revision, StoreError, put_json};
use crate::supervise;
use crate::sync::lock;
use crate::task;

/// A mark that does not fit is saved by another node so often at the most, before this one begins.
const SAVED_ELSEWHERE: usize = 12;

/// What the log can't do now is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Dead letters that can't be read keep the log from going on for so long at the most: receiving waits for no sink.
const LETTERS_AWAITED: Duration = Duration::from_secs(60);

/// Has the log go on behind what is known to have been given out, before it takes anything.
async fn go_on_behind(log: &dyn Log, known: Result<Seq, String>) -> Result<(), String> {
    let seen = known?;
    log.hold_until_past(seen);
    skip_past(log, seen).await
}

/// Asks the log again and again to go on, as long as there is an engine: one that could not begin after all is followed by another.
async fn go_on(log: Arc<dyn Log>, seen: Seq, engine: Weak<Inner>, over: CancellationToken) {
    let began = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(AGAIN_AFTER).await;
        let mut known = match engine.upgrade() {
            Some(inner) => Engine { inner }.with_letters(seen).await,
            None => break,
        };
        if let Err(why) = &known
            && began.elapsed() >= LETTERS_AWAITED
        {
            tracing::error!(%why, "the log goes on without that, behind all that they can be of");
            // As many as a segment holds may have been lost with the end of the log.
            known = Ok(Seq(seen.0.saturating_add(SEGMENT_EVENTS_MAX)));
        }
        match go_on_behind(&*log, known).await {
            Ok(()) => {
                tracing::info!("the log has gone on behind event {seen}: events are received from now on");
                break;
            }
            Err(why) => tracing::warn!(%why, "nothing is received yet; this is tried again"),
        }
    }
    over.cancel();
}

/// A record that has seen more than this node has heard of the log.
struct BeyondLog {
    key: String,
    sink: String,
    record: Record,
    revision: Revision,
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
            let head = *log.head().borrow();
            unskipped = unskipped.max(record.unskipped.filter(|unskipped| is_possible(log, head, *unskipped)));
            if seen(&record) > *log.head().borrow() {
                ahead.push(BeyondLog {
                    key,
                    sink,
                    record,
                    revision,
                });
            }
        }
        let mut most = unskipped.filter(|unskipped| *unskipped > *log.head().borrow());
        // They may have been put back to a later moment than the log.
        let by_letters = self.newest_letters().await.map_err(EngineError)?.into_iter().max();
        let by_letters = by_letters.filter(|newest| *newest > *log.head().borrow());
        if ahead.is_empty() && most.is_none() && by_letters.is_none() {
            return Ok(());
        }
        // One that can't be read now may be ahead too, and have seen less: nothing is skipped before it is known.
        if let Some(error) = unread {
            return Err(error);
        }
        // Nor before it is known of which events there are letters: those may be newer still.
        let by_letters = self.with_letters(Seq::ZERO).await.map_err(EngineError)?;
        most = most.max(self.take_back_those(ahead).await?);
        if end_before(log, by_letters).await.map_err(failed)?.is_some() {
            most = most.max(Some(by_letters));
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

    /// Takes back those of the records that have seen more than the log has; gives how much that can have been at the most.
    async fn take_back_those(&self, ahead: Vec<BeyondLog>) -> Result<Option<Seq>, EngineError> {
        let log = &*self.inner.log;
        let Some(furthest) = ahead.iter().map(|ahead| seen(&ahead.record)).max() else {
            return Ok(None);
        };
        let Some(end) = end_before(log, furthest).await.map_err(failed)? else {
            return Ok(None);
        };
        let marks = ahead.iter().map(|ahead| seen(&ahead.record));
        let most = marks
            .filter(|seen| *seen >= end && is_possible(log, end.prev(), *seen))
            .max();
        for mut ahead in ahead {
            if seen(&ahead.record) >= end {
                take_back(log, &ahead.sink, &mut ahead.record, end)
                    .await
                    .map_err(failed)?;
                self.save_fitted(&ahead.key, &ahead.sink, ahead.record, ahead.revision)
                    .await?;
            }
        }
        Ok(most)
    }

    /// Seqs that a sink has seen, or has letters of, are never given out again, even if damage took them from the log.
    pub(super) async fn guard_seqs(&self) -> Result<(), EngineError> {
        if self.shares_sinks() {
            return self.fit_all().await;
        }
        let log = &*self.inner.log;
        let head = *log.head().borrow();
        let mut seen = Seq::ZERO;
        for key in self.record_keys().await? {
            // What can't be read now is its worker's to read, again and again: nothing here waits for it.
            if let Ok(Some((record, revision))) = self.record(&key).await
                && let Some(main) = &record.main
            {
                let by_this = main.next.prev();
                if !is_possible(log, head, by_this) {
                    if self.inner.mode.drives() {
                        self.take_back_impossible(&key, record, revision).await;
                    }
                    continue;
                }
                log.note_seen(by_this).await;
                seen = seen.max(by_this);
            }
        }
        match self.newest_letters().await {
            Ok(newest) => {
                for by_this in newest {
                    log.note_seen(by_this).await;
                    seen = seen.max(by_this);
                }
            }
            Err(why) => tracing::error!(%why, "of which events there are dead letters can't be seen"),
        }
        // A command without a daemon stores events, too: what it fetches or imports.
        if self.inner.mode.drives() && seen > head {
            // An event at a Seq that was given out before would be passed by whoever has seen that.
            log.hold_until_past(seen);
            let known = self.with_letters(seen).await;
            if let Err(why) = go_on_behind(log, known).await {
                // On a full disk, say: the daemon starts all the same (decision 2).
                let (head, seen) = (head.0, seen.0);
                tracing::error!(head, seen, %why, "nothing is received until the log has gone on; that is tried again and again");
                self.go_on_later(Seq(seen));
            }
        }
        Ok(())
    }

    /// The newest event that a sink has seen, or has a letter of, where the log ends before it; `None` where it does not. For whoever looks at a log
    /// that nobody writes: nothing has it go on.
    pub async fn seen_beyond(&self) -> Result<Option<Seq>, EngineError> {
        // Which of several nodes' marks fit is theirs to find out.
        if self.shares_sinks() {
            return Ok(None);
        }
        let log = &*self.inner.log;
        let head = *log.head().borrow();
        let mut most = self.newest_letters().await.map_err(EngineError)?;
        for key in self.record_keys().await? {
            // What can't be made out tells nothing: its sink begins anew, and says so.
            if let Some((record, _)) = self.whole_record(&key).await? {
                most.push(seen(&record));
            }
        }
        most.retain(|by_this| *by_this > head && is_possible(log, head, *by_this));
        Ok(most.into_iter().max())
    }

    /// A position that this log can't have come to would have its sink begin at the end of the log, and pass what it has not had.
    async fn take_back_impossible(&self, key: &str, mut record: Record, revision: Revision) {
        let log = &*self.inner.log;
        let sink = key.trim_start_matches(RECORDS).to_owned();
        let end = log.head().borrow().next();
        let mut done = take_back(log, &sink, &mut record, end).await.map_err(failed);
        if done.is_ok() {
            done = self.save_fitted(key, &sink, record, revision).await;
        }
        if let Err(error) = done {
            tracing::warn!(sink, %error, "the sink's position can't be taken back: it begins at the end of the log");
        }
    }

    /// Of each sink that has letters, as far as they are read, the newest event that they tell of. A letter is durable before the mark that
    /// passes its event: another event at its Seq would be taken for dead.
    async fn newest_letters(&self) -> Result<Vec<Seq>, String> {
        let all = lock(&self.inner.letters).clone();
        let head = *self.inner.log.head().borrow();
        let upto = Seq(head.0.saturating_add(self.inner.log.leap_max()));
        let newest = move || {
            let each = all.into_iter().map(|(sink, letters)| (sink, letters.newest(upto)));
            each.collect::<Vec<(String, Traces)>>()
        };
        let found = aside(newest).await?;
        for (sink, traces) in &found {
            if let Some(beyond) = traces.beyond {
                tracing::error!(
                    sink,
                    head = head.0,
                    "there is a dead letter, or a note of one, of event {beyond}, which this log can't have given out: it is of another log, or damaged"
                );
            }
        }
        Ok(found.into_iter().map(|(_, traces)| traces.newest).collect())
    }

    /// Where the log has lost its end, what it has to go on behind by all letters that there are. An error: some can't be read. They may be newer
    /// than all else that is known, and what comes at their Seqs would be taken for dead: the log does not go on before that is known.
    async fn with_letters(&self, seen: Seq) -> Result<Seq, String> {
        let engine = self.clone();
        let read = aside(move || engine.read_all_letters()).await;
        read.flatten()?;
        let newest = self.newest_letters().await?.into_iter().max();
        Ok(seen.max(newest.unwrap_or_default()))
    }

    /// Blocking.
    fn read_all_letters(&self) -> Result<(), String> {
        self.find_letters().map_err(|error| error.to_string())?;
        let all = lock(&self.inner.letters).clone();
        for (sink, letters) in all {
            letters.read().map_err(|error| {
                format!(
                    "the dead letters of \"{sink}\" can't be read, and may be of events that the log has lost: {error}"
                )
            })?;
        }
        Ok(())
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
