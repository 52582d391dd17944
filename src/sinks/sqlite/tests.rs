//! The sink and its database. Tests that need the daemon too are `tests/it/sinks_sql.rs`.

use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use super::statements::{MARKS, events_table};
use super::writer::PAGE_BYTES;
use super::*;
use crate::config::Fault;
use crate::event::{Delivery, Origin};
use crate::sinks::common::line::tests::delivery;
use crate::sinks::common::rows::tests::{context, deliver, event, events, hasty, parts_and_wholes, reason};
use crate::sinks::tests;

mod layouts;

fn parsed(table: serde_json::Value) -> (Option<SinkOptions>, Vec<Fault>) {
    tests::parsed(&definition::TYPE, table)
}

fn kind(table: serde_json::Value) -> SinkOptions {
    tests::sound(&definition::TYPE, table)
}

/// A directory with a database in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.db");
    (dir, path)
}

fn seqs(connection: &Connection, table: &str) -> Vec<i64> {
    let mut statement = connection
        .prepare(&format!("SELECT seq FROM \"{table}\" ORDER BY seq"))
        .unwrap();
    statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

#[tokio::test]
async fn a_new_database_has_pages_for_events_and_one_that_is_there_keeps_its_own() {
    let (dir, new) = place();
    let old = dir.path().join("old.db");
    let made = Connection::open(&old).unwrap();
    made.execute_batch("PRAGMA page_size = 4096; CREATE TABLE mine (x)")
        .unwrap();
    for (path, bytes) in [(new, PAGE_BYTES), (old, 4096)] {
        let opened = kind(json!({"path": path})).open(context()).await.unwrap();
        // More than is handed over at a time.
        let outcomes = deliver(&opened, &events(1..151)).await.unwrap();
        assert_eq!(outcomes, vec![Outcome::Delivered; 150]);
        let looking = Connection::open(&path).unwrap();
        let is: i64 = looking.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
        assert_eq!(is, bytes, "{}", path.display());
        assert_eq!(seqs(&looking, EVENTS_TABLE), (1..151).collect::<Vec<i64>>());
    }
}

#[test]
fn faults_of_the_configuration_are_said() {
    let dir = tempfile::tempdir().unwrap();
    for (table, place) in [
        (json!({}), "sinks[0].path"),
        (json!({"path": ":memory:"}), "sinks[0].path"),
        (json!({"path": "file:x?mode=ro"}), "sinks[0].path"),
        (json!({"path": "x", "table": "a.b"}), "sinks[0].table"),
        (json!({"path": "x", "table": "closehook_mark"}), "sinks[0].table"),
        (json!({"path": "x", "table": "sqlite_x"}), "sinks[0].table"),
        (json!({"path": "x", "columns": {}}), "sinks[0].columns"),
    ] {
        let (_, faults) = parsed(table.clone());
        assert_eq!(faults.len(), 1, "{table}: {faults:?}");
        assert_eq!(faults[0].place, place, "{table}: {faults:?}");
    }
    for path in [dir.path(), Path::new("/dev/null")] {
        assert!(
            kind(json!({"path": path}))
                .fault()
                .unwrap()
                .contains("a database is a file")
        );
    }
    assert_eq!(kind(json!({"path": dir.path().join("new.db")})).fault(), None);
}

#[test]
fn two_sinks_can_not_share_a_table_however_its_file_is_named() {
    let (dir, path) = place();
    let link = dir.path().join("link.db");
    let of = |path: &Path, table: &str| kind(json!({"path": path, "table": table})).exclusive();
    let roundabout = dir.path().join(".").join("events.db");
    assert_eq!(of(&path, "events"), of(&roundabout, "Events"), "before it is there");
    std::fs::write(&path, "").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(of(&path, "events"), of(&link, "events"));
    assert_ne!(of(&path, "events"), of(&path, "others"));
}

#[tokio::test]
async fn rows_and_mark_are_one_and_the_mark_is_read_back() {
    let (_dir, path) = place();
    let kind = kind(json!({"path": path, "table": "My 'Events"}));
    let opened = kind.open(context()).await.unwrap();
    assert_eq!(opened.mark, None);
    let outcomes = deliver(&opened, &events(1..1001)).await.unwrap();
    assert_eq!(outcomes, vec![Outcome::Delivered; 1000]);
    let connection = Connection::open(&path).unwrap();
    assert_eq!(seqs(&connection, "My 'Events"), (1..1001).collect::<Vec<_>>());
    let row: Vec<String> = connection
        .query_row(
            "SELECT id, date_updated, received_at, type, object_id, lead_id, source, event FROM \"My 'Events\" WHERE seq = 7",
            [],
            |row| (0..8).map(|index| row.get(index)).collect(),
        )
        .unwrap();
    let event_text = crate::json::compact(event(7).event.object().raw());
    let received = "2023-11-14T22:13:20.000007Z";
    let expected = [
        "ev_7",
        "2024-02-15T12:48:23.395000",
        received,
        "lead.updated",
        "lead_7",
        "lead_7",
        "webhook",
        &event_text,
    ];
    assert_eq!(row, expected);
    drop(opened);
    let again = kind.open(context()).await.unwrap();
    let mark = again.mark.clone().unwrap();
    assert_eq!(
        (mark.epoch.as_str(), mark.seq.0, mark.text.as_str()),
        ("1", 1000, "mark 1000")
    );
    deliver(&again, &events(1001..1003)).await.unwrap();
    drop(again);
    for context in [
        Context {
            log_id: "log_2".into(),
            ..context()
        },
        Context {
            name: "other".into(),
            ..context()
        },
    ] {
        assert_eq!(kind.open(context).await.unwrap().mark, None);
    }
}

#[tokio::test]
async fn a_row_that_is_there_stays_and_what_comes_again_on_purpose_replaces_it() {
    let (_dir, path) = place();
    let opened = kind(json!({"path": path})).open(context()).await.unwrap();
    deliver(&opened, &events(1..4)).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("UPDATE closehook_events SET source = 'touched'; DELETE FROM closehook_events WHERE seq = 3")
        .unwrap();
    let again = |seq, origin| Delivery { origin, ..event(seq) };
    let replay = Origin::Replay("job".into());
    let batch = [
        event(1),
        again(2, Origin::Letter),
        again(2, replay.clone()),
        again(3, replay),
        event(4),
    ];
    assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; 5]);
    let mut statement = connection
        .prepare("SELECT seq, source FROM closehook_events ORDER BY seq")
        .unwrap();
    let rows: Vec<(i64, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let expected = [(1, "touched"), (2, "webhook"), (3, "webhook"), (4, "webhook")];
    assert_eq!(rows, expected.map(|(seq, source)| (seq, source.to_owned())));
}

