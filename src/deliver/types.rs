//! What the engine is asked and what it answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::event::{Dead, Event, Seq};
use crate::sinks::Reason;
use crate::sync::lock;

/// What an engine's workers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Follow the log: the daemon.
    Follow,
    /// Only replays and retries of dead letters: a command without a daemon.
    Jobs,
    /// Nothing; what is saved can be looked at. Nothing is written.
    Look,
    /// Nothing beside the nodes that drive the sinks, if any do: a command where several share the log. What people let go of letters it
    /// writes itself, under no lease.
    Outside,
}

impl Mode {
    /// Whether workers run, at all or for what is ordered.
    pub fn drives(self) -> bool {
        matches!(self, Mode::Follow | Mode::Jobs)
    }
}

/// Where dead letters are, below the data directory.
pub(super) const DEAD: &str = "dead";

/// A worker has so long to take an order or to stop; what it does then has shorter deadlines of its own.
pub(super) const OBEY_WITHIN: Duration = Duration::from_secs(60);

/// Why the engine can't do what was asked; one sentence for the person asking.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

pub(super) fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError(error.to_string())
}

/// What a reload has made of the sinks, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkChanges {
    /// Not there before.
    pub added: Vec<String>,
    /// Not there any more; their positions are kept for a while.
    pub removed: Vec<String>,
    /// Configured otherwise: they went on from their positions.
    pub changed: Vec<String>,
    /// Went on undisturbed.
    pub unchanged: Vec<String>,
}

/// How much is known here of how a sink does. What is not known is 0 in [`SinkStatus`], and shown to nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// Everything.
    #[default]
    Now,
    /// What is saved of it, and was seen last: another node drives it, or none does.
    Saved,
    /// Nothing: what is saved of it can't be read.
    Nothing,
}

impl Known {
    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        *self == Known::Now
    }
}

/// What was not known is null.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// The same of an age, of which 0 says something.
fn or_no_number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Option::deserialize(from).map(|age| age.unwrap_or(f64::NAN))
}

/// One sink, for people and for `/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// How much of the rest is known here.
    #[serde(default, skip_serializing_if = "Known::is_all")]
    pub known: Known,
    /// Everything up to here is delivered, dead or not for this sink.
    #[serde(deserialize_with = "or_default")]
    pub cursor: Seq,
    /// Events of the log behind the cursor that are not looked at yet.
    #[serde(deserialize_with = "or_default")]
    pub lag_events: u64,
    /// Age in seconds of the oldest event that is not finished, or since when it waits that another sink gave it up; 0 when there is none,
    /// and no number (null) where that is not known.
    #[serde(deserialize_with = "or_no_number")]
    pub lag_seconds: f64,
    /// By how much that age is beyond what the sink is configured to make an event wait (`delay`, `settle`, `batch`, `digest`); 0 while
    /// nothing is late, and no number (null) where the age is not known.
    #[serde(default, deserialize_with = "or_no_number")]
    pub late_seconds: f64,
    /// Deliveries running now.
    #[serde(deserialize_with = "or_default")]
    pub in_flight: usize,
    /// Events waiting for another try.
    #[serde(deserialize_with = "or_default")]
    pub retrying: usize,
    /// Dead letters.
    #[serde(deserialize_with = "or_default")]
    pub dead: u64,
    /// Dead letters that were dropped, by a person or because there was no more room for them: the sink never has their events.
    #[serde(default, deserialize_with = "or_default")]
    pub dropped: u64,
    /// What is wrong with the file of its dead letters; `None` where nothing is.
    #[serde(default)]
    pub dead_trouble: Option<String>,
    /// Events that were damaged or expired before this sink had them.
    #[serde(deserialize_with = "or_default")]
    pub lost: u64,
    /// Dead letters made because the log reached its size limit.
    #[serde(default, deserialize_with = "or_default")]
    pub buried: u64,
    /// Delivered since the daemon started, or a reload changed the sink; so are the next three.
    pub delivered: u64,
    /// Skipped since the daemon started: a transform wanted nothing delivered.
    #[serde(default)]
    pub skipped: u64,
    /// Events of which a newer one of the same object went out instead, since the daemon started.
    #[serde(default)]
    pub superseded: u64,
    /// What would have become dead letters and went to its `dead_to`, since the daemon started.
    #[serde(default)]
    pub diverted: u64,
    /// Events that other sinks gave up and that it has not had yet; they are part of the lag.
    #[serde(default, deserialize_with = "or_default")]
    pub given: u64,
    /// `closed`, `open` or `half-open`.
    #[serde(deserialize_with = "or_default")]
    pub breaker: String,
    /// Stopped by a person.
    pub paused: bool,
    /// Why nothing is delivered now; `None` while it works or has nothing to do.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// What it waits for because it is configured so (`its delay: ...`, `its settle: ...`), which is no trouble; `None` while nothing waits.
    #[serde(default)]
    pub waits_by: Option<String>,
    /// The newest failure, if any since the last success.
    pub last_error: Option<String>,
    /// When it was.
    pub last_error_at: Option<Timestamp>,
    /// What `last_error` says does not end by itself, whether or not anything waits: somebody has to look at the receiver.
    #[serde(default)]
    pub needs_person: bool,
    /// The node that drives it, where several share the log; `None` where there are no others, or none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
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
    /// Its transform wanted nothing delivered.
    Skipped,
    /// A dead letter.
    Dead {
        /// Why.
        reason: String,
        /// What the receiver said, if anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
    },
    /// It would have become a dead letter, and went to the sink's `dead_to` instead.
    Diverted,
    /// Close withholds its data: it waits for the full event.
    Held,
    /// The full event came, or a newer one of the object, and went out instead.
    Superseded,
    /// The sink never had it, and nobody can give it: it was damaged or expired before, or its dead letter was dropped.
    Lost {
        /// Why.
        #[serde(default)]
        reason: String,
    },
    /// Its data was erased.
    Erased,
    /// That is not known.
    Unknown {
        /// What is known, and why it is no more.
        reason: String,
    },
}

