//! Which node does what, where several share one log.
//!
//! Each sink, and Close's side, is driven by one node at a time, under a lease ([`Leases`]). One machine alone has everything for ever
//! ([`Alone`]); nodes that share a bucket agree there ([`SharedLeases`]).
//!
//! A lease says who may begin. It can't say that somebody who was stopped for a while, in the middle of something, has not gone on since:
//! so each lease has a fence, a number that rises whenever it changes hands. Whoever takes a sink over writes it into the sink's mark,
//! and from then on the one before can't move that mark any more.

mod alone;
mod record;
mod running;
mod shared;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::sync::lock;

pub use alone::Alone;
pub use record::{NodeState, NodeStatus};
pub use running::running;
pub use shared::{Options, SharedLeases, Timing};

/// What Close's side is leased as.
pub const CLOSE: &str = "close";

/// What a sink is leased as.
pub fn of_sink(sink: &str) -> String {
    format!("sink/{sink}")
}

/// What a node itself is asked as, whatever it holds.
pub fn of_node(node: &str) -> String {
    format!("node/{node}")
}

/// What the certificate that is ordered by itself is leased as.
pub const CERTIFICATE: &str = "certificate";

/// The sink of which this is the lease.
pub fn sink_of(what: &str) -> Option<&str> {
    what.strip_prefix("sink/")
}

/// Something that one node at a time may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// What it is leased as.
    pub what: String,
    /// The only node that may; `None`: any with the role for it.
    pub node: Option<String>,
}

/// Who may do what.
#[async_trait]
pub trait Leases: std::fmt::Debug + Send + Sync + 'static {
    /// Changes whenever a lease has come or gone here.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The lease for something; `None` while this node may not do it.
    fn lease(&self, what: &str) -> Option<Lease>;

    /// What there is to do from now on.
    fn want(&self, wants: Vec<Want>);

    /// This node has stopped doing it: another one may begin. Where that can't be said now, it is taken for done as long as the lease holds.
    async fn give_up(&self, what: &str);

    /// Whether there may be other nodes at all.
    fn are_shared(&self) -> bool;

    /// The node that does it, as far as is known; `None` where there are no others, or nobody does.
    fn holder(&self, what: &str) -> Option<String>;

    /// All nodes that are known, in order of name; none where there are no others.
    fn nodes(&self) -> Vec<NodeStatus>;

    /// Has the node that holds something carry out an order, and waits so long for its answer.
    async fn ask(&self, what: &str, _order: Value, _within: Duration) -> Result<Value, String> {
        Err(format!("there is no other node that could do {what}"))
    }

    /// The node that does it, as the others have it written down now; for who does not follow them, or does not want it.
    async fn holder_now(&self, what: &str) -> Result<Option<String>, String> {
        Ok(self.holder(what))
    }

    /// Whether a node that seemed to be alive is not, or has not been heard of for so long that it counts as dead.
    async fn has_gone(&self, _node: &str) -> bool {
        false
    }

    /// Orders of other nodes for what this one holds, or for this one itself ([`of_node`]). Each is given once, and has to be answered.
    async fn orders(&self) -> Vec<Order> {
        Vec::new()
    }

    /// Says what became of an order.
    async fn answer(&self, _id: &str, _result: Result<Value, String>) {}
}

/// An order of another node.
#[derive(Debug, Clone)]
pub struct Order {
    /// For the answer.
    pub id: String,
    /// What it is about, as it is leased.
    pub what: String,
    /// What is to be done.
    pub order: Value,
}

/// Until when what a node has is its own. Ends for good.
#[derive(Debug, Default)]
struct Deadline(Mutex<Option<Instant>>);

impl Deadline {
    fn until(at: Instant) -> Deadline {
        Deadline(Mutex::new(Some(at)))
    }

    fn extend(&self, to: Instant) {
        if let Some(at) = &mut *lock(&self.0) {
            *at = to.max(*at);
        }
    }

    fn end(&self) {
        *lock(&self.0) = None;
    }

    fn at(&self) -> Option<Instant> {
        *lock(&self.0)
    }

    fn holds(&self) -> bool {
        let mut at = lock(&self.0);
        // Once over it stays over: others may have counted on that.
        if at.is_some_and(|at| at <= Instant::now()) {
            *at = None;
        }
        at.is_some()
    }
}

/// The right to do something, for as long as it holds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lease {
    fence: u64,
    /// `None`: for ever.
    deadline: Option<Arc<Deadline>>,
    gone: Arc<AtomicBool>,
    /// The highest fence that something it is for was seen to have.
    outdone: Arc<AtomicU64>,
}

impl Lease {
    /// One that never ends, of a node that is alone.
    pub fn for_ever() -> Lease {
        Lease {
            fence: 0,
            deadline: None,
            gone: Arc::default(),
            outdone: Arc::default(),
        }
    }

    /// One that is over.
    pub fn over() -> Lease {
        Lease {
            gone: Arc::new(true.into()),
            ..Lease::for_ever()
        }
    }

    /// One that holds until it is ended.
    #[cfg(test)]
    pub(crate) fn with_fence(fence: u64) -> Lease {
        Lease {
            fence,
            ..Lease::for_ever()
        }
    }

    fn new(fence: u64, deadline: Arc<Deadline>) -> Lease {
        Lease {
            fence,
            deadline: Some(deadline),
            gone: Arc::default(),
            outdone: Arc::default(),
        }
    }

    /// Rises each time the lease changes hands; 0 where it never does.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Whether it still holds. Nobody else begins before it has ended here, as long as this machine's clock goes at the right pace.
    pub fn holds(&self) -> bool {
        let in_time = self.deadline.as_ref().is_none_or(|deadline| deadline.holds());
        in_time && !self.gone.load(Ordering::Relaxed)
    }

    /// What it is for has a higher fence already: it has ended here, and the next one begins above that. A node whose clock was ahead may have
    /// been the first to take it, and what all have written down of it since may be gone.
    pub fn end_below(&self, fence: u64) {
        self.outdone.fetch_max(fence, Ordering::Relaxed);
        self.end();
    }

    fn outdone(&self) -> u64 {
        self.outdone.load(Ordering::Relaxed)
    }

    /// It has ended here, whatever is said elsewhere.
    pub fn end(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}
