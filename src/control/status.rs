//! Is it well, and what to do: everything on one screen.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answers::{Out, Refusal, text};
use super::close::Job;
use super::events::newest;
use super::facts::{Certificate, Facts};
use super::{Facade, troubles};
use crate::close::Complete;
use crate::deliver::SinkStatus;
use crate::event::{Kind, Seq, Source, View};
use crate::log::{Stats, Take, space};
use crate::retention::Standing;
use crate::rules::selection::Selection;
use crate::telemetry;
use crate::telemetry::traffic::{Traffic, Untimely};

/// Among so many of the newest events the last delivery is looked for that came before the daemon started.
const DELIVERIES_BACK: u64 = 256;

/// So long held events are counted; then it is said that there may be more.
const COUNT_HELD_FOR: Duration = Duration::from_millis(500);

/// Is it well?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {}

/// How everything does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Nothing asks for anybody's attention.
    #[serde(default)]
    pub well: bool,
    /// What does, the most urgent first.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// The process that answers.
    pub daemon: Facts,
    /// Whether events can be stored.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// How many keys count for new deliveries.
    pub keys: usize,
    /// When the last authentic delivery came; `None`: none that is known.
    #[serde(default)]
    pub last_delivery_at: Option<Timestamp>,
    /// What came within the last hour; `None` without a daemon.
    #[serde(default)]
    pub traffic: Option<Traffic>,
    /// The newest authentic delivery that was refused for its time; `None`: none since the start.
    #[serde(default)]
    pub untimely: Option<Untimely>,
    /// Close's clock minus ours, as its API last said; `None` where that was not asked.
    #[serde(default)]
    pub clock_offset_seconds: Option<i64>,
    /// Events that wait for data which Close withholds; `None`: none do.
    #[serde(default)]
    pub held: Option<Held>,
    /// The certificate in force; `None` without TLS.
    pub certificate: Option<Certificate>,
    /// The log in numbers.
    pub log: Stats,
    /// How full the data directory may get; `None` without a daemon.
    pub retention: Option<Standing>,
    /// The file system it is on; `None` where that can't be found out.
    #[serde(default)]
    pub disk: Option<Disk>,
    /// Every sink, in order of name.
    pub sinks: Vec<SinkStatus>,
    /// Sinks that are configured no more, whose position is still kept.
    pub removed_sinks: Vec<String>,
    /// The rules in force.
    pub rules: Vec<String>,
    /// Close's side.
    pub close: CloseSide,
}

/// One thing that asks for attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong, one sentence.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub remedy: String,
}

/// Events that wait for data which Close withholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub events: u64,
    /// There may be more: they were not all counted.
    pub at_least: bool,
    /// The first of them.
    pub first: Seq,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What may still be written.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

/// Close's side, as it was last looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloseSide {
    /// Whether there are credentials.
    pub configured: bool,
    /// Why Close can't be used just now.
    pub trouble: Option<String>,
    /// When subscriptions were last looked at.
    pub checked_at: Option<Timestamp>,
    /// When the logs were last compared.
    pub reconciled_at: Option<Timestamp>,
    /// Every subscription that concerns us.
    pub subscriptions: Vec<Subscribed>,
    /// Close delivers nothing although there is something; `None`: it does.
    pub silence: Option<Silence>,
    /// How far the log is complete; `None` before the first comparison.
    pub complete: Option<Complete>,
    /// The backfill that is under way; `None`: there is none.
    pub backfill: Option<Job>,
    /// A subscription that is being replaced; `None`: there is none.
    pub rotation: Option<Replaced>,
    /// What else is said of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One subscription.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribed {
    /// `whsub_...`
    pub id: String,
    /// Where it delivers; `None` where Close does not have it.
    pub url: Option<String>,
    /// How it does.
    pub state: String,
    /// Why Close has paused it, in its own word.
    pub pause_reason: Option<String>,
    /// What its deliveries fail of at Close.
    pub latest_error: Option<String>,
    /// What Close counts of it, in its own words.
    pub counters: Option<Value>,
    /// Whether Close checks the certificate of its URL.
    pub verify_ssl: Option<bool>,
    /// Why it can't be made active again.
    pub trouble: Option<String>,
    /// What else is said of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Close delivers nothing although there is something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// When the last delivery came.
    pub last_delivery: Option<Timestamp>,
    /// `date_updated` of the newest event that was not delivered.
    pub newest_event: Timestamp,
}

