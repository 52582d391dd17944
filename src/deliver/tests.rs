//! The engine on a real log, with sinks that do what a test says.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
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

mod held;
mod positions;
mod replaying;

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
        self.receiver.panics("worker");
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

/// G3: whatever runs, progress is secured regularly, and little lies beyond it.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_sink_is_checkpointed_all_the_same() {
    let receiver = Receiver::new();
    let mut config = sink_on(&receiver, Commit::Checkpoint);
    config.dead_max = crate::config::Size(1 << 20);
    let bench = Bench::new(vec![config]);
    // 64 MB in bodies: the bytes beyond a checkpoint are bounded, too.
    for from in (1..=6400).step_by(100) {
        bench.store_with(from..=from + 99, &"x".repeat(10_000)).await;
    }
    let watched = receiver.clone();
    let saved_while_busy = Arc::new(AtomicU64::new(0));
    let counted = saved_while_busy.clone();
    receiver.says(move |delivery| {
        if delivery.event.seq.0 < 6400 {
            counted.store(watched.checkpoints.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        Ok(Outcome::Delivered)
    });
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 6400).await;
    let checkpoints = saved_while_busy.load(Ordering::SeqCst);
    assert!(checkpoints >= 3, "{checkpoints} checkpoints before it was idle");
    let surplus = receiver.largest_surplus.load(Ordering::SeqCst);
    assert!(surplus < 3000, "{surplus} events of 10 KB beyond a checkpoint");
    assert_eq!(receiver.seqs(), (1..=6400).collect::<Vec<_>>());
    engine.shutdown().await;
}

/// A1: after a checkpoint failed, nothing since the last good one is believed.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_checkpoint_everything_since_the_last_one_is_delivered_again() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(21))
    })
    .await;
    let told = receiver.clone();
    receiver.says(move |delivery| {
        if delivery.event.seq.0 == 30 {
            *lock(&told.fail_checkpoint) = Some("the disk failed".into());
        }
        Ok(Outcome::Delivered)
    });
    bench.store(21..=40).await;
    until("it was opened anew", async || {
        receiver.opened.load(Ordering::SeqCst) > 1
    })
    .await;
    receiver.says(|_| Ok(Outcome::Delivered));
    until("all of it is durable", async || {
        engine.floor().await == Floor::Known(Seq(41))
    })
    .await;
    assert_eq!(
        receiver.seqs(),
        (1..=40).collect::<Vec<_>>(),
        "what was not secured came again"
    );
    engine.shutdown().await;
}

/// A commit whose answer was lost is settled by reading the mark back.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_answer_was_lost_is_not_repeated() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Transaction)]);
    let engine = bench.engine(Mode::Follow).await;
    for round in 0..5 {
        receiver.lose_answer.store(true, Ordering::SeqCst);
        bench.store(round * 20 + 1..=round * 20 + 20).await;
        caught_up(&engine, round * 20 + 20).await;
    }
    assert!(receiver.opened.load(Ordering::SeqCst) > 1);
    assert_eq!(receiver.sorted(), (1..=100).collect::<Vec<_>>());
    engine.shutdown().await;
}

/// The process ends between the receiver's commit and our save.
#[tokio::test(flavor = "multi_thread")]
async fn the_mark_of_a_receiver_that_knows_more_is_taken_over() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Transaction)]);
    bench.store(1..=60).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 60).await;
    engine.shutdown().await;
    // Our record as it was before anything was delivered.
    let state = crate::state::LocalStore::open(&bench.dir.path().join("state"), false).unwrap();
    let older = super::mark::Record {
        main: Some(super::feed::Saved {
            next: Seq(1),
            open: Vec::new(),
        }),
        ..super::mark::Record::default()
    };
    crate::state::put_json(&state, "sink/a", &older, crate::state::Expected::Anything)
        .await
        .unwrap();
    crate::state::Store::close(&state).await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(61..=70).await;
    caught_up(&engine, 70).await;
    assert_eq!(receiver.sorted(), (1..=70).collect::<Vec<_>>());
    // A receiver that was set back gets again what it lost.
    lock(&receiver.marks).truncate(3);
    let kept = lock(&receiver.has).len();
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    until("it has it again", async || lock(&receiver.has).len() > kept).await;
    engine.shutdown().await;
}

