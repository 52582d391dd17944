//! A start with a dozen sinks on a slow disk: until every sink's record is known, nothing is dropped (the fourth window of fault G1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use closehook::config::{Breaker, Order, Retry, RuleConfig, SinkConfig, Span, Start};
use closehook::deliver::{self, Engine, Mode};
use closehook::event::{Seq, Source};
use closehook::log::{Clock, Incoming, LocalLog, Log, Options as LogOptions};
use closehook::retention::{self, Readers, Retention};
use closehook::rules::RuleSet;
use closehook::sinks::Commit;
use closehook::state::{Entry, Expected, LocalStore, Revision, Store, StoreError};
use jiff::Timestamp;
use tokio::sync::watch;

use super::receivers::ToWorld;
use super::world::{Gate, Mood, World};
use crate::harness::until;

const SINKS: [&str; 12] = [
    "ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kite", "lynx",
];

/// The one that is behind, and is read last.
const BEHIND: &str = "lynx";

/// What the disk makes of a sink's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// It does not answer.
    Hangs,
    /// It answers with an error.
    Fails,
    Done,
}

/// The state on a disk that gives the records of sinks when it is told to. All else it gives at once.
#[derive(Debug)]
struct SlowStore {
    inner: LocalStore,
    reads: watch::Sender<BTreeMap<&'static str, Read>>,
    /// Reads that wait for the disk.
    waiting: AtomicUsize,
}

impl SlowStore {
    fn reading(&self, sink: &'static str, read: Read) {
        self.reads
            .send_modify(|reads| *reads.entry(sink).or_insert(read) = read);
    }
}

#[async_trait]
impl Store for SlowStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let Some(sink) = key.strip_prefix("sink/") else {
            return self.inner.get(key).await;
        };
        let mut reads = self.reads.subscribe();
        let answers = |reads: &BTreeMap<&'static str, Read>| reads.get(sink) != Some(&Read::Hangs);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let read = reads.wait_for(answers).await.map(|reads| reads.get(sink).copied());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match read {
            Ok(Some(Read::Fails)) => Err(StoreError::Unreadable("the disk takes its time".into())),
            _ => self.inner.get(key).await,
        }
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.inner.put(key, value, expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.inner.remove(key, expected).await
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

/// A data directory with an engine on it.
struct Life {
    log: Arc<LocalLog>,
    store: Arc<SlowStore>,
    engine: Engine,
    retention: Arc<Retention>,
}

fn sinks(world: &Arc<World>) -> Vec<SinkConfig> {
    let sink = |name: &&str| SinkConfig {
        name: (*name).to_owned(),
        kind: "simulation".into(),
        start: Start::Beginning,
        concurrency: None,
        rate: None,
        timeout: Span(Duration::from_secs(5)),
        retry: Retry {
            initial: Span(Duration::from_millis(1)),
            factor: 2,
            max_delay: Span(Duration::from_millis(4)),
            max_age: Span::secs(3600),
        },
        order: Order::None,
        breaker: Breaker {
            failures: 10,
            refusals: 5,
            probe: Span(Duration::from_millis(5)),
        },
        dead_max: closehook::config::Size(64 << 20),
        delay: None,
        settle: None,
        dead_to: None,
        node: None,
        program: None,
        options: Arc::new(ToWorld {
            name: (*name).to_owned(),
            world: world.clone(),
            gate: Arc::new(Gate::default()),
            version: 0,
        }),
    };
    SINKS.iter().map(sink).collect()
}

fn rules() -> Arc<RuleSet> {
    let all: [RuleConfig; 0] = [];
    Arc::new(RuleSet::compile(&all, &SINKS).unwrap())
}

async fn begin(dir: &std::path::Path, world: &Arc<World>, reads: Read) -> Life {
    let (at, state) = (dir.to_owned(), dir.join("state"));
    let (log, store) = tokio::task::spawn_blocking(move || {
        let options = LogOptions {
            segment_size: 3000,
            round: Duration::from_millis(20),
            dir: at,
            segment_age: Duration::from_secs(3600),
            reserve: Some(0),
            keys_kept: Duration::from_secs(3600),
            cache_bytes: 1 << 20,
            read_only: false,
            now: Clock::default(),
        };
        (
            LocalLog::open(options).unwrap(),
            LocalStore::open(&state, false).unwrap(),
        )
    })
    .await
    .unwrap();
    let log = Arc::new(log);
    let store = Arc::new(SlowStore {
        inner: store,
        reads: watch::Sender::new(SINKS.map(|sink| (sink, reads)).into()),
        waiting: AtomicUsize::new(0),
    });
    let options = deliver::Options {
        log: log.clone(),
        store: store.clone(),
        dir: dir.to_owned(),
        rules: rules(),
        sinks: sinks(world),
        mode: Mode::Follow,
        names: Arc::default(),
        clock: closehook::age::Clock::new(jiff::Timestamp::now),
    };
    let engine = Engine::start(options).await.unwrap();
    // Whatever is not in the newest segment is older than it is kept.
    let ahead = Arc::new(AtomicI64::new(3600));
    let now = move || Timestamp::now() + jiff::SignedDuration::from_secs(ahead.load(Ordering::Relaxed));
    let options = retention::Options {
        dir: dir.to_owned(),
        keep: Duration::from_secs(60),
        max_size: None,
        on_servers: false,
        round: Duration::from_secs(3600),
    };
    let readers: Arc<dyn Readers> = Arc::new(engine.clone());
    let retention = Arc::new(Retention::new(options, log.clone(), readers, Clock::new(now)));
    Life {
        log,
        store,
        engine,
        retention,
    }
}

async fn append(log: &LocalLog, ids: std::ops::Range<u32>) {
    for id in ids {
        let noise: String = (0..40).map(|n| format!("{:x}", (id + 1) * 7919 * (n + 1))).collect();
        let body =
            format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","data":"{noise}"}}}}"#);
        let incoming = Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None);
        Log::append(log, incoming).await.unwrap();
    }
}

