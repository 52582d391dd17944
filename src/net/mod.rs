//! Reaching others over the network: what sinks, ACME, Close's API and commands have in common.
//!
//! [`address`] tells public addresses from private ones, [`tls`] and [`trust`] say whom to trust and who we are, and [`http`] makes
//! clients that do nothing nobody asked for: no redirects, no proxy from the environment, a limit on every wait. [`client`] is the one
//! of all sinks, whose servers a stranger may run: what they send without end holds up nobody. [`reply`] is an answer with its body.

pub mod address;
pub mod client;
mod connect;
pub mod date;
mod heard;
pub mod http;
pub(crate) mod meter;
#[cfg(any(feature = "sink-nats", feature = "engine-jetstream"))]
pub mod nats;
pub mod pem;
pub mod percent;
pub mod reply;
pub mod tls;
pub mod trust;
