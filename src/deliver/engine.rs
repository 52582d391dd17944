//! The engine: what it is started with, and what it is asked. How workers begin, change and stop is in `reload`, what became of an event
//! in `states`, and letters and replays have files of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::comparing::Comparing;
use super::driving::{ANSWER_WITHIN, Referral};
use super::floor;
use super::judges;
use super::letters::{self, Letters};
use super::mark::{RECORDS, Record, ReplayRecord, record_key};
use super::memory::Memory;
use super::outset::Outset;
use super::reading::aside;
use super::replay::Jobs;
use super::stopping::LeftBehind;
use super::types::{DEAD, DeadLetter, EngineError, Mode, OBEY_WITHIN, SinkStatus, failed};
use super::worker::{self, Command, Handle};
use crate::age::Clock;
use crate::config::SinkConfig;
use crate::event::Seq;
use crate::framefile::FrameError;
use crate::log::Log;
use crate::node::{self, Alone, Leases};
use crate::render::NameBook;
use crate::retention::Floor;
use crate::rules::RuleSet;
use crate::state::journal::Journal;
use crate::state::{self, Expected, Revision, Store};
use crate::sync::lock;
use crate::task;

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
    /// What templates know custom fields by.
    pub names: Arc<NameBook>,
    /// By which positions, replays and what waits for another try grow old.
    pub clock: Clock,
}

/// Where a sink is not: what a node says that was asked for one that has just gone to another.
const NOT_DRIVEN: &str = "is not driven here";

/// A sink whose lease is here begins within this, mostly.
const COMING_WITHIN: Duration = Duration::from_secs(5);

/// How long it is waited before a sink is asked for again that is on its way from one node to another.
const MOVING: Duration = Duration::from_millis(200);

/// A position is kept this long after its sink left the configuration; a replay after it was made, and until it is over.
pub(super) const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Looks whether a configured sink could be opened and delivered to, whether or not a worker drives it. Delivers and writes nothing.
pub async fn probe(sink: &SinkConfig) -> Result<String, EngineError> {
    worker::probe(sink, "", "").await.map_err(failed)
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
    /// Where letters are that several nodes share; `None`: they are on this machine.
    pub desk: Option<Arc<letters::Desk>>,
    /// What other nodes have asked to be tried.
    pub retries: Mutex<super::types::Retries>,
    pub rules: Arc<ArcSwap<RuleSet>>,
    pub workers: Mutex<Workers>,
    /// The sinks that the log is kept for, whether or not their workers run just now.
    pub configured: Mutex<BTreeSet<String>>,
    pub jobs: Jobs,
    /// How far replays were at sinks that are not configured any more, by sink and replay.
    pub parted: Mutex<BTreeMap<String, BTreeMap<String, ReplayRecord>>>,
    /// Sinks that were removed and whose deliveries have not come to their end here: no other node is to begin with them.
    pub parting: Mutex<BTreeSet<String>>,
    pub left_behind: LeftBehind,
    pub comparing: Comparing,
    /// Held while sinks come and go: by a reload, and by whoever forgets one.
    pub changing: tokio::sync::Mutex<()>,
    pub bury: watch::Sender<Seq>,
    /// Bytes that all dead letters together may take up.
    pub letters_max: AtomicU64,
    pub mode: Mode,
    /// What templates know custom fields by.
    pub names: Arc<NameBook>,
    /// By which positions, replays and what waits for another try grow old.
    pub clock: Clock,
    /// What all sinks hold.
    pub memory: Memory,
    /// Which sinks this node drives.
    pub leases: Arc<dyn Leases>,
    /// The sinks as they are configured, those included that another node drives.
    pub sinks: Mutex<Vec<SinkConfig>>,
    /// Who answers other nodes what the engine does not.
    pub referral: Mutex<Option<Referral>>,
    /// Where sinks begin that have no record in the state which nodes share.
    pub outset: Arc<Outset>,
    /// Ends what goes on beside the workers.
    pub stop: CancellationToken,
}

/// The workers, by sink; one that is stopping is among them until it has stopped.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub by_sink: BTreeMap<String, Handle>,
    /// The engine stops: none is begun any more.
    pub over: bool,
}

impl Engine {
    /// Opens the state and starts a worker per sink. Nothing is contacted: a worker opens its sink by itself, again and again, also one
    /// that can't be used as it is configured.
    pub async fn start(options: Options) -> Result<Engine, EngineError> {
        Engine::start_with(options, Arc::new(Alone::default())).await
    }

    /// The same where several nodes share the log: a worker runs for each sink of which this node has the lease.
    pub async fn start_with(options: Options, leases: Arc<dyn Leases>) -> Result<Engine, EngineError> {
        Engine::start_among(options, leases, None).await
    }

