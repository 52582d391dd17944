//! What a sink, its mark and the log say of one another when one of them was set back, or answers late.

use super::*;
use crate::state::{Expected, Revision, Store, StoreError};

/// A store that gives one change up although it is still on its way: it is made before the next one.
#[derive(Debug)]
struct Late {
    store: Arc<dyn Store>,
    receiver: Arc<Receiver>,
    /// The change with this position is the one.
    position: u64,
    queued: tokio::sync::Mutex<Option<(String, Vec<u8>, Expected)>>,
    done: AtomicBool,
}

#[async_trait]
impl crate::passing::PassingStore for Late {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        let mut queued = self.queued.lock().await;
        if let Some((key, value, expected)) = queued.take() {
            self.store.put(&key, value, expected).await.unwrap();
        }
        let json: serde_json::Value = serde_json::from_slice(&value).unwrap();
        if json["position"] == self.position && !self.done.swap(true, Ordering::SeqCst) {
            *queued = Some((key.to_owned(), value, expected));
            *lock(&self.receiver.fail_checkpoint) = Some("the disk failed".into());
            return Err(StoreError::Failing("the disk does not answer".into()));
        }
        self.store.put(key, value, expected).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_never_cut_back_behind_a_mark_that_becomes_durable_late() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    let store = Arc::new(Late {
        store: crate::deliver::open_store(bench.dir.path(), Mode::Follow)
            .await
            .unwrap(),
        receiver: receiver.clone(),
        position: 40,
        queued: tokio::sync::Mutex::new(None),
        done: AtomicBool::new(false),
    });
    let engine = bench
        .engine_with(Arc::new(bench.log.clone()), Some(store.clone()))
        .await;
    bench.store(1..=20).await;
    caught_up(&engine, 20).await;
    bench.store(21..=40).await;
    until("the change was given up", async || store.done.load(Ordering::SeqCst)).await;
    until("the sink was opened anew", async || {
        receiver.opened.load(Ordering::SeqCst) > 1
    })
    .await;
    bench.store(41..=60).await;
    until("all of it is durable", async || {
        engine.floor().await == Floor::Known(Seq(61))
    })
    .await;
    assert_eq!(receiver.seqs(), (1..=60).collect::<Vec<_>>());
    engine.shutdown().await;
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The data directory was set back to a copy of itself, with twenty events: the receiver has got sixty.
async fn set_back(receiver: &Arc<Receiver>) -> Bench {
    let sinks = vec![sink_on(receiver, Commit::Transaction)];
    let mut bench = Bench::new(sinks.clone());
    bench.store(1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 20).await;
    engine.shutdown().await;
    Log::close(&bench.log).await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(bench.dir.path(), copy.path());
    bench.log = open_log(bench.dir.path());
    bench.store(21..=60).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 60).await;
    engine.shutdown().await;
    Bench {
        log: open_log(copy.path()),
        dir: copy,
        rules: bench.rules.clone(),
        clock: bench.clock.clone(),
        sinks,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_ahead_of_the_log_gets_what_is_new() {
    let receiver = Receiver::new();
    let bench = set_back(&receiver).await;
    // Some come before the receiver is asked, and some afterwards.
    bench.store(101..=110).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it has the first", async || receiver.seqs().len() == 70).await;
    bench.store(111..=120).await;
    until("it has the others", async || receiver.seqs().len() == 80).await;
    assert!(
        receiver.seqs()[70..].iter().all(|seq| *seq > 60),
        "no Seq is given out twice"
    );
    engine.shutdown().await;
}

/// As where the receiver can't be reached meanwhile: nothing shows in how far both are.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_ahead_of_the_log_gets_what_has_come_at_the_seqs_that_it_knows() {
    let receiver = Receiver::new();
    let bench = set_back(&receiver).await;
    *lock(&receiver.fail_open) = Some("nobody is there".into());
    bench.store(101..=130).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it can't be reached", async || {
        status(&engine).last_error.is_some_and(|why| why == "nobody is there")
    })
    .await;
    bench.store(131..=160).await;
    engine.shutdown().await;
    *lock(&receiver.fail_open) = None;
    let engine = bench.engine(Mode::Follow).await;
    until("it has all that has come", async || receiver.seqs().len() >= 120).await;
    durable(&engine, 80).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(161..=161).await;
    caught_up(&engine, 81).await;
    assert_eq!(receiver.seqs()[60..], (21..=81).collect::<Vec<_>>(), "each once");
    engine.shutdown().await;
}