impl EventState {
    /// In a word, as it is written everywhere.
    pub fn word(&self) -> &'static str {
        match self {
            EventState::NotRouted => "not-routed",
            EventState::Waiting => "waiting",
            EventState::InFlight => "in-flight",
            EventState::Retrying { .. } => "retrying",
            EventState::Delivered => "delivered",
            EventState::Skipped => "skipped",
            EventState::Dead { .. } => "dead",
            EventState::Diverted => "diverted",
            EventState::Held => "held",
            EventState::Superseded => "superseded",
            EventState::Lost { .. } => "lost",
            EventState::Erased => "erased",
            EventState::Unknown { .. } => "unknown",
        }
    }
}

impl EventState {
    pub(super) fn unknown(why: &str) -> EventState {
        EventState::Unknown { reason: why.to_owned() }
    }
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
    /// These were held, and were released for every node, whatever its own rules say by now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub releases: bool,
}

/// Everything there is.
impl Default for ReplaySpec {
    fn default() -> ReplaySpec {
        ReplaySpec {
            from: Seq(1),
            to: Seq(u64::MAX),
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
            only_partials: false,
            releases: false,
        }
    }
}

impl ReplaySpec {
    /// The events without their data in a range of Seqs, wherever the rules send them.
    pub fn of_partials(from: Seq, to: Seq) -> ReplaySpec {
        ReplaySpec {
            from,
            to,
            only_partials: true,
            ..ReplaySpec::default()
        }
    }

    /// The same of those that were held, and go out from now on: also where a node's rules still hold them.
    pub fn of_released(from: Seq, to: Seq) -> ReplaySpec {
        ReplaySpec {
            releases: true,
            ..ReplaySpec::of_partials(from, to)
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
    /// `object_type.action`, where known. Letters of before have it as `event_type`.
    #[serde(rename = "type", alias = "event_type")]
    pub event_type: Option<String>,
    /// Its lead, if any.
    pub lead_id: Option<String>,
    /// Why it was given up.
    pub reason: String,
    /// What the receiver said at last, up to 2 KiB that no terminal minds; `None` where it said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Attempts made.
    pub attempts: u32,
    /// When the first attempt was made; `None` if there was none.
    pub first_attempt: Option<Timestamp>,
    /// When it was given up.
    pub died_at: Timestamp,
    /// Where and why it was given up before it came here; `None` where this sink was to have it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<Dead>,
    /// The replay that sent it; `None` where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
}

impl DeadLetter {
    /// The same, given to another sink.
    pub(super) fn given_to(&self, sink: &str) -> DeadLetter {
        let dead = Dead {
            sink: self.sink.clone(),
            reason: self.reason.clone(),
            attempts: self.attempts,
        };
        DeadLetter {
            sink: sink.to_owned(),
            attempts: 0,
            first_attempt: None,
            dead: Some(dead),
            ..self.clone()
        }
    }
}

/// A replay job: counts as they stand now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// Its id, for `replay --resume`.
    pub id: String,
    /// What was asked for.
    pub spec: ReplaySpec,
    /// `running`, `interrupted`, `done`, or `incomplete`: a sink has left the configuration before it had everything, and all others have.
    pub state: String,
    /// Deliveries planned, per sink.
    pub planned: BTreeMap<String, u64>,
    /// Deliveries planned, over all sinks.
    #[serde(default)]
    pub total: u64,
    /// Of these done with, however they ended.
    #[serde(default)]
    pub done: u64,
    /// Time left at the pace so far; `None` before there is one, and where it is not running.
    #[serde(default)]
    pub eta_seconds: Option<u64>,
    /// Deliveries finished well, over all sinks.
    pub delivered: u64,
    /// Deliveries that became dead letters, over all sinks.
    pub dead: u64,
    /// Deliveries of which a transform wanted nothing, over all sinks.
    #[serde(default)]
    pub skipped: u64,
    /// Events passed undelivered because the log reached its size limit, over all sinks.
    #[serde(default)]
    pub lost: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it waits for, with what to do where that is known; `None` while it gets on.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Why it is incomplete, with what to do; `None` in any other state.
    #[serde(default)]
    pub because: Option<String>,
}

/// How a retry of dead letters is getting on.
#[derive(Debug, Default)]
pub struct RetryProgress {
    /// Letters asked for.
    total: AtomicU64,
    /// Delivered and removed.
    delivered: AtomicU64,
    /// Still dead.
    failed: AtomicU64,
    /// Tried for somebody else already, and counted there.
    elsewhere: AtomicU64,
    /// No dead letters any more when they were to be tried.
    gone: AtomicU64,
    /// Why the newest of those that are still dead is.
    why: Mutex<Option<String>>,
}

/// Retries that other nodes have asked for, by their ids; since when.
pub(super) type Retries = BTreeMap<String, (Instant, Arc<RetryProgress>)>;

impl RetryProgress {
    pub(super) fn new(total: u64) -> RetryProgress {
        RetryProgress {
            total: total.into(),
            ..RetryProgress::default()
        }
    }

