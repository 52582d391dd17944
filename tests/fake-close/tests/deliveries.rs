//! Webhooks as the fake Close sends them.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod asker;
mod receiver;

use std::time::Duration;

use asker::{Asker, DAY, HOUR, text};
use fake_close::signature::{self, HASH_HEADER, TIMESTAMP_HEADER};
use fake_close::{Fake, Moment, Options, Pace, Settings};
use receiver::{Receiver, until};
use reqwest::{Client, Method};
use serde_json::{Value, json};

/// A delivery with its event as written.
#[derive(serde::Deserialize)]
struct Pieces<'t> {
    #[serde(borrow)]
    event: &'t serde_json::value::RawValue,
}

#[tokio::test]
async fn webhooks_carry_exactly_what_the_api_shows_signed_with_the_subscriptions_key() {
    let receiver = Receiver::start(200).await;
    let asker = Asker::calm().await;
    let kinds = [
        ("lead", "created"),
        ("contact", "created"),
        ("future_thing.subtype", "exploded"),
    ];
    let subscription = asker.subscribe(&receiver.url, &kinds).await;
    let now = asker.fake.world().now();
    asker.fake.world().generate(1000, now, DAY).unwrap();
    asker.fake.advance(DAY * 2).await;
    let key = text(&subscription, "signature_key");
    let received = receiver.received.lock().unwrap().clone();
    assert!(received.len() > 50);
    for (headers, body) in &received {
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        let hash = signature::hash(key, &header(TIMESTAMP_HEADER), body.as_bytes());
        assert_eq!(Some(header(HASH_HEADER)), hash);
        let delivery: Pieces<'_> = serde_json::from_str(body).unwrap();
        let event = delivery.event.get();
        let id = serde_json::from_str::<Value>(event).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let url = format!("{}/event/{id}/", asker.fake.base_url());
        let shown = asker.client.get(url).basic_auth(asker.fake.api_key(), Some(""));
        assert_eq!(shown.send().await.unwrap().text().await.unwrap(), event);
    }
    let listed: Vec<String> = asker.fake.world().deliveries(0).map(|one| one.body).collect();
    let mut bodies: Vec<String> = received.into_iter().map(|(_, body)| body).collect();
    let mut sorted = listed.clone();
    bodies.sort();
    sorted.sort();
    assert_eq!(bodies, sorted, "the fake knows exactly what was delivered");
}

#[tokio::test]
async fn four_days_of_downtime_pause_a_subscription_and_cost_its_queue() {
    let receiver = Receiver::start(200).await;
    let asker = Asker::calm().await;
    let subscription = asker
        .subscribe(&receiver.url, &[("lead", "updated"), ("lead", "created")])
        .await;
    let path = format!("/webhook/{}/", text(&subscription, "id"));
    let now = asker.fake.world().now();
    asker.fake.world().generate(600, now, DAY * 8).unwrap();
    asker.fake.advance(DAY).await;
    let before = receiver.count();
    receiver.answer_with(503);
    asker.fake.advance(DAY * 2).await;
    assert_eq!(asker.get(&path).await.body["status"], "active", "not before three days");
    asker.fake.advance(DAY * 2).await;
    assert_eq!(asker.get(&path).await.body["status"], "paused");
    receiver.answer_with(200);
    asker.fake.advance(DAY).await;
    assert_eq!(receiver.count(), before, "it stays paused");
    let resumed = asker.send(Method::PUT, &path, &json!({ "status": "active" })).await;
    assert_eq!(resumed.body["status"], "active");
    let at = asker.fake.world().now();
    asker.fake.advance(DAY * 2).await;
    let after: Vec<_> = asker.fake.world().deliveries(before).collect();
    assert!(!after.is_empty());
    assert!(after.iter().all(|one| Moment::parse(&one.date_updated).unwrap() >= at));
}

