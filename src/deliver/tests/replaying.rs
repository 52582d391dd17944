//! What becomes of a replay when the sink, its worker, or its configuration changes.

use super::*;

async fn all_again(engine: &Engine, upto: u64) -> String {
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(upto));
    spec.only_partials = false;
    spec.sinks = vec!["a".into()];
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    assert_eq!(planned["a"], upto);
    engine.replay_start(spec, planned).await.unwrap()
}

/// Every node that is to start it does, and a node that died in between comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_to_be_once_is_once_whoever_starts_it() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.store(1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    let start = async || {
        let mut spec = ReplaySpec::of_partials(Seq(1), Seq(u64::MAX));
        spec.only_partials = false;
        let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
        engine.replay_start_once("rp_once", spec, planned).await.unwrap()
    };
    assert_eq!(start().await, Seq(20));
    bench.store(21..=30).await;
    assert_eq!(start().await, Seq(20), "as far as the first one goes");
    until("all of it is delivered", async || receiver.seqs().len() == 50).await;
    until("it is done", async || engine.replays()[0].state == "done").await;
    assert_eq!((engine.replays().len(), receiver.seqs().len()), (1, 50));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_its_sink_went_back_to_its_mark() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.store(1..=30).await;
    let engine = bench.engine(Mode::Follow).await;
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(31))
    })
    .await;
    let failed = AtomicBool::new(false);
    receiver.says(move |delivery| {
        if delivery.event.seq.0 == 25 && !failed.swap(true, Ordering::SeqCst) {
            return Err(Unavailable::new("the disk failed"));
        }
        Ok(Outcome::Delivered)
    });
    all_again(&engine, 30).await;
    until("it is done", async || engine.replays()[0].state == "done").await;
    assert_eq!(receiver.opened.load(Ordering::SeqCst), 2, "it was opened anew");
    assert_eq!(receiver.seqs(), (1..=30).chain(1..=30).collect::<Vec<_>>());
    assert_eq!(engine.replays()[0].delivered, 30);
    engine.shutdown().await;
}

/// A replay that is durable is carried out, whatever one of its sinks is doing when it is started.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_started_while_its_sink_starts_anew_is_carried_out() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.store(1..=30).await;
    let engine = bench.engine(Mode::Follow).await;
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(31))
    })
    .await;
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(30));
    spec.only_partials = false;
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    // As in the middle of a reload: its worker has stopped, and the next one has been prepared.
    let kit = engine.stop_and_prepare("a", &bench.sinks[0]).await;
    engine.replay_start(spec, planned).await.unwrap();
    engine.launch(kit);
    until("it is done", async || {
        engine.replays().first().is_some_and(|replay| replay.state == "done")
    })
    .await;
    assert_eq!(receiver.seqs().len(), 60);
    engine.shutdown().await;
}

/// A size limit that was reached once says nothing about what is replayed when there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_buried_when_there_is_room_again() {
    let receiver = Receiver::new();
    let (_bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 30).await;
    engine.bury(Seq(30));
    engine.bury(Seq::ZERO);
    all_again(&engine, 30).await;
    until("it is done", async || engine.replays()[0].state == "done").await;
    let replay = engine.replays().remove(0);
    assert_eq!((replay.delivered, replay.lost), (30, 0));
    engine.shutdown().await;
}

/// What is gone counts where it is missed: in the replay, not in what the sink itself has missed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_finds_gone_counts_in_the_replay() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=30).await;
    let log = Arc::new(Faulty::on(&bench.log));
    let engine = bench.engine_with(log.clone(), None).await;
    caught_up(&engine, 30).await;
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(30));
    spec.only_partials = false;
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    // What was gone before it was planned, nobody waits for.
    lock(&log.gone).extend(11..=15);
    engine.replay_start(spec, planned).await.unwrap();
    until("it is done", async || engine.replays()[0].state == "done").await;
    let replay = engine.replays().remove(0);
    assert_eq!((replay.delivered, replay.lost, status(&engine).lost), (25, 5, 0));
    engine.shutdown().await;
}

/// A replay reads what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn replays_go_where_they_are_meant_and_come_to_their_end() {
    let receiver = Receiver::new();
    let (_bench, engine) = Bench::caught_up(&receiver, Commit::Checkpoint, 30).await;
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