/// G4: a letter that was delivered goes when that is durable, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_stays_until_its_delivery_is_secured() {
    for commit in [Commit::Checkpoint, Commit::Transaction, Commit::Acknowledge] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        receiver.says(|delivery| match delivery.event.seq.0 {
            5..=8 => Ok(Outcome::Reject { reason: "no".into() }),
            _ => Ok(Outcome::Delivered),
        });
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=20).await;
        until("four are dead", async || status(&engine).dead == 4).await;
        caught_up(&engine, 20).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        if commit == Commit::Checkpoint {
            *lock(&receiver.fail_checkpoint) = Some("the disk failed".into());
        }
        let asked = engine.dead_retry("a", (5..=8).map(Seq).collect()).await.unwrap();
        let (total, delivered, failed) = settled(&asked).await;
        if commit == Commit::Checkpoint {
            assert_eq!(
                (total, delivered, failed),
                (4, 0, 4),
                "the checkpoint failed: they are cut off"
            );
            assert_eq!(status(&engine).dead, 4);
            assert!(asked.why().unwrap().contains("the disk failed"));
            until("it works again", async || status(&engine).breaker == "closed").await;
            let asked = engine.dead_retry("a", (5..=8).map(Seq).collect()).await.unwrap();
            assert_eq!(settled(&asked).await, (4, 4, 0));
        } else {
            assert_eq!((total, delivered, failed), (4, 4, 0), "{commit:?}");
        }
        assert_eq!(status(&engine).dead, 0);
        assert_eq!(receiver.sorted(), (1..=20).collect::<Vec<_>>(), "{commit:?}");
        engine.shutdown().await;
    }
}

/// G13: each retry ends with its own true count.
#[tokio::test(flavor = "multi_thread")]
async fn retries_end_with_their_own_true_counts_whatever_happens() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 1000;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=60).await;
    until("all are dead", async || status(&engine).dead == 60).await;
    let all = || (1..=60).map(Seq).collect::<Vec<_>>();
    // Two at once, of which the first does not get anywhere before the second is asked for.
    receiver.gate.send_replace(false);
    let first = engine.dead_retry("a", all()).await.unwrap();
    let second = engine.dead_retry("a", all()).await.unwrap();
    let tried = Arc::new(Mutex::new(Vec::new()));
    let noted = tried.clone();
    receiver.says(move |delivery| {
        lock(&noted).push(delivery.event.seq.0);
        match delivery.event.seq.0 {
            1..=3 => Ok(Outcome::Reject { reason: "still".into() }),
            _ => Ok(Outcome::Delivered),
        }
    });
    receiver.gate.send_replace(true);
    assert_eq!(
        (settled(&first).await, settled(&second).await),
        ((60, 57, 3), (60, 57, 3))
    );
    assert_eq!(status(&engine).dead, 3);
    let mut tried = lock(&tried).clone();
    tried.sort_unstable();
    assert_eq!(tried, (1..=60).collect::<Vec<_>>(), "one try serves both");
    // One during a reload.
    receiver.gate.send_replace(false);
    let third = engine.dead_retry("a", vec![Seq(1), Seq(2), Seq(3)]).await.unwrap();
    until("they are under way", async || status(&engine).in_flight == 3).await;
    let mut changed = bench.sinks[0].clone();
    changed.timeout = Span::secs(19);
    let reloading = tokio::spawn({
        let (engine, rules) = (engine.clone(), bench.rules.clone());
        async move { engine.reload(rules, &[changed]).await }
    });
    receiver.says(|_| Ok(Outcome::Delivered));
    receiver.gate.send_replace(true);
    reloading.await.unwrap().unwrap();
    assert_eq!(settled(&third).await, (3, 3, 0), "what ran came to its end first");
    assert_eq!(status(&engine).dead, 0);
    // And one of which nobody ever hears: the sink has left the configuration.
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.store(61..=63).await;
    until("three are dead", async || status(&engine).dead == 3).await;
    receiver.gate.send_replace(false);
    let last = engine.dead_retry("a", (61..=63).map(Seq).collect()).await.unwrap();
    until("they are under way", async || status(&engine).in_flight == 3).await;
    let removing = tokio::spawn({
        let (engine, rules) = (engine.clone(), bench.rules.clone());
        async move { engine.reload(rules, &[]).await }
    });
    receiver.gate.send_replace(true);
    removing.await.unwrap().unwrap();
    assert_eq!(settled(&last).await, (3, 0, 3));
    assert_eq!(engine.dead_list(Some("a"), Seq(1), 9).unwrap().len(), 3);
    assert_eq!(engine.forget("a").await.unwrap(), 3);
    assert!(engine.forget("a").await.is_err() && engine.dead_list(Some("a"), Seq(1), 9).is_err());
    engine.shutdown().await;
    assert!(!bench.dir.path().join("dead/a").exists());
}

