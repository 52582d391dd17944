//! Dead letters that are tried again.

use super::*;
use crate::config::Order;

/// G4: a letter that was delivered goes when that is durable, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_stays_until_its_delivery_is_secured() {
    for commit in [Commit::Checkpoint, Commit::Transaction, Commit::Acknowledge] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        receiver.says(|delivery| match delivery.event.seq.0 {
            5..=8 => Ok(Outcome::Reject { reason: "no".into() }),
            _ => Ok(Outcome::Delivered),
        });
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=20).await;
        until("four are dead", async || status(&engine).dead == 4).await;
        caught_up(&engine, 20).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        if commit == Commit::Checkpoint {
            *lock(&receiver.fail_checkpoint) = Some("the disk failed".into());
        }
        let asked = engine.dead_retry("a", (5..=8).map(Seq).collect()).await.unwrap();
        let (total, delivered, failed) = settled(&asked).await;
        if commit == Commit::Checkpoint {
            assert_eq!(
                (total, delivered, failed),
                (4, 0, 4),
                "the checkpoint failed: they are cut off"
            );
            assert_eq!(status(&engine).dead, 4);
            assert!(asked.why().unwrap().contains("the disk failed"));
            until("it works again", async || status(&engine).breaker == "closed").await;
            let asked = engine.dead_retry("a", (5..=8).map(Seq).collect()).await.unwrap();
            assert_eq!(settled(&asked).await, (4, 4, 0));
        } else {
            assert_eq!((total, delivered, failed), (4, 4, 0), "{commit:?}");
        }
        assert_eq!(status(&engine).dead, 0);
        assert_eq!(receiver.sorted(), (1..=20).collect::<Vec<_>>(), "{commit:?}");
        engine.shutdown().await;
    }
}

/// G13: each retry ends with its own true count.
#[tokio::test(flavor = "multi_thread")]
async fn retries_end_with_their_own_true_counts_whatever_happens() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 1000;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=60).await;
    until("all are dead", async || status(&engine).dead == 60).await;
    let all = || (1..=60).map(Seq).collect::<Vec<_>>();
    // Two at once, of which the first does not get anywhere before the second is asked for.
    receiver.gate.send_replace(false);
    let first = engine.dead_retry("a", all()).await.unwrap();
    let second = engine.dead_retry("a", all()).await.unwrap();
    let tried = Arc::new(Mutex::new(Vec::new()));
    let noted = tried.clone();
    receiver.says(move |delivery| {
        lock(&noted).push(delivery.event.seq.0);
        match delivery.event.seq.0 {
            1..=3 => Ok(Outcome::Reject { reason: "still".into() }),
            _ => Ok(Outcome::Delivered),
        }
    });
    receiver.gate.send_replace(true);
    assert_eq!(
        (settled(&first).await, settled(&second).await),
        ((60, 57, 3), (0, 0, 0)),
        "each is counted once"
    );
    assert_eq!(second.elsewhere(), 60);
    assert_eq!(status(&engine).dead, 3);
    let mut tried = lock(&tried).clone();
    tried.sort_unstable();
    assert_eq!(tried, (1..=60).collect::<Vec<_>>(), "one try serves both");
    // One during a reload.
    receiver.gate.send_replace(false);
    let third = engine.dead_retry("a", vec![Seq(1), Seq(2), Seq(3)]).await.unwrap();
    until("they are under way", async || status(&engine).in_flight == 3).await;
    let mut changed = bench.sinks[0].clone();
    changed.timeout = Span::secs(19);
    let reloading = tokio::spawn({
        let (engine, rules) = (engine.clone(), bench.rules.clone());
        async move { engine.reload(rules, &[changed]).await }
    });
    receiver.says(|_| Ok(Outcome::Delivered));
    receiver.gate.send_replace(true);
    reloading.await.unwrap().unwrap();
    assert_eq!(settled(&third).await, (3, 3, 0), "what ran came to its end first");
    assert_eq!(status(&engine).dead, 0);
    // And one of which nobody ever hears: the sink has left the configuration.
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.store(61..=63).await;
    until("three are dead", async || status(&engine).dead == 3).await;
    receiver.gate.send_replace(false);
    let last = engine.dead_retry("a", (61..=63).map(Seq).collect()).await.unwrap();
    until("they are under way", async || status(&engine).in_flight == 3).await;
    let removing = tokio::spawn({
        let (engine, rules) = (engine.clone(), bench.rules.clone());
        async move { engine.reload(rules, &[]).await }
    });
    receiver.gate.send_replace(true);
    removing.await.unwrap().unwrap();
    assert_eq!(settled(&last).await, (3, 0, 3));
    assert_eq!(engine.dead_list(Some("a"), Seq(1), 9).unwrap().len(), 3);
    assert_eq!(engine.forget("a").await.unwrap(), 3);
    assert!(engine.forget("a").await.is_err() && engine.dead_list(Some("a"), Seq(1), 9).is_err());
    engine.shutdown().await;
    assert!(!bench.dir.path().join("dead/a").exists());
}

/// G13: what somebody else has delivered or dropped meanwhile is neither delivered by this retry nor still dead.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_dead_letter_any_more_is_counted_as_gone() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 1000;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=4).await;
    until("all are dead", async || status(&engine).dead == 4).await;
    engine.dead_drop("a", &[Seq(2)]).unwrap();
    let retried = engine.dead_retry("a", (1..=4).map(Seq).collect()).await.unwrap();
    assert_eq!((settled(&retried).await, retried.gone()), ((3, 0, 3), 1));
    engine.shutdown().await;
}

