//! What a request to the page says that can't be meant: answered in our own words, with the field, as a page for a browser.

use reqwest::{Method, StatusCode};

use crate::admin_door::{TOKENS, browser};
use crate::harness::Daemon;

const SINK: &str = "[[sinks]]\nname = \"audit\"\ntype = \"file\"\npath = \"DIR/audit.jsonl\"\n";

/// Words of libraries, which nobody who looks at the page knows.
const FOREIGN: [&str; 6] = [
    "Failed to deserialize",
    "missing field",
    "invalid digit",
    "provided string was not",
    "Cannot parse",
    "Content-Type:",
];

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn what_can_not_be_meant_is_said_in_our_words_on_a_page() {
    let daemon = Daemon::start(&format!("{TOKENS}{SINK}")).await;
    daemon.store(1..=2).await;
    let cookie = daemon.session().await;
    let form = "application/x-www-form-urlencoded";
    let (get, post) = (Method::GET, Method::POST);
    for (method, path, kind, body, status, says) in [
        (&post, "/sinks/audit/pause", form, "", 400, "paused is missing"),
        (
            &post,
            "/sinks/audit/pause",
            form,
            "paused=yes",
            400,
            "has to be true or false",
        ),
        (
            &post,
            "/sinks/audit/pause",
            form,
            "paused=true&paused=false",
            400,
            "paused is given more than once",
        ),
        (
            &post,
            "/sinks/audit/pause",
            "text/plain",
            "paused=true",
            415,
            "content-type",
        ),
        (
            &post,
            "/sinks/audit/letters",
            form,
            "",
            400,
            "act has to be retry or drop",
        ),
        (
            &post,
            "/sinks/audit/letters",
            form,
            "act=dorp",
            400,
            "act has to be retry or drop",
        ),
        (
            &get,
            "/sinks/audit/letters",
            form,
            "",
            400,
            "act has to be retry or drop",
        ),
        (&post, "/replay", form, "", 400, "that is no plan"),
        (&post, "/replay", form, "plan=%7B", 400, "that is no plan"),
        (&post, "/replays/none", form, "running=1", 400, "running is"),
        (
            &post,
            "/close/backfill",
            form,
            "act=",
            400,
            "act has to be count or begin",
        ),
        (
            &post,
            "/close/backfill/set",
            form,
            "running=",
            400,
            "running is missing",
        ),
        (
            &get,
            "/events?before=x",
            form,
            "",
            400,
            "before is &#34;x&#34;, and has to be a whole number",
        ),
        (
            &get,
            "/events?lead=a&lead=b",
            form,
            "",
            400,
            "lead is given more than once",
        ),
        (&get, "/events/more?scanned=-1", form, "", 400, "scanned is"),
        (
            &get,
            "/events?leed=lead_1",
            form,
            "",
            400,
            "there is no field &#34;leed&#34; here: did you mean &#34;lead&#34;?",
        ),
        (
            &get,
            "/sinks/audit/letters?act=drop&leed=lead_1",
            form,
            "",
            400,
            "no field &#34;leed&#34;",
        ),
        (
            &get,
            "/sinks/audit/letters?act=drop&quarantined=maybe",
            form,
            "",
            400,
            "has to be only or without",
        ),
        (&get, "/events?live=maybe", form, "", 400, "live is"),
        (
            &post,
            "/sinks/audit/letters",
            form,
            "act=drop&letters=1&upto=2024-02-15T10%3A00%3A00Z&leed=lead_1",
            400,
            "no field &#34;leed&#34;",
        ),
        (
            &post,
            "/sinks/audit/pause?for=1h",
            form,
            "paused=true",
            400,
            "no field &#34;for&#34;",
        ),
        (
            &post,
            "/configuration/reload",
            form,
            "dry_run=true",
            400,
            "no field &#34;dry_run&#34;",
        ),
        (&get, "/events/%ff", form, "", 400, "UTF-8"),
        (&get, "/jobs/x", form, "", 404, "is not known any more"),
        (
            &get,
            "/try?of=sink&name=audit&kind=template",
            form,
            "",
            404,
            "has no template",
        ),
        (&get, "/nothing", form, "", 404, "there is nothing here"),
        (&get, "/sinks/audit/pause", form, "", 405, "is no page itself"),
    ] {
        let request = browser()
            .request(method.clone(), format!("{}{path}", daemon.admin))
            .header("cookie", &cookie)
            .header("origin", &daemon.admin)
            .header("accept", "text/html")
            .header("content-type", kind);
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {path} {body}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(says), "{method} {path} {body}: {text}");
        assert!(text.contains("<nav"), "it is a page of ours: {method} {path}: {text}");
        for foreign in FOREIGN {
            assert!(!text.contains(foreign), "{method} {path} {body}: {text}");
        }
    }
    assert_eq!(daemon.sink("audit")["paused"], false);
}

#[tokio::test]
async fn a_button_whose_session_is_over_leads_to_the_sign_in_page_and_does_nothing() {
    let daemon = Daemon::start(&format!("{TOKENS}{SINK}")).await;
    let request = browser()
        .post(format!("{}/sinks/audit/pause", daemon.admin))
        .header("origin", &daemon.admin)
        .header("accept", "text/html,application/xhtml+xml")
        .header("content-type", "application/x-www-form-urlencoded");
    let answer = request.body("paused=true").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let text = answer.text().await.unwrap();
    assert!(
        text.contains("nothing was done") && text.contains("name=\"token\""),
        "{text}"
    );
    assert!(text.contains("value=\"/sinks\""), "it goes on where that was: {text}");
    assert_eq!(daemon.sink("audit")["paused"], false);
    // A page elsewhere is told what it is: whether there is a session is not known there.
    let origin = |of: &str| {
        browser()
            .post(format!("{}/sinks/audit/pause", daemon.admin))
            .header("origin", of)
            .header("accept", "text/html,application/xhtml+xml")
            .header("content-type", "application/x-www-form-urlencoded")
    };
    for request in [
        origin("https://evil.example"),
        origin("null").header("sec-fetch-site", "cross-site"),
    ] {
        let answer = request.body("paused=true").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let text = answer.text().await.unwrap();
        assert!(
            text.contains("another site&#39;s page, and nothing was done") && !text.contains("is over"),
            "{text}"
        );
    }
    assert_eq!(daemon.sink("audit")["paused"], false);
    // Before that page too nothing is said in other words.
    for (path, kind, body) in [
        ("/sign-in", "text/plain", "token=x"),
        ("/sign-in", "application/x-www-form-urlencoded", ""),
        ("/sign-in", "application/x-www-form-urlencoded", "token=a&token=b"),
    ] {
        let request = browser()
            .post(format!("{}{path}", daemon.admin))
            .header("origin", &daemon.admin)
            .header("content-type", kind);
        let answer = request.body(body).send().await.unwrap();
        assert!(answer.status().is_client_error());
        let text = answer.text().await.unwrap();
        assert!(text.contains("name=\"token\""), "{text}");
        for foreign in FOREIGN {
            assert!(!text.contains(foreign), "{text}");
        }
    }
    let odd = daemon
        .admin_request(Method::GET, "/sign-in?next=/a&next=/b")
        .send()
        .await
        .unwrap();
    assert_eq!(odd.status(), StatusCode::OK);
}