/// G13: also where the sink was paused before the worker began.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_sink_that_starts_paused_are_not_waited_for() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 3).await;
    engine.pause("a", true).await.unwrap();
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    assert!(engine.dead_retry("a", vec![Seq(1)]).await.is_err(), "said at once");
    // And when it is paused between the question and the order.
    let asked = Arc::new(RetryProgress::new(1));
    let order = super::worker::Command::RetryDead(vec![Seq(1)], asked.clone());
    engine.order("a", order).await.unwrap();
    assert_eq!(settled(&asked).await, (1, 0, 1));
    engine.shutdown().await;
}

/// A replay that began after the worker is still there when that goes back, or takes over the receiver's mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_outlives_a_failed_checkpoint_and_a_lost_answer() {
    for commit in [Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.store(1..=25).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 25).await;
        *lock(&receiver.fail_checkpoint) = Some("the disk failed".into());
        receiver.lose_answer.store(true, Ordering::SeqCst);
        let spec = ReplaySpec {
            sinks: vec!["a".into()],
            only_partials: false,
            ..ReplaySpec::of_partials(Seq(1), Seq(25))
        };
        let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
        engine.replay_start(spec, planned).await.unwrap();
        until("it is done", async || engine.replays()[0].state == "done").await;
        engine.shutdown().await;
        let engine = bench.engine(Mode::Follow).await;
        until("it is still done", async || engine.replays()[0].state == "done").await;
        engine.shutdown().await;
        let twice: Vec<u64> = (1..=25).flat_map(|seq| [seq, seq]).collect();
        assert_eq!(receiver.sorted(), twice, "{commit:?}");
    }
}

/// G13: a retry right after the cause is mended does not wait for the breaker, and one while it lasts says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_tried_at_once_and_says_why_nothing_works() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.probe = Span::secs(3600);
    bench.sinks[0].breaker.refusals = 1000;
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("all are dead", async || status(&engine).dead == 20).await;
    let gone = Unavailable {
        reason: "the token has expired".into(),
        after: Some(Duration::from_secs(3600)),
    };
    receiver.says(move |_| Err(gone.clone()));
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&asked).await, (20, 0, 20));
    assert_eq!(asked.why().as_deref(), Some("the token has expired"));
    let (letter, _) = engine.dead_get("a", Seq(1)).await.unwrap().unwrap();
    assert_eq!(
        (letter.attempts, letter.reason.as_str()),
        (1, "no"),
        "no attempt is counted"
    );
    receiver.says(|_| Ok(Outcome::Delivered));
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&asked).await, (20, 20, 0));
    engine.shutdown().await;
}

/// Decision 33, G16: nobody's attempt counts, and `retry-after` holds the whole sink.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_takes_nothing_costs_no_attempt_and_waits_as_a_whole() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    receiver.says(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(Unavailable {
            reason: "429".into(),
            after: Some(Duration::from_secs(3600)),
        })
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=100).await;
    until("it is unavailable", async || status(&engine).waits_for.is_some()).await;
    until("what was under way is back", async || status(&engine).in_flight == 0).await;
    let seen = calls.load(Ordering::SeqCst);
    assert!(seen <= 4, "{seen} calls: only what was under way");
    let status = status(&engine);
    assert_eq!((status.retrying, status.dead, status.breaker.as_str()), (0, 0, "open"));
    let waits_for = status.waits_for.unwrap();
    assert!(waits_for.starts_with("429; it is tried again at 2"), "{waits_for}");
    engine.shutdown().await;
    assert_eq!(calls.load(Ordering::SeqCst), seen);
}