/// G13: also where the sink was paused before the worker began.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_sink_that_starts_paused_are_not_waited_for() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 3).await;
    engine.pause("a", true).await.unwrap();
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    assert!(engine.dead_retry("a", vec![Seq(1)]).await.is_err(), "said at once");
    // And when it is paused between the question and the order.
    let asked = Arc::new(RetryProgress::new(1));
    let letters = crate::deliver::types::Waiter::each(vec![Seq(1)], &asked);
    let order = crate::deliver::worker::Command::RetryDead(letters);
    engine.order("a", order).await.unwrap();
    assert_eq!(settled(&asked).await, (1, 0, 1));
    engine.shutdown().await;
}

/// G13: a retry right after the cause is mended does not wait for the breaker, and one while it lasts says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_tried_at_once_and_says_why_nothing_works() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.probe = Span::secs(3600);
    bench.sinks[0].breaker.refusals = 1000;
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("all are dead", async || status(&engine).dead == 20).await;
    let gone = Unavailable {
        after: Some(Duration::from_secs(3600)),
        ..Unavailable::new("the token has expired")
    };
    receiver.says(move |_| Err(gone.clone()));
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&asked).await, (20, 0, 20));
    assert_eq!(asked.why().as_deref(), Some("the token has expired"));
    let (letter, _) = engine.dead_get("a", Seq(1)).await.unwrap().unwrap();
    assert_eq!(
        (letter.attempts, letter.reason.as_str()),
        (1, "no"),
        "no attempt is counted"
    );
    receiver.says(|_| Ok(Outcome::Delivered));
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&asked).await, (20, 20, 0));
    engine.shutdown().await;
}

/// G13: a letter whose delivery was committed without an answer was delivered, and one whose was not is dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_whose_answer_was_lost_is_counted_by_what_the_receiver_has() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Transaction)]);
    bench.sinks[0].breaker.refusals = 10_000;
    refuse(&receiver);
    bench.store(1..=9).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 9).await;
    durable(&engine, 9).await;
    // Nothing is committed, and nobody says so.
    receiver.says(|_| Err(Unavailable::new("the server has gone")));
    let retried = engine.dead_retry("a", (1..=4).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&retried).await, (4, 0, 4));
    assert_eq!(retried.why().as_deref(), Some("the server has gone"));
    // It is committed, and nobody says so.
    receiver.says(|delivery| match delivery.event.seq.0 {
        3 => Ok(Outcome::Reject { reason: "still".into() }),
        _ => Ok(Outcome::Delivered),
    });
    bench.store(10..=10).await;
    caught_up(&engine, 10).await;
    receiver.lose_answer.store(true, Ordering::SeqCst);
    let retried = engine.dead_retry("a", (1..=5).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&retried).await, (5, 4, 1));
    assert_eq!(status(&engine).dead, 5);
    assert_eq!(receiver.sorted(), [1, 2, 4, 5, 10]);
    assert_eq!(state(&bench, &engine, 4).await, EventState::Delivered);
    // The same when the worker goes on with other things meanwhile.
    receiver.lose_answer.store(true, Ordering::SeqCst);
    bench.store(11..=13).await;
    let retried = engine.dead_retry("a", (6..=9).map(Seq).collect()).await.unwrap();
    let (total, delivered, failed) = settled(&retried).await;
    caught_up(&engine, 13).await;
    assert_eq!((total, delivered + failed), (4, 4));
    let letters_left = status(&engine).dead;
    assert_eq!(letters_left, 1 + failed, "each count is true");
    engine.shutdown().await;
}

/// G13: where the sink keeps failing, nobody waits for one probe after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_a_sink_that_keeps_failing_ends_with_the_first_try() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker = crate::config::Breaker {
        failures: 1,
        refusals: 1000,
        probe: Span::secs(3600),
    };
    bench.sinks[0].retry.initial = Span::secs(3600);
    bench.sinks[0].retry.max_delay = Span::secs(3600);
    refuse(&receiver);
    bench.store(1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 20).await;
    receiver.says(|_| {
        Ok(Outcome::Retry {
            reason: "it is overloaded".into(),
            after: None,
        })
    });
    bench.store(21..=21).await;
    until("the sink fails", async || status(&engine).breaker == "open").await;
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    assert_eq!(settled(&asked).await, (20, 0, 20));
    assert_eq!(asked.why().as_deref(), Some("it is overloaded"));
    engine.shutdown().await;
}

/// One that is due again before each probe is no more than one of those that the sink is tried with.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_over_which_a_receiver_falls_is_not_every_probe() {
    let millis = |millis| Span(Duration::from_millis(millis));
    for order in [Order::None, Order::Lead] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].order = order;
        bench.sinks[0].breaker = crate::config::Breaker {
            failures: 2,
            refusals: 1000,
            probe: millis(100),
        };
        bench.sinks[0].retry.initial = millis(1);
        bench.sinks[0].retry.max_delay = millis(1);
        receiver.says(|delivery| {
            if delivery.event.seq == Seq(1) {
                return Ok(Outcome::Retry {
                    reason: "it fell over".into(),
                    after: None,
                });
            }
            Ok(Outcome::Delivered)
        });
        bench.store(1..=1).await;
        let engine = bench.engine(Mode::Follow).await;
        until("the sink fails", async || status(&engine).breaker == "open").await;
        bench.store(2..=4).await;
        until("all others are there", async || status(&engine).delivered == 3).await;
        assert_eq!((status(&engine).dead, status(&engine).lag_events), (0, 1), "{order:?}");
        engine.shutdown().await;
    }
}
