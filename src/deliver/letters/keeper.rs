//! Where the letters of one sink are kept: frames, in the order in which they were written. What they say together is the index.
//!
//! There are two of them: a file on this machine ([`super::disk`]), and a stream that several nodes share ([`super::stream`]). The index is
//! the same for both, and so is everything that is asked of it.

use std::fmt::Debug;
use std::sync::Mutex;

use super::index::Index;
use super::reader::Frame;
use crate::framefile::FrameError;

/// What is known of what is kept; `None` until it was read. Only a keeper changes what is in it of letters, and holds it over no I/O.
pub(super) type Known = Mutex<Option<Index>>;

/// How something is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// What is done, as tests that make a disk fail call it.
    pub step: &'static str,
    /// Under which lease; 0: under none. Refused where somebody with a later one has taken the letters over.
    pub fence: u64,
    /// It may be lost in a crash: what it says is found out otherwise then.
    pub is_lazy: bool,
}

/// Keeps the letters of one sink. All of it is blocking.
///
/// An error of a stream is a [`FrameError::Io`] as well, in which the stream stands for the file.
pub(super) trait Keeper: Debug + Send {
    /// Reads what is there, or what has come from others since.
    fn read(&mut self, known: &Known) -> Result<(), FrameError>;

    /// Writes frames together, and notes them in the index: durable when it returns. Where it fails none of them counts, as soon as
    /// something can be written again. Which they are is decided by what is there: whoever decides may be asked again, where others have
    /// written meanwhile.
    fn write(
        &mut self,
        known: &Known,
        way: Way,
        decide: &mut dyn FnMut(&Index) -> Vec<Frame>,
    ) -> Result<(), FrameError>;

    /// Reads once more what is looked at only, and may have been written by others since.
    fn look_again(&mut self, _known: &Known) -> Result<(), FrameError> {
        Ok(())
    }

    /// Has no damage in it any more, where it can be written anew. That may take long, and `turn` is called as it gets on.
    fn heal(&mut self, _known: &Known, _turn: &dyn Fn()) -> Result<(), FrameError> {
        Ok(())
    }

    /// Has nothing in it but what is known of it.
    fn mend(&mut self, known: &Known) -> Result<(), FrameError>;

    /// Gives back what is taken up by what went, where that is much.
    fn tidy(&mut self, known: &Known) -> Result<(), FrameError>;

    /// Leaves nothing of what went. That may take long, and `turn` is called as it gets on.
    fn scrub(&mut self, known: &Known, turn: &dyn Fn()) -> Result<(), FrameError>;

    /// Leaves nothing at all.
    fn remove_all(&mut self, known: &Known) -> Result<(), FrameError>;

    /// Whether others write as well.
    fn is_shared(&self) -> bool {
        false
    }

    /// Bytes of bodies in one block of copies, roughly.
    fn block_bytes(&self) -> usize;

    /// The step at which it fails from now on.
    #[cfg(test)]
    fn fail_at(&mut self, step: Option<&'static str>);
}

#[cfg(test)]
mod tests {
    use super::super::Letters;
    use super::super::tests::letter;

    /// Whoever was told that they are not stored delivers their events.
    #[test]
    fn letters_that_could_not_be_added_are_not_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&[letter(1)]).unwrap();
        store.fail_at(Some("add"));
        store.add(&[letter(2), letter(3)]).unwrap_err();
        assert_eq!(store.len(), 1);
        drop(store);
        let store = Letters::open(dir.path(), "a", false).unwrap();
        assert_eq!(store.len(), 1);
        store.add(&[letter(3)]).unwrap();
        assert_eq!(
            store.all_seqs(crate::event::Seq::ZERO, 9),
            [1, 3].map(crate::event::Seq)
        );
    }
}
