//! Sinks that gather: a batch that is not full waits for more, and not for ever.

use super::*;

/// A sink whose batches wait so long, and its receiver.
fn gathers(wait: Duration, events: usize) -> (Arc<Receiver>, SinkConfig) {
    let receiver = Receiver::new();
    let mut sink = sink_on(&receiver, Commit::Acknowledge);
    let drive = Drive {
        batch: Limits {
            events,
            bytes: 1 << 20,
            wait,
        },
        concurrency: 1,
        commit: Commit::Acknowledge,
    };
    let kind = Kind {
        receiver: receiver.clone(),
        drive,
    };
    sink.options = Arc::new(kind);
    (receiver, sink)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_waits_from_its_first_event_on_however_many_follow() {
    let (receiver, sink) = gathers(Duration::from_secs(1), 100_000);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    let began = std::time::Instant::now();
    let mut id = 0;
    // More comes more often than the wait is long, and does not end before something is delivered.
    until("it was delivered", async || {
        id += 1;
        bench.store(id..=id).await;
        !receiver.seqs().is_empty()
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(1), "not at once");
    assert!(receiver.seqs().len() > 1, "and together");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_there_after_a_restart_and_a_full_batch_goes_at_once() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 7);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=6).await;
    until("they are read", async || status(&engine).lag_events == 6).await;
    assert_eq!(receiver.seqs(), [0; 0]);
    // Nothing happens, and they grow older all the same.
    until("it says what it waits for", async || {
        let waits_by = status(&engine).waits_by.unwrap_or_default();
        waits_by.starts_with("it gathers events: what has come goes out at 2")
    })
    .await;
    let age = status(&engine).lag_seconds;
    until("they are older", async || status(&engine).lag_seconds > age + 0.2).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(7..=9).await;
    until("a batch is full", async || receiver.seqs().len() == 7).await;
    assert_eq!(receiver.seqs(), [1, 2, 3, 4, 5, 6, 7]);
    until("the rest waits", async || status(&engine).lag_events == 2).await;
    engine.shutdown().await;
    assert_eq!(receiver.seqs().len(), 7);
}

/// What is gathered for long is one message, and so is a probe of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_of_a_sink_that_gathers_for_long_is_a_whole_batch() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 5);
    let bench = Bench::new(vec![sink]);
    let calls: Arc<Mutex<Vec<u64>>> = Arc::default();
    let called = calls.clone();
    receiver.says(move |delivery| {
        let mut calls = lock(&called);
        calls.push(delivery.event.seq.0);
        // The first event of the first calls.
        if calls.len() < 4 {
            Err(Unavailable::new("busy"))
        } else {
            Ok(Outcome::Delivered)
        }
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    until("it is delivered", async || receiver.seqs().len() == 5).await;
    assert_eq!(*lock(&calls), [1, 1, 1, 1, 2, 3, 4, 5], "one call took all");
    engine.shutdown().await;
}

/// What waits for a batch to fill is no backlog that could not be delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waits_for_more_goes_when_the_log_has_to_drop_it() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 100_000);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=9).await;
    until("they wait", async || status(&engine).lag_events == 9).await;
    engine.bury(Seq(4));
    caught_up(&engine, 9).await;
    assert_eq!((receiver.seqs().len(), status(&engine).dead), (9, 0));
    engine.shutdown().await;
}

/// Whoever is woken for what is late must not be for what was told to wait.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_as_configured_is_behind_and_not_late() {
    let hour = Duration::from_secs(3600);
    for (delay, wait) in [(Some(hour), Duration::ZERO), (None, hour)] {
        let (_receiver, mut sink) = gathers(wait, 100);
        sink.delay = delay.map(crate::config::Span);
        let bench = Bench::new(vec![sink]);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=3).await;
        until("it is behind", async || status(&engine).lag_seconds > 0.2).await;
        let late = status(&engine).late_seconds;
        assert!(late.abs() < f64::EPSILON, "{late} with {delay:?} and {wait:?}");
        engine.shutdown().await;
    }
    // What goes on waiting is late, by as much as it waits longer.
    let wait = Duration::from_millis(100);
    let (receiver, sink) = gathers(wait, 100);
    receiver.gate.send_replace(false);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3).await;
    until("it is late", async || status(&engine).late_seconds > 0.1).await;
    let status_now = status(&engine);
    let longer = status_now.lag_seconds - status_now.late_seconds;
    assert!((longer - wait.as_secs_f64()).abs() < 0.001, "{status_now:?}");
    receiver.gate.send_replace(true);
    until("it has caught up", async || {
        status(&engine).late_seconds.abs() < f64::EPSILON
    })
    .await;
    engine.shutdown().await;
}
