//! Nodes whose log or state is not the one that they knew: another one, set back to a copy, or gone.

use serde_json::Value;

use crate::harness::{Daemon, Receiver, until};
use crate::jetstream_cluster::Cluster;
use crate::jetstream_copy::config;

/// Ids of events as they came.
fn ids(receiver: &Receiver) -> Vec<u64> {
    let id = |body: &String| -> u64 {
        let event: Value = serde_json::from_str(body).unwrap();
        let id = event["event"]["id"].as_str().unwrap();
        id.trim_start_matches("ev_").parse().unwrap()
    };
    receiver.bodies().iter().map(id).collect()
}

/// The same; several are under way at a time.
fn sorted(receiver: &Receiver) -> Vec<u64> {
    let mut ids = ids(receiver);
    ids.sort_unstable();
    ids
}

async fn made_as(cluster: &Cluster, stream: &str) -> Value {
    let info = cluster.api(0, &format!("STREAM.INFO.{stream}"), &Value::Null).await;
    info["config"].clone()
}

async fn remove(cluster: &Cluster, stream: &str) {
    cluster.api(0, &format!("STREAM.DELETE.{stream}"), &Value::Null).await;
}

/// One node that has delivered events 1 to 5, and was stopped.
async fn delivered(cluster: &Cluster, hook: &Receiver, start: &str) -> Daemon {
    let sinks = [("hook", hook, "")];
    let text = config(cluster, "jetstream", &sinks).replace("start = \"beginning\"", start);
    let mut node = Daemon::new(&text);
    node.ok(&["check", "--create"]);
    node.run().await;
    node.store(1..=5).await;
    node.done("hook").await;
    node.stop().await;
    assert_eq!(hook.count(), 5);
    node
}

/// Whoever only changes `log.engine` would have its events, and what it has still to deliver, forgotten; and Seqs of two logs mixed.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_this_machine_that_was_not_copied_is_named_and_stays_as_it_is() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let refuses = Receiver::start(400).await;
    let sinks = [("dead", &refuses, "")];
    let mut node = Daemon::new(&config(&cluster, "local", &sinks));
    node.run().await;
    node.store(1..=3).await;
    node.done("dead").await;
    node.stop().await;
    node.configure(&config(&cluster, "jetstream", &sinks));
    node.ok(&["check", "--create"]);
    node.spawn();
    assert!(!node.ended().await.success());
    let said = node.stderr();
    assert!(
        said.contains("`closehook log copy --to jetstream`") && said.contains("was not copied"),
        "{said}"
    );
    let letters = cluster.api(0, "STREAM.INFO.closehook_dead", &Value::Null).await;
    assert_eq!(letters["state"]["messages"], 0, "{letters}");
    node.configure(&config(&cluster, "local", &sinks));
    node.run().await;
    assert_eq!(node.lines(&["dead", "list"]).len(), 3);
    node.stop().await;

    // It goes along, and then nothing is in the way.
    node.ok(&["log", "copy", "--to", "jetstream"]);
    node.configure(&config(&cluster, "jetstream", &sinks));
    node.run().await;
    assert_eq!(node.lines(&["dead", "list"]).len(), 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_this_machine_that_never_had_an_event_is_in_nobodys_way() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut node = Daemon::new(&config(&cluster, "local", &[]));
    node.run().await;
    node.stop().await;
    node.configure(&config(&cluster, "jetstream", &[]));
    node.ok(&["check", "--create"]);
    node.run().await;
    node.store(1..=1).await;
    node.stop().await;
}

/// Marks that were backed up last are ahead of the log that is put back.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_a_log_that_was_set_back_is_delivered() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let hook = Receiver::start(200).await;
    let mut node = delivered(&cluster, &hook, "start = \"beginning\"").await;
    let config = made_as(&cluster, "closehook").await;
    remove(&cluster, "closehook").await;
    cluster.api(0, "STREAM.CREATE.closehook", &config).await;
    node.run().await;
    node.store(6..=8).await;
    until("they are delivered", async || hook.count() >= 8).await;
    assert_eq!(sorted(&hook), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(node.stderr().contains("set back"), "{}", node.stderr());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_another_log_pass_nothing_of_this_one() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let hook = Receiver::start(200).await;
    let mut node = delivered(&cluster, &hook, "start = \"beginning\"").await;
    for stream in ["closehook", "closehook_dead"] {
        remove(&cluster, stream).await;
    }
    node.ok(&["check", "--create"]);
    node.run().await;
    node.store(6..=8).await;
    until("they are delivered", async || hook.count() >= 8).await;
    assert_eq!(sorted(&hook), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(node.stderr().contains("of another log"), "{}", node.stderr());
    node.stop().await;
}

/// Everything again is better than something never.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_position_is_gone_begins_with_the_oldest_event_kept() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let hook = Receiver::start(200).await;
    let mut node = delivered(&cluster, &hook, "start = \"now\"").await;
    hook.answer_with(503);
    node.run().await;
    node.store(6..=7).await;
    node.stop().await;
    hook.answer_with(200);
    remove(&cluster, "KV_closehook_state").await;
    node.ok(&["check", "--create"]);
    node.run().await;
    until("it has everything", async || {
        let ids = ids(&hook);
        (1..=7).all(|id| ids.iter().filter(|one| **one == id).count() >= 1) && ids.len() >= 12
    })
    .await;
    assert!(node.stderr().contains("is lost to damage"), "{}", node.stderr());
    node.done("hook").await;

    // While it runs it knows where it was.
    let before = hook.count();
    remove(&cluster, "KV_closehook_state").await;
    node.ok(&["check", "--create"]);
    node.store(8..=9).await;
    until("they are delivered", async || {
        let ids = ids(&hook);
        ids.contains(&8) && ids.contains(&9)
    })
    .await;
    node.done("hook").await;
    let again = ids(&hook).split_off(before);
    assert!(again.iter().all(|id| *id > 7), "{again:?}");
    node.stop().await;
    node.run().await;
    node.done("hook").await;
    assert_eq!(node.sink("hook")["cursor"], 9);
    node.stop().await;
    let again = ids(&hook).split_off(before);
    assert!(again.iter().all(|id| *id > 7), "{again:?}");
}
