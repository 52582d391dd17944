//! What is said of an event is so.

use super::*;

/// G14: each state is what it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_before_the_sinks_start_was_not_routed() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].start = crate::config::Start::Now;
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(4..=5).await;
    caught_up(&engine, 5).await;
    assert_eq!(state(&bench, &engine, 3).await, EventState::NotRouted);
    assert_eq!(state(&bench, &engine, 4).await, EventState::Delivered);
    until("that is durable", async || engine.floor().await == Floor::Known(Seq(6))).await;
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    assert_eq!(state(&bench, &look, 3).await, EventState::NotRouted);
    assert_eq!(state(&bench, &look, 4).await, EventState::Delivered);
}

fn is_dropped(state: &EventState) -> bool {
    matches!(state, EventState::Lost { reason } if reason.contains("dropped"))
}

/// Nobody has it, and nobody ever will.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_was_dropped_is_lost_and_not_delivered() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].breaker.refusals = 10_000;
        refuse(&receiver);
        bench.store(1..=6).await;
        let engine = bench.engine(Mode::Follow).await;
        until("all are dead", async || status(&engine).dead == 6).await;
        assert_eq!(engine.dead_drop("a", &[2, 3].map(Seq)).unwrap(), 2);
        receiver.says(|_| Ok(Outcome::Delivered));
        let retried = engine.dead_retry("a", vec![Seq(5)]).await.unwrap();
        assert_eq!(settled(&retried).await, (1, 1, 0));
        let check = async |engine: &Engine| {
            for seq in [2, 3] {
                let state = state(&bench, engine, seq).await;
                assert!(is_dropped(&state), "{commit:?}: event {seq} is said to be {state:?}");
            }
            let kept = state(&bench, engine, 4).await;
            assert!(
                matches!(&kept, EventState::Dead { reason, .. } if reason == "no"),
                "{kept:?}"
            );
            assert_eq!(state(&bench, engine, 5).await, EventState::Delivered, "{commit:?}");
        };
        durable(&engine, 6).await;
        check(&engine).await;
        engine.shutdown().await;
        check(&bench.engine(Mode::Look).await).await;
        let engine = bench.engine(Mode::Follow).await;
        until("the sink is open", async || status(&engine).waits_for.is_none()).await;
        check(&engine).await;
        // A replay delivers what was dropped, and that is said then.
        let id = replay(&engine, 3, 3).await;
        assert_eq!(replay_done(&engine, &id).await.delivered, 1);
        assert_eq!(receiver.sorted(), [3, 5]);
        durable(&engine, 6).await;
        let delivered = async |engine: &Engine| state(&bench, engine, 3).await == EventState::Delivered;
        until("that is said", async || delivered(&engine).await).await;
        engine.shutdown().await;
        assert!(delivered(&bench.engine(Mode::Look).await).await);
    }
}

