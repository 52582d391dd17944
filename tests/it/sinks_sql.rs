//! The sinks that keep the mark with the rows, with the daemon and a real database: each event is there once, whatever is killed,
//! cut off or taken away. What the sinks do by themselves is tested beside them (`src/sinks/postgres/tests.rs`,
//! `src/sinks/sqlite/tests.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::campaign;
use crate::harness::{Daemon, body, until};
use crate::postgres_server::{Proxy, Server};

/// What every sink here has: it starts with the first event and does not wait long.
const EAGER: &str = "start = \"beginning\"\ntimeout = \"4s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

pub fn postgres(url: &str) -> String {
    format!("[[sinks]]\nname = \"db\"\ntype = \"postgres\"\nurl = \"{url}\"\n{EAGER}")
}

pub fn sqlite(path: &Path) -> String {
    format!(
        "[[sinks]]\nname = \"db\"\ntype = \"sqlite\"\npath = \"{}\"\n{EAGER}",
        path.display()
    )
}

/// A server, and a daemon whose sink there is done with so many events; `None` where there is no server.
async fn with_postgres(events: u64) -> Option<(Server, Daemon)> {
    let server = Server::start("").await?;
    let daemon = Daemon::start(&postgres(&server.url())).await;
    store(&daemon, 1..=events).await;
    Some((server, daemon))
}

/// A daemon whose sink in a database file is done with so many events, and the file.
async fn with_sqlite(events: u64) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::new("");
    let path = daemon.path("events.db");
    daemon.configure(&sqlite(&path));
    daemon.run().await;
    store(&daemon, 1..=events).await;
    (daemon, path)
}

/// Stores events and waits until the sink is done with them.
async fn store(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>) {
    if !ids.is_empty() {
        daemon.store(ids).await;
        daemon.done("db").await;
    }
}

/// What becomes of each row that a consumer takes: it is moved, in one transaction. No constraint: what comes twice is there twice.
pub const TAKEN: &str = "CREATE TABLE IF NOT EXISTS taken (seq bigint, event text)";

/// The event under a Seq, as any JSON of the same value.
fn expected(id: u64) -> serde_json::Value {
    let text = body(id);
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["event"].clone()
}

/// Each event that was answered exactly once, with what was sent.
pub fn assert_once(rows: &[(i64, String)], by_seq: &BTreeMap<u64, u64>) {
    let mut seqs: Vec<u64> = rows.iter().map(|(seq, _)| seq.cast_unsigned()).collect();
    seqs.sort_unstable();
    let all: Vec<u64> = by_seq.keys().copied().collect();
    assert_eq!(seqs, all, "I4: each event exactly once");
    for (seq, event) in rows {
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        assert_eq!(event, expected(by_seq[&(seq.cast_unsigned())]), "Seq {seq}");
    }
}

/// Somebody who takes rows away while more come, whatever happens to the server.
struct Consumer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Consumer {
    fn of_postgres(url: String) -> Consumer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut taken = 0;
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
                    let connection = tokio::spawn(connection);
                    while !stopped.load(Ordering::Relaxed) {
                        let take = "WITH chosen AS (SELECT seq FROM closehook_events ORDER BY random() LIMIT 20), \
                             gone AS (DELETE FROM closehook_events e USING chosen WHERE e.seq = chosen.seq RETURNING e.seq, e.event) \
                             INSERT INTO taken SELECT seq, event::text FROM gone";
                        match client.execute(take, &[]).await {
                            Ok(some) => taken += some,
                            // The table may not be there yet. A client without a connection needs a new one.
                            Err(_) if !client.is_closed() => {}
                            Err(_) => break,
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    connection.abort();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            taken
        });
        Consumer { stop, task }
    }

    fn of_sqlite(path: &Path) -> Consumer {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), path.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let mut taken = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                let Ok(mut connection) =
                    Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)
                else {
                    continue;
                };
                connection.busy_timeout(Duration::from_secs(5)).unwrap();
                let take = |connection: &mut Connection| -> rusqlite::Result<usize> {
                    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                    transaction.execute(TAKEN, [])?;
                    let some: Vec<i64> = transaction
                        .prepare("SELECT rowid FROM closehook_events ORDER BY random() LIMIT 20")?
                        .query_map([], |row| row.get(0))?
                        .collect::<Result<_, _>>()?;
                    for row in &some {
                        transaction.execute(
                            "INSERT INTO taken SELECT seq, event FROM closehook_events WHERE rowid = ?1",
                            [row],
                        )?;
                        transaction.execute("DELETE FROM closehook_events WHERE rowid = ?1", [row])?;
                    }
                    transaction.commit()?;
                    Ok(some.len())
                };
                while !stopped.load(Ordering::Relaxed) {
                    match take(&mut connection) {
                        Ok(some) => taken += some as u64,
                        Err(_) => break,
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            taken
        });
        Consumer { stop, task }
    }

    /// How many it has taken.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