/// Close withheld its data, and the whole event came later: it has the same key.
#[tokio::test]
async fn the_whole_event_takes_the_place_of_the_one_without_its_data() {
    let (_dir, path) = place();
    let opened = kind(json!({"path": path})).open(context()).await.unwrap();
    for batch in parts_and_wholes() {
        let count = batch.len();
        assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; count]);
    }
    let connection = Connection::open(&path).unwrap();
    let mut statement = connection
        .prepare("SELECT seq, json_type(event, '$.data') IS NOT NULL FROM closehook_events ORDER BY id")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let rows: Vec<(i64, bool)> = rows.map(Result::unwrap).collect();
    assert_eq!(rows, [(4, true), (2, false), (3, true), (7, true)]);
}

#[tokio::test]
async fn rows_that_are_taken_away_do_not_come_back_with_what_was_committed() {
    let (_dir, path) = place();
    let kind = kind(json!({"path": path}));
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &events(1..4)).await.unwrap();
    Connection::open(&path)
        .unwrap()
        .execute("DELETE FROM closehook_events", [])
        .unwrap();
    // The answer is lost with whoever waited for it.
    drop(opened);
    let opened = kind.open(context()).await.unwrap();
    let done = opened.mark.as_ref().unwrap().seq.0;
    deliver(&opened, &events(done + 1..6)).await.unwrap();
    assert_eq!(seqs(&Connection::open(&path).unwrap(), "closehook_events"), [4, 5]);
}

#[tokio::test]
async fn whoever_opened_last_writes_and_nobody_else() {
    let (dir, path) = place();
    // Another daemon knows nothing of what threads of this one do. By another name, neither does this one.
    let other = dir.path().join(".").join("events.db");
    let of = |path: &Path| kind(json!({"path": path}));
    let first = of(&path).open(context()).await.unwrap();
    deliver(&first, &[event(1)]).await.unwrap();
    let second = of(&other).open(context()).await.unwrap();
    assert!(reason(deliver(&first, &[event(2)]).await).contains("somebody else moved the mark"));
    deliver(&second, &[event(3)]).await.unwrap();
    assert_eq!(seqs(&Connection::open(&path).unwrap(), "closehook_events"), [1, 3]);
    // Where there is no mark yet, whoever commits first has it.
    let fresh = |path: &Path| {
        let context = Context {
            log_id: "log_3".into(),
            ..context()
        };
        let kind = of(path);
        async move { kind.open(context).await.unwrap() }
    };
    drop((first, second));
    let (first, second) = (fresh(&path).await, fresh(&other).await);
    deliver(&second, &[event(4)]).await.unwrap();
    assert!(reason(deliver(&first, &[event(5)]).await).contains("somebody else"));
}

