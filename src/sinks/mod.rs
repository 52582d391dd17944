//! Where events go: every type of sink there is. What a sink and the delivery engine owe each other is [`crate::contract`].
//!
//! # A new type of sink
//!
//! It is one file and one line in [`REGISTRY`]; a larger one is a directory, where each part has a file (`definition`, then what
//! the type needs: a session, statements, answers). All have the same parts in the same order, so that who has read one knows all:
//!
//! 1. The head comment: what it does, what it promises, and a table of what happens when something fails.
//! 2. **Definition**, `TYPE`: a [`SinkType`], what there is to say of it and each of its [`Key`]s. The reference file
//!    (`config/closehook.toml`), `closehook sinks types`, faults and examples of missing and unknown keys come from it and from
//!    nowhere else.
//! 3. **Options**: what a table of the configuration means, and `parse`, which reads *every* key of the definition whatever the
//!    others say, and reports a key that another one makes meaningless. It contacts nobody and reads no file.
//! 4. **Open**: `impl SinkKind for Options`: `drive`, `fault` (what on this machine keeps it from ever working), `fingerprint` (with
//!    what is in the files it names), `open`.
//! 5. **Deliver**: `impl Sink`: one outcome an event, never a retry of its own. What is wrong with one event is `Reject` or
//!    `Retry`; what is wrong with the system is `Unavailable` and costs no event an attempt (decision 33).
//! 6. **Probe**: looks whether it could be delivered to; writes nothing.
//! 7. **Tests**, beside the real server where there is one.
//!
//! ```ignore
//! pub(super) static TYPE: SinkType = SinkType {
//!     name: "queue",
//!     feature: Some("sink-queue"),
//!     about: "a message for each event in a queue",
//!     promise: "At least once: the key is the message's id",
//!     notes: "What else there is to know, a line for each paragraph.",
//!     setup: "What the user needs there:\n  GRANT WRITE ON events TO closehook;",
//!     example: r#"[[sinks]]
//! name = "events"
//! type = "queue"
//! url = "queue://queue.example.com"
//! topic = "events"
//! "#,
//!     keys: &[
//!         Key::required("url", "\"queue://queue.example.com\"", "The server"),
//!         Key::required("topic", "\"events\"", "Where to").template(),
//!         Key::optional("password", "\"credential:queue\"", "The user's").secret(),
//!         Key::with_default("create", "true", "Make the topic where it is missing"),
//!     ],
//!     parse: Some(parse),
//! };
//!
//! #[derive(Debug)]
//! struct Options { /* what the keys mean */ }
//!
//! fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
//!     let url: Option<String> = table.needed("url");
//!     let topic: Option<String> = table.needed("topic");
//!     let password = table.secret("password");
//!     let create = table.or("create", true);
//!     Some(Arc::new(Options { url: url?, topic: topic?, password, create }))
//! }
//! ```
//!
//! Tests of this module hold every definition against its `parse`: each key is read, each example and default can be read, and
//! the reference file says the same. `closehook check` accepts each example (`tests/it/sink_types.rs`).

#[cfg(feature = "sink-amqp")]
mod amqp;
mod common;
#[cfg(feature = "sink-email")]
mod email;
#[cfg(feature = "sink-eventbridge")]
mod eventbridge;
mod exec;
mod file;
mod http;
#[cfg(feature = "sink-kafka")]
mod kafka;
#[cfg(feature = "sink-kinesis")]
mod kinesis;
#[cfg(feature = "sink-nats")]
mod nats;
#[cfg(feature = "sink-postgres")]
mod postgres;
#[cfg(feature = "sink-pubsub")]
mod pubsub;
#[cfg(feature = "sink-redis")]
mod redis;
#[cfg(test)]
mod reference;
#[cfg(feature = "sink-s3")]
mod s3;
#[cfg(test)]
mod shown;
#[cfg(feature = "sink-slack")]
mod slack;
#[cfg(feature = "sink-sns")]
mod sns;
#[cfg(feature = "sink-sqlite")]
mod sqlite;
#[cfg(feature = "sink-sqs")]
mod sqs;
mod stdout;

#[doc(no_inline)]
pub use crate::config::{Key, SinkType};
pub use crate::contract::{
    Batch, Commit, Context, Drive, Fingerprint, Gather, Hider, Limits, Mark, Opened, Outcome, Position, Preview,
    Reason, Sink, SinkKind, Unavailable,
};

/// The type where this build has it, else what says that it has not.
macro_rules! with_feature {
    ($feature:literal, $name:literal, $($path:tt)+) => {{
        #[cfg(feature = $feature)]
        {
            &$($path)+
        }
        #[cfg(not(feature = $feature))]
        {
            static LACKING: SinkType = SinkType::lacking($name, $feature);
            &LACKING
        }
    }};
}

/// Every type of sink, in the order in which people read of them.
pub static REGISTRY: &[&SinkType] = &[
    &file::definition::TYPE,
    &stdout::TYPE,
    &http::definition::TYPE,
    &exec::TYPE,
    with_feature!("sink-slack", "slack", slack::definition::TYPE),
    with_feature!("sink-email", "email", email::definition::TYPE),
    with_feature!("sink-postgres", "postgres", postgres::definition::TYPE),
    with_feature!("sink-sqlite", "sqlite", sqlite::definition::TYPE),
    with_feature!("sink-s3", "s3", s3::definition::TYPE),
    with_feature!("sink-sqs", "sqs", sqs::TYPE),
    with_feature!("sink-sns", "sns", sns::TYPE),
    with_feature!("sink-eventbridge", "eventbridge", eventbridge::TYPE),
    with_feature!("sink-kinesis", "kinesis", kinesis::TYPE),
    with_feature!("sink-pubsub", "pubsub", pubsub::definition::TYPE),
    with_feature!("sink-nats", "nats", nats::definition::TYPE),
    with_feature!("sink-redis", "redis", redis::definition::TYPE),
    with_feature!("sink-amqp", "amqp", amqp::definition::TYPE),
    with_feature!("sink-kafka", "kafka", kafka::definition::TYPE),
];

#[cfg(test)]
pub(crate) mod tests {
    use super::{Batch, Mark, Outcome, Sink, SinkType, Unavailable};
    use crate::config::{Breaker, Fault, Order, Retry, SinkConfig, SinkOptions, Span, Start};
    use crate::event::Delivery;

    /// What a type of sink makes of its table, and what is wrong with that.
    pub(super) fn parsed(kind: &SinkType, table: serde_json::Value) -> (Option<SinkOptions>, Vec<Fault>) {
        let mut faults = Vec::new();
        let options = kind.options_of("sinks[0]", table, &mut faults);
        (options, faults)
    }

    /// The same where nothing is wrong.
    pub(super) fn sound(kind: &SinkType, table: serde_json::Value) -> SinkOptions {
        let (options, faults) = parsed(kind, table);
        assert_eq!(faults, []);
        options.unwrap()
    }

    /// Whatever is wrong with a table, or with what it means on this machine, a sentence each.
    pub(super) fn faults(kind: &SinkType, table: serde_json::Value) -> Vec<String> {
        let (options, faults) = parsed(kind, table);
        let fault = options.and_then(|options| options.fault());
        faults
            .into_iter()
            .map(|fault| format!("{}: {}", fault.place, fault.message))
            .chain(fault)
            .collect()
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
            delay: None,
            settle: None,
            dead_to: None,
            node: None,
            program: None,
            options,
        }
    }
}
