//! Letters in a journal that several nodes share: a topic for each sink.
//!
//! Every node reads the same records in the same order, and so knows the same letters. Nobody writes on what they have not seen: who is
//! behind reads first, and decides again. A node that has lost a sink is told so by the fence that the next one writes: what it would still
//! write under its own is refused.
//!
//! A letter, and a copy of an event, is a record of its own. One that went is noted first and then removed from the journal, overwritten.
//! Notes are put together from time to time in one that says everything ([`Whole`]), and those before it go; who was further behind than
//! that takes everything from it.

mod at_hand;
mod desk;
mod notes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::damage::Damage;
use super::index::Index;
use super::keeper::{Keeper, Known, Way};
use super::reader::Frame;
use super::record::{
    Giver, TAG_COPIES, TAG_DIVERTED, TAG_FENCE, TAG_GIVEN, TAG_LETTER, TAG_REMOVE, TAG_WHOLE, dropped_in, seq_of,
    split_copies,
};
use crate::event::Seq;
use crate::framefile::{self, FrameError};
use crate::state::journal::{Content, Journal, JournalError, Kept, Record};
use crate::sync::lock;
use at_hand::AtHand;
pub(in crate::deliver) use desk::Desk;
use notes::{Whole, forget_before, going, is_wanted, record};

/// Notes are put together when there are more.
const NOTES_MAX: usize = 256;

/// Records and bytes that are appended together.
const TOGETHER: (usize, usize) = (400, 4 << 20);

/// Whoever is behind reads and decides again for so long.
const WITHIN: Duration = Duration::from_secs(20);

/// Records that are noted as gone by others are remembered up to so many.
const GARBAGE_MAX: usize = 16_384;

/// Removals at a time.
const REMOVALS: usize = 16;

/// What was to be written, and of which nobody knows whether it was, or of which some was.
#[derive(Debug)]
struct Unsure {
    /// Where the topic ended.
    end: u64,
    /// Under which lease.
    fence: u64,
    /// What would be letters that were none.
    letters: Vec<Seq>,
    /// The same of what another sink gives.
    given: Vec<(Seq, Giver)>,
    diverted: Vec<Seq>,
}

/// Letters of one sink in a journal.
#[derive(Debug)]
pub(super) struct Stream {
    desk: Arc<Desk>,
    topic: String,
    read_only: bool,
    /// Where the topic ends, as far as it is known here.
    end: u64,
    /// Where notes are, and how many places they take up.
    notes: BTreeMap<u64, u32>,
    /// Of records that take up more than one place, how many.
    lens: BTreeMap<u64, u32>,
    /// Copies of events whose letter is behind them: it was written anew.
    copies: BTreeMap<Seq, (u64, u64)>,
    /// What is noted as gone, and has to be removed.
    garbage: Arc<Mutex<BTreeMap<u64, u32>>>,
    unsure: Option<Unsure>,
    /// Everything has to be read anew.
    is_stale: bool,
    at_hand: Arc<AtHand>,
    #[cfg(test)]
    fails_at: Option<&'static str>,
}

impl Stream {
    pub fn new(desk: &Arc<Desk>, topic: &str, read_only: bool) -> Stream {
        Stream {
            desk: desk.clone(),
            topic: topic.to_owned(),
            read_only,
            end: 0,
            notes: BTreeMap::new(),
            lens: BTreeMap::new(),
            copies: BTreeMap::new(),
            garbage: Arc::default(),
            unsure: None,
            is_stale: false,
            at_hand: AtHand::new(desk, topic),
            #[cfg(test)]
            fails_at: None,
        }
    }

    /// What it stands for where a file has a path.
    pub fn path(desk: &Desk, topic: &str) -> PathBuf {
        PathBuf::from(format!("{} of {topic}", desk.journal.name()))
    }

