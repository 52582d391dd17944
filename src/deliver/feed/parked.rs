//! The part of a feed that is given up and has no letter yet: making that is all that is tried again. What became of the event stands, and
//! it does not go once more. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Feed, Stage, weight};
use crate::deliver::types::DeadLetter;
use crate::event::Seq;

/// An event that was given up, as it is saved: with it, its tries and the log its letter is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct Parked {
    /// When it was given up.
    pub died_at: Timestamp,
    /// Because the log drops it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub buried: bool,
}

/// The same in memory.
#[derive(Debug)]
pub(super) struct Letter {
    pub parked: Parked,
    /// `None` after a restart.
    made: Option<DeadLetter>,
}

impl From<Parked> for Letter {
    fn from(parked: Parked) -> Letter {
        Letter { parked, made: None }
    }
}

/// What is said of an event that was given up for a reason.
pub(in crate::deliver) fn why_parked(reason: &str) -> String {
    format!("{reason}; its dead letter waits until an earlier one, which is being delivered, has gone")
}

impl Feed {
    /// It is given up, and does not go any more; making its letter is tried again at `due`. The body is let go meanwhile.
    pub fn park(&mut self, letter: DeadLetter, buried: bool, due: Timestamp) {
        let seq = letter.seq;
        let Some(item) = self.open.get_mut(&seq) else { return };
        self.bytes -= weight(item);
        item.loaded = None;
        item.tries.reason.clone_from(&letter.reason);
        let parked = Parked {
            died_at: letter.died_at,
            buried,
        };
        let made = Some(letter);
        item.letter = Some(Box::new(Letter { parked, made }));
        let before = std::mem::replace(&mut item.stage, Stage::Parked(due));
        let held = item.held.take();
        self.leaves(seq, before);
        self.let_go(seq, held);
        self.parked.insert(seq);
    }

    /// How many are.
    pub fn parked_len(&self) -> usize {
        self.parked.len()
    }

    /// Whether an event is.
    pub fn is_parked(&self, seq: Seq) -> bool {
        self.parked.contains(&seq)
    }

    /// All of them, each with its letter, unless that has to be made again.
    pub fn parked(&self) -> Vec<(Seq, Parked, Option<DeadLetter>)> {
        let letter = |seq: &Seq| {
            let letter = self.open.get(seq)?.letter.as_ref()?;
            Some((*seq, letter.parked.clone(), letter.made.clone()))
        };
        self.parked.iter().filter_map(letter).collect()
    }
}
