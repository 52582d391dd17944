//! Sinks that take nothing, hang, or are paused; and what is given up because they did for too long.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Decision 33, G16: nobody's attempt counts, and `retry-after` holds the whole sink.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_takes_nothing_costs_no_attempt_and_waits_as_a_whole() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    receiver.says(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(Unavailable {
            after: Some(Duration::from_secs(3600)),
            ..Unavailable::new("429")
        })
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=100).await;
    // Before that it may wait for its opening.
    until("it is unavailable", async || {
        let waits_for = status(&engine).waits_for;
        waits_for.is_some_and(|why| why.starts_with("429"))
    })
    .await;
    until("what was under way is back", async || status(&engine).in_flight == 0).await;
    let seen = calls.load(Ordering::SeqCst);
    assert!(seen <= 4, "{seen} calls: only what was under way");
    let status = status(&engine);
    assert_eq!((status.retrying, status.dead, status.breaker.as_str()), (0, 0, "open"));
    let waits_for = status.waits_for.unwrap();
    assert!(waits_for.starts_with("429; it is tried again at 2"), "{waits_for}");
    engine.shutdown().await;
    assert_eq!(calls.load(Ordering::SeqCst), seen);
}

/// What is said of the sink over one event only is about that event: it costs itself attempts, and the others go.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_over_which_the_sink_takes_nothing_does_not_hold_up_the_others() {
    for order in [crate::config::Order::None, crate::config::Order::Lead] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].order = order;
        receiver.says(|delivery| match delivery.event.seq {
            Seq(1) => Err(Unavailable::new("403")),
            _ => Ok(Outcome::Delivered),
        });
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=100).await;
        // A seventh is of the same lead.
        until("the others are delivered", async || status(&engine).delivered >= 85).await;
        until("its tries count", async || status(&engine).retrying == 1).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        until("all are delivered", async || status(&engine).delivered == 100).await;
        assert_eq!(status(&engine).dead, 0);
        engine.shutdown().await;
    }
}

/// Decision 33: however long the sink was away and whatever was handed to it meanwhile, nobody's attempt counts.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_no_event_that_was_a_probe_in_it_has_failed() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let probed = Arc::new(Mutex::new(BTreeSet::new()));
    let is_out = Arc::new(AtomicBool::new(true));
    let attempts = Arc::new(Mutex::new(BTreeMap::new()));
    let (noted, out, counted) = (probed.clone(), is_out.clone(), attempts.clone());
    receiver.says(move |delivery| {
        let seq = delivery.event.seq;
        if out.load(Ordering::SeqCst) {
            lock(&noted).insert(seq);
            return Err(Unavailable::new("403"));
        }
        lock(&counted).insert(seq, delivery.attempt);
        Ok(Outcome::Delivered)
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=40).await;
    until("several were probes", async || lock(&probed).len() >= 8).await;
    is_out.store(false, Ordering::SeqCst);
    until("all are delivered", async || status(&engine).delivered == 40).await;
    let attempts = lock(&attempts).clone();
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    engine.shutdown().await;
}

/// Decision 33: a receiver that is gone for ever still gives dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_up_for_too_long_becomes_dead_letters() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.sinks[0].retry.max_age = Span(Duration::from_millis(300));
    *lock(&receiver.fail_open) = Some("nobody is there".into());
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3000).await;
    until("all are given up", async || status(&engine).dead == 3000).await;
    let (letter, event) = engine.dead_get("a", Seq(7)).await.unwrap().unwrap();
    assert!(letter.reason.contains("nobody is there"), "{}", letter.reason);
    assert_eq!((letter.attempts, event.unwrap().seq), (0, Seq(7)));
    until("that is durable", async || {
        engine.floor().await == Floor::Known(Seq(3001))
    })
    .await;
    engine.shutdown().await;
}

