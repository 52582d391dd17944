//! Dead letters of one sink: which are made, tried again, removed. How that becomes durable is in `chores`.

use std::sync::Arc;

use jiff::SignedDuration;
use tokio::time::Instant;

use super::lanes::Lane;
use super::queue::ERASED;
use super::{Worker, apart_of, instant};
use crate::deliver::feed::{Rules, Tries};
use crate::deliver::letters::{event_of, is_gone};
use crate::deliver::memory::Held;
use crate::deliver::reading::aside;
use crate::deliver::schedule::{self, Ages};
use crate::deliver::types::{DeadLetter, dead_letter};
use crate::event::{Delivery, Event, Kind, Origin, Seq};
use crate::sinks::Commit;

/// Events that are given up in one turn because they are too old.
const GIVE_UP_EVENTS: usize = 512;

impl Worker<'_> {
    /// Letters that somebody wants tried. What can't be tried is still dead, and says why.
    pub(super) async fn take_letters(&mut self, most: usize) -> Vec<Delivery> {
        let (mut batch, mut bytes, began) = (Vec::new(), 0, Instant::now());
        while batch.len() < most && bytes < self.drive.batch.bytes && self.lanes.letters.may_load() {
            let Some(seq) = self.lanes.letters.next() else { break };
            let reads = Instant::now();
            match self.load_letter(seq).await {
                Ok(Ok((delivery, held))) => {
                    bytes += delivery.event.body.len();
                    self.lanes.letters.started(held);
                    batch.push(delivery);
                }
                Ok(Err(None)) => self.lanes.letters.gone(seq),
                Ok(Err(Some(why))) => self.lanes.letters.failed(seq, why),
                Err(why) => {
                    self.lanes.letters.failed(seq, &why);
                    if self.is_long(reads) {
                        // The others would each be waited for as long.
                        self.lanes.letters.fail_waiting(&why);
                        self.stumble(&format!("a dead letter can't be tried: {why}"));
                        break;
                    }
                }
            }
            if self.is_long(began) {
                break;
            }
        }
        batch
    }

    /// A letter as it is delivered, with what holds its event, or why it never will be; without a reason: it is no letter any more.
    /// `Err`: it can't be read now.
    async fn load_letter(&self, seq: Seq) -> Result<Result<(Delivery, Held), Option<&'static str>>, String> {
        let letters = self.kit.letters.clone();
        let letter = match aside(move || letters.get(seq)).await {
            Ok(Err(error)) if is_gone(&error) => return Ok(Err(Some("it is damaged, and can't be read any more"))),
            Ok(letter) => letter.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        let letter = letter.map_err(|error| format!("it can't be read: {error}"))?;
        let Some(letter) = letter.filter(|_| self.kit.letters.has(seq)) else {
            return Ok(Err(None));
        };
        let event = event_of(&self.kit.letters, &*self.kit.log, seq, &letter.id).await;
        let Some(event) = event.map_err(|error| format!("its event can't be read: {error}"))? else {
            return Ok(Err(Some("its event is not kept any more")));
        };
        if event.kind == Kind::Erased {
            return Ok(Err(Some(ERASED)));
        }
        let dead = letter.dead.map(Arc::new);
        let held = self.kit.memory.hold(&event);
        let delivery = Delivery {
            origin: dead.map_or_else(|| Lane::Letters.origin(), Origin::Diverted),
            rules: self.rules.route_again(self.kit.name(), &event).unwrap_or_default(),
            event: held.event().clone(),
            attempt: letter.attempts.saturating_add(1),
            rendered: None,
        };
        Ok(Ok((delivery, held)))
    }

    /// What another sink gave up, read to be delivered. `Ok(None)`: there is nothing to deliver any more. `Err`: it can't be read now, and
    /// that was noted.
    pub(super) async fn load_given(&mut self, seq: Seq) -> Result<Option<(Arc<Event>, Rules)>, ()> {
        if !self.kit.letters.is_given(seq) {
            return Ok(None);
        }
        let letters = self.kit.letters.clone();
        let letter = match aside(move || letters.get(seq)).await {
            Ok(Ok(letter)) => Ok(letter),
            Ok(Err(error)) if is_gone(&error) => Ok(None),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error),
        };
        let letter = letter.map_err(|error| self.stumble(&format!("a letter can't be read: {error}")))?;
        let id = letter.as_ref().map_or("", |letter| letter.id.as_str());
        let event = event_of(&self.kit.letters, &*self.kit.log, seq, id).await;
        let event = event.map_err(|error| self.stumble(&format!("the event of a letter can't be read: {error}")))?;
        let Some(event) = event else {
            self.count_lost(&[(seq, seq)]);
            // The letter goes when it is durable that its event is lost.
            self.lanes.letters.delivered(seq);
            return Ok(None);
        };
        if event.kind == Kind::Erased {
            self.remove_letters(&[seq]).await;
            return Ok(None);
        }
        // Without the letter nobody knows why it came, and it is to be delivered all the same.
        if let Some(dead) = letter.and_then(|letter| letter.dead) {
            self.lanes.given_up.insert(seq, Arc::new(dead));
        }
        let rules = self.rules.route(self.kit.name(), &event).unwrap_or_default();
        Ok(Some((self.lanes.given.load(&event, rules.clone()), rules)))
    }

    /// Says of which events no other letter may be made now.
    pub(super) fn note_leaving(&self) {
        let mut leaving = self.lanes.leaving();
        leaving.extend(&self.unanswered);
        // By what is durable, or may be, they go when the sink begins anew.
        leaving.extend(self.durable.remove.iter().chain(&self.progress.removing));
        if !self.kit.lease.holds() {
            // Whoever has the sink now knows that better.
            leaving.clear();
        }
        self.kit.letters.set_leaving(leaving);
    }

    /// A letter was being delivered, and the sink has said nothing of it. One that keeps the mark itself is asked when it is open again.
    pub(super) fn letter_unanswered(&mut self, seq: Seq, reason: &str) {
        if self.drive.commit == Commit::Transaction {
            self.lanes.letters.doubt(seq, reason, Instant::now());
        } else {
            self.letter_failed(seq, reason);
        }
    }

    /// It was not delivered: it is still dead, unless somebody has let it go meanwhile.
    pub(super) fn letter_failed(&mut self, seq: Seq, reason: &str) {
        if self.kit.letters.has(seq) {
            self.lanes.letters.failed(seq, reason);
        } else {
            self.lanes.letters.gone(seq);
        }
    }

    /// Nobody is kept waiting for ever for a receiver that can't be asked.
    pub(super) fn end_doubts(&mut self, now: Instant) {
        if self.lanes.letters.doubts_end().is_some_and(|end| end <= now) {
            self.lanes.letters.leave_doubted();
        }
    }

    /// Letters were delivered. They go when that is durable: at once where each answer stands for itself, else after the mark.
    pub(super) async fn letters_delivered(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            self.lanes.letters.delivered(*seq);
        }
        if self.drive.commit == Commit::Acknowledge {
            self.remove_letters(seqs).await;
        }
    }

    /// Gives up what was held up, or tried, for too long. Not before one more try has failed since it started or was resumed.
    /// `true`: there is more.
    pub(super) async fn give_up_overdue(&mut self) -> bool {
        if self.record.held_since.is_none()
            || !self.tried_in_vain
            || self.record.paused
            || self.not_before.is_some()
            || !self.kit.follow
        {
            return false;
        }
        let main = self.give_up_overdue_of(&Lane::Main).await;
        main | self.give_up_overdue_of(&Lane::Given).await
    }

    async fn give_up_overdue_of(&mut self, lane: &Lane) -> bool {
        let ages = Ages::at(schedule::now(), &self.kit.clock);
        let retry = self.kit.config.retry;
        let max_age = SignedDuration::try_from(retry.max_age.0).unwrap_or(SignedDuration::MAX);
        let held = self.record.held_since;
        let held = held.map(|since| ages.counted(since, self.record.held_counted_from));
        let clocks = (ages, jiff::Timestamp::now());
        let apart = apart_of(&self.kit.config);
        let Some(feed) = self.lanes.feed(lane) else {
            return false;
        };
        let (overdue, next) = feed.overdue(held, max_age, apart, clocks, GIVE_UP_EVENTS);
        self.wakes.extend(next.map(instant));
        if overdue.is_empty() {
            return false;
        }
        // Letters are told apart by it: what the receiver says is another thing each time perhaps.
        let of_sink = self.last_error.as_ref().map(|(reason, _)| {
            let own = reason.strip_suffix(self.last_said.as_str());
            own.unwrap_or(reason).to_owned()
        });
        let (mut letters, mut events, began) = (Vec::new(), Vec::new(), Instant::now());
        for seq in overdue {
            if !letters.is_empty() && self.is_long(began) {
                break;
            }
            let loaded = match self.lanes.feed(lane).and_then(|feed| feed.loaded(seq)) {
                Some((event, _)) => Some(event),
                None => match self.load_again(lane, seq).await {
                    Ok(loaded) => loaded.map(|(event, _)| event),
                    Err(()) => break,
                },
            };
            let Some(feed) = self.lanes.feed(lane) else { break };
            let tries = feed.tries(seq).cloned().unwrap_or_default();
            match loaded {
                Some(event) => {
                    let given_up = self.lanes.given_up.get(&seq).filter(|_| *lane == Lane::Given);
                    let dead = given_up.map(|dead| (**dead).clone());
                    let why = format!(
                        "given up after {}: {}",
                        retry.max_age,
                        why_of(&tries, of_sink.as_deref())
                    );
                    let name = self.kit.name();
                    let letter = dead_letter(name, &event, why.into(), tries.attempts, tries.first_attempt);
                    letters.push(DeadLetter { dead, ..letter });
                    events.push(event);
                }
                None => feed.finished(seq),
            }
        }
        self.progress.dirty = true;
        self.note_had(lane, events.iter(), &letters).await;
        letters.is_empty() || self.make_letters(lane, letters, false).await
    }
}

/// Why an event got nowhere: what its own last try came to. What the sink said last, which may be of another event, is said as such.
fn why_of(tries: &Tries, of_sink: Option<&str>) -> String {
    if tries.attempts > 0 && !tries.reason.is_empty() {
        return tries.reason.clone();
    }
    let of_sink = of_sink.map_or_else(String::new, |reason| format!(" ({reason})"));
    if tries.attempts > 0 {
        return format!("nothing came back of its try, and then the sink took nothing{of_sink}");
    }
    format!("never tried: the sink took nothing{of_sink}")
}
