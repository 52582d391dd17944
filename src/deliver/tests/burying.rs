//! What becomes of unfinished events when the log has to drop them.

use super::*;

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