    /// Reads what has come since, or everything where the topic is another one than it was. What is known stays until all was read.
    fn catch_up(&mut self, known: &Known) -> Result<(), FrameError> {
        self.is_stale |= lock(known).is_none();
        let caught_up = self.catch_up_by_pages(known);
        let mut garbage = lock(&self.garbage);
        if garbage.len() > GARBAGE_MAX {
            // Whoever noted it as gone removes it; what is left is found when everything is read anew.
            garbage.clear();
        }
        caught_up
    }

    fn catch_up_by_pages(&mut self, known: &Known) -> Result<(), FrameError> {
        let mut anew = None;
        loop {
            if self.is_stale && anew.is_none() {
                self.begin_anew();
                anew = Some(self.empty());
            }
            let (topic, behind) = (self.topic.clone(), self.end);
            let read = self
                .desk
                .ask(|journal| async move { journal.read(&topic, behind).await });
            let page = read.map_err(|error| self.desk.io(&error))?;
            if page.end < self.end {
                (self.is_stale, anew) = (true, None);
                continue;
            }
            if page.records.is_empty() {
                break;
            }
            let mut index = lock(known);
            let Some(index) = anew.as_mut().or(index.as_mut()) else {
                break;
            };
            for record in &page.records {
                self.take(index, record);
                self.end = record.place + u64::from(record.len) - 1;
            }
        }
        if let Some(index) = anew {
            *lock(known) = Some(index);
            self.is_stale = false;
        }
        Ok(())
    }

    fn begin_anew(&mut self) {
        self.end = 0;
        self.notes.clear();
        self.lens.clear();
        self.copies.clear();
        lock(&self.garbage).clear();
    }

    fn empty(&self) -> Index {
        Index {
            reader: Some(self.at_hand.clone()),
            ..Index::default()
        }
    }

    /// Notes what a record says.
    fn take(&mut self, index: &mut Index, record: &Kept) {
        let Kept { place, len, tag, .. } = *record;
        if len > 1 {
            self.lens.insert(place, len);
        }
        let payload = match &record.content {
            Content::Whole(payload) => payload,
            Content::Rest => {
                lock(&self.garbage).insert(place, len);
                return;
            }
            Content::Damaged => return self.note_damage(index, place),
        };
        let may_go = going(index, tag, payload);
        let (seq, bytes) = (seq_of(payload), payload.len() as u64);
        match tag {
            TAG_WHOLE => match serde_json::from_slice::<Whole>(payload) {
                Ok(whole) => {
                    whole.apply(index);
                    // It says all that those before it do.
                    lock(&self.garbage).append(&mut self.notes);
                    self.notes.insert(place, len);
                }
                Err(error) => {
                    tracing::error!(sink = self.topic, place, %error, "a note of its dead letters can't be read");
                }
            },
            TAG_FENCE => {
                index.fence = index.fence.max(seq.unwrap_or_default().0);
                self.notes.insert(place, len);
            }
            TAG_COPIES => {
                let of = split_copies(payload).and_then(|(seqs, _)| seqs.first().copied());
                match of {
                    Some(seq) if index.has(seq) => index.note_copies(place, bytes, &[seq]),
                    Some(seq) => drop(self.copies.insert(seq, (place, bytes))),
                    None => {}
                }
            }
            _ => {
                forget_before(index, tag, payload);
                index.take(&framefile::Frame {
                    offset: place,
                    tag,
                    payload,
                    after_damage: None,
                });
                if !matches!(tag, TAG_LETTER | TAG_GIVEN) {
                    self.notes.insert(place, len);
                }
            }
        }
        if let (TAG_LETTER | TAG_GIVEN, Some(seq)) = (tag, seq) {
            if tag == TAG_GIVEN {
                // Whoever gave it has to let go of it first.
                index.withheld.insert(seq, Giver::in_payload(payload));
            }
            if let Some((place, bytes)) = self.copies.remove(&seq) {
                index.note_copies(place, bytes, &[seq]);
            }
        }
        self.note_garbage(index, &may_go);
    }

