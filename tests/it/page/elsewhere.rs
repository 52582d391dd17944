//! Pages elsewhere, in the browser of somebody who has signed in: one on another port of this machine, which a cookie's `SameSite` does
//! not keep away, one of another name, and one whose name was pointed at this machine.

use axum::Router;
use axum::response::Html;
use reqwest::StatusCode;
use serde_json::json;

use super::browser::Browser;
use super::with_events;
use crate::harness::{Daemon, until};

/// A name that leads to this machine, and is none of the daemon's.
const EVIL: &str = "evil.example";

/// A server of somebody else's; gives its port.
async fn evil_server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let page = async || Html("<!doctype html><title>evil</title><body>evil page</body>");
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(page)).await });
    port
}

async fn with_names(daemon: &Daemon) -> Option<Browser> {
    let rule = format!("--host-resolver-rules=MAP {EVIL} 127.0.0.1");
    let browser = Browser::open_with(&[&rule]).await?;
    browser.sign_in(daemon).await;
    Some(browser)
}

/// A form that pauses a sink, sent by whatever page is open.
fn form(place: &str) -> String {
    format!(
        "const form = document.createElement('form');
        form.method = 'post';
        form.action = '{place}/sinks/archive/pause';
        form.innerHTML = '<input name=paused value=true>';
        document.body.append(form);
        form.submit();"
    )
}

/// A request with the cookie of who looks, as far as a script hears of it: the answer's status and text, or that it is kept from it.
fn fetch(place: &str, options: &str) -> String {
    format!(
        "const answer = await fetch('{place}', {{ credentials: 'include', {options} }});
        return [answer.type, answer.status, await answer.text()];"
    )
}

const PAUSE_AS_TEXT: &str =
    "method: 'POST', mode: 'no-cors', headers: { 'content-type': 'text/plain' }, body: '{\"paused\":true}'";

/// Scripts: what is asked for is kept from them, and what is ordered is not done.
async fn hears_nothing(browser: &Browser, elsewhere: &str, admin: &str) {
    for (path, options) in [
        ("/api/v1/events", "mode: 'cors'"),
        ("/events/1/raw", "mode: 'cors'"),
        (
            "/api/v1/sinks/archive/pause",
            "method: 'POST', mode: 'cors', headers: { 'content-type': 'application/json' }",
        ),
        (
            "/sinks/archive/pause",
            "method: 'POST', mode: 'cors', body: new URLSearchParams({ paused: 'true' })",
        ),
    ] {
        let heard = browser.run_async(&fetch(&format!("{admin}{path}"), options)).await;
        assert_eq!(heard, "thrown: TypeError", "{elsewhere} {path}");
    }
    for (path, options) in [
        ("/api/v1/sinks/archive/pause", PAUSE_AS_TEXT),
        (
            "/sinks/archive/pause",
            "method: 'POST', mode: 'no-cors', body: new URLSearchParams({ paused: 'true' })",
        ),
        ("/configuration/reload", "method: 'POST', mode: 'no-cors'"),
        ("/sign-out", "method: 'POST', mode: 'no-cors'"),
        ("/events", "mode: 'no-cors'"),
    ] {
        let heard = browser.run_async(&fetch(&format!("{admin}{path}"), options)).await;
        // Opaque, or not even that where the answer says whose it is.
        assert!(
            heard == json!(["opaque", 0, ""]) || heard == "thrown: TypeError",
            "{elsewhere} {path}: {heard}"
        );
    }
    let stream = format!(
        "return await new Promise((done) => {{
            const tail = new EventSource('{admin}/tail?after=0', {{ withCredentials: true }});
            tail.onmessage = (event) => done(event.data);
            tail.onerror = () => done('nothing');
        }});"
    );
    assert_eq!(browser.run_async(&stream).await, "nothing", "{elsewhere}");
    let script = format!(
        "return await new Promise((done) => {{
            const script = document.createElement('script');
            script.onload = () => done('loaded');
            script.onerror = () => done('nothing');
            script.src = '{admin}/api/v1/status';
            document.head.append(script);
        }});"
    );
    assert_eq!(browser.run_async(&script).await, "nothing", "{elsewhere}");
}

