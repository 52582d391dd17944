//! The line of 30 days: what was fetched, held and lost is on it, and a click leads to these events and no others.

use std::io::Write;
use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Role, Settings};
use fantoccini::Locator;

use super::browser::Browser;
use crate::close::{FILE_SINK, Rig, configuration, history};
use crate::harness::{Daemon, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Events that were there before anything was fetched.
const BEFORE: u64 = 3;

/// A log that has some events of yesterday.
fn yesterday(daemon: &Daemon) {
    let file = daemon.path("before.jsonl");
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut out = std::fs::File::create(&file).unwrap();
    for id in 1..=BEFORE {
        let body = crate::harness::body(id);
        let line = serde_json::json!({ "received_at": at, "source": "webhook", "headers": {}, "body": body });
        writeln!(out, "{line}").unwrap();
    }
    daemon.ok(&["log", "import", file.to_str().unwrap()]);
}

/// Flips a byte in the middle of what the log has written.
fn damage(daemon: &Daemon) {
    let segments = std::fs::read_dir(daemon.data().join("log")).unwrap();
    let mut segments: Vec<_> = segments.map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let journal = segments.last().unwrap().join("journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    // Behind the last block there is only room.
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&journal, bytes).unwrap();
}

/// Clicks on the newest stretch of a kind, in the drawing.
async fn click_on_a(browser: &Browser, kind: &str) {
    let marks = format!("svg rect.mark.{kind}");
    let marks = browser.client.find_all(Locator::Css(&marks)).await.unwrap();
    let newest = marks.into_iter().last();
    newest
        .unwrap_or_else(|| panic!("there is no {kind} on the line"))
        .click()
        .await
        .unwrap();
    browser.says("Received").await;
}

/// The Seqs of the events that are shown.
async fn shown(browser: &Browser) -> Vec<u64> {
    let ids = browser
        .run("return [...document.querySelectorAll('table.events tr[id]')].map((row) => Number(row.id.replace('event-', '')))")
        .await;
    ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// What the search says it is restricted to.
async fn field(browser: &Browser, name: &str) -> String {
    let value = browser
        .run(&format!("return document.querySelector('[name={name}]')?.value ?? ''"))
        .await;
    value.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_held_and_lost_is_on_the_line_and_leads_to_its_events_alone() {
    let calm = Settings {
        rate_limit: 1_000_000,
        ..Settings::calm()
    };
    let mut rig = Rig::new(calm, "", FILE_SINK).await;
    let user = rig.fake.world().access.add(None, Role::User).unwrap().key.clone();
    rig.fake.advance(30 * DAY).await;
    history(&rig, 40, 10 * DAY);
    rig.fake.advance(2 * HOUR).await;
    let key = format!("api_key = \"{user}\"\n");
    rig.daemon
        .configure(&configuration(&rig.fake.base_url(), &key, FILE_SINK));
    // So that only what the test orders is fetched.
    yesterday(&rig.daemon);
    rig.daemon.run().await;
    let fetched = rig.latest(|_| true).len() as u64;
    rig.daemon.ok(&["backfill", "--since", "30d"]);
    until("they are held", async || {
        rig.daemon.status()["close"]["held"]["is_counted"] == true
    })
    .await;
    rig.daemon.kill();
    damage(&rig.daemon);
    rig.daemon.run().await;
    let daemon = &rig.daemon;
    let gap = daemon.status()["log"]["gaps"][0].clone();
    let (first, last) = (gap["from"].as_u64().unwrap(), gap["to"].as_u64().unwrap());
    assert!(
        first > BEFORE + 1 && last < BEFORE + fetched,
        "the damage is among what was fetched: {gap}"
    );
    let Some(browser) = Browser::at(daemon).await else {
        return;
    };
    let to_the_line = async || {
        browser.go(daemon, "/close").await;
        browser.says("The same as a list").await;
    };
    to_the_line().await;
    browser.run("document.getElementById('stretches').open = true").await;
    let text = browser.text().await;
    for says in ["Without their data", "Lost", "Backfill", "a backfill has fetched"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    browser.picture("days").await;
    browser.suits_everybody("the line of days").await;

    click_on_a(&browser, "backfill").await;
    let seqs = shown(&browser).await;
    assert!(seqs.iter().all(|seq| *seq > BEFORE), "{seqs:?}");
    assert_eq!(field(&browser, "from").await, (BEFORE + 1).to_string());
    assert!(
        seqs.contains(&(BEFORE + 1)) && seqs.contains(&(BEFORE + fetched)),
        "{seqs:?}"
    );

    to_the_line().await;
    click_on_a(&browser, "lost").await;
    assert_eq!(
        shown(&browser).await,
        [0; 0],
        "what is lost is named, and its neighbours are not shown"
    );
    assert_eq!(
        (field(&browser, "from").await, field(&browser, "to").await),
        (first.to_string(), last.to_string())
    );
    browser.says("damaged").await;

    to_the_line().await;
    click_on_a(&browser, "held").await;
    assert_eq!(field(&browser, "partial").await, "only");
    let seqs = shown(&browser).await;
    assert!(!seqs.is_empty() && seqs.iter().all(|seq| *seq > BEFORE), "{seqs:?}");
    // And the same without the line: what is meant stays what it is when one looks for less of it.
    browser.write("input[name=types]", "lead.*").await;
    browser.click("Search").await;
    browser.says("Received").await;
    assert_eq!(field(&browser, "partial").await, "only");
    assert!(!field(&browser, "from").await.is_empty());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_runs_is_on_the_line_is_stopped_and_goes_on() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 100, 20 * DAY);
    rig.fake.advance(HOUR).await;
    rig.run().await;
    let wanted = rig.latest(|_| true).len();
    // It can't come to an end before somebody lets it.
    let slow = Fault::new(Kind::Status).on("GET /api/v1/event/").times(1_000_000);
    rig.fake.world().faults.order(slow).unwrap();
    let daemon = &rig.daemon;
    let Some(browser) = Browser::at(daemon).await else {
        return;
    };
    browser.go(daemon, "/close").await;
    browser.write("input[name=since]", "30d").await;
    browser.click("Backfill without counting").await;
    browser.says("The backfill has begun").await;
    browser.says("a backfill is fetching it").await;
    assert!(browser.is_there("svg rect.mark.backfill").await);
    browser.suits_everybody("a backfill that runs").await;
    // In the middle of it the page is loaded again.
    browser.client.refresh().await.unwrap();
    browser.says("a backfill is fetching it").await;
    browser.click("Stop").await;
    browser.says("The backfill is stopped").await;
    assert_eq!(daemon.status()["close"]["backfill"]["state"], "interrupted");
    browser.picture("backfill-stopped").await;
    rig.fake.world().faults = Faults::default();
    browser.click("Go on").await;
    browser.says("The backfill goes on").await;
    until("all of it is there", async || rig.stored().len() == wanted).await;
    browser.go(daemon, "/acts").await;
    for says in [
        "Began a backfill",
        "Stopped the backfill",
        "Went on with the backfill",
        "link",
    ] {
        browser.says(says).await;
    }
    let logged = daemon.stderr();
    for running in ["false", "true"] {
        let found = logged
            .lines()
            .any(|line| line.contains("backfill-set") && line.contains(running) && line.contains("link"));
        assert!(found, "who it was is logged: {logged}");
    }
    until("it is over", async || daemon.status()["close"]["backfill"].is_null()).await;
    browser.go(daemon, "/close").await;
    browser.says("a backfill has fetched").await;
    browser.close().await;
}
