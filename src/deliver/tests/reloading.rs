//! What happens while the configuration changes, or while that is under way.

use super::*;

/// The same sink, driven differently.
fn changed(sink: &SinkConfig) -> SinkConfig {
    SinkConfig {
        timeout: Span::secs(sink.timeout.0.as_secs() + 1),
        ..sink.clone()
    }
}

fn reloading(bench: &Bench, engine: &Engine, sinks: Vec<SinkConfig>) -> tokio::task::JoinHandle<()> {
    let (engine, rules) = (engine.clone(), bench.rules.clone());
    tokio::spawn(async move { drop(engine.reload(rules, &sinks).await.unwrap()) })
}

async fn is_stopping(engine: &Engine) {
    until("it is stopping", async || {
        status(engine).waits_for.is_some_and(|why| why == "it is stopping")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_does_not_stop_holds_up_no_other_of_a_reload() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    let sinks = sinks_on(&receivers, Commit::Acknowledge);
    let bench = Bench::new(sinks[..2].to_vec());
    receivers[0].gate.send_replace(false);
    bench.store(1..=5).await;
    let engine = bench.engine(Mode::Follow).await;
    until("one hangs, and the other has all", async || {
        status(&engine).in_flight == 5 && receivers[1].seqs().len() == 5
    })
    .await;
    let new = vec![changed(&sinks[0]), changed(&sinks[1]), sinks[2].clone()];
    let reload = reloading(&bench, &engine, new);
    is_stopping(&engine).await;
    bench.store(6..=9).await;
    until("the others go on", async || {
        receivers[1].seqs().len() == 9 && receivers[2].seqs().len() == 9
    })
    .await;
    assert_eq!(status(&engine).in_flight, 5, "and it still hangs");
    assert!(!reload.is_finished());
    receivers[0].gate.send_replace(true);
    reload.await.unwrap();
    until("it goes on", async || receivers[0].seqs().len() == 9).await;
    engine.shutdown().await;
}

/// What is erased while a worker stops is as erased as at any other time: of what it is delivering no letter is made.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_meets_a_worker_that_stops_is_carried_out() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    receiver.gate.send_replace(false);
    refuse(&receiver);
    bench.store(1..=5).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are under way", async || status(&engine).in_flight == 5).await;
    let reload = reloading(&bench, &engine, vec![changed(&bench.sinks[0])]);
    is_stopping(&engine).await;
    let doomed = |event: &crate::event::Event| event.seq.0 <= 2;
    let log: &dyn Log = &bench.log;
    let erased = log
        .erase(crate::log::Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    let (count, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(erased.seqs))
        .await;
    assert_eq!((count, left), (0, Vec::new()));
    assert!(!reload.is_finished(), "it was still stopping");
    receiver.gate.send_replace(true);
    reload.await.unwrap();
    until("the others are dead", async || status(&engine).dead == 3).await;
    let dead = engine.dead_list(None, Seq::ZERO, 9).unwrap();
    assert_eq!(dead.iter().map(|letter| letter.seq.0).collect::<Vec<_>>(), [3, 4, 5]);
    engine.shutdown().await;
}

/// Whoever asks a worker that stops is answered: by it, or by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn no_order_is_lost_on_a_worker_that_stops() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    refuse(&receiver);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3).await;
    until("all are dead", async || status(&engine).dead == 3).await;
    receiver.gate.send_replace(false);
    bench.store(4..=4).await;
    until("one is under way", async || status(&engine).in_flight == 1).await;
    let reload = reloading(&bench, &engine, vec![changed(&bench.sinks[0])]);
    is_stopping(&engine).await;
    let retried = engine.dead_retry("a", vec![Seq(1), Seq(2)]).await.unwrap();
    assert_eq!(settled(&retried).await, (2, 0, 2));
    assert_eq!(retried.why().as_deref(), Some("the sink is stopping"));
    let id = replay(&engine, 3, 3).await;
    assert_eq!(state(&bench, &engine, 4).await, EventState::InFlight);
    let pausing = tokio::spawn({
        let engine = engine.clone();
        async move { engine.pause("a", true).await }
    });
    until("the worker knows", async || status(&engine).paused).await;
    assert!(!reload.is_finished());
    receiver.says(|_| Ok(Outcome::Delivered));
    receiver.gate.send_replace(true);
    reload.await.unwrap();
    pausing.await.unwrap().unwrap();
    until("the next one has begun", async || {
        let waits_for = status(&engine).waits_for;
        waits_for.is_some_and(|why| why.starts_with("it is paused"))
    })
    .await;
    engine.pause("a", false).await.unwrap();
    assert_eq!(replay_done(&engine, &id).await.delivered, 1);
    engine.shutdown().await;
}

/// SIGTERM during a reload: what the reload was about to begin is not begun any more.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_after_the_end() {
    let receivers = [Receiver::new(), Receiver::new()];
    let sinks = sinks_on(&receivers, Commit::Acknowledge);
    let bench = Bench::new(sinks[..1].to_vec());
    receivers[0].gate.send_replace(false);
    bench.store(1..=5).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are under way", async || status(&engine).in_flight == 5).await;
    let reload = reloading(&bench, &engine, vec![changed(&sinks[0]), sinks[1].clone()]);
    is_stopping(&engine).await;
    until("the new one has all", async || receivers[1].seqs().len() == 5).await;
    let mut stop = Box::pin(engine.shutdown());
    assert!(futures::poll!(&mut stop).is_pending(), "it waits for what runs");
    receivers[0].gate.send_replace(true);
    stop.await;
    reload.await.unwrap();
    assert_eq!(engine.sinks(), []);
    let opened: Vec<u64> = receivers
        .iter()
        .map(|receiver| receiver.opened.load(Ordering::SeqCst))
        .collect();
    assert_eq!(opened, [1, 1]);
    let look = bench.engine(Mode::Look).await;
    assert_eq!(status(&look).cursor, Seq(5), "and what was reached is saved");
}