async fn stop(life: Life) {
    life.engine.shutdown().await;
    Log::close(&*life.log).await;
    life.store.close().await;
}

/// Every sink but the one behind is done with everything.
async fn others_are_done(life: &Life) {
    until("the others are done", async || {
        let sinks = life.engine.sinks();
        sinks.iter().all(|sink| sink.name == BEHIND || sink.lag_events == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_dozen_sinks_on_a_slow_disk_drops_nothing_before_every_record_is_known() {
    const EVENTS: u32 = 200;
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(SINKS.map(|sink| (sink, Commit::Acknowledge)));
    let life = begin(dir.path(), &world, Read::Done).await;
    append(&life.log, 0..40).await;
    others_are_done(&life).await;
    until("it has had the first ones", async || {
        life.engine.sinks().iter().all(|sink| sink.lag_events == 0)
    })
    .await;
    world.at(BEHIND, |receiver| {
        receiver.moods.extend(std::iter::repeat_n(Mood::Unavailable, 100_000));
    });
    append(&life.log, 40..EVENTS).await;
    others_are_done(&life).await;
    assert_eq!(life.log.first(), Seq(1));
    stop(life).await;

    // Their records become known one after the other.
    let life = begin(dir.path(), &world, Read::Fails).await;
    assert!(life.log.cuts().len() > 5);
    for sink in SINKS.iter().filter(|sink| **sink != BEHIND) {
        let _ = life.retention.round().await;
        assert_eq!(
            life.log.first(),
            Seq(1),
            "before {sink} is known: {:?}",
            life.retention.standing()
        );
        assert!(life.retention.standing().waits_for.is_some());
        life.store.reading(sink, Read::Done);
    }
    // The last one not at all for a while.
    let before = life.store.waiting.load(Ordering::SeqCst);
    life.store.reading(BEHIND, Read::Hangs);
    let retention = life.retention.clone();
    let round = tokio::spawn(async move { retention.round().await });
    until("its record is waited for", async || {
        life.store.waiting.load(Ordering::SeqCst) > before || round.is_finished()
    })
    .await;
    assert_eq!(life.log.first(), Seq(1));
    life.store.reading(BEHIND, Read::Fails);
    let _ = round.await.unwrap();
    assert_eq!(life.log.first(), Seq(1));
    life.store.reading(BEHIND, Read::Done);
    until("what all are done with goes, and no more", async || {
        let _ = life.retention.round().await;
        life.log.first() > Seq(1)
    })
    .await;
    assert!(life.log.first() <= Seq(41), "{}", life.log.first());
    world.at(BEHIND, |receiver| receiver.moods.clear());
    until("it has had every event", async || {
        world.at(BEHIND, |receiver| {
            let mut seqs: Vec<u64> = receiver.rows.iter().map(|row| row.seq.0).collect();
            seqs.sort_unstable();
            seqs.dedup();
            seqs == (1..=u64::from(EVENTS)).collect::<Vec<_>>()
        })
    })
    .await;
    stop(life).await;
}
