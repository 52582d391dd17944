//! Other tables than that of events: columns of one's own, what a transform makes, the newest state.

use super::*;
use crate::sinks::common::latest::tests::{Told, batches, history};
use crate::sinks::common::layout::tests::{filled, made, with_columns};

/// What is said of an event that is refused: what the server quotes is in its answer alone.
fn refusal(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reject { reason } => {
            assert!(!reason.text.contains("much"), "{reason}");
            format!("{}{}", reason.text, reason.answer.as_deref().unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

/// A table's sink without columns of its own: what a template or transform makes has them.
async fn opened_made(server: &Server, table: &str) -> Opened {
    let plain = kind(json!({"url": server.url(), "table": table}));
    let context = Context {
        name: "made".into(),
        ..context()
    };
    plain.open(context).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_cast_and_a_row_that_can_not_be_is_refused_alone() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql(
            "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN short AS varchar(3) CHECK (value <> 'no');
             CREATE TABLE \"Deals\" (n bigint PRIMARY KEY, \"Value\" numeric(8,2), at timestamptz, mood mood, code varchar(3), short short,
             data jsonb, letters char(2), flags bit varying(4), won boolean DEFAULT true)",
        )
        .await;
    let columns = json!({"n": "{{ meta.seq }}", "Value": "{{ data.value }}", "at": "{{ date }}", "mood": "{{ mood }}", "code": "{{ code }}",
        "short": "{{ short }}", "data": "{{ data }}", "letters": "{{ letters }}", "flags": "{{ flags }}"});
    let kind = kind(json!({"url": server.url(), "table": "Deals", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let row = |seq: u64, changed: &[(&str, &str)]| {
        let n = seq.to_string();
        let mut texts = vec![
            ("n", n.as_str()),
            ("Value", "1.50"),
            ("at", "\"2024-02-15T12:00:00+01:00\""),
            ("mood", "\"good\""),
            ("code", "\"abc\""),
            ("short", "\"abc\""),
            ("data", "{\"a\": \"\\u0000\"}"),
            ("letters", "\"xy\""),
            ("flags", "\"101\""),
        ];
        for (name, text) in changed {
            texts.retain(|(known, _)| known != name);
            texts.push((name, text));
        }
        with_columns(seq, &texts)
    };
    let bad = [
        (("Value", "\"much\""), "numeric"),
        (("Value", "12345678.00"), "overflow"),
        (("at", "\"soon\""), "timestamp"),
        (("mood", "\"odd\""), "enum"),
        (("code", "\"abcd\""), "too long"),
        (("short", "\"abcd\""), "too long"),
        (("short", "\"no\""), "check constraint"),
        (("letters", "\"xyz\""), "too long"),
        (("flags", "\"10101\""), "too long"),
        (("n", "null"), "null"),
        (("n", "1"), "unique"),
    ];
    let mut batch: Vec<Delivery> = (1..=500).map(|seq| row(seq, &[])).collect();
    for (index, (changed, _)) in bad.iter().enumerate() {
        batch[index * 40 + 20] = row(index as u64 * 40 + 21, &[*changed]);
    }
    batch[499] = row(500, &[("Value", "null"), ("mood", "null"), ("code", "\"\"")]);
    let outcomes = deliver(&opened, &batch).await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        match bad.get(index / 40).filter(|_| index % 40 == 20) {
            Some((_, part)) => assert!(refusal(outcome).contains(part), "{index}: {outcome:?}"),
            None => assert_eq!(*outcome, Outcome::Delivered, "{index}"),
        }
    }
    assert_eq!(count(&server, "\"Deals\"").await, 500 - bad.len() as i64);
    let is = |what: &str| format!("SELECT count(*) FROM \"Deals\" WHERE {what}");
    let good = "\"Value\" = 1.5 AND at = '2024-02-15 11:00Z' AND mood = 'good' AND data->>'a' = U&'\\FFFD' AND won AND flags = B'101'";
    assert_eq!(server.number(&is(good)).await, 499 - bad.len() as i64);
    assert_eq!(
        server
            .number(&is("\"Value\" IS NULL AND mood IS NULL AND code = ''"))
            .await,
        1
    );
    assert_eq!(
        server.number("SELECT seq FROM closehook_mark").await,
        20,
        "up to the first that was refused"
    );

    // What comes again on purpose is inserted again.
    server.sql("ALTER TABLE \"Deals\" DROP CONSTRAINT \"Deals_pkey\"").await;
    let again = Delivery {
        origin: Origin::Letter,
        ..row(1, &[])
    };
    deliver(&opened, &[again]).await.unwrap();
    assert_eq!(server.number(&is("n = 1")).await, 2);

    // A column that is gone, or of another type now, is no event's fault; once it is there again all goes on.
    server.sql("ALTER TABLE \"Deals\" DROP COLUMN code").await;
    assert!(reason(deliver(&opened, &[row(601, &[])]).await).contains("other columns"));
    assert!(reason(kind.open(context()).await).contains("has no column \"code\": add it"));
    assert!(reason(kind.probe(context()).await).contains("has no column \"code\": add it"));
    server.sql("ALTER TABLE \"Deals\" ADD COLUMN code bytea").await;
    let opened = kind.open(context()).await.unwrap();
    deliver(&opened, &[row(601, &[])]).await.unwrap();
    assert_eq!(server.number(&is("n = 601 AND code = 'abc'::bytea")).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_widened_takes_what_it_could_not_have_before() {
    let Some(server) = Server::start("").await else { return };
    server.sql("CREATE TABLE widened (amount integer)").await;
    let columns = json!({"amount": "{{ data.value }}"});
    let kind = kind(json!({"url": server.url(), "table": "widened", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let half = |seq| with_columns(seq, &[("amount", "12.5")]);
    let refused = deliver(&opened, &[half(1)]).await.unwrap();
    assert!(
        matches!(&refused[..], [Outcome::Reject { reason }] if reason.text.contains("takes whole numbers")),
        "{refused:?}"
    );
    server.sql("ALTER TABLE widened ALTER amount TYPE numeric").await;
    assert!(reason(deliver(&opened, &[half(2)]).await).contains("other columns"));
    let opened = kind.open(context()).await.unwrap();
    assert_eq!(deliver(&opened, &[half(2)]).await.unwrap(), [Outcome::Delivered]);
    assert_eq!(
        server.number("SELECT count(*) FROM widened WHERE amount = 12.5").await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_made_of_the_columns_that_are_given() {
    let Some(server) = Server::start("").await else { return };
    let columns =
        json!({"name": "Lead {{ data.name }}", "value": {"type": "numeric(8,2)", "value": "{{ data.value }}"}});
    let kind = kind(json!({"url": server.url(), "table": "made", "columns": columns}));
    let opened = kind.open(context()).await.unwrap();
    let batch = [
        with_columns(1, &[("name", "Lead A"), ("value", "1.5")]),
        with_columns(2, &[("name", ""), ("value", "null")]),
    ];
    assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; 2]);
    let is = |what: &str| format!("SELECT count(*) FROM made WHERE {what}");
    assert_eq!(server.number(&is("name = 'Lead A' AND value::text = '1.50'")).await, 1);
    assert_eq!(
        server.number(&is("name IS NULL AND value IS NULL")).await,
        1,
        "a template that makes nothing"
    );
    assert_eq!(
        kind.preview("db", &batch[0]).unwrap().row.as_deref(),
        Some(r#"{"name":"Lead A","value":1.5}"#)
    );
    let bad = json!({"url": server.url(), "table": "bad", "columns": {"x": {"type": "colour", "value": "y"}}});
    let said = reason(super::kind(bad).open(context()).await);
    assert!(said.contains("no such type") && said.contains("colour"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_what_a_transform_makes_are_the_columns() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql("CREATE TABLE leads (name text, n numeric, data jsonb, source text DEFAULT 'close', CHECK (n <> 13))")
        .await;
    let kind = kind(json!({"url": server.url(), "table": "leads"}));
    let opened = kind.open(context()).await.unwrap();
    assert!(
        kind.probe(context())
            .await
            .unwrap()
            .contains("not with events as they came")
    );
    let batch = [
        made(1, r#"{"name": "A", "n": 1.50, "data": "text"}"#),
        made(2, r#"{"data": {"b": [1, null]}, "name": null}"#),
        made(3, r#"{"name": "C", "colour": "red"}"#),
        made(4, "[1]"),
        made(5, r#"{"name": "E", "n": 13}"#),
        made(6, r#"{"name": "F", "source": null}"#),
    ];
    let outcomes = deliver(&opened, &batch).await.unwrap();
    for index in [0, 1, 5] {
        assert_eq!(outcomes[index], Outcome::Delivered, "{index}");
    }
    assert_eq!(refusal(&outcomes[2]), "the table leads has no column \"colour\"");
    assert!(refusal(&outcomes[3]).contains("no JSON object"));
    assert!(refusal(&outcomes[4]).contains("check constraint"));
    let is = |what: &str| format!("SELECT count(*) FROM leads WHERE {what}");
    for row in [
        "name = 'A' AND n::text = '1.50' AND data = '\"text\"' AND source = 'close'",
        "name IS NULL AND n IS NULL AND data = '{\"b\": [1, null]}' AND source = 'close'",
        "name = 'F' AND source IS NULL",
    ] {
        assert_eq!(server.number(&is(row)).await, 1, "{row}");
    }
    assert_eq!(count(&server, "leads").await, 3);
    // A column that somebody adds is seen at once; an event of which nothing was made has no place here.
    server.sql("ALTER TABLE leads ADD COLUMN colour text").await;
    assert_eq!(deliver(&opened, &batch[2..3]).await.unwrap(), [Outcome::Delivered]);
    let said = reason(deliver(&opened, &[batch[0].clone(), event(7)]).await);
    assert!(
        said.contains("other columns than events need") && said.contains("\"seq\""),
        "{said}"
    );
    // In a table of events both have a place.
    let opened = super::kind(json!({"url": server.url()})).open(context()).await.unwrap();
    let mixed = [
        event(8),
        made(
            9,
            r#"{"seq": 9, "id": "x", "date_updated": "", "received_at": "2024-02-15", "source": "s", "event": {}}"#,
        ),
    ];
    assert_eq!(deliver(&opened, &mixed).await.unwrap(), vec![Outcome::Delivered; 2]);
    assert_eq!(
        deliver(&opened, &mixed[..1]).await.unwrap(),
        [Outcome::Delivered],
        "it is there already"
    );
    assert_eq!(count(&server, "closehook_events").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_revision_stays_whatever_the_order() {
    let Some(server) = Server::start("").await else { return };
    let kind = kind(json!({"url": server.url(), "mode": "latest"}));
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
        let date = |name: &str| format!("to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        let sql = format!(
            "SELECT object_id, type, lead_id, {}, {}, merged_into, seq, event->>'id' FROM closehook_latest ORDER BY object_id",
            date("date_updated"),
            date("deleted_at")
        );
        let rows = server.admin().await.query(&sql, &[]).await.unwrap();
        let told = |row: &tokio_postgres::Row| -> Told {
            (
                row.get(0),
                row.get(1),
                row.get(2),
                row.get(3),
                row.get(4),
                row.get(5),
                row.get(6),
                row.get(7),
            )
        };
        let rows: Vec<Told> = rows.iter().map(told).collect();
        assert_eq!(rows, expected, "seed {seed}, round {round}");
        server.sql("TRUNCATE closehook_latest").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_can_not_be_a_row_is_refused_alone() {
    let Some(server) = Server::start("").await else { return };
    let kind = kind(json!({"url": server.url(), "mode": "latest"}));
    let opened = kind.open(context()).await.unwrap();
    server
        .sql("ALTER TABLE closehook_latest ADD CHECK (object_id <> 'lead_17')")
        .await;
    let outcomes = deliver(&opened, &events(1..500)).await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        if index == 16 {
            assert!(refusal(outcome).contains("check constraint"));
        } else {
            assert_eq!(*outcome, Outcome::Delivered, "{index}");
        }
    }
    assert_eq!(count(&server, "closehook_latest").await, 498);
    server
        .sql("ALTER TABLE closehook_latest DROP CONSTRAINT closehook_latest_pkey")
        .await;
    assert!(reason(kind.open(context()).await).contains("UNIQUE (object_id)"));
}

#[test]
fn faults_of_layouts_are_said_where_they_are() {
    let of = |table: serde_json::Value| {
        let mut table = table;
        table["url"] = json!("postgres://db/crm");
        let (_, faults) = parsed(table);
        assert_eq!(faults.len(), 1, "{faults:?}");
        format!("{}: {}", faults[0].place, faults[0].message)
    };
    for (table, part) in [
        (json!({"mode": "newest"}), "mode: must be"),
        (
            json!({"mode": "latest", "columns": {"a": "b"}}),
            "columns: can't be with mode",
        ),
        (json!({"columns": "a"}), "columns: must be a table"),
        (json!({"columns": {}}), "columns: names no column"),
        (json!({"columns": {"a": 1}}), "columns: \"a\": must be a template"),
        (
            json!({"columns": {"a": {"type": "text"}}}),
            "columns: \"a\": must be a template",
        ),
        (
            json!({"columns": {"a": {"type": "text", "value": "b", "x": 1}}}),
            "columns: \"a\": must be a template",
        ),
        (
            json!({"columns": {"a": {"type": "text; DROP", "value": "b"}}}),
            "is no type",
        ),
        (json!({"columns": {"a\"b": "c"}}), "no column is called so"),
        (json!({"columns": {"a": "{{ b"}}), "line 1"),
    ] {
        let said = of(table);
        assert!(said.contains(part), "{said}");
    }
    let of = |columns: &str| {
        let columns: serde_json::Value = serde_json::from_str(columns).unwrap();
        kind(json!({"url": "postgres://db/crm", "columns": columns})).fingerprint()
    };
    assert!(of(r#"{"a": "x", "b": "y"}"#) == of(r#"{"b": "y", "a": "x"}"#));
    assert!(of(r#"{"a": "x", "b": "y"}"#) != of(r#"{"a": "y", "b": "x"}"#));
    let exclusive = |table| kind(table).exclusive();
    assert_ne!(
        exclusive(json!({"url": "postgres://db/crm"})),
        exclusive(json!({"url": "postgres://db/crm", "mode": "latest"}))
    );
}

/// Close's dates carry no offset, and are UTC's (decision 8).
#[tokio::test(flavor = "multi_thread")]
async fn a_date_without_an_offset_is_utc_s_whatever_time_zone_the_server_has() {
    let Some(server) = Server::start("timezone = 'Europe/Berlin'\n").await else {
        return;
    };
    for role in ["timezone = 'Europe/Berlin'", "timezone = 'America/New_York'"] {
        server
            .sql(&format!(
                "ALTER ROLE postgres SET {role}; DROP TABLE IF EXISTS dates; CREATE TABLE dates (n bigint, at timestamptz, plain timestamp, day date, \"hour\" timetz)"
            ))
            .await;
        let date = "{{ event.date_updated }}";
        let columns = json!({"n": "{{ meta.seq }}", "at": date, "plain": date, "day": date, "hour": "{{ data.hour }}"});
        let kind = kind(json!({"url": server.url(), "table": "dates", "columns": columns}));
        let opened = kind.open(context()).await.unwrap();
        let row = filled(&kind, 1, r#"{"hour":"23:30:00"}"#).await.unwrap();
        assert_eq!(deliver(&opened, &[row]).await.unwrap(), [Outcome::Delivered]);
        // What a template or transform makes: in summer, across midnight, and with an offset.
        let opened = opened_made(&server, "dates").await;
        let batch = [
            made(
                2,
                r#"{"n": 2, "at": "2024-07-15T23:30:00", "day": "2024-07-15T23:30:00", "hour": "00:30:00Z"}"#,
            ),
            made(3, r#"{"n": 3, "at": "2024-07-15T23:30:00+05:30"}"#),
        ];
        assert_eq!(deliver(&opened, &batch).await.unwrap(), vec![Outcome::Delivered; 2]);
        for row in [
            "n = 1 AND at = '2024-02-15 12:48:23.395Z' AND plain = '2024-02-15 12:48:23.395' AND day = '2024-02-15' AND \"hour\" = '23:30:00Z'",
            "n = 2 AND at = '2024-07-15 23:30:00Z' AND day = '2024-07-15' AND \"hour\" = '00:30:00Z'",
            "n = 3 AND at = '2024-07-15 18:00:00Z'",
        ] {
            let found = server.number(&format!("SELECT count(*) FROM dates WHERE {row}")).await;
            assert_eq!(found, 1, "{role}: {row}");
        }
        server.sql("TRUNCATE closehook_mark").await;
    }
}

/// The row of an event in a table `t`, each column as a text; the preview of it.
async fn written(server: &Server, kind: &SinkOptions, data: &str) -> (serde_json::Value, serde_json::Value) {
    let opened = kind.open(context()).await.unwrap();
    let row = filled(kind, 1, data).await.unwrap();
    let shown = kind.preview("db", &row).unwrap().row.unwrap();
    assert_eq!(deliver(&opened, &[row]).await.unwrap(), [Outcome::Delivered], "{data}");
    let client = server.admin().await;
    let found = client
        .query_one("SELECT row_to_json(t)::text FROM t", &[])
        .await
        .unwrap();
    server.sql("TRUNCATE t; TRUNCATE closehook_mark").await;
    (
        serde_json::from_str(&found.get::<_, String>(0)).unwrap(),
        serde_json::from_str(&shown).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_is_a_string_in_a_json_column_and_what_makes_json_text_is_json() {
    let Some(server) = Server::start("").await else { return };
    let json_of = |kind: &str, value: &str| json!({"type": kind, "value": value});
    let columns = json!({
        "label": json_of("jsonb", "{{ data.label }}"),
        "old": json_of("json", "{{ data.label }}"),
        "whole": json_of("jsonb", "{{ data }}"),
        "filtered": json_of("jsonb", "{{ data.list | tojson }}"),
        "called": json_of("jsonb", "{{ (data.nothing or data.list) | tojson(indent=2) }}"),
        "joined": json_of("jsonb", "{{ data.label ~ '!' }}"),
        "either": json_of("jsonb", "{{ data.label if data.label else data.list | tojson }}"),
        "by_hand": json_of("jsonb", "{ \"label\": {{ data.label | tojson }}, \"n\": {{ data.n }} }"),
        "constant": json_of("jsonb", "{\"a\": 1.50}"),
        "text": "{{ data.label }}",
        "nothing": json_of("jsonb", "{{ data.nothing }}"),
    });
    let kind = kind(json!({"url": server.url(), "table": "t", "columns": columns}));
    for label in ["Won", "{\"not\": 1}", "null", "a\"b", ""] {
        let data = json!({"label": label, "list": [1, "x"], "n": 7, "nothing": null});
        let (row, shown) = written(&server, &kind, &data.to_string()).await;
        // Where JSON is made of something, what is JSON is taken for that.
        let either = match label {
            "" => json!([1, "x"]),
            label => serde_json::from_str(label).unwrap_or(json!(label)),
        };
        let wanted = json!({
            "label": label, "old": label, "whole": data, "filtered": [1, "x"], "called": [1, "x"],
            "joined": format!("{label}!"), "either": either,
            "by_hand": {"label": label, "n": 7}, "constant": {"a": 1.5}, "text": label, "nothing": null,
        });
        assert_eq!(row, wanted, "{label}");
        assert_eq!(shown, wanted, "{label}: what is shown is what is sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_without_else_is_null_and_what_is_not_there_is_an_error_at_its_place() {
    let Some(server) = Server::start("").await else { return };
    let columns = json!({"a": "{{ data.name if data.won }}", "b": {"type": "jsonb", "value": "{{ data.n if data.won }}"},
        "c": "{{- (data.name if data.won) -}}"});
    let kind = kind(json!({"url": server.url(), "table": "t", "columns": columns}));
    let (row, shown) = written(&server, &kind, r#"{"name": "A", "n": 1.5, "won": false}"#).await;
    assert_eq!(row, json!({"a": null, "b": null, "c": null}));
    assert_eq!(shown, row);
    let (row, _) = written(&server, &kind, r#"{"name": "A", "n": 1.5, "won": true}"#).await;
    assert_eq!(row, json!({"a": "A", "b": 1.5, "c": "A"}));
    for (template, column, said) in [
        ("{{ data.never }}", 4, "there is no such value (data.never)"),
        ("{{ data['never'] }}", 4, "there is no such value (data['never'])"),
        ("{{data.never}}", 3, "there is no such value (data.never)"),
        ("{{- data.never -}}", 5, "there is no such value (data.never)"),
    ] {
        let kind = super::kind(json!({"url": server.url(), "columns": {"a": template}}));
        let fault = filled(&kind, 1, r#"{"name": "A"}"#).await.unwrap_err();
        assert_eq!(
            (fault.place, fault.text.as_str()),
            (Some((1, column)), said),
            "{template}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_number_is_one_in_an_integer_column_however_it_is_written() {
    let Some(server) = Server::start("").await else { return };
    server
        .sql(
            "CREATE DOMAIN count AS integer; CREATE TABLE t (big bigint, int integer, small smallint, domain count, exact numeric, float float8, text text)",
        )
        .await;
    let columns = json!({"big": "{{ data.n }}", "int": "{{ data.n }}", "small": "{{ data.n }}", "domain": "{{ data.n }}",
        "exact": "{{ data.n }}", "float": "{{ data.n }}", "text": "{{ data.n }}"});
    let kind = kind(json!({"url": server.url(), "table": "t", "columns": columns}));
    for (written_as, whole) in [
        ("1234.0", 1234),
        ("1e1", 10),
        ("12.50E+2", 1250),
        ("-0", 0),
        ("-0.0", 0),
        ("0e5", 0),
        ("-1200e-2", -12),
        ("7", 7),
    ] {
        let (row, shown) = written(&server, &kind, &format!("{{\"n\": {written_as}}}")).await;
        for column in ["big", "int", "small", "domain"] {
            assert_eq!(row[column], json!(whole), "{written_as} in {column}");
        }
        assert_eq!(row["exact"].as_f64(), Some(f64::from(whole)), "{written_as}");
        assert_eq!(row["text"], json!(written_as), "as it was written");
        let number: Option<f64> = shown["text"].to_string().parse().ok();
        assert_eq!(number, Some(f64::from(whole)));
    }
    let opened = kind.open(context()).await.unwrap();
    for (number, said) in [
        ("1234.5", "column \"big\" takes whole numbers"),
        ("1e-1", "column \"big\" takes whole numbers"),
        ("1e30", "22003"),
        ("1e999999999999", "too large"),
    ] {
        let row = filled(&kind, 1, &format!("{{\"n\": {number}}}")).await.unwrap();
        let outcome = deliver(&opened, &[row]).await.unwrap().remove(0);
        assert!(refusal(&outcome).contains(said), "{number}: {outcome:?}");
        let Outcome::Reject { reason } = outcome else { panic!() };
        assert!(
            !reason.text.contains(number),
            "what is of the event is no text for logs: {reason}"
        );
    }
    // What a transform makes too; and one that names the type is shown what is sent.
    let opened = opened_made(&server, "t").await;
    let batch = [
        made(1, r#"{"big": 1e1, "int": 7.00}"#),
        made(2, r#"{"big": "7.0"}"#),
        made(3, r#"{"int": 7.5}"#),
    ];
    let outcomes = deliver(&opened, &batch).await.unwrap();
    assert_eq!(outcomes[0], Outcome::Delivered);
    assert!(refusal(&outcomes[1]).contains("22P02"), "a text is none: {outcomes:?}");
    assert!(
        refusal(&outcomes[2]).contains("\"int\" takes whole numbers"),
        "{outcomes:?}"
    );
    assert_eq!(
        server.number("SELECT count(*) FROM t WHERE big = 10 AND int = 7").await,
        1
    );
    let columns =
        json!({"n": {"type": "BigInt", "value": "{{ data.n }}"}, "x": {"type": "numeric", "value": "{{ data.n }}"}});
    let typed = super::kind(json!({"url": server.url(), "table": "typed", "columns": columns}));
    let shown = |delivery: &Delivery| typed.preview("db", delivery);
    let row = filled(&typed, 1, r#"{"n": 12.0}"#).await.unwrap();
    assert_eq!(shown(&row).unwrap().row.as_deref(), Some(r#"{"n":12,"x":12.0}"#));
    let row = filled(&typed, 1, r#"{"n": 12.5}"#).await.unwrap();
    assert!(refusal(&shown(&row).unwrap_err()).contains("\"n\" takes whole numbers"));
}
