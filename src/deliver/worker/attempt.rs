//! Which lane's turn it is, and handing a batch of it to the sink.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::hanging::Call;
use super::lanes::Lane;
use super::{Done, GRACE, Worker, apart_of, instant};
use crate::deliver::feed::Feed;
use crate::deliver::finished;
use crate::deliver::mark::Record;
use crate::deliver::rendering::Rendering;
use crate::deliver::schedule;
use crate::event::{Delivery, Seq};
use crate::rules::RuleSet;
use crate::sinks::{Batch, Commit, Outcome, Sink, Unavailable};
use crate::task;
use crate::telemetry;

/// A batch that waits so long for more keeps no bodies meanwhile.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// A lane that has nothing to deliver, and takes so long to find that out, had its turn.
const SLOW: Duration = Duration::from_millis(200);

/// What a call of `deliver` has come to.
pub(super) struct Answered {
    pub lane: Lane,
    pub batch: Vec<Delivery>,
    /// What was taken with these and has not been tried: what is made of them has no room yet.
    pub rest: Vec<Delivery>,
    pub call: Call,
    /// Whether the sink was asked at all: rendering may have been the end of each event.
    pub asked: bool,
    pub answer: Result<Vec<Outcome>, Unavailable>,
}

impl Worker<'_> {
    /// Hands out what may go now.
    pub(super) async fn dispatch(&mut self) {
        let began = Instant::now();
        while self.may_deliver() && self.running < self.concurrency {
            let now = schedule::now();
            let main = self.kit.follow
                && !self.may_be_superseded()
                && !self.lanes.main.deliverable(now, 1).is_empty()
                && !self.waits_for_more(now);
            let given = self.given_may_go(now);
            if !main && !given && !self.lanes.others_ready(now) {
                return;
            }
            // What is gathered for long goes as one message: a token of the rate is one of these, and so is a probe unless one event is.
            let most = self.drive.batch.events;
            let is_probe_of_one = !self.breaker.is_closed() && self.kit.config.options.splits();
            let is_one = self.drive.batch.wait >= LONG_WAIT && !is_probe_of_one;
            let mut allowed = self.breaker.allows(now, if is_one { 1 } else { most });
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
            let (lane, batch) = self
                .next_batch(now, if is_one { most } else { allowed }, (main, given))
                .await;
            if let Some(throttle) = &mut self.throttle {
                throttle.give_back(allowed.saturating_sub(batch.len()));
            }
            if batch.is_empty() {
                return;
            }
            self.launch(lane, batch);
            if self.is_long(began) {
                return;
            }
        }
    }

    /// Whether the log may have something newer than what is about to go, at a sink that waits until objects have settled.
    fn may_be_superseded(&self) -> bool {
        self.kit.config.settle.is_some() && self.unread
    }

    fn may_deliver(&self) -> bool {
        let save_first = match self.drive.commit {
            Commit::Acknowledge => false,
            Commit::Checkpoint => self.progress.saving || self.save_is_due(),
            Commit::Transaction => self.progress.names_enough(),
        };
        let is_held = self.record.paused || !self.erasing.is_empty();
        self.sink.is_some()
            && self.kit.lease.holds()
            && !is_held
            && self.not_before.is_none()
            && !self.progress.settle
            && !save_first
    }

    /// Whether there is as much to deliver as the sink takes at a time: to read more first would only keep it waiting.
    pub(super) fn has_full_batch(&mut self) -> bool {
        if !self.kit.follow
            || self.kit.config.settle.is_some()
            || !self.may_deliver()
            || self.running >= self.concurrency
        {
            return false;
        }
        let limits = self.drive.batch;
        let ready = self.lanes.main.deliverable(schedule::now(), limits.events);
        ready.len() >= limits.events || !ready.is_empty() && self.lanes.main.held_bytes() >= limits.bytes
    }

    /// A sink that gathers waits a while for a batch to fill: until its first event has waited so long, by the time it came or, where
    /// the machine's clock was set back since, from when it was first seen here.
    fn waits_for_more(&mut self, now: Timestamp) -> bool {
        let limits = self.drive.batch;
        if limits.wait.is_zero() {
            return false;
        }
        let dropped = *self.bury.borrow();
        let main = &mut self.lanes.main;
        let ready = main.deliverable(now, limits.events);
        // With more in the log and no room for it, the batch is as full as it gets.
        let is_stuffed = main.room() == 0 && main.next() <= *self.head.borrow();
        // What the log is about to drop goes now, or never.
        let is_urgent = ready.iter().any(|seq| *seq <= dropped);
        if ready.is_empty()
            || ready.len() >= limits.events
            || main.held_bytes() >= limits.bytes
            || is_stuffed
            || is_urgent
        {
            self.gathering = None;
            return false;
        }
        let apart = apart_of(&self.kit.config);
        let came = main.came_first(&ready).and_then(|came| came.checked_add(apart).ok());
        self.gathering = gathering(self.gathering, came, limits.wait, now);
        let Some((_, until)) = self.gathering else {
            return false;
        };
        if limits.wait >= LONG_WAIT {
            main.unload();
        }
        self.wakes.push(instant(until));
        true
    }

    /// The next deliveries of one lane: of that whose turn it is, among those that have any. `main`: whether new events may go; `given`:
    /// whether what other sinks gave up may.
    async fn next_batch(&mut self, now: Timestamp, most: usize, (main, given): (bool, bool)) -> (Lane, Vec<Delivery>) {
        for lane in self.lanes.turns() {
            let began = Instant::now();
            let batch = match &lane {
                Lane::Main if main => self.take(&lane, now, most).await,
                Lane::Main => Vec::new(),
                Lane::Letters => self.take_letters(most).await,
                Lane::Given if !given => Vec::new(),
                Lane::Given => self.take(&lane, now, most).await,
                Lane::Replay(id) => self.take_replay(id, now, most).await,
            };
            if !batch.is_empty() {
                self.lanes.goes(&lane);
                return (lane, batch);
            }
            if began.elapsed() >= SLOW && self.is_long(self.turn_began) {
                // It has had its turn.
                self.lanes.goes(&lane);
                break;
            }
        }
        (Lane::Main, Vec::new())
    }

    /// The next deliveries of a replay, as many as its own rate lets go.
    async fn take_replay(&mut self, id: &Arc<str>, now: Timestamp, most: usize) -> Vec<Delivery> {
        let Some(replay) = self.lanes.replay(id) else {
            return Vec::new();
        };
        let job = replay.job.clone();
        if !replay.goes() || replay.feed.deliverable(now, 1).is_empty() {
            return Vec::new();
        }
        let allowed = job.take(now, most);
        if allowed == 0 {
            self.wakes.extend(job.wait().map(|wait| Instant::now() + wait));
            return Vec::new();
        }
        let batch = self.take(&Lane::Replay(id.clone()), now, allowed).await;
        job.give_back(allowed - batch.len());
        batch
    }

    /// Takes deliverable events of a feed, reading again those that are not in memory, as far as there is memory for them.
    async fn take(&mut self, lane: &Lane, now: Timestamp, most: usize) -> Vec<Delivery> {
        let Some(feed) = self.lanes.feed(lane) else {
            return Vec::new();
        };
        let is_probe = !self.breaker.is_closed();
        let ready = |feed: &mut Feed, most| {
            if is_probe {
                feed.least_tried(now, most)
            } else {
                feed.deliverable(now, most)
            }
        };
        let seqs = if *lane == Lane::Main {
            self.suspects.deliverable(feed, most, ready)
        } else {
            ready(feed, most)
        };
        let seqs = if *lane == Lane::Main {
            self.only_looked_up(seqs)
        } else {
            seqs
        };
        let mut batch: Vec<Delivery> = Vec::with_capacity(seqs.len());
        let (mut bytes, mut was_read, began) = (0, false, Instant::now());
        for seq in seqs {
            if bytes >= self.drive.batch.bytes {
                break;
            }
            let loaded = match self.lanes.feed(lane).and_then(|feed| feed.loaded(seq)) {
                Some(loaded) => Some(loaded),
                None if !self.lanes.may_load(lane) => break,
                None if was_read && self.is_long(began) => break,
                None => match self.load_again(lane, seq).await {
                    Ok(loaded) => {
                        was_read = true;
                        loaded
                    }
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
                origin: self.lanes.origin(lane, seq),
                event,
                rules,
                attempt,
                rendered: None,
            });
        }
        batch
    }

    /// Hands a batch to the sink, unless the lease has ended while it was read.
    pub(super) fn launch(&mut self, lane: Lane, batch: Vec<Delivery>) {
        let Some(sink) = self.sink.clone().filter(|_| self.kit.lease.holds()) else {
            return self.put_back(&lane, &batch);
        };
        if matches!(lane, Lane::Letters | Lane::Given) {
            self.note_leaving();
        }
        self.breaker.started();
        self.running += 1;
        let call = self.calls.begin(Instant::now());
        let commit = self.drive.commit;
        // Where a call is one exchange the batch does not matter; where each event is one, it does.
        let times = if commit == Commit::Acknowledge {
            batch.len() as u32
        } else {
            1
        };
        let limit = self.kit.config.timeout.0 * times + GRACE;
        let (before, noted) = match commit {
            Commit::Transaction => {
                let delivered = self.progress.delivered();
                let before = Record {
                    delivered,
                    ..self.snapshot()
                };
                (before, self.to_be_noted(&lane, &batch))
            }
            Commit::Acknowledge | Commit::Checkpoint => (Record::default(), BTreeSet::new()),
        };
        let (begins, begun) = oneshot::channel();
        let handing = Handing {
            lane,
            batch,
            call,
            sink,
            commit,
            limit,
            before,
            noted,
            epoch: self.kit.log.epoch().to_owned(),
            name: self.kit.name().to_owned(),
            rendering: self.kit.rendering.clone(),
            rules: self.rules.clone(),
            begins,
            previous: self.begun.replace(begun),
        };
        task::begin_among(&mut self.tasks, async move { Done::Delivered(handing.run().await) });
    }

    /// Of a batch, what does not follow from the rules if it is delivered.
    fn to_be_noted(&self, lane: &Lane, batch: &[Delivery]) -> BTreeSet<Seq> {
        let events = batch.iter().map(|delivery| &delivery.event);
        events
            .filter(|event| self.has_to_be_noted(lane, event))
            .map(|event| event.seq)
            .collect()
    }

    pub(super) fn has_to_be_noted(&self, lane: &Lane, event: &crate::event::Event) -> bool {
        if *lane == Lane::Main {
            return self.record.fates.is_unjudged(event.seq);
        }
        // Of a letter that stays, for it is not the one that is tried, nothing is known any more once it was dropped, but that.
        (matches!(lane, Lane::Replay(_)) && self.kit.letters.has(event.seq))
            || finished::has_to_be_noted(&self.record, &self.kit.letters, &self.digest, event.seq)
            || self.rules.route(self.kit.name(), event).is_none()
    }
}

