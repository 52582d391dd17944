//! Contract, section 5: answers that Close may give and the fake does not, from a server of a few lines.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::harness::{Daemon, until};

/// A Close that answers as it is told, and a daemon that asks it.
async fn daemon_of(answer: impl Fn(&Method, &str, &str) -> Response + Send + Sync + 'static) -> Daemon {
    daemon_with("", answer).await
}

/// The same with this behind the configuration.
async fn daemon_with(more: &str, answer: impl Fn(&Method, &str, &str) -> Response + Send + Sync + 'static) -> Daemon {
    let answer = Arc::new(answer);
    let handler = move |request: Request| {
        let answer = answer.clone();
        async move {
            let uri = request.uri();
            answer(request.method(), uri.path(), uri.query().unwrap_or_default())
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
    let mut daemon = Daemon::new(&format!(
        "[server]\npublic_url = \"https://hooks.example.com/webhooks/close\"\n[close]\nbase_url = \"http://{address}/api/v1\"\n\
         api_key = \"api_1.2\"\n{more}"
    ));
    daemon.run().await;
    daemon
}

fn json(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_subscriptions_in_pages_is_read_to_its_end_whatever_stands_in_it() {
    let daemon = daemon_of(|_, _, query| {
        let all = [
            json!({ "id": "whsub_1", "url": "https://a.example.com", "status": "active", "events": [] }),
            json!({ "id": "whsub_2", "url": null, "status": null, "events": null, "new": 1 }),
            json!({ "id": "whsub_3", "events": [{ "object_type": "lead" }] }),
        ];
        let skip = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("_skip=")?.parse::<usize>().ok());
        let skip = skip.unwrap_or(0);
        let page = &all[skip..(skip + 2).min(3)];
        json(&json!({ "data": page, "has_more": skip + 2 < 3 }))
    })
    .await;
    let ids: Vec<Value> = daemon
        .lines(&["subscription", "list"])
        .iter()
        .map(|line| line["id"].clone())
        .collect();
    assert_eq!(ids, ["whsub_1", "whsub_2", "whsub_3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_deleted_while_the_list_is_read_hides_no_other() {
    // 1: the first one goes when the first page has been read; 2: it is gone.
    let state = Arc::new(AtomicUsize::new(0));
    let shared = state.clone();
    let daemon = daemon_of(move |_, _, query| {
        let skip = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("_skip=")?.parse::<usize>().ok());
        let all: Vec<Value> = (usize::from(shared.load(SeqCst) == 2)..5)
            .map(|number| json!({ "id": format!("whsub_{number}"), "url": "https://a.example.com", "status": "active", "events": [] }))
            .collect();
        if skip.is_none() {
            let _ = shared.compare_exchange(1, 2, SeqCst, SeqCst);
        }
        let from = skip.unwrap_or(0).min(all.len());
        let to = (from + 2).min(all.len());
        json(&json!({ "data": all[from..to], "has_more": to < all.len() }))
    })
    .await;
    until("it has looked", async || {
        daemon.status()["close"]["checked_at"].is_string()
    })
    .await;
    state.store(1, SeqCst);
    let listed = daemon.lines(&["subscription", "list"]);
    let ids: Vec<Value> = listed.iter().map(|line| line["id"].clone()).collect();
    assert_eq!(ids, ["whsub_1", "whsub_2", "whsub_3", "whsub_4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_list_does_not_have_is_missing_when_close_says_so_of_it() {
    let is_there = Arc::new(AtomicUsize::new(1));
    let shared = is_there.clone();
    let more = "[close.health]\ninterval = \"1s\"\n[[close.subscriptions]]\nid = \"whsub_9\"\nsignature_key_file = \"DIR/key\"\n";
    let daemon = daemon_with(more, move |_, path, _| {
        if !path.ends_with("/whsub_9/") {
            return json(&json!({ "data": [], "has_more": false }));
        }
        if shared.load(SeqCst) == 1 {
            let url = "https://hooks.example.com/webhooks/close";
            return json(&json!({ "id": "whsub_9", "url": url, "status": "active", "events": [] }));
        }
        (StatusCode::NOT_FOUND, json(&json!({ "error": "Not found" }))).into_response()
    })
    .await;
    let state = || {
        let found = daemon.status()["close"]["subscriptions"][0].clone();
        found["state"].as_str().map(str::to_owned)
    };
    until("it has looked", async || state().is_some()).await;
    assert_eq!(state().as_deref(), Some("active"));
    is_there.store(0, SeqCst);
    until("it is missing", async || state().as_deref() == Some("missing")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_subscriptions_without_end_is_an_error() {
    let daemon = daemon_of(|_, _, _| {
        json(&json!({ "data": [{ "id": "whsub_1", "url": "https://a.example.com" }], "has_more": true }))
    })
    .await;
    let error = daemon.fails(1, &["subscription", "apply"]);
    assert!(error.contains("does not come to an end"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_base_url_is_not_taken_for_a_missing_subscription() {
    let daemon =
        daemon_of(|_, _, _| (StatusCode::NOT_FOUND, json(&json!({ "error": "Not found" }))).into_response()).await;
    let error = daemon.fails(1, &["subscription", "list"]);
    assert!(error.contains("check [close] base_url"), "{error}");
    let error = daemon.fails(1, &["subscription", "show", "whsub_1"]);
    assert!(error.contains("Close knows no subscription whsub_1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_or_a_time_out_in_place_of_the_new_subscription_is_looked_into() {
    for status in [200, 408] {
        let made = std::sync::Mutex::new(Vec::<Value>::new());
        let daemon = daemon_of(move |method, path, _| {
            let mut made = made.lock().unwrap();
            let existing = |made: &[Value]| json(&json!({ "data": made, "has_more": false }));
            match *method {
                Method::POST => {
                    let id = format!("whsub_{}", made.len() + 1);
                    let is_first = made.is_empty();
                    made.push(
                        json!({ "id": id, "url": "https://hooks.example.com/webhooks/close", "status": "active",
                        "events": [] }),
                    );
                    if is_first {
                        let status = StatusCode::from_u16(status).unwrap();
                        return (status, [("content-type", "text/html")], "<html>one moment</html>").into_response();
                    }
                    (
                        StatusCode::CREATED,
                        json(&json!({ "id": id, "signature_key": "ab".repeat(32) })),
                    )
                        .into_response()
                }
                Method::DELETE => {
                    // Keeps its place, so that ids stay different.
                    let id = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                    for one in made.iter_mut().filter(|one| one["id"] == id) {
                        one["url"] = json!("https://deleted.example.com");
                    }
                    json(&json!({}))
                }
                _ => existing(&made),
            }
        })
        .await;
        let applied = daemon.lines(&["subscription", "apply"]).pop().unwrap();
        assert_eq!(applied["subscription"], "whsub_2", "{status}: {applied}");
        let list = daemon.lines(&["subscription", "list"]);
        let standings: Vec<&Value> = list.iter().map(|line| &line["standing"]).collect();
        assert_eq!(standings, ["foreign", "ours"], "the one without a key was deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_see_subscriptions_still_completes_the_log() {
    let daemon = daemon_of(|_, path, _| {
        if path.ends_with("/webhook/") {
            let refusal = json(&json!({ "error": "no permission" }));
            return (StatusCode::FORBIDDEN, refusal).into_response();
        }
        let event = json!({ "id": "ev_1", "date_updated": jiff::Timestamp::now(), "object_type": "lead", "action": "created",
            "data": {} });
        json(&json!({ "data": [event], "cursor_next": null, "cursor_previous": null }))
    })
    .await;
    until("the event is fetched", async || {
        daemon.status()["log"]["last"].as_u64() > Some(0)
    })
    .await;
    // Both loops go their own way.
    until("the claim and the trouble are both said", async || {
        let close = &daemon.status()["close"];
        let trouble = close["trouble"].as_str().unwrap_or_default();
        close["complete"]["upto"].is_string() && trouble.contains("may not do this at Close")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_for_what_close_no_longer_keeps() {
    let daemon = daemon_of(|_, path, _| {
        json(&if path.ends_with("/me/") {
            json!({ "organization_id": "orga_1" })
        } else {
            json!({ "data": [], "has_more": false, "cursor_next": null, "cursor_previous": null })
        })
    })
    .await;
    until("the log was compared", async || {
        daemon.status()["close"]["complete"].is_object()
    })
    .await;
    let before = jiff::Timestamp::now();
    daemon.ok(&["backfill", "--since", "60d"]);
    let complete = daemon.status()["close"]["complete"].clone();
    let from: jiff::Timestamp = complete["from"].as_str().unwrap().parse().unwrap();
    let days = before.duration_since(from).as_hours() / 24;
    assert!((29..=30).contains(&days), "{complete}");
    let said = daemon.ok(&["status"]);
    assert!(said.contains("complete up to "), "{said}");
}
