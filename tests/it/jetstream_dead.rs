//! Dead letters on servers of NATS, with two nodes: whoever made them, all nodes know them and can act on them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Daemon, Receiver, until};
use crate::jetstream_cluster::{Cluster, Setup};

/// A node of the cluster's.
fn config(cluster: &Cluster, name: &str, sinks: &str) -> String {
    let servers = cluster.urls();
    format!(
        "[log]\nengine = \"jetstream\"\n[log.jetstream]\nservers = {servers:?}\nmonitor = {:?}\nreplicas = {}\n\
         secret = \"0123456789abcdef0123456789abcdef\"\n[node]\nname = \"{name}\"\n{sinks}",
        cluster.monitors(),
        servers.len()
    )
}

fn hook(receiver: &Receiver) -> String {
    format!(
        "[[sinks]]\nname = \"hook\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         retry = {{ initial = \"50ms\", max_delay = \"200ms\" }}\nbreaker = {{ probe = \"200ms\", refusals = 1000000 }}\n",
        receiver.url
    )
}

struct Case {
    cluster: Cluster,
    receiver: Receiver,
    nodes: Vec<Daemon>,
}

impl Case {
    async fn start(servers: usize) -> Option<Case> {
        let setup = Setup {
            servers,
            ..Setup::default()
        };
        let cluster = Cluster::start_with(setup).await?;
        let receiver = Receiver::start(400).await;
        let sink = hook(&receiver);
        let nodes: Vec<Daemon> = ["n0", "n1"]
            .into_iter()
            .map(|name| Daemon::new(&config(&cluster, name, &sink)))
            .collect();
        nodes[0].ok(&["check", "--create"]);
        let mut case = Case {
            cluster,
            receiver,
            nodes,
        };
        for node in &mut case.nodes {
            node.run().await;
        }
        Some(case)
    }

    /// The node that drives the sink, and the other one.
    async fn owner(&self) -> (usize, usize) {
        let mut owner = None;
        until("a node has the sink", async || {
            let node = self.nodes[0].sink("hook")["node"].clone();
            owner = ["n0", "n1"].iter().position(|name| node == *name);
            owner.is_some()
        })
        .await;
        let owner = owner.unwrap();
        (owner, 1 - owner)
    }

    /// In the stream of dead letters.
    async fn nothing_is_left_of(&self, id: &str) {
        let info = self.cluster.api(0, "STREAM.INFO.closehook_dead", &Value::Null).await;
        for seq in 1..=info["state"]["last_seq"].as_u64().unwrap() {
            let question = json!({ "seq": seq });
            let got = self
                .cluster
                .try_api(0, "STREAM.MSG.GET.closehook_dead", &question)
                .await;
            let data = got.and_then(|got| got["message"]["data"].as_str().map(str::to_owned));
            let data =
                data.and_then(|data| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).ok());
            let text = String::from_utf8_lossy(&data.unwrap_or_default()).into_owned();
            assert!(!text.contains(id), "{text}");
        }
    }

    async fn all_count(&self, dead: u64) {
        until(&format!("all nodes count {dead}"), async || {
            self.nodes.iter().all(|node| node.sink("hook")["dead"] == dead)
        })
        .await;
    }
}

