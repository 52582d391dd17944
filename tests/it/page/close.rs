//! Close's side on the page.

use std::time::Duration;

use fake_close::Settings;

use super::browser::Browser;
use crate::close::{FILE_SINK, Rig, history};
use crate::harness::until;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_is_counted_begun_and_shown_and_a_paused_subscription_resumed() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 200, 20 * DAY);
    rig.fake.advance(HOUR).await;
    rig.run().await;
    let wanted = rig.latest(|_| true).len();
    let daemon = &rig.daemon;
    let Some(browser) = Browser::at(daemon).await else {
        return;
    };
    browser.go(daemon, "/close").await;
    browser.says("Backfill").await;
    browser.write("input[name=since]", "30d").await;
    browser.click("Count first").await;
    browser.says("would be stored").await;
    let text = browser.text().await;
    assert!(text.contains(&format!("{wanted} events would be stored")), "{text}");
    browser.click("Backfill").await;
    browser.says("The backfill has begun").await;
    until("all of it is there", async || rig.stored().len() == wanted).await;
    daemon.ok(&["subscription", "apply"]);
    let found = daemon.lines(&["subscription", "list"]);
    let id = found[0]["id"].as_str().unwrap();
    daemon.ok(&["subscription", "pause", id]);
    until("that is seen", async || {
        let state = daemon.status()["close"]["subscriptions"][0]["state"].clone();
        state.is_string() && state != "active"
    })
    .await;
    browser.go(daemon, "/close").await;
    browser.says("paused").await;
    browser.picture("close").await;
    let barriers = browser.barriers().await;
    assert!(barriers.is_empty(), "{barriers:#?}");
    browser.click("Resume").await;
    browser.says("Close was told to deliver again").await;
    until("it is active", async || {
        daemon.lines(&["subscription", "list"])[0]["status"] == "active"
    })
    .await;
    browser.go(daemon, "/acts").await;
    browser.says("Resumed subscription").await;
    browser.says("Began a backfill").await;
    browser.says("Counted a backfill").await;
    browser.close().await;
}
