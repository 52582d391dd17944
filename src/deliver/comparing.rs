//! One look at the letters of a removed sink, beside everything else: by one at a time, as a disk may hang.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::letters::Letters;
use super::mark::Record;
use super::reading::aside;
use crate::framefile::FrameError;
use crate::sync::lock;

/// Removed sinks whose letters are being looked at.
pub(super) type Comparing = Arc<Mutex<BTreeSet<String>>>;

/// One of them, until whoever looks has ended: a disk that hangs is not asked again and again.
pub(super) struct Turn {
    comparing: Comparing,
    sink: String,
}

impl Turn {
    /// `None`: somebody is at it.
    pub fn take(comparing: &Comparing, sink: &str) -> Option<Turn> {
        lock(comparing).insert(sink.to_owned()).then(|| Turn {
            comparing: comparing.clone(),
            sink: sink.to_owned(),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.comparing).remove(&self.sink);
    }
}

/// What looking at the letters of a removed sink came to.
pub(super) enum Compared {
    /// Its record with what damage may have taken of them, and whether that is news, which has to be saved.
    Done(Box<Record>, bool),
    /// They can't be read now: this has to be tried again.
    NotNow,
    /// They can't be read by this closehook.
    Never,
}

/// Compares the letters of a removed sink with what was noted of them.
pub(super) async fn compare(mut record: Record, letters: &Letters, turn: Turn) -> Compared {
    let letters = letters.clone();
    let compare = move || {
        let _turn = turn;
        letters.read()?;
        let is_news = record.compare_letters(&letters);
        if is_news {
            // Else the next start would miss the same again.
            record.letters = letters.extent();
        }
        Ok::<_, FrameError>((record, is_news))
    };
    match aside(compare).await {
        Ok(Ok((record, is_news))) => Compared::Done(Box::new(record), is_news),
        Ok(Err(FrameError::Newer { .. })) => Compared::Never,
        Ok(Err(_)) | Err(_) => Compared::NotNow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_somebody_is_looking_at_are_not_looked_at_again() {
        let comparing = Comparing::default();
        let turn = Turn::take(&comparing, "a");
        assert!(turn.is_some() && Turn::take(&comparing, "a").is_none());
        assert!(Turn::take(&comparing, "b").is_some(), "another sink's are");
        drop(turn);
        assert!(Turn::take(&comparing, "a").is_some());
    }
}
