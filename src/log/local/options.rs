//! How the log is kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::age::Clock;

/// Memory for decoded blocks that readers share.
const CACHE_BYTES: usize = 24 << 20;

/// How often the keeper looks around. Each time takes the time of an event or two from the commit loop; at twice a second that
/// is what the slowest of a hundred events on a quiet day are made of.
const ROUND: Duration = Duration::from_secs(2);

/// A segment goes only as a whole: it is complete when it takes up this part of what the log may take up.
pub(super) const SEGMENTS_IN_ROOM: u64 = 10;

/// Events in one segment at the most: bounds the memory that the keys of an unsealed segment take (about 60 bytes each).
pub const SEGMENT_EVENTS_MAX: u64 = 250_000;

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; made if it is missing.
    pub dir: PathBuf,
    /// A segment is complete when it has received so many bytes.
    pub segment_size: u64,
    /// A segment is complete when it is this old.
    pub segment_age: Duration,
    /// Bytes kept free on the file system; `None`: see [`super::space::default_reserve`].
    pub reserve: Option<u64>,
    /// Keys are known at least this long (and never less than 31 days).
    pub keys_kept: Duration,
    /// Memory for decoded blocks.
    pub cache_bytes: usize,
    /// Take no lock, write nothing, start no threads.
    pub read_only: bool,
    /// How often the keeper looks around.
    pub round: Duration,
    /// The clock by which segments and keys grow old.
    pub now: Clock,
}

impl Options {
    /// What the configuration says.
    pub fn from_config(config: &crate::config::Config) -> Options {
        let log = &config.log;
        // A segment goes only as a whole, so it must be small and young against the limits that retention is to keep.
        let segment_size = log.max_size.map_or(log.segment_size.0, |max| {
            log.segment_size.0.min(max.0 / SEGMENTS_IN_ROOM)
        });
        Options {
            dir: log.dir.clone(),
            segment_size: segment_size.max(1 << 16),
            segment_age: log.segment_age.0.min(log.retention.0 / 10),
            reserve: log.reserve.map(|size| size.0),
            keys_kept: log.retention.0.max(config.server.signature_tolerance.0),
            cache_bytes: CACHE_BYTES,
            read_only: false,
            round: ROUND,
            now: Clock::default(),
        }
    }
}
