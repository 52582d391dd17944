//! One sink's worker: reads the log at its own pace, hands events to the sink, and remembers how far everything is.
//!
//! A single task owns all of the sink's state, so there is nothing to lock. What may take its time (opening the sink, delivering,
//! a checkpoint, saving) runs beside it as a task of its own with a deadline; what it answers comes back here. So orders and
//! questions are answered whatever the sink does.
//!
//! | file | what it does |
//! |---|---|
//! | `lanes` | where deliveries come from: the main feed, letters that are tried again, replays |
//! | `queue`, `replaying` | such letters, and a replay's progress |
//! | `fill` | reads the log into the feeds, passes what the log is about to drop |
//! | `ahead` | what has settled, and was superseded in what there is no room to read |
//! | `attempt` | which lane's turn it is, and handing a batch to the sink |
//! | `outcome` | judging what the sink answers |
//! | `given` | when what other sinks gave up goes |
//! | `had` | what the sink has had of what comes once more and fails |
//! | `erasing` | what is left in memory of data that was erased |
//! | `letters` | dead letters: which are made, tried again, removed |
//! | `chores` | making that durable, beside the worker |
//! | `parked` | letters that can't be made before earlier ones for the same events have gone |
//! | `progress`, `securing` | checkpoints and saves the mark, and goes back to it; one such save |
//! | `opened` | where a sink stands that was opened |
//! | `releasing` | which of the events that are released the main feed sends itself |
//! | `setback` | what a receiver's mark says of a log that was set back |
//! | `status` | what is seen from outside |
//! | `hanging` | how long what runs has been running |
//! | `stop` | coming to an end |
//! | `supervise` | opens the sink, and starts the worker again when it panics |

mod ahead;
mod attempt;
mod chores;
mod erasing;
mod fill;
mod given;
mod had;
mod hanging;
mod lanes;
mod letters;
mod opened;
mod outcome;
mod parked;
mod progress;
mod queue;
mod releasing;
mod replaying;
mod securing;
mod setback;
mod status;
mod stop;
mod supervise;
mod suspects;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::finished::Finished;
use super::judges::Earlier;
use super::letters::Letters;
use super::mark::Record;
use super::memory::Memory;
use super::outset::Outset;
use super::rendering::Rendering;
use super::replay::{Job, Jobs};
use super::schedule::{self, Breaker, Throttle};
use super::trail::Trail;
use super::types::Waiter;
use crate::age::Clock;
use crate::config::{Rate, SinkConfig, Span};
use crate::event::Seq;
use crate::log::Log;
use crate::node::Lease;
use crate::render::Names;
use crate::rules::RuleSet;
use crate::sinks::{Commit, Drive, Gather, Opened, Sink, Unavailable};
use crate::state::{Revision, Store};
use crate::telemetry::paced::Paced;
use attempt::Answered;
use chores::Chores;
use erasing::Erasing;
use hanging::{Activity, Calls};
use lanes::Lanes;
use progress::Progress;
use securing::Secured;
use suspects::Suspects;

pub(super) use chores::DeadTo;
pub(super) use lanes::Reach;
pub(super) use status::{UNDRIVEN, View, afar, look, oldest_of, saved_state, saved_view, unseen};
pub(super) use supervise::{probe, start};

/// Beyond the sink's own time-out, before the engine gives a call up itself.
const GRACE: Duration = Duration::from_secs(5);

/// After this machine failed at something (the log can't be read, a mark can't be saved).
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What a turn is at may take so long. Then it ends with what has come of it: what is asked comes first, and it goes on at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a worker is asked.
pub(super) enum Command {
    Pause(bool, oneshot::Sender<Result<(), String>>),
    EventState(Seq, oneshot::Sender<Finished>),
    Replay(Arc<Job>),
    RetryDead(Vec<(Seq, Waiter)>),
    /// The rules are others now: a replay may have waited for that.
    Rules,
    /// The record is gone from the state that nodes share: it is saved anew.
    Save,
    /// These were erased: answered when nothing of them is kept here for a delivery, or dropped with everything that was kept.
    Erased(Arc<[Seq]>, Reach, oneshot::Sender<()>),
    Stop {
        /// From now on no event is judged here any more.
        quiet: oneshot::Sender<()>,
        /// It has stopped.
        stopped: oneshot::Sender<()>,
    },
}

