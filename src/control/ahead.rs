//! Events from a place in the log on, a piece at a time, for whoever follows what comes: at a price that is bounded, and with how far it
//! was looked, so that the next piece begins there whether or not anything was found.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Facade;
use super::answers::{Out, Refusal};
use super::events::Line;
use super::pick::Pick;
use super::walk::{first_of, read};
use crate::event::Seq;

/// The next events that are meant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ahead {
    /// Which.
    #[serde(default)]
    pub pick: Pick,
    /// Only those behind this one.
    #[serde(default)]
    pub after: Seq,
    /// At most so many, [`LINES_MAX`] at the most.
    #[serde(default)]
    pub limit: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// In Seq order.
    pub events: Vec<Line>,
    /// Everything up to here was looked at.
    pub looked: Seq,
}

/// Events of a piece at the most.
pub const LINES_MAX: u64 = 500;

/// A piece takes no longer than this, and the one reading of the log that it is in then: others wait for their turn.
const WITHIN: Duration = Duration::from_millis(250);

/// Events that are read in one go.
const STEP: usize = 512;

impl Ahead {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Found>) -> Result<(), Refusal> {
        let selection = self.pick.compile()?;
        let narrow = selection.narrow();
        let limit = self.limit.clamp(1, LINES_MAX) as usize;
        let until = Instant::now() + WITHIN;
        let head = *on.log.head().borrow();
        let mut next = first_of(on, &selection, Some(self.after.next())).await?;
        let mut found = Found {
            events: Vec::new(),
            looked: self.after.max(next.prev()).min(head.max(self.after)),
        };
        while found.looked < head && !out.is_closed() {
            let batch = read(on, next, STEP, Some(&narrow)).await?;
            if batch.next == next {
                break;
            }
            for event in batch.events.iter().filter(|event| selection.selects(event)) {
                found.events.push(Line::of(event));
                if found.events.len() == limit {
                    found.looked = event.seq;
                    return out.say(&found).await;
                }
            }
            next = batch.next;
            found.looked = next.prev();
            if Instant::now() >= until {
                break;
            }
        }
        out.say(&found).await
    }
}
