//! The engine on a real log, with sinks that do what a test says.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::mark::Floor;
use super::*;
use crate::config::{SinkConfig, Span};
use crate::event::{Delivery, Seq, Source};
use crate::log::{Appended, Incoming, LocalLog};
use crate::rules::RuleSet;
use crate::sinks::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Mark, Opened, Outcome, Position, Sink, SinkKind, Unavailable,
};
use crate::sync::lock;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "waited too long until {what}"
    );
}

type Says = dyn Fn(&Delivery) -> Result<Outcome, Unavailable> + Send + Sync;

/// A receiver with a will of its own: what it was handed, what of that is durable, and what it does next.
struct Receiver {
    says: Mutex<Box<Says>>,
    /// Seqs, in the order they came; what goes back with a cut is not in it any more.
    has: Mutex<Vec<u64>>,
    /// How many of them the newest checkpoint covers.
    synced: AtomicU64,
    checkpoints: AtomicU64,
    opened: AtomicU64,
    largest_surplus: AtomicU64,
    /// Calls of `deliver` wait while it is closed.
    gate: tokio::sync::watch::Sender<bool>,
    fail_open: Mutex<Option<String>>,
    fail_checkpoint: Mutex<Option<String>>,
    panic_in: Mutex<Option<&'static str>>,
    marks: Mutex<Vec<Mark>>,
    /// The answer of the next transaction gets lost after it is committed.
    lose_answer: AtomicBool,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

impl Receiver {
    fn new() -> Arc<Receiver> {
        Arc::new(Receiver {
            says: Mutex::new(Box::new(|_| Ok(Outcome::Delivered))),
            has: Mutex::default(),
            synced: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            largest_surplus: AtomicU64::new(0),
            gate: tokio::sync::watch::Sender::new(true),
            fail_open: Mutex::default(),
            fail_checkpoint: Mutex::default(),
            panic_in: Mutex::default(),
            marks: Mutex::default(),
            lose_answer: AtomicBool::new(false),
        })
    }

    fn says(&self, says: impl Fn(&Delivery) -> Result<Outcome, Unavailable> + Send + Sync + 'static) {
        *lock(&self.says) = Box::new(says);
    }

    fn seqs(&self) -> Vec<u64> {
        lock(&self.has).clone()
    }

    /// Sorted, so that order does not matter; repetitions stay.
    fn sorted(&self) -> Vec<u64> {
        let mut seqs = self.seqs();
        seqs.sort_unstable();
        seqs
    }

    fn panics(&self, part: &'static str) {
        let mut panics = lock(&self.panic_in);
        if *panics == Some(part) {
            *panics = None;
            drop(panics);
            panic!("on purpose, in {part}");
        }
    }
}

#[derive(Debug, Clone)]
struct Kind {
    receiver: Arc<Receiver>,
    drive: Drive,
}

struct Open(Kind);

#[async_trait]
impl SinkKind for Kind {
    fn drive(&self) -> Drive {
        self.drive
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(format!("{:p}", Arc::as_ptr(&self.receiver)))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let receiver = &self.receiver;
        receiver.panics("open");
        if let Some(reason) = lock(&receiver.fail_open).clone() {
            return Err(Unavailable::new(reason));
        }
        receiver.opened.fetch_add(1, Ordering::SeqCst);
        let mut position = None;
        if self.drive.commit == Commit::Checkpoint {
            let mut has = lock(&receiver.has);
            let kept = context.position.and_then(|position| position.0.as_u64());
            let len = has.len();
            has.truncate(kept.map_or(len, |kept| kept as usize));
            position = Some(Position(has.len().into()));
        }
        let mark = match self.drive.commit {
            Commit::Transaction => lock(&receiver.marks).last().cloned(),
            _ => None,
        };
        Ok(Opened {
            sink: Box::new(Open(self.clone())),
            mark,
            position,
        })
    }