/// A disk that hangs, as far as anybody can tell, when the worker begins anew from what is saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_read_its_record_says_so_and_answers_meanwhile() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    durable(&engine, 1).await;
    let letters = engine.letters_of("a");
    let held = letters.hold();
    // Somebody else changes its record: it begins again with that.
    let entry = engine.inner.store.get("sink/a").await.unwrap().unwrap();
    let put = engine
        .inner
        .store
        .put("sink/a", entry.value.to_vec(), Expected::Anything);
    put.await.unwrap();
    bench.store(2..=2).await;
    until("it says what it waits for", async || {
        status(&engine).waits_for.as_deref() == Some("its record is being read")
    })
    .await;
    let refused = engine.pause("a", true).await.unwrap_err().to_string();
    assert!(
        refused.contains("does not run") && refused.contains("its record is being read"),
        "{refused}"
    );
    let retried = engine.retry_here("a", vec![Seq(1)]).await.unwrap();
    assert_eq!(settled(&retried).await, (1, 0, 1));
    assert!(retried.why().unwrap().contains("its record is being read"));
    drop(held);
    durable(&engine, 2).await;
    engine.pause("a", true).await.unwrap();
    let held = letters.hold();
    engine.shutdown().await;
    drop(held);
}

/// A log that does not answer: a reload that needs it ends all the same, and the sink asks again by itself.
#[tokio::test(start_paused = true)]
async fn a_reload_does_not_wait_for_ever_for_a_log_that_is_silent() {
    let mut sink = sink_on(&Receiver::new(), Commit::Acknowledge);
    sink.start = crate::config::Start::At(jiff::Timestamp::UNIX_EPOCH);
    let bench = Bench::new(Vec::new());
    let log = Arc::new(Faulty::on(&bench.log));
    let engine = bench.engine_with(log.clone(), None).await;
    log.silent.store(true, Ordering::SeqCst);
    let reload = engine.reload(bench.rules.clone(), std::slice::from_ref(&sink));
    let reloaded = tokio::time::timeout(Duration::from_secs(600), reload).await;
    assert_eq!(reloaded.expect("it ends").unwrap().added, ["a"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let why = status(&engine).waits_for.unwrap_or_default();
    assert!(why.contains("does not say where the sink begins"), "{why}");
    log.silent.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    // By this clock a disk is slow.
    let why = status(&engine).waits_for.unwrap_or_default();
    assert!(!why.contains("where the sink begins"), "{why}");
    engine.shutdown().await;
}
