//! What is answered under `/close/*`, and of a replay that still runs, held against the daemon's own document.

use std::time::Duration;

use fake_close::Settings;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::admin_document::Document;
use crate::admin_door::{ACT, READ, TOKENS};
use crate::close::{FILE_SINK, Rig, history};
use crate::harness::{Daemon, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A replay that takes an hour: it runs until somebody stops it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_runs_is_stopped_and_gone_on_with_and_who_did_so_is_logged() {
    let daemon = Daemon::start(&[FILE_SINK, TOKENS].concat()).await;
    daemon.store(1..=20).await;
    daemon.done("file").await;
    // What it was given counts when it is durable.
    until("it is counted", async || daemon.sink("file")["delivered"] == 20).await;
    let mut document = Document::of(&daemon).await;
    let (get, post) = (Method::GET, Method::POST);
    let sink = document
        .ask(&daemon, get.clone(), "/sinks/{name}", "/sinks/file", None)
        .await;
    assert_eq!(sink["delivered_15m"], 20, "{sink}");
    let spec = json!({ "spec": { "sinks": ["file"], "rate": 0.01 } });
    let plan = document
        .ask(&daemon, post.clone(), "/replays/plan", "/replays/plan", Some(spec))
        .await;
    let begun = document
        .ask(&daemon, post.clone(), "/replays", "/replays", Some(plan))
        .await;
    let place = format!("/replays/{}", begun["id"].as_str().unwrap());
    for (act, state) in [("stop", "interrupted"), ("resume", "running"), ("stop", "interrupted")] {
        let path = format!("/replays/{{id}}/{act}");
        let done = document
            .ask(&daemon, post.clone(), &path, &format!("{place}/{act}"), None)
            .await;
        assert_eq!(done["ok"], true, "{done}");
        let shown = document.ask(&daemon, get.clone(), "/replays/{id}", &place, None).await;
        assert_eq!(shown["state"], state, "{shown}");
    }
    assert!(document.looked_at.contains("post /replays/{id}/stop"));
    assert!(document.looked_at.contains("post /replays/{id}/resume"));
    let acts = daemon.api_ok(Method::GET, "/acts", None).await;
    let acts = acts["items"].as_array().unwrap();
    let told: Vec<_> = acts
        .iter()
        .map(|act| (act["order"]["order"].as_str().unwrap(), &act["order"]["running"]))
        .collect();
    let (no, yes, none) = (json!(false), json!(true), json!(null));
    let expected = [
        ("replay-set", &no),
        ("replay-set", &yes),
        ("replay-set", &no),
        ("replay-start", &none),
    ];
    assert_eq!(told, expected);
    assert!(acts.iter().all(|act| act["who"] == "admin"), "{acts:?}");
    let logged = daemon.stderr();
    let sets = logged
        .lines()
        .filter(|line| line.contains("replay-set") && line.contains("admin"));
    assert_eq!(sets.count(), 3, "{logged}");
}

#[expect(
    clippy::too_many_lines,
    reason = "each route once, in the order in which they hang together"
)]
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_about_close_is_as_the_document_says() {
    let more = format!("{FILE_SINK}{TOKENS}");
    let mut rig = Rig::new(Settings::calm(), "", &more).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 300, 20 * DAY);
    rig.fake.advance(HOUR).await;
    rig.run().await;
    let wanted = rig.latest(|_| true).len();
    let daemon = &rig.daemon;
    let mut document = Document::of(daemon).await;
    let (get, post) = (Method::GET, Method::POST);
    // Where there is none yet.
    document
        .ask(daemon, get.clone(), "/close/backfill", "/close/backfill", None)
        .await;
    document
        .ask(daemon, get.clone(), "/close/plan", "/close/plan", None)
        .await;
    daemon.ok(&["subscription", "apply"]);
    let since = json!({});
    let plan = document
        .ask(
            daemon,
            post.clone(),
            "/close/backfill/plan",
            "/close/backfill/plan",
            Some(since.clone()),
        )
        .await;
    assert!(plan.is_object(), "{plan}");
    document
        .ask(daemon, post.clone(), "/close/backfill", "/close/backfill", Some(since))
        .await;
    // It is stopped before it can be through, so that there is one to be looked at, and goes on.
    let stop = "/close/backfill/stop";
    document.ask(daemon, post.clone(), stop, stop, None).await;
    let stopped = document
        .ask(daemon, get.clone(), "/close/backfill", "/close/backfill", None)
        .await;
    assert!(stopped["state"].is_string(), "{stopped}");
    let resume = "/close/backfill/resume";
    document.ask(daemon, post.clone(), resume, resume, None).await;
    until("all of it is there", async || rig.stored().len() == wanted).await;
    until("it is over", async || {
        daemon.api(ACT, Method::GET, "/close/backfill", None).await.1["state"] == "done"
    })
    .await;
    // What came of it stays to be seen.
    let over = document
        .ask(daemon, get.clone(), "/close/backfill", "/close/backfill", None)
        .await;
    assert!(
        over["ended_at"].is_string() && over["counts"]["seen"].as_u64() > Some(0),
        "{over}"
    );
    assert_eq!(daemon.status()["close"]["backfill"], json!(null));
    // By now there is nothing to stop, which is an answer too.
    document.ask(daemon, post.clone(), stop, stop, None).await;
    let found = document
        .ask(
            daemon,
            get.clone(),
            "/close/subscriptions",
            "/close/subscriptions",
            None,
        )
        .await;
    let id = found["items"][0]["id"].as_str().unwrap().to_owned();
    let one = format!("/close/subscriptions/{id}");
    document
        .ask(daemon, get.clone(), "/close/subscriptions/{id}", &one, None)
        .await;
    daemon.ok(&["subscription", "pause", &id]);
    document
        .ask(
            daemon,
            get.clone(),
            "/close/subscriptions",
            "/close/subscriptions",
            None,
        )
        .await;
    document
        .ask(
            daemon,
            post.clone(),
            "/close/subscriptions/{id}/resume",
            &format!("{one}/resume"),
            None,
        )
        .await;
    document
        .ask(daemon, get.clone(), "/close/completeness", "/close/completeness", None)
        .await;
    document.ask(daemon, get.clone(), "/status", "/status", None).await;
    // And where it is refused.
    for (method, path, real) in [
        (&get, "/close/subscriptions/{id}", "/close/subscriptions/whsub_none"),
        (
            &post,
            "/close/subscriptions/{id}/resume",
            "/close/subscriptions/whsub_none/resume",
        ),
    ] {
        let (status, answer) = daemon.api(ACT, method.clone(), real, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{real}: {answer}");
        let said = answer["error"]["message"].as_str().unwrap();
        assert!(said.contains("no subscription whsub_none"), "{real}: {said}");
        document.hold(method, path, status, &answer);
    }
    let of_close: Vec<String> = document
        .routes()
        .into_iter()
        .filter(|(_, path, _)| path.starts_with("/close/"))
        .map(|(method, path, _)| format!("{} {path}", method.as_str().to_lowercase()))
        .collect();
    assert!(of_close.len() >= 10, "{of_close:?}");
    for route in of_close {
        assert!(
            document.looked_at.contains(&route),
            "{route} was never held against the document"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_at_close_is_neither_shown_whole_nor_set_going_over_http() {
    let mut rig = Rig::new(Settings::calm(), "", TOKENS).await;
    rig.fake.world().add_integrations(1);
    let id = rig.only_subscription();
    assert!(rig.fake.world().pause(&id));
    rig.run().await;
    let path = format!("/close/subscriptions/{id}");
    let (_, all) = rig.daemon.api(READ, Method::GET, "/close/subscriptions", None).await;
    assert_eq!(all["items"][0]["url"], "https://integration-0.example.com/…", "{all}");
    let (_, one) = rig.daemon.api(READ, Method::GET, &path, None).await;
    assert_eq!(one["url"], "https://integration-0.example.com/…", "{one}");
    let resume = format!("{path}/resume");
    let (status, said) = rig.daemon.api(ACT, Method::POST, &resume, None).await;
    assert_ne!(status, StatusCode::OK, "{said}");
    assert!(said.to_string().contains("delivers to somebody else"), "{said}");
    let is_active = || rig.fake.world().subscription(&id).unwrap().active;
    assert!(!is_active());

    // Who has the data directory has the credentials.
    let listed = rig.daemon.lines(&["subscription", "list"]);
    assert_eq!(listed[0]["url"], "https://integration-0.example.com/hook");
    rig.daemon.ok(&["subscription", "resume", &id]);
    assert!(is_active());
}
