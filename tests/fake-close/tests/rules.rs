//! The fake Close keeps the rules of the real one: each asked over HTTP, as the client asks.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod asker;
mod receiver;

use std::time::Duration;

use asker::{Asker, DAY, HOUR, text};
use fake_close::fault::{Fault, Kind};
use fake_close::{Moment, Role, Settings, State};
use receiver::Receiver;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn a_subscription_is_made_shown_changed_and_deleted_and_its_key_shown_once() {
    let asker = Asker::calm().await;
    let filter = json!({ "type": "field_accessor", "field": "data", "filter": { "type": "non_null" } });
    let made = asker
        .send(
            Method::POST,
            "/webhook/",
            &json!({
                "url": "https://hooks.example.com/close",
                "events": [{ "object_type": "lead", "action": "updated", "extra_filter": filter }],
            }),
        )
        .await;
    assert_eq!(made.status, 200, "as was seen; the documentation says 201");
    let id = text(&made.body, "id").to_owned();
    assert_eq!(text(&made.body, "signature_key").len(), 64);
    assert_eq!(
        (text(&made.body, "status"), &made.body["verify_ssl"]),
        ("active", &json!(true))
    );
    let path = format!("/webhook/{id}/");
    let shown = asker.get(&path).await.body;
    assert_eq!(shown["signature_key"], Value::Null, "only once");
    assert_eq!(shown["events"][0]["extra_filter"], filter);
    assert_eq!(
        asker.get("/webhook/").await.body,
        json!({ "has_more": false, "data": [shown] })
    );

    let change = json!({ "status": "paused", "verify_ssl": false, "url": "https://other.example.com/" });
    let changed = asker.send(Method::PUT, &path, &change).await;
    assert_eq!((changed.status, text(&changed.body, "id")), (200, id.as_str()));
    for (name, value) in change.as_object().unwrap() {
        assert_eq!(&changed.body[name], value);
    }
    assert_eq!(changed.body["events"], shown["events"], "what is not mentioned stays");
    assert_eq!(changed.body["date_created"], shown["date_created"]);
    let events = json!({ "events": [{ "object_type": "contact", "action": "created" }] });
    let shown = json!([{ "object_type": "contact", "action": "created", "extra_filter": null }]);
    assert_eq!(asker.send(Method::PUT, &path, &events).await.body["events"], shown);

    assert_eq!(asker.ask(asker.request(Method::DELETE, &path)).await.status, 200);
    assert_eq!(asker.ask(asker.request(Method::DELETE, &path)).await.status, 404);
    assert_eq!(asker.get(&path).await.status, 404);
    assert_eq!(asker.send(Method::PUT, &path, &events).await.status, 404);
}

#[tokio::test]
async fn what_is_wrong_with_a_subscription_is_said_by_field() {
    let asker = Asker::start(Settings::default()).await;
    let wrong = json!({
        "url": "http://127.0.0.1/hook",
        "events": [{ "object_type": "lead", "action": "updated", "extra_filter": { "type": "equals" } }],
        "status": "active",
    });
    let answer = asker.send(Method::POST, "/webhook/", &wrong).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body["errors"], json!([]));
    let fields: Vec<&String> = answer.body["field-errors"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["events", "status", "url"]);
    let request = asker.request(Method::POST, "/webhook/").body("{}");
    assert_eq!(asker.ask(request).await.status, 415);
    let answer = asker.ask(asker.request(Method::PATCH, "/webhook/")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, POST"));
}

#[tokio::test]
async fn an_organization_has_at_most_forty_subscriptions() {
    let asker = Asker::calm().await;
    for n in 0..40 {
        asker
            .subscribe(&format!("https://example.com/{n}"), &[("lead", "updated")])
            .await;
    }
    let one_more = json!({ "url": "https://example.com/", "events": [{ "object_type": "lead", "action": "updated" }] });
    let refused = asker.send(Method::POST, "/webhook/", &one_more).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body["errors"][0].as_str().unwrap().contains("40"));
    let first = asker.get("/webhook/").await.body["data"][0].clone();
    let path = format!("/webhook/{}/", text(&first, "id"));
    asker.ask(asker.request(Method::DELETE, &path)).await;
    assert_eq!(asker.send(Method::POST, "/webhook/", &one_more).await.status, 200);
}

