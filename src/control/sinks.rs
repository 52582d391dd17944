//! Sinks: how they do, and the few things a person may do to one.

use serde::ser::Error;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::Facade;
use super::answers::{Done, Out, Refusal, text};
use crate::deliver::{Known, SinkStatus};
use crate::node;
use crate::task;

/// Every configured sink, in order of name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {}

/// Stops a sink's deliveries, or lets them go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pause {
    /// Which.
    pub sink: String,
    /// Whether it stops.
    pub paused: bool,
}

/// Forgets the position and the dead letters of a sink that is no longer configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forget {
    /// Which.
    pub sink: String,
}

/// What went with a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// True.
    pub ok: bool,
    /// Dead letters.
    pub dropped: u64,
    /// Of these, events that other sinks gave up for it and that it never had.
    #[serde(default, skip_serializing_if = "is_none")]
    pub undelivered: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde has it")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A sink, and what there is for it that can't go there yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// How it does.
    #[serde(flatten, serialize_with = "what_is_known")]
    pub sink: SinkStatus,
    /// Events that wait for data which Close withholds before they can go there.
    #[serde(default)]
    pub held: u64,
    /// Delivered in the last 15 minutes; `None`: another node drives it, which counts for itself.
    #[serde(default)]
    pub delivered_15m: Option<u64>,
}

/// What is not known of a sink that another node drives, or none.
const NOT_SAVED: [&str; 4] = ["lag_seconds", "late_seconds", "in_flight", "breaker"];

/// What more is not known of one of which nothing is.
const SAVED: [&str; 8] = [
    "cursor",
    "lag_events",
    "retrying",
    "dead",
    "dropped",
    "lost",
    "buried",
    "given",
];

/// What is not known is null, and never 0.
fn what_is_known<S: Serializer>(sink: &SinkStatus, to: S) -> Result<S::Ok, S::Error> {
    let saved: &[&str] = match sink.known {
        Known::Now => return sink.serialize(to),
        Known::Saved => &[],
        Known::Nothing => &SAVED,
    };
    let mut shown = serde_json::to_value(sink).map_err(S::Error::custom)?;
    for key in NOT_SAVED.iter().chain(saved) {
        shown[*key] = Value::Null;
    }
    shown.serialize(to)
}

/// Minutes over which it is said how fast a sink goes.
const LATELY: i64 = 15;

/// Every sink, in order of name.
pub(super) async fn shown(on: &Facade) -> Vec<Shown> {
    let held = on.account.held_by_sink();
    let counted = match on.history.clone() {
        Some(history) => task::begin_blocking(move || history.delivered_in(LATELY)).await.ok(),
        None => None,
    };
    let driven = on.facts.running.then(|| on.engine.driven_sinks());
    let lately = |name: &String| {
        let is_counted = driven.as_ref().is_none_or(|driven| driven.contains(name));
        let counted = counted.as_ref().filter(|_| is_counted)?;
        Some(counted.get(name).copied().unwrap_or_default())
    };
    let shown = |sink: SinkStatus| Shown {
        held: held.get(&sink.name).copied().unwrap_or_default(),
        delivered_15m: lately(&sink.name),
        sink,
    };
    on.engine.sinks().into_iter().map(shown).collect()
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Shown>) -> Result<(), Refusal> {
        for sink in shown(on).await {
            out.say(&sink).await?;
        }
        Ok(())
    }
}

impl Pause {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        // A daemon has it passed on by its sinks.
        let is_elsewhere = !on.facts.running && on.engine.configs().iter().any(|sink| sink.name == self.sink);
        let own = if is_elsewhere {
            let sink = self.sink.clone();
            match on.pass_to_sink(&sink, self, &out).await? {
                Some(own) => own,
                None => return Ok(()),
            }
        } else {
            self
        };
        on.engine.pause(&own.sink, own.paused).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Forget {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Forgotten>) -> Result<(), Refusal> {
        if let Some(others) = &on.others
            && let Some(node) = others.holder_now(&node::of_sink(&self.sink)).await?
        {
            return Err(format!(
                "\"{}\" is in use: node \"{node}\" drives it; remove it from the configuration there, and reload that",
                self.sink
            ));
        }
        let undelivered = on.engine.stranded().get(&self.sink).copied().unwrap_or_default();
        let dropped = on.engine.forget(&self.sink).await.map_err(text)?;
        out.say(&Forgotten {
            ok: true,
            dropped,
            undelivered,
        })
        .await
    }
}
