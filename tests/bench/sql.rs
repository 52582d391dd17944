//! A backlog to a database, beside rows that are written by hand: ready arrays, one statement a batch, the same table.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::load::{Bodies, flood};
use crate::postgres_server::Server;
use crate::process::Daemon;
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// Events waiting.
const WAITING: u64 = 60_000;

/// How often both take turns.
const ROUNDS: usize = 3;

/// Rows of one statement by hand.
const BATCH: usize = 500;

/// What by hand is written in a row.
struct Rows {
    seq: Vec<i64>,
    id: Vec<String>,
    event: Vec<String>,
}

impl Rows {
    /// As many as are waiting, from other bodies of the same kind.
    fn new() -> Rows {
        let bodies = Bodies::new(7);
        let mut rows = Rows {
            seq: (1..=WAITING as i64).collect(),
            id: Vec::new(),
            event: Vec::new(),
        };
        for _ in 0..WAITING {
            let body = String::from_utf8(bodies.fresh()).unwrap();
            let event = closehook::json::Node::new(&body).get("event").unwrap();
            rows.id.push(event.get("id").unwrap().as_string().unwrap().into_owned());
            rows.event.push(closehook::json::compact(event.raw()));
        }
        rows
    }
}

/// PostgreSQL and SQLite.
pub async fn sinks(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    let rows = Rows::new();
    // Its defaults: each commit is synced.
    if let Some(server) = Server::start("fsync = on\n").await {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let config = format!("type = \"postgres\"\nurl = \"{}\"\n", server.url());
            let daemon = to_sink(dir, round, &config);
            assert_eq!(
                server.number("SELECT count(*) FROM closehook_events").await,
                WAITING as i64
            );
            server.sql("TRUNCATE closehook_events").await;
            let hand = by_hand(&server, &rows).await;
            server.sql("TRUNCATE closehook_events").await;
            rounds.push((daemon, daemon / hand, hand));
        }
        line(report, "log to postgres", "UNNEST by hand", rounds);
    }
    let path = dir.join("events.db");
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let daemon = to_sink(
            dir,
            round,
            &format!("type = \"sqlite\"\npath = \"{}\"\n", path.display()),
        );
        let empty = |connection: &rusqlite::Connection| {
            let gone = connection.execute("DELETE FROM closehook_events", []).unwrap();
            assert_eq!(gone as u64, WAITING);
        };
        let mut connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
            .unwrap();
        connection.pragma_update(None, "synchronous", "FULL").unwrap();
        empty(&connection);
        let hand = by_hand_to_sqlite(&mut connection, &rows);
        empty(&connection);
        rounds.push((daemon, daemon / hand, hand));
    }
    line(report, "log to sqlite", "batches by hand", rounds);
}

fn line(report: &mut Report, name: &str, peer: &str, rounds: Vec<(f64, f64, f64)>) {
    let (rate, ratio, hand) = median_round(rounds);
    report.line(
        name,
        &per_second(rate),
        &format!("{peer} {}", per_second(hand)),
        ratio,
        Must::BeAtLeast(0.7),
    );
}

/// Events a second from the log into a sink that was never seen before, the daemon's start included.
fn to_sink(dir: &Path, round: usize, config: &str) -> f64 {
    let config = format!("[[sinks]]\nname = \"round-{round}\"\nstart = \"beginning\"\n{config}");
    let began = Instant::now();
    let daemon = Daemon::start(dir, &config);
    daemon.wait_for_sink(WAITING);
    let rate = WAITING as f64 / began.elapsed().as_secs_f64();
    daemon.kill();
    rate
}

async fn by_hand(server: &Server, rows: &Rows) -> f64 {
    let client = server.admin().await;
    let statement = client
        .prepare(
            "INSERT INTO closehook_events (seq, id, date_updated, received_at, type, object_id, lead_id, source, event) \
             SELECT seq, id, '2024-02-15T12:48:23.395000', now(), 'lead.updated', id, id, 'webhook', event::jsonb \
             FROM UNNEST($1::bigint[], $2::text[], $3::text[]) AS r(seq, id, event)",
        )
        .await
        .unwrap();
    let began = Instant::now();
    for at in (0..rows.seq.len()).step_by(BATCH) {
        let range = at..(at + BATCH).min(rows.seq.len());
        let (seq, id, event) = (&rows.seq[range.clone()], &rows.id[range.clone()], &rows.event[range]);
        client.execute(&statement, &[&seq, &id, &event]).await.unwrap();
    }
    rows.seq.len() as f64 / began.elapsed().as_secs_f64()
}

fn by_hand_to_sqlite(connection: &mut rusqlite::Connection, rows: &Rows) -> f64 {
    let began = Instant::now();
    for at in (0..rows.seq.len()).step_by(BATCH) {
        let transaction = connection.transaction().unwrap();
        let mut statement = transaction
            .prepare(
                "INSERT INTO closehook_events (seq, id, date_updated, received_at, type, object_id, lead_id, source, event) \
                 VALUES (?1, ?2, '2024-02-15T12:48:23.395000', '2024-02-15T12:48:23.395000Z', 'lead.updated', ?2, ?2, 'webhook', ?3)",
            )
            .unwrap();
        for row in at..(at + BATCH).min(rows.seq.len()) {
            statement
                .execute(rusqlite::params![rows.seq[row], rows.id[row], rows.event[row]])
                .unwrap();
        }
        drop(statement);
        transaction.commit().unwrap();
    }
    rows.seq.len() as f64 / began.elapsed().as_secs_f64()
}
