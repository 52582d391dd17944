//! Reaching others over the network: what sinks, ACME, Close's API and commands have in common.
//!
//! [`address`] tells public addresses from private ones, [`tls`] and [`trust`] say whom to trust and who we are, and [`http`] makes
//! clients that do nothing nobody asked for: no redirects, no proxy from the environment, a limit on every wait.

pub mod address;
pub mod date;
pub mod http;
pub mod pem;
pub mod tls;
pub mod trust;
