//! The log and the store behind a [`Gate`], with reads that fail on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use closehook::deliver::Engine;
use closehook::event::{Event, EventKey, Seq};
use closehook::log::{
    AppendError, Appended, Batch, ChangeError, Cut, Doomed, Erased, Incoming, LocalLog, Log, Narrow, ReadError, Stats,
    Take,
};
use closehook::retention::{Floor, Readers};
use closehook::state::{Entry, Expected, LocalStore, Revision, Store, StoreError};
use jiff::Timestamp;
use tokio::sync::watch;

use super::world::Gate;

/// A log that stops answering when the process is dead.
#[derive(Debug)]
pub struct GatedLog {
    pub inner: LocalLog,
    pub gate: Arc<Gate>,
    /// So many reads fail from now on, as with no file descriptor left.
    pub bad_reads: Arc<AtomicU32>,
}

impl GatedLog {
    fn inner(&self) -> &dyn Log {
        &self.inner
    }

    fn may_read(&self) -> Result<(), ReadError> {
        let spent = self
            .bad_reads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match spent {
            Ok(_) => Err(ReadError("too many open files".into())),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Log for GatedLog {
    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        self.inner().append(incoming).await
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        self.inner().append_in_order(together).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.inner().ready()
    }

    fn since_turned(&self) -> Duration {
        self.inner().since_turned()
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.inner().head()
    }

    fn first(&self) -> Seq {
        self.inner().first()
    }

    fn last_before(&self, seq: Seq) -> Option<Seq> {
        self.inner().last_before(seq)
    }

    fn id(&self) -> &str {
        self.inner().id()
    }

    fn epoch(&self) -> &str {
        self.inner().epoch()
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        self.gate.pass().await;
        self.may_read()?;
        self.inner().read(from, take).await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        self.gate.pass().await;
        self.may_read()?;
        self.inner().get(seq).await
    }

    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError> {
        self.inner().find(id).await
    }

    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        self.inner().find_revision(key).await
    }

    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        self.inner().seq_at(time).await
    }

    fn cuts(&self) -> Vec<Cut> {
        self.inner().cuts()
    }

    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError> {
        self.gate.pass().await;
        self.inner().drop_before(seq).await
    }

    fn disk_bytes(&self) -> (u64, u64) {
        self.inner().disk_bytes()
    }

    fn reserved_bytes(&self) -> u64 {
        self.inner().reserved_bytes()
    }

    fn set_room(&self, bytes: u64) {
        self.inner().set_room(bytes);
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        self.inner().skip_past(seen).await
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        self.gate.pass().await;
        self.inner().erase(narrow, doomed).await
    }

    fn stats(&self) -> Stats {
        self.inner().stats()
    }

    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        self.inner().verify(progress).await
    }

    async fn close(&self) {
        self.inner().close().await;
    }
}

/// A store that stops answering when the process is dead: before a change, or right after it.
#[derive(Debug)]
pub struct GatedStore {
    pub inner: LocalStore,
    pub gate: Arc<Gate>,
    /// So many reads and changes fail.
    pub faults: Arc<StoreFaults>,
}

/// See [`GatedStore`].
#[derive(Debug, Default)]
pub struct StoreFaults {
    pub reads: AtomicU32,
    pub puts: AtomicU32,
}

fn strikes(faults: &AtomicU32) -> bool {
    faults
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
        .is_ok()
}

#[async_trait]
impl Store for GatedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if strikes(&self.faults.reads) {
            return Err(StoreError::Unreadable("as it was told".into()));
        }
        self.inner.get(key).await
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.gate.pass().await;
        if strikes(&self.faults.puts) {
            return Err(StoreError::Failing("as it was told".into()));
        }
        let put = self.inner.put(key, value, expected).await;
        self.gate.pass().await;
        put
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.gate.pass().await;
        let removed = self.inner.remove(key, expected).await;
        self.gate.pass().await;
        removed
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.inner.keys(prefix).await
    }

    async fn all(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        self.inner.all().await
    }

    fn is_damaged(&self) -> bool {
        self.inner.is_damaged()
    }

    async fn mended(&self) -> Result<(), StoreError> {
        self.inner.mended().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// An engine whose dead letters have all the room there is: the model's caps are smaller than any that a person would set, and a
/// quarter of them would hold no letter. What is dropped for that has tests of its own.
pub struct Roomy(pub Engine);

#[async_trait]
impl Readers for Roomy {
    async fn floor(&self) -> Floor {
        Readers::floor(&self.0).await
    }

    fn bury(&self, upto: Seq) {
        Readers::bury(&self.0, upto);
    }

    async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        Readers::secure_letters(&self.0, before).await
    }
}
