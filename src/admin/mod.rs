//! The ways to the daemon's [`crate::control`]: a Unix socket for commands, and a loopback listener for metrics and health.

pub mod health;
pub mod socket;
