//! Looking at the daemon and giving it orders: a Unix socket for commands, and a loopback listener for metrics and health.

pub mod close;
mod erase;
pub mod health;
pub mod query;
pub mod socket;
