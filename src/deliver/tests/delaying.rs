//! `delay`: a first attempt is made no sooner than so long after the event was received.

use super::*;

/// Stores events that were received at another time than now.
async fn store_received(bench: &Bench, ids: std::ops::RangeInclusive<u64>, received_at: jiff::Timestamp) {
    let incoming = |id: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated"}}}}"#);
        Incoming::new(body.into(), received_at, Source::Webhook, None)
    };
    for stored in bench.log.append_in_order(ids.map(incoming).collect()).await {
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_by_a_delay_is_lag_and_no_trouble_and_replays_go_past_it() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].delay = Some(Span::secs(3600));
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it waits", async || status(&engine).waits_by.is_some()).await;
    let waiting = status(&engine);
    assert_eq!(
        (waiting.lag_events, waiting.waits_for, waiting.cursor),
        (3, None, Seq(0))
    );
    assert!(
        waiting
            .waits_by
            .unwrap()
            .starts_with("its delay: the next event is due at 2")
    );
    assert_eq!(state(&bench, &engine, 2).await, EventState::Waiting);
    let id = replay(&engine, 1, 2).await;
    replay_done(&engine, &id).await;
    assert_eq!(receiver.sorted(), [1, 2], "nothing but the replay");
    assert_eq!(status(&engine).lag_events, 3);
    // Another delay holds for what waits, too.
    bench.sinks[0].delay = None;
    engine.reload(engine.rules(), &bench.sinks).await.unwrap();
    caught_up(&engine, 3).await;
    assert_eq!(receiver.sorted(), [1, 1, 2, 2, 3]);
    assert_eq!(status(&engine).waits_by, None);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_first_attempt_comes_before_its_delay_is_over_also_after_a_restart() {
    const DELAY: Duration = Duration::from_millis(400);
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.sinks[0].delay = Some(Span(DELAY));
    let early = Arc::new(AtomicU64::new(0));
    let counted = early.clone();
    receiver.says(move |delivery| {
        let waited = jiff::Timestamp::now().duration_since(delivery.event.received_at);
        if waited < jiff::SignedDuration::try_from(DELAY).unwrap() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Outcome::Delivered)
    });
    let engine = bench.engine(Mode::Follow).await;
    for first in [1, 11, 21] {
        bench.store(first..=first + 9).await;
        tokio::task::yield_now().await;
    }
    until("some are there", async || !receiver.seqs().is_empty()).await;
    bench.store(31..=40).await;
    until("some wait", async || status(&engine).waits_by.is_some()).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 40).await;
    assert_eq!(receiver.sorted(), (1..=40).collect::<Vec<_>>(), "each once");
    assert_eq!(early.load(Ordering::SeqCst), 0, "some came early");
    engine.shutdown().await;
}

/// By a clock that was set back by a day all of these have not happened yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_keeps_nothing_waiting_for_longer_than_the_delay() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].delay = Some(Span(Duration::from_millis(50)));
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    store_received(&bench, 1..=20, tomorrow).await;
    let engine = bench.engine(Mode::Follow).await;
    store_received(&bench, 21..=40, tomorrow).await;
    caught_up(&engine, 40).await;
    assert_eq!(receiver.sorted(), (1..=40).collect::<Vec<_>>());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_another_sink_is_passed_without_waiting() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.rules = of_lead(5);
    bench.sinks[0].delay = Some(Span::secs(3600));
    bench.store(1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 4).await;
    assert_eq!(status(&engine).lag_events, 16);
    engine.shutdown().await;
}
