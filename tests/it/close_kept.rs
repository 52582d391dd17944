//! A subscription whose key can't be kept is of no use to anybody, and Close would go on sending to it.

use fake_close::Settings;
use fake_close::fault::{Fault, Kind};

use crate::close::Rig;
use crate::harness::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_whose_key_can_not_be_kept_is_deleted_at_once() {
    // Without a daemon, so that nobody else looks after it.
    let rig = Rig::new(Settings::calm(), "", "").await;
    let mut late = Fault::new(Kind::Late).on("POST /api/v1/webhook/");
    late.delay_ms = 5000;
    rig.fake.world().faults.order(late).unwrap();
    let running = tokio::task::spawn_blocking({
        let mut command = rig.daemon.command();
        move || command.args(["subscription", "apply"]).output().unwrap()
    });
    until("it is made, and its key is on its way", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    // From now on nothing can be written there.
    std::fs::create_dir_all(rig.daemon.data().join("close/keys.json.tmp/in-the-way")).unwrap();
    let output = running.await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("keys.json"), "{said}");
    assert_eq!(rig.fake.world().subscriptions().count(), 0, "{said}");
}
