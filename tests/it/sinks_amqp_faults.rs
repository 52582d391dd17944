//! What goes wrong with a RabbitMQ that is there: what is wrong with one event costs that event, and what is wrong with the server is
//! said, with what to do, and costs nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Daemon, body, until};
use crate::rabbit_server::Server;
use crate::sinks_amqp::{EAGER, Got, assert_all, in_order, taken, to_queue};

/// Nothing has become a dead letter, and no event's attempt was counted.
fn assert_costs_nothing(daemon: &Daemon, sink: &str) {
    let shown = daemon.sink(sink);
    let count = |key: &str| shown[key].as_u64();
    assert_eq!((count("dead"), count("retrying")), (Some(0), Some(0)), "{shown}");
}

/// An event whose body has this many bytes more.
fn large(id: u64, len: usize) -> String {
    body(id).replace("\\u00e9", &"x".repeat(len))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_server_is_said_and_costs_no_event_anything() {
    let Some(server) = Server::start("", &[]).await else {
        return;
    };
    server.vhost("crm").await;
    let sink = |user: &str| {
        format!(
            "[[sinks]]\nname = \"rabbit\"\ntype = \"amqp\"\nurl = \"amqp://127.0.0.1:{}/crm\"\nusername = \"{user}\"\n\
             password = \"hunter2-one\"\nexchange = \"close\"\nrouting_key = \"all\"\n{EAGER}",
            server.port
        )
    };
    let daemon = Daemon::start(&sink("writer")).await;
    let mut stored = 0;
    let mut more = async || {
        daemon.store(stored + 1..=stored + 20).await;
        stored += 20;
    };
    more().await;
    daemon.says("rabbit", "lets nobody in with this user").await;
    let probed = daemon.run_command(&["check", "--probe"]);
    assert_eq!(probed.status.code(), Some(1));
    server.user("%2F", "writer", "hunter2-one", "").await;
    daemon.says("rabbit", "may not enter vhost \"crm\"").await;
    server.user("crm", "writer", "hunter2-one", "^$").await;
    daemon.says("rabbit", "may not write to exchange \"close\"").await;
    server.user("crm", "writer", "hunter2-one", "^close$").await;
    daemon.says("rabbit", "there is no exchange \"close\"").await;
    let probed = daemon.run_command(&["check", "--probe"]);
    let said = String::from_utf8_lossy(&probed.stdout).into_owned() + &String::from_utf8_lossy(&probed.stderr);
    assert!(said.contains("declare it, or see exchange"), "{said}");
    server.exchange("crm", "close", "direct").await;
    daemon.says("rabbit", "no queue is bound to exchange \"close\"").await;
    assert_costs_nothing(&daemon, "rabbit");
    server.queue("crm", "all", json!({})).await;
    server.bind("crm", "close", "all", "all").await;
    daemon.done("rabbit").await;
    // Somebody who was let in is taken away, and the whole vhost.
    server.delete("users/writer").await;
    more().await;
    daemon.says("rabbit", "lets nobody in").await;
    server.user("crm", "writer", "hunter2-one", "^close$").await;
    daemon.done("rabbit").await;
    let got = taken(&server, "crm", "all").await;
    assert_all(&got, &in_order(1..=40));
    server.delete("vhosts/crm").await;
    more().await;
    daemon.says("rabbit", "there is no vhost \"crm\"").await;
    assert_costs_nothing(&daemon, "rabbit");
    server.vhost("crm").await;
    server.exchange("crm", "close", "direct").await;
    server.queue("crm", "all", json!({})).await;
    server.bind("crm", "close", "all", "all").await;
    server.user("crm", "writer", "hunter2-one", "^close$").await;
    daemon.done("rabbit").await;
    let got = taken(&server, "crm", "all").await;
    assert_all(&got, &in_order(41..=60));
    let mut said = daemon.stderr();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sinks", "list", "--json"],
        &["check", "--probe", "--json"],
        &["render", "rabbit", "--id", "ev_1", "--json"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said += &daemon.metrics().await;
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_or_blocked_or_stands_still_is_waited_for() {
    let Some(mut server) = Server::start("", &[]).await else {
        return;
    };
    server
        .queue(
            "%2F",
            "all",
            json!({ "x-max-length": 30, "x-overflow": "reject-publish" }),
        )
        .await;
    let daemon = Daemon::start(&to_queue(&server.url(""))).await;
    daemon.store(1..=100).await;
    daemon.says("rabbit", "is full (overflow reject-publish)").await;
    let mut copies: BTreeMap<u64, usize> = BTreeMap::new();
    let mut take = async |server: &Server| {
        for message in taken(server, "%2F", "all").await {
            assert_eq!(message.body, body(message.seq()));
            *copies.entry(message.seq()).or_default() += 1;
        }
        copies.clone()
    };
    until("all have come", async || take(&server).await.len() == 100).await;
    daemon.done("rabbit").await;
    assert_eq!(daemon.sink("rabbit")["dead"], 0);
    server.delete("queues/%2F/all").await;
    server.queue("%2F", "all", json!({})).await;
    // Alarms. What a server that is short of something was sent before it said so, it takes later; nothing is added to that.
    let mut next = 101;
    for (what, said) in [("memory", "low on memory"), ("disk", "low on disk")] {
        server.alarm(what, true);
        daemon.store(next..=next + 19).await;
        daemon.says("rabbit", said).await;
        daemon.store(next + 20..=next + 25).await;
        let tries = daemon.stderr().matches(said).count();
        until("it was tried again", async || {
            daemon.last_error("rabbit").contains(said) && daemon.stderr().matches(said).count() >= tries
        })
        .await;
        assert_costs_nothing(&daemon, "rabbit");
        server.alarm(what, false);
        daemon.done("rabbit").await;
        next += 26;
    }
    let all = take(&server).await;
    assert_eq!(all.len() as u64, next - 1);
    assert!(all.values().all(|copies| *copies <= 2), "{all:?}");
    // It stands still.
    server.freeze();
    daemon.store(next..=next + 9).await;
    daemon.says("rabbit", "did not answer in time").await;
    server.thaw();
    daemon.done("rabbit").await;
    // And it is gone for a while.
    server.kill();
    daemon.store(next + 10..=next + 19).await;
    daemon.says("rabbit", "can't be reached").await;
    server.run().await;
    daemon.done("rabbit").await;
    assert_eq!(take(&server).await.len() as u64, next + 19);
    assert_costs_nothing(&daemon, "rabbit");
}

/// The dead letters of a sink: the id and the reason of each.
fn letters(daemon: &Daemon) -> Vec<(String, String)> {
    let text = |letter: &Value, key: &str| letter[key].as_str().unwrap_or_default().to_owned();
    daemon
        .lines(&["dead", "list"])
        .iter()
        .map(|letter| (text(letter, "id"), letter.to_string()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_in_five_hundred_costs_itself_and_no_other_comes_twice() {
    let Some(server) = Server::start("max_message_size = 20000\n", &[]).await else {
        return;
    };
    server.queue("%2F", "all", json!({})).await;
    let mut daemon = Daemon::new("");
    daemon.run().await;
    daemon.store(1..=299).await;
    let (status, answer) = daemon.send(large(300, 20_000)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    daemon.store(301..=500).await;
    // One batch, from the first event.
    daemon.configure(&to_queue(&server.url("")));
    assert!(daemon.reload().await);
    daemon.done("rabbit").await;
    let got = taken(&server, "%2F", "all").await;
    let seqs: Vec<u64> = got.iter().map(Got::seq).collect();
    let expected: Vec<u64> = (1..=500).filter(|seq| *seq != 300).collect();
    assert_eq!(seqs, expected, "each once, in order");
    let letters = letters(&daemon);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].1.contains("max_message_size"), "{letters:?}");
    // Larger ones that it takes do not disturb anybody.
    for id in 501..=520 {
        let (status, _) = daemon.send(large(id, id as usize * 30)).await.unwrap();
        assert_eq!(status, 200);
    }
    daemon.done("rabbit").await;
    assert_eq!(taken(&server, "%2F", "all").await.len(), 20);
    assert_eq!(daemon.sink("rabbit")["dead"], 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_goes_where_nobody_is_is_refused_and_the_others_go_on() {
    let Some(server) = Server::start("", &[]).await else {
        return;
    };
    server.exchange("%2F", "close", "topic").await;
    for lead in [0, 1, 2, 3, 4, 6] {
        let queue = format!("lead_{lead}");
        server.queue("%2F", &queue, json!({})).await;
        server.bind("%2F", "close", &queue, &queue).await;
    }
    let config = format!(
        "[[sinks]]\nname = \"rabbit\"\ntype = \"amqp\"\nurl = \"{}\"\nexchange = \"close\"\nrouting_key = \"{{{{ lead_id }}}}\"\n{EAGER}",
        server.url("")
    );
    let mut daemon = Daemon::new("");
    daemon.run().await;
    daemon.store(1..=30).await;
    daemon.configure(&config);
    assert!(daemon.reload().await);
    daemon.done("rabbit").await;
    let dead = letters(&daemon);
    let ids: Vec<&str> = dead.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["ev_5", "ev_12", "ev_19", "ev_26"], "{dead:?}");
    assert!(dead.iter().all(|(_, said)| said.contains("no queue takes")), "{dead:?}");
    let mut all = Vec::new();
    for lead in [0, 1, 2, 3, 4, 6] {
        all.extend(taken(&server, "%2F", &format!("lead_{lead}")).await);
    }
    let mut seqs: Vec<u64> = all.iter().map(Got::seq).collect();
    seqs.sort_unstable();
    let expected: Vec<u64> = (1..=30).filter(|seq| seq % 7 != 5).collect();
    assert_eq!(seqs, expected, "each once");
    // Once a queue is bound, they go there after all.
    server.queue("%2F", "lead_5", json!({})).await;
    server.bind("%2F", "close", "lead_5", "lead_5").await;
    daemon.ok(&["dead", "retry", "--all"]);
    until("the letters are delivered", async || daemon.sink("rabbit")["dead"] == 0).await;
    assert_eq!(taken(&server, "%2F", "lead_5").await.len(), 4);

    // Where the user may not write to what the event has chosen, that event is found.
    server.user("%2F", "writer", "hunter2-one", ".*").await;
    let body = json!({ "exchange": "close", "write": "^lead_[0-5]$", "read": "" });
    server.put("topic-permissions/%2F/writer", body).await;
    daemon.configure(&config.replace("guest:guest", "writer:hunter2-one"));
    assert!(daemon.reload().await);
    daemon.store(31..=44).await;
    daemon.done("rabbit").await;
    let dead = letters(&daemon);
    let ids: Vec<&str> = dead.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["ev_34", "ev_41"], "{dead:?}");
    assert!(
        dead.iter().all(|(_, said)| said.contains("topic permissions")),
        "{dead:?}"
    );
    daemon.stop().await;
}
