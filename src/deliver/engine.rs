//! Starting, stopping and reloading the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};

use super::dead::DEAD;
use super::letters::Letters;
use super::mark::{self, RECORDS, Record, record_key};
use super::replay::{Jobs, is_superseded};
use super::types::{EngineError, EventState, Mode, Picture, SinkChanges, SinkStatus};
use super::worker::{self, Command, Handle, Kit, View};
use crate::config::{SinkConfig, Start};
use crate::event::{Event, Kind, Seq};
use crate::log::Log;
use crate::retention::Floor;
use crate::rules::RuleSet;
use crate::state::{self, Expected, LocalStore, Revision, Store, put_json};
use crate::sync::lock;

/// What the engine needs to start.
#[derive(Debug)]
pub struct Options {
    /// Where events come from.
    pub log: Arc<dyn Log>,
    /// Where marks and jobs are kept.
    pub store: Arc<dyn Store>,
    /// The data directory; the engine owns `dead/` in it.
    pub dir: PathBuf,
    /// What goes where.
    pub rules: Arc<RuleSet>,
    /// The sinks.
    pub sinks: Vec<SinkConfig>,
    /// What workers do.
    pub mode: Mode,
}

/// Where the state is, below the data directory.
const STATE: &str = "state";

/// A position is kept this long after its sink left the configuration; so is a replay after it was made.
pub(super) const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A worker that does not answer within this is busy with something else; what is saved answers instead.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A worker has so long to take an order or to stop; what it does then has shorter deadlines of its own.
pub(super) const OBEY_WITHIN: Duration = Duration::from_secs(60);

/// Opens the store of a data directory on this machine; with [`Mode::Look`] nothing is written.
pub async fn open_store(dir: &Path, mode: Mode) -> Result<Arc<dyn Store>, EngineError> {
    let dir = dir.join(STATE);
    let opened = tokio::task::spawn_blocking(move || LocalStore::open(&dir, mode == Mode::Look));
    Ok(Arc::new(opened.await.map_err(failed)?.map_err(failed)?))
}

/// Writes a [`Picture`]'s state into a data directory that has none. Blocking.
pub fn restore_state(dir: &Path, state: Vec<(String, Vec<u8>)>) -> Result<(), EngineError> {
    state::local::write(&dir.join(STATE), state).map_err(failed)
}

/// Looks whether a configured sink could be opened and delivered to, whether or not a worker drives it. Delivers and writes nothing.
pub async fn probe(sink: &SinkConfig) -> Result<String, EngineError> {
    worker::probe(sink, "", "").await.map_err(failed)
}

pub(super) fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError(error.to_string())
}

/// The engine. Cheap to clone; all clones are the same engine.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    pub dead_dir: PathBuf,
    /// Of all sinks that have any, removed ones included.
    pub letters: Mutex<BTreeMap<String, Letters>>,
    rules: Arc<ArcSwap<RuleSet>>,
    workers: Mutex<BTreeMap<String, Handle>>,
    /// The sinks that the log is kept for, whether or not their workers run just now.
    configured: Mutex<BTreeSet<String>>,
    pub jobs: Jobs,
    bury: watch::Sender<Seq>,
    pub mode: Mode,
}

impl Engine {
    /// Opens the state and starts a worker per sink. Every sink's options must be usable; nothing is contacted: a worker opens its
    /// sink by itself, again and again.
    pub async fn start(options: Options) -> Result<Engine, EngineError> {
        let Options {
            log,
            store,
            dir,
            rules,
            sinks,
            mode,
        } = options;
        let dead_dir = dir.join(DEAD);
        let opened = tokio::task::spawn_blocking(move || {
            let letters = super::dead::open_all(&dead_dir, mode == Mode::Look);
            (letters, dead_dir)
        });
        let (letters, dead_dir) = opened.await.map_err(failed)?;
        if mode == Mode::Follow {
            usable(&sinks)?;
        }
        let inner = Inner {
            log,
            store,
            dead_dir,
            letters: Mutex::new(letters),
            rules: Arc::new(ArcSwap::new(rules)),
            workers: Mutex::default(),
            configured: Mutex::new(sinks.iter().map(|sink| sink.name.clone()).collect()),
            jobs: Jobs::default(),
            bury: watch::Sender::new(Seq::ZERO),
            mode,
        };
        let engine = Engine { inner: Arc::new(inner) };
        engine.load_jobs().await?;
        engine.guard_seqs().await?;
        for config in &sinks {
            engine.start_worker(config).await?;
        }
        engine.inner.store.mended();
        engine.detach_missing(&sinks).await?;
        Ok(engine)
    }