#[tokio::test]
async fn a_second_active_subscription_with_the_same_url_and_events_is_refused_and_the_first_named() {
    let asker = Asker::calm().await;
    let url = "https://hooks.example.com/close";
    let first = asker
        .subscribe(url, &[("lead", "updated"), ("contact", "created")])
        .await;
    let id = text(&first, "id");
    let same = json!({ "url": url, "events": [
        { "object_type": "contact", "action": "created", "extra_filter": null },
        { "object_type": "lead", "action": "updated" },
    ] });
    let refused = asker.send(Method::POST, "/webhook/", &same).await;
    let said = format!("Duplicate active subscription. Existing duplicates are: {id}");
    assert_eq!(
        (refused.status, refused.body),
        (400, json!({ "errors": [said], "field-errors": {} }))
    );
    asker.subscribe(url, &[("lead", "updated")]).await;
    asker
        .subscribe("https://hooks.example.com/", &[("lead", "updated")])
        .await;
    let path = format!("/webhook/{id}/");
    asker.send(Method::PUT, &path, &json!({ "status": "paused" })).await;
    assert_eq!(
        asker.send(Method::POST, "/webhook/", &same).await.status,
        200,
        "a paused one is in nobody's way"
    );
    let resumed = asker.send(Method::PUT, &path, &json!({ "status": "active" })).await;
    assert_eq!(
        resumed.status, 400,
        "but can't be resumed beside the other: {}",
        resumed.body
    );
}