pub async fn postgres_rows(server: &Server) -> Vec<(i64, String)> {
    let sql = "SELECT seq, event::text FROM closehook_events UNION ALL SELECT seq, event FROM taken";
    let rows = server.admin().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Of a database whose consumer has taken some, or where there was none.
pub fn sqlite_rows(path: &Path) -> Vec<(i64, String)> {
    let connection = Connection::open(path).unwrap();
    connection.execute(TAKEN, []).unwrap();
    let sql = "SELECT seq, event FROM closehook_events UNION ALL SELECT seq, event FROM taken";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_each_event_once_whenever_the_daemon_or_the_server_is_killed() {
    kill_postgres(postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_has_each_event_once_whenever_the_daemon_is_killed() {
    kill_sqlite(sqlite).await;
}

#[async_trait::async_trait]
impl campaign::Peer for Server {
    fn kill(&mut self) {
        Server::kill(self);
    }

    async fn run(&mut self) {
        Server::run(self).await;
    }
}

/// The daemon and the server are killed under load, while somebody takes rows away: the table has a column `seq` and one `event`.
/// `CLOSEHOOK_TEST_KILLS` asks for more rounds than CI's 2.
pub async fn kill_postgres(config: impl Fn(&str) -> String) {
    let Some(mut server) = Server::start("").await else {
        return;
    };
    server.sql(TAKEN).await;
    let mut daemon = Daemon::new(&config(&server.url()));
    let consumer = Consumer::of_postgres(server.url());
    let by_seq = campaign::kills(&mut daemon, Some(&mut server), "db").await;
    assert!(consumer.stop().await > 0, "the consumer has taken some meanwhile");
    assert_once(&postgres_rows(&server).await, &by_seq);
    daemon.stop().await;
}

/// The same with a database in a file, which has no server.
pub async fn kill_sqlite(config: impl Fn(&Path) -> String) {
    let mut daemon = Daemon::new("");
    let path = daemon.path("events.db");
    daemon.configure(&config(&path));
    let consumer = Consumer::of_sqlite(&path);
    let by_seq = campaign::kills(&mut daemon, None, "db").await;
    assert!(consumer.stop().await > 0, "the consumer has taken some meanwhile");
    assert_once(&sqlite_rows(&path), &by_seq);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_wherever_it_hurts_costs_nothing_and_repeats_nothing() {
    let Some(server) = Server::start("").await else { return };
    server.sql(TAKEN).await;
    let proxy = Proxy::start(server.port).await;
    let daemon = Daemon::start(&postgres(&proxy.url())).await;
    store(&daemon, 1..=1).await;
    // From now on each row is taken away in the moment it comes, so that nothing can be known by it.
    server
        .sql(
            "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO taken VALUES (NEW.seq, NEW.event::text); RETURN NULL; END $$;
             CREATE TRIGGER take BEFORE INSERT ON closehook_events FOR EACH ROW EXECUTE FUNCTION take()",
        )
        .await;
    let mut next = 2;
    // The answer to a commit is lost; a batch arrives by half; a transaction does not begin.
    for (at, whole) in [
        ("COMMIT\0", true),
        ("UNNEST", false),
        ("COMMIT\0", true),
        ("BEGIN", false),
    ] {
        proxy.cut(at, whole);
        daemon.store(next..=next + 4).await;
        next += 5;
        until("it was cut", async || proxy.has_cut()).await;
        daemon.done("db").await;
    }
    let by_seq = (1..next).map(|id| (id, id)).collect();
    assert_once(&postgres_rows(&server).await, &by_seq);
    assert_eq!(daemon.sink("db")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_is_one_dead_letter() {
    let Some((server, daemon)) = with_postgres(1).await else {
        return;
    };
    server
        .sql("ALTER TABLE closehook_events ADD CHECK (id <> 'ev_7')")
        .await;
    store(&daemon, 2..=20).await;
    assert_eq!(server.number("SELECT count(*) FROM closehook_events").await, 19);
    let dead = daemon.lines(&["dead", "list"]);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(dead[0].to_string().contains("check constraint"), "{dead:?}");
    // Once the table takes it, it goes there after all.
    server
        .sql("ALTER TABLE closehook_events DROP CONSTRAINT closehook_events_id_check")
        .await;
    daemon.ok(&["dead", "retry", "--all"]);
    until("the letter is delivered", async || daemon.sink("db")["dead"] == 0).await;
    assert_eq!(server.number("SELECT count(*) FROM closehook_events").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_makes_rows_anew_and_repeats_none() {
    let Some((server, daemon)) = with_postgres(10).await else {
        return;
    };
    server
        .sql("DELETE FROM closehook_events WHERE seq > 5; UPDATE closehook_events SET source = 'touched'")
        .await;
    daemon.ok(&["replay", "--sink", "db", "--yes"]);
    until("all rows are as they were", async || {
        server
            .number("SELECT count(*) FROM closehook_events WHERE source = 'webhook'")
            .await
            == 10
    })
    .await;
    assert_eq!(server.number("SELECT count(*) FROM closehook_events").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_and_given_back_cost_no_event() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE ROLE writer LOGIN PASSWORD 'hunter2-one'; GRANT CREATE ON SCHEMA public TO writer")
        .await;
    server.write("pg_hba.conf", "local all all trust\nhost all all all scram-sha-256\n");
    server.sql("SELECT pg_reload_conf()").await;
    let url = format!("postgres://writer@127.0.0.1:{}/postgres", server.port);
    let daemon = Daemon::new("");
    let secret = daemon.path("password");
    std::fs::write(&secret, "hunter2-one\n").unwrap();
    daemon.configure(&format!("{}password_file = \"{}\"\n", postgres(&url), secret.display()));
    let mut daemon = daemon;
    daemon.run().await;
    store(&daemon, 1..=3).await;
    // The password first, with the session that still had it.
    server
        .sql("ALTER ROLE writer PASSWORD 'hunter2-two'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'")
        .await;
    daemon.store(4..=6).await;
    daemon.says("db", "refuses the password").await;
    std::fs::write(&secret, "hunter2-two\n").unwrap();
    daemon.done("db").await;
    // Then the rights to a table.
    server.sql("ALTER TABLE closehook_events OWNER TO postgres").await;
    daemon.store(7..=9).await;
    daemon.says("db", "lacks a right").await;
    server.sql("ALTER TABLE closehook_events OWNER TO writer").await;
    daemon.done("db").await;
    assert_eq!(server.number("SELECT count(*) FROM closehook_events").await, 9);
    assert_eq!(daemon.sink("db")["dead"], 0);
    assert!(!daemon.stderr().contains("hunter2"), "no password in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_or_stands_still_is_waited_for() {
    let Some((mut server, daemon)) = with_postgres(3).await else {
        return;
    };
    server.freeze();
    daemon.store(4..=6).await;
    daemon.says("db", "did not answer").await;
    server.thaw();
    daemon.done("db").await;
    server.stop();
    daemon.store(7..=9).await;
    daemon.says("db", "can't be reached").await;
    server.run().await;
    daemon.done("db").await;
    assert_eq!(server.number("SELECT count(*) FROM closehook_events").await, 9);
    assert_eq!(daemon.sink("db")["dead"], 0);
}

/// A copy of a data directory on another machine is the same sink of the same log. Whichever of the two writes, no event is there
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_with_one_log_write_no_event_twice() {
    let Some((mut server, mut daemon)) = with_postgres(5).await else {
        return;
    };
    server.sql(TAKEN).await;
    server.stop();
    daemon.store(6..=200).await;
    daemon.stop().await;
    let mut other = Daemon::new(&postgres(&server.url()));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(daemon.data())
        .arg(other.data())
        .status();
    assert!(copied.unwrap().success());
    daemon.run().await;
    other.run().await;
    server.run().await;
    let consumer = Consumer::of_postgres(server.url());
    daemon.done("db").await;
    other.done("db").await;
    consumer.stop().await;
    let by_seq = (1..=200).map(|id| (id, id)).collect();
    assert_once(&postgres_rows(&server).await, &by_seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_waited_for_and_rows_that_are_taken_do_not_come_back() {
    let (mut daemon, path) = with_sqlite(3).await;
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("DELETE FROM closehook_events; BEGIN IMMEDIATE")
        .unwrap();
    daemon.store(4..=6).await;
    daemon.says("db", "another program has locked it").await;
    connection.execute_batch("COMMIT").unwrap();
    daemon.done("db").await;
    daemon.kill();
    daemon.run().await;
    store(&daemon, 7..=7).await;
    let seqs: Vec<i64> = sqlite_rows(&path).into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(seqs, [4, 5, 6, 7]);
    assert_eq!(daemon.sink("db")["dead"], 0);
}

/// A receiver that was put back empty has lost what it had, and nobody but us can know. It gets what is new, once, and it is said until
/// somebody has seen to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_empty_goes_on_and_is_not_taken_in_silence() {
    let (mut daemon, path) = with_sqlite(3).await;
    daemon.stop().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
    // Without the daemon, too, once it has been seen.
    daemon.run().await;
    store(&daemon, 4..=4).await;
    let seqs = |path: &Path| -> Vec<i64> { sqlite_rows(path).into_iter().map(|(seq, _)| seq).collect() };
    assert_eq!(seqs(&path), [4]);
    daemon
        .says("db", "no mark of this sink, although it had committed")
        .await;
    assert!(daemon.stderr().contains("ERROR"), "{}", daemon.stderr());
    daemon.stop().await;
    daemon.says("db", "up to event 3").await;
    daemon.run().await;
    daemon.says("db", "closehook replay --sink db").await;
    daemon.ok(&["replay", "--sink", "db", "--yes"]);
    until("nothing is missing", async || seqs(&path).len() == 4).await;
    until("it is seen to", async || daemon.sink("db")["last_error"].is_null()).await;
    daemon.stop().await;
    assert!(daemon.sink("db")["last_error"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_vanished_under_a_running_sink_is_not_taken_in_silence() {
    let Some((server, daemon)) = with_postgres(3).await else {
        return;
    };
    server
        .sql("DELETE FROM closehook_mark; DELETE FROM closehook_events WHERE seq = 1")
        .await;
    store(&daemon, 4..=6).await;
    daemon
        .says("db", "no mark of this sink, although it had committed")
        .await;
    // What somebody has taken away does not come back by itself.
    assert_eq!(
        server.number("SELECT sum(seq)::bigint FROM closehook_events").await,
        2 + 3 + 4 + 5 + 6
    );
    daemon.ok(&["sinks", "resume", "db"]);
    until("somebody says that nothing is missing", async || {
        daemon.sink("db")["last_error"].is_null()
    })
    .await;
    store(&daemon, 7..=7).await;
    assert!(daemon.sink("db")["last_error"].is_null(), "the mark is there again");
}

/// The lines of the reference that show a sink of a type, without the marks that make them comments.
fn example(kind: &str) -> String {
    let reference = std::fs::read_to_string("config/closehook.toml").unwrap();
    let lines: Vec<&str> = reference.lines().collect();
    let name = format!("# type = \"{kind}\"");
    let at = lines.iter().rposition(|line| *line == name).unwrap();
    let begin = lines[..at].iter().rposition(|line| *line == "# [[sinks]]").unwrap();
    let shown = lines[begin..].iter().take_while(|line| line.starts_with("# "));
    shown
        .map(|line| line.trim_start_matches("# ").to_owned() + "\n")
        .collect()
}

#[test]
fn check_accepts_the_examples_of_the_reference_and_refuses_a_shared_table() {
    let daemon = Daemon::new("");
    // What the examples name is here.
    let made = rcgen::generate_simple_self_signed(vec!["db.example.com".to_owned()]).unwrap();
    for (name, text) in [
        ("db-ca.pem", made.cert.pem()),
        ("db-client.pem", made.cert.pem()),
        ("db-client.key", made.signing_key.serialize_pem()),
        ("warehouse", "hunter2".to_owned()),
    ] {
        std::fs::write(daemon.path(name), text).unwrap();
    }
    let here = |text: String| text.replace("/etc/closehook/", "DIR/").replace("credential:", "DIR/");
    let (one, other) = (here(example("postgres")), here(example("sqlite")));
    daemon.configure(&format!("{one}{other}"));
    daemon.ok(&["check"]);
    let twice = format!("{one}{}", one.replace("name = \"warehouse\"", "name = \"again\""));
    daemon.configure(&twice);
    let said = daemon.fails(2, &["check"]);
    assert!(
        said.contains("would both write the table crm.deals of db.example.com:5432/crm"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_url_is_shown_nowhere() {
    let Some(server) = Server::start("").await else { return };
    let url = server.url().replace("postgres@", "postgres:hunter2@") + "_not";
    let daemon = Daemon::start(&postgres(&url)).await;
    daemon.store(1..=1).await;
    daemon.says("db", "no such database").await;
    let mut said = daemon.stderr();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sinks", "list"],
        &["sinks", "list", "--json"],
        &["check", "--probe"],
        &["check", "--probe", "--json"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said += &daemon.metrics().await;
    assert!(said.contains("no such database"));
    assert!(!said.contains("hunter2"), "{said}");
    // Nor where the configuration is wrong.
    daemon.configure(&postgres(&format!("{url}?colour=red")));
    let said = daemon.fails(2, &["check"]);
    assert!(said.contains("colour") && !said.contains("hunter2"), "{said}");
}
