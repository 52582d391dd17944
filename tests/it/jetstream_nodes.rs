//! Nodes that share a log on servers of NATS, as people run them: started without servers, asked on any of them, and with one certificate.

use serde_json::Value;

use crate::harness::{Daemon, body, ids_in, until};
use crate::jetstream_cluster::{Cluster, Setup};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A node's configuration; `more` after the tables that every node has.
fn config(cluster: &Cluster, name: &str, more: &str) -> String {
    format!(
        "[log]\nengine = \"jetstream\"\n[log.jetstream]\nservers = {:?}\nmonitor = {:?}\nreplicas = {}\nsecret = \"{SECRET}\"\n\
         [node]\nname = \"{name}\"\n{more}",
        cluster.urls(),
        cluster.monitors(),
        cluster.nodes.len(),
    )
}

/// One server: what is tried here does not depend on how many there are.
async fn one_server() -> Option<Cluster> {
    let setup = Setup {
        servers: 1,
        ..Setup::default()
    };
    Cluster::start_with(setup).await
}

fn readiness(daemon: &Daemon) -> (bool, String) {
    let status = daemon.status();
    let because = status["not_ready_because"].as_str().unwrap_or_default().to_owned();
    (status["ready"].as_bool().unwrap(), because)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_servers_starts_says_what_it_waits_for_and_heals() {
    let Some(mut cluster) = one_server().await else { return };
    let sink = "[[sinks]]\nname = \"out\"\ntype = \"file\"\npath = \"DIR/out\"\nstart = \"beginning\"\nnode = \"a\"\n";
    let mut node = Daemon::new(&config(&cluster, "a", sink));
    node.ok(&["check", "--create"]);
    cluster.kill(0);
    node.run().await;

    // Senders are told to come again: by whatever key, for those of others may not be known yet.
    let answered = node.client.post(&node.url).body("{}").send().await.unwrap();
    assert_eq!(answered.status(), 401, "that is no delivery of anybody's");
    let other = closehook::ingress::verify::Key::from_hex(None, &"ab".repeat(32)).unwrap();
    for key in [None, Some(&other)] {
        let sent = match key {
            None => node.send(body(1)).await,
            Some(key) => node.send_signed(key, body(1)).await,
        };
        assert_eq!(sent.unwrap().0, 503);
    }
    let headers = closehook::ingress::verify::Key::from_hex(None, crate::harness::KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), body(1).as_bytes());
    let refused = node
        .client
        .post(&node.url)
        .header("close-sig-timestamp", headers.timestamp)
        .header("close-sig-hash", headers.hash)
        .body(body(1))
        .send()
        .await
        .unwrap();
    assert!(refused.headers().contains_key("retry-after"));

    assert_eq!(node.ask_admin("/healthz").await.status(), 200);
    let ready = node.ask_admin("/readyz").await;
    assert_eq!(ready.status(), 503);
    let why = ready.text().await.unwrap();
    assert!(why.contains("the log's servers can't be used now"), "{why}");
    assert!((node.metric("closehook_ready").await - 0.0).abs() < f64::EPSILON);
    let (is_ready, because) = readiness(&node);
    assert!(!is_ready && because.contains("the log's servers"), "{because}");
    let shown = String::from_utf8(node.run_command(&["status"]).stdout).unwrap();
    assert!(
        shown.contains("NOT READY") && shown.contains("the log's servers can't be used now"),
        "{shown}"
    );
    let refused = node.fails(1, &["sinks", "pause", "out"]);
    assert!(refused.contains("the log's servers can't be used now"), "{refused}");
    let refused = node.fails(1, &["events", "list"]);
    assert!(refused.contains("the log's servers can't be used now"), "{refused}");
    assert!(node.ok(&["status", "--open"]).contains("http://"));
    let pid = node.pid();

    cluster.run(0).await;
    until("the node is ready", async || readiness(&node).0).await;
    assert_eq!(
        (node.ask_admin("/readyz").await.status().as_u16(), node.pid()),
        (200, pid)
    );
    node.store(1..=3).await;
    until("they are delivered", async || ids_in(&node.path("out")).len() == 3).await;

    // The same when they go while it runs.
    cluster.kill(0);
    until("the node is not ready", async || !readiness(&node).0).await;
    assert_eq!(node.send(body(4)).await.unwrap().0, 503);
    assert_eq!(node.ask_admin("/healthz").await.status(), 200);
    assert_eq!(node.ask_admin("/readyz").await.status(), 503);
    cluster.run(0).await;
    until("the node is ready again", async || readiness(&node).0).await;
    node.store(5..=5).await;
    until("it is delivered", async || {
        ids_in(&node.path("out")).contains(&"ev_5".to_owned())
    })
    .await;

    // Told to stop while it waits, it does.
    node.stop().await;
    cluster.kill(0);
    node.run().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_nodes_configuration_ends_its_start() {
    let setup = Setup {
        servers: 1,
        more: "authorization { timeout: 1 }".into(),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_with(setup).await else {
        return;
    };
    let mut refused = Daemon::new(
        &config(&cluster, "a", "").replace("secret =", "username = \"app\"\npassword = \"wrong\"\nsecret ="),
    );
    refused.spawn();
    assert!(!refused.ended().await.success());
    assert!(
        refused.stderr().contains("Authorization Violation"),
        "{}",
        refused.stderr()
    );

    let mut missing = Daemon::new(&config(&cluster, "a", ""));
    missing.spawn();
    assert!(!missing.ended().await.success());
    assert!(
        missing.stderr().contains("`closehook check --create`"),
        "{}",
        missing.stderr()
    );

    let mut first = Daemon::new(&config(&cluster, "a", ""));
    first.ok(&["check", "--create"]);
    first.run().await;
    first.stop().await;
    let weaker = serde_json::json!({ "name": "closehook", "subjects": ["closehook.ev.>", "closehook.er.>"], "discard": "old",
        "storage": "file", "retention": "limits", "num_replicas": 1, "max_msgs_per_subject": 1, "allow_direct": true });
    let changed: Option<Value> = cluster.try_api(0, "STREAM.UPDATE.closehook", &weaker).await;
    assert!(changed.is_some());
    first.spawn();
    assert!(!first.ended().await.success());
    assert!(first.stderr().contains("set discard = new"), "{}", first.stderr());
}

/// What acknowledges nothing now need not be seen to sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_while_one_of_three_servers_is_gone() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let mut node = Daemon::new(&config(&cluster, "a", ""));
    node.ok(&["check", "--create"]);
    let gone = (cluster.leader("closehook").await + 1) % 3;
    cluster.kill(gone);
    until("the others have noticed", async || {
        let output = node.run_command(&["check", "--probe"]);
        String::from_utf8_lossy(&output.stdout).contains(&format!("n{gone} is not running"))
    })
    .await;
    node.run().await;
    node.store(1..=1).await;
    let status = node.status();
    let servers = status["stream"]["servers"].as_array().unwrap();
    let alive = |name: &str| servers.iter().find(|server| server["name"] == name).unwrap()["alive"].clone();
    assert!(
        alive(&format!("n{gone}")) == false && status["ready"] == true,
        "{status}"
    );
    let says = status["troubles"].to_string();
    assert!(says.contains(&format!("n{gone}")), "{says}");
    cluster.run(gone).await;
    until("it is back", async || {
        let status = node.status();
        status["well"] == true && status["stream"]["leader"].is_string()
    })
    .await;
}
