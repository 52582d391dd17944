//! Nodes that share a bucket, in time that passes by itself. The bucket is slow, loses answers, and shows what is old.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::node::{CLOSE, of_sink};
use crate::state::{Entry, StoreError};

mod lasting;

type Values = BTreeMap<String, Entry>;

/// What all nodes share: every state that it has ever been in.
#[derive(Debug, Default)]
struct Bucket {
    history: Mutex<Vec<(Option<Instant>, Values)>>,
    began: OnceLock<Instant>,
    revisions: Mutex<u64>,
}

impl Bucket {
    fn now(&self) -> Values {
        lock(&self.history)
            .last()
            .map(|(_, values)| values.clone())
            .unwrap_or_default()
    }

    /// As it was so long ago.
    fn before(&self, ago: Duration) -> Values {
        let history = lock(&self.history);
        let then = Instant::now() - ago;
        let old = history.iter().rev().find(|(at, _)| at.is_none_or(|at| at <= then));
        old.map(|(_, values)| values.clone()).unwrap_or_default()
    }

    fn change(&self, key: &str, value: Option<Vec<u8>>, expected: Expected) -> Result<Revision, StoreError> {
        let mut values = self.now();
        let held = values.get(key).map(|entry| entry.revision);
        let meets = match expected {
            Expected::Anything => true,
            Expected::Nothing => held.is_none(),
            Expected::Revision(revision) => held == Some(revision),
        };
        if !meets {
            return Err(StoreError::Conflict(key.into()));
        }
        let mut revisions = lock(&self.revisions);
        *revisions += 1;
        let revision = Revision(*revisions);
        // Its clock shows some time of its own.
        let age = self.began.get_or_init(Instant::now).elapsed();
        let stored_at = jiff::Timestamp::UNIX_EPOCH + age;
        match value {
            Some(value) => drop(values.insert(
                key.into(),
                Entry {
                    value: value.into(),
                    revision,
                    stored_at: Some(stored_at),
                },
            )),
            None => drop(values.remove(key)),
        }
        let mut history = lock(&self.history);
        if history.is_empty() {
            history.push((None, Values::new()));
        }
        history.push((Some(Instant::now()), values));
        if history.len() > 2000 {
            history.drain(1..1000);
        }
        Ok(revision)
    }
}

/// How one node reaches the bucket.
#[derive(Debug, Default)]
struct Road {
    bucket: Arc<Bucket>,
    random: Mutex<fastrand::Rng>,
    /// Nothing gets through.
    cut: Mutex<bool>,
    /// How old what is read may be.
    stale: Mutex<Duration>,
    /// Of a hundred answers so many are lost.
    lost: Mutex<u8>,
    /// Milliseconds that an exchange takes at the most.
    slow: u64,
}

impl Road {
    async fn travel(&self) -> Result<(), StoreError> {
        let pause = if self.slow == 0 {
            0
        } else {
            lock(&self.random).u64(0..self.slow)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if *lock(&self.cut) {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            return Err(StoreError::Failing("cut".into()));
        }
        Ok(())
    }

    async fn back(&self) -> Result<(), StoreError> {
        let is_lost = lock(&self.random).u8(0..100) < *lock(&self.lost);
        if is_lost {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Err(StoreError::Failing("the answer was lost".into()));
        }
        Ok(())
    }

    fn seen(&self) -> Values {
        let stale = *lock(&self.stale);
        if stale.is_zero() {
            self.bucket.now()
        } else {
            self.bucket.before(stale)
        }
    }
}

#[async_trait]
impl Store for Road {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.travel().await?;
        Ok(self.seen().get(key).cloned())
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.travel().await?;
        let revision = self.bucket.change(key, Some(value), expected)?;
        self.travel().await?;
        self.back().await?;
        Ok(revision)
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        self.travel().await?;
        self.bucket.change(key, None, expected).map(drop)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.travel().await?;
        Ok(self.seen().into_keys().filter(|key| key.starts_with(prefix)).collect())
    }

    async fn all(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        Ok(Vec::new())
    }

