//! What is claimed of the log's completeness is true for the events it names, or says what it lacks: withheld data, rules that have
//! come to want more, a Close that no longer reaches back that far, another organization.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Fake, Options, Role, Settings};
use serde_json::{Value, json};

use crate::close::{FILE_SINK, Rig, configuration, history, key, rule};
use crate::close_process::{World, rules};
use crate::harness::{ids_in, lines_in, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn settings() -> Settings {
    Settings {
        rate_limit: 1_000_000,
        ..Settings::calm()
    }
}

/// A configuration with a key of one's own.
fn with_key(rig: &Rig, key: &str, more: &str) -> String {
    configuration(&rig.fake.base_url(), &format!("api_key = \"{key}\"\n{more}"), FILE_SINK)
}

/// A month of history, and a daemon that asks with the key of somebody who is no administrator. Gives that key.
async fn without_rights() -> (Rig, String) {
    let rig = Rig::new(settings(), "", "").await;
    let user = rig.fake.world().access.add(None, Role::User).unwrap().key.clone();
    rig.fake.advance(30 * DAY).await;
    history(&rig, 90, 10 * DAY);
    // Older than an hour, all of them.
    rig.fake.advance(2 * HOUR).await;
    rig.daemon.configure(&with_key(&rig, &user, ""));
    (rig, user)
}

fn close(rig: &Rig) -> Value {
    rig.daemon.status()["close"].clone()
}

/// Every event of a claim is in the log, with its data unless the claim says that some lack it.
fn is_true(rig: &Rig, is_wanted: impl Fn(&str) -> bool) {
    let claim = close(rig)["complete"].clone();
    let at = |name: &str| claim[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let (from, upto) = (at("from"), at("upto"));
    let stored: BTreeMap<(String, String), bool> = rig
        .daemon
        .lines(&["events", "export"])
        .iter()
        .map(|line| (key(line["body"].as_str().unwrap()), line["partial"] == true))
        .collect();
    let mut checked = 0;
    for (id, updated) in rig.latest(&is_wanted) {
        let instant: jiff::Timestamp = format!("{updated}Z").parse().unwrap();
        if instant < from || instant >= upto {
            continue;
        }
        checked += 1;
        let found = stored.get(&(id.clone(), updated.clone()));
        assert!(found.is_some(), "{id} {updated} is missing: {claim}");
        assert!(
            found == Some(&false) || !claim["lacks"].is_null(),
            "{id} {updated} lacks its data: {claim}"
        );
    }
    assert!(checked > 0, "{claim}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lacks_its_data_is_said_and_fetched_again_with_a_better_key() {
    let (mut rig, _) = without_rights().await;
    rig.daemon.run().await;
    let latest = rig.latest(|_| true);
    rig.daemon.ok(&["backfill", "--since", "30d"]);
    until("the claim reaches back", async || {
        let claim = close(&rig)["complete"].clone();
        claim["lacks"]["is_counted"] == true
    })
    .await;
    let close_says = close(&rig);
    assert_eq!(close_says["held"]["events"], latest.len(), "{close_says}");
    assert_eq!(close_says["complete"]["lacks"]["events"], latest.len());
    is_true(&rig, |_| true);
    let said = rig.daemon.ok(&["status"]);
    let line = format!("held       except the data of {} event(s)", latest.len());
    assert!(said.contains(&line) && said.contains("administrator"), "{said}");
    let metric = rig.daemon.count("closehook_close_held_events").await;
    assert_eq!(metric, latest.len() as u64);
    assert_eq!(rig.daemon.sink("file")["held"], latest.len());
    assert!(rig.daemon.ok(&["sinks", "list"]).contains("HELD"));
    assert_eq!(lines_in(&rig.daemon.path("events.jsonl")).len(), 0);
    // The same without a daemon, as it was last known.
    rig.daemon.stop().await;
    assert_eq!(close(&rig)["held"]["events"], latest.len());
    rig.daemon.run().await;

    // An administrator's key, and a reload.
    rig.daemon.configure(&with_key(&rig, &rig.fake.api_key(), ""));
    assert!(rig.daemon.reload().await);
    until("nothing is held any more", async || close(&rig)["held"].is_null()).await;
    assert_eq!(close(&rig)["complete"]["lacks"], Value::Null);
    is_true(&rig, |_| true);
    until("the sink has them all", async || {
        lines_in(&rig.daemon.path("events.jsonl")).len() == latest.len()
    })
    .await;
    assert_eq!(rig.daemon.count("closehook_close_held_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_better_key_at_a_start_or_more_rights_for_the_old_one_fetch_what_is_lacking() {
    for promoted in [false, true] {
        let (mut rig, user) = without_rights().await;
        rig.daemon.run().await;
        rig.daemon.ok(&["backfill", "--since", "30d"]);
        until("they are held", async || close(&rig)["held"]["is_counted"] == true).await;
        let before = rig.latest(|_| true).len();
        if promoted {
            let mut world = rig.fake.world();
            let key = world.access.keys.iter_mut().find(|key| key.key == user).unwrap();
            key.role = Role::Admin;
        } else {
            rig.daemon.stop().await;
            rig.daemon.configure(&with_key(&rig, &rig.fake.api_key(), ""));
            rig.daemon.run().await;
        }
        until("nothing is held any more", async || close(&rig)["held"].is_null()).await;
        until("the sink has them all", async || {
            ids_in(&rig.daemon.path("events.jsonl")).len() == before
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dispatched_without_its_data_is_still_said_to_lack_it() {
    let (mut rig, user) = without_rights().await;
    rig.daemon.run().await;
    let latest = rig.latest(|_| true);
    rig.daemon.ok(&["backfill", "--since", "30d"]);
    until("they are held", async || close(&rig)["held"]["is_counted"] == true).await;
    rig.daemon.configure(&with_key(&rig, &user, "partial = \"dispatch\"\n"));
    assert!(rig.daemon.reload().await);
    let file = rig.daemon.path("events.jsonl");
    let in_sink = || lines_in(&file);
    until("they are released", async || in_sink().len() == latest.len()).await;
    assert!(in_sink().iter().all(|line| line["partial"] == true));
    let close_says = close(&rig);
    assert_eq!(
        (&close_says["held"]["events"], &close_says["held"]["are_dispatched"]),
        (&json!(latest.len()), &json!(true)),
        "{close_says}"
    );
    assert_eq!(rig.daemon.sink("file")["held"], 0, "nothing waits");
    assert!(!close_says["complete"]["lacks"].is_null());
    rig.daemon.stop().await;
    rig.daemon.run().await;
    until("nothing waits", async || rig.daemon.sink("file")["lag_events"] == 0).await;
    assert_eq!(in_sink().len(), latest.len(), "released once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_has_no_data_is_whole() {
    let (mut rig, _) = without_rights().await;
    let none = r#"{"object_type":"lead","action":"deleted","data":null,"previous_data":null}"#;
    let none = rig.fake.world().inject(none, Duration::ZERO, false).unwrap();
    rig.set(|settings| settings.bare_types = vec!["export.completed".into()]);
    let bare = r#"{"object_type":"export","action":"completed"}"#;
    let bare = rig.fake.world().inject(bare, Duration::ZERO, false).unwrap();
    rig.fake.advance(2 * HOUR).await;
    rig.daemon.run().await;
    rig.daemon.ok(&["backfill", "--since", "30d"]);
    let partial = |rig: &Rig, id: &str| -> Vec<bool> {
        let lines = rig.daemon.lines(&["events", "export", "--id", id]);
        lines.iter().map(|line| line["partial"] == true).collect()
    };
    assert_eq!(
        (partial(&rig, &none), partial(&rig, &bare)),
        (vec![true], vec![true]),
        "this key is not told"
    );
    rig.daemon.configure(&with_key(&rig, &rig.fake.api_key(), ""));
    assert!(rig.daemon.reload().await);
    until("an administrator's key is told so twice", async || {
        close(&rig)["held"].is_null()
    })
    .await;
    for id in [&none, &bare] {
        assert_eq!(partial(&rig, id), [true, false]);
    }
    until("they are delivered", async || {
        let ids = ids_in(&rig.daemon.path("events.jsonl"));
        ids.contains(&bare) && ids.contains(&none)
    })
    .await;
}

/// Begins a backfill without a daemon and interrupts it when it has stored something.
async fn interrupted(rig: &Rig) {
    let event = Fault::new(Kind::Latency)
        .on("GET /api/v1/event/")
        .after(14)
        .delayed(HOUR)
        .times(1000);
    rig.fake.world().faults.order(event).unwrap();
    let mut command = rig.daemon.command();
    command.args(["backfill", "--since", "30d"]);
    let mut asked = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let state = rig.daemon.data().join("close/state.json");
    until("some is stored", async || {
        let state: Value = serde_json::from_slice(&std::fs::read(&state).unwrap_or_default()).unwrap_or_default();
        let job = &state["job"];
        // And all of it is of the rules of then: the first day has nothing.
        job["counts"]["stored"].as_u64() > Some(0) && job["covered"].is_object()
    })
    .await;
    let interrupt = std::process::Command::new("kill")
        .args(["-INT", &asked.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    assert_eq!(asked.wait().unwrap().code(), Some(1));
    rig.fake.world().faults = Faults::default();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_resumed_under_wider_rules_fetches_what_they_have_come_to_want() {
    let mut rig = Rig::new(settings(), "", &rule(&["lead.*"], "")).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 2500, 29 * DAY);
    rig.fake.advance(HOUR).await;
    interrupted(&rig).await;
    rig.configure("", &rule(&["*"], ""));
    let done = rig.daemon.lines(&["backfill", "--resume"]).pop().unwrap();
    assert_eq!(
        (&done["state"], &done["scope"]),
        (&json!("done"), &json!("*")),
        "{done}"
    );
    rig.run().await;
    until("it is compared", async || close(&rig)["complete"].is_object()).await;
    rig.holds_exactly(&rig.latest(|_| true));
    let claim = close(&rig)["complete"].clone();
    assert_eq!(claim["scope"], "*");
    let from: jiff::Timestamp = claim["from"].as_str().unwrap().parse().unwrap();
    let upto: jiff::Timestamp = claim["upto"].as_str().unwrap().parse().unwrap();
    assert!(upto.duration_since(from).as_hours() > 29 * 24, "{claim}");
    is_true(&rig, |_| true);

    // While one runs, too: what was fetched before the rules changed is no part of the claim for the new ones.
    rig.configure("", &rule(&["lead.*", "comment.*"], ""));
    assert!(rig.daemon.reload().await);
    until("the narrower rules are claimed", async || {
        close(&rig)["complete"]["scope"] == "comment.*, lead.*"
    })
    .await;
    is_true_or_empty(&rig);
}

/// What the clock of the other side shows is known to a second or so: it may seem to have gone back.
#[tokio::test(flavor = "multi_thread")]
async fn other_rules_are_claimed_with_the_next_look_also_where_there_is_nothing_to_fetch() {
    let world = World::new(7, settings()).await;
    let with = |patterns: &[&str]| {
        let key = format!("api_key = \"{}\"", world.fake.api_key());
        world.config(&key, &rule(patterns, ""))
    };
    let (before, after) = (with(&["lead.*"]), with(&["comment.*"]));
    let process = world.start(&before);
    let claimed = || process.account.status().complete.unwrap().complete;
    process.account.look_once(true).await.unwrap();
    assert_eq!(claimed().scope, "lead.*");
    let upto = claimed().upto;
    world.skew.store(-1_500_000, Ordering::Relaxed);
    process.account.reconfigure(&after, &rules(&after)).await;
    process.account.look_once(false).await.unwrap();
    let claim = claimed();
    assert_eq!(
        (claim.scope.as_str(), claim.from, claim.upto),
        ("comment.*", upto, upto)
    );
    process.end().await;
}

/// A claim that was just begun names its scope, and no time before that.
fn is_true_or_empty(rig: &Rig) {
    let claim = close(rig)["complete"].clone();
    let at = |name: &str| claim[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(at("from") <= at("upto"), "{claim}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_resumed_when_close_has_forgotten_claims_only_what_it_still_had() {
    let mut rig = Rig::new(settings(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 2500, 29 * DAY);
    rig.fake.advance(HOUR).await;
    interrupted(&rig).await;
    let done_to: jiff::Timestamp = {
        let state = std::fs::read(rig.daemon.data().join("close/state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        state["job"]["done_to"].as_str().unwrap().parse().unwrap()
    };
    rig.fake.advance(12 * DAY).await;
    rig.daemon.ok(&["backfill", "--resume"]);
    rig.run().await;
    until("it is compared", async || close(&rig)["complete"].is_object()).await;
    let claim = close(&rig)["complete"].clone();
    let from: jiff::Timestamp = claim["from"].as_str().unwrap().parse().unwrap();
    assert!(from > done_to, "what was between them is gone: {claim}");
    let stored = rig.stored();
    assert!(
        rig.latest(|_| true).iter().any(|key| !stored.contains_key(key)),
        "Close has forgotten some"
    );
    is_true(&rig, |_| true);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_organization_is_refused_with_both_names_and_no_key_is_retired() {
    let mut rig = Rig::subscribed(settings(), "", FILE_SINK).await;
    rig.happen(30, HOUR).await;
    rig.settled().await;
    let ours = rig.fake.world().organization();
    let before = rig.stored().len();
    let other = Fake::start(Options {
        seed: 8,
        settings: settings(),
        ..Options::default()
    })
    .await
    .unwrap();
    let theirs = other.world().organization();
    {
        let mut world = other.world();
        let now = world.now();
        world.generate(200, now.minus(DAY), DAY).unwrap();
    }
    let key = format!("api_key = \"{}\"\n", other.api_key());
    rig.daemon.configure(&configuration(&other.base_url(), &key, FILE_SINK));
    let check = |said: &str| {
        for part in [
            &ours,
            &theirs,
            "Fake organization 7",
            "Fake organization 8",
            "[log] dir",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    // Beside the daemon, and with one that is told so by a reload or at its start.
    for step in 0..3 {
        match step {
            0 => assert!(rig.daemon.reload().await),
            1 => rig.daemon.stop().await,
            _ => rig.daemon.run().await,
        }
        for arguments in [
            &["subscription", "apply"][..],
            &["subscription", "plan"],
            &["subscription", "list"],
            &["backfill"],
            &["backfill", "--dry-run"],
        ] {
            check(&rig.daemon.fails(1, arguments));
        }
        let probed = rig.daemon.run_command(&["check", "--probe"]);
        check(&(String::from_utf8(probed.stdout).unwrap() + &String::from_utf8(probed.stderr).unwrap()));
        if step != 1 {
            until("it is said", async || {
                close(&rig)["trouble"]
                    .as_str()
                    .is_some_and(|text| text.contains(&theirs))
            })
            .await;
            assert_eq!(rig.daemon.status()["keys"], 1, "no key is retired");
        }
    }
    assert_eq!(rig.stored().len(), before, "nothing of theirs is fetched");
    assert_eq!(other.world().subscriptions().count(), 0);
    assert_eq!(close(&rig)["organization"]["id"], ours.as_str());
    // On purpose, as the message says.
    rig.daemon.stop().await;
    std::fs::remove_file(rig.daemon.data().join("close/organization.json")).unwrap();
    rig.daemon.run().await;
    until("it is theirs now", async || {
        close(&rig)["organization"]["id"] == theirs.as_str()
    })
    .await;
    until("it is compared", async || close(&rig)["complete"].is_object()).await;
    let claim = close(&rig)["complete"].clone();
    let from: jiff::Timestamp = claim["from"].as_str().unwrap().parse().unwrap();
    let now: jiff::Timestamp = other.world().now().into();
    assert!(
        now.duration_since(from).as_hours() < 1,
        "what was claimed was the others': {claim}"
    );
}
