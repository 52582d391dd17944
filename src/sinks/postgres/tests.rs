//! The sink beside a real server. Tests that need the daemon too are `tests/it/sinks_sql.rs`.

use serde_json::json;

use super::*;
use crate::config::Fault;
use crate::event::{Delivery, Origin, Seq};
use crate::sinks::common::line::tests::delivery;
use crate::sinks::common::rows::tests::{context, deliver, event, events, hasty, parts_and_wholes, reason};
use crate::sinks::tests;

#[path = "../../../tests/it/postgres_server.rs"]
mod server;

mod encrypted;
mod layouts;
mod making;

use server::{Proxy, Server};

fn parsed(table: serde_json::Value) -> (Option<SinkOptions>, Vec<Fault>) {
    tests::parsed(&definition::TYPE, table)
}

fn kind(table: serde_json::Value) -> SinkOptions {
    tests::sound(&definition::TYPE, table)
}

async fn count(server: &Server, table: &str) -> i64 {
    server.number(&format!("SELECT count(*) FROM {table}")).await
}

#[test]
fn faults_of_the_configuration_are_said_without_the_password() {
    let (_, faults) = parsed(json!({}));
    assert_eq!(faults.len(), 1);
    let url = "postgres://u:hunter2@db/crm?sslrootcert=/ca.pem";
    for (table, place) in [
        (json!({"url": url, "password": "x"}), "sinks[0].password"),
        (json!({"url": url, "ca": "/x.pem"}), "sinks[0].ca"),
        (json!({"url": url, "cert": "/x.pem"}), "sinks[0].key"),
        (json!({"url": url, "key": "/x.pem"}), "sinks[0].cert"),
        (json!({"url": url, "table": "a.b.c"}), "sinks[0].table"),
        (json!({"url": url, "table": "x.closehook_mark"}), "sinks[0].table"),
        (json!({"url": "mysql://u:hunter2@db/crm"}), "sinks[0].url"),
        (json!({"url": url, "mode": "newest"}), "sinks[0].mode"),
    ] {
        let (_, faults) = parsed(table);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].place, place, "{faults:?}");
        assert!(!faults[0].message.contains("hunter2"), "{faults:?}");
    }
    assert!(!format!("{:?}", kind(json!({"url": url}))).contains("hunter2"));
}

#[test]
fn two_sinks_can_not_share_a_table_and_a_change_is_a_change() {
    let of = |url: &str, table: &str| kind(json!({"url": url, "table": table}));
    let one = of("postgres://u:a@DB/crm", "events");
    assert_eq!(
        one.exclusive(),
        of("postgres://v:b@db:5432/crm", "public.events").exclusive()
    );
    assert_ne!(one.exclusive(), of("postgres://u:a@db/crm", "Events").exclusive());
    assert_ne!(one.exclusive(), of("postgres://u:a@db/crm2", "events").exclusive());
    assert!(one.fingerprint() == of("postgres://u:a@DB/crm", "events").fingerprint());
    assert!(one.fingerprint() != of("postgres://u:b@DB/crm", "events").fingerprint());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_mark_are_one_and_the_mark_is_read_back() {
    let Some(server) = Server::start("").await else { return };
    server.sql("CREATE SCHEMA \"My Crm\"").await;
    let kind = kind(json!({"url": server.url(), "table": "My Crm.Events"}));
    let opened = kind.open(context()).await.unwrap();
    assert_eq!(opened.mark, None);
    let outcomes = deliver(&opened, &events(1..1001)).await.unwrap();
    assert_eq!(outcomes, vec![Outcome::Delivered; 1000]);
    assert_eq!(count(&server, "\"My Crm\".\"Events\"").await, 1000);
    let row = server
        .admin()
        .await
        .query_one(
            "SELECT seq, id, date_updated, received_at, type, object_id, lead_id, source, event::text FROM \"My Crm\".\"Events\" WHERE seq = 7",
            &[],
        )
        .await
        .unwrap();
    let text = |index: usize| row.get::<_, String>(index);
    assert_eq!(row.get::<_, i64>(0), 7);
    assert_eq!(
        (text(1).as_str(), text(2).as_str()),
        ("ev_7", "2024-02-15T12:48:23.395000")
    );
    assert_eq!(
        row.get::<_, Timestamp>(3),
        event(7).event.received_at,
        "to the microsecond"
    );
    assert_eq!((text(4).as_str(), text(5).as_str()), ("lead.updated", "lead_7"));
    assert_eq!((text(6).as_str(), text(7).as_str()), ("lead_7", "webhook"));
    assert!(text(8).contains("\"data\": {\"n\": 7}"), "{}", text(8));

    // A second one opened on the same mark knows where the first was, and the first can't write any more.
    let again = kind.open(context()).await.unwrap();
    let mark = again.mark.clone().unwrap();
    assert_eq!(
        (mark.epoch.as_str(), mark.seq, mark.text.as_str()),
        ("1", Seq(1000), "mark 1000")
    );
    assert!(reason(deliver(&opened, &events(1001..1003)).await).contains("somebody else moved the mark"));
    assert_eq!(count(&server, "\"My Crm\".\"Events\"").await, 1000);
    deliver(&again, &events(1001..1003)).await.unwrap();
    assert!(
        reason(deliver(&opened, &[event(1003)]).await).contains("opened again"),
        "it stays given up"
    );

    // Where there is no mark yet, whoever commits first has it.
    let fresh = Context {
        log_id: "log_3".into(),
        ..context()
    };
    let (first, second) = (kind.open(fresh.clone()).await.unwrap(), kind.open(fresh).await.unwrap());
    deliver(&second, &[event(1004)]).await.unwrap();
    assert!(reason(deliver(&first, &[event(1005)]).await).contains("somebody else moved the mark"));

    // Another log and another sink have marks of their own.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_there_stays_and_what_comes_again_on_purpose_replaces_it() {
    let Some(server) = Server::start("").await else { return };
    let kind = kind(json!({"url": server.url()}));
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &events(1..4)).await.unwrap();
    server
        .sql("UPDATE closehook_events SET source = 'touched'; DELETE FROM closehook_events WHERE seq = 3")
        .await;
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
    let rows = server
        .admin()
        .await
        .query("SELECT seq, source FROM closehook_events ORDER BY seq", &[])
        .await
        .unwrap();
    let rows: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [(1, "touched"), (2, "webhook"), (3, "webhook"), (4, "webhook")];
    assert_eq!(rows, expected.map(|(seq, source)| (seq, source.to_owned())));
}

