//! A log that is not there yet: its servers can't be used, and a node that has started waits for them.
//!
//! It says why to whoever asks, takes nothing, and has nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    AppendError, Appended, Batch, ChangeError, Cut, Doomed, Erased, Incoming, Log, Narrow, ReadError, Servers, Stats,
    Take,
};
use crate::event::{Event, EventKey, Seq};

/// See the module's head.
#[derive(Debug)]
pub struct AbsentLog {
    why: watch::Receiver<String>,
    servers: Servers,
    head: watch::Sender<Seq>,
}

impl AbsentLog {
    /// `why` it is not there, as it changes; and what is known of its servers.
    pub fn new(why: watch::Receiver<String>, servers: Servers) -> AbsentLog {
        AbsentLog {
            why,
            servers,
            head: watch::Sender::new(Seq::ZERO),
        }
    }

    fn why(&self) -> String {
        self.why.borrow().clone()
    }

    fn cant_read<T>(&self) -> Result<T, ReadError> {
        Err(ReadError(self.why()))
    }
}

#[async_trait]
impl Log for AbsentLog {
    async fn append(&self, _incoming: Incoming) -> Result<Appended, AppendError> {
        Err(AppendError::Failing(self.why()))
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        let failing = |_: &Incoming| Err(AppendError::Failing(self.why()));
        together.iter().map(failing).collect()
    }

    fn ready(&self) -> Result<(), AppendError> {
        Err(AppendError::Failing(self.why()))
    }

    fn absent(&self) -> Option<String> {
        Some(self.why())
    }

    fn since_turned(&self) -> Duration {
        Duration::ZERO
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    fn first(&self) -> Seq {
        Seq(1)
    }

    fn last_before(&self, _seq: Seq) -> Option<Seq> {
        None
    }

    fn id(&self) -> &'static str {
        ""
    }

    fn epoch(&self) -> &'static str {
        ""
    }

    async fn read(&self, _from: Seq, _take: Take<'_>) -> Result<Batch, ReadError> {
        self.cant_read()
    }

    async fn get(&self, _seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        self.cant_read()
    }

    async fn find(&self, _id: &str) -> Result<Vec<Seq>, ReadError> {
        self.cant_read()
    }

    async fn find_revision(&self, _key: &EventKey) -> Result<Option<Seq>, ReadError> {
        self.cant_read()
    }

    async fn seq_at(&self, _time: Timestamp) -> Result<Seq, ReadError> {
        self.cant_read()
    }

    fn cuts(&self) -> Vec<Cut> {
        Vec::new()
    }

    async fn drop_before(&self, _seq: Seq) -> Result<Seq, ChangeError> {
        Err(ChangeError(self.why()))
    }

    fn disk_bytes(&self) -> (u64, u64) {
        (0, 0)
    }

    fn set_room(&self, _bytes: u64) {}

    async fn skip_past(&self, _seen: Seq) -> Result<(), AppendError> {
        Err(AppendError::Failing(self.why()))
    }

    async fn erase(&self, _narrow: Narrow, _doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        Err(ChangeError(self.why()))
    }

    fn stats(&self) -> Stats {
        Stats {
            first: Seq(1),
            last: Seq::ZERO,
            events: 0,
            received_bytes: 0,
            disk_bytes: 0,
            segments: 0,
            unsealed: 0,
            oldest_at: None,
            gaps: Vec::new(),
            keys_doubted: None,
        }
    }

    fn servers(&self) -> Option<Servers> {
        Some(self.servers.clone())
    }

    async fn verify(&self, _progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        vec![self.why()]
    }

    async fn close(&self) {}
}