/// Frames show nothing of it, so nobody can be led to click on it.
async fn frames_nothing(browser: &Browser, elsewhere: &str, admin: &str) {
    for path in ["/", "/sign-in", "/events/1/raw"] {
        browser.client.goto(elsewhere).await.unwrap();
        browser.says("evil page").await;
        browser
            .run_async(&format!(
                "await new Promise((done) => {{
                    const frame = document.createElement('iframe');
                    frame.onload = done;
                    frame.src = '{admin}{path}';
                    document.body.append(frame);
                }});"
            ))
            .await;
        let frame = browser.find("iframe").await;
        frame.enter_frame().await.unwrap();
        let place = browser.run("return location.href").await;
        let inside = browser.run("return document.documentElement.outerHTML").await;
        browser.client.clone().enter_parent_frame().await.unwrap();
        let inside = inside.as_str().unwrap();
        assert!(
            place == "chrome-error://chromewebdata/" && !inside.contains("closehook") && !inside.contains("ev_1"),
            "{elsewhere} {path}: {place} {inside}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_elsewhere_does_nothing_reads_nothing_and_frames_nothing() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = with_names(&daemon).await else {
        return;
    };
    let port = evil_server().await;
    let admin = daemon.admin.clone();
    for elsewhere in [format!("http://127.0.0.1:{port}/"), format!("http://{EVIL}:{port}/")] {
        let go = async || {
            browser.client.goto(&elsewhere).await.unwrap();
            browser.says("evil page").await;
        };
        // A form, which leads there with whatever cookie the browser lets go.
        go().await;
        browser.run(&form(&admin)).await;
        until("the answer is there", async || {
            let shown = browser.run("return document.body?.innerText ?? 'evil page'").await;
            !shown.as_str().unwrap().contains("evil page")
        })
        .await;
        let text = browser.text().await;
        assert!(
            text.contains("another site's page") || text.contains("Token"),
            "{elsewhere}: {text}"
        );
        go().await;
        hears_nothing(&browser, &elsewhere, &admin).await;
        frames_nothing(&browser, &elsewhere, &admin).await;
    }
    assert_eq!(daemon.sink("archive")["paused"], false);
    // Whoever was signed in still is, nothing was done in their name, and the same form on the page itself does what it says.
    browser.go(&daemon, "/acts").await;
    browser.says("Nothing was done yet").await;
    browser.run(&form(&admin)).await;
    browser.says("It is paused").await;
    assert_eq!(daemon.sink("archive")["paused"], true);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_pointed_at_this_machine_is_refused() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = with_names(&daemon).await else {
        return;
    };
    let (_, port) = daemon.admin.rsplit_once(':').unwrap();
    let rebound = format!("http://{EVIL}:{port}");
    browser.client.goto(&format!("{rebound}/")).await.unwrap();
    browser.says("does not have the name").await;
    // A script of that name is of the same origin as what it asks: it hears that it is refused, and nothing else.
    for (path, options) in [
        ("/", ""),
        ("/events", ""),
        ("/api/v1/status", ""),
        ("/sign-in", ""),
        (
            "/sinks/archive/pause",
            "method: 'POST', body: new URLSearchParams({ paused: 'true' })",
        ),
        ("/api/v1/sinks/archive/pause", "method: 'POST'"),
        ("/sign-in", "method: 'POST', body: new URLSearchParams({ token: 'x' })"),
    ] {
        let heard = browser.run_async(&fetch(path, options)).await;
        let status = StatusCode::MISDIRECTED_REQUEST.as_u16();
        assert_eq!(
            (&heard[0], &heard[1]),
            (&json!("basic"), &json!(status)),
            "{path}: {heard}"
        );
        let text = heard[2].as_str().unwrap();
        assert!(
            text.contains("does not have the name") && !text.contains("ev_"),
            "{path}: {text}"
        );
    }
    assert_eq!(daemon.sink("archive")["paused"], false);
    // By its own name it is there.
    browser.go(&daemon, "/").await;
    browser.says("Live tail").await;
    browser.close().await;
}