/// A full disk, say, while the log is to be told which Seqs are used up.
#[tokio::test(flavor = "multi_thread")]
async fn the_engine_starts_although_the_log_takes_or_finds_nothing() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=5).await;
    let state = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
        .await
        .unwrap();
    let ahead = crate::deliver::mark::Record {
        main: Some(crate::deliver::feed::Saved {
            next: Seq(9),
            open: Vec::new(),
        }),
        ..crate::deliver::mark::Record::default()
    };
    crate::state::put_json(&*state, "sink/a", &ahead, Expected::Anything)
        .await
        .unwrap();
    let mut second = sink_on(&Receiver::new(), Commit::Acknowledge);
    second.name = "b".into();
    second.start = crate::config::Start::At(jiff::Timestamp::UNIX_EPOCH);
    bench.sinks.push(second);
    let log = Arc::new(Faulty::on(&bench.log));
    log.broken.store(true, Ordering::SeqCst);
    let engine = bench.engine_with(log.clone(), Some(state)).await;
    assert_eq!(
        log.held.load(Ordering::SeqCst),
        8,
        "no Seq that was seen is given out again"
    );
    until("it says why it waits", async || {
        let why = engine.sinks().remove(1).waits_for;
        why.is_some_and(|why| why.contains("too many open files"))
    })
    .await;
    assert!(
        matches!(engine.floor().await, Floor::Unknown(_)),
        "and nothing goes before it has begun"
    );
    log.broken.store(false, Ordering::SeqCst);
    until("the log has gone on", async || *bench.log.head().borrow() == Seq(8)).await;
    bench.store(6..=7).await;
    until("what is new comes", async || receiver.sorted() == [9, 10]).await;
    until("the other has begun", async || {
        engine.sinks().remove(1).cursor == Seq(10)
    })
    .await;
    engine.shutdown().await;
}

/// The daemon is not the only one that stores: a command without one fetches or imports, into a log that has lost its end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_without_a_daemon_behind_a_lost_end_is_delivered() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let log = bench.dir.path().join("log");
    bench.store(1..=5).await;
    Log::close(&bench.log).await;
    let older = tempfile::tempdir().unwrap();
    copy_dir(&log, older.path());
    bench.log = open_log(bench.dir.path());
    bench.store(6..=10).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 10).await;
    durable(&engine, 10).await;
    engine.shutdown().await;
    Log::close(&bench.log).await;
    std::fs::remove_dir_all(&log).unwrap();
    copy_dir(older.path(), &log);

    bench.log = open_log(bench.dir.path());
    assert_eq!(*bench.log.head().borrow(), Seq(5));
    let engine = bench.engine(Mode::Jobs).await;
    bench.store(11..=13).await;
    assert_eq!(*bench.log.head().borrow(), Seq(13), "behind what was seen");
    engine.shutdown().await;
    Log::close(&bench.log).await;
    bench.log = open_log(bench.dir.path());
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 13).await;
    assert_eq!(receiver.sorted(), (1..=13).collect::<Vec<_>>(), "all of it, each once");
    engine.shutdown().await;
}

/// The log alone does not know how much was in a journal of which nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_has_seen_of_a_journal_that_is_gone_is_lost_for_certain() {
    let receiver = Receiver::new();
    let (mut bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 5).await;
    durable(&engine, 5).await;
    engine.shutdown().await;
    Log::close(&bench.log).await;
    std::fs::write(bench.dir.path().join(format!("log/{:020}/journal", 1)), b"").unwrap();
    for _ in 0..2 {
        bench.log = open_log(bench.dir.path());
        let engine = bench.engine(Mode::Follow).await;
        let gaps = bench.log.stats().gaps;
        assert_eq!((gaps.len(), gaps[0].certain_to), (1, Some(Seq(5))));
        engine.shutdown().await;
        Log::close(&bench.log).await;
    }
}

/// Both files of the state are gone, or what is in them is.
fn ruin_state(bench: &Bench) {
    for entry in std::fs::read_dir(bench.dir.path().join("state")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"nonsense").unwrap();
    }
}

