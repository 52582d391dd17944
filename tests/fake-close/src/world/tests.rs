//! A world moved through time, with a receiver that is asked at each attempt.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::dispatch::{DROP_AFTER, FAILING_MAX, QUEUE_MAX, QUEUE_WARN, RETRY_DELAY_MAX};
use crate::span::Span;
use crate::subscription::Change;
use proptest::prelude::*;

const START: Moment = Moment(1_700_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn world(settings: Settings) -> World {
    World::new(7, START, settings, None)
}

fn subscribe(world: &mut World, events: &str) -> String {
    let body = format!(r#"{{"url": "http://127.0.0.1:1/hook", "events": {events}}}"#);
    let change = Change::parse(body.as_bytes(), true, world.settings()).unwrap();
    world.subscribe(change, "user_1", None).unwrap().id
}

/// All kinds of events.
fn everything() -> String {
    let kinds: Vec<String> = crate::happen::KINDS
        .iter()
        .map(|kind| {
            format!(
                r#"{{"object_type": "{}", "action": "{}"}}"#,
                kind.object_type, kind.action
            )
        })
        .collect();
    format!("[{}]", kinds.join(","))
}

/// Moves time on with a receiver that is asked at each attempt.
fn run(world: &mut World, span: Duration, mut receiver: impl FnMut(&Attempt) -> bool) -> Vec<Attempt> {
    let until = world.now().plus(span);
    let mut all = Vec::new();
    loop {
        let batch = world.take_due(until);
        if batch.is_empty() {
            assert_eq!(world.now(), until);
            return all;
        }
        for attempt in batch {
            world.settle(attempt, receiver(&attempt), attempt.due);
            all.push(attempt);
        }
    }
}

fn id(world: &World, attempt: &Attempt) -> String {
    world.events.id(attempt.place)
}

#[test]
fn a_delivery_is_signed_with_the_key_of_its_subscription() {
    let mut world = world(Settings::calm());
    let subscription = subscribe(&mut world, &everything());
    world.generate(10, START.plus(HOUR), HOUR).unwrap();
    let key = world.subscription(&subscription).unwrap().signature_key.clone();
    let attempts = run(&mut world, DAY, |_| true);
    assert!(attempts.len() >= 10);
    for attempt in attempts {
        let outgoing = world.outgoing(&attempt, START).unwrap();
        assert_eq!(outgoing.signature.timestamp, START.unix_seconds().to_string());
        let hash = signature::hash(&key, &outgoing.signature.timestamp, outgoing.body.as_bytes());
        assert_eq!(Some(outgoing.signature.hash), hash);
    }
}

#[test]
fn updates_close_together_are_one_webhook_and_those_apart_are_two() {
    let mut world = world(Settings {
        consolidation: Span::secs(60),
        ..Settings::calm()
    });
    subscribe(&mut world, r#"[{"object_type": "lead", "action": "updated"}]"#);
    let id_of = |world: &mut World| {
        world
            .inject(r#"{"object_type": "lead", "action": "updated"}"#, Duration::ZERO, true)
            .unwrap()
    };
    let event = id_of(&mut world);
    assert!(
        run(&mut world, Duration::from_secs(30), |_| true).is_empty(),
        "it waits for further changes"
    );
    world.consolidate(&event, Duration::ZERO).unwrap();
    let sent = run(&mut world, Duration::from_secs(200), |_| true);
    assert_eq!(sent.iter().map(|attempt| attempt.place.nth).collect::<Vec<_>>(), [1]);
    world.consolidate(&event, Duration::ZERO).unwrap();
    let sent = run(&mut world, HOUR, |_| true);
    assert_eq!(sent.iter().map(|attempt| attempt.place.nth).collect::<Vec<_>>(), [2]);
    assert_eq!(sent[0].due, sent[0].place.updated.plus(Duration::from_secs(60)));
}

#[test]
fn a_failed_delivery_is_tried_again_at_most_every_twenty_minutes_for_72_hours() {
    let mut world = world(Settings::calm());
    let subscription = subscribe(&mut world, r#"[{"object_type": "lead", "action": "created"}]"#);
    let first = world
        .inject(r#"{"object_type": "lead", "action": "created"}"#, Duration::ZERO, true)
        .unwrap();
    let mut attempts = Vec::new();
    // Another event gets through now and then, so that the subscription is not paused.
    for _ in 0..80 {
        world
            .inject(r#"{"object_type": "lead", "action": "created"}"#, Duration::ZERO, true)
            .unwrap();
        let event = world.events.index_of(&first).unwrap();
        let made = run(&mut world, HOUR, |attempt| attempt.place.event != event);
        attempts.extend(made.into_iter().filter(|attempt| attempt.place.event == event));
    }
    let gaps: Vec<Duration> = attempts.windows(2).map(|pair| pair[1].due.since(pair[0].due)).collect();
    assert!(gaps.iter().all(|gap| *gap <= RETRY_DELAY_MAX && !gap.is_zero()));
    assert!(gaps.last().unwrap() > &(RETRY_DELAY_MAX / 2), "it backs off");
    assert!(gaps.windows(2).take(5).all(|pair| pair[0] < pair[1]));
    let whole = attempts.last().unwrap().due.since(attempts[0].due);
    assert!(whole <= DROP_AFTER && whole + RETRY_DELAY_MAX > DROP_AFTER, "{whole:?}");
    let counts = world.subscription(&subscription).unwrap().counts;
    assert_eq!((counts.dropped, counts.delivered), (1, 80));
}

#[test]
fn three_days_of_nothing_but_failures_pause_a_subscription_and_clear_its_queue() {
    let mut world = world(Settings::calm());
    let subscription = subscribe(&mut world, &everything());
    world.generate(2000, START, DAY * 6).unwrap();
    run(&mut world, DAY, |_| true);
    let down = world.now();
    run(&mut world, HOUR * 71, |_| false);
    let state = |world: &World| {
        let subscription = world.subscription(&subscription).unwrap();
        (subscription.active, subscription.queued)
    };
    let (active, queued) = state(&world);
    assert!(active && queued > 500, "{queued}");
    run(&mut world, HOUR * 2, |_| false);
    assert_eq!(state(&world), (false, 0));
    let paused = world.subscription(&subscription).unwrap().updated.since(down);
    assert!(paused >= FAILING_MAX && paused < FAILING_MAX + HOUR, "{paused:?}");
    assert!(
        run(&mut world, DAY, |_| true).is_empty(),
        "nothing is sent, nothing queued"
    );
    let change = Change {
        active: Some(true),
        ..Change::default()
    };
    let resumed = world.now();
    world.change(&subscription, change, "user_1").unwrap().unwrap();
    let sent = run(&mut world, DAY, |_| true);
    assert!(!sent.is_empty());
    assert!(
        sent.iter().all(|attempt| attempt.place.updated >= resumed),
        "what was missed is not sent later"
    );
}

#[test]
fn one_success_in_three_days_keeps_a_subscription_alive() {
    let mut world = world(Settings::calm());
    let subscription = subscribe(&mut world, &everything());
    world.generate(300, START, DAY * 8).unwrap();
    for _ in 0..8 {
        let mut successes = 0;
        run(&mut world, DAY, |_| {
            successes += 1;
            successes == 1
        });
    }
    assert!(world.subscription(&subscription).unwrap().active);
}

#[test]
fn more_than_a_hundred_thousand_queued_pause_a_subscription() {
    let mut world = world(Settings {
        slice: Span::secs(60),
        ..Settings::calm()
    });
    let subscription = subscribe(&mut world, &everything());
    // So many in so short a time that the first retries are not over yet.
    world.generate(QUEUE_MAX as u64 + 40_000, START, HOUR).unwrap();
    let mut warned_first = false;
    let until = START.plus(HOUR * 3);
    while world.subscription(&subscription).unwrap().active {
        let batch = world.take_due(until);
        assert!(!batch.is_empty(), "it was never paused");
        for attempt in batch {
            world.settle(attempt, false, attempt.due);
        }
        let now = world.subscription(&subscription).unwrap();
        assert!(now.queued <= QUEUE_MAX);
        warned_first |= now.warned && now.active && now.queued >= QUEUE_WARN;
    }
    let paused = world.subscription(&subscription).unwrap();
    assert!(warned_first);
    assert_eq!((paused.queued, paused.warned), (0, false));
    assert!(paused.counts.cleared > QUEUE_MAX as u64);
    assert!(run(&mut world, HOUR, |_| true).is_empty());
}

#[test]
fn only_what_a_subscription_wants_is_sent_to_it() {
    let mut world = world(Settings::calm());
    let filter = r#"{"type": "field_accessor", "field": "data", "filter":
        {"type": "field_accessor", "field": "status_label", "filter": {"type": "equals", "value": "Customer"}}}"#;
    let filtered = subscribe(
        &mut world,
        &format!(r#"[{{"object_type": "lead", "action": "updated", "extra_filter": {filter}}}]"#),
    );
    let plain = subscribe(
        &mut world,
        r#"[{"object_type": "lead", "action": "updated"}, {"object_type": "contact", "action": "created"}]"#,
    );
    world.generate(2000, START, DAY).unwrap();
    run(&mut world, DAY * 2, |_| true);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for delivered in world.deliveries(0) {
        let body: Value = serde_json::from_str(&delivered.body).unwrap();
        assert_eq!(body["subscription_id"], delivered.subscription_id.as_str());
        if delivered.subscription_id == filtered {
            assert_eq!(body["event"]["data"]["status_label"], "Customer");
        }
        *counts.entry(delivered.subscription_id).or_default() += 1;
    }
    assert!(
        counts[&filtered] > 20 && counts[&plain] > 2 * counts[&filtered],
        "{counts:?}"
    );
}

#[test]
fn nothing_is_delivered_beyond_this_machine_unless_asked_for() {
    let routed = |settings: Settings, url: &str| world(settings).route(url).ok();
    let calm = Settings::calm;
    assert_eq!(
        routed(calm(), "http://127.0.0.1:1/x").as_deref(),
        Some("http://127.0.0.1:1/x")
    );
    assert_eq!(routed(calm(), "https://example.com/x"), None);
    let anywhere = Settings {
        deliver_anywhere: true,
        ..calm()
    };
    assert_eq!(
        routed(anywhere, "https://example.com/x").as_deref(),
        Some("https://example.com/x")
    );
    let elsewhere = Settings {
        deliver_to: BTreeMap::from([("https://example.com".into(), "http://[::1]:2".into())]),
        ..calm()
    };
    assert_eq!(
        routed(elsewhere, "https://example.com/x").as_deref(),
        Some("http://[::1]:2/x")
    );
}

#[test]
fn history_is_in_the_log_but_is_not_delivered() {
    let mut world = world(Settings::calm());
    subscribe(&mut world, &everything());
    world.generate(500, START.minus(DAY * 2), DAY).unwrap();
    assert!(run(&mut world, DAY, |_| true).is_empty());
    assert!(world.revisions(0).count() >= 500);
}

#[test]
fn events_happen_by_themselves_at_the_rate_set() {
    let mut world = world(Settings {
        events_per_second: 0.5,
        ..Settings::calm()
    });
    subscribe(&mut world, &everything());
    run(&mut world, HOUR, |_| true);
    assert_eq!(world.events.count(), 1800);
    let dates: BTreeSet<String> = world.revisions(0).map(|revision| revision.date_updated).collect();
    assert!(dates.first().unwrap() > &START.plain());
    world.set(Settings::calm());
    run(&mut world, HOUR, |_| true);
    assert_eq!(world.events.count(), 1800);
}

#[test]
fn the_same_seed_delivers_the_same_in_the_same_disorder() {
    let story = || {
        let mut world = world(Settings {
            allow_loopback: true,
            ..Settings::default()
        });
        subscribe(&mut world, &everything());
        world.generate(1000, START, DAY).unwrap();
        let mut number = 0_u32;
        run(&mut world, DAY * 2, |_| {
            number += 1;
            !number.is_multiple_of(7)
        });
        world.deliveries(0).collect::<Vec<_>>()
    };
    let first = story();
    assert_eq!(first, story());
    let keys: Vec<(String, String)> = first
        .iter()
        .map(|one| (one.date_updated.clone(), one.id.clone()))
        .collect();
    assert!(keys.windows(2).any(|pair| pair[0] > pair[1]), "some come out of order");
    let distinct: BTreeSet<_> = keys.iter().collect();
    assert!(distinct.len() < keys.len(), "some come twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever a receiver does: every revision that was due is delivered, given up on, cleared, or consolidated away.
    #[test]
    fn every_webhook_ends_somewhere(seed: u64, luck in 0_u64..100, outage_from in 0_u32..8, outage_days in 0_u32..6) {
        let mut world = World::new(seed, START, Settings { allow_loopback: true, ..Settings::default() }, None);
        let subscription = subscribe(&mut world, &everything());
        world.generate(300, START, DAY * 8).unwrap();
        let outage = START.plus(DAY * outage_from)..START.plus(DAY * (outage_from + outage_days));
        let mut dice = Dice::of(&[seed]);
        let attempts = run(&mut world, DAY * 20, |attempt| !outage.contains(&attempt.due) && dice.below(100) >= luck);
        let after = world.subscription(&subscription).unwrap().clone();
        prop_assert_eq!(after.queued, 0);
        prop_assert_eq!(after.counts.attempts, attempts.len() as u64);
        prop_assert_eq!(after.counts.delivered, world.deliveries(0).count() as u64);
        let attempted: BTreeSet<(String, u8)> = attempts.iter().map(|attempt| (id(&world, attempt), attempt.place.nth)).collect();
        let delivered = world.revisions(0).filter(|revision| revision.delivered).count();
        for revision in world.revisions(0) {
            prop_assert_eq!(revision.attempted, attempted.contains(&(revision.id.clone(), revision.nth)));
            prop_assert!(revision.attempted || !revision.delivered);
            if after.paused_because.is_none() && revision.latest {
                prop_assert!(revision.attempted, "{:?}", revision);
            }
        }
        if after.paused_because.is_none() {
            // A duplicate can be given up on although its twin was delivered, so more may have ended than there are.
            prop_assert!(delivered as u64 + after.counts.dropped >= attempted.len() as u64);
        }
        for one in world.deliveries(0) {
            let delivery: Value = serde_json::from_str(&one.body).unwrap();
            prop_assert_eq!(&delivery["event"]["id"], &one.id);
        }
    }
}
