//! Trying before it is deployed.

use super::browser::Browser;
use super::with_events;

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
