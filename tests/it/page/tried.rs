//! Trying before it is deployed.

use super::browser::Browser;
use super::with_events;
use crate::harness::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_checked_as_it_is_typed_and_run_over_stored_events() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/try").await;
    browser.write("textarea", "{\n  \"type\": \"equls\"\n}").await;
    // Nobody has pressed anything.
    browser.says("Line 2").await;
    browser.says("equls").await;
    assert!(
        browser.is_there(".fault-list pre").await,
        "the line is shown with what is wrong in it"
    );
    browser.picture("try-fault").await;
    let filter = r#"{"type":"field_accessor","field":"lead_id","filter":{"type":"equals","value":"lead_1"}}"#;
    browser.write("textarea", filter).await;
    browser.says("Nothing is wrong with it").await;
    browser.click("Run").await;
    browser.says("5 of 30 events match").await;
    browser.says("filter = ").await;
    let trees = browser
        .run("return [...document.querySelectorAll('.tried')].map((one) => one.textContent)")
        .await;
    let trees = trees.as_array().unwrap();
    assert_eq!(trees.len(), 30);
    assert!(trees[0].as_str().unwrap().contains("this decided"), "{}", trees[0]);
    browser.click("does not").await;
    browser.picture("try-filter").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_a_template_and_a_transform_show_exactly_what_would_be_sent() {
    let (daemon, refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    let sent = async || {
        browser
            .run("for (const one of document.querySelectorAll('details')) one.open = true")
            .await;
        browser.text().await
    };
    // One that is deployed is what one begins with.
    browser.go(&daemon, "/try").await;
    browser.click("first-lead").await;
    browser.says("Begin with").await;
    let text = browser.run("return document.querySelector('textarea').value").await;
    let text = text.as_str().unwrap();
    assert!(
        text.starts_with("[[rules]]") && text.contains("first-lead") && !text.contains("all-leads"),
        "{text}"
    );
    browser.click("Run").await;
    browser.says("5 of 30 events match").await;

    browser.go(&daemon, "/try").await;
    let rule = "[[rules]]\nname = \"mine\"\nevents = [\"lead.updated\"]\nsinks = [\"crm\"]\ntemplate = \"{{ event.lead_id }} of mine\"\n";
    browser.click_on("input[value=rules]").await;
    browser.write("textarea", rule).await;
    browser.says("Nothing is wrong with it").await;
    browser.click("Run").await;
    browser.says("30 of 30 events match").await;
    let text = sent().await;
    assert!(text.contains("lead_2 of mine"), "{text}");
    browser.picture("try-rule").await;

    browser.go(&daemon, "/try").await;
    browser.click_on("input[value=template]").await;
    browser
        .find("select[name=sink]")
        .await
        .select_by_value("crm")
        .await
        .unwrap();
    browser.write("textarea", "{{ event.id }} <b>").await;
    browser.click("Run").await;
    browser.says("Run over 30 events").await;
    let text = sent().await;
    assert!(text.contains("ev_30 <b>"), "{text}");

    browser.go(&daemon, "/try").await;
    browser.click_on("input[value=transform]").await;
    browser
        .find("select[name=sink]")
        .await
        .select_by_value("crm")
        .await
        .unwrap();
    browser
        .write(
            "textarea",
            "export default function (event) { return event.lead_id === 'lead_1' ? { mine: event.id } : null }",
        )
        .await;
    browser.click("Run").await;
    browser.says("25 skipped").await;
    let text = sent().await;
    assert!(text.contains("\"mine\"") && text.contains("ev_29"), "{text}");
    browser.picture("try-transform").await;
    assert_eq!(refusing.count(), 0, "nothing was sent");
    browser.close().await;
}

const MAKERS: &str = r#"
[[sinks]]
name = "notes"
type = "file"
path = "DIR/notes.txt"
start = "beginning"
template = "{{ event.lead_id }} \u2014 <noted>"

[[sinks]]
name = "plain"
type = "file"
path = "DIR/plain.jsonl"
start = "beginning"

[[rules]]
name = "leads"
events = ["lead.*"]
sinks = ["notes", "plain"]
filter = '{"type":"field_accessor","field":"lead_id","filter":{"type":"equals","value":"lead_1"}}'

[[rules]]
name = "made"
events = ["lead.*"]
sinks = ["plain"]
transform = "export default function (event) { return { only: event.id } }"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_is_what_a_try_begins_with() {
    let daemon = Daemon::start(MAKERS).await;
    daemon.store(1..=8).await;
    daemon.done("plain").await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    let text = async || {
        let text = browser
            .run("return document.querySelector('textarea[name=text]').value")
            .await;
        text.as_str().unwrap().to_owned()
    };
    // From the sink.
    browser.go(&daemon, "/sinks/notes").await;
    browser.says("What it is sent is made by").await;
    browser.picture("sink-made").await;
    browser.click("the template of sink notes").await;
    browser.says("Try before you deploy").await;
    assert_eq!(text().await, "{{ event.lead_id }} \u{2014} <noted>");
    let sink = browser
        .run("return document.querySelector('select[name=sink]').value")
        .await;
    assert_eq!(sink, "notes");
    browser.click("Run").await;
    browser.says("Run over 8 events").await;
    browser.says("template = ").await;
    browser.click("Copy").await;
    browser.says("Copied").await;
    // From a rule: its transform, and its filter.
    browser.go(&daemon, "/sinks/plain").await;
    browser.click("the transform of rule made").await;
    browser.says("Try before you deploy").await;
    assert!(text().await.contains("only: event.id"));
    browser.click("Run").await;
    browser.says("Run over 8 events, 8 would be sent").await;
    browser.go(&daemon, "/try").await;
    browser.click("the filter of rule leads").await;
    browser.says("Try before you deploy").await;
    assert!(text().await.contains("lead_1"));
    browser.click("Run").await;
    browser.says("2 of 8 events match").await;
    browser.go(&daemon, "/events/ev_8").await;
    browser.click("Try a change of it").await;
    browser.says("Begin with").await;
    assert!(text().await.starts_with("[[rules]]"));
    browser.close().await;
}
