//! What every sink can be told beside its type: `delay`, `dead_to`, `settle`.

use crate::harness::{Daemon, Receiver, ids_in, lines_in, until};

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
    for said in [daemon.ok(&["sinks", "list"]), daemon.ok(&["status"])] {
        let by = "file: waits by its delay: the next event is due at";
        assert!(said.contains(by) && !said.contains("file waits"), "{said}");
    }
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

/// Contract 6: what is given up goes to `dead_to`, each once at a sink that can do so, however often the daemon is killed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_refuses_is_in_the_other_sinks_file_once_however_often_the_daemon_is_killed() {
    let receiver = Receiver::start(422).await;
    let http = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         dead_to = \"file\"\nbreaker = {{ refusals = 1000000 }}\n",
        receiver.url
    );
    let mut daemon = Daemon::start(&[http, file("")].concat()).await;
    for round in 0..5 {
        daemon.store(round * 40 + 1..=round * 40 + 40).await;
        if round > 0 {
            let some = round as usize * 20;
            until("some are there", async || {
                ids_in(&daemon.path("events.jsonl")).len() > some
            })
            .await;
        }
        daemon.kill();
        daemon.run().await;
    }
    until("the first is done", async || daemon.sink("crm")["cursor"] == 200).await;
    until("the second is done", async || {
        let sink = daemon.sink("file");
        sink["given"] == 0 && sink["lag_events"] == 0
    })
    .await;
    let mut ids = ids_in(&daemon.path("events.jsonl"));
    ids.sort_unstable();
    let mut wanted: Vec<String> = (1..=200).map(|id| format!("ev_{id}")).collect();
    wanted.sort_unstable();
    assert_eq!(ids, wanted);
    for line in lines_in(&daemon.path("events.jsonl")) {
        assert_eq!(line["dead"]["sink"], "crm", "{line}");
        assert!(line["dead"]["reason"].as_str().unwrap().contains("422"), "{line}");
        assert!(line["dead"]["attempts"].as_u64().unwrap() >= 1, "{line}");
    }
    let shown = &daemon.lines(&["events", "show", "ev_7"])[0];
    let states = (&shown["sinks"]["crm"]["state"], &shown["sinks"]["file"]["state"]);
    assert_eq!(states, (&"diverted".into(), &"delivered".into()));
    assert_eq!(daemon.sink("crm")["dead"], 0);
    assert!(daemon.lines(&["dead", "list"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn why_it_was_given_up_goes_along_to_http_and_exec() {
    let refusing = Receiver::start(422).await;
    let http = |name: &str, url: &str, to: &str| {
        format!(
            "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\n{to}\n"
        )
    };
    let exec = "[[sinks]]\nname = \"last\"\ntype = \"exec\"\nstart = \"beginning\"\n\
                command = [\"/bin/sh\", \"-c\", \"echo $CLOSEHOOK_DEAD_SINK $CLOSEHOOK_DEAD_ATTEMPTS $CLOSEHOOK_DEAD_REASON >> DIR/out\"]\n";
    let taking = Receiver::start(200).await;
    let config = [
        http("crm", &refusing.url, "dead_to = \"second\""),
        http("second", &taking.url, ""),
        http("other", &refusing.url, "dead_to = \"last\""),
        exec.to_owned(),
    ];
    let daemon = Daemon::start(&config.concat()).await;
    daemon.store(1..=2).await;
    let out = daemon.path("out");
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    until("both came to the end", async || {
        said().lines().count() == 2 && taking.count() == 2
    })
    .await;
    let is_told = |line: &str| line.starts_with("other 1 ") && line.contains("422");
    assert!(said().lines().all(is_told), "{}", said());
    for (headers, _) in &*taking.received.lock().unwrap() {
        let header = |name: &str| headers[name].to_str().unwrap();
        assert!(header("closehook-dead-reason").contains("422"), "{headers:?}");
        let rest = (header("closehook-dead-sink"), header("closehook-dead-attempts"));
        assert_eq!(rest, ("crm", "1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_object_that_goes_on_changing_the_file_has_the_newest_event_once() {
    let mut daemon = Daemon::start(&file("settle = \"1h\"")).await;
    let send = async |daemon: &Daemon, id: u64, object: &str| {
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15T12:00:00","object_type":"lead","action":"updated"{object}}}}}"#
        );
        assert_eq!(daemon.send(body).await.unwrap().1["status"], "stored");
    };
    for id in 1..=10 {
        send(&daemon, id, r#","object_id":"lead_1""#).await;
    }
    send(&daemon, 11, "").await;
    let path = daemon.path("events.jsonl");
    until("what is of no object is there", async || ids_in(&path) == ["ev_11"]).await;
    until("the others are superseded", async || {
        daemon.sink("file")["superseded"] == 9
    })
    .await;
    assert!(
        daemon
            .ok(&["sinks", "list"])
            .contains("file: waits by its settle: 1 object(s)")
    );
    daemon.kill();
    daemon.run().await;
    until("it waits on", async || daemon.sink("file")["waits_by"].is_string()).await;
    send(&daemon, 12, r#","object_id":"lead_1""#).await;
    let state = |daemon: &Daemon, id: &str| {
        let shown = &daemon.lines(&["events", "show", id])[0];
        shown["sinks"]["file"]["state"].as_str().unwrap().to_owned()
    };
    until("the newest before is superseded", async || {
        state(&daemon, "ev_10") == "superseded"
    })
    .await;
    assert_eq!(state(&daemon, "ev_12"), "waiting");
    daemon.configure(&file("settle = \"20ms\""));
    assert!(daemon.reload().await);
    until("it has settled", async || state(&daemon, "ev_12") == "delivered").await;
    assert_eq!(ids_in(&path), ["ev_11", "ev_12"]);
    assert_eq!(state(&daemon, "ev_3"), "superseded");
}