/// Decision 33: a receiver that is gone for ever still gives dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_up_for_too_long_becomes_dead_letters() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.sinks[0].retry.max_age = Span(Duration::from_millis(300));
    *lock(&receiver.fail_open) = Some("nobody is there".into());
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3000).await;
    until("all are given up", async || status(&engine).dead == 3000).await;
    let (letter, event) = engine.dead_get("a", Seq(7)).await.unwrap().unwrap();
    assert!(letter.reason.contains("nobody is there"), "{}", letter.reason);
    assert_eq!((letter.attempts, event.unwrap().seq), (0, Seq(7)));
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(3001))
    })
    .await;
    engine.shutdown().await;
}

/// G15: a panic anywhere is caught, and the work is done all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_stops_nothing() {
    for part in ["worker", "open", "deliver", "checkpoint", "committed"] {
        let receiver = Receiver::new();
        *lock(&receiver.panic_in) = Some(part);
        let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
        bench.store(1..=30).await;
        let engine = bench.engine(Mode::Follow).await;
        until("all of it is durable", async || {
            engine.floor().await == Floor::Known(Seq(31))
        })
        .await;
        assert_eq!(receiver.seqs(), (1..=30).collect::<Vec<_>>(), "{part}");
        assert_eq!(*lock(&receiver.panic_in), None, "it panicked in {part}");
        engine.shutdown().await;
    }
}

/// A store whose changes wait at a gate.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Store>,
    open: tokio::sync::watch::Sender<bool>,
    /// Changes that have come to the gate.
    asked: AtomicU64,
}

#[async_trait]
impl Store for Slow {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.inner.put(key, value, expected).await
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.inner.remove(key, expected).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.inner.keys(prefix).await
    }

    async fn all(&self) -> Result<Vec<(String, bytes::Bytes)>, StoreError> {
        self.inner.all().await
    }

    fn is_damaged(&self) -> bool {
        self.inner.is_damaged()
    }

    fn mended(&self) {
        self.inner.mended();
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// G16: the pause is durable when it is answered, and no sooner, although a delivery hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_durable_while_a_delivery_runs() {
    for commit in [Commit::Checkpoint, Commit::Transaction, Commit::Acknowledge] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        receiver.gate.send_replace(false);
        let store = Arc::new(Slow {
            inner: super::open_store(bench.dir.path(), Mode::Follow).await.unwrap(),
            open: tokio::sync::watch::Sender::new(true),
            asked: AtomicU64::new(0),
        });
        let engine = bench.engine_on(store.clone(), Mode::Follow).await;
        bench.store(1..=5).await;
        until("it runs", async || status(&engine).in_flight > 0).await;
        store.open.send_replace(false);
        let mut pausing = Box::pin(engine.pause("a", true));
        // A save may be on its way already; the one of the pause comes to the gate then, or is this one.
        assert!(futures::poll!(&mut pausing).is_pending());
        until("the worker knows", async || status(&engine).paused).await;
        until("it is being saved", async || store.asked.load(Ordering::SeqCst) > 1).await;
        assert!(
            futures::poll!(&mut pausing).is_pending(),
            "{commit:?}: it is not durable"
        );
        assert!(!status(&bench.engine(Mode::Look).await).paused);
        store.open.send_replace(true);
        tokio::time::timeout(PATIENCE, pausing).await.unwrap().unwrap();
        assert!(status(&bench.engine(Mode::Look).await).paused, "{commit:?}");
        assert!(status(&engine).in_flight > 0, "{commit:?}: it was not waited for");
        receiver.gate.send_replace(true);
        engine.shutdown().await;
    }
}

/// G5: a sink that hangs holds up no order, and the engine stops without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_hangs_holds_up_nobody() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    receiver.gate.send_replace(false);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    until("it runs", async || status(&engine).in_flight > 0).await;
    engine.bury(Seq(3));
    let event = bench.log.get(Seq(4)).unwrap().unwrap();
    assert_eq!(engine.event_states(&event).await["a"], EventState::InFlight);
    let stopping = tokio::time::timeout(PATIENCE, engine.shutdown());
    assert!(stopping.await.is_ok());
    // What hung is not believed.
    receiver.gate.send_replace(true);
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.seqs(), [1, 2, 3, 4, 5]);
    engine.shutdown().await;
}

