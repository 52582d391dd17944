//! What the mark remembers of objects: those that may be there, and what is surely in one. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::event::Origin;
use crate::sinks::Position;

/// Which deliveries share objects: those of one lane come in the order of their Seqs (letters do not).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Lane(pub String);

impl Lane {
    pub(super) fn of(origin: &Origin) -> Lane {
        Lane(match origin {
            Origin::Live => String::new(),
            Origin::Letter | Origin::Diverted(_) => "letters".into(),
            Origin::Replay(id) => format!("replay {id}"),
        })
    }

    /// Whether its Seqs rise.
    pub(super) fn rises(&self) -> bool {
        self.0 != "letters"
    }

    /// What stands in names for it; nothing for new events. Letters may come to be letters again, so each try has a name of its own.
    pub(super) fn job(&self, now: jiff::Timestamp) -> String {
        match self.0.strip_prefix("replay ") {
            Some(id) => format!("{id}-"),
            None if self.rises() => String::new(),
            None => format!("letters{}-", now.as_millisecond()),
        }
    }
}

/// Seqs, as ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct Seqs(Vec<(u64, u64)>);

impl Seqs {
    /// From what is sorted.
    pub(super) fn of(sorted: impl IntoIterator<Item = u64>) -> Seqs {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for seq in sorted {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 >= seq => *last = seq.max(*last),
                _ => ranges.push((seq, seq)),
            }
        }
        Seqs(ranges)
    }

    fn at(&self, seq: u64) -> Option<usize> {
        let index = self.0.partition_point(|(_, last)| *last < seq);
        self.0
            .get(index)
            .is_some_and(|(first, _)| *first <= seq)
            .then_some(index)
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        self.at(seq).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn last(&self) -> u64 {
        self.0.last().map_or(0, |(_, last)| *last)
    }

    pub(super) fn first(&self) -> u64 {
        self.0.first().map_or(0, |(first, _)| *first)
    }

    /// `true`: it was one of them.
    pub(super) fn remove(&mut self, seq: u64) -> bool {
        let Some(index) = self.at(seq) else { return false };
        let (first, last) = self.0[index];
        let left = [(first, seq.wrapping_sub(1)), (seq + 1, last)];
        let left = left.into_iter().filter(|(from, to)| from <= to && *to < u64::MAX);
        self.0.splice(index..=index, left);
        true
    }

    pub(super) fn extend(&mut self, other: &Seqs) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(&other.0);
        all.sort_unstable();
        for (first, last) in all {
            match self.0.last_mut() {
                Some((_, end)) if *end + 1 >= first => *end = last.max(*end),
                _ => self.0.push((first, last)),
            }
        }
    }
}

impl From<Seqs> for String {
    fn from(seqs: Seqs) -> String {
        let mut text = String::new();
        for (first, last) in seqs.0 {
            if !text.is_empty() {
                text.push(',');
            }
            // Writing to a String can't fail.
            let _ = if first == last {
                write!(text, "{first}")
            } else {
                write!(text, "{first}-{last}")
            };
        }
        text
    }
}

impl TryFrom<String> for Seqs {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Seqs, Self::Error> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Ok((first.parse()?, last.parse()?))
        };
        Ok(Seqs(parts.map(range).collect::<Result<_, _>>()?))
    }
}

/// Events that were, or are, to be in one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// Of their Seqs and keys: the object carries it, and so says what is in it.
    pub digest: String,
    pub seqs: Seqs,
}

impl Content {
    /// From Seqs and keys, in whatever order they came.
    pub(super) fn of(mut events: Vec<(u64, [u8; 32])>) -> Content {
        events.sort_unstable();
        let mut digest = Sha256::new();
        for (seq, key) in &events {
            digest.update(seq.to_be_bytes());
            digest.update(key);
        }
        Content {
            digest: hex::encode(&digest.finalize()[..16]),
            seqs: Seqs::of(events.iter().map(|(seq, _)| *seq)),
        }
    }
}

/// An object that may be there: it was about to be handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The whole key.
    pub name: String,
    pub lane: Lane,
    /// What it may hold: usually one thing. Another one for each try that was given fewer of the events.
    pub tried: Vec<Content>,
}

impl Plan {
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.tried.iter().any(|content| content.seqs.contains(seq))
    }

    pub(super) fn last(&self) -> u64 {
        self.tried
            .iter()
            .map(|content| content.seqs.last())
            .max()
            .unwrap_or_default()
    }

    pub(super) fn add(&mut self, content: Content) {
        if !self.tried.contains(&content) {
            self.tried.push(content);
        }
    }
}

/// What is remembered with the mark.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Objects that may be there.
    pub plans: Vec<Plan>,
    /// Events that are in an object although the mark does not know it yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub done: BTreeMap<Lane, Seqs>,
    /// Names that somebody else's objects have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<String>,
}

impl State {
    /// As it was saved; nothing, where it is nothing that this sink has written.
    pub(super) fn of(position: Option<&Position>) -> State {
        position
            .and_then(|position| serde_json::from_value(position.0.clone()).ok())
            .unwrap_or_default()
    }

    pub(super) fn position(&self) -> Position {
        // Strings and lists: that can't fail.
        Position(serde_json::to_value(self).unwrap_or_default())
    }

    /// An object that may be there is: what it holds is known by its digest.
    pub(super) fn is_there(&mut self, index: usize, digest: Option<&str>) {
        let plan = self.plans.remove(index);
        match plan.tried.iter().find(|content| Some(&*content.digest) == digest) {
            Some(content) => self.done.entry(plan.lane).or_default().extend(&content.seqs),
            None => self.taken.push(plan.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_the_set(mut seqs in prop::collection::btree_set(1_u64..60, 0..40), gone in 0_u64..60, more in prop::collection::btree_set(1_u64..60, 0..40)) {
            let mut ranges = Seqs::of(seqs.iter().copied());
            for seq in 0..61 {
                prop_assert_eq!(ranges.contains(seq), seqs.contains(&seq));
            }
            prop_assert_eq!(ranges.remove(gone), seqs.remove(&gone));
            prop_assert_eq!(&ranges, &Seqs::of(seqs.iter().copied()));
            prop_assert_eq!(&ranges, &Seqs::try_from(String::from(ranges.clone())).unwrap());
            ranges.extend(&Seqs::of(more.iter().copied()));
            prop_assert_eq!(&ranges, &Seqs::of(seqs.union(&more).copied()));
            prop_assert_eq!(ranges.last(), seqs.union(&more).max().copied().unwrap_or_default());
        }
    }

    #[test]
    fn an_object_that_is_there_is_taken_over_if_it_is_ours_and_left_alone_if_not() {
        let content = |digest: &str, seqs: &str| Content {
            digest: digest.into(),
            seqs: seqs.to_owned().try_into().unwrap(),
        };
        let plan = Plan {
            name: "a".into(),
            lane: Lane(String::new()),
            tried: vec![content("1", "1-9"), content("2", "1-4")],
        };
        let state = State {
            plans: vec![plan],
            ..State::default()
        };
        let after = |digest: Option<&str>| {
            let mut state = state.clone();
            state.is_there(0, digest);
            State::of(Some(&state.position()))
        };
        assert_eq!(after(Some("2")).done[&Lane(String::new())], Seqs::of(1..=4));
        for digest in [None, Some("3")] {
            let after = after(digest);
            assert_eq!((after.done.len(), &*after.taken), (0, &["a".to_owned()][..]));
        }
        assert_eq!(
            State::of(Some(&Position(serde_json::json!({"file": 1})))),
            State::default()
        );
    }
}
