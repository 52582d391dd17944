//! What several sinks need.

pub(super) mod line;
