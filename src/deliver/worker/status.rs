//! What is seen of a worker from outside.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::hanging::{Activity, hangs, shown};
use super::{Handle, Worker};
use crate::config::SinkConfig;
use crate::deliver::feed::{Feed, SavedItem, Tries, why_parked};
use crate::deliver::finished::{Finished, finished};
use crate::deliver::letters::Letters;
use crate::deliver::mark::{Record, ReplayRecord};
use crate::deliver::reading::within;
use crate::deliver::schedule;
use crate::deliver::types::{EventState, Known, SinkStatus};
use crate::event::Seq;
use crate::log::{Log, Take};
use crate::sinks::Commit;
use crate::sync::lock;

/// What everybody may look at.
#[derive(Debug, Clone)]
pub(in crate::deliver) struct View {
    pub status: SinkStatus,
    pub replays: BTreeMap<String, ReplayRecord>,
    /// What runs, and since when: said in place of `waits_for` when it has taken long.
    running: Option<Activity>,
    /// When the oldest event came that is not finished.
    oldest: Option<Timestamp>,
    /// So long an event may wait because the sink is configured so: of one that keeps pace none is older.
    waits: Duration,
    /// It is to stop.
    stopping: bool,
}

impl View {
    pub fn new(status: SinkStatus, replays: BTreeMap<String, ReplayRecord>) -> View {
        View {
            status,
            replays,
            running: None,
            oldest: None,
            waits: Duration::ZERO,
            stopping: false,
        }
    }

    /// No worker is at it now, and why.
    pub fn idle(&mut self, why: &str) {
        self.running = None;
        self.status.waits_for = Some(why.to_owned());
    }

    /// What is left of it when its worker is gone.
    pub fn left(&self) -> View {
        let status = SinkStatus {
            // Who knew nothing knows nothing more by that.
            known: match self.status.known {
                Known::Nothing => Known::Nothing,
                Known::Now | Known::Saved => Known::Saved,
            },
            in_flight: 0,
            waits_by: None,
            ..self.status.clone()
        };
        let mut left = View::new(status, self.replays.clone());
        left.idle(UNDRIVEN);
        left
    }

    /// What still runs of one that is to stop.
    pub fn doing(&self) -> Option<&'static str> {
        let running = self.running.as_ref();
        let doing = running.map_or("its position is being saved", |running| running.now().0);
        self.stopping.then_some(doing)
    }

    /// The status with how long it, and what it has not finished, has been waiting by now.
    pub fn status_now(&self) -> SinkStatus {
        let hanging = self.running.as_ref().and_then(|running| {
            let (what, began) = running.now();
            hangs(what, began, Instant::now())
        });
        let mut status = self.status.clone();
        status.waits_for = hanging.or(status.waits_for);
        status.lag_seconds = match self.oldest {
            Some(at) => Timestamp::now().duration_since(at).as_secs_f64().max(0.0),
            // It is not known when what waits came.
            None if status.lag_events > 0 => f64::NAN,
            None => 0.0,
        };
        status.late_seconds = self.late(status.lag_seconds);
        status
    }

    /// How much longer than it is configured something of that age has been waiting, in seconds; no number where the age is none.
    pub fn late(&self, age: f64) -> f64 {
        let late = age - self.waits.as_secs_f64();
        if late < 0.0 { 0.0 } else { late }
    }
}

/// Orders wait while the log is asked when something came: no longer than this, and where that was not said, not again for a while.
const AGE_WITHIN: Duration = Duration::from_secs(1);
const ASK_AGE_AGAIN: Duration = Duration::from_secs(10);

/// Why a sink does nothing that no node has.
pub(in crate::deliver) const UNDRIVEN: &str = "no node drives it now";

/// What is seen of a sink of which what is saved can't be read.
pub(in crate::deliver) fn unseen(config: &SinkConfig) -> View {
    let status = SinkStatus {
        known: Known::Nothing,
        ..empty_status(config)
    };
    View::new(status, BTreeMap::new())
}

