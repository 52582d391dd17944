//! A feed as it is saved, and what follows from what two sides have saved of it.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Held, Parked};
use crate::event::Seq;

/// What happened to an open event so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct Tries {
    pub attempts: u32,
    pub first_attempt: Option<Timestamp>,
    /// From when on its age counts, by the clock of the process that saved it: with what had passed before that began. `None` where it was
    /// not tried, or an older closehook saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_from: Option<Timestamp>,
    pub reason: String,
}

/// An open event as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct SavedItem {
    pub seq: Seq,
    #[serde(flatten)]
    pub tries: Tries,
    /// `None`: at once.
    pub due: Option<Timestamp>,
    pub lead: Option<String>,
    /// `None` where it was not known, or an older closehook saved it.
    #[serde(default)]
    pub received_at: Option<Timestamp>,
    /// `None` where it does not wait for its object to settle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// `None` unless it was given up and only its letter is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
}

/// A feed as it is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct Saved {
    pub next: Seq,
    pub open: Vec<SavedItem>,
}

/// From when on the age counts, here and from `now` on, of what counted from then in the process that saved it at that time: so much had
/// passed, whatever its clock showed, and whatever the time in between is.
pub(in crate::deliver) fn counted_on(
    from: Option<Timestamp>,
    saved_at: Option<Timestamp>,
    now: Timestamp,
) -> Timestamp {
    let counted = saved_at.zip(from).map(|(at, from)| at.duration_since(from));
    let counted = counted.unwrap_or_default().max(SignedDuration::ZERO);
    now.checked_sub(counted).unwrap_or(Timestamp::MIN)
}

impl Saved {
    /// Another process saved this at that time: what its tries have waited counts on from `now`.
    pub fn count_on(&mut self, saved_at: Option<Timestamp>, now: Timestamp) {
        let tries = self.open.iter_mut().map(|item| &mut item.tries);
        for tries in tries.filter(|tries| tries.first_attempt.is_some()) {
            tries.counted_from = Some(counted_on(tries.counted_from, saved_at, now));
        }
    }

    /// Whether nothing is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The machine's clock shows `now`, `by` less than when this was saved: what is waited for comes as much earlier by it. A first try that
    /// is past may have been noted by a clock that was right, and is no older than it says.
    pub fn set_back(&mut self, by: SignedDuration, now: Timestamp) {
        let back = |at: &mut Timestamp| *at = at.checked_sub(by).unwrap_or(Timestamp::MIN);
        for item in &mut self.open {
            item.due.as_mut().map(back);
            item.tries
                .first_attempt
                .as_mut()
                .filter(|first| **first > now)
                .map(back);
        }
    }

    /// What is left of both when what either has finished is finished. What is known of the tries here counts more.
    pub fn united_with(&self, theirs: &Saved) -> Saved {
        let (behind, ahead) = if self.next < theirs.next {
            (self, theirs)
        } else {
            (theirs, self)
        };
        let ours: HashMap<Seq, &SavedItem> = self.open.iter().map(|item| (item.seq, item)).collect();
        let open_behind: BTreeSet<Seq> = behind.open.iter().map(|item| item.seq).collect();
        let open = ahead
            .open
            .iter()
            .filter(|item| item.seq >= behind.next || open_behind.contains(&item.seq))
            .map(|item| ours.get(&item.seq).copied().unwrap_or(item).clone());
        Saved {
            next: ahead.next,
            open: open.collect(),
        }
    }
}
