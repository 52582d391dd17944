//! The fake Close keeps the rules that Close documents: each asked over HTTP, as the client asks.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(clippy::unwrap_used, clippy::similar_names)]

use std::time::Duration;

use fake_close::fault::{Fault, Kind};
use fake_close::signature::{self, HASH_HEADER, TIMESTAMP_HEADER};
use fake_close::{Fake, Moment, Options, Pace, Role, Settings, State};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

mod receiver;

use receiver::{Receiver, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A fake and somebody who asks it.
struct Asker {
    fake: Fake,
    client: Client,
}

/// An answer.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Asker {
    async fn start(settings: Settings) -> Asker {
        let options = Options {
            settings,
            ..Options::default()
        };
        Asker {
            fake: Fake::start(options).await.unwrap(),
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// With limits that never matter.
    async fn calm() -> Asker {
        Asker::start(Settings {
            rate_limit: 1_000_000,
            ..Settings::calm()
        })
        .await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.fake.base_url());
        let key = self.fake.api_key();
        self.client.request(method, url).basic_auth(key, Some(""))
    }

    async fn ask(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
        Answer { status, headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(self.request(Method::GET, path)).await
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.request(method, path).header("content-type", "application/json");
        self.ask(request.body(body.to_string())).await
    }

    async fn control(&self, method: Method, path: &str, body: &Value) -> Answer {
        let url = format!("{}/fake/{path}", self.fake.root_url());
        self.ask(self.client.request(method, url).body(body.to_string())).await
    }

    /// Subscribes a URL to some kinds of events.
    async fn subscribe(&self, url: &str, events: &[(&str, &str)]) -> Value {
        let events: Vec<Value> = events
            .iter()
            .map(|(object_type, action)| json!({ "object_type": object_type, "action": action }))
            .collect();
        let answer = self
            .send(Method::POST, "/webhook/", &json!({ "url": url, "events": events }))
            .await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

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
    assert_eq!(made.status, 201);
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
    assert_eq!(
        asker.send(Method::PUT, &path, &events).await.body["events"],
        events["events"]
    );

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
    assert_eq!(asker.send(Method::POST, "/webhook/", &one_more).await.status, 201);
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
    assert_eq!(asker.get("/event/?_skip=50").await.status, 400);
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
async fn faults_come_as_ordered() {
    let asker = Asker::calm().await;
    let body = json!({ "url": "https://example.com/", "events": [{ "object_type": "lead", "action": "updated" }] });
    let post = || {
        let request = asker.request(Method::POST, "/webhook/");
        request
            .header("content-type", "application/json")
            .body(body.to_string())
    };
    let order = async |fault: Value| {
        let answer = asker.control(Method::POST, "faults", &fault).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let count = || asker.fake.world().subscriptions().count();
    order(json!({ "kind": "drop_answer", "on": "POST /api/v1/webhook/" })).await;
    assert_eq!(asker.get("/webhook/").await.status, 200);
    assert!(post().send().await.is_err());
    assert_eq!(count(), 1, "it took effect");
    order(json!({ "kind": "reset" })).await;
    assert!(post().send().await.is_err());
    assert_eq!(count(), 1, "it did not");
    order(json!({ "kind": "status", "status": 500, "times": 2 })).await;
    for _ in 0..2 {
        let answer = asker.ask(post()).await;
        assert_eq!((answer.status, answer.header("ratelimit").is_empty()), (500, false));
    }
    order(json!({ "kind": "rate_limited", "reset_ms": 1500 })).await;
    let limited = asker.get("/webhook/").await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, "2"));
    assert!(limited.header("ratelimit").ends_with("remaining=0, reset=1.500"));
    order(json!({ "kind": "html" })).await;
    let html = asker.get("/webhook/").await;
    assert_eq!((html.status, html.header("content-type")), (502, "text/html"));
    order(json!({ "kind": "truncated" })).await;
    let truncated = asker
        .request(Method::GET, "/webhook/")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(truncated.starts_with("{\"has_more\"") && serde_json::from_str::<Value>(&truncated).is_err());
    order(json!({ "kind": "cut" })).await;
    let cut = asker.request(Method::GET, "/webhook/").send().await.unwrap();
    assert!(cut.status() == 200 && cut.text().await.is_err());
    order(json!({ "kind": "latency", "delay_ms": 60_000 })).await;
    let slow = asker
        .request(Method::GET, "/webhook/")
        .timeout(Duration::from_millis(50))
        .send()
        .await;
    assert!(slow.unwrap_err().is_timeout());
    assert_eq!(asker.ask(post()).await.status, 201, "all is well again");
    assert_eq!(count(), 2);
}

#[tokio::test]
async fn the_world_is_driven_over_http_too() {
    let receiver = Receiver::start(200).await;
    let asker = Asker::calm().await;
    let lines = async |path: &str| -> Vec<Value> {
        let url = format!("{}/fake/{path}", asker.fake.root_url());
        let text = asker.client.get(url).send().await.unwrap().text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let subscription = asker.subscribe(&receiver.url, &[("lead", "created")]).await;
    let id = text(&subscription, "id");
    let event = json!({ "event": { "id": "ev_mine", "object_type": "lead", "action": "created", "data": { "a": 1 } } });
    assert_eq!(
        asker.control(Method::POST, "events", &event).await.body["id"],
        "ev_mine"
    );
    let generated = asker
        .control(Method::POST, "generate", &json!({ "count": 100, "span": "1d" }))
        .await;
    assert_eq!(generated.body["events"], 101);
    let before = asker.fake.world().now();
    let advanced = asker.control(Method::POST, "clock", &json!({ "advance": "2d" })).await;
    assert_eq!(asker.fake.world().now(), before.plus(DAY * 2));
    let delivered = lines("deliveries").await;
    assert_eq!(advanced.body["attempts"], delivered.len());
    assert_eq!(
        (text(&delivered[0], "id"), text(&delivered[0], "subscription_id")),
        ("ev_mine", id)
    );
    assert_eq!(lines("deliveries?after=1&limit=1").await, [delivered[1].clone()]);
    let changed = asker
        .control(Method::POST, "events/ev_mine/consolidate", &json!({}))
        .await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    let revisions = lines("events?limit=10000").await;
    let mine: Vec<&Value> = revisions.iter().filter(|one| one["id"] == "ev_mine").collect();
    assert_eq!(mine.len(), 2);
    assert_eq!(
        (&mine[0]["delivered"], &mine[0]["latest"], &mine[1]["latest"]),
        (&json!(true), &json!(false), &json!(true))
    );

    let pause = format!("subscriptions/{id}/pause");
    assert_eq!(asker.control(Method::POST, &pause, &json!({})).await.status, 200);
    assert_eq!(asker.get(&format!("/webhook/{id}/")).await.body["status"], "paused");
    let key = asker
        .control(Method::POST, "keys", &json!({ "role": "user" }))
        .await
        .body;
    let revoke = format!("keys/{}", text(&key, "id"));
    let revoked = asker
        .control(Method::PUT, &revoke, &json!({ "state": "revoked" }))
        .await;
    assert_eq!(revoked.body["state"], "revoked");
    let settings = asker
        .control(Method::PUT, "settings", &json!({ "rate_limit": 5 }))
        .await;
    assert_eq!(settings.body["rate_limit"], 5);
    for (path, body) in [
        ("clock", json!({ "to": "2001-01-01" })),
        ("clock", json!({})),
        ("faults", json!({ "kind": "x" })),
        ("generate", json!({ "count": 5_000_000 })),
    ] {
        let refused = asker.control(Method::POST, path, &body).await;
        assert_eq!(
            (refused.status, refused.body["error"].is_string()),
            (400, true),
            "{path} {body}"
        );
    }
    assert_eq!(asker.control(Method::POST, "nonsense", &json!({})).await.status, 404);
    assert!(!lines("requests").await.is_empty());
}

#[tokio::test]
async fn the_command_says_what_to_type_next_and_keeps_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fake.key");
    let start = || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fake-close"));
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--history",
            "100",
            "--json",
            "--api-key-file",
        ]);
        command
            .arg(&file)
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true);
        command.spawn().unwrap()
    };
    let mut keys = Vec::new();
    for _ in 0..2 {
        let mut child = start();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
        let first: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        let events = client
            .get(format!("{}/event/", text(&first, "base_url")))
            .basic_auth(text(&first, "api_key"), Some(""));
        let page: Value = serde_json::from_str(&events.send().await.unwrap().text().await.unwrap()).unwrap();
        assert_eq!(page["data"].as_array().unwrap().len(), 50);
        let help = client
            .get(text(&first, "control"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert!(help.contains("POST   /fake/clock"));
        keys.push(text(&first, "api_key").to_owned());
        let pid = child.id().unwrap().to_string();
        let mut kill = std::process::Command::new("kill");
        assert!(kill.args(["-15", &pid]).status().unwrap().success());
        assert!(child.wait().await.unwrap().success());
    }
    assert_eq!(keys[0], keys[1]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
