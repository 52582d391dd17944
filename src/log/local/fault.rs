//! What can be the matter with a segment, in whichever form it is.

use std::io;

/// Why a segment, or a part of it, can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SegmentError {
    /// The file system said no; worth another try.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is there is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// It was rewritten or removed, and something else is in its place: worth another look.
    #[error("it was replaced meanwhile")]
    Retired,
    /// A newer closehook wrote it.
    #[error("{0}")]
    Newer(String),
}

impl SegmentError {
    /// Long work has stopped for something else, as [`go_on`] says it: nothing has failed.
    pub(super) fn is_giving_way(&self) -> bool {
        matches!(self, SegmentError::Io(error) if error.kind() == io::ErrorKind::Interrupted)
    }
}

/// Whether long work is still wanted; an error that is worth another try if not.
pub(super) fn go_on(progress: &mut dyn FnMut() -> bool) -> io::Result<()> {
    if progress() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "it is not wanted any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_not_wanted_any_more_gives_way_and_has_not_failed() {
        let error = go_on(&mut || false).unwrap_err();
        assert!(SegmentError::Io(error).is_giving_way());
        assert!(!SegmentError::Io(io::Error::other("no room")).is_giving_way());
        go_on(&mut || true).unwrap();
    }
}
