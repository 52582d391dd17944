//! What somebody has agreed to who was shown how many dead letters there are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::answers::Refusal;
use crate::deliver::DeadLetter;

/// What somebody has agreed to who was shown a count. What was given up since then is not meant, and where there is more than was counted
/// all the same, nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    /// How many were counted.
    pub letters: u64,
    /// When the last of what was counted can have been given up.
    pub upto: Timestamp,
}

impl Agreed {
    /// Whether a letter can have been counted.
    pub(super) fn has(&self, letter: &DeadLetter) -> bool {
        letter.died_at <= self.upto
    }

    /// A refusal where more is meant than was counted.
    pub(super) fn check(self, meant: u64) -> Result<(), Refusal> {
        if meant <= self.letters {
            return Ok(());
        }
        Err(format!(
            "{meant} dead letters are meant now, and {} were counted: nothing was done; count them again",
            self.letters
        ))
    }
}