    /// The same with dead letters that all nodes know.
    pub async fn start_among(
        options: Options,
        leases: Arc<dyn Leases>,
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<Engine, EngineError> {
        let desk = journal.map(letters::Desk::new).transpose().map_err(failed)?;
        let Options {
            log,
            store,
            dir,
            rules,
            sinks,
            mode,
            names,
            clock,
        } = options;
        let dead_dir = dir.join(DEAD);
        let letters = if desk.is_some() {
            BTreeMap::new()
        } else {
            let dir = dead_dir.clone();
            let opened = task::begin_blocking(move || letters::open_all(&dir, mode == Mode::Look));
            opened.await.map_err(failed)?
        };
        if mode == Mode::Follow {
            // Each opens by itself when what it lacks is there: nothing of it keeps the others from delivering, or the log from
            // taking events (decision 2).
            for fault in sinks.iter().filter_map(fault_of) {
                tracing::error!("{fault}; it waits until that is put right, and everything else runs");
            }
        }
        let inner = Inner {
            log,
            store,
            dead_dir,
            letters: Mutex::new(letters),
            desk,
            retries: Mutex::default(),
            rules: Arc::new(ArcSwap::new(rules)),
            workers: Mutex::default(),
            configured: Mutex::new(sinks.iter().map(|sink| sink.name.clone()).collect()),
            jobs: Jobs::default(),
            parted: Mutex::default(),
            parting: Mutex::default(),
            left_behind: LeftBehind::default(),
            comparing: Comparing::default(),
            changing: tokio::sync::Mutex::default(),
            bury: watch::Sender::new(Seq::ZERO),
            letters_max: AtomicU64::new(u64::MAX),
            mode,
            names,
            clock,
            memory: Memory::default(),
            leases,
            sinks: Mutex::new(sinks.clone()),
            referral: Mutex::default(),
            outset: Arc::default(),
            stop: CancellationToken::new(),
        };
        let engine = Engine { inner: Arc::new(inner) };
        engine.begin(&sinks).await?;
        Ok(engine)
    }

    /// Takes up what is kept of earlier lives, and then begins every sink; the order counts.
    async fn begin(&self, sinks: &[SinkConfig]) -> Result<(), EngineError> {
        let mode = self.inner.mode;
        self.begin_sharing_letters().await;
        self.load_jobs().await?;
        self.find_parted().await?;
        self.guard_seqs().await?;
        self.look_whether_state_is_lost().await?;
        // Nobody has told the time yet: mostly this is done in time.
        let now = self.inner.clock.at_least();
        if let Some(now) = now {
            self.forget_detached(now, &BTreeSet::new()).await;
        }
        self.keep_rules(sinks).await;
        if mode != Mode::Look && self.inner.desk.is_none() {
            for config in sinks {
                self.end_removals(config, &self.letters_of(&config.name)).await;
            }
        }
        // What other nodes are just giving is theirs to end, or that of whoever takes their sinks over.
        if mode != Mode::Look && self.inner.desk.is_none() {
            self.end_diversions(None).await;
        }
        self.note_starts(sinks).await;
        self.want(sinks);
        for config in sinks {
            self.start_worker(config).await;
        }
        self.note_mended().await;
        let is_noted = self.detach_missing(sinks).await?;
        self.detach_later(is_noted);
        if let Some(now) = now {
            self.forget_old_replays(now).await;
        }
        if mode == Mode::Follow {
            self.tell_stranded();
            self.forget_in_time();
        }
        if self.shares_sinks() {
            self.drive_what_is_leased();
        }
        Ok(())
    }

    /// Before the first worker begins: what the rules of now say stays known, and what no sink was judged by any more goes.
    async fn keep_rules(&self, sinks: &[SinkConfig]) {
        if self.inner.mode != Mode::Follow {
            return;
        }
        let store = &*self.inner.store;
        // Another node may just be about to need what seems forgotten here.
        if !self.shares_sinks()
            && let Err(error) = judges::forget_rules(store).await
        {
            tracing::warn!(error, "earlier rules that nobody needs any more can't be removed now");
        }
        judges::keep_rules(store, &self.rules(), sinks.iter().map(|sink| sink.name.as_str())).await;
    }

    /// What one sink was given and another has not noted so, because a crash came in between, is noted now. Before the first worker begins:
    /// else what is delivered there might be given once more. Of one sink that gives, before it begins again: what it has given by half
    /// since the process began.
    pub(super) async fn end_diversions(&self, of: Option<&str>) {
        let all = lock(&self.inner.letters).clone();
        let (engine, of) = (self.clone(), of.map(str::to_owned));
        let end = move || {
            // One after the other: what is noted for one changes what is to be noted for the next.
            for (name, letters) in &all {
                if letters.is_shared()
                    && let Err(error) = letters.read()
                {
                    tracing::error!(sink = name, %error, "what was given to the sink can't be looked at");
                    continue;
                }
                let undone = letters::undone(name, letters, &all, of.is_some());
                for ((sink, replay), given) in undone {
                    // For one that has left the configuration whoever it gave to ends it: it would be withheld there for ever.
                    let is_ours = match &of {
                        None => engine.is_configured(&sink),
                        Some(of) => *of == sink || (of == name && !engine.is_configured(&sink)),
                    };
                    if !is_ours {
                        continue;
                    }
                    if let Err(error) = engine.end_diversion(letters, &sink, replay.as_deref(), &given) {
                        tracing::error!(sink, %error, "what went to its dead_to can't be noted: some of it may go there again");
                    }
                }
            }
        };
        if let Err(error) = aside(end).await {
            tracing::error!(
                error,
                "what went to a dead_to could not be looked at in time: sinks begin without that, and some of it may go there again"
            );
        }
    }

    /// Ends what one sink has given another by half. Blocking.
    fn end_diversion(
        &self,
        to: &Letters,
        sink: &str,
        replay: Option<&str>,
        given: &[DeadLetter],
    ) -> Result<(), FrameError> {
        let fence = if self.is_configured(sink) {
            self.fence_of(sink)
        } else {
            // Nobody has a lease of it any more, or will.
            u64::MAX
        };
        let own = self.letters_of(sink).under(fence);
        // Whoever had the sink before may just be about to take it back.
        let seqs = to.claim(given, fence)?;
        let is_noted = |seq: Seq| own.was_diverted(seq) && replay.is_none_or(|replay| own.was_diverted_by(replay, seq));
        let new: Vec<Seq> = seqs.iter().copied().filter(|seq| !is_noted(*seq)).collect();
        own.divert(&new, replay)?;
        to.release(&seqs);
        Ok(())
    }

    pub(super) fn workers(&self) -> MutexGuard<'_, Workers> {
        lock(&self.inner.workers)
    }

