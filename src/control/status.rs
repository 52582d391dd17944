//! Is it well, and what to do: everything on one screen.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::answers::{Out, Refusal, text};
use super::events::newest;
use super::facts::{Certificate, Facts};
use super::sinks::{self, Shown};
use super::{Facade, troubles};
use crate::close::CloseStatus;
use crate::event::Source;
use crate::log::{Stats, space};
use crate::retention::Standing;
use crate::rules::selection::Selection;
use crate::telemetry::door::Received;

/// Among so many of the newest events the last delivery is looked for that came before the daemon started.
const DELIVERIES_BACK: u64 = 256;

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
    /// What came to the public listener lately; `None` without a daemon.
    #[serde(default)]
    pub received: Option<Received>,
    /// Close's clock minus ours, as its API last said; `None` where that was not asked.
    #[serde(default)]
    pub clock_offset_seconds: Option<i64>,
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
    pub sinks: Vec<Shown>,
    /// Sinks that are configured no more, whose position is still kept.
    pub removed_sinks: Vec<String>,
    /// The rules in force.
    pub rules: Vec<String>,
    /// Close's side.
    pub close: CloseStatus,
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

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What may still be written.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
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
        let mut status = Status {
            well: false,
            troubles: Vec::new(),
            daemon: on.facts.clone(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            keys: on.receiving.keys(),
            last_delivery_at: last_delivery(on).await,
            received: on.receiving.received(),
            clock_offset_seconds: on.account.clock_offset_seconds(),
            certificate: on.receiving.certificate(),
            log: on.log.stats(),
            retention: on.retention.as_ref().map(|retention| retention.standing()),
            disk: disk(on),
            sinks: sinks::shown(on),
            // What can't be read is said where it is needed; the rest of the picture is worth having.
            removed_sinks: on.engine.detached().await.unwrap_or_default(),
            rules: on.engine.rules().names(),
            close: on.account.status(),
        };
        status.troubles = troubles::of(&status, now);
        status.well = status.troubles.is_empty();
        out.say(&status).await
    }
}

/// When the last delivery came that is known of.
async fn last_delivery(on: &Facade) -> Option<Timestamp> {
    if let Some(at) = on.receiving.received().and_then(|received| received.last_delivery_at) {
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
