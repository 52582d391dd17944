//! What stays in the bucket, and for how long.

use super::*;
use crate::node::record::node_key;

/// Containers have another name with each start.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_been_gone_for_a_day_is_forgotten_and_one_that_is_there_is_not() {
    let bucket: Arc<Bucket> = Arc::default();
    let (mut left, mut killed) = (Node::new(&bucket, "left", 5, 21), Node::new(&bucket, "killed", 5, 22));
    for node in [&mut left, &mut killed] {
        node.go();
    }
    until_held(&[&left, &killed], wants().len(), SOON).await;
    let mut stays = Node::new(&bucket, "stays", 5, 23);
    stays.go();
    killed.halt();
    left.halt();
    left.leases.leave().await;
    until_held(&[&stays], wants().len(), SOON).await;
    let known = || -> Vec<String> {
        let names = bucket.now().into_keys();
        names
            .filter_map(|key| key.strip_prefix("node/").map(str::to_owned))
            .collect()
    };
    let before = Duration::from_secs(23 * 3600);
    tokio::time::sleep(before).await;
    assert_eq!(known(), ["killed", "left", "stays"]);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(known(), ["stays"]);
    assert_eq!(stays.count(), wants().len());
    // One of that name begins like any other.
    let mut again = Node::new(&bucket, "left", 5, 24);
    again.go();
    tokio::time::sleep(SOON).await;
    assert!(bucket.now().contains_key(&node_key("left")));
}

/// The clock of the node that took it first was ahead, and the bucket has been made anew since.
#[tokio::test(start_paused = true)]
async fn a_lease_begins_above_every_fence_that_was_seen() {
    let bucket = Arc::default();
    let mut node = Node::new(&bucket, "n1", 5, 25);
    node.go();
    until_held(&[&node], wants().len(), SOON).await;
    let what = of_sink("a");
    let lease = node.leases.lease(&what).unwrap();
    let ahead = lease.fence() + 1_000_000_000;
    lease.end_below(ahead);
    assert_eq!(node.holds(&what), None);
    node.leases.give_up(&what).await;
    until_held(&[&node], wants().len(), SOON).await;
    assert_eq!(node.holds(&what), Some(ahead + 1));
}