/// Close withheld its data, and the whole event came later: it has the same key.
#[tokio::test(flavor = "multi_thread")]
async fn the_whole_event_takes_the_place_of_the_one_without_its_data() {
    let Some(server) = Server::start("").await else { return };
    let opened = kind(json!({"url": server.url()})).open(context()).await.unwrap();
    for batch in parts_and_wholes() {
        let count = batch.len();
        assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; count]);
    }
    let client = server.admin().await;
    let rows = client.query("SELECT seq, event ? 'data' FROM closehook_events ORDER BY id", &[]);
    let rows: Vec<(i64, bool)> = rows.await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [(4, true), (2, false), (3, true), (7, true)]);
}

/// New rows are inserted plainly, a part at a time; one that is there already, wherever in the batch, stays, and all others come.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_meets_a_row_leaves_it_and_is_written_all_the_same() {
    let Some(server) = Server::start("").await else { return };
    let kind = kind(json!({"url": server.url()}));
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &[event(700)]).await.unwrap();
    server.sql("UPDATE closehook_events SET source = 'touched'").await;
    let outcomes = deliver(&opened, &events(1..1001)).await.unwrap();
    assert_eq!(outcomes, vec![Outcome::Delivered; 1000]);
    assert_eq!(count(&server, "closehook_events").await, 1000);
    let touched = "SELECT seq FROM closehook_events WHERE source = 'touched'";
    assert_eq!(server.number(touched).await, 700);
    assert_eq!(server.number("SELECT seq FROM closehook_mark").await, 1000);
    // The same again, and one more that no other constraint lets pass.
    server.sql("CREATE UNIQUE INDEX ON closehook_events (lead_id)").await;
    let mut batch = events(999..1003);
    batch.push(delivery(1003, r#"{"event":{"id":"ev_x","lead_id":"lead_5"}}"#));
    let outcomes = deliver(&opened, &batch).await.unwrap();
    assert_eq!(outcomes[..4], vec![Outcome::Delivered; 4]);
    assert!(matches!(&outcomes[4], Outcome::Reject { reason } if reason.text.contains("unique")));
    assert_eq!(count(&server, "closehook_events").await, 1002);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_json_is_written_as_far_as_jsonb_goes_and_no_further() {
    let Some(server) = Server::start("").await else { return };
    let opened = kind(json!({"url": server.url()})).open(context()).await.unwrap();
    let of = |seq: u64, data: &str| {
        delivery(
            seq,
            &format!("{{\"event\":{{\"id\":\"ev_{seq}\",\"object_id\":\"o\\u0000\",\"data\":{data}}}}}"),
        )
    };
    let long = "9".repeat(131_072);
    let texts = [
        r#""\u0000 \ud800 \ud83d\ude80 \udc00 \\u0000""#.to_owned(),
        r#"{"\u0000":1,"a":1,"a":2}"#.to_owned(),
        long.clone(),
        format!("{long}9"),
        format!("-{long}.{}", "1".repeat(16_383)),
        format!("0.{}", "1".repeat(16_384)),
        "[1e131071,1e131072,1e-16383,1e-16384,0e-16384,0e99999999999,0e1073741822,0e1073741823,1.50]".to_owned(),
        format!("{}{}", "[".repeat(1000), "]".repeat(1000)),
    ];
    let batch: Vec<Delivery> = (1..).zip(&texts).map(|(seq, text)| of(seq, text)).collect();
    assert_eq!(
        deliver(&opened, &batch).await.unwrap(),
        vec![Outcome::Delivered; batch.len()]
    );
    let admin = server.admin().await;
    let data = async |seq: i64| -> String {
        let sql = "SELECT (event->'data')::text FROM closehook_events WHERE seq = $1 AND object_id = E'o\u{fffd}'";
        admin.query_one(sql, &[&seq]).await.unwrap().get(0)
    };
    assert_eq!(data(1).await, "\"\u{fffd} \u{fffd} 🚀 \u{fffd} \\\\u0000\"");
    assert_eq!(data(2).await, "{\"a\": 2, \"\u{fffd}\": 1}");
    assert_eq!(data(3).await, long);
    assert_eq!(data(4).await, format!("\"{long}9\""));
    assert!(data(5).await.starts_with("-99"));
    assert!(data(6).await.starts_with("\"0.1"));
    let numbers = data(7).await;
    for (text, is_there) in [
        ("\"1e131072\"", true),
        ("\"1e131071\"", false),
        ("\"1e-16384\"", true),
        (" 1.50]", true),
    ] {
        assert_eq!(numbers.contains(text), is_there, "{text}");
    }

    // What no column takes is refused by itself.
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let endless = delivery(22, &format!(r#"{{"event":{{"id":"{}"}}}}"#, random_text(140_000)));
    let outcomes = deliver(&opened, &[event(20), of(21, &deep), endless, event(23)])
        .await
        .unwrap();
    let rejected: Vec<bool> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Reject { .. }))
        .collect();
    assert_eq!(rejected, [false, true, true, false], "{outcomes:?}");
}

/// Text that can't be compressed.
fn random_text(len: usize) -> String {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.alphanumeric()).take(len).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_is_refused_alone() {
    let Some(server) = Server::start("").await else { return };
    let opened = kind(json!({"url": server.url()})).open(context()).await.unwrap();
    // A check, a trigger that raises, and a key that is only looked at when the transaction is committed.
    server
        .sql(
            "ALTER TABLE closehook_events ADD CHECK (seq <> 17);
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF NEW.seq = 333 THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON closehook_events FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TABLE known (id text PRIMARY KEY);
             INSERT INTO known SELECT 'lead_' || n FROM generate_series(1, 500) n WHERE n <> 480;
             ALTER TABLE closehook_events ADD FOREIGN KEY (lead_id) REFERENCES known DEFERRABLE INITIALLY DEFERRED",
        )
        .await;
    let outcomes = deliver(&opened, &events(1..501)).await.unwrap();
    for (seq, outcome) in (1..).zip(&outcomes) {
        match outcome {
            Outcome::Delivered => assert!(![17, 333, 480].contains(&seq), "{seq}"),
            Outcome::Reject { reason } => {
                assert!([17, 333, 480].contains(&seq), "{seq}: {reason}");
                assert!(
                    reason.text.contains(
                        [
                            "check constraint",
                            "a trigger or function there refuses it (P0001)",
                            "foreign key"
                        ][usize::from(seq > 17) + usize::from(seq > 333)]
                    ),
                    "{reason}"
                );
                // What a trigger says may quote the event, and texts are logged.
                assert!(!reason.text.contains("not this one"), "{reason}");
                let said = (seq == 333).then(|| "not this one".to_owned());
                assert_eq!(reason.answer, said);
            }
            Outcome::Retry { reason, .. } | Outcome::Untried { reason } => panic!("{seq}: {reason}"),
            Outcome::Skipped | Outcome::Waits(_) => panic!("{seq}"),
        }
    }
    assert_eq!(count(&server, "closehook_events").await, 497);
    let mark: i64 = server.number("SELECT seq FROM closehook_mark").await;
    assert_eq!(mark, 16, "the mark says what the outcomes make of it");
    // It goes on, also when the only row is bad.
    assert!(matches!(
        deliver(&opened, &[event(17)]).await.unwrap()[0],
        Outcome::Reject { .. }
    ));
    assert_eq!(deliver(&opened, &[event(1)]).await.unwrap(), [Outcome::Delivered]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_server_is_no_events_fault_and_says_what_to_do() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE ROLE writer LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO writer; CREATE SCHEMA other")
        .await;
    let url = format!("postgres://writer@127.0.0.1:{}/postgres", server.port);
    let with = |table: &str, create: bool| kind(json!({"url": url, "table": table, "create": create}));
    let why = async |table: &str, create: bool| reason(with(table, create).open(context()).await);
    assert!(why("nowhere", false).await.contains("there is no such table"));
    assert!(why("nix.nowhere", true).await.contains("no such schema"));
    assert!(why("other.x", true).await.contains("lacks a right"));
    let kind = with("closehook_events", true);
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &[event(1)]).await.unwrap();

    // Rights that go while it is open, come back, and are missed when it is opened.
    server
        .sql("ALTER TABLE closehook_events OWNER TO postgres; ALTER TABLE closehook_mark OWNER TO postgres")
        .await;
    assert!(reason(deliver(&opened, &[event(2)]).await).contains("lacks a right"));
    assert!(reason(kind.open(context()).await).contains("lacks a right"));
    server
        .sql("GRANT SELECT, INSERT, UPDATE ON closehook_events, closehook_mark TO writer")
        .await;
    let opened = kind.open(context()).await.unwrap();
    assert_eq!(
        opened.mark.as_ref().unwrap().seq,
        Seq(1),
        "nothing of the refused batch is there"
    );
    deliver(&opened, &[event(2)]).await.unwrap();

    // Errors of the whole server while rows are written.
    for (code, part) in [
        ("53100", "disk is full"),
        ("25006", "standby"),
        ("53200", "out of memory"),
        ("XX000", "XX000"),
    ] {
        let opened = kind.open(context()).await.unwrap();
        server
            .sql(&format!(
                "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{code}'; END $$;
                 CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON closehook_events EXECUTE FUNCTION fail()"
            ))
            .await;
        let said = reason(deliver(&opened, &[event(3)]).await);
        assert!(said.contains(part) && said.contains("as told"), "{said}");
    }
    server.sql("DROP TRIGGER fail ON closehook_events").await;

    // Tables that somebody else made.
    server
        .sql(
            "CREATE TABLE bare (seq bigint, id text, date_updated text, received_at timestamptz, type text, object_id text,
             lead_id text, source text, event jsonb); GRANT ALL ON bare TO writer;
             CREATE TABLE short (id text, date_updated text, UNIQUE (id, date_updated)); GRANT ALL ON short TO writer",
        )
        .await;
    assert!(why("bare", false).await.contains("UNIQUE (id, date_updated)"));
    // Something may be made of the events that goes there; without that it is seen with the first one.
    let opened = with("short", false).open(context()).await.unwrap();
    assert!(reason(deliver(&opened, &[event(4)]).await).contains("other columns"));

    // Locks.
    let admin = server.admin().await;
    let opened = kind.open(hasty()).await.unwrap();
    admin.batch_execute("BEGIN; LOCK closehook_events").await.unwrap();
    assert!(reason(deliver(&opened, &[event(4)]).await).contains("another session has locked"));
    admin.batch_execute("ROLLBACK").await.unwrap();

    // A server that takes no changes.
    server
        .sql("ALTER DATABASE postgres SET default_transaction_read_only = on")
        .await;
    assert!(reason(kind.open(context()).await).contains("takes no changes"));
    assert!(reason(kind.probe(context()).await).contains("takes no changes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_or_is_gone_is_noticed_in_time() {
    let Some(mut server) = Server::start("").await else {
        return;
    };
    let kind = kind(json!({"url": server.url()}));
    let opened = kind.open(hasty()).await.unwrap();
    deliver(&opened, &[event(1)]).await.unwrap();
    server.freeze();
    assert!(reason(deliver(&opened, &[event(2)]).await).contains("did not answer within"));
    assert!(reason(kind.open(hasty()).await).contains("did not answer within"));
    server.thaw();
    let opened = kind.open(context()).await.unwrap();
    let mark = opened.mark.as_ref().unwrap().seq;
    assert_eq!(
        count(&server, "closehook_events").await.cast_unsigned(),
        mark.0,
        "either both or neither"
    );
    server.stop();
    let said = reason(deliver(&opened, &[event(3)]).await);
    assert!(said.contains("lost") || said.contains("stopping"), "{said}");
    assert!(reason(kind.open(hasty()).await).contains("refused"));
    server.run().await;
    assert_eq!(kind.open(context()).await.unwrap().mark.unwrap().seq, mark);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_tells_what_would_happen_and_writes_nothing() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE ROLE reader LOGIN; CREATE ROLE maker LOGIN; GRANT CREATE ON SCHEMA public TO maker")
        .await;
    let of = |user: &str, create: bool| {
        kind(json!({"url": format!("postgres://{user}@127.0.0.1:{}/postgres", server.port), "create": create}))
    };
    let tables = "SELECT count(*) FROM pg_class WHERE relname LIKE 'closehook%'";
    assert!(
        of("maker", true)
            .probe(context())
            .await
            .unwrap()
            .contains("will be made")
    );
    assert!(reason(of("maker", false).probe(context()).await).contains("there is no table"));
    assert!(reason(of("reader", true).probe(context()).await).contains("may not make it"));
    assert_eq!(server.number(tables).await, 0);
    let opened = of("postgres", true).open(context()).await.unwrap();
    deliver(&opened, &[event(1)]).await.unwrap();
    assert!(reason(of("reader", true).probe(context()).await).contains("lacks a right"));
    assert!(
        of("postgres", true)
            .probe(context())
            .await
            .unwrap()
            .contains("can be written")
    );
    // Not even the mark's moment, so what is open goes on.
    deliver(&opened, &[event(2)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_waited_for_even_where_the_server_does_not() {
    let Some(server) = Server::start("synchronous_commit = off\n").await else {
        return;
    };
    let opened = kind(json!({"url": server.url()})).open(context()).await.unwrap();
    server
        .sql(
            "CREATE TABLE seen (value text);
             CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;
             CREATE TRIGGER look AFTER INSERT ON closehook_events FOR EACH ROW EXECUTE FUNCTION look()",
        )
        .await;
    deliver(&opened, &[event(1)]).await.unwrap();
    let seen: String = server
        .admin()
        .await
        .query_one("SELECT value FROM seen", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(seen, "local");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_settled_by_the_mark_even_if_the_rows_were_taken_away() {
    let Some(server) = Server::start("").await else { return };
    let proxy = Proxy::start(server.port).await;
    let kind = kind(json!({"url": proxy.url()}));
    let mut next = 1;
    // The first batch of all, where there is no mark yet, and later ones.
    for _ in 0..4 {
        let opened = kind.open(context()).await.unwrap();
        proxy.cut("COMMIT\0", true);
        let said = reason(deliver(&opened, &events(next..next + 3)).await);
        assert!(said.contains("lost"), "{said}");
        let opened = loop {
            let opened = kind.open(context()).await.unwrap();
            // The first mark of all is not there before the server has done what it was sent.
            if opened.mark.as_ref().is_some_and(|mark| mark.seq == Seq(next + 2)) {
                break opened;
            }
            assert!(
                next == 1,
                "opening waits for a commit that is under way: {:?}",
                opened.mark
            );
        };
        server.sql("DELETE FROM closehook_events").await;
        next += 3;
        deliver(&opened, &[event(next)]).await.unwrap();
        let rows = server.number("SELECT count(*) FROM closehook_events").await;
        assert_eq!(rows, 1, "only the new one");
        next += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_where_secrets_come_from() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE ROLE writer LOGIN PASSWORD 'right'; GRANT CREATE ON SCHEMA public TO writer")
        .await;
    server.write("pg_hba.conf", "local all all trust\nhost all all all scram-sha-256\n");
    server.sql("SELECT pg_reload_conf()").await;
    let url = format!("postgres://writer@127.0.0.1:{}/postgres", server.port);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    let with = kind(json!({"url": url, "password_file": path}));
    assert!(reason(with.open(context()).await).contains("can't be read"));
    std::fs::write(&path, "wrong\n").unwrap();
    let said = reason(with.open(context()).await);
    assert!(
        said.contains("refuses the password") && !said.contains("wrong"),
        "{said}"
    );
    std::fs::write(&path, "right\n").unwrap();
    with.open(context()).await.unwrap();
    assert!(reason(kind(json!({"url": url})).open(context()).await).contains("set password"));
    let inside = url.replace("writer@", "writer:right@");
    kind(json!({"url": inside})).open(context()).await.unwrap();
}
