//! Judging what a sink answers: delivered, tried again, given up; and what it says of the sink itself.

use std::borrow::Borrow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Worker;
use super::attempt::Answered;
use super::lanes::Lane;
use crate::deliver::schedule::{self, Ages, Change};
use crate::deliver::types::{DeadLetter, dead_letter};
use crate::event::{Delivery, Event, Seq};
use crate::sinks::{Commit, Outcome, Reason, Unavailable};
use crate::telemetry;

/// Why a delivery failed, and when its receiver wants it again.
struct Failure {
    reason: Reason,
    after: Option<Duration>,
}

/// What came to its end in a batch.
#[derive(Default)]
struct Ends {
    /// Letters that are made.
    dead: Vec<DeadLetter>,
    /// Letters that have had their delivery.
    removed: Vec<Seq>,
    /// Events that the sink has taken.
    taken: u64,
}

impl Worker<'_> {
    /// A call of `deliver` came back.
    pub(super) async fn delivered(&mut self, answered: Answered) {
        self.running = self.running.saturating_sub(1);
        let Answered {
            lane,
            batch,
            rest,
            call,
            asked,
            answer,
        } = answered;
        self.calls.end(&call);
        self.put_back(&lane, &rest);
        match answer {
            Ok(outcomes) => self.judged(&lane, batch, outcomes, asked).await,
            Err(unavailable) => {
                for delivery in &batch {
                    if self.lanes.ends_erased(&lane, delivery.event.seq) {
                        continue;
                    }
                    if let Some(feed) = self.lanes.feed(&lane) {
                        feed.unstarted(delivery.event.seq);
                    }
                    if asked && self.drive.commit == Commit::Transaction && matches!(lane, Lane::Letters | Lane::Given)
                    {
                        self.unanswered.insert(delivery.event.seq);
                    }
                    if lane == Lane::Letters {
                        self.letter_unanswered(delivery.event.seq, &unavailable.reason);
                    }
                }
                // That nothing can be rendered now is no event's doing.
                if asked && let [alone] = &batch[..] {
                    self.suspect(&lane, alone.event.seq, &unavailable.reason);
                }
                self.unavailable(&unavailable);
                if asked && self.is_serial() {
                    self.close_sink(&unavailable.reason);
                }
            }
        }
    }

    /// These were taken and not tried. They go next.
    pub(super) fn put_back(&mut self, lane: &Lane, rest: &[impl Borrow<Delivery>]) {
        if rest.is_empty() {
            return;
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.give_back(rest.len());
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.job.give_back(rest.len());
        }
        for delivery in rest.iter().rev() {
            let seq = delivery.borrow().event.seq;
            if self.lanes.ends_erased(lane, seq) {
                continue;
            }
            if *lane == Lane::Letters {
                self.lanes.letters.unstarted(seq);
            } else if let Some(feed) = self.lanes.feed(lane) {
                feed.unstarted(seq);
            }
        }
    }

    async fn judged(&mut self, lane: &Lane, batch: Vec<Delivery>, outcomes: Vec<Outcome>, asked: bool) {
        self.note_judged(lane, &batch);
        let now = schedule::now();
        let believed = self.breaker.believed(&outcomes);
        if asked || self.breaker.is_closed() {
            self.judge(&outcomes, now);
        } else {
            // An open one learns nothing of a sink that was not asked: the next event may show it.
            self.breaker.unasked(now);
        }
        if *lane == Lane::Main && outcomes.contains(&Outcome::Delivered) {
            self.suspects_failed(now);
        }
        let waits = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Waits(unavailable) => Some(unavailable.clone()),
            _ => None,
        });
        // A sink that has come to none of them would be asked again at once, for ever.
        let waits = waits.or_else(|| none_was_tried(&outcomes));
        let newest = outcomes.iter().rev().find(|outcome| **outcome != Outcome::Skipped);
        let ends_well = newest == Some(&Outcome::Delivered);
        self.note_had_before_skipping(lane, &batch, &outcomes).await;
        let (mut ends, mut untried) = (Ends::default(), Vec::new());
        for ((delivery, outcome), is_believed) in batch.iter().zip(outcomes).zip(believed) {
            if matches!(outcome, Outcome::Untried { .. }) {
                untried.push(delivery);
                continue;
            }
            let is_passed = matches!(outcome, Outcome::Delivered | Outcome::Skipped);
            if is_passed || !self.lanes.ends_erased(lane, delivery.event.seq) {
                self.end(lane, delivery, outcome, is_believed, now, &mut ends);
            }
        }
        // All together, so that they stay in their order.
        self.put_back(lane, &untried);
        self.note_delivered(ends.taken);
        // What failed before a success is no news of the sink.
        if ends_well {
            self.last_error = None;
        }
        if !ends.removed.is_empty() {
            self.letters_delivered(&ends.removed).await;
        }
        if !ends.dead.is_empty() {
            self.note_had(lane, batch.iter().map(|delivery| &delivery.event), &ends.dead)
                .await;
            self.make_letters(lane, ends.dead, false).await;
        }
        if let Some(unavailable) = waits {
            self.unavailable(&unavailable);
        }
    }

    /// What counts of a batch whatever became of its events.
    fn note_judged(&mut self, lane: &Lane, batch: &[Delivery]) {
        let len = |delivery: &Delivery| {
            let payload = delivery.payload();
            payload.map_or(delivery.event.body.len(), |payload| payload.bytes().len())
        };
        self.progress.unsaved(batch.len(), batch.iter().map(len).sum());
        // Somebody may be waiting for it.
        self.progress.hurry |= *lane == Lane::Letters;
        self.progress.full |= self.sink.as_ref().is_some_and(|sink| sink.is_full());
        if self.drive.commit == Commit::Transaction {
            self.record.commits += 1;
        }
    }

    /// One delivery comes to what the sink said of it.
    fn end(
        &mut self,
        lane: &Lane,
        delivery: &Delivery,
        outcome: Outcome,
        is_believed: bool,
        now: Timestamp,
        ends: &mut Ends,
    ) {
        let seq = delivery.event.seq;
        match (outcome, lane) {
            (Outcome::Delivered, Lane::Letters) => {
                self.note_sent(lane, &delivery.event);
                ends.taken += 1;
                ends.removed.push(seq);
            }
            (Outcome::Skipped, _) => {
                self.skip(lane, &delivery.event);
                if matches!(lane, Lane::Letters | Lane::Given) {
                    ends.removed.push(seq);
                }
            }
            (Outcome::Delivered, _) => {
                self.note_sent(lane, &delivery.event);
                self.finish(lane, seq);
                ends.taken += 1;
                if *lane == Lane::Given {
                    ends.removed.push(seq);
                }
                if *lane == Lane::Main && self.drive.commit == Commit::Transaction {
                    self.progress.unsaved_deliveries.insert(seq);
                }
            }
            (Outcome::Waits(unavailable), _) => self.put_off(lane, seq, &unavailable.reason),
            (Outcome::Untried { .. }, _) => self.put_back(lane, &[delivery]),
            (Outcome::Retry { reason, .. } | Outcome::Reject { reason }, Lane::Letters) => {
                self.last_error = Some((reason.text.clone(), Timestamp::now()));
                ends.dead.push(self.letter(lane, delivery, reason));
            }
            (Outcome::Reject { reason }, _) if is_believed => {
                self.last_error = Some((reason.text.clone(), Timestamp::now()));
                ends.dead.push(self.letter(lane, delivery, reason));
            }
            (Outcome::Reject { reason }, _) => {
                let failure = Failure { reason, after: None };
                ends.dead.extend(self.try_later(lane, delivery, failure, now));
            }
            (Outcome::Retry { reason, after }, _) => {
                let failure = Failure { reason, after };
                ends.dead.extend(self.try_later(lane, delivery, failure, now));
            }
        }
    }

    /// The sink could not take it, which says nothing about it.
    fn put_off(&mut self, lane: &Lane, seq: Seq, reason: &str) {
        if let Some(throttle) = &mut self.throttle {
            throttle.give_back(1);
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.job.give_back(1);
        }
        match self.lanes.feed(lane) {
            Some(feed) => feed.unstarted(seq),
            None => self.letter_failed(seq, reason),
        }
    }

    /// One batch is one answer of the receiver; of refusals at its end each is one (decision 21): they are made one by one.
    pub(super) fn judge(&mut self, outcomes: &[Outcome], now: Timestamp) {
        let any = |test: fn(&Outcome) -> bool| outcomes.iter().any(test);
        let says_nothing =
            |outcome: &Outcome| matches!(outcome, Outcome::Skipped | Outcome::Waits(_) | Outcome::Untried { .. });
        if outcomes.iter().all(says_nothing) {
            // That says nothing about the sink, or that it takes nothing now, which comes after this.
            if !any(|outcome| matches!(outcome, Outcome::Waits(_) | Outcome::Untried { .. })) {
                self.breaker.unasked(now);
            }
            return;
        }
        self.tried_in_vain |= !any(|outcome| *outcome == Outcome::Delivered);
        let reason = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Retry { reason, .. } | Outcome::Reject { reason } => Some(reason.text.as_str()),
            Outcome::Delivered | Outcome::Skipped | Outcome::Waits(_) | Outcome::Untried { .. } => None,
        });
        let reason = reason.unwrap_or_default();
        let refused = refused_at_the_end(outcomes);
        if any(|outcome| *outcome == Outcome::Delivered) {
            self.last_error = None;
            self.record.release();
            let change = self.breaker.succeeded();
            self.changed(change, reason, now);
        } else if refused == 0 {
            let change = self.breaker.failed(now);
            self.changed(change, reason, now);
        }
        for _ in 0..refused {
            let change = self.breaker.refused(now);
            self.changed(change, reason, now);
        }
    }

    /// The breaker opened or closed.
    fn changed(&mut self, change: Change, reason: &str, now: Timestamp) {
        match change {
            Change::Opened => {
                let what = if self.breaker.keeps_failing() {
                    "keeps failing"
                } else {
                    "takes nothing now"
                };
                tracing::warn!(
                    sink = self.kit.name(),
                    reason,
                    "the sink {what}: it is tried at least every {} until it works",
                    self.kit.config.breaker.probe
                );
                self.record.hold(now);
                self.lanes.letters.fail_waiting(reason);
                self.progress.dirty = true;
            }
            Change::Closed => {
                tracing::info!(sink = self.kit.name(), "the sink works again");
                self.record.release();
                self.progress.dirty = true;
            }
            // It goes on failing: letters would wait for one probe after the other.
            Change::None if !self.breaker.is_closed() => self.lanes.letters.fail_waiting(reason),
            Change::None => {}
        }
    }

    /// The sink takes nothing now: the whole of it waits, and no attempt is counted (decision 33).
    pub(super) fn unavailable(&mut self, unavailable: &Unavailable) {
        let now = schedule::now();
        self.tried_in_vain = true;
        let change = self.breaker.unavailable(now, &self.kit.config.retry, unavailable.after);
        let shown = unavailable.to_string();
        self.changed(change, &shown, now);
        self.last_error = Some((shown, Timestamp::now()));
        self.last_said.clone_from(&unavailable.said);
        self.record.hold(now);
        self.lanes.letters.fail_waiting(&unavailable.reason);
        self.progress.dirty = true;
    }

    /// The sink works, as far as opening it tells.
    pub(super) fn works_again(&mut self) {
        let change = self.breaker.succeeded();
        self.last_error = None;
        self.changed(change, "", schedule::now());
    }

    /// It was delivered, and that is noted where it does not follow from the rules.
    fn note_sent(&mut self, lane: &Lane, event: &Event) {
        if self.has_to_be_noted(lane, event) {
            self.record.fates.sent([event.seq]);
        }
    }

    /// Its transform wants nothing delivered: that is its end, and noted.
    fn skip(&mut self, lane: &Lane, event: &Event) {
        let seq = event.seq;
        self.kit.skipped.fetch_add(1, Ordering::Relaxed);
        telemetry::skipped(self.kit.name());
        // What a replay passes may have been delivered long before.
        if !matches!(lane, Lane::Replay(_)) || self.has_to_be_noted(lane, event) {
            self.record.fates.skip([seq]);
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.skipped += 1;
        }
        if let Some(feed) = self.lanes.feed(lane) {
            feed.finished(seq);
        }
        if *lane == Lane::Main && self.drive.commit == Commit::Transaction {
            self.progress.unsaved_deliveries.insert(seq);
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.give_back(1);
        }
    }

    /// So many were delivered. Where that is not durable before the next checkpoint, they count then.
    fn note_delivered(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        if self.drive.commit == Commit::Checkpoint {
            self.progress.takes(count);
        } else {
            self.count_delivered(count);
        }
    }

    pub(super) fn count_delivered(&self, count: u64) {
        self.kit.delivered.fetch_add(count, Ordering::Relaxed);
        telemetry::delivered(self.kit.name(), count);
    }

    fn finish(&mut self, lane: &Lane, seq: Seq) {
        if let Some(feed) = self.lanes.feed(lane) {
            feed.finished(seq);
        }
        if let Lane::Replay(id) = lane
            && let Some(replay) = self.lanes.replay(id)
        {
            replay.delivered += 1;
        }
    }

    /// A try failed: the event is tried again, or given up.
    fn try_later(&mut self, lane: &Lane, delivery: &Delivery, failure: Failure, now: Timestamp) -> Option<DeadLetter> {
        let Failure { reason, after } = failure;
        self.last_error = Some((reason.text.clone(), Timestamp::now()));
        let retry = self.kit.config.retry;
        let seq = delivery.event.seq;
        let tries = self.lanes.feed(lane).and_then(|feed| feed.tries(seq));
        let first = tries.and_then(|tries| Some((tries.first_attempt?, tries.counted_from)));
        let ages = Ages::at(now, &self.kit.clock);
        let first = first.map_or(now, |(first, from)| ages.counted(first, from));
        if schedule::is_too_old(&retry, first, now) {
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
        DeadLetter {
            dead: delivery.dead().cloned(),
            replay: lane.replay().map(ToString::to_string),
            ..dead_letter(self.kit.name(), &delivery.event, reason, delivery.attempt, first)
        }
    }
}

/// How many were refused since the last that was taken or failed; what is put off behind them was not asked for any more.
fn refused_at_the_end(outcomes: &[Outcome]) -> usize {
    outcomes
        .iter()
        .rev()
        .filter(|outcome| **outcome != Outcome::Skipped)
        .skip_while(|outcome| {
            matches!(
                outcome,
                Outcome::Retry { .. } | Outcome::Waits(_) | Outcome::Untried { .. }
            )
        })
        .take_while(|outcome| matches!(outcome, Outcome::Reject { .. }))
        .count()
}

/// What a sink is to wait for that says it has come to none of these, but skipped some.
fn none_was_tried(outcomes: &[Outcome]) -> Option<Unavailable> {
    let mut reasons = outcomes.iter().filter(|outcome| **outcome != Outcome::Skipped);
    let first = match reasons.next()? {
        Outcome::Untried { reason } => reason.text.clone(),
        _ => return None,
    };
    let is_untried = |outcome: &Outcome| matches!(outcome, Outcome::Untried { .. });
    reasons.all(is_untried).then(|| Unavailable::new(first))
}
