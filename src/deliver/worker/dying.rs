//! Making dead letters, trying them again, and removing those that were delivered.

use std::sync::atomic::Ordering;

use jiff::SignedDuration;

use super::lanes::Lane;
use super::{Worker, instant};
use crate::deliver::event_of;
use crate::deliver::schedule;
use crate::deliver::types::{DeadLetter, dead_letter};
use crate::event::{Delivery, Kind, Seq};
use crate::sinks::Commit;
use crate::telemetry;

/// Events that are given up in one turn because they are too old.
const GIVE_UP_EVENTS: usize = 512;

impl Worker<'_> {
    pub(super) fn letter(&mut self, lane: &Lane, delivery: &Delivery, reason: String) -> DeadLetter {
        let seq = delivery.event.seq;
        let first = self.lanes.feed(lane).and_then(|feed| feed.tries(seq)?.first_attempt);
        dead_letter(self.kit.name(), &delivery.event, reason, delivery.attempt, first)
    }

    /// Gives up what was held up, or tried, for too long. `true`: there is more.
    pub(super) async fn give_up_overdue(&mut self) -> bool {
        if self.record.held_since.is_none() || self.record.paused || self.not_before.is_some() || !self.kit.follow {
            return false;
        }
        let now = schedule::now();
        let retry = self.kit.config.retry;
        let max_age = SignedDuration::try_from(retry.max_age.0).unwrap_or(SignedDuration::MAX);
        let held = self.record.held_since;
        let (overdue, next) = self.lanes.main.overdue(held, max_age, now, GIVE_UP_EVENTS);
        self.wakes.extend(next.map(instant));
        if overdue.is_empty() {
            return false;
        }
        let why = self
            .last_error
            .as_ref()
            .map_or("the sink takes nothing", |(reason, _)| reason);
        let why = format!("given up after {}: {why}", retry.max_age);
        let mut letters = Vec::new();
        for seq in overdue {
            let loaded = match self.lanes.main.loaded(seq) {
                Some((event, _)) => Some(event),
                None => match self.load_again(&Lane::Main, seq).await {
                    Ok(loaded) => loaded.map(|(event, _)| event),
                    Err(()) => break,
                },
            };
            let tries = self.lanes.main.tries(seq).cloned().unwrap_or_default();
            match loaded {
                Some(event) => {
                    let name = self.kit.name();
                    letters.push(dead_letter(
                        name,
                        &event,
                        why.clone(),
                        tries.attempts,
                        tries.first_attempt,
                    ));
                }
                None => self.lanes.main.finished(seq),
            }
        }
        self.progress.dirty = true;
        letters.is_empty() || self.make_letters(&Lane::Main, letters).await
    }

    /// Makes dead letters durable and only then lets the feed pass their events.
    pub(super) async fn make_letters(&mut self, lane: &Lane, letters: Vec<DeadLetter>) -> bool {
        let (store, added) = (self.kit.letters.clone(), letters.clone());
        let max = self.kit.config.dead_max.0;
        let stored = tokio::task::spawn_blocking(move || {
            store.add(&added)?;
            let beyond = store.beyond(max);
            store.remove(&beyond)
        });
        let error = match stored.await {
            Ok(Ok(dropped)) => {
                if dropped > 0 {
                    telemetry::letters_dropped(self.kit.name(), dropped, self.kit.config.dead_max);
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            let later = schedule::now() + SignedDuration::from_secs(5);
            for letter in letters {
                match self.lanes.feed(lane) {
                    Some(feed) => feed.failed(letter.seq, later, "its dead letter could not be stored".into()),
                    None => self.lanes.letters.failed(letter.seq, &letter.reason),
                }
            }
            self.stumble(&format!("a dead letter could not be stored: {error}"));
            return false;
        }
        if *lane == Lane::Letters {
            for letter in &letters {
                self.lanes.letters.failed(letter.seq, &letter.reason);
            }
            return true;
        }
        if let Some(first) = letters.first() {
            telemetry::dead(self.kit.name(), letters.len() as u64, first.seq, &first.reason);
        }
        for letter in &letters {
            self.progress.is_dead(letter.seq);
            if let Some(feed) = self.lanes.feed(lane) {
                feed.finished(letter.seq);
            }
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.dead += letters.len() as u64;
        }
        self.progress.dirty = true;
        true
    }

    /// Letters that somebody wants tried. What can't be tried is still dead, and says why.
    pub(super) async fn take_letters(&mut self, most: usize) -> Vec<Delivery> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < most && bytes < self.drive.batch.bytes {
            let Some(seq) = self.lanes.letters.next() else { break };
            let letter = match self.kit.letters.get(seq) {
                Ok(Some(letter)) => letter,
                Ok(None) => {
                    self.lanes.letters.failed(seq, "it is no dead letter any more");
                    continue;
                }
                Err(error) => {
                    self.lanes.letters.failed(seq, &format!("it can't be read: {error}"));
                    continue;
                }
            };
            let event = match event_of(&self.kit.letters, &*self.kit.log, seq).await {
                Ok(Some(event)) if event.kind == Kind::Erased => {
                    self.lanes.letters.failed(seq, "its event was erased");
                    continue;
                }
                Ok(Some(event)) => event,
                Ok(None) => {
                    self.lanes.letters.failed(seq, "its event is not kept any more");
                    continue;
                }
                Err(error) => {
                    self.lanes
                        .letters
                        .failed(seq, &format!("its event can't be read: {error}"));
                    continue;
                }
            };
            bytes += event.body.len();
            let rules = self.kit.rules.load().route(self.kit.name(), &event).unwrap_or_default();
            self.lanes.letters.started(seq);
            batch.push(Delivery {
                origin: Lane::Letters.origin(),
                event,
                rules,
                attempt: letter.attempts.saturating_add(1),
            });
        }
        batch
    }

    /// Letters were delivered. They go when that is durable: at once where each answer stands for itself, else after the mark.
    pub(super) async fn letters_delivered(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            self.kit.delivered.fetch_add(1, Ordering::Relaxed);
            telemetry::delivered(self.kit.name());
            self.lanes.letters.delivered(*seq);
        }
        if self.drive.commit == Commit::Acknowledge {
            self.remove_letters(seqs).await;
        }
    }

    /// Removes letters that were delivered, durably. Where that fails it is tried again after the next save.
    pub(super) async fn remove_letters(&mut self, seqs: &[Seq]) {
        let (letters, gone) = (self.kit.letters.clone(), seqs.to_vec());
        let removed = tokio::task::spawn_blocking(move || letters.remove(&gone)).await;
        match removed {
            Ok(Ok(_)) => seqs.iter().for_each(|seq| self.lanes.letters.removed(*seq)),
            Ok(Err(error)) => {
                let what = format!("dead letters that were delivered can't be removed: {error}");
                self.stumble(&what);
            }
            Err(_) => {}
        }
        self.progress.dirty = true;
    }
}
