//! A Close that refuses a second active subscription with the same URL and events: rotation, a lost data directory and a second
//! machine get through it, wherever they are killed, and nothing of anybody else's is touched.

use std::process::{Child, Stdio};
use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Settings, Subscription};
use serde_json::Value;

use crate::close::{PUBLIC_URL, Rig};
use crate::harness::until;

const HOUR: Duration = Duration::from_secs(3600);

/// Longer than any of these tests.
const FOREVER: Duration = Duration::from_secs(3600);

fn settings() -> Settings {
    Settings {
        rate_limit: 1_000_000,
        ..Settings::calm()
    }
}

/// What delivers to us.
fn here(rig: &Rig) -> Vec<Subscription> {
    let world = rig.fake.world();
    let here = world.subscriptions().filter(|one| one.url == PUBLIC_URL);
    here.cloned().collect()
}

/// What belongs to others, in so far as anybody could have changed it.
fn others(rig: &Rig) -> Vec<(String, String, bool, String)> {
    let world = rig.fake.world();
    let others = world.subscriptions().filter(|one| one.url != PUBLIC_URL);
    others
        .map(|one| (one.id.clone(), one.url.clone(), one.active, one.updated_by.clone()))
        .collect()
}

/// Something happens, and time goes on so that it is delivered.
async fn something_happens(rig: &Rig) -> String {
    let event = rig
        .fake
        .world()
        .inject(r#"{"object_type":"lead","action":"created"}"#, Duration::ZERO, true)
        .unwrap();
    rig.fake.advance(Duration::from_secs(2)).await;
    event
}

/// What is being made, as it is on disk.
fn intent(rig: &Rig) -> Value {
    let keys = std::fs::read(rig.daemon.data().join("close/keys.json")).unwrap_or_default();
    serde_json::from_slice::<Value>(&keys).unwrap_or_default()["intent"].clone()
}

/// One subscription delivers here, the daemon accepts what it signs, and it is the only one.
async fn one_works(rig: &Rig, what: &str) {
    until(what, async || {
        something_happens(rig).await;
        let here = here(rig);
        let status = rig.daemon.status();
        let is_settled = intent(rig).is_null() && status["close"]["rotation"].is_null();
        here.len() == 1 && here[0].active && is_settled && status["keys"] == 1
    })
    .await;
    let id = here(rig)[0].id.clone();
    until(&format!("{what}: what it signs is accepted"), async || {
        let event = something_happens(rig).await;
        let is_delivered = || {
            let world = rig.fake.world();
            world
                .deliveries(0)
                .any(|one| one.id == event && one.subscription_id == id)
        };
        // Close may have tried before the daemon had the key, and tries again later.
        until(&format!("{what}: it is delivered"), async || {
            rig.fake.advance(Duration::from_secs(30)).await;
            is_delivered()
        })
        .await;
        let shown = rig.daemon.lines(&["events", "show", &event]).pop().unwrap();
        // A look at Close that is made just then brings an event before its delivery does.
        assert!(
            shown["source"] == "webhook" || shown["source"] == "backfill",
            "{what}: {shown}"
        );
        shown["source"] == "webhook"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_gets_through_a_close_that_refuses_duplicates_and_nothing_is_missing() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let old = rig.only_subscription();
    rig.happen(60, HOUR).await;
    let said = rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    assert!(said.contains(&format!("replaces {old}")), "{said}");
    let state = |id: &str| -> Value {
        let status = rig.daemon.status();
        let all = status["close"]["subscriptions"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["id"] == id).unwrap_or_default()["state"].clone()
    };
    until("the old one is seen being replaced", async || {
        state(&old) == "being-replaced"
    })
    .await;
    assert!(
        !rig.fake.world().subscription(&old).unwrap().active,
        "and nobody resumes it"
    );
    rig.happen(60, HOUR).await;
    one_works(&rig, "the old one is gone").await;
    rig.settled().await;
    assert!(rig.latest(|_| true).iter().all(|key| rig.stored().contains_key(key)));
    assert_eq!(
        rig.daemon.lines(&["events", "verify"]).pop().unwrap()["faults"],
        serde_json::json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_data_directory_is_lost_what_delivers_here_is_replaced_and_said() {
    let mut rig = Rig::subscribed(settings(), "", "").await;
    rig.fake.world().add_integrations(45);
    let before = others(&rig);
    let lost = here(&rig)[0].id.clone();
    rig.daemon.stop().await;
    std::fs::remove_dir_all(rig.daemon.data()).unwrap();
    rig.run().await;
    let output = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(output.stdout).unwrap();
    let note = format!("{lost} delivers here and asks for the same, and its key is not known here: it is replaced");
    assert!(plan.contains(&note), "{plan}");
    assert!(plan.contains("has 47 subscriptions"), "the limit is a hint: {plan}");
    rig.set(|settings| settings.subscriptions_max = 500);
    let said = rig.daemon.ok(&["subscription", "apply"]);
    assert!(
        said.contains(&format!("{lost}, whose key is not known here, is replaced")),
        "{said}"
    );
    one_works(&rig, "the new one works").await;
    assert_ne!(here(&rig)[0].id, lost);
    assert_eq!(others(&rig), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paused_to_make_room_is_active_again_where_the_new_one_can_not_be_made() {
    let rig = Rig::subscribed(settings(), "", "").await;
    let old = rig.only_subscription();
    let refused = Fault::new(Kind::Status)
        .status(403)
        .on("POST /api/v1/webhook/")
        .after(1);
    rig.fake.world().faults.order(refused).unwrap();
    let error = rig.daemon.fails(1, &["subscription", "apply", "--rotate"]);
    assert!(error.contains("403"), "{error}");
    let here = here(&rig);
    assert!(here.len() == 1 && here[0].active && here[0].id == old);
    one_works(&rig, "it is as it was").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_whose_key_the_configuration_has_is_never_cleaned_away() {
    let mut rig = Rig::new(settings(), "", "").await;
    // A creation is begun and comes to nothing that anybody would know of.
    let command = killed(&mut rig, &["subscription", "apply"], Kind::Latency, 1).await;
    assert!(command, "the POST is held");
    let url = format!("{}/webhook/", rig.fake.base_url());
    let body = format!(
        r#"{{"url":"{PUBLIC_URL}","events":[{{"object_type":"lead","action":"created"}}],"verify_ssl":false}}"#
    );
    let request = rig.daemon.client.post(url).basic_auth(rig.fake.api_key(), Some(""));
    let made = request
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .unwrap();
    let made: Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
    let id = made["id"].as_str().unwrap();
    let key = made["signature_key"].as_str().unwrap();
    rig.configure(
        "",
        &format!("[[close.subscriptions]]\nid = \"{id}\"\nsignature_key = \"{key}\"\n"),
    );
    rig.run().await;
    until("what was begun is finished", async || intent(&rig).is_null()).await;
    assert!(rig.fake.world().subscription(id).is_some(), "{}", rig.daemon.stderr());
    let plan = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains(&format!("{id} has verify_ssl false")), "{plan}");
}

/// Runs a command and kills it at its `step`th request to Close: before that takes effect, or when it has, but before the
/// answer is there. `false` where it has ended before, all by itself.
async fn killed(rig: &mut Rig, arguments: &[&str], when: Kind, step: u32) -> bool {
    let seen = rig.fake.world().requests().count();
    let hold = Fault::new(when).after(step).delayed(FOREVER);
    rig.fake.world().faults.order(hold).unwrap();
    let mut command = rig.daemon.command();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child: Child = command.spawn().unwrap();
    let mut has_ended = false;
    until("the command is held or has ended", async || {
        has_ended = child.try_wait().unwrap().is_some();
        let world = rig.fake.world();
        let is_held = world.faults.list().is_empty();
        let took_effect = when != Kind::Late || world.requests().count() > seen + step as usize;
        has_ended || is_held && took_effect
    })
    .await;
    let _ = child.kill();
    let status = child.wait().unwrap();
    rig.fake.world().faults = Faults::default();
    assert!(
        !has_ended || status.success(),
        "undisturbed, {arguments:?} does its work: {status}"
    );
    !has_ended
}

/// Kills a command at each of its requests, before and after it took effect, and has a daemon go on from there each time.
async fn killed_everywhere(arguments: &[&str], prepare: impl AsyncFn() -> Rig) {
    let mut kills = 0;
    for when in [Kind::Latency, Kind::Late] {
        for step in 0..20 {
            let mut rig = prepare().await;
            let before = others(&rig);
            let is_killed = killed(&mut rig, arguments, when, step).await;
            kills += u32::from(is_killed);
            rig.run().await;
            // Whoever was interrupted says it again.
            if here(&rig).iter().all(|one| !one.active) || rig.daemon.status()["keys"] == 0 {
                rig.daemon.ok(&["subscription", "apply"]);
            }
            one_works(&rig, &format!("killed {when:?} of request {step} of {arguments:?}")).await;
            assert_eq!(others(&rig), before, "nothing of anybody else's is touched");
            if !is_killed {
                break;
            }
        }
    }
    assert!(kills >= 4, "{kills}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_apply_killed_at_any_step_ends_with_one_subscription() {
    killed_everywhere(&["subscription", "apply"], async || {
        let rig = Rig::new(settings(), "", "").await;
        rig.fake.world().add_integrations(3);
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_killed_at_any_step_ends_with_one_subscription() {
    killed_everywhere(&["subscription", "apply", "--rotate"], async || {
        let rig = Rig::new(settings(), "", "").await;
        rig.fake.world().add_integrations(3);
        rig.daemon.ok(&["subscription", "apply"]);
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_killed_at_any_step_ends_with_one_subscription() {
    killed_everywhere(&["subscription", "apply"], async || {
        let rig = Rig::new(settings(), "", "").await;
        rig.fake.world().add_integrations(3);
        rig.daemon.ok(&["subscription", "apply"]);
        std::fs::remove_dir_all(rig.daemon.data()).unwrap();
        rig
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_deletes_what_was_replaced_deletes_it_later() {
    for when in [Kind::Latency, Kind::Late] {
        let mut rig = Rig::subscribed(settings(), "", "").await;
        rig.daemon.ok(&["subscription", "apply", "--rotate"]);
        let hold = Fault::new(when).on("DELETE").delayed(FOREVER);
        rig.fake.world().faults.order(hold).unwrap();
        until("the old one is being deleted", async || {
            something_happens(&rig).await;
            let is_held = rig.fake.world().faults.list().is_empty();
            is_held && (when == Kind::Latency || here(&rig).len() == 1)
        })
        .await;
        rig.daemon.kill();
        rig.fake.world().faults = Faults::default();
        rig.run().await;
        one_works(&rig, &format!("{when:?}")).await;
    }
}
