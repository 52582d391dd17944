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
