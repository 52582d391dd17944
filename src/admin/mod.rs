//! The ways to the daemon's [`crate::control`]: a Unix socket for commands, and a listener for the operator's page, metrics and health.

pub mod acts;
pub mod api;
pub mod auth;
pub mod fields;
mod gate;
pub mod health;
pub mod hosts;
pub mod http;
mod pace;
pub mod page;
mod places;
pub mod refused;
pub mod sessions;
pub mod sign_in;
pub mod socket;
pub mod state;
pub mod streams;
pub mod tokens;
pub mod viewer;
