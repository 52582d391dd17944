//! Room on the file system.

use std::io;
use std::path::Path;

/// Bytes on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What this user may still write.
    pub free: u64,
}

/// Asks the file system a path is on.
pub fn of(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Space {
        total: stat.f_blocks * stat.f_frsize,
        free: stat.f_bavail * stat.f_frsize,
    })
}

/// Kept free for cursors, dead letters and retention: 64 MiB, and never over 5 % of the file system.
pub fn default_reserve(space: Space) -> u64 {
    (64 << 20).min(space.total / 20)
}
