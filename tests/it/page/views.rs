//! Every view: it is there, it says what it has to, and everybody can use it.

use std::io::Write;

use fantoccini::key::Key;
use reqwest::StatusCode;

use super::browser::Browser;
use super::with_events;
use crate::admin_door::{READ, TOKENS, browser};
use crate::harness::{Daemon, Receiver, until};

/// Each view, with something that it says.
const VIEWS: [(&str, &str, &str); 15] = [
    ("overview", "/", "Live tail"),
    ("events", "/events", "ev_30"),
    ("live", "/events?live=on", "Stop the tail"),
    ("search", "/events?lead=lead_1&types=lead.*", "that is all"),
    ("nothing", "/events?types=task.*", "Nothing in the log is like that"),
    ("event", "/events/29", "What each rule says"),
    ("sinks", "/sinks", "crm"),
    ("sink", "/sinks/crm", "Dead letters"),
    ("drop", "/sinks/crm/letters?act=drop", "5 dead letters would be removed"),
    ("replay", "/replay?from=1&to=5", "deliveries would be sent"),
    ("replays", "/replays", "Replays"),
    ("try", "/try", "Try before you deploy"),
    ("close", "/close", "There are no credentials"),
    ("configuration", "/configuration", "[[rules]]"),
    ("acts", "/acts", "Nothing was done yet"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_view_can_be_used_by_everybody_in_dark_and_light_and_on_a_small_screen() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")] {
        browser.looks(width, scheme).await;
        for (name, path, says) in VIEWS {
            browser.go(&daemon, path).await;
            browser.says(says).await;
            browser.suits_everybody(&format!("{path} {width} {scheme}")).await;
            browser.picture(&format!("{name}-{width}-{scheme}")).await;
        }
        browser.go(&daemon, "/sign-in").await;
        browser.says("Token").await;
        browser.suits_everybody(&format!("/sign-in {width} {scheme}")).await;
    }
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:#?}");
    browser.close().await;
}