    pub(super) fn workers(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        lock(&self.inner.workers)
    }

    pub(super) fn worker(&self, sink: &str) -> Result<Handle, EngineError> {
        let workers = self.workers();
        workers.get(sink).cloned().ok_or_else(|| {
            let hint = crate::config::nearest(sink, workers.keys().map(String::as_str));
            let hint = hint.map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
            EngineError(format!("there is no sink \"{sink}\"{hint}"))
        })
    }

    /// A sink's record with its revision; what can't be read is an error.
    async fn record(&self, key: &str) -> Result<Option<(Record, Revision)>, String> {
        let entry = self.inner.store.get(key).await.map_err(|error| error.to_string())?;
        let read = |entry: state::Entry| Ok((entry.json()?, entry.revision));
        entry.map(read).transpose()
    }

    async fn record_keys(&self) -> Result<Vec<String>, EngineError> {
        self.inner.store.keys(RECORDS).await.map_err(failed)
    }

    /// Seqs that a sink has seen are never given out again, even if damage took them from the log.
    async fn guard_seqs(&self) -> Result<(), EngineError> {
        let head = *self.inner.log.head().borrow();
        let mut seen = Seq::ZERO;
        for key in self.record_keys().await? {
            if let Ok(Some((record, _))) = self.record(&key).await
                && let Some(main) = record.main
            {
                seen = seen.max(main.next.prev());
            }
        }
        if self.inner.mode == Mode::Follow && seen > head {
            // Receiving matters more (decision 2): on a full disk, say. Workers go on with whatever comes next.
            if let Err(error) = self.inner.log.skip_past(seen).await {
                let (head, seen) = (head.0, seen.0);
                tracing::error!(head, seen, %error, "sinks have seen events that the log has lost, and their Seqs are given out again");
            }
        }
        Ok(())
    }

    async fn start_worker(&self, config: &SinkConfig) -> Result<(), EngineError> {
        if self.inner.mode == Mode::Look {
            let record = self.record(&record_key(&config.name)).await;
            let record = record.ok().flatten().map(|(record, _)| record).unwrap_or_default();
            let head = *self.inner.log.head().borrow();
            let handle = worker::look(config, record, self.letters_of(&config.name), head);
            self.workers().insert(config.name.clone(), handle);
            return Ok(());
        }
        let kit = self.prepare(config).await?;
        self.launch(kit);
        Ok(())
    }

    /// Everything a worker needs, its start settled and saved; nothing is read or delivered yet.
    async fn prepare(&self, config: &SinkConfig) -> Result<Kit, EngineError> {
        let key = record_key(&config.name);
        let follow = self.inner.mode == Mode::Follow;
        let mut is_damaged = self.inner.store.is_damaged();
        let mut is_unreadable = false;
        let (mut record, revision) = match self.inner.store.get(&key).await {
            Ok(None) => (Record::default(), None),
            Ok(Some(entry)) => match entry.json() {
                Ok(record) => (record, Some(entry.revision)),
                Err(error) => {
                    tracing::error!(sink = config.name, error, "the sink's position is damaged");
                    is_damaged = true;
                    (Record::default(), None)
                }
            },
            // An error is not an absence: what is there stays, and the worker reads it, again and again.
            Err(error) => {
                tracing::error!(sink = config.name, %error, "the sink's position can't be read now; this is tried again");
                is_unreadable = true;
                (Record::default(), None)
            }
        };
        let mut changed = record.detached_at.take().is_some();
        if record.main.is_none() && follow {
            match self.settle(config, is_damaged).await {
                Ok(start) => {
                    record.begin_at(start);
                    changed = true;
                }
                // The worker asks again until it is known; until then nothing is dropped from the log.
                Err(error) => tracing::warn!(sink = config.name, %error, "where the sink begins can't be found now"),
            }
        }
        if changed && !is_unreadable {
            let expected = match revision {
                Some(revision) => Expected::Revision(revision),
                None if is_damaged => Expected::Anything,
                None => Expected::Nothing,
            };
            if let Err(error) = put_json(&*self.inner.store, &key, &record, expected).await {
                // A full disk, say: receiving matters more, and the worker saves its record again and again.
                let error = error.to_string();
                tracing::warn!(
                    sink = config.name,
                    error,
                    "the sink's position can't be saved now; this is tried again"
                );
            }
        }
        Ok(Kit {
            config: config.clone(),
            log: self.inner.log.clone(),
            rules: self.inner.rules.clone(),
            store: self.inner.store.clone(),
            letters: self.letters_of(&config.name),
            bury: self.inner.bury.subscribe(),
            view: Arc::new(Mutex::new(View {
                status: SinkStatus {
                    paused: record.paused,
                    ..worker::empty_status(config)
                },
                replays: record.replays.clone(),
            })),
            initial: record,
            jobs: self.inner.jobs.clone(),
            follow,
            delivered: AtomicU64::new(0),
        })
    }

