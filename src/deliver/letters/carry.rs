//! All letters of a sink from one keeper to another, where a log goes from one engine to the other: with what is known of those that
//! went, and with the copies of their events. What they come from stays as it is.
//!
//! What an earlier try has left is either all of it, and stays, or it goes, and all of it is written anew: so no letter is there twice,
//! and none that is not in the other. What was written is read and compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::record::{self, TAG_DIVERTED, TAG_DROPPED, TAG_DROPPED_GIVEN, TAG_RELEASED, TAG_REPLAYED};
use super::{Desk, Letters, is_gone, listed};
use crate::deliver::DeadLetter;
use crate::deliver::seqs::Seqs;
use crate::event::{Event, Seq};
use crate::framefile::FrameError;
use crate::sorted;

/// Letters that go together, and bytes of the events that go with them.
const TOGETHER: usize = 256;
const BYTES: usize = 1 << 20;

/// What went along.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// Dead letters.
    pub letters: u64,
    /// Those that other sinks have given up, and that are still to be delivered.
    pub given: u64,
    /// Where something could not be read any more, and so did not go along; a sentence for each sink.
    pub damaged: Vec<String>,
}

/// What a keeper holds, as it was read from end to end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    letters: u64,
    given: u64,
    /// Letters and copies that can't be read any more.
    gone: u64,
    sha256: Vec<u8>,
}

/// Some of the letters.
#[derive(Default)]
struct Part {
    letters: Vec<DeadLetter>,
    given: Vec<DeadLetter>,
    released: Vec<Seq>,
    copies: Vec<Arc<Event>>,
    bytes: usize,
}

