//! What every set of keys on disk is, however it is kept.

use std::io;

use super::filter::Probe;
use crate::event::Seq;

/// A set of keys on disk, in pages in the order of hashes.
pub(super) trait Known {
    /// How many keys.
    fn count(&self) -> u64;

    /// When the newest event was received, in µs.
    fn newest_us(&self) -> i64;

    /// `false`: the key is not in it. Asks memory only.
    fn may_hold(&self, probe: &Probe) -> bool;

    /// Hands on every key with this hash, and perhaps others. Reads the disk.
    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()>;

    /// How many pages.
    fn pages(&self) -> usize;

    /// Hands on the keys of one page. Reads the disk.
    fn page(&self, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()>;
}
