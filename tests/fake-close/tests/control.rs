//! What drives the fake Close: ordered faults, the control API, the program.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod asker;
mod receiver;

use std::time::Duration;

use asker::{Asker, DAY, text};
use receiver::Receiver;
use reqwest::{Client, Method};
use serde_json::{Value, json};

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
    let again = asker.ask(post()).await;
    assert_eq!(
        again.status, 400,
        "all is well again, and this is there already: {}",
        again.body
    );
    assert_eq!(count(), 1);
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
