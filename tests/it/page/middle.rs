//! The page is loaded again in the middle of what takes long: that goes on, and is shown where it is.

use std::time::Duration;

use fake_close::Settings;
use fake_close::fault::{Fault, Faults, Kind};

use super::browser::Browser;
use super::{config, with_events};
use crate::close::{FILE_SINK, Rig, history};
use crate::harness::{Daemon, Receiver, ids_in, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Receives, and answers nothing before it is told to.
struct Slow {
    url: String,
    gate: std::sync::Arc<tokio::sync::Semaphore>,
}

impl Slow {
    async fn start() -> Slow {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let held = gate.clone();
        let answer = async move || {
            drop(held.acquire().await);
            axum::http::StatusCode::OK
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        Slow { url, gate }
    }

    fn open(&self) {
        self.gate.add_permits(1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_on_while_its_page_is_loaded_again() {
    let (daemon, refusing) = with_events().await;
    let slow = Slow::start().await;
    daemon.configure(&config(&slow.url));
    assert!(daemon.reload().await);
    drop(refusing);
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/sinks/crm").await;
    browser.click("Retry …").await;
    browser.click("Retry 5 dead letters").await;
    browser.says("5 dead letters of crm are being delivered again").await;
    for _ in 0..3 {
        browser.client.refresh().await.unwrap();
        browser.says("5 dead letters of crm are being delivered again").await;
        browser.says("It goes on when this page is closed").await;
    }
    for (width, scheme) in [(1280, "light"), (400, "dark")] {
        browser.looks(width, scheme).await;
        browser
            .suits_everybody(&format!("a job that runs, {width} {scheme}"))
            .await;
    }
    slow.open();
    browser.says("5 of 5 delivered").await;
    browser.client.refresh().await.unwrap();
    browser.says("5 of 5 delivered").await;
    browser.suits_everybody("a job that is over").await;
    assert_eq!(daemon.sink("crm")["dead"], 0);
    // It was ordered once, however often its page was loaded.
    browser.go(&daemon, "/acts").await;
    let acts = browser.run("return document.querySelectorAll('tbody tr').length").await;
    assert_eq!(acts, 1, "{}", browser.text().await);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_stopped_and_gone_on_with_while_its_page_is_loaded_again() {
    let refusing = Receiver::start(200).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    daemon.store(1..=30).await;
    daemon.done("archive").await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    // So slow that it is stopped long before it is over.
    browser.go(&daemon, "/replay?sink=archive&rate=0.01").await;
    browser.says("30 deliveries would be sent").await;
    browser.click("Send 30 deliveries").await;
    browser.says("running: ").await;
    let place = browser.client.current_url().await.unwrap();
    for _ in 0..3 {
        browser.client.refresh().await.unwrap();
        browser.says("running: ").await;
    }
    for (width, scheme) in [(1280, "dark"), (400, "light")] {
        browser.looks(width, scheme).await;
        browser
            .suits_everybody(&format!("a replay that runs, {width} {scheme}"))
            .await;
    }
    browser.click("Interrupt").await;
    browser.says("interrupted: ").await;
    browser.client.refresh().await.unwrap();
    browser.says("interrupted: ").await;
    browser.suits_everybody("a replay that was interrupted").await;
    assert_eq!(browser.client.current_url().await.unwrap(), place);
    browser.click("Go on").await;
    browser.says("running: ").await;
    browser.go(&daemon, "/acts").await;
    browser.says("Interrupted replay").await;
    browser.says("Went on with replay").await;
    browser.says("link").await;
    // What was gone on with is undone by stopping it.
    browser.click("Undo").await;
    browser.says("interrupted: ").await;
    let logged = daemon.stderr();
    for running in ["false", "true"] {
        let is_it = |line: &str| line.contains("replay-set") && line.contains(running) && line.contains("link");
        assert!(logged.lines().any(is_it), "who it was is logged: {logged}");
    }
    assert!(ids_in(&daemon.path("out.jsonl")).len() < 60);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_of_a_backfill_goes_on_while_its_page_is_loaded_again() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 60, 10 * DAY);
    rig.fake.advance(HOUR).await;
    rig.run().await;
    let wanted = rig.latest(|_| true).len();
    let down = Fault::new(Kind::Status).on("GET /api/v1/event/").times(1_000_000);
    rig.fake.world().faults.order(down).unwrap();
    let daemon = &rig.daemon;
    let Some(browser) = Browser::at(daemon).await else {
        return;
    };
    browser.go(daemon, "/close").await;
    browser.write("input[name=since]", "30d").await;
    browser.click("Count first").await;
    browser.says("All of the range is read at Close").await;
    for _ in 0..3 {
        browser.client.refresh().await.unwrap();
        browser.says("All of the range is read at Close").await;
    }
    rig.fake.world().faults = Faults::default();
    browser.says(&format!("{wanted} events would be stored")).await;
    browser.client.refresh().await.unwrap();
    browser.says(&format!("{wanted} events would be stored")).await;
    browser.looks(400, "light").await;
    browser.suits_everybody("a count that is over").await;
    browser.go(daemon, "/acts").await;
    let acts = browser.run("return document.querySelectorAll('tbody tr').length").await;
    assert_eq!(acts, 1, "{}", browser.text().await);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_is_cut_off_by_a_reload_leaves_the_page_as_it_was_and_is_run_again() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/try?rule=first-lead").await;
    for _ in 0..3 {
        // The answer has no page to come to any more.
        browser
            .run("document.querySelector('#draft button').click(); location.reload()")
            .await;
        browser.says("Begin with").await;
        until("it is whole", async || {
            browser.run("return document.readyState").await == "complete"
        })
        .await;
    }
    let text = browser.run("return document.querySelector('textarea').value").await;
    assert!(text.as_str().unwrap().contains("first-lead"), "{text}");
    browser.click("Run").await;
    browser.says("5 of 30 events match").await;
    for (width, scheme) in [(1280, "light"), (400, "dark")] {
        browser.looks(width, scheme).await;
        browser
            .suits_everybody(&format!("the outcome of a try, {width} {scheme}"))
            .await;
    }
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:#?}");
    browser.close().await;
}