impl Worker<'_> {
    /// What is known of an event without reading anything: nobody is kept waiting for it.
    pub(super) fn event_state(&self, seq: Seq) -> Finished {
        if self.kit.letters.has(seq) {
            return Finished::Dead;
        }
        if self.kit.letters.is_given(seq) {
            let state = open_state(&self.lanes.given, seq, self.goes_at());
            let state = state.filter(|state| *state != EventState::Waiting);
            return state.map_or(Finished::Given, Finished::Is);
        }
        let main = &self.lanes.main;
        if let Some(state) = open_state(main, seq, self.goes_at()) {
            return Finished::Is(state);
        }
        if seq >= main.next() {
            return Finished::Is(EventState::Waiting);
        }
        match finished(&self.record, &self.kit.letters, seq) {
            Finished::JudgedBy { rules, sure, .. } => Finished::JudgedBy {
                rules,
                sure,
                secured: self.drive.commit != Commit::Checkpoint || self.durable.has_finished(seq),
            },
            known @ (Finished::Is(_) | Finished::Given | Finished::Dead) => known,
        }
    }

    /// Nothing goes before this.
    fn goes_at(&self) -> Timestamp {
        self.breaker.wake_at().unwrap_or_else(schedule::now)
    }

    /// Why it waits, if it does; one sentence. What has nothing to do (`is_idle`) and is open waits for nothing but events, whatever the
    /// newest of them came to.
    fn waits_for(&self, is_idle: bool) -> Option<String> {
        let reason = || self.last_error.as_ref().map(|(reason, _)| reason.clone());
        let is_at_rest = is_idle && self.sink.is_some();
        if self.stopping {
            Some("it is stopping".into())
        } else if !self.kit.lease.holds() {
            Some("this node has it no longer".into())
        } else if self.record.paused {
            let name = self.kit.name();
            Some(format!("it is paused: `closehook sinks resume {name}`"))
        } else if self.not_before.is_some() {
            reason()
        } else if let Some(why) = self.chores.trouble() {
            Some(why)
        } else if !self.breaker.is_closed() && !is_at_rest {
            let reason = reason().unwrap_or_else(|| "it keeps failing".into());
            let again = self.breaker.wake_at().and_then(|at| shown(at, schedule::now()));
            Some(again.map_or_else(
                || reason.clone(),
                |at| format!("{reason}; it is tried again at {at:.0}"),
            ))
        } else if self.opening {
            Some("it is being opened".into())
        } else if self.progress.settle {
            Some("its position is being saved".into())
        } else {
            self.waits_with_parked()
        }
    }

    /// What it waits for as it is configured, where nothing else keeps it; one sentence.
    fn waits_by(&self) -> Option<String> {
        if self.record.paused {
            return None;
        }
        let settling = self.lanes.main.settling();
        if let (Some(settle), true) = (self.kit.config.settle, settling > 0) {
            return Some(format!("its settle: {settling} object(s) have changed within {settle}"));
        }
        let at = |due| {
            let at = shown(due, schedule::now());
            at.map_or_else(|| "in a moment".to_owned(), |at| format!("at {at:.0}"))
        };
        if let Some(undue) = self.undue {
            return Some(format!("its delay: the next event is due {}", at(undue.due)));
        }
        if let Some((_, until)) = self.gathering.or(self.gathering_given) {
            return Some(format!("it gathers events: what has come goes out {}", at(until)));
        }
        let (gather, since) = (self.gather?, self.progress.unsaved_since?);
        let left = (since + gather.wait).saturating_duration_since(Instant::now());
        let until = schedule::now().checked_add(left).unwrap_or(Timestamp::MAX);
        Some(format!("it gathers events: what it has goes out {}", at(until)))
    }

    /// How long an event may wait as the sink is configured: for its delay or until its object has settled, then for more to go with it,
    /// and then in what the sink gathers.
    fn waits_at_most(&self) -> Duration {
        let config = &self.kit.config;
        let apart = config.delay.max(config.settle).map_or(Duration::ZERO, |span| span.0);
        let gathers = self.gather.map_or(Duration::ZERO, |gather| gather.wait);
        let whole = apart
            .checked_add(self.drive.batch.wait)
            .and_then(|wait| wait.checked_add(gathers));
        whole.unwrap_or(Duration::MAX)
    }

    /// What runs that everything else may have to wait for, and since when.
    fn running(&self) -> Option<Activity> {
        let call = self.calls.oldest().cloned().map(Activity::Call);
        // A probe's answer is waited for as much; but why there is only one is worth more.
        let is_left_alone = !self.breaker.is_closed() && self.breaker.wake_at().is_some();
        let writing = self.progress.runs().or(self.chores.runs());
        let writing = writing.map(|(what, began)| Activity::Own(what, began));
        writing.or(call.filter(|_| !is_left_alone))
    }

    /// Finds out when the event came at which the main feed goes on, which a sink that is paused does not read.
    pub(super) async fn find_age(&mut self) {
        let next = self.lanes.main.next();
        let is_known = self.came.is_some_and(|(seq, _)| seq == next);
        if !self.kit.follow || !self.record.paused || is_known || next > *self.head.borrow() {
            return;
        }
        let now = Instant::now();
        if self
            .asked_age
            .is_some_and(|(seq, at)| seq == next && now < at + ASK_AGE_AGAIN)
        {
            return;
        }
        let came = tokio::time::timeout(AGE_WITHIN, came_at(&*self.kit.log, next)).await;
        self.came = came.ok().flatten().map(|came| (next, came));
        self.asked_age = Some((next, Instant::now()));
    }

    /// What is shown as its newest error, and whether a person has to see to something.
    fn last_error_shown(&self, waits: bool) -> (Option<(String, Timestamp)>, bool) {
        let asks = to_be_seen(&self.record, self.kit.name());
        let needs_person = asks.is_some();
        // What keeps it comes first, and else what somebody has to see: what failed and is over is a dead letter.
        let shown = if waits {
            self.last_error.clone().or(asks)
        } else {
            asks.or_else(|| self.last_error.clone())
        };
        (shown, needs_person)
    }

    pub(super) fn publish(&mut self) {
        self.note_leaving();
        let head = *self.head.borrow();
        let main = &self.lanes.main;
        let unread_events = if self.kit.follow {
            self.kit.log.places(main.next(), head)
        } else {
            0
        };
        let found = self.came.filter(|(seq, _)| *seq == main.next()).map(|(_, came)| came);
        let unread = self.undue.map(|undue| undue.received_at).or(found).or(self.read_upto);
        let oldest = main.oldest_open().or(unread.filter(|_| unread_events > 0));
        // What is gathered is in the sink's memory and nowhere else.
        let gathered = if self.gather.is_some() {
            self.progress.unsecured()
        } else {
            0
        };
        let (cursor, since) = match self.durable.cursor() {
            Some(cursor) if gathered > 0 => (cursor, self.progress.unsecured_since),
            _ => (main.cursor(), None),
        };
        // What it has not read yet is counted there, whoever gives it.
        let unread_from = if self.kit.follow { main.next() } else { Seq(u64::MAX) };
        let given = self.kit.letters.given_before(unread_from) as u64;
        let lag_events = unread_events + main.open_len() as u64 + given + gathered;
        let waits_for = self.waits_for(lag_events == 0 && !self.lanes.any_work());
        let (last_error, needs_person) = self.last_error_shown(waits_for.is_some());
        let (last_error, last_error_at) = last_error.unzip();
        let status = SinkStatus {
            cursor,
            lag_events,
            in_flight: self.lanes.in_flight(),
            retrying: self.lanes.retrying(),
            dead: self.kit.letters.len() as u64,
            lost: self.record.lost,
            buried: self.record.buried,
            delivered: self.kit.delivered.load(Ordering::Relaxed),
            skipped: self.kit.skipped.load(Ordering::Relaxed),
            superseded: self.kit.superseded.load(Ordering::Relaxed),
            diverted: self.kit.diverted.load(Ordering::Relaxed),
            given: self.kit.letters.given_len() as u64,
            breaker: self.breaker.state().to_owned(),
            paused: self.record.paused,
            waits_for,
            waits_by: self.waits_by(),
            last_error,
            last_error_at,
            needs_person,
            ..empty_status(&self.kit.config)
        };
        let view = View {
            status,
            replays: self.lanes.replays_shown(),
            running: self.running(),
            oldest: oldest
                .into_iter()
                .chain(since)
                .chain(self.lanes.given.oldest_open())
                .min(),
            waits: self.waits_at_most(),
            stopping: self.stopping,
        };
        *lock(&self.kit.view) = view;
    }
}

