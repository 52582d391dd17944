//! Leases of nodes that share a bucket.
//!
//! Each node renews a record of its own (`node/NAME`), and takes what is free by changing the lease's record (`lease/WHAT`). All changes say
//! what they expect to replace, so that of two that want one thing one gets it, whatever either had read.
//!
//! A node is dead when another one has watched its record for as long as a lease lasts and it did not change: by the watcher's own clock,
//! which only has to go at the right pace. The watcher says so in that record, expecting what it has watched; so a node that has renewed it
//! after all, or whose renewal the watcher could not see, is not dead, and one that is declared dead can't renew it any more. A node counts
//! the same time from when it *sent* its newest renewal, less a margin, and has let go of everything before anybody can know better. Then it
//! begins a new life.
//!
//! | what happens | who drives the sink |
//! |---|---|
//! | a node is killed | another one, after `lease` and a look |
//! | it stops in order | another one, with its next look |
//! | it can't reach the bucket | it lets go after `lease` less `margin`; another one follows as above |
//! | it is stopped (SIGSTOP) for longer than that | another one; when it goes on its leases are over, and what it was in the middle of can't move a mark: its fence is behind |
//! | its wall clock jumps | the same node: nothing here is compared with it |
//! | a node is started again after a crash | its old record is waited for, as others do: two machines may have one name |

mod beat;
mod desk;
mod look;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::record::{LeaseRecord, NodeRecord, NodeState, lease_key};
use super::{Deadline, Lease, Leases, NodeStatus, Order, Want};
use crate::config::Role;
use crate::state::{Expected, Revision, Store, put_json};
use crate::sync::lock;

/// How long what lasts.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A record that did not change for so long is of a node that is dead.
    pub lease: Duration,
    /// How often a node renews its record.
    pub renew: Duration,
    /// How often it looks at those of others, and at leases.
    pub look: Duration,
    /// So much earlier a node takes itself for dead.
    pub margin: Duration,
    /// So long what is free is left to the node whose turn it is.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            // Servers of NATS may take as long as that to agree on a new leader.
            lease: Duration::from_secs(7),
            renew: Duration::from_millis(1200),
            look: Duration::from_millis(700),
            margin: Duration::from_secs(1),
            grace: Duration::from_millis(1500),
        }
    }
}

/// What leases are made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bucket that all nodes share. What is asked of it should be answered, or given up, well within [`Timing::lease`].
    pub store: Arc<dyn Store>,
    /// This node's name.
    pub node: String,
    /// What this node may do.
    pub roles: Vec<Role>,
    /// How long what lasts.
    pub timing: Timing,
}

/// Leases of nodes that share a bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SharedLeases {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    started_at: Timestamp,
    changes: watch::Sender<u64>,
    state: Mutex<State>,
    /// Where orders are put; `None`: with everything else.
    orders: OnceLock<Arc<dyn Store>>,
}

/// This life of this node.
#[derive(Debug, Clone)]
struct Life {
    id: String,
    revision: Revision,
    beat: u64,
    deadline: Arc<Deadline>,
}

/// What is known of another node, or of an earlier life of this one.
#[derive(Debug, Clone)]
struct Seen {
    record: NodeRecord,
    revision: Revision,
    /// Since when it is that.
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: this node is not alive, as far as others know.
    life: Option<Life>,
    /// Earlier lives of this process.
    past: BTreeSet<String>,
    wants: Vec<Want>,
    /// Wanted whatever is said of the others.
    also: Vec<Want>,
    held: BTreeMap<String, Lease>,
    /// The newest record of each lease that is wanted.
    records: BTreeMap<String, (LeaseRecord, Revision)>,
    free_since: BTreeMap<String, Instant>,
    /// When it was last looked which nodes are long gone.
    forgot_at: Option<Instant>,
    /// When orders and answers were last looked at, and since when each of them lies there.
    cleared_at: Option<Instant>,
    on_desk: BTreeMap<String, (Revision, Instant)>,
    /// Fences that are used up, whatever the records say.
    used_up: BTreeMap<String, u64>,
    nodes: BTreeMap<String, Seen>,
    /// When which revision of a node's record was stored, this one's among them, by the clock of the servers.
    stored: BTreeMap<String, (Revision, Timestamp)>,
    /// What was said last, so that it is not said again.
    said: Option<String>,
    /// It has left: it begins no other life.
    has_left: bool,
    /// What it does under its leases has not come to its end.
    is_at_work: bool,
}