#[tokio::test]
async fn a_bad_row_is_refused_alone() {
    let (_dir, path) = place();
    let opened = kind(json!({"path": path})).open(context()).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON closehook_events WHEN NEW.seq IN (17, 480)
             BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )
        .unwrap();
    let outcomes = deliver(&opened, &events(1..501)).await.unwrap();
    for (seq, outcome) in (1..).zip(&outcomes) {
        match outcome {
            Outcome::Delivered => assert!(![17, 480].contains(&seq)),
            Outcome::Reject { reason } => {
                assert!(
                    [17, 480].contains(&seq) && reason.text.contains("not this one"),
                    "{reason}"
                );
            }
            Outcome::Retry { reason, .. } | Outcome::Untried { reason } => panic!("{seq}: {reason}"),
            Outcome::Skipped | Outcome::Waits(_) => panic!("{seq}"),
        }
    }
    assert_eq!(seqs(&connection, "closehook_events").len(), 498);
    // A table that takes everything back loses nothing.
    connection
        .execute_batch(
            "DROP TRIGGER refuse; CREATE TRIGGER undo BEFORE INSERT ON closehook_events WHEN NEW.seq = 602
             BEGIN SELECT RAISE(ROLLBACK, 'all of it'); END",
        )
        .unwrap();
    assert!(reason(deliver(&opened, &events(600..605)).await).contains("all of it"));
    assert_eq!(
        seqs(&connection, "closehook_events").len(),
        498,
        "not even those before and after it"
    );
}