/// Which letters damage took nobody knows.
async fn doubts_deliveries_after(damage: impl FnOnce(&std::path::Path)) {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 5).await;
    engine.shutdown().await;
    damage(&bench.dir.path().join("dead/a"));
    receiver.says(|_| Ok(Outcome::Delivered));
    let is_unknown = async |engine: &Engine, seq| {
        let said = state(&bench, engine, seq).await;
        assert!(
            matches!(&said, EventState::Unknown { reason } if reason.contains("dead letter")),
            "{seq}: {said:?}"
        );
    };
    let engine = bench.engine(Mode::Follow).await;
    until("the sink is open", async || status(&engine).waits_for.is_none()).await;
    is_unknown(&engine, 5).await;
    assert!(status(&engine).dead_trouble.is_some());
    // What is delivered now surely is.
    bench.store(6..=6).await;
    durable(&engine, 6).await;
    assert_eq!(state(&bench, &engine, 6).await, EventState::Delivered);
    let id = replay(&engine, 4, 4).await;
    assert_eq!(replay_done(&engine, &id).await.delivered, 1);
    until("that is said", async || {
        state(&bench, &engine, 4).await == EventState::Delivered
    })
    .await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    until("the sink is open", async || status(&engine).waits_for.is_none()).await;
    is_unknown(&engine, 5).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_may_be_lost_to_damage_is_not_said_to_be_delivered() {
    doubts_deliveries_after(|file| std::fs::write(file, vec![b'x'; 5000]).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_went_with_the_file_is_not_said_to_be_delivered() {
    doubts_deliveries_after(|file| std::fs::remove_file(file).unwrap()).await;
}

/// Where the file system knows when a file was made.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_was_cut_off_is_not_said_to_be_delivered() {
    let dir = tempfile::tempdir().unwrap();
    if std::fs::metadata(dir.path()).unwrap().created().is_err() {
        return;
    }
    doubts_deliveries_after(|file| {
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    })
    .await;
}

/// One damage costs what came before it was found, and nothing of what comes later, however often the file is read.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_after_letters_were_damaged_stays_delivered_and_the_damage_ends() {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 5).await;
    engine.shutdown().await;
    flip_in_the_middle(&bench.dir.path().join("dead/a"));
    receiver.says(|_| Ok(Outcome::Delivered));

    let engine = bench.engine(Mode::Follow).await;
    bench.store(6..=6).await;
    durable(&engine, 6).await;
    let trouble = status(&engine).dead_trouble.unwrap_or_default();
    assert!(trouble.contains("are damaged"), "{trouble}");
    let check = async |engine: &Engine| {
        until("the sink is open", async || status(engine).waits_for.is_none()).await;
        assert_eq!(state(&bench, engine, 6).await, EventState::Delivered);
        let lost = state(&bench, engine, 3).await;
        assert!(matches!(&lost, EventState::Unknown { .. }), "{lost:?}");
    };
    check(&engine).await;
    let mut changed = bench.sinks.clone();
    changed[0].timeout = Span::secs(21);
    engine.reload(bench.rules.clone(), &changed).await.unwrap();
    check(&engine).await;
    let trouble = status(&engine).dead_trouble.unwrap_or_default();
    assert!(
        trouble.contains("are damaged"),
        "somebody may not have seen it: {trouble}"
    );
    engine.shutdown().await;
    for _ in 0..2 {
        let engine = bench.engine(Mode::Follow).await;
        check(&engine).await;
        assert_eq!((status(&engine).dead_trouble, status(&engine).dead), (None, 4));
        engine.shutdown().await;
    }
}

/// Whoever starts a command that finds it may read nothing of what it says of a sink, and to the daemon it is no news any more.
#[tokio::test(flavor = "multi_thread")]
async fn that_letters_were_lost_is_said_until_somebody_has_seen_it_although_a_command_has_found_it() {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 3).await;
    assert!(!status(&engine).needs_person);
    engine.shutdown().await;
    std::fs::remove_file(bench.dir.path().join("dead/a")).unwrap();
    let key = crate::deliver::mark::record_key("a");
    let engine = bench.engine(Mode::Jobs).await;
    until("a command has noted it", async || {
        let (saved, _) = engine.record(&key).await.unwrap().unwrap();
        saved.letters_lost_upto > Seq::ZERO
    })
    .await;
    engine.shutdown().await;
    let is_said = |status: SinkStatus| {
        let said = status.last_error.unwrap_or_default();
        status.needs_person && said.contains("dead letters of it were lost")
    };
    for _ in 0..2 {
        let engine = bench.engine(Mode::Follow).await;
        until("it is said", async || is_said(status(&engine))).await;
        engine.shutdown().await;
    }
    assert!(is_said(status(&bench.engine(Mode::Look).await)));
    let engine = bench.engine(Mode::Follow).await;
    until("it is said", async || is_said(status(&engine))).await;
    engine.pause("a", false).await.unwrap();
    until("somebody has seen it", async || !status(&engine).needs_person).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    until("the sink is open", async || status(&engine).waits_for.is_none()).await;
    assert!(!status(&engine).needs_person);
    let said = state(&bench, &engine, 2).await;
    assert!(
        matches!(&said, EventState::Unknown { .. }),
        "it is not known for that: {said:?}"
    );
    engine.shutdown().await;
}

/// The file was written anew without it, and shows nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_was_damaged_while_the_sink_ran_is_not_said_to_be_delivered() {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 5).await;
    flip_in_the_middle(&bench.dir.path().join("dead/a"));
    engine.letters_of("a").scrub(&|| ()).unwrap();
    receiver.says(|_| Ok(Outcome::Delivered));
    bench.store(6..=6).await;
    durable(&engine, 6).await;
    let check = async |engine: &Engine| {
        let mut lost = 0;
        for seq in 1..=5 {
            match state(&bench, engine, seq).await {
                EventState::Unknown { .. } => lost += 1,
                said => assert!(matches!(said, EventState::Dead { .. }), "{seq}: {said:?}"),
            }
        }
        assert_eq!(lost, 1);
    };
    check(&engine).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    until("the sink is open", async || status(&engine).waits_for.is_none()).await;
    check(&engine).await;
    engine.shutdown().await;
}

