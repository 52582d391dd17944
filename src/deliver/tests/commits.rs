//! What each kind of sink is promised, whatever happens between it and its mark.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_sink_has_every_event_once() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let (bench, engine) = Bench::caught_up(&receiver, commit, 100).await;
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
    let (bench, engine) = Bench::caught_up(&receiver, Commit::Transaction, 60).await;
    engine.shutdown().await;
    // Our record as it was before anything was delivered.
    let state = crate::state::LocalStore::open(&bench.dir.path().join("state"), false).unwrap();
    let older = crate::deliver::mark::Record {
        main: Some(crate::deliver::feed::Saved {
            next: Seq(1),
            open: Vec::new(),
        }),
        ..crate::deliver::mark::Record::default()
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