    pub(super) fn worker(&self, sink: &str) -> Result<Handle, EngineError> {
        let workers = &self.workers().by_sink;
        workers.get(sink).cloned().ok_or_else(|| {
            let known = workers.keys().map(String::as_str);
            EngineError(crate::names::unknown(
                format!("there is no sink \"{sink}\""),
                sink,
                known,
            ))
        })
    }

    /// A sink's record with its revision; what can't be read is an error.
    pub(super) async fn record(&self, key: &str) -> Result<Option<(Record, Revision)>, String> {
        let entry = self.inner.store.get(key).await.map_err(|error| error.to_string())?;
        let read = |entry: state::Entry| Ok((entry.json()?, entry.revision));
        entry.map(read).transpose()
    }

    /// A record as it is, which may be none that can be made out: then its sink begins anew, and says so. An error: it can't be read now.
    pub(super) async fn whole_record(&self, key: &str) -> Result<Option<(Record, Revision)>, EngineError> {
        let entry = self.inner.store.get(key).await.map_err(failed)?;
        Ok(entry.and_then(|entry| Some((entry.json().ok()?, entry.revision))))
    }

    pub(super) async fn record_keys(&self) -> Result<Vec<String>, EngineError> {
        self.inner.store.keys(RECORDS).await.map_err(failed)
    }

    /// The nodes that share the log, in order of name; none where this one is alone.
    pub fn nodes(&self) -> Vec<node::NodeStatus> {
        self.inner.leases.nodes()
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.inner.rules.load_full()
    }

    /// How every sink is configured, in order of name.
    pub fn configs(&self) -> Vec<SinkConfig> {
        let workers = self.workers();
        workers.by_sink.values().map(|handle| handle.config.clone()).collect()
    }

    /// Every sink, in order of name.
    pub fn sinks(&self) -> Vec<SinkStatus> {
        let status = |handle: &Handle| {
            let view = lock(&handle.view).clone();
            let mut status = view.status_now();
            // Letters can go while the worker has nothing to do.
            status.dead = handle.letters.len() as u64;
            status.dropped = handle.letters.dropped_len();
            status.given = handle.letters.given_len() as u64;
            if let Some(since) = handle.letters.given_since() {
                let age = Timestamp::now().duration_since(since).as_secs_f64();
                status.lag_seconds = status.lag_seconds.max(age);
                status.late_seconds = status.late_seconds.max(view.late(age));
            }
            status.dead_trouble = handle.letters.trouble();
            status.node = self.inner.leases.holder(&node::of_sink(&status.name));
            status
        };
        self.workers().by_sink.values().map(status).collect()
    }

