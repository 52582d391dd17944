//! Subscriptions as Close has them, each judged by itself: who has paused it, why, and whether anybody may undo that.

use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Because, Settings};
use serde_json::{Value, json};

use crate::close::{FILE_SINK, Rig};
use crate::harness::until;

fn settings() -> Settings {
    Settings {
        rate_limit: 1_000_000,
        ..Settings::calm()
    }
}

fn found(rig: &Rig, id: &str) -> Value {
    let status = rig.daemon.status();
    let all = status["close"]["subscriptions"].as_array().unwrap().clone();
    all.into_iter().find(|one| one["id"] == id).unwrap_or_default()
}

async fn gauge(rig: &Rig, id: &str) -> String {
    let name = format!("closehook_close_subscription_active{{subscription=\"{id}\"}} ");
    let metrics = rig.daemon.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
    line.unwrap_or_default().to_owned()
}

/// What was true of a subscription that is gone is not true for ever, and nobody is woken for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_gone_or_being_replaced_has_no_gauge() {
    let rig = Rig::subscribed(settings(), "", FILE_SINK).await;
    let old = rig.only_subscription();
    until("it is active", async || gauge(&rig, &old).await == "1").await;
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    rig.happen(60, Duration::from_secs(3600)).await;
    until("the old one is deleted", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    let new = rig.only_subscription();
    until("there is the new one alone", async || {
        (gauge(&rig, &new).await.as_str(), gauge(&rig, &old).await.as_str()) == ("1", "")
    })
    .await;
    rig.daemon.ok(&["subscription", "delete", "--yes", &new]);
    until("there is none", async || gauge(&rig, &new).await.is_empty()).await;
}

