//! The records of one partition on their way, and what becomes of each.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use kafka_protocol::messages::produce_response::PartitionProduceResponse;

use super::record::Parcel;
use crate::sinks::Reason;

/// Refusals in a row; what is behind them waits (decision 21).
const REFUSALS_MAX: usize = 5;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Taken,
    /// It will never be taken.
    Refused(Reason),
    /// Several before it were refused: it is tried again later.
    Behind(Reason),
    /// It was not sent, for no fault of its own or of the brokers: it goes next.
    Untried(String),
    /// Nothing is known of it, or nothing is taken now: why, one sentence.
    Waits(String),
}

impl Fate {
    /// Whether it may still be taken, at another time.
    pub fn has_to_wait(&self) -> bool {
        matches!(self, Fate::Behind(_) | Fate::Untried(_) | Fate::Waits(_))
    }
}

/// The records of one partition, in their order.
pub(super) struct Lane {
    pub topic: String,
    pub partition: i32,
    pub topic_varies: bool,
    /// Places of parcels that go together; only the first ones are under way.
    pub chunks: VecDeque<Vec<usize>>,
    /// The first ones as they are written, for as long as they stay the same.
    pub written: Option<Bytes>,
    /// The first ones may be there already.
    pub is_doubtful: bool,
    /// How often a connection for it could not be made, one time after the other.
    pub unreached: usize,
    /// How often its producer was unknown.
    pub renewals: usize,
    /// Why it was not taken at the last try.
    pub trouble: String,
}

/// What becomes of parcels.
pub(super) struct Run<'p> {
    pub parcels: &'p [Parcel],
    pub fates: Vec<Fate>,
    /// In a row.
    pub refusals: usize,
}

impl Run<'_> {
    pub fn refuse(&mut self, place: usize, reason: Reason) {
        self.fates[place] = if self.refusals < REFUSALS_MAX {
            Fate::Refused(reason)
        } else {
            Fate::Behind(reason)
        };
        self.refusals += 1;
    }

    /// These were not sent, for no fault of theirs or of the brokers.
    pub fn put_off(&mut self, places: &[usize], why: &str) {
        for place in places {
            self.fates[*place] = Fate::Untried(why.to_owned());
        }
    }

    /// Whatever comes after the first that waits waits for the same. Of those behind one that was refused none was tried.
    pub fn hold_behind_the_first(&mut self) {
        let mut waiting = self.fates.iter_mut().filter(|fate| fate.has_to_wait());
        if let Some(first) = waiting.next() {
            let held = match first {
                Fate::Behind(reason) => Fate::Untried(reason.text.clone()),
                held => held.clone(),
            };
            waiting.for_each(|fate| *fate = held.clone());
        }
    }
}

impl Lane {
    pub fn is_of(&self, topic: &str, partition: usize) -> bool {
        self.topic == topic && usize::try_from(self.partition) == Ok(partition)
    }

    pub fn name(&self) -> String {
        format!("the topic {} (partition {})", self.topic, self.partition)
    }

    /// Nothing more of it is sent.
    pub fn give_up(&mut self, run: &mut Run<'_>, why: &str) {
        for place in self.chunks.drain(..).flatten() {
            run.fates[place] = Fate::Waits(why.to_owned());
        }
    }

    /// Each of it is refused.
    pub fn refuse_all(&mut self, run: &mut Run<'_>, why: &str) {
        for place in self.chunks.drain(..).flatten() {
            run.refuse(place, why.into());
        }
    }

    /// The first ones are done.
    pub fn settle(&mut self) -> Vec<usize> {
        self.written = None;
        self.is_doubtful = false;
        self.chunks.pop_front().unwrap_or_default()
    }

    /// One of the first ones is refused: which it is is said, or found out by halves.
    pub fn narrow(&mut self, run: &mut Run<'_>, answer: &PartitionProduceResponse, reason: &Reason) {
        let these = self.settle();
        let named: BTreeSet<usize> = answer
            .record_errors
            .iter()
            .filter_map(|error| usize::try_from(error.batch_index).ok())
            .filter(|place| *place < these.len())
            .collect();
        if these.len() == 1 || !named.is_empty() {
            let mut others = Vec::new();
            for (place, parcel) in these.into_iter().enumerate() {
                if named.is_empty() || named.contains(&place) {
                    run.refuse(parcel, reason.clone());
                } else {
                    others.push(parcel);
                }
            }
            if !others.is_empty() {
                self.chunks.push_front(others);
            }
        } else {
            let (one, other) = these.split_at(these.len() / 2);
            // The earlier ones go first.
            self.chunks.push_front(other.to_vec());
            self.chunks.push_front(one.to_vec());
        }
        if run.refusals >= REFUSALS_MAX {
            for place in self.chunks.drain(..).flatten() {
                run.fates[place] = Fate::Untried("several before it were refused".into());
            }
        }
    }
}