/// The files are gone or empty, as after a file system was mended: that says as little of a first start as nonsense in them.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_gone_is_damage_and_no_first_start() {
    let remove = |state: &std::path::Path| std::fs::remove_dir_all(state).unwrap();
    let empty = |state: &std::path::Path| {
        for entry in std::fs::read_dir(state).unwrap() {
            std::fs::write(entry.unwrap().path(), b"").unwrap();
        }
    };
    let ways: [&dyn Fn(&std::path::Path); 2] = [&remove, &empty];
    for take in ways {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].start = crate::config::Start::Now;
        let engine = bench.engine(Mode::Follow).await;
        assert!(!engine.inner.store.is_damaged(), "it is new");
        bench.store(1..=5).await;
        caught_up(&engine, 5).await;
        engine.shutdown().await;
        take(&bench.dir.path().join("state"));
        bench.store(6..=8).await;
        bench.engine(Mode::Jobs).await.shutdown().await;
        lock(&receiver.has).clear();
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 8).await;
        assert_eq!(receiver.sorted(), (1..=8).collect::<Vec<_>>());
        assert!(!engine.inner.store.is_damaged());
        engine.shutdown().await;
        // That is said until somebody has seen it.
        let engine = bench.engine(Mode::Follow).await;
        let is_said = |status: SinkStatus| {
            let said = status.last_error.unwrap_or_default();
            status.needs_person && said.contains("lost to damage")
        };
        until("it is said", async || is_said(status(&engine))).await;
        // Also where something was rejected since, which keeps nothing.
        refuse(&receiver);
        bench.store(9..=9).await;
        until("it is dead", async || status(&engine).dead == 1).await;
        until("it is said all the same", async || is_said(status(&engine))).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        engine.pause("a", false).await.unwrap();
        until("it is said no more", async || !is_said(status(&engine))).await;
        assert!(!status(&engine).needs_person);
        engine.shutdown().await;
    }
}

/// A command opens the state before the daemon does, and settles nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_damage_took_is_missed_however_often_the_state_is_opened() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    caught_up(&engine, 5).await;
    engine.shutdown().await;
    ruin_state(&bench);
    bench.store(6..=8).await;
    for _ in 0..2 {
        bench.engine(Mode::Jobs).await.shutdown().await;
    }
    lock(&receiver.has).clear();
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 8).await;
    assert_eq!(
        receiver.sorted(),
        (1..=8).collect::<Vec<_>>(),
        "everything again rather than something never"
    );
    // Now that it has a position what is new is new.
    assert!(!engine.inner.store.is_damaged());
    engine.shutdown().await;
}

/// What could not be saved is not settled.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_settled_only_when_every_sink_has_a_durable_position() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    for _ in 0..2 {
        bench.engine(Mode::Follow).await.shutdown().await;
    }
    ruin_state(&bench);
    // In the place of the next file, as if the disk were full.
    let in_the_way = bench.dir.path().join("state/00000000000000000003.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    let engine = bench.engine(Mode::Follow).await;
    assert!(
        engine.inner.store.is_damaged(),
        "the sink's position could not be saved"
    );
    std::fs::remove_dir(&in_the_way).unwrap();
    bench.store(1..=2).await;
    durable(&engine, 2).await;
    engine.note_mended().await;
    assert!(!engine.inner.store.is_damaged());
    engine.shutdown().await;
}

/// "Now" is no later for a sink than what a command stores that it is to have, although no daemon has run yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_stores_to_be_dispatched_goes_to_sinks_that_no_daemon_has_known() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].start = crate::config::Start::Now;
    bench.store(1..=2).await;
    for (ids, upto) in [(3..=5, 6), (7..=8, 9)] {
        let command = bench.engine(Mode::Jobs).await;
        command.settle_starts().await.unwrap();
        bench.store(ids).await;
        // Before each part of what it stores; the position stays.
        command.settle_starts().await.unwrap();
        bench.store(upto..=upto).await;
        command.shutdown().await;
        let delivered = receiver.sorted();
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, upto).await;
        let expected: Vec<u64> = (3..=upto).collect();
        assert_eq!(receiver.sorted(), expected, "before: {delivered:?}");
        durable(&engine, upto).await;
        engine.shutdown().await;
    }
}
