//! Backups: a whole data directory as one stream of checksummed frames, and back.
//!
//! ```text
//! head ─ state, gaps ─ files: known keys, dead letters, signature keys ─ segments of blocks ─ digest of all
//! ```
//!
//! A backup is taken while the daemon runs. It is consistent because of its order: the positions of the sinks come first, so
//! that no cursor is beyond what the log, looked at later, holds; so do the marks of what is complete at Close. Dead letters are
//! looked at after the positions that have passed them. Whatever was answered 200 before it began is in it.
//!
//! What is not in it: files that sinks wrote, what was set aside as damaged, the configuration.
//!
//! Memory is bounded by one block and the state, reading as well as writing. A stream that does not end with its digest is
//! refused, and leaves nothing behind.

mod format;
mod make;
mod restore;

pub use format::{BackupError, Head, Summary};
pub use make::{estimate, write};
pub use restore::{check, restore};
