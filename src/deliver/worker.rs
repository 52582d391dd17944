//! One sink's worker: reads the log at its own pace, hands events to the sink, and remembers how far everything is.
//!
//! A single task owns all of the sink's state, so there is nothing to lock. Deliveries run beside it as tasks of their own
//! (a panic in one is a failed try); what they answer comes back here and moves the feed, the breaker, the dead letters.
//!
//! The worker saves one record: the main feed, the replays' feeds, the sink's position, the pause. A sink that keeps a
//! position is checkpointed first, with nothing running, so that cursor and position always go together.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dead_letters::DeadLetters;
use super::feed::{Feed, Rules, Saved};
use super::replay::Job;
use super::schedule::{self, Breaker, Change, Throttle};
use super::{DeadLetter, EventState, RetryProgress, SinkStatus};
use crate::config::SinkConfig;
use crate::event::{Delivery, Event, Seq};
use crate::log::LocalLog;
use crate::rules::RuleSet;
use crate::sinks::{Outcome, Position, Sink, Traits};
use crate::state::local::State;
use crate::telemetry;

/// Progress is saved at most this often.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// A sink that keeps a position is checkpointed at the latest after so many deliveries.
const SAVE_AFTER: usize = 8192;

/// Events read from the log at a time, and bytes of their bodies.
const READ_EVENTS: usize = 1024;
const READ_BYTES: usize = 4 << 20;

/// Batches read without a look at anything else.
const READS_IN_A_ROW: usize = 8;

/// Beyond the sink's own time-out, before the engine gives a delivery up itself.
const GRACE: Duration = Duration::from_secs(5);

/// After the disk refused a dead letter or a saved position.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What is saved for a sink.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// `None` until the sink's start is settled.
    pub main: Option<Saved>,
    pub position: Option<Position>,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub lost: u64,
    #[serde(default)]
    pub replays: BTreeMap<String, ReplayRecord>,
    /// When the sink left the configuration.
    #[serde(default)]
    pub detached_at: Option<Timestamp>,
    /// When this was saved; `None` before the first time.
    #[serde(default)]
    pub saved_at: Option<Timestamp>,
}

/// A replay's progress at one sink.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ReplayRecord {
    pub saved: Saved,
    pub delivered: u64,
    pub dead: u64,
    pub done: bool,
}

impl Record {
    /// If the machine's clock was set back since this was saved, nothing has to wait for it to catch up.
    fn follow_clock(&mut self, now: Timestamp) {
        let ahead = self.saved_at.map_or(SignedDuration::ZERO, |at| at.duration_since(now));
        if ahead.is_positive() {
            let feeds = self.replays.values_mut().map(|replay| &mut replay.saved);
            feeds.chain(&mut self.main).for_each(|saved| saved.set_back(ahead));
        }
    }

    /// Everything up to here is finished, as saved.
    pub fn cursor(&self) -> Option<Seq> {
        let main = self.main.as_ref()?;
        Some(main.open.first().map_or(main.next, |item| item.seq).prev())
    }
}

/// Where a sink's record is kept.
pub(super) fn record_key(sink: &str) -> String {
    format!("sink/{sink}")
}

/// What a worker is asked.
pub(super) enum Command {
    Pause(bool, oneshot::Sender<()>),
    EventState(Seq, oneshot::Sender<EventState>),
    Expire(Seq, oneshot::Sender<bool>),
    Replay(Arc<Job>),
    RetryDead(Vec<Seq>, Arc<RetryProgress>),
    Stop(oneshot::Sender<()>),
}

/// What everybody may look at.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub status: SinkStatus,
    pub replays: BTreeMap<String, ReplayRecord>,
}

/// What a worker is made of.
pub(super) struct Parts {
    pub config: SinkConfig,
    pub sink: Arc<dyn Sink>,
    pub log: LocalLog,
    pub rules: Arc<ArcSwap<RuleSet>>,
    pub state: State,
    pub dead: DeadLetters,
    pub record: Record,
    pub jobs: Vec<Arc<Job>>,
    pub follow: bool,
}

/// Which of the worker's sources an event came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lane {
    Main,
    Replay(String),
    Dead,
}

struct Finished {
    lane: Lane,
    batch: Vec<Delivery>,
    outcomes: Vec<Outcome>,
}

struct Replaying {
    job: Arc<Job>,
    feed: Feed,
    delivered: u64,
    dead: u64,
    done: bool,
}

/// The handle others hold.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub config: SinkConfig,
    pub commands: mpsc::Sender<Command>,
    pub view: Arc<Mutex<View>>,
    /// The saved cursor: what retention must keep lies above it.
    pub pinned: Arc<AtomicU64>,
    pub dead: DeadLetters,
    /// `None` when the sink is only looked at.
    pub sink: Option<Arc<dyn Sink>>,
}

