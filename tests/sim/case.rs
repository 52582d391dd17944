//! One case: a data directory, its lives, and what is done in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use closehook::config::{Breaker, Order, Retry, RuleConfig, SinkConfig, Span, Start};
use closehook::deliver::{self, Engine, Mode, ReplaySpec};
use closehook::event::{Event, Seq, Source};
use closehook::log::{Appended, Clock, Incoming, LocalLog, Log, Narrow, OpenError, Options as LogOptions};
use closehook::retention::{self, Readers, Retention};
use closehook::rules::RuleSet;
use closehook::sinks::Commit;
use closehook::state::Store;
use closehook::state::local::LocalStore;
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Runtime;

use super::check;
use super::gated::{GatedLog, GatedStore, Roomy, StoreFaults};
use super::receivers::ToWorld;
use super::world::{Gate, Mood, World};

/// The sinks: one of each kind of commit, with an order each.
pub const SINKS: [(&str, Commit, Order); 3] = [
    ("ack", Commit::Acknowledge, Order::None),
    ("check", Commit::Checkpoint, Order::Lead),
    ("trans", Commit::Transaction, Order::Strict),
];

/// Nothing takes longer; what does hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a life goes on before a kill that nothing has tripped.
const LIFE: Duration = Duration::from_millis(150);

/// How long a sink is given for much work: some times as long as it may go without a checkpoint.
const WORK: Duration = Duration::from_millis(900);

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Op {
    /// To its end.
    Do(Deed),
    /// The process is killed at the n-th step from its beginning on, or soon after it.
    KillDuring { deed: Deed, steps: i64 },
    /// An orderly stop and a new start; meanwhile everything may be too old.
    Restart { retain: bool },
}

/// Something that is done to a running engine.
#[derive(Debug, Clone)]
pub enum Deed {
    Append {
        count: u8,
        lead: u8,
    },
    /// A receiver feels so for its next calls.
    Feel {
        sink: usize,
        mood: Mood,
        calls: u8,
    },
    Pause {
        sink: usize,
        paused: bool,
    },
    /// The sink's options change; meanwhile everything may be too old.
    Reload {
        sink: usize,
        retain: bool,
    },
    /// The events from this percentage of the log on.
    Replay {
        sink: usize,
        from: u8,
    },
    RetryDead {
        sink: usize,
    },
    Erase {
        lead: u8,
    },
    /// Everything is too old.
    Retain,
    /// The size limit is this percentage of what there is.
    Cap {
        share: u8,
    },
    /// So many reads fail.
    BadReads {
        reads: u8,
    },
    /// So many reads and changes of the state fail. Changes do so in the next life too, and as the first deed before the first life.
    BadStore {
        reads: u8,
        puts: u8,
    },
    /// The machine's clock jumps.
    Clock {
        seconds: i32,
    },
    /// Work is done until nothing more happens by itself, or a while has passed.
    Settle,
    /// The same for one sink, and for a longer while.
    Work {
        sink: usize,
    },
}

/// What the model remembers of an event that was answered.
#[derive(Debug, Clone)]
pub struct Known {
    pub lead: u8,
    /// Whether the rule of the second sink wants it.
    pub even: bool,
    pub erased: bool,
}

/// What outlives each life.
pub struct Case {
    pub dir: tempfile::TempDir,
    pub world: Arc<World>,
    pub events: BTreeMap<Seq, Known>,
    /// Events sent, answered or not.
    sent: usize,
    pub versions: [u32; SINKS.len()],
    pub replays: Vec<(String, usize, Seq, Seq)>,
    clock: Arc<AtomicI64>,
    store_faults: Arc<StoreFaults>,
    /// The state was told to fail at some time.
    told_store: bool,
}

/// One process.
pub struct Life {
    pub log: Arc<GatedLog>,
    pub engine: Engine,
    store: Arc<GatedStore>,
    gate: Arc<Gate>,
    bad_reads: Arc<AtomicU32>,
    runtime: Runtime,
}

