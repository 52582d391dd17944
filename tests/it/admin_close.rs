//! What is answered under `/close/*`, and of a replay that still runs, held against the daemon's own document.

use std::time::Duration;

use fake_close::Settings;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::admin_document::Document;
use crate::admin_door::{ACT, TOKENS};
use crate::close::{FILE_SINK, Rig, history};
use crate::harness::until;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

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
        daemon.api(ACT, Method::GET, "/close/backfill", None).await.0 == StatusCode::NOT_FOUND
    })
    .await;
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
        assert_ne!(status, StatusCode::OK, "{real}: {answer}");
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
