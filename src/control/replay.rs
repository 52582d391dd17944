//! Replays: what one would send where, beginning it, and how it gets on.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Done, Out, Refusal, text};
use crate::deliver::{ReplaySpec, ReplayStatus};
use crate::event::Seq;

/// How often somebody who watches is told how it gets on.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(100);

/// What a replay would send where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Which events, to which sinks.
    pub spec: Box<ReplaySpec>,
}

/// How planning gets on, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planned {
    /// So far.
    Progress {
        /// Looked at up to here.
        seq: Seq,
    },
    /// At the end.
    Done(Box<Counted>),
}

/// What a replay would send where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Which events, with their end fixed.
    pub spec: ReplaySpec,
    /// Deliveries by sink.
    pub planned: BTreeMap<String, u64>,
}

/// Begins a replay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// As it was planned.
    pub spec: Box<ReplaySpec>,
    /// As it was planned.
    pub planned: BTreeMap<String, u64>,
}

/// A replay that is durable now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its id.
    pub id: String,
}

/// How a replay gets on, until it is over.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watch {
    /// Which.
    pub id: String,
}

/// Interrupts a replay, or lets it go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Set {
    /// Which.
    pub id: String,
    /// Whether it goes on.
    pub running: bool,
}

/// The replays of the last 7 days, and older ones that are not over, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {}

impl Plan {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Planned>) -> Result<(), Refusal> {
        let mut spec = *self.spec;
        if let Some(since) = spec.since {
            spec.from = spec.from.max(on.log.seq_at(since).await.map_err(text)?);
        }
        let mut progress = |seq: Seq| out.mention(&Planned::Progress { seq });
        let (spec, planned) = on.engine.replay_plan(spec, &mut progress).await.map_err(text)?;
        out.say(&Planned::Done(Box::new(Counted { spec, planned }))).await
    }
}

impl Start {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Begun>) -> Result<(), Refusal> {
        let id = on.engine.replay_start(*self.spec, self.planned).await.map_err(text)?;
        out.say(&Begun { id }).await
    }
}

impl Watch {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, ReplayStatus>) -> Result<(), Refusal> {
        let id = self.id.as_str();
        on.engine.know_replay(id).await;
        if on.others.is_some() && !on.facts.running {
            // Nothing here would ever hear of it.
            return Err(format!(
                "nodes that run carry {id} out, whenever one does: `closehook replay list` shows there how it gets on"
            ));
        }
        loop {
            let status = on.engine.replays().into_iter().find(|replay| replay.id == id);
            let status = status.ok_or_else(|| format!("there is no replay {id}"))?;
            let over = status.state != "running";
            out.say(&status).await?;
            if over {
                return Ok(());
            }
            // Without a daemon nobody resumes a sink meanwhile: this would never end.
            if !on.facts.running
                && let Some(paused) = on.engine.replay_held_up(id)
            {
                on.engine.replay_set_running(id, false).await.map_err(text)?;
                let sinks = paused.join("\", \"");
                return Err(format!(
                    "sink \"{sinks}\" is paused: `closehook sinks resume {}`, then go on with `closehook replay --resume {id}`",
                    paused[0]
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

impl Set {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        on.engine.know_replay(&self.id).await;
        on.engine
            .replay_set_running(&self.id, self.running)
            .await
            .map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, ReplayStatus>) -> Result<(), Refusal> {
        for replay in on.engine.replays() {
            out.say(&replay).await?;
        }
        Ok(())
    }
}