impl std::fmt::Debug for dyn Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

pub(super) struct Worker {
    name: String,
    config: SinkConfig,
    traits: Traits,
    concurrency: usize,
    sink: Arc<dyn Sink>,
    log: LocalLog,
    head: watch::Receiver<Seq>,
    rules: Arc<ArcSwap<RuleSet>>,
    state: State,
    dead: DeadLetters,
    follow: bool,
    main: Feed,
    /// When the newest event the main feed has read was received.
    read_upto: Option<Timestamp>,
    replays: Vec<Replaying>,
    dead_queue: VecDeque<(Seq, Arc<RetryProgress>)>,
    dead_running: BTreeMap<Seq, Arc<RetryProgress>>,
    breaker: Breaker,
    throttle: Option<Throttle>,
    tasks: JoinSet<Finished>,
    running: usize,
    commands: mpsc::Receiver<Command>,
    view: Arc<Mutex<View>>,
    pinned: Arc<AtomicU64>,
    record: Record,
    dirty: bool,
    unsaved: usize,
    saved_at: Instant,
    not_before: Option<Instant>,
    delivered: u64,
    last_error: Option<(String, Timestamp)>,
}

impl Worker {
    /// Makes a worker whose start is settled (`record.main` is there) and starts its task.
    pub fn start(parts: Parts) -> Handle {
        let Parts {
            config,
            sink,
            log,
            rules,
            state,
            dead,
            mut record,
            jobs,
            follow,
        } = parts;
        let now = schedule::now();
        record.follow_clock(now);
        let (sender, commands) = mpsc::channel(64);
        let traits = config.options.traits();
        let saved = record.main.clone().unwrap_or_default();
        let pinned = Arc::new(AtomicU64::new(record.cursor().unwrap_or_default().0));
        // A job this sink has no record of was begun right before the last stop: it begins again.
        let replays = jobs
            .into_iter()
            .map(|job| {
                let fresh = || ReplayRecord {
                    saved: Saved {
                        next: job.spec.from,
                        open: Vec::new(),
                    },
                    ..ReplayRecord::default()
                };
                let saved = record.replays.get(&job.id).cloned().unwrap_or_else(fresh);
                let feed = Feed::restore(&saved.saved, config.order);
                Replaying {
                    job,
                    feed,
                    delivered: saved.delivered,
                    dead: saved.dead,
                    done: saved.done,
                }
            })
            .collect();
        let mut worker = Worker {
            name: config.name.clone(),
            traits,
            concurrency: if traits.serial {
                1
            } else {
                config.concurrency.unwrap_or(traits.concurrency)
            },
            sink: sink.clone(),
            head: log.head(),
            log,
            rules,
            state,
            dead: dead.clone(),
            follow,
            main: Feed::restore(&saved, config.order),
            read_upto: None,
            replays,
            dead_queue: VecDeque::new(),
            dead_running: BTreeMap::new(),
            breaker: Breaker::new(config.breaker),
            throttle: config.rate.map(|rate| Throttle::new(rate, now)),
            tasks: JoinSet::new(),
            running: 0,
            commands,
            view: Arc::new(Mutex::new(View {
                status: empty_status(&config),
                replays: BTreeMap::new(),
            })),
            pinned: pinned.clone(),
            record,
            dirty: true,
            unsaved: 0,
            saved_at: Instant::now(),
            not_before: None,
            delivered: 0,
            last_error: None,
            config: config.clone(),
        };
        telemetry::sink_started(&worker.name);
        worker.publish();
        let view = worker.view.clone();
        tokio::spawn(worker.run());
        Handle {
            config,
            commands: sender,
            view,
            pinned,
            dead,
            sink: Some(sink),
        }
    }