    fn note_damage(&self, index: &mut Index, place: u64) {
        tracing::error!(
            sink = self.topic,
            place,
            "a record of its dead letters is damaged and can't be read any more"
        );
        let words = format!("the record at {place} of {} is damaged", self.desk.journal.name());
        // All are found again in order: the last place tells them from one that comes later.
        index.damage = Some(Damage::marked(words, place));
    }

    /// Of records that something may have been the end of, those that nothing refers to any more.
    fn note_garbage(&mut self, index: &Index, may_go: &[(Seq, u64)]) {
        let mut garbage = lock(&self.garbage);
        for (seq, place) in may_go {
            let is_used = index
                .places
                .get(seq)
                .is_some_and(|at| at.offset == *place || at.copy == Some(*place));
            if !is_used {
                garbage.insert(*place, self.lens.get(place).copied().unwrap_or(1));
            }
        }
    }

    /// Appends what is decided, together, if nobody has written meanwhile.
    fn append(&mut self, known: &Known, frames: Vec<Frame>) -> Result<(), JournalError> {
        let mut frames = frames;
        if self.end == 0 {
            // By this the topic is found.
            let whole = serde_json::to_vec(&Whole::default()).unwrap_or_default();
            frames.insert(0, (TAG_WHOLE, whole));
        }
        let records: Vec<Record> = frames.into_iter().map(record).collect();
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.payload.len();
                bytes <= TOGETHER.1
            };
            let count = rest.iter().take(TOGETHER.0).take_while(fits).count().max(1);
            let (these, after) = rest.split_at(count);
            rest = after;
            let (topic, own, end) = (self.topic.clone(), these.to_vec(), self.end);
            let appended = self
                .desk
                .ask(move |journal| async move { journal.append(&topic, &own, end).await })?;
            let mut index = lock(known);
            let index = index.get_or_insert_with(|| self.empty());
            for (record, (place, len)) in these.iter().zip(appended) {
                let kept = Kept {
                    place,
                    len,
                    tag: record.tag,
                    content: Content::Whole(record.payload.clone()),
                };
                self.take(index, &kept);
                self.end = place + u64::from(len) - 1;
            }
        }
        Ok(())
    }

    /// Makes sure that what is not known to have been written is either known to be there, or can't come any more. What counts as not
    /// written is taken back, if it was.
    fn settle(&mut self, known: &Known) -> Result<(), FrameError> {
        let Some(unsure) = self.unsure.take() else {
            return Ok(());
        };
        match self.settle_with(known, &unsure) {
            Ok(true) => Ok(()),
            // Whoever wrote it goes on from there.
            Ok(false) => Err(self.refuse("what was given to another sink was being noted")),
            Err(error) => {
                self.unsure = Some(unsure);
                Err(error)
            }
        }
    }

    /// `false`: it was written after all, and can't be taken back.
    fn settle_with(&mut self, known: &Known, unsure: &Unsure) -> Result<bool, FrameError> {
        let until = Instant::now() + WITHIN;
        loop {
            self.catch_up(known)?;
            let letters: Vec<Seq> = {
                let index = lock(known);
                let Some(index) = index.as_ref() else { return Ok(true) };
                if unsure.fence > 0 && index.fence > unsure.fence {
                    // Whoever has the sink now has seen what is there, and goes by it.
                    return Ok(true);
                }
                if unsure.diverted.iter().any(|seq| index.diverted.has(*seq)) {
                    return Ok(false);
                }
                let letters = unsure.letters.iter().filter(|seq| index.has(**seq));
                // What was released was seen by whoever gives; and another may be giving it by now.
                let given = unsure
                    .given
                    .iter()
                    .filter(|(seq, giver)| index.withheld.get(seq) == Some(giver));
                letters.chain(given.map(|(seq, _)| seq)).copied().collect()
            };
            if letters.is_empty() && self.end > unsure.end {
                return Ok(true);
            }
            let bytes = letters.iter().flat_map(|seq| seq.0.to_le_bytes()).collect();
            match self.append(known, vec![(TAG_REMOVE, bytes)]) {
                Ok(()) => return Ok(true),
                Err(JournalError::Behind) if Instant::now() < until => {}
                Err(error) => return Err(self.desk.io(&error)),
            }
        }
    }

    /// Removes what is noted as gone; gives what could not be.
    fn remove_garbage(&mut self) -> Result<(), FrameError> {
        let end = self.end;
        let garbage = {
            let mut all = lock(&self.garbage);
            // The last record is what the end is known by.
            let (gone, kept) = std::mem::take(&mut *all)
                .into_iter()
                .partition(|(place, len)| place + u64::from(*len) <= end);
            *all = kept;
            gone
        };
        for place in BTreeMap::keys(&garbage) {
            self.lens.remove(place);
        }
        let left = self.garbage.clone();
        let removed = self.desk.ask(|journal| remove(journal, garbage, left));
        removed.map_err(|error| self.desk.io(&error))
    }

    fn refuse(&self, why: &str) -> FrameError {
        self.desk.io(&JournalError::Failing(why.to_owned()))
    }

    fn write_now(
        &mut self,
        known: &Known,
        way: Way,
        decide: &mut dyn FnMut(&Index) -> Vec<Frame>,
    ) -> Result<(), FrameError> {
        let until = Instant::now() + WITHIN;
        let mut is_fresh = false;
        loop {
            self.settle(known)?;
            let (frames, unsure) = {
                let index = lock(known);
                let Some(index) = index.as_ref() else {
                    return Err(self.refuse("they were not read yet"));
                };
                if way.fence > 0 && index.fence > way.fence {
                    return Err(self.refuse("another node has the sink"));
                }
                let mut frames = decide(index);
                frames.retain(|(tag, payload)| *tag != TAG_COPIES || is_wanted(index, payload));
                let unsure = self.doubts(index, &frames, way.fence);
                (frames, unsure)
            };
            if frames.is_empty() && is_fresh {
                return Ok(());
            }
            if frames.is_empty() {
                // By what is known here, which may be old.
                self.catch_up(known)?;
                is_fresh = true;
                continue;
            }
            let before = self.end;
            let has_some = |keeper: &Stream| keeper.end > before;
            match self.append(known, frames.clone()) {
                Ok(()) => return Ok(()),
                Err(JournalError::Behind) if Instant::now() < until && !has_some(self) => self.catch_up(known)?,
                // What goes stays while there is no room for the note of it: without that it would be taken for delivered.
                Err(error) => {
                    if has_some(self) || matches!(error, JournalError::Unsure(_)) {
                        self.unsure = Some(unsure);
                    }
                    return Err(self.desk.io(&error));
                }
            }
        }
    }

    /// What would have to be taken back of these.
    fn doubts(&self, index: &Index, frames: &[Frame], fence: u64) -> Unsure {
        let of = |wanted: u32| {
            let wanted = frames.iter().filter(|(tag, _)| *tag == wanted);
            wanted.map(|(_, payload)| payload.as_slice()).collect::<Vec<_>>()
        };
        let new = |tag: u32| {
            let all = of(tag)
                .into_iter()
                .filter_map(|payload| Some((seq_of(payload)?, payload)));
            all.filter(|(seq, _)| !index.has(*seq))
        };
        let diverted = of(TAG_DIVERTED).into_iter().flat_map(dropped_in);
        Unsure {
            end: self.end,
            fence,
            letters: new(TAG_LETTER).map(|(seq, _)| seq).collect(),
            given: new(TAG_GIVEN)
                .map(|(seq, payload)| (seq, Giver::in_payload(payload)))
                .collect(),
            diverted: diverted
                .map(|(from, _)| from)
                .filter(|seq| !index.diverted.has(*seq))
                .collect(),
        }
    }

    /// Puts all notes together in one; those before it go.
    fn put_together(&mut self, known: &Known) -> Result<(), FrameError> {
        let Some(whole) = lock(known).as_ref().map(Whole::of) else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(&whole).unwrap_or_default();
        match self.append(known, vec![(TAG_WHOLE, bytes)]) {
            // Whoever has written meanwhile may have done it.
            Ok(()) | Err(JournalError::Behind) => Ok(()),
            Err(error) => Err(self.desk.io(&error)),
        }
    }
}