/// A replay that began after the worker is still there when that goes back, or takes over the receiver's mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_outlives_a_failed_checkpoint_and_a_lost_answer() {
    for commit in [Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let (bench, engine) = Bench::caught_up(&receiver, commit, 25).await;
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

/// What anybody may send: it names no end of the log, and counts that nobody has counted.
fn endless() -> (ReplaySpec, std::collections::BTreeMap<String, u64>) {
    let spec = ReplaySpec {
        sinks: vec!["a".into()],
        only_partials: false,
        ..ReplaySpec::of_partials(Seq(1), Seq(u64::MAX))
    };
    (spec, [("a".to_owned(), u64::MAX)].into())
}

/// Whoever may start a replay may send any: its end is that of the log as it is now.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_an_end_ends_where_the_log_did() {
    let receiver = Receiver::new();
    let (bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 30).await;
    let (spec, planned) = endless();
    let id = engine.replay_start(spec, planned).await.unwrap();
    let replay = replay_done(&engine, &id).await;
    assert_eq!(
        (replay.spec.to, replay.delivered, replay.planned["a"]),
        (Seq(30), 30, 30)
    );
    bench.store(31..=40).await;
    caught_up(&engine, 40).await;
    assert_eq!(receiver.seqs().len(), 70);
    engine.shutdown().await;
}

/// One that was made durable before that was looked at does no harm, whatever it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_replay_without_an_end_comes_to_one() {
    let receiver = Receiver::new();
    let (bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 30).await;
    engine.shutdown().await;
    let (spec, mut planned) = endless();
    planned.insert("gone".into(), u64::MAX);
    let record = |spec: &ReplaySpec| mark::JobRecord {
        spec: spec.clone(),
        planned: planned.clone(),
        created_at: jiff::Timestamp::now(),
        running: true,
        forgotten: std::collections::BTreeMap::new(),
    };
    let nothing = ReplaySpec {
        from: Seq(u64::MAX),
        ..spec.clone()
    };
    let store = super::open_store(bench.dir.path(), Mode::Follow).await.unwrap();
    for (key, spec) in [("replay/rp_1", &spec), ("replay/rp_2", &nothing)] {
        let record = record(spec);
        crate::state::put_json(&*store, key, &record, Expected::Anything)
            .await
            .unwrap();
    }
    drop(store);
    let engine = bench.engine(Mode::Follow).await;
    until("all of it was sent again", async || {
        let replays = engine.replays();
        replays.len() == 2 && replays.iter().map(|replay| replay.delivered).sum::<u64>() == 30
    })
    .await;
    bench.store(31..=40).await;
    caught_up(&engine, 40).await;
    assert_eq!(receiver.seqs().len(), 70);
    let floor = async || engine.floor().await == Floor::Known(Seq(41));
    until("neither keeps anything of the log", floor).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_to_nowhere_is_not_started() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    let (good, planned) = endless();
    let wrong = [
        (
            ReplaySpec {
                sinks: vec!["b".into()],
                ..good.clone()
            },
            planned.clone(),
            "no sink \"b\"",
        ),
        (good.clone(), [("b".to_owned(), 1)].into(), "no sink \"b\""),
        (
            ReplaySpec {
                rule: Some("r".into()),
                ..good.clone()
            },
            planned.clone(),
            "no rule \"r\"",
        ),
        (
            ReplaySpec {
                rate: Some(0.0),
                ..good.clone()
            },
            planned.clone(),
            "rate",
        ),
        (
            ReplaySpec {
                rate: Some(-1.0),
                ..good.clone()
            },
            planned,
            "rate",
        ),
    ];
    for (spec, planned, says) in wrong {
        let refused = engine.replay_start(spec, planned).await.unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    assert!(engine.replays().is_empty());
    engine.shutdown().await;
}

/// What a sink's own feed has not judged yet when parts are released, it sends itself; only the rest has to be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_released_reach_a_sink_that_lags_once() {
    for release_first in [true, false] {
        let receiver = Receiver::new();
        let (bench, engine) = nine_parts(&receiver).await;
        let as_they_are = RuleSet::compile(&[], &[]).unwrap().dispatching_partials(true);
        engine.reload(Arc::new(as_they_are), &bench.sinks).await.unwrap();
        let release = async || {
            let spec = ReplaySpec::of_partials(Seq(1), Seq(9));
            let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
            engine.replay_start(spec, planned).await.unwrap()
        };
        let id = if release_first {
            let id = release().await;
            engine.pause("a", false).await.unwrap();
            id
        } else {
            engine.pause("a", false).await.unwrap();
            caught_up(&engine, 9).await;
            release().await
        };
        let replay = replay_done(&engine, &id).await;
        caught_up(&engine, 9).await;
        assert_eq!(receiver.sorted(), (1..=9).collect::<Vec<_>>());
        assert_eq!(replay.delivered, 5);
        engine.shutdown().await;
    }
}

