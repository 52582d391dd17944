//! What comes while somebody looks, and what happens to an open page when the daemon goes and comes back.

use super::browser::Browser;
use super::config;
use crate::harness::{Daemon, Receiver, until};
use crate::ports;

/// The ids in the tail, newest first.
async fn tail(browser: &Browser) -> Vec<String> {
    let ids = browser
        .run("return [...document.querySelectorAll('#tail td:nth-child(3)')].map((cell) => cell.innerText)")
        .await;
    let ids = ids.as_array().unwrap().iter();
    ids.map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn newest(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.rev().map(|id| format!("ev_{id}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_shows_what_comes_and_goes_on_without_a_hole_when_the_daemon_comes_back() {
    let refusing = Receiver::start(422).await;
    let port = ports::free_port();
    let mut daemon = Daemon::new(&config(&refusing.url));
    let listen = ("CLOSEHOOK__ADMIN__LISTEN".to_owned(), format!("127.0.0.1:{port}"));
    daemon.environment.push(listen);
    daemon.run().await;
    daemon.store(1..=5).await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.says("ev_5").await;
    daemon.store(6..=8).await;
    browser.says("ev_8").await;
    assert_eq!(tail(&browser).await, newest(1..=8));
    let page = browser.client.window().await.unwrap();
    // It is the same page until the end.
    browser.run("window.mark = 'the same'").await;

    daemon.stop().await;
    browser.says("The daemon does not answer").await;
    daemon.run().await;
    daemon.store(9..=12).await;
    // A session ends with the daemon: somebody has to sign in again, which another tab does.
    browser.says("Your session is over").await;
    browser.picture("signed-out").await;
    let other = browser.client.new_window(true).await.unwrap();
    browser.client.switch_to_window(other.handle).await.unwrap();
    browser.sign_in(&daemon).await;
    browser.client.close_window().await.unwrap();
    browser.client.switch_to_window(page).await.unwrap();
    until("the tail goes on", async || {
        tail(&browser).await.first().is_some_and(|id| id == "ev_12")
    })
    .await;
    daemon.store(13..=14).await;
    browser.says("ev_14").await;
    assert_eq!(tail(&browser).await, newest(1..=14));
    assert_eq!(browser.run("return window.mark").await, "the same");
    let notice = browser.run("return document.getElementById('notice').hidden").await;
    assert_eq!(notice, true, "what was said is over");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_counted_where_it_is_too_fast_to_be_read_and_the_page_stays_small() {
    let refusing = Receiver::start(200).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.says("Live tail").await;
    let port = &daemon;
    futures::future::join_all((0..20_u64).map(|part| port.store(part * 100 + 1..=part * 100 + 100))).await;
    let last = daemon.status()["log"]["last"].as_u64().unwrap();
    assert_eq!(last, 2000);
    until("the newest is shown", async || browser.is_there("#event-2000").await).await;
    let rows = browser.run("return document.querySelectorAll('#tail tr').length").await;
    assert!(rows.as_u64().unwrap() <= 60, "{rows} rows");
    assert!(browser.text().await.contains("too fast to show each"));
    browser.picture("flood").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_on_the_page_jumps_while_it_looks_again() {
    let refusing = Receiver::start(422).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    daemon.store(1..=30).await;
    let Some(browser) = Browser::open().await else { return };
    let watch = "window.shift = 0; new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({ type: 'layout-shift', buffered: true });";
    browser
        .cdp(
            "Page.addScriptToEvaluateOnNewDocument",
            serde_json::json!({ "source": watch }),
        )
        .await;
    browser.sign_in(&daemon).await;
    browser
        .run("window.looks = 0; document.addEventListener('htmx:after:swap', () => window.looks++)")
        .await;
    until("it has looked again", async || {
        browser.run("return window.looks").await.as_u64().unwrap() >= 2
    })
    .await;
    let shift = browser.run("return window.shift").await;
    assert!(shift.as_f64().unwrap() < 0.01, "{shift}");
    for path in [
        "/events",
        "/events/3",
        "/sinks",
        "/sinks/crm",
        "/try",
        "/close",
        "/configuration",
    ] {
        browser.go(&daemon, path).await;
        until("it is whole", async || {
            browser.run("return document.readyState").await == "complete"
        })
        .await;
        let shift = browser.run("return window.shift").await;
        assert!(shift.as_f64().unwrap() < 0.01, "{path}: {shift}");
    }
    browser.close().await;
}