/// Changes a subscription at Close, as another program does.
async fn put(rig: &Rig, id: &str, body: &Value) {
    let url = format!("{}/webhook/{id}/", rig.fake.base_url());
    let request = rig.daemon.client.put(url).basic_auth(rig.fake.api_key(), Some(""));
    let answer = request
        .header("content-type", "application/json")
        .body(body.to_string())
        .send();
    let answer = answer.await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// How often a subscription was changed.
fn puts(rig: &Rig, id: &str) -> usize {
    let target = format!("/api/v1/webhook/{id}/");
    let world = rig.fake.world();
    let requests = world.requests();
    requests
        .filter(|request| request.method == "PUT" && request.target == target)
        .count()
}

/// The daemon has looked so often since.
async fn looks(rig: &Rig, count: usize) {
    let lists = || {
        let world = rig.fake.world();
        let requests = world.requests();
        requests
            .filter(|request| request.method == "GET" && request.target.starts_with("/api/v1/webhook/"))
            .count()
    };
    let before = lists();
    until("the daemon has looked", async || lists() >= before + count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscription_that_can_not_be_resumed_is_shown_so_and_hides_no_other() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let revoked = rig.only_subscription();
    rig.daemon.ok(&[
        "subscription",
        "create",
        "--event",
        "lead.created",
        "--url",
        "https://hooks.example.com/other",
    ]);
    let other = rig
        .fake
        .world()
        .subscriptions()
        .find(|one| one.id != revoked)
        .unwrap()
        .id
        .clone();
    until("both are seen", async || found(&rig, &other)["state"] == "active").await;
    rig.fake.world().pause_because(&revoked, Because::PermissionRevoked);
    rig.fake.world().pause(&other);
    until("it is seen", async || found(&rig, &revoked)["state"] == "paused").await;
    assert_eq!(found(&rig, &revoked)["pause_reason"], "permission_revoked");
    assert!(found(&rig, &revoked)["trouble"].as_str().unwrap().contains("403"));
    until("the other one is resumed", async || {
        found(&rig, &other)["state"] == "active"
    })
    .await;
    assert_eq!(
        (gauge(&rig, &revoked).await.as_str(), gauge(&rig, &other).await.as_str()),
        ("0", "1")
    );
    let text = rig.daemon.ok(&["status"]);
    assert!(
        text.contains("paused by Close: permission_revoked") && text.contains("(403"),
        "{text}"
    );
    looks(&rig, 3).await;
    let log = rig.daemon.stderr();
    let said = "Close has paused the subscription (permission_revoked), and it can't be made active again";
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(said)).collect();
    assert!(
        lines.len() == 1 && lines[0].contains("ERROR") && lines[0].contains(&revoked),
        "{log}"
    );
    assert!(log.contains("too_many_failures"), "{log}");
    assert_eq!(
        rig.daemon.status()["close"]["trouble"],
        Value::Null,
        "Close itself can be used"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_comes_back_is_undone_once_and_then_waited_for() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let id = rig.only_subscription();
    rig.fake.world().pause(&id);
    until("it is resumed", async || {
        rig.fake.world().subscription(&id).unwrap().active
    })
    .await;
    rig.fake.world().pause(&id);
    let before = puts(&rig, &id);
    until("it is seen", async || found(&rig, &id)["state"] == "paused").await;
    looks(&rig, 4).await;
    assert_eq!(puts(&rig, &id), before, "not at each look");
    assert!(
        rig.daemon
            .stderr()
            .contains("the subscription is paused again (too_many_failures)")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_paused_is_left_alone_and_named_as_such() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let id = rig.only_subscription();
    put(&rig, &id, &json!({ "status": "paused", "verify_ssl": false })).await;
    until("it is seen", async || found(&rig, &id)["state"] == "paused-by-somebody").await;
    looks(&rig, 4).await;
    assert_eq!(puts(&rig, &id), 1, "theirs");
    let log = rig.daemon.stderr();
    assert!(
        log.contains("somebody has paused the subscription at Close") && !log.contains("Close had paused"),
        "{log}"
    );
    assert_eq!(gauge(&rig, &id).await, "0");
    assert_eq!(found(&rig, &id)["verify_ssl"], false);
    let plan = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains(&format!("{id} has verify_ssl false")), "{plan}");
    rig.daemon.ok(&["subscription", "resume", &id]);
    until("it is active", async || found(&rig, &id)["state"] == "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_pause_is_over_once_it_was_undone_at_close() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let id = rig.only_subscription();
    rig.daemon.ok(&["subscription", "pause", &id]);
    until("it is seen", async || found(&rig, &id)["state"] == "paused-by-hand").await;
    put(&rig, &id, &json!({ "status": "active" })).await;
    until("it is seen", async || found(&rig, &id)["state"] == "active").await;
    looks(&rig, 1).await;
    rig.fake.world().pause(&id);
    until("Close's pause is undone", async || {
        rig.fake.world().subscription(&id).unwrap().active
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_subscriptions_of_others_are_in_nobodys_way() {
    let mut rig = Rig::new(
        Settings {
            subscriptions_max: 1000,
            subscriptions_page_max: 50,
            ..settings()
        },
        "",
        "",
    )
    .await;
    rig.fake.world().add_integrations(500);
    rig.run().await;
    rig.daemon.ok(&["subscription", "apply"]);
    let made = rig.daemon.lines(&["subscription", "list"]);
    assert_eq!(made.len(), 501);
    assert_eq!(made.iter().filter(|one| one["standing"] == "ours").count(), 1);
    assert!(rig.daemon.ok(&["subscription", "plan"]).contains("nothing to do"));
    // Where Close itself says no, it is its words that are shown.
    rig.set(|settings| settings.subscriptions_max = 501);
    let error = rig
        .daemon
        .fails(1, &["subscription", "create", "--event", "lead.created"]);
    assert!(error.contains("can have at most 501 webhook subscriptions"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_failed_or_was_killed_is_in_no_later_ones_way() {
    let rig = Rig::new(settings(), "", "").await;
    {
        let mut world = rig.fake.world();
        let now = world.now();
        let day = Duration::from_secs(86_400);
        world.generate(500, now.minus(day), day).unwrap();
    }
    // It fails.
    let forbidden = Fault::new(Kind::Status)
        .status(403)
        .on("GET /api/v1/event/")
        .times(1000);
    rig.fake.world().faults.order(forbidden).unwrap();
    let error = rig.daemon.fails(1, &["backfill", "--since", "32d"]);
    assert!(error.contains("403"), "{error}");
    rig.fake.world().faults = Faults::default();
    // It is killed.
    let hold = Fault::new(Kind::Latency)
        .on("GET /api/v1/event/")
        .delayed(Duration::from_secs(3600));
    rig.fake.world().faults.order(hold).unwrap();
    let mut child = rig
        .daemon
        .command()
        .args(["backfill", "--since", "32d"])
        .spawn()
        .unwrap();
    until("it is at work", async || rig.fake.world().faults.list().is_empty()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let said = rig.daemon.ok(&["backfill", "--since", "32d"]);
    assert!(said.contains("events stored"), "{said}");
    // The same beside a daemon that can't go on with the first one, and tries again later.
    let mut rig = rig;
    rig.run().await;
    let forbidden = Fault::new(Kind::Status)
        .status(403)
        .on("GET /api/v1/event/")
        .times(1000);
    rig.fake.world().faults.order(forbidden).unwrap();
    let mut child = rig
        .daemon
        .command()
        .args(["backfill", "--since", "33d"])
        .spawn()
        .unwrap();
    until("it is in trouble", async || {
        rig.daemon.status()["close"]["backfill"]["trouble"].is_string()
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    rig.fake.world().faults = Faults::default();
    rig.daemon.ok(&["backfill", "--since", "34d"]);
}