/// G6, G16: what the log has to drop ends as one of delivered or dead, each once, and is counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_drops_ends_as_delivered_or_dead_and_never_both() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        receiver.gate.send_replace(false);
        bench.store(1..=5000).await;
        let engine = bench.engine(Mode::Follow).await;
        until("some are under way", async || status(&engine).in_flight > 0).await;
        let in_flight = status(&engine).in_flight as u64;
        engine.bury(Seq(4000));
        until("the rest is dead", async || status(&engine).dead + in_flight >= 4000).await;
        until("each of them is counted", async || {
            status(&engine).buried == status(&engine).dead
        })
        .await;
        receiver.gate.send_replace(true);
        caught_up(&engine, 5000).await;
        let dead = engine.dead_list(None, Seq::ZERO, usize::MAX).unwrap();
        let mut ends: Vec<u64> = receiver.seqs();
        ends.extend(dead.iter().map(|letter| letter.seq.0));
        ends.sort_unstable();
        assert_eq!(ends, (1..=5000).collect::<Vec<_>>(), "{commit:?}");
        assert!(dead[0].reason.contains("size limit"));
        until("that is durable", async || {
            engine.floor().await == Floor::Known(Seq(5001))
        })
        .await;
        engine.shutdown().await;
    }
}

/// G7: the copies are made when the log drops the events, and only then.
#[tokio::test(flavor = "multi_thread")]
async fn letters_are_copied_when_their_events_go_and_can_be_tried_again_then() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let mut sinks = bench.sinks.clone();
    sinks[0].breaker.refusals = 10_000;
    let bench = Bench { sinks, ..bench };
    let engine = bench.engine(Mode::Follow).await;
    // Random, so that it fills segments.
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(3000).collect();
    for from in (1..=1000).step_by(10) {
        let pad: String = random.chars().cycle().skip(from as usize).take(2000).collect();
        bench.store_with(from..=from + 9, &pad).await;
    }
    until("all are dead", async || status(&engine).dead == 1000).await;
    let size = || std::fs::metadata(bench.dir.path().join("dead/a")).unwrap().len();
    let referring = size();
    assert!(referring < 1000 * 500, "{referring} bytes without copies");
    engine.secure_letters(Seq(501)).await.unwrap();
    assert!(size() > referring);
    let copied = size();
    engine.secure_letters(Seq(501)).await.unwrap();
    assert_eq!(size(), copied, "once is enough");
    let log: &dyn Log = &bench.log;
    let dropped = log.drop_before(Seq(501)).await.unwrap();
    assert!(dropped > Seq(1), "something was dropped");
    let (_, event) = engine.dead_get("a", Seq(1)).await.unwrap().unwrap();
    assert_eq!(event.unwrap().view().unwrap().id, "ev_1");
    receiver.says(|_| Ok(Outcome::Delivered));
    let all: Vec<Seq> = (1..=1000).map(Seq).collect();
    let asked = engine.dead_retry("a", all).await.unwrap();
    assert_eq!(settled(&asked).await, (1000, 1000, 0));
    assert_eq!(receiver.sorted(), (1..=1000).collect::<Vec<_>>());
    engine.shutdown().await;
}

/// G7: dead letters have a limit of their own.
#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_letters_go_when_there_are_too_many() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 10_000;
    bench.sinks[0].dead_max = crate::config::Size(20_000);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1000).await;
    caught_up(&engine, 1000).await;
    let letters = engine.dead_list(None, Seq::ZERO, usize::MAX).unwrap();
    assert!((20..200).contains(&letters.len()), "{}", letters.len());
    assert_eq!(letters.last().unwrap().seq, Seq(1000));
    assert_eq!(engine.dead_list(None, Seq::ZERO, 1).unwrap().len(), 1);
    engine.shutdown().await;
}

