//! Other tables than that of events: columns of one's own, what a transform makes, the newest state.

use super::*;
use crate::sinks::common::latest::tests::{Told, batches, history};
use crate::sinks::common::layout::tests::{filled, made, with_columns};

fn refusal(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reject { reason } => &reason.text,
        other => panic!("{other:?}"),
    }
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn columns_are_as_declared_and_a_row_that_is_not_taken_is_refused_alone() {
    let (_dir, path) = place();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE deals (n INTEGER, name TEXT CHECK (length(name) < 10), value REAL, won ANY, source TEXT DEFAULT 'close') STRICT")
        .unwrap();
    let columns =
        json!({"n": "{{ meta.seq }}", "Name": "{{ data.name }}", "value": "{{ data.value }}", "won": "{{ data.won }}"});
    let kind = kind(json!({"path": path, "table": "deals", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let row = |seq: u64, name: &str, value: &str| {
        let texts = [
            ("n", seq.to_string()),
            ("Name", name.to_owned()),
            ("value", value.to_owned()),
            ("won", "true".to_owned()),
        ];
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        with_columns(seq, &texts)
    };
    let mut batch: Vec<Delivery> = (1..=500).map(|seq| row(seq, "\"A\"", "1.50")).collect();
    batch[6] = row(7, "\"much too long\"", "1");
    batch[400] = row(401, "\"A\"", "\"much\"");
    batch[499] = row(500, "\"\"", "null");
    let outcomes = deliver(&opened, &batch).await.unwrap();
    assert!(refusal(&outcomes[6]).contains("CHECK constraint"), "{outcomes:?}");
    assert!(refusal(&outcomes[400]).contains("REAL"), "{:?}", outcomes[400]);
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| **outcome == Outcome::Delivered)
            .count(),
        498
    );
    let is = |what: &str| number(&connection, &format!("SELECT count(*) FROM deals WHERE {what}"));
    assert_eq!(is("name = 'A' AND value = 1.5 AND won = 1 AND source = 'close'"), 497);
    assert_eq!(is("name = '' AND value IS NULL"), 1);
    let again = Delivery {
        origin: Origin::Letter,
        ..row(1, "\"A\"", "1")
    };
    deliver(&opened, &[again]).await.unwrap();
    assert_eq!(is("n = 1"), 2, "what comes again on purpose is inserted again");

    connection.execute_batch("ALTER TABLE deals DROP COLUMN won").unwrap();
    let missing = "has no column \"won\": add it";
    assert!(reason(deliver(&opened, &[row(601, "\"A\"", "1")]).await).contains(missing));
    drop(opened);
    assert!(reason(kind.open(context()).await).contains(missing));
    assert!(reason(kind.probe(context()).await).contains(missing));
}

#[tokio::test]
async fn a_table_is_made_of_the_columns_that_are_given() {
    let (_dir, path) = place();
    let columns = json!({"name": "Lead {{ data.name }}", "value": {"type": "numeric", "value": "{{ data.value }}"}});
    let kind = kind(json!({"path": path, "table": "made", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let batch = [
        with_columns(1, &[("name", "Lead A"), ("value", "7")]),
        with_columns(2, &[("name", ""), ("value", "null")]),
    ];
    assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; 2]);
    let connection = Connection::open(&path).unwrap();
    let is = |what: &str| number(&connection, &format!("SELECT count(*) FROM made WHERE {what}"));
    assert_eq!(is("name = 'Lead A' AND typeof(value) = 'integer' AND value = 7"), 1);
    assert_eq!(is("name IS NULL AND value IS NULL"), 1);
    assert_eq!(
        kind.preview("db", &batch[0]).unwrap().row.as_deref(),
        Some(r#"{"name":"Lead A","value":7}"#)
    );
    let (_, faults) = parsed(json!({"path": path, "columns": {"a": "x", "A": "y"}}));
    assert!(faults[0].message.contains("twice"), "{faults:?}");
}

#[tokio::test]
async fn the_keys_of_what_a_transform_makes_are_the_columns() {
    let (_dir, path) = place();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE leads (name TEXT, n NUMERIC, data, source TEXT DEFAULT 'close')")
        .unwrap();
    let kind = kind(json!({"path": path, "table": "leads"}));
    let opened = kind.open(context()).await.unwrap();
    let batch = [
        made(1, r#"{"NAME": "A", "n": 1.50, "data": {"b": [1, null]}}"#),
        made(2, r#"{"name": "C", "colour": "red"}"#),
        made(3, "\"text\""),
        made(4, r#"{"name": null, "source": null}"#),
    ];
    let outcomes = deliver(&opened, &batch).await.unwrap();
    assert_eq!((&outcomes[0], &outcomes[3]), (&Outcome::Delivered, &Outcome::Delivered));
    assert_eq!(refusal(&outcomes[1]), "the table leads has no column \"colour\"");
    assert!(refusal(&outcomes[2]).contains("no JSON object"));
    let is = |what: &str| number(&connection, &format!("SELECT count(*) FROM leads WHERE {what}"));
    assert_eq!(
        is("name = 'A' AND n = 1.5 AND data = '{\"b\":[1,null]}' AND source = 'close'"),
        1
    );
    assert_eq!(is("name IS NULL AND source IS NULL"), 1);
    connection.execute_batch("ALTER TABLE leads ADD COLUMN colour").unwrap();
    assert_eq!(deliver(&opened, &batch[1..2]).await.unwrap(), [Outcome::Delivered]);
    let said = reason(deliver(&opened, &[batch[0].clone(), event(7)]).await);
    assert!(said.contains("other columns than events need"), "{said}");
    assert_eq!(is("1"), 3, "nothing of the batch stays");
}

#[tokio::test]
async fn the_newest_revision_stays_whatever_the_order() {
    let (_dir, path) = place();
    let kind = kind(json!({"path": path, "mode": "latest"}));
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..30 {
        let (deliveries, expected) = history(&mut random);
        let opened = kind.open(context()).await.unwrap();
        for batch in batches(&deliveries, &mut random) {
            for (delivery, outcome) in batch.iter().zip(deliver(&opened, batch).await.unwrap()) {
                let skipped = delivery.event.view().unwrap().object_id.is_none();
                let wanted = if skipped { Outcome::Skipped } else { Outcome::Delivered };
                assert_eq!(outcome, wanted);
            }
        }
        let connection = Connection::open(&path).unwrap();
        let sql = "SELECT object_id, type, lead_id, date_updated, deleted_at, merged_into, seq, event->>'id' FROM closehook_latest
             ORDER BY object_id";
        let told = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Told> {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
                row.get(6)?,
                row.get(7)?,
            ))
        };
        let mut statement = connection.prepare(sql).unwrap();
        let rows: Vec<Told> = statement.query_map([], told).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, expected, "seed {seed}, round {round}");
        connection.execute_batch("DELETE FROM closehook_latest").unwrap();
    }
}

#[tokio::test]
async fn a_merge_is_written_whole_or_not_at_all() {
    let (_dir, path) = place();
    let kind = kind(json!({"path": path, "mode": "latest"}));
    let opened = kind.open(context()).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER never BEFORE INSERT ON closehook_latest WHEN NEW.merged_into IS NOT NULL
             BEGIN SELECT RAISE(ABORT, 'as told'); END",
        )
        .unwrap();
    let merge = delivery(
        2,
        r#"{"event":{"id":"ev_2","object_type":"lead","action":"merged","object_id":"lead_d",
           "meta":{"merge_source_lead_id":"lead_s","merge_destination_lead_id":"lead_d"}}}"#,
    );
    let outcomes = deliver(&opened, &[event(1), merge, event(3)]).await.unwrap();
    assert!(refusal(&outcomes[1]).contains("as told"));
    assert_eq!(number(&connection, "SELECT count(*) FROM closehook_latest"), 2);
    assert_eq!(
        number(
            &connection,
            "SELECT count(*) FROM closehook_latest WHERE object_id = 'lead_d'"
        ),
        0
    );
}

