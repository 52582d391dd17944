//! What becomes of the rows of a batch, and which of them is tried next where some were refused.

use std::ops::Range;

use super::session::Trouble;
use crate::event::Delivery;
use crate::sinks::common::layout::Made;
use crate::sinks::{Outcome, Reason, Unavailable};

/// Why something is no row.
pub(super) const UNREADABLE: &str = "it can't be read as an event";

/// What becomes of an event, if its row is taken.
pub(super) fn readable(delivery: &Delivery) -> Outcome {
    if delivery.event.view().is_some() {
        return Outcome::Delivered;
    }
    Outcome::Reject {
        reason: UNREADABLE.into(),
    }
}

/// What holds of a row apart from how it went.
pub(super) fn settled(row: &Made, outcome: Outcome) -> Outcome {
    match row {
        Made::Event(_) | Made::Fields(_) | Made::Revision(_) => outcome,
        Made::Skipped => Outcome::Skipped,
        Made::Refused(reason) => Outcome::Reject {
            reason: reason.as_str().into(),
        },
    }
}

/// Why rows were refused, if it is their fault.
pub(super) fn refused(trouble: Trouble) -> Result<Reason, Unavailable> {
    match trouble {
        Trouble::Rows(reason) => Ok(reason),
        Trouble::AlreadyThere(said) => Ok(said.into()),
        Trouble::Sink(unavailable) => Err(unavailable),
    }
}

/// A range of rows was refused: if it is one row, that is the bad one; else its halves are tried.
pub(super) fn split(ranges: &mut Vec<Range<usize>>, range: Range<usize>, reason: &Reason, outcomes: &mut [Outcome]) {
    if range.len() == 1 {
        outcomes[range.start] = Outcome::Reject {
            reason: Reason {
                text: format!("the server refuses it: {reason}"),
                answer: reason.answer.clone(),
            },
        };
        return;
    }
    let middle = range.start + range.len() / 2;
    ranges.push(middle..range.end);
    ranges.push(range.start..middle);
}
