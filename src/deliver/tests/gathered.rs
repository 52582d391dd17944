//! Sinks that keep what they got in memory for long, and hand it over at a checkpoint.

use super::*;
use crate::log::Narrow;
use crate::sinks::Gather;

/// A sink that gathers for an hour, or until it has so much.
fn gathers(receiver: &Arc<Receiver>) -> SinkConfig {
    *lock(&receiver.gather) = Some(Gather {
        events: 100_000,
        bytes: 1 << 30,
        wait: Duration::from_secs(3600),
    });
    sink_on(receiver, Commit::Checkpoint)
}

/// The newest are handed over, and nothing else is secured yet.
async fn gathered(receiver: &Receiver, count: usize) {
    until("all are gathered", async || receiver.seqs().len() == count).await;
}

/// A prefix may be spread over so many objects that a checkpoint of what was to be gathered would never end.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_full_hands_over_what_it_has_before_it_gets_more() {
    let receiver = Receiver::new();
    receiver.full_at.store(25, Ordering::SeqCst);
    let bench = Bench::new(vec![gathers(&receiver)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=300).await;
    until("all is secured", async || receiver.synced.load(Ordering::SeqCst) == 300).await;
    let surplus = receiver.largest_surplus.load(Ordering::SeqCst);
    assert!((25..=34).contains(&surplus), "one call more at the most: {surplus}");
    engine.shutdown().await;
    assert_eq!(receiver.sorted(), (1..=300).collect::<Vec<_>>());
}

/// Privacy: once `log erase` has answered, nothing of it goes out any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_is_not_among_what_was_gathered() {
    for is_running in [false, true] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![gathers(&receiver)]);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=9).await;
        gathered(&receiver, 9).await;
        if is_running {
            receiver.gate.send_replace(false);
            bench.store(10..=10).await;
            until("a call runs", async || status(&engine).in_flight == 1).await;
        }
        let erased = crate::log::Log::erase(&bench.log, Narrow::default(), Arc::new(|event| event.seq == Seq(5))).await;
        assert_eq!(erased.unwrap().seqs, [Seq(5)]);
        let ask = engine.dead_erase(std::collections::BTreeSet::new(), Some(vec![Seq(5)]));
        tokio::pin!(ask);
        if is_running {
            assert!(futures::poll!(&mut ask).is_pending());
            receiver.gate.send_replace(true);
        }
        let (_, left) = ask.await;
        assert_eq!(left, [""; 0]);
        gathered(&receiver, 8 + usize::from(is_running)).await;
        engine.shutdown().await;
        let expected: Vec<u64> = (1..=9 + u64::from(is_running)).filter(|seq| *seq != 5).collect();
        assert_eq!(receiver.sorted(), expected, "running: {is_running}");
        assert_eq!(receiver.synced.load(Ordering::SeqCst), expected.len() as u64);
    }
}

/// What is secured already is nobody's to drop.
#[tokio::test(flavor = "multi_thread")]
async fn erasing_what_is_secured_drops_nothing() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![gathers(&receiver)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=9).await;
    gathered(&receiver, 9).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(10..=12).await;
    gathered(&receiver, 12).await;
    let opened = receiver.opened.load(Ordering::SeqCst);
    let (_, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(vec![Seq(5)]))
        .await;
    assert_eq!(left, [""; 0]);
    assert_eq!(receiver.opened.load(Ordering::SeqCst), opened);
    assert_eq!(receiver.seqs().len(), 12);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_gathered_is_handed_over_when_the_log_has_to_drop_it() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![gathers(&receiver)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=9).await;
    gathered(&receiver, 9).await;
    engine.bury(Seq(7));
    until("the log may drop it", async || {
        engine.floor().await == Floor::Known(Seq(10))
    })
    .await;
    assert_eq!((status(&engine).dead, status(&engine).buried), (0, 0));
    engine.shutdown().await;
}

/// What is gathered goes back with a checkpoint that fails, and not what somebody has said meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn that_somebody_has_seen_what_was_lost_is_kept_whatever_becomes_of_what_is_gathered() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![gathers(&receiver)]);
    bench.engine(Mode::Follow).await.shutdown().await;
    for entry in std::fs::read_dir(bench.dir.path().join("state")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"nonsense").unwrap();
    }
    let engine = bench.engine(Mode::Follow).await;
    until("it is said", async || status(&engine).needs_person).await;
    bench.store(1..=3).await;
    gathered(&receiver, 3).await;
    engine.pause("a", false).await.unwrap();
    let key = crate::deliver::mark::record_key("a");
    let (saved, _) = engine.record(&key).await.unwrap().unwrap();
    assert_eq!(saved.begun_anew, None, "that is durable when it is answered");
    *lock(&receiver.fail_checkpoint) = Some("the disk failed".into());
    let opened = receiver.opened.load(Ordering::SeqCst);
    receiver.full_at.store(4, Ordering::SeqCst);
    bench.store(4..=4).await;
    until("it has gone back, and is open again", async || {
        receiver.opened.load(Ordering::SeqCst) > opened
    })
    .await;
    until("all is secured", async || receiver.synced.load(Ordering::SeqCst) == 4).await;
    assert!(!status(&engine).needs_person);
    engine.shutdown().await;
}
