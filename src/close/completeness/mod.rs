//! The log has what Close's log has: what it lacks is fetched, and what is claimed about that is kept.

mod backfill;
mod compare;
mod jobs;
pub(super) mod marks;
pub(super) mod parts;
pub(super) mod past;
mod silence;
pub(super) mod walk;
mod withheld;
mod witness;