/// From all sinks' files into a journal that has no letters of anything else. Blocking.
pub(in crate::deliver) fn carry_into(dir: &Path, desk: &Arc<Desk>) -> Result<Carried, String> {
    let mut carried = Carried::default();
    let files = listed(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let sinks: Vec<String> = files.into_iter().map(|(sink, _)| sink).collect();
    let empty = |sink: &str| {
        let all = Letters::shared(desk, sink, false);
        let emptied = all.read().and_then(|()| all.forget());
        emptied.map(drop).map_err(|error| of_sink(sink, &error))
    };
    let topics = desk.topics()?;
    topics
        .iter()
        .filter(|topic| !sinks.contains(topic))
        .try_for_each(|topic| empty(topic))?;
    for sink in sinks {
        let from = Letters::new(dir, &sink, true);
        carry(
            &sink,
            &from,
            &|| Letters::shared(desk, &sink, false),
            &empty,
            &mut carried,
        )?;
    }
    Ok(carried)
}

/// From a journal into all sinks' files, where there is nothing but what an earlier try has left. Blocking.
pub(in crate::deliver) fn fetch_from(dir: &Path, desk: &Arc<Desk>) -> Result<Carried, String> {
    let mut carried = Carried::default();
    let sinks = desk.topics()?;
    let empty = |sink: &str| match std::fs::remove_file(dir.join(sink)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", dir.display())),
        _ => Ok(()),
    };
    let files = listed(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    for (sink, _) in files.iter().filter(|(sink, _)| !sinks.contains(sink)) {
        empty(sink)?;
    }
    for sink in sinks {
        let from = Letters::shared(desk, &sink, true);
        carry(&sink, &from, &|| Letters::new(dir, &sink, false), &empty, &mut carried)?;
    }
    Ok(carried)
}

fn of_sink(sink: &str, error: &FrameError) -> String {
    format!("the dead letters of sink \"{sink}\": {error}")
}

fn carry(
    sink: &str,
    from: &Letters,
    to: &dyn Fn() -> Letters,
    empty: &dyn Fn(&str) -> Result<(), String>,
    carried: &mut Carried,
) -> Result<(), String> {
    let fail = |error| of_sink(sink, &error);
    from.read().map_err(fail)?;
    let found = survey(from).map_err(fail)?;
    let is_there = || {
        let there = to();
        there.read()?;
        survey(&there).map(|there| there.sha256 == found.sha256)
    };
    if !is_there().map_err(fail)? {
        empty(sink)?;
        let new = to();
        new.read().and_then(|()| write_all(from, &new)).map_err(fail)?;
        if !is_there().map_err(fail)? {
            let count = found.letters + found.given;
            return Err(format!(
                "the copy of the {count} dead letters of sink \"{sink}\" is not what was copied"
            ));
        }
    }
    carried.letters += found.letters;
    carried.given += found.given;
    let trouble = from.trouble();
    if found.gone > 0 || trouble.is_some() {
        let trouble = trouble.unwrap_or_else(|| format!("{} record(s) can't be read any more", found.gone));
        carried
            .damaged
            .push(format!("dead letters of sink \"{sink}\": {trouble}"));
    }
    Ok(())
}

/// `None` where it is gone for good.
fn unless_gone<T>(got: Result<Option<T>, FrameError>, gone: &mut u64) -> Result<Option<T>, FrameError> {
    match got {
        Err(error) if is_gone(&error) => {
            *gone += 1;
            Ok(None)
        }
        got => got,
    }
}

/// The copies of events, each block of them read once.
#[derive(Default)]
struct Copies {
    block: Option<(u64, BTreeMap<Seq, Arc<Event>>)>,
    gone: u64,
}

impl Copies {
    fn of(&mut self, letters: &Letters, seq: Seq) -> Result<Option<Arc<Event>>, FrameError> {
        let Some(at) = letters.index(|index| index.places.get(&seq).and_then(|place| place.copy)) else {
            return Ok(None);
        };
        if self.block.as_ref().is_none_or(|(read, _)| *read != at) {
            let read = unless_gone(letters.found(|_| Some(at)), &mut self.gone)?;
            let events = read.map(|(tag, payload)| record::events_in(tag, &payload));
            let events = events.unwrap_or_default().into_iter();
            self.block = Some((at, sorted::map(events.map(|event| (event.seq, Arc::new(event))))));
        }
        let block = self.block.as_ref();
        Ok(block.and_then(|(_, events)| events.get(&seq).cloned()))
    }
}

/// Reads all of it.
fn survey(letters: &Letters) -> Result<Survey, FrameError> {
    let (mut found, mut digest, mut copies) = (Survey::default(), Sha256::new(), Copies::default());
    digest.update(notes_text(letters));
    for seq in letters.all_seqs(Seq::ZERO, usize::MAX) {
        let Some(letter) = unless_gone(letters.get(seq), &mut found.gone)? else {
            continue;
        };
        let is_given = letters.is_given(seq);
        let counter = if is_given { &mut found.given } else { &mut found.letters };
        *counter += 1;
        let copy = copies.of(letters, seq)?;
        let head = copy.as_ref().map(|event| {
            let signature = event.signature.as_ref();
            let signature = signature.map(|signature| (&signature.timestamp, &signature.hash));
            format!(
                "{} {} {:?} {signature:?} {}",
                event.received_at,
                event.source,
                event.kind,
                event.body.len()
            )
        });
        digest.update(format!("\n{seq} {is_given} {} {head:?}\n", letters.is_released(seq)));
        digest.update(record::letter_payload(&letter));
        digest.update(copy.map(|event| event.body.clone()).unwrap_or_default());
    }
    found.gone += copies.gone;
    found.sha256 = digest.finalize().to_vec();
    Ok(found)
}

/// What is known of those that went. Where another sink has one, that is what counts: a journal keeps the newest note alone.
fn notes_text(letters: &Letters) -> String {
    letters.index(|index| {
        let but_diverted = |ranges: Vec<(Seq, Seq)>| {
            let mut seqs = Seqs::default();
            for (from, to) in ranges.iter().filter(|(from, _)| *from > Seq::ZERO) {
                seqs.insert_range(*from, *to);
            }
            for (from, to) in index.diverted.ranges() {
                seqs.remove_range(*from, *to);
            }
            format!("{:?}", seqs.ranges())
        };
        format!(
            "{} {} {} {} {} {:?} {:?}",
            index.forgotten,
            index.dropped_given_forgotten,
            index.diverted_forgotten,
            but_diverted(index.dropped_ranges()),
            but_diverted(index.dropped_given_ranges()),
            index.diverted.ranges(),
            index.replayed
        )
    })
}

/// Writes all of it to where nothing is yet, durably.
fn write_all(from: &Letters, to: &Letters) -> Result<(), FrameError> {
    to.take_notes(from)?;
    let (mut some, mut copies) = (Part::default(), Copies::default());
    for seq in from.all_seqs(Seq::ZERO, usize::MAX) {
        let Some(letter) = unless_gone(from.get(seq), &mut copies.gone)? else {
            continue;
        };
        if let Some(copy) = copies.of(from, seq)? {
            some.bytes += copy.body.len();
            some.copies.push(copy);
        }
        if from.is_given(seq) {
            some.given.push(letter);
            some.released.extend(Some(seq).filter(|seq| from.is_released(*seq)));
        } else {
            some.letters.push(letter);
        }
        if some.letters.len() + some.given.len() >= TOGETHER || some.bytes >= BYTES {
            to.take(std::mem::take(&mut some))?;
        }
    }
    to.take(some)
}

impl Letters {
    fn take(&self, some: Part) -> Result<(), FrameError> {
        self.add(&some.letters)?;
        self.give(&some.given, 0)?;
        if !some.released.is_empty() {
            let mut released = Seqs::default();
            released.extend(some.released);
            self.write("notes", &mut |_| {
                vec![(TAG_RELEASED, record::dropped_payload(released.ranges()))]
            })?;
        }
        if some.copies.is_empty() {
            return Ok(());
        }
        self.keep_copies(&some.copies)
    }

    /// Whether the sink that gave it is known to have let go of it.
    pub(super) fn is_released(&self, seq: Seq) -> bool {
        self.index(|index| index.released.contains(&seq))
    }

    /// Notes what another keeper knows of letters that went.
    pub(super) fn take_notes(&self, other: &Letters) -> Result<(), FrameError> {
        let (dropped, given, diverted, replayed) = other.index(|index| {
            let ranges = (
                index.dropped_ranges(),
                index.dropped_given_ranges(),
                index.diverted_ranges(),
                index.replayed.clone(),
            );
            (ranges.0, ranges.1, ranges.2, ranges.3)
        });
        self.write("notes", &mut |index| {
            let new = |ranges: &[(Seq, Seq)]| {
                // A letter that there is now is newer.
                let mut seqs = Seqs::default();
                for (from, to) in ranges.iter().filter(|(from, _)| *from > Seq::ZERO) {
                    seqs.insert_range(*from, *to);
                }
                for seq in index.places.keys() {
                    seqs.remove(*seq);
                }
                let forgotten = ranges.iter().copied().filter(|(from, _)| *from == Seq::ZERO);
                forgotten.chain(seqs.ranges().iter().copied()).collect::<Vec<_>>()
            };
            let notes = [
                (TAG_DROPPED, new(&dropped)),
                (TAG_DROPPED_GIVEN, new(&given)),
                (TAG_DIVERTED, new(&diverted)),
            ];
            let notes = notes.into_iter().filter(|(_, ranges)| !ranges.is_empty());
            let notes = notes.map(|(tag, ranges)| (tag, record::dropped_payload(&ranges)));
            let replayed = replayed.iter().map(|(replay, seqs)| {
                let payload = record::replayed_payload(replay, seqs.ranges());
                (TAG_REPLAYED, payload)
            });
            notes.chain(replayed).collect()
        })
    }
}

#[cfg(test)]
mod tests;
