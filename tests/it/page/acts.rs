//! What is done on the page: counted first, confirmed, watched, in somebody's name.

use super::browser::Browser;
use super::{config, with_events};
use crate::harness::{ids_in, until};

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_by_reason_and_retried_and_dropped_as_many_as_are_meant() {
    let (daemon, refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/sinks/crm").await;
    browser.says("422").await;
    assert!(browser.is_there("article.group").await);
    browser.picture("letters").await;
    // One lead's alone, of an id: the search says which, and the act takes it over.
    browser.go(&daemon, "/sinks/crm?id=ev_8").await;
    browser.click("Drop …").await;
    browser.says("1 dead letter would be removed for good").await;
    browser.click("Drop 1 dead letter").await;
    browser.says("1 dead letter removed").await;
    assert_eq!(daemon.sink("crm")["dead"], 4);
    // Still refused: they stay, and why is said.
    browser.go(&daemon, "/sinks/crm").await;
    browser.click("Retry …").await;
    browser.says("4 dead letters would be delivered to crm again").await;
    browser.picture("confirm").await;
    browser.click("Retry 4 dead letters").await;
    browser.says("4 stay dead").await;
    browser.says("422").await;
    refusing.answer_with(200);
    browser.go(&daemon, "/sinks/crm").await;
    browser.click("Retry …").await;
    browser.click("Retry 4 dead letters").await;
    browser.says("4 of 4 delivered").await;
    browser.picture("job").await;
    assert_eq!(
        (refusing.count(), &daemon.sink("crm")["dead"]),
        (4, &serde_json::json!(0))
    );
    browser.go(&daemon, "/acts").await;
    browser.says("Retried dead letters of crm").await;
    browser.says("Dropped dead letters of crm").await;
    browser.says("link").await;
    browser.picture("acts").await;
    assert!(daemon.stderr().contains("dead-drop"), "the log has it too");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_counted_then_confirmed_then_watched() {
    let (daemon, refusing) = with_events().await;
    refusing.answer_with(200);
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/events?lead=lead_2").await;
    browser.click("Replay these").await;
    // ev_2, ev_9, ev_16, ev_23, ev_30 go to the archive only.
    browser.says("5 deliveries would be sent").await;
    browser.picture("replay-counted").await;
    assert_eq!(
        ids_in(&daemon.path("out.jsonl")).len(),
        30,
        "nothing is sent before somebody says so"
    );
    browser.click("Send 5 deliveries").await;
    browser.says("done: 5 of 5 delivered").await;
    browser.picture("replay-done").await;
    let again = ids_in(&daemon.path("out.jsonl")).split_off(30);
    assert_eq!(again, ["ev_2", "ev_9", "ev_16", "ev_23", "ev_30"]);
    // One event, to a sink that no rule sends it to.
    browser.go(&daemon, "/events/ev_3").await;
    browser.click("Replay …").await;
    browser.says("1 delivery would be sent").await;
    browser
        .find("select[name=sink]")
        .await
        .select_by_value("crm")
        .await
        .unwrap();
    browser.click("Count again").await;
    browser.says("1 delivery would be sent").await;
    browser.click("Send 1 delivery").await;
    browser.says("done: 1 of 1 delivered").await;
    until("it is there", async || refusing.count() == 1).await;
    browser.go(&daemon, "/replays").await;
    browser.says("done").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_done_undone_and_kept_in_mind() {
    let (daemon, _refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    browser.go(&daemon, "/sinks/archive").await;
    browser.click("Pause").await;
    browser.says("It is paused").await;
    assert_eq!(daemon.sink("archive")["paused"], true);
    // In the middle of everything the page is loaded again.
    browser.client.refresh().await.unwrap();
    browser.says("Resume").await;
    browser.go(&daemon, "/acts").await;
    browser.says("Paused archive").await;
    browser.click("Undo").await;
    browser.says("It goes on").await;
    assert_eq!(daemon.sink("archive")["paused"], false);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_over_what_is_right_and_shows_faults_at_their_place() {
    let (daemon, refusing) = with_events().await;
    let Some(browser) = Browser::at(&daemon).await else {
        return;
    };
    let secret = "hunter2-hunter2-hunter2";
    let more = format!("\n[admin]\ntoken = \"{secret}\"\n");
    daemon.configure(
        &(config(&refusing.url)
            .replace("\"lead.*\"", "\"lead..*\"")
            .replace("sinks = [\"crm\"]", "sinks = [\"cmr\"]")
            + &more),
    );
    browser.go(&daemon, "/configuration").await;
    browser.click("Reload").await;
    browser.says("Nothing has changed").await;
    browser.says("rules[1].sinks").await;
    browser.says("cmr").await;
    for (width, scheme) in [(400, "dark"), (1280, "light")] {
        browser.looks(width, scheme).await;
        browser
            .suits_everybody(&format!("a reload's faults, {width} {scheme}"))
            .await;
    }
    browser.picture("reload-faults").await;
    let text = browser.text().await;
    assert!(
        text.contains("sinks = [\"crm\"]"),
        "what is in force is shown, not what the file says: {text}"
    );
    daemon.configure(&(config(&refusing.url).replace("first-lead", "the-first-lead") + &more));
    browser.click("Reload").await;
    browser.says("It is taken over").await;
    browser.says("Rules new: the-first-lead").await;
    browser.picture("reload").await;
    let text = browser.text().await;
    assert!(
        text.contains("name = \"the-first-lead\"") && text.contains("(secret)"),
        "{text}"
    );
    assert!(!browser.client.source().await.unwrap().contains(secret));
    browser.close().await;
}
