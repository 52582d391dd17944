//! `stdout`: one JSON line per event on standard output, for a pipe or the journal.
//!
//! A pipe that nobody reads blocks for ever. So a thread of its own writes, and while it is stuck the sink is unavailable.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::common::line;
use super::common::thread::{Claim, OwnThread};
use super::{Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Sink, SinkKind, Unavailable};
use crate::config::{SinkOptions, SinkType, Table};
use crate::event::Delivery;

pub(super) static TYPE: SinkType = SinkType {
    name: "stdout",
    feature: None,
    about: "one JSON line per event on standard output, for a pipe or the journal",
    promise: "At least once: a crash may repeat lines, which have the same `event.id`",
    notes: "The lines are those of a file sink.",
    setup: "",
    example: r#"[[sinks]]
name = "lines"
type = "stdout"
"#,
    keys: &[],
    parse: Some(parse),
};

#[derive(Debug)]
struct Options;

/// It has no options of its own.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all of them")]
fn parse(_table: &mut Table<'_>) -> Option<SinkOptions> {
    Some(Arc::new(Options))
}

/// What nobody else may write to while a write is stuck.
const CLAIM: &str = "standard output";

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 256,
                bytes: 1 << 20,
                wait: Duration::ZERO,
            },
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        line::payload(delivery)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(String::new())
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let claim = Claim::wait(CLAIM, context.timeout).await;
        let claim = claim.map_err(|_| unread())?;
        let thread = OwnThread::start("stdout", std::io::stdout(), claim);
        let thread = thread.map_err(|error| Unavailable::new(format!("a thread can't be started: {error}")))?;
        let sink: Box<dyn Sink> = Box::new(Stdout {
            thread,
            timeout: context.timeout,
        });
        Ok(sink.into())
    }

    async fn probe(&self, _context: Context) -> Result<String, Unavailable> {
        Ok("standard output needs no probe".into())
    }
}

fn unread() -> Unavailable {
    Unavailable::new("standard output takes nothing: nobody reads what was written to it before")
}

struct Stdout {
    thread: OwnThread<std::io::Stdout>,
    timeout: Duration,
}

#[async_trait]
impl Sink for Stdout {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut lines = String::new();
        for delivery in batch.deliveries() {
            line::append(&mut lines, delivery);
        }
        let write = move |stdout: &mut std::io::Stdout| {
            let mut stdout = stdout.lock();
            stdout.write_all(lines.as_bytes())?;
            stdout.flush()
        };
        match self.thread.run(self.timeout, write).await {
            Ok(Ok(())) => Ok(vec![Outcome::Delivered; batch.deliveries().len()]),
            Ok(Err(error)) => Err(Unavailable::new(format!("standard output can't be written: {error}"))),
            Err(_) => Err(unread()),
        }
    }
}