/// A batch on its way to the sink, as a task of its own.
struct Handing {
    lane: Lane,
    batch: Vec<Delivery>,
    call: Call,
    sink: Arc<dyn Sink>,
    commit: Commit,
    limit: Duration,
    /// For a sink whose receiver keeps the mark: the record without these, and what of them has to be noted.
    before: Record,
    noted: BTreeSet<Seq>,
    epoch: String,
    name: String,
    rendering: Rendering,
    rules: Arc<RuleSet>,
    /// Dropped when the call has reached the sink.
    begins: oneshot::Sender<()>,
    /// Ends when the call before it has.
    previous: Option<oneshot::Receiver<()>>,
}

impl Handing {
    /// Renders the batch, and has the sink deliver what is left to be delivered.
    async fn run(mut self) -> Answered {
        let (mut rest, mut asked) = (Vec::new(), true);
        let answer = match rendered(&self.rendering, &self.rules, &mut self.batch, &self.name).await {
            Err(unavailable) => {
                asked = false;
                Err(unavailable)
            }
            Ok((count, ended)) => {
                rest = self.batch.split_off(count.min(self.batch.len()));
                // Those of which it is not known yet what becomes of them.
                let going = (!ended.is_empty()).then(|| going(&self.batch, &ended));
                let going = going.as_deref().unwrap_or(&self.batch);
                let mark_after = |outcomes: &[Outcome]| {
                    let outcomes = merged(&ended, outcomes);
                    after(&self.before, &self.lane, &self.batch, &outcomes, &self.noted).to_mark(&self.epoch)
                };
                if let Some(previous) = self.previous.take() {
                    // However that one ended.
                    let _ = previous.await;
                }
                self.call.asks();
                let answered = if going.is_empty() && self.commit != Commit::Transaction {
                    asked = false;
                    Ok(Vec::new())
                } else {
                    let handed = Batch::new(going, &mark_after);
                    let delivery = tokio::time::timeout(self.limit, beginning(self.begins, self.sink.deliver(&handed)));
                    answer(&self.name, self.commit, going.len(), delivery).await
                };
                answered.map(|outcomes| merged(&ended, &outcomes))
            }
        };
        Answered {
            lane: self.lane,
            batch: self.batch,
            rest,
            call: self.call,
            asked,
            answer,
        }
    }
}