/// Decision 44: what has failed is being tried again, and says so, also while only the breaker keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_failed_is_said_to_be_retried_while_the_breaker_is_open() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.failures = 3;
    bench.sinks[0].breaker.probe = Span::secs(3600);
    bench.sinks[0].retry.max_delay = Span(Duration::ZERO);
    receiver.says(|_| {
        let reason = "it answered 500".into();
        Ok(Outcome::Retry { reason, after: None })
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    until("the breaker is open", async || status(&engine).breaker == "open").await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(30);
    let event = |state: EventState| match state {
        EventState::Retrying { attempts, due, reason } => (attempts, due > soon, reason),
        other => panic!("it is said to be {other:?}"),
    };
    let failed = "it answered 500".to_owned();
    assert_eq!(event(state(&bench, &engine, 1).await), (3, true, failed.clone()));
    // With the next turn it may go, as far as it is about itself.
    engine.pause("a", true).await.unwrap();
    engine.pause("a", false).await.unwrap();
    assert_eq!(event(state(&bench, &engine, 1).await), (3, true, failed.clone()));
    engine.shutdown().await;
    // Nobody knows now when it goes on; that it has failed is known.
    let look = bench.engine(Mode::Look).await;
    let (attempts, _, reason) = event(state(&bench, &look, 1).await);
    assert_eq!((attempts, reason), (3, failed));
}

/// The newest event was refused, or has gone, and none is left: a sink that is open has nothing to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_has_nothing_to_do_waits_for_nothing_although_its_breaker_is_open() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.failures = 1;
    bench.sinks[0].breaker.refusals = 1;
    bench.sinks[0].breaker.probe = Span::secs(3600);
    refuse(&receiver);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    until("it is dead", async || status(&engine).dead == 1).await;
    until("nothing is left to do", async || {
        let status = status(&engine);
        status.lag_events == 0 && status.waits_for.is_none()
    })
    .await;
    assert_eq!(status(&engine).breaker, "open");
    // The next one waits for the breaker, and that is said.
    bench.store(2..=2).await;
    until("that is said", async || {
        let waits_for = status(&engine).waits_for;
        waits_for.is_some_and(|why| why.starts_with("no; it is tried again at 2"))
    })
    .await;
    engine.shutdown().await;
}

/// What the sink said last may be about another event, or about none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_says_what_its_own_tries_came_to() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    bench.sinks[0].retry.max_age = Span(Duration::from_millis(500));
    let was_tried = AtomicBool::new(false);
    receiver.says(move |delivery| {
        if delivery.event.seq == Seq(1) && !was_tried.swap(true, Ordering::SeqCst) {
            let reason = "the first is too heavy".into();
            return Ok(Outcome::Retry { reason, after: None });
        }
        Err(Unavailable::new("nobody is there"))
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    until("the first was tried", async || {
        let status = status(&engine);
        status.retrying == 1 || status.dead == 1
    })
    .await;
    bench.store(2..=2).await;
    until("both are given up", async || status(&engine).dead == 2).await;
    let letters = engine.dead_list(None, Seq::ZERO, 9).unwrap();
    let letters: Vec<(u32, &str)> = letters
        .iter()
        .map(|letter| (letter.attempts, letter.reason.as_str()))
        .collect();
    let expected = [
        (1, "given up after 500ms: the first is too heavy"),
        (
            0,
            "given up after 500ms: never tried: the sink took nothing (nobody is there)",
        ),
    ];
    assert_eq!(letters, expected);
    engine.shutdown().await;
}

/// G16: the pause is durable when it is answered, and no sooner, although a delivery hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_durable_while_a_delivery_runs() {
    for commit in [Commit::Checkpoint, Commit::Transaction, Commit::Acknowledge] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        receiver.gate.send_replace(false);
        let store = Arc::new(Slow {
            inner: crate::deliver::open_store(bench.dir.path(), Mode::Follow)
                .await
                .unwrap(),
            open: tokio::sync::watch::Sender::new(true),
            asked: AtomicU64::new(0),
        });
        let engine = bench.engine_on(store.clone(), Mode::Follow).await;
        bench.store(1..=5).await;
        until("it runs", async || status(&engine).in_flight > 0).await;
        store.open.send_replace(false);
        let mut pausing = Box::pin(engine.pause("a", true));
        // A save may be on its way already; the one of the pause comes to the gate then, or is this one.
        assert!(futures::poll!(&mut pausing).is_pending());
        until("the worker knows", async || status(&engine).paused).await;
        until("it is being saved", async || store.asked.load(Ordering::SeqCst) > 1).await;
        assert!(
            futures::poll!(&mut pausing).is_pending(),
            "{commit:?}: it is not durable"
        );
        assert!(!status(&bench.engine(Mode::Look).await).paused);
        store.open.send_replace(true);
        tokio::time::timeout(PATIENCE, pausing).await.unwrap().unwrap();
        assert!(status(&bench.engine(Mode::Look).await).paused, "{commit:?}");
        assert!(status(&engine).in_flight > 0, "{commit:?}: it was not waited for");
        receiver.gate.send_replace(true);
        engine.shutdown().await;
    }
}