/// Whose a lease is.
enum Standing {
    /// Somebody's who may be alive.
    Taken,
    /// Nobody's: it was given up, or the life that took it is over.
    Free,
    /// Its node's record is of another life, or not there, and may be older than the lease.
    Doubtful,
}

impl State {
    /// What a lease's record, of this revision, says. What is known of its node may be older than that: the node may have begun a new life
    /// since, and have taken the lease in it. The bucket's revisions tell, which rise with every change of whatever key: a life's record is
    /// there before it takes anything.
    fn standing(&self, record: &LeaseRecord, revision: Revision) -> Standing {
        if record.free {
            return Standing::Free;
        }
        if self.life.as_ref().is_some_and(|life| life.id == record.life) {
            return Standing::Taken;
        }
        let Some(seen) = self.nodes.get(&record.node) else {
            return Standing::Doubtful;
        };
        let is_same = seen.record.life == record.life;
        let is_alive = seen.record.state == NodeState::Alive;
        if is_same && is_alive {
            Standing::Taken
        } else if is_same || seen.revision > revision {
            // It is over, or of an earlier life.
            Standing::Free
        } else if is_alive {
            // It renews its record soon, and shows which of the two is later.
            Standing::Taken
        } else {
            Standing::Doubtful
        }
    }
}

impl SharedLeases {
    /// Leases that this node has none of yet.
    pub fn new(options: Options) -> SharedLeases {
        SharedLeases {
            inner: Arc::new(Inner {
                options,
                started_at: Timestamp::now(),
                changes: watch::Sender::new(0),
                state: Mutex::default(),
                orders: OnceLock::new(),
            }),
        }
    }

    /// The same, with orders in another store: one that only nodes can write to.
    #[must_use]
    pub fn ordering_in(self, orders: Arc<dyn Store>) -> SharedLeases {
        let _ = self.inner.orders.set(orders);
        self
    }

    /// What there is to do beside what is said with [`Leases::want`].
    pub fn also_want(&self, want: Want) {
        let mut state = self.state();
        state.wants.push(want.clone());
        state.also.push(want);
    }

    /// Keeps this node alive, and takes what it may have, until `stop`. What it had is still its own then: see [`SharedLeases::leave`].
    pub async fn run(&self, stop: &CancellationToken) {
        self.state().has_left = false;
        let both = async { tokio::join!(self.beats(), self.looks()) };
        stop.run_until_cancelled(both).await;
    }

    /// Whether something is done under its leases that has to come to its end before others begin.
    pub fn set_at_work(&self, is_at_work: bool) {
        self.state().is_at_work = is_at_work;
    }

