//! A new key: both subscriptions deliver until the new one has been heard.

use std::time::Duration;

use closehook::ingress::verify::Key;
use fake_close::Settings;
use serde_json::json;

use crate::close::{FILE_SINK, Rig};
use crate::harness::until;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_replaces_the_old_one_when_it_has_delivered() {
    let mut rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let old = rig.only_subscription();
    rig.happen(60, HOUR).await;
    let said = rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let new = {
        let world = rig.fake.world();
        let new = world
            .subscriptions()
            .find(|subscription| subscription.id != old)
            .unwrap();
        new.id.clone()
    };
    assert!(said.contains(&format!("{new} replaces {old}")), "{said}");
    assert!(
        rig.daemon
            .fails(1, &["subscription", "apply", "--rotate"])
            .contains("being replaced")
    );
    assert_eq!(rig.daemon.status()["keys"], 2, "both are accepted");
    // A restart in the middle changes nothing.
    rig.daemon.stop().await;
    rig.run().await;
    assert_eq!(rig.daemon.status()["close"]["rotation"]["new"], new.as_str());

    rig.happen(60, HOUR).await;
    until("the old subscription is deleted", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    assert_eq!(rig.only_subscription(), new);
    until("its key is retired", async || rig.daemon.status()["keys"] == 1).await;
    assert!(rig.daemon.status()["close"]["rotation"].is_null());
    rig.happen(60, HOUR).await;
    rig.settled().await;
    assert!(rig.latest(|_| true).iter().all(|key| rig.stored().contains_key(key)));
    // What the old key signed is still proved by it.
    let verified = rig.daemon.lines(&["events", "verify"]).pop().unwrap();
    assert_eq!(verified["faults"], json!([]), "{verified}");
    rig.daemon.stop().await;
    assert_eq!(
        rig.daemon.lines(&["events", "verify"]).pop().unwrap()["faults"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_has_delivered_even_if_the_old_one_is_always_first() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let old = rig.only_subscription();
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let new = rig.daemon.status()["close"]["rotation"]["new"]
        .as_str()
        .unwrap()
        .to_owned();
    for (id, answer) in [(&old, "stored"), (&new, "duplicate")] {
        let signature_key = rig.fake.world().subscription(id).unwrap().signature_key.clone();
        let key = Key::from_hex(Some(id.clone()), &signature_key).unwrap();
        let event =
            json!({ "id": "ev_1", "date_updated": "2024-02-15T12:00:00", "object_type": "lead", "action": "created" });
        let body = json!({ "event": event, "subscription_id": id }).to_string();
        let (status, answered) = rig.daemon.send_signed(&key, body).await.unwrap();
        assert_eq!((status, answered["status"].as_str()), (200, Some(answer)), "{answered}");
    }
    until("the old subscription is deleted", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    assert_eq!(rig.only_subscription(), new);
}

/// A daemon whose subscription only the configuration has the key of, with its id or without; nothing of it is in the data directory.
async fn configured(named: bool) -> (Rig, String) {
    let mut rig = Rig::subscribed(Settings::calm(), "", "").await;
    let old = rig.only_subscription();
    let signature_key = rig.fake.world().subscription(&old).unwrap().signature_key.clone();
    rig.daemon.stop().await;
    std::fs::remove_dir_all(rig.daemon.data()).unwrap();
    let id = if named {
        format!("id = \"{old}\"\n")
    } else {
        String::new()
    };
    rig.configure(
        "",
        &format!("[[close.subscriptions]]\n{id}signature_key = \"{signature_key}\"\n"),
    );
    rig.run().await;
    (rig, old)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_has_the_key_of_goes_when_its_successor_has_delivered_and_is_said_to_be_nothing_else() {
    for named in [true, false] {
        let (rig, old) = configured(named).await;
        let said = rig.daemon.ok(&["subscription", "apply", "--rotate", "--json"]);
        let applied: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (&applied["replaces"], &applied["replaced"]),
            (&json!(old), &json!([])),
            "{said}"
        );
        assert!(
            rig.fake.world().subscription(&old).is_some(),
            "it goes when the new one has delivered"
        );
        rig.happen(60, HOUR).await;
        until("the old subscription is deleted", async || {
            rig.fake.world().subscriptions().count() == 1
        })
        .await;
        let new = rig.only_subscription();
        assert_eq!(applied["subscription"], new.as_str());
        until("the new one is seen", async || {
            rig.state(&new).as_deref() == Some("active")
        })
        .await;
        rig.settled().await;
        assert!(rig.latest(|_| true).iter().all(|key| rig.stored().contains_key(key)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_subscription_that_is_gone_is_to_be_removed_where_another_one_delivers_here() {
    let (mut rig, old) = configured(true).await;
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    rig.happen(60, HOUR).await;
    until("it is seen gone", async || rig.state(&old).as_deref() == Some("gone")).await;
    let new = rig.only_subscription();
    rig.daemon.stop().await;
    rig.run().await;
    until("it is seen again", async || rig.state(&old).as_deref() == Some("gone")).await;
    let plan = rig.daemon.ok(&["subscription", "plan"]);
    let note =
        format!("[[close.subscriptions]] names {old}, which Close does not have, and {new} delivers here: remove");
    assert!(plan.contains("nothing to do") && plan.contains(&note), "{plan}");
    let status = rig.daemon.ok(&["status"]);
    assert!(
        status.contains("[[close.subscriptions]]") && !status.contains("makes it anew"),
        "{status}"
    );
    let log = rig.daemon.stderr();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors, Vec::<&str>::new());
    let state = std::fs::read(rig.daemon.data().join("close/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let open = |past: &&serde_json::Value| past["kind"] == "pause" && past["to"].is_null();
    let open: Vec<_> = state["past"].as_array().into_iter().flatten().filter(open).collect();
    assert!(open.is_empty(), "{open:?}");
    // And without it nothing is said.
    rig.configure("", "");
    assert!(rig.daemon.reload().await);
    until("it is forgotten", async || rig.state(&old).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_comes_with_a_subscription_that_can_deliver_where_the_old_one_could() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    rig.run().await;
    rig.daemon.ok(&["subscription", "create", "--no-verify-ssl"]);
    let old = rig.only_subscription();
    assert!(!rig.fake.world().subscription(&old).unwrap().verify_ssl);
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let world = rig.fake.world();
    let new = world.subscriptions().find(|one| one.id != old).unwrap();
    assert!(!new.verify_ssl, "a certificate of one's own would not be taken");
    let new = new.id.clone();
    drop(world);
    // The way that `status` names to one that checks.
    rig.daemon.ok(&["subscription", "delete", "--yes", &old]);
    rig.daemon.ok(&["subscription", "delete", "--yes", &new]);
    rig.daemon.ok(&["subscription", "apply"]);
    let only = rig.only_subscription();
    assert!(rig.fake.world().subscription(&only).unwrap().verify_ssl);
}