/// A call of the sink's that is let begin: the next one may, when this one does. So calls reach the sink in the order in which their events
/// were taken, whichever of them is rendered first and whatever thread each is on; those of a sink that keeps the order go on from there.
async fn beginning<T>(begins: oneshot::Sender<()>, delivery: impl Future<Output = T>) -> T {
    let mut delivery = std::pin::pin!(delivery);
    let first = futures::poll!(delivery.as_mut());
    drop(begins);
    match first {
        Poll::Ready(answer) => answer,
        Poll::Pending => delivery.await,
    }
}

/// Since when a batch that is not full waits, and until when: `wait` from when its first event came or, where that seems to be later than
/// it was seen here, from then. `before`: what this gave last time; `None`: it waits no more.
pub(super) fn gathering(
    before: Option<(Timestamp, Timestamp)>,
    came: Option<Timestamp>,
    wait: Duration,
    now: Timestamp,
) -> Option<(Timestamp, Timestamp)> {
    let since = before.map_or(now, |(since, _)| since);
    let first = came.map_or(since, |came| came.min(since));
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    let until = first.checked_add(wait).unwrap_or(now);
    (until > now).then_some((since, until))
}

/// Renders a batch, or as much of it as there is room for. Gives how many that are, and for each what has become of it already; nothing
/// where all of them go to the sink.
async fn rendered(
    rendering: &Rendering,
    rules: &RuleSet,
    batch: &mut [Delivery],
    name: &str,
) -> Result<(usize, Vec<Option<Outcome>>), Unavailable> {
    let rendered = AssertUnwindSafe(rendering.render_some(rules, batch))
        .catch_unwind()
        .await;
    rendered.unwrap_or_else(|_| {
        telemetry::sink_restarted(name, "rendering");
        Err(Unavailable::new(
            "rendering panicked; this is a defect of closehook, please report it",
        ))
    })
}

