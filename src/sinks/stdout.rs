//! `stdout`: one JSON line per event on standard output, for a pipe or the journal.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;

use super::common::line;
use super::{Build, Outcome, Resume, Sink, SinkError, Traits};
use crate::config::{SinkConfig, SinkOptions, Table};
use crate::event::Delivery;

#[derive(Debug)]
struct Options;

/// It has no options of its own.
#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
pub(super) fn parse(_table: &mut Table<'_>) -> Option<SinkOptions> {
    Some(Arc::new(Options))
}

impl Build for Options {
    fn build(&self, _common: &SinkConfig, _resume: Resume) -> Result<Arc<dyn Sink>, SinkError> {
        Ok(Arc::new(Stdout))
    }

    fn traits(&self) -> Traits {
        Traits {
            batch_max: 256,
            concurrency: 1,
            serial: true,
        }
    }

    fn exclusive(&self) -> Option<String> {
        Some("standard output".into())
    }

    fn fingerprint(&self) -> String {
        String::new()
    }
}

struct Stdout;

#[async_trait]
impl Sink for Stdout {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        let mut lines = String::new();
        for delivery in batch {
            line::append(&mut lines, delivery);
        }
        let mut stdout = tokio::io::stdout();
        let written = async {
            stdout.write_all(lines.as_bytes()).await?;
            stdout.flush().await
        };
        match written.await {
            Ok(()) => vec![Outcome::Delivered; batch.len()],
            Err(error) => {
                let reason = format!("standard output can't be written: {error}");
                vec![Outcome::Retry { reason, after: None }; batch.len()]
            }
        }
    }

    async fn probe(&self) -> Result<String, SinkError> {
        Ok("standard output is always there".into())
    }
}
