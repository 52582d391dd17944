//! Reading the log into the feeds, and passing what the log is about to drop.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::lanes::Lane;
use super::{Undue, Worker, delay_of, instant, settle_of};
use crate::deliver::feed::{Feed, Rules};
use crate::deliver::reading::{end_of, within};
use crate::deliver::schedule;
use crate::deliver::types::dead_letter;
use crate::event::{Event, Seq};
use crate::log::{Batch, Narrow, ReadError, Take};
use crate::sinks::Commit;
use crate::telemetry;

/// Events read from the log at a time, and bytes of their bodies.
pub(super) const READ_EVENTS: usize = 1024;
pub(super) const READ_BYTES: usize = 4 << 20;

/// Batches read without a look at anything else.
const READS_IN_A_ROW: usize = 8;

/// Events that are passed in one turn because the log is about to drop them.
const BURY_EVENTS: usize = 512;

const BURIED: &str = "the log reached its size limit before the sink had it";

impl Worker<'_> {
    /// Reads ahead while there is room. `true`: there is more to read at once.
    pub(super) async fn fill(&mut self) -> bool {
        // Those that have begun since.
        self.find_unruled();
        if self.record.paused || self.not_before.is_some() {
            return false;
        }
        if self.kit.follow {
            self.lanes.take_given(&self.kit.letters);
        }
        let feeds = self.lanes.replays.len() + 1;
        // Each is the first at times: a log that takes long keeps none of them waiting for ever.
        let first = self.fills_first % feeds;
        for feed in (first..feeds).chain(0..first) {
            if feed > 0 {
                self.fill_replay(feed - 1).await;
            } else if self.kit.follow && !self.fill_main_some().await {
                return false;
            }
            if self.is_long(self.turn_began) {
                self.fills_first = feed + 1;
                break;
            }
        }
        let head = *self.head.borrow_and_update();
        let passed = self.passed();
        let main = &self.lanes.main;
        let has_room = self.main_room() > 0 && !self.looks_ahead();
        let main_more = self.kit.follow && main.next() <= head && has_room && !self.waits_by_delay();
        self.unread = main_more;
        main_more || self.lanes.replays.iter().any(|replay| replay.wants_more(head, passed))
    }

    /// Where the main feed goes on; a worker without one waits for none.
    fn passed(&self) -> Seq {
        if self.kit.follow {
            self.lanes.main.next()
        } else {
            Seq(u64::MAX)
        }
    }

    /// `false`: the log can't be read now.
    async fn fill_main_some(&mut self) -> bool {
        let began = Instant::now();
        for _ in 0..READS_IN_A_ROW {
            match self.fill_main().await {
                Some(true) if !self.is_long(began) => {}
                Some(_) => break,
                None => return false,
            }
        }
        true
    }

    /// `Some(true)`: something was read; `None`: the log can't be read now.
    async fn fill_main(&mut self) -> Option<bool> {
        let (room, bytes) = (self.main_room(), self.lanes.main.room_bytes());
        let from = self.lanes.main.next();
        let head = *self.head.borrow_and_update();
        if room == 0 || from > head || self.looks_ahead() || self.waits_by_delay() {
            return Some(false);
        }
        let batch = self.read(from, (room, bytes), None).await?;
        let batch = self.due_part(batch);
        self.count_lost(&batch.lost);
        self.read_upto = batch.events.last().map(|event| event.received_at).or(self.read_upto);
        let rules = self.rules.clone();
        let wanted = batch.events.into_iter().map(|event| {
            // A dead letter made right before a crash is not delivered once more.
            let names = rules.route(self.kit.name(), &event);
            let names = names.filter(|_| !self.kit.letters.is_dead(event.seq));
            (event, names)
        });
        let wanted: Vec<(Arc<Event>, Option<Rules>)> = wanted.collect();
        if self.drive.commit == Commit::Transaction {
            self.trail.forget_before(self.lanes.main.next_saved());
            self.trail.read(from, &wanted, batch.next.max(from));
        }
        match settle_of(&self.kit.config) {
            Some(span) => self.settle(span, wanted),
            None => offer(&mut self.lanes.main, wanted),
        }
        let main = &mut self.lanes.main;
        main.passed(batch.next.max(main.next()));
        if self.record.fates.has_outdated() {
            // After a restart it is gone on there.
            self.record.fates.none_outdated_before(main.next_saved());
        }
        self.progress.dirty = true;
        Some(batch.next > from)
    }

    /// Of what was read that which is due: up to the first event for this sink that has still to wait, where reading goes on later.
    fn due_part(&mut self, mut batch: Batch) -> Batch {
        self.undue = None;
        let (Some(arrivals), Some(delay)) = (&self.arrivals, delay_of(&self.kit.config)) else {
            return batch;
        };
        if self.kit.config.settle.is_some() {
            // Newer events are read while older ones wait.
            return batch;
        }
        let (now, wall) = (schedule::now(), Timestamp::now());
        let due = |event: &Event| {
            let arrived = arrivals.arrived(event.seq, event.received_at, now, wall);
            arrived.checked_add(delay).unwrap_or(Timestamp::MAX)
        };
        let (rules, letters) = (&self.rules, &self.kit.letters);
        let is_for_it = |event: &Event| rules.route(self.kit.name(), event).is_some() && !letters.is_dead(event.seq);
        let undue = batch
            .events
            .iter()
            .position(|event| due(event) > now && is_for_it(event));
        if let Some(at) = undue {
            let first = &batch.events[at];
            self.undue = Some(Undue {
                seq: first.seq,
                received_at: first.received_at,
                due: due(first),
            });
            batch.next = first.seq;
            batch.events.truncate(at);
            batch.lost.retain(|(from, _)| *from < batch.next);
        }
        batch
    }

    /// What waits for its object to settle goes on waiting as the sink is configured now.
    pub(super) fn settle_anew(&mut self, now: Timestamp) {
        let (span, delay) = (settle_of(&self.kit.config), delay_of(&self.kit.config));
        let wall = Timestamp::now();
        self.lanes.main.settle_anew(span, delay.unwrap_or_default(), now, wall);
        if span.is_none() {
            self.record.fates.none_outdated();
        }
        // What is due is found out anew.
        self.looked_up.clear();
        self.ahead = None;
        self.crammed = false;
    }

    /// Takes up what was read for a sink that waits until objects have settled: of what waits only ids and Seqs are kept, and it is read
    /// again when it goes. Where so many objects have not settled that there is no room for more, reading stops, and what is due is looked
    /// for in the rest of the log before it goes.
    fn settle(&mut self, span: SignedDuration, read: Vec<(Arc<Event>, Option<Rules>)>) {
        let delay = delay_of(&self.kit.config).unwrap_or_default();
        let (now, wall) = (schedule::now(), Timestamp::now());
        for (event, names) in read {
            let main = &mut self.lanes.main;
            let Some(names) = names else {
                main.passed(event.seq.next());
                continue;
            };
            self.record.fates.reads_again(event.seq);
            if self.record.fates.was_outdated(&event) {
                main.passed_over(event.seq);
                self.supersede(event.seq);
                continue;
            }
            let arrivals = self.arrivals.as_ref();
            let arrived = arrivals.map_or(now, |arrivals| {
                arrivals.arrived(event.seq, event.received_at, now, wall)
            });
            let due = |wait: SignedDuration| arrived.checked_add(wait.max(delay)).unwrap_or(Timestamp::MAX);
            let has_object = event.view().is_some_and(|view| view.object_id.is_some());
            if has_object {
                if let Some(seq) = main.settle(&event, span, due) {
                    self.supersede(seq);
                }
            } else if delay.is_zero() {
                main.offer(&event, names);
            } else {
                main.put_off(&event, due(delay));
            }
        }
    }

    /// Whether the next event of the main feed has to wait until its delay is over.
    pub(super) fn waits_by_delay(&mut self) -> bool {
        let next = self.lanes.main.next();
        self.undue = self
            .undue
            .filter(|undue| undue.seq == next && undue.due > schedule::now());
        self.wakes.extend(self.undue.map(|undue| instant(undue.due)));
        self.undue.is_some()
    }

    /// Notes how far the log is, for a sink that waits a span after events arrived.
    pub(super) fn look_at_log(&mut self) {
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.look(*self.head.borrow(), schedule::now());
        }
    }

    async fn fill_replay(&mut self, index: usize) {
        let (replay, passed) = (&self.lanes.replays[index], self.passed());
        if !replay.wants_more(*self.head.borrow(), passed) || self.not_before.is_some() {
            return;
        }
        let (from, job) = (replay.feed.next(), replay.job.clone());
        // Others may have taken what room there was just now; and what is read without room is as if there were nothing more.
        let room = (replay.feed.room().max(1), replay.feed.room_bytes());
        let Some(batch) = self.read(from, room, job.narrow()).await else {
            return;
        };
        let mut next = batch.next;
        if next == from {
            match self.ends_before(from).await {
                // At the end of the log there is nothing more to wait for.
                Some(true) => next = job.spec.to.next(),
                Some(false) => return self.lanes.replays[index].waits_until_heard(from),
                None => return,
            }
        }
        let (rules, began) = (self.rules.clone(), Instant::now());
        let mut wanted = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            let is_ahead = job.spec.releases && event.seq >= passed;
            if is_ahead || (!wanted.is_empty() && self.is_long(began)) {
                next = event.seq;
                break;
            }
            let mut names = None;
            if event.seq <= job.spec.to {
                names = job.route(self.kit.name(), &event, &rules).await;
            }
            if names.is_some() && self.is_mains(&job, &event).await {
                names = None;
            }
            wanted.push((event, names));
        }
        let replay = &mut self.lanes.replays[index];
        offer(&mut replay.feed, wanted);
        replay.pass_diverted(&self.kit.letters);
        replay.feed.passed(next.max(replay.feed.next()));
        for (from, to) in batch.lost.into_iter().filter(|(from, _)| *from < next) {
            replay.has_lost(from, to);
        }
        self.progress.dirty = true;
    }

    /// Whether the log has nothing from this place on. `None`: that can't be known now, and that was noted.
    async fn ends_before(&mut self, from: Seq) -> Option<bool> {
        match self.log_end().await {
            Ok(end) => Some(end <= from),
            Err(error) => {
                self.stumble(&error.to_string());
                None
            }
        }
    }

    /// One past the newest that the log has. Where nodes share it, its servers are asked: this one may not have heard of all yet.
    pub(super) async fn log_end(&self) -> Result<Seq, ReadError> {
        if self.kit.lease.fence() > 0 {
            return end_of(&*self.kit.log).await;
        }
        Ok(self.kit.log.head().borrow().next())
    }

    pub(super) async fn read(
        &mut self,
        from: Seq,
        (room, bytes): (usize, usize),
        narrow: Option<&Narrow>,
    ) -> Option<Batch> {
        let take = Take {
            events: room.min(READ_EVENTS),
            bytes: bytes.min(READ_BYTES),
            narrow,
        };
        match within(self.kit.log.read(from, take)).await {
            Ok(batch) => Some(batch),
            Err(error) => {
                self.stumble(&error.to_string());
                None
            }
        }
    }

    pub(super) fn count_lost(&mut self, lost: &[(Seq, Seq)]) {
        for (from, to) in lost {
            tracing::error!(
                sink = self.kit.name(),
                from = from.0,
                to = to.0,
                "events {from} to {to} were damaged or expired before this sink had them"
            );
            self.record.count_lost(*from, *to);
            telemetry::lost(self.kit.name(), to.0 - from.0 + 1);
        }
    }

    /// One event of a feed, read again. `Ok(None)`: it is gone, or no rule sends it here any more. `Err`: it can't be read now, and
    /// that was noted.
    pub(super) async fn load_again(&mut self, lane: &Lane, seq: Seq) -> Result<Option<(Arc<Event>, Rules)>, ()> {
        if *lane == Lane::Given {
            return self.load_given(seq).await;
        }
        let Some(event) = self.get(seq).await? else {
            match lane {
                // The sink may have had it; it is the replay that misses it.
                Lane::Replay(id) => {
                    if let Some(replay) = self.lanes.replay(id) {
                        replay.lost += 1;
                    }
                }
                Lane::Main | Lane::Letters | Lane::Given => self.count_lost(&[(seq, seq)]),
            }
            return Ok(None);
        };
        let rules = self.rules.clone();
        let route = match lane {
            Lane::Replay(id) => {
                let job = self.lanes.replay(id).map(|replay| replay.job.clone());
                match job {
                    Some(job) => job.route(self.kit.name(), &event, &rules).await,
                    None => None,
                }
            }
            Lane::Main | Lane::Letters | Lane::Given => rules.route(self.kit.name(), &event),
        };
        if route.is_none() && *lane == Lane::Main {
            self.record.fates.not_wanted(seq);
        }
        Ok(route.map(|names| {
            let event = match self.lanes.feed(lane) {
                Some(feed) => feed.load(&event, names.clone()),
                None => event,
            };
            (event, names)
        }))
    }

    /// Takes over the rules of now, if they are new: they judge what is read from here on, and what waits.
    fn find_unruled(&mut self) {
        for replay in &mut self.lanes.replays {
            replay.unruled = replay.job.unruled(&self.kit.config.name, &self.rules).is_some();
        }
    }

    pub(super) fn follow_rules(&mut self) {
        let rules = self.kit.rules.load_full();
        if Arc::ptr_eq(&rules, &self.rules) {
            return;
        }
        self.rules = rules.clone();
        // Before anything goes out by a rule that is not there any more.
        self.find_unruled();
        // They may not want what is waited for.
        self.undue = None;
        self.note_rules();
        if !self.kit.follow {
            return;
        }
        let name = self.kit.name();
        for seq in self.lanes.main.judge_again(|event| rules.route(name, event)) {
            self.record.fates.not_wanted(seq);
            self.progress.dirty = true;
        }
    }

    /// Notes which rules judge what is read from here on.
    pub(super) fn note_rules(&mut self) {
        self.digest = self.rules.source(self.kit.name()).digest;
        if self.kit.follow {
            self.progress.dirty |= self.record.fates.judged_by(&self.digest, self.lanes.main.next());
        }
    }

    /// One event of the log. `Err`: it can't be read now, and that was noted.
    async fn get(&mut self, seq: Seq) -> Result<Option<Arc<Event>>, ()> {
        let got = within(self.kit.log.get(seq)).await;
        got.map_err(|error| self.stumble(&error.to_string()))
    }

    /// Before the log drops anything, a sink that would have waited for more gets what there is, and secures what it gathered.
    pub(super) async fn hand_over_before_burying(&mut self) {
        let upto = *self.bury.borrow();
        if upto == Seq::ZERO || self.lanes.main.cursor() >= upto && self.gather.is_none() {
            return;
        }
        self.dispatch().await;
        self.progress.hurry |= self.durable.cursor().is_some_and(|cursor| cursor < upto);
    }

    /// Passes some of what the log is about to drop: what is not finished becomes dead letters. `true`: there is more.
    pub(super) async fn bury_some(&mut self) -> bool {
        let upto = *self.bury.borrow_and_update();
        if upto == Seq::ZERO || self.not_before.is_some() {
            return false;
        }
        self.pass_replays(upto);
        if !self.kit.follow && self.record.main.is_none() {
            return false;
        }
        let open = self.lanes.main.idle_upto(upto, BURY_EVENTS);
        if !open.is_empty() {
            return self.bury_open(open).await;
        }
        self.lanes.main.next() <= upto && self.bury_unread(upto).await
    }

    /// Replays send again what was sent or is a dead letter already: they just go past it.
    fn pass_replays(&mut self, upto: Seq) {
        let mut passed = false;
        for replay in self.lanes.replays.iter_mut().filter(|replay| !replay.done) {
            for seq in replay.feed.idle_upto(upto, usize::MAX) {
                replay.feed.finished(seq);
                replay.lost += 1;
                passed = true;
            }
            let to = upto.min(replay.job.spec.to);
            if replay.feed.next() <= to {
                replay.lost += self.kit.log.places(replay.feed.next(), to);
                replay.feed.passed(to.next());
                passed = true;
            }
        }
        self.progress.dirty |= passed;
    }

    async fn bury_open(&mut self, seqs: Vec<Seq>) -> bool {
        let (mut letters, began) = (Vec::new(), Instant::now());
        for seq in seqs {
            if !letters.is_empty() && self.is_long(began) {
                break;
            }
            let loaded = match self.lanes.main.loaded(seq) {
                Some((event, _)) => Some(event),
                None => match self.load_again(&Lane::Main, seq).await {
                    Ok(loaded) => loaded.map(|(event, _)| event),
                    // An error is not an absence.
                    Err(()) => break,
                },
            };
            let Some(event) = loaded else {
                self.lanes.main.finished(seq);
                self.progress.dirty = true;
                continue;
            };
            let tries = self.lanes.main.tries(seq).cloned().unwrap_or_default();
            letters.push(dead_letter(
                self.kit.name(),
                &event,
                BURIED.into(),
                tries.attempts,
                tries.first_attempt,
            ));
        }
        if !letters.is_empty() && !self.make_letters(&Lane::Main, letters, true).await {
            return false;
        }
        self.not_before.is_none()
    }

    async fn bury_unread(&mut self, upto: Seq) -> bool {
        let from = self.lanes.main.next();
        let Some(batch) = self.read(from, (BURY_EVENTS, READ_BYTES), None).await else {
            return false;
        };
        if batch.next == from {
            return false;
        }
        let rules = self.rules.clone();
        let (mut letters, mut next) = (Vec::new(), batch.next);
        for event in &batch.events {
            if event.seq > upto {
                next = event.seq;
                break;
            }
            if rules.route(self.kit.name(), event).is_some() && !self.kit.letters.is_dead(event.seq) {
                letters.push(dead_letter(self.kit.name(), event, BURIED.into(), 0, None));
            }
        }
        // Where they are still being made this is done over: what is a letter by then is passed.
        if !letters.is_empty() && !self.make_letters(&Lane::Main, letters, true).await {
            return false;
        }
        let lost: Vec<(Seq, Seq)> = batch.lost.into_iter().filter(|(from, _)| *from < next).collect();
        self.count_lost(&lost);
        self.lanes.main.passed(next);
        self.progress.dirty = true;
        next <= upto
    }

    pub(super) fn count_buried(&mut self, count: u64) {
        self.record.buried += count;
        self.progress.dirty = true;
        if count > 0 {
            telemetry::buried(self.kit.name(), count);
        }
    }
}

