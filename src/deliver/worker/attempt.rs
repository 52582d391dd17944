//! Handing a batch to the sink, and judging what it answers.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::lanes::Lane;
use super::{Done, GRACE, Worker, instant};
use crate::deliver::event_of;
use crate::deliver::mark::Record;
use crate::deliver::schedule::{self, Change};
use crate::deliver::types::{DeadLetter, dead_letter};
use crate::event::{Delivery, Kind, Seq};
use crate::sinks::{Batch, Commit, Outcome, Reason, Unavailable};
use crate::telemetry;

/// Events that are given up in one turn because they are too old.
const GIVE_UP_EVENTS: usize = 512;

/// What a call of `deliver` has come to.
pub(super) struct Finished {
    lane: Lane,
    batch: Vec<Delivery>,
    began: Instant,
    answer: Result<Vec<Outcome>, Unavailable>,
}

/// Why a delivery failed, and when its receiver wants it again.
struct Failure {
    reason: Reason,
    after: Option<Duration>,
}

impl Worker<'_> {
    /// Hands out what may go now.
    pub(super) async fn dispatch(&mut self) {
        while self.may_deliver() && self.running < self.concurrency {
            let now = schedule::now();
            if !self.lanes.any_ready(now, self.kit.follow) || self.waits_for_more(now) {
                return;
            }
            let most = self.drive.batch.events;
            let mut allowed = self.breaker.allows(now, most);
            if allowed > 0
                && let Some(throttle) = &mut self.throttle
            {
                allowed = throttle.take(now, allowed);
                if allowed == 0 {
                    self.wakes.push(Instant::now() + throttle.wait());
                }
            }
            if allowed == 0 {
                return;
            }
            let (lane, batch) = self.next_batch(now, allowed).await;
            if let Some(throttle) = &mut self.throttle {
                throttle.give_back(allowed - batch.len());
            }
            if batch.is_empty() {
                return;
            }
            self.breaker.started();
            self.launch(lane, batch);
        }
    }

    fn may_deliver(&self) -> bool {
        let save_first = match self.drive.commit {
            Commit::Acknowledge => false,
            Commit::Checkpoint => self.progress.saving || self.save_is_due(),
            Commit::Transaction => self.progress.names_enough(),
        };
        self.sink.is_some() && !self.record.paused && self.not_before.is_none() && !self.progress.settle && !save_first
    }

    /// A sink that gathers waits a while for a batch to fill.
    fn waits_for_more(&mut self, now: Timestamp) -> bool {
        let limits = self.drive.batch;
        if limits.wait.is_zero() || self.lanes.main.next() <= *self.head.borrow() {
            return false;
        }
        let ready = self.lanes.main.deliverable(now, limits.events);
        let bytes = self.lanes.main.held_bytes();
        if ready.is_empty() || ready.len() >= limits.events || bytes >= limits.bytes {
            return false;
        }
        let oldest = self.read_upto.unwrap_or(now);
        let wait = SignedDuration::try_from(limits.wait).unwrap_or(SignedDuration::MAX);
        let until = oldest.checked_add(wait).unwrap_or(now);
        if until > now {
            self.wakes.push(instant(until));
        }
        until > now
    }

    /// The next deliveries of one lane: new events first, then letters, then replays.
    async fn next_batch(&mut self, now: Timestamp, most: usize) -> (Lane, Vec<Delivery>) {
        if self.kit.follow {
            let batch = self.take(&Lane::Main, now, most).await;
            if !batch.is_empty() {
                return (Lane::Main, batch);
            }
        }
        let batch = self.take_letters(most).await;
        if !batch.is_empty() {
            return (Lane::Letters, batch);
        }
        for index in 0..self.lanes.replays.len() {
            let replay = &mut self.lanes.replays[index];
            let job = replay.job.clone();
            if !job.is_running() || replay.done || replay.feed.deliverable(now, 1).is_empty() {
                continue;
            }
            let allowed = job.take(now, most);
            if allowed == 0 {
                self.wakes.extend(job.wait().map(|wait| Instant::now() + wait));
                continue;
            }
            let lane = Lane::Replay(job.id.clone());
            let batch = self.take(&lane, now, allowed).await;
            job.give_back(allowed - batch.len());
            if !batch.is_empty() {
                return (lane, batch);
            }
        }
        (Lane::Main, Vec::new())
    }

    /// Takes deliverable events of a feed, reading again those that are not in memory, as far as there is memory for them.
    async fn take(&mut self, lane: &Lane, now: Timestamp, most: usize) -> Vec<Delivery> {
        let Some(feed) = self.lanes.feed(lane) else {
            return Vec::new();
        };
        let seqs = feed.deliverable(now, most);
        let mut batch: Vec<Delivery> = Vec::with_capacity(seqs.len());
        let mut bytes = 0;
        for seq in seqs {
            if bytes >= self.drive.batch.bytes {
                break;
            }
            let loaded = match self.lanes.feed(lane).and_then(|feed| feed.loaded(seq)) {
                Some(loaded) => Some(loaded),
                None if !self.lanes.has_memory(lane) && (self.running > 0 || !batch.is_empty()) => break,
                None => match self.load_again(lane, seq).await {
                    Ok(loaded) => loaded,
                    Err(()) => break,
                },
            };
            let Some(feed) = self.lanes.feed(lane) else { break };
            let Some((event, rules)) = loaded else {
                feed.finished(seq);
                self.progress.dirty = true;
                continue;
            };
            bytes += event.body.len();
            let attempt = feed.started(seq, now);
            batch.push(Delivery {
                origin: lane.origin(),
                event,
                rules,
                attempt,
            });
        }
        batch
    }

    /// Letters that somebody wants tried. What can't be tried is still dead, and says why.
    async fn take_letters(&mut self, most: usize) -> Vec<Delivery> {
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

    fn launch(&mut self, lane: Lane, batch: Vec<Delivery>) {
        let Some(sink) = self.sink.clone() else { return };
        self.running += 1;
        let began = self.calls.begin(Instant::now());
        let commit = self.drive.commit;
        // Where a call is one exchange the batch does not matter; where each event is one, it does.
        let times = if commit == Commit::Acknowledge {
            batch.len() as u32
        } else {
            1
        };
        let limit = self.kit.config.timeout.0 * times + GRACE;
        let before = match commit {
            Commit::Transaction => Record {
                delivered: self.progress.delivered(),
                ..self.snapshot()
            },
            Commit::Acknowledge | Commit::Checkpoint => Record::default(),
        };
        let epoch = self.kit.log.epoch().to_owned();
        let name = self.kit.name().to_owned();
        self.tasks.spawn(async move {
            let mark_after = |outcomes: &[Outcome]| after(&before, &lane, &batch, outcomes).to_mark(&epoch);
            let handed = Batch::new(&batch, &mark_after);
            let deliver = AssertUnwindSafe(tokio::time::timeout(limit, sink.deliver(&handed)));
            let trouble = match deliver.catch_unwind().await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err("the delivery took too long"),
                Err(_) => {
                    telemetry::sink_restarted(&name, "delivery");
                    Err("the sink panicked; this is a defect of closehook, please report it")
                }
            };
            let answer = match trouble {
                Ok(answer) => answer,
                Err(reason) if commit == Commit::Acknowledge => Ok(vec![retry(reason); batch.len()]),
                Err(reason) => Err(Unavailable::new(reason)),
            };
            let answer = answer.map(|mut outcomes| {
                outcomes.resize(batch.len(), retry("the sink gave no answer for the event"));
                outcomes
            });
            Done::Delivered(Finished {
                lane,
                batch,
                began,
                answer,
            })
        });
    }

    /// A call of `deliver` came back.
    pub(super) async fn delivered(&mut self, finished: Finished) {
        self.running = self.running.saturating_sub(1);
        let Finished {
            lane,
            batch,
            began,
            answer,
        } = finished;
        self.calls.end(began);
        match answer {
            Ok(outcomes) => self.judged(&lane, batch, outcomes).await,
            Err(unavailable) => {
                for delivery in &batch {
                    if self.lanes.ends_erased(&lane, delivery.event.seq) {
                        continue;
                    }
                    if let Some(feed) = self.lanes.feed(&lane) {
                        feed.unstarted(delivery.event.seq);
                    }
                    if lane == Lane::Letters {
                        self.lanes.letters.failed(delivery.event.seq, &unavailable.reason);
                    }
                }
                self.unavailable(&unavailable);
                if self.is_serial() {
                    self.close_sink(&unavailable.reason);
                }
            }
        }
    }

    async fn judged(&mut self, lane: &Lane, batch: Vec<Delivery>, outcomes: Vec<Outcome>) {
        self.progress.dirty = true;
        self.progress.unsaved += batch.len();
        self.progress.unsaved_bytes += batch.iter().map(|delivery| delivery.event.body.len()).sum::<usize>();
        if self.drive.commit == Commit::Transaction {
            self.record.commits += 1;
        }
        let now = schedule::now();
        let doubted = self.breaker.doubts_refusals();
        self.judge(&outcomes, now);
        let (mut dead, mut removed) = (Vec::new(), Vec::new());
        for (delivery, outcome) in batch.iter().zip(outcomes) {
            let seq = delivery.event.seq;
            if outcome != Outcome::Delivered && self.lanes.ends_erased(lane, seq) {
                continue;
            }
            match (outcome, lane) {
                (Outcome::Delivered, Lane::Letters) => removed.push(seq),
                (Outcome::Delivered, _) => {
                    self.finish(lane, seq);
                    if *lane == Lane::Main && self.drive.commit == Commit::Transaction {
                        self.progress.unsaved_deliveries.insert(seq);
                    }
                }
                (Outcome::Retry { reason, .. } | Outcome::Reject { reason }, Lane::Letters) => {
                    self.last_error = Some((reason.text.clone(), Timestamp::now()));
                    dead.push(dead_letter(
                        self.kit.name(),
                        &delivery.event,
                        reason,
                        delivery.attempt,
                        None,
                    ));
                }
                (Outcome::Reject { reason }, _) if !doubted => {
                    self.last_error = Some((reason.text.clone(), Timestamp::now()));
                    dead.push(self.letter(lane, delivery, reason));
                }
                (Outcome::Reject { reason }, _) => {
                    dead.extend(self.try_later(lane, delivery, Failure { reason, after: None }, now));
                }
                (Outcome::Retry { reason, after }, _) => {
                    dead.extend(self.try_later(lane, delivery, Failure { reason, after }, now));
                }
            }
        }
        if !removed.is_empty() {
            self.letters_delivered(&removed).await;
        }
        if !dead.is_empty() {
            self.make_letters(lane, dead).await;
        }
    }

    /// One batch is one answer of the receiver.
    fn judge(&mut self, outcomes: &[Outcome], now: Timestamp) {
        let any = |test: fn(&Outcome) -> bool| outcomes.iter().any(test);
        self.tried_in_vain |= !any(|outcome| *outcome == Outcome::Delivered);
        let change = if any(|outcome| *outcome == Outcome::Delivered) {
            self.last_error = None;
            self.record.held_since = None;
            self.breaker.succeeded()
        } else if any(|outcome| matches!(outcome, Outcome::Retry { .. })) {
            self.breaker.failed(now)
        } else {
            self.breaker.refused(now)
        };
        let reason = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Retry { reason, .. } | Outcome::Reject { reason } => Some(reason.text.as_str()),
            Outcome::Delivered => None,
        });
        self.changed(change, reason.unwrap_or_default(), now);
    }

    /// The breaker opened or closed.
    fn changed(&mut self, change: Change, reason: &str, now: Timestamp) {
        match change {
            Change::Opened => {
                tracing::warn!(
                    sink = self.kit.name(),
                    reason,
                    "the sink keeps failing: it is tried at least every {} until it works",
                    self.kit.config.breaker.probe
                );
                self.record.held_since.get_or_insert(now);
                self.lanes.letters.fail_waiting(reason);
                self.progress.dirty = true;
            }
            Change::Closed => {
                tracing::info!(sink = self.kit.name(), "the sink works again");
                self.record.held_since = None;
                self.progress.dirty = true;
            }
            Change::None => {}
        }
    }

    /// The sink takes nothing now: the whole of it waits, and no attempt is counted (decision 33).
    pub(super) fn unavailable(&mut self, unavailable: &Unavailable) {
        let now = schedule::now();
        self.tried_in_vain = true;
        let change = self.breaker.unavailable(now, &self.kit.config.retry, unavailable.after);
        self.changed(change, &unavailable.reason, now);
        self.last_error = Some((unavailable.reason.clone(), Timestamp::now()));
        self.record.held_since.get_or_insert(now);
        self.lanes.letters.fail_waiting(&unavailable.reason);
        self.progress.dirty = true;
    }

    /// The sink works, as far as opening it tells.
    pub(super) fn works_again(&mut self) {
        let change = self.breaker.succeeded();
        self.last_error = None;
        self.changed(change, "", schedule::now());
    }

    fn finish(&mut self, lane: &Lane, seq: Seq) {
        self.kit.delivered.fetch_add(1, Ordering::Relaxed);
        telemetry::delivered(self.kit.name());
        if let Some(feed) = self.lanes.feed(lane) {
            feed.finished(seq);
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.delivered += 1;
        }
    }

    /// Letters were delivered. They go when that is durable: at once where each answer stands for itself, else after the mark.
    async fn letters_delivered(&mut self, seqs: &[Seq]) {
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

    /// A try failed: the event is tried again, or given up.
    fn try_later(&mut self, lane: &Lane, delivery: &Delivery, failure: Failure, now: Timestamp) -> Option<DeadLetter> {
        let Failure { reason, after } = failure;
        self.last_error = Some((reason.text.clone(), Timestamp::now()));
        let retry = self.kit.config.retry;
        let seq = delivery.event.seq;
        let first = self.lanes.feed(lane).and_then(|feed| feed.tries(seq)?.first_attempt);
        if schedule::is_too_old(&retry, first.unwrap_or(now), now) {
            let text = format!("given up after {}: {reason}", retry.max_age);
            return Some(self.letter(lane, delivery, Reason { text, ..reason }));
        }
        telemetry::retried(self.kit.name());
        let delay = schedule::delay(&retry, delivery.attempt, after);
        let due = SignedDuration::try_from(delay).ok();
        let due = due.and_then(|delay| now.checked_add(delay).ok());
        if let Some(feed) = self.lanes.feed(lane) {
            feed.failed(seq, due.unwrap_or(now), reason.text);
        }
        None
    }

    fn letter(&mut self, lane: &Lane, delivery: &Delivery, reason: Reason) -> DeadLetter {
        let seq = delivery.event.seq;
        let first = self.lanes.feed(lane).and_then(|feed| feed.tries(seq)?.first_attempt);
        dead_letter(self.kit.name(), &delivery.event, reason, delivery.attempt, first)
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
                        why.clone().into(),
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
        let stored = tokio::task::spawn_blocking(move || store.add_within(&added, max));
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
}

/// The record as it is once a transaction with these outcomes is committed. Only what was delivered is passed.
fn after(before: &Record, lane: &Lane, batch: &[Delivery], outcomes: &[Outcome]) -> Record {
    let delivered: BTreeSet<Seq> = batch
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Delivered)
        .map(|(delivery, _)| delivery.event.seq)
        .collect();
    let mut record = Record {
        commits: before.commits + 1,
        ..before.clone()
    };
    match lane {
        Lane::Main => {
            if let Some(main) = &mut record.main {
                main.open.retain(|item| !delivered.contains(&item.seq));
            }
            record.delivered.extend(delivered);
        }
        Lane::Replay(id) => {
            if let Some(replay) = record.replays.get_mut(&**id) {
                replay.saved.open.retain(|item| !delivered.contains(&item.seq));
                replay.delivered += delivered.len() as u64;
            }
        }
        Lane::Letters => record.remove.extend(&delivered),
    }
    record
}