fn listed(node: &Daemon) -> Vec<String> {
    let lines = node.lines(&["dead", "list"]);
    let ids = lines.iter().filter_map(|line| line["id"].as_str().map(str::to_owned));
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_shows_drops_and_retries_dead_letters_also_those_of_a_node_that_was_killed() {
    let Some(mut case) = Case::start(1).await else { return };
    let (owner, other) = case.owner().await;
    case.nodes[other].store(1..=6).await;
    case.all_count(6).await;
    let all: Vec<String> = (1..=6).map(|id| format!("ev_{id}")).collect();
    for node in &case.nodes {
        assert_eq!(listed(node), all);
        let shown = node.ok(&["events", "show", "ev_2"]);
        assert!(shown.contains("dead"), "{shown}");
        let shown = node.ok(&["dead", "show", "ev_2"]);
        assert!(shown.contains("ev_2") && shown.contains("400"), "{shown}");
    }

    // On the node that does not drive the sink.
    case.nodes[other].ok(&["dead", "drop", "--sink", "hook", "--id", "ev_1", "--yes"]);
    case.all_count(5).await;
    let tried = case.nodes[other].run_command(&["dead", "retry", "--sink", "hook", "--id", "ev_2"]);
    let said = String::from_utf8_lossy(&[tried.stdout, tried.stderr].concat()).into_owned();
    assert!(said.contains("still dead") && said.contains("400"), "{said}");
    case.receiver.answer_with(200);
    let said = case.nodes[other].ok(&["dead", "retry", "--sink", "hook", "--id", "ev_2"]);
    assert!(said.contains('1'), "{said}");
    assert_eq!(case.receiver.count(), 1, "{:?}", case.receiver.bodies());
    case.all_count(4).await;

    // Whoever made them dies.
    case.nodes[owner].kill();
    assert_eq!(listed(&case.nodes[other]), all[2..]);
    let name = ["n0", "n1"][other];
    until("the other has the sink", async || {
        case.nodes[other].sink("hook")["node"] == name
    })
    .await;
    assert_eq!(listed(&case.nodes[other]), all[2..]);
    case.nodes[other].ok(&["dead", "drop", "--sink", "hook", "--id", "ev_3", "--yes"]);
    case.nodes[other].ok(&["dead", "retry", "--sink", "hook", "--all"]);
    assert_eq!(listed(&case.nodes[other]), [""; 0]);
    assert_eq!(case.receiver.count(), 4, "{:?}", case.receiver.bodies());
    case.nodes[owner].run().await;
    case.all_count(0).await;
    let shown = case.nodes[owner].ok(&["events", "show", "ev_3"]);
    assert!(shown.contains("dead"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_dead_letters_that_is_full_makes_the_sink_wait_and_loses_nothing() {
    let Some(case) = Case::start(1).await else { return };
    let (owner, other) = case.owner().await;
    case.nodes[owner].store(1..=2).await;
    case.all_count(2).await;
    let info = case.cluster.api(0, "STREAM.INFO.closehook_dead", &Value::Null).await;
    let mut config = info["config"].clone();
    config["max_bytes"] = info["state"]["bytes"].clone();
    case.cluster.api(0, "STREAM.UPDATE.closehook_dead", &config).await;
    case.nodes[owner].store(3..=4).await;
    until("it says why it waits", async || {
        let sink = case.nodes[owner].sink("hook");
        let waits = sink["waits_for"].as_str().unwrap_or_default().to_owned();
        waits.contains("dead letter could not be stored") && waits.contains("max_bytes")
    })
    .await;
    assert_eq!(case.nodes[owner].sink("hook")["dead"], 2);
    // Nothing goes without a note of it, for which there is no room either.
    let drop = ["dead", "drop", "--sink", "hook", "--id", "ev_1", "--yes"];
    let refused = case.nodes[other].fails(1, &drop);
    assert!(refused.contains("max_bytes"), "{refused}");
    config["max_bytes"] = json!(-1);
    case.cluster.api(0, "STREAM.UPDATE.closehook_dead", &config).await;
    case.all_count(4).await;
    case.nodes[other].ok(&drop);
    case.all_count(3).await;
    assert_eq!(listed(&case.nodes[other]), ["ev_2", "ev_3", "ev_4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_dies_with_its_node_leaves_the_letter_until_it_was_delivered() {
    let Some(mut case) = Case::start(3).await else { return };
    let (owner, other) = case.owner().await;
    case.nodes[owner].store(1..=40).await;
    case.all_count(40).await;
    case.receiver.answer_with(200);
    let mut retry = case.nodes[other].command();
    let mut retry = retry
        .args(["dead", "retry", "--sink", "hook", "--all"])
        .spawn()
        .unwrap();
    until("it is in the middle", async || case.receiver.count() > 0).await;
    case.nodes[owner].kill();
    let _ = retry.wait();
    let name = ["n0", "n1"][other];
    until("the other has the sink", async || {
        case.nodes[other].sink("hook")["node"] == name
    })
    .await;
    let left = listed(&case.nodes[other]);
    let missing = |id: u64| {
        let is_left = left.contains(&format!("ev_{id}"));
        let quoted = format!("\"ev_{id}\"");
        !is_left && !case.receiver.bodies().iter().any(|body| body.contains(&quoted))
    };
    assert!(!(1..=40).any(missing), "gone before it was delivered: {left:?}");
    case.nodes[other].ok(&["dead", "retry", "--sink", "hook", "--all"]);
    assert_eq!(listed(&case.nodes[other]), [""; 0]);
    for id in 1..=40 {
        assert!(!missing(id), "ev_{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_on_any_node_leaves_nothing_of_a_dead_letter_in_the_stream() {
    let Some(case) = Case::start(1).await else { return };
    let (owner, other) = case.owner().await;
    case.nodes[owner].store(1..=3).await;
    case.all_count(3).await;
    case.nodes[other].ok(&["log", "erase", "--id", "ev_2", "--yes"]);
    case.all_count(2).await;
    assert_eq!(listed(&case.nodes[owner]), ["ev_1", "ev_3"]);
    case.nothing_is_left_of("ev_2").await;
    tokio::time::timeout(Duration::from_secs(60), case.all_count(2))
        .await
        .unwrap();
}

/// What is erased by a command, whichever node's machine it runs on: all of it, without anything that is said to be left.
fn erased_whole(node: &Daemon, id: &str) {
    let erased = node.lines(&["log", "erase", "--id", id, "--yes"]).remove(0);
    let counts = (
        erased["erased"].as_array().unwrap().len(),
        &erased["dead_letters_dropped"],
    );
    assert_eq!(counts, (1, &json!(1)), "{erased}");
    assert_eq!(erased["left"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_drop_erase_and_retry_dead_letters_where_no_daemon_runs_on_their_machine() {
    let Some(mut case) = Case::start(1).await else { return };
    case.nodes[0].store(1..=7).await;
    case.all_count(7).await;
    case.nodes[0].stop().await;
    case.nodes[1].kill();

    // No node at all, and nobody has noted that the one that was killed is dead.
    let alone = &case.nodes[0];
    let dropped = alone.ok(&["dead", "drop", "--sink", "hook", "--id", "ev_1", "--yes"]);
    assert!(dropped.contains("1 dropped"), "{dropped}");
    erased_whole(alone, "ev_3");
    case.nothing_is_left_of("ev_3").await;
    let refused = alone.fails(1, &["dead", "retry", "--sink", "hook", "--id", "ev_2", "--yes"]);
    assert!(
        refused.contains("no node drives it now") && refused.contains("closehook serve"),
        "{refused}"
    );
    assert_eq!(listed(&case.nodes[1]), ["ev_2", "ev_4", "ev_5", "ev_6", "ev_7"]);

    // Another node drives the sink.
    case.nodes[1].run().await;
    until("it has the sink", async || case.nodes[1].sink("hook")["node"] == "n1").await;
    case.receiver.answer_with(200);
    let beside = &case.nodes[0];
    let retried = beside.ok(&["dead", "retry", "--sink", "hook", "--id", "ev_2", "--yes"]);
    assert!(retried.contains("1 delivered"), "{retried}");
    assert_eq!(case.receiver.count(), 1, "{:?}", case.receiver.bodies());
    beside.ok(&["dead", "drop", "--sink", "hook", "--id", "ev_4", "--yes"]);
    erased_whole(beside, "ev_5");
    case.nothing_is_left_of("ev_5").await;
    for node in &case.nodes {
        assert_eq!(listed(node), ["ev_6", "ev_7"]);
    }
    until("whoever drives it knows it", async || {
        case.nodes[1].sink("hook")["dead"] == 2
    })
    .await;

    // What is left makes the command fail, and whoever reads that knows what to do.
    let dir = beside.data().join("dead");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("older"), "letters of an older closehook").unwrap();
    for _ in 0..2 {
        let erased = beside.run_command(&["log", "erase", "--id", "ev_6", "--yes"]);
        assert_eq!(erased.status.code(), Some(1));
        let said = String::from_utf8_lossy(&[erased.stdout, erased.stderr].concat()).into_owned();
        let is_said = ["dead/older", "start `closehook serve`", "again"].map(|part| said.contains(part));
        assert_eq!(is_said, [true; 3], "{said}");
    }
    std::fs::remove_dir_all(&dir).unwrap();

    // Of a daemon that can't be asked, nobody knows what it has in memory.
    let socket = case.nodes[1].data().join("closehook.sock");
    until("it has no socket, and can't make it again", async || {
        let _ = std::fs::remove_file(&socket);
        std::fs::create_dir(&socket).is_ok()
    })
    .await;
    let erased = case.nodes[1].run_command(&["log", "erase", "--id", "ev_6", "--yes"]);
    assert_eq!(erased.status.code(), Some(1));
    let said = String::from_utf8_lossy(&erased.stdout);
    assert!(said.contains("its socket is gone"), "{said}");

    // A sink that has gone is forgotten with its letters.
    case.nodes[1].stop().await;
    let without = &case.nodes[0];
    without.configure(&config(&case.cluster, "n0", ""));
    let forgotten = without.lines(&["sinks", "forget", "hook"]).remove(0);
    assert_eq!(forgotten["dropped"], 1, "{forgotten}");
    case.nothing_is_left_of("ev_7").await;
}
