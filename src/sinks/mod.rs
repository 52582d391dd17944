//! Where events go: what a sink and the delivery engine owe each other ([`contract`]), and every type of sink there is.
//!
//! A new type of sink is one file and one line in [`REGISTRY`]. The file, in the order all of them have (options, open,
//! deliver, probe, tests):
//!
//! ```ignore
//! #[derive(Debug)]
//! struct Options { topic: String }
//! pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
//!     Some(Arc::new(Options { topic: table.required("topic", "\"events\"")? }))
//! }
//! #[async_trait]
//! impl SinkKind for Options { /* drive, fingerprint, open, probe */ }
//! struct Topic { /* a connection */ }
//! #[async_trait]
//! impl Sink for Topic {
//!     async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> { /* one outcome an event; never retry */ }
//! }
//! ```

mod common;
pub mod contract;
#[cfg(feature = "sink-eventbridge")]
mod eventbridge;
mod exec;
mod file;
mod http;
#[cfg(feature = "sink-kinesis")]
mod kinesis;
#[cfg(feature = "sink-postgres")]
mod postgres;
#[cfg(feature = "sink-s3")]
mod s3;
#[cfg(feature = "sink-sns")]
mod sns;
#[cfg(feature = "sink-sqlite")]
mod sqlite;
#[cfg(feature = "sink-sqs")]
mod sqs;
mod stdout;

pub use contract::{
    Batch, Commit, Context, Drive, Fingerprint, Gather, Limits, Mark, Opened, Outcome, Position, Reason, Sink,
    SinkKind, Unavailable,
};

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
        name: "eventbridge",
        #[cfg(feature = "sink-eventbridge")]
        parse: eventbridge::parse,
        #[cfg(not(feature = "sink-eventbridge"))]
        parse: lacking,
    },
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
        name: "kinesis",
        #[cfg(feature = "sink-kinesis")]
        parse: kinesis::parse,
        #[cfg(not(feature = "sink-kinesis"))]
        parse: lacking,
    },
    SinkType {
        name: "postgres",
        #[cfg(feature = "sink-postgres")]
        parse: postgres::parse,
        #[cfg(not(feature = "sink-postgres"))]
        parse: lacking,
    },
    SinkType {
        name: "s3",
        #[cfg(feature = "sink-s3")]
        parse: s3::parse,
        #[cfg(not(feature = "sink-s3"))]
        parse: lacking,
    },
    SinkType {
        name: "sns",
        #[cfg(feature = "sink-sns")]
        parse: sns::parse,
        #[cfg(not(feature = "sink-sns"))]
        parse: lacking,
    },
    SinkType {
        name: "sqlite",
        #[cfg(feature = "sink-sqlite")]
        parse: sqlite::parse,
        #[cfg(not(feature = "sink-sqlite"))]
        parse: lacking,
    },
    SinkType {
        name: "sqs",
        #[cfg(feature = "sink-sqs")]
        parse: sqs::parse,
        #[cfg(not(feature = "sink-sqs"))]
        parse: lacking,
    },
    SinkType {
        name: "stdout",
        parse: stdout::parse,
    },
];

/// Stands in for a type that this build was made without.
#[cfg(not(all(
    feature = "sink-eventbridge",
    feature = "sink-kinesis",
    feature = "sink-postgres",
    feature = "sink-s3",
    feature = "sink-sns",
    feature = "sink-sqlite",
    feature = "sink-sqs"
)))]
fn lacking(table: &mut crate::config::Table<'_>) -> Option<crate::config::SinkOptions> {
    table.fault(
        "type",
        "this build of closehook was made without this type of sink; the packages have it (as a Cargo feature: sink-NAME)",
    );
    table.rest();
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Batch, Mark, Outcome, Sink, Unavailable};
    use crate::config::{Breaker, Fault, Order, Retry, SinkConfig, SinkOptions, Span, Start, Table};
    use crate::event::Delivery;

    /// What a type of sink makes of its table, and what is wrong with that.
    pub(super) fn parsed(
        parse: fn(&mut Table<'_>) -> Option<SinkOptions>,
        table: serde_json::Value,
    ) -> (Option<SinkOptions>, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut table = Table::new("sinks[0]", table, &mut faults);
        let options = parse(&mut table);
        table.finish();
        (options, faults)
    }

    /// The same where nothing is wrong.
    pub(super) fn sound(parse: fn(&mut Table<'_>) -> Option<SinkOptions>, table: serde_json::Value) -> SinkOptions {
        let (options, faults) = parsed(parse, table);
        assert_eq!(faults, []);
        options.unwrap()
    }

    /// Hands deliveries to a sink that keeps no mark itself.
    pub(crate) async fn deliver(sink: &dyn Sink, deliveries: &[Delivery]) -> Result<Vec<Outcome>, Unavailable> {
        let no_mark = |_: &[Outcome]| Mark {
            epoch: String::new(),
            seq: crate::event::Seq::ZERO,
            text: String::new(),
        };
        sink.deliver(&Batch::new(deliveries, &no_mark)).await
    }

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
            dead_max: crate::config::Size(256 << 20),
            options,
        }
    }
}