/// When the first event came that is there from a place on; `None`: there is none, or it can't be read now.
async fn came_at(log: &dyn Log, from: Seq) -> Option<Timestamp> {
    let take = Take {
        events: 1,
        bytes: 1,
        narrow: None,
    };
    let read = within(log.read(from, take)).await.ok()?;
    read.events.first().map(|event| event.received_at)
}

/// When the oldest event came with which a sink is not finished, as its record says; `None`: there is none, or that can't be known now.
pub(in crate::deliver) async fn oldest_of(record: &Record, log: &dyn Log) -> Option<Timestamp> {
    let main = record.main.as_ref()?;
    match main.open.first() {
        Some(open) if open.received_at.is_some() => open.received_at,
        Some(open) => came_at(log, open.seq).await,
        None => came_at(log, main.next).await,
    }
}

/// What is going on with an event that is open, of a sink that takes nothing before `goes_at`.
fn open_state(feed: &Feed, seq: Seq, goes_at: Timestamp) -> Option<EventState> {
    let ((in_flight, due), tries) = (feed.stage(seq)?, feed.tries(seq)?);
    let is_parked = feed.is_parked(seq);
    if in_flight {
        return Some(EventState::InFlight);
    }
    // Making its letter waits for no sink.
    let due = due.map_or(goes_at, |due| if is_parked { due } else { due.max(goes_at) });
    Some(failed_state(tries, due, is_parked))
}