/// Offers what was read and is wanted, and passes the rest.
fn offer(feed: &mut Feed, read: Vec<(Arc<Event>, Option<Rules>)>) {
    for (event, names) in read {
        match names {
            Some(names) => feed.offer(&event, names),
            None => feed.passed(event.seq.next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Order;
    use crate::deliver::feed::Saved;
    use crate::event::{Kind, Source};

    /// G9: a replay's events may lie singly in the blocks of a whole log, and wait.
    #[test]
    fn what_waits_for_a_sink_holds_no_more_than_itself() {
        let block = Bytes::from(vec![b'x'; 1 << 20]);
        let event = |seq: u64| {
            let at = seq as usize * 1000;
            let body = block.slice(at..at + 700);
            let now = jiff::Timestamp::UNIX_EPOCH;
            Arc::new(Event::new(Seq(seq), now, Source::Webhook, Kind::Event, None, body))
        };
        let mut feed = Feed::restore(&Saved::default(), Order::None);
        offer(
            &mut feed,
            (1..=9).map(|seq| (event(seq), Some(Rules::default()))).collect(),
        );
        for seq in (1..=9).map(Seq) {
            let (event, _) = feed.loaded(seq).unwrap();
            assert!(event.body.is_unique(), "event {seq} holds its block");
        }
    }
}
