//! Which events a replay sends, and what becomes of one whose rule goes.

use super::*;

/// What a rule matches, wherever it sends that.
fn by_rule(rule: &str) -> ReplaySpec {
    ReplaySpec {
        rule: Some(rule.to_owned()),
        ..ReplaySpec::default()
    }
}

async fn planned(engine: &Engine, spec: ReplaySpec) -> (ReplaySpec, std::collections::BTreeMap<String, u64>) {
    engine.replay_plan(spec, &mut |_| ()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_at_most_no_event_sends_none() {
    let receiver = Receiver::new();
    let (_bench, engine) = Bench::caught_up(&receiver, Commit::Acknowledge, 5).await;
    for (limit, events) in [(0, 0), (1, 1), (4, 4), (9, 5)] {
        let spec = ReplaySpec {
            limit: Some(limit),
            ..ReplaySpec::default()
        };
        let (spec, planned) = planned(&engine, spec).await;
        assert_eq!(planned.values().sum::<u64>(), events, "at most {limit}");
        let before = receiver.seqs().len();
        // Whoever starts it may have counted otherwise.
        let id = engine
            .replay_start(spec, [("a".to_owned(), events.max(1))].into())
            .await
            .unwrap();
        replay_done(&engine, &id).await;
        assert_eq!(receiver.seqs().len() - before, events as usize, "at most {limit}");
    }
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_a_rule_that_is_gone_is_incomplete_and_goes_on_where_the_rule_is_put_back() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.rules = of_lead(3);
    bench.store(1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 20).await;
    assert_eq!(receiver.sorted(), [3, 10, 17]);
    engine.pause("a", true).await.unwrap();
    let (spec, planned) = planned(&engine, by_rule("lead 3")).await;
    assert_eq!(planned["a"], 3);
    let id = engine.replay_start(spec, planned).await.unwrap();
    engine.reload(of_lead(4), &bench.sinks).await.unwrap();
    engine.pause("a", false).await.unwrap();
    let status_is = async |engine: &Engine, wanted: &str| {
        until("it has that state", async || engine.replays()[0].state == wanted).await;
        engine.replays().remove(0)
    };
    let check = |status: &ReplayStatus| {
        let because = status.because.as_deref().unwrap_or_default();
        assert!(because.contains("there is no rule \"lead 3\" any more"), "{because}");
        assert!(because.contains("3 of 3"), "{because}");
        assert_eq!(status.delivered, 0);
    };
    check(&status_is(&engine, "incomplete").await);
    let refused = engine.replay_set_running(&id, true).await.unwrap_err().0;
    assert!(refused.contains("there is no rule \"lead 3\""), "{refused}");
    engine.shutdown().await;
    bench.rules = of_lead(4);
    let engine = bench.engine(Mode::Follow).await;
    check(&status_is(&engine, "incomplete").await);
    bench.store(21..=25).await;
    caught_up(&engine, 25).await;
    assert_eq!(receiver.sorted(), [3, 10, 17, 25], "the sink's own events go on");
    engine.reload(of_lead(3), &bench.sinks).await.unwrap();
    assert_eq!(status_is(&engine, "done").await.delivered, 3);
    assert_eq!(receiver.sorted(), [3, 3, 10, 10, 17, 17, 25]);
    engine.shutdown().await;
}

/// What was stored and not dispatched, as an import does it.
async fn import(bench: &Bench, ids: std::ops::RangeInclusive<u64>) {
    let incoming = |id: u64| {
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","lead_id":"lead_{}"}}}}"#,
            id % 7
        );
        Incoming {
            held: true,
            ..Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
        }
    };
    for stored in bench.log.append_in_order(ids.map(incoming).collect()).await {
        assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_sends_what_was_imported_however_it_says_where() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.rules = of_lead(3);
    import(&bench, 1..=20).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 20).await;
    assert_eq!(receiver.seqs(), [0; 0], "an import dispatches nothing");
    for spec in [by_rule("lead 3"), ReplaySpec::default()] {
        let (spec, planned) = planned(&engine, spec).await;
        assert_eq!(planned.values().sum::<u64>(), 3, "{spec:?}");
        let id = engine.replay_start(spec, planned).await.unwrap();
        assert_eq!(replay_done(&engine, &id).await.delivered, 3);
    }
    assert_eq!(receiver.sorted(), [3, 3, 10, 10, 17, 17]);
    assert_eq!(state(&bench, &engine, 10).await, EventState::Delivered);
    assert_eq!(state(&bench, &engine, 11).await, EventState::NotRouted);
    engine.shutdown().await;
}