/// G14: each state is what it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_before_the_sinks_start_was_not_routed() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].start = crate::config::Start::Now;
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(4..=5).await;
    caught_up(&engine, 5).await;
    let state = async |engine: &Engine, seq: u64| {
        let event = bench.log.get(Seq(seq)).unwrap().unwrap();
        engine.event_states(&event).await.remove("a").unwrap()
    };
    assert_eq!(state(&engine, 3).await, EventState::NotRouted);
    assert_eq!(state(&engine, 4).await, EventState::Delivered);
    until("that is durable", async || engine.floor().await == Floor::Known(Seq(6))).await;
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    assert_eq!(state(&look, 3).await, EventState::NotRouted);
    assert_eq!(state(&look, 4).await, EventState::Delivered);
}

/// A letter that was made right before a crash: the event is dead, and not delivered once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_mark_was_not_saved_is_not_delivered_as_well() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=5).await;
    std::fs::create_dir_all(bench.dir.path().join("dead")).unwrap();
    let letters = super::letters::Letters::open(&bench.dir.path().join("dead"), "a", false).unwrap();
    let event = bench.log.get(Seq(3)).unwrap().unwrap();
    letters
        .add(&[super::types::dead_letter("a", &event, "no".into(), 1, None)])
        .unwrap();
    drop(letters);
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.sorted(), [1, 2, 4, 5]);
    engine.shutdown().await;
}

/// A replay reads what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn replays_go_where_they_are_meant_and_come_to_their_end() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.store(1..=30).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 30).await;
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(30));
    spec.only_partials = false;
    spec.ids = vec!["ev_7".into(), "ev_8".into()];
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    assert_eq!(planned["a"], 2);
    let id = engine.replay_start(spec, planned).await.unwrap();
    until("it is done", async || engine.replays()[0].state == "done").await;
    assert_eq!((engine.replays()[0].id.clone(), engine.replays()[0].delivered), (id, 2));
    assert_eq!(receiver.seqs()[30..], [7, 8]);
    engine.shutdown().await;
}

/// Of what was erased while its letter was being tried no letter is made, and what waits is not tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_erased_while_it_was_tried_is_not_made_again() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    bench.sinks[0].breaker.refusals = 10_000;
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("all are dead", async || status(&engine).dead == 20).await;
    receiver.gate.send_replace(false);
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    until("half of them run", async || status(&engine).in_flight == 10).await;
    let tried = Arc::new(Mutex::new(Vec::new()));
    let noted = tried.clone();
    receiver.says(move |delivery| {
        lock(&noted).push(delivery.event.seq.0);
        Ok(Outcome::Reject { reason: "still".into() })
    });
    let doomed = |event: &crate::event::Event| matches!(event.seq.0, 3 | 13);
    let log: &dyn Log = &bench.log;
    let erased = log
        .erase(crate::log::Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    assert_eq!(erased.seqs, [Seq(3), Seq(13)]);
    let (dropped, left) = engine.dead_erase(std::collections::BTreeMap::new(), erased.seqs).await;
    assert_eq!((dropped, left), (2, Vec::new()));
    assert_eq!(asked.counts(), (20, 0, 1), "what waited is not tried");
    receiver.gate.send_replace(true);
    assert_eq!(settled(&asked).await, (20, 0, 20));
    assert_eq!(status(&engine).dead, 18);
    assert!(!lock(&tried).contains(&13));
    engine.shutdown().await;
}

/// A log that can't be read for a while.
#[derive(Debug)]
struct Faulty {
    log: LocalLog,
    broken: AtomicBool,
    /// Read as lost.
    gone: Mutex<Vec<u64>>,
}

