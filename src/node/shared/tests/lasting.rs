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

/// What a node's record says of it that has left, by a clock which is this much behind.
fn left(behind: jiff::SignedDuration) -> Vec<u8> {
    let record = NodeRecord {
        life: "a life".into(),
        state: NodeState::Left,
        roles: vec![Role::Deliver],
        version: "1".into(),
        started_at: Timestamp::UNIX_EPOCH,
        beat: 1,
        ended_at: Some(Timestamp::now() - behind),
    };
    serde_json::to_vec(&record).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_just_gone_is_not_forgotten_whatever_its_clock_said() {
    let bucket: Arc<Bucket> = Arc::default();
    for (name, hours) in [("behind", 900), ("ahead", -900)] {
        let record = left(jiff::SignedDuration::from_hours(hours));
        bucket.change(&node_key(name), Some(record), Expected::Nothing).unwrap();
    }
    let mut stays = Node::new(&bucket, "stays", 5, 26);
    stays.go();
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    for name in ["behind", "ahead"] {
        assert!(bucket.now().contains_key(&node_key(name)), "{name}");
    }
}

/// Nobody has watched it for that long: each node is started anew every few hours.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_been_gone_for_a_day_is_forgotten_by_one_that_has_just_begun() {
    let bucket: Arc<Bucket> = Arc::default();
    let record = left(jiff::SignedDuration::ZERO);
    bucket
        .change(&node_key("gone"), Some(record), Expected::Nothing)
        .unwrap();
    tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
    let mut new = Node::new(&bucket, "new", 5, 27);
    new.go();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!bucket.now().contains_key(&node_key("gone")));
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

/// Its deliveries were given up on, and may still be on their way.
#[tokio::test(start_paused = true)]
async fn what_a_node_has_that_leaves_in_the_middle_of_its_work_is_left_alone_for_as_long_as_it_may_last() {
    let bucket = Arc::default();
    let (mut leaving, mut other) = (Node::new(&bucket, "n1", 5, 28), Node::new(&bucket, "n2", 5, 29));
    leaving.go();
    until_held(&[&leaving], wants().len(), SOON).await;
    other.go();
    // It knows the other one by then.
    tokio::time::sleep(SOON).await;
    leaving.leases.set_at_work(true);
    leaving.halt();
    leaving.leases.leave().await;
    assert_eq!(leaving.count(), 0, "it begins nothing more");
    let took = until_held(&[&other], wants().len(), SOON * 2).await;
    let timing = Timing::default();
    assert!(took + timing.renew * 2 > timing.lease, "{took:?}");
}
