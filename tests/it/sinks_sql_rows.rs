//! `columns`, what transforms make, and `mode = "latest"`, with the daemon and a real database. What the sinks do by themselves is
//! tested beside them (`src/sinks/postgres/tests/layouts.rs`, `src/sinks/sqlite/tests/layouts.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use closehook::ingress::verify::Key;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::campaign;
use crate::harness::{Daemon, KEY, send, until};
use crate::postgres_server::Server;
use crate::sinks_sql::{kill_postgres, kill_sqlite, postgres, sqlite};

/// A configuration whose sink has these columns, given as (name, type, template).
fn with_columns(sink: &str, columns: &[(&str, &str, &str)]) -> String {
    let lines = columns.iter().map(|(name, kind, template)| match *kind {
        "" => format!("{name} = '{template}'\n"),
        kind => format!("{name} = {{ type = \"{kind}\", value = '{template}' }}\n"),
    });
    format!("{sink}[sinks.columns]\n{}", lines.collect::<String>())
}

/// An opportunity as Close sends it, with this data.
fn deal(id: u64, data: &str) -> String {
    format!(
        "{{\"event\": {{\"id\": \"ev_{id}\", \"date_updated\": \"2024-02-15T12:48:23.395000\", \"object_type\": \"opportunity\",
         \"action\": \"updated\", \"object_id\": \"oppo_{id}\", \"lead_id\": \"lead_1\", \"data\": {data}}}, \"subscription_id\": \"whsub_1\"}}"
    )
}

async fn store(daemon: &Daemon, bodies: impl IntoIterator<Item = String>) {
    for body in bodies {
        assert_eq!(daemon.send(&body).await.unwrap().0, 200, "{body}");
    }
    daemon.done("db").await;
}

/// What one query says of one row, as texts.
fn sqlite_row(path: &Path, sql: &str) -> Vec<Option<String>> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let count = statement.column_count();
    statement
        .query_row([], |row| (0..count).map(|index| row.get(index)).collect())
        .unwrap()
}

fn reasons(daemon: &Daemon) -> Vec<String> {
    daemon.lines(&["dead", "list"]).iter().map(Value::to_string).collect()
}

const COLUMNS: [(&str, &str, &str); 7] = [
    ("seq", "bigint", "{{ meta.seq }}"),
    ("lead", "", "{{ lead_id }}"),
    ("value", "numeric(12,2)", "{{ data.value }}"),
    ("at", "timestamptz", "{{ date_updated }}"),
    ("data", "jsonb", "{{ data }}"),
    (
        "label",
        "",
        "{{ object_type | upper }} {{ data.name | default(\"?\") }}",
    ),
    ("note", "", "{% if data.note is defined %}{{ data.note }}{% endif %}"),
];

