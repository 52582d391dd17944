//! Two nodes, the log and the store that they share, and leases by hand.

use tokio::sync::watch;

use super::*;
use crate::node::{Lease, Leases, NodeStatus, Want};

/// Leases of one node.
#[derive(Debug)]
pub(super) struct ByHand {
    pub name: &'static str,
    pub held: Mutex<Option<Lease>>,
    pub changes: watch::Sender<u64>,
    pub given_up: AtomicU64,
    /// What was said to be wanted, one after the other.
    pub wants: Mutex<Vec<Vec<Want>>>,
}

impl ByHand {
    pub fn new(name: &'static str) -> Arc<ByHand> {
        Arc::new(ByHand {
            name,
            held: Mutex::default(),
            changes: watch::Sender::new(0),
            given_up: AtomicU64::new(0),
            wants: Mutex::default(),
        })
    }

    pub fn gets(&self, fence: u64) {
        *lock(&self.held) = Some(Lease::with_fence(fence));
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn loses(&self) {
        if let Some(lease) = lock(&self.held).take() {
            lease.end();
        }
        self.changes.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Leases for ByHand {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lease(&self, _what: &str) -> Option<Lease> {
        lock(&self.held).clone().filter(Lease::holds)
    }

    fn want(&self, wants: Vec<Want>) {
        lock(&self.wants).push(wants);
    }

    async fn give_up(&self, _what: &str) {
        self.given_up.fetch_add(1, Ordering::SeqCst);
        self.loses();
    }

    fn are_shared(&self) -> bool {
        true
    }

    fn holder(&self, _what: &str) -> Option<String> {
        lock(&self.held).is_some().then(|| self.name.to_owned())
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        Vec::new()
    }
}

/// The store that both share, with the fence of every mark that was ever durable.
#[derive(Debug)]
pub(super) struct Watched {
    pub store: Arc<dyn Store>,
    pub fences: Mutex<Vec<u64>>,
    /// Records of sinks can't be read.
    pub broken: AtomicBool,
    /// Nor can this one.
    pub unread: Mutex<Option<String>>,
    /// They can't be saved.
    pub refuses: AtomicBool,
}

#[async_trait]
impl crate::passing::PassingStore for Watched {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let is_unread = lock(&self.unread).as_deref() == Some(key);
        if is_unread || self.broken.load(Ordering::SeqCst) && key.starts_with("sink/") {
            return Err(StoreError::Unreadable("nobody answers".into()));
        }
        self.store.get(key).await
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        let fence = serde_json::from_slice::<Record>(&value).ok().map(|record| record.fence);
        if self.refuses.load(Ordering::SeqCst) && key.starts_with("sink/") {
            return Err(StoreError::Unreadable("nobody takes it".into()));
        }
        let put = self.store.put(key, value, expected).await?;
        if key == record_key("a") {
            lock(&self.fences).extend(fence);
        }
        Ok(put)
    }

    fn is_damaged(&self) -> bool {
        false
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    // It outlives the first node that stops.
    async fn close(&self) {}
}

pub(super) struct Pair {
    pub bench: Bench,
    pub store: Arc<Watched>,
}

pub(super) struct Node {
    pub engine: Engine,
    pub leases: Arc<ByHand>,
    pub receiver: Arc<Receiver>,
    _dir: tempfile::TempDir,
}

impl Pair {
    pub async fn new() -> Pair {
        let bench = Bench::new(Vec::new());
        let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
            .await
            .unwrap();
        let fences = Mutex::default();
        Pair {
            store: Arc::new(Watched {
                store,
                fences,
                broken: AtomicBool::new(false),
                unread: Mutex::default(),
                refuses: AtomicBool::new(false),
            }),
            bench,
        }
    }

    /// As if somebody had saved this of a sink.
    pub async fn saved(&self, sink: &str, record: &(impl serde::Serialize + Sync)) {
        crate::state::put_json(&*self.store, &record_key(sink), record, Expected::Anything)
            .await
            .unwrap();
    }

    pub async fn node(&self, name: &'static str, receiver: &Arc<Receiver>, commit: Commit) -> Node {
        self.node_on(Arc::new(self.bench.log.clone()), name, receiver, commit)
            .await
    }

    pub async fn node_on(
        &self,
        log: Arc<dyn Log>,
        name: &'static str,
        receiver: &Arc<Receiver>,
        commit: Commit,
    ) -> Node {
        let node = self.try_node(log, name, receiver, sink_on(receiver, commit)).await;
        node.unwrap()
    }

    /// One that has the sink, and to which the first events have been delivered, durably; so many are stored now.
    pub async fn node_at_work(&self, name: &'static str, receiver: &Arc<Receiver>, commit: Commit, upto: u64) -> Node {
        let node = self.node(name, receiver, commit).await;
        node.leases.gets(1);
        self.bench.store(1..=upto).await;
        self.durable(upto).await;
        node
    }

    /// One whose sink begins with what comes from now on.
    pub async fn node_from_now_on(&self, name: &'static str, receiver: &Arc<Receiver>) -> Node {
        let mut sink = sink_on(receiver, Commit::Acknowledge);
        sink.start = crate::config::Start::Now;
        let log = Arc::new(self.bench.log.clone());
        self.try_node(log, name, receiver, sink).await.unwrap()
    }

    pub async fn try_node(
        &self,
        log: Arc<dyn Log>,
        name: &'static str,
        receiver: &Arc<Receiver>,
        sink: SinkConfig,
    ) -> Result<Node, EngineError> {
        let dir = tempfile::tempdir().unwrap();
        self.try_node_in(dir, log, name, receiver, sink).await
    }

    pub async fn try_node_in(
        &self,
        dir: tempfile::TempDir,
        log: Arc<dyn Log>,
        name: &'static str,
        receiver: &Arc<Receiver>,
        sink: SinkConfig,
    ) -> Result<Node, EngineError> {
        let leases = ByHand::new(name);
        let options = Options {
            log,
            store: self.store.clone(),
            dir: dir.path().to_owned(),
            rules: self.bench.rules.clone(),
            sinks: vec![sink],
            mode: Mode::Follow,
            names: Arc::default(),
            clock: crate::age::Clock::new(jiff::Timestamp::now),
        };
        Ok(Node {
            engine: Engine::start_with(options, leases.clone()).await?,
            leases,
            receiver: receiver.clone(),
            _dir: dir,
        })
    }

    pub async fn record(&self) -> Option<Record> {
        let entry = self.store.store.get(&record_key("a")).await.unwrap();
        entry.map(|entry| entry.json::<Record>().unwrap())
    }

    /// Only whoever has the sink now has ever saved its mark since it has.
    pub fn nobody_came_between(&self) {
        let fences = lock(&self.store.fences).clone();
        assert!(fences.is_sorted(), "{fences:?}");
    }

    pub async fn durable(&self, upto: u64) -> Record {
        let read = async || {
            let entry = self.store.get(&record_key("a")).await.unwrap();
            entry.map(|entry| entry.json::<Record>().unwrap())
        };
        until("that is durable", async || {
            read().await.is_some_and(|record| record.cursor() == Some(Seq(upto)))
        })
        .await;
        read().await.unwrap()
    }
}
