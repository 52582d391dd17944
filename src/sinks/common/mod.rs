//! What several sinks need.

pub(super) mod identity;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod latest;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod layout;
pub(super) mod line;
pub(super) mod place;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod rows;
pub(super) mod said;
pub(super) mod secrets;
pub(super) mod thread;
