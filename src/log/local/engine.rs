//! The local log as the rest of closehook sees it: whatever may block runs where blocking is allowed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::handle::LocalLog;
use super::shared::Segment;
use super::{back, read, sealed};
use crate::event::{Event, EventKey, Seq};
use crate::log::{
    AppendError, Appended, Batch, BatchBack, ChangeError, Cut, Doomed, Erased, Incoming, Log, Narrow, ReadError, Stats,
    Take, TakeBack,
};
use crate::task;

/// Whoever reads waits so long. Longer than the keeper is waited for, so that it can be said what it is at.
const READ_PATIENCE: Duration = Duration::from_secs(60);

impl LocalLog {
    /// Runs what reads the disk where blocking is allowed, and waits for it for a while.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LocalLog) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let log = self.clone();
        let work = task::begin_blocking(move || work(&log));
        match tokio::time::timeout(READ_PATIENCE, work).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(ReadError("reading was interrupted".into())),
            Err(_) => Err(ReadError(format!(
                "the disk has not answered for {} s",
                READ_PATIENCE.as_secs()
            ))),
        }
    }
}

#[async_trait]
impl Log for LocalLog {
    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        LocalLog::append(self, incoming).await
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        LocalLog::append_in_order(self, together).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        LocalLog::ready(self)
    }

    fn since_turned(&self) -> Duration {
        self.shared.since_turned()
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.shared.head.subscribe()
    }

    fn first(&self) -> Seq {
        self.shared.first()
    }

    fn last_before(&self, seq: Seq) -> Option<Seq> {
        LocalLog::last_before(self, seq)
    }

    fn id(&self) -> &str {
        &self.shared.id
    }

    fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        let (events, bytes) = (take.events, take.bytes);
        let narrow = take.narrow.filter(|narrow| !narrow.is_empty()).cloned();
        self.blocking(move |log| match &narrow {
            Some(narrow) => read::read_narrowed(&log.shared, from, events, bytes, narrow),
            None => read::read(&log.shared, from, events, bytes),
        })
        .await
    }

    async fn read_back(&self, before: Seq, take: TakeBack<'_>) -> Result<BatchBack, ReadError> {
        let narrow = take.narrow.filter(|narrow| !narrow.is_empty()).cloned();
        let (from, events, bytes, within) = (take.from, take.events, take.bytes, take.within);
        let (since, until) = (take.since, take.until);
        self.blocking(move |log| {
            let take = TakeBack {
                from,
                events,
                bytes,
                within,
                narrow: narrow.as_ref(),
                since,
                until,
            };
            back::read_back(&log.shared, before, &take)
        })
        .await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        self.blocking(move |log| read::get(&log.shared, seq)).await
    }

    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError> {
        let id = id.to_owned();
        self.blocking(move |log| LocalLog::find(log, &id)).await
    }

    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        let key = key.clone();
        self.blocking(move |log| LocalLog::find_revision(log, &key)).await
    }

    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        self.blocking(move |log| read::seq_at(&log.shared, time)).await
    }

    fn places(&self, from: Seq, to: Seq) -> u64 {
        let parts = self.shared.gaps.without_skipped(from, to);
        parts.into_iter().map(|(from, to)| to.0 - from.0 + 1).sum()
    }

    fn cuts(&self) -> Vec<Cut> {
        let mut frees = 0;
        let cut = |(_, segment): (Seq, Segment)| {
            let (before, newest_us) = segment.extent()?;
            frees += segment.disk_bytes();
            Some(Cut {
                before,
                newest: sealed::time(newest_us),
                frees,
            })
        };
        self.shared.complete_segments().into_iter().filter_map(cut).collect()
    }

    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError> {
        self.shared.desk.have_dropped(seq).await.map_err(ChangeError)
    }

    fn disk_bytes(&self) -> (u64, u64) {
        (self.shared.segment_bytes(), self.shared.key_bytes())
    }

    fn reserved_bytes(&self) -> u64 {
        self.shared.reserved_bytes()
    }

    fn set_room(&self, bytes: u64) {
        self.shared.room.store(bytes, Ordering::Relaxed);
    }

    fn hold_until_past(&self, seen: Seq) {
        self.shared.held_until.fetch_max(seen.0, Ordering::Relaxed);
    }

    async fn note_seen(&self, seen: Seq) {
        let noted = self.blocking(move |log| {
            log.shared.gaps.prove(seen);
            Ok(())
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "it is not noted yet how much of what is lost sinks have seen");
        }
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        LocalLog::skip_past(self, seen).await
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        LocalLog::erase(self, narrow, doomed).await
    }

    fn stats(&self) -> Stats {
        LocalLog::stats(self)
    }

    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        let log = self.clone();
        let (parts, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let work = task::begin_blocking(move || {
            LocalLog::verify(&log, &mut |done, of| {
                let _ = parts.send((done, of));
            })
        });
        while let Some((done, of)) = heard.recv().await {
            progress(done, of);
        }
        work.await
            .unwrap_or_else(|_| vec!["the comparison was interrupted".into()])
    }

    async fn close(&self) {
        let log = self.clone();
        let _ = task::begin_blocking(move || LocalLog::close(&log)).await;
    }

    fn local(&self) -> Option<&LocalLog> {
        Some(self)
    }
}
