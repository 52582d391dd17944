//! Going back from the newest event through those that are meant, within bounds that are said: for whoever asks for a page of them, or
//! for some to try something on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Facade;
use super::answers::{Refusal, text};
use super::looked::{Ended, LOST_MAX, Looked, Lost, Work};
use super::walk::first_of;
use crate::event::{Event, Seq};
use crate::log::{Narrow, TakeBack};
use crate::rules::selection::Selection;

/// Events that are read in one go, at first and at the most, and bytes of them: between two of these it is looked whether anybody still
/// listens. A page that is full soon should not have cost more than it shows.
const FIRST_STEP_EVENTS: usize = 64;
const STEP_EVENTS: usize = 2048;
const STEP_BYTES: usize = 4 << 20;
const STEP_WITHIN: Duration = Duration::from_millis(100);

/// So many ids may be asked for at once.
const IDS_MAX: usize = 1000;

/// More than this nobody may look at for one answer.
const WORK_MAX: Work = Work {
    events: 5_000_000,
    bytes: 8 << 30,
    millis: 30_000,
};

/// A way back through the events that are meant.
pub(super) struct Back<'f> {
    on: &'f Facade,
    selection: Selection,
    narrow: Narrow,
    /// Nothing that is meant is before this one.
    floor: Seq,
    work: Work,
    until: Instant,
    /// Read, and not looked at yet; newest first.
    read: VecDeque<Arc<Event>>,
    /// Where it began.
    began: Seq,
    /// Events of the next reading.
    step: usize,
    /// Where the next reading goes back from.
    next: Seq,
    /// Where events are that are asked for by their ids, the newest last; `None`: others are asked for.
    places: Option<Vec<Seq>>,
    /// How far it was looked.
    pub looked: Looked,
    /// What can't be read any more of that, newest first, the first few.
    pub lost: Vec<Lost>,
    /// Why there are no more.
    pub ended: Option<Ended>,
}

impl<'f> Back<'f> {
    /// From `before` on, that one not included.
    pub async fn from(on: &'f Facade, selection: Selection, before: Seq, work: Work) -> Result<Back<'f>, Refusal> {
        let before = before.min(on.log.head().borrow().next());
        let floor = first_of(on, &selection, None).await?;
        let mut back = Back {
            on,
            narrow: selection.narrow(),
            places: None,
            floor,
            work: Work {
                events: work.events.clamp(1, WORK_MAX.events),
                bytes: work.bytes.clamp(1, WORK_MAX.bytes),
                millis: work.millis.min(WORK_MAX.millis),
            },
            until: Instant::now(),
            read: VecDeque::new(),
            began: before,
            step: FIRST_STEP_EVENTS,
            next: before,
            looked: Looked {
                to: before,
                received_at: None,
                scanned: 0,
                bytes: 0,
                found: 0,
            },
            lost: Vec::new(),
            ended: None,
            selection,
        };
        back.until += Duration::from_millis(back.work.millis);
        if !back.selection.ids.is_empty() {
            back.places = Some(back.places_of_ids(before).await?);
        }
        Ok(back)
    }

    /// Nothing before this one is meant.
    pub fn go_no_further_than(&mut self, floor: Seq) {
        self.floor = self.floor.max(floor);
        if let Some(places) = &mut self.places {
            places.retain(|seq| *seq >= self.floor);
        }
    }

    /// The log knows where each revision of an event is.
    async fn places_of_ids(&self, before: Seq) -> Result<Vec<Seq>, Refusal> {
        if self.selection.ids.len() > IDS_MAX {
            return Err(format!("ask for at most {IDS_MAX} ids at once"));
        }
        let mut places = Vec::new();
        for id in &self.selection.ids {
            places.extend(self.on.log.find(id).await.map_err(text)?);
        }
        places.retain(|seq| *seq < before && *seq >= self.floor);
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// The next one that is meant. `go_on` hears how far it has got, and says whether anybody still wants to know. None: see `ended`.
    pub async fn next(
        &mut self,
        go_on: &mut (dyn FnMut(Looked) -> bool + Send),
    ) -> Result<Option<Arc<Event>>, Refusal> {
        loop {
            while let Some(event) = self.read.pop_front() {
                self.looked.to = event.seq;
                self.looked.received_at = Some(event.received_at);
                self.looked.scanned += 1;
                self.looked.bytes += event.body.len() as u64;
                if self.selection.selects(&event) {
                    self.looked.found += 1;
                    return Ok(Some(event));
                }
            }
            self.looked.to = self.next;
            let is_through = match &self.places {
                Some(places) => places.is_empty(),
                None => self.next <= self.floor,
            };
            if is_through {
                self.ended = Some(Ended::Beginning);
                return Ok(None);
            }
            let is_enough = self.looked.scanned >= self.work.events || self.looked.bytes >= self.work.bytes;
            // However little time there is, it gets on, and so does whoever goes on from there.
            if is_enough || (self.looked.to < self.began && Instant::now() >= self.until) {
                self.ended = Some(Ended::Work);
                return Ok(None);
            }
            if !go_on(self.looked) {
                return Err(Refusal::new());
            }
            self.read_on().await?;
        }
    }

    async fn read_on(&mut self) -> Result<(), Refusal> {
        if let Some(places) = &mut self.places {
            let Some(seq) = places.pop() else { return Ok(()) };
            self.next = if places.is_empty() { self.floor.min(seq) } else { seq };
            self.read.extend(self.on.log.get(seq).await.map_err(text)?);
            return Ok(());
        }
        let take = TakeBack {
            from: self.floor,
            events: self.step.min((self.work.events - self.looked.scanned) as usize),
            bytes: STEP_BYTES.min((self.work.bytes - self.looked.bytes) as usize),
            within: STEP_WITHIN,
            narrow: Some(&self.narrow),
            since: self.selection.since,
            until: self.selection.until,
        };
        self.step = (self.step * 4).min(STEP_EVENTS);
        let batch = self.on.log.read_back(self.next, take).await.map_err(text)?;
        self.next = batch.reached;
        self.read = batch.events.into();
        for (from, to) in batch.lost {
            if self.lost.len() < LOST_MAX {
                self.lost.push(Lost { from, to });
            }
        }
        Ok(())
    }

    /// Where to go on behind what was given; `None`: there is nothing more.
    pub fn cursor(&self) -> Option<Seq> {
        match self.ended {
            Some(Ended::Beginning) => None,
            _ => Some(self.looked.to).filter(|to| *to > self.floor),
        }
    }
}