/// Opens the log. A program that another test starts at this moment holds the lock of the life before until it is executed.
fn reopen(options: &LogOptions) -> LocalLog {
    let patience = std::time::Instant::now();
    loop {
        match LocalLog::open(options.clone()) {
            Err(OpenError::Locked { .. }) if patience.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

impl Case {
    fn new() -> Case {
        Case {
            dir: tempfile::tempdir().unwrap(),
            world: World::with(SINKS.map(|(name, commit, _)| (name, commit))),
            events: BTreeMap::new(),
            sent: 0,
            versions: [0; SINKS.len()],
            replays: Vec::new(),
            clock: Arc::default(),
            store_faults: Arc::default(),
            told_store: false,
        }
    }

    fn sinks(&self, gate: &Arc<Gate>) -> Vec<SinkConfig> {
        let sink = |(index, (name, _, order)): (usize, &(&str, Commit, Order))| SinkConfig {
            name: (*name).to_owned(),
            kind: "simulation".into(),
            start: Start::Beginning,
            concurrency: None,
            rate: None,
            timeout: Span(Duration::from_secs(5)),
            retry: Retry {
                initial: Span(Duration::from_millis(1)),
                factor: 2,
                max_delay: Span(Duration::from_millis(4)),
                max_age: Span::secs(3600),
            },
            order: *order,
            breaker: Breaker {
                failures: 10,
                refusals: 5,
                probe: Span(Duration::from_millis(2)),
            },
            dead_max: closehook::config::Size(64 << 20),
            delay: None,
            settle: None,
            dead_to: None,
            node: None,
            program: None,
            options: Arc::new(ToWorld {
                name: (*name).to_owned(),
                world: self.world.clone(),
                gate: gate.clone(),
                version: self.versions[index],
            }),
        };
        SINKS.iter().enumerate().map(sink).collect()
    }

    fn rules() -> Arc<RuleSet> {
        let rule = |name: &str, events: &[&str], sinks: &[&str]| RuleConfig {
            program: None,
            name: name.into(),
            events: events.iter().map(|text| (*text).to_owned()).collect(),
            filter: None,
            sinks: sinks.iter().map(|text| (*text).to_owned()).collect(),
        };
        let rules = [
            rule("all", &[], &["ack", "trans"]),
            rule("even", &["lead.even"], &["check"]),
        ];
        let names: Vec<&str> = SINKS.iter().map(|(name, _, _)| *name).collect();
        Arc::new(RuleSet::compile(&rules, &names).unwrap())
    }

    fn log_options(&self) -> LogOptions {
        LogOptions {
            // Segments of a few commits, so that much of the log can go.
            segment_size: 3000,
            round: Duration::from_millis(20),
            dir: self.dir.path().to_owned(),
            segment_age: Duration::from_secs(3600),
            reserve: Some(0),
            keys_kept: Duration::from_secs(3600),
            cache_bytes: 1 << 20,
            read_only: false,
            now: Clock::default(),
        }
    }

    fn begin(&self) -> Life {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let gate = Arc::new(Gate::default());
        // Without its state the engine does not start at all.
        self.store_faults.reads.store(0, Ordering::SeqCst);
        let bad_reads = Arc::new(AtomicU32::new(0));
        let (log, store, engine) = runtime.block_on(async {
            let options = self.log_options();
            let inner = tokio::task::spawn_blocking(move || reopen(&options)).await.unwrap();
            let log = Arc::new(GatedLog {
                inner,
                gate: gate.clone(),
                bad_reads: bad_reads.clone(),
            });
            let state = self.dir.path().join("state");
            let store = tokio::task::spawn_blocking(move || LocalStore::open(&state, false))
                .await
                .unwrap()
                .unwrap();
            let store = Arc::new(GatedStore {
                inner: store,
                gate: gate.clone(),
                faults: self.store_faults.clone(),
            });
            let options = deliver::Options {
                log: log.clone(),
                store: store.clone(),
                dir: self.dir.path().to_owned(),
                rules: Case::rules(),
                sinks: self.sinks(&gate),
                mode: Mode::Follow,
                names: Arc::default(),
                clock: closehook::age::Clock::new(jiff::Timestamp::now),
            };
            (log, store, Engine::start(options).await.unwrap())
        });
        Life {
            log,
            engine,
            store,
            gate,
            bad_reads,
            runtime,
        }
    }

    fn retention(&self, life: &Life, keep: Duration, max_size: Option<u64>) -> Retention {
        let options = retention::Options {
            dir: self.dir.path().to_owned(),
            keep,
            max_size,
            on_servers: false,
            round: Duration::from_millis(20),
        };
        let clock = self.clock.clone();
        let now = move || Timestamp::now() + SignedDuration::from_secs(clock.load(Ordering::Relaxed));
        let readers: Arc<dyn Readers> = Arc::new(Roomy(life.engine.clone()));
        Retention::new(options, life.log.clone(), readers, Clock::new(now))
    }

    async fn append(&mut self, life: &Life, count: u8, lead: u8) -> Result<(), String> {
        for _ in 0..count {
            let id = self.sent;
            self.sent += 1;
            let even = id.is_multiple_of(2);
            let action = if even { "even" } else { "odd" };
            let noise: String = (0..40).map(|n| format!("{:x}", (id + 1) * 7919 * (n + 1))).collect();
            let body = format!(
                r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"{action}","lead_id":"lead_{lead}","data":"{noise}"}}}}"#
            );
            let at = Timestamp::now() + SignedDuration::from_secs(self.clock.load(Ordering::Relaxed));
            let incoming = Incoming::new(body.into(), at, Source::Webhook, None);
            match life.log.append(incoming).await {
                Ok(Appended::Stored(seq)) => {
                    let known = Known {
                        lead,
                        even,
                        erased: false,
                    };
                    if self.events.insert(seq, known).is_some() {
                        return Err(format!("I3: Seq {seq} was given out twice"));
                    }
                }
                // The log is at its size limit: nobody was told that anything is stored.
                Err(_) => return Ok(()),
                other => return Err(format!("I2: a new event is answered {other:?}")),
            }
        }
        Ok(())
    }

    async fn perform(&mut self, life: &Life, deed: &Deed) -> Result<(), String> {
        let name = |sink: usize| SINKS[sink].0;
        match deed {
            Deed::Append { count, lead } => self.append(life, *count, *lead).await?,
            Deed::Feel { sink, mood, calls } => self.world.at(name(*sink), |receiver| {
                receiver.moods.extend(std::iter::repeat_n(*mood, usize::from(*calls)));
            }),
            Deed::Pause { sink, paused } => {
                let done = life.engine.pause(name(*sink), *paused).await;
                self.unless_told(done)?;
            }
            Deed::Reload { sink, retain } => {
                self.versions[*sink] += 1;
                let sinks = self.sinks(&life.gate);
                let reload = life.engine.reload(Case::rules(), &sinks);
                let done = if *retain {
                    self.while_retaining(life, reload).await
                } else {
                    reload.await
                };
                self.unless_told(done)?;
            }
            Deed::Replay { sink, from } => self.replay(life, *sink, *from).await?,
            Deed::RetryDead { sink } => self.retry_dead(life, name(*sink)).await?,
            Deed::Erase { lead } => self.erase(life, *lead).await?,
            Deed::Retain => {
                let retention = self.retention(life, Duration::ZERO, None);
                // A read that fails postpones, and that is all.
                let _ = retention.round().await;
            }
            Deed::Cap { share } => {
                let used = retention::used(self.dir.path()).map_err(|error| error.to_string())?;
                let cap = (used * u64::from(*share) / 100).max(4096);
                let retention = self.retention(life, Duration::MAX, Some(cap));
                for _ in 0..4 {
                    let _ = retention.round().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                life.log.set_room(u64::MAX);
            }
            Deed::BadReads { reads } => life.bad_reads.store(u32::from(*reads), Ordering::SeqCst),
            Deed::BadStore { reads, puts } => {
                self.told_store = true;
                self.store_faults.reads.store(u32::from(*reads), Ordering::SeqCst);
                self.store_faults.puts.store(u32::from(*puts), Ordering::SeqCst);
            }
            Deed::Clock { seconds } => drop(self.clock.fetch_add(i64::from(*seconds), Ordering::Relaxed)),
            Deed::Settle => drop(tokio::time::timeout(LIFE, life.is_idle()).await),
            Deed::Work { sink } => drop(tokio::time::timeout(WORK, life.has_done(name(*sink))).await),
        }
        Ok(())
    }

    /// An order may fail where the state was told to.
    fn unless_told<T, E: std::fmt::Display>(&self, done: Result<T, E>) -> Result<(), String> {
        match done {
            Err(error) if !self.told_store => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Does something while everything is too old, again and again.
    async fn while_retaining<T>(&self, life: &Life, work: impl Future<Output = T>) -> T {
        let retention = self.retention(life, Duration::ZERO, None);
        let retaining = async {
            loop {
                let _ = retention.round().await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = work => done,
            () = retaining => unreachable!(),
        }
    }

    async fn replay(&mut self, life: &Life, sink: usize, from: u8) -> Result<(), String> {
        let head = *life.log.head().borrow();
        let spec = ReplaySpec {
            from: Seq(head.0 * u64::from(from) / 100 + 1),
            to: head,
            sinks: vec![SINKS[sink].0.to_owned()],
            only_partials: false,
            ..ReplaySpec::of_partials(Seq(1), head)
        };
        // Reads may fail just now; then there is no replay.
        let Ok((spec, planned)) = life.engine.replay_plan(spec, &mut |_| ()).await else {
            return Ok(());
        };
        let (from, to) = (spec.from, spec.to);
        // A kill may come when it is durable and its name is not known yet.
        let index = self.replays.len();
        self.replays.push((String::new(), sink, from, to));
        match life.engine.replay_start(spec, planned).await {
            Ok(id) => self.replays[index].0 = id,
            failed => self.unless_told(failed)?,
        }
        Ok(())
    }

    async fn retry_dead(&mut self, life: &Life, sink: &str) -> Result<(), String> {
        let Ok(letters) = life.engine.dead_list(Some(sink), Seq(1), 1000) else {
            return Ok(());
        };
        let seqs: Vec<Seq> = letters.iter().map(|letter| letter.seq).collect();
        let asked = seqs.len() as u64;
        let Ok(progress) = life.engine.dead_retry(sink, seqs).await else {
            // Paused, or not to be had now: said at once.
            return Ok(());
        };
        let ended = async {
            loop {
                let (total, delivered, failed) = progress.counts();
                if delivered + failed >= total {
                    return (total, delivered, failed);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok((total, delivered, failed)) if total == asked && delivered + failed == total => Ok(()),
            Ok(counts) => Err(format!("a retry of {asked} letters counts {counts:?}")),
            Err(_) => Err(format!("a retry of letters of {sink} hangs at {:?}", progress.counts())),
        }
    }

    async fn erase(&mut self, life: &Life, lead: u8) -> Result<(), String> {
        let id = format!("lead_{lead}");
        let narrow = Narrow {
            leads: [id.clone()].into(),
            ..Narrow::default()
        };
        let doomed = move |event: &Event| {
            event
                .view()
                .is_some_and(|view| view.lead_id.as_deref() == Some(id.as_str()))
        };
        // Whether it came to its end or not: some of them may be gone.
        for known in self.events.values_mut().filter(|known| known.lead == lead) {
            known.erased = true;
        }
        let _ = life.log.erase(narrow, Arc::new(doomed)).await;
        Ok(())
    }
}

impl Life {
    /// Nothing is left to do for any sink.
    pub async fn is_idle(&self) {
        loop {
            let busy = |sink: &deliver::SinkStatus| sink.lag_events > 0 || sink.in_flight > 0 || sink.retrying > 0;
            let replaying = self.engine.replays().iter().any(|replay| replay.state == "running");
            if !replaying && !self.engine.sinks().iter().any(busy) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Nothing is left to do for one sink.
    async fn has_done(&self, name: &str) {
        let is_busy = |sink: &deliver::SinkStatus| sink.name == name && sink.lag_events > 0;
        while self.engine.sinks().iter().any(is_busy) {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// The process is gone, at this moment.
    fn kill(self) {
        self.gate.close();
        self.end();
    }

    /// An orderly end.
    fn stop(self, case: &Case, retain: bool) -> Result<(), String> {
        let began = Instant::now();
        let (engine, log) = (self.engine.clone(), self.log.clone());
        let stopping = async {
            if retain {
                case.while_retaining(&self, engine.shutdown()).await;
            } else {
                engine.shutdown().await;
            }
            log.close().await;
        };
        let stopped = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, stopping).await });
        stopped.map_err(|_| format!("a stop hangs for {:?}", began.elapsed()))?;
        self.end();
        Ok(())
    }

    /// Lets go of everything that a process lets go of.
    fn end(self) {
        let Life {
            log,
            engine,
            store,
            runtime,
            ..
        } = self;
        drop(engine);
        // Tasks end where they stand; what is being written to the disk comes to its end.
        runtime.shutdown_timeout(PATIENCE);
        LocalLog::close(&log.inner);
        let ending = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        ending.block_on(store.inner.close());
    }
}

/// Runs a case; an error says which invariant does not hold.
pub fn run(ops: &[Op]) -> Result<(), String> {
    let mut case = Case::new();
    if let Some(Op::Do(Deed::BadStore { puts, .. })) = ops.first() {
        case.store_faults.puts.store(u32::from(*puts), Ordering::SeqCst);
    }
    let mut life = case.begin();
    for op in ops {
        match op {
            Op::Do(deed) => {
                let performed = async { tokio::time::timeout(PATIENCE, case.perform(&life, deed)).await };
                let performed = life.runtime.block_on(performed);
                performed.map_err(|_| format!("{deed:?} hangs"))??;
            }
            Op::KillDuring { deed, steps } => {
                life.gate.arm(*steps);
                let gate = life.gate.clone();
                let died = life.runtime.block_on(async {
                    tokio::select! {
                        biased;
                        () = gate.wait_until_closed() => Ok(()),
                        performed = case.perform(&life, deed) => {
                            performed?;
                            let _ = tokio::time::timeout(LIFE, gate.wait_until_closed()).await;
                            Ok::<_, String>(())
                        }
                    }
                });
                died?;
                life.kill();
                life = case.begin();
            }
            Op::Restart { retain } => {
                life.stop(&case, *retain)?;
                life = case.begin();
            }
        }
    }
    check::settle(&case, &life)?;
    life.runtime.block_on(check::all(&mut case, &life))?;
    life.stop(&case, false)
}

impl Life {
    /// Runs something in this life's runtime.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Every fault is over.
    pub fn heal(&self, case: &Case) {
        for receiver in case.world.all().values_mut() {
            receiver.moods.clear();
        }
        self.bad_reads.store(0, Ordering::SeqCst);
        case.store_faults.reads.store(0, Ordering::SeqCst);
        case.store_faults.puts.store(0, Ordering::SeqCst);
        self.log.set_room(u64::MAX);
    }
}
