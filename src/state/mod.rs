//! What must survive a restart beside the events: small values by key.

pub mod local;