    async fn run(mut self) {
        // Before the first delivery a sink's position must be on record: what is behind it after a crash is then its own.
        while self.traits.serial && !self.save().await {
            match tokio::time::timeout(PAUSE_AFTER_FAILURE, self.commands.recv()).await {
                Err(_) => {}
                Ok(Some(Command::Stop(stopped))) => {
                    let _ = stopped.send(());
                    return;
                }
                Ok(Some(command)) => self.obey(command).await,
                Ok(None) => return,
            }
        }
        loop {
            let more = self.fill().await;
            self.dispatch().await;
            self.save_if_due().await;
            self.publish();
            let wake = if more { Some(Instant::now()) } else { self.wake_at() };
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Stop(stopped)) => {
                        self.stop().await;
                        let _ = stopped.send(());
                        return;
                    }
                    Some(command) => self.obey(command).await,
                    None => return self.stop().await,
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.collect(done).await;
                    while let Some(done) = self.tasks.try_join_next() {
                        self.collect(done).await;
                    }
                }
                _ = self.head.changed() => {}
                () = sleep => {}
            }
        }
    }

    /// Lets what runs come to its end, saves, and lets go.
    async fn stop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while let Ok(Some(done)) = tokio::time::timeout_at(end, self.tasks.join_next()).await {
            self.collect(done).await;
        }
        self.tasks.shutdown().await;
        self.running = 0;
        self.dirty = true;
        if !self.save().await {
            tracing::warn!(
                sink = self.name,
                "the newest progress could not be saved; some deliveries will repeat"
            );
        }
        self.publish();
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Pause(paused, done) => {
                self.record.paused = paused;
                self.dirty = true;
                if self.running == 0 || !self.traits.serial {
                    self.save().await;
                }
                self.publish();
                let _ = done.send(());
            }
            Command::EventState(seq, answer) => drop(answer.send(self.event_state(seq))),
            Command::Expire(upto, done) => {
                let expired = self.expire(upto).await;
                let _ = done.send(expired);
            }
            Command::Replay(job) => {
                if !self.replays.iter().any(|replay| replay.job.id == job.id) {
                    let feed = Feed::restore(
                        &Saved {
                            next: job.spec.from,
                            open: Vec::new(),
                        },
                        self.config.order,
                    );
                    self.replays.push(Replaying {
                        job,
                        feed,
                        delivered: 0,
                        dead: 0,
                        done: false,
                    });
                    self.dirty = true;
                }
                self.publish();
            }
            Command::RetryDead(seqs, progress) => {
                self.dead_queue
                    .extend(seqs.into_iter().map(|seq| (seq, progress.clone())));
            }
            // Handled by the loop.
            Command::Stop(_) => {}
        }
    }

    /// Reads ahead while there is room. `true`: there is more to read at once.
    async fn fill(&mut self) -> bool {
        if self.record.paused || self.not_before.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        if self.follow {
            for _ in 0..READS_IN_A_ROW {
                match self.fill_main().await {
                    Some(true) => {}
                    Some(false) => break,
                    None => return false,
                }
            }
        }
        for index in 0..self.replays.len() {
            self.fill_replay(index).await;
        }
        let head = *self.head.borrow_and_update();
        let main_more = self.follow && self.main.next() <= head && self.main.room() > 0;
        main_more || self.replays.iter().any(Replaying::wants_more)
    }

    /// `Some(true)`: something was read; `None`: the log can't be read now.
    async fn fill_main(&mut self) -> Option<bool> {
        let room = self.main.room();
        let from = self.main.next();
        if room == 0 || from > *self.head.borrow_and_update() {
            return Some(false);
        }
        let batch = self.read(from, room).await?;
        self.count_lost(&batch.lost);
        let rules = self.rules.load_full();
        for event in batch.events {
            self.read_upto = Some(event.received_at);
            match rules.route(&self.name, &event) {
                Some(names) => self.main.offer(event, names),
                None => self.main.passed(event.seq.next()),
            }
        }
        self.main.passed(batch.next.max(self.main.next()));
        self.dirty = true;
        Some(batch.next > from)
    }

    async fn fill_replay(&mut self, index: usize) {
        let replay = &self.replays[index];
        if !replay.wants_more() {
            return;
        }
        let (from, room, job) = (replay.feed.next(), replay.feed.room(), replay.job.clone());
        let Some(batch) = self.read(from, room).await else {
            return;
        };
        let rules = self.rules.load_full();
        let replay = &mut self.replays[index];
        for event in batch.events {
            let wanted = (event.seq <= job.spec.to)
                .then(|| job.route(&self.name, &event, &rules))
                .flatten();
            match wanted {
                Some(names) => replay.feed.offer(event, names),
                None => replay.feed.passed(event.seq.next()),
            }
        }
        // At the end of the log there is nothing more to wait for.
        let next = if batch.next == from {
            job.spec.to.next()
        } else {
            batch.next
        };
        replay.feed.passed(next.max(replay.feed.next()));
        self.dirty = true;
    }

    async fn read(&mut self, from: Seq, room: usize) -> Option<crate::log::Batch> {
        let log = self.log.clone();
        let read = tokio::task::spawn_blocking(move || log.read(from, room.min(READ_EVENTS), READ_BYTES)).await;
        match read {
            Ok(Ok(batch)) => Some(batch),
            Ok(Err(error)) => {
                self.stumble(&error.to_string());
                None
            }
            Err(_) => {
                self.stumble("reading the event log was interrupted");
                None
            }
        }
    }

    /// Something on this machine failed: a moment's rest, then again.
    fn stumble(&mut self, what: &str) {
        tracing::warn!(sink = self.name, error = what, "the sink's worker is held up");
        self.last_error = Some((what.to_owned(), Timestamp::now()));
        self.not_before = Some(Instant::now() + PAUSE_AFTER_FAILURE);
    }

    fn count_lost(&mut self, lost: &[(Seq, Seq)]) {
        for (from, to) in lost {
            let count = to.0 - from.0 + 1;
            tracing::error!(
                sink = self.name,
                from = from.0,
                to = to.0,
                "events {from} to {to} were damaged or expired before this sink had them"
            );
            self.record.lost += count;
            telemetry::lost(&self.name, count);
        }
    }

    async fn dispatch(&mut self) {
        if self.record.paused || self.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.not_before = None;
        // A checkpoint is due: let what runs come to its end first.
        if self.traits.serial
            && (self.unsaved >= SAVE_AFTER || (self.dirty && self.saved_at.elapsed() >= SAVE_EVERY))
            && self.running > 0
        {
            return;
        }
        while self.running < self.concurrency {
            let now = schedule::now();
            let most = self.traits.batch_max;
            let allowed = self.breaker.allows(now, most);
            let allowed = match &mut self.throttle {
                Some(throttle) => throttle.take(now, allowed),
                None => allowed,
            };
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
            self.running += 1;
            self.launch(lane, batch);
        }
    }

    /// The next deliveries of one lane: new events first, then dead letters, then replays.
    async fn next_batch(&mut self, now: Timestamp, most: usize) -> (Lane, Vec<Delivery>) {
        if self.follow {
            let batch = self.take(&Lane::Main, now, most).await;
            if !batch.is_empty() {
                return (Lane::Main, batch);
            }
        }
        while let Some((seq, progress)) = self.dead_queue.pop_front() {
            let letters = self.dead.clone();
            if let Ok(Ok(Some((letter, event)))) = tokio::task::spawn_blocking(move || letters.get(seq)).await {
                self.dead_running.insert(seq, progress);
                let rules = self.rules.load().route(&self.name, &event).unwrap_or_default();
                return (
                    Lane::Dead,
                    vec![Delivery {
                        origin: crate::event::Origin::Letter,
                        event,
                        rules,
                        attempt: letter.attempts + 1,
                    }],
                );
            }
            progress.count(false);
        }
        for index in 0..self.replays.len() {
            let job = self.replays[index].job.clone();
            if !job.is_running() || self.replays[index].done {
                continue;
            }
            let allowed = job.take(now, most);
            let lane = Lane::Replay(job.id.clone());
            let batch = if allowed == 0 {
                Vec::new()
            } else {
                self.take(&lane, now, allowed).await
            };
            job.give_back(allowed - batch.len());
            if !batch.is_empty() {
                return (lane, batch);
            }
        }
        (Lane::Main, Vec::new())
    }

    fn feed(&mut self, lane: &Lane) -> Option<&mut Feed> {
        match lane {
            Lane::Main => Some(&mut self.main),
            Lane::Replay(id) => self.replays.iter_mut().find(|r| r.job.id == *id).map(|r| &mut r.feed),
            Lane::Dead => None,
        }
    }

    /// Takes deliverable events of a feed, reading again those that are not in memory.
    async fn take(&mut self, lane: &Lane, now: Timestamp, most: usize) -> Vec<Delivery> {
        let Some(feed) = self.feed(lane) else { return Vec::new() };
        let seqs = feed.deliverable(now, most);
        let mut batch = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let loaded = self.feed(lane).and_then(|feed| feed.loaded(seq));
            let loaded = match loaded {
                Some(loaded) => Some(loaded),
                None => match self.load_again(lane, seq).await {
                    Ok(loaded) => loaded,
                    Err(()) => break,
                },
            };
            let Some(feed) = self.feed(lane) else { break };
            match loaded {
                Some((event, rules)) => {
                    let attempt = feed.started(seq, now);
                    batch.push(Delivery {
                        origin: crate::event::Origin::Live,
                        event,
                        rules,
                        attempt,
                    });
                }
                None => feed.finished(seq),
            }
        }
        batch
    }

    /// `Ok(None)`: it is gone, or no rule sends it here any more. `Err`: the log can't be read now.
    async fn load_again(&mut self, lane: &Lane, seq: Seq) -> Result<Option<(Arc<Event>, Rules)>, ()> {
        let log = self.log.clone();
        let event = match tokio::task::spawn_blocking(move || log.get(seq)).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => {
                self.stumble(&error.to_string());
                return Err(());
            }
            Err(_) => return Err(()),
        };
        let Some(event) = event else {
            self.count_lost(&[(seq, seq)]);
            return Ok(None);
        };
        let rules = self.rules.load_full();
        let route = match lane {
            Lane::Replay(id) => self
                .replays
                .iter()
                .find(|r| r.job.id == *id)
                .and_then(|r| r.job.route(&self.name, &event, &rules)),
            Lane::Main | Lane::Dead => rules.route(&self.name, &event),
        };
        Ok(route.map(|names| {
            if let Some(feed) = self.feed(lane) {
                feed.load(event.clone(), names.clone());
            }
            (event, names)
        }))
    }

    fn launch(&mut self, lane: Lane, batch: Vec<Delivery>) {
        let sink = self.sink.clone();
        let limit = (!self.traits.serial).then(|| self.config.timeout.0 * batch.len() as u32 + GRACE);
        self.tasks.spawn(async move {
            let deliver = AssertUnwindSafe(async {
                match limit {
                    // A sink that keeps a position must not be cancelled half-way: what it did would not be known.
                    None => sink.deliver(&batch).await,
                    Some(limit) => match tokio::time::timeout(limit, sink.deliver(&batch)).await {
                        Ok(outcomes) => outcomes,
                        Err(_) => vec![retry("the delivery took too long"); batch.len()],
                    },
                }
            });
            let mut outcomes = match deliver.catch_unwind().await {
                Ok(outcomes) => outcomes,
                Err(_) => {
                    vec![retry("the sink panicked; this is a defect of closehook, please report it"); batch.len()]
                }
            };
            outcomes.resize(batch.len(), retry("the sink gave no answer for the event"));
            Finished { lane, batch, outcomes }
        });
    }

    async fn collect(&mut self, done: Result<Finished, tokio::task::JoinError>) {
        self.running = self.running.saturating_sub(1);
        // Panics are caught inside, so only a shutdown ends a task without an answer.
        let Ok(Finished { lane, batch, outcomes }) = done else {
            return;
        };
        self.dirty = true;
        self.unsaved += batch.len();
        let now = schedule::now();
        let doubted = self.breaker.doubts_refusals();
        self.judge(&outcomes, now);
        let mut dead = Vec::new();
        for (delivery, outcome) in batch.into_iter().zip(outcomes) {
            let seq = delivery.event.seq;
            match (outcome, &lane) {
                (Outcome::Delivered, _) => self.delivered(&lane, seq),
                (Outcome::Retry { reason, .. } | Outcome::Reject { reason }, Lane::Dead) => {
                    self.last_error = Some((reason.clone(), now));
                    dead.push((self.letter(&delivery, reason, delivery.attempt, None), delivery.event));
                }
                (Outcome::Reject { reason }, _) if !doubted => {
                    self.last_error = Some((reason.clone(), now));
                    dead.push(self.give_up(&lane, &delivery, reason));
                }
                (Outcome::Reject { reason }, _) => self.try_later(&lane, &delivery, reason, None, now, &mut dead),
                (Outcome::Retry { reason, after }, _) => {
                    self.try_later(&lane, &delivery, reason, after, now, &mut dead);
                }
            }
        }
        if !dead.is_empty() {
            self.bury(&lane, dead).await;
        }
    }

    /// One batch is one answer of the receiver.
    fn judge(&mut self, outcomes: &[Outcome], now: Timestamp) {
        let any = |test: fn(&Outcome) -> bool| outcomes.iter().any(test);
        let change = if any(|outcome| *outcome == Outcome::Delivered) {
            self.last_error = None;
            self.breaker.succeeded()
        } else if any(|outcome| matches!(outcome, Outcome::Retry { .. })) {
            self.breaker.failed(now)
        } else {
            self.breaker.refused(now)
        };
        let reason = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Retry { reason, .. } | Outcome::Reject { reason } => Some(reason.as_str()),
            Outcome::Delivered => None,
        });
        match change {
            Change::Opened => tracing::warn!(
                sink = self.name,
                reason,
                "the sink keeps failing: it is tried every {} until it works",
                self.config.breaker.probe
            ),
            Change::Closed => tracing::info!(sink = self.name, "the sink works again"),
            Change::None => {}
        }
    }

    fn delivered(&mut self, lane: &Lane, seq: Seq) {
        self.delivered += 1;
        telemetry::delivered(&self.name);
        match lane {
            Lane::Dead => {
                if let Err(error) = self.dead.remove(&[seq]) {
                    tracing::warn!(sink = self.name, %error, "a dead letter that was delivered could not be removed");
                }
                if let Some(progress) = self.dead_running.remove(&seq) {
                    progress.count(true);
                }
            }
            Lane::Main => self.main.finished(seq),
            Lane::Replay(id) => {
                if let Some(replay) = self.replays.iter_mut().find(|r| r.job.id == *id) {
                    replay.feed.finished(seq);
                    replay.delivered += 1;
                }
            }
        }
    }

    fn try_later(
        &mut self,
        lane: &Lane,
        delivery: &Delivery,
        reason: String,
        after: Option<Duration>,
        now: Timestamp,
        dead: &mut Vec<(DeadLetter, Arc<Event>)>,
    ) {
        self.last_error = Some((reason.clone(), now));
        let retry = self.config.retry;
        let first = self
            .feed(lane)
            .and_then(|f| f.tries(delivery.event.seq)?.first_attempt)
            .unwrap_or(now);
        if schedule::is_too_old(&retry, first, now) {
            let reason = format!("given up after {}: {reason}", retry.max_age);
            dead.push(self.give_up(lane, delivery, reason));
            return;
        }
        telemetry::retried(&self.name);
        let delay = schedule::delay(&retry, delivery.attempt, after);
        let due = SignedDuration::try_from(delay)
            .ok()
            .and_then(|delay| now.checked_add(delay).ok());
        if let Some(feed) = self.feed(lane) {
            feed.failed(delivery.event.seq, due.unwrap_or(now), reason);
        }
    }

    fn give_up(&mut self, lane: &Lane, delivery: &Delivery, reason: String) -> (DeadLetter, Arc<Event>) {
        let first = self
            .feed(lane)
            .and_then(|feed| feed.tries(delivery.event.seq)?.first_attempt);
        (
            self.letter(delivery, reason, delivery.attempt, first),
            delivery.event.clone(),
        )
    }

    fn letter(&self, delivery: &Delivery, reason: String, attempts: u32, first: Option<Timestamp>) -> DeadLetter {
        dead_letter(&self.name, &delivery.event, reason, attempts, first)
    }

    /// Makes dead letters durable and only then lets the feed pass their events.
    async fn bury(&mut self, lane: &Lane, letters: Vec<(DeadLetter, Arc<Event>)>) -> bool {
        let store = self.dead.clone();
        let seqs: Vec<Seq> = letters.iter().map(|(letter, _)| letter.seq).collect();
        let reasons: Vec<String> = letters.iter().map(|(letter, _)| letter.reason.clone()).collect();
        let stored = tokio::task::spawn_blocking(move || store.add(&letters)).await;
        let error = match stored {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            let later = schedule::now() + SignedDuration::from_secs(5);
            for seq in seqs {
                if let Some(feed) = self.feed(lane) {
                    feed.failed(seq, later, "its dead letter could not be stored".into());
                }
                if let Some(progress) = self.dead_running.remove(&seq) {
                    progress.count(false);
                }
            }
            self.stumble(&format!("a dead letter could not be stored: {error}"));
            return false;
        }
        for (seq, reason) in seqs.into_iter().zip(reasons) {
            if let Some(progress) = self.dead_running.remove(&seq) {
                progress.count(false);
                continue;
            }
            telemetry::dead(&self.name, seq, &reason);
            if let Some(feed) = self.feed(lane) {
                feed.finished(seq);
            }
            if let Lane::Replay(id) = lane
                && let Some(replay) = self.replays.iter_mut().find(|r| r.job.id == *id)
            {
                replay.dead += 1;
            }
        }
        true
    }

    /// The log must drop everything up to `upto`: what is not finished becomes dead letters.
    async fn expire(&mut self, upto: Seq) -> bool {
        const REASON: &str = "the log reached its size limit before the sink had it";
        for seq in self.main.open_upto(upto) {
            let tries = self.main.tries(seq).cloned().unwrap_or_default();
            let event = match self.main.loaded(seq) {
                Some((event, _)) => Some(event),
                None => self
                    .load_again(&Lane::Main, seq)
                    .await
                    .ok()
                    .flatten()
                    .map(|(event, _)| event),
            };
            let Some(event) = event else {
                self.main.finished(seq);
                continue;
            };
            let letter = dead_letter(&self.name, &event, REASON.into(), tries.attempts, tries.first_attempt);
            if !self.bury(&Lane::Main, vec![(letter, event)]).await {
                return false;
            }
        }
        while self.main.next() <= upto {
            let Some(batch) = self.read(self.main.next(), READ_EVENTS).await else {
                return false;
            };
            if batch.next == self.main.next() {
                break;
            }
            let rules = self.rules.load_full();
            let mut letters = Vec::new();
            let mut next = batch.next;
            for event in batch.events {
                if event.seq > upto {
                    next = upto.next();
                    break;
                }
                if rules.route(&self.name, &event).is_some() {
                    letters.push((dead_letter(&self.name, &event, REASON.into(), 0, None), event));
                }
            }
            self.count_lost(&batch.lost);
            if !letters.is_empty() && !self.bury(&Lane::Main, letters).await {
                return false;
            }
            self.main.passed(next);
        }
        self.dirty = true;
        while self.traits.serial && self.running > 0 {
            let Some(done) = self.tasks.join_next().await else {
                break;
            };
            self.collect(done).await;
        }
        self.save().await
    }

    async fn save_if_due(&mut self) {
        for replay in &mut self.replays {
            if !replay.done && replay.feed.next() > replay.job.spec.to && replay.feed.is_idle() {
                replay.done = true;
                self.dirty = true;
            }
        }
        let due = self.unsaved >= SAVE_AFTER || self.saved_at.elapsed() >= SAVE_EVERY;
        if self.dirty && due && (self.running == 0 || !self.traits.serial) {
            self.save().await;
        }
    }

    /// Saves everything in one record; `true` when it is durable.
    async fn save(&mut self) -> bool {
        self.saved_at = Instant::now();
        if self.traits.serial {
            match self.sink.checkpoint().await {
                Ok(position) => self.record.position = position,
                Err(error) => {
                    self.stumble(&error.to_string());
                    return false;
                }
            }
        }
        self.unsaved = 0;
        if !self.put_record().await {
            return false;
        }
        if self.traits.serial {
            match self.sink.committed().await {
                Ok(None) => {}
                Ok(Some(position)) => {
                    self.record.position = Some(position);
                    // Nothing may be delivered to the new place before it is on record.
                    while !self.put_record().await {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
                Err(error) => self.stumble(&error.to_string()),
            }
        }
        true
    }

    async fn put_record(&mut self) -> bool {
        if self.follow || self.record.main.is_some() {
            self.record.main = Some(self.main.save());
        }
        self.record.replays = self.replay_records();
        self.record.saved_at = Some(schedule::now());
        if let Err(error) = self.state.put(&record_key(&self.name), &self.record).await {
            self.last_error = Some((format!("progress can't be saved: {error}"), Timestamp::now()));
            return false;
        }
        self.dirty = false;
        if let Some(cursor) = self.record.cursor() {
            self.pinned.store(cursor.0, Ordering::SeqCst);
        }
        true
    }

    fn replay_records(&self) -> BTreeMap<String, ReplayRecord> {
        let record = |r: &Replaying| ReplayRecord {
            saved: r.feed.save(),
            delivered: r.delivered,
            dead: r.dead,
            done: r.done,
        };
        self.replays
            .iter()
            .map(|replay| (replay.job.id.clone(), record(replay)))
            .collect()
    }

    fn wake_at(&self) -> Option<Instant> {
        let now = schedule::now();
        let soon = |at: Timestamp| Instant::now() + Duration::try_from(at.duration_since(now)).unwrap_or_default();
        let saving = (self.dirty && (self.running == 0 || !self.traits.serial)).then(|| self.saved_at + SAVE_EVERY);
        if self.record.paused {
            return saving;
        }
        let mut wakes: Vec<Instant> = saving.into_iter().chain(self.not_before).collect();
        if self.running < self.concurrency {
            wakes.extend(self.breaker.wake_at().map(soon));
            if self.breaker.state() == "closed" {
                wakes.extend(self.main.next_due().filter(|_| self.follow).map(soon));
                wakes.extend(
                    self.replays
                        .iter()
                        .filter(|r| r.job.is_running())
                        .filter_map(|r| r.feed.next_due())
                        .map(soon),
                );
                if let Some(throttle) = &self.throttle {
                    wakes.push(Instant::now() + throttle.wait());
                }
                let waits = self
                    .replays
                    .iter()
                    .filter(|r| r.job.is_running() && !r.done)
                    .filter_map(|r| r.job.wait());
                wakes.extend(waits.map(|wait| Instant::now() + wait));
            }
        }
        wakes.into_iter().min()
    }

    fn event_state(&self, seq: Seq) -> EventState {
        if let Ok(Some((letter, _))) = self.dead.get(seq) {
            return EventState::Dead { reason: letter.reason };
        }
        if let (Some((in_flight, due)), Some(tries)) = (self.main.stage(seq), self.main.tries(seq)) {
            return match due {
                _ if in_flight => EventState::InFlight,
                Some(due) => EventState::Retrying {
                    attempts: tries.attempts,
                    due,
                    reason: tries.reason.clone(),
                },
                None => EventState::Waiting,
            };
        }
        if seq >= self.main.next() {
            EventState::Waiting
        } else {
            EventState::Delivered
        }
    }

    fn publish(&mut self) {
        let head = *self.head.borrow();
        let lag_events = if self.follow {
            (head.0 + 1).saturating_sub(self.main.next().0)
        } else {
            0
        };
        let oldest = self.main.oldest_open().or(self.read_upto.filter(|_| lag_events > 0));
        let lag_seconds = oldest.map_or(0.0, |at| Timestamp::now().duration_since(at).as_secs_f64().max(0.0));
        let (last_error, last_error_at) = self.last_error.clone().unzip();
        let status = SinkStatus {
            cursor: self.main.cursor(),
            lag_events: lag_events + self.main.open_len() as u64,
            lag_seconds,
            in_flight: self.main.in_flight() + self.replays.iter().map(|r| r.feed.in_flight()).sum::<usize>(),
            retrying: self.main.retrying() + self.replays.iter().map(|r| r.feed.retrying()).sum::<usize>(),
            dead: self.dead.len() as u64,
            lost: self.record.lost,
            delivered: self.delivered,
            breaker: self.breaker.state().to_owned(),
            paused: self.record.paused,
            last_error,
            last_error_at,
            ..empty_status(&self.config)
        };
        let view = View {
            status,
            replays: self.replay_records(),
        };
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

/// A handle on what is saved of a sink, without a worker behind it.
pub(super) fn look(config: &SinkConfig, record: Record, dead: DeadLetters, head: Seq) -> Handle {
    let (commands, _) = mpsc::channel(1);
    let cursor = record.cursor().unwrap_or_default();
    let open = record.main.as_ref().map_or(0, |main| main.open.len());
    let next = record.main.as_ref().map_or(head.next(), |main| main.next);
    let status = SinkStatus {
        cursor,
        lag_events: head.next().0.saturating_sub(next.0) + open as u64,
        retrying: open,
        dead: dead.len() as u64,
        lost: record.lost,
        paused: record.paused,
        ..empty_status(config)
    };
    let view = Arc::new(Mutex::new(View {
        status,
        replays: record.replays,
    }));
    Handle {
        config: config.clone(),
        commands,
        view,
        pinned: Arc::new(AtomicU64::new(cursor.0)),
        dead,
        sink: None,
    }
}

/// What the saved record says about an event that is for the sink.
pub(super) fn saved_state(record: &Record, dead: &DeadLetters, seq: Seq) -> EventState {
    if let Ok(Some((letter, _))) = dead.get(seq) {
        return EventState::Dead { reason: letter.reason };
    }
    let Some(main) = &record.main else {
        return EventState::Waiting;
    };
    match main.open.iter().find(|item| item.seq == seq) {
        Some(item) => match item.due {
            Some(due) => EventState::Retrying {
                attempts: item.tries.attempts,
                due,
                reason: item.tries.reason.clone(),
            },
            None => EventState::Waiting,
        },
        None if seq >= main.next => EventState::Waiting,
        None => EventState::Delivered,
    }
}

impl Replaying {
    fn wants_more(&self) -> bool {
        self.job.is_running() && !self.done && self.feed.next() <= self.job.spec.to && self.feed.room() > 0
    }
}

fn retry(reason: &str) -> Outcome {
    Outcome::Retry {
        reason: reason.to_owned(),
        after: None,
    }
}

fn dead_letter(
    sink: &str,
    event: &Event,
    reason: String,
    attempts: u32,
    first_attempt: Option<Timestamp>,
) -> DeadLetter {
    let view = event.view();
    DeadLetter {
        sink: sink.to_owned(),
        seq: event.seq,
        id: view.map(|view| view.id.clone()).unwrap_or_default(),
        event_type: view.and_then(crate::event::View::type_action),
        lead_id: view.and_then(|view| view.lead_id.clone()),
        reason,
        attempts,
        first_attempt,
        died_at: Timestamp::now(),
    }
}

fn empty_status(config: &SinkConfig) -> SinkStatus {
    SinkStatus {
        name: config.name.clone(),
        kind: config.kind.clone(),
        cursor: Seq::ZERO,
        lag_events: 0,
        lag_seconds: 0.0,
        in_flight: 0,
        retrying: 0,
        dead: 0,
        lost: 0,
        delivered: 0,
        breaker: "closed".into(),
        paused: false,
        last_error: None,
        last_error_at: None,
    }
}