/// Nine events without their data, of which the sink has passed five, and is paused.
async fn nine_parts(receiver: &Arc<Receiver>) -> (Bench, Engine) {
    let bench = Bench::new(vec![sink_on(receiver, Commit::Checkpoint)]);
    let engine = bench.engine(Mode::Follow).await;
    store_parts(&bench, 1..=5).await;
    durable(&engine, 5).await;
    engine.pause("a", true).await.unwrap();
    store_parts(&bench, 6..=9).await;
    (bench, engine)
}

async fn store_parts(bench: &Bench, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        let body = format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated"}}}}"#);
        let incoming = Incoming {
            partial: true,
            ..Incoming::new(body.into(), jiff::Timestamp::now(), Source::Backfill, None)
        };
        let stored = bench.log.append(incoming).await;
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
}

/// A node whose configuration still holds them has the sink, and is given the new one later, or never.
#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_released_reach_a_sink_whose_node_still_holds_them() {
    for reloads in [false, true] {
        let receiver = Receiver::new();
        let (bench, engine) = nine_parts(&receiver).await;
        let planned = [("a".to_owned(), 9)].into();
        let spec = ReplaySpec::of_released(Seq(1), Seq(9));
        engine.replay_start_once("rp_parts_1", spec, planned).await.unwrap();
        if reloads {
            let as_they_are = RuleSet::compile(&[], &[]).unwrap().dispatching_partials(true);
            engine.reload(Arc::new(as_they_are), &bench.sinks).await.unwrap();
        }
        engine.pause("a", false).await.unwrap();
        let replay = replay_done(&engine, "rp_parts_1").await;
        caught_up(&engine, 9).await;
        assert_eq!(receiver.sorted(), (1..=9).collect::<Vec<_>>());
        assert_eq!(replay.delivered, if reloads { 5 } else { 9 });
        // What comes afterwards is held as it says.
        store_parts(&bench, 10..=10).await;
        durable(&engine, 10).await;
        assert_eq!(receiver.sorted().len(), if reloads { 10 } else { 9 });
        engine.shutdown().await;
    }
}

/// What lies ahead of what is finished is read again after a restart, and what is gone there is counted once all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_has_lost_is_counted_once_however_often_it_begins_anew() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=60).await;
    let log = Arc::new(Faulty::on(&bench.log));
    let mut engine = bench.engine_with(log.clone(), None).await;
    durable(&engine, 60).await;
    receiver.says(|_| Err(Unavailable::new("it is full")));
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(60));
    spec.only_partials = false;
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    lock(&log.gone).extend(51..=55);
    let id = engine.replay_start(spec, planned).await.unwrap();
    for _ in 0..3 {
        until("everything is read", async || engine.replays()[0].lost >= 5).await;
        assert_eq!(engine.replays()[0].lost, 5);
        engine.shutdown().await;
        engine = bench.engine_with(log.clone(), None).await;
    }
    receiver.says(|_| Ok(Outcome::Delivered));
    let record = async || {
        let record = engine.record(&mark::record_key("a")).await.unwrap().unwrap().0;
        record.replays[&id].clone()
    };
    until("it is done, and that is durable", async || record().await.done).await;
    let replay = record().await;
    assert_eq!((replay.delivered, replay.lost), (55, 5));
    engine.shutdown().await;
}

/// A replay to two sinks of which one leaves: it has an end, and says which.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_sink_is_removed_ends_as_incomplete_and_goes_on_where_it_comes_back() {
    let (here, gone) = (Receiver::new(), Receiver::new());
    let other = SinkConfig {
        name: "b".into(),
        ..sink_on(&gone, Commit::Acknowledge)
    };
    let two = vec![sink_on(&here, Commit::Acknowledge), other];
    let mut bench = Bench::new(two.clone());
    bench.store(1..=10).await;
    let engine = bench.engine(Mode::Follow).await;
    until("both have everything", async || {
        engine.sinks().iter().all(|sink| sink.cursor == Seq(10))
    })
    .await;
    // It takes some of it, and then no more.
    gone.says(|delivery| {
        Ok(match delivery.event.seq.0 {
            ..=4 => Outcome::Delivered,
            _ => Outcome::Retry {
                reason: "it is full".into(),
                after: None,
            },
        })
    });
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(10));
    spec.only_partials = false;
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    engine.replay_start(spec, planned).await.unwrap();
    until("the one has it all and the other some", async || {
        here.seqs().len() == 20 && gone.seqs().len() == 14 && engine.replays()[0].delivered == 14
    })
    .await;
    assert_eq!(engine.replays()[0].state, "running");
    let rules = engine.rules();
    engine.reload(rules.clone(), &two[..1]).await.unwrap();
    let is_incomplete = |engine: &Engine| {
        let replay = engine.replays().remove(0);
        let because = replay.because.unwrap();
        assert_eq!((replay.state.as_str(), replay.delivered), ("incomplete", 14));
        assert!(
            because.contains("sink \"b\" is not configured any more") && because.contains("6 of 10"),
            "{because}"
        );
        assert_eq!(replay.waits_for, None);
    };
    is_incomplete(&engine);
    engine.shutdown().await;
    bench.sinks.truncate(1);
    let engine = bench.engine(Mode::Follow).await;
    is_incomplete(&engine);
    // It comes back, and so the replay goes on.
    engine.reload(rules.clone(), &two).await.unwrap();
    assert_eq!(engine.replays()[0].state, "running");
    engine.reload(rules.clone(), &two[..1]).await.unwrap();
    is_incomplete(&engine);
    // It is forgotten, and another one has its name.
    engine.forget("b").await.unwrap();
    gone.says(|_| Ok(Outcome::Delivered));
    engine.reload(rules, &two).await.unwrap();
    bench.store(11..=11).await;
    until("the new one has what is new", async || {
        engine.sinks().iter().all(|sink| sink.cursor == Seq(11))
    })
    .await;
    let replay = engine.replays().remove(0);
    assert_eq!((replay.state.as_str(), replay.delivered), ("incomplete", 14));
    assert!(replay.because.unwrap().contains("sink \"b\" was forgotten"));
    assert!(
        !lock(&gone.has).ends_with(&[5, 6]),
        "what was forgotten is not sent: {:?}",
        gone.seqs()
    );
    engine.shutdown().await;
    bench.sinks = two;
    let engine = bench.engine(Mode::Follow).await;
    assert_eq!(engine.replays()[0].state, "incomplete", "also after a restart");
    engine.shutdown().await;
}

