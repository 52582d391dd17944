//! A sink that could not be opened when the daemon started (its directory is missing, its disk is full): the daemon runs
//! without it, and it is opened as soon as that works.
//!
//! Only sinks that keep a position are opened this late; others open nothing. Opening happens in [`Sink::committed`], after
//! which the engine makes the new position durable before it delivers anything, so exactly once stays exactly once.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use crate::config::SinkConfig;
use crate::event::Delivery;
use crate::sinks::{Outcome, Position, Resume, Sink, SinkError};

pub(super) struct Late {
    config: SinkConfig,
    resume: Resume,
    opened: OnceLock<Arc<dyn Sink>>,
}

impl Late {
    pub fn new(config: SinkConfig, resume: Resume) -> Late {
        Late {
            config,
            resume,
            opened: OnceLock::new(),
        }
    }

    fn open(&self) -> Result<Arc<dyn Sink>, SinkError> {
        let sink = self.config.options.build(&self.config, self.resume.clone())?;
        Ok(self.opened.get_or_init(|| sink).clone())
    }
}

#[async_trait]
impl Sink for Late {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        if let Some(sink) = self.opened.get() {
            return sink.deliver(batch).await;
        }
        let failed = Outcome::Retry {
            reason: "the sink is not open yet".into(),
            after: None,
        };
        vec![failed; batch.len()]
    }

    async fn checkpoint(&self) -> Result<Option<Position>, SinkError> {
        match self.opened.get() {
            Some(sink) => sink.checkpoint().await,
            None => Ok(self.resume.position.clone()),
        }
    }

    async fn committed(&self) -> Result<Option<Position>, SinkError> {
        match self.opened.get() {
            Some(sink) => sink.committed().await,
            None => self.open()?.checkpoint().await,
        }
    }

    async fn probe(&self) -> Result<String, SinkError> {
        self.opened
            .get()
            .ok_or_else(|| SinkError("the sink is not open yet".into()))?
            .probe()
            .await
    }
}