#[async_trait]
impl Log for Faulty {
    async fn append(&self, incoming: Incoming) -> Result<Appended, crate::log::AppendError> {
        self.log.append(incoming).await
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, crate::log::AppendError>> {
        self.log.append_in_order(together).await
    }

    fn ready(&self) -> Result<(), crate::log::AppendError> {
        self.log.ready()
    }

    fn since_turned(&self) -> Duration {
        Log::since_turned(&self.log)
    }

    fn head(&self) -> tokio::sync::watch::Receiver<Seq> {
        self.log.head()
    }

    fn first(&self) -> Seq {
        self.log.first()
    }

    fn last_before(&self, seq: Seq) -> Option<Seq> {
        self.log.last_before(seq)
    }

    fn id(&self) -> &str {
        Log::id(&self.log)
    }

    fn epoch(&self) -> &str {
        self.log.epoch()
    }

    async fn read(&self, from: Seq, take: crate::log::Take<'_>) -> Result<crate::log::Batch, crate::log::ReadError> {
        self.fail()?;
        let mut batch = Log::read(&self.log, from, take).await?;
        for gone in lock(&self.gone).iter().copied().map(Seq) {
            if batch.events.iter().any(|event| event.seq == gone) {
                batch.events.retain(|event| event.seq != gone);
                batch.lost.push((gone, gone));
            }
        }
        Ok(batch)
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<crate::event::Event>>, crate::log::ReadError> {
        self.fail()?;
        Log::get(&self.log, seq).await
    }

    async fn find(&self, id: &str) -> Result<Vec<Seq>, crate::log::ReadError> {
        Log::find(&self.log, id).await
    }

    async fn find_revision(&self, key: &crate::event::EventKey) -> Result<Option<Seq>, crate::log::ReadError> {
        Log::find_revision(&self.log, key).await
    }

    async fn seq_at(&self, time: jiff::Timestamp) -> Result<Seq, crate::log::ReadError> {
        self.fail()?;
        Log::seq_at(&self.log, time).await
    }

    fn cuts(&self) -> Vec<crate::log::Cut> {
        self.log.cuts()
    }

    async fn drop_before(&self, seq: Seq) -> Result<Seq, crate::log::ChangeError> {
        self.log.drop_before(seq).await
    }

    fn set_room(&self, bytes: u64) {
        self.log.set_room(bytes);
    }

    fn disk_bytes(&self) -> (u64, u64) {
        Log::disk_bytes(&self.log)
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), crate::log::AppendError> {
        if self.fail().is_err() {
            return Err(crate::log::AppendError::Full("no room".into()));
        }
        Log::skip_past(&self.log, seen).await
    }

    async fn erase(
        &self,
        narrow: crate::log::Narrow,
        doomed: Arc<crate::log::Doomed>,
    ) -> Result<crate::log::Erased, crate::log::ChangeError> {
        Log::erase(&self.log, narrow, doomed).await
    }

    fn stats(&self) -> crate::log::Stats {
        self.log.stats()
    }

    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        Log::verify(&self.log, progress).await
    }

    async fn close(&self) {
        Log::close(&self.log).await;
    }
}

impl Faulty {
    fn on(log: &LocalLog) -> Faulty {
        Faulty {
            log: log.clone(),
            broken: AtomicBool::new(false),
            gone: Mutex::default(),
        }
    }

    fn fail(&self) -> Result<(), crate::log::ReadError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(crate::log::ReadError("too many open files".into()));
        }
        Ok(())
    }
}

/// G6: an event that can't be read now is neither gone nor finished.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_while_the_log_drops_it_is_postponed_and_not_passed() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    // Tried once, and put aside for an hour: it has to be read again.
    bench.sinks[0].retry.initial = Span::secs(3600);
    bench.sinks[0].retry.max_delay = Span::secs(3600);
    bench.sinks[0].breaker.failures = 10_000;
    receiver.says(|_| {
        Ok(Outcome::Retry {
            reason: "later".into(),
            after: Some(Duration::from_secs(3600)),
        })
    });
    bench.store(1..=9).await;
    let log = Arc::new(Faulty::on(&bench.log));
    let engine = bench.engine_with(log.clone(), None).await;
    until("all were tried", async || status(&engine).retrying == 9).await;
    log.broken.store(true, Ordering::SeqCst);
    engine.bury(Seq(9));
    until("it says why it waits", async || {
        let waits_for = status(&engine).waits_for;
        waits_for.is_some_and(|why| why.contains("too many open files"))
    })
    .await;
    let waiting = status(&engine);
    assert_eq!((waiting.cursor, waiting.dead, waiting.lost), (Seq(0), 0, 0));
    assert!(engine.secure_letters(Seq(9)).await.is_ok(), "there is none yet");
    log.broken.store(false, Ordering::SeqCst);
    until("all are dead", async || status(&engine).dead == 9).await;
    log.broken.store(true, Ordering::SeqCst);
    let error = engine.secure_letters(Seq(10)).await.unwrap_err();
    assert!(error.contains("too many open files"), "{error}");
    engine.shutdown().await;
}