#[tokio::test]
async fn a_subscription_says_how_it_does_and_why_it_is_paused() {
    let receiver = Receiver::start(503).await;
    let asker = Asker::calm().await;
    let made = asker.subscribe(&receiver.url, &[("lead", "created")]).await;
    let path = format!("/webhook/{}/", text(&made, "id"));
    let health = async || {
        let shown = asker.get(&path).await.body;
        assert!(shown["created_by"].is_string() && shown["updated_by"].is_string() && shown["history"].is_array());
        assert!(!text(&shown, "date_created").contains('+'), "dates have no offset");
        let words = (shown["pause_reason"].clone(), shown["latest_error"].is_string());
        (
            words,
            shown["recent_consecutive_fail_buckets_cnt"].as_u64().unwrap(),
            shown["counters"].clone(),
        )
    };
    assert_eq!(health().await.0, (Value::Null, false));
    asker
        .fake
        .world()
        .inject(r#"{"action": "created"}"#, Duration::ZERO, true)
        .unwrap();
    asker.fake.advance(HOUR).await;
    let (words, buckets, counters) = health().await;
    assert!(words == (Value::Null, true) && buckets >= 3, "{words:?} {buckets}");
    assert!(
        counters["failed"].as_u64().unwrap() >= 3 && counters["queued"] == 1,
        "{counters}"
    );
    asker
        .fake
        .world()
        .inject(r#"{"action": "created"}"#, Duration::ZERO, true)
        .unwrap();
    asker.fake.advance(3 * DAY).await;
    assert_eq!(health().await.0, (json!("too_many_failures"), true));
    asker.send(Method::PUT, &path, &json!({ "status": "active" })).await;
    asker.send(Method::PUT, &path, &json!({ "status": "paused" })).await;
    assert_eq!(
        health().await.0.0,
        Value::Null,
        "Close says nothing of a pause that somebody has asked for"
    );
    asker.send(Method::PUT, &path, &json!({ "status": "active" })).await;
    let pause = format!("subscriptions/{}/pause", text(&made, "id"));
    let revoked = json!({ "because": "permission_revoked" });
    asker.control(Method::POST, &pause, &revoked).await;
    assert_eq!(health().await.0.0, "permission_revoked");
    let resumed = asker.send(Method::PUT, &path, &json!({ "status": "active" })).await;
    assert_eq!(resumed.status, 403);
}

#[tokio::test]
async fn hundreds_of_integrations_are_listed_page_by_page() {
    let asker = Asker::start(Settings {
        rate_limit: 1_000_000,
        subscriptions_page_max: 50,
        ..Settings::calm()
    })
    .await;
    let made = asker
        .control(Method::POST, "integrations", &json!({ "count": 500 }))
        .await;
    assert_eq!(made.body["subscriptions"], 500);
    let mut ids = std::collections::BTreeSet::new();
    let mut pages = 0;
    loop {
        let page = asker
            .get(&format!("/webhook/?_skip={}&_limit=200", ids.len()))
            .await
            .body;
        let listed = page["data"].as_array().unwrap();
        assert!(listed.len() <= 50);
        ids.extend(listed.iter().map(|one| text(one, "id").to_owned()));
        pages += 1;
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!((ids.len(), pages), (500, 10));
}

#[tokio::test]
async fn keys_are_let_in_or_refused_by_their_state() {
    let asker = Asker::calm().await;
    let status = async || asker.get("/me/").await.status;
    assert_eq!(status().await, 200);
    for (state, code) in [
        (State::Revoked, 401),
        (State::PaymentRequired, 402),
        (State::Forbidden, 403),
        (State::Ok, 200),
    ] {
        asker.fake.world().access.keys[0].state = state;
        let answer = asker.get("/webhook/").await;
        assert_eq!(answer.status, code);
        assert!(answer.header("ratelimit").starts_with("limit="), "on every answer");
    }
    let url = format!("{}/me/", asker.fake.base_url());
    let nobody = asker.ask(asker.client.get(&url)).await;
    assert_eq!(
        (nobody.status, nobody.header("www-authenticate").is_empty()),
        (401, false)
    );
    let with_password = asker.client.get(&url).basic_auth(asker.fake.api_key(), Some("x"));
    assert_eq!(asker.ask(with_password).await.status, 401);
}

#[tokio::test]
async fn a_refresh_token_is_good_once_even_if_the_answer_is_lost() {
    let asker = Asker::calm().await;
    let grant = asker.fake.world().access.grant.clone();
    let url = format!("{}/oauth2/token/", asker.fake.root_url());
    let refresh = |token: &str| {
        let form = format!(
            "grant_type=refresh_token&client_id={}&client_secret={}&refresh_token={token}",
            grant.client_id, grant.client_secret
        );
        let request = asker.client.post(&url);
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
    };
    let me = async |token: &str| {
        let request = asker.client.get(format!("{}/me/", asker.fake.base_url()));
        asker.ask(request.bearer_auth(token)).await.status
    };
    assert_eq!(me(&grant.access_token).await, 200);
    let tokens = asker.ask(refresh(&grant.refresh_token)).await;
    assert_eq!(tokens.status, 200);
    assert_eq!(me(&grant.access_token).await, 401);
    assert_eq!(me(text(&tokens.body, "access_token")).await, 200);
    let again = asker.ask(refresh(&grant.refresh_token)).await;
    assert_eq!((again.status, text(&again.body, "error")), (400, "invalid_grant"));

    let order = Fault::new(Kind::DropAnswer).on("POST /oauth2/token/");
    asker.fake.world().faults.order(order).unwrap();
    let second = text(&tokens.body, "refresh_token");
    assert!(refresh(second).send().await.is_err(), "the answer is lost");
    assert_eq!(asker.ask(refresh(second)).await.status, 400, "and the token with it");

    asker.fake.world().access.expire_token();
    let access = asker.fake.world().access.grant.access_token.clone();
    assert_eq!(me(&access).await, 401);
}

#[tokio::test]
async fn too_many_requests_are_answered_429_and_the_headers_say_when_to_come_back() {
    let asker = Asker::start(Settings {
        rate_limit: 3,
        rate_window: "1h".parse().unwrap(),
        ..Settings::calm()
    })
    .await;
    for remaining in ["2", "1", "0"] {
        let answer = asker.get("/webhook/").await;
        assert_eq!(answer.status, 200);
        let expected = format!("limit=3, remaining={remaining}, reset=");
        assert!(
            answer.header("ratelimit").starts_with(&expected),
            "{}",
            answer.header("ratelimit")
        );
    }
    let refused = asker.get("/webhook/").await;
    assert_eq!(refused.status, 429);
    let reset: f64 = refused.header("ratelimit").rsplit_once('=').unwrap().1.parse().unwrap();
    assert!(reset > 3000.0 && reset <= 3600.0);
    let retry_after: f64 = refused.header("retry-after").parse().unwrap();
    assert!(retry_after >= reset && retry_after < reset + 1.0);
    let other = asker.fake.world().access.add(None, Role::User).unwrap().key.clone();
    let request = asker.client.get(format!("{}/webhook/", asker.fake.base_url()));
    assert_eq!(
        asker.ask(request.basic_auth(other, Some(""))).await.status,
        200,
        "each key has its own"
    );
}

/// Walks the event log with cursors.
async fn walk(asker: &Asker, filters: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut path = format!("/event/?{filters}");
    loop {
        let page = asker.get(&path).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let events = page.body["data"].as_array().unwrap();
        assert!(events.len() <= 50);
        all.extend(events.iter().cloned());
        let Some(next) = page.body["cursor_next"].as_str() else {
            return all;
        };
        path = format!("/event/?_cursor={next}&{filters}");
    }
}

#[tokio::test]
async fn the_event_log_is_walked_newest_first_and_shows_each_event_once() {
    let asker = Asker::calm().await;
    let now = asker.fake.world().now();
    asker
        .fake
        .world()
        .generate(1000, now.minus(DAY * 40), DAY * 40)
        .unwrap();
    let all = walk(&asker, "").await;
    let dates: Vec<Moment> = all
        .iter()
        .map(|event| Moment::parse(text(event, "date_updated")).unwrap())
        .collect();
    assert!(dates.windows(2).all(|pair| pair[0] >= pair[1]));
    assert!(*dates.last().unwrap() >= now.minus(DAY * 30), "thirty days back");
    let latest: std::collections::BTreeSet<(String, String)> = asker
        .fake
        .world()
        .revisions(0)
        .filter(|one| {
            let updated = Moment::parse(&one.date_updated).unwrap();
            one.latest && updated <= now && updated >= now.minus(DAY * 30)
        })
        .map(|one| (one.id, one.date_updated))
        .collect();
    let shown: Vec<(String, String)> = all
        .iter()
        .map(|event| (text(event, "id").to_owned(), text(event, "date_updated").to_owned()))
        .collect();
    assert_eq!(
        shown.len(),
        shown.iter().collect::<std::collections::BTreeSet<_>>().len()
    );
    // What is going to be changed again later is still shown as it is now.
    assert!(latest.iter().all(|one| shown.contains(one)) && shown.len() - latest.len() < 5);
    let lead = all.iter().find(|event| event["lead_id"].is_string()).unwrap();
    let of_lead = walk(&asker, &format!("lead_id={}", text(lead, "lead_id"))).await;
    let expected: Vec<&Value> = all.iter().filter(|event| event["lead_id"] == lead["lead_id"]).collect();
    assert_eq!(of_lead.iter().collect::<Vec<_>>(), expected);
    assert_eq!(asker.get("/event/?object_type=lead").await.status, 400, "not alone");
}

#[tokio::test]
async fn consolidation_hides_an_event_from_somebody_who_pages_and_late_ones_appear_below() {
    let asker = Asker::calm().await;
    let now = asker.fake.world().now();
    asker
        .fake
        .world()
        .generate(120, now.minus(HOUR * 20), HOUR * 10)
        .unwrap();
    let first = asker.get("/event/").await.body;
    let next = format!("/event/?_cursor={}", text(&first, "cursor_next"));
    let moved = text(&asker.get(&next).await.body["data"][7], "id").to_owned();
    asker.fake.world().consolidate(&moved, Duration::ZERO).unwrap();
    let second = asker.get(&next).await.body;
    assert!(
        second["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|event| event["id"] != moved.as_str())
    );
    assert_eq!(text(&asker.get("/event/?_limit=1").await.body["data"][0], "id"), moved);

    let late = r#"{"id": "ev_late", "data": {"n": 1.0}}"#;
    asker.fake.world().inject(late, Duration::from_secs(90), true).unwrap();
    asker
        .fake
        .world()
        .inject(r#"{"id": "ev_prompt"}"#, Duration::ZERO, true)
        .unwrap();
    assert_eq!(asker.get("/event/ev_late/").await.status, 404);
    assert_eq!(
        text(&asker.get("/event/?_limit=1").await.body["data"][0], "id"),
        "ev_prompt"
    );
    asker.fake.advance(Duration::from_secs(90)).await;
    assert_eq!(asker.get("/event/ev_late/").await.status, 200);
    let top = asker.get("/event/?_limit=2").await.body;
    assert!(
        top["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["id"] == "ev_late")
    );
}