/// What a worker works with; stays when it is started again.
pub(super) struct Kit {
    pub config: SinkConfig,
    pub log: Arc<dyn Log>,
    pub rules: Arc<ArcSwap<RuleSet>>,
    pub store: Arc<dyn Store>,
    /// Without it nothing is read or delivered; its fence stands in the mark.
    pub lease: Lease,
    pub letters: Letters,
    /// The log will drop what is up to here.
    pub bury: watch::Receiver<Seq>,
    /// Where to begin while nothing could be saved.
    pub initial: Record,
    /// Of all sinks.
    pub jobs: Jobs,
    /// Whether it follows the log, or does replays and retries only.
    pub follow: bool,
    pub view: Arc<Mutex<View>>,
    /// Since the process started.
    pub delivered: AtomicU64,
    pub skipped: AtomicU64,
    pub superseded: AtomicU64,
    pub diverted: AtomicU64,
    /// Who gets what would become a dead letter.
    pub dead_to: Option<DeadTo>,
    /// What templates and transforms make of events.
    pub rendering: Rendering,
    /// What all sinks hold.
    pub memory: Memory,
    /// Where this node last saw the sink.
    pub outset: Arc<Outset>,
    /// By which what waits grows old.
    pub clock: Clock,
}

impl Kit {
    fn name(&self) -> &str {
        &self.config.name
    }

    /// This is durable now.
    fn see(&self, record: &Record) {
        // A node that is alone keeps its state itself.
        if self.lease.fence() > 0 {
            self.outset.see(self.name(), record);
        }
    }

    /// A record as it is gone on with, where the log ends at `end`.
    fn going_on_with(&self, durable: &Record, now: Timestamp, end: Seq) -> Record {
        let mut record = durable.clone();
        record.follow_clock(now);
        // Another node's mark may be ahead of what this one has heard of the log: that comes.
        if let Some(main) = record.main.as_mut().filter(|_| self.lease.fence() == 0) {
            // The log has lost what it had, and could not be told so: what it stores next is new.
            main.next = main.next.min(end);
            record.fates.none_outdated_from(end);
        }
        record
    }

    /// The lanes of a sink that goes on from a record.
    fn lanes(&self, record: &Record) -> Lanes {
        let jobs = self.jobs.of(self.name());
        Lanes::restore(record, &jobs, self.config.order, &self.letters, &self.memory)
    }
}

/// The handle others hold.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub config: SinkConfig,
    /// Under which its worker runs; `None`: there is no worker, only what is saved.
    pub lease: Option<Lease>,
    pub commands: mpsc::Sender<Command>,
    pub view: Arc<Mutex<View>>,
    pub letters: Letters,
}

/// What a task of the worker's has come to.
enum Done {
    Delivered(Answered),
    Opened(Result<Opened, Unavailable>),
    Secured(Box<Secured>),
    Chore(chores::Outcome),
}

/// An event that has to wait until its delay is over.
#[derive(Debug, Clone, Copy)]
struct Undue {
    seq: Seq,
    received_at: Timestamp,
    /// By [`schedule::now`]'s clock.
    due: Timestamp,
}

/// How a worker ended by itself.
enum End {
    /// It was told to, and these wait for it.
    Stopped(Vec<oneshot::Sender<()>>),
    /// Somebody else has changed its record: it has to begin with what is there now.
    Outdated,
}

