//! A backlog to a database, beside rows that are written by hand: ready arrays, one statement a batch, the same table.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::load::{Bodies, flood};
use crate::postgres_server::Server;
use crate::process::Daemon;
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// Events waiting.
pub const WAITING: u64 = 60_000;

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
            let admin = server.admin().await;
            // Neither table is there at first.
            let mark = async |sink: &str| {
                let sql = "SELECT seq FROM closehook_mark WHERE sink = $1";
                let parameters = [(
                    &sink as &(dyn tokio_postgres::types::ToSql + Sync),
                    tokio_postgres::types::Type::TEXT,
                )];
                let row = admin.query_typed_opt(sql, &parameters).await.ok().flatten();
                row.map_or(0, |row| row.get::<_, i64>(0))
            };
            let daemon = to_sink(dir, &format!("postgres-{round}"), &config, mark).await;
            assert_eq!(
                server.number("SELECT count(*) FROM closehook_events").await,
                WAITING as i64
            );
            server.sql("TRUNCATE closehook_events").await;
            let hand = by_hand(&server, &rows).await;
            server.sql("TRUNCATE closehook_events").await;
            rounds.push((daemon, daemon / hand, hand));
        }
        line(report, "log to postgres", "UNNEST by hand", rounds, 0.7);
    }
    // By hand a database is made as SQLite makes it; the sink makes one with larger pages, and by hand that is written, too.
    let (path, plain) = (dir.join("events.db"), dir.join("plain.db"));
    let mut plain = wal(&plain);
    let (mut rounds, mut alike) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let config = format!(
            "type = \"sqlite\"
path = \"{}\"
",
            path.display()
        );
        let looking = rusqlite::Connection::open(&path).unwrap();
        let mark = async |sink: &str| {
            let sql = "SELECT seq FROM closehook_mark WHERE sink = ?1";
            looking.query_row(sql, [sink], |row| row.get(0)).unwrap_or(0)
        };
        let daemon = to_sink(dir, &format!("sqlite-{round}"), &config, mark).await;
        let empty = |connection: &rusqlite::Connection| {
            let gone = connection.execute("DELETE FROM closehook_events", []).unwrap();
            assert_eq!(gone as u64, WAITING);
        };
        let mut connection = wal(&path);
        empty(&connection);
        let hand = by_hand_to_sqlite(&mut connection, &rows);
        empty(&connection);
        alike.push((daemon, daemon / hand, hand));
        if round == 0 {
            let table = "SELECT sql FROM sqlite_schema WHERE name = 'closehook_events'";
            let table: String = connection.query_row(table, [], |row| row.get(0)).unwrap();
            plain.execute_batch(&table).unwrap();
        }
        let hand = by_hand_to_sqlite(&mut plain, &rows);
        empty(&plain);
        rounds.push((daemon, daemon / hand, hand));
    }
    line(report, "log to sqlite", "batches by hand", rounds, 0.7);
    let (_, ratio, hand) = median_round(alike);
    Report::note(&format!(
        "batches by hand into the database that the sink has made: {}, beside which it is {ratio:.2}",
        per_second(hand)
    ));
}

/// A connection that writes as the sink does: to a write-ahead log, and synced at each commit.
fn wal(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection
}

/// The median of rounds of (rate, ratio, rate by hand).
pub fn line(report: &mut Report, name: &str, peer: &str, rounds: Vec<(f64, f64, f64)>, limit: f64) {
    let (rate, ratio, hand) = median_round(rounds);
    report.line(
        name,
        &per_second(rate),
        &format!("{peer} {}", per_second(hand)),
        ratio,
        Must::BeAtLeast(limit),
    );
}

/// Events a second from the log into a sink that was never seen before, from its first commit to its last. `mark`: how many it has.
pub async fn to_sink(dir: &Path, name: &str, config: &str, mark: impl AsyncFn(&str) -> i64) -> f64 {
    // Looking takes the server's time.
    const LOOK: Duration = Duration::from_millis(50);
    let config = format!("[[sinks]]\nname = \"{name}\"\nstart = \"beginning\"\n{config}");
    let daemon = Daemon::start_only(dir, &config);
    let first = loop {
        match mark(name).await {
            0 => tokio::time::sleep(LOOK).await,
            first => break first,
        }
    };
    let began = Instant::now();
    while mark(name).await < WAITING as i64 {
        assert!(began.elapsed() < Duration::from_secs(300), "the sink does not get done");
        tokio::time::sleep(LOOK).await;
    }
    let rate = (WAITING as i64 - first) as f64 / began.elapsed().as_secs_f64();
    drop(daemon);
    rate
}

/// All columns from arrays, and a mark in the same transaction: what the project's figure for `UNNEST` was measured with.
async fn by_hand(server: &Server, rows: &Rows) -> f64 {
    let client = server.admin().await;
    let insert = client
        .prepare(
            "INSERT INTO closehook_events (seq, id, date_updated, received_at, type, object_id, lead_id, source, event) \
             SELECT seq, id, date_updated, now(), type, object_id, lead_id, source, event::jsonb \
             FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[]) \
             AS r(seq, id, date_updated, type, object_id, lead_id, source, event)",
        )
        .await
        .unwrap();
    let mark = client
        .prepare("UPDATE closehook_mark SET seq = $1, mark = $2")
        .await
        .unwrap();
    let began = Instant::now();
    for at in (0..rows.seq.len()).step_by(BATCH) {
        let range = at..(at + BATCH).min(rows.seq.len());
        let (seq, id, event) = (&rows.seq[range.clone()], &rows.id[range.clone()], &rows.event[range]);
        let (moment, kind) = (
            vec!["2024-02-15T12:48:23.395000"; id.len()],
            vec!["lead.updated"; id.len()],
        );
        let source = vec!["webhook"; id.len()];
        client.batch_execute("BEGIN").await.unwrap();
        client
            .execute(&insert, &[&seq, &id, &moment, &kind, &id, &id, &source, &event])
            .await
            .unwrap();
        client.execute(&mark, &[&seq[seq.len() - 1], &"by hand"]).await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
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
