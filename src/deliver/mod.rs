//! The delivery engine: one worker per sink, each reading the log at its own durable cursor.
//!
//! ```text
//! log ──► `worker` ──► rules ──► `feed` ──► sink ──► delivered | retry (`schedule`) | `dead_letters`
//!             ▲                                                   │
//!             └──────────── one durable record (`state`) ◄──────┘
//! ```
//!
//! [`Engine`] starts and stops workers, and passes questions and orders on to them; it knows nothing about delivering.
//! A `replay` is one more feed in the same workers, so it shares their limits and never overtakes the sink's breaker.
//!
//! Owned below the data directory: `state/` and `dead/`.

mod dead_letters;
mod feed;
mod late;
mod replay;
mod schedule;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::{SinkConfig, Start};
use crate::event::{Event, Seq};
use crate::framefile::FrameError;
use crate::log::LocalLog;
use crate::rules::RuleSet;
use crate::sinks::{Resume, Sink};
use crate::state::local::{self as state, State};
use dead_letters::DeadLetters;
use feed::Saved;
use late::Late;
use replay::Job;
use worker::{Command, Handle, Parts, Record, Worker, record_key};

/// What the engine needs to start.
#[derive(Debug)]
pub struct Options {
    /// Where events come from.
    pub log: LocalLog,
    /// The data directory; the engine owns `state/` and `dead/` in it.
    pub dir: std::path::PathBuf,
    /// What goes where.
    pub rules: Arc<RuleSet>,
    /// The sinks.
    pub sinks: Vec<SinkConfig>,
    /// What workers do.
    pub mode: Mode,
}

/// What an engine's workers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Follow the log: the daemon.
    Follow,
    /// Only replays and retries of dead letters: a command without a daemon.
    Jobs,
    /// Nothing; what is saved can be looked at. Nothing is written.
    Look,
}

/// Why the engine can't do what was asked; one sentence for the person asking.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// One sink, for people and for `/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Everything up to here is delivered, dead or not for this sink.
    pub cursor: Seq,
    /// Events of the log behind the cursor that are not looked at yet.
    pub lag_events: u64,
    /// Age in seconds of the oldest event that is not finished; 0 when there is none.
    pub lag_seconds: f64,
    /// Deliveries running now.
    pub in_flight: usize,
    /// Events waiting for another try.
    pub retrying: usize,
    /// Dead letters.
    pub dead: u64,
    /// Events that were damaged or expired before this sink had them.
    pub lost: u64,
    /// Delivered since the daemon started.
    pub delivered: u64,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// Stopped by a person.
    pub paused: bool,
    /// The newest failure, if any since the last success.
    pub last_error: Option<String>,
    /// When it was.
    pub last_error_at: Option<Timestamp>,
}

/// What became of one event at one sink, for `events show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum EventState {
    /// Before the sink's start, or no rule sends it there.
    NotRouted,
    /// Not looked at yet.
    Waiting,
    /// Being delivered now.
    InFlight,
    /// Failed so far.
    Retrying {
        /// Attempts made.
        attempts: u32,
        /// When the next one is due.
        due: Timestamp,
        /// Why the last one failed.
        reason: String,
    },
    /// Delivered.
    Delivered,
    /// A dead letter.
    Dead {
        /// Why.
        reason: String,
    },
}

/// Which stored events a replay sends, and where. Empty lists mean "no restriction".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplaySpec {
    /// First Seq.
    pub from: Seq,
    /// Last Seq; fixed when the replay is made.
    pub to: Seq,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Event ids.
    pub ids: Vec<String>,
    /// Event patterns.
    pub types: Vec<String>,
    /// A lead.
    pub lead: Option<String>,
    /// A filter, as JSON text.
    pub filter: Option<String>,
    /// Only what this rule matches, and only to its sinks.
    pub rule: Option<String>,
    /// Only to these sinks (then whether or not a rule sends the event there); empty: wherever the rules send it.
    pub sinks: Vec<String>,
    /// Deliveries a second over all sinks.
    pub rate: Option<f64>,
    /// At most so many events.
    pub limit: Option<u64>,
    /// Only events whose data Close withholds.
    #[serde(default)]
    pub only_partials: bool,
}

