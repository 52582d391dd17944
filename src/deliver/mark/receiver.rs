//! The mark of a sink whose receiver keeps it, with the data: the record as text, packed where it is long, and what holds where the receiver
//! says other than the record that was durable here.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{Record, ReplayRecord};
use crate::deliver::schedule;
use crate::deliver::seqs::Seqs;
use crate::event::Seq;
use crate::sinks::Mark;

/// A receiver's mark is written with each of its transactions. One that is longer is packed.
const PLAIN_MAX: usize = 8 << 10;

/// What a packed one begins with: zstd in base64 follows.
const PACKED: &str = "zstd:";

/// Long before a mark is so long it is a damaged one.
const MARK_MAX: u64 = 64 << 20;

impl Record {
    /// Whether the mark that a receiver keeps is of a node that had the sink later.
    pub fn is_behind(&self, mark: &Mark, epoch: &str) -> bool {
        mark.epoch == epoch && Record::of_mark(mark).is_some_and(|theirs| theirs.fence > self.fence)
    }

    /// What a mark that a receiver keeps says; `None` where it is not what it should be.
    pub fn of_mark(mark: &Mark) -> Option<Record> {
        serde_json::from_slice(&unpacked(&mark.text)?).ok()
    }

    /// The record as a receiver keeps it, with the data.
    pub fn to_mark(&self, epoch: &str) -> Mark {
        Mark {
            epoch: epoch.to_owned(),
            seq: self.cursor().unwrap_or_default(),
            text: packed(serde_json::to_string(self).unwrap_or_default()),
        }
    }

    /// This record, settled with the mark that the receiver keeps. `is_dead` says whether there is a letter for an event.
    ///
    /// A receiver that has committed more than is known here has committed what was never answered, and its mark says what; meanwhile
    /// events may have become dead here, or been dropped from the log. So what either side has finished is finished, and a letter for
    /// what turns out to be delivered goes. A receiver that has committed less was set back, and gets again what it has lost; what is
    /// dead stays dead. A mark of another epoch of the log says nothing.
    pub fn settled_with(
        &self,
        mark: Option<&Mark>,
        epoch: &str,
        is_dead: impl Fn(Seq) -> bool,
    ) -> Result<Record, String> {
        let Some(mark) = mark.filter(|mark| mark.epoch == epoch) else {
            return Ok(self.clone());
        };
        let mut theirs = Record::of_mark(mark).ok_or("the mark that the receiver keeps for this sink can't be read")?;
        theirs.follow_clock(schedule::now());
        Ok(match theirs.commits.cmp(&self.commits) {
            Ordering::Equal => self.clone(),
            Ordering::Greater => self.united_with(theirs, is_dead),
            Ordering::Less => Record {
                main: theirs.main,
                last: theirs.last,
                replays: theirs.replays,
                commits: theirs.commits,
                fates: self.fates.set_back_to(&theirs.fates),
                // Of the letters that were delivered, those whose delivery it still has.
                remove: both(&self.remove, &theirs.remove),
                ..self.clone()
            },
        })
    }

    /// Both began with one durable record; the receiver went on with transactions that are not known here, and this side without it.
    fn united_with(&self, theirs: Record, is_dead: impl Fn(Seq) -> bool) -> Record {
        let mut remove: BTreeSet<Seq> = self.remove.iter().chain(&theirs.remove).copied().collect();
        remove.extend(theirs.delivered.iter().filter(|seq| is_dead(*seq)));
        let next = |record: &Record| record.main.as_ref().map(|main| main.next);
        let ours_is_ahead = next(self) > next(&theirs);
        let fates = self.fates.united_with(&theirs.fates, ours_is_ahead);
        let last = if ours_is_ahead { self.last.clone() } else { theirs.last };
        let main = match (&self.main, theirs.main) {
            (Some(ours), Some(theirs)) => Some(ours.united_with(&theirs)),
            (ours, theirs) => theirs.or_else(|| ours.clone()),
        };
        let mut replays = self.replays.clone();
        for (id, theirs) in theirs.replays {
            let united = match replays.get(&id) {
                Some(ours) => ours.united_with(&theirs),
                None => theirs,
            };
            replays.insert(id, united);
        }
        let mut united = Record {
            main,
            last,
            replays,
            fates,
            commits: theirs.commits,
            remove: remove.into_iter().collect(),
            buried: self.buried.max(theirs.buried),
            // What the receiver had got before that goes on where it was.
            begun_anew: self.begun_anew.filter(|_| self.begun_anew == theirs.begun_anew),
            delivered: Seqs::default(),
            ..self.clone()
        };
        for (from, to) in theirs.lost_ranges {
            united.count_lost(from, to);
        }
        united
    }
}

impl ReplayRecord {
    fn united_with(&self, theirs: &ReplayRecord) -> ReplayRecord {
        ReplayRecord {
            saved: self.saved.united_with(&theirs.saved),
            delivered: self.delivered.max(theirs.delivered),
            dead: self.dead.max(theirs.dead),
            skipped: self.skipped.max(theirs.skipped),
            done: self.done || theirs.done,
            lost: self.lost.max(theirs.lost),
        }
    }
}

/// A mark's text as the receiver gets it.
fn packed(text: String) -> String {
    if text.len() <= PLAIN_MAX {
        return text;
    }
    match zstd::bulk::compress(text.as_bytes(), 1) {
        Ok(packed) => format!("{PACKED}{}", STANDARD_NO_PAD.encode(packed)),
        Err(_) => text,
    }
}

/// The text of a mark as it was before it was packed; `None` where it is not what it should be.
fn unpacked(text: &str) -> Option<Cow<'_, [u8]>> {
    let Some(packed) = text.strip_prefix(PACKED) else {
        return Some(text.as_bytes().into());
    };
    let packed = STANDARD_NO_PAD.decode(packed).ok()?;
    let decoder = zstd::stream::read::Decoder::new(&*packed).ok()?;
    let mut text = Vec::new();
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(decoder, MARK_MAX), &mut text);
    read.ok().map(|_| text.into())
}

/// What is in both.
fn both(one: &[Seq], other: &[Seq]) -> Vec<Seq> {
    one.iter().copied().filter(|seq| other.contains(seq)).collect()
}