#[tokio::test]
async fn a_short_outage_costs_nothing() {
    let receiver = Receiver::start(200).await;
    let asker = Asker::calm().await;
    asker.subscribe(&receiver.url, &[("lead", "updated")]).await;
    let now = asker.fake.world().now();
    asker.fake.world().generate(300, now, DAY).unwrap();
    receiver.answer_with(500);
    asker.fake.advance(HOUR * 12).await;
    assert_eq!(receiver.count(), 0);
    receiver.answer_with(200);
    asker.fake.advance(DAY).await;
    let world = asker.fake.world();
    let sent: Vec<_> = world.revisions(0).filter(|one| one.attempted).collect();
    assert!(sent.len() > 40 && sent.iter().all(|one| one.delivered));
    assert_eq!(receiver.count(), sent.len());
}

#[tokio::test]
async fn in_real_time_events_happen_and_are_delivered_by_themselves() {
    let receiver = Receiver::start(200).await;
    let options = Options {
        pace: Pace::Real { speed: 3600.0 },
        settings: Settings {
            events_per_second: 0.05,
            ..Settings::calm()
        },
        ..Options::default()
    };
    let client = Client::builder().no_proxy().build().unwrap();
    let fake = Fake::start(options).await.unwrap();
    let asker = Asker { fake, client };
    let subscription = asker
        .subscribe(&receiver.url, &[("lead", "updated"), ("lead", "created")])
        .await;
    until("something is delivered", async || receiver.count() > 5).await;
    let delivered: Vec<_> = asker.fake.world().deliveries(0).collect();
    assert!(
        delivered
            .iter()
            .all(|one| one.subscription_id == text(&subscription, "id"))
    );
    let refused = asker.control(Method::POST, "clock", &json!({ "advance": "1d" })).await;
    assert_eq!(refused.status, 400, "this clock goes by itself");
}

#[tokio::test]
async fn a_delivery_looks_like_those_of_close_and_is_first_tried_again_after_about_a_minute() {
    let receiver = Receiver::start(500).await;
    let asker = Asker::calm().await;
    asker.subscribe(&receiver.url, &[("lead", "created")]).await;
    asker
        .fake
        .world()
        .inject(r#"{"action": "created"}"#, Duration::ZERO, true)
        .unwrap();
    asker.fake.advance(Duration::from_secs(1)).await;
    receiver.answer_with(200);
    asker.fake.advance(Duration::from_secs(40)).await;
    assert_eq!(receiver.count(), 0, "not yet");
    asker.fake.advance(Duration::from_secs(25)).await;
    let received = receiver.received.lock().unwrap().clone();
    let (headers, body) = &received[0];
    assert_eq!(headers["user-agent"], "Close Webhooks 2.0");
    assert!(body.starts_with("{\"subscription_id\": \"whsub_"), "{body}");
}

#[tokio::test]
async fn calls_come_with_no_duration_and_drafts_are_published_without_an_update() {
    let asker = Asker::calm().await;
    let now = asker.fake.world().now();
    asker.fake.world().generate(6000, now, DAY).unwrap();
    asker.fake.advance(2 * DAY).await;
    let world = asker.fake.world();
    let (mut calls, mut called, mut published) = (0, 0, 0);
    for one in world.revisions(0) {
        let event: Value = serde_json::from_str(&world.event_text(&one.id, one.nth).unwrap()).unwrap();
        assert!(event.as_object().unwrap().contains_key("oauth_scope"));
        match one.event.as_str() {
            "activity.call.created" => {
                assert_eq!(event["data"]["duration"], 0);
                calls += 1;
            }
            "activity.call.updated" => {
                assert_eq!(event["previous_data"]["duration"], 0);
                assert!(event["data"]["duration"].as_u64().unwrap() > 0);
                called += 1;
            }
            "activity.custom_activity.created" => {
                assert_eq!(
                    event["data"]["status"],
                    if one.nth == 0 { "draft" } else { "published" }
                );
                published += u64::from(one.nth > 0);
            }
            _ => {}
        }
    }
    assert!(
        calls > 50 && called > 50 && published > 5,
        "{calls} {called} {published}"
    );
}