#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
struct Worker<'a> {
    kit: &'a Kit,
    drive: Drive,
    gather: Option<Gather>,
    concurrency: usize,
    /// Those by which events are judged now; they are noted in the record.
    rules: Arc<RuleSet>,
    /// What they say of this sink, as a digest.
    digest: String,
    /// Those that were asked for last, by their digest; `None`: they are not there any more.
    earlier: Option<(String, Option<Earlier>)>,
    head: watch::Receiver<Seq>,
    bury: watch::Receiver<Seq>,
    /// What templates know custom fields by.
    names: watch::Receiver<Arc<Names>>,
    lanes: Lanes,
    /// Of a sink whose receiver keeps the mark.
    trail: Trail,
    breaker: Breaker,
    suspects: Suspects,
    throttle: Option<Throttle>,
    tasks: JoinSet<Done>,
    /// Deliveries among the tasks.
    running: usize,
    calls: Calls,
    /// Whether the call that was launched last has reached the sink.
    begun: Option<oneshot::Receiver<()>>,
    chores: Chores,
    sink: Option<Arc<dyn Sink>>,
    opening: bool,
    /// The newest opening failed.
    failed_to_open: bool,
    /// Something failed since it started, or was resumed: that nothing was taken before says nothing about now.
    tried_in_vain: bool,
    /// What is in the mark beside the lanes.
    record: Record,
    /// The newest durable mark.
    durable: Record,
    revision: Option<Revision>,
    outdated: bool,
    stopping: bool,
    progress: Progress,
    /// Of letters that were being delivered when a receiver which keeps the mark went away: it may have them, and says so when it is back.
    unanswered: BTreeSet<Seq>,
    /// Orders to erase that are not answered yet.
    erasing: Vec<Erasing>,
    /// Whoever waits for the pause to be durable.
    pausing: Vec<oneshot::Sender<Result<(), String>>>,
    not_before: Option<Instant>,
    /// When the newest event the main feed has read was received.
    read_upto: Option<Timestamp>,
    /// When the event came at which the main feed goes on, where that was looked up.
    came: Option<(Seq, Timestamp)>,
    /// What was looked up for that, and when: the log may not have said it.
    asked_age: Option<(Seq, Instant)>,
    /// Since when a batch that is not full waits for more, and until when.
    gathering: Option<(Timestamp, Timestamp)>,
    /// The same of what other sinks gave up.
    gathering_given: Option<(Timestamp, Timestamp)>,
    /// For a sink that waits a span after an event was received.
    arrivals: Option<Arrivals>,
    /// There is more in the log that the main feed has room for, and so perhaps a newer event of an object that has settled else.
    unread: bool,
    /// Of what has settled, that which is superseded by nothing in the rest of the log, as long as there is no room to read it.
    looked_up: BTreeSet<Seq>,
    /// What is looked for there.
    ahead: Option<ahead::Ahead>,
    /// More was found there than can be noted: some of it has to be read first.
    crammed: bool,
    /// When it is tried again to make letters that could not be made yet.
    make_parked_at: Option<Instant>,
    /// The event at which the main feed stops reading, because it is not due yet.
    undue: Option<Undue>,
    last_error: Option<(String, Timestamp)>,
    /// What stands at its end as the receiver itself has said it.
    last_said: String,
    stumbled: Paced,
    turn_began: Instant,
    /// [`PATIENCE`], or what a test says.
    patience: Duration,
    /// Which of the feeds is filled first in the next turn: 0 is the main feed, the others are replays.
    fills_first: usize,
    /// Moments at which something may go on, found out in this turn.
    wakes: Vec<Instant>,
}