/// `null` is NULL and the text "null" is a text; what a column does not take, or a template can't make, is that event's dead letter.
fn deals() -> Vec<String> {
    [
        r#"{"value": 1.50, "name": "null", "note": "x"}"#,
        r#"{"value": null, "name": ""}"#,
        r#"{"value": "much"}"#,
        "{}",
        r#"{"value": 1e2}"#,
    ]
    .into_iter()
    .zip(1..)
    .map(|(data, id)| deal(id, data))
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_columns_are_what_their_templates_make_cast_to_their_types() {
    let Some(server) = Server::start("").await else { return };
    let config = with_columns(&format!("{}table = \"deals\"\n", postgres(&server.url())), &COLUMNS);
    let daemon = Daemon::start(&config).await;
    store(&daemon, deals()).await;
    let is = |what: &str| format!("SELECT count(*) FROM deals WHERE {what}");
    for row in [
        "seq = 1 AND lead = 'lead_1' AND value::text = '1.50' AND at = '2024-02-15 12:48:23.395Z' AND data->>'name' = 'null' \
         AND label = 'OPPORTUNITY null' AND note = 'x'",
        "seq = 2 AND value IS NULL AND label = 'OPPORTUNITY ' AND note IS NULL",
        "seq = 5 AND value = 100 AND label = 'OPPORTUNITY ?'",
    ] {
        assert_eq!(server.number(&is(row)).await, 1, "{row}");
    }
    assert_eq!(server.number(&is("true")).await, 3);
    let dead = reasons(&daemon);
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(dead[0].contains("does not fit its column"), "{dead:?}");
    assert!(!daemon.stderr().contains("much"), "nothing of an event is logged");
    assert!(dead[1].contains("its template columns.value failed"), "{dead:?}");
    let shown = daemon.ok(&["render", "db", "--id", "ev_1", "--json"]);
    let row = r#""data":{"value":1.50,"name":"null","note":"x"},"label":"OPPORTUNITY null","lead":"lead_1","note":"x","seq":1,"value":1.50}"#;
    assert!(shown.contains(row), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_columns_are_what_their_templates_make_as_they_are_declared() {
    let mut daemon = Daemon::new("");
    let path = daemon.path("crm.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "CREATE TABLE deals (seq INTEGER, lead TEXT, value REAL, at TEXT, data TEXT, label TEXT, note TEXT, more INTEGER DEFAULT 7) STRICT",
        )
        .unwrap();
    daemon.configure(&with_columns(
        &format!("{}table = \"deals\"\n", sqlite(&path)),
        &COLUMNS,
    ));
    daemon.run().await;
    store(&daemon, deals()).await;
    let texts = |row: &[&str]| row.iter().map(|text| Some((*text).to_owned())).collect::<Vec<_>>();
    assert_eq!(
        sqlite_row(
            &path,
            "SELECT lead, CAST(value AS TEXT), at, data, label, note, CAST(more AS TEXT) FROM deals WHERE seq = 1"
        ),
        texts(&[
            "lead_1",
            "1.5",
            "2024-02-15T12:48:23.395000",
            r#"{"value":1.50,"name":"null","note":"x"}"#,
            "OPPORTUNITY null",
            "x",
            "7"
        ])
    );
    assert_eq!(
        sqlite_row(&path, "SELECT value, label, note FROM deals WHERE seq = 2"),
        [None, Some("OPPORTUNITY ".to_owned()), None]
    );
    let dead = reasons(&daemon);
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(dead[0].contains("REAL"), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_what_a_rule_s_transform_makes_are_the_columns() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE TABLE leads (lead text, value numeric, source text DEFAULT 'close')")
        .await;
    let config = format!(
        "{}table = \"leads\"\n[[rules]]\nname = \"deals\"\nsinks = [\"db\"]\ntransform = '''\n\
         export default function (event, meta) {{\n  if (event.data.value === null) return null\n  \
         return {{ lead: event.lead_id, ...event.data }}\n}}\n'''\n",
        postgres(&server.url())
    );
    let daemon = Daemon::start(&config).await;
    store(
        &daemon,
        [
            deal(1, r#"{"value": 1.5}"#),
            deal(2, r#"{"value": null}"#),
            deal(3, r#"{"value": 2, "colour": "red"}"#),
        ],
    )
    .await;
    let is = |what: &str| format!("SELECT count(*) FROM leads WHERE {what}");
    assert_eq!(
        server
            .number(&is("lead = 'lead_1' AND value = 1.5 AND source = 'close'"))
            .await,
        1
    );
    assert_eq!(server.number(&is("true")).await, 1);
    let dead = reasons(&daemon);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(dead[0].contains("has no column \\\"colour\\\""), "{dead:?}");
    server.sql("ALTER TABLE leads ADD COLUMN colour text").await;
    daemon.ok(&["dead", "retry", "--all"]);
    until("the letter is delivered", async || daemon.sink("db")["dead"] == 0).await;
    assert_eq!(server.number(&is("colour = 'red'")).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_in_a_batch_of_500_that_is_refused_costs_one_letter_and_no_repeats() {
    let Some(server) = Server::start("").await else { return };
    let config = with_columns(
        &format!("{}table = \"deals\"\n", postgres(&server.url())),
        &[
            ("seq", "bigint", "{{ meta.seq }}"),
            ("code", "varchar(4)", "{{ data.code }}"),
        ],
    );
    let daemon = Daemon::start(&config).await;
    store(&daemon, [deal(1, r#"{"code": "a"}"#)]).await;
    // Held up until all are stored, so that they travel together.
    let admin = server.admin().await;
    admin.batch_execute("BEGIN; LOCK deals").await.unwrap();
    for id in 2..=501 {
        let code = if id == 250 { "too long" } else { "a" };
        let answer = daemon.send(deal(id, &format!("{{\"code\": \"{code}\"}}"))).await;
        assert_eq!(answer.unwrap().0, 200);
    }
    admin.batch_execute("COMMIT").await.unwrap();
    daemon.done("db").await;
    let once = "SELECT count(*) FROM (SELECT seq FROM deals GROUP BY seq HAVING count(*) = 1) AS once";
    assert_eq!(server.number(once).await, 500);
    assert_eq!(server.number("SELECT count(*) FROM deals").await, 500);
    let dead = reasons(&daemon);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(
        dead[0].contains("ev_250") && dead[0].contains("does not fit its column"),
        "{dead:?}"
    );
}

/// As `body` of the harness makes it, put together from its parts.
const WHOLE: &str = "{\"id\": {{ id | tojson }}, \"date_updated\": {{ date_updated | tojson }}, \"object_type\": {{ object_type | tojson }}, \
     \"action\": {{ action | tojson }}, \"lead_id\": {{ lead_id | tojson }}, \"data\": {{ data | tojson }}}";

/// The columns that the reckoning asks for: nothing in them keeps a row from being there twice.
fn reckoned(sink: &str, kind: &str) -> String {
    with_columns(sink, &[("seq", "bigint", "{{ meta.seq }}"), ("event", kind, WHOLE)])
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_columns_have_each_event_once_whatever_is_killed() {
    kill_postgres(|url| reckoned(&postgres(url), "jsonb")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_columns_have_each_event_once_whatever_is_killed() {
    kill_sqlite(|path| reckoned(&sqlite(path), "text")).await;
}

/// What is told of each object: the id of its newest event, whether it is deleted, and what it was merged into.
type Told = BTreeMap<String, (Option<String>, bool, Option<String>)>;

/// Revisions of some leads, of which each has a moment of its own, in a random order; and what is told of each lead in the end.
fn histories(random: &mut fastrand::Rng) -> (Vec<String>, Told) {
    let mut told: Told = BTreeMap::new();
    let mut bodies = Vec::new();
    for number in 0..600_u32 {
        let (minute, second) = (number / 60, number % 60);
        let (lead, source) = (
            format!("lead_{}", random.u8(0..20)),
            format!("lead_{}", random.u8(20..24)),
        );
        let action = *random.choice(&["updated", "updated", "deleted", "merged"]).unwrap();
        let merges = action == "merged" && told.get(&source).is_none_or(|row| row.2.is_none());
        let meta = if merges {
            json!({"merge_source_lead_id": source, "merge_destination_lead_id": lead})
        } else {
            json!({})
        };
        let date = format!("2024-02-15T12:{minute:02}:{second:02}.5");
        let event = json!({"id": format!("ev_{number}"), "date_updated": date, "object_type": "lead", "action": action,
            "object_id": lead, "lead_id": lead, "meta": meta, "data": {"n": number}});
        bodies.push(json!({"event": event, "subscription_id": "whsub_1"}).to_string());
        let row = told.entry(lead.clone()).or_default();
        *row = (Some(format!("ev_{number}")), action == "deleted", None);
        if merges {
            let row = told.entry(source).or_default();
            row.1 = true;
            row.2 = Some(lead);
        }
    }
    random.shuffle(&mut bodies);
    (bodies, told)
}

/// Sends what waits until it is told to stop, or nothing waits. What had no answer waits again.
fn send_on(daemon: &Daemon, waiting: &Arc<Mutex<Vec<String>>>, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let (client, url, waiting, stop) = (daemon.client.clone(), daemon.url.clone(), waiting.clone(), stop.clone());
    tokio::spawn(async move {
        let key = Key::from_hex(None, KEY).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let Some(body) = waiting.lock().unwrap().pop() else {
                return;
            };
            let answer = send(&client, &url, &key, body.as_bytes()).await;
            if answer.is_err() || answer.is_ok_and(|(status, _)| status != 200) {
                waiting.lock().unwrap().insert(0, body);
            }
        }
    })
}

/// Kills the daemon, and the server where there is one, while histories are sent; gives what has to be told in the end.
async fn kill_over_histories(daemon: &mut Daemon, mut server: Option<&mut Server>) -> Told {
    let mut random = campaign::seed();
    let (bodies, told) = histories(&mut random);
    let rounds = campaign::rounds("CLOSEHOOK_TEST_KILLS", 2);
    let each = bodies.len() as u64 / (rounds + 1);
    // Some come again from the beginning on: Close sends what it had no answer to, or anything, twice.
    let waiting = Arc::new(Mutex::new(bodies.clone()));
    for round in 1..=rounds {
        daemon.run().await;
        let stop = Arc::new(AtomicBool::new(false));
        let sender = send_on(daemon, &waiting, &stop);
        let rest = bodies.len() - (each * round) as usize;
        until("some are sent", async || waiting.lock().unwrap().len() <= rest).await;
        if let Some(server) = server.as_deref_mut() {
            server.kill();
            server.run().await;
        }
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        sender.await.unwrap();
    }
    daemon.run().await;
    send_on(daemon, &waiting, &Arc::default()).await.unwrap();
    assert!(waiting.lock().unwrap().is_empty());
    daemon.done("db").await;
    let sink = daemon.sink("db");
    assert_eq!((&sink["dead"], &sink["lost"]), (&json!(0), &json!(0)), "{sink}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_tells_the_newest_of_each_object_whatever_is_killed() {
    let Some(mut server) = Server::start("").await else {
        return;
    };
    let config = format!("{}mode = \"latest\"\n", postgres(&server.url()));
    let mut daemon = Daemon::new(&config);
    let told = kill_over_histories(&mut daemon, Some(&mut server)).await;
    let read = async || {
        let sql = "SELECT object_id, event->>'id', deleted_at IS NOT NULL, merged_into FROM closehook_latest";
        let rows = server.admin().await.query(sql, &[]).await.unwrap();
        let pairs = rows
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3))));
        pairs.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(read().await, told);
    // A replay of all changes nothing, but makes anew what somebody took away.
    server
        .sql("DELETE FROM closehook_latest WHERE object_id < 'lead_15'; UPDATE closehook_latest SET type = 'touched'")
        .await;
    let kept = server.number("SELECT count(*) FROM closehook_latest").await;
    daemon.ok(&["replay", "--sink", "db", "--yes"]);
    until("all are there again", async || read().await == told).await;
    let touched = "SELECT count(*) FROM closehook_latest WHERE type = 'touched'";
    assert_eq!(server.number(touched).await, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_tells_the_newest_of_each_object_whatever_is_killed() {
    let mut daemon = Daemon::new("");
    let path = daemon.path("events.db");
    daemon.configure(&format!("{}mode = \"latest\"\n", sqlite(&path)));
    let told = kill_over_histories(&mut daemon, None).await;
    let connection = Connection::open(&path).unwrap();
    let sql = "SELECT object_id, event->>'id', deleted_at IS NOT NULL, merged_into FROM closehook_latest";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?))));
    let rows: Told = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, told);
}