impl ReplaySpec {
    /// The events without their data in a range of Seqs, wherever the rules send them.
    pub fn of_partials(from: Seq, to: Seq) -> ReplaySpec {
        ReplaySpec {
            from,
            to,
            since: None,
            until: None,
            ids: Vec::new(),
            types: Vec::new(),
            lead: None,
            filter: None,
            rule: None,
            sinks: Vec::new(),
            rate: None,
            limit: None,
            only_partials: true,
        }
    }
}

/// A dead letter, without its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The sink that does not have it.
    pub sink: String,
    /// Its place in the log.
    pub seq: Seq,
    /// The event's id.
    pub id: String,
    /// `object_type.action`, where known.
    pub event_type: Option<String>,
    /// Its lead, if any.
    pub lead_id: Option<String>,
    /// Why it was given up.
    pub reason: String,
    /// Attempts made.
    pub attempts: u32,
    /// When the first attempt was made; `None` if there was none.
    pub first_attempt: Option<Timestamp>,
    /// When it was given up.
    pub died_at: Timestamp,
}

/// A replay job: counts as they stand now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// Its id, for `replay --resume`.
    pub id: String,
    /// What was asked for.
    pub spec: ReplaySpec,
    /// `running`, `interrupted`, `done`.
    pub state: String,
    /// Deliveries planned, per sink.
    pub planned: std::collections::BTreeMap<String, u64>,
    /// Deliveries finished well, over all sinks.
    pub delivered: u64,
    /// Deliveries that became dead letters, over all sinks.
    pub dead: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How a retry of dead letters is getting on.
#[derive(Debug, Default)]
pub struct RetryProgress {
    /// Letters asked for.
    pub total: AtomicU64,
    /// Delivered and removed.
    pub delivered: AtomicU64,
    /// Still dead.
    pub failed: AtomicU64,
}

impl RetryProgress {
    fn count(&self, delivered: bool) {
        let counter = if delivered { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Total, delivered, still dead.
    pub fn counts(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.total), load(&self.delivered), load(&self.failed))
    }
}

/// A replay job as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct JobRecord {
    spec: ReplaySpec,
    planned: BTreeMap<String, u64>,
    created_at: Timestamp,
    running: bool,
}

/// What the engine has to remember, at one moment, for a backup.
#[derive(Debug)]
pub struct Picture {
    /// Positions, retries and replays, by key.
    pub state: Vec<(String, Vec<u8>)>,
    /// Files of dead letters: below the data directory, open, and how long each was. They only grow.
    pub dead: Vec<(PathBuf, std::fs::File, u64)>,
}

/// Where dead letters are, below the data directory.
const DEAD: &str = "dead";

/// Where the state is, below the data directory.
const STATE: &str = "state";

/// Writes a [`Picture`]'s state into a data directory that has none. Blocking.
pub fn restore_state(dir: &std::path::Path, state: Vec<(String, Vec<u8>)>) -> Result<(), EngineError> {
    state::write(&dir.join(STATE), state).map_err(|error| EngineError(error.to_string()))
}

/// Whether a path, relative to the data directory, is that of a file of dead letters.
pub fn is_dead_letters(path: &std::path::Path) -> bool {
    path.parent() == Some(std::path::Path::new(DEAD))
}

/// A position is kept this long after its sink left the configuration; so is a replay after it was made.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The engine. Cheap to clone; all clones are the same engine.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: LocalLog,
    state: State,
    dead_dir: PathBuf,
    rules: Arc<ArcSwap<RuleSet>>,
    workers: Mutex<BTreeMap<String, Handle>>,
    jobs: Mutex<BTreeMap<String, (Arc<Job>, JobRecord)>>,
    mode: Mode,
    runtime: tokio::runtime::Handle,
}