/// G5: a sink that hangs holds up no order, and the engine stops without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_hangs_holds_up_nobody() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    receiver.gate.send_replace(false);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    until("it runs", async || status(&engine).in_flight > 0).await;
    engine.bury(Seq(3));
    let event = bench.log.get(Seq(4)).unwrap().unwrap();
    assert_eq!(engine.event_states(&event).await["a"], EventState::InFlight);
    let stopping = tokio::time::timeout(PATIENCE, engine.shutdown());
    assert!(stopping.await.is_ok());
    // What hung is not believed.
    receiver.gate.send_replace(true);
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.seqs(), [1, 2, 3, 4, 5]);
    engine.shutdown().await;
}

/// Nobody has tried while the sink was paused, or closehook stopped: that says nothing about the receiver.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_up_after_a_pause_or_a_stop_before_the_sink_was_tried() {
    for restart in [false, true] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].retry.max_age = Span(Duration::from_millis(1));
        receiver.says(|_| Err(Unavailable::new("nobody is there")));
        let mut engine = bench.engine(Mode::Follow).await;
        bench.store(1..=1).await;
        until("the first is given up", async || status(&engine).dead == 1).await;
        if restart {
            engine.shutdown().await;
        } else {
            engine.pause("a", true).await.unwrap();
        }
        receiver.says(|_| Ok(Outcome::Delivered));
        receiver.gate.send_replace(false);
        // More than are read at once.
        bench.store(2..=3000).await;
        if restart {
            engine = bench.engine(Mode::Follow).await;
        } else {
            engine.pause("a", false).await.unwrap();
        }
        until("one is tried", async || status(&engine).in_flight > 0).await;
        receiver.gate.send_replace(true);
        caught_up(&engine, 3000).await;
        assert_eq!(status(&engine).dead, 1, "restart: {restart}");
        assert_eq!(receiver.sorted(), (2..=3000).collect::<Vec<_>>());
        engine.shutdown().await;
    }
}

/// G5: a call that never ends is given up at its deadline and not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_never_ends_is_given_up() {
    let mut running = Vec::new();
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].timeout = Span(Duration::from_millis(1));
        receiver.gate.send_replace(false);
        bench.store(1..=5).await;
        let engine = bench.engine(Mode::Follow).await;
        running.push((receiver, bench, engine, commit));
    }
    for (receiver, _bench, engine, commit) in &running {
        until("it is given up", async || {
            let last_error = status(engine).last_error;
            last_error.is_some_and(|why| why == "the delivery took too long")
        })
        .await;
        receiver.gate.send_replace(true);
        caught_up(engine, 5).await;
        assert_eq!(receiver.sorted(), [1, 2, 3, 4, 5], "{commit:?}");
        engine.shutdown().await;
    }
}

