//! A backlog to a stream of NATS JetStream, beside messages that are published by hand with the library's own JetStream client, as
//! `nats bench js pub` does it: so many at once, each acknowledged, each with an id.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::load::{Bodies, flood};
use crate::nats_server::Server;
use crate::process::Daemon;
use crate::sql::{WAITING, line, to_sink};
use crate::{CONNECTIONS, Report};

/// How often both take turns.
const ROUNDS: usize = 3;

/// Messages at once by hand, as many as the sink's by default.
const BATCH: usize = 1000;

pub async fn sink(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    let Some(server) = Server::start("").await else { return };
    let messages: Vec<(String, Bytes)> = (0..WAITING)
        .map(|number| (format!("ev_{number}:2024-02-15T12:48:23.395000"), bodies.fresh().into()))
        .collect();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let config = format!(
            "type = \"nats\"\nservers = \"{}\"\nsubject = \"bench.events\"\n",
            server.url()
        );
        server.stream("BENCH", &["bench.>"], &Value::Null).await;
        let count = async |_: &str| server.count("BENCH").await.cast_signed();
        let daemon = to_sink(dir, &format!("nats-{round}"), &config, count).await;
        // The ids are known there: the same ones would be repeats.
        server.good("STREAM.DELETE.BENCH", &Value::Null).await;
        server.stream("BENCH", &["bench.>"], &json!({})).await;
        let hand = by_hand(&server, &messages).await;
        assert_eq!(server.count("BENCH").await, WAITING);
        server.good("STREAM.DELETE.BENCH", &Value::Null).await;
        rounds.push((daemon, daemon / hand, hand));
    }
    line(report, "log to nats", "by hand", rounds, 0.6);
}

async fn by_hand(server: &Server, messages: &[(String, Bytes)]) -> f64 {
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let began = Instant::now();
    for batch in messages.chunks(BATCH) {
        let mut acks = Vec::with_capacity(batch.len());
        for (id, body) in batch {
            let message = jetstream::message::PublishMessage::build()
                .payload(body.clone())
                .message_id(id);
            acks.push(context.send_publish("bench.events", message).await.unwrap());
        }
        for ack in acks {
            ack.await.unwrap();
        }
    }
    messages.len() as f64 / began.elapsed().as_secs_f64()
}