/// Removes records; what could not be is among the garbage again.
async fn remove(
    journal: Arc<dyn Journal>,
    garbage: BTreeMap<u64, u32>,
    left: Arc<Mutex<BTreeMap<u64, u32>>>,
) -> Result<(), JournalError> {
    use futures::StreamExt;
    let each = |(place, len): (u64, u32)| {
        let (journal, left) = (journal.clone(), left.clone());
        async move {
            let removed = journal.remove(place, len).await;
            if removed.is_err() {
                lock(&left).insert(place, len);
            }
            removed
        }
    };
    let mut removals = futures::stream::iter(garbage).map(each).buffer_unordered(REMOVALS);
    let mut outcome = Ok(());
    while let Some(removed) = removals.next().await {
        outcome = outcome.and(removed);
    }
    outcome
}

impl Keeper for Stream {
    fn read(&mut self, known: &Known) -> Result<(), FrameError> {
        if self.unsure.is_some() && !self.read_only {
            return self.settle(known);
        }
        self.catch_up(known)
    }

    fn write(
        &mut self,
        known: &Known,
        way: Way,
        decide: &mut dyn FnMut(&Index) -> Vec<Frame>,
    ) -> Result<(), FrameError> {
        if self.read_only {
            return Err(self.refuse("it was opened to be looked at only"));
        }
        #[cfg(test)]
        if self.fails_at == Some(way.step) {
            return Err(self.refuse("it failed on purpose"));
        }
        self.write_now(known, way, decide)
    }