    /// Where a sink begins, settled once and for all: a later start must not mean a later "now".
    async fn settle(&self, config: &SinkConfig, is_damaged: bool) -> Result<Seq, EngineError> {
        let log = &self.inner.log;
        // Its position may be what damage took: everything again is better than something never.
        if is_damaged {
            tracing::error!(
                sink = config.name,
                "the sink's position is lost to damage: it begins at the oldest event kept, and deliveries repeat"
            );
            return Ok(log.first());
        }
        match config.start {
            Start::Now => Ok(log.head().borrow().next()),
            Start::Beginning => Ok(log.first()),
            Start::At(time) => log.seq_at(time).await.map_err(failed),
        }
    }

    /// The first half of a reload.
    #[cfg(test)]
    pub(super) async fn stop_and_prepare(&self, sink: &str, config: &SinkConfig) -> Kit {
        self.stop_worker(sink).await;
        self.prepare(config).await.unwrap()
    }

    pub(super) fn launch(&self, kit: Kit) {
        let name = kit.config.name.clone();
        let handle = worker::start(kit);
        self.workers().insert(name, handle);
    }

    /// Sinks that are no longer configured keep their position for a week.
    async fn detach_missing(&self, sinks: &[SinkConfig]) -> Result<(), EngineError> {
        if self.inner.mode != Mode::Follow {
            return Ok(());
        }
        let now = Timestamp::now();
        for key in self.record_keys().await? {
            let name = key.trim_start_matches(RECORDS);
            if sinks.iter().any(|sink| sink.name == name) {
                continue;
            }
            let Ok(Some((mut record, revision))) = self.record(&key).await else {
                continue;
            };
            let is_new = record.detached_at.is_none();
            let detached_at = *record.detached_at.get_or_insert(now);
            let expected = Expected::Revision(revision);
            let result = if now.duration_since(detached_at) > KEPT {
                self.inner.store.remove(&key, expected).await
            } else if is_new {
                put_json(&*self.inner.store, &key, &record, expected).await.map(drop)
            } else {
                Ok(())
            };
            if let Err(error) = result {
                tracing::warn!(sink = name, %error, "a removed sink's position could not be updated");
            }
        }
        Ok(())
    }