/// No worker notes it, and its file may be written anew all the same.
#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_letters_of_a_sink_that_is_not_configured_is_noted() {
    let receiver = Receiver::new();
    let (mut bench, engine) = with_dead(&receiver, 5).await;
    engine.shutdown().await;
    flip_in_the_middle(&bench.dir.path().join("dead/a"));
    let sinks = std::mem::take(&mut bench.sinks);
    let engine = bench.engine(Mode::Follow).await;
    let letters = engine.letters_of("a");
    assert!(letters.is_damaged());
    until("it is noted", async || has_lost_letters(&engine).await).await;
    letters.scrub(&|| ()).unwrap();
    engine.shutdown().await;
    bench.sinks = sinks;
    let engine = bench.engine(Mode::Follow).await;
    until("the sink is open", async || status(&engine).waits_for.is_none()).await;
    let mut unknown = 0;
    for seq in 1..=5 {
        unknown += u64::from(matches!(state(&bench, &engine, seq).await, EventState::Unknown { .. }));
    }
    assert_eq!((unknown, status(&engine).dead), (1, 4));
    engine.shutdown().await;
}

async fn has_lost_letters(engine: &Engine) -> bool {
    let (record, _) = engine
        .record(&crate::deliver::mark::record_key("a"))
        .await
        .unwrap()
        .unwrap();
    record.letters_lost.is_some()
}

/// Else nobody would hear of it before the sink is configured again.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_sink_that_is_not_configured_which_are_gone_are_noted_and_shown() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    if std::fs::metadata(bench.dir.path()).unwrap().created().is_err() {
        return;
    }
    bench.sinks[0].breaker.refusals = 10_000;
    refuse(&receiver);
    bench.store(1..=5).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 5).await;
    durable(&engine, 5).await;
    engine.shutdown().await;
    bench.sinks.clear();
    let engine = bench.engine(Mode::Follow).await;
    assert!(engine.damaged_removed(&engine.kept().await.unwrap()).await.is_empty());
    until("they are compared", async || engine.compare_removed().await).await;
    assert!(engine.damaged_removed(&engine.kept().await.unwrap()).await.is_empty());
    engine.shutdown().await;
    std::fs::remove_file(bench.dir.path().join("dead/a")).unwrap();
    for words in ["is gone, with the letters", "lost to damage", "lost to damage"] {
        let engine = bench.engine(Mode::Follow).await;
        until("it is noted", async || has_lost_letters(&engine).await).await;
        until("it is said", async || {
            let damaged = engine.damaged_removed(&engine.kept().await.unwrap()).await;
            damaged.get("a").is_some_and(|why| why.contains(words))
        })
        .await;
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_went_for_newer_ones_is_lost_and_not_delivered() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    refuse(&receiver);
    bench.sinks[0].breaker.refusals = 10_000;
    bench.sinks[0].dead_max = crate::config::Size(20_000);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1000).await;
    caught_up(&engine, 1000).await;
    let oldest = engine.dead_list(None, Seq::ZERO, 1).unwrap()[0].seq;
    assert!(oldest > Seq(2));
    durable(&engine, 1000).await;
    for seq in [1, oldest.0 - 1] {
        let state = state(&bench, &engine, seq).await;
        assert!(is_dropped(&state), "event {seq} is said to be {state:?}");
    }
    assert!(!is_dropped(&state(&bench, &engine, oldest.0).await));
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    assert!(is_dropped(&state(&bench, &look, 1).await));
}

/// An event whose letter was dropped before the mark was saved is not delivered after all when the process begins again.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_dropped_before_the_mark_was_saved_stays_dropped() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=5).await;
    let dead = bench.dir.path().join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    let letters = crate::deliver::letters::Letters::open(&dead, "a", false).unwrap();
    let event = bench.log.get(Seq(3)).unwrap().unwrap();
    letters
        .add(&[crate::deliver::types::dead_letter("a", &event, "no".into(), 1, None)])
        .unwrap();
    letters.drop_for_good(&[Seq(3)]).unwrap();
    drop(letters);
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.sorted(), [1, 2, 4, 5]);
    assert!(is_dropped(&state(&bench, &engine, 3).await));
    engine.shutdown().await;
}