    /// This node does nothing any more: others may begin at once. Where what it did has not come to its end they find out by themselves, when
    /// that is over in any case.
    pub async fn leave(&self) {
        let (life, is_at_work) = {
            let mut state = self.state();
            state.has_left = true;
            self.let_go(&mut state);
            (state.life.take(), state.is_at_work)
        };
        let Some(life) = life else { return };
        if is_at_work {
            tracing::warn!(
                "deliveries have not come to their end: other nodes go on only when this one is taken for dead"
            );
            return;
        }
        let record = self.record(&life, NodeState::Left);
        let put = self.put_node(&record, Expected::Revision(life.revision)).await;
        if let Err(error) = put {
            tracing::warn!(%error, "other nodes can't be told that this one stops; they find out by themselves");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    fn store(&self) -> &dyn Store {
        &*self.inner.options.store
    }

    fn timing(&self) -> Timing {
        self.inner.options.timing
    }

    fn name(&self) -> &str {
        &self.inner.options.node
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    /// Everything that was held is over.
    fn let_go(&self, state: &mut State) {
        if let Some(life) = &state.life {
            life.deadline.end();
            state.past.insert(life.id.clone());
        }
        let had = std::mem::take(&mut state.held);
        had.values().for_each(Lease::end);
        self.changed();
    }

    fn record(&self, life: &Life, state: NodeState) -> NodeRecord {
        NodeRecord {
            life: life.id.clone(),
            state,
            roles: self.inner.options.roles.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.inner.started_at,
            beat: life.beat,
            ended_at: (state != NodeState::Alive).then(Timestamp::now),
        }
    }

    async fn put_node(&self, record: &NodeRecord, expected: Expected) -> Result<Revision, crate::state::StoreError> {
        put_json(self.store(), &super::record::node_key(self.name()), record, expected).await
    }

    /// Says something once.
    fn say(&self, what: Option<String>) {
        let mut state = self.state();
        if state.said != what {
            if let Some(what) = &what {
                tracing::warn!("{what}");
            } else {
                tracing::info!("this node ({}) is known to the others", self.name());
            }
            state.said = what;
        }
    }
}

#[async_trait]
impl Leases for SharedLeases {
    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    fn lease(&self, what: &str) -> Option<Lease> {
        let held = self.state().held.get(what).cloned();
        held.filter(Lease::holds)
    }

    fn want(&self, wants: Vec<Want>) {
        let mut state = self.state();
        state.wants = wants.into_iter().chain(state.also.clone()).collect();
    }

    async fn give_up(&self, what: &str) {
        let (record, revision) = {
            let mut state = self.state();
            let Some(lease) = state.held.remove(what) else { return };
            lease.end();
            if lease.outdone() > 0 {
                state.used_up.insert(what.to_owned(), lease.outdone());
            }
            let Some((record, revision)) = state.records.get(what) else {
                return;
            };
            let free = LeaseRecord {
                free: true,
                ..record.clone()
            };
            (free, *revision)
        };
        self.changed();
        let put = put_json(self.store(), &lease_key(what), &record, Expected::Revision(revision)).await;
        match put {
            Ok(revision) => {
                self.state().records.insert(what.to_owned(), (record, revision));
            }
            Err(error) => {
                tracing::warn!(what, %error, "a lease can't be given up now; it is taken again, or lost with this node");
            }
        }
    }

    fn are_shared(&self) -> bool {
        true
    }

    fn holder(&self, what: &str) -> Option<String> {
        let state = self.state();
        let (record, revision) = state.records.get(what)?;
        let is_taken = matches!(state.standing(record, *revision), Standing::Taken);
        is_taken.then(|| record.node.clone())
    }

    async fn holder_now(&self, what: &str) -> Result<Option<String>, String> {
        self.look_up_holder(what).await.map_err(|error| error.to_string())
    }

    async fn has_gone(&self, node: &str) -> bool {
        let looked = self.look_at_nodes().await;
        let is_alive = |node: &Seen| node.record.state == NodeState::Alive;
        looked.is_ok() && !self.state().nodes.get(node).is_some_and(is_alive)
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let state = self.state();
        let of = |name: &str, life: &str| {
            let records = state.records.iter();
            let own = records.filter(|(_, (record, _))| !record.free && record.node == name && record.life == life);
            own.map(|(what, _)| what.clone()).collect::<Vec<_>>()
        };
        let status = |(name, seen): (&String, &Seen)| NodeStatus {
            name: name.clone(),
            roles: seen.record.roles.clone(),
            state: seen.record.state,
            started_at: seen.record.started_at,
            version: seen.record.version.clone(),
            leases: if seen.record.state == NodeState::Alive {
                of(name, &seen.record.life)
            } else {
                Vec::new()
            },
            heard_seconds: seen.since.elapsed().as_secs_f64(),
        };
        state.nodes.iter().map(status).collect()
    }

    async fn ask(&self, what: &str, order: Value, within: Duration) -> Result<Value, String> {
        self.ask_owner(what, order, within).await
    }

    async fn orders(&self) -> Vec<Order> {
        self.take_orders().await
    }

    async fn answer(&self, id: &str, result: Result<Value, String>) {
        self.put_answer(id, result).await;
    }
}