    async fn probe(&self, _context: Context) -> Result<String, Unavailable> {
        Ok("there".into())
    }
}

#[async_trait]
impl Sink for Open {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let receiver = &self.0.receiver;
        receiver.panics("deliver");
        let _ = receiver.gate.subscribe().wait_for(|open| *open).await;
        let outcomes: Result<Vec<Outcome>, Unavailable> = {
            let says = lock(&receiver.says);
            batch.deliveries().iter().map(|delivery| says(delivery)).collect()
        };
        let outcomes = outcomes?;
        let delivered = batch.deliveries().iter().zip(&outcomes);
        let delivered = delivered.filter(|(_, outcome)| **outcome == Outcome::Delivered);
        let mut has = lock(&receiver.has);
        has.extend(delivered.map(|(delivery, _)| delivery.event.seq.0));
        let surplus = has.len() as u64 - receiver.synced.load(Ordering::SeqCst).min(has.len() as u64);
        receiver.largest_surplus.fetch_max(surplus, Ordering::SeqCst);
        if self.0.drive.commit == Commit::Transaction {
            lock(&receiver.marks).push(batch.mark_after(&outcomes));
            if receiver.lose_answer.swap(false, Ordering::SeqCst) {
                return Err(Unavailable::new("the connection broke"));
            }
        }
        Ok(outcomes)
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        let receiver = &self.0.receiver;
        receiver.panics("checkpoint");
        if self.0.drive.commit != Commit::Checkpoint {
            return Ok(None);
        }
        if let Some(reason) = lock(&receiver.fail_checkpoint).take() {
            return Err(Unavailable::new(reason));
        }
        let len = lock(&receiver.has).len() as u64;
        receiver.synced.store(len, Ordering::SeqCst);
        receiver.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Position(len.into())))
    }

    async fn committed(&self) -> Result<Option<Position>, Unavailable> {
        self.0.receiver.panics("committed");
        Ok(None)
    }
}

fn sink_on(receiver: &Arc<Receiver>, commit: Commit) -> SinkConfig {
    let kind = Kind {
        receiver: receiver.clone(),
        drive: Drive {
            batch: Limits {
                events: 10,
                bytes: 1 << 20,
                wait: Duration::ZERO,
            },
            concurrency: 4,
            commit,
        },
    };
    let mut config = crate::sinks::tests::common(Arc::new(kind));
    config.name = "a".into();
    config.timeout = Span::secs(20);
    config.retry.initial = Span(Duration::from_millis(5));
    config.retry.max_delay = Span(Duration::from_millis(20));
    config.breaker.probe = Span(Duration::from_millis(20));
    config
}

/// A log in a directory of its own, and engines on it, one after the other.
struct Bench {
    dir: tempfile::TempDir,
    log: LocalLog,
    sinks: Vec<SinkConfig>,
    rules: Arc<RuleSet>,
}

impl Bench {
    fn new(sinks: Vec<SinkConfig>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let log = open_log(dir.path());
        Bench {
            dir,
            log,
            sinks,
            rules: Arc::new(RuleSet::compile(&[], &[]).unwrap()),
        }
    }

    async fn store(&self, ids: std::ops::RangeInclusive<u64>) {
        self.store_with(ids, "").await;
    }

    async fn store_with(&self, ids: std::ops::RangeInclusive<u64>, pad: &str) {
        let incoming = |id: u64| {
            let body = format!(
                r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","lead_id":"lead_{}","pad":"{pad}"}}}}"#,
                id % 7
            );
            Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
        };
        for stored in self.log.append_in_order(ids.map(incoming).collect()).await {
            assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
        }
    }

    async fn engine(&self, mode: Mode) -> Engine {
        let options = Options {
            log: Arc::new(self.log.clone()),
            dir: self.dir.path().to_owned(),
            rules: self.rules.clone(),
            sinks: self.sinks.clone(),
            mode,
        };
        Engine::start(options).await.unwrap()
    }
}

fn open_log(dir: &Path) -> LocalLog {
    LocalLog::open(crate::log::Options {
        dir: dir.to_owned(),
        retention: Duration::from_secs(3600),
        max_size: None,
        segment_size: 64 << 10,
        segment_age: Duration::from_secs(3600),
        reserve: Some(0),
        keys_kept: Duration::from_secs(3600),
        cache_bytes: 1 << 20,
        read_only: false,
    })
    .unwrap()
}

fn status(engine: &Engine) -> SinkStatus {
    engine.sinks().remove(0)
}

async fn caught_up(engine: &Engine, cursor: u64) {
    until("it has caught up", async || status(engine).cursor == Seq(cursor)).await;
}

async fn settled(progress: &RetryProgress) -> (u64, u64, u64) {
    until("the retry has ended", async || {
        let (total, delivered, failed) = progress.counts();
        delivered + failed >= total
    })
    .await;
    progress.counts()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_sink_has_every_event_once() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.store(1..=100).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 100).await;
        engine.shutdown().await;
        bench.store(101..=150).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 150).await;
        assert_eq!(receiver.sorted(), (1..=150).collect::<Vec<_>>(), "{commit:?}");
        until("that is durable", async || {
            engine.floor().await == Floor::Known(Seq(151))
        })
        .await;
        engine.shutdown().await;
        assert_eq!(engine.floor().await, Floor::Known(Seq(151)), "a stop changes nothing");
    }
}