/// What was delivered stays delivered, and what was not does not become so, whatever the rules say later.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_change_change_nothing_of_what_became_of_an_event() {
    for commit in [Commit::Acknowledge, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.rules = of_lead(1);
        bench.store(1..=14).await;
        let engine = bench.engine(Mode::Follow).await;
        durable(&engine, 14).await;
        let check = async |engine: &Engine, upto: u64| {
            for seq in 1..=upto {
                let has = receiver.seqs().contains(&seq);
                let expected = if has {
                    EventState::Delivered
                } else {
                    EventState::NotRouted
                };
                assert_eq!(state(&bench, engine, seq).await, expected, "{commit:?}: event {seq}");
            }
        };
        check(&engine, 14).await;
        assert_eq!(receiver.sorted(), [1, 8]);
        engine.reload(of_lead(2), &bench.sinks).await.unwrap();
        check(&engine, 14).await;
        bench.store(15..=28).await;
        durable(&engine, 28).await;
        assert_eq!(receiver.sorted(), [1, 8, 16, 23]);
        check(&engine, 28).await;
        // What a replay brings there although no rule does is delivered as well.
        let id = replay(&engine, 3, 3).await;
        replay_done(&engine, &id).await;
        until("that is said", async || {
            state(&bench, &engine, 3).await == EventState::Delivered
        })
        .await;
        durable(&engine, 28).await;
        engine.shutdown().await;
        check(&bench.engine(Mode::Look).await, 28).await;
        bench.rules = of_lead(4);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(29..=35).await;
        durable(&engine, 35).await;
        let check = async |engine: &Engine| {
            for seq in 1..=35 {
                let has = receiver.seqs().contains(&seq);
                let expected = if has {
                    EventState::Delivered
                } else {
                    EventState::NotRouted
                };
                assert_eq!(state(&bench, engine, seq).await, expected, "{commit:?}: event {seq}");
            }
        };
        check(&engine).await;
        assert_eq!(receiver.sorted(), [1, 3, 8, 16, 23, 32]);
        engine.shutdown().await;
    }
}

/// The rules of now judge a backlog, also what a sink has in memory of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_judged_by_the_rules_of_now() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    // Two are being tried, one waits for another try, and the others are in memory.
    bench.sinks[0].retry.initial = Span::secs(3600);
    bench.sinks[0].retry.max_delay = Span::secs(3600);
    receiver.says(|_| {
        Ok(Outcome::Retry {
            reason: "later".into(),
            after: Some(Duration::from_secs(3600)),
        })
    });
    bench.store(1..=1).await;
    let engine = bench.engine(Mode::Follow).await;
    until("one waits for another try", async || status(&engine).retrying == 1).await;
    receiver.says(|_| Ok(Outcome::Delivered));
    receiver.gate.send_replace(false);
    bench.store(2..=100).await;
    until("some run", async || status(&engine).in_flight > 0).await;
    // Between two questions the worker reads what there is.
    for _ in 0..2 {
        assert_eq!(state(&bench, &engine, 2).await, EventState::InFlight);
    }
    engine.reload(of_lead(1), &bench.sinks).await.unwrap();
    assert_eq!(
        state(&bench, &engine, 98).await,
        EventState::NotRouted,
        "they were wanted before"
    );
    receiver.gate.send_replace(true);
    until("the rest is done", async || status(&engine).lag_events == 1).await;
    let has = receiver.sorted();
    let unwanted = has.iter().filter(|seq| **seq % 7 != 1).count();
    assert!(unwanted <= 10, "what was under way, and nothing else: {has:?}");
    for seq in 2..=100 {
        let expected = if has.contains(&seq) {
            EventState::Delivered
        } else {
            EventState::NotRouted
        };
        assert_eq!(state(&bench, &engine, seq).await, expected, "event {seq}");
    }
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    assert_eq!(state(&bench, &look, 99).await, EventState::Delivered);
    assert_eq!(state(&bench, &look, 98).await, EventState::NotRouted);
}

