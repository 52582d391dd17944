//! The subscriptions that deliver to us: which are ours, what the rules want of them, how that is made so, and how they do.

pub(super) mod apply;
mod health;
pub(super) mod ownership;
pub(super) mod plan;
mod room;
mod rotation;
pub(super) mod scope;
