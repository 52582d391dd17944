//! `settle`: of the changes of an object only that which it settles with is delivered.

use super::EventState::{Delivered, Superseded, Waiting};
use super::*;

/// A change of each of these objects, in this order; 0: an event of none.
async fn change(bench: &Bench, objects: &[u64]) {
    let incoming = |object: &u64| {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::SeqCst);
        let object = if *object == 0 {
            String::new()
        } else {
            format!(r#","object_id":"lead_{object}""#)
        };
        let body = format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated"{object}}}}}"#);
        Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
    };
    for stored in bench.log.append_in_order(objects.iter().map(incoming).collect()).await {
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_settled_waits_and_is_no_trouble_and_what_is_of_no_object_does_not() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].settle = Some(Span::secs(3600));
    change(&bench, &[1, 2, 1, 0, 1]).await;
    let engine = bench.engine(Mode::Follow).await;
    until("what is of no object is there", async || receiver.seqs() == [4]).await;
    until("the rest waits", async || status(&engine).lag_events == 2).await;
    let waiting = status(&engine);
    assert_eq!((waiting.waits_for, waiting.superseded, waiting.retrying), (None, 2, 0));
    assert!(waiting.waits_by.unwrap().starts_with("its settle: 2 object(s)"));
    let mut states = Vec::new();
    for seq in 1..=5 {
        states.push(state(&bench, &engine, seq).await);
    }
    assert_eq!(states, [Superseded, Waiting, Superseded, Delivered, Waiting]);
    let id = replay(&engine, 1, 1).await;
    replay_done(&engine, &id).await;
    assert_eq!(receiver.seqs(), [4, 1], "a replay goes past it");
    assert_eq!(state(&bench, &engine, 1).await, Delivered);
    engine.shutdown().await;
    // Nobody tries it while the daemon is stopped either.
    let looked = status(&bench.engine(Mode::Look).await);
    assert_eq!((looked.retrying, looked.lag_events), (0, 2));
    // After a restart the same waits; without the key nothing does.
    let engine = bench.engine(Mode::Follow).await;
    until("it waits again", async || status(&engine).waits_by.is_some()).await;
    change(&bench, &[2]).await;
    until("that supersedes, too", async || status(&engine).superseded == 1).await;
    bench.sinks[0].settle = None;
    engine.reload(engine.rules(), &bench.sinks).await.unwrap();
    caught_up(&engine, 6).await;
    assert_eq!(receiver.sorted(), [1, 4, 5, 6]);
    assert_eq!(state(&bench, &engine, 2).await, Superseded);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_ends_with_its_newest_event_and_every_event_is_delivered_once_or_superseded() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].settle = Some(Span(Duration::from_millis(80)));
        let mut engine = bench.engine(Mode::Follow).await;
        for round in 0..6 {
            for _ in 0..10 {
                change(&bench, &[1, 2, 3, 4, 5, 6, 7, 0]).await;
            }
            if round % 2 == 0 {
                engine.shutdown().await;
                engine = bench.engine(Mode::Follow).await;
            }
        }
        caught_up(&engine, 480).await;
        let went = receiver.sorted();
        let has = |seq: u64| went.binary_search(&seq).is_ok();
        assert!(went.windows(2).all(|pair| pair[0] < pair[1]), "{commit:?}: twice");
        assert!((473..=480).all(has), "{commit:?}: the newest of each");
        assert!((1..=60).all(|time| has(time * 8)), "{commit:?}: those of no object");
        for seq in (1..=480).filter(|seq| !has(*seq)) {
            assert_eq!(
                state(&bench, &engine, seq).await,
                EventState::Superseded,
                "{commit:?} {seq}"
            );
        }
        engine.shutdown().await;
    }
}

/// More objects than there is room for: it gets slower, and nothing is left out.
#[tokio::test(flavor = "multi_thread")]
async fn more_objects_than_there_is_room_for_all_come() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.sinks[0].settle = Some(Span(Duration::from_millis(50)));
    let objects: Vec<u64> = (1..=5000).collect();
    change(&bench, &objects).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5000).await;
    assert_eq!(receiver.sorted(), objects);
    engine.shutdown().await;
}

/// Close brings again what it could not bring before, and a backfill what the webhook has overtaken.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_revision_goes_in_whatever_order_they_come() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].settle = Some(Span::secs(60));
    append_revisions(&bench, &[(7, 5, 0), (7, 1, 1), (8, 1, 2), (8, 5, 3), (7, 4, 4)]).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.sorted(), [1, 4]);
    for seq in [2, 3, 5] {
        assert_eq!(state(&bench, &engine, seq).await, Superseded, "{seq}");
    }
    assert_eq!(status(&engine).superseded, 3);
    engine.shutdown().await;
}