fn going(batch: &[Delivery], ended: &[Option<Outcome>]) -> Vec<Delivery> {
    let open = batch.iter().zip(ended).filter(|(_, ended)| ended.is_none());
    open.map(|(delivery, _)| delivery.clone()).collect()
}

/// The outcomes of a whole batch: what was known before the sink was asked, and what the sink says of the others.
fn merged(ended: &[Option<Outcome>], outcomes: &[Outcome]) -> Vec<Outcome> {
    if ended.is_empty() {
        return outcomes.to_vec();
    }
    let mut outcomes = outcomes.iter().cloned();
    let known = ended.iter().map(|known| known.clone().or_else(|| outcomes.next()));
    known
        .map(|outcome| outcome.unwrap_or_else(|| retry("the sink gave no answer for the event")))
        .collect()
}

/// What a call comes to, whatever the sink does: it has a deadline, panics are caught, and there is an outcome for each event.
async fn answer(
    name: &str,
    commit: Commit,
    events: usize,
    call: impl Future<Output = Result<Result<Vec<Outcome>, Unavailable>, tokio::time::error::Elapsed>>,
) -> Result<Vec<Outcome>, Unavailable> {
    let trouble = match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err("the delivery took too long"),
        Err(_) => {
            telemetry::sink_restarted(name, "delivery");
            Err("the sink panicked; this is a defect of closehook, please report it")
        }
    };
    let answer = match trouble {
        Ok(answer) => answer,
        Err(reason) if commit == Commit::Acknowledge => Ok(vec![retry(reason); events]),
        Err(reason) => Err(Unavailable::new(reason)),
    };
    answer.map(|mut outcomes| {
        outcomes.resize(events, retry("the sink gave no answer for the event"));
        outcomes
    })
}

