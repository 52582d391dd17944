//! What several sinks need.

#[cfg(feature = "aws")]
pub(super) mod aws;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod field;
pub(super) mod identity;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod jsonb;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod latest;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod layout;
pub(super) mod lent;
pub(super) mod line;
pub(super) mod message;
pub(super) mod place;
#[cfg(any(feature = "sink-postgres", feature = "sink-sqlite"))]
pub(super) mod rows;
pub(super) mod said;
pub(super) mod secrets;
#[cfg(any(feature = "sink-email", feature = "sink-slack"))]
pub(super) mod sentence;
pub(super) mod sift;
pub(super) mod thread;