impl Engine {
    /// Opens the state and starts a worker per sink. Every sink's options must be usable; nothing is contacted. A file that
    /// can't be opened now is opened later.
    pub async fn start(options: Options) -> Result<Engine, EngineError> {
        let state_dir = options.dir.join(STATE);
        let state = tokio::task::spawn_blocking(move || State::open(&state_dir, options.mode == Mode::Look)).await;
        let state = state
            .map_err(|error| EngineError(error.to_string()))?
            .map_err(|error| EngineError(error.to_string()))?;
        let inner = Inner {
            dead_dir: options.dir.join(DEAD),
            log: options.log,
            state,
            rules: Arc::new(ArcSwap::new(options.rules)),
            workers: Mutex::default(),
            jobs: Mutex::default(),
            mode: options.mode,
            runtime: tokio::runtime::Handle::current(),
        };
        let engine = Engine { inner: Arc::new(inner) };
        engine.load_jobs().await;
        engine.guard_seqs().await?;
        for config in &options.sinks {
            engine.start_worker(config).await?;
        }
        engine.inner.state.mended();
        engine.detach_missing(&options.sinks).await;
        Ok(engine)
    }

    fn workers(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, (Arc<Job>, JobRecord)>> {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self, sink: &str) -> Result<Handle, EngineError> {
        let workers = self.workers();
        workers.get(sink).cloned().ok_or_else(|| {
            let hint = crate::config::nearest(sink, workers.keys().map(String::as_str));
            let hint = hint.map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
            EngineError(format!("there is no sink \"{sink}\"{hint}"))
        })
    }

    /// Seqs that a sink has seen are never given out again, even if damage took them from the log.
    async fn guard_seqs(&self) -> Result<(), EngineError> {
        let head = *self.inner.log.head().borrow();
        let records = self
            .inner
            .state
            .keys("sink/")
            .into_iter()
            .filter_map(|key| self.inner.state.get::<Record>(&key));
        let seen = records
            .filter_map(|record| record.main)
            .map(|main| main.next.prev())
            .max()
            .unwrap_or_default();
        if self.inner.mode == Mode::Follow && seen > head {
            self.inner
                .log
                .skip_past(seen)
                .await
                .map_err(|error| EngineError(error.to_string()))?;
        }
        Ok(())
    }

    fn build(&self, config: &SinkConfig, record: &Record) -> Result<Arc<dyn Sink>, EngineError> {
        config
            .options
            .build(config, self.resume(record))
            .map_err(|error| EngineError(error.to_string()))
    }

    fn resume(&self, record: &Record) -> Resume {
        Resume {
            position: record.position.clone(),
            epoch: self.inner.log.epoch().to_owned(),
        }
    }

    async fn start_worker(&self, config: &SinkConfig) -> Result<(), EngineError> {
        if self.inner.mode == Mode::Look {
            let record: Record = self.inner.state.get(&record_key(&config.name)).unwrap_or_default();
            let dead = DeadLetters::open(&self.inner.dead_dir, &config.name, true)
                .map_err(|error| EngineError(error.to_string()))?;
            let head = *self.inner.log.head().borrow();
            self.workers()
                .insert(config.name.clone(), worker::look(config, record, dead, head));
            return Ok(());
        }
        let parts = self.prepare(config, true).await?;
        self.launch(parts);
        Ok(())
    }

    /// Everything a worker needs, its start settled and saved; nothing is read or delivered yet.
    async fn prepare(&self, config: &SinkConfig, may_open_late: bool) -> Result<Parts, EngineError> {
        let key = record_key(&config.name);
        let mut record: Record = self.inner.state.get(&key).unwrap_or_default();
        let follow = self.inner.mode == Mode::Follow;
        if record.main.is_none() && follow {
            // Its position may be what damage took: everything again is better than something never.
            let start = if self.inner.state.is_damaged() {
                tracing::error!(
                    sink = config.name,
                    "the sink's position is lost to damage: it begins at the oldest event kept, and deliveries repeat"
                );
                Start::Beginning
            } else {
                config.start
            };
            // Settled once and for all: a later start must not mean a later "now".
            record.main = Some(Saved {
                next: self.first_seq(start).await?,
                open: Vec::new(),
            });
        }
        let attached = record.detached_at.take().is_some();
        let sink: Arc<dyn Sink> = match self.build(config, &record) {
            Ok(sink) => sink,
            Err(error) if may_open_late && config.options.traits().serial => {
                tracing::warn!(sink = config.name, %error, "the sink can't be opened now; it will be tried again");
                Arc::new(Late::new(config.clone(), self.resume(&record)))
            }
            Err(error) => return Err(error),
        };
        if (follow || attached)
            && let Err(error) = self.inner.state.put(&key, &record).await
        {
            // A full disk, say: receiving matters more, and the worker saves its record again and again.
            tracing::warn!(
                sink = config.name,
                error,
                "the sink's position can't be saved now; this is tried again"
            );
        }
        let dead = DeadLetters::open(&self.inner.dead_dir, &config.name, false)
            .map_err(|error| EngineError(error.to_string()))?;
        Ok(Parts {
            config: config.clone(),
            sink,
            log: self.inner.log.clone(),
            rules: self.inner.rules.clone(),
            state: self.inner.state.clone(),
            dead,
            record,
            jobs: self.jobs_of(&config.name),
            follow,
        })
    }

    fn launch(&self, parts: Parts) {
        let name = parts.config.name.clone();
        let handle = Worker::start(parts);
        self.workers().insert(name, handle);
    }

    fn jobs_of(&self, sink: &str) -> Vec<Arc<Job>> {
        let jobs = self.jobs();
        jobs.values()
            .filter(|(_, record)| record.planned.contains_key(sink))
            .map(|(job, _)| job.clone())
            .collect()
    }

    async fn first_seq(&self, start: Start) -> Result<Seq, EngineError> {
        let log = self.inner.log.clone();
        match start {
            Start::Now => Ok(log.head().borrow().next()),
            Start::Beginning => Ok(log.first()),
            Start::At(time) => tokio::task::spawn_blocking(move || log.seq_at(time))
                .await
                .map_err(|error| EngineError(error.to_string()))?
                .map_err(|error| EngineError(error.to_string())),
        }
    }

    /// Sinks that are no longer configured keep their position for a week.
    async fn detach_missing(&self, sinks: &[SinkConfig]) {
        if self.inner.mode != Mode::Follow {
            return;
        }
        let now = Timestamp::now();
        for key in self.inner.state.keys("sink/") {
            let name = key.trim_start_matches("sink/");
            if sinks.iter().any(|sink| sink.name == name) {
                continue;
            }
            let Some(mut record) = self.inner.state.get::<Record>(&key) else {
                continue;
            };
            let detached_at = *record.detached_at.get_or_insert(now);
            let result = if now.duration_since(detached_at) > KEPT {
                self.inner.state.remove(&key).await
            } else {
                self.inner.state.put(&key, &record).await
            };
            if let Err(error) = result {
                tracing::warn!(sink = name, error, "a removed sink's position could not be updated");
            }
        }
    }

    /// Takes over new rules and sinks: what is unchanged goes on undisturbed, what changed goes on from its position, what
    /// is gone keeps its position for a week. If a sink can't be built, nothing changes.
    pub async fn reload(&self, rules: Arc<RuleSet>, sinks: &[SinkConfig]) -> Result<(), EngineError> {
        let current: BTreeMap<String, Handle> = self.workers().clone();
        let changed: Vec<&SinkConfig> = sinks
            .iter()
            .filter(|sink| current.get(&sink.name).is_none_or(|old| !same(&old.config, sink)))
            .collect();
        // What has no side effects is tried first, so that a bad one spoils nothing.
        for sink in changed.iter().filter(|sink| !sink.options.traits().serial) {
            self.build(sink, &Record::default())?;
        }
        let mut prepared = Vec::new();
        for (done, sink) in changed.iter().enumerate() {
            self.stop_worker(&sink.name).await;
            match self.prepare(sink, false).await {
                Ok(parts) => prepared.push(parts),
                Err(error) => {
                    drop(prepared);
                    self.start_again(&changed[..=done], &current).await;
                    return Err(error);
                }
            }
        }
        for name in current
            .keys()
            .filter(|name| !sinks.iter().any(|sink| sink.name == **name))
        {
            self.stop_worker(name).await;
            tracing::info!(sink = name, "sink removed; its position is kept for 7 days");
        }
        self.detach_missing(sinks).await;
        // Between the last worker of a removed sink and the first of a new one: neither may judge an event by rules that do
        // not know it, and pass it.
        self.inner.rules.store(rules);
        for parts in prepared {
            self.launch(parts);
        }
        Ok(())
    }

    /// Undoes half a reload.
    async fn start_again(&self, stopped: &[&SinkConfig], before: &BTreeMap<String, Handle>) {
        for sink in stopped {
            if let Some(old) = before.get(&sink.name)
                && let Err(error) = self.start_worker(&old.config).await
            {
                tracing::error!(sink = sink.name, %error, "the sink could not be started again");
            }
        }
    }

    async fn stop_worker(&self, sink: &str) {
        let handle = self.workers().remove(sink);
        if let Some(handle) = handle {
            let (stopped, done) = oneshot::channel();
            if handle.commands.send(Command::Stop(stopped)).await.is_ok() {
                let _ = done.await;
            }
        }
    }

    /// Lets running deliveries come to their end, saves every position, and stops.
    pub async fn shutdown(&self) {
        let names: Vec<String> = self.workers().keys().cloned().collect();
        futures::future::join_all(names.iter().map(|name| self.stop_worker(name))).await;
        let state = self.inner.state.clone();
        let _ = tokio::task::spawn_blocking(move || state.close()).await;
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.inner.rules.load_full()
    }

    /// Every sink, in order of name.
    pub fn sinks(&self) -> Vec<SinkStatus> {
        let status = |handle: &Handle| {
            handle
                .view
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .status
                .clone()
        };
        self.workers().values().map(status).collect()
    }

    /// Names of removed sinks whose position is still kept.
    pub fn detached(&self) -> Vec<String> {
        let names = self
            .inner
            .state
            .keys("sink/")
            .into_iter()
            .map(|key| key.trim_start_matches("sink/").to_owned());
        let workers = self.workers();
        names.filter(|name| !workers.contains_key(name)).collect()
    }

    /// Stops a sink's deliveries, or lets them go on; durable.
    pub async fn pause(&self, sink: &str, paused: bool) -> Result<(), EngineError> {
        let (done, answer) = oneshot::channel();
        self.order(sink, Command::Pause(paused, done)).await?;
        answer.await.map_err(|_| EngineError("the sink is stopping".into()))
    }

    /// Forgets the position of a removed sink.
    pub async fn forget(&self, sink: &str) -> Result<(), EngineError> {
        if self.workers().contains_key(sink) {
            return Err(EngineError(format!(
                "\"{sink}\" is in use: remove it from the configuration and reload first"
            )));
        }
        if !self.detached().iter().any(|name| name == sink) {
            return Err(EngineError(format!("there is no removed sink \"{sink}\"")));
        }
        self.inner.state.remove(&record_key(sink)).await.map_err(EngineError)
    }

    async fn order(&self, sink: &str, command: Command) -> Result<(), EngineError> {
        let worker = self.worker(sink)?;
        worker
            .commands
            .send(command)
            .await
            .map_err(|_| EngineError(format!("\"{sink}\" is stopping")))
    }

    /// What became of an event, at every sink.
    pub async fn event_states(&self, event: &Event) -> BTreeMap<String, EventState> {
        let mut states = BTreeMap::new();
        let names: Vec<String> = self.workers().keys().cloned().collect();
        for name in names {
            let (answer, state) = oneshot::channel();
            let mut found = EventState::NotRouted;
            if self.inner.mode == Mode::Look {
                if self.rules().route(&name, event).is_some()
                    && let Ok(worker) = self.worker(&name)
                {
                    let record = self.inner.state.get::<Record>(&record_key(&name)).unwrap_or_default();
                    found = worker::saved_state(&record, &worker.dead, event.seq);
                }
            } else if self.rules().route(&name, event).is_some()
                && self.order(&name, Command::EventState(event.seq, answer)).await.is_ok()
                && let Ok(Ok(state)) = tokio::time::timeout(Duration::from_secs(5), state).await
            {
                found = state;
            }
            states.insert(name, found);
        }
        states
    }

    /// What has to be remembered of the engine. An event that the state has passed as dead is in the dead letters, since these
    /// are looked at later. Blocking.
    pub fn picture(&self) -> std::io::Result<Picture> {
        let state = self.inner.state.all();
        let mut dead = Vec::new();
        for (key, _) in &state {
            let Some(sink) = key.strip_prefix("sink/") else {
                continue;
            };
            match std::fs::File::open(self.inner.dead_dir.join(sink)) {
                Ok(file) => {
                    let len = file.metadata()?.len();
                    dead.push((std::path::Path::new(DEAD).join(sink), file, len));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Picture { state, dead })
    }

    /// Contacts a sink without delivering anything.
    pub async fn probe(&self, sink: &str) -> Result<String, EngineError> {
        let worker = self.worker(sink)?;
        let sink = worker
            .sink
            .ok_or_else(|| EngineError("the sink is not running".into()))?;
        sink.probe().await.map_err(|error| EngineError(error.to_string()))
    }

    /// Counts what a replay would send where, and fixes its end: `limit` events, or the log's newest. Blocking;
    /// `progress` hears the Seq it has got to.
    pub fn replay_plan(
        &self,
        mut spec: ReplaySpec,
        progress: &mut dyn FnMut(Seq),
    ) -> Result<(ReplaySpec, BTreeMap<String, u64>), EngineError> {
        for sink in &spec.sinks {
            self.worker(sink)?;
        }
        let rules = self.rules();
        if let Some(rule) = &spec.rule
            && rules.sinks_of(rule).is_none()
        {
            let names = rules.names();
            let hint = crate::config::nearest(rule, names.iter().map(String::as_str));
            let hint = hint.map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
            return Err(EngineError(format!("there is no rule \"{rule}\"{hint}")));
        }
        spec.to = spec.to.min(*self.inner.log.head().borrow());
        let job = Job::new(String::new(), spec.clone(), false, self.inner.log.clone()).map_err(EngineError)?;
        let sinks: Vec<String> = self.workers().keys().cloned().collect();
        let mut planned = BTreeMap::new();
        let (mut next, mut events) = (spec.from.max(self.inner.log.first()), 0);
        while next <= spec.to {
            let batch = self
                .inner
                .log
                .read(next, 1024, 4 << 20)
                .map_err(|error| EngineError(error.to_string()))?;
            if batch.next == next {
                break;
            }
            for event in batch.events.iter().filter(|event| event.seq <= spec.to) {
                let before: u64 = planned.values().sum();
                for sink in &sinks {
                    if job.route(sink, event, &rules).is_some() {
                        *planned.entry(sink.clone()).or_default() += 1;
                    }
                }
                if planned.values().sum::<u64>() > before {
                    events += 1;
                    if spec.limit == Some(events) {
                        spec.to = event.seq;
                        return Ok((spec, planned));
                    }
                }
            }
            next = batch.next;
            progress(next);
        }
        Ok((spec, planned))
    }

    /// Starts a planned replay; durable when this returns its id.
    pub async fn replay_start(&self, spec: ReplaySpec, planned: BTreeMap<String, u64>) -> Result<String, EngineError> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| EngineError(error.to_string()))?;
        let id = format!("rp_{}", hex::encode(random));
        let record = JobRecord {
            spec: spec.clone(),
            planned,
            created_at: Timestamp::now(),
            running: true,
        };
        let job = Arc::new(Job::new(id.clone(), spec, true, self.inner.log.clone()).map_err(EngineError)?);
        self.inner
            .state
            .put(&format!("replay/{id}"), &record)
            .await
            .map_err(EngineError)?;
        self.jobs().insert(id.clone(), (job.clone(), record.clone()));
        for sink in record.planned.keys() {
            self.order(sink, Command::Replay(job.clone())).await?;
        }
        Ok(id)
    }

    /// Interrupts a replay or lets it go on; durable.
    pub async fn replay_set_running(&self, id: &str, running: bool) -> Result<(), EngineError> {
        let (job, record) = {
            let mut jobs = self.jobs();
            let (job, record) = jobs.get_mut(id).ok_or_else(|| {
                EngineError(format!(
                    "there is no replay {id}: `closehook replay list` shows those of the last 7 days"
                ))
            })?;
            record.running = running;
            (job.clone(), record.clone())
        };
        self.inner
            .state
            .put(&format!("replay/{id}"), &record)
            .await
            .map_err(EngineError)?;
        job.set_running(running);
        for sink in record.planned.keys() {
            // A sink that has left the configuration meanwhile gets nothing more.
            let _ = self.order(sink, Command::Replay(job.clone())).await;
        }
        Ok(())
    }

    /// Every replay of the last 7 days, oldest first.
    pub fn replays(&self) -> Vec<ReplayStatus> {
        let views: Vec<_> = self
            .workers()
            .values()
            .map(|handle| {
                handle
                    .view
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .replays
                    .clone()
            })
            .collect();
        let mut replays: Vec<ReplayStatus> = self
            .jobs()
            .iter()
            .map(|(id, (_, record))| {
                let parts: Vec<_> = views.iter().filter_map(|replays| replays.get(id)).collect();
                let done = parts.len() >= record.planned.len() && parts.iter().all(|part| part.done);
                let state = match (done, record.running) {
                    (true, _) => "done",
                    (false, true) => "running",
                    (false, false) => "interrupted",
                };
                ReplayStatus {
                    id: id.clone(),
                    spec: record.spec.clone(),
                    state: state.into(),
                    planned: record.planned.clone(),
                    delivered: parts.iter().map(|part| part.delivered).sum(),
                    dead: parts.iter().map(|part| part.dead).sum(),
                    created_at: record.created_at,
                }
            })
            .collect();
        replays.sort_by_key(|replay| replay.created_at);
        replays
    }

    async fn load_jobs(&self) {
        let now = Timestamp::now();
        for key in self.inner.state.keys("replay/") {
            let id = key.trim_start_matches("replay/").to_owned();
            let Some(record) = self.inner.state.get::<JobRecord>(&key) else {
                continue;
            };
            let job = Job::new(id.clone(), record.spec.clone(), record.running, self.inner.log.clone());
            match job {
                Ok(job) if now.duration_since(record.created_at) <= KEPT => {
                    self.jobs().insert(id, (Arc::new(job), record));
                }
                _ => drop(self.inner.state.remove(&key).await),
            }
        }
    }

    /// Dead letters of one sink or of all, from a Seq on; at most `max`. Blocking.
    pub fn dead_list(&self, sink: Option<&str>, from: Seq, max: usize) -> Result<Vec<DeadLetter>, EngineError> {
        let handles: Vec<Handle> = match sink {
            Some(sink) => vec![self.worker(sink)?],
            None => self.workers().values().cloned().collect(),
        };
        let mut letters = Vec::new();
        for handle in handles {
            for seq in handle.dead.seqs(from, max) {
                match handle.dead.get(seq) {
                    Ok(Some((letter, _))) => letters.push(letter),
                    Ok(None) => {}
                    Err(error @ FrameError::Damaged { .. }) => {
                        tracing::error!(sink = handle.config.name, %error, "a dead letter can't be read any more");
                    }
                    Err(error) => return Err(EngineError(error.to_string())),
                }
            }
        }
        Ok(letters)
    }

    /// One dead letter with the copy of its event. Blocking.
    pub fn dead_get(&self, sink: &str, seq: Seq) -> Result<Option<(DeadLetter, Arc<Event>)>, EngineError> {
        self.worker(sink)?
            .dead
            .get(seq)
            .map_err(|error| EngineError(error.to_string()))
    }

    /// Delivers dead letters again, once each; those that are delivered are removed.
    pub async fn dead_retry(&self, sink: &str, seqs: Vec<Seq>) -> Result<Arc<RetryProgress>, EngineError> {
        let handle = self.worker(sink)?;
        if handle.view.lock().unwrap_or_else(PoisonError::into_inner).status.paused {
            return Err(EngineError(format!(
                "\"{sink}\" is paused: `closehook sinks resume {sink}` first"
            )));
        }
        let progress = Arc::new(RetryProgress::default());
        progress.total.store(seqs.len() as u64, Ordering::Relaxed);
        self.order(sink, Command::RetryDead(seqs, progress.clone())).await?;
        Ok(progress)
    }

    /// Removes dead letters for good. Blocking.
    pub fn dead_drop(&self, sink: &str, seqs: &[Seq]) -> Result<(), EngineError> {
        self.worker(sink)?
            .dead
            .remove(seqs)
            .map_err(|error| EngineError(error.to_string()))
    }
}

/// Whether a sink's configuration means the same sink, driven the same way.
fn same(old: &SinkConfig, new: &SinkConfig) -> bool {
    let driving = |config: &SinkConfig| {
        (
            config.kind.clone(),
            config.concurrency,
            config.rate,
            config.timeout,
            config.retry,
            config.order,
            config.breaker,
        )
    };
    driving(old) == driving(new) && old.options.fingerprint() == new.options.fingerprint()
}