/// A subscription that is being replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// To be deleted ...
    pub old: String,
    /// ... when this one has delivered.
    pub new: String,
    /// Since when.
    pub begun_at: Timestamp,
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Status>) -> Result<(), Refusal> {
        let now = Timestamp::now();
        let running = on.facts.running;
        let ready = if running {
            on.log.ready().map_err(text)
        } else {
            Err("no daemon is running".to_owned())
        };
        let counts = telemetry::traffic();
        let mut status = Status {
            well: false,
            troubles: Vec::new(),
            daemon: on.facts.clone(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            keys: on.receiving.keys(),
            last_delivery_at: last_delivery(on).await,
            traffic: running.then(|| counts.last_hour(now)).flatten(),
            untimely: counts.last_untimely(),
            clock_offset_seconds: on.account.clock_offset_seconds(),
            held: held(on).await,
            certificate: on.receiving.certificate(),
            log: on.log.stats(),
            retention: on.retention.as_ref().map(|retention| retention.standing()),
            disk: disk(on),
            sinks: on.engine.sinks(),
            // What can't be read is said where it is needed; the rest of the picture is worth having.
            removed_sinks: on.engine.detached().await.unwrap_or_default(),
            rules: on.engine.rules().names(),
            close: serde_json::from_value(on.account.status()).map_err(text)?,
        };
        status.troubles = troubles::of(&status, now);
        status.well = status.troubles.is_empty();
        out.say(&status).await
    }
}

/// When the last delivery came that is known of.
async fn last_delivery(on: &Facade) -> Option<Timestamp> {
    if let Some(at) = telemetry::traffic().last_delivery() {
        return Some(at);
    }
    let newest = newest(on, &Selection::default(), DELIVERIES_BACK).await.ok()?;
    let delivery = newest.iter().rev().find(|event| event.source == Source::Webhook);
    delivery.map(|event| event.received_at)
}

fn disk(on: &Facade) -> Option<Disk> {
    let space = space::of(&on.facts.dir).ok()?;
    Some(Disk {
        free_bytes: space.free,
        total_bytes: space.total,
    })
}

/// Counts the events that are held, among those of which it is known that they were stored without their data.
async fn held(on: &Facade) -> Option<Held> {
    let (first, last) = on.account.held_parts()?;
    let rules = on.engine.rules();
    let began = Instant::now();
    let mut held: Option<Held> = None;
    let mut next = first.max(on.log.first());
    while next <= last {
        let take = Take {
            events: 512,
            bytes: 4 << 20,
            narrow: None,
        };
        let batch = on.log.read(next, take).await.ok()?;
        if batch.next == next {
            break;
        }
        for event in batch.events.iter().filter(|event| event.seq <= last) {
            let is_part = event.kind == Kind::Partial && !event.held && !rules.dispatches(event);
            let key = event.view().map(View::key).filter(|_| is_part);
            let Some(key) = key else { continue };
            if on.log.find_revision(&key).await.is_ok_and(|full| full.is_none()) {
                let held = held.get_or_insert(Held {
                    events: 0,
                    at_least: false,
                    first: event.seq,
                });
                held.events += 1;
            }
        }
        next = batch.next;
        if began.elapsed() > COUNT_HELD_FOR && next <= last {
            let held = held.get_or_insert(Held {
                events: 0,
                at_least: true,
                first: next,
            });
            held.at_least = true;
            break;
        }
    }
    held
}
