//! `closehook log copy`: a log of this machine goes on in JetStream, as after a restart.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Daemon, Receiver, body, until};
use crate::jetstream_cluster::Cluster;

/// The three sinks: one that takes everything, one that refuses for good, one that can't be reached.
struct Sinks {
    hook: Receiver,
    dead: Receiver,
    down: Receiver,
}

impl Sinks {
    async fn start() -> Sinks {
        Sinks {
            hook: Receiver::start(200).await,
            dead: Receiver::start(400).await,
            down: Receiver::start(503).await,
        }
    }

    fn config(&self, cluster: &Cluster, engine: &str) -> String {
        let sinks = [
            ("hook", &self.hook, ""),
            ("dead", &self.dead, ""),
            ("down", &self.down, ""),
        ];
        config(cluster, engine, &sinks)
    }

    /// A daemon that keeps its log itself, and has stored so many events.
    async fn daemon_with(&self, cluster: &Cluster, events: u64) -> Daemon {
        let mut daemon = Daemon::new(&self.config(cluster, "local"));
        daemon.run().await;
        daemon.store(1..=events).await;
        daemon
    }
}

/// Of a log that is copied between engines: each sink's name, receiver and further keys.
pub fn config(cluster: &Cluster, engine: &str, sinks: &[(&str, &Receiver, &str)]) -> String {
    let mut text = format!(
        "[log]\nengine = \"{engine}\"\n[log.jetstream]\nservers = {:?}\nmonitor = {:?}\nreplicas = 1\n\
         secret = \"0123456789abcdef0123456789abcdef\"\n[node]\nname = \"n0\"\n",
        cluster.urls(),
        cluster.monitors()
    );
    for (name, receiver, more) in sinks {
        text += &format!(
            "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
             retry = {{ initial = \"50ms\", max_delay = \"200ms\" }}\nbreaker = {{ probe = \"100ms\", refusals = 1000000 }}\n{more}",
            receiver.url
        );
    }
    text
}

fn exported(daemon: &Daemon) -> Vec<Value> {
    daemon
        .ok(&["log", "export", "-"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What has to be the same of each sink.
fn positions(daemon: &Daemon) -> Vec<Value> {
    let mut sinks = daemon.lines(&["sinks", "list"]);
    for sink in &mut sinks {
        let kept = ["name", "cursor", "paused", "dead_letters", "lost"];
        let picked = kept.map(|key| (key.to_owned(), sink[key].clone()));
        *sink = Value::Object(picked.into_iter().collect());
    }
    sinks
}

/// A log with something of everything, and the daemon stopped.
async fn filled(cluster: &Cluster, sinks: &Sinks) -> Daemon {
    let mut daemon = Daemon::new(&sinks.config(cluster, "local"));
    daemon.run().await;
    daemon.store(1..=120).await;
    let (status, answer) = daemon.send("no delivery at all").await.unwrap();
    assert_eq!((status, &answer["status"]), (200, &json!("quarantined")), "{answer}");
    let long = body(121).replace("\\u00e9", &"x".repeat(1_500_000));
    assert_eq!(daemon.send(&long).await.unwrap().0, 200);
    daemon.store(122..=150).await;
    daemon.done("hook").await;
    daemon.done("dead").await;
    daemon.ok(&["log", "erase", "--id", "ev_5", "--id", "ev_77", "--yes"]);
    daemon.ok(&["sinks", "pause", "hook"]);
    daemon.store(151..=160).await;
    let refused = daemon.fails(1, &["log", "copy", "--to", "jetstream"]);
    assert!(refused.contains("in use by another closehook"), "{refused}");
    daemon.stop().await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_log_goes_on_in_jetstream_as_after_a_restart() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = filled(&cluster, &sinks).await;
    let (events, before) = (exported(&daemon), positions(&daemon));
    let sent = sinks.hook.count();

    let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "jetstream", "--json"])).unwrap();
    assert_eq!(copied["events"], 159, "{copied}");
    assert_eq!(
        (&copied["quarantined"], &copied["erased"]),
        (&json!(1), &json!(2)),
        "{copied}"
    );
    assert_eq!(copied["last"], 161, "{copied}");
    assert!(copied["dead_letters"].as_u64().unwrap() > 140, "{copied}");

    // The old one is not served by accident, nor changed by a command.
    for arguments in [&["serve"][..], &["sinks", "resume", "hook"]] {
        let refused = daemon.fails(1, arguments);
        assert!(refused.contains("was copied to the stream closehook"), "{refused}");
    }
    let again = daemon.ok(&["log", "copy", "--to", "jetstream"]);
    assert!(again.contains("already, whole"), "{again}");

    daemon.configure(&sinks.config(&cluster, "jetstream"));
    assert_eq!(exported(&daemon), events, "byte for byte, each at its Seq");
    assert_eq!(positions(&daemon), before);
    daemon.run().await;
    // What was paused stays so, what was tried is tried on, and nothing is sent again.
    assert_eq!(daemon.sink("hook")["paused"], true);
    sinks.down.answer_with(200);
    until("what was tried has come", async || sinks.down.count() >= 158).await;
    daemon.ok(&["sinks", "resume", "hook"]);
    let (status, answer) = daemon.send(body(1)).await.unwrap();
    assert_eq!(
        (status, &answer["status"], &answer["seq"]),
        (200, &json!("duplicate"), &json!(1)),
        "{answer}"
    );
    let (_, answer) = daemon.send(body(5)).await.unwrap();
    assert_eq!(
        (&answer["status"], &answer["seq"]),
        (&json!("duplicate"), &json!(5)),
        "an erased one stays known: {answer}"
    );
    let (_, answer) = daemon.send("no delivery at all").await.unwrap();
    assert_eq!(answer["seq"], 121, "{answer}");
    let (_, answer) = daemon.send(body(161)).await.unwrap();
    assert!(
        answer["status"] == "stored" && answer["seq"].as_u64().unwrap() > 161,
        "{answer}"
    );
    daemon.done("hook").await;
    daemon.done("down").await;
    assert_eq!(sinks.hook.count(), sent + 11, "each once");
    let mut ids: Vec<Value> = sinks.hook.bodies().iter().map(|text| id(text)).collect();
    let all = ids.len();
    ids.sort_by_key(ToString::to_string);
    ids.dedup();
    assert_eq!(ids.len(), all);
    daemon.stop().await;

    // Told so, the old one is served again, as another life.
    let epoch = epoch(&daemon);
    daemon.configure(&sinks.config(&cluster, "local"));
    daemon.ok(&["log", "reopen", "--yes"]);
    assert_ne!(self::epoch(&daemon), epoch);
    daemon.run().await;
}

fn id(text: &str) -> Value {
    let event: Value = serde_json::from_str(text).unwrap();
    event["event"]["id"].clone()
}

fn epoch(daemon: &Daemon) -> String {
    let text = std::fs::read_to_string(daemon.data().join("closehook.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    description["epoch"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_goes_on_and_until_it_is_whole_nobody_serves_it() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = sinks.daemon_with(&cluster, 700).await;
    daemon.stop().await;
    let events = exported(&daemon);
    let info = async || {
        cluster
            .try_api(0, "STREAM.INFO.closehook", &Value::Null)
            .await
            .unwrap_or_default()
    };
    let copied = async || info().await["state"]["last_seq"].as_u64().unwrap_or_default();
    for kill in 0..12_u64 {
        let mut command = daemon.command();
        command.args(["log", "copy", "--to", "jetstream"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let before = copied().await;
        let mut has_ended = false;
        until("it gets on", async || {
            has_ended = child.try_wait().unwrap().is_some();
            has_ended || copied().await > before || info().await["config"]["metadata"]["closehook.copy"].is_string()
        })
        .await;
        // Anywhere in what comes then.
        tokio::time::sleep(Duration::from_millis(kill * kill * 20)).await;
        let _ = child.kill();
        let _ = child.wait();
        let is_whole = info().await["config"]["metadata"]["closehook.id"].is_string();
        if has_ended || is_whole {
            break;
        }
        daemon.configure(&sinks.config(&cluster, "jetstream"));
        let refused = daemon.fails(1, &["serve"]);
        assert!(refused.contains("does not hold all of the log yet"), "{refused}");
        daemon.configure(&sinks.config(&cluster, "local"));
    }
    daemon.ok(&["log", "copy", "--to", "jetstream"]);
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    assert_eq!(exported(&daemon), events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_copied_neither_over_other_events_nor_below_a_node_that_runs() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut source = Daemon::new(&sinks.config(&cluster, "local"));
    source.run().await;
    source.store(1..=5).await;
    source.stop().await;
    let mut node = Daemon::new(&sinks.config(&cluster, "jetstream"));
    node.ok(&["check", "--create"]);
    node.run().await;
    let refused = source.fails(1, &["log", "copy", "--to", "jetstream"]);
    assert!(refused.contains("n0 runs on that stream"), "{refused}");
    node.store(100..=102).await;
    node.stop().await;
    let refused = source.fails(1, &["log", "copy", "--to", "jetstream"]);
    assert!(refused.contains("holds other events, up to 3"), "{refused}");
    // Neither was touched.
    node.run().await;
    node.store(103..=103).await;
    source.run().await;
    source.store(6..=6).await;
}

/// What is in the stream is in the data directory again, at the same Seqs, with what was erased and what had expired known.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_comes_back_from_jetstream_and_goes_on_here() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = Daemon::new(&sinks.config(&cluster, "jetstream"));
    daemon.ok(&["check", "--create"]);
    daemon.run().await;
    daemon.store(1..=60).await;
    assert_eq!(daemon.send("no delivery at all").await.unwrap().0, 200);
    let long = body(62).replace("\\u00e9", &"x".repeat(1_500_000));
    assert_eq!(daemon.send(&long).await.unwrap().0, 200);
    daemon.done("hook").await;
    daemon.done("dead").await;
    daemon.ok(&["log", "erase", "--id", "ev_5", "--id", "ev_60", "--yes"]);
    daemon.store(63..=70).await;
    daemon.ok(&["sinks", "pause", "hook"]);
    daemon.store(71..=75).await;
    let refused = daemon.fails(1, &["log", "copy", "--to", "local"]);
    assert!(refused.contains("in use by another closehook"), "{refused}");
    daemon.stop().await;
    let (events, before, sent) = (exported(&daemon), positions(&daemon), sinks.hook.count());

    let mut command = daemon.command();
    command.args(["log", "copy", "--to", "local"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let marker = daemon.data().join("copy-unfinished");
    until("it has begun", async || {
        marker.exists() || child.try_wait().unwrap().is_some()
    })
    .await;
    let _ = child.kill();
    let _ = child.wait();
    if marker.exists() {
        daemon.configure(&sinks.config(&cluster, "local"));
        let refused = daemon.fails(1, &["serve"]);
        assert!(refused.contains("holds a copy of a log that was cut off"), "{refused}");
        let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "local", "--json"])).unwrap();
        assert_eq!(
            (&copied["events"], &copied["erased"]),
            (&json!(73), &json!(2)),
            "{copied}"
        );
    }
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    let done_already = |daemon: &Daemon| {
        let again = daemon.ok(&["log", "copy", "--to", "local"]);
        assert!(again.contains("already, whole"), "{again}");
    };
    done_already(&daemon);
    let refused = daemon.fails(1, &["serve"]);
    assert!(
        refused.contains("was copied to") && refused.contains("of node n0"),
        "{refused}"
    );

    // A node that stood still all the while stores nothing there any more.
    let client = cluster.client(0).await;
    let late = client.request("closehook.ev.0.0", "{}".into()).await.unwrap_err();
    assert_eq!(late.kind(), async_nats::RequestErrorKind::NoResponders, "{late}");

    daemon.configure(&sinks.config(&cluster, "local"));
    assert_eq!(exported(&daemon), events);
    assert_eq!(positions(&daemon), before);
    daemon.run().await;
    assert_eq!(daemon.sink("hook")["paused"], true);
    for (id, seq) in [(1, 1), (5, 5), (60, 60)] {
        let (_, answer) = daemon.send(body(id)).await.unwrap();
        assert_eq!(
            (&answer["status"], &answer["seq"]),
            (&json!("duplicate"), &json!(seq)),
            "{answer}"
        );
    }
    let (_, answer) = daemon.send(body(76)).await.unwrap();
    assert_eq!(answer["status"], "stored", "{answer}");
    daemon.ok(&["sinks", "resume", "hook"]);
    daemon.done("hook").await;
    assert_eq!(sinks.hook.count(), sent + 6, "each once");
    daemon.ok(&["events", "verify"]);
    // Also when it has gone on here.
    daemon.stop().await;
    let before = exported(&daemon);
    done_already(&daemon);
    assert_eq!(exported(&daemon), before);

    // What is said to be in the way is all of it, and nothing of another log is said to be dispensable.
    let description = daemon.data().join("closehook.json");
    let text = std::fs::read_to_string(&description).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["epoch"] = json!("another");
    std::fs::write(&description, other.to_string()).unwrap();
    let refused = daemon.fails(1, &["log", "copy", "--to", "local"]);
    assert!(
        refused.contains("holds another log") && refused.contains("gaps.json, copied.json, dead"),
        "{refused}"
    );
}

/// Since it was copied the log here has received more, which is in no other: whoever goes on in the stream would forget it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_log_that_was_served_again_is_not_left_behind_with_what_came_since() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = sinks.daemon_with(&cluster, 20).await;
    daemon.done("hook").await;
    daemon.stop().await;
    daemon.ok(&["log", "copy", "--to", "jetstream"]);
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    daemon.run().await;
    daemon.store(21..=25).await;
    daemon.done("hook").await;
    daemon.stop().await;

    // Here it receives some that the stream has as well, and some that nobody else has.
    daemon.configure(&sinks.config(&cluster, "local"));
    daemon.ok(&["log", "reopen", "--yes"]);
    daemon.run().await;
    daemon.store(24..=32).await;
    assert_eq!(daemon.send("no delivery at all").await.unwrap().0, 200);
    daemon.done("hook").await;
    daemon.stop().await;
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    let refused = daemon.fails(1, &["serve"]);
    assert!(
        refused.contains("8 events (Seq 23 to 30)") && refused.contains("`closehook log copy --to jetstream`"),
        "{refused}"
    );
    // Nor where somebody has taken away the note of what was copied.
    let description = daemon.data().join("closehook.json");
    let text = std::fs::read_to_string(&description).unwrap();
    let mut older: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(older["shared_upto"], 20);
    older.as_object_mut().unwrap().remove("shared_upto");
    std::fs::write(&description, older.to_string()).unwrap();
    let refused = daemon.fails(1, &["serve"]);
    assert!(refused.contains("8 events (Seq 23 to 30)"), "{refused}");
    std::fs::write(&description, text).unwrap();

    let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "jetstream", "--json"])).unwrap();
    assert_eq!(
        (&copied["later"], &copied["was_done"]),
        (&json!(8), &json!(false)),
        "{copied}"
    );
    let again = daemon.ok(&["log", "copy", "--to", "jetstream"]);
    assert!(again.contains("already, whole"), "{again}");
    daemon.run().await;
    for id in 26..=32 {
        let (_, answer) = daemon.send(body(id)).await.unwrap();
        assert_eq!(answer["status"], "duplicate", "{answer}");
    }
    daemon.done("hook").await;
    let ids: Vec<Value> = sinks.hook.bodies().iter().map(|text| id(text)).collect();
    for wanted in 26..=32 {
        assert!(ids.contains(&json!(format!("ev_{wanted}"))), "{wanted}: {ids:?}");
    }
    daemon.stop().await;
    // What was copied and nothing else is no hindrance.
    daemon.run().await;
}

/// The other way round: what went on here after the stream's log was copied here, and the stream is served again.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_here_is_not_left_behind_where_the_stream_is_served_again() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = Daemon::new(&sinks.config(&cluster, "jetstream"));
    daemon.ok(&["check", "--create"]);
    daemon.run().await;
    daemon.store(1..=20).await;
    daemon.stop().await;
    daemon.ok(&["log", "copy", "--to", "local"]);
    daemon.ok(&["log", "reopen", "--yes"]);
    // A copy that did not go on may lie there.
    daemon.run().await;
    daemon.store(21..=22).await;
    daemon.stop().await;
    daemon.configure(&sinks.config(&cluster, "local"));
    daemon.run().await;
    daemon.store(22..=30).await;
    daemon.stop().await;
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    let refused = daemon.fails(1, &["serve"]);
    assert!(refused.contains("8 events (Seq 22 to 29)"), "{refused}");
    let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "jetstream", "--json"])).unwrap();
    assert_eq!(copied["later"], 8, "{copied}");
    daemon.run().await;
    let (_, answer) = daemon.send(body(30)).await.unwrap();
    assert_eq!(answer["status"], "duplicate", "{answer}");
}