impl<'a> Worker<'a> {
    /// A worker that goes on with a durable record.
    fn new(kit: &'a Kit, durable: Record, revision: Option<Revision>) -> Worker<'a> {
        let now = schedule::now();
        let end = kit.log.head().borrow().next();
        let record = kit.going_on_with(&durable, now, end);
        let drive = kit.config.options.drive();
        let concurrency = match drive.commit {
            Commit::Acknowledge => kit.config.concurrency.unwrap_or(drive.concurrency),
            Commit::Checkpoint | Commit::Transaction => 1,
        };
        let rate = kit.config.rate.or_else(|| kit.config.options.rate().map(Rate));
        let mut worker = Worker {
            kit,
            drive,
            gather: kit.config.options.gathers(),
            concurrency,
            rules: kit.rules.load_full(),
            digest: String::new(),
            earlier: None,
            head: kit.log.head(),
            bury: kit.bury.clone(),
            names: kit.rendering.names().changes(),
            lanes: kit.lanes(&record),
            trail: record.trail(),
            breaker: Breaker::new(kit.config.breaker),
            suspects: Suspects::default(),
            throttle: rate.map(|rate| Throttle::new(rate, now)),
            tasks: JoinSet::new(),
            running: 0,
            calls: Calls::default(),
            begun: None,
            chores: Chores::default(),
            sink: None,
            opening: false,
            failed_to_open: false,
            tried_in_vain: false,
            record,
            durable,
            revision,
            outdated: false,
            stopping: false,
            progress: Progress::new(),
            unanswered: BTreeSet::new(),
            erasing: Vec::new(),
            pausing: Vec::new(),
            not_before: None,
            read_upto: None,
            came: None,
            asked_age: None,
            gathering: None,
            gathering_given: None,
            arrivals: delay_of(&kit.config)
                .max(settle_of(&kit.config))
                .map(|span| Arrivals::new(span, end.prev(), now)),
            unread: true,
            looked_up: BTreeSet::new(),
            ahead: None,
            crammed: false,
            make_parked_at: None,
            undue: None,
            last_error: None,
            last_said: String::new(),
            stumbled: Paced::default(),
            turn_began: Instant::now(),
            patience: PATIENCE,
            fills_first: 0,
            wakes: Vec::new(),
        };
        worker.settle_anew(now);
        worker.note_rules();
        worker
    }

    /// Works until it is told to stop.
    async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) -> End {
        loop {
            let more = self.turn().await;
            if self.outdated {
                return End::Outdated;
            }
            let wake = if more { Some(Instant::now()) } else { self.wake_at() };
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Stop { quiet, stopped }) => {
                        // Nobody may be waiting any more.
                        let _ = quiet.send(());
                        return End::Stopped(self.stop(commands, vec![stopped]).await);
                    }
                    Some(command) => self.obey(command),
                    None => return End::Stopped(self.stop(commands, Vec::new()).await),
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.collect(done).await;
                    while let Some(done) = self.tasks.try_join_next() {
                        self.collect(done).await;
                    }
                }
                _ = self.head.changed() => {}
                () = self.kit.letters.arrived() => {}
                Ok(()) = self.bury.changed() => {}
                // Some event may have waited for these.
                Ok(()) = self.names.changed() => self.breaker.probe_now(schedule::now()),
                () = sleep => {}
            }
        }
    }

    /// Does what can be done now. `true`: there is more to do at once.
    async fn turn(&mut self) -> bool {
        self.turn_began = Instant::now();
        self.wakes.clear();
        if self.not_before.is_some_and(|at| at <= self.turn_began) {
            self.not_before = None;
        }
        if !self.kit.lease.holds() {
            // Another node may have it. What runs comes to its end, and the engine is about to stop this one.
            self.publish();
            return false;
        }
        self.look_at_log();
        self.follow_rules();
        self.end_doubts(self.turn_began);
        self.end_erasing();
        self.open_if_due();
        self.try_chores_again().await;
        self.make_parked().await;
        if self.chores.runs().is_some() {
            // What is becoming a letter must not go out meanwhile.
            self.save_if_due();
            self.publish();
            return false;
        }
        self.hand_over_before_burying().await;
        let mut more = self.bury_some().await;
        more |= self.give_up_overdue().await;
        if self.has_full_batch() {
            // The log is read while the sink works.
            self.dispatch().await;
        }
        more |= self.fill().await;
        more |= self.look_ahead(schedule::now()).await;
        self.dispatch().await;
        self.save_if_due();
        self.find_age().await;
        self.publish();
        more && self.not_before.is_none()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Pause(paused, done) => {
                self.record.paused = paused;
                if !paused {
                    // What is shown of the letters is what was read of them, whether or not that was noted yet.
                    self.doubt_letters();
                    self.record.unmarked = None;
                    self.record.begun_anew = None;
                    self.record.letters_lost = None;
                    self.record.letters_seen = self.record.letters_doubted;
                }
                self.tried_in_vain = false;
                self.pausing.push(done);
                if paused {
                    self.lanes.letters.fail_waiting("the sink was paused");
                }
            }
            Command::EventState(seq, answer) => {
                // They were just read.
                self.doubt_letters();
                drop(answer.send(self.event_state(seq)));
            }
            Command::Replay(job) => {
                self.lanes.begin(&job, self.kit.config.order);
                self.record.unmarked = None;
                self.progress.dirty = true;
            }
            Command::RetryDead(asked) => {
                self.lanes.letters.ask(asked);
                if self.record.paused {
                    self.lanes.letters.fail_waiting("the sink is paused");
                }
                // Somebody believes that it works again.
                self.breaker.probe_now(schedule::now());
            }
            Command::Save => {
                self.progress.dirty = true;
                self.progress.hurry = true;
            }
            Command::Erased(seqs, reach, done) => self.erase(&seqs, reach, done),
            // Handled by the loop, or in each turn.
            Command::Stop { .. } | Command::Rules => {}
        }
        self.publish();
    }

    async fn collect(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Delivered(finished)) => self.delivered(finished).await,
            Ok(Done::Opened(opened)) => self.opened(opened).await,
            Ok(Done::Secured(secured)) => self.secured(*secured).await,
            Ok(Done::Chore(outcome)) => self.chore_ended(outcome).await,
            // Panics are caught inside, so only a shutdown ends a task without an answer.
            Err(_) => {}
        }
    }

    /// Something on this machine failed: a moment's rest, then again.
    fn stumble(&mut self, what: &str) {
        if self.stumbled.is_news(what) {
            tracing::warn!(
                sink = self.kit.name(),
                error = what,
                "the sink's worker is held up; it is tried again all the time"
            );
        }
        self.last_error = Some((what.to_owned(), Timestamp::now()));
        self.not_before = Some(Instant::now() + PAUSE_AFTER_FAILURE);
    }

    /// Whether what began then has taken so long that the turn ends with it, and goes on at once.
    fn is_long(&mut self, began: Instant) -> bool {
        let is_long = began.elapsed() >= self.patience;
        if is_long {
            self.wakes.push(Instant::now());
        }
        is_long
    }

    /// How long one call of the sink's may take.
    fn limit(&self) -> Duration {
        self.kit.config.timeout.0 + GRACE
    }

    /// Whether each call of the sink's has to be over before the next one.
    fn is_serial(&self) -> bool {
        self.drive.commit != Commit::Acknowledge
    }

    /// When to look again; `None`: when something happens.
    fn wake_at(&self) -> Option<Instant> {
        let mut wakes = self.wakes.clone();
        wakes.extend(self.not_before);
        let own = self.progress.runs().into_iter().chain(self.chores.runs());
        let own = own.map(|(what, began)| Activity::Own(what, began));
        let running = own.chain(self.calls.oldest().cloned().map(Activity::Call));
        wakes.extend(running.map(|running| running.hangs_at()));
        wakes.extend(self.lanes.letters.doubts_end());
        wakes.extend(self.chores.again_at());
        if self.progress.dirty && !self.progress.saving {
            wakes.push(self.progress.due_at(self.gather));
        }
        if !self.record.paused {
            wakes.extend(self.breaker.wake_at().map(instant));
            if self.running < self.concurrency {
                wakes.extend(self.lanes.next_due(self.kit.follow).map(instant));
            }
        }
        // What was due before this turn was done in it, or waits for something else.
        wakes.into_iter().filter(|at| *at > self.turn_began).min()
    }
}

/// How long a sink's first attempts wait after events were received.
fn delay_of(config: &SinkConfig) -> Option<SignedDuration> {
    config.delay.map(signed)
}

/// How long an object must not change before the newest of its events goes.
fn settle_of(config: &SinkConfig) -> Option<SignedDuration> {
    config.settle.map(signed)
}

/// What waits for either a span after it came is as if it had come then.
fn apart_of(config: &SinkConfig) -> SignedDuration {
    delay_of(config).max(settle_of(config)).unwrap_or_default()
}

fn signed(span: Span) -> SignedDuration {
    SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX)
}

/// The instant that belongs to a moment of [`schedule::now`]'s clock.
fn instant(at: Timestamp) -> Instant {
    Instant::now() + Duration::try_from(at.duration_since(schedule::now())).unwrap_or_default()
}