/// One sink's letters that can't be read hold up that sink and nobody else; when they can be, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_can_not_be_read_hold_up_their_sink_and_no_start() {
    let receivers = [Receiver::new(), Receiver::new()];
    let mut sinks: Vec<SinkConfig> = receivers
        .iter()
        .map(|receiver| sink_on(receiver, Commit::Acknowledge))
        .collect();
    sinks[1].name = "b".into();
    let bench = Bench::new(sinks);
    bench.store(1..=5).await;
    let dead = bench.dir.path().join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    let event = bench.log.get(Seq(3)).unwrap().unwrap();
    let letters = super::letters::Letters::open(&dead, "b", false).unwrap();
    letters
        .add(&[super::types::dead_letter("b", &event, "no".into(), 1, None)])
        .unwrap();
    drop(letters);
    // A newer closehook's file.
    let good = std::fs::read(dead.join("b")).unwrap();
    let newer = crate::framefile::Format {
        magic: *b"CLHKDEAD",
        version: 9,
    };
    drop(crate::framefile::FrameFile::create(&dead.join("b"), newer).unwrap());
    let engine = bench.engine(Mode::Follow).await;
    until("the other sink has all", async || receivers[0].seqs().len() == 5).await;
    until("it says why it waits", async || {
        let sinks = engine.sinks();
        let waits_for = sinks[1].waits_for.as_deref().unwrap_or_default();
        waits_for.contains("dead letters") && waits_for.contains("run the newer version")
    })
    .await;
    assert!(
        engine.dead_list(Some("b"), Seq::ZERO, 9).is_err(),
        "an error is no absence"
    );
    assert!(engine.secure_letters(Seq(9)).await.is_err());
    assert!(receivers[1].seqs().is_empty());
    std::fs::write(dead.join("b"), good).unwrap();
    until("the other four are delivered", async || {
        receivers[1].sorted() == [1, 2, 4, 5]
    })
    .await;
    assert_eq!(engine.dead_list(Some("b"), Seq::ZERO, 9).unwrap().len(), 1);
    engine.shutdown().await;
}

/// What is erased goes out no more, although the sink had it in memory; and nothing of its letters is in any file.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_in_no_file_of_letters_and_is_not_delivered_any_more() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    // Two are refused; the others wait, in memory, for a receiver that is not there.
    receiver.says(|delivery| match delivery.event.seq.0 {
        1..=2 => Ok(Outcome::Reject { reason: "no".into() }),
        _ => Err(Unavailable::new("nobody is there")),
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=2).await;
    until("two are dead", async || status(&engine).dead == 2).await;
    bench.store(3..=6).await;
    until("the others were tried", async || {
        status(&engine).last_error.is_some_and(|why| why == "nobody is there")
    })
    .await;
    engine.pause("a", true).await.unwrap();
    until("nothing is under way", async || status(&engine).in_flight == 0).await;
    engine.secure_letters(Seq(3)).await.unwrap();
    assert_eq!(engine.dead_drop("a", &[Seq(2)]).unwrap(), 1);
    let file = || std::fs::read(bench.dir.path().join("dead/a")).unwrap();
    let holds = |name: &str| memchr::memmem::find(&file(), name.as_bytes()).is_some();
    assert!(holds("ev_1") && holds("ev_2"), "dropping gives no space back at once");
    let doomed = Arc::new(|event: &crate::event::Event| [1, 2, 4].contains(&event.seq.0));
    let log: &dyn Log = &bench.log;
    let erased = log.erase(crate::log::Narrow::default(), doomed).await.unwrap();
    assert_eq!(erased.seqs, [1, 2, 4].map(Seq));
    std::fs::write(bench.dir.path().join("dead/b.damaged"), "what was set aside").unwrap();
    let (count, left) = engine.dead_erase(std::collections::BTreeMap::new(), erased.seqs).await;
    assert_eq!(count, 1);
    assert!(left.len() == 1 && left[0].contains("b.damaged"), "{left:?}");
    assert!(!holds("ev_1") && !holds("ev_2"));
    receiver.says(|_| Ok(Outcome::Delivered));
    engine.pause("a", false).await.unwrap();
    caught_up(&engine, 6).await;
    assert_eq!(receiver.sorted(), [3, 5, 6]);
    engine.shutdown().await;
}
