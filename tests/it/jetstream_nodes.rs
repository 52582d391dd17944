//! Nodes that share a log on servers of NATS, as people run them: started without servers, asked on any of them, and with one certificate.

use fake_close::{Fake, Options, Settings};
use serde_json::Value;

use crate::acme::Pebble;
use crate::close::PUBLIC_URL;
use crate::harness::{Daemon, Receiver, body, ids_in, parsed, until};
use crate::jetstream_cluster::Cluster;

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
fn readiness(daemon: &Daemon) -> (bool, String) {
    let status = daemon.status();
    let because = status["not_ready_because"].as_str().unwrap_or_default().to_owned();
    (status["ready"].as_bool().unwrap(), because)
}

/// Without its servers a node knows nothing of what they keep.
fn what_is_not_known_is_refused(node: &Daemon) {
    for asked in [
        &["events", "list"][..],
        &["dead", "list"],
        &["dead", "reasons"],
        &["replay", "list"],
        &["sinks", "list"],
        &["sinks", "list", "--json"],
    ] {
        let refused = node.fails(1, asked);
        assert!(
            refused.contains("the log's servers can't be used now"),
            "{asked:?}: {refused}"
        );
    }
    let status: serde_json::Value = serde_json::from_slice(&node.run_command(&["status", "--json"]).stdout).unwrap();
    let sink = &status["sinks"][0];
    assert!(
        sink["name"] == "out" && sink["cursor"].is_null() && sink["lag_events"].is_null(),
        "{sink}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_servers_starts_says_what_it_waits_for_and_heals() {
    let Some(mut cluster) = Cluster::start_one().await else {
        return;
    };
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
    what_is_not_known_is_refused(&node);
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
    until("the sink is driven nowhere, is listed, and says why", async || {
        let sink = node.sink("out");
        // It may not have come to save its position.
        let of = |key: &str| sink[key].as_u64().unwrap();
        assert_eq!(of("cursor") + of("lag_events"), 3, "{sink}");
        sink["waits_for"]
            .as_str()
            .is_some_and(|why| why.contains("no node drives it now"))
    })
    .await;
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
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut refused =
        Daemon::new(&config(&cluster, "a", "").replace("secret =", "user = \"app\"\npassword = \"wrong\"\nsecret ="));
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

/// Whoever asks whether a node is ready sends deliveries there, and whoever starts it is told where they are kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_receive_says_so_and_is_ready_for_no_delivery() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut node = Daemon::new(&config(&cluster, "a", "roles = [\"deliver\"]\n"));
    node.ok(&["check", "--create"]);
    node.run().await;
    let said = node.stderr();
    assert!(
        said.contains("events are kept in the stream closehook of JetStream (nats://127.0.0.1:"),
        "{said}"
    );
    assert!(
        said.contains("receives no deliveries") && !said.contains("for deliveries signed with"),
        "{said}"
    );
    let status = node.status();
    assert!(status["daemon"]["url"].is_null() && status["ready"] == true, "{status}");
    let shown = String::from_utf8(node.run_command(&["status"]).stdout).unwrap();
    assert!(
        shown.contains("receiving  nothing: this node's roles are without ingress"),
        "{shown}"
    );
    let ready = node.ask_admin("/readyz").await;
    assert_eq!(ready.status(), 503);
    let why = ready.text().await.unwrap();
    assert!(why.contains("receives no deliveries"), "{why}");
    node.stop().await;
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

/// A node's way to Close's side, and a key for deliveries of the test's own.
fn close(fake: &Fake) -> String {
    format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\n[close]\nbase_url = \"{}\"\napi_key = \"{}\"\nauto_resume = false\n[close.health]\ninterval = \"1s\"\n\
         [[close.subscriptions]]\nsignature_key_file = \"DIR/key\"\n",
        fake.base_url(),
        fake.api_key()
    )
}

fn hook(receiver: &Receiver) -> String {
    format!(
        "[[sinks]]\nname = \"hook\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\norder = \"strict\"\nstart = \"beginning\"\n\
         retry = {{ initial = \"50ms\", max_delay = \"200ms\" }}\nbreaker = {{ probe = \"200ms\" }}\n",
        receiver.url
    )
}

/// A node that does everything, and one that only receives, whose commands are for the other.
async fn two_nodes(cluster: &Cluster, more: &str) -> (Daemon, Daemon) {
    let mut all = Daemon::new(&config(cluster, "a", more));
    all.ok(&["check", "--create"]);
    all.run().await;
    let mut receives = Daemon::new(&config(cluster, "b", &format!("roles = [\"ingress\"]\n{more}")));
    receives.run().await;
    until("the one has everything", async || {
        let status = receives.status();
        let leases = status["nodes"][0]["leases"].as_array().map_or(0, Vec::len);
        status["nodes"][0]["name"] == "a" && leases == 2
    })
    .await;
    (all, receives)
}

/// Whether this node's status says that a node has Close's side.
fn has_close(daemon: &Daemon, name: &str) -> bool {
    let status = daemon.status();
    let mut nodes = status["nodes"].as_array().unwrap().iter();
    let leases = nodes
        .find(|node| node["name"] == name)
        .map(|node| node["leases"].clone());
    leases.is_some_and(|leases| leases.as_array().unwrap().contains(&Value::from("close")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_has_the_names_of_custom_fields_on_a_node_that_does_not_look_after_close() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let fake = Fake::start(Options {
        settings: Settings::calm(),
        ..Options::default()
    })
    .await
    .unwrap();
    let field = fake.world().add_custom_field(&["lead"], "Industry", "text").unwrap();
    let sink = "[[sinks]]\nname = \"named\"\ntype = \"file\"\npath = \"DIR/named.jsonl\"\nnode = \"b\"\nstart = \"beginning\"\n\
                template = \"{{ (data | named) | tojson }}\"\nretry = { initial = \"100ms\", max_delay = \"1s\" }\n";
    let of = |name: &str, roles: &str| config(&cluster, name, &format!("roles = {roles}\n{}{sink}", close(&fake)));
    let mut cares = Daemon::new(&of("a", "[\"ingress\", \"close\"]"));
    cares.ok(&["check", "--create"]);
    cares.run().await;
    let mut delivers = Daemon::new(&of("b", "[\"ingress\", \"deliver\"]"));
    delivers.run().await;
    until("the one looks after Close's side", async || has_close(&delivers, "a")).await;
    let event = serde_json::json!({ "event": { "id": "ev_1", "date_updated": "2024-02-15T12:48:23.395000",
        "object_type": "lead", "action": "updated", "lead_id": "lead_1", "data": { format!("custom.{field}"): "Paint" } },
        "subscription_id": "whsub_1" });
    assert_eq!(cares.send(event.to_string()).await.unwrap().0, 200);
    let lines = || std::fs::read_to_string(delivers.path("named.jsonl")).unwrap_or_default();
    // Beside the event that made the field, which Close has.
    let of_the_lead = || lines().lines().find(|line| line.contains("Paint")).map(parsed);
    until("it is delivered", async || of_the_lead().is_some()).await;
    assert_eq!(of_the_lead(), Some(serde_json::json!({ "Industry": "Paint" })));

    // What the one sees at Close the other can't say, and does not.
    until("Close is looked at", async || {
        cares.status()["close"]["checked_at"].is_string()
    })
    .await;
    for (daemon, says) in [(&cares, true), (&delivers, false)] {
        let close = daemon.status()["close"].clone();
        assert_eq!(close["looked_after_by"], "a");
        assert_eq!(close["checked_at"].is_string(), says, "{close}");
        let metrics = daemon.ask_admin("/metrics").await.text().await.unwrap();
        assert_eq!(metrics.contains("\nclosehook_close_reachable "), says, "{metrics}");
        let shown = daemon.run_command(&["status"]).stdout;
        assert!(String::from_utf8_lossy(&shown).contains("node a looks after it"));
    }
}

fn wrong(output: &std::process::Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_on_a_node_that_does_nothing_of_it_itself() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let fake = Fake::start(Options {
        settings: Settings::calm(),
        ..Options::default()
    })
    .await
    .unwrap();
    let receiver = Receiver::start(200).await;
    let (mut all, receives) = two_nodes(&cluster, &format!("{}{}", close(&fake), hook(&receiver))).await;

    // Sinks.
    assert_eq!(receives.sink("hook")["node"], "a");
    receives.ok(&["sinks", "pause", "hook"]);
    assert_eq!(all.sink("hook")["paused"], true);
    until("it is seen here, too", async || receives.sink("hook")["paused"] == true).await;
    receives.store(1..=3).await;
    receives.ok(&["sinks", "resume", "hook"]);
    until("they are delivered", async || receiver.count() == 3).await;
    let refused = receives.fails(1, &["sinks", "forget", "hook"]);
    assert!(refused.contains("in use"), "{refused}");

    // Replays.
    receives.ok(&["replay", "--since", "1h", "--sink", "hook", "--yes"]);
    until("they are delivered again", async || receiver.count() == 6).await;
    let replays = receives.lines(&["replay", "list"]);
    assert!(
        replays.len() == 1 && all.lines(&["replay", "list"]).len() == 1,
        "{replays:?}"
    );

    // Close's side: whichever node is asked, all know the new keys.
    let keys = |daemon: &Daemon| daemon.status()["keys"].as_u64().unwrap();
    receives.ok(&["subscription", "apply"]);
    assert_eq!(keys(&receives), 2, "at once where it was asked");
    until("the other knows it", async || keys(&all) == 2).await;
    let id = {
        let world = fake.world();
        let mut ids = world.subscriptions().map(|subscription| subscription.id.clone());
        ids.next().unwrap()
    };
    let signature_key = fake.world().subscription(&id).unwrap().signature_key.clone();
    let key = closehook::ingress::verify::Key::from_hex(Some(id.clone()), &signature_key).unwrap();
    for (daemon, event) in [(&receives, 11), (&all, 12)] {
        let signed = body(event).replace("whsub_1", &id);
        assert_eq!(daemon.send_signed(&key, signed).await.unwrap().0, 200);
    }
    receives.ok(&["subscription", "pause", &id]);
    let shown = receives.ok(&["subscription", "list", "--json"]);
    assert!(shown.contains("paused"), "{shown}");
    receives.ok(&["subscription", "resume", &id]);
    receives.ok(&["subscription", "apply", "--rotate"]);
    assert_eq!(keys(&receives), 3);
    assert_eq!(fake.world().subscriptions().count(), 2);
    receives.ok(&["backfill", "--since", "60d"]);

    // Forgotten is only what nobody drives, whatever this node's configuration says.
    receives.configure(&config(
        &cluster,
        "b",
        &format!("roles = [\"ingress\"]\n{}", close(&fake)),
    ));
    receives.ok(&["reload"]);
    let refused = receives.fails(1, &["sinks", "forget", "hook"]);
    assert!(refused.contains("node \"a\" drives it"), "{refused}");
    receives.configure(&config(
        &cluster,
        "b",
        &format!("roles = [\"ingress\"]\n{}{}", close(&fake), hook(&receiver)),
    ));
    receives.ok(&["reload"]);

    // Where no daemon runs, the command works on nothing that is a node's.
    let idle = Daemon::new(&config(&cluster, "c", &format!("{}{}", close(&fake), hook(&receiver))));
    let refused = idle.fails(1, &["backfill", "--since", "60d"]);
    assert!(refused.contains("node \"a\" carries the backfill out"), "{refused}");
    let refused = idle.fails(1, &["replay", "--id", "ev_1", "--sink", "hook", "--yes"]);
    assert!(refused.contains("nodes that run carry rp_"), "{refused}");

    // Where the node that drives it is gone, that is said, and nothing is left to be done later.
    all.kill();
    let refused = wrong(&receives.run_command(&["sinks", "pause", "hook"]));
    assert!(refused.contains("nothing was done"), "{refused}");
    let refused = wrong(&receives.run_command(&["subscription", "apply"]));
    assert!(refused.contains("nothing was done"), "{refused}");
    all.run().await;
    until("it drives it again", async || receives.sink("hook")["node"] == "a").await;
    assert_eq!(all.sink("hook")["paused"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_on_one_node_is_delivered_by_no_other() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let receiver = Receiver::start(500).await;
    let (all, receives) = two_nodes(&cluster, &hook(&receiver)).await;
    // The first is tried again and again, and what comes behind it waits in memory.
    receives.store(7..=9).await;
    until("it has them", async || {
        let sink = all.sink("hook");
        sink["retrying"].as_u64().unwrap() + sink["in_flight"].as_u64().unwrap() > 0
    })
    .await;
    let erased = receives.ok(&["log", "erase", "--lead", "lead_1", "--yes", "--json"]);
    let erased: Value = serde_json::from_str(erased.lines().last().unwrap()).unwrap();
    assert_eq!(
        (erased["erased"].as_array().unwrap().len(), &erased["left"]),
        (1, &serde_json::json!([])),
        "{erased}"
    );
    receiver.answer_with(200);
    until("what is left is delivered", async || {
        receiver.bodies().iter().any(|body| body.contains("ev_9"))
    })
    .await;
    let bodies = receiver.bodies();
    assert!(bodies.iter().all(|body| !body.contains("ev_8")), "{bodies:?}");
    assert_eq!(receiver.count(), 2);
}

/// The certificate that a TLS listener shows.
fn shown_certificate(address: &str) -> String {
    let shown = std::process::Command::new("openssl")
        .args(["s_client", "-connect", address, "-servername", "localhost"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let begin = shown.find("-----BEGIN CERTIFICATE-----");
    begin.map_or_else(String::new, |begin| {
        let end = shown.find("-----END CERTIFICATE-----").unwrap();
        shown[begin..end].to_owned()
    })
}

/// The directory looks at a node that has ordered nothing.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_orders_a_certificate_and_whichever_is_looked_at_proves_the_name() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let looked_at = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = looked_at.local_addr().unwrap();
    let mut orders = Daemon::new("");
    let Some(pebble) = Pebble::start(orders.dir.path(), address.port(), 3600).await else {
        return;
    };
    orders.configure(&config(&cluster, "a", &pebble.config("localhost")));
    orders.ok(&["check", "--create"]);
    orders.run().await;
    let has_lease = |daemon: &Daemon| {
        let nodes = daemon.status()["nodes"].clone();
        let leases = nodes[0]["leases"].as_array().cloned().unwrap_or_default();
        nodes[0]["name"] == "a" && leases.contains(&Value::from("certificate"))
    };
    until("the first node orders", async || has_lease(&orders)).await;
    let mut other = Daemon::new("");
    std::fs::copy(orders.path("pebble.pem"), other.path("pebble.pem")).unwrap();
    other.configure(&config(&cluster, "b", &pebble.config("localhost")));
    other.launch(other.with_socket("", looked_at.into())).await;

    let not_after = |daemon: &Daemon| daemon.status()["certificate"]["not_after"].clone();
    until("the first has it", async || not_after(&orders).is_string()).await;
    until("the other has taken it up", async || not_after(&other).is_string()).await;
    let ordered = |text: &str| format!("closehook_certificate_orders_total{{result=\"{text}\"}}");
    assert_eq!(orders.count(&ordered("ok")).await, 1);
    assert_eq!(
        (other.count(&ordered("ok")).await, other.count(&ordered("failed")).await),
        (0, 0)
    );
    let shown = shown_certificate(&orders.address());
    assert!(!shown.is_empty() && shown == shown_certificate(&address.to_string()));
    other.store(1..=1).await;

    // Neither account nor key can be read in the bucket.
    let kept = cluster
        .api(
            0,
            "STREAM.INFO.KV_closehook_state",
            &serde_json::json!({ "subjects_filter": "$KV.closehook_state.>" }),
        )
        .await;
    let subjects = kept["state"]["subjects"].to_string();
    assert!(subjects.contains("sealed"), "{subjects}");
    let stores = std::process::Command::new("grep")
        .args(["-rlaE", "BEGIN (EC )?PRIVATE KEY"])
        .arg(&cluster.nodes[0].store)
        .output()
        .unwrap();
    assert!(stores.stdout.is_empty(), "{}", String::from_utf8_lossy(&stores.stdout));
}