#[tokio::test]
async fn a_template_of_one_expression_gives_its_value_as_the_column_has_it() {
    let (_dir, path) = place();
    let typed = |kind: &str, value: &str| json!({"type": kind, "value": value});
    let columns = json!({
        "condition": "{{ data.name if data.won }}",
        "text": "{{ data.name }}",
        "json": "{{ data.list | tojson }}",
        "whole": typed("INTEGER", "{{ data.n }}"),
        "written": "{{ data.n }}",
        "day": "{{ event.date_updated }}",
    });
    let kind = kind(json!({"path": path, "table": "t", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let row = filled(
        &kind,
        1,
        r#"{"name": "null", "won": false, "n": 1e1, "list": [1.50, "x"]}"#,
    )
    .await
    .unwrap();
    let shown = kind.preview("db", &row).unwrap().row.unwrap();
    assert_eq!(
        shown,
        r#"{"condition":null,"day":"2024-02-15T12:48:23.395000","json":"[1.50,\"x\"]","text":"null","whole":1e1,"written":1e1}"#
    );
    assert_eq!(deliver(&opened, &[row]).await.unwrap(), [Outcome::Delivered]);
    let connection = Connection::open(&path).unwrap();
    let is = "condition IS NULL AND text = 'null' AND json = '[1.50,\"x\"]' AND typeof(whole) = 'integer' AND whole = 10 \
         AND written = '1e1' AND day = '2024-02-15T12:48:23.395000'";
    assert_eq!(number(&connection, &format!("SELECT count(*) FROM t WHERE {is}")), 1);
}