    fn is_damaged(&self) -> bool {
        false
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// A node's process: it runs, or does not.
struct Node {
    leases: SharedLeases,
    road: Arc<Road>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Node {
    fn new(bucket: &Arc<Bucket>, name: &str, slow: u64, seed: u64) -> Node {
        let road = Arc::new(Road {
            bucket: bucket.clone(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            slow,
            ..Road::default()
        });
        let leases = SharedLeases::new(Options {
            store: road.clone(),
            node: name.into(),
            roles: vec![Role::Ingress, Role::Deliver, Role::Close],
            timing: Timing::default(),
        });
        leases.want(wants());
        Node {
            leases,
            road,
            running: None,
        }
    }

    fn go(&mut self) {
        let leases = self.leases.clone();
        self.running = Some(tokio::spawn(async move { leases.run(&CancellationToken::new()).await }));
    }

    /// As SIGSTOP does, or SIGKILL where nothing follows: whatever it was in the middle of.
    fn halt(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    fn holds(&self, what: &str) -> Option<u64> {
        self.leases.lease(what).map(|lease| lease.fence())
    }

    fn count(&self) -> usize {
        wants().iter().filter(|want| self.holds(&want.what).is_some()).count()
    }
}

fn wants() -> Vec<Want> {
    let sinks = ["a", "b", "c", "d", "e"].map(of_sink);
    let whats = sinks.into_iter().chain([CLOSE.to_owned()]);
    whats.map(|what| Want { what, node: None }).collect()
}

fn nodes(bucket: &Arc<Bucket>, slow: u64, seed: u64) -> Vec<Node> {
    let names = ["n1", "n2", "n3"].into_iter().zip(0..);
    let mut nodes: Vec<Node> = names
        .map(|(name, index)| Node::new(bucket, name, slow, seed + index))
        .collect();
    nodes.iter_mut().for_each(Node::go);
    nodes
}

/// Waits until so many leases are held by these nodes together; for how long that took.
async fn until_held(nodes: &[&Node], count: usize, within: Duration) -> Duration {
    let began = Instant::now();
    while nodes.iter().map(|node| node.count()).sum::<usize>() != count {
        assert!(
            began.elapsed() < within,
            "{:?}",
            nodes.iter().map(|node| node.count()).collect::<Vec<_>>()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn everything_is_held_by_somebody_and_spreads() {
    let nodes = nodes(&Arc::default(), 20, 1);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let counts: Vec<usize> = nodes.iter().map(Node::count).collect();
    assert!(counts.iter().filter(|count| **count > 0).count() > 1, "{counts:?}");
    let began = Instant::now();
    while nodes[0].leases.nodes().len() < 3 {
        assert!(began.elapsed() < SOON, "{:?}", nodes[0].leases.nodes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_node_had_is_taken_over_within_ten_seconds_with_a_higher_fence() {
    let mut nodes = nodes(&Arc::default(), 20, 2);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let index = nodes.iter().position(|node| node.count() > 0).unwrap();
    let had: Vec<(String, u64)> = wants()
        .into_iter()
        .filter_map(|want| Some((want.what.clone(), nodes[index].holds(&want.what)?)))
        .collect();
    nodes[index].halt();
    let dead = nodes.remove(index);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    assert_eq!(dead.count(), 0, "it knows by itself that its time is over");
    for (what, fence) in had {
        let now = nodes.iter().find_map(|node| node.holds(&what)).unwrap();
        assert!(now > fence, "{what}: {now} after {fence}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_in_order_hands_over_at_once() {
    let mut nodes = nodes(&Arc::default(), 5, 3);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let index = nodes.iter().position(|node| node.count() > 0).unwrap();
    let mut leaving = nodes.remove(index);
    leaving.halt();
    leaving.leases.leave().await;
    assert_eq!(leaving.count(), 0);
    let took = until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_goes_to_somebody_and_what_is_not_wanted_any_more_to_nobody() {
    let nodes = nodes(&Arc::default(), 5, 4);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let fewer: Vec<Want> = wants().into_iter().filter(|want| want.what != CLOSE).collect();
    for node in &nodes {
        node.leases.want(fewer.clone());
    }
    until_held(&nodes.iter().collect::<Vec<_>>(), fewer.len(), SOON).await;
    let pinned = Want {
        what: CLOSE.into(),
        node: Some("n2".into()),
    };
    let all: Vec<Want> = fewer.into_iter().chain([pinned]).collect();
    for node in &nodes {
        node.leases.want(all.clone());
    }
    until_held(&nodes.iter().collect::<Vec<_>>(), all.len(), SOON).await;
    assert!(nodes[1].holds(CLOSE).is_some(), "only n2 may");
}

#[tokio::test(start_paused = true)]
async fn a_second_node_of_one_name_has_nothing_as_long_as_the_first_is_there() {
    let bucket = Arc::default();
    let mut first = Node::new(&bucket, "n1", 5, 5);
    first.go();
    until_held(&[&first], wants().len(), SOON).await;
    let mut second = Node::new(&bucket, "n1", 5, 6);
    second.go();
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((first.count(), second.count()), (wants().len(), 0));
    }
    let said = second.leases.state().said.clone();
    assert!(said.is_some_and(|said| said.contains("node.name")));
    first.halt();
    until_held(&[&second], wants().len(), SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_only_sees_what_is_old_takes_nothing_from_one_that_is_alive() {
    let bucket = Arc::default();
    let mut first = Node::new(&bucket, "n1", 5, 7);
    first.go();
    until_held(&[&first], wants().len(), SOON).await;
    let mut second = Node::new(&bucket, "n2", 5, 8);
    *lock(&second.road.stale) = Duration::from_secs(3600);
    second.go();
    for round in 0..600_u32 {
        // A leader of before, which answers and learns nothing.
        *lock(&second.road.stale) = Duration::from_millis(u64::from(100 * round));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((first.count(), second.count()), (wants().len(), 0), "{round}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_reaches_whoever_has_the_lease_and_is_taken_back_where_nobody_takes_it() {
    let mut nodes = nodes(&Arc::default(), 5, 9);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let owner = nodes.iter().position(|node| node.holds(CLOSE).is_some()).unwrap();
    let asking = nodes[(owner + 1) % 3].leases.clone();
    let obeying = nodes[owner].leases.clone();
    let idle = nodes[(owner + 2) % 3].leases.clone();
    let obey = async {
        loop {
            assert!(idle.orders().await.is_empty());
            let orders = obeying.orders().await;
            if let [order] = &orders[..] {
                assert_eq!((order.what.as_str(), &order.order), (CLOSE, &Value::from(7)));
                obeying.answer(&order.id, Ok(8.into())).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (answer, ()) = tokio::join!(asking.ask(CLOSE, 7.into(), SOON), obey);
    assert_eq!(answer, Ok(8.into()));
    nodes[owner].halt();
    let left = asking.ask(CLOSE, 7.into(), Duration::from_secs(2)).await.unwrap_err();
    assert!(left.contains("nothing was done"), "{left}");
    let bucket = nodes[0].road.bucket.now();
    assert!(
        bucket
            .keys()
            .all(|key| key.starts_with("node/") || key.starts_with("lease/")),
        "{:?}",
        bucket.keys()
    );
}

#[tokio::test(start_paused = true)]
async fn a_command_on_a_machine_with_another_clock_is_told_so() {
    let nodes = nodes(&Arc::default(), 5, 10);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let owner = nodes.iter().find(|node| node.holds(CLOSE).is_some()).unwrap();
    let said = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(17);
    let order = serde_json::json!({ "what": CLOSE, "from": "elsewhere", "at": said, "order": 7 });
    put_json(&*owner.road, "order/1", &order, Expected::Nothing)
        .await
        .unwrap();
    assert!(owner.leases.orders().await.is_empty());
    let bucket = owner.road.bucket.now();
    let answer: Value = bucket["answer/1"].json().unwrap();
    let why = answer["why"].as_str().unwrap();
    assert!(why.contains("clock") && why.contains("17 min"), "{why}");
    assert!(!bucket.contains_key("order/1"));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_does_not_stay_in_the_bucket() {
    let nodes = nodes(&Arc::default(), 5, 11);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let road = &nodes[0].road;
    let order = serde_json::json!({ "what": "node/away", "from": "elsewhere", "order": 7 });
    put_json(&**road, "order/1", &order, Expected::Nothing).await.unwrap();
    put_json(
        &**road,
        "answer/2",
        &serde_json::json!({ "done": 8 }),
        Expected::Nothing,
    )
    .await
    .unwrap();
    let began = Instant::now();
    loop {
        let bucket = road.bucket.now();
        if !bucket.contains_key("order/1") && !bucket.contains_key("answer/2") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(3600), "{:?}", bucket.keys());
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!(
        began.elapsed() > Duration::from_secs(300),
        "somebody may have waited for them: {:?}",
        began.elapsed()
    );
}

/// Whatever happens: two nodes never hold one thing at once, its fence rises with each change of hands, and when calm returns everything is
/// held again within ten seconds.
#[tokio::test(start_paused = true)]
async fn whatever_happens_one_node_at_most_holds_a_thing() {
    let mut hands = 0;
    for seed in 0..10_u64 {
        let mut nodes = nodes(&Arc::default(), 150, 100 * seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut newest: BTreeMap<String, (u64, usize)> = BTreeMap::new();
        for round in 0..6000_u32 {
            if round % 100 == 0 && round < 5000 {
                disturb(&mut nodes[random.usize(0..3)], &mut random).await;
            }
            if round == 5000 {
                nodes.iter_mut().for_each(calm);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            for want in wants() {
                let holders = (0..3).filter_map(|index| Some((nodes[index].holds(&want.what)?, index)));
                let holders: Vec<(u64, usize)> = holders.collect();
                assert!(
                    holders.len() <= 1,
                    "seed {seed}, round {round}: {} {holders:?}",
                    want.what
                );
                let Some((fence, index)) = holders.first().copied() else {
                    continue;
                };
                let before = newest.insert(want.what.clone(), (fence, index));
                if let Some(before) = before.filter(|before| *before != (fence, index)) {
                    hands += 1;
                    assert!(
                        fence > before.0,
                        "seed {seed}, round {round}: {} {before:?} {fence}",
                        want.what
                    );
                }
            }
        }
        let held: usize = nodes.iter().map(Node::count).sum();
        assert_eq!(held, wants().len(), "seed {seed}");
        nodes.iter_mut().for_each(Node::halt);
    }
    assert!(hands > 200, "something has to happen, and {hands} changes of hands did");
}

async fn disturb(node: &mut Node, random: &mut fastrand::Rng) {
    match random.u8(0..8) {
        0 | 1 => node.halt(),
        2 => *lock(&node.road.cut) = true,
        3 => *lock(&node.road.lost) = 30,
        4 => *lock(&node.road.stale) = Duration::from_millis(random.u64(0..8000)),
        5 => {
            node.halt();
            node.leases.leave().await;
        }
        _ => calm(node),
    }
}

fn calm(node: &mut Node) {
    *lock(&node.road.cut) = false;
    *lock(&node.road.lost) = 0;
    *lock(&node.road.stale) = Duration::ZERO;
    if node.running.is_none() {
        node.go();
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_is_asked_by_its_name_and_what_nobody_waits_for_any_more_is_left() {
    let mut nodes = nodes(&Arc::default(), 6, 9);
    until_held(&nodes.iter().collect::<Vec<_>>(), wants().len(), SOON).await;
    let (asking, asked) = (nodes[0].leases.clone(), nodes[1].leases.clone());
    let what = crate::node::of_node(asked.name());
    let obey = async {
        loop {
            assert!(nodes[2].leases.orders().await.is_empty());
            if let [order] = &asked.orders().await[..] {
                return asked.answer(&order.id, Ok(order.order.clone())).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (answer, ()) = tokio::join!(asking.ask(&what, 7.into(), SOON), obey);
    assert_eq!(answer, Ok(7.into()));
    let obey = async {
        loop {
            if let [order] = &asked.orders().await[..] {
                return asked.answer(&order.id, Ok(Value::Null)).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (answer, ()) = tokio::join!(asking.ask(&what, 7.into(), SOON), obey);
    assert_eq!(answer, Ok(Value::Null), "it is done, and there is no more to say");

    // The one that asks ends before anybody has looked.
    let order = {
        let (asking, what) = (asking.clone(), what.clone());
        tokio::spawn(async move { asking.ask(&what, 8.into(), SOON).await })
    };
    let bucket = nodes[0].road.bucket.clone();
    let left = |prefix: &str| bucket.now().into_keys().filter(|key| key.starts_with(prefix)).count();
    while left("order/") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    order.abort();
    nodes[0].halt();
    tokio::time::sleep(SOON).await;
    assert!(asked.orders().await.is_empty(), "it is of a node that is dead");
    assert_eq!(left("order/"), 0);

    asked.answer("nobody", Ok(9.into())).await;
    assert_eq!(left("answer/"), 1);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(left("answer/"), 0);
}
