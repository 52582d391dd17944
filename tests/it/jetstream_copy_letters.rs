//! `closehook log copy` and dead letters: they go with the log, whatever kills the copy, and on the other side they are what they were.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Daemon, Receiver, until};
use crate::jetstream_cluster::Cluster;
use crate::jetstream_copy;

/// Servers that sync each letter take some forty a second.
const COUNT: u64 = 400;

/// One that refuses for good, one that gives what is refused to another, and that one can't be reached.
struct Sinks {
    dead: Receiver,
    giver: Receiver,
    spare: Receiver,
}

impl Sinks {
    async fn start() -> Sinks {
        Sinks {
            dead: Receiver::start(422).await,
            giver: Receiver::start(422).await,
            spare: Receiver::start(503).await,
        }
    }

    fn config(&self, cluster: &Cluster, engine: &str) -> String {
        let sinks = [
            ("dead", &self.dead, ""),
            ("giver", &self.giver, "dead_to = \"spare\"\n"),
            ("spare", &self.spare, ""),
        ];
        jetstream_copy::config(cluster, engine, &sinks)
    }
}

fn letters(daemon: &Daemon) -> Vec<Value> {
    let mut letters = daemon.lines(&["dead", "list", "--limit", "5000"]);
    letters.sort_by_key(|letter| (letter["sink"].to_string(), letter["seq"].as_u64()));
    letters
}

fn given(daemon: &Daemon) -> u64 {
    daemon.sink("spare")["given"].as_u64().unwrap_or_default()
}

/// Something of everything: letters, one that was dropped, and what one sink has given to another.
async fn fill(daemon: &Daemon) {
    daemon.store(1..=COUNT).await;
    daemon.done("dead").await;
    daemon.done("giver").await;
    until("all was given up", async || {
        daemon.sink("dead")["dead"] == COUNT && given(daemon) == COUNT
    })
    .await;
    daemon.ok(&["dead", "drop", "--sink", "dead", "--id", "ev_7", "--yes"]);
}

/// What was a letter is one, what was given is delivered once, and what was dropped stays so.
async fn goes_on(daemon: &mut Daemon, sinks: &Sinks, before: &[Value]) {
    daemon.run().await;
    assert_eq!(letters(daemon), before);
    let shown = &daemon.lines(&["events", "show", "ev_9"])[0];
    assert_eq!(shown["sinks"]["giver"]["state"], "diverted", "{shown}");
    sinks.spare.answer_with(200);
    // The servers take their time to remove one after the other.
    let mut left = given(daemon);
    while left > 0 {
        until("what was given is delivered, and is less", async || {
            given(daemon) < left
        })
        .await;
        left = given(daemon);
    }
    assert_eq!(sinks.spare.count() as u64, COUNT, "each once");
    sinks.dead.answer_with(200);
    daemon.ok(&["dead", "retry", "--sink", "dead", "--id", "ev_8"]);
    assert_eq!(letters(daemon).len(), before.len() - 1);
    daemon.ok(&["dead", "retry", "--sink", "dead", "--all"]);
    assert!(letters(daemon).is_empty());
    assert_eq!(
        sinks.dead.count(),
        before.len(),
        "each once, and what was dropped not at all"
    );
    assert_eq!(sinks.giver.count(), 0);
}

/// Kills it with SIGKILL while `at` holds for the first time, as often as `at` ever does.
async fn kill_in_the_middle(daemon: &Daemon, to: &str, times: u64, mut at: impl AsyncFnMut(u64) -> bool) -> u64 {
    let mut killed = 0;
    for time in 0..times {
        let mut command = daemon.command();
        command.args(["log", "copy", "--to", to]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut has_ended = false;
        while !has_ended && !at(time).await {
            has_ended = child.try_wait().unwrap().is_some();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        killed += u64::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        let _ = child.wait();
    }
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_go_into_the_stream_with_the_log_however_often_the_copy_is_killed() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = Daemon::new(&sinks.config(&cluster, "local"));
    daemon.run().await;
    fill(&daemon).await;
    daemon.stop().await;
    let before = letters(&daemon);
    assert_eq!(before.len() as u64, COUNT - 1);

    let in_the_stream = async || {
        let info = cluster.try_api(0, "STREAM.INFO.closehook_dead", &Value::Null).await;
        info.unwrap_or_default()["state"]["messages"]
            .as_u64()
            .unwrap_or_default()
    };
    // Among the letters of the first sink, and when these are all there and those of another are on their way.
    let killed = kill_in_the_middle(&daemon, "jetstream", 2, async |time| {
        in_the_stream().await > [COUNT / 10, COUNT + COUNT / 10][time as usize]
    })
    .await;
    assert!(killed > 0, "it was killed in the middle of dead letters at least once");
    let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "jetstream", "--json"])).unwrap();
    // The last one that was to be killed may have been faster.
    if copied["was_done"] == false {
        assert_eq!(
            (&copied["dead_letters"], &copied["given_letters"]),
            (&json!(COUNT - 1), &json!(COUNT)),
            "{copied}"
        );
    }

    // On another machine, which has nothing but the configuration.
    let mut other = Daemon::new(&sinks.config(&cluster, "jetstream"));
    goes_on(&mut other, &sinks, &before).await;
    other.stop().await;

    // Those that still lie where the log was are no news: what became of them is known.
    daemon.configure(&sinks.config(&cluster, "jetstream"));
    daemon.run().await;
    daemon.store(COUNT + 1..=COUNT + 1).await;
    daemon.done("dead").await;
    assert!(letters(&daemon).is_empty());
    until("the new one is given", async || sinks.spare.count() as u64 == COUNT + 1).await;
    daemon.stop().await;
    assert!(daemon.data().join("dead/dead").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_come_back_with_the_log_however_often_the_copy_is_killed() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let sinks = Sinks::start().await;
    let mut daemon = Daemon::new(&sinks.config(&cluster, "jetstream"));
    daemon.ok(&["check", "--create"]);
    daemon.run().await;
    fill(&daemon).await;
    daemon.stop().await;
    let before = letters(&daemon);
    assert_eq!(before.len() as u64, COUNT - 1);

    // What lies here and is of no copy is neither taken for it nor removed.
    let dead = daemon.data().join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("dead"), "somebody's").unwrap();
    let refused = daemon.fails(1, &["log", "copy", "--to", "local"]);
    assert!(refused.contains("not of this copy"), "{refused}");
    assert_eq!(std::fs::read(dead.join("dead")).unwrap(), b"somebody's");
    std::fs::remove_file(dead.join("dead")).unwrap();

    let size = |name: &str| std::fs::metadata(dead.join(name)).map_or(0, |file| file.len());
    let killed = kill_in_the_middle(&daemon, "local", 4, async |time| match time {
        0 => size("dead") > 0,
        1 => size("dead") > 25_000,
        2 => size("giver") > 0,
        _ => size("spare") > 0,
    })
    .await;
    assert!(killed > 0, "it was killed in the middle of dead letters at least once");
    let copied: Value = serde_json::from_str(&daemon.ok(&["log", "copy", "--to", "local", "--json"])).unwrap();
    assert_eq!(
        (&copied["dead_letters"], &copied["given_letters"]),
        (&json!(COUNT - 1), &json!(COUNT)),
        "{copied}"
    );
    daemon.configure(&sinks.config(&cluster, "local"));
    assert_eq!(letters(&daemon), before);
    goes_on(&mut daemon, &sinks, &before).await;
}