/// The record as it is once a transaction with these outcomes is committed. Only what was delivered or skipped is passed; `noted`: of what else it
/// is noted that it was.
fn after(before: &Record, lane: &Lane, batch: &[Delivery], outcomes: &[Outcome], noted: &BTreeSet<Seq>) -> Record {
    let with = |wanted: Outcome| -> BTreeSet<Seq> {
        let pairs = batch.iter().zip(outcomes).filter(|(_, outcome)| **outcome == wanted);
        pairs.map(|(delivery, _)| delivery.event.seq).collect()
    };
    let (delivered, skipped) = (with(Outcome::Delivered), with(Outcome::Skipped));
    let passed: BTreeSet<Seq> = delivered.union(&skipped).copied().collect();
    let mut record = Record {
        commits: before.commits + 1,
        ..before.clone()
    };
    record.fates.sent(delivered.intersection(noted).copied());
    // Of a replay, what does not follow from the rules is what was not delivered before.
    let is_new = |seq: &Seq| !matches!(lane, Lane::Replay(_)) || noted.contains(seq);
    record.fates.skip(skipped.iter().copied().filter(is_new));
    match lane {
        Lane::Main => {
            if let Some(main) = &mut record.main {
                main.open.retain(|item| !passed.contains(&item.seq));
            }
            record.delivered.extend(passed);
        }
        Lane::Replay(id) => {
            if let Some(replay) = record.replays.get_mut(&**id) {
                replay.saved.open.retain(|item| !passed.contains(&item.seq));
                replay.delivered += delivered.len() as u64;
                replay.skipped += skipped.len() as u64;
            }
        }
        Lane::Letters => record.remove.extend(&passed),
        Lane::Given => {
            record.given.open.retain(|item| !passed.contains(&item.seq));
            record.remove.extend(&passed);
        }
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
    use super::*;
    use crate::config::Order;
    use crate::deliver::feed::{Feed, Saved};
    use crate::event::{Event, Kind, Source};

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
            rendered: None,
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
            feed.offer(&delivery.event, Arc::default());
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
        let main = after(&before, &Lane::Main, &batch, &outcomes, &BTreeSet::new());
        let open: Vec<u64> = main.main.as_ref().unwrap().open.iter().map(|item| item.seq.0).collect();
        assert_eq!((open, main.commits, main.cursor()), (vec![2], 8, Some(Seq(1))));
        let letters = after(&before, &Lane::Letters, &batch, &outcomes, &[Seq(2), Seq(3)].into());
        assert_eq!(letters.remove, [Seq(90), Seq(1), Seq(3)]);
        assert_eq!(letters.main, before.main);
        assert!(
            letters.fates != before.fates && main.fates == before.fates,
            "that it was delivered is noted"
        );
    }
}