    fn mend(&mut self, known: &Known) -> Result<(), FrameError> {
        self.settle(known)
    }

    fn tidy(&mut self, known: &Known) -> Result<(), FrameError> {
        if self.notes.len() > NOTES_MAX {
            self.put_together(known)?;
        }
        self.remove_garbage()
    }

    fn scrub(&mut self, known: &Known, turn: &dyn Fn()) -> Result<(), FrameError> {
        if self.read_only {
            return Ok(());
        }
        self.settle(known)?;
        self.at_hand.forget();
        // Also what somebody noted who did not come to remove it.
        self.is_stale = true;
        self.catch_up(known)?;
        turn();
        let orphans = std::mem::take(&mut self.copies);
        for (place, _) in orphans.into_values() {
            let len = self.lens.get(&place).copied().unwrap_or(1);
            lock(&self.garbage).insert(place, len);
        }
        if self.end == 0 {
            return Ok(());
        }
        let is_last = lock(&self.garbage)
            .iter()
            .any(|(place, len)| place + u64::from(*len) > self.end);
        if is_last {
            self.put_together(known)?;
        }
        self.remove_garbage()
    }

    fn remove_all(&mut self, known: &Known) -> Result<(), FrameError> {
        let topic = self.topic.clone();
        let forgotten = self.desk.ask(|journal| async move { journal.forget(&topic).await });
        forgotten.map_err(|error| self.desk.io(&error))?;
        self.begin_anew();
        self.is_stale = false;
        *lock(known) = Some(self.empty());
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// Each is a record of its own: what is erased shares none with what is kept.
    fn block_bytes(&self) -> usize {
        0
    }

    #[cfg(test)]
    fn fail_at(&mut self, step: Option<&'static str>) {
        self.fails_at = step;
    }
}

#[cfg(test)]
pub(super) mod tests;