    /// Names of the sinks, removed ones too, whose position is kept.
    pub async fn kept(&self) -> Result<Vec<String>, EngineError> {
        let keys = self.record_keys().await?;
        let names = keys.iter().filter_map(|key| key.strip_prefix(RECORDS));
        Ok(names.map(str::to_owned).collect())
    }

    /// Those of these sinks that were removed.
    pub fn detached<'a>(&self, kept: &'a [String]) -> Vec<&'a String> {
        let workers = self.workers();
        let workers = &workers.by_sink;
        kept.iter().filter(|name| !workers.contains_key(*name)).collect()
    }

    /// Stops a sink's deliveries, or lets them go on; durable.
    pub async fn pause(&self, sink: &str, paused: bool) -> Result<(), EngineError> {
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let done = match self.pause_elsewhere(sink, paused).await {
                Some(asked) => asked,
                None => self.pause_here(sink, paused).await,
            };
            match done {
                // It is on its way from one node to another, and soon arrives.
                Err(error) if error.0.contains(NOT_DRIVEN) && Instant::now() < until => {
                    tokio::time::sleep(MOVING).await;
                }
                done => return done,
            }
        }
    }

    pub(super) async fn pause_here(&self, sink: &str, paused: bool) -> Result<(), EngineError> {
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
        // A reload may be about to bring it back.
        let changing = tokio::time::timeout(OBEY_WITHIN, self.inner.changing.lock()).await;
        let _changing = changing.map_err(|_| EngineError("the configuration is being reloaded: try again".into()))?;
        if self.workers().by_sink.contains_key(sink) || lock(&self.inner.configured).contains(sink) {
            return Err(EngineError(format!(
                "\"{sink}\" is in use: remove it from the configuration and reload first"
            )));
        }
        // Its letters stay when its position is gone after a week.
        if !self.detached(&self.kept().await?).iter().any(|name| *name == sink) && !self.has_letters(sink) {
            return Err(EngineError(format!("there is no removed sink \"{sink}\"")));
        }
        let dropped = self.forget_letters(sink).await?;
        self.part_for_good(sink).await?;
        self.inner.outset.forget(sink);
        let removed = self.inner.store.remove(&record_key(sink), Expected::Anything).await;
        removed.map_err(failed)?;
        Ok(dropped)
    }

    /// The worker, which is waited for a little where the lease is here before it.
    async fn worker_when_here(&self, sink: &str) -> Result<Handle, EngineError> {
        let until = Instant::now() + COMING_WITHIN;
        loop {
            let worker = self.worker(sink)?;
            let is_coming = worker.lease.is_none()
                && self.shares_sinks()
                && self.inner.leases.lease(&node::of_sink(sink)).is_some();
            if !is_coming || Instant::now() >= until {
                return Ok(worker);
            }
            tokio::time::sleep(MOVING).await;
        }
    }

    pub(super) async fn order(&self, sink: &str, command: Command) -> Result<(), EngineError> {
        let worker = self.worker_when_here(sink).await?;
        if worker.lease.is_none() && self.shares_sinks() {
            let holder = self.inner.leases.holder(&node::of_sink(sink));
            let where_to = holder.map_or_else(
                || "no node has it now: try again in a moment".to_owned(),
                |node| format!("node \"{node}\" drives it: ask there"),
            );
            return Err(EngineError(format!("\"{sink}\" {NOT_DRIVEN}: {where_to}")));
        }
        match tokio::time::timeout(OBEY_WITHIN, worker.commands.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EngineError(format!("\"{sink}\" is stopping"))),
            Err(_) => Err(EngineError(format!("\"{sink}\" does not answer"))),
        }
    }

    /// What the log must keep for the sinks that are configured now and for those that are not known to be detached.
    pub async fn floor(&self) -> Floor {
        let names = lock(&self.inner.configured).clone();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        floor::floor(&*self.inner.store, &names).await
    }

    /// Who is furthest back of those.
    pub(super) async fn holder(&self) -> Option<String> {
        let names = lock(&self.inner.configured).clone();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        floor::holder(&*self.inner.store, &names).await
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

    /// Contacts a sink without delivering anything.
    pub async fn probe(&self, sink: &str) -> Result<String, EngineError> {
        probe(&self.worker(sink)?.config).await
    }
}

/// Whether every sink can be used as it is configured, as far as this machine can tell.
pub(super) fn usable<'a>(sinks: impl IntoIterator<Item = &'a SinkConfig>) -> Result<(), EngineError> {
    let faults: Vec<String> = sinks.into_iter().filter_map(fault_of).collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(EngineError(faults.join("; ")))
}

/// What keeps a sink from being used as it is configured; one sentence with its name.
fn fault_of(sink: &SinkConfig) -> Option<String> {
    let fault = sink.options.fault()?;
    Some(format!("sink \"{}\": {fault}", sink.name))
}
