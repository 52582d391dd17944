//! closehook from outside: the built binary, real sockets, real files, real kills. Each file is a chapter of the contract.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(
    clippy::unwrap_used,
    clippy::similar_names,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::assigning_clones
)]

mod campaign;
mod harness;

#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../sim/mod.rs"]
mod sim;
#[path = "../skip.rs"]
mod skip;

mod abuse;
mod acme;
mod admin_api;
mod admin_close;
mod admin_crowd;
mod admin_document;
mod admin_door;
mod admin_letters;
mod admin_said;
mod admin_tail;
mod asks;
mod aws_server;
mod backup;
mod cli;
mod close;
mod close_answers;
mod close_api;
mod close_backfill;
mod close_claims;
mod close_credentials;
mod close_fields;
mod close_histories;
mod close_judged;
mod close_kept;
mod close_looks;
mod close_month;
mod close_process;
mod close_room;
mod close_rotation;
mod close_steps;
mod close_told;
mod command_socket;
mod config;
mod crash;
mod delivery;
mod deploy;
mod disk;
mod door;
mod faults;
mod few_files;
mod file_sink;
mod filter;
mod flooder;
mod floods;
mod help;
mod http2;
mod http_floods;
mod http_sink;
mod http_tls;
mod ingress;
mod init;
#[cfg(feature = "engine-jetstream")]
mod jetstream;
#[cfg(all(feature = "engine-jetstream", feature = "sink-redis"))]
mod jetstream_chaos;
#[cfg(feature = "engine-jetstream")]
mod jetstream_cluster;
#[cfg(feature = "engine-jetstream")]
mod jetstream_copy;
#[cfg(feature = "engine-jetstream")]
mod jetstream_copy_letters;
#[cfg(feature = "engine-jetstream")]
mod jetstream_dead;
#[cfg(feature = "engine-jetstream")]
mod jetstream_nodes;
#[cfg(feature = "engine-jetstream")]
mod jetstream_power;
#[cfg(feature = "engine-jetstream")]
mod jetstream_setback;
mod json;
mod json_developing;
#[cfg(all(feature = "sink-kafka", feature = "aws"))]
mod kafka_line;
#[cfg(all(feature = "sink-kafka", feature = "aws"))]
mod kafka_server;
mod letters_shown;
mod limits;
mod listen;
mod log;
mod log_missing;
mod monitoring;
mod month;
#[cfg(all(feature = "sink-nats", feature = "sink-postgres"))]
mod nats_server;
mod output;
mod package;
mod page;
mod ports;
#[cfg(feature = "sink-postgres")]
mod postgres_server;
mod power;
mod power_disk;
mod promises;
mod properties;
mod proxies;
mod proxy;
#[cfg(feature = "sink-amqp")]
mod rabbit_server;
#[cfg(feature = "sink-redis")]
mod redis_server;
mod reload;
mod render;
mod render_sinks;
mod replays;
mod restart;
mod retention;
mod rules_test;
#[cfg(feature = "engine-jetstream")]
mod second_engine;
mod secrets;
mod shown;
#[cfg(all(feature = "aws", feature = "sink-pubsub", feature = "sink-slack"))]
mod sink_floods;
mod sink_types;
mod sinks;
#[cfg(all(
    feature = "aws",
    feature = "sink-amqp",
    feature = "sink-email",
    feature = "sink-kafka",
    feature = "sink-nats",
    feature = "sink-postgres",
    feature = "sink-pubsub",
    feature = "sink-slack",
    feature = "sink-sqlite"
))]
mod sinks_alike;
#[cfg(all(feature = "sink-amqp", feature = "sink-postgres"))]
mod sinks_amqp;
#[cfg(all(feature = "sink-amqp", feature = "sink-postgres"))]
mod sinks_amqp_faults;
#[cfg(feature = "aws")]
mod sinks_aws;
#[cfg(feature = "aws-messages")]
mod sinks_aws_queues;
#[cfg(feature = "sink-email")]
mod sinks_email;
#[cfg(all(feature = "sink-kafka", feature = "aws"))]
mod sinks_kafka;
#[cfg(all(feature = "sink-nats", feature = "sink-postgres"))]
mod sinks_nats;
#[cfg(all(feature = "sink-nats", feature = "sink-postgres"))]
mod sinks_nats_ways;
#[cfg(feature = "sink-pubsub")]
mod sinks_pubsub;
#[cfg(all(feature = "sink-postgres", feature = "sink-redis"))]
mod sinks_redis;
#[cfg(all(feature = "sink-postgres", feature = "sink-redis"))]
mod sinks_redis_ways;
#[cfg(all(
    feature = "sink-amqp",
    feature = "sink-nats",
    feature = "sink-postgres",
    feature = "sink-sqlite"
))]
mod sinks_setup;
#[cfg(feature = "sink-slack")]
mod sinks_slack;
#[cfg(all(feature = "sink-postgres", feature = "sink-sqlite"))]
mod sinks_sql;
#[cfg(all(feature = "sink-postgres", feature = "sink-sqlite"))]
mod sinks_sql_rows;
#[cfg(feature = "sink-email")]
mod smtp_server;
#[cfg(all(feature = "engine-jetstream", feature = "sink-nats", feature = "sink-postgres"))]
mod state;
mod status;
mod takeover;
mod tls;
mod waiting;
#[cfg(any(feature = "sink-pubsub", feature = "sink-slack"))]
mod web;
