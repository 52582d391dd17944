//! What several sinks need.

pub(super) mod line;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod rows;
pub(super) mod thread;
