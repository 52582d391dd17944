//! How a frame of letters is read again by its place, wherever they are kept.

use std::fmt::Debug;

use crate::framefile::{FrameError, FrameReader};

/// A frame: its tag and its payload.
pub(super) type Frame = (u32, Vec<u8>);

/// Reads a frame by its place.
pub(super) trait Reader: Debug + Send + Sync {
    /// Its tag and its payload. Blocking.
    fn read(&self, offset: u64) -> Result<Frame, FrameError>;
}

impl Reader for FrameReader {
    fn read(&self, offset: u64) -> Result<Frame, FrameError> {
        FrameReader::read(self, offset)
    }
}