fn retry(reason: &str) -> Outcome {
    Outcome::Retry {
        reason: reason.into(),
        after: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Order;
    use crate::deliver::feed::{Feed, Saved};
    use crate::event::{Event, Source};

    fn delivery(seq: u64) -> Delivery {
        let event = Event::new(
            Seq(seq),
            Timestamp::UNIX_EPOCH,
            Source::Webhook,
            Kind::Event,
            None,
            "{}".into(),
        );
        Delivery {
            origin: Lane::Main.origin(),
            event: Arc::new(event),
            rules: Arc::default(),
            attempt: 1,
        }
    }

    #[test]
    fn the_mark_after_a_transaction_passes_what_was_delivered_and_nothing_else() {
        let batch: Vec<Delivery> = (1..=3).map(delivery).collect();
        let mut feed = Feed::restore(
            &Saved {
                next: Seq(1),
                open: vec![],
            },
            Order::None,
        );
        for delivery in &batch {
            feed.offer(delivery.event.clone(), Arc::default());
            feed.started(delivery.event.seq, Timestamp::UNIX_EPOCH);
        }
        let before = Record {
            main: Some(feed.save()),
            commits: 7,
            remove: vec![Seq(90)],
            ..Record::default()
        };
        let outcomes = [
            Outcome::Delivered,
            Outcome::Reject { reason: "no".into() },
            Outcome::Delivered,
        ];
        let main = after(&before, &Lane::Main, &batch, &outcomes);
        let open: Vec<u64> = main.main.as_ref().unwrap().open.iter().map(|item| item.seq.0).collect();
        assert_eq!((open, main.commits, main.cursor()), (vec![2], 8, Some(Seq(1))));
        let letters = after(&before, &Lane::Letters, &batch, &outcomes);
        assert_eq!(letters.remove, [Seq(90), Seq(1), Seq(3)]);
        assert_eq!(letters.main, before.main);
    }
}
