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

/// What has to stay free beside what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// A little: before what is owed is written nothing else goes on.
    Little,
    /// The log's reserve, below which it takes no events; `None`: the default one.
    Reserve(Option<u64>),
    /// As much again: it takes events meanwhile, and nobody may be in its way who only looks at it.
    ReserveTwice,
}

impl Left {
    fn bytes(self, space: Space) -> u64 {
        let reserve = default_reserve(space);
        let little = reserve.min(LEFT_MIN);
        match self {
            Left::Little => little,
            Left::Reserve(configured) => configured.unwrap_or(reserve).max(little),
            Left::ReserveTwice => 2 * reserve,
        }
    }
}

/// An error where there is less room than for so many bytes and what is left free; it says how much is needed.
pub fn have_room(path: &Path, bytes: u64, left: Left) -> io::Result<()> {
    is_room(of(path)?, path, bytes, left)
}

/// The same for the file system that is called so.
pub fn is_room(space: Space, path: &Path, bytes: u64, left: Left) -> io::Result<()> {
    let needed = bytes.saturating_add(left.bytes(space));
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