/// What a sink has no time for in a call (the next transaction has it) is no try of it, however often that happens.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_has_not_come_to_goes_next_and_costs_no_attempt() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].concurrency = Some(1);
        bench.store(1..=40).await;
        let tries = Arc::new(Mutex::new(Vec::new()));
        let noted = tries.clone();
        receiver.says(move |delivery| {
            let seq = delivery.event.seq.0;
            let mut noted = lock(&noted);
            noted.push((seq, delivery.attempt));
            // Each goes at the third time, but for every fourth.
            let times = noted.iter().filter(|(other, _)| *other == seq).count();
            Ok(if seq % 4 == 1 || times > 2 {
                Outcome::Delivered
            } else {
                let reason = "its turn comes with the next one".into();
                Outcome::Untried { reason }
            })
        });
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 40).await;
        assert_eq!(receiver.sorted(), (1..=40).collect::<Vec<_>>());
        let tries = lock(&tries).clone();
        assert!(tries.len() >= 100, "{tries:?}");
        assert!(tries.iter().all(|(_, attempt)| *attempt == 1), "{commit:?}: {tries:?}");
        let status = status(&engine);
        assert_eq!(
            (status.dead, status.retrying, status.breaker.as_str()),
            (0, 0, "closed")
        );
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_a_sink_has_not_come_to_stay_in_their_order() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    bench.store(1..=4).await;
    let is_refused = Arc::new(AtomicBool::new(true));
    let refuses = is_refused.clone();
    // One at a time goes, whatever comes with it.
    let (taken, reason) = (
        Arc::new(AtomicU64::new(0)),
        crate::sinks::Reason::from("it does not like it"),
    );
    receiver.says(move |delivery| {
        let seq = delivery.event.seq.0;
        Ok(if refuses.load(Ordering::SeqCst) {
            Outcome::Reject { reason: reason.clone() }
        } else if taken.load(Ordering::SeqCst) < 2 && seq > 2 * taken.load(Ordering::SeqCst) + 1 {
            let reason = "its turn comes with the next one".into();
            if seq == 4 {
                taken.fetch_add(1, Ordering::SeqCst);
            }
            Outcome::Untried { reason }
        } else {
            Outcome::Delivered
        })
    });
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 4).await;
    is_refused.store(false, Ordering::SeqCst);
    engine.dead_retry("a", (1..=4).map(Seq).collect()).await.unwrap();
    until("none is", async || status(&engine).dead == 0).await;
    assert_eq!(receiver.seqs(), [1, 2, 3, 4]);
    engine.shutdown().await;
}

/// Decision 33: the receiver has taken some of a batch when the connection breaks.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_of_a_batch_when_the_sink_broke_goes_later_and_costs_no_attempt() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    bench.store(1..=10).await;
    let (is_broken, tries) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let (broken, noted) = (is_broken.clone(), tries.clone());
    receiver.says(move |delivery| {
        let seq = delivery.event.seq.0;
        lock(&noted).push((seq, delivery.attempt));
        Ok(if seq > 4 && broken.load(Ordering::SeqCst) {
            Outcome::Waits(Unavailable::new("the connection broke"))
        } else {
            Outcome::Delivered
        })
    });
    let engine = bench.engine(Mode::Follow).await;
    until("some are there", async || receiver.seqs().len() == 4).await;
    until("the sink waits", async || {
        let status = status(&engine);
        status.breaker != "closed" && status.last_error.as_deref() == Some("the connection broke")
    })
    .await;
    assert_eq!(status(&engine).retrying, 0);
    until("it is tried again", async || lock(&tries).len() > 10).await;
    is_broken.store(false, Ordering::SeqCst);
    caught_up(&engine, 10).await;
    assert_eq!(receiver.sorted(), (1..=10).collect::<Vec<_>>());
    let counted: Vec<(u64, u32)> = lock(&tries)
        .iter()
        .copied()
        .filter(|(_, attempt)| *attempt > 1)
        .collect();
    assert_eq!(counted, []);
    until("it works", async || status(&engine).breaker == "closed").await;
    engine.shutdown().await;
}