/// Changes of objects, each of a revision of that second, that were received so many seconds after each other an hour ago; 0: of none.
async fn append_revisions(bench: &Bench, changes: &[(u64, u64, i64)]) {
    let hour = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let incoming = changes.iter().enumerate().map(|(index, (object, revision, second))| {
        let id = match object {
            0 => String::new(),
            object => format!(r#","object_id":"lead_{object}""#),
        };
        let body = format!(r#"{{"event":{{"id":"ev_{index}"{id},"date_updated":"2024-02-15T12:48:0{revision}"}}}}"#);
        let at = hour + jiff::SignedDuration::from_secs(*second);
        Incoming::new(body.into(), at, Source::Webhook, None)
    });
    for stored in bench.log.append_in_order(incoming.collect()).await {
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
}

/// The older revision is read when the newer one has gone long ago.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_revision_that_there_is_no_room_to_read_does_not_go_after_the_newer_one() {
    const OBJECTS: u64 = 3000;
    for commit in [Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].settle = Some(Span::secs(60));
        let newer = (1..=OBJECTS).map(|object| (object, 5, 0));
        let older = (1..=OBJECTS).map(|object| (object, 1, 20));
        // Behind the older one there may be a newest one.
        let newest = (1..=3).map(|object| (object, 6, 40));
        append_revisions(&bench, &newer.chain(older).chain(newest).collect::<Vec<_>>()).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 2 * OBJECTS + 3).await;
        let expected: Vec<u64> = (4..=OBJECTS).chain(2 * OBJECTS + 1..=2 * OBJECTS + 3).collect();
        assert!(
            receiver.sorted() == expected,
            "{commit:?}: {} went",
            receiver.sorted().len()
        );
        assert_eq!(status(&engine).superseded, OBJECTS + 3);
        assert_eq!(state(&bench, &engine, OBJECTS + 9).await, Superseded);
        engine.shutdown().await;
    }
}

/// They lie so scattered, and are so many, that some have to be read before more can be noted.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_scattered_older_revisions_none_goes_after_the_newer_one() {
    const OBJECTS: u64 = 7000;
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Checkpoint)]);
    bench.sinks[0].settle = Some(Span::secs(60));
    let newer = (1..=OBJECTS).map(|object| (object, 5, 0));
    // Behind each older one stands an event of no object.
    let older = (1..=OBJECTS).flat_map(|object| [(object, 1, 20), (0, 1, 20)]);
    append_revisions(&bench, &newer.chain(older).collect::<Vec<_>>()).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 3 * OBJECTS).await;
    let others = (1..=OBJECTS).map(|nth| OBJECTS + 2 * nth);
    let expected: Vec<u64> = (1..=OBJECTS).chain(others).collect();
    let went = receiver.sorted();
    assert!(went == expected, "{} went", went.len());
    assert_eq!(status(&engine).superseded, OBJECTS);
    engine.shutdown().await;
}

/// What has waited in the log for long enough by the clock may still be superseded by what stands behind it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_the_log_has_something_newer() {
    const EVENTS: u64 = 20_000;
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].settle = Some(Span::secs(60));
    let long_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let incoming = |id: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}","object_id":"lead_{}"}}}}"#, id % 3);
        Incoming::new(body.into(), long_ago, Source::Webhook, None)
    };
    for stored in bench.log.append_in_order((1..=EVENTS).map(incoming).collect()).await {
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, EVENTS).await;
    assert_eq!(receiver.sorted(), [EVENTS - 2, EVENTS - 1, EVENTS]);
    engine.shutdown().await;
}

/// More objects than there is room for, which all change again before they have settled: their older events are read long before the newer
/// ones, and do not go.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_was_superseded_in_what_there_is_no_room_to_read() {
    const OBJECTS: u64 = 3000;
    for commit in [Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].settle = Some(Span::secs(60));
        let hour = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
        let mut incoming = Vec::new();
        let mut at = |second: i64, object: u64| {
            let body = format!(r#"{{"event":{{"id":"ev_{second}_{object}","object_id":"lead_{object}"}}}}"#);
            let at = hour + jiff::SignedDuration::from_secs(second);
            incoming.push(Incoming::new(body.into(), at, Source::Webhook, None));
        };
        // Three changes of each within a minute; then one when all of them had settled, but for one that had not.
        for second in [0, 20, 40] {
            (0..OBJECTS).for_each(|object| at(second, object));
        }
        at(99, 7);
        (0..OBJECTS).for_each(|object| at(100, object));
        for stored in bench.log.append_in_order(incoming).await {
            assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
        }
        let engine = bench.engine(Mode::Follow).await;
        let last = 4 * OBJECTS + 1;
        caught_up(&engine, last).await;
        let settled = (2 * OBJECTS + 1..=3 * OBJECTS).filter(|seq| *seq != 2 * OBJECTS + 8);
        let expected: Vec<u64> = settled.chain(3 * OBJECTS + 2..=last).collect();
        let went = receiver.sorted();
        assert!(
            went == expected,
            "{commit:?}: {} went, not {}",
            went.len(),
            expected.len()
        );
        assert_eq!(status(&engine).superseded, last - expected.len() as u64);
        assert_eq!(state(&bench, &engine, 1).await, Superseded);
        engine.shutdown().await;
    }
}
