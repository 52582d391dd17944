//! Sinks that wait as they are configured: `delay`.

use crate::harness::{Daemon, Receiver, ids_in, until};

fn file(more: &str) -> String {
    format!("[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_sink_says_what_it_waits_for_goes_on_after_a_kill_and_is_no_trouble() {
    let mut daemon = Daemon::start(&file("delay = \"1h\"")).await;
    daemon.store(1..=20).await;
    until("it waits by its delay", async || {
        daemon.sink("file")["waits_by"].is_string()
    })
    .await;
    let sink = daemon.sink("file");
    assert_eq!(
        (sink["lag_events"].as_u64(), sink["waits_for"].is_null()),
        (Some(20), true),
        "{sink}"
    );
    let said = daemon.ok(&["sinks", "list"]);
    assert!(
        said.contains("file: waits by its delay: the next event is due at"),
        "{said}"
    );
    let shown = &daemon.lines(&["events", "show", "ev_3"])[0];
    assert_eq!(shown["sinks"]["file"]["state"], "waiting");
    assert!(ids_in(&daemon.path("events.jsonl")).is_empty());
    daemon.ok(&["replay", "--sink", "file", "--id", "ev_3"]);
    assert_eq!(
        ids_in(&daemon.path("events.jsonl")),
        ["ev_3"],
        "a replay waits for nothing"
    );
    daemon.kill();
    daemon.configure(&file("delay = \"50ms\""));
    daemon.run().await;
    until("all are there", async || daemon.sink("file")["cursor"] == 20).await;
    let ids = ids_in(&daemon.path("events.jsonl"));
    assert_eq!(ids.len(), 21, "each once, and the replayed one once more");
    assert!(daemon.sink("file")["waits_by"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_holds_nothing_up_at_another_sink_and_a_reload_may_end_it() {
    let receiver = Receiver::start(200).await;
    let http = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n",
        receiver.url
    );
    let daemon = Daemon::start(&[file("delay = \"1h\""), http.clone()].concat()).await;
    daemon.store(1..=5).await;
    until("the other one has all", async || receiver.count() == 5).await;
    until("this one waits", async || daemon.sink("file")["waits_by"].is_string()).await;
    daemon.configure(&[file(""), http].concat());
    assert!(daemon.reload().await);
    until("it waits no longer", async || daemon.sink("file")["cursor"] == 5).await;
    assert_eq!(ids_in(&daemon.path("events.jsonl")).len(), 5);
}