/// G14: an event that is there for others, and was not when the sink came to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_lost_or_erased_is_said_to_be() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.store(1..=9).await;
    let log = Arc::new(Faulty::on(&bench.log));
    lock(&log.gone).extend([3, 7]);
    let engine = bench.engine_with(log, None).await;
    durable(&engine, 9).await;
    assert_eq!(receiver.sorted(), [1, 2, 4, 5, 6, 8, 9]);
    let doomed = |event: &crate::event::Event| event.seq == Seq(5);
    let whole: &dyn Log = &bench.log;
    whole
        .erase(crate::log::Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    let check = async |engine: &Engine| {
        let lost = || EventState::Lost {
            reason: "it was damaged or expired before the sink had it".into(),
        };
        for (seq, expected) in [
            (3, lost()),
            (4, EventState::Delivered),
            (5, EventState::Erased),
            (7, lost()),
        ] {
            assert_eq!(state(&bench, engine, seq).await, expected, "event {seq}");
        }
    };
    check(&engine).await;
    engine.shutdown().await;
    check(&bench.engine(Mode::Look).await).await;
}

/// A position that an older closehook saved says nothing of what became of single events.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_said_not_to_be_known() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=5).await;
    let older = r#"{"main":{"next":5,"open":[{"seq":2,"attempts":1,"first_attempt":null,"reason":"no","due":null,"lead":null}]},"position":null}"#;
    let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
        .await
        .unwrap();
    store.put("sink/a", older.into(), Expected::Anything).await.unwrap();
    let engine = bench.engine_on(store, Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.sorted(), [2, 5]);
    durable(&engine, 5).await;
    let check = async |engine: &Engine| {
        for seq in [1, 4] {
            let state = state(&bench, engine, seq).await;
            let EventState::Unknown { reason } = state else {
                panic!("event {seq} is said to be {state:?}");
            };
            assert!(
                reason.starts_with("delivered, or not wanted by the rules of then"),
                "{reason}"
            );
        }
        assert_eq!(
            state(&bench, engine, 2).await,
            EventState::Delivered,
            "it was open then"
        );
        assert_eq!(state(&bench, engine, 5).await, EventState::Delivered);
    };
    check(&engine).await;
    engine.shutdown().await;
    check(&bench.engine(Mode::Look).await).await;
}

/// A sink that secures what it has at checkpoints has an event when one was made.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_delivered_when_that_is_secured_and_not_before() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    let engine = bench.engine(Mode::Follow).await;
    until("it is open", async || receiver.opened.load(Ordering::SeqCst) == 1).await;
    receiver.checkpoint_gate.send_replace(false);
    bench.store(1..=3).await;
    until("it was handed over", async || receiver.seqs().len() == 3).await;
    assert_eq!(state(&bench, &engine, 2).await, EventState::InFlight);
    receiver.checkpoint_gate.send_replace(true);
    durable(&engine, 3).await;
    until("the worker knows", async || {
        state(&bench, &engine, 2).await == EventState::Delivered
    })
    .await;
    engine.shutdown().await;
}

/// What Close withholds waits for the full event, which goes out in its place; unless it is to go as it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_its_data_is_held_superseded_or_delivered() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let store = async |id: u64, partial: bool| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated"}}}}"#);
        let incoming = Incoming {
            partial,
            ..Incoming::new(body.into(), jiff::Timestamp::now(), Source::Backfill, None)
        };
        let stored = bench.log.append(incoming).await;
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    };
    let engine = bench.engine(Mode::Follow).await;
    store(1, true).await;
    store(2, true).await;
    store(1, false).await;
    durable(&engine, 3).await;
    assert_eq!(receiver.sorted(), [3]);
    assert_eq!(state(&bench, &engine, 1).await, EventState::Superseded);
    assert_eq!(state(&bench, &engine, 2).await, EventState::Held);
    assert_eq!(state(&bench, &engine, 3).await, EventState::Delivered);
    let as_they_are = RuleSet::compile(&[], &[]).unwrap().dispatching_partials(true);
    engine.reload(Arc::new(as_they_are), &bench.sinks).await.unwrap();
    store(4, true).await;
    durable(&engine, 4).await;
    assert_eq!(receiver.sorted(), [3, 4]);
    assert_eq!(
        state(&bench, &engine, 2).await,
        EventState::Held,
        "nobody has released it"
    );
    // And whatever is meant to become of others later.
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    assert_eq!(state(&bench, &engine, 4).await, EventState::Delivered);
    engine.shutdown().await;
}
