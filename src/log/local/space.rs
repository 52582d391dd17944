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

/// What writes much leaves this free whatever reserve is configured, so that nobody else runs into a full disk meanwhile.
const LEFT_MIN: u64 = 8 << 20;

/// An error where there is less room than for so many bytes and what is left free; it says how much is needed.
pub fn have_room(path: &Path, bytes: u64) -> io::Result<()> {
    let space = of(path)?;
    let needed = bytes.saturating_add(default_reserve(space).min(LEFT_MIN));
    if space.free >= needed {
        return Ok(());
    }
    let text = format!(
        "{} have to be free on the file system of {}",
        crate::config::Size(needed),
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Kept free for cursors, dead letters and retention: 64 MiB, and never over 5 % of the file system.
pub fn default_reserve(space: Space) -> u64 {
    (64 << 20).min(space.total / 20)
}