/// The process is killed again and again: what had passed before counts, however little is known of the time in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_counted_of_an_age_before_a_kill_counts_after_it() {
    for (held_up, hours, is_over) in [
        (false, 71, false),
        (false, 73, true),
        (true, 71, false),
        (true, 73, true),
    ] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].retry.max_age = Span::secs(72 * 3600);
        let tried = Arc::new(AtomicU64::new(0));
        let counted = tried.clone();
        receiver.says(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            if held_up {
                return Err(Unavailable::new("nobody is there"));
            }
            let reason = "busy".into();
            Ok(Outcome::Retry { reason, after: None })
        });
        let engine = bench.engine(Mode::Follow).await;
        let came = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(300);
        let body = r#"{"event":{"id":"ev_1","object_type":"lead","action":"updated"}}"#;
        let incoming = Incoming::new(body.into(), came, Source::Webhook, None);
        bench.log.append(incoming).await.unwrap();
        until("it was tried", async || status(&engine).last_error.is_some()).await;
        engine.shutdown().await;

        // As a process left it that was killed long ago, and had begun to count so many hours before.
        let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
            .await
            .unwrap();
        let key = super::super::mark::record_key("a");
        let entry = store.get(&key).await.unwrap().unwrap();
        let mut record: super::super::mark::Record = entry.json().unwrap();
        let killed = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(200);
        let began = Some(killed - jiff::SignedDuration::from_hours(hours));
        (record.saved_at, record.saved_by) = (Some(killed), Some("another".into()));
        record.held_since = record.held_since.and(began);
        record.held_counted_from = record.held_since;
        for item in record.main.iter_mut().flat_map(|main| &mut main.open) {
            item.tries.first_attempt = item.tries.first_attempt.and(began);
            item.tries.counted_from = item.tries.first_attempt;
        }
        crate::state::put_json(&*store, &key, &record, Expected::Anything)
            .await
            .unwrap();
        store.close().await;

        // Nobody tells the time.
        let age = crate::age::Age::with_clocks(jiff::Timestamp::now, || Duration::ZERO);
        bench.clock = Clock::of(Arc::new(age));
        let before = tried.load(Ordering::SeqCst);
        let engine = bench.engine(Mode::Follow).await;
        until("it was tried again", async || {
            tried.load(Ordering::SeqCst) >= before + 3 || status(&engine).dead == 1
        })
        .await;
        if is_over {
            until("it is given up", async || status(&engine).dead == 1).await;
        }
        assert_eq!(
            status(&engine).dead,
            u64::from(is_over),
            "held up: {held_up}, {hours} h"
        );
        engine.shutdown().await;
    }
}

/// The machine starts with a clock that is 100 hours ahead: to that, what has been tried is too old, and so is what was held up.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_nobody_vouches_for_gives_nothing_up() {
    for held_up in [false, true] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].retry.max_age = Span::secs(72 * 3600);
        let refuses = move || {
            if held_up {
                return Err(Unavailable::new("nobody is there"));
            }
            Ok(Outcome::Retry {
                reason: "busy".into(),
                after: None,
            })
        };
        receiver.says(move |_| refuses());
        let engine = bench.engine(Mode::Follow).await;
        let ago = jiff::SignedDuration::from_hours(100);
        let came = jiff::Timestamp::now() - ago;
        let body = r#"{"event":{"id":"ev_1","object_type":"lead","action":"updated"}}"#;
        let incoming = Incoming::new(body.into(), came, Source::Webhook, None);
        let stored = bench.log.append_in_order(vec![incoming]).await;
        assert!(matches!(stored[..], [Ok(Appended::Stored(_))]), "{stored:?}");
        until("it was tried", async || status(&engine).last_error.is_some()).await;
        engine.shutdown().await;

        // As if the clock had shown as much less then.
        let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
            .await
            .unwrap();
        let key = super::super::mark::record_key("a");
        let entry = store.get(&key).await.unwrap().unwrap();
        let mut record: super::super::mark::Record = entry.json().unwrap();
        let mut open = record.main.iter().flat_map(|main| &main.open);
        let was_tried = open.any(|item| item.tries.first_attempt.is_some());
        assert!(was_tried || record.held_since.is_some(), "{record:?}");
        record.held_since = record.held_since.map(|at| at - ago);
        for item in record.main.iter_mut().flat_map(|main| &mut main.open) {
            item.tries.first_attempt = item.tries.first_attempt.map(|at| at - ago);
        }
        crate::state::put_json(&*store, &key, &record, Expected::Anything)
            .await
            .unwrap();
        store.close().await;

        let age = Arc::new(crate::age::Age::with_clocks(jiff::Timestamp::now, || Duration::ZERO));
        bench.clock = Clock::of(age.clone());
        let tried = Arc::new(AtomicU64::new(0));
        let counted = tried.clone();
        receiver.says(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            refuses()
        });
        let engine = bench.engine(Mode::Follow).await;
        until("it is tried again and again", async || {
            tried.load(Ordering::SeqCst) >= 3
        })
        .await;
        assert_eq!(status(&engine).dead, 0, "held up: {held_up}");
        // A delivery tells what time it is: that old it is indeed.
        age.told(jiff::Timestamp::now());
        until("it is given up", async || status(&engine).dead == 1).await;
        engine.shutdown().await;
    }
}
