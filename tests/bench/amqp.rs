//! A backlog to RabbitMQ, beside the same messages published by hand: with lapin, persistent and mandatory, as many on their way at a
//! time, each confirmed. (RabbitMQ's own `PerfTest` can't be had from a registry.)

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;

use crate::load::{Bodies, flood};
use crate::process::Daemon;
use crate::rabbit_server::Server;
use crate::sql::{WAITING, to_sink};
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// How often both take turns.
const ROUNDS: usize = 3;

/// Messages on their way by hand: as many as the sink has by default.
const BATCH: usize = 500;

/// The queue of both.
const QUEUE: &str = "all";

/// The amqp sink.
pub async fn sink(dir: &Path, report: &mut Report) {
    let Some(server) = Server::start("", &[]).await else {
        return;
    };
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    server.queue("%2F", QUEUE, json!({})).await;
    let bodies = Bodies::new(7);
    let by_hand: Vec<Vec<u8>> = (0..WAITING).map(|_| bodies.fresh()).collect();
    let connection = Connection::connect(&server.url("%2F"), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let looking = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let config = format!(
            "type = \"amqp\"\nurl = \"{}\"\nrouting_key = \"{QUEUE}\"\n",
            server.url("%2F")
        );
        let daemon = to_sink(dir, &format!("rabbit-{round}"), &config, async |_| {
            i64::from(waiting(&looking).await)
        })
        .await;
        purge(&looking).await;
        let began = Instant::now();
        for batch in by_hand.chunks(BATCH) {
            publish(&channel, batch).await;
        }
        let hand = WAITING as f64 / began.elapsed().as_secs_f64();
        purge(&looking).await;
        rounds.push((daemon, daemon / hand, hand));
    }
    let (rate, ratio, hand) = median_round(rounds);
    report.line(
        "log to RabbitMQ",
        &per_second(rate),
        &format!("lapin by hand {}", per_second(hand)),
        ratio,
        Must::BeAtLeast(0.6),
    );
}

/// Messages in the queue.
async fn waiting(channel: &Channel) -> u32 {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare(QUEUE.into(), passive, FieldTable::default())
        .await;
    queue.unwrap().message_count()
}

async fn purge(channel: &Channel) {
    let purged = channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await;
    assert_eq!(u64::from(purged.unwrap()), WAITING, "each event once");
}

/// All of a batch are on their way before the first is waited for, and none is forgotten.
async fn publish(channel: &Channel, bodies: &[Vec<u8>]) {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let published = bodies.iter().map(|body| {
        let mut headers = FieldTable::default();
        for name in ["seq", "type", "event-id", "key", "lead-id", "received-at", "source"] {
            let value = AMQPValue::LongString("ev_1:2024-02-15T12:48:23.395000".into());
            headers.insert(ShortString::from(format!("closehook-{name}")), value);
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id("ev_1:2024-02-15T12:48:23.395000".into())
            .with_headers(headers);
        channel.basic_publish("".into(), QUEUE.into(), options, body, properties)
    });
    let confirms = futures::future::join_all(published).await;
    let confirmations = futures::future::join_all(confirms.into_iter().map(Result::unwrap)).await;
    assert!(
        confirmations
            .into_iter()
            .all(|confirmation| confirmation.unwrap().is_ack())
    );
}
