//! Stores and logs that pass everything on to another one, but for what a test changes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::event::{Event, EventKey, Seq};
use crate::log::{
    AppendError, Appended, Batch, ChangeError, Cut, Doomed, Erased, Incoming, Log, Narrow, ReadError, Stats, Take,
};
use crate::state::{Entry, Expected, Revision, Store, StoreError};

/// A store in front of another one: what it does not do otherwise that one does. All values are what [`Store::keys`] and [`Store::get`] give.
#[async_trait]
pub trait PassingStore: std::fmt::Debug + Send + Sync + 'static {
    /// The one behind.
    fn behind(&self) -> &dyn Store;

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.behind().get(key).await
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.behind().put(key, value, expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.behind().remove(key, expected).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.behind().keys(prefix).await
    }

    fn is_damaged(&self) -> bool {
        self.behind().is_damaged()
    }

    async fn mended(&self) -> Result<(), StoreError> {
        self.behind().mended().await
    }

    async fn close(&self) {
        self.behind().close().await;
    }
}

#[async_trait]
impl<T: PassingStore> Store for T {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        PassingStore::get(self, key).await
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        PassingStore::put(self, key, value, expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        PassingStore::remove(self, key, expected).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        PassingStore::keys(self, prefix).await
    }

    fn is_damaged(&self) -> bool {
        PassingStore::is_damaged(self)
    }

    async fn mended(&self) -> Result<(), StoreError> {
        PassingStore::mended(self).await
    }

    async fn close(&self) {
        PassingStore::close(self).await;
    }
}

/// A log in front of another one: what it does not do otherwise that one does, and what a log need not do neither does.
#[async_trait]
pub trait PassingLog: std::fmt::Debug + Send + Sync + 'static {
    /// The one behind.
    fn behind(&self) -> &dyn Log;

    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        self.behind().append(incoming).await
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        self.behind().append_in_order(together).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.behind().ready()
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.behind().head()
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        self.behind().read(from, take).await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        self.behind().get(seq).await
    }

    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        self.behind().seq_at(time).await
    }

    /// Nothing waits for it.
    fn hold_until_past(&self, _seen: Seq) {}

    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        self.behind().skip_past(seen).await
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        self.behind().erase(narrow, doomed).await
    }
}

#[async_trait]
impl<T: PassingLog> Log for T {
    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        PassingLog::append(self, incoming).await
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        PassingLog::append_in_order(self, together).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        PassingLog::ready(self)
    }

    fn since_turned(&self) -> Duration {
        self.behind().since_turned()
    }

    fn head(&self) -> watch::Receiver<Seq> {
        PassingLog::head(self)
    }

    fn first(&self) -> Seq {
        self.behind().first()
    }

    fn last_before(&self, seq: Seq) -> Option<Seq> {
        self.behind().last_before(seq)
    }

    fn id(&self) -> &str {
        self.behind().id()
    }

    fn epoch(&self) -> &str {
        self.behind().epoch()
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        PassingLog::read(self, from, take).await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        PassingLog::get(self, seq).await
    }

    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError> {
        self.behind().find(id).await
    }

    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        self.behind().find_revision(key).await
    }

    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        PassingLog::seq_at(self, time).await
    }

    fn cuts(&self) -> Vec<Cut> {
        self.behind().cuts()
    }

    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError> {
        self.behind().drop_before(seq).await
    }

    fn disk_bytes(&self) -> (u64, u64) {
        self.behind().disk_bytes()
    }

    fn set_room(&self, bytes: u64) {
        self.behind().set_room(bytes);
    }

    fn hold_until_past(&self, seen: Seq) {
        PassingLog::hold_until_past(self, seen);
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        PassingLog::skip_past(self, seen).await
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        PassingLog::erase(self, narrow, doomed).await
    }

    fn stats(&self) -> Stats {
        self.behind().stats()
    }

    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        self.behind().verify(progress).await
    }

    async fn close(&self) {
        self.behind().close().await;
    }
}