#[tokio::test]
async fn every_text_stays_as_it_is() {
    let (_dir, path) = place();
    let opened = kind(json!({"path": path})).open(context()).await.unwrap();
    let object = format!(
        r#"{{"id":"a\u0000b","n":[1e999999,0.10],"s":"\ud800 \u0000","deep":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    deliver(&opened, &[delivery(1, &format!("{{\"event\": {object} }}"))])
        .await
        .unwrap();
    let connection = Connection::open(&path).unwrap();
    let row: (String, String) = connection
        .query_row("SELECT id, event FROM closehook_events", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(row, ("a\0b".to_owned(), object));
}

#[tokio::test]
async fn what_is_wrong_with_the_database_says_what_to_do() {
    let (dir, path) = place();
    let why = async |table: serde_json::Value| reason(kind(table).open(hasty()).await);
    assert!(
        why(json!({"path": dir.path().join("no/where.db")}))
            .await
            .contains("the directory must be there")
    );
    let text = dir.path().join("text");
    std::fs::write(&text, "this is no database, but text that is long enough to look at").unwrap();
    assert!(why(json!({"path": text})).await.contains("no SQLite database"));
    assert!(
        why(json!({"path": path, "create": false}))
            .await
            .contains("must be there")
    );
    assert!(!path.exists(), "it was not made");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE short (id TEXT, date_updated TEXT)")
        .unwrap();
    assert!(
        why(json!({"path": path, "create": false}))
            .await
            .contains("no table closehook_events")
    );
    connection
        .execute_batch(&(events_table(&TableName::parse("closehook_events").unwrap()) + MARKS))
        .unwrap();
    // Something may be made of the events that goes there; without that it is seen with the first one.
    let short = kind(json!({"path": path, "table": "short", "create": false}));
    let opened = short.open(context()).await.unwrap();
    assert!(reason(deliver(&opened, &[event(1)]).await).contains("other columns"));
    drop(opened);

    // Locked by somebody, for longer than is waited, and then not any more.
    let kind = kind(json!({"path": path}));
    let opened = kind.open(hasty()).await.unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(reason(deliver(&opened, &[event(1)]).await).contains("another program has locked it"));
    drop(opened);
    assert!(reason(kind.open(hasty()).await).contains("another program has locked it"));
    connection.execute_batch("COMMIT").unwrap();
    let opened = kind.open(hasty()).await.unwrap();
    deliver(&opened, &[event(1)]).await.unwrap();

    // Taken away while it is open: what would be written there nobody would see.
    std::fs::rename(&path, dir.path().join("old.db")).unwrap();
    assert!(reason(deliver(&opened, &[event(2)]).await).contains("events.db"));
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE x (y)")
        .unwrap();
    assert!(reason(deliver(&opened, &[event(2)]).await).contains("was replaced"));
}

/// Root may write everything, but not to a file system that is mounted so.
fn mount(what: &[&str], at: &Path) -> bool {
    let mounted = std::process::Command::new("mount").args(what).arg(at).output();
    mounted.is_ok_and(|mounted| mounted.status.success())
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_and_one_that_can_only_be_read_cost_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("small");
    std::fs::create_dir(&at).unwrap();
    if !mount(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &at) {
        eprintln!("SKIPPED: mounting a tmpfs needs root");
        assert!(
            std::env::var_os("CLOSEHOOK_TEST_NO_SKIP").is_none(),
            "skipping is not allowed here"
        );
        return;
    }
    let _unmount = Unmount(at.clone());
    let path = at.join("events.db");
    let kind = kind(json!({"path": path}));
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &events(1..10)).await.unwrap();
    let _ = std::fs::write(at.join("ballast"), vec![1_u8; 4 << 20]);
    let large = |seq| {
        delivery(
            seq,
            &format!(r#"{{"event":{{"id":"ev_{seq}","s":"{}"}}}}"#, "x".repeat(200_000)),
        )
    };
    assert!(reason(deliver(&opened, &[large(10), large(11)]).await).contains("the disk is full"));
    drop(opened);
    std::fs::remove_file(at.join("ballast")).unwrap();
    let opened = kind.open(context()).await.unwrap();
    assert_eq!(opened.mark.as_ref().unwrap().seq.0, 9);
    deliver(&opened, &[large(10)]).await.unwrap();
    drop(opened);
    // Opening and closing takes the files beside it away.
    until_gone(&kind).await;
    // Whoever closes the database just now may still hold it.
    let patience = std::time::Instant::now();
    while !mount(&["-o", "remount,ro"], &at) {
        assert!(
            patience.elapsed() < Duration::from_secs(20),
            "it can't be made read-only"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = reason(kind.open(context()).await);
    assert!(
        said.contains("can't be written") || said.contains("can't be opened"),
        "{said}"
    );
    assert!(reason(kind.probe(context()).await).contains("can't be written"));
}

/// Waits until the thread of what was opened before has ended.
async fn until_gone(kind: &SinkOptions) {
    drop(kind.open(context()).await.unwrap());
    drop(kind.open(context()).await.unwrap());
}

#[tokio::test]
async fn a_probe_finds_whatever_would_keep_the_sink_from_being_opened() {
    let events = "seq INTEGER, id TEXT, date_updated TEXT, received_at TEXT, type TEXT, object_id TEXT, lead_id TEXT, source TEXT, event TEXT";
    let marks =
        "CREATE TABLE closehook_mark (log_id TEXT, sink TEXT, epoch TEXT, seq INTEGER, mark TEXT, updated_at TEXT";
    let keyed = format!("{marks}, PRIMARY KEY (log_id, sink));");
    let latest = "object_id TEXT, type TEXT, lead_id TEXT, date_updated TEXT, deleted_at TEXT, merged_into TEXT, seq INTEGER, event TEXT";
    for (made, table, part) in [
        (
            format!("CREATE TABLE closehook_events ({events}, UNIQUE (id, date_updated));"),
            json!({ "create": false }),
            "there is no table closehook_mark",
        ),
        (
            format!("CREATE TABLE closehook_events ({events}); {keyed}"),
            json!({}),
            "ON CONFLICT",
        ),
        (
            format!("CREATE TABLE closehook_latest ({latest}); {keyed}"),
            json!({ "mode": "latest" }),
            "ON CONFLICT",
        ),
        (
            "CREATE TABLE closehook_mark (log_id TEXT, sink TEXT);".to_owned(),
            json!({}),
            "no such column",
        ),
    ] {
        let (_dir, path) = place();
        Connection::open(&path).unwrap().execute_batch(&made).unwrap();
        let mut table = table;
        table["path"] = path.to_str().unwrap().into();
        let kind = kind(table);
        let probed = reason(kind.probe(context()).await);
        assert!(probed.contains(part), "{probed}");
        let opened = kind.open(context()).await.map(|_| String::new());
        assert!(reason(opened).contains(part), "{part}");
    }
}

#[tokio::test]
async fn a_probe_tells_what_would_happen_and_writes_nothing() {
    let (dir, path) = place();
    let of = |create: bool| kind(json!({"path": path, "create": create}));
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    assert!(of(true).probe(context()).await.unwrap().contains("will be made"));
    assert!(reason(of(false).probe(context()).await).contains("no such database"));
    assert_eq!(files(), 0);
    assert!(reason(kind(json!({"path": dir.path().join("no/x.db")})).probe(context()).await).contains("directory"));
    let kind = of(true);
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &[event(1)]).await.unwrap();
    let before = files();
    assert!(
        of(false).probe(context()).await.unwrap().contains("has the table"),
        "in the write-ahead log"
    );
    assert_eq!(files(), before);
    deliver(&opened, &[event(2)]).await.unwrap();
    drop(opened);
    until_gone(&kind).await;
    let before = files();
    assert!(of(false).probe(context()).await.unwrap().contains("has the table"));
    assert_eq!(files(), before);
}
