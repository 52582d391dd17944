//! A node that is alone has every lease, for ever.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Lease, Leases, NodeStatus, Want};

/// Nobody else is there.
#[derive(Debug)]
pub struct Alone(watch::Sender<u64>);

impl Default for Alone {
    fn default() -> Alone {
        Alone(watch::Sender::new(0))
    }
}

#[async_trait]
impl Leases for Alone {
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn lease(&self, _what: &str) -> Option<Lease> {
        Some(Lease::for_ever())
    }

    fn want(&self, _wants: Vec<Want>) {}

    async fn give_up(&self, _what: &str) {}

    fn are_shared(&self) -> bool {
        false
    }

    fn holder(&self, _what: &str) -> Option<String> {
        None
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        Vec::new()
    }
}