/// The same of one that is not being delivered. Whose first try never came to an answer has not failed: it waits.
fn failed_state(tries: &Tries, due: Timestamp, is_parked: bool) -> EventState {
    if !is_parked && (tries.attempts == 0 || tries.reason.is_empty()) {
        return EventState::Waiting;
    }
    EventState::Retrying {
        attempts: tries.attempts,
        due,
        reason: said(tries, is_parked),
    }
}

/// Why an event goes later, or not any more.
fn said(tries: &Tries, is_parked: bool) -> String {
    if is_parked {
        return why_parked(&tries.reason);
    }
    tries.reason.clone()
}

/// What somebody has to see, and since when.
fn to_be_seen(record: &Record, sink: &str) -> Option<(String, Timestamp)> {
    let unmarked = record.unmarked.as_ref();
    let unmarked = unmarked.map(|unmarked| (unmarked.words(sink), unmarked.at));
    let begun_anew = record.begun_anew.map(|at| {
        (
            format!(
                "its position was lost to damage of the state, or was of another log: it began anew at the oldest event kept, so deliveries repeat, and it may have been paused before; `closehook sinks resume {sink}` says that this was seen"
            ),
            at,
        )
    });
    let letters_lost = record.letters_lost.map(|at| {
        (
            format!(
                "dead letters of it were lost to damage: `closehook events show` says of which events it is not known any more whether they were delivered, and `closehook replay --sink {sink} --since TIME` sends them again; `closehook sinks resume {sink}` says that this was seen"
            ),
            at,
        )
    });
    // Whoever says that they have seen it has seen all of it.
    let asks = [unmarked, begun_anew, letters_lost].into_iter().flatten();
    let (words, since): (Vec<String>, Vec<Timestamp>) = asks.unzip();
    Some((words.join("; "), since.into_iter().min()?))
}

