//! The engine on a real log, with sinks that do what a test says.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::age::Clock;
use crate::config::{SinkConfig, Span};
use crate::event::{Delivery, Seq, Source};
use crate::log::{Appended, Incoming, LocalLog, Log};
use crate::retention::Floor;
use crate::rules::RuleSet;
use crate::sinks::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Mark, Opened, Outcome, Position, Sink, SinkKind, Unavailable,
};
use crate::state::{Entry, Expected, Revision, Store, StoreError};
use crate::sync::lock;

mod again;
mod burying;
mod commits;
mod delaying;
mod diverting;
pub(super) mod faulty;
mod gathered;
mod gathering;
mod given;
mod had;
mod handing_over;
mod held_up;
mod keeping;
mod kept;
mod lanes;
mod leased;
mod letters;
mod lost;
mod positions;
mod reloading;
mod rendering;
mod replaying;
mod retries;
mod ruled;
mod settling;
mod states;
mod unclear;
mod waiting;

use faulty::{Faulty, Slow};

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
    /// Calls of `deliver` that came.
    calls: AtomicU64,
    /// The first Seq of each of them, in the order they came.
    came: Mutex<Vec<u64>>,
    largest_surplus: AtomicU64,
    /// Calls of `deliver` wait while it is closed.
    gate: tokio::sync::watch::Sender<bool>,
    fail_open: Mutex<Option<String>>,
    fail_checkpoint: Mutex<Option<String>>,
    /// Checkpoints wait while it is closed.
    checkpoint_gate: tokio::sync::watch::Sender<bool>,
    panic_in: Mutex<Option<&'static str>>,
    marks: Mutex<Vec<Mark>>,
    /// The answer of the next transaction gets lost after it is committed.
    lose_answer: AtomicBool,
    /// It keeps what it gets to itself until a checkpoint.
    gather: Mutex<Option<crate::sinks::Gather>>,
    /// With so many that are not secured it can't gather more.
    full_at: AtomicU64,
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
            calls: AtomicU64::new(0),
            came: Mutex::default(),
            largest_surplus: AtomicU64::new(0),
            gate: tokio::sync::watch::Sender::new(true),
            fail_open: Mutex::default(),
            fail_checkpoint: Mutex::default(),
            checkpoint_gate: tokio::sync::watch::Sender::new(true),
            panic_in: Mutex::default(),
            marks: Mutex::default(),
            lose_answer: AtomicBool::new(false),
            gather: Mutex::default(),
            full_at: AtomicU64::new(u64::MAX),
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
        self.receiver.panics("worker");
        self.drive
    }

    fn gathers(&self) -> Option<crate::sinks::Gather> {
        *lock(&self.receiver.gather)
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
        receiver.calls.fetch_add(1, Ordering::SeqCst);
        lock(&receiver.came).extend(batch.deliveries().first().map(|delivery| delivery.event.seq.0));
        let _ = receiver.gate.subscribe().wait_for(|open| *open).await;
        let outcomes: Result<Vec<Outcome>, Unavailable> = {
            let says = lock(&receiver.says);
            batch.deliveries().iter().map(&**says).collect()
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
        let _ = receiver.checkpoint_gate.subscribe().wait_for(|open| *open).await;
        if let Some(reason) = lock(&receiver.fail_checkpoint).take() {
            return Err(Unavailable::new(reason));
        }
        let len = lock(&receiver.has).len() as u64;
        receiver.synced.store(len, Ordering::SeqCst);
        receiver.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Position(len.into())))
    }

    fn is_full(&self) -> bool {
        let receiver = &self.0.receiver;
        let len = lock(&receiver.has).len() as u64;
        len - receiver.synced.load(Ordering::SeqCst).min(len) >= receiver.full_at.load(Ordering::SeqCst)
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

/// One for each of these, `a` and so on.
fn sinks_on(receivers: &[Arc<Receiver>], commit: Commit) -> Vec<SinkConfig> {
    let named = receivers.iter().zip(["a", "b", "c"]);
    let sinks = named.map(|(receiver, name)| SinkConfig {
        name: name.into(),
        ..sink_on(receiver, commit)
    });
    sinks.collect()
}

/// A log in a directory of its own, and engines on it, one after the other.
struct Bench {
    dir: tempfile::TempDir,
    log: LocalLog,
    sinks: Vec<SinkConfig>,
    rules: Arc<RuleSet>,
    /// By which positions and replays grow old.
    clock: Clock,
}

impl Bench {
    fn new(sinks: Vec<SinkConfig>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let log = open_log(dir.path());
        Bench {
            dir,
            log,
            sinks,
            clock: Clock::new(jiff::Timestamp::now),
            rules: Arc::new(RuleSet::compile(&[], &[]).unwrap()),
        }
    }

    /// One with a sink that has got so many events, and the engine that follows.
    async fn caught_up(receiver: &Arc<Receiver>, commit: Commit, upto: u64) -> (Bench, Engine) {
        let bench = Bench::new(vec![sink_on(receiver, commit)]);
        bench.store(1..=upto).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, upto).await;
        (bench, engine)
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

    /// One that follows, on another log or another store.
    async fn engine_with(&self, log: Arc<dyn Log>, store: Option<Arc<dyn crate::state::Store>>) -> Engine {
        let store = match store {
            Some(store) => store,
            None => super::open_store(self.dir.path(), Mode::Follow).await.unwrap(),
        };
        let options = Options {
            log,
            store,
            dir: self.dir.path().to_owned(),
            rules: self.rules.clone(),
            sinks: self.sinks.clone(),
            mode: Mode::Follow,
            names: Arc::default(),
            clock: self.clock.clone(),
        };
        Engine::start(options).await.unwrap()
    }

    async fn engine(&self, mode: Mode) -> Engine {
        let store = super::open_store(self.dir.path(), mode).await.unwrap();
        self.engine_on(store, mode).await
    }

    async fn engine_on(&self, store: Arc<dyn Store>, mode: Mode) -> Engine {
        let options = Options {
            log: Arc::new(self.log.clone()),
            store,
            dir: self.dir.path().to_owned(),
            rules: self.rules.clone(),
            sinks: self.sinks.clone(),
            mode,
            names: Arc::default(),
            clock: self.clock.clone(),
        };
        Engine::start(options).await.unwrap()
    }
}

fn open_log(dir: &Path) -> LocalLog {
    LocalLog::open(crate::log::Options {
        dir: dir.to_owned(),
        round: Duration::from_millis(50),
        now: crate::log::Clock::default(),
        segment_size: 64 << 10,
        segment_age: Duration::from_secs(3600),
        reserve: Some(0),
        keys_kept: Duration::from_secs(3600),
        cache_bytes: 1 << 20,
        read_only: false,
    })
    .unwrap()
}

/// Leaves a dead letter of an event, as a sink does that gives it up.
pub fn leave_letter(dir: &Path, sink: &str, event: &crate::event::Event) {
    let dead = dir.join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    let letters = super::letters::Letters::open(&dead, sink, false).unwrap();
    let letter = super::types::dead_letter(sink, event, "no".into(), 1, None);
    letters.add(&[letter]).unwrap();
}

/// Every event is refused for good.
fn refuse(receiver: &Receiver) {
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
}

/// As many events are stored, and refused for good: all are dead letters, and that is durable.
async fn with_dead(receiver: &Arc<Receiver>, events: u64) -> (Bench, Engine) {
    let mut bench = Bench::new(vec![sink_on(receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    refuse(receiver);
    bench.store(1..=events).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == events).await;
    durable(&engine, events).await;
    (bench, engine)
}

/// One bit of a file is another one.
fn flip_in_the_middle(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What is said of an event at the first sink.
async fn state(bench: &Bench, engine: &Engine, seq: u64) -> EventState {
    let event = bench.log.get(Seq(seq)).unwrap().unwrap();
    engine.event_states(&event).await.remove("a").unwrap()
}

/// Everything up to here is finished, durably.
async fn durable(engine: &Engine, upto: u64) {
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(upto + 1))
    })
    .await;
}

/// A replay of these to the first sink, whether or not a rule sends them there.
async fn replay(engine: &Engine, from: u64, to: u64) -> String {
    let spec = ReplaySpec {
        from: Seq(from),
        to: Seq(to),
        sinks: vec!["a".into()],
        ..ReplaySpec::default()
    };
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    engine.replay_start(spec, planned).await.unwrap()
}

async fn replay_done(engine: &Engine, id: &str) -> ReplayStatus {
    let of = || engine.replays().into_iter().find(|replay| replay.id == id);
    until("the replay is done", async || {
        of().is_some_and(|replay| replay.state == "done")
    })
    .await;
    of().unwrap()
}

/// Only events of this lead (the Seq modulo 7) go to the first sink.
fn of_lead(lead: u64) -> Arc<RuleSet> {
    let rule = crate::config::RuleConfig {
        program: None,
        name: format!("lead {lead}"),
        events: Vec::new(),
        filter: Some(format!(
            r#"{{"type":"field_accessor","field":"lead_id","filter":{{"type":"equals","value":"lead_{lead}"}}}}"#
        )),
        sinks: vec!["a".into()],
    };
    Arc::new(RuleSet::compile(&[rule], &["a"]).unwrap())
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
