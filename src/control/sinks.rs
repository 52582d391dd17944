//! Sinks: how they do, and the few things a person may do to one.

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Done, Out, Refusal, text};
use crate::deliver::SinkStatus;

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
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, SinkStatus>) -> Result<(), Refusal> {
        for sink in on.engine.sinks() {
            out.say(&sink).await?;
        }
        Ok(())
    }
}

impl Pause {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        on.engine.pause(&self.sink, self.paused).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Forget {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Forgotten>) -> Result<(), Refusal> {
        let dropped = on.engine.forget(&self.sink).await.map_err(text)?;
        out.say(&Forgotten { ok: true, dropped }).await
    }
}
