//! A backlog to a stream, beside the same entries that are added by hand: ready texts, one script a batch, which moves a mark too; one
//! connection, nothing synced on either side, as Redis is by default.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::load::{Bodies, flood};
use crate::process::Daemon;
use crate::redis_server::{Kind, Server};
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// Events waiting.
const WAITING: u64 = 100_000;

/// How often both take turns.
const ROUNDS: usize = 3;

/// Entries of one script by hand.
const BATCH: usize = 500;

/// What whoever does it by hand would write.
const BY_HAND: &str = "local at = 2
    for n = 1, ARGV[1] do
        redis.call('XADD', KEYS[1], '*', unpack(ARGV, at, at + 15))
        at = at + 16
    end
    redis.call('HSET', KEYS[2], 'seq', ARGV[at])
    return 'OK'";

/// Redis and Valkey.
pub async fn sinks(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    let entries = entries();
    for (kind, name) in [(Kind::Redis, "redis"), (Kind::Valkey, "valkey")] {
        let Some(server) = Server::start(kind, &["--appendonly", "no"]).await else {
            continue;
        };
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let daemon = to_sink(dir, &format!("{name}-{round}"), &server).await;
            assert_eq!(server.ask::<u64>(&["XLEN", "close"]), WAITING);
            server.tell(&["DEL", "close"]);
            let hand = by_hand(&server, &entries);
            assert_eq!(server.ask::<u64>(&["XLEN", "hand"]), WAITING);
            server.tell(&["DEL", "hand"]);
            rounds.push((daemon, daemon / hand, hand));
        }
        let (rate, ratio, hand) = median_round(rounds);
        report.line(
            &format!("log to {name}"),
            &per_second(rate),
            &format!("scripts by hand {}", per_second(hand)),
            ratio,
            Must::BeAtLeast(0.5),
        );
    }
}

/// The fields of as many entries as are waiting, from other bodies of the same kind.
fn entries() -> Vec<[Vec<u8>; 16]> {
    let bodies = Bodies::new(7);
    let entry = |seq: u64| {
        let body = bodies.fresh();
        let id = {
            let text = std::str::from_utf8(&body).unwrap();
            let event = closehook::json::Node::new(text).get("event").unwrap();
            event.get("id").unwrap().as_string().unwrap().into_owned()
        };
        let key = format!("{id}:2024-02-15T12:48:23.395000");
        let text = |text: &str| text.as_bytes().to_vec();
        [
            text("closehook-seq"),
            text(&seq.to_string()),
            text("closehook-type"),
            text("lead.updated"),
            text("closehook-event-id"),
            text(&id),
            text("closehook-key"),
            text(&key),
            text("closehook-lead-id"),
            text("lead_xKOnxyTbGuJxbUOBkFW2nDbQRaDHkIxHYUp1HhR4vYx"),
            text("closehook-received-at"),
            text("2024-02-15T12:48:23.395000Z"),
            text("closehook-source"),
            text("webhook"),
            text("event"),
            body,
        ]
    };
    (1..=WAITING).map(entry).collect()
}

/// Events a second from the log into a stream by a sink that was never seen before, from its first commit to its last.
async fn to_sink(dir: &Path, name: &str, server: &Server) -> f64 {
    // Looking takes the server's time.
    const LOOK: Duration = Duration::from_millis(20);
    let config = format!(
        "[[sinks]]\nname = \"{name}\"\ntype = \"redis\"\nstart = \"beginning\"\nurl = \"{}\"\nstream = \"close\"\n",
        server.url()
    );
    let daemon = Daemon::start_only(dir, &config);
    let mut admin = server.admin();
    let mut len = || Server::ask_over::<u64>(&mut admin, &["XLEN", "close"]);
    let first = loop {
        match len() {
            0 => tokio::time::sleep(LOOK).await,
            first => break first,
        }
    };
    let began = Instant::now();
    while len() < WAITING {
        assert!(began.elapsed() < Duration::from_secs(300), "the sink does not get done");
        tokio::time::sleep(LOOK).await;
    }
    let rate = (WAITING - first) as f64 / began.elapsed().as_secs_f64();
    drop(daemon);
    rate
}

/// Over TCP, as the sink.
fn by_hand(server: &Server, entries: &[[Vec<u8>; 16]]) -> f64 {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let hash = redis::Script::new(BY_HAND).get_hash().to_owned();
    let _: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(BY_HAND)
        .query(&mut connection)
        .unwrap();
    let began = Instant::now();
    for (number, batch) in entries.chunks(BATCH).enumerate() {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&hash).arg(2).arg("hand").arg("mark").arg(batch.len());
        for text in batch.iter().flatten() {
            command.arg(&text[..]);
        }
        let _: String = command.arg(number).query(&mut connection).unwrap();
    }
    entries.len() as f64 / began.elapsed().as_secs_f64()
}
