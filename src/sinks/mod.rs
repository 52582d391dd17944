//! Where events go. A sink takes a batch of deliveries and says, for each, how it went; everything else
//! (reading, order, retries, breaker, cursor) is the delivery engine's.
//!
//! A new type of sink is one file and one line in [`REGISTRY`]. The file, in the order all of them have (options, build,
//! deliver, probe, tests):
//!
//! ```ignore
//! #[derive(Debug)]
//! struct Options { topic: String }
//! pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
//!     Some(Arc::new(Options { topic: table.required("topic", "\"events\"")? }))
//! }
//! impl Build for Options { /* build: make the sink; traits: batch size and concurrency; fingerprint */ }
//! struct Topic { /* a connection */ }
//! #[async_trait]
//! impl Sink for Topic {
//!     async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> { /* one outcome per event; never retry here */ }
//!     async fn probe(&self) -> Result<String, SinkError> { /* contact it, deliver nothing */ }
//! }
//! ```

mod common;
pub mod contract;
mod exec;
mod file;
mod http;
#[cfg(feature = "sink-postgres")]
mod postgres;
#[cfg(feature = "sink-sqlite")]
mod sqlite;
mod stdout;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::event::Delivery;

/// How one delivery went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; never sent again.
    Delivered,
    /// It may work later.
    Retry {
        /// One sentence for people; never holds a secret or a body.
        reason: String,
        /// The earliest moment the receiver wants it again (`retry-after`), from now.
        after: Option<Duration>,
    },
    /// It will never work: a dead letter.
    Reject {
        /// One sentence for people; never holds a secret or a body.
        reason: String,
    },
}

/// What a sink wants remembered together with its cursor, in one atomic record (the file sink's synced length).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub serde_json::Value);

/// Why a sink could not be made or could not secure its data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// What is known about a sink's past when it is built.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// The position saved with the cursor below; `None` on the first start.
    pub position: Option<Position>,
    /// The epoch of the log; a position from another epoch must not be used to truncate anything.
    pub epoch: String,
}

/// A place to deliver to.
///
/// One call to [`Sink::deliver`] at a time per unit of the sink's `concurrency`; sinks that keep a position are driven with
/// a concurrency of one, and [`Sink::checkpoint`] and [`Sink::committed`] are never called while a delivery runs.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Delivers each event of the batch and answers for each, in order (same length). Must be safe to cancel: a cancelled
    /// delivery is delivered again.
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome>;

    /// Makes everything delivered so far durable and says what to remember with the cursor. Called before a cursor is saved.
    async fn checkpoint(&self) -> Result<Option<Position>, SinkError> {
        Ok(None)
    }

    /// The checkpoint (cursor and position) is durable now. The sink may move on (rotate, reopen); the new position it
    /// returns is made durable before the next delivery.
    async fn committed(&self) -> Result<Option<Position>, SinkError> {
        Ok(None)
    }

    /// Contacts the destination without delivering anything, for `check --probe`.
    async fn probe(&self) -> Result<String, SinkError>;
}

/// A sink's parsed options: knows how to make the sink. What [`REGISTRY`] entries parse into.
pub trait Build: std::fmt::Debug + Send + Sync + 'static {
    /// Makes the sink. Opens files, builds clients; contacts nobody.
    fn build(&self, common: &crate::config::SinkConfig, resume: Resume) -> Result<std::sync::Arc<dyn Sink>, SinkError>;

    /// What this type of sink does best with.
    fn traits(&self) -> Traits;

    /// Something two sinks must not share (the file's path); two sinks with the same value are a configuration error.
    fn exclusive(&self) -> Option<String> {
        None
    }

    /// Equal options make an equal sink; a reload rebuilds only sinks that changed. Never shown to anybody.
    fn fingerprint(&self) -> String;
}

/// How a type of sink wants to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Most events in one [`Sink::deliver`] call.
    pub batch_max: usize,
    /// Default for `concurrency`.
    pub concurrency: usize,
    /// `true`: `concurrency` can't be other than 1, because the sink keeps a position.
    pub serial: bool,
}

/// A type of sink.
#[derive(Debug)]
pub struct SinkType {
    /// What `type` says.
    pub name: &'static str,
    /// Reads the options of this type out of the sink's table; faults go into the table. `None` if it can't be used.
    pub parse: fn(&mut crate::config::Table<'_>) -> Option<crate::config::SinkOptions>,
}

/// Every type of sink.
pub static REGISTRY: &[SinkType] = &[
    SinkType {
        name: "exec",
        parse: exec::parse,
    },
    SinkType {
        name: "file",
        parse: file::parse,
    },
    SinkType {
        name: "http",
        parse: http::parse,
    },
    SinkType {
        name: "stdout",
        parse: stdout::parse,
    },
];

#[cfg(test)]
pub(crate) mod tests {
    use crate::config::{Breaker, Order, Retry, SinkConfig, SinkOptions, Span, Start};

    /// A sink's configuration with the defaults.
    pub(crate) fn common(options: SinkOptions) -> SinkConfig {
        SinkConfig {
            name: "test".into(),
            kind: "test".into(),
            start: Start::Beginning,
            concurrency: None,
            rate: None,
            timeout: Span::secs(10),
            retry: Retry {
                initial: Span::secs(1),
                factor: 2,
                max_delay: Span::secs(900),
                max_age: Span::secs(72 * 3600),
            },
            order: Order::None,
            breaker: Breaker {
                failures: 10,
                refusals: 5,
                probe: Span::secs(30),
            },
            options,
        }
    }
}
