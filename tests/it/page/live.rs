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
async fn older_events_begin_behind_the_last_row_that_a_live_page_keeps() {
    let refusing = Receiver::start(422).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    daemon.store(1..=55).await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/events?live=on").await;
    assert_eq!(tail(&browser).await, newest(6..=55));
    daemon.store(56..=75).await;
    browser.says("ev_75").await;
    until("the oldest rows are gone", async || {
        tail(&browser).await == newest(16..=75)
    })
    .await;
    browser.click("Older events").await;
    browser.says("ev_15").await;
    let first = browser
        .run("return document.querySelector('table.events td:nth-child(3)').innerText")
        .await;
    assert_eq!(first, "ev_15", "there is no hole");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_what_is_meant_shows_that_alone_and_goes_on_without_a_hole() {
    let refusing = Receiver::start(422).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    daemon.store(1..=10).await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    // ev_1 and ev_8 are of lead_1.
    browser.go(&daemon, "/events?lead=lead_1").await;
    browser.says("that is all").await;
    browser.click("Follow live").await;
    browser.says("Stop the tail").await;
    assert_eq!(tail(&browser).await, ["ev_8", "ev_1"]);
    daemon.store(11..=15).await;
    browser.says("ev_15").await;
    assert_eq!(tail(&browser).await, ["ev_15", "ev_8", "ev_1"]);
    browser.picture("events-live").await;
    // Nobody reads along, and what comes meanwhile is shown when somebody does again; by the filter of another field too.
    browser.write("input[name=types]", "lead.*").await;
    browser.click("Search").await;
    browser.says("Stop the tail").await;
    daemon.store(16..=22).await;
    browser.says("ev_22").await;
    assert_eq!(tail(&browser).await, ["ev_22", "ev_15", "ev_8", "ev_1"]);
    browser.click("Stop the tail").await;
    browser.says("Where it went").await;
    until("nobody looks", async || {
        daemon.metric("closehook_admin_streams").await == 0.0
    })
    .await;
    browser.close().await;
}

/// One reading of `/tail`, until a text is in it.
async fn follow(daemon: &Daemon, cookie: &str, path: &str, last: Option<u64>, until: &str) -> String {
    let mut request = crate::admin_door::browser()
        .get(format!("{}{path}", daemon.admin))
        .header("cookie", cookie);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut answer = request.send().await.unwrap();
    let mut text = String::new();
    let reading = async {
        while !text.contains(until) {
            let chunk = answer.chunk().await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), reading)
        .await
        .unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_is_filtered_by_the_daemon_and_says_how_far_it_is() {
    let refusing = Receiver::start(200).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    let cookie = daemon.session().await;
    daemon.store(1..=9).await;
    // Of type, lead, id and filter; what is not meant is not sent.
    let filter = "filter=%7B%22type%22%3A%22field_accessor%22%2C%22field%22%3A%22lead_id%22%2C%22filter%22%3A%7B%22type%22%3A%22equals%22%2C%22value%22%3A%22lead_1%22%7D%7D";
    for query in [
        "lead=lead_1",
        "id=ev_1,ev_8",
        filter,
        "types=lead.*&lead=lead_1&since=1h",
    ] {
        let said = follow(&daemon, &cookie, &format!("/tail?{query}&after=0"), None, "\n\n").await;
        assert!(said.contains("ev_8") && said.contains("ev_1<"), "{query}: {said}");
        assert!(!said.contains("ev_2<") && !said.contains("ev_9<"), "{query}: {said}");
        assert!(said.contains("id: 9"), "{query}: {said}");
    }
    // Where nothing is meant, how far it was looked is said all the same: who was cut off does not begin anew.
    let said = follow(&daemon, &cookie, "/tail?lead=nobody&after=0", None, "id: 9").await;
    assert!(!said.contains("data"), "{said}");
    let said = follow(&daemon, &cookie, "/tail?lead=lead_1&after=0", Some(1), "\n\n").await;
    assert!(said.contains("ev_8") && !said.contains("ev_1<"), "{said}");
    // And what can't be meant is refused, not followed.
    for bad in ["filter=%7B", "since=soon", "after=x", "lead=a&lead=b"] {
        let request = crate::admin_door::browser()
            .get(format!("{}/tail?{bad}", daemon.admin))
            .header("cookie", &cookie);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{bad}");
    }
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
