//! A sink that leaves the configuration of a node, and others that have it in theirs still.

use super::*;

/// Another node would begin beside deliveries that are on their way from here.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_sink_is_kept_from_others_until_its_deliveries_have_come_to_their_end() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    receiver.gate.send_replace(false);
    pair.bench.store(1..=3).await;
    let node = pair.node("one", &receiver, Commit::Acknowledge).await;
    node.leases.gets(2);
    until("they are under way", async || status(&node.engine).in_flight == 3).await;
    let is_wanted = || {
        let wants = lock(&node.leases.wants);
        let last = wants.last().unwrap();
        (
            wants.len(),
            last.iter().any(|want| want.what == crate::node::of_sink("a")),
        )
    };
    let before = is_wanted().0;
    let (engine, rules) = (node.engine.clone(), pair.bench.rules.clone());
    let reload = tokio::spawn(async move { drop(engine.reload(rules, &[]).await.unwrap()) });
    until("it is said what is wanted", async || is_wanted().0 > before).await;
    assert!(is_wanted().1, "what is not wanted is given up");
    assert_eq!(node.leases.given_up.load(Ordering::SeqCst), 0);
    receiver.gate.send_replace(true);
    reload.await.unwrap();
    assert!(!is_wanted().1);
    assert_eq!(node.leases.given_up.load(Ordering::SeqCst), 1);
    assert!(node.engine.shutdown().await, "nothing is left behind");
}