    /// Takes over new rules and sinks: what is unchanged goes on undisturbed, what changed goes on from its position, what
    /// is gone keeps its position for a week. If a sink can't be used as it is configured, nothing changes.
    pub async fn reload(&self, rules: Arc<RuleSet>, sinks: &[SinkConfig]) -> Result<SinkChanges, EngineError> {
        let current: BTreeMap<String, Handle> = self.workers().clone();
        let changed: Vec<&SinkConfig> = sinks
            .iter()
            .filter(|sink| current.get(&sink.name).is_none_or(|old| !same(&old.config, sink)))
            .collect();
        usable(changed.iter().copied())?;
        lock(&self.inner.configured).extend(sinks.iter().map(|sink| sink.name.clone()));
        let mut prepared = Vec::new();
        self.stop_workers(changed.iter().map(|sink| sink.name.as_str())).await;
        for sink in &changed {
            match self.prepare(sink).await {
                Ok(kit) => prepared.push(kit),
                Err(error) => {
                    drop(prepared);
                    self.start_again(&changed, &current).await;
                    return Err(error);
                }
            }
        }
        let is_removed = |name: &&String| !sinks.iter().any(|sink| sink.name == **name);
        let removed: Vec<&String> = current.keys().filter(is_removed).collect();
        self.stop_workers(removed.iter().map(|name| name.as_str())).await;
        for name in &removed {
            tracing::info!(sink = name, "sink removed; its position is kept for 7 days");
        }
        let names = |wanted: &dyn Fn(&SinkConfig) -> bool| -> Vec<String> {
            let sinks = sinks.iter().filter(|sink| wanted(sink));
            sinks.map(|sink| sink.name.clone()).collect()
        };
        let is_changed = |sink: &SinkConfig| changed.iter().any(|other| other.name == sink.name);
        let outcome = SinkChanges {
            added: names(&|sink| !current.contains_key(&sink.name)),
            removed: removed.into_iter().cloned().collect(),
            changed: names(&|sink| is_changed(sink) && current.contains_key(&sink.name)),
            unchanged: names(&|sink| !is_changed(sink)),
        };
        if let Err(error) = self.detach_missing(sinks).await {
            // The changed sinks have stopped and must begin again. What is removed keeps its position a little longer.
            tracing::warn!(%error, "removed sinks could not be noted; this is done with the next reload or start");
        }
        *lock(&self.inner.configured) = sinks.iter().map(|sink| sink.name.clone()).collect();
        // Between the last worker of a removed sink and the first of a new one: neither may judge an event by rules that do
        // not know it, and pass it.
        self.inner.rules.store(rules);
        for kit in prepared {
            self.launch(kit);
        }
        Ok(outcome)
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

    /// All at once: each may take its time.
    async fn stop_workers<'a>(&self, sinks: impl Iterator<Item = &'a str>) {
        futures::future::join_all(sinks.map(|name| self.stop_worker(name))).await;
    }

    async fn stop_worker(&self, sink: &str) {
        let handle = self.workers().remove(sink);
        let Some(handle) = handle else { return };
        let (stopped, done) = oneshot::channel();
        let stop = async {
            if handle.commands.send(Command::Stop(stopped)).await.is_ok() {
                let _ = done.await;
            }
        };
        if tokio::time::timeout(OBEY_WITHIN, stop).await.is_err() {
            tracing::error!(sink, "the sink's worker does not stop; it is left behind");
        }
    }

    /// Lets running deliveries come to their end, saves every position, and stops.
    pub async fn shutdown(&self) {
        let names: Vec<String> = self.workers().keys().cloned().collect();
        self.stop_workers(names.iter().map(String::as_str)).await;
        self.inner.store.close().await;
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.inner.rules.load_full()
    }

    /// Every sink, in order of name.
    pub fn sinks(&self) -> Vec<SinkStatus> {
        let workers = self.workers();
        let status = |handle: &Handle| {
            let mut status = lock(&handle.view).status.clone();
            // Letters can go while the worker has nothing to do.
            status.dead = handle.letters.len() as u64;
            status
        };
        workers.values().map(status).collect()
    }

    /// Names of removed sinks whose position is still kept.
    pub async fn detached(&self) -> Result<Vec<String>, EngineError> {
        let keys = self.record_keys().await?;
        let workers = self.workers();
        let names = keys.iter().filter_map(|key| key.strip_prefix(RECORDS));
        let detached = names.filter(|name| !workers.contains_key(*name));
        Ok(detached.map(str::to_owned).collect())
    }

    /// Stops a sink's deliveries, or lets them go on; durable.
    pub async fn pause(&self, sink: &str, paused: bool) -> Result<(), EngineError> {
        let (done, answer) = oneshot::channel();
        self.order(sink, Command::Pause(paused, done)).await?;
        match tokio::time::timeout(OBEY_WITHIN, answer).await {
            Ok(Ok(done)) => done.map_err(EngineError),
            Ok(Err(_)) => Err(EngineError("the sink is stopping".into())),
            Err(_) => Err(EngineError(format!("\"{sink}\" does not answer"))),
        }
    }

    /// Forgets a removed sink: its dead letters, of which it gives the number, and then its position.
    pub async fn forget(&self, sink: &str) -> Result<u64, EngineError> {
        if self.workers().contains_key(sink) {
            return Err(EngineError(format!(
                "\"{sink}\" is in use: remove it from the configuration and reload first"
            )));
        }
        // Its letters stay when its position is gone after a week.
        if !self.detached().await?.iter().any(|name| name == sink) && !self.has_letters(sink) {
            return Err(EngineError(format!("there is no removed sink \"{sink}\"")));
        }
        let dropped = self.forget_letters(sink).await?;
        let removed = self.inner.store.remove(&record_key(sink), Expected::Anything).await;
        removed.map_err(failed)?;
        Ok(dropped)
    }

