//! New events, letters that are tried again, and replays share a sink.

use super::*;

/// However much there is to deliver, whoever asks for a letter or a replay is not kept waiting until all of it is.
#[tokio::test(flavor = "multi_thread")]
async fn letters_and_replays_go_beside_a_backlog() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].concurrency = Some(1);
        bench.sinks[0].breaker.refusals = 10_000;
        refuse(&receiver);
        bench.store(1..=20).await;
        let engine = bench.engine(Mode::Follow).await;
        until("all are dead", async || status(&engine).dead == 20).await;
        durable(&engine, 20).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        receiver.gate.send_replace(false);
        bench.store(21..=1500).await;
        until("one batch is under way", async || status(&engine).in_flight > 0).await;
        let retried = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
        let first = replay(&engine, 1, 20).await;
        let second = replay(&engine, 1, 20).await;
        receiver.gate.send_replace(true);
        assert_eq!(settled(&retried).await, (20, 20, 0), "{commit:?}");
        replay_done(&engine, &first).await;
        replay_done(&engine, &second).await;
        caught_up(&engine, 1500).await;
        let seqs = receiver.seqs();
        let last = seqs.iter().rposition(|seq| *seq <= 20).unwrap();
        // Six batches of them, and as many of new events between, and a few more before they were asked for.
        assert!(last < 400, "{commit:?}: the last one came behind {last} others");
        engine.shutdown().await;
    }
}

/// A replay that can't go on says why, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_says_what_it_waits_for() {
    let receiver = Receiver::new();
    let (_bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 5).await;
    engine.pause("a", true).await.unwrap();
    let id = replay(&engine, 1, 5).await;
    let why = || engine.replays()[0].waits_for.clone().unwrap_or_default();
    assert_eq!(why(), "sink \"a\" is paused: `closehook sinks resume a`");
    let waits = status(&engine).waits_for.unwrap();
    assert_eq!(waits, "it is paused: `closehook sinks resume a`");
    receiver.says(|_| {
        Err(Unavailable {
            after: Some(Duration::from_secs(3600)),
            ..Unavailable::new("429")
        })
    });
    engine.pause("a", false).await.unwrap();
    until("it is held off", async || why().contains("429; it is tried again at 2")).await;
    assert!(why().starts_with("sink \"a\" waits: "), "{}", why());
    // An interrupted one waits for nothing but its resumption.
    engine.replay_set_running(&id, false).await.unwrap();
    assert_eq!(engine.replays()[0].waits_for, None);
    engine.shutdown().await;
}

/// Whatever threads they are on: a sink that has several calls at a time, and keeps the order, goes by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_reach_the_sink_in_the_order_in_which_their_events_were_taken() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(16);
    bench.store(1..=5000).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5000).await;
    engine.shutdown().await;
    let came = lock(&receiver.came).clone();
    assert!(came.len() >= 500 && came.is_sorted(), "{came:?}");
}
