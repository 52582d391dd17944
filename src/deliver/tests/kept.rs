//! What is kept for a week, and what for longer.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::diverting::{named, status_of};
use super::*;
use crate::age::{Age, Clock};
use crate::deliver::mark::{JobRecord, Record};
use crate::state::put_json;

fn ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(days * 24)
}

async fn stored(bench: &Bench) -> Arc<dyn Store> {
    super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap()
}

/// Has it that a replay was made so many days ago.
async fn made_ago(store: &dyn Store, id: &str, days: i64) {
    let key = format!("replay/{id}");
    let entry = store.get(&key).await.unwrap().unwrap();
    let mut record: JobRecord = entry.json().unwrap();
    record.created_at = ago(days);
    put_json(store, &key, &record, Expected::Anything).await.unwrap();
}

async fn record_of(store: &dyn Store, sink: &str) -> Option<Record> {
    let entry = store.get(&format!("sink/{sink}")).await.unwrap();
    entry.map(|entry| entry.json().unwrap())
}

/// Has it that a sink left the configuration so many days ago.
async fn left_ago(store: &dyn Store, sink: &str, days: i64) {
    let mut record = record_of(store, sink).await.unwrap();
    assert!(record.detached_at.is_some(), "it is there no more");
    record.detached_at = Some(ago(days));
    let key = format!("sink/{sink}");
    put_json(store, &key, &record, Expected::Anything).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_not_done_outlives_a_restart_however_old_it_is() {
    let receiver = Receiver::new();
    let (bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 3).await;
    let done = replay(&engine, 1, 3).await;
    replay_done(&engine, &done).await;
    durable(&engine, 3).await;
    engine.pause("a", true).await.unwrap();
    let waits = replay(&engine, 1, 3).await;
    let interrupted = replay(&engine, 1, 3).await;
    engine.replay_set_running(&interrupted, false).await.unwrap();
    let newer = replay(&engine, 1, 1).await;
    engine.shutdown().await;
    let store = stored(&bench).await;
    for (id, days) in [(&done, 10), (&waits, 9), (&interrupted, 8), (&newer, 6)] {
        made_ago(&*store, id, days).await;
    }
    store.close().await;
    let ids = |engine: &Engine| -> Vec<String> { engine.replays().into_iter().map(|replay| replay.id).collect() };
    let engine = bench.engine(Mode::Follow).await;
    assert_eq!(ids(&engine), [waits.clone(), interrupted.clone(), newer.clone()]);
    let store = stored_keys(&engine).await;
    assert!(!store.contains(&done) && store.contains(&interrupted));
    engine.replay_set_running(&interrupted, true).await.unwrap();
    engine.pause("a", false).await.unwrap();
    for id in [&waits, &interrupted] {
        assert_eq!(replay_done(&engine, id).await.delivered, 3);
    }
    engine.shutdown().await;
}

/// The replays that are stored.
async fn stored_keys(engine: &Engine) -> Vec<String> {
    let keys = engine.inner.store.keys("replay/").await.unwrap();
    keys.into_iter()
        .map(|key| key.trim_start_matches("replay/").to_owned())
        .collect()
}

/// Two sinks, of which the second begins with what comes when it is new.
fn two(first: &Arc<Receiver>, second: &Arc<Receiver>) -> Bench {
    let mut bench = Bench::new(vec![
        sink_on(first, Commit::Acknowledge),
        named(second, Commit::Acknowledge, "b", None),
    ]);
    bench.sinks[1].start = crate::config::Start::Now;
    bench
}

async fn both_have(engine: &Engine, upto: u64) {
    for sink in ["a", "b"] {
        until("both have it", async || status_of(engine, sink).cursor == Seq(upto)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_put_back_at_a_start_takes_up_no_position_that_is_not_kept_any_more() {
    for (days, has) in [(6, vec![1, 2, 3, 4, 5, 6, 7]), (8, vec![1, 2, 3, 7])] {
        let (first, second) = (Receiver::new(), Receiver::new());
        let mut bench = two(&first, &second);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=3).await;
        both_have(&engine, 3).await;
        engine.shutdown().await;
        let other = bench.sinks.pop().unwrap();
        let engine = bench.engine(Mode::Follow).await;
        bench.store(4..=6).await;
        caught_up(&engine, 6).await;
        engine.shutdown().await;
        let store = stored(&bench).await;
        left_ago(&*store, "b", days).await;
        store.close().await;
        bench.sinks.push(other);
        // A command may come first.
        let command = bench.engine(Mode::Jobs).await;
        command.shutdown().await;
        let engine = bench.engine(Mode::Follow).await;
        bench.store(7..=7).await;
        both_have(&engine, 7).await;
        assert_eq!(second.sorted(), has, "after {days} days");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_put_back_by_a_reload_takes_up_no_position_that_is_not_kept_any_more() {
    for (days, has) in [(6, vec![1, 2, 3, 4, 5, 6, 7]), (8, vec![1, 2, 3, 7])] {
        let (first, second) = (Receiver::new(), Receiver::new());
        let bench = two(&first, &second);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=3).await;
        both_have(&engine, 3).await;
        engine.reload(bench.rules.clone(), &bench.sinks[..1]).await.unwrap();
        bench.store(4..=6).await;
        caught_up(&engine, 6).await;
        left_ago(&*engine.inner.store, "b", days).await;
        engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
        bench.store(7..=7).await;
        both_have(&engine, 7).await;
        assert_eq!(second.sorted(), has, "after {days} days");
        engine.shutdown().await;
    }
}

/// A daemon that runs on forgets in time, and what a replay had still to send there is never sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_was_removed_a_week_ago_is_forgotten_while_the_process_runs() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let bench = two(&first, &second);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3).await;
    both_have(&engine, 3).await;
    engine.pause("b", true).await.unwrap();
    let spec = ReplaySpec {
        sinks: vec!["b".into()],
        ..ReplaySpec::default()
    };
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    let id = engine.replay_start(spec, planned).await.unwrap();
    engine.reload(bench.rules.clone(), &bench.sinks[..1]).await.unwrap();
    let days = |days: i64| Timestamp::now() + SignedDuration::from_hours(days * 24);
    engine.forget_what_is_old(days(6)).await;
    assert_eq!(engine.detached(&engine.kept().await.unwrap()), ["b"]);
    let because = || engine.replays().remove(0).because.unwrap_or_default();
    assert!(
        because().contains("goes on where the sink is put back"),
        "{}",
        because()
    );
    engine.forget_detached(days(8), &BTreeSet::new()).await;
    assert!(engine.detached(&engine.kept().await.unwrap()).is_empty());
    assert!(because().contains("was forgotten"), "{}", because());
    // Nothing goes on of it any more.
    engine.forget_what_is_old(days(8)).await;
    assert!(engine.replays().iter().all(|replay| replay.id != id));
    engine.shutdown().await;
}

/// The machine starts with a clock that is a year ahead: to that everything is old.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_nobody_vouches_for_forgets_no_sink_and_no_replay() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let mut bench = two(&first, &second);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3).await;
    both_have(&engine, 3).await;
    let done = replay(&engine, 1, 3).await;
    replay_done(&engine, &done).await;
    engine.shutdown().await;
    let other = bench.sinks.pop().unwrap();
    bench.engine(Mode::Follow).await.shutdown().await;

    let year = SignedDuration::from_hours(365 * 24);
    let age = Arc::new(Age::with_clocks(move || Timestamp::now() + year, || Duration::ZERO));
    bench.clock = Clock::of(age.clone());
    let engine = bench.engine(Mode::Follow).await;
    assert_eq!(engine.detached(&engine.kept().await.unwrap()), ["b"]);
    assert!(engine.replays().iter().any(|replay| replay.id == done));
    // A delivery tells what time it is.
    age.told(Timestamp::now());
    bench.store(4..=4).await;
    caught_up(&engine, 4).await;
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    assert_eq!(engine.detached(&engine.kept().await.unwrap()), ["b"]);
    bench.sinks.push(other);
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    both_have(&engine, 4).await;
    assert_eq!(second.sorted(), [1, 2, 3, 4], "it goes on where it was");
    engine.shutdown().await;
}

/// What waits at a sink that is paused is as old as it is, whoever looks.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_paused_sink_is_as_old_after_a_restart_and_without_a_daemon() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=2).await;
    caught_up(&engine, 2).await;
    engine.pause("a", true).await.unwrap();
    let hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    let body = r#"{"event":{"id":"ev_3","object_type":"lead","action":"updated"}}"#;
    let old = Incoming::new(body.into(), hour_ago, Source::Webhook, None);
    bench.log.append_in_order(vec![old]).await;
    bench.store(4..=4).await;
    let is_old = |engine: &Engine| {
        let status = status(engine);
        status.lag_events == 2 && (3600.0..4000.0).contains(&status.lag_seconds)
    };
    until("it is seen", async || is_old(&engine)).await;
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    assert!(is_old(&look), "{:?}", status(&look));
    let engine = bench.engine(Mode::Follow).await;
    until("it is seen after a restart", async || is_old(&engine)).await;
    engine.pause("a", false).await.unwrap();
    caught_up(&engine, 4).await;
    until("nothing waits", async || status(&engine).lag_seconds == 0.0).await;
    engine.shutdown().await;
}