/// A copy that was cut off is none, so the log here may be served in between; what it receives then goes along.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_goes_on_with_what_was_received_since() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = sinks.daemon_with(&cluster, 700).await;
    daemon.stop().await;
    let info = async || {
        cluster
            .try_api(0, "STREAM.INFO.closehook", &Value::Null)
            .await
            .unwrap_or_default()
    };
    let mut command = daemon.command();
    command.args(["log", "copy", "--to", "jetstream"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it has begun", async || {
        child.try_wait().unwrap().is_some() || info().await["config"]["metadata"]["closehook.copy"].is_string()
    })
    .await;
    let _ = child.kill();
    let _ = child.wait();
    if info().await["config"]["metadata"]["closehook.id"].is_string() {
        // It was faster.
        daemon.ok(&["log", "reopen", "--yes"]);
    }
    daemon.run().await;
    daemon.store(701..=720).await;
    daemon.done("hook").await;
    daemon.stop().await;
    let events = exported(&daemon);
    daemon.ok(&["log", "copy", "--to", "jetstream"]);
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    let copied = exported(&daemon);
    assert_eq!(copied.len(), events.len());
    assert_eq!(copied, events);
    daemon.run().await;
    daemon.store(721..=721).await;
    daemon.done("hook").await;
    assert_eq!(sinks.hook.count(), 721, "each once");
}
