//! A sealed segment: packs of events in a database that never changes again, and a manifest that says what is in it.
//!
//! The database's own durability can't be relied on (see [`database`]). So:
//!
//! - [`seal`] builds the database from the journal, closes it, opens it and reads every pack back, comparing checksums, until
//!   that changes no byte of any file any more (the first openings write snapshots), syncs every file
//!   and directory, and only then writes the manifest. The journal is dropped after that. A crash at any step repeats it all.
//! - The [manifest](Manifest) names every file with its length and checksum, and keeps the small ones. A database is opened only after its
//!   files match; otherwise a *copy* of it is opened and what can still be read is saved (`salvage`), so the database
//!   never gets to repair the only copy.
//! - Every pack is compared with the manifest's checksum on every read.
//! - Opening runs under `catch_unwind`.
//!
//! One thread changes sealed segments, the keeper. A rewrite is built in a directory of its own, and directories are [swapped](swap)
//! whole; the segment that gave way is [retired](SealedSegment::retire) first, so that nobody who still holds it reads another
//! one's files. Damage is what the files say ([`SealedSegment::examine`]), never what a read failed with.

mod carve;
mod check;
pub(super) mod database;
mod index;
mod manifest;
mod packs;
mod salvage;
mod segment;
pub(super) mod swap;
#[cfg(test)]
mod tests;

pub(super) use manifest::{Manifest, has, is_sealed};
pub(super) use salvage::{look_through, salvage};
pub(super) use segment::{Access, OpenDatabases, SealedSegment, read_block, rewrite, seal, time};
