//! What several sinks need.

pub(super) mod line;
pub(super) mod thread;
