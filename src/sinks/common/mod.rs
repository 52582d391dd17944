//! What several sinks need.

#[cfg(feature = "aws")]
pub(super) mod aws;
pub(super) mod identity;
pub(super) mod line;
pub(super) mod place;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod rows;
pub(super) mod said;
pub(super) mod secrets;
pub(super) mod thread;