/// A handle on what is saved of a sink, without a worker behind it. `oldest`: see [`oldest_of`].
pub(in crate::deliver) fn look(
    config: &SinkConfig,
    record: Record,
    letters: Letters,
    log: &dyn Log,
    oldest: Option<Timestamp>,
) -> Handle {
    let mut view = saved_view(config, record, &letters, log);
    view.oldest = oldest;
    afar(config, view, letters)
}

/// The same, with what is seen of it.
pub(in crate::deliver) fn afar(config: &SinkConfig, view: View, letters: Letters) -> Handle {
    let (commands, _) = mpsc::channel(1);
    Handle {
        config: config.clone(),
        lease: None,
        commands,
        view: Arc::new(Mutex::new(view)),
        letters,
    }
}

/// What is seen of a sink of which there is nothing but what is saved.
pub(in crate::deliver) fn saved_view(config: &SinkConfig, record: Record, letters: &Letters, log: &dyn Log) -> View {
    letters.damage_is_seen(record.letters_seen);
    let head = *log.head().borrow();
    let cursor = record.cursor().unwrap_or_default();
    let open: &[SavedItem] = record.main.as_ref().map_or(&[], |main| &main.open);
    let retrying = open.iter().filter(|item| item.tries.attempts > 0).count();
    let open = open.len();
    let next = record.main.as_ref().map_or(head.next(), |main| main.next);
    let (last_error, last_error_at) = to_be_seen(&record, &config.name).unzip();
    let status = SinkStatus {
        cursor,
        lag_events: log.places(next, head) + open as u64 + letters.given_before(next) as u64,
        given: letters.given_len() as u64,
        retrying,
        dead: letters.len() as u64,
        lost: record.lost,
        buried: record.buried,
        paused: record.paused,
        needs_person: last_error.is_some(),
        last_error,
        last_error_at,
        ..empty_status(config)
    };
    View::new(status, record.replays)
}

/// What the saved record says about an event that is for the sink.
pub(in crate::deliver) fn saved_state(record: &Record, letters: &Letters, seq: Seq) -> Finished {
    if letters.has(seq) {
        return Finished::Dead;
    }
    if letters.is_given(seq) {
        return Finished::Given;
    }
    let Some(main) = record.main.as_ref().filter(|main| seq < main.next) else {
        return Finished::Is(EventState::Waiting);
    };
    let Some(item) = main.open.iter().find(|item| item.seq == seq) else {
        return finished(record, letters, seq);
    };
    // One without might have gone when this was saved.
    let due = item.due.or(record.saved_at).unwrap_or_else(schedule::now);
    Finished::Is(failed_state(&item.tries, due, item.parked.is_some()))
}

/// The status of a sink of which nothing is known yet.
pub(super) fn empty_status(config: &SinkConfig) -> SinkStatus {
    SinkStatus {
        name: config.name.clone(),
        kind: config.kind.clone(),
        known: Known::Now,
        cursor: Seq::ZERO,
        lag_events: 0,
        lag_seconds: 0.0,
        late_seconds: 0.0,
        in_flight: 0,
        retrying: 0,
        dead: 0,
        dropped: 0,
        dead_trouble: None,
        lost: 0,
        buried: 0,
        delivered: 0,
        skipped: 0,
        superseded: 0,
        diverted: 0,
        given: 0,
        breaker: "closed".into(),
        paused: false,
        waits_for: None,
        waits_by: None,
        last_error: None,
        last_error_at: None,
        needs_person: false,
        node: None,
    }
}