    pub(super) fn count(&self, delivered: bool, reason: &str) {
        if !delivered {
            *lock(&self.why) = Some(reason.to_owned());
        }
        let counter = if delivered { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several; `why`: why the newest of those is that are still dead.
    pub(super) fn count_many(&self, delivered: u64, failed: u64, why: Option<&str>) {
        if failed > 0 {
            *lock(&self.why) = why.map(str::to_owned);
        }
        self.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// So many are being tried for somebody else, who counts them.
    pub(super) fn leave(&self, count: u64) {
        self.elsewhere.fetch_add(count, Ordering::Relaxed);
        self.total.fetch_sub(count, Ordering::Relaxed);
    }

    /// So many were no dead letters any more: somebody else has delivered or dropped them meanwhile.
    pub(super) fn pass_gone(&self, count: u64) {
        self.gone.fetch_add(count, Ordering::Relaxed);
        self.total.fetch_sub(count, Ordering::Relaxed);
    }

    /// Total, delivered, still dead.
    pub fn counts(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.total), load(&self.delivered), load(&self.failed))
    }

    /// Letters that were being tried for somebody else already: they are in none of the counts.
    pub fn elsewhere(&self) -> u64 {
        self.elsewhere.load(Ordering::Relaxed)
    }

    /// Letters that were gone when they were to be tried: they are in none of the counts either.
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Relaxed)
    }

    /// Why the newest one of those that are still dead is; `None` while there is none.
    pub fn why(&self) -> Option<String> {
        lock(&self.why).clone()
    }
}

/// Somebody waits for what becomes of a letter. If nobody says so, it is still dead.
#[derive(Debug)]
pub(super) struct Waiter(Option<Arc<RetryProgress>>);

impl Waiter {
    /// One for each letter.
    pub fn each(seqs: Vec<Seq>, progress: &Arc<RetryProgress>) -> Vec<(Seq, Waiter)> {
        let waiter = |seq| (seq, Waiter(Some(progress.clone())));
        seqs.into_iter().map(waiter).collect()
    }

    /// Somebody else waits for it already, and counts it.
    pub fn leave(mut self) {
        if let Some(progress) = self.0.take() {
            progress.leave(1);
        }
    }

    /// It is no dead letter any more.
    pub fn pass_gone(mut self) {
        if let Some(progress) = self.0.take() {
            progress.pass_gone(1);
        }
    }

    pub fn settle(mut self, delivered: bool, reason: &str) {
        if let Some(progress) = self.0.take() {
            progress.count(delivered, reason);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(progress) = self.0.take() {
            progress.count(false, "the sink's worker ended before it was tried");
        }
    }
}

/// What the engine has to remember, at one moment, for a backup.
#[derive(Debug)]
pub struct Picture {
    /// Positions, retries and replays, by key.
    pub state: Vec<(String, Vec<u8>)>,
    /// Files of dead letters: below the data directory, open, and how long each was. They only grow.
    pub dead: Vec<(PathBuf, std::fs::File, u64)>,
    /// A sentence for each sink of whose dead letters damage has taken some.
    pub damaged: Vec<String>,
}

pub(super) fn dead_letter(
    sink: &str,
    event: &Event,
    reason: Reason,
    attempts: u32,
    first_attempt: Option<Timestamp>,
) -> DeadLetter {
    let view = event.view();
    let Reason { text, answer } = reason;
    DeadLetter {
        sink: sink.to_owned(),
        seq: event.seq,
        id: view.map(|view| view.id.clone()).unwrap_or_default(),
        event_type: view.and_then(crate::event::View::type_action),
        lead_id: view.and_then(|view| view.lead_id.clone()),
        reason: text,
        answer,
        attempts,
        first_attempt,
        died_at: Timestamp::now(),
        dead: None,
        replay: None,
    }
}