/// What could not be stored yet is not so.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_parts_with_a_forgotten_sink_when_that_is_durable() {
    let (here, gone) = (Receiver::new(), Receiver::new());
    gone.says(|_| Err(Unavailable::new("busy")));
    let mut other = sink_on(&gone, Commit::Acknowledge);
    other.name = "b".into();
    let bench = Bench::new(vec![sink_on(&here, Commit::Acknowledge), other]);
    bench.store(1..=5).await;
    let slow = Arc::new(Slow {
        inner: super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap(),
        open: tokio::sync::watch::Sender::new(true),
        asked: AtomicU64::new(0),
    });
    let engine = bench.engine_with(Arc::new(bench.log.clone()), Some(slow.clone())).await;
    until("one has it all", async || here.seqs().len() == 5).await;
    let mut spec = ReplaySpec::of_partials(Seq(1), Seq(5));
    spec.only_partials = false;
    let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await.unwrap();
    engine.replay_start(spec, planned).await.unwrap();
    until("one has it again", async || here.seqs().len() == 10).await;
    engine.reload(engine.rules(), &bench.sinks[..1]).await.unwrap();
    let because = || engine.replays().remove(0).because.unwrap_or_default();
    until("the other is missed", async || {
        because().contains("not configured any more")
    })
    .await;
    slow.open.send_replace(false);
    let before = slow.asked.load(Ordering::SeqCst);
    let forgetting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.forget("b").await }
    });
    until("it is being stored", async || {
        slow.asked.load(Ordering::SeqCst) > before
    })
    .await;
    assert!(because().contains("not configured any more"), "{}", because());
    slow.open.send_replace(true);
    forgetting.await.unwrap().unwrap();
    assert!(because().contains("was forgotten"), "{}", because());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_for_a_week_is_forgotten_also_while_the_process_runs() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=3).await;
    let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
        .await
        .unwrap();
    let engine = bench
        .engine_with(Arc::new(bench.log.clone()), Some(store.clone()))
        .await;
    let done = replay(&engine, 1, 3).await;
    replay_done(&engine, &done).await;
    engine.pause("a", true).await.unwrap();
    let open = replay(&engine, 1, 3).await;
    let ids = || -> Vec<String> { engine.replays().into_iter().map(|replay| replay.id).collect() };
    let days = |days: i64| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(days * 24);
    engine.forget_old_replays(days(6)).await;
    assert_eq!(ids(), [done.clone(), open.clone()]);
    engine.forget_old_replays(days(8)).await;
    assert_eq!(ids(), [open.as_str()], "what has not come to its end stays");
    assert!(store.get(&format!("replay/{done}")).await.unwrap().is_none());
    // The sink lets go of it when it saves.
    engine.pause("a", false).await.unwrap();
    assert_eq!(replay_done(&engine, &open).await.delivered, 3);
    until("its mark says nothing of it any more", async || {
        let entry = store.get("sink/a").await.unwrap().unwrap();
        let record = entry.json::<crate::deliver::mark::Record>().unwrap();
        record.replays.contains_key(&open) && !record.replays.contains_key(&done)
    })
    .await;
    engine.shutdown().await;
}