#[tokio::test]
async fn each_view_can_be_read_without_scripts() {
    let (daemon, _refusing) = with_events().await;
    let cookie = daemon.session().await;
    let read = async |path: &str| {
        let request = browser()
            .get(format!("{}{path}", daemon.admin))
            .header("cookie", &cookie);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    for (_, path, says) in VIEWS {
        // What is counted only on demand is behind a link.
        let path = path.replace("/replay?", "/replay/count?");
        let (status, text) = read(&path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        let said = text.replace("&#60;", "<").replace("&#34;", "\"");
        assert!(said.contains(says), "{path}: {text}");
        assert!(
            !text.contains("style=") && !text.contains("onclick"),
            "{path}: the policy lets it not through"
        );
    }
    // An event has everything on one page.
    let (_, event) = read("/events/ev_29").await;
    for says in [
        "signed",
        "dead",
        "422",
        "all-leads",
        "first-lead",
        "matches",
        "close-sig-hash",
        "1.50",
        "What it would be sent now",
    ] {
        assert!(event.contains(says), "{says}: {event}");
    }
    let (_, other) = read("/events/ev_30").await;
    assert!(other.contains("this decided") && other.contains("lead_2"), "{other}");
    for path in ["/events/ev_none", "/sinks/none", "/replays/none", "/jobs/99"] {
        let (status, text) = read(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(text.contains("<h1>There is no such thing</h1>"), "{path}: {text}");
    }
    for path in ["/events?filter=%7B", "/events?since=soon", "/events/more?filter=%7B"] {
        let (_, text) = read(path).await;
        assert!(
            text.contains("filter is not valid") || text.contains("is no time"),
            "{path}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_used_with_the_keyboard_alone() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    let tab = char::from(Key::Tab).to_string();
    let enter = char::from(Key::Enter).to_string();
    let focused = async || {
        let text = browser
            .run("return document.activeElement.innerText || document.activeElement.name || ''")
            .await;
        text.as_str().unwrap().trim().to_owned()
    };
    // What has the focus is shown, and the first of it leads past the navigation.
    browser.press(&tab).await;
    assert_eq!(focused().await, "Skip to the content");
    let top = browser
        .run("return document.activeElement.getBoundingClientRect().top")
        .await;
    assert!(top.as_f64().unwrap() >= 0.0, "it can be seen: {top}");
    let outline = browser
        .run("return getComputedStyle(document.activeElement).outlineStyle")
        .await;
    assert_eq!(outline, "solid");
    let to = async |name: &str| {
        for _ in 0..200 {
            if focused().await == name {
                return;
            }
            browser.press(&tab).await;
        }
        panic!("no way to {name}: {}", browser.text().await);
    };
    to("Events").await;
    browser.press(&enter).await;
    browser.says("that is all").await;
    // The search: its fields are next to each other.
    to("lead").await;
    browser.press("lead_1").await;
    browser.press(&enter).await;
    browser.says("5 events: that is all").await;
    to("ev_22").await;
    browser.press(&enter).await;
    browser.says("What each rule says").await;
    to("Sinks").await;
    browser.press(&enter).await;
    browser.says("up to date").await;
    to("crm").await;
    browser.press(&enter).await;
    browser.says("Given up").await;
    to("Pause").await;
    browser.press(&enter).await;
    browser.says("It is paused").await;
    until("it is", async || daemon.sink("crm")["paused"] == true).await;
    to("Undo").await;
    browser.press(&enter).await;
    browser.says("It goes on").await;
    until("it goes on", async || daemon.sink("crm")["paused"] == false).await;
    browser.close().await;
}

#[tokio::test]
async fn who_may_only_look_is_offered_nothing_to_do_and_can_do_nothing() {
    let refusing = Receiver::start(422).await;
    let daemon = Daemon::start(&[TOKENS, &super::config(&refusing.url)].concat()).await;
    daemon.store(1..=8).await;
    until("two are refused", async || daemon.sink("crm")["dead"] == 2).await;
    let signed_in = daemon.type_token(READ).await;
    let cookie = crate::admin_door::cookie(signed_in.headers());
    for (_, path, _) in VIEWS {
        let request = browser()
            .get(format!("{}{path}", daemon.admin))
            .header("cookie", &cookie);
        let text = request.send().await.unwrap().text().await.unwrap();
        let forms = text.match_indices("method=\"post\"");
        let forms: Vec<String> = forms.map(|(at, _)| text[at..].chars().take(60).collect()).collect();
        let are_harmless = forms
            .iter()
            .all(|form| form.contains("/sign-out") || form.contains("\"/try\""));
        assert!(are_harmless, "{path}: {forms:?}");
    }
    for (path, form) in [
        ("/sinks/crm/pause", "paused=true"),
        ("/sinks/crm/letters", "act=drop"),
        ("/configuration/reload", ""),
        ("/close/backfill", "act=begin"),
        ("/replay", "plan=%7B%7D"),
    ] {
        let request = browser()
            .post(format!("{}{path}", daemon.admin))
            .header("cookie", &cookie)
            .header("origin", &daemon.admin)
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(form).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(answer.text().await.unwrap().contains("may look and not act"), "{path}");
    }
    let crm = daemon.sink("crm");
    assert_eq!(
        (&crm["paused"], &crm["dead"]),
        (&serde_json::json!(false), &serde_json::json!(2))
    );
}

#[tokio::test]
async fn where_an_event_went_and_why_it_waits_is_said_at_once() {
    let (daemon, _refusing) = with_events().await;
    let cookie = daemon.session().await;
    daemon.ok(&["sinks", "pause", "archive"]);
    daemon.store(31..=31).await;
    let read = async |path: &str| {
        let request = browser()
            .get(format!("{}{path}", daemon.admin))
            .header("cookie", &cookie);
        request.send().await.unwrap().text().await.unwrap()
    };
    let list = read("/events").await;
    for says in ["waiting: archive", "dead: crm", "delivered: archive"] {
        assert!(list.contains(says), "{says}: {list}");
    }
    // A type that is perhaps misspelt is searched for, and doubted.
    let doubted = read("/events?types=leed.updated").await;
    assert!(
        doubted.contains("did you mean") && doubted.contains("lead.updated"),
        "{doubted}"
    );
    assert!(!list.contains("did you mean"), "{list}");
    // How fast it goes: 30 were delivered before it was paused.
    let sinks = read("/sinks").await;
    assert!(
        sinks.contains("Last 15 min") && sinks.contains("30</td>\n    <td class=\"number\">30</td>"),
        "{sinks}"
    );
    let sink = read("/sinks/archive").await;
    assert!(sink.contains("30<small>delivered in the last 15 minutes"), "{sink}");
    let event = read("/events/ev_31").await;
    assert!(event.contains("The sink is paused"), "{event}");
    // A sink's trouble is said on its own page, and who looks from the overview is led there.
    let sink = read("/sinks/crm").await;
    assert!(sink.contains("sink crm has 5 dead letters"), "{sink}");
    let overview = read("/").await;
    assert!(
        overview.contains("href=\"/sinks/crm#letters\"") && !overview.contains("closehook dead list"),
        "{overview}"
    );
}

/// Events in the log; by hand more.
const MANY: u64 = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn every_view_of_a_long_log_costs_what_it_shows() {
    let many = std::env::var("CLOSEHOOK_TEST_EVENTS").map_or(MANY, |many| many.parse().unwrap());
    let sinks = "[[sinks]]\nname = \"archive\"\ntype = \"file\"\npath = \"DIR/out.jsonl\"\n";
    let daemon = Daemon::start(sinks).await;
    // What is rare is at the beginning, as far from the newest as can be.
    let file = daemon.path("many.jsonl");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    for id in 1..=many {
        let (lead, kind) = if id == 7 {
            ("lead_rare", "rare")
        } else {
            ("lead_often", "note")
        };
        let body = serde_json::json!({ "subscription_id": "whsub_1", "event": {
            "id": format!("ev_{id}"), "object_type": kind, "action": "created", "date_updated": "2024-02-15T10:00:00",
            "lead_id": lead, "object_id": format!("o_{id}"), "data": { "number": id } } });
        let line = serde_json::json!({
            "received_at": "2024-02-15T10:00:00Z", "source": "backfill", "headers": {}, "body": body.to_string() });
        writeln!(out, "{line}").unwrap();
    }
    out.flush().unwrap();
    drop(out);
    daemon.ok(&["log", "import", "--expired", file.to_str().unwrap()]);
    assert_eq!(daemon.status()["log"]["last"].as_u64(), Some(many));
    let cookie = daemon.session().await;
    let mut slow = Vec::new();
    for path in [
        "/".to_owned(),
        "/events".to_owned(),
        format!("/events?before={}", many / 2),
        "/events?lead=lead_rare".to_owned(),
        "/events?types=rare.*".to_owned(),
        "/events?id=ev_7".to_owned(),
        "/events/ev_7".to_owned(),
        format!("/events/{many}"),
        "/events?filter=%7B%22type%22%3A%22field_accessor%22%2C%22field%22%3A%22lead_id%22%2C%22filter%22%3A%7B%22type%22%3A%22equals%22%2C%22value%22%3A%22lead_rare%22%7D%7D".to_owned(),
        "/events?live=on".to_owned(),
        "/sinks".to_owned(),
        "/sinks/archive".to_owned(),
        "/replays".to_owned(),
        "/try".to_owned(),
        "/close".to_owned(),
        "/configuration".to_owned(),
        "/acts".to_owned(),
    ] {
        let began = std::time::Instant::now();
        let request = browser().get(format!("{}{path}", daemon.admin)).header("cookie", &cookie);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let text = answer.text().await.unwrap();
        let took = began.elapsed();
        eprintln!("{took:>12.1?}  {path}");
        assert!(text.trim_end().ends_with("</html>") && text.len() < 500_000, "{path}: {} bytes", text.len());
        // What has no index is looked for as far as is allowed at a time, and says so; nothing waits for the whole log.
        let most = if path.contains("filter=") { 10 } else { 5 };
        if took > std::time::Duration::from_secs(most) {
            slow.push(format!("{took:.1?} {path}"));
        }
        if path.contains("rare") || path.contains("ev_7") {
            assert!(text.contains("ev_7") || text.contains("looked at"), "{path}: {text}");
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}
