//! Events that are made to do something to whoever looks at them.

use reqwest::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};

use super::browser::Browser;
use super::with_events;
use crate::admin_door;

/// Markup, scripts, attributes, template syntax, turned text, controls, and long lines.
fn hostile() -> Vec<String> {
    let texts = [
        r"<script>window.hit = 1</script>".to_owned(),
        r"<img src=x onerror=window.hit=1><svg onload=window.hit=1>".to_owned(),
        r"</textarea></pre></title></style><script>window.hit=1</script>".to_owned(),
        r"' onmouseover='window.hit=1' autofocus onfocus='window.hit=1".to_owned(),
        r"javascript:window.hit=1".to_owned(),
        r"{{ frame.who }}{% include 'x' %}".to_owned(),
        r"<div hx-get='/sign-out' hx-trigger='load' hx-on:click='window.hit=1'>".to_owned(),
        r"<meta http-equiv=refresh content='0;url=//evil.example'>".to_owned(),
        "safe\u{202e}gpj.exe\u{2066}\u{200b}".to_owned(),
        "x".repeat(1 << 20),
    ];
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let event = |(number, text): (usize, &String)| {
        let (text, short) = (quoted(text), quoted(&text.chars().take(100).collect::<String>()));
        format!(
            r#"{{"event":{{"id":{short},"date_updated":"2024-02-15T12:48:23.{number:06}","object_type":{short},"action":"updated","object_id":{short},"lead_id":{short},"data":{{{text}:{text}}}}},"subscription_id":{short}}}"#
        )
    };
    texts.iter().enumerate().map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_event_is_text_wherever_it_is_shown() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.says("Live tail").await;
    let bodies = hostile();
    for body in &bodies {
        let (status, answer) = daemon.send(body).await.unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    // What can't be read at all, too.
    daemon.send("<script>window.hit = 1</script>").await.unwrap();
    let last = daemon.status()["log"]["last"].as_u64().unwrap();
    // In the tail, as it comes.
    browser.says("<img src=x onerror").await;
    let nothing_was_hit = async |place: &str| {
        let hit = browser.run("return [window.hit ?? null, document.querySelectorAll('main script, main img, main [onfocus], main [hx-on\\\\:click]').length, document.querySelector('meta[http-equiv=refresh]') === null, location.host]").await;
        let host = daemon.admin.strip_prefix("http://").unwrap();
        assert_eq!(hit, serde_json::json!([null, 0, true, host]), "{place}");
        let source = browser.client.source().await.unwrap();
        for turned in ['\u{202e}', '\u{2066}', '\u{200b}'] {
            assert!(!source.contains(turned), "{place} is turned");
        }
        assert!(source.len() < 3_000_000, "{place} is {} long", source.len());
    };
    nothing_was_hit("the tail").await;
    let first = last - bodies.len() as u64;
    let mut places: Vec<String> = (first..=last).map(|seq| format!("/events/{seq}")).collect();
    places.push("/events".to_owned());
    places.push("/sinks/crm".to_owned());
    for text in [
        "%3Cscript%3Ewindow.hit%3D1%3C%2Fscript%3E",
        "%22%27%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.hit%3D1%3E",
    ] {
        for path in [
            "/events?lead=",
            "/events?filter=",
            "/events/",
            "/sinks/",
            "/try?text=",
            "/replay?id=",
            "/sinks/crm/letters?act=drop&group=",
            "/sinks/crm?types=",
        ] {
            places.push(format!("{path}{text}"));
        }
    }
    for place in places {
        browser.go(&daemon, &place).await;
        browser
            .run("for (const one of document.querySelectorAll('details')) one.open = true")
            .await;
        nothing_was_hit(&place).await;
        let wide = browser
            .run("return document.documentElement.scrollWidth - innerWidth")
            .await;
        assert!(
            wide.as_i64().unwrap() <= 0,
            "{place} is wider than the window by {wide}"
        );
    }
    browser.go(&daemon, &format!("/events/{}", last - 2)).await;
    browser.says(r"safe\u202egpj.exe").await;
    browser.go(&daemon, &format!("/events/{}", last - 1)).await;
    browser.says("Shortened here").await;
    browser.picture("hostile-long").await;
    let complaints = browser.complaints().await;
    let complaints: Vec<&String> = complaints.iter().filter(|one| !one.contains("status of 4")).collect();
    assert!(complaints.is_empty(), "the policy had nothing to stop: {complaints:#?}");
    browser.close().await;
}

#[tokio::test]
async fn a_raw_body_is_what_came_and_text_to_a_browser() {
    let (daemon, _refusing) = with_events().await;
    let cookie = daemon.session().await;
    let bodies = hostile();
    for body in &bodies {
        daemon.send(body).await.unwrap();
        let last = daemon.status()["log"]["last"].clone();
        let place = format!("{}/events/{last}/raw", daemon.admin);
        let answer = admin_door::browser()
            .get(place)
            .header("cookie", &cookie)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(answer.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(answer.text().await.unwrap(), *body);
    }
}