    pub(super) async fn order(&self, sink: &str, command: Command) -> Result<(), EngineError> {
        let worker = self.worker(sink)?;
        match tokio::time::timeout(OBEY_WITHIN, worker.commands.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EngineError(format!("\"{sink}\" is stopping"))),
            Err(_) => Err(EngineError(format!("\"{sink}\" does not answer"))),
        }
    }

    /// What became of an event, at every sink.
    pub async fn event_states(&self, event: &Event) -> BTreeMap<String, EventState> {
        let mut states = BTreeMap::new();
        let names: Vec<String> = self.workers().keys().cloned().collect();
        for name in names {
            let state = self.event_state(&name, event).await;
            states.insert(name, state);
        }
        states
    }

    async fn event_state(&self, sink: &str, event: &Event) -> EventState {
        match event.kind {
            // What else was before it was erased is not known any more.
            Kind::Erased => {
                return match self.state_at(sink, event.seq).await {
                    EventState::InFlight => EventState::InFlight,
                    _ => EventState::Erased,
                };
            }
            Kind::Quarantined => return EventState::NotRouted,
            Kind::Partial if !self.rules().dispatches(event) => {
                return if is_superseded(&*self.inner.log, event).await {
                    EventState::Superseded
                } else {
                    EventState::Held
                };
            }
            Kind::Partial | Kind::Event => {}
        }
        let state = self.state_at(sink, event.seq).await;
        // Rules may have changed since it was given up or put aside for another try.
        let is_told = matches!(
            state,
            EventState::Dead { .. } | EventState::Retrying { .. } | EventState::InFlight
        );
        if is_told || self.rules().route(sink, event).is_some() {
            state
        } else {
            EventState::NotRouted
        }
    }

    /// As the worker knows it, or as it is saved.
    async fn state_at(&self, sink: &str, seq: Seq) -> EventState {
        let (answer, state) = oneshot::channel();
        if self.inner.mode != Mode::Look
            && let Ok(worker) = self.worker(sink)
            && worker.commands.try_send(Command::EventState(seq, answer)).is_ok()
            && let Ok(Ok(state)) = tokio::time::timeout(ANSWER_WITHIN, state).await
        {
            return state;
        }
        let record = self.record(&record_key(sink)).await.ok().flatten();
        let record = record.map(|(record, _)| record).unwrap_or_default();
        match self.read_letters_of(sink).await {
            Ok(letters) => worker::saved_state(&record, &letters, seq),
            Err(_) => EventState::Waiting,
        }
    }

    /// What the log must keep for the sinks that are configured now and for those that are not known to be detached.
    pub async fn floor(&self) -> Floor {
        let names = lock(&self.inner.configured).clone();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        mark::floor(&*self.inner.store, &names).await
    }

    /// The log has to drop everything up to here: workers make dead letters of what they have not finished, each at its own pace.
    /// It holds until it is said anew; a smaller Seq takes it back, and [`Seq::ZERO`] ends it.
    pub fn bury(&self, upto: Seq) {
        self.inner.bury.send_if_modified(|before| {
            let is_new = upto != *before;
            *before = upto;
            is_new
        });
    }

    /// What has to be remembered of the engine. An event that the state has passed as dead is in the dead letters, since these
    /// are looked at later.
    pub async fn picture(&self) -> std::io::Result<Picture> {
        let state = self.inner.store.all().await.map_err(std::io::Error::other)?;
        let state = state.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
        let dead = super::dead::files(&self.inner.dead_dir)?;
        Ok(Picture { state, dead })
    }

    /// Contacts a sink without delivering anything.
    pub async fn probe(&self, sink: &str) -> Result<String, EngineError> {
        probe(&self.worker(sink)?.config).await
    }
}

/// Whether every sink can be used as it is configured, as far as this machine can tell.
fn usable<'a>(sinks: impl IntoIterator<Item = &'a SinkConfig>) -> Result<(), EngineError> {
    for sink in sinks {
        if let Some(fault) = sink.options.fault() {
            return Err(EngineError(format!("sink \"{}\": {fault}", sink.name)));
        }
    }
    Ok(())
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
            config.dead_max,
        )
    };
    driving(old) == driving(new) && old.options.fingerprint() == new.options.fingerprint()
}
